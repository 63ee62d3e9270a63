"""GRPO with TRL on SmolLM2: does the mean score rise, and how far do the scores of its own states drift?

A head is fitted on graded answers of the policy as it is before training; on a frozen copy of the model it is the
reward. Beside it, with weight 0, the same head reads the states of the policy that is trained; fixed probe answers
show how far its scores move although the answers do not. Questions that neither the head nor the training has seen
are answered before and after, judged by the frozen reward and by the grader.

    python recipes/grpo/train.py [--steps 80] [--scorer NAME | --url URL] [--out DIR]

Needs `pip install trl datasets peft`.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from held_out import compared, drawn, readable
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from retrm.adapters.trl import PolicyStatesReward, RetrmReward
from retrm.backbone.load import load_backbone, model_folder, resolve_model
from retrm.data.load import load_table
from retrm.data.problems import Problem, read_problems
from retrm.files import write_json
from retrm.fitting.fit import fit
from retrm.methods import METHODS
from retrm.records import Answer, AnswerTable
from retrm.scorers.open import open_scorer

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
ROLLOUTS = HERE.parent / "demo" / "rollouts.jsonl"
# What the demo compares as "mean, layer 20": of its heads the best one that reads a single layer.
HEAD = replace(
    METHODS["last_token"].with_changes(
        recipe={"layers": "20", "point": "residual", "pooling": "mean"}
    ),
    name="mean, layer 20",
)
LOGGED = {  # of TRL, a number a step
    "score_mean": "rewards/retrm/mean",
    "score_std": "rewards/retrm/std",
    "own_mean": "rewards/retrm_policy_states/mean",
    "completion_tokens": "completions/mean_length",
    "cut_share": "completions/clipped_ratio",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
}


@dataclass(frozen=True)
class Parts:
    """The questions, each in one part only.

    Attributes:
        head: graded answers that the head is fitted on.
        probes: graded answers to further questions, of which a right and a wrong one are taken each.
        training: questions of the training, those of the probes among them.
        held_out: questions that are answered before and after.
    """

    head: AnswerTable
    probes: AnswerTable
    training: list[Problem]
    held_out: list[Problem]


def main() -> None:
    """Train, and write what was seen."""
    args, began = parse(), time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    parts = parts_of(args)
    head = args.head or fitted(parts.head, args.out / "head")
    probes, labels = probes_of(parts.probes, args.probes)
    judge = f"retrm:{args.url}" if args.url else args.scorer or str(head)
    frozen = open_scorer(judge)

    folder = model_folder(resolve_model(MODEL), print)
    torch.manual_seed(args.seed)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    own = PolicyStatesReward(
        *(head, policy, tokenizer), probes=probes, labels=labels, every=args.every
    )
    backbone = readable(policy, tokenizer)
    before = drawn(backbone, parts.held_out, frozen, **drawing(args))
    print(f"before: mean score {before.scores.mean():.3f}, right {before.correct.mean():.3f}")
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[RetrmReward(judge), own],
        args=settings(args),
        train_dataset=Dataset.from_list(
            [{"prompt": [m.as_dict() for m in one.prompt.messages]} for one in parts.training]
        ),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(
            r=args.rank,
            lora_alpha=2 * args.rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    own.measure(trainer.state.global_step)
    after = drawn(backbone, parts.held_out, frozen, **drawing(args))
    own_scores = np.array(own_scores_of(own, after.answers))
    report(args, trainer.state.log_history, own, compared(before, after, own_scores), began)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80, help="default: %(default)s")
    parser.add_argument("--scorer", help="the reward, by any name that `retrm score` takes")
    parser.add_argument("--url", help="of a retrm server whose scores are the reward")
    parser.add_argument("--head", type=Path, help="for the policy's own states; default: fit one")
    parser.add_argument("--head-prompts", type=int, default=80, help="prompts it is fitted on")
    parser.add_argument("--held-out", type=int, default=64, help="prompts, answered at both ends")
    parser.add_argument("--held-out-answers", type=int, default=4, help="to each of them")
    parser.add_argument("--probes", type=int, default=24, help="fixed answers, half of them right")
    parser.add_argument("--every", type=int, default=8, help="steps between measurements of drift")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="default: %(default)s")
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA that is trained")
    parser.add_argument("--tokens", type=int, default=40, help="most of a completion")
    parser.add_argument("--generations", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--prompts-per-step", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/grpo"), help="default: %(default)s")
    return parser.parse_args()


def settings(args: argparse.Namespace) -> GRPOConfig:
    """Of the trainer: on the CPU, in float32; the head on the policy's own states weighs nothing."""
    return GRPOConfig(
        output_dir=str(args.out / "trainer"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=args.generations * args.prompts_per_step,
        num_generations=args.generations,
        max_completion_length=args.tokens,
        max_steps=args.steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        reward_weights=[1.0, 0.0],
        beta=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
    )


def drawing(args: argparse.Namespace) -> dict[str, int]:
    """How the held-out questions are answered."""
    return {"n": args.held_out_answers, "max_new_tokens": args.tokens, "seed": args.seed}


def parts_of(args: argparse.Namespace) -> Parts:
    """Questions in an order that the seed gives: held out first, then those of the head, then the rest."""
    table, problems = load_table(ROLLOUTS), read_problems(ROLLOUTS)
    order = np.random.default_rng(args.seed).permutation(len(problems)).tolist()
    held_out, head = order[: args.held_out], order[args.held_out :][: args.head_prompts]
    training = order[args.held_out + args.head_prompts :]
    return Parts(
        head=answers_to([problems[i] for i in head], table),
        probes=answers_to([problems[i] for i in training], table),
        training=[problems[i] for i in training],
        held_out=[problems[i] for i in held_out],
    )


def answers_to(problems: Sequence[Problem], table: AnswerTable) -> AnswerTable:
    """The graded answers to some of the questions."""
    ids = {problem.prompt_id for problem in problems}
    return table.take([row for row, own in enumerate(table.prompt_ids) if own in ids])


def fitted(table: AnswerTable, folder: Path) -> Path:
    """A head on the policy as it is before training."""
    (made,) = fit(table, load_backbone(MODEL), [HEAD], source="demo").models
    made.save(folder)
    return folder


def probes_of(table: AnswerTable, n: int) -> tuple[list[Answer], list[float]]:
    """One right and one wrong answer of prompts that the head has not seen."""
    probes: list[Answer] = []
    labels: list[float] = []
    for group in table.candidate_sets():
        own = {float(table.labels[row]): row for row in reversed(group.rows)}
        if {0.0, 1.0} <= own.keys() and len(probes) + 2 <= n:
            probes += [table.answers[own[1.0]], table.answers[own[0.0]]]
            labels += [1.0, 0.0]
    return probes, labels


def own_scores_of(own: PolicyStatesReward, answers: Sequence[Answer]) -> list[float]:
    """Scores of the trained policy's own states, of the very tokens that it drew."""
    return own(
        [[m.as_dict() for m in answer.prompt.messages] for answer in answers],
        [answer.response for answer in answers],
        completion_ids=[answer.response_ids or () for answer in answers],
    )


def report(
    args: argparse.Namespace,
    history: Sequence[dict[str, Any]],
    own: PolicyStatesReward,
    held_out: dict[str, Any],
    began: float,
) -> None:
    """Say and write how the scores went, and how far the own states' scores drifted."""
    steps = [row for row in history if LOGGED["score_mean"] in row]
    results = {
        "what": "GRPO on SmolLM2-135M with a frozen head as reward, and the same head on the policy's states",
        "command": " ".join(["python recipes/grpo/train.py", *sys.argv[1:]]),
        "model": MODEL,
        "reward": "server" if args.url else args.scorer or HEAD.name,
        "options": {k: v for k, v in vars(args).items() if k not in ("url", "out", "head")},
        "steps": [
            {
                "step": number,
                **{name: row[key] for name, key in LOGGED.items() if key in row},
            }
            for number, row in enumerate(steps, 1)
        ],
        "held_out": held_out,
        "drift": [vars(point) for point in own.drift.points],
        "drift_in_words": own.drift.in_words,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
        },
        "versions": {name: version(name) for name in ("retrm", "torch", "transformers", "trl")},
    }
    write_json(args.out / "results.json", results)
    print(json.dumps({k: v["difference"] for k, v in held_out["measures"].items()}, indent=1))
    print(own.drift.in_words)


if __name__ == "__main__":
    main()
