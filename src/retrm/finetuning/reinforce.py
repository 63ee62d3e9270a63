"""A whole run of reinforcement learning on labelled pairs: rollouts, rewards, the objective, what it leaves.

A step of the optimizer takes `batch_size` rollouts; `updates` of them share one set of rollouts, which are
then a little stale (R1-Reward: rollout batch 256, training batch 128). Objectives over groups draw `group_size`
rollouts a prompt, objectives over the batch one (R1-Reward) or as many as are asked for.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from retrm.errors import DataError, RecipeError
from retrm.finetuning.labelled import Label, LabelledPair
from retrm.finetuning.language_model import (
    LoraOptions,
    check_trainers,
    load_trainable,
    lora_config,
    save_trained,
    versions,
)
from retrm.finetuning.logged import FolderLog, silence
from retrm.finetuning.policy import PolicyOptions
from retrm.finetuning.rewards import RewardRule
from retrm.finetuning.run_folder import RunFolder
from retrm.finetuning.sft import check_batches
from retrm.judges.template import JudgeTemplate, template_mark


@dataclass(frozen=True)
class ReinforceOptions:
    """How rollouts are made and learnt from.

    Attributes:
        steps: updates of the weights.
        batch_size: rollouts an update. Below 11 sequences the three-sigma filter cannot fire.
        device_batch: of them, how many go through the model at once.
        updates: updates that one set of rollouts serves; above 1 the later ones are off-policy.
        group_size: rollouts of each prompt; 1 for objectives over the batch, 7 in RM-R1.
        learning_rate: constant. 1e-6 in the papers; ten times that for 0.1B or low-rank updates.
        max_new_tokens: a judgement is cut there, and has no verdict then.
        temperature: of the draws.
        sample_steps: steps between two sets of judgements to read.
        save_steps: steps between two checkpoints.
        seed: of order and draws.
    """

    steps: int = 100
    batch_size: int = 64
    device_batch: int = 8
    updates: int = 2
    group_size: int = 1
    learning_rate: float = 1e-6
    max_new_tokens: int = 512
    temperature: float = 1.0
    sample_steps: int = 10
    save_steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        check_batches(self.batch_size, self.device_batch)
        whole = ("steps", "updates", "group_size", "max_new_tokens", "sample_steps", "save_steps")
        for name in whole:
            if getattr(self, name) < 1:
                raise RecipeError(f"got {name}={getattr(self, name)}; expected 1 or more")
        if self.learning_rate <= 0 or self.temperature <= 0:
            raise RecipeError(
                f"got learning_rate={self.learning_rate}, temperature={self.temperature}; expected both "
                "above 0"
            )
        if (self.batch_size * self.updates) % self.group_size:
            raise RecipeError(
                f"got {self.batch_size * self.updates} rollouts a set in groups of {self.group_size}; "
                "expected a multiple"
            )

    @property
    def prompts_per_set(self) -> int:
        """Prompts that one set of rollouts takes."""
        return self.batch_size * self.updates // self.group_size


class JudgeReward:
    """A reward rule as TRL calls it: by keyword, with the column `label` of the rows.

    Args:
        rule: of the paper.
        template: that outputs are read with, for the share that can be read.
        folder: where judgements to read are written; None = nowhere.
        every: steps between two sets of them.
    """

    def __init__(
        self,
        rule: RewardRule,
        template: JudgeTemplate,
        *,
        folder: RunFolder | None = None,
        every: int = 10,
    ) -> None:
        self.rule = rule
        self.template = template
        self.folder = folder
        self.every = every
        self.__name__ = rule.name

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        label: Sequence[Label],
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        """What TRL asks for; further columns are none of ours."""
        outputs = [completion[-1]["content"] for completion in completions]
        earned = self.rule(outputs, label)
        verdicts = [self.template.parse(output) for output in outputs]
        if log_metric is not None:
            read = [verdict for verdict in verdicts if verdict.winner is not None]
            log_metric("parse_rate", len(read) / len(verdicts))
            log_metric("first_rate", _share([v.winner == "first" for v in read]))
            log_metric("copied_examples", _share([v.copies_example for v in verdicts]))
            for name in sorted({name for one in earned for name in one.parts}):
                values = [one.parts[name] for one in earned if name in one.parts]
                log_metric(f"reward_{name}", sum(values) / len(values))
        step = trainer_state.global_step if trainer_state is not None else 0
        if self.folder is not None and step % self.every == 0:
            for prompt, output, one, right in list(
                zip(prompts, outputs, earned, label, strict=True)
            )[:4]:
                row = {
                    "step": step,
                    "prompt": prompt[-1]["content"],
                    "label": right,
                    "output": output,
                }
                self.folder.append("samples.jsonl", {**row, "reward": one.reward, **one.parts})
        return [one.reward for one in earned]


class _Stop(TrainerCallback):
    """Ends a run after some steps as a kill would, checkpoint included; for tests of going on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        control.should_training_stop |= state.global_step >= self.step


def reinforce(
    pairs: Sequence[LabelledPair],
    model: str,
    template: JudgeTemplate,
    rule: RewardRule,
    folder: RunFolder,
    *,
    policy: PolicyOptions,
    options: ReinforceOptions | None = None,
    lora: LoraOptions | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    trainer_class: type | None = None,
    stop_at: int | None = None,
) -> dict[str, Any]:
    """Train a judge, and write it; a killed run goes on from its last checkpoint.

    Args:
        pairs: in the order in which they are shown.
        model: the start, by any name that retrm knows.
        template: that renders them.
        rule: that rewards.
        folder: of the run.
        policy: the objective.
        options: of rollouts and updates.
        lora: low-rank updates; None = all weights.
        dtype: float32 or bfloat16.
        device: cpu, cuda, ...
        trainer_class: instead of `PolicyTrainer`, a subclass of it for experiments.
        stop_at: leave after this step, to be gone on with later.

    Returns:
        Facts of the run; without `finished` where it stopped at `stop_at`.

    Raises:
        ArtifactError: the folder holds another run.
        BackboneError: the model or TRL will not do.
        DataError: fewer pairs than one set of rollouts takes, or prompts that are too long.
        FitError: the loss is no finite number.
        MissingExtraError: trl, accelerate or peft is missing.
    """
    options, lora = options or ReinforceOptions(), lora or LoraOptions()
    _check(pairs, template, rule, policy, options)
    check_trainers()
    folder.begin(
        {
            "kind": "reinforce",
            "model": model,
            "template": template.name,
            "template_mark": template_mark(template),
            "reward": dict(rule.settings),
            "n_pairs": len(pairs),
            "pairs_sha": _sha(pairs),
            "policy": asdict(policy),
            "options": asdict(options),
            "lora": asdict(lora),
            "dtype": dtype,
        }
    )
    if folder.is_done:
        return folder.facts()
    from retrm.finetuning.trainer import PolicyTrainer

    start, tokenizer = load_trainable(model, dtype=dtype, device=device)
    rows = _rows(pairs, template)
    _check_room(rows, tokenizer, start.config, options.max_new_tokens)
    checkpoint = folder.newest_checkpoint()
    step = 0 if checkpoint is None else int(checkpoint.name.split("-")[-1])
    folder.forget_after(step)
    from datasets import Dataset

    trainer = (trainer_class or PolicyTrainer)(
        start,
        JudgeReward(rule, template, folder=folder, every=options.sample_steps),
        policy=policy,
        args=_config(folder, options, dtype, device),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[FolderLog(folder), *([] if stop_at is None else [_Stop(stop_at)])],
        peft_config=lora_config(lora),
    )
    silence(trainer)
    started, on_processor = time.monotonic(), time.process_time()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    facts: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "resumed_at": step,
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(time.process_time() - on_processor, 1),
        "n_pairs": len(pairs),
        "versions": versions(),
    }
    if trainer.state.global_step < options.steps:
        return facts
    facts |= {"finished": True, "n_trained": save_trained(trainer.model, tokenizer, folder.path)}
    folder.finish(facts)
    return facts


def _config(folder: RunFolder, options: ReinforceOptions, dtype: str, device: str) -> Any:
    from retrm.finetuning.trainer import PolicyConfig

    accumulation = options.batch_size // options.device_batch
    return PolicyConfig(
        output_dir=str(folder.checkpoints),
        max_steps=options.steps,
        per_device_train_batch_size=options.device_batch,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation * options.updates,
        num_generations=options.group_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_completion_length=options.max_new_tokens,
        temperature=options.temperature,
        top_p=1.0,
        top_k=0,
        logging_steps=1,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=1,
        report_to=[],
        remove_unused_columns=False,
        seed=options.seed,
        bf16=dtype == "bfloat16" and device != "cpu",
        use_cpu=device == "cpu",
        gradient_checkpointing=device != "cpu",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
    )


def _rows(pairs: Sequence[LabelledPair], template: JudgeTemplate) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [
                message.as_dict()
                for message in template.render(pair.prompt, pair.first, pair.second)
            ],
            "label": pair.label,
        }
        for pair in pairs
    ]


def _check(
    pairs: Sequence[LabelledPair],
    template: JudgeTemplate,
    rule: RewardRule,
    policy: PolicyOptions,
    options: ReinforceOptions,
) -> None:
    """What can be known before a model is loaded."""
    if not (template.name == rule.template or template.name.startswith(rule.name)):
        raise RecipeError(
            f"got the reward {rule.name} for the template {template.name}; it reads other tags. Take the "
            "reward of the template"
        )
    if policy.scope == "group" and options.group_size < 2:
        raise RecipeError(
            f"got group_size={options.group_size} for an objective over groups; expected 2 or more "
            "(RM-R1: 7, UnifiedReward-Think: 8), or a policy with scope='batch'"
        )
    if len(pairs) < options.prompts_per_set:
        raise DataError(
            f"got {len(pairs)} pairs; one set of rollouts takes {options.prompts_per_set} prompts "
            f"(batch_size {options.batch_size} x updates {options.updates} / group_size "
            f"{options.group_size}). Give more pairs, or make the batch smaller"
        )
    sides = Counter(pair.label for pair in pairs)
    if min(sides["first"], sides["second"]) == 0:
        raise DataError(
            f"all {len(pairs)} pairs have their better candidate in the same place, so the place alone "
            "would be rewarded; expected both, about equally often"
        )


def _check_room(rows: Sequence[dict[str, Any]], tokenizer: Any, config: Any, new: int) -> None:
    room = getattr(config, "max_position_embeddings", None)
    lengths = [
        len(
            tokenizer.apply_chat_template(
                row["prompt"], tokenize=True, add_generation_prompt=True, return_dict=False
            )
        )
        for row in rows
    ]
    beyond = [i for i, n in enumerate(lengths) if room is not None and n + new > room]
    if beyond:
        raise DataError(
            f"{len(beyond)} of {len(rows)} prompts leave no room for {new} new tokens in the context of "
            f"{room} (the first is pair {beyond[0] + 1} with {lengths[beyond[0]]}). Leave them out, or "
            "lower max_new_tokens"
        )


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else float("nan")


def _sha(pairs: Sequence[LabelledPair]) -> str:
    body = json.dumps([pair.as_dict() for pair in pairs], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:16]
