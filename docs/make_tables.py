"""Write the tables of the README from committed result files; --check only says if they are old.

Run it as `python docs/make_tables.py`.
"""

import argparse
import json
import sys
from pathlib import Path

from retrm.cli.tables import interval
from retrm.metrics import Interval

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- demo-table: made by docs/make_tables.py from docs/results/demo.json -->"
END = "<!-- /demo-table -->"


def cell(stored: dict | None) -> str:
    """An interval as the command line prints it."""
    return interval(None if stored is None else Interval(**stored))


def signed(stored: dict | None) -> str:
    """The same in bold where the interval excludes zero."""
    sure = stored is not None and (stored["low"] > 0 or stored["high"] < 0)
    return f"**{cell(stored)}**" if sure else cell(stored)


def demo_table(results: dict) -> str:
    """Markdown of the demo's table with what a reader needs to judge it."""
    others = list(next(row["minus"] for row in results["rows"] if row["minus"]))
    head = [
        "",
        "pooled AUROC",
        "within-prompt AUROC",
        f"best of {results['n_candidates']}",
        "recovered",
        *(f"best of {results['n_candidates']} minus {name}" for name in others),
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in results["rows"]:
        name = f"`{row['name']}`" if row["kind"] == "head" else row["name"]
        recovered = "–" if row["kind"] == "bound" else f"{row['recovered']:.0%}"
        cells = [
            name,
            cell(row["pooled_auroc"]),
            cell(row["within_auroc"]),
            cell(row["best_of_n"]),
            recovered,
            *(signed(row["minus"].get(other)) for other in others),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = (
        f"{results['n_prompts']} questions ({results['n_mixed']} with right and wrong answers), "
        f"{results['n_answers']:,} answers. 95 % intervals resample questions; bold differences exclude "
        "zero. *Recovered* is the way from pass@1 to the oracle. "
        f"{results['verdict']} Made by `make demo` "
        f"({results['machine']['threads']} threads: reading {results['reading']['elapsed_s']:.0f} s, "
        f"all in all {results['elapsed_s']:.0f} s)."
    )
    return "\n".join([*lines, "", notes])


def main() -> int:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    results = json.loads((ROOT / "docs/results/demo.json").read_text("utf-8"))
    text = readme.read_text("utf-8")
    start, stop = text.index(BEGIN) + len(BEGIN), text.index(END)
    made = f"{text[:start]}\n{demo_table(results)}\n{text[stop:]}"
    if args.check:
        if made != text:
            sys.stderr.write("README.md is out of date: run python docs/make_tables.py\n")
        return int(made != text)
    readme.write_text(made, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
