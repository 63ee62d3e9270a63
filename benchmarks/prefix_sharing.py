"""N answers to one prompt: the prompt read once against once an answer, beside the arithmetic bound.

    bound = N (P + R) / (P + N R)        P prompt tokens, R of every answer

counts tokens and knows no attention: behind a long prompt every answer still looks at all of it.

    python benchmarks/prefix_sharing.py [--model NAME] [--longest P] [--repeats N]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from harness import N_REPEATS, Ratio, Report, interleave, one_thread_note, say

from retrm.backbone.base import Rendered
from retrm.backbone.batching import plan_batches
from retrm.backbone.load import load_backbone
from retrm.features.batch_pass import PlannedBatch, batch_passes
from retrm.features.read import read_rendered
from retrm.features.recipe import Recipe
from retrm.features.reduce import Reducer

ANSWERS = (8, 64)
PROMPTS = (64, 512, 4096)
RESPONSE = 64
SHARE = 0.8


def main() -> None:
    args = arguments()
    backbone = load_backbone(args.model)
    report = Report("prefix_sharing", {"model": Path(args.model).name, "response_tokens": RESPONSE})
    for n_prompt in (p for p in PROMPTS if p <= args.longest):
        for n_answers in ANSWERS:
            items = answers(backbone.vocab_size, n_prompt, n_answers)
            alone = items if n_prompt * n_answers <= args.most else items[: args.most // n_prompt]
            timings = interleave(
                {
                    "shared": reader(backbone, items, share=True),
                    "alone": reader(backbone, alone, share=False),
                },
                repeats=args.repeats,
                warm_up=0,
            )
            scale = len(items) / len(alone)
            gain = Ratio.of(timings["alone"], timings["shared"])
            gain = Ratio(gain.median * scale, gain.low * scale, gain.high * scale)
            bound = n_answers * (n_prompt + RESPONSE) / (n_prompt + n_answers * RESPONSE)
            name = f"{n_answers} answers, prompt of {n_prompt}"
            say(f"{name}: {gain}, bound {bound:.2f}")
            report.add(
                name,
                timings["shared"],
                gain=gain,
                bound=bound,
                share_of_bound=gain.median / bound,
                largest_difference=difference(backbone, items[:2])
                if n_answers == ANSWERS[0]
                else None,
                read_alone=len(alone),
            )
            report.target(f"{name}: share of the bound", SHARE, gain.median / bound)
    report.notes += [
        "Token ids are random: what is read costs the same whatever it says.",
        "Where so many answers alone would take minutes, some are read and the time is scaled up "
        "(column read_alone).",
        one_thread_note(),
    ]
    report.finish()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--longest", type=int, default=4096)
    parser.add_argument("--most", type=int, default=8192, help="prompt tokens read alone at most")
    parser.add_argument("--repeats", type=int, default=N_REPEATS)
    return parser.parse_known_args()[0]


def answers(vocab_size: int, n_prompt: int, n_answers: int) -> tuple[Rendered, ...]:
    generator = torch.Generator().manual_seed(n_prompt)
    prompt = torch.randint(1000, vocab_size, (n_prompt,), generator=generator).tolist()
    found = []
    for _ in range(n_answers):
        response = torch.randint(1000, vocab_size, (RESPONSE,), generator=generator).tolist()
        found.append(Rendered((*prompt, *response), n_prompt, n_prompt + RESPONSE))
    return tuple(found)


def reader(backbone, items: tuple[Rendered, ...], *, share: bool) -> Callable[[], object]:
    reducer = Reducer(Recipe(), backbone)

    def run() -> object:
        if share:
            return read_rendered(backbone, items, reducer)
        return read_alone(backbone, items, reducer)

    return run


def read_alone(backbone, items: tuple[Rendered, ...], reducer: Reducer) -> torch.Tensor:
    """The same batches, but for one row an answer."""
    plans = plan_batches(items, share_prompts=False)
    batches = [PlannedBatch.of(plan, items) for plan in plans]
    passes = batch_passes(backbone, {"only": reducer}, batches)
    return torch.cat([features["only"].values for _, features in passes])


def difference(backbone, items: tuple[Rendered, ...]) -> float:
    """Largest difference of a state, shared and alone, in units of the largest state."""
    reducer = Reducer(Recipe(), backbone)
    shared = read_rendered(backbone, items, reducer).values
    each = torch.cat([read_rendered(backbone, [item], reducer).values for item in items])
    return float((shared - each).abs().max() / each.abs().max())


if __name__ == "__main__":
    main()
