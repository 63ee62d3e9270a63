"""ProcessBench: which step of a solution is the first wrong one, if any.

    a step is wrong where its score < t;   prediction = index of the first wrong step (from 0), else -1
    acc1 = share of exact predictions where a step is wrong;   acc2 = share of -1 where none is
    F1 = 2 acc1 acc2 / (acc1 + acc2), 0 where both are 0;   headline = plain mean of the F1 of the splits

Source: Zheng et al. 2024, arXiv 2412.06559, section 3. The published script divides by zero where both
accuracies are 0.

The threshold t is 0 for raw scores, where a probability of 0.5 lies; a step whose score equals it is
not wrong. Beside the headline stands a figure of ours: t chosen by the F1 of the gsm8k split alone,
the lowest of those that reach it, then the same for all splits. Its intervals keep t as it was
chosen on all of gsm8k: they do not tell what choosing it again would add, and the gsm8k part of it is
flattered by the choice. t is never chosen split by split.

Baselines are compared with a scorer by that figure only: their numbers (a length, a random one in 0..1, a
log-probability) are on no scale where 0 means anything, so that at t = 0 they call all steps alike.

A step may be wrong although the final answer is right; scores that see outcomes only cannot find
those. Their accuracy stands apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retrm.data.read import Record
from retrm.errors import DataError, did_you_mean
from retrm.evaluation.benchmarks.base import (
    BenchmarkData,
    Figure,
    Item,
    ScoredItem,
    by_subset,
    clusters_of,
    count_notes,
    share,
)
from retrm.evaluation.benchmarks.source import (
    Source,
    choice_field,
    integer_field,
    text_field,
)
from retrm.evaluation.benchmarks.steps import DecidedByThreshold, fact, prefixes_of, steps_field
from retrm.metrics import SumsStatistic, sums_statistic

SPLITS = {"gsm8k": 400, "math": 1000, "olympiadbench": 1000, "omnimath": 1000}
TUNED_ON = "gsm8k"


@dataclass(frozen=True)
class ProcessBench(DecidedByThreshold):
    """ProcessBench: a step is wrong below the threshold."""

    name: ClassVar[str] = "process_bench"
    title: ClassVar[str] = "ProcessBench"
    hub: ClassVar[tuple[str, ...]] = tuple(f"hub:Qwen/ProcessBench:{split}" for split in SPLITS)
    pattern: ClassVar[tuple[str, ...]] = ("*.json", "*.json.gz", "*.jsonl", "*.jsonl.gz")
    paper: ClassVar[str] = "Zheng et al. 2024, arXiv 2412.06559"

    def read(self, source: Source) -> BenchmarkData:
        """One item a solution, one candidate a step; the split is told by the id ("math-17").

        Raises:
            DataError: a field is missing or wrong, a label points past the last step, or an id repeats.
        """
        items = tuple(_item(record) for record in source.records())
        notes = count_notes(self.title, [item.subset for item in items], SPLITS)
        return BenchmarkData(self.name, items, notes=notes)

    def figures(self, items: Sequence[ScoredItem]) -> Sequence[Figure]:
        """F1 with its two accuracies, by split, then with the threshold of gsm8k, then the hard rows.

        A split without wrong solutions, or without right ones, has no F1 (NaN).

        Raises:
            DataError: items of another benchmark.
        """
        labels = _labels(items)
        rows = by_subset(items)
        splits = [split for split in SPLITS if split in rows]
        made = _table(items, labels, splits, self.threshold, is_official=True)
        if TUNED_ON in rows:
            gsm8k = [items[row] for row in rows[TUNED_ON]]
            tuned = best_threshold([item.scores for item in gsm8k], labels[rows[TUNED_ON]])
            made += _table(items, labels, splits, tuned, is_official=False)
        return [*made, *_right_answer_wrong_step(items, labels, splits, self.threshold)]

    def is_right(self, item: ScoredItem) -> bool | None:
        """Whether the first wrong step is predicted exactly, at the threshold."""
        return bool(first_wrong_step(item.scores, self.threshold) == _labels([item])[0])


def first_wrong_step(scores: Sequence[float], threshold: float) -> int:
    """Index of the first score below the threshold; -1 where there is none."""
    below = np.flatnonzero(np.asarray(scores, dtype=np.float64) < threshold)
    return int(below[0]) if below.size else -1


def best_threshold(scores: Sequence[np.ndarray], labels: Sequence[int]) -> float:
    """The lowest threshold with the highest F1, in the middle of its gap; 0 where none has any.

    A wrong step j is found by every t in (s_j, min of the scores before]; a right solution passes for
    every t up to its lowest score. F1 changes at these numbers only and is highest at the upper end of
    some interval, so these ends are all that need be tried. Between an end and the next score below
    it nothing changes: the middle leaves room to both, so that scores of other splits do not fall on
    it.

    Args:
        scores: (k,) of each solution.
        labels: first wrong step of each, -1 = none.
    """
    found = [
        (s[j], np.min(s[:j], initial=np.inf)) for s, j in zip(scores, labels, strict=True) if j >= 0
    ]
    passed = np.sort([np.min(s) for s, j in zip(scores, labels, strict=True) if j < 0])
    if not found or not len(passed):
        return 0.0
    low, high = np.array(found).T
    is_open = low < high
    ends = np.unique(np.concatenate([high[np.isfinite(high)], passed]))
    # An interval counts for t where low < t <= high.
    started = np.searchsorted(np.sort(low[is_open]), ends, side="left")
    ended = np.searchsorted(np.sort(high[is_open]), ends, side="left")
    acc1 = (started - ended) / len(low)
    acc2 = (len(passed) - np.searchsorted(passed, ends, side="left")) / len(passed)
    f1 = _harmonic(acc1, acc2)
    if f1.max() <= 0:
        return 0.0
    end = ends[int(f1.argmax())]
    everything = np.concatenate([np.asarray(s, dtype=np.float64) for s in scores])
    below = everything[everything < end].max()
    return float(max((below + end) / 2, np.nextafter(below, np.inf)))


def _item(record: Record) -> Item:
    where = record.where
    name = text_field(record, "id")
    split = name.rpartition("-")[0]
    if split not in SPLITS:
        raise DataError(
            f"{where}: `id` is {name!r}; expected one such as 'gsm8k-1', which names its split. "
            f"{did_you_mean(split, SPLITS)}"
        )
    steps = steps_field(record, "steps")
    label = integer_field(record, "label")
    if not -1 <= label < len(steps):
        raise DataError(
            f"{where}: `label` is {label} for {len(steps)} steps; expected -1 (no wrong step) or an "
            f"index from 0 to {len(steps) - 1}. Perhaps it counts from 1"
        )
    is_right = choice_field(record, "final_answer_correct", (True, False))
    problem = text_field(record, "problem")
    answers = prefixes_of(problem, steps, where)
    return Item(
        id=name,
        subset=split,
        cluster=answers[0].prompt_id,
        answers=answers,
        facts={"label": label, "final_answer_correct": is_right},
        are_prefixes=True,
        where=where,
    )


def _labels(items: Sequence[ScoredItem]) -> np.ndarray:
    """(n,) int, checked against splits and numbers of steps."""
    labels = [fact(item, "label", ProcessBench.title) for item in items]
    for item, label in zip(items, labels, strict=True):
        if item.subset not in SPLITS or not -1 <= label < len(item.scores):
            raise DataError(
                f"the item {item.id!r} is of {item.subset!r} with label {label} and "
                f"{len(item.scores)} scores; expected a split of ProcessBench and a score for every "
                "step. Perhaps the scores are of another benchmark"
            )
    return np.array(labels, dtype=int)


def _harmonic(acc1: np.ndarray, acc2: np.ndarray) -> np.ndarray:
    """2ab / (a + b); 0 where both are 0, NaN where either is."""
    total = acc1 + acc2
    return np.where(total == 0, 0.0, 2 * acc1 * acc2 / np.where(total == 0, 1.0, total))


def _f1_of_splits(
    items: Sequence[ScoredItem], hits: np.ndarray, labels: np.ndarray, splits: Sequence[str]
) -> SumsStatistic:
    """Mean of the F1 of some splits."""
    of_split = np.array([item.subset for item in items])
    parts = []
    for split in splits:
        for is_kind in (labels >= 0, labels < 0):
            taken = (of_split == split) & is_kind
            parts += [taken & hits, taken]
    columns = np.stack(parts, axis=1).astype(np.float64)

    def function(sums: np.ndarray) -> np.ndarray:
        found, wrong, passed, right = np.moveaxis(sums.reshape(len(sums), -1, 4), 2, 0)
        return _harmonic(found / wrong, passed / right).mean(axis=1)

    n = int(np.isin(of_split, list(splits)).sum())
    return sums_statistic(columns, clusters_of(items), function, n=n)


def _table(
    items: Sequence[ScoredItem],
    labels: np.ndarray,
    splits: Sequence[str],
    threshold: float,
    *,
    is_official: bool,
) -> list[Figure]:
    """Mean F1, and F1, acc1 and acc2 of every split."""
    predicted = np.array([first_wrong_step(item.scores, threshold) for item in items])
    # What would be predicted if a score at the threshold were wrong as well.
    strict = np.array([first_wrong_step(i.scores, np.nextafter(threshold, np.inf)) for i in items])
    hits, is_tied = predicted == labels, predicted != strict
    rows = by_subset(items)
    ending = "" if is_official else f", threshold chosen on {TUNED_ON}"
    chosen = f"a step is wrong below {threshold:.9g}"
    if not is_official:
        chosen += f", chosen by the F1 of {TUNED_ON} and kept fixed in the resamples"
    lacking = [split for split in SPLITS if split not in splits]
    without = f"; without {', '.join(lacking)}: not the published average" if lacking else ""

    def f1(subset: str, of: Sequence[str], metric: str, note: str) -> Figure:
        taken = [row for split in of for row in rows[split]]
        statistic = _f1_of_splits(items, hits, labels, of)
        n_ties = int(is_tied[taken].sum())
        is_headline = is_official and not subset
        return Figure(
            metric + ending,
            subset,
            statistic,
            len(taken),
            n_ties,
            is_headline,
            None,
            is_official,
            note,
            by_fixed_threshold=is_official,
        )

    made = [f1("", splits, "mean F1", chosen + without)]
    for split in splits:
        made.append(f1(split, [split], "F1", chosen))
        if not is_official:
            continue
        for metric, is_kind in (
            ("acc1 (a step is wrong)", labels >= 0),
            ("acc2 (none is)", labels < 0),
        ):
            taken = [row for row in rows[split] if is_kind[row]]
            if taken:
                n_ties = int(is_tied[taken].sum())
                statistic = share(items, hits, taken)
                made.append(
                    Figure(metric, split, statistic, len(taken), n_ties, by_fixed_threshold=True)
                )
    return made


def _right_answer_wrong_step(
    items: Sequence[ScoredItem], labels: np.ndarray, splits: Sequence[str], threshold: float
) -> list[Figure]:
    """acc1 where the final answer is right all the same."""
    is_right = np.array(
        [fact(i, "final_answer_correct", ProcessBench.title) for i in items], dtype=bool
    )
    hits = [first_wrong_step(i.scores, threshold) == j for i, j in zip(items, labels, strict=True)]
    rows = by_subset(items)
    made = []
    for split in splits:
        taken = [row for row in rows[split] if is_right[row] and labels[row] >= 0]
        if taken:
            made.append(
                Figure(
                    "acc1, right answer by a wrong step",
                    split,
                    share(items, hits, taken),
                    len(taken),
                    is_official=False,
                    note="scores that see outcomes only cannot find these",
                    by_fixed_threshold=True,
                )
            )
    return made
