"""Invariants of moments and of the heads fitted from them, over random small problems."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from least_squares import mean_squared_error, projected, ridge_path, within_prompts

from retrm.fitting.ridge import Moments, choose_ridge

quick = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10_000)
widths = st.integers(1, 12)
strengths = st.sampled_from([1e-4, 1e-2, 1.0, 1e2])


def problem(n_prompts, width, seed):
    """2 to 5 answers a prompt, the first right and the second wrong."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 6, n_prompts)
    ids = np.repeat(np.arange(n_prompts), sizes)
    labels = rng.integers(0, 2, len(ids)).astype(float)
    starts = np.cumsum(sizes) - sizes
    labels[starts], labels[starts + 1] = 1.0, 0.0
    scale = 10.0 ** rng.integers(-2, 3, width)
    return torch.tensor(rng.normal(size=(len(ids), width)) * scale), labels, ids


def assert_close(first, second, rel):
    for name in ("weight", "x", "y", "xx", "xy", "yy"):
        a, b = (torch.as_tensor(getattr(m, name), dtype=torch.float64) for m in (first, second))
        size = max(a.abs().max().item(), b.abs().max().item(), 1e-300)
        assert (a - b).abs().max().item() <= rel * size, name


@quick
@given(widths, seeds, st.lists(st.integers(1, 9), max_size=3))
def test_moments_of_blocks_add_up_wherever_the_rows_are_cut(width, seed, cuts):
    features, labels, ids = problem(10, width, seed)
    bounds = [0, *sorted(set(cuts)), 10]
    parts = [(ids >= a) & (ids < b) for a, b in pairwise(bounds)]
    rows = [Moments.of(features[p], labels[p]) for p in parts]
    assert_close(Moments.total(rows), Moments.of(features, labels), 1e-11)
    pairs = [within_prompts(features[p], labels[p], ids[p]) for p in parts]
    assert_close(Moments.total(pairs), within_prompts(features, labels, ids), 1e-11)


@quick
@given(widths, seeds, strengths, st.sampled_from(["prompt", "pair"]))
def test_what_the_answers_to_a_prompt_share_changes_nothing(width, seed, lam, weighting):
    features, labels, ids = problem(8, width, seed)
    shift = torch.tensor(np.random.default_rng(seed + 1).normal(size=(8, width)))
    moved = features + features.std(0) * shift[ids]
    plain, shifted = (
        within_prompts(x, labels, ids, weighting=weighting) for x in (features, moved)
    )
    assert_close(plain, shifted, 1e-10)
    first, second = (ridge_path(m, [lam], has_intercept=False)[0] for m in (plain, shifted))
    assert torch.allclose(
        first.weight, second.weight, rtol=1e-4, atol=1e-6 * first.weight.abs().max()
    )


@quick
@given(widths, seeds)
def test_the_order_of_rows_changes_nothing(width, seed):
    features, labels, ids = problem(8, width, seed)
    order = np.random.default_rng(seed).permutation(len(ids))
    assert_close(Moments.of(features, labels), Moments.of(features[order], labels[order]), 1e-11)
    assert_close(
        within_prompts(features, labels, ids),
        within_prompts(features[order], labels[order], ids[order], chunk_rows=5),
        1e-11,
    )


@quick
@given(widths, seeds)
def test_projecting_commutes_with_adding_and_composes(width, seed):
    features, labels, _ = problem(8, width, seed)
    rng = np.random.default_rng(seed)
    first = torch.tensor(rng.normal(size=(width, width)))
    second = torch.tensor(rng.normal(size=(width, 2)))
    half = len(labels) // 2
    blocks = [
        Moments.of(features[part], labels[part]) for part in (slice(None, half), slice(half, None))
    ]
    together = projected(Moments.total(blocks), first)
    assert_close(together, Moments.total([projected(block, first) for block in blocks]), 1e-11)
    # lost digits are a share of what is summed, not of what is left of it
    at_once = projected(Moments.total(blocks), first @ second)
    assert_close(projected(together, second), at_once, 1e-8)


@quick
@given(widths, seeds, strengths)
def test_a_stronger_penalty_never_fits_better_and_never_worse_than_the_mean(width, seed, lam):
    features, labels, _ = problem(8, width, seed)
    moments = Moments.of(features, labels)
    weak, strong = ridge_path(moments, [lam, 10 * lam])
    errors = [mean_squared_error(moments, fit) for fit in (weak, strong)]
    assert errors[0] <= errors[1] + 1e-9 <= labels.var() + 2e-9


@quick
@given(widths, seeds, st.floats(1e-3, 1e3))
def test_only_relative_weights_matter(width, seed, factor):
    features, labels, ids = problem(9, width, seed)
    fits = []
    for weight in (1.0, factor):
        blocks = [
            Moments.of(
                features[ids % 3 == k],
                labels[ids % 3 == k],
                weights=[weight] * int((ids % 3 == k).sum()),
            )
            for k in range(3)
        ]
        fits.append(choose_ridge(blocks))
    assert fits[0].lam == fits[1].lam
    assert torch.allclose(
        fits[0].weight, fits[1].weight, rtol=1e-4, atol=1e-7 * fits[0].weight.abs().max()
    )
