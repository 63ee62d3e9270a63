r"""The feature sets that are compared, as directions on post_norm states.

    raw             V of W                      feature = Vᵀ h
    folded          V of W diag(g)              feature = Vᵀ x̂,  x̂ = (h - b) / g the normalised residual
    centred         V of (I - 11ᵀ/|V|) W        what softmax sees
    centred_folded  both

h = g x̂ + b is what was stored, so a direction v on x̂ is v / g on h, up to a constant that the head's
intercept absorbs. PCA and whitening are fitted on training states only, from their moments; for preferences those are
the moments of the differences chosen - rejected. With fewer training rows than dimensions
`pca_bottom` lies in what the training states do not reach, and its features say nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retrm.audit.plan import MATRICES, Matrix
from retrm.backbone.base import Unembedding
from retrm.errors import RecipeError
from retrm.features.subspace import SubspaceFitter, fit_spectrum
from retrm.fitting.ridge import Moments

FEW_DRAWS = 5  # of kinds that are controls of a control, or dear to fit
SPECTRAL = ("reasoning", "semantic", "middle", "random", "random_singular")


@dataclass(frozen=True)
class FeatureSet:
    """A set of features to fit a head on; fields as in `retrm.audit.tables.CellRow`."""

    kind: str
    m: int
    matrix: str = "-"
    draw: int = 0
    offset: int = -1
    scaling: str = "standardised"

    @property
    def is_fitted(self) -> bool:
        """Whether its directions depend on training states."""
        return self.kind in ("pca_top", "pca_bottom", "white_random")


def drawn(kind: str, m: int, matrix: str, n: int) -> list[FeatureSet]:
    """The first `n` draws of a random kind."""
    return [FeatureSet(kind, m, matrix, draw) for draw in range(n)]


def usable_matrices(head: Unembedding) -> tuple[Matrix, ...]:
    """All, or the unfolded ones where the norm's gain has a zero.

    Through such a norm the normalised residual cannot be recovered from post_norm states.
    """
    if head.gain is None or not bool((head.gain == 0).any()):
        return MATRICES
    return tuple(name for name in MATRICES if "folded" not in name)


class Directions:
    """Directions of every feature set on the states of one backbone.

    Args:
        head: final norm and LM head.
        matrices: which ones to decompose.
        seed_of: number of a draw -> seed of its random numbers.

    Raises:
        RecipeError: a folded matrix of a norm whose gain has a zero.
    """

    def __init__(
        self,
        head: Unembedding,
        matrices: tuple[Matrix, ...] = MATRICES,
        *,
        seed_of: Callable[[int], int] = int,
    ) -> None:
        self.width = head.weight.shape[1]
        self.matrices = matrices
        self._seed_of = seed_of
        self._gain = None if head.gain is None else head.gain.detach().cpu().double()
        if set(matrices) - set(usable_matrices(head)):
            raise RecipeError(
                f"the gain of the final norm has {int((self._gain == 0).sum())} zero(s): the normalised "
                "residual cannot be recovered from post_norm states. Leave the folded matrices out"
            )
        self._fitters: dict[str, SubspaceFitter] = {
            name: fit_spectrum(
                head,
                "residual" if "folded" in name else "post_norm",
                centred="centred" in name,
            )
            for name in matrices
        }

    def singular_values(self, matrix: str) -> Float[Tensor, " live"]:
        """Of one matrix, descending."""
        return self._fitters[matrix].singular_values()

    def of(
        self, features: FeatureSet, train: Moments | None = None
    ) -> Float[Tensor, "width m"] | None:
        """Columns to multiply post_norm states by, float64; None = the whole state.

        Args:
            features: which set.
            train: moments of the training states, for PCA and whitening.

        Raises:
            RecipeError: an unknown kind.
        """
        if features.kind in ("full", "prompt"):
            return None
        if features.kind in SPECTRAL:
            fitter = self._fitters[features.matrix]
            basis = fitter.subspace(
                features.kind, features.m, seed=self._seed_of(features.draw)
            ).basis  # type: ignore[arg-type]
            return self._on_post_norm(basis.double().T, features.matrix)
        if features.kind == "semantic_all":
            rows = self._fitters[features.matrix].directions()
            return self._on_post_norm(rows[: features.m].T, features.matrix)
        if features.kind == "band":
            rows = self._fitters[features.matrix].directions()
            part = rows[features.offset : features.offset + features.m]
            return self._on_post_norm(part.T, features.matrix)
        if features.kind == "coordinates":
            fitter = self._fitters["raw"]
            return (
                fitter.subspace("coordinates", features.m, seed=self._seed_of(features.draw))
                .basis.double()
                .T
            )
        if features.is_fitted:
            assert train is not None
            return _fitted_directions(features, train, self._seed_of(features.draw))
        raise RecipeError(f"got feature set {features.kind!r}, which has no directions")

    def all_directions(self, matrix: str) -> Float[Tensor, "live width"]:
        """Every singular direction as a row, descending, in the coordinates of `matrix`."""
        return self._fitters[matrix].directions()

    def _on_post_norm(
        self, columns: Float[Tensor, "width m"], matrix: str
    ) -> Float[Tensor, "width m"]:
        if "folded" in matrix and self._gain is not None:
            return columns / self._gain[:, None]
        return columns

    def overlaps(self, m: int) -> Mapping[tuple[str, str], float]:
        """Mean squared cosine between the reasoning subspaces of every two matrices.

        Folded ones are compared in their own coordinates, those of the normalised residual, with the
        others as they are: how far two recipes that look alike read different things.
        """
        bases = {
            name: fitter.subspace("reasoning", m).basis.double()
            for name, fitter in self._fitters.items()
        }
        return {
            (a, b): float((bases[a] @ bases[b].T).square().sum() / m)
            for i, a in enumerate(self.matrices)
            for b in self.matrices[i:]
        }


def _fitted_directions(features: FeatureSet, train: Moments, seed: int) -> Float[Tensor, "width m"]:
    mean = train.x / train.weight
    covariance = train.xx / train.weight - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    if features.kind == "pca_top":
        return vectors[:, -features.m :].flip(1)
    if features.kind == "pca_bottom":
        return vectors[:, : features.m]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(values), features.m, generator=generator, dtype=torch.float64)
    # Directions that are constant on the training states get 0: divided by their rounding, they would
    # be the loudest features of held-out states.
    scale = torch.where(values > 1e-9 * values[-1], values.rsqrt(), 0.0)
    return vectors @ (scale[:, None] * torch.linalg.qr(noise)[0])
