"""Corpus, pairs and rollouts with gold solutions, from public files.

    python recipes/polar/prepare.py --public DIR --benchmarks DIR -o runs/data/polar

`--public` holds gsm8k/{train,test}.jsonl (.gz too); `--benchmarks` what recipes/benchmarks/prepare.py made. Same
files give the same bytes; what is left out is printed.
"""

import argparse
import random
import re
from pathlib import Path
from typing import Any

from retrm.data.load import load_table
from retrm.data.read import read_records
from retrm.errors import DataError
from retrm.files import write_json_lines
from retrm.records import AnswerTable


def published(folder: Path, name: str) -> Path:
    """A file, or the same file gzip'd."""
    found = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if found is None:
        raise DataError(f"{folder} has no {name}; expected it as its authors published it")
    return found


def solutions(path: Path) -> dict[str, str]:
    """Gold solutions by question, without the calculator's marks."""
    return {
        str(record.fields["question"]).strip(): re.sub(
            r"<<[^>]*>>", "", str(record.fields["answer"])
        )
        for record in read_records(path)
    }


def question_in(prompt: str, gold: dict[str, str]) -> str | None:
    """Which question a prompt holds: prompts may have an instruction around it."""
    if prompt.strip() in gold:
        return prompt.strip()
    return next((question for question in gold if question in prompt), None)


def groups(table: AnswerTable, gold: dict[str, str]) -> list[dict[str, Any]]:
    """Questions with their answers, labels and solution; those without a solution are left out."""
    made, lost = [], 0
    for group in table.candidate_sets():
        rows = [row for row in group.rows if table.labels[row] in (0.0, 1.0)]
        prompt = table.answers[group.rows[0]].prompt.messages[-1].content
        question = question_in(prompt, gold)
        if question is None or not rows:
            lost += 1
            continue
        made.append(
            {
                "prompt": prompt,
                "prompt_id": group.prompt_id,
                "reference": gold[question],
                "responses": [table.answers[row].response for row in rows],
                "correct": [bool(table.labels[row]) for row in rows],
            }
        )
    print(f"{len(made)} questions, {lost} without a solution or labels")
    return made


def pairs_of(rows: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """A right and a wrong answer to each question that has both."""
    made = []
    for row in rows:
        both = list(zip(row["responses"], row["correct"], strict=True))
        right = [text for text, is_right in both if is_right]
        wrong = [text for text, is_right in both if not is_right]
        if right and wrong:
            kept = {name: row[name] for name in ("prompt", "prompt_id", "reference")}
            made.append({**kept, "chosen": rng.choice(right), "rejected": rng.choice(wrong)})
    return made


def main() -> None:
    """Write the four files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--public", type=Path, required=True)
    parser.add_argument("--benchmarks", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train = solutions(published(args.public / "gsm8k", "train.jsonl"))
    corpus = [{"text": f"{question}\n{answer}"} for question, answer in train.items()]
    write_json_lines(args.output / "corpus.jsonl", corpus)
    gold = solutions(published(args.public / "gsm8k", "test.jsonl"))
    rng = random.Random(args.seed)
    fitted = pairs_of(groups(load_table(args.benchmarks / "gsm_fit.jsonl"), gold), rng)
    write_json_lines(args.output / "gsm_pairs.jsonl", fitted)
    tested = groups(load_table(args.benchmarks / "gsm_test.jsonl"), gold)
    write_json_lines(args.output / "gsm_test.jsonl", tested)
    # A rotation: no question keeps its own solution.
    turned = [tested[i - 1]["reference"] for i in range(len(tested))]
    shuffled = [{**row, "reference": text} for row, text in zip(tested, turned, strict=True)]
    write_json_lines(args.output / "gsm_shuffled.jsonl", shuffled)
    print(f"{len(corpus)} texts, {len(fitted)} pairs, {len(tested)} questions to test on")


if __name__ == "__main__":
    main()
