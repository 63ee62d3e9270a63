"""Values of a raw record, read by explicit rules: labels, ratings, ids, gold, answers.

Missing (null, NaN, "N/A" of a rating) is NaN or None and never 0. Whatever is neither a value nor
missing is refused with its place.

    >>> read_label("C", "row 1"), read_rating("3", "row 1", "honesty")
    (1.0, 3.0)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retrm.data.messages import kind_of, read_messages, read_text
from retrm.errors import DataError, LabelError, did_you_mean
from retrm.records import WRAPPERS, Prompt, Reference

GOLD = ("answer", "gold")
LABELS: Mapping[str, float] = {
    "true": 1.0,
    "True": 1.0,
    "false": 0.0,
    "False": 0.0,
    "C": 1.0,
    "I": 0.0,
}
"""Texts that are labels; true, false, 1 and 0 are labels as they stand."""

_NO_RATING = ("", "N/A", "NA", "n/a", "nan", "NaN", "None")


class EmptyAnswerError(DataError):
    """An answer without text, which no head can judge."""


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_label(value: Any, where: str, column: str = "label") -> float:
    """1.0 or 0.0; NaN where the label is missing.

    Raises:
        LabelError: anything that is no truth value.
    """
    if _is_missing(value):
        return math.nan
    if isinstance(value, bool | int | float) and value in (0, 1):
        return float(value)
    if isinstance(value, str) and value in LABELS:
        return LABELS[value]
    raise LabelError(
        f"{where}: `{column}` is {kind_of(value)}; expected true or false, 1 or 0, "
        f"{', '.join(map(repr, LABELS))}, or null where it is missing. Grades on a longer scale are "
        "read with --format pointwise --attribute NAME"
    )


def read_outcome(value: Any, where: str, column: str) -> float:
    """What an evaluation harness found: a truth value, "C" or "I", or a number; NaN where missing.

    Raises:
        LabelError: anything else.
    """
    if isinstance(value, str | bool):
        return read_label(value, where, column)
    return read_rating(value, where, column)


def read_rating(value: Any, where: str, column: str) -> float:
    """A finite number, also as text; NaN where the rating is missing (null, NaN, "N/A").

    Raises:
        LabelError: no number, or an infinite one.
    """
    if value is None or (isinstance(value, str) and value.strip() in _NO_RATING):
        return math.nan
    try:
        number = float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or math.isinf(number):
        raise LabelError(
            f"{where}: `{column}` is {kind_of(value)}; expected a finite number, or null where it is "
            "missing"
        )
    return number


def read_prompt_id(fields: Mapping[str, Any], prompt: Prompt, where: str) -> str:
    """The record's own `prompt_id`, or the hash of the prompt."""
    given = fields.get("prompt_id")
    if given is None:
        return prompt.key
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        raise DataError(
            f"{where}: `prompt_id` is {kind_of(given)}; expected a text or a whole number that names "
            "the prompt, or no such column"
        )
    return str(given)


def read_gold(fields: Mapping[str, Any], where: str, columns: Sequence[str] = GOLD) -> str | None:
    """The reference answer as text, from the first of `columns` that has one; None without."""
    column = next((name for name in columns if not _is_missing(fields.get(name))), None)
    if column is None:
        return None
    value = fields[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(
            f"{where}: `{column}` is {kind_of(value)}; expected the reference answer as text"
        )
    return str(value)


def read_reference(fields: Mapping[str, Any], where: str) -> Reference:
    """What the answers of a record are compared with: its column `reference`.

    Messages become their contents joined by newlines, roles dropped (POLAR, released code).

    Raises:
        DataError: an empty reference, one that is no text, or an unknown `wrapper`.
    """
    wrapper = fields.get("wrapper") or "sft"
    value = fields.get("reference")
    if not isinstance(wrapper, str) or wrapper not in WRAPPERS:
        raise DataError(
            f"{where}: `wrapper` is {kind_of(wrapper)}; expected {' or '.join(WRAPPERS)}. "
            f"{did_you_mean(str(wrapper), WRAPPERS)}"
        )
    if isinstance(value, list | tuple):
        text = "\n".join(m.content for m in read_messages(value, where, "reference"))
    else:
        text = read_text(value, where, "reference")
    if not text.strip():
        raise DataError(
            f"{where}: `reference` is empty; expected a good answer to compare with. Leave the column out "
            "where there is none"
        )
    return Reference(text, wrapper)


def read_answer(value: Any, where: str, column: str) -> str:
    """The text of an answer.

    Raises:
        EmptyAnswerError: nothing but white space.
    """
    text = read_text(value, where, column)
    if not text.strip():
        raise EmptyAnswerError(
            f"{where}: `{column}` is an empty answer; expected text, for an empty answer cannot be "
            "scored. Leave the record out of the file, or read with empty='drop' to set such records "
            "aside and count them (retrm fit, score and audit: --empty drop)"
        )
    return text


def read_list(value: Any, where: str, column: str) -> list[Any]:
    """A list of answers that is not empty."""
    if not isinstance(value, list | tuple) or not value:
        got = "an empty list" if isinstance(value, list | tuple) else kind_of(value)
        raise DataError(f"{where}: `{column}` is {got}; expected a list with at least one answer")
    return list(value)


def read_column(
    fields: Mapping[str, Any], column: str, n_answers: int, where: str
) -> list[Any] | None:
    """A column that holds one value an answer; None where the record has no such column."""
    value = fields.get(column)
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{where}: `{column}` is {kind_of(value)}; expected a list with one value for each of the "
            f"{n_answers} answers"
        )
    if len(value) != n_answers:
        raise DataError(
            f"{where}: `{column}` has {len(value)} values for {n_answers} answers; expected one each"
        )
    return list(value)


def read_token_ids(value: Any, where: str, column: str) -> tuple[int, ...] | None:
    """Sampled token ids; None where they were not recorded."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: `{column}` is {kind_of(value)}; expected a list of token ids")
    # type() and not isinstance: a truth value counts as an int.
    wrong = next((v for v in value if type(v) is not int or v < 0), None)
    if wrong is not None or any(v is None for v in value):
        raise DataError(
            f"{where}: `{column}` holds {kind_of(wrong)}; expected token ids, whole numbers from 0 up"
        )
    return tuple(value)


def read_flag(value: Any, where: str, column: str) -> bool | None:
    """true, false, or None where it was not recorded."""
    if value is None or isinstance(value, bool):
        return value
    raise DataError(f"{where}: `{column}` is {kind_of(value)}; expected true, false or null")


def read_key(value: Any, where: str, column: str) -> str | None:
    """A vote key; None where no final answer was found."""
    return None if value is None else read_text(value, where, column)


def read_score(value: Any, where: str, column: str) -> float | None:
    """A raw score; None where there is none."""
    number = read_rating(value, where, column)
    return None if math.isnan(number) else number


def read_logprob(value: Any, where: str, column: str) -> float | None:
    """Nats a token; None where it was not recorded."""
    if isinstance(value, bool | str):
        raise DataError(f"{where}: `{column}` is {kind_of(value)}; expected nats a token, or null")
    number = read_rating(value, where, column)
    return None if math.isnan(number) else number
