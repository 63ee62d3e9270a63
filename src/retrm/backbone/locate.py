"""Where the parts of a causal language model lie: the only file that knows model families.

A decoder is embedding -> block 1 .. block L -> final norm, and above it stands the LM head:

    logits = softcap(logit_scale * (W @ norm(x) + bias))

The table `FAMILIES` names the attributes for the families that the contract tests cover. Any other
causal LM is searched by the usual attribute names, and the formula above is then checked on one
forward pass before the model is accepted. The norm is never judged by its class: kind, gain and eps
are those that reproduce what the module does (Gemma stores gain - 1, Cohere's norm has no bias).

Sources: transformers 5.x modelling code; Pre-LN and post-LN after arXiv 2305.14858, section 3.
"""

import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retrm.backbone.base import Unembedding
from retrm.errors import BackboneError

MaskStyle = Literal["plain", "window", "by_type"]

NO_LIMIT = 1 << 20
"""Context length reported for state-space models, which have none: about a million tokens."""


@dataclass(frozen=True)
class Family:
    """Attribute paths of one family, and how its attention takes a hand-made mask.

    Attributes:
        decoder: path from the causal LM to the module without LM head.
        blocks: path from the decoder to the list of blocks.
        norm: path from the decoder to the final norm.
        masks: None = a row holds one answer only. Otherwise a 4-D mask is obeyed, and the local
            attention is left to whoever makes the mask: `plain` = the family has none, `window` =
            every layer has the config's window, `by_type` = one mask for each kind of layer.
    """

    decoder: str = "model"
    blocks: str = "layers"
    norm: str = "norm"
    masks: MaskStyle | None = None


FAMILIES: Mapping[str, Family] = {
    "llama": Family(masks="plain"),
    "mistral": Family(masks="window"),
    "mixtral": Family(masks="window"),
    "ministral": Family(masks="by_type"),
    "qwen2": Family(masks="by_type"),
    "qwen2_moe": Family(masks="by_type"),
    "qwen3": Family(masks="by_type"),
    "qwen3_moe": Family(masks="window"),
    "gemma": Family(masks="plain"),
    "gemma2": Family(masks="by_type"),
    "gemma3_text": Family(masks="by_type"),
    "phi": Family(norm="final_layernorm", masks="plain"),
    "phi3": Family(masks="window"),
    "olmo": Family(masks="plain"),
    "olmo2": Family(masks="plain"),
    "olmo3": Family(masks="by_type"),
    "smollm3": Family(masks="by_type"),
    "starcoder2": Family(masks="window"),
    "granite": Family(masks="plain"),
    "cohere": Family(masks="plain"),
    "cohere2": Family(masks="by_type"),
    "gpt2": Family("transformer", "h", "ln_f", "plain"),
    "gpt_neox": Family("gpt_neox", "layers", "final_layer_norm", "plain"),
    "opt": Family("model.decoder", "layers", "final_layer_norm", "plain"),
    "falcon": Family("transformer", "h", "ln_f", "plain"),
    "mamba": Family("backbone", "layers", "norm_f"),
    "rwkv": Family("rwkv", "blocks", "ln_out"),
}

_DECODERS = (
    "model.language_model",
    "language_model.model",
    "model.decoder",
    "model",
    "transformer",
    "gpt_neox",
    "backbone",
    "rwkv",
)
_BLOCKS = ("layers", "h", "blocks", "block")
_NORMS = (
    "norm",
    "final_layernorm",
    "final_layer_norm",
    "ln_f",
    "norm_f",
    "ln_out",
    "layer_norm",
    "embedding_norm",
)
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
"""Names of the attention inside a block."""

READERS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj"),
    *("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.c_attn"),
    *("attention.query_key_value", "self_attention.query_key_value"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.dense_h_to_4h"),
    *("mlp.c_fc", "mlp.fc1", "mlp.fc_in", "fc1"),
)
"""Paths inside a block of the matrices that read the residual stream, over all families."""

WRITERS = (
    *("self_attn.o_proj", "self_attn.out_proj", "self_attn.dense"),
    *("attn.c_proj", "attn.out_proj", "attention.dense", "self_attention.dense"),
    *("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj", "mlp.fc2", "mlp.fc_out", "fc2"),
)
"""Paths inside a block of the matrices whose output is added to the residual stream."""


@dataclass(frozen=True)
class Located:
    """The parts of one causal LM.

    Attributes:
        model_type: of the text config.
        decoder: the module without LM head.
        blocks: block 1 .. block L.
        final_norm: the module whose output the LM head multiplies.
        unembedding: final norm and LM head as numbers.
        width: of the residual stream.
        context_length: most tokens in a row; `NO_LIMIT` where the family has no limit.
        masks: how a 4-D mask is taken, or None where it cannot be.
        window: tokens a local layer looks back, itself included; None = none.
        takes_positions: whether the decoder accepts `position_ids`.
        takes_mask: whether the decoder uses an attention mask at all.
        switch_at: longest row for which the rotary frequencies are the short ones, in families
            whose frequencies depend on the longest row of the batch (LongRoPE); None elsewhere.
    """

    model_type: str
    decoder: nn.Module
    blocks: tuple[nn.Module, ...]
    final_norm: nn.Module
    unembedding: Unembedding
    width: int
    context_length: int
    masks: MaskStyle | None
    window: int | None
    takes_positions: bool
    takes_mask: bool
    switch_at: int | None

    @property
    def shares_prompts(self) -> bool:
        """Whether one row may hold a prompt with several answers behind it, exactly."""
        return self.masks is not None


def locate(model: nn.Module) -> Located:
    """Find decoder, blocks, final norm and LM head of a transformers causal LM.

    Raises:
        BackboneError: the model is an encoder-decoder, post-LN, projects its embeddings, has no LM
            head, has a norm or an LM head that the formula of this module does not describe, or is
            of an unknown family in which the usual attribute names are not found.
    """
    config = _text_config(model)
    kind = str(config.model_type)
    _refuse_unsupported(model, config, kind)
    decoder, blocks, norm = _parts(model, config, kind)
    width = int(config.hidden_size)
    located = Located(
        model_type=kind,
        decoder=decoder,
        blocks=blocks,
        final_norm=norm,
        unembedding=_unembedding(model, norm, config, kind, width),
        width=width,
        context_length=_context_length(config, kind),
        masks=_mask_style(model, config, kind),
        window=getattr(config, "sliding_window", None) or None,
        takes_positions=_accepts(decoder, "position_ids"),
        takes_mask=kind != "rwkv" and _accepts(decoder, "attention_mask"),
        switch_at=_rope_switch(config),
    )
    if kind not in FAMILIES:
        _prove_logits(model, located)
    return located


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "model_type"):
        raise BackboneError(
            f"got a {type(model).__name__} without a transformers config; expected a causal LM, "
            "as AutoModelForCausalLM.from_pretrained gives it"
        )
    return config.get_text_config()


def _refuse_unsupported(model: nn.Module, config: Any, kind: str) -> None:
    """State plainly why a model cannot be read, before anything is searched for."""
    refusal = None
    if getattr(model.config, "is_encoder_decoder", False):
        refusal = "it is an encoder-decoder, whose decoder states depend on a second sequence"
    elif not getattr(config, "do_layer_norm_before", True):
        refusal = "its norms stand after the blocks (post-LN), so it has no residual stream"
    elif getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size:
        refusal = (
            f"its LM head reads a projection of width {config.word_embed_proj_dim}, not the "
            f"states of width {config.hidden_size}"
        )
    elif getattr(config, "use_bidirectional_attention", False):
        refusal = "its attention looks forward, so later tokens would change a state"
    if refusal:
        raise BackboneError(
            f"cannot read {kind!r}: {refusal}. Expected a decoder-only, pre-norm causal LM; "
            "choose another backbone"
        )


def _parts(
    model: nn.Module, config: Any, kind: str
) -> tuple[nn.Module, tuple[nn.Module, ...], nn.Module]:
    """Decoder, blocks and final norm by the family's paths, or by the usual names."""
    family = FAMILIES.get(kind)
    if family is None:
        paths = itertools.product(_DECODERS, _BLOCKS, _NORMS)
    else:
        # A vision-language checkpoint holds the same text decoder one level deeper.
        paths = (
            (at, family.blocks, family.norm) for at in ("model.language_model", family.decoder)
        )
    for decoder_path, blocks_path, norm_path in paths:
        decoder = _child(model, decoder_path)
        if decoder is None:
            continue
        blocks, norm = _child(decoder, blocks_path), _child(decoder, norm_path)
        if isinstance(blocks, nn.ModuleList) and norm is not None:
            return decoder, _checked_blocks(blocks, config, kind), norm
    raise BackboneError(
        f"cannot find the parts of {kind!r} ({type(model).__name__}): looked for a decoder at "
        f"{_names(_DECODERS if family is None else (family.decoder,))}, blocks at "
        f"{_names(_BLOCKS if family is None else (family.blocks,))} and a final norm at "
        f"{_names(_NORMS if family is None else (family.norm,))}. "
        "Choose a family that is known: " + _names(FAMILIES)
    )


def _checked_blocks(blocks: nn.ModuleList, config: Any, kind: str) -> tuple[nn.Module, ...]:
    n_layers = int(config.num_hidden_layers)
    # Some checkpoints carry further blocks (multi-token prediction) that the forward leaves out.
    kept = tuple(blocks)[:n_layers]
    if len(kept) < n_layers or len({id(block) for block in kept}) < n_layers:
        raise BackboneError(
            f"{kind!r} holds {len({id(block) for block in kept})} different blocks where its "
            f"config says {n_layers} layers; blocks that run more than once have no layer number"
        )
    return kept


def _child(module: nn.Module, path: str) -> nn.Module | None:
    try:
        found = attrgetter(path)(module)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Module) else None


def _names(names: Any) -> str:
    return ", ".join(str(name) for name in names)


def _accepts(decoder: nn.Module, name: str) -> bool:
    return name in inspect.signature(decoder.forward).parameters


def _context_length(config: Any, kind: str) -> int:
    # RWKV's config keeps the length it was trained on, which bounds nothing.
    for name in () if kind == "rwkv" else _CONTEXT:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return NO_LIMIT


def _rope_parameters(config: Any) -> list[Mapping[str, Any]]:
    """One mapping for each kind of layer (Gemma 3 keeps two), empty without rotary positions."""
    found = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in found.values() if isinstance(value, Mapping)]
    return nested or ([found] if found else [])


def _rope_switch(config: Any) -> int | None:
    for rope in _rope_parameters(config):
        if rope.get("rope_type") == "longrope":
            return int(rope["original_max_position_embeddings"])
    return None


def _mask_style(model: nn.Module, config: Any, kind: str) -> MaskStyle | None:
    """The family's style, or None where this member or its attention kernel cannot share a row."""
    family = FAMILIES.get(kind)
    if family is None or getattr(config, "alibi", False):
        return None
    # Flash and flex attention cannot take a dense mask, and would ignore or refuse it.
    if getattr(model.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return None
    # Frequencies that follow the longest row would tie the answers of a row to each other.
    if any(rope.get("rope_type") in ("longrope", "dynamic") for rope in _rope_parameters(config)):
        return None
    return family.masks


def _unembedding(
    model: nn.Module, norm: nn.Module, config: Any, kind: str, width: int
) -> Unembedding:
    """The LM head by `get_output_embeddings`: the input embedding may be scaled or untied."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    head = head if head is not None else getattr(model, "head", None)
    weight = getattr(head, "weight", None)
    if weight is None:
        raise BackboneError(
            f"{type(model).__name__} has no LM head; expected a causal LM, load it with "
            "AutoModelForCausalLM rather than AutoModel"
        )
    if weight.is_meta or weight.ndim != 2 or weight.shape[1] != width:
        raise BackboneError(
            f"the LM head of {kind!r} has shape {tuple(weight.shape)} on {weight.device}; expected "
            f"(vocabulary, {width}) in memory. Load it without quantising or offloading the LM head"
        )
    inputs = model.get_input_embeddings().weight
    norm_kind, gain, norm_bias, eps = read_norm(norm, f"the final norm of {kind!r}", weight)
    return Unembedding(
        weight=weight.detach(),
        bias=_detached(getattr(head, "bias", None)),
        gain=gain,
        norm_bias=norm_bias,
        norm_kind=norm_kind,
        eps=eps,
        logit_scale=_logit_scale(config, kind),
        softcap=getattr(config, "final_logit_softcapping", None),
        is_tied=weight is inputs or weight.data_ptr() == inputs.data_ptr(),
    )


def _logit_scale(config: Any, kind: str) -> float:
    if kind.startswith("cohere"):
        return float(config.logit_scale)
    return 1.0 / float(getattr(config, "logits_scaling", None) or 1.0)


def _detached(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()


def read_norm(
    norm: nn.Module, name: str, like: Tensor
) -> tuple[Literal["rms", "layer"], Tensor | None, Tensor | None, float]:
    """Norm kind, effective gain, bias and eps that reproduce the module on two probes.

    `name` opens the message of a refusal. `like` is the LM head, (vocab, width), for width and
    dtype. The second probe has the size of sqrt(eps), where a wrong eps shows.

    Raises:
        BackboneError: the module is no norm of these two kinds.
    """
    weight, bias = _detached(getattr(norm, "weight", None)), _detached(getattr(norm, "bias", None))
    like = like if weight is None else weight
    draw = torch.randn(1, like.shape[-1], generator=torch.Generator().manual_seed(0)) + 0.5
    gains = (None,) if weight is None else (weight, 1.0 + _wide(weight))
    tolerance = 1e-4 if like.dtype in (torch.float32, torch.float64) else 3e-2
    for eps, norm_kind, gain in itertools.product(_eps(norm, like.dtype), ("rms", "layer"), gains):
        errors = []
        for size in (1.0, eps**0.5):
            probe = (draw * size).to(like.device, like.dtype)
            with torch.inference_mode():
                got = norm(probe).float()
            error = (got - apply_norm(probe, gain, bias, norm_kind, eps)).norm() / got.norm()
            errors.append(float(error))
        if max(errors) <= tolerance:
            return norm_kind, gain, bias, eps
    raise BackboneError(
        f"{name}, a {type(norm).__name__}, is neither RMSNorm nor LayerNorm "
        "with gain `weight` or 1 + `weight` and a known eps; choose another backbone"
    )


def _eps(norm: nn.Module, dtype: torch.dtype) -> tuple[float, ...]:
    """The eps that the module states; the usual ones to be tried where it states none (OLMo)."""
    stated = [getattr(norm, name, None) for name in ("eps", "variance_epsilon", "epsilon")]
    found = tuple(float(value) for value in stated if value is not None)
    # torch's RMSNorm with eps=None uses the machine epsilon of the input's dtype.
    return found or (1e-5, 1e-6, torch.finfo(dtype).eps)


def apply_norm(
    x: Tensor, gain: Tensor | None, bias: Tensor | None, kind: Literal["rms", "layer"], eps: float
) -> Tensor:
    """RMSNorm or LayerNorm of the last axis, in float32 (float64 stays); any shape (..., width).

    rms:    x / sqrt(mean(x^2) + eps) * gain + bias
    layer:  the same of x - mean(x)
    """
    x = _wide(x)
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    if gain is not None:
        x = x * gain.to(x.dtype)
    return x if bias is None else x + bias.to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def logits_of(post_norm: Tensor, unembedding: Unembedding) -> Tensor:
    """Logits (..., vocab) in float32 of post_norm states (..., width): the formula above."""
    out = post_norm.float() @ unembedding.weight.float().T
    if unembedding.bias is not None:
        out = out + unembedding.bias.float()
    out = out * unembedding.logit_scale
    cap = unembedding.softcap
    return out if cap is None else cap * torch.tanh(out / cap)


def _prove_logits(model: nn.Module, located: Located) -> None:
    """Compare the formula with the model's own logits on four tokens; for families only guessed."""
    seen: list[Tensor] = []
    handle = located.final_norm.register_forward_hook(lambda _m, _a, out: seen.append(out))
    ids = torch.arange(4, device=located.unembedding.weight.device)[None]
    was_training = model.training
    try:
        with torch.inference_mode():
            got = model.eval()(input_ids=ids, use_cache=False).logits.float()
    finally:
        handle.remove()
        model.train(was_training)
    expected = logits_of(seen[0], located.unembedding) if len(seen) == 1 else torch.zeros_like(got)
    tolerance = 1e-3 if located.unembedding.weight.dtype == torch.float32 else 5e-2
    if (got - expected).norm() > tolerance * got.norm():
        raise BackboneError(
            f"{located.model_type!r} is an unknown family, and W @ norm(x) does not reproduce its "
            "logits: it scales or changes states in a way that is not known. "
            "Choose a family that is known: " + _names(FAMILIES)
        )
