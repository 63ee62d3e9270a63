"""Losses against worked examples, finite differences and extremes."""

import math

import pytest
import torch

from retrm.errors import LabelError, RecipeError, ScoreError, ShapeError
from retrm.losses import bce, bradley_terry, hinge, infonca, nca, pairwise_logistic

# The worked prompt of the ELHSR losses: K = 4, candidates 0 and 3 are right.
R = torch.tensor([1.2, -0.3, 0.4, 0.8], dtype=torch.float64)
Y = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
ONE_PROMPT = torch.zeros(4, dtype=torch.int64)
WRONG = torch.zeros(4, dtype=torch.float64)
# Three prompts, interleaved: prompt 7 mixed (one right of two), 3 mixed (two of three), 5 all wrong.
MANY_R = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.7, -0.4, 1.1], dtype=torch.float64)
MANY_Y = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
MANY_G = torch.tensor([7, 3, 5, 7, 3, 3, 5])


def test_bce_of_the_worked_prompt():
    # softplus: (.263282 + .554355 + .913015 + .371101) / 4 = 2.101753 / 4
    assert bce(R, Y).item() == pytest.approx(0.525438, abs=1e-6)


@pytest.mark.parametrize(("label", "value"), [(1.0, 0.271098), (0.0, 1.437764)])
def test_bce_of_the_worked_gated_score(label, value):
    score = torch.tensor([1.75 / 1.5], dtype=torch.float64)
    assert bce(score, torch.tensor([label])).item() == pytest.approx(value, abs=1e-6)


def test_bce_of_soft_labels_weights_both_sides():
    # score .4: .513015 for y = 1, .913015 for y = 0; half of each is .713015
    score = torch.tensor([0.4], dtype=torch.float64)
    assert bce(score, torch.tensor([0.5])).item() == pytest.approx(0.713015, abs=1e-6)


def test_hinge_of_the_worked_prompt():
    # max(0, 1-1.2) = 0, 1-.3 = .7, 1+.4 = 1.4, 1-.8 = .2; mean 2.3/4
    assert hinge(R, Y).item() == pytest.approx(0.575, abs=1e-12)


@pytest.mark.parametrize(("label", "value"), [(1.0, 0.0), (0.0, 2.166667)])
def test_hinge_of_the_worked_gated_score(label, value):
    score = torch.tensor([1.75 / 1.5], dtype=torch.float64)
    assert hinge(score, torch.tensor([label])).item() == pytest.approx(value, abs=1e-6)


CHOSEN = torch.tensor([1.5, 0.2, -0.3, 0.1], dtype=torch.float64)
REJECTED = torch.tensor([-0.5, -0.3, -0.3, 1.1], dtype=torch.float64)


def test_bradley_terry_of_the_common_batch():
    # gaps 2, .5, 0, -1: (.126928 + .474077 + .693147 + 1.313262) / 4
    assert bradley_terry(CHOSEN, REJECTED).item() == pytest.approx(0.651853, abs=1e-6)


def test_bradley_terry_gradient_is_minus_sigmoid_of_minus_the_gap():
    chosen = CHOSEN.clone().requires_grad_()
    bradley_terry(chosen, REJECTED).backward()
    # n dL/dd = -sigmoid(-d) for d = 2, .5, 0, -1
    expected = torch.tensor([-0.119203, -0.377541, -0.5, -0.731059], dtype=torch.float64)
    assert torch.allclose(chosen.grad * 4, expected, atol=1e-6)


def test_bradley_terry_with_margins_of_the_common_batch():
    # (.313262 + .779949 + .873639 + 1.313262) / 4
    margin = torch.tensor([1.0, 2 / 3, 1 / 3, 0.0], dtype=torch.float64)
    assert bradley_terry(CHOSEN, REJECTED, margin).item() == pytest.approx(0.820028, abs=1e-6)


def test_bradley_terry_swapped_differs_by_the_mean_gap():
    # L(d) - L(-d) = -d, and the mean gap is 1.5 / 4
    difference = bradley_terry(CHOSEN, REJECTED) - bradley_terry(REJECTED, CHOSEN)
    assert difference.item() == pytest.approx(-0.375, abs=1e-12)


def test_pairwise_logistic_of_the_worked_prompt():
    # (.201413 + .371101 + .287335 + .513015) / 4
    assert pairwise_logistic(R, Y, ONE_PROMPT).item() == pytest.approx(0.343216, abs=1e-6)


def test_pairwise_logistic_weights_prompts_or_pairs():
    # prompt 7: right .3, wrong .1, gap .2 -> softplus(-.2) = .598139
    # prompt 3: right -1, .7, wrong -.4, gaps -.6, 1.1 -> 1.037488, .287335, mean .662412
    by_prompt = pairwise_logistic(MANY_R, MANY_Y, MANY_G)
    by_pair = pairwise_logistic(MANY_R, MANY_Y, MANY_G, weighting="pair")
    terms = [math.log1p(math.exp(-gap)) for gap in (0.2, -0.6, 1.1)]
    assert by_prompt.item() == pytest.approx((terms[0] + (terms[1] + terms[2]) / 2) / 2, abs=1e-12)
    assert by_pair.item() == pytest.approx(sum(terms) / 3, abs=1e-12)


def test_pairwise_logistic_without_mixed_prompts_is_zero_with_zero_gradient():
    scores = R.clone().requires_grad_()
    loss = pairwise_logistic(scores, WRONG, ONE_PROMPT)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(scores.grad, torch.zeros(4, dtype=torch.float64))


def test_infonca_of_the_worked_prompt():
    # q = (.5, 0, 0, .5): (.851338 + 1.251338) / 2
    assert infonca(R, Y, ONE_PROMPT).item() == pytest.approx(1.051338, abs=1e-6)


def test_infonca_of_an_all_wrong_prompt():
    # q uniform: (.851338 + 2.351338 + 1.651338 + 1.251338) / 4; minimum log 4 at equal scores
    assert infonca(R, WRONG, ONE_PROMPT).item() == pytest.approx(1.526338, abs=1e-6)
    assert infonca(WRONG, WRONG, ONE_PROMPT).item() == pytest.approx(math.log(4), abs=1e-12)


def test_nca_of_the_worked_prompt():
    assert nca(R, Y, ONE_PROMPT).item() == pytest.approx(1.342630, abs=1e-6)


def test_nca_of_an_all_wrong_prompt():
    assert nca(R, WRONG, ONE_PROMPT).item() == pytest.approx(1.525877, abs=1e-6)
    # at 0: each of 4 terms is (1/4) log 2 + (1/4) log 2
    assert nca(WRONG, WRONG, ONE_PROMPT).item() == pytest.approx(2 * math.log(2), abs=1e-12)


def test_nca_optimum_of_a_right_candidate_is_log_k_over_c():
    # d/dR of -(1/c) log s(R) - (1/K) log s(-R) vanishes at R = log(K/c): here log(4/2)
    scores = torch.tensor([math.log(2.0), -50.0, -50.0, math.log(2.0)], dtype=torch.float64)
    scores.requires_grad_()
    nca(scores, Y, ONE_PROMPT).backward()
    assert scores.grad.abs().max().item() < 1e-12


def test_nca_refuses_a_prompt_with_one_candidate():
    with pytest.raises(LabelError, match=r"one candidate \(row 2\)"):
        nca(R[:3], Y[:3], torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("loss", [infonca, nca])
def test_prompt_losses_are_means_over_prompts(loss):
    parts = [loss(MANY_R[g == MANY_G], MANY_Y[g == MANY_G], MANY_G[g == MANY_G]) for g in (3, 5, 7)]
    assert loss(MANY_R, MANY_Y, MANY_G).item() == pytest.approx(sum(parts).item() / 3, abs=1e-12)


def test_all_pairs_agree_with_a_plain_double_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(60, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 2, (60,), generator=generator).double()
    groups = torch.randint(0, 9, (60,), generator=generator)
    terms = [
        math.log1p(math.exp(float(scores[j] - scores[i])))
        for i in range(60)
        for j in range(60)
        if groups[i] == groups[j] and labels[i] == 1 and labels[j] == 0
    ]
    value = pairwise_logistic(scores, labels, groups, weighting="pair").item()
    assert value == pytest.approx(sum(terms) / len(terms), abs=1e-12)


@pytest.mark.parametrize("loss", [infonca, nca])
def test_alpha_must_be_positive(loss):
    with pytest.raises(RecipeError, match="alpha = 0"):
        loss(R, Y, ONE_PROMPT, alpha=0.0)


def test_unknown_weighting_offers_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'prompt'"):
        pairwise_logistic(R, Y, ONE_PROMPT, weighting="prompts")


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_impossible_margins_are_refused(margin):
    with pytest.raises(LabelError, match="at position 2"):
        bradley_terry(CHOSEN, REJECTED, torch.tensor([0.0, 0.0, margin, 0.0]))


def test_bradley_terry_refuses_scores_of_different_number():
    with pytest.raises(ShapeError, match=r"got \(3,\) rejected scores for \(4,\) chosen"):
        bradley_terry(CHOSEN, REJECTED[:3])


def test_bradley_terry_names_the_side_of_a_nan():
    with pytest.raises(ScoreError, match="at position 1 of rejected"):
        bradley_terry(CHOSEN[:2], torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize("loss", [hinge, lambda s, y: pairwise_logistic(s, y, ONE_PROMPT)])
def test_grades_are_refused_where_right_or_wrong_is_meant(loss):
    with pytest.raises(LabelError, match=r"label 0.5 at position 1; expected 0 or 1"):
        loss(R, torch.tensor([1.0, 0.5, 0.0, 1.0]))


def test_bce_refuses_labels_outside_the_unit_interval():
    with pytest.raises(LabelError, match=r"label 2.0 at position 0; expected a number from 0 to 1"):
        bce(R, torch.tensor([2.0, 0.0, 0.0, 1.0]))


def test_groups_must_be_whole_numbers():
    with pytest.raises(ShapeError, match=r"dtype torch.float32; expected whole numbers"):
        infonca(R, Y, torch.zeros(4))


def test_pair_weights_make_a_weighted_mean():
    # Terms at d = 2 and 0: .126928 and .693147; weights 3 and 1: (3*.126928 + .693147) / 4.
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.zeros(2)
    value = bradley_terry(chosen, rejected, None, torch.tensor([3.0, 1.0]))

    assert value.item() == pytest.approx((3 * 0.126928 + 0.693147) / 4, abs=1e-6)
