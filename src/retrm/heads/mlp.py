"""A two-layer perceptron on pooled features, or on every token with the worst token deciding (HARP).

HARP trains a hallucination logit u_t = a · relu(B z_t + b1) + b2 and flags an answer by max_t u_t,
label 1 = hallucinated. A score is higher-is-better, so here the unit is -u_t and the answer's score
is min_t (-u_t) = -max_t u_t; BCE of that score against label 1 = correct is HARP's loss exactly.
(Training label 1 = correct with a MAX would be another method: the best token instead of the worst.)

Source: HARP, arXiv 2509.11536, section 4.
"""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrm.heads.base import Head, TokenView, owners


class _Perceptron(Head):
    """F -> hidden -> 1 with ReLU."""

    def __init__(self, n_features: int, *, hidden: int = 1024) -> None:
        super().__init__(n_features)
        self.hidden = hidden
        self.weight_in = nn.Parameter(torch.zeros(hidden, n_features))
        self.bias_in = nn.Parameter(torch.zeros(hidden))
        self.weight_out = nn.Parameter(torch.zeros(hidden))
        self.bias_out = nn.Parameter(torch.zeros(()))

    @property
    def options(self) -> dict[str, Any]:
        """Width of the hidden layer."""
        return {"hidden": self.hidden}

    def reset(self, generator: torch.Generator) -> None:
        """Uniform in ±1/sqrt(fan-in), as torch initialises linear layers."""
        for parameter, fan_in in (
            (self.weight_in, self.n_features),
            (self.bias_in, self.n_features),
            (self.weight_out, self.hidden),
            (self.bias_out, self.hidden),
        ):
            bound = 1 / math.sqrt(fan_in)
            with torch.no_grad():
                parameter.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def fold_input(self, shift: Tensor, scale: Tensor) -> None:
        """Into the first layer."""
        self.weight_in /= scale
        self.bias_in -= self.weight_in @ shift

    def rows(self, values: Float[Tensor, "rows features"]) -> Float[Tensor, " rows"]:
        """The perceptron's output at each row."""
        return (
            torch.relu(values @ self.weight_in.T + self.bias_in) @ self.weight_out + self.bias_out
        )


class MLPHead(_Perceptron):
    """A perceptron on pooled features."""

    name: ClassVar[str] = "mlp"
    reads_tokens: ClassVar[bool] = False

    def forward(
        self, values: Float[Tensor, "rows features"], offsets: Tensor
    ) -> Float[Tensor, " answers"]:
        """The perceptron's output for each answer."""
        del offsets
        return self.rows(values)

    def token_view(self, values: Float[Tensor, "tokens features"], pooling: str) -> TokenView:
        """Rewards are the score of each token alone; only the running score is exact."""
        counts = torch.arange(1, len(values) + 1)[:, None]
        if pooling == "mean":
            running = self.rows(values.cumsum(0) / counts)
        elif pooling == "max":
            running = self.rows(values.cummax(dim=0).values)
        else:
            running = self.rows(values)
        contributions = torch.diff(running, prepend=running.new_zeros(1))
        return TokenView(
            running[-1].item(), self.rows(values), torch.ones(len(values)), contributions, running
        )


class WorstTokenHead(_Perceptron):
    """HARP's head: a perceptron at every token, the lowest value is the answer's score."""

    name: ClassVar[str] = "worst_token"
    reads_tokens: ClassVar[bool] = True
    first_sums: ClassVar[tuple[float, ...] | None] = (math.inf,)  # the lowest value so far

    def forward(
        self, values: Float[Tensor, "rows features"], offsets: Tensor
    ) -> Float[Tensor, " answers"]:
        """min over the tokens of each answer."""
        rewards = self.rows(values)
        highest = rewards.new_full((len(offsets) - 1,), torch.inf)
        return highest.scatter_reduce(0, owners(offsets), rewards, "amin", include_self=True)

    def add_token(
        self, sums: Float[Tensor, "answers sums"], values: Float[Tensor, "answers features"]
    ) -> Float[Tensor, "answers sums"]:
        """The minimum with one more token."""
        return torch.minimum(sums, self.rows(values)[:, None])

    def score_sums(self, sums: Float[Tensor, "answers sums"]) -> Float[Tensor, " answers"]:
        """The minimum itself."""
        return sums[:, 0]

    def token_view(self, values: Float[Tensor, "tokens features"], pooling: str) -> TokenView:
        """The worst token holds the whole score."""
        del pooling
        rewards = self.rows(values)
        worst = int(rewards.argmin())
        contributions, gates = torch.zeros_like(rewards), torch.zeros_like(rewards)
        contributions[worst], gates[worst] = rewards[worst], 1.0
        running = rewards.cummin(0).values
        return TokenView(rewards[worst].item(), rewards, gates, contributions, running)
