"""Heads that are linear in pooled features, solved to the optimum instead of trained.

    minimise   sum_i c_i loss_i / sum_i c_i  +  (lam/2) |w|^2          over w (and b)

    RowTargets    loss_i = -[ y log sigmoid(f_i) + (1-y) log sigmoid(-f_i) ],  f = Xw + b
    PairTargets   loss_i = -log sigmoid(f_chosen - f_rejected - margin),       f = Xw, no b

The intercept is not penalised; pairs cannot see one, so it is 0. Pairwise-logistic over right x
wrong pairs of a prompt is `PairTargets` with weights: see `pairs_within_prompts`. With lam > 0 the
optimum is unique, also on separable data. Features are standardised by the mean and standard
deviation of the rows given, and the standardisation is folded into the result, so that
score = features @ weight + bias holds for raw features; lam acts on standardised weights.

How: centre and scale in float64; if there are fewer rows than features, a QR factorisation turns the
problem into one of n unknowns (the optimum lies in the span of the rows); then rotate to the
eigenvectors of the Hessian at w = 0, once for all lam. There that Hessian is diagonal, a near-perfect
preconditioner, and L-BFGS needs some tens of passes over the data. Newton with Cholesky is the second
solver, by hand to check the first, and automatically where L-BFGS stalls. All transformations are
orthogonal, so the penalty and the norm of the gradient mean the same before and after. Measured on one
CPU core, 4,800 rows x 576 features: 0.3 s for one lam, 0.5 s for the nine of the default grid.

Sources: Bradley & Terry 1952, on frozen features a logistic regression without intercept on
differences; L-BFGS: Nocedal & Wright 2006, alg. 7.4.

    >>> import torch
    >>> from retrm.fitting.convex import RowTargets, fit_linear
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> fit = fit_linear(x, RowTargets([0, 1, 0, 1]), lam=0.1)
    >>> bool(fit.weight[0] > 0)
    True
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.data.split import prompt_folds
from retrm.errors import DataError, FitError, LabelError, RecipeError, did_you_mean
from retrm.fitting.checks import (
    PairWeighting,
    check_weighting,
    checked_codes,
    checked_features,
    checked_numbers,
    checked_pairs,
    checked_penalties,
    checked_weights,
    refuse_labels,
)

Solver = Literal["auto", "newton", "lbfgs"]

LAMBDA_GRID: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
TOLERANCE = 1e-6
# Solvers aim lower than what is accepted: the last digits are cheap, and with a weak penalty the
# weights are known far less well than the gradient.
_AIM = 1e-3
# Beyond this an eigendecomposition (9 D^3) costs more than the passes that it saves.
_ROTATION_WIDTH = 2500
_MAX_NEWTON_STEPS = 100
_MAX_LBFGS_STEPS = 5000
# With a very weak penalty on separable data a few Newton steps are cheaper than more of L-BFGS.
_STEPS_BEFORE_NEWTON = 400
_LBFGS_MEMORY = 20
# Without any signal the gradient at w = 0 is rounding itself, which no solver can reduce.
_SMALLEST_NORM = 1e-8
# A column whose deviation is below this share of its size differs by rounding only.
_CONSTANT_SHARE = 1e-12


# ---------------------------------------------------------------------- targets


@dataclass(frozen=True)
class RowTargets:
    """Right or wrong for every row of the features.

    Attributes:
        labels: (n,) from 0 to 1, usually 0 or 1.
        weights: (n,) weight of every row, 0 or more; None = all equal.
    """

    labels: Sequence[float]
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class PairTargets:
    """Preferences between rows of the features.

    Attributes:
        chosen: (P,) row numbers of the preferred answers.
        rejected: (P,) row numbers of the others.
        margins: (P,) by how much chosen should lead, 0 or more; None = no margins.
        weights: (P,) weight of every pair, 0 or more; None = all equal.
    """

    chosen: Sequence[int]
    rejected: Sequence[int]
    margins: Sequence[float] | None = None
    weights: Sequence[float] | None = None


Targets = RowTargets | PairTargets


def pairs_within_prompts(
    labels: Sequence[float],
    prompt_ids: Sequence[object],
    *,
    weighting: PairWeighting = "prompt",
) -> PairTargets:
    """All right x wrong pairs inside a prompt: the targets of the pairwise-logistic loss.

    Args:
        labels: (n,) 0 or 1.
        prompt_ids: (n,) the prompt of every row.
        weighting: "prompt" = every mixed prompt counts the same; "pair" = every pair does.

    Raises:
        LabelError: a label is not 0 or 1, or no prompt has both.
        RecipeError: unknown weighting.
    """
    check_weighting(weighting)
    truth = np.asarray(labels, dtype=np.float64)
    refuse_labels(~np.isin(truth, (0.0, 1.0)), truth, "label", "0 or 1")
    codes, prompts = checked_codes(prompt_ids, len(truth))
    chosen, rejected = [], []
    for rows in _rows_by_code(codes, len(prompts)):
        right, wrong = rows[truth[rows] == 1], rows[truth[rows] == 0]
        chosen.append(np.repeat(right, len(wrong)))
        rejected.append(np.tile(wrong, len(right)))
    n_pairs = np.array([len(part) for part in chosen])
    if n_pairs.sum() == 0:
        raise LabelError(
            f"got {len(prompts)} prompt(s), none with both a right and a wrong answer; pairs "
            "expected at least one. Sample more answers a prompt, or fit with cross-entropy."
        )
    weights = np.repeat(1.0 / np.maximum(n_pairs, 1), n_pairs) if weighting == "prompt" else None
    return PairTargets(np.concatenate(chosen), np.concatenate(rejected), None, weights)


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
    objective = _objective(targets, len(matrix), matrix.device)
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
    objective = _objective(targets, len(matrix), matrix.device)
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


# -------------------------------------------------------------------- objectives


class _Objective(Protocol):
    """A weighted mean loss of row scores f; the weights are stored as given and normalised here."""

    weights: Tensor
    has_intercept: bool
    criterion: Literal["log_loss", "pair_accuracy"]

    def value(self, f: Tensor) -> Tensor: ...

    def slope(self, f: Tensor) -> Tensor:
        """Derivative of the value in f, (n,)."""
        ...

    def curved(self, f: Tensor, matrix: Tensor) -> Tensor:
        """(Hessian of value in f) @ matrix, (n, k)."""
        ...

    def subset(self, mask: Tensor) -> "_Objective":
        """The part that lives on the rows of `mask`, renumbered."""
        ...

    def criterion_total(self, scores: Tensor) -> Tensor:
        """(lams, n) scores -> (lams,) weighted sum of the criterion."""
        ...


@dataclass(frozen=True)
class _RowObjective:
    labels: Tensor
    weights: Tensor
    has_intercept: bool = field(default=True, init=False)
    criterion: Literal["log_loss"] = field(default="log_loss", init=False)

    def _terms(self, f: Tensor) -> Tensor:
        log_sigmoid = torch.nn.functional.logsigmoid
        return -(self.labels * log_sigmoid(f) + (1 - self.labels) * log_sigmoid(-f))

    def value(self, f: Tensor) -> Tensor:
        return (self.weights * self._terms(f)).sum() / self.weights.sum()

    def slope(self, f: Tensor) -> Tensor:
        return self.weights * (torch.sigmoid(f) - self.labels) / self.weights.sum()

    def curved(self, f: Tensor, matrix: Tensor) -> Tensor:
        curvature = self.weights * torch.sigmoid(f) * torch.sigmoid(-f) / self.weights.sum()
        return curvature[:, None] * matrix

    def subset(self, mask: Tensor) -> "_RowObjective":
        return _RowObjective(self.labels[mask], self.weights[mask])

    def criterion_total(self, scores: Tensor) -> Tensor:
        return (self.weights * self._terms(scores)).sum(dim=1)


@dataclass(frozen=True)
class _PairObjective:
    chosen: Tensor
    rejected: Tensor
    margins: Tensor
    weights: Tensor
    has_intercept: bool = field(default=False, init=False)
    criterion: Literal["pair_accuracy"] = field(default="pair_accuracy", init=False)

    def _gaps(self, f: Tensor) -> Tensor:
        return f[self.chosen] - f[self.rejected] - self.margins

    def _to_rows(self, pair_values: Tensor, n: int) -> Tensor:
        """Transpose of the difference map: + at chosen, - at rejected."""
        rows = pair_values.new_zeros((n, *pair_values.shape[1:]))
        rows.index_add_(0, self.chosen, pair_values)
        return rows.index_add_(0, self.rejected, -pair_values)

    def value(self, f: Tensor) -> Tensor:
        terms = -torch.nn.functional.logsigmoid(self._gaps(f))
        return (self.weights * terms).sum() / self.weights.sum()

    def slope(self, f: Tensor) -> Tensor:
        pull = -self.weights * torch.sigmoid(-self._gaps(f)) / self.weights.sum()
        return self._to_rows(pull, len(f))

    def curved(self, f: Tensor, matrix: Tensor) -> Tensor:
        gaps = self._gaps(f)
        curvature = self.weights * torch.sigmoid(gaps) * torch.sigmoid(-gaps) / self.weights.sum()
        differences = matrix[self.chosen] - matrix[self.rejected]
        return self._to_rows(curvature[:, None] * differences, len(f))

    def subset(self, mask: Tensor) -> "_PairObjective":
        number = torch.cumsum(mask, 0) - 1
        kept = mask[self.chosen]
        return _PairObjective(
            number[self.chosen[kept]],
            number[self.rejected[kept]],
            self.margins[kept],
            self.weights[kept],
        )

    def criterion_total(self, scores: Tensor) -> Tensor:
        gap = scores[:, self.chosen] - scores[:, self.rejected]
        return (self.weights * ((gap > 0).double() + 0.5 * (gap == 0).double())).sum(dim=1)


def _objective(targets: Targets, n: int, device: torch.device) -> _Objective:
    if isinstance(targets, RowTargets):
        labels = checked_numbers(targets.labels, "label", n, device, high=1.0)
        weights = checked_weights(targets.weights, n, device)
        weighed = labels[weights > 0]
        if bool((weighed == weighed[0]).all()):
            raise LabelError(
                f"got {len(weighed)} label(s), all {float(weighed[0]):g}; a fit expected both right "
                "and wrong answers. Bring data with both, or prompts of middling difficulty."
            )
        return _RowObjective(labels, weights)
    chosen, rejected = checked_pairs(targets.chosen, targets.rejected, n, device)
    margins = targets.margins if targets.margins is not None else np.zeros(len(chosen))
    return _PairObjective(
        chosen,
        rejected,
        checked_numbers(margins, "margin", len(chosen), device),
        checked_weights(targets.weights, len(chosen), device),
    )


# ------------------------------------------------------------------- coordinates


@dataclass(frozen=True)
class _Coordinates:
    """Standardised, reduced and rotated features, and the way back.

    Attributes:
        design: (n, r) float64; row scores are design @ a + b.
        curvature: (r,) diagonal of the Hessian of the mean loss at w = 0 in these coordinates.
        mean: (D,) of the raw features.
        scale: (D,) divisor of the raw features.
        is_constant: (D,) features without variance.
        to_width: a (r,) -> standardised w (D,).
    """

    design: Tensor
    curvature: Tensor
    mean: Tensor
    scale: Tensor
    is_constant: Tensor
    to_width: Callable[[Tensor], Tensor]


def _coordinates(
    features: Tensor, objective: _Objective, f_null: Tensor, standardise: bool
) -> _Coordinates:
    raw = features.double()
    mean = raw.mean(dim=0)
    design = raw - mean
    deviation = design.square().mean(dim=0).sqrt()
    is_constant = deviation <= _CONSTANT_SHARE * raw.abs().amax(dim=0)
    design[:, is_constant] = 0.0
    scale = torch.where(is_constant, torch.ones_like(mean), deviation)
    scale = scale if standardise else torch.ones_like(mean)
    design /= scale
    n, width = design.shape
    maps: list[Tensor] = []
    if width > n:
        # Rows span at most n dimensions and the penalty keeps w inside their span; QR does not
        # square the condition number as a Gram matrix would.
        basis, triangle = torch.linalg.qr(design.T)
        design = triangle.T.contiguous()
        maps.append(basis)
    if design.shape[1] <= _ROTATION_WIDTH:
        hessian = design.T @ objective.curved(f_null, design)
        curvature, vectors = torch.linalg.eigh((hessian + hessian.T) / 2)
        design = design @ vectors
        maps.append(vectors)
    else:
        curvature = (design * objective.curved(f_null, design)).sum(dim=0)

    def to_width(a: Tensor) -> Tensor:
        for matrix in reversed(maps):
            a = matrix @ a
        return a

    return _Coordinates(design, curvature.clamp_min(0.0), mean, scale, is_constant, to_width)


# ----------------------------------------------------------------------- solvers


@dataclass(frozen=True)
class _Problem:
    """value(theta) + (lam/2)|a|^2, theta = (a, b) or a alone where there is no intercept."""

    design: Tensor
    objective: _Objective
    lam: float

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor | float]:
        return (theta[:-1], theta[-1]) if self.objective.has_intercept else (theta, 0.0)

    def row_scores(self, theta: Tensor) -> Tensor:
        a, b = self._split(theta)
        return self.design @ a + b

    def value(self, theta: Tensor, f: Tensor) -> float:
        a, _ = self._split(theta)
        return float(self.objective.value(f) + self.lam / 2 * a.square().sum())

    def gradient(self, theta: Tensor, f: Tensor) -> Tensor:
        a, _ = self._split(theta)
        slope = self.objective.slope(f)
        inner = self.design.T @ slope + self.lam * a
        if not self.objective.has_intercept:
            return inner
        return torch.cat([inner, slope.sum()[None]])

    def hessian(self, f: Tensor) -> Tensor:
        design = self.design
        if self.objective.has_intercept:
            design = torch.cat([design, torch.ones_like(design[:, :1])], dim=1)
        hessian = design.T @ self.objective.curved(f, design)
        r = self.design.shape[1]
        hessian.diagonal()[:r] += self.lam
        return hessian


@dataclass(frozen=True)
class _Solution:
    theta: Tensor
    value: float
    gradient_norm: float
    n_iterations: int
    solver: str


def _solve(
    problem: _Problem, start: Tensor, target: float, preconditioner: Tensor, solver: Solver
) -> _Solution:
    """The solver asked for; "auto" lets Newton finish what L-BFGS could not."""
    if solver == "newton":
        return _newton(problem, start, target)
    may_finish = solver == "auto" and len(start) <= _ROTATION_WIDTH
    most = min(_MAX_LBFGS_STEPS, _STEPS_BEFORE_NEWTON) if may_finish else _MAX_LBFGS_STEPS
    solution = _lbfgs(problem, start, target, preconditioner, most)
    if may_finish and not solution.gradient_norm <= target:
        return _newton(problem, solution.theta, target)
    return solution


def _line_search(
    problem: _Problem, theta: Tensor, f: Tensor, value: float, gradient: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, float] | None:
    """Backtrack until the value falls enough; None where rounding leaves nothing to gain."""
    slope = float(gradient @ step)
    if slope >= 0:
        return None
    change = problem.row_scores(step)  # scores are linear in theta: one pass for all trials
    length = 1.0
    for _ in range(40):
        trial, trial_f = theta + length * step, f + length * change
        trial_value = problem.value(trial, trial_f)
        # Near the optimum the fall is below the rounding of the value itself.
        if trial_value <= value + 1e-4 * length * slope + 4e-15 * abs(value):
            return trial, trial_f, trial_value
        length /= 2
    return None


def _newton(problem: _Problem, start: Tensor, target: float) -> _Solution:
    """Damped Newton; each step one Hessian and one Cholesky factorisation."""
    theta, f = start, problem.row_scores(start)
    value, gradient = problem.value(theta, f), problem.gradient(theta, f)
    for iteration in range(_MAX_NEWTON_STEPS):
        if float(gradient.norm()) <= target:
            return _Solution(theta, value, float(gradient.norm()), iteration, "newton")
        factor, failure = torch.linalg.cholesky_ex(problem.hessian(f))
        if int(failure):
            break
        step = -torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        moved = _line_search(problem, theta, f, value, gradient, step)
        if moved is None:
            break
        theta, f, value = moved
        gradient = problem.gradient(theta, f)
    return _Solution(theta, value, float(gradient.norm()), iteration + 1, "newton")


def _lbfgs(
    problem: _Problem, start: Tensor, target: float, preconditioner: Tensor, max_steps: int
) -> _Solution:
    """L-BFGS whose first Hessian is the diagonal `preconditioner`."""
    theta, f = start, problem.row_scores(start)
    value, gradient = problem.value(theta, f), problem.gradient(theta, f)
    history: list[tuple[Tensor, Tensor]] = []
    for iteration in range(max_steps):
        if float(gradient.norm()) <= target:
            return _Solution(theta, value, float(gradient.norm()), iteration, "lbfgs")
        step = -_two_loop(gradient, history, preconditioner)
        moved = _line_search(problem, theta, f, value, gradient, step)
        if moved is None and history:
            history.clear()
            continue
        if moved is None:
            break
        new_theta, f, value = moved
        new_gradient = problem.gradient(new_theta, f)
        pair = (new_theta - theta, new_gradient - gradient)
        if float(pair[0] @ pair[1]) > 0:
            history = [*history[-_LBFGS_MEMORY + 1 :], pair]
        theta, gradient = new_theta, new_gradient
    return _Solution(theta, value, float(gradient.norm()), iteration + 1, "lbfgs")


def _two_loop(
    gradient: Tensor, history: Sequence[tuple[Tensor, Tensor]], preconditioner: Tensor
) -> Tensor:
    """(Inverse Hessian estimate) @ gradient; Nocedal & Wright 2006, algorithm 7.4."""
    direction = gradient.clone()
    coefficients = []
    for moved, turned in reversed(history):
        coefficient = (moved @ direction) / (moved @ turned)
        direction -= coefficient * turned
        coefficients.append(coefficient)
    direction /= preconditioner
    if history:
        moved, turned = history[-1]
        direction *= (moved @ turned) / (turned @ (turned / preconditioner))
    for (moved, turned), coefficient in zip(history, reversed(coefficients), strict=True):
        direction += (coefficient - (turned @ direction) / (moved @ turned)) * moved
    return direction


def _solve_path(
    features: Tensor,
    objective: _Objective,
    lams: Sequence[float],
    standardise: bool,
    solver: Solver,
    tolerance: float,
) -> tuple[LinearFit, ...]:
    _check_options(lams, solver, tolerance)
    b_null = _null_intercept(objective)
    f_null = torch.full((len(features),), b_null, dtype=torch.float64, device=features.device)
    where = _coordinates(features, objective, f_null, standardise)
    r = where.design.shape[1]
    theta = features.new_zeros(r + objective.has_intercept, dtype=torch.float64)
    if objective.has_intercept:
        theta[-1] = b_null
    null_norm = float(_Problem(where.design, objective, 0.0).gradient(theta, f_null).norm())
    target = tolerance * max(null_norm, _SMALLEST_NORM)
    fits: dict[float, LinearFit] = {}
    for lam in sorted({float(lam) for lam in lams}, reverse=True):
        problem = _Problem(where.design, objective, lam)
        preconditioner = _preconditioner(where, objective, f_null, lam)
        solution = _solve(problem, theta, _AIM * target, preconditioner, solver)
        _check_converged(solution, null_norm, target, lam)
        theta = solution.theta
        fits[lam] = _folded(where, objective, solution, lam, max(null_norm, _SMALLEST_NORM))
    return tuple(fits[float(lam)] for lam in lams)


def _null_intercept(objective: _Objective) -> float:
    """Log-odds of the weighted mean label: the optimum without features."""
    if not isinstance(objective, _RowObjective):
        return 0.0
    share = float((objective.weights * objective.labels).sum() / objective.weights.sum())
    return float(np.log(share) - np.log1p(-share))


def _preconditioner(
    where: _Coordinates, objective: _Objective, f_null: Tensor, lam: float
) -> Tensor:
    diagonal = where.curvature + lam
    if not objective.has_intercept:
        return diagonal
    ones = torch.ones_like(f_null)[:, None]
    return torch.cat([diagonal, objective.curved(f_null, ones).sum()[None]])


def _folded(
    where: _Coordinates,
    objective: _Objective,
    solution: _Solution,
    lam: float,
    null_norm: float,
) -> LinearFit:
    """Back to raw coordinates; the bias is made for the rounded weight, so errors do not add up."""
    theta = solution.theta
    a = theta[:-1] if objective.has_intercept else theta
    weight = where.to_width(a) / where.scale
    weight = torch.where(where.is_constant, torch.zeros_like(weight), weight).float()
    bias = 0.0
    if objective.has_intercept:
        bias = float(theta[-1] - weight.double() @ where.mean)
    return LinearFit(
        weight,
        bias,
        lam,
        solution.value,
        solution.gradient_norm / null_norm,
        solution.n_iterations,
        solution.solver,
        int(where.is_constant.sum()),
    )


# ------------------------------------------------------------------------ checks


def _check_converged(solution: _Solution, null_norm: float, target: float, lam: float) -> None:
    if not solution.gradient_norm <= target:
        scale = max(null_norm, _SMALLEST_NORM)
        raise FitError(
            f"got a relative gradient norm of {solution.gradient_norm / scale:.2e} after "
            f"{solution.n_iterations} steps of {solution.solver} at lam = {lam:g}; expected at most "
            f"{target / scale:.0e}. Raise lam, standardise the features, or allow a larger "
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


def _rows_by_code(codes: np.ndarray, n_codes: int) -> list[np.ndarray]:
    sizes = np.bincount(codes, minlength=n_codes)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])


def _folds(
    objective: _Objective, codes: np.ndarray, prompts: np.ndarray, n_folds: int, seed: int
) -> tuple[np.ndarray, int]:
    """Fold of every row, and how many prompts with targets were dealt.

    Prompts without targets get fold -1: never judged, always there to standardise by.
    """
    has_target = np.ones(len(prompts), dtype=bool)
    if isinstance(objective, _PairObjective):
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


def _check_fold(kept: _Objective, judged: _Objective, fold: int, n_folds: int) -> None:
    advice = "Bring more prompts (at least a few per fold)."
    for part, name in ((kept, "training"), (judged, "held-out")):
        if not bool((part.weights > 0).any()):
            raise FitError(
                f"got no weight in the {name} part of fold {fold} of {n_folds}; expected rows or "
                f"pairs there. {advice}"
            )
    if isinstance(kept, _RowObjective):
        labels = kept.labels[kept.weights > 0]
        if bool((labels == labels[0]).all()):
            raise FitError(
                f"got labels that are all {float(labels[0]):g} in the training part of fold {fold} "
                f"of {n_folds}; expected both right and wrong answers. {advice}"
            )
