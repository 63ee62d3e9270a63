r"""The matrix that links a state to the logits, at either side of the final norm.

    RMSNorm    logits = W diag(g) · x / rms(x)              + c
    LayerNorm  logits = W diag(g) P · (x - mean) / sd(x)    + W b + c,   P = I - 11ᵀ/D

At `post_norm` the matrix is W itself. At `residual` the gain g is folded into W; a LayerNorm also
removes the mean, so W diag(g) P has one singular value that is exactly 0, along 1/sqrt(D), where
the centred stream holds nothing. That direction is dead, not a direction of the model's state, and
must not be taken for a member of the reasoning subspace.

Source: arXiv 2305.14858 (Pre-RMSNorm); the statements about spectra are our own.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from retrm.backbone.base import StatePoint, Unembedding
from retrm.backbone.locate import apply_norm
from retrm.errors import RecipeError

ROWS_PER_CHUNK = 8192


def effective_rows(head: Unembedding, point: StatePoint) -> Iterator[Float[Tensor, "rows width"]]:
    """The matrix from states at `point` to logits, float64, in chunks of vocabulary rows.

    Raises:
        RecipeError: the LM head is still quantised (its dtype is no floating type).
    """
    if not head.weight.is_floating_point():
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


def normalised(head: Unembedding, states: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
    """Residual states as the final norm sees them, without its gain and bias; float32.

    This is the coordinate system in which the folded matrix is exact.
    """
    return apply_norm(states, None, None, head.norm_kind, head.eps)
