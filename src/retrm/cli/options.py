"""Options that several verbs share, with their short forms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

from retrm.errors import OutputError


def _named(type_: object, tokens: Sequence[Token]) -> Path:
    """The path that was typed; an empty one would be the current folder."""
    if not tokens[0].value.strip():
        raise OutputError("got an empty path; expected a name. For the current folder type .")
    return Path(tokens[0].value)


Output = Annotated[Path, Parameter(alias="-o", converter=_named)]
OptionalOutput = Annotated[Path | None, Parameter(alias="-o", converter=_named)]
Count = Annotated[int, Parameter(name="-n")]
Ratings = Annotated[list[str] | None, Parameter(name="--rating", negative=())]
Objectives = Annotated[list[str] | None, Parameter(name="--objective", negative=())]
