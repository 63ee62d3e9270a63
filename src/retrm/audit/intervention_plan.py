"""Where interventions are made, with what, and on how much; known before a model is loaded."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from retrm.audit.settings import DRAWS_PER_SEED, Settings
from retrm.errors import RecipeError, did_you_mean
from retrm.features.recipe import Recipe
from retrm.features.subspace import SubspaceSpec

Fill = Literal["zero", "mean"]
POST_NORM = "post_norm"
"""Typed in place of layers: what the LM head multiplies, with the basis of W itself."""

MIN_DRAWS = 2  # one draw has no spread; a claim takes 19


@dataclass(frozen=True)
class InterventionPlan(Settings):
    """Where to intervene, with what, and on how much.

    Attributes:
        layers: settings, each `last`, `all`, `last4`, numbers `8,16`, a range `10-20` (residual
            states of these layers, all changed together), or `post_norm` (what the LM head reads).
        sizes: of the removed subspaces, a count or a percentage of the width; all components are
            compared at equal size.
        n_draws: random subspaces of each size. A claim needs a rank p of .05 and so 19 of them; with
            fewer the verdict is `too few draws`.
        n_energy_draws: random subspaces for the control at equal energy, which makes no claim.
        fills: what takes the place of a component, `zero` and `mean`, see `retrm.audit.removal`. All of
            them are measured, and Holm's correction is over all.
        spare_first: leave the attention sink at position 0 alone.
        max_prompts: prompts used, drawn at random.
        max_answers: given answers used of each prompt, drawn at random, right and wrong ones in turn.
            Everything is read once for every removal, so these two bound the work.
        n_samples: new answers to each prompt under each setting; 0 = accuracy is not measured.
        max_new_tokens, temperature, top_p: of the new answers.
    """

    called: ClassVar[str] = "[interventions]"

    layers: tuple[str, ...] = (POST_NORM, "last", "all")
    sizes: tuple[str, ...] = ("5%",)
    n_draws: int = 19
    n_energy_draws: int = 3
    fills: tuple[Fill, ...] = ("zero", "mean")
    spare_first: bool = False
    max_prompts: int = 24
    max_answers: int = 2
    n_samples: int = 0
    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 1.0

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in ("layers", "sizes", "fills"):
            given = getattr(self, name)
            is_texts = isinstance(given, tuple) and all(isinstance(text, str) for text in given)
            if not is_texts or not given or len(set(given)) < len(given):
                raise RecipeError(
                    f"got {name}={given!r}; expected a list (tuple) of different texts, at least one"
                )
        for fill in self.fills:
            if fill not in get_args(Fill):
                raise RecipeError(
                    f"got fill {fill!r} in fills. {did_you_mean(fill, get_args(Fill))}"
                )
        for text in self.layers:
            layer_recipe(text)
        for size in self.sizes:
            SubspaceSpec.parse(f"reasoning:{size}")

    def _check_numbers(self) -> None:
        least = {
            **{"n_draws": MIN_DRAWS, "n_energy_draws": 1, "max_prompts": 1, "max_answers": 1},
            **{"n_samples": 0, "max_new_tokens": 1},
        }
        drawn = ("n_draws", "n_energy_draws")  # the second are counted on from the first
        self.check_counts(least, most=dict.fromkeys(drawn, DRAWS_PER_SEED // 2))
        if type(self.spare_first) is not bool:
            raise RecipeError(f"got spare_first={self.spare_first!r}; expected true or false")
        for name, (low, high) in {"temperature": (0, math.inf), "top_p": (0, 1)}.items():
            got = getattr(self, name)
            if type(got) not in (int, float) or not low <= got <= high:
                raise RecipeError(f"got {name}={got!r}; expected a number from {low} to {high}")

    def n_dims(self, width: int) -> tuple[int, ...]:
        """Directions of the removed subspaces at this state width, each count once.

        Raises:
            RecipeError: more directions than there are.
        """
        counts = (SubspaceSpec.parse(f"reasoning:{size}").n_dims(width) for size in self.sizes)
        return tuple(dict.fromkeys(counts))


def layer_recipe(text: str) -> Recipe:
    """A recipe that knows the layers `text` names, and the state point.

    Raises:
        RecipeError: it cannot be read.
    """
    if text == POST_NORM:
        return Recipe()
    try:
        return Recipe(layers=text, point="residual")
    except RecipeError as error:
        raise RecipeError(
            f"cannot read layers {text!r} of an intervention; expected last, all, last4, numbers "
            f"such as 8,16, a range such as 10-20, or {POST_NORM}"
        ) from error
