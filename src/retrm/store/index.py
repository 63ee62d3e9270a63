"""`index.parquet`: where each answer of a finished store lies, one row an answer.

    key           string   content key: a hash of the token ids and the span
    shard         string   file name
    position      int64    among the answers of the shard: its row in pooled features
    first_token   int64    its first row in features kept per token; null where every recipe pools
    n_tokens      int64    response tokens, so rows of such features; null likewise

Rows stand in the order of the shards. The index is derived from what the shards hold when a reading
ends, and counts only once the manifest names it with its checksum; a manifest that gains a shard no
longer names one. So whatever moment a kill picks, an index that is named is the index of exactly the
shards that are named.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrm.errors import StoreError
from retrm.files import atomic_write
from retrm.store.manifest import INDEX, FileEntry, Manifest, shard_name
from retrm.store.shard_file import Contents, check_file

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("position", pa.int64()),
        ("first_token", pa.int64()),
        ("n_tokens", pa.int64()),
    ]
)
DERIVED = "Run the command that made the store again: it derives the index from the shards anew"


def write_index(folder: Path, contents: Sequence[Contents]) -> FileEntry:
    """Write the index of the shards that hold `contents`; the entry is for the manifest.

    Raises:
        OutputError: the file cannot be written.
    """
    parts = [_rows(number, found) for number, found in enumerate(contents)]
    table = pa.concat_tables(parts) if parts else SCHEMA.empty_table()
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    payload = buffer.getvalue()
    with atomic_write(folder / INDEX) as out:
        out.write(payload)
    return FileEntry(INDEX, len(payload), hashlib.sha256(payload).hexdigest())


def read_index(folder: Path) -> pa.Table:
    """The index of the finished store `folder`.

    Raises:
        StoreError: no store, not finished, or the index is not the one that the manifest names.
    """
    manifest = Manifest.load(folder)
    if manifest.index is None:
        raise StoreError(
            f"the reading in {folder} was not finished, so it has no index yet; run the command that "
            "began it again"
        )
    check_file(folder, manifest.index, remedy=DERIVED)
    table = pq.read_table(folder / INDEX)
    if table.schema != SCHEMA or table.num_rows != manifest.n_answers:
        raise StoreError(
            f"{folder / INDEX} has {table.num_rows} rows and columns {table.column_names}; expected "
            f"{manifest.n_answers} rows and {SCHEMA.names}. {DERIVED}"
        )
    return table


def _rows(number: int, found: Contents) -> pa.Table:
    n_answers = len(found.keys)
    first, lengths = None, found.lengths
    if lengths is not None:
        first = np.concatenate([[0], lengths.cumsum()[:-1]])
    none = pa.nulls(n_answers, pa.int64())
    columns = [
        pa.array(found.keys, pa.string()),
        pa.array([shard_name(number)] * n_answers, pa.string()),
        pa.array(np.arange(n_answers)),
        none if first is None else pa.array(first),
        none if lengths is None else pa.array(lengths),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)
