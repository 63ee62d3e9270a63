"""`retrm data`: look at a file before anything is read by a model."""

from cyclopts import App

from retrm.cli.console import out, print_json, table

app = App(name="data", help="Look at a file of answers before anything is read by a model.")


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
    rows = [[name.replace("_", " "), _cell(value)] for name, value in summary.items()]
    out.print(table(data, ["", "value"], rows))


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{k}: {v:,}" if isinstance(v, int) else f"{k}: {v}" for k, v in value.items()
        )
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else text[:67] + "..."
