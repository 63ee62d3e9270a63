"""The figures of freshly fitted heads on the prompts that were held out, whatever the labels are."""

from collections.abc import Mapping

import numpy as np

from retrm.evaluation.best_of_n import Comparison, compare
from retrm.evaluation.preferences import PairComparison, compare_pairs
from retrm.metrics import n_mixed
from retrm.records import AnswerTable
from retrm.scorers.baseline import LengthScorer


def baseline_scores(
    table: AnswerTable, log_probability: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Scores that need no fitting: shortest, longest, and log-probability where it was read."""
    out = {} if log_probability is None else {"log-probability": log_probability}
    for prefers in ("shortest", "longest"):
        out[prefers] = LengthScorer(prefers=prefers).score(table.answers)
    return out


def measure(
    scores: Mapping[str, np.ndarray],
    table: AnswerTable,
    log_probability: np.ndarray | None = None,
    *,
    folds: np.ndarray | None = None,
    label_threshold: float | None = None,
    seed: int = 0,
) -> Comparison | PairComparison | None:
    """The table that fits the labels of `table`; None if it carries nothing to compare.

    Right/wrong labels with several answers a prompt give best-of-N; preferences, ranks and grades
    give pair accuracy (grades at or above `label_threshold` count as right where one is given).
    """
    table = table.judged(label_threshold=label_threshold)
    baselines = baseline_scores(table, log_probability)
    pairs = table.preferences()
    if pairs:
        return compare_pairs(scores, baselines, pairs, table.prompt_ids.tolist(), seed=seed)
    labelled = np.flatnonzero(~np.isnan(table.labels))
    if not n_mixed(table.labels, table.prompt_ids):
        return None
    kept = table.take(labelled.tolist())
    keys = [answer.key for answer in kept.answers]
    return compare(
        {name: values[labelled] for name, values in scores.items()},
        kept.labels,
        kept.prompt_ids.tolist(),
        baselines={name: values[labelled] for name, values in baselines.items()},
        keys=keys if any(keys) else None,
        folds=None if folds is None else folds[labelled],
        seed=seed,
    )
