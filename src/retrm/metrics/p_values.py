"""How surprising a figure is among random draws, and what is left after looking at many.

    rank   (1 + number of draws at least as good) / (1 + draws)          (Davison & Hinkley 1997, 4.2)
    Holm   sorted ascending, p_(i) * (k - i + 1), running maximum, at most 1           (Holm 1979)

The p-value of a paired difference needs the resamples: see `retrm.metrics.intervals`.

>>> from retrm.metrics.p_values import holm
>>> holm([0.01, 0.04, 0.03]).round(4).tolist()
[0.03, 0.06, 0.06]
"""

from collections.abc import Sequence

import numpy as np

from retrm.errors import ScoreError
from retrm.metrics.checks import finite_scores


def rank_p_value(value: float, draws: Sequence[float]) -> float:
    """Share of draws at least as good as a value, the value counted among them.

    Args:
        value: the figure of interest; higher is better.
        draws: (k,) the same figure for random opponents; the smallest p-value is 1 / (1 + k).

    Raises:
        ScoreError: a number is NaN or infinite, or there are no draws.
    """
    opponents = finite_scores(draws, "draws")
    got = finite_scores([value], "value")[0]
    return float(1 + (opponents >= got).sum()) / (1 + len(opponents))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Step-down adjusted p-values: below .05 means that the claim stands beside all the others.

    Args:
        p_values: (k,) between 0 and 1; NaN = no claim was made.

    Returns:
        (k,) adjusted values in the same order, at most 1; NaN stays NaN and is not counted.

    Raises:
        ScoreError: a value outside 0 to 1.
    """
    given = np.asarray(p_values, dtype=np.float64)
    made = np.flatnonzero(~np.isnan(given))
    bad = made[(given[made] < 0) | (given[made] > 1)]
    if bad.size:
        raise ScoreError(
            f"got p-value {given[bad[0]]} at position {bad[0]}; expected 0 to 1, or NaN for none."
        )
    order = made[np.argsort(given[made], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    adjusted = np.full(given.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
