"""An application on a port of the loopback, in a thread of its own, while a block runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

STARTED_WITHIN_S = 60


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """The address of a running server, which ends with the block."""
    import uvicorn

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    waited = threading.Event()
    for _ in range(STARTED_WITHIN_S * 50):
        if server.started or not thread.is_alive():
            break
        waited.wait(0.02)
    assert server.started, "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
