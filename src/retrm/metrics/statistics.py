"""Metrics as functions of how often each prompt was drawn, so that no resample touches the rows again.

    counts (R, P)  ->  value of the metric in each of the R resamples

Answers to one prompt are not independent, so intervals resample PROMPTS with all their rows. Here are
the protocol, ratios of sums (means over rows, prompts or pairs), and the two ways to put
statistics together: their mean, and the difference of two. Those of right x wrong pairs stand in
`retrm.metrics.pairs`.

>>> from retrm.metrics.statistics import mean_statistic
>>> mean_statistic([1, 0, 1, 1], ["a", "a", "b", "c"])([[1, 1, 1], [2, 1, 0]])
array([0.75, 0.6 ])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from retrm.errors import DataError
from retrm.metrics.checks import (
    checked_codes,
    checked_scores_and_labels,
    checked_weighting,
    finite_scores,
)
from retrm.metrics.kernels import ratio, sorted_block_means, top_credit
from retrm.metrics.points import subset_weights


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


@dataclass(frozen=True, eq=False)
class RatioStatistic:
    """Ratio sum(counts * numerator) / sum(counts * denominator): means over rows, prompts or pairs.

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
        return ratio(counts @ self.numerator, counts @ self.denominator)


@dataclass(frozen=True, eq=False)
class SumsStatistic:
    """Any function of sums over rows: F1 of counts, weighted means of subsets, products of shares.

    Attributes:
        prompts: (P,) ids, sorted.
        sums: (P, C) totals of each prompt, a column a quantity.
        function: (R, C) summed columns -> (R,) values; NaN where it is undefined.
        n: rows behind the metric.
    """

    prompts: np.ndarray
    sums: np.ndarray
    function: Callable[[np.ndarray], np.ndarray]
    n: int

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.function(counts @ self.sums)


@dataclass(frozen=True, eq=False)
class AverageStatistic:
    """Mean of several statistics inside each resample: split seeds, random subspaces.

    Attributes:
        members: statistics over the same prompts.

    Raises:
        DataError: no members, or members over different prompts.
    """

    members: tuple[PromptStatistic, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise DataError("got no statistics to average; expected at least one.")
        for other in self.members[1:]:
            check_same_prompts(self.members[0], other)

    @property
    def prompts(self) -> np.ndarray:
        """(P,) ids, sorted."""
        return self.members[0].prompts

    @property
    def n(self) -> int:
        """Rows behind the first member."""
        return self.members[0].n

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values; NaN where any member is undefined."""
        return sum(term(counts) for term in self._terms) / len(self.members)

    @cached_property
    def _terms(self) -> tuple[PromptStatistic, ...]:
        """Statistics with the same sum: ratios over one denominator are added up first.

        A hundred random subspaces on the same answers then cost as much as one.
        """
        alike: dict[bytes, list[RatioStatistic]] = {}
        others: list[PromptStatistic] = []
        for member in self.members:
            if isinstance(member, RatioStatistic):
                alike.setdefault(member.denominator.tobytes(), []).append(member)
            else:
                others.append(member)
        sums = [
            RatioStatistic(m[0].prompts, sum(r.numerator for r in m), m[0].denominator, m[0].n)
            for m in alike.values()
        ]
        return (*sums, *others)


@dataclass(frozen=True, eq=False)
class DifferenceStatistic:
    """First - second inside each resample.

    Attributes:
        first: a statistic.
        second: another over the same prompts.

    Raises:
        DataError: the two are over different prompts.
    """

    first: PromptStatistic
    second: PromptStatistic

    def __post_init__(self) -> None:
        check_same_prompts(self.first, self.second)

    @property
    def prompts(self) -> np.ndarray:
        """(P,) ids, sorted."""
        return self.first.prompts

    @property
    def n(self) -> int:
        """Rows behind the first."""
        return self.first.n

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values; NaN where either is undefined."""
        return self.first(counts) - self.second(counts)


def point_estimate(statistic: PromptStatistic) -> float:
    """The value on all prompts, each counted once."""
    return float(statistic(np.ones((1, len(statistic.prompts))))[0])


def check_same_prompts(first: PromptStatistic, second: PromptStatistic) -> None:
    """Refuse statistics whose counts would mean different prompts.

    Raises:
        DataError: the prompts differ.
    """
    if not np.array_equal(first.prompts, second.prompts):
        raise DataError(
            f"got statistics over different prompts ({len(first.prompts)} and "
            f"{len(second.prompts)}); expected the same ones, or the difference is not paired. "
            "Score the same answers with both."
        )


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
    numbers = finite_scores(values, "values")
    codes, prompts = checked_codes(prompt_ids, len(numbers))
    totals = np.bincount(codes, numbers, minlength=len(prompts))
    sizes = np.bincount(codes, minlength=len(prompts)).astype(np.float64)
    if checked_weighting(weighting, ("row", "prompt")) == "prompt":
        totals, sizes = totals / sizes, np.ones(len(prompts))
    return RatioStatistic(prompts, totals, sizes, len(numbers))


def sums_statistic(
    columns: np.ndarray,
    prompt_ids: Sequence[object],
    function: Callable[[np.ndarray], np.ndarray],
    *,
    n: int | None = None,
) -> SumsStatistic:
    """A function of column sums.

    Args:
        columns: (n, C) finite numbers, a row each with 0 where it takes no part.
        prompt_ids: (n,) the prompt of every row.
        function: (R, C) summed columns -> (R,) values; divisions by zero may be left to NaN.
        n: rows behind the metric; None = all.

    Raises:
        ScoreError: a value is NaN or infinite.
    """
    table = np.asarray(columns, dtype=np.float64)
    finite_scores(table.ravel(), "columns")
    codes, prompts = checked_codes(prompt_ids, len(table))
    sums = np.zeros((len(prompts), table.shape[1]))
    np.add.at(sums, codes, table)
    return SumsStatistic(prompts, sums, function, len(table) if n is None else n)


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
    scores, labels = checked_scores_and_labels(scores, labels, binary=False)
    codes, prompts = checked_codes(prompt_ids, len(scores))
    if k is None:
        values, _ = top_credit(scores, labels, codes, len(prompts))
    else:
        values = _best_of_k_by_prompt(scores, labels, codes, prompts, k)
    return RatioStatistic(prompts, values, np.ones(len(prompts)), len(scores))


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
        weights[len(rows)] @ sorted_block_means(scores[rows], labels[rows])
        for rows in rows_of_prompt
    ]
    return np.array(values)
