"""Rank p-values, Holm's correction, figures in words."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.cli.tables import interval
from retrm.errors import ScoreError
from retrm.metrics import Interval, format_interval, format_number, holm, rank_p_value

quick = settings(max_examples=40, deadline=None)
p_values = st.lists(st.floats(0, 1) | st.just(math.nan), max_size=12)


@pytest.mark.parametrize(
    ("value", "p"),
    [
        (0.9, 1 / 5),  # none of 4 draws reaches it
        (0.7, 3 / 5),  # .7 itself and .8 do
        (0.1, 1.0),
    ],
)
def test_rank_p_value_counts_draws_at_least_as_good(value, p):
    assert rank_p_value(value, [0.5, 0.7, 0.8, 0.6]) == pytest.approx(p)


def test_ninety_nine_draws_allow_one_per_cent_at_best():
    assert rank_p_value(2.0, np.linspace(0, 1, 99)) == pytest.approx(0.01)


def test_draws_that_are_missing_are_refused():
    with pytest.raises(ScoreError, match="at least one row"):
        rank_p_value(0.5, [])
    with pytest.raises(ScoreError, match="nan at position 1 of draws"):
        rank_p_value(0.5, [0.1, math.nan])
    with pytest.raises(ScoreError, match="nan at position 0 of value"):
        rank_p_value(math.nan, [0.1])


def test_holm_of_a_worked_example():
    # Ascending .01, .02, .03, .04 x 4, 3, 2, 1 = .04, .06, .06, .04; running maximum .04 .06 .06 .06
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_holm_does_not_count_claims_that_were_not_made():
    # Two of four: .01 x 2, .04 x 1
    found = holm([math.nan, 0.01, math.nan, 0.04])

    assert np.isnan(found[[0, 2]]).all()
    assert found[[1, 3]] == pytest.approx([0.02, 0.04])


def test_holm_of_nothing_is_nothing():
    assert holm([]).shape == (0,)
    assert np.isnan(holm([math.nan])).all()


@quick
@given(p_values)
def test_holm_is_what_the_definition_gives(values):
    made = sorted(p for p in values if not math.isnan(p))
    plain = {}
    for i, p in enumerate(made):
        steps = [min(1.0, made[j] * (len(made) - j)) for j in range(i + 1)]
        plain.setdefault(p, []).append(max(steps))

    for given_p, adjusted in zip(values, holm(values), strict=True):
        if math.isnan(given_p):
            assert math.isnan(adjusted)
        else:
            assert given_p <= adjusted <= 1
            assert min(abs(adjusted - x) for x in plain[given_p]) < 1e-12


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_nothing_and_bonferroni(values):
    found, given_ps = holm(values), np.array(values)

    assert (np.diff(found[np.argsort(given_ps, kind="stable")]) >= 0).all()
    assert (found <= np.minimum(1, given_ps * len(values)) + 1e-15).all()


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.inf])
def test_holm_refuses_what_is_no_p_value(bad):
    with pytest.raises(ScoreError, match=r"at position 1; expected 0 to 1, or NaN"):
        holm([0.5, bad])


def test_figures_are_set_without_the_zero_before_the_point():
    assert [format_number(x) for x in (0.8123, -0.035, 1.0, -2.5, 0.9996)] == [
        *(".812", "-.035", "1.000", "-2.500", "1.000")
    ]
    assert format_interval(-0.021, -0.055, 0.012) == "-.021 [-.055, .012]"


def test_the_tables_of_the_command_line_set_them_the_same_way():
    assert interval(Interval(-0.021, -0.055, 0.012, 10, 5)) == format_interval(
        -0.021, -0.055, 0.012
    )
    assert interval(None) == "–"
