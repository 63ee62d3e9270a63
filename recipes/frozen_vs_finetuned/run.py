"""Frozen heads against fine-tuning: the same backbone, the same rows, the same held-out prompts.

    pip install 'retrm[train]'
    python recipes/frozen_vs_finetuned/run.py FIT.jsonl --near TEST.jsonl --far NAME=FILE.jsonl \
        --model smollm2-135m -o runs/frozen_vs_finetuned/rmb --result docs/results/frozen_vs_finetuned/rmb.json

Arms:

    last_token, elhsr, retrm   heads of `retrm fit` on the frozen backbone
    head_lora                  low-rank updates from the head of last_token (closed form first)
    lora                       low-rank updates from a head at zero
    full                       all weights from a head at zero

Every arm learns from the same first n prompts, in the order of a hash of seed and prompt: sets of different
sizes lie in each other. Nothing is chosen on what is measured. FIT and --near must not share prompts, which
is checked; --far is another distribution. An arm that is done is kept in OUTPUT/arms and not done again, and a
training that was killed goes on.

The result holds, by size and seed: figures with 95 % intervals over prompts on every set, paired differences
to --against, seconds on the clock and on the processor (reading included), trained parameters, bytes on disk,
and the held-out loss by step of what was fine-tuned, from which the steps that a fitted head saves are read.
"""

import argparse
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from json import loads
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrm.backbone.load import load_backbone
from retrm.data.load import load_table
from retrm.data.split import dealing_order, prompt_codes
from retrm.errors import DataError, RecipeError, RetrmError, did_you_mean
from retrm.files import check_writable, write_json
from retrm.finetuning.finetune import finetune
from retrm.finetuning.language_model import LoraOptions
from retrm.finetuning.reward_options import RewardOptions
from retrm.finetuning.run_folder import RunFolder
from retrm.fitting.fit import fit
from retrm.methods import method
from retrm.metrics import (
    PromptStatistic,
    clustered_bootstrap,
    mean_statistic,
    paired_difference,
    within_prompt_auroc_statistic,
)
from retrm.records import AnswerTable
from retrm.scorers.open import open_scorer
from retrm.scorers.together import judge_all

HEADS = ("last_token", "elhsr", "retrm")
TUNED = ("head_lora", "lora", "full")
ARMS = (*HEADS, *TUNED)
N_LOOKS = 64  # prompts of the near set whose loss is looked at while training
DIGITS = 4


@dataclass(frozen=True)
class Cell:
    """One arm on so many prompts under one seed."""

    arm: str
    n_prompts: int
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.arm}-{self.n_prompts}-{self.seed}"


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        fit: everything that may be learnt from.
        tests: by name, `near` first.
        args: of the command line.
    """

    fit: AnswerTable
    tests: Mapping[str, AnswerTable]
    args: argparse.Namespace

    @property
    def kind(self) -> str:
        """pairs, or correctness where the data have labels only."""
        return "pairs" if self.fit.judged().preferences() else "correctness"


# ------------------------------------------------------------------------------------------------ one arm


def subset(table: AnswerTable, n_prompts: int, seed: int) -> AnswerTable:
    """The answers to the first `n_prompts` prompts, in the order of a hash: smaller sets lie in larger ones."""
    codes, prompts = prompt_codes(table.prompt_ids.tolist())
    if n_prompts > len(prompts):
        raise DataError(f"got {len(prompts)} prompts; expected at least {n_prompts}. Ask for fewer")
    taken = np.isin(codes, dealing_order(prompts, seed)[:n_prompts])
    return table.take(np.flatnonzero(taken).tolist())


def run_cell(cell: Cell, study: Study, folder: Path) -> dict[str, Any]:
    """Learn, score all sets, and say what it took; plain JSON."""
    table = subset(study.fit, cell.n_prompts, cell.seed)
    spec, facts = (fit_head if cell.arm in HEADS else tune)(cell, study, table, folder)
    scorer = open_scorer(spec, model=study.args.model if cell.arm in HEADS else None)
    scores, n_skipped = {}, {}
    for name, test in study.tests.items():
        (judged,) = judge_all({"arm": scorer}, test.answers, overlong="skip").values()
        scores[name] = [None if np.isnan(s) else float(s) for s in judged.scores]
        n_skipped[name] = int(np.isnan(judged.scores).sum())
    return {
        "arm": cell.arm,
        "n_prompts": cell.n_prompts,
        "seed": cell.seed,
        "n_answers": len(table),
        "n_pairs": len(table.judged().preferences()),
        **facts,
        "n_skipped": n_skipped,
        "scores": scores,
    }


def fit_head(
    cell: Cell, study: Study, table: AnswerTable, folder: Path
) -> tuple[str, dict[str, Any]]:
    """A head on the frozen backbone; its folder, and what it took, the reading included."""
    target = folder / "models" / cell.name
    started, on_processor = time.monotonic(), time.process_time()
    backbone = load_backbone(study.args.model)
    found = fit(
        table, backbone, [method(cell.arm)], test_fraction=0.0, seed=cell.seed, overlong="skip"
    )
    (made,) = found.models
    made.save(target)
    return str(target), {
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(time.process_time() - on_processor, 1),
        "n_trained": made.artifact.head.n_params,
        "bytes": bytes_of(target),
        "n_left_out": found.reading.n_skipped,
        "looks": {},
    }


def tune(cell: Cell, study: Study, table: AnswerTable, folder: Path) -> tuple[str, dict[str, Any]]:
    """A training of the backbone; its classifier, and what it took."""
    args = study.args
    start = folder / "models" / Cell("last_token", cell.n_prompts, cell.seed).name
    run = RunFolder(folder / "models" / cell.name)
    options = RewardOptions(
        kind=study.kind,  # type: ignore[arg-type]
        epochs=args.epochs,
        batch_size=args.batch_size,
        device_batch=args.device_batch,
        max_length=args.max_length,
        overlong="skip",
        evaluate_steps=args.evaluate_steps,
        seed=cell.seed,
    )
    made = finetune(
        table,
        args.model,
        run,
        options=options,
        lora=LoraOptions(0 if cell.arm == "full" else args.rank),
        held_out=subset_for_looks(study.tests["near"]),
        start_head=start if cell.arm == "head_lora" else None,
        device=args.device,
    )
    own = made.model if made.adapter is None else made.adapter
    facts = made.facts
    return f"hf:{made.model}", {
        "seconds": facts["seconds"],
        "processor_seconds": facts["processor_seconds"],
        "n_trained": facts["n_trained"],
        "n_parameters": facts["n_parameters"],
        "bytes": bytes_of(own),
        "n_left_out": facts["data"]["n_skipped"],
        "steps": facts["steps"],
        "looks": {
            str(row["step"]): {
                name: round(row[name], DIGITS + 2)
                for name in ("eval_loss", "eval_accuracy")
                if name in row
            }
            for row in run.metrics()
            if "eval_loss" in row
        },
    }


def subset_for_looks(near: AnswerTable) -> AnswerTable:
    """A part of the near set: the same for all arms, chosen by nothing."""
    n = len(near.candidate_sets())
    return subset(near, min(N_LOOKS, n), 0)


def bytes_of(folder: Path) -> int:
    """Of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# -------------------------------------------------------------------------------------------- the figures


def statistics_of(scores: Sequence[float | None], table: AnswerTable) -> dict[str, PromptStatistic]:
    """Figures of one set: pair accuracy (a tie counts one half), or within-prompt AUROC and best-of-N.

    Answers that an arm left out are worth less than any other: all arms are measured on the same ones.
    """
    values = np.array([-np.inf if s is None else s for s in scores], dtype=np.float64)
    values = np.where(
        np.isinf(values), np.nanmin(np.where(np.isinf(values), np.nan, values)) - 1, values
    )
    judged = table.judged()
    ids = table.prompt_ids
    pairs = judged.preferences()
    if pairs:
        gaps = np.array([values[p.chosen] - values[p.rejected] for p in pairs])
        of = [ids[p.chosen] for p in pairs]
        return {"pair accuracy": mean_statistic((np.sign(gaps) + 1) / 2, of)}
    found: dict[str, PromptStatistic] = {
        "within-prompt AUROC": within_prompt_auroc_statistic(values, judged.labels, ids.tolist())
    }
    chosen = [max(group.rows, key=lambda row: values[row]) for group in table.candidate_sets()]
    kept = [row for row in chosen if not np.isnan(judged.labels[row])]
    found["best of N"] = mean_statistic(judged.labels[kept], ids[kept].tolist())
    return found


def summarise(done: Mapping[Cell, Mapping[str, Any]], study: Study) -> list[dict[str, Any]]:
    """A row a cell: figures with intervals, paired differences, cost."""
    rows = []
    for cell, found in done.items():
        other = done.get(Cell(study.args.against, cell.n_prompts, cell.seed))
        figures: dict[str, Any] = {}
        minus: dict[str, Any] = {}
        for name, table in study.tests.items():
            own = statistics_of(found["scores"][name], table)
            figures[name] = {n: clustered_bootstrap(s).as_dict(DIGITS) for n, s in own.items()}
            if other is not None and other is not found:
                against = statistics_of(other["scores"][name], table)
                minus[name] = {
                    n: paired_difference(own[n], against[n]).as_dict(DIGITS) for n in own
                }
        cost = {key: value for key, value in found.items() if key != "scores"}
        rows.append({**cost, "figures": figures, f"minus {study.args.against}": minus})
    return rows


# ------------------------------------------------------------------------------------------------ running


def cells_of(args: argparse.Namespace, n_prompts: int) -> list[Cell]:
    """All cells, a size after the other; `head_lora` behind the head that it starts from."""
    sizes = [n_prompts if size == "all" else int(size) for size in args.sizes.split(",")]
    return [
        Cell(arm, size, seed)
        for size in dict.fromkeys(sizes)
        for seed in range(args.seeds)
        for arm in ARMS
        if arm in args.arms.split(",")
    ]


def study_of(args: argparse.Namespace) -> Study:
    """The data, checked.

    Raises:
        DataError: a set shares prompts with what is learnt from.
        RecipeError: an unknown arm, or head_lora without last_token.
    """
    arms = args.arms.split(",")
    for arm in (*arms, args.against):
        if arm not in ARMS:
            raise RecipeError(f"got the arm {arm!r}. {did_you_mean(arm, ARMS)}")
    if "head_lora" in arms and "last_token" not in arms:
        raise RecipeError("the arm head_lora starts from the head of last_token; name both")
    tests = {"near": load_table(args.near)}
    for named in args.far:
        name, equals, path = named.partition("=")
        if not equals or name in tests:
            raise RecipeError(f"got --far {named!r}; expected NAME=FILE with a name of its own")
        tests[name] = load_table(path)
    if args.test_prompts:
        sizes = {name: min(args.test_prompts, len(t.candidate_sets())) for name, t in tests.items()}
        tests = {name: subset(table, sizes[name], 0) for name, table in tests.items()}
    learnt = load_table(args.fit)
    prompts = {answer.prompt.key for answer in learnt.answers}
    for name, table in tests.items():
        shared = prompts & {answer.prompt.key for answer in table.answers}
        if shared:
            raise DataError(
                f"the set {name!r} shares {len(shared)} prompts with {args.fit}; expected none. Split by "
                "prompt first"
            )
    return Study(learnt, tests, args)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Every cell, then the figures; the result is written after each."""
    check_writable(args.output)
    study = study_of(args)
    done: dict[Cell, Mapping[str, Any]] = {}
    for cell in cells_of(args, len(study.fit.candidate_sets())):
        kept = args.output / "arms" / f"{cell.name}.json"
        if not kept.is_file():
            print(cell.name, flush=True)
            write_json(kept, run_cell(cell, study, args.output))
        done[cell] = loads(kept.read_text("utf-8"))
        result = {**facts_of(study), "rows": summarise(done, study)}
        write_json(args.result, result)
    return result


def facts_of(study: Study) -> dict[str, Any]:
    """What was compared, where, with what."""
    args = study.args
    named = (
        "near",
        "far",
        "sizes",
        "arms",
        "against",
        "epochs",
        "batch_size",
        "rank",
        "max_length",
    )
    return {
        "what": "frozen heads against fine-tuning on the same rows",
        "command": " ".join(["python recipes/frozen_vs_finetuned/run.py", *map(str, sys.argv[1:])]),
        "model": args.model,
        "fit": Path(args.fit).name,
        "kind": study.kind,
        "options": {name: getattr(args, name) for name in named},
        "n_prompts": {
            "fit": len(study.fit.candidate_sets()),
            **{name: len(table.candidate_sets()) for name, table in study.tests.items()},
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
            "device": args.device,
        },
        "versions": {n: version(n) for n in ("torch", "transformers", "trl", "peft")},
    }


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("fit", help="what is learnt from: pairs, or rollouts with labels")
    add("--near", required=True, help="held-out prompts of the same distribution")
    add("--far", action="append", default=[], help="NAME=FILE of another one; may be given again")
    add("--model", default="smollm2-135m")
    add("--sizes", default="64,128,256,512,all", help="prompts that are learnt from")
    add("--arms", default=",".join(ARMS))
    add("--test-prompts", type=int, default=0, help="of each set, drawn by a hash; 0 = all")
    add("--against", default="lora", help="the arm that differences are taken to")
    add("--seeds", type=int, default=1)
    add("--epochs", type=float, default=1.0)
    add("--batch-size", type=int, default=16)
    add("--device-batch", type=int, default=4)
    add("--rank", type=int, default=16)
    add("--max-length", type=int, default=1024)
    add("--evaluate-steps", type=int, default=5, help="updates between two looks; 0 = none")
    add("--device", default="cpu")
    add("-o", "--output", type=Path, required=True, help="models and arms, out of version control")
    add("--result", type=Path, required=True, help="the figures, one JSON file")
    return parser.parse_args(words)


def main() -> None:
    """Run, or say what is wrong."""
    try:
        result = run(parse())
    except RetrmError as error:
        sys.exit(f"error: {error}")
    for row in result["rows"]:
        cells = [
            f"{name} {metric} {v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"
            for name, found in row["figures"].items()
            for metric, v in found.items()
        ]
        print(f"{row['arm']:11} n={row['n_prompts']:<6} {'  '.join(cells)}  {row['seconds']:.0f} s")


if __name__ == "__main__":
    main()
