"""Best of N while generating: what the head adds, against generating first and scoring after.

Greedy would make all candidates equal, so answers are drawn; the same seed gives the same tokens with
and without a head, and so the same work. Times are per turn, interleaved.

    python benchmarks/scoring_while_generating.py [--model NAME] [--prompts N] [--tokens T] [--repeats N]
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import N_REPEATS, Ratio, Report, interleave, one_thread_note, say

from retrm.backbone.generate import sample
from retrm.backbone.load import load_backbone
from retrm.data.load import load_table
from retrm.fitting.fit import fit
from retrm.methods import method
from retrm.records import Answer, AnswerTable
from retrm.scorers.reward_model import RewardModel

DATA = Path(__file__).parents[1] / "recipes" / "demo" / "rollouts.jsonl"
METHODS = ("last_token", "retrm", "elhsr")
N = 8
TARGET = 0.02


def main() -> None:
    args = arguments()
    backbone = load_backbone(args.model)
    table = load_table(args.data)
    models = fitted(backbone, table, args.fit_prompts)
    prompts = list({a.prompt_id: a.prompt for a in table.answers}.values())[-args.prompts :]
    drawn: dict[str, list] = {}
    options = {"n": N, "max_new_tokens": args.tokens, "seed": 0, "batch_size": 64}

    def plain() -> None:
        drawn["plain"] = list(sample(backbone, prompts, temperature=0.8, **options))

    def scored(name: str) -> None:
        drawn[name] = list(models[name].generate(prompts, **options))

    def after(name: str) -> None:
        answers = [
            replace(
                Answer.of(prompts[s.prompt], s.response),
                response_ids=s.token_ids,
                finished=s.finished,
            )
            for s in drawn["plain"]
        ]
        drawn[f"{name}, after"] = list(models[name].score(answers))

    rivals = {"generate": plain}
    for name in METHODS:
        rivals[f"generate and score: {name}"] = lambda name=name: scored(name)
        rivals[f"score after: {name}"] = lambda name=name: after(name)
    plain()
    timings = interleave(rivals, repeats=args.repeats)
    n_tokens = sum(len(s.token_ids) for s in drawn["plain"])
    report = Report(
        "scoring_while_generating",
        {"model": Path(args.model).name, "n": N, "prompts": len(prompts), "tokens": n_tokens},
    )
    for name, timing in timings.items():
        share = Ratio.of(timing, timings["generate"])
        report.add(name, timing, times_generating=share)
    for name in METHODS:
        both = Ratio.of(timings[f"generate and score: {name}"], timings["generate"])
        report.target(f"{name}: added to generating", TARGET, both.median - 1, at_least=False)
        report.target(
            f"{name}: largest difference of a score", 1e-4, gap(drawn, name), at_least=False
        )
    report.notes.append(one_thread_note())
    report.finish()


def gap(drawn: dict[str, list], name: str) -> float:
    """Between the scores while generating and those of the same tokens read after."""
    here = np.array([s.score for s in drawn[name]], dtype=float)
    there = np.array(drawn[f"{name}, after"], dtype=float)
    return float(np.abs(here - there).max())


def fitted(backbone, table: AnswerTable, n_prompts: int) -> dict[str, RewardModel]:
    """Small fits: what a head costs does not depend on how good it is."""
    kept = [answer.prompt_id for answer in table.answers]
    first = set(list(dict.fromkeys(kept))[:n_prompts])
    part = table.take([i for i, prompt_id in enumerate(kept) if prompt_id in first])
    say(f"fitting {', '.join(METHODS)} on {len(part)} answers")
    fits = fit(part, backbone, [method(name) for name in METHODS])
    return dict(zip(METHODS, fits.models, strict=True))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--fit-prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=N_REPEATS)
    return parser.parse_known_args()[0]


if __name__ == "__main__":
    main()
