"""From out-of-fold scores to rows of tables: every metric with its interval, every paired difference.

Prompts are resampled once for an audit, so all intervals and differences come from the same draws. A
random kind of subspace stands for the mean of its draws inside each resample; the spread of the draws
themselves is a second source of chance and is reported by rank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retrm.audit.directions import FeatureSet
from retrm.audit.probes import Probe
from retrm.audit.supervision import Supervision
from retrm.audit.tables import CellRow, ContrastRow
from retrm.errors import LabelError
from retrm.metrics import (
    AverageStatistic,
    Interval,
    PromptStatistic,
    Resamples,
    brier,
    draw_error,
    expected_calibration_error,
    holm,
    length_matched_auroc_statistic,
    log_loss,
    rank_p_value,
    residual_scores,
    welch_p_value,
    within_prompt_auroc_statistic,
)

WITH_INTERVAL = ("within_auroc", "best_of_n", "pair_accuracy")
NAN = float("nan")


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
        averaged = {
            name: each[0][name]
            if len(each) == 1
            else AverageStatistic(tuple(found[name] for found in each))
            for name in each[0]
        }
        repeats = tuple(each) if len(each) > 1 else ()
        return Measured(_averaged(probes), setting, averaged, repeats)

    def cells(self, measured: Measured, *, every_interval: bool = False) -> list[CellRow]:
        """One row a metric; intervals for the metric of record and best-of-N, or for all."""
        out = []
        for metric, statistic in measured.statistics.items():
            if every_interval or metric in WITH_INTERVAL:
                out.append(self._cell(measured, metric, self.resamples.interval(statistic)))
            else:
                out.append(
                    self._cell(measured, metric, _point_only(_point(statistic), statistic.n))
                )
        return out

    def more_cells(self, measured: Measured) -> list[CellRow]:
        """Length-matched, residual and finished-only AUROC and calibration of the first repetition."""
        if self.supervision.task == "preferences":
            return []
        s, scores = self.supervision, measured.probe.scores
        out = []
        matched = _matched(scores, s, self.lengths)
        if matched is not None:
            out.append(self._with_interval(measured, "length_matched_auroc", matched))
        covariates = np.column_stack([np.log(self.lengths), self.log_probability])
        rest = residual_scores(scores, covariates, s.prompt_ids)
        statistic = within_prompt_auroc_statistic(rest, s.labels, s.prompt_ids)
        out.append(self._with_interval(measured, "residual_auroc", statistic))
        whole = self.finished == 1
        if whole.any() and not whole.all():
            statistic = _on_finished(scores, s, whole)
            if statistic is not None:
                found = Resamples(statistic.prompts, seed=self.seed).interval(statistic)
                out.append(self._cell(measured, "finished_within_auroc", found))
        if measured.probe.head == "logistic":
            for name, metric in (
                *(("log_loss", log_loss), ("brier", brier)),
                ("ece", expected_calibration_error),
            ):
                value = _point_only(metric(scores, s.labels), s.n)
                out.append(self._cell(measured, name, value))
        return out

    def _with_interval(
        self, measured: Measured, metric: str, statistic: PromptStatistic
    ) -> CellRow:
        found = Resamples(statistic.prompts, seed=self.seed).interval(statistic)
        return self._cell(measured, metric, found)

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
            n_prompts=len(self.resamples.prompts),
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
        only reads length is found out by doing no better than length itself.
        """
        s, metric = self.supervision, "length_matched_auroc"
        if s.task == "preferences":
            return []
        scores = {"shortest": -self.lengths, "longest": self.lengths}
        own = _matched(measured.probe.scores, s, self.lengths)
        if own is None:
            return []
        ours = Measured(measured.probe, measured.setting, {metric: own})
        rows = []
        for name, values in scores.items():
            rule = Probe(FeatureSet(name, 0, scaling="-"), "-", values, NAN, 0)
            statistic = _matched(values, s, self.lengths)
            assert statistic is not None
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
        ours = first.statistics[metric]
        theirs = [found.statistics[metric] for found in second]
        mean = _mean(theirs)
        found = self.resamples.difference(ours, mean)
        points = [_point(statistic) for statistic in theirs]
        errors = [(self.resamples.standard_error(ours, mean), math.inf)]
        if is_random:
            errors.append(draw_error(points))
        if first.repeats:
            errors.append(_repetition(metric, first, second))
        p, df = welch_p_value(found.value, errors)
        f, setting = first.probe.features, first.setting
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
            value=found.value,
            low=found.low,
            high=found.high,
            n_prompts=found.n_clusters,
            n_draws=len(second) if is_random else 0,
            rank_p=rank_p_value(_point(ours), points) if is_random else NAN,
            p=p,
            df=df,
            holm_p=NAN,
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


def _mean(statistics: Sequence[PromptStatistic]) -> PromptStatistic:
    return statistics[0] if len(statistics) == 1 else AverageStatistic(tuple(statistics))


def _point_only(value: float, n: int) -> Interval:
    return Interval(value, NAN, NAN, n, 0)


def _repetition(metric: str, first: Measured, second: Sequence[Measured]) -> tuple[float, float]:
    """Error of the mean difference over repetitions, with its degrees of freedom."""
    gaps = [
        _point(ours[metric]) - _point(_mean([found.repeats[i][metric] for found in second]))
        for i, ours in enumerate(first.repeats)
    ]
    return float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps)), len(gaps) - 1


def _averaged(probes: Sequence[Probe]) -> Probe:
    """The first repetition, with the mean share of grid ends."""
    return replace(probes[0], at_end=float(np.mean([probe.at_end for probe in probes])))


def _point(statistic: PromptStatistic) -> float:
    return float(statistic(np.ones((1, len(statistic.prompts))))[0])


def _matched(
    scores: np.ndarray, supervision: Supervision, lengths: np.ndarray
) -> PromptStatistic | None:
    try:
        return length_matched_auroc_statistic(
            scores, supervision.labels, supervision.prompt_ids, lengths
        )
    except LabelError:  # no right and wrong answer of like length: nothing to report
        return None


def _on_finished(
    scores: np.ndarray, supervision: Supervision, whole: np.ndarray
) -> PromptStatistic | None:
    try:
        return within_prompt_auroc_statistic(
            scores[whole], supervision.labels[whole], supervision.prompt_ids[whole]
        )
    except LabelError:  # no prompt is mixed once cut answers are left out
        return None
