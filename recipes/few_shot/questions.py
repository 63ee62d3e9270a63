"""Write easy questions with short checkable answers as JSON lines.

    python questions.py --split main > questions.jsonl
    python questions.py --split pilot   # disjoint from main, for pilots
    python questions.py --split live    # 5 fresh ones, disjoint from both

Every kind draws its questions from its own seeded generator, and each prompt
opens with solved examples of its kind as earlier turns, so that a very small
chat model answers with one short sentence.
"""

import argparse
import json
import random
import sys

SEED = 20240
SYSTEM = "Answer with one short sentence."
PILOT_PER_KIND = 12
LIVE_TOTAL = 5

PAST = """swim swam,sing sang,write wrote,
drive drove,buy bought,bring brought,teach taught,catch caught,think thought,fly flew,
grow grew,draw drew,speak spoke,break broke,wake woke,begin began,drink drank,
ring rang,sell sold,feel felt,keep kept,sleep slept,leave left,lose lost,
find found,stand stood,hold held,ride rode,rise rose,choose chose,steal stole,fall fell,
build built,send sent,spend spent,lend lent,bend bent,meet met,feed fed,win won,dig dug,
hide hid,bite bit,shake shook,throw threw,blow blew,wear wore,tear tore,swear swore,
freeze froze,forget forgot,understand understood,become became,pay paid,hear heard,
shoot shot,sit sat,sweep swept,weep wept,seek sought,
fight fought,sink sank,shrink shrank,strike struck,swing swung,stick stuck,mean meant,
deal dealt,lead led,bleed bled,breed bred,creep crept,slide slid,grind ground,wind wound"""
PAST = [pair.split() for pair in PAST.replace("\n", "").split(",")]
ANIMALS = "ant mouse rabbit cat sheep lion horse elephant".split()


def options(words):
    return ", ".join(map(str, words[:-1])) + f" or {words[-1]}"


def add(rng):
    a, b = rng.randint(11, 49), rng.randint(6, 39)
    return f"What is {a} + {b}?", a + b, None


def sub(rng):
    b, c = rng.randint(1, 12), rng.randint(1, 12)
    return f"What is {b + c} - {b}?", c, None


def mul(rng):
    a, b = rng.randint(11, 24), rng.randint(3, 12)
    return f"What is {a} times {b}?", a * b, None


def div(rng):
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    return f"What is {a * b} divided by {b}?", a, None


def double(rng):
    a = rng.randint(6, 89)
    return f"What is 2 times {a}?", 2 * a, None


def largest(rng):
    x = rng.sample(range(10, 100), 3)
    return f"Which number is the largest: {options(x)}?", max(x), x


def smallest(rng):
    x = rng.sample(range(10, 100), 3)
    return f"Which number is the smallest: {options(x)}?", min(x), x


def even(rng):
    gold = rng.randrange(10, 100, 2)
    x = [gold, *rng.sample(range(11, 100, 2), 3)]
    rng.shuffle(x)
    return f"Which of these numbers is even: {options(x)}?", gold, x


def past(rng):
    verb, gold = rng.choice(PAST)
    return f'What is the past tense of "{verb}"?', gold, sorted(pair[1] for pair in PAST)


def biggest(rng):
    words = rng.sample(ANIMALS, 5)
    return f"Which animal is the biggest: {options(words)}?", max(words, key=ANIMALS.index), words


# kind: (generator, questions in the main split, solved examples)
KINDS = {
    "add": (
        add,
        65,
        [
            ("What is 13 + 8?", "13 + 8 is 21."),
            ("What is 20 + 7?", "20 + 7 is 27."),
            ("What is 6 + 30?", "6 + 30 is 36."),
        ],
    ),
    "sub": (
        sub,
        65,
        [
            ("What is 17 - 4?", "17 - 4 is 13."),
            ("What is 12 - 0?", "12 - 0 is 12."),
            ("What is 25 - 5?", "25 - 5 is 20."),
        ],
    ),
    "mul": (
        mul,
        65,
        [
            ("What is 3 times 4?", "3 times 4 is 12."),
            ("What is 6 times 11?", "6 times 11 is 66."),
        ],
    ),
    "div": (
        div,
        65,
        [
            ("What is 13 divided by 13?", "13 divided by 13 is 1."),
            ("What is 40 divided by 2?", "40 divided by 2 is 20."),
            ("What is 45 divided by 3?", "45 divided by 3 is 15."),
        ],
    ),
    "double": (
        double,
        65,
        [
            ("What is 2 times 4?", "2 times 4 is 8."),
            ("What is 2 times 150?", "2 times 150 is 300."),
        ],
    ),
    "largest": (
        largest,
        65,
        [
            ("Which number is the largest: 31, 64 or 47?", "The largest number is 64."),
            ("Which number is the largest: 85, 20 or 33?", "The largest number is 85."),
            ("Which number is the largest: 42, 16 or 78?", "The largest number is 78."),
        ],
    ),
    "smallest": (
        smallest,
        65,
        [
            ("Which number is the smallest: 31, 12 or 47?", "The smallest number is 12."),
            ("Which number is the smallest: 85, 71 or 20?", "The smallest number is 20."),
            ("Which number is the smallest: 36, 90 or 58?", "The smallest number is 36."),
        ],
    ),
    "even": (
        even,
        65,
        [
            ("Which of these numbers is even: 31, 12, 63 or 47?", "The even number is 12."),
            ("Which of these numbers is even: 85, 71, 33 or 98?", "The even number is 98."),
            ("Which of these numbers is even: 54, 17, 29 or 81?", "The even number is 54."),
        ],
    ),
    "biggest": (
        biggest,
        65,
        [
            (
                "Which animal is the biggest: frog, cow, duck, hen or fox?",
                "The biggest animal is the cow.",
            ),
            (
                "Which animal is the biggest: whale, crab, dog, bee or owl?",
                "The biggest animal is the whale.",
            ),
        ],
    ),
    "past": (
        past,
        56,
        [
            ('What is the past tense of "bind"?', 'The past tense of "bind" is "bound".'),
            ('What is the past tense of "flee"?', 'The past tense of "flee" is "fled".'),
        ],
    ),
}


def question(kind, number, item, examples):
    text, answer, choices = item
    turns = []
    for asked, reply in examples:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    row = {
        "prompt_id": f"{kind}-{number:03d}",
        "kind": kind,
        "prompt": [
            {"role": "system", "content": SYSTEM},
            *turns,
            {"role": "user", "content": text},
        ],
        "answer": str(answer),
        "grader": "choice" if choices else "numeric",
    }
    if choices:
        row["choices"] = [str(c) for c in choices]
    return row


def build(split):
    rows, live = [], []
    for kind, (make, n_main, examples) in KINDS.items():
        rng = random.Random(f"{SEED}-{kind}")
        seen = {q for q, _ in examples}
        items = []
        while len(items) < n_main + PILOT_PER_KIND + 1:
            item = make(rng)
            if item[0] not in seen:
                seen.add(item[0])
                items.append(item)
        numbered = [question(kind, i, item, examples) for i, item in enumerate(items)]
        rows += {"main": numbered[:n_main], "pilot": numbered[n_main:-1], "live": []}[split]
        live.append(numbered[-1])
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
