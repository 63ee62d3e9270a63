"""Rewards from a `retrm serve`: one client for threads, its twin for event loops. httpx and no torch.

>>> client = RewardClient("http://127.0.0.1:8000")                        # doctest: +SKIP
>>> [r.score for r in client.score("What is 3 + 4?", ["7", "8"])]         # doctest: +SKIP

Many answers travel in requests of a few, a bounded number of requests at a time; rewards come back in the
order of the answers. What may pass (429, 502, 503, 504, broken connections, silence) is tried again by the
rule of `retrm.patience`, since asking twice changes nothing on the server; any other refusal is an error at
once, with the server's own words. A failure is never a reward: every method raises `EndpointError`.

After `breaker_after` requests in a row that failed for good, the client sends nothing for `breaker_s` and
raises at once: a training step must not wait hours for a server that is gone. Then one request is let
through to see.

The key is taken from the environment variable RETRM_TOKEN only, so that it stands in no file and no
pickle. Connections are made at the first request and never pickled; a forked process and another event
loop get their own.
"""

import asyncio
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import httpx

from retrm.patience import CONNECT_S, Attempts, in_words
from retrm.service.requests import (
    Asked,
    ClientSettings,
    Conversation,
    Outcome,
    conversations_of,
    options_of,
    texts_of,
)
from retrm.service.rewards import (
    BestOfN,
    Health,
    ModelInfo,
    Ranked,
    Reward,
    RewardObjective,
    RewardToken,
)

__all__ = [
    "AsyncRewardClient",
    "BestOfN",
    "Health",
    "ModelInfo",
    "Ranked",
    "Reward",
    "RewardClient",
    "RewardObjective",
    "RewardToken",
]


class _GivenUp(Exception):
    """Another request of the same call failed, so that nobody wants this one's reply."""


class RewardClient(ClientSettings):
    """Asks a server from threads; may be shared by them."""

    def reward(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        activation: str = "none",
        length_policy: str = "error",
        per_token: bool = False,
        per_layer: bool = False,
        per_objective: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Reward]:
        """Rewards of the last turns of conversations, in their order.

        Args:
            messages: one conversation (turns with `role` and `content`, the assistant's last) or a list
                of such.
            activation: what `value` is: `none` = the raw score, `sigmoid`, `calibrated`.
            length_policy: what is done beyond the context: `error`, `truncate_prompt`,
                `truncate_response`, or `skip` (the score is None).
            per_token: also the judged tokens.
            per_layer: also what each layer adds at each of them.
            per_objective: also what each objective adds to the score; for models of several
                objectives, at the price of reading each answer once more.
            tools: that the prompts offer, for templates that write them.

        Raises:
            EndpointError: the server refused, did not answer, or answered nonsense.
            RecipeError: an unknown activation or policy.
            DataError: the messages are none.
        """
        options = options_of(activation, length_policy, per_token, per_layer, tools, per_objective)
        return self._all(self._of_messages(conversations_of(messages), options))

    def score(
        self,
        prompt: str | Conversation,
        candidates: Sequence[str],
        *,
        activation: str = "none",
        length_policy: str = "error",
        per_token: bool = False,
        per_layer: bool = False,
        per_objective: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Reward]:
        """Rewards of several answers to one prompt, in their order; options and errors as `reward`."""
        options = options_of(activation, length_policy, per_token, per_layer, tools, per_objective)
        return self._all(self._of_candidates(prompt, candidates, options))

    def rendered(
        self,
        texts: Sequence[str],
        *,
        prompt_texts: Sequence[str | None] | None = None,
        activation: str = "none",
        length_policy: str = "error",
    ) -> list[Reward]:
        """Rewards of texts that hold prompt and answer in the model's own chat format, in their order.

        Args:
            texts: with all special tokens.
            prompt_texts: of each text, its beginning that is the prompt; needed where the template is
                not the one of the served model.
            activation: as `reward`.
            length_policy: as `reward`.

        Raises:
            EndpointError, RecipeError, DataError: as `reward`.
        """
        options = options_of(activation, length_policy)
        return self._all(self._of_rendered(texts_of(texts), prompt_texts, options))

    def best_of_n(self, prompt: str | Conversation, candidates: Sequence[str]) -> BestOfN:
        """The candidate that the model likes best; equal scores keep the earlier.

        Raises:
            EndpointError: as `reward`.
            DataError: there are no candidates.
        """
        return self._ask(self._choice(prompt, candidates), threading.Event())

    def models(self) -> tuple[ModelInfo, ...]:
        """What the server serves; requests that name none get the first."""
        return self._ask(self._listing(), threading.Event())

    def health(self) -> Health:
        """Whether the server is ready to score; asked once, and never an error."""
        try:
            response = self._http_client().get("/health", timeout=self._timeout(CONNECT_S))
        except httpx.HTTPError as error:
            return Health(False, f"{type(error).__name__}: {error}")
        return Health(response.status_code == 200, in_words(response))

    def close(self) -> None:
        """Give the connections back; the client may be used again."""
        with self._lock:
            http, self._http = self.__dict__.get("_http"), None
        if http is not None:
            http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _http_client(self) -> httpx.Client:
        with self._lock:
            if self.__dict__.get("_http") is None or self._pid != os.getpid():
                # Two processes must not talk on one connection: replies would be mixed up.
                self._http: httpx.Client | None = httpx.Client(**self._connection())
                self._pid = os.getpid()
            assert self._http is not None
            return self._http

    def _all(self, asked: Sequence[Asked]) -> list[Reward]:
        stop = (
            threading.Event()
        )  # set by the first fault, so that no other request waits for nothing
        if len(asked) < 2:
            return [reward for one in asked for reward in self._ask(one, stop)]
        faults: list[BaseException] = []

        def one(request: Asked) -> list[Reward]:
            try:
                return [] if stop.is_set() else self._ask(request, stop)
            except _GivenUp:
                return []
            except BaseException as fault:
                faults.append(fault)
                stop.set()
                return []

        with ThreadPoolExecutor(min(self.concurrency, len(asked))) as pool:
            try:
                parts = list(pool.map(one, asked))
            except BaseException:  # Ctrl-C should not wait for requests that may take minutes
                stop.set()
                raise
        if faults:
            raise faults[0]
        return [reward for part in parts for reward in part]

    def _ask(self, asked: Asked, stop: threading.Event) -> Any:
        options = self._send_options(asked)
        self._breaker.check()
        attempts = Attempts(self.patience, self.url, asked.about)
        while True:
            outcome = self._attempt(options, attempts)
            with self._breaker.counting():
                wait_s = attempts.wait_s(outcome)
            if wait_s is None:
                return self._understood(asked, outcome)
            if stop.wait(wait_s):
                raise _GivenUp

    def _attempt(self, options: Mapping[str, Any], attempts: Attempts) -> Outcome:
        try:
            timeout = self._timeout(attempts.left_s())
            with self._http_client().stream(**options, timeout=timeout) as response:
                content = bytearray()
                for part in response.iter_bytes():
                    content += part
                    # A time-out bounds silence only: a server that trickles would never end.
                    if not attempts.left_s():
                        return httpx.ReadTimeout("the reply took too long")
                return _plain(response, bytes(content))
        except httpx.HTTPError as error:
            return error


class AsyncRewardClient(ClientSettings):
    """Asks a server from event loops; the twin of `RewardClient`, with the same options and errors.

    One object may serve several loops, one after the other or in several threads: each has its own
    connections.
    """

    def _make_transient(self) -> None:
        super()._make_transient()
        self._https: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    async def reward(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        activation: str = "none",
        length_policy: str = "error",
        per_token: bool = False,
        per_layer: bool = False,
        per_objective: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Reward]:
        """Rewards of the last turns of conversations; see `RewardClient.reward`."""
        options = options_of(activation, length_policy, per_token, per_layer, tools, per_objective)
        return await self._all(self._of_messages(conversations_of(messages), options))

    async def score(
        self,
        prompt: str | Conversation,
        candidates: Sequence[str],
        *,
        activation: str = "none",
        length_policy: str = "error",
        per_token: bool = False,
        per_layer: bool = False,
        per_objective: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Reward]:
        """Rewards of several answers to one prompt; see `RewardClient.score`."""
        options = options_of(activation, length_policy, per_token, per_layer, tools, per_objective)
        return await self._all(self._of_candidates(prompt, candidates, options))

    async def rendered(
        self,
        texts: Sequence[str],
        *,
        prompt_texts: Sequence[str | None] | None = None,
        activation: str = "none",
        length_policy: str = "error",
    ) -> list[Reward]:
        """Rewards of texts in the model's own chat format; see `RewardClient.rendered`."""
        options = options_of(activation, length_policy)
        return await self._all(self._of_rendered(texts_of(texts), prompt_texts, options))

    async def best_of_n(self, prompt: str | Conversation, candidates: Sequence[str]) -> BestOfN:
        """The candidate that the model likes best; see `RewardClient.best_of_n`."""
        return await self._ask(self._choice(prompt, candidates))

    async def models(self) -> tuple[ModelInfo, ...]:
        """What the server serves."""
        return await self._ask(self._listing())

    async def health(self) -> Health:
        """Whether the server is ready to score; asked once, and never an error."""
        try:
            response = await self._http_client().get("/health", timeout=self._timeout(CONNECT_S))
        except httpx.HTTPError as error:
            return Health(False, f"{type(error).__name__}: {error}")
        return Health(response.status_code == 200, in_words(response))

    async def aclose(self) -> None:
        """Give the connections of this event loop back; the client may be used again."""
        with self._lock:
            http = self._https.pop(asyncio.get_running_loop(), None)
        if http is not None:
            await http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _http_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        with self._lock:
            is_forked, self._pid = self._pid != os.getpid(), os.getpid()
            # Connections belong to the loop that made them: those of ended loops cannot be closed.
            for gone in [one for one in self._https if is_forked or one.is_closed()]:
                del self._https[gone]
            if loop not in self._https:
                self._https[loop] = httpx.AsyncClient(**self._connection())
            return self._https[loop]

    async def _all(self, asked: Sequence[Asked]) -> list[Reward]:
        gate = asyncio.Semaphore(self.concurrency)

        async def one(request: Asked) -> list[Reward]:
            async with gate:
                return await self._ask(request)

        tasks = [asyncio.ensure_future(one(request)) for request in asked]
        try:
            return [reward for part in await asyncio.gather(*tasks) for reward in part]
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _ask(self, asked: Asked) -> Any:
        options = self._send_options(asked)
        self._breaker.check()
        attempts = Attempts(self.patience, self.url, asked.about)
        while True:
            outcome = await self._attempt(options, attempts)
            with self._breaker.counting():
                wait_s = attempts.wait_s(outcome)
            if wait_s is None:
                return self._understood(asked, outcome)
            await asyncio.sleep(wait_s)

    async def _attempt(self, options: Mapping[str, Any], attempts: Attempts) -> Outcome:
        left_s = attempts.left_s()
        try:
            async with asyncio.timeout(left_s):
                return await self._http_client().request(**options, timeout=self._timeout(left_s))
        except TimeoutError:
            return httpx.ReadTimeout("the reply took too long")
        except httpx.HTTPError as error:
            return error


def _plain(response: httpx.Response, content: bytes) -> httpx.Response:
    """What is looked at of a response that was read in parts, its content being unpacked already."""
    name = "retry-after"
    headers = {name: response.headers[name]} if name in response.headers else {}
    return httpx.Response(response.status_code, headers=headers, content=content)
