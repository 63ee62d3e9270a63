"""What every head offers.

Scores are raw: unbounded, higher is better. `token_view` says how the score came about token by
token, for heat maps; its contributions add up to the score wherever the head is a sum over tokens.

A head of token features can score answers while they grow if a few running numbers say all that it
needs of the tokens so far: `first_sums`, `add_token` and `score_sums`; `forward` is their oracle. Heads
of pooled features need none: pooling is what runs.

Where a token's reward is linear in the features of all layers, it is a sum over layers, too:

    r_t = w · h_t + b = Σ_l (w_l · h_tl + b / L)

The bias belongs to no layer and is spread evenly over all L, so that the row of a token adds up to its
reward. What differs between tokens in one layer does not depend on that choice; what differs between
layers on the average does, and says nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrm.errors import RecipeError, ShapeError
from retrm.features.reduce import Features

ROWS_PER_CHUNK = 4096


@dataclass(frozen=True)
class TokenView:
    """One answer, token by token.

    Attributes:
        score: of the whole answer.
        rewards: the head's value at each response token.
        gates: weight of each token, 0..1; all equal where the head has no gate.
        contributions: what each token adds to the score; they sum to it. Where a single token decides
            it holds all of the score.
        running: the score if the answer ended at that token.
    """

    score: float
    rewards: Float[Tensor, " tokens"]
    gates: Float[Tensor, " tokens"]
    contributions: Float[Tensor, " tokens"]
    running: Float[Tensor, " tokens"]


class Head(nn.Module):
    """Base of all heads: checks shapes, counts parameters, scores features in bounded memory."""

    name: ClassVar[str]
    reads_tokens: ClassVar[bool]  # token features (True) or pooled ones (False)
    # The running numbers of an answer without tokens; None = it needs all its tokens at once.
    first_sums: ClassVar[tuple[float, ...] | None] = None
    adds_layers: ClassVar[bool] = False  # whether the reward of a token is a sum over layers
    reads_context: ClassVar[bool] = (
        False  # whether it may read the prompt behind an answer's features
    )

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features
        self.n_context = 0  # how many of them, the last ones, are the context of the recipe

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments beside `n_features`, as they are stored in a reward model."""
        return {}

    @property
    def n_params(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters())

    def reset(self, generator: torch.Generator) -> None:
        """Draw the weights a gradient fit starts from."""
        raise NotImplementedError

    def fold_input(
        self, shift: Float[Tensor, " features"], scale: Float[Tensor, " features"]
    ) -> None:
        """Change the weights so that the head reads x as it now reads (x - shift) / scale."""
        raise NotImplementedError

    def folded(
        self, shift: Float[Tensor, " features"], scale: Float[Tensor, " features"]
    ) -> dict[str, Tensor] | None:
        """The parameters after `fold_input`, by name and differentiable in the present ones.

        None: the head offers only `fold_input`, and a fit standardises each batch instead, which costs
        it about half as much time again.
        """
        del shift, scale

    def forward(
        self,
        values: Float[Tensor, "rows features"],
        offsets: Tensor,
    ) -> Float[Tensor, " answers"]:
        """Scores of the answers whose rows are offsets[i]..offsets[i+1] of `values`."""
        raise NotImplementedError

    def token_view(self, values: Float[Tensor, "tokens features"], pooling: str) -> TokenView:
        """How the score of one answer comes about; `values` are its token features, float32."""
        raise NotImplementedError

    def layer_rewards(
        self, values: Float[Tensor, "tokens features"], n_layers: int
    ) -> Float[Tensor, "tokens layers"]:
        """What each layer adds to the reward of each token of `token_view`; rows sum to it.

        Only of heads that say `adds_layers`. The features of a token are those of `n_layers` layers, of
        equal width, one behind the other; where the head has a context, it stands behind all of them.
        """
        raise NotImplementedError

    def add_token(
        self, sums: Float[Tensor, "answers sums"], values: Float[Tensor, "answers features"]
    ) -> Float[Tensor, "answers sums"]:
        """The running numbers of each answer after one more token, float32."""
        raise NotImplementedError

    def score_sums(self, sums: Float[Tensor, "answers sums"]) -> Float[Tensor, " answers"]:
        """The scores of answers that end here."""
        raise NotImplementedError

    def check_running(self) -> None:
        """Refuse a head that cannot score answers while they grow.

        Raises:
            RecipeError: it reads token features and has no running numbers.
        """
        if self.reads_tokens and self.first_sums is None:
            raise RecipeError(
                f"got the {self.name} head to score answers while they grow; expected one with "
                "running numbers (first_sums, add_token, score_sums). Generate first, then run "
                "retrm score"
            )

    @torch.no_grad()
    def score(self, features: Features) -> Float[Tensor, " answers"]:
        """Scores of `features`, float32, in bounded memory whatever their dtype.

        Raises:
            ShapeError: features of another width, pooled where tokens are needed or the reverse.
        """
        self.check(features)
        out = [
            self(chunk.values.float(), chunk.offsets - chunk.offsets[0])
            for chunk in _chunks(features)
        ]
        return torch.cat(out) if out else torch.zeros(0)

    def check(self, features: Features) -> None:
        """Refuse features this head cannot read."""
        if features.n_features != self.n_features:
            raise ShapeError(
                f"got features of width {features.n_features}, the {self.name} head reads "
                f"{self.n_features}; was it fitted with another recipe or model?"
            )
        if features.is_pooled == self.reads_tokens:
            got, need = ("pooled", "token") if features.is_pooled else ("token", "pooled")
            raise ShapeError(
                f"got {got} features, the {self.name} head reads {need} features; set pooling to "
                f"{'tokens' if self.reads_tokens else 'last, mean or max'} in the recipe"
            )
        lengths = features.offsets[1:] - features.offsets[:-1]
        if (lengths <= 0).any():
            row = int((lengths <= 0).nonzero()[0, 0])
            raise ShapeError(f"answer {row} has no response token; an empty answer has no score")


def _chunks(features: Features):
    # Consecutive answers whose rows are views of the stored values: nothing is copied but the chunk.
    n, start = features.n_answers, 0
    while start < n:
        limit = features.offsets[start] + ROWS_PER_CHUNK
        stop = int(torch.searchsorted(features.offsets, limit, right=True)) - 1
        stop = min(max(stop, start + 1), n)
        first, last = int(features.offsets[start]), int(features.offsets[stop])
        yield Features(
            features.values[first:last], features.offsets[start : stop + 1], features.is_pooled
        )
        start = stop


def split_over_layers(
    values: Float[Tensor, "tokens features"],
    weight: Float[Tensor, " features"],
    bias: Float[Tensor, ""],
    n_layers: int,
) -> Float[Tensor, "tokens layers"]:
    """weight · value + bias by layer: w_l · h_tl + bias / L."""
    products = (values * weight).reshape(len(values), n_layers, -1)
    return products.sum(dim=2) + bias / n_layers


def owners(offsets: Tensor) -> Tensor:
    """For each row, the answer it belongs to."""
    return torch.repeat_interleave(
        torch.arange(len(offsets) - 1, device=offsets.device), offsets[1:] - offsets[:-1]
    )
