"""One battery for every head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import RecipeError, ShapeError
from retrm.features.reduce import Features
from retrm.heads.registry import HEADS, make_head

WIDTH = 5
N_CONTEXT = 2  # of the heads that read the prompt behind the features of an answer
OPTIONS = {
    "mixture": {
        "objectives": ["helpfulness", "style", "verbosity"],
        "n_context": N_CONTEXT,
        "gate_width": 4,
        "gate_layers": 1,
        "temperature": 1.0,
        "verbosity": 2,
    }
}
NO_PARAMETERS = {"transform"}  # stored numbers that follow from few others


def a_head(name, seed=0, width=WIDTH):
    head = make_head(name, width, OPTIONS.get(name))
    generator = torch.Generator().manual_seed(seed)
    head.reset(generator)
    if name in ("linear", "mixture"):  # it starts at zero
        with torch.no_grad():
            head.weight.copy_(torch.randn(head.weight.shape, generator=generator))
    if name == "mixture":
        head.set_lambdas(torch.tensor([0.3, 0.5, 1.0]))
    return head.eval()


def tokens_for(head, values):
    """Token features of one answer: the context behind each token is that of its prompt."""
    if not head.n_context:
        return values
    context = values[:1, -head.n_context :].expand(len(values), -1)
    return torch.cat([values[:, : -head.n_context], context], dim=1)


def features_for(head, lengths, seed=0, dtype=torch.float32):
    lengths = lengths if head.reads_tokens else [1] * len(lengths)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(lengths), WIDTH, generator=generator).to(dtype)
    offsets = torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()])
    return Features(values, offsets, not head.reads_tokens)


@pytest.mark.parametrize("name", HEADS)
def test_scores_do_not_depend_on_company_or_order(name):
    head = a_head(name)
    features = features_for(head, [1, 4, 2, 7])
    whole = head.score(features)
    shuffled = head.score(features.take([2, 0, 3, 1]))

    alone = torch.cat([head.score(features.take([i])) for i in range(4)])
    assert torch.allclose(whole, alone, atol=1e-6)
    assert torch.allclose(shuffled, whole[[2, 0, 3, 1]], atol=1e-6)


@pytest.mark.parametrize("name", [n for n in HEADS if HEADS[n].reads_tokens])
def test_permuting_the_tokens_of_an_answer_changes_nothing(name):
    head = a_head(name)
    features = features_for(head, [6])
    moved = Features(features.values.flip(0), features.offsets, False)

    assert torch.allclose(head.score(features), head.score(moved), atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_chunked_scoring_of_many_answers_equals_one_forward(name):
    head = a_head(name)
    features = features_for(head, [3] * 3000)  # more rows than one chunk holds

    with torch.no_grad():
        plain = head(features.values, features.offsets)
    assert torch.allclose(head.score(features), plain, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_no_answers_give_no_scores(name):
    head = a_head(name)

    assert head.score(features_for(head, [])).shape == (0,)


@pytest.mark.parametrize("name", HEADS)
def test_low_precision_features_are_scored_in_float32(name):
    head = a_head(name)
    rounded = features_for(head, [2, 3], dtype=torch.bfloat16)
    exact = Features(rounded.values.float(), rounded.offsets, rounded.is_pooled)

    assert head.score(rounded).dtype == torch.float32
    assert torch.equal(head.score(rounded), head.score(exact))


@pytest.mark.parametrize("name", HEADS)
def test_another_width_is_refused_with_both(name):
    head = a_head(name)
    wrong = Features(torch.zeros(1, WIDTH + 1), torch.tensor([0, 1]), not head.reads_tokens)

    with pytest.raises(ShapeError, match=rf"width {WIDTH + 1}.* reads {WIDTH}"):
        head.score(wrong)


@pytest.mark.parametrize("name", HEADS)
def test_pooled_for_token_features_and_the_reverse_are_refused(name):
    head = a_head(name)
    wrong = Features(torch.zeros(1, WIDTH), torch.tensor([0, 1]), head.reads_tokens)

    with pytest.raises(ShapeError, match="set pooling to"):
        head.score(wrong)


@pytest.mark.parametrize("name", [n for n in HEADS if HEADS[n].reads_tokens])
def test_an_answer_without_tokens_is_refused_not_scored(name):
    head = a_head(name)

    with pytest.raises(ShapeError, match="answer 1 has no response token"):
        head.score(Features(torch.zeros(2, WIDTH), torch.tensor([0, 2, 2]), False))


@pytest.mark.parametrize("name", HEADS)
def test_the_gradient_reaches_every_parameter(name):
    head = a_head(name).train()
    features = features_for(head, [4] * 12)
    head(features.values, features.offsets).square().sum().backward()

    for parameter_name, parameter in head.named_parameters():
        if not parameter.requires_grad:  # fitted otherwise, and frozen since
            continue
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_float64_agrees_with_float32(name):
    head = a_head(name)
    features = features_for(head, [3, 1])
    with torch.no_grad():
        low = head(features.values, features.offsets)
        high = head.double()(features.values.double(), features.offsets)

    assert torch.allclose(low.double(), high, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_n_params_is_the_number_of_stored_numbers(name):
    head = a_head(name)

    stored = {k: v for k, v in head.state_dict().items() if k not in NO_PARAMETERS}
    assert head.n_params == sum(v.numel() for v in stored.values())


@pytest.mark.parametrize("name", HEADS)
def test_same_seed_same_weights(name):
    one, two, other = a_head(name, 3), a_head(name, 3), a_head(name, 4)

    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", HEADS)
def test_folding_the_input_equals_standardising_it(name):
    head, folded = a_head(name), a_head(name)
    shift, scale = torch.linspace(-1, 1, WIDTH), torch.linspace(0.5, 3, WIDTH)
    if name == "mixture":  # its objectives have no intercept
        shift[:-N_CONTEXT] = 0
    folded.fold_input(shift, scale)
    features = features_for(head, [2, 5, 1])
    standardised = Features((features.values - shift) / scale, features.offsets, features.is_pooled)

    assert torch.allclose(folded.score(features), head.score(standardised), atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("pooling", ["last", "mean", "max", "tokens"])
def test_the_token_view_ends_at_the_score(name, pooling):
    head = a_head(name)
    if head.reads_tokens != (pooling == "tokens"):
        pytest.skip("this head does not read this pooling")
    tokens = tokens_for(head, features_for(make_head("gated", WIDTH), [6]).values)
    with torch.no_grad():
        view = head.token_view(tokens, pooling)
        pooled = {
            "last": tokens[-1:],
            "mean": tokens.mean(0, keepdim=True),
            "max": tokens.max(0, keepdim=True).values,
            "tokens": tokens,
        }[pooling]
        score = head(pooled, torch.tensor([0, len(pooled)])).item()

    assert view.score == pytest.approx(score, abs=1e-5)
    assert view.running[-1].item() == pytest.approx(score, abs=1e-5)
    assert view.contributions.sum().item() == pytest.approx(score, abs=1e-5)
    assert len(view.rewards) == len(view.gates) == len(view.contributions) == 6


@pytest.mark.parametrize("name", [n for n in HEADS if HEADS[n].reads_tokens])
def test_running_numbers_give_the_score_of_every_beginning_of_an_answer(name):
    head = a_head(name)
    head.check_running()
    features = features_for(head, [6, 6, 6])
    tokens = features.values.reshape(3, 6, WIDTH)
    sums = torch.tensor(head.first_sums).expand(3, -1)
    with torch.no_grad():
        for t in range(6):
            sums = head.add_token(sums, tokens[:, t])
            beginnings = tokens[:, : t + 1].reshape(-1, WIDTH)
            offsets = torch.arange(4) * (t + 1)

            assert torch.allclose(head.score_sums(sums), head(beginnings, offsets), atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_an_unknown_option_is_refused(name):
    with pytest.raises(RecipeError, match=f"the {name} head has no option 'depth'"):
        make_head(name, WIDTH, {"depth": 3})


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 100))
def test_the_gated_score_lies_between_the_lowest_and_the_highest_reward(lengths, seed):
    head = a_head("gated", seed)
    features = features_for(head, lengths, seed)
    scores = head.score(features)

    for i, score in enumerate(scores.tolist()):
        tokens = features.take([i]).values
        rewards = head.token_view(tokens, "tokens").rewards
        assert rewards.min().item() - 1e-5 <= score <= rewards.max().item() + 1e-5


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([name for name in HEADS if HEADS[name].adds_layers]),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(0, 100),
)
def test_what_the_layers_add_sums_to_the_reward_of_each_token(
    name, n_layers, width, n_tokens, seed
):
    generator = torch.Generator().manual_seed(seed)
    n_context = N_CONTEXT if HEADS[name].reads_context else 0
    head = make_head(name, n_layers * width + n_context, OPTIONS.get(name)).eval()
    with torch.no_grad():
        for parameter in head.parameters():  # the bias, too, which starts at zero
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    drawn = torch.randn(n_tokens, n_layers * width + n_context, generator=generator)
    tokens = tokens_for(head, drawn)
    with torch.no_grad():
        parts = head.layer_rewards(tokens, n_layers)
        rewards = head.token_view(tokens, "tokens" if head.reads_tokens else "mean").rewards

    assert parts.shape == (n_tokens, n_layers)
    assert torch.allclose(parts.sum(dim=1), rewards, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([name for name in HEADS if HEADS[name].adds_layers]), st.integers(0, 100))
def test_the_state_of_one_layer_moves_the_part_of_that_layer_only(name, seed):
    generator = torch.Generator().manual_seed(seed)
    n_context = N_CONTEXT if HEADS[name].reads_context else 0
    head = a_head(name, seed, 3 * 2 + n_context)
    tokens = tokens_for(head, torch.randn(4, 6 + n_context, generator=generator))
    moved = tokens.clone()
    moved[:, 2:4] += 1.0  # the second of three layers of width 2
    with torch.no_grad():
        changed = head.layer_rewards(moved, 3) - head.layer_rewards(tokens, 3)

    assert changed[:, [0, 2]].abs().max() == 0
    assert changed[:, 1].abs().max() > 0


def test_heads_that_add_layers_up_are_those_that_are_linear_in_a_token():
    assert {name for name in HEADS if HEADS[name].adds_layers} == {"linear", "gated", "mixture"}
