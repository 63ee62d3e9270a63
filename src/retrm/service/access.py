"""The key that requests must carry: where it comes from, never as an argument that others could list."""

from collections.abc import Mapping
from pathlib import Path

from retrm.errors import RecipeError

TOKEN_VARIABLE = "RETRM_TOKEN"


def read_token(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """The key, from the file or from RETRM_TOKEN; None = there is none.

    Raises:
        RecipeError: it cannot be read, or cannot stand in a header.
    """
    where, token = TOKEN_VARIABLE, environment.get(TOKEN_VARIABLE)
    if file is not None:
        where = str(file)
        try:
            token = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the key in {file}: {error}") from error
    if token is None:
        return None
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise RecipeError(
            f"the key in {where} is empty or has characters that a header cannot carry; expected "
            "letters, digits and signs of ASCII without spaces"
        )
    return token
