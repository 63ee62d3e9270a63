"""Best-of-N on any graded rollouts: own files, GSM8K, MATH-500, HumanEval, once they have labels.

    accuracy@k = mean over prompts of sum_r P(r) label_(r),   P(r) = C(M-r, k-1) / C(M, k)

the exact expectation over k of the M candidates, sorted by score (r = 1 best); equal scores share
their labels. Right candidates are those of label 1. Beside it what scores can add at most: pass@1 (a
random candidate), the oracle (any right one), and the majority vote where rollouts have answer keys.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from retrm.data.load import build_table
from retrm.data.rollouts import with_text
from retrm.errors import DataError, LabelError
from retrm.evaluation.benchmarks.base import (
    BenchmarkData,
    Figure,
    Item,
    ScoredItem,
    clusters_of,
)
from retrm.evaluation.benchmarks.pairs import Pairs, labelled_pairs, labels_of
from retrm.evaluation.benchmarks.source import Source
from retrm.metrics import (
    PromptStatistic,
    best_of_k_statistic,
    mean_statistic,
    n_mixed,
    point_estimate,
    within_prompt_auroc_statistic,
)
from retrm.records import AnswerTable
from retrm.selection import apply


class BestOfNBenchmark:
    """Rollouts with a label for every candidate."""

    name = "best_of_n"
    title = "Best of N"
    hub: tuple[str, ...] = ()
    pattern = ("*.jsonl", "*.jsonl.gz", "*.json", "*.json.gz", "*.parquet")
    paper = "expected best-of-k: Chen et al. 2021, arXiv 2107.03374, section 2.1 (its estimator)"

    def read(self, source: Source) -> BenchmarkData:
        """An item a prompt; its candidates in the order of the file.

        Candidates without a text, without a label, and pruned ones take no part, and prompts that are
        left with fewer than two; all are counted.

        Raises:
            DataError, FormatError: the records are no rollouts.
            LabelError: no candidate has a label, or labels are no right and wrong.
        """
        records, n_blank = with_text(source.records())
        table = build_table(records, empty="drop", name=source.name)
        labels = table.labels
        known = ~np.isnan(labels)
        if not known.any():
            raise LabelError(
                f"{source.name} has no labels; expected right or wrong for every candidate. Run "
                "retrm grade on it, or retrm grade --tests for programs"
            )
        if not np.isin(labels[known], (0, 1)).all():
            raise LabelError(
                f"{source.name} has grades; expected labels 1 and 0. For preferences take another "
                "benchmark"
            )
        items, few = self._items(table, known)
        excluded = {
            "candidates without a text": n_blank + table.counts.get("dropped_empty", 0),
            "candidates without a label": int((~known).sum()),
            "candidates that sampling stopped": sum(a.pruned for a in table.answers),
            "prompts with fewer than two candidates": few,
        }
        if not items:
            raise DataError(f"{source.name} has no prompt with two labelled candidates")
        return BenchmarkData(self.name, items, {k: n for k, n in excluded.items() if n})

    def _items(self, table: AnswerTable, known: np.ndarray) -> tuple[tuple[Item, ...], int]:
        items, few = [], 0
        for group in table.candidate_sets():
            rows = [r for r in group.rows if known[r] and not table.answers[r].pruned]
            if len(rows) < 2:
                few += 1
                continue
            answers = tuple(table.answers[r] for r in rows)
            facts = {
                "labels": [int(table.labels[r]) for r in rows],
                "keys": [answer.key for answer in answers],
            }
            items.append(
                Item(
                    group.prompt_id, "all", group.prompt_id, answers, facts, where=answers[0].where
                )
            )
        return tuple(items), few

    def figures(self, items: Sequence[ScoredItem]) -> Sequence[Figure]:
        """Accuracy@k for k = 1, 2, 4, ... and all candidates, and what bounds it.

        Raises:
            DataError: an item without labels.
            LabelError: every candidate of every prompt has the same label.
        """
        rows = _Rows.of(items)
        if not n_mixed(rows.labels, rows.ids):
            raise LabelError(
                "no prompt has right and wrong candidates; scores cannot change which is kept. "
                "Sample more candidates, or harder questions"
            )
        smallest = min(len(item.scores) for item in items)
        figures = [self._at(rows, items, k) for k in steps(smallest)]
        figures.append(self._all(rows, items))
        auroc = within_prompt_auroc_statistic(rows.scores, rows.labels, rows.ids)
        mixed = n_mixed(rows.labels, rows.ids)
        figures.append(_figure("within-prompt AUROC", auroc, mixed, chance=0.5, is_official=False))
        return [*figures, *_bounds(rows, items)]

    def _at(self, rows: "_Rows", items: Sequence[ScoredItem], k: int) -> Figure:
        found = best_of_k_statistic(rows.scores, rows.labels, rows.ids, k=k)
        # The kept one of one candidate is a random one, whatever the scores.
        better: Literal["higher", "neither"] = "neither" if k == 1 else "higher"
        return _figure(f"accuracy@{k}", found, len(items), chance=rows.pass_at_1, better=better)

    def _all(self, rows: "_Rows", items: Sequence[ScoredItem]) -> Figure:
        found = best_of_k_statistic(rows.scores, rows.labels, rows.ids)
        sizes = {len(item.scores) for item in items}
        name = f"all {min(sizes)}" if len(sizes) == 1 else f"all {min(sizes)} to {max(sizes)}"
        ties = sum(int((item.scores == item.scores.max()).sum() > 1) for item in items)
        return _figure(
            f"accuracy@{name}", found, len(items), ties, chance=rows.pass_at_1, is_headline=True
        )

    def pairs(self, item: ScoredItem) -> Pairs:
        """Every right candidate over every wrong one.

        Raises:
            DataError: the item has not one label a candidate.
        """
        return labelled_pairs(labels_of(item, BestOfNBenchmark.name))

    def is_right(self, item: ScoredItem) -> bool | None:
        """Whether the candidate that is kept is right; where several share the top, all of them."""
        labels = np.asarray(labels_of(item, BestOfNBenchmark.name))
        return bool((labels[item.scores == item.scores.max()] == 1).all())


class _Rows:
    """Candidates of all items as flat arrays."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray, ids: list[str], keys: list) -> None:
        self.scores, self.labels, self.ids, self.keys = scores, labels, ids, keys
        self.pass_at_1 = point_estimate(mean_statistic(labels, ids, weighting="prompt"))

    @classmethod
    def of(cls, items: Sequence[ScoredItem]) -> "_Rows":
        if not items:
            raise DataError("got no items of best_of_n; expected at least one")
        labels: list[float] = []
        keys: list[str | None] = []
        ids: list[str] = []
        for item, cluster in zip(items, clusters_of(items), strict=True):
            found = labels_of(item, BestOfNBenchmark.name)
            labels += found
            keys += item.facts.get("keys") or [None] * len(found)
            ids += [cluster] * len(found)
        scores = np.concatenate([item.scores for item in items])
        return cls(scores, np.array(labels, dtype=np.float64), ids, keys)


def steps(n: int) -> list[int]:
    """1, 2, 4, ... below n."""
    return [2**i for i in range(n.bit_length()) if 2**i < n]


def _bounds(rows: _Rows, items: Sequence[ScoredItem]) -> list[Figure]:
    """Figures that no score can change, for the eye."""
    n = len(items)
    one = mean_statistic(rows.labels, rows.ids, weighting="prompt")
    best = best_of_k_statistic(rows.labels, rows.labels, rows.ids)
    found = [
        _bound("pass@1", one, n, note="of a random candidate"),
        _bound("oracle", best, n, note="share of prompts with a right one"),
    ]
    if any(rows.keys):
        votes = apply("majority", rows.ids, keys=rows.keys)
        vote = mean_statistic(votes.chosen_labels(rows.labels), votes.prompt_ids)
        note = f"{votes.n_abstained} prompts without any answer key count as wrong"
        found.append(_bound("majority vote", vote, n, votes.n_tied, note=note))
    return found


def _bound(
    metric: str, statistic: PromptStatistic, n: int, n_ties: int = 0, *, note: str
) -> Figure:
    """A figure that is the same for every scorer."""
    return _figure(metric, statistic, n, n_ties, is_official=False, note=note, better="neither")


def _figure(
    metric: str,
    statistic: PromptStatistic,
    n: int,
    n_ties: int = 0,
    *,
    chance: float | None = None,
    is_headline: bool = False,
    is_official: bool = True,
    note: str = "",
    better: Literal["higher", "neither"] = "higher",
) -> Figure:
    return Figure(metric, "", statistic, n, n_ties, is_headline, chance, is_official, note, better)
