"""Settings in a TOML file: strict, so that a misspelt key is an error and not a default."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from retrm.errors import RecipeError, did_you_mean

Options = TypeVar("Options")


def read_settings(config: Path | None, tables: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The tables of a TOML file; {} without one.

    Raises:
        RecipeError: unreadable, or holds anything but `tables`.
    """
    if config is None:
        return {}
    try:
        values = tomllib.loads(config.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read {config}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{config} is no text in UTF-8; expected a TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{config} is no valid TOML: {error}") from error
    known = tuple(tables)
    for key, value in values.items():
        if not isinstance(value, dict) and key not in known:
            places = " or ".join(f"[{name}]" for name in known)
            raise RecipeError(f"{config}: {key} = {value!r} is in no table; put it under {places}")
        if not isinstance(value, dict):
            raise RecipeError(f"{config}: {key} is {value!r}; expected a table [{key}]")
        if key not in known:
            raise RecipeError(f"{config}: unknown table [{key}]. {did_you_mean(key, known)}")
    return values


def options_of(kind: type[Options], values: Mapping[str, Any], place: str) -> Options:
    """The dataclass `kind` with the values of a table; "none" is None.

    Args:
        kind: a dataclass with defaults.
        values: of the table.
        place: the table's name, for messages.

    Raises:
        RecipeError: an unknown key, a value of another type, or one that is impossible.
    """
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise RecipeError(f"[{place}]: unknown key {key!r}. {did_you_mean(key, hints)}")
        allowed = get_args(hints[key]) or (hints[key],)
        if value == "none" and NoneType in allowed:
            given[key] = None
            continue
        number = (
            float(value)
            if type(value) is int and float in allowed and int not in allowed
            else value
        )
        types = tuple(one for one in allowed if isinstance(one, type))
        if types and (not isinstance(number, types) or isinstance(number, bool)):
            names = " or ".join(one.__name__ for one in types if one is not NoneType)
            raise RecipeError(f"[{place}]: got {key} = {value!r}; expected {names}")
        given[key] = number
    return kind(**given)
