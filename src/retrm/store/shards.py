"""A disk sink for a reading: a killed run goes on where it was.

A store is a folder of shards (`shard-00000.safetensors`, features of some answers for every recipe)
and `manifest.json`, which names each shard with its checksum and the content keys of its answers.
A shard counts only once the manifest names it; the manifest is replaced atomically after each shard,
so a kill at any moment loses at most one unfinished shard and doubles nothing. Shards are
memory-mapped when read. Bytes per token: features per token x bytes of the recipe's dtype.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from retrm.backbone.base import Fingerprint
from retrm.errors import OutputError, StoreError
from retrm.features.reduce import Features, Layout, concatenate
from retrm.features.sink import in_row_order
from retrm.files import atomic_write, write_json

FORMAT_VERSION = 1
SHARD_BYTES = 64 << 20
FLUSH_SECONDS = 60.0  # of work that a kill may cost where states are small


class ShardSink:
    """Features of one reading in a folder; implements `FeatureSink`."""

    def __init__(
        self,
        folder: Path,
        recipes: Mapping[str, Any],
        fingerprint: Fingerprint,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Name the folder and what it must hold; nothing is touched until `open`.

        Args:
            folder: of the store.
            recipes: name -> dataclass that says what is kept: a `Recipe`, or that of another
                reducer.
            fingerprint: of the backbone.
            dtype: in which the backbone multiplies; states of another precision are other states.
        """
        self.folder = Path(folder)
        self.header = {
            "format_version": FORMAT_VERSION,
            "recipes": {name: asdict(recipe) for name, recipe in sorted(recipes.items())},
            "fingerprint": asdict(fingerprint),
            "precision": str(dtype),
        }
        self._shards: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._row_of: dict[str, list[int]] = {}
        self._pending: list[tuple[Sequence[int], Mapping[str, Features]]] = []
        self._pending_bytes = 0
        self._flushed_at = time.monotonic()

    def open(self, keys: Sequence[str]) -> set[int]:
        """Begin or go on; returns the rows that are already on disk.

        Raises:
            StoreError: the folder holds another reading, or a shard is damaged.
            OutputError: the folder cannot be created.
        """
        self._keys = list(keys)
        self._flushed_at = time.monotonic()
        self._row_of = {}
        for row, key in enumerate(keys):
            self._row_of.setdefault(key, []).append(row)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create the feature store {self.folder}: {error.strerror}; choose another "
                "folder"
            ) from error
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            return set()
        stored = _read_manifest(manifest)
        for field in ("format_version", "recipes", "fingerprint", "precision"):
            if stored.get(field) != self.header[field]:
                raise StoreError(
                    f"{self.folder} holds a reading with another {field.replace('_', ' ')}; expected "
                    "the one asked for now. Delete the folder to read again, or choose another"
                )
        self._shards = stored["shards"]
        for shard in self._shards:
            _check_shard(self.folder, shard)
        done = {key for shard in self._shards for key in shard["keys"]}
        return {row for key in done for row in self._row_of.get(key, [])}

    def add(self, rows: Sequence[int], features: Mapping[str, Features]) -> None:
        """Take a batch; written once enough has come together for a shard, or has long been kept."""
        self._pending.append((rows, features))
        self._pending_bytes += sum(f.values.nbytes for f in features.values())
        is_due = time.monotonic() - self._flushed_at >= FLUSH_SECONDS
        if self._pending_bytes >= SHARD_BYTES or is_due:
            self._flush()

    def close(self, n_rows: int, layouts: Mapping[str, Layout]) -> "StoredFeatures":
        """Write what is pending; the features are loaded from disk as they are asked for.

        Raises:
            StoreError: rows are missing on disk.
        """
        self._flush()
        shards, seen = [], set[int]()
        for shard in self._shards:
            index, owners = self._wanted(shard["keys"], seen)
            if index:
                shards.append(_Shard(self.folder / shard["file"], tuple(index), tuple(owners)))
        if len(seen) != n_rows:
            raise StoreError(
                f"{self.folder} holds {len(seen)} of {n_rows} answers after reading; delete it and "
                "read again"
            )
        return StoredFeatures(tuple(shards), layouts)

    def _wanted(self, keys: Sequence[str], seen: set[int]) -> tuple[list[int], list[int]]:
        # One stored answer serves every row with the same content.
        index, owners = [], []
        for position, key in enumerate(keys):
            for row in self._row_of.get(key, []):
                if row not in seen:
                    seen.add(row)
                    index.append(position)
                    owners.append(row)
        return index, owners

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = [row for batch, _ in self._pending for row in batch]
        tensors: dict[str, torch.Tensor] = {}
        for name in self._pending[0][1]:
            features = concatenate([part[name] for _, part in self._pending])
            tensors[f"{name}.values"] = features.values.contiguous()
            tensors[f"{name}.offsets"] = features.offsets
        payload = save(tensors)
        file = f"shard-{len(self._shards):05d}.safetensors"
        with atomic_write(self.folder / file) as out:
            out.write(payload)
        entry = {
            "file": file,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "keys": [self._keys[row] for row in rows],
        }
        self._shards.append(entry)
        write_json(self.folder / "manifest.json", {**self.header, "shards": self._shards})
        self._pending, self._pending_bytes = [], 0
        self._flushed_at = time.monotonic()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise StoreError(
            f"cannot read {path}: {error}; delete the folder and read again"
        ) from error


def _check_shard(folder: Path, shard: Mapping[str, Any]) -> None:
    path = folder / shard["file"]
    if not path.is_file():
        raise StoreError(f"{path} is missing though the manifest names it; delete {folder}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard["sha256"]:
        raise StoreError(
            f"{path} is damaged: its sha256 is {digest[:12]}, the manifest says "
            f"{shard['sha256'][:12]}. Delete {folder} and read again"
        )


@dataclass(frozen=True)
class _Shard:
    """A file with the positions in it that are wanted, and the rows they belong to."""

    path: Path
    index: tuple[int, ...]
    rows: tuple[int, ...]


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

        Raises:
            StoreError: a shard is unreadable.
        """
        layout = replace(self._layouts[name], n_features=stop - start)
        if layout.is_pooled:
            return self._pooled(name, start, stop, layout)
        rows, parts = [], []
        for shard in self._shards:
            found = _load(shard.path, name, start, stop, layout)
            whole = shard.index == tuple(range(found.n_answers))
            parts.append(found if whole else found.take(shard.index))
            rows.extend(shard.rows)
        return in_row_order(rows, parts, layout)

    def _pooled(self, name: str, start: int, stop: int, layout: Layout) -> Features:
        """Straight into their places: a layer of many answers is not held twice."""
        n_rows = sum(len(shard.rows) for shard in self._shards)
        values = torch.empty(n_rows, stop - start, dtype=layout.dtype)
        for shard in self._shards:
            found = _load(shard.path, name, start, stop, layout).values
            values[list(shard.rows)] = found[list(shard.index)]
        return Features(values, torch.arange(n_rows + 1), True)


def _load(path: Path, name: str, start: int, stop: int, layout: Layout) -> Features:
    try:
        with safe_open(path, framework="pt") as stored:
            values = stored.get_slice(f"{name}.values")[:, start:stop]
            return Features(values, stored.get_tensor(f"{name}.offsets"), layout.is_pooled)
    except (SafetensorError, OSError) as error:
        raise StoreError(
            f"cannot read {path}: {error}; delete its folder and read again"
        ) from error
