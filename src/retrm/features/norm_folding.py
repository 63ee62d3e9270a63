r"""The matrix that links a state to the logits, at either side of the final norm.

    RMSNorm    logits = W diag(g) · x / rms(x)              + c
    LayerNorm  logits = W diag(g) P · (x - mean) / sd(x)    + W b + c,   P = I - 11ᵀ/D

At `post_norm` the matrix is W itself. At `residual` the gain g is folded into W; a LayerNorm also
removes the mean, so W diag(g) P has one singular value that is exactly 0, along 1/sqrt(D), where
the centred stream holds nothing. That direction is dead, not a direction of the model's state, and
must not be taken for a member of the reasoning subspace.

`retrm.features.folded_model` does the same to a whole model, which proves the matrices here. In
words: docs/explanation/norm-folding.md. The statements about spectra and state points are our own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrm.backbone.base import StatePoint, Unembedding
from retrm.backbone.locate import apply_norm
from retrm.errors import RecipeError

ROWS_PER_CHUNK = 8192
REAL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Of weights that are plain numbers; anything else is quantised."""


def effective_rows(head: Unembedding, point: StatePoint) -> Iterator[Float[Tensor, "rows width"]]:
    """The matrix from states at `point` to logits, float64, in chunks of vocabulary rows.

    Raises:
        RecipeError: the LM head is still quantised (its dtype is no plain floating type).
    """
    if head.weight.dtype not in REAL_DTYPES:
        raise RecipeError(
            f"the LM head is stored as {head.weight.dtype}; a subspace needs real numbers. Load the "
            "model with its weights de-quantised (for example a GGUF file, or dtype='float32')"
        )
    gain = None
    if point == "residual" and head.gain is not None:
        gain = head.gain.detach().to("cpu", torch.float64)
    for start in range(0, head.weight.shape[0], ROWS_PER_CHUNK):
        rows = head.weight[start : start + ROWS_PER_CHUNK].detach().to("cpu", torch.float64)
        if gain is not None:
            rows = rows * gain
        if point == "residual" and head.norm_kind == "layer":
            rows = rows - rows.mean(dim=1, keepdim=True)
        yield rows


def dead_direction(head: Unembedding, point: StatePoint) -> Float[Tensor, " width"] | None:
    """The unit direction in which states at `point` hold nothing by construction, or None."""
    if point == "residual" and head.norm_kind == "layer":
        width = head.weight.shape[1]
        return torch.full((width,), width**-0.5, dtype=torch.float64)
    return None


@dataclass(frozen=True)
class ConstantReading:
    """A weighted sum of a post_norm state that is the same number for every token.

    Attributes:
        weights: 1/gain, or the coordinate itself where its gain is 0; float64.
        value: of the sum: sum(bias / gain), or that coordinate's bias.
    """

    weights: Float[Tensor, " width"]
    value: float


def constant_reading(head: Unembedding) -> ConstantReading | None:
    """What a LayerNorm leaves of its dead direction at `post_norm`; None for an RMSNorm.

    It is no null direction of the LM head: only a constant, which the bias of a head absorbs.
    """
    if head.norm_kind == "rms":
        return None
    width = head.weight.shape[1]
    gain = torch.ones(width) if head.gain is None else head.gain
    bias = torch.zeros(width) if head.norm_bias is None else head.norm_bias
    gain, bias = (part.detach().to("cpu", torch.float64) for part in (gain, bias))
    zeros = (gain == 0).nonzero().flatten()
    weights = 1 / gain
    if len(zeros):
        weights = nn.functional.one_hot(zeros[0], width).to(torch.float64)
    return ConstantReading(weights, float(weights @ bias))


def normalised(head: Unembedding, states: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
    """Residual states as the final norm sees them, without its gain and bias.

    float32, or float64 where the states are. This is the coordinate system in which the folded
    matrix is exact.
    """
    return apply_norm(states, None, None, head.norm_kind, head.eps)


@dataclass(frozen=True)
class EffectiveHead:
    """Everything linear between a normalised residual state and the logits, float64.

    logits = softcap( logit_scale * (weight @ normalised(x) + bias) )

    Attributes:
        weight: W diag(gain), for a LayerNorm W diag(gain) P.
        bias: that of the LM head plus W @ (bias of the norm); None where neither exists.
    """

    weight: Float[Tensor, "vocab width"]
    bias: Float[Tensor, " vocab"] | None


def effective_head(head: Unembedding) -> EffectiveHead:
    """The folded LM head of `residual` states as a whole: V x D numbers of 8 bytes.

    Raises:
        RecipeError: the LM head is still quantised.
    """
    weight = torch.cat(list(effective_rows(head, "residual")))
    bias = None if head.bias is None else head.bias.detach().to("cpu", torch.float64)
    if head.norm_bias is not None:
        shift = head.norm_bias.detach().to("cpu", torch.float64)
        moved = torch.cat([rows @ shift for rows in effective_rows(head, "post_norm")])
        bias = moved if bias is None else bias + moved
    return EffectiveHead(weight, bias)
