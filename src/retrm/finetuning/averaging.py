"""WARM: one reward model whose weights are the mean of those of several (arXiv 2401.12187).

    w = 1/M sum_k w_k        in float64, members from one initialisation

Members of one run start from the same weights and see the same rows in another order. For a linear head on
frozen states the mean of the weights is the mean of the scores; here the backbone was trained too, and the
two differ.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from retrm.errors import ArtifactError, RecipeError
from retrm.files import check_writable

_MAY_DIFFER = ("member",)
_WEIGHTS = "model.safetensors"


def average_weights(runs: Sequence[Path], target: Path) -> Path:
    """Write the mean of the reward models of finished runs; the folder of the classifier.

    Args:
        runs: folders of runs, with `config.json` and `model/`.
        target: folder to write; config and tokenizer are those of the first member.

    Raises:
        RecipeError: fewer than two, or runs that differ in more than the order of their rows.
        ArtifactError: a run is not over, or weights are not of the same names and sizes.
        OutputError: nothing can be written there.
    """
    if len(set(runs)) < 2:
        raise RecipeError(
            f"got {len(set(runs))} run(s) to average; expected two different ones or more"
        )
    check_same_start(runs)
    check_writable(target)
    folders = [run / "model" for run in runs]
    files = [_weight_files(folder) for folder in folders]
    _check_same_names(files, folders)
    target.mkdir(parents=True, exist_ok=True)
    for path in folders[0].iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copy2(path, target / path.name)
    for name in sorted({str(path.name) for path in files[0]}):
        save_file(_mean([folder / name for folder in folders]), target / name, {"format": "pt"})
    return target


def check_same_start(runs: Sequence[Path]) -> None:
    """Refuse runs that differ in more than the order of their rows.

    Raises:
        RecipeError: the message names what differs.
        ArtifactError: a run is not over.
    """
    configs = [_config(run) for run in runs]
    for run, config in zip(runs[1:], configs[1:], strict=True):
        names = {*config, *configs[0]} - {*_MAY_DIFFER}
        changed = sorted(name for name in names if config.get(name) != configs[0].get(name))
        if changed:
            raise RecipeError(
                f"{run} differs from {runs[0]} in {', '.join(changed)}; the mean of weights means something "
                "for trainings from one initialisation only. Train members together: --members"
            )


def _config(run: Path) -> Mapping[str, Any]:
    if not (run / "done.json").is_file():
        raise ArtifactError(f"the run in {run} is not over; run the same command to go on")
    return json.loads((run / "config.json").read_text("utf-8"))


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ArtifactError(f"{folder} has no {_WEIGHTS}; expected the model of a finished run")
    return found


def _check_same_names(files: Sequence[Sequence[Path]], folders: Sequence[Path]) -> None:
    shapes = [_shapes(own) for own in files]
    for folder, own in zip(folders[1:], shapes[1:], strict=True):
        wrong = sorted(name for name in {*own, *shapes[0]} if own.get(name) != shapes[0].get(name))
        if wrong:
            raise ArtifactError(
                f"{folder} and {folders[0]} differ in the size of {len(wrong)} weight(s), {wrong[0]} among "
                "them; expected members of one model"
            )


def _shapes(files: Sequence[Path]) -> dict[str, tuple[str, tuple[int, ...]]]:
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as held:
            for name in held.keys():  # noqa: SIM118
                found[name] = (path.name, tuple(held.get_slice(name).get_shape()))
    return found


def _mean(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of each tensor of a file, one tensor of one member in memory at a time."""
    made: dict[str, torch.Tensor] = {}
    with safe_open(paths[0], framework="pt") as first:
        names = list(first.keys())
    for name in names:
        total, dtype = None, torch.float32
        for path in paths:
            with safe_open(path, framework="pt") as held:
                value = held.get_tensor(name)
            dtype = value.dtype
            total = value.double() if total is None else total + value.double()
        assert total is not None
        made[name] = (total / len(paths)).to(dtype)
    return made
