"""Curves of a judge's training: reward, KL, length, parse rate, clip share, filtered share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrm.errors import DataError
from retrm.reports.canvas import BLUE, MUTED, canvas, entitle, headline, save_png

PANELS = (
    ("reward", "mean reward"),
    ("parse_rate", "judgements with a verdict"),
    ("completions/mean_length", "tokens a judgement"),
    ("kl", "KL to the start, k3, nats a token"),
    ("clip_share", "tokens with a clipped ratio"),
    ("filtered_share", "tokens whose advantage was filtered"),
)


def curves_png(
    path: str | Path, metrics: Sequence[Mapping[str, Any]], *, title: str = "Training"
) -> None:
    """Six panels over the updates; what was not measured says so.

    Args:
        path: PNG file to write.
        metrics: lines of `metrics.jsonl`.
        title: above all panels.

    Raises:
        DataError: no line at all.
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    if not metrics:
        raise DataError("got no metrics; expected the lines of a run's metrics.jsonl")
    figure, panels = canvas(10.5, 5.2, n_rows=2, n_columns=3, share_x=True)
    for axes, (name, words) in zip(panels, PANELS, strict=True):
        known = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
        headline(axes, words)
        if known:
            axes.plot(*zip(*known, strict=True), "-o", color=BLUE, ms=3, lw=1.4)
        else:
            axes.text(0.5, 0.5, "not measured", color=MUTED, ha="center", transform=axes.transAxes)
    for axes in panels[3:]:
        axes.set_xlabel("update")
    entitle(
        figure, title, f"{len(metrics)} updates; metrics.jsonl in the run's folder has every number"
    )
    save_png(path, figure)
