"""Write docs/results/grpo.md and grpo.png from docs/results/grpo.json; --check: is the page old?

The file is the `results.json` of recipes/grpo/train.py.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables_in_pages import difference, stored, table, write_or_check

from retrm.reports.canvas import BLUE, INK, MUTED, RED, canvas, headline, save_png
from retrm.reports.words import duration, figure

RESULTS = Path(__file__).resolve().parent / "results"
WINDOW = 10  # steps of a mean, at both ends and in the picture
MEASURES = {
    "score": "score of the frozen head (the reward)",
    "correct": "right answers",
    "tokens": "tokens of an answer",
    "finished": "answers that ended by themselves",
}
SUBJECTS = {
    "score": "The mean score",
    "correct": "The share of right answers",
    "tokens": "The mean number of tokens",
    "finished": "The share of answers that ended by themselves",
}


def blocks() -> dict[str, str]:
    """Every block of the page."""
    found = json.loads((RESULTS / "grpo.json").read_text("utf-8"))
    return {
        "grpo-setting": setting(found),
        "grpo-held-out": held_out(found["held_out"]),
        "grpo-steps": steps(found["steps"]),
        "grpo-drift": drift(found),
        "grpo-examples": examples(found["held_out"]["examples"]),
    }


def setting(found: Mapping[str, Any]) -> str:
    """What was run, on what."""
    options, versions = found["options"], found["versions"]
    made = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "retrm")
    return (
        f"{len(found['steps'])} steps of {options['prompts_per_step']} x {options['generations']} answers of at "
        f"most {options['tokens']} tokens at temperature 1, LoRA of rank {options['rank']}, learning rate "
        f"{options['learning_rate']:g}, no penalty for leaving the first policy, seed {options['seed']}; reward: the "
        f"head {found['reward']!r} on {options['head_prompts']} questions. `{found['command'].split(' --out')[0]}`, "
        f"{made}; {found['machine']['threads']} thread, {duration(found['cpu_seconds'])} of processor time "
        f"({duration(found['seconds'])} on the clock, beside other work)."
    )


def held_out(found: Mapping[str, Any]) -> str:
    """Before and after, and what may be said of it."""
    rows = [
        [
            words,
            figure(stored(found["measures"][name]["before"])),
            figure(stored(found["measures"][name]["after"])),
            difference(stored(found["measures"][name]["difference"])),
        ]
        for name, words in MEASURES.items()
    ]
    told = " ".join(
        f"{subject} {verdict(found['measures'][name]['difference'])}."
        for name, subject in SUBJECTS.items()
    )
    has_risen = {name: found["measures"][name]["difference"]["low"] > 0 for name in SUBJECTS}
    if has_risen["score"] and not has_risen["correct"]:
        told += " So the policy learnt what pleases the head, and not to answer better."
    notes = (
        f"{found['n_prompts']} questions that neither the head nor the training saw, "
        f"{found['n_answers'] // found['n_prompts']} answers each. 95 % intervals resample questions; a bold "
        "difference excludes zero."
    )
    return f"{told}\n\n{table(['', 'before', 'after', 'difference'], rows)}\n\n{notes}"


def verdict(difference: Mapping[str, float]) -> str:
    """What an interval allows to be said."""
    if difference["low"] > 0:
        return "rose"
    return "fell" if difference["high"] < 0 else "is not told apart from what it was"


def steps(found: Sequence[Mapping[str, float]]) -> str:
    """The score of the training's own answers, at both ends."""
    rows = []
    for words, part in ((f"first {WINDOW}", found[:WINDOW]), (f"last {WINDOW}", found[-WINDOW:])):
        means = [step["score_mean"] for step in part]
        rows.append(
            [
                words,
                f"{np.mean(means):.3f}",
                f"{min(means):.3f} to {max(means):.3f}",
                f"{np.mean([step['score_std'] for step in part]):.3f}",
                f"{np.mean([step['completion_tokens'] for step in part]):.1f}",
                f"{np.mean([step['entropy'] for step in part]):.2f}",
            ]
        )
    head = ["steps", "mean score", "of a step", "spread in a step", "tokens", "entropy, nats"]
    return table(head, rows)


def drift(found: Mapping[str, Any]) -> str:
    """How far the same answers are scored from where they were."""
    rows = [
        [
            str(point["step"]),
            f"{point['mean_shift']:+.4f}",
            f"{point['mean_abs_shift']:.4f}",
            f"{point['same_order']:.1%}",
            "–" if point["auroc"] is None else f"{point['auroc']:.3f}",
        ]
        for point in found["drift"]
    ]
    first = found["drift"][0]["scores"]
    after = found["held_out"]
    head = ["step", "mean shift", "mean size of it", "pairs in the same order", "right over wrong"]
    notes = (
        f"{len(first)} fixed answers, whose scores spread by {np.std(first):.3f} at first. On the answers of the "
        f"trained policy, the head on its own states gives {figure(stored(after['own_minus_frozen']))} more than the "
        f"frozen one ({after['own_minus_frozen_size']:.4f} in size, beside a spread of "
        f"{after['frozen_spread']:.3f}), and {after['own_same_order']:.1%} of the pairs of answers in its order."
    )
    return f"{table(head, rows)}\n\n{notes}"


def examples(found: Sequence[Mapping[str, Any]]) -> str:
    """The first answer to some of the held-out questions."""
    rows = []
    for one in found:
        cells = [plain(one["question"])]
        for when in ("before", "after"):
            mark = "right" if one[when]["correct"] else "wrong"
            cells.append(f"{plain(one[when]['response'])} ({one[when]['score']:+.2f}, {mark})")
        rows.append(cells)
    return table(["question", "before", "after"], rows)


def plain(text: str, most: int = 160) -> str:
    """A text in a cell of a table, as code so that nothing in it is Markdown."""
    words = " ".join(text.replace("|", "/").replace("`", "'").split())
    return f"`{words if len(words) <= most else words[:most] + ' ...'}`" if words else "(empty)"


def draw() -> None:
    """The score of every step, and the drift."""
    found = json.loads((RESULTS / "grpo.json").read_text("utf-8"))
    picture, (left, right) = canvas(11, 4.2, n_columns=2)
    numbers = [step["step"] for step in found["steps"]]
    means = np.array([step["score_mean"] for step in found["steps"]])
    spreads = np.array([step["score_std"] for step in found["steps"]])
    left.fill_between(
        numbers, means - spreads, means + spreads, color=BLUE, alpha=0.15, lw=0, label="± spread"
    )
    left.plot(numbers, means, color=BLUE, lw=0.8, marker=".", ms=4, label="a step")
    window = min(WINDOW, len(means))
    smooth = np.convolve(means, np.ones(window) / window, "valid")
    left.plot(numbers[window - 1 :], smooth, color=INK, lw=2.2, label=f"mean of {window} steps")
    left.set(xlabel="training step", ylabel="mean score, frozen head")
    headline(left, "The reward of what is sampled")
    left.legend(frameon=False, labelcolor=INK)

    points = found["drift"]
    at = [point["step"] for point in points]
    spread = float(np.std(points[0]["scores"]))
    for name, colour, style, words in (
        ("mean_shift", RED, "-", "mean shift"),
        ("mean_abs_shift", BLUE, "--", "mean size of the shift"),
    ):
        values = [point[name] for point in points]
        right.plot(at, values, color=colour, ls=style, marker="o", ms=4, label=words)
    right.axhline(spread, color=MUTED, ls=":", lw=1.6, label="spread among them at first")
    right.axhline(0, color=MUTED, lw=0.8)
    right.set(xlabel="training step", ylabel="score now minus score at first")
    headline(right, f"{len(points[0]['scores'])} fixed answers, by the policy's own states")
    right.legend(frameon=False, labelcolor=INK)
    save_png(RESULTS / "grpo.png", picture)


if __name__ == "__main__":
    status = write_or_check(RESULTS / "grpo.md", blocks, about=__doc__.splitlines()[0])
    if "--check" not in sys.argv:
        draw()
    sys.exit(status)
