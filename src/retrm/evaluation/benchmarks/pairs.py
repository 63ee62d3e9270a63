"""The preference pairs inside an item, and what it means to get an item right.

    right = every pair of the item is won, strictly: the score of the winner is above that of the loser

This is ours, for comparisons of scorers and items: where an official rule credits equal scores
(LLMBar, JudgeBench, RewardBench 2), equal scores are no win here. Without ties it is the official
verdict wherever that is 0 or 1. An item without a pair, such as a vote of "tie", is neither right nor wrong.

>>> from retrm.evaluation.benchmarks.pairs import each_beats
>>> each_beats([0], [1, 2])
((0, 1), (0, 2))
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from retrm.errors import DataError
from retrm.evaluation.benchmarks.base import ScoredItem

Pairs = Sequence[tuple[int, int]]


class DecidedByPairs(Protocol):
    """What benchmarks inherit whose items are preference pairs."""

    def pairs(self, item: ScoredItem) -> Pairs:
        """(winner, loser) candidates by the labels."""
        ...

    def is_right(self, item: ScoredItem) -> bool | None:
        """Whether every pair is won; None without any."""
        return wins_all(item, self.pairs(item))


def each_beats(winners: Iterable[int], losers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Every winner against every loser."""
    return tuple((winner, loser) for winner in winners for loser in losers)


def first_beat_rest(item: ScoredItem, n_first: int = 1) -> tuple[tuple[int, int], ...]:
    """The first candidates against all others, where the benchmark puts the right ones first."""
    return each_beats(range(n_first), range(n_first, len(item.scores)))


def labelled_pairs(labels: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Every candidate of label 1 against every one of label 0."""
    right, wrong = ([i for i, label in enumerate(labels) if label == kind] for kind in (1, 0))
    return each_beats(right, wrong)


def labels_of(item: ScoredItem, name: str) -> list[float]:
    """The label of every candidate, as best_of_n and ppe_correctness have them.

    Raises:
        DataError: the item of `name` has not one each.
    """
    labels = item.facts.get("labels", ())
    if len(labels) != len(item.scores):
        raise DataError(
            f"the item {item.id!r} of {name} has {len(labels)} labels for {len(item.scores)} "
            "candidates; expected one each. Perhaps the scores are of another benchmark"
        )
    return list(labels)


def wins_all(item: ScoredItem, pairs: Pairs) -> bool | None:
    """Whether the winner of every pair scores above its loser; None without any pair.

    Raises:
        DataError: a pair names a candidate that has no score.
    """
    check_pairs(item, pairs)
    if not pairs:
        return None
    return all(bool(item.scores[i] > item.scores[j]) for i, j in pairs)


def check_pairs(item: ScoredItem, pairs: Pairs) -> None:
    """Refuse pairs of candidates that have no scores.

    Raises:
        DataError: naming the item.
    """
    n = len(item.scores)
    if any(not (0 <= i < n and 0 <= j < n) for i, j in pairs):
        raise DataError(
            f"the item {item.id!r} has {n} score(s), but its labels name candidate "
            f"{max(max(pair) for pair in pairs)} (from 0); expected a score for every candidate. "
            "Perhaps the scores are of another benchmark"
        )
