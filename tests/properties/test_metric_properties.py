"""Invariants of metrics over random tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.metrics import (
    auroc,
    auroc_statistic,
    best_of_n,
    clustered_bootstrap,
    expected_best_of_k,
    mean_statistic,
    paired_difference,
    subset_weights,
    within_prompt_auroc,
)

rows = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, 3)), min_size=2, max_size=40
)
quick = settings(max_examples=50, deadline=None)


def columns(table):
    scores, labels, prompts = (np.array(column) for column in zip(*table, strict=True))
    return scores.astype(float), labels.astype(float), [f"p{p}" for p in prompts]


def has_both(table):
    return {label for _, label, _ in table} == {0, 1}


def has_mixed_prompt(table):
    return any(a[2] == b[2] and a[1] != b[1] for a in table for b in table)


@quick
@given(rows.filter(has_both))
def test_auroc_is_the_share_of_pairs_by_a_plain_double_loop(table):
    scores, labels, _ = columns(table)
    gaps = scores[labels == 1][:, None] - scores[labels == 0][None]
    assert auroc(scores, labels) == pytest.approx(((gaps > 0) + 0.5 * (gaps == 0)).mean())


@quick
@given(rows.filter(has_both))
def test_auroc_of_minus_the_scores_is_its_complement(table):
    scores, labels, _ = columns(table)
    assert auroc(scores, labels) + auroc(-scores, labels) == pytest.approx(1.0)


@quick
@given(rows.filter(has_both))
def test_increasing_maps_change_no_ranking_metric(table):
    scores, labels, ids = columns(table)
    mapped = np.exp(scores) * 3 - 7
    assert auroc(mapped, labels) == auroc(scores, labels)
    assert best_of_n(mapped, labels, ids) == best_of_n(scores, labels, ids)


@quick
@given(rows, st.randoms(use_true_random=False))
def test_row_order_changes_nothing(table, random):
    shuffled = table.copy()
    random.shuffle(shuffled)
    before, after = (best_of_n(*columns(t)) for t in (table, shuffled))
    assert after.value == pytest.approx(before.value)
    assert after.n_tied == before.n_tied


@quick
@given(rows.filter(has_mixed_prompt))
def test_a_shift_per_prompt_does_not_change_within_prompt_auroc(table):
    scores, labels, ids = columns(table)
    shifted = scores + np.array([10.0 * int(i[1:]) for i in ids])
    assert within_prompt_auroc(shifted, labels, ids) == within_prompt_auroc(scores, labels, ids)


@quick
@given(st.integers(1, 80))
def test_subset_weights_are_distributions(n):
    assert np.allclose(subset_weights(n).sum(axis=1), 1, atol=1e-12)


@quick
@given(rows)
def test_best_of_one_is_a_random_pick_and_best_of_all_the_top(table):
    scores, labels, _ = columns(table)
    curve = expected_best_of_k(scores, labels)
    assert curve[0] == pytest.approx(labels.mean())
    assert curve[-1] == pytest.approx(labels[scores == scores.max()].mean())


@quick
@given(rows)
def test_a_perfect_scorer_never_gets_worse_with_more_candidates(table):
    _, labels, _ = columns(table)
    assert (np.diff(expected_best_of_k(labels, labels)) >= -1e-12).all()


@quick
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(-3, 3))
def test_a_constant_difference_has_width_zero(values, constant):
    ids = [f"p{i % 5}" for i in range(len(values))]
    first = mean_statistic(np.array(values) + constant, ids)
    interval = paired_difference(first, mean_statistic(values, ids), n_resamples=50)
    assert interval.low == pytest.approx(constant, abs=1e-9)
    assert interval.high == pytest.approx(constant, abs=1e-9)


@quick
@given(rows.filter(has_mixed_prompt), st.integers(0, 3))
def test_an_interval_lies_inside_the_range_of_the_metric(table, seed):
    statistic = auroc_statistic(*columns(table))
    interval = clustered_bootstrap(statistic, n_resamples=30, seed=seed)
    assert 0 <= interval.low <= interval.high <= 1
