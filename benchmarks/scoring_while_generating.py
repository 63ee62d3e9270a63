"""Best of N while generating: what the head adds, against generating first and scoring after.

Greedy would make all candidates equal, so answers are drawn; the same seed gives the same tokens with
and without a head, and so the same work. Times are per turn, interleaved.

What a head adds is chiefly one step more for each answer (the state of its last token, without logits),
so the shorter the answers, the larger its share: answers of ordinary length (to `WORDY`, `--tokens` at
most) carry the target, the demo's short ones (27 tokens in the mean, `--short` at most) stand beside.

Scores are compared with those of a reading of the same tokens: the largest absolute difference. Features
that a recipe keeps in bfloat16 are rounded, and two passes of the model that differ in their last bits
can fall on different sides of a rounding. So such a head is compared with its features in float32, and
a note says what the rounding does, beside two readings of the same answers that only differ in their
batches.

    python benchmarks/scoring_while_generating.py [--model NAME] [--tokens T] [--short T] [--repeats N]
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from demo_answers import model_parser
from harness import N_REPEATS, Ratio, Report, interleave, one_thread_note, say

from retrm.backbone.base import Backbone
from retrm.backbone.generate import sample
from retrm.backbone.load import load_backbone
from retrm.backbone.sampled import Sampled
from retrm.data.load import load_table
from retrm.fitting.fit import fit
from retrm.methods import method
from retrm.records import Answer, AnswerTable, Prompt
from retrm.scorers.reward_model import RewardModel

METHODS = ("last_token", "retrm", "elhsr")
AFTER = "elhsr"  # a reading costs the same whatever is read: one stands for all
WORDY = (
    "Explain step by step how bread is made, from the grain to the loaf.",
    "Describe in detail what happens in a city on an ordinary day.",
)
N = 8
TARGET = 0.02
SCORE_TARGET = 1e-4


def main() -> None:
    args = arguments()
    backbone = load_backbone(args.model)
    table = load_table(args.data)
    models = fitted(backbone, table, args.fit_prompts)
    short = list({a.prompt_id: a.prompt for a in table.answers}.values())[-len(WORDY) :]
    setting = {"model": Path(args.model).name, "n": N, "prompts": len(WORDY)}
    report = Report("scoring_while_generating", setting)
    wordy, repeats = [Prompt.of(text) for text in WORDY], args.repeats
    measure(report, backbone, models, wordy, args.tokens, repeats=repeats, is_ordinary=True)
    if args.short:
        measure(report, backbone, models, short, args.short, repeats=repeats, is_ordinary=False)
    report.notes.append(one_thread_note())
    report.finish()


def measure(
    report: Report,
    backbone: Backbone,
    models: dict[str, RewardModel],
    prompts: Sequence[Prompt],
    length: int,
    *,
    repeats: int,
    is_ordinary: bool,
) -> None:
    """Lines and claims for answers of `length` tokens at most; scores are compared for ordinary ones."""
    options = {"n": N, "max_new_tokens": length, "seed": 0, "batch_size": 64}
    drawn = {"plain": list(sample(backbone, prompts, temperature=0.8, **options))}

    def scored(name: str) -> None:
        drawn[name] = list(models[name].generate(prompts, **options))

    rivals = {"generate": lambda: list(sample(backbone, prompts, temperature=0.8, **options))}
    for name in METHODS:
        rivals[f"generate and score: {name}"] = lambda name=name: scored(name)
    if is_ordinary:
        rivals[f"score after: {AFTER}"] = lambda: models[AFTER].score(
            answers_of(drawn["plain"], prompts)
        )
    say(f"answers of {length} tokens at most")
    timings = interleave(rivals, repeats=repeats)
    n_tokens = sum(len(s.token_ids) for s in drawn["plain"])
    report.setting[f"tokens, at most {length} each"] = n_tokens
    for name, timing in timings.items():
        share = Ratio.of(timing, timings["generate"])
        report.add(f"{name}, at most {length} tokens", timing, times_generating=share)
    for name in METHODS:
        both = Ratio.of(timings[f"generate and score: {name}"], timings["generate"])
        claim = f"{name}: added to generating at most {length} tokens"
        added = Ratio(both.median - 1, both.low - 1, both.high - 1)
        report.target(claim, TARGET, added, at_least=False)
    if is_ordinary:
        for name in METHODS:
            compare(report, name, models[name], drawn[name], prompts, options)


def compare(
    report: Report,
    name: str,
    model: RewardModel,
    drawn: Sequence[Sampled],
    prompts: Sequence[Prompt],
    options: dict[str, int],
) -> None:
    """The scores while generating beside those of the same tokens read after."""
    recipe = model.artifact.recipe
    read = model.score(answers_of(drawn, prompts))
    claim = f"{name}: largest absolute difference of a score"
    if recipe.dtype != "float32":
        alone = np.concatenate([model.score([one]) for one in answers_of(drawn, prompts)])
        report.notes.append(
            f"{name} keeps {recipe.dtype} features: scores while generating and after differ by "
            f"{gaps(scores_of(drawn), read)}; those of two readings in other batches by "
            f"{gaps(alone, read)}."
        )
        exact = replace(model.artifact, recipe=replace(recipe, dtype="float32"))
        model = RewardModel(exact, model.backbone)
        drawn = list(model.generate(prompts, **options))
        read = model.score(answers_of(drawn, prompts))
        claim += ", features in float32"
    report.target(claim, SCORE_TARGET, gap(scores_of(drawn), read), at_least=False)


def scores_of(drawn: Sequence[Sampled]) -> np.ndarray:
    """(answers,) while generating."""
    return np.array([one.score for one in drawn], dtype=float)


def answers_of(drawn: Sequence[Sampled], prompts: Sequence[Prompt]) -> list[Answer]:
    """What was drawn, to be read by its token ids."""
    return [
        replace(
            Answer.of(prompts[s.prompt], s.response),
            response_ids=s.token_ids,
            finished=s.finished,
        )
        for s in drawn
    ]


def gap(here: np.ndarray, there: np.ndarray) -> float:
    """Largest absolute difference."""
    return float(np.abs(here - there).max())


def gaps(here: np.ndarray, there: np.ndarray) -> str:
    """Largest difference in words: absolute, and relative to 1 + |score|."""
    relative = float((np.abs(here - there) / (1 + np.abs(there))).max())
    return f"{gap(here, there):.1e} (absolute; {relative:.1e} relative to 1 + |score|)"


def fitted(backbone: Backbone, table: AnswerTable, n_prompts: int) -> dict[str, RewardModel]:
    """Small fits: what a head costs does not depend on how good it is."""
    kept = [answer.prompt_id for answer in table.answers]
    first = set(list(dict.fromkeys(kept))[:n_prompts])
    part = table.take([i for i, prompt_id in enumerate(kept) if prompt_id in first])
    say(f"fitting {', '.join(METHODS)} on {len(part)} answers")
    fits = fit(part, backbone, [method(name) for name in METHODS])
    return dict(zip(METHODS, fits.models, strict=True))


def arguments() -> argparse.Namespace:
    options = model_parser(__doc__)
    options.add_argument("--fit-prompts", type=int, default=8)
    options.add_argument("--tokens", type=int, default=96)
    options.add_argument("--short", type=int, default=40, help="0 = leave it out")
    options.add_argument("--repeats", type=int, default=N_REPEATS)
    return options.parse_args()


if __name__ == "__main__":
    main()
