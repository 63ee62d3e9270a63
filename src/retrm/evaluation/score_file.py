"""Every raw score of a benchmark on disk, so that any figure can be computed again without a model.

One file a benchmark and scorer, JSON Lines in UTF-8. The first line says what was scored by whom:

    {"retrm_scores": 1, "benchmark": "llmbar", "scorer": "runs/elhsr", "kind": "scorer",
     "n_items": 419, ...}

and every other line is an item with all that the benchmark's rule asks for:

    {"item": "Natural-3", "subset": "Natural", "cluster": "...", "facts": {...},
     "n_characters": [412, 388], "n_tokens": [131, 125], "is_cut": [false, false],
     "scores": [0.31, -1.2]}

`n_items` is the number of those lines, by which a file that lost some is known; it may be left out of a
file that is written by hand. A score of null is an answer beyond the scorer's context: its item takes no part, and is counted.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from retrm.data.read import Record, read_records
from retrm.errors import DataError, ScoreError
from retrm.evaluation.benchmarks.base import ScoredItem
from retrm.evaluation.benchmarks.source import (
    choice_field,
    id_field,
    integer_field,
    list_field,
    text_field,
)
from retrm.evaluation.benchmarks.source import field as needed
from retrm.files import write_json_lines

VERSION = 1
Kind = Literal["scorer", "baseline"]
T = TypeVar("T")


@dataclass(frozen=True)
class ScoredRow:
    """An item with its scores and what happened to its answers.

    Attributes:
        item: scores are NaN where an answer was over-long.
        n_tokens: (k,) of prompt and answer; None where the scorer does not say.
        is_cut: (k,) whether the prompt was cut to fit.
    """

    item: ScoredItem
    n_tokens: tuple[int, ...] | None
    is_cut: tuple[bool, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every candidate has a score."""
        return bool(np.isfinite(self.item.scores).all())


@dataclass(frozen=True)
class ScoreFile:
    """The scores that one scorer gave to one benchmark.

    Attributes:
        benchmark: its name.
        scorer: name of the scorer.
        kind: "baseline" = put beside the others, never judged itself.
        rows: one an item, in the benchmark's order.
        excluded: records that the official rule leaves out, by reason.
        notes: sentences a reader of the figures must see.
        about: whatever else is known: identity, versions, seconds, data.
    """

    benchmark: str
    scorer: str
    rows: tuple[ScoredRow, ...]
    kind: Kind = "scorer"
    excluded: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def items(self) -> dict[str, ScoredItem]:
        """Complete items by id."""
        return {row.item.id: row.item for row in self.rows if row.is_complete}

    def take(self, ids: Sequence[str]) -> list[ScoredItem]:
        """Complete items with these ids, in their order."""
        items = self.items()
        return [items[id_] for id_ in ids]

    @property
    def n_overlong(self) -> int:
        """Items that take no part because an answer is beyond the scorer's context."""
        return sum(not row.is_complete for row in self.rows)

    @property
    def n_cut(self) -> int:
        """Answers whose prompt was cut to fit."""
        return sum(sum(row.is_cut) for row in self.rows)


def write_scores(path: Path, scores: ScoreFile) -> None:
    """The file, as a whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    head = {
        "retrm_scores": VERSION,
        "benchmark": scores.benchmark,
        "scorer": scores.scorer,
        "kind": scores.kind,
        "n_items": len(scores.rows),
        "excluded": dict(scores.excluded),
        "notes": list(scores.notes),
        "about": dict(scores.about),
    }
    write_json_lines(path, (head, *map(_line, scores.rows)))


def _line(row: ScoredRow) -> dict[str, Any]:
    item = row.item
    return {
        "item": item.id,
        "subset": item.subset,
        "cluster": item.cluster,
        "facts": dict(item.facts),
        "n_characters": list(item.n_characters),
        "n_tokens": None if row.n_tokens is None else list(row.n_tokens),
        "is_cut": list(row.is_cut),
        "scores": [None if math.isnan(s) else s for s in item.scores.tolist()],
    }


def read_scores(path: Path) -> ScoreFile:
    """A file that `write_scores` wrote, or somebody by its rules.

    Raises:
        DataError: it is no such file, an item stands twice or is missing, or a line is not what it
            should be; record and field are named.
        ScoreError: a score is no number.
    """
    records = read_records(path)
    head = next(records, None)
    if head is None or head.fields.get("retrm_scores") != VERSION:
        raise DataError(
            f"{path} is no file of scores of version {VERSION}: its first line lacks "
            f'"retrm_scores": {VERSION}. Expected a file that retrm eval wrote'
        )
    rows = _rows(records)
    if not rows:
        raise DataError(f"{path} holds no items; expected at least one line behind the first")
    if "n_items" in head.fields and integer_field(head, "n_items") != len(rows):
        raise DataError(
            f"{path} holds {len(rows)} items; expected {head.fields['n_items']}, as its first line "
            "says. Lines are missing or were added; write it again with retrm eval"
        )
    excluded = _optional(head, "excluded", {})
    notes = _optional(head, "notes", [])
    return ScoreFile(
        benchmark=text_field(head, "benchmark"),
        scorer=text_field(head, "scorer"),
        rows=rows,
        kind=choice_field(head, "kind", get_args(Kind)) if "kind" in head.fields else "scorer",
        excluded={k: _of_kind(v, int, head.where, f"excluded.{k}") for k, v in excluded.items()},
        notes=tuple(_of_kind(v, str, head.where, f"notes[{i}]") for i, v in enumerate(notes)),
        about=_optional(head, "about", {}),
    )


_KINDS = {
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def _of_kind(value: Any, kind: type[T], where: str, name: str) -> T:
    """`value` if it is of exactly this kind: true is no number."""
    if type(value) is not kind:
        raise DataError(f"{where}: `{name}` is {value!r:.60}; expected {_KINDS[kind]}")
    return value


def _optional(record: Record, name: str, default: T) -> T:
    return _of_kind(record.fields.get(name, default), type(default), record.where, name)


def _rows(records: Iterable[Record]) -> tuple[ScoredRow, ...]:
    rows: list[ScoredRow] = []
    seen: dict[str, str] = {}
    for record in records:
        row = _row(record)
        before = seen.setdefault(row.item.id, record.where)
        if before != record.where:
            raise DataError(
                f"{record.where}: the item {row.item.id!r} stands at {before} already; expected every "
                "item once, or it counts twice. Remove the copy"
            )
        rows.append(row)
    return tuple(rows)


def _row(record: Record) -> ScoredRow:
    scores = np.array(
        [_score(s, record.where, i) for i, s in enumerate(list_field(record, "scores"))]
    )
    lengths = list_field(record, "n_characters")
    tokens = record.fields.get("n_tokens")
    cut = record.fields.get("is_cut")
    cut = [False] * len(scores) if cut is None else cut
    for name, values, kind in (
        ("n_characters", lengths, int),
        ("n_tokens", tokens, int),
        ("is_cut", cut, bool),
    ):
        if values is None:
            continue
        for i, value in enumerate(_of_kind(values, list, record.where, name)):
            _of_kind(value, kind, record.where, f"{name}[{i}]")
        if len(values) != len(scores):
            raise DataError(
                f"{record.where}: `{name}` has {len(values)} values for {len(scores)} scores; "
                "expected one each"
            )
    item = ScoredItem(
        id=id_field(record, "item"),
        subset=text_field(record, "subset"),
        cluster=id_field(record, "cluster"),
        facts=_of_kind(needed(record, "facts"), dict, record.where, "facts"),
        n_characters=tuple(lengths),
        scores=scores,
    )
    return ScoredRow(item, None if tokens is None else tuple(tokens), tuple(cut))


def _score(value: Any, where: str, place: int) -> float:
    if value is None:
        return math.nan
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not is_number or not abs(value) <= sys.float_info.max
    ):  # also of a whole number of 400 digits
        raise ScoreError(
            f"{where}: `scores[{place}]` is {value!r:.60}; expected a finite number, or null for an "
            "answer beyond the scorer's context"
        )
    return float(value)


def common_items(files: Sequence[ScoreFile]) -> tuple[list[str], dict[str, int]]:
    """Ids of the items that every file has in full, in order, and how many each file lacks.

    Raises:
        DataError: files of different benchmarks, or of different items altogether.
    """
    names = {file.benchmark for file in files}
    if len(names) > 1:
        raise DataError(
            f"got scores of {' and '.join(sorted(names))}; expected one benchmark at a time"
        )
    all_ids = [row.item.id for row in files[0].rows]
    for file in files[1:]:
        if {row.item.id for row in file.rows} != set(all_ids):
            raise DataError(
                f"{file.scorer} and {files[0].scorer} were scored on different items of "
                f"{file.benchmark} ({len(file.rows)} and {len(all_ids)}); expected the same, or the "
                "difference is not paired. Score both on the same data"
            )
        _check_alike(files[0], file)
    complete = [file.items() for file in files]
    kept = [id_ for id_ in all_ids if all(id_ in items for items in complete)]
    if not kept:
        raise DataError(
            f"{files[0].benchmark}: no item has scores of all of "
            f"{', '.join(file.scorer for file in files)}; all are over-long for one of them"
        )
    return kept, {file.scorer: file.n_overlong for file in files if file.n_overlong}


def _check_alike(first: ScoreFile, second: ScoreFile) -> None:
    """Refuse items of one id that are not the same answers with the same labels."""
    theirs = {row.item.id: row.item for row in second.rows}
    for item in (row.item for row in first.rows):
        other = theirs[item.id]
        for name in ("subset", "cluster", "n_characters", "facts"):
            mine, its = getattr(item, name), getattr(other, name)
            if mine != its:
                raise DataError(
                    f"the item {item.id!r} of {first.benchmark} has {name} {mine!r} with the scores "
                    f"of {first.scorer} and {its!r} with those of {second.scorer}; expected the same "
                    "answers and labels. Score both on the same version of the data"
                )
