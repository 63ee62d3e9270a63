"""When HTTP is tried again, how long is waited before, and what is said of a fault; nothing is sent here.

    attempt 1, 2, ...    wait = what `Retry-After` asks for, else pause_s * 2^(attempt - 1), at most 30 s,
                         times a random number in 0.75 .. 1.25

The rule knows no sockets and no clock of its own, so that clients with threads and clients with an event
loop wait by the same one. `Retry-After`: RFC 9110, 10.2.3.
"""

import email.utils
import math
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from retrm.errors import EndpointError

ENGINES_PASS = frozenset({408, 429, 500, 502, 503, 504, 529})
"""Statuses by which engines of all makes say what may pass by itself."""

LONGEST_PAUSE_S = 30.0
CONNECT_S = 10.0  # a host that is there accepts sooner, however busy it is


@dataclass(frozen=True)
class Patience:
    """How often and how long.

    Attributes:
        passing: statuses that may pass by themselves.
        retries: further attempts for what may pass; broken connections and silence are among it.
        pause_s: seconds before the second attempt; doubled for each further one, up to 30.
        longest_wait_s: a longer `Retry-After` is an error rather than a wait.
        total_s: most seconds from the first attempt to the end of the last; infinity = no limit.
    """

    passing: frozenset[int] = ENGINES_PASS
    retries: int = 5
    pause_s: float = 0.5
    longest_wait_s: float = 300.0
    total_s: float = math.inf

    def grown_s(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt`, counted from 0, where none are asked for."""
        # Random, so that requests that failed together do not come back together.
        return min(self.pause_s * 2**attempt, LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)


class Attempts:
    """One request from its first attempt to its last; told what came of each.

    Args:
        patience: the rule.
        where: the address, for messages.
        about: what is asked, for messages, such as `prompt 3`.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        patience: Patience,
        where: str,
        about: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.patience = patience
        self.where = where
        self.about = about
        self._clock = clock
        self._until = clock() + patience.total_s
        self._n = 0

    def left_s(self) -> float:
        """Seconds of `total_s` that are left; never negative."""
        return max(0.0, self._until - self._clock())

    def wait_s(self, outcome: httpx.Response | httpx.HTTPError) -> float | None:
        """Seconds to wait before the next attempt; None = the response is there to be read.

        Raises:
            EndpointError: there will be no further attempt.
        """
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in self.patience.passing:
                return None
            trouble, asked_s = in_words(outcome), retry_after_s(outcome)
        elif isinstance(outcome, httpx.TransportError):
            trouble, asked_s = _fault(outcome), None
        else:
            raise EndpointError(f"{self.where} cannot be asked: {outcome}") from outcome
        self._n += 1
        cause = outcome if isinstance(outcome, Exception) else None
        if self._n > self.patience.retries:
            raise self._given_up(trouble) from cause
        self._check_asked(asked_s, trouble)
        wait_s = self.patience.grown_s(self._n - 1) if asked_s is None else asked_s
        if wait_s >= self.left_s():
            raise self._given_up(trouble) from cause
        return wait_s

    def _check_asked(self, asked_s: float | None, trouble: str) -> None:
        longest_s = self.patience.longest_wait_s
        if asked_s is not None and asked_s > longest_s:
            raise EndpointError(
                f"{self.where} asks to wait {asked_s:.0f} s ({trouble}); at most "
                f"{longest_s:.0f} s are allowed. Try later or lower the concurrency"
            )

    def _given_up(self, trouble: str) -> EndpointError:
        total_s = self.patience.total_s
        within = "" if math.isinf(total_s) else f" within {total_s:g} s"
        return EndpointError(
            f"{self.where} did not answer {self.about} in {self._n} "
            f"attempt{'' if self._n == 1 else 's'}{within}; the last gave {trouble}. Is the engine "
            "running, and can it keep up with so many requests at a time?"
        )


class Breaker:
    """Counts requests that failed for good, and keeps further ones back for a while.

    Args:
        after: failures in a row after which it opens.
        for_s: seconds for which nothing is sent.
        clock: seconds that only grow.
    """

    def __init__(
        self, after: int, for_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.after = after
        self.for_s = for_s
        self._clock = clock
        self._lock = threading.Lock()
        self._n_failed = 0
        self._open_until = 0.0
        self._last = ""

    def check(self) -> None:
        """Let a request pass, or not.

        Raises:
            EndpointError: it is open; the message holds the last fault.
        """
        with self._lock:
            if self._n_failed < self.after:
                return
            left_s = self._open_until - self._clock()
            if left_s > 0:
                raise EndpointError(
                    f"{self._n_failed} requests in a row failed, so none is sent for another "
                    f"{left_s:.0f} s. The last: {self._last}"
                )
            # One is let through to see; the others wait for what becomes of it.
            self._open_until = self._clock() + self.for_s

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count an `EndpointError` of the block as a failed request."""
        try:
            yield
        except EndpointError as error:
            with self._lock:
                self._n_failed += 1
                self._last = str(error)
                if self._n_failed >= self.after:
                    self._open_until = self._clock() + self.for_s
            raise

    def succeeded(self) -> None:
        """The server answered, be it with a refusal."""
        with self._lock:
            self._n_failed = 0


def checked_url(url: str) -> httpx.URL:
    """`url` if it is an http address.

    Raises:
        EndpointError: it is none; the message shows no password.
    """
    shown = without_password(url)
    try:
        parsed = httpx.URL(url.rstrip("/"))
    except httpx.InvalidURL as error:
        raise EndpointError(f"got the url {shown!r}: {error}. Expected http://HOST:PORT") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise EndpointError(f"got the url {shown!r}; expected one like http://HOST:PORT")
    return parsed


def without_password(text: str) -> str:
    """An address as it may be shown: `http://user:secret@host` -> `http://host`; others as they are."""
    return re.sub(r"(?<=://)[^/?#]*@", "", text)


def in_words(response: httpx.Response) -> str:
    """Status and reason of a response that is no success, shortened."""
    return f"status {response.status_code}: {_said(response)}"


def retry_after_s(response: httpx.Response) -> float | None:
    """Seconds of the header `Retry-After`, which holds a number or a date."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, wait_s) if wait_s == wait_s else None


def _fault(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__})"
    return f"{type(error).__name__}: {error}"


def _said(response: httpx.Response) -> str:
    """What was given as a reason, shortened."""
    text = response.text
    try:
        found = response.json()
        error = found.get("error", found)
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300] or "no reason given"
