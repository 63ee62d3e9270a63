"""Servers around the toy backbone: what they read is counted, held back, or made to fail."""

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
from scored import reward_model

from retrm.backbone.base import StatePoint, TokenBatch, Visit
from retrm.backbone.fake import FakeBackbone
from retrm.features.recipe import Recipe
from retrm.records import Answer
from retrm.scorers.base import Scorer
from retrm.scorers.reward_model import RewardModel
from retrm.service.app import create_app
from retrm.service.core import Service
from retrm.service.items import Call, Item, Options
from retrm.service.models import Registry
from retrm.service.settings import ServiceSettings

BROKEN = ord("#")
"""A text with this character makes a `SpyBackbone` fail."""

PATIENT_S = 120.0
"""Bound of waits in tests: only a hanging server reaches it."""


class SpyBackbone(FakeBackbone):
    """The toy backbone, which remembers its passes and breaks where a text says so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.passes: list[TokenBatch] = []

    def forward(
        self, batch: TokenBatch, wanted: Collection[tuple[int, StatePoint]], visit: Visit
    ) -> None:
        self.passes.append(batch)
        if bool((batch.ids == BROKEN).any()):
            raise RuntimeError("a broken kernel")
        super().forward(batch, wanted, visit)

    @property
    def n_tokens(self) -> int:
        """Real tokens of all passes."""
        return sum(batch.n_tokens for batch in self.passes)


class PlainScorer:
    """The number of characters; NaN for `nan`, an error for `#`, the end for `exit`."""

    name = "plain"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        self.calls.append(len(answers))
        for answer in answers:
            if "#" in answer.response:
                raise RuntimeError("a broken function")
            if answer.response == "exit":
                raise SystemExit(3)
        return np.array([np.nan if a.response == "nan" else len(a.response) for a in answers])


def model(backbone: FakeBackbone, *, seed: int = 0, pooling: str = "mean") -> RewardModel:
    """A head on all layers."""
    return reward_model(backbone, Recipe(pooling=pooling), seed=seed)  # type: ignore[arg-type]


def service(scorers: Mapping[str, Scorer] | Scorer, **settings: Any) -> Service:
    """A service of some scorers; a single one is called `rm`."""
    named = scorers if isinstance(scorers, Mapping) else {"rm": scorers}
    return Service(Registry.of(named), ServiceSettings(**settings))


def call(*answers: Answer, name: str | None = None, **options: Any) -> Call:
    """What a dialect would make of these answers."""
    return Call(name, tuple(Item(answer=answer) for answer in answers), Options(**options))


def asked(prompt: str, *texts: str) -> list[Answer]:
    """Answers to one prompt."""
    return [Answer.of(prompt, text) for text in texts]


class Held:
    """The device's thread is busy until it is let go: what is sent meanwhile waits together."""

    def __init__(self, made: Service) -> None:
        self._service = made
        self._go = threading.Event()
        self._is_busy = threading.Event()

    async def __aenter__(self) -> "Held":
        def wait(_: Registry) -> None:
            self._is_busy.set()
            assert self._go.wait(PATIENT_S)

        self._job = asyncio.ensure_future(self._service.on_worker(wait))
        await asyncio.to_thread(self._is_busy.wait, PATIENT_S)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.go()
        await self._job

    def go(self) -> None:
        """Let it work."""
        self._go.set()

    async def until_waiting(self, n_items: int) -> None:
        """Until so many items stand in the queue."""
        async with asyncio.timeout(PATIENT_S):
            while self._service.worker.facts.waiting_items != n_items:
                await asyncio.sleep(0.002)


@asynccontextmanager
async def client(made: Service, *, token: str | None = None, **options: Any) -> Any:
    """A client of the application of a running service, in process."""
    transport = httpx.ASGITransport(create_app(made, token=token))
    async with (
        made,
        httpx.AsyncClient(
            transport=transport, base_url="http://server", timeout=PATIENT_S, **options
        ) as made_client,
    ):
        yield made_client


def run(work: Callable[[], Any]) -> Any:
    """The result of an async function, which is given up when it hangs."""

    async def bounded() -> Any:
        async with asyncio.timeout(2 * PATIENT_S):
            return await work()

    return asyncio.run(bounded())
