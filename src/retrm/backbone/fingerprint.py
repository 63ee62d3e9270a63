"""What a head belongs to, as four hashes: weights, unembedding, tokenizer and template.

    weights      sha256 over the config and up to 4,096 values of every tensor, at fixed positions
    unembedding  the same over LM head and final norm
    tokenizer    vocabulary, merges, special and added tokens, normaliser, post-processor
    template     chat template and span rules

The positions follow the golden ratio, floor(n * frac(i * phi)), plus the first and the last element:
an even stride would meet the same column of a matrix again and again. Rounding touches nearly every
value, so any requantisation changes the hash; a single edited weight is found only where it was
sampled. Hashed are the float32 values: a checkpoint loaded as bfloat16 and as float32 has ONE
fingerprint when its values are bfloat16 on disk, and another one when the cast rounds them.

Cost: about a tenth of a second for 135 M parameters, as only the samples are read.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrm.backbone.base import Fingerprint, Unembedding
from retrm.backbone.locate import locate

MAX_SAMPLES = 4096
"""Most values that are read of one tensor."""

_HEX = 32  # digits kept: 128 bits are beyond any accident
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / phi, odd
# What a config says without changing one state: names, versions, sampling and training habits.
_IDLE = (
    *("_name_or_path", "_model_name_or_path", "name_or_path", "transformers_version", "dtype"),
    *("torch_dtype", "use_cache", "architectures", "output_attentions", "output_hidden_states"),
    *("return_dict", "return_dict_in_generate", "id2label", "label2id", "problem_type", "auto_map"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "initializer_range"),
    *("pretraining_tp", "task_specific_params", "_attn_implementation", "chunk_size_feed_forward"),
    *("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout"),
)


def fingerprint_model(
    model: nn.Module, tokenizer: Any, template: str, *, unembedding: Unembedding | None = None
) -> Fingerprint:
    """The fingerprint of a transformers model with its tokenizer and template.

    Args:
        model: a causal LM whose weights are in memory.
        tokenizer: of transformers, fast or slow.
        template: chat template and span rules in any fixed textual form.
        unembedding: where it is already known; else it is located.

    Raises:
        BackboneError: final norm or LM head are not found (see `locate`).
    """
    return Fingerprint(
        weights=hash_weights(essential_config(model.config), model.state_dict().items()),
        unembedding=hash_unembedding(unembedding or locate(model).unembedding),
        tokenizer=hash_tokenizer(tokenizer),
        template=hash_text(template),
    )


def sample_positions(n_elements: int) -> tuple[int, ...]:
    """Which elements of a flattened tensor are hashed, ascending; all of them up to `MAX_SAMPLES`."""
    return tuple(_positions(n_elements).tolist())


def hash_weights(config: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of a config and of samples of named tensors, in any order of the names.

    Equal names, shapes and sampled float32 values give equal hashes, whatever dtype and device.
    """
    sha = hashlib.sha256(_canonical(config))
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        _add(sha, name, tensor)
    return sha.hexdigest()[:_HEX]


def hash_unembedding(unembedding: Unembedding) -> str:
    """Hash of LM head and final norm: what a subspace of the LM head depends on."""
    u = unembedding
    sha = hashlib.sha256(_canonical([u.norm_kind, u.eps, u.logit_scale, u.softcap]))
    parts = {"weight": u.weight, "bias": u.bias, "gain": u.gain, "norm_bias": u.norm_bias}
    for name, tensor in parts.items():
        if tensor is not None:
            _add(sha, name, tensor)
    return sha.hexdigest()[:_HEX]


def hash_tokenizer(tokenizer: Any) -> str:
    """Hash of everything that decides which ids a text gets; padding and truncation do not."""
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    sha = hashlib.sha256(_canonical([special, sorted(map(str, tokenizer.all_special_tokens))]))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        sha.update(_rules(backend.to_str()))
    else:
        vocab = sorted((index, token) for token, index in tokenizer.get_vocab().items())
        sha.update(_canonical([type(tokenizer).__name__, vocab]))
    return sha.hexdigest()[:_HEX]


def hash_text(text: str) -> str:
    """Hash of a text, 32 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:_HEX]


def essential_config(config: Any) -> dict[str, Any]:
    """The part of a transformers config that changes states, where it differs from the defaults.

    Defaults are left out so that a release of transformers that adds an option changes no
    fingerprint.
    """
    return _without_idle({"model_type": config.model_type, **config.to_diff_dict()})


def _without_idle(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_idle(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key not in _IDLE
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()


def _rules(serialised: str) -> bytes:
    """The tokenizer's JSON from the added tokens on.

    Padding and truncation stand before them and change whenever somebody calls the tokenizer.
    """
    start = serialised.find('"added_tokens"')
    if start < 0:
        rules = json.loads(serialised)
        return _canonical({k: v for k, v in rules.items() if k not in ("padding", "truncation")})
    return serialised[start:].encode()


def _add(sha: Any, name: str, tensor: Tensor) -> None:
    sha.update(_canonical([name, list(tensor.shape)]))
    flat = tensor.detach().reshape(-1)
    picked = flat[torch.from_numpy(_positions(flat.numel())).to(flat.device)]
    sha.update(picked.float().cpu().numpy().astype("<f4").tobytes())


@functools.lru_cache(maxsize=64)
def _positions(n_elements: int) -> np.ndarray:
    if n_elements <= MAX_SAMPLES:
        return np.arange(n_elements, dtype=np.int64)
    picked = {0, n_elements - 1}
    for i in range(1, MAX_SAMPLES - 1):
        picked.add(((i * _GOLDEN) % 2**64 * n_elements) >> 64)
    return np.array(sorted(picked), dtype=np.int64)
