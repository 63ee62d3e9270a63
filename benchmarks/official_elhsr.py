"""The official training loop of ELHSR, run as it is, and what is noted of a run by it or by us.

Its code is a checkout of github.com/aster2024/SWIFT; its split by answers is replaced by ours by
prompts. A run is a list of validation losses, each with both clocks when it was known.
"""

import argparse
import contextlib
import importlib
import io
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from retrm.features.reduce import Features
from retrm.fitting.targets import Targets


@dataclass(frozen=True)
class Moment:
    """A validation loss, and the clocks when it was known."""

    loss: float
    cpu: float
    wall: float

    @classmethod
    def now(cls, loss: float) -> "Moment":
        """Both clocks as they are."""
        return cls(loss, time.process_time(), time.perf_counter())


@dataclass(frozen=True)
class Run:
    """One fit: its start and its epochs."""

    started: Moment
    epochs: tuple[Moment, ...]

    @property
    def best(self) -> float:
        """Lowest validation loss."""
        return min(moment.loss for moment in self.epochs)

    def until(self, loss: float) -> Moment | None:
        """Seconds to the first epoch at `loss` or below."""
        for moment in self.epochs:
            if moment.loss <= loss:
                cpu, wall = moment.cpu - self.started.cpu, moment.wall - self.started.wall
                return Moment(moment.loss, cpu, wall)
        return None

    def to_epoch(self, number: int) -> Moment:
        """Seconds to the end of epoch `number`; an epoch that did not run takes as long as the last."""
        before, last = self.epochs[-2:]
        more = number - len(self.epochs)
        cpu = last.cpu - self.started.cpu + more * (last.cpu - before.cpu)
        wall = last.wall - self.started.wall + more * (last.wall - before.wall)
        return Moment(self.best, cpu, wall)


class Swift:
    """The official loop, imported from a checkout and fed with our features as its own samples."""

    def __init__(
        self,
        folder: Path,
        features: Features,
        targets: Targets,
        rows: tuple[Tensor, Tensor],
        seed: int,
    ) -> None:
        for part in (folder, folder / "train"):
            if str(part) not in sys.path:
                sys.path.insert(0, str(part))
        self._train = importlib.import_module("extract_train")
        self._utils = importlib.import_module("utils")
        self._seed, self._n_features = seed, features.n_features
        self._summary, self._detailed, order = self._samples(features, targets)
        place = torch.empty(len(order), dtype=torch.int64)
        place[torch.tensor(order)] = torch.arange(len(order))
        self._parts = [place[part].tolist() for part in rows]

    @staticmethod
    def _samples(features: Features, targets: Targets) -> tuple[list[dict], list[dict], list[int]]:
        """One sample a prompt; all layers side by side stand for one layer, so it joins nothing."""
        summary, detailed, order = [], [], []
        for prompt in range(targets.n_prompts):
            rows = (targets.groups == prompt).nonzero()[:, 0].tolist()
            paths = []
            for row in rows:
                first, last = int(features.offsets[row]), int(features.offsets[row + 1])
                states = features.values[first:last][None]
                span = [(0, 0), (0, last - first)]
                paths.append({"hidden_states": {0: states}, "boundaries": span})
            summary.append({"correctness": targets.labels[rows].tolist()})
            detailed.append({"detailed_paths": paths})
            order += rows
        return summary, detailed, order

    def run(self, epochs: int) -> Run:
        """Its own settings: AdamW, 1e-4, 1e-5, 16 answers a step, stop after 3 without a better loss."""
        self._utils.set_seed(self._seed)
        settings = argparse.Namespace(
            memory_efficient=False,
            method="ce",
            train_val_split_ratio=0.2,
            reward_batch_size=16,
            reward_epochs=epochs,
            seed=self._seed,
        )
        started = Moment.now(float("inf"))
        model = self._utils.LinearRewardModel(self._n_features)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-5)
        log = _Log()
        split = mock.patch.object(torch.utils.data, "random_split", self._split)
        with split, contextlib.redirect_stdout(log), contextlib.redirect_stderr(io.StringIO()):
            self._train.train_reward_model(
                model, optimizer, self._summary, self._detailed, settings, torch.device("cpu")
            )
        return Run(started, tuple(log.found))

    def _split(self, dataset: torch.utils.data.Dataset, *_: object, **__: object) -> list:
        return [torch.utils.data.Subset(dataset, part) for part in self._parts]


class _Log(io.TextIOBase):
    """Takes the validation losses out of what the official loop prints, with the time."""

    def __init__(self) -> None:
        self.found: list[Moment] = []

    def write(self, text: str) -> int:
        if match := re.search(r"Val Loss: (\S+)", text):
            self.found.append(Moment.now(float(match[1])))
        return len(text)
