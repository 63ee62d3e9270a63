"""Tokens in, hidden states out: the only file that knows which tensor is which layer.

    layer i, residual    i < L: what block i + 1 receives;  i = L: what the final norm receives
    layer i, post_norm   i = L: what the final norm returns; i < L: final norm of the residual

States are read by hooks on the modules that receive them, so nothing depends on what a family puts
into `hidden_states` (entry L is already normed in most, Mamba has no entry for the embedding). Only
the decoder runs: no LM head, no logits, no cache, and no block above the highest wanted layer.

Source: the identity post_norm = FinalNorm(residual at L), logits = W post_norm; HARP, arXiv
2509.11536, reads post_norm of the last layer; ELHSR and SWIFT read the residuals of all layers.
"""

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from retrm.backbone.base import (
    Fingerprint,
    Renderer,
    StatePoint,
    TokenBatch,
    Unembedding,
    Visit,
)
from retrm.backbone.locate import Located, locate
from retrm.errors import BackboneError, OverlongError, RecipeError, did_you_mean

State = tuple[int, StatePoint]


# A long prompt passes in pieces of so many tokens.
_PREFIX_TOKENS = 1024


@dataclass(frozen=True)
class _Prefix:
    """A prompt that was read: its token ids, their keys and values, up to which layer."""

    ids: tuple[int, ...]
    cache: Any
    layer: int

    def serves(self, ids: tuple[int, ...], wanted: Collection[State]) -> bool:
        """Whether it is this prompt, read as high as `wanted` needs."""
        return self.ids == ids and max(layer for layer, _ in wanted) <= self.layer

    def drop_answers(self) -> None:
        """Leave the keys and values of the prompt alone; `crop` means other things in each release."""
        n = len(self.ids)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[..., :n, :], layer.values[..., :n, :]


class _EnoughRead(Exception):
    """Every wanted state has been visited."""


class TransformersBackbone:
    """A frozen transformers causal LM whose states can be read.

    Args:
        model: a causal LM as `AutoModelForCausalLM.from_pretrained` gives it; it is put into eval
            mode, since dropout would make states random.
        renderer: turns answers into token ids.
        fingerprint: what heads fitted on these states belong to.
        name: as the user typed it, for messages and manifests.

    Raises:
        BackboneError: the family cannot be read (see `locate`).
    """

    def __init__(
        self, model: nn.Module, renderer: Renderer, fingerprint: Fingerprint, name: str
    ) -> None:
        self.model = model.eval()
        self.renderer = renderer
        self.fingerprint = fingerprint
        self.name = name
        self.located: Located = locate(model)
        self.n_layers = len(self.located.blocks)
        self.width = self.located.width
        self.vocab_size = self.located.unembedding.weight.shape[0]
        self.context_length = self.located.context_length
        self.shares_prompts = self.located.shares_prompts
        # Frequencies that follow the length of a row would differ between a prompt and its answers.
        self.caches_prompts = self.shares_prompts and self.located.switch_at is None
        self._prefix: _Prefix | None = None

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embedding."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the weights are multiplied."""
        return self.model.dtype

    @property
    def unembedding(self) -> Unembedding:
        """The final norm and the LM head."""
        return self.located.unembedding

    def forward(self, batch: TokenBatch, wanted: Collection[State], visit: Visit) -> None:
        """One pass over `batch` that calls `visit` for each wanted state as it appears.

        Calls come in ascending layer order, residual before post_norm. The tensors, (rows, tokens,
        width) in the model's dtype, are inference tensors and belong to the pass: a visitor keeps
        what it computes from them, never the tensors. Positions of padding hold finite nonsense.

        Raises:
            RecipeError: a layer outside 0..L or an unknown state point.
            OverlongError: a position beyond the context.
            BackboneError: rows with several answers on a backbone with shares_prompts = False, a
                model that was put back into training mode, or blocks that did not run as located.
        """
        self._check(batch, wanted)
        if not wanted:
            return
        switch_at = self.located.switch_at
        # Rotary frequencies would follow the longest row: such rows must not meet in one pass.
        if switch_at is not None and batch.attention.ndim == 2:
            is_long = batch.attention.sum(1) > switch_at
            if is_long.any() and not is_long.all():
                self._forward_apart(batch, is_long, wanted, visit)
                return
        self._run(batch, wanted, visit)

    def _check(self, batch: TokenBatch, wanted: Collection[State]) -> None:
        for layer, point in wanted:
            if not 0 <= layer <= self.n_layers:
                raise RecipeError(
                    f"got layer {layer}; {self.name} has layers 0 (embedding) to {self.n_layers} "
                    f"(output of the last block). Choose one of them"
                )
            if point not in get_args(StatePoint):
                raise RecipeError(
                    f"got state point {point!r}. {did_you_mean(str(point), get_args(StatePoint))}"
                )
        if batch.attention.ndim == 4 and not self.shares_prompts:
            raise BackboneError(
                f"got rows that hold several answers, but {self.name} "
                f"({self.located.model_type}) cannot keep them apart; plan with share_prompts=False"
            )
        if batch.positions.numel() and int(batch.positions.max()) >= self.context_length:
            raise OverlongError(
                f"got an answer that reaches position {int(batch.positions.max())}; {self.name} "
                f"has a context of {self.context_length} tokens. Shorten or drop it"
            )
        if self.located.decoder.training:
            raise BackboneError(f"{self.name} is in training mode; call model.eval() first")

    def _run(self, batch: TokenBatch, wanted: Collection[State], visit: Visit) -> None:
        inputs = self.inputs(batch)
        watched = self.watched(wanted, visit, stop=True)
        if batch.prefix:
            inputs |= {"past_key_values": self._prefix_of(batch, wanted).cache, "use_cache": True}
        try:
            with suppress(_EnoughRead), torch.inference_mode(), watched:
                self.located.decoder(**inputs)
        finally:
            if batch.ends_prefix:
                self._prefix = None
            elif self._prefix is not None:
                self._prefix.drop_answers()

    def _prefix_of(self, batch: TokenBatch, wanted: Collection[State]) -> "_Prefix":
        """Keys and values of the prompt in front of `batch`: kept since its last batch, or read now.

        The prompt passes in pieces, so that its activations are never larger than those of a batch,
        and no higher than the states that are wanted.
        """
        if self._prefix is not None and self._prefix.serves(batch.prefix, wanted):
            return self._prefix
        from transformers.cache_utils import DynamicCache

        top = max(wanted, key=lambda state: (state[0], state[1] == "residual"))
        prefix = _Prefix(batch.prefix, DynamicCache(), top[0])
        for start in range(0, len(batch.prefix), _PREFIX_TOKENS):
            ids = torch.tensor([batch.prefix[start : start + _PREFIX_TOKENS]], device=self.device)
            piece = replace(
                batch,
                ids=ids,
                positions=torch.arange(start, start + ids.shape[1])[None],
                attention=torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[
                    None, None
                ],
                prefix=batch.prefix[:start],
            )
            inputs = self.inputs(piece) | {"past_key_values": prefix.cache, "use_cache": True}
            with (
                suppress(_EnoughRead),
                torch.inference_mode(),
                self.watched({top}, lambda *_: None, stop=True),
            ):
                self.located.decoder(**inputs)
        self._prefix = prefix
        return prefix

    @contextmanager
    def watched(
        self, wanted: Collection[State], visit: Visit, *, stop: bool = False
    ) -> Iterator[None]:
        """Show `visit` the wanted states of the ONE pass of the model that is run inside.

        Serves whoever runs the model itself, with a cache of keys and values for example: states
        are those of the tokens that pass through, (rows, new tokens, width).

        Args:
            wanted: the (layer, state point) pairs.
            visit: called for each, as in `forward`.
            stop: break the pass off behind the last of them.

        Raises:
            BackboneError: the blocks did not run as located.
        """
        missing = set(wanted)

        def deliver(layer: int, point: StatePoint, state: Tensor) -> None:
            if (layer, point) not in missing:
                raise BackboneError(
                    f"layer {layer} of {self.name} ran twice in one pass; its blocks are shared "
                    "and have no layer number"
                )
            missing.discard((layer, point))
            visit(layer, point, state)
            if stop and not missing:
                raise _EnoughRead

        with _hooked(self.located, set(wanted), deliver):
            yield
        if missing:
            raise BackboneError(
                f"{self.name} ran without passing layers {sorted(missing)}: its forward does not "
                "call the blocks and the final norm that were found. Choose another backbone"
            )

    def _forward_apart(
        self, batch: TokenBatch, is_long: Tensor, wanted: Collection[State], visit: Visit
    ) -> None:
        """Long and short rows in two passes, visited as one; holds the wanted states of both."""
        parts: list[dict[State, Tensor]] = []
        for rows in (~is_long, is_long):
            kept: dict[State, Tensor] = {}
            part = replace(
                batch,
                ids=batch.ids[rows],
                positions=batch.positions[rows] * batch.attention[rows],
                attention=batch.attention[rows],
            )
            self._run(
                part, wanted, lambda layer, point, x, kept=kept: kept.update({(layer, point): x})
            )
            parts.append(kept)
        for key, short in parts[0].items():
            whole = short.new_empty(len(is_long), *short.shape[1:])
            whole[~is_long.to(whole.device)] = short
            whole[is_long.to(whole.device)] = parts[1][key]
            visit(*key, whole)

    def inputs(self, batch: TokenBatch) -> dict[str, Any]:
        """Keyword arguments of the decoder; families without positions or masks get none."""
        inputs: dict[str, Any] = {"input_ids": batch.ids.to(self.device), "use_cache": False}
        positions = batch.positions.to(self.device)
        if self.located.takes_positions:
            inputs["position_ids"] = positions
        if batch.attention.ndim == 4:
            before = torch.arange(len(batch.prefix), device=self.device).expand(len(positions), -1)
            seen = batch.attention.to(self.device)
            seen = torch.cat([seen.new_ones(*seen.shape[:3], before.shape[1]), seen], dim=3)
            looked_at = torch.cat([before, positions], dim=1)
            inputs["attention_mask"] = self._dense_masks(seen, positions, looked_at)
        elif self.located.takes_mask:
            inputs["attention_mask"] = batch.attention.to(self.device).long()
        return inputs

    def _dense_masks(
        self, mask: Tensor, positions: Tensor, looked_at: Tensor
    ) -> Tensor | Mapping[str, Tensor]:
        """(rows, 1, tokens, keys) bool -> what the family adds to its attention scores.

        A dense mask switches off the family's own local attention, so the window is cut here, by
        position: a token sees its prompt and itself, where a difference of positions is a distance.
        """
        style, window = self.located.masks, self.located.window
        near = mask
        if window is not None:
            near = mask & (positions[:, None, :, None] - looked_at[:, None, None, :] < window)
        if style == "plain" or window is None:
            return self._additive(mask)
        if style == "window":
            return self._additive(near)
        return {"full_attention": self._additive(mask), "sliding_attention": self._additive(near)}

    def _additive(self, mask: Tensor) -> Tensor:
        # Eager attention ADDS the mask, so that a boolean one would be taken for scores of 0 and 1;
        # the lowest finite number instead of -inf keeps padding free of NaN.
        zeros = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device)
        return zeros.masked_fill_(~mask, torch.finfo(self.dtype).min)


@contextmanager
def _hooked(located: Located, wanted: set[State], deliver: Visit) -> Iterator[None]:
    """Hooks on the modules that receive the wanted states; removed however the pass ends."""
    n_layers = len(located.blocks)
    owner = threading.get_ident()
    handles = []

    def before(layer: int, module: nn.Module) -> None:
        def read(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            # Another thread may sample from the same weights; its pass is none of ours.
            if threading.get_ident() == owner:
                _deliver_input(located, layer, args[0] if args else kwargs["hidden_states"])

        handles.append(module.register_forward_pre_hook(read, with_kwargs=True))

    def _deliver_input(located: Located, layer: int, state: Tensor) -> None:
        if (layer, "residual") in wanted:
            deliver(layer, "residual", state)
        if layer < n_layers and (layer, "post_norm") in wanted:
            # `forward` rather than a call: the norm's own hooks wait for layer L.
            deliver(layer, "post_norm", located.final_norm.forward(state))

    def after(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        if threading.get_ident() == owner:
            deliver(n_layers, "post_norm", output)

    try:
        for layer in sorted({layer for layer, _ in wanted}):
            before(layer, located.blocks[layer] if layer < n_layers else located.final_norm)
        if (n_layers, "post_norm") in wanted:
            handles.append(located.final_norm.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()
