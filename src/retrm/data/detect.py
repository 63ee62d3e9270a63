"""Which format a record is in, told by its columns, and the record read as one.

Detection looks at column names only. A format that needs more than another is the more specific one
and wins (`Format.beats`); where two remain, nothing is guessed and the user is asked for ``--format``.

    >>> from retrm.data.read import Record
    >>> record = Record({"prompt": "2+2?", "response": "4", "label": True}, "row 1")
    >>> detect(record)
    'unpaired'
    >>> parse(record, "unpaired").labels
    (1.0,)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from retrm.data.formats import FORMATS
from retrm.data.parsed import NO_OPTIONS, Options, Parsed
from retrm.data.rating_columns import ATTRIBUTES
from retrm.data.ratings import rated
from retrm.data.read import Record
from retrm.data.values import GOLD, read_reference
from retrm.errors import FormatError, did_you_mean
from retrm.records import Reference

# Beside these, ranks or scores no longer say that the record is a ranked list.
_OUTCOMES = ("correct", *GOLD, "token_ids", "finished", "logprobs", "keys")


def detect(record: Record, options: Options = NO_OPTIONS) -> str:
    """The name of the format whose columns the record has.

    Raises:
        FormatError: no format fits (with the nearest one and the column to rename), or several do.
    """
    fits = {name for name in FORMATS if _fits(name, record.fields, options)}
    left = fits - {loser for name in fits for loser in _beaten(name, options)}
    if not left:
        raise FormatError(_no_format(record))
    if len(left) > 1:
        names = [name for name in FORMATS if name in left]
        raise FormatError(
            f"{record.where}: the columns {_listed(record.fields)} fit {len(names)} formats "
            f"({', '.join(names)}); expected one. Say which: --format {names[0]}"
        )
    return left.pop()


def _fits(name: str, fields: Mapping[str, Any], options: Options) -> bool:
    lacking = FORMATS[name].lacks(fields)
    if name == "rollouts":
        # Answers with ranks or scores alone are a ranked list; an outcome beside them is a doubt.
        is_ranked = "ranks" in fields or "scores" in fields
        return not lacking and (not is_ranked or any(column in fields for column in _OUTCOMES))
    if name == "pointwise" and options.attribute in fields:
        return lacking in ([], [ATTRIBUTES])
    return not lacking


def _beaten(name: str, options: Options) -> tuple[str, ...]:
    # Who names an attribute has said that ratings are meant, not the label beside them.
    if name == "pointwise" and options.attribute is not None:
        return (*FORMATS[name].beats, "unpaired")
    # Who asks for ratings keeps the label beside them.
    if name == "unpaired" and options.attribute is None and options.ratings is not None:
        return (*FORMATS[name].beats, "pointwise")
    return FORMATS[name].beats


def _listed(columns: Mapping[str, Any]) -> str:
    names = [repr(name) for name in columns]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _no_format(record: Record) -> str:
    """The message for columns that fit nothing: the format that needs the fewest more columns."""
    readable = {name: f for name, f in FORMATS.items() if f.is_readable}
    name = min(readable, key=lambda name: _distance(name, record.fields))
    lacking = readable[name].lacks(record.fields)
    got = _listed(record.fields) or "none"
    if len(lacking) == len(readable[name].needs):
        # Nothing in common: then a misspelt column says more than any format.
        known = sorted({c for f in readable.values() for names in f.needs for c in names})
        hints = [h for c in record.fields if (h := did_you_mean(c, known)).startswith("Did")]
        return (
            f"{record.where}: the columns {got} fit no record format; expected those of one of "
            f"{', '.join(readable)}. {' '.join(hints[:2])}".rstrip()
        )
    return (
        f"{record.where}: the columns {got} fit no record format; the nearest is {name!r}, which "
        f"also needs {_needed(lacking)}. {_rename(lacking, record.fields)}"
    )


def _distance(name: str, columns: Mapping[str, Any]) -> tuple[float, bool, int, int]:
    """How far columns are from a format: by what is lacking, then by whether a misspelling mends it.

    Of equals the one that asks for more, then the least specific.
    """
    needs, lacking = FORMATS[name].needs, FORMATS[name].lacks(columns)
    is_misspelt = _rename(lacking, columns).startswith("Did")
    return len(lacking) / len(needs), not is_misspelt, -len(needs), -list(FORMATS).index(name)


def _needed(lacking: Sequence[tuple[str, ...]]) -> str:
    return " and ".join(" or ".join(repr(n) for n in names) for names in lacking)


def _rename(lacking: Sequence[tuple[str, ...]], columns: Mapping[str, Any]) -> str:
    """What to do about a missing column."""
    for names in lacking:
        for column in columns:
            offer = did_you_mean(column, names)
            if offer.startswith("Did"):
                return (
                    f"{offer.removesuffix('?')} where the file says {column!r}? Rename the column"
                )
    return "Rename or add the column"


def parse(record: Record, format: str, options: Options = NO_OPTIONS) -> Parsed:
    """What `record` says, read as the format of that name.

    Raises:
        FormatError: the name is unknown, or a column that the format needs is missing.
        DataError, LabelError: a value is not what the format says.
    """
    if format not in FORMATS:
        raise FormatError(
            f"got format {format!r}; expected 'auto' or a known one. {did_you_mean(format, FORMATS)}"
        )
    lacking = FORMATS[format].lacks(record.fields)
    if format == "pointwise" and options.attribute in record.fields:
        lacking = [names for names in lacking if names != ATTRIBUTES]
    if lacking:
        raise FormatError(
            f"{record.where}: format {format!r} needs {_needed(lacking)}; got the columns "
            f"{_listed(record.fields) or 'none'}. {_rename(lacking, record.fields)}"
        )
    parsed = _with_reference(record, FORMATS[format].parse(record, options))
    if options.ratings is None or not (options.ratings.takes_known or options.ratings.columns):
        return parsed
    known = FORMATS[format].rating_columns(record.fields)
    return rated(record, parsed, known, options.ratings, members=FORMATS[format].members)


def _with_reference(record: Record, parsed: Parsed) -> Parsed:
    """The answers with what they may be compared with, where the record has it."""
    value = record.fields.get("reference")
    if parsed.format == "reference" or (isinstance(value, str) and value.strip()):
        reference = read_reference(record.fields, record.where)
    else:  # in other formats a `reference` that is no text is somebody else's column
        reference = None if parsed.gold is None else Reference(parsed.gold)
    if reference is None:
        return parsed
    answers = tuple(replace(answer, reference=reference) for answer in parsed.answers)
    return replace(parsed, answers=answers)
