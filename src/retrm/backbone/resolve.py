"""From the name of a model to where its files lie, before any weight is read.

A name is `fake` (the toy backbone), `smollm2-135m` (the embedded default), a GGUF file, a folder in
the layout of transformers, or a hub id. Mistakes are found here, in a second or so: no such name, a
folder without config, weights or tokenizer, weights that were cut short, a model of another kind.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retrm.backbone.embedded import SMOLLM2
from retrm.backbone.gguf import check_gguf
from retrm.backbone.quiet import quiet_hub
from retrm.errors import BackboneError, did_you_mean

FAKE = "fake"
KNOWN = (SMOLLM2.name, FAKE)
"""Names that need neither a path nor the hub."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WEIGHT_ENDINGS = (".gguf", ".safetensors", ".bin", ".pt", ".pth")
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tekken.json"),
)
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
_SUBFOLDERS = ("*/*",)  # other formats of the same weights


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: as the user typed it.
        kind: which of the five sorts of name it is.
        folder: where config and tokenizer lie; None for `fake`, `embedded` and `gguf`.
        file: the GGUF file, for kind `gguf`.
        repo: the hub id, for kind `hub`; its weights may still have to be fetched.
        family: `model_type` of the config, or the architecture that the GGUF header states.
    """

    name: str
    kind: Literal["fake", "embedded", "gguf", "folder", "hub"]
    folder: Path | None = None
    file: Path | None = None
    repo: str | None = None
    family: str = ""


def resolve_model(name: str, *, trust_remote_code: bool = False) -> ModelSource:
    """Find a model and check all that can be checked without reading its weights.

    For a hub id the small files (config, tokenizer) are fetched, or taken from the hub's cache
    where the hub is out of reach.

    Args:
        name: `fake`, `smollm2-135m`, a GGUF file, a folder or a hub id.
        trust_remote_code: accept a family whose code comes with the model.

    Raises:
        BackboneError: unknown, incomplete, damaged, or not a text-generating decoder.
    """
    if name == FAKE:
        return ModelSource(name, "fake", family="fake")
    if name == SMOLLM2.name:
        return ModelSource(name, "embedded", family="llama")
    if not name.strip():
        raise BackboneError(f"got an empty model name. {did_you_mean('', KNOWN)}")
    path = Path(name).expanduser()
    if path.is_dir():
        family = check_folder(path, trust_remote_code=trust_remote_code)
        return ModelSource(name, "folder", folder=path, family=family)
    if path.is_file():
        return _from_file(name, path)
    _refuse_missing_path(name, path)
    folder = _hub_folder(name)
    config = read_config(folder)
    family = check_family(config, name, trust_remote_code=trust_remote_code)
    _check_tokenizer(folder)
    return ModelSource(name, "hub", folder=folder, repo=name, family=family)


def check_folder(folder: Path, *, trust_remote_code: bool = False) -> str:
    """Check config, weights and tokenizer of a model folder; the family (`model_type`).

    Raises:
        BackboneError: something is missing, damaged, or of a kind that cannot be read.
    """
    config = read_config(folder)
    family = check_family(config, str(folder), trust_remote_code=trust_remote_code)
    check_weights(folder)
    _check_tokenizer(folder)
    return family


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model folder.

    Raises:
        BackboneError: there is none, or it is not that of a model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise BackboneError(f"{folder} has no config.json. {_instead_of_config(folder)}")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise BackboneError(f"{path} cannot be read: {error}. Fetch the model again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise BackboneError(
            f"{path} states no model_type. Expected the config of a transformers model"
        )
    return config


def check_family(config: Mapping[str, Any], name: str, *, trust_remote_code: bool = False) -> str:
    """Refuse, by its name, a family that is no text-generating decoder; else return it.

    Raises:
        BackboneError: encoder-only, encoder-decoder, with images or sound, or unknown.
    """
    from transformers import __version__
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    family = config["model_type"]
    reason = ""
    if config.get("is_encoder_decoder"):
        reason = "an encoder-decoder"
    elif family in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        reason = "an encoder-only model, which cannot generate"
    elif any(config.get(part) for part in ("vision_config", "audio_config")):
        reason = "a model of images or sound"
    elif family in CONFIG_MAPPING_NAMES and family not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        reason = "not a causal language model"
    if reason:
        raise BackboneError(
            f"{name} is {reason} (model_type {family!r}). Expected a decoder-only language model "
            f"such as llama, qwen3 or gemma2; try {SMOLLM2.name!r}"
        )
    if family in CONFIG_MAPPING_NAMES or (trust_remote_code and config.get("auto_map")):
        return family
    remedy = "Upgrade transformers if the model is newer"
    if config.get("auto_map"):
        remedy = "It brings its own code; read that code, then allow it with trust_remote_code=True"
    raise BackboneError(
        f"{name} is of family {family!r}, which transformers {__version__} does not know. {remedy}"
    )


def check_weights(folder: Path) -> None:
    """Check that every weight file is there and as long as its header says.

    Raises:
        BackboneError: none, one missing, or one cut short.
    """
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        if (folder / whole).is_file():
            files = [whole]
        elif index.is_file():
            files = _shards(index)
        else:
            continue
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise BackboneError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files, {missing[0]} for "
                "one. Fetch the model again"
            )
        for file in files:
            _check_weight_file(folder / file)
        return
    found = [f.name for f in sorted(folder.iterdir()) if f.suffix in _WEIGHT_ENDINGS]
    raise BackboneError(
        f"{folder} has no weights: expected model.safetensors, found "
        + (", ".join(found[:4]) or "no weight file")
        + ". Save the model with save_pretrained, or fetch it again"
    )


def _from_file(name: str, path: Path) -> ModelSource:
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    if is_gguf or path.suffix == ".gguf":
        return ModelSource(name, "gguf", file=path, family=check_gguf(path).architecture)
    raise BackboneError(
        f"{name} is a file but no GGUF file. Expected a GGUF file or the folder that holds "
        f"config.json and the weights, perhaps {path.parent}"
    )


def _refuse_missing_path(name: str, path: Path) -> None:
    """Tell a mistyped path or short name at once rather than ask the hub for it."""
    is_path = name.startswith((".", "/", "~")) or "\\" in name or path.suffix in _WEIGHT_ENDINGS
    if is_path or not _REPO.fullmatch(name):
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings) if siblings else ""
        raise BackboneError(
            f"there is no file or folder {name!r}. "
            + (hint if hint.startswith("Did") else "Expected a model folder, a GGUF file, ")
            + ("" if hint.startswith("Did") else f"a hub id, or one of {', '.join(KNOWN)}")
        )
    near = did_you_mean(name.lower(), KNOWN)
    if "/" not in name and near.startswith("Did") and _cached_folder(name) is None:
        raise BackboneError(
            f"unknown model {name!r}: no known name, file or folder. {near} "
            "A model of the hub is written OWNER/NAME"
        )


def fetch_hub(repo: str, patterns: tuple[str, ...]) -> Path:
    """The snapshot folder of a hub repository with the files of these patterns in it.

    Where the hub is out of reach, or refuses, the folder that its cache holds is taken as it is;
    the caller finds out what is missing.

    Raises:
        BackboneError: not on the hub and not in the cache.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo, allow_patterns=list(patterns), ignore_patterns=list(_SUBFOLDERS)
            )
        )
    except (OSError, ValueError, *_transport_errors()) as error:
        cached = _cached_folder(repo)
        if cached is not None:
            return cached
        raise _unreachable(repo, error) from error


def _hub_folder(repo: str) -> Path:
    with quiet_hub():
        return fetch_hub(repo, _SMALL_FILES)


def _cached_folder(repo: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _transport_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub lets through when a proxy or a connection fails, by its HTTP library."""
    modules = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return tuple(module.TransportError for module in modules)


def _unreachable(repo: str, error: Exception) -> BackboneError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    tried = f"no file or folder {repo!r}, nothing in the hub's cache"
    if isinstance(error, GatedRepoError):
        return BackboneError(
            f"{repo} is gated on the hub: accept its terms there, then run `hf auth login`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return BackboneError(
            f"unknown model {repo!r}: {tried}, and the hub has none of that name or does not show "
            f"it to you (`hf auth login`). {did_you_mean(repo.split('/')[-1].lower(), KNOWN)}"
        )
    said = str(error).strip().splitlines() or [type(error).__name__]
    return BackboneError(
        f"could not get {repo!r}: {tried}, and the hub cannot be reached ({said[0][:200]}). Check "
        f"the name and the network, or use {SMOLLM2.name!r} or a local folder"
    )


def _instead_of_config(folder: Path) -> str:
    """What the folder seems to be, and what to do about it."""
    if (folder / "adapter_config.json").is_file():
        return "It holds a LoRA adapter: merge it into its base model and save that"
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return f"It holds GGUF files: name the file itself, {ggufs[0]}"
    nested = sorted(folder.glob("*/config.json"))
    if nested:
        return f"Did you mean {nested[0].parent}?"
    return "Expected a model folder as save_pretrained writes it"


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BackboneError(f"{index} is damaged ({error}). Fetch the model again") from error


def _check_weight_file(path: Path) -> None:
    """Compare the length of a safetensors file with its header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if head == b"version ":
            raise BackboneError(f"{path} is a pointer of git-lfs. Run `git lfs pull` in its folder")
        if path.suffix != ".safetensors":
            return
        n_header = int.from_bytes(head, "little")
        if len(head) < 8 or 8 + n_header > size:
            raise BackboneError(f"{path} is cut short at {size:,} bytes. Fetch it again")
        try:
            header = json.loads(file.read(n_header))
            tensors = [value for key, value in header.items() if key != "__metadata__"]
            need = 8 + n_header + max((t["data_offsets"][1] for t in tensors), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackboneError(f"{path} is damaged ({error}). Fetch it again") from error
    if size < need:
        raise BackboneError(
            f"{path} is cut short: it has {size:,} bytes and its header asks for {need:,}. "
            "Fetch it again"
        )


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise BackboneError(
            f"{folder} has no tokenizer: expected tokenizer.json. Save it there with "
            "tokenizer.save_pretrained"
        )
