"""Where a benchmark's records lie: a folder, a file, or hub data sets.

Parts are named after files without folder and suffix ("chat_filtered"), or after the hub's config or
split, since several benchmarks tell their subsets by file only. Places of records begin with the path that was
given, since many benchmarks call their files alike.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrm.data.messages import kind_of
from retrm.data.read import HUB_PREFIX, Record, read_records, records_of
from retrm.errors import DataError, MissingExtraError, did_you_mean

ANY_FOLDER = "*/"


@dataclass(frozen=True)
class Part:
    """Records of one file or split.

    Attributes:
        name: file name without suffixes, or config of the hub, or its split where none is given.
        folder: path of the file's folder relative to the one that was given, "" at its top; for a
            hub data set with a config, its split.
        records: read when iterated; once.
    """

    name: str
    folder: str
    records: Iterable[Record]


@dataclass(frozen=True)
class Source:
    """Parts of a benchmark, in a fixed order.

    Attributes:
        name: for messages: the path, or the benchmark where it has several homes on the hub.
        parts: in order of their paths.
    """

    name: str
    parts: tuple[Part, ...]

    def records(self) -> Iterator[Record]:
        """Of all parts."""
        for part in self.parts:
            yield from part.records

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Mapping[str, Any]]], *, name: str = "rows") -> "Source":
        """Parts from plain dicts in memory: {part name: rows}; "a/b" is part b of folder a."""
        parts = []
        for path, some in rows.items():
            folder, _, stem = path.rpartition("/")
            parts.append(Part(stem, folder, tuple(records_of(some, name=path))))
        return cls(name, tuple(parts))


def open_source(
    data: str | Path | None, *, hub: Sequence[str] = (), pattern: Sequence[str] = (), name: str
) -> Source:
    """The records of benchmark `name`.

    Args:
        data: a folder, one file, ``hub:owner/name...``, "hub" or None = the benchmark's own home.
        hub: its home on the hub.
        pattern: globs of its files inside a folder; one that begins with ``*/`` is tried where the
            others find nothing, and must find all its files in one folder.
        name: of the benchmark, for messages.

    Raises:
        DataError: nothing there, no file of the folder fits, several folders do, or the home on the
            hub cannot be read.
        MissingExtraError: the hub without the extra ``hub``.
    """
    if data is None or str(data) == "hub":
        return Source(name, _home_of(name, hub))
    if str(data).startswith(HUB_PREFIX):
        return Source(str(data), (_hub_part(str(data)),))
    path = Path(data)
    if not path.is_dir():
        return Source(str(path), (Part(_stem(path), "", _placed(path)),))
    found = _files_in(path, pattern, name)
    folders = {file.parent for file in found}
    place = str(folders.pop() if len(folders) == 1 else path)
    return Source(place, tuple(_file_part(file, path) for file in found))


def _home_of(name: str, hub: Sequence[str]) -> tuple[Part, ...]:
    """The parts of a benchmark at its own home."""
    remedy = f"give its files with --data PATH; retrm data benchmarks says which of {name} are read"
    if not hub:
        raise DataError(f"{name} has no home on the hub; {remedy}")
    try:
        return tuple(_hub_part(source) for source in hub)
    except MissingExtraError as error:
        raise MissingExtraError(f"{error}. Or {remedy}") from error
    except DataError as error:
        reason = str(error).partition(". Check owner")[0]
        raise DataError(
            f"{name} was looked for at its home on the hub, since --data was not given: {reason}. "
            f"Without network {remedy}"
        ) from error


def _files_in(path: Path, pattern: Sequence[str], name: str) -> list[Path]:
    """The benchmark's files, of one folder where only its place tells that they are its own."""
    plain = [glob for glob in pattern if not glob.startswith(ANY_FOLDER)]
    found = {file for glob in plain for file in path.glob(glob)}
    if not found:
        found = {file for glob in pattern for file in path.glob(glob)}
        folders = sorted({file.parent.name for file in found})
        if len(folders) > 1:
            likely = next((folder for folder in folders if name in folder), folders[0])
            raise DataError(
                f"{path} holds a {sorted(found)[0].name} in {len(folders)} folders "
                f"({', '.join(folders)}), and {name} may be any of them; expected one. Name it, for "
                f"example --data {name}={path / likely}"
            )
    if not found:
        there = sorted(entry.name for entry in path.iterdir())[:8]
        raise DataError(
            f"{path} has no file of {name}; expected {' or '.join(pattern)}, found "
            f"{', '.join(there) or 'nothing'}. Give the folder that holds its files"
        )
    return sorted(found)


def _placed(file: Path) -> Iterator[Record]:
    """Records whose places, also in what `read_records` refuses, begin with the whole path."""
    records = read_records(file)
    folder = str(file)[: -len(file.name)]

    def of_path() -> Iterator[Record]:
        try:
            for record in records:
                yield Record(record.fields, folder + record.where)
        except DataError as error:
            if folder and str(error).startswith(file.name):
                raise type(error)(folder + str(error)) from error
            raise

    return of_path()


def places_of(data: Sequence[str], names: Sequence[str]) -> dict[str, str | None]:
    """Where the records of each benchmark lie, from what a person typed.

    Args:
        data: ``NAME=PATH`` for one benchmark, or a place for all: a folder that holds a folder called
            like the benchmark stands for that.
        names: of the benchmarks.

    Raises:
        DataError: two places for one benchmark, or a place for a benchmark that is not asked for.
    """
    places: dict[str, str | None] = dict.fromkeys(names)
    common = []
    for text in data:
        name, sign, path = text.partition("=")
        if sign and name in places:
            if places[name] is not None:
                raise DataError(f"got two places for {name}; expected one")
            places[name] = path
        elif sign and not Path(text).exists():
            raise DataError(
                f"got a place for {name!r}, which is not among the benchmarks asked for "
                f"({', '.join(names)}). {did_you_mean(name, names)}"
            )
        else:
            common.append(text)
    if len(common) > 1:
        raise DataError(
            f"got {len(common)} places for all benchmarks; expected one, or NAME=PATH for each"
        )
    for name in names:
        if places[name] is None and common:
            inside = Path(common[0]) / name
            places[name] = str(inside) if inside.is_dir() else common[0]
    return places


def _file_part(file: Path, root: Path) -> Part:
    folder = file.parent.relative_to(root).as_posix()
    return Part(_stem(file), "" if folder == "." else folder, _placed(file))


def _hub_part(source: str) -> Part:
    pieces = source.removeprefix(HUB_PREFIX).split(":")
    split = pieces[1] if len(pieces) > 2 else ""
    return Part(pieces[-1].rpartition("/")[2], split, read_records(source))


def _stem(file: Path) -> str:
    name = file.name
    for suffix in (".gz", ".jsonl", ".json", ".ndjson", ".parquet"):
        name = name.removesuffix(suffix)
    return name


# ------------------------------------------------------------------------- fields of a raw record


def field(record: Record, name: str) -> Any:
    """The value of a field that must be there.

    Raises:
        DataError: it is not; the nearest one is offered.
    """
    if name not in record.fields:
        raise DataError(
            f"{record.where}: there is no field {name!r}; found {', '.join(record.fields)}. "
            f"{did_you_mean(name, record.fields)} Perhaps the file is of another version"
        )
    return record.fields[name]


def text_field(record: Record, name: str, *, may_be_empty: bool = False) -> str:
    """A text.

    Raises:
        DataError: it is missing, of another kind, or empty where that is not allowed.
    """
    return as_text(field(record, name), record.where, name, may_be_empty=may_be_empty)


def as_text(value: Any, where: str, name: str, *, may_be_empty: bool = False) -> str:
    """`value` if it is a text that is not blank; `name` is the field for the message."""
    if not isinstance(value, str):
        raise DataError(f"{where}: `{name}` is {kind_of(value)}; expected a text")
    if not may_be_empty and not value.strip():
        raise DataError(
            f"{where}: `{name}` is empty; expected a text. No scorer can judge an empty answer"
        )
    return value


def texts_field(record: Record, name: str, *, length: int | None = None) -> tuple[str, ...]:
    """A list of texts, of `length` where one is given.

    Raises:
        DataError: it is not; the message names record, field and position.
    """
    values = list_field(record, name)
    if length is not None and len(values) != length:
        raise DataError(
            f"{record.where}: `{name}` has {len(values)} texts; expected {length}. Perhaps the file "
            "is of another version"
        )
    return tuple(as_text(v, record.where, f"{name}[{i}]") for i, v in enumerate(values))


def list_field(record: Record, name: str) -> list[Any]:
    """A list with at least one element.

    Raises:
        DataError: it is none, or empty.
    """
    value = field(record, name)
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else kind_of(value)
        raise DataError(f"{record.where}: `{name}` is {got}; expected a list of at least one")
    return value


def integer_field(record: Record, name: str) -> int:
    """A whole number.

    Raises:
        DataError: it is none.
    """
    value = field(record, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{record.where}: `{name}` is {kind_of(value)}; expected a whole number")
    return value


def choice_field(record: Record, name: str, choices: Sequence[Any]) -> Any:
    """One of `choices`: itself, so that the 1.0 of a table with gaps is the 1 that was meant.

    Raises:
        DataError: it is none of them; the nearest is offered.
    """
    value = field(record, name)
    is_flag = isinstance(value, bool)
    meant = [c for c in choices if c == value and isinstance(c, bool) == is_flag]
    if not meant:
        raise DataError(
            f"{record.where}: `{name}` is {value!r}; expected one of "
            f"{', '.join(map(repr, choices))}. {did_you_mean(str(value), map(str, choices))}"
        )
    return meant[0]


def id_field(record: Record, name: str = "id") -> str:
    """An id as text: a text that is not blank, or a whole number.

    Raises:
        DataError: it is missing or anything else.
    """
    value = field(record, name)
    return str(integer_field(record, name)) if isinstance(value, int) else text_field(record, name)
