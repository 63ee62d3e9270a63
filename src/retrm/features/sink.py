"""Where the features of a reading go: memory, or (in `retrm.store`) shards on disk."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from retrm.features.reduce import Features, Layout, concatenate


class FeatureSink(Protocol):
    """Receives features batch by batch, in any order, and gives them back in row order."""

    def open(self, keys: Sequence[str]) -> set[int]:
        """Begin a reading of rows with these content keys; returns the rows already there."""
        ...

    def add(self, rows: Sequence[int], features: Mapping[str, Features]) -> None:
        """Take the features of `rows` (in that order) for every recipe."""
        ...

    def flush(self) -> None:
        """The reading breaks off: keep what was added, if this sink outlives the process."""
        ...

    def close(self, n_rows: int, layouts: Mapping[str, Layout]) -> Mapping[str, Features]:
        """End the reading; features of rows 0..n_rows-1 per name."""
        ...


def in_row_order(rows: Sequence[int], parts: Sequence[Features], layout: Layout) -> Features:
    """`parts` hold the answers `rows`, in arrival order; returns them in ascending row order."""
    if not parts:
        empty = torch.empty(0, layout.n_features, dtype=layout.dtype)
        return Features(empty, torch.zeros(1, dtype=torch.int64), layout.is_pooled)
    order = torch.as_tensor(rows, dtype=torch.int64).argsort()
    if parts[0].is_pooled:
        return concatenate(parts).take(order)
    return _tokens_in_order(order, parts)


def _tokens_in_order(order: torch.Tensor, parts: Sequence[Features]) -> Features:
    # Copies each answer straight into its place: all tokens of all layers are gigabytes, and a
    # concatenation before the sort would hold them twice.
    lengths = torch.cat([part.offsets[1:] - part.offsets[:-1] for part in parts])
    offsets = torch.cat([lengths.new_zeros(1), lengths[order].cumsum(0)])
    first = parts[0].values
    values = torch.empty((int(offsets[-1]), first.shape[1]), dtype=first.dtype)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    arrival = 0
    for part in parts:
        for i in range(part.n_answers):
            start = int(offsets[place[arrival]])
            piece = part.values[int(part.offsets[i]) : int(part.offsets[i + 1])]
            values[start : start + piece.shape[0]] = piece
            arrival += 1
    return Features(values, offsets, False)


class MemorySink:
    """Keeps everything in memory; nothing is resumed."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._parts: dict[str, list[Features]] = {}

    def open(self, keys: Sequence[str]) -> set[int]:
        """Begin; nothing is there yet."""
        self._rows, self._parts = [], {}
        return set()

    def add(self, rows: Sequence[int], features: Mapping[str, Features]) -> None:
        """Keep the features of `rows`."""
        self._rows.extend(rows)
        for name, part in features.items():
            self._parts.setdefault(name, []).append(part)

    def flush(self) -> None:
        """Nothing outlives the process."""

    def close(self, n_rows: int, layouts: Mapping[str, Layout]) -> Mapping[str, Features]:
        """Features in row order."""
        assert len(self._rows) == n_rows
        return {
            name: in_row_order(self._rows, self._parts.pop(name, []), layout)
            for name, layout in layouts.items()
        }
