"""Options that several verbs share, with their short forms."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Output = Annotated[Path, Parameter(alias="-o")]
OptionalOutput = Annotated[Path | None, Parameter(alias="-o")]
Count = Annotated[int, Parameter(name="-n")]
