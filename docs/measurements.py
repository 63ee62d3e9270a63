"""One audit of the page of results, and the pieces that every block of the page is put together from."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from tables_in_pages import table

from retrm.audit.tables import AuditTables, CellRow, ContrastRow
from retrm.reports.words import NONE, metric_of_record

_Row = TypeVar("_Row", CellRow, ContrastRow)

RANDOM = ("reasoning", "random")


@dataclass(frozen=True)
class Measurement:
    """One audit of the page.

    Attributes:
        name: of its folder below docs/results/audit.
        data: what was judged, in words.
        command: makes it.
        tables: what it found; None = not measured yet.
        folder: of the audit.
    """

    name: str
    data: str
    command: str
    tables: AuditTables | None
    folder: Path

    @property
    def label(self) -> str:
        """In a table."""
        return f"`{self.name}`"

    @property
    def found(self) -> AuditTables:
        """The tables of one that was measured."""
        assert self.tables is not None, self.name
        return self.tables

    @property
    def record(self) -> str:
        """Metric of record."""
        return metric_of_record(self.found)

    def cells(self, sweep: str, features: str, metric: str = "", **where: object) -> list[CellRow]:
        """Cells at the metric of record, or another one."""
        return _chosen(
            self.found.cells,
            {"sweep": sweep, "features": features, "metric": metric or self.record, **where},
        )

    def cell(self, sweep: str, features: str, metric: str = "", **where: object) -> CellRow | None:
        """The only such cell, or None."""
        return _only(self.cells(sweep, features, metric, **where))

    def mean(self, sweep: str, features: str, metric: str = "", **where: object) -> float:
        """Over draws; NaN without any."""
        values = [row.value for row in self.cells(sweep, features, metric, **where)]
        return float(np.mean(values)) if values else math.nan

    def contrasts(
        self, sweep: str, pair: tuple[str, str] = RANDOM, metric: str = "", **where: object
    ) -> list[ContrastRow]:
        """Contrasts at the metric of record, or another one."""
        wanted = {"sweep": sweep, "metric": metric or self.record, **where}
        return _chosen(self.found.contrasts, {**wanted, "first": pair[0], "second": pair[1]})

    def contrast(
        self, sweep: str, pair: tuple[str, str] = RANDOM, metric: str = "", **where: object
    ) -> ContrastRow | None:
        """The only such contrast, or None."""
        return _only(self.contrasts(sweep, pair, metric, **where))

    def role(self, role: str, metric: str) -> tuple[ContrastRow | None, str]:
        """A contrast that was fixed before looking, and the word of its verdict."""
        question = {"primary": "specificity", "economy": "economy"}[role]
        rows = [row for row in self.found.contrasts if row.role == role]
        answers = [v.answer for v in self.found.verdicts if v.question == question]
        # A verdict a row, in their order: see retrm.audit.verdict.
        found = [pair for pair in zip(rows, answers, strict=False) if pair[0].metric == metric]
        return found[0] if found else (None, NONE)


def _chosen(rows: Iterable[_Row], wanted: dict[str, object]) -> list[_Row]:
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]


def _only(rows: Sequence[_Row]) -> _Row | None:
    if len(rows) > 1:
        raise ValueError(f"got {len(rows)} rows such as {rows[0]}; expected one at most")
    return rows[0] if rows else None


def parts_of(
    measurements: Sequence[Measurement], make: Callable[[Measurement], str]
) -> tuple[list[str], str]:
    """What `make` says of each that was measured (nothing where it says ""), and of the others."""
    made = {m.name: make(m) for m in measurements if m.tables is not None}
    return [text for text in made.values() if text], gap_note(measurements, make)


def missing_note(missing: Sequence[Measurement]) -> str:
    """Which measurements a block does not hold."""
    if not missing:
        return ""
    names = listed([m.label for m in missing])
    return f"Not measured yet: {names}; the commands stand under [Make it again](#make-it-again)."


def missing_commands(measurements: Sequence[Measurement]) -> str:
    """What makes those that are missing, a line each."""
    lines = [f"- {m.label}: `{m.command}`" for m in measurements if m.tables is None]
    return "\n".join(["Not measured yet, and what makes it:", "", *lines]) if lines else ""


def joined(*parts: str) -> str:
    """Paragraphs; empty ones are left out."""
    return "\n\n".join(part for part in parts if part)


def table_of(
    measurements: Sequence[Measurement],
    head: Sequence[str],
    make: Callable[[Measurement], list[list[str]]],
) -> str:
    """One table over all measurements."""
    rows = [row for m in measurements if m.tables is not None for row in make(m)]
    return table(head, rows) if rows else ""


def gap_note(
    measurements: Sequence[Measurement], make: Callable[[Measurement], object] = bool
) -> str:
    """What a block lacks: all of it, or a part of audits that are measured.

    Audits that are not measured at all are named once, above the blocks.
    """
    done = [m for m in measurements if m.tables is not None]
    without = [m for m in done if not make(m)]
    if len(without) == len(done):
        return missing_note(measurements)
    return f"Without this part: {listed([m.label for m in without])}." if without else ""


def pictures(measurements: Sequence[Measurement], name: str) -> str:
    """Links to one picture of every audit that has it."""
    links = [
        f"[{m.label}](audit/{m.name}/figures/{name}.png)"
        for m in measurements
        if (m.folder / "figures" / f"{name}.png").is_file()
    ]
    return f"Pictures: {', '.join(links)}." if links else ""


def listed(values: Sequence[object]) -> str:
    """With commas."""
    return ", ".join(str(value) for value in values)
