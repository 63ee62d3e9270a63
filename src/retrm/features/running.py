"""Features of answers that grow by a token at a time: what `Reducer` gives, without a second reading.

`NewestTokens` is shown the newest states of each row as generation computes them and gives one row of
token features. `RunningPool` keeps what pooling needs, so that after T tokens its values are those of
the pooled answer:

    mean   s_t = s_{t-1} + x_t, value s_T / T          max    s_t = max(s_{t-1}, x_t)
    last   s_t = x_t                                   prompt_end   s_t = s_0 = x of the prompt's end

The context of a recipe, the last columns of a row, is that of the prompt's end whatever the pooling.
Projection and rounding are those of the reducer. The sources `logits` and `log_probability` take the
logits that generation computes anyway; these are in the model's dtype, while a reading multiplies
post_norm states in float32: equal in float32, within the rounding of the logits in bfloat16.
"""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrm.backbone.base import StatePoint
from retrm.features.reduce import Reducer

_INF = float("inf")


class NewestTokens:
    """The features of the newest token of each row, before pooling; rounded where nothing is pooled.

    What `begin` and `feed` return is valid until the next pass.

    Args:
        reducer: of the recipe; its own running state is not touched.
    """

    def __init__(self, reducer: Reducer) -> None:
        self._reducer = reducer
        self._source = reducer.recipe.source
        self._is_projected = bool(reducer.bases)
        # Features of single tokens are rounded as they are kept, pooled ones only when they are read.
        self._dtype = torch.float32 if reducer.recipe.is_pooled else reducer.layout.dtype
        self._new = torch.empty(0, reducer.n_features, dtype=self._dtype)
        self._parts: dict[tuple[int, StatePoint], Tensor] = {}
        self._context: Tensor | None = None  # the columns of it, a part of `_new`
        self._before: Tensor | None = None  # log-probabilities of what may follow each row

    @property
    def wanted(self) -> Collection[tuple[int, StatePoint]]:
        """The states to be shown; none where the logits are enough."""
        return self._reducer.wanted if self._source == "states" else ()

    @property
    def reads_logits(self) -> bool:
        """Whether `feed` needs the logits of every row."""
        return self._source != "states"

    def visit(self, layer: int, point: StatePoint, states: Float[Tensor, "rows width"]) -> None:
        """Take one layer's newest states, one a row."""
        if len(self._new) != len(states):
            self._make_room(len(states), states.device)
        if self._context is not None and (layer, point) == self._reducer.context_state:
            self._context.copy_(states)
        part = self._parts.get((layer, point))
        if part is None:  # nothing but the context
            return
        if self._is_projected:
            states = self._reducer.project(point, states)
        part.copy_(states)

    def _make_room(self, n_rows: int, device: torch.device) -> None:
        # Kept from step to step: all layers of a large model are more than an allocator keeps
        # ready, and fresh pages would cost more than the copy.
        shape = n_rows, self._reducer.n_features
        self._new = torch.empty(shape, dtype=self._dtype, device=device)
        n_own = self._reducer.n_features - self._reducer.n_context
        parts = self._new[:, :n_own].split(self._reducer.n_dims, dim=1)
        self._parts = dict(zip(self._reducer.states, parts, strict=True))
        self._context = self._new[:, n_own:] if self._reducer.n_context else None

    def begin(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows features"]:
        """Features at the last prompt token of the rows that join."""
        if self._source == "log_probability":
            log_p = torch.log_softmax(logits.float(), dim=1)
            self._before = log_p if self._before is None else torch.cat([self._before, log_p])
            return log_p.new_zeros(len(logits), 2)
        return logits.float() if self._source == "logits" else self._visited(len(logits))

    def feed(
        self, tokens: Sequence[int], logits: Float[Tensor, "rows vocab"] | None
    ) -> Float[Tensor, "rows features"]:
        """Features of `tokens`, one a row; for log_probability their log p and the entropy."""
        if self._source == "states":
            return self._visited(len(tokens))
        assert logits is not None
        if self._source == "logits":
            return logits.float()
        assert self._before is not None
        log_p, self._before = self._before, torch.log_softmax(logits.float(), dim=1)
        chosen = log_p.gather(1, torch.tensor(tokens, device=log_p.device)[:, None])
        entropy = -(log_p.exp() * log_p).sum(dim=1, keepdim=True)
        return torch.cat([chosen, entropy], dim=1)

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows."""
        if self._before is not None:
            self._before = self._before[rows]

    def _visited(self, n_rows: int) -> Tensor:
        assert len(self._new) == n_rows, "a pass without the wanted states"
        return self._new


class RunningPool:
    """Pooled features of rows that grow, for every recipe that is pooled.

    Args:
        reducer: of the recipe.
    """

    def __init__(self, reducer: Reducer) -> None:
        self._dtype = reducer.layout.dtype
        recipe = reducer.recipe
        self._pooling = "scalars" if recipe.source == "log_probability" else recipe.pooling
        self._n_context = reducer.n_context
        self._sums: Tensor | None = None  # (rows, features)
        self._counts: Tensor | None = None  # (rows, 1)
        self._context: Tensor | None = None  # (rows, context)

    def begin(self, values: Float[Tensor, "rows features"]) -> None:
        """Rows join below the others; `values` are the features at their last prompt token."""
        values, context = self._apart(values)
        if self._pooling == "prompt_end":
            fresh = values.clone()
        elif self._pooling == "scalars":
            start = torch.tensor([0.0, _INF, 0.0, 0.0, -_INF], device=values.device)
            fresh = start.expand(len(values), -1)
        else:
            fresh = torch.full_like(values, -_INF if self._pooling == "max" else 0.0)
        counts = values.new_zeros(len(values), 1)
        if self._sums is None or self._counts is None or self._context is None:
            self._sums, self._counts, self._context = fresh, counts, context.clone()
        else:
            self._sums = torch.cat([self._sums, fresh])
            self._counts = torch.cat([self._counts, counts])
            self._context = torch.cat([self._context, context])

    def feed(
        self, values: Float[Tensor, "rows features"], is_judged: Bool[Tensor, " rows"] | None
    ) -> None:
        """One more token in each row that is judged; the others do not change."""
        assert self._sums is not None
        assert self._counts is not None
        grown = self._grown(self._sums, self._apart(values)[0])
        if is_judged is None:
            self._sums, self._counts = grown, self._counts + 1
        else:
            self._sums = torch.where(is_judged[:, None], grown, self._sums)
            self._counts = self._counts + is_judged[:, None]

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows."""
        if self._sums is not None and self._counts is not None and self._context is not None:
            self._sums, self._counts = self._sums[rows], self._counts[rows]
            self._context = self._context[rows]

    def values(self) -> Float[Tensor, "rows features"]:
        """In the recipe's dtype; nonsense where no token was judged yet."""
        assert self._sums is not None
        assert self._counts is not None
        values = self._sums
        if self._pooling == "mean":
            values = values / self._counts
        elif self._pooling == "scalars":
            means = values / self._counts
            is_mean = torch.tensor([True, False, True, False, False], device=values.device)
            values = torch.where(is_mean, means, values)
        values = values.to(self._dtype)
        if not self._n_context:
            return values
        assert self._context is not None
        return torch.cat([values, self._context], dim=1)

    def _apart(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Features that are pooled, and the context behind them."""
        n_own = values.shape[1] - self._n_context
        return values[:, :n_own], values[:, n_own:]

    def _grown(self, sums: Tensor, values: Tensor) -> Tensor:
        if self._pooling == "prompt_end":
            return sums
        if self._pooling == "mean":
            return sums + values
        if self._pooling == "max":
            return torch.maximum(sums, values)
        if self._pooling == "last":
            return values.clone()
        log_p, entropy = values[:, 0], values[:, 1]
        columns = (
            sums[:, 0] + log_p,
            torch.minimum(sums[:, 1], log_p),
            sums[:, 2] + entropy,
            entropy,
            torch.maximum(sums[:, 4], entropy),
        )
        return torch.stack(columns, dim=1)
