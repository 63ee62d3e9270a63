"""Reward models from the hidden states of a frozen LLM.

The public names are loaded on first use, so that importing retrm brings no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Answer": "retrm.records",
    "AnswerTable": "retrm.records",
    "Message": "retrm.records",
    "Prompt": "retrm.records",
    "Recipe": "retrm.features.recipe",
    "RewardModel": "retrm.scorers.reward_model",
    "Scorer": "retrm.scorers.base",
    "fit": "retrm.fitting.fit",
    "load_backbone": "retrm.backbone.load",
    "load_table": "retrm.data.load",
    "sample": "retrm.backbone.generate",
}

__all__ = [*_PUBLIC, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'retrm' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
