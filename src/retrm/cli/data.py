"""`retrm data`: look at a file before anything is read by a model."""

import math
from collections.abc import Mapping
from typing import Annotated

from cyclopts import App, Parameter

from retrm.cli.console import out, print_json, table
from retrm.errors import RecipeError, did_you_mean

app = App(
    name="data",
    usage="Usage: retrm data COMMAND",
    help="Look at a file of answers before anything is read by a model.",
)
VERBS = ("validate", "stats")
# Of files in other formats; beside the comparisons, which are of any kind, a 0 would mislead.
_FORMATS = ("n_pairs", "n_ranked", "n_ties")


@app.default
def no_verb(*words: Annotated[str, Parameter(show=False)]) -> None:
    """Say which verb is missing: a file is what newcomers give first."""
    if not words:
        app.help_print([])
        return
    raise RecipeError(
        f"got `retrm data {' '.join(words)}`; expected a verb in front of the file, such as "
        f"`retrm data stats {words[-1]}`. {did_you_mean(words[0], VERBS)}"
    )


@app.command
def validate(data: str, /, *, format: str = "auto", attribute: str | None = None) -> None:
    """Read every record, say which format it is, and show three of them.

    Parameters
    ----------
    data
        JSONL, JSON, Parquet or hub:owner/name.
    format
        Record format, if the columns fit several.
    attribute
        Which rating to learn, for records rated on several.
    """
    from itertools import islice

    from retrm.data.load import iter_parsed, load_table

    for record, parsed in islice(iter_parsed(data, format=format, attribute=attribute), 3):
        out.print(f"[bold]{record.where}[/] as {parsed.format}")
        for answer, label in zip(parsed.answers[:4], parsed.labels, strict=False):
            prompt = " | ".join(f"{m.role}: {m.content}" for m in answer.prompt.messages)
            out.print(
                f"  {_short(prompt)}  =>  {_short(answer.response)}  [{label:g}]", markup=False
            )
    made = load_table(data, format=format, attribute=attribute)
    out.print(f"valid: {len(made):,} answers, {len(made.candidate_sets()):,} prompts")
    out.print("only the last assistant turn is scored")


@app.command
def stats(
    data: str, /, *, format: str = "auto", attribute: str | None = None, json: bool = False
) -> None:
    """Prompts, answers, pairs, labels, duplicates, and how far length alone would go.

    Parameters
    ----------
    data
        JSONL, JSON, Parquet or hub:owner/name.
    format
        Record format, if the columns fit several.
    attribute
        Which rating to learn, for records rated on several.
    json
        Print one JSON object on stdout.
    """
    from dataclasses import asdict

    from retrm.data.load import describe, load_table

    summary = asdict(describe(load_table(data, format=format, attribute=attribute)))
    if json:
        print_json({k: None if v != v else v for k, v in summary.items()})
        return
    rows = [
        [name.removeprefix("n_").replace("_", " "), _cell(value)]
        for name, value in summary.items()
        if not isinstance(value, Mapping) and (value or name not in _FORMATS)
    ]
    # A row each, since one cell with all of them would push the numbers to the far right.
    for name in ("labels", "counts"):
        title = {"labels": "label", "counts": "read:"}[name]
        found = ((key.replace("_", " "), value) for key, value in summary[name].items())
        rows += [[f"{title} {key}", _cell(value)] for key, value in found]
    out.print(table(data, ["", "value"], rows))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".") if math.isfinite(value) else "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else text[:67] + "..."
