"""The server under load: its throughput beside scoring offline and beside one forward a request.

    offline        one call of score() with all answers: the most that can be reached
    server         64 clients, one answer each request, as OpenRLHF and verl send them
    one a request  a server in the style of OpenRLHF 0.11's serve_rm: the handler tokenises and runs a
                   forward pass of transformers for its request, right in the event loop

All three score the same answers in turn, each server in a process of its own. What the server itself adds
to one client is the time at the client less that of the forward pass, which the reply's Server-Timing
header states. Every score is compared with that of the offline call.

With --soak SECONDS the server is then sent valid, malformed, huge and broken-off requests at random, and
what is looked for is a wrong score, a status of 500 or above, and memory that grows.

    python benchmarks/serving.py [--model NAME] [--answers N] [--clients C] [--soak SECONDS]
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from demo_answers import DATA, some_prompts
from harness import N_REPEATS, Ratio, Report, Timing, interleave, one_thread_note, parser, say

from retrm.backbone.load import load_backbone
from retrm.data.load import load_table
from retrm.fitting.fit import fit
from retrm.methods import method
from retrm.records import Answer
from retrm.scorers.export import export_sequence_classifier
from retrm.scorers.reward_model import RewardModel

SHARE_TARGET = 0.85
TIMES_TARGET = 3.0
LATENCY_TARGET_MS = 5.0
SCORE_TARGET = 1e-5
GROWTH_TARGET = 0.02
METHOD = "last_token"  # both servers can have it
WARM_SHARE = 0.25  # of the soak, before memory counts
SAMPLE_S = 2.0


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as made:
        model, answers, folder, exported = prepare(args, Path(made))
        offline = model.score(answers)
        report = Report(
            "serving",
            {
                "model": Path(args.model).name,
                "head": METHOD,
                "answers": len(answers),
                "clients": args.clients,
                "tokens": sum(len(model.backbone.renderer.render(a).ids) for a in answers),
            },
        )
        with serving(folder, Path(made) / "ours.log") as ours:
            with one_a_request(exported, Path(made) / "theirs.log") as theirs:
                throughput(report, args, model, answers, offline, ours, theirs)
            latency(report, args, answers, ours)
            if args.soak:
                soak(report, args, answers, offline, ours)
    report.notes.append(one_thread_note())
    report.notes.append(
        "The clients run on the same cores as the servers, in a process of their own."
    )
    report.finish()


def prepare(args: argparse.Namespace, made: Path) -> tuple[RewardModel, list[Answer], Path, Path]:
    """A fitted head, the answers to score, its folder, and its export as an ordinary classifier."""
    backbone = load_backbone(args.model)
    table = load_table(args.data)
    say(f"fitting {METHOD}")
    model = fit(some_prompts(table, args.fit_prompts), backbone, [method(METHOD)]).models[0]
    folder, exported = made / METHOD, made / "exported"
    model.save(folder)
    export_sequence_classifier(model, exported, bias="drop")
    # Clients send text: an answer's sampled ids, and that it was cut, are unknown to a server.
    answers = [Answer.of(one.prompt, one.response) for one in table.answers[: args.answers]]
    return model, answers, folder, exported


# --------------------------------------------------------------------------------------- servers


class Server:
    """A server in a process of its own, on this machine."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    def memory_mb(self) -> float:
        """Resident size without mapped files, megabytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else float("nan")


@contextlib.contextmanager
def started(command: Sequence[str], port: int, log: Path, *, ready: str) -> Iterator[Server]:
    """A server that answers 200 at `ready`; ended by us."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        server = Server(process, port)
        try:
            for _ in range(240):
                if process.poll() is not None:
                    sys.exit(
                        f"{command[:4]} ended with {process.returncode}: {log.read_text()[-2000:]}"
                    )
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(server.url + ready, timeout=2).status_code < 500:
                        break
                time.sleep(0.5)
            else:
                sys.exit(f"{command[:4]} did not get ready in two minutes")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """A port that nobody listens on at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serving(folder: Path, log: Path) -> contextlib.AbstractContextManager[Server]:
    """`retrm serve`."""
    port = free_port()
    command = [sys.executable, "-m", "retrm.cli.main", "serve", str(folder), "--port", str(port)]
    return started(command, port, log, ready="/health")


def one_a_request(exported: Path, log: Path) -> contextlib.AbstractContextManager[Server]:
    """The rival, from this file."""
    port = free_port()
    command = [sys.executable, __file__, "--rival", str(exported), "--port", str(port)]
    return started(command, port, log, ready="/docs")


def run_rival(folder: Path, port: int) -> None:
    """A server as trainers' examples write it: one request, one forward, nothing in between."""
    import torch
    import uvicorn
    from fastapi import FastAPI, Request
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    app = FastAPI()

    @app.post("/get_reward")
    async def get_reward(request: Request) -> dict[str, Any]:
        queries = (await request.json())["query"]
        batch = tokenizer(queries, return_tensors="pt", add_special_tokens=False, padding=True)
        with torch.no_grad():
            rewards = model(**batch).logits[:, 0].tolist()
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards}}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


# ---------------------------------------------------------------------------------------- clients


def body_of(answer: Answer) -> dict[str, Any]:
    """Our native request with one answer."""
    turns = [message.as_dict() for message in answer.prompt.messages]
    return {"messages": [*turns, {"role": "assistant", "content": answer.response}]}


async def ask_all(
    url: str, bodies: Sequence[dict[str, Any]], clients: int
) -> tuple[list[Any], list[float], list[dict[str, str]]]:
    """Each body once, `clients` at a time, a connection each; replies, seconds and headers in order."""
    replies: list[Any] = [None] * len(bodies)
    seconds = [0.0] * len(bodies)
    headers: list[dict[str, str]] = [{}] * len(bodies)
    todo = iter(enumerate(bodies))
    asked = httpx.URL(url)

    async def work() -> None:
        reader, writer = await asyncio.open_connection(asked.host, asked.port)
        for number, body in todo:
            began = time.perf_counter()
            status, headers[number], content = await post(reader, writer, asked, body)
            seconds[number] = time.perf_counter() - began
            if status != 200:
                sys.exit(f"{url} answered {status}: {content[:500]!r}")
            replies[number] = json.loads(content)
        writer.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    return replies, seconds, headers


async def post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: httpx.URL, body: dict[str, Any]
) -> tuple[int, dict[str, str], bytes]:
    """One request on an open connection; status, headers and body of the reply.

    Written out, since the clients share the cores with the servers: httpx takes as long for a request as
    the server does.
    """
    content = json.dumps(body).encode()
    head = (
        f"POST {url.path} HTTP/1.1\r\nhost: {url.host}:{url.port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    writer.write(head.encode() + content)
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    length = int(headers["content-length"])
    return int(first.split()[1]), headers, await reader.readexactly(length)


def our_scores(replies: Sequence[Any]) -> np.ndarray:
    """(n,) of native replies."""
    return np.array([reply["results"][0]["score"] for reply in replies])


# --------------------------------------------------------------------------------------- measures


def throughput(
    report: Report,
    args: argparse.Namespace,
    model: RewardModel,
    answers: list[Answer],
    offline: np.ndarray,
    ours: Server,
    theirs: Server,
) -> None:
    """Lines and claims of the three rivals; every score is compared."""
    renderer = model.backbone.renderer
    native = [body_of(answer) for answer in answers]
    texts = [{"query": [renderer.text(renderer.render(a).ids)]} for a in answers]
    largest: dict[str, float] = {}

    def server(clients: int) -> None:
        replies, _, _ = asyncio.run(ask_all(f"{ours.url}/v1/reward", native, clients))
        gap = float(np.abs(our_scores(replies) - offline).max())
        name = f"{clients} clients"
        largest[name] = max(gap, largest.get(name, 0.0))

    def rival() -> None:
        replies, _, _ = asyncio.run(ask_all(f"{theirs.url}/get_reward", texts, args.clients))
        found = np.array([reply["rewards"][0] for reply in replies])
        # A bias is dropped by an export: the gap is that of the order, up to a constant.
        largest["one a request"] = float(np.ptp(found - offline))

    timings = interleave(
        {
            "offline": lambda: model.score(answers),
            f"server, {args.clients} clients": lambda: server(args.clients),
            "one a request": rival,
        },
        repeats=args.repeats,
    )
    ours_s = timings[f"server, {args.clients} clients"]
    for name, timing in timings.items():
        share = Ratio.of(timings["offline"], timing)
        report.add(name, timing, answers_per_s=len(answers) / timing.median, share_of_offline=share)
    report.target(
        f"{args.clients} clients: share of the offline throughput",
        SHARE_TARGET,
        Ratio.of(timings["offline"], ours_s),
    )
    report.target(
        "times the throughput of one forward a request",
        TIMES_TARGET,
        Ratio.of(timings["one a request"], ours_s),
    )
    for clients in (1, 8):
        part = native[: max(8, 4 * clients)]
        replies, _, _ = asyncio.run(ask_all(f"{ours.url}/v1/reward", part, clients))
        gap = np.abs(our_scores(replies) - offline[: len(part)]).max()
        largest[f"{clients} clients"] = float(gap)
    for name, gap in largest.items():
        if name.endswith("clients"):
            claim = f"largest difference of a score to offline, {name}"
            report.target(claim, SCORE_TARGET, gap, at_least=False)
    report.notes.append(
        f"The rival's scores differ from ours by {largest['one a request']:.1e} up to a constant."
    )


def latency(report: Report, args: argparse.Namespace, answers: list[Answer], ours: Server) -> None:
    """What the server adds to one client beside the forward pass."""
    bodies = [body_of(answer) for answer in answers[: args.single]]
    _, seconds, headers = asyncio.run(ask_all(f"{ours.url}/v1/reward", bodies, 1))
    forward = np.array([forward_s(one) for one in headers])
    added = np.array(seconds) - forward
    report.add("one client, a request", Timing(tuple(seconds)))
    report.add("one client, a request less its forward pass", Timing(tuple(added.tolist())))
    report.target(
        "milliseconds that the server adds to one client, median",
        LATENCY_TARGET_MS,
        float(np.median(added) * 1e3),
        at_least=False,
    )


def forward_s(headers: dict[str, str]) -> float:
    """Seconds of the forward pass, as the reply states them."""
    found = re.search(r"forward;dur=([0-9.]+)", headers.get("server-timing", ""))
    if found is None:
        sys.exit(f"the reply has no Server-Timing with a forward: {dict(headers)}")
    return float(found[1]) / 1e3


# ------------------------------------------------------------------------------------------- soak


def soak(
    report: Report,
    args: argparse.Namespace,
    answers: list[Answer],
    offline: np.ndarray,
    ours: Server,
) -> None:
    """Mixed requests for some minutes; counts of what went wrong, and memory over time."""
    say(f"soak of {args.soak} s")
    found = asyncio.run(_soak(ours, answers, offline, args.soak, args.soak_clients))
    memory = found.pop("memory_mb")
    counts: Counter[str] = found.pop("counts")
    settled = memory[int(len(memory) * WARM_SHARE) :]
    tenth = max(1, len(settled) // 10)
    growth = float(np.median(settled[-tenth:]) / np.median(settled[:tenth]) - 1)
    told = ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items()))
    report.notes.append(
        f"Soak: {args.soak_clients} clients, {args.soak:g} s; {told}. Resident memory without mapped files, "
        f"MB: {memory[0]:.0f} at the start, {settled[0]:.0f} after a quarter, {memory[-1]:.0f} at the end."
    )
    closed = counts["malformed, connection closed"]
    report.target("soak: malformed requests without a reply", 0, closed, at_least=False)
    report.target("soak: wrong scores", 0, counts["wrong score"], at_least=False)
    report.target("soak: replies of 500 and above", 0, counts["5xx"], at_least=False)
    report.target(
        "soak: valid requests that were refused", 0, counts["valid, refused"], at_least=False
    )
    report.target(
        "soak: bad requests that were accepted", 0, counts["bad, accepted"], at_least=False
    )
    report.target(
        "soak: growth of memory after the first quarter", GROWTH_TARGET, growth, at_least=False
    )


async def _soak(
    ours: Server, answers: list[Answer], offline: np.ndarray, seconds: float, clients: int
) -> dict[str, Any]:
    until = time.monotonic() + seconds
    counts: Counter[str] = Counter()
    memory: list[float] = []
    async with httpx.AsyncClient(timeout=600) as client:

        async def work(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < until:
                await _one(client, ours.url, answers, offline, draw, counts)

        async def watch() -> None:
            while time.monotonic() < until:
                memory.append(ours.memory_mb())
                await asyncio.sleep(SAMPLE_S)

        await asyncio.gather(watch(), *(work(n) for n in range(clients)))
    return {"counts": counts, "memory_mb": memory}


async def _one(
    client: httpx.AsyncClient,
    url: str,
    answers: list[Answer],
    offline: np.ndarray,
    draw: random.Random,
    counts: Counter[str],
) -> None:
    row = draw.randrange(len(answers))
    kind = draw.choices(("valid", "malformed", "huge", "broken off"), (6, 2, 1, 1))[0]
    counts[kind] += 1
    if kind == "broken off":
        with contextlib.suppress(httpx.HTTPError):
            await client.post(f"{url}/v1/reward", json=body_of(answers[row]), timeout=0.05)
        return
    if kind == "valid":
        path, body, read = draw.choice(_ways(answers[row]))
        reply = await client.post(url + path, json=body)
    else:
        content = _malformed(answers[row], draw) if kind == "malformed" else _huge(draw)
        path = draw.choice(("/v1/reward", "/classify", "/get_reward", "/score"))
        try:
            reply = await client.post(
                url + path, content=content, headers={"content-type": "application/json"}
            )
        except httpx.TransportError:
            # A body beyond the limit is not read to its end, which a client that still sends may
            # learn as a closed connection; nothing else may be closed.
            counts[f"{kind}, connection closed"] += 1
            return
    counts[f"status {reply.status_code}"] += 1
    counts["5xx"] += reply.status_code >= 500
    if kind == "valid":
        if reply.status_code != 200:
            counts["valid, refused"] += 1
        elif not abs(read(reply.json()) - offline[row]) <= SCORE_TARGET * (1 + abs(offline[row])):
            counts["wrong score"] += 1
    elif reply.status_code < 400:
        counts["bad, accepted"] += 1


def _ways(answer: Answer) -> list[tuple[str, dict[str, Any], Any]]:
    """The same answer in several protocols, and where its score stands in the reply."""
    native = body_of(answer)
    question = answer.prompt.messages[-1].content
    ways = [
        ("/v1/reward", native, lambda r: r["results"][0]["score"]),
        ("/classify", native, lambda r: r["data"][0]["probs"][0]),
        ("/pooling", {**native, "task": "classify"}, lambda r: r["data"][0]["data"][0]),
    ]
    if len(answer.prompt.messages) == 1:
        asked = {"queries": question, "documents": [answer.response]}
        ways.append(("/score", asked, lambda r: r["data"][0]["score"]))
    return ways


def _malformed(answer: Answer, draw: random.Random) -> bytes:
    whole = json.dumps(body_of(answer))
    return draw.choice(
        (
            whole[: draw.randrange(1, len(whole))],
            "[]",
            "null",
            '{"messages": 3}',
            '{"messages": [{"role": "assistant"}]}',
            '{"prompt": "x", "candidates": "y"}',
            '{"token_ids": [[-1, 2]]}',
            '{"token_ids": [[99999999]]}',
            '{"rendered": [""], "activation": "softplus"}',
            '{"input": [1.5, NaN]}',
            '{"query": {"a": 1}, "prompts": 2, "labels": 3}',
            "[" * 2000,
        )
    ).encode()


def _huge(draw: random.Random) -> bytes:
    text = "word " * draw.choice((40_000, 4_000_000))
    return json.dumps({"prompt": "x", "candidates": [text]}).encode()


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--data", type=Path, default=DATA)
    options.add_argument("--fit-prompts", type=int, default=8)
    options.add_argument("--answers", type=int, default=192)
    options.add_argument("--clients", type=int, default=64)
    options.add_argument("--single", type=int, default=24, help="requests of one client")
    options.add_argument("--repeats", type=int, default=N_REPEATS)
    options.add_argument(
        "--soak", type=float, default=0.0, help="seconds; 600 for the published run"
    )
    options.add_argument("--soak-clients", type=int, default=8)
    options.add_argument("--rival", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    found = options.parse_args()
    if found.rival is not None:
        run_rival(found.rival, found.port)
        sys.exit(0)
    return found


if __name__ == "__main__":
    main()
