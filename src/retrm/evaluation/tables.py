"""The official tables of a benchmark: every scorer beside the baselines, with intervals.

All scorers are measured on the same items: one that is over-long for anybody takes no part for all,
so differences are paired. Intervals resample clusters within strata (the subsets that a cluster's items
lie in), so that a macro average keeps its subsets in every resample.

Where items stand in the training data, a note gives the headline of everybody on the rest.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from retrm.errors import DataError
from retrm.evaluation.benchmarks import benchmark
from retrm.evaluation.benchmarks.base import Figure, ScoredItem
from retrm.evaluation.score_file import Kind, ScoreFile, common_items
from retrm.metrics import N_RESAMPLES, Interval, Resamples, point_estimate
from retrm.scorers.open import REMOTE

LENGTH_BASELINES = ("longest", "shortest")
SERVERS = tuple(f"{kind}:" for kind in REMOTE)
NOT_COMPARED = (
    "baselines are on no scale where a fixed threshold means anything, so they are not compared by "
    "figures that hang on one; only by those whose threshold was chosen on scores"
)


@dataclass(frozen=True)
class FigureRow:
    """One figure of one scorer.

    Attributes:
        scorer: its name.
        kind: scorer or baseline.
        metric: in words.
        subset: "" = the whole benchmark.
        value: with its 95 % interval; None where the figure is undefined on these items.
        n: items behind it.
        n_ties: items whose verdict hangs on equal scores.
        chance: what guessing reaches.
        is_headline: the benchmark's own first figure.
        is_official: by the authors' rule.
        note: a sentence.
        minus: paired differences to the baselines, by name.
        beaten_by: length baselines that do at least as well.
        better: which way is better.
    """

    scorer: str
    kind: Kind
    metric: str
    subset: str
    value: Interval | None
    n: int
    n_ties: int
    chance: float | None
    is_headline: bool
    is_official: bool
    note: str
    minus: Mapping[str, Interval] = field(default_factory=dict)
    beaten_by: tuple[str, ...] = ()
    better: str = "higher"


@dataclass(frozen=True)
class BenchmarkTable:
    """All figures of one benchmark.

    Attributes:
        name: of the benchmark.
        title: for people.
        rows: figures in the benchmark's order, scorers in theirs, baselines last.
        n_items: that took part.
        n_clusters: that intervals resample.
        n_overlong: items that took no part, by the scorer that they are too long for.
        n_cut: answers whose prompt was cut, by scorer.
        excluded: records that the official rule leaves out, by reason.
        notes: sentences a reader must see.
    """

    name: str
    title: str
    rows: tuple[FigureRow, ...]
    n_items: int
    n_clusters: int
    n_overlong: Mapping[str, int]
    n_cut: Mapping[str, int]
    excluded: Mapping[str, int]
    notes: tuple[str, ...]

    def of(self, scorer: str) -> tuple[FigureRow, ...]:
        """The figures of one scorer."""
        return tuple(row for row in self.rows if row.scorer == scorer)

    def headline(self, scorer: str) -> FigureRow:
        """The first figure of one scorer."""
        return next(row for row in self.of(scorer) if row.is_headline)

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(dict.fromkeys(row.scorer for row in self.rows))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def measure(
    files: Sequence[ScoreFile],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    met: Collection[str] = (),
    threshold: float | None = None,
) -> BenchmarkTable:
    """The table of one benchmark from the scores of everybody on it.

    Args:
        files: one a scorer.
        n_resamples: of the clusters.
        seed: of the resamples.
        met: ids of items that stand in the training data: all figures are of all items, and a note
            gives the headlines without these.
        threshold: of benchmarks that judge steps; None = their own, 0 for raw scores.

    Raises:
        DataError: files of several benchmarks or of different items, or one scorer twice.
    """
    if not files:
        raise DataError("got no scores; expected at least one file")
    _check_once(files)
    kept, n_overlong = common_items(files)
    rule = benchmark(files[0].benchmark, threshold=threshold)
    first = files[0].items()
    resamples = resamples_of([first[i] for i in kept], n_resamples=n_resamples, seed=seed)
    ordered = sorted(files, key=lambda file: file.kind == "baseline")
    figures = {}
    for file in ordered:
        items = file.items()
        figures[file.scorer] = rule.figures([items[i] for i in kept])
    rows = [
        _row(file, number, figures, ordered, resamples)
        for number in range(len(figures[ordered[0].scorer]))
        for file in ordered
    ]
    return BenchmarkTable(
        name=rule.name,
        title=rule.title,
        rows=tuple(rows),
        n_items=len(kept),
        n_clusters=len(resamples.prompts),
        n_overlong=n_overlong,
        n_cut={file.scorer: file.n_cut for file in files if file.n_cut},
        excluded=dict(files[0].excluded),
        notes=(
            *files[0].notes,
            *_notes(ordered, figures),
            *_on_the_rest(files, met, n_resamples, seed, threshold),
        ),
    )


def _on_the_rest(
    files: Sequence[ScoreFile],
    met: Collection[str],
    n_resamples: int,
    seed: int,
    threshold: float | None,
) -> list[str]:
    """A note with the headline of everybody on the items that training data do not hold."""
    if not met:
        return []
    known = set(met)
    rest = [replace(f, rows=tuple(r for r in f.rows if r.item.id not in known)) for f in files]
    if not rest[0].rows:
        return ["every item stands in the training data: there is no figure on others"]
    try:
        table = measure(rest, n_resamples=n_resamples, seed=seed, threshold=threshold)
    except DataError as error:  # a rule may need what was left out, such as both rows of a pair
        return [f"no figure on the items that do not stand in the training data: {error}"]
    rows = [table.headline(name) for name in table.scorers]
    figures = [f"{row.scorer} {_words(row.value)}" for row in rows]
    return [
        f"{rows[0].metric} on the {table.n_items:,} items that do not stand in the training data: "
        f"{', '.join(figures)}"
    ]


def _words(value: Interval | None) -> str:
    return "-" if value is None else f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def resamples_of(
    items: Sequence[ScoredItem], *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Resamples:
    """Clusters of the items, drawn within strata: the subsets that a cluster's items lie in."""
    subsets: dict[str, set[str]] = {}
    for item in items:
        subsets.setdefault(item.cluster, set()).add(item.subset)
    clusters = np.array(sorted(subsets), dtype=object)
    strata = ["\x00".join(sorted(subsets[cluster])) for cluster in clusters]
    return Resamples(clusters, n_resamples, seed, strata=strata)


def _notes(files: Sequence[ScoreFile], figures: Mapping[str, Sequence[Figure]]) -> list[str]:
    """What no figure shows: baselines without a threshold, servers that squash their scores."""
    made = []
    if any(f.kind == "baseline" and any(_fixed(figures[f.scorer])) for f in files):
        made.append(NOT_COMPARED)
    made += [
        f"all scores of {file.scorer} lie between 0 and 1: its server may apply a sigmoid, which "
        "changes figures that need margins or a threshold at 0; ask it for raw scores"
        for file in files
        if file.scorer.startswith(SERVERS) and _are_all_in_unit(file)
    ]
    return made


def _fixed(figures: Sequence[Figure]) -> list[bool]:
    return [figure.by_fixed_threshold for figure in figures]


def _are_all_in_unit(file: ScoreFile) -> bool:
    scores = np.concatenate([row.item.scores for row in file.rows])
    scores = scores[np.isfinite(scores)]  # over-long answers have none
    return bool(len(scores) and (scores >= 0).all() and (scores <= 1).all())


def _check_once(files: Sequence[ScoreFile]) -> None:
    names = [file.scorer for file in files]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"got scores of {twice[0]!r} twice for {files[0].benchmark}; expected each scorer once"
        )


def _row(
    file: ScoreFile,
    number: int,
    figures: Mapping[str, Sequence[Figure]],
    ordered: Sequence[ScoreFile],
    resamples: Resamples,
) -> FigureRow:
    figure = figures[file.scorer][number]
    minus: dict[str, Interval] = {}
    beaten_by = []
    value = _interval(figure, resamples)
    if file.kind == "scorer" and value is not None and not figure.by_fixed_threshold:
        for other in (f.scorer for f in ordered if f.kind == "baseline"):
            statistic = figures[other][number].statistic
            theirs = point_estimate(statistic)
            if np.isfinite(theirs):
                minus[other] = resamples.difference(figure.statistic, statistic)
                if other in LENGTH_BASELINES and _reaches(theirs, value.value, figure.better):
                    beaten_by.append(other)
    return FigureRow(
        scorer=file.scorer,
        kind=file.kind,
        metric=figure.metric,
        subset=figure.subset,
        value=value,
        n=figure.n,
        n_ties=figure.n_ties,
        chance=figure.chance,
        is_headline=figure.is_headline,
        is_official=figure.is_official,
        note=figure.note,
        minus=minus,
        beaten_by=tuple(beaten_by),
        better=figure.better,
    )


def _reaches(theirs: float, ours: float, better: str) -> bool:
    """Whether a baseline does at least as well; never where neither way is better."""
    return {"higher": theirs >= ours, "lower": theirs <= ours, "neither": False}[better]


def _interval(figure: Figure, resamples: Resamples) -> Interval | None:
    if not np.isfinite(point_estimate(figure.statistic)):
        return None
    return resamples.interval(figure.statistic)
