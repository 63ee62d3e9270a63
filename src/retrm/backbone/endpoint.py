"""Sampling answers from any engine that speaks the chat-completions protocol of OpenAI.

One request per answer, POST {url}/v1/chat/completions, a bounded number at a time; answers come back
in the order of the prompts. What may pass (429, 408, 5xx, broken connections, time-outs) is tried
again with growing pauses, or after the pause that `Retry-After` asks for; everything else is an
error at once. No torch.

A key is taken from the environment only, so that it stands in no file and no history.
"""

import email.utils
import hashlib
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from retrm.backbone.sampled import Sampled
from retrm.errors import EndpointError
from retrm.records import Prompt

KEY_VARIABLE = "RETRM_API_KEY"
"""Environment variable that holds the key; it has its own name so that a key for one service is not
sent to another."""

_PASSING = (408, 429, 500, 502, 503, 504, 529)
_LONGEST_PAUSE_S = 30.0
_AHEAD = 4  # answers asked for, in units of `concurrency`, before the first is taken


@dataclass(frozen=True)
class _Job:
    """One request and where its answer belongs."""

    prompt: int
    number: int
    body: Mapping[str, Any]


class _Stopped(Exception):
    """Nobody wants the answer: the caller went away or another request failed."""


def sample_endpoint(
    url: str,
    model: str,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    concurrency: int = 8,
    timeout_s: float = 120.0,
    retries: int = 5,
    pause_s: float = 0.5,
    longest_wait_s: float = 300.0,
    key_variable: str = KEY_VARIABLE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Sampled]:
    """Ask an engine for `n` answers to each prompt; they come in order, as they are ready.

    When a request fails for good, no new one is sent, those under way are awaited, every answer
    that was received is given out, and then the error is raised. `Sampled.prompt` and
    `Sampled.number` say what is there.

    Args:
        url: of the engine, with or without `/v1` or `/v1/chat/completions`.
        model: the name by which the engine knows it.
        prompts: what to answer; the engine applies its own chat template.
        n: answers to each prompt.
        temperature: passed on.
        top_p: passed on.
        max_new_tokens: passed on as `max_tokens`.
        seed: each answer gets its own seed made from this one; engines may ignore it.
        concurrency: requests at a time.
        timeout_s: seconds of silence after which a request counts as failed.
        retries: further attempts for what may pass.
        pause_s: seconds before the second attempt; doubled for each further one, up to 30.
        longest_wait_s: a longer `Retry-After` is an error rather than a wait.
        key_variable: environment variable with the bearer key, if the engine wants one.
        on_progress: told how many answers of how many were received, from worker threads.

    Raises:
        EndpointError: the URL is none, or the engine refused, was not there or answered nonsense.
    """
    target = _target(url)
    if n < 1 or concurrency < 1 or max_new_tokens < 1:
        raise EndpointError(
            f"got n={n}, concurrency={concurrency}, max_new_tokens={max_new_tokens}; expected 1 or "
            "more of each"
        )
    jobs = [
        _Job(p, k, _body(model, prompt, temperature, top_p, max_new_tokens, seed, k))
        for p, prompt in enumerate(prompts)
        for k in range(n)
    ]
    key = os.environ.get(key_variable, "")
    client = httpx.Client(
        timeout=timeout_s,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        limits=httpx.Limits(max_connections=concurrency),
    )
    asker = _Asker(client, target, retries, pause_s, longest_wait_s, key_variable)
    return _in_order(asker, jobs, concurrency, on_progress)


def _target(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url.rstrip("/"))
    except httpx.InvalidURL as error:
        raise EndpointError(f"got the url {url!r}: {error}. Expected http://HOST:PORT") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise EndpointError(f"got the url {url!r}; expected one like http://HOST:PORT")
    path = parsed.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if path.endswith("/v1") else "/v1/chat/completions"
    return parsed.copy_with(path=path)


def _body(
    model: str,
    prompt: Prompt,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
    number: int,
) -> dict[str, Any]:
    # Keyed by what is asked, as local sampling is: a run that goes on repeats no seed.
    digest = hashlib.sha256(f"{seed} {prompt.key} {number}".encode()).digest()
    body: dict[str, Any] = {
        "model": model,
        "messages": [message.as_dict() for message in prompt.messages],
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_new_tokens,
        "seed": int.from_bytes(digest[:4], "big") >> 1,  # engines take 31 bits
    }
    if prompt.tools:
        body["tools"] = [dict(tool) for tool in prompt.tools]
    return body


def _in_order(
    asker: "_Asker",
    jobs: Sequence[_Job],
    concurrency: int,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[Sampled]:
    """Keep a window of requests under way and give their answers out from its front."""
    waiting, window = deque(jobs), deque[Future[Sampled]]()
    failures: list[EndpointError] = []
    counter = _Counter(len(jobs), on_progress)
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="retrm-endpoint")
    n_given = 0
    try:
        while waiting or window:
            while waiting and not asker.failed and len(window) < _AHEAD * concurrency:
                window.append(pool.submit(asker.ask, waiting.popleft(), counter))
            if not window:
                break
            try:
                yield window.popleft().result()
                n_given += 1
            except EndpointError as error:
                failures.append(error)
            except _Stopped:
                continue
    finally:
        asker.stop.set()
        # Whoever stops early (Ctrl-C) should not wait for requests that may take minutes.
        pool.shutdown(wait=False, cancel_futures=True)
        asker.client.close()
    if failures:
        raise EndpointError(f"{failures[0]} ({n_given} of {len(jobs)} answers were received)")


class _Counter:
    """Counts received answers over threads and tells the caller."""

    def __init__(self, total: int, tell: Callable[[int, int], None] | None) -> None:
        self.total = total
        self.tell = tell
        self.lock = threading.Lock()
        self.n_received = 0

    def add(self) -> None:
        with self.lock:
            self.n_received += 1
            if self.tell is not None:
                self.tell(self.n_received, self.total)


class _Asker:
    """Sends requests, with patience; shared by the threads."""

    def __init__(
        self,
        client: httpx.Client,
        target: httpx.URL,
        retries: int,
        pause_s: float,
        longest_wait_s: float,
        key_variable: str,
    ) -> None:
        self.client = client
        self.target = target
        self.retries = retries
        self.pause_s = pause_s
        self.longest_wait_s = longest_wait_s
        self.key_variable = key_variable
        self.stop = threading.Event()  # nobody wants answers any more
        self.failed = False  # no new requests, but those under way go on

    @property
    def where(self) -> str:
        # Without user name and password, which some put into a URL.
        return str(self.target.copy_with(username=None, password=None))

    def ask(self, job: _Job, counter: _Counter) -> Sampled:
        """The answer to one request, however many attempts it takes.

        Raises:
            EndpointError: it failed for good.
        """
        if self.failed or self.stop.is_set():
            raise _Stopped
        try:
            answer = _read(self._post(job), job, self.where)
        except EndpointError:
            self.failed = True
            raise
        counter.add()
        return answer

    def _post(self, job: _Job) -> httpx.Response:
        """A response of status 200."""
        for attempt in range(self.retries + 1):
            asked_s: float | None = None
            try:
                response = self.client.post(self.target, json=job.body)
            except httpx.TransportError as error:
                trouble = _in_words(error)
            except httpx.HTTPError as error:
                raise EndpointError(f"{self.where} cannot be asked: {error}") from error
            else:
                if response.status_code == 200:
                    return response
                trouble = f"status {response.status_code}: {_said(response)}"
                if response.status_code not in _PASSING:
                    raise EndpointError(self._refused(job, response, trouble))
                asked_s = _retry_after_s(response)
            if attempt < self.retries:
                self._pause(attempt, asked_s, trouble)
        raise EndpointError(
            f"{self.where} did not answer prompt {job.prompt} in {self.retries + 1} attempts; the "
            f"last gave {trouble}. Is the engine running, and can it keep up with so many "
            "requests at a time?"
        )

    def _pause(self, attempt: int, asked_s: float | None, trouble: str) -> None:
        """Wait as long as the engine asks, else twice as long each time; stop at once if told."""
        if asked_s is not None and asked_s > self.longest_wait_s:
            raise EndpointError(
                f"{self.where} asks to wait {asked_s:.0f} s ({trouble}); at most "
                f"{self.longest_wait_s:.0f} s are allowed. Try later or lower the concurrency"
            )
        # Random, so that requests that failed together do not come back together.
        grown_s = min(self.pause_s * 2**attempt, _LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)
        if self.stop.wait(grown_s if asked_s is None else asked_s):
            raise _Stopped

    def _refused(self, job: _Job, response: httpx.Response, trouble: str) -> str:
        remedy = {
            401: f"Put the key into the environment variable {self.key_variable}",
            403: f"Is the key in {self.key_variable} allowed to use this model?",
            404: f"Is the url right, and does the engine serve a model {job.body['model']!r}?",
        }.get(response.status_code, "Check the model name, the prompt and the options")
        return f"{self.where} refused prompt {job.prompt} with {trouble}. {remedy}"


def _in_words(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"no answer in time ({type(error).__name__})"
    return f"{type(error).__name__}: {error}"


def _said(response: httpx.Response) -> str:
    """What the engine gave as a reason, shortened."""
    text = response.text
    try:
        found = response.json()
        error = found.get("error", found)
        text = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300] or "no reason given"


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds of the header `Retry-After`, which holds a number or a date (RFC 9110, 10.2.3)."""
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


def _read(response: httpx.Response, job: _Job, where: str) -> Sampled:
    """The answer inside a response."""
    try:
        body = response.json()
    except ValueError as error:
        raise EndpointError(
            f"{where} answered prompt {job.prompt} with something that is no JSON: "
            f"{response.text[:200]!r}. Is it an engine with the chat-completions protocol?"
        ) from error
    try:
        choice = body["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError(
            f"{where} answered prompt {job.prompt} without choices[0].message.content: "
            f"{str(body)[:200]}. Is it an engine with the chat-completions protocol?"
        ) from error
    if not isinstance(text, str):
        raise EndpointError(
            f"{where} answered prompt {job.prompt} without text (finish_reason {reason!r}); tool "
            "calls and hidden reasoning cannot be judged. Leave tools out, or raise max_new_tokens"
        )
    finished = {"stop": True, "length": False}.get(reason) if isinstance(reason, str) else None
    return Sampled(text, None, finished, None, job.prompt, job.number)
