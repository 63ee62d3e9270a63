"""Closed-form least squares against worked examples, scikit-learn and explicit rows and pairs."""

import math

import numpy as np
import pytest
import torch
from least_squares import mean_squared_error, projected, ridge_path, within_prompts
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from retrm.errors import FitError, LabelError, ShapeError
from retrm.fitting import ridge
from retrm.fitting.convex import LAMBDA_GRID, pairs_within_prompts
from retrm.fitting.ridge import (
    Moments,
    choose_ridge,
    project_all,
    project_many,
)

FIELDS = ("weight", "x", "y", "xx", "xy", "yy")


def planted(n, width, seed=0, n_per_prompt=5):
    """Correlated features of different scales and offsets (float64), noisy labels, prompt_ids."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) / math.sqrt(width)
    features = features * np.exp(rng.normal(size=width)) + 3 * rng.normal(size=width)
    signal = (features - features.mean(0)) @ rng.normal(size=width)
    labels = (rng.random(n) < 1 / (1 + np.exp(-2 * signal / signal.std()))).astype(float)
    ids = np.array([f"p{row // n_per_prompt}" for row in range(n)])
    return torch.tensor(features), labels, ids


def random_basis(width, m, seed=0):
    noise = np.random.default_rng(seed).normal(size=(width, m))
    return torch.tensor(np.linalg.qr(noise)[0])


def exact(moments, lam, *, standardise=True, has_intercept=True):
    """Weight in float64, before a fit rounds it, and the intercept."""
    path = ridge._solve(moments, [lam], standardise, has_intercept)
    return path.weights[0].numpy(), path.biases[0].item()


def assert_same_moments(first, second, rel=1e-11):
    for name in FIELDS:
        a, b = (torch.as_tensor(getattr(m, name), dtype=torch.float64) for m in (first, second))
        size = max(a.abs().max().item(), b.abs().max().item())
        assert (a - b).abs().max().item() <= rel * size, name


def explicit_pairs(features, labels, ids):
    """(differences, weight of each where every prompt counts the same), by two plain loops."""
    deltas, weights = [], []
    for prompt in dict.fromkeys(ids):
        rows = np.flatnonzero(ids == prompt)
        right, wrong = rows[labels[rows] == 1], rows[labels[rows] == 0]
        for i in right:
            for j in wrong:
                deltas.append(features[i].numpy() - features[j].numpy())
                weights.append(1 / (len(right) * len(wrong)))
    return np.array(deltas), np.array(weights)


# ------------------------------------------------------------------ worked by hand


def test_a_line_through_four_points_by_hand():
    # x = 0 1 2 3, y = 0 0 1 1: mean_x 3/2, variance 5/4, mean_y 1/2,
    # covariance (2 + 3)/4 - 3/2 x 1/2 = 1/2. standard slope s = (1/2)/sd, with penalty s/(1 + lam),
    # raw s/sd/(1 + lam) = (1/2)/(5/4)/(1 + lam) = 0.4/(1 + lam); b = 1/2 - 3/2 w.
    moments = Moments.of(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), [0, 0, 1, 1])
    weak, strong = ridge_path(moments, [1e-12, 1.0])
    assert (weak.weight.item(), weak.bias) == pytest.approx((0.4, -0.1))
    assert (strong.weight.item(), strong.bias) == pytest.approx((0.2, 0.2))
    # residuals of 0.2 + 0.2 x: -.2 -.4 .4 .2, mean square (.04 + .16 + .16 + .04)/4 = 0.1
    assert mean_squared_error(moments, strong) == pytest.approx(0.1)


def test_without_standardising_lam_acts_on_the_raw_slope_by_hand():
    # as above, (covariance)/(variance + lam) = 0.5/(1.25 + 1.25) = 0.2
    moments = Moments.of(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), [0, 0, 1, 1])
    fit = ridge_path(moments, [1.25], standardise=False)[0]
    assert fit.weight.item() == pytest.approx(0.2)


def test_the_sums_of_weighted_rows_by_hand():
    # rows (1, 2), (3, -1) with y = 1, -2 and w = 2, 1
    moments = Moments.of(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), [1, -2], weights=[2, 1])
    assert (moments.weight, moments.y, moments.yy) == (3.0, 0.0, 6.0)
    assert moments.x.tolist() == [5.0, 3.0]  # 2 (1, 2) + (3, -1)
    # 2 [1 2; 2 4] + [9 -3; -3 1]
    assert torch.allclose(moments.xx, torch.tensor([[11.0, 1.0], [1.0, 9.0]]).double())
    assert moments.xy.tolist() == [-4.0, 6.0]  # 2 (1, 2) - 2 (3, -1)


def test_the_sums_of_pairs_by_hand():
    # prompt a: right 3, wrong 1 and 2: differences 2 and 1, weight 1/2 each: xx = 5/2, xy = 3/2
    # prompt b: right 4, wrong 0: difference 4: xx = 16, xy = 4; prompt c has no wrong answer
    features = torch.tensor([[3.0], [1.0], [2.0], [4.0], [0.0], [9.0]])
    labels, ids = [1, 0, 0, 1, 0, 1], ["a", "a", "a", "b", "b", "c"]
    by_prompt = within_prompts(features, labels, ids)
    assert (by_prompt.weight, by_prompt.yy) == (2.0, 2.0)
    assert by_prompt.xx.item() == pytest.approx(18.5)
    assert by_prompt.xy.item() == pytest.approx(5.5)
    # every pair counts 1: xx = 4 + 1 + 16, xy = 2 + 1 + 4
    by_pair = within_prompts(features, labels, ids, weighting="pair")
    assert (by_pair.weight, by_pair.yy) == (3.0, 3.0)
    assert (by_pair.xx.item(), by_pair.xy.item()) == pytest.approx((21.0, 7.0))
    # mean square of differences 21/3, mean 7/3: slope (7/3)/7/(1 + lam) = 1/3/2 at lam = 1
    fit = ridge_path(by_pair, [1.0], has_intercept=False)[0]
    assert (fit.weight.item(), fit.bias) == (pytest.approx(1 / 6), 0.0)
    # mean of (1 - d/6)^2 over d = 2, 1, 4: (16 + 25 + 4)/36/3 = 5/12
    assert mean_squared_error(by_pair, fit) == pytest.approx(5 / 12)


# ------------------------------------------------------------------ against others


@pytest.mark.parametrize("lam", [1e-4, 1e-1, 1e2])
@pytest.mark.parametrize(("n", "width"), [(200, 3), (120, 40), (40, 90)])
def test_rows_give_what_scikit_learn_gives(n, width, lam):
    # scikit-learn minimises sum w (y - f)^2 + alpha |w|^2, so alpha = lam sum w
    features, labels, _ = planted(n, width, seed=n)
    weights = np.random.default_rng(1).uniform(0.2, 3.0, n)
    scaler = StandardScaler().fit(features.numpy(), sample_weight=weights)
    model = Ridge(alpha=lam * weights.sum(), solver="svd")
    model.fit(scaler.transform(features.numpy()), labels, sample_weight=weights)
    moments = Moments.of(features, labels, weights=weights)
    weight, bias = exact(moments, lam)
    scores = features.numpy() @ weight + bias
    expected = model.predict(scaler.transform(features.numpy()))
    assert np.abs(scores - expected).max() < 1e-8
    fit = ridge_path(moments, [lam])[0]
    assert fit.weight.dtype == torch.float32
    rounded = features.numpy() @ fit.weight.double().numpy() + fit.bias
    assert np.abs(rounded - expected).max() < 1e-4


@pytest.mark.parametrize("has_intercept", [True, False])
def test_unstandardised_rows_give_what_scikit_learn_gives(has_intercept):
    features, labels, _ = planted(80, 12)
    model = Ridge(alpha=0.3 * 80, fit_intercept=has_intercept, solver="svd")
    expected = model.fit(features.numpy(), labels).predict(features.numpy())
    moments = Moments.of(features, labels)
    weight, bias = exact(moments, 0.3, standardise=False, has_intercept=has_intercept)
    assert np.abs(features.numpy() @ weight + bias - expected).max() < 1e-9
    assert (bias == 0.0) is not has_intercept


def test_without_intercept_features_are_scaled_to_unit_mean_square():
    features, labels, _ = planted(80, 6)
    size = np.sqrt((features.numpy() ** 2).mean(0))
    model = Ridge(alpha=0.3 * 80, fit_intercept=False, solver="svd")
    model.fit(features.numpy() / size, labels)
    weight, _ = exact(Moments.of(features, labels), 0.3, has_intercept=False)
    assert weight == pytest.approx(model.coef_ / size, rel=1e-8)


@pytest.mark.parametrize("weighting", ["prompt", "pair"])
def test_moments_of_pairs_equal_all_explicit_pairs(weighting):
    features, labels, ids = planted(90, 7, n_per_prompt=6)
    n_right = [int(labels[ids == p].sum()) for p in dict.fromkeys(ids)]
    assert len({k for k in n_right if 0 < k < 6}) > 2  # lopsided prompts, where weights matter
    deltas, weights = explicit_pairs(features, labels, ids)
    weights = weights if weighting == "prompt" else np.ones(len(weights))
    moments = within_prompts(features, labels, ids, weighting=weighting)
    assert moments.weight == pytest.approx(weights.sum())
    assert moments.yy == pytest.approx(weights.sum())
    assert np.allclose(moments.xx, deltas.T @ (weights[:, None] * deltas), rtol=1e-10, atol=1e-10)
    assert np.allclose(moments.xy, deltas.T @ weights, rtol=1e-10, atol=1e-10)
    assert (moments.y, moments.x.abs().max().item()) == (0.0, 0.0)
    model = Ridge(alpha=0.1 * weights.sum(), fit_intercept=False, solver="svd")
    model.fit(deltas, np.ones(len(deltas)), sample_weight=weights)
    weight, _ = exact(moments, 0.1, standardise=False, has_intercept=False)
    assert weight == pytest.approx(model.coef_, rel=1e-8, abs=1e-10)


def test_pairs_are_rows_of_differences_and_of_their_negatives():
    features, _, _ = planted(20, 4)
    chosen, rejected, weights = [0, 3, 7, 3], [1, 2, 9, 5], [1.0, 2.0, 0.5, 0.0]
    deltas = features[chosen] - features[rejected]
    both = torch.cat([deltas, -deltas])
    halves = np.tile(weights, 2) / 2
    rows = Moments.of(both, [1] * 4 + [-1] * 4, weights=halves)
    pairs = Moments.of_pairs(features, chosen, rejected, weights=weights)
    assert pairs.weight == 3.5
    for name in ("weight", "xx", "xy", "yy"):
        assert np.allclose(getattr(pairs, name), getattr(rows, name), rtol=1e-12)
    assert (pairs.y, pairs.x.tolist()) == (0.0, [0.0] * 4)


@pytest.mark.parametrize("standardise", [True, False])
def test_moments_of_pairs_have_no_intercept_asked_for_or_not(standardise):
    features, labels, ids = planted(60, 5)
    moments = within_prompts(features, labels, ids)
    asked, unasked = (
        exact(moments, 0.1, standardise=standardise, has_intercept=has_intercept)
        for has_intercept in (True, False)
    )
    assert asked[0] == pytest.approx(unasked[0], rel=1e-10)
    assert asked[1] == unasked[1] == 0.0


def test_the_error_from_sums_is_the_error_over_rows():
    features, labels, _ = planted(60, 5)
    weights = np.random.default_rng(0).uniform(size=60)
    fit = ridge_path(Moments.of(features, labels), [0.1])[0]
    residuals = labels - features.numpy() @ fit.weight.double().numpy() - fit.bias
    expected = np.average(residuals**2, weights=weights)
    held_out = Moments.of(features, labels, weights=weights)
    assert mean_squared_error(held_out, fit) == pytest.approx(expected, rel=1e-10)


def test_weights_count_rows_like_copies_do():
    features, labels, _ = planted(60, 4)
    counts = np.arange(60) % 3
    copied = torch.repeat_interleave(features, torch.tensor(counts), dim=0)
    weighted = Moments.of(features, labels, weights=counts)
    assert_same_moments(weighted, Moments.of(copied, np.repeat(labels, counts)))


# ------------------------------------------------------------------ sums of blocks


@pytest.mark.parametrize("chunk_rows", [1, 7, 89, 90, 1000])
def test_chunks_do_not_change_the_sums(chunk_rows):
    features, labels, ids = planted(90, 6)
    pairs = pairs_within_prompts(labels, ids)
    makers = [
        lambda rows: Moments.of(features, labels, chunk_rows=rows),
        lambda rows: Moments.of_pairs(features, pairs.chosen, pairs.rejected, chunk_rows=rows),
    ]
    for make in makers:
        assert_same_moments(make(chunk_rows), make(4096))


def test_blocks_add_up_to_the_whole():
    features, labels, ids = planted(90, 6, n_per_prompt=2)
    blocks = [slice(0, 20), slice(20, 60), slice(60, 90)]
    rows = [Moments.of(features[b], labels[b]) for b in blocks]
    assert_same_moments(Moments.total(rows), Moments.of(features, labels))
    within = [within_prompts(features[b], labels[b], ids[b]) for b in blocks]
    assert_same_moments(Moments.total(within), within_prompts(features, labels, ids))


def test_adding_up_leaves_the_blocks_as_they_were():
    features, labels, _ = planted(20, 3)
    block = Moments.of(features, labels)
    before = block.xx.clone()
    Moments.total([block, block])
    ridge_path(block, [0.1])
    choose_ridge([block, block], [0.1])
    assert torch.equal(block.xx, before)


# ------------------------------------------------------------------ projections


@pytest.mark.parametrize("has_intercept", [True, False])
@pytest.mark.parametrize("standardise", [True, False])
def test_projecting_then_fitting_equals_fitting_projected_features(standardise, has_intercept):
    features, labels, _ = planted(120, 30)
    basis = random_basis(30, 6) * torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
    moved = projected(Moments.of(features, labels), basis)
    direct = Moments.of(features @ basis, labels)
    assert_same_moments(moved, direct)
    options = {"standardise": standardise, "has_intercept": has_intercept}
    first, second = (exact(moments, 1e-3, **options) for moments in (moved, direct))
    assert np.abs(first[0] - second[0]).max() < 1e-8
    assert abs(first[1] - second[1]) < 1e-8


def test_projecting_pairs_equals_pairs_of_projected_features():
    features, labels, ids = planted(60, 12)
    basis = random_basis(12, 4)
    assert_same_moments(
        projected(within_prompts(features, labels, ids), basis),
        within_prompts(features @ basis, labels, ids),
    )


def test_many_bases_at_once_equal_one_after_the_other():
    features, labels, _ = planted(90, 10)
    blocks = [Moments.of(features[i::3], labels[i::3]) for i in range(3)]
    bases = [random_basis(10, m, seed=m) for m in (1, 4, 10)]
    many = project_many(blocks, bases)
    assert [len(by_block) for by_block in many] == [3, 3, 3]
    for basis, by_block in zip(bases, many, strict=True):
        for block, one, other in zip(blocks, by_block, project_all(blocks, basis), strict=True):
            by_hand = (basis.T @ block.xx @ basis).numpy()
            assert np.allclose(one.xx, by_hand, rtol=1e-12, atol=1e-12)
            assert_same_moments(one, other)
            assert torch.allclose(one.magnitude, other.magnitude)


def test_without_standardising_every_orthogonal_basis_gives_the_same_scores():
    features, labels, ids = planted(100, 12)
    turn = random_basis(12, 12)
    for moments in (
        Moments.of(features, labels),
        within_prompts(features, labels, ids),
    ):
        plain, bias = exact(moments, 0.1, standardise=False)
        turned, turned_bias = exact(projected(moments, turn), 0.1, standardise=False)
        scores = features.numpy() @ plain + bias
        turned_scores = (features @ turn).numpy() @ turned + turned_bias
        assert np.abs(scores - turned_scores).max() < 1e-8


def test_standardising_makes_scores_depend_on_the_basis():
    # so that the invariance above is not one of everything
    features, labels, _ = planted(100, 12)
    moments, turn = Moments.of(features, labels), random_basis(12, 12)
    scores = features.numpy() @ exact(moments, 0.1)[0]
    turned = (features @ turn).numpy() @ exact(projected(moments, turn), 0.1)[0]
    assert np.abs(scores - scores.mean() - turned + turned.mean()).max() > 1e-3


def test_directions_without_variance_are_constant_after_projection_too():
    # x has no part along u, but is large elsewhere: u'x is rounding, 1e-13 of x.
    rng = np.random.default_rng(0)
    basis = random_basis(12, 12)
    features = torch.tensor(1e3 + rng.normal(size=(200, 12)))
    features = features - (features @ basis[:, :8]) @ basis[:, :8].T
    labels = rng.integers(0, 2, 200)
    fit = ridge_path(projected(Moments.of(features, labels), basis[:, :10]), [1e-4])[0]
    assert (fit.n_constant, fit.weight[:8].tolist()) == (8, [0.0] * 8)
    assert fit.weight[8:].abs().min().item() > 0


# ------------------------------------------------------------------ paths and choices


def test_a_path_gives_what_single_fits_give_in_the_order_asked():
    features, labels, _ = planted(100, 12)
    moments, lams = Moments.of(features, labels), (1e-2, 10.0, 1e-3, 1e-2)
    path = ridge_path(moments, lams)
    assert tuple(fit.lam for fit in path) == lams
    for fit in path:
        single = ridge_path(moments, [fit.lam])[0]
        assert torch.allclose(fit.weight, single.weight, rtol=1e-6)
        assert fit.bias == pytest.approx(single.bias, rel=1e-6)
        assert not fit.is_at_end


@pytest.mark.parametrize("kind", ["rows", "pairs"])
@pytest.mark.parametrize("seed", range(4))
def test_lam_is_chosen_by_weighted_held_out_error_as_with_explicit_rows(kind, seed):
    features, labels, ids = planted(150, 20, seed=seed)
    folds = np.arange(150) // 5 % 3
    weights = 4.0**folds * np.random.default_rng(seed).uniform(0.5, 2, 150)
    blocks, rows = [], []
    for x, y, prompts, w in (
        (features[folds == k], labels[folds == k], ids[folds == k], weights[folds == k])
        for k in range(3)
    ):
        if kind == "rows":
            blocks.append(Moments.of(x, y, weights=w))
            rows.append((x.numpy(), y, w))
        else:
            blocks.append(within_prompts(x, y, prompts))
            deltas, pair_weights = explicit_pairs(x, y, prompts)
            rows.append((deltas, np.ones(len(deltas)), pair_weights))
    grid, has_intercept = tuple(10.0 ** np.arange(-4, 4, 0.2)), kind == "rows"
    errors = [
        sum(held_out_error(rows, k, lam, has_intercept=has_intercept) for k in range(3))
        for lam in grid
    ]
    fit = choose_ridge(blocks, grid[::-1], has_intercept=has_intercept)
    assert fit.lam == grid[int(np.argmin(errors))]
    assert not fit.is_at_end
    refit = ridge_path(Moments.total(blocks), [fit.lam], has_intercept=has_intercept)[0]
    assert torch.equal(fit.weight, refit.weight)
    assert fit.bias == refit.bias


def held_out_error(parts, held_out, lam, *, has_intercept):
    """Weighted sum of squared errors on one part of a scikit-learn ridge trained on the others."""
    x, y, w = (
        np.concatenate([p[i] for k, p in enumerate(parts) if k != held_out]) for i in range(3)
    )
    scaler = StandardScaler(with_mean=has_intercept)
    if has_intercept:
        scale = scaler.fit(x, sample_weight=w).scale_
    else:
        scale = np.sqrt(np.average(x**2, weights=w, axis=0))
    model = Ridge(alpha=lam * w.sum(), fit_intercept=has_intercept, solver="svd")
    model.fit(x / scale, y, sample_weight=w)
    x, y, w = parts[held_out]
    return (w * (y - model.predict(x / scale)) ** 2).sum()


def test_a_clear_signal_chooses_inside_the_default_grid():
    features, labels, _ = planted(400, 10)
    blocks = [Moments.of(features[i::4], labels[i::4]) for i in range(4)]
    fit = choose_ridge(blocks)
    assert fit.lam in LAMBDA_GRID
    assert not fit.is_at_end


def test_pure_noise_chooses_the_strongest_penalty_and_says_that_it_is_the_end():
    rng = np.random.default_rng(0)
    features, labels = torch.tensor(rng.normal(size=(90, 30))), rng.integers(0, 2, 90)
    blocks = [Moments.of(features[i::3], labels[i::3]) for i in range(3)]
    fit = choose_ridge(blocks, (10.0, 1e-3, 1e-1))
    assert (fit.lam, fit.is_at_end) == (10.0, True)


def test_equal_errors_go_to_the_larger_lam():
    # nothing varies: every lam predicts the mean
    blocks = [Moments.of(torch.full((4, 2), 0.1), [0, 1, 1, 1]) for _ in range(3)]
    fit = choose_ridge(blocks, (1.0, 10.0, 0.1))
    assert fit.lam == 10.0
    assert fit.weight.tolist() == [0.0, 0.0]
    assert fit.bias == pytest.approx(0.75)


# ------------------------------------------------------------------ digits


def test_features_without_variance_get_no_weight_and_are_counted():
    features, labels, _ = planted(100, 4)
    constants = torch.tensor([1e3 / 3, 0.0]).double().expand(100, 2)
    plain = ridge_path(Moments.of(features, labels), [0.1])[0]
    for standardise in (True, False):
        fit = ridge_path(
            Moments.of(torch.cat([features, constants], 1), labels), [0.1], standardise=standardise
        )[0]
        assert fit.n_constant == 2
        assert fit.weight[4:].tolist() == [0.0, 0.0]
    both = ridge_path(Moments.of(torch.cat([features, constants], 1), labels), [0.1])[0]
    assert plain.n_constant == 0
    assert torch.allclose(both.weight[:4], plain.weight, rtol=1e-5)


def test_columns_that_vary_only_between_prompts_are_constant_within_them():
    # the mean of equal numbers need not be that number: 0.1 added seven times is not 0.7
    features, labels, ids = planted(300, 4, n_per_prompt=20)
    common = torch.tensor([float(p[1:]) for p in ids]).double()[:, None] / 10
    common = common + torch.arange(1, 6).double() / 10
    moments = within_prompts(torch.cat([features, common], 1), labels, ids)
    fit = ridge_path(moments, [0.1], has_intercept=False)[0]
    assert (fit.n_constant, fit.weight[4:].tolist()) == (5, [0.0] * 5)


def test_large_offsets_cost_few_digits():
    # offset 1e3 times the deviation: the variance loses 6 of 16 digits
    features, labels, _ = planted(200, 5)
    centred = features - features.mean(0)
    moved = centred + 1e3 * centred.std(0)
    plain, far = (exact(Moments.of(x, labels), 0.1)[0] for x in (centred, moved))
    assert far == pytest.approx(plain, rel=1e-6)


def test_scores_do_not_depend_on_units_and_offsets_of_features():
    features, labels, _ = planted(100, 6)
    units = torch.tensor([1, 10, 0.1, 100, 1, 3.0]).double()
    first = exact(Moments.of(features, labels), 0.1)
    second = exact(Moments.of(features * units + 5, labels), 0.1)
    scores = features.numpy() @ first[0] + first[1]
    moved = (features * units + 5).numpy() @ second[0] + second[1]
    assert np.abs(scores - moved).max() < 1e-8


def test_the_bias_makes_up_for_the_rounding_of_the_weight():
    # least squares with intercept predicts the mean at the mean; a weight rounded at 6e-8 with
    # features at 1e4 would be off by about 1e-4 if the bias were that of the exact weight
    features, labels, _ = planted(200, 5)
    features = features / features.std(0) + 1e4
    fit = ridge_path(Moments.of(features, labels), [0.1])[0]
    scores = features @ fit.weight.double() + fit.bias
    assert scores.mean().item() == pytest.approx(labels.mean(), abs=1e-9)


def test_float32_features_are_added_up_in_float64():
    features = torch.tensor([[1e4 + 1], [1e4]], dtype=torch.float32)
    moments = Moments.of(features, [1, 0])
    assert moments.xx.item() == 200_020_001.0  # (1e4 + 1)^2 + 1e8; float32 keeps 8 digits


# ------------------------------------------------------------------ refusals


def test_nan_features_are_refused_with_their_row():
    features, labels, _ = planted(20, 3)
    features[7, 1] = math.nan
    for make in (
        lambda: Moments.of(features, labels),
        lambda: Moments.of_pairs(features, [0], [1]),
    ):
        with pytest.raises(FitError, match=r"in row 7 \(1 rows in all\)"):
            make()


@pytest.mark.parametrize("target", [math.nan, math.inf])
def test_targets_that_are_not_finite_are_refused_with_their_position(target):
    with pytest.raises(LabelError, match=r"got target (nan|inf) at position 2"):
        Moments.of(torch.eye(3), [1, 0, target])


def test_targets_and_pairs_that_do_not_fit_the_rows_are_refused():
    with pytest.raises(ShapeError, match=r"got targets of shape \(2,\); expected \(3,\)"):
        Moments.of(torch.eye(3), [1, 0])
    with pytest.raises(ShapeError, match="got rejected row 3 in pair 0; expected 0 to 2"):
        Moments.of_pairs(torch.eye(3), [0], [3])
    with pytest.raises(ShapeError, match="got 2 chosen and 1 rejected rows"):
        Moments.of_pairs(torch.eye(3), [0, 1], [2])
    with pytest.raises(LabelError, match="pair 0 of row 1 with itself"):
        Moments.of_pairs(torch.eye(3), [1], [1])
    with pytest.raises(ShapeError, match=r"got features of shape \(3,\)"):
        Moments.of(torch.ones(3), [1, 0, 1])


def test_impossible_weights_are_refused():
    with pytest.raises(LabelError, match=r"got weight -1\.0 at position 1"):
        Moments.of(torch.eye(3), [1, 0, 1], weights=[1, -1, 1])
    with pytest.raises(LabelError, match="weights that are all 0"):
        Moments.of_pairs(torch.eye(3), [0], [1], weights=[0])


@pytest.mark.parametrize("value", [0, 1])
def test_targets_that_are_all_the_same_are_refused_when_a_head_is_fitted(value):
    moments = Moments.of(torch.eye(3), [value] * 3)
    with pytest.raises(LabelError, match=rf"all {value}; .*Bring data with both"):
        choose_ridge([moments, moments], [0.1])


def test_a_fold_whose_training_part_has_one_class_is_refused():
    blocks = [Moments.of(torch.eye(2), [0, 1]), Moments.of(torch.eye(2), [1, 1])]
    with pytest.raises(LabelError, match="all 1"):
        choose_ridge(blocks)


@pytest.mark.parametrize("lam", [0.0, -1.0, math.nan, math.inf])
def test_a_penalty_that_is_not_positive_is_refused(lam):
    moments = Moments.of(torch.eye(3), [1, 0, 1])
    with pytest.raises(FitError, match="expected a finite number above 0"):
        choose_ridge([moments, moments], [1.0, lam])


def test_no_penalty_no_block_and_one_block_are_refused():
    moments = Moments.of(torch.eye(3), [1, 0, 1])
    with pytest.raises(FitError, match="got no lam"):
        choose_ridge([moments, moments], [])
    with pytest.raises(FitError, match=r"got 1 block\(s\).*expected at least 2"):
        choose_ridge([moments])
    with pytest.raises(FitError, match="got no block"):
        Moments.total([])


def test_a_block_without_weight_is_refused():
    moments = Moments.of(torch.eye(3), [1, 0, 1])
    zero = torch.zeros(3).double()
    empty = Moments(0.0, zero, 0.0, torch.zeros(3, 3).double(), zero, 0.0)
    with pytest.raises(FitError, match="moments of weight 0"):
        choose_ridge([moments, moments, empty])


def test_sums_that_overflow_are_refused():
    moments = Moments.of(torch.tensor([[1e200], [2e200]], dtype=torch.float64), [1, 0])
    with pytest.raises(FitError, match=r"NaN or infinite.*squares overflow"):
        choose_ridge([moments, moments], [1.0])


def test_widths_that_differ_are_refused():
    small, large = (Moments.of(torch.eye(n), [1, 0, 1, 0][:n]) for n in (3, 4))
    for action in (
        lambda: Moments.total([small, large]),
        lambda: choose_ridge([small, large]),
        lambda: project_all([small, large], torch.eye(3)),
    ):
        with pytest.raises(ShapeError, match=r"of (3|4) and of (3|4) features"):
            action()


def test_a_basis_of_the_wrong_shape_is_refused_and_a_transposed_one_is_recognised():
    moments = Moments.of(torch.eye(3), [1, 0, 1])
    with pytest.raises(ShapeError, match=r"shape \(2, 3\) for 3 features.*give basis\.T"):
        projected(moments, torch.eye(3)[:2])
    with pytest.raises(ShapeError, match=r"shape \(4, 2\) for 3 features; expected \(3, m\)"):
        projected(moments, torch.ones(4, 2))
    with pytest.raises(FitError, match="basis with NaN"):
        projected(moments, torch.full((3, 1), math.nan))


def test_impossible_chunks_are_refused():
    with pytest.raises(FitError, match="chunk_rows = 0; expected 1 or more"):
        Moments.of(torch.eye(3), [1, 0, 1], chunk_rows=0)
