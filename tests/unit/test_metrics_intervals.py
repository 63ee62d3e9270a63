"""Resamples that many statistics share, averages inside resamples."""

from dataclasses import asdict

import numpy as np
import pytest

from retrm.errors import DataError
from retrm.metrics import (
    AverageStatistic,
    DifferenceStatistic,
    Interval,
    Resamples,
    auroc_statistic,
    best_of_k_statistic,
    clustered_bootstrap,
    mean_statistic,
    paired_difference,
    within_prompt_auroc_statistic,
)

MAKERS = (
    auroc_statistic,
    within_prompt_auroc_statistic,
    best_of_k_statistic,
)


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
