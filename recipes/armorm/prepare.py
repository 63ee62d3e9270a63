"""Draw from public files what the objectives and the gate of ArmoRM are fitted and measured on.

    python recipes/armorm/prepare.py --public DIR -o runs/data/armorm

`DIR` holds one folder a set, as its authors published it (see README.md here): unieval/{dialogue,data2text},
finegrained_rlhf_qa, rmb/Pairwise_set, hh; .gz files are read too. Made are

    talk.json         UniEval's Topical-Chat: replies rated on five axes and overall
    data2text.json    UniEval's SFRES and SFHOT: sentences rated on two axes and overall
    finegrained.json  FineGrainedRLHF: marked errors and preferences; without the passages
    rmb.jsonl         helpful pairs of RMB, one a first user turn
    hh.jsonl          pairs of HH-RLHF harmless, one a conversation

each in the layout of its authors, except RMB's pairs. Whole prompts are drawn, by a seed and without a
look at the ratings; a larger draw holds the smaller one. The passages of FineGrainedRLHF are left out because they are nine tenths of its
tokens; what is grounded in them cannot be judged then. What is left out is counted and printed. Same
files and seed give the same bytes.
"""

import argparse
import importlib.util
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from retrm.data.detect import parse
from retrm.data.rated_sets import PREDICTIONS
from retrm.data.read import Record, read_records
from retrm.errors import DataError, RetrmError
from retrm.evaluation.benchmarks.rmb import RMB
from retrm.evaluation.benchmarks.source import open_source

SEED = 7


def _benchmark_recipe() -> ModuleType:
    """`recipes/benchmarks/prepare.py`, which reads the pairs of RMB."""
    path = Path(__file__).parents[1] / "benchmarks" / "prepare.py"
    spec = importlib.util.spec_from_file_location("benchmarks_prepare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


base = _benchmark_recipe()


def shuffled(keys: Sequence[str], seed: int) -> list[str]:
    """In an order of the seed: the first n are among the first n + 1, so that a larger draw adds to it."""
    return random.Random(seed).sample(keys, len(keys))


def drawn(
    rows: Sequence[Any], prompt_of: Callable[[Any], str], n: int, seed: int
) -> tuple[list[Any], int]:
    """The rows of `n` prompts, in their order, and of how many prompts they were drawn."""
    prompts = list(dict.fromkeys(map(prompt_of, rows)))
    chosen = set(shuffled(prompts, seed)[:n])
    return [row for row in rows if prompt_of(row) in chosen], len(prompts)


# --------------------------------------------------------------------------------------- ratings


def talk(public: Path, output: Path, args: argparse.Namespace) -> None:
    """Six systems' replies in each of the drawn dialogues."""
    _unieval(public, output / "talk.json", ("dialogue/topical_chat",), args.dialogues, args)


def data2text(public: Path, output: Path, args: argparse.Namespace) -> None:
    """Sentences for the drawn meanings."""
    files = ("data2text/sfres", "data2text/sfhot")
    _unieval(public, output / "data2text.json", files, args.meanings, args)


def _unieval(
    public: Path, target: Path, files: Sequence[str], n: int, args: argparse.Namespace
) -> None:
    root = base.folder_in(public, "unieval")
    rows = [
        dict(record.fields)
        for name in files
        for record in read_records(base.file_in(root, f"{name}.json"))
    ]
    kept, n_prompts = drawn(
        rows, lambda row: f"{row.get('context')}\n{row['source']}", n, args.seed
    )
    base.write_list(target, kept)
    base.report(Counter({f"prompts in {', '.join(files)}": n_prompts, "answers there": len(rows)}))


def finegrained(public: Path, output: Path, args: argparse.Namespace) -> None:
    """Questions with four predictions each, their passages left out."""
    path = base.file_in(base.folder_in(public, "finegrained_rlhf_qa"), "dev_feedback.json")
    rows, counts = [], Counter[str]()
    for record in read_records(path):
        row = {name: value for name, value in record.fields.items() if name != "passages"}
        counts["questions"] += 1
        if max(len(str(row[name])) for name in PREDICTIONS) > args.max_characters:
            counts[f"questions with an answer over {args.max_characters} characters, left out"] += 1
        else:
            rows.append(row)
    kept, _ = drawn(rows, lambda row: str(row["question"]), args.questions, args.seed)
    base.write_list(output / "finegrained.json", kept)
    base.report(counts)


# ----------------------------------------------------------------------------------------- pairs


def rmb(public: Path, output: Path, args: argparse.Namespace) -> None:
    """One helpful pair of each of the drawn conversations."""
    counts: Counter[str] = Counter()
    by_turn: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for part in open_source(base.folder_in(public, "rmb"), pattern=RMB.pattern, name="rmb").parts:
        if part.folder.startswith("Pairwise_set") and "Helpfulness" in part.folder:
            for row in base.pair_rows(list(part.records), part, args.max_characters, counts):
                by_turn[row["prompt"][0]["content"]].append(row)
    rng = random.Random(args.seed)
    one_each = {turn: rng.choice(by_turn[turn]) for turn in sorted(by_turn)}
    turns = shuffled(list(one_each), args.seed)[: args.pairs]
    counts["first user turns with pairs"] = len(by_turn)
    base.write_rows(output / "rmb.jsonl", (one_each[turn] for turn in turns))
    base.report(counts)


def hh(public: Path, output: Path, args: argparse.Namespace) -> None:
    """Drawn pairs, as transcripts."""
    counts: Counter[str] = Counter()
    rows: dict[str, Record] = {}
    for record in read_records(base.file_in(base.folder_in(public, "hh"), "test.jsonl")):
        counts["pairs of HH"] += 1
        try:
            parsed = parse(record, "preference_implicit")
        except DataError:  # an empty reply, or two prompts
            counts["pairs that cannot be read, left out"] += 1
            continue
        if max(len(str(text)) for text in record.fields.values()) > args.max_characters:
            counts[f"transcripts over {args.max_characters} characters, left out"] += 1
            continue
        rows.setdefault(parsed.answers[0].prompt.messages[0].content, record)
    turns = shuffled(sorted(rows), args.seed)[: args.pairs]
    base.write_rows(output / "hh.jsonl", (rows[turn].fields for turn in turns))
    base.report(counts)


SETS = {"talk": talk, "data2text": data2text, "finegrained": finegrained, "rmb": rmb, "hh": hh}


def main() -> None:
    """Make what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--public", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--dialogues", type=int, default=60, help="of Topical-Chat")
    parser.add_argument("--meanings", type=int, default=978, help="of SFRES and SFHOT")
    parser.add_argument("--questions", type=int, default=500, help="of FineGrainedRLHF")
    parser.add_argument("--pairs", type=int, default=400, help="of RMB, and of HH")
    parser.add_argument("--max-characters", type=int, default=1000, help="of an answer in pairs")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    try:
        for name in args.only:
            SETS[name](args.public, args.output, args)
    except RetrmError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
