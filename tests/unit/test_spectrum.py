import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.backbone.base import Unembedding
from retrm.errors import RecipeError
from retrm.features.spectrum import Spectrum, spectrum, spectrum_of


def head(weight: torch.Tensor, *, gain=None, kind="rms") -> Unembedding:
    return Unembedding(weight, None, gain, None, kind, 1e-6)


def known(*values: float, n_tail: int = 1) -> Spectrum:
    return spectrum_of(torch.tensor(values, dtype=torch.float64), n_tail=n_tail, point="post_norm")


def test_figures_of_four_singular_values_worked_by_hand() -> None:
    found = known(8.0, 4.0, 2.0, 1.0, n_tail=2)

    assert found.n_kept == 2
    assert (found.above_cut, found.below_cut) == (4.0, 2.0)
    assert found.gap_ratio == 2.0
    assert found.first_ratio == 2.0
    # (4 + 1) / (64 + 16 + 4 + 1)
    assert found.tail_share == pytest.approx(5 / 85, abs=1e-15)
    # tail: sqrt((4 + 1) / 2); rest: 4 alone; all but the first: sqrt((16 + 4 + 1) / 3)
    assert found.tail_rms == pytest.approx(math.sqrt(2.5), abs=1e-15)
    assert found.rest_rms == 4.0
    assert found.others_rms == pytest.approx(math.sqrt(7.0), abs=1e-15)
    assert found.loudness == pytest.approx(math.sqrt(2.5) / 4, abs=1e-15)


def test_worked_matrix_of_the_methods_page_has_singular_values_70_and_7() -> None:
    weight = torch.tensor([[9.6, 17.8], [22.8, 20.4], [34.4, 49.2]])

    raw = spectrum(head(weight), "post_norm", cut="reasoning:1")

    assert raw.singular_values == pytest.approx([70.0, 7.0], abs=1e-4)
    assert raw.first_ratio == pytest.approx(10.0, abs=1e-4)
    # 49 / (4900 + 49)
    assert raw.tail_share == pytest.approx(49 / 4949, abs=1e-6)


def test_the_gain_is_folded_in_at_the_residual_point_only() -> None:
    weight = torch.tensor([[9.6, 17.8], [22.8, 20.4], [34.4, 49.2]])
    gain = torch.tensor([2.0, 0.5])

    folded = spectrum(head(weight, gain=gain), "residual", cut="reasoning:1")
    raw = spectrum(head(weight, gain=gain), "post_norm", cut="reasoning:1")

    # W diag(2, .5) has singular values 89.1045 and 5.4992
    assert folded.singular_values == pytest.approx([89.1045, 5.4992], abs=1e-4)
    assert raw.singular_values == pytest.approx([70.0, 7.0], abs=1e-4)


def test_the_dead_direction_of_a_layer_norm_is_not_in_the_spectrum() -> None:
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))

    found = spectrum(head(weight, kind="layer"), "residual", cut="reasoning:2")

    assert len(found.singular_values) == 7
    assert found.singular_values[-1] > 1


def test_an_exactly_invisible_tail_has_an_infinite_gap_and_is_plain_json() -> None:
    found = known(3.0, 1.0, 0.0)

    assert found.gap_ratio == math.inf
    assert found.loudness == 0
    stored = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert stored["gap_ratio"] is None
    assert stored["singular_values"] == [3.0, 1.0, 0.0]
    assert stored["n_tail"] == 1


def test_figures_that_no_direction_is_left_for_are_none_in_json() -> None:
    assert known(3.0, 1.0).as_dict()["rest_rms"] is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.01, 1e4), min_size=3, max_size=12),
    st.integers(1, 11),
    st.floats(1e-3, 1e3),
)
def test_scaling_the_head_moves_no_ratio(values, n_tail, factor) -> None:
    values = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    n_tail = min(n_tail, len(values) - 1)

    one = spectrum_of(values, n_tail=n_tail, point="post_norm")
    other = spectrum_of(values * factor, n_tail=n_tail, point="post_norm")

    assert 0 < one.tail_share < 1
    assert one.gap_ratio >= 1
    for name in ("tail_share", "gap_ratio", "first_ratio"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9)
    assert other.tail_rms == pytest.approx(one.tail_rms * factor, rel=1e-9)


@pytest.mark.parametrize("cut", ["full", "semantic:2", "random:2"])
def test_a_cut_that_is_no_reasoning_subspace_is_refused(cut) -> None:
    with pytest.raises(RecipeError, match="expected a reasoning subspace, such as reasoning:5%"):
        spectrum(head(torch.eye(4)), "post_norm", cut=cut)


@pytest.mark.parametrize("n_tail", [0, 3])
def test_a_tail_that_leaves_nothing_on_one_side_is_refused(n_tail) -> None:
    with pytest.raises(RecipeError, match=f"tail of {n_tail} of 3 directions; expected 1 to 2"):
        known(3.0, 2.0, 1.0, n_tail=n_tail)


def test_ascending_singular_values_are_refused() -> None:
    with pytest.raises(RecipeError, match="do not descend"):
        Spectrum("post_norm", np.array([1.0, 2.0, 3.0]), 1)
