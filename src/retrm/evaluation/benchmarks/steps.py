r"""Solutions that are judged step by step: texts of their beginnings, and what a threshold decides.

    candidate i = steps 0..i joined;   a step is judged by the score of the candidate that ends with it

Scores are raw and unbounded, so 0 stands where a probability of 0.5 stood: a step is good above it and
wrong below it. What a score that equals the threshold means differs between benchmarks, and is said
by each. Raw scores of a head that was fitted on outcomes need not be calibrated at 0.

>>> [answer.response for answer in prefixes_of("1 + 1?", ["Add.", "2."], "row 1")]
['Add.', 'Add.\n\n2.']
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrm.data.read import Record
from retrm.data.stepwise import SEPARATOR, beginnings
from retrm.errors import DataError, RecipeError
from retrm.evaluation.benchmarks.base import ScoredItem, answers_of
from retrm.evaluation.benchmarks.pairs import Pairs
from retrm.evaluation.benchmarks.source import as_text, list_field
from retrm.records import Answer


def prefixes_of(
    problem: str, steps: Sequence[str], where: str, separator: str = SEPARATOR
) -> tuple[Answer, ...]:
    """The beginnings of a solution, one a step, the last being the whole."""
    return answers_of(problem, beginnings(steps, separator), where)


def steps_field(record: Record, name: str) -> tuple[str, ...]:
    """The steps of a solution.

    A step may be blank, as some are in published sets: its score is that of what stands before. The
    first may not, since nothing stands before it.

    Raises:
        DataError: no list, a member that is no text, or a blank first step.
    """
    return tuple(
        as_text(step, record.where, f"{name}[{i}]", may_be_empty=i > 0)
        for i, step in enumerate(list_field(record, name))
    )


@dataclass(frozen=True)
class DecidedByThreshold:
    """What benchmarks inherit whose steps are judged one by one, against a number.

    Attributes:
        threshold: where scores of good and wrong steps part: 0 for logits, 0.5 for probabilities.

    Raises:
        RecipeError: `threshold` is not finite.
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise RecipeError(
                f"got threshold={self.threshold}; expected a finite number on the scale of raw "
                "scores, 0 for logits or 0.5 for probabilities"
            )

    def pairs(self, item: ScoredItem) -> Pairs:
        """None: no step is preferred to another."""
        return ()


def fact(item: ScoredItem, name: str, title: str) -> Any:
    """A fact that the rule needs.

    Raises:
        DataError: the item has none of that name.
    """
    if name not in item.facts:
        raise DataError(
            f"the item {item.id!r} has no fact {name!r}; found {', '.join(item.facts) or 'none'}; "
            f"expected those of {title}. Perhaps the scores are of another benchmark"
        )
    return item.facts[name]
