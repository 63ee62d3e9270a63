"""Read every answer once, for all fits: the states go to a store, from which a killed run goes on.

    python recipes/armorm/states.py runs/data/armorm --model smollm2-135m -o runs/armorm/smollm2-135m

Kept of each answer are the state of its last token (post_norm, with the end of its prompt), the mean
over its tokens of the last four layers (with the same end), and, unless --no-log-probability is given,
its log-probability. Every subspace of the last token's state is a projection of it, made when fitting.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from retrm.backbone.base import Backbone
from retrm.backbone.load import load_backbone
from retrm.data.join import join_tables
from retrm.data.load import load_table
from retrm.data.objectives import add_objectives
from retrm.errors import RetrmError
from retrm.features.read import Progress, Reading, read
from retrm.features.recipe import Recipe
from retrm.files import write_json
from retrm.records import AnswerTable
from retrm.store.shards import ShardSink

RATED = {"talk": "talk.json", "data2text": "data2text.json", "finegrained": "finegrained.json"}
PAIRS = {"rmb": "rmb.jsonl", "hh": "hh.jsonl"}
LAST, POOLED, LOG_PROBABILITY = "last", "pooled", "log_probability"


def tables(folder: Path) -> dict[str, AnswerTable]:
    """The sets that are there, by name; ratings as their formats know them.

    Raises:
        DataError, FormatError: a file cannot be read.
    """
    rated = {n: load_table(str(folder / f), ratings="known") for n, f in RATED.items()}
    return rated | {n: load_table(str(folder / f)) for n, f in PAIRS.items()}


def joined(sets: Mapping[str, AnswerTable]) -> AnswerTable:
    """All answers in the order of the sets, with their length as an objective."""
    return add_objectives(join_tables(sets), ("length",))


def recipes(*, log_probability: bool) -> dict[str, Recipe]:
    """What is kept of an answer, by name."""
    found = {
        LAST: Recipe(context="prompt_end"),
        POOLED: Recipe(layers="last4", point="hidden_states", pooling="mean", context="prompt_end"),
    }
    return found | ({LOG_PROBABILITY: Recipe(source="log_probability")} if log_probability else {})


def read_all(
    table: AnswerTable, backbone: Backbone, store: Path, *, log_probability: bool
) -> Reading:
    """Read what the store lacks."""
    wanted = recipes(log_probability=log_probability)
    said = time.monotonic()

    def say(progress: Progress) -> None:
        nonlocal said
        if time.monotonic() - said > 30:
            said = time.monotonic()
            rate = progress.tokens_done / progress.elapsed_s
            print(
                f"{progress.answers_done:,} of {progress.answers_total:,} answers, "
                f"{progress.tokens_done:,} of {progress.tokens_total:,} tokens, {rate:.0f} a second",
                flush=True,
            )

    sink = ShardSink.of(store, wanted, backbone)
    return read(backbone, table.answers, wanted, sink=sink, on_progress=say)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="what prepare.py made")
    parser.add_argument("--model", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--no-log-probability", action="store_true")
    args = parser.parse_args()
    try:
        table = joined(tables(args.data))
        backbone = load_backbone(args.model)
        started = time.process_time()
        reading = read_all(
            *(table, backbone, args.output / "states"),
            log_probability=not args.no_log_probability,
        )
    except RetrmError as error:
        sys.exit(f"error: {error}")
    took = {
        "n_answers": len(table),
        "n_tokens": reading.n_tokens,
        "seconds": round(reading.elapsed_s, 1),
        "processor_seconds": round(time.process_time() - started, 1),
    }
    if reading.n_tokens:  # a run that finds everything read has nothing to say
        write_json(args.output / "reading.json", took)
    print(took)


if __name__ == "__main__":
    main()
