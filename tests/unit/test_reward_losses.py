"""Losses of whole models: numbers by hand, gradients, and what an option of 0 leaves as it was.

Batch of ODIN: answers 1..4 with lengths 120, 60, 90, 140, pairs (1, 2) and (3, 4).
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.backbone.base import Unembedding
from retrm.errors import LabelError, RecipeError, ShapeError
from retrm.finetuning.reward_losses import (
    answer_log_probabilities,
    expected_level,
    length_correlations,
    level_loss,
    mixed,
    overlap,
    pearson,
    rating_loss,
    text_term,
)
from retrm.finetuning.reward_options import RewardOptions
from retrm.finetuning.reward_tasks import Outputs, PairTask
from retrm.losses import bradley_terry
from retrm.pair_options import PairOptions

LENGTHS = torch.tensor([120.0, 60.0, 90.0, 140.0], dtype=torch.float64)
LENGTH = torch.tensor([0.9, 0.4, 0.7, 1.2], dtype=torch.float64)
QUALITY = torch.tensor([0.6, 0.2, 0.1, 0.5], dtype=torch.float64)


def near(value: float):
    return pytest.approx(value, abs=1e-6)


def gap(d: float) -> torch.Tensor:
    return bradley_terry(torch.tensor([d]), torch.zeros(1))


@pytest.mark.parametrize(
    ("form", "text", "total"),
    [
        # softplus(0.1 x 40) = 4.018150; 0.99 x 0.474077 + 0.01 x 4.018150
        ("sft", 4.018150, 0.509518),
        # 0.99 x 0.474077 + 0.01 x 40
        ("nll", 40.0, 0.869336),
    ],
)
def test_the_text_regulariser_takes_a_share_of_the_loss(form, text, total):
    found = text_term(torch.tensor([-40.0]), beta=0.1, form=form)
    assert found.item() == near(text)
    assert mixed(gap(0.5), found, 0.01).item() == near(total)


def test_no_share_of_text_leaves_the_loss_of_pairs():
    assert mixed(gap(0.5), torch.tensor(7.0), 0.0).item() == near(0.474077)


def test_correlations_with_length_are_those_of_the_worked_batch():
    assert pearson(LENGTH, LENGTHS).item() == near(0.990148)
    assert pearson(QUALITY, LENGTHS).item() == near(0.780156)
    # 1 - 0.990148 + 0.780156
    assert length_correlations(QUALITY, LENGTH, LENGTHS).item() == near(0.790008)
    # a quality that shrinks with length is as bad as one that grows
    assert length_correlations(-QUALITY, LENGTH, LENGTHS).item() == near(0.790008)


def test_length_heads_add_to_the_loss_of_single_pairs():
    # d = (0.6 + 0.9) - (0.2 + 0.4) = 0.9 and (0.1 + 0.7) - (0.5 + 1.2) = -0.9:
    # (0.341154 + 1.241154) / 2 = 0.791154; the sum of the gaps would give log 2 = 0.693147
    task = PairTask(RewardOptions(length_heads=True, orthogonality=0.0), pad_id=0)
    order = torch.tensor([0, 2, 1, 3])  # chosen answers first
    batch = {
        "starts": torch.full((4,), 7),
        "stops": 7 + LENGTHS[order].long(),
        "margins": torch.zeros(2),
        "weights": torch.ones(2),
    }
    outputs = Outputs(
        QUALITY[order].float()[:, None], None, LENGTH[order].float(), torch.tensor(0.5)
    )
    loss, figures = task.loss(outputs, batch)
    assert figures["pair_loss"].item() == near(0.791154)
    assert loss.item() == near(1.581162)
    # accuracy is that of the head that is kept: 0.6 > 0.2 and 0.1 < 0.5
    assert figures["accuracy"].item() == 0.5


def test_the_orthogonality_term_is_the_cosine_of_the_weights_as_they_are():
    first, other = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([2.0, -1.0, 1.0])
    assert overlap(first, other).item() == near(0.0)
    # of their centred versions, which a public implementation takes, it would be 0.654654
    assert overlap(first - first.mean(), other - other.mean()).item() == near(0.654654)
    assert overlap(first, -2 * first).item() == near(1.0)


def test_a_correlation_with_what_does_not_vary_is_zero_and_has_a_finite_gradient():
    scores = torch.tensor([0.3, 0.1, 0.2], requires_grad=True)
    found = pearson(scores, torch.full((3,), 5.0))
    found.backward()
    assert found.item() == 0.0
    assert scores.grad.tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ShapeError, match="expected one each"):
        pearson(scores, torch.zeros(2))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=4, max_size=6, unique=True),
    st.floats(0.1, 9),
    st.floats(-9, 9),
)
def test_a_correlation_knows_no_unit(values, scale, shift):
    x = torch.tensor(values, dtype=torch.float64)
    y = torch.arange(len(values), dtype=torch.float64)
    if float(x.std()) < 1e-3:
        return
    assert pearson(scale * x + shift, y).item() == pytest.approx(pearson(x, y).item(), abs=1e-6)


def test_levels_give_the_expected_level_and_the_cross_entropy_of_the_label():
    logits = torch.tensor([[0.0, 0.5, 1.0, 2.0, 1.0]])
    assert expected_level(logits, torch.arange(5.0)).item() == near(2.593040)
    assert level_loss(logits, torch.tensor([3])).item() == near(0.739183)


def test_ratings_that_are_missing_take_no_part():
    nan = float("nan")
    outputs = torch.tensor([[0.5, 0.2], [0.1, 0.9]], requires_grad=True)
    loss = rating_loss(outputs, torch.tensor([[0.25, nan], [nan, 0.5]]))
    # (0.25^2 + 0.4^2) / 2
    assert loss.item() == near((0.0625 + 0.16) / 2)
    loss.backward()
    assert outputs.grad[0, 1].item() == outputs.grad[1, 0].item() == 0.0
    with pytest.raises(LabelError, match="without a rating"):
        rating_loss(outputs, torch.full((2, 2), nan))


def test_log_probabilities_are_those_of_the_answers_tokens_alone():
    torch.manual_seed(0)
    weight, states = torch.randn(6, 4), torch.randn(2, 5, 4)
    ids = torch.tensor([[1, 2, 3, 4, 0], [5, 4, 3, 2, 1]])
    head = Unembedding(weight, None, None, None, "rms", 1e-6, logit_scale=0.5, softcap=3.0)
    found = answer_log_probabilities(states, ids, torch.tensor([2, 4]), torch.tensor([4, 5]), head)
    logits = 3.0 * torch.tanh(0.5 * states @ weight.T / 3.0)
    plain = torch.log_softmax(logits, dim=-1)
    # token t is predicted by the state before it: 3 and 4 of the first row, 1 of the second
    expected = [plain[0, 1, 3] + plain[0, 2, 4], plain[1, 3, 1]]
    assert found.tolist() == [near(one.item()) for one in expected]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "pear"}, "Did you mean 'pairs'"),
        ({"overlong": "trunc_left"}, "Did you mean 'truncate_left'"),
        ({"kind": "correctness", "text_share": 0.01}, "belong to the loss of pairs"),
        ({"kind": "ratings", "pairs": PairOptions(smoothing=0.1)}, "loss option smoothing"),
        ({"length_heads": True, "device_batch": 1, "batch_size": 1}, "2 pairs or more"),
        ({"batch_size": 6, "device_batch": 4}, "multiple"),
        ({"text_share": 1.0}, "from 0 to below 1"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"max_length": 0}, "1 or more"),
        ({"length_heads": True, "init_std": 0.0}, "no slope"),
    ],
)
def test_impossible_options_are_refused(changes, words):
    with pytest.raises(RecipeError, match=words):
        RewardOptions(**changes)


def test_options_from_a_file_are_strict():
    found = RewardOptions.from_dict({"text_share": 0.01}, {"smoothing": 0.1})
    assert (found.text_share, found.pairs.smoothing) == (0.01, 0.1)
    with pytest.raises(RecipeError, match="Did you mean 'text_share'"):
        RewardOptions.from_dict({"text_shar": 0.01})


def test_a_new_head_starts_at_equal_scores_but_where_these_have_no_slope():
    assert RewardOptions().starting_std == 0.0
    assert RewardOptions(length_heads=True).starting_std == 0.02
    assert RewardOptions(pairs=PairOptions(form="normalised")).starting_std == 0.02
    assert RewardOptions(init_std=0.5).starting_std == 0.5
