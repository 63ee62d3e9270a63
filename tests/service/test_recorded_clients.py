"""Recorded traffic: the bytes that each client sends, and the bytes that it gets.

Requests are what the clients' own code writes: verl 0.9.1 and OpenRLHF 0.11.2 through aiohttp, POLAR's client
through requests, OpenAI's through httpx. The served head gives -1.25 for everything, so that every figure of
a reply is known: sigmoid(-1.25) = 1 / (1 + exp(1.25)) = 0.22270013882530884.
"""

import json
import re

import pytest
import torch
from scored import reward_model
from served import client, run, service

from retrm.backbone.fake import FakeBackbone
from retrm.features.recipe import Recipe

SIGMOID = b"0.22270013882530884"
# The toy's template; verl takes the BOS off, OpenRLHF keeps it.
TALK = "<turn>user\\n2+2?<end><turn>assistant\\n4<end>"
PROMPT = "<bos><turn>user\\n2+2?<end><turn>assistant\\n"
# <bos> <turn> "user\n2+2?" <end> <turn> "assistant\n" 4 <end> are 1 + 1 + 9 + 1 + 1 + 10 + 1 + 1 = 25 tokens.
N = b"25"
USAGE = b'"usage":{"prompt_tokens":25,"total_tokens":25,"completion_tokens":0,"prompt_tokens_details":null}'
RAW = b'"activation":"none","warnings":[]'


def always(score: float, *, pooling: str = "mean"):
    """A reward model that gives `score` to everything that it can read."""
    made = reward_model(FakeBackbone(), Recipe(pooling=pooling))  # type: ignore[arg-type]
    with torch.no_grad():
        made.artifact.head.weight.zero_()
        made.artifact.head.bias.fill_(score)
    return made


MODEL = always(-1.25)

TRAFFIC = {
    "verl, engine vllm": (
        "/classify",
        f'{{"model": "math", "input": "{TALK}", "use_activation": false}}',
        b'{"id":"classify-r1","object":"list","created":0,"model":"math","data":[{"index":0,"label":'
        b'"reward","probs":[-1.25],"num_classes":1}],' + USAGE + b"," + RAW + b"}",
    ),
    "verl, engine sglang": (
        "/v1/embeddings",
        f'{{"model": "math", "input": "{TALK}"}}',
        b'{"id":"embd-r1","object":"list","created":0,"model":"math","data":[{"index":0,"object":'
        b'"embedding","embedding":[-1.25]}],' + USAGE + b"," + RAW + b"}",
    ),
    "verl before 0.9": (
        "/classify",
        f'{{"model": "math", "input": "{TALK}", "activation": false}}',
        b'{"id":"classify-r1","object":"list","created":0,"model":"math","data":[{"index":0,"label":'
        b'"reward","probs":[-1.25],"num_classes":1}],' + USAGE + b"," + RAW + b"}",
    ),
    "OpenRLHF": (
        "/get_reward",
        f'{{"query": ["<bos>{TALK}"], "prompts": ["{PROMPT}"], "labels": ["4"]}}',
        b'{"rewards":[-1.25],"scores":[' + SIGMOID + b'],"extra_logs":{"tokens":[25.0],"truncated":[0.0],'
        b'"unfinished":[0.0]},"warnings":[]}',
    ),
    "OpenRLHF, no label": (
        "/get_reward?scores=binary",
        f'{{"query": ["<bos>{TALK}"], "prompts": ["{PROMPT}"], "labels": [null]}}',
        b'{"rewards":[-1.25],"scores":[0.0],"extra_logs":{"tokens":[25.0],"truncated":[0.0],'
        b'"unfinished":[0.0]},"warnings":[]}',
    ),
    "OpenRLHF before 0.11, a server without a share": (
        "/get_reward",
        '{"query": [], "prompts": [], "labels": []}',
        b'{"rewards":[],"scores":[],"extra_logs":{"tokens":[],"truncated":[],"unfinished":[]},'
        b'"warnings":[]}',
    ),
    "POLAR, sglang": (
        "/classify",
        f'{{"model": "math", "text": ["<bos>{TALK}"]}}',
        b'[{"embedding":[-1.25],"meta_info":{"id":"r1-0","prompt_tokens":25,"finish_reason":null,'
        b'"activation":"none","warnings":[]}}]',
    ),
    "POLAR, vllm": (
        "/pooling",
        f'{{"input": ["<bos>{TALK}"]}}',
        b'{"id":"pool-r1","object":"list","created":0,"model":"math","data":[{"index":0,"object":'
        b'"pooling","data":[[-1.25]]}],' + USAGE + b"," + RAW + b"}",
    ),
    "OpenAI": (
        "/v1/embeddings",
        f'{{"input":["<bos>{TALK}"],"model":"math","encoding_format":"base64"}}',
        # -1.25 is 0xbfa00000, little-endian 00 00 a0 bf.
        b'{"id":"embd-r1","object":"list","created":0,"model":"math","data":[{"index":0,"object":'
        b'"embedding","embedding":"AACgvw=="}],' + USAGE + b"," + RAW + b"}",
    ),
    "vLLM's own, squashed": (
        "/classify",
        f'{{"model":"math","input":"<bos>{TALK}","use_activation":true}}',
        b'{"id":"classify-r1","object":"list","created":0,"model":"math","data":[{"index":0,"label":'
        b'"reward","probs":[' + SIGMOID + b'],"num_classes":1}],' + USAGE + b","
        b'"activation":"sigmoid","warnings":[]}',
    ),
    "vLLM's own, score": (
        "/v1/score",
        '{"model":"math","queries":"2+2?","documents":["4"]}',
        b'{"id":"embd-r1","object":"list","created":0,"model":"math","data":[{"index":0,"object":"score",'
        b'"score":-1.25}],' + USAGE + b"," + RAW + b"}",
    ),
    "vLLM's own, rerank": (
        "/v2/rerank",
        '{"model":"math","query":"2+2?","documents":["4"],"top_n":1}',
        b'{"id":"rerank-r1","model":"math",' + USAGE + b',"results":[{"index":0,"document":{"text":"4",'
        b'"multi_modal":null},"relevance_score":-1.25}],' + RAW + b"}",
    ),
    "SGLang's own, score": (
        "/v1/score",
        '{"model":"math","query":"2+2?","items":["4"]}',
        b'{"object":"scoring","scores":[[-1.25]],"pooled_hidden_states":null,"token_logprobs":null,'
        b'"model":"math",' + USAGE + b"," + RAW + b"}",
    ),
    "SGLang's own, /v1/classify": (
        "/v1/classify",
        f'{{"model":"math","input":"<bos>{TALK}"}}',
        b'{"id":"classify-r1","object":"list","created":0,"model":"math","data":[{"index":0,"label":'
        b'"reward","probs":[-1.25],"num_classes":1}],' + USAGE + b',"activation":"none","warnings":["SGLang '
        b"applies a softmax on this path, which is 1.0 for a single score; `probs` holds the raw "
        b'score"]}',
    ),
}  # fmt: skip


def post(path: str, body: bytes, method: str = "POST", model=MODEL) -> tuple[int, bytes]:
    """Status and bytes of the real application's answer."""

    async def work():
        headers = {"content-type": "application/json", "x-request-id": "r1"}
        async with client(service({"math": model})) as http:
            return await http.request(method, path, content=body, headers=headers)

    reply = run(work)
    return reply.status_code, re.sub(rb'"created":\d+', b'"created":0', reply.content)


@pytest.mark.parametrize("name", TRAFFIC)
def test_c14_recorded_requests_get_the_recorded_replies(name):
    path, request, wanted = TRAFFIC[name]

    status, got = post(path, request.encode())

    assert (status, got) == (200, wanted)


def test_put_is_answered_where_sglang_takes_it():
    path, request, wanted = TRAFFIC["POLAR, sglang"]

    assert post(path, request.encode(), "PUT") == (200, wanted)


def test_clients_read_the_score_where_they_look_for_it():
    """The expressions of the clients themselves."""
    replies = {name: json.loads(reply) for name, (_, _, reply) in TRAFFIC.items()}

    assert replies["verl, engine vllm"]["data"][-1]["probs"][-1] == -1.25
    assert replies["verl, engine sglang"]["data"][-1]["embedding"][-1] == -1.25
    assert [one["embedding"][0] for one in replies["POLAR, sglang"]] == [-1.25]
    assert [one["data"][-1][0] for one in replies["POLAR, vllm"]["data"]] == [-1.25]
    assert torch.tensor(replies["OpenRLHF"]["rewards"]).tolist() == [-1.25]
    for values in replies["OpenRLHF"]["extra_logs"].values():
        assert torch.tensor(values).shape == (1,)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/classify", b'{"input": "x", "normalize": true}', "got `normalize`"),
        ("/classify", b'{"input": [1, "a"]}', "input: Value error, entry has the text 'a' at 1"),
        ("/pooling", b'{"input": "no turns at all"}', "beginning was not found"),
        ("/classify", b'{"input": [' + b"[" * 5000 + b"]" * 5000 + b"]}", "no JSON"),
        ("/classify", b'{"input": "x", "use_activation": NaN}', "no JSON"),
        ("/v1/reward", b'{"rendered": ["<bos><bos>' + TALK.encode() + b'"]}', "got 2 BOS tokens"),
    ],
)
def test_mistakes_are_told_in_the_shape_of_openai(path, body, message):
    status, got = post(path, body)
    error = json.loads(got)["error"]

    assert status == error["code"] == 400
    assert message in error["message"]


POLAR_TEXT = (
    "What is the capital of China?\\nBeijing.<|reward|>What is the capital of China?\\nShanghai."
    "[UNUSED_TOKEN_130]"
)


def test_polars_own_text_is_read_by_heads_of_the_last_token_only():
    body = f'{{"model": "math", "text": ["{POLAR_TEXT}"]}}'.encode()

    status, got = post("/classify", body, model=always(-1.25, pooling="last"))
    (found,) = json.loads(got)
    assert (status, found["embedding"]) == (200, [-1.25])
    assert any("span_unknown" in warning for warning in found["meta_info"]["warnings"])

    # Any other would take the prompt for the answer.
    status, got = post("/classify", body)
    assert status == 400
    assert "beginning was not found" in json.loads(got)["error"]["message"]
