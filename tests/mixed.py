"""Reward models that mix several objectives, drawn at random on the toy backbone."""

from collections.abc import Sequence

import torch
from scored import reward_model

from retrm.backbone.fake import FakeBackbone
from retrm.features.recipe import Recipe
from retrm.heads.mixture import MixtureHead
from retrm.scorers.reward_model import RewardModel

OBJECTIVES = ("helpfulness", "correctness", "verbosity")


def mixed_model(
    backbone: FakeBackbone | None = None,
    objectives: Sequence[str] = OBJECTIVES,
    *,
    verbosity: int | None = 2,
    seed: int = 0,
    is_rated: bool = True,
) -> RewardModel:
    """A mixture whose verbosity, where there is one, is taken out of the others."""
    backbone = backbone or FakeBackbone()
    model = reward_model(
        backbone,
        Recipe(context="prompt_end"),
        "mixture",
        seed=seed,
        objectives=objectives,
        verbosity=verbosity,
        n_context=backbone.width,
        gate_width=8,
        gate_layers=1,
        temperature=1.0,
        scales=[(0, 4, 0.5)] * len(objectives) if is_rated else None,
    )
    head = model.artifact.head
    assert isinstance(head, MixtureHead)
    if verbosity is not None:
        head.set_lambdas(torch.linspace(0.4, 0.1, len(objectives)))
    return model
