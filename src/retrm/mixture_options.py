"""What a mixture of objectives is made of, and how its three parts are fitted.

Defaults are those of ArmoRM (arXiv 2406.12845) and its released code, where the two say the same; the
width of the gate follows the number of pairs, and validation prompts end the fit early, since small
sets overfit a gate of a million weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, Self

from retrm.errors import RecipeError, did_you_mean

NO_VERBOSITY = "none"
GATE_WIDTH, SMALL_GATE_WIDTH = 1024, 128
PAIRS_OF_A_WIDE_GATE = 5000


@dataclass(frozen=True, kw_only=True)
class MixtureOptions:
    """Options of the fit of a mixture head.

    Attributes:
        objectives: names of the ratings to regress on; empty = all that the data have.
        verbosity: name of the objective that is taken out of the others; `none` = no objective is.
        alphas: penalties of the ridge to choose from, in the sum convention. With fewer rows than five
            times the features the largest is often taken, and the report says so; widen the grid then.
        lambdas: shares of verbosity to choose from.
        threshold: rank correlation with verbosity that an objective may keep.
        validation_fraction: of the training PROMPTS: they choose alpha and end the fit of the gate.
        gate_width: of the hidden layers of the gate; None = 1,024 from 5,000 training pairs on, 128
            below.
        gate_layers: hidden layers of the gate.
        dropout: behind each of them while fitting.
        temperature: of the softmax over the objectives.
        lr: step size of AdamW, which falls to 0 over all steps as a cosine.
        weight_decay: of AdamW.
        steps: at most this many.
        batch_pairs: pairs a step, drawn with replacement; no more than there are.
        evaluate_every: steps between two looks at the validation pairs.
        patience: stop after this many looks without a better loss; None = never. The gate of the best
            look is kept in any case.
    """

    objectives: Sequence[str] = ()
    verbosity: str = "verbosity"
    alphas: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
    lambdas: Sequence[float] = (
        *(0.0, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15),
        *(0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55),
        *(0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
    )
    threshold: float = 0.03
    validation_fraction: float = 0.2
    gate_width: int | None = None
    gate_layers: int = 3
    dropout: float = 0.2
    temperature: float = 10.0
    lr: float = 1e-3
    weight_decay: float = 0.0
    steps: int = 2000
    batch_pairs: int = 1024
    evaluate_every: int = 25
    patience: int | None = 20

    def __post_init__(self) -> None:
        self._check_names()
        for name in ("alphas", "lambdas"):
            object.__setattr__(self, name, tuple(_numbers(name, getattr(self, name))))
        if min(self.alphas) <= 0:
            raise RecipeError(
                f"mixture option alphas holds {min(self.alphas)}; expected all above 0"
            )
        for name, is_optional in (
            *(("gate_width", True), ("patience", True), ("steps", False)),
            *(("batch_pairs", False), ("evaluate_every", False), ("gate_layers", False)),
        ):
            self._check_whole(name, is_optional=is_optional)
        for name, low, high, words in (
            ("validation_fraction", 0.0, 1.0, "above 0 and below 1"),
            ("temperature", 0.0, float("inf"), "above 0"),
            ("lr", 0.0, float("inf"), "above 0"),
            ("dropout", -1e-300, 1.0, "from 0 to below 1"),
            ("weight_decay", -1e-300, float("inf"), "from 0 up"),
            ("threshold", -1.0, 1.0, "above -1 and below 1"),
        ):
            got = getattr(self, name)
            if not _is_number(got) or not low < got < high:
                raise RecipeError(f"mixture option {name} is {got!r}; expected a number {words}")

    def _check_names(self) -> None:
        names = self.objectives
        if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
            raise RecipeError(
                f"mixture option objectives is {names!r}; expected a list of names, such as "
                '["helpfulness", "verbosity"]'
            )
        object.__setattr__(self, "objectives", tuple(names))
        twice = [name for name in self.objectives if self.objectives.count(name) > 1]
        if twice:
            raise RecipeError(f"mixture option objectives names {twice[0]!r} twice; name it once")
        if not isinstance(self.verbosity, str) or not self.verbosity:
            raise RecipeError(
                f"mixture option verbosity is {self.verbosity!r}; expected the name of an objective, or "
                f'"{NO_VERBOSITY}"'
            )

    def _check_whole(self, name: str, *, is_optional: bool) -> None:
        got, least = getattr(self, name), 0 if name == "gate_layers" else 1
        if is_optional and got is None:
            return
        if not isinstance(got, int) or isinstance(got, bool) or got < least:
            raise RecipeError(
                f"mixture option {name} is {got!r}; expected {least}, {least + 1}, {least + 2}, ..."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From JSON or TOML.

        Raises:
            RecipeError: an unknown option (the nearest is offered), or an impossible value.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise RecipeError(
                    f"unknown mixture option {key!r}. {did_you_mean(str(key), known)}"
                )
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, as `from_dict` takes it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @property
    def debiases(self) -> bool:
        """Whether verbosity is taken out of the objectives."""
        return self.verbosity != NO_VERBOSITY

    def width_of_gate(self, n_pairs: int) -> int:
        """Of the hidden layers, for `n_pairs` training pairs."""
        if self.gate_width is not None:
            return self.gate_width
        return GATE_WIDTH if n_pairs >= PAIRS_OF_A_WIDE_GATE else SMALL_GATE_WIDTH


def _numbers(name: str, values: Sequence[float]) -> list[float]:
    is_list = not isinstance(values, str) and isinstance(values, Sequence)
    if not is_list or not values or not all(map(_is_number, values)):
        raise RecipeError(
            f"mixture option {name} is {values!r}; expected a list of finite numbers, at least one"
        )
    return [float(value) for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
