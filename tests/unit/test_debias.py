"""The share of predicted verbosity that objectives lose."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from retrm.errors import ShapeError
from retrm.fitting.debias import find_lambdas
from retrm.heads.mixture import transform_of
from retrm.metrics.ranks import spearman

VERBOSITY = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
A = np.array([0.311, 0.234, 0.423, 0.356, 0.547, 0.388, 0.472, 0.561])
B = np.array([0.9, 0.85, 0.7, 0.8, 0.6, 0.65, 0.5, 0.55])


def test_the_worked_search_gives_its_lambdas():
    # 6 sum d^2 / (n (n^2-1)) with n = 8: 1 - 6 * 16 / 504 = 0.8095 at 0 for a.
    scores = np.column_stack([A, B, 2 * VERBOSITY, VERBOSITY])
    found = find_lambdas(scores, 3)

    assert found.lambdas.tolist() == [0.4, 0.0, 1.0, 1.0]
    assert found.before == pytest.approx([0.8095, -0.9286, 1.0, 1.0], abs=1e-4)
    assert found.after[0] == pytest.approx(-0.1905, abs=1e-4)
    assert found.unresolved == (2,)
    # 2 r_v - r_v is r_v: still wholly verbosity.
    assert found.after[2] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 0.8095), (0.2, 0.4048), (0.3, 0.1429), (0.35, 0.1429), (0.4, -0.1905)],
)
def test_the_worked_correlations_are_reproduced(share, expected):
    assert spearman(A - share * VERBOSITY, VERBOSITY) == pytest.approx(expected, abs=1e-4)


def test_the_worked_transform_lets_the_short_answer_win():
    matrix = transform_of(torch.tensor([0.3, 0.5, 1.0], dtype=torch.float64), 2).numpy()
    gate = np.array([0.5, 0.3, 0.2])
    chosen, rejected = np.array([0.8, 0.6, 0.4]), np.array([0.7, 0.5, 0.9])

    assert matrix.tolist() == [[1, 0, 0], [0, 1, 0], [-0.3, -0.5, 0]]
    assert chosen @ matrix == pytest.approx([0.68, 0.40, 0.0])
    assert rejected @ matrix == pytest.approx([0.43, 0.05, 0.0])
    # 0.5 * 0.68 + 0.3 * 0.4 = 0.46 and 0.5 * 0.43 + 0.3 * 0.05 = 0.23; raw: 0.66 against 0.68.
    assert gate @ (chosen @ matrix) == pytest.approx(0.46)
    assert gate @ (rejected @ matrix) == pytest.approx(0.23)
    assert matrix @ gate == pytest.approx([0.5, 0.3, -0.3])
    assert gate @ chosen < gate @ rejected


def test_a_higher_threshold_stops_the_search_earlier():
    scores = np.column_stack([A, VERBOSITY])

    assert find_lambdas(scores, 1, threshold=0.2).lambdas[0] == 0.3
    assert find_lambdas(scores, 1, threshold=0.9).lambdas[0] == 0.0


def test_an_objective_at_the_threshold_itself_is_left_alone():
    # Ranks of (1, 2, 3) and (1, 3, 2): 1 - 6 * 2 / 24 = 0.5. The next candidate would be 0.01.
    scores = np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 2.0]])
    rho = spearman(scores[:, 0], scores[:, 1])

    assert rho == pytest.approx(0.5)
    assert find_lambdas(scores, 1, threshold=rho).lambdas[0] == 0.0
    assert find_lambdas(scores, 1, threshold=rho - 1e-6).lambdas[0] > 0.0


def test_candidates_are_tried_from_the_smallest_in_whatever_order_they_come():
    # At 0.3 the correlation of a is 0.1429, at 0.4 it is -0.1905.
    found = find_lambdas(
        np.column_stack([A, VERBOSITY]), 1, candidates=(0.95, 0.4, 0.3, 0.0), threshold=0.03
    )

    assert found.lambdas[0] == 0.4


def test_what_is_left_of_an_unresolved_objective_is_that_of_lambda_one():
    # a keeps 0.8095 at 0 and 0.4048 at 0.2; less all of the verbosity it falls: a - r_v has ranks
    # 7, 6, 8, 5, 4 (0.047), 3, 2, 1 against 1 to 8, but for the first two and the third: below 0.
    found = find_lambdas(np.column_stack([A, VERBOSITY]), 1, candidates=(0.0, 0.2))

    assert (found.unresolved, found.lambdas[0]) == ((0,), 1.0)
    assert found.after[0] == pytest.approx(spearmanr(A - VERBOSITY, VERBOSITY).statistic)
    assert found.after[0] < 0 < found.before[0]


def test_a_constant_objective_follows_nothing():
    found = find_lambdas(np.column_stack([np.full(8, 0.5), VERBOSITY]), 1)

    assert found.lambdas.tolist() == [0.0, 1.0]
    assert found.unresolved == ()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-1.0, 1.0))
def test_after_the_transform_no_resolved_objective_rises_with_verbosity(seed, along):
    generator = np.random.default_rng(seed)
    nuisance = generator.normal(size=60)
    scores = np.column_stack([along * nuisance + generator.normal(size=60), nuisance])
    found = find_lambdas(scores, 1)
    left = scores @ transform_of(torch.tensor(found.lambdas), 1).numpy()

    assert (left[:, 1] == 0).all()
    if not found.unresolved:
        assert spearmanr(left[:, 0], nuisance).statistic <= 0.03 + 1e-12
    np.testing.assert_allclose(left[:, 0], scores[:, 0] - found.lambdas[0] * nuisance, atol=1e-12)


def test_an_objective_that_is_not_there_is_refused():
    with pytest.raises(ShapeError, match="0 to 1"):
        find_lambdas(np.zeros((4, 2)), 2)


def test_rank_correlation_gives_ties_the_mean_of_their_ranks():
    x, y = [1, 1, 2, 3], [4, 2, 2, 5]

    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert np.isnan(spearman([1, 1], [1, 2]))
