"""One figure against others on the same prompts: single opponents, or the mean of random draws.

    value   own - mean of the others, with an interval from the resamples of the prompts
    rank p  (1 + draws at least as good) / (1 + draws)
    p       Student t of the value over several errors, added in squares: the bootstrap standard error
            over prompts, the spread of the draws, and what a caller adds

The spread is there since resampling prompts says nothing about chance in the draws: of three random
subspaces and one more, that one lies outside the three half the time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from retrm.metrics import (
    AverageStatistic,
    Interval,
    PromptStatistic,
    Resamples,
    draw_error,
    point_estimate,
    rank_p_value,
    welch_p_value,
)


@dataclass(frozen=True)
class Gap:
    """A difference and how surprising it is.

    Attributes:
        interval: own - mean of the others, over prompts.
        rank_p: among random draws; NaN against an opponent that is not random.
        p: two-sided, of the difference being 0; NaN without a standard error, or with a single draw.
        df: degrees of freedom of p.
    """

    interval: Interval
    rank_p: float
    p: float
    df: float


def against(
    resamples: Resamples,
    own: PromptStatistic,
    others: Sequence[PromptStatistic],
    *,
    is_random: bool,
    more_errors: Sequence[tuple[float, float]] = (),
) -> Gap:
    """One statistic minus the mean of others.

    Args:
        resamples: of the prompts of all.
        own: the figure of interest; higher is better.
        others: the opponents.
        is_random: whether they are draws of a random kind, whose spread is a source of chance.
        more_errors: (error, degrees of freedom) of further sources of chance.

    Raises:
        DataError: statistics over other prompts, or undefined in every resample.
    """
    mean = averaged(others)
    found = resamples.difference(own, mean)
    errors = [(resamples.standard_error(own, mean), math.inf), *more_errors]
    rank_p = math.nan
    if is_random:
        draws = [point_estimate(statistic) for statistic in others]
        errors.append(draw_error(draws))
        rank_p = rank_p_value(point_estimate(own), draws)
    p, df = welch_p_value(found.value, errors)
    return Gap(found, rank_p, p, df)


def averaged(statistics: Sequence[PromptStatistic]) -> PromptStatistic:
    """The mean inside each resample; a single one stays itself."""
    return statistics[0] if len(statistics) == 1 else AverageStatistic(tuple(statistics))
