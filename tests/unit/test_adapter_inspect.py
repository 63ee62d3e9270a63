"""The Inspect adapter, against the real package where it is installed."""

import importlib
import json
import sys

import pytest

from retrm.errors import MissingExtraError

TURNS = {"It is 4": "C", "so 4": "C", "7": "I"}


def whole_log(samples):
    """A log as Inspect 0.3.285 writes it, without what no reader needs."""
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "created": "2026-11-21T22:14:30+00:00",
            "task": "task",
            "dataset": {},
            "model": "mockllm/model",
            "config": {"epochs": 3},
        },
        "plan": {},
        "results": {"scores": []},
        "stats": {},
        "samples": samples,
    }


def sample(epoch, text, value):
    return {
        "id": 1,
        "epoch": epoch,
        "input": "2+2?",
        "target": "4",
        "messages": [
            {"role": "user", "content": "2+2?", "source": "input"},
            {"role": "assistant", "content": text, "source": "generate"},
        ],
        "output": {"model": "m", "choices": [], "completion": text},
        "scores": {"includes": {"value": value, "answer": text}},
    }


@pytest.fixture
def adapter():
    pytest.importorskip("inspect_ai", reason="inspect-ai is not installed")
    return importlib.import_module("retrm.adapters.inspect")


@pytest.fixture
def log(tmp_path):
    file = tmp_path / "log.json"
    samples = [sample(i, text, value) for i, (text, value) in enumerate(TURNS.items(), 1)]
    file.write_text(json.dumps(whole_log(samples), indent=2))
    return file


def test_the_best_epoch_of_a_sample_is_kept(adapter, log):
    (kept,) = adapter.best_of_n(log, "shortest")
    # LengthScorer is minus the number of characters: 7, 4 and 1.
    assert kept.scores == (-7, -4, -1)
    assert (kept.sample_id, kept.response, kept.position, kept.score) == ("1", "7", 2, -1)
    assert (kept.label, kept.labels) == (0, (1, 1, 0))


def test_a_log_is_re_ranked_by_inspect_itself(adapter, log):
    from inspect_ai import score
    from inspect_ai.log import read_eval_log

    made = score(read_eval_log(log), adapter.reward(model="longest"), display="none")
    assert [s.scores["reward"].value for s in made.samples] == [7, 4, 1]
    assert made.results.scores[-1].metrics["mean"].value == 4


def test_a_sample_without_an_answer_is_left_unscored_with_the_reason(adapter, tmp_path):
    from inspect_ai import score
    from inspect_ai.log import read_eval_log

    empty = sample(2, " ", "I")
    file = tmp_path / "log.json"
    file.write_text(json.dumps(whole_log([sample(1, "It is 4", "C"), empty]), indent=2))
    made = score(read_eval_log(file), adapter.reward(model="longest"), display="none")
    first, second = (s.scores["reward"] for s in made.samples)
    assert first.value == 7
    assert second.value != second.value
    assert "empty answer" in second.explanation
    assert made.results.scores[-1].metrics["mean"].value == 7


def test_a_server_judges_and_what_it_says_beside_the_score_is_kept(adapter, log):
    from inspect_ai import score
    from inspect_ai.log import read_eval_log
    from reward_server import reward_server

    with reward_server() as server:
        scorer = adapter.reward(model=f"retrm:{server.url}")
        made = score(read_eval_log(log), scorer, display="none")
    # The stand-in's score is minus the number of characters, its tokens that number and 3.
    found = [s.scores["reward"] for s in made.samples]
    assert [one.value for one in found] == [-7, -4, -1]
    assert [one.metadata["tokens"] for one in found] == [10, 7, 4]
    assert {one.metadata["head_id"] for one in found} == {"abc"}


def test_what_a_server_cannot_judge_is_left_unscored_and_what_is_down_is_an_error(adapter, log):
    from inspect_ai import score
    from inspect_ai.log import read_eval_log
    from reward_server import refusal, reward_server

    with reward_server(lambda *_: refusal(400, "1 has 9,000 tokens")) as server:
        scorer = adapter.reward(model=f"retrm:{server.url}")
        made = score(read_eval_log(log), scorer, display="none")
    found = [s.scores["reward"] for s in made.samples]
    assert all(one.value != one.value and "9,000 tokens" in one.explanation for one in found)

    with (
        reward_server(lambda *_: refusal(401, "the key is wrong")) as server,
        pytest.raises(Exception, match="the key is wrong"),
    ):
        scorer = adapter.reward(model=f"retrm:{server.url}")
        score(read_eval_log(log), scorer, display="none")


def test_without_inspect_the_import_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    monkeypatch.delitem(sys.modules, "retrm.adapters.inspect", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'retrm\[inspect\]'"):
        importlib.import_module("retrm.adapters.inspect")
