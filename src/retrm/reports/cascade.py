"""Picture of a cascade: accuracy on pairs against the share of pairs that the judge is asked of."""

from pathlib import Path

from retrm.evaluation.cascade import CascadeCurve
from retrm.reports.canvas import BLUE, INK, MUTED, canvas, headline, save_png


def cascade_png(path: str | Path, curve: CascadeCurve, *, title: str = "Cascade") -> None:
    """Accuracy with its 95 % band, and the line of asking at random.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    from matplotlib.ticker import PercentFormatter

    figure, (axes,) = canvas(7.2, 4.4)
    shares = [point.share for point in curve.points]
    axes.fill_between(
        shares,
        [point.accuracy.low for point in curve.points],
        [point.accuracy.high for point in curve.points],
        color=BLUE,
        alpha=0.16,
        lw=0,
    )
    axes.plot(
        shares,
        [point.accuracy.value for point in curve.points],
        "-o",
        color=BLUE,
        ms=4,
        label="smallest gaps first (95 % band)",
    )
    axes.plot(
        shares,
        [point.at_random for point in curve.points],
        "--",
        color=INK,
        lw=1.2,
        label="as many at random (expected)",
    )
    axes.axhline(0.5, color=MUTED, lw=1, ls=":", label="chance")
    axes.set_xlabel("pairs that the judge is asked of")
    axes.set_ylabel("accuracy on pairs, ties one half")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(frameon=False, labelcolor=INK)
    headline(
        axes,
        title,
        f"{curve.n_pairs:,} pairs of {curve.n_prompts:,} prompts, {curve.calls_per_pair} calls a pair",
    )
    save_png(path, figure)
