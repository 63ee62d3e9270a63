"""What is described and decides nothing: scores of the answers, best of k, each singular direction."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.audit.probes import Probe, inner_moments
from retrm.audit.supervision import Supervision
from retrm.audit.tables import AnswerRow, CurveRow, DirectionRow
from retrm.evaluation.best_of_n import majority_curve
from retrm.fitting.ridge import Moments, choose_ridge, project_all
from retrm.metrics import AverageStatistic, best_of_k_statistic, mean_statistic, point_estimate

if TYPE_CHECKING:
    from retrm.audit.grid import Grid


def answer_rows(grid: "Grid", probes: Sequence[Probe]) -> list[AnswerRow]:
    """One row a judged answer, with the scores of the first split."""
    folds = grid.folds[0]
    first = {p.features.kind: p for p in probes if p.features.draw == 0}
    scores = [_standardised(first[kind].scores, folds) for kind in ("full", "reasoning", "random")]
    measure = grid.measure
    return [
        AnswerRow(
            row=int(grid.reading.rows[grid.supervision.rows[i]]),
            prompt_id=str(grid.supervision.prompt_ids[i]),
            label=float(grid.supervision.labels[i]),
            n_tokens=int(measure.lengths[i]),
            finished=float(measure.finished[i]),
            full=float(scores[0][i]),
            reasoning=float(scores[1][i]),
            random=float(scores[2][i]),
            log_probability=float(measure.log_probability[i]),
        )
        for i in range(grid.supervision.n)
    ]


def curves(grid: "Grid", probes: Sequence[Probe]) -> list[CurveRow]:
    """Best of k for every k, by the exact expectation; random subspaces as the mean of draws."""
    s = grid.supervision
    if s.task == "preferences":
        return []
    scores: dict[str, list[np.ndarray]] = {}
    for probe in probes:
        scores.setdefault(probe.features.kind, []).append(probe.scores)
    scores["random"] = scores["random"][: grid.plan.n_draws]
    scores |= {"log-probability": [grid.log_probability], "oracle": [s.labels]}
    smallest = int(np.unique(s.prompt_ids.astype(str), return_counts=True)[1].min())
    rows = []
    for name, draws in scores.items():
        for k in range(1, smallest + 1):
            each = [best_of_k_statistic(x, s.labels, s.prompt_ids, k=k) for x in draws]
            found = grid.measure.resamples.interval(AverageStatistic(tuple(each)))
            rows.append(CurveRow(name, k, found.value, found.low, found.high))
    keys = [answer.key for answer in s.table.answers]
    if any(keys):
        curve = majority_curve(keys, s.labels, s.prompt_ids.tolist(), seed=grid.plan.seed)
        rows += [CurveRow("majority", k + 1, v, math.nan, math.nan) for k, v in enumerate(curve)]
    return rows


def direction_rows(grid: "Grid") -> list[DirectionRow]:
    """What each singular direction of the raw LM head holds of the answers' states."""
    states = grid.states(grid.last, "last")
    rows = grid.directions.all_directions("raw")  # (live, D)
    whole = Moments.of(states, [0.0] * len(states))
    along = ((rows @ whole.xx) * rows).sum(1)  # sum over answers of (v . h)^2
    columns = (
        grid.directions.singular_values("raw"),
        _separation(states, rows, grid.supervision.labels),
        along / whole.xx.trace(),
        _whitened_weight(grid, states, rows, whole),
    )
    return [
        DirectionRow(i, *numbers)
        for i, numbers in enumerate(zip(*(c.tolist() for c in columns), strict=True))
    ]


def _whitened_weight(
    grid: "Grid", states: Tensor, rows: Tensor, whole: Moments
) -> Float[Tensor, " live"]:
    """Share of |u|^2 of the head on ZCA-whitened states in each direction; chance is 1 / D."""
    mean = whole.x / whole.weight
    covariance = whole.xx / whole.weight - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    scale = values.clamp_min(1e-9 * values[-1]).rsqrt()
    whitening = (vectors * scale) @ vectors.T
    blocks = inner_moments(states, grid.supervision, np.arange(len(states)), grid.plan)
    fit = choose_ridge(
        project_all(blocks, whitening),
        standardise=False,
        has_intercept=grid.supervision.task == "graded",
    )
    share = (rows @ fit.weight.double()).square()
    return share / share.sum()


def summary_figures(s: Supervision) -> dict[str, float | None]:
    """pass@1 and oracle of graded answers; None where they do not apply."""
    if s.task == "preferences":
        return {"pass_at_1": None, "oracle": None}
    pass_at_1 = mean_statistic(s.labels, s.prompt_ids, weighting="prompt")
    oracle = best_of_k_statistic(s.labels, s.labels, s.prompt_ids)
    return {"pass_at_1": point_estimate(pass_at_1), "oracle": point_estimate(oracle)}


def _standardised(scores: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Scores of different folds come from different heads: each fold to mean 0, deviation 1."""
    out = np.empty_like(scores)
    for fold in np.unique(folds):
        part = scores[folds == fold]
        out[folds == fold] = (part - part.mean()) / (part.std() or 1.0)
    return out


def _separation(
    states: Float[Tensor, "answers width"], rows: Float[Tensor, "live width"], labels: np.ndarray
) -> Float[Tensor, " live"]:
    """(mean of right - mean of wrong) / pooled deviation, along each direction."""
    right, wrong = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    if len(right) < 2 or len(wrong) < 2:
        return torch.full((len(rows),), math.nan, dtype=torch.float64)
    means, squares = [], []
    for part in (right, wrong):
        found = Moments.of(states[part], [0.0] * len(part))
        mean = rows @ (found.x / found.weight)
        means.append(mean)
        squares.append(((rows @ found.xx) * rows).sum(1) - len(part) * mean.square())
    pooled = (squares[0] + squares[1]) / (len(right) + len(wrong) - 2)
    return (means[0] - means[1]) / pooled.sqrt()
