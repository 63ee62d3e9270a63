"""Scores less what covariates explain inside prompts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from retrm.errors import DataError, ScoreError
from retrm.metrics import residual_scores, within_prompt_auroc

quick = settings(max_examples=40, deadline=None)


def table(n_prompts=20, n=5, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(n_prompts), n)
    return rng.normal(size=n_prompts * n), rng.normal(size=(n_prompts * n, 2)), ids


def test_residuals_of_a_small_table_by_hand():
    # a: scores 1, 3, 2 (less the mean 2: -1, 1, 0), covariate 0, 2, 1 (less 1: -1, 1, 0).
    # b: scores 0, 4 (-2, 2), covariate 5, 5 + 2 (-1, 1). Slope (1 + 1 + 0 + 2 + 2) / 4 = 1.5.
    # Residuals: a -1 + 1.5, 1 - 1.5, 0; b -2 + 1.5, 2 - 1.5.
    found = residual_scores([1, 3, 2, 0, 4], [[0], [2], [1], [5], [7]], ["a", "a", "a", "b", "b"])

    assert found == pytest.approx([0.5, -0.5, 0, -0.5, 0.5], abs=1e-9)


def test_residuals_are_those_of_a_regression_with_an_intercept_for_each_prompt():
    scores, covariates, ids = table()
    design = np.hstack([covariates, ids[:, None] == np.unique(ids)])
    oracle = LinearRegression(fit_intercept=False).fit(design, scores)

    assert residual_scores(scores, covariates, ids) == pytest.approx(
        scores - oracle.predict(design), abs=1e-8
    )


def test_a_score_that_is_only_length_is_worth_nothing_afterwards():
    rng = np.random.default_rng(3)
    length = np.log(rng.integers(20, 200, 60))
    labels, ids = np.tile([1, 0, 0], 20), np.repeat(np.arange(20), 3)
    scores = 1e4 - 3.7 * length + np.repeat(rng.normal(size=20), 3)
    left = residual_scores(scores, np.stack([length, rng.normal(size=60)], axis=1), ids)

    # Not rounding errors, whose order would be an AUROC of its own, but exact ties.
    assert within_prompt_auroc(scores, labels, ids).mean != 0.5
    assert (left == 0).all()
    assert within_prompt_auroc(left, labels, ids).mean == 0.5


def test_what_covariates_do_not_explain_stays():
    scores, covariates, ids = table(n_prompts=200)
    labels = (np.random.default_rng(1).random(1000) < 0.5).astype(float)
    seen = 3 * covariates[:, 0] + 2 * labels + 0.1 * scores

    before = within_prompt_auroc(seen, labels, ids).mean
    after = within_prompt_auroc(residual_scores(seen, covariates, ids), labels, ids).mean
    assert before < 0.8
    assert after > 0.99


@quick
@given(st.integers(0, 50), st.floats(-100, 100), st.floats(-5, 5))
def test_prompt_constants_and_multiples_of_covariates_change_nothing(seed, constant, slope):
    scores, covariates, ids = table(seed=seed)
    moved = scores + constant * ids + slope * covariates[:, 1]

    plain = residual_scores(scores, covariates, ids)
    assert residual_scores(moved, covariates, ids) == pytest.approx(plain, abs=1e-6)


@quick
@given(st.integers(0, 50), st.floats(1e-6, 1e6))
def test_units_and_copies_of_covariates_change_nothing(seed, unit):
    scores, covariates, ids = table(seed=seed)
    copied = np.hstack([covariates * unit, covariates[:, :1]])

    plain = residual_scores(scores, covariates, ids)
    assert residual_scores(scores, copied, ids) == pytest.approx(plain, abs=1e-7)


@quick
@given(st.integers(0, 50))
def test_residuals_are_zero_on_average_in_each_prompt_and_uncorrelated_with_covariates(seed):
    scores, covariates, ids = table(seed=seed)
    left = residual_scores(scores, covariates, ids)
    means = np.bincount(ids, left) / 5
    centred = covariates - (np.stack([np.bincount(ids, c) for c in covariates.T], axis=1) / 5)[ids]

    assert means == pytest.approx(0, abs=1e-9)
    assert left @ centred == pytest.approx(0, abs=1e-7)


def test_a_covariate_that_is_constant_inside_prompts_explains_nothing():
    scores, _, ids = table()
    constant = (0.1 * ids)[:, None]  # 0.1 x 3 and its mean differ by rounding, which must not steer

    centred = scores - (np.bincount(ids, scores) / 5)[ids]
    assert residual_scores(scores, constant, ids) == pytest.approx(centred, abs=1e-9)


def test_constant_scores_leave_zeros():
    assert residual_scores([2.0, 2.0], [[1.0], [5.0]], ["a", "a"]).tolist() == [0.0, 0.0]


def test_covariates_of_another_shape_are_refused():
    with pytest.raises(ScoreError, match=r"covariates of shape \(3, 1\) for 2 scores"):
        residual_scores([1, 2], [[1], [2], [3]], ["a", "a"])
    with pytest.raises(ScoreError, match=r"covariates of shape \(2,\) for 2 scores"):
        residual_scores([1, 2], [1, 2], ["a", "a"])
    with pytest.raises(ScoreError, match="inf at position 1 of covariate 1"):
        residual_scores([1, 2], [[1, 1], [2, np.inf]], ["a", "a"])
    with pytest.raises(DataError, match="got 1 prompt_ids for 2 rows"):
        residual_scores([1, 2], [[1], [2]], ["a"])
