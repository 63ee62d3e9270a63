"""Every figure of an audit as tidy tables: one row a number, written as Parquet and CSV.

The report and the verdict read these tables and nothing else, so both can be made again from the
files without the model.

>>> from retrm.audit.tables import AuditTables
>>> sorted(AuditTables.columns("spectrum"))
['index', 'matrix', 'singular_value']
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from retrm.errors import StoreError
from retrm.files import atomic_write, write_json

FORMAT_VERSION = 2


@dataclass(frozen=True)
class CellRow:
    """One feature set under one setting, one metric of its out-of-fold scores.

    Attributes:
        sweep: which question the cell belongs to: `primary`, `width`, `layer`, `learning`,
            `matrix`, `pooling`, `band`, `controls` (scalars, shuffle, whitening, raw scaling).
        features: kind of features: `full`, `reasoning`, `semantic`, `semantic_all`, `middle`,
            `random`, `random_singular`, `coordinates`, `pca_top`, `pca_bottom`, `white_random`,
            `band`, `scalars`, `scalars+reasoning`, `scalars+random`, `scalars+full`, `scalar:NAME`,
            `prompt`, `shuffled`, or the name of a baseline (`log-probability`, `shortest`, `longest`, ...).
        matrix: whose singular directions: `raw`, `folded`, `centred`, `centred_folded`; `-` where
            none takes part.
        m: number of features; 0 for a baseline.
        draw: number of the random draw, 0 where there is one only.
        offset: first singular direction (0 = largest) of a `band`, else -1.
        layer: 0 = embedding output, i = output of block i; -1 for scalars and baselines.
        pooling: `last`, `mean`, `max`, `gate`, `prompt_end`; `-` for scalars and baselines.
        head: `logistic`, `ridge`, `gated`; `-` for a baseline.
        scaling: `standardised` or `raw`.
        n_train_prompts: prompts in a training part (mean over folds, rounded).
        metric: `within_auroc` (mean over mixed prompts), `within_auroc_pairs` (pair-weighted),
            `pooled_auroc` (mean over folds), `best_of_n`, `pair_accuracy`, `length_matched_auroc`,
            `length_matched_pair_accuracy`, `residual_auroc`, `finished_within_auroc`, `log_loss`,
            `brier`, `ece`.
        value, low, high: with the 95 % interval over prompts, heads held fixed: nothing is fitted
            again in a resample. low = high = NaN where none is made.
        n: rows or pairs behind the metric.
        n_prompts: prompts resampled.
        n_undefined: resamples in which the metric was undefined (one class only) and left out.
        at_end: share of folds in which an end of the penalty grid was chosen; NaN for baselines.
    """

    sweep: str
    features: str
    matrix: str
    m: int
    draw: int
    offset: int
    layer: int
    pooling: str
    head: str
    scaling: str
    n_train_prompts: int
    metric: str
    value: float
    low: float
    high: float
    n: int
    n_prompts: int
    n_undefined: int
    at_end: float


@dataclass(frozen=True)
class ContrastRow:
    """A paired difference first - second on the same prompts.

    Attributes:
        role: `primary`, `economy` or `exploratory`; fixed by the plan, before looking.
        sweep, matrix, m, layer, pooling, head, n_train_prompts, metric: as in `CellRow`.
        first, second: feature kinds; a random kind stands for the mean over its draws.
        value, low, high: 95 % interval over prompts, heads held fixed.
        n_prompts: prompts resampled.
        n_draws: random draws behind `second`; 0 where it is not random.
        rank_p: (1 + draws at least as good as `first`) / (1 + draws); NaN without draws.
        p: two-sided p-value of the difference, uncorrected: Student t over the bootstrap standard
            error and, where they apply, the spread of the random draws and that of repetitions,
            added in squares. NaN without a standard error, or with a single draw.
        df: its degrees of freedom by Welch-Satterthwaite; infinite for the bootstrap alone.
        holm_p: p after Holm's correction over the exploratory contrasts of the audit with the same
            metric; NaN for the primary and the economy contrast.
    """

    role: str
    sweep: str
    matrix: str
    m: int
    layer: int
    pooling: str
    head: str
    n_train_prompts: int
    metric: str
    first: str
    second: str
    value: float
    low: float
    high: float
    n_prompts: int
    n_draws: int
    rank_p: float
    p: float
    df: float
    holm_p: float


@dataclass(frozen=True)
class SpectrumRow:
    """One singular value; index 0 = largest; matrix as in `CellRow`."""

    matrix: str
    index: int
    singular_value: float


@dataclass(frozen=True)
class EnergyRow:
    """Share of the squared norm of the normalised residual in a subspace, mean over tokens.

    Attributes:
        layer: 0 = embedding output.
        token_kind: `first` (position 0), `early` (positions 1-3), `prompt`, `content`,
            `punctuation`, `end` (the end-of-turn token of an answer).
        n_tokens: behind the mean.
        reasoning, semantic: shares 0-1 in the folded subspaces of `m` directions; chance is m / D.
        rms: root mean square of the residual itself, mean over tokens.
    """

    layer: int
    token_kind: str
    n_tokens: int
    m: int
    reasoning: float
    semantic: float
    rms: float


@dataclass(frozen=True)
class DirectionRow:
    """One singular direction of the raw LM head on the answers' last-token post_norm states.

    Attributes:
        index: 0 = largest singular value.
        singular_value: logits per unit.
        separation: (mean of right - mean of wrong) / pooled standard deviation; NaN without labels.
        energy: share of the mean squared norm, 0-1.
        weight: share of |w|^2 of the full head fitted on whitened states, 0-1; NaN without one.
    """

    index: int
    singular_value: float
    separation: float
    energy: float
    weight: float


@dataclass(frozen=True)
class OverlapRow:
    """Mean squared cosine of the principal angles between two reasoning subspaces, 1 = the same."""

    first: str
    second: str
    m: int
    mean_cos2: float


@dataclass(frozen=True)
class AnswerRow:
    """One answer with out-of-fold scores of the primary setting, for scatter plots and re-analysis.

    Attributes:
        row: in the data.
        prompt_id: of the prompt.
        label: 1, 0 or NaN.
        n_tokens: judged tokens.
        finished: 1, 0 (cut) or NaN (unknown).
        full, reasoning, random: scores, each fold standardised; random: of draw 0 alone, since a mean
            of scores would be that of an ensemble.
        log_probability: mean, nats a token.
    """

    row: int
    prompt_id: str
    label: float
    n_tokens: int
    finished: float
    full: float
    reasoning: float
    random: float
    log_probability: float


@dataclass(frozen=True)
class CurveRow:
    """Exact expected best-of-k accuracy of one selector; `majority` has no interval (NaN)."""

    name: str
    k: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class InterventionRow:
    """What changes when a component of the state is removed at some layers.

    Attributes:
        layers: as typed, such as `10-20`, `last` or `all`.
        removed: `none`, `reasoning`, `semantic`, `random`, or `random_energy`: random directions, as
            many as take out about the energy that the reasoning subspace of the setting does.
        m: directions removed.
        draw: of a random subspace.
        fill: `zero`, or `mean` = the mean of the component is put back.
        spare_first: whether the first token of a row, an attention sink, is left alone.
        point: `residual` or `post_norm`.
        measure: `accuracy` (of new samples), `log_probability`, `greedy_agreement`,
            `within_auroc` (of the trained head on the changed states), `score_shift`, `energy_removed`.
        value, low, high: 95 % interval over prompts.
        difference, difference_low, difference_high: paired, minus `none`; NaN for `none` itself.
        minus_random, minus_random_low, minus_random_high: paired, this effect minus the mean effect
            of the `random` rows of the same m at the same layers; NaN for `none` and random kinds.
        rank_p: (1 + random draws whose effect is at least as high) / (1 + draws), as in
            `ContrastRow`; NaN for `none`, random kinds and `energy_removed`, which is no effect.
        random_p: two-sided, of `minus_random`, uncorrected: Student t over the bootstrap standard
            error and the spread of the draws, added in squares; NaN where `rank_p` is, and with a
            single prompt or draw.
        random_holm_p: after Holm's correction over all interventions and measures of the audit.
        n: rows behind it.
    """

    layers: str
    removed: str
    m: int
    draw: int
    fill: str
    spare_first: bool
    point: str
    measure: str
    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    minus_random: float
    minus_random_low: float
    minus_random_high: float
    rank_p: float
    random_p: float
    random_holm_p: float
    n: int


@dataclass(frozen=True)
class Verdict:
    """A sentence that the intervals allow.

    Attributes:
        question: `specificity` (reasoning against random of the same width), `economy` (against the
            full state), `sanity`, `labels` and `labels_full` (by number of labels, against random
            and against the full state), `layers`, `confidence` and `confidence_random` (what the
            subspace adds to scalars, and whether more than random ones do), `length`, `use`
            (interventions).
        answer: as documented in `retrm.audit.verdict`.
        sentence: for a person.
        is_primary: fixed before looking; all others are exploratory.
        subject: what tells it from others of its question: the metric of a contrast that was fixed,
            the pooling of `layers`; empty where there is one only.
    """

    question: str
    answer: str
    sentence: str
    is_primary: bool
    subject: str = ""


ROW_TYPES: Mapping[str, type] = {
    "cells": CellRow,
    "contrasts": ContrastRow,
    "spectrum": SpectrumRow,
    "energy": EnergyRow,
    "directions": DirectionRow,
    "overlap": OverlapRow,
    "answers": AnswerRow,
    "curves": CurveRow,
    "interventions": InterventionRow,
}


@dataclass(frozen=True)
class AuditTables:
    """All tables of an audit, its facts and its verdicts.

    Attributes:
        facts: plain JSON (None where a figure does not apply): model, data, task (`graded` or
            `preferences`), metric (of record),
            n_answers, n_prompts, n_mixed, n_pairs, n_unjudged, n_cut, n_skipped, n_truncated,
            n_tokens, reading_s, fitting_s, width, n_layers, m and n_primary_draws (of the primary
            contrast; older audits call the latter n_draws), n_folds, n_split_seeds, pass_at_1,
            oracle, matrices (that were compared), learning_sizes_left_out (numbers of prompts too
            few to hold right and wrong answers), n_shuffles (of labels, by head; an interval of
            `shuffled` is over them), data_counts (what loading left out, by name),
            fingerprint and precision of the model, counts_end (whether the end-of-turn token is
            judged), settings of the plan; with interventions their settings as `interventions`, and
            interventions_s. All that end in _s are seconds.
        verdicts: in words, the primary ones first.
    """

    facts: Mapping[str, Any]
    verdicts: Sequence[Verdict] = ()
    cells: Sequence[CellRow] = ()
    contrasts: Sequence[ContrastRow] = ()
    spectrum: Sequence[SpectrumRow] = ()
    energy: Sequence[EnergyRow] = ()
    directions: Sequence[DirectionRow] = ()
    overlap: Sequence[OverlapRow] = ()
    answers: Sequence[AnswerRow] = ()
    curves: Sequence[CurveRow] = ()
    interventions: Sequence[InterventionRow] = ()

    @staticmethod
    def columns(table: str) -> list[str]:
        """Column names of a table."""
        return [f.name for f in fields(ROW_TYPES[table])]

    def save(self, folder: Path) -> None:
        """Write `audit.json` and, per table with rows, NAME.parquet and NAME.csv.

        Raises:
            OutputError: the folder cannot be written.
        """
        (folder / "audit.json").unlink(missing_ok=True)  # no half of an older audit
        for name, kind in ROW_TYPES.items():
            rows = getattr(self, name)
            if rows:
                _write_table(folder / name, rows, kind)
            else:
                for suffix in (".parquet", ".csv"):
                    (folder / name).with_suffix(suffix).unlink(missing_ok=True)
        summary = {
            "format_version": FORMAT_VERSION,
            "facts": dict(self.facts),
            "verdicts": [vars(verdict) for verdict in self.verdicts],
        }
        write_json(folder / "audit.json", summary)  # last: a reader finds a whole audit or none

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            StoreError: no audit there, or one that this version does not read.
        """
        folder = Path(folder)
        try:
            summary = json.loads((folder / "audit.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{folder} holds no finished audit ({error}); run retrm audit DATA -o {folder}"
            ) from error
        if summary.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                f"{folder}: audit format {summary.get('format_version')!r}; expected "
                f"{FORMAT_VERSION}. Run the audit again"
            )
        tables = {
            name: _read_table(folder / f"{name}.parquet", kind) for name, kind in ROW_TYPES.items()
        }
        return cls(
            facts=summary["facts"],
            verdicts=tuple(Verdict(**verdict) for verdict in summary["verdicts"]),
            **tables,
        )


def _write_table(stem: Path, rows: Sequence[Any], kind: type) -> None:
    names = [f.name for f in fields(kind)]
    table = pa.table({name: [getattr(row, name) for row in rows] for name in names})
    with atomic_write(stem.with_suffix(".parquet")) as file:
        pq.write_table(table, file)
    with atomic_write(stem.with_suffix(".csv")) as file:
        pa_csv.write_csv(table, file)


def _read_table(path: Path, kind: type) -> tuple[Any, ...]:
    if not path.is_file():
        return ()
    try:
        rows = pq.read_table(path).to_pylist()
        return tuple(kind(**row) for row in rows)
    except (OSError, pa.ArrowInvalid, TypeError) as error:
        raise StoreError(f"cannot read {path}: {error}; run the audit again") from error
