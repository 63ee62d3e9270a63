"""Tiny models of every family, folded and rotated, with what was seen of each pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import families
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from retrm.backbone.base import Unembedding
from retrm.backbone.locate import locate
from retrm.features.folded_model import FoldedModel, fold_norm, rotate

EXACT = 1e-12  # relative to the largest logit


known = families.FAMILIES


LAYER = {
    "gpt2": known["gpt2"],
    "gpt_neox": known["gpt_neox"],
    "gpt_neox-sequential": partial(known["gpt_neox"], use_parallel_residual=False),
    "opt": known["opt"],
    "opt-no-biases": partial(known["opt"], enable_bias=False),
    "opt-no-gains": partial(known["opt"], layer_norm_elementwise_affine=False),
    "falcon-one-norm": known["falcon"],
    "falcon-biases": partial(known["falcon"], bias=True),
    "falcon-two-norms": known["falcon-new"],
    "falcon-new-one-norm": partial(known["falcon-new"], num_ln_in_parallel_attn=1),
    "falcon-alibi-sequential": known["falcon-alibi"],
    "phi": known["phi"],
    "phi-qk-norm": partial(known["phi"], qk_layernorm=True),
    "bloom": families.UNLISTED["bloom"],
    "gptj": families.UNLISTED["gptj"],
    "stablelm": families.UNLISTED["stablelm"],
    "stablelm-parallel": partial(
        families.UNLISTED["stablelm"], use_parallel_residual=True, qk_layernorm=True
    ),
    "starcoder2": known["starcoder2"],
    "olmo": known["olmo"],
    "cohere": known["cohere"],
}


RMS = {
    name: known[name]
    for name in (
        *("llama", "llama-tied", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "granite"),
        *("gemma", "gemma2", "gemma3", "olmo2"),
    )
}


ALL = {**LAYER, **RMS}


every = pytest.mark.parametrize("name", ALL)


layer_norm = pytest.mark.parametrize("name", LAYER)

# A worked example: a state, gain and bias of a norm, a row of the LM head.
X = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
G = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
B = torch.tensor([0.1, 0.0, -0.2], dtype=torch.float64)
ROW = torch.tensor([2.0, -1.0, 5.0], dtype=torch.float64)


class TrueFloat64(TorchFunctionMode):
    """transformers computes norms, softmax and rotations in float32 even in a float64 model.

    Its rounding, 1e-7, would hide errors of that size. Here float32 means float64.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def up(value):
            return torch.float64 if value is torch.float32 else value

        if func is torch.Tensor.float:
            return args[0].double()
        return func(*map(up, args), **{key: up(value) for key, value in (kwargs or {}).items()})


@dataclass(frozen=True)
class Seen:
    """Of one forward pass: logits, residual states of layers 0..L, output of the final norm."""

    logits: torch.Tensor
    residual: list[torch.Tensor]
    post_norm: torch.Tensor


IDS = torch.randint(3, families.VOCAB_SIZE, (2, 11), generator=torch.Generator().manual_seed(1))


@contextmanager
def watched(original: nn.Module, model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs of blocks and final norm of `model`, found by the module paths of `original`."""
    located, seen = locate(original), {}
    paths = {id(part): path for path, part in original.named_modules()}
    names = [paths[id(part)] for part in (*located.blocks, located.final_norm)]
    handles = []
    for i, path in enumerate(names):
        part = model.get_submodule(path)
        handles.append(
            part.register_forward_pre_hook(lambda _m, args, i=i: seen.update({i: args[0]}))
        )
    handles.append(part.register_forward_hook(lambda _m, _a, out: seen.update(post_norm=out)))
    yield seen
    for handle in handles:
        handle.remove()


def look(original: nn.Module, model: nn.Module) -> Seen:
    with torch.no_grad(), TrueFloat64(), watched(original, model) as seen:
        logits = model(input_ids=IDS, use_cache=False).logits
    return Seen(logits, [seen[i] for i in range(families.N_LAYERS + 1)], seen["post_norm"])


@dataclass(frozen=True)
class Case:
    """A model, its folded forms and what was seen of each."""

    model: nn.Module
    head: Unembedding
    folded: FoldedModel
    rotated: FoldedModel
    rotation: torch.Tensor
    seen: Seen
    seen_folded: Seen
    seen_rotated: Seen


def spectral_rotation(folded: FoldedModel) -> torch.Tensor:
    """Right singular vectors as columns, largest first; the dead one, the last, moved to the front."""
    vectors = torch.linalg.svd(folded.head.weight)[2].T
    return vectors.roll(1, dims=1) if folded.norm_kind == "layer" else vectors


@cache
def case(name: str) -> Case:
    model = ALL[name]().double()
    folded = fold_norm(model)
    rotation = spectral_rotation(folded)
    rotated = rotate(folded, rotation)
    return Case(
        model=model,
        head=locate(model).unembedding,
        folded=folded,
        rotated=rotated,
        rotation=rotation,
        seen=look(model, model),
        seen_folded=look(model, folded.model),
        seen_rotated=look(model, rotated.model),
    )


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).abs().max() / expected.abs().max()).item()


def centred(x: torch.Tensor) -> torch.Tensor:
    return x - x.mean(-1, keepdim=True)
