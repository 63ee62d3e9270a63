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

from retrm.heads.base import Head, TokenView, owners, split_over_layers

SMALLEST_GATE_SUM = 1e-8


class GatedHead(Head):
    """Two linear outputs a token, gate and reward; the score is the gate-weighted mean reward."""

    name: ClassVar[str] = "gated"
    reads_tokens: ClassVar[bool] = True
    first_sums: ClassVar[tuple[float, ...] | None] = (0.0, 0.0)  # Σ g r, Σ g
    adds_layers: ClassVar[bool] = True

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
    def set_equal_gates(self, weight: Float[Tensor, " features"], bias: float) -> None:
        """Rewards weight · h + bias and the same gate at every token: the score is their plain mean."""
        self.weight.zero_()
        self.bias.zero_()
        self.weight[-1] = weight
        self.bias[-1] = bias

    def folded(self, shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """A / scale, and b - A shift / scale."""
        weight = self.weight / scale
        return {"weight": weight, "bias": self.bias - weight @ shift}

    @torch.no_grad()
    def fold_input(self, shift: Tensor, scale: Tensor) -> None:
        """As `folded`, in place."""
        for name, value in self.folded(shift, scale).items():
            self.get_parameter(name).copy_(value)

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

    def add_token(
        self, sums: Float[Tensor, "answers sums"], values: Float[Tensor, "answers features"]
    ) -> Float[Tensor, "answers sums"]:
        """Both sums with one more token."""
        gates, rewards = self._gates_and_rewards(values)
        return sums + torch.stack([gates * rewards, gates], dim=1)

    def score_sums(self, sums: Float[Tensor, "answers sums"]) -> Float[Tensor, " answers"]:
        """Σ g r / Σ g."""
        return sums[:, 0] / sums[:, 1].clamp(min=SMALLEST_GATE_SUM)

    def token_view(self, values: Float[Tensor, "tokens features"], pooling: str) -> TokenView:
        """Gates and rewards apart; contributions g_t r_t / Σ g sum to the score."""
        del pooling
        gates, rewards = self._gates_and_rewards(values)
        running = (gates * rewards).cumsum(0) / gates.cumsum(0).clamp(min=SMALLEST_GATE_SUM)
        contributions = gates * rewards / gates.sum().clamp(min=SMALLEST_GATE_SUM)
        return TokenView(running[-1].item(), rewards, gates, contributions, running)

    def layer_rewards(
        self, values: Float[Tensor, "tokens features"], n_layers: int
    ) -> Float[Tensor, "tokens layers"]:
        """r_t by layer; the gate, which is no sum, weighs all layers of a token alike."""
        return split_over_layers(values, self.weight[-1], self.bias[-1], n_layers)

    def _gates_and_rewards(self, values: Tensor) -> tuple[Tensor, Tensor]:
        out = values @ self.weight.T + self.bias
        if not self.gate:
            return torch.ones_like(out[:, 0]), out[:, 0]
        return torch.sigmoid(out[:, 0]), out[:, 1]
