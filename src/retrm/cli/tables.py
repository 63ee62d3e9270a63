"""Comparisons as aligned tables for people."""

from rich.console import Group

from retrm.cli.console import table
from retrm.evaluation.best_of_n import Comparison
from retrm.evaluation.preferences import PairComparison
from retrm.metrics import Interval, format_interval


def interval(value: Interval | None) -> str:
    """`.812 [.790, .833]`, or a dash."""
    if value is None:
        return "–"
    return format_interval(value.value, value.low, value.high)


def difference(value: Interval | None) -> str:
    """The same, with a star where the interval excludes zero."""
    if value is None:
        return "–"
    return interval(value) + (" *" if value.low > 0 or value.high < 0 else "  ")


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
            interval(row.pooled_auroc),
            interval(row.within_auroc),
            interval(row.best_of_n),
            "–" if row.kind == "bound" else f"{row.recovered:.0%}",
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
            interval(row.accuracy),
            row.n_ties,
            *(difference(row.minus.get(name)) for name in others),
        ]
        for row in comparison.rows
    ]
    return table(title, columns, rows)
