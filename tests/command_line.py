"""The command line as a person calls it, in this process."""

import pytest

from retrm.cli.main import main


def run(*arguments: object) -> int:
    """Exit code of `retrm ARGUMENTS`."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)
