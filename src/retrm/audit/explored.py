"""Verdicts on what was looked at beside the contrasts that were fixed: labels, layers, scalars, length.

A claim needs an interval that excludes 0 AND p < .05 after Holm's correction over the exploratory
contrasts of the audit in the same metric. Anything less is worded as no evidence, which is not evidence
of no effect. An answer names its opponent where that is not random subspaces of the same width: to beat
the full state with few labels, or the scalars, is what any few directions may do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from retrm.audit.rules import CHANCE, MOST_LISTED, claim_of, has_interval
from retrm.audit.tables import AuditTables, CellRow, ContrastRow, Verdict
from retrm.audit.words import figure_in_words, kind_in_words
from retrm.metrics import format_number

_Row = TypeVar("_Row", ContrastRow, CellRow)

_RULES = ("shortest", "longest")
_MATCHED = {
    "length_matched_auroc": "right x wrong pairs",
    "length_matched_pair_accuracy": "preference pairs",
}


def explored_verdicts(tables: AuditTables, metric: str) -> list[Verdict]:
    """What was measured, in a fixed order; what was not makes no verdict.

    Args:
        tables: of an audit.
        metric: of record.
    """
    primary = next((row for row in tables.contrasts if row.role == "primary"), None)
    return [
        *_labels(tables, metric, primary),
        *_layers(tables, metric, primary),
        *_confidence(tables, metric, primary),
        *_length(tables, primary),
    ]


# ----------------------------------------------------------------------------- families of claims


@dataclass(frozen=True)
class _Place:
    """One exploratory contrast and what tells it from the others of its question."""

    name: str
    row: ContrastRow

    @property
    def claim(self) -> int:
        """1 = better, -1 = worse, 0 = no claim after Holm's correction."""
        return claim_of(self.row)

    @property
    def text(self) -> str:
        """`NAME: difference [low, high]`."""
        return f"{self.name}: {figure_in_words(self.row)}"


def _answer(places: Sequence[_Place], opponent: str = "", *, is_ordered: bool = False) -> str:
    """`opponent`: its name where it is not random subspaces of the same width."""
    up, down, mixed = "helps", "hurts", "mixed"
    if opponent:
        up, down, mixed = (
            f"{w} {opponent}" for w in ("better than", "worse than", "mixed against")
        )
    claims = [place.claim for place in places]
    n_up, n_down = claims.count(1), claims.count(-1)
    if not n_up and not n_down:
        return "no evidence"
    if n_up == len(claims):
        return up
    if n_down == len(claims):
        return down
    if is_ordered and n_up and claims[:n_up] == [1] * n_up:
        return f"{up} with few labels"
    if n_up and n_down:
        return mixed
    return f"{up if n_up else down} at some"


def _sentence(places: Sequence[_Place], first: str, second: str, what: str) -> str:
    """What was found at which places (`what` they are); never more than the claims."""
    found = {sign: [place for place in places if place.claim == sign] for sign in (1, -1, 0)}
    if not found[1] and not found[-1]:
        return (
            f"No evidence of a difference between {first} and {second} at any of the {what} looked at "
            f"({_figures(places)}); none stands after Holm's correction."
        )
    words = {1: "better at", -1: "worse at", 0: "no evidence either way at"}
    parts = [f"{words[sign]} {_figures(found[sign])}" for sign in words if found[sign]]
    return (
        f"{first[0].upper()}{first[1:]} against {second}, over the {what} looked at: "
        f"{'; '.join(parts)} (after Holm's correction)."
    )


def _figures(places: Sequence[_Place]) -> str:
    if len(places) <= MOST_LISTED:
        return ", ".join(place.text for place in places)
    # The extremes stand for all.
    values = [place.row.value for place in places]
    return (
        f"{', '.join(place.name for place in places)}: differences from "
        f"{format_number(min(values))} to {format_number(max(values))}"
    )


def _contrasts(
    tables: AuditTables, sweep: str, pair: tuple[str, str], metric: str
) -> list[ContrastRow]:
    return [
        row
        for row in tables.contrasts
        if (row.sweep, row.first, row.second, row.metric) == (sweep, *pair, metric)
        and row.role == "exploratory"
    ]


def _at_setting(rows: Sequence[_Row], primary: ContrastRow | None, *keys: str) -> list[_Row]:
    """Those at the setting of the primary contrast; all where there is no such contrast."""
    return [
        row
        for row in rows
        if primary is None or all(getattr(row, key) == getattr(primary, key) for key in keys)
    ]


# -------------------------------------------------------------------------------- the questions


def _labels(tables: AuditTables, metric: str, primary: ContrastRow | None) -> list[Verdict]:
    found = []
    for question, opponent in (("labels", "random"), ("labels_full", "full")):
        rows = _contrasts(tables, "learning", ("reasoning", opponent), metric)
        # Heads of the sweep are not those of the primary contrast, so `head` is no part of it.
        rows = _at_setting(rows, primary, "matrix", "m", "layer", "pooling")
        if not rows:
            continue
        rows = sorted(rows, key=lambda row: row.n_train_prompts)
        places = [_Place(f"{row.n_train_prompts:,}", row) for row in rows]
        names = (kind_in_words("reasoning"), kind_in_words(opponent))
        sentence = _sentence(places, *names, "numbers of training prompts")
        if opponent == "full" and any(place.claim == 1 for place in places):
            sentence += " Fewer dimensions need fewer labels: any few directions may do this."
        named = "" if opponent == "random" else opponent
        answer = _answer(places, named, is_ordered=True)
        found.append(Verdict(question, answer, sentence, is_primary=False))
    return found


def _layers(tables: AuditTables, metric: str, primary: ContrastRow | None) -> list[Verdict]:
    """One verdict a pooling, that of the primary contrast first."""
    rows = _contrasts(tables, "layer", ("reasoning", "random"), metric)
    rows = _at_setting(rows, primary, "m")
    cells = [
        cell
        for cell in tables.cells
        if (cell.sweep, cell.features, cell.metric) == ("layer", "full", metric)
        and not math.isnan(cell.value)
    ]
    poolings = sorted(
        {row.pooling for row in (*rows, *cells)},
        key=lambda name: (primary is None or name != primary.pooling, name),
    )
    verdicts = []
    for pooling in poolings:
        here = sorted((r for r in rows if r.pooling == pooling), key=lambda row: row.layer)
        best = _best_layer([cell for cell in cells if cell.pooling == pooling])
        if here or best:
            verdicts.append(_layers_of(pooling, here, best))
    return verdicts


def _layers_of(pooling: str, rows: Sequence[ContrastRow], best: str) -> Verdict:
    places = [_Place(f"{row.layer}", row) for row in rows]
    names = (kind_in_words("reasoning"), kind_in_words("random"))
    sentence = (
        _sentence(places, *names, "layers")
        if places
        else "The reasoning subspace was not compared with random ones layer by layer."
    )
    text = f"Pooling {pooling}. {sentence}{best}"
    return Verdict("layers", _answer(places), text, is_primary=False, subject=pooling)


def _best_layer(cells: Sequence[CellRow]) -> str:
    """The best layer of the full state beside the last, in one pooling: a description, no claim."""
    if len({cell.layer for cell in cells}) < 2:
        return ""
    last = max(cells, key=lambda cell: cell.layer)
    best = max(cells, key=lambda cell: cell.value)
    if best == last:
        return (
            f" The full state reads best at the last one, {last.layer} ({figure_in_words(last)})."
        )
    return (
        f" The full state reads best at layer {best.layer} ({figure_in_words(best)}), against "
        f"{figure_in_words(last)} at the last one, {last.layer}; the best of {len(cells)} was picked "
        "after looking, so this is no claim."
    )


def _confidence(tables: AuditTables, metric: str, primary: ContrastRow | None) -> list[Verdict]:
    """Does the subspace add to scalars; and does it add more than random ones do."""
    found = []
    for question, opponent, named in (
        ("confidence", "scalars", "scalars alone"),
        ("confidence_random", "scalars+random", ""),
    ):
        names = ("scalars+reasoning", opponent)
        # m counts the scalars too, so it is not that of the primary contrast.
        rows = _at_setting(
            _contrasts(tables, "controls", names, metric), primary, "matrix", "layer", "pooling"
        )
        if not rows:
            continue
        places = [_Place(f"m = {row.m}, {row.pooling}", row) for row in rows]
        sentence = _sentence(places, *map(kind_in_words, names), "settings")
        if named and any(place.claim == 1 for place in places):
            sentence += " Random directions may add as much: that is a question of its own."
        found.append(Verdict(question, _answer(places, named), sentence, is_primary=False))
    return found


def _length(tables: AuditTables, primary: ContrastRow | None) -> list[Verdict]:
    keys = ("matrix", "m", "layer", "pooling")
    cells = [
        cell
        for cell in tables.cells
        if (cell.sweep, cell.features) == ("primary", "reasoning") and cell.metric in _MATCHED
    ]
    rules = [
        row
        for name in _RULES
        for metric in _MATCHED
        for row in _contrasts(tables, "primary", ("reasoning", name), metric)
    ]
    against = _at_setting(rules, primary, *keys)
    return [_length_of(cell, against) for cell in _at_setting(cells, primary, *keys)]


def _length_of(cell: CellRow, rules: Sequence[ContrastRow]) -> Verdict:
    """Pairs of like length may still differ by a tenth, so rules by length are the opponents.

    Any score that rises or falls with length orders each pair as `longest` or `shortest` does.
    """
    answer, reason = _length_answer(cell, rules)
    beside = ", ".join(f"minus `{row.second}` {figure_in_words(row)}" for row in rules)
    sentence = (
        f"Among {_MATCHED[cell.metric]} of like length ({cell.n:,} left) the score of the reasoning "
        f"subspace (m = {cell.m}) reaches {figure_in_words(cell)}{'; ' if beside else ''}{beside}: "
        f"{reason}."
    )
    return Verdict("length", answer, sentence, is_primary=False)


def _length_answer(cell: CellRow, rules: Sequence[ContrastRow]) -> tuple[str, str]:
    if not has_interval(cell):
        return "undecided", "no interval was made"
    if cell.low <= CHANCE <= cell.high:
        return (
            "may read length only",
            "chance lies inside the interval, so the score may read length only",
        )
    side = "above" if cell.low > CHANCE else "below"
    if {row.second for row in rules} != set(_RULES):
        return (
            "undecided",
            f"the interval lies {side} chance, but such pairs may still differ by a tenth in length, "
            "and no rule by length was measured on them",
        )
    claims = {claim_of(row) for row in rules}
    if side == "above" and claims == {1}:
        return (
            "not length alone",
            "it is above chance and above both rules by length on the same pairs, after Holm's "
            "correction, so no score that rises or falls with length explains it",
        )
    if side == "below" and claims == {-1}:
        return (
            "reverses at equal length",
            "it is below chance and below both rules by length on the same pairs, after Holm's "
            "correction: at equal length, wrong answers score higher",
        )
    return (
        "may read length only",
        f"the interval lies {side} chance, but such pairs may still differ by a tenth in length, and "
        "the score does not stand apart from both rules by length on them",
    )
