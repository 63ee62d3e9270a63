"""The folder of an audit: whose it is, and what of it is done.

`plan.json` marks it, `reading/` holds the stored states, `reading.json` the seconds that they took,
`stages/` the finished stages. One process at a time works there: `writer.lock` is held meanwhile.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from retrm import __version__
from retrm.audit.plan import AuditPlan
from retrm.audit.reading import AuditReading
from retrm.audit.tables import AuditTables
from retrm.backbone.base import Backbone
from retrm.errors import OutputError, StoreError
from retrm.features.read import Overlong, Progress
from retrm.files import check_writable, write_json
from retrm.records import AnswerTable
from retrm.store.lock import WriterLock

ACCOUNT_INTERVAL_S = 30.0
STAGE_VERSION = 2
"""Raised by hand whenever a stage of the same plan would give other figures than before."""
SECONDS = "stage_s"
"""Among the facts of a kept stage: in which it was made."""
EARLIER = {"precision": "float32"}
"""What the header of an older folder means where it lacks a key."""


def check_folder(
    folder: Path,
    table: AnswerTable,
    backbone: Backbone,
    plan: AuditPlan,
    *,
    overlong: Overlong = "error",
) -> dict[str, Any]:
    """Find that `folder` is free for this audit, or holds this one; nothing is written.

    Args:
        folder: of the audit.
        table: judged answers, as the labels are used.
        backbone: the frozen model.
        plan: what is compared.
        overlong: policy for answers beyond the context; it decides which are read.

    Returns:
        What marks the folder as this audit's.

    Raises:
        StoreError: it holds another audit, or figures of another version.
        OutputError: it cannot be one, or not be written.
    """
    check_writable(folder)
    header = {
        "retrm": __version__,
        "stage_version": STAGE_VERSION,
        "plan": plan.as_dict(),
        "fingerprint": asdict(backbone.fingerprint),
        "precision": str(backbone.dtype).removeprefix("torch."),
        "answers": _digest(table),
        "overlong": overlong,
    }
    stored = _json(folder / "plan.json")
    if stored is None:
        if finished_stages(folder):
            raise StoreError(
                f"{folder} holds finished stages, but no plan.json that says of which audit; delete "
                f"{folder / 'stages'} to make them again, or choose another folder"
            )
        return header
    if not _is_begun(folder):  # a run that was stopped before anything was made
        return header
    if stored.get("stage_version") != STAGE_VERSION:
        raise StoreError(
            f"{folder} holds figures of retrm {stored.get('retrm', 'of an older version')} (stages "
            f"{stored.get('stage_version', 1)}), which this one, {__version__} (stages "
            f"{STAGE_VERSION}), would make otherwise. Nothing was deleted. Delete "
            f"{folder / 'stages'} and {folder / 'plan.json'} to make them again, the reading is kept; "
            "or choose another folder"
        )
    for key, words in (
        ("answers", "other answers or labels"),
        ("fingerprint", "another model"),
        ("precision", "another precision of the model"),
        ("plan", "another plan"),
        ("overlong", "another policy for over-long answers"),
    ):
        if stored.get(key, EARLIER.get(key)) != header[key]:
            raise StoreError(
                f"{folder} holds an audit of {words}; choose another folder, or delete this one "
                "to start again"
            )
    return header


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The folder of an audit, made where it is missing, for this process only.

    Raises:
        StoreError: another process works there.
        OutputError: it cannot be made or written.
    """
    check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}; choose another") from error
    lock = WriterLock.take(folder)
    try:
        yield
    finally:
        lock.release()


def finished_stages(folder: Path) -> frozenset[str]:
    """Names of the stages that lie in `folder`."""
    return frozenset(path.parent.name for path in folder.glob("stages/*/audit.json"))


def stored_bytes(folder: Path) -> int:
    """Of the states that lie in `folder`."""
    return sum(path.stat().st_size for path in (folder / "reading").glob("shard-*"))


def begin(folder: Path, header: Mapping[str, Any]) -> None:
    """Mark `folder` with what `check_folder` gave, unless it is marked as this audit's already."""
    if not _is_begun(folder) or not (folder / "plan.json").is_file():
        write_json(folder / "plan.json", header)


def _is_begun(folder: Path) -> bool:
    """Whether anything was made there."""
    has_reading = any((folder / "reading").glob("shard-*")) or (folder / "reading.json").is_file()
    return has_reading or (folder / "audit.json").is_file() or bool(finished_stages(folder))


def _json(path: Path) -> dict[str, Any] | None:
    """None without the file; {} where it is unreadable."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _digest(table: AnswerTable) -> str:
    """Of everything that the stages depend on and the reading does not check."""
    found = hashlib.sha256()
    for answer, label in zip(table.answers, table.labels.tolist(), strict=True):
        parts = (answer.prompt_id, answer.prompt.key, answer.response, label, answer.key)
        found.update("\0".join(map(str, (*parts, answer.finished, answer.response_ids))).encode())
    for pair in table.preferences():
        found.update(f"{pair.chosen} {pair.rejected} {pair.margin}\n".encode())
    return found.hexdigest()


def kept_stage(folder: Path | None, name: str, make: Callable[[], AuditTables]) -> AuditTables:
    """The stage that lies in `folder`, or made now and kept there; None keeps nothing."""
    if folder is None:
        return _with_seconds(make)
    place = folder / "stages" / name
    if (place / "audit.json").is_file():
        return AuditTables.load(place)
    place.mkdir(parents=True, exist_ok=True)
    made = _with_seconds(make)
    made.save(place)
    return made


def _with_seconds(make: Callable[[], AuditTables]) -> AuditTables:
    """With the seconds that it took among its facts."""
    started = time.monotonic()
    made = make()
    return replace(made, facts={**made.facts, SECONDS: time.monotonic() - started})


class Account:
    """Seconds of a reading, those of runs that were killed included (to half a minute).

    A store that holds more shards than were accounted for was filled by something else as well: then
    nobody knows the seconds.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._store = folder / "reading.json", folder / "reading"
        stored = _json(self._path) or {}
        self._n_shards = self._count()
        n_known = stored.get("n_shards", 0)
        self._before: float | None = stored.get("reading_s", 0.0)
        if self._n_shards != n_known:  # more than we made, or a reading that was deleted
            self._before = None if self._n_shards > n_known else 0.0
        self._last = time.monotonic()

    def note(self, progress: Progress) -> None:
        """Keep the account of a running reading, at the latest when the store has grown."""
        n_shards = self._count()
        if n_shards > self._n_shards or time.monotonic() - self._last > ACCOUNT_INTERVAL_S:
            self._n_shards, self._last = n_shards, time.monotonic()
            self._write(progress.elapsed_s)

    def close(self, reading: AuditReading) -> float | None:
        """Seconds of the finished reading; None = not known."""
        self._n_shards = self._count()
        return self._write(reading.elapsed_s if reading.n_tokens else 0.0)

    def _count(self) -> int:
        return sum(1 for _ in self._store.glob("shard-*"))

    def _write(self, seconds: float) -> float | None:
        total = None if self._before is None else self._before + seconds
        write_json(self._path, {"reading_s": total, "n_shards": self._n_shards})
        return total
