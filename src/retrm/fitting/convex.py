"""Heads that are linear in pooled features, solved to the optimum instead of trained.

    minimise   sum_i c_i loss_i / sum_i c_i  +  (lam/2) |w|^2          over w (and b)

    RowTargets    loss_i = -[ y log sigmoid(f_i) + (1-y) log sigmoid(-f_i) ],  f = Xw + b
    PairTargets   loss_i = -log sigmoid(f_chosen - f_rejected - margin),       f = Xw, no b

The intercept is not penalised; pairs cannot see one, so it is 0. Pairwise-logistic over right x
wrong pairs of a prompt is `PairTargets` with weights: see `pairs_within_prompts`. With lam > 0 the
optimum is unique, also on separable data. Features are standardised by the mean and standard
deviation of the rows given, and the standardisation is folded into the result, so that
score = features @ weight + bias holds for raw features; lam acts on standardised weights.

How: if there are fewer rows than features, a QR factorisation turns the problem into one of n unknowns
(the optimum lies in the span of the rows). A large problem is never copied (`design.py`). The Hessian
at w = 0, factorised for every lam, is a near-perfect preconditioner, and L-BFGS needs some tens of
passes over the data; Newton is the second solver, by hand to check the first, and automatically where
L-BFGS stalls (`solvers.py`). All transformations are orthogonal, so the penalty and the norm of the
gradient mean the same before and after.

Sources: Bradley & Terry 1952, on frozen features a logistic regression without intercept on
differences; L-BFGS: Nocedal & Wright 2006, alg. 7.4.

    >>> import torch
    >>> from retrm.fitting.convex import RowTargets, fit_linear
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> fit = fit_linear(x, RowTargets([0, 1, 0, 1]), lam=0.1)
    >>> bool(fit.weight[0] > 0)
    True
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.data.split import prompt_folds
from retrm.errors import DataError, FitError, RecipeError, did_you_mean
from retrm.fitting.checks import checked_codes, checked_features, checked_penalties
from retrm.fitting.design import Coordinates, coordinates_of
from retrm.fitting.objectives import (
    Objective,
    PairObjective,
    PairTargets,
    RowObjective,
    RowTargets,
    Targets,
    objective_of,
    pairs_within_prompts,
)
from retrm.fitting.solvers import Problem, Solution, Solver, solve

__all__ = [
    "LAMBDA_GRID",
    "TOLERANCE",
    "LambdaChoice",
    "LinearFit",
    "PairTargets",
    "RowTargets",
    "Targets",
    "choose_lambda",
    "fit_linear",
    "fit_path",
    "pairs_within_prompts",
]

LAMBDA_GRID: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
TOLERANCE = 1e-6
# Solvers aim lower than what is accepted: the last digits are cheap, and with a weak penalty the
# weights are known far less well than the gradient.
_AIM = 1e-3
# Without any signal the gradient at w = 0 is rounding itself, which no solver can reduce.
_SMALLEST_NORM = 1e-8


# ---------------------------------------------------------------------- results


@dataclass(frozen=True)
class LinearFit:
    """A linear head in raw feature coordinates: score = features @ weight + bias.

    Attributes:
        weight: (D,) float32, on the device of the features (CPU for "mps", which has no float64).
        bias: intercept; 0 for pairs.
        lam: strength of the penalty, on standardised weights.
        objective: mean loss + (lam/2)|w|^2 at the optimum, w standardised.
        gradient_norm: norm of the gradient over its norm at w = 0.
        n_iterations: steps of the solver.
        solver: "newton" or "lbfgs".
        n_constant: features without variance; their weight is 0.
    """

    weight: Float[Tensor, " features"]
    bias: float
    lam: float
    objective: float
    gradient_norm: float
    n_iterations: int
    solver: str
    n_constant: int


@dataclass(frozen=True)
class LambdaChoice:
    """Strength of the penalty chosen by cross-validation over prompts.

    Attributes:
        lam: the chosen one; of equals the larger.
        grid: all that were tried, ascending.
        values: held-out criterion of each.
        criterion: "log_loss" (lower is better, RowTargets) or "pair_accuracy" (higher is better,
            PairTargets).
        is_at_end: whether an end of the grid was chosen; if that happens often, widen the grid for
            ALL feature sets that are compared.
        n_folds: folds.
        n_prompts: prompts dealt into them.
    """

    lam: float
    grid: tuple[float, ...]
    values: tuple[float, ...]
    criterion: Literal["log_loss", "pair_accuracy"]
    is_at_end: bool
    n_folds: int
    n_prompts: int


# --------------------------------------------------------------------- the verbs


def fit_linear(
    features: Float[Tensor, "rows features"],
    targets: Targets,
    *,
    lam: float,
    standardise: bool = True,
    solver: Solver = "auto",
    tolerance: float = TOLERANCE,
) -> LinearFit:
    """Solve for the head that minimises mean loss + (lam/2)|w|^2.

    Args:
        features: (n, D) float32; computed with in float64, which takes 8 n D bytes and a copy.
        targets: `RowTargets` (cross-entropy, with intercept) or `PairTargets` (without).
        lam: above 0.
        standardise: scale features to unit variance first; False only centres them. Change it to
            compare with an unscaled reference, never for one feature set of several.
        solver: "newton" or "lbfgs" by hand, to check one against the other; "auto" is L-BFGS,
            continued by Newton where it stalls.
        tolerance: gradient norm relative to the one at w = 0.

    Raises:
        FitError: a feature is NaN or infinite (names the row), lam is not above 0, or no convergence
            (names the norm that was reached).
        LabelError: a label, margin or weight is missing or impossible, or all labels are the same.
        ShapeError: features are not a matrix, or targets do not fit its rows.
    """
    return fit_path(
        features, targets, (lam,), standardise=standardise, solver=solver, tolerance=tolerance
    )[0]


def fit_path(
    features: Float[Tensor, "rows features"],
    targets: Targets,
    lams: Sequence[float],
    *,
    standardise: bool = True,
    solver: Solver = "auto",
    tolerance: float = TOLERANCE,
) -> tuple[LinearFit, ...]:
    """`fit_linear` for several lam at little more than the cost of one.

    The factorisation is shared, and each solution starts from that of the next larger lam.

    Args:
        features: (n, D) float32.
        targets: what to fit.
        lams: each above 0, in any order.
        standardise: as in `fit_linear`.
        solver: as in `fit_linear`.
        tolerance: as in `fit_linear`.

    Returns:
        One fit a lam, in the order of `lams`.

    Raises:
        FitError, LabelError, ShapeError: as `fit_linear`.
    """
    matrix = checked_features(features)
    objective = objective_of(targets, len(matrix), matrix.device)
    return _solve_path(matrix, objective, lams, standardise, solver, tolerance)


def choose_lambda(
    features: Float[Tensor, "rows features"],
    targets: Targets,
    prompt_ids: Sequence[object],
    *,
    grid: Sequence[float] = LAMBDA_GRID,
    n_folds: int = 3,
    seed: int = 0,
    standardise: bool = True,
    solver: Solver = "auto",
    tolerance: float = TOLERANCE,
) -> LambdaChoice:
    """Choose lam by k-fold cross-validation grouped by prompt, inside the training data.

    Rows of targets: held-out log-loss, weighted like the fit. Pairs: held-out share of pairs in the
    right order, ties 1/2, weighted like the fit; with `pairs_within_prompts` this IS the
    within-prompt AUROC, as the mean over prompts or pair-weighted. Means and deviations come from
    the training part of each fold only. Equal values go to the larger lam.

    Args:
        features: (n, D) float32, training rows only.
        targets: what to fit.
        prompt_ids: (n,) the prompt of every row.
        grid: strengths to try; the same for every feature set that is compared.
        n_folds: number of folds.
        seed: of the folds.
        standardise: as in `fit_linear`.
        solver: as in `fit_linear`.
        tolerance: as in `fit_linear`.

    Raises:
        FitError: fewer prompts than folds, a fold that cannot be fitted, or as `fit_linear`.
        LabelError, ShapeError: as `fit_linear`.
        DataError: a pair whose answers belong to different prompts.
    """
    if not len(grid):
        raise FitError("got an empty grid; expected at least one lam above 0.")
    matrix = checked_features(features)
    objective = objective_of(targets, len(matrix), matrix.device)
    codes, prompts = checked_codes(prompt_ids, len(matrix))
    folds, n_dealt = _folds(objective, codes, prompts, n_folds, seed)
    ascending = tuple(sorted(float(lam) for lam in grid))
    totals, weight = np.zeros(len(ascending)), 0.0
    for fold in range(n_folds):
        held_out = torch.as_tensor(folds == fold, device=matrix.device)
        kept, judged = objective.subset(~held_out), objective.subset(held_out)
        _check_fold(kept, judged, fold, n_folds)
        fits = _solve_path(matrix[~held_out], kept, ascending, standardise, solver, tolerance)
        scores = _scores(matrix[held_out], fits)
        totals += judged.criterion_total(scores).cpu().numpy()
        weight += float(judged.weights.sum())
    return _choice(ascending, totals / weight, objective.criterion, n_folds, n_dealt)


def _choice(
    grid: tuple[float, ...],
    values: np.ndarray,
    criterion: Literal["log_loss", "pair_accuracy"],
    n_folds: int,
    n_prompts: int,
) -> LambdaChoice:
    badness = values if criterion == "log_loss" else -values
    best = int(np.flatnonzero(badness <= badness.min() + 1e-12)[-1])
    is_at_end = best in (0, len(grid) - 1)
    return LambdaChoice(
        grid[best], grid, tuple(map(float, values)), criterion, is_at_end, n_folds, n_prompts
    )


def _scores(features: Tensor, fits: Sequence[LinearFit]) -> Tensor:
    """(lams, rows) in float64."""
    weights = torch.stack([fit.weight for fit in fits]).double()
    biases = torch.tensor([fit.bias for fit in fits], dtype=torch.float64, device=features.device)
    return weights @ features.double().T + biases[:, None]


def _solve_path(
    features: Tensor,
    objective: Objective,
    lams: Sequence[float],
    standardise: bool,
    solver: Solver,
    tolerance: float,
) -> tuple[LinearFit, ...]:
    _check_options(lams, solver, tolerance)
    b_null = _null_intercept(objective)
    f_null = torch.full((len(features),), b_null, dtype=torch.float64, device=features.device)
    where = coordinates_of(features, standardise=standardise)
    theta = f_null.new_zeros(where.design.n_unknowns + objective.has_intercept)
    if objective.has_intercept:
        theta[-1] = b_null
    null_norm = max(Problem(where.design, objective, 0.0).at(theta).norm, _SMALLEST_NORM)
    target = tolerance * null_norm
    curvature = where.design.curvature(objective, f_null)
    fits: dict[float, LinearFit] = {}
    for lam in sorted({float(lam) for lam in lams}, reverse=True):
        problem = Problem(where.design, objective, lam)
        preconditioner = problem.preconditioner(curvature, f_null)
        solution = solve(problem, theta, _AIM * target, preconditioner, solver)
        _check_converged(solution, null_norm, target, lam)
        theta = solution.point.theta
        fits[lam] = _folded(where, objective, solution, lam, null_norm)
    return tuple(fits[float(lam)] for lam in lams)


def _null_intercept(objective: Objective) -> float:
    """Log-odds of the weighted mean label: the optimum without features."""
    if not isinstance(objective, RowObjective):
        return 0.0
    share = float((objective.weights * objective.labels).sum() / objective.weights.sum())
    return float(np.log(share) - np.log1p(-share))


def _folded(
    where: Coordinates,
    objective: Objective,
    solution: Solution,
    lam: float,
    null_norm: float,
) -> LinearFit:
    """Back to raw coordinates; the bias is made for the rounded weight, so errors do not add up."""
    theta = solution.point.theta
    a = theta[:-1] if objective.has_intercept else theta
    weight = (where.to_width(a) * where.standardiser.inverse).float()
    bias = 0.0
    if objective.has_intercept:
        bias = float(theta[-1] - weight.double() @ where.standardiser.mean)
    return LinearFit(
        weight,
        bias,
        lam,
        solution.point.value,
        solution.point.norm / null_norm,
        solution.n_iterations,
        solution.solver,
        int(where.standardiser.is_constant.sum()),
    )


# ------------------------------------------------------------------------ checks


def _check_converged(solution: Solution, null_norm: float, target: float, lam: float) -> None:
    if not solution.point.norm <= target:
        raise FitError(
            f"got a relative gradient norm of {solution.point.norm / null_norm:.2e} after "
            f"{solution.n_iterations} steps of {solution.solver} at lam = {lam:g}; expected at most "
            f"{target / null_norm:.0e}. Raise lam, standardise the features, or allow a larger "
            "tolerance."
        )


def _check_options(lams: Sequence[float], solver: str, tolerance: float) -> None:
    if solver not in ("auto", "newton", "lbfgs"):
        raise RecipeError(
            f"got solver {solver!r}; expected one of auto, newton, lbfgs. "
            + did_you_mean(str(solver), ("auto", "newton", "lbfgs"))
        )
    checked_penalties(lams)
    if not 0 < tolerance < 1:
        raise FitError(f"got tolerance = {tolerance}; expected a number between 0 and 1.")


def _folds(
    objective: Objective, codes: np.ndarray, prompts: np.ndarray, n_folds: int, seed: int
) -> tuple[np.ndarray, int]:
    """Fold of every row, and how many prompts with targets were dealt.

    Prompts without targets get fold -1: never judged, always there to standardise by.
    """
    has_target = np.ones(len(prompts), dtype=bool)
    if isinstance(objective, PairObjective):
        chosen, rejected = objective.chosen.cpu().numpy(), objective.rejected.cpu().numpy()
        crossing = np.flatnonzero(codes[chosen] != codes[rejected])
        if crossing.size:
            raise DataError(
                f"got pair {crossing[0]} of answers to different prompts; expected two answers to "
                "one prompt. Check the prompt_id column."
            )
        has_target = np.isin(np.arange(len(prompts)), codes[chosen])
    if n_folds < 2 or has_target.sum() < n_folds:
        raise FitError(
            f"got {has_target.sum()} prompt(s) to fit on for {n_folds} folds; cross-validation by "
            "prompt expected at least 2 folds and a prompt for each. Bring more prompts, or choose "
            "lam yourself."
        )
    fold = np.full(len(prompts), -1, dtype=np.int64)
    fold[has_target] = prompt_folds(prompts[has_target], n_folds, seed)
    return fold[codes], int(has_target.sum())


def _check_fold(kept: Objective, judged: Objective, fold: int, n_folds: int) -> None:
    advice = "Bring more prompts (at least a few per fold)."
    for part, name in ((kept, "training"), (judged, "held-out")):
        if not bool((part.weights > 0).any()):
            raise FitError(
                f"got no weight in the {name} part of fold {fold} of {n_folds}; expected rows or "
                f"pairs there. {advice}"
            )
    if isinstance(kept, RowObjective):
        labels = kept.labels[kept.weights > 0]
        if bool((labels == labels[0]).all()):
            raise FitError(
                f"got labels that are all {float(labels[0]):g} in the training part of fold {fold} "
                f"of {n_folds}; expected both right and wrong answers. {advice}"
            )
