"""What a benchmark is: raw records become items, scores of items become figures.

    records -> items (answers of one prompt, and what the rule needs to know) -> scores -> figures

A benchmark never sees a scorer: whatever gives one number an answer can be measured, also from a file
of scores that were computed long ago. Everything that the official rule needs beside the scores
stands in `Item.facts` (plain JSON), so that figures can be computed again without data or model.

A step benchmark is no exception: an answer that is judged step by step is a list of prefixes, the
candidate i ending with step i. Every prefix is read as an answer of its own.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from retrm.errors import DataError, did_you_mean
from retrm.evaluation.benchmarks.source import Source
from retrm.metrics import PromptStatistic, SumsStatistic, point_estimate, sums_statistic
from retrm.records import Answer, Prompt


@dataclass(frozen=True)
class Item:
    """Candidates of one prompt that are judged together.

    Attributes:
        id: unique inside the benchmark.
        subset: that the official table names; never empty.
        cluster: what intervals resample: items with the same problem or conversation share it.
        answers: the candidates in the order in which the rule counts them.
        facts: what the rule needs beside scores, plain JSON: labels, numbers of right answers.
        are_prefixes: whether candidate i is the beginning of candidate i + 1: a solution step by step.
        where: source for messages.
    """

    id: str
    subset: str
    cluster: str
    answers: tuple[Answer, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    are_prefixes: bool = False
    where: str = ""


@dataclass(frozen=True)
class ScoredItem:
    """What remains of an item once its candidates have scores.

    Attributes:
        id: as in `Item`.
        subset: as in `Item`.
        cluster: as in `Item`.
        facts: as in `Item`.
        n_characters: (k,) of each candidate's text.
        scores: (k,) float64, finite, higher is better.
    """

    id: str
    subset: str
    cluster: str
    facts: Mapping[str, Any]
    n_characters: tuple[int, ...]
    scores: np.ndarray


@dataclass(frozen=True)
class BenchmarkData:
    """The items of a benchmark, and what was left out of it.

    Attributes:
        name: of the benchmark.
        items: all that take part.
        excluded: number of records that the official rule leaves out, by reason; printed.
        notes: sentences a reader of the figures must see ("the math split is missing").
    """

    name: str
    items: tuple[Item, ...]
    excluded: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for item in self.items:
            if item.id in seen:
                raise DataError(
                    f"{item.where}: the id {item.id!r} stands at {seen[item.id]} already; expected "
                    f"every item of {self.name} once. Remove the copy"
                )
            seen[item.id] = item.where
        if not self.items:
            raise DataError(f"{self.name}: no items; expected at least one. Check the path")

    def some(self, limit: int, *, seed: int = 0) -> "BenchmarkData":
        """About `limit` items of each subset, drawn by cluster, those of a cluster together.

        Rules may compare the items of a cluster, as RewardBench 2 does. Whole clusters are taken while
        they fit, at least one.

        Raises:
            DataError: `limit` is below 1.
        """
        if limit < 1:
            raise DataError(f"got a limit of {limit} items; expected at least 1 of each subset")
        kept: set[str] = set()
        subsets: dict[str, list[Item]] = {}
        for item in self.items:
            subsets.setdefault(item.subset, []).append(item)
        for items in subsets.values():
            kept |= _whole_clusters(items, limit, seed)
        items = tuple(item for item in self.items if item.id in kept)
        if len(items) == len(self.items):
            return self
        most = max(map(len, by_subset(items).values()))
        about = "at most" if most <= limit else "about"
        note = f"only {len(items)} of {len(self.items)} items, {about} {limit} of a subset"
        return replace(self, items=items, notes=(*self.notes, note))


@dataclass(frozen=True, eq=False)
class Figure:
    """One number of the official table, as a function of how often each cluster was drawn.

    Attributes:
        metric: in words: "accuracy", "F1", "MRR".
        subset: that it is of; "" = of the whole benchmark.
        statistic: value and intervals; its clusters are ALL of the benchmark, so that figures of
            several scorers and subsets are resampled together.
        n: items behind it.
        n_ties: items whose verdict hangs on equal scores.
        is_headline: whether it is what the benchmark's authors put first; exactly one is.
        chance: what guessing reaches; None where it is not known.
        is_official: False for figures of ours beside the official ones.
        note: a sentence, where the figure needs one.
        better: which way is better; "neither" = it only describes.
        by_fixed_threshold: whether it hangs on a number that scores are held against. Baselines have
            no such number, so none is compared with a scorer by it.
    """

    metric: str
    subset: str
    statistic: PromptStatistic
    n: int
    n_ties: int = 0
    is_headline: bool = False
    chance: float | None = None
    is_official: bool = True
    note: str = ""
    better: Literal["higher", "lower", "neither"] = "higher"
    by_fixed_threshold: bool = False


class Benchmark(Protocol):
    """One file each; stateless.

    Attributes:
        name: what a person types: "rm_bench".
        title: what a table prints: "RM-Bench".
        hub: ``hub:owner/name[:split][:config]`` sources that hold it, in order; () = none.
        pattern: glob patterns of its files under a local folder.
        paper: "Liu et al. 2024, arXiv 2410.16184".
    """

    name: str
    title: str
    hub: tuple[str, ...]
    pattern: tuple[str, ...]
    paper: str

    def read(self, source: Source) -> BenchmarkData:
        """Items from raw records.

        Raises:
            DataError: a record is not what the layout says; the message names record and field.
        """
        ...

    def figures(self, items: Sequence[ScoredItem]) -> Sequence[Figure]:
        """The official table, by the official rule.

        Raises:
            DataError: items that cannot be of this benchmark.
        """
        ...

    def pairs(self, item: ScoredItem) -> Sequence[tuple[int, int]]:
        """(winner, loser) candidates by the benchmark's labels, whatever the scores.

        Empty where an item has no preference: votes of "tie", all candidates right, single steps.

        Raises:
            DataError: an item that cannot be of this benchmark.
        """
        ...

    def is_right(self, item: ScoredItem) -> bool | None:
        """The verdict that comparisons of scorers and items count: equal scores are never right.

        None where the labels leave nothing to get right; that depends on the item only, never on
        scores.

        Raises:
            DataError: an item that cannot be of this benchmark.
        """
        ...


def drawn_by(seed: int, id_: str) -> bytes:
    """A number that depends on seed and id only, so the same items are drawn whatever stands around."""
    return hashlib.sha256(f"{seed}\x00{id_}".encode()).digest()


def _whole_clusters(items: Sequence[Item], limit: int, seed: int) -> set[str]:
    """Ids of the first clusters in drawn order, as long as they fit."""
    clusters: dict[str, list[str]] = {}
    for item in items:
        clusters.setdefault(item.cluster, []).append(item.id)
    kept: set[str] = set()
    for cluster in sorted(clusters, key=lambda cluster: drawn_by(seed, cluster)):
        if kept and len(kept) + len(clusters[cluster]) > limit:
            break
        kept |= set(clusters[cluster])
    return kept


def by_subset(items: Sequence[Item] | Sequence[ScoredItem]) -> Mapping[str, list[int]]:
    """Rows of each subset, subsets in order of first appearance."""
    found: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        found.setdefault(item.subset, []).append(row)
    return found


def clusters_of(items: Sequence[ScoredItem]) -> list[str]:
    """(n,) the cluster of each item."""
    return [item.cluster for item in items]


def answers_of(prompt: str | Prompt, texts: Sequence[str], where: str) -> tuple[Answer, ...]:
    """Candidates to one prompt in the order of `texts`; a plain text is one user turn."""
    made = Prompt.of(prompt) if isinstance(prompt, str) else prompt
    key = made.key
    return tuple(Answer(made, text, key, where=where) for text in texts)


# ------------------------------------------------------------------- figures that are shares of items


def share(
    items: Sequence[ScoredItem], credit: Sequence[float], rows: Sequence[int] | None = None
) -> SumsStatistic:
    """Mean credit of some items, over the clusters of all.

    Args:
        items: of the whole benchmark.
        credit: (n,) what each item earns, 0 to 1; read at `rows` only.
        rows: that take part; None = all.
    """
    return mean_of_shares(items, credit, [range(len(items)) if rows is None else rows])


def mean_of_shares(
    items: Sequence[ScoredItem],
    credit: Sequence[float],
    groups: Sequence[Sequence[int]],
    weights: Sequence[float] | None = None,
) -> SumsStatistic:
    """Weighted mean of the mean credits of groups of items, over the clusters of all.

    Undefined (NaN) in a resample that draws no item of some group.

    Args:
        items: of the whole benchmark.
        credit: (n,) what each item earns, 0 to 1.
        groups: rows of each group.
        weights: one a group, of any sum; None = equal.
    """
    n_groups = len(groups)
    wanted = np.ones(n_groups) if weights is None else np.asarray(weights, dtype=np.float64)
    columns = np.zeros((len(items), 2 * n_groups))
    values = np.asarray(credit, dtype=np.float64)
    for g, rows in enumerate(groups):
        rows = np.asarray(rows, dtype=int)
        columns[rows, g] = values[rows]
        columns[rows, n_groups + g] = 1

    def function(sums: np.ndarray) -> np.ndarray:
        return sums[:, :n_groups] / sums[:, n_groups:] @ (wanted / wanted.sum())

    n = sum(len(rows) for rows in groups)
    return sums_statistic(columns, clusters_of(items), function, n=n)


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What every item earns by one rule; makes figures of it.

    Attributes:
        items: of the whole benchmark.
        credit: (n,) 0 to 1.
        is_tied: (n,) whether the credit hangs on equal scores.
        chance: (n,) the credit of guessing, in expectation.
        metric: in words.
        is_official: False for a rule of ours.
    """

    items: Sequence[ScoredItem]
    credit: np.ndarray
    is_tied: np.ndarray
    chance: np.ndarray
    metric: str = "accuracy"
    is_official: bool = True

    def share(
        self,
        subset: str,
        rows: Sequence[int] | None = None,
        *,
        is_headline: bool = False,
        note: str = "",
    ) -> Figure:
        """Mean credit of `rows`; None = all items."""
        rows = range(len(self.items)) if rows is None else rows
        return self.mean_of_shares(subset, [rows], is_headline=is_headline, note=note)

    def mean_of_shares(
        self,
        subset: str,
        groups: Sequence[Sequence[int]],
        weights: Sequence[float] | None = None,
        *,
        metric: str | None = None,
        is_headline: bool = False,
        is_official: bool | None = None,
        note: str = "",
    ) -> Figure:
        """Weighted mean of the mean credits of `groups`.

        Args:
            subset: that the figure is of; "" = the whole benchmark.
            groups: rows of each group.
            weights: one a group; None = equal.
            metric: another name than that of the verdicts.
            is_headline: as in `Figure`.
            is_official: None = as the verdicts.
            note: as in `Figure`.
        """
        rows = np.concatenate([np.asarray(group, dtype=int) for group in groups])
        chance = mean_of_shares(self.items, self.chance, groups, weights)
        return Figure(
            metric=metric or self.metric,
            subset=subset,
            statistic=mean_of_shares(self.items, self.credit, groups, weights),
            n=len(rows),
            n_ties=int(self.is_tied[rows].sum()),
            is_headline=is_headline,
            chance=round(point_estimate(chance), 12),
            is_official=self.is_official if is_official is None else is_official,
            note=note,
        )


def pair_verdicts(
    items: Sequence[ScoredItem],
    winner: Sequence[float],
    loser: Sequence[float],
    *,
    tie_credit: float | np.ndarray = 0.0,
    metric: str = "accuracy",
    is_official: bool = True,
) -> Verdicts:
    """Pairs: 1 if the winner's score is higher, `tie_credit` where both are equal, else 0.

    Args:
        items: of the whole benchmark.
        winner: (n,) score of the answer that should win.
        loser: (n,) of the other.
        tie_credit: one number, or (n,) one an item.
        metric: in words.
        is_official: False for a rule of ours.
    """
    better, worse = np.asarray(winner, dtype=np.float64), np.asarray(loser, dtype=np.float64)
    is_tied = better == worse
    credit = np.where(is_tied, tie_credit, (better > worse).astype(np.float64))
    return Verdicts(items, credit, is_tied, np.full(len(items), 0.5), metric, is_official)


# --------------------------------------------------------------- what is there and what should be


def check_subsets(items: Sequence[ScoredItem], known: Collection[str], name: str) -> None:
    """Refuse items of subsets that the benchmark does not have, and no items at all.

    Raises:
        DataError: naming the item; the nearest subset is offered.
    """
    if not items:
        raise DataError(f"got no items of {name}; expected at least one")
    for item in items:
        if item.subset not in known:
            raise DataError(
                f"the item {item.id!r} is of the subset {item.subset!r}; expected one of {name}. "
                f"{did_you_mean(item.subset, known)}"
            )


def check_n_scores(items: Sequence[ScoredItem], n: int, name: str) -> None:
    """Refuse items with another number of candidates than the benchmark's layout.

    Raises:
        DataError: naming the item.
    """
    for item in items:
        if len(item.scores) != n:
            raise DataError(
                f"the item {item.id!r} has {len(item.scores)} scores; expected {n}, one a candidate "
                f"of {name}. Perhaps the scores are of another benchmark"
            )


def count_notes(title: str, subsets: Sequence[str], expected: Mapping[str, int]) -> tuple[str, ...]:
    """Sentences on what a copy of the benchmark lacks.

    Args:
        title: of the benchmark.
        subsets: one an item.
        expected: number of items of each subset in the published data.
    """
    found = dict.fromkeys(expected, 0)
    for subset in subsets:
        found[subset] += 1
    missing = [name for name, n in found.items() if not n]
    others = [
        f"{name} {n} instead of {expected[name]}"
        for name, n in found.items()
        if n and n != expected[name]
    ]
    notes = []
    if missing:
        notes.append(
            f"{title} without {', '.join(missing)}: its averages are not those of the whole benchmark"
        )
    if others:
        notes.append(f"{title} with other numbers of items than published: {', '.join(others)}")
    return tuple(notes)
