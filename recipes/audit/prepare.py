"""Turn public files into the JSON lines that the subspace audit reads.

    python prepare.py gsm8k-models    --source DIR --gold FILE -o gsm_models.jsonl
    python prepare.py preferences     --set hh --source DIR -o hh.jsonl
    python prepare.py preferences     --set llmbar --source DIR -o llmbar.jsonl
    python prepare.py preferences     --set rm_bench --source DIR -o rm_bench.jsonl
    python prepare.py gsm8k-questions --source FILE -o own_questions.jsonl

Where the files come from (repository @ commit : path; both .json and .json.gz are read):

    gsm8k-models     WildEval/ZeroEval @ 8c1485edf12c : result_dirs/gsm, one file a model; Apache-2.0
                     gold: openai/grade-school-math @ 3101c7d50724 : .../data/test.jsonl; MIT
    hh               anthropics/hh-rlhf @ 354e5c3cb896 : harmless-base/test.jsonl.gz; MIT
    llmbar           princeton-nlp/LLMBar @ 900616bff90b : Dataset/LLMBar; MIT
    rm_bench         THU-KEG/RM-Bench @ 73c52d7b27b3 : data; ODC-BY by its data set card
    gsm8k-questions  openai/grade-school-math : .../data/train.jsonl; MIT

What is made is derived from them: keep it out of version control. Of RM-Bench the chat, code and
safety files are used and the mathematics is not, so a figure on it is "RM-Bench without math".

Everything that is left out is counted and printed. Same files and seed give the same bytes.
"""

import argparse
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrm.data.grade import extract_key
from retrm.data.messages import split_answer, split_transcript
from retrm.data.read import Record, read_records
from retrm.errors import DataError, RetrmError
from retrm.files import atomic_write, write_json

SEED = 5
N_PILOT = 24
SUFFIX = ' Calculate in at most three short lines, then write "Answer:" and the number.'
STYLES = ("concise", "plain", "markdown")
RM_BENCH = ("chat", "code", "safety-refuse", "safety-response")
_DECODER = json.JSONDecoder(strict=False)  # replies hold raw line breaks inside strings
_NUMBER = re.compile(r"\d[\d,.]*")


@dataclass(frozen=True)
class Reply:
    """One answer of one model to one question.

    Attributes:
        prompt_id: of the question.
        prompt: the bare question.
        response: the reasoning and a last line "Answer: ...".
        label: 1 if the number of the answer field is that of the gold, else 0.
        key: that number in canonical form; None where the field states none (the label is then 0).
        generator: the model, by the name of its file.
        fault: why the reply cannot be used; None where it can. Its accuracy still counts.
    """

    prompt_id: str
    prompt: str
    response: str
    label: int
    key: str | None
    generator: str
    fault: str | None = None

    def as_record(self) -> dict[str, Any]:
        """The row that is written."""
        return {
            "answer_id": f"{self.prompt_id}/{self.generator}",
            "prompt_id": self.prompt_id,
            "prompt": self.prompt,
            "response": self.response,
            "label": self.label,
            "key": self.key,
            "generator": self.generator,
        }


# ------------------------------------------------------------------------- GSM8K answers of models


def read_reply(text: str) -> tuple[str, str] | None:
    """Reasoning and stated answer of a reply, or None where it holds no readable JSON of both.

    The models were told to reply with ``{"reasoning", "answer"}`` and wrap it each in a way of their
    own. Of several objects the last one counts: the model corrected itself.
    """
    last = None
    start = text.find("{")
    while start >= 0:
        try:
            value, end = _DECODER.raw_decode(text, start)
        except ValueError:
            value, end = None, start + 1
        if isinstance(value, dict):
            reasoning, answer = value.get("reasoning"), value.get("answer")
            # A truth value is an int to Python and no answer to a sum.
            is_stated = isinstance(answer, str | int | float) and not isinstance(answer, bool)
            if isinstance(reasoning, str) and reasoning.strip() and is_stated:
                last = (reasoning.strip(), str(answer).strip())
        start = text.find("{", end)
    return last


def n_numbers(stated: str) -> int:
    """How many numbers an answer states; of a sum written out only the result counts."""
    return len(_NUMBER.findall(stated.rpartition("=")[2]))


def read_models(folder: Path, questions: Sequence[Record]) -> list[Reply]:
    """Every reply in `folder`, models in the order of their names.

    Args:
        folder: one JSON array a model; `id` ends in the number of the question.
        questions: the records with the gold, in the order of that numbering.

    Raises:
        DataError: no files, an id that is not understood, or another question than the gold's.
    """
    paths = sorted({*folder.glob("*.json"), *folder.glob("*.json.gz")})
    if not paths:
        raise DataError(
            f"{folder} holds no .json or .json.gz file; expected one a model, as in ZeroEval's "
            "result_dirs/gsm. Check --source"
        )
    replies = []
    for path in paths:
        generator = path.name.removesuffix(".gz").removesuffix(".json")
        for record in read_records(path):
            number, gold = _gold_of(record, questions)
            question, text = str(record.fields["question"]), str(record.fields["output"][0])
            replies.append(judge(f"gsm8k-test-{number}", question, text, gold, generator))
    return replies


def _gold_of(record: Record, questions: Sequence[Record]) -> tuple[int, str]:
    """Number and gold of the question that a record answers."""
    found = re.search(r"#(\d+)$", str(record.fields.get("id")))
    number = int(found[1]) if found else len(questions)
    if number >= len(questions):
        raise DataError(
            f"{record.where}: `id` is {record.fields.get('id')!r}; expected '#' and the number of one "
            f"of the {len(questions)} questions at its end. Check that --gold is the GSM8K test file"
        )
    mine, theirs = (str(r.fields["question"]).split() for r in (questions[number], record))
    if mine != theirs:
        raise DataError(
            f"{record.where}: the question is not that of {questions[number].where}; expected the "
            "same. Check that --gold is the GSM8K test file"
        )
    return number, gold_of(questions[number])


def gold_of(record: Record) -> str:
    """The number behind "####" in a GSM8K solution, without thousands commas."""
    _, mark, gold = str(record.fields["answer"]).rpartition("####")
    if not mark:
        raise DataError(
            f"{record.where}: the solution has no '####'; expected the reference answer behind it"
        )
    return gold.strip().replace(",", "")


def judge(prompt_id: str, question: str, text: str, gold: str, generator: str) -> Reply:
    """A reply with its label.

    A reply without readable JSON is graded by its last number, so that a model is not taken for a
    weak one because of its wrapper; the text of such a reply is not used.
    """
    parts = read_reply(text)
    fault = None
    if parts is None:
        fault = "no readable JSON"
    elif n_numbers(parts[1]) > 1:
        fault = "several numbers stated"
    # Without the wrapper, which would betray the model.
    response = text if parts is None else f"{parts[0]}\nAnswer: {parts[1]}"
    key = extract_key("numeric", text if parts is None else parts[1])
    label = int(key is not None and key == extract_key("numeric", gold))
    return Reply(prompt_id, question, response, label, key, generator, fault)


def weakest(replies: Sequence[Reply], n: int) -> list[str]:
    """The `n` generators with the lowest share of right answers, the lowest first.

    Raises:
        DataError: fewer generators than asked for.
    """
    labels: dict[str, list[int]] = defaultdict(list)
    for reply in replies:
        labels[reply.generator].append(reply.label)
    if len(labels) < n:
        raise DataError(f"got {len(labels)} models; expected at least {n}. Ask for fewer")
    return sorted(labels, key=lambda name: (sum(labels[name]) / len(labels[name]), name))[:n]


def choose(
    replies: Sequence[Reply], *, n_questions: int, n_answers: int, seed: int, counts: Counter[str]
) -> list[Reply]:
    """`n_answers` answers each to `n_questions` questions, right and wrong ones to every question.

    The answers to a question are a uniform draw among those draws that are mixed, so the number of
    right ones follows the generators and is not set.

    Args:
        replies: at most one a generator and question.
        n_questions: how many questions.
        n_answers: how many answers to each.
        seed: another seed gives another choice.
        counts: takes the number of questions by why they could not be chosen.

    Raises:
        DataError: fewer usable questions than asked for.
    """
    groups: dict[str, list[Reply]] = defaultdict(list)
    for reply in replies:
        groups[reply.prompt_id].append(reply)
    usable = []
    for prompt_id in sorted(groups):
        is_mixed = len({reply.label for reply in groups[prompt_id]}) == 2
        is_full = len(groups[prompt_id]) >= n_answers
        usable += [prompt_id] if is_mixed and is_full else []
        counts["questions with answers of one label, not used"] += not is_mixed
        counts[f"mixed questions with under {n_answers} answers, not used"] += (
            is_mixed and not is_full
        )
    counts["questions to choose from"] = len(usable)
    if len(usable) < n_questions:
        raise DataError(
            f"got {len(usable)} questions with {n_answers} answers of which some are right and some "
            f"wrong; expected at least {n_questions}. Ask for fewer, or raise --max-characters"
        )
    rng = random.Random(seed)
    return [
        reply
        for prompt_id in sorted(rng.sample(usable, n_questions))
        for reply in _mixed_draw(groups[prompt_id], n_answers, rng)
    ]


def _mixed_draw(replies: Sequence[Reply], n: int, rng: random.Random) -> list[Reply]:
    """`n` replies that are not all right and not all wrong, drawn until they are."""
    while True:
        drawn = rng.sample(list(replies), n)
        if len({reply.label for reply in drawn}) == 2:
            return drawn


def gsm8k_models(args: argparse.Namespace) -> None:
    """Answers of the weakest models to mixed questions."""
    everything = read_models(args.source, list(read_records(args.gold)))
    names = set(weakest(everything, args.generators))
    mine = [reply for reply in everything if reply.generator in names]
    counts = Counter({"replies": len(everything), f"of the {len(names)} weakest models": len(mine)})
    usable = [reply for reply in mine if _is_usable(reply, args.max_characters, counts)]
    rows = choose(
        usable,
        n_questions=args.questions,
        n_answers=args.answers,
        seed=args.seed,
        counts=counts,
    )
    write_rows(args.output, [reply.as_record() for reply in rows])
    # Records carry no author, so the authors travel beside them, in the order of the rows.
    write_json(sidecar(args.output), [reply.generator for reply in rows])
    report(counts, args.output, len(rows))
    print_generators(mine, rows)


def _is_usable(reply: Reply, max_characters: int, counts: Counter[str]) -> bool:
    """Whether a reply may be chosen; `counts` takes the reason if not."""
    is_long = len(reply.response) > max_characters
    fault = reply.fault or (f"over {max_characters} characters" if is_long else None)
    if fault is not None:
        counts[f"{fault}, left out"] += 1
    return fault is None


def sidecar(output: Path) -> Path:
    """Where the authors of the rows of `output` stand."""
    return output.with_name(output.name + ".generators.json")


def print_generators(pool: Sequence[Reply], chosen: Sequence[Reply]) -> None:
    """How often every generator was right, and how often it was chosen."""
    print(f"{'generator':34} {'pool':>6} {'right':>6} {'chosen':>7} {'right':>6}")
    for name in weakest(pool, len({reply.generator for reply in pool})):
        cells = []
        for replies in (pool, chosen):
            labels = [reply.label for reply in replies if reply.generator == name]
            cells += [len(labels), sum(labels) / max(len(labels), 1)]
        print(f"{name:34} {cells[0]:6} {cells[1]:6.3f} {cells[2]:7} {cells[3]:6.3f}")
    n_right = Counter(
        Counter(reply.prompt_id for reply in chosen if reply.label)[name]
        for name in {reply.prompt_id for reply in chosen}
    )
    print("questions by number of right answers:", dict(sorted(n_right.items())))


# --------------------------------------------------------------------------------- preferences


def unusable_pair(row: Mapping[str, Any], max_characters: int) -> str | None:
    """Why a preference is left out; None where it is kept."""
    sides = [row["chosen"], row["rejected"]]
    if not all(side.strip() for side in sides):
        return "empty answer"
    if sides[0] == sides[1]:
        return "identical answers"
    if max(len(side) for side in sides) > max_characters:
        return f"answer over {max_characters} characters"
    return None


def hh(source: Path, counts: Counter[str]) -> Iterator[list[dict[str, Any]]]:
    """One pair a group: the transcript up to the last turn of the assistant, as messages."""
    for number, record in enumerate(read_records(_found(source, "test.jsonl"))):
        before, texts = [], []
        for side in ("chosen", "rejected"):
            turns = split_transcript(str(record.fields[side]), record.where, side)
            prompt, text = split_answer(turns, record.where, side)
            before.append([turn.as_dict() for turn in prompt])
            texts.append(text)
        counts["pairs read"] += 1
        if before[0] != before[1]:
            counts["different prompts, left out"] += 1
            continue
        yield [
            {
                "prompt": before[0],
                "chosen": texts[0],
                "rejected": texts[1],
                "source": f"harmless-base/test/{number}",
            }
        ]


def llmbar(source: Path, counts: Counter[str]) -> Iterator[list[dict[str, Any]]]:
    """One pair a group: the better output is the chosen one."""
    paths = sorted(source.glob("**/LLMBar/**/dataset.json*"))
    if not paths:
        raise DataError(
            f"{source} holds no LLMBar/.../dataset.json; expected LLMBar's folder Dataset. Check "
            "--source"
        )
    for path in paths:
        subset = path.relative_to(source).parent.as_posix()
        for number, record in enumerate(read_records(path)):
            fields = record.fields
            if fields["label"] not in (1, 2):
                raise DataError(
                    f"{record.where}: `label` is {fields['label']!r}; expected 1 or 2, the better "
                    "output"
                )
            counts["pairs read"] += 1
            texts = [str(fields[f"output_{side}"]) for side in (1, 2)]
            better = fields["label"] - 1
            yield [
                {
                    "prompt": str(fields["input"]),
                    "chosen": texts[better],
                    "rejected": texts[1 - better],
                    "source": f"{subset}/{number}",
                }
            ]


def rm_bench(source: Path, counts: Counter[str]) -> Iterator[list[dict[str, Any]]]:
    """Three pairs a group: the right and the wrong answer in the same style, for each style.

    Pairs of different styles are left out, for there a reward may read the style.
    """
    for domain in RM_BENCH:
        for record in read_records(_found(source, f"{domain}_filtered.json")):
            fields = record.fields
            counts["prompts read"] += 1
            yield [
                {
                    "prompt": str(fields["prompt"]),
                    "chosen": chosen,
                    "rejected": rejected,
                    "source": f"{domain}/{fields['id']}/{style}",
                }
                for style, chosen, rejected in zip(
                    STYLES, fields["chosen"], fields["rejected"], strict=True
                )
            ]


def _found(folder: Path, name: str) -> Path:
    """The file of that name, packed or not."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{folder} holds neither {name} nor {name}.gz; expected one. Check --source")


SETS = {"hh": (hh, 400), "llmbar": (llmbar, None), "rm_bench": (rm_bench, 100)}
"""A reader of groups of pairs that stay together, and how many groups are drawn (None = all)."""


def preferences(args: argparse.Namespace) -> None:
    """Pairs of a public set; a group with one unusable pair is left out as a whole."""
    read, default = SETS[args.set]
    counts: Counter[str] = Counter()
    groups = []
    for group in read(args.source, counts):
        reasons = [unusable_pair(row, args.max_characters) for row in group]
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None:
            groups.append(group)
        else:
            counts[f"{reason}, left out"] += 1
    counts["to choose from"] = len(groups)
    n = args.number or default
    if n is not None and len(groups) < n:
        raise DataError(
            f"got {len(groups)} usable prompts; expected at least {n}. Ask for fewer with -n, or raise "
            "--max-characters"
        )
    places = sorted(random.Random(args.seed).sample(range(len(groups)), n or len(groups)))
    rows = [row for place in places for row in groups[place]]
    counts["chosen"] = len(places)
    write_rows(args.output, rows)
    report(counts, args.output, len(rows))
    kinds = Counter(row["source"].split("/")[0] for row in rows)
    print("pairs by subset:", dict(kinds))


# ------------------------------------------------------------------------------------- questions


def gsm8k_questions(args: argparse.Namespace) -> None:
    """Questions to sample answers for."""
    records = list(read_records(args.source))
    order = list(range(len(records)))
    random.Random(args.seed).shuffle(order)
    chosen = order[args.skip : args.skip + args.number]
    if len(chosen) < args.number:
        raise DataError(
            f"got {len(records)} questions of which {args.skip} are skipped; expected {args.number} "
            "more. Ask for fewer with -n"
        )
    rows = [
        {
            "prompt_id": f"gsm8k-train-{number}",
            "prompt": str(records[number].fields["question"]) + SUFFIX,
            "answer": gold_of(records[number]),
            "grader": "numeric",
        }
        for number in chosen
    ]
    write_rows(args.output, rows)
    report(Counter({"questions read": len(records)}), args.output, len(rows))


# ---------------------------------------------------------------------------------------- writing


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, all or none."""
    with atomic_write(path, "w") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def report(counts: Counter[str], path: Path, n_rows: int) -> None:
    """What was read and left out, and where the rest is."""
    for name, number in counts.items():
        print(f"{number:8,}  {name}")
    print(f"{n_rows:8,}  rows written to {path}")


def main() -> int:
    """Prepare one file."""
    args = parse()
    try:
        args.run(args)
    except RetrmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True, metavar="WHAT")
    models = verbs.add_parser("gsm8k-models", help="GSM8K answers of many models, right and wrong")
    models.set_defaults(run=gsm8k_models)
    models.add_argument("--gold", type=Path, required=True, help="GSM8K test questions with gold")
    models.add_argument("--questions", type=int, default=420, help="default: %(default)s")
    models.add_argument("--answers", type=int, default=8, help="a question; default: %(default)s")
    models.add_argument(
        "--generators", type=int, default=13, help="the weakest; default: %(default)s"
    )
    models.add_argument("--max-characters", type=int, default=900, help="default: %(default)s")
    pairs = verbs.add_parser("preferences", help="pairs of a chosen and a rejected answer")
    pairs.set_defaults(run=preferences)
    pairs.add_argument("--set", choices=list(SETS), required=True)
    pairs.add_argument("-n", "--number", type=int, help="prompts; default 400 (hh), 100 (rm_bench)")
    pairs.add_argument(
        "--max-characters", type=int, default=2000, help="of an answer; default: %(default)s"
    )
    questions = verbs.add_parser("gsm8k-questions", help="questions to sample answers for")
    questions.set_defaults(run=gsm8k_questions)
    questions.add_argument("-n", "--number", type=int, default=240, help="default: %(default)s")
    questions.add_argument(
        "--skip",
        type=int,
        default=N_PILOT,
        help="leave out so many; default: %(default)s, on which the wording was chosen",
    )
    for verb in (models, pairs, questions):
        verb.add_argument("--source", type=Path, required=True, help="where the public files lie")
        verb.add_argument("-o", "--output", type=Path, required=True)
        verb.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
