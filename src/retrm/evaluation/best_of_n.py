"""Best-of-N on graded rollouts: every scorer beside pass@1, majority, shortest and the oracle.

A table of heads is only worth reading beside rules that need no head, on the same answers, with
intervals that resample prompts. Differences between two rows use the same resamples for both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from retrm.errors import LabelError, ScoreError
from retrm.metrics import (
    Interval,
    PromptStatistic,
    auroc_statistic,
    best_of_k_statistic,
    clustered_bootstrap,
    fold_auroc_statistic,
    mean_statistic,
    n_mixed,
    paired_difference,
    point_estimate,
    within_prompt_auroc_statistic,
)
from retrm.selection import apply

Kind = Literal["head", "baseline", "bound"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the scorer or rule.
        kind: `head`, `baseline` (needs no fitting) or `bound` (pass@1, oracle: no rule at all).
        pooled_auroc: P(a right answer outscores a wrong one), all prompts; None for rules without
            scores.
        within_auroc: the same inside prompts with right and wrong answers, mean over prompts.
        best_of_n: accuracy of the answer that is kept.
        recovered: (best_of_n - pass@1) / (oracle - pass@1).
        minus: paired difference of best_of_n to the named other rows.
        curve: expected best-of-k accuracy for k = 1..N, with interval.
    """

    name: str
    kind: Kind
    best_of_n: Interval
    recovered: float
    pooled_auroc: Interval | None = None
    within_auroc: Interval | None = None
    minus: Mapping[str, Interval] = field(default_factory=dict)
    curve: tuple[Interval, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The whole table.

    Attributes:
        rows: heads first, as given, then baselines and bounds.
        n_prompts: prompts evaluated.
        n_mixed: of them with right and wrong answers.
        n_answers: answers evaluated.
        n_candidates: candidates a prompt (the smallest number, where prompts differ).
        n_abstained: prompts on which the majority vote abstained; counted as wrong.
    """

    rows: tuple[Row, ...]
    n_prompts: int
    n_mixed: int
    n_answers: int
    n_candidates: int
    n_abstained: int

    def row(self, name: str) -> Row:
        """The row called `name`."""
        return next(row for row in self.rows if row.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def compare(
    scores: Mapping[str, np.ndarray],
    labels: np.ndarray,
    prompt_ids: Sequence[str],
    *,
    baselines: Mapping[str, np.ndarray] | None = None,
    keys: Sequence[str | None] | None = None,
    folds: np.ndarray | None = None,
    against: Sequence[str] = ("log-probability", "majority"),
    seed: int = 0,
) -> Comparison:
    """Put scorers beside baselines on the same graded answers.

    Args:
        scores: (n,) scores per head.
        labels: (n,) 1 right, 0 wrong.
        prompt_ids: (n,) the prompt of each answer.
        baselines: (n,) scores per rule that was not fitted (shortest, log-probability, ...).
        keys: (n,) canonical answers; with them a majority vote joins the baselines.
        folds: (n,) fold of each answer, where head scores are out-of-fold.
        against: rows whose paired difference every head is given.
        seed: of the resamples.

    Raises:
        LabelError: labels are missing, or no prompt has right and wrong answers.
        ScoreError: scores are not finite.
    """
    labels = np.asarray(labels, dtype=float)
    if np.isnan(labels).any() or not np.isin(labels, (0, 1)).all():
        raise LabelError("best-of-N needs a 0/1 label for every answer; run retrm grade first")
    ids = np.asarray(prompt_ids, dtype=object)
    statistics: dict[str, tuple[Kind, PromptStatistic]] = {}
    for name, values in scores.items():
        statistics[name] = ("head", best_of_k_statistic(_finite(name, values), labels, ids))
    for name, values in (baselines or {}).items():
        statistics[name] = ("baseline", best_of_k_statistic(_finite(name, values), labels, ids))
    n_abstained = 0
    if keys is not None:
        votes = apply("majority", [str(i) for i in ids], keys=keys)
        chosen = votes.chosen_labels(labels)
        statistics["majority"] = ("baseline", mean_statistic(chosen, votes.prompt_ids))
        n_abstained = votes.n_abstained
    statistics["pass@1"] = ("bound", mean_statistic(labels, ids, weighting="prompt"))
    statistics["oracle"] = ("bound", best_of_k_statistic(labels, labels, ids))
    points = {name: point_estimate(statistic) for name, (_, statistic) in statistics.items()}
    span = points["oracle"] - points["pass@1"]
    both = {**scores, **(baselines or {})}
    rows = []
    for name, (kind, statistic) in statistics.items():
        found = both.get(name)
        rows.append(
            Row(
                name=name,
                kind=kind,
                best_of_n=clustered_bootstrap(statistic, seed=seed),
                recovered=(points[name] - points["pass@1"]) / span if span else 0.0,
                pooled_auroc=None
                if found is None
                else clustered_bootstrap(
                    auroc_statistic(found, labels, ids)
                    if folds is None or kind != "head"
                    else fold_auroc_statistic(found, labels, ids, folds),
                    seed=seed,
                ),
                within_auroc=None
                if found is None
                else clustered_bootstrap(
                    within_prompt_auroc_statistic(found, labels, ids), seed=seed
                ),
                minus={
                    other: paired_difference(statistic, statistics[other][1], seed=seed)
                    for other in against
                    if kind == "head" and other in statistics
                },
                curve=() if found is None else best_of_k_curve(found, labels, ids, seed=seed),
            )
        )
    sizes = np.unique(ids.astype(str), return_counts=True)[1]
    return Comparison(
        rows=tuple(rows),
        n_prompts=len(sizes),
        n_mixed=n_mixed(labels, ids),
        n_answers=len(labels),
        n_candidates=int(sizes.min()),
        n_abstained=n_abstained,
    )


def best_of_k_curve(
    scores: np.ndarray, labels: np.ndarray, prompt_ids: np.ndarray, *, seed: int = 0
) -> tuple[Interval, ...]:
    """Exact expected best-of-k accuracy for k = 1..N (the smallest N of any prompt)."""
    smallest = int(np.unique(prompt_ids.astype(str), return_counts=True)[1].min())
    return tuple(
        clustered_bootstrap(best_of_k_statistic(scores, labels, prompt_ids, k=k), seed=seed)
        for k in range(1, smallest + 1)
    )


def majority_curve(
    keys: Sequence[str | None],
    labels: np.ndarray,
    prompt_ids: Sequence[str],
    *,
    n_draws: int = 64,
    seed: int = 0,
) -> list[float]:
    """Majority-vote accuracy for k = 1..N, mean over seeded random subsets of the candidates."""
    generator = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompt_ids):
        groups.setdefault(str(prompt), []).append(row)
    smallest = min(len(rows) for rows in groups.values())
    curve = []
    for k in range(1, smallest + 1):
        right = []
        for _ in range(1 if k == smallest else n_draws):
            rows = [
                row
                for members in groups.values()
                for row in np.sort(generator.choice(members, size=k, replace=False))
            ]
            votes = apply(
                "majority", [str(prompt_ids[r]) for r in rows], keys=[keys[r] for r in rows]
            )
            right.append(votes.chosen_labels(labels[rows]).mean())
        curve.append(float(np.mean(right)))
    return curve


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all():
        where = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ScoreError(f"scorer {name!r} gave {values[where]} for answer {where}")
    return values
