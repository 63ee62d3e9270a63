"""Pictures of score quality from the table `cells`: width, sliding band, layers, labels, heat map.

A line is one kind of features at the metric of record. Random subspaces are a line (mean over the
draws) in a band from the 5th to the 95th percentile of the draws; that band is chance of the draw.
The bars on the reasoning line are its 95 % interval over prompts: chance of the data.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retrm.audit.tables import AuditTables, CellRow
from retrm.reports.canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    canvas,
    entitle,
    headline,
    legend_beside,
)
from retrm.reports.words import POOLINGS, feature_name, footer, metric_name, metric_of_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTINGS = ("pooling", "matrix", "m", "layer", "head", "scaling", "n_train_prompts")
_STYLES: dict[str, tuple[str, Any, str]] = {
    "reasoning": (RED, "-", "o"),
    "semantic": (BLUE, "--", "s"),
    "middle": (GREEN, "-.", "^"),
    "pca_top": (PURPLE, ":", "D"),
    "pca_bottom": (SKY, (0, (5, 1, 1, 1)), "v"),
    "coordinates": (ORANGE, (0, (3, 1)), "P"),
    "scalars": (PURPLE, "-.", "D"),
    "full": (INK, "-", ""),
    "band": (BLUE, "-", "o"),
    "random": (MUTED, "-", ""),
}


@dataclass(frozen=True)
class _Chart:
    sweep: str
    x: str
    title: str
    x_label: str
    lines: tuple[str, ...]
    levels: tuple[str, ...] = ()
    is_log: bool = False


def width_figure(tables: AuditTables) -> "Figure | None":
    """Metric of record against the number of directions, a panel a pooling."""
    kinds = (*("reasoning", "semantic", "middle"), *("pca_top", "pca_bottom", "coordinates"))
    return _draw(
        tables,
        _Chart(
            "width",
            "m",
            "Score quality against the number of directions",
            "directions m",
            (*kinds, "random"),
            ("full",),
            is_log=True,
        ),
    )


def band_figure(tables: AuditTables) -> "Figure | None":
    """Metric of record of a band of directions that slides over the spectrum."""
    chart = _Chart(
        "band",
        "offset",
        "A band of directions slides from the loudest to the quietest",
        "first direction of the band (0 = largest singular value)",
        ("band",),
        ("full", "random"),
    )
    figure = _draw(tables, chart)
    if figure is None:
        return None
    rows = [row for row in rows_of_sweep(tables, "band", "offset") if row.features == "band"]
    for axes, pooling in zip(figure.axes, _poolings(rows), strict=True):
        last = max((r for r in rows if r.pooling == pooling), key=lambda r: r.offset)
        if last.offset + last.m == tables.facts.get("width"):
            label = "last band: the reasoning subspace"
            axes.plot([last.offset], [last.value], "o", color=RED, ms=9, zorder=5, label=label)
    legend_beside(figure)
    return figure


def layer_figure(tables: AuditTables) -> "Figure | None":
    """Metric of record against the layer, every layer as the final norm sees it."""
    kinds = ("full", "reasoning", "semantic", "random")
    return _draw(
        tables,
        _Chart("layer", "layer", "Score quality by layer", "layer (0 = embedding output)", kinds),
    )


def learning_figure(tables: AuditTables) -> "Figure | None":
    """Metric of record against the number of training prompts."""
    return _draw(
        tables,
        _Chart(
            "learning",
            "n_train_prompts",
            "Score quality against the number of labelled prompts",
            "prompts in the training part",
            ("full", "reasoning", "scalars", "random"),
            is_log=True,
        ),
    )


def heat_map_figure(tables: AuditTables) -> "Figure | None":
    """Metric of record for every layer and kind of features; random is the mean over its draws."""
    rows = [row for row in rows_of_sweep(tables, "layer", "layer") if row.layer >= 0]
    poolings = _poolings(rows)
    if not poolings:
        return None
    maps = {pooling: _heat(rows, pooling) for pooling in poolings}
    found = np.concatenate([values.ravel() for _, _, values in maps.values()])
    low, high = float(np.nanmin(found)), float(np.nanmax(found))
    heights = [0.9 + 0.42 * len(names) for names, _, _ in maps.values()]
    figure, panels = canvas(9.6, 0.8 + sum(heights), n_rows=len(poolings), height_ratios=heights)
    for axes, (pooling, (names, layers, values)) in zip(panels, maps.items(), strict=True):
        axes.grid(False)
        image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=low, vmax=high)
        axes.set_yticks(range(len(names)), names)
        step = 1 + len(layers) // 25
        axes.set_xticks(range(0, len(layers), step), layers[::step])
        axes.set_xlabel("layer (0 = embedding output)")
        headline(axes, POOLINGS.get(pooling, pooling))
        if len(layers) <= 16:
            _write_values(axes, values, low + 0.6 * (high - low))
    metric = metric_name(metric_of_record(tables))
    figure.colorbar(image, ax=panels, label=metric, pad=0.01)
    entitle(figure, "Where in the network the reward can be read", footer(tables.facts))
    return figure


def _heat(rows: Sequence[CellRow], pooling: str) -> tuple[list[str], list[int], np.ndarray]:
    here = [row for row in rows if row.pooling == pooling]
    layers = sorted({row.layer for row in here})
    found = [line for kind in in_order(here) for line in distinct_lines(here, kind, "layer")]
    values = np.full((len(found), len(layers)), np.nan)
    for i, (_, line) in enumerate(found):
        places, draws = by_place(line, "layer")
        for place, drawn in zip(places, draws, strict=True):
            values[i, layers.index(place)] = drawn.mean()
    means = {name for name, line in found if any(row.draw for row in line)}
    names = [f"{name} (mean of draws)" if name in means else name for name, _ in found]
    return names, layers, values


def _write_values(axes: "Axes", values: np.ndarray, turn: float) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < turn else INK
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)


def in_order(rows: Sequence[CellRow]) -> list[str]:
    """Kinds of features that occur, those of the main question first."""
    known = ("full", "reasoning", "semantic", "middle", "random")
    found = dict.fromkeys(row.features for row in rows)
    return [*(k for k in known if k in found), *(k for k in found if k not in known)]


# ------------------------------------------------------------------------ rows


def rows_of_sweep(tables: AuditTables, sweep: str, x: str) -> list[CellRow]:
    """Cells of a sweep at the metric of record, and the primary cells that belong among them.

    The primary setting is one point of every sweep, so a sweep need not measure it twice.
    """
    metric = metric_of_record(tables)
    rows = [row for row in tables.cells if row.metric == metric]
    found = [row for row in rows if row.sweep == sweep]
    fixed = [name for name in ("matrix", "m", "layer", "head", "scaling") if name != x]
    allowed = {_key(row, fixed) for row in found}
    have = {_key(row, (*fixed, x, "offset")) for row in found}
    primary = [
        row
        for row in rows
        if row.sweep == "primary"
        and _key(row, fixed) in allowed
        and _key(row, (*fixed, x, "offset")) not in have
    ]
    return [*found, *primary]


def _key(row: CellRow, names: Sequence[str]) -> tuple[Any, ...]:
    return (row.features, row.pooling, *(getattr(row, name) for name in names))


def distinct_lines(
    rows: Sequence[CellRow], kind: str, x: str
) -> Iterator[tuple[str, list[CellRow]]]:
    """The lines of one kind with their names; settings split them only where places collide."""
    chosen = [row for row in rows if row.features == kind]
    if not chosen:
        return
    places = Counter((getattr(row, x), row.draw) for row in chosen)
    varied = [
        name for name in SETTINGS if name != x and len({getattr(row, name) for row in chosen}) > 1
    ]
    if max(places.values()) == 1 or not varied:
        yield feature_name(kind), chosen
        return
    groups: dict[tuple[Any, ...], list[CellRow]] = {}
    for row in chosen:
        groups.setdefault(tuple(getattr(row, name) for name in varied), []).append(row)
    for key, group in groups.items():
        # Of a matrix, a pooling or a head the value says what it is.
        words = ", ".join(
            str(value) if name in ("matrix", "pooling", "head") else f"{name} {value}"
            for name, value in zip(varied, key, strict=True)
        )
        yield f"{feature_name(kind)} ({words})", group


def by_place(rows: Sequence[CellRow], x: str) -> tuple[list[int], list[np.ndarray]]:
    """Places in ascending order, and the values of all draws at each."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(getattr(row, x), []).append(row.value)
    return sorted(found), [np.array(found[place]) for place in sorted(found)]


def _poolings(rows: Sequence[CellRow]) -> list[str]:
    found = {row.pooling for row in rows} - {"-"}
    return [*(p for p in POOLINGS if p in found), *sorted(found - set(POOLINGS))]


# --------------------------------------------------------------------- drawing


def _draw(tables: AuditTables, chart: _Chart) -> "Figure | None":
    rows = rows_of_sweep(tables, chart.sweep, chart.x)
    poolings = _poolings([row for row in rows if row.features in chart.lines])
    if not poolings:
        return None
    n_columns = min(2, len(poolings))
    n_rows = -(-len(poolings) // n_columns)
    figure, panels = canvas(
        7.8 if n_columns == 1 else 10.6,
        0.8 + 3.6 * n_rows,
        n_rows=n_rows,
        n_columns=n_columns,
        share_y=True,
    )
    for axes, pooling in zip(panels, poolings, strict=False):
        # A row without a pooling, such as the scalars, belongs into every panel.
        here = [row for row in rows if row.pooling in (pooling, "-")]
        _draw_panel(axes, here, chart, tables, _random_name(rows, chart.x))
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(metric_name(metric_of_record(tables)))
        axes.tick_params(labelleft=True)
        headline(axes, POOLINGS.get(pooling, pooling))
    for axes in panels[len(poolings) :]:
        axes.remove()
    legend_beside(figure)
    entitle(figure, chart.title, footer(tables.facts))
    return figure


def _draw_panel(
    axes: "Axes", rows: Sequence[CellRow], chart: _Chart, tables: AuditTables, random_name: str
) -> None:
    for kind in chart.lines:
        for name, line in distinct_lines(rows, kind, chart.x):
            if kind == "random":
                _draw_band(axes, line, chart.x, random_name)
            else:
                _draw_line(axes, name, line, chart.x)
    drawn = [row for row in rows if row.features in chart.lines and row.pooling != "-"]
    for kind in chart.levels:
        _draw_level(axes, kind, _level_rows(tables, chart.sweep, kind, drawn))
    if chart.is_log:
        _log_axis(axes, sorted({getattr(row, chart.x) for row in drawn}))


def _draw_line(axes: "Axes", name: str, rows: Sequence[CellRow], x: str) -> None:
    colour, dashes, marker = _STYLES[rows[0].features]
    places, values = by_place(rows, x)
    means = [drawn.mean() for drawn in values]
    is_main = rows[0].features == "reasoning"
    axes.plot(
        places,
        means,
        ls=dashes,
        marker=marker or ("." if len(places) == 1 else ""),
        color=colour,
        lw=2.3 if is_main else 1.6,
        ms=5 if is_main else 4,
        label=name,
        zorder=4 if is_main else 3,
    )
    if rows[0].features in ("reasoning", "band"):
        sure = [row for row in rows if np.isfinite(row.low) and np.isfinite(row.high)]
        axes.vlines(
            [getattr(row, x) for row in sure],
            [row.low for row in sure],
            [row.high for row in sure],
            color=colour,
            lw=1,
            alpha=0.45,
            zorder=3,
        )


def _draw_band(axes: "Axes", rows: Sequence[CellRow], x: str, name: str) -> None:
    places, values = by_place(rows, x)
    low, high = (np.array([np.percentile(drawn, q) for drawn in values]) for q in (5, 95))
    axes.fill_between(places, low, high, color=MUTED, alpha=0.28, lw=0, zorder=1)
    axes.plot(
        places,
        [drawn.mean() for drawn in values],
        color=MUTED,
        lw=1.6,
        marker="." if len(places) == 1 else "",
        label=name,
        zorder=2,
    )


def _random_name(rows: Sequence[CellRow], x: str) -> str:
    """One name for the random lines of all panels, with the number of draws at a place."""
    places = Counter((getattr(r, x), r.pooling) for r in rows if r.features == "random")
    n_draws = places.values()
    if max(n_draws, default=1) == 1:
        return "random: one draw"
    counts = " to ".join(str(n) for n in sorted({min(n_draws), max(n_draws)}))
    return f"random: mean and 5–95 %\nof {counts} draws"


def _level_rows(
    tables: AuditTables, sweep: str, kind: str, drawn: Sequence[CellRow]
) -> list[CellRow]:
    """Rows of a horizontal line: measured like the lines, in this sweep or else the primary one."""
    like = {(row.pooling, row.layer, row.head, row.scaling) for row in drawn}
    sizes = {row.m for row in drawn}
    rows = [
        row
        for row in tables.cells
        if row.metric == metric_of_record(tables)
        and row.features == kind
        and (row.pooling, row.layer, row.head, row.scaling) in like
        and (kind == "full" or row.m in sizes)
    ]
    own = [row for row in rows if row.sweep == sweep]
    return own or [row for row in rows if row.sweep == "primary"]


def _draw_level(axes: "Axes", kind: str, rows: Sequence[CellRow]) -> None:
    if not rows:
        return
    values = np.array([row.value for row in rows])
    if kind == "random" and len(values) > 1:
        low, high = np.percentile(values, (5, 95))
        axes.axhspan(low, high, color=MUTED, alpha=0.28, lw=0, zorder=1)
    colour, dashes, _ = _STYLES[kind]
    name = _random_name(rows, "m") if kind == "random" else feature_name(kind)
    axes.axhline(values.mean(), color=colour, ls=dashes, lw=1.6, label=name, zorder=2)


def _log_axis(axes: "Axes", places: Sequence[int]) -> None:
    from matplotlib.ticker import FixedLocator

    axes.set_xscale("log", base=2)
    shown: list[int] = []
    for place in places:
        if not shown or place > 1.4 * shown[-1]:  # nearer labels would run into each other
            shown.append(place)
    axes.set_xticks(shown, [f"{place:,}" for place in shown])
    axes.xaxis.set_minor_locator(FixedLocator([p for p in places if p not in shown]))
    axes.tick_params(axis="x", which="minor", labelbottom=False)
