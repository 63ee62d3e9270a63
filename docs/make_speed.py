"""Write the tables of docs/results/speed.md from benchmarks/results; --check only says if they are old."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables_in_pages import table, write_or_check

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results" / "speed.md"
# In the order of the page; a file that is missing gives a line that says so.
NAMES = (
    "reading",
    "prefix_sharing",
    "scoring_while_generating",
    "store",
    "fitting",
    "elhsr_fit",
    "scale",
    "first_score",
)
DASH = "–"


def blocks() -> dict[str, str]:
    """Every block of the page."""
    found = {name: stored(name) for name in NAMES}
    return {"speed-targets": targets(found)} | {
        f"speed-{name.replace('_', '-')}": block(name, result) for name, result in found.items()
    }


def stored(name: str) -> Mapping[str, Any] | None:
    """A result file, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def targets(found: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Every claim of the plan beside what was measured."""
    rows = [
        [
            name.replace("_", " "),
            claim["claim"],
            f"{claim['target']:g}",
            number(claim["found"]),
            "met" if claim["met"] else "**not met**",
        ]
        for name, result in found.items()
        for claim in (result or {}).get("targets", ())
    ]
    return table(["benchmark", "claim", "target", "found", ""], rows)


def block(name: str, result: Mapping[str, Any] | None) -> str:
    """The table of one benchmark, with its setting and what it did not compare."""
    if result is None:
        return f"Not measured yet: `python benchmarks/{name}.py`."
    columns = list(dict.fromkeys(k for row in result["rows"] for k in row if k != "quartiles"))
    head = [column.replace("_", " ") for column in columns]
    lines = [[number(row.get(column)) for column in columns] for row in result["rows"]]
    made = result["machine"]
    setting = ", ".join(f"{k.replace('_', ' ')} {number(v)}" for k, v in result["setting"].items())
    machine = (
        f"{made['processor']}, {made['cores']} cores, {made['threads']} threads, "
        f"{made['instructions']}, torch {made['versions']['torch']}, commit {made['commit']}"
    )
    notes = "\n".join(f"- {note}" for note in result["notes"])
    return f"{setting}. {machine}.\n\n{table(head, lines)}\n\n{notes}"


def number(value: Any) -> str:
    """Three digits; a ratio with the extremes of its turns; a dash for nothing."""
    if value is None:
        return DASH
    if isinstance(value, Mapping) and "median" in value:
        return f"{value['median']:.3g} ({value['low']:.3g} to {value['high']:.3g})"
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {number(each)}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(number, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, blocks, about=__doc__))
