"""How good scores are: accuracy, AUROC, best-of-N, calibration, with intervals by prompt.

Everything is plain numpy. Answers to one prompt are not independent, so every interval resamples
PROMPTS with all their rows. One mechanism serves all metrics: a metric is written as a
`PromptStatistic`, a function of how often each prompt was drawn,

    counts (R, P)  ->  value of the metric in each of the R resamples,

so that no resample ever touches the rows again, except through a weight. `clustered_bootstrap` gives
the interval of one statistic, `paired_difference` that of a difference under the SAME resamples.

    within-prompt AUROC  mean over prompts of P(score right > score wrong), ties 1/2
    best-of-k            sum_i y_(i) C(i-1, k-1) / C(N, k), scores ascending, tied labels averaged
    ECE                  sum over bins |sum of (sigmoid(score) - label)| / n

Formulas: Mann-Whitney for AUROC; exact expectation over k-subsets for best-of-k; percentile
bootstrap over clusters (Efron & Tibshirani 1993, ch. 13) for intervals.

    >>> from retrm.metrics import clustered_bootstrap, mean_statistic
    >>> interval = clustered_bootstrap(mean_statistic([1, 0, 1, 1], ["a", "a", "b", "c"]))
    >>> interval.value
    0.75
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from retrm.data.split import prompt_codes
from retrm.errors import DataError, LabelError, RecipeError, ScoreError, did_you_mean

N_RESAMPLES = 2000
# Counts of about this many prompts x resamples are held at once: 8 MB of float64.
_CHUNK_CELLS = 1_000_000


# ---------------------------------------------------------------- point values


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
    better, worse = _finite_scores(chosen, "chosen"), _finite_scores(rejected, "rejected")
    _check_length(worse, better, "rejected scores")
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
    scores, labels = _scores_and_labels(scores, labels, binary=True)
    _check_both_classes(labels)
    credit = _pair_credit(scores, labels, np.zeros(len(labels), dtype=np.int64), 1)
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
    credit, _ = _mixed_credit(scores, labels, prompt_ids)
    mixed = credit.n_pairs > 0
    return WithinPromptAUROC(
        mean=float((credit.won[mixed] / credit.n_pairs[mixed]).mean()),
        pair_weighted=float(credit.won.sum() / credit.n_pairs.sum()),
        n_prompts=len(mixed),
        n_mixed=int(mixed.sum()),
        n_pairs=int(credit.n_pairs.sum()),
    )


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
    scores, labels = _scores_and_labels(scores, labels, binary=False)
    codes, prompts = _codes(prompt_ids, len(scores))
    credit, n_top = _top_credit(scores, labels, codes, len(prompts))
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
    scores, labels = _scores_and_labels(scores, labels, binary=False)
    return subset_weights(len(scores)) @ _sorted_block_means(scores, labels)


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
    scores, labels = _scores_and_labels(scores, labels, binary=True)
    return float(((_sigmoid(scores) - labels) ** 2).mean())


def log_loss(scores: Sequence[float], labels: Sequence[float]) -> float:
    """Mean of -log P(label) in nats, P(right) = sigmoid(score). Raises as `brier`."""
    scores, labels = _scores_and_labels(scores, labels, binary=True)
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
    gaps = _calibration_gaps(scores, labels, n_bins)
    return float(np.abs(gaps.sum(axis=0)).sum() / len(gaps))


# ------------------------------------------------- statistics of resampled prompts


class PromptStatistic(Protocol):
    """A metric as a function of how often each prompt was drawn.

    Attributes:
        prompts: (P,) ids of the prompts, sorted; the axis of `counts`.
        n: rows (or pairs) behind the metric, for the reader of the interval.
    """

    prompts: np.ndarray
    n: int

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values; NaN where a resample leaves the metric undefined."""
        ...


@dataclass(frozen=True)
class RatioStatistic:
    """sum(counts * numerator) / sum(counts * denominator): means over rows, prompts or pairs.

    Attributes:
        prompts: (P,) ids, sorted.
        numerator: (P,) total of each prompt.
        denominator: (P,) weight of each prompt; 0 = takes no part.
        n: rows or pairs behind the metric.
    """

    prompts: np.ndarray
    numerator: np.ndarray
    denominator: np.ndarray
    n: int

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values."""
        return _ratio(counts @ self.numerator, counts @ self.denominator)


@dataclass(frozen=True)
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
        step = max(1, 4 * _CHUNK_CELLS // self.n)
        parts = [self._values(counts[i : i + step]) for i in range(0, len(counts), step)]
        return np.concatenate(parts)

    def _values(self, counts: np.ndarray) -> np.ndarray:
        weights = counts[:, self.codes]  # (R, n)
        right = np.add.reduceat(weights * self.labels, self.block_starts, axis=1)
        wrong = np.add.reduceat(weights, self.block_starts, axis=1) - right
        below = np.cumsum(wrong, axis=1) - wrong
        won = (right * (below + wrong / 2)).sum(axis=1)
        return _ratio(won, right.sum(axis=1) * wrong.sum(axis=1))


@dataclass(frozen=True)
class CalibrationStatistic:
    """Expected calibration error from each prompt's sums per bin.

    Attributes:
        prompts: (P,) ids, sorted.
        gaps: (P, bins) sum of sigmoid(score) - label.
        sizes: (P,) rows.
        n: rows.
    """

    prompts: np.ndarray
    gaps: np.ndarray
    sizes: np.ndarray
    n: int

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values."""
        return _ratio(np.abs(counts @ self.gaps).sum(axis=1), counts @ self.sizes)


@dataclass(frozen=True)
class AverageStatistic:
    """Mean of several statistics inside each resample: split seeds, random subspaces.

    Attributes:
        members: statistics over the same prompts.
    """

    members: tuple[PromptStatistic, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise DataError("got no statistics to average; expected at least one.")
        for other in self.members[1:]:
            _check_same_prompts(self.members[0], other)

    @property
    def prompts(self) -> np.ndarray:
        """(P,) ids, sorted."""
        return self.members[0].prompts

    @property
    def n(self) -> int:
        """Rows behind the first member."""
        return self.members[0].n

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values."""
        return sum(member(counts) for member in self.members) / len(self.members)


def mean_statistic(
    values: Sequence[float],
    prompt_ids: Sequence[object],
    *,
    weighting: Literal["row", "prompt"] = "row",
) -> RatioStatistic:
    """Mean of any number per row: accuracy of pairs, Brier terms, labels of chosen candidates.

    Args:
        values: (n,) finite numbers.
        prompt_ids: (n,) the prompt of every row.
        weighting: "row" = every row counts the same; "prompt" = mean over prompts of their means.

    Raises:
        ScoreError: a value is NaN or infinite.
        RecipeError: unknown weighting.
    """
    numbers = _finite_scores(values, "values")
    codes, prompts = _codes(prompt_ids, len(numbers))
    totals = np.bincount(codes, numbers, minlength=len(prompts))
    sizes = np.bincount(codes, minlength=len(prompts)).astype(np.float64)
    if _checked_weighting(weighting, ("row", "prompt")) == "prompt":
        totals, sizes = totals / sizes, np.ones(len(prompts))
    return RatioStatistic(prompts, totals, sizes, len(numbers))


def auroc_statistic(
    scores: Sequence[float], labels: Sequence[float], prompt_ids: Sequence[object]
) -> AUROCStatistic:
    """Pooled AUROC for `clustered_bootstrap`. Raises as `auroc`."""
    scores, labels = _scores_and_labels(scores, labels, binary=True)
    _check_both_classes(labels)
    codes, prompts = _codes(prompt_ids, len(scores))
    order = np.argsort(scores, kind="stable")
    starts = _block_starts(scores[order])
    return AUROCStatistic(prompts, codes[order], labels[order], starts, len(scores))


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
    credit, prompts = _mixed_credit(scores, labels, prompt_ids)
    n_pairs = int(credit.n_pairs.sum())
    if _checked_weighting(weighting, ("prompt", "pair")) == "pair":
        return RatioStatistic(prompts, credit.won, credit.n_pairs, n_pairs)
    mixed = credit.n_pairs > 0
    mean = np.divide(credit.won, credit.n_pairs, out=np.zeros(len(mixed)), where=mixed)
    return RatioStatistic(prompts, mean, mixed.astype(np.float64), n_pairs)


def best_of_k_statistic(
    scores: Sequence[float],
    labels: Sequence[float],
    prompt_ids: Sequence[object],
    *,
    k: int | None = None,
) -> RatioStatistic:
    """Best-of-k, mean over prompts, for `clustered_bootstrap`.

    Args:
        scores: (n,) raw scores.
        labels: (n,) finite numbers.
        prompt_ids: (n,) the prompt of every row.
        k: subset size, the exact expectation over subsets; None = all candidates of each prompt.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a label is missing.
        DataError: a prompt has fewer than k candidates, or k is below 1.
    """
    scores, labels = _scores_and_labels(scores, labels, binary=False)
    codes, prompts = _codes(prompt_ids, len(scores))
    if k is None:
        values, _ = _top_credit(scores, labels, codes, len(prompts))
    else:
        values = _best_of_k_by_prompt(scores, labels, codes, prompts, k)
    return RatioStatistic(prompts, values, np.ones(len(prompts)), len(scores))


def calibration_statistic(
    scores: Sequence[float],
    labels: Sequence[float],
    prompt_ids: Sequence[object],
    *,
    n_bins: int = 10,
) -> CalibrationStatistic:
    """Expected calibration error for `clustered_bootstrap`; raises as the point value."""
    rows = _calibration_gaps(scores, labels, n_bins)
    codes, prompts = _codes(prompt_ids, len(rows))
    gaps = np.zeros((len(prompts), n_bins))
    np.add.at(gaps, codes, rows)
    return CalibrationStatistic(prompts, gaps, np.bincount(codes).astype(np.float64), len(rows))


# ------------------------------------------------------------------- intervals


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval.

    Attributes:
        value: the metric on all prompts.
        low: lower end.
        high: upper end.
        n: rows or pairs behind the metric.
        n_clusters: prompts resampled.
        n_undefined: resamples in which the metric was undefined (one class only) and left out.
    """

    value: float
    low: float
    high: float
    n: int
    n_clusters: int
    n_undefined: int = 0


def clustered_bootstrap(
    statistic: PromptStatistic,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval from resampling prompts with all their rows.

    Args:
        statistic: a metric over prompts, for example from `mean_statistic`.
        n_resamples: number of resamples; 2,000 gives ends good to a few per cent of the width.
        seed: same seed, same resamples, same interval.
        level: coverage, between 0 and 1.

    Raises:
        DataError: the metric is undefined in every resample, or an option is impossible.
    """
    return _interval((statistic,), (1.0,), n_resamples=n_resamples, seed=seed, level=level)


def paired_difference(
    first: PromptStatistic,
    second: PromptStatistic,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of first - second, both measured on the SAME resampled prompts.

    Args:
        first: a metric over prompts.
        second: another over the same prompts.
        n_resamples: number of resamples.
        seed: same seed, same interval.
        level: coverage, between 0 and 1.

    Raises:
        DataError: the two are over different prompts; otherwise as `clustered_bootstrap`.
    """
    _check_same_prompts(first, second)
    return _interval((first, second), (1.0, -1.0), n_resamples=n_resamples, seed=seed, level=level)


def _interval(
    statistics: tuple[PromptStatistic, ...],
    signs: tuple[float, ...],
    *,
    n_resamples: int,
    seed: int,
    level: float,
) -> Interval:
    if n_resamples < 1 or not 0 < level < 1:
        raise DataError(
            f"got n_resamples = {n_resamples} and level = {level}; expected at least 1 resample "
            "and a level between 0 and 1, for example 2000 and 0.95."
        )
    n_prompts = len(statistics[0].prompts)

    def combined(counts: np.ndarray) -> np.ndarray:
        return sum(sign * s(counts) for s, sign in zip(statistics, signs, strict=True))

    chunks = _resampled_counts(n_prompts, n_resamples, seed)
    values = np.concatenate([combined(counts) for counts in chunks])
    defined = values[np.isfinite(values)]
    if len(defined) == 0:
        raise DataError(
            f"got a metric that is undefined in all {n_resamples} resamples of {n_prompts} "
            "prompt(s); expected prompts with both right and wrong answers. Bring more prompts."
        )
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    value = float(combined(np.ones((1, n_prompts)))[0])
    n_undefined = n_resamples - len(defined)
    return Interval(value, float(low), float(high), statistics[0].n, n_prompts, n_undefined)


def _resampled_counts(n_prompts: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each prompt is drawn, in chunks of (r, P) that fit in memory.

    Drawing indices and counting them is the plain bootstrap itself, so that an oracle that resamples
    rows with the same generator gets the same interval.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_CELLS // n_prompts)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        drawn = rng.integers(0, n_prompts, size=(rows, n_prompts))
        drawn += np.arange(rows)[:, None] * n_prompts
        counts = np.bincount(drawn.ravel(), minlength=rows * n_prompts)
        yield counts.reshape(rows, n_prompts).astype(np.float64)


# --------------------------------------------------------------------- kernels


@dataclass(frozen=True)
class _PairCredit:
    """Right x wrong pairs of each prompt: won (ties 1/2) and all."""

    won: np.ndarray
    n_pairs: np.ndarray


def _pair_credit(
    scores: np.ndarray, labels: np.ndarray, codes: np.ndarray, n_prompts: int
) -> _PairCredit:
    """Pairs won in each prompt by one sort: a right candidate beats the wrong ones below it."""
    order = np.lexsort((scores, codes))
    scores, labels, codes = scores[order], labels[order], codes[order]
    starts = _block_starts(scores, codes)
    right = np.add.reduceat(labels, starts)
    wrong = np.add.reduceat(1 - labels, starts)
    block_codes = codes[starts]
    n_wrong = np.bincount(block_codes, wrong, minlength=n_prompts)
    wrong_of_earlier_prompts = np.cumsum(n_wrong) - n_wrong
    below = np.cumsum(wrong) - wrong - wrong_of_earlier_prompts[block_codes]
    won = np.bincount(block_codes, right * (below + wrong / 2), minlength=n_prompts)
    return _PairCredit(won, np.bincount(block_codes, right, minlength=n_prompts) * n_wrong)


def _mixed_credit(
    scores: Sequence[float], labels: Sequence[float], prompt_ids: Sequence[object]
) -> tuple[_PairCredit, np.ndarray]:
    scores, labels = _scores_and_labels(scores, labels, binary=True)
    codes, prompts = _codes(prompt_ids, len(scores))
    credit = _pair_credit(scores, labels, codes, len(prompts))
    if not credit.n_pairs.any():
        raise LabelError(
            f"got {len(prompts)} prompt(s), none with both a right and a wrong candidate; expected "
            "at least one. Sample more answers a prompt, or prompts of middling difficulty."
        )
    return credit, prompts


def _block_starts(*sorted_keys: np.ndarray) -> np.ndarray:
    """Positions at which any of the keys changes."""
    changes = np.zeros(len(sorted_keys[0]), dtype=bool)
    changes[0] = True
    for key in sorted_keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changes)


def _sorted_block_means(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels by ascending score, tied ones replaced by their mean."""
    order = np.argsort(scores, kind="stable")
    starts = _block_starts(scores[order])
    sizes = np.diff(np.append(starts, len(scores)))
    return np.repeat(np.add.reduceat(labels[order], starts) / sizes, sizes)


def _top_credit(
    scores: np.ndarray, labels: np.ndarray, codes: np.ndarray, n_prompts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean label of the top-scored candidates of each prompt, and how many share the top."""
    top = np.full(n_prompts, -np.inf)
    np.maximum.at(top, codes, scores)
    is_top = scores == top[codes]
    n_top = np.bincount(codes[is_top], minlength=n_prompts)
    return np.bincount(codes[is_top], labels[is_top], minlength=n_prompts) / n_top, n_top


def _best_of_k_by_prompt(
    scores: np.ndarray, labels: np.ndarray, codes: np.ndarray, prompts: np.ndarray, k: int
) -> np.ndarray:
    sizes = np.bincount(codes, minlength=len(prompts))
    smallest = int(sizes.argmin())
    if not 1 <= k <= sizes[smallest]:
        raise DataError(
            f"got k = {k}, but prompt {str(prompts[smallest])!r} has {sizes[smallest]} "
            "candidate(s); expected 1 <= k <= the smallest number of candidates. Lower k, or "
            "sample more answers for this prompt."
        )
    rows_of_prompt = np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])
    weights = {int(size): subset_weights(int(size))[k - 1] for size in np.unique(sizes)}
    values = [
        weights[len(rows)] @ _sorted_block_means(scores[rows], labels[rows])
        for rows in rows_of_prompt
    ]
    return np.array(values)


def _calibration_gaps(scores: Sequence[float], labels: Sequence[float], n_bins: int) -> np.ndarray:
    """(n, bins): sigmoid(score) - label in the bin of the row, 0 elsewhere."""
    if n_bins < 1:
        raise RecipeError(f"got n_bins = {n_bins}; expected at least 1, usually 10.")
    scores, labels = _scores_and_labels(scores, labels, binary=True)
    probability = _sigmoid(scores)
    bins = np.minimum((probability * n_bins).astype(np.int64), n_bins - 1)
    gaps = np.zeros((len(scores), n_bins))
    gaps[np.arange(len(scores)), bins] = probability - labels
    return gaps


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-score)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -scores))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Numerator / denominator, NaN where the denominator is 0."""
    undefined = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)


# ---------------------------------------------------------------------- checks


def _finite_scores(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ScoreError(
            f"got {name} of shape {array.shape}; expected one number a row, at least one row."
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ScoreError(
            f"got {array[bad[0]]} at position {bad[0]} of {name} ({bad.size} in all); expected "
            "finite numbers. Find out why the scorer failed there; rows are never left out silently."
        )
    return array


def _check_length(values: np.ndarray, reference: np.ndarray, name: str) -> None:
    if values.shape != reference.shape:
        raise ScoreError(f"got {values.size} {name} for {reference.size} rows; expected one each.")


def _scores_and_labels(
    scores: Sequence[float], labels: Sequence[float], *, binary: bool
) -> tuple[np.ndarray, np.ndarray]:
    numbers = _finite_scores(scores, "scores")
    truth = np.asarray(labels, dtype=np.float64)
    _check_length(truth, numbers, "labels")
    bad = np.flatnonzero(~np.isfinite(truth) | (binary & (truth != 0) & (truth != 1)))
    if bad.size:
        wanted = "0 or 1" if binary else "a finite number"
        raise LabelError(
            f"got label {truth[bad[0]]} at position {bad[0]} ({bad.size} in all); expected "
            f"{wanted} for every row. Leave unlabelled rows out yourself and count them."
        )
    return numbers, truth


def _check_both_classes(labels: np.ndarray) -> None:
    if labels.min() == labels.max():
        raise LabelError(
            f"got {labels.size} label(s), all {labels[0]:g}; AUROC expected both right and wrong "
            "candidates. Bring data with both."
        )


def _codes(prompt_ids: Sequence[object], n: int) -> tuple[np.ndarray, np.ndarray]:
    if len(prompt_ids) != n:
        raise DataError(f"got {len(prompt_ids)} prompt_ids for {n} rows; expected one each.")
    return prompt_codes(prompt_ids)


def _check_same_prompts(first: PromptStatistic, second: PromptStatistic) -> None:
    if not np.array_equal(first.prompts, second.prompts):
        raise DataError(
            f"got statistics over different prompts ({len(first.prompts)} and "
            f"{len(second.prompts)}); expected the same ones, or the difference is not paired. "
            "Score the same answers with both."
        )


def _checked_weighting(got: str, choices: tuple[str, ...]) -> str:
    if got not in choices:
        raise RecipeError(
            f"got weighting {got!r}; expected one of {choices}. {did_you_mean(str(got), choices)}"
        )
    return got
