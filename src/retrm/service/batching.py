"""The queue, and the one thread that owns the device.

Batching is continuous. The worker takes the item that has waited longest, fills its forward pass with
others that suit it (`lanes`), reads, hands over these results at once and looks at the queue again. Since
every pass holds the oldest item, none starves: before it come at most the items that were there earlier.
Only a worker that was idle waits, some milliseconds, for company that is on its way.

    queue --oldest, its family, its likes--> one pass --> results to their requests
      ^ put (event loop)                      |
      | drop (cancelled, too late)            a failed pass is tried again item by item, so that an
                                              error reaches the request that it belongs to, and no other
"""

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from retrm.errors import BusyError, JudgingError, NotReadyError, RetrmError
from retrm.scorers.base import Scorer
from retrm.scorers.reward_model import RewardModel
from retrm.service.items import JudgedTokens
from retrm.service.lanes import Lane, Prepared
from retrm.service.settings import ServiceSettings

_LOG = logging.getLogger(__name__)
_FIRST_SPEED = 500.0  # tokens a second, until a pass was measured
_MEMORY = 0.8  # weight of the past in the measured speed
_LONGEST_RETRY_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        score: raw and finite; None with an error.
        tokens: where they were asked for.
        error: why there is no score.
        wait_s: from being queued to the beginning of its pass.
        forward_s: of the pass, all of it.
    """

    score: float | None = None
    tokens: JudgedTokens | None = None
    error: Exception | None = None
    wait_s: float = 0.0
    forward_s: float = 0.0


@dataclass(eq=False)
class Ticket:
    """One item in the queue.

    Attributes:
        lane: of the model.
        scorer: the model.
        prepared: the item.
        on_done: told the outcome, on the worker's thread; not called for a dropped item.
        wants_tokens: whether its tokens are to be shown.
        wants_layers: whether what each layer adds is to be shown.
        queued_at: seconds of the monotonic clock.
        is_dropped: whether nobody waits for it any more.
    """

    lane: Lane
    scorer: Scorer
    prepared: Prepared
    on_done: Callable[[Outcome], None]
    wants_tokens: bool = False
    wants_layers: bool = False
    queued_at: float = 0.0
    is_dropped: bool = False


@dataclass(eq=False)
class Job:
    """Other work for the device's thread.

    Attributes:
        run: must not raise.
        on_lost: told why, if `run` will never be called.
        queued_at: seconds of the monotonic clock.
    """

    run: Callable[[], None]
    on_lost: Callable[[Exception], None]
    queued_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class PassFacts:
    """One forward pass: items, tokens of their texts, seconds."""

    n_items: int
    n_tokens: int
    elapsed_s: float


@dataclass(frozen=True)
class QueueFacts:
    """What is waiting and being read: items and tokens."""

    waiting_items: int
    waiting_tokens: int
    running_items: int


class Worker:
    """A bounded queue and the thread that empties it.

    Args:
        settings: budgets and bounds.
        on_pass: told of every pass, on the worker's thread.
        n_taken: items that were taken and are not answered, those in the queue included; called on the
            worker's thread.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        on_pass: Callable[[PassFacts], None] = lambda _: None,
        n_taken: Callable[[], int] = lambda: 0,
    ) -> None:
        self.settings = settings
        self._on_pass = on_pass
        self._n_taken = n_taken
        self._changed = threading.Condition()
        self._waiting: dict[int, Ticket] = {}  # by identity, oldest first
        self._jobs: deque[Job] = deque()
        self._running: Sequence[Ticket] = ()
        self._n_tokens = 0  # of those that wait
        self._is_ending = False
        self._speed = _FIRST_SPEED
        self._thread = threading.Thread(target=self._work, name="retrm-device", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def facts(self) -> QueueFacts:
        """Of the queue, now."""
        return QueueFacts(len(self._waiting), self._n_tokens, len(self._running))

    @property
    def seconds_of_work(self) -> float:
        """How long what waits will take, as the last passes say."""
        return self._n_tokens / self._speed

    def busy(self, what: str) -> BusyError:
        """The refusal of a request, with the time after which it may be sent again."""
        after_s = min(max(1.0, self.seconds_of_work), _LONGEST_RETRY_S)
        return BusyError(f"{what}; send the request again later", retry_after_s=after_s)

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Queue all of them, or none.

        Raises:
            BusyError: there is no room.
            NotReadyError: the worker is ending.
        """
        n_tokens = sum(one.prepared.n_tokens for one in tickets)
        now = time.monotonic()
        with self._changed:
            self._check_open()
            if len(self._waiting) + len(tickets) > self.settings.max_waiting_items:
                raise self.busy(f"{len(self._waiting)} items are waiting")
            if self._n_tokens + n_tokens > self.settings.max_waiting_tokens:
                raise self.busy(f"items of {self._n_tokens} tokens are waiting")
            for one in tickets:
                one.queued_at = now
                self._waiting[id(one)] = one
            self._n_tokens += n_tokens
            self._changed.notify()

    def put_job(self, job: Job) -> None:
        """Have a job run in its turn.

        Raises:
            BusyError, NotReadyError: as `put`.
        """
        with self._changed:
            self._check_open()
            if len(self._jobs) >= self.settings.max_jobs:
                raise self.busy(f"{len(self._jobs)} jobs are waiting")
            self._jobs.append(job)
            self._changed.notify()

    def drop_job(self, job: Job) -> None:
        """Nobody waits for it any more; it goes on if it has begun."""
        with self._changed, contextlib.suppress(ValueError):
            self._jobs.remove(job)

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """Nobody waits for these any more: they leave the queue; a pass that has begun goes on."""
        with self._changed:
            for one in tickets:
                one.is_dropped = True
                self._remove(one)

    def end(self, *, timeout_s: float) -> None:
        """Finish what was accepted and end the thread.

        What is still waiting after `timeout_s` gets a NotReadyError; the pass that is under way is not
        waited for.
        """
        with self._changed:
            self._is_ending = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        with self._changed:
            left, jobs = list(self._waiting.values()), list(self._jobs)
            self._waiting.clear()
            self._jobs.clear()
            self._n_tokens = 0
        error = NotReadyError(
            "the server ended before its turn came; send the request to another one"
        )
        for one in left:
            _tell(one, Outcome(error=error))
        for job in jobs:
            job.on_lost(error)

    def _check_open(self) -> None:
        if self._is_ending or not self._thread.is_alive():
            raise NotReadyError("the server is ending; send the request to another one, or later")

    def _remove(self, one: Ticket) -> None:
        if self._waiting.pop(id(one), None) is not None:
            self._n_tokens -= one.prepared.n_tokens

    # The thread

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            if isinstance(turn, Job):
                turn.run()
                continue
            chosen = self._choose(turn)
            self._pass(chosen)
            self._running = ()

    def _next(self) -> "list[Ticket] | Job | None":
        """A job, or what waits in the lane whose turn it is; None = the worker ends."""
        with self._changed:
            if not (self._waiting or self._jobs):
                self._changed.wait_for(lambda: self._waiting or self._jobs or self._is_ending)
                self._gather()
            oldest = next(iter(self._waiting.values()), None)
            if self._jobs and (oldest is None or self._jobs[0].queued_at <= oldest.queued_at):
                return self._jobs.popleft()
            if oldest is None:
                return None if self._is_ending else []
            return [one for one in self._waiting.values() if one.lane is oldest.lane]

    def _gather(self) -> None:
        """An idle worker waits for items that are being rendered, unless a pass is full already."""
        until = time.monotonic() + self.settings.window_ms / 1e3
        while not (self._is_ending or self._jobs) and 0 < self._n_tokens < self._budget:
            left = until - time.monotonic()
            is_alone = self._n_taken() <= len(self._waiting)
            if is_alone or left <= 0 or not self._changed.wait(left):
                break

    @property
    def _budget(self) -> int:
        return self.settings.tokens_per_batch

    def _choose(self, own: list[Ticket]) -> list[Ticket]:
        """The items of the next pass, out of the queue; chosen without the lock, for it takes a while."""
        try:
            chosen = own[0].lane.choose(own, self._budget) if own else []
        except Exception:
            # A dead thread would leave every request to its deadline: company is a gain, no need.
            _LOG.exception("company cannot be chosen; the oldest item is read alone")
            chosen = own[:1]
        with self._changed:
            chosen = [one for one in chosen if not one.is_dropped]
            for one in chosen:
                self._remove(one)
            self._running = chosen
        return chosen

    def _pass(self, chosen: Sequence[Ticket]) -> None:
        """One pass; where it fails, one for each item."""
        if not chosen:
            return
        began = time.monotonic()
        try:
            scores = chosen[0].lane.judge(chosen, self._budget)
        except (Exception, SystemExit) as error:
            # Items that are compared with one another would mean something else one by one.
            if len(chosen) == 1 or chosen[0].prepared.together is not None:
                _LOG.error("a pass of %d item(s) failed", len(chosen), exc_info=error)
                for one in chosen:
                    _tell(one, Outcome(error=_plain(error), wait_s=began - one.queued_at))
                return
            _LOG.warning(
                "a pass of %d items failed (%s); one by one now", len(chosen), type(error).__name__
            )
            for one in chosen:
                if not one.is_dropped:
                    self._pass([one])
            return
        elapsed_s = time.monotonic() - began
        self._measure(chosen, elapsed_s)
        for one, score in zip(chosen, scores, strict=True):
            if not one.is_dropped:
                self._finish(one, score, began, elapsed_s)

    def _finish(self, one: Ticket, score: float, began: float, elapsed_s: float) -> None:
        wait_s = began - one.queued_at
        if not math.isfinite(score):
            error = JudgingError(
                f"the model scored this item as {score}; expected a finite number. Run retrm doctor on it"
            )
            _tell(one, Outcome(error=error, wait_s=wait_s, forward_s=elapsed_s))
            return
        tokens, problem = None, None
        if one.wants_tokens:
            again = time.monotonic()
            try:
                tokens = _tokens_of(one)
            except (Exception, SystemExit) as error:
                _LOG.exception("the tokens of an item cannot be shown")
                problem = _plain(error)
            elapsed_s += time.monotonic() - again
        score_ = None if problem is not None else score
        _tell(one, Outcome(score_, tokens, problem, wait_s=wait_s, forward_s=elapsed_s))

    def _measure(self, chosen: Sequence[Ticket], elapsed_s: float) -> None:
        n_tokens = sum(one.prepared.n_tokens for one in chosen)
        if n_tokens and elapsed_s > 0:
            self._speed = _MEMORY * self._speed + (1 - _MEMORY) * n_tokens / elapsed_s
        try:
            self._on_pass(PassFacts(len(chosen), n_tokens, elapsed_s))
        except Exception:
            _LOG.exception("a pass was not counted")  # its scores are right all the same


def _tokens_of(one: Ticket) -> JudgedTokens:
    assert isinstance(one.scorer, RewardModel), "refused before it was queued"
    rendered = one.prepared.rendered
    assert rendered is not None, "reward models take token ids"
    found = one.scorer.token_scores_rendered(rendered, by_layer=one.wants_layers)
    return JudgedTokens(
        token_index=np.arange(rendered.start, rendered.stop),
        texts=found.tokens,
        rewards=found.rewards,
        gates=found.gates,
        contributions=found.contributions,
        running=found.running,
        layers=found.layers,
        by_layer=found.by_layer,
    )


def _plain(error: BaseException) -> Exception:
    """An error as the request may know it: ours as it is, others without what they say inside."""
    if isinstance(error, RetrmError):
        return error
    made = JudgingError(
        f"the model failed with {type(error).__name__}; see the server's log. The item may be sent again"
    )
    made.__cause__ = error
    return made


def _tell(one: Ticket, outcome: Outcome) -> None:
    try:
        one.on_done(outcome)
    except RuntimeError:
        # The event loop of the request is closed: nobody is left to be told.
        _LOG.debug("an outcome came too late", exc_info=True)
