"""Fitting ELHSR: our loop and the convex start against the official loop, and what fewer features cost.

1. The official training loop (github.com/aster2024/SWIFT, `--swift FOLDER` of a checkout; its code is
   run as it is) and ours, on the same bfloat16 features, the same training and the same validation
   prompts. Its split by answers is replaced by ours by prompts. Seconds are to the epoch whose
   validation loss is at most the best that the official loop reaches, on one thread, as processor time
   and as wall time.
2. What is kept where all tokens of all layers are too large: bytes a token against the AUROC within
   prompts, out of fold by prompt, intervals by resampling prompts. Every variant is fitted alike.

    python benchmarks/elhsr_fit.py [--swift FOLDER] [--store FOLDER] [--prompts N] [--repeats N]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from demo_answers import model_parser, some_prompts
from harness import N_REPEATS, Ratio, Report, Timing, interleave, say
from official_elhsr import Moment, Run, Swift
from torch import Tensor

from retrm.backbone.load import load_backbone
from retrm.data.load import load_table
from retrm.data.split import prompt_folds
from retrm.features.read import Reading, read
from retrm.features.reduce import Features
from retrm.fitting.fit import out_of_fold
from retrm.fitting.gradient import Epoch, fit_gradient, split_rows
from retrm.fitting.mean_head import AnswerMoments, fit_mean
from retrm.fitting.targets import Targets
from retrm.heads.gated import GatedHead
from retrm.methods import METHODS, GradientOptions, Method
from retrm.metrics.intervals import Resamples
from retrm.metrics.pairs import within_prompt_auroc_statistic
from retrm.metrics.statistics import RatioStatistic, mean_statistic
from retrm.records import AnswerTable
from retrm.store.shards import ShardSink

PRESET = METHODS["elhsr"]
FAST = replace(PRESET.gradient, start="mean_head", lr=1e-5, epochs=10, patience=2)
ONE_PASS = replace(PRESET.gradient, epochs=1, validation_fraction=0.0, patience=None, keep="last")
ONE_PASS_STEPS = (1e-4, 3e-4, 1e-3)
RECIPES = {
    "full": PRESET.recipe,
    "random:29": replace(PRESET.recipe, subspace="random:29"),
    "reasoning:29": replace(PRESET.recipe, subspace="reasoning:29"),
}
# Line of the table -> what it is, and how many times faster than the official loop it is to be.
CLAIMS = {
    "ours, mean head first": ("a convex head without a gate", 10.0),
    "ours, the preset": ("the preset's own loop", 1.0),
}
N_FOLDS = 5
LAST = 4
FLOAT16_MAX = 65504.0


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    table = some_prompts(load_table(args.data), args.prompts)
    reading, n_states = features_of(table, args)
    targets = Targets.of(table)
    full = reading.features["full"]
    report = Report(
        "elhsr_fit",
        {
            "model": Path(args.model).name,
            "answers": len(table),
            "prompts": targets.n_prompts,
            "tokens": len(full.values),
            "features": full.n_features,
            "share_right": float(targets.labels.mean()),
            "folds": N_FOLDS,
            "tokens_read_now": reading.n_tokens,
            "seconds_of_reading": reading.elapsed_s,
            "fast": {"lr": FAST.lr, "epochs": FAST.epochs, "patience": FAST.patience},
        },
    )
    against_official(report, full, targets, args)
    what_is_kept(report, reading, table, targets, n_states)
    report.notes.append("One thread for every rival; processor seconds leave out other work.")
    report.finish()


def arguments() -> argparse.Namespace:
    options = model_parser(__doc__)
    options.add_argument("--swift", type=Path, help="checkout of github.com/aster2024/SWIFT")
    options.add_argument("--store", type=Path, help="keep the features here for the next run")
    options.add_argument("--prompts", type=int, default=64)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--repeats", type=int, default=N_REPEATS)
    return options.parse_args()


def features_of(table: AnswerTable, args: argparse.Namespace) -> tuple[Reading, int]:
    """One reading for all recipes, from the store where it is there already; and states a token."""
    backbone = load_backbone(args.model)
    sink = None
    if args.store is not None:
        sink = ShardSink(args.store, RECIPES, backbone.fingerprint, dtype=backbone.dtype)
    reading = read(backbone, table.answers, RECIPES, sink=sink)
    say(f"read {reading.n_tokens:,} tokens in {reading.elapsed_s:.0f} s")
    loaded = {name: reading.features[name] for name in RECIPES}  # a store loads at every access
    return replace(reading, features=loaded), backbone.n_layers + 1


# --------------------------------------------------------------- against the official loop


def against_official(
    report: Report, features: Features, targets: Targets, args: argparse.Namespace
) -> None:
    """Same features, same prompts in training and validation."""
    rows = split_rows(targets, PRESET.gradient.validation_fraction, args.seed)
    everything = {
        "ours, the preset": lambda: ours(features, targets, PRESET.gradient, args.seed),
        "ours, mean head first": lambda: ours(features, targets, FAST, args.seed),
    }
    if args.swift is None:
        report.notes.append(
            "The official loop was skipped: give the folder of a checkout of "
            "github.com/aster2024/SWIFT as --swift FOLDER."
        )
        runs = {name: run() for name, run in everything.items()}
        target = runs["ours, the preset"].best
    else:
        swift = Swift(args.swift, features, targets, rows, args.seed)
        official = swift.run(PRESET.gradient.epochs)
        report.notes.append(
            "The official loop gets all layers of an answer as one matrix without the prompt's tokens, "
            "which spares it the copy of each layer that its own features need; its losses have four "
            "decimals as it prints them. Of the official loop and of our preset, two epochs were run in turn "
            "with the others; further ones are counted as long as the second."
        )
        runs = {"official": official} | {name: run() for name, run in everything.items()}
        target = official.best
    report.setting |= {"training_answers": len(rows[0]), "validation_answers": len(rows[1])}
    rivals: dict[str, Callable[[], Run]] = {
        "ours, mean head first": everything["ours, mean head first"]
    }
    # Two epochs tell what one takes without what is done once, ahead of the first.
    two = replace(PRESET.gradient, epochs=2)
    rivals["ours, the preset"] = lambda: ours(features, targets, two, args.seed)
    if args.swift is not None:
        rivals["official"] = lambda: swift.run(2)
    again: dict[str, list[Run]] = {name: [] for name in rivals}
    interleave(
        {name: lambda n=name: again[n].append(rivals[n]()) for name in rivals},
        repeats=args.repeats,
    )
    for name, run in runs.items():
        say(f"{name}: best {run.best:.4f}, " + ", ".join(f"{m.loss:.4f}" for m in run.epochs))
    _timings(report, runs, {n: found[1:] for n, found in again.items()}, target)


def _timings(
    report: Report, runs: dict[str, Run], again: dict[str, list[Run]], target: float
) -> None:
    """Lines of the table, and the ratios within each turn."""
    epochs_of = {name: epochs_to(run, target) for name, run in runs.items()}
    for clock in ("cpu", "wall"):
        times = {
            name: _times(found, epochs_of[name], target, clock) for name, found in again.items()
        }
        official = times.get("official")
        for name, timing in times.items():
            more = {"validation_loss": runs[name].best, "epochs_to_it": epochs_of[name]}
            if timing is None:
                report.rows.append({"what": f"{name} ({clock} s): not reached", **more})
                continue
            if official is not None:
                more["times_faster"] = Ratio.of(official, timing)
            report.add(f"{name} ({clock} s)", timing, **more)
        if official is not None:
            for name, (who, wanted) in CLAIMS.items():
                reached = times[name]
                report.target(
                    f"{who}: times faster to the official loss, {clock}; 0 = not reached",
                    wanted,
                    0.0 if reached is None else Ratio.of(official, reached),
                )
    report.setting["epochs"] = {
        name: [round(m.loss, 5) for m in run.epochs] for name, run in runs.items()
    }
    if "official" in runs:
        gap = min(run.best for name, run in runs.items() if name != "official")
        report.target(
            "our best validation loss, over the official one",
            1.0,
            gap / runs["official"].best,
            at_least=False,
        )


def epochs_to(run: Run, loss: float) -> int | None:
    """How many epochs (a fitted start counts as one entry) until the loss is reached."""
    for number, moment in enumerate(run.epochs, 1):
        if moment.loss <= loss:
            return number
    return None


def _times(found: list[Run], epochs: int | None, target: float, clock: str) -> Timing | None:
    """Seconds until the loss is reached, or None: by a whole run, or as many epochs as it took one."""
    if epochs is None:
        return None
    moments = [
        run.until(target) or (run.to_epoch(epochs) if epochs > len(run.epochs) else None)
        for run in found
    ]
    if None in moments:
        return None
    return Timing(tuple(getattr(moment, clock) for moment in moments))


def ours(features: Features, targets: Targets, options: GradientOptions, seed: int) -> Run:
    """Our loop on all answers; it splits the prompts itself."""
    found: list[Moment] = []

    def note(epoch: Epoch) -> None:
        assert epoch.validation_loss is not None
        found.append(Moment.now(epoch.validation_loss))

    started = Moment.now(float("inf"))
    head = GatedHead(features.n_features)
    fit_gradient(head, features, targets, "bce", options, seed=seed, on_epoch=note)
    return Run(started, tuple(found))


# --------------------------------------------------------------------------- what is kept


def what_is_kept(
    report: Report, reading: Reading, table: AnswerTable, targets: Targets, n_states: int
) -> None:
    """Bytes a token against accuracy, every variant out of the same folds."""
    full = reading.features["full"]
    folds = prompt_folds(table.prompt_ids.tolist(), N_FOLDS, seed=0)
    judge = Judge(table, targets, folds)
    wide = full.n_features
    last = columns(full, slice(wide - LAST * (wide // n_states), wide))
    per_token = len(full.values) / full.n_answers
    means = AnswerMoments.of(full, torch.arange(full.n_answers), scatter=False).means
    judge.fit("all, bfloat16", full, FAST, 2 * wide)
    judge.fit("all, bfloat16; the preset's loop", full, PRESET.gradient, 2 * wide)
    judge.fit("all, int8 by column", quantised(full), FAST, wide)
    for name in ("random:29", "reasoning:29"):
        found = reading.features[name]
        judge.fit(f"{name} of each layer, bfloat16", found, FAST, 2 * found.n_features)
    judge.fit(f"last {LAST} layers, bfloat16", last, FAST, 2 * last.n_features)
    judge.means("means only, float32; no gate", means, 4 * wide / per_token)
    for lr in ONE_PASS_STEPS:
        judge.fit(
            f"nothing: one pass, one step a batch, lr {lr:g}", full, replace(ONE_PASS, lr=lr), 0
        )
    report.rows += judge.rows()
    largest = max(part.abs().max().item() for part in full.values.split(512))
    report.setting["largest_value"] = largest
    report.setting["share_beyond_float16"] = float(
        np.mean(
            [(part.abs() > FLOAT16_MAX).float().mean().item() for part in full.values.split(512)]
        )
    )
    report.notes += [
        f"The step size of the mean head's epochs ({FAST.lr:g}) was chosen among 1e-6, 3e-6 and 1e-5 on "
        "these folds, where all three gave the same within the intervals; `means only` has none.",
        f"float16 was not fitted: its largest number is {FLOAT16_MAX:g} and one value beyond it makes "
        f"every score of that answer infinite; the largest here is {largest:,.0f}, on other families "
        "residual streams go beyond. bfloat16 has the same size and the range of float32.",
        "A second pass keeps nothing (0 bytes) and gives exactly the features of the first: the "
        "accuracy of `all, bfloat16` at the price of one reading for every epoch.",
        "int8: each column's range over all answers in 255 steps; its two numbers are not counted.",
        "random and reasoning subspaces read residual states divided by their rms, as their recipes "
        "say; `last 4` and `all` read them raw.",
    ]


@dataclass
class Judge:
    """Fits variants on the same folds and compares each with the first, out of fold."""

    table: AnswerTable
    targets: Targets
    folds: np.ndarray

    def __post_init__(self) -> None:
        self.found: list[tuple[str, float, float, RatioStatistic, RatioStatistic]] = []

    def fit(self, name: str, features: Features, options: GradientOptions, n_bytes: float) -> None:
        """A gated head of each fold by the gradient loop."""
        method = Method(
            "variant", PRESET.recipe, "gated", loss="bce", solver="gradient", gradient=options
        )
        started = time.process_time()
        scores = out_of_fold(method, features, self.targets, self.folds)
        self._add(name, n_bytes, time.process_time() - started, scores)

    def means(self, name: str, means: Tensor, n_bytes: float) -> None:
        """A gate-free head of each fold by convex fitting."""
        started = time.process_time()
        scores = np.empty(len(means))
        for fold in range(N_FOLDS):
            train, test = np.flatnonzero(self.folds != fold), np.flatnonzero(self.folds == fold)
            done = fit_mean(means[train], self.targets.take(train), "bce")
            scores[test] = (means[test] @ done.weight + done.bias).numpy()
        self._add(name, n_bytes, time.process_time() - started, scores)

    def _add(self, name: str, n_bytes: float, seconds: float, scores: np.ndarray) -> None:
        labels = self.targets.labels.numpy()
        prompts = self.table.prompt_ids.tolist()
        auroc = within_prompt_auroc_statistic(scores, labels, prompts)
        terms = np.logaddexp(0, np.where(labels == 1, -scores, scores))
        self.found.append((name, n_bytes, seconds, auroc, mean_statistic(terms, prompts)))
        say(f"{name}: {seconds:.0f} s")

    def rows(self) -> list[dict[str, object]]:
        """Lines of the table; differences from the first by the same resamples."""
        auroc_of_all, loss_of_all = self.found[0][3:]
        resamples, of_losses = Resamples(auroc_of_all.prompts), Resamples(loss_of_all.prompts)
        rows = []
        for name, n_bytes, seconds, auroc, loss in self.found:
            figures = {
                "auroc": resamples.interval(auroc),
                "minus_all": resamples.difference(auroc, auroc_of_all),
                "log_loss": of_losses.interval(loss),
                "log_loss_minus_all": of_losses.difference(loss, loss_of_all),
            }
            row: dict[str, object] = {"what": name, "cpu_s_of_folds": seconds}
            row["bytes_a_token"] = round(n_bytes)
            for key, found in figures.items():
                row[key] = found.value
                row[f"{key}_interval"] = [round(found.low, 4), round(found.high, 4)]
            rows.append(row)
        return rows


def columns(features: Features, part: slice) -> Features:
    return Features(features.values[:, part].contiguous(), features.offsets, features.is_pooled)


def quantised(features: Features) -> Features:
    """What int8 codes say: each column's range in 255 steps, rounded to the nearest; float32."""
    found = torch.empty(features.values.shape)
    for part in torch.arange(features.n_features).split(512):
        at = slice(int(part[0]), int(part[-1]) + 1)
        values = features.values[:, at].float()
        low, high = values.min(0).values, values.max(0).values
        step = ((high - low) / 255).clamp(min=1e-30)
        found[:, at] = ((values - low) / step).round_().mul_(step).add_(low)
    return Features(found, features.offsets, features.is_pooled)


if __name__ == "__main__":
    main()
