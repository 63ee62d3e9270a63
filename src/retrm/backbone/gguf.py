"""A GGUF file as an ordinary model folder, converted once and kept in the cache.

transformers can read GGUF, but slowly (the default model: 10 s) and it leaves marks of quantisation
on weights that are already dense. The plain copy, float32 safetensors with the tokenizer, loads in
well under a second and gives bit-equal states. It is keyed by the sha256 of the GGUF file, so a
requantised file of the same name gets its own copy.

A file that breaks off is found before the slow load: the header says where every tensor ends.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).

Cost: four bytes of disk and about eight of memory a parameter, once.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from retrm.backbone.embedded import CACHE_VARIABLE, cache_root, file_sha256
from retrm.backbone.quiet import quiet_transformers
from retrm.errors import BackboneError, MissingExtraError

SOURCE_FILE = "source.json"
_FORMAT = 1
_LOG = logging.getLogger(__name__)
# GGUF value types by number: the struct code of the scalars, then string and array.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufHeader:
    """What the head of a GGUF file says.

    Attributes:
        architecture: `general.architecture`, "llama" say.
        n_parts: files the model is split into.
        n_parameters: elements of all tensors.
        n_bytes: how long the file must be.
    """

    architecture: str
    n_parts: int
    n_parameters: int
    n_bytes: int


def read_gguf_header(path: Path) -> GgufHeader:
    """Walk the head of a GGUF file; milliseconds.

    Raises:
        BackboneError: not a GGUF file, of an unknown version, or cut short.
    """
    _require_gguf()
    length = path.stat().st_size
    try:
        with path.open("rb") as file:
            header = _Walker(file, length).header()
    except _TooShort:
        raise BackboneError(
            f"{path} is cut short: its {length:,} bytes end inside the header. Download it again"
        ) from None
    except (_Strange, ValueError, KeyError) as error:
        raise BackboneError(
            f"{path} is not a GGUF file that can be read: {error}. Expected GGUF version 2 or 3"
        ) from error
    if header.n_bytes > length:
        raise BackboneError(
            f"{path} is cut short: it has {length:,} bytes and its header asks for "
            f"{header.n_bytes:,}. Download it again"
        )
    return header


def check_gguf(path: Path) -> GgufHeader:
    """Read the header and refuse what cannot become a backbone.

    Raises:
        BackboneError: damaged, one part of several, or a projector of a vision model.
    """
    header = read_gguf_header(path)
    if header.n_parts > 1:
        raise BackboneError(
            f"{path} is one of {header.n_parts} parts. Join them first: "
            "`llama-gguf-split --merge FIRST_PART WHOLE.gguf`"
        )
    if header.architecture == "clip":
        raise BackboneError(
            f"{path} is the image part of a vision model (architecture 'clip'). Expected the "
            "language model; it is the other GGUF file of the pair"
        )
    return header


def plain_copy(
    path: Path,
    *,
    cache: Path | None = None,
    sha256: str | None = None,
    on_progress: Callable[[str], None] = _LOG.info,
) -> Path:
    """The folder of the plain copy of a GGUF file, converting it when it is not in the cache.

    Args:
        path: the GGUF file.
        cache: root of the cache; default `cache_root()`.
        sha256: of the file where it is already known; else it is computed.
        on_progress: told in words what goes on.

    Raises:
        BackboneError: the file is damaged or unsupported, or the cache cannot hold the copy.
        MissingExtraError: `gguf` or `accelerate` is not installed.
    """
    root = (cache or cache_root()) / "plain"
    digest = sha256 or file_sha256(path)
    folder = root / digest
    if is_whole_copy(folder):
        return folder
    header = check_gguf(path)
    try:
        root.mkdir(parents=True, exist_ok=True)
        need, free = 4 * header.n_parameters, shutil.disk_usage(root).free
        if free < need:
            raise BackboneError(
                f"{root} has {free / 1e6:.0f} MB free, {need / 1e6:.0f} MB are needed for the plain "
                f"copy of {path.name}. Free space, or set {CACHE_VARIABLE} to another disk"
            )
        on_progress(f"converting {path.name} once ({need / 1e6:.0f} MB)")
        with tempfile.TemporaryDirectory(dir=root, prefix=".converting-") as scratch:
            fresh = Path(scratch) / "copy"
            _convert(path, fresh)
            _sign(fresh, path, digest)
            _take_place(fresh, folder)
    except OSError as error:
        raise BackboneError(
            f"could not keep the plain copy of {path} in {root}: {error.strerror or error}. "
            f"Free space there, or set {CACHE_VARIABLE} to a folder that can be written"
        ) from error
    return folder


def copy_of(sha256: str, *, cache: Path | None = None) -> Path | None:
    """The whole plain copy of the GGUF file with this sha256, or None where there is none yet."""
    folder = (cache or cache_root()) / "plain" / sha256
    return folder if is_whole_copy(folder) else None


def is_whole_copy(folder: Path) -> bool:
    """Whether `folder` was finished and its files still have the sizes they were written with."""
    try:
        source = json.loads((folder / SOURCE_FILE).read_text("utf-8"))
        sizes = dict(source["bytes"])
        return source["format"] == _FORMAT and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _require_gguf() -> None:
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"reading GGUF files needs the package {package!r}: pip install 'retrm[local]'"
            )


def _convert(path: Path, fresh: Path) -> None:
    """Load the GGUF through transformers and save what came out as an ordinary float32 model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, file = str(path.parent), path.name
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
            model = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
            # The weights are dense by now; these three marks make saving fail or outlive it.
            model.hf_quantizer = None
            model.is_quantized = False
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
    except Exception as error:
        # All of them: tokenizers, written in Rust, raises nothing more telling than Exception.
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault
        raise BackboneError(
            f"transformers cannot read {path}: {error}. Expected a GGUF file of a text model with "
            "its tokenizer; use the original folder or hub id of the model instead"
        ) from error


def _sign(fresh: Path, path: Path, sha256: str) -> None:
    """Write what the copy was made from: last, so that an unsigned copy is an unfinished one."""
    from transformers import __version__

    files = [item for item in sorted(fresh.iterdir()) if item.is_file()]
    for item in files:
        item.chmod(0o644)
    source = {
        "format": _FORMAT,
        "file": path.name,
        "sha256": sha256,
        "transformers": __version__,
        "bytes": {item.name: item.stat().st_size for item in files},
    }
    (fresh / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", "utf-8")
    fresh.chmod(0o755)


def _take_place(fresh: Path, folder: Path) -> None:
    """Rename `fresh` to `folder`; another process that was faster has made the same copy."""
    if folder.exists() and not is_whole_copy(folder):
        folder.rename(fresh.parent / "damaged")
    with contextlib.suppress(OSError):
        fresh.rename(folder)
    if not is_whole_copy(folder):
        raise OSError(f"{folder} could not be put in place")


class _TooShort(Exception):
    """The file ended while the header was read."""


class _Strange(Exception):
    """Something in the header that the format does not allow."""


class _Walker:
    """Reads the head of a GGUF file from front to back."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self.file = file
        self.length = length

    def header(self) -> GgufHeader:
        if self.take(4) != b"GGUF":
            raise _Strange("it does not begin with the letters GGUF")
        version = self.number("I")
        if version not in (2, 3):
            raise _Strange(f"its version is {version}")
        n_tensors, n_values = self.number("Q"), self.number("Q")
        if 12 * (n_tensors + n_values) > self.length:  # each entry takes at least so much
            raise _TooShort
        wanted = ("general.architecture", "general.alignment", "split.count")
        found: dict[str, object] = {}
        for _ in range(n_values):
            key = self.text()
            value = self.value(self.number("I"), keep=key in wanted)
            if key in wanted:
                found[key] = value
        ends, n_parameters = [0], 0
        for _ in range(n_tensors):
            offset, n_elements, n_bytes = self.tensor()
            ends.append(offset + n_bytes)
            n_parameters += n_elements
        alignment = int(found.get("general.alignment") or 32)
        start = math.ceil(self.file.tell() / alignment) * alignment
        return GgufHeader(
            architecture=str(found.get("general.architecture", "")),
            n_parts=int(found.get("split.count") or 1),
            n_parameters=n_parameters,
            n_bytes=start + max(ends),
        )

    def take(self, n: int) -> bytes:
        # Asked first: a damaged length would otherwise reserve that much memory.
        if n > self.length - self.file.tell():
            raise _TooShort
        return self.file.read(n)

    def skip(self, n: int) -> None:
        if n > self.length - self.file.tell():
            raise _TooShort
        self.file.seek(n, os.SEEK_CUR)

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int, *, keep: bool) -> object:
        """The value where it is wanted; arrays are always stepped over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            if keep:
                return self.text()
            return self.skip(self.number("Q"))
        if kind != _ARRAY:
            raise _Strange(f"it holds a value of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            return self.skip(count * struct.calcsize("<" + _SCALARS[inner]))
        for _ in range(count):
            self.value(inner, keep=False)
        return None

    def tensor(self) -> tuple[int, int, int]:
        """Offset, elements and bytes of the next tensor."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        self.text()
        shape = [self.number("Q") for _ in range(self.number("I"))]
        block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(self.number("I"))]
        offset, n_elements = self.number("Q"), math.prod(shape)
        return offset, n_elements, n_elements // block * n_bytes
