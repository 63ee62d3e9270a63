"""its_hub: outcome and process reward models for best-of-N, beam search and particle filtering.

    BestOfN(RetrmOutcome(url="http://127.0.0.1:8000"))
    ParticleFiltering(sg, RetrmProcess(url="http://127.0.0.1:8000"))

Outcome scores are raw. Process scores are sigmoids of them, since particle filtering takes probabilities; the
order is the same. its_hub's searches hand a process model ONE text (a conversation is flattened to "role:
content" lines by its_hub itself) and the answers so far, one a path: each gets the score it would have if
it ended there.

Made for its_hub 1.2.0.
"""

from collections.abc import Sequence
from typing import Any

try:
    from its_hub.api import (
        AbstractOutcomeRewardModel,
        AbstractProcessRewardModel,
        ChatMessage,
        ChatMessages,
    )
except ImportError as error:
    from retrm.errors import MissingExtraError

    raise MissingExtraError(
        "retrm.adapters.its_hub needs the package its_hub, which is not installed. "
        "Run: pip install its_hub"
    ) from error

from retrm.adapters.judge import Judge, answer_of, conversation_of, score_of
from retrm.metrics.kernels import sigmoid
from retrm.records import Answer
from retrm.service.client import Reward


class _Judging:
    """What both are told; see `retrm.adapters.judge.Judge`."""

    def __init__(
        self,
        scorer: str | None = None,
        *,
        url: str | None = None,
        model: str | None = None,
        backbone: str | None = None,
        device: str = "cpu",
        length_policy: str = "error",
    ) -> None:
        self._judge = Judge(
            scorer,
            url=url,
            model=model,
            backbone=backbone,
            device=device,
            length_policy=length_policy,
        )


class RetrmOutcome(_Judging, AbstractOutcomeRewardModel):
    """Raw scores of conversations whose last turn is the assistant's."""

    def score(self, messages: Any, **kwargs: Any) -> list[float] | float:
        """Of one conversation its score, of several a list of scores.

        Raises:
            DataError: a conversation without an answer in text.
            EndpointError, RenderError, ScoreError: it could not be judged.
        """
        del kwargs
        answers, is_one = _conversations(messages)
        return _scores(self._judge.rewards(answers), is_one)

    async def ascore(
        self, messages: Any, orchestrator: Any = None, **kwargs: Any
    ) -> list[float] | float:
        """The same without blocking the event loop; the orchestrator is not needed."""
        del orchestrator, kwargs
        answers, is_one = _conversations(messages)
        return _scores(await self._judge.arewards(answers), is_one)


class RetrmProcess(_Judging, AbstractProcessRewardModel):
    """Scores in 0..1 of answers so far."""

    def score(self, prompt_or_messages: Any, steps: Sequence[str] | str) -> Any:
        """Of each answer so far the sigmoid of its raw score, in order; of one text a number.

        Raises:
            DataError, EndpointError, RenderError, ScoreError: as `RetrmOutcome.score`.
        """
        answers, is_one = _so_far(prompt_or_messages, steps)
        return _probabilities(self._judge.rewards(answers), is_one)

    async def ascore(self, prompt_or_messages: Any, steps: Sequence[str] | str) -> Any:
        """The same without blocking the event loop."""
        answers, is_one = _so_far(prompt_or_messages, steps)
        return _probabilities(await self._judge.arewards(answers), is_one)


def _conversations(messages: Any) -> tuple[list[Answer], bool]:
    is_batch = isinstance(messages, list | tuple) and all(
        isinstance(one, list | tuple | ChatMessages) for one in messages
    )
    several = messages if is_batch else [messages]
    answers = [conversation_of(_turns(one), f"conversation {i}") for i, one in enumerate(several)]
    return answers, not is_batch


def _so_far(prompt: Any, steps: Sequence[str] | str) -> tuple[list[Answer], bool]:
    asked = prompt if isinstance(prompt, str) else _turns(prompt)
    is_one = isinstance(steps, str)
    several = [steps] if isinstance(steps, str) else steps
    return [answer_of(asked, text, f"path {i}") for i, text in enumerate(several)], is_one


def _turns(conversation: Any) -> list[Any]:
    """Messages as dicts; content in parts is joined or refused where all messages are read."""
    if isinstance(conversation, ChatMessages):
        conversation = conversation.to_chat_messages()
    return [
        {"content": None, **one.to_dict()} if isinstance(one, ChatMessage) else one
        for one in conversation
    ]


def _scores(rewards: Sequence[Reward], is_one: bool) -> list[float] | float:
    scores = [score_of(reward) for reward in rewards]
    return scores[0] if is_one else scores


def _probabilities(rewards: Sequence[Reward], is_one: bool) -> list[float] | float:
    values = [float(sigmoid(score_of(reward))) for reward in rewards]  # type: ignore[arg-type]
    return values[0] if is_one else values
