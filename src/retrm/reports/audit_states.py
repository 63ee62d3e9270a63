"""Pictures of states and directions: spectrum, energy by layer and token, overlap of subspaces."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrm.audit.tables import AuditTables, DirectionRow, EnergyRow
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
from retrm.reports.words import footer, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_MATRICES = {
    "raw": ("W, for post_norm states", BLUE, "-"),
    "folded": ("W diag(gain), for residual states", RED, "--"),
    "centred": ("W without its mean row", GREEN, "-."),
    "centred_folded": ("W diag(gain) without its mean row", PURPLE, ":"),
}
_TOKENS = {
    "first": ("first token", INK, "o"),
    "early": ("tokens 2 to 4", ORANGE, "s"),
    "prompt": ("rest of the prompt", SKY, "^"),
    "content": ("answer: words and numbers", BLUE, "o"),
    "punctuation": ("answer: punctuation", GREEN, "D"),
    "end": ("answer: end of turn", RED, "v"),
}
_SINKS = ("first", "early")


def spectrum_figure(tables: AuditTables) -> "Figure | None":
    """Singular values with the cut; beneath, what each direction separates and carries."""
    if not tables.spectrum:
        return None
    has_labels = any(is_number(row.separation) for row in tables.directions)
    n_panels = 1 + bool(tables.directions) * (1 + has_labels)
    ratios = (1.6, *([1.0] * (n_panels - 1)))
    figure, panels = canvas(
        9.0, 1.2 + 2.1 * sum(ratios), n_rows=n_panels, height_ratios=ratios, share_x=True
    )
    _draw_spectra(panels[0], tables)
    if has_labels:
        _draw_separation(panels[1], tables.directions)
    if tables.directions:
        _draw_energy_by_direction(panels[-1], tables.directions)
    for axes in panels:
        _mark_cut(axes, tables)
    # Left of the cut, where a descending curve leaves the upper corner free.
    panels[0].legend(frameon=False, loc="upper right", bbox_to_anchor=(0.93, 1.0), labelcolor=INK)
    n = 1 + max(row.index for row in tables.spectrum)
    panels[-1].set_xlim(-0.015 * n, 1.015 * n)
    panels[-1].set_xlabel("singular direction of the LM head, largest first")
    entitle(figure, "The LM head and its directions", footer(tables.facts))
    return figure


def _draw_spectra(axes: "Axes", tables: AuditTables) -> None:
    found = dict.fromkeys(row.matrix for row in tables.spectrum)
    for matrix in (
        *(m for m in _MATRICES if m in found),
        *(m for m in found if m not in _MATRICES),
    ):
        rows = sorted((r for r in tables.spectrum if r.matrix == matrix), key=lambda r: r.index)
        name, colour, dashes = _MATRICES.get(matrix, (matrix, MUTED, "-"))
        axes.plot(
            [row.index + 1 for row in rows],
            [row.singular_value for row in rows],
            ls=dashes,
            color=colour,
            lw=1.8,
            label=name,
        )
    axes.set_yscale("log")
    axes.set_ylabel("singular value\n(logits per unit)")
    headline(axes, "How loud each direction is in the logits")


def _mark_cut(axes: "Axes", tables: AuditTables) -> None:
    width, m = tables.facts.get("width"), tables.facts.get("m")
    if not (is_number(width) and is_number(m)):
        return
    axes.axvspan(width - m + 0.5, width + 0.5, color=ORANGE, alpha=0.18, lw=0, zorder=0)
    axes.axvline(
        width - m + 0.5,
        color=INK,
        lw=1,
        ls=":",
        label=f"cut: the last {m} of {width} are the reasoning subspace",
    )


def _draw_separation(axes: "Axes", rows: Sequence[DirectionRow]) -> None:
    shown = sorted((row for row in rows if is_number(row.separation)), key=lambda r: r.index)
    places = np.array([row.index + 1 for row in shown])
    sizes = np.abs([row.separation for row in shown])
    axes.plot(places, sizes, ".", color=SKY, ms=3, zorder=2)
    window = min(len(sizes), max(5, len(sizes) // 40))
    name = f"mean of {window} neighbours"
    axes.plot(*running_mean(places, sizes, window), color=BLUE, lw=1.6, label=name)
    axes.set_ylim(0, 1.3 * sizes.max() or 1)
    axes.set_ylabel("|separation|\n(standard deviations)")
    axes.legend(frameon=False, loc="upper left", labelcolor=INK)
    headline(axes, "How far right and wrong answers lie apart along it")


def _draw_energy_by_direction(axes: "Axes", rows: Sequence[DirectionRow]) -> None:
    shown = sorted(rows, key=lambda row: row.index)
    places = [row.index + 1 for row in shown]
    energy = [row.energy for row in shown]
    axes.plot(places, energy, color=GREEN, lw=1, label="energy of states")
    if any(is_number(row.weight) for row in shown):
        weights = [row.weight for row in shown]
        axes.plot(places, weights, ".", color=PURPLE, ms=3, label="weight of the full head")
    axes.axhline(1 / len(shown), color=INK, lw=1, ls=":", label="equal shares")
    axes.set_yscale("log")
    axes.set_ylim(top=20 * max(energy))  # room for the legend
    axes.set_ylabel("share of the whole")
    axes.legend(frameon=False, loc="upper left", ncols=3, labelcolor=INK)
    headline(axes, "What it carries of the states, and of a head fitted on all of them")


def running_mean(
    places: np.ndarray, values: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means over `window` neighbours, at the mean of their places; no padding at the ends."""
    weights = np.full(window, 1 / window)
    return np.convolve(places, weights, "valid"), np.convolve(values, weights, "valid")


# ---------------------------------------------------------------------- energy


def energy_figure(tables: AuditTables) -> "Figure | None":
    """Share of a state's energy by layer and kind of token, the first tokens apart."""
    if not tables.energy:
        return None
    kinds = {row.token_kind for row in tables.energy}
    columns = [
        (title, group)
        for title, group in (
            ("First tokens", [k for k in _SINKS if k in kinds]),
            ("All other tokens", sorted(kinds - set(_SINKS), key=_place_of_token)),
        )
        if group
    ]
    figure, panels = canvas(
        11.6 if len(columns) > 1 else 8.2,
        7.4,
        n_rows=2,
        n_columns=len(columns),
        share_x=True,
        share_y=True,
    )
    for i, part in enumerate(("reasoning", "semantic")):
        for j, (title, group) in enumerate(columns):
            axes = panels[i * len(columns) + j]
            _draw_energy(axes, tables, part, group)
            headline(axes, f"{title}: {part} subspace")
            axes.tick_params(labelleft=True)
            if i == 1:
                axes.set_xlabel("layer (0 = embedding output)")
            if j == 0:
                axes.set_ylabel("share of the energy")
    legend_beside(figure)
    entitle(figure, "Where the energy of the states lies", footer(tables.facts))
    return figure


def _draw_energy(axes: "Axes", tables: AuditTables, part: str, kinds: Sequence[str]) -> None:
    for kind in kinds:
        rows: list[EnergyRow] = sorted(
            (row for row in tables.energy if row.token_kind == kind), key=lambda row: row.layer
        )
        name, colour, marker = _TOKENS.get(kind, (kind, MUTED, "."))
        axes.plot(
            [row.layer for row in rows],
            [getattr(row, part) for row in rows],
            marker=marker,
            ms=3.5,
            color=colour,
            lw=1.5,
            label=name,
        )
    width, sizes = tables.facts.get("width"), sorted({row.m for row in tables.energy})
    if is_number(width):
        for m in sizes:
            axes.axhline(m / width, color=INK, ls=":", lw=1.2, label=f"chance: {m} of {width}")
    axes.set_yscale("log")
    _shares_on_log(axes)


def _shares_on_log(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _place_of_token(kind: str) -> tuple[int, str]:
    known = list(_TOKENS)
    return (known.index(kind) if kind in known else len(known), kind)


# --------------------------------------------------------------------- overlap


def overlap_figure(tables: AuditTables) -> "Figure | None":
    """Mean squared cosine between reasoning subspaces, a panel a size."""
    if not tables.overlap:
        return None
    sizes = sorted({row.m for row in tables.overlap})
    n_names = len({name for row in tables.overlap for name in (row.first, row.second)})
    side = 1.8 + 0.85 * n_names
    figure, panels = canvas(
        max(6.4, 1.2 + side * min(2, len(sizes))),
        0.8 + 0.9 * side * -(-len(sizes) // 2),
        n_rows=-(-len(sizes) // 2),
        n_columns=min(2, len(sizes)),
    )
    for axes, m in zip(panels, sizes, strict=False):
        image = _draw_overlap(axes, tables, m)
    for axes in panels[len(sizes) :]:
        axes.remove()
    figure.colorbar(image, ax=panels[: len(sizes)], label="mean cos², 1 = the same", pad=0.02)
    entitle(figure, "Do the subspaces of different LM heads agree?", footer(tables.facts))
    return figure


def _draw_overlap(axes: "Axes", tables: AuditTables, m: int) -> "AxesImage":
    rows = [row for row in tables.overlap if row.m == m]
    names = list(dict.fromkeys(name for row in rows for name in (row.first, row.second)))
    values = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(values, 1.0)
    for row in rows:
        i, j = names.index(row.first), names.index(row.second)
        values[i, j] = values[j, i] = row.mean_cos2
    axes.grid(False)
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1)
    shown = [name.replace("_", "\n") for name in names]
    axes.set_xticks(range(len(names)), shown)
    axes.set_yticks(range(len(names)), shown)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < 0.5 else INK
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour)
    width = tables.facts.get("width")
    headline(axes, f"m = {m}", f"chance {m / width:.2f}" if is_number(width) else "")
    return image
