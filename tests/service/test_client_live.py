"""Both clients against the real application: what it sends is what they understand."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from listening import listening
from scored import reward_model
from served import model, service

from retrm.adapters import openrlhf
from retrm.adapters.judge import Judge, answer_of, shared_judge
from retrm.backbone.fake import FakeBackbone
from retrm.errors import RefusedError
from retrm.features.recipe import Recipe
from retrm.records import Answer
from retrm.scorers.open import open_scorer
from retrm.service.app import create_app
from retrm.service.client import AsyncRewardClient, RewardClient

BACKBONE = FakeBackbone()
RM, OTHER = model(BACKBONE), model(BACKBONE, seed=1)
LAYERS = reward_model(
    BACKBONE,
    Recipe(layers="all", point="hidden_states", pooling="tokens", dtype="bfloat16"),
    "gated",
)
TEXTS = ["one", "another", "a third, longer one", ""]


@pytest.fixture(scope="module")
def url():
    with listening(create_app(service({"rm": RM, "other": OTHER, "layers": LAYERS}))) as address:
        yield address


def test_scores_are_those_of_the_model_itself(url):
    expected = RM.score([("q", text) for text in TEXTS])
    with RewardClient(url, chunk_size=2) as client:
        found = client.score("q", TEXTS)
        talks = [
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
            for text in TEXTS
        ]
        np.testing.assert_allclose([r.score for r in client.reward(talks)], expected, atol=1e-5)
        best = client.best_of_n("q", TEXTS)
    np.testing.assert_allclose([r.score for r in found], expected, atol=1e-5)
    assert best.index == int(np.argmax(expected))
    assert best.text == TEXTS[best.index]
    assert {(r.model, r.head_id, r.truncated) for r in found} == {("rm", RM.identity, False)}
    assert all(r.num_tokens > 0 and 0 < r.calibrated < 1 and r.value == r.score for r in found)


def test_the_async_twin_gets_the_same(url):
    async def both():
        async with AsyncRewardClient(url, chunk_size=2) as client:
            return await client.score("q", TEXTS), await client.models(), await client.health()

    found, models, health = asyncio.run(both())
    with RewardClient(url) as client:
        assert [r.score for r in found] == pytest.approx(
            [r.score for r in client.score("q", TEXTS)], abs=1e-5
        )
        assert client.models() == models
    assert [one.name for one in models] == ["rm", "other", "layers"]
    assert health.is_ready


def test_a_model_is_chosen_by_name(url):
    expected = OTHER.score([("q", "one")])
    assert RewardClient(url, model="other").score("q", ["one"])[0].score == pytest.approx(
        expected[0], abs=1e-5
    )
    with pytest.raises(RefusedError, match="othre") as caught:
        RewardClient(url, model="othre").score("q", ["one"])
    assert caught.value.status == 404


def test_tokens_and_layers_are_read(url):
    (found,) = RewardClient(url, model="layers").score("q", ["one"], per_token=True, per_layer=True)
    expected = LAYERS.token_scores("q", "one")
    assert found.tokens is not None
    assert [t.text for t in found.tokens] == list(expected.tokens)
    np.testing.assert_allclose([t.reward for t in found.tokens], expected.rewards, atol=1e-4)
    np.testing.assert_allclose([t.running for t in found.tokens], expected.running, atol=1e-4)
    assert found.layer_scores is not None
    assert np.shape(found.layer_scores) == (len(found.tokens), len(found.layers))


def test_a_squashed_value_is_told_beside_the_raw_score(url):
    (found,) = RewardClient(url).score("q", ["one"], activation="sigmoid")
    assert found.activation == "sigmoid"
    assert found.value == pytest.approx(1 / (1 + np.exp(-found.score)))


def test_over_long_answers_are_refused_cut_or_left_out_as_asked(url):
    long = "x" * (BACKBONE.context_length + 10)
    client = RewardClient(url)
    with pytest.raises(RefusedError) as caught:
        client.score("q", ["one", long])
    assert caught.value.status == 400
    cut, skipped = (
        client.score("q", ["one", long], length_policy=policy)
        for policy in ("truncate_response", "skip")
    )
    assert (cut[0].truncated, cut[1].truncated, cut[1].dropped > 0) == (False, True, True)
    assert skipped[0].score is not None
    assert (skipped[1].score, skipped[1].value) == (None, None)


def test_the_key_is_sent(monkeypatch):
    with listening(create_app(service(RM), token="secret")) as address:
        monkeypatch.setenv("RETRM_TOKEN", "wrong")
        with pytest.raises(RefusedError, match="RETRM_TOKEN") as caught:
            RewardClient(address).score("q", ["one"])
        monkeypatch.setenv("RETRM_TOKEN", "secret")
        found = RewardClient(address).score("q", ["one"])[0].score
        # The scorer `retrm:URL` is another client with the same key.
        assert open_scorer(f"retrm:{address}").score([Answer.of("q", "one")])[0] == found
    assert caught.value.status == 401


def test_rendered_texts_get_the_same_score_here_and_there(url, monkeypatch, tmp_path):
    # OpenRLHF's way: text with special tokens, by a server and by a folder in this process.
    folder = tmp_path / "head"
    RM.with_selftest([answer_of("q", "one", "w")]).save(folder)
    monkeypatch.delenv("RETRM_URL", raising=False)
    monkeypatch.delenv("RETRM_SCORER", raising=False)
    answer = answer_of("q", "one", "w")
    rendered = BACKBONE.renderer.render(answer)
    text = BACKBONE.renderer.text(rendered.ids)
    prompt = BACKBONE.renderer.text(rendered.ids[: rendered.start])
    expected = RM.score([answer])[0]
    for variable, value in (("RETRM_URL", url), ("RETRM_SCORER", str(folder))):
        shared_judge.cache_clear()
        monkeypatch.setenv(variable, value)
        found = openrlhf.reward_func([text], [prompt], [None])
        monkeypatch.delenv(variable)
        assert found["rewards"][0] == pytest.approx(expected, abs=1e-5), variable
    shared_judge.cache_clear()
    here = Judge(str(folder)).rewards([answer])[0]
    assert here.score == pytest.approx(expected, abs=1e-5)
    assert here.num_tokens == len(rendered.ids)
