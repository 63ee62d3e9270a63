"""Scores less what plain covariates explain inside prompts.

    s_pi - mean_p s  =  (x_pi - mean_p x) . b  +  residual_pi,     one slope vector b for all prompts

by least squares (Frisch & Waugh 1933: centring inside groups is the same as one intercept a group).
The within-prompt AUROC of the residuals says what a score tells beyond, say, length and confidence.

>>> from retrm.metrics.residuals import residual_scores
>>> residual_scores([1.0, 3.0, 7.0], [[0.0], [1.0], [5.0]], ["a", "a", "b"])
array([0., 0., 0.])
"""

from collections.abc import Sequence

import numpy as np

from retrm.errors import ScoreError
from retrm.metrics.checks import checked_codes, finite_scores

# Below this share of its size a number is rounding: it must neither steer the slope nor rank answers.
_ROUNDING = 1e-10


def residual_scores(
    scores: Sequence[float],
    covariates: Sequence[Sequence[float]] | np.ndarray,
    prompt_ids: Sequence[object],
) -> np.ndarray:
    """Residuals of the scores after regression on covariates inside prompts.

    Feed them to `within_prompt_auroc_statistic`. The slope is fitted once on all rows and held fixed
    when prompts are resampled. A covariate that is constant inside every prompt explains nothing.

    Args:
        scores: (n,) raw scores.
        covariates: (n, c) finite numbers, for example log tokens and mean log-probability.
        prompt_ids: (n,) the prompt of every row.

    Returns:
        (n,) residuals, mean 0 inside every prompt; what is only rounding is exactly 0, and equal
        rows stay equal.

    Raises:
        ScoreError: a score or covariate is NaN or infinite, or there is not one row each.
    """
    numbers = finite_scores(scores, "scores")
    table = np.asarray(covariates, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(numbers) or table.shape[1] == 0:
        raise ScoreError(
            f"got covariates of shape {table.shape} for {len(numbers)} scores; expected one row a "
            "score and one column a covariate, such as np.stack([log_length, log_prob], axis=1)."
        )
    columns = [finite_scores(column, f"covariate {i}") for i, column in enumerate(table.T)]
    codes, _ = checked_codes(prompt_ids, len(numbers))
    centred = _centred(numbers, codes)
    scale = np.abs(centred).max()
    if scale == 0:
        return centred
    design = np.stack([_unit(_centred(column, codes)) for column in columns], axis=1)
    slope = np.linalg.lstsq(design, centred, rcond=_ROUNDING)[0]
    # Added to 0.0, so that no residual is minus zero.
    return np.round((centred - design @ slope) / scale / _ROUNDING) * (_ROUNDING * scale) + 0.0


def _centred(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Values less the mean of their prompt; exactly 0 where that is only rounding."""
    means = np.bincount(codes, values) / np.bincount(codes)
    centred = values - means[codes]
    return np.where(np.abs(centred) <= _ROUNDING * np.abs(values), 0.0, centred)


def _unit(column: np.ndarray) -> np.ndarray:
    """The column at length 1, so that units of covariates do not decide what counts as rounding."""
    length = np.linalg.norm(column)
    return column / length if length else column
