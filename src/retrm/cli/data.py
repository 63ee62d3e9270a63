"""`retrm data`: files of answers before a model reads them, and the benchmarks that are known."""

import json as json_module
import math
from collections.abc import Mapping
from typing import Annotated

from cyclopts import App, Parameter

from retrm.cli.console import err, out, print_json, table
from retrm.cli.options import Objectives, Output, Ratings
from retrm.errors import RecipeError, did_you_mean

app = App(
    name="data",
    usage="Usage: retrm data COMMAND",
    help="Files of answers: look at them before a model reads them, convert them; list benchmarks.",
)
VERBS = ("validate", "stats", "convert", "formats", "benchmarks")
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
def validate(
    data: str,
    /,
    *,
    format: str = "auto",
    attribute: str | None = None,
    rating: Ratings = None,
    objective: Objectives = None,
) -> None:
    """Read every record, say which format it is, and show three of them.

    Parameters
    ----------
    data
        JSONL, JSON, Parquet or hub:owner/name.
    format
        Record format, if the columns fit several.
    attribute
        Which rating to learn, for records rated on several.
    rating
        Ratings to read: known (taken if nothing and no attribute is given), OBJECTIVE:LOW..HIGH or
        OBJECTIVE=COLUMN:LOW..HIGH, which may be given several times; or none.
    objective
        Computed objectives: correctness, length, format, format=REGEX, refusal; may be given several
        times.
    """
    from itertools import islice

    from retrm.data.load import describe, iter_parsed, load_table

    ratings = wanted_ratings(rating, attribute)
    shown = iter_parsed(data, format=format, attribute=attribute, ratings=ratings)
    for record, parsed in islice(shown, 3):
        out.print(f"[bold]{record.where}[/] as {parsed.format}")
        for answer, label in zip(parsed.answers[:4], parsed.labels, strict=False):
            prompt = " | ".join(f"{m.role}: {m.content}" for m in answer.prompt.messages)
            said = "no label" if math.isnan(label) else f"{label:g}"
            out.print(f"  {_short(prompt)}  =>  {_short(answer.response)}  [{said}]", markup=False)
        for name, values in parsed.ratings.items():
            given = ", ".join("–" if math.isnan(v) else f"{v:.3g}" for v in values[:4])
            out.print(f"    {name} ({parsed.scales.get(name, '–')})  {given}", markup=False)
    made = load_table(
        data, format=format, attribute=attribute, ratings=ratings, objectives=objective or ()
    )
    out.print(f"valid: {len(made):,} answers, {len(made.candidate_sets()):,} prompts")
    out.print("only the last assistant turn is scored")
    for name, found in describe(made).objectives.items():
        out.print(
            f"objective {name}: {found.n_rated:,} rated from {found.scale}, {found.n_missing:,} missing",
            highlight=False,
        )


@app.command
def stats(
    data: str,
    /,
    *,
    format: str = "auto",
    attribute: str | None = None,
    rating: Ratings = None,
    objective: Objectives = None,
    json: bool = False,
) -> None:
    """Prompts, answers, pairs, labels, objectives, duplicates, and how far length alone would go.

    Parameters
    ----------
    data
        JSONL, JSON, Parquet or hub:owner/name.
    format
        Record format, if the columns fit several.
    attribute
        Which rating to learn, for records rated on several.
    rating
        Ratings to read: known (taken if nothing and no attribute is given), OBJECTIVE:LOW..HIGH or
        OBJECTIVE=COLUMN:LOW..HIGH, which may be given several times; or none.
    objective
        Computed objectives: correctness, length, format, format=REGEX, refusal; may be given several
        times.
    json
        Print one JSON object on stdout.
    """
    from dataclasses import asdict

    from retrm.data.load import describe, load_table

    made = load_table(
        data,
        format=format,
        attribute=attribute,
        ratings=wanted_ratings(rating, attribute),
        objectives=objective or (),
    )
    summary = asdict(describe(made))
    objectives = summary["objectives"]
    if json:
        summary["objectives"] = {name: _without_nan(one) for name, one in objectives.items()}
        print_json(_without_nan(summary))
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
    if objectives:
        # The range is the raters'; everything behind it is on the common scale.
        heads = ["objective", "raters", "rated", "missing", "mean", "lowest", "highest"]
        keys = ("scale", "n_rated", "n_missing", "mean", "low", "high")
        lines = [[name, *(_cell(one[key]) for key in keys)] for name, one in objectives.items()]
        out.print(table("ratings as numbers from 0 to 1", heads, lines))


def _without_nan(values: Mapping[str, object]) -> dict[str, object]:
    return {name: None if value != value else value for name, value in values.items()}


def wanted_ratings(rating: list[str] | None, attribute: str | None) -> list[str] | None:
    """What is asked for, or everything known unless one attribute is meant; `none` is nothing."""
    if rating == ["none"]:
        return None
    if rating:
        return rating
    return None if attribute else ["known"]


@app.command
def formats(*, json: bool = False) -> None:
    """The record formats: what each is, which columns it needs, and the objectives that it knows.

    Parameters
    ----------
    json
        Print one JSON object on stdout.
    """
    from retrm.data.formats import FORMATS
    from retrm.data.objectives import OBJECTIVES

    if json:
        print_json(
            {
                name: {
                    "about": one.about,
                    "needs": [list(names) for names in one.needs],
                    "is_readable": one.is_readable,
                    "rates": one.rates,
                }
                for name, one in FORMATS.items()
            }
        )
        return
    for name, one in FORMATS.items():
        out.print(f"[bold]{name}[/]  {one.about}", highlight=False)
        needs = ", ".join(" or ".join(names) for names in one.needs)
        out.print(f"  needs  {needs}", markup=False, soft_wrap=True)
        if one.rates:
            out.print(f"  rates  {one.rates}", markup=False, soft_wrap=True)
    out.print(
        "[bold]any of them[/]  own ratings: --rating OBJECTIVE=COLUMN:LOW..HIGH, or a column `ratings` "
        "of numbers from 0 to 1",
        highlight=False,
    )
    out.print("[bold]computed[/]  objectives of any answer: --objective NAME", highlight=False)
    for name, rule in OBJECTIVES.items():
        out.print(f"  {name}  {rule.about}", markup=False, highlight=False, soft_wrap=True)


@app.command
def convert(
    data: str,
    /,
    *,
    output: Output,
    format: str = "auto",
    attribute: str | None = None,
    rating: Ratings = None,
    objective: Objectives = None,
) -> None:
    """Write graded answers of any format as rollouts: one record a prompt with all its answers.

    For logs of Inspect, sample files of lm-evaluation-harness, answers of one record each: what comes
    out goes into retrm grade, fit, select, and eval --benchmark best_of_n.

    Parameters
    ----------
    data
        JSONL, JSON, Parquet, hub:owner/name, or a log of Inspect in JSON.
    output
        JSONL file to write.
    format
        Record format, if the columns fit several.
    attribute
        Which scorer of Inspect, or METRIC,FILTER of lm-evaluation-harness, is the label.
    rating
        Ratings to keep, as numbers from 0 to 1 in the column `ratings`: known, OBJECTIVE:LOW..HIGH or
        OBJECTIVE=COLUMN:LOW..HIGH; may be given several times.
    objective
        Computed objectives to keep there as well: correctness, length, format, format=REGEX, refusal.
    """
    from retrm.data.load import build_table
    from retrm.data.read import read_records
    from retrm.data.rollouts import rollouts_of, with_text
    from retrm.files import atomic_write, check_new_file

    check_new_file(output)
    records, n_blank = with_text(read_records(data))
    made = build_table(
        records,
        format=format,
        attribute=attribute,
        ratings=rating,
        objectives=objective or (),
        empty="drop",
        name=data,
    )
    with atomic_write(output, "w") as file:
        for row in rollouts_of(made):
            file.write(json_module.dumps(row, ensure_ascii=False) + "\n")
    counts = {**made.counts, "answers_without_text": n_blank}
    err.print(", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items() if n))
    err.print(f"rollouts: {output}")


@app.command
def benchmarks(*, json: bool = False) -> None:
    """The benchmarks that retrm eval knows: where their data is, and whose rules are followed.

    Parameters
    ----------
    json
        Print one JSON object on stdout.
    """
    from retrm.evaluation.benchmarks import benchmark, names

    known = [(name, benchmark(name)) for name in names()]
    if json:
        print_json(
            {
                name: {
                    "title": one.title,
                    "hub": list(one.hub),
                    "files": list(one.pattern),
                    "paper": one.paper,
                }
                for name, one in known
            }
        )
        return
    for name, one in known:
        out.print(f"[bold]{name}[/]  {one.title}", highlight=False)
        out.print(f"  rules  {one.paper}", markup=False, soft_wrap=True)
        home = ", ".join(one.hub) or "none; give files with --data"
        out.print(f"  hub    {home}", markup=False, soft_wrap=True)
        out.print(f"  files  {', '.join(one.pattern)}", markup=False, soft_wrap=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".") if math.isfinite(value) else "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else text[:67] + "..."
