"""PRMBench: which steps of a solution are wrong, for nine kinds of planted errors.

    a step is called good where its score > t (0 for raw scores), else bad
    TP good called good, FP bad called good, TN bad called bad, FN good called bad, pooled over steps
    F1 on good steps, negative F1 on bad ones;   PRMScore = (F1 + negative F1) / 2
    headline = PRMScore of all classes pooled, NOT their mean;   of multi_solutions the F1 alone
    similarity = mean |share of steps called good, modified - original solution|

A precision or recall with nothing to divide by is -1 before they are combined, and so is an F1 whose
two parts add up to 0, as in the published code. Source: Song et al. 2025, arXiv 2501.03124, section 3
and appendix.

`error_steps` counts from 1. Numbers past the last step, which some published rows hold, match no
step; where the first of all is one, the row takes no part in the first-error accuracy. Other
solutions that repeat class and `idx` are left out after the first, and counted; a copy is refused.
The original solutions of the rows of class `redundency` (so spelt) are the correct controls: once
each, outside the headline. As published, a control of which no step was called good takes no part in
the similarity.

Every figure hangs on t, so baselines stand beside a scorer but are not compared with it: their numbers
are on no scale where 0 means anything (a log-probability is always below it).

The published code judges redundancy by scores of its own, where a model emits them. Here every class
is judged by the one score.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retrm.data.messages import kind_of
from retrm.data.read import Record
from retrm.errors import DataError
from retrm.evaluation.benchmarks.base import (
    BenchmarkData,
    Figure,
    Item,
    ScoredItem,
    by_subset,
    clusters_of,
    count_notes,
)
from retrm.evaluation.benchmarks.composed import MeanOfParts
from retrm.evaluation.benchmarks.source import Source, choice_field, field, text_field
from retrm.evaluation.benchmarks.steps import DecidedByThreshold, fact, prefixes_of, steps_field
from retrm.metrics import PromptStatistic, SumsStatistic, sums_statistic
from retrm.records import Prompt

CLASSES = {
    "redundency": 758,
    "circular": 758,
    "counterfactual": 757,
    "step_contradiction": 758,
    "domain_inconsistency": 757,
    "confidence": 757,
    "missing_condition": 756,
    "deception": 750,
    "multi_solutions": 160,
}
GROUPS = {
    "Simplicity": ("redundency", "circular"),
    "Soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "Sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
WITHOUT_ERRORS = "multi_solutions"
CONTROLLED_BY = "redundency"
CONTROL = "correct"
REPEATED = "another solution of the same class and idx came before"
_SIMILARITY = "similarity to the correct control"


@dataclass(frozen=True)
class PRMBench(DecidedByThreshold):
    """PRMBench: a step is good above the threshold."""

    name: ClassVar[str] = "prm_bench"
    title: ClassVar[str] = "PRMBench"
    hub: ClassVar[tuple[str, ...]] = ("hub:hitsmy/PRMBench_Preview:train",)
    pattern: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.jsonl.gz")
    paper: ClassVar[str] = "Song et al. 2025, arXiv 2501.03124"

    def read(self, source: Source) -> BenchmarkData:
        """One item a solution, one candidate a step; controls are items of the subset "correct".

        Raises:
            DataError: a field is missing or wrong, or a class is unknown.
        """
        items: dict[str, Item] = {}
        excluded: Counter[str] = Counter()
        n_past = 0
        for record in source.records():
            item = _modified(record)
            if item.id in items:
                _check_differs(item, items[item.id])
                excluded[REPEATED] += 1
                continue
            items[item.id] = item
            n_past += any(step > len(item.answers) for step in item.facts["error_steps"])
            if item.subset == CONTROLLED_BY:
                control = _original(record)
                items[control.id] = control
        found = [item.subset for item in items.values() if item.subset != CONTROL]
        past = f"{n_past} solution(s) name error steps past their last one, which match no step"
        notes = (*count_notes(self.title, found, CLASSES), *([past] if n_past else []))
        return BenchmarkData(self.name, tuple(items.values()), excluded, notes)

    def figures(self, items: Sequence[ScoredItem]) -> Sequence[Figure]:
        """PRMScore pooled, by group and class, then accuracies of steps, first errors, similarity.

        Raises:
            DataError: items of another benchmark, or controls alone.
        """
        return _Table(items, self.threshold).figures()

    def is_right(self, item: ScoredItem) -> bool | None:
        """Whether every step of the solution is judged right, at the threshold."""
        return bool(((item.scores > self.threshold) != _is_wrong(item)).all())


class _Table:
    """Counts of every item, and figures as sums over them."""

    def __init__(self, items: Sequence[ScoredItem], threshold: float) -> None:
        _check(items)
        self.items, self.threshold = items, threshold
        self.clusters = clusters_of(items)
        self.rows = by_subset(items)
        self.classes = [name for name in CLASSES if name in self.rows]
        self.all = [row for name in self.classes for row in self.rows[name]]
        wrong = [_is_wrong(item) for item in items]
        good = [item.scores > threshold for item in items]
        # (n, 4): TP, FP, TN, FN.
        self.confusion = np.array(
            [
                [(~w & g).sum(), (w & g).sum(), (w & ~g).sum(), (~w & ~g).sum()]
                for w, g in zip(wrong, good, strict=True)
            ],
            dtype=np.float64,
        )
        self.is_tied = np.array([(item.scores == threshold).any() for item in items])
        self.share_good = np.array([g.mean() for g in good])
        self.first = np.array([_first_error(i, g) for i, g in zip(items, good, strict=True)])
        self.similar = self._similarity()

    def figures(self) -> list[Figure]:
        """The whole table, the headline first."""
        lacking = [name for name in CLASSES if name not in self.rows]
        note = f"a step is good above {self.threshold:.9g}"
        if lacking:
            note += f"; without {', '.join(lacking)}: not the published score"
        made = [self._figure("PRMScore", "", self._prm_score(self.all), self.all, note, True)]
        for group, names in GROUPS.items():
            rows = [row for name in names for row in self.rows.get(name, [])]
            present = [name for name in names if name in self.rows]
            if present:
                mean = MeanOfParts(tuple(self._class_score(name) for name in present))
                without = [name for name in names if name not in present]
                note = f"without {', '.join(without)}" if without else ""
                made.append(self._figure("mean PRMScore of classes", group, mean, rows, note))
        for name in self.classes:
            note = "F1 alone: no step is wrong" if name == WITHOUT_ERRORS else ""
            made.append(
                self._figure("PRMScore", name, self._class_score(name), self.rows[name], note)
            )
        return [*made, *self._parts()]

    def _parts(self) -> list[Figure]:
        """What the score is made of, over all classes, and the controls."""
        tp, fp, tn, fn = self.confusion.T
        first, similar = self.first.T, self.similar.T
        controls = {self._idx(row) for row in self.rows.get(CONTROL, [])}
        with_control = np.array([self._idx(row) in controls for row in range(len(self.items))])
        shares = [
            ("correct-step accuracy", tp, tp + fn, tp + fn > 0),
            ("wrong-step accuracy", tn, tn + fp, tn + fp > 0),
            ("step accuracy", tp + tn, tp + fp + tn + fn, tp + fp + tn + fn > 0),
            ("first-error accuracy", first[0], first[1], first[1] > 0),
            (_SIMILARITY, similar[0], similar[1], with_control),
        ]
        made = [
            self._figure("F1", "", self._sums(_positive_f1, self.all), self.all),
            self._figure("negative F1", "", self._sums(_negative_f1, self.all), self.all),
        ]
        for metric, top, bottom, takes_part in shares:
            rows = [row for row in self.all if takes_part[row]]
            if rows:
                made.append(self._ratio(metric, "", top, bottom, rows))
        if CONTROL in self.rows:
            rows = self.rows[CONTROL]
            made.append(self._ratio("correct-step accuracy", CONTROL, tp, tp + fn, rows))
        return made

    def _class_score(self, name: str) -> SumsStatistic:
        if name == WITHOUT_ERRORS:
            return self._sums(_positive_f1, self.rows[name])
        return self._prm_score(self.rows[name])

    def _prm_score(self, rows: Sequence[int]) -> SumsStatistic:
        return self._sums(prm_score, rows)

    def _sums(
        self, function: Callable[[np.ndarray], np.ndarray], rows: Sequence[int]
    ) -> SumsStatistic:
        columns = np.zeros_like(self.confusion)
        columns[rows] = self.confusion[rows]
        return sums_statistic(columns, self.clusters, function, n=len(rows))

    def _ratio(
        self, metric: str, subset: str, top: np.ndarray, bottom: np.ndarray, rows: Sequence[int]
    ) -> Figure:
        """A pooled share; NaN where there is nothing to divide by."""
        columns = np.zeros((len(self.items), 2))
        columns[rows] = np.stack([top, bottom], axis=1)[rows]
        statistic = sums_statistic(
            columns, self.clusters, lambda sums: sums[:, 0] / sums[:, 1], n=len(rows)
        )
        return self._figure(metric, subset, statistic, rows)

    def _idx(self, row: int) -> str:
        return fact(self.items[row], "idx", PRMBench.title)

    def _figure(
        self,
        metric: str,
        subset: str,
        statistic: PromptStatistic,
        rows: Sequence[int],
        note: str = "",
        is_headline: bool = False,
    ) -> Figure:
        n_ties = int(self.is_tied[np.asarray(rows, dtype=int)].sum())
        # Near 0 a scorer cannot tell the two solutions apart; how far is right depends on the errors.
        better = "neither" if metric == _SIMILARITY else "higher"
        return Figure(
            metric,
            subset,
            statistic,
            len(rows),
            n_ties,
            is_headline,
            note=note,
            better=better,
            by_fixed_threshold=True,
        )

    def _similarity(self) -> np.ndarray:
        """(n, 2): |difference| to the control of the same idx, and whether it counts."""
        controls = {self._idx(row): self.share_good[row] for row in self.rows.get(CONTROL, [])}
        out = np.zeros((len(self.items), 2))
        for row in self.all:
            control = controls.get(self._idx(row), 0.0)
            if control > 0:
                out[row] = abs(self.share_good[row] - control), 1.0
        return out


def prm_score(confusion: np.ndarray) -> np.ndarray:
    """PRMScore of pooled counts.

    Args:
        confusion: (R, 4) TP, FP, TN, FN.

    Returns:
        (R,) mean of F1 and negative F1; NaN without any step.
    """
    return (_positive_f1(confusion) + _negative_f1(confusion)) / 2


def _positive_f1(confusion: np.ndarray) -> np.ndarray:
    tp, fp, _, fn = confusion.T
    return _f1(tp, fp, fn) + _seen(confusion)


def _negative_f1(confusion: np.ndarray) -> np.ndarray:
    _, fp, tn, fn = confusion.T
    return _f1(tn, fn, fp) + _seen(confusion)


def _f1(hit: np.ndarray, false_alarm: np.ndarray, missed: np.ndarray) -> np.ndarray:
    precision, recall = _part(hit, hit + false_alarm), _part(hit, hit + missed)
    total = precision + recall
    return np.where(total == 0, -1.0, 2 * precision * recall / np.where(total == 0, 1.0, total))


def _seen(confusion: np.ndarray) -> np.ndarray:
    """(R,) 0 where a resample drew any step, else NaN: the rule speaks of scores of something."""
    return np.where(confusion.sum(axis=1) > 0, 0.0, np.nan)


def _part(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.where(bottom == 0, -1.0, top / np.where(bottom == 0, 1.0, bottom))


def _modified(record: Record) -> Item:
    """The solution with the planted error."""
    name = choice_field(record, "classification", tuple(CLASSES))
    errors = _error_steps(record)
    if bool(errors) == (name == WITHOUT_ERRORS):
        raise DataError(
            f"{record.where}: `error_steps` has {len(errors)} numbers in a record of class {name!r}; "
            f"expected none for {WITHOUT_ERRORS!r} and at least one for the others"
        )
    return _item(record, name, "modified_question", "modified_process", errors)


def _check_differs(item: Item, earlier: Item) -> None:
    """Refuse a copy: published repetitions are other solutions of the same problem."""
    if item.answers[-1].response == earlier.answers[-1].response:
        raise DataError(
            f"{item.where}: the solution {item.id!r} stands at {earlier.where} already; expected every "
            "record once. Remove the copy"
        )


def _original(record: Record) -> Item:
    """The correct control that goes with it."""
    return _item(record, CONTROL, "original_question", "original_process", [])


def _item(record: Record, subset: str, question: str, process: str, errors: list[int]) -> Item:
    idx = text_field(record, "idx")
    # Every kind of error was planted into the same 708 problems.
    problem = text_field(record, "question")
    steps = steps_field(record, process)
    return Item(
        id=f"{subset}:{idx}",
        subset=subset,
        cluster=Prompt.of(problem).key,
        answers=prefixes_of(text_field(record, question), steps, record.where),
        facts={"idx": idx, "error_steps": errors},
        are_prefixes=True,
        where=record.where,
    )


def _error_steps(record: Record) -> list[int]:
    value = field(record, "error_steps")
    if not isinstance(value, list):
        raise DataError(
            f"{record.where}: `error_steps` is {kind_of(value)}; expected a list of step numbers"
        )
    for step in value:
        if type(step) is not int or step < 1:
            raise DataError(
                f"{record.where}: `error_steps` holds {kind_of(step)}; expected numbers that count "
                "steps from 1"
            )
    return list(value)


def _check(items: Sequence[ScoredItem]) -> None:
    for item in items:
        if item.subset not in CLASSES and item.subset != CONTROL:
            raise DataError(
                f"the item {item.id!r} is of {item.subset!r}; expected a class of PRMBench "
                f"({', '.join(CLASSES)}) or {CONTROL!r}. Perhaps the scores are of another benchmark"
            )
    if all(item.subset == CONTROL for item in items):
        raise DataError(
            "got correct controls of PRMBench alone; expected solutions with planted errors beside "
            "them. Score the whole benchmark"
        )


def _is_wrong(item: ScoredItem) -> np.ndarray:
    """(k,) bool, True for steps with a planted error."""
    wrong = np.zeros(len(item.scores), dtype=bool)
    errors = fact(item, "error_steps", PRMBench.title)
    wrong[[step - 1 for step in errors if step <= len(wrong)]] = True
    return wrong


def _first_error(item: ScoredItem, is_good: np.ndarray) -> tuple[float, float]:
    """Whether the first wrong step was called bad, and whether there is one among the steps."""
    errors = fact(item, "error_steps", PRMBench.title)
    if not errors or min(errors) > len(is_good):
        return 0.0, 0.0
    return float(not is_good[min(errors) - 1]), 1.0
