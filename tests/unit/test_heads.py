"""Each head against the worked examples of its spec."""

import math

import pytest
import torch

from retrm.heads.gated import GatedHead
from retrm.heads.linear import LinearHead
from retrm.heads.mlp import WorstTokenHead
from retrm.heads.registry import HEADS, make_head


def gated_reading(gate_logits, rewards):
    """A gated head whose two features ARE the gate logit and the reward."""
    head = GatedHead(2)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
        head.bias.zero_()
    return head, torch.tensor([gate_logits, rewards]).T.contiguous()


GATES = [0.0, math.log(3), -math.log(3)]  # gates .5, .75, .25
REWARDS = [1.0, 2.0, -1.0]


def test_elhsr_worked_example_scores_1_166667():
    head, values = gated_reading(GATES, REWARDS)

    # (.5*1 + .75*2 - .25*1) / (.5 + .75 + .25) = 1.75 / 1.5
    assert head(values, torch.tensor([0, 3])).item() == pytest.approx(1.75 / 1.5, abs=1e-6)


def test_elhsr_contributions_are_a_third_one_and_minus_a_sixth_and_add_up():
    head, values = gated_reading(GATES, REWARDS)
    view = head.token_view(values, "tokens")

    assert view.contributions.tolist() == pytest.approx([1 / 3, 1.0, -1 / 6], abs=1e-6)
    assert view.contributions.sum().item() == pytest.approx(view.score, abs=1e-6)
    assert view.gates.tolist() == pytest.approx([0.5, 0.75, 0.25], abs=1e-6)


def test_elhsr_gradients_are_those_of_the_spec():
    head, values = gated_reading(GATES, REWARDS)
    values.requires_grad_()
    head(values, torch.tensor([0, 3])).sum().backward()

    # d score/d g~ = g(1-g)(r - score)/sum g;  d score/d r = g / sum g
    assert values.grad[:, 0].tolist() == pytest.approx([-0.027778, 0.104167, -0.270833], abs=1e-6)
    assert values.grad[:, 1].tolist() == pytest.approx([1 / 3, 0.5, 1 / 6], abs=1e-6)


def test_without_gate_the_score_is_the_plain_mean():
    head = GatedHead(1, gate=False)
    with torch.no_grad():
        head.weight.fill_(1.0)
        head.bias.zero_()

    # (1 + 2 - 1) / 3
    score = head(torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([0, 3]))
    assert score.item() == pytest.approx(2 / 3, abs=1e-6)


def test_a_large_constant_on_every_gate_turns_the_score_into_the_plain_mean():
    head, values = gated_reading([g + 40 for g in GATES], REWARDS)

    assert head(values, torch.tensor([0, 3])).item() == pytest.approx(2 / 3, abs=1e-5)


def test_a_constant_on_every_reward_adds_to_the_score():
    head, values = gated_reading(GATES, [r + 5 for r in REWARDS])

    assert head(values, torch.tensor([0, 3])).item() == pytest.approx(1.75 / 1.5 + 5, abs=1e-5)


@pytest.mark.parametrize(
    ("layers", "width", "n_params"),
    [(28, 3072, 178_178), (32, 4096, 270_338), (36, 4096, 303_106), (30, 576, 35_714)],
)
def test_elhsr_parameter_counts_confirm_that_the_embedding_layer_is_read(layers, width, n_params):
    assert GatedHead((layers + 1) * width).n_params == n_params


@pytest.mark.parametrize(("dims", "n_params"), [(256, 264_193), (205, 211_969), (29, 31_745)])
def test_harp_parameter_counts(dims, n_params):
    assert WorstTokenHead(dims).n_params == n_params


def harp_reading(logits):
    """A HARP head whose reward at token t is -u_t, with u_t the given hallucination logits."""
    head = WorstTokenHead(1, hidden=2)
    with torch.no_grad():  # relu(x) - relu(-x) = x, negated
        head.weight_in.copy_(torch.tensor([[1.0], [-1.0]]))
        head.bias_in.zero_()
        head.weight_out.copy_(torch.tensor([-1.0, 1.0]))
        head.bias_out.zero_()
    return head, torch.tensor(logits)[:, None]


def test_harp_worked_example_the_worst_token_decides():
    head, values = harp_reading([0.2, -1.0, 1.5])
    score = head(values, torch.tensor([0, 3]))

    # max u = 1.5, so score = -1.5; p(hallucinated) = sigmoid(1.5) = .817574
    assert score.item() == pytest.approx(-1.5, abs=1e-6)
    assert torch.sigmoid(-score).item() == pytest.approx(0.817574, abs=1e-6)
    # BCE: flag 1 (label wrong, 0) .201413; flag 0 (label right, 1) 1.701413
    wrong = torch.nn.functional.binary_cross_entropy_with_logits(score, torch.tensor([0.0]))
    right = torch.nn.functional.binary_cross_entropy_with_logits(score, torch.tensor([1.0]))
    assert wrong.item() == pytest.approx(0.201413, abs=1e-6)
    assert right.item() == pytest.approx(1.701413, abs=1e-6)


def test_harp_gradient_reaches_the_worst_token_only():
    head, values = harp_reading([0.2, -1.0, 1.5])
    values.requires_grad_()
    score = head(values, torch.tensor([0, 3]))
    torch.nn.functional.binary_cross_entropy_with_logits(score, torch.tensor([0.0])).backward()

    # dL/du = (0, 0, -.182426) for flag 1
    assert values.grad.flatten().tolist() == pytest.approx([0, 0, -0.182426], abs=1e-6)


def test_harp_ignores_a_better_extra_token_and_points_at_the_worst_one():
    head, values = harp_reading([0.2, -1.0, 1.5, 1.4])
    view = head.token_view(values, "tokens")

    assert head(values, torch.tensor([0, 4])).item() == pytest.approx(-1.5, abs=1e-6)
    assert view.contributions.tolist() == pytest.approx([0, 0, -1.5, 0], abs=1e-6)
    assert view.running.tolist() == pytest.approx([-0.2, -0.2, -1.5, -1.5], abs=1e-6)


def test_linear_head_with_mean_pooling_has_contributions_that_add_up():
    head = LinearHead(2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([1.0, -0.5]))
        head.bias.fill_(0.25)
    tokens = torch.tensor([[0.5, -1.0], [0.1, 0.2]])
    view = head.token_view(tokens, "mean")

    # rewards: .5 + .5 + .25 = 1.25 and .1 - .1 + .25 = .25; mean .75
    assert view.rewards.tolist() == pytest.approx([1.25, 0.25])
    assert view.score == pytest.approx(0.75)
    assert view.contributions.sum().item() == pytest.approx(0.75)


def test_the_registry_makes_every_head_with_its_options():
    assert make_head("worst_token", 3, {"hidden": 8}).options == {"hidden": 8}
    assert set(HEADS) == {"linear", "gated", "mlp", "worst_token", "mixture"}


def test_a_gated_reward_is_split_over_two_layers_with_half_the_bias_each():
    head = GatedHead(4)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[9.0, 9.0, 9.0, 9.0], [1.0, -2.0, 0.5, 3.0]]))
        head.bias.copy_(torch.tensor([7.0, 1.0]))
    # Layer one of the first token: 1*2 - 2*1 = 0, layer two: .5*4 + 3*1 = 5; the bias 1 gives .5 to each.
    # Second token: 1*0 - 2*3 = -6, and .5*2 + 3*0 = 1. The gate's row and bias (9, 7) have no part in it.
    values = torch.tensor([[2.0, 1.0, 4.0, 1.0], [0.0, 3.0, 2.0, 0.0]])

    assert head.layer_rewards(values, 2).tolist() == [[0.5, 5.5], [-5.5, 1.5]]
    assert head.token_view(values, "tokens").rewards.tolist() == [6.0, -4.0]


def test_a_linear_reward_is_split_over_layers_and_one_layer_holds_all_of_it():
    head = LinearHead(3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([2.0, -1.0, 4.0]))
        head.bias.fill_(0.75)
    # 2*1 + .25, -1*3 + .25, 4*.5 + .25; together 2 - 3 + 2 + .75 = 1.75
    values = torch.tensor([[1.0, 3.0, 0.5]])

    assert head.layer_rewards(values, 3).tolist() == [[2.25, -2.75, 2.25]]
    assert head.layer_rewards(values, 1).tolist() == [[1.75]]
