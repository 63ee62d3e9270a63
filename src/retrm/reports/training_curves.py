"""Picture of a training: its loss and what else was logged, by step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrm.reports.canvas import DASHES, SERIES, canvas, headline, save_png

Panels = Mapping[str, Sequence[str]]
_ABOUT = {
    "loss": "loss",
    "accuracy": "share in the right order",
    "margin": "gap of scores",
}


def training_png(
    path: str | Path, rows: Sequence[Mapping[str, Any]], *, title: str, panels: Panels | None = None
) -> None:
    """A panel a figure; what was looked at on held-out rows (`eval_...`) beside the training's own.

    Args:
        path: PNG file to write.
        rows: lines of `metrics.jsonl`: `step`, and figures by name.
        title: of the run.
        panels: names of figures by the title of their panel; None = loss, accuracy and margin, those that
            are there.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    wanted = panels or {about: (name, f"eval_{name}") for name, about in _ABOUT.items()}
    there = {
        about: [name for name in names if any(name in row for row in rows)]
        for about, names in wanted.items()
    }
    shown = {about: names for about, names in there.items() if names} or {"loss": []}
    figure, axes = canvas(4.4 * len(shown), 3.4, n_columns=len(shown))
    for one, (about, names) in zip(axes, shown.items(), strict=True):
        for name, colour, dashes in zip(names, SERIES, DASHES, strict=False):
            points = [(row["step"], row[name]) for row in rows if name in row]
            mark = "o" if len(points) < 40 else ""
            label = name.removeprefix("eval_") + (" (held out)" if name.startswith("eval_") else "")
            one.plot(
                *zip(*points, strict=True), dashes, color=colour, marker=mark, ms=3, label=label
            )
        one.set_xlabel("step")
        one.set_ylabel(about)
        if names:
            one.legend(frameon=False, fontsize=8)
    headline(axes[0], title)
    save_png(path, figure)
