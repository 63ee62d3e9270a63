"""What the probes of an audit learn from and are judged by: labels or pairs, folds by prompt."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np

from retrm.audit.plan import AuditPlan
from retrm.data.split import prompt_folds
from retrm.errors import LabelError
from retrm.fitting.targets import Targets, without_targets
from retrm.metrics import (
    PromptStatistic,
    best_of_k_statistic,
    fold_auroc_statistic,
    mean_statistic,
    n_mixed,
    within_prompt_auroc_statistic,
)
from retrm.records import AnswerTable

Task = Literal["graded", "preferences"]
RECORD: Mapping[Task, str] = {"graded": "within_auroc", "preferences": "pair_accuracy"}


@dataclass(frozen=True)
class Supervision:
    """The judged answers of an audit; rows are those of its reading.

    Attributes:
        table: the answers that were read and are judged.
        task: `graded` (right or wrong labels) or `preferences` (pairs).
        rows: (n,) where each row stands in the reading.
        n_unjudged: answers that were read and take no part: without a label, or, where the data hold
            preferences, without a pair.
    """

    table: AnswerTable
    task: Task
    rows: np.ndarray
    n_unjudged: int

    @classmethod
    def of(
        cls,
        table: AnswerTable,
        read_rows: Sequence[int],
        *,
        label_threshold: float | None = None,
    ) -> Self:
        """The judged part of the rows that were read.

        Raises:
            LabelError: nothing to learn from, or nothing to compare within a prompt.
        """
        judged = table.take(list(read_rows)).judged(label_threshold=label_threshold)
        pairs = judged.preferences()
        if pairs:
            kept = sorted({row for pair in pairs for row in (pair.chosen, pair.rejected)})
            task: Task = "preferences"
        else:
            kept = np.flatnonzero(~np.isnan(judged.labels)).tolist()
            task = "graded"
        if not kept:
            raise without_targets(len(judged))
        chosen = judged.take(kept)
        if task == "preferences":  # every head learns from what it is judged by
            chosen = replace(chosen, labels=np.full(len(kept), np.nan))
        found = cls(chosen, task, np.array(kept), len(judged) - len(kept))
        if task == "graded" and found.n_mixed == 0:
            raise LabelError(
                f"got {found.n_prompts} prompts, none with both right and wrong answers; an audit "
                "compares answers to the same prompt. Sample more answers a prompt"
            )
        return found

    @property
    def n(self) -> int:
        """Answers."""
        return len(self.table)

    @cached_property
    def prompt_ids(self) -> np.ndarray:
        """(n,) strings."""
        return self.table.prompt_ids

    @property
    def labels(self) -> np.ndarray:
        """(n,) 1 right, 0 wrong; NaN for preferences."""
        return self.table.labels

    @cached_property
    def n_prompts(self) -> int:
        """Different prompts."""
        return len(set(self.prompt_ids.tolist()))

    @cached_property
    def n_mixed(self) -> int:
        """Prompts with right and wrong answers, or with a pair."""
        if self.task == "preferences":
            return len(set(self.prompt_ids[self.pairs[:, 0]].tolist()))
        return n_mixed(self.labels, self.prompt_ids)

    @cached_property
    def targets(self) -> Targets:
        """For the heads of `retrm.fitting`."""
        return Targets.of(self.table)

    @cached_property
    def pairs(self) -> np.ndarray:
        """(P, 2) chosen and rejected rows; empty for graded answers."""
        found = [(p.chosen, p.rejected) for p in self.table.preferences()]
        return np.array(found, dtype=np.int64).reshape(-1, 2)

    def folds(self, plan: AuditPlan, split_seed: int = 0) -> np.ndarray:
        """(n,) outer fold of each row; the same for every feature set."""
        return prompt_folds(self.prompt_ids, plan.n_folds, seed=plan.seed + split_seed)

    def inner_folds(self, rows: np.ndarray, plan: AuditPlan) -> np.ndarray:
        """(len(rows),) inner fold of some training rows."""
        return prompt_folds(self.prompt_ids[rows], plan.n_inner_folds, seed=plan.seed)

    def check_folds(self, plan: AuditPlan) -> None:
        """Refuse data on which some training part could not be fitted, before anything is read.

        Raises:
            DataError: fewer prompts than folds.
            LabelError: a training part, or what is left of one when its penalty is chosen, has right
                or wrong answers only.
        """
        for seed in range(plan.n_split_seeds):
            folds = self.folds(plan, seed)
            for fold in range(plan.n_folds):
                self.inner_folds(np.flatnonzero(folds == fold), plan)
                if self.task == "graded":
                    self._check_part(np.flatnonzero(folds != fold), plan)

    def _check_part(self, train: np.ndarray, plan: AuditPlan) -> None:
        inner = self.inner_folds(train, plan)
        for kept in [train, *(train[inner != k] for k in range(plan.n_inner_folds))]:
            if len(np.unique(self.labels[kept])) < 2:
                raise LabelError(
                    f"got {self.n_prompts} prompts, {self.n_mixed} with right and wrong answers; some "
                    f"training parts ({plan.n_folds} folds, {plan.n_inner_folds} inner ones) would hold "
                    "answers of one label only. Bring more mixed prompts, or ask for fewer folds"
                )

    def shuffled(self, seed: int, number: int = 0) -> Self:
        """The same answers with labels permuted, or pairs turned round, within each prompt.

        Args:
            seed: 0 or more; of the plan.
            number: of the shuffle. Data with other prompts are shuffled otherwise, so that two
                audits are two checks.
        """
        digest = hashlib.sha256("\0".join(self.prompt_ids.tolist()).encode()).digest()
        entropy = [seed, number, int.from_bytes(digest)]
        generator = np.random.default_rng(np.random.SeedSequence(entropy))
        if self.task == "preferences":
            turned = tuple(
                replace(pair, chosen=pair.rejected, rejected=pair.chosen)
                if generator.random() < 0.5
                else pair
                for pair in self.table.preferences()
            )
            return replace(self, table=replace(self.table, pairs=turned, ranked=()))
        labels = self.labels.copy()
        for group in self.table.candidate_sets():
            rows = np.array(group.rows)
            labels[rows] = generator.permutation(labels[rows])
        return replace(self, table=replace(self.table, labels=labels))

    @property
    def record(self) -> str:
        """The metric of record."""
        return RECORD[self.task]

    def statistics(
        self, scores: np.ndarray, folds: np.ndarray | None
    ) -> dict[str, PromptStatistic]:
        """Metrics of scores, as functions of prompt counts; the metric of record first.

        Args:
            scores: (n,) finite.
            folds: (n,) where the scores are out-of-fold; None for a rule that was not fitted.
        """
        if self.task == "preferences":
            gap = scores[self.pairs[:, 0]] - scores[self.pairs[:, 1]]
            ids = self.prompt_ids[self.pairs[:, 0]]
            return {"pair_accuracy": mean_statistic((np.sign(gap) + 1) / 2, ids)}
        parts = folds if folds is not None else np.zeros(self.n, dtype=np.int64)
        return {
            "within_auroc": within_prompt_auroc_statistic(scores, self.labels, self.prompt_ids),
            "within_auroc_pairs": within_prompt_auroc_statistic(
                scores, self.labels, self.prompt_ids, weighting="pair"
            ),
            "best_of_n": best_of_k_statistic(scores, self.labels, self.prompt_ids),
            "pooled_auroc": fold_auroc_statistic(scores, self.labels, self.prompt_ids, parts),
        }
