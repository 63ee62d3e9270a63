"""A disk sink for a reading: a killed run goes on where it was, and its features are read mapped.

A store is a folder of shards (`shard-00000.safetensors`, features of some answers for every recipe),
`manifest.json`, which names each shard with its checksum, and at the end `index.parquet`. A shard
counts only once the manifest names it; the manifest is replaced atomically after each shard, so a
kill at any moment loses at most one unfinished shard and doubles nothing. What a killed writer left
(`.part` files, a shard without an entry) the next one removes when it opens the store.

Each file is flushed to the disk before it gets its name, and the name before the next file is begun:
after a power cut, too, the manifest names nothing that is not there.

Bytes: `bytes_per_row` for each response token, or each answer where a recipe pools, plus about 30 an
answer.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Int64

from retrm.backbone.base import OWN_STATES, Backbone, Fingerprint
from retrm.errors import OutputError, StoreError
from retrm.features.cost import bytes_per_row
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features, Layout
from retrm.store.index import DERIVED, read_index, write_index
from retrm.store.lock import WriterLock
from retrm.store.manifest import INDEX, MANIFEST, SHARDS, Manifest, shard_name, without_manifest
from retrm.store.shard_file import (
    Contents,
    check_file,
    check_size,
    contents_of,
    layouts_of,
    mapped,
    reading_of,
    write_shard,
)

SHARD_BYTES = 64 << 20
FLUSH_SECONDS = 60.0  # of work that a kill may cost where states are small
_KEY_BYTES = 32  # about what an answer costs beside its features
_PART = re.compile(r"\.(shard-\d+\.safetensors|manifest\.json|index\.parquet)\..*\.part")


class ShardSink:
    """Features of one reading in a folder; implements `FeatureSink`."""

    def __init__(
        self,
        folder: Path,
        recipes: Mapping[str, Any],
        fingerprint: Fingerprint,
        *,
        dtype: torch.dtype = torch.float32,
        states_from: str = OWN_STATES,
    ) -> None:
        """Name the folder and what it must hold; nothing is touched until `open`. See also `of`.

        Args:
            folder: of the store.
            recipes: name -> dataclass that says what is kept: a `Recipe`, or that of another
                reducer.
            fingerprint: of the backbone.
            dtype: in which the backbone multiplies; states of another precision are other states.
            states_from: what computes the states; those of another engine are other states.
        """
        self.folder = Path(folder)
        self._manifest = Manifest(
            recipes=_as_json({name: _plain(recipes[name]) for name in sorted(recipes)}),
            fingerprint=_as_json(asdict(fingerprint)),
            precision=str(dtype),
            layouts={},
            states_from=states_from,
        )
        self._lock: WriterLock | None = None
        self._contents: list[Contents] = []
        self._keys: list[str] = []
        self._taken: set[str] = set()
        self._pending: list[tuple[list[str], Mapping[str, Features]]] = []
        self._pending_bytes = 0
        self._flushed_at = time.monotonic()

    @classmethod
    def of(cls, folder: Path, recipes: Mapping[str, Any], backbone: Backbone) -> Self:
        """For a reading by `backbone`, which says everything that tells its states from others.

        Args:
            folder: of the store.
            recipes: name -> dataclass that says what is kept.
            backbone: that will read.
        """
        return cls(
            *(folder, recipes, backbone.fingerprint),
            dtype=backbone.dtype,
            states_from=backbone.states_from,
        )

    def stored(self, keys: Sequence[str]) -> set[int]:
        """The rows that `open` would find; nothing is written, and no checksum compared.

        Raises:
            StoreError: the folder holds another reading, or files that do not fit its manifest.
        """
        if not (self.folder / MANIFEST).exists():
            return set()
        manifest = Manifest.load(self.folder)
        _check_same(self.folder, manifest, self._manifest)
        taken: set[str] = set()
        for entry in manifest.shards:
            check_size(self.folder, entry)
            taken.update(contents_of(self.folder, entry, manifest).keys)
        return {row for row, key in enumerate(keys) if key in taken}

    def open(self, keys: Sequence[str]) -> set[int]:
        """Begin or go on; returns the rows that are already on disk.

        Every shard is read once and compared with its checksum.

        Raises:
            StoreError: the folder holds another reading, a shard is damaged or foreign, or another
                process is writing there.
            OutputError: the folder cannot be created or written.
        """
        self._keys = list(keys)
        self._flushed_at = time.monotonic()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create the feature store {self.folder}: {error.strerror}; choose another "
                "folder"
            ) from error
        self._lock = WriterLock.take(self.folder)
        try:
            self._manifest, self._contents = _taken_up(self.folder, self._manifest)
        except BaseException:
            self._lock.release()
            raise
        self._taken = {key for found in self._contents for key in found.keys}
        return {row for row, key in enumerate(self._keys) if key in self._taken}

    def add(self, rows: Sequence[int], features: Mapping[str, Features]) -> None:
        """Take a batch; written once enough has come together for a shard, or has long been kept.

        Of answers with the same content the first is kept and serves all.

        Raises:
            StoreError: features of other names or widths than before, or the right to write is lost.
            OutputError: a file cannot be written; what was stored before is intact.
        """
        first = {self._keys[row]: i for i, row in reversed(list(enumerate(rows)))}
        positions = sorted(i for key, i in first.items() if key not in self._taken)
        if not positions:
            return
        if len(positions) < len(rows):
            features = {name: found.take(positions) for name, found in features.items()}
        keys = [self._keys[rows[i]] for i in positions]
        self._taken.update(keys)
        self._pending.append((keys, features))
        self._pending_bytes += sum(found.values.nbytes for found in features.values())
        self._pending_bytes += _KEY_BYTES * len(keys)
        is_due = time.monotonic() - self._flushed_at >= FLUSH_SECONDS
        if self._pending_bytes >= SHARD_BYTES or is_due:
            self._flush()

    def flush(self) -> None:
        """The reading breaks off: write what is pending, so that the next run goes on behind it.

        Raises:
            StoreError, OutputError: as `add`.
        """
        assert self._lock is not None, "open comes first"
        try:
            self._flush()
        finally:
            self._lock.release()

    def close(self, n_rows: int, layouts: Mapping[str, Layout]) -> "StoredFeatures":
        """Write what is pending and the index; features are loaded as they are asked for.

        Raises:
            StoreError: rows are missing on disk, or features are laid out in another way.
            OutputError: a file cannot be written; what was stored before is intact.
        """
        assert self._lock is not None, "open comes first"
        try:
            self._flush()
            self._check_layouts(layouts)
            shards = _wanted(self.folder, self._contents, self._keys)
            n_found = sum(len(shard.rows) for shard in shards)
            if n_found != n_rows:
                raise StoreError(
                    f"{self.folder} holds {n_found} of {n_rows} answers after reading; delete it "
                    "and read again"
                )
            if self._manifest.index is None:
                self._check_writer()
                entry = write_index(self.folder, self._contents)
                self._replace(replace(self._manifest, index=entry))
        finally:
            self._lock.release()
        return StoredFeatures(shards, layouts)

    def _flush(self) -> None:
        if not self._pending:
            return
        self._check_writer()
        keys = [key for batch, _ in self._pending for key in batch]
        batches = [features for _, features in self._pending]
        for features in batches:
            self._check_layouts(layouts_of(features))
        shards = self._manifest.shards
        entry, contents = write_shard(
            self.folder, len(shards), self._manifest.reading, keys, batches
        )
        self._replace(
            replace(
                self._manifest,
                layouts=layouts_of(batches[0]),
                shards=(*shards, entry),
                index=None,
            )
        )
        self._contents.append(contents)
        self._pending, self._pending_bytes = [], 0
        self._flushed_at = time.monotonic()

    def _replace(self, manifest: Manifest) -> None:
        manifest.save(self.folder)
        self._manifest = manifest

    def _check_layouts(self, layouts: Mapping[str, Layout]) -> None:
        before = self._manifest.layouts
        if before and dict(layouts) != dict(before):
            raise StoreError(
                f"{self.folder} holds features {_in_words(before)}; got {_in_words(layouts)}. Delete "
                "the folder to read again, or choose another"
            )
        if set(layouts) != set(self._manifest.recipes):
            raise StoreError(
                f"got features named {sorted(layouts)}; {self.folder} was made for "
                f"{sorted(self._manifest.recipes)}. Give the sink one recipe for each"
            )

    def _check_writer(self) -> None:
        """Beside the lock, for file systems that have none: the manifest is the one we left."""
        assert self._lock is not None
        self._lock.check()
        if Manifest.load(self.folder) != self._manifest:
            raise StoreError(
                f"{self.folder} was written to by somebody else meanwhile; expected one writer. See "
                "that no other process uses it, then run the same command: it goes on there"
            )


def _plain(recipe: Any) -> dict[str, Any]:
    return recipe.to_dict() if isinstance(recipe, Recipe) else asdict(recipe)


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))  # tuples become lists, as they come back from the disk


def _in_words(layouts: Mapping[str, Layout]) -> str:
    return ", ".join(
        f"{name}: {layout.n_features} x {layout.dtype} "
        f"{'an answer' if layout.is_pooled else 'a token'}"
        for name, layout in sorted(layouts.items())
    )


# ------------------------------------------------------------------------------------- opening


def _taken_up(folder: Path, wanted: Manifest) -> tuple[Manifest, list[Contents]]:
    """The manifest and contents of `folder`, which is begun if there is nothing in it."""
    if not (folder / MANIFEST).exists():
        if any(folder.glob(SHARDS)):
            raise without_manifest(folder)
        _clean(folder, wanted)
        wanted.save(folder)
        return wanted, []
    manifest = Manifest.load(folder)
    _check_same(folder, manifest, wanted)
    contents = _verified(folder, manifest)
    _clean(folder, manifest)
    if manifest.index is not None and not _is_index_whole(folder, manifest):
        manifest = replace(manifest, index=None)
        manifest.save(folder)
    return manifest, contents


def _check_same(folder: Path, manifest: Manifest, wanted: Manifest) -> None:
    """Refuse to go on in a reading of something else."""
    for field in ("recipes", "fingerprint", "precision"):
        if getattr(manifest, field) != getattr(wanted, field):
            raise StoreError(
                f"{folder} holds a reading with another {field}; expected the one asked for now. "
                "Delete the folder to read again, or choose another"
            )
    if manifest.states_from != wanted.states_from:
        raise StoreError(
            f"{folder} holds states computed by {_computed_by(manifest)}; expected "
            f"{_computed_by(wanted)}. They differ in their last digits and are not mixed: read them "
            "from where they began, delete the folder to read again, or choose another"
        )


def _computed_by(manifest: Manifest) -> str:
    if manifest.states_from == OWN_STATES:
        return "the model itself"
    return f"the engine {manifest.states_from!r}"


def _verified(folder: Path, manifest: Manifest) -> list[Contents]:
    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter's lock
        list(pool.map(lambda entry: check_file(folder, entry), manifest.shards))
    contents = [contents_of(folder, entry, manifest) for entry in manifest.shards]
    keys = [key for found in contents for key in found.keys]
    if len(set(keys)) < len(keys):
        raise StoreError(
            f"{folder} holds {len(keys) - len(set(keys))} answers twice; a shard was copied. Delete "
            "the folder and read again"
        )
    return contents


def _is_index_whole(folder: Path, manifest: Manifest) -> bool:
    assert manifest.index is not None
    try:
        check_file(folder, manifest.index, remedy=DERIVED)
    except StoreError:
        return False  # derived from the shards, which were verified: it is made anew
    return True


def _clean(folder: Path, manifest: Manifest) -> None:
    """Remove what a killed writer left; refuse shards that it cannot have left."""
    named = {entry.file for entry in manifest.shards}
    left = [path for path in sorted(folder.glob(SHARDS)) if path.name not in named]
    for path in left:
        if not _is_of(path, manifest):
            raise StoreError(
                f"{path} is not named by the manifest and is no shard of this reading; move it out "
                "of the folder, then run the same command again"
            )
    parts = [path for path in folder.glob(".*.part") if _PART.fullmatch(path.name)]
    for path in [*left, *parts]:
        path.unlink()


def _is_of(path: Path, manifest: Manifest) -> bool:
    try:
        return reading_of(path) == manifest.reading
    except StoreError:
        return False


def delete_store(folder: Path) -> None:
    """Remove a store: its own files and the folder; a killed removal leaves an empty store.

    Raises:
        StoreError: it is no store, or a process is writing there.
        OutputError: the folder holds other files, which are left in place.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    lock = WriterLock.take(folder)
    try:
        if (folder / MANIFEST).exists():
            empty = replace(Manifest.load(folder), shards=(), index=None)
            empty.save(folder)
            _clean(folder, empty)
            for name in (INDEX, MANIFEST):
                (folder / name).unlink(missing_ok=True)
    finally:
        lock.release()
    try:
        folder.rmdir()
    except OSError as error:
        raise OutputError(f"{folder} holds other files and was left in place") from error


# ------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Shard:
    """A file with the positions in it that are wanted, the rows they belong to, and tokens each."""

    path: Path
    index: tuple[int, ...]
    rows: tuple[int, ...]
    lengths: Int64[np.ndarray, " answers"] | None
    is_whole: bool


def _wanted(folder: Path, contents: Sequence[Contents], keys: Sequence[str]) -> tuple[_Shard, ...]:
    """Where the rows with these keys lie; one stored answer serves every row of its content."""
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows_of.setdefault(key, []).append(row)
    shards = []
    for number, found in enumerate(contents):
        pairs = [(i, row) for i, key in enumerate(found.keys) for row in rows_of.get(key, [])]
        if not pairs:
            continue
        index, rows = zip(*pairs, strict=True)
        lengths = None if found.lengths is None else found.lengths[list(index)]
        is_whole = index == tuple(range(len(found.keys)))
        shards.append(_Shard(folder / shard_name(number), index, rows, lengths, is_whole))
    return tuple(shards)


class StoredFeatures(Mapping[str, Features]):
    """Features of a finished reading, by name; each access loads from the shards, in row order."""

    def __init__(self, shards: Sequence[_Shard], layouts: Mapping[str, Layout]) -> None:
        self._shards = shards
        self._layouts = layouts

    def __iter__(self) -> Iterator[str]:
        return iter(self._layouts)

    def __len__(self) -> int:
        return len(self._layouts)

    def __getitem__(self, name: str) -> Features:
        """All features of one recipe."""
        return self.columns(name, 0, self._layouts[name].n_features)

    def columns(self, name: str, start: int, stop: int) -> Features:
        """Features `start`..`stop` of one recipe: one layer of many, without loading the others.

        They are copied straight into their places, so nothing is held twice.

        Raises:
            StoreError: a shard is unreadable.
        """
        layout = self._layouts[name]
        offsets = self._offsets(layout)
        places = offsets.tolist()
        values = torch.empty(places[-1], stop - start, dtype=layout.dtype)
        for rows, part in self.parts(name, start, stop):
            if layout.is_pooled:
                values[list(rows)] = part.values
                continue
            bounds = part.offsets.tolist()
            for row, first, end in zip(rows, bounds, bounds[1:], strict=False):
                values[places[row] : places[row + 1]] = part.values[first:end]
        return Features(values, offsets, layout.is_pooled)

    def parts(
        self, name: str, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[tuple[int, ...], Features]]:
        """Shard by shard, the rows and their features: for what does not fit into memory together.

        Where all of a shard is wanted the values are views of its mapped file: they cost no memory
        of the process until they are changed, which does not change the file.

        Raises:
            StoreError: a shard is unreadable.
        """
        layout = self._layouts[name]
        stop = layout.n_features if stop is None else stop
        for shard in self._shards:
            found = mapped(shard.path, name, start, stop, is_pooled=layout.is_pooled)
            yield shard.rows, found if shard.is_whole else found.take(shard.index)

    def n_bytes(self, name: str) -> int:
        """Of all features of one recipe."""
        layout = self._layouts[name]
        return bytes_per_row(layout) * int(self._offsets(layout)[-1])

    def _offsets(self, layout: Layout) -> torch.Tensor:
        n_rows = sum(len(shard.rows) for shard in self._shards)
        if layout.is_pooled:
            return torch.arange(n_rows + 1)
        lengths = torch.zeros(n_rows, dtype=torch.int64)
        for shard in self._shards:
            assert shard.lengths is not None, "kept per token, so lengths are known"
            lengths[list(shard.rows)] = torch.from_numpy(shard.lengths)
        return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


@dataclass(frozen=True)
class Store:
    """A finished store, opened to be read.

    Attributes:
        keys: content keys of the answers; row i of every feature belongs to `keys[i]`.
        features: by name, loaded when asked for; rows in the order in which they were stored.
    """

    keys: tuple[str, ...]
    features: StoredFeatures


def open_store(folder: Path) -> Store:
    """Open a finished store without a backbone; every shard is compared with its checksum.

    Raises:
        StoreError: no store, not finished, damaged, or of another format version.
    """
    folder = Path(folder)
    keys = tuple(read_index(folder)["key"].to_pylist())
    manifest = Manifest.load(folder)
    contents = _verified(folder, manifest)
    return Store(keys, StoredFeatures(_wanted(folder, contents, keys), manifest.layouts))
