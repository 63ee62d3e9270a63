"""Files in the layout of vLLM's connector, made from our own reading of a small model.

`hidden_states` (tokens, layers, width) in ascending layer order and `token_ids` (tokens,): what the
connector writes, as far as its code tells; vLLM itself needs a GPU.
"""

import fcntl
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from fake_engine import Reply
from safetensors.torch import save_file
from torch import Tensor

from retrm.backbone.base import Backbone, Rendered
from retrm.backbone.batching import build, plan_batches


def residuals(backbone: Backbone, ids: Sequence[int], layers: Sequence[int]) -> Tensor:
    """(tokens, layers, width) residual states of a text alone, in the order of `layers`."""
    item = Rendered(tuple(ids), 1, len(ids))
    found: dict[int, Tensor] = {}
    (plan,) = plan_batches([item], tokens_per_batch=4096)
    backbone.forward(
        build(plan, [item], pad_id=0),
        [(layer, "residual") for layer in set(layers)],
        lambda layer, _point, x: found.__setitem__(layer, x[0].clone()),
    )
    return torch.stack([found[layer] for layer in layers], dim=1)


def write(path: Path, ids: Sequence[int], states: Tensor) -> Path:
    """One file of the connector."""
    tensors = {"hidden_states": states.contiguous(), "token_ids": torch.tensor(list(ids))}
    save_file(tensors, path)
    return path


def record(
    folder: Path,
    backbone: Backbone,
    texts: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Path]:
    """A file for each text, as a server with these layers leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write(
            folder / f"cmpl-{i}-0.safetensors",
            ids,
            residuals(backbone, ids, sorted(set(layers))).to(dtype),
        )
        for i, ids in enumerate(texts)
    ]


class FakeVllm:
    """What POST /v1/completions does with the connector: reply at once, the file a little later."""

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        layers: Sequence[int],
        *,
        delay_s: float = 0.05,
        change=lambda ids, states: (ids, states),
    ) -> None:
        self.folder, self.backbone, self.layers = folder, backbone, layers
        self.delay_s, self.change = delay_s, change
        self.paths: list[Path] = []
        self.busy = threading.Lock()  # hooks of two passes at a time would meet

    def __call__(self, number: int, body: dict) -> Reply:
        path = self.folder / f"cmpl-{number}-0.safetensors"
        self.paths.append(path)
        lock = path.with_name(path.name + ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)  # before the reply, as the connector does
        threading.Thread(target=self._write, args=(path, body["prompt"], lock)).start()
        reply = {
            "object": "text_completion",
            "choices": [{"index": 0, "text": " x", "finish_reason": "length"}],
            "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1},
            "kv_transfer_params": {"hidden_states_path": str(path)},
        }
        return 200, {}, json.dumps(reply).encode()

    def _write(self, path: Path, ids: list[int], lock) -> None:
        with self.busy:
            states = residuals(self.backbone, ids, sorted(set(self.layers))).bfloat16()
        time.sleep(self.delay_s)
        write(path, *self.change(ids, states))
        lock.close()
