"""Scores of servers, functions and files."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_engine import Engine, Reply, engine
from tiny import START, save_tiny, tiny_tokenizer

from retrm.backbone.render import ChatRenderer
from retrm.errors import DataError, EndpointError, RecipeError, ScoreError
from retrm.records import Answer
from retrm.scorers.foreign import CallableScorer, FileScorer, open_callable
from retrm.scorers.open import open_scorer, open_scorers, shown_spec
from retrm.scorers.remote import DIALECTS, RemoteScorer

ANSWERS = [Answer.of("2 + 2?", text) for text in ("four", "It is 4.", "5")]
RENDERER = ChatRenderer(tiny_tokenizer())


def said(value: object, status: int = 200) -> Reply:
    return status, {}, json.dumps(value).encode()


def reply_of(dialect: str, score: float) -> dict | list:
    """What each server sends for one answer, in its documented shape."""
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    return {
        "vllm": {
            "id": "classify-1",
            "object": "list",
            "data": [{"index": 0, "label": "reward", "probs": [score], "num_classes": 1}],
            "usage": usage,
        },
        "vllm-pooling": {
            "id": "pool-1",
            "data": [{"index": 0, "object": "pooling", "data": [score]}],
        },
        "sglang": {"embedding": [score], "meta_info": {"id": "x"}},
        "openrlhf": {"rewards": [score], "scores": [0.5], "extra_logs": {}},
        "retrm": {"results": [{"score": score, "num_tokens": 9, "truncated": False}]},
    }[dialect]


def length_of_answer(dialect: str, body: dict) -> float:
    """A server that scores by length, told from what the dialect sends."""
    if dialect == "sglang":
        text = RENDERER.text(body["input_ids"])
    elif dialect == "openrlhf":
        assert body["query"][0].startswith(body["prompts"][0])
        text = body["query"][0]
    else:
        messages = body["messages"][0] if dialect == "retrm" else body["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"]
        return float(len(messages[-1]["content"]))
    return float(len(text.rsplit(f"{START}assistant\n", 1)[1].split("<|im_end|>")[0]))


# What POLAR's engines are sent stands in test_polar_scorer.py: their answers have references.
@pytest.mark.parametrize("dialect", [name for name in DIALECTS if not name.startswith("polar")])
def test_every_dialect_gives_the_raw_scores_in_order(dialect: str) -> None:
    def script(_: int, body: dict) -> Reply:
        return said(reply_of(dialect, length_of_answer(dialect, body)))

    with engine(script) as server:
        scorer = RemoteScorer(dialect, server.url, renderer=RENDERER, served_model="rm")
        assert scorer.score(ANSWERS).tolist() == [4, 8, 1]
    assert {body.get("model") for body in server.requests} == {"rm"}
    assert set(server.paths) == {DIALECTS[dialect].path or "/"}


def test_vllm_is_told_to_apply_no_activation() -> None:
    with engine(lambda _, body: said(reply_of("vllm", -1.25))) as server:
        assert RemoteScorer("vllm", server.url + "/classify").score(ANSWERS[:1]).tolist() == [-1.25]
    assert server.requests[0]["use_activation"] is False
    assert server.paths == ["/classify"]


def test_faults_that_pass_are_tried_again_and_others_are_not() -> None:
    def script(number: int, _: dict) -> Reply:
        return said({}, 503) if number == 0 else said(reply_of("vllm", 1.0))

    with engine(script) as server:
        scorer = RemoteScorer("vllm", server.url, pause_s=0.01)
        assert scorer.score(ANSWERS[:1]).tolist() == [1]
    with engine(lambda *_: said({"error": "too long"}, 400)) as server:
        scorer = RemoteScorer("vllm", server.url, concurrency=1)
        with pytest.raises(EndpointError, match=r"refused .* with status 400: too long"):
            scorer.score(ANSWERS)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply", [{}, {"data": []}, {"data": [{"probs": []}]}, {"data": [{"probs": ["x"]}]}, [1.0]]
)
def test_a_reply_without_a_score_is_shown(reply: object) -> None:
    expected = pytest.raises(EndpointError, match="expected a score as vllm sends it")
    with engine(lambda *_: said(reply)) as server, expected:
        RemoteScorer("vllm", server.url).score(ANSWERS[:1])


def test_a_score_that_is_no_number_is_refused() -> None:
    expected = pytest.raises(ScoreError, match="as nan")
    with engine(lambda *_: (200, {}, b'{"rewards": [NaN]}')) as server, expected:
        RemoteScorer("openrlhf", server.url, renderer=RENDERER).score(ANSWERS[:1])


def test_requests_at_a_time_are_bounded() -> None:
    def script(_: int, __: dict) -> Reply:
        return said(reply_of("vllm", 0.0))

    with engine(script) as server:
        RemoteScorer("vllm", server.url, concurrency=2).score(ANSWERS * 20)
    assert isinstance(server, Engine)
    assert server.most_busy <= 2
    assert len(server.requests) == 60


def test_dialects_that_take_ids_need_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"sglang takes rendered text.*add --model NAME"):
        open_scorer("sglang:http://127.0.0.1:1")
    save_tiny(tmp_path)
    opened = open_scorer("sglang:http://127.0.0.1:1", model=str(tmp_path))
    assert isinstance(opened, RemoteScorer)
    assert opened.renderer is not None


def test_an_address_that_is_none_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(EndpointError, match="expected one like http://HOST:PORT"):
        open_scorer("vllm:localhost:8000")


# ------------------------------------------------------------------------------- functions


def test_a_function_is_given_messages_and_texts() -> None:
    seen = []

    def function(prompts: list, responses: list) -> list[float]:
        seen.append((prompts, responses))
        return [float(len(r)) for r in responses]

    assert CallableScorer(function, name="f").score(ANSWERS).tolist() == [4, 8, 1]
    prompts, responses = seen[0]
    assert prompts[0] == [{"role": "user", "content": "2 + 2?"}]
    assert responses == ["four", "It is 4.", "5"]


@pytest.mark.parametrize(
    ("result", "message"),
    [([1.0], r"gave \(1,\) scores for 3"), ([1, 2, math.nan], "as nan"), ("abc", "gave 'abc'")],
)
def test_a_function_that_gives_no_scores_is_refused(result: object, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        CallableScorer(lambda *_: result, name="f").score(ANSWERS)  # type: ignore[arg-type, return-value]


def test_functions_classes_and_scorers_of_a_module_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards_of_tests.py").write_text(
        "def length(prompts, responses):\n    return [len(r) for r in responses]\n"
        "class Half:\n    name = 'half'\n    def score(self, answers):\n"
        "        return [len(a.response) / 2 for a in answers]\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_callable("my_rewards_of_tests:length").score(ANSWERS).tolist() == [4, 8, 1]
    assert list(open_callable("my_rewards_of_tests:Half").score(ANSWERS)) == [2, 4, 0.5]
    with pytest.raises(RecipeError, match="is a int; expected a function"):
        open_callable("my_rewards_of_tests:number")
    with pytest.raises(RecipeError, match=r"has no 'lenght'\. Did you mean 'length'"):
        open_callable("my_rewards_of_tests:lenght")
    with pytest.raises(RecipeError, match="cannot import 'no_such_module_of_tests'"):
        open_scorer("call:no_such_module_of_tests:f")
    with pytest.raises(RecipeError, match="expected call:MODULE:NAME"):
        open_scorer("call:length")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def score(prompts, responses:\n", "failed with SyntaxError"),
        ("raise ValueError('no weights')\n", "failed with ValueError: no weights"),
    ],
)
def test_a_module_that_cannot_be_run_is_a_mistake_and_no_traceback(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_rewards_of_tests.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(RecipeError, match=words):
        open_callable("broken_rewards_of_tests:score")


@pytest.mark.parametrize("own", ["", "    identity = 'mine'\n"])
def test_another_source_of_a_class_is_another_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    source = "class Length:\n    name = 'l'\n{}    def score(self, answers):\n        return [{} for _ in answers]\n"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for number in (1, 22):
        (tmp_path / "lengths_of_tests.py").write_text(source.format(own, number))
        monkeypatch.delitem(sys.modules, "lengths_of_tests", raising=False)
        importlib.invalidate_caches()
        found.append(open_callable("lengths_of_tests:Length").identity)  # type: ignore[attr-defined]
    assert found[0] != found[1]
    assert ("mine" in found[0]) == bool(own)


def test_another_tokenizer_or_template_is_another_remote_scorer() -> None:
    other = ChatRenderer(tiny_tokenizer())
    other.tokenizer.chat_template = other.tokenizer.chat_template + "\n"
    url = "http://127.0.0.1:9"
    found = [RemoteScorer("sglang", url, renderer=r).identity for r in (RENDERER, other)]
    assert found[0] != found[1]
    assert found[0] == RemoteScorer("sglang", url, renderer=RENDERER).identity


def test_a_server_is_described_by_what_is_rendered_here() -> None:
    url = "http://127.0.0.1:9"
    here = RemoteScorer("sglang", url, renderer=RENDERER, served_model="m").provenance
    assert set(here) == {"served_model", "tokenizer", "template"}
    assert RemoteScorer("vllm", url).provenance == {}


def test_the_password_of_an_address_stands_nowhere() -> None:
    (name,) = opened = open_scorers(["vllm:http://user:hunter2@127.0.0.1:9/x"])
    assert name == "vllm:http://127.0.0.1:9/x"
    scorer = opened[name]
    assert "hunter2" not in scorer.name + scorer.identity  # type: ignore[attr-defined]
    assert shown_spec("runs/a@b") == "runs/a@b"
    with pytest.raises(EndpointError) as error:
        RemoteScorer("vllm", "ftp://user:hunter2@host")
    assert "hunter2" not in str(error.value)
    with pytest.raises(RecipeError, match="named twice") as twice:
        open_scorers(["vllm:http://a:hunter2@h:9", "vllm:http://b:hunter2@h:9"])
    assert "hunter2" not in str(twice.value)


# ------------------------------------------------------------------------------------- files


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_of_a_file_are_found_by_prompt_and_answer(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.jsonl",
        {"prompt": "2 + 2?", "responses": ["5", "four"], "score": [-1.0, 2.5]},
        {"prompt": "2 + 2?", "responses": ["It is 4."], "score": [3]},
    )
    assert FileScorer(path).score(ANSWERS).tolist() == [2.5, 3, -1]
    np.testing.assert_array_equal(open_scorer(f"scores:{path}").score(ANSWERS[:1]), [2.5])


def test_scores_of_pairs_are_found_by_name(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?", "chosen": "four", "rejected": "5"}
    path = write(tmp_path / "s.jsonl", {**row, "score": {"chosen": 1.5, "rejected": 0.5}})
    assert FileScorer(path).score([ANSWERS[0], ANSWERS[2]]).tolist() == [1.5, 0.5]


def test_an_answer_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", {"prompt": "2 + 2?", "responses": ["4"], "score": [1]})
    with pytest.raises(ScoreError, match=r"has no score of .*'four'"):
        FileScorer(path).score(ANSWERS)


def test_two_scores_of_one_answer_and_missing_ones_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?", "responses": ["4"]}
    twice = write(tmp_path / "t.jsonl", {**row, "score": [1]}, {**row, "score": [2]})
    with pytest.raises(DataError, match=r"t.jsonl:2: the score 2 of an answer is 1 at t.jsonl:1"):
        FileScorer(twice)
    missing = write(tmp_path / "m.jsonl", row)
    with pytest.raises(DataError, match=r"m.jsonl:1: `score` is None; expected a number for each"):
        FileScorer(missing)
