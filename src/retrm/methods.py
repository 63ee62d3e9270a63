"""The presets: a method is a recipe, a head and a loss.

| method | states | head | loss |
|---|---|---|---|
| `last_token` | last response token, post_norm, full width | linear | BCE or Bradley-Terry |
| `retrm` | last response token, post_norm, reasoning subspace | linear | BCE or Bradley-Terry |
| `harp` | every response token, post_norm, reasoning subspace | perceptron, worst token decides | BCE |
| `elhsr` | every response token, all layers, full width | gate and reward | BCE or Bradley-Terry |
| `retrm_elhsr` | the same in the reasoning subspace of each state point | gate and reward | BCE or Bradley-Terry |
| `armorm` | last response token and end of the prompt, post_norm, full width | mixture of objectives | least squares, Bradley-Terry |
| `armorm_retrm` | the same, the response token in the reasoning subspace | mixture of objectives | least squares, Bradley-Terry |

Names a person types are rows of this table; every part of a row can be overridden. Sources: ReTRM
(project note, 2025); HARP, arXiv 2509.11536; ELHSR, arXiv 2505.12225 (named SWIFT in v3); ArmoRM, arXiv
2406.12845, on a backbone that need not be a reward model: a weaker variant of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from retrm.errors import RecipeError, did_you_mean
from retrm.features.recipe import Recipe
from retrm.mixture_options import MixtureOptions
from retrm.pair_options import PLAIN, PairOptions

Solver = Literal["convex", "gradient", "mixture"]


@dataclass(frozen=True)
class GradientOptions:
    """How the gradient loop runs.

    Attributes:
        optimizer: `adam` or `adamw`; they differ in what weight decay means.
        lr: step size.
        weight_decay: of the optimiser.
        epochs: at most this many passes over the training prompts.
        patience: stop after this many epochs without a better validation loss; None = never.
        keep: `best` = the weights of the best validation epoch, `last` = those of the last epoch
            (the released ELHSR code keeps the last by mistake).
        schedule: `constant` or `cosine` decay to 0 over `epochs`.
        batch_answers: answers a step; whole prompts are added until there are at least this many.
        validation_fraction: of the PROMPTS, split off for early stopping; 0 = none.
        standardise: divide features by their training standard deviation and centre them; folded
            into the first layer afterwards.
        start: `random` weights, or (gated head only) `mean_head`: the convex head on mean features,
            with equal gates.
    """

    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = 1e-4
    weight_decay: float = 1e-5
    epochs: int = 40
    patience: int | None = 3
    keep: Literal["best", "last"] = "best"
    schedule: Literal["constant", "cosine"] = "constant"
    batch_answers: int = 16
    validation_fraction: float = 0.2
    standardise: bool = False
    start: Literal["random", "mean_head"] = "random"

    def __post_init__(self) -> None:
        choices = {
            "optimizer": ("adam", "adamw"),
            "keep": ("best", "last"),
            "schedule": ("constant", "cosine"),
            "standardise": (True, False),
            "start": ("random", "mean_head"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise RecipeError(
                    f"gradient option {name} is {getattr(self, name)!r}; expected one of "
                    f"{', '.join(map(str, allowed))}"
                )
        for name in ("epochs", "batch_answers", "patience"):
            got = getattr(self, name)
            is_whole = isinstance(got, int) and not isinstance(got, bool) and got >= 1
            if not is_whole and not (name == "patience" and got is None):
                raise RecipeError(f"gradient option {name} is {got!r}; expected 1, 2, 3, ...")
        for name, low, high in (
            ("lr", 0, float("inf")),
            ("weight_decay", -1e-300, float("inf")),
            ("validation_fraction", -1e-300, 1),
        ):
            got = getattr(self, name)
            if not isinstance(got, int | float) or not low < got < high:
                raise RecipeError(
                    f"gradient option {name} is {got!r}; expected a number "
                    f"{'from 0' if low < 0 else 'above 0'}{' to below 1' if high == 1 else ''}"
                )


@dataclass(frozen=True)
class Method:
    """Everything that defines a hidden-state reward model before it has seen data.

    Attributes:
        name: what a person typed.
        recipe: which states become features.
        head: name of the head, with `head_options`.
        loss: name of the loss; `auto` = Bradley-Terry where the data are preferences, else BCE.
        solver: `convex` for heads linear in pooled features with a convex loss, `mixture` for the
            mixture head, else `gradient`.
        standardise: (convex) by train mean and deviation, folded into the weights.
        gradient: options of the gradient loop.
        loss_options: of the Bradley-Terry loss; some of them need the gradient loop.
        mixture: options of the mixture head and its fit.
    """

    name: str
    recipe: Recipe
    head: str
    head_options: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "auto"
    solver: Solver = "convex"
    standardise: bool = True
    gradient: GradientOptions = field(default_factory=GradientOptions)
    loss_options: PairOptions = PLAIN
    mixture: MixtureOptions = field(default_factory=MixtureOptions)

    def with_changes(
        self,
        *,
        recipe: Mapping[str, Any] | None = None,
        head: str | None = None,
        loss: str | None = None,
        gradient: Mapping[str, Any] | None = None,
        loss_options: Mapping[str, Any] | None = None,
        mixture: Mapping[str, Any] | None = None,
    ) -> Self:
        """This method with parts replaced; the solver follows from what is left.

        Raises:
            RecipeError: unknown part, or parts that do not fit together.
        """
        recipe = dict(recipe or {})
        if recipe.get("source", "states") != "states":
            # Logits belong to one place; a preset that reads all layers then reads that one.
            recipe = {"layers": "last", "point": "post_norm", "subspace": "full", **recipe}
        changed = replace(
            self,
            recipe=Recipe.from_dict({**_as_dict(self.recipe), **recipe}),
            head=head or self.head,
            head_options={} if head not in (None, self.head) else self.head_options,
            loss=loss or self.loss,
            gradient=_gradient({**_as_dict(self.gradient), **(gradient or {})}),
            loss_options=PairOptions.from_dict(
                {**_as_dict(self.loss_options), **(loss_options or {})}
            ),
            mixture=MixtureOptions.from_dict({**_as_dict(self.mixture), **(mixture or {})}),
        )
        _check_loss_options(changed)
        is_convex = (
            changed.head == "linear"
            and changed.loss in CONVEX_LOSSES
            and changed.loss_options.is_convex
        )
        solver: Solver = "convex" if is_convex else "gradient"
        return replace(changed, solver="mixture" if changed.head == "mixture" else solver)


CONVEX_LOSSES = ("auto", "bce", "bradley_terry", "pairwise_logistic")

_HARP_LOOP = GradientOptions(
    optimizer="adam",
    lr=1e-4,
    weight_decay=3e-4,
    epochs=50,
    patience=None,
    keep="last",
    schedule="cosine",
    batch_answers=128,
    validation_fraction=0.0,
)

METHODS: dict[str, Method] = {
    "last_token": Method("last_token", Recipe(), "linear"),
    "retrm": Method("retrm", Recipe(subspace="reasoning:5%"), "linear"),
    # POLAR's template without POLAR's training: what it is called says so.
    "reference_conditioned": Method(
        "reference_conditioned", Recipe(template="reference"), "linear"
    ),
    "harp": Method(
        "harp",
        Recipe(subspace="reasoning:5%", pooling="tokens"),
        "worst_token",
        loss="bce",
        solver="gradient",
        gradient=_HARP_LOOP,
    ),
    # bfloat16: all tokens of all layers are the bulk of a reading, and residual streams overflow
    # float16.
    "elhsr": Method(
        "elhsr",
        Recipe(layers="all", point="hidden_states", pooling="tokens", dtype="bfloat16"),
        "gated",
        loss="auto",
        solver="gradient",
    ),
    "retrm_elhsr": Method(
        "retrm_elhsr",
        Recipe(layers="all", point="hidden_states", subspace="reasoning:5%", pooling="tokens"),
        "gated",
        loss="auto",
        solver="gradient",
    ),
    "armorm": Method(
        "armorm",
        Recipe(context="prompt_end"),
        "mixture",
        loss="bradley_terry",
        solver="mixture",
    ),
    "armorm_retrm": Method(
        "armorm_retrm",
        Recipe(subspace="reasoning:5%", context="prompt_end"),
        "mixture",
        loss="bradley_terry",
        solver="mixture",
    ),
}

ALIASES = {"swift": "elhsr"}


def method(name: str) -> Method:
    """The preset `name`.

    Raises:
        RecipeError: unknown name; the nearest is offered.
    """
    key = ALIASES.get(name, name)
    if key not in METHODS:
        raise RecipeError(f"unknown method {name!r}. {did_you_mean(name, [*METHODS, *ALIASES])}")
    return METHODS[key]


def _check_loss_options(changed: Method) -> None:
    """Refuse options of the loss of pairs that another loss or the head leaves without a meaning."""
    options = changed.loss_options
    if options != PLAIN and changed.loss not in ("auto", "bradley_terry"):
        raise RecipeError(
            f"got loss options {', '.join(options.changes())} for the loss {changed.loss}; they belong to "
            "bradley_terry, the loss of preference pairs. Leave them out, or use loss=bradley_terry"
        )
    if options.form == "normalised" and changed.head == "linear":
        raise RecipeError(
            "got form=normalised with the linear head, which starts at scores of 0, where this form has "
            "no slope; and no scale of a linear head changes its value. Use head=mlp, or another form"
        )


def _as_dict(value: Recipe | GradientOptions | PairOptions | MixtureOptions) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _gradient(values: Mapping[str, Any]) -> GradientOptions:
    known = [f.name for f in fields(GradientOptions)]
    for key in values:
        if key not in known:
            raise RecipeError(f"unknown gradient option {key!r}. {did_you_mean(key, known)}")
    return GradientOptions(**values)
