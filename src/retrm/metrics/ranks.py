"""Spearman's rank correlation as a function of how often each prompt was drawn.

    rho = Pearson correlation of the ranks of x and of y, equal values at the mean of their ranks

In a resample every row counts as often as its prompt was drawn, and ranks are those of the resample:
the rank of a value is the weight below it + half the weight at it. From `EXACT_ROWS` on, where that
would take minutes, covariance and variances of the ranks follow their first order expansion in the
weights instead, of which the error is of order 1/n; the value itself is exact in both ways.
Sources: Spearman 1904; Davison & Hinkley 1997, section 2.7 (influence of a row on a statistic).

>>> from retrm.metrics.ranks import spearman_statistic
>>> spearman_statistic([1, 2, 3, 4], [1, 3, 2, 4], "abcd")([[1, 1, 1, 1]]).round(3)
array([0.8])
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrm.metrics.checks import check_length, checked_codes, finite_scores
from retrm.metrics.kernels import ratio
from retrm.metrics.statistics import PromptStatistic, SumsStatistic, sums_statistic

EXACT_ROWS = 1_000
# Cells of float64 that are held at once: 8 MB.
_CELLS = 1_000_000
# A variance below this share of the largest possible one is rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class SpearmanStatistic:
    """Rank correlation, every row weighted by how often its prompt was drawn.

    Attributes:
        prompts: (P,) ids, sorted.
        codes: (n,) prompt of every row.
        first: (n,) which distinct value of x, ascending.
        second: (n,) the same of y.
        n: rows.
    """

    prompts: np.ndarray
    codes: np.ndarray
    first: np.ndarray
    second: np.ndarray
    n: int

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values; NaN where x or y is the same everywhere."""
        counts = np.asarray(counts, dtype=np.float64)
        step = max(1, _CELLS // self.n)
        parts = [self._some(counts[i : i + step]) for i in range(0, len(counts), step)]
        return np.concatenate(parts)

    def _some(self, counts: np.ndarray) -> np.ndarray:
        weights = counts[:, self.codes]
        total = np.maximum(weights.sum(axis=1, keepdims=True), _ROUNDING)  # may have drawn no row
        # In (0, 1), less the mean, which is one half by construction.
        first, second = (
            _middle(weights, codes)[:, codes] / total - 0.5 for codes in (self.first, self.second)
        )
        weighted = weights / total * first
        both = (weighted * second).sum(axis=1)
        own = (weighted * first).sum(axis=1)
        other = (weights / total * second**2).sum(axis=1)
        return _correlation(both, own, other)


def _correlation(both: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Covariance / sqrt(variance x variance); NaN where a variance is 0."""
    bottom = np.where((first <= _ROUNDING) | (second <= _ROUNDING), 0.0, np.sqrt(first * second))
    return ratio(both, bottom)


def _middle(weights: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(R, V) weight below each distinct value + half of that at it."""
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max() + 1))
    at = np.add.reduceat(weights[:, order], starts, axis=1)
    return np.cumsum(at, axis=1) - at / 2


def _expanded(first: np.ndarray, second: np.ndarray, prompt_ids: Sequence[object]) -> SumsStatistic:
    """The same to first order in the weights of the rows.

    With u, v the centred ranks, the covariance is mean(u v), and a row changes it by

        u v + above_x(v) + above_y(u) - 3 mean(u v)

    where above_x(v) is the mean over all rows of v where x is above the row's own, half where equal:
    those are the ranks that the row lifts. Variances likewise.
    """
    n = len(first)
    u, v = (centred_ranks(codes) for codes in (first, second))

    def above(codes: np.ndarray, values: np.ndarray) -> np.ndarray:
        return values.mean() - _middle(values[None], codes)[0, codes] / n

    moments = np.array([(u * v).mean(), (u * u).mean(), (v * v).mean()])
    covariance = u * v + above(first, v) + above(second, u)
    variances = (u * u + 2 * above(first, u), v * v + 2 * above(second, v))
    influence = np.stack([covariance, *variances], axis=1)
    columns = np.column_stack([np.ones(n), influence - 3 * moments])

    def function(sums: np.ndarray) -> np.ndarray:
        both, own, other = (moments + sums[:, 1:] / sums[:, :1]).T
        return _correlation(both, np.maximum(own, 0.0), np.maximum(other, 0.0))

    return sums_statistic(columns, prompt_ids, function)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rho of all rows, NaN where x or y is the same everywhere; without prompts.

    Args:
        x: (n,) finite numbers.
        y: (n,) finite numbers.

    Raises:
        ScoreError: a number is NaN or infinite, or there is not one of each a row.
    """
    first, second = finite_scores(x, "x"), finite_scores(y, "y")
    check_length(second, first, "values of y")
    u, v = (centred_ranks(values) for values in (first, second))
    moments = ((u * v).mean(), (u * u).mean(), (v * v).mean())
    return float(_correlation(*(np.array([moment]) for moment in moments))[0])


def centred_ranks(values: Sequence[float]) -> np.ndarray:
    """(n,) ranks of all rows as shares of n, less their mean; equal values share theirs.

    Scores of several heads, as those out of fold, can be put together as ranks within each of them.

    >>> centred_ranks([3.0, 1.0, 3.0, 2.0]).tolist()
    [0.25, -0.375, 0.25, -0.125]
    """
    _, codes = np.unique(values, return_inverse=True)
    n = len(codes)
    return _middle(np.ones((1, n)), codes)[0, codes] / n - 0.5


def spearman_statistic(
    x: Sequence[float], y: Sequence[float], prompt_ids: Sequence[object]
) -> PromptStatistic:
    """Spearman's rho over rows, for `clustered_bootstrap`.

    Args:
        x: (n,) finite numbers.
        y: (n,) finite numbers.
        prompt_ids: (n,) the prompt of every row.

    Raises:
        ScoreError: a number is NaN or infinite, or there is not one of each a row.
    """
    first, second = finite_scores(x, "x"), finite_scores(y, "y")
    check_length(second, first, "values of y")
    codes, prompts = checked_codes(prompt_ids, len(first))
    ranks = [np.unique(values, return_inverse=True)[1] for values in (first, second)]
    if len(first) > EXACT_ROWS:
        return _expanded(*ranks, prompt_ids)
    return SpearmanStatistic(prompts, codes, *ranks, len(first))
