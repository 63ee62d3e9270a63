"""The spectrum of the embedded default: no gap at 5 %, and a tail half as loud as the rest."""

import pytest

from retrm.features.spectrum import spectrum

pytestmark = pytest.mark.slow


@pytest.fixture
def unembedding(smollm2):
    return smollm2.unembedding


def test_raw_spectrum_of_smollm2_has_the_recorded_figures(unembedding) -> None:
    raw = spectrum(unembedding, "post_norm")
    s = raw.singular_values

    assert raw.n_tail == 29  # 576 - floor(.95 * 576)
    assert s[[0, 1, 2]] == pytest.approx([509.92, 96.13, 62.19], abs=0.01)
    assert (raw.above_cut, raw.below_cut) == pytest.approx((12.863, 12.775), abs=1e-3)
    assert s[575] == pytest.approx(5.589, abs=1e-3)
    assert raw.tail_share == pytest.approx(0.0063, abs=5e-5)
    assert (s**2).sum() == pytest.approx(520_416, rel=1e-5)
    assert (s[-29:] ** 2).sum() == pytest.approx(3294.04, abs=0.1)
    assert raw.tail_rms == pytest.approx(10.66, abs=0.01)
    assert raw.others_rms == pytest.approx(21.28, abs=0.01)
    assert raw.first_ratio == pytest.approx(5.30, abs=0.01)
    assert raw.gap_ratio < 1.01


def test_folded_spectrum_of_smollm2_has_the_recorded_figures(unembedding) -> None:
    folded = spectrum(unembedding, "residual")
    s = folded.singular_values

    assert s[[0, 1, 2]] == pytest.approx([1019.71, 196.94, 125.88], abs=0.01)
    assert (folded.above_cut, folded.below_cut) == pytest.approx((24.504, 24.367), abs=1e-3)
    assert s[575] == pytest.approx(13.015, abs=1e-3)
    assert folded.tail_share == pytest.approx(0.0069, abs=5e-5)
