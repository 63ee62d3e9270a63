"""The model that is trained: loaded by name, with low-rank updates where they are asked for, and saved.

Low-rank updates (LoRA, Hu et al., arXiv 2106.09685) are put on all linear layers but the LM head. What is
saved has them merged in, so that every verb reads it as it reads any model; the updates stand beside it.
"""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from retrm.backbone.load import DTYPES, model_folder
from retrm.backbone.quiet import quiet_transformers
from retrm.backbone.resolve import resolve_model
from retrm.errors import BackboneError, MissingExtraError, RecipeError, did_you_mean

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft")


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank updates.

    Attributes:
        rank: of the updates; 0 = train all weights instead.
        alpha: updates are scaled by alpha / rank; None = twice the rank.
        dropout: of their inputs.
    """

    rank: int = 0
    alpha: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise RecipeError(f"got a rank of {self.rank}; expected 0 (all weights) or more")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"got a dropout of {self.dropout}; expected 0 or more, below 1")


def check_trainers() -> None:
    """Refuse early where nothing could be trained.

    Raises:
        MissingExtraError: trl, accelerate or peft is not installed.
    """
    try:
        import accelerate  # noqa: F401
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"training needs trl, accelerate and peft ({error}). Run: pip install 'retrm[train]'"
        ) from error


def versions() -> dict[str, str]:
    """Of the packages that results hang on."""
    return {name: version(name) for name in PACKAGES}


def load_trainable(name: str, *, dtype: str = "float32", device: str = "cpu") -> tuple[Any, Any]:
    """Model and tokenizer by any name that `retrm` knows.

    Raises:
        BackboneError: the name, the files, the dtype or the device will not do, or the model has no
            chat template.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise BackboneError(f"got dtype={dtype!r}. {did_you_mean(dtype, DTYPES)}")
    source = resolve_model(name)
    if source.kind == "fake":
        raise BackboneError("got the toy backbone, which cannot be trained; name a real model")
    folder = model_folder(source, lambda _: None)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    if tokenizer.chat_template is None:
        raise BackboneError(
            f"{name!r} has no chat template, so it cannot be asked; take a chat model"
        )
    return model.to(torch.device(device)), tokenizer


def lora_config(options: LoraOptions, *, head: str | None = None) -> Any | None:
    """For TRL's `peft_config`; None = all weights are trained.

    Args:
        options: of the updates.
        head: layer of a classifier that is trained whole and saved with the updates.
    """
    if options.rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha if options.alpha is not None else 2 * options.rank,
        lora_dropout=options.dropout,
        target_modules="all-linear",
        modules_to_save=[head] if head else None,
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
    )


def save_trained(model: Any, tokenizer: Any, folder: Path) -> int:
    """Write the judge to `folder`/model, and low-rank updates to `folder`/adapter; parameters trained."""
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder / "adapter")
        model = model.merge_and_unload()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return n_trained
