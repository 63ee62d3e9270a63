"""The gated head of ELHSR (later SWIFT): a gate-weighted mean of token rewards.

    [g~_t, r_t] = A h_t + b        one linear map with two outputs
    g_t = sigmoid(g~_t)
    score = Σ g_t r_t / max(Σ g_t, 1e-8)

Source: arXiv 2505.12225, section 3. 2 (F + 1) parameters. Without a gate the score is the plain mean
of r_t.
"""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrm.heads.base import Head, TokenView, owners

SMALLEST_GATE_SUM = 1e-8


class GatedHead(Head):
    """Two linear outputs a token, gate and reward; the score is the gate-weighted mean reward."""

    name: ClassVar[str] = "gated"
    reads_tokens: ClassVar[bool] = True

    def __init__(self, n_features: int, *, gate: bool = True) -> None:
        super().__init__(n_features)
        self.gate = gate
        self.weight = nn.Parameter(torch.zeros(2 if gate else 1, n_features))
        self.bias = nn.Parameter(torch.zeros(2 if gate else 1))

    @property
    def options(self) -> dict[str, Any]:
        """Whether there is a gate."""
        return {"gate": self.gate}

    def reset(self, generator: torch.Generator) -> None:
        """Uniform in ±1/sqrt(F), as torch initialises a linear layer and as the released code does."""
        bound = 1 / math.sqrt(self.n_features)
        for parameter in (self.weight, self.bias):
            with torch.no_grad():
                parameter.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def fold_input(self, shift: Tensor, scale: Tensor) -> None:
        """A / scale, and b - A shift / scale."""
        self.weight /= scale
        self.bias -= self.weight @ shift

    def forward(
        self, values: Float[Tensor, "rows features"], offsets: Tensor
    ) -> Float[Tensor, " answers"]:
        """Gate-weighted mean of the token rewards of each answer."""
        gates, rewards = self._gates_and_rewards(values)
        owner = owners(offsets)
        zeros = values.new_zeros(len(offsets) - 1)
        numerator = zeros.index_add(0, owner, gates * rewards)
        denominator = zeros.index_add(0, owner, gates)
        return numerator / denominator.clamp(min=SMALLEST_GATE_SUM)

    def token_view(self, values: Float[Tensor, "tokens features"], pooling: str) -> TokenView:
        """Gates and rewards apart; contributions g_t r_t / Σ g sum to the score."""
        del pooling
        gates, rewards = self._gates_and_rewards(values)
        running = (gates * rewards).cumsum(0) / gates.cumsum(0).clamp(min=SMALLEST_GATE_SUM)
        contributions = gates * rewards / gates.sum().clamp(min=SMALLEST_GATE_SUM)
        return TokenView(running[-1].item(), rewards, gates, contributions, running)

    def _gates_and_rewards(self, values: Tensor) -> tuple[Tensor, Tensor]:
        out = values @ self.weight.T + self.bias
        if not self.gate:
            return torch.ones_like(out[:, 0]), out[:, 0]
        return torch.sigmoid(out[:, 0]), out[:, 1]
