"""What a person sees: results on stdout, everything else on stderr; progress, tables, heat maps."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.style import Style
from rich.table import Table
from rich.text import Text

# A pipe has no width; 120 columns keep tables whole there.
_WIDTH = None if sys.stdout.isatty() else 120
out = Console(highlight=False, width=_WIDTH)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 120)

PLAIN_INTERVAL_S = 10.0
Report = Callable[[int, int, str], None]


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
    if err.is_terminal:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=err,
            transient=False,
        ) as bars:
            task = bars.add_task(label, total=None, note="")
            yield lambda done, total, note: bars.update(
                task, completed=done, total=total, note=note
            )
        return
    started = last = time.monotonic()

    def report(done: int, total: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_INTERVAL_S and done < total:
            return
        last = now
        left = (now - started) / max(done, 1) * (total - done)
        err.print(f"{label}: {done:,}/{total:,}  {note}  {left:.0f} s left")

    yield report


@contextlib.contextmanager
def reading_progress(label: str) -> Iterator[Callable[[Any], None]]:
    """The same for `retrm.features.read.Progress`: answers, tokens a second, time left."""
    with progress(label) as report:

        def on_progress(state: Any) -> None:
            rate = state.tokens_done / max(state.elapsed_s, 1e-9)
            note = f"{state.answers_done:,}/{state.answers_total:,} answers, {rate:,.0f} tokens/s"
            report(state.tokens_done, max(state.tokens_total, 1), note)

        yield on_progress


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Group:
    """A title line, and a table whose first column is left-aligned and all others right-aligned."""
    made = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    # Not the table's own title: that one is wrapped to the width of the table.
    return Group(Text(title, style="italic"), made)


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


def counts_line(counts: Mapping[str, int]) -> str:
    """`rows 12, duplicates 3`: everything that was counted and is not zero."""
    return ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items() if n)
