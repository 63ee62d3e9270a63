"""Shortest majority vote: votes count less where answers are long.

With c_k votes for answer k and mean length L_k tokens over its group:

    shortest_majority          argmax_k c_k / log(max(L_k, 2))
    shortest_majority_reward   argmax_k sum_{i in G_k} sigmoid(s_i) / log(max(L_k, 2))

Source: arXiv 2502.12215 (ACL 2025); the reward version is ours and no paper supports it. The floor
of 2 tokens keeps log 1 = 0 out of the denominator. At reasoning lengths (1,000 to 10,000 tokens) the
rule is almost exactly majority with a shortest tie-break; at 10 to 60 tokens the same formula is far
more aggressive. It helps only if right answers are shorter than wrong ones: run
`retrm.selection.length_signal` on labelled data first.
"""

import math
from collections.abc import Sequence

import numpy as np

from retrm.selection.candidates import Selection, checked
from retrm.selection.vote import answer_groups, sigmoid, winner

_SHORTEST_LENGTH = 2.0


def shortest_majority(
    scores: Sequence[float] | None = None,
    keys: Sequence[str | None] | None = None,
    lengths: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
) -> Selection:
    """Votes over log mean length; needs keys and lengths.

    Args:
        scores: (N,) scores; where given they pick the representative of the winning answer.
        keys: (N,) canonical answers, None = none found.
        lengths: (N,) response tokens.
        other: not used.

    Raises:
        RecipeError, ScoreError, DataError: as `retrm.selection.candidates.checked`.
    """
    given = checked(scores, keys, lengths, other, needs=("keys", "lengths"))
    totals = {
        key: len(rows) / _log_mean_length(given.lengths[rows])
        for key, rows in answer_groups(given).items()
    }
    return winner(given, totals)


def shortest_majority_reward(
    scores: Sequence[float] | None = None,
    keys: Sequence[str | None] | None = None,
    lengths: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
) -> Selection:
    """Sum of sigmoid(score) over log mean length; needs scores, keys and lengths.

    For cross-entropy heads only: sigmoid of a Bradley-Terry score means nothing.

    Args:
        scores: (N,) finite scores.
        keys: (N,) canonical answers, None = none found.
        lengths: (N,) response tokens.
        other: not used.

    Raises:
        RecipeError, ScoreError, DataError: as `retrm.selection.candidates.checked`.
    """
    given = checked(scores, keys, lengths, other, needs=("scores", "keys", "lengths"))
    weight = sigmoid(given.scores)
    totals = {
        key: math.fsum(weight[rows]) / _log_mean_length(given.lengths[rows])
        for key, rows in answer_groups(given).items()
    }
    return winner(given, totals)


def _log_mean_length(lengths: np.ndarray) -> float:
    """Natural log of the mean length; the base is a common factor and cannot matter."""
    return math.log(max(math.fsum(lengths) / len(lengths), _SHORTEST_LENGTH))
