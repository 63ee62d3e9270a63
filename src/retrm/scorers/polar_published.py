"""Published POLAR models (InternLM2ForRewardModel) in transformers' own classes, without remote code.

InternLM2 is Llama with other names and one fused matrix:

    tok_embeddings            embed_tokens
    attention.wqkv            q_proj, k_proj, v_proj
    attention.wo              self_attn.o_proj
    feed_forward.w1, w3, w2   gate_proj, up_proj, down_proj
    attention_norm, ffn_norm  input_layernorm, post_attention_layernorm
    v_head                    score

`wqkv` has one group for each key head: its query heads, then its key, then its value, head by head.

Source: modelling code of InternLM2 (InternLM/InternLM on GitHub) and the loaders of vLLM and SGLang, which
read the same files.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from retrm.backbone.quiet import quiet_transformers
from retrm.backbone.reference import END, SEPARATOR
from retrm.backbone.resolve import check_weights
from retrm.errors import BackboneError

ARCHITECTURE = "InternLM2ForRewardModel"

_OUTSIDE = {
    "model.tok_embeddings.weight": "model.embed_tokens.weight",
    "model.norm.weight": "model.norm.weight",
    "v_head.weight": "score.weight",
}
_INSIDE = {
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


def is_published(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a published POLAR model."""
    return ARCHITECTURE in (config.get("architectures") or ())


def load_published(folder: Path, config: Mapping[str, Any], *, dtype: str = "float32") -> Any:
    """The model as `LlamaForSequenceClassification`.

    Raises:
        BackboneError: a weight is missing, unknown or of another size than the config says, or the
            config asks for what Llama does not have.
    """
    from transformers import LlamaForSequenceClassification

    from retrm.backbone.load import DTYPES

    check_weights(folder)
    made = llama_config(config, folder)
    weights = converted(_tensors(folder), made)
    if dtype not in DTYPES:
        raise BackboneError(f"got dtype={dtype!r}; expected one of {', '.join(DTYPES)}")
    model = LlamaForSequenceClassification(made)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        got = tuple(weights[name].shape) if name in weights else None
        if got != shape:
            raise BackboneError(
                f"{folder}: the weights have {name} as {got or 'nothing'}, and the config asks for {shape}: a "
                "checkpoint of another size. Fetch config.json and weights from the same place"
            )
    stray = sorted(weights.keys() - expected.keys())
    if stray:
        raise BackboneError(
            f"{folder}: the weights hold {stray[0]} ({len(stray)} such names), which the config has no place "
            "for: a checkpoint of another size. Fetch config.json and weights from the same place"
        )
    model.load_state_dict(weights)
    return model.to(DTYPES[dtype])


def llama_config(config: Mapping[str, Any], folder: Path) -> Any:
    """The config of the same model as a Llama.

    Raises:
        BackboneError: a value is missing, or biases are asked for.
    """
    from transformers import LlamaConfig

    if config.get("bias", False):
        raise BackboneError(
            f"{folder}: the config asks for biases, which no published POLAR model has"
        )
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "max_position_embeddings", "rms_norm_eps"),
    )
    missing = [name for name in names if name not in config]
    if missing:
        raise BackboneError(
            f"{folder}: config.json lacks {', '.join(missing)}; expected that of a published POLAR model"
        )
    scaling = dict(config.get("rope_scaling") or {})
    rope = {
        "rope_theta": float(config.get("rope_theta", 10000.0)),
        "rope_type": scaling.get("rope_type") or scaling.get("type") or "default",
    }
    if "factor" in scaling:
        rope["factor"] = float(scaling["factor"])
    heads = config["num_attention_heads"]
    return LlamaConfig(
        **{name: config[name] for name in names},
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        hidden_act=config.get("hidden_act", "silu"),
        rope_parameters=rope,
        num_labels=1,
        problem_type="regression",
        pad_token_id=_pad(config),
        bos_token_id=config.get("bos_token_id", 1),
        eos_token_id=config.get("eos_token_id", 2),
    )


def _pad(config: Mapping[str, Any]) -> int:
    # The reward token would be taken for padding if it were the same.
    found = config.get("pad_token_id")
    return found if found is not None and found != config.get("reward_token_id") else 0


def converted(tensors: Iterable[tuple[str, Tensor]], config: Any) -> dict[str, Tensor]:
    """Weights under the names of Llama.

    Args:
        tensors: names and values of an InternLM2 checkpoint.
        config: of the Llama that they become.

    Raises:
        BackboneError: a name that InternLM2 does not have, or a `wqkv` that cannot be taken apart.
    """
    made: dict[str, Tensor] = {}
    for name, value in tensors:
        found = _BLOCK.fullmatch(name)
        if found is None and name in _OUTSIDE:
            made[_OUTSIDE[name]] = value
        elif found is not None and found[2] in _INSIDE:
            made[f"model.layers.{found[1]}.{_INSIDE[found[2]]}"] = value
        elif found is not None and found[2] == "attention.wqkv.weight":
            parts = zip("qkv", split_wqkv(value, config, name), strict=True)
            made |= {f"model.layers.{found[1]}.self_attn.{p}_proj.weight": w for p, w in parts}
        elif not name.endswith("rotary_emb.inv_freq"):
            raise BackboneError(
                f"the checkpoint has a weight {name!r}, which InternLM2's reward models do not; expected a "
                "published POLAR model"
            )
    return made


def split_wqkv(weight: Tensor, config: Any, name: str = "wqkv") -> tuple[Tensor, Tensor, Tensor]:
    """The fused matrix as query, key and value matrices.

    Args:
        weight: (key heads * (queries per key + 2) * head width, hidden).
        config: of the Llama that it belongs to.
        name: for the message.

    Raises:
        BackboneError: it has another number of rows.
    """
    n_keys, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    n_queries = config.num_attention_heads // n_keys
    if weight.shape[0] != n_keys * (n_queries + 2) * width:
        raise BackboneError(
            f"{name} has {weight.shape[0]} rows, and the config asks for "
            f"{n_keys * (n_queries + 2) * width}: a checkpoint of another size. Fetch config.json and weights "
            "from the same place"
        )
    groups = weight.view(n_keys, n_queries + 2, width, -1)
    parts = (groups[:, :n_queries], groups[:, n_queries], groups[:, n_queries + 1])
    queries, keys, values = (part.reshape(-1, weight.shape[1]).contiguous() for part in parts)
    return queries, keys, values


def _tensors(folder: Path) -> Iterable[tuple[str, Tensor]]:
    from safetensors import safe_open

    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise BackboneError(
            f"{folder} has no safetensors files; pickled weights can run code and are not read. Convert "
            "them, or fetch the repository with its model*.safetensors"
        )
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                yield name, opened.get_tensor(name)


def published_tokenizer(folder: Path, config: Mapping[str, Any]) -> Any:
    """The tokenizer by its files alone, refused where it does not know POLAR's tokens.

    Raises:
        BackboneError: it needs code of its own, or is of another model.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        with quiet_transformers():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            found = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (SEPARATOR, END)]
    except Exception as error:
        # Tokenizers, written in Rust, raise no errors of a common kind.
        raise BackboneError(
            f"{folder} has no tokenizer that is read without code of its own ({str(error)[:200]}); expected "
            "tokenizer.json. Make it once where that code may run: AutoTokenizer.from_pretrained(..., "
            "trust_remote_code=True).save_pretrained(...), and copy tokenizer.json here"
        ) from error
    wanted = config.get("reward_token_id")
    is_whole = all(len(ids) == 1 for ids in found)
    if not is_whole or (wanted is not None and found[1] != [wanted]):
        raise BackboneError(
            f"the tokenizer in {folder} gives {END!r} the ids {found[1]} and {SEPARATOR!r} {found[0]}; expected "
            f"one each, {wanted} for the first. Its tokenizer.json is of another model"
        )
    return tokenizer
