"""L-BFGS and Newton for convex losses of linear scores with a penalty on the weights.

    value(theta) = loss(Z a + b) + (lam/2)|a|^2,   theta = (a, b), or a alone without an intercept

L-BFGS begins with the Hessian at a = 0 in place of the identity, factorised once for every lam: the
problem is then round where it starts, and some tens of passes over the data reach the optimum. A step
is one pass where its full length is good, which it nearly always is.

Source: Nocedal & Wright 2006, algorithms 3.1, 3.2 and 7.4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from retrm.fitting.design import Design
from retrm.fitting.objectives import Objective

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
# From this many unknowns an inverse in float32 is made.
WIDE = 1024
# A problem whose curvature is at most so many times the penalty needs no preconditioner.
ROUND = 2.0
POWER_STEPS = 12
# Share of the first gradient that float32 can still resolve.
ROUGH = 1e-4


@dataclass(frozen=True)
class Problem:
    """A design, a loss and a penalty."""

    design: Design
    objective: Objective
    lam: float

    def at(self, theta: Tensor) -> "Point":
        """Value and gradient, in one pass where the loss allows it."""
        a, b = (theta[:-1], theta[-1]) if self.objective.has_intercept else (theta, 0.0)
        f, slope, inner = self.design.scores_and_pull(a, b, self.objective)
        value = float(self.objective.value(f) + self.lam / 2 * a.square().sum())
        inner = inner + self.lam * a
        if self.objective.has_intercept:
            inner = torch.cat([inner, slope.sum()[None]])
        return Point(theta, f, value, inner)

    def newton_inverse(self, f: Tensor) -> Inverse | None:
        """Of the whole Hessian at f; None where it is singular to rounding."""
        return _cholesky_inverse(self._bordered(self.design.hessian(self.objective, f), f))

    def preconditioner(self, curvature: Tensor, f: Tensor) -> Inverse:
        """Of `curvature` + lam, and the intercept by itself; `curvature` may be an estimate."""
        whole = curvature.clone()
        whole.diagonal().add_(self.lam)
        if self.objective.has_intercept:
            ones = torch.ones_like(f)[:, None]
            last = self.objective.curved(f, ones).sum()[None, None]
            whole = torch.block_diag(whole, last)
        diagonal = whole.diagonal().clamp_min(self.lam)
        if float(_largest_eigenvalue(curvature)) <= ROUND * self.lam:
            return lambda gradient: gradient / diagonal
        # An estimate is rounded: what is missing to a positive matrix is added, least first.
        for share in (0.0, 1e-7, 1e-5, 1e-3, 1e-1):
            inverse = _rough_inverse(whole + torch.diag(share * whole.diagonal()))
            if inverse is not None:
                return inverse
        return lambda gradient: gradient / diagonal

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
class Solution:
    """Where a solver ended, after how many steps of which."""

    point: Point
    n_iterations: int
    solver: str


def solve(
    problem: Problem, start: Tensor, target: float, preconditioner: Inverse, solver: Solver
) -> Solution:
    """The solver asked for; "auto" lets Newton finish what L-BFGS could not."""
    if solver == "newton":
        return newton(problem, problem.at(start), target)
    may_finish = solver == "auto" and problem.design.n_unknowns <= NEWTON_WIDTH
    most = min(MAX_LBFGS_STEPS, STEPS_BEFORE_NEWTON) if may_finish else MAX_LBFGS_STEPS
    solution = _lbfgs_in_two(problem, start, target, preconditioner, most)
    if may_finish and not solution.point.norm <= target:
        return newton(problem, solution.point, target)
    return solution


def newton(problem: Problem, point: Point, target: float) -> Solution:
    """Damped Newton; each step one Hessian and one Cholesky factorisation."""
    for iteration in range(MAX_NEWTON_STEPS):
        if point.norm <= target:
            return Solution(point, iteration, "newton")
        inverse = problem.newton_inverse(point.f)
        moved = inverse and _line_search(problem, point, -inverse(point.gradient))
        if moved is None:
            break
        point = moved
    return Solution(point, iteration + 1, "newton")


def _lbfgs_in_two(
    problem: Problem, start: Tensor, target: float, preconditioner: Inverse, max_steps: int
) -> Solution:
    """L-BFGS on the rough design as far as its digits reach, then on the exact one."""
    history: History = []
    rough = replace(problem, design=problem.design.rough())
    if rough.design is problem.design:
        return lbfgs(problem, problem.at(start), target, preconditioner, max_steps, history)
    first = rough.at(start)
    near = lbfgs(rough, first, max(target, ROUGH * first.norm), preconditioner, max_steps, history)
    left = max(1, max_steps - near.n_iterations)
    point = problem.at(near.point.theta)
    found = lbfgs(problem, point, target, preconditioner, left, history)
    return replace(found, n_iterations=near.n_iterations + found.n_iterations)


def lbfgs(
    problem: Problem,
    point: Point,
    target: float,
    preconditioner: Inverse,
    max_steps: int,
    history: History,
) -> Solution:
    """L-BFGS whose first inverse Hessian is `preconditioner`; `history` is taken up and gone on with."""
    for iteration in range(max_steps):
        if point.norm <= target:
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
        if trial.value <= point.value + 1e-4 * length * slope + 4e-15 * abs(point.value):
            return trial
        length /= 2
    return None


def _two_loop(
    gradient: Tensor, history: Sequence[tuple[Tensor, Tensor]], preconditioner: Inverse
) -> Tensor:
    """(Inverse Hessian estimate) @ gradient; Nocedal & Wright 2006, algorithm 7.4."""
    direction = gradient.clone()
    coefficients = []
    for moved, turned in reversed(history):
        coefficient = (moved @ direction) / (moved @ turned)
        direction -= coefficient * turned
        coefficients.append(coefficient)
    direction = preconditioner(direction)
    if history:
        moved, turned = history[-1]
        direction *= (moved @ turned) / (turned @ preconditioner(turned))
    for (moved, turned), coefficient in zip(history, reversed(coefficients), strict=True):
        direction += (coefficient - (turned @ direction) / (moved @ turned)) * moved
    return direction


def _largest_eigenvalue(matrix: Tensor) -> Tensor:
    """By power iteration from below; near enough to tell a round problem from another."""
    vector = matrix.sum(dim=0)
    for _ in range(POWER_STEPS):
        vector = matrix @ (vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny))
    return vector.norm()


def _rough_inverse(matrix: Tensor) -> Inverse | None:
    """Of a matrix that is only a preconditioner: where it is wide, a product in float32."""
    # A triangular solve with one right side runs at a small part of a product's speed.
    if len(matrix) <= WIDE:
        return _cholesky_inverse(matrix)
    factor, failure = torch.linalg.cholesky_ex(matrix.float())
    if int(failure):
        return None
    inverse = torch.cholesky_inverse(factor)
    return lambda vector: (inverse @ vector.float()).to(vector.dtype)


def _cholesky_inverse(matrix: Tensor) -> Inverse | None:
    factor, failure = torch.linalg.cholesky_ex(matrix)
    if int(failure):
        return None
    return lambda vector: torch.cholesky_solve(vector[:, None], factor)[:, 0]
