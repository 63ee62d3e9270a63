"""Split public files into what heads are fitted on and what they are measured on.

    python recipes/benchmarks/prepare.py --public DIR -o runs/data/benchmarks

`DIR` holds one folder a set, as its authors published it (see README.md here): zeroeval/gsm with one file
a model, gsm8k/test.jsonl, rmb/{Pairwise_set,BoN_set}, hh/test.jsonl, codet_humaneval/{dataset,
generated_data}; .gz files are read too. Made are

    gsm_fit.jsonl     answers of the 13 weakest models to GSM8K test questions 0 to 899, right and wrong
                      ones to every question
    gsm_test.jsonl    answers of all 44 models to questions from 900 on, as rollouts
    rmb_fit.jsonl     helpful pairs of RMB, half of the conversations
    rmb_test/         pairs and lists of the other conversations, in RMB's own layout
    hh_fit.jsonl, hh_test.jsonl    HH-RLHF harmless, conversations in halves
    humaneval_samples.jsonl        some problems of HumanEval with 100 published samples each, not graded

Which half a conversation falls into follows from a hash of its first user turn, so that no conversation
and no continuation of one stands on both sides. What is left out is counted and printed. Same files and
seed give the same bytes.
"""

import argparse
import hashlib
import importlib.util
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from retrm.data.detect import parse
from retrm.data.read import Record, read_records
from retrm.errors import DataError, RetrmError
from retrm.evaluation.benchmarks.rmb import RMB
from retrm.evaluation.benchmarks.source import Part, Source, open_source
from retrm.files import atomic_write

SEED = 5
LAST_FIT_QUESTION = 899
HUMANEVAL_PROBLEMS = "HumanEval_for_code_generation"
HUMANEVAL_SAMPLES = "HumanEval_codegen16B_temp0.8_topp0.95_num100_max300_code_solution"


def _audit_recipe() -> ModuleType:
    """`recipes/audit/prepare.py`, which reads the replies of ZeroEval."""
    path = Path(__file__).parents[1] / "audit" / "prepare.py"
    spec = importlib.util.spec_from_file_location("audit_prepare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def in_first_half(text: str) -> bool:
    """By a hash of the text: the same everywhere and at all times."""
    return hashlib.sha256(text.encode()).digest()[0] < 128


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """JSON Lines; how many."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    with atomic_write(path, "w") as out:
        out.writelines(lines)
    print(f"{path}: {len(lines):,} rows")
    return len(lines)


def write_list(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One JSON array, as RMB's own files are."""
    with atomic_write(path, "w") as out:
        json.dump(rows, out, ensure_ascii=False)
    print(f"{path}: {len(rows):,} rows")


def folder_in(root: Path, name: str) -> Path:
    """A set below the folder of public files.

    Raises:
        DataError: it is not there.
    """
    path = root / name
    if not path.exists():
        raise DataError(f"{path} does not exist; expected the set's own files there. See README.md")
    return path


def file_in(root: Path, name: str) -> Path:
    """A file of a set, packed or not.

    Raises:
        DataError: it is not there.
    """
    for ending in ("", ".gz"):
        if (path := root / f"{name}{ending}").is_file():
            return path
    raise DataError(f"{root / name} does not exist (nor .gz); expected the set's own file")


# ----------------------------------------------------------------------------------- correctness


def gsm(public: Path, output: Path, args: argparse.Namespace) -> None:
    """Answers of models to GSM8K questions, questions on one side only."""
    audit = _audit_recipe()
    gold = list(read_records(file_in(folder_in(public, "gsm8k"), "test.jsonl")))
    replies = audit.read_models(folder_in(public, "zeroeval") / "gsm", gold)
    counts: Counter[str] = Counter({"replies": len(replies)})
    weak = set(audit.weakest(replies, args.generators))

    def number(reply: Any) -> int:
        return int(reply.prompt_id.rpartition("-")[2])

    def usable(reply: Any) -> bool:
        is_long = len(reply.response) > args.max_characters
        counts[f"over {args.max_characters} characters, left out"] += is_long
        counts[f"{reply.fault}, left out"] += reply.fault is not None
        return not is_long and reply.fault is None

    mine = [
        r for r in replies if r.generator in weak and number(r) <= LAST_FIT_QUESTION and usable(r)
    ]
    chosen = audit.choose(
        mine, n_questions=args.questions, n_answers=args.answers, seed=args.seed, counts=counts
    )
    write_rows(output / "gsm_fit.jsonl", (r.as_record() for r in chosen))
    groups: dict[str, list[Any]] = defaultdict(list)
    for reply in replies:
        if number(reply) > LAST_FIT_QUESTION and usable(reply):
            groups[reply.prompt_id].append(reply)
    mixed = sorted(p for p, some in groups.items() if len({r.label for r in some}) == 2)
    counts["test questions with right and wrong answers"] = len(mixed)
    drawn = random.Random(args.seed).sample(mixed, min(args.test_questions, len(mixed)))
    write_rows(output / "gsm_test.jsonl", (_rollout(groups[p]) for p in sorted(drawn)))
    report(counts)


def _rollout(replies: Sequence[Any]) -> dict[str, Any]:
    return {
        "prompt_id": replies[0].prompt_id,
        "prompt": replies[0].prompt,
        "responses": [r.response for r in replies],
        "correct": [r.label for r in replies],
        "keys": [r.key for r in replies],
    }


# ----------------------------------------------------------------------------------- preferences


def rmb(public: Path, output: Path, args: argparse.Namespace) -> None:
    """RMB by conversation: helpful pairs to fit on, everything of the other half to measure on."""
    root = folder_in(public, "rmb")
    source = open_source(root, pattern=RMB.pattern, name="rmb")
    counts: Counter[str] = Counter()
    fit: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    for part in source.parts:
        records = list(part.records)
        test = [r for r in records if not in_first_half(first_turn(r))]
        if args.one_each:
            test = _one_each(test, part.folder.split("/")[:2], seen, args.seed)
        if test:
            write_list(
                output / "rmb_test" / part.folder / f"{part.name}.json", [r.fields for r in test]
            )
        is_helpful_pair = part.folder.startswith("Pairwise_set") and "Helpfulness" in part.folder
        if is_helpful_pair:
            others = [r for r in records if in_first_half(first_turn(r))]
            fit += pair_rows(others, part, args.max_characters, counts)
    rng = random.Random(args.seed)
    chosen = rng.sample(fit, min(args.pairs, len(fit)))
    counts["pairs to fit on"] = len(fit)
    write_rows(output / "rmb_fit.jsonl", sorted(chosen, key=lambda row: row["pair_id"]))
    report(counts)


def _one_each(
    records: Sequence[Record], kind: Sequence[str], seen: set[tuple[str, ...]], seed: int
) -> list[Record]:
    """One record, drawn by a hash, of every conversation that `seen` lacks of this kind."""

    def conversation(record: Record) -> tuple[str, ...]:
        return (*kind, json.dumps(record.fields.get("conversation_input")))

    def drawn(record: Record) -> bytes:
        return hashlib.sha256(f"{seed}{json.dumps(record.fields)}".encode()).digest()

    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[conversation(record)].append(record)
    kept = [min(group, key=drawn) for key, group in groups.items() if key not in seen]
    seen.update(groups)
    return kept


def first_turn(record: Record) -> str:
    """What opens the conversation of a record of RMB."""
    turns = record.fields.get("conversation_input") or [{}]
    return str(turns[0].get("content", ""))


def pair_rows(
    records: Sequence[Record], part: Part, longest: int, counts: Counter[str]
) -> list[dict[str, Any]]:
    """Pairs of a part of RMB as records; those with an over-long answer or equal texts are counted."""
    if not records:
        return []
    data = RMB().read(Source("rmb", (Part(part.name, part.folder, tuple(records)),)))
    rows = []
    for item in data.items:
        chosen, rejected = item.answers
        if max(len(chosen.response), len(rejected.response)) > longest:
            counts[f"pairs with an answer over {longest} characters, left out"] += 1
        elif chosen.response == rejected.response:
            counts["pairs of equal texts, left out"] += 1
        else:
            rows.append(
                {
                    "pair_id": item.id,
                    "prompt": [m.as_dict() for m in chosen.prompt.messages],
                    "chosen": [{"role": "assistant", "content": chosen.response}],
                    "rejected": [{"role": "assistant", "content": rejected.response}],
                }
            )
    return rows


def hh(public: Path, output: Path, args: argparse.Namespace) -> None:
    """HH-RLHF harmless by first user turn."""
    records = list(read_records(file_in(folder_in(public, "hh"), "test.jsonl")))
    halves: dict[bool, list[Record]] = {True: [], False: []}
    counts: Counter[str] = Counter({"HH pairs": len(records)})
    for record in records:
        try:
            parsed = parse(record, "preference_implicit")
        except DataError:  # an empty reply: nothing to fit on, and counted by the benchmark
            counts["pairs that cannot be read, left out"] += 1
            continue
        halves[in_first_half(parsed.answers[0].prompt.messages[0].content)].append(record)
    fit = [r for r in halves[True] if max(len(t) for t in r.fields.values()) <= args.max_characters]
    counts[f"pairs to fit on over {args.max_characters} characters, left out"] = len(
        halves[True]
    ) - len(fit)
    write_rows(output / "hh_fit.jsonl", (r.fields for r in fit))
    write_rows(output / "hh_test.jsonl", (r.fields for r in halves[False]))
    report(counts)


# ----------------------------------------------------------------------------------- programs


def humaneval(public: Path, output: Path, args: argparse.Namespace) -> None:
    """Problems drawn without a look at their samples, which are in the order of the file."""
    root = folder_in(public, "codet_humaneval")
    problems = read_records(file_in(root / "dataset", f"{HUMANEVAL_PROBLEMS}.jsonl"))
    ids = {str(record.fields["prompt"]): str(record.fields["task_id"]) for record in problems}
    samples = list(read_records(file_in(root / "generated_data", f"{HUMANEVAL_SAMPLES}.jsonl")))
    rows = []
    for record in samples:
        prompt = str(record.fields["prompt"])
        if prompt not in ids:
            raise DataError(f"{record.where}: its prompt is of no problem of {HUMANEVAL_PROBLEMS}")
        rows.append({"task_id": ids[prompt], **record.fields})
    drawn = random.Random(args.seed).sample(range(len(rows)), min(args.problems, len(rows)))
    write_rows(output / "humaneval_samples.jsonl", (rows[i] for i in sorted(drawn)))
    report(Counter({"problems of HumanEval with samples": len(rows)}))


def report(counts: Counter[str]) -> None:
    """Print what was counted, zeros left out."""
    for reason, number in counts.items():
        if number:
            print(f"  {number:7,}  {reason}")


SETS = {"gsm": gsm, "rmb": rmb, "hh": hh, "humaneval": humaneval}


def main() -> None:
    """Make what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--public", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--generators", type=int, default=13, help="weakest models to fit on")
    parser.add_argument("--questions", type=int, default=300, help="GSM8K questions to fit on")
    parser.add_argument("--answers", type=int, default=8, help="answers to each of them")
    parser.add_argument("--test-questions", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=1000, help="RMB pairs to fit on")
    parser.add_argument("--problems", type=int, default=20, help="of HumanEval")
    parser.add_argument(
        "--one-each",
        action="store_true",
        help="of RMB's test conversations one pair and one list, so that a small `retrm eval "
        "--limit` draws many conversations",
    )
    parser.add_argument("--max-characters", type=int, default=1500, help="of an answer to fit on")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    try:
        for name in args.only:
            SETS[name](args.public, args.output, args)
    except RetrmError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
