"""Resamples that many statistics share, p-values of differences, averages inside resamples."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import DataError
from retrm.metrics import (
    AverageStatistic,
    DifferenceStatistic,
    Interval,
    Resamples,
    auroc_statistic,
    best_of_k_statistic,
    bootstrap_p_value,
    calibration_statistic,
    clustered_bootstrap,
    mean_statistic,
    paired_difference,
    within_prompt_auroc_statistic,
)

MAKERS = (
    auroc_statistic,
    within_prompt_auroc_statistic,
    best_of_k_statistic,
    calibration_statistic,
)
quick = settings(max_examples=40, deadline=None)


def table(n_prompts=40, n=6, seed=0):
    """Scores with ties, labels and prompt_ids of unequal difficulty."""
    rng = np.random.default_rng(seed)
    ids = np.repeat([f"p{i:03d}" for i in range(n_prompts)], n)
    labels = (rng.random(n_prompts * n) < np.repeat(rng.random(n_prompts), n)).astype(float)
    return np.round(rng.normal(size=len(labels)) + labels, 1), labels, ids


def plain_values(statistic, n_resamples, seed):
    """Values by drawing prompts one resample after the other."""
    n_prompts, rng = len(statistic.prompts), np.random.default_rng(seed)
    values = []
    for _ in range(n_resamples):
        counts = np.zeros((1, n_prompts))
        for prompt in rng.integers(0, n_prompts, size=n_prompts):
            counts[0, prompt] += 1
        values.append(statistic(counts)[0])
    return np.array(values)


@pytest.mark.parametrize("make", MAKERS)
def test_shared_resamples_give_to_the_bit_what_each_figure_gives_alone(make):
    scores, labels, ids = table()
    first, second = make(scores, labels, ids), make(-scores, labels, ids)
    shared = Resamples(first.prompts, 300, seed=4, level=0.9)
    options = {"n_resamples": 300, "seed": 4}

    assert shared.interval(first) == clustered_bootstrap(first, level=0.9, **options)
    assert shared.interval(second) == clustered_bootstrap(second, level=0.9, **options)
    assert shared.difference(first, second) == paired_difference(
        first, second, level=0.9, **options
    )
    assert shared.p_value(first, second) == bootstrap_p_value(first, second, **options)


def test_the_values_are_those_of_a_plain_loop_over_resamples():
    statistic = within_prompt_auroc_statistic(*table())
    found = Resamples(statistic.prompts, 50, seed=3).values(statistic)

    assert found == pytest.approx(plain_values(statistic, 50, 3), abs=1e-12)


def test_counts_that_are_too_many_to_keep_are_drawn_again_the_same(monkeypatch):
    statistic = within_prompt_auroc_statistic(*table())
    kept = Resamples(statistic.prompts, 200).interval(statistic)
    monkeypatch.setattr("retrm.metrics.intervals.HELD_CELLS", 0)
    monkeypatch.setattr("retrm.metrics.intervals.CHUNK_CELLS", 77)
    again = Resamples(statistic.prompts, 200)

    assert again.interval(statistic) == kept
    assert again.interval(statistic) == kept
    assert "_held" not in vars(again)


def test_prompts_are_drawn_once_for_many_statistics(monkeypatch):
    scores, labels, ids = table()
    drawn, original = [], Resamples._drawn
    monkeypatch.setattr(Resamples, "_drawn", lambda self: (drawn.append(1), original(self))[1])
    shared = Resamples(np.unique(ids))
    for make in MAKERS:
        shared.interval(make(scores, labels, ids))

    assert len(drawn) == 1


def test_a_prompt_drawn_more_often_than_a_byte_counts_is_counted_right(monkeypatch):
    class Always:
        """A generator that draws the first prompt every time."""

        def integers(self, low, high, size):
            return np.zeros(size, dtype=np.int64)

    monkeypatch.setattr("numpy.random.default_rng", lambda seed: Always())
    statistic = mean_statistic(np.arange(300.0), [f"p{i:03d}" for i in range(300)])
    counts = next(iter(Resamples(statistic.prompts, 2)._counts()))

    assert counts.max() == 300
    assert counts.sum(axis=1).tolist() == [300, 300]


def test_statistics_over_other_prompts_are_refused():
    with pytest.raises(DataError, match=r"different prompts \(2 and 1\)"):
        Resamples(np.array(["a", "b"])).interval(mean_statistic([1.0], ["a"]))


@pytest.mark.parametrize("options", [{"n_resamples": 0}, {"level": 1.0}, {"level": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(DataError, match="at least 1 resample and a level between 0 and 1"):
        Resamples(np.array(["a"]), **options)


# --------------------------------------------------------------------------------------- p-values


def test_p_value_of_a_difference_by_hand():
    # Two prompts, differences +1 and -3. A resample holds a twice (1), both (-1) or b twice (-3).
    first, second = mean_statistic([1.0, -3.0], ["a", "b"]), mean_statistic([0.0, 0], ["a", "b"])
    gaps = plain_values(DifferenceStatistic(first, second), 99, seed=5)
    above = int((gaps > 0).sum())

    assert set(np.round(gaps, 9)) == {1.0, -1.0, -3.0}
    # fewer lie above 0 than below: p = 2 (1 + above) / (1 + 99)
    assert above < 50
    assert bootstrap_p_value(first, second, n_resamples=99, seed=5) == pytest.approx(
        2 * (1 + above) / 100
    )


def test_p_value_of_a_sure_difference_is_the_smallest_there_is():
    _, labels, ids = table()
    first, second = mean_statistic(labels + 0.25, ids), mean_statistic(labels, ids)

    # none of 199 resamples reaches 0: 2 (1 + 0) / 200
    assert bootstrap_p_value(first, second, n_resamples=199) == pytest.approx(0.01)
    assert bootstrap_p_value(second, first, n_resamples=199) == pytest.approx(0.01)


def test_p_value_of_no_difference_is_one_although_rounding_differs():
    _, labels, ids = table()
    same = mean_statistic(labels, ids)
    noisy = mean_statistic(labels + 1e-15 * np.random.default_rng(0).normal(size=len(labels)), ids)

    assert bootstrap_p_value(same, same) == 1.0
    assert bootstrap_p_value(same, noisy) == 1.0


def test_p_values_of_no_effect_are_about_uniform():
    # 200 tables of 40 normal differences: about 10 p-values below .05 (binomial sd 3.1; the
    # percentile bootstrap runs a little short), and about 100 below one half (sd 7).
    rng = np.random.default_rng(1)
    ids = [f"p{i:02d}" for i in range(40)]
    zero = mean_statistic(np.zeros(40), ids)
    shared = Resamples(zero.prompts, 400)
    found = np.array(
        [shared.p_value(mean_statistic(rng.normal(size=40), ids), zero) for _ in range(200)]
    )

    assert 2 <= (found < 0.05).sum() <= 24
    assert 75 <= (found < 0.5).sum() <= 125


@quick
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=12), st.integers(0, 5))
def test_p_values_lie_between_zero_and_one_and_ignore_the_order_of_the_two(values, seed):
    ids = [f"p{i}" for i in range(len(values))]
    first, zero = mean_statistic(values, ids), mean_statistic(np.zeros(len(values)), ids)
    there, back = (
        bootstrap_p_value(a, b, n_resamples=50, seed=seed)
        for a, b in ((first, zero), (zero, first))
    )

    assert 0 < there <= 1
    assert there == back


@quick
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=12), st.integers(0, 5))
def test_a_small_p_value_and_an_interval_that_excludes_zero_go_together(values, seed):
    ids = [f"p{i}" for i in range(len(values))]
    first, zero = mean_statistic(values, ids), mean_statistic(np.zeros(len(values)), ids)
    shared = Resamples(first.prompts, 400, seed)
    interval, p = shared.difference(first, zero), shared.p_value(first, zero)

    # 400 resamples: an end lies at the 10th of them, so p is near .05 where the end is at 0
    if p < 0.04:
        assert interval.low > -1e-9 or interval.high < 1e-9
    if interval.low > 1e-9 or interval.high < -1e-9:
        assert p < 0.06


# ------------------------------------------------------------------------------ put together


def averages():
    scores, labels, ids = table()
    rng = np.random.default_rng(9)
    noise = [scores + rng.normal(size=len(scores)) for _ in range(5)]
    pooled = [auroc_statistic(s, labels, ids) for s in noise]
    within = [within_prompt_auroc_statistic(s, labels, ids) for s in noise]
    by_pair = [within_prompt_auroc_statistic(s, labels, ids, weighting="pair") for s in noise]
    return {
        "ratios over one denominator": within,
        "ratios over several": [*within, *by_pair],
        "no ratios": pooled,
        "of each kind": [*pooled, *within, *by_pair],
        "one": within[:1],
    }


@pytest.mark.parametrize("kind", list(averages()))
def test_the_average_is_that_of_a_plain_loop_over_members_and_resamples(kind):
    members = averages()[kind]
    average = AverageStatistic(tuple(members))
    plain = [plain_values(member, 60, seed=2) for member in members]

    found = Resamples(average.prompts, 60, seed=2).values(average)
    assert found == pytest.approx(np.mean(plain, axis=0), abs=1e-12)


def test_the_average_of_ratios_over_one_denominator_costs_one_evaluation():
    average = AverageStatistic(tuple(averages()["ratios over one denominator"]))
    mixed = AverageStatistic(tuple(averages()["of each kind"]))

    assert len(average._terms) == 1
    assert len(mixed._terms) == 5 + 2


def test_one_minus_the_mean_of_draws_is_paired_with_each_draw():
    scores, labels, ids = table()
    draws = [within_prompt_auroc_statistic(scores, labels, ids)] * 3

    # Minus the mean of three copies of itself: nothing is left in any resample.
    gap = paired_difference(draws[0], AverageStatistic(tuple(draws)))
    assert (gap.value, gap.low, gap.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_an_undefined_member_leaves_the_average_undefined():
    # One of two prompts has pairs; a resample of the other alone has none.
    member = within_prompt_auroc_statistic([1.0, 0, 1], [1, 0, 1], ["a", "a", "b"])
    found = AverageStatistic((member, member))(np.array([[0.0, 2], [1, 1]]))

    assert np.isnan(found[0])
    assert found[1] == 1.0


def test_a_difference_over_other_prompts_is_refused():
    with pytest.raises(DataError, match="different prompts"):
        DifferenceStatistic(mean_statistic([1.0], ["a"]), mean_statistic([1.0], ["b"]))


def test_an_interval_as_plain_json_rounds_figures_and_leaves_counts():
    interval = Interval(0.123456, 0.1, 0.99996, n=8, n_clusters=3, n_undefined=1)

    assert interval.as_dict() == asdict(interval)
    assert interval.as_dict(4) == {
        **{"value": 0.1235, "low": 0.1, "high": 1.0},
        **{"n": 8, "n_clusters": 3, "n_undefined": 1},
    }
