"""Comparisons as aligned tables for people."""

from rich.table import Table

from retrm.cli.console import table
from retrm.evaluation.best_of_n import Comparison
from retrm.evaluation.preferences import PairComparison
from retrm.metrics import Interval


def interval(value: Interval | None) -> str:
    """`.812 [.790, .833]`, or a dash."""
    return "–" if value is None else f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def difference(value: Interval | None) -> str:
    """The same with a sign, and a star where the interval excludes zero."""
    if value is None:
        return "–"
    star = " *" if value.low > 0 or value.high < 0 else ""
    return f"{value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}]{star}"


def comparison_table(comparison: Comparison | PairComparison) -> Table:
    """One row a scorer, with intervals and differences to the baselines."""
    if isinstance(comparison, PairComparison):
        return _pair_table(comparison)
    heads = [row for row in comparison.rows if row.minus]
    others = list(heads[0].minus) if heads else []
    title = (
        f"{comparison.n_prompts} prompts ({comparison.n_mixed} mixed), {comparison.n_answers:,} "
        f"answers; 95 % intervals over prompts; * = excludes zero"
    )
    columns = [
        "",
        "pooled AUROC",
        "within-prompt AUROC",
        f"best of {comparison.n_candidates}",
        "recovered",
        *(f"minus {name}" for name in others),
    ]
    rows = [
        [
            row.name,
            interval(row.pooled_auroc),
            interval(row.within_auroc),
            interval(row.best_of_n),
            "–" if row.kind == "bound" else f"{row.recovered:.0%}",
            *(difference(row.minus.get(name)) for name in others),
        ]
        for row in comparison.rows
    ]
    return table(title, columns, rows)


def _pair_table(comparison: PairComparison) -> Table:
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
