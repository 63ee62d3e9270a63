"""Tiny trainings of reward models: a model on disk, data that can be learnt, options that take a second."""

import json
from pathlib import Path

import torch
from tiny import save_tiny

from retrm.data.load import load_table
from retrm.finetuning.finetune import Finetuned, finetune
from retrm.finetuning.language_model import LoraOptions
from retrm.finetuning.reward_options import RewardOptions
from retrm.finetuning.run_folder import RunFolder
from retrm.records import Answer, AnswerTable

LORA = LoraOptions(rank=2)
# A head that is not zero, so that every weight of the backbone moves.
SHARED_RUN = {"batch_size": 4, "init_std": 0.3, "epochs": 2}


def tiny(folder: Path, family: str = "llama", **options) -> Path:
    """A language model of 16 hidden units on disk."""
    save_tiny(folder, family, **options)
    return folder


def pair_table(folder: Path, n: int = 8, **extra) -> AnswerTable:
    """Pairs whose chosen answers say yes: a head finds that, and so does training."""
    path = folder / "pairs.jsonl"
    rows = [
        {"prompt": f"q{i}?", "chosen": "yes" * (1 + i % 3), "rejected": "no", **extra}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_table(path)


def options(**changes) -> RewardOptions:
    """Two rows an update; a rate at which a tiny model learns."""
    plain = {"batch_size": 2, "device_batch": 2, "learning_rate": 3e-3, "save_steps": 2}
    return RewardOptions(**{**plain, **changes})


def train(
    folder: Path, model: Path, table: AnswerTable, run: str = "run", **arguments
) -> Finetuned:
    """A run in `folder`/`run`; keyword arguments of `finetune`."""
    arguments.setdefault("options", options())
    return finetune(table, str(model), RunFolder(folder / run), **arguments)


def answers(*texts: str) -> list[Answer]:
    return [Answer.of("q1?", text) for text in texts]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
