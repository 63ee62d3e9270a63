"""What an audit compares, fixed before anything is looked at.

The primary contrast is the reasoning subspace minus the mean of random subspaces of the same width:
last response token, post_norm, raw LM head, 5 % of the width, linear logistic head, within-prompt
AUROC. The second is reasoning minus the full state. Everything else is exploratory, however good it
looks: a grid of a thousand cells always has a best one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from retrm.audit.settings import DRAWS_PER_SEED, Settings, draw_seed
from retrm.errors import RecipeError, did_you_mean
from retrm.features.recipe import Recipe
from retrm.features.subspace import SubspaceSpec

AuditPooling = Literal["last", "mean", "max", "gate"]
Matrix = Literal["raw", "folded", "centred", "centred_folded"]
MATRICES: tuple[Matrix, ...] = get_args(Matrix)
QUICK: Mapping[str, Any] = {
    "widths": ("5%", "25%"),
    "poolings": ("last", "mean"),
    "n_primary_draws": 20,
    "n_split_seeds": 1,
    "n_learning_repeats": 1,
    "n_layer_draws": 5,
}


@dataclass(frozen=True)
class AuditPlan(Settings):
    """The grid of an audit.

    Attributes:
        size: width of the primary contrast, a share of the state's width or a count.
        widths: all that are looked at; `size` is added if it is missing.
        poolings: over response tokens; `max` and `gate` read every token and take longest.
        layers: for the sweep, as a recipe spells them; the last layer must be among them.
        n_draws: random subspaces of each exploratory setting, at least 2; 20 or more make a band.
        n_primary_draws: random subspaces of the primary contrast; 99 allow a rank p of .01.
        n_layer_draws: random subspaces at each layer of the sweep; with few of them hardly any
            difference can stand, since their spread is known badly.
        n_folds: of the outer cross-validation, by prompt.
        n_inner_folds: of the choice of the penalty inside each training part, by prompt (of ridge
            heads; the logistic head is that of `retrm fit`, which uses 3).
        n_split_seeds: repetitions of the outer split in the primary contrasts.
        n_learning_repeats: nested series of training subsets in the learning curve.
        n_band_steps: positions of the sliding band.
        seed: of everything that is drawn.
    """

    size: str = "5%"
    widths: tuple[str, ...] = ("16", "5%", "64", "128", "25%", "50%")
    poolings: tuple[AuditPooling, ...] = ("last", "mean", "max")
    layers: str = "all"
    n_draws: int = 20
    n_primary_draws: int = 99
    n_layer_draws: int = 20
    n_folds: int = 5
    n_inner_folds: int = 3
    n_split_seeds: int = 3
    n_learning_repeats: int = 5
    n_band_steps: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            **{"n_draws": 2, "n_primary_draws": 2, "n_layer_draws": 1, "n_folds": 2},
            **{"n_inner_folds": 2, "n_split_seeds": 1, "n_learning_repeats": 1, "n_band_steps": 2},
        }
        drawn = ("n_draws", "n_primary_draws", "n_layer_draws")
        self.check_counts({**least, "seed": 0}, most=dict.fromkeys(drawn, DRAWS_PER_SEED))
        for name in ("widths", "poolings"):
            got = getattr(self, name)
            if not isinstance(got, tuple) or not all(isinstance(text, str) for text in got):
                raise RecipeError(f'got {name}={got!r}; expected a list of texts, such as ["5%"]')
        if not isinstance(self.size, str):
            raise RecipeError(f'got size={self.size!r}; expected text, such as "5%" or "64"')
        if not 0 <= self.seed < 2**31:
            raise RecipeError(f"got seed={self.seed}; expected an integer from 0 to 2**31 - 1")
        for pooling in self.poolings:
            if pooling not in get_args(AuditPooling):
                raise RecipeError(
                    f"got pooling {pooling!r}; expected one of {', '.join(get_args(AuditPooling))}. "
                    + did_you_mean(str(pooling), get_args(AuditPooling))
                )
        if len(set(self.poolings)) < len(self.poolings):
            raise RecipeError(f"a pooling is named twice: {', '.join(self.poolings)}")
        if "last" not in self.poolings:
            raise RecipeError(
                f"got poolings {', '.join(self.poolings) or 'none'}; expected `last` among them: the "
                "primary contrast reads the last response token"
            )
        for size in (self.size, *self.widths):
            SubspaceSpec.parse(f"reasoning:{size}")
        Recipe(layers=self.layers)

    @classmethod
    def quick(cls) -> Self:
        """A smaller grid for a first look: two widths, two poolings, 20 draws, one split."""
        return cls(**QUICK)

    def draw_seed(self, draw: int) -> int:
        """Seed of a random subspace: another seed of the plan gives other subspaces."""
        return draw_seed(self.seed, draw)

    @property
    def smallest_part(self) -> int:
        """Prompts of the smallest training part: enough to be dealt into inner folds."""
        return max(4, self.n_inner_folds)

    def learning_sizes(self, n_prompts: int) -> list[int]:
        """Prompts of the training parts of the learning curve: powers of two, and all there are."""
        largest = n_prompts - -(-n_prompts // self.n_folds)
        sizes, size = [], self.smallest_part
        while size < largest:
            sizes.append(size)
            size *= 2
        return [*sizes, largest]

    def m(self, width: int) -> int:
        """Directions of the primary contrast at this state width."""
        return SubspaceSpec.parse(f"reasoning:{self.size}").n_dims(width)

    def all_widths(self, width: int) -> tuple[int, ...]:
        """Directions of every width that is looked at, ascending, without repeats.

        Counts that the model is too narrow for are left out; shares always fit.
        """
        counts = {self.m(width)}
        for size in self.widths:
            spec = SubspaceSpec.parse(f"reasoning:{size}")
            if isinstance(spec.size, int) and spec.size >= width:
                continue
            counts.add(spec.n_dims(width))
        return tuple(sorted(counts))
