"""The loop of a discriminator's training: transformers' Trainer with the loss of `retrm.finetuning.polar`.

It brings what a loop of our own would have to grow again: checkpoints with the order of the data and the state
of the optimiser, accumulation of gradients, and several devices through accelerate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from retrm.backbone.reference import ReferenceTemplate
from retrm.finetuning.logged import FolderLog
from retrm.finetuning.polar import EncodedRow, PolarOptions, batch_loss, collate
from retrm.finetuning.run_folder import RunFolder
from retrm.finetuning.sft import check_finite
from retrm.pair_options import PairOptions
from retrm.scorers.polar import pad_id_of


@dataclass(frozen=True)
class Ended:
    """Where a training stopped.

    Attributes:
        steps: updates.
        epochs: times that the rows were seen.
        resumed_at: update from which it went on; 0 = from the beginning.
    """

    steps: int
    epochs: float
    resumed_at: int


class EncodedRows(Dataset[EncodedRow]):
    """Rows by number."""

    def __init__(self, rows: Sequence[EncodedRow]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> EncodedRow:
        return self.rows[place]


class PolarTrainer(Trainer):
    """Trainer of texts that end in END and are compared two by two.

    Args:
        loss_options: additions to the loss.
        arguments: of Trainer, by name.
    """

    def __init__(self, loss_options: PairOptions, arguments: dict[str, Any]) -> None:
        super().__init__(**arguments)
        self.loss_options = loss_options
        # The loss of a batch is a mean over its rows: Trainer divides by the steps of accumulation.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of `batch_loss`; outputs are empty."""
        loss = batch_loss(model, inputs, self.loss_options)
        if model.training:
            check_finite(
                float(loss.detach()),
                self.state.global_step,
                "lower the learning rate; the last checkpoint holds weights from before",
            )
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The loss alone."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None


def run_trainer(
    model: Any,
    rows: Sequence[EncodedRow],
    test: Sequence[EncodedRow],
    template: ReferenceTemplate,
    folder: RunFolder,
    *,
    options: PolarOptions,
    loss_options: PairOptions,
    dtype: str,
    device: str,
) -> Ended:
    """Train from the newest checkpoint of `folder`, or from the beginning.

    Args:
        model: with the weights to be trained marked.
        rows: to train on.
        test: to measure the loss on, every `eval_steps`.
        template: that made them.
        folder: of the run.
        options: of the training.
        loss_options: additions to the loss.
        dtype: of the weights.
        device: cpu, cuda, ...

    Raises:
        FitError: the loss is no number any more.
    """
    config = TrainingArguments(
        output_dir=str(folder.checkpoints),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=options.warmup,
        weight_decay=0.0,
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        per_device_train_batch_size=options.device_batch,
        per_device_eval_batch_size=options.device_batch,
        gradient_accumulation_steps=options.batch_size // options.device_batch,
        logging_steps=1,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=1,
        eval_strategy="steps" if options.eval_steps and test else "no",
        eval_steps=options.eval_steps or None,
        report_to=[],
        seed=options.seed,
        data_seed=options.seed,
        bf16=dtype == "bfloat16" and device != "cpu",
        use_cpu=device == "cpu",
        **({} if device == "cpu" else {"gradient_checkpointing": True}),
        remove_unused_columns=False,
        label_names=[],
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    pad_id = pad_id_of(template.tokenizer, template.end_id)
    trainer = PolarTrainer(
        loss_options,
        {
            "model": model,
            "args": config,
            "train_dataset": EncodedRows(rows),
            "eval_dataset": EncodedRows(test) if test else None,
            "data_collator": partial(collate, end_id=template.end_id, pad_id=pad_id),
            "callbacks": [FolderLog(folder)],
        },
    )
    trainer.remove_callback(PrinterCallback)  # stdout belongs to results
    checkpoint = folder.newest_checkpoint()
    resumed_at = 0 if checkpoint is None else int(checkpoint.name.split("-")[-1])
    folder.forget_after(resumed_at)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return Ended(
        trainer.state.global_step, float(trainer.state.epoch or options.epochs), resumed_at
    )
