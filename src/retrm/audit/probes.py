"""Heads on many feature sets of the same states, each scored out of fold.

Two solvers, both linear. `logistic` is the head that `retrm fit` makes (cross-entropy or
Bradley-Terry, penalty chosen inside the training part); it judges the primary contrasts. `ridge` is
least squares from Gram matrices that are accumulated once per layer and pooling: thousands of cells at
the cost of one pass. Folds go by prompt; means, deviations, PCA and penalties come from training parts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.audit.directions import Directions, FeatureSet
from retrm.audit.plan import AuditPlan
from retrm.audit.supervision import Supervision
from retrm.features.reduce import Features
from retrm.fitting.fit import out_of_fold
from retrm.fitting.ridge import Moments, RidgeFit, choose_ridge, project_many
from retrm.fitting.threads import one_thread_if_small
from retrm.methods import method

Basis = Float[Tensor, "width m"] | None
# Bases that are projected together: their stacked width bounds memory, not the result.
_COLUMNS_AT_ONCE = 4096
ROWS_AT_ONCE = 8192  # states in float64 at a time


@dataclass(frozen=True)
class Probe:
    """Out-of-fold scores of a head on one feature set.

    Attributes:
        features: what it reads.
        head: `logistic`, `ridge` or `gated`; `-` for a rule without one.
        scores: (n,) each by a head that never saw the prompt.
        at_end: share of folds in which an end of the penalty grid was chosen.
        n_train_prompts: prompts in a training part, mean over folds.
    """

    features: FeatureSet
    head: str
    scores: np.ndarray
    at_end: float
    n_train_prompts: int

    @classmethod
    def rule(cls, name: str, scores: np.ndarray) -> Self:
        """A baseline that was not fitted."""
        return cls(FeatureSet(name, 0, scaling="-"), "-", np.asarray(scores), math.nan, 0)


def ridge_probes(
    states: Float[Tensor, "answers width"],
    sets: Sequence[FeatureSet],
    supervision: Supervision,
    folds: np.ndarray,
    plan: AuditPlan,
    directions: Callable[[FeatureSet, Moments], Basis],
    *,
    n_prompts: int | None = None,
    subset_seed: int = 0,
) -> tuple[Probe, ...]:
    """Least-squares heads on every feature set of `states`.

    Args:
        states: (n, D) rows of `supervision`.
        sets: what to fit on.
        supervision: labels or pairs.
        folds: (n,) outer folds.
        plan: inner folds and seed.
        directions: columns of a set, given the moments of the training part; None = all of D.
        n_prompts: fit on so many training prompts only; the first of a seeded order, so that
            smaller parts lie in larger ones.
        subset_seed: of that order.
    """
    blocks = None if n_prompts is not None else _blocks(states, supervision, folds, plan)
    scores = np.full((len(sets), len(states)), np.nan)
    at_end, n_train = np.zeros(len(sets)), []
    for fold in range(plan.n_folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if n_prompts is not None:
            train = first_prompts(supervision.prompt_ids, train, n_prompts, subset_seed)
        inner = (
            _training_blocks(blocks, fold)
            if blocks is not None
            else inner_moments(states, supervision, train, plan)
        )
        n_train.append(len(set(supervision.prompt_ids[train].tolist())))
        with one_thread_if_small(states.numel()):
            columns, biases, ends = _fit_sets(inner, sets, supervision, directions)
        for rows in np.array_split(test, 1 + len(test) // ROWS_AT_ONCE):
            scores[:, rows] = (states[rows].double() @ columns + biases).T.numpy()
        at_end += ends
    n_mean = round(float(np.mean(n_train)))
    return tuple(
        Probe(s, "ridge", scores[i], float(at_end[i] / plan.n_folds), n_mean)
        for i, s in enumerate(sets)
    )


def _blocks(
    x: Tensor, supervision: Supervision, folds: np.ndarray, plan: AuditPlan
) -> list[list[Moments]]:
    """Moments by outer fold and, within it, by inner fold: every training part is a sum of them."""
    out = []
    for fold in range(plan.n_folds):
        rows = np.flatnonzero(folds == fold)
        out.append(inner_moments(x, supervision, rows, plan))
    return out


def _training_blocks(blocks: Sequence[Sequence[Moments]], fold: int) -> list[Moments]:
    """The inner folds of the training part of one outer fold."""
    kept = [inner for number, inner in enumerate(blocks) if number != fold]
    return [Moments.total(part) for part in zip(*kept, strict=True)]


def inner_moments(
    x: Float[Tensor, "answers width"], supervision: Supervision, rows: np.ndarray, plan: AuditPlan
) -> list[Moments]:
    """Moments of some rows by inner fold; the folds by which a penalty is chosen."""
    inner = supervision.inner_folds(rows, plan)
    return [_moments(x, supervision, rows[inner == k]) for k in range(plan.n_inner_folds)]


def _moments(x: Tensor, supervision: Supervision, rows: np.ndarray) -> Moments:
    if supervision.task == "graded":
        return Moments.of(x[rows], supervision.labels[rows].tolist())
    targets = supervision.targets.take(rows)
    return Moments.of_pairs(
        x[rows],
        targets.pairs[:, 0].tolist(),
        targets.pairs[:, 1].tolist(),
        weights=targets.weights.tolist(),
    )


def _fit_sets(
    inner: Sequence[Moments],
    sets: Sequence[FeatureSet],
    supervision: Supervision,
    directions: Callable[[FeatureSet, Moments], Basis],
) -> tuple[Float[Tensor, "width sets"], Float[Tensor, " sets"], np.ndarray]:
    whole = Moments.total(inner)
    columns = torch.empty(whole.width, len(sets), dtype=torch.float64)
    biases = torch.empty(len(sets), dtype=torch.float64)
    ends = np.zeros(len(sets))
    for part in _parts(sets):
        bases = [directions(sets[i], whole) for i in part]
        projected = project_many(inner, [b for b in bases if b is not None])
        ready = iter(projected)
        for i, basis in zip(part, bases, strict=True):
            blocks = tuple(inner) if basis is None else next(ready)
            fit = _fit(blocks, sets[i], supervision)
            weight = fit.weight.double()
            columns[:, i] = weight if basis is None else basis @ weight
            biases[i], ends[i] = fit.bias, fit.is_at_end
    return columns, biases, ends


def _fit(blocks: Sequence[Moments], features: FeatureSet, supervision: Supervision) -> RidgeFit:
    return choose_ridge(
        blocks,
        standardise=features.scaling == "standardised",
        has_intercept=supervision.task == "graded",
    )


def _parts(sets: Sequence[FeatureSet]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    columns = 0
    for i, features in enumerate(sets):
        if columns + features.m > _COLUMNS_AT_ONCE and parts[-1]:
            parts.append([])
            columns = 0
        parts[-1].append(i)
        columns += features.m
    return parts


def first_prompts(
    prompt_ids: np.ndarray, rows: np.ndarray, n_prompts: int, seed: int
) -> np.ndarray:
    """Those of `rows` that belong to the first `n_prompts` prompts of a seeded order."""
    prompts = np.unique(prompt_ids[rows].astype(str))
    order = np.random.default_rng(seed).permutation(prompts)
    return rows[np.isin(prompt_ids[rows].astype(str), order[:n_prompts])]


def logistic_probes(
    states: Float[Tensor, "answers width"],
    sets: Sequence[FeatureSet],
    supervision: Supervision,
    folds: np.ndarray,
    directions: Directions,
    *,
    seed: int = 0,
    on_probe: Callable[[int, int], None] | None = None,
) -> tuple[Probe, ...]:
    """The head of `retrm fit` on every feature set that needs no training states."""
    out = []
    for number, features in enumerate(sets):
        basis = directions.of(features)
        values = states if basis is None else _projected(states, basis)
        out.append(_logistic(values, features, supervision, folds, seed))
        if on_probe is not None:
            on_probe(number + 1, len(sets))
    return tuple(out)


def _projected(states: Tensor, basis: Float[Tensor, "width m"]) -> Float[Tensor, "answers m"]:
    """In float64 by parts: the tail is weak and float32 products would round it."""
    return torch.cat([(part.double() @ basis).float() for part in states.split(ROWS_AT_ONCE)])


def _logistic(
    values: Tensor, features: FeatureSet, supervision: Supervision, folds: np.ndarray, seed: int
) -> Probe:
    chosen = replace(method("last_token"), standardise=features.scaling == "standardised")
    whole = Features(values, torch.arange(len(values) + 1), True)
    ends: list[bool] = []
    scores = out_of_fold(
        chosen,
        whole,
        supervision.targets,
        folds,
        seed=seed,
        on_fit=lambda fitted: ends.append(bool(fitted.report["lam_is_at_end"])),
    )
    n_train = mean_training_prompts(supervision, folds)
    return Probe(features, "logistic", scores, float(np.mean(ends)), n_train)


def mean_training_prompts(supervision: Supervision, folds: np.ndarray) -> int:
    """Prompts in a training part, mean over folds, rounded."""
    n_folds = len(np.unique(folds))
    return round(supervision.n_prompts * (n_folds - 1) / n_folds)


def gated_probe(
    tokens: Features,
    features: FeatureSet,
    basis: Basis,
    supervision: Supervision,
    folds: np.ndarray,
    *,
    seed: int = 0,
) -> Probe:
    """ELHSR's gated head over the response tokens of one feature set (trained by gradient).

    Args:
        tokens: of the last layer, post_norm, in the rows of `supervision`.
        features: which set.
        basis: its columns; None = the whole state.
        supervision: labels or pairs.
        folds: (n,) outer folds.
        seed: of the gradient loop.
    """
    values = tokens.values
    if basis is not None:  # in parts: the tokens themselves stay in the precision they were kept in
        values = torch.cat([part.float() @ basis.float() for part in values.split(ROWS_AT_ONCE)])
    whole = Features(values, tokens.offsets, False)
    scores = out_of_fold(method("elhsr"), whole, supervision.targets, folds, seed=seed)
    return Probe(features, "gated", scores, float("nan"), mean_training_prompts(supervision, folds))
