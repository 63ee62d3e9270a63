"""What a judge behind a cheap scorer saves: accuracy on preference pairs against the judge's calls.

    right(pair, m) = the judge's verdict   if |cheap gap| <= m
                     the cheap scorer's    otherwise                 ties count one half

The curve goes over the share of pairs of which the judge is asked, those with the smallest gaps first; all
pairs with one gap are asked together, so m is what a cascade of that margin would do. Beside it stands what
asking as many pairs at random would give in expectation,

    (1 - share) cheap + share judge,

since a cascade is worth its name only above that line.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrm.errors import LabelError, ScoreError
from retrm.metrics import Interval, Resamples, mean_statistic

SHARES = tuple(round(0.05 * i, 2) for i in range(21))


@dataclass(frozen=True)
class CascadePoint:
    """One margin.

    Attributes:
        margin: of the cheap scores; -1 = the judge is asked of nothing.
        share: of the pairs that the judge is asked of.
        n_calls: outputs of the judge.
        accuracy: with its interval over prompts.
        at_random: expected accuracy if as many pairs were asked at random.
        over_random: difference to that, on the same resamples.
    """

    margin: float
    share: float
    n_calls: int
    accuracy: Interval
    at_random: float
    over_random: Interval


@dataclass(frozen=True)
class CascadeCurve:
    """The curve.

    Attributes:
        points: from no call to all.
        n_pairs: of the data.
        n_prompts: of the data.
        n_unread: pairs of which the judge says nothing that can be read; they count as ties.
        n_judge_ties: pairs that it ties, the unread ones left out.
        n_cheap_ties: pairs with equal cheap scores.
        calls_per_pair: outputs of the judge for one pair.
    """

    points: tuple[CascadePoint, ...]
    n_pairs: int
    n_prompts: int
    n_unread: int
    n_judge_ties: int
    n_cheap_ties: int
    calls_per_pair: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def cascade_curve(
    gaps: Sequence[float],
    points: Sequence[float],
    prompt_ids: Sequence[str],
    *,
    calls_per_pair: int,
    n_unread: int = 0,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
) -> CascadeCurve:
    """The curve of pairs whose right side is known.

    Args:
        gaps: (n,) cheap score of the right side less that of the wrong one.
        points: (n,) the judge's points of the right side: above 1/2 = it wins.
        prompt_ids: (n,) which intervals resample.
        calls_per_pair: outputs of the judge for one pair.
        n_unread: pairs of which it says nothing that can be read.
        shares: of the pairs, where the curve is drawn; 0 and 1 are always there.
        seed: of the intervals.

    Raises:
        LabelError: no pairs.
        ScoreError: columns of different length, or numbers that are not finite.
    """
    gap, judged = np.asarray(gaps, dtype=np.float64), np.asarray(points, dtype=np.float64)
    if not len(gap):
        raise LabelError("got no pairs; expected some whose right side is known")
    if not gap.shape == judged.shape == (len(prompt_ids),):
        raise ScoreError(
            f"got {len(gap)} gaps, {len(judged)} points and {len(prompt_ids)} prompts; expected one each"
        )
    cheap_right, judge_right = ((np.sign(x) + 1) / 2 for x in (gap, judged - 0.5))
    both = [mean_statistic(right, prompt_ids) for right in (cheap_right, judge_right)]
    resamples = Resamples(both[0].prompts, seed=seed)
    made = []
    for margin in _margins(np.abs(gap), shares):
        asked = np.abs(gap) <= margin
        right = np.where(asked, judge_right, cheap_right)
        share = float(asked.mean())
        at_random = (1 - share) * cheap_right + share * judge_right
        found, random = mean_statistic(right, prompt_ids), mean_statistic(at_random, prompt_ids)
        made.append(
            CascadePoint(
                margin=float(margin),
                share=share,
                n_calls=int(asked.sum()) * calls_per_pair,
                accuracy=resamples.interval(found),
                at_random=float(at_random.mean()),
                over_random=resamples.difference(found, random),
            )
        )
    return CascadeCurve(
        points=tuple(made),
        n_pairs=len(gap),
        n_prompts=len(both[0].prompts),
        n_unread=n_unread,
        n_judge_ties=int((judged == 0.5).sum()) - n_unread,
        n_cheap_ties=int((gap == 0).sum()),
        calls_per_pair=calls_per_pair,
    )


def _margins(sizes: np.ndarray, shares: Sequence[float]) -> list[float]:
    """The smallest margin that asks at least each share, each once; -1 asks nothing."""
    ordered = np.sort(sizes)
    places = [int(np.ceil(share * len(ordered))) for share in (*shares, 1.0)]
    return sorted({-1.0, *(float(ordered[place - 1]) for place in places if place > 0)})
