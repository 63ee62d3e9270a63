"""Questions for a model's own answers: four kinds of reasoning-gym items, made by rule.

    pip install reasoning-gym
    python own_questions.py --seed 7 --per-kind 54 > own_questions.jsonl

Kinds and ranges were chosen on other seeds (900 and 901, ten questions a kind, two answers each) such
that Qwen2.5-Coder-0.5B-Instruct answers between 20 and 70 % rightly and seldom runs into 192 tokens.
Dropped for that reason: gcd, lcm, count_bits and products (long, often cut), leg_counting (none
right), number_sequence (10 % right).
"""

import argparse
import json

KINDS = {
    "chain_sum": {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2},
    "basic_arithmetic": {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 1},
    "letter_counting": {"min_words": 2, "max_words": 4},
    "simple_equations": {
        **{"min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 10},
        **{"operators": ("+", "-"), "operators_weights": [0.5, 0.5]},
    },
}


def questions(seed: int, per_kind: int) -> list[dict[str, str]]:
    """`per_kind` different questions of each kind, as `retrm sample` reads them."""
    import reasoning_gym

    rows = []
    for kind, settings in KINDS.items():
        items = reasoning_gym.create_dataset(kind, size=4 * per_kind, seed=seed, **settings)
        texts = {}
        for item in items:
            text = item["question"].replace(
                "State the final answer to the following arithmetic problem: ", "What is "
            )
            texts.setdefault(text.strip(), item["answer"])
        for number, (text, answer) in enumerate(list(texts.items())[:per_kind]):
            rows.append(
                {
                    "prompt_id": f"{kind}-{seed}-{number}",
                    "kind": kind,
                    "prompt": f"{text}\nCalculate step by step in one line.",
                    "answer": answer,
                    "grader": "numeric",
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--per-kind", type=int, default=54)
    arguments = parser.parse_args()
    if arguments.per_kind < 1:
        parser.error(f"got --per-kind {arguments.per_kind}; expected 1 or more")
    for row in questions(arguments.seed, arguments.per_kind):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
