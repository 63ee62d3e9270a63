r"""Figures about the spectrum of an LM head, and about the cut that makes its reasoning subspace.

    s_1 >= ... >= s_D      singular values of the matrix from states at one point to the logits
    tail                   the last M of them: what `reasoning:M` keeps
    energy share           sum over the tail of s_i^2  /  sum of all s_i^2
    rms                    sqrt(mean of s_i^2): how loud a typical direction is

A subspace is a convention unless the spectrum has a gap at the cut, and the tail is invisible to the
LM head only if its rms is small against the rest. These figures say whether either is so. "Reasoning
subspace" is the field's name for those directions, not a proven fact.

Source: HARP, arXiv 2509.11536, section 3 (the 5 % cut). The rest leaves out the first direction: it
is close to the mean row of the LM head, and softmax ignores what it adds to all logits alike.

>>> import torch
>>> from retrm.features.spectrum import spectrum_of
>>> found = spectrum_of(torch.tensor([8.0, 4.0, 2.0, 1.0]), n_tail=1, point="post_norm")
>>> found.first_ratio, found.gap_ratio
(2.0, 2.0)
>>> round(found.tail_share, 6)  # 1 / (64 + 16 + 4 + 1)
0.011765
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.backbone.base import StatePoint, Unembedding
from retrm.errors import RecipeError
from retrm.features.subspace import SubspaceSpec, fit_spectrum

DEFAULT_CUT = "reasoning:5%"


@dataclass(frozen=True)
class Spectrum:
    """The singular values of an LM head at one state point, cut before the last `n_tail`.

    Attributes:
        point: `post_norm` = the LM head itself; `residual` = with the gain of the final norm folded
            in.
        singular_values: (D,) float64, descending, logits per unit of activation. The dead direction
            of a LayerNorm is left out.
        n_tail: directions in the reasoning subspace.
    """

    point: StatePoint
    singular_values: np.ndarray
    n_tail: int

    def __post_init__(self) -> None:
        n, values = len(self.singular_values), self.singular_values
        if not 1 <= self.n_tail < n:
            raise RecipeError(
                f"got a tail of {self.n_tail} of {n} directions; expected 1 to {n - 1}. Choose "
                "another size, such as reasoning:5%"
            )
        if values[0] <= 0 or (np.diff(values) > 0).any():
            raise RecipeError("got singular values that do not descend from a positive first one")

    @property
    def n_kept(self) -> int:
        """Directions before the cut: the semantic side."""
        return len(self.singular_values) - self.n_tail

    @property
    def above_cut(self) -> float:
        """Smallest singular value that the tail leaves out."""
        return float(self.singular_values[self.n_kept - 1])

    @property
    def below_cut(self) -> float:
        """Largest singular value of the tail."""
        return float(self.singular_values[self.n_kept])

    @property
    def gap_ratio(self) -> float:
        """`above_cut` / `below_cut`: 1 = no gap; infinite where the tail is exactly invisible."""
        return _ratio(self.above_cut, self.below_cut)

    @property
    def first_ratio(self) -> float:
        """s_1 / s_2: how far one direction stands out."""
        return _ratio(float(self.singular_values[0]), float(self.singular_values[1]))

    @property
    def tail_share(self) -> float:
        """Share of the squared Frobenius norm that lies in the tail, 0..1."""
        energy = self.singular_values**2
        return float(energy[self.n_kept :].sum() / energy.sum())

    @property
    def tail_rms(self) -> float:
        """Root mean square singular value of the tail."""
        return _rms(self.singular_values[self.n_kept :])

    @property
    def rest_rms(self) -> float:
        """The same of all directions but the first and the tail; NaN where none is left."""
        return _rms(self.singular_values[1 : self.n_kept])

    @property
    def others_rms(self) -> float:
        """The same of all directions but the first, the tail included."""
        return _rms(self.singular_values[1:])

    @property
    def loudness(self) -> float:
        """`tail_rms` / `rest_rms`: 0 = invisible to the LM head, 1 = as loud as a typical one."""
        return self.tail_rms / self.rest_rms

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; numbers that are not finite become None."""
        names = (
            *("n_kept", "above_cut", "below_cut", "gap_ratio", "first_ratio", "tail_share"),
            *("tail_rms", "rest_rms", "others_rms", "loudness"),
        )
        figures = {name: getattr(self, name) for name in names}
        values = {k: v if np.isfinite(v) else None for k, v in figures.items()}
        return {**asdict(self), "singular_values": self.singular_values.tolist(), **values}


def spectrum(head: Unembedding, point: StatePoint, *, cut: str = DEFAULT_CUT) -> Spectrum:
    """The spectrum of `head` for states at `point`.

    Args:
        head: LM head and final norm.
        point: `post_norm` for the raw LM head, `residual` for the folded one.
        cut: a reasoning subspace as a recipe spells it; its size is the tail.

    Raises:
        RecipeError: `cut` is no reasoning subspace or too large, or the LM head is quantised.
    """
    spec = SubspaceSpec.parse(cut)
    if spec.part != "reasoning":
        raise RecipeError(
            f"got the cut {cut!r}; expected a reasoning subspace, such as {DEFAULT_CUT}"
        )
    values = fit_spectrum(head, point).singular_values()
    return spectrum_of(values, n_tail=spec.n_dims(head.weight.shape[1]), point=point)


def spectrum_of(
    singular_values: Float[Tensor, " singular"], *, n_tail: int, point: StatePoint
) -> Spectrum:
    """The same from singular values that are known already (a stored subspace keeps its own)."""
    return Spectrum(point, singular_values.detach().to("cpu", torch.float64).numpy(), n_tail)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else float("nan")


def _ratio(larger: float, smaller: float) -> float:
    return larger / smaller if smaller > 0 else float("inf")
