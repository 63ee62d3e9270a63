"""What every verdict of an audit rests on: margin, level, and how many random draws a claim needs.

    rank p from above   (1 + draws at least as high) / (1 + draws); the smallest is 1 / (1 + draws)
    rank p from below   (1 + draws at most as high) / (1 + draws)

Either side may be claimed, so each has half of the level: a rank p of .025 or less on its own side is
two-sided .05. Removals keep .05 a side, which is two-sided .10, since every draw of theirs is a pass
through the model; beside the rank they must survive Holm's correction.

Source: a design of this project; the margin of 0.01 is one point of AUROC, accuracy or best-of-N.

>>> from retrm.audit.rules import ALPHA_A_SIDE, DRAWS_FOR_A_CLAIM
>>> 1 / (1 + DRAWS_FOR_A_CLAIM) <= ALPHA_A_SIDE < 1 / DRAWS_FOR_A_CLAIM
True
"""

import math

from retrm.audit.tables import CellRow, ContrastRow

MARGIN = 0.01
"""A difference within it does not matter."""

ALPHA = 0.05
"""Two-sided level of everything but the rank of a removal."""

ALPHA_A_SIDE = ALPHA / 2
CHANCE = 0.5

DRAWS_FOR_A_CLAIM = 39
"""With fewer random subspaces no rank p can be `ALPHA_A_SIDE` or less, whatever was measured."""

REMOVAL_ALPHA_A_SIDE = 0.05
DRAWS_FOR_A_REMOVAL = 19
"""With fewer random removals no rank p can be `REMOVAL_ALPHA_A_SIDE` or less."""

MOST_LISTED = 8
"""More figures than this make a sentence that nobody reads."""


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


def is_below(row: ContrastRow) -> bool:
    """On which side a contrast lies: by its interval, or by its value where that includes 0."""
    return row.high < 0 or (row.value < 0 and not row.low > 0)


def n_as_far_out(row: ContrastRow) -> int:
    """Random draws at least as good as the first of a contrast, or as bad where it lies below 0."""
    n_good = n_at_least_as_good(row)
    return row.n_draws - n_good if is_below(row) else n_good


def rank_on_its_side(row: ContrastRow) -> float:
    """The rank p that a claim is made of; NaN without draws."""
    return rank_from_below(row) if row.n_draws and is_below(row) else row.rank_p


def claim_of(row: ContrastRow) -> int:
    """1 = better, -1 = worse, 0 = no claim of an exploratory contrast after Holm's correction."""
    if not (row.holm_p < ALPHA and has_interval(row)):  # NaN is no claim
        return 0
    return int(row.low > 0) - int(row.high < 0)
