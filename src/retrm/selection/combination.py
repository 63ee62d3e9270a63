"""Two scorers at once: by rank, or by min-max scaled score.

Inside one prompt, rank 0 = best, ties in a scorer by order of appearance:

    rank_combination     argmin_i max( rank_own(i), rank_other(i) )
    minmax_combination   argmax_i mean of (s_i - min s) / (max s - min s) over both scorers

Source: "ranking" and "scaling" in the evaluation of ELHSR/SWIFT (arXiv 2505.12225). Neither is
calibrated. Ranks ignore gaps, and a CONSTANT scorer is not neutral for them: its ranks are file
order. Min-max depends on the other candidates: one absurdly bad one squeezes the rest together; a
constant scorer gives 1.0 to all and is neutral. Show both members alone beside the combination.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from retrm.errors import RecipeError, ScoreError, did_you_mean
from retrm.selection.candidates import Selection, checked

Ties = Literal["rank_sum", "first"]


def rank_combination(
    scores: Sequence[float] | None = None,
    keys: Sequence[str | None] | None = None,
    lengths: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
    *,
    ties: Ties = "rank_sum",
) -> Selection:
    """The candidate whose worse rank is best; needs scores and other.

    Ties for the best worse rank are frequent (12-25 % of random prompts at N = 4-16) and reported.

    Args:
        scores: (N,) finite scores of the own scorer.
        keys: (N,) answers, only reported.
        lengths: not used.
        other: (N,) finite scores of the second scorer.
        ties: "rank_sum" = smaller sum of ranks, then better own rank; "first" = first seen, as the
            published code does.

    Raises:
        RecipeError: unknown ties, or a column is missing.
        ScoreError, DataError: as `retrm.selection.candidates.checked`.
    """
    given = checked(scores, keys, lengths, other, needs=("scores", "other"))
    if ties not in ("rank_sum", "first"):
        raise RecipeError(
            f"got ties {ties!r}; expected 'rank_sum' or 'first'. "
            + did_you_mean(str(ties), ("rank_sum", "first"))
        )
    own_rank, other_rank = _ranks(given.scores), _ranks(given.other)
    worse = np.maximum(own_rank, other_rank)
    order = (own_rank, own_rank + other_rank, worse) if ties == "rank_sum" else (worse,)
    chosen = int(np.lexsort(order)[0])
    # Equal candidates get different ranks from their order alone, so ranks do not show this tie.
    twins = (given.scores == given.scores[chosen]) & (given.other == given.other[chosen])
    return given.selection(chosen, (worse == worse[chosen]).sum() > 1 or twins.sum() > 1)


def minmax_combination(
    scores: Sequence[float] | None = None,
    keys: Sequence[str | None] | None = None,
    lengths: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
) -> Selection:
    """The best mean of the two min-max scaled scores; needs scores and other. Ties: first seen.

    Args:
        scores: (N,) finite scores of the own scorer.
        keys: (N,) answers, only reported.
        lengths: not used.
        other: (N,) finite scores of the second scorer.

    Raises:
        ScoreError: a score is NaN or infinite, or the range of a scorer overflows.
        RecipeError, DataError: as `retrm.selection.candidates.checked`.
    """
    given = checked(scores, keys, lengths, other, needs=("scores", "other"))
    combined = (_minmax(given.scores, "scores") + _minmax(given.other, "other")) / 2
    chosen = int(combined.argmax())
    return given.selection(chosen, (combined == combined[chosen]).sum() > 1)


def _ranks(scores: np.ndarray) -> np.ndarray:
    """0 = best; ties by order of appearance."""
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return ranks


def _minmax(scores: np.ndarray, name: str) -> np.ndarray:
    """Scaled to [0, 1]; 1.0 for all where the scores are constant."""
    with np.errstate(over="ignore"):
        spread = scores.max() - scores.min()
    if not np.isfinite(spread):
        raise ScoreError(
            f"got {name} from {scores.min()} to {scores.max()}; expected a range that a float can "
            "hold. Rescale the scorer, or use rank_combination."
        )
    return np.ones_like(scores) if spread == 0 else (scores - scores.min()) / spread
