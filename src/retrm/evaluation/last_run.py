"""Which files of scores in a folder are of its last run.

A folder of `retrm eval` that is used again keeps the files of the run before, since what was scored is not
lost. `scores/run.json` names those of the last run: these, and no others, are what the folder stands for.

    {"retrm_run": 1, "files": ["llmbar.longest.jsonl", "llmbar.runs-elhsr.jsonl"]}

While the files are being written the list is empty, so that a kill does not leave a mixture of two runs.
A folder without that file, such as one that was put together by hand, stands for all its files.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from retrm.errors import DataError
from retrm.files import write_json

RUN = "run.json"
VERSION = 1


def write_run(folder: Path, names: Sequence[str]) -> None:
    """Say that the files `names` of `folder` are those of the last run; none = they are being written.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(folder / RUN, {"retrm_run": VERSION, "files": list(names)})


def files_of_run(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files of scores of the last run, and those of earlier ones, by name.

    Args:
        folder: that holds `*.jsonl`, or has them in its folder `scores`.

    Raises:
        DataError: there are none, the last run was stopped while it wrote them, or one of it is gone.
    """
    inside = folder / "scores" if (folder / "scores").is_dir() else folder
    found = sorted(inside.glob("*.jsonl"))
    names = _names(inside / RUN)
    if not found:
        raise DataError(f"{folder} holds no files of scores; expected *.jsonl of retrm eval")
    if names is None:
        return found, []
    if not names:
        raise DataError(
            f"the last run in {folder} was stopped while it wrote its scores; expected a whole run. "
            "Run the same retrm eval again: what was scored is not scored anew"
        )
    missing = sorted(set(names) - {path.name for path in found})
    if missing:
        raise DataError(
            f"{inside / missing[0]} is gone; expected it, since the last run in {folder} wrote it. Run "
            "the same retrm eval again, or name the files that are there one by one"
        )
    taken = [path for path in found if path.name in names]
    return taken, [path for path in found if path.name not in names]


def _names(path: Path) -> list[str] | None:
    """What the file lists; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError:
        value = None
    match value:
        case {"retrm_run": 1, "files": [*names]} if all(isinstance(name, str) for name in names):
            return names
    raise DataError(
        f"{path} is no list of files of version {VERSION}; expected what retrm eval wrote. Delete it: "
        "all files of scores beside it then count"
    )
