"""Judges that a test writes: scripted outputs for the messages they are shown."""

import json
import re
from collections.abc import Callable, Sequence

from retrm.judges.asking import OnReply, Request
from retrm.judges.cache import Reply, Sampling
from retrm.records import Answer, Message, Prompt

Script = Callable[[str, str, int], str]
"""(text shown first, text shown second, number of the sample) -> what the judge writes."""

_PAIR = re.compile(
    r"\[The Start of (?:Chatbot A's Response|Answer 1|Response 1)\]\n(.*)\n"
    r"\[The End of (?:Chatbot A's Response|Answer 1|Response 1)\]\n\n"
    r"\[The Start of (?:Chatbot B's Response|Answer 2|Response 2)\]\n(.*)\n"
    r"\[The End of (?:Chatbot B's Response|Answer 2|Response 2)\]",
    re.DOTALL,
)


def shown_pair(messages: Sequence[Message]) -> tuple[str, str]:
    found = _PAIR.search(messages[-1].content)
    assert found is not None
    return found[1], found[2]


class ScriptedJudge:
    """Implements `JudgeModel`; keeps what it was asked."""

    def __init__(self, script: Script, *, identity: str = "scripted", fails_at: int = -1) -> None:
        self.script = script
        self.identity = identity
        self.fails_at = fails_at
        self.asked: list[tuple[str, str, int]] = []
        self.n_batches = 0

    def ask(self, requests: Sequence[Request], sampling: Sampling, on_reply: OnReply) -> None:
        del sampling
        self.n_batches += 1
        for place, request in enumerate(requests):
            first, second = shown_pair(request.messages)
            for number in request.numbers:
                if len(self.asked) == self.fails_at:
                    raise KeyboardInterrupt
                self.asked.append((first, second, number))
                text = self.script(first, second, number)
                on_reply(place, number, Reply(text, True, 100, len(text.split())))


def verdict(first: bool) -> str:
    """In the words of rm_r1."""
    return f"<answer>[[{'A' if first else 'B'}]]</answer>"


def longer_wins(first: str, second: str, number: int) -> str:
    del number
    return verdict(len(first) >= len(second))


def first_wins(first: str, second: str, number: int) -> str:
    del first, second, number
    return verdict(True)


def candidates(*texts: str, question: str = "q") -> list[Answer]:
    prompt = Prompt.of(question)
    return [Answer(prompt, text, prompt.key) for text in texts]


def replies(number: int, body: dict):
    """An engine that prefers the longer answer."""
    first, second = shown_pair([Message(**m) for m in body["messages"]])
    choice = {
        "message": {"role": "assistant", "content": longer_wins(first, second, 0)},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    return 200, {}, json.dumps({"choices": [choice], "usage": usage, "model": "m"}).encode()
