"""Invariants of the convex solver over random small problems."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.fitting.convex import PairTargets, RowTargets, fit_linear

quick = settings(max_examples=30, deadline=None)
problems = st.tuples(st.integers(2, 12), st.integers(1, 20), st.integers(0, 10_000))
strengths = st.sampled_from([1e-4, 1e-2, 1.0, 1e2])


def problem(n, width, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2).astype(float)
    scale = 10.0 ** rng.integers(-2, 3, width)
    return torch.tensor(rng.normal(size=(n, width)) * scale, dtype=torch.float32), labels


@quick
@given(problems, strengths)
def test_both_solvers_reach_the_same_objective_at_the_asked_gradient(shape, lam):
    features, labels = problem(*shape)
    fits = [
        fit_linear(features, RowTargets(labels), lam=lam, solver=solver)
        for solver in ("newton", "lbfgs")
    ]
    assert all(fit.gradient_norm <= 1e-6 for fit in fits)
    assert abs(fits[0].objective - fits[1].objective) <= 1e-8 * abs(fits[0].objective)


@quick
@given(problems, strengths)
def test_turning_all_labels_round_turns_the_head_round(shape, lam):
    features, labels = problem(*shape)
    fit = fit_linear(features, RowTargets(labels), lam=lam)
    turned = fit_linear(features, RowTargets(1 - labels), lam=lam)
    f, g = (features @ h.weight + h.bias for h in (fit, turned))
    assert torch.allclose(f, -g, atol=1e-3 * max(1.0, f.abs().max().item()))


@quick
@given(problems, strengths)
def test_a_stronger_penalty_never_lowers_the_objective_and_never_beats_the_null_model(shape, lam):
    features, labels = problem(*shape)
    weak = fit_linear(features, RowTargets(labels), lam=lam)
    strong = fit_linear(features, RowTargets(labels), lam=10 * lam)
    share = labels.mean()
    null = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert weak.objective <= strong.objective + 1e-9 <= null + 2e-9


@quick
@given(problems, strengths)
def test_a_shift_of_all_features_does_not_change_a_head_of_pairs(shape, lam):
    features, labels = problem(*shape)
    chosen, rejected = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    n = min(len(chosen), len(rejected))
    pairs = PairTargets(chosen[:n], rejected[:n])
    doubles = features.double()
    fit, moved = (fit_linear(x, pairs, lam=lam) for x in (doubles, doubles + 5.0))
    tolerance = 1e-4 * max(1.0, fit.weight.abs().max().item())
    assert torch.allclose(fit.weight, moved.weight, atol=tolerance)
