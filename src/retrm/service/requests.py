"""What a client of `retrm serve` sends: its settings, and answers as requests of a few each.

Only httpx and the standard library. Defaults are sent, too, so that no server's own can replace them.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from retrm.errors import DataError, EndpointError, RecipeError, RefusedError, did_you_mean
from retrm.patience import CONNECT_S, Breaker, Patience, checked_url, in_words, without_password
from retrm.service.access import TOKEN_VARIABLE
from retrm.service.rewards import (
    ACTIVATIONS,
    LENGTH_POLICIES,
    Json,
    best_of,
    models_of,
    rewards_of,
)

URL_VARIABLE, MODEL_VARIABLE = "RETRM_URL", "RETRM_MODEL"
PASSING = frozenset({429, 502, 503, 504})
"""Statuses after which the same request may succeed; our server's 500 (no finite score) stays one."""

_PATHS = ("/v1/reward", "/v1/best_of_n", "/v1")

Outcome = httpx.Response | httpx.HTTPError
Turn = Mapping[str, Any]
Conversation = Sequence[Turn]


@dataclass(frozen=True)
class Asked:
    """One request and what to make of its reply."""

    path: str
    body: Mapping[str, Any] | None
    about: str
    read: Callable[[Json], Any]


class ClientSettings:
    """What both clients are told, the requests that they send, and the replies that they understand."""

    def __init__(
        self,
        url: str | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 600.0,
        total_s: float = 900.0,
        retries: int = 12,
        pause_s: float = 0.5,
        chunk_size: int = 32,
        concurrency: int = 8,
        breaker_after: int = 3,
        breaker_s: float = 30.0,
        token_variable: str = TOKEN_VARIABLE,
    ) -> None:
        """Prepare to ask; nothing is sent and no connection is made yet.

        Args:
            url: of the server; None = that of the environment variable RETRM_URL.
            model: name of the served model; None = that of RETRM_MODEL, else the server's first.
            timeout_s: seconds of silence after which an attempt counts as failed; a server is silent
                until the whole request is scored.
            total_s: most seconds for one request with all its attempts.
            retries: further attempts for what may pass.
            pause_s: seconds before the second attempt; doubled for each further one, up to 30.
            chunk_size: answers in one request.
            concurrency: requests at a time.
            breaker_after: failed requests in a row after which nothing is sent for `breaker_s`.
            breaker_s: for how many seconds.
            token_variable: environment variable with the bearer token.

        Raises:
            EndpointError: no URL is given, or it is none.
            RecipeError: a number is out of range.
        """
        given = url or os.environ.get(URL_VARIABLE, "")
        if not given:
            raise EndpointError(
                f"no server is named; expected url=, or the environment variable {URL_VARIABLE}, "
                "such as http://127.0.0.1:8000"
            )
        _check_positive(timeout_s=timeout_s, total_s=total_s, breaker_after=breaker_after)
        _check_positive(chunk_size=chunk_size, concurrency=concurrency)
        self._base = _base(given)
        self.url = without_password(str(self._base)).rstrip("/")
        self.model = model or os.environ.get(MODEL_VARIABLE) or None
        self.timeout_s = timeout_s
        self.patience = Patience(passing=PASSING, retries=retries, pause_s=pause_s, total_s=total_s)
        self.chunk_size = chunk_size
        self.concurrency = concurrency
        self.token_variable = token_variable
        self._breaking = (breaker_after, breaker_s)
        self._make_transient()

    def _make_transient(self) -> None:
        """What a copy in another process has to make for itself."""
        self._breaker = Breaker(*self._breaking)
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_breaker", "_lock", "_pid", "_http", "_https")
        return {name: value for name, value in self.__dict__.items() if name not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_transient()

    def _connection(self) -> dict[str, Any]:
        token = os.environ.get(self.token_variable, "")
        return {
            "base_url": self._base,
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "limits": httpx.Limits(max_connections=self.concurrency),
        }

    def _timeout(self, left_s: float) -> httpx.Timeout:
        most_s = min(self.timeout_s, left_s)
        # Waiting for a free connection of our own is no silence of the server.
        return httpx.Timeout(most_s, connect=min(most_s, CONNECT_S), pool=left_s)

    def _of_messages(
        self, conversations: Sequence[Conversation], options: Mapping[str, Any]
    ) -> list[Asked]:
        return [
            self._rewards({"messages": part, **options}, len(part), first)
            for first, part in _chunks(conversations, self.chunk_size)
        ]

    def _of_rendered(
        self,
        texts: Sequence[str],
        prompts: Sequence[str | None] | None,
        options: Mapping[str, Any],
    ) -> list[Asked]:
        if prompts is not None and len(prompts) != len(texts):
            raise DataError(f"got {len(prompts)} prompt_texts for {len(texts)} texts")
        asked = []
        for first, part in _chunks(texts, self.chunk_size):
            body: dict[str, Any] = {"rendered": part, **options}
            if prompts is not None:
                body["prompt_texts"] = list(prompts[first : first + len(part)])
            asked.append(self._rewards(body, len(part), first))
        return asked

    def _of_candidates(
        self, prompt: str | Conversation, candidates: Sequence[str], options: Mapping[str, Any]
    ) -> list[Asked]:
        asked = _prompt(prompt)
        return [
            self._rewards({"prompt": asked, "candidates": part, **options}, len(part), first)
            for first, part in _chunks(texts_of(candidates), self.chunk_size)
        ]

    def _rewards(self, body: Mapping[str, Any], n: int, first: int) -> Asked:
        about = f"answers {first} to {first + n - 1}" if n > 1 else f"answer {first}"
        activation, may_skip = body["activation"], body["length_policy"] == "skip"
        return Asked(
            "/v1/reward",
            self._named(body),
            about,
            lambda reply: rewards_of(reply, n, activation, self.url, may_skip=may_skip),
        )

    def _choice(self, prompt: str | Conversation, candidates: Sequence[str]) -> Asked:
        texts = texts_of(candidates)
        if not texts:
            raise DataError("no candidates to choose from; expected at least one answer")
        body = self._named({"prompt": _prompt(prompt), "candidates": texts})
        about = f"the best of {len(texts)} candidates"
        return Asked("/v1/best_of_n", body, about, lambda reply: best_of(reply, texts, self.url))

    def _listing(self) -> Asked:
        return Asked("/v1/models", None, "/v1/models", lambda reply: models_of(reply, self.url))

    def _named(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(body) if self.model is None else {"model": self.model, **body}

    def _send_options(self, asked: Asked) -> dict[str, Any]:
        method = "GET" if asked.body is None else "POST"
        out: dict[str, Any] = {"method": method, "url": asked.path}
        if asked.body is not None:
            try:
                # Not httpx's own: it would write NaN, which is no JSON.
                out["content"] = json.dumps(
                    asked.body, ensure_ascii=False, allow_nan=False
                ).encode()
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{asked.about} cannot be sent as JSON: {error}. Expected messages of plain texts"
                ) from error
            out["headers"] = {"Content-Type": "application/json"}
        return out

    def _understood(self, asked: Asked, response: Outcome) -> Any:
        """What a response says.

        Raises:
            RefusedError: it is no success, and asking again would not help.
            EndpointError: it is nonsense.
        """
        assert isinstance(response, httpx.Response)
        self._breaker.succeeded()
        if response.status_code != 200:
            remedy = {
                401: f". Put the server's key into the environment variable {self.token_variable}",
                404: ". Is the url right, and the model one of those that it serves?",
            }.get(response.status_code, "")
            said = in_words(response)
            raise RefusedError(
                f"{self.url} refused {asked.about} with {said}{remedy}", response.status_code
            )
        try:
            reply = response.json()
        except ValueError as error:
            raise EndpointError(
                f"{self.url} answered {asked.about} with something that is no JSON: "
                f"{response.text[:100]!r}. Is it a retrm server?"
            ) from error
        return asked.read(reply)


def _base(url: str) -> httpx.URL:
    """The address without the path of a method, which some paste with it."""
    parsed = checked_url(url)
    before = parsed.path.rstrip("/")
    for known in _PATHS:
        before = before.removesuffix(known)
    return parsed.copy_with(path=before or "/")


def _chunks(rows: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """Parts of at most `size` rows, each with the number of its first row."""
    for first in range(0, len(rows), size):
        yield first, rows[first : first + size]


def conversations_of(messages: Conversation | Sequence[Conversation]) -> list[list[dict[str, Any]]]:
    """A list of conversations, be it of one.

    Raises:
        DataError: something else was given.
    """
    is_one = len(messages) > 0 and isinstance(messages[0], Mapping)
    return [_turns(one) for one in ([messages] if is_one else messages)]


def _turns(conversation: Any) -> list[dict[str, Any]]:
    is_list = isinstance(conversation, Sequence) and not isinstance(conversation, str | bytes)
    if not is_list or not conversation or not all(isinstance(t, Mapping) for t in conversation):
        raise DataError(
            f"got {str(conversation)[:80]!r} as a conversation; expected a list of turns such as "
            '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        )
    return [dict(turn) for turn in conversation]


def _prompt(prompt: str | Conversation) -> str | list[dict[str, Any]]:
    return prompt if isinstance(prompt, str) else _turns(prompt)


def texts_of(texts: Sequence[str]) -> list[str]:
    """A list of texts; one text alone would be taken for its letters.

    Raises:
        DataError: something else was given.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"got {str(texts)[:80]!r}; expected a list of texts")
    return list(texts)


def options_of(
    activation: str,
    length_policy: str,
    per_token: bool = False,
    per_layer: bool = False,
    tools: Sequence[Mapping[str, Any]] = (),
    per_objective: bool = False,
) -> dict[str, Any]:
    """The options of a request.

    Raises:
        RecipeError: one of them is unknown.
    """
    if activation not in ACTIVATIONS:
        raise RecipeError(
            f"unknown activation {activation!r}. {did_you_mean(activation, ACTIVATIONS)}"
        )
    if length_policy not in LENGTH_POLICIES:
        raise RecipeError(
            f"unknown length_policy {length_policy!r}. {did_you_mean(length_policy, LENGTH_POLICIES)}"
        )
    wanted = {
        "per_token": per_token,
        "per_layer": per_layer,
        "per_objective": per_objective,
        "tools": [dict(t) for t in tools],
    }
    asked = {name: value for name, value in wanted.items() if value}
    return {"activation": activation, "length_policy": length_policy, **asked}


def _check_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise RecipeError(f"got {name}={number}; expected a number above 0")
