"""Bradley-Terry ratings of whoever met in pairs, from counts of wins.

    P(i beats j) = 1 / (1 + exp(r_j - r_i));  ratings r by maximum likelihood, sum 0

with a weak pull towards 0, by which whoever won everything has a finite rating. Source: Bradley & Terry 1952.
Newton's method; everything is (R, M, M), one matrix a resample.

>>> wins = np.array([[[0, 3, 4], [1, 0, 3], [0, 1, 0]]], dtype=float)
>>> np.argsort(-ratings(wins)[0][0]).tolist()
[0, 1, 2]
"""

import numpy as np

PRIOR = 1e-4
"""Precision of the pull towards 0, in units of won games."""

_STEPS = 50
_LONGEST_STEP = 2.0
_CLOSE = 1e-12


def ratings(wins: np.ndarray, *, prior: float = PRIOR) -> tuple[np.ndarray, np.ndarray]:
    """Bradley-Terry ratings with their covariance.

    Args:
        wins: (R, M, M), [i, j] = how often i beat j, ties one half; 0 on the diagonal.
        prior: precision of the pull towards 0.

    Returns:
        (R, M) ratings in nats that add up to 0, and (R, M, M) covariances.
    """
    n_models = wins.shape[1]
    played, won = wins + wins.transpose(0, 2, 1), wins.sum(axis=2)
    eye = np.eye(n_models)
    level = np.full((n_models, n_models), 1 / n_models)
    values = np.zeros(wins.shape[:2])
    for _ in range(_STEPS):
        chance, curvature = _odds(values, played, eye, prior)
        slope = won - (played * chance).sum(axis=2) - prior * values
        step = np.linalg.solve(curvature + level, slope[..., None])[..., 0]
        # Far from the top a Newton step overshoots, first of all for a model that wins everything.
        longest = np.abs(step).max(axis=1, keepdims=True)
        values = values + step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, _CLOSE))
        if longest.max() < _CLOSE:
            break
    _, curvature = _odds(values, played, eye, prior)
    return values, np.linalg.inv(curvature + level) - level


def _odds(
    values: np.ndarray, played: np.ndarray, eye: np.ndarray, prior: float
) -> tuple[np.ndarray, np.ndarray]:
    """(R, M, M) chances to win, and the information matrix with the prior."""
    chance = 1 / (1 + np.exp(values[:, None, :] - values[:, :, None]))
    weight = played * chance * (1 - chance)
    return chance, eye * (weight.sum(axis=2)[..., None] + prior) - weight
