"""The peer: a reward model of the same backbone, fine-tuned on the same pairs.

    pip install 'retrm[train]'
    python recipes/benchmarks/finetuned_rm.py PAIRS.jsonl --model FOLDER -o runs/benchmarks/lora

`retrm finetune` with the options of the peer: low-rank updates of all linear layers and a head, or all
weights with --full; one epoch, as reward models are usually trained; nothing held out, and nothing chosen on
the benchmarks. The reward model is OUTPUT/model, `training.json` in it says what `collect.py` keeps: how
many parameters were trained, on how many pairs, in how many seconds, on the clock and on the processor.

The figures of docs/results/benchmarks.md that were made until 2026-11-22 come from an earlier version of this
script, which called TRL itself: with its rate falling in a line, a head that started at random, and TRL's
rendering.
"""

import argparse
import sys
from pathlib import Path

from retrm.cli.main import main as retrm
from retrm.files import write_json
from retrm.finetuning.run_folder import RunFolder


def arguments(args: argparse.Namespace) -> list[str]:
    """The command line of `retrm finetune`."""
    options = {
        "--model": args.model,
        "--output": args.output,
        "--kind": "pairs",
        "--rank": 0 if args.full else args.rank,
        "--epochs": args.epochs,
        "--batch-size": 16,
        "--device-batch": args.batch,
        "--max-length": args.max_length,
        "--overlong": "skip",
        "--test-fraction": 0,
    }
    made = [str(args.pairs), *(str(word) for pair in options.items() for word in pair)]
    for name, value in (("--learning-rate", args.lr), ("--limit", args.limit)):
        made += [] if value is None else [name, str(value)]
    return ["finetune", *made]


def record(args: argparse.Namespace) -> dict[str, object]:
    """What `collect.py` keeps of the run."""
    facts = RunFolder(args.output).facts()
    kept = (
        "n_trained",
        "n_parameters",
        "seconds",
        "processor_seconds",
        "threads",
        "loss",
        "versions",
    )
    return {
        "model": args.model,
        "pairs": args.pairs.name,
        "n_pairs": facts["data"]["n_read"],
        "n_pairs_read": facts["data"]["n_rows"],
        "epochs": args.epochs,
        "kind": "full" if args.full else f"LoRA, rank {args.rank}",
        **{name: facts[name] for name in kept},
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--full", action="store_true", help="train all weights")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--lr", type=float, help="default 1e-4 for LoRA, 1e-5 for all weights")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=1024, help="longer pairs are left out")
    parser.add_argument("--limit", type=int, help="only the first records, for a trial")
    args = parser.parse_args()
    try:
        retrm(arguments(args))
    except SystemExit as ended:
        if ended.code:
            sys.exit(ended.code)
    write_json(args.output / "model" / "training.json", record(args))


if __name__ == "__main__":
    main()
