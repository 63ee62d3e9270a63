"""From what was measured under each removal to rows with intervals, paired with the unchanged model.

Three differences stand in a row, all over the same prompts and the same resamples:

    difference      this setting - nothing removed
    minus_random    its effect - mean effect of the random subspaces of the same size at the same layers
                    (nothing removed cancels, so it is this setting - mean of theirs)
    random_p        two-sided, of minus_random being 0: Student t over two errors added in squares, the
                    bootstrap standard error over prompts and the spread of the draws;
                    `random_holm_p` is Holm's correction of it over all interventions and measures
    rank_p          (1 + draws whose effect is at least as high) / (1 + draws)

See `retrm.audit.draws` for why the spread of the draws is asked for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from retrm.audit.draws import against
from retrm.audit.removal import Fill, Intervention
from retrm.audit.tables import InterventionRow
from retrm.errors import ScoreError
from retrm.metrics import (
    N_RESAMPLES,
    PromptStatistic,
    Resamples,
    holm,
    mean_statistic,
    within_prompt_auroc_statistic,
)
from retrm.records import AnswerTable

RANDOM_KINDS = ("random", "random_energy")
_Statistics = Mapping[str, PromptStatistic]


@dataclass(frozen=True)
class Outcome:
    """What one setting gave: (answers,), (judged tokens,), and (new answers,) in prompt order.

    Attributes:
        log_probability: (answers,) mean, nats a token.
        likeliest: (judged tokens,) token ids.
        lengths: (answers,) judged tokens of each.
        energy: (answers,) share that is removed.
        scores: (answers,) of the trained head.
        correct: (new answers,) 1 or 0, as many of each prompt.
    """

    log_probability: np.ndarray
    likeliest: np.ndarray
    lengths: np.ndarray
    energy: np.ndarray
    scores: np.ndarray | None
    correct: np.ndarray | None


@dataclass(frozen=True)
class Effects:
    """Makes rows.

    Attributes:
        table: the answers.
        asked: prompt_ids of the new answers.
        reference: the unchanged model.
        fill, spare_first: how everything was removed.
        seed, n_resamples: of the intervals.
    """

    table: AnswerTable
    asked: Sequence[str]
    reference: Outcome
    fill: Fill
    spare_first: bool
    seed: int = 0
    n_resamples: int = N_RESAMPLES
    _drawn: dict[tuple[str, ...], Resamples] = field(default_factory=dict, repr=False)

    def rows(self, found: Sequence[tuple[Intervention, Outcome]]) -> tuple[InterventionRow, ...]:
        """One row a setting and measure, those of the unchanged model first at each layers typed.

        Not yet corrected: see `corrected_interventions`.
        """
        statistics = [(each, self._statistics(measured)) for each, measured in found]
        none = self._statistics(self.reference)
        rows: list[InterventionRow] = []
        for each, own in statistics:
            if not rows or rows[-1].layers != each.text:
                rows += [self._row(each, "none", name, s, None, ()) for name, s in none.items()]
            for measure, statistic in own.items():
                alike = self._alike(statistics, each, measure)
                rows.append(self._row(each, each.removed, measure, statistic, none[measure], alike))
        return tuple(rows)

    @staticmethod
    def _alike(
        statistics: Sequence[tuple[Intervention, _Statistics]], like: Intervention, measure: str
    ) -> tuple[PromptStatistic, ...]:
        """The random subspaces of the same size at the same layers; none for a random one itself."""
        if like.removed in RANDOM_KINDS:
            return ()
        return tuple(
            theirs[measure]
            for each, theirs in statistics
            if (each.removed, each.text, each.m) == ("random", like.text, like.m)
        )

    def _row(
        self,
        each: Intervention,
        kind: str,
        measure: str,
        own: PromptStatistic,
        none: PromptStatistic | None,
        randoms: tuple[PromptStatistic, ...],
    ) -> InterventionRow:
        resamples, is_none = self._resamples(own), kind == "none"
        value = resamples.interval(own)
        gap = beside = (math.nan, math.nan, math.nan)
        rank_p = p = math.nan
        if none is not None:
            found = resamples.difference(own, none)
            gap = (found.value, found.low, found.high)
        if randoms:
            found = against(resamples, own, randoms, is_random=True)
            beside = (found.interval.value, found.interval.low, found.interval.high)
            if measure != "energy_removed":  # no effect but a fact of the removal
                rank_p, p = found.rank_p, found.p
        return InterventionRow(
            layers=each.text,
            removed=kind,
            m=0 if is_none else each.m,
            draw=0 if is_none else each.draw,
            fill=self.fill,
            spare_first=self.spare_first,
            point=each.point,
            measure=measure,
            value=value.value,
            low=value.low,
            high=value.high,
            difference=gap[0],
            difference_low=gap[1],
            difference_high=gap[2],
            minus_random=beside[0],
            minus_random_low=beside[1],
            minus_random_high=beside[2],
            rank_p=rank_p,
            random_p=p,
            random_holm_p=math.nan,
            n=value.n,
        )

    def _resamples(self, statistic: PromptStatistic) -> Resamples:
        """Drawn once for all statistics over the same prompts."""
        key = tuple(map(str, statistic.prompts))
        if key not in self._drawn:
            self._drawn[key] = Resamples(statistic.prompts, self.n_resamples, self.seed)
        return self._drawn[key]

    def _statistics(self, found: Outcome) -> dict[str, PromptStatistic]:
        """Measure by name, each over the same prompts as in every other setting."""
        ids = self.table.prompt_ids
        agrees = (found.likeliest == self.reference.likeliest).astype(np.float64)
        out: dict[str, PromptStatistic] = {
            "log_probability": mean_statistic(found.log_probability, ids),
            "greedy_agreement": mean_statistic(agrees, np.repeat(ids, found.lengths)),
            "energy_removed": mean_statistic(found.energy, ids),
        }
        if found.scores is not None and self.reference.scores is not None:
            shift = _score_shift(found.scores, self.reference.scores)
            out["score_shift"] = mean_statistic(shift, ids)
            if not np.isnan(self.table.labels).all():
                out["within_auroc"] = within_auroc(self.table, found.scores)
        if found.correct is not None:
            n_samples = len(found.correct) // len(self.asked)
            out["accuracy"] = mean_statistic(found.correct, np.repeat(self.asked, n_samples))
        return out


def corrected_interventions(rows: Sequence[InterventionRow]) -> tuple[InterventionRow, ...]:
    """The same with Holm's correction over every comparison with random subspaces in `rows`.

    Where an audit measures more than once, such as with both fills, give it all rows together.
    """
    adjusted = holm([row.random_p for row in rows])
    return tuple(
        replace(row, random_holm_p=float(p)) for row, p in zip(rows, adjusted, strict=True)
    )


def within_auroc(table: AnswerTable, scores: np.ndarray) -> PromptStatistic:
    """Of the answers that have a label.

    Raises:
        LabelError: no prompt has both right and wrong answers.
    """
    has_label = ~np.isnan(table.labels)
    return within_prompt_auroc_statistic(
        scores[has_label], table.labels[has_label], table.prompt_ids[has_label]
    )


def _score_shift(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    spread = reference.std()
    if spread == 0:
        raise ScoreError(
            f"got the same score {reference[0]:g} for all {len(reference)} answers on the unchanged "
            "model; expected scores that differ. Fit the head on other features"
        )
    return np.abs(scores - reference) / spread
