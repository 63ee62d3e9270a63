"""The scorer: what it reads, both layouts on disk, bad folders, the server, other servers."""

import asyncio
import json

import numpy as np
import pytest
import torch
from polar_models import (
    QUESTION,
    compared,
    polar_network,
    polar_template,
    save_polar,
    save_published,
)
from safetensors.torch import load_file, save_file
from served import client, service

from retrm.backbone.reference import END, ReferenceLimits
from retrm.errors import ArtifactError, BackboneError, DataError, OverlongError
from retrm.records import Answer, Reference
from retrm.scorers.base import LimitedScorer
from retrm.scorers.open import open_scorer
from retrm.scorers.polar import PolarScorer, PolarText, pad_id_of
from retrm.scorers.polar_published import split_wqkv
from retrm.scorers.remote import DIALECTS
from retrm.service.models import named

ANSWERS = [
    compared(text) for text in ("Beijing", "Shanghai is what I would say.", "No", "I am not sure")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("polar") / "judge"
    save_polar(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder):
    return PolarScorer.load(folder)


def by_hand(model, template, answer: Answer) -> float:
    """The definition: one text, unpadded, the state of its last token, times the head."""
    text = (
        f"{answer.prompt.messages[0].content}\n{answer.reference.text}<|reward|>"
        f"{answer.prompt.messages[0].content}\n{answer.response}"
    )
    ids = [*template.tokenizer(text)["input_ids"], template.end_id]
    with torch.no_grad():
        states = model.model(input_ids=torch.tensor([ids])).last_hidden_state
    return float(states[0, -1] @ model.score.weight[0])


def test_scores_are_the_head_on_the_last_state_whatever_shares_the_batch(scorer):
    wanted = [by_hand(scorer.model, scorer.template, answer) for answer in ANSWERS]

    np.testing.assert_allclose(scorer.score(ANSWERS), wanted, atol=1e-5)
    np.testing.assert_allclose(scorer.score(ANSWERS[::-1]), wanted[::-1], atol=1e-5)
    np.testing.assert_allclose([scorer.score([a])[0] for a in ANSWERS], wanted, atol=1e-5)
    assert np.ptp(wanted) > 0.05  # a head that reads nothing would pass


def test_the_reference_is_read(scorer):
    other = scorer.score([compared("No", reference="Lyon.")])[0]

    assert abs(other - scorer.score([compared("No")])[0]) > 1e-3


def test_a_head_of_zeros_scores_zero():
    model = polar_network()
    torch.nn.init.zeros_(model.score.weight)

    assert not PolarScorer(model, polar_template(), name="new").score(ANSWERS).any()


def test_no_answers_give_no_scores(scorer):
    assert scorer.score([]).shape == (0,)


def test_an_answer_without_reference_is_refused(scorer):
    with pytest.raises(DataError, match="row 1: judge compares candidates with a reference"):
        scorer.score([ANSWERS[0], compared("x", reference=None)])


def test_long_answers_under_every_policy(scorer):
    rows = [ANSWERS[0], compared("x" * 80)]
    assert isinstance(scorer, LimitedScorer)

    with pytest.raises(OverlongError, match=r"row 1: .*truncate_left"):
        scorer.judge(rows)
    cut = scorer.judge(rows, overlong="truncate_left")
    assert cut.is_cut.tolist() == [False, True]
    # 2 x (29 + 1) + 8 + 60, separator and END.
    assert cut.n_tokens[1] == 2 * 30 + 8 + 60 + 2
    left = scorer.judge(rows, overlong="skip")
    assert np.isnan(left.scores[1])
    assert left.n_tokens[1] == 0
    assert cut.scores[0] == pytest.approx(left.scores[0], abs=1e-5)


def test_it_is_opened_by_name_and_served_under_its_own(folder):
    assert open_scorer(f"polar:{folder}").name == "judge"
    assert named(f"polar:{folder}")[0] == "judge"


def test_the_folder_of_a_run_is_taken_for_the_model_inside(tmp_path):
    save_polar(tmp_path / "run" / "model")

    assert PolarScorer.load(tmp_path / "run").name == "run"


def test_other_weights_are_another_scorer(folder, scorer, tmp_path):
    save_polar(tmp_path, seed=1)

    assert PolarScorer.load(folder).identity == scorer.identity
    assert PolarScorer.load(tmp_path).identity != scorer.identity
    shorter = PolarScorer.load(folder, limits=ReferenceLimits(100, 20))
    assert shorter.identity != scorer.identity


# ---------------------------------------------------------------------------------- the published layout


def test_a_published_model_scores_as_the_same_weights_do_under_our_names(tmp_path):
    model = polar_network(seed=3)
    save_published(tmp_path, model)
    published = PolarScorer.load(tmp_path)

    wanted = [by_hand(model, polar_template(), answer) for answer in ANSWERS]
    np.testing.assert_allclose(published.score(ANSWERS), wanted, atol=1e-5)
    # The context of the tiny model, and a quarter of it.
    assert published.template.limits == ReferenceLimits(256, 64)


def test_wqkv_is_taken_apart_group_by_group():
    # Two groups of (2 queries, key, value), one row a head: 0 1 k0 v0 2 3 k1 v1.
    config = polar_network().config
    config.hidden_size = 4
    rows = torch.tensor([[0.0], [1], [10], [20], [2], [3], [11], [21]])
    queries, keys, values = split_wqkv(rows, config)

    assert queries[:, 0].tolist() == [0, 1, 2, 3]
    assert keys[:, 0].tolist() == [10, 11]
    assert values[:, 0].tolist() == [20, 21]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 32}, "another size"),
        ({"num_hidden_layers": 3}, "nothing.*another size"),
        ({"num_hidden_layers": 1}, "no place.*another size"),
        ({"num_key_value_heads": 4}, "another size"),
        ({"bias": True}, "biases"),
        ({"reward_token_id": 7}, "another model"),
    ],
)
def test_a_published_checkpoint_of_another_size_is_refused(tmp_path, change, said):
    save_published(tmp_path, polar_network())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))

    with pytest.raises(BackboneError, match=f"(?s){said}"):
        PolarScorer.load(tmp_path)


def test_a_strange_weight_is_refused_by_name(tmp_path):
    save_published(tmp_path, polar_network())
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "output.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")

    with pytest.raises(BackboneError, match=r"'output\.weight'"):
        PolarScorer.load(tmp_path)


def test_a_published_model_without_tokenizer_json_says_how_to_make_one(tmp_path):
    save_published(tmp_path, polar_network())
    (tmp_path / "tokenizer.json").unlink()

    with pytest.raises(BackboneError, match=r"copy tokenizer\.json here"):
        PolarScorer.load(tmp_path)


# -------------------------------------------------------------------------------------------- bad folders


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="there is no folder"):
        PolarScorer.load(tmp_path / "missing")
    polar_network().save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=r"neither polar\.json.*hf:PATH"):
        PolarScorer.load(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"version": 9}', '{"version": 1, "separator": ""}', "[]"])
def test_a_damaged_mark_is_refused(tmp_path, text):
    save_polar(tmp_path)
    (tmp_path / "polar.json").write_text(text)

    with pytest.raises(ArtifactError, match=r"polar\.json cannot be read"):
        PolarScorer.load(tmp_path)


def test_a_checkpoint_of_another_size_is_refused(tmp_path):
    save_polar(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))

    with pytest.raises(BackboneError, match=r"must be that of its weights|lacks"):
        PolarScorer.load(tmp_path)


def test_padding_is_never_the_token_that_is_read():
    class Tokenizer:
        pad_token_id = 5
        eos_token_id = None
        unk_token_id = None

    assert pad_id_of(Tokenizer, 7) == 5
    assert pad_id_of(Tokenizer, 5) == 0
    Tokenizer.pad_token_id = None
    assert pad_id_of(Tokenizer, 0) == 1


# ---------------------------------------------------------------------------------------------- the server


def asked(scorer, path: str, body: dict):
    async def run():
        async with service({"judge": scorer}) as running, client(running) as http:
            return await http.post(path, json=body)

    return asyncio.run(run())


def test_the_calls_of_polars_client_are_served(scorer):
    texts = [PolarText(scorer.template).text(answer) for answer in ANSWERS]
    wanted = scorer.score(ANSWERS)

    sglang = asked(scorer, "/classify", {"model": "judge", "text": texts}).json()
    np.testing.assert_allclose([one["embedding"][0] for one in sglang], wanted, atol=1e-5)
    vllm = asked(scorer, "/pooling", {"input": texts}).json()
    np.testing.assert_allclose([d["data"][-1][0] for d in vllm["data"]], wanted, atol=1e-5)


def test_our_protocol_takes_a_reference(scorer):
    texts = [answer.response for answer in ANSWERS]
    body = {"prompt": QUESTION, "candidates": texts, "reference": "Beijing."}
    found = asked(scorer, "/v1/reward", body).json()["results"]
    np.testing.assert_allclose([one["score"] for one in found], scorer.score(ANSWERS), atol=1e-5)

    each = asked(scorer, "/v1/reward", {**body, "reference": ["Beijing."] * 4}).json()["results"]
    np.testing.assert_allclose([o["score"] for o in each], scorer.score(ANSWERS), atol=1e-5)
    best = asked(scorer, "/v1/best_of_n", body).json()
    assert best["best"]["text"] == texts[int(scorer.score(ANSWERS).argmax())]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/reward", {"prompt": "a", "candidates": ["b"]}, "the record has none"),
        ("/v1/reward", {"prompt": "a", "candidates": ["b"], "reference": " "}, "is empty"),
        ("/v1/reward", {"prompt": "a", "candidates": ["b"], "reference": ["x", "y"]}, "2 entries"),
        ("/v1/reward", {"rendered": ["a"], "reference": "x"}, "it goes with"),
        ("/classify", {"text": ["a\nb"]}, "expected prompt, reference"),
        ("/pooling", {"input": ["x" * 300 + f"<|reward|>x{END}"]}, "the template holds 240"),
    ],
)
def test_requests_that_cannot_be_compared_are_refused(scorer, path, body, said):
    reply = asked(scorer, path, body)

    assert reply.status_code == 400, reply.text
    assert said in reply.json()["error"]["message"]


def test_a_cut_is_told(scorer):
    body = {"prompt": QUESTION, "candidates": ["x" * 80], "reference": "Beijing."}
    refused = asked(scorer, "/v1/reward", body)
    assert refused.status_code == 400

    (cut,) = asked(scorer, "/v1/reward", {**body, "length_policy": "truncate_prompt"}).json()[
        "results"
    ]
    assert any("length rules" in warning for warning in cut["warnings"])


# ------------------------------------------------------------------------------------------ other servers


@pytest.mark.parametrize(
    ("kind", "field", "reply"),
    [
        ("polar-vllm", "input", {"data": [{"data": [[0.3], [-1.5]]}]}),
        ("polar-sglang", "text", [{"embedding": [-1.5]}]),
    ],
)
def test_other_engines_are_sent_what_polars_client_sends(folder, kind, field, reply):
    text = PolarText.load(str(folder))
    body = DIALECTS[kind].request(ANSWERS[0], text)

    assert body[field] == [f"{QUESTION}\nBeijing.<|reward|>{QUESTION}\nBeijing{END}"]
    assert DIALECTS[kind].score(reply) == -1.5


def test_continuations_are_compared_without_newline(scorer):
    answer = Answer.of("The sky is", " green.")
    row = Answer(answer.prompt, " green.", "p", reference=Reference(" blue.", "pretrain"))

    assert (
        PolarText(scorer.template).text(row) == f"The sky is blue.<|reward|>The sky is green.{END}"
    )
