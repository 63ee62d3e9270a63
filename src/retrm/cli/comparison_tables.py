"""Scorers beside each other, and the items that set them apart, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from retrm.cli.console import table
from retrm.evaluation.benchmarks.base import Item
from retrm.evaluation.comparison import FEWEST_CLUSTERS, Headlines, ScorerComparison
from retrm.evaluation.item_analysis import ItemAnalysis
from retrm.reports.evaluation_words import figure_words
from retrm.reports.words import NONE, number, p_value

PROMPT_CHARACTERS = 300
ANSWER_CHARACTERS = 400
MOST_IN_MATRIX = 6
OPEN_P = "so few do not show how much another draw would move it"


def scorer_tables(found: ScorerComparison, texts: Mapping[str, Item], shown: int) -> list[Group]:
    """Figures with differences, McNemar, agreement, and the items they differ on most."""
    made = [_figure_table(found), _mcnemar_table(found), _agreement(found)]
    if shown and found.disagreements:
        made.append(_disagreements(found, texts, shown))
    return made


def _figure_table(found: ScorerComparison) -> Group:
    names = {"A": found.first, "B": found.second}
    title = (
        f"{found.title}: A = {found.first}, B = {found.second}; {found.n_items:,} items, "
        f"{found.n_clusters:,} prompts; 95 % intervals over prompts"
    )
    rows = [
        [
            f"{one.subset or 'all'}: {one.metric}" + (" ◀" if one.is_headline else ""),
            f"{one.n:,}",
            figure_words(one.first),
            figure_words(one.second),
            figure_words(one.difference),
            p_value(one.p_value),
            number(one.smallest_visible),
        ]
        for one in found.figures
        if one.is_official
    ]
    notes = [
        "visible = a true difference of this size is found four times in five, with so many items"
    ]
    if any(one.p_value is None and one.difference is not None for one in found.figures):
        notes.append(
            f"no p and no visible difference from fewer than {FEWEST_CLUSTERS} prompts: {OPEN_P}"
        )
    if found.n_overlong:
        notes.append(f"{found.n_overlong:,} items too long for one of them take no part")
    columns = ["", "n", *names, "A - B", "p", "visible"]
    return Group(table(title, columns, rows), *_notes(notes))


def _mcnemar_table(found: ScorerComparison) -> Group:
    rows = [
        [one.subset or "all", f"{one.n:,}", one.only_first, one.only_second, p_value(one.p_value)]
        for one in found.mcnemar
    ]
    title = (
        "items that only one of them gets right (equal scores are wrong); McNemar, exact, takes "
        "items as independent, the p above resamples prompts"
    )
    return table(title, ["", "n", "only A", "only B", "p"], rows)


def _agreement(found: ScorerComparison) -> Group:
    one = found.agreement
    if one is None:
        return Group(Text("no preference pairs to agree on: steps are judged one by one"), Text())
    return Group(
        Text(
            f"agreement: {figure_words(one.share)} of {one.n_pairs:,} pairs are ordered alike; independent "
            f"scorers that win as often would share {number(one.expected)}"
        ),
        Text(f"rank correlation of margins: {figure_words(one.correlation)}"),
        Text(),
    )


def _disagreements(found: ScorerComparison, texts: Mapping[str, Item], shown: int) -> Group:
    lines: list[Any] = [
        Text("items on which they differ most; margins in standard deviations", style="italic")
    ]
    for one in found.disagreements[:shown]:
        right = "A" if one.first_margin > 0 else "B"
        margins = f"A {one.first_margin:+.2f}, B {one.second_margin:+.2f}"
        lines.append(Text(f"{one.item} ({one.subset}): {right} is right; {margins}", style="bold"))
        lines += _texts_of(texts.get(one.item), {"preferred": one.preferred, "other": one.other})
    return Group(*lines)


def headline_tables(found: Headlines) -> list[Group]:
    """One row a scorer; differences of all pairs, or of all to the best where they are many."""
    names = sorted(found.values, key=lambda name: -found.values[name].value)
    title = (
        f"{found.title}, {found.metric}: {found.n_items:,} items, {found.n_clusters:,} prompts; "
        f"95 % intervals over prompts"
    )
    values = [[name, figure_words(found.values[name])] for name in names]
    pairs = found.differences
    shown = "all pairs"
    if len(names) > MOST_IN_MATRIX:
        pairs = tuple(one for one in pairs if names[0] in (one.first, one.second))
        shown = f"to {names[0]}, the best"
    rows = [
        [
            f"{one.first} - {one.second}",
            figure_words(one.difference),
            p_value(one.p_value),
            p_value(one.adjusted_p_value),
        ]
        for one in pairs
    ]
    heading = (
        f"paired differences, {shown}; Holm = p for {len(found.differences)} comparisons at once"
    )
    made = [
        table(title, ["", "headline"], values),
        table(heading, ["", "difference", "p", "Holm"], rows),
    ]
    if any(one.p_value is None for one in pairs):
        note = f"no p from fewer than {FEWEST_CLUSTERS} prompts: {OPEN_P}"
        made.append(Group(*_notes([note])))
    return made


def item_tables(found: ItemAnalysis, texts: Mapping[str, Item], shown: int) -> list[Group]:
    """Scorers with and without the flagged items, and the flagged items."""
    title = (
        f"{found.title}: {len(found.items):,} items, {found.n_prompts:,} prompts under "
        f"{len(found.examinees)} scorers; equal scores are wrong ({found.n_ties:,} verdicts)"
    )
    has_ability = any(one.ability is not None for one in found.examinees)
    columns = ["", "right", "without the flagged", *(["ability", "± "] if has_ability else [])]
    rows = [
        [
            one.scorer,
            figure_words(one.share_right),
            figure_words(one.share_right_unflagged),
            *([_plain(one.ability), _plain(one.ability_error)] if has_ability else []),
        ]
        for one in found.examinees
    ]
    made = [Group(table(title, columns, rows), *_notes(_item_notes(found)))]
    if found.flagged:
        made.append(_flagged(found, texts, shown))
    return made


def _item_notes(found: ItemAnalysis) -> list[str]:
    longest, shortest = found.length_only
    known = sum(item.discrimination is not None for item in found.items)
    notes = [
        f"{len(found.all_right):,} items all get right, {len(found.all_wrong):,} none does; "
        f"{known:,} tell scorers apart",
        f"length alone gets right: longest {number(longest)}, shortest {number(shortest)}",
        *found.left_out,
        *found.notes,
    ]
    if found.n_without_verdict:
        notes.append(f"{found.n_without_verdict:,} items leave nothing to get right")
    if found.no_rasch:
        notes.append(f"no Rasch model: {found.no_rasch}")
    if found.flagged:
        share = len(found.flagged) / known
        notes.append(
            f"{len(found.flagged):,} items flagged for a look ({share:.0%} of those: a random list of "
            f"that length finds {share:.0%} of the mislabelled ones); {found.flagged_by_share:,} of "
            "them are as well among the most often wrong"
        )
    return notes


def _flagged(found: ItemAnalysis, texts: Mapping[str, Item], shown: int) -> Group:
    rows = {item.item: item for item in found.items}
    lowest = [rows[name] for name in found.flagged[: max(shown, 1) * 4]]
    cells = [
        [item.item, item.subset, number(item.share_right), number(item.discrimination)]
        for item in lowest
    ]
    title = "look at their labels: bad scorers right, good ones wrong (or a trick item)"
    lines: list[Any] = [table(title, ["", "subset", "share right", "item-rest"], cells)]
    for item in lowest[:shown]:
        lines.append(Text(f"{item.item} ({item.subset})", style="bold"))
        answers = {"preferred": item.preferred, "other": item.other}
        known = {name: i for name, i in answers.items() if i is not None}
        lines += _texts_of(texts.get(item.item), known)
    return Group(*lines)


def _texts_of(item: Item | None, answers: Mapping[str, int]) -> list[Any]:
    """The last turn of the prompt and some answers, shortened."""
    if item is None:
        return [Text("  (its texts are not beside the scores)"), Text()]
    grid = Table.grid(padding=(0, 2))
    prompt = item.answers[0].prompt.messages[-1].content
    grid.add_row("", Text("prompt", "dim"), Text(_shortened(prompt, PROMPT_CHARACTERS)))
    for name, i in answers.items():
        answer = _shortened(item.answers[i].response, ANSWER_CHARACTERS)
        grid.add_row("", Text(name, "dim"), Text(answer))
    return [grid, Text()]


def _shortened(text: str, most: int) -> str:
    """One paragraph of at most `most` characters, its end cut off."""
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def _notes(lines: Sequence[str]) -> list[Text]:
    return [*(Text(f"note: {line}") for line in lines), Text()]


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
