"""Raw records, streamed, each with its place in the source.

Read are JSON Lines, JSON arrays, CSV with a header (all also gzip'd), Parquet, and hub data sets written
as ``hub:owner/name[:split][:config]``. Every value of a CSV file is a text. What a file holds is told from its first bytes where its name
does not settle it, so a ``.json`` file with one object a line is read for what it is.

A log that Inspect wrote as JSON is read for its samples.

Memory stays bounded by one record (JSON), one batch of rows (Parquet) or one memory-mapped row (hub); a
log is one object and is held whole.

    >>> [record.fields["prompt"] for record in records_of([{"prompt": "2+2?"}])]
    ['2+2?']
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from retrm.data.inspect_samples import is_log, read_log
from retrm.errors import DataError, MissingExtraError, did_you_mean

HUB_PREFIX = "hub:"
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_TEXT_SUFFIXES = (*_JSON_SUFFIXES, ".csv")
_SUFFIXES = (*_TEXT_SUFFIXES, ".parquet")
_PARQUET_ROWS = 256
_CHUNK = 1 << 16
_LONGEST_TOKEN = 512
_BOM = b"\xef\xbb\xbf"
# A split may carry a slice, "test[:100]", whose colon is no separator.
_HUB = re.compile(
    r"hub:(?P<name>[^:]+)(?::(?P<split>[^:\[\]]+(?:\[[^\]]*\])?))?(?::(?P<config>[^:]+))?"
)


@dataclass(frozen=True)
class Record:
    """One raw record.

    Attributes:
        fields: column name to value, as the file holds it.
        where: the place for error messages: ``rollouts.jsonl:12`` (line, from 1),
            ``rows.json[11]`` (array index, from 0), ``part.parquet:12`` and ``hub:owner/name:12``
            (row, from 1).
    """

    fields: Mapping[str, Any]
    where: str


def records_of(rows: Iterable[Mapping[str, Any]], *, name: str = "rows") -> Iterator[Record]:
    """Records of plain dicts that are in memory already; places are ``name[index]``."""
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{name}[{index}]: got {type(row).__name__}; expected a dict with one key a column"
            )
        yield Record(dict(row), f"{name}[{index}]")


def read_records(source: str | Path, *, limit: int | None = None) -> Iterator[Record]:
    """The records of a file or hub data set, in order.

    An empty file gives no record; the caller decides whether that is a mistake.

    Args:
        source: a path, or ``hub:owner/name[:split][:config]`` (split defaults to ``train``).
        limit: stop after so many records; None = all.

    Raises:
        DataError: the source is missing or of an unknown kind (at the call), or a record is
            malformed (when it is reached; the line is named).
        MissingExtraError: a hub data set without the extra ``hub``.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise DataError(f"got limit={limit!r}; expected a number of records from 0 up, or None")
    if str(source).startswith(HUB_PREFIX):
        records = _read_hub(str(source))
    else:
        path = Path(source)
        _check_file(path)
        reader = {".parquet": _read_parquet, ".csv": _read_csv}.get(_kind(path), _read_json)
        records = reader(path)
    return records if limit is None else itertools.islice(records, limit)


def _check_file(path: Path) -> None:
    """Refuse what is no readable data file, and offer what may have been meant."""
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; expected one file ({', '.join(_SUFFIXES)}). "
            f"{_nearest('data.jsonl', path)}".rstrip()
        )
    if not path.is_file():
        raise DataError(
            f"{path} does not exist; expected a data file or hub:owner/name. "
            f"{_nearest(path.name, path.parent)}".rstrip()
        )
    if path.suffix.lower() == ".eval":
        raise DataError(
            f"{path} is a packed Inspect log; expected its JSON form. Run: inspect log convert "
            f"{path.name} --to json --output-dir DIR"
        )
    inner = _kind(path)
    if inner not in _SUFFIXES or (inner != path.suffix.lower() and inner == ".parquet"):
        raise DataError(
            f"{path} ends in {''.join(path.suffixes[-2:])!r}, which is not read; expected "
            f"{', '.join(_SUFFIXES)} or {', '.join(f'{s}.gz' for s in _TEXT_SUFFIXES)}. "
            "Convert the file to JSON Lines, one object a line"
        )


def _kind(path: Path) -> str:
    """The suffix in small letters, without that of gzip."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def _nearest(name: str, folder: Path) -> str:
    """A closing sentence that offers the nearest file of `folder`."""
    if not folder.is_dir():
        return f"The folder {folder} does not exist either."
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    offer = did_you_mean(name, names)
    if offer.startswith("Did"):
        return offer
    return did_you_mean(name, [n for n in names if n.lower().endswith((*_SUFFIXES, ".gz"))][:8])


# ---------------------------------------------------------------------------------------- JSON


def _read_json(path: Path) -> Iterator[Record]:
    """JSON Lines or one JSON array, told apart by the first character that is no white space."""
    with _readable(path), _open(path) as stream:
        head = stream.peek(4)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path}: got UTF-16 text; expected UTF-8. Save it as UTF-8")
        is_array = head.removeprefix(_BOM).lstrip()[:1] == b"["
        if not is_array and is_log(stream.peek(200)):
            yield from (Record(*sample) for sample in read_log(stream, path.name))
            return
        yield from _read_array(stream, path) if is_array else _read_lines(stream, path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Faults of the file itself as errors of ours."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: the compressed data is damaged or cut off ({error}); expected a whole gzip "
            "file. Copy or download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _open(path: Path) -> io.BufferedReader:
    """The bytes of a file, unpacked when it begins like gzip, whatever its name."""
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
    return io.BufferedReader(gzip.open(path, "rb")) if is_gzip else path.open("rb")  # type: ignore[arg-type]


def _read_lines(stream: io.BufferedReader, path: Path) -> Iterator[Record]:
    r"""One object a line. Binary iteration splits at b"\\n" only: U+2028 and U+0085 stand in texts."""
    for number, line in enumerate(stream, start=1):
        where = f"{path.name}:{number}"
        text = _decode(line.removeprefix(_BOM) if number == 1 else line, where)
        if not text.strip():
            continue
        try:
            value = _DECODER.decode(text)
        except _LiteralError as error:
            _refuse_literal(where, error)
        except (ValueError, RecursionError) as error:
            raise DataError(
                _json_fault(where, text, error, is_last=not line.endswith(b"\n"))
            ) from error
        yield _record(value, where)


def _decode(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start + 1} of the line (0x{line[error.start]:02x}) is not UTF-8 "
            f"({error.reason}); expected UTF-8 text. Save the file as UTF-8"
        ) from error


def _read_array(stream: io.BufferedReader, path: Path) -> Iterator[Record]:
    """The elements of one JSON array, decoded one by one from a growing and shrinking buffer."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    buffer = _Buffer(text, path)
    buffer.skip("[")
    index = 0
    while not buffer.at("]"):
        if index and not buffer.skip(","):
            buffer.fail(index, "expected a comma between two elements, or the closing bracket")
        where = f"{path.name}[{index}]"
        try:
            yield _record(buffer.value(index), where)
        except _LiteralError as error:
            _refuse_literal(where, error)
        index += 1
    buffer.skip("]")
    if buffer.peek():
        buffer.fail(index, "got text behind the closing bracket; expected the file to end there")


class _Buffer:
    """A window on a long JSON text."""

    def __init__(self, stream: io.TextIOWrapper, path: Path) -> None:
        self.stream, self.path = stream, path
        self.text, self.start, self.line = "", 0, 1

    def more(self, size: int) -> bool:
        """Read on; False at the end of the file."""
        try:
            chunk = self.stream.read(size)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path.name}, after line {self.line}: the text is not UTF-8 ({error.reason}); "
                "expected UTF-8 text. Save the file as UTF-8"
            ) from error
        self.line += self.text.count("\n", 0, self.start)
        self.text, self.start = self.text[self.start :] + chunk, 0
        return bool(chunk)

    def peek(self) -> str:
        """The next character that is no white space, or "" at the end of the file."""
        while True:
            rest = len(self.text)
            while self.start < rest and self.text[self.start] in " \t\r\n":
                self.start += 1
            if self.start < rest:
                return self.text[self.start]
            if not self.more(_CHUNK):
                return ""

    def at(self, char: str) -> bool:
        return self.peek() == char

    def skip(self, char: str) -> bool:
        """Step over `char` if it is next."""
        if not self.at(char):
            return False
        self.start += 1
        return True

    def value(self, index: int) -> Any:
        """The next element. The reading doubles until it is whole, so the cost stays linear."""
        if not self.peek():
            self.fail(index, "the file ends inside the array. Was its writer interrupted?")
        size = _CHUNK
        while True:
            try:
                value, self.start = _DECODER.raw_decode(self.text, self.start)
                return value
            except RecursionError:
                self.fail(index, "the element is nested too deeply")
            except _LiteralError:
                raise
            except ValueError as error:
                if self.is_final(error) or not self.more(size):
                    self.fail(index, f"malformed JSON ({getattr(error, 'msg', error)})")
            size *= 2

    def is_final(self, error: ValueError) -> bool:
        """Whether no further text can mend the fault, so that the rest need not be read."""
        if not isinstance(error, json.JSONDecodeError) or error.msg.startswith("Unterminated"):
            return False
        return error.pos < len(self.text) - _LONGEST_TOKEN

    def fail(self, index: int, reason: str) -> NoReturn:
        line = self.line + self.text.count("\n", 0, self.start)
        raise DataError(
            f"{self.path.name}[{index}], line {line}: {reason}; expected a JSON array of objects. "
            "Mend the file from there on, or write one object a line"
        )


class _LiteralError(Exception):
    """A number that JSON cannot hold."""


def _refuse_constant(literal: str) -> NoReturn:
    raise _LiteralError(literal)


def _finite(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise _LiteralError(literal)
    return number


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _refuse_literal(where: str, error: _LiteralError) -> NoReturn:
    raise DataError(
        f"{where}: got the number {error}; expected finite numbers. Write null where a value is missing"
    ) from None


def _json_fault(where: str, text: str, error: Exception, *, is_last: bool) -> str:
    """Why a line is not one JSON object, as precisely as can be told."""
    if isinstance(error, RecursionError):
        return f"{where}: the record is nested too deeply; expected a flat object with one key a column"
    expected = "expected one JSON object a line"
    if text.strip() == "{":
        return (
            f"{where}: the object goes on over several lines; {expected}, or one array of objects"
        )
    if is_last and getattr(error, "pos", 0) >= len(text.rstrip()) - 1:
        return (
            f"{where}: the file ends in the middle of a record; {expected}. Was its writer "
            "interrupted? Delete the last line or write the file again"
        )
    at = getattr(error, "colno", None)
    place = f" at character {at}" if at else ""
    return f"{where}: malformed JSON{place} ({getattr(error, 'msg', error)}); {expected}. Mend that line"


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: got {_json_kind(value)}; expected an object with one key a column, such as "
            '{"prompt": ..., "response": ...}'
        )
    return Record(value, where)


def _json_kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# ----------------------------------------------------------------------------------------- CSV


def _read_csv(path: Path) -> Iterator[Record]:
    """Rows below a header; a place is the line on which a row begins."""
    with _readable(path), _open(path) as stream:
        rows = csv.reader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), strict=True)
        end = 0
        try:
            header = _header(next(rows, []), path)
            end = rows.line_num
            for row in rows:
                where, end = f"{path.name}:{end + 1}", rows.line_num
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{where}: the row has {len(row)} values; expected {len(header)}, one a column of "
                        "the header. Put texts with commas, quotes or line breaks in double quotes"
                    )
                yield Record(dict(zip(header, row, strict=True)), where)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path.name}, after line {end}: no readable CSV ({error}); expected UTF-8 text with a "
                "header, commas, and double quotes around texts that need them. Mend it from there on"
            ) from error


def _header(names: list[str], path: Path) -> list[str]:
    """The column names; one may be empty, as that of a written index is."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{path.name}:1: two columns are named {twice!r}; expected a header with a name for each. "
            "Rename one"
        )
    return names


# ------------------------------------------------------------------------------- Parquet and hub


def _read_parquet(path: Path) -> Iterator[Record]:
    """Rows batch by batch; row groups are not buffered ahead."""
    # pyarrow takes a while to import, and JSON needs none of it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(row, f"{path.name}:{number}")
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a readable Parquet file after row {number} ({error}); expected a whole "
            "Parquet file. Copy or download it again"
        ) from error


def _read_hub(source: str) -> Iterator[Record]:
    """Rows of a hub data set, memory-mapped from the local cache of `datasets`."""
    found = _HUB.fullmatch(source)
    if found is None:
        raise DataError(
            f"got {source!r}; expected hub:owner/name, hub:owner/name:split or "
            "hub:owner/name:split:config"
        )
    name, split, config = found["name"], found["split"] or "train", found["config"]
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{source} needs the package `datasets`, which is not installed. "
            "Run: pip install 'retrm[hub]'"
        ) from error
    try:
        rows = datasets.load_dataset(name, config, split=split)
    # RuntimeError: a data set that is a script, which `datasets` 4 and later do not run.
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source}: the data set could not be loaded: {error}. Check owner, name, split "
            "(default train) and config; without network only data sets in the local cache are read"
        ) from error
    return (Record(row, f"{HUB_PREFIX}{name}:{n}") for n, row in enumerate(rows, start=1))
