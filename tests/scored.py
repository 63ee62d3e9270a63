"""Reward models around any backbone with a random head: for tests of where scores come from."""

from typing import Any

import torch
from tiny import tiny_model, tiny_tokenizer

from retrm.backbone.base import Backbone, Fingerprint
from retrm.backbone.fake import END, FakeBackbone
from retrm.backbone.render import ChatRenderer
from retrm.backbone.states import TransformersBackbone
from retrm.features.recipe import Recipe
from retrm.features.reduce import Reducer
from retrm.heads.artifact import Artifact, BackboneIdentity
from retrm.heads.base import Head
from retrm.heads.registry import make_head
from retrm.scorers.reward_model import RewardModel

TINY_END = 260


def reward_model(
    backbone: Backbone, recipe: Recipe, head: str = "linear", *, seed: int = 0, **options: Any
) -> RewardModel:
    """A reward model whose head is drawn at random."""
    reducer = Reducer(recipe, backbone)
    made = random_head(head, reducer.n_features, seed=seed, **options)
    identity = BackboneIdentity(
        backbone.name, backbone.fingerprint, "float32", backbone.n_layers, backbone.width
    )
    return RewardModel(
        Artifact("test", recipe, made, "bce", reducer.bases, identity, [], {}, {}), backbone
    )


def random_head(name: str, n_features: int, *, seed: int = 0, **options: Any) -> Head:
    """A head with random weights; a linear one and the objectives of a mixture would begin at zero."""
    head = make_head(name, n_features, options)
    generator = torch.Generator().manual_seed(seed)
    head.reset(generator)
    if name in ("linear", "mixture"):
        with torch.no_grad():
            drawn = torch.randn(head.weight.shape, generator=generator)
            head.weight.copy_(drawn / n_features**0.5)
    return head.eval()


def ending_backbone(
    family: str = "llama", *, counts_end: bool = True, factor: float = 14.0
) -> TransformersBackbone:
    """A tiny model that often ends its answers, after different numbers of tokens.

    `factor` makes the end token's logit large; its sign says in which states.
    """
    model = tiny_model(family)
    with torch.no_grad():
        model.get_output_embeddings().weight[TINY_END] *= factor
    renderer = ChatRenderer(tiny_tokenizer(), counts_end=counts_end)
    return TransformersBackbone(model, renderer, Fingerprint("", "", "", ""), family)


def ending_fake(*, counts_end: bool = True, factor: float = 4.0) -> FakeBackbone:
    """The same for the toy backbone, which is read again for every token."""
    backbone = FakeBackbone(counts_end=counts_end)
    backbone._weights["lm_head"][END] *= factor
    return backbone
