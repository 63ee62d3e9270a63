"""Write easy questions with short checkable answers as JSON lines.

    python questions.py --split main > questions.jsonl
    python questions.py --split pilot   # disjoint from main: kinds and ranges were chosen on it
    python questions.py --split live    # five fresh ones, disjoint from both

Every kind draws its questions from a seeded generator of its own. They are asked as a person would
ask, without solved examples: the model's answers then differ in more than one number, which is what
a reward model is for. The kinds are those of CANDIDATES on which SmolLM2-135M was right on 15 to
50 % of its answers to the pilot split.
"""

import argparse
import json
import random
import sys

SEED = 20241
PILOT_PER_KIND = 6
LIVE_TOTAL = 5
SUFFIX = " Answer briefly."

NAMES = ["Tom", "Anna", "Ben", "Lucy", "Sam", "Mia"]
THINGS = ["apples", "books", "coins", "pencils", "cookies", "stamps"]
CONTAINERS = ["boxes", "bags", "baskets"]


def add(rng):
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return f"What is {a} + {b}?", a + b, None


def sub(rng):
    a = rng.randint(5, 18)
    b = rng.randint(1, a - 1)
    return f"What is {a} - {b}?", a - b, None


def mul(rng):
    a, b = rng.randint(3, 12), rng.randint(3, 12)
    return f"What is {a} x {b}?", a * b, None


def divide(rng):
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    return f"What is {a * b} divided by {b}?", a, None


def double(rng):
    a = rng.randint(3, 75)
    return f"What is {a} times 2?", 2 * a, None


def more(rng):
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    a, b = rng.randint(2, 12), rng.randint(2, 9)
    return (
        f"{name} has {a} {things} and gets {b} more. How many {things} are there now?",
        a + b,
        None,
    )


def fewer(rng):
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    a = rng.randint(5, 15)
    b = rng.randint(1, a - 2)
    return f"{name} has {a} {things} and gives {b} away. How many {things} are left?", a - b, None


def packs(rng):
    things, container = rng.choice(THINGS), rng.choice(CONTAINERS)
    a, b = rng.randint(2, 8), rng.randint(2, 9)
    return (
        f"There are {a} {container} with {b} {things} each. How many {things} are there?",
        a * b,
        None,
    )


def square(rng):
    a = rng.randint(2, 60)
    return f"What is {a} squared?", a * a, None


def weeks(rng):
    a = rng.randint(2, 70)
    return f"How many days are there in {a} weeks?", 7 * a, None


def largest(rng):
    x = rng.sample(range(10, 100), 3)
    return f"Which number is the largest: {options(x)}?", max(x), x


def smallest(rng):
    x = rng.sample(range(10, 100), 3)
    return f"Which number is the smallest: {options(x)}?", min(x), x


def even(rng):
    gold = rng.randrange(10, 100, 2)
    x = [gold, *rng.sample(range(11, 100, 2), 2)]
    rng.shuffle(x)
    return f"Which of these numbers is even: {options(x)}?", gold, x


def options(items):
    *first, last = map(str, items)
    return f"{', '.join(first)} or {last}"


CANDIDATES = {
    f.__name__: f
    for f in (
        add, sub, mul, divide, double, more, fewer, packs, square, weeks, largest, smallest, even,
    )
}  # fmt: skip
# Right on pilots (6 questions x 6 answers a kind): add .36, divide .17, double .31, even .19, largest
# .42, more .19, mul .36, smallest .28; left out: fewer .06, packs .14, square .06, sub .14, weeks .00.
KINDS = ("add", "divide", "double", "even", "largest", "more", "mul", "smallest")
MAIN_PER_KIND = 52


def question(kind, number, item):
    text, answer, choices = item
    row = {
        "prompt_id": f"{kind}-{number:03d}",
        "kind": kind,
        "prompt": text + SUFFIX,
        "answer": str(answer),
        "grader": "choice" if choices else "numeric",
    }
    if choices:
        row["choices"] = [str(c) for c in choices]
    return row


def build(split):
    rows, live = [], []
    for kind in CANDIDATES if split == "pilot" else KINDS:
        rng = random.Random(f"{SEED}-{kind}")
        seen, items = set(), []
        while len(items) < PILOT_PER_KIND + 1 + MAIN_PER_KIND:
            item = CANDIDATES[kind](rng)
            if item[0] not in seen:
                seen.add(item[0])
                items.append(item)
        numbered = [question(kind, i, item) for i, item in enumerate(items)]
        live.append(numbered[PILOT_PER_KIND])
        pilot, main = numbered[:PILOT_PER_KIND], numbered[PILOT_PER_KIND + 1 :]
        rows += {"main": main, "pilot": pilot, "live": []}[split]
    if split == "live":
        return random.Random(SEED).sample(live, LIVE_TOTAL)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--split", choices=["main", "pilot", "live"], default="main")
    args = parser.parse_args()
    for row in build(args.split):
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
