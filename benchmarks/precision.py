"""What a bfloat16, float16 or int8 backbone does to scores and to time, heads in float32 throughout.

Heads are fitted on float32 states of some of the demo's answers and score the others, once from
float32 states and once from those of each variant. Reported are the drift of the scores, the pairs of
answers to one prompt whose order differs, and what is left of the ranking.

    drift = (score of the variant - score in float32) / standard deviation of the float32 scores

Variants: `bfloat16` and `float16` hold weights and states in that type; `int8` multiplies weights that
are quantised by output channel with activations that are quantised as they come (torch's dynamic
quantisation of linear layers; embedding, norms and attention stay float32).

`int8 weights, float32 inputs` tells which of the two roundings does the harm; it is not faster.

Where a processor has no instructions for the short types, torch's own kernels for them are so slow that
only a few answers pass through them: these are timed. For the drift the same rounded numbers are
multiplied with float32 sums, as such instructions do it; the drift between the two ways is reported.

    python benchmarks/precision.py [--prompts N] [--timed N] [--repeats N] [--store FOLDER]
"""

import argparse
import copy
import itertools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from demo_answers import PRESETS, model_parser, read_demo, shown
from harness import N_REPEATS, Ratio, Report, interleave, one_thread_note, say
from scipy.stats import spearmanr
from torch import Tensor, nn

from retrm.backbone.base import Backbone, StatePoint
from retrm.backbone.load import load_backbone
from retrm.backbone.states import TransformersBackbone
from retrm.data.split import split_by_prompt
from retrm.features.read import Reading, read
from retrm.features.reduce import Reducer
from retrm.features.subspace import Subspace
from retrm.fitting.fit import fit_head
from retrm.fitting.targets import Targets
from retrm.heads.base import Head
from retrm.methods import METHODS
from retrm.metrics import (
    best_of_k_statistic,
    clustered_bootstrap,
    mean_statistic,
    paired_difference,
    within_prompt_auroc_statistic,
)
from retrm.records import AnswerTable

HELD_OUT = 0.6  # of the prompts
AGAIN = 6  # prompts that are read a second time
FEWER = ("float16", "int8", "int8 weights, float32 inputs")  # of which fewer prompts say enough
Scores = Mapping[str, np.ndarray]  # by preset


def main() -> None:
    args = arguments()
    backbone = load_backbone(args.model)
    table, reading = read_demo(backbone, args.prompts, data=args.data, store=args.store)
    train, test = split_by_prompt(table.prompt_ids.tolist(), (1 - HELD_OUT, HELD_OUT), seed=0)
    test = test[rows_of(table.take(test.tolist()), args.prompts)]  # prompt by prompt
    held = table.take(test.tolist())
    judge = Judge.of(backbone, fitted(reading, table, train))
    exact = {
        name: head.score(reading.features[name].take(test)).double().numpy()
        for name, head in judge.heads.items()
    }
    report = Report("precision", settings(args, train, held))
    found: dict[str, Scores] = {}
    for name, make in MAKERS.items():
        rows = rows_of(held, args.others if name in FEWER else args.prompts)
        variant = make(backbone)
        found[name] = exact if variant is backbone else judge.scores(variant, held.take(rows))
        moved = moved_by(judge, variant, held, found[name])
        for head, scores in found[name].items():
            figures = agreement(exact[head][rows], scores, held.take(rows))
            figures["moved"] = moved[head] / exact[head].std()
            report.rows.append({"what": name, "head": head, **figures})
    timed(report, judge, backbone, held, found, args)
    report.notes += [
        f"`moved`: how far the scores of {AGAIN} prompts move (root mean square, in standard deviations) "
        "when they are read in batches without the others.",
        "Drift of the short types: their numbers with float32 sums. Timed are the kernels that this "
        "torch has for them; `kernels moved` is how far these move the scores of the timed answers.",
        "`flipped`: pairs of different answers to one prompt; answers of equal tokens have no order. "
        "Intervals resample prompts, the same ones for both precisions.",
        "The weights come from a 4-bit file, so a part of what int8 could lose is lost before.",
        one_thread_note(),
    ]
    report.finish()


def arguments() -> argparse.Namespace:
    options = model_parser(__doc__)
    options.add_argument("--prompts", type=int, default=160, help="to fit on and to hold out")
    options.add_argument("--others", type=int, default=32, help="prompts for all but bfloat16")
    options.add_argument("--timed", type=int, default=1, help="prompts whose reading is timed")
    options.add_argument("--repeats", type=int, default=N_REPEATS)
    options.add_argument("--store", type=Path, help="keep the features here for the next run")
    return options.parse_args()


def settings(args: argparse.Namespace, train: np.ndarray, held: AnswerTable) -> dict[str, object]:
    """What was measured on."""
    return {
        "model": Path(args.model).name,
        "answers_fitted_on": len(train),
        "questions_held_out": len(set(held.prompt_ids)),
        "answers_held_out": len(held),
        "pairs_of_them": len(pairs_of(held)[0]),
        "answers_timed": len(rows_of(held, args.timed)),
        "bfloat16_instructions": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    }


def fitted(reading: Reading, table: AnswerTable, train: np.ndarray) -> dict[str, Head]:
    """Heads on float32 states."""
    targets = Targets.of(table).take(train)
    found = {}
    for name in PRESETS:
        found[name] = fit_head(METHODS[name], reading.features[name].take(train), targets).head
        say(f"fitted {name}")
    return found


def rows_of(table: AnswerTable, n: int) -> list[int]:
    """Of the answers to the first `n` prompts."""
    return [row for candidates in table.candidate_sets()[:n] for row in candidates.rows]


# ------------------------------------------------------------------------------ the variants


class Float32Sums(nn.Module):
    """A linear layer of a short type whose products are summed in float32 and rounded at the end."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._linear = linear
        self._weight = linear.weight.float()
        self._bias = None if linear.bias is None else linear.bias.float()

    def forward(self, x: Tensor) -> Tensor:
        """x W' + b, in the type of x."""
        return nn.functional.linear(x.float(), self._weight, self._bias).to(x.dtype)


def in_dtype(
    backbone: TransformersBackbone, dtype: torch.dtype, *, sums_float32: bool
) -> TransformersBackbone:
    """The backbone with weights, and so states, of another type."""
    model = copy.deepcopy(backbone.model)
    # Not model.to: it would round the frequencies of the positions too, which loading does not.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    if sums_float32:
        replace_linear(model.get_decoder(), Float32Sums)
    return again(backbone, model)


def in_int8(backbone: TransformersBackbone) -> TransformersBackbone:
    """The backbone with quantised linear layers, whose inputs are quantised as they come."""
    model = copy.deepcopy(backbone.model)
    chosen = {nn.Linear: torch.ao.quantization.per_channel_dynamic_qconfig}
    with warnings.catch_warnings():  # torch will move it to another package
        warnings.simplefilter("ignore")
        torch.ao.quantization.quantize_dynamic(model.get_decoder(), chosen, inplace=True)
    return again(backbone, model)


def with_int8_weights(backbone: TransformersBackbone) -> TransformersBackbone:
    """The backbone with the numbers of int8 weights, everything else float32: what weights alone do."""
    model = copy.deepcopy(backbone.model)
    for layer in model.get_decoder().modules():
        if isinstance(layer, nn.Linear):
            step = layer.weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
            layer.weight.data = (layer.weight / step).round() * step
    return again(backbone, model)


def again(backbone: TransformersBackbone, model: nn.Module) -> TransformersBackbone:
    return TransformersBackbone(model, backbone.renderer, backbone.fingerprint, backbone.name)


def replace_linear(module: nn.Module, make: type[Float32Sums]) -> None:
    """Put `make(layer)` in the place of every linear layer below `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, make(child))
        else:
            replace_linear(child, make)


# Those that many answers can pass through; int8 has no other form.
MAKERS: dict[str, Callable[[TransformersBackbone], TransformersBackbone]] = {
    "float32": lambda backbone: backbone,
    "bfloat16": lambda backbone: in_dtype(backbone, torch.bfloat16, sums_float32=True),
    "float16": lambda backbone: in_dtype(backbone, torch.float16, sums_float32=True),
    "int8": in_int8,
    "int8 weights, float32 inputs": with_int8_weights,
}
# What a user would run.
PLAIN: dict[str, Callable[[TransformersBackbone], TransformersBackbone]] = {
    "float32": lambda backbone: backbone,
    "bfloat16": lambda backbone: in_dtype(backbone, torch.bfloat16, sums_float32=False),
    "float16": lambda backbone: in_dtype(backbone, torch.float16, sums_float32=False),
    "int8": in_int8,
}


# ------------------------------------------------------------------------------- the figures


@dataclass(frozen=True)
class Judge:
    """Heads that score answers from the states of any variant, with the bases of the float32 model."""

    heads: Mapping[str, Head]
    bases: Mapping[str, Mapping[StatePoint, Subspace]]

    @classmethod
    def of(cls, backbone: Backbone, heads: Mapping[str, Head]) -> Self:
        """Compute the bases once."""
        return cls(heads, {n: Reducer(METHODS[n].recipe, backbone).bases for n in heads})

    def scores(self, variant: Backbone, table: AnswerTable) -> dict[str, np.ndarray]:
        """(answers,) for each head, from one reading."""
        recipes = {name: METHODS[name].recipe for name in self.heads}
        reducers = {
            name: Reducer(recipe, variant, bases=self.bases[name])
            for name, recipe in recipes.items()
        }
        reading = read(variant, table.answers, recipes, reducers=reducers)
        say(f"read {reading.n_tokens:,} tokens in {reading.elapsed_s:.0f} s")
        return {
            name: head.score(reading.features[name]).double().numpy()
            for name, head in self.heads.items()
        }


def timed(
    report: Report,
    judge: Judge,
    backbone: TransformersBackbone,
    held: AnswerTable,
    before: Mapping[str, Scores],
    args: argparse.Namespace,
) -> None:
    """Seconds on a few of the answers; `before` are the scores of all from batches with many others."""
    few = rows_of(held, args.timed)
    variants = {name: make(backbone) for name, make in PLAIN.items()}
    found: dict[str, Scores] = {}

    def rival(name: str) -> None:
        found[name] = judge.scores(variants[name], held.take(few))

    timings = interleave(
        {name: lambda name=name: rival(name) for name in variants}, repeats=args.repeats
    )
    for name, timing in timings.items():
        moved = {
            f"kernels_moved_{head}": rms(found[name][head] - scores[few]) / spread
            for head, scores in before[name].items()
            for spread in [before["float32"][head].std()]
            if variants[name].dtype != backbone.dtype
        }
        share = Ratio.of(timing, timings["float32"])
        report.add(f"timed: {name}", timing, times_float32=share, **moved)


def moved_by(
    judge: Judge, variant: Backbone, held: AnswerTable, scores: Scores
) -> dict[str, float]:
    """How far the scores of some prompts move when they are read without the others."""
    rows = rows_of(held, AGAIN)
    again = judge.scores(variant, held.take(rows))
    return {head: rms(again[head] - whole[rows]) for head, whole in scores.items()}


def agreement(
    before: np.ndarray, after: np.ndarray, table: AnswerTable
) -> dict[str, float | list[float]]:
    """How the scores of a variant stand to those of float32."""
    ids, labels = table.prompt_ids.tolist(), table.labels
    first, second = pairs_of(table)
    is_flipped = np.sign(before[first] - before[second]) != np.sign(after[first] - after[second])
    flipped = mean_statistic(is_flipped, [ids[row] for row in first])
    line = {
        "questions": len(table.candidate_sets()),
        "drift_rms": rms(after - before) / before.std(),
        "drift_max": np.abs(after - before).max() / before.std(),
        "spearman": float(spearmanr(before, after).statistic),
        **shown("flipped", clustered_bootstrap(flipped)),
    }
    for name, statistic in (
        ("auroc", within_prompt_auroc_statistic),
        ("best_of_n", best_of_k_statistic),
    ):
        exact, variant = (statistic(scores, labels, ids) for scores in (before, after))
        line |= {f"{name}_float32": round(clustered_bootstrap(exact).value, 4)}
        line |= shown(f"{name}_minus", paired_difference(variant, exact))
    return line


def pairs_of(table: AnswerTable) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all pairs of different answers to one prompt."""
    answers = table.answers
    pairs = [
        (i, j)
        for candidates in table.candidate_sets()
        for i, j in itertools.combinations(candidates.rows, 2)
        if answers[i].response_ids != answers[j].response_ids
    ]
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return first, second


def rms(differences: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt((differences**2).mean()))


if __name__ == "__main__":
    main()
