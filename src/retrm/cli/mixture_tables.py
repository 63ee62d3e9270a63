"""The held-out figures of a mixture as aligned tables for people."""

from rich.console import Group

from retrm.cli.console import table
from retrm.cli.tables import difference
from retrm.evaluation.mixture import MixtureFigures
from retrm.evaluation.preferences import PairComparison
from retrm.metrics import Interval
from retrm.reports.words import NONE, figure


def mixture_tables(name: str, figures: MixtureFigures) -> list[Group]:
    """The mixture beside its controls, and its objectives beside their raters and length."""
    pairs = [] if figures.pairs is None else [_pairs(name, figures.pairs)]
    return [*pairs, _objectives(name, figures)]


def _pairs(name: str, found: PairComparison) -> Group:
    title = (
        f"{name} beside its controls: {found.n_pairs} pairs, {found.n_prompts} prompts; 95 % intervals "
        "over prompts; * = excludes zero"
    )
    minus = found.rows[0].minus
    rows = [
        [row.name, figure(row.accuracy), row.n_ties, difference(minus.get(row.name))]
        for row in found.rows
    ]
    return table(title, ["", "pair accuracy", "ties", f"{name} minus it"], rows)


def _objectives(name: str, figures: MixtureFigures) -> Group:
    without = "" if figures.verbosity is None else f", then without {figures.verbosity}"
    title = (
        f"{name}: rank correlation of each objective with its raters and with length{without}; "
        "95 % intervals over prompts"
    )
    columns = ["", "rated", "with raters", "with length"]
    if figures.verbosity is not None:
        columns.append(f"without {figures.verbosity}")
    rows = []
    for row in figures.objectives:
        cells = [row.name, row.n_rated, _cell(row.correlation), _cell(row.length_correlation)]
        if figures.verbosity is not None:
            cells.append(_cell(row.adjusted_length_correlation))
        rows.append(cells)
    return table(title, columns, rows)


def _cell(value: Interval | None) -> str:
    return NONE if value is None else figure(value)
