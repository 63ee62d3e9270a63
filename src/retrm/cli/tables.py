"""Comparisons and audits as aligned tables for people."""

from collections.abc import Sequence

import numpy as np
from rich.console import Group
from rich.text import Text

from retrm.audit.tables import AuditTables, CellRow
from retrm.cli.console import table
from retrm.evaluation.best_of_n import Comparison
from retrm.evaluation.contamination import Overlap
from retrm.evaluation.preferences import PairComparison
from retrm.evaluation.tables import BenchmarkTable, FigureRow
from retrm.metrics import Interval
from retrm.reports.evaluation_names import renamed_table, short_names
from retrm.reports.evaluation_words import (
    counts,
    figure_lines,
    figure_title,
    figure_words,
    interval_words,
    notes,
    scorer_name,
)
from retrm.reports.words import (
    NONE,
    feature_name,
    figure,
    is_number,
    metric_name,
    metric_of_record,
    number,
)


def difference(value: Interval | None) -> str:
    """A figure, with a star where its interval excludes zero; never where it has no spread."""
    if value is None:
        return NONE
    is_sure = value.has_spread and (value.low > 0 or value.high < 0)
    return figure_words(value) + (" *" if is_sure else "  ")


def comparison_tables(comparison: Comparison | PairComparison) -> list[Group]:
    """One row a scorer with intervals; then the paired differences of the heads to baselines."""
    if isinstance(comparison, PairComparison):
        return [_pair_table(comparison)]
    return [_figures(comparison), *_differences(comparison)]


def _differences(comparison: Comparison) -> list[Group]:
    heads = [row for row in comparison.rows if row.minus]
    if not heads:
        return []
    others = list(heads[0].minus)
    title = f"best of {comparison.n_candidates}, paired differences; * = interval excludes zero"
    rows = [[row.name, *(difference(row.minus[name]) for name in others)] for row in heads]
    return [table(title, ["", *(f"minus {name}" for name in others)], rows)]


def _figures(comparison: Comparison) -> Group:
    title = (
        f"{comparison.n_prompts} prompts ({comparison.n_mixed} mixed), {comparison.n_answers:,} "
        f"answers; 95 % intervals over prompts"
    )
    columns = [
        "",
        "pooled AUROC",
        "within-prompt AUROC",
        f"best of {comparison.n_candidates}",
        "recovered",
    ]
    rows = [
        [
            row.name,
            figure(row.pooled_auroc),
            figure(row.within_auroc),
            figure(row.best_of_n),
            NONE if row.kind == "bound" else f"{row.recovered:.0%}",
        ]
        for row in comparison.rows
    ]
    return table(title, columns, rows)


def _pair_table(comparison: PairComparison) -> Group:
    others = list(comparison.rows[0].minus)
    title = (
        f"{comparison.n_pairs} pairs, {comparison.n_prompts} prompts; 95 % intervals over prompts; "
        "* = excludes zero"
    )
    columns = ["", "pair accuracy", "ties", *(f"minus {name}" for name in others)]
    rows = [
        [
            row.name,
            figure(row.accuracy),
            row.n_ties,
            *(difference(row.minus.get(name)) for name in others),
        ]
        for row in comparison.rows
    ]
    return table(title, columns, rows)


def benchmark_tables(found: BenchmarkTable, overlap: Overlap | None = None) -> list[Group]:
    """The official figures, our own, and the paired differences of the headline to baselines."""
    found = renamed_table(found, short_names([found]))
    title = (
        f"{found.title}: {counts(found)}; 95 % intervals over prompts; ! = longest or shortest does as "
        "well"
    )
    made = [_benchmark_table(found, title, is_official=True)]
    if any(not row.is_official for row in found.rows):
        made.append(_benchmark_table(found, f"{found.title}: not official", is_official=False))
    minus = _benchmark_minus(found)
    lines = (Text(f"note: {note}") for note in notes(found, overlap))
    return [*made, *([minus] if minus else []), Group(*lines)]


def _benchmark_table(found: BenchmarkTable, title: str, *, is_official: bool) -> Group:
    groups = figure_lines(found, is_official=is_official)
    columns = ["", "n", "chance", *(scorer_name(row.scorer) for row in groups[0]), "ties"]
    lines = []
    for rows in groups:
        name = figure_title(rows[0]) + (" ◀" if rows[0].is_headline else "")
        ties = _from_to([row.n_ties for row in rows if row.kind == rows[0].kind])
        # Several scorers stand side by side only if their intervals stand below.
        is_stacked = sum(row.kind == "scorer" for row in rows) > 1
        cells = [_benchmark_cell(row, is_stacked=is_stacked) for row in rows]
        lines.append([name, f"{rows[0].n:,}", number(rows[0].chance), *cells, ties])
    return table(title, columns, lines)


def _from_to(numbers: Sequence[int]) -> str:
    """One number, or the smallest and the largest where scorers differ."""
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _benchmark_cell(row: FigureRow, *, is_stacked: bool) -> str:
    if row.kind == "baseline":
        return NONE if row.value is None else number(row.value.value)
    mark = " !" if row.beaten_by else ""
    if row.value is None or not is_stacked:
        return figure_words(row.value) + mark
    return f"{number(row.value.value)}{mark}\n{interval_words(row.value)}"


def _benchmark_minus(found: BenchmarkTable) -> Group | None:
    rows = [row for row in found.rows if row.is_headline and row.minus]
    if not rows:
        return None
    others = list(rows[0].minus)
    title = f"{found.title}, {rows[0].metric}: paired differences; * = interval excludes zero"
    lines = [[row.scorer, *(difference(row.minus.get(name)) for name in others)] for row in rows]
    return table(title, ["", *(f"minus {scorer_name(name)}" for name in others)], lines)


def primary_table(tables: AuditTables) -> Group:
    """The setting of record: a line a feature set, random draws as their mean, baselines below."""
    facts = tables.facts
    rows = [row for row in tables.cells if row.sweep == "primary"]
    wanted = dict.fromkeys((metric_of_record(tables), "best_of_n"))
    metrics = [metric for metric in wanted if any(row.metric == metric for row in rows)]
    lines = [
        [
            _name(kind, [r for r in rows if (r.features, r.metric) == (kind, metrics[0])]),
            *(_of_draws([r for r in rows if (r.features, r.metric) == (kind, m)]) for m in metrics),
        ]
        for kind in dict.fromkeys(row.features for row in rows)
    ]
    for name, words in (("pass_at_1", "pass@1"), ("oracle", "oracle")):
        if is_number(facts.get(name)):
            cells = (number(facts[name]) if m == "best_of_n" else NONE for m in metrics)
            lines.append([words, *cells])
    title = (
        f"{facts['model']}, {facts['data']}: {facts['n_answers']:,} answers to "
        f"{facts['n_prompts']:,} prompts, {facts['n_mixed']:,} to compare within; "
        f"m = {facts['m']} of {facts['width']}; 95 % intervals over prompts"
    )
    return table(title, ["features", *(metric_name(m) for m in metrics)], lines)


def _name(kind: str, rows: Sequence[CellRow]) -> str:
    draws = f", mean of {len(rows)} (5 to 95 %)" if len(rows) > 1 else ""
    return feature_name(kind) + draws


def _of_draws(rows: Sequence[CellRow]) -> str:
    """One figure with its interval, or the mean over several draws with where most of them lie."""
    if not rows:
        return NONE
    if len(rows) > 1:
        values = [row.value for row in rows]
        low, high = np.percentile(values, (5, 95)).tolist()
        return f"{number(float(np.mean(values)))} ({number(low)} to {number(high)})"
    return figure(rows[0])
