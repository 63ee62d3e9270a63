import builtins

import numpy as np
import pytest
import torch
from pictures import drawn, size

from retrm.errors import MissingExtraError, OutputError
from retrm.features.spectrum import spectrum_of
from retrm.reports.spectrum import spectrum_png


def spectrum(n: int = 40):
    values = torch.logspace(2, 0, n, dtype=torch.float64)
    return spectrum_of(values, n_tail=max(1, n // 20), point="post_norm")


def test_a_spectrum_becomes_a_png_with_a_log_scale_and_a_mark_at_the_cut(
    tmp_path, monkeypatch
) -> None:
    figures = drawn(monkeypatch)

    spectrum_png(tmp_path / "s.png", spectrum(), spectrum(), title="toy")

    (axes,) = figures[0].axes
    assert size(tmp_path / "s.png")[0] > 900
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    assert "toy" in axes.get_title(loc="left")
    # 40 values, the last two are the tail: the cut lies between the 38th and the 39th.
    assert any(np.allclose(line.get_xdata(), 38.5) for line in axes.lines)
    assert len(axes.get_legend().get_texts()) == 2


def test_a_spectrum_without_the_folded_one_is_drawn_as_well(tmp_path) -> None:
    spectrum_png(tmp_path / "s.png", spectrum(3))

    assert size(tmp_path / "s.png")[0] > 900


def test_the_same_figures_give_the_same_bytes(tmp_path) -> None:
    spectrum_png(tmp_path / "a.png", spectrum())
    spectrum_png(tmp_path / "b.png", spectrum())

    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_without_matplotlib_the_pip_line_is_named(tmp_path, monkeypatch) -> None:
    real = builtins.__import__

    def without(name, *args, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r'pip install "retrm\[plot\]"'):
        spectrum_png(tmp_path / "s.png", spectrum())


def test_a_path_that_cannot_be_written_is_our_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputError, match="could not write"):
        spectrum_png(tmp_path / "file" / "s.png", spectrum())


def test_a_title_with_dollars_is_no_mathematics(tmp_path, monkeypatch) -> None:
    figures = drawn(monkeypatch)

    spectrum_png(tmp_path / "s.png", spectrum(), title=r"$\nonsense$")

    assert figures[0].axes[0].get_title(loc="left") == r"Spectrum of the LM head of $\nonsense$"
