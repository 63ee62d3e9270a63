"""Picture of the spectrum of an LM head, with the cut of the reasoning subspace marked."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrm.features.spectrum import Spectrum
from retrm.reports.canvas import BLUE, INK, ORANGE, RED, canvas, headline, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    figure, (axes,) = canvas(7.2, 4.2)
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
    headline(axes, f"Spectrum of the LM head of {title}")
    # Left of the cut, where a descending curve leaves the upper corner free.
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(0.92, 1.0), labelcolor=INK)
    save_png(path, figure)


def _mark_cut(axes: "Axes", raw: Spectrum) -> None:
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
