"""RMB's held-out pairs as preferences: one line a pair.

python recipes/frozen_vs_finetuned/rmb_pairs.py runs/data/.../rmb_test -o rmb_pairs.jsonl
"""

import argparse
from pathlib import Path

from retrm.evaluation.benchmarks import benchmark
from retrm.evaluation.benchmarks.source import open_source
from retrm.files import write_json_lines


def rows_of(folder: Path) -> list[dict[str, object]]:
    """Chosen and rejected of every pair; lists of several rejected answers are left to the benchmark."""
    rmb = benchmark("rmb")
    found = rmb.read(open_source(folder, hub=rmb.hub, pattern=rmb.pattern, name=rmb.title))
    return [
        {
            "prompt": [message.as_dict() for message in item.answers[0].prompt.messages],
            "chosen": item.answers[0].response,
            "rejected": item.answers[1].response,
        }
        for item in found.items
        if len(item.answers) == 2
    ]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    rows = rows_of(args.folder)
    write_json_lines(args.output, rows)
    print(f"{args.output}: {len(rows):,} pairs")


if __name__ == "__main__":
    main()
