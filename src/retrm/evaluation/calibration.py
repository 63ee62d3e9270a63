"""Whether the margin of two scores says how sure one may be that the higher one is the better.

    P(the higher-scored answer is preferred) = sigmoid(|margin| / T)

    reliability    pairs in bins of this probability: its mean beside the share that is so
    ECE            sum over bins (pairs in it / pairs) |mean probability - share|
    Brier          mean (probability - outcome)^2,   log loss    mean -log P(outcome)

Equal scores are one half in both. T is fitted by log loss on one half of the clusters and applied to
the other, both ways, so no pair is judged by a T that has seen it; T = 1 stands before. A pair that is turned
round has the probability 1 - P, so this is the calibration of both orders together, and the figures
are those of `metrics.brier` and `metrics.expected_calibration_error` (with twice the bins) on them.
Where halves are too small for a temperature, or none is finite or above 0, `no_temperature` says so and
the figures behind it are not to be read: an ECE of 0 is then that of no opinion at all.
Source: Guo et al. 2017, arXiv 1706.04599 (temperature, ECE in equal bins).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrm.data.split import prompt_folds
from retrm.errors import DataError
from retrm.evaluation.preferred import Preferences, pairs_of_file
from retrm.evaluation.score_file import ScoreFile
from retrm.metrics import (
    N_RESAMPLES,
    Interval,
    Resamples,
    log_loss_terms,
    mean_statistic,
    sums_statistic,
)
from retrm.metrics.kernels import sigmoid

N_BINS = 10
FEWEST_CLUSTERS = 20
"""Prompts with pairs below which half of them fix no temperature."""
# Steeper than this, in 1 / typical margin, a probability is 0 or 1 for every purpose.
_STEEPEST = 1e3


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of about the same probability.

    Attributes:
        low: lower end of the bin, in 0.5..1.
        high: upper end.
        probability: mean of the pairs.
        share: of the pairs in which the higher-scored answer is the preferred, with interval.
        n: pairs.
    """

    low: float
    high: float
    probability: float
    share: Interval
    n: int


@dataclass(frozen=True)
class Reliability:
    """Calibration of one way to turn margins into probabilities.

    Attributes:
        bins: those with pairs, ascending.
        ece: expected calibration error; noise alone lifts it where bins hold few pairs.
        brier: 0.25 is what no opinion gets.
        log_loss: in nats; log 2 = 0.693 is what no opinion gets.
    """

    bins: tuple[ReliabilityBin, ...]
    ece: Interval
    brier: Interval
    log_loss: Interval


@dataclass(frozen=True)
class Calibration:
    """Before and after a temperature.

    Attributes:
        benchmark: its name.
        scorer: its name.
        before: scores as they are, T = 1.
        after: each half by the temperature of the other; intervals keep the temperatures fixed.
        inverse_temperatures: 1 / T fitted on either half; 0 = its margins tell nothing, or the
            opposite.
        n_pairs: pairs, at most `MOST_PAIRS` of an item.
        n_clusters: that intervals resample.
        n_ties: pairs of equal scores.
        no_temperature: why `after` says nothing, "" where it does.
    """

    benchmark: str
    scorer: str
    before: Reliability
    after: Reliability
    inverse_temperatures: tuple[float, float]
    n_pairs: int
    n_clusters: int
    n_ties: int
    no_temperature: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def calibration(
    scores: ScoreFile, *, n_bins: int = N_BINS, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Calibration:
    """Reliability of the margins of one scorer on one benchmark with preference pairs.

    Args:
        scores: of the scorer.
        n_bins: equal bins from 0.5 to 1.
        n_resamples: of the intervals.
        seed: of the intervals, the halves, and the pairs drawn where an item has very many.

    Raises:
        DataError: the benchmark has no pairs, all are of one cluster, or there are no bins.
    """
    if n_bins < 1:
        raise DataError(f"got n_bins = {n_bins}; expected at least 1, usually {N_BINS}")
    _, pairs = pairs_of_file(scores, seed=seed)
    half = prompt_folds(pairs.clusters, 2, seed)
    slopes = [inverse_temperature(pairs.margins[half == h]) for h in (0, 1)]
    crossed = pairs.margins * np.array(slopes)[1 - half]
    resamples = Resamples(np.unique(pairs.clusters).astype(object), n_resamples, seed)
    return Calibration(
        benchmark=scores.benchmark,
        scorer=scores.scorer,
        before=_reliability(pairs.margins, pairs, resamples, n_bins),
        after=_reliability(crossed, pairs, resamples, n_bins),
        inverse_temperatures=(slopes[0], slopes[1]),
        n_pairs=len(half),
        n_clusters=len(resamples.prompts),
        n_ties=int((pairs.margins == 0).sum()),
        no_temperature=_why_none(len(resamples.prompts), slopes, pairs.margins, half),
    )


def _why_none(
    n_clusters: int, slopes: Sequence[float], margins: np.ndarray, half: np.ndarray
) -> str:
    """Why no temperature can be trusted; "" where one can."""
    if n_clusters < FEWEST_CLUSTERS:
        return f"{n_clusters} prompts with pairs are too few for one, it takes {FEWEST_CLUSTERS}"
    n_flat = sum(slope == 0 for slope in slopes)
    if n_flat:
        where = "both halves" if n_flat == 2 else "one half"
        return f"in {where} of the prompts the margins tell nothing, or the opposite"
    if any(margins[half == h].min() >= 0 for h in (0, 1)):
        return "in one half of the prompts no pair is lost, so none is steep enough"
    return ""


def inverse_temperature(margins: Sequence[float]) -> float:
    """The b = 1 / T >= 0 that minimises mean log(1 + exp(-b margin)), which is convex in b.

    Args:
        margins: (n,) score of the preferred - score of the other.

    Returns:
        0 where margins are not positive on average: then no b > 0 is better than no opinion. Where all
        are positive, 1,000 over their root mean square, since none would be large enough.
    """
    values = np.asarray(margins, dtype=np.float64)
    size = float(np.sqrt((values**2).mean())) if len(values) else 0.0
    if size == 0 or values.mean() <= 0:
        return 0.0
    unit = values / size

    def falls(b: float) -> bool:
        return float((unit * sigmoid(-b * unit)).sum()) > 0

    low, high = 0.0, _STEEPEST
    if falls(high):
        return high / size
    for _ in range(80):  # halves, down to the last digit
        middle = (low + high) / 2
        low, high = (middle, high) if falls(middle) else (low, middle)
    return (low + high) / 2 / size


def _reliability(
    logits: np.ndarray, pairs: Preferences, resamples: Resamples, n_bins: int
) -> Reliability:
    """Figures of margins that are log odds."""
    probability = sigmoid(np.abs(logits))
    # Whatever the sign of a margin is, its log odds have it, or none where b is 0.
    side = np.where(logits == 0, 0.5, pairs.won)
    place = np.minimum(((probability - 0.5) * 2 * n_bins).astype(int), n_bins - 1)
    bins = [
        _bin(b, n_bins, probability, side, place == b, pairs.clusters, resamples)
        for b in np.unique(place)
    ]
    gaps = np.zeros((len(place), n_bins + 1))
    gaps[np.arange(len(place)), place] = probability - side
    gaps[:, -1] = 1
    ece = sums_statistic(
        gaps, pairs.clusters, lambda s: np.abs(s[:, :-1]).sum(axis=1) / s[:, -1], n=len(place)
    )
    square = side * (1 - probability) ** 2 + (1 - side) * probability**2
    size = np.abs(logits)
    loss = side * log_loss_terms(size, np.ones(len(size)))
    loss += (1 - side) * log_loss_terms(size, np.zeros(len(size)))
    return Reliability(
        tuple(bins),
        resamples.interval(ece),
        resamples.interval(mean_statistic(square, pairs.clusters)),
        resamples.interval(mean_statistic(loss, pairs.clusters)),
    )


def _bin(
    number: int,
    n_bins: int,
    probability: np.ndarray,
    side: np.ndarray,
    mask: np.ndarray,
    clusters: Sequence[str],
    resamples: Resamples,
) -> ReliabilityBin:
    columns = np.column_stack([side * mask, mask])
    n = int(mask.sum())
    share = sums_statistic(columns, clusters, lambda s: s[:, 0] / s[:, 1], n=n)
    return ReliabilityBin(
        low=0.5 + number / n_bins / 2,
        high=0.5 + (number + 1) / n_bins / 2,
        probability=float(probability[mask].mean()),
        share=resamples.interval(share),
        n=n,
    )
