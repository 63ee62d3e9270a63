"""The scoring core: from what a dialect asks to what it may answer; no web framework.

    async with Service(registry, ServiceSettings()) as service:
        answered = await service.judge(Call(model=None, items=(...,)))

Three threads share the work: the event loop, which only waits and counts; one that renders text to token
ids, in parts, so that a large request does not keep small ones waiting; and the worker of `batching`, which
owns the device.
"""

import asyncio
import copy
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

from retrm.errors import (
    DataError,
    DeadlineError,
    JudgingError,
    NotReadyError,
    RecipeError,
    RetrmError,
    TooLargeError,
    did_you_mean,
)
from retrm.scorers.reward_model import RewardModel
from retrm.service.batching import Job, Outcome, Ticket, Worker
from retrm.service.items import LENGTH_POLICIES, Answered, Call, Judged, Options
from retrm.service.lanes import Prepared, SetLane
from retrm.service.metrics import ServiceMetrics
from retrm.service.models import Registry, Served
from retrm.service.settings import ServiceSettings

ITEMS_PER_PART = 16
"""Items of a request that are rendered in a row before others have a turn."""

T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """How long a request took, seconds: the longest wait and the longest pass of its items."""

    wait_s: float = 0.0
    forward_s: float = 0.0


class Service:
    """Judges items with the served models, many requests at a time.

    Attributes:
        registry: the models.
        settings: limits and times.
        metrics: for Prometheus.
    """

    def __init__(self, registry: Registry, settings: ServiceSettings | None = None) -> None:
        self.registry = registry
        self.settings = settings or ServiceSettings()
        self.worker = Worker(
            self.settings,
            on_pass=lambda facts: self.metrics.passed(facts),
            n_taken=lambda: self._n_items,
        )
        infos = [one.info for one in registry]
        self.metrics = ServiceMetrics(infos, lambda: self.worker.facts)
        self._renders = ThreadPoolExecutor(1, thread_name_prefix="retrm-render")
        self._n_requests = 0
        self._n_items = 0
        self._n_bytes = 0
        self._state = "starting"

    async def start(self) -> None:
        """Begin to take requests."""
        if self._state == "starting":
            self.worker.start()
            self._state = "ready"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.drain()

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._state == "ready" and self.worker.is_alive

    @property
    def state(self) -> str:
        """`starting`, `ready`, `draining`, `ended`, or `failed` if the worker is gone."""
        if self._state == "ready" and not self.worker.is_alive:
            return "failed"
        return self._state

    @property
    def n_requests(self) -> int:
        """Requests that were taken and are not answered."""
        return self._n_requests

    def refuse_new(self) -> None:
        """From now on requests are refused; those that were taken are finished."""
        if self._state in ("starting", "ready"):
            self._state = "draining"

    async def finished(self, *, timeout_s: float | None = None) -> bool:
        """Wait until nothing that was taken is open; False if that takes longer than `timeout_s`."""
        until = time.monotonic() + (self.settings.drain_s if timeout_s is None else timeout_s)
        while self._n_requests and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return self._n_requests == 0

    async def drain(self) -> None:
        """Refuse what is new, finish what was taken within `drain_s`, and end."""
        if self._state == "ended":
            return
        self.refuse_new()
        is_done = await self.finished()
        rest_s = 1.0 if is_done else 0.0
        await asyncio.to_thread(self.worker.end, timeout_s=rest_s)
        self._renders.shutdown(wait=False)
        self._state = "ended"

    # Requests

    async def judge(
        self, call: Call, *, deadline_s: float | None = None, request_id: str | None = None
    ) -> Answered:
        """Scores of the items of `call`, in order.

        Args:
            call: what is asked.
            deadline_s: after which it is given up; at most, and by default, that of the settings.
            request_id: the client's own; None = a new one.

        Raises:
            UnknownModelError, DataError, RenderError, OverlongError, TooLargeError: by the request.
            BusyError, NotReadyError: it may be sent again.
            DeadlineError: it took too long.
            JudgingError, EndpointError: the model failed on an item; the message says on which.
        """
        answered, _ = await self.judge_timed(call, deadline_s=deadline_s, request_id=request_id)
        return answered

    async def judge_timed(
        self, call: Call, *, deadline_s: float | None = None, request_id: str | None = None
    ) -> tuple[Answered, Timing]:
        """As `judge`, and how long it took."""
        served = self.registry.get(call.model)
        _check_options(call.options, served)
        began = time.monotonic()
        with self._taken(len(call.items)):
            judged, outcomes = await self._within(self._judge(served, call), deadline_s)
        self.metrics.judged(served.info.name, judged, outcomes, time.monotonic() - began)
        answered = Answered(
            model=served.info,
            judged=judged,
            warnings=call.warnings,
            request_id=request_id or uuid.uuid4().hex,
            created=int(time.time()),
        )
        timing = Timing(
            wait_s=max((one.wait_s for one in outcomes), default=0.0),
            forward_s=max((one.forward_s for one in outcomes), default=0.0),
        )
        return answered, timing

    async def on_worker(
        self, job: Callable[[Registry], T], *, deadline_s: float | None = None
    ) -> T:
        """The result of `job`, called on the thread that owns the device when its turn comes.

        It goes on to its end if nobody waits for it any more, so it should be short.

        Raises:
            BusyError, NotReadyError, DeadlineError: as `judge`; otherwise what `job` raises.
        """
        with self._taken(0):
            return await self._within(self._job(job), deadline_s)

    async def on_renderer(self, job: Callable[[], T]) -> T:
        """The result of `job`, called on the thread that renders: for text work that takes a while.

        Raises:
            NotReadyError: the server has ended; otherwise what `job` raises.
        """
        try:
            begun = asyncio.get_running_loop().run_in_executor(self._renders, job)
        except RuntimeError as error:
            raise NotReadyError("the server has ended; send the request to another one") from error
        return await begun

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """A function that counts bytes of a request which are in memory, until the context ends.

        Raises:
            BusyError: by the function: there are too many already, of all requests together.
        """
        held = 0

        def hold(n_bytes: int) -> None:
            nonlocal held
            if self._n_bytes + n_bytes > self.settings.max_waiting_bytes:
                raise self.worker.busy(f"requests of {self._n_bytes} bytes are waiting")
            self._n_bytes += n_bytes
            held += n_bytes

        try:
            yield hold
        finally:
            self._n_bytes -= held

    def check_open(self) -> None:
        """Refuse a request that comes too early or too late.

        Raises:
            NotReadyError: the server does not take requests now.
        """
        if not self.is_ready:
            raise NotReadyError(
                f"the server is {self.state}; send the request to another one, or again later"
            )

    @contextmanager
    def _taken(self, n_items: int) -> Iterator[None]:
        """A request with so many items is under way."""
        self.check_open()
        limits = self.settings
        if n_items > limits.max_items:
            raise TooLargeError(
                f"got {n_items} items in a request; expected at most {limits.max_items}. Send several"
            )
        if self._n_items + n_items > limits.max_waiting_items:
            raise self.worker.busy(f"{self._n_items} items are waiting")
        self._n_requests += 1
        self._n_items += n_items
        try:
            yield
        finally:
            self._n_requests -= 1
            self._n_items -= n_items

    async def _within(self, what: Awaitable[T], deadline_s: float | None) -> T:
        limit_s = self.settings.deadline_s
        if deadline_s is not None:
            limit_s = min(limit_s, deadline_s)
        scope = asyncio.timeout(limit_s)
        try:
            async with scope:
                return await what
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise DeadlineError(
                f"the request was not finished within {limit_s:g} s and was given up; send it again "
                "later, in smaller parts, or with a later deadline"
            ) from error

    async def _judge(
        self, served: Served, call: Call
    ) -> tuple[tuple[Judged, ...], Sequence[Outcome]]:
        prepared = await self._prepare(served, call)
        n_tokens = sum(one.n_tokens for one in prepared)
        if n_tokens > self.settings.max_tokens:
            raise TooLargeError(
                f"got items of {n_tokens} tokens in a request; expected at most "
                f"{self.settings.max_tokens}. Send several"
            )
        outcomes = await self._queue(served, call.options, prepared)
        judged = []
        for number, (one, outcome) in enumerate(zip(prepared, outcomes, strict=True)):
            if outcome is not None and outcome.error is not None:
                raise _at(number, outcome.error)
            judged.append(_judged(one, outcome))
        if call.options.per_objective:
            judged = await self._explained(served, prepared, judged)
        return tuple(judged), [one for one in outcomes if one is not None]

    async def _explained(
        self, served: Served, prepared: Sequence[Prepared], judged: Sequence[Judged]
    ) -> list[Judged]:
        """With the objectives of each item, from a reading of its own; what was skipped has none.

        The score is that of this reading, too: readings differ in their last digits, and what is shown
        must add up to the score that stands beside it.
        """
        scorer = served.scorer
        assert isinstance(scorer, RewardModel), "refused before it was queued"
        found = list(judged)
        places = [i for i, one in enumerate(prepared) if one.rendered is not None]
        for start in range(0, len(places), ITEMS_PER_PART):
            part = places[start : start + ITEMS_PER_PART]
            texts = [text for i in part if (text := prepared[i].rendered) is not None]
            explained = await self._job(lambda _, texts=texts: scorer.explain_rendered(texts))
            for i, why in zip(part, explained, strict=True):
                found[i] = replace(found[i], score=why.score, explanation=why)
        return found

    async def _prepare(self, served: Served, call: Call) -> list[Prepared]:
        """All items rendered and cut, in parts, so that requests take turns."""

        def part(start: int) -> list[Prepared]:
            made = []
            for number, item in enumerate(call.items[start : start + ITEMS_PER_PART], start):
                try:
                    made.append(served.lane.prepare(item, call.options, served.scorer))
                except RetrmError as error:
                    raise _at(number, error) from error
            return made

        found: list[Prepared] = []
        for start in range(0, len(call.items), ITEMS_PER_PART):
            found += await self.on_renderer(lambda start=start: part(start))
        return served.lane.together(found) if isinstance(served.lane, SetLane) else found

    async def _job(self, job: Callable[[Registry], T]) -> T:
        """As `on_worker`, for a request that was taken: it is finished while new ones are refused."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = job(self.registry)
            except (Exception, SystemExit) as error:
                _settle(loop, done, None, error)
            else:
                _settle(loop, done, result, None)

        queued = Job(run, lambda error: _settle(loop, done, None, error))
        self.worker.put_job(queued)
        try:
            return await done
        finally:
            self.worker.drop_job(queued)

    async def _queue(
        self, served: Served, options: Options, prepared: Sequence[Prepared]
    ) -> list[Outcome | None]:
        """Outcomes of what was not skipped; leaving this early takes the items out of the queue."""
        loop = asyncio.get_running_loop()
        waits: list[asyncio.Future[Outcome] | None] = []
        tickets: list[Ticket] = []
        for one in prepared:
            if one.is_skipped:
                waits.append(None)
                continue
            done: asyncio.Future[Outcome] = loop.create_future()
            waits.append(done)
            tickets.append(
                Ticket(
                    lane=served.lane,
                    scorer=served.scorer,
                    prepared=one,
                    on_done=lambda outcome, done=done: _settle(loop, done, outcome, None),
                    wants_tokens=options.per_token or options.per_layer,
                    wants_layers=options.per_layer,
                )
            )
        self.worker.put(tickets)
        try:
            return [None if done is None else await done for done in waits]
        finally:
            self.worker.drop(tickets)


def _settle(
    loop: asyncio.AbstractEventLoop,
    done: "asyncio.Future[T]",
    result: T | None,
    error: BaseException | None,
) -> None:
    """Hand a result to a future of the event loop, from another thread."""

    def hand() -> None:
        if done.done():  # cancelled meanwhile
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]
        else:
            done.set_exception(error if isinstance(error, Exception) else JudgingError(repr(error)))

    loop.call_soon_threadsafe(hand)


def _check_options(options: Options, served: Served) -> None:
    if options.length_policy not in LENGTH_POLICIES:
        raise RecipeError(
            f"got length_policy = {options.length_policy!r}. "
            f"{did_you_mean(str(options.length_policy), LENGTH_POLICIES)}"
        )
    if (options.per_token or options.per_layer) and not served.info.can_show_tokens:
        raise DataError(
            f"{served.info.name} cannot show tokens: its score does not come from the tokens of the "
            "answer one by one. Ask without per_token"
        )
    if options.per_layer and not served.info.can_show_layers:
        raise DataError(
            f"{served.info.name} cannot show layers: its head does not add them up. Ask without per_layer"
        )
    if options.per_objective and not served.info.objectives:
        raise DataError(
            f"{served.info.name} cannot show objectives: it has one score that is no sum over any. Ask "
            "without per_objective, or a model that retrm fit --method armorm made"
        )


def _judged(one: Prepared, outcome: Outcome | None) -> Judged:
    return Judged(
        score=None if outcome is None else outcome.score,
        n_tokens=one.n_tokens,
        truncation=one.truncation,
        is_unfinished=one.is_unfinished,
        warnings=one.warnings,
        tokens=None if outcome is None else outcome.tokens,
    )


def _at(number: int, error: Exception) -> Exception:
    """The error with the item it is about; those that are no mistake of the request keep their kind."""
    if not isinstance(error, RetrmError):
        return error
    if isinstance(error, NotReadyError):
        return error
    made = copy.copy(error)  # with what it knows besides its message: a status, a time to wait
    made.args = (f"item {number}: {error}",)
    made.__cause__ = error
    return made
