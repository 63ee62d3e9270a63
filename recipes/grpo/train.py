"""GRPO with TRL on SmolLM2: the mean score rises, and the scores of its own states drift.

The reward is any scorer (`shortest` by default, whose rise needs no explanation), a folder made by retrm fit, or
a server. Beside it, with weight 0, a head reads the states of the policy itself; fixed probe answers show how far
its scores move although the answers do not.

    python recipes/grpo/train.py [--steps 60] [--scorer shortest | --url URL] [--head FOLDER] [--out DIR]

Needs `pip install trl datasets`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from retrm.adapters.trl import PolicyStatesReward, RetrmReward
from retrm.backbone.load import load_backbone, model_folder, resolve_model
from retrm.data.load import load_table
from retrm.files import write_json
from retrm.fitting.fit import fit
from retrm.methods import METHODS
from retrm.records import Answer, AnswerTable

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
ROLLOUTS = HERE.parent / "demo" / "rollouts.jsonl"
WINDOW = 10  # steps whose mean scores are compared, at both ends


def main() -> None:
    """Train, and write what was seen."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    table = load_table(ROLLOUTS)
    groups = table.candidate_sets()
    part = [row for group in groups[: args.head_prompts] for row in group.rows]
    head = args.head or fitted(table.take(part), args.out / "head")
    probes, labels = probes_of(table, groups[args.head_prompts :], args.probes)

    folder = model_folder(resolve_model(MODEL), print)
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    own = PolicyStatesReward(
        *(head, policy, AutoTokenizer.from_pretrained(folder)),
        probes=probes,
        labels=labels,
        every=args.every,
    )
    scorer = None if args.url else args.scorer
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[RetrmReward(scorer, url=args.url), own],
        args=settings(args),
        train_dataset=Dataset.from_list(prompts_of(table)),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    own.measure(trainer.state.global_step)
    report(args, trainer.state.log_history, own)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--scorer", default="shortest", help="default: %(default)s")
    parser.add_argument("--url", help="of a retrm server, instead of --scorer")
    parser.add_argument("--head", type=Path, help="for the policy's own states; default: fit one")
    parser.add_argument("--head-prompts", type=int, default=40, help="prompts it is fitted on")
    parser.add_argument("--probes", type=int, default=16, help="fixed answers, half of them right")
    parser.add_argument("--every", type=int, default=5, help="steps between measurements of drift")
    parser.add_argument("--learning-rate", type=float, default=1e-5, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=48, help="most of a completion")
    parser.add_argument("--generations", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/grpo"), help="default: %(default)s")
    return parser.parse_args()


def settings(args: argparse.Namespace) -> GRPOConfig:
    """Of the trainer: one prompt with its completions a step, on the CPU, in float32."""
    return GRPOConfig(
        output_dir=str(args.out / "trainer"),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=args.generations,
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


def fitted(table: AnswerTable, folder: Path) -> Path:
    """A head on the policy as it is before training."""
    (made,) = fit(table, load_backbone(MODEL), [METHODS["last_token"]], source="demo").models
    made.save(folder)
    return folder


def probes_of(table: AnswerTable, groups: Any, n: int) -> tuple[list[Answer], list[float]]:
    """One right and one wrong answer of prompts that the head has not seen."""
    probes: list[Answer] = []
    labels: list[float] = []
    for group in groups:
        own = {float(table.labels[row]): row for row in reversed(group.rows)}
        if {0.0, 1.0} <= own.keys() and len(probes) + 2 <= n:
            probes += [table.answers[own[1.0]], table.answers[own[0.0]]]
            labels += [1.0, 0.0]
    return probes, labels


def prompts_of(table: AnswerTable) -> list[dict[str, Any]]:
    """Rows for TRL: conversations that wait for an answer."""
    prompts = {answer.prompt_id: answer.prompt for answer in table.answers}
    return [{"prompt": [m.as_dict() for m in prompt.messages]} for prompt in prompts.values()]


def report(
    args: argparse.Namespace, history: list[dict[str, Any]], own: PolicyStatesReward
) -> None:
    """Say and write how the mean score went, and how far the own states' scores drifted."""
    means = [row["rewards/retrm/mean"] for row in history if "rewards/retrm/mean" in row]
    window = min(WINDOW, max(1, len(means) // 2))
    first, last = float(np.mean(means[:window])), float(np.mean(means[-window:]))
    results = {
        "model": MODEL,
        "scorer": "server" if args.url else args.scorer,
        "options": {k: str(v) for k, v in vars(args).items() if k != "url"},
        "mean_scores": means,
        "window": window,
        "first": first,
        "last": last,
        "own_mean_scores": [
            row[f"rewards/{own.__name__}/mean"] for row in history if "rewards/retrm/mean" in row
        ],
        "drift": [vars(point) for point in own.drift.points],
    }
    write_json(args.out / "results.json", results)
    print(json.dumps({"mean score, first steps": first, "last steps": last, "steps": len(means)}))
    print(own.drift.in_words)


if __name__ == "__main__":
    main()
