"""Plain figures of a table of scores: pair accuracy, AUROC, best-of-N, calibration.

    pooled AUROC         P(score right > score wrong), ties 1/2, all prompts together
    within-prompt AUROC  the same inside prompts; mean over prompts, and over pairs
    best-of-k            sum_i y_(i) C(i-1, k-1) / C(N, k), scores ascending, tied labels averaged
    ECE                  sum over bins |sum of (sigmoid(score) - label)| / n

Mann-Whitney for AUROC; exact expectation over k-subsets for best-of-k. A figure that is published
needs an interval: see `retrm.metrics.statistics` and `retrm.metrics.intervals`.

>>> from retrm.metrics.points import auroc
>>> auroc([0.9, 0.2, 0.4], [1, 0, 1])
1.0
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrm.errors import RecipeError
from retrm.metrics.checks import (
    check_both_classes,
    check_length,
    checked_codes,
    checked_scores_and_labels,
    finite_scores,
)
from retrm.metrics.kernels import (
    mixed_credit,
    pair_credit,
    sigmoid,
    sorted_block_means,
    top_credit,
)


@dataclass(frozen=True)
class PairAccuracy:
    """Share of preference pairs put in the right order.

    Attributes:
        strict: a tie counts as wrong, as the official leaderboards count.
        half: a tie counts one half; chance is 0.5 whatever the number of ties.
        n_pairs: number of pairs.
        n_ties: pairs with equal scores.
    """

    strict: float
    half: float
    n_pairs: int
    n_ties: int


@dataclass(frozen=True)
class WithinPromptAUROC:
    """AUROC over right x wrong pairs of the same prompt.

    Attributes:
        mean: mean over mixed prompts of the prompt's AUROC; the metric of record.
        pair_weighted: every pair counts the same.
        n_prompts: prompts seen.
        n_mixed: prompts with both a right and a wrong candidate; only these take part.
        n_pairs: right x wrong pairs.
    """

    mean: float
    pair_weighted: float
    n_prompts: int
    n_mixed: int
    n_pairs: int


@dataclass(frozen=True)
class BestOfN:
    """What picking the top-scored candidate of every prompt is worth.

    Attributes:
        value: mean label of the top candidate, means over prompts; tied candidates share credit.
        pass_at_1: mean label of a random pick.
        oracle: mean of the best label of each prompt.
        recovered_share: (value - pass_at_1) / (oracle - pass_at_1); None where these are equal.
        n_prompts: number of prompts.
        n_tied: prompts whose top score is shared.
    """

    value: float
    pass_at_1: float
    oracle: float
    recovered_share: float | None
    n_prompts: int
    n_tied: int


def pair_accuracy(chosen: Sequence[float], rejected: Sequence[float]) -> PairAccuracy:
    """Accuracy of preference pairs.

    Args:
        chosen: (P,) scores of the preferred candidates.
        rejected: (P,) scores of the others.

    Raises:
        ScoreError: scores are NaN, infinite, missing or of different number.
    """
    better, worse = finite_scores(chosen, "chosen"), finite_scores(rejected, "rejected")
    check_length(worse, better, "rejected scores")
    n_wins, n_ties = int((better > worse).sum()), int((better == worse).sum())
    n = len(better)
    return PairAccuracy(n_wins / n, (n_wins + n_ties / 2) / n, n, n_ties)


def auroc(scores: Sequence[float], labels: Sequence[float]) -> float:
    """P(score of a right candidate > score of a wrong one), ties 1/2, in O(n log n).

    Args:
        scores: (n,) raw scores.
        labels: (n,) 0 or 1.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a label is not 0 or 1, or all labels are the same.
    """
    scores, labels = checked_scores_and_labels(scores, labels, binary=True)
    check_both_classes(labels)
    credit = pair_credit(scores, labels, np.zeros(len(labels), dtype=np.int64), 1)
    return float(credit.won[0] / credit.n_pairs[0])


def within_prompt_auroc(
    scores: Sequence[float], labels: Sequence[float], prompt_ids: Sequence[object]
) -> WithinPromptAUROC:
    """AUROC inside prompts: what best-of-N needs, blind to which prompts are easy.

    Args:
        scores: (n,) raw scores.
        labels: (n,) 0 or 1.
        prompt_ids: (n,) the prompt of every row.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a label is not 0 or 1, or no prompt is mixed.
    """
    credit, _ = mixed_credit(scores, labels, prompt_ids)
    mixed = credit.n_pairs > 0
    return WithinPromptAUROC(
        mean=float((credit.won[mixed] / credit.n_pairs[mixed]).mean()),
        pair_weighted=float(credit.won.sum() / credit.n_pairs.sum()),
        n_prompts=len(mixed),
        n_mixed=int(mixed.sum()),
        n_pairs=int(credit.n_pairs.sum()),
    )


def n_mixed(labels: Sequence[float], prompt_ids: Sequence[object]) -> int:
    """Prompts with both a right (1) and a wrong (0) answer; any other label, or NaN, is neither."""
    truth = np.asarray(labels, dtype=np.float64)
    if not truth.size:
        return 0
    codes, _ = checked_codes(prompt_ids, len(truth))
    has_right, has_wrong = (np.bincount(codes, truth == label) > 0 for label in (1, 0))
    return int((has_right & has_wrong).sum())


def best_of_n(
    scores: Sequence[float], labels: Sequence[float], prompt_ids: Sequence[object]
) -> BestOfN:
    """Best-of-N with all candidates of each prompt.

    Args:
        scores: (n,) raw scores.
        labels: (n,) finite numbers, usually 0 or 1.
        prompt_ids: (n,) the prompt of every row.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a label is missing.
    """
    scores, labels = checked_scores_and_labels(scores, labels, binary=False)
    codes, prompts = checked_codes(prompt_ids, len(scores))
    credit, n_top = top_credit(scores, labels, codes, len(prompts))
    size = np.bincount(codes)
    best = np.full(len(prompts), -np.inf)
    np.maximum.at(best, codes, labels)
    value, oracle = float(credit.mean()), float(best.mean())
    chance = float((np.bincount(codes, labels) / size).mean())
    share = (value - chance) / (oracle - chance) if oracle - chance > 1e-12 else None
    return BestOfN(value, chance, oracle, share, len(prompts), int((n_top > 1).sum()))


def expected_best_of_k(scores: Sequence[float], labels: Sequence[float]) -> np.ndarray:
    """Expected label of best-of-k among N candidates of ONE prompt, for every k.

    Exact over all k-subsets, no sampling; labels inside a block of tied scores are replaced by the
    block's mean, so ties share credit.

    Args:
        scores: (N,) raw scores.
        labels: (N,) finite numbers.

    Returns:
        (N,) values for k = 1..N; the first is the mean label, the last the top candidate's label.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a label is missing.
    """
    scores, labels = checked_scores_and_labels(scores, labels, binary=False)
    return subset_weights(len(scores)) @ sorted_block_means(scores, labels)


def subset_weights(n: int) -> np.ndarray:
    """P(the candidate of ascending rank i is the best of a random k-subset of n).

    Args:
        n: number of candidates, at least 1.

    Returns:
        (n, n), row k-1, column i-1: C(i-1, k-1) / C(n, k). By running ratios from the top
        (w_n = k/n, w_{i-1} = w_i (i-k)/(i-1)), so no binomial is ever formed and nothing overflows.
    """
    k = np.arange(1, n + 1)[:, None]
    i = np.arange(n, 1, -1)[None, :]
    ratios = np.maximum(i - k, 0) / (i - 1)
    return np.cumprod(np.hstack([k / n, ratios]), axis=1)[:, ::-1]


def brier(scores: Sequence[float], labels: Sequence[float]) -> float:
    """Mean of (sigmoid(score) - label)^2; for scores with a probability reading only.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a label is not 0 or 1.
    """
    scores, labels = checked_scores_and_labels(scores, labels, binary=True)
    return float(((sigmoid(scores) - labels) ** 2).mean())


def log_loss(scores: Sequence[float], labels: Sequence[float]) -> float:
    """Mean of -log P(label) in nats, P(right) = sigmoid(score). Raises as `brier`."""
    scores, labels = checked_scores_and_labels(scores, labels, binary=True)
    return float(log_loss_terms(scores, labels).mean())


def log_loss_terms(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) -log P(label) of every row, finite for any finite score."""
    return np.logaddexp(0.0, np.where(labels == 1, -scores, scores))


def expected_calibration_error(
    scores: Sequence[float], labels: Sequence[float], *, n_bins: int = 10
) -> float:
    """Gap between sigmoid(score) and the share of right answers, in equal bins on [0, 1].

    Args:
        scores: (n,) raw scores.
        labels: (n,) 0 or 1.
        n_bins: number of equal bins; more bins raise the value on few rows.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a label is not 0 or 1.
        RecipeError: n_bins below 1.
    """
    if n_bins < 1:
        raise RecipeError(f"got n_bins = {n_bins}; expected at least 1, usually 10.")
    scores, labels = checked_scores_and_labels(scores, labels, binary=True)
    probability = sigmoid(scores)
    bins = np.minimum((probability * n_bins).astype(np.int64), n_bins - 1)
    gaps = np.bincount(bins, probability - labels)
    return float(np.abs(gaps).sum() / len(scores))
