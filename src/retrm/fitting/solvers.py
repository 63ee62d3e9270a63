"""L-BFGS and Newton for convex losses of linear scores with a penalty on the weights.

    value(theta) = loss(Z a + b) + (lam/2)|a|^2,   theta = (a, b), or a alone without an intercept

L-BFGS begins with a preconditioner (`preconditioner.py`) in place of the identity: the problem is then
round where it starts, and some tens of passes over the data reach the optimum. A step is one pass
where its full length is good, which it nearly always is. What it has learnt of the curvature serves the
next penalty too: another lam adds (difference of lam) times the step to each change of the gradient.

A point is good where its gradient is small enough, or where its objective is proved to be near the
optimum (`Goal`): with g the gradient in a, and since the penalty alone is strongly convex,

    value - optimum <= |g|^2 / (2 lam)            (Boyd & Vandenberghe 2004, eq. 9.9)

Source: Nocedal & Wright 2006, algorithms 3.1, 3.2 and 7.4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from retrm.fitting.design import Anchor, Design
from retrm.fitting.objectives import Objective
from retrm.fitting.preconditioner import Preconditioner

Solver = Literal["auto", "newton", "lbfgs"]
Inverse = Callable[[Tensor], Tensor]
History = list[tuple[Tensor, Tensor]]  # steps of theta, and what they changed in the gradient

# Beyond this many unknowns a Hessian of all rows costs more than the passes that it saves.
NEWTON_WIDTH = 2500
MAX_NEWTON_STEPS = 100
MAX_LBFGS_STEPS = 5000
# With a very weak penalty on separable data a few Newton steps are cheaper than more of L-BFGS.
STEPS_BEFORE_NEWTON = 400
LBFGS_MEMORY = 20
# Share of an anchor's gradient that differences in float32 still resolve, how unsure they leave the
# value, as a share of it, and how many anchors there may be.
ROUGH = 1e-4
ROUGH_ROUNDING, ROUNDING = 3e-8, 4e-15
MAX_ANCHORS = 6


@dataclass(frozen=True)
class Problem:
    """A design, a loss and a penalty."""

    design: Design
    objective: Objective
    lam: float
    rounding: float = ROUNDING

    def rough(self, point: "Point") -> "Problem":
        """The same on the rough design anchored at an exact point; itself where there is none."""
        a, b = self._parts(point.theta)
        pull = point.gradient[: len(a)] - self.lam * a
        anchor = Anchor(a, point.f - b, self.objective.slope(point.f), pull)
        design = self.design.rough(anchor)
        if design is self.design:
            return self
        return replace(self, design=design, rounding=ROUGH_ROUNDING)

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor | float]:
        return (theta[:-1], theta[-1]) if self.objective.has_intercept else (theta, 0.0)

    def at(self, theta: Tensor) -> "Point":
        """Value and gradient, in one pass where the loss allows it."""
        a, b = self._parts(theta)
        f, slope, inner = self.design.scores_and_pull(a, b, self.objective)
        value = float(self.objective.value(f) + self.lam / 2 * a.square().sum())
        inner = inner + self.lam * a
        if self.objective.has_intercept:
            inner = torch.cat([inner, slope.sum()[None]])
        return Point(theta, f, value, inner)

    def gap_bound(self, point: "Point") -> float:
        """At most so much of the value at the point lies above the optimum, as a share of the optimum.

        Exact for the penalised weights; the intercept counts by the curvature that it has here.
        """
        if not self.lam:
            return float("inf")
        g = point.gradient[:-1] if self.objective.has_intercept else point.gradient
        above = float(g @ g) / (2 * self.lam)
        if self.objective.has_intercept:
            above += float(point.gradient[-1] ** 2) / self.intercept_curvature(point.f)
        return above / (point.value - above) if above < point.value else float("inf")

    def intercept_curvature(self, f: Tensor) -> float:
        """Second derivative of the loss in b."""
        return float(self.objective.curved(f, torch.ones_like(f)[:, None]).sum())

    def newton_inverse(self, f: Tensor) -> Inverse | None:
        """Of the whole Hessian at f; None where it is singular to rounding."""
        return _cholesky_inverse(self._bordered(self.design.hessian(self.objective, f), f))

    def _bordered(self, hessian: Tensor, f: Tensor) -> Tensor:
        hessian.diagonal().add_(self.lam)
        if not self.objective.has_intercept:
            return hessian
        curvature = self.objective.curved(f, torch.ones_like(f)[:, None])[:, 0]
        cross = self.design.pull(curvature)[:, None]
        lower = torch.cat([cross.T, curvature.sum()[None, None]], dim=1)
        return torch.cat([torch.cat([hessian, cross], dim=1), lower])


@dataclass(frozen=True)
class Point:
    """Where the solver stands: theta with its row scores, value and gradient."""

    theta: Tensor
    f: Tensor
    value: float
    gradient: Tensor

    @property
    def norm(self) -> float:
        """Of the gradient."""
        return float(self.gradient.norm())


@dataclass(frozen=True)
class Goal:
    """When a point is good enough.

    Attributes:
        norm: largest norm of the gradient.
        gap: or largest proved share of the objective above the optimum; None = the norm decides.
    """

    norm: float
    gap: float | None = None

    def is_reached(self, problem: Problem, point: Point) -> bool:
        """Whether the point is good."""
        if self.gap is None:
            return point.norm <= self.norm
        return problem.gap_bound(point) <= self.gap


@dataclass(frozen=True)
class Solution:
    """Where a solver ended, after how many steps of which."""

    point: Point
    n_iterations: int
    solver: str


def solve(
    problem: Problem,
    start: Point,
    goal: Goal,
    preconditioner: Preconditioner,
    solver: Solver,
    history: History,
) -> Solution:
    """The solver asked for; "auto" lets Newton finish what L-BFGS could not.

    `history` is what L-BFGS has learnt; it is taken up and gone on with.
    """
    if solver == "newton":
        return newton(problem, start, goal)
    may_finish = solver == "auto" and problem.design.n_unknowns <= NEWTON_WIDTH
    most = min(MAX_LBFGS_STEPS, STEPS_BEFORE_NEWTON) if may_finish else MAX_LBFGS_STEPS
    inverse = preconditioner.inverse(problem.lam)
    solution = _anchored(problem, start, goal, inverse, most, history)
    if may_finish and not goal.is_reached(problem, solution.point):
        found = newton(problem, solution.point, goal)
        return replace(found, n_iterations=solution.n_iterations + found.n_iterations)
    return solution


def with_penalty(
    problem: Problem, lam: float, point: Point, history: History
) -> tuple[Problem, Point, History]:
    """The problem for another lam, with the point and the history as they are there: without a pass."""
    change = lam - problem.lam
    has_intercept = problem.objective.has_intercept

    def penalised(theta: Tensor) -> Tensor:
        return torch.cat([theta[:-1], theta.new_zeros(1)]) if has_intercept else theta

    a = penalised(point.theta)
    value = point.value + change / 2 * float(a @ a)
    moved = Point(point.theta, point.f, value, point.gradient + change * a)
    pairs = [(step, turned + change * penalised(step)) for step, turned in history]
    kept = [pair for pair in pairs if float(pair[0] @ pair[1]) > 0]
    return replace(problem, lam=lam), moved, kept


def newton(problem: Problem, point: Point, goal: Goal) -> Solution:
    """Damped Newton; each step one Hessian and one Cholesky factorisation."""
    for iteration in range(MAX_NEWTON_STEPS):
        if goal.is_reached(problem, point):
            return Solution(point, iteration, "newton")
        inverse = problem.newton_inverse(point.f)
        moved = inverse and _line_search(problem, point, -inverse(point.gradient))
        if moved is None:
            break
        point = moved
    return Solution(point, iteration + 1, "newton")


def _anchored(
    problem: Problem,
    point: Point,
    goal: Goal,
    preconditioner: Inverse,
    max_steps: int,
    history: History,
) -> Solution:
    """L-BFGS on rough designs, each as far as its digits reach, at last on the exact one."""
    n_steps = 0
    for _ in range(MAX_ANCHORS):
        rough = problem.rough(point)
        if rough is problem or goal.is_reached(problem, point) or n_steps >= max_steps:
            break
        near_goal = goal if goal.gap else Goal(max(goal.norm, ROUGH * point.norm))
        near = lbfgs(rough, point, near_goal, preconditioner, max_steps - n_steps, history)
        n_steps += near.n_iterations
        point = problem.at(near.point.theta)
    found = lbfgs(problem, point, goal, preconditioner, max(1, max_steps - n_steps), history)
    return replace(found, n_iterations=n_steps + found.n_iterations)


def lbfgs(
    problem: Problem,
    point: Point,
    goal: Goal,
    preconditioner: Inverse,
    max_steps: int,
    history: History,
) -> Solution:
    """L-BFGS whose first inverse Hessian is `preconditioner`; `history` is taken up and gone on with."""
    for iteration in range(max_steps):
        if goal.is_reached(problem, point):
            return Solution(point, iteration, "lbfgs")
        step = -_two_loop(point.gradient, history, preconditioner)
        moved = _line_search(problem, point, step)
        if moved is None and history:
            history.clear()
            continue
        if moved is None:
            break
        pair = (moved.theta - point.theta, moved.gradient - point.gradient)
        if float(pair[0] @ pair[1]) > 0:
            history.append(pair)
            del history[:-LBFGS_MEMORY]
        point = moved
    return Solution(point, iteration + 1, "lbfgs")


def _line_search(problem: Problem, point: Point, step: Tensor) -> Point | None:
    """Backtrack until the value falls enough; None where rounding leaves nothing to gain."""
    slope = float(point.gradient @ step)
    if slope >= 0:
        return None
    length = 1.0
    for _ in range(40):
        trial = problem.at(point.theta + length * step)
        # Near the optimum the fall is below the rounding of the value itself.
        if trial.value <= point.value + 1e-4 * length * slope + problem.rounding * abs(point.value):
            return trial
        length /= 2
    return None


def _two_loop(
    gradient: Tensor, history: Sequence[tuple[Tensor, Tensor]], preconditioner: Inverse
) -> Tensor:
    """(Inverse Hessian estimate) @ gradient; Nocedal & Wright 2006, algorithm 7.4.

    With steps s and changes y of the gradient as rows of S and Y, and R = upper triangle of S Y^T, both
    loops are substitutions: R a = S g, then R^T b = diag(R) a - Y r behind the first inverse Hessian.
    """
    if not history:
        return preconditioner(gradient)
    moved, turned = (torch.stack(part) for part in zip(*history, strict=True))
    corner = (moved @ turned.T).triu()
    first = _substitute(corner, moved @ gradient, upper=True)
    direction = preconditioner(gradient - first @ turned)
    direction *= corner[-1, -1] / (turned[-1] @ preconditioner(turned[-1]))
    rest = corner.diagonal() * first - turned @ direction
    return direction + _substitute(corner.T, rest, upper=False) @ moved


def _substitute(corner: Tensor, right: Tensor, *, upper: bool) -> Tensor:
    return torch.linalg.solve_triangular(corner, right[:, None], upper=upper)[:, 0]


def _cholesky_inverse(matrix: Tensor) -> Inverse | None:
    factor, failure = torch.linalg.cholesky_ex(matrix)
    if int(failure):
        return None
    return lambda vector: torch.cholesky_solve(vector[:, None], factor)[:, 0]
