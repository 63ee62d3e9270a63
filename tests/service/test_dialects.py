"""Dialects as plain functions: request in, items out; results in, reply out. No server, no model."""

import base64
import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from retrm.errors import DataError
from retrm.heads.explanation import Explanation
from retrm.records import Answer, Message, Prompt
from retrm.service.dialects import ROUTES
from retrm.service.dialects.base import Route
from retrm.service.items import (
    Answered,
    Call,
    Item,
    Judged,
    JudgedTokens,
    ServedModel,
    Truncation,
)

MODEL = ServedModel("math", "head-1", "elhsr", "tiny", "fp", 256, "float32", "sigmoid", True, True)
# 1 / (1 + exp(1.25)), worked out to ten digits.
SIGMOID = 0.2227001388
CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def route(path: str, body: dict, method: str = "POST") -> Route:
    """The first that claims the body, as the application chooses."""
    offered = [one for one in ROUTES if one.path == path and method in one.methods]
    return next(one for one in offered if one.claims(body))


def read(path: str, body: dict, **query: str) -> Call:
    chosen = route(path, body)
    return chosen.read(chosen.request.model_validate(body), query)


def reply(path: str, body: dict, *judged: Judged | float, **query: str):
    """The whole way with results that are given; the reply fits its declared shape."""
    chosen = route(path, body)
    parsed = chosen.request.model_validate(body)
    call = chosen.read(parsed, query)
    results = tuple(one if isinstance(one, Judged) else Judged(one, 7) for one in judged)
    assert len(results) == len(call.items)
    answered = Answered(MODEL, results, call.warnings, "r1", 1234)
    made = json.loads(json.dumps(chosen.write(parsed, answered, query), allow_nan=False))
    chosen.reply.model_validate(made)
    return made


def message_of(path: str, body: dict, **query: str) -> str:
    with pytest.raises((DataError, ValidationError)) as caught:
        read(path, body, **query)
    return str(caught.value)


# The worked replies: one answer, score -1.25


@pytest.mark.parametrize("switch", [{}, {"use_activation": False}, {"use_activation": None}])
def test_b12_classify_gives_the_raw_score_unless_asked_otherwise(switch):
    made = reply("/classify", {"model": "math", "input": "text", **switch}, -1.25)

    assert made == {
        "id": "classify-r1",
        "object": "list",
        "created": 1234,
        "model": "math",
        "data": [{"index": 0, "label": "reward", "probs": [-1.25], "num_classes": 1}],
        "usage": {
            "prompt_tokens": 7,
            "total_tokens": 7,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
        "activation": "none",
        "warnings": [],
    }


@pytest.mark.parametrize("name", ["use_activation", "activation", "softmax"])
def test_b12_all_three_names_of_the_switch_squash_and_say_so(name):
    made = reply("/classify", {"input": "text", name: True}, -1.25)

    assert made["data"][0]["probs"] == [pytest.approx(SIGMOID, abs=1e-10)]
    assert made["activation"] == "sigmoid"
    assert made["warnings"] == []


def test_switches_that_contradict_each_other_are_refused():
    told = message_of("/classify", {"input": "x", "use_activation": True, "activation": False})

    assert "got `use_activation` true, `activation` false; these are one switch" in told


def test_v1_classify_is_never_one_point_zero():
    made = reply("/v1/classify", {"model": "math", "input": "text"}, -1.25)

    assert made["data"][0]["probs"] == [-1.25]
    assert "softmax on this path" in made["warnings"][0]
    assert "holds the raw score" in made["warnings"][0]


def test_score_gives_prompts_and_answers_their_scores():
    made = reply("/score", {"queries": "2+2?", "documents": ["4", "5"]}, -1.25, 0.5)

    assert made["id"] == "embd-r1"
    assert made["data"] == [
        {"index": 0, "object": "score", "score": -1.25},
        {"index": 1, "object": "score", "score": 0.5},
    ]


def test_rerank_sorts_and_ties_keep_their_order():
    body = {"query": "2+2?", "documents": ["a", "b", "c"], "top_n": 2}
    made = reply("/v2/rerank", body, -1.25, 0.5, 0.5)

    assert made["id"] == "rerank-r1"
    assert made["results"] == [
        {"index": 1, "document": {"text": "b", "multi_modal": None}, "relevance_score": 0.5},
        {"index": 2, "document": {"text": "c", "multi_modal": None}, "relevance_score": 0.5},
    ]
    assert len(reply("/rerank", {**body, "top_n": 0}, 1.0, 2.0, 3.0)["results"]) == 3


def test_pooling_gives_one_number_for_classify_and_a_row_without_a_task():
    assert reply("/pooling", {"input": "x", "task": "classify"}, -1.25)["data"] == [
        {"index": 0, "object": "pooling", "data": [-1.25]}
    ]
    # Clients of token-wise reward models read data[-1][0].
    assert reply("/pooling", {"input": ["x"]}, -1.25)["data"][0]["data"][-1][0] == -1.25


def test_pooling_by_token_ends_in_the_score():
    column = np.array([0.1, 0.2])
    tokens = JudgedTokens(
        np.array([3, 4]), ("a", "b"), column, column, column, np.array([0.5, -1.25])
    )
    body = {"input": "x", "task": "token_classify"}

    assert read("/pooling", body).options.per_token
    made = reply("/pooling", body, Judged(-1.25, 5, tokens=tokens))
    assert made["data"][0]["data"] == [[0.5], [-1.25]]
    squashed = reply("/pooling", {**body, "use_activation": True}, Judged(-1.25, tokens=tokens))
    assert squashed["data"][0]["data"][-1] == [pytest.approx(SIGMOID, abs=1e-10)]


@pytest.mark.parametrize(("endianness", "form"), [("little", "<f"), ("big", ">f"), (None, "=f")])
def test_pooling_in_base64_is_float32(endianness, form):
    body = {"input": "x", "encoding_format": "base64", "endianness": endianness}
    text = reply("/pooling", body, -1.25)["data"][0]["data"]

    assert struct.unpack(form, base64.b64decode(text)) == (-1.25,)


def test_embeddings_are_a_vector_of_one():
    assert reply("/v1/embeddings", {"input": "x"}, -1.25)["data"] == [
        {"index": 0, "object": "embedding", "embedding": [-1.25]}
    ]
    text = reply("/v1/embeddings", {"input": "x", "encoding_format": "base64"}, -1.25)
    # What OpenAI's client does with it: np.frombuffer(base64.b64decode(text), dtype="float32").
    assert struct.unpack("<f", base64.b64decode(text["data"][0]["embedding"])) == (-1.25,)


def test_sglang_classify_gives_an_object_for_one_and_a_list_for_a_list():
    one = reply("/classify", {"text": "x", "model": "math"}, -1.25)
    many = reply("/classify", {"input_ids": [[1, 2], [3, 4]]}, -1.25, 0.5)

    assert one["embedding"] == [-1.25]
    assert one["meta_info"]["prompt_tokens"] == 7
    assert [item["embedding"] for item in many] == [[-1.25], [0.5]]
    assert reply("/classify", {"text": []}) == []
    assert isinstance(reply("/classify", {"text": ["x"]}, -1.25), list)
    assert isinstance(reply("/classify", {"input_ids": [1, 2]}, -1.25), dict)


def test_sglang_score_gives_nested_scores():
    made = reply("/v1/score", {"query": "2+2?", "items": ["4", "5"]}, -1.25, 0.5)

    assert made["object"] == "scoring"
    assert made["scores"] == [[-1.25], [0.5]]
    ids = read("/score", {"query": [1, 2], "items": [[3], [4, 5]]}).items
    assert ids == (
        Item(token_ids=(1, 2, 3), n_prompt_tokens=2),
        Item(token_ids=(1, 2, 4, 5), n_prompt_tokens=2),
    )


def test_sglang_rerank_is_a_list():
    body = {"query": "2+2?", "documents": ["a", "b"], "return_documents": True}
    made = reply("/v1/rerank", body, -1.25, 0.5)

    assert [(one["score"], one["document"], one["index"]) for one in made] == [
        (0.5, "b", 1),
        (-1.25, "a", 0),
    ]
    bare = reply("/v1/rerank", {**body, "return_documents": False, "top_n": 1}, -1.25, 0.5)
    assert [sorted(one) for one in bare] == [["index", "meta_info", "score"]]


def test_get_reward_gives_raw_rewards_and_scores_between_0_and_1():
    made = reply("/get_reward", {"query": ["x"], "prompts": ["p"], "labels": [None]}, -1.25)

    assert made["rewards"] == [-1.25]
    assert made["scores"] == [pytest.approx(SIGMOID, abs=1e-10)]
    assert made["extra_logs"] == {"tokens": [7.0], "truncated": [0.0], "unfinished": [0.0]}
    assert made["warnings"] == []


def test_get_reward_gives_binary_scores_that_a_filter_can_use():
    body = {"query": ["a", "b", "c"], "prompts": None, "labels": None}
    scores = (-1.25, 0.0, 0.5)

    assert reply("/get_reward", body, *scores, scores="binary")["scores"] == [0.0, 0.0, 1.0]
    below = reply("/get_reward", body, *scores, scores="binary", threshold="-1")
    assert below["scores"] == [0.0, 1.0, 1.0]
    assert below["rewards"] == list(scores)


def test_native_reply_says_everything():
    column = np.array([0.25, 0.5])
    tokens = JudgedTokens(
        np.array([5, 6]), ("4", "<end>"), column, column, column, column,
        (1, 2), np.array([[1.0, 2.0], [3.0, 4.0]]),
    )  # fmt: skip
    why = Explanation.of(("help",), (-5.0,), (-2.5,), (0.5,), (-1.25,), (0.25,))
    judged = Judged(-1.25, 7, Truncation("prompt", 3), True, ("eos_missing: x",), tokens, why)
    body = {
        "messages": CHAT, "activation": "sigmoid", "per_token": True, "per_layer": True,
        "per_objective": True, "length_policy": "truncate_prompt", "request_id": "mine",
    }  # fmt: skip
    made = reply("/v1/reward", body, judged)
    token = {"text": "4", "reward": 0.25, "gate": 0.25, "contribution": 0.25, "running": 0.25}

    assert made["object"] == "list"
    assert made["warnings"] == []
    assert made["usage"] == {
        "prompt_tokens": 7,
        "total_tokens": 7,
        "truncated": 1,
        "skipped": 0,
    }
    (result,) = made["results"]
    assert result.pop("token_scores")[0] == {"token_index": 5, **token}
    assert result.pop("objectives") == [
        {
            "name": "help",
            "score": -5.0,
            "adjusted": -2.5,
            "gate": 0.5,
            "contribution": -1.25,
            "coefficient": 0.25,
            "as_rated": None,
        }
    ]
    assert result.pop("value") == result.pop("calibrated") == pytest.approx(SIGMOID, abs=1e-10)
    assert result == {
        "index": 0,
        "score": -1.25,
        "calibration": "sigmoid",
        "activation": "sigmoid",
        "num_tokens": 7,
        "truncated": True,
        "truncation": {"side": "prompt", "dropped": 3},
        "unfinished": True,
        "layers": [1, 2],
        "layer_scores": [[1.0, 2.0], [3.0, 4.0]],
        "head_id": "head-1",
        "backbone": "tiny",
        "template_fingerprint": "fp",
        "warnings": ["eos_missing: x"],
    }


def test_native_reply_of_an_item_that_was_left_out_has_no_score():
    made = reply("/v1/reward", {"messages": CHAT, "length_policy": "skip"}, Judged(None, 0))

    (result,) = made["results"]
    assert (result["score"], result["value"], result["calibrated"]) == (None, None, None)
    assert made["usage"]["skipped"] == 1


def test_best_of_n_takes_the_first_of_equal_ones():
    body = {"prompt": "2+2?", "candidates": ["a", "b", "c"]}
    made = reply("/v1/best_of_n", body, 0.5, 2.0, 2.0)

    assert made["object"] == "best_of_n"
    assert made["best"] == {"index": 1, "text": "b", "score": 2.0}
    assert [place["index"] for place in made["ranking"]] == [1, 2, 0]
    assert len(read("/v1/best_of_n", {**body, "n": 2}).items) == 2


# Requests: what becomes of their texts


def test_the_four_forms_of_input_become_items():
    for path in ("/classify", "/pooling", "/v1/embeddings", "/v1/classify"):
        assert read(path, {"input": "a"}).items == (Item(text="a"),)
        assert read(path, {"input": ["a", "b"]}).items == (Item(text="a"), Item(text="b"))
        assert read(path, {"input": [1, 2]}).items == (Item(token_ids=(1, 2)),)
        assert read(path, {"input": [[1, 2], [3]]}).items == (
            Item(token_ids=(1, 2)),
            Item(token_ids=(3,)),
        )
        assert read(path, {"input": []}).items == ()


def test_messages_become_an_answer_and_its_prompt():
    (item,) = read("/classify", {"messages": CHAT}).items

    assert item.answer is not None
    assert item.answer.prompt == Prompt((Message("user", "2+2?"),))
    assert (item.answer.response, item.answer.finished) == ("4", None)
    (cut,) = read("/pooling", {"messages": CHAT, "continue_final_message": True}).items
    assert cut.answer is not None
    assert cut.answer.finished is False


@pytest.mark.parametrize(
    "names",
    [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")],
)
def test_pairs_of_texts_are_broadcast_or_matched(names):
    one, other = names
    for sent, pairs in [
        (("q", ["a", "b"]), [("q", "a"), ("q", "b")]),
        ((["q"], "a"), [("q", "a")]),
        ((["q", "r"], ["a", "b"]), [("q", "a"), ("r", "b")]),
        (("q", []), []),
    ]:
        items = read("/v1/score", {one: sent[0], other: sent[1]}).items
        assert [
            (item.answer.prompt.messages[0].content, item.answer.response) for item in items
        ] == pairs
    told = message_of("/score", {one: ["q", "r"], other: ["a", "b", "c"]})
    assert f"`{one}` has 2 entries, `{other}` 3" in told


def test_answers_to_one_prompt_share_its_object_so_that_its_reading_is_shared():
    for items in (
        read("/score", {"queries": "q", "documents": ["a", "b"]}).items,
        read("/rerank", {"query": "q", "documents": ["a", "b"]}).items,
        read("/v1/reward", {"prompt": "q", "candidates": ["a", "b"]}).items,
    ):
        assert items[0].answer.prompt is items[1].answer.prompt


def test_native_forms_become_items():
    assert read("/v1/reward", {"messages": [CHAT, CHAT]}).items[1].answer == Answer(
        Prompt.of("2+2?"), "4", Prompt.of("2+2?").key, where="messages[1]"
    )
    body = {"rendered": ["ab"], "prompt_texts": ["a"]}
    assert read("/v1/reward", body).items == (Item(text="ab", prompt_text="a"),)
    ids = {"token_ids": [[1, 2]], "n_prompt_tokens": [1]}
    assert read("/v1/reward", ids).items == (Item(token_ids=(1, 2), n_prompt_tokens=1),)
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    (item,) = read("/v1/reward", {"prompt": turns, "candidates": ["a"]}).items
    assert [m.role for m in item.answer.prompt.messages] == ["system", "user"]
    for empty in ({"messages": []}, {"rendered": []}, {"token_ids": []}):
        assert read("/v1/reward", empty).items == ()
    assert read("/v1/reward", {"messages": CHAT}).options.is_strict
    assert not read("/classify", {"messages": CHAT}).options.is_strict


def test_get_reward_pairs_texts_with_their_prompts():
    body = {"query": ["ab", "cd"], "prompts": ["a", "c"], "labels": ["4", None]}

    assert read("/get_reward", body).items == (
        Item(text="ab", prompt_text="a"),
        Item(text="cd", prompt_text="c"),
    )
    assert read("/get_reward", {"query": "ab"}).items == (Item(text="ab"),)
    empty = {"query": [], "prompts": [], "labels": []}
    assert reply("/get_reward", empty) == {
        "rewards": [],
        "scores": [],
        "extra_logs": {"tokens": [], "truncated": [], "unfinished": []},
        "warnings": [],
    }


@pytest.mark.parametrize(
    ("path", "body", "dialect"),
    [
        ("/classify", {"input": "x"}, "vllm"),
        ("/classify", {"messages": CHAT}, "vllm"),
        ("/classify", {"text": "x"}, "sglang"),
        ("/classify", {"input_ids": [1]}, "sglang"),
        ("/classify", {"text": "x", "input": "x"}, "vllm"),
        ("/classify", {}, "vllm"),
        ("/score", {"query": "q", "items": ["a"]}, "sglang"),
        ("/v1/score", {"queries": "q", "items": ["a"]}, "vllm"),
        ("/v1/rerank", {"query": "q", "documents": ["a"]}, "vllm"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "instruct": None}, "sglang"),
        ("/rerank", {"query": "q", "documents": ["a"], "return_documents": False}, "sglang"),
    ],
)
def test_shared_paths_are_told_by_their_fields(path, body, dialect):
    assert route(path, body).dialect == dialect


def test_every_body_is_claimed_by_the_last_dialect_of_its_path():
    for path in {one.path for one in ROUTES}:
        last = [one for one in ROUTES if one.path == path][-1]
        assert last.claims({})
        assert last.claims({"anything": 1})


def test_a_full_queue_is_503_for_every_foreign_client():
    # verl ends a run on any 4xx, 429 included.
    for one in ROUTES:
        assert one.busy_status == (429 if one.dialect == "retrm" else 503)


# Requests: what is refused or named


@pytest.mark.parametrize("one", ROUTES, ids=lambda one: f"{one.dialect}{one.path}")
def test_unknown_fields_are_named_and_normalize_is_an_error(one):
    bodies = {
        ("vllm", "score"): {"queries": "q", "documents": "a"},
        ("vllm", "rerank"): {"query": "q", "documents": ["a"]},
        ("sglang", "rerank"): {"query": "q", "documents": ["a"], "instruct": None},
        ("sglang", "score"): {"query": "q", "items": ["a"]},
        ("sglang", "classify"): {"text": "x"},
        ("openrlhf", "get_reward"): {"query": ["x"]},
        ("retrm", "reward"): {"messages": CHAT},
        ("retrm", "best_of_n"): {"prompt": "q", "candidates": ["a"]},
    }
    body = bodies.get((one.dialect, one.path.rpartition("/")[2]), {"input": "x"})

    made = reply(one.path, {**body, "temprature": 1}, -1.25)

    first = made[0] if isinstance(made, list) else made
    noted = first["warnings"] if "warnings" in first else first["meta_info"]["warnings"]
    assert "unknown field 'temprature' was ignored" in noted
    assert "got `normalize`, which vLLM has removed" in message_of(
        one.path, {**body, "normalize": False}
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "got the number 5; expected a text, a list of texts"),
        (True, "got the truth value True"),
        ({"text": "x"}, "got an object"),
        (["a", 1], "entry 1 is the number 1, entry 0 a text; expected texts only"),
        ([1, "a"], "has the text 'a' at 1; expected token ids only"),
        ([1, True], "has the truth value True at 1"),
        ([1, 2.0], "has the number 2.0 at 1"),
        ([[1], "a"], "entry 1 is the text 'a'; expected a list of token ids"),
        ([[1], []], "entry 1 is an empty list"),
        ([[[1]]], "entry 0 has a list at 0; expected token ids only"),
        ([None], "entry 0 is null"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_inputs_of_other_kinds_are_refused_by_name(value, message):
    told = message_of("/classify", {"input": value})

    assert "input" in told
    assert message in told


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/classify", {}, "neither `input` nor `messages`"),
        ("/classify", {"input": "x", "messages": CHAT}, "got `input` and `messages`"),
        ("/classify", {"messages": CHAT[:1]}, "the last message of `messages` is from 'user'"),
        ("/classify", {"messages": CHAT[1:]}, "holds an answer only"),
        ("/classify", {"messages": CHAT, "add_generation_prompt": True}, "`add_generation_prompt`"),
        ("/classify", {"messages": CHAT, "chat_template": "x"}, "got `chat_template`; the head was"),
        ("/classify", {"input": "x", "chat_template_kwargs": {"a": 1}}, "`chat_template_kwargs`"),
        ("/classify", {"input": "x", "truncate_prompt_tokens": 100}, "expected -1"),
        ("/classify", {"input": "x", "truncate_prompt_tokens": -2}, "expected -1"),
        ("/classify", {"input": "x", "truncation_side": "middle"}, "expected left or right"),
        ("/pooling", {"input": "x", "task": "embed"}, "`task` is 'embed'; expected classify"),
        ("/pooling", {"input": "x", "dimensions": 3}, "got `dimensions`"),
        ("/pooling", {"input": "x", "encoding_format": "bytes"}, "expected float or base64"),
        ("/pooling", {"input": "x", "embed_dtype": "float16"}, "expected float32"),
        ("/pooling", {"data": "x", "task": "plugin"}, "`task` is 'plugin'"),
        ("/v1/embeddings", {"input": "x", "dimensions": 2}, "expected 1 or null"),
        ("/score", {"queries": "q"}, "got `queries`; expected `queries` and `documents`"),
        ("/score", {}, "got no texts"),
        ("/score", {"queries": "q", "documents": "a", "instruction": "i"}, "got `instruction`"),
        ("/score", {"queries": "q", "documents": "a", "max_tokens_per_doc": 5}, "would change"),
        ("/score", {"queries": ["q", 1], "documents": "a"}, "entry 1 is the number 1"),
        ("/rerank", {"query": "q", "documents": ["a"], "top_n": -1}, "`top_n` is -1"),
        ("/v1/rerank", {"query": "q", "documents": ["a"], "instruct": "x"}, "got `instruct`"),
        ("/classify", {"text": "x", "input_ids": [1]}, "got `text` and `input_ids`"),
        ("/classify", {"text": "x", "image_data": "i"}, "got `image_data`; only text"),
        ("/classify", {"input_ids": "x"}, "`input_ids` holds text"),
        ("/classify", {"text": [1]}, "entry 0 is the number 1"),
        ("/v1/score", {"query": "q", "items": ["a"], "label_token_ids": [1]}, "`label_token_ids`"),
        ("/v1/score", {"query": "q", "items": ["a"], "apply_softmax": True}, "is 1.0 always"),
        ("/v1/score", {"query": "q", "items": ["a"], "item_first": True}, "`item_first`"),
        ("/v1/score", {"query": "q", "items": [[1]]}, "of different kinds"),
        ("/v1/score", {"query": [1], "items": ["a"]}, "of different kinds"),
        ("/v1/score", {"query": [1], "items": "a"}, "of different kinds"),
        ("/get_reward", {"query": ["a"], "prompts": ["p", "q"]}, "1 entries, `prompts` 2"),
        ("/get_reward", {"query": [None]}, "entry 0 is null"),
        ("/get_reward", {"prompts": []}, "query"),
        ("/v1/reward", {}, "got none of them; expected exactly one of `messages`"),
        ("/v1/reward", {"messages": CHAT, "rendered": ["x"]}, "got `messages`, `rendered`"),
        ("/v1/reward", {"prompt": "q"}, "got `prompt` without `candidates`"),
        ("/v1/reward", {"messages": CHAT, "candidates": ["a"]}, "`candidates` with `messages`"),
        ("/v1/reward", {"rendered": ["x"], "tools": []}, "`tools` with `rendered`"),
        ("/v1/reward", {"rendered": ["x"], "prompt_texts": []}, "0 entries, `rendered` 1"),
        ("/v1/reward", {"token_ids": [[1, True]]}, "token_ids.0.1"),
        ("/v1/reward", {"token_ids": [["a"]]}, "token_ids.0.0"),
        ("/v1/reward", {"messages": CHAT, "activation": "tanh"}, "activation"),
        ("/v1/reward", {"messages": CHAT, "length_policy": "middle"}, "length_policy"),
        ("/v1/reward", {"messages": [[]]}, "`messages[0]` is an empty list"),
        ("/v1/reward", {"rendered": ["\ud800"]}, "half of a surrogate pair"),
        ("/v1/best_of_n", {"prompt": "q", "candidates": []}, "`candidates` is empty"),
        ("/v1/best_of_n", {"prompt": "q", "candidates": ["a"], "n": 2}, "expected 1 to 1"),
        ("/v1/best_of_n", {"prompt": "q", "candidates": ["a"], "rule": "vote"}, "rule"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_naming_the_field(path, body, message):
    assert message in message_of(path, body)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"scores": "binray"}, "got scores='binray'. Did you mean 'binary'"),
        ({"threshold": "1"}, "without scores=binary"),
        ({"scores": "binary", "threshold": "high"}, "expected a number"),
        ({"scores": "binary", "threshold": "nan"}, "expected a number"),
        ({"length_policy": "skip"}, "got length_policy='skip'"),
    ],
)
def test_parameters_of_get_reward_are_checked(query, message):
    assert message in message_of("/get_reward", {"query": ["x"]}, **query)


@pytest.mark.parametrize(
    ("fields", "policy", "n_warnings"),
    [
        ({}, "error", 0),
        ({"truncation_side": "left"}, "error", 0),
        ({"truncate_prompt_tokens": -1, "truncation_side": "left"}, "truncate_prompt", 0),
        ({"truncate_prompt_tokens": -1, "truncation_side": "right"}, "truncate_response", 0),
        ({"truncate_prompt_tokens": -1}, "truncate_prompt", 1),
    ],
)
def test_b18_truncation_of_vllm_becomes_a_length_policy(fields, policy, n_warnings):
    call = read("/classify", {"input": "x", **fields})

    assert call.options.length_policy == policy
    assert len(call.warnings) == n_warnings


def test_b18_what_was_cut_is_told_in_the_reply():
    made = reply("/classify", {"input": "x"}, Judged(-1.25, 7, Truncation("prompt", 3)))

    assert made["warnings"] == [
        "item 0: truncated: 3 tokens of the prompt were dropped to fit the context"
    ]
    assert reply("/get_reward", {"query": ["x"]}, Judged(1.0, 7, Truncation("response", 2), True))[
        "extra_logs"
    ] == {"tokens": [7.0], "truncated": [1.0], "unfinished": [1.0]}


def test_fields_without_a_bearing_on_scores_are_no_warning():
    body = {
        "input": "x", "user": "u", "request_id": "r", "priority": 1, "cache_salt": "s",
        "padding": True, "add_special_tokens": True,
    }  # fmt: skip

    assert read("/classify", body).warnings == ()
    noted = read("/classify", {**body, "add_special_tokens": False}).warnings
    assert "exactly one BOS always" in noted[0]


def test_null_is_as_good_as_nothing():
    nulls = dict.fromkeys(
        ("messages", "use_activation", "truncate_prompt_tokens", "chat_template", "user"), None
    )

    assert read("/classify", {"input": "x", **nulls}) == read("/classify", {"input": "x"})


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=6,
    )
)
def test_any_input_is_read_or_refused_with_our_words(value):
    try:
        items = read("/classify", {"input": value}).items
    except (DataError, ValidationError):
        return
    assert all((one.text is None) != (one.token_ids is None) for one in items)


@settings(max_examples=40, deadline=None)
@given(st.floats(-50, 50))
def test_squashed_scores_are_between_0_and_1_and_monotone(score):
    values = [
        reply("/classify", {"input": "x", "use_activation": True}, s)["data"][0]["probs"][0]
        for s in (score, score + 1)
    ]

    assert 0 <= values[0] <= values[1] <= 1
    assert values[0] == pytest.approx(1 / (1 + math.exp(-score)), rel=1e-12)


def test_the_model_that_answered_is_named():
    other = replace(MODEL, name="other")
    chosen = route("/classify", {"input": "x"})
    parsed = chosen.request.model_validate({"input": "x"})
    made = chosen.write(parsed, Answered(other, (Judged(1.0),)), {})

    assert made["model"] == "other"
    assert read("/classify", {"input": "x", "model": "math"}).model == "math"
    assert read("/classify", {"input": "x"}).model is None
