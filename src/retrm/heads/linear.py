"""The linear head: score = w · pooled + b. The conventional reward model on a frozen backbone.

Linear in pooled features, so three of the losses are convex in it and have one optimum.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrm.heads.base import Head, TokenView, split_over_layers


class LinearHead(Head):
    """One weight a feature and a bias."""

    name: ClassVar[str] = "linear"
    reads_tokens: ClassVar[bool] = False
    adds_layers: ClassVar[bool] = True

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.weight = nn.Parameter(torch.zeros(n_features))
        self.bias = nn.Parameter(torch.zeros(()))

    def reset(self, generator: torch.Generator) -> None:
        """Start at zero: the convex optimum does not depend on the start."""
        del generator
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def fold_input(self, shift: Tensor, scale: Tensor) -> None:
        """w / scale, and b - w · shift / scale."""
        self.weight /= scale
        self.bias -= self.weight @ shift

    def forward(
        self, values: Float[Tensor, "rows features"], offsets: Tensor
    ) -> Float[Tensor, " answers"]:
        """w · x + b for each row."""
        del offsets
        return values @ self.weight + self.bias

    def token_view(self, values: Float[Tensor, "tokens features"], pooling: str) -> TokenView:
        """Rewards w · h_t + b; with mean pooling they average to the score."""
        rewards = values @ self.weight + self.bias
        n = len(rewards)
        counts = torch.arange(1, n + 1)
        if pooling == "mean":
            running = rewards.cumsum(0) / counts
            contributions, gates = rewards / n, torch.full((n,), 1.0)
        elif pooling == "max":
            highest = values.cummax(dim=0).values
            running = highest @ self.weight + self.bias
            contributions = torch.diff(running, prepend=running.new_zeros(1))
            gates = torch.full((n,), 1.0)
        else:
            running = rewards
            contributions = torch.zeros_like(rewards)
            contributions[-1] = rewards[-1]
            gates = torch.zeros(n)
            gates[-1] = 1.0
        return TokenView(running[-1].item(), rewards, gates, contributions, running)

    def layer_rewards(
        self, values: Float[Tensor, "tokens features"], n_layers: int
    ) -> Float[Tensor, "tokens layers"]:
        """w · h_t + b by layer."""
        return split_over_layers(values, self.weight, self.bias, n_layers)
