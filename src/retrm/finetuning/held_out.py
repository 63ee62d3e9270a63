"""What a trained reward model is worth on prompts that it did not see, in the figures of its kind.

    pairs, correctness, ordinal   those of `retrm fit`: pair accuracy, or best-of-N and AUROC, beside baselines
    steps                         share of steps on the right side of 0, AUROC, share of right steps
    ratings                       mean squared error an objective, and that of the training mean

Intervals resample prompts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrm.evaluation.best_of_n import Comparison
from retrm.evaluation.held_out import measure
from retrm.evaluation.preferences import PairComparison
from retrm.finetuning.reward_options import Kind
from retrm.metrics import (
    Interval,
    auroc_statistic,
    clustered_bootstrap,
    mean_statistic,
)
from retrm.records import AnswerTable
from retrm.scorers.base import Scorer
from retrm.scorers.sequence_classifier import ObjectiveClassifier
from retrm.scorers.together import judge_all


@dataclass(frozen=True)
class HeldOut:
    """Figures of a reward model.

    Attributes:
        comparison: beside baselines, where answers to one prompt can be compared.
        figures: by name, with intervals by prompt.
        n_answers: that were scored.
        n_skipped: left out as over-long.
    """

    comparison: Comparison | PairComparison | None
    figures: Mapping[str, Interval]
    n_answers: int
    n_skipped: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        compared = {} if self.comparison is None else self.comparison.as_dict()
        own = {name: found.as_dict() for name, found in self.figures.items()}
        return {
            **compared,
            "figures": own,
            "n_answers": self.n_answers,
            "n_skipped": self.n_skipped,
        }


def measure_held_out(
    scorer: Scorer,
    table: AnswerTable,
    kind: Kind,
    *,
    name: str = "finetuned",
    label_threshold: float | None = None,
    training_means: Mapping[str, float] | None = None,
    overlong: str = "error",
    seed: int = 0,
) -> HeldOut:
    """Score the answers of `table` and measure the scores.

    Args:
        scorer: the reward model.
        table: of prompts that were held out.
        kind: of the training.
        name: of the reward model in tables.
        label_threshold: grades at or above it are right.
        training_means: by objective, what a rating is without any model; for `ratings`.
        overlong: what to do with answers beyond the context; those left out take no part.
        seed: of the resamples.

    Raises:
        OverlongError, RenderError, ScoreError: naming the record.
    """
    (judged,) = judge_all({name: scorer}, table.answers, overlong=overlong).values()  # type: ignore[arg-type]
    kept = np.flatnonzero(~np.isnan(judged.scores))
    scores, seen = judged.scores[kept], table.take(kept.tolist())
    n_skipped = len(table) - len(kept)
    figures: dict[str, Interval] = {}
    comparison = None
    if kind == "steps":
        figures = _steps(scores, seen, seed)
    elif kind == "ratings":
        assert isinstance(scorer, ObjectiveClassifier)
        figures = _ratings(scorer, seen, training_means or {}, seed)
    else:
        comparison = measure({name: scores}, seen, label_threshold=label_threshold, seed=seed)
    return HeldOut(comparison, figures, len(kept), n_skipped)


def _steps(scores: np.ndarray, table: AnswerTable, seed: int) -> dict[str, Interval]:
    ids, labels = table.prompt_ids.tolist(), table.labels
    found = {
        "steps on the right side of 0": mean_statistic((scores > 0) == (labels > 0.5), ids),
        "share of right steps": mean_statistic(labels, ids),
    }
    made = {name: clustered_bootstrap(each, seed=seed) for name, each in found.items()}
    if 0 < labels.mean() < 1:
        made["AUROC of steps"] = clustered_bootstrap(
            auroc_statistic(scores, labels, ids), seed=seed
        )
    return made


def _ratings(
    scorer: ObjectiveClassifier, table: AnswerTable, means: Mapping[str, float], seed: int
) -> dict[str, Interval]:
    outputs = scorer.objective_scores(table.answers)
    made = {}
    for column, name in enumerate(scorer.objectives):
        ratings = table.ratings[name]
        rows = np.flatnonzero(~np.isnan(ratings))
        if not len(rows):
            continue
        ids = table.prompt_ids[rows].tolist()
        wanted = {f"{name}, squared error": outputs[rows, column]}
        if name in means:
            wanted[f"{name}, squared error of the training mean"] = np.full(len(rows), means[name])
        for label, guess in wanted.items():
            errors = mean_statistic((guess - ratings[rows]) ** 2, ids)
            made[label] = clustered_bootstrap(errors, seed=seed)
    return made
