"""Write the tables of the README from committed result files; --check only says if they are old.

Run it as `python docs/make_tables.py`.
"""

import json
import sys
from pathlib import Path

from tables_in_pages import difference, stored, table, write_or_check

from retrm.reports.words import NONE, figure

ROOT = Path(__file__).resolve().parent.parent


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
    rows = [
        [
            f"`{row['name']}`" if row["kind"] == "head" else row["name"],
            figure(stored(row["pooled_auroc"])),
            figure(stored(row["within_auroc"])),
            figure(stored(row["best_of_n"])),
            NONE if row["kind"] == "bound" else f"{row['recovered']:.0%}",
            *(difference(stored(row["minus"].get(other))) for other in others),
        ]
        for row in results["rows"]
    ]
    notes = (
        f"{results['n_prompts']} questions ({results['n_mixed']} with right and wrong answers), "
        f"{results['n_answers']:,} answers. 95 % intervals resample questions; bold differences exclude "
        "zero. *Recovered* is the way from pass@1 to the oracle. "
        f"{results['verdict']} Made by `make demo` "
        f"({results['machine']['threads']} threads: reading {results['reading']['elapsed_s']:.0f} s, "
        f"all in all {results['elapsed_s']:.0f} s)."
    )
    return f"{table(head, rows)}\n\n{notes}"


def blocks() -> dict[str, str]:
    """Every generated block of the README."""
    results = json.loads((ROOT / "docs/results/demo.json").read_text("utf-8"))
    return {"demo-table": demo_table(results)}


if __name__ == "__main__":
    sys.exit(write_or_check(ROOT / "README.md", blocks, about=__doc__.splitlines()[0]))
