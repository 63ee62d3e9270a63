"""Tables and pictures of docs/results/frozen_vs_finetuned.md, from the results that `run.py` wrote.

    python recipes/frozen_vs_finetuned/page.py docs/results/frozen_vs_finetuned/*.json \
        -o docs/results/frozen_vs_finetuned.md

What stands between `<!-- NAME: ... -->` and `<!-- /NAME -->` is made again, one block a result; all other words
of the page are left as they are. A page that is not there is begun. Beside it lies one picture a result:
accuracy by number of prompts on each set, and the held-out loss by step.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from json import loads
from pathlib import Path
from typing import Any

from retrm.files import atomic_write
from retrm.reports.canvas import DASHES, MARKERS, SERIES, canvas, headline, legend_beside, save_png

BEGINNING = "# Frozen heads against fine-tuning\n"


def block(result: Mapping[str, Any], name: str) -> str:
    """Markdown of one result: what was compared, and a row an arm and size."""
    sets = list(result["rows"][0]["figures"])
    metrics = {key: list(found) for key, found in result["rows"][0]["figures"].items()}
    against = result["options"]["against"]
    heads = [f"{metric}, {one}" for one in sets for metric in metrics[one]]
    columns = ["prompts", "arm", *heads, f"{metrics[sets[0]][0]}, {sets[0]}: minus {against}"]
    columns += ["trained", "seconds", "on the processor", "disk"]
    lines = [
        f"`{result['model']}`, {result['kind']}, learnt from `{result['fit']}`; measured on "
        + ", ".join(
            f"{n:,} prompts ({one})" for one, n in result["n_prompts"].items() if one != "fit"
        )
        + f". {result['machine']['system']}, {result['machine']['threads']} thread(s), "
        f"{result['machine']['device']}. 95 % intervals resample prompts.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *(_row(row, sets, metrics, against) for row in result["rows"]),
        "",
        f"![{name}](frozen_vs_finetuned/{name}.png)",
    ]
    return "\n".join(lines)


def _row(
    row: Mapping[str, Any],
    sets: Sequence[str],
    metrics: Mapping[str, Sequence[str]],
    against: str,
) -> str:
    figures = [_cell(row["figures"][one][m]) for one in sets for m in metrics[one]]
    minus = row[f"minus {against}"].get(sets[0])
    cells = [
        f"{row['n_prompts']:,}",
        f"`{row['arm']}`",
        *figures,
        "" if minus is None else _cell(minus[metrics[sets[0]][0]], signed=True),
        f"{row['n_trained']:,}",
        f"{row['seconds']:,.0f}",
        f"{row['processor_seconds']:,.0f}",
        f"{row['bytes'] / 1e6:,.2f} MB",
    ]
    return "| " + " | ".join(cells) + " |"


def _cell(found: Mapping[str, float], *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{found['value']:{sign}.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Accuracy by number of prompts on each set, and the held-out loss by step."""
    sets = list(result["rows"][0]["figures"])
    figure, panels = canvas(4.2 * (len(sets) + 1), 3.4, n_columns=len(sets) + 1)
    arms = list(dict.fromkeys(row["arm"] for row in result["rows"]))
    for axes, one in zip(panels, sets, strict=False):
        metric = next(iter(result["rows"][0]["figures"][one]))
        for i, arm in enumerate(arms):
            rows = sorted(
                (r for r in result["rows"] if r["arm"] == arm), key=lambda r: r["n_prompts"]
            )
            axes.plot(
                [row["n_prompts"] for row in rows],
                [row["figures"][one][metric]["value"] for row in rows],
                DASHES[i % len(DASHES)],
                marker=MARKERS[i % len(MARKERS)],
                color=SERIES[i % len(SERIES)],
                label=arm,
            )
        axes.set_xscale("log")
        axes.set_xlabel("prompts learnt from")
        axes.set_ylabel(metric)
        headline(axes, one)
    largest = max(row["n_prompts"] for row in result["rows"])
    for i, arm in enumerate(arms):
        found = [r for r in result["rows"] if (r["arm"], r["n_prompts"]) == (arm, largest)]
        looks = sorted((int(step), look["eval_loss"]) for step, look in found[0]["looks"].items())
        if looks:
            panels[-1].plot(
                *zip(*looks, strict=True),
                DASHES[i % len(DASHES)],
                color=SERIES[i % len(SERIES)],
                label=arm,
            )
    panels[-1].set_xlabel("step")
    panels[-1].set_ylabel("held-out loss")
    headline(panels[-1], f"{largest:,} prompts")
    legend_beside(figure)
    save_png(path, figure)


def with_block(page: str, name: str, body: str) -> str:
    """The page with one block made again, or added at its end."""
    made = f"<!-- {name}: made by recipes/frozen_vs_finetuned/page.py -->\n{body}\n<!-- /{name} -->"
    pattern = re.compile(rf"<!-- {re.escape(name)}: .*?<!-- /{re.escape(name)} -->", re.DOTALL)
    if pattern.search(page):
        return pattern.sub(lambda _: made, page)
    return f"{page.rstrip()}\n\n## {name}\n\n{made}\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    page = args.output.read_text("utf-8") if args.output.is_file() else BEGINNING
    for path in args.results:
        result = loads(path.read_text("utf-8"))
        page = with_block(page, path.stem, block(result, path.stem))
        draw(result, args.output.with_suffix("") / f"{path.stem}.png")
    with atomic_write(args.output, "w") as out:
        out.write(page)


if __name__ == "__main__":
    main()
