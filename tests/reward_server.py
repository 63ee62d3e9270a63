"""A stand-in for `retrm serve` that needs no model: the raw score of an answer is minus its length.

It speaks `/v1/reward` and `/v1/best_of_n` as the server does, on the scripted engine of `fake_engine`.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fake_engine import Engine, Reply, engine


def answers_in(body: dict[str, Any]) -> list[str]:
    if "candidates" in body:
        return body["candidates"]
    if "rendered" in body:
        prompts = body.get("prompt_texts") or [""] * len(body["rendered"])
        return [t.removeprefix(p) for t, p in zip(body["rendered"], prompts, strict=True)]
    return [conversation[-1]["content"] for conversation in body["messages"]]


def result(index: int, text: str, activation: str = "none") -> dict[str, Any]:
    score = -float(len(text))
    squashed = 1 / (1 + math.exp(-score))
    return {
        "index": index,
        "score": score,
        "calibrated": squashed,
        "calibration": "sigmoid",
        "activation": activation,
        "value": score if activation == "none" else squashed,
        "num_tokens": len(text) + 3,
        "truncated": False,
        "truncation": None,
        "unfinished": None,
        "token_scores": None,
        "layers": None,
        "layer_scores": None,
        "head_id": "abc",
        "backbone": "toy",
        "template_fingerprint": "t",
        "warnings": [],
    }


def rewards(body: dict[str, Any]) -> dict[str, Any]:
    activation = body.get("activation", "none")
    results = [result(i, text, activation) for i, text in enumerate(answers_in(body))]
    return {
        "id": "1",
        "object": "list",
        "created": 0,
        "model": "m",
        "results": results,
        "warnings": [],
    }


def best(body: dict[str, Any]) -> dict[str, Any]:
    texts = body["candidates"]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    ranking = [{"index": i, "score": -float(len(texts[i]))} for i in order]
    chosen = {"index": order[0], "text": texts[order[0]], "score": -float(len(texts[order[0]]))}
    return {"object": "best_of_n", "model": "m", "best": chosen, "ranking": ranking, "warnings": []}


def ok(reply: Any) -> Reply:
    return 200, {"Content-Type": "application/json"}, json.dumps(reply).encode()


def refusal(status: int, message: str, **headers: str) -> Reply:
    return status, headers, json.dumps({"error": {"message": message}}).encode()


def honest(_number: int, body: dict[str, Any]) -> Reply:
    is_reward = "activation" in body
    return ok(rewards(body) if is_reward else best(body))


def pages(path: str) -> Reply:
    if path == "/v1/models":
        return ok({"object": "list", "data": [{"id": "m", "method": "elhsr"}, {"id": "n"}]})
    return ok({"status": "ready"}) if path == "/health" else refusal(404, "no such page")


@contextmanager
def reward_server(
    script: Callable[[int, dict[str, Any]], Reply] = honest,
    models: Callable[[str], Reply] = pages,
) -> Iterator[Engine]:
    """The server while the block runs."""
    with engine(script, models) as running:
        yield running
