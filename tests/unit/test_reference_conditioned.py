"""The reference-conditioned head: POLAR's template on a frozen backbone, from the fit to the server."""

import asyncio
import json

import numpy as np
import pytest
from served import client, service
from tiny import save_tiny

from retrm.backbone.fake import FakeBackbone
from retrm.backbone.load import load_backbone
from retrm.data.load import load_table
from retrm.errors import BackboneError, DataError, FingerprintError, OverlongError, RecipeError
from retrm.features.read import read, render_all
from retrm.features.recipe import Recipe
from retrm.fitting.fit import fit
from retrm.methods import method
from retrm.records import Answer, Reference
from retrm.scorers.reward_model import RewardModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm")
    save_tiny(path, "llama", has_bos=True)
    return path


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(str(folder), template="reference")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The candidate that repeats the reference's word is chosen."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = ["aa", "bb", "cc", "dd"]
    rows = [
        {
            "prompt": f"question {i}",
            "reference": words[i % 4],
            "chosen": words[i % 4] + "!",
            "rejected": words[(i + 1) % 4] + "?",
        }
        for i in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_table(path)


@pytest.fixture(scope="module")
def model(table, backbone):
    return fit(table, backbone, [method("reference_conditioned")]).models[0]


def test_a_fitted_head_is_saved_loaded_and_scores_the_same(model, table, folder, tmp_path):
    model.save(tmp_path / "rm")
    loaded = RewardModel.load(tmp_path / "rm", model=str(folder))

    np.testing.assert_array_equal(loaded.score(table.answers), model.score(table.answers))
    assert loaded.artifact.recipe.template == "reference"
    chosen, rejected = model.score(table.answers)[::2], model.score(table.answers)[1::2]
    assert (chosen > rejected).mean() > 0.8


def test_another_reference_gives_another_score(model):
    prompt = Answer.of("question", "aa!").prompt
    scores = model.score(
        [Answer(prompt, "aa!", "p", reference=Reference(text)) for text in ("aa", "bb")]
    )
    assert abs(scores[0] - scores[1]) > 1e-4


def test_answers_behind_one_reference_share_the_reading_of_both_halves(backbone):
    prompt = Answer.of("question", "x").prompt
    rows = [Answer(prompt, t, "p", reference=Reference("aa")) for t in ("aa!", "bb?", "ccc")]
    reading = read(backbone, rows, {"m": Recipe(template="reference")})

    # <s> question \n aa </s> question \n = 1 + 8 + 1 + 2 + 1 + 8 + 1 tokens once, and 3 answers with their end.
    assert reading.n_tokens == 22 + 3 * 4


def test_answers_without_reference_are_refused(model):
    with pytest.raises(DataError, match="column `reference`"):
        model.score([("question", "aa!")])


def test_a_backbone_of_chats_is_refused(model, table, folder):
    chats = load_backbone(str(folder))
    with pytest.raises(FingerprintError, match="template"):
        RewardModel(model.artifact, chats)
    with pytest.raises(RecipeError, match="load it with template='reference'"):
        read(chats, table.answers, {"m": Recipe(template="reference")})
    with pytest.raises(BackboneError, match="knows chats only"):
        load_backbone("fake", template="reference")
    with pytest.raises(RecipeError, match="unknown template 'polar'"):
        Recipe(template="polar")
    with pytest.raises(RecipeError, match="template"):
        fit(table, FakeBackbone(), [method("reference_conditioned")])


def test_recipes_of_chats_are_stored_as_before():
    assert "template" not in Recipe().to_dict()
    stored = Recipe(template="reference").to_dict()
    assert Recipe.from_dict(stored) == Recipe(template="reference")


def test_long_answers_under_every_policy(backbone):
    prompt = Answer.of("question", "x").prompt
    rows = [
        Answer(prompt, t, "p", where=t[:1], reference=Reference("aa")) for t in ("aa", "b" * 90)
    ]

    with pytest.raises(OverlongError, match="b: "):
        render_all(backbone, rows)
    assert render_all(backbone, rows, overlong="skip").rows == (0,)
    cut = render_all(backbone, rows, overlong="truncate_left")
    assert cut.is_cut == (False, True)
    # 64 bytes of the answer, BOS counted: a quarter of 256.
    assert cut.rendered[1].n_response == 63 + 1


def test_it_is_served_with_a_reference(model, table):
    body = {"prompt": "question 0", "candidates": ["aa!", "bb?"], "reference": "aa"}

    async def ask(json):
        async with service({"rm": model}) as running, client(running) as http:
            return await http.post("/v1/reward", json=json)

    found = [one["score"] for one in asyncio.run(ask(body)).json()["results"]]
    np.testing.assert_allclose(found, model.score(table.answers[:2]), atol=1e-5)
    assert asyncio.run(ask({**body, "reference": None})).status_code == 400
    refused = asyncio.run(ask({"rendered": ["text"]}))
    assert refused.status_code == 400
    assert "references" in refused.json()["error"]["message"]
