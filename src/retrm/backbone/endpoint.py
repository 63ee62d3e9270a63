"""Sampling answers from any engine that speaks the chat-completions protocol of OpenAI.

One request per answer, POST {url}/v1/chat/completions, a bounded number at a time; answers come back
in the order of the prompts. Patience, time-outs and the key are those of `retrm.backbone.patient`.
No torch.

What engines do differently, and what is done about it:

    n > 1             llama.cpp refuses it (status 400), so every answer is a request of its own; the
                      engines' prefix caches read the prompt once all the same
    defaults          llama.cpp draws with top_k 40 and min_p 0.05 where nothing is said, vLLM and
                      SGLang with what the model's generation_config.json says: neutral values are
                      sent to an engine that is known, so that temperature and top_p are all there is
    token ids         vLLM tells those it drew when asked (`return_token_ids`), and they are kept;
                      from the others the text is tokenised again when it is read
    finish_reason     `stop` and `length` everywhere; an `abort` (an engine out of memory) is asked
                      again, a filtered answer is refused; without one, `usage` tells a full answer
    hidden thoughts   engines with a reasoning parser split the answer: refused, since the rest is not
                      what was generated

Which engine it is stands in `owned_by` of GET /v1/models; engines that do not say get the fields of
OpenAI's protocol and nothing else.
"""

import base64
import hashlib
import mimetypes
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from retrm.backbone.patient import KEY_VARIABLE, PatientClient, Stopped, api_url
from retrm.backbone.sampled import Sampled
from retrm.errors import EndpointError
from retrm.records import Message, Prompt

NEUTRAL: Mapping[str, Mapping[str, Any]] = {
    "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True},
    "sglang": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    "llamacpp": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0},
}
"""By `owned_by`: what switches off an engine's own defaults, in that engine's words."""

_FINISHED = {"stop": True, "eos_token": True, "length": False}
_ABORTED = ("abort", "error")
_AHEAD = 4  # answers asked for, in units of `concurrency`, before the first is taken


@dataclass(frozen=True)
class _Job:
    """One request and where its answer belongs."""

    prompt: int
    number: int
    body: Mapping[str, Any]


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
    timeout_s: float = 600.0,
    retries: int = 5,
    pause_s: float = 0.5,
    longest_wait_s: float = 300.0,
    key_variable: str = KEY_VARIABLE,
    wanted: Collection[tuple[int, int]] | None = None,
    takes_parts: bool = False,
    on_answer: Callable[[Sampled], None] | None = None,
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
        timeout_s: seconds of silence after which a request counts as failed; an engine is silent
            until the answer is whole, waiting for its turn included.
        retries: further attempts for what may pass.
        pause_s: seconds before the second attempt; doubled for each further one, up to 30.
        longest_wait_s: a longer `Retry-After` is an error rather than a wait.
        key_variable: environment variable with the bearer key, if the engine wants one.
        wanted: only these (prompt, number) are asked for, the others being known already; None = all.
        takes_parts: take replies whose text is not all that was generated (hidden reasoning, a filter,
            no text at all), as a judge's verdict may be; they are refused otherwise.
        on_answer: given every answer when it is received, in any order, from worker threads. What it
            raises ends the run as a failed request does if it is an EndpointError.
        on_progress: told how many answers of how many were received, from worker threads.

    Raises:
        EndpointError: the URL is none, or the engine refused, was not there or answered nonsense.
    """
    target = api_url(url, "chat/completions")
    if n < 1 or concurrency < 1 or max_new_tokens < 1:
        raise EndpointError(
            f"got n={n}, concurrency={concurrency}, max_new_tokens={max_new_tokens}; expected 1 or "
            "more of each"
        )
    settings = {
        "model": model,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_new_tokens,
    }
    client = PatientClient(
        target,
        connections=concurrency,
        timeout_s=timeout_s,
        retries=retries,
        pause_s=pause_s,
        longest_wait_s=longest_wait_s,
        key_variable=key_variable,
    )
    counter = _Counter(len(prompts) * n if wanted is None else len(wanted), on_progress)
    jobs = _jobs(prompts, n, seed, settings)
    if wanted is not None:
        jobs = (job for job in jobs if (job.prompt, job.number) in wanted)
    return _in_order(_Asker(client, takes_parts, on_answer), jobs, concurrency, counter)


def continue_endpoint(
    url: str,
    model: str,
    texts: Sequence[str],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    seed: int = 0,
    concurrency: int = 8,
    timeout_s: float = 600.0,
    retries: int = 5,
    pause_s: float = 0.5,
    key_variable: str = KEY_VARIABLE,
) -> Iterator[Sampled]:
    """Ask an engine to continue texts as they stand, POST {url}/v1/completions; otherwise as `sample_endpoint`.

    Args:
        url: of the engine.
        model: the name by which the engine knows it.
        texts: what to continue; no chat template is applied.
        n: continuations of each.
        temperature: passed on.
        top_p: passed on.
        top_k: passed on where it is above 0: no part of OpenAI's protocol, known to vLLM, SGLang and
            llama.cpp.
        max_new_tokens: passed on as `max_tokens`.
        seed: each continuation gets its own seed made from this one.
        concurrency: requests at a time.
        timeout_s: seconds of silence after which a request counts as failed.
        retries: further attempts for what may pass.
        pause_s: seconds before the second attempt.
        key_variable: environment variable with the bearer key, if the engine wants one.

    Raises:
        EndpointError: the URL is none, or the engine refused, was not there or answered nonsense.
    """
    client = PatientClient(
        api_url(url, "completions"),
        connections=concurrency,
        timeout_s=timeout_s,
        retries=retries,
        pause_s=pause_s,
        key_variable=key_variable,
    )
    settings: dict[str, Any] = {
        **{"model": model, "temperature": temperature, "top_p": top_p},
        **{"max_tokens": max_new_tokens, **({"top_k": top_k} if top_k else {})},
    }
    jobs = (
        _Job(place, number, {"prompt": text, **settings, "seed": _seed_of(seed, text, number)})
        for place, text in enumerate(texts)
        for number in range(n)
    )
    counter = _Counter(len(texts) * n, None)
    return _in_order(_Asker(client, False, None), jobs, concurrency, counter)


def engine_of(client: PatientClient) -> str:
    """Which engine answers, by its list of models: `vllm`, `sglang`, `llamacpp`, or "" = it is not said.

    Raises:
        EndpointError: it cannot be asked, so that its own defaults might be drawn with unseen.
    """
    listed = client.get("models")
    try:
        owner = str(listed["data"][0]["owned_by"]).lower()
    except (KeyError, IndexError, TypeError):
        return ""
    return owner if owner in NEUTRAL else ""


def _jobs(
    prompts: Sequence[Prompt], n: int, seed: int, settings: Mapping[str, Any]
) -> Iterator[_Job]:
    """One request an answer, made when it is sent: millions of them would fill the memory."""
    for place, prompt in enumerate(prompts):
        body = {"messages": [_sent(message) for message in prompt.messages], **settings}
        if prompt.tools:
            body["tools"] = [dict(tool) for tool in prompt.tools]
        key = prompt.key
        for number in range(n):
            yield _Job(place, number, {**body, "seed": _seed_of(seed, key, number)})


def _seed_of(seed: int, key: str, number: int) -> int:
    """Keyed by what is asked, as local sampling is: a run that goes on repeats no seed."""
    digest = hashlib.sha256(f"{seed} {key} {number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # engines take 31 bits


def _sent(message: Message) -> dict[str, Any]:
    """A message in the protocol's words; pictures travel inside it."""
    said = message.as_dict()
    if message.images:
        pictures = [
            {"type": "image_url", "image_url": {"url": image_url(image)}}
            for image in message.images
        ]
        said["content"] = [*pictures, {"type": "text", "text": message.content}]
    return said


def image_url(image: str) -> str:
    """An address or `data:` URI as it is; a file as a `data:` URI.

    Raises:
        EndpointError: the file cannot be read, or its name does not say what kind of picture it is.
    """
    if image.startswith(("http://", "https://", "data:")):
        return image
    kind = mimetypes.guess_type(image)[0] or ""
    if not kind.startswith("image/"):
        raise EndpointError(
            f"got the picture {image!r}; expected an address, a data: URI, or a file whose name ends as "
            "pictures do (.png, .jpg)"
        )
    try:
        data = Path(image).read_bytes()
    except OSError as error:
        raise EndpointError(
            f"the picture {image!r} cannot be read ({error.strerror}); expected a file or an address"
        ) from error
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _in_order(
    asker: "_Asker",
    jobs: Iterator[_Job],
    concurrency: int,
    counter: "_Counter",
) -> Iterator[Sampled]:
    """Keep a window of requests under way and give their answers out from its front."""
    window = deque[Future[Sampled]]()
    failures: list[EndpointError] = []
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="retrm-endpoint")
    n_given = 0
    try:
        while True:
            free = 0 if asker.failed else _AHEAD * concurrency - len(window)
            window += (pool.submit(asker.ask, job, counter) for job in islice(jobs, free))
            if not window:
                break
            try:
                yield window.popleft().result()
                n_given += 1
            except EndpointError as error:
                failures.append(error)
            except Stopped:
                continue
    finally:
        asker.client.stop.set()
        # Whoever stops early (Ctrl-C) should not wait for requests that may take minutes.
        pool.shutdown(wait=False, cancel_futures=True)
        asker.client.close()
    if failures:
        raise EndpointError(f"{failures[0]} ({n_given} of {counter.total} answers were received)")


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
    """Turns jobs into answers; shared by the threads."""

    def __init__(
        self,
        client: PatientClient,
        takes_parts: bool,
        on_answer: Callable[[Sampled], None] | None,
    ) -> None:
        self.client = client
        self.takes_parts = takes_parts
        self.on_answer = on_answer
        self.failed = False  # no new requests, but those under way go on
        self._more: Mapping[str, Any] | None = None
        self._is_mute = False  # the engine did not say who it is
        self._lock = threading.Lock()

    def ask(self, job: _Job, counter: _Counter) -> Sampled:
        """The answer to one request, however many attempts it takes.

        Raises:
            EndpointError: it failed for good.
        """
        if self.failed or self.client.stop.is_set():
            raise Stopped
        try:
            answer = self._answer(job)
            if self.on_answer is not None:
                self.on_answer(answer)
        except EndpointError:
            self.failed = True
            raise
        counter.add()
        return answer

    def _answer(self, job: _Job) -> Sampled:
        body = {**self._neutral(), **job.body}
        retries = self.client.patience.retries
        for attempt in range(retries + 1):
            reply = self.client.post(body, f"prompt {job.prompt}")
            found = _read(reply, job, self.client.where, takes_parts=self.takes_parts)
            if found.reason not in _ABORTED:
                return found.answer
            if attempt < retries:
                self.client.pause(self.client.patience.grown_s(attempt))
        raise EndpointError(
            f"{self.client.where} broke off prompt {job.prompt} in {retries + 1} "
            f"attempts (finish_reason {found.reason!r}). Is there memory for so many requests at a "
            "time? See the engine's log"
        )

    def _neutral(self) -> Mapping[str, Any]:
        with self._lock:  # asked once, by the first request
            if self._is_mute:  # those that waited here would ask again
                raise Stopped
            if self._more is None:
                self._is_mute = True
                self._more = NEUTRAL.get(engine_of(self.client), {})
                self._is_mute = False
            return self._more


@dataclass(frozen=True)
class _Found:
    """An answer with the engine's reason to stop."""

    answer: Sampled
    reason: str | None


def _read(response: httpx.Response, job: _Job, where: str, *, takes_parts: bool) -> _Found:
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
        # Of /v1/completions, which has no messages.
        message = {"content": choice["text"]} if "text" in choice else choice["message"]
        text, reason = message["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError(
            f"{where} answered prompt {job.prompt} without choices[0].message.content: "
            f"{str(body)[:200]}. Is it an engine with the chat-completions protocol?"
        ) from error
    reason = reason if isinstance(reason, str) else None
    if reason not in _ABORTED and not takes_parts:
        _check_whole(message, text, reason, job, where)
    answer = Sampled(
        response=text if isinstance(text, str) else "",
        token_ids=_token_ids(choice),
        finished=_is_finished(reason, body, job),
        logprob=None,
        prompt=job.prompt,
        number=job.number,
        n_prompt_tokens=_used(body, "prompt_tokens"),
        n_new_tokens=_used(body, "completion_tokens"),
        served_by=served if isinstance(served := body.get("model"), str) else None,
        problem=reason if reason == "content_filter" else None,
    )
    return _Found(answer, reason)


def _used(body: Mapping[str, Any], name: str) -> int | None:
    """A count of `usage`, where the engine tells."""
    found = body["usage"].get(name) if isinstance(body.get("usage"), dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _check_whole(
    message: Mapping[str, Any], text: Any, reason: str | None, job: _Job, where: str
) -> None:
    """Refuse a reply whose text is not all that was generated."""
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought:
        raise EndpointError(
            f"{where} answered prompt {job.prompt} with {len(str(thought)):,} characters of hidden "
            "reasoning beside the answer, which would then be judged without them. Start the engine "
            "without a reasoning parser (llama.cpp: --reasoning-format none), or switch thinking off"
        )
    if not isinstance(text, str):
        raise EndpointError(
            f"{where} answered prompt {job.prompt} without text (finish_reason {reason!r}); tool "
            "calls and hidden reasoning cannot be judged. Leave tools out, or raise max_new_tokens"
        )
    if reason == "content_filter":
        raise EndpointError(
            f"{where} filtered its answer to prompt {job.prompt}, which leaves something that the "
            "model did not say. Leave the prompt out, or use an engine without a filter"
        )


def _is_finished(reason: str | None, body: Mapping[str, Any], job: _Job) -> bool | None:
    if reason is not None:
        return _FINISHED.get(reason)
    n_drawn = _used(body, "completion_tokens")
    if n_drawn is None:
        return None
    # Below the bound nothing but the model itself can have ended the answer.
    return n_drawn < job.body["max_tokens"]


def _token_ids(choice: Mapping[str, Any]) -> tuple[int, ...] | None:
    """What was drawn, where the engine tells (vLLM), else None."""
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(i, int) for i in ids):
        return None
    return tuple(ids)
