r"""A whole model without gains, biases and means in its norms: a copy of unchanged function.

retrm reads the untouched model; the copy is there to prove the matrices of
`retrm.features.norm_folding`.

    1. readers behind a norm (g, b)    W_r <- W_r diag(g),   c <- c + W_r b  (with the old W_r)
    2. writers, LayerNorm only         W_o <- P W_o,   bias <- P bias,   each embedding row <- P row
    3. every norm                      RMS(x) = x / sqrt(mean(x²) + eps), the same eps
    4. `compress`, LayerNorm only      drop the last coordinate, it is minus the sum of the others:
                                       CRMS(z) = z / sqrt((sum z² + (sum z)²)/D + eps)

Source: arXiv 2305.14858 (Pre-RMSNorm and Pre-CRMSNorm), section 3; `rotate` is the invariance of
SliceGPT, arXiv 2401.15024. Proofs and refusals in words: docs/explanation/norm-folding.md.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrm.backbone.locate import (
    ATTENTION,
    READERS,
    WRITERS,
    Located,
    apply_norm,
    locate,
    read_norm,
)
from retrm.errors import BackboneError, RecipeError
from retrm.features.norm_folding import REAL_DTYPES, EffectiveHead, effective_head

LARGEST_DEVIATION = 1e-4
"""Of the logits of a folded copy, relative to the largest: float32 rounding is far below it, and a
forgotten gain, bias or mean far above."""


@dataclass(frozen=True)
class Stream:
    """Who reads and who writes the residual stream; module paths from the causal LM.

    Attributes:
        norms: each norm that is read, the final one among them, with its readers.
        bare: readers without a norm before them (OLMo 2).
        writers: matrices whose output is added to the stream.
        tables: token and position embeddings that are added to the stream.
        kept: modules through which something is written: a norm behind a branch (Gemma 2) or behind
            the embedding (BLOOM). Their gain lies on the writing side and stays.
    """

    norms: Mapping[str, tuple[str, ...]]
    bare: tuple[str, ...]
    writers: tuple[str, ...]
    tables: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def readers(self) -> tuple[str, ...]:
        """All of them, the LM head among them."""
        return (*self.bare, *(reader for group in self.norms.values() for reader in group))


@dataclass(frozen=True)
class FoldedModel:
    """A frozen copy of a causal LM with the same logits and gain-free norms.

    Attributes:
        model: the copy; called as the original is.
        head: the effective head in the coordinates of the copy's stream, on the CPU.
        norm_kind: of the original.
        width: D of the original.
        form: `folded`, `rotated` or `compressed` (the stream then has D - 1 coordinates).
        stream: who reads and writes.
        deviation: largest difference of a logit from the model it was made of, relative to the
            largest logit, on eight tokens.
    """

    model: nn.Module
    head: EffectiveHead
    norm_kind: Literal["rms", "layer"]
    width: int
    form: Literal["folded", "rotated", "compressed"]
    stream: Stream
    deviation: float


def fold_norm(model: nn.Module, *, dtype: torch.dtype = torch.float64) -> FoldedModel:
    """A copy of `model` with gain-free RMS norms and the same logits.

    Who reads behind which norm is observed on a pass over eight tokens, not taken from the family's
    name, and the result is compared with the original before it is handed out.

    Args:
        model: a transformers causal LM; it is not changed.
        dtype: of the copy, float64 or float32. Folding in bfloat16 would not be exact.

    Raises:
        RecipeError: another dtype.
        BackboneError: the model is post-LN, projects into or out of its stream, is quantised, has
            parts whose role is unknown, norms of two kinds, or the copy has other logits.
    """
    if dtype not in (torch.float64, torch.float32):
        raise RecipeError(f"folding in {dtype} would not be exact; expected float64 or float32")
    _refuse_unfoldable(model, locate(model))
    made = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
    located = locate(made)
    logits, calls = _watch(made)
    stream = _wire(made, located, calls)
    head = effective_head(located.unembedding)
    kind = located.unembedding.norm_kind
    if kind == "layer":
        _refuse_bare(stream, located.model_type)
    for norm, readers in stream.norms.items():
        _fold_gain(made, norm, readers, located)
    if kind == "layer":
        _change_basis(made, stream, write=_centred, read=None)
    for config in (made.config, made.config.get_text_config()):
        config.tie_word_embeddings = False
    folded = FoldedModel(made, head, kind, located.width, "folded", stream, math.nan)
    return _proven(folded, logits)


def rotate(folded: FoldedModel, rotation: Float[Tensor, "width width"]) -> FoldedModel:
    """The folded model with its stream in another orthonormal basis: x becomes x @ rotation.

    RMS without gain does not notice. With the right singular vectors of `folded.head.weight` as
    columns, largest first, the last k coordinates of every state are the reasoning subspace,
    literally. Of a LayerNorm model the last vector is the dead one and belongs to the front:
    `torch.linalg.svd(weight)[2].T.roll(1, dims=1)`.

    Args:
        folded: what `fold_norm` gave; it is not changed.
        rotation: orthogonal, in float64; its columns are the new axes.

    Raises:
        RecipeError: the model is rotated or compressed already, or the matrix is no orthogonal
            matrix to 1e-9 (a float32 one is not).
    """
    _expect_folded(folded, "rotated")
    width = folded.width
    if rotation.shape != (width, width):
        raise RecipeError(
            f"a rotation of a stream of width {width} has shape ({width}, {width}), not "
            f"{tuple(rotation.shape)}; expected all {width} singular vectors as columns"
        )
    turn = rotation.detach().to("cpu", torch.float64)
    gap = (turn.T @ turn - torch.eye(width, dtype=torch.float64)).abs().max().item()
    if not gap <= 1e-9:
        raise RecipeError(
            f"the rotation is not orthogonal (off by {gap:.1e}); expected 1e-9. Was it computed in "
            "float32? Decompose in float64"
        )

    def turned(x: Tensor) -> Tensor:
        return x @ turn.to(x.device, x.dtype)

    made = copy.deepcopy(folded.model)
    _change_basis(made, folded.stream, write=turned, read=turned)
    head = EffectiveHead(folded.head.weight @ turn, folded.head.bias)
    return _proven(replace(folded, model=made, head=head, form="rotated"), _watch(folded.model)[0])


def compress(folded: FoldedModel) -> FoldedModel:
    """The folded LayerNorm model with D - 1 coordinates in its stream (Pre-CRMSNorm).

    Raises:
        RecipeError: an RMSNorm model, whose stream has no redundant coordinate; or one that is
            rotated or compressed already.
    """
    if folded.norm_kind == "rms":
        raise RecipeError(
            "cannot compress an RMSNorm model: its norm keeps the mean, so no coordinate of the "
            "stream is redundant; expected a model with LayerNorm. Use the folded model as it is"
        )
    _expect_folded(folded, "compressed")
    made = copy.deepcopy(folded.model)
    _change_basis(made, folded.stream, write=_without_last, read=_compensated)
    for path in folded.stream.norms:
        made.set_submodule(path, CompressedRMS(made.get_submodule(path).eps, folded.width))
    head = EffectiveHead(_compensated(folded.head.weight), folded.head.bias)
    return _proven(
        replace(folded, model=made, head=head, form="compressed"), _watch(folded.model)[0]
    )


class GainFreeRMS(nn.Module):
    """x / sqrt(mean(x²) + eps) over the last axis."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Any shape, in the dtype of `x`."""
        return apply_norm(x, None, None, "rms", self.eps).to(x.dtype)


class CompressedRMS(nn.Module):
    """z / sqrt((sum z² + (sum z)²)/D + eps): RMS of a zero-mean x of which z lacks the last entry."""

    def __init__(self, eps: float, width: int) -> None:
        super().__init__()
        self.eps = eps
        self.width = width

    def forward(self, z: Float[Tensor, "... compressed"]) -> Float[Tensor, "... compressed"]:
        """Any shape (..., D - 1), in the dtype of `z`; `width` is the D before the compression."""
        total = z.square().sum(-1, keepdim=True) + z.sum(-1, keepdim=True).square()
        return z * torch.rsqrt(total / self.width + self.eps)


class _Rewritten(nn.Module):
    """A module that writes into the stream, followed by a change of the stream's basis."""

    def __init__(self, inner: nn.Module, matrix: Float[Tensor, "width new"]) -> None:
        super().__init__()
        self.inner = inner
        self.matrix = nn.Buffer(matrix)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) @ self.matrix


# ------------------------------------------------------------------------- what is refused


def _refuse_unfoldable(model: nn.Module, located: Located) -> None:
    """What `locate` lets pass, since reading such a model is no problem."""
    kind = located.model_type
    if getattr(model.config.get_text_config(), "apply_residual_connection_post_layernorm", False):
        raise BackboneError(
            f"cannot fold {kind!r}: its config says apply_residual_connection_post_layernorm, so the "
            "output of a norm is itself the stream (post-LN) and its gain cannot move into a "
            "reader. Use effective_head, which needs the final norm only"
        )
    # Not by `is_quantized`: transformers leaves it on models whose GGUF weights are plain again.
    # Some quantisers wrap the numbers in a tensor class of their own that names a plain dtype.
    for path, weight in model.named_parameters():
        is_wrapped = type(weight.data) is not Tensor
        if weight.dtype not in REAL_DTYPES or weight.is_meta or is_wrapped:
            found = (
                type(weight.data).__name__ if is_wrapped else f"{weight.dtype} on {weight.device}"
            )
            raise BackboneError(
                f"cannot fold {kind!r}: its weights are quantised or not in memory ({path} is "
                f"{found}); expected float64, float32, bfloat16 or float16. Load the model with its "
                "weights de-quantised"
            )
    # By name alone, before a copy is made or run: experts and adapters end here.
    blocks = _paths(model, located.blocks)
    named = {f"{block}.{name}" for block in blocks for name in (*READERS, *WRITERS)}
    _refuse_unknown(model, located, {*named, *_tables(model), *_paths(model, [_lm_head(model)])}, 2)


def _refuse_bare(stream: Stream, kind: str) -> None:
    if stream.bare:
        raise BackboneError(
            f"cannot fold {kind!r}: {stream.bare[0]} reads the stream without a LayerNorm before "
            "it, so the mean of the stream is not dead. Use effective_head for the last layer"
        )


def _expect_folded(folded: FoldedModel, wanted: str) -> None:
    if folded.form != "folded":
        raise RecipeError(
            f"the model is {folded.form} already and cannot be {wanted} again: the dropped "
            "coordinate and the basis depend on each other. Start from fold_norm(model)"
        )


# --------------------------------------------------------------------- who reads, who writes

_Calls = Mapping[str, tuple[Tensor, Tensor]]


@torch.inference_mode()
def _watch(model: nn.Module) -> tuple[Float[Tensor, "tokens vocab"], _Calls]:
    """Logits of eight tokens, and input and output of every leaf module on the way there."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[object, ...], out: object) -> None:
            # A dropout at rest hands its input on and makes nothing.
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                calls.update({} if out is args[0] else {path: (args[0], out)})

        return hook

    leaves = [(path, part) for path, part in model.named_modules() if not any(part.children())]
    handles = [part.register_forward_hook(keep(path)) for path, part in leaves]
    table = model.get_input_embeddings().weight
    ids = torch.linspace(0, table.shape[0] - 1, 8, device=table.device).long()[None]
    try:
        logits = model(input_ids=ids, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return logits.double(), calls


def _wire(model: nn.Module, located: Located, calls: _Calls) -> Stream:
    """The stream's readers and writers, by which module made the tensor that another one takes.

    Raises:
        BackboneError: a module with weights has no role that is known.
    """
    blocks = _paths(model, located.blocks)
    makers = {id(out): path for path, (_, out) in calls.items()}
    norms, bare = {}, []
    for block in blocks:
        for reader in _present(calls, block, READERS):
            norm = makers.get(id(calls[reader][0]), "")
            if norm.startswith(f"{block}."):
                norms.setdefault(norm, []).append(reader)
            else:
                bare.append(reader)
    final, head = _paths(model, [located.final_norm, _lm_head(model)])
    norms[final] = [head]
    tables = [path for path in _tables(model) if path in calls]
    writers = [path for block in blocks for path in _present(calls, block, WRITERS)]
    # A norm whose input a writer made stands between the writer and the stream.
    taken = {path: makers.get(id(x)) for path, (x, _) in calls.items()}
    known = {*norms, *bare, *(r for group in norms.values() for r in group)}
    kept = [p for p, maker in taken.items() if maker in {*writers, *tables} and p not in known]
    behind = {taken[path] for path in kept}
    _refuse_unknown(model, located, {*known, *tables, *writers, *kept}, 1)
    return Stream(
        norms={norm: tuple(group) for norm, group in norms.items()},
        bare=tuple(bare),
        writers=tuple(path for path in writers if path not in behind),
        tables=tuple(path for path in tables if path not in behind),
        kept=tuple(kept),
    )


def _paths(model: nn.Module, parts: Iterable[nn.Module]) -> list[str]:
    paths = {id(part): path for path, part in model.named_modules()}
    return [paths[id(part)] for part in parts]


def _tables(model: nn.Module) -> list[str]:
    return [path for path, part in model.named_modules() if isinstance(part, nn.Embedding)]


def _present(calls: _Calls, block: str, names: tuple[str, ...]) -> list[str]:
    return [f"{block}.{name}" for name in names if f"{block}.{name}" in calls]


def _lm_head(model: nn.Module) -> nn.Module:
    head = model.get_output_embeddings()
    if head is None:
        raise BackboneError(
            f"{type(model).__name__} does not say where its LM head is; expected "
            "get_output_embeddings() to give it. Use effective_head"
        )
    return head


def _refuse_unknown(model: nn.Module, located: Located, known: set[str], n_axes: int) -> None:
    """Every module with weights of at least `n_axes` axes must be `known`, or inside the heads."""
    blocks = _paths(model, located.blocks)
    inner = tuple(f"{block}.{name}." for block in blocks for name in ATTENTION)
    for path, part in model.named_modules():
        has_own = any(weight.ndim >= n_axes for weight in part.parameters(recurse=False))
        is_inner = path.startswith(inner) and not _is_matrix(part)
        if has_own and path not in known and not is_inner:
            raise BackboneError(
                f"cannot fold {located.model_type!r}: the role of {path}, a {type(part).__name__}, "
                "is unknown: it may read or write the residual stream. Expected attention and MLP "
                "of plain linear layers (adapters merged, no experts). Use effective_head, which "
                "needs the final norm only"
            )


# --------------------------------------------------------------------------- what is changed


def _is_conv1d(part: nn.Module) -> bool:
    return hasattr(part, "nf") and hasattr(part, "nx")


def _is_matrix(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or _is_conv1d(part)


def _matrix(model: nn.Module, path: str) -> Float[Tensor, "out in"]:
    """The weight of a linear layer, outputs first (GPT-2's Conv1D stores inputs first)."""
    part = model.get_submodule(path)
    if not _is_matrix(part):
        raise BackboneError(
            f"{path} is a {type(part).__name__}; expected a linear layer. Merge adapters into the "
            "weights, or load the model de-quantised"
        )
    return part.weight.T if _is_conv1d(part) else part.weight


def _put(
    model: nn.Module, path: str, matrix: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
) -> None:
    """New weights for a linear layer; never in place, since another module may share the old."""
    part = model.get_submodule(path)
    if _is_conv1d(part):
        part.nf, part.nx = matrix.shape
        matrix = matrix.T
    else:
        part.out_features, part.in_features = matrix.shape
    part.weight = nn.Parameter(matrix.contiguous(), requires_grad=False)
    part.bias = None if bias is None else nn.Parameter(bias.contiguous(), requires_grad=False)


def _fold_gain(model: nn.Module, norm: str, readers: tuple[str, ...], located: Located) -> None:
    """Step 1 for one norm and those behind it, and step 3."""
    head = located.unembedding
    kind, gain, shift, eps = read_norm(model.get_submodule(norm), norm, head.weight)
    if kind != head.norm_kind:
        raise BackboneError(
            f"cannot fold {located.model_type!r}: {norm} is of kind {kind!r} and the final norm of "
            f"kind {head.norm_kind!r}; expected one kind. Use effective_head"
        )
    for reader in readers:
        matrix, bias = _matrix(model, reader), model.get_submodule(reader).bias
        if shift is not None:
            bias = matrix @ shift if bias is None else bias + matrix @ shift
        _put(model, reader, matrix if gain is None else matrix * gain, bias)
    model.set_submodule(norm, GainFreeRMS(eps))


def _change_basis(
    model: nn.Module,
    stream: Stream,
    *,
    write: Callable[[Float[Tensor, "rows width"]], Float[Tensor, "rows new"]],
    read: Callable[[Float[Tensor, "rows width"]], Float[Tensor, "rows new"]] | None,
) -> None:
    """Pass what is written through `write`, and the rows of each reader through `read`."""
    for path in stream.tables:
        table = model.get_submodule(path)
        table.weight = nn.Parameter(write(table.weight).contiguous(), requires_grad=False)
        table.embedding_dim = table.weight.shape[1]
    for path in stream.writers:
        bias = model.get_submodule(path).bias
        matrix = write(_matrix(model, path).T).T
        _put(model, path, matrix, None if bias is None else write(bias[None])[0])
    for path in stream.kept:
        part = model.get_submodule(path)
        if not isinstance(part, _Rewritten):
            like = model.get_submodule(stream.readers[-1]).weight
            part = _Rewritten(part, torch.eye(like.shape[1], dtype=like.dtype, device=like.device))
        model.set_submodule(path, _Rewritten(part.inner, write(part.matrix)))
    for path in stream.readers if read is not None else ():
        _put(model, path, read(_matrix(model, path)), model.get_submodule(path).bias)


def _centred(x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    return x - x.mean(dim=-1, keepdim=True)


def _without_last(x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows compressed"]:
    return x[:, :-1]


def _compensated(x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows compressed"]:
    # x_last = -(sum of the others), so each of them takes the last column's weight with a minus.
    return x[:, :-1] - x[:, -1:]


def _proven(folded: FoldedModel, logits: Float[Tensor, "tokens vocab"]) -> FoldedModel:
    """`folded` with its deviation from `logits`, those of the model it was made of."""
    got, _ = _watch(folded.model)
    deviation = ((got - logits).abs().max() / logits.abs().max()).item()
    if not deviation <= LARGEST_DEVIATION:
        raise BackboneError(
            f"cannot fold {folded.model.config.model_type!r}: the {folded.form} copy's logits differ by {deviation:.1e} of the "
            f"largest; expected {LARGEST_DEVIATION:.0e}. A module uses the residual stream in a way "
            "that is not known. Use effective_head, which needs the final norm only"
        )
    return replace(folded, deviation=deviation)
