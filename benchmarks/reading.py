"""Reading answers: what our hooks cost on top of the bare forward pass, and what others cost.

The limit is the decoder alone (no LM head, no logits, no hooks, no cache) over exactly the token
batches that we plan. Rivals read the same answers as their users would: one row an answer, padded.

    python benchmarks/reading.py [--model NAME] [--answers N] [--repeats N]
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from demo_answers import model_parser
from harness import N_REPEATS, Ratio, Report, interleave, one_thread_note
from torch import Tensor

from retrm.backbone.base import Rendered
from retrm.backbone.batching import TOKENS_PER_BATCH, build, plan_batches
from retrm.backbone.load import load_backbone
from retrm.backbone.states import TransformersBackbone
from retrm.data.load import load_table
from retrm.features.read import read, read_rendered, render_all
from retrm.features.recipe import Recipe
from retrm.features.reduce import Reducer
from retrm.methods import METHODS
from retrm.store.shards import ShardSink

PADDED_ROWS = 16  # of a padded batch: the usual choice of scripts, and near the best on two cores
N_ONE_BY_ONE = 24

OURS = {
    "mean of all layers": (Recipe(layers="all", point="hidden_states", pooling="mean"), 0.95),
    "reasoning subspace, last layer, all tokens": (
        Recipe(subspace="reasoning:5%", pooling="tokens"),
        0.97,
    ),
    "elhsr: all tokens of all layers": (METHODS["elhsr"].recipe, 0.90),
    "last token, last layer": (Recipe(), None),
}


def main() -> None:
    args = arguments()
    backbone = load_backbone(args.model)
    assert isinstance(backbone, TransformersBackbone)
    answers = load_table(args.data).answers[: args.answers]
    rendered = render_all(backbone, answers).rendered
    with tempfile.TemporaryDirectory() as folder:
        rivals = {"bare forward": bare(backbone, rendered)}
        for name, (recipe, _) in OURS.items():
            reducer = Reducer(recipe, backbone)
            rivals[name] = lambda reducer=reducer: read_rendered(backbone, rendered, reducer)
        rivals["elhsr, written to a store"] = to_store(backbone, answers, Path(folder))
        rivals["output_hidden_states, padded"] = all_states(backbone, rendered)
        rivals["sequence classifier, padded"] = classifier(backbone, rendered)
        few = rendered[:N_ONE_BY_ONE]
        rivals[f"one by one ({len(few)} answers)"] = one_by_one(backbone, few)
        last = Reducer(Recipe(), backbone)
        rivals[f"ours, those {len(few)}"] = lambda: read_rendered(backbone, few, last)
        timings = interleave(rivals, repeats=args.repeats)
    report = Report("reading", setting(args, backbone, rendered))
    for name, timing in timings.items():
        is_few = str(len(few)) in name
        n_answers = len(few) if is_few else len(rendered)
        share = None if is_few else Ratio.of(timings["bare forward"], timing)
        report.add(name, timing, answers_per_s=n_answers / timing.median, share_of_bare=share)
    for name, (_, target) in OURS.items():
        if target is not None:
            share = Ratio.of(timings["bare forward"], timings[name])
            report.target(f"{name}: share of the bare forward's speed", target, share)
    report.notes += [
        "Tokenisation is outside every timer but that of `written to a store`; answers that share a "
        "prompt share its reading in `bare forward` and ours, and cannot in the padded rivals.",
        "The classifier has the same weights with one output in place of the LM head.",
        "Not compared: vLLM and SGLang, which have no build for this machine.",
        one_thread_note(),
    ]
    report.finish()


def arguments() -> argparse.Namespace:
    options = model_parser(__doc__)
    options.add_argument("--answers", type=int, default=64)
    options.add_argument("--repeats", type=int, default=N_REPEATS)
    return options.parse_args()


def setting(
    args: argparse.Namespace, backbone: TransformersBackbone, rendered: tuple[Rendered, ...]
) -> dict[str, object]:
    plans = plan_batches(rendered, share_prompts=backbone.shares_prompts)
    return {
        "model": Path(args.model).name,
        "dtype": str(backbone.dtype),
        "answers": len(rendered),
        "tokens_each_alone": sum(item.stop for item in rendered),
        "tokens_prompts_shared": sum(row.n_tokens for plan in plans for row in plan.rows),
        "batches": len(plans),
        "tokens_per_batch": TOKENS_PER_BATCH,
        "padded_rows": PADDED_ROWS,
    }


def bare(backbone: TransformersBackbone, rendered: tuple[Rendered, ...]) -> Callable[[], None]:
    """The decoder over our own batches, with the inputs that we would give it.

    Raises:
        ValueError: we would keep a prompt's keys and values, so the batches would not be ours.
    """
    plans = plan_batches(
        rendered, share_prompts=backbone.shares_prompts, cache_prompts=backbone.caches_prompts
    )
    if any(row.n_cached for plan in plans for row in plan.rows):
        raise ValueError(
            "prompts are so long that they are cached: expected shorter ones in --data"
        )

    @torch.inference_mode()
    def run() -> None:
        for plan in plans:
            batch = build(plan, rendered, 0, device=backbone.device)
            backbone.located.decoder(**backbone.inputs(batch))

    return run


def to_store(backbone: TransformersBackbone, answers: tuple, folder: Path) -> Callable[[], None]:
    recipes = {"elhsr": METHODS["elhsr"].recipe}
    turn = iter(range(1_000_000))

    def run() -> None:
        sink = ShardSink(folder / str(next(turn)), recipes, backbone.fingerprint)
        read(backbone, answers, recipes, sink=sink)

    return run


def padded(rendered: tuple[Rendered, ...], pad_id: int) -> list[tuple[Tensor, Tensor]]:
    """(ids, mask) of batches in the order of the file, padded on the right."""
    batches = []
    for start in range(0, len(rendered), PADDED_ROWS):
        rows = [torch.tensor(item.ids) for item in rendered[start : start + PADDED_ROWS]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        batches.append((ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()))
    return batches


def all_states(backbone: TransformersBackbone, rendered: tuple) -> Callable[[], Tensor]:
    """`output_hidden_states=True` on the causal LM, then the mean over each answer's tokens."""

    @torch.inference_mode()
    def run() -> Tensor:
        means, at = [], 0
        for ids, mask in padded(rendered, 0):
            out = backbone.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            for row in range(len(ids)):
                judged = slice(rendered[at].start, rendered[at].stop)
                means.append(
                    torch.stack([layer[row, judged].mean(0) for layer in out.hidden_states])
                )
                at += 1
        return torch.stack(means)

    return run


def classifier(backbone: TransformersBackbone, rendered: tuple) -> Callable[[], Tensor]:
    """`AutoModelForSequenceClassification`, one output, on the same decoder weights."""
    from transformers import AutoModelForSequenceClassification

    config = type(backbone.model.config).from_dict(backbone.model.config.to_dict())
    config.num_labels, config.pad_token_id = 1, backbone.vocab_size - 1
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.base_model.load_state_dict(backbone.located.decoder.state_dict())

    @torch.inference_mode()
    def run() -> Tensor:
        return torch.cat(
            [
                model(input_ids=ids, attention_mask=mask).logits
                for ids, mask in padded(rendered, config.pad_token_id)
            ]
        )

    return run


def one_by_one(backbone: TransformersBackbone, rendered: tuple) -> Callable[[], Tensor]:
    """One answer a forward pass, last token's state: how multi-objective heads are often prepared."""

    @torch.inference_mode()
    def run() -> Tensor:
        return torch.stack(
            [
                backbone.located.decoder(input_ids=torch.tensor([item.ids])).last_hidden_state[
                    0, -1
                ]
                for item in rendered
            ]
        )

    return run


if __name__ == "__main__":
    main()
