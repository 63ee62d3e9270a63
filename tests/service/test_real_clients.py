"""The reward clients of verl and OpenRLHF themselves, run against the real application.

Their packages need clusters and GPUs to be installed, so only the files with the HTTP calls are loaded, with
stand-ins for what those do not use. `RETRM_PEERS` names folders (separated by colons) with the unpacked
wheels; packages that are installed are found without it. What the clients send is also recorded in
`test_recorded_clients.py`, which always runs.
"""

import asyncio
import importlib.util
import logging
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from listening import listening
from scored import reward_model
from tiny import tiny_model, tiny_tokenizer

from retrm.backbone.base import Fingerprint
from retrm.backbone.render import ChatRenderer
from retrm.backbone.states import TransformersBackbone
from retrm.features.recipe import Recipe
from retrm.records import Answer
from retrm.scorers.reward_model import RewardModel
from retrm.service.app import create_app
from retrm.service.core import Service
from retrm.service.models import Registry

aiohttp = pytest.importorskip("aiohttp", reason="aiohttp, which the clients use, is not installed")

TOKENIZER = tiny_tokenizer(has_bos=True)
ELHSR = Recipe(layers="all", point="hidden_states", pooling="tokens", dtype="float32")
CASES = [("2 + 2?", "4"), ("Who was Ada?", "A mathematician,\nnot a poet. 日本"), ("hi", "")]


def client_file(package: str, path: str) -> Path:
    """A file of a package that is installed or unpacked; skips where there is none."""
    folders = [Path(p) for p in os.environ.get("RETRM_PEERS", "").split(":") if p]
    found = next((f for folder in folders for f in sorted(folder.rglob(f"{package}/{path}"))), None)
    if found is None:
        spec = importlib.util.find_spec(package)
        root = (
            spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else ""
        )
        found = Path(root) / path if root else None
    if found is None or not found.is_file():
        pytest.skip(f"{package} is neither installed nor unpacked in a folder of RETRM_PEERS")
    return found


def loaded(monkeypatch: pytest.MonkeyPatch, file: Path, name: str, *stubs: str) -> ModuleType:
    """The module of a file, `stubs` being stand-ins for modules that it imports."""
    for stub in stubs:
        monkeypatch.setitem(sys.modules, stub, MagicMock(name=stub))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> RewardModel:
    renderer = ChatRenderer(TOKENIZER)
    backbone = TransformersBackbone(tiny_model(), renderer, Fingerprint("", "", "", ""), "tiny")
    return reward_model(backbone, ELHSR, "gated")


@pytest.fixture(scope="module")
def url(model: RewardModel) -> Iterator[str]:
    with listening(create_app(Service(Registry.of({"math": model})))) as address:
        yield address


def offline(model: RewardModel, prompt: str, response: str) -> float:
    return float(model.score([(prompt, response)])[0])


# verl


def verl_worker(monkeypatch: pytest.MonkeyPatch, url: str, engine: str):
    file = client_file("verl", "experimental/reward_loop/reward_loop.py")
    module = loaded(
        monkeypatch, file, "verl.experimental.reward_loop.reward_loop",
        "ray", "ray.actor", "omegaconf", "tensordict", "verl", "verl.protocol", "verl.experimental",
        "verl.single_controller", "verl.single_controller.ray", "verl.single_controller.ray.base",
        "verl.trainer", "verl.trainer.ppo", "verl.trainer.ppo.reward", "verl.utils", "verl.utils.fs",
        "verl.utils.ray_utils", "verl.experimental.reward_loop",
        "verl.experimental.reward_loop.reward_model",
    )  # fmt: skip
    worker = object.__new__(module.RewardLoopWorker)
    rollout = SimpleNamespace(name=engine)
    model_config = SimpleNamespace(rollout=rollout, model_path="math")
    worker.config = SimpleNamespace(reward=SimpleNamespace(reward_model=model_config))
    worker.reward_router_address = url.removeprefix("http://")
    worker.input_tokenizer = worker.reward_model_tokenizer = TOKENIZER
    return worker


class OneSample:
    """What verl's worker reads of a `DataProto` of one row: prompt turns and padded response ids."""

    def __init__(self, prompt: str, response: str) -> None:
        ids = TOKENIZER(response, add_special_tokens=False)["input_ids"]
        ids = [*ids, TOKENIZER.eos_token_id]
        padding = [TOKENIZER.pad_token_id] * 3
        self.non_tensor_batch = {"raw_prompt": [{"role": "user", "content": prompt}]}
        self.batch = {
            "responses": torch.tensor([*ids, *padding]),
            "attention_mask": torch.tensor([1] * (4 + len(ids)) + [0] * 3),
        }

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> "OneSample":
        return self


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(("prompt", "response"), CASES)
def test_b12_verl_gets_the_raw_offline_score(monkeypatch, model, url, engine, prompt, response):
    worker = verl_worker(monkeypatch, url, engine)

    got = asyncio.run(worker.compute_score_disrm(OneSample(prompt, response)))

    # Its text has no BOS: the client takes it off, and the server puts it back.
    assert got == {"reward_score": pytest.approx(offline(model, prompt, response), abs=1e-5)}


def test_verl_does_not_try_again_what_is_the_callers_mistake(monkeypatch, url):
    worker = verl_worker(monkeypatch, url, "vllm")

    with pytest.raises(aiohttp.ClientResponseError) as caught:
        asyncio.run(worker._post_request({"model": "math", "input": "x"}, "classify"))

    assert caught.value.status == 400


# OpenRLHF


def openrlhf_executor(monkeypatch: pytest.MonkeyPatch, *addresses: str):
    file = client_file("openrlhf", "utils/agent.py")
    logs = SimpleNamespace(init_logger=logging.getLogger)
    monkeypatch.setitem(sys.modules, "openrlhf.utils.logging_utils", logs)
    module = loaded(monkeypatch, file, "openrlhf_agent", "openrlhf", "openrlhf.utils")
    return module.SingleTurnAgentExecutor(list(addresses))


class Engine:
    """Stands for the rollout engine: it "samples" what the test wants."""

    def __init__(self, ids: list[int], reason: str) -> None:
        self.output = SimpleNamespace(token_ids=ids, finish_reason=reason, logprobs=None, text="")
        self.asked: list[int] = []

    async def generate(self, prompt_ids: list[int], *_: object, **__: object) -> SimpleNamespace:
        self.asked = prompt_ids
        return SimpleNamespace(outputs=[self.output])


def rollout(executor, prompt: str, ids: list[int], *, reason: str = "stop", max_tokens: int = 40):
    """One rollout as the trainer runs it, its reward call included; and the prompt's ids."""
    turns = [{"role": "user", "content": prompt}]
    text = TOKENIZER.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    engine = Engine(ids, reason)
    params = SimpleNamespace(max_tokens=max_tokens, logprobs=None)
    work = executor.execute(text, "4", params, 100, TOKENIZER, engine)
    return asyncio.run(work), engine.asked


@pytest.mark.parametrize(("prompt", "response"), CASES)
def test_openrlhf_gets_the_offline_score_of_the_sampled_ids(
    monkeypatch, model, url, prompt, response
):
    ids = [*TOKENIZER(response, add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    executor = openrlhf_executor(monkeypatch, f"{url}/get_reward")

    output, _ = rollout(executor, prompt, ids)

    want = offline(model, prompt, response)
    assert output["reward"] == [pytest.approx(want, abs=1e-5)]
    assert output["scores"] == [pytest.approx(1 / (1 + math.exp(-want)), abs=1e-5)]
    assert output["extra_logs"]["unfinished"] == [0.0]
    assert {key: len(values) for key, values in output["extra_logs"].items()} == {
        "tokens": 1,
        "truncated": 1,
        "unfinished": 1,
    }


def test_openrlhf_gets_the_score_of_an_answer_that_its_length_cut(monkeypatch, model, url):
    ids = TOKENIZER("4 is the", add_special_tokens=False)["input_ids"]
    executor = openrlhf_executor(monkeypatch, f"{url}/get_reward")

    output, _ = rollout(executor, "2 + 2?", ids, reason="length")

    answer = Answer(Answer.of("2 + 2?", "").prompt, "4 is the", "p", finished=False)
    assert output["reward"] == [pytest.approx(float(model.score([answer])[0]), abs=1e-5)]
    assert output["extra_logs"]["unfinished"] == [1.0]


def test_openrlhf_may_cut_prompts_on_their_left(monkeypatch, model, url):
    prompt = "Tell me everything that is known about the number four, and then some more"
    ids = [*TOKENIZER("4 it is", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]
    executor = openrlhf_executor(monkeypatch, f"{url}/get_reward")

    # The prompt has more than the 60 tokens that are left for it.
    output, asked = rollout(executor, prompt, ids)

    assert len(asked) == 60
    whole = model.backbone.renderer.render(Answer.of(prompt, "4 it is"))
    n_cut = whole.start - 60
    assert n_cut > 10
    # With its BOS in front: what `truncate_prompt` keeps of it.
    from retrm.backbone.base import Rendered

    kept = Rendered((whole.ids[0], *whole.ids[n_cut:]), 61, whole.stop - n_cut + 1)
    assert output["reward"] == [pytest.approx(float(model.score_rendered([kept])[0]), abs=1e-5)]


def test_openrlhf_rotates_over_several_servers(monkeypatch, model, url):
    executor = openrlhf_executor(
        monkeypatch, f"{url}/get_reward", f"{url}/get_reward?scores=binary"
    )
    ids = [*TOKENIZER("4", add_special_tokens=False)["input_ids"], TOKENIZER.eos_token_id]

    first, second = (rollout(executor, "2 + 2?", ids)[0] for _ in range(2))

    assert first["reward"] == second["reward"]
    assert second["scores"] == [float(second["reward"][0] > 0)]
