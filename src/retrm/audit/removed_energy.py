r"""How much of the unchanged states a removal takes out, as a share of their squared norm.

    share of B at x  =  |B x - c|² / |x|²        c = 0, or the mean coefficients that are put back

Subspaces of equal width hold unequal energy: the first singular direction alone can carry most of a
state, and the reasoning subspace may hold far less, or more, than m of D directions would by chance.
That it hurts more or less to remove it than to remove m random directions may be that and nothing
else. So there is a second control: random directions, as many as take out about the same share.
`EnergyProfile` sees what each direction of a whole random basis takes out, and counts off as many of
them as are needed.

The mean of a state, which a LayerNorm does not see, does not count as part of |x|, so that the shares
of all singular directions add up to 1.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from retrm.audit.removal import Intervention, State
from retrm.backbone.base import StatePoint, TokenBatch, Unembedding
from retrm.features.reduce import BatchIndex, Features, Layout, pool
from retrm.features.subspace import Subspace


class RemovedEnergy:
    """Per answer and intervention: the share, mean over judged tokens and the layers changed."""

    def __init__(self, head: Unembedding, interventions: Sequence[Intervention]) -> None:
        self._head = head
        self._interventions = interventions
        self._shares: Tensor | None = None
        self.wanted = tuple({(i, each.point) for each in interventions for i in each.layers})
        self.layout = Layout(len(interventions), True, torch.float32)

    reads_prompts = True

    def visit(
        self, layer: int, point: StatePoint, states: Tensor, index: BatchIndex, batch: TokenBatch
    ) -> None:
        """Add the shares at one layer."""
        tokens = states[index.rows, index.columns].float()
        whole = _squared_norms(self._head, point, tokens)
        if self._shares is None:
            self._shares = torch.zeros(len(tokens), len(self._interventions), device=tokens.device)
        for column, each in enumerate(self._interventions):
            if each.point == point and layer in each.layers:
                out = each.change.coefficients(layer, tokens).square().sum(1)
                self._shares[:, column] += out / whole / len(each.layers)

    def finish(self, index: BatchIndex) -> Features:
        """(answers, interventions)."""
        assert self._shares is not None, "no wanted state was visited"
        values, self._shares = pool(self._shares, index, "mean").cpu(), None
        return Features(values, torch.arange(len(values) + 1), True)


class EnergyProfile:
    """What each single direction of some bases takes out, mean over judged tokens, then answers.

    Only sums stay here, D numbers a state and basis: the features of the answers are empty. With
    w = 1 / |x|², of which the mean is taken like that of everything else,

        w (b·x - b·mu)²  =  w (b·x)²  -  2 (b·mu) b·(w x)  +  w (b·mu)²

    so that the mean state mu need not be known while the states are seen.

    Args:
        head: of the backbone.
        wanted: (layer, state point) pairs.
        bases: by name; each is shown the states at its own point.
    """

    layout = Layout(0, True, torch.float32)

    def __init__(
        self, head: Unembedding, wanted: Collection[State], bases: Mapping[Hashable, Subspace]
    ) -> None:
        self.wanted = tuple(wanted)
        self._head = head
        self._bases = bases
        self._squares: dict[tuple[Hashable, int], Tensor] = {}
        self._scaled: dict[State, Tensor] = {}  # w x, and w as the last entry
        self._n_answers = 0

    reads_prompts = True

    def visit(
        self, layer: int, point: StatePoint, states: Tensor, index: BatchIndex, batch: TokenBatch
    ) -> None:
        """Add the sums at one layer."""
        tokens = states[index.rows, index.columns].float()
        weights = 1 / _squared_norms(self._head, point, tokens)[:, None]
        scaled = pool(torch.cat([tokens * weights, weights], dim=1), index, "mean")
        self._add(self._scaled, (layer, point), scaled)
        for name, basis in self._bases.items():
            if basis.point == point:
                squares = basis.to(tokens.device).project(tokens).square() * weights
                self._add(self._squares, (name, layer), pool(squares, index, "mean"))

    @staticmethod
    def _add(sums: dict, key: Hashable, rows: Tensor) -> None:
        sums[key] = sums.get(key, 0) + rows.double().sum(0).cpu()

    def finish(self, index: BatchIndex) -> Features:
        """No features: see `shares`."""
        n_answers = index.offsets.shape[0] - 1
        self._n_answers += n_answers
        return Features.none(n_answers)

    def shares(
        self,
        name: Hashable,
        layers: Collection[int],
        means: Mapping[State, Float[Tensor, " width"]] | None = None,
    ) -> Float[Tensor, " directions"]:
        """Share of every direction of a basis, mean over `layers`; `means` are put back."""
        basis = self._bases[name]
        total = torch.zeros(basis.n_dims, dtype=torch.float64)
        for layer in layers:
            total += self._squares[name, layer]
            if means is not None:
                scaled, state = self._scaled[layer, basis.point], (layer, basis.point)
                rows = basis.basis.double()
                kept = rows @ means[state].double()
                total += kept * (kept * scaled[-1] - 2 * rows @ scaled[:-1])
        return total / (len(layers) * self._n_answers)

    def first(
        self,
        name: Hashable,
        layers: Collection[int],
        target: float,
        means: Mapping[State, Float[Tensor, " width"]] | None = None,
    ) -> Subspace:
        """As many of the first directions of a basis as take out a share nearest to `target`.

        At least one, never all.
        """
        whole = self._bases[name]
        gaps = (self.shares(name, layers, means).cumsum(0) - target).abs()
        m = 1 + int(gaps[: max(whole.n_dims - 1, 1)].argmin())
        return replace(whole, basis=whole.basis[:m].contiguous())


def _squared_norms(
    head: Unembedding, point: StatePoint, tokens: Float[Tensor, "tokens width"]
) -> Float[Tensor, " tokens"]:
    if point == "residual" and head.norm_kind == "layer":
        tokens = tokens - tokens.mean(-1, keepdim=True)
    return tokens.square().sum(1).clamp_min(torch.finfo(torch.float32).tiny)
