"""From the states of one forward pass to the features of its answers.

A `Reducer` belongs to one recipe. It is shown each layer's states as they appear, picks the response
tokens, projects, pools, and keeps only that: raw hidden states are a stream and never a file. The
same reducer serves reading for a fit and scoring online, so a stored feature equals an online one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrm.backbone.base import Backbone, StatePoint, TokenBatch, Unembedding
from retrm.backbone.locate import logits_of
from retrm.features.norm_folding import normalised
from retrm.features.recipe import Recipe
from retrm.features.subspace import Subspace, SubspaceSpec, fit_spectrum

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
LOGIT_ROWS = 512  # response tokens whose full logits are alive at once


@dataclass(frozen=True)
class Layout:
    """What a reducer gives: numbers per row, whether a row is an answer, and the dtype."""

    n_features: int
    is_pooled: bool
    dtype: torch.dtype


class StateReducer(Protocol):
    """Anything that is shown the states of a pass and keeps features of its answers.

    Attributes:
        wanted: the (layer, state point) pairs it must be shown.
        layout: of its features.
        reads_prompts: whether it needs the states of all prompt tokens; else only the last one of a
            prompt is sure to be shown.
    """

    reads_prompts: bool

    @property
    def wanted(self) -> Collection[tuple[int, StatePoint]]:
        """The pairs to be shown."""
        ...

    @property
    def layout(self) -> Layout:
        """Of the features it gives."""
        ...

    def visit(
        self,
        layer: int,
        point: StatePoint,
        states: Float[Tensor, "rows tokens width"],
        index: "BatchIndex",
        batch: TokenBatch,
    ) -> None:
        """Take what is needed from one layer's states, of a pair that is wanted."""
        ...

    def finish(self, index: "BatchIndex") -> "Features":
        """The features of the batch's answers, on the CPU."""
        ...


@dataclass(frozen=True)
class Features:
    """Features of some answers, in the order of the answers.

    Attributes:
        values: one row an answer (pooled) or one row a response token, in the recipe's dtype.
        offsets: answer i owns rows offsets[i]..offsets[i+1]; for pooled features 0..n.
        is_pooled: whether a row is an answer.
    """

    values: Float[Tensor, "rows features"]
    offsets: Int[Tensor, " answers_plus_one"]
    is_pooled: bool

    @classmethod
    def none(cls, n_answers: int) -> Self:
        """No numbers for any of the answers: of a reducer that keeps sums of its own."""
        return cls(torch.empty(n_answers, 0), torch.arange(n_answers + 1), True)

    @property
    def n_answers(self) -> int:
        """Number of answers."""
        return self.offsets.shape[0] - 1

    @property
    def n_features(self) -> int:
        """Numbers per row."""
        return self.values.shape[1]

    def take(self, rows: Sequence[int] | Tensor) -> "Features":
        """Features of the answers `rows`, in that order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        if self.is_pooled:
            return Features(self.values[index], torch.arange(len(index) + 1), True)
        starts, stops = self.offsets[index], self.offsets[index + 1]
        pieces = [self.values[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
        values = torch.cat(pieces) if pieces else self.values[:0]
        lengths = stops - starts
        return Features(values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), False)


def concatenate(parts: Sequence[Features]) -> Features:
    """Features of several groups of answers, one behind the other."""
    offsets, base = [torch.zeros(1, dtype=torch.int64)], 0
    for part in parts:
        offsets.append(part.offsets[1:] + base)
        base += int(part.offsets[-1])
    return Features(torch.cat([p.values for p in parts]), torch.cat(offsets), parts[0].is_pooled)


@dataclass(frozen=True)
class BatchIndex:
    """Where the response tokens of a batch lie, as flat index tensors on the device."""

    rows: Int[Tensor, " tokens"]
    columns: Int[Tensor, " tokens"]
    previous: Int[Tensor, " tokens"]
    offsets: Int[Tensor, " answers_plus_one"]
    owner: Int[Tensor, " tokens"]

    @classmethod
    def of(cls, batch: TokenBatch) -> "BatchIndex":
        """Flatten the per-answer spans of `batch`."""
        device = batch.ids.device
        lengths = torch.tensor([len(span) for span in batch.spans])
        owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        rows = torch.tensor(batch.rows)[owner]
        return cls(
            rows=rows.to(device),
            columns=torch.cat(list(batch.spans)).to(device),
            previous=torch.cat(list(batch.previous)).to(device),
            offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
            owner=owner.to(device),
        )


def pool(
    tokens: Float[Tensor, "tokens features"], index: BatchIndex, pooling: str
) -> Float[Tensor, "rows features"]:
    """Response-token features to one row an answer; `tokens` keeps every token.

    Padding never reaches this function: spans name real tokens only.
    """
    if pooling == "tokens":
        return tokens
    if pooling in ("last", "prompt_end"):  # the latter was selected before: one row an answer
        return tokens[(index.offsets[1:] - 1).to(tokens.device)]
    n_answers = index.offsets.shape[0] - 1
    shape = (n_answers, tokens.shape[1])
    if pooling == "mean":
        total = tokens.new_zeros(shape).index_add_(0, index.owner, tokens)
        lengths = (index.offsets[1:] - index.offsets[:-1]).to(tokens)
        return total / lengths[:, None]
    owner = index.owner[:, None].expand_as(tokens)
    lowest = tokens.new_full(shape, -torch.inf)
    return lowest.scatter_reduce(0, owner, tokens, "amax", include_self=True)


@dataclass(frozen=True)
class ReducerRecipe:
    """A reducer without its backbone: what is sent to another process.

    Attributes:
        recipe: of its features.
        bases: by state point; none where the recipe has no subspace.
    """

    recipe: Recipe
    bases: Mapping[StatePoint, Subspace]

    def bind(self, backbone: Backbone) -> "Reducer":
        """The same reducer on a backbone."""
        return Reducer(self.recipe, backbone, bases=self.bases)


class Reducer:
    """Turns the visited states of a batch into the features of one recipe."""

    reads_prompts = False

    def __init__(
        self,
        recipe: Recipe,
        backbone: Backbone,
        *,
        bases: Mapping[StatePoint, Subspace] | None = None,
    ) -> None:
        """Bind `recipe` to `backbone`; `bases` are those stored with a head, else they are computed.

        Raises:
            RecipeError: the recipe is impossible on this backbone.
        """
        self.recipe = recipe
        self.states = recipe.wanted(backbone.n_layers)  # whose features stand in a row, in order
        self.n_context = recipe.n_context(backbone.width)
        self.context_state = (backbone.n_layers, "post_norm") if self.n_context else None
        read_of_prompt = () if self.context_state in (None, *self.states) else (self.context_state,)
        self.wanted = (*self.states, *read_of_prompt)
        self.unembedding: Unembedding = backbone.unembedding
        spec = SubspaceSpec.parse(recipe.subspace)
        self.n_dims = spec.n_dims(backbone.width)
        self.n_features = recipe.n_features(
            backbone.n_layers, backbone.width, self.unembedding.weight.shape[0]
        )
        self.bases = dict(bases) if bases is not None else self._fit_bases(spec)
        self._device_bases = {p: b.to(backbone.device) for p, b in self.bases.items()}
        self._dtype = TORCH_DTYPES[recipe.dtype]
        self._out: Tensor | None = None
        self._context: Tensor | None = None

    def _fit_bases(self, spec: SubspaceSpec) -> dict[StatePoint, Subspace]:
        if spec.part == "full":
            return {}
        points = {point for _, point in self.states}
        return {
            point: fit_spectrum(self.unembedding, point, centred=self.recipe.is_centred).subspace(
                spec.part, self.n_dims, seed=spec.seed
            )
            for point in sorted(points)
        }

    @property
    def unbound(self) -> ReducerRecipe:
        """For another process."""
        return ReducerRecipe(self.recipe, self.bases)

    @property
    def layout(self) -> Layout:
        """Of the features it gives."""
        return Layout(self.n_features, self.recipe.is_pooled, self._dtype)

    def visit(
        self,
        layer: int,
        point: StatePoint,
        states: Float[Tensor, "rows tokens width"],
        index: BatchIndex,
        batch: TokenBatch,
    ) -> None:
        """Take what the recipe needs from one layer's states."""
        if self.recipe.source == "log_probability":
            self._out = self._log_probabilities(states, index, batch)
            return
        if (layer, point) == self.context_state:
            self._context = _prompt_ends(states, index).float()
        if (layer, point) not in self.states:
            return
        tokens = self._select(states, index)
        if self.recipe.source == "logits":
            self._out = pool(self._logits(tokens), self._after_select(index), self.recipe.pooling)
            return
        pooled = pool(self.project(point, tokens), self._after_select(index), self.recipe.pooling)
        if self._out is None:
            shape = (pooled.shape[0], self.n_features - self.n_context)
            self._out = torch.empty(shape, dtype=self._dtype, device=pooled.device)
        slot = self.states.index((layer, point)) * self.n_dims
        self._out[:, slot : slot + self.n_dims] = pooled.to(self._dtype)

    def finish(self, index: BatchIndex) -> Features:
        """The features of the batch's answers, on the CPU in the recipe's dtype."""
        assert self._out is not None, "no wanted state was visited"
        values, self._out = self._out.to("cpu", self._dtype), None
        if self.context_state is not None:
            assert self._context is not None, "the context was not visited"
            values, self._context = torch.cat([values, self._context.to("cpu")], dim=1), None
        n_answers = index.offsets.shape[0] - 1
        offsets = torch.arange(n_answers + 1) if self.recipe.is_pooled else index.offsets
        return Features(values, offsets, self.recipe.is_pooled)

    def _select(self, states: Tensor, index: BatchIndex) -> Float[Tensor, "tokens width"]:
        if self.recipe.pooling == "last":  # the other tokens need not be copied
            last = (index.offsets[1:] - 1).to(states.device)
            return states[index.rows[last], index.columns[last]]
        if self.recipe.pooling == "prompt_end":  # where the first response token is predicted
            return _prompt_ends(states, index)
        return states[index.rows, index.columns]

    def _after_select(self, index: BatchIndex) -> BatchIndex:
        if self.recipe.pooling not in ("last", "prompt_end"):
            return index
        n_answers = index.offsets.shape[0] - 1
        every = torch.arange(n_answers + 1)
        return BatchIndex(index.rows, index.columns, index.previous, every, every[:-1])

    def project(
        self, point: StatePoint, tokens: Float[Tensor, "tokens width"]
    ) -> Float[Tensor, "tokens features"]:
        """States of one layer in the recipe's subspace, float32, before pooling and rounding."""
        basis = self._device_bases.get(point)
        if basis is None:
            return tokens.float()
        if point == "residual":
            tokens = normalised(self.unembedding, tokens)
        return basis.project(tokens)

    def _logits(self, states: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocab"]:
        return torch.cat([logits_of(part, self.unembedding) for part in states.split(LOGIT_ROWS)])

    def _log_probabilities(
        self, states: Tensor, index: BatchIndex, batch: TokenBatch
    ) -> Float[Tensor, "answers scalars"]:
        targets = batch.ids[index.rows, index.columns]
        before = states[index.rows, index.previous]
        chosen, entropy = [], []
        for part, target in zip(before.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
            log_p = torch.log_softmax(logits_of(part, self.unembedding), dim=-1)
            chosen.append(log_p.gather(1, target[:, None]))
            entropy.append(-(log_p.exp() * log_p).sum(dim=1, keepdim=True))
        log_p, spread = torch.cat(chosen), torch.cat(entropy)
        return torch.cat(
            [
                pool(log_p, index, "mean"),
                -pool(-log_p, index, "max"),
                pool(spread, index, "mean"),
                pool(spread, index, "last"),
                pool(spread, index, "max"),
            ],
            dim=1,
        )


def _prompt_ends(
    states: Float[Tensor, "rows tokens width"], index: BatchIndex
) -> Float[Tensor, "answers width"]:
    """States where the first response token of each answer is predicted."""
    first = index.offsets[:-1].to(states.device)
    return states[index.rows[first], index.previous[first]]
