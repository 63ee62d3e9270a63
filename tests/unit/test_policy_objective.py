"""Advantages and the policy loss, against numbers worked out by hand and plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import RecipeError, ShapeError
from retrm.finetuning.advantages import advantages, token_returns
from retrm.finetuning.policy import PRESETS, PolicyOptions, policy_options
from retrm.finetuning.policy_loss import aggregate, k3, policy_loss

STABLE, PLUS, GRPO = (PRESETS[name] for name in ("stable_reinforce", "reinforce_pp", "grpo"))


def one_token(rewards):
    return torch.tensor(rewards, dtype=torch.float32), torch.ones(len(rewards), 1, dtype=torch.bool)


def z_of(rewards, options=PLUS, **more):
    values, mask = one_token(rewards)
    return advantages(values, mask, options, **more).values.squeeze(1).tolist()


# log pi = -0.1 everywhere; exp(-0.1 + 10) = exp(9.9) = 19,930.37; exp(0.1) = 1.105171; exp(4.9) = 134.29
LOGPS = torch.full((4, 1), -0.1)
OLD = torch.tensor([[-10.0], [-0.2], [-0.2], [-5.0]])
A = torch.tensor([[-1.0], [-1.0], [0.5], [-0.5]])
MASK = torch.ones(4, 1, dtype=torch.bool)


def losses(options, logps=LOGPS, old=OLD, a=A):
    each = [
        policy_loss(logps[i : i + 1], old[i : i + 1], a[i : i + 1], MASK[:1], options)
        for i in range(len(a))
    ]
    return [float(one.loss) for one in each]


def test_a_stale_token_weighs_19930_in_the_plain_loss():
    assert losses(PLUS) == pytest.approx([19930.37, 1.105171, -0.552585, 67.144890], rel=1e-5)
    assert float(policy_loss(LOGPS, OLD, A, MASK, PLUS).loss) == pytest.approx(4999.517, rel=1e-5)


def test_the_clamp_before_the_exponential_makes_it_1000():
    assert losses(STABLE) == pytest.approx([1000.0, 1.105171, -0.552585, 67.144890], rel=1e-5)
    made = policy_loss(LOGPS, OLD, A, MASK, STABLE)

    assert float(made.loss) == pytest.approx(266.924, rel=1e-5)
    assert made.clamp_share == 0.25  # one of four
    # min() takes the clipped ratio nowhere: three have A < 0 and rho > 1, the third rho = 1.105 < 1.2
    assert made.clip_share == 0.0
    assert made.largest_ratio == pytest.approx(19930.37, rel=1e-5)


def test_a_clamped_token_has_no_gradient_and_the_others_keep_theirs():
    for options, first in ((STABLE, 0.0), (PLUS, 19930.37 / 4)):
        logps = LOGPS.clone().requires_grad_()
        policy_loss(logps, OLD, A, MASK, options).loss.backward()

        # d(-rho A)/d log pi = -rho A: 1.105171 / 4 of the second
        assert logps.grad[0].item() == pytest.approx(first, rel=1e-5)
        assert logps.grad[1].item() == pytest.approx(1.105171 / 4, rel=1e-5)


def test_a_positive_advantage_is_bounded_by_the_plain_clip_alone():
    # rho = exp(9.9), A = 1: min(19930, 1.2) = 1.2. rho = exp(-9.9), A = -1: min(-5e-5, -0.8) = -0.8.
    for options in (STABLE, PLUS):
        up = losses(options, torch.tensor([[0.0]]), torch.tensor([[-9.9]]), torch.tensor([[1.0]]))
        down = losses(
            options, torch.tensor([[-9.9]]), torch.tensor([[0.0]]), torch.tensor([[-1.0]])
        )
        assert up + down == pytest.approx([-1.2, 0.8])


def test_overflow_is_infinite_without_the_clamp_and_1000_with_it():
    old = torch.tensor([[-200.0]])  # exp(199.9) is beyond float32
    a, logps = torch.tensor([[-1.0]]), torch.tensor([[-0.1]])

    assert losses(PLUS, logps, old, a) == [math.inf]
    assert losses(STABLE, logps, old, a) == pytest.approx([1000.0], rel=1e-5)


def test_clip_of_rm_r1():
    # eps 0.2: rho 1.3 -> min(1.3 A, 1.2 A); rho 0.7 -> min(0.7 A, 0.8 A); the loss is the negative
    for ratio, a, objective in (
        (1.3, 0.801784, 0.962141),
        (1.3, -1.069045, -1.389759),
        (0.7, 0.801784, 0.561249),
        (0.7, -1.069045, -0.855236),
    ):
        got = losses(
            PLUS, torch.tensor([[math.log(ratio)]]), torch.zeros(1, 1), torch.tensor([[a]])
        )
        assert got == pytest.approx([-objective], abs=2e-6)


def test_k3_of_the_specification():
    q = torch.tensor([[0.1, -0.1, 1.0, -1.0, 2.0]])
    got = k3(torch.zeros(1, 5), q)[0].tolist()
    assert got == pytest.approx([0.005171, 0.004837, 0.718282, 0.367879, 4.389056], abs=1e-6)


def test_k3_is_bounded_where_q_is():
    # exp(11) - 11 - 1 = 59,862.14
    got = k3(torch.zeros(1, 1), torch.tensor([[20.0]]), log_clamp=11.0)
    assert got.item() == pytest.approx(59862.14, rel=1e-6)


def test_kl_in_the_loss_gives_the_sequence_loss_of_unified_reward_think():
    # mean k3 of (0.004837, 0.148721, 0) = 0.051186; -0.8 + 0.04 * 0.051186 = -0.797953
    logps, ref = torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[-1.1, -1.5, -0.5]])
    options = policy_options("unified_reward_think")
    made = policy_loss(
        *(logps, logps, torch.full((1, 3), 0.8), torch.ones(1, 3, dtype=torch.bool), options),
        ref_logps=ref,
    )
    assert float(made.loss) == pytest.approx(-0.797953, abs=1e-6)


def test_sequence_mean_and_token_mean():
    # 2 tokens of loss 1 and 6 of loss 3: (1 + 3) / 2 = 2.0 and (2 + 18) / 8 = 2.5
    per_token = torch.tensor([[1.0, 1.0, 9, 9, 9, 9], [3.0] * 6])
    mask = torch.tensor([[True, True, False, False, False, False], [True] * 6])

    assert aggregate(per_token, mask, "sequence").item() == 2.0
    assert aggregate(per_token, mask, "token").item() == 2.5


def test_a_lone_failure_among_256_has_z_of_minus_15_97_and_is_filtered():
    # mean 255/256 = 0.996094, deviation sqrt(255)/256 = 0.062378: (0 - mean)/dev = -sqrt(255) = -15.968719
    rewards = [1.0] * 255 + [0.0]
    plain, kept = z_of(rewards), z_of(rewards, STABLE)

    assert plain[0] == pytest.approx(0.062622, abs=1e-6)
    assert plain[-1] == pytest.approx(-15.968719, abs=1e-4)
    assert kept[-1] == 0.0
    assert kept[0] == pytest.approx(0.062622, abs=1e-6)  # not centred again


def test_the_filter_is_inert_below_eleven_sequences():
    # |z| of a lone failure is sqrt(n - 1): 3 for n = 10, 3.16 for n = 11
    assert z_of([1.0] * 9 + [0.0], STABLE)[-1] == pytest.approx(-3.0, abs=1e-6)
    assert z_of([1.0] * 10 + [0.0], STABLE)[-1] == 0.0


@pytest.mark.parametrize(
    ("right", "wrong", "paper", "released"),
    [
        (16, 4, (0.5, -2.0), (0.5, 0.0)),  # mean 1.7: the code's window is -1.3 .. 4.7
        (90, 10, (1 / 3, -3.0), (1 / 3, 0.0)),  # exactly 3 is kept
        (95, 5, (0.229416, 0.0), (0.229416, 0.0)),  # z = -4.3589
    ],
)
def test_the_released_window_drops_what_the_paper_keeps(right, wrong, paper, released):
    rewards = [2.0] * right + [0.5] * wrong
    for options, expected in (
        (STABLE, paper),
        (policy_options("stable_reinforce", {"filter_window": "released"}), released),
    ):
        z = z_of(rewards, options)
        assert (z[0], z[-1]) == pytest.approx(expected, abs=1e-5)


def test_the_symmetric_rule_drops_a_minority_exactly_below_ten_per_cent():
    for n_wrong in range(1, 25):
        z = z_of([2.0] * (100 - n_wrong) + [0.5] * n_wrong, STABLE)
        assert (z[-1] == 0.0) == (n_wrong < 10), n_wrong


def test_filtered_share_counts_tokens():
    values, mask = one_token([1.0] * 255 + [0.0])
    assert advantages(values, mask, STABLE).filtered_share == 1 / 256
    assert advantages(values, mask, PLUS).filtered_share == 0.0


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        (1, (2.267787, -0.377964)),
        (2, (1.463850, -0.585540)),
        (3, (1.069045, -0.801784)),
        (4, (0.801784, -1.069045)),
        (5, (0.585540, -1.463850)),
        (6, (0.377964, -2.267787)),
    ],
)
def test_groups_of_seven_as_in_rm_r1(right, expected):
    z = z_of([1.0] * right + [-1.0] * (7 - right), GRPO, group_size=7)
    assert (z[0], z[-1]) == pytest.approx(expected, abs=1e-5)


def test_groups_of_eight_as_in_unified_reward_think():
    z = z_of([2, 2, 1, 1, 1, 0, 2, 1.0], policy_options("unified_reward_think"), group_size=8)
    # mean 1.25, deviation (n - 1) 0.707107, offset 1e-4
    assert z == pytest.approx(
        [1.060510, 1.060510, -0.353503, -0.353503, -0.353503, -1.767517, 1.060510, -0.353503],
        abs=1e-5,
    )


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_equal_rewards_teach_nothing(preset):
    options = policy_options(preset, {"kl": 0.0})
    values, mask = one_token([0.1] * 14)
    made = advantages(values, mask, options, group_size=7)

    assert made.values.abs().max() < 1e-6
    assert made.flat_share == 1.0


def test_returns_pay_kl_from_every_token_on():
    # R 2, beta 0.001, log ratios (0.2, -0.1, 0.3): 2 - 0.0004, 2 - 0.0002, 2 - 0.0003
    kl, mask = torch.tensor([[0.2, -0.1, 0.3]]), torch.ones(1, 3, dtype=torch.bool)
    got = token_returns(torch.tensor([2.0]), mask, kl=kl, beta=0.001)
    assert got[0].tolist() == pytest.approx([1.9996, 1.9998, 1.9997], abs=1e-9)


def test_token_statistics_weigh_long_outputs_more():
    # rewards 1 (one token) and 0 (three tokens): mean over tokens 1/4, deviation sqrt(3)/4: z = sqrt(3), -1/sqrt(3)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    rewards = torch.tensor([1.0, 0.0])
    by_token = advantages(rewards, mask, PLUS).values
    by_sequence = advantages(
        rewards, mask, policy_options("reinforce_pp", {"statistics": "sequence"})
    ).values

    assert by_token[0].tolist() == pytest.approx([3**0.5, 0, 0], abs=1e-6)
    assert by_token[1].tolist() == pytest.approx([-(3**-0.5)] * 3, abs=1e-6)
    assert by_sequence[0].tolist() == pytest.approx([1, 0, 0], abs=1e-6)


def test_a_rollout_that_no_rule_can_score_moves_nothing():
    values, mask = one_token([1.0, float("nan"), 0.0])
    assert advantages(values, mask, PLUS).values.squeeze(1).tolist() == pytest.approx(
        [1, 0, -1], abs=1e-6
    )


def plain_stable_reinforce(logps, old, rewards, *, clamp, sigma):
    """The whole objective in loops over lists, one token of one sequence at a time."""
    tokens = [r for r, row in zip(rewards, logps, strict=True) for _ in row]
    mean = sum(tokens) / len(tokens)
    std = math.sqrt(sum((t - mean) ** 2 for t in tokens) / len(tokens))
    total = 0.0
    for row, before, reward in zip(logps, old, rewards, strict=True):
        z = (reward - mean) / (std + 1e-8)
        if sigma is not None and abs(z) > sigma:
            z = 0.0
        own = 0.0
        for new_t, old_t in zip(row, before, strict=True):
            d = new_t - old_t
            if clamp is not None:
                d = max(-math.log(clamp), min(math.log(clamp), d))
            rho = math.exp(d)
            own -= min(rho * z, max(0.8, min(1.2, rho)) * z)
        total += own / len(row)
    return total / len(logps)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.floats(-12, -0.01), st.floats(-12, -0.01)), min_size=1, max_size=5
            ),
            st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]),
        ),
        min_size=2,
        max_size=14,
    ),
    st.sampled_from(["stable_reinforce", "reinforce_pp"]),
)
def test_the_objective_equals_the_plain_loops(rows, preset):
    options = PRESETS[preset]
    width = max(len(tokens) for tokens, _ in rows)
    mask = torch.tensor([[i < len(tokens) for i in range(width)] for tokens, _ in rows])
    new, old = (
        torch.tensor(
            [[t[k] for t in tokens] + [-77.0] * (width - len(tokens)) for tokens, _ in rows],
            dtype=torch.float64,
        )
        for k in (0, 1)
    )
    rewards = torch.tensor([reward for _, reward in rows])
    a = advantages(rewards, mask, options).values.double()
    expected = plain_stable_reinforce(
        [[t[0] for t in tokens] for tokens, _ in rows],
        [[t[1] for t in tokens] for tokens, _ in rows],
        [reward for _, reward in rows],
        clamp=options.log_ratio_clamp,
        sigma=options.filter_sigma,
    )

    got = float(policy_loss(new, old, a, mask, options).loss)
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.5, 2.0]), min_size=2, max_size=30), st.floats(-5, 5))
def test_a_constant_added_to_all_rewards_changes_nothing(rewards, constant):
    for options in (STABLE, PLUS):
        assert z_of([r + constant for r in rewards], options) == pytest.approx(
            z_of(rewards, options), abs=1e-3
        )


def test_on_policy_the_loss_is_minus_the_mean_advantage_under_every_preset():
    a = torch.tensor([[0.3], [-1.2], [0.5], [0.1]])
    for name, options in PRESETS.items():
        made = policy_loss(LOGPS, LOGPS, a, MASK, options, ref_logps=LOGPS)
        assert float(made.loss) == pytest.approx(0.075, abs=1e-6), (
            name
        )  # -(0.3 - 1.2 + 0.5 + 0.1) / 4


def test_two_switches_make_reinforce_plus_plus_and_group_makes_grpo():
    assert (
        policy_options("stable_reinforce", {"log_ratio_clamp": "none", "filter_sigma": "none"})
        == PLUS
    )
    group = {
        "scope": "group",
        "statistics": "sequence",
        "std_offset": 1e-6,
        "kl": 1e-3,
        "kl_place": "loss",
    }
    assert policy_options("reinforce_pp", group) == GRPO


def test_one_logit_policy_learns_its_label_and_kl_holds_it_back():
    """P(A) = sigmoid(t); group rollouts of a fixed label raise t, more slowly with KL to the start."""

    def trained(kl):
        options = policy_options("grpo", {"kl": kl})
        t = torch.zeros(1, requires_grad=True)
        generator = torch.Generator().manual_seed(0)
        for _ in range(60):
            p = torch.sigmoid(t.detach())
            drawn = torch.rand(8, generator=generator) < p
            a = advantages(
                drawn.float() * 2 - 1, torch.ones(8, 1, dtype=torch.bool), options, group_size=8
            )
            sign = torch.where(drawn, 1.0, -1.0)
            logps = torch.nn.functional.logsigmoid(t * sign).unsqueeze(1)
            start = torch.full_like(logps, math.log(0.5))
            ones = torch.ones(8, 1, dtype=torch.bool)
            loss = policy_loss(logps, logps.detach(), a.values, ones, options, ref_logps=start).loss
            (grad,) = torch.autograd.grad(loss, t)
            t = (t - 0.5 * grad).detach().requires_grad_()
        return float(torch.sigmoid(t))

    assert trained(0.0) > 0.9
    assert 0.5 < trained(1.0) < trained(0.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"log_ratio_clamp": 0.5}, "log_ratio_clamp=0.5; expected a ratio above 1"),
        ({"filter_sigma": -1.0}, "filter_sigma=-1.0; expected a number above 0"),
        ({"clip": 1.5}, "clip=1.5"),
        ({"scope": "groups"}, "scope='groups'"),
        ({"klx": 1}, "unknown option 'klx'"),
    ],
)
def test_impossible_options_are_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        policy_options("stable_reinforce", changes)


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="stable_reinforce"):
        policy_options("stable_reinforc")


def test_half_a_group_is_refused():
    with pytest.raises(ShapeError, match="groups of 7"):
        z_of([1.0] * 8, GRPO, group_size=7)


def test_options_are_checked_when_they_are_made():
    with pytest.raises(RecipeError, match="kl=-1"):
        PolicyOptions(kl=-1)
