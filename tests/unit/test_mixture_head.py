"""The mixture head against ArmoRM's worked examples, its identities, and the formulas written plainly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retrm.errors import RecipeError, ShapeError
from retrm.features.reduce import Features
from retrm.heads.mixture import MixtureHead, transform_of

NAMES = ["helpfulness", "honesty", "verbosity"]
LAMBDAS = torch.tensor([0.3, 0.5, 1.0])


def head_of_rewards(*, z=(0.0, 0.0, 0.0), temperature=10.0, verbosity=2, **options):
    """A head whose three features ARE the objective scores, and whose gate always has logits z."""
    head = MixtureHead(
        3,
        objectives=NAMES,
        gate_layers=0,
        temperature=temperature,
        verbosity=verbosity,
        **options,
    )
    head.set_objectives(torch.eye(3))
    with torch.no_grad():
        head.gate_biases[0].copy_(torch.tensor(z))
    return head.eval()


def logits_for(gates, temperature=10.0):
    """Gate logits of which the softmax is `gates`."""
    return [temperature * math.log(g) for g in gates]


def score(head, rewards):
    return head(torch.tensor([rewards]), torch.tensor([0, 1])).item()


# ------------------------------------------------------------------- worked examples


def test_the_transform_takes_a_share_of_the_verbosity_score_out_of_each_objective():
    # T = I with row v less lambda; the own entry of v is 0.
    assert np.allclose(transform_of(LAMBDAS, 2), [[1, 0, 0], [0, 1, 0], [-0.3, -0.5, 0]])


@pytest.mark.parametrize(
    ("rewards", "adjusted", "expected"),
    [
        # .8 - .3*.4 = .68, .6 - .5*.4 = .40; .5*.68 + .3*.40 = .46
        ((0.8, 0.6, 0.4), (0.68, 0.40, 0.0), 0.46),
        # .7 - .3*.9 = .43, .5 - .5*.9 = .05; .5*.43 + .3*.05 = .23
        ((0.7, 0.5, 0.9), (0.43, 0.05, 0.0), 0.23),
    ],
)
def test_worked_example_of_the_debiased_score(rewards, adjusted, expected):
    head = head_of_rewards(z=logits_for((0.5, 0.3, 0.2)))
    head.set_lambdas(LAMBDAS)
    (why,) = head.explain(torch.tensor([rewards]))

    assert why.adjusted_scores == pytest.approx(adjusted, abs=1e-6)
    assert why.gates == pytest.approx((0.5, 0.3, 0.2), abs=1e-6)
    assert why.coefficients == pytest.approx((0.5, 0.3, -0.3), abs=1e-6)  # T g
    assert score(head, rewards) == pytest.approx(expected, abs=1e-6)


def test_worked_example_of_objective_scores():
    head = MixtureHead(2, objectives=["a", "b"])
    head.set_objectives(torch.tensor([[0.875, 1.375], [0.1, 0.2]]))

    # 2 * .875 + 1.375 = 3.125 and 2 * .1 + .2 = .4
    assert head.objective_scores(torch.tensor([[2.0, 1.0]]))[0].tolist() == pytest.approx(
        [3.125, 0.4], abs=1e-6
    )


def test_without_the_transform_the_wordy_candidate_would_win():
    chosen, rejected = (0.8, 0.6, 0.4), (0.7, 0.5, 0.9)
    plain = head_of_rewards(z=logits_for((0.5, 0.3, 0.2)), verbosity=None)
    debiased = head_of_rewards(z=logits_for((0.5, 0.3, 0.2)))
    debiased.set_lambdas(LAMBDAS)

    # .5*.8 + .3*.6 + .2*.4 = .66 against .5*.7 + .3*.5 + .2*.9 = .68
    assert score(plain, chosen) == pytest.approx(0.66, abs=1e-6)
    assert score(plain, rejected) == pytest.approx(0.68, abs=1e-6)
    for head, loss in ((plain, 0.703197), (debiased, 0.584745)):
        margin = torch.tensor(score(head, chosen) - score(head, rejected))
        assert -nn.functional.logsigmoid(margin).item() == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (10.0, (0.665241, 0.244728, 0.090031)),  # e^1 : e^0 : e^-1
        (1.0, (0.999955, 0.000045, 2e-9)),  # e^10 : e^0 : e^-10
    ],
)
def test_worked_example_of_the_gate(temperature, expected):
    head = head_of_rewards(z=(10.0, 0.0, -10.0), temperature=temperature)

    assert head.gates(torch.zeros(1, 0))[0].tolist() == pytest.approx(expected, abs=6e-7)


def pairs_of_the_gate_example():
    """The two prompts as one-hot contexts, so that the gate's weights are the logits z."""
    head = MixtureHead(
        3 + 2, objectives=NAMES, n_context=2, gate_layers=0, temperature=10.0, verbosity=2
    )
    head.set_objectives(torch.eye(3))
    with torch.no_grad():
        head.gate_weights[0].copy_(torch.tensor([[10.0, 0.0], [0.0, 0.0], [-10.0, 0.0]]))
    chosen = torch.tensor([[0.68, 0.40, 0.0, 1, 0], [0.2, 0.5, 0.0, 0, 1]])
    rejected = torch.tensor([[0.43, 0.05, 0.0, 1, 0], [0.3, 0.1, 0.0, 0, 1]])
    return head, chosen, rejected


def test_worked_example_of_the_stage_2_loss_and_its_gradient():
    head, chosen, rejected = pairs_of_the_gate_example()
    offsets = torch.arange(3)
    margins = head(chosen, offsets) - head(rejected, offsets)
    losses = -nn.functional.logsigmoid(margins)
    losses.mean().backward()

    assert margins.tolist() == pytest.approx([0.251965, 0.1], abs=1e-6)
    assert losses.tolist() == pytest.approx([0.575079, 0.644397], abs=1e-6)
    assert losses.mean().item() == pytest.approx(0.609738, abs=1e-6)
    # Contexts are one-hot: a column of the weights has the gradient of its prompt's logits.
    gradient = head.gate_weights[0].grad
    assert gradient[:, 0].tolist() == pytest.approx([2.8587e-5, -5.24631e-4, 4.96043e-4], abs=1e-8)
    assert gradient[:, 1].tolist() == pytest.approx(
        [1.583403e-3, -2.375104e-3, 7.91701e-4], abs=1e-8
    )


def test_a_softmax_over_the_two_candidates_would_give_halves_and_ours_does_not():
    head, chosen, rejected = pairs_of_the_gate_example()
    both = torch.stack([chosen[:, 3:], rejected[:, 3:]], dim=1)  # (pairs, 2, context)
    z = both @ head.gate_weights[0].T

    # The released script: dimension 1 are the candidates, whose prompt is the same.
    assert torch.equal(torch.softmax(z / 10, dim=1), torch.full((2, 2, 3), 0.5))
    gates = head.gates(both.reshape(4, 2))
    assert gates[0].tolist() == pytest.approx((0.665241, 0.244728, 0.090031), abs=1e-6)
    assert gates[2].tolist() == pytest.approx((1 / 3, 1 / 3, 1 / 3), abs=1e-6)


@pytest.mark.parametrize(("width", "n_gate"), [(576, 2_709_523), (4096, 6_314_003)])
def test_the_gate_has_the_published_number_of_weights(width, n_gate):
    head = MixtureHead(2 * width, objectives=list("abcdefghijklmnopqrs"), n_context=width)

    # All that is learned but the scale; W has 19 rows of the width.
    assert sum(p.numel() for p in head.gate_parameters) == n_gate + 1
    assert head.n_params == n_gate + 1 + 19 * width


# ------------------------------------------------------------------------ identities


def a_head(n_own=4, n_context=3, k=3, *, verbosity=2, seed=0, **options):
    options = {"gate_width": 8, "gate_layers": 2, "temperature": 1.0, **options}
    names = [f"objective {i}" for i in range(k)]
    head = MixtureHead(
        n_own + n_context,
        objectives=names,
        n_context=n_context,
        verbosity=verbosity,
        **options,
    )
    generator = torch.Generator().manual_seed(seed)
    head.reset(generator)
    head.set_objectives(torch.randn(k, n_own, generator=generator))
    if verbosity is not None:
        head.set_lambdas(torch.rand(k, generator=generator))
    with torch.no_grad():
        head.logit_scale.fill_(1.7)
    return head.eval()


def plain_scores(head, values):
    """The formulas of ArmoRM, row by row, in float64 and without any of the head's own methods."""
    state = {name: value.double() for name, value in head.state_dict().items()}
    k, n_own = state["weight"].shape
    v = head.verbosity
    out = []
    for row in values.double():
        h, z = row[:n_own], row[n_own:]
        n_layers = len([name for name in state if name.startswith("gate_weights.")])
        for layer in range(n_layers):
            z = state[f"gate_weights.{layer}"] @ z + state[f"gate_biases.{layer}"]
            if layer + 1 < n_layers:
                z = z.clamp(min=0)
        powers = (z / head.temperature).exp()
        g = state["logit_scale"] * powers / powers.sum()
        r = [state["weight"][i] @ h for i in range(k)]
        lambdas = [0.0] * k if v is None else [-state["transform"][v, i] for i in range(k)]
        if v is not None:
            lambdas[v] = 1.0
        out.append(sum(g[i] * (r[i] - lambdas[i] * (0 if v is None else r[v])) for i in range(k)))
    return torch.stack(out)


shapes = st.tuples(
    st.integers(1, 6), st.integers(0, 4), st.integers(1, 5), st.booleans(), st.integers(0, 99)
)


def drawn(shape):
    n_own, n_context, k, has_verbosity, seed = shape
    verbosity = k - 1 if has_verbosity else None
    head = a_head(n_own, n_context, k, verbosity=verbosity, seed=seed)
    values = torch.randn(7, n_own + n_context, generator=torch.Generator().manual_seed(seed))
    return head, values


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_the_score_is_that_of_the_formulas_written_out(shape):
    head, values = drawn(shape)

    assert torch.allclose(
        head(values, torch.arange(8)).double(), plain_scores(head, values), atol=1e-5
    )


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_gates_are_positive_and_sum_to_the_scale_over_objectives(shape):
    head, values = drawn(shape)
    gates = head.gates(head.split(values)[1])

    assert (gates > 0).all()
    assert torch.allclose(gates.sum(dim=1), torch.tensor(1.7), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_the_adjusted_scores_are_r_less_lambda_times_verbosity(shape):
    head, values = drawn(shape)
    r = head.objective_scores(head.split(values)[0])
    adjusted = head.adjusted(r)

    if head.verbosity is None:
        assert torch.equal(adjusted, r)
        return
    v = r[:, [head.verbosity]]
    assert torch.allclose(adjusted, r - head.lambdas * v, atol=1e-5)
    assert not adjusted[:, head.verbosity].any()


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_contributions_add_up_to_the_score_and_so_do_coefficients_times_raw_scores(shape):
    head, values = drawn(shape)
    scores = head(values, torch.arange(8))
    for why, value in zip(head.explain(values), scores.tolist(), strict=True):
        assert math.fsum(why.contributions) == pytest.approx(why.score, rel=1e-14, abs=1e-16)
        assert np.float32(why.score) == np.float32(value)
        parts = [g * r for g, r in zip(why.gates, why.adjusted_scores, strict=True)]
        assert why.contributions == pytest.approx(parts, abs=1e-6)
        products = [c * r for c, r in zip(why.coefficients, why.objective_scores, strict=True)]
        assert sum(products) == pytest.approx(value, abs=1e-5)


def test_equal_prompts_have_bitwise_equal_gates_and_different_ones_have_not():
    head = a_head(n_context=32, gate_width=64)
    one, other = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    gates = head.gates(torch.stack([one, one, other, other, other]))

    assert torch.equal(gates[0], gates[1])
    assert torch.equal(gates[2], gates[3])
    assert torch.equal(gates[3], gates[4])
    assert not torch.equal(gates[1], gates[2])


def test_candidates_of_a_prompt_share_their_dropout_too():
    head = a_head(dropout=0.5, gate_width=64).train()
    context = torch.ones(1, 3)

    assert torch.equal(*head.gates(context.expand(2, -1)))
    # ... and it is at work: the next batch draws another mask.
    assert not torch.equal(head.gates(context), head.gates(context))


@settings(max_examples=20, deadline=None)
@given(st.floats(-50, 50), st.integers(0, 99))
def test_a_constant_on_all_gate_logits_changes_nothing(constant, seed):
    head = a_head(seed=seed)
    values = torch.randn(4, 7, generator=torch.Generator().manual_seed(seed))
    before = head(values, torch.arange(5))
    with torch.no_grad():
        head.gate_biases[-1] += constant

    assert torch.allclose(head(values, torch.arange(5)), before, atol=1e-4)


def test_one_objective_is_scored_by_itself_whatever_the_prompt():
    head = a_head(k=1, verbosity=None)
    values = torch.randn(3, 7)
    values[1:, :4] = values[0, :4]
    r = head.objective_scores(values[:1, :4])[0, 0].item()

    # A softmax over one number is 1, so the gate is the scale, 1.7.
    assert head(values, torch.arange(4)).tolist() == pytest.approx([1.7 * r] * 3, abs=1e-5)


def test_a_gradient_reaches_the_gate_and_its_scale_only():
    head = a_head().train()
    head(torch.randn(8, 7), torch.arange(9)).square().sum().backward()
    reached = {id(p) for p in head.parameters() if p.grad is not None and p.grad.any()}

    assert reached == {id(p) for p in head.gate_parameters}
    assert not head.transform.requires_grad


def test_given_its_prompt_the_head_is_the_linear_head_of_its_coefficients():
    head = a_head()
    values = torch.randn(5, 7)
    values[:, 4:] = values[0, 4:]
    linear = head.given(values[0, 4:])
    alone = linear.score(Features(values[:, :4], torch.arange(6), True))

    assert torch.allclose(alone, head.score(Features(values, torch.arange(6), True)), atol=1e-5)


def test_a_gate_without_input_weighs_every_prompt_alike():
    head = a_head(n_context=0)
    gates = head.gates(torch.zeros(3, 0))

    assert torch.equal(gates[0], gates[1])
    assert torch.equal(gates[0], gates[2])


def test_drawing_the_gate_leaves_objectives_and_transform_alone():
    head = a_head()
    weight, transform = head.weight.clone(), head.transform.clone()
    head.reset(torch.Generator().manual_seed(5))

    assert torch.equal(head.weight, weight)
    assert torch.equal(head.transform, transform)
    assert head.logit_scale.item() == 1.0


def test_objective_scores_are_also_told_in_the_numbers_that_raters_give():
    # HelpSteer: 0..4 became (rating + .5) / 5, so .5 is 5 * .5 - .5 = 2. And 1..5: .25 is 1 + 4/4 = 2.
    head = head_of_rewards(scales=[[0, 4, 0.5], [1, 5, 0.0], [0, 1, 0.0]])
    (why,) = head.explain(torch.tensor([[0.5, 0.25, 0.75]]))

    assert why.as_rated == pytest.approx((2.0, 2.0, 0.75), abs=1e-6)
    assert head_of_rewards().explain(torch.zeros(1, 3))[0].as_rated is None


def test_the_options_make_the_same_head_again():
    head = head_of_rewards(scales=[[0, 4, 0.5], [1, 5, 0.0], [0, 1, 0.0]])
    again = MixtureHead(3, **head.options)
    again.load_state_dict(head.state_dict())

    assert again.options == head.options
    assert score(again.eval(), (0.1, 0.2, 0.3)) == score(head, (0.1, 0.2, 0.3))


# -------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objectives": []}, r"got objectives=\[\]; expected a list of at least one name"),
        ({"objectives": "quality"}, "got objectives='quality'; expected a list"),
        ({"objectives": ["a", "a"]}, "objective 'a' is named twice"),
        ({"verbosity": 3}, "got verbosity=3 of 3 objectives; expected an index from 0 to 2"),
        ({"verbosity": -1}, "got verbosity=-1 of 3 objectives"),
        ({"n_context": 5}, "got n_context=5 of 5 features; expected 0 to 4"),
        ({"gate_width": 0}, "mixture option gate_width is 0; expected 1, 2, 3"),
        ({"gate_layers": -1}, "mixture option gate_layers is -1"),
        ({"dropout": 1.0}, r"mixture option dropout is 1\.0; expected 0 to below 1"),
        ({"temperature": 0}, "mixture option temperature is 0; expected above 0"),
        ({"scales": [[0, 4, 0]]}, "for each of 3 objectives, such as"),
        ({"scales": [[4, 0, 0]] * 3}, "scales of the mixture head: got the range 4"),
    ],
)
def test_options_that_make_no_head_are_refused(options, words):
    with pytest.raises(RecipeError, match=words):
        MixtureHead(5, **{"objectives": NAMES, **options})


def test_weights_and_lambdas_of_another_shape_are_refused():
    head = a_head()
    with pytest.raises(ShapeError, match=r"shape \(2, 4\); expected \(3, 4\): 3 objectives"):
        head.set_objectives(torch.zeros(2, 4))
    with pytest.raises(ShapeError, match=r"lambdas of shape \(2,\); expected \(3,\)"):
        head.set_lambdas(torch.zeros(2))
    with pytest.raises(RecipeError, match="is the verbosity objective; name its index"):
        a_head(verbosity=None).set_lambdas(torch.zeros(3))
    with pytest.raises(ShapeError, match="got verbosity=3 of 3 objectives"):
        transform_of(torch.zeros(3), 3)


def test_features_of_answers_are_not_centred_for_want_of_an_intercept():
    with pytest.raises(RecipeError, match="have no intercept"):
        a_head().fold_input(torch.ones(7), torch.ones(7))
