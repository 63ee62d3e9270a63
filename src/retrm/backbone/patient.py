"""HTTP with patience: JSON to an engine, tried again where the fault may pass. No torch.

What may pass (408, 429, 5xx, broken connections, time-outs) is tried again by the rule of
`retrm.patience`; everything else is an error at once.

A key is taken from the environment only, so that it stands in no file and no history.
"""

import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx

from retrm.errors import EndpointError
from retrm.patience import CONNECT_S, Attempts, Patience, checked_url, in_words, without_password

KEY_VARIABLE = "RETRM_API_KEY"
"""Environment variable that holds the key; it has its own name so that a key for one service is not
sent to another."""

_NO_PAGE = (403, 404, 405, 501)  # some services let their models be used and not be listed


class Stopped(Exception):
    """Nobody wants the reply: the caller went away or another request failed."""


def api_url(url: str, path: str) -> httpx.URL:
    """`url` of an engine, given with or without `/v1` or the whole path, with `/v1/{path}` behind it.

    Raises:
        EndpointError: it is no http address.
    """
    parsed = checked_url(url)
    before = parsed.path.rstrip("/")
    for known in ("/chat/completions", "/completions"):
        before = before.removesuffix(known)
    before = before if before.endswith("/v1") else f"{before}/v1"
    return parsed.copy_with(path=f"{before}/{path}")


class PatientClient:
    """Sends requests to one address; shared by threads.

    Args:
        target: where to.
        connections: at a time.
        timeout_s: seconds of silence after which a request counts as failed. Without streaming an
            engine is silent from the request to the whole reply.
        retries: further attempts for what may pass.
        pause_s: seconds before the second attempt; doubled for each further one, up to 30.
        longest_wait_s: a longer `Retry-After` is an error rather than a wait.
        key_variable: environment variable with the bearer key, if the engine wants one.
    """

    def __init__(
        self,
        target: httpx.URL,
        *,
        connections: int = 8,
        timeout_s: float = 600.0,
        retries: int = 5,
        pause_s: float = 0.5,
        longest_wait_s: float = 300.0,
        key_variable: str = KEY_VARIABLE,
    ) -> None:
        self.target = target
        self.patience = Patience(retries=retries, pause_s=pause_s, longest_wait_s=longest_wait_s)
        self.key_variable = key_variable
        self.stop = threading.Event()  # nobody wants replies any more
        key = os.environ.get(key_variable, "")
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=connections),
        )
        self._sockets = _Sockets()

    @property
    def where(self) -> str:
        """The address without user name and password, which some put into a URL."""
        return without_password(str(self.target))

    def close(self) -> None:
        """Give the connections back; requests under way fail at once, and are not tried again."""
        self.stop.set()
        self._sockets.close()
        self._client.close()

    def post(self, body: Mapping[str, Any], about: str) -> httpx.Response:
        """The response of status 200 to `body`, however many attempts it takes.

        Args:
            body: sent as JSON; `model` is named where the engine does not know it.
            about: what is asked, for messages, such as `prompt 3`.

        Raises:
            EndpointError: it failed for good.
            Stopped: `stop` was set while it waited.
        """
        response = self._patiently(
            lambda: self._client.post(self.target, json=body, extensions=self._sockets.watched),
            self.where,
            about,
        )
        if response.status_code != 200:
            raise EndpointError(self._refused(body, about, response))
        return response

    def get(self, path: str) -> Any:
        """The JSON at `/v1/{path}` beside the target, or None where the engine has no such page.

        Asked with the same patience as `post`: an engine that is still starting has the page later.

        Raises:
            EndpointError: it failed for good, or refused.
            Stopped: `stop` was set while it waited.
        """
        address = api_url(str(self.target), path)
        where = without_password(str(address))
        response = self._patiently(
            lambda: self._client.get(address, extensions=self._sockets.watched), where, "GET"
        )
        if response.status_code in _NO_PAGE:
            return None
        if response.status_code != 200:
            raise EndpointError(self._refused({}, f"GET {where}", response))
        try:
            return response.json()
        except ValueError:
            return None  # gateways answer any address with a page of their own

    def _patiently(
        self, send: Callable[[], httpx.Response], where: str, about: str
    ) -> httpx.Response:
        """The first response whose status does not pass by itself."""
        attempts = Attempts(self.patience, where, about)
        while True:
            outcome: httpx.Response | httpx.HTTPError
            try:
                outcome = send()
            except httpx.HTTPError as error:
                outcome = error
            wait_s = attempts.wait_s(outcome)
            if wait_s is None:
                assert isinstance(outcome, httpx.Response)
                return outcome
            self.pause(wait_s)

    def pause(self, wait_s: float) -> None:
        """Wait; stop at once if told.

        Raises:
            Stopped: `stop` was set.
        """
        if self.stop.wait(wait_s):
            raise Stopped

    def _refused(self, body: Mapping[str, Any], about: str, response: httpx.Response) -> str:
        remedy = {
            401: f"Put the key into the environment variable {self.key_variable}",
            403: f"Is the key in {self.key_variable} allowed to use this model?",
            404: f"Is the url right, and does the engine serve a model {body.get('model')!r}?",
        }.get(response.status_code, "Check the model name, the prompt and the options")
        return f"{self.where} refused {about} with {in_words(response)}. {remedy}"


class _Sockets:
    """The sockets of a client's connections, so that threads that wait for a reply can be woken.

    Closing a connection from another thread leaves its reader asleep until the time-out, and Python waits at
    its end for the threads of a pool. Shutting the socket down wakes the reader.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: list[socket.socket] = []
        self._is_closed = False
        self.watched = {"trace": self._watch}  # of httpx, told of what becomes of a request

    def _watch(self, event: str, info: Mapping[str, Any]) -> None:
        if not event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            return
        found = info["return_value"].get_extra_info("socket")
        with self._lock:
            self._found = [one for one in self._found if one.fileno() >= 0]
            self._found.append(found)
            is_closed = self._is_closed
        if is_closed:
            _shut(found)

    def close(self) -> None:
        """Shut all of them down, and whatever is opened from now on."""
        with self._lock:
            self._is_closed = True
            found, self._found = self._found, []
        for one in found:
            _shut(one)


def _shut(found: socket.socket) -> None:
    with suppress(OSError):  # closed meanwhile, or by the other side
        found.shutdown(socket.SHUT_RDWR)
