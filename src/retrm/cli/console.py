"""What a person sees: results on stdout, everything else on stderr; progress, tables, heat maps."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
)
from rich.style import Style
from rich.table import Table
from rich.text import Text

# A pipe has no width; 120 columns keep tables whole there.
_WIDTH = None if sys.stdout.isatty() else 120
out = Console(highlight=False, width=_WIDTH)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)

PLAIN_INTERVAL_S = 10.0
_FIRST_COLUMN = 16


class Report(Protocol):
    """Shows how far a task is.

    The time left follows from `elapsed_s`, the seconds in which `done` was done; without it, from
    those since the task was shown.
    """

    def __call__(self, done: int, total: int, note: str, *, elapsed_s: float | None = None) -> None:
        """Show `done` of `total`, and a note."""


def print_json(value: Any) -> None:
    """One machine-readable object on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


@contextlib.contextmanager
def progress(label: str) -> Iterator[Report]:
    """A callback `report(done, total, note)`: a bar on a terminal, a line every ten seconds elsewhere."""
    started = time.monotonic()

    def left(done: int, total: int, elapsed_s: float | None) -> str:
        if done == 0:
            return ""
        elapsed = time.monotonic() - started if elapsed_s is None else elapsed_s
        return f"{timedelta(seconds=round(elapsed / done * (total - done)))} left"

    if err.is_terminal:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TextColumn("{task.fields[left]}"),
            console=err,
            transient=False,
        ) as bars:
            task = bars.add_task(label, total=None, note="", left="")

            def show(done: int, total: int, note: str, *, elapsed_s: float | None = None) -> None:
                shown = left(done, total, elapsed_s)
                bars.update(task, completed=done, total=total, note=note, left=shown)

            yield show
        return
    last = started

    def report(done: int, total: int, note: str, *, elapsed_s: float | None = None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_INTERVAL_S and done < total:
            return
        last = now
        parts = (f"{label}: {done:,}/{total:,}", note, left(done, total, elapsed_s))
        err.print("  ".join(part for part in parts if part))

    yield report


@contextlib.contextmanager
def reading_progress(label: str) -> Iterator[Callable[[Any], None]]:
    """The same for `retrm.features.read.Progress`: answers, tokens a second, time left."""
    with progress(label) as report:

        def on_progress(state: Any) -> None:
            rate = state.tokens_done / max(state.elapsed_s, 1e-9)
            note = f"{state.answers_done:,}/{state.answers_total:,} answers, {rate:,.0f} tokens/s"
            total = max(state.tokens_total, 1)
            report(state.tokens_done, total, note, elapsed_s=state.elapsed_s)

        yield on_progress


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Group:
    """A title line, and a table whose first column is left-aligned and all others right-aligned.

    Where there is no room the first column is folded, then the others: a figure that is cut short would
    be a wrong figure.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [
        max(len(line) for cell in column for line in cell.split("\n"))
        for column in zip(columns, *cells, strict=True)
    ]
    fits = sum(width + 3 for width in widths[1:]) + _FIRST_COLUMN <= out.width
    made = Table(
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        show_header=any(columns),
    )
    for i, column in enumerate(columns):
        made.add_column(
            column,
            justify="left" if i == 0 else "right",
            overflow="fold",
            no_wrap=fits and i > 0,
        )
    for row in cells:
        made.add_row(*map(Text, row))
    # Not the table's own title: that one is wrapped to the width of the table.
    return Group(Text(title, style="italic"), made, Text())


def size_in_words(n_bytes: int) -> str:
    """`1.2 TB`, `64.0 MB`, `3.1 kB`, `12 B`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:,.1f} {unit}"
    return f"{n_bytes} B"


def heat_map(tokens: Sequence[str], values: np.ndarray) -> Text:
    """Tokens on a background from red (lowest) through grey to green (highest)."""
    text = Text()
    values = np.asarray(values, dtype=float)
    reach = float(np.abs(values).max()) if len(values) else 0.0
    for token, value in zip(tokens, values, strict=True):
        shown = token.replace("\n", "⏎")
        text.append(shown, style=_heat(value / reach if reach else 0.0))
    return text


def _heat(level: float) -> Style:
    # -1..1 to red..neutral..green; the text stays readable on both.
    strength = min(abs(level), 1.0)
    base = 60
    top = int(base + strength * 110)
    red, green, blue = (base, top, base) if level >= 0 else (top, base, base)
    return Style(color="white", bgcolor=f"rgb({red},{green},{blue})")


def print_summaries(scorers: Iterable[object]) -> None:
    """What scorers have to say beside their scores, such as what a judge's outputs cost and lacked."""
    from retrm.scorers.base import Summarised

    for scorer in scorers:
        if isinstance(scorer, Summarised):
            err.print(scorer.summary(), markup=False)
