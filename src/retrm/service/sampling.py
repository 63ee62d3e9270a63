"""Answers drawn for the playground: POST /v1/sample; a convenience, no engine for a training run.

The one thread that owns the device also scores, so an answer is drawn in slices of a fraction of a second,
and whatever was asked meanwhile has its turn between two of them. Few answers, of few tokens, are drawn for
few clients at a time; when a client goes away its drawing ends with the slice that is under way.
"""

import time
from dataclasses import dataclass

from pydantic import BaseModel, Field

from retrm.backbone.generate import Drawing
from retrm.backbone.sampled import Sampled
from retrm.errors import DataError, DeadlineError
from retrm.records import Prompt
from retrm.scorers.together import StateScorer
from retrm.service.core import Service
from retrm.service.dialects.base import Body, Json, unknown_fields
from retrm.service.models import Registry
from retrm.service.playground import MOST_ANSWERS, MOST_NEW_TOKENS

SLICE_S = 0.2
"""Seconds for which a drawing holds the device; one token of all answers at least."""
MOST_DRAWINGS = 2
"""Questions that are answered at a time: each keeps its states on the device between two slices."""


class SampleBody(Body):
    """POST /v1/sample: what to answer, how often and how."""

    model: str | None = None
    prompt: str = Field(min_length=1)
    n: int = Field(default=4, ge=1, le=MOST_ANSWERS)
    temperature: float = Field(default=0.8, ge=0, le=100)
    max_new_tokens: int = Field(default=96, ge=1, le=MOST_NEW_TOKENS)
    seed: int = Field(default=0, ge=0, lt=2**53)  # what JSON of a browser holds exactly


class DrawnAnswer(BaseModel):
    """An answer."""

    index: int
    text: str
    finished: bool
    num_tokens: int


class SampleReply(BaseModel):
    """The answers, in order."""

    object: str
    model: str
    answers: list[DrawnAnswer]
    warnings: list[str]


@dataclass(frozen=True)
class _Posted:
    dialect: str = "playground"
    path: str = "/v1/sample"
    methods: tuple[str, ...] = ("POST",)
    request: type[BaseModel] = SampleBody
    reply: type[BaseModel] = SampleReply
    summary: str = "answers drawn from the language model of a reward model"


POSTED = _Posted()
"""The path for the description."""


@dataclass(frozen=True)
class _Begun:
    model: str
    drawing: Drawing


class Sampling:
    """Draws answers with the models of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._n_drawings = 0

    async def draw(self, body: SampleBody, *, deadline_s: float | None = None) -> Json:
        """The reply to a request, `SampleReply` as plain JSON.

        Raises:
            UnknownModelError: no model of that name.
            DataError: the model has no language model of its own to draw from.
            OverlongError, RenderError, RecipeError: by the prompt or the options.
            BusyError, NotReadyError, DeadlineError: as `Service.judge`.
        """
        service = self._service
        if self._n_drawings >= MOST_DRAWINGS:
            raise service.worker.busy(f"answers to {self._n_drawings} questions are being drawn")
        limit_s = min(deadline_s or service.settings.deadline_s, service.settings.deadline_s)
        self._n_drawings += 1
        try:
            begun = await self._drawn(body, limit_s)
        finally:
            self._n_drawings -= 1
        return {
            "object": "list",
            "model": begun.model,
            "answers": [_written(one) for one in begun.drawing.answers],
            "warnings": list(unknown_fields(body)),
        }

    async def _drawn(self, body: SampleBody, limit_s: float) -> _Begun:
        until = time.monotonic() + limit_s
        begun = await self._service.on_worker(
            lambda registry: _begin(registry, body), deadline_s=limit_s
        )
        while not begun.drawing.is_done:
            left_s = until - time.monotonic()
            if left_s <= 0:
                raise DeadlineError(
                    f"the answers were not drawn within {limit_s:g} s; ask for fewer, or for fewer "
                    "tokens"
                )
            await self._service.on_worker(lambda _: _slice(begun.drawing), deadline_s=left_s)
        return begun


def _begin(registry: Registry, body: SampleBody) -> _Begun:
    served = registry.get(body.model)
    if not isinstance(served.scorer, StateScorer):
        raise DataError(
            f"{served.info.name} has no language model of its own to draw answers from; choose a model "
            "that reads hidden states, or write the answers"
        )
    drawing = Drawing(
        served.scorer.backbone,
        Prompt.of(body.prompt),
        n=body.n,
        temperature=body.temperature,
        max_new_tokens=body.max_new_tokens,
        seed=body.seed,
    )
    return _Begun(served.info.name, drawing)


def _slice(drawing: Drawing) -> None:
    until = time.monotonic() + SLICE_S
    while not drawing.is_done:
        drawing.step()
        if time.monotonic() >= until:
            return


def _written(one: Sampled) -> Json:
    return {
        "index": one.number,
        "text": one.response,
        "finished": bool(one.finished),
        "num_tokens": len(one.token_ids or ()),
    }
