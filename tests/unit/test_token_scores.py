"""Answers token by token and layer by layer, against the plain reading of each layer alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scored import reward_model

from retrm.backbone.fake import FakeBackbone
from retrm.errors import RecipeError
from retrm.features.read import read_rendered
from retrm.features.recipe import Recipe
from retrm.features.reduce import Reducer
from retrm.records import Answer

ELHSR = Recipe(layers="all", point="hidden_states", pooling="tokens", dtype="bfloat16")
ANSWER = Answer.of("What is 2 + 2?", "It is 4.")


@pytest.fixture(scope="module")
def backbone():
    return FakeBackbone()


@pytest.fixture(scope="module")
def rendered(backbone):
    return backbone.renderer.render(ANSWER)


def test_layers_of_a_gated_head_sum_to_the_reward_of_each_token(backbone, rendered):
    view = reward_model(backbone, ELHSR, "gated").token_scores_rendered(rendered, by_layer=True)

    assert view.layers == (0, 1, 2, 3)
    assert view.by_layer.shape == (len("It is 4.") + 1, 4)  # bytes, and the end of the turn
    assert np.allclose(view.by_layer.sum(axis=1), view.rewards, atol=1e-5)
    assert np.abs(view.by_layer).max() > 1e-3


def test_a_layers_part_is_its_own_states_times_its_own_weights(backbone, rendered):
    model = reward_model(backbone, replace(ELHSR, layers="1,3", dtype="float32"), "gated")
    view = model.token_scores_rendered(rendered, by_layer=True)
    head, width = model.artifact.head, backbone.width
    for column, layer in enumerate((1, 3)):
        alone = replace(model.artifact.recipe, layers=str(layer))
        states = read_rendered(backbone, [rendered], Reducer(alone, backbone)).values
        weight = head.weight[-1, column * width : (column + 1) * width]
        expected = states @ weight + head.bias[-1] / 2

        assert view.layers[column] == layer
        assert np.allclose(view.by_layer[:, column], expected.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_layers_of_a_linear_head_sum_to_its_rewards_whatever_it_pools(backbone, rendered, pooling):
    recipe = Recipe(layers="0,2-3", point="residual", pooling=pooling, subspace="reasoning:25%")
    view = reward_model(backbone, recipe).token_scores_rendered(rendered, by_layer=True)

    assert view.layers == (0, 2, 3)
    assert np.allclose(view.by_layer.sum(axis=1), view.rewards, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "head"),
    [
        (replace(ELHSR, layers="last", point="post_norm"), "worst_token"),
        (Recipe(layers="1,2", point="residual", pooling="mean"), "mlp"),
        (Recipe(source="logits", pooling="mean"), "linear"),
    ],
)
def test_where_layers_do_not_add_up_none_is_said_and_none_is_promised(
    backbone, rendered, recipe, head
):
    model = reward_model(backbone, recipe, head)
    view = model.token_scores_rendered(rendered, by_layer=True)

    assert model.added_layers == view.layers == ()
    assert view.by_layer is None


def test_layers_are_left_out_where_nobody_asked(backbone, rendered):
    model = reward_model(backbone, ELHSR, "gated")
    view = model.token_scores_rendered(rendered)

    assert model.added_layers == (0, 1, 2, 3)
    assert (view.layers, view.by_layer) == ((), None)


def test_token_ids_give_the_view_of_the_text_they_came_from(backbone, rendered):
    model = reward_model(backbone, ELHSR, "gated")
    one, two = (
        model.token_scores("What is 2 + 2?", "It is 4."),
        model.token_scores_rendered(rendered),
    )

    assert one.tokens == two.tokens
    assert np.array_equal(one.contributions, two.contributions)
    assert one.score == two.score


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe(pooling="prompt_end"), "reads the end of the prompt: its score has no parts"),
        (Recipe(source="log_probability"), "reads log-probabilities of the whole answer"),
    ],
)
def test_a_score_that_no_token_has_a_part_in_is_refused_not_made_up(backbone, recipe, words):
    model = reward_model(backbone, recipe)
    assert not model.shows_tokens
    with torch.no_grad(), pytest.raises(RecipeError, match=words):
        model.token_scores("What is 2 + 2?", "It is 4.")
