"""The small proof: a 135M judge before training, after its cold start and after three kinds of RL.

    python recipes/judges/pairs.py                 # data, in runs/judges/data
    python recipes/judges/run.py                   # everything; about an hour of one core; a killed run goes on
    python recipes/judges/page.py                  # docs/results/judges.md from the results

StableReinforce, Reinforce++ and GRPO start from the same cold-started judge, with the same rewards, number of
rollouts, updates and seeds. The third of their four sets of rollouts is made stale on purpose: its old
log-probabilities are those of the model before the cold start, which found the form of a judgement very
unlikely. The cold-start traces are written by rules (pairs.py), not by a language model.
"""

import argparse
import gc
import gzip
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrm.backbone.load import load_backbone
from retrm.data.load import load_table
from retrm.errors import FitError
from retrm.files import atomic_write, write_json
from retrm.finetuning.labelled import LabelledPair, load_pairs, load_traces
from retrm.finetuning.language_model import LoraOptions, load_trainable, versions
from retrm.finetuning.policy import PRESETS, PolicyOptions
from retrm.finetuning.reinforce import ReinforceOptions, reinforce
from retrm.finetuning.rewards import R1RewardReward
from retrm.finetuning.run_folder import RunFolder
from retrm.finetuning.sft import SftOptions, train_on_traces
from retrm.finetuning.trainer import PolicyTrainer
from retrm.judges.asking import LocalJudgeModel
from retrm.judges.cache import ReplyCache, Sampling
from retrm.judges.comparing import Comparer, Pair, Reading
from retrm.judges.registry import get_template
from retrm.metrics.intervals import clustered_bootstrap
from retrm.metrics.statistics import mean_statistic

MODEL = "smollm2-135m"
TOKENS = 56
SFT = SftOptions(
    epochs=2, learning_rate=1e-4, batch_size=8, device_batch=8, max_length=160, save_steps=12
)
# Low-rank updates for RL, because the backward pass is what the time goes to.
LORA = LoraOptions(rank=8)
RL = ReinforceOptions(
    steps=8,
    batch_size=14,
    device_batch=14,
    updates=2,
    group_size=1,
    learning_rate=2e-4,
    max_new_tokens=TOKENS,
    sample_steps=2,
    save_steps=2,
)
# No KL in any of the three, as in the paper of StableReinforce: the reference would cost a pass.
POLICIES: dict[str, tuple[PolicyOptions, int]] = {
    "stable_reinforce": (PRESETS["stable_reinforce"], 1),
    "reinforce_pp": (PRESETS["reinforce_pp"], 1),
    "grpo": (replace(PRESETS["grpo"], kl=0.0), 7),
}
SEEDS = (0, 1, 2)
STALE_SET = 2  # counted from 0


class StaleTrainer(PolicyTrainer):
    """One set of rollouts carries the log-probabilities of the model before the cold start."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.state.global_step // RL.updates == STALE_SET:
            base, _ = load_trainable(MODEL)
            batch["old_per_token_logps"] = written_logps(base, batch)
        return batch


@torch.no_grad()
def written_logps(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of the written tokens; (batch, tokens)."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    new = batch["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=seen, logits_to_keep=new + 1).logits[:, :-1]
    return logits.log_softmax(-1).gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)


def measured(
    model: str, pairs: Sequence[LabelledPair], out: Path, name: str, template: Any
) -> dict:
    """Verdicts in both orders, greedy; kept, so that a killed run pays for none twice."""
    kept = out / "measured" / f"{name}.json"
    if kept.is_file():
        return json.loads(kept.read_text("utf-8"))
    started, on_processor = time.monotonic(), time.process_time()
    comparer = Comparer(
        LocalJudgeModel(load_backbone(model), batch_size=26),
        template,
        sampling=Sampling(max_new_tokens=TOKENS),
        cache=ReplyCache(out / "replies" / f"{name}.jsonl"),
    )
    outcomes = comparer.compare([Pair(p.prompt, p.first, p.second) for p in pairs])
    rows = [
        row_of(i, pair, reading)
        for i, (pair, outcome) in enumerate(zip(pairs, outcomes, strict=True))
        for reading in outcome.readings
    ]
    made = {"name": name, "model": model if model == MODEL else name, "rows": rows}
    made["seconds"] = round(time.monotonic() - started, 1)
    made["processor_seconds"] = round(time.process_time() - on_processor, 1)
    made["counts"] = {k: v for k, v in comparer.counts.as_dict().items() if k != "from_cache"}
    write_json(kept, made)
    return made


def row_of(number: int, pair: LabelledPair, reading: Reading) -> dict[str, Any]:
    """What is published of one output."""
    return {
        "pair": number,
        "prompt_id": pair.prompt_id,
        "kind": kind_of(pair),
        "swapped": reading.is_swapped,
        "label": pair.label,
        "winner": reading.winner,
        "problem": reading.verdict.problem,
        "output": reading.reply.text,
        "tokens": reading.reply.n_new_tokens,
    }


def kind_of(pair: LabelledPair) -> str:
    """By what the candidates are; the file of pairs says it too, but its columns do not come along."""
    if pair.prompt[0].content.startswith("What is ") and "+" in pair.prompt[0].content:
        return "sum"
    refused = any(word in f"{pair.first} {pair.second}" for word in ("decline", "cannot discuss"))
    return "refusal" if refused else "topic"


def interval(values: Sequence[float], prompt_ids: Sequence[str]) -> dict[str, float]:
    return clustered_bootstrap(mean_statistic(values, prompt_ids)).as_dict(4)


def figures(rows: Sequence[dict]) -> dict[str, Any]:
    """Over both orders: an output without a verdict is wrong, and nothing is left out."""
    right = [float(row["winner"] == row["label"]) for row in rows]
    ids = [row["prompt_id"] for row in rows]
    shown_first = [
        (row["winner"] == "first") != row["swapped"] for row in rows if row["winner"] is not None
    ]
    by_pair: dict[int, list[dict]] = {}
    for row in rows:
        by_pair.setdefault(row["pair"], []).append(row)
    both = [float(all(r["winner"] == r["label"] for r in two)) for two in by_pair.values()]
    read = [two for two in by_pair.values() if None not in [r["winner"] for r in two]]
    pair_ids = [two[0]["prompt_id"] for two in by_pair.values()]
    return {
        "parse_rate": interval([float(row["winner"] is not None) for row in rows], ids),
        "accuracy": interval(right, ids),
        "both_orders_right": interval(both, pair_ids),
        "agreement": float(np.mean([a["winner"] == b["winner"] for a, b in read]))
        if read
        else None,
        "first_rate": float(np.mean(shown_first)) if shown_first else None,
        "mean_tokens": float(np.mean([row["tokens"] for row in rows])),
        "by_kind": {
            kind: float(
                np.mean([r for r, row in zip(right, rows, strict=True) if row["kind"] == kind])
            )
            for kind in sorted({row["kind"] for row in rows})
        },
    }


def head_figures(data: Path, out: Path) -> dict[str, Any]:
    """A head on the same backbone's states, fitted on all training pairs and measured on the same pairs."""
    from retrm.fitting.fit import fit
    from retrm.methods import METHODS

    kept = out / "head.json"
    if kept.is_file():
        return json.loads(kept.read_text("utf-8"))
    started, on_processor = time.monotonic(), time.process_time()
    both = out / "head_pairs.jsonl"
    text = "".join((data / f"{name}.jsonl").read_text("utf-8") for name in ("cold", "train"))
    with atomic_write(both, "w") as file:
        file.write(text)
    table = load_table(both)
    backbone = load_backbone(MODEL)
    method = METHODS["last_token"].with_changes(loss="bradley_terry")
    (model,) = fit(table, backbone, [method], test_fraction=0.0, source="judges").models
    fitted = time.monotonic() - started
    held = load_table(data / "held_out.jsonl")
    scores = model.score(held.answers)
    preferences = held.preferences()
    # A tie would be half a right answer; an order does not exist for a head.
    gaps = [float(scores[p.chosen] - scores[p.rejected]) for p in preferences]
    right = [0.5 * (1 + np.sign(gap)) for gap in gaps]
    ids = [held.answers[p.chosen].prompt_id for p in preferences]
    made = {
        "accuracy": interval(right, ids),
        "fit_seconds": round(fitted, 1),
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(time.process_time() - on_processor, 1),
        "n_pairs": len(table.preferences()),
        "gaps": gaps,
    }
    write_json(kept, made)
    return made


def trained(
    policy: str, seed: int, cold: Path, pairs: Sequence[LabelledPair], out: Path, template: Any
) -> dict[str, Any]:
    """One run of RL; one that ends in a loss that is no number says so and has no judge."""
    options, group = POLICIES[policy]
    folder = RunFolder(out / f"{policy}-{seed}")
    broken = folder.path / "broken.json"
    if broken.is_file():
        return json.loads(broken.read_text("utf-8"))
    try:
        facts = reinforce(
            pairs,
            str(cold),
            template,
            R1RewardReward(),
            folder,
            policy=options,
            options=replace(RL, seed=seed, group_size=group),
            lora=LORA,
            trainer_class=StaleTrainer,
        )
    except FitError as error:
        facts = {"broken": str(error)}
        write_json(broken, facts)
    return {**facts, "metrics": folder.metrics()}


def main() -> None:
    """All stages, in the order in which they say most."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/judges"))
    parser.add_argument("--results", type=Path, default=Path("docs/results/judges"))
    args = parser.parse_args()
    data, out = args.out / "data", args.out
    template = get_template("r1_reward", wording=data / "wording.txt")
    held_out = load_pairs(data / "held_out.jsonl")
    train = load_pairs(data / "train.jsonl")
    results: dict[str, Any] = {"judges": {}, "runs": {}}

    traces = load_traces(data / "traces.jsonl", template)
    cold = RunFolder(out / "cold")
    results["cold"] = train_on_traces(traces, MODEL, template, cold, options=SFT)
    judged = [measured(str(cold.model), held_out, out, "cold", template)]
    judged.append(measured(MODEL, held_out, out, "before", template))
    results["head"] = head_figures(data, out)
    collect(judged, results, args.results)
    for seed in SEEDS:
        for policy in POLICIES:
            facts = trained(policy, seed, cold.model, train, out, template)
            results["runs"][f"{policy}-{seed}"] = facts
            folder = out / f"{policy}-{seed}"
            if (folder / "model").is_dir():
                judged.append(measured(str(folder / "model"), held_out, out, folder.name, template))
            gc.collect()
            collect(judged, results, args.results)


def collect(judged: Sequence[dict], results: dict[str, Any], where: Path) -> None:
    """What is published, after every stage, so that an unfinished run has results, too."""
    for one in judged:
        plain = {key: one[key] for key in ("seconds", "processor_seconds", "counts")}
        results["judges"][one["name"]] = {**figures(one["rows"]), **plain}
    results["options"] = {
        "model": MODEL,
        "sft": asdict(SFT),
        "reinforce": asdict(RL),
        "lora": asdict(LORA),
        "stale_set": STALE_SET,
        "policies": {name: asdict(options) for name, (options, _) in POLICIES.items()},
        "group_sizes": {name: group for name, (_, group) in POLICIES.items()},
        "seeds": SEEDS,
        "max_new_tokens": TOKENS,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": versions(),
    }
    write_json(where / "results.json", results)
    text = "".join(
        json.dumps({"judge": one["name"], **row}, ensure_ascii=False) + "\n"
        for one in judged
        for row in one["rows"]
    )
    with atomic_write(where / "verdicts.jsonl.gz") as file:
        file.write(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
