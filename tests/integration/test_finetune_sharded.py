"""A training with sharded weights gives the weights of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trained import SHARED_RUN, options, pair_table, tiny, train, weights

from retrm.finetuning.run_folder import RunFolder

SCRIPT = Path(__file__).parents[1] / "sharded.py"
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "OMP_NUM_THREADS": "1",
}


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.mark.slow
def test_two_processes_with_sharded_weights_train_as_one(tmp_path):
    tiny(tmp_path / "lm")
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path)],
            env={
                **os.environ,
                **SHARDED,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=540)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], (
        said[0][-3000:] + said[1][-3000:]
    )

    # The same batches of four, in one process.
    alone = train(
        *(tmp_path, tmp_path / "lm", pair_table(tmp_path)),
        options=options(**SHARED_RUN, device_batch=4),
    )
    facts = RunFolder(tmp_path / "sharded").facts()
    assert (facts["is_sharded"], alone.facts["is_sharded"]) == (True, False)
    assert (facts["n_processes"], facts["steps"]) == (2, alone.facts["steps"])
    together, whole = weights(tmp_path / "sharded" / "model"), weights(alone.model)
    assert together.keys() == whole.keys()
    start = weights(tmp_path / "lm")
    for name, value in whole.items():
        assert torch.allclose(together[name], value, atol=1e-5), name
    assert not torch.allclose(whole["model.norm.weight"], start["model.norm.weight"], atol=1e-4)
