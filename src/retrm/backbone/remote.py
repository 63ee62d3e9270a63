"""A backbone whose weights lie on the workers of an engine: on this machine or on many.

`RemoteBackbone` has everything of the backbone but its blocks (renderer, final norm, LM head,
fingerprint, sizes), as the first worker that loaded it describes them, so the machine that directs
needs neither its files nor its memory. `forward` is not offered: whoever reads or samples sends
`Work` to `engine` instead, with `handle`, the recipe by which a worker loads the backbone. A worker
that finds another model under the name (other weights, tokenizer or template) refuses to work.
"""

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from retrm.backbone.base import (
    OWN_STATES,
    Backbone,
    Fingerprint,
    StatePoint,
    TokenBatch,
    Unembedding,
    Visit,
)
from retrm.backbone.load import load_backbone
from retrm.backbone.readout import FromReadout, Readout
from retrm.backbone.resolve import KNOWN
from retrm.engines.base import Engine
from retrm.errors import BackboneError


@dataclass(frozen=True)
class BackboneHandle:
    """How a worker gets the backbone; plain data, sent to every worker.

    Attributes:
        name: as for `load_backbone`; a folder must lie under this path on every machine.
        dtype: in which it multiplies.
        device: as the worker sees it.
        counts_end: whether the end-of-turn token belongs to the judged tokens.
        template: as for `load_backbone`.
        trust_remote_code: run Python code that comes with the model.
        fingerprint: that it must have; None = not known yet.
    """

    name: str
    dtype: str = "float32"
    device: str = "cpu"
    counts_end: bool = True
    template: str = "chat"
    trust_remote_code: bool = False
    fingerprint: Fingerprint | None = None

    def load(self) -> Backbone:
        """The backbone, loaded once in each process.

        Raises:
            BackboneError: it cannot be loaded, or is another one than was described.
        """
        backbone = _loaded(replace(self, fingerprint=None))
        if self.fingerprint not in (None, backbone.fingerprint):
            raise BackboneError(
                f"{self.name!r} is another model here than on the worker that described it; expected "
                "the same files on every machine. Copy them, or put them on a shared file system"
            )
        return backbone


@functools.lru_cache(maxsize=1)
def _loaded(handle: BackboneHandle) -> Backbone:
    return load_backbone(
        handle.name,
        dtype=handle.dtype,
        device=handle.device,
        counts_end=handle.counts_end,
        template=handle.template,
        trust_remote_code=handle.trust_remote_code,
    )


@dataclass(frozen=True)
class _Description:
    readout: Readout
    shares_prompts: bool
    caches_prompts: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class _Describe:
    """Work: load the backbone and tell what it is."""

    handle: BackboneHandle

    def start(self) -> Callable[[None], _Description]:
        """Load it."""
        backbone = self.handle.load()
        readout = replace(Readout.of(backbone), unembedding=_on_cpu(backbone.unembedding))
        return lambda _: _Description(
            readout, backbone.shares_prompts, backbone.caches_prompts, backbone.dtype
        )


def _on_cpu(head: Unembedding) -> Unembedding:
    bias, gain, norm_bias = (
        None if tensor is None else tensor.detach().cpu()
        for tensor in (head.bias, head.gain, head.norm_bias)
    )
    return replace(
        head, weight=head.weight.detach().cpu(), bias=bias, gain=gain, norm_bias=norm_bias
    )


class RemoteBackbone(FromReadout):
    """A backbone on the workers of `engine`; implements `Backbone` but for `forward`.

    Attributes:
        engine: where it is loaded.
        handle: by which a worker loads it, with its fingerprint.
    """

    states_from = OWN_STATES

    def __init__(
        self, name: str, engine: Engine, handle: BackboneHandle, description: _Description
    ) -> None:
        super().__init__(description.readout, name)
        self.engine = engine
        self.handle = replace(handle, fingerprint=self.fingerprint)
        self.shares_prompts = description.shares_prompts
        self.caches_prompts = description.caches_prompts
        self._dtype = description.dtype

    @property
    def dtype(self) -> torch.dtype:
        """In which the workers multiply."""
        return self._dtype

    def forward(
        self, batch: TokenBatch, wanted: Collection[tuple[int, StatePoint]], visit: Visit
    ) -> None:
        """Not here.

        Raises:
            BackboneError: always.
        """
        raise BackboneError(
            f"{self.name!r} lies on the workers of an engine, and this needs its states in this "
            "process; use engine local"
        )


def open_backbone(
    name: str,
    *,
    engine: Engine | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    counts_end: bool = True,
    template: str = "chat",
    trust_remote_code: bool = False,
) -> Backbone:
    """A backbone in this process, or on the workers of an engine.

    Args:
        name: as for `load_backbone`.
        engine: where to load it; None = here.
        dtype: as for `load_backbone`.
        device: as for `load_backbone`; with an engine, as a worker sees it.
        counts_end: whether the end-of-turn token belongs to the judged tokens.
        template: as for `load_backbone`.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        BackboneError: it cannot be loaded.
        EngineError: the workers keep dying.
    """
    options = {
        "dtype": dtype,
        "device": device,
        "counts_end": counts_end,
        "template": template,
        "trust_remote_code": trust_remote_code,
    }
    if engine is None:
        return load_backbone(name, **options)
    handle = BackboneHandle(_for_workers(name), **options)
    return RemoteBackbone(name, engine, handle, engine.call(_Describe(handle), None))


def _for_workers(name: str) -> str:
    """A file or folder by its full path, since workers have another working directory."""
    path = Path(name).expanduser()
    # A folder of that name does not hide a built-in model here either.
    return str(path.resolve()) if name not in KNOWN and path.exists() else name
