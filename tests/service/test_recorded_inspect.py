"""The Inspect adapter without inspect-ai: what a real run gave it, and what it made of that.

`golden/inspect/run.json` was recorded while examples/inspect_log.py ran under the real package. The stand-ins
below have no more of Inspect than the adapter asks for.
"""

import asyncio
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from listening import listening

from retrm.service.app import create_app
from retrm.service.core import Service
from retrm.service.models import open_registry

ADAPTER = "retrm.adapters.inspect"
RECORD = json.loads(
    (Path(__file__).resolve().parents[1] / "golden" / "inspect" / "run.json").read_text("utf-8")
)


class Score(SimpleNamespace):
    """Inspect's, as far as the adapter makes it."""

    @classmethod
    def unscored(cls, *, reason, explanation):
        return cls(value=float("nan"), reason=reason, explanation=explanation)


class Message(SimpleNamespace):
    """A turn, which gives what was recorded of it."""

    def model_dump(self, *, mode):
        assert mode == "json"
        return vars(self)


@pytest.fixture
def adapter(monkeypatch):
    names = {
        "inspect_ai": {},
        "inspect_ai.log": {"EvalLog": object, "read_eval_log": None},
        "inspect_ai.scorer": {
            "Score": Score,
            "Target": object,
            "Scorer": object,
            "mean": lambda: None,
            "stderr": lambda: None,
            "scorer": lambda metrics: lambda make: make,
        },
        "inspect_ai.solver": {"TaskState": object},
    }
    for name, attributes in names.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, ADAPTER, None)  # so that what was imported before comes back
    del sys.modules[ADAPTER]
    return importlib.import_module(ADAPTER)


def state_of(record, **changes):
    messages = [Message(**turn) for turn in record["messages"]]
    return SimpleNamespace(**{**record, "messages": messages, **changes})


def test_what_inspect_gave_is_scored_as_it_was_then(adapter):
    with listening(create_app(Service(open_registry(["longest"])))) as url:
        score = adapter.reward(f"retrm:{url}")
        made = asyncio.run(score(state_of(RECORD["state"]), None))

    expected = RECORD["score"]
    assert (made.value, made.answer) == (expected["value"], expected["answer"]) == (1.0, "7")
    assert made.metadata == {**expected["metadata"], "model": f"retrm:{url}"}


def test_the_request_is_the_one_that_was_sent_then(adapter):
    from reward_server import reward_server

    with reward_server() as server:
        score = adapter.reward(f"retrm:{server.url}")
        asyncio.run(score(state_of(RECORD["state"]), None))

    assert server.requests == [RECORD["request"]]


def test_a_conversation_without_an_answer_is_left_unscored_with_the_reason(adapter):
    asked = state_of(RECORD["state"])
    asked.messages.pop()  # the assistant's turn
    with listening(create_app(Service(open_registry(["longest"])))) as url:
        made = asyncio.run(adapter.reward(f"retrm:{url}")(asked, None))

    assert made.value != made.value
    assert made.reason == "scoring_failed"
    assert "expected the assistant" in made.explanation
