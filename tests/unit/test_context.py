"""The state of the prompt behind the features of an answer, from the recipe to the explained score."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scored import ending_backbone, ending_fake, reward_model

from retrm.backbone.fake import FakeBackbone
from retrm.cli.main import main
from retrm.errors import RecipeError, RetrmError, StoreError
from retrm.features.cost import row_bytes
from retrm.features.estimate import estimate_reading
from retrm.features.read import read, read_rendered, render_all
from retrm.features.recipe import Recipe
from retrm.features.reduce import Reducer, ReducerRecipe
from retrm.fitting.fit import check_methods
from retrm.heads.artifact import identity_of
from retrm.methods import METHODS
from retrm.records import Answer, Prompt
from retrm.scorers.reward_model import RewardModel
from retrm.service.items import Item, Options
from retrm.service.lanes import StateLane
from retrm.store.shards import ShardSink

CONTEXT = Recipe(context="prompt_end")
RECIPES = {
    "last": CONTEXT,
    "mean": replace(CONTEXT, layers="0,2-3", point="hidden_states", pooling="mean"),
    "tail": replace(CONTEXT, subspace="reasoning:4", pooling="max"),
    "residual tail": replace(CONTEXT, subspace="reasoning:4", point="residual", layers="last2"),
    "below": replace(CONTEXT, layers="1", point="residual"),
}
PROMPT_END = Recipe(pooling="prompt_end")
NAMES = ["helpfulness", "honesty", "verbosity"]


@pytest.fixture(scope="module")
def backbone():
    return FakeBackbone()


def answers(n_prompts=3, n=3):
    return [
        Answer.of(f"question number {p}", "answer " + "ab" * (p + k) + str(k))
        for p in range(n_prompts)
        for k in range(n)
    ]


def mixture(backbone, recipe, *, seed=0):
    model = reward_model(
        *(backbone, recipe, "mixture"),
        seed=seed,
        objectives=NAMES,
        n_context=backbone.width,
        gate_width=8,
        gate_layers=2,
        temperature=0.5,
        verbosity=2,
        scales=[[0, 4, 0.5], [1, 5, 0.0], [0, 1, 0.0]],
    )
    model.artifact.head.set_lambdas(torch.tensor([0.3, 0.5, 1.0]))
    return model


# ---------------------------------------------------------------------------- recipe


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"context": "prompt"}, "unknown context 'prompt'; expected one of none, prompt_end"),
        ({"pooling": "tokens"}, "the one row of a pooled answer, got pooling='tokens'"),
        ({"source": "logits"}, "got source='logits'; use source=states, or context=none"),
        ({"source": "log_probability"}, "got source='log_probability'"),
        ({"dtype": "bfloat16"}, "got dtype='bfloat16'; use dtype=float32, or context=none"),
    ],
)
def test_recipes_that_cannot_have_a_context_are_refused(values, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.from_dict({"context": "prompt_end", **values})


def test_a_recipe_without_a_context_is_stored_as_it_was_before_there_was_one():
    assert Recipe().to_dict() == {
        "layers": "last",
        "point": "post_norm",
        "subspace": "full",
        "matrix": "auto",
        "pooling": "last",
        "source": "states",
        "dtype": "float32",
        "counts_end": True,
    }
    assert CONTEXT.to_dict() == {**Recipe().to_dict(), "context": "prompt_end"}
    for recipe in (Recipe(), *RECIPES.values()):
        assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(("layers", "n_own"), [("last", 16), ("all", 4 * 16), ("1,3", 2 * 16)])
def test_the_context_adds_the_width_of_the_state_once_whatever_layers_are_read(layers, n_own):
    recipe = replace(CONTEXT, layers=layers)

    assert recipe.n_features(3, 16) == n_own + 16
    assert recipe.n_context(16) == 16
    assert Recipe().n_context(16) == 0
    # float32: 4 bytes a number.
    assert row_bytes(recipe, 3, 16) == 4 * (n_own + 16)
    assert row_bytes(replace(recipe, subspace="reasoning:4"), 3, 16) == n_own + 4 * 16


# --------------------------------------------------------------------------- reading


@pytest.mark.parametrize("make", [FakeBackbone, ending_backbone])
@pytest.mark.parametrize("name", RECIPES)
def test_features_are_those_of_the_answer_and_behind_them_the_state_at_the_prompts_end(make, name):
    backbone, rows = make(), answers()
    plain = replace(RECIPES[name], context="none")
    recipes = {"own": plain, "end": PROMPT_END, "both": RECIPES[name]}
    found = read(backbone, rows, recipes).features
    alone = read(backbone, rows, {"both": RECIPES[name]}, share_prompts=False).features["both"]

    expected = torch.cat([found["own"].values, found["end"].values], dim=1)
    assert torch.equal(found["both"].values, expected)
    assert torch.allclose(alone.values, expected, atol=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_a_reducer_that_was_sent_elsewhere_reads_the_same(backbone, name):
    reducer = Reducer(RECIPES[name], backbone)
    again = ReducerRecipe(reducer.unbound.recipe, reducer.unbound.bases).bind(backbone)
    rendered = render_all(backbone, answers()).rendered

    one, two = (read_rendered(backbone, rendered, r).values for r in (reducer, again))
    assert torch.equal(one, two)
    assert one.shape == (9, reducer.n_features)


def test_candidates_of_one_prompt_have_the_same_context_and_so_the_same_gates(backbone):
    values = read(backbone, answers(), {"one": CONTEXT}).features["one"].values
    context = values[:, backbone.width :].reshape(3, 3, backbone.width)

    assert torch.equal(context, context[:, :1].expand(-1, 3, -1))
    assert not torch.equal(context[0, 0], context[1, 0])
    gates = [why.gates for why in map(mixture(backbone, CONTEXT).explain_of, answers()[:4])]
    assert gates[0] == gates[1] == gates[2] != gates[3]


def test_a_store_keeps_the_context_columns_and_gives_them_back(backbone, tmp_path):
    sink = ShardSink(tmp_path / "s", RECIPES, backbone.fingerprint)
    first = read(backbone, answers(), RECIPES, sink=sink).features
    sink = ShardSink(tmp_path / "s", RECIPES, backbone.fingerprint)
    again = read(backbone, answers(), RECIPES, sink=sink)
    plain = read(backbone, answers(), RECIPES).features

    assert again.n_tokens == 0
    for name in RECIPES:
        assert torch.equal(first[name].values, plain[name].values)
        assert torch.equal(again.features[name].values, plain[name].values)


def test_a_store_knows_a_recipe_with_a_context_from_one_without(backbone, tmp_path):
    def stored(recipe):
        recipes = {"one": recipe}
        read(
            backbone,
            answers(),
            recipes,
            sink=ShardSink(tmp_path, recipes, backbone.fingerprint),
        )

    stored(Recipe())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert "context" not in manifest["recipes"]["one"]
    with pytest.raises(StoreError, match="another recipes"):
        stored(CONTEXT)


def test_the_estimate_counts_the_bytes_that_a_store_then_holds(backbone):
    fitting = render_all(backbone, answers())
    plain = {name: replace(recipe, context="none") for name, recipe in RECIPES.items()}

    def n_bytes(recipes):
        reducers = {name: Reducer(recipe, backbone) for name, recipe in recipes.items()}
        return estimate_reading(backbone, fitting, reducers).disk_bytes

    found = read(backbone, answers(), RECIPES).features
    features = sum(found[name].values.nbytes for name in RECIPES)
    keys = 9 * 25 - 1  # 24 characters and a line break between two
    assert n_bytes(RECIPES) == features + keys
    # Nine answers, five recipes, 16 numbers of 4 bytes more in each.
    assert n_bytes(RECIPES) - n_bytes(plain) == 9 * 5 * 16 * 4


# ----------------------------------------------------------------------- while generating


@pytest.mark.parametrize("make", [ending_fake, ending_backbone])
@pytest.mark.parametrize("name", ["last", "mean", "residual tail"])
def test_scores_while_generating_are_those_of_a_reading(make, name):
    model = mixture(make(), RECIPES[name])
    texts = ["Hi", "What is 2 + 2?", "a"]
    drawn = list(
        model.generate(texts, n=3, temperature=1.0, max_new_tokens=6, batch_size=4, seed=1)
    )

    assert len({one.score for one in drawn}) > 3
    for one in drawn:
        answer = Answer(
            Prompt.of(texts[one.prompt]), one.response, "p", one.token_ids, one.finished
        )
        assert one.score == pytest.approx(float(model.score([answer])[0]), abs=1e-4)


def test_text_whose_answer_begins_nowhere_is_refused_for_a_head_that_reads_the_prompt(backbone):
    lane, item = StateLane(backbone), Item(text="some text without an opening of a turn")

    # The last token is known in any case; where the prompt ends is not.
    assert lane.prepare(item, Options(), reward_model(backbone, Recipe())).rendered.ids
    with pytest.raises(RetrmError, match="answer"):
        lane.prepare(item, Options(), mixture(backbone, CONTEXT))


# ------------------------------------------------------------------------ the reward model


@pytest.mark.parametrize("name", RECIPES)
def test_save_then_load_is_the_identity(backbone, tmp_path, name):
    model = mixture(backbone, RECIPES[name]).with_selftest(answers()[:3])
    model.save(tmp_path / "rm")
    loaded = RewardModel.load(tmp_path / "rm", backbone=backbone)

    assert np.array_equal(loaded.score(answers()), model.score(answers()))
    assert loaded.explain_of(answers()[0]) == model.explain_of(answers()[0])
    assert loaded.artifact.recipe == RECIPES[name]
    assert loaded.artifact.head.options == model.artifact.head.options
    assert loaded.identity == model.identity
    assert "end of the prompt, full width" in (tmp_path / "rm" / "README.md").read_text()


def test_a_folder_without_a_context_says_nothing_of_one(backbone, tmp_path):
    model = reward_model(backbone, Recipe())
    model.save(tmp_path / "rm")
    manifest = json.loads((tmp_path / "rm" / "reward_model.json").read_text())

    assert "context" not in manifest["recipe"]
    assert "context" not in (tmp_path / "rm" / "README.md").read_text()


def test_inspect_tells_the_context_and_the_objectives(backbone, tmp_path, capsys):
    mixture(backbone, CONTEXT).save(tmp_path / "rm")
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(tmp_path / "rm")])
    said = " ".join(capsys.readouterr().out.split())

    assert not left.value.code
    assert "post_norm state of the last layer at the end of the prompt" in said
    assert all(name in said for name in NAMES)


def test_models_that_differ_in_lambda_only_have_another_identity(backbone):
    one, two = mixture(backbone, CONTEXT), mixture(backbone, CONTEXT)
    assert identity_of(one.artifact) == identity_of(two.artifact)
    two.artifact.head.set_lambdas(torch.tensor([0.3, 0.4, 1.0]))

    assert identity_of(one.artifact) != identity_of(two.artifact)


def test_a_head_and_a_recipe_that_disagree_on_the_context_are_refused(backbone):
    with pytest.raises(RecipeError, match=r"which is 16 numbers of the prompt.* head reads 0"):
        reward_model(backbone, CONTEXT)
    with pytest.raises(RecipeError, match=r"context='none'.*mixture head reads 4"):
        reward_model(backbone, Recipe(), "mixture", n_context=4)


def test_a_context_that_no_head_reads_is_refused_before_anything_is_read():
    method = METHODS["last_token"].with_changes(recipe={"context": "prompt_end"})
    with pytest.raises(RecipeError, match="the linear head does not read the prompt"):
        check_methods([method])


# ----------------------------------------------------------------------------- explaining


@pytest.mark.parametrize("name", RECIPES)
def test_an_explanation_adds_up_to_the_score(backbone, name):
    model = mixture(backbone, RECIPES[name])
    for answer in answers()[:4]:
        why, value = model.explain_of(answer), float(model.score([answer])[0])

        assert why.objectives == tuple(NAMES)
        assert why.score == pytest.approx(value, abs=1e-6)
        assert math.fsum(why.contributions) == pytest.approx(why.score, rel=1e-14)
        raw = sum(c * r for c, r in zip(why.coefficients, why.objective_scores, strict=True))
        assert raw == pytest.approx(value, abs=1e-5)
        assert why.adjusted_scores[2] == why.contributions[2] == 0  # verbosity itself
        assert sum(why.gates) == pytest.approx(1, abs=1e-6)
        # 0..4 of HelpSteer is (rating + .5) / 5.
        assert why.as_rated[0] == pytest.approx(5 * why.objective_scores[0] - 0.5, abs=1e-6)


def test_two_answers_side_by_side_differ_in_objectives_and_not_in_gates(backbone):
    model = mixture(backbone, CONTEXT)
    one, two = (model.explain("question", text) for text in ("yes", "certainly not"))
    deltas = [a - b for a, b in zip(one.contributions, two.contributions, strict=True)]

    assert one.gates == two.gates
    assert one.coefficients == two.coefficients
    assert sum(deltas) == pytest.approx(one.score - two.score, abs=1e-9)
    assert any(abs(delta) > 1e-3 for delta in deltas)


def test_answers_are_explained_together_as_alone(backbone):
    model = mixture(backbone, CONTEXT)
    rendered = render_all(backbone, answers()[:4]).rendered
    together = model.explain_rendered(rendered)

    assert len(together) == 4
    for answer, why in zip(answers(), together, strict=False):
        alone = model.explain_of(answer)
        assert why.contributions == pytest.approx(alone.contributions, abs=1e-5)


def test_a_head_without_objectives_explains_nothing_and_says_what_does(backbone):
    model = reward_model(backbone, Recipe())

    assert not model.explains
    assert mixture(backbone, CONTEXT).explains
    with pytest.raises(RecipeError, match="no sum over objectives; expected a mixture head"):
        model.explain("question", "answer")


@pytest.mark.parametrize("name", RECIPES)
def test_token_scores_are_those_of_the_linear_head_that_the_prompt_makes(backbone, name):
    model = mixture(backbone, RECIPES[name])
    answer = answers()[4]
    view = model.token_scores_of(answer, by_layer=True)
    tokens = replace(RECIPES[name], pooling="tokens", context="none")
    (rendered,) = render_all(backbone, [answer]).rendered
    states = read_rendered(backbone, [rendered], Reducer(tokens, backbone)).values
    head, why = model.artifact.head, model.explain_of(answer)
    weight = head.weight.T.double() @ torch.tensor(why.coefficients, dtype=torch.float64)

    assert np.allclose(view.rewards, states.double() @ weight.detach(), atol=1e-5)
    assert view.contributions.sum() == pytest.approx(view.score, abs=1e-5)
    assert view.score == pytest.approx(float(model.score([answer])[0]), abs=1e-5)
    assert view.running[-1] == pytest.approx(view.score, abs=1e-6)
    assert view.layers == tuple(layer for layer, _ in RECIPES[name].wanted(backbone.n_layers))
    assert np.allclose(view.by_layer.sum(axis=1), view.rewards, atol=1e-5)
