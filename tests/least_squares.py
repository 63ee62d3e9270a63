"""Plain oracles of the closed-form least squares: heads of given penalties, errors, pairs of a prompt."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from retrm.fitting import ridge
from retrm.fitting.convex import pairs_within_prompts
from retrm.fitting.ridge import Moments, RidgeFit


def ridge_path(
    moments: Moments, lams: Sequence[float], *, standardise: bool = True, has_intercept: bool = True
) -> tuple[RidgeFit, ...]:
    """The heads of several penalties, in their order."""
    paths = [ridge._solve(moments, [lam], standardise, has_intercept) for lam in lams]
    return tuple(
        ridge._folded(path, moments, lam, has_intercept, False)
        for path, lam in zip(paths, lams, strict=True)
    )


def mean_squared_error(moments: Moments, fit: RidgeFit) -> float:
    """Of a head over the rows behind the moments."""
    weights = fit.weight.to(moments.xx)[None]
    return float(ridge._errors(moments, weights, weights.new_tensor([fit.bias])))


def within_prompts(
    features: Tensor,
    labels: np.ndarray,
    prompt_ids: Sequence[object],
    *,
    weighting: str = "prompt",
    chunk_rows: int = 4096,
) -> Moments:
    """Moments of all right x wrong pairs of each prompt."""
    pairs = pairs_within_prompts(labels, prompt_ids, weighting=weighting)
    return Moments.of_pairs(
        *(torch.as_tensor(features), pairs.chosen, pairs.rejected),
        weights=pairs.weights,
        chunk_rows=chunk_rows,
    )


def projected(moments: Moments, basis: Tensor) -> Moments:
    """The moments of the features times a basis."""
    return ridge.project_all([moments], basis)[0]
