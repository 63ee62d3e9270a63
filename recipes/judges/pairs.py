"""Pairs that a 135M model can sometimes judge, and rule-made traces for its cold start.

    python recipes/judges/pairs.py [--out runs/judges/data]

Three kinds: a right and a wrong small sum, an answer on the topic and one to another question, an answer
and a refusal. The files:

    cold.jsonl    pairs of the cold start      traces.jsonl  the same pairs with rationales, written by the
    train.jsonl   pairs of RL                                rules below, no language model involved
    held_out.jsonl  measured on, never trained on

No question stands in two files. Topics of the held-out pairs never occur in the others. Each pair has a trace in
both orders, so that both positions win equally often.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from retrm.files import atomic_write

SEED = 20261122
WORDING = "Question: {question}\nResponse 1: {first}\nResponse 2: {second}"
"""What the judge is shown, instead of the long instructions of R1-Reward: tokens are what the time goes to."""

SIZES = {"cold": 40, "train": 64, "held_out": 24}
"""Pairs of each kind in each file."""

TOPICS = """tea: How long should tea steep?: Tea should steep for about three minutes.
eggs: How do I boil eggs?: Put the eggs in boiling water for eight minutes.
cats: Why do cats purr?: Cats purr when they feel safe and calm.
rain: What causes rain?: Rain falls when drops in a cloud grow heavy.
bread: How do I keep bread fresh?: Keep the bread in a paper bag.
trees: Why do trees lose leaves?: Trees save water in winter without leaves.
bikes: How often should bikes be oiled?: Oil the chain of bikes once a month.
sleep: How much sleep do adults need?: Adults need about eight hours of sleep.
chess: How does a game of chess end?: A game of chess ends with a checkmate.
bees: What do bees make?: Bees make honey and wax.
salt: Where does salt come from?: Salt comes from the sea or from mines.
ships: Why do ships float?: Ships float because they push water aside.
maps: What do maps show?: Maps show roads, rivers and towns.
snow: When does snow melt?: Snow melts when it gets warmer than freezing.
milk: How do I store milk?: Milk belongs in the fridge.
gold: Why is gold valuable?: Gold is rare and does not rust.
dogs: How often should dogs be walked?: Dogs should be walked twice a day.
ice: Why does ice float?: Ice floats because it is lighter than water.
soap: How does soap work?: Soap lifts grease so that water takes it away.
paint: How long does paint dry?: Paint dries within a day.
moon: Why does the moon shine?: The moon reflects the light of the sun.
books: Where can I borrow books?: You can borrow books from a library.
glass: What is glass made of?: Glass is made of melted sand.
birds: Why do birds sing?: Birds sing to find a mate.
rice: How do I cook rice?: Cook the rice in twice as much water.
shoes: How do I dry wet shoes?: Fill the wet shoes with newspaper.
fire: What does fire need?: Fire needs heat, fuel and air.
trains: Why do trains use rails?: Trains use rails since they roll easily on them.
coffee: What is in coffee?: Coffee has caffeine in it.
clocks: Why do clocks tick?: Clocks tick when a gear is stopped and let go.
fish: How do fish breathe?: Fish breathe with gills.
wool: Where does wool come from?: Wool comes from sheep.
apples: When are apples ripe?: Apples are ripe in autumn.
wind: What makes wind?: Wind is made by air that moves to lower pressure.
pens: How do pens work?: Pens have a small ball that rolls ink out.
knives: How do I sharpen knives?: Sharpen knives on a wet stone."""

REFUSALS = (
    "I cannot help with that.",
    "I am sorry, but I cannot answer this.",
    "Sorry, I am not able to say anything about it.",
    "I would rather not answer that question.",
)
HELD_OUT_REFUSALS = (
    "I must decline to answer.",
    "Unfortunately this is something I cannot discuss.",
)


def sums(rng: random.Random, n: int, seen: set[tuple[int, int]]) -> Iterator[dict[str, str]]:
    """A right and a wrong sum of numbers from 2 to 60, never the same numbers twice over all files."""
    made = 0
    while made < n:
        a, b = rng.randint(2, 60), rng.randint(2, 60)
        if (min(a, b), max(a, b)) in seen:
            continue
        seen.add((min(a, b), max(a, b)))
        made += 1
        wrong = a + b + rng.choice([-10, -3, -2, -1, 1, 2, 3, 10])
        yield {
            "kind": "sum",
            "prompt": f"What is {a} + {b}?",
            "chosen": str(a + b),
            "rejected": str(max(0, wrong)),
            "fact": f"{a} + {b} = {a + b}. ",
            "good": f"says {a + b}",
            "bad": f"says {max(0, wrong)}",
        }


def topics(
    rng: random.Random, n: int, known: list[tuple[str, str, str]]
) -> Iterator[dict[str, str]]:
    """An answer to the question, and the answer to another one."""
    for i in range(n):
        topic, question, answer = known[i % len(known)]
        other, _, off = rng.choice([one for one in known if one[0] != topic])
        yield {
            "kind": "topic",
            "prompt": question,
            "chosen": answer,
            "rejected": off,
            "fact": f"The question is about {topic}. ",
            "good": f"is about {topic}",
            "bad": f"is about {other}",
        }


def refusals(
    rng: random.Random, n: int, known: list[tuple[str, str, str]], said: tuple[str, ...]
) -> Iterator[dict[str, str]]:
    """An answer to a harmless question, and a refusal."""
    for i in range(n):
        _, question, answer = known[-1 - i % len(known)]
        yield {
            "kind": "refusal",
            "prompt": question,
            "chosen": answer,
            "rejected": rng.choice(said),
            "fact": "",
            "good": "answers",
            "bad": "refuses",
        }


def all_pairs() -> dict[str, list[dict[str, str]]]:
    """The pairs of each file, mixed."""
    rng = random.Random(SEED)
    known = [tuple(line.split(": ", 2)) for line in TOPICS.splitlines()]
    rng.shuffle(known)
    parts = {"cold": known[:12], "train": known[12:24], "held_out": known[24:]}
    seen: set[tuple[int, int]] = set()
    made = {}
    for name, size in SIZES.items():
        said = HELD_OUT_REFUSALS if name == "held_out" else REFUSALS
        rows = [
            *sums(rng, size, seen),
            *topics(rng, size, parts[name]),
            *refusals(rng, size, parts[name], said),
        ]
        rows = unique(rows)
        rng.shuffle(rows)
        made[name] = rows
    return made


def unique(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without repetitions of the same question and candidates."""
    return list({(r["prompt"], r["chosen"], r["rejected"]): r for r in rows}.values())


def trace_of(row: dict[str, str], chosen_first: bool) -> dict[str, object]:
    """A rule-made judgement in the form of R1-Reward: a fact, what each response does, the verdict."""
    k, sides = (1, ("good", "bad")) if chosen_first else (2, ("bad", "good"))
    said = f"Response 1 {row[sides[0]]}, Response 2 {row[sides[1]]}."
    thoughts = f"{row['fact']}{said} Response {k} is better."
    return {
        "prompt": row["prompt"],
        "first": row["chosen" if chosen_first else "rejected"],
        "second": row["rejected" if chosen_first else "chosen"],
        "label": "first" if chosen_first else "second",
        "trace": f"<think>{thoughts}</think><answer>{k}</answer>",
        "source": "rules of recipes/judges/pairs.py",
    }


def write(path: Path, rows: list[dict[str, object]]) -> None:
    with atomic_write(path, "w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/judges/data"))
    args = parser.parse_args()
    made = all_pairs()
    for name, rows in made.items():
        keep = ("kind", "prompt", "chosen", "rejected")
        write(args.out / f"{name}.jsonl", [{key: row[key] for key in keep} for row in rows])
    traces = [trace_of(row, first) for first in (True, False) for row in made["cold"]]
    write(args.out / "traces.jsonl", traces)
    with atomic_write(args.out / "wording.txt", "w") as out:
        out.write(WORDING)
    print({name: len(rows) for name, rows in made.items()})


if __name__ == "__main__":
    main()
