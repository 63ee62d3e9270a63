"""Write the tables of docs/results/speed.md and README.md from benchmarks/results; --check: are they old?"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables_in_pages import table, write_or_check

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results" / "speed.md"
README = ROOT / "README.md"
# In the order of the page; a file that is missing gives a line that says so.
NAMES = (
    "reading",
    "prefix_sharing",
    "scoring_while_generating",
    "prune",
    "precision",
    "store",
    "serving",
    "fitting",
    "armorm_fit",
    "elhsr_fit",
    "scale",
    "first_score",
)
# What the front page shows: what, beside what, file, begin of its row, column; a row that is missing there
# is left out, so that nothing old stays.
FRONT = (
    (
        "read answers: means of all layers",
        "the bare forward pass",
        ("reading", "mean of all layers", "share_of_bare"),
        "{} of its speed",
    ),
    (
        "`output_hidden_states`, padded",
        "the bare forward pass",
        ("reading", "output_hidden_states", "share_of_bare"),
        "{} of its speed",
    ),
    (
        "64 answers behind a prompt of some 4,096 tokens",
        "reading each alone",
        ("prefix_sharing", "64 answers, prompt of 40", "gain"),
        "{} times as fast",
    ),
    (
        "score while generating, `elhsr`",
        "generating alone",
        ("scoring_while_generating", "generate and score: elhsr", "times_generating"),
        "{} times as long",
    ),
    (
        "score afterwards, `elhsr`",
        "generating alone",
        ("scoring_while_generating", "score after", "times_generating"),
        "{} times as long, on top of it",
    ),
    (
        "`retrm serve`, 64 clients with an answer each",
        "one offline call with all answers",
        ("serving", "server, 64 clients", "share_of_offline"),
        "{} of its speed",
    ),
    (
        "scikit-learn's logistic regression in float32",
        "our convex head, to the same gap",
        ("fitting", "scikit-learn lbfgs float32", "times_ours"),
        "{} times as long",
    ),
    (
        "gated head from a convex start",
        "the official ELHSR loop, to its loss",
        ("elhsr_fit", "ours, mean head first (cpu s)", "times_faster"),
        "{} times as fast",
    ),
)
DASH = "–"
# A ratio meets its target where its worst turn does; see `Report.target` in benchmarks/harness.py.
VERDICTS = {True: "met", False: "**not met**", None: "within the noise"}


def blocks() -> dict[str, str]:
    """Every block of the page."""
    found = {name: stored(name) for name in NAMES}
    return {"speed-targets": targets(found)} | {
        f"speed-{name.replace('_', '-')}": block(name, result) for name, result in found.items()
    }


def front() -> dict[str, str]:
    """The table of the front page: a few ratios of the files, losing ones included."""
    rows = []
    for what, beside, (name, begin, column), words in FRONT:
        found = stored(name)
        row = next((r for r in (found or {}).get("rows", ()) if r["what"].startswith(begin)), {})
        if row.get(column) is not None:
            rows.append([what, beside, words.format(number(row[column]))])
    return {"speed-front": table(["", "beside", "found"], rows)}


def stored(name: str) -> Mapping[str, Any] | None:
    """A result file, or None."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def targets(found: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Every claim of the plan beside what was measured, and the benchmarks without a result."""
    rows = []
    for name, result in found.items():
        words = name.replace("_", " ")
        if result is None:
            rows.append([words, DASH, DASH, DASH, "not measured"])
            continue
        rows += [
            [
                words,
                claim["claim"],
                f"{claim['target']:g}",
                apart(claim["found"], claim["target"]),
                VERDICTS[claim["met"]],
            ]
            for claim in result["targets"]
        ]
    return f"{table(['benchmark', 'claim', 'target', 'found', ''], rows)}\n\n{seconds(found)}"


def apart(found: Any, target: float) -> str:
    """`number`, with as many digits as it takes to tell a single number from its target."""
    if not isinstance(found, float) or found == target:
        return number(found)
    return next(
        (said for n in range(3, 17) if float(said := f"{found:.{n}g}") != target), number(found)
    )


def seconds(found: Mapping[str, Mapping[str, Any] | None]) -> str:
    """How long the benchmarks took that say so."""
    each = {
        name: result["seconds_in_all"]
        for name, result in found.items()
        if result is not None and "seconds_in_all" in result
    }
    if not each:
        return "How long each took stands in none of these files."
    words = ", ".join(f"{name.replace('_', ' ')} {took:,.0f}" for name, took in each.items())
    return f"Seconds they took: {words}; {sum(each.values()):,.0f} in all."


def block(name: str, result: Mapping[str, Any] | None) -> str:
    """The table of one benchmark, with its setting and what it did not compare."""
    if result is None:
        return f"Not measured yet: `python benchmarks/{name}.py`."
    columns = list(dict.fromkeys(k for row in result["rows"] for k in row if is_column(k)))
    head = [column.replace("_", " ") for column in columns]
    lines = [[cell(row, column) for column in columns] for row in result["rows"]]
    made = result["machine"]
    setting = ", ".join(f"{k.replace('_', ' ')} {number(v)}" for k, v in result["setting"].items())
    machine = (
        f"{made['processor']}, {made['cores']} cores, {made['threads']} threads, "
        f"{made['instructions']}, torch {made['versions']['torch']}, commit {made['commit']}, {load(made)}"
    )
    notes = "\n".join(f"- {note}" for note in result["notes"])
    return f"{setting}. {machine}.\n\n{table(head, lines)}\n\n{notes}"


def load(made: Mapping[str, Any]) -> str:
    """What else the machine did."""
    if "load_before" not in made:
        return "other work on the machine unknown"
    return f"load average {made['load_before']:.1f} before, {made['load_after']:.1f} after"


def is_column(key: str) -> bool:
    """Whether it has a column of its own: intervals stand behind their values."""
    return key != "quartiles" and not key.endswith("_interval")


def cell(row: Mapping[str, Any], column: str) -> str:
    """A value, with its interval where it has one."""
    interval = row.get(f"{column}_interval")
    if interval is None:
        return number(row.get(column))
    return f"{number(row[column])} [{number(interval)}]"


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
    pages = [
        write_or_check(page, make, about=__doc__)
        for page, make in ((PAGE, blocks), (README, front))
    ]
    sys.exit(max(pages))
