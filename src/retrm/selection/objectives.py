"""Several objectives at once: steering by weights, constraints, and what nobody dominates.

With objective scores r (N, K) of the candidates of a prompt:

    weighted_scores   s_i = sum_k w_k r_ik; an objective without a weight counts 0
    Constraint        sum_k c_k r_ik <= bound (or >=); a candidate that breaks it cannot be chosen
    pareto_front      i such that no j has r_jk >= r_ik for all k and r_jk > r_ik for one
    pareto            of these, the one whose worst rank over the objectives is best

Weights and bounds are in the units of the objective scores as their scorer gives them; nothing is
standardised. The Pareto rule knows no units: it sees only who is ahead of whom in each objective, so no
increasing map of an objective changes what it keeps. A higher score is better in every objective; give
a nuisance such as verbosity the weight -1, or leave it out.

Source of the front: Pareto 1906; of the choice from it: minimax rank, as `rank_combination`.

    >>> from retrm.selection.objectives import pareto
    >>> pareto(objectives=[[3.0, 0.0], [2.0, 2.0], [0.0, 3.0], [1.0, 1.0]]).chosen
    1
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retrm.errors import DataError, RecipeError, ScoreError, did_you_mean
from retrm.selection.candidates import Selection, checked

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
# As objectives may be named, TABLE/OBJECTIVE among them; a letter somewhere tells it from a number.
_NAME = r"(?=[\w.\-/]*[^\W\d])\w(?:[\w.\-/]*\w)?"
_TERM = re.compile(rf"\s*([+-]?)\s*(?:({_NUMBER})\s*\*\s*)?({_NAME})\s*")


@dataclass(frozen=True)
class Constraint:
    """A linear demand on objective scores.

    Attributes:
        coefficients: of each objective that is named.
        relation: `<=` or `>=`.
        bound: what the sum is held against.
    """

    coefficients: Mapping[str, float]
    relation: Literal["<=", ">="]
    bound: float

    def holds(self, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """(n,) which rows of the (n, K) objective scores keep it.

        Raises:
            RecipeError: an objective that is not among `names`.
        """
        sums = weighted_scores(values, names, self.coefficients)
        return sums <= self.bound if self.relation == "<=" else sums >= self.bound


def parse_weights(text: str) -> dict[str, float]:
    """``helpfulness=1,verbosity=-0.3`` as a dictionary.

    Raises:
        RecipeError: unreadable, an objective named twice, or a weight that is not finite.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name or not equals or not math.isfinite(weight):
            raise RecipeError(
                f"got {part.strip()!r} in the weights {text!r}; expected NAME=NUMBER,NAME=NUMBER, such as "
                "helpfulness=1,verbosity=-0.3"
            )
        if name in weights:
            raise RecipeError(f"the weights {text!r} name {name!r} twice; expected each once")
        weights[name] = weight
    return weights


def parse_constraint(text: str) -> Constraint:
    """``verbosity<=0.5`` or ``helpfulness - 2*verbosity >= 0`` as a constraint.

    Names of objectives may hold hyphens, so a minus between two of them has spaces around it.

    Raises:
        RecipeError: unreadable.
    """
    left, relation, right = text.partition("<=" if "<=" in text else ">=")
    try:
        bound = float(right)
    except ValueError:
        bound = math.nan
    coefficients = _linear(left) if relation else None
    if not coefficients or not math.isfinite(bound):
        raise RecipeError(
            f"got the constraint {text!r}; expected objectives on the left of <= or >= and a number on the "
            "right, such as verbosity<=0.5 or 'helpfulness - 2*verbosity >= 0' (spaces around a minus: "
            "names may hold hyphens)"
        )
    return Constraint(coefficients, relation, bound)  # type: ignore[arg-type]


def _linear(text: str) -> dict[str, float] | None:
    """Coefficients of a sum; None where it is none."""
    coefficients: dict[str, float] = {}
    place = 0
    while place < len(text):
        found = _TERM.match(text, place)
        if found is None or (place > 0 and not found[1]):
            return None
        sign = -1.0 if found[1] == "-" else 1.0
        coefficients[found[3]] = coefficients.get(found[3], 0.0) + sign * float(found[2] or 1)
        place = found.end()
    return coefficients or None


def weighted_scores(
    values: np.ndarray, names: Sequence[str], weights: Mapping[str, float]
) -> np.ndarray:
    """(n,) sum of the objective scores by their weights.

    Args:
        values: (n, K) objective scores.
        names: (K,) of the objectives.
        weights: by name; an objective without one counts 0.

    Raises:
        RecipeError: no weights, or one of an objective that is not there; the nearest is offered.
        ScoreError: a score is NaN or infinite.
        DataError: another number of names than columns.
    """
    matrix = checked_objectives(values, names)
    check_weights(weights, names)
    return matrix @ np.array([float(weights.get(name, 0.0)) for name in names])


def check_weights(weights: Mapping[str, float], names: Sequence[str]) -> None:
    """Refuse weights of objectives that are not there; needs no scores.

    Raises:
        RecipeError: no weights, or one of an objective that is not there; the nearest is offered.
    """
    if not weights:
        raise RecipeError("got no weights of objectives; expected at least one")
    for name in weights:
        if name not in names:
            raise RecipeError(
                f"there is no objective {name!r}; expected some of {', '.join(names)}. "
                f"{did_you_mean(name, names)}"
            )


def checked_objectives(
    values: Sequence[Sequence[float]] | np.ndarray, names: Sequence[str] | None = None
) -> np.ndarray:
    """(n, K) float64, finite.

    Raises:
        DataError: no matrix, no objective, or another number of names.
        ScoreError: a score is NaN or infinite; names row and objective.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] == 0 or matrix.shape[1] != len(names or matrix[0:1].T):
        raise DataError(
            f"got objective scores of shape {matrix.shape}"
            f"{'' if names is None else f' for {len(names)} objectives'}; expected one row a candidate "
            "and one column an objective."
        )
    bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        row, column = bad[0]
        raise ScoreError(
            f"got {matrix[row, column]} at position {row} of objective "
            f"{names[column] if names is not None else column}; expected finite scores. Find out why the "
            "scorer failed on that candidate, or leave the candidate out yourself."
        )
    return matrix


def pareto_front(values: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """(N,) bool: candidates that no other dominates; equal candidates do not dominate each other.

    Args:
        values: (N, K) finite objective scores, higher is better.

    Raises:
        DataError, ScoreError: as `checked_objectives`.
    """
    matrix = checked_objectives(values)
    front = np.empty(len(matrix), dtype=bool)
    for row, own in enumerate(matrix):  # N x K at a time: no N x N x K of thousands of candidates
        is_ahead = (matrix >= own).all(axis=1) & (matrix > own).any(axis=1)
        front[row] = not is_ahead.any()
    return front


def pareto(
    scores: Sequence[float] | None = None,
    keys: Sequence[str | None] | None = None,
    lengths: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
    *,
    objectives: Sequence[Sequence[float]] | np.ndarray | None = None,
) -> Selection:
    """A candidate that no other dominates; needs objectives.

    Of several, the one whose worst rank over the objectives is best, then the smallest sum of ranks,
    then the first seen. The rank of a candidate is how many are ahead of it, so equal scores share one.
    Such a candidate is never dominated: whoever dominates it has no worse rank anywhere and a smaller
    sum. It is a tie where another has the same worst rank and the same sum.

    Args:
        scores: (N,) finite scores, only checked.
        keys: (N,) answers, only reported.
        lengths: not used.
        other: not used.
        objectives: (N, K) finite scores of each objective, higher is better.

    Raises:
        RecipeError: no objectives.
        ScoreError, DataError: as `checked_objectives` and `retrm.selection.candidates.checked`.
    """
    if objectives is None:
        raise RecipeError(
            "got no objectives; pareto expected a column of scores for each. Pass them, or choose a "
            "rule that does with one score."
        )
    matrix = checked_objectives(objectives) if len(objectives) else np.zeros((0, 1))
    given = checked(scores, keys, lengths, other, needs=(), n=len(matrix))
    ranks = _ranks(matrix)
    worst, total = ranks.max(axis=1), ranks.sum(axis=1)
    chosen = int(np.lexsort((total, worst))[0])
    twins = (worst == worst[chosen]) & (total == total[chosen])
    return given.selection(chosen, twins.sum() > 1)


def _ranks(matrix: np.ndarray) -> np.ndarray:
    """(N, K): how many candidates are ahead in each objective."""
    columns = [np.searchsorted(np.sort(-column), -column, side="left") for column in matrix.T]
    return np.stack(columns, axis=1)
