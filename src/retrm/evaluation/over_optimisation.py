"""How far a scorer may be trusted with more and more candidates: the label of what is kept, against N.

    gold(N)  = mean label of the top-scored of N candidates
    proxy(N) = mean score of the same
    loss     = max over N of gold(N) - gold(all)

both the exact expectation over subsets of N of the M candidates (`metrics.expected_best_of_k`); equal
scores share their labels. The proxy can only rise. Where gold falls while it rises, the scorer is
over-optimised: Gao, Schulman & Hilton 2022, arXiv 2210.10760, section 3. The largest of many noisy
values is too large on average, so a small loss is no sign; look at its interval, and at the curve.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrm.errors import DataError
from retrm.evaluation.benchmarks.base import ScoredItem, clusters_of
from retrm.evaluation.benchmarks.pairs import labels_of
from retrm.evaluation.score_file import ScoreFile
from retrm.metrics import (
    N_RESAMPLES,
    Interval,
    Resamples,
    SumsStatistic,
    expected_best_of_k,
    sums_statistic,
)


@dataclass(frozen=True)
class CurvePoint:
    """Best of N.

    Attributes:
        n: candidates.
        gold: mean label of the one that is kept.
        proxy: its mean score.
    """

    n: int
    gold: Interval
    proxy: Interval


@dataclass(frozen=True)
class OverOptimisation:
    """The two curves.

    Attributes:
        benchmark: its name.
        scorer: its name.
        points: N = 1, 2, ... up to the smallest number of candidates of any item.
        best_n: the N at which gold is highest; the smallest of several.
        loss: gold there - gold at the end, the maximum sought anew in each resample.
        n_items: items with a label for every candidate.
        n_tied: items in which the highest score is shared.
        notes: sentences a reader must see.
    """

    benchmark: str
    scorer: str
    points: tuple[CurvePoint, ...]
    best_n: int
    loss: Interval
    n_items: int
    n_tied: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def over_optimisation(
    scores: ScoreFile, *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> OverOptimisation:
    """The curves of one scorer on items whose candidates all have labels.

    Args:
        scores: of the scorer, on best_of_n, ppe_correctness or whatever has `labels` in its facts.
        n_resamples: of the intervals.
        seed: of the intervals.

    Raises:
        DataError: items without labels, or without a score for each.
    """
    items = list(scores.items().values())
    labels = [labels_of(item, scores.benchmark) for item in items]
    if not items:
        raise DataError(
            f"{scores.benchmark}: no item has scores of all its candidates by {scores.scorer}"
        )
    sizes = [len(item.scores) for item in items]
    longest = min(sizes)
    gold, proxy = (
        np.array(
            [expected_best_of_k(i.scores, v)[:longest] for i, v in zip(items, of, strict=True)]
        )
        for of in (labels, [item.scores for item in items])
    )
    resamples = Resamples(np.unique(clusters_of(items)).astype(object), n_resamples, seed)
    points = tuple(
        CurvePoint(
            k + 1, *(resamples.interval(_mean(items, curve, [k])) for curve in (gold, proxy))
        )
        for k in range(longest)
    )
    means = gold.mean(axis=0)
    notes = [] if max(sizes) == longest else [f"items have {longest} to {max(sizes)} candidates"]
    if scores.n_overlong:
        notes.append(f"{scores.n_overlong:,} items are too long for {scores.scorer}")
    return OverOptimisation(
        benchmark=scores.benchmark,
        scorer=scores.scorer,
        points=points,
        # Sums of the same labels in another order differ by rounding.
        best_n=int(np.flatnonzero(means >= means.max() - 1e-12)[0]) + 1,
        loss=resamples.interval(_mean(items, gold, range(longest), is_loss=True)),
        n_items=len(items),
        n_tied=sum(int((item.scores == item.scores.max()).sum() > 1) for item in items),
        notes=tuple(notes),
    )


def has_labels(scores: ScoreFile) -> bool:
    """Whether every item says which of its candidates are right."""
    return all(len(row.item.facts.get("labels", ())) == len(row.item.scores) for row in scores.rows)


def _mean(
    items: Sequence[ScoredItem],
    curves: np.ndarray,
    columns: Sequence[int],
    *,
    is_loss: bool = False,
) -> SumsStatistic:
    """Mean over items at one N, or the loss of the mean curve."""
    table = np.column_stack([curves[:, list(columns)], np.ones(len(items))])

    def function(sums: np.ndarray) -> np.ndarray:
        means = sums[:, :-1] / sums[:, -1:]
        return means.max(axis=1) - means[:, -1] if is_loss else means[:, 0]

    return sums_statistic(table, clusters_of(items), function)
