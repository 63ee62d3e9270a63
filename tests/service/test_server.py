"""A real server on a real socket: many connections, clients that leave, signals."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from served import PATIENT_S, Held, SpyBackbone, asked, model, run, service

from retrm.backbone.fake import FakeBackbone
from retrm.errors import RecipeError
from retrm.service.app import create_app
from retrm.service.server import DrainingServer, is_loopback, listen, url_of

RM = model(FakeBackbone())
SLOW = """
import time
import numpy as np

def score(prompts, responses):
    time.sleep(1.5)
    return np.array([float(len(text)) for text in responses])
"""


@contextlib.asynccontextmanager
async def running(made):
    """A server in this event loop, and a client of it."""
    with listen("127.0.0.1", 0) as bound:
        bound.listen(128)
        server = DrainingServer(create_app(made), made)
        # Signals belong to the test runner.
        task = asyncio.ensure_future(server._serve(sockets=[bound]))
        async with httpx.AsyncClient(base_url=url_of(bound), timeout=PATIENT_S) as http:
            while not server.started:
                await asyncio.sleep(0.01)
            yield http, server, bound
        server.stop()
        await task


def test_sixty_four_connections_get_their_own_scores():
    texts = [f"{'word ' * (i % 7)}{i}" for i in range(64)]

    async def work():
        async with running(service(RM)) as (http, _, _):

            async def one(text):
                body = {"prompt": "q", "candidates": [text]}
                return (await http.post("/v1/reward", json=body)).json()["results"][0]["score"]

            return await asyncio.gather(*map(one, texts))

    np.testing.assert_allclose(run(work), RM.score([("q", text) for text in texts]), atol=1e-5)


def test_a_connection_that_breaks_off_takes_its_items_with_it():
    spy = SpyBackbone()

    async def work():
        made = service(model(spy))
        async with running(made) as (http, _, bound):
            async with Held(made) as held:
                body = json.dumps({"prompt": "q", "candidates": ["a"]}).encode()
                reader, writer = await asyncio.open_connection(*bound.getsockname())
                writer.write(
                    b"POST /v1/reward HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                )
                await held.until_waiting(1)
                writer.close()
                await held.until_waiting(0)
                del reader
            reply = await http.post("/v1/reward", json={"prompt": "q", "candidates": ["b"]})
        return reply.status_code

    assert run(work) == 200
    prompt = len(spy.renderer.render_prompt(asked("q", "b")[0].prompt))
    assert spy.n_tokens == prompt + len("b.")


def test_a_server_that_ends_refuses_politely_and_finishes_what_it_took():
    async def work():
        made = service(RM)
        async with running(made) as (http, server, _):
            async with Held(made) as held:
                body = {"prompt": "q", "candidates": ["a"]}
                taken = asyncio.ensure_future(http.post("/v1/reward", json=body))
                await held.until_waiting(1)
                server.stop()
                refused = await http.post("/v1/reward", json=body)
                health = await http.get("/health")
            return await taken, refused, health

    taken, refused, health = run(work)
    assert [one.status_code for one in (taken, refused, health)] == [200, 503, 503]
    assert int(refused.headers["retry-after"]) > 0


def test_a_second_signal_ends_at_once():
    server = DrainingServer(None, service(RM))

    server.handle_exit(signal.SIGTERM, None)
    first = (server.should_exit, server.force_exit)
    server.handle_exit(signal.SIGTERM, None)

    assert first == (False, False)
    assert (server.should_exit, server.force_exit) == (True, True)


def test_a_port_in_use_is_refused_with_a_remedy():
    with listen("127.0.0.1", 0) as bound:
        bound.listen(1)
        with pytest.raises(RecipeError, match=r"cannot listen on 127\.0\.0\.1 port .*--port"):
            listen("127.0.0.1", bound.getsockname()[1])


def test_a_host_that_is_none_is_refused():
    with pytest.raises(RecipeError, match="Expected a name or address"):
        listen("no host at all", 0)


def test_only_addresses_of_this_machine_are_loopback():
    for host, expected in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with listen(host, 0) as bound:
            assert is_loopback(bound) is expected


def test_the_command_serves_and_ends_on_sigterm_without_losing_a_request(tmp_path):
    (tmp_path / "slow_scorer.py").write_text(SLOW)
    with started(tmp_path, "slow=call:slow_scorer:score", "longest") as (process, url):
        headers = {"authorization": "Bearer the-key"}
        with httpx.Client(base_url=url, timeout=PATIENT_S, headers=headers) as http:
            assert http.get("/health").json() == {"status": "ready"}
            body = {"prompt": "q", "candidates": ["four"]}
            assert httpx.post(f"{url}/v1/reward", json=body).status_code == 401
            replies = []
            asking = threading.Thread(
                target=lambda: replies.append(http.post("/v1/reward", json=body))
            )
            asking.start()
            while "retrm:num_requests_running 1.0" not in http.get("/metrics").text:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            asking.join(PATIENT_S)
        said = process.communicate(timeout=PATIENT_S)[1]

    assert replies[0].json()["results"][0]["score"] == 4.0
    assert process.returncode == 0
    assert "all that was taken is answered" in said
    assert f"--reward.remote_url {url}/get_reward" in said
    assert "the-key" not in said


@contextlib.contextmanager
def started(folder: Path, *models: str):
    """`retrm serve` in a process of its own."""
    command = [sys.executable, "-m", "retrm.cli.main", "serve", *models, "--port", "0", "--json"]
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": paths, "RETRM_TOKEN": "the-key"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = json.loads(process.stdout.readline())
        assert [one["name"] for one in told["models"]] == ["slow", "longest"]
        wait_for(told["url"])
        yield process, told["url"]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(url: str) -> None:
    """Until it listens."""
    host, _, port = url.removeprefix("http://").partition(":")
    until = time.monotonic() + PATIENT_S
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.05)
    raise TimeoutError(url)
