"""Votes: candidates with the same answer key stand together.

With groups G_k of candidates that give answer k:

    majority          argmax_k |G_k|                              (self-consistency)
    weighted_vote     argmax_k sum_{i in G_k} weight_i            weight = sigmoid(s_i), or
                                                                  softmax over the prompt of s_i/tau
    top_m_majority    majority among the m best-scored            (CLUE, arXiv 2510.01591: 16 of 64)

Use sigmoid weights for heads fitted with cross-entropy, whose score is a logit of being right;
softmax for Bradley-Terry heads, whose scores have an arbitrary offset per prompt that softmax does
not see. A raw score is never a weight: negative ones would punish an answer for having more votes.

Candidates without a key take no part and are counted. If nobody has one the vote abstains. Ties go
to the answer seen first. The representative is the best-scored candidate of the winning answer where
scores are given, else its first. Sums are exactly rounded, so order cannot decide between answers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from retrm.errors import RecipeError, did_you_mean
from retrm.selection.candidates import Candidates, Selection, checked

Weights = Literal["sigmoid", "softmax"]


def majority(
    scores: Sequence[float] | None = None,
    keys: Sequence[str | None] | None = None,
    lengths: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
) -> Selection:
    """The answer given most often; needs keys.

    Args:
        scores: (N,) scores; where given they pick the representative of the winning answer.
        keys: (N,) canonical answers, None = none found.
        lengths: not used.
        other: not used.

    Raises:
        RecipeError, ScoreError, DataError: as `retrm.selection.candidates.checked`.
    """
    given = checked(scores, keys, lengths, other, needs=("keys",))
    return winner(given, {key: float(len(rows)) for key, rows in answer_groups(given).items()})


def weighted_vote(
    scores: Sequence[float] | None = None,
    keys: Sequence[str | None] | None = None,
    lengths: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
    *,
    weights: Weights = "sigmoid",
    tau: float = 1.0,
) -> Selection:
    """The answer with the largest sum of weights; needs scores and keys.

    Args:
        scores: (N,) finite scores.
        keys: (N,) canonical answers, None = none found.
        lengths: not used.
        other: not used.
        weights: "sigmoid" for cross-entropy heads, "softmax" for Bradley-Terry heads.
        tau: temperature of softmax, above 0; small = the best score decides, large = majority.

    Raises:
        RecipeError: unknown weights, tau not above 0, tau set for sigmoid weights, or a column
            is missing.
        ScoreError, DataError: as `retrm.selection.candidates.checked`.
    """
    given = checked(scores, keys, lengths, other, needs=("scores", "keys"))
    weight = _weights(given.scores, weights, tau)
    totals = {
        key: math.fsum(weight[row] for row in rows) for key, rows in answer_groups(given).items()
    }
    return winner(given, totals)


def top_m_majority(
    scores: Sequence[float] | None = None,
    keys: Sequence[str | None] | None = None,
    lengths: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
    *,
    m: int = 16,
) -> Selection:
    """Majority among the m best-scored candidates; needs scores and keys.

    Args:
        scores: (N,) finite scores.
        keys: (N,) canonical answers, None = none found; such a candidate may use up a place.
        lengths: not used.
        other: not used.
        m: how many to keep; with m >= N this is plain majority.

    Raises:
        RecipeError: m below 1, or a column is missing.
        ScoreError, DataError: as `retrm.selection.candidates.checked`.
    """
    if m < 1:
        raise RecipeError(f"got m = {m}; expected at least 1, for example 16 of 64.")
    given = checked(scores, keys, lengths, other, needs=("scores", "keys"))
    best_first = np.argsort(-given.scores, kind="stable")
    kept = {int(row) for row in best_first[:m]}
    totals = {
        key: float(sum(row in kept for row in rows)) for key, rows in answer_groups(given).items()
    }
    voted = winner(given, {key: total for key, total in totals.items() if total > 0})
    is_cut_tied = m < given.n and bool(
        given.scores[best_first[m - 1]] == given.scores[best_first[m]]
    )
    return given.selection(voted.chosen, voted.is_tie or is_cut_tied)


def answer_groups(given: Candidates) -> dict[str, list[int]]:
    """Rows of every answer, answers in order of first appearance; rows without a key are left."""
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(given.keys or ()):
        if key is not None:
            groups.setdefault(key, []).append(row)
    return groups


def winner(given: Candidates, totals: Mapping[str, float]) -> Selection:
    """The answer with the largest total and its representative; abstains where there is none."""
    if not totals:
        return given.selection(None, is_tie=False)
    best = max(totals.values())
    tied = [key for key, total in totals.items() if total == best]
    rows = answer_groups(given)[tied[0]]
    # max() keeps the first of equals, so without scores the first seen represents its answer.
    chosen = rows[0] if given.scores is None else max(rows, key=lambda row: given.scores[row])
    return given.selection(chosen, is_tie=len(tied) > 1)


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-score)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -scores))


def _weights(scores: np.ndarray, weights: Weights, tau: float) -> np.ndarray:
    if weights not in ("sigmoid", "softmax"):
        raise RecipeError(
            f"got weights {weights!r}; expected 'sigmoid' or 'softmax'. "
            + did_you_mean(str(weights), ("sigmoid", "softmax"))
        )
    if not (tau > 0 and math.isfinite(tau)):
        raise RecipeError(f"got tau = {tau}; expected a finite number above 0, usually 1.0.")
    if weights == "sigmoid":
        if tau != 1.0:
            raise RecipeError(
                f"got tau = {tau} with sigmoid weights; expected tau only with weights='softmax'."
            )
        return sigmoid(scores)
    powers = np.exp((scores - scores.max()) / tau)
    return powers / math.fsum(powers)
