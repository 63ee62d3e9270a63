"""Pictures of outcomes: contrasts, best of k, score against length, interventions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrm.audit.rules import MARGIN
from retrm.audit.tables import AnswerRow, AuditTables, ContrastRow, InterventionRow
from retrm.audit.use import at_equal_energy
from retrm.reports.canvas import (
    BLUE,
    DASHES,
    GREEN,
    INK,
    MARKERS,
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
from retrm.reports.words import (
    feature_name,
    footer,
    is_number,
    metric_name,
    metric_of_record,
    number,
    span,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Sweeps of few contrasts each; the others have pictures of their own.
_SHOWN_SWEEPS = ("primary", "controls", "pooling", "matrix")
_SETTINGS = ("m", "pooling", "layer", "matrix", "head", "n_train_prompts")
_ROLES = {
    "primary": (RED, "primary (fixed before looking)", 7),
    "economy": (BLUE, "economy: against the full state", 7),
    "exploratory": (MUTED, "exploratory", 5),
}


def contrasts_figure(tables: AuditTables) -> "Figure | None":
    """Paired differences with intervals; the primary one on top, the margin shaded."""
    rows = contrasts_of_record(tables)
    shown = [row for row in rows if row.role != "exploratory" or _is_shown(row, tables)]
    if not shown:
        return None
    figure, (axes,) = canvas(10.6, 1.5 + 0.3 * len(shown))
    axes.axvspan(-MARGIN, MARGIN, color=SKY, alpha=0.25, lw=0, label=f"margin ±{MARGIN:g}")
    axes.axvline(0, color=INK, lw=1)
    for role, (colour, name, size) in _ROLES.items():
        places = [i for i, row in enumerate(shown) if row.role == role]
        chosen = [shown[i] for i in places]
        if not chosen:
            continue
        axes.hlines(places, [r.low for r in chosen], [r.high for r in chosen], color=colour, lw=1.8)
        values = [row.value for row in chosen]
        axes.plot(values, places, "o", color=colour, ms=size, label=name, zorder=3)
    varied = [name for name in _SETTINGS if len({getattr(row, name) for row in shown}) > 1]
    _label_contrasts(axes, shown, varied)
    left_out = len(rows) - len(shown)
    common = _settings(shown[0], [name for name in _SETTINGS if name not in varied])
    axes.set_xlabel(
        f"difference of {metric_name(metric_of_record(tables))}, 95 % interval over prompts"
        + (f"; {left_out} more in contrasts.parquet" if left_out else "")
        + (f"\nall: {common}" if common else "")
    )
    figure.legend(loc="outside upper right", ncols=4, frameon=False, labelcolor=INK, fontsize=9)
    entitle(figure, "Paired differences", footer(tables.facts))
    return figure


def _is_shown(row: ContrastRow, tables: AuditTables) -> bool:
    """Of exploratory ones the few that stay near the contrast of record: its width, and random."""
    if row.sweep in ("primary", "controls"):  # with scalars m counts those too
        return True
    is_against_random = (row.first, row.second) == ("reasoning", "random")
    return (
        row.sweep in _SHOWN_SWEEPS and is_against_random and row.m == tables.facts.get("m", row.m)
    )


def contrasts_of_record(tables: AuditTables) -> list[ContrastRow]:
    """Contrasts in the metric of record: primary, economy, then the others by sweep."""
    roles, sweeps = list(_ROLES), list(_SHOWN_SWEEPS)
    rows = [row for row in tables.contrasts if row.metric == metric_of_record(tables)]
    return sorted(
        rows,
        key=lambda row: (
            roles.index(row.role) if row.role in roles else len(roles),
            sweeps.index(row.sweep) if row.sweep in sweeps else len(sweeps),
        ),
    )


def contrast_name(row: ContrastRow, settings: Sequence[str] = _SETTINGS) -> str:
    """What is subtracted from what, and the named settings under which."""
    words = _settings(row, settings)
    name = f"{feature_name(row.first)} minus {feature_name(row.second)}"
    return f"{name} ({words})" if words else name


def _settings(row: ContrastRow, names: Sequence[str]) -> str:
    words = {
        "m": f"m {row.m}",
        "pooling": row.pooling if row.pooling != "-" else "",
        "layer": f"layer {row.layer}" if row.layer >= 0 else "",
        "matrix": row.matrix if row.matrix != "-" else "",
        "head": row.head if row.head != "-" else "",
        "n_train_prompts": f"{row.n_train_prompts:,} training prompts",
    }
    return ", ".join(words[name] for name in names if words[name])


def _label_contrasts(axes: "Axes", rows: Sequence[ContrastRow], varied: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_yticks(range(len(rows)), [contrast_name(row, varied) for row in rows], fontsize=8.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(False, axis="y")
    right = axes.secondary_yaxis("right")
    right.set_yticks(
        range(len(rows)),
        [f"{number(r.value)} {span(r.low, r.high)}" for r in rows],
        fontsize=8.5,
    )
    right.spines["right"].set_visible(False)
    right.tick_params(length=0, colors=INK)


# ------------------------------------------------------------------- best of k


def best_of_k_figure(tables: AuditTables) -> "Figure | None":
    """Accuracy of the kept answer against the number of candidates, a line a selector."""
    if not tables.curves:
        return None
    names = list(dict.fromkeys(row.name for row in tables.curves))
    figure, (axes,) = canvas(9.4, 4.6)
    styles = _curve_styles(names)
    for name in names:
        rows = sorted((row for row in tables.curves if row.name == name), key=lambda r: r.k)
        colour, dashes, marker = styles[name]
        places = [row.k for row in rows]
        if name in ("reasoning", "full"):
            low, high = [row.low for row in rows], [row.high for row in rows]
            axes.fill_between(places, low, high, color=colour, alpha=0.13, lw=0)
        has_band = name in ("reasoning", "full") and any(is_number(row.low) for row in rows)
        axes.plot(
            places,
            [row.value for row in rows],
            ls=dashes,
            marker=marker,
            ms=4.5,
            color=colour,
            lw=2.3 if name == "reasoning" else 1.6,
            label=feature_name(name) + (" (95 % band)" if has_band else ""),
        )
    _axis_of_shares(axes)
    axes.set_xticks(sorted({row.k for row in tables.curves}))
    axes.set_xlabel("candidates per prompt, k")
    axes.set_ylabel("accuracy of the kept answer")
    legend_beside(figure)
    entitle(figure, "Best of k", footer(tables.facts))
    return figure


def _curve_styles(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    fixed = {
        "oracle": (ORANGE, "-", "*"),
        "reasoning": (RED, "-", "o"),
        "full": (INK, "-", "s"),
        "random": (MUTED, "-", "^"),
        "majority": (GREEN, "--", "D"),
        "log-probability": (PURPLE, "-.", "v"),
    }
    others = [name for name in names if name not in fixed]
    free = (BLUE, SKY, MUTED, GREEN, PURPLE, ORANGE)
    return fixed | {
        name: (free[i % 6], DASHES[1 + i % 3], MARKERS[i % 6]) for i, name in enumerate(others)
    }


def _axis_of_shares(axes: "Axes") -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


# -------------------------------------------------------------- score and length


def length_figure(tables: AuditTables) -> "Figure | None":
    """Out-of-fold scores against the number of tokens, coloured by label."""
    kinds = [
        kind
        for kind in ("reasoning", "full", "random")
        if any(is_number(getattr(row, kind)) for row in tables.answers)
    ]
    if not kinds:
        return None
    figure, panels = canvas(1.6 + 3.4 * len(kinds), 4.6, n_columns=len(kinds), share_y=True)
    for axes, kind in zip(panels, kinds, strict=True):
        rows = [row for row in tables.answers if is_number(getattr(row, kind))]
        _draw_scores(axes, rows, kind)
        axes.set_xlabel("tokens of the answer")
        axes.tick_params(labelleft=True)
        headline(axes, "random, one draw" if kind == "random" else feature_name(kind))
    panels[0].set_ylabel("score (standard deviations)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=3, frameon=False, labelcolor=INK)
    entitle(figure, "Does the score read length?", footer(tables.facts))
    return figure


def _draw_scores(axes: "Axes", rows: Sequence[AnswerRow], kind: str) -> None:
    lengths = np.array([row.n_tokens for row in rows], dtype=float)
    scores = np.array([getattr(row, kind) for row in rows], dtype=float)
    labels = np.array([row.label for row in rows], dtype=float)
    # The rarer of the two is drawn last, so that neither hides under the other.
    kinds = [(labels == 1, BLUE, "o", "right"), (labels == 0, RED, "x", "wrong")]
    kinds = [(np.isnan(labels), MUTED, ".", "no label"), *sorted(kinds, key=lambda k: -k[0].sum())]
    for mask, colour, marker, name in kinds:
        if mask.any():
            axes.plot(
                lengths[mask],
                scores[mask],
                marker,
                color=colour,
                ms=3,
                mew=0.8,
                alpha=float(np.clip(600 / len(rows), 0.15, 0.7)),
                label=f"{name} ({mask.sum():,})",
            )
    everywhere = correlation(lengths, scores)
    inside = within_correlation(lengths, scores, [row.prompt_id for row in rows])
    axes.text(
        0.98,
        0.02,
        f"correlation {number(everywhere)}\nwithin prompts {number(inside)}",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        color=INK,
        fontsize=9,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2},
    )


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation; NaN where one of the two does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def within_correlation(first: np.ndarray, second: np.ndarray, groups: Sequence[str]) -> float:
    """Pearson's correlation after the mean of every group is taken off both."""
    _, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    counts = np.bincount(codes)

    def centred(values: np.ndarray) -> np.ndarray:
        rest = values - (np.bincount(codes, values) / counts)[codes]
        # What rounding leaves of a constant is no variation.
        return np.where(np.abs(rest) > 1e-9 * np.abs(values).max(), rest, 0.0)

    return correlation(centred(first), centred(second))


# --------------------------------------------------------------- interventions

_REMOVED = {"reasoning": RED, "semantic": BLUE, "random": MUTED, "random_energy": SKY}


def interventions_figure(tables: AuditTables) -> "Figure | None":
    """What is left of accuracy and log-probability when a component of the state is removed."""
    measures = [
        measure
        for measure in ("accuracy", "log_probability")
        if any(row.measure == measure and row.removed != "none" for row in tables.interventions)
    ]
    if not measures:
        return None
    figure, panels = canvas(10.0, 0.9 + 3.4 * len(measures), n_rows=len(measures))
    for axes, measure in zip(panels, measures, strict=True):
        _draw_removals(axes, tables.interventions, measure)
        axes.set_ylabel(metric_name(measure))
    panels[-1].set_xlabel("layers at which the component is removed")
    legend_beside(figure)
    entitle(figure, "What the model loses without a component", footer(tables.facts))
    return figure


def _draw_removals(axes: "Axes", every: Sequence[InterventionRow], measure: str) -> None:
    rows = [row for row in every if row.measure == measure]
    groups = _groups(every, rows)
    found = {row.removed for here in groups.values() for row in here}
    kinds = [*(k for k in _REMOVED if k in found), *sorted(found - set(_REMOVED))]
    for i, kind in enumerate(kinds):
        name, colour = f"{feature_name(kind)} removed", _REMOVED.get(kind, GREEN)
        for j, group in enumerate(groups.values()):
            here = [row for row in group if row.removed == kind]
            place = j + 0.8 * (i + 0.5) / len(kinds) - 0.4
            _draw_bar(axes, place, 0.7 / len(kinds), here, colour, name)
    for value, name in _untouched([row for row in rows if row.removed == "none"]):
        axes.axhline(value, color=INK, ls="--", lw=1.3, label=name)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.grid(False, axis="x")


def _groups(
    every: Sequence[InterventionRow], rows: Sequence[InterventionRow]
) -> dict[str, list[InterventionRow]]:
    """Rows by place and size; random ones of equal energy stand beside the one they are equal to."""
    groups: dict[str, list[InterventionRow]] = {}
    for row in rows:
        if row.removed in ("none", "random_energy"):
            continue
        fill = "\nmean put back" if row.fill == "mean" else ""
        spared = "\nfirst token left" if row.spare_first else ""
        name = f"{row.layers}\nm {row.m}{fill}{spared}"
        matched = at_equal_energy(every, row) if row.removed == "reasoning" else ()
        groups.setdefault(name, []).extend((row, *matched))
    return groups


def _draw_bar(
    axes: "Axes",
    place: float,
    width: float,
    rows: Sequence[InterventionRow],
    colour: str,
    name: str,
) -> None:
    if not rows:
        return
    value = float(np.mean([row.value for row in rows]))
    # Of several draws the bar is the mean, its interval the mean interval, and each draw a point.
    low, high = (float(np.mean([getattr(row, end) for row in rows])) for end in ("low", "high"))
    axes.bar(place, value, width, color=colour, alpha=0.75, label=name, zorder=2)
    if is_number(low) and is_number(high):
        axes.vlines(place, low, high, color=INK, lw=1.4, zorder=3)
    if len(rows) > 1:
        places = place + width * np.linspace(-0.3, 0.3, len(rows))
        axes.plot(places, [row.value for row in rows], ".", color=INK, ms=3, zorder=4)


def _untouched(rows: Sequence[InterventionRow]) -> list[tuple[float, str]]:
    values = list(dict.fromkeys(row.value for row in rows))
    if len(values) == 1:
        return [(values[0], "nothing removed")]
    return [(row.value, f"nothing removed ({row.layers})") for row in rows]
