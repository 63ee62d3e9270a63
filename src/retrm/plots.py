"""Pictures of a spectrum and of best-of-N accuracy, as PNG files.

Drawn without pyplot, so that nothing global is changed and no display is needed. Colours are those of
Okabe and Ito (2008), which colour-blind readers can tell apart; lines differ in their dashes as well.
Needs the extra `plot`.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrm.errors import DataError, MissingExtraError
from retrm.evaluation.best_of_n import Comparison, Row
from retrm.features.spectrum import Spectrum
from retrm.files import atomic_write

BLUE, ORANGE, GREEN, PURPLE, RED, SKY = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"),
)
INK, MUTED = "#222222", "#767676"
_HEADS = (BLUE, RED, GREEN, PURPLE, SKY, ORANGE)
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DPI = 160


def spectrum_png(
    path: str | Path, raw: Spectrum, folded: Spectrum | None = None, *, title: str = "LM head"
) -> None:
    """Singular values on a logarithmic scale, with the tail that the reasoning subspace keeps.

    Args:
        path: PNG file to write.
        raw: of the LM head itself.
        folded: of the LM head with the gain of the final norm folded in.
        title: name of the model.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure, axes = _canvas(7.2, 4.2)
    for found, colour, dashes, label in (
        (raw, BLUE, "-", "raw LM head W, for post_norm states"),
        (folded, RED, "--", "W diag(gain), for residual states"),
    ):
        if found is None:
            continue
        values = found.singular_values
        places = np.arange(1, len(values) + 1)
        axes.plot(places, values, dashes, color=colour, lw=1.8, label=label)
        axes.plot(places[0], values[0], "o", color=colour, ms=4)
    _mark_cut(axes, raw)
    axes.set_yscale("log")
    axes.set_xlim(-0.015 * len(raw.singular_values), 1.015 * len(raw.singular_values))
    axes.set_xlabel("singular direction, largest first")
    axes.set_ylabel("singular value (logits per unit of state)")
    axes.set_title(f"Spectrum of the LM head of {title}", loc="left", color=INK)
    # Left of the cut, where a descending curve leaves the upper corner free.
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(0.92, 1.0), labelcolor=INK)
    _save(path, figure)


def _mark_cut(axes: Any, raw: Spectrum) -> None:
    cut = raw.n_kept + 0.5
    n = len(raw.singular_values)
    axes.axvspan(cut, n + 0.5, color=ORANGE, alpha=0.18, lw=0)
    axes.axvline(cut, color=INK, lw=1, ls=":")
    # The lower left is free under any descending curve.
    axes.text(
        0.03,
        0.05,
        f"raw W, cut before the last {raw.n_tail} of {n}\n"
        f"from {raw.above_cut:.4g} to {raw.below_cut:.4g} at the cut\n"
        f"{100 * raw.tail_share:.2g} % of the energy behind it",
        ha="left",
        va="bottom",
        color=INK,
        fontsize=8.5,
        linespacing=1.35,
        transform=axes.transAxes,
    )


def best_of_n_png(
    path: str | Path,
    comparison: Comparison,
    majority_curve: Sequence[float] | None = None,
    *,
    oracle_curve: Sequence[float] | None = None,
    title: str = "Best of N",
) -> None:
    """Expected accuracy of the kept answer against the number of candidates.

    Heads and the baselines with scores are exact expectations over random subsets of k candidates;
    the band is the 95 % interval of the best head.

    Args:
        path: PNG file to write.
        comparison: from `retrm.evaluation.best_of_n.compare`.
        majority_curve: accuracy of the vote for k = 1..N.
        oracle_curve: share of prompts with a right answer among k, for k = 1..N; without it the
            oracle is marked at N only.
        title: of the picture.

    Raises:
        DataError: no row has a curve, or a curve has another length.
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    n = _length(comparison)
    for name, curve in (("majority", majority_curve), ("oracle", oracle_curve)):
        if curve is not None and len(curve) != n:
            raise DataError(f"got a {name} curve of {len(curve)} points; expected {n}, k = 1..{n}")
    figure, axes = _canvas(8.4, 4.6)
    places = np.arange(1, n + 1)
    handles = [_bound(axes, places, comparison, oracle_curve)]
    handles += _heads(axes, places, comparison)
    handles += _baselines(axes, places, comparison, majority_curve)
    handles.append(_line_of_pass(axes, comparison))
    _label(axes, n, comparison, title)
    shown = [handle for handle in handles if handle is not None]
    axes.legend(
        handles=shown, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), labelcolor=INK
    )
    _save(path, figure)


def _length(comparison: Comparison) -> int:
    curves = {len(row.curve) for row in comparison.rows if row.curve}
    if len(curves) != 1:
        raise DataError(
            f"got curves of {sorted(curves) or 'no'} points; expected one number of candidates for "
            "all rows. Make the comparison with retrm.evaluation.best_of_n.compare"
        )
    return curves.pop()


def _heads(axes: Any, places: np.ndarray, comparison: Comparison) -> list[Any]:
    heads = [row for row in comparison.rows if row.kind == "head" and row.curve]
    best = max(heads, key=lambda row: row.best_of_n.value, default=None)
    handles = []
    for i, row in enumerate(heads):
        colour = _HEADS[i % len(_HEADS)]
        if row is best:
            low = [point.low for point in row.curve]
            high = [point.high for point in row.curve]
            axes.fill_between(places, low, high, color=colour, alpha=0.16, lw=0)
        (line,) = axes.plot(
            places,
            [point.value for point in row.curve],
            _DASHES[i // len(_HEADS) % len(_DASHES)],
            marker=_MARKERS[i % len(_MARKERS)],
            color=colour,
            lw=2.2 if row is best else 1.6,
            ms=4.5,
            label=row.name + (" (95 % band)" if row is best else ""),
            zorder=3,
        )
        handles.append(line)
    return handles


def _baselines(
    axes: Any, places: np.ndarray, comparison: Comparison, majority: Sequence[float] | None
) -> list[Any]:
    curves = {
        row.name: [point.value for point in row.curve]
        for row in comparison.rows
        if row.kind == "baseline" and row.curve
    }
    if majority is not None:
        curves = {"majority": list(majority), **curves}
    styles = ((INK, "--"), (MUTED, "-."), (MUTED, ":"), (MUTED, (0, (5, 1, 1, 1, 1, 1))))
    handles = []
    for i, (name, values) in enumerate(curves.items()):
        colour, dashes = styles[i % len(styles)]
        handles += axes.plot(places, values, ls=dashes, color=colour, lw=1.5, label=name, zorder=2)
    return handles


def _bound(
    axes: Any, places: np.ndarray, comparison: Comparison, curve: Sequence[float] | None
) -> Any:
    top = _row(comparison, "oracle")
    if curve is not None:
        return axes.plot(places, curve, color=ORANGE, lw=1.6, label="oracle (any right)")[0]
    if top is None:
        return None
    return axes.plot(
        places[-1], top.best_of_n.value, "*", color=ORANGE, ms=10, ls="", label="oracle (any right)"
    )[0]


def _line_of_pass(axes: Any, comparison: Comparison) -> Any:
    row = _row(comparison, "pass@1")
    if row is None:
        return None
    label = f"pass@1: {row.best_of_n.value:.3f}"
    return axes.axhline(row.best_of_n.value, color=MUTED, lw=1, label=label, zorder=1)


def _row(comparison: Comparison, name: str) -> Row | None:
    return next((row for row in comparison.rows if row.name == name), None)


def _label(axes: Any, n: int, comparison: Comparison, title: str) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(1 - 0.03 * (n - 1), n + 0.03 * (n - 1) if n > 1 else 1.5)
    axes.set_xlabel("candidates per prompt, k")
    axes.set_ylabel("accuracy of the kept answer")
    axes.set_title(title, loc="left", color=INK)
    axes.set_title(
        f"{comparison.n_prompts} prompts, {comparison.n_answers:,} answers",
        loc="right",
        color=MUTED,
        fontsize=9,
    )


def check_plotting() -> None:
    """Refuse early where no picture could be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            'pictures need matplotlib, which is not installed. Run: pip install "retrm[plot]"'
        ) from error


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    check_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(True, which="major", color="#DDDDDD", lw=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=INK, which="both")
    return figure, axes


def _save(path: str | Path, figure: Any) -> None:
    held = io.BytesIO()
    # No date in the file: the same figures give the same bytes.
    figure.savefig(held, format="png", dpi=_DPI, metadata={"Software": None})
    with atomic_write(Path(path)) as out:
        out.write(held.getvalue())
