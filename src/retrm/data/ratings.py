"""Ratings of the answers of a record, on one scale: from the raters' numbers to 0..1.

    rating = (given - low + pad) / (high - low + 2 pad)

with the range that was stated (`RatingScale`). Numbers outside of it are refused, with record and
column; missing ones (null, "N/A", no such key) stay missing and are never 0.

Any record may also hold ratings that are numbers from 0 to 1 already, in the column `ratings`: an
object with one number an objective, or one list of numbers where the record has a list of answers.

Source: Wang et al., ArmoRM, arXiv 2406.12845, section 3 (ratings scaled to [0, 1], missing ones
skipped).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from retrm.data.messages import kind_of
from retrm.data.parsed import Parsed
from retrm.data.rating_columns import RatingColumn, WantedRatings, check_objective
from retrm.data.read import Record
from retrm.data.values import LABELS, read_column, read_label, read_rating
from retrm.errors import FormatError, LabelError, did_you_mean
from retrm.records import UNIT_SCALE, RatingScale

OWN = "ratings"
"""The column of ratings that are scaled already."""

_MISSING = object()


def rated(
    record: Record,
    parsed: Parsed,
    known: Sequence[RatingColumn],
    wanted: WantedRatings,
    *,
    members: str | None = None,
) -> Parsed:
    """`parsed` with the ratings of its answers.

    Args:
        record: what was parsed.
        parsed: its answers.
        known: the columns that its format knows.
        wanted: which ratings are read.
        members: the column that holds one object an answer, in formats that have one.

    Raises:
        FormatError: the range of a rating that is there is not known.
        LabelError: a value is no number, or lies outside of its range.
    """
    offered = {column.objective: column for column in (*known, *_own_columns(record))}
    chosen = dict(offered) if wanted.takes_known else {}
    for column in wanted.columns:
        chosen[column.objective] = _with_known_range(column, offered)
    ratings: dict[str, tuple[float, ...]] = {}
    scales: dict[str, RatingScale] = {}
    for objective, column in chosen.items():
        values = _values(record, parsed, column, members)
        if values is None:
            ratings[objective] = (math.nan,) * len(parsed.answers)
            continue
        scale = column.scale or _refuse_scale(record, column, offered)
        where = [_place(column, parsed, i, members) for i in range(len(values))]
        ratings[objective] = tuple(
            _read(value, scale, record.where, place, column)
            for value, place in zip(values, where, strict=True)
        )
        scales[objective] = scale
    return replace(parsed, ratings=ratings, scales=scales)


def _with_known_range(column: RatingColumn, offered: Mapping[str, RatingColumn]) -> RatingColumn:
    """The known column of that objective, unless a range or another column was stated."""
    known = offered.get(column.objective)
    if known is None or column.scale is not None:
        return column
    return known if column.column in (column.objective, known.column) else column


def _own_columns(record: Record) -> tuple[RatingColumn, ...]:
    """The objectives in the record's own `ratings`."""
    own = record.fields.get(OWN)
    if own is None:
        return ()
    if not isinstance(own, Mapping):
        raise FormatError(
            f"{record.where}: `{OWN}` is {kind_of(own)}; expected an object with one number from 0 to "
            '1 an objective, such as {"helpfulness": 0.7}'
        )
    for name in own:
        check_objective(name)
    return tuple(RatingColumn(name, f"{OWN}.{name}", UNIT_SCALE) for name in own)


def _values(
    record: Record, parsed: Parsed, column: RatingColumn, members: str | None
) -> Sequence[Any] | None:
    """The raters' values, one an answer; None where the record has no such column."""
    fields, n = record.fields, len(parsed.answers)
    if column.values is not None:
        return column.values(record)
    if members is not None:
        inner = [_at(member, column.column) for member in fields[members]]
        if any(value is not _MISSING for value in inner):
            return [None if value is _MISSING else value for value in inner]
    if parsed.score_shape == "named":
        sides = [_at(fields, f"{column.column}_{side}") for side in parsed.score_fields]
        if any(value is not _MISSING for value in sides):
            return [None if value is _MISSING else value for value in sides]
    value = _at(fields, column.column)
    if value is _MISSING:
        return None
    if parsed.score_shape == "one":
        return [value]
    return read_column({column.column: value}, column.column, n, record.where) or [None] * n


def _at(fields: Any, path: str) -> Any:
    """The value at a dotted path, or `_MISSING`; a whole key with dots comes before a path."""
    if not isinstance(fields, Mapping):
        return _MISSING
    if path in fields:
        return bare_rating(fields[path])
    first, dot, rest = path.partition(".")
    return _at(fields[first], rest) if dot and first in fields else _MISSING


def bare_rating(value: Any) -> Any:
    """The rating of ``{"Rating": "5", "Rationale": ...}``, and any other value as it stands."""
    return value.get("Rating") if isinstance(value, Mapping) else value


def _place(column: RatingColumn, parsed: Parsed, i: int, members: str | None) -> str:
    """The column of one value, for messages."""
    if members is not None and not column.column.startswith(f"{OWN}."):
        return f"{members}[{i}].{column.column}"
    if parsed.score_shape == "named":
        return f"{column.column}_{parsed.score_fields[i]}"
    return column.column if parsed.score_shape == "one" else f"{column.column}[{i}]"


def _read(value: Any, scale: RatingScale, where: str, place: str, column: RatingColumn) -> float:
    """One rating from 0 to 1; NaN where it is missing.

    Raises:
        LabelError: no number, or one that raters could not give.
    """
    is_word = isinstance(value, bool) or (isinstance(value, str) and value in LABELS)
    if is_word and (scale.low, scale.high) != (0, 1):
        raise LabelError(
            f"{where}: `{place}` is {kind_of(value)}; expected a number from {scale.low:g} to "
            f"{scale.high:g}, or null where it is missing"
        )
    given = read_label(value, where, place) if is_word else read_rating(value, where, place)
    if not math.isnan(given) and not scale.holds(given):
        raise LabelError(
            f"{where}: `{place}` is {kind_of(value)}; expected {scale.low:g} to {scale.high:g}, the "
            f"range of the rating {column.objective!r}. Mend the record, or state the range: --rating "
            f"{column.written}:LOW..HIGH"
        )
    return scale.scaled(given)


def _refuse_scale(
    record: Record, column: RatingColumn, offered: Mapping[str, RatingColumn]
) -> NoReturn:
    known = [name for name, one in offered.items() if one.scale is not None]
    near = "" if column.objective in known else did_you_mean(column.objective, known)
    raise FormatError(
        f"{record.where}: the range of the rating {column.objective!r} is not known; expected it "
        f"stated: --rating {column.written}:LOW..HIGH. {near}".rstrip()
    )
