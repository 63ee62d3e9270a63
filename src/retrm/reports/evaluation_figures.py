"""Pictures of an evaluation: figures of all subsets with intervals, beside the baselines.

Drawn from finished results and nothing else, so that an evaluation can be drawn again without a model.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrm.evaluation.bias import BiasPanel
from retrm.evaluation.findings import Findings
from retrm.evaluation.tables import BenchmarkTable, FigureRow
from retrm.metrics import Interval
from retrm.reports.canvas import DASHES, INK, MARKERS, MUTED, SERIES, canvas, headline
from retrm.reports.evaluation_words import figure_lines, figure_title, scorer_name
from retrm.reports.words import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BASELINE_MARKS = {"longest": ">", "shortest": "<", "random": "x"}
_OTHER_MARKS = ("d", "*", "+", "1")
_ROW = 0.34  # inches
_STEP = 0.2  # of a row, between scorers
_WRAP = 34  # characters


def subset_figure(table: BenchmarkTable) -> "Figure | None":
    """Official figures from top to bottom: scorers as dots with intervals, baselines as marks.

    None where no official figure is defined for any scorer.
    """
    lines = [
        rows
        for rows in figure_lines(table, is_official=True)
        if any(row.value is not None and row.kind == "scorer" for row in rows)
    ]
    if not lines:
        return None
    scorers = [row.scorer for row in lines[0] if row.kind == "scorer"]
    height = _ROW + max(0, len(scorers) - 1) * 0.09
    figure, (axes,) = canvas(7.4, 1.35 + height * len(lines))
    _chance(axes, lines)
    _baselines(axes, lines)
    for number, name in enumerate(scorers):
        _dots(axes, lines, name, number, len(scorers))
    _label(axes, table, lines)
    _legend_below(figure, axes)
    return figure


def _dots(
    axes: "Axes", lines: Sequence[Sequence[FigureRow]], name: str, number: int, n_scorers: int
) -> None:
    shift = (number - (n_scorers - 1) / 2) * _STEP
    found = [
        (place + shift, row.value)
        for place, rows in enumerate(lines)
        for row in rows
        if row.scorer == name and row.value is not None
    ]
    _interval_dots(axes, found, name, number)


def _interval_dots(
    axes: "Axes", found: Sequence[tuple[float, Interval]], name: str, number: int
) -> None:
    """Values of one scorer at their places from top to bottom, with bars."""
    colour, mark = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
    places = [place for place, _ in found]
    lows, highs = [v.low for _, v in found], [v.high for _, v in found]
    axes.hlines(places, lows, highs, color=colour, lw=2, zorder=3)
    values = [v.value for _, v in found]
    axes.plot(values, places, mark, color=colour, ms=6, label=_legend_name(name), zorder=4)


def _baselines(axes: "Axes", lines: Sequence[Sequence[FigureRow]]) -> None:
    names = [row.scorer for row in lines[0] if row.kind == "baseline"]
    others = iter(_OTHER_MARKS * len(names))
    for name in names:
        mark = _BASELINE_MARKS.get(name) or next(others)
        found = [
            (row.value.value, place)
            for place, rows in enumerate(lines)
            for row in rows
            if row.scorer == name and row.value is not None
        ]
        if found:
            values, places = zip(*found, strict=True)
            label = _legend_name(name)
            axes.plot(values, places, mark, ls="", color=MUTED, ms=6, label=label, zorder=2)


def _chance(axes: "Axes", lines: Sequence[Sequence[FigureRow]]) -> None:
    """A line a row: what guessing reaches may differ between them."""
    found = [(p, rows[0].chance) for p, rows in enumerate(lines) if is_number(rows[0].chance)]
    if found:
        places, values = zip(*found, strict=True)
        low, high = np.array(places) - 0.45, np.array(places) + 0.45
        axes.vlines(values, low, high, color=INK, lw=1.1, ls=(0, (3, 2)), label="chance", zorder=1)


def _label(axes: "Axes", table: BenchmarkTable, lines: Sequence[Sequence[FigureRow]]) -> None:
    axes.set_yticks(range(len(lines)), [_tick(rows[0]) for rows in lines], parse_math=False)
    for tick, rows in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if rows[0].is_headline else "normal")
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.set_xlabel("official figure; bars are 95 % intervals over prompts", color=INK)
    headline(axes, "", f"{table.n_items:,} items")


def _tick(row: FigureRow) -> str:
    title = f"{figure_title(row)} ({row.n:,})"
    if len(title) <= _WRAP:
        return title
    start, sign, rest = title.partition(": ")
    return f"{start}{sign.rstrip()}\n{rest}"


# ------------------------------------------------------------------------------ beside the figures


def bias_figure(findings: Sequence[Findings]) -> "Figure | None":
    """The gap of every cue, a dot a scorer; None where no gap is known."""
    known = [(one.scorer, one.bias) for one in findings if one.bias is not None]
    cues = [
        cue
        for cue in dict.fromkeys(cue for _, panel in known for cue in panel.cues)
        if any(_gap(panel, cue) is not None for _, panel in known)
    ]
    if not cues:
        return None
    height = _ROW + max(0, len(known) - 1) * 0.09
    figure, (axes,) = canvas(7.4, 1.35 + height * len(cues))
    axes.axvline(0, color=INK, lw=1.1, zorder=1)
    for number, (name, panel) in enumerate(known):
        shift = (number - (len(known) - 1) / 2) * _STEP
        gaps = [(place + shift, _gap(panel, cue)) for place, cue in enumerate(cues)]
        _interval_dots(axes, [(p, gap) for p, gap in gaps if gap is not None], name, number)
    axes.set_yticks(range(len(cues)), cues)
    axes.set_ylim(len(cues) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.set_xlabel(
        "← punished    accuracy with more of it minus with less    paid for →", color=INK
    )
    _legend_below(figure, axes)
    return figure


def _gap(panel: BiasPanel, cue: str) -> Interval | None:
    found = panel.of(cue).get("gap between the two")
    return None if found is None else found.value


def reliability_figure(findings: Sequence[Findings]) -> "Figure | None":
    """Share against predicted probability, raw and after a temperature; None where none is known."""
    known = [(one.scorer, one.calibration) for one in findings if one.calibration is not None]
    if not known:
        return None
    figure, (axes,) = canvas(5.4, 4.6)
    axes.plot([0.5, 1], [0.5, 1], color=MUTED, lw=1.1, ls=(0, (3, 2)), zorder=1)
    for number, (name, found) in enumerate(known):
        colour, mark = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
        sides = [(found.before, False)]
        if not found.no_temperature:
            sides.append((found.after, True))
        for side, is_filled in sides:
            x = [one.probability for one in side.bins]
            face = colour if is_filled else "white"
            lows, highs = ([getattr(b.share, end) for b in side.bins] for end in ("low", "high"))
            alpha = 1 if is_filled else 0.45
            axes.vlines(x, lows, highs, color=colour, lw=1.6, alpha=alpha, zorder=2)
            axes.plot(
                x,
                [one.share.value for one in side.bins],
                marker=mark,
                ls="-" if is_filled else ":",
                lw=1.2,
                color=colour,
                mfc=face,
                ms=5.5,
                label=_legend_name(name) if (side, is_filled) == sides[-1] else None,
                zorder=3,
            )
    axes.set_xlim(0.485, 1.015)
    axes.set_xlabel("predicted probability that the higher score is right", color=INK)
    axes.set_ylabel("share that is right", color=INK)
    _legend_below(figure, axes, n_columns=2)
    return figure


def curve_figure(findings: Sequence[Findings]) -> "Figure | None":
    """Label and score of what is kept, against the number of candidates; None where none is known."""
    known = [one for one in findings if one.curve is not None]
    scorers = [one for one in known if one.kind == "scorer"]
    if not scorers:
        return None
    figure, (gold, proxy) = canvas(5.4, 5.4, n_rows=2, height_ratios=(2.2, 1), share_x=True)
    others = [one for one in known if one.kind == "baseline"]
    for number, one in enumerate(others):
        _curve(gold, one, "gold", MUTED, DASHES[number % len(DASHES)], "")
    for number, one in enumerate(scorers):
        colour, mark = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
        _curve(gold, one, "gold", colour, "-", mark, has_band=True)
        _rise(proxy, one, colour, mark)
    gold.set_ylabel("mean label", color=INK)
    proxy.set_ylabel("score, share\nof its rise", color=INK)
    proxy.set_xlabel("number of candidates N", color=INK)
    proxy.xaxis.get_major_locator().set_params(integer=True)
    _legend_below(figure, gold, n_columns=2)
    return figure


def _curve(
    axes: "Axes",
    one: Findings,
    kind: str,
    colour: str,
    dashes: str,
    mark: str,
    *,
    has_band: bool = False,
) -> None:
    points = one.curve.points if one.curve is not None else ()
    x = [point.n for point in points]
    values = [getattr(point, kind) for point in points]
    if has_band:
        lows, highs = [v.low for v in values], [v.high for v in values]
        axes.fill_between(x, lows, highs, color=colour, alpha=0.14, lw=0)
    label = _legend_name(one.scorer)
    y = [v.value for v in values]
    axes.plot(x, y, ls=dashes, marker=mark, color=colour, ms=4.5, lw=1.6, label=label)


def _rise(axes: "Axes", one: Findings, colour: str, mark: str) -> None:
    """Scores have no unit: from their mean at N = 1 to that at the end."""
    points = one.curve.points if one.curve is not None else ()
    values = np.array([point.proxy.value for point in points])
    rise = values[-1] - values[0]
    if rise > 0:
        shown = (values - values[0]) / rise
        axes.plot([p.n for p in points], shown, marker=mark, color=colour, ms=4, lw=1.4)


def _legend_below(figure: "Figure", axes: "Axes", *, n_columns: int = 3) -> None:
    handles, names = axes.get_legend_handles_labels()
    made = figure.legend(
        handles,
        names,
        loc="outside lower left",
        ncols=n_columns,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    for text in made.get_texts():
        text.set_parse_math(False)  # `$` is a dollar


def _legend_name(name: str) -> str:
    """Matplotlib leaves names that begin with `_` out of legends."""
    shown = scorer_name(name)
    return f" {shown}" if shown.startswith("_") else shown
