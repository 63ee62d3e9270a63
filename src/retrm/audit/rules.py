"""What every verdict of an audit rests on: margin, level, and how many random draws a claim needs.

    rank p from above   (1 + draws at least as high) / (1 + draws); the smallest is 1 / (1 + draws)
    rank p from below   (1 + draws at most as high) / (1 + draws)

Source: a design of this project; the margin of 0.01 is one point of AUROC, accuracy or best-of-N.

>>> from retrm.audit.rules import ALPHA, DRAWS_FOR_A_CLAIM
>>> 1 / (1 + DRAWS_FOR_A_CLAIM) <= ALPHA
True
"""

import math

from retrm.audit.tables import CellRow, ContrastRow

MARGIN = 0.01
"""A difference within it does not matter."""

ALPHA = 0.05
CHANCE = 0.5

DRAWS_FOR_A_CLAIM = 19
"""With fewer random subspaces no rank p can be `ALPHA` or less, whatever was measured."""


def has_interval(row: ContrastRow | CellRow) -> bool:
    """Whether both ends were made."""
    return not (math.isnan(row.low) or math.isnan(row.high))


def is_within_margin(low: float, high: float) -> bool:
    """Whether an interval holds no difference that matters."""
    return low >= -MARGIN and high <= MARGIN


def n_at_least_as_good(row: ContrastRow) -> int:
    """Random draws at least as good as the first of a contrast, from its rank p."""
    return round(row.rank_p * (1 + row.n_draws)) - 1


def rank_from_below(row: ContrastRow) -> float:
    """From the rank p from above; a tie counts as better, being rare among scores."""
    return (1 + row.n_draws - n_at_least_as_good(row)) / (1 + row.n_draws)


def claim_of(row: ContrastRow) -> int:
    """1 = better, -1 = worse, 0 = no claim of an exploratory contrast after Holm's correction."""
    if not (row.holm_p < ALPHA and has_interval(row)):  # NaN is no claim
        return 0
    return int(row.low > 0) - int(row.high < 0)
