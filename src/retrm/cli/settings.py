"""Settings in a TOML file: strict, so that a misspelt key is an error and not a default."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retrm.errors import RecipeError, did_you_mean


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
