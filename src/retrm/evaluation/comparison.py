"""Two scorers on the same items: what differs, by how much, and what so many items could show.

    difference         of every official figure, both on the same resampled clusters
    McNemar            items that only one of the two gets right, exact
    smallest visible   (z_.975 + z_.8) x standard error of the difference = 2.80 errors: a true
                       difference of that size is found four times in five at the 5 % level
    agreement          share of preference pairs that both order alike, beside what two scorers of
                       these shares won would agree on if they were independent

Source: Dietterich 1998 (McNemar for classifiers); Card et al. 2020, arXiv 2010.06595 (power).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from retrm.errors import DataError
from retrm.evaluation.benchmarks import benchmark
from retrm.evaluation.benchmarks.base import Benchmark, Figure, ScoredItem
from retrm.evaluation.preferred import MOST_PAIRS, Preferences, preferences_of
from retrm.evaluation.score_file import ScoreFile, common_items
from retrm.evaluation.tables import resamples_of
from retrm.metrics import (
    N_RESAMPLES,
    Interval,
    Resamples,
    holm,
    mcnemar_p_value,
    mean_statistic,
    point_estimate,
    spearman_statistic,
)

POWER_ERRORS = 1.959964 + 0.841621  # z of .975 and of .8
FEWEST_CLUSTERS = 10
"""Prompts behind a figure below which its resamples are too few for a p-value or a standard error."""


@dataclass(frozen=True)
class PairedFigure:
    """One figure of both.

    Attributes:
        metric: in words.
        subset: "" = the whole benchmark.
        first: of the first scorer; None where the figure is undefined for it.
        second: of the second.
        difference: first - second, paired; None where either is undefined.
        p_value: two-sided, by bootstrap; None as the difference, and with fewer than
            `FEWEST_CLUSTERS` prompts.
        smallest_visible: the true difference that would be found four times in five; None where the
            standard error is unknown: with fewer than `FEWEST_CLUSTERS` prompts, or where all
            resamples agree.
        n: items behind it.
        is_headline: the benchmark's first figure.
        is_official: by the authors' rule.
    """

    metric: str
    subset: str
    first: Interval | None
    second: Interval | None
    difference: Interval | None
    p_value: float | None
    smallest_visible: float | None
    n: int
    is_headline: bool
    is_official: bool


@dataclass(frozen=True)
class McNemar:
    """Items that only one gets right.

    Attributes:
        subset: "" = the whole benchmark.
        n: items that both judged and whose labels leave something to get right.
        only_first: items that only the first got right.
        only_second: items that only the second got right.
        p_value: exact, two-sided; items of one prompt are not independent, so it is a little small
            where prompts repeat.
    """

    subset: str
    n: int
    only_first: int
    only_second: int
    p_value: float


@dataclass(frozen=True)
class Agreement:
    """How often both order a preference pair alike.

    Attributes:
        share: with interval; equal scores agree with nothing but equal scores.
        expected: of independent scorers that win, lose and tie as often as these.
        correlation: Spearman of the two margins over pairs, with interval; None where the margins of
            one are all the same.
        n_pairs: pairs, at most `MOST_PAIRS` of an item.
    """

    share: Interval
    expected: float
    correlation: Interval | None
    n_pairs: int


@dataclass(frozen=True)
class Disagreement:
    """An item on which the two differ.

    Attributes:
        item: its id.
        subset: of it.
        preferred: candidate that should win.
        other: candidate that should lose.
        first_margin: score difference of the first, in its standard deviations over all pairs.
        second_margin: the same of the second.
    """

    item: str
    subset: str
    preferred: int
    other: int
    first_margin: float
    second_margin: float


@dataclass(frozen=True)
class ScorerComparison:
    """Everything about two scorers on one benchmark."""

    benchmark: str
    title: str
    first: str
    second: str
    figures: tuple[PairedFigure, ...]
    mcnemar: tuple[McNemar, ...]
    agreement: Agreement | None
    disagreements: tuple[Disagreement, ...]
    n_items: int
    n_clusters: int
    n_overlong: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def compare_scorers(
    first: ScoreFile,
    second: ScoreFile,
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    n_shown: int = 20,
    threshold: float | None = None,
) -> ScorerComparison:
    """Put two scorers beside each other on the items that both judged.

    Args:
        first: scores of one.
        second: scores of the other.
        n_resamples: of the intervals.
        seed: of the intervals.
        n_shown: number of disagreements to list.
        threshold: of benchmarks that judge steps; None = their own, 0 for raw scores.

    Raises:
        DataError: other benchmarks, other items, or the same file twice.
    """
    if first.scorer == second.scorer and first.about == second.about:
        raise DataError(
            f"got {first.scorer} twice on {first.benchmark}; expected two scorers to compare"
        )
    kept, n_overlong = common_items([first, second])
    rule = benchmark(first.benchmark, threshold=threshold)
    sides = [file.take(kept) for file in (first, second)]
    resamples = resamples_of(sides[0], n_resamples=n_resamples, seed=seed)
    paired = _figures(
        rule.figures(sides[0]), rule.figures(sides[1]), resamples, _clusters_of_subsets(sides[0])
    )
    pairs = [preferences_of(rule, items, most=MOST_PAIRS, seed=seed) for items in sides]
    return ScorerComparison(
        benchmark=rule.name,
        title=rule.title,
        first=first.scorer,
        second=second.scorer,
        figures=paired,
        mcnemar=_mcnemar(rule, *sides),
        agreement=_agreement(*pairs, n_resamples=n_resamples, seed=seed),
        disagreements=_disagreements(sides[0], *pairs, n_shown),
        n_items=len(kept),
        n_clusters=len(resamples.prompts),
        n_overlong=max(n_overlong.values(), default=0),
    )


@dataclass(frozen=True)
class HeadlineDifference:
    """Two of several scorers.

    Attributes:
        first: name.
        second: name.
        difference: first - second of the headline, paired.
        p_value: two-sided, by bootstrap; None with fewer than `FEWEST_CLUSTERS` prompts.
        adjusted_p_value: after Holm, for all pairs of the scorers at once; None as the other.
    """

    first: str
    second: str
    difference: Interval
    p_value: float | None
    adjusted_p_value: float | None


@dataclass(frozen=True)
class Headlines:
    """The headline of several scorers on the same items, and every difference.

    Attributes:
        benchmark: its name.
        title: for people.
        metric: of the headline, with its subset.
        values: by scorer, as given.
        differences: of all pairs, in order.
        n_items: that all of them judged.
        n_clusters: that intervals resample.
    """

    benchmark: str
    title: str
    metric: str
    values: Mapping[str, Interval]
    differences: tuple[HeadlineDifference, ...]
    n_items: int
    n_clusters: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def compare_headlines(
    files: Sequence[ScoreFile],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    threshold: float | None = None,
) -> Headlines:
    """Every pair of several scorers by the headline, with p-values for looking at all of them.

    Args:
        files: of two or more scorers on one benchmark.
        n_resamples: of the intervals.
        seed: of the intervals.
        threshold: of benchmarks that judge steps; None = their own, 0 for raw scores.

    Raises:
        DataError: fewer than two scorers, one twice, other benchmarks or items, or a headline that is
            undefined for somebody.
    """
    names = [file.scorer for file in files]
    if len(files) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"got scores of {', '.join(names) or 'nobody'}; expected two or more, each once"
        )
    kept, _ = common_items(files)
    rule = benchmark(files[0].benchmark, threshold=threshold)
    sides = [file.take(kept) for file in files]
    resamples = resamples_of(sides[0], n_resamples=n_resamples, seed=seed)
    found = [next(f for f in rule.figures(items) if f.is_headline) for items in sides]
    for name, figure in zip(names, found, strict=True):
        if not np.isfinite(point_estimate(figure.statistic)):
            raise DataError(f"{rule.title}: {figure.metric} is undefined on these items for {name}")
    pairs = list(combinations(range(len(files)), 2))
    p_values: list[float | None] = [None] * len(pairs)
    adjusted = p_values
    if min(len(resamples.prompts), found[0].n) >= FEWEST_CLUSTERS:
        known = [resamples.p_value(found[i].statistic, found[j].statistic) for i, j in pairs]
        p_values, adjusted = [*known], [float(p) for p in holm(known)]
    differences = tuple(
        HeadlineDifference(
            names[i],
            names[j],
            resamples.difference(found[i].statistic, found[j].statistic),
            p,
            of_all,
        )
        for (i, j), p, of_all in zip(pairs, p_values, adjusted, strict=True)
    )
    return Headlines(
        benchmark=rule.name,
        title=rule.title,
        metric=": ".join(filter(None, (found[0].subset, found[0].metric))),
        values={n: resamples.interval(f.statistic) for n, f in zip(names, found, strict=True)},
        differences=differences,
        n_items=len(kept),
        n_clusters=len(resamples.prompts),
    )


def _clusters_of_subsets(items: Sequence[ScoredItem]) -> dict[str, int]:
    """How many clusters each subset of the items has."""
    found: dict[str, set[str]] = {}
    for item in items:
        found.setdefault(item.subset, set()).add(item.cluster)
    return {subset: len(clusters) for subset, clusters in found.items()}


def _figures(
    first: Sequence[Figure],
    second: Sequence[Figure],
    resamples: Resamples,
    clusters: Mapping[str, int],
) -> tuple[PairedFigure, ...]:
    """Figures of both; of a figure that is of no single subset, `n` and all clusters bound its own."""
    n_all = len(resamples.prompts)
    return tuple(
        _paired(a, b, resamples, min(clusters.get(a.subset, n_all), a.n))
        for a, b in zip(first, second, strict=True)
    )


def _paired(first: Figure, second: Figure, resamples: Resamples, n_clusters: int) -> PairedFigure:
    a, b = first.statistic, second.statistic
    known = [bool(np.isfinite(point_estimate(statistic))) for statistic in (a, b)]
    is_enough = all(known) and n_clusters >= FEWEST_CLUSTERS
    error = resamples.standard_error(a, b) if is_enough else math.nan
    return PairedFigure(
        metric=first.metric,
        subset=first.subset,
        first=resamples.interval(a) if known[0] else None,
        second=resamples.interval(b) if known[1] else None,
        difference=resamples.difference(a, b) if all(known) else None,
        p_value=resamples.p_value(a, b) if is_enough else None,
        smallest_visible=POWER_ERRORS * error if math.isfinite(error) and error > 0 else None,
        n=first.n,
        is_headline=first.is_headline,
        is_official=first.is_official,
    )


def _mcnemar(
    rule: Benchmark, first: Sequence[ScoredItem], second: Sequence[ScoredItem]
) -> tuple[McNemar, ...]:
    """Of the whole benchmark and of each subset; items without a verdict take no part."""
    verdicts = [[rule.is_right(item) for item in items] for items in (first, second)]
    judged = [row for row, verdict in enumerate(verdicts[0]) if verdict is not None]
    right = np.array(verdicts)[:, judged].astype(bool)
    subsets = np.array([first[row].subset for row in judged])
    names = list(dict.fromkeys(subsets.tolist()))
    made = []
    for name in ("", *(names if len(names) > 1 else ())):
        one, two = right[:, subsets == name] if name else right
        only_first, only_second = int((one & ~two).sum()), int((two & ~one).sum())
        p = mcnemar_p_value(only_first, only_second)
        made.append(McNemar(name, len(one), only_first, only_second, p))
    return tuple(made)


def _agreement(
    first: Preferences, second: Preferences, *, n_resamples: int, seed: int
) -> Agreement | None:
    if not len(first.margins):
        return None
    same = first.won == second.won
    statistic = mean_statistic(same, first.clusters)
    resamples = Resamples(statistic.prompts, n_resamples, seed)
    shares = [[(p.won == outcome).mean() for outcome in (0, 0.5, 1)] for p in (first, second)]
    correlation = spearman_statistic(first.margins, second.margins, first.clusters)
    is_known = np.isfinite(point_estimate(correlation))
    return Agreement(
        share=resamples.interval(statistic),
        expected=float(np.dot(*shares)),
        correlation=resamples.interval(correlation) if is_known else None,
        n_pairs=len(same),
    )


def _disagreements(
    items: Sequence[ScoredItem], first: Preferences, second: Preferences, n_shown: int
) -> tuple[Disagreement, ...]:
    """Pairs that one orders right and the other wrong, largest gap of margins first; one an item."""
    if not len(first.margins):
        return ()
    scaled = [p.margins / (p.margins.std() or 1.0) for p in (first, second)]
    opposite = np.flatnonzero(np.sign(scaled[0]) * np.sign(scaled[1]) < 0)
    order = opposite[np.argsort(-np.abs(scaled[0] - scaled[1])[opposite], kind="stable")]
    shown: dict[str, Disagreement] = {}
    for row in order:
        item = items[first.item_rows[row]]
        found = Disagreement(
            item=item.id,
            subset=item.subset,
            preferred=int(first.preferred[row]),
            other=int(first.others[row]),
            first_margin=float(scaled[0][row]),
            second_margin=float(scaled[1][row]),
        )
        shown.setdefault(item.id, found)
        if len(shown) == n_shown:
            break
    return tuple(shown.values())
