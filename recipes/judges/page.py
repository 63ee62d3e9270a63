"""docs/results/judges.md from docs/results/judges/results.json, every figure included.

python recipes/judges/page.py
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrm.files import atomic_write
from retrm.metrics.text import format_interval

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "docs" / "results" / "judges" / "results.json"
PAGE = HERE.parents[1] / "docs" / "results" / "judges.md"
NAMES = {
    "stable_reinforce": "StableReinforce",
    "reinforce_pp": "Reinforce++",
    "grpo": "GRPO",
}
KINDS = {"sum": "sums", "topic": "topics", "refusal": "refusals"}


def page(results: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [
        INTRODUCTION.format(**facts(results)),
        "## Judges on the held-out pairs\n",
        table(JUDGES, judge_rows(results)),
        *readings(results),
        "\n## The runs of reinforcement learning\n",
        RUNS.format(**facts(results)),
        table(RUN_COLUMNS, run_rows(results)),
        *stale_readings(results),
        LIMITS.format(**facts(results)),
    ]
    return "\n".join(parts).rstrip() + "\n"


INTRODUCTION = """# Generative judges, trained small

What SmolLM2-135M becomes as a judge by a cold start and by three kinds of reinforcement learning, and what a
head on its hidden states gets from the same pairs. Made by the commands of
[recipes/judges](../../recipes/judges/README.md); every verdict with its text lies in
[verdicts.jsonl.gz](judges/verdicts.jsonl.gz), every figure in [results.json](judges/results.json).

This is a proof that the pipeline works and a comparison of objectives at toy size; it says nothing of what
the published judges can do. The form is R1-Reward's in text (`<think>..</think><answer>1</answer>`), with a
prompt of three lines instead of the paper's instructions. The pairs are made by rules: a right and a wrong
sum of two numbers up to 60, an answer on the topic and one to another question, an answer and a refusal. **The
traces of the cold start are written by rules as well**, not by a language model, so the cold start teaches
form, and the words that decide these pairs.

Cold start: {n_traces} traces, {sft_epochs:g} epochs, all weights, {cold_seconds:.0f} processor seconds. RL: low-rank
updates (rank {rank}), {steps} updates of {batch} rollouts, {updates} updates a set of rollouts, learning rate
{lr:g}, no KL, reward of R1-Reward with the consistency rule, {n_seeds} seeds each. Seconds are of one processor core.
"""

JUDGES = (
    *("judge", "with a verdict", "accuracy, both orders", "right in both orders"),
    *("orders agree", "says the first", *KINDS.values(), "tokens", "training s"),
)


def judge_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """One a judge, the mean over seeds of each objective, and the head."""
    judges = results["judges"]
    rows = []
    for name, words in (("before", "before training"), ("cold", "after the cold start")):
        if name in judges:
            seconds = results["cold"]["processor_seconds"] if name == "cold" else 0
            rows.append(judge_row(words, judges[name], seconds))
    for policy, words in NAMES.items():
        found = [name for name in judges if name.rsplit("-", 1)[0] == policy]
        for name in found:
            run = results["runs"][name]
            label = f"{words}, seed {name.rsplit('-', 1)[1]}"
            rows.append(judge_row(label, judges[name], run["processor_seconds"]))
        if len(found) > 1:
            mean = np.mean([judges[name]["accuracy"]["value"] for name in found])
            spread = [judges[name]["accuracy"]["value"] for name in found]
            text = f"**{mean:.3f}** ({min(spread):.3f} to {max(spread):.3f})"
            rows.append([f"**{words}**, {len(found)} seeds", "", text, *[""] * 8])
    if "head" in results:
        head = results["head"]
        rows.append(
            [
                "head `last_token`, Bradley-Terry, same backbone and pairs",
                "always",
                shown(head["accuracy"]),
                *["as accuracy", "always", "", "", "", "", "0"],
                f"{head['processor_seconds']:.0f}",
            ]
        )
    rows.append(["always the first, or a coin", "always", "0.500", *[""] * 8])
    return rows


def judge_row(words: str, judge: Mapping[str, Any], seconds: float) -> list[str]:
    return [
        words,
        shown(judge["parse_rate"]),
        shown(judge["accuracy"]),
        shown(judge["both_orders_right"]),
        share(judge["agreement"]),
        share(judge["first_rate"]),
        *(share(judge["by_kind"].get(kind)) for kind in KINDS),
        f"{judge['mean_tokens']:.0f}",
        f"{seconds:.0f}",
    ]


def readings(results: Mapping[str, Any]) -> list[str]:
    """What the intervals allow to say, and no more."""
    judges = results["judges"]
    said = [
        "\nAn output without a verdict counts as wrong; intervals are 95 %, over questions. Read by the "
        "intervals:\n"
    ]
    for name, judge in judges.items():
        got = judge["accuracy"]
        if got["low"] <= 0.5 <= got["high"]:
            said.append(f"- `{name}`: {shown(got)} is **not told apart from chance** (0.5).")
    if "before" in judges and judges["before"]["accuracy"]["high"] < 0.5:
        rate = judges["before"]["parse_rate"]["value"]
        said.append(
            f"- Before training {rate:.1%} of the outputs have a verdict, so its accuracy lies below that of "
            "a coin: it does not write the form."
        )
    cold = judges["cold"]["accuracy"]
    for policy, words in NAMES.items():
        found = [j["accuracy"] for name, j in judges.items() if name.rsplit("-", 1)[0] == policy]
        if found:
            up = sum(one["low"] > cold["high"] for one in found)
            down = sum(one["high"] < cold["low"] for one in found)
            said.append(
                f"- {words}: {up} of {len(found)} seeds lie above the cold start by intervals that do not "
                f"overlap, {down} below."
            )
    return said


RUN_COLUMNS = (
    *("run", "reward, first set", "reward, last set", "largest ratio, stale set"),
    *(
        "largest loss, stale set",
        "largest gradient norm: stale set",
        "others",
        "clamped",
        "filtered",
        "end",
    ),
)
RUNS = """The third of the four sets of rollouts of every run is stale on purpose: its old log-probabilities are those of
the model before the cold start. Largest ratio and loss are over tokens and updates of that set; gradient norms
are before clipping at 1; clamped and filtered are shares of tokens, over all sets. Sets of the objectives over
the batch are {set_size} prompts, of GRPO {n_groups} prompts with {group} rollouts each.
"""


def run_rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    updates = results["options"]["reinforce"]["updates"]
    first = results["options"]["stale_set"] * updates + 1
    for name, run in results["runs"].items():
        policy, seed = name.rsplit("-", 1)
        metrics = run["metrics"]
        stale = [row for row in metrics if first <= row["step"] < first + updates]
        others = [row for row in metrics if not first <= row["step"] < first + updates]
        rewards = [row["reward"] for row in metrics if row.get("reward") is not None]
        rows.append(
            [
                f"{NAMES[policy]}, seed {seed}",
                number(rewards[:1], "{:.2f}"),
                number(rewards[-1:], "{:.2f}"),
                number(values(stale, "largest_ratio"), "{:.3g}"),
                number(np.abs(values(stale, "policy_loss")), "{:.3g}"),
                number(values(stale, "grad_norm"), "{:.3g}"),
                number(values(others, "grad_norm"), "{:.3g}"),
                share(mean(values(metrics, "clamp_share"))),
                share(mean(values(metrics, "filtered_share"))),
                "broke: " + run["broken"].split(";")[0] if "broken" in run else "done",
            ]
        )
    return rows


def stale_readings(results: Mapping[str, Any]) -> list[str]:
    """Whether anything blew up, counted."""
    runs = results["runs"]
    if not runs:
        return []
    broken = [name for name, run in runs.items() if "broken" in run]
    said = f"\n{len(broken)} of {len(runs)} runs ended in a loss that is no finite number"
    return [said + (": " + ", ".join(broken) + "." if broken else ".")]


LIMITS = """
## What this is not

- Smaller than the papers by far: {steps} updates of {batch} rollouts instead of hundreds of 128, {n_held} held-out
  pairs in both orders, outputs up to {tokens} tokens. Differences of a few points are not seen with so few.
- The cold start's traces and the pairs come from the same rules; topics and questions of the held-out pairs are
  new, their kinds are not.
- No KL in any of the three, to spare a pass through the reference; GRPO as published has 1e-3 in the loss.
- Text only. No judge that reads pictures was trained.
- The stale set is an extreme that a run meets only by a fault, or by rollouts that wait very long.
"""


def facts(results: Mapping[str, Any]) -> dict[str, Any]:
    options = results["options"]
    rl = options["reinforce"]
    judges = results["judges"]
    size = rl["batch_size"] * rl["updates"]
    group = options["group_sizes"]["grpo"]
    return {
        "n_traces": results["cold"]["n_traces"],
        "cold_seconds": results["cold"]["processor_seconds"],
        "sft_epochs": options["sft"]["epochs"],
        "rank": options["lora"]["rank"],
        "steps": rl["steps"],
        "batch": rl["batch_size"],
        "updates": rl["updates"],
        "lr": rl["learning_rate"],
        "n_seeds": len(options["seeds"]),
        "tokens": options["max_new_tokens"],
        "n_held": judges["cold"]["both_orders_right"]["n"],
        "set_size": size,
        "n_groups": size // group,
        "group": group,
    }


def values(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def mean(found: Sequence[float]) -> float | None:
    return float(np.mean(found)) if len(found) else None


def number(found: Sequence[float], form: str) -> str:
    return form.format(max(found)) if len(found) else "-"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def shown(interval: Mapping[str, float]) -> str:
    return format_interval(interval["value"], interval["low"], interval["high"])


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Write the page."""
    text = page(json.loads(RESULTS.read_text("utf-8")))
    with atomic_write(PAGE, "w") as out:
        out.write(text)


if __name__ == "__main__":
    main()
