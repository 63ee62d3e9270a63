"""Stage 1 of ArmoRM: ridge on ratings that are partly missing, without intercept."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from retrm.errors import FitError, ShapeError
from retrm.fitting.rating_ridge import fit_ratings, sparse_ridge

NAN = float("nan")
H = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
Y = torch.tensor([[1.0, 0.2], [2.0, 0.4], [3.0, NAN]], dtype=torch.float64)


def test_a_hand_worked_ridge_is_reproduced():
    # Objective 0: X'X = [[2,1],[1,2]], X'y = (4,5). alpha 1: [[3,1],[1,3]] w = (4,5), so
    # w = (12-5, 15-4)/8 = (0.875, 1.375). Objective 1 has rows 0 and 1 only: X'X = I, w = y/2.
    weights = sparse_ridge(H, Y, [1.0, 0.1])

    assert weights[0, 0].tolist() == pytest.approx([0.875, 1.375], abs=1e-12)
    assert weights[0, 1].tolist() == pytest.approx([0.1, 0.2], abs=1e-12)
    # alpha 0.1: determinant 2.1^2 - 1 = 3.41; w = (8.4-5, 10.5-4)/3.41; objective 1: y / 1.1.
    assert weights[1, 0].tolist() == pytest.approx([3.4 / 3.41, 6.5 / 3.41], abs=1e-12)
    assert weights[1, 0].tolist() == pytest.approx([0.997067, 1.906158], abs=1e-6)
    assert weights[1, 1].tolist() == pytest.approx([0.181818, 0.363636], abs=1e-6)
    reward = weights[0] @ torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert reward.tolist() == pytest.approx([3.125, 0.4], abs=1e-12)


def test_a_row_without_the_rating_changes_nothing_of_that_objective():
    h = torch.cat([H, torch.tensor([[5.0, -3.0]])])
    y = torch.cat([Y, torch.tensor([[0.5, NAN]], dtype=torch.float64)])
    before, after = sparse_ridge(H, Y, [1.0]), sparse_ridge(h, y, [1.0])

    assert torch.equal(before[0, 1], after[0, 1])
    assert not torch.allclose(before[0, 0], after[0, 0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.8), st.integers(1, 6), st.sampled_from([5, 15, 40]))
def test_every_objective_equals_scikit_learn_on_its_rated_rows(
    seed, share_missing, n_objectives, n_features
):
    # 5 features: fewer than rows; 15: in between, by objective; 40: more than rows.
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(30, n_features))
    y = generator.normal(size=(30, n_objectives))
    y[2:][generator.random((28, n_objectives)) < share_missing] = np.nan
    weights = sparse_ridge(torch.tensor(x), torch.tensor(y), [0.3, 30.0])

    for a, alpha in enumerate((0.3, 30.0)):
        for k in range(n_objectives):
            known = ~np.isnan(y[:, k])
            plain = Ridge(alpha=alpha, fit_intercept=False).fit(x[known], y[known, k])
            np.testing.assert_allclose(weights[a, k], plain.coef_, atol=1e-9)


def test_few_rows_and_a_tiny_alpha_still_give_the_ridge_solution():
    x = 1e4 * torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([x, x])
    y = torch.tensor([[1.0], [2.0], [3.0]] * 2, dtype=torch.float64)
    weights = sparse_ridge(x, y, [1e-10])

    # Twice the same three rows and more features than rows: the fit goes through all of them.
    np.testing.assert_allclose(x @ weights[0, 0], y[:, 0], atol=1e-4)


def _planted(n=120, noise=0.05):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 4, generator=generator)
    y = x.double() @ torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 0.0]]).double()
    return x, y + noise * torch.randn(n, 2, generator=generator).double()


def test_alpha_is_that_of_the_lowest_error_on_the_validation_rows():
    x, y = _planted()
    fit, validation = torch.arange(80), torch.arange(80, 120)
    grid = [1e-2, 1.0, 1e2, 1e4]
    found = fit_ratings(x, y, fit, validation, grid)

    for k, one in enumerate(found):
        errors = []
        for alpha in grid:
            plain = Ridge(alpha=alpha, fit_intercept=False).fit(x[fit], y[fit, k])
            errors.append(
                ((x[validation].numpy() @ plain.coef_ - y[validation, k].numpy()) ** 2).mean()
            )
        assert one.alpha == grid[int(np.argmin(errors))]
        assert one.mse == pytest.approx(min(errors), rel=1e-5)
        assert one.mse < one.mean_mse
        # The mean that it is held against is of the rows it was fitted on.
        of_mean = (y[validation, k] - y[fit, k].mean()).square().mean()
        assert one.mean_mse == pytest.approx(float(of_mean))
        assert one.spearman > 0.9
        assert (one.n_fit, one.n_validation, one.is_last) == (80, 40, False)


def test_labels_that_features_do_not_explain_take_the_last_alpha_and_say_so():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, 30, generator=generator)
    y = torch.randn(60, 1, generator=generator).double()
    one = fit_ratings(x, y, torch.arange(40), torch.arange(40, 60), [1e-4, 1e4])[0]

    assert one.is_last
    assert one.alpha == 1e4


def test_of_alphas_with_the_same_error_the_largest_is_taken():
    # Rated rows whose features are 0 give w = 0 at every alpha, so every error is that of 0.
    x = torch.zeros(6, 2)
    y = torch.tensor([[0.2], [0.4], [0.6], [0.8], [0.1], [0.3]], dtype=torch.float64)
    one = fit_ratings(x, y, torch.arange(4), torch.arange(4, 6), [1.0, 0.1, 10.0])[0]

    assert (one.alpha, one.is_last) == (10.0, True)
    assert one.mse == pytest.approx((0.01 + 0.09) / 2)
    assert one.spearman is None


@pytest.mark.parametrize(("scale", "alpha"), [(1.0, 1e-4), (1e4, 1e-4), (1e5, 1e-3), (1e4, 1e-10)])
def test_fewer_rows_than_large_features_give_the_ridge_solution_on_other_rows_too(scale, alpha):
    # w = V s / (s^2 + alpha) U'y lies in the span of the rows. Rounding of X'X is not in it, and
    # divided by a small alpha it would show on rows that were not fitted.
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(20, 60, generator=generator, dtype=torch.float64)
    x = torch.cat([x, x[:5]])
    y = torch.rand(25, 2, generator=generator, dtype=torch.float64)
    y[20:] = y[:5]
    y[10:15, 1] = NAN
    other = scale * torch.randn(50, 60, generator=generator, dtype=torch.float64)
    weights = sparse_ridge(x, y, [alpha])[0]

    for k in range(2):
        known = ~torch.isnan(y[:, k])
        u, s, vt = torch.linalg.svd(x[known], full_matrices=False)
        is_real = s > 1e-9 * s.max()
        plain = vt.T @ (torch.where(is_real, s / (s**2 + alpha), 0.0) * (u.T @ y[known, k]))
        np.testing.assert_allclose(other @ weights[k], other @ plain, atol=1e-6)


def test_objectives_without_ratings_with_few_and_with_many_stand_side_by_side():
    # 0, 2 and 6 rated rows of 3 features: no weights, X'(XX' + I)^-1 y and (X'X + I)^-1 X'y.
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y = torch.rand(6, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    y[:, 0] = NAN
    y[2:, 1] = NAN
    weights = sparse_ridge(x, y, [1.0])[0]

    assert not weights[0].any()
    for k, n in ((1, 2), (2, 6)):
        plain = Ridge(alpha=1.0, fit_intercept=False).fit(x[:n], y[:n, k])
        np.testing.assert_allclose(weights[k], plain.coef_, atol=1e-12)


def test_features_that_are_not_finite_are_refused_with_their_row():
    h = H.clone()
    h[1, 0] = float("inf")
    with pytest.raises(FitError, match="row 1"):
        sparse_ridge(h, Y, [1.0])


def test_ratings_of_another_number_of_rows_are_refused():
    with pytest.raises(ShapeError, match=r"\(rows, objectives\)"):
        sparse_ridge(H, Y[:2], [1.0])


def test_an_alpha_of_zero_is_refused():
    with pytest.raises(FitError, match="above 0"):
        sparse_ridge(H, Y, [0.0])
