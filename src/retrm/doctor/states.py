"""States of whole texts by the plainest way of reading, and how far apart two readings are."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from retrm.backbone.base import Backbone, Rendered, StatePoint, TokenBatch
from retrm.backbone.batching import whole_rows
from retrm.doctor.report import Limits

State = tuple[int, StatePoint]
States = Mapping[State, Float[Tensor, "tokens width"]]

FEW = 4  # the first texts, short and long, where all would be a waste of time


def laid_out(backbone: Backbone, rendered: Sequence[Rendered], *, left: bool = False) -> TokenBatch:
    """One answer a row with every token of it in its span, padded on either side by any tokens."""
    texts = [item.ids[: item.stop] for item in rendered]
    n = len(texts) * max(map(len, texts))
    padding = torch.arange(n).reshape(len(texts), -1) % backbone.vocab_size
    return whole_rows(texts, padding=padding, left=left, device=backbone.device)


def read_states(backbone: Backbone, batch: TokenBatch, wanted: Sequence[State]) -> list[States]:
    """Per answer of `batch` the states of its span, float32 on the CPU.

    Raises:
        ValueError: the backbone shows states of another shape than the batch; a fault of the backbone.
    """
    found: list[dict[State, Tensor]] = [{} for _ in batch.answers]

    def keep(layer: int, point: StatePoint, states: Tensor) -> None:
        if states.ndim != 3 or tuple(states.shape[:2]) != tuple(batch.ids.shape):
            raise ValueError(
                f"states of layer {layer} have shape {tuple(states.shape)} for {tuple(batch.ids.shape)} "
                "tokens"
            )
        for at, (row, span) in enumerate(zip(batch.rows, batch.spans, strict=True)):
            found[at][layer, point] = states[row, span.to(states.device)].float().cpu()

    backbone.forward(batch, list(wanted), keep)
    return found


def difference(a: Sequence[States], b: Sequence[States], limits: Limits) -> float:
    """How far the states `b` are from `a`, relative to `a` (see `retrm.doctor`)."""
    per_token = [
        (x[key] - y[key]).norm(dim=-1) / x[key].norm(dim=-1).clamp(min=1e-30)
        for x, y in zip(a, b, strict=True)
        for key in x
    ]
    every = torch.cat(per_token)
    # `max` of a tensor keeps NaN, Python's does not.
    return float(every.max() if limits.by_worst_token else every.mean())


def mean_difference(a: Tensor, b: Tensor) -> Tensor:
    """Relative difference of two states, mean of all tokens; infinite for two shapes."""
    if a.shape != b.shape:
        return torch.tensor(float("inf"))
    return ((a - b).norm(dim=-1) / b.norm(dim=-1).clamp(min=1e-30)).mean()
