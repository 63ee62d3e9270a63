"""Comparisons and audits as aligned tables for people."""

from collections.abc import Sequence

import numpy as np
from rich.console import Group

from retrm.audit.tables import AuditTables, CellRow
from retrm.cli.console import table
from retrm.evaluation.best_of_n import Comparison
from retrm.evaluation.preferences import PairComparison
from retrm.metrics import Interval
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
    """A figure, with a star where its interval excludes zero."""
    if value is None:
        return NONE
    return figure(value) + (" *" if value.low > 0 or value.high < 0 else "  ")


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
