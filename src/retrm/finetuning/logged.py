"""What a trainer logs, as lines in the run's folder."""

from typing import Any

from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from retrm.finetuning.run_folder import RunFolder


class FolderLog(TrainerCallback):
    """A line of `metrics.jsonl` for everything that the trainer logs.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Told by the trainer; the line at the end, which sums up, is not a step."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self.folder.append("metrics.jsonl", {"step": state.global_step, **logs})


def silence(trainer: Trainer) -> None:
    """What is logged stands in the folder; nothing is printed."""
    trainer.remove_callback(PrinterCallback)
