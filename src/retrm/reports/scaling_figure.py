"""Loss of discriminators against parameters and arithmetic, on logarithmic axes, with the fitted laws."""

from pathlib import Path
from typing import TYPE_CHECKING

from retrm.finetuning.power_law import PowerLaw, Scaling
from retrm.reports.canvas import BLUE, INK, MUTED, RED, canvas, entitle, headline, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_scaling(
    found: Scaling, path: Path, *, title: str = "Loss on rows never trained on"
) -> None:
    """Write the picture as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure, (left, right) = canvas(9.0, 3.8, n_columns=2)
    points = [(float(run.n_parameters), run.loss) for run in found.runs]
    _panel(left, points, found.by_parameters, "parameters")
    for run in found.runs:
        place = (float(run.n_parameters), run.loss)
        left.annotate(
            run.name, place, fontsize=7.5, color=MUTED, xytext=(4, 4), textcoords="offset points"
        )
    for run in found.runs:
        right.plot(*zip(*run.curve, strict=True), color=MUTED, lw=1.0, marker=".", ms=4)
    _panel(right, list(found.frontier), found.by_compute, "arithmetic of training, FLOP")
    left.set_ylabel("-log sigmoid(gap), nats")
    entitle(figure, title, f"{len(found.runs)} runs; lines: least squares of the logarithms")
    save_png(path, figure)


def _panel(
    axes: "Axes", points: list[tuple[float, float]], law: PowerLaw | None, name: str
) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.plot(*zip(*points, strict=True), "o", color=BLUE, ms=5)
    axes.set_xlabel(name, color=INK)
    if law is None:
        headline(axes, "no law", "fewer than 3 points")
        return
    ends = [min(x for x, _ in points), max(x for x, _ in points)]
    axes.plot(ends, [law.at(x) for x in ends], color=RED, lw=1.4)
    headline(
        axes,
        f"L = {law.coefficient:.3g} x^{law.exponent:.4f}",
        f"r = {law.correlation:.3f}, n = {law.n}",
    )
