"""The process around the application: one socket, and an end that loses nothing.

On SIGTERM or SIGINT the server refuses new requests with 503 (they are sent again, to another one perhaps),
`/health` turns to 503 for load balancers, and what was taken is finished within `drain_s`. A second signal
ends at once.
"""

import ipaddress
import socket
import time
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from retrm.errors import RecipeError
from retrm.service.core import Service

KEEP_ALIVE_S = 75
"""Longer than the pools of clients keep a connection: a server that closes first breaks their POSTs."""

_LAST_BYTES_S = 5
_BACKLOG = 2048


class DrainingServer(uvicorn.Server):
    """uvicorn, which on a signal first finishes what was taken."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            server_header=False,
            ws="none",
            lifespan="on",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=_LAST_BYTES_S,
        )
        super().__init__(config)
        self._service = service
        self._drain_until: float | None = None

    def stop(self) -> None:
        """Begin to end, as a signal does; may be called from any thread."""
        self._service.refuse_new()
        self._drain_until = time.monotonic() + self._service.settings.drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends."""
        del sig, frame
        if self._drain_until is None:
            self.stop()
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether the server ends now; asked ten times a second."""
        is_over = await super().on_tick(counter)
        if self._drain_until is None:
            return is_over
        is_late = time.monotonic() > self._drain_until
        return is_over or is_late or self._service.n_requests == 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port in use is known before a model is loaded.

    Raises:
        RecipeError: it cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise RecipeError(f"got host {host!r}: {error}. Expected a name or address") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except (OSError, OverflowError) as error:
        made.close()
        raise RecipeError(
            f"cannot listen on {host} port {port}: {error}. Choose another with --port; 0 = any that is free"
        ) from error
    return made


def url_of(bound: socket.socket) -> str:
    """The address of a bound socket for clients on this machine, or for others where it is one host's."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def run(app: ASGIApp, service: Service, bound: socket.socket) -> None:
    """Serve until a signal comes."""
    bound.listen(_BACKLOG)
    DrainingServer(app, service).run(sockets=[bound])
