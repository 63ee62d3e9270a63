"""Supervised training on traces, by TRL's SFTTrainer.

    loss = - sum_t log p(y_t | x, y_<t) over the tokens of the trace, and none of the prompt

RM-R1 (arXiv 2505.02387, distillation) and UnifiedReward-Think (arXiv 2505.03318, stages 1 and 2) train the
plain likelihood of the whole trace. A trace that does not fit is refused: cut, it would end without a
verdict.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retrm.errors import DataError, FitError, RecipeError
from retrm.finetuning.labelled import Trace
from retrm.finetuning.language_model import (
    LoraOptions,
    check_trainers,
    load_trainable,
    lora_config,
    save_trained,
    versions,
)
from retrm.finetuning.logged import FolderLog, silence
from retrm.finetuning.run_folder import RunFolder
from retrm.judges.template import JudgeTemplate, template_mark


@dataclass(frozen=True)
class SftOptions:
    """How traces are trained on.

    Attributes:
        epochs: times that every trace is seen (RM-R1: 1; UnifiedReward-Think: 3).
        learning_rate: highest; 5e-6 for 7B in RM-R1. Models of 0.1B, and low-rank updates, take ten
            times that.
        batch_size: traces an update.
        device_batch: of them, how many go through the model at once.
        max_length: most tokens of prompt and trace together.
        warmup: share of the steps in which the rate rises; it then falls as a cosine.
        save_steps: updates between two checkpoints.
        seed: of the order.
    """

    epochs: float = 1.0
    learning_rate: float = 5e-6
    batch_size: int = 16
    device_batch: int = 4
    max_length: int = 12288
    warmup: float = 0.03
    save_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.learning_rate <= 0:
            raise RecipeError(
                f"got epochs={self.epochs} and learning_rate={self.learning_rate}; expected both above 0"
            )
        check_batches(self.batch_size, self.device_batch)


def check_batches(batch_size: int, device_batch: int) -> None:
    """Refuse a batch that is no whole number of device batches.

    Raises:
        RecipeError: says so.
    """
    if device_batch < 1 or batch_size < 1 or batch_size % device_batch:
        raise RecipeError(
            f"got batch_size={batch_size} and device_batch={device_batch}; expected the first to be a "
            "multiple of the second, both 1 or more"
        )


def train_on_traces(
    traces: Sequence[Trace],
    model: str,
    template: JudgeTemplate,
    folder: RunFolder,
    *,
    options: SftOptions | None = None,
    lora: LoraOptions | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> dict[str, Any]:
    """Train, and write the judge; a killed run goes on from its last checkpoint.

    Args:
        traces: that are learnt.
        model: by any name that retrm knows.
        template: that renders the prompts.
        folder: of the run.
        options: of the training.
        lora: low-rank updates; None = all weights.
        dtype: float32 or bfloat16.
        device: cpu, cuda, ...

    Returns:
        Facts of the run: steps, seconds, traces, losses, versions.

    Raises:
        ArtifactError: the folder holds another run.
        BackboneError: the model will not do.
        DataError: no trace, or one that is too long.
        MissingExtraError: trl, accelerate or peft is missing.
    """
    options, lora = options or SftOptions(), lora or LoraOptions()
    if not traces:
        raise DataError(
            "got no trace to train on; expected one or more. See what the filter counted"
        )
    check_trainers()
    folder.begin(
        {
            "kind": "sft",
            "model": model,
            "template": template.name,
            "template_mark": template_mark(template),
            "n_traces": len(traces),
            "traces_sha": _sha(traces),
            "options": asdict(options),
            "lora": asdict(lora),
            "dtype": dtype,
        }
    )
    if folder.is_done:
        return folder.facts()
    policy, tokenizer = load_trainable(model, dtype=dtype, device=device)
    rows = [_row(trace, template) for trace in traces]
    _check_lengths(rows, traces, tokenizer, options.max_length)
    trainer = _trainer(policy, tokenizer, rows, folder, options, lora, dtype, device)
    checkpoint = folder.newest_checkpoint()
    folder.forget_after(_step_of(checkpoint))
    silence(trainer)
    started, on_processor = time.monotonic(), time.process_time()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    facts = {
        "steps": trainer.state.global_step,
        "resumed_at": _step_of(checkpoint),
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(time.process_time() - on_processor, 1),
        "n_traces": len(traces),
        "n_trained": save_trained(trainer.model, tokenizer, folder.path),
        "loss": [row["loss"] for row in folder.metrics() if "loss" in row],
        "versions": versions(),
    }
    folder.finish(facts)
    return facts


def _trainer(
    policy: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    folder: RunFolder,
    options: SftOptions,
    lora: LoraOptions,
    dtype: str,
    device: str,
) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(folder.checkpoints),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=options.warmup,
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        per_device_train_batch_size=options.device_batch,
        gradient_accumulation_steps=options.batch_size // options.device_batch,
        max_length=options.max_length,
        logging_steps=1,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=1,
        report_to=[],
        seed=options.seed,
        bf16=dtype == "bfloat16" and device != "cpu",
        use_cpu=device == "cpu",
        gradient_checkpointing=device != "cpu",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
    )
    return SFTTrainer(
        model=policy,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(lora),
        callbacks=[FolderLog(folder)],
    )


def _row(trace: Trace, template: JudgeTemplate) -> dict[str, Any]:
    pair = trace.pair
    messages = template.render(pair.prompt, pair.first, pair.second)
    return {
        "prompt": [message.as_dict() for message in messages],
        "completion": [{"role": "assistant", "content": trace.text}],
    }


def _check_lengths(
    rows: Sequence[dict[str, Any]], traces: Sequence[Trace], tokenizer: Any, most: int
) -> None:
    for row, trace in zip(rows, traces, strict=True):
        ids = tokenizer.apply_chat_template(
            row["prompt"] + row["completion"], tokenize=True, return_dict=False
        )
        if len(ids) > most:
            raise DataError(
                f"{trace.pair.where or trace.pair.prompt_id}: prompt and trace have {len(ids)} tokens, "
                f"more than max_length={most}. Cut, the trace would lose its verdict: raise max_length, "
                "or leave it out"
            )


def _sha(traces: Sequence[Trace]) -> str:
    import hashlib
    import json

    body = json.dumps([trace.as_dict() for trace in traces], sort_keys=True)
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _step_of(checkpoint: Any) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.split("-")[-1])


def check_finite(loss: float, step: int, hint: str) -> None:
    """Stop a training whose loss is no number: its weights would be none after the next step.

    Raises:
        FitError: says at which step, and what may help.
    """
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise FitError(f"the loss is {loss} at step {step}; {hint}")
