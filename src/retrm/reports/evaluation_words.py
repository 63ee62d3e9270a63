"""How an evaluation is put into words: the same on a terminal, on the page and in a model card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retrm.evaluation.contamination import Overlap
from retrm.evaluation.tables import BenchmarkTable, FigureRow
from retrm.metrics import N_RESAMPLES, Interval
from retrm.reports.words import figure, number, span

# How sure a value is cannot be told where all resamples agree, as where every item is right.
NO_SPREAD = "[no spread]"

INTERVALS = (
    "Numbers in brackets are 95 % intervals: prompts were drawn again, with all their items, "
    f"{N_RESAMPLES:,} times. Other prompts of the same kind would move a figure about that far. [no spread] = all of them "
    "agree, for example because every item is right: the interval is unknown then, not of width zero."
)
BASELINES = (
    "Baselines know nothing of quality: the longest answer, the shortest, a random number, and how "
    "likely the backbone itself finds the answer. A figure where length alone does as well is marked: "
    "there, a high number shows no skill."
)
PAIRED = (
    "Everybody is measured on the same items, so differences are paired, and their intervals are "
    "mostly narrower than the two figures suggest. Where such an interval holds zero, the two are not told "
    "apart."
)


@dataclass(frozen=True)
class Standing:
    """How a scorer stands against the baselines on the benchmark's own first figure.

    Attributes:
        tone: "good" = surely better than every baseline; "bad" = one is surely better, or length
            does as well; "open" = else.
        sentence: which is which.
    """

    tone: str
    sentence: str


def interval_words(found: Interval) -> str:
    """`[.790, .833]`, or `[no spread]` where all resamples agree."""
    return span(found.low, found.high) if found.has_spread else NO_SPREAD


def figure_words(found: Interval | None) -> str:
    """`.812 [.790, .833]`, `1.000 [no spread]`, or a dash where there is none."""
    if found is None or found.has_spread:
        return figure(found)
    return f"{number(found.value)} {NO_SPREAD}"


def scorer_name(name: str) -> str:
    """Of a scorer or a baseline, for people."""
    return name.replace("log_probability", "log-probability", 1)


def subset_name(row: FigureRow) -> str:
    """What a figure is of."""
    return row.subset or "all"


def figure_title(row: FigureRow) -> str:
    """`Natural: accuracy`."""
    return f"{subset_name(row)}: {metric_words(row)}"


def metric_words(row: FigureRow) -> str:
    """`accuracy`; which way is better where it is not up."""
    better = {"lower": ", lower is better", "neither": ", describes only"}.get(row.better, "")
    return row.metric + better


def figure_lines(table: BenchmarkTable, *, is_official: bool) -> list[tuple[FigureRow, ...]]:
    """The figures in their order; each with one row a scorer, scorers in the order of the table."""
    groups: dict[tuple[str, str], list[FigureRow]] = {}
    for row in table.rows:
        if row.is_official == is_official:
            groups.setdefault((row.subset, row.metric), []).append(row)
    return [tuple(rows) for rows in groups.values()]


def length_mark(row: FigureRow) -> str:
    """`longest does as well`, or nothing."""
    return _does_as_well(row.beaten_by)


def _does_as_well(names: Sequence[str]) -> str:
    return f"{listed(names)} {'do' if len(names) > 1 else 'does'} as well" if names else ""


def ties_words(n: int) -> str:
    """Items whose verdict hangs on equal scores."""
    return f"{n:,} {'tie' if n == 1 else 'ties'}"


def standing(row: FigureRow) -> Standing:
    """Of a scorer's row with paired differences to baselines."""
    if row.value is None:
        return Standing("open", "Undefined on these items.")
    if not row.minus:
        return Standing("open", "No baseline stands beside it.")
    groups: dict[str, list[str]] = {"better": [], "same": [], "worse": []}
    for name, difference in row.minus.items():
        words = f"{scorer_name(name)} ({signed(difference)})"
        groups[_side(difference, row.better)].append(words)
    starts = {
        "better": "better than",
        "same": "not told apart from",
        "worse": "worse than",
    }
    parts = [f"{starts[key]} {listed(names)}" for key, names in groups.items() if names]
    sentence = "; ".join(parts)
    known = [name for name, found in row.minus.items() if _side(found, row.better) == "worse"]
    if mark := _does_as_well([name for name in row.beaten_by if name not in known]):
        sentence += f"; {mark}"
    is_bad = groups["worse"] or row.beaten_by
    tone = "bad" if is_bad else "open" if groups["same"] else "good"
    return Standing(tone, sentence[:1].upper() + sentence[1:] + ".")


def verdict(row: FigureRow, contamination: Mapping[str, Overlap], name: str) -> Standing:
    """`standing`, and what is known of whether the scorer saw the items of benchmark `name`.

    What stands in the training data can be known by heart, so it is never surely better.
    """
    found = standing(row)
    overlap = contamination.get(name)
    if overlap is None:
        return replace(
            found, sentence=f"{found.sentence} Not checked: whether it was trained on these items."
        )
    if not overlap.n_items:
        return found
    known = (
        f"{overlap.n_items:,} of {overlap.n_total:,} items stand in its training data, so this may be "
        "memory and no skill."
    )
    return Standing("open" if found.tone == "good" else found.tone, f"{found.sentence} {known}")


def _side(difference: Interval, better: str) -> str:
    is_open = difference.low <= 0 <= difference.high or not difference.has_spread
    if is_open or better == "neither":
        return "same"
    return "better" if (difference.low > 0) == (better == "higher") else "worse"


def signed(difference: Interval) -> str:
    """`+.042 [.010, .080]`."""
    return ("+" if difference.value > 0 else "") + figure_words(difference)


def counts(table: BenchmarkTable) -> str:
    """Items, prompts that intervals resample, in one line."""
    return f"{table.n_items:,} items, {table.n_clusters:,} prompts"


def notes(table: BenchmarkTable, overlap: Overlap | None = None) -> list[str]:
    """What a reader must know to trust the figures."""
    found = [
        *(_sentence(note) for note in table.notes),
        *(
            f"Items too long for {scorer_name(name)}, which take no part for anybody: {n:,}."
            for name, n in table.n_overlong.items()
        ),
        *(
            f"Answers that lost the beginning of their prompt to fit {scorer_name(name)}: {n:,}."
            for name, n in table.n_cut.items()
        ),
        *(f"Records left out ({reason}): {n:,}." for reason, n in table.excluded.items()),
        *figure_notes(table, is_official=True),
    ]
    if overlap is not None:
        found.append(f"Training data: {overlap.in_words}.")
    return found


def figure_notes(table: BenchmarkTable, *, is_official: bool) -> list[str]:
    """The notes of single figures; one that several share stands once.

    Where scorers have different notes on one figure, such as thresholds of their own, each is named.
    """
    rows = [row for row in table.rows if row.note and row.is_official == is_official]
    of_figure: dict[str, set[str]] = {}
    for row in rows:
        of_figure.setdefault(figure_title(row), set()).add(row.note)
    found: dict[str, list[str]] = {}
    for row in rows:
        title = figure_title(row)
        if len(of_figure[title]) > 1:
            title += f" of {scorer_name(row.scorer)}"
        titles = found.setdefault(row.note, [])
        if title not in titles:
            titles.append(title)
    return [_sentence(f"{'; '.join(titles)}: {note}") for note, titles in found.items()]


def _sentence(text: str) -> str:
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; baselines by the names that people know."""
    shown = [scorer_name(name) for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def contamination_words(contamination: Mapping[str, Overlap], name: str) -> str:
    """What is known of the training data for one benchmark, in a sentence."""
    if name not in contamination:
        return (
            "Whether its items stand in the training data was not checked: --training-data was not "
            "given."
        )
    return f"Training data: {contamination[name].in_words}."
