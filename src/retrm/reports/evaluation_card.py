"""The tables of an evaluation as Markdown, fit for a model card."""

import re
from collections.abc import Mapping, Sequence

from retrm.evaluation.contamination import Overlap
from retrm.evaluation.score_file import ScoreFile
from retrm.evaluation.tables import BenchmarkTable, FigureRow
from retrm.reports.evaluation_names import renamed_file, renamed_table, short_names
from retrm.reports.evaluation_words import (
    contamination_words,
    counts,
    figure_lines,
    figure_title,
    figure_words,
    length_mark,
    notes,
    scorer_name,
    ties_words,
    verdict,
)
from retrm.reports.words import NONE, duration, number

# What Markdown or HTML would take for something else than a letter; brackets where they make a link.
_SPECIAL = re.compile(r"([\\`*_<>|#~$&]|^\[|\](?=[(\[]))")


def evaluation_card(
    tables: Sequence[BenchmarkTable],
    files: Sequence[ScoreFile],
    contamination: Mapping[str, Overlap],
) -> str:
    """A heading and one table a benchmark, with what a reader must know below it."""
    names = short_names(tables)
    files = [renamed_file(file, names) for file in files]
    tables = [renamed_table(table, names) for table in tables]
    parts = [_benchmark(table, files, contamination) for table in tables]
    return "\n".join(parts) + "\n"


def _benchmark(
    table: BenchmarkTable, files: Sequence[ScoreFile], contamination: Mapping[str, Overlap]
) -> str:
    lines = figure_lines(table, is_official=True)
    said = [
        f"{row.scorer}, {_headline(row)}: {verdict(row, contamination, table.name).sentence}"
        for row in table.rows
        if row.is_headline and row.kind == "scorer"
    ]
    below = [
        *said,
        *notes(table),
        contamination_words(contamination, table.name),
        _seconds(table, files),
    ]
    head = f"{counts(table)}; 95 % intervals over prompts. The headline is in bold."
    bullets = "\n".join(f"- {markdown(text)}" for text in below if text)
    return f"## {markdown(table.title)}\n\n{markdown(head)}\n\n{_table(lines)}\n\n{bullets}\n"


def _headline(row: FigureRow) -> str:
    """With its figure, since a benchmark that is not whole has its headline in no official line."""
    return f"{figure_title(row)}{'' if row.is_official else ' (not official)'} {figure_words(row.value)}"


def _table(lines: Sequence[Sequence[FigureRow]]) -> str:
    if not lines:
        return "No official figure."
    columns = ["figure", "n", "chance", *(scorer_name(row.scorer) for row in lines[0])]
    made = [_line([markdown(column) for column in columns]), "|---" + "|---:" * 2]
    made[1] += "|---" * len(lines[0]) + "|"
    for rows in lines:
        title = markdown(figure_title(rows[0]))
        name = f"**{title}**" if rows[0].is_headline else title
        made.append(_line([name, f"{rows[0].n:,}", number(rows[0].chance), *map(_cell, rows)]))
    return "\n".join(made)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(row: FigureRow) -> str:
    if row.value is None:
        return NONE
    text = figure_words(row.value)
    if row.is_headline and row.kind == "scorer":
        text = f"**{text}**"
    ties = f", {ties_words(row.n_ties)}" if row.n_ties else ""
    mark = f" {markdown(f'({length_mark(row)})')}" if row.beaten_by else ""
    return f"{text}{ties}{mark}"


def _seconds(table: BenchmarkTable, files: Sequence[ScoreFile]) -> str:
    found = [
        f"{file.scorer} {duration(float(file.about['seconds_of_this_run']))}"
        for file in files
        if file.benchmark == table.name
        and file.kind == "scorer"
        and "seconds_of_this_run" in file.about
        and file.about.get("answers_of_this_run") != 0  # they were scored before it
    ]
    return f"Scored in (all benchmarks of the run): {', '.join(found)}." if found else ""


def markdown(text: str) -> str:
    """Plain text as Markdown that shows it: on one line, nothing of it a mark, a tag or a column."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
