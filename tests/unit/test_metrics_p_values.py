"""Rank p-values, Student t with several errors, Holm's correction, figures in words."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retrm.errors import ScoreError
from retrm.metrics import (
    Interval,
    draw_error,
    format_interval,
    format_number,
    holm,
    n_at_least_as_good,
    rank_p_value,
    student_p_value,
    student_quantile,
    welch_p_value,
)
from retrm.reports.words import figure

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


def test_draws_at_least_as_good_are_counted_ties_among_them():
    assert n_at_least_as_good(0.7, [0.5, 0.7, 0.8, 0.6]) == 2
    assert n_at_least_as_good(0.9, [0.5]) == 0


@quick
@given(st.floats(0.001, 0.999), st.sampled_from([1.0, 2.0, 7.0, 19.0, 500.0, math.inf]))
def test_the_quantile_of_students_t_is_where_the_tail_is_p(p, df):
    assert student_quantile(p, df) == pytest.approx(stats.t.isf(p / 2, df), rel=1e-9, abs=1e-12)


def test_ninety_nine_draws_allow_one_per_cent_at_best():
    assert rank_p_value(2.0, np.linspace(0, 1, 99)) == pytest.approx(0.01)


def test_draws_that_are_missing_are_refused():
    with pytest.raises(ScoreError, match="at least one row"):
        rank_p_value(0.5, [])
    with pytest.raises(ScoreError, match="nan at position 1 of draws"):
        rank_p_value(0.5, [0.1, math.nan])
    with pytest.raises(ScoreError, match="nan at position 0 of value"):
        rank_p_value(math.nan, [0.1])


def test_student_p_value_of_one_degree_of_freedom_is_the_cauchy_tail():
    # 1 - 2 arctan(t) / pi: half at t = 1.
    assert student_p_value(1.0, 1) == pytest.approx(0.5, rel=1e-13)
    assert student_p_value(-1.0, 1) == pytest.approx(0.5, rel=1e-13)


@quick
@given(st.floats(-60, 60), st.floats(0.5, 5e6))
def test_student_p_value_is_that_of_scipy(t, df):
    assert student_p_value(t, df) == pytest.approx(2 * stats.t.sf(abs(t), df), rel=1e-7, abs=1e-300)


@pytest.mark.parametrize("t", [0.0, 1e-9, 0.3, 1.96, 8.0])
def test_student_p_value_passes_over_into_the_normal_one_without_a_step(t):
    assert student_p_value(t, 0.999e7) == pytest.approx(student_p_value(t, math.inf), rel=2e-4)


def test_student_p_value_at_the_ends():
    assert student_p_value(0.0, 5) == 1.0
    assert student_p_value(math.inf, 5) == 0.0


def test_welch_p_value_of_a_worked_example():
    # Squares 9 + 16 = 25, so t = 10 / 5 = 2; df = 25^2 / (9^2 / inf + 16^2 / 4) = 625 / 64
    p, df = welch_p_value(10.0, [(3.0, math.inf), (4.0, 4)])

    assert df == pytest.approx(625 / 64)
    assert p == pytest.approx(2 * stats.t.sf(2.0, 625 / 64))
    assert welch_p_value(-10.0, [(3.0, math.inf), (4.0, 4)]) == (p, df)


def test_welch_p_value_of_two_samples_is_the_t_test_of_scipy():
    first, second = [1.0, 2.0, 4.0, 3.5], [0.0, 0.5, 3.0, 1.0, 1.5, -2.0]
    errors = [(np.std(x, ddof=1) / math.sqrt(len(x)), len(x) - 1) for x in (first, second)]

    p, df = welch_p_value(np.mean(first) - np.mean(second), errors)

    oracle = stats.ttest_ind(first, second, equal_var=False)
    assert (p, df) == pytest.approx((oracle.pvalue, oracle.df))


def test_a_spread_known_from_few_draws_weighs_more_than_a_known_one():
    # t = 2.5: .0124 by the normal distribution, .0668 with 4 degrees of freedom.
    known, df = welch_p_value(2.5, [(1.0, math.inf)])
    few, _ = welch_p_value(2.5, [(1.0, 4)])

    assert (known, df) == (pytest.approx(0.01242, abs=1e-5), math.inf)
    assert few == pytest.approx(0.06677, abs=1e-5)


def test_welch_p_value_without_any_error_tells_no_difference_from_a_certain_one():
    assert welch_p_value(1e-14, [(0.0, math.inf)]) == (1.0, math.inf)
    assert welch_p_value(0.2, [(0.0, math.inf), (0.0, 4)]) == (0.0, math.inf)


@pytest.mark.parametrize("errors", [[(math.nan, 4)], [(0.1, math.inf), (0.1, math.nan)]])
def test_welch_p_value_makes_no_claim_from_an_error_that_is_unknown(errors):
    assert all(math.isnan(x) for x in welch_p_value(0.5, errors))


def test_the_error_of_one_more_draw_holds_that_of_the_mean():
    # Draws 1, 2, 3: deviation 1, times sqrt(1 + 1/3).
    assert draw_error([1.0, 2.0, 3.0]) == (pytest.approx(math.sqrt(4 / 3)), 2)
    assert all(math.isnan(x) for x in draw_error([0.3]))


def test_an_exchangeable_draw_is_called_different_as_often_as_the_level_says():
    # Five draws and one more of the same kind; the normal distribution would claim 12 %.
    rng = np.random.default_rng(0)
    found = [
        welch_p_value(one - np.mean(draws), [draw_error(draws)])[0]
        for one, *draws in rng.normal(size=(2000, 6))
    ]

    # 5 % of 2,000, give or take three standard errors of .5 %.
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.015)


def test_welch_p_value_refuses_what_is_no_error():
    with pytest.raises(ScoreError, match="got no errors"):
        welch_p_value(0.5, [])
    with pytest.raises(ScoreError, match=r"got error -0.1 with 4 degrees"):
        welch_p_value(0.5, [(-0.1, 4)])
    with pytest.raises(ScoreError, match=r"got error 0.1 with 0 degrees"):
        welch_p_value(0.5, [(0.1, 0)])


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
    assert figure(Interval(-0.021, -0.055, 0.012, 10, 5)) == format_interval(-0.021, -0.055, 0.012)
    assert figure(None) == "–"
