"""Why an answer has its score, objective by objective, and which objectives set two answers apart.

    score             = sum_k c_k,              c_k = g_k r'_k
    score_a - score_b = sum_k (c_ak - c_bk)

Sums are correctly rounded (`math.fsum`), so that whoever adds the contributions up gets the score to the
last bit, in whatever order they come. Plain data without torch; a head with objectives makes it.

    >>> from retrm.heads.explanation import Explanation
    >>> a = Explanation.of(("help", "brief"), (1.0, 0.5), (1.0, 0.5), (2.0, 1.0), (2.0, 0.5), (2.0, 1.0))
    >>> b = Explanation.of(("help", "brief"), (0.0, 2.0), (0.0, 2.0), (2.0, 1.0), (0.0, 2.0), (2.0, 1.0))
    >>> a.score, [(one.objective, one.difference) for one in a.minus(b)]
    (2.5, [('help', 2.0), ('brief', -1.5)])
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from retrm.errors import RecipeError


@dataclass(frozen=True)
class ObjectiveDifference:
    """What one objective adds to the score of an answer beyond what it adds to that of another."""

    objective: str
    difference: float


@dataclass(frozen=True)
class Explanation:
    """Why one answer has its score; all tuples have one entry an objective, in the order of the names.

    Attributes:
        objectives: their names.
        objective_scores: r, what each objective gives the answer.
        adjusted_scores: r', the same without what verbosity explains of them.
        gates: g, the weight that the prompt gives each objective; they sum to the head's scale.
        contributions: g_k r'_k; they add up to `score`.
        coefficients: T g, the weight of each objective score as it is; with them, too, the sum is
            the score, but for rounding.
        score: of the answer.
        as_rated: the objective scores in the numbers that raters give; None where the head does not know
            them.
    """

    objectives: tuple[str, ...]
    objective_scores: tuple[float, ...]
    adjusted_scores: tuple[float, ...]
    gates: tuple[float, ...]
    contributions: tuple[float, ...]
    coefficients: tuple[float, ...]
    score: float
    as_rated: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        objectives: Sequence[str],
        objective_scores: Sequence[float],
        adjusted_scores: Sequence[float],
        gates: Sequence[float],
        contributions: Sequence[float],
        coefficients: Sequence[float],
        *,
        as_rated: Sequence[float] | None = None,
    ) -> Self:
        """With the sum of the contributions as the score."""
        return cls(
            tuple(objectives),
            tuple(objective_scores),
            tuple(adjusted_scores),
            tuple(gates),
            tuple(contributions),
            tuple(coefficients),
            score=math.fsum(contributions),
            as_rated=None if as_rated is None else tuple(as_rated),
        )

    def minus(self, other: "Explanation") -> tuple[ObjectiveDifference, ...]:
        """Differences of the contributions, the largest in size first; ties keep the order of the names.

        They add up to the difference of the scores, but for the rounding of each.

        Raises:
            RecipeError: the other answer was judged by other objectives.
        """
        if other.objectives != self.objectives:
            raise RecipeError(
                f"got an answer judged by {', '.join(self.objectives)} and one judged by "
                f"{', '.join(other.objectives)}; expected both from one model"
            )
        pairs = zip(self.objectives, self.contributions, other.contributions, strict=True)
        found = [ObjectiveDifference(name, mine - theirs) for name, mine, theirs in pairs]
        return tuple(sorted(found, key=lambda one: -abs(one.difference)))

    def rows(self) -> list[dict[str, Any]]:
        """Plain JSON, one object an objective; `as_rated` is null where it is not known."""
        rated = self.as_rated or [None] * len(self.objectives)
        columns = zip(
            self.objectives,
            self.objective_scores,
            self.adjusted_scores,
            self.gates,
            self.contributions,
            self.coefficients,
            rated,
            strict=True,
        )
        names = ("name", "score", "adjusted", "gate", "contribution", "coefficient", "as_rated")
        return [dict(zip(names, row, strict=True)) for row in columns]
