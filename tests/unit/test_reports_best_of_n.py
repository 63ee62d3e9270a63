import sys

import numpy as np
import pytest
from pictures import drawn, size

from retrm.errors import DataError
from retrm.evaluation.best_of_n import Comparison, Row
from retrm.metrics import Interval
from retrm.reports.best_of_n import best_of_n_png


def interval(value: float) -> Interval:
    return Interval(value, value - 0.1, value + 0.1, 40, 10)


def row(name: str, kind: str, values) -> Row:
    curve = tuple(interval(v) for v in values)
    return Row(name, kind, interval(values[-1]), 0.5, curve=curve if len(values) > 1 else ())


def comparison(n: int = 4, n_heads: int = 2) -> Comparison:
    heads = [row(f"head {i}", "head", np.linspace(0.4, 0.6 + i / 50, n)) for i in range(n_heads)]
    rows = (
        *heads,
        row("shortest", "baseline", np.linspace(0.4, 0.42, n)),
        row("log-probability", "baseline", np.linspace(0.4, 0.5, n)),
        row("majority", "baseline", [0.55]),
        row("pass@1", "bound", [0.4]),
        row("oracle", "bound", [0.8]),
    )
    return Comparison(rows, 10, 8, 40, n, 0)


def test_best_of_n_shows_every_rule_once_and_keeps_the_legend_off_the_data(
    tmp_path, monkeypatch
) -> None:
    figures = drawn(monkeypatch)

    best_of_n_png(
        tmp_path / "b.png",
        comparison(),
        [0.4, 0.45, 0.5, 0.55],
        oracle_curve=[0.4, 0.6, 0.7, 0.8],
    )

    (axes,) = figures[0].axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == [
        "oracle (any right)",
        "head 0",
        "head 1 (95 % band)",
        "majority",
        "shortest",
        "log-probability",
        "pass@1: 0.400",
    ]
    renderer = figures[0].canvas.get_renderer()
    assert axes.get_legend().get_window_extent(renderer).x0 > axes.bbox.x1
    assert size(tmp_path / "b.png")[0] > 1000


def test_only_the_best_head_has_a_band_and_it_is_its_interval(tmp_path, monkeypatch) -> None:
    figures = drawn(monkeypatch)

    best_of_n_png(tmp_path / "b.png", comparison(n_heads=3))

    (band,) = figures[0].axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    # head 2 runs from .40 to .64, its intervals reach .1 to either side
    assert heights.min() == pytest.approx(0.3)
    assert heights.max() == pytest.approx(0.74)


def test_the_oracle_is_marked_at_n_when_its_curve_is_not_known(tmp_path, monkeypatch) -> None:
    figures = drawn(monkeypatch)

    best_of_n_png(tmp_path / "b.png", comparison())

    oracle = next(x for x in figures[0].axes[0].lines if x.get_label().startswith("oracle"))
    assert list(np.ravel(oracle.get_xdata())) == [4]
    assert list(np.ravel(oracle.get_ydata())) == [0.8]


def test_many_heads_have_different_colours_or_dashes(tmp_path, monkeypatch) -> None:
    figures = drawn(monkeypatch)

    best_of_n_png(tmp_path / "b.png", comparison(n_heads=14))

    styles = {
        (line.get_color(), line.get_linestyle())
        for line in figures[0].axes[0].lines
        if str(line.get_label()).startswith("head")
    }
    assert len(styles) == 14


def test_nothing_global_is_touched(tmp_path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    had_pyplot = "matplotlib.pyplot" in sys.modules
    best_of_n_png(tmp_path / "b.png", comparison())

    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot


@pytest.mark.parametrize("name", ["majority_curve", "oracle_curve"])
def test_a_curve_of_another_length_is_refused(tmp_path, name) -> None:
    with pytest.raises(DataError, match="curve of 3 points; expected 4"):
        best_of_n_png(tmp_path / "b.png", comparison(), **{name: [0.1, 0.2, 0.3]})


def test_a_comparison_without_curves_is_refused(tmp_path) -> None:
    bare = Comparison((row("pass@1", "bound", [0.4]),), 10, 8, 40, 4, 0)

    with pytest.raises(DataError, match="curves of no points"):
        best_of_n_png(tmp_path / "b.png", bare)
