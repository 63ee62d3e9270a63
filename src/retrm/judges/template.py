"""What a judge template is: a pair of candidates to messages, and the judge's text to a verdict.

    render(prompt, first, second) -> messages      parse(output) -> Verdict

A template knows no model and no label, so it is tested without either. What a candidate writes is quoted
(`retrm.judges.quoting`) so that it cannot end its own block or speak in the judge's tags; `parse` is given
what the judge wrote and nothing else.

A verdict that cannot be read is None with the reason. It is never guessed from what is there.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from retrm.records import Message

Winner = Literal["first", "second", "tie"]

NO_TAG = "no verdict tag"
CUT = "cut by length"
TWO = "two verdicts"
ENDLESS = "the reasoning never ends"
EMPTY = "no output"
OTHER_TEXT = "the verdict is none of the allowed texts"


@dataclass(frozen=True)
class Verdict:
    """One reading of one judge output.

    Attributes:
        winner: which of the two is better; None = it cannot be read.
        problem: why `winner` is None, one of the few texts of this module so that they can be counted;
            None where there is a winner.
        reasoning: what stands before the verdict; None where nothing does.
        scores: by dimension, of the first and of the second candidate, where the template asks for
            scores and they can all be read.
        totals: of the first and the second as the judge wrote them; None where it wrote none.
        score_problem: why `scores` is None although the template asks for them.
        copies_example: whether all scores are those of the example in the prompt.
    """

    winner: Winner | None
    problem: str | None
    reasoning: str | None
    scores: tuple[Mapping[str, float], Mapping[str, float]] | None
    totals: tuple[float, float] | None = None
    score_problem: str | None = None
    copies_example: bool = False

    def __post_init__(self) -> None:
        assert (self.winner is None) == (self.problem is not None), "a reason, or a winner"

    @classmethod
    def unread(cls, problem: str, reasoning: str | None = None) -> "Verdict":
        """Without a winner."""
        return cls(None, problem, reasoning or None, None)

    @property
    def score_winner(self) -> Winner | None:
        """Who has the larger sum of dimension scores; None where they cannot be read."""
        if self.scores is None:
            return None
        first, second = (sum(side.values()) for side in self.scores)
        return "tie" if first == second else "first" if first > second else "second"


class JudgeTemplate(Protocol):
    """How one kind of judge is asked, and what its answers mean."""

    name: str

    def render(self, prompt: tuple[Message, ...], first: str, second: str) -> tuple[Message, ...]:
        """The messages that ask which of two answers to `prompt` is better.

        Raises:
            RenderError: the prompt says nothing.
        """
        ...

    def parse(self, output: str, *, finished: bool = True) -> Verdict:
        """What the judge says.

        Args:
            output: all that the judge wrote, without special tokens.
            finished: whether it came to its own end; a cut output without a verdict is counted apart.
        """
        ...


def template_mark(template: JudgeTemplate) -> str:
    """Sixteen hex digits of all that a template sends and of how it reads: part of every cache key."""
    probe = (Message("user", "\x00question"),)
    talk = (*probe, Message("assistant", "\x00said"), Message("user", "\x00again"))
    sent = [
        [message.as_dict() for message in template.render(prompt, "\x00first", "\x00second")]
        for prompt in (probe, talk)
    ]
    body = json.dumps([template.name, sent, getattr(template, "rule", None)])
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def mirrored(winner: Winner | None) -> Winner | None:
    """The same verdict with the candidates in the other order."""
    return {"first": "second", "second": "first", "tie": "tie", None: None}[winner]  # type: ignore[return-value]
