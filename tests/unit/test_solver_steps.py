"""How many steps the solver takes: what a preconditioner that is broken shows in, and nothing else."""

import pytest
import torch

from retrm.fitting import design, solvers
from retrm.fitting.convex import RowTargets, fit_linear

# Without any preconditioner, L-BFGS takes 330 steps here; the features are rotated, so that their
# diagonal is flat and one by the diagonal alone is none.
WITHOUT = 330


@pytest.fixture(scope="module")
def problem():
    """3,000 rows of 200 features whose deviations fall like 1, 1/2, 1/3, ... in hidden directions."""
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.linalg.qr(torch.randn(200, 200, generator=draw)).Q for _ in range(2))
    spectrum = 1 / torch.arange(1.0, 201.0)
    features = torch.randn(3000, 200, generator=draw) @ (first * spectrum[:, None]) @ second
    signal = features[:, :3].sum(1)
    chance = torch.sigmoid(4 * signal / signal.std())
    return features, RowTargets((chance > torch.rand(3000, generator=draw)).double().numpy())


@pytest.mark.parametrize("resident", [64 << 20, 0], ids=["dense", "streamed"])
@pytest.mark.parametrize(
    ("rows", "most"), [(512, 35), (96, 80)], ids=["more rows than features", "fewer"]
)
def test_the_hessian_at_the_beginning_saves_most_of_the_steps(
    problem, monkeypatch, resident, rows, most
):
    features, targets = problem
    exact = fit_linear(features.double(), targets, lam=1e-3, solver="newton")
    monkeypatch.setattr(design, "RESIDENT_BYTES", resident)
    monkeypatch.setattr(design, "SAMPLE_ROWS", rows)
    monkeypatch.setattr(design, "SAMPLE_SHARE", 0.0)
    fit = fit_linear(features, targets, lam=1e-3)

    assert fit.solver == "lbfgs"
    assert fit.n_iterations <= most < WITHOUT / 4
    assert fit.objective == pytest.approx(exact.objective, rel=1e-9)


def test_steps_before_newton_are_counted(problem, monkeypatch):
    features, targets = problem
    alone = fit_linear(features, targets, lam=1e-3, solver="newton")
    monkeypatch.setattr(solvers, "STEPS_BEFORE_NEWTON", 5)
    fit = fit_linear(features, targets, lam=1e-3)

    assert fit.solver == "newton"
    assert 5 < fit.n_iterations <= 5 + alone.n_iterations


@pytest.mark.parametrize("resident", [64 << 20, 0], ids=["dense", "streamed"])
def test_a_float32_column_that_is_only_rounding_gets_no_weight(monkeypatch, resident):
    monkeypatch.setattr(design, "RESIDENT_BYTES", resident)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=draw)
    # Steps of float32 at 1,000 are 6.1e-5: a deviation of 1e-4 is two of them.
    x[:, 1] = 1000 + 1e-4 * torch.randn(400, generator=draw)
    assert 3 < len(x[:, 1].unique()) < 20
    fit = fit_linear(x, RowTargets((x[:, 0] > 0).double().numpy()), lam=1e-4)

    assert fit.n_constant == 1
    assert fit.weight[1] == 0.0
    exact = x.double() @ fit.weight.double() + fit.bias
    assert torch.allclose((x @ fit.weight + fit.bias).double(), exact, atol=1e-4)


def test_in_float64_the_same_numbers_are_a_signal():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, generator=draw, dtype=torch.float64)
    labels = RowTargets((x[:, 0] > 0).double().numpy())

    assert fit_linear(1000 + 1e-4 * x, labels, lam=0.1).n_constant == 0
    assert fit_linear((1000 + 1e-4 * x).float(), labels, lam=0.1).n_constant == 1


def test_a_small_deviation_beside_a_large_mean_is_kept():
    # 1,000 +- 0.01 is 160 steps of float32: a signal.
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, generator=draw)
    labels = RowTargets((x[:, 0] > 0).double().numpy())
    fit = fit_linear(1000 + 0.01 * x, labels, lam=0.1)

    assert fit.n_constant == 0
    assert fit.weight[0] > 10


def plain_two_loop(gradient, history, preconditioner):
    """Nocedal & Wright 2006, algorithm 7.4, step by step."""
    direction, coefficients = gradient.clone(), []
    for moved, turned in reversed(history):
        coefficients.append((moved @ direction) / (moved @ turned))
        direction -= coefficients[-1] * turned
    direction = preconditioner(direction)
    if history:
        moved, turned = history[-1]
        direction *= (moved @ turned) / (turned @ preconditioner(turned))
    for (moved, turned), coefficient in zip(history, reversed(coefficients), strict=True):
        direction += (coefficient - (turned @ direction) / (moved @ turned)) * moved
    return direction


@pytest.mark.parametrize("n_pairs", [0, 1, 7, 20])
@pytest.mark.parametrize("width", [5, 60])
def test_two_substitutions_are_the_two_loops(n_pairs, width):
    draw = torch.Generator().manual_seed(n_pairs)
    root = torch.randn(width, width, generator=draw, dtype=torch.float64)
    hessian = root @ root.T + torch.eye(width)
    steps = torch.randn(n_pairs, width, generator=draw, dtype=torch.float64)
    history = [(step, hessian @ step) for step in steps]
    scale = 1 + torch.rand(width, generator=draw, dtype=torch.float64)
    gradient = torch.randn(width, generator=draw, dtype=torch.float64)
    got = solvers._two_loop(gradient, history, lambda vector: vector * scale)

    expected = plain_two_loop(gradient, history, lambda vector: vector * scale)
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9 * float(expected.norm()))
