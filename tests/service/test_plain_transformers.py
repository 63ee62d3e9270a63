"""Served scores against plain transformers: nothing of ours renders, reads or scores on the other side.

    h = model(ids, output_hidden_states=True).hidden_states, layers 0 to L side by side
    last   w h_T + b          mean   mean of w h_t + b          gated   Σ g_t r_t / Σ g_t, g_t = sigmoid

with t over the answer, the end of turn included or not.
"""

import asyncio

import pytest
import torch
from scored import reward_model
from served import client, run, service
from tiny import tiny_model, tiny_tokenizer

from retrm.backbone.base import Fingerprint
from retrm.backbone.render import ChatRenderer
from retrm.backbone.states import TransformersBackbone
from retrm.features.recipe import Recipe

CASES = [("2+2?", "It is 4."), ("2+2?", "5"), ("Name a colour, please.", "Blue\n\nor  red é.")]
KINDS = {"last": ("last", "linear"), "mean": ("mean", "linear"), "gated": ("tokens", "gated")}


def parts(prompt: str, response: str) -> tuple[str, str]:
    """ChatML in its own words, without a BOS and without an end."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n", response


def plain_score(network, tokenizer, head, kind, counts_end, prompt, response) -> float:
    before, said = parts(prompt, response)
    prompt_ids = tokenizer(before)["input_ids"]  # with the BOS that the tokenizer puts there
    said_ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    ids = [*prompt_ids, *said_ids, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    stop = len(ids) if counts_end else len(ids) - 1
    with torch.no_grad():
        states = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
        h = torch.cat([layer[0] for layer in states], dim=-1)[len(prompt_ids) : stop]
        if kind == "gated":
            out = h @ head.weight.T + head.bias
            gates = torch.sigmoid(out[:, 0])
            return float((gates * out[:, 1]).sum() / gates.sum())
        rewards = h @ head.weight.reshape(-1) + head.bias.reshape(-1)
        return float(rewards[-1] if kind == "last" else rewards.mean())


def requests_of(name, tokenizer, has_bos, prompt, response):
    """Path, body, and where the score stands, of every way to ask."""
    before, said = parts(prompt, response)
    text = f"{before}{said}<|im_end|>\n"
    bos = "<s>" if has_bos else ""
    ids, n = (
        tokenizer(before + said + "<|im_end|>")["input_ids"],
        len(tokenizer(before)["input_ids"]),
    )
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    native = lambda reply: reply["results"][0]["score"]  # noqa: E731
    yield "/v1/reward", {"messages": turns}, native
    yield "/v1/reward", {"prompt": prompt, "candidates": [response], "per_token": True}, native
    yield "/v1/reward", {"rendered": [text]}, native
    yield "/v1/reward", {"rendered": [bos + text], "prompt_texts": [bos + before]}, native
    yield "/v1/reward", {"token_ids": [ids], "n_prompt_tokens": [n]}, native
    yield "/v1/reward", {"token_ids": [ids]}, native
    yield "/classify", {"input": text}, lambda reply: reply["data"][0]["probs"][0]
    yield "/classify", {"text": bos + text}, lambda reply: reply["embedding"][0]
    yield "/v1/classify", {"messages": turns}, lambda reply: reply["data"][0]["probs"][0]
    yield "/v1/embeddings", {"input": [ids]}, lambda reply: reply["data"][0]["embedding"][0]
    yield "/pooling", {"input": [bos + text]}, lambda reply: reply["data"][0]["data"][0][0]
    pair = {"queries": prompt, "documents": response}
    yield "/score", pair, lambda reply: reply["data"][0]["score"]
    yield "/v1/rerank", {"query": prompt, "documents": [response]}, _best
    asked = {"query": [bos * 2 + text], "prompts": [bos + before]}
    yield "/get_reward", asked, lambda reply: reply["rewards"][0]


def _best(reply):
    return reply["results"][0]["relevance_score"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3", "gpt2"])
@pytest.mark.parametrize("has_bos", [False, True])
def test_every_path_gives_the_score_of_plain_transformers_under_load(family, has_bos):
    network, tokenizer = tiny_model(family), tiny_tokenizer(has_bos=has_bos)
    heads, facts = {}, {}
    for counts_end in (True, False):
        renderer = ChatRenderer(tokenizer, counts_end=counts_end)
        backbone = TransformersBackbone(network, renderer, Fingerprint("", "", "", ""), family)
        for kind, (pooling, head) in KINDS.items():
            recipe = Recipe("all", "hidden_states", pooling=pooling, counts_end=counts_end)
            name = f"{kind}-{counts_end}"
            heads[name] = reward_model(backbone, recipe, head, seed=len(heads))
            facts[name] = (kind, counts_end)
    asked = [
        (name, case, path, {"model": name, **body}, where)
        for name in heads
        for case in CASES
        for path, body, where in requests_of(name, tokenizer, has_bos, *case)
    ]

    async def work():
        async with client(service(heads)) as http:
            sent = [http.post(path, json=body) for _, _, path, body, _ in asked]
            return await asyncio.gather(*sent)

    replies = run(work)

    expected = {
        (name, case): plain_score(
            network, tokenizer, heads[name].artifact.head, *facts[name], *case
        )
        for name in heads
        for case in CASES
    }
    assert len({round(score, 4) for score in expected.values()}) == len(expected)
    for (name, case, path, body, where), reply in zip(asked, replies, strict=True):
        assert reply.status_code == 200, (path, body, reply.text)
        got = where(reply.json())
        assert got == pytest.approx(expected[name, case], abs=2e-5), (path, body)
