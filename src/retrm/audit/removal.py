r"""A subspace is taken out of the hidden states while the model works.

    x  <-  x - Bᵀ (B x - c)        B (m, D) orthonormal rows;  c = 0, or the mean of B x over tokens

`removed` does it for everything that runs inside a context, `MeanReducer` gives the means to put back.

* A state without a component may lie where the model has never been. With means in `Change` the mean
  coefficient is put back, so that loss of information can be told from being off the distribution.
* The first token of a row is an attention sink in most models: its state is far longer than others
  and serves as a constant (arXiv 2309.17453, 2402.17762). Removing its component harms every later
  token, whatever the subspace says of them; `spare_first` leaves that state alone.
* The final norm divides by the length of what is left. Removing a direction that the LM head does not
  see at all leaves the logits alone at `post_norm`, but rescales all of them at the last `residual`.

Source: directional ablation, arXiv 2406.11717, section 2.4; putting the mean back, arXiv 2211.00593.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrm.audit.intervention_plan import Fill
from retrm.backbone.base import Backbone, StatePoint, TokenBatch
from retrm.backbone.states import TransformersBackbone
from retrm.errors import BackboneError, DataError, RecipeError, ShapeError
from retrm.features.reduce import BatchIndex, Features, Layout
from retrm.features.subspace import Subspace

Removed = Literal["reasoning", "semantic", "random", "random_energy"]
State = tuple[int, StatePoint]
Means = Mapping[int, Float[Tensor, " subspace"]]


@contextmanager
def removed(
    backbone: Backbone,
    layers: Collection[int],
    change: "Change",
    *,
    spare_first: bool = False,
) -> Iterator[None]:
    """Inside the context the states of `layers` are changed.

    Everything that this thread runs on the backbone's model sees it: `read`, and `sample` with or
    without a cache. `sample` gives its answers lazily, so use them up inside the context. A reading
    of a changed layer gets the changed state. Computed in float32, cast back to the model's dtype.

    Args:
        backbone: a transformers model.
        layers: 0 = embedding output, i = output of block i. A post_norm basis goes with the last
            layer only, where it changes what the final norm returns.
        change: what is taken out of them, and put back.
        spare_first: leave the state at position 0 of every row alone.

    Raises:
        RecipeError: no layer, an unknown one, a post_norm basis for another layer than the last,
            means that lack a layer, or `spare_first` without position ids.
        ShapeError: a basis or means of another width.
        BackboneError: the backbone is no transformers model.
    """
    model = expect_transformers(backbone)
    _check_removal(model, layers, change.basis)
    _check_means(layers, change)
    with ExitStack() as hooks:
        positions = _positions(model, hooks) if spare_first else None
        for layer in sorted(set(layers)):
            _hook(model, layer, change, positions, hooks)
        yield


@dataclass(frozen=True)
class Change:
    """x -> x - Bᵀ(B x - c) at a layer.

    Attributes:
        basis: B, of residual states (W diag(gain)) or of post_norm states (W); `basis.point` says
            which.
        means: c (m,) by layer: coefficients of a mean state, see `MeanReducer`; none at all = zero.
    """

    basis: Subspace
    means: Means = field(default_factory=dict)

    @property
    def fill(self) -> Fill:
        """What takes the place of the component."""
        return "mean" if self.means else "zero"

    def coefficients(
        self, layer: int, states: Float[Tensor, "... width"]
    ) -> Float[Tensor, "... subspace"]:
        """What is taken out of `states`, on the basis."""
        found = self._basis(states).project(states)
        mean = self.means.get(layer)
        return found if mean is None else found - mean.to(found)

    def apply(self, layer: int, states: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """The changed states, in their own dtype."""
        basis = self._basis(states)
        kept = basis.remove(states)
        mean = self.means.get(layer)
        if mean is not None:
            kept = kept + mean.to(kept) @ basis.basis
        return kept.to(states.dtype)

    def _basis(self, states: Tensor) -> Subspace:
        # A Subspace on the CPU checks itself when it is made, so it is moved only where it must be.
        is_there = self.basis.basis.device == states.device
        return self.basis if is_there else self.basis.to(states.device)


def _hook(
    model: TransformersBackbone,
    layer: int,
    change: Change,
    positions: Callable[[], Tensor] | None,
    hooks: ExitStack,
) -> None:
    """Change what the module behind `layer` receives, or what the final norm returns.

    Hooks go first in line, so that those of a reading see the changed state.
    """
    owner = threading.get_ident()
    located = model.located

    def changed(states: Tensor) -> Tensor:
        out = change.apply(layer, states)
        if positions is None:
            return out
        is_first = (positions() == 0).to(states.device)[..., None]  # (rows or 1, tokens, 1)
        return torch.where(is_first, states, out)

    def before(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        # Another thread may sample from the same weights; its pass is none of ours.
        if threading.get_ident() != owner:
            return None
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"])}

    def after(_module: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
        return changed(output) if threading.get_ident() == owner else None

    if change.basis.point == "post_norm":
        handle = located.final_norm.register_forward_hook(after, prepend=True)
    else:
        at = located.blocks[layer] if layer < model.n_layers else located.final_norm
        handle = at.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
    hooks.callback(handle.remove)


def _positions(model: TransformersBackbone, hooks: ExitStack) -> Callable[[], Tensor]:
    """A function that gives the position ids of the pass that is under way."""
    check_positions(model)
    seen: dict[str, Tensor] = {}

    def note(_module: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        found = kwargs.get("position_ids")
        if found is None:
            raise BackboneError(
                f"{model.name} ran without position ids, so its first tokens cannot be told; "
                "use spare_first=False"
            )
        seen["ids"] = found

    handle = model.located.decoder.register_forward_pre_hook(note, with_kwargs=True)
    hooks.callback(handle.remove)
    return lambda: seen["ids"]


def check_positions(model: TransformersBackbone) -> None:
    """Refuse to spare first tokens that cannot be told.

    Raises:
        RecipeError: the model takes no position ids.
    """
    if not model.located.takes_positions:
        raise RecipeError(
            f"got spare_first=True, but {model.name} ({model.located.model_type}) takes no position "
            "ids, so its first tokens cannot be told; use spare_first=False"
        )


def expect_transformers(backbone: Backbone) -> TransformersBackbone:
    """The backbone, where its blocks can be changed.

    Raises:
        BackboneError: it is no transformers model.
    """
    if not isinstance(backbone, TransformersBackbone):
        raise BackboneError(
            f"got a {type(backbone).__name__}; expected a transformers model, since an intervention "
            "changes what its blocks hand on. Load one with load_backbone"
        )
    return backbone


def _check_removal(model: TransformersBackbone, layers: Collection[int], basis: Subspace) -> None:
    if not layers:
        raise RecipeError("got no layers to intervene at; expected at least one")
    last = model.n_layers
    for layer in layers:
        if not 0 <= layer <= last:
            raise RecipeError(
                f"got layer {layer}; {model.name} has layers 0 (embedding) to {last} (output of the "
                "last block). Choose one of them"
            )
        if basis.point == "post_norm" and layer != last:
            raise RecipeError(
                f"got a post_norm basis (raw W) for layer {layer}; it holds only where the LM head "
                f"reads, at layer {last}. Use a residual basis (W diag(gain)) for the layers below"
            )
    if basis.width != model.width:
        raise ShapeError(
            f"got a basis of width {basis.width}; the states of {model.name} have width "
            f"{model.width}. Fit the subspace on this model"
        )


def _check_means(layers: Collection[int], change: Change) -> None:
    missing = sorted(set(layers) - set(change.means))
    if change.means and missing:
        raise RecipeError(
            f"got means without those of layers {missing}; expected (m,) coefficients for each layer, "
            "such as basis.project(MeanReducer.means()[layer, basis.point]), or none at all"
        )
    for layer, mean in change.means.items():
        if mean.shape != (change.basis.n_dims,):
            raise ShapeError(
                f"got means of shape {tuple(mean.shape)} for layer {layer}; expected "
                f"({change.basis.n_dims},), one a direction of the basis"
            )


@dataclass(frozen=True)
class Intervention:
    """One thing that is removed at some layers.

    Attributes:
        text: the layers as typed.
        layers: their numbers.
        removed: what.
        draw: of a random subspace.
        change: how.
    """

    text: str
    layers: tuple[int, ...]
    removed: Removed
    draw: int
    change: Change

    @property
    def m(self) -> int:
        """Directions removed."""
        return self.change.basis.n_dims

    @property
    def point(self) -> StatePoint:
        """Where the change is made."""
        return self.change.basis.point


# ----------------------------------------------------------------------------------- the means


class MeanReducer:
    """Mean states over the real tokens of prompts and answers, the first token of a row left out.

    That token is an attention sink, long enough to move the mean away from all others. The mean
    coefficients of any basis are its projection of the mean state.

    The tokens of a prompt belong to no single answer, so the sums stay here and the features of the
    answers are empty.

    Args:
        wanted: (layer, state point) pairs.
    """

    layout = Layout(0, True, torch.float32)

    def __init__(self, wanted: Collection[State]) -> None:
        self.wanted = tuple(sorted(wanted))
        self.sums: dict[State, Tensor] = {}
        self.n_tokens = 0

    reads_prompts = True

    def visit(
        self, layer: int, point: StatePoint, states: Tensor, index: BatchIndex, batch: TokenBatch
    ) -> None:
        """Add up the real tokens of a batch."""
        is_real = _real_tokens(batch)
        total = states[is_real.to(states.device)].double().sum(0).cpu()
        self.sums[layer, point] = self.sums.get((layer, point), 0) + total
        if (layer, point) == self.wanted[-1]:
            self.n_tokens += int(is_real.sum())

    def means(self) -> dict[State, Float[Tensor, " width"]]:
        """Of all batches that were visited.

        Raises:
            DataError: there was no token behind a first one.
        """
        if self.n_tokens == 0:
            raise DataError("got no tokens to average; expected answers with prompts")
        return {state: (total / self.n_tokens).float() for state, total in self.sums.items()}

    def finish(self, index: BatchIndex) -> Features:
        """No features: see `means`."""
        n_answers = index.offsets.shape[0] - 1
        return Features.none(n_answers)


def _real_tokens(batch: TokenBatch) -> Tensor:
    """(rows, tokens) True for tokens of prompts and answers, but for the first of a row."""
    is_real = batch.is_prompt()
    is_real[:, 0] = False
    for row, span in zip(batch.rows, batch.spans, strict=True):
        is_real[row, span] = True
    return is_real
