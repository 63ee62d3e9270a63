"""What the page of audit results says of interventions: a table an audit, and what each cell compares."""

from collections.abc import Sequence

import numpy as np
from measurements import Measurement, joined, pictures
from tables_in_pages import Span, difference, table

from retrm.audit.tables import InterventionRow
from retrm.audit.use import at_equal_energy
from retrm.reports.words import NONE, figure, metric_name, number, p_value

_MEASURES = (
    *("energy_removed", "log_probability", "greedy_agreement", "within_auroc"),
    *("score_shift", "accuracy"),
)
_REMOVED = {
    "reasoning": "reasoning",
    "semantic": "semantic",
    "random": "random, mean (draws)",
    "random_energy": "random of equal energy, mean (draws)",
}


def interventions(measurements: Sequence[Measurement], command: str) -> str:
    """What removing a component changes, a table an audit and setting."""
    parts = [
        _interventions_of(m)
        for m in measurements
        if m.tables is not None and m.tables.interventions
    ]
    if not parts:
        return f"Not measured yet. It is made by `{command}`."
    return joined(*parts, pictures(measurements, "interventions"))


def _interventions_of(m: Measurement) -> str:
    rows = m.found.interventions
    measures = [name for name in _MEASURES if any(row.measure == name for row in rows)]
    settings = dict.fromkeys((row.layers, row.fill, row.spare_first) for row in rows)
    head = ["removed at", "what", "directions", *(_measure_name(name) for name in measures)]
    made = []
    for layers, fill, spare_first in settings:
        here = [row for row in rows if (row.layers, row.fill) == (layers, fill)]
        here = [row for row in here if row.spare_first == spare_first]
        spared = ", first token spared" if spare_first else ""
        made += _removal_rows(here, f"{layers} ({fill} fill{spared})", measures)
    n_rows = next((row.n for row in rows if row.measure == "log_probability"), rows[0].n)
    return joined(f"{m.label}, {n_rows:,} answers:", table(head, made))


def _measure_name(measure: str) -> str:
    # Of a trained head: other than the out-of-fold figure of the same name.
    return f"{metric_name(measure)}{' of a fitted head' if measure == 'within_auroc' else ''}"


def _removal_rows(
    rows: Sequence[InterventionRow], place: str, measures: Sequence[str]
) -> list[list[str]]:
    """The unchanged model, then what each removal changes, then reasoning minus random."""
    none = [row for row in rows if row.removed == "none"]
    cells = [figure(next((r for r in none if r.measure == name), None)) for name in measures]
    made = [[place, "nothing: the figure itself", NONE, *cells]]
    for m in dict.fromkeys(row.m for row in rows if row.removed == "reasoning"):
        here = [row for row in rows if row.m == m and row.removed != "random_energy"]
        ours = [row for row in here if row.removed == "reasoning"]
        matched = [found for row in ours for found in at_equal_energy(rows, row)]
        for kind, name in _REMOVED.items():
            found = [row for row in (*here, *matched) if row.removed == kind]
            if found:
                sizes = " to ".join(dict.fromkeys(str(f(r.m for r in found)) for f in (min, max)))
                cells = [_effect([r for r in found if r.measure == each]) for each in measures]
                made.append([place, name, sizes, *cells])
        cells = [_against_random([r for r in ours if r.measure == each]) for each in measures]
        made.append([place, "reasoning − random", str(m), *cells])
    return made


def _effect(rows: Sequence[InterventionRow]) -> str:
    """The change, or for removed energy the share; over several draws their mean and range."""
    if not rows:
        return NONE
    is_energy = rows[0].measure == "energy_removed"
    values = [row.value if is_energy else row.difference for row in rows]
    if len(rows) > 1:
        spread = f"{number(min(values))} to {number(max(values))}"
        return f"{number(float(np.mean(values)))} ({spread})"
    if is_energy:
        return figure(rows[0])
    row = rows[0]
    return difference(Span(row.difference, row.difference_low, row.difference_high))


def _against_random(rows: Sequence[InterventionRow]) -> str:
    if not rows or rows[0].measure == "energy_removed":
        return NONE
    row = rows[0]
    shown = difference(Span(row.minus_random, row.minus_random_low, row.minus_random_high))
    return shown if shown == NONE else f"{shown} (Holm p {p_value(row.random_holm_p)})"
