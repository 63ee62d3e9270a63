r"""From verdicts on pairs to a score for every candidate: who meets whom, and what the points add up to.

    round_robin     everybody meets everybody                    n (n - 1) / 2 pairs   score = mean points
    bradley_terry   the same pairs                               n (n - 1) / 2         score = log strength
    swiss           rounds of neighbours in the standings        ceil(log2 n) floor(n / 2)   points, then
                                                                 those of the opponents
    knockout        losers leave                                 n - 1                 score = rounds survived

Points of a pair go from 0 (lost) to 1 (won); 0.5 is a tie, or a pair whose verdicts could not be read. A
ranking is a generator that gives out the pairs of a round and is sent their points, so that rounds of many
prompts are asked together. Nothing here knows a judge.

Ties: a knockout tie lets the candidate through that stands first (the draw is by position, or by `seed`);
Swiss pairs nobody twice while others are left, and who stands alone gets 0.5 without a pair.

    >>> ranking = round_robin(3)
    >>> next(ranking)
    [(0, 1), (0, 2), (1, 2)]
    >>> finished(ranking, [1.0, 1.0, 0.5])
    array([1.  , 0.25, 0.25])
"""

import math
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import combinations

import numpy as np

from retrm.errors import RecipeError, did_you_mean
from retrm.metrics.bradley_terry import ratings

Pairs = list[tuple[int, int]]
Ranking = Generator[Pairs, Sequence[float], np.ndarray]
"""Gives pairs, is sent the points of each pair's first candidate, returns (n,) scores."""

PSEUDO_WINS = 0.25
"""Won and lost in each pair beside what was played: who beats everybody has a finite strength."""


def round_robin(n: int, *, seed: int = 0) -> Ranking:
    """Mean points against all others, in 0..1."""
    del seed
    pairs = list(combinations(range(n), 2))
    points = _matrix(n, pairs, (yield pairs))
    return points.sum(axis=1) / max(1, n - 1)


def bradley_terry(n: int, *, seed: int = 0) -> Ranking:
    """Log strengths that add up to 0.

    P(i beats j) = 1 / (1 + exp(s_j - s_i)) on points with `PSEUDO_WINS` to either side of each pair.
    """
    del seed
    pairs = list(combinations(range(n), 2))
    wins = _matrix(n, pairs, (yield pairs)) + PSEUDO_WINS * (1 - np.eye(n))
    return ratings(wins[None], prior=0.0)[0][0] if n > 1 else np.zeros(n)


def knockout(n: int, *, seed: int = 0) -> Ranking:
    """Rounds survived; the winner has the most. The draw is by `seed`, so that no place is favoured."""
    left = list(range(n))
    random.Random(seed).shuffle(left)
    scores = np.zeros(n)
    while len(left) > 1:
        pairs = list(zip(left[0::2], left[1::2], strict=False))
        points = yield pairs
        # Who has no opponent is one further.
        going_on = [a if p >= 0.5 else b for (a, b), p in zip(pairs, points, strict=True)]
        left = [*going_on, *left[2 * len(pairs) :]]
        scores[left] += 1
    return scores


def swiss(n: int, *, seed: int = 0) -> Ranking:
    """Points of ceil(log2 n) rounds; equal points are told apart by those of the opponents.

    Each round pairs neighbours in the standings that have not met. Who is left over gets 0.5.
    """
    order = list(range(n))
    random.Random(seed).shuffle(order)
    n_rounds = math.ceil(math.log2(n)) if n > 1 else 0
    points, met = np.zeros(n), np.zeros((n, n), dtype=bool)
    for _ in range(n_rounds):
        order.sort(key=lambda i: -points[i])  # stable: the draw decides among equals
        pairs, alone = _neighbours(order, met)
        for (a, b), p in zip(pairs, (yield pairs), strict=True):
            points[a] += p
            points[b] += 1 - p
            met[a, b] = met[b, a] = True
        points[alone] += 0.5
    # Points come in steps of 1/8 or more; opponents' points must not add up to a step.
    return points + (met @ points) / (8 * max(1, n_rounds) ** 2 + 1)


RANKINGS: Mapping[str, Callable[..., Ranking]] = {
    "round_robin": round_robin,
    "bradley_terry": bradley_terry,
    "swiss": swiss,
    "knockout": knockout,
}


def check_ranking(name: str) -> None:
    """Refuse a name that is none of `RANKINGS`.

    Raises:
        RecipeError: the message offers the nearest.
    """
    if name not in RANKINGS:
        raise RecipeError(f"unknown ranking {name!r}. {did_you_mean(name, RANKINGS)}")


def n_pairs(name: str, n: int) -> int:
    """Most pairs that a ranking of n candidates asks for; times orders and samples it is the calls.

    >>> [n_pairs(name, 8) for name in RANKINGS]
    [28, 28, 12, 7]

    Raises:
        RecipeError: an unknown ranking, or fewer than one candidate.
    """
    check_ranking(name)
    if n < 1:
        raise RecipeError(f"got {n} candidates; expected at least 1")
    if name == "knockout":
        return n - 1
    if name == "swiss":
        return math.ceil(math.log2(n)) * (n // 2)
    return n * (n - 1) // 2


def finished(ranking: Ranking, points: Sequence[float]) -> np.ndarray:
    """The scores of a ranking that was sent its last points.

    Raises:
        RuntimeError: it asks for more.
    """
    try:
        ranking.send(points)
    except StopIteration as done:
        found: np.ndarray = done.value
        return found
    raise RuntimeError("the ranking has a further round")


def _matrix(n: int, pairs: Pairs, points: Sequence[float]) -> np.ndarray:
    won = np.zeros((n, n))
    for (a, b), p in zip(pairs, points, strict=True):
        won[a, b], won[b, a] = p, 1 - p
    return won


def _neighbours(order: Sequence[int], met: np.ndarray) -> tuple[Pairs, list[int]]:
    """Each with the next in the standings that it has not met; the rest stands alone."""
    left, pairs, alone = list(order), [], []
    while left:
        a = left.pop(0)
        b = next((one for one in left if not met[a, one]), None)
        if b is None:
            alone.append(a)
            continue
        left.remove(b)
        pairs.append((a, b))
    return pairs, alone
