"""A mixture on prompts that were held out: its pairs beside its controls, its objectives beside raters.

A gate earns its place where the mixture orders more pairs than its objectives do without it; an
objective is worth its name where it follows its raters. Both can fail, and both are printed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrm.evaluation.preferences import PairComparison, compare_pairs
from retrm.metrics import Interval, Resamples
from retrm.metrics.ranks import spearman_statistic
from retrm.metrics.statistics import PromptStatistic, mean_statistic
from retrm.records import AnswerTable
from retrm.scorers.baseline import LengthScorer


@dataclass(frozen=True)
class ObjectiveRow:
    """One objective; figures are None where they are undefined, as where all ratings are equal.

    Attributes:
        name: of the objective.
        n_rated: held-out answers that are rated on it.
        correlation: rank correlation of its score with the ratings, with an interval over prompts.
        squared_error: mean squared error against the ratings.
        length_correlation: rank correlation of its score with the length of the answer.
        adjusted_length_correlation: the same without what verbosity explains of the score; None for
            verbosity itself, of which nothing is left.
    """

    name: str
    n_rated: int
    correlation: Interval | None
    squared_error: Interval | None
    length_correlation: Interval | None
    adjusted_length_correlation: Interval | None


@dataclass(frozen=True)
class MixtureFigures:
    """What the held-out answers say of a mixture.

    Attributes:
        pairs: the mixture beside its controls; None where no pair was held out.
        objectives: a row each.
        verbosity: the objective that is taken out of the others; None = none.
    """

    pairs: PairComparison | None
    objectives: tuple[ObjectiveRow, ...]
    verbosity: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def measure_mixture(
    name: str,
    scores: np.ndarray,
    controls: Mapping[str, np.ndarray],
    objectives: Mapping[str, np.ndarray],
    adjusted: Mapping[str, np.ndarray],
    table: AnswerTable,
    *,
    verbosity: str | None,
    label_threshold: float | None = None,
    seed: int = 0,
) -> MixtureFigures:
    """The figures of one mixture.

    Args:
        name: of the mixture.
        scores: (n,) of the held-out answers.
        controls: (n,) by name; lengths and chance join them here.
        objectives: (n,) raw scores by name.
        adjusted: (n,) the same without what verbosity explains.
        table: the held-out answers, with ratings.
        verbosity: the objective that was taken out of the others; None = none.
        label_threshold: grades at or above it are right.
        seed: of the resamples and of chance.
    """
    ids = table.prompt_ids.tolist()
    longest = LengthScorer(prefers="longest").score(table.answers)
    chance = np.random.default_rng(seed).random(len(table))
    baselines = {**controls, "longest": longest, "shortest": -longest, "random": chance}
    pairs = table.judged(label_threshold=label_threshold).preferences()
    return MixtureFigures(
        pairs=compare_pairs({name: scores}, baselines, pairs, ids, seed=seed) if pairs else None,
        objectives=objective_rows(objectives, adjusted, table.ratings, ids, longest, seed=seed),
        verbosity=verbosity,
    )


def objective_rows(
    objectives: Mapping[str, np.ndarray],
    adjusted: Mapping[str, np.ndarray],
    ratings: Mapping[str, np.ndarray],
    prompt_ids: Sequence[str],
    lengths: Sequence[float],
    *,
    seed: int = 0,
) -> tuple[ObjectiveRow, ...]:
    """One row an objective, in their order.

    Args:
        objectives: (n,) raw scores by name.
        adjusted: (n,) the same without verbosity.
        ratings: (n,) NaN = not rated.
        prompt_ids: (n,).
        lengths: (n,) of the answers, in any unit.
        seed: of the resamples.
    """
    ids = np.array(prompt_ids, dtype=object)
    rows = []
    for name, scores in objectives.items():
        known = np.flatnonzero(~np.isnan(ratings[name]))
        own, labels, prompts = scores[known], ratings[name][known], ids[known]
        rows.append(
            ObjectiveRow(
                name=name,
                n_rated=len(known),
                correlation=_correlation(own, labels, prompts, seed),
                squared_error=_interval(mean_statistic((own - labels) ** 2, prompts), seed)
                if len(known)
                else None,
                length_correlation=_correlation(scores, lengths, ids, seed),
                adjusted_length_correlation=_correlation(adjusted[name], lengths, ids, seed),
            )
        )
    return tuple(rows)


def _correlation(
    scores: Sequence[float], other: Sequence[float], prompt_ids: Sequence[str], seed: int
) -> Interval | None:
    if min(len(np.unique(scores)), len(np.unique(other))) < 2:
        return None
    return _interval(spearman_statistic(scores, other, prompt_ids), seed)


def _interval(statistic: PromptStatistic, seed: int) -> Interval:
    return Resamples(statistic.prompts, seed=seed).interval(statistic)
