"""TRL's RewardTrainer with our rows, our losses and our figures.

From TRL and transformers come the loop, the optimizer, checkpoints, resuming, low-rank updates, and sharding
(FSDP) or copies (DDP) through accelerate. What is replaced: rows are rendered and cut by us (TRL leaves
out long pairs without saying so), the loss is a `Task`'s, and several outputs are allowed.
"""

import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback
from trl import RewardConfig, RewardTrainer

from retrm.errors import RecipeError
from retrm.finetuning.classifier import HEAD, Classifier, RewardHead, reward_heads
from retrm.finetuning.language_model import LoraOptions, lora_config
from retrm.finetuning.logged import FolderLog
from retrm.finetuning.reward_options import RewardOptions
from retrm.finetuning.reward_rows import Rows
from retrm.finetuning.reward_tasks import MODEL_INPUTS, Outputs, Task, as_records, last_token
from retrm.finetuning.run_folder import RunFolder


class RewardModelTrainer(RewardTrainer):
    """One training of a `Task`.

    Args:
        classifier: to be trained.
        task: rows to batches, outputs to a loss.
        config: of the trainer.
        rows: that are trained on.
        held_out: that are looked at every now and then; None = no looks.
        lora: low-rank updates.
        folder: of the run, for its log.
    """

    def __init__(
        self,
        classifier: Classifier,
        task: Task,
        config: RewardConfig,
        rows: Rows,
        *,
        held_out: Rows | None,
        lora: LoraOptions,
        folder: RunFolder,
    ) -> None:
        self.task = task
        for head in reward_heads(classifier.model):
            head.keeps_states = task.needs_states
        n_outputs = classifier.model.config.num_labels
        # TRL takes one output only; its loss, which needs that, is not used.
        classifier.model.config.num_labels = 1
        super().__init__(
            model=classifier.model,
            args=config,
            data_collator=task.collate,
            train_dataset=Dataset.from_list(as_records(rows)),
            eval_dataset=None if held_out is None else Dataset.from_list(as_records(held_out)),
            processing_class=classifier.tokenizer,
            peft_config=lora_config(lora, head=HEAD),
            callbacks=[FolderLog(folder)],
        )
        self.model.config.num_labels = n_outputs
        self.remove_callback(PrinterCallback)  # the log is in the folder
        task.everywhere = self._everywhere

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """Rows are tokens already."""
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Ours is written at the end."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The task's loss; its figures go to the log, averaged over processes."""
        made = model(**{name: inputs[name] for name in MODEL_INPUTS}, use_cache=False)
        outputs = self._outputs(model, made.logits, inputs)
        loss, figures = self.task.loss(outputs, inputs)
        self._count(made.logits.detach(), inputs, figures)
        return (loss, made) if return_outputs else loss

    def _outputs(self, model: Any, logits: Tensor, inputs: dict[str, Tensor]) -> Outputs:
        head = trained_head(model)
        lengths = None
        if head.length_scores is not None:
            lengths = last_token(head.length_scores, inputs["stops"])
        found = Outputs(logits.float(), head.states, lengths, head.overlap)
        # Held any longer, the graph of this batch would live beside that of the next.
        head.states = head.length_scores = head.overlap = None
        return found

    def _count(self, logits: Tensor, inputs: dict[str, Tensor], figures: dict[str, Tensor]) -> None:
        mode = "train" if self.model.training else "eval"
        mine = self._metrics[mode]
        if mode == "train":
            n = self.accelerator.gather(inputs["stops"].sum()).sum().item()
            self._total_train_tokens += int(n)
            mine["num_tokens"] = [self._total_train_tokens]
        scores = logits.float().mean(dim=1)
        spread = {"mean_score": scores.mean(), "std_score": scores.std(correction=0)}
        for name, value in {**figures, **spread}.items():
            mine[name].append(self.accelerator.gather(value.detach()).mean().item())

    def _everywhere(self, values: Tensor) -> Tensor:
        """The values of all processes; gradients flow to the own ones, as if all were held here.

        Gradients are averaged over processes afterwards, hence the factor.
        """
        n = self.accelerator.num_processes
        if n == 1:
            return values
        parts = list(self.accelerator.gather(values.detach()).chunk(n))
        parts[self.accelerator.process_index] = values * n - values.detach() * (n - 1)
        return torch.cat(parts)


def trained_head(model: torch.nn.Module) -> RewardHead:
    """The score layer that is trained; low-rank updates keep a copy of the one before."""
    return next(head for head in reward_heads(model) if head.weight.requires_grad)


def trainer_config(
    options: RewardOptions,
    folder: Path,
    *,
    n_rows: int,
    is_low_rank: bool,
    dtype: str,
    device: str,
    member: int = 0,
) -> RewardConfig:
    """The trainer's settings.

    Args:
        options: of the training.
        folder: for checkpoints.
        n_rows: that are trained on.
        is_low_rank: whether low-rank updates are trained.
        dtype: of the arithmetic; weights are float32 in any case.
        device: cpu or an accelerator.
        member: of an ensemble: it changes the order of the rows and nothing else.

    Raises:
        RecipeError: the batch cannot be shared by the processes.
    """
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))
    together = options.device_batch * n_processes
    if options.batch_size % together:
        raise RecipeError(
            f"got batch_size={options.batch_size} for {n_processes} processes with device_batch="
            f"{options.device_batch}; expected a multiple of {together}"
        )
    return RewardConfig(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        learning_rate=options.rate(is_low_rank=is_low_rank),
        lr_scheduler_type="cosine",
        # Rounded up, as a share would be, the only step of a short training would have a rate of 0.
        warmup_steps=int(options.warmup * options.epochs * n_rows / options.batch_size),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_gradient,
        per_device_train_batch_size=options.device_batch,
        per_device_eval_batch_size=options.device_batch,
        gradient_accumulation_steps=options.batch_size // together,
        max_length=None,
        logging_steps=1,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=1,
        eval_strategy="steps" if options.evaluate_steps else "no",
        eval_steps=options.evaluate_steps or None,
        eval_on_start=bool(options.evaluate_steps),
        prediction_loss_only=True,
        remove_unused_columns=False,
        report_to=[],
        seed=options.seed,
        data_seed=options.seed + member,
        bf16=dtype == "bfloat16",
        use_cpu=device == "cpu",
        gradient_checkpointing=options.gradient_checkpointing,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
    )
