"""Statistics of right x wrong pairs: pooled, per fold, inside prompts, and among answers of like length.

    pooled          sum over prompts p, q of c_p c_q K_pq / (sum c_p right_p)(sum c_q wrong_q),
                    K_pq = pairs that right rows of p win against wrong rows of q (ties 1/2)
    within-prompt   sum c_p K_pp / (right_p wrong_p) / sum c_p over mixed prompts
    length-matched  the same over pairs whose token counts differ by at most a tenth of the longer

with c_p = how often prompt p was drawn. Counts are whole numbers and K holds halves, so the pooled
sums are exact in float64 by either of the two ways below.

>>> from retrm.metrics.pairs import length_matched_auroc_statistic
>>> matched = length_matched_auroc_statistic([2, 1, 0], [1, 0, 0], ["a"] * 3, [100, 90, 40])
>>> matched.n
1
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from retrm.errors import DataError, LabelError, RecipeError
from retrm.metrics.checks import (
    check_both_classes,
    check_length,
    checked_codes,
    checked_scores_and_labels,
    checked_weighting,
    finite_scores,
)
from retrm.metrics.kernels import PairCredit, block_starts, mixed_credit, ratio
from retrm.metrics.statistics import RatioStatistic

# Cells of float64 that are held at once: 32 MB.
_CELLS = 4_000_000
# Lengths are whole numbers and a tolerance such as 0.3 is not a binary fraction.
_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class AUROCStatistic:
    """Pooled AUROC, every row weighted by how often its prompt was drawn.

    Attributes:
        prompts: (P,) ids, sorted.
        codes: (n,) prompt of every row, rows by ascending score.
        labels: (n,) 0 or 1, in the same order.
        block_starts: positions where a new score begins.
        n: rows.
    """

    prompts: np.ndarray
    codes: np.ndarray
    labels: np.ndarray
    block_starts: np.ndarray
    n: int

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values; NaN where a resample has one class only."""
        # Prompts x prompts is some twenty times faster than rows, as long as it is small.
        if self.n * len(self.prompts) <= _CELLS:
            return self._by_prompts(counts)
        step = max(1, _CELLS // self.n)
        parts = [self._by_rows(counts[i : i + step]) for i in range(0, len(counts), step)]
        return np.concatenate(parts)

    def _by_prompts(self, counts: np.ndarray) -> np.ndarray:
        n_right = np.bincount(self.codes, self.labels, minlength=len(self.prompts))
        n_wrong = np.bincount(self.codes, minlength=len(self.prompts)) - n_right
        won = ((counts @ self._wins) * counts).sum(axis=1)
        return ratio(won, (counts @ n_right) * (counts @ n_wrong))

    @cached_property
    def _wins(self) -> np.ndarray:
        """(P, P) pairs that right rows of one prompt win against wrong rows of another."""
        n_prompts, n_blocks = len(self.prompts), len(self.block_starts)
        block = np.repeat(np.arange(n_blocks), np.diff(np.append(self.block_starts, self.n)))
        # Wrong rows of each prompt in blocks 0..b-1 stand in row b.
        below = np.zeros((n_blocks + 1, n_prompts))
        np.add.at(below, (block + 1, self.codes), 1 - self.labels)
        np.cumsum(below, axis=0, out=below)
        right = np.flatnonzero(self.labels)
        right = right[np.argsort(self.codes[right], kind="stable")]
        credit = (below[block[right]] + below[block[right] + 1]) / 2
        starts = block_starts(self.codes[right])
        wins = np.zeros((n_prompts, n_prompts))
        wins[self.codes[right][starts]] = np.add.reduceat(credit, starts, axis=0)
        return wins

    def _by_rows(self, counts: np.ndarray) -> np.ndarray:
        weights = counts[:, self.codes]  # (R, n)
        right = np.add.reduceat(weights * self.labels, self.block_starts, axis=1)
        wrong = np.add.reduceat(weights, self.block_starts, axis=1) - right
        below = np.cumsum(wrong, axis=1) - wrong
        won = (right * (below + wrong / 2)).sum(axis=1)
        return ratio(won, right.sum(axis=1) * wrong.sum(axis=1))


@dataclass(frozen=True, eq=False)
class FoldAUROCStatistic:
    """Mean over folds of the pooled AUROC inside a fold.

    Attributes:
        prompts: (P,) ids of all folds, sorted.
        places: for each fold, where its prompts stand in `prompts`.
        members: the pooled AUROC of each fold.
        n: rows of these folds.
        n_skipped_folds: folds left out because they hold right or wrong answers only.
    """

    prompts: np.ndarray
    places: tuple[np.ndarray, ...]
    members: tuple[AUROCStatistic, ...]
    n: int
    n_skipped_folds: int = 0

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values; NaN where a resample leaves a fold with one class only."""
        folds = zip(self.places, self.members, strict=True)
        return sum(member(counts[:, at]) for at, member in folds) / len(self.members)


def auroc_statistic(
    scores: Sequence[float], labels: Sequence[float], prompt_ids: Sequence[object]
) -> AUROCStatistic:
    """Pooled AUROC for `clustered_bootstrap`. Raises as `auroc`."""
    scores, labels = checked_scores_and_labels(scores, labels, binary=True)
    check_both_classes(labels)
    codes, prompts = checked_codes(prompt_ids, len(scores))
    order = np.argsort(scores, kind="stable")
    starts = block_starts(scores[order])
    return AUROCStatistic(prompts, codes[order], labels[order], starts, len(scores))


def fold_auroc_statistic(
    scores: Sequence[float],
    labels: Sequence[float],
    prompt_ids: Sequence[object],
    folds: Sequence[object],
) -> FoldAUROCStatistic:
    """Pooled AUROC of out-of-fold scores, taken inside each fold and averaged.

    Scores of different folds come from different heads and have different scales, so they are never
    compared with one another. A fold with one class only has nothing to compare; it is left out and
    counted.

    Args:
        scores: (n,) raw scores, each from the head that did not see the row.
        labels: (n,) 0 or 1.
        prompt_ids: (n,) the prompt of every row.
        folds: (n,) the fold of every row.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a label is not 0 or 1, or no fold holds both right and wrong answers.
        DataError: not one fold a row.
    """
    scores, labels = checked_scores_and_labels(scores, labels, binary=True)
    _, prompts = checked_codes(prompt_ids, len(scores))
    if len(folds) != len(scores):
        raise DataError(f"got {len(folds)} folds for {len(scores)} rows; expected one each.")
    ids, of_row = np.asarray(prompt_ids, dtype=object), np.asarray(folds)
    parts = [np.flatnonzero(of_row == fold) for fold in np.unique(of_row)]
    usable = [rows for rows in parts if labels[rows].min() < labels[rows].max()]
    if not usable:
        raise LabelError(
            f"got {len(parts)} fold(s), none with both right and wrong answers; expected at least "
            "one. Use fewer folds or more prompts."
        )
    members = tuple(auroc_statistic(scores[rows], labels[rows], ids[rows]) for rows in usable)
    places = tuple(np.searchsorted(prompts, member.prompts) for member in members)
    n_rows = sum(member.n for member in members)
    return FoldAUROCStatistic(prompts, places, members, n_rows, len(parts) - len(usable))


def within_prompt_auroc_statistic(
    scores: Sequence[float],
    labels: Sequence[float],
    prompt_ids: Sequence[object],
    *,
    weighting: Literal["prompt", "pair"] = "prompt",
) -> RatioStatistic:
    """Within-prompt AUROC for `clustered_bootstrap`; raises as `within_prompt_auroc`.

    Args:
        scores: (n,) raw scores.
        labels: (n,) 0 or 1.
        prompt_ids: (n,) the prompt of every row.
        weighting: "prompt" = mean over mixed prompts; "pair" = every pair counts the same.

    Raises:
        RecipeError: unknown weighting.
    """
    credit, prompts = mixed_credit(scores, labels, prompt_ids)
    return _credit_statistic(credit, prompts, weighting)


def length_matched_auroc_statistic(
    scores: Sequence[float],
    labels: Sequence[float],
    prompt_ids: Sequence[object],
    lengths: Sequence[float],
    *,
    tolerance: float = 0.1,
    weighting: Literal["prompt", "pair"] = "prompt",
) -> RatioStatistic:
    """Within-prompt AUROC over pairs of like length: what is left where length tells nothing.

    A pair takes part where |difference| <= tolerance x the longer of the two.

    Args:
        scores: (n,) raw scores.
        labels: (n,) 0 or 1.
        prompt_ids: (n,) the prompt of every row.
        lengths: (n,) tokens, not below 0.
        tolerance: between 0 (equal lengths only) and 1 (all pairs).
        weighting: "prompt" = mean over prompts with a pair left; "pair" = every pair counts the same.

    Returns:
        The statistic; its `n` is the number of pairs left.

    Raises:
        ScoreError: a score or a length is NaN or infinite.
        LabelError: a label is not 0 or 1, no prompt is mixed, or no pair is left.
        DataError: a length below 0.
        RecipeError: impossible tolerance or unknown weighting.
    """
    credit, prompts = mixed_credit(scores, labels, prompt_ids)
    scores, labels = checked_scores_and_labels(scores, labels, binary=True)
    tokens = _checked_lengths(lengths, scores)
    codes, _ = checked_codes(prompt_ids, len(scores))
    right, wrong = _pairs_of_prompts(labels, codes, len(prompts))
    near = _are_alike(tokens[right], tokens[wrong], tolerance)
    if not near.any():
        raise _none_alike(f"{int(credit.n_pairs.sum())} right x wrong", tolerance)
    right, wrong = right[near], wrong[near]
    won = (scores[right] > scores[wrong]) + (scores[right] == scores[wrong]) / 2
    n_pairs = np.bincount(codes[right], minlength=len(prompts)).astype(np.float64)
    matched = PairCredit(np.bincount(codes[right], won, minlength=len(prompts)), n_pairs)
    return _credit_statistic(matched, prompts, weighting)


def length_matched_pair_statistic(
    chosen: Sequence[float],
    rejected: Sequence[float],
    prompt_ids: Sequence[object],
    chosen_lengths: Sequence[float],
    rejected_lengths: Sequence[float],
    *,
    tolerance: float = 0.1,
) -> RatioStatistic:
    """Accuracy over preference pairs of like length, ties one half; every pair counts the same.

    Args:
        chosen: (P,) scores of the preferred answers.
        rejected: (P,) scores of the others.
        prompt_ids: (P,) the prompt of every pair.
        chosen_lengths: (P,) tokens, not below 0.
        rejected_lengths: (P,) the same of the others.
        tolerance: as in `length_matched_auroc_statistic`.

    Returns:
        The statistic over all prompts; its `n` is the number of pairs left.

    Raises:
        ScoreError: a score or a length is NaN or infinite, or there is not one a pair.
        LabelError: no pair is left.
        DataError: a length below 0.
        RecipeError: impossible tolerance.
    """
    better, worse = finite_scores(chosen, "chosen"), finite_scores(rejected, "rejected")
    check_length(worse, better, "rejected scores")
    tokens = (_checked_lengths(lengths, better) for lengths in (chosen_lengths, rejected_lengths))
    near = _are_alike(*tokens, tolerance)
    if not near.any():
        raise _none_alike(f"{len(better)} preference", tolerance)
    codes, prompts = checked_codes(prompt_ids, len(better))
    won = (np.sign(better - worse) + 1) / 2 * near
    wins, sizes = (np.bincount(codes, x, minlength=len(prompts)) for x in (won, near))
    return RatioStatistic(prompts, wins, sizes, int(near.sum()))


def _are_alike(first: np.ndarray, second: np.ndarray, tolerance: float) -> np.ndarray:
    if not 0 <= tolerance <= 1:
        raise RecipeError(f"got tolerance = {tolerance}; expected 0 to 1, usually 0.1.")
    return np.abs(first - second) <= tolerance * np.maximum(first, second) + _SLACK


def _none_alike(pairs: str, tolerance: float) -> LabelError:
    return LabelError(
        f"got {pairs} pairs, none with token counts within {tolerance:.0%} of each other; expected "
        "at least one. Raise the tolerance, or leave the length-matched figure out."
    )


def _credit_statistic(credit: PairCredit, prompts: np.ndarray, weighting: str) -> RatioStatistic:
    n_pairs = int(credit.n_pairs.sum())
    if checked_weighting(weighting, ("prompt", "pair")) == "pair":
        return RatioStatistic(prompts, credit.won, credit.n_pairs, n_pairs)
    takes_part = credit.n_pairs > 0
    mean = np.divide(credit.won, credit.n_pairs, out=np.zeros(len(prompts)), where=takes_part)
    return RatioStatistic(prompts, mean, takes_part.astype(np.float64), n_pairs)


def _checked_lengths(lengths: Sequence[float], scores: np.ndarray) -> np.ndarray:
    tokens = finite_scores(lengths, "lengths")
    check_length(tokens, scores, "lengths")
    if tokens.min() < 0:
        at = int(tokens.argmin())
        raise DataError(f"got length {tokens[at]:g} at position {at}; expected tokens, 0 or more.")
    return tokens


def _pairs_of_prompts(
    labels: np.ndarray, codes: np.ndarray, n_prompts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row of the right and of the wrong candidate of every pair inside a prompt."""
    rows = np.argsort(codes, kind="stable")
    right, wrong = rows[labels[rows] == 1], rows[labels[rows] == 0]
    n_wrong = np.bincount(codes[wrong], minlength=n_prompts)
    repeats = n_wrong[codes[right]]
    # The pairs of one right row run through the wrong rows of its prompt.
    first_wrong = (np.cumsum(n_wrong) - n_wrong)[codes[right]]
    first_pair = np.cumsum(repeats) - repeats
    step = np.arange(repeats.sum()) - np.repeat(first_pair, repeats)
    return np.repeat(right, repeats), wrong[np.repeat(first_wrong, repeats) + step]
