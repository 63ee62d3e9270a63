"""Whether the last words of a judgement say what its verdict says (R1-Reward, arXiv 2505.02835).

    consistent  True = same meaning,  False = another one, both praised, or unclear,  None = not known

A judge reads the last three lines before the verdict beside the sentence "Response k is better", as the
authors do (Qwen2.5-VL-7B-Instruct at temperature 0.1, up to 3 tries). The `rule` needs no model: it reads which
response the last sentence that names one calls better. What a judge says that cannot be read is None; an endpoint
that fails stops the run, so that an unreachable judge never pays a reward.
"""

import re
from collections.abc import Sequence
from typing import Protocol

from retrm.finetuning.asked import asked
from retrm.finetuning.labelled import Label
from retrm.judges.asking import JudgeModel
from retrm.judges.cache import ReplyCache, Sampling
from retrm.judges.quoting import quoted
from retrm.records import Message

LINES = 3
TRIES = 3
_DIGIT = {"first": "1", "second": "2"}
_TAGS = re.compile(r"</?think>|<answer>.*", re.DOTALL)
_NAMED = re.compile(r"\b(?:response|answer)\s*#?([12])\b", re.IGNORECASE)
_NOT_BETTER = re.compile(
    r"\b(?:not|isn't|never)\b[^.]{0,30}\b(?:better|best|preferred|right|correct)\b"
    r"|\b(?:worse|wrong|inferior|incorrect)\b",
    re.IGNORECASE,
)
_BETTER = re.compile(
    r"\b(?:better|best|preferred|preferable|superior|wins|stronger|right|correct)\b", re.IGNORECASE
)
_BOTH = re.compile(r"\b(?:both|equally|neither|tie)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?\n]+(?=\s|$)")


class ConsistencyCheck(Protocol):
    """Compares last words with verdicts."""

    name: str

    def __call__(
        self, outputs: Sequence[str], verdicts: Sequence[Label | None]
    ) -> list[bool | None]:
        """One answer an output; None where there is no verdict, or nothing could be read."""
        ...


class RuleConsistency:
    """The rule that is described above."""

    name = "rule"

    def __call__(
        self, outputs: Sequence[str], verdicts: Sequence[Label | None]
    ) -> list[bool | None]:
        """See `ConsistencyCheck`."""
        return [
            None if verdict is None else (_said(output) == verdict)
            for output, verdict in zip(outputs, verdicts, strict=True)
        ]


def _said(output: str) -> Label | None:
    """Which response the last sentence that names one calls better; None = none, or both."""
    before = _TAGS.sub(" ", output)
    named = [part for part in _SENTENCE.split(before) if _NAMED.search(part)]
    if not named:
        return None
    sentence = named[-1]
    sides = [match[1] for match in _NAMED.finditer(sentence)]
    if _BOTH.search(sentence):
        return None
    if _NOT_BETTER.search(sentence):
        side = {"1": "2", "2": "1"}[sides[0]]
    elif _BETTER.search(sentence):
        side = sides[0]
    else:
        return None
    return "first" if side == "1" else "second"


class JudgeConsistency:
    """Asks a language model; what it said of the same words before is not asked again.

    Args:
        model: that is asked.
        cache: of its replies; None = in memory only.
        temperature: of its draws.
    """

    name = "judge"

    def __init__(
        self, model: JudgeModel, *, cache: ReplyCache | None = None, temperature: float = 0.1
    ) -> None:
        self.model = model
        self.cache = cache if cache is not None else ReplyCache()
        self.sampling = Sampling(temperature=temperature, max_new_tokens=8)

    def __call__(
        self, outputs: Sequence[str], verdicts: Sequence[Label | None]
    ) -> list[bool | None]:
        """See `ConsistencyCheck`.

        Raises:
            EndpointError: the judge cannot be reached; nothing is paid for that.
        """
        questions = {
            i: _question(output, verdict)
            for i, (output, verdict) in enumerate(zip(outputs, verdicts, strict=True))
            if verdict is not None
        }
        found: list[bool | None] = [None] * len(outputs)
        for number in range(TRIES):
            left = [i for i in questions if found[i] is None]
            replies = asked(
                *(self.model, [questions[i] for i in left], self.sampling, self.cache),
                number=number,
                purpose=self.name,
                mark=self.name,
            )
            for i, reply in zip(left, replies, strict=True):
                found[i] = {"1": True, "0": False}.get(reply.text.strip()[:1])
        return found


def _question(output: str, verdict: Label) -> tuple[Message, ...]:
    before = _TAGS.sub("", output).strip().splitlines()
    words = quoted("\n".join(before[-LINES:]))
    return (
        Message(
            "user",
            "Do these two texts name the same response as the better one? Write one digit: 1 if they do, 0 if "
            "they do not, if the first praises both, or if it is unclear.\n\n"
            f"First text:\n{words}\n\nSecond text:\nResponse {_DIGIT[verdict]} is better.",
        ),
    )
