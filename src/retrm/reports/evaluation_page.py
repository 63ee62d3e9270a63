"""The report of an evaluation as one HTML file that needs nothing else, and as Markdown.

Where every scorer stands comes first; then a section a benchmark: the official table with intervals
and baselines, its picture, what else is known of the scorer there, and the items worth reading; then
where the numbers come from.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from retrm.evaluation.benchmarks.base import BenchmarkData
from retrm.evaluation.contamination import Overlap
from retrm.evaluation.findings import Findings
from retrm.evaluation.score_file import ScoreFile
from retrm.evaluation.tables import BenchmarkTable, FigureRow
from retrm.files import atomic_write
from retrm.heads.explanation import Explanation
from retrm.reports.canvas import png_bytes
from retrm.reports.evaluation_card import evaluation_card
from retrm.reports.evaluation_figures import subset_figure
from retrm.reports.evaluation_items import STYLE as ITEM_STYLE
from retrm.reports.evaluation_items import HeatKey, TokenHeat, mistakes_html, mistakes_words
from retrm.reports.evaluation_names import (
    renamed_file,
    renamed_findings,
    renamed_table,
    short_names,
)
from retrm.reports.evaluation_panels import panels_html
from retrm.reports.evaluation_words import (
    BASELINES,
    INTERVALS,
    PAIRED,
    Standing,
    contamination_words,
    counts,
    figure_lines,
    figure_notes,
    interval_words,
    length_mark,
    listed,
    metric_words,
    notes,
    scorer_name,
    signed,
    subset_name,
    ties_words,
    verdict,
)
from retrm.reports.page_parts import document, fact_rows, image, link
from retrm.reports.words import NONE, number

PAGE = "report.html"
CARD = "report.md"
_STYLE = """
.verdict .answer{font-size:1.5rem}
th.group{text-align:center;color:var(--muted);font-weight:600;font-size:.82rem}
th.scorer{overflow-wrap:anywhere;min-width:6.5rem}
.figures td span,.figures td em{display:block;font-size:.82rem;font-style:normal}
.figures th[scope=row]{min-width:9rem;overflow-wrap:anywhere}
.pair .figures th[scope=row]{min-width:6rem}.pair .figures :is(td,th){padding:.4rem .5rem}
.figures th[scope=row] span:not(.chip){color:var(--muted);display:block;font-size:.82rem;font-weight:400}
.figures td em{color:var(--bad);font-weight:600}
tr.headline>*{background:var(--soft)}
tr.headline th[scope=row],tr.headline td b{font-size:1.06em;font-weight:700}
.plot{overflow-x:auto}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:1.2rem}
.pair>div{min-width:0}
nav a{margin-right:1.1rem}
@media (max-width:44rem){.pair{grid-template-columns:1fr}main{padding:1.2rem .8rem 3rem}th,td{padding:.35rem .5rem}
.plot.wide img{max-width:none}.figures th[scope=row]{position:sticky;left:0;background:var(--card);
min-width:8rem;max-width:9rem}tr.headline th[scope=row]{background:var(--soft)}
figure{padding:.3rem .7rem .8rem}}
@media print{@page{margin:14mm}body{font-size:11pt}main{max-width:none;padding:0}h2,h3,h2+p,h3+p{break-after:avoid}
.scroll{overflow:visible}table{font-size:8.5pt}th,td{padding:.25rem .35rem}
th[scope=row],th.scorer{min-width:0}.figures th[scope=row]{min-width:5rem}tr{break-inside:avoid}
details.print::details-content{content-visibility:visible;block-size:auto}nav{display:none}}
""".strip()


def write_report(
    folder: Path,
    tables: Sequence[BenchmarkTable],
    files: Sequence[ScoreFile],
    texts: Sequence[BenchmarkData],
    contamination: Mapping[str, Overlap],
    *,
    findings: Sequence[Findings] = (),
    heat: Mapping[HeatKey, TokenHeat] | None = None,
    reasons: Mapping[HeatKey, Explanation] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write `report.html` and `report.md`.

    Args:
        folder: of the run.
        tables: one a benchmark, in order.
        files: the scores behind them, for where they come from.
        texts: items with their texts; without those of a benchmark its items are named only.
        contamination: overlap with training data by benchmark, where it was looked for.
        findings: what else is known of each scorer on each benchmark.
        heat: answers token by token.
        reasons: what each objective adds to the scores of answers, of scorers that mix several.
        facts: versions and options to be stated.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: a file cannot be written.
    """
    page = evaluation_page(
        tables,
        files,
        texts,
        contamination,
        findings=findings,
        heat=heat,
        reasons=reasons,
        facts=facts,
    )
    for name, text in ((PAGE, page), (CARD, evaluation_card(tables, files, contamination))):
        with atomic_write(folder / name, "w") as out:
            out.write(text)


def evaluation_page(
    tables: Sequence[BenchmarkTable],
    files: Sequence[ScoreFile],
    texts: Sequence[BenchmarkData],
    contamination: Mapping[str, Overlap],
    *,
    findings: Sequence[Findings] = (),
    heat: Mapping[HeatKey, TokenHeat] | None = None,
    reasons: Mapping[HeatKey, Explanation] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """The page as text; raises MissingExtraError without matplotlib."""
    names = short_names(tables)
    tables = [renamed_table(table, names) for table in tables]
    files = [renamed_file(file, names) for file in files]
    findings = [renamed_findings(one, names) for one in findings]
    heat = {(b, names[s], *rest): view for (b, s, *rest), view in (heat or {}).items()}
    reasons = {(b, names[s], *rest): why for (b, s, *rest), why in (reasons or {}).items()}
    by_name = {data.name: data for data in texts}
    title = f"Evaluation on {listed([table.title for table in tables])}"
    sections = [
        _header(tables),
        _standings(tables, contamination),
        _reading(),
        *(
            _benchmark(
                table,
                contamination,
                [one for one in findings if one.benchmark == table.name],
                by_name.get(table.name),
                heat,
                reasons,
            )
            for table in tables
        ),
        _provenance(files, facts or {}),
        _files(tables, files),
    ]
    return document(title, sections, style=_STYLE + ITEM_STYLE)


# ------------------------------------------------------------------------- where everybody stands


def _header(tables: Sequence[BenchmarkTable]) -> str:
    names = scorers_of(tables)
    links = "".join(
        f'<a href="#{escape(table.name)}">{escape(table.title)}</a>' for table in tables
    )
    subject = listed(names) if names else "baselines alone"
    return (
        "<header><p class=kicker>retrm evaluation</p>"
        f"<h1>{escape(listed([table.title for table in tables]))}</h1>"
        f"<p class=subject><b>{escape(subject)}</b></p>"
        f"<nav>{links if len(tables) > 1 else ''}</nav></header>"
    )


def scorers_of(tables: Sequence[BenchmarkTable]) -> list[str]:
    """Names of all scorers that are no baselines."""
    return list(
        dict.fromkeys(row.scorer for table in tables for row in table.rows if row.kind == "scorer")
    )


def _standings(tables: Sequence[BenchmarkTable], contamination: Mapping[str, Overlap]) -> str:
    cards = [
        _standing_card(table, row, verdict(row, contamination, table.name))
        for table in tables
        for row in table.rows
        if row.is_headline and row.kind == "scorer"
    ]
    if not cards:
        return "<section><p>No scorer but baselines took part.</p></section>"
    return f"<section><h2>Where they stand</h2><div class=grid>{''.join(cards)}</div></section>"


def _standing_card(table: BenchmarkTable, row: FigureRow, found: Standing) -> str:
    value = NONE if row.value is None else number(row.value.value)
    interval = "" if row.value is None else interval_words(row.value)
    chance = "" if row.chance is None else f", guessing reaches {number(row.chance)}"
    return (
        f'<article class="verdict {found.tone}" style="margin:0">'
        f"<p class=question>{escape(row.scorer)} on {escape(table.title)}</p>"
        f"<p class=answer>{value} <small class=muted>{interval}</small></p>"
        f"<p class=muted>{escape(subset_name(row))}: {escape(row.metric)}{chance}</p>"
        f"<p>{escape(found.sentence)}</p></article>"
    )


def _reading() -> str:
    return (
        "<section class=reading><h2>How to read this</h2>"
        + "".join(f"<p>{escape(text)}</p>" for text in (BASELINES, INTERVALS, PAIRED))
        + "</section>"
    )


# -------------------------------------------------------------------------------- one benchmark


def _benchmark(
    table: BenchmarkTable,
    contamination: Mapping[str, Overlap],
    findings: Sequence[Findings],
    texts: BenchmarkData | None,
    heat: Mapping[HeatKey, TokenHeat],
    reasons: Mapping[HeatKey, Explanation],
) -> str:
    parts = (
        f"<h2>{escape(table.title)}</h2><p class=muted>{escape(counts(table))}; "
        "intervals over prompts.</p>",
        _figures(table, is_official=True),
        _notes(table, contamination),
        _plot(table),
        _details(
            "Figures of ours, not official",
            _figures(table, is_official=False) + _listed(figure_notes(table, is_official=False)),
        ),
        _details("Paired differences to the baselines", _differences(table)),
        panels_html(findings),
        *(_mistakes(one, texts, heat, reasons) for one in findings),
    )
    return f'<section id="{escape(table.name)}">{"".join(parts)}</section>'


def _details(title: str, body: str) -> str:
    """Closed on the screen, open on paper."""
    if not body:
        return ""
    return f"<details class=print><summary>{escape(title)}</summary>{body}</details>"


def _figures(table: BenchmarkTable, *, is_official: bool) -> str:
    lines = figure_lines(table, is_official=is_official)
    if not lines:
        return ""
    kinds = [row.kind for row in lines[0]]
    groups = "".join(
        f"<th class=group colspan={kinds.count(kind)}>{words}</th>"
        for kind, words in (("scorer", "scorers"), ("baseline", "baselines"))
        if kind in kinds
    )
    names = "".join(f"<th class=scorer>{escape(scorer_name(row.scorer))}</th>" for row in lines[0])
    body = "".join(_figure_line(rows) for rows in lines)
    return (
        "<div class=scroll><table class=figures><thead>"
        f"<tr><th></th><th></th><th></th>{groups}</tr>"
        f"<tr><th>figure</th><th>n</th><th>chance</th>{names}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _figure_line(rows: Sequence[FigureRow]) -> str:
    first = rows[0]
    chip = " <span class=chip>headline</span>" if first.is_headline else ""
    cells = "".join(_figure_cell(row) for row in rows)
    return (
        f"<tr{' class=headline' if first.is_headline else ''}><th scope=row>"
        f"{escape(subset_name(first))}<span>{escape(metric_words(first))}</span>{chip}</th>"
        f"<td>{first.n:,}</td><td>{number(first.chance)}</td>{cells}</tr>"
    )


def _figure_cell(row: FigureRow) -> str:
    if row.value is None:
        return f"<td>{NONE}</td>"
    interval = f"<span>{interval_words(row.value)}</span>"
    ties = f"<span>{ties_words(row.n_ties)}</span>"
    mark = f"<em>{escape(length_mark(row))}</em>" if row.beaten_by else ""
    return f"<td><b>{number(row.value.value)}</b>{interval}{ties if row.n_ties else ''}{mark}</td>"


def _notes(table: BenchmarkTable, contamination: Mapping[str, Overlap]) -> str:
    return _listed([*notes(table), contamination_words(contamination, table.name)])


def _listed(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in sentences)}</ul>"


def _plot(table: BenchmarkTable) -> str:
    drawn = subset_figure(table)
    if drawn is None:
        return ""
    words = (
        f"Official figures of {table.title}: dots are scorers with their 95 % intervals, grey marks "
        "are baselines, the dashed line is chance."
    )
    return (
        f'<figure><div class="plot wide">{image(png_bytes(drawn), words)}</div>'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _differences(table: BenchmarkTable) -> str:
    rows = [row for row in table.rows if row.is_official and row.minus]
    if not rows:
        return ""
    others = list(dict.fromkeys(name for row in rows for name in row.minus))
    head = "".join(f"<th>minus {escape(scorer_name(name))}</th>" for name in others)
    body = "".join(
        f"<tr><th scope=row>{escape(row.scorer)}<span>{escape(subset_name(row))}: "
        f"{escape(row.metric)}</span></th>{_difference_cells(row, others)}</tr>"
        for row in rows
    )
    return (
        "<p class=muted>In bold where the interval excludes zero.</p><div class=scroll>"
        f"<table class=figures><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
        "</div>"
    )


def _difference_cells(row: FigureRow, others: Sequence[str]) -> str:
    cells = []
    for name in others:
        found = row.minus.get(name)
        if found is None:
            cells.append(f"<td>{NONE}</td>")
            continue
        is_sure = found.has_spread and (found.low > 0 or found.high < 0)
        text = signed(found).partition(" ")
        value = f"<b>{text[0]}</b>" if is_sure else text[0]
        cells.append(f"<td>{value}<span>{text[2]}</span></td>")
    return "".join(cells)


def _mistakes(
    one: Findings,
    texts: BenchmarkData | None,
    heat: Mapping[HeatKey, TokenHeat],
    reasons: Mapping[HeatKey, Explanation],
) -> str:
    if one.mistakes is None:
        return ""
    body = mistakes_html(one.benchmark, one.scorer, one.mistakes, texts, heat, reasons)
    n = len(one.mistakes.shown)
    shown = f" The {n} largest wrong margins:" if n > 1 else ""
    return (
        f"<h3>Worth reading: mistakes of {escape(one.scorer)}</h3>"
        f"<p>{escape(mistakes_words(one.scorer, one.mistakes))}{shown}</p>{body}"
    )


# ---------------------------------------------------------------------- where numbers come from


def _provenance(files: Sequence[ScoreFile], facts: Mapping[str, Any]) -> str:
    body = "".join(
        f"<tr class=group><th colspan=2>{escape(file.scorer)} on {escape(file.benchmark)}</th></tr>"
        + fact_rows({"kind": file.kind, "items": len(file.rows), **file.about})
        for file in files
    )
    return (
        "<section><h2>Where the numbers come from</h2><div class=scroll><table class=facts><tbody>"
        f"{fact_rows(facts)}</tbody></table></div>"
        f"{_details('Identity and time of every scorer', _fact_table(body))}</section>"
    )


def _fact_table(body: str) -> str:
    return f"<div class=scroll><table class=facts><tbody>{body}</tbody></table></div>"


def _files(tables: Sequence[BenchmarkTable], files: Sequence[ScoreFile]) -> str:
    lines = (
        f"<li>{link('evaluation.json')}: every figure, interval and difference</li>",
        f"<li>{link(CARD)}: the tables for a model card</li>",
        f"<li>scores/: every raw score, {len(files):,} files; <code>retrm eval --scores</code> "
        "computes all figures from them again, without a model</li>",
        f"<li>items/: prompts and answers of {len(tables):,} "
        f"{'benchmark' if len(tables) == 1 else 'benchmarks'}</li>",
    )
    return f"<section><h2>Data files</h2><ul>{''.join(lines)}</ul></section>"
