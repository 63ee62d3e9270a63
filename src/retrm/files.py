"""Writing so that a reader finds the old file or the new one, never half of one."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from retrm.errors import OutputError


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that takes the name `path` only when the block ended without an error.

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


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON with a final newline, atomically."""
    with atomic_write(path, "w") as out:
        json.dump(value, out, indent=2, ensure_ascii=False, allow_nan=False)
        out.write("\n")
