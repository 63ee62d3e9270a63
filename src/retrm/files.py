"""Writing so that a reader finds the old file or the new one, never half of one."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from retrm.errors import OutputError

PROBE_BYTES = 1 << 16


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that takes the name `path` only when the block ended without an error.

    Content and name are flushed to the disk, in that order: what was written before stands after a
    power cut if what was written later does.

    Raises:
        OutputError: the folder cannot be written or the disk is full; `path` is untouched.
    """
    path = Path(path)
    scratch: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        encoding = None if "b" in mode else "utf-8"
        with os.fdopen(handle, mode, encoding=encoding) as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
        scratch = None
        _flush_folder(path.parent)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"could not write {path}: {error.strerror or error}. What was there before is intact; "
            "free space or choose another folder, then run again"
        ) from error
    finally:
        if scratch is not None:
            with contextlib.suppress(OSError):
                Path(scratch).unlink()


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written into; nothing is left there.

    Raises:
        OutputError: a file lies there or above, or nothing can be written there.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OutputError(f"{there} is a file; expected a folder, or a name that is free")
    try:
        with tempfile.TemporaryFile(prefix=".retrm-", dir=there) as probe:
            # A full disk has room for a name and none for what is in the file.
            probe.write(b"\0" * PROBE_BYTES)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise OutputError(
            f"cannot write into {there}: {error.strerror}; expected a folder that can be written. "
            "What was there before is intact; free space or choose another"
        ) from error


def check_new_file(path: Path) -> None:
    """Refuse a path that cannot become a file, or replace one; nothing is left there.

    Raises:
        OutputError: it is a folder, or nothing can be written there.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; expected the name of a file")
    check_writable(path.parent)


def _flush_folder(folder: Path) -> None:
    # Not every system opens or flushes folders (Windows, some network mounts). The file has its name
    # already, so this is no failed write.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON with a final newline, atomically."""
    with atomic_write(path, "w") as out:
        json.dump(value, out, indent=2, ensure_ascii=False, allow_nan=False)
        out.write("\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Each value as strict JSON on a line of its own, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    with atomic_write(path, "w") as out:
        for value in values:
            out.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
