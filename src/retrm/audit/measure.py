"""From out-of-fold scores to rows of tables: every metric with its interval, every paired difference.

Prompts are resampled once for an audit, so all intervals and differences come from the same draws. A
random kind of subspace stands for the mean of its draws inside each resample; the spread of the draws
themselves is a second source of chance and is reported by rank.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retrm.audit.draws import against, averaged
from retrm.audit.probes import Probe
from retrm.audit.supervision import Supervision, Task
from retrm.audit.tables import CellRow, ContrastRow
from retrm.errors import LabelError, RecipeError
from retrm.metrics import (
    Interval,
    PromptStatistic,
    Resamples,
    brier,
    expected_calibration_error,
    holm,
    length_matched_auroc_statistic,
    length_matched_pair_statistic,
    log_loss,
    point_estimate,
    residual_scores,
    student_quantile,
    within_prompt_auroc_statistic,
)

WITH_INTERVAL = ("within_auroc", "best_of_n", "pair_accuracy")
MATCHED: Mapping[Task, str] = {
    "graded": "length_matched_auroc",
    "preferences": "length_matched_pair_accuracy",
}


@dataclass(frozen=True)
class Setting:
    """Where a probe stands in the grid."""

    sweep: str
    layer: int
    pooling: str


@dataclass(frozen=True)
class Measured:
    """A probe with the statistics of its scores.

    Attributes:
        probe: the first repetition.
        setting: where it stands.
        statistics: by metric; several repetitions are averaged inside a resample.
        repeats: the same of each repetition, where there are several.
    """

    probe: Probe
    setting: Setting
    statistics: dict[str, PromptStatistic]
    repeats: tuple[dict[str, PromptStatistic], ...] = ()


class Measure:
    """Turns probes into rows.

    Args:
        supervision: labels or pairs.
        lengths: (n,) judged tokens.
        log_probability: (n,) mean, nats a token.
        finished: (n,) 1, 0 or NaN = unknown.
        seed: of the resamples.
    """

    def __init__(
        self,
        supervision: Supervision,
        *,
        lengths: np.ndarray,
        log_probability: np.ndarray,
        finished: np.ndarray,
        seed: int = 0,
    ) -> None:
        self.supervision = supervision
        self.lengths = lengths
        self.log_probability = log_probability
        self.finished = finished
        self.seed = seed

    @cached_property
    def resamples(self) -> Resamples:
        """The same prompts for every metric of the task."""
        any_scores = np.arange(self.supervision.n, dtype=float)
        statistic = self.supervision.statistics(any_scores, None)[self.supervision.record]
        return Resamples(statistic.prompts, seed=self.seed)

    def take(
        self, probes: Sequence[Probe], setting: Setting, folds: Sequence[np.ndarray | None]
    ) -> Measured:
        """Statistics of one feature set, averaged over its repetitions (split seeds, subsets)."""
        each = [
            self.supervision.statistics(probe.scores, fold)
            for probe, fold in zip(probes, folds, strict=True)
        ]
        together = {name: averaged([found[name] for found in each]) for name in each[0]}
        repeats = tuple(each) if len(each) > 1 else ()
        return Measured(_averaged(probes), setting, together, repeats)

    def rules_by_length(self) -> dict[str, np.ndarray]:
        """Scores of the shortest and the longest answer first, in judged tokens."""
        return {"shortest": -self.lengths, "longest": self.lengths}

    def cells_of(self, found: Sequence[Measured]) -> list[CellRow]:
        """`cells` of several."""
        return [row for one in found for row in self.cells(one)]

    def cells(self, measured: Measured, *, every_interval: bool = False) -> list[CellRow]:
        """One row a metric; intervals for the metric of record and best-of-N, or for all."""
        out = []
        for metric, statistic in measured.statistics.items():
            if every_interval or metric in WITH_INTERVAL:
                out.append(self._cell(measured, metric, self.resamples.interval(statistic)))
            else:
                value = self._point_only(point_estimate(statistic), statistic.n)
                out.append(self._cell(measured, metric, value))
        return out

    def cells_over_repeats(self, measured: Measured) -> list[CellRow]:
        """Means over the repetitions, with a 95 % interval of Student's t over them, not over prompts.

        For shuffled labels. Each prompt's labels train the heads of the other folds, so that prompts
        are not independent of one another there, and an interval over them would be a fifth too
        narrow; shuffles are independent, and each is at chance on average.
        """
        out, k = [], len(measured.repeats)
        for metric, statistic in measured.statistics.items():
            values = np.array([point_estimate(each[metric]) for each in measured.repeats])
            value = float(values.mean())
            half = student_quantile(0.05, k - 1) * float(values.std(ddof=1)) / math.sqrt(k)
            n_prompts = len(self.resamples.prompts)
            found = Interval(value, value - half, value + half, statistic.n, n_prompts)
            out.append(self._cell(measured, metric, found))
        return out

    def more_cells(self, measured: Measured) -> list[CellRow]:
        """What else may explain the scores, and calibration; of the first repetition.

        Pairs of like length for both tasks; labels allow for the AUROC beyond length and
        log-probability, for that of finished answers, and for calibration.
        """
        scores = measured.probe.scores
        matched = self._matched(scores)
        more = {} if matched is None else {MATCHED[self.supervision.task]: matched}
        if self.supervision.task == "graded":
            more["residual_auroc"] = self._residual(scores)
        out = [self._cell(measured, name, self.resamples.interval(s)) for name, s in more.items()]
        if self.supervision.task == "graded":
            out += self._finished_cells(measured) + self._calibration_cells(measured)
        return out

    def _residual(self, scores: np.ndarray) -> PromptStatistic:
        s = self.supervision
        covariates = np.column_stack([np.log(self.lengths), self.log_probability])
        rest = residual_scores(scores, covariates, s.prompt_ids)
        return within_prompt_auroc_statistic(rest, s.labels, s.prompt_ids)

    def _finished_cells(self, measured: Measured) -> list[CellRow]:
        whole = self.finished == 1
        if not whole.any() or whole.all():
            return []
        statistic = _on_finished(measured.probe.scores, self.supervision, whole)
        if statistic is None:
            return []
        # Prompts of which every answer was cut are not there: resamples of their own.
        found = Resamples(statistic.prompts, seed=self.seed).interval(statistic)
        return [self._cell(measured, "finished_within_auroc", found)]

    def _calibration_cells(self, measured: Measured) -> list[CellRow]:
        if measured.probe.head != "logistic":
            return []
        scores, s = measured.probe.scores, self.supervision
        figures = {"log_loss": log_loss, "brier": brier, "ece": expected_calibration_error}
        return [
            self._cell(measured, name, self._point_only(figure(scores, s.labels), s.n))
            for name, figure in figures.items()
        ]

    def _point_only(self, value: float, n: int) -> Interval:
        return Interval(value, math.nan, math.nan, n, len(self.resamples.prompts))

    def _matched(self, scores: np.ndarray) -> PromptStatistic | None:
        """Over pairs of like length; None where there are none."""
        s, lengths = self.supervision, self.lengths
        try:
            if s.task == "graded":
                return length_matched_auroc_statistic(scores, s.labels, s.prompt_ids, lengths)
            chosen, rejected = s.pairs.T
            return length_matched_pair_statistic(
                scores[chosen],
                scores[rejected],
                s.prompt_ids[chosen],
                lengths[chosen],
                lengths[rejected],
            )
        except LabelError:
            return None

    def _cell(self, measured: Measured, metric: str, found: Interval) -> CellRow:
        probe, setting = measured.probe, measured.setting
        f = probe.features
        return CellRow(
            sweep=setting.sweep,
            features=f.kind,
            matrix=f.matrix,
            m=f.m,
            draw=f.draw,
            offset=f.offset,
            layer=setting.layer,
            pooling=setting.pooling,
            head=probe.head,
            scaling=f.scaling,
            n_train_prompts=probe.n_train_prompts,
            metric=metric,
            value=found.value,
            low=found.low,
            high=found.high,
            n=found.n,
            n_prompts=found.n_clusters,
            n_undefined=found.n_undefined,
            at_end=probe.at_end,
        )

    def contrasts(
        self, role: str, first: Measured, second: Sequence[Measured], *, is_random: bool
    ) -> list[ContrastRow]:
        """First minus second, on the metric of record and best-of-N.

        Only the metric of record can be `primary`; economy is asked of both, see the plan. p-values
        know three sources of chance: prompts, the draws of a random kind, and repetitions (training
        parts, splits). They are not corrected yet.
        """
        out = []
        for metric in WITH_INTERVAL:
            if metric not in first.statistics:
                continue
            is_record = metric == self.supervision.record
            asked = "exploratory" if role == "primary" and not is_record else role
            out.append(self._contrast(asked, metric, first, second, is_random))
        return out

    def length_contrasts(self, measured: Measured) -> list[ContrastRow]:
        """Scores minus `shortest` and `longest` on the same pairs of like length.

        Like is not equal: within ten per cent length can still tell right from wrong, and a score that
        only reads length is found out by doing no better than length itself. Preferences, which are
        known to favour long answers, are compared on all pairs too.
        """
        s, matched = self.supervision, self._matched(measured.probe.scores)
        rows = []
        for name, scores in self.rules_by_length().items():
            rule = Probe.rule(name, scores)
            if s.task == "preferences":
                figures = s.statistics(scores, None)
                fixed = (figures,) * len(measured.repeats)  # a rule is the same in every split
                theirs = Measured(rule, measured.setting, figures, fixed)
                rows.append(self._contrast("exploratory", s.record, measured, [theirs], False))
            statistic = self._matched(scores)
            if matched is not None and statistic is not None:
                metric = MATCHED[s.task]
                ours = Measured(measured.probe, measured.setting, {metric: matched})
                theirs = Measured(rule, measured.setting, {metric: statistic})
                rows.append(self._contrast("exploratory", metric, ours, [theirs], False))
        return rows

    def _contrast(
        self,
        role: str,
        metric: str,
        first: Measured,
        second: Sequence[Measured],
        is_random: bool,
    ) -> ContrastRow:
        f, setting = first.probe.features, first.setting
        widths = {found.probe.features.m for found in second}
        if is_random and widths != {f.m}:
            raise RecipeError(
                f"got {f.kind} of m = {f.m} against random subspaces of m = "
                f"{', '.join(map(str, sorted(widths)))}; expected the same width, or a wider one wins "
                "by its width. Draw them with the same m"
            )
        gap = against(
            self.resamples,
            first.statistics[metric],
            [found.statistics[metric] for found in second],
            is_random=is_random,
            more_errors=[_repetition(metric, first, second)] if first.repeats else [],
        )
        return ContrastRow(
            role=role,
            sweep=setting.sweep,
            matrix=f.matrix,
            m=f.m,
            layer=setting.layer,
            pooling=setting.pooling,
            head=first.probe.head,
            n_train_prompts=first.probe.n_train_prompts,
            metric=metric,
            first=f.kind,
            second=second[0].probe.features.kind,
            value=gap.interval.value,
            low=gap.interval.low,
            high=gap.interval.high,
            n_prompts=gap.interval.n_clusters,
            n_draws=len(second) if is_random else 0,
            rank_p=gap.rank_p,
            p=gap.p,
            df=gap.df,
            holm_p=math.nan,
        )


def corrected(contrasts: Sequence[ContrastRow]) -> list[ContrastRow]:
    """The same with Holm's correction of p over the exploratory ones of each metric."""
    out = list(contrasts)
    for metric in {row.metric for row in out}:
        places = [
            i for i, row in enumerate(out) if row.metric == metric and row.role == "exploratory"
        ]
        adjusted = holm([out[i].p for i in places])
        for i, p in zip(places, adjusted, strict=True):
            out[i] = replace(out[i], holm_p=float(p))
    return out


def _repetition(metric: str, first: Measured, second: Sequence[Measured]) -> tuple[float, float]:
    """Error of the mean difference over repetitions, with its degrees of freedom."""
    gaps = [
        point_estimate(ours[metric])
        - point_estimate(averaged([found.repeats[i][metric] for found in second]))
        for i, ours in enumerate(first.repeats)
    ]
    return float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps)), len(gaps) - 1


def _averaged(probes: Sequence[Probe]) -> Probe:
    """The first repetition, with the mean share of grid ends."""
    return replace(probes[0], at_end=float(np.mean([probe.at_end for probe in probes])))


def _on_finished(
    scores: np.ndarray, supervision: Supervision, whole: np.ndarray
) -> PromptStatistic | None:
    try:
        return within_prompt_auroc_statistic(
            scores[whole], supervision.labels[whole], supervision.prompt_ids[whole]
        )
    except LabelError:  # no prompt is mixed once cut answers are left out
        return None
