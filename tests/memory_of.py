"""Run as a script: read or fit N answers, each time in a fork of its own, and print the peaks of memory.

    python memory_of.py '[["read" | "hold" | "fill" | "fit" | "fit-held", FOLDER, N_ANSWERS], ...]'

One line of JSON a fork, in bytes. The parent has only imported, so that all forks begin alike. `fill`
makes the store that `fit` and `fit-held` fit from. `hold` and `fit-held` are what a reading and a fit must
not do: keep all features in memory.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from retrm.backbone.fake import FakeBackbone
from retrm.features.read import read, render_all
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features, Layout, Reducer
from retrm.fitting import design, estimate
from retrm.fitting.convex import RowTargets, fit_linear
from retrm.fitting.estimate import convex_bytes, reading_bytes
from retrm.fitting.fit import training_features
from retrm.methods import method
from retrm.records import Answer
from retrm.store import shards
from retrm.store.shards import ShardSink, open_store

WIDTH = 256
FIT_WIDTH = 512
SHARD_BYTES = 2 << 20
HELD_BYTES = 4 << 20


def answers(n: int) -> list[Answer]:
    return [Answer.of(f"question {i}", "x" * 40 + str(i)) for i in range(n)]


def reading(mode: str, folder: str, n: int) -> int:
    """Reads; returns the stated budget."""
    backbone = FakeBackbone(width=WIDTH, n_layers=1)
    recipes = {"all": Recipe(layers="all", point="hidden_states", pooling="tokens")}
    sink = ShardSink.of(folder, recipes, backbone) if mode == "read" else None
    read(backbone, answers(n), recipes, sink=sink)
    layouts = [Reducer(recipe, backbone).layout for recipe in recipes.values()]
    return reading_bytes(render_all(backbone, answers(n)), layouts)


def fitting(mode: str, folder: str, n: int) -> int:
    """Fits a convex head on a store that `fill` made; returns the budget."""
    stored = open_store(folder).features
    last = method("last_token")
    rows = list(range(n))
    if mode == "fit":
        features = training_features(last, stored, rows, held_bytes=HELD_BYTES)
    else:
        features = stored["last_token"].values
    fit_linear(features, RowTargets(np.arange(n) % 2.0), lam=1.0)
    return convex_bytes(n, FIT_WIDTH, torch.float32, held_bytes=HELD_BYTES)


def fill(folder: str, n: int) -> int:
    """Stores random numbers; nothing is stated of it.

    A process of its own does so: the writer's keys and what its batches leave in the heap grow with n,
    and are no memory of a fit.
    """
    backbone = FakeBackbone()
    recipe = {"last_token": Recipe()}
    sink = ShardSink.of(folder, recipe, backbone)
    sink.open([f"{i:024d}" for i in range(n)])
    generator = torch.Generator().manual_seed(0)
    for start in range(0, n, 256):
        values = torch.randn(min(256, n - start), FIT_WIDTH, generator=generator)
        part = Features(values, torch.arange(len(values) + 1), True)
        sink.add(range(start, start + len(values)), {"last_token": part})
    sink.close(n, {"last_token": Layout(FIT_WIDTH, True, torch.float32)})
    return 0


def peak_bytes() -> int:
    """Most memory of this process at a time, without the pages of mapped libraries.

    The kernel counts every page of a library that is mapped, and how many are depends on what lay in the
    page cache, not on this process. Libraries stay mapped until the end and shards are let go, so
    that the peak less what is mapped at the end leaves libraries out, and no shard.

    Not `ru_maxrss`: a process begins with that of the one that started it, here all of the test suite.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    most, mapped = sizes["VmHWM"], sizes["RssFile"]
    assert most[1] == mapped[1] == "kB"
    return (int(most[0]) - int(mapped[0])) * 1024


MODES = {"read": reading, "hold": reading, "fit": fitting, "fit-held": fitting}


def print_peak(mode: str, folder: str, n: int) -> None:
    """In a fork: its peak begins with what the parent holds."""
    budget = fill(folder, n) if mode == "fill" else MODES[mode](mode, folder, n)
    print(json.dumps({"peak": peak_bytes(), "budget": budget}), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    shards.SHARD_BYTES = estimate.SHARD_BYTES = SHARD_BYTES
    design.RESIDENT_BYTES = SHARD_BYTES
    for step in json.loads(sys.argv[1]):
        child = os.fork()
        if child == 0:
            print_peak(*step)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, f"{step} ended with {status}"
