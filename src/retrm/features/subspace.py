r"""The semantic and the reasoning subspace of an LM head.

    W = U S Vᵀ  (V x D),  s_1 >= ... >= s_D      W maps states to logits
    semantic  = the first M rows of Vᵀ           reasoning = the last M rows of Vᵀ
    middle    = M rows half-way between          random_singular = M rows drawn at random
    random    = M orthonormal directions drawn at random;  coordinates = M raw coordinates
    feature   = the M coefficients basis @ h     not the D-wide reconstruction

The last four are controls: what the reasoning subspace must beat before the spectrum of the LM head
can be said to play a part (HARP compares with raw coordinates and random rows of Vᵀ only).

"Reasoning subspace" is the field's name for the directions that the vocabulary hardly sees; that
they carry reasoning is an unproven hypothesis with rival readings (attention sinks, arXiv
2402.09221; confidence, arXiv 2406.16254). See docs/explanation/reasoning-subspace.md.

Source: HARP, arXiv 2509.11536, section 3; ReTRM (project note, 2025). A basis of W is for
`post_norm` states; a basis of W diag(gain) for `residual` states divided by their rms. Mixing the
two is refused. Cost: a D x D Gram matrix in float64 and one eigendecomposition.

>>> import torch
>>> from retrm.features.subspace import SubspaceFitter
>>> W = torch.tensor([[9.6, 17.8], [22.8, 20.4], [34.4, 49.2]])
>>> tail = SubspaceFitter(2, point="post_norm").update(W).subspace("reasoning", 1)
>>> [round(s, 4) for s in tail.singular_values.tolist()]
[70.0, 7.0]
>>> [round(z, 4) for z in tail.project(torch.tensor([[2.0, 1.0]])).flatten().tolist()]
[1.0]
"""

import re
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from retrm.backbone.base import StatePoint, Unembedding
from retrm.errors import RecipeError, ShapeError, did_you_mean
from retrm.features.norm_folding import dead_direction, effective_rows

Part = Literal[
    "full", "reasoning", "semantic", "middle", "random", "random_singular", "coordinates"
]
PARTS: tuple[Part, ...] = get_args(Part)
DRAWN: tuple[Part, ...] = ("random", "random_singular", "coordinates")  # these take a seed


@dataclass(frozen=True)
class SubspaceSpec:
    """What a person types: `full`, `reasoning:5%`, `semantic:256`, `middle:64`, `random:256@7`.

    Attributes:
        part: which directions.
        size: number of directions, or a fraction 0-1 of the width; None for `full`.
        seed: of one that is drawn (`random`, `random_singular`, `coordinates`).
    """

    part: Part
    size: int | float | None = None
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `part[:size][@seed]`.

        Raises:
            RecipeError: unknown part, missing or impossible size.
        """
        found = re.fullmatch(r"\s*(\w+)(?::([\d.]+)(%?))?(?:@(\d+))?\s*", text)
        part = found[1] if found else text.split(":")[0].strip()
        if part not in PARTS:
            raise RecipeError(
                f"unknown subspace {text!r}; expected full, or reasoning, semantic, middle, random, "
                "random_singular or coordinates with :SIZE, a count or a percentage (the last three "
                f"may add @SEED). {did_you_mean(part, PARTS)}"
            )
        if found is None:
            raise RecipeError(
                f"cannot read the size in subspace {text!r}; expected a count or a percentage, such "
                f"as {part}:256 or {part}:5%"
            )
        size = _parse_size(text, found[2], found[3])
        if (part == "full") != (size is None):
            raise RecipeError(
                f"subspace {text!r}: 'full' takes no size and the others need one, such as "
                f"{'full' if part == 'full' else part + ':5%'}"
            )
        if found[4] is not None and part not in DRAWN:
            raise RecipeError(
                f"subspace {text!r}: only {', '.join(DRAWN)} take a seed (@{found[4]})"
            )
        return cls(part, size, int(found[4] or 0))  # type: ignore[arg-type]

    def n_dims(self, width: int) -> int:
        """Number of directions at this width; a fraction f keeps D - floor((1 - f) D).

        Integer arithmetic, as HARP's 180 of 3584 and 205 of 4096 demand at 5 %.

        Raises:
            RecipeError: the count is not in 1..width-1 for a proper subspace.
        """
        if self.size is None:
            return width
        if isinstance(self.size, int):
            count = self.size
        else:
            hundredths = round((1 - self.size) * 10_000)
            count = width - (hundredths * width) // 10_000
        if not 1 <= count < width:
            raise RecipeError(
                f"subspace {self}: {count} directions of a state of width {width}; expected between "
                f"1 and {width - 1}. Choose a smaller size, or 'full' for the whole state"
            )
        return count

    def __str__(self) -> str:
        if self.size is None:
            return self.part
        size = str(self.size) if isinstance(self.size, int) else f"{self.size * 100:g}%"
        return f"{self.part}:{size}" + (f"@{self.seed}" if self.seed else "")


def _parse_size(text: str, digits: str | None, percent: str) -> int | float | None:
    if digits is None:
        return None
    try:
        value = float(digits) / 100 if percent else int(digits)
    except ValueError:
        raise RecipeError(
            f"subspace {text!r}: size {digits!r} is neither a whole number nor a percentage"
        ) from None
    if value <= 0 or (percent and value >= 1):
        raise RecipeError(
            f"subspace {text!r}: size must be above 0 and, as a percentage, below 100 %"
        )
    return value


@dataclass(frozen=True)
class Subspace:
    """Orthonormal directions of the hidden state, and the spectrum they were cut from.

    Attributes:
        basis: rows orthonormal, float32.
        singular_values: of the matrix at `point`, all of them, descending; logits per unit of
            activation. Empty for a basis that was read from a file without them.
        point: the state point the basis is valid for.
        part: which end of the spectrum.
        n_vocab_rows: rows of the LM head used (padded vocabulary rows count, as in HARP).
    """

    basis: Float[Tensor, "subspace width"]
    singular_values: Float[Tensor, " singular"]
    point: StatePoint
    part: str
    n_vocab_rows: int

    def __post_init__(self) -> None:
        m, width = self.basis.shape
        if m > width:
            raise ShapeError(f"a basis of {m} rows in {width} dimensions cannot be orthonormal")
        if self.basis.device.type != "cpu":
            return  # a copy of one that was checked: see `to`
        gap = (self.basis @ self.basis.T - torch.eye(m)).abs().max().item()
        if gap > 1e-4:
            raise RecipeError(
                f"the basis is not orthonormal (off by {gap:.1e}); expected 1e-4. Was it stored in "
                "bfloat16? Keep it in float32"
            )

    @property
    def n_dims(self) -> int:
        """Number of directions."""
        return self.basis.shape[0]

    @property
    def width(self) -> int:
        """Width of the states it reads."""
        return self.basis.shape[1]

    def project(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... subspace"]:
        """The coefficients of `states` on the basis, float32.

        Rounding a state to bfloat16 first costs the tail 0.2 % when it is as strong as the rest and
        16 % when it is a hundred times weaker, so the product is taken in float32.

        Raises:
            ShapeError: states of another width.
        """
        if states.shape[-1] != self.width:
            raise ShapeError(
                f"states have width {states.shape[-1]}, the basis {self.width}; was the head fitted "
                "on another model?"
            )
        return states.float() @ self.basis.T

    def remove(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """`states` without their part in the subspace."""
        return states.float() - self.project(states) @ self.basis

    def to(self, device: torch.device) -> "Subspace":
        """The same subspace with its basis on `device`."""
        return Subspace(
            self.basis.to(device), self.singular_values, self.point, self.part, self.n_vocab_rows
        )


class SubspaceFitter:
    """Accumulates the Gram matrix of an LM head in float64 and cuts subspaces from it.

    The eigenvectors of WᵀW are the right singular vectors of W. float64, because squaring the
    matrix squares its condition number: a bfloat16 Gram gives a tail with principal cosine 0.37.
    """

    def __init__(
        self,
        width: int,
        *,
        point: StatePoint,
        dead: Float[Tensor, " width"] | None = None,
        centred: bool = False,
    ) -> None:
        self.width = width
        self.point: StatePoint = point
        self.dead = dead
        self.centred = centred
        self.n_rows_ = 0
        self.gram_ = torch.zeros(width, width, dtype=torch.float64)
        self.sum_ = torch.zeros(width, dtype=torch.float64)
        self._eigen: tuple[Tensor, Tensor] | None = None

    def update(self, rows: Float[Tensor, "rows width"]) -> Self:
        """Add rows of the effective matrix; any chunking gives the same result."""
        if rows.shape[-1] != self.width:
            raise ShapeError(f"rows have width {rows.shape[-1]}, expected {self.width}")
        rows = rows.to(torch.float64)
        self.gram_ += rows.T @ rows
        self.sum_ += rows.sum(dim=0)
        self.n_rows_ += rows.shape[0]
        self._eigen = None
        return self

    def singular_values(self) -> Float[Tensor, " width"]:
        """All singular values, descending; the dead direction of a LayerNorm is left out."""
        values, _ = self._decompose()
        return values.clamp(min=0).sqrt().flip(0)

    def directions(self) -> Float[Tensor, "live width"]:
        """All right singular vectors as rows, float64, by descending singular value."""
        _, vectors = self._decompose()
        return _fix_signs(vectors.flip(1).T)

    def subspace(self, part: Part, n_dims: int, *, seed: int = 0) -> Subspace:
        """`n_dims` directions: one end or the middle of the spectrum, or a random choice.

        Random subspaces are drawn from the whole live space, orthonormal, seeded.

        Raises:
            RecipeError: no rows were seen, or `n_dims` is not in 1..width-1.
        """
        values, vectors = self._decompose()  # ascending
        live = vectors.shape[1]
        if not 1 <= n_dims <= live:
            raise RecipeError(f"{n_dims} directions asked of {live}; expected 1 to {live}")
        return Subspace(
            basis=_fix_signs(self._rows(part, n_dims, seed)).float().contiguous(),
            singular_values=values.clamp(min=0).sqrt().flip(0).float(),
            point=self.point,
            part=part,
            n_vocab_rows=self.n_rows_,
        )

    def _rows(self, part: Part, n_dims: int, seed: int) -> Float[Tensor, "subspace width"]:
        directions = self._decompose()[1].flip(1).T  # like Vt: descending
        live = len(directions)
        generator = torch.Generator().manual_seed(seed)
        if part == "reasoning":
            return directions[live - n_dims :]
        if part == "semantic":
            return directions[:n_dims]
        if part == "middle":
            start = (live - n_dims) // 2
            return directions[start : start + n_dims]
        if part == "random_singular":
            chosen = torch.randperm(live, generator=generator)[:n_dims]
            return directions[chosen.sort().values]
        if part == "coordinates":
            chosen = torch.randperm(self.width, generator=generator)[:n_dims]
            return torch.eye(self.width, dtype=torch.float64)[chosen.sort().values]
        if part == "random":
            noise = torch.randn(live, n_dims, generator=generator, dtype=torch.float64)
            return (directions.flip(0).T @ torch.linalg.qr(noise)[0]).T
        raise RecipeError(
            f"got part {part!r}; expected one of {', '.join(PARTS[1:])}. {did_you_mean(part, PARTS)}"
        )

    def _decompose(self) -> tuple[Tensor, Tensor]:
        if self.n_rows_ == 0:
            raise RecipeError("no row of the LM head was seen; call update first")
        if self._eigen is None:
            gram = self.gram_
            if self.centred:  # softmax ignores what the mean row adds to all logits alike
                gram = gram - torch.outer(self.sum_, self.sum_) / self.n_rows_
            if self.dead is None:
                self._eigen = torch.linalg.eigh(gram)
            else:
                # Work in the orthogonal complement of the dead direction, so that it can never be
                # picked and cannot mix with true near-null directions.
                dead = self.dead.to(torch.float64)
                complement = torch.linalg.qr(
                    torch.cat([dead[:, None], torch.eye(self.width, dtype=torch.float64)], dim=1)
                )[0][:, 1 : self.width]
                values, inner = torch.linalg.eigh(complement.T @ gram @ complement)
                self._eigen = (values, complement @ inner)
        return self._eigen


def _fix_signs(basis: Float[Tensor, "subspace width"]) -> Float[Tensor, "subspace width"]:
    # The largest component of each direction is made positive, so that two machines agree. This does
    # not fix rotations inside equal singular values, hence the basis is stored with the head.
    picked = basis.abs().argmax(dim=1, keepdim=True)
    return basis * torch.sign(basis.gather(1, picked))


def fit_spectrum(head: Unembedding, point: StatePoint, *, centred: bool = False) -> SubspaceFitter:
    """A fitter that has seen the whole LM head, folded for `point`.

    `centred` subtracts the mean row: the direction that moves all logits alike is invisible to
    softmax, and centring takes its weight out of the top of the spectrum (HARP does not centre).
    """
    dead = dead_direction(head, point)
    fitter = SubspaceFitter(head.weight.shape[1], point=point, dead=dead, centred=centred)
    for rows in effective_rows(head, point):
        fitter.update(rows)
    return fitter


def fit_subspace(head: Unembedding, spec: SubspaceSpec, point: StatePoint) -> Subspace | None:
    """The subspace `spec` names for states at `point`; None for the full state."""
    if spec.part == "full":
        return None
    return fit_spectrum(head, point).subspace(
        spec.part, spec.n_dims(head.weight.shape[1]), seed=spec.seed
    )
