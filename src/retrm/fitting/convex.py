"""Heads that are linear in pooled features, solved to the optimum instead of trained.

    minimise   sum_i c_i loss_i / sum_i c_i  +  (lam/2) |w|^2          over w (and b)

    RowTargets    loss_i = -[ y log sigmoid(f_i) + (1-y) log sigmoid(-f_i) ],  f = Xw + b
    PairTargets   loss_i = -log sigmoid(f_chosen - f_rejected - margin),       f = Xw, no b
                  with smoothing and squares of scores, where asked for: `objectives.py`

The intercept is not penalised; pairs cannot see one, so it is 0. Pairwise-logistic over right x
wrong pairs of a prompt is `PairTargets` with weights: see `pairs_within_prompts`. With lam > 0 the
optimum is unique, also on separable data. Features are standardised by the mean and standard
deviation of the rows given, and the standardisation is folded into the result, so that
score = features @ weight + bias holds for raw features; lam acts on standardised weights.

How: if there are fewer rows than features, a QR factorisation turns the problem into one of n unknowns
(the optimum lies in the span of the rows). A large problem is never copied (`design.py`). Some rows of
the Hessian at w = 0, decomposed once for every lam, make a preconditioner (`preconditioner.py`), and
L-BFGS needs some tens of passes over the data; Newton is the second solver, by hand to check the first,
and automatically where L-BFGS stalls (`solvers.py`). All transformations are orthogonal, so the penalty
and the norm of the gradient mean the same before and after.

Sources: Bradley & Terry 1952, on frozen features a logistic regression without intercept on
differences; L-BFGS: Nocedal & Wright 2006, alg. 7.4.

    >>> import torch
    >>> from retrm.fitting.convex import RowTargets, fit_linear
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> fit = fit_linear(x, RowTargets([0, 1, 0, 1]), lam=0.1)
    >>> bool(fit.weight[0] > 0)
    True
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.data.split import prompt_folds
from retrm.errors import DataError, FitError, RecipeError, did_you_mean
from retrm.fitting.checks import checked_codes, checked_features, checked_penalties
from retrm.fitting.design import Coordinates, blocks, coordinates_of, sample_size
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
from retrm.fitting.parts import PartedRows, Rows, subset
from retrm.fitting.preconditioner import Preconditioner
from retrm.fitting.solvers import Goal, Problem, Solution, Solver, solve, with_penalty

__all__ = [
    "LAMBDA_GRID",
    "TOLERANCE",
    "LambdaChoice",
    "LinearFit",
    "PairTargets",
    "RowTargets",
    "Targets",
    "check_folds",
    "choose_lambda",
    "fit_linear",
    "fit_path",
    "pairs_within_prompts",
]

N_FOLDS = 3
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
        bias: intercept; for pairs 0, or with penalties on scores what makes their mean 0.
        lam: strength of the penalty, on standardised weights.
        objective: mean loss + (lam/2)|w|^2 at the optimum, w standardised.
        gradient_norm: norm of the gradient over its norm at w = 0.
        n_iterations: steps of the solver.
        solver: "newton" or "lbfgs".
        n_constant: features without variance; their weight is 0.
        gap_bound: the objective lies above the optimum by at most this share of it.
    """

    weight: Float[Tensor, " features"]
    bias: float
    lam: float
    objective: float
    gradient_norm: float
    n_iterations: int
    solver: str
    n_constant: int
    gap_bound: float


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
    features: Float[Tensor, "rows features"] | PartedRows,
    targets: Targets,
    *,
    lam: float,
    standardise: bool = True,
    solver: Solver = "auto",
    tolerance: float = TOLERANCE,
    gap: float | None = None,
) -> LinearFit:
    """Solve for the head that minimises mean loss + (lam/2)|w|^2.

    Args:
        features: (n, D) float32, in memory or in parts. Small ones are copied in float64 (8 n D
            bytes), and so are those with fewer rows than features; large ones are not.
        targets: `RowTargets` (cross-entropy, with intercept) or `PairTargets` (without).
        lam: above 0.
        standardise: scale features to unit variance first; False only centres them. Change it to
            compare with an unscaled reference, never for one feature set of several.
        solver: "newton" or "lbfgs" by hand, to check one against the other; "auto" is L-BFGS,
            continued by Newton where it stalls.
        tolerance: gradient norm relative to the one at w = 0.
        gap: stop as soon as the objective is proved to lie above the optimum by at most this share
            of it, for example 1e-6; `tolerance` is not asked then. A loose fit takes about half of the
            passes; scores near the optimum may still move in their third digit. None = `tolerance`.

    Raises:
        FitError: a feature is NaN or infinite (names the row), lam is not above 0, or no convergence
            (names the norm that was reached).
        LabelError: a label, margin or weight is missing or impossible, or all labels are the same.
        ShapeError: features are not a matrix, or targets do not fit its rows.
    """
    options = {"standardise": standardise, "solver": solver, "tolerance": tolerance, "gap": gap}
    return fit_path(features, targets, (lam,), **options)[0]


def fit_path(
    features: Float[Tensor, "rows features"] | PartedRows,
    targets: Targets,
    lams: Sequence[float],
    *,
    standardise: bool = True,
    solver: Solver = "auto",
    tolerance: float = TOLERANCE,
    gap: float | None = None,
) -> tuple[LinearFit, ...]:
    """`fit_linear` for several lam at little more than the cost of one.

    Means, deviations and the preconditioner are shared, and each solution starts from that of the next
    larger lam with what the solver has learnt there.

    Args:
        features: (n, D) float32.
        targets: what to fit.
        lams: each above 0, in any order.
        standardise: as in `fit_linear`.
        solver: as in `fit_linear`.
        tolerance: as in `fit_linear`.
        gap: as in `fit_linear`.

    Returns:
        One fit a lam, in the order of `lams`.

    Raises:
        FitError, LabelError, ShapeError: as `fit_linear`.
    """
    matrix = checked_features(features)
    objective = objective_of(targets, len(matrix), matrix.device)
    return _solve_path(matrix, objective, lams, standardise, solver, tolerance, gap)


def choose_lambda(
    features: Float[Tensor, "rows features"] | PartedRows,
    targets: Targets,
    prompt_ids: Sequence[object],
    *,
    grid: Sequence[float] = LAMBDA_GRID,
    n_folds: int = N_FOLDS,
    seed: int = 0,
    standardise: bool = True,
    solver: Solver = "auto",
    tolerance: float = TOLERANCE,
    gap: float | None = None,
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
        gap: as in `fit_linear`.

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
    dealt, n_dealt = _dealt(objective, codes, prompts, n_folds, seed)
    ascending = tuple(sorted(float(lam) for lam in grid))
    totals, weight = np.zeros(len(ascending)), 0.0
    for held_out, kept, judged in _folds(objective, dealt, n_folds):
        training = subset(matrix, ~held_out)
        fits = _solve_path(training, kept, ascending, standardise, solver, tolerance, gap)
        scores = _scores(subset(matrix, held_out), fits)
        totals += judged.criterion_total(scores).cpu().numpy()
        weight += float(judged.weights.sum())
    return _choice(ascending, totals / weight, objective.criterion, n_folds, n_dealt)


def check_folds(
    targets: Targets, prompt_ids: Sequence[object], *, n_folds: int = N_FOLDS, seed: int = 0
) -> None:
    """Refuse what `choose_lambda` would refuse, before there are features.

    Args:
        targets: what will be fitted.
        prompt_ids: (n,) the prompt of every row.
        n_folds: as there.
        seed: as there.

    Raises:
        FitError, LabelError, DataError: as `choose_lambda`.
    """
    objective = objective_of(targets, len(prompt_ids), torch.device("cpu"))
    dealt, _ = _dealt(objective, *checked_codes(prompt_ids, len(prompt_ids)), n_folds, seed)
    for _ in _folds(objective, dealt, n_folds):
        pass


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


def _scores(features: Rows, fits: Sequence[LinearFit]) -> Tensor:
    """(lams, rows) in float64."""
    weights = torch.stack([fit.weight for fit in fits]).double()
    scores = weights.new_empty(len(fits), len(features))
    for rows, block in blocks(features):
        scores[:, rows] = weights @ block.T
    return scores + weights.new_tensor([fit.bias for fit in fits])[:, None]


def _solve_path(
    features: Rows,
    objective: Objective,
    lams: Sequence[float],
    standardise: bool,
    solver: Solver,
    tolerance: float,
    gap: float | None,
) -> tuple[LinearFit, ...]:
    _check_options(lams, solver, tolerance, gap)
    b_null = _null_intercept(objective)
    f_null = torch.full((len(features),), b_null, dtype=torch.float64, device=features.device)
    where = coordinates_of(features, standardise=standardise)
    theta = f_null.new_zeros(where.design.n_unknowns + objective.has_intercept)
    if objective.has_intercept:
        theta[-1] = b_null
    problem = Problem(where.design, objective, 0.0)
    preconditioner = _preconditioner(problem, f_null)
    point, history = problem.at(theta), []
    null_norm = max(point.norm, _SMALLEST_NORM)
    goal = Goal(_AIM * tolerance * null_norm, gap)
    fits: dict[float, LinearFit] = {}
    for lam in sorted({float(lam) for lam in lams}, reverse=True):
        problem, point, history = with_penalty(problem, lam, point, history)
        solution = solve(problem, point, goal, preconditioner, solver, history)
        _check_converged(problem, solution, null_norm, tolerance, gap)
        point = solution.point
        fits[lam] = _folded(where, problem, solution, null_norm)
    return tuple(fits[float(lam)] for lam in lams)


def _preconditioner(null: Problem, f_null: Tensor) -> Preconditioner:
    """From the Hessian at w = 0."""
    root = null.design.root(null.objective, f_null)
    last = null.intercept_curvature(f_null) if null.objective.has_intercept else None
    is_sample = len(root) >= sample_size(null.design.n_unknowns)
    return Preconditioner.of(root, is_sample=is_sample, last=last)


def _null_intercept(objective: Objective) -> float:
    """Log-odds of the weighted mean label: the optimum without features."""
    if not isinstance(objective, RowObjective):
        return 0.0
    share = float((objective.weights * objective.labels).sum() / objective.weights.sum())
    return float(np.log(share) - np.log1p(-share))


def _folded(
    where: Coordinates, problem: Problem, solution: Solution, null_norm: float
) -> LinearFit:
    """Back to raw coordinates; the bias is made for the rounded weight, so errors do not add up."""
    theta = solution.point.theta
    has_intercept = problem.objective.has_intercept
    a = theta[:-1] if has_intercept else theta
    weight = (where.to_width(a) * where.standardiser.inverse).float()
    bias = 0.0
    if has_intercept or problem.objective.is_centred:
        offset = float(theta[-1]) if has_intercept else 0.0
        bias = offset - float(weight.double() @ where.standardiser.mean)
    return LinearFit(
        weight,
        bias,
        problem.lam,
        solution.point.value,
        solution.point.norm / null_norm,
        solution.n_iterations,
        solution.solver,
        int(where.standardiser.is_constant.sum()),
        problem.gap_bound(solution.point),
    )


# ------------------------------------------------------------------------ checks


def _check_converged(
    problem: Problem, solution: Solution, null_norm: float, tolerance: float, gap: float | None
) -> None:
    if Goal(tolerance * null_norm, gap).is_reached(problem, solution.point):
        return
    what, got, wanted = "relative gradient norm", solution.point.norm / null_norm, tolerance
    if gap is not None:
        what, got, wanted = "proved gap", problem.gap_bound(solution.point), gap
    raise FitError(
        f"got a {what} of {got:.2e} after {solution.n_iterations} steps of {solution.solver} at lam = "
        f"{problem.lam:g}; expected at most {wanted:.0e}. Raise lam, standardise the features, or allow "
        "a larger tolerance."
    )


def _check_options(lams: Sequence[float], solver: str, tolerance: float, gap: float | None) -> None:
    if solver not in ("auto", "newton", "lbfgs"):
        raise RecipeError(
            f"got solver {solver!r}; expected one of auto, newton, lbfgs. "
            + did_you_mean(str(solver), ("auto", "newton", "lbfgs"))
        )
    checked_penalties(lams)
    for name, value in (("tolerance", tolerance), ("gap", gap)):
        if value is not None and not 0 < value < 1:
            raise FitError(f"got {name} = {value}; expected a number between 0 and 1.")


def _folds(
    objective: Objective, dealt: np.ndarray, n_folds: int
) -> Iterator[tuple[Tensor, Objective, Objective]]:
    """Of one fold after the other: which rows are held out, what is fitted, what is judged."""
    for fold in range(n_folds):
        held_out = torch.as_tensor(dealt == fold, device=objective.weights.device)
        kept, judged = objective.subset(~held_out), objective.subset(held_out)
        _check_fold(kept, judged, fold, n_folds)
        yield held_out, kept, judged


def _dealt(
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
            "prompt expected at least 2 folds and a prompt for each. Bring more prompts, or hold fewer "
            "of them out (test_fraction)."
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
