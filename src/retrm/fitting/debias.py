r"""What length explains is taken out of objectives: each loses a share of the predicted verbosity.

    r'_k = r_k - lambda_k r_v,    lambda_v = 1, so r'_v = 0

lambda_k is the smallest candidate with Spearman(r_k - lambda r_v, r_v) <= threshold on reference
answers. The test is one-sided: an objective that falls with verbosity keeps all of itself (lambda 0).
One that no candidate brings down is unresolved and gets lambda 1. The correlation is with the PREDICTED
verbosity, not with the number of tokens. Any column of scores can stand for verbosity.

Source: ArmoRM, arXiv 2406.12845, section 3.2; candidates and threshold as in its released code.

    >>> import numpy as np
    >>> found = find_lambdas(np.array([[2.0, 1.0], [4.0, 2.0], [6.0, 3.0]]), 1)
    >>> found.lambdas.tolist(), found.unresolved
    ([1.0, 1.0], (0,))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from retrm.errors import ShapeError
from retrm.metrics.ranks import spearman
from retrm.mixture_options import MixtureOptions


@dataclass(frozen=True, eq=False)
class Debiasing:
    """The share of verbosity that each objective loses.

    Attributes:
        lambdas: of each objective; that of verbosity is 1.
        before: rank correlation of each with verbosity, before; 0 where one of the two is constant.
        after: the same of what is left; 0 for verbosity itself, which is 0 then.
        unresolved: numbers of the objectives that no candidate brought under the threshold.
    """

    lambdas: Float[np.ndarray, " objectives"]
    before: Float[np.ndarray, " objectives"]
    after: Float[np.ndarray, " objectives"]
    unresolved: tuple[int, ...]


def find_lambdas(
    scores: Float[np.ndarray, "rows objectives"],
    verbosity: int,
    *,
    candidates: Sequence[float] = MixtureOptions.lambdas,
    threshold: float = MixtureOptions.threshold,
) -> Debiasing:
    """The smallest candidate for every objective.

    Args:
        scores: raw scores of reference answers by objective.
        verbosity: number of the objective that the others are freed of.
        candidates: shares to try.
        threshold: highest rank correlation with verbosity that is left alone.

    Raises:
        ShapeError: no such objective.
    """
    n_objectives = scores.shape[1]
    if not 0 <= verbosity < n_objectives:
        raise ShapeError(
            f"got verbosity objective {verbosity} of {n_objectives}; expected 0 to "
            f"{n_objectives - 1}"
        )
    nuisance = scores[:, verbosity]
    lambdas, before, after = np.ones(n_objectives), np.zeros(n_objectives), np.zeros(n_objectives)
    unresolved = []
    for k in range(n_objectives):
        before[k] = _correlation(scores[:, k], nuisance)
        if k == verbosity:
            continue
        for share in sorted(candidates):
            left = _correlation(scores[:, k] - share * nuisance, nuisance)
            if left <= threshold:
                lambdas[k], after[k] = share, left
                break
        else:
            unresolved.append(k)
            after[k] = _correlation(scores[:, k] - nuisance, nuisance)
    return Debiasing(lambdas, before, after, tuple(unresolved))


def _correlation(scores: np.ndarray, nuisance: np.ndarray) -> float:
    """0 where one of the two is constant: what does not vary does not follow verbosity."""
    rho = spearman(scores, nuisance)
    return 0.0 if np.isnan(rho) else rho
