"""The matrix from a state to the logits: identities in float64, on models with random gains."""

import math

import families
import pytest
import torch
from folding import (
    EXACT,
    IDS,
    RMS,
    ROW,
    B,
    G,
    TrueFloat64,
    X,
    case,
    centred,
    every,
    layer_norm,
    relative,
)

from retrm.backbone.base import Unembedding
from retrm.backbone.locate import apply_norm
from retrm.errors import RecipeError
from retrm.features.norm_folding import (
    constant_reading,
    dead_direction,
    effective_head,
    effective_rows,
    normalised,
)
from retrm.features.subspace import SubspaceFitter, fit_spectrum


def test_adding_a_constant_to_every_coordinate_of_a_layer_norm_stream_changes_no_logit():
    for name, is_dead in [("gpt2", True), ("falcon-one-norm", True), ("llama", False)]:
        made = case(name)
        rows = made.model.get_input_embeddings()(IDS)
        with torch.no_grad(), TrueFloat64():
            moved = made.model(inputs_embeds=rows + 3.0, use_cache=False).logits

        change = relative(moved, made.seen.logits)
        assert change < EXACT if is_dead else change > 0.1


@layer_norm
def test_effective_matrix_has_one_dead_direction_and_it_is_the_constant_one(name):
    matrix = effective_head(case(name).head).weight
    _, s, vt = torch.linalg.svd(matrix)

    assert (matrix @ torch.ones(families.WIDTH).double()).abs().max() < EXACT * matrix.abs().max()
    assert s[-1] < EXACT * s[0]
    assert s[-2] > 1e-3 * s[0]  # one only
    # Up to sign 1/sqrt(D), D = 32.
    assert abs(vt[-1].sum()) / math.sqrt(32) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", RMS)
def test_effective_matrix_of_an_rms_model_has_no_dead_direction(name):
    s = torch.linalg.svdvals(effective_head(case(name).head).weight)

    assert s[-1] > 1e-3 * s[0]
    assert dead_direction(case(name).head, "residual") is None


@layer_norm
def test_a_fitter_that_keeps_the_dead_direction_would_pick_it_first_and_ours_never_does(name):
    head = case(name).head
    careless = SubspaceFitter(families.WIDTH, point="residual")
    for rows in effective_rows(head, "residual"):
        careless.update(rows)
    dead = dead_direction(head, "residual").float()
    ours = fit_spectrum(head, "residual")

    assert (careless.subspace("reasoning", 1).basis @ dead).abs().item() == pytest.approx(
        1, abs=1e-5
    )
    live = families.WIDTH - 1
    for part, n_dims in [("reasoning", 1), ("reasoning", 5), ("semantic", live), ("random", 9)]:
        assert (ours.subspace(part, n_dims).basis @ dead).abs().max() < 1e-5
    assert len(ours.singular_values()) == live


def test_a_head_on_the_careless_direction_reads_the_mean_that_the_network_never_uses():
    made = case("gpt2")
    states = made.seen.residual[-1].flatten(0, 1)
    careless = SubspaceFitter(families.WIDTH, point="residual")
    for rows in effective_rows(made.head, "residual"):
        careless.update(rows)
    first = careless.subspace("reasoning", 1)

    # 1/sqrt(D) . x = sqrt(D) mean(x): different for each token, and dead.
    raw = first.project(states).flatten().abs()
    assert torch.allclose(raw, math.sqrt(32) * states.mean(-1).abs().float(), rtol=1e-3)
    assert raw.std() > 0.1
    assert first.project(normalised(made.head, states)).abs().max() < 1e-5


@layer_norm
def test_at_post_norm_one_weighted_sum_is_the_same_for_every_token(name):
    made = case(name)
    constant = constant_reading(made.head)
    sums = made.seen.post_norm @ constant.weights

    assert (sums - constant.value).abs().max() < 1e-10
    # Any other weights give a sum that changes from token to token.
    assert (made.seen.post_norm @ constant.weights.flip(0).cumsum(0)).std() > 0.1


def test_a_gain_of_zero_makes_its_own_coordinate_the_constant_one():
    gain, bias = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.5, -0.7, 0.1])
    head = Unembedding(torch.ones(2, 3), None, gain, bias, "layer", 1e-5)
    constant = constant_reading(head)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    assert constant.weights.tolist() == [0.0, 1.0, 0.0]
    assert constant.value == pytest.approx(-0.7)
    got = apply_norm(x, gain, bias, "layer", 1e-5).double() @ constant.weights
    assert got.tolist() == pytest.approx([-0.7] * 5)


def test_an_rms_model_has_no_constant_at_post_norm():
    assert constant_reading(case("llama").head) is None


# ------------------------------------------------------------------------- the effective head


@every
def test_effective_head_on_normalised_residual_states_gives_the_models_logits(name):
    made = case(name)
    effective = effective_head(made.head)
    x = made.seen.residual[-1]
    logits = normalised(made.head, x) @ effective.weight.T
    if effective.bias is not None:
        logits = logits + effective.bias
    logits = logits * made.head.logit_scale
    if made.head.softcap is not None:
        logits = made.head.softcap * torch.tanh(logits / made.head.softcap)

    assert relative(logits, made.seen.logits) < EXACT


def test_tied_llama_type_model_needs_the_gain_fold_only():
    made = case("llama-tied")
    x = made.seen.residual[-1]
    rms = torch.sqrt(x.square().mean(-1, keepdim=True) + made.model.config.rms_norm_eps)
    effective = effective_head(made.head)

    assert made.head.is_tied
    assert torch.equal(effective.weight, made.model.lm_head.weight * made.model.model.norm.weight)
    assert effective.bias is None
    assert relative((x / rms) @ effective.weight.T, made.seen.logits) < EXACT


@layer_norm
def test_at_layer_norm_states_the_mean_need_not_be_removed_before_the_folded_matrix(name):
    made = case(name)
    x, head = made.seen.residual[-1], effective_head(made.head)
    sd = torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + made.head.eps)

    with_mean, without = (x / sd) @ head.weight.T, (centred(x) / sd) @ head.weight.T
    assert relative(with_mean, without) < EXACT


def test_worked_row_is_constant_at_post_norm():
    # sum(b/g) = 0.1/1 + 0/2 - 0.2/0.5 = -0.3; post . (1/g) = -0.825820 - 0.462910 + 0.988730.
    constant = constant_reading(Unembedding(ROW[None], None, G, B, "layer", 0.0))

    assert constant.weights.tolist() == [1.0, 0.5, 2.0]
    assert constant.value == pytest.approx(-0.3, abs=1e-12)
    post = apply_norm(X, G, B, "layer", 0.0)
    assert (post @ constant.weights).item() == pytest.approx(-0.3, abs=1e-12)


def test_the_two_reasoning_subspaces_differ():
    # W = diag(3, 1): tail e2. W diag(g) = diag(0.3, 1) with g = (0.1, 1): tail e1.
    head = Unembedding(
        torch.diag(torch.tensor([3.0, 1.0])), None, torch.tensor([0.1, 1.0]), None, "rms", 0.0
    )
    raw = fit_spectrum(head, "post_norm").subspace("reasoning", 1)
    folded = fit_spectrum(head, "residual").subspace("reasoning", 1)

    assert raw.basis.tolist() == [[0.0, 1.0]]
    assert folded.basis.tolist() == [[1.0, 0.0]]


def test_the_matrix_of_a_quantised_lm_head_is_refused():
    head = Unembedding(torch.ones(2, 3).to(torch.float8_e4m3fn), None, None, None, "rms", 0.0)
    with pytest.raises(RecipeError, match="de-quantised"):
        effective_head(head)
