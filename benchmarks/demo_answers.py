"""The demo's answers, read once by the embedded model for the benchmarks that fit heads on them.

`tokens` keeps the last state of every token, so that scores can be followed along an answer; the
other names are presets.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import parser, say

from retrm.backbone.base import Backbone
from retrm.data.load import load_table
from retrm.features.read import Reading, read
from retrm.features.recipe import Recipe
from retrm.methods import METHODS
from retrm.metrics import Interval
from retrm.records import AnswerTable
from retrm.store.shards import ShardSink

DATA = Path(__file__).parents[1] / "recipes" / "demo" / "rollouts.jsonl"
PRESETS = ("last_token", "retrm", "elhsr")
RECIPES = {name: METHODS[name].recipe for name in PRESETS} | {"tokens": Recipe(pooling="tokens")}
N_FOLDS = 2  # by prompt


def model_parser(about: str | None) -> argparse.ArgumentParser:
    """Options of a benchmark that reads answers with a model: the demo's where nothing else is said."""
    made = parser(about)
    made.add_argument("--model", default="smollm2-135m")
    made.add_argument("--data", type=Path, default=DATA)
    return made


def some_prompts(table: AnswerTable, n: int) -> AnswerTable:
    """All answers to `n` prompts, spread over the file."""
    prompts = list(dict.fromkeys(table.prompt_ids.tolist()))
    kept = {
        prompts[i]
        for i in np.linspace(0, len(prompts) - 1, min(n, len(prompts))).round().astype(int)
    }
    return table.take([i for i, p in enumerate(table.prompt_ids) if p in kept])


def read_demo(
    backbone: Backbone, n_prompts: int, *, data: Path = DATA, store: Path | None = None
) -> tuple[AnswerTable, Reading]:
    """All answers to some prompts, spread over the file, and their features, in memory.

    Args:
        backbone: that reads.
        n_prompts: of how many prompts.
        data: graded answers.
        store: a folder from which a second script need not read again.
    """
    table = some_prompts(load_table(data), n_prompts)
    sink = None
    if store is not None:
        sink = ShardSink(store, RECIPES, backbone.fingerprint, dtype=backbone.dtype)
    reading = read(backbone, table.answers, RECIPES, sink=sink)
    say(f"read {reading.n_tokens:,} tokens in {reading.elapsed_s:.0f} s")
    loaded = {name: reading.features[name] for name in RECIPES}  # a store loads at every access
    return table, replace(reading, features=loaded)


def shown(name: str, found: Interval) -> dict[str, float | list[float]]:
    """A figure and its interval as columns of a result."""
    return {
        name: round(found.value, 4),
        f"{name}_interval": [round(found.low, 4), round(found.high, 4)],
    }
