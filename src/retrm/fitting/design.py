"""The features of a convex fit as the solver sees them: standardised, and never copied when large.

    f = Z a,   g = Z' s,   Z = (X - mean) / scale          (constant columns: 0)

A small problem is standardised once, in float64. A large one stays as it is: blocks of rows pass
through the cache, are widened to float64 there, and the standardisation is moved to the vectors,

    Z a = X (a / scale) - mean . (a / scale),   Z' s = (X' s - mean sum(s)) / scale,

so that a pass costs one reading of the float32 features and no memory. Where the loss of a row knows
only that row, scores and gradient come from the same pass. Far from the optimum products are made in
float32 (`rough`), the rest of the way in float64.

The preconditioner of both is the Hessian at a = 0, factorised by Cholesky for every lam. From more than
`SAMPLE_PER_WIDTH` rows a feature a part is drawn: c D rows change the eigenvalues by a factor of about
(1 +- 1/sqrt(c))^2, which a few more steps make good.

Source: Nocedal & Wright 2006, section 7.1 (inexact Newton, preconditioning); subsampled Hessians:
Byrd et al. 2011, SIAM J. Optim. 21(3).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from retrm.fitting.objectives import Objective

# Above this the float64 copy is not made.
RESIDENT_BYTES = 256 << 20
# A block that is widened stays in the cache of a core.
BLOCK_BYTES = 4 << 20
SAMPLE_PER_WIDTH = 4
# Of the rows that an estimate multiplies at once, and the columns of a group of its triangle.
ESTIMATE_BYTES = 64 << 20
GROUP = 512
# A column whose deviation is below this share of its mean differs by rounding only.
_CONSTANT_SHARE = 1e-12


class Design(Protocol):
    """Z, of which the solver needs products only."""

    @property
    def n_unknowns(self) -> int:
        """Length of a."""
        ...

    def rough(self) -> "Design":
        """One that may be less exact and faster, to come near the optimum with."""
        ...

    def scores(self, a: Tensor) -> Float[Tensor, " rows"]:
        """Z a."""
        ...

    def pull(self, slope: Tensor) -> Float[Tensor, " unknowns"]:
        """Z' slope."""
        ...

    def scores_and_pull(
        self, a: Tensor, b: Tensor | float, objective: Objective
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"], Float[Tensor, " unknowns"]]:
        """f = Z a + b, the slope of the loss there, and Z' slope."""
        ...

    def hessian(self, objective: Objective, f: Tensor) -> Float[Tensor, "unknowns unknowns"]:
        """Z' (second derivative of the loss at f) Z."""
        ...

    def curvature(self, objective: Objective, f: Tensor) -> Float[Tensor, "unknowns unknowns"]:
        """That matrix, or an estimate from some rows: good enough to precondition with."""
        ...


@dataclass(frozen=True)
class Standardiser:
    """Of the raw features, in float64; `scale` is 1 for constant columns."""

    mean: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]
    is_constant: Tensor

    @property
    def inverse(self) -> Float[Tensor, " features"]:
        """1 / scale, and 0 for constant columns: they carry nothing."""
        return torch.where(self.is_constant, torch.zeros_like(self.scale), 1 / self.scale)

    @classmethod
    def of(cls, features: Tensor, *, standardise: bool) -> "Standardiser":
        """From all rows, in one pass over them."""
        # Differences to the first block's mean: a mean far beyond the deviation costs no digits.
        n, width = features.shape
        total = features.new_zeros(width, dtype=torch.float64)
        squares, shift = torch.zeros_like(total), None
        for _, block in blocks(features):
            shift = block.mean(dim=0) if shift is None else shift
            block -= shift
            total += block.sum(dim=0)
            squares += block.square_().sum(dim=0)
        offset = total / n
        deviation = (squares / n - offset.square()).clamp_min(0).sqrt()
        mean = shift + offset
        is_constant = deviation <= _CONSTANT_SHARE * mean.abs()
        scale = torch.where(is_constant, torch.ones_like(mean), deviation)
        return cls(mean, scale if standardise else torch.ones_like(mean), is_constant)


def blocks(features: Tensor, dtype: torch.dtype = torch.float64) -> Iterator[tuple[slice, Tensor]]:
    """(rows, those rows in `dtype`), a block at a time; blocks of float64 may be written to."""
    n, width = features.shape
    step = max(1, BLOCK_BYTES // (dtype.itemsize * width))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        yield rows, features[rows].to(dtype, copy=dtype is torch.float64)


@dataclass(frozen=True)
class DenseDesign:
    """Z in float64."""

    matrix: Float[Tensor, "rows unknowns"]

    @property
    def n_unknowns(self) -> int:
        """Length of a."""
        return self.matrix.shape[1]

    def rough(self) -> "DenseDesign":
        """Itself: it is small."""
        return self

    def scores(self, a: Tensor) -> Tensor:
        """Z a, (rows,)."""
        return self.matrix @ a

    def pull(self, slope: Tensor) -> Tensor:
        """Z' slope, (unknowns,)."""
        return self.matrix.T @ slope

    def scores_and_pull(
        self, a: Tensor, b: Tensor | float, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """f, slope and Z' slope."""
        f = self.matrix @ a + b
        slope = objective.slope(f)
        return f, slope, self.matrix.T @ slope

    def hessian(self, objective: Objective, f: Tensor) -> Tensor:
        """Z' (second derivative) Z."""
        return self.matrix.T @ objective.curved(f, self.matrix)

    def curvature(self, objective: Objective, f: Tensor) -> Tensor:
        """The Hessian, or an estimate of it from a part of the rows."""
        if len(f) <= SAMPLE_PER_WIDTH * self.n_unknowns:
            return self.hessian(objective, f)
        return _estimate(objective, f, self.n_unknowns, lambda rows: self.matrix[rows].float())


@dataclass(frozen=True)
class StreamedDesign:
    """Z without ever being made; rows of any float dtype.

    Attributes:
        features: as they came.
        standardiser: of them.
        dtype: in which products are made; sums over blocks are float64 whatever it is.
    """

    features: Float[Tensor, "rows features"]
    standardiser: Standardiser
    dtype: torch.dtype = torch.float64

    @property
    def n_unknowns(self) -> int:
        """Length of a."""
        return self.features.shape[1]

    def rough(self) -> "StreamedDesign":
        """The same with products in float32: a third of the time, six digits."""
        return replace(self, dtype=torch.float32)

    def _moved(self, a: Tensor) -> tuple[Tensor, Tensor]:
        weight = a * self.standardiser.inverse
        return weight.to(self.dtype), self.standardiser.mean @ weight

    def scores(self, a: Tensor) -> Tensor:
        """Z a, (rows,)."""
        weight, offset = self._moved(a)
        f = a.new_empty(len(self.features))
        for rows, block in blocks(self.features, self.dtype):
            f[rows] = (block @ weight).double()
        return f - offset

    def pull(self, slope: Tensor) -> Tensor:
        """Z' slope, (unknowns,)."""
        total = slope.new_zeros(self.n_unknowns)
        for rows, block in blocks(self.features, self.dtype):
            total += block.T @ slope[rows].to(self.dtype)
        return self._pulled(total, slope)

    def _pulled(self, total: Tensor, slope: Tensor) -> Tensor:
        return (total - self.standardiser.mean * slope.sum()) * self.standardiser.inverse

    def scores_and_pull(
        self, a: Tensor, b: Tensor | float, objective: Objective
    ) -> tuple[Tensor, Tensor, Tensor]:
        """f, slope and Z' slope; one pass where the loss of a row knows only that row."""
        if not objective.is_separable:
            f = self.scores(a) + b
            slope = objective.slope(f)
            return f, slope, self.pull(slope)
        weight, offset = self._moved(a)
        f, slope = (a.new_empty(len(self.features)) for _ in range(2))
        total = a.new_zeros(self.n_unknowns)
        for rows, block in blocks(self.features, self.dtype):
            f[rows] = (block @ weight).double() - offset + b
            slope[rows] = objective.slope(f[rows], rows)
            total += block.T @ slope[rows].to(self.dtype)
        return f, slope, self._pulled(total, slope)

    def hessian(self, objective: Objective, f: Tensor) -> Tensor:
        """By groups of columns: no more than `RESIDENT_BYTES` of them are wide at once."""
        n, width = self.features.shape
        step = max(1, RESIDENT_BYTES // (16 * n))
        whole = f.new_empty(width, width)
        for start in range(0, width, step):
            some = slice(start, start + step)
            columns = self.features[:, some].double() - self.standardiser.mean[some]
            columns *= self.standardiser.inverse[some]
            curved = objective.curved(f, columns)
            total = f.new_zeros(width, columns.shape[1])
            for rows, block in blocks(self.features):
                total += block.sub_(self.standardiser.mean).T @ curved[rows]
            whole[:, some] = total * self.standardiser.inverse[:, None]
        return whole

    def curvature(self, objective: Objective, f: Tensor) -> Tensor:
        """An estimate from a part of the rows."""
        return _estimate(objective, f, self.n_unknowns, self._standardised)

    def _standardised(self, rows: Tensor) -> Tensor:
        block = self.features[rows].to(torch.float64, copy=True).sub_(self.standardiser.mean)
        return block.mul_(self.standardiser.inverse).float()


def _estimate(
    objective: Objective, f: Tensor, width: int, standardised: Callable[[Tensor], Tensor]
) -> Float[Tensor, "unknowns unknowns"]:
    """The Hessian from rows drawn with seed 0; in float32, whose rounding a preconditioner forgives."""
    total = f.new_zeros(width, width, dtype=torch.float32)
    size = max(1, ESTIMATE_BYTES // (4 * width))
    for root, plus, minus in objective.factors(f, SAMPLE_PER_WIDTH * width, size):
        block = standardised(plus)
        if minus is not None:
            block -= standardised(minus)
        block *= root.float()[:, None]
        for start in range(0, width, GROUP):  # the lower triangle: a product knows no symmetry
            some = slice(start, start + GROUP)
            total[start:, some].addmm_(block[:, start:].T, block[:, some])
    return (total.tril() + total.tril(-1).T).double()


@dataclass(frozen=True)
class Coordinates:
    """A design with the way back to the width of the features.

    Attributes:
        design: in the unknowns of the solver.
        standardiser: of the raw features.
        to_width: a (r,) -> standardised w (D,).
    """

    design: Design
    standardiser: Standardiser
    to_width: Callable[[Tensor], Tensor]


def coordinates_of(features: Tensor, *, standardise: bool) -> Coordinates:
    """The design of a fit: dense where it is small or has fewer rows than features, else streamed."""
    standardiser = Standardiser.of(features, standardise=standardise)
    n, width = features.shape
    if width <= n and 8 * n * width > RESIDENT_BYTES:
        return Coordinates(StreamedDesign(features, standardiser), standardiser, lambda a: a)
    matrix = features.to(torch.float64, copy=True).sub_(standardiser.mean)
    matrix[:, standardiser.is_constant] = 0.0
    matrix /= standardiser.scale
    if width <= n:
        return Coordinates(DenseDesign(matrix), standardiser, lambda a: a)
    # Rows span at most n dimensions and the penalty keeps w inside their span; QR does not square
    # the condition number as a Gram matrix would.
    basis, triangle = torch.linalg.qr(matrix.T)
    design = DenseDesign(triangle.T.contiguous())
    return Coordinates(design, standardiser, lambda a: basis @ a)
