"""The verdict on interventions: does the model lose more without these directions than without others.

    `costs more than random`, `costs less than random`, `mixed`, `no evidence`, `too few draws`

A claim needs all of: an interval of `minus_random` that excludes 0; Student's t over prompts and draws
below .05 after Holm's correction over all interventions of the audit; a rank p of .05 or less on its
side (two-sided .10) among the random draws at the same place, for which 19 of them are needed. See
`retrm.audit.effects`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrm.audit.rules import (
    ALPHA,
    DRAWS_FOR_A_REMOVAL,
    MOST_LISTED,
    REMOVAL_ALPHA_A_SIDE,
)
from retrm.audit.tables import InterventionRow, Verdict
from retrm.audit.words import MEASURES, named_p, span_in_words
from retrm.metrics import format_interval, format_number, rank_p_value

# A removal may take out this much more or less and still count as one of equal energy.
ENERGY_TOLERANCE = 0.2
_FILLS = {"zero": "set to zero", "mean": "its mean put back"}
_OTHERS = "removing random directions of the same number"


@dataclass(frozen=True)
class _Removal:
    """One removal of the reasoning component beside random ones.

    Attributes:
        row: of the reasoning component.
        draws: effects of the random ones of the same number.
        beside: the energies removed, and the effects of random ones of equal energy.
        has_fill: whether the text says what took the place of the component.
    """

    row: InterventionRow
    draws: tuple[float, ...]
    beside: str
    has_fill: bool

    @property
    def has_draws(self) -> bool:
        """Whether the random draws are enough for any claim."""
        return len(self.draws) >= DRAWS_FOR_A_REMOVAL

    @property
    def claim(self) -> int:
        """-1 = hurts more than random ones, 1 = less, 0 = no claim."""
        row = self.row
        if not row.random_holm_p < ALPHA:  # NaN is no claim
            return 0
        if row.minus_random_high < 0:
            rank_p = rank_p_value(-row.difference, [-d for d in self.draws])
            return -int(rank_p <= REMOVAL_ALPHA_A_SIDE)
        if row.minus_random_low > 0:
            return int(rank_p_value(row.difference, self.draws) <= REMOVAL_ALPHA_A_SIDE)
        return 0

    @property
    def text(self) -> str:
        """`MEASURE at LAYERS (m = 29) by -.040 [-.050, -.030] (...)`."""
        row, found = self.row, self.draws
        spared = ", first token left alone" if row.spare_first else ""
        fill = f", {_FILLS[row.fill]}" if self.has_fill else ""
        apart = format_interval(row.minus_random, row.minus_random_low, row.minus_random_high)
        return (
            f"{MEASURES[row.measure].long} at {row.layers} (m = {row.m}{fill}{spared}) by {apart} "
            f"(changes by {format_number(row.difference)}, with {len(found)} random draws by "
            f"{span_in_words(found)}; {named_p(row.random_holm_p, 'Holm p')}{self.beside})"
        )


def use_verdicts(rows: Sequence[InterventionRow]) -> list[Verdict]:
    """One verdict over all removals of the reasoning component; none where it was not removed."""
    measured = {name for name, words in MEASURES.items() if words.is_better_high}
    ours = [row for row in rows if row.removed == "reasoning" and row.measure in measured]
    if not ours:
        return []
    ours = [row for row in ours if not _has_mean_fill(ours, row)]
    has_fills = len({row.fill for row in ours}) > 1
    removals = [
        _Removal(row, draws, _energies(rows, row), has_fills)
        for row in ours
        if (draws := tuple(r.difference for r in _alike(rows, row, "random", row.measure)))
        and not math.isnan(row.minus_random)
    ]
    if not removals:
        sentence = "The reasoning component was removed, but no random one of the same width."
        return [Verdict("use", "no evidence", sentence, is_primary=False)]
    fill = "" if has_fills else f" ({_FILLS[ours[0].fill]})"
    return [_verdict(removals, f"the reasoning component{fill}")]


def _has_mean_fill(rows: Sequence[InterventionRow], row: InterventionRow) -> bool:
    """With the mean put back an effect is loss of information, not a state as never before."""
    key = (row.layers, row.point, row.spare_first, row.m, row.measure)
    return row.fill == "zero" and any(
        key == (r.layers, r.point, r.spare_first, r.m, r.measure) for r in rows if r.fill == "mean"
    )


def _verdict(removals: Sequence[_Removal], what: str) -> Verdict:
    answer = _answer(removals)
    if answer in ("no evidence", "too few draws"):
        few = (
            f" A claim needs {DRAWS_FOR_A_REMOVAL} random draws or more."
            if answer[0] == "t"
            else ""
        )
        sentence = (
            f"No evidence that removing {what} hurts more or less than {_OTHERS}: the two differ in "
            f"{_listed(removals)}.{few}"
        )
        return Verdict("use", answer, sentence, is_primary=False)
    groups = (
        (f"hurts more than {_OTHERS}, in", [r for r in removals if r.claim == -1]),
        (f"hurts less than {_OTHERS}, in", [r for r in removals if r.claim == 1]),
        (
            "no evidence of a difference in",
            [r for r in removals if r.claim == 0 and r.has_draws],
        ),
        ("too few random draws to tell in", [r for r in removals if not r.has_draws]),
    )
    parts = [f"{words} {_listed(found)}" for words, found in groups if found]
    sentence = f"Removing {what} {'; '.join(parts)}."
    return Verdict("use", answer, sentence, is_primary=False)


def _answer(removals: Sequence[_Removal]) -> str:
    if not any(removal.has_draws for removal in removals):
        return "too few draws"
    answers: Mapping[frozenset[int], str] = {
        frozenset(): "no evidence",
        frozenset({-1}): "costs more than random",
        frozenset({1}): "costs less than random",
        frozenset({-1, 1}): "mixed",
    }
    return answers[frozenset({removal.claim for removal in removals} - {0})]


def _listed(removals: Sequence[_Removal]) -> str:
    listed = "; ".join(removal.text for removal in removals[:MOST_LISTED])
    n_more = len(removals) - MOST_LISTED
    return f"{listed}; and {n_more} more like it" if n_more > 0 else listed


def _place(row: InterventionRow) -> tuple[object, ...]:
    return row.layers, row.point, row.fill, row.spare_first


def _alike(
    rows: Sequence[InterventionRow], like: InterventionRow, removed: str, measure: str
) -> tuple[InterventionRow, ...]:
    return tuple(
        row
        for row in rows
        if (_place(row), row.m) == (_place(like), like.m)
        and (row.removed, row.measure) == (removed, measure)
    )


def at_equal_energy(
    rows: Sequence[InterventionRow], like: InterventionRow
) -> tuple[InterventionRow, ...]:
    """Random removals at the place of `like` that take out the energy of the reasoning one of its m.

    In the measure of `like`; within 20 %, so that a control which missed its aim is none.
    """
    own = [row.value for row in _alike(rows, like, "reasoning", "energy_removed")]
    there = [r for r in rows if r.removed == "random_energy" and _place(r) == _place(like)]
    near = {
        (row.m, row.draw)
        for row in there
        if own
        and row.measure == "energy_removed"
        and abs(row.value - own[0]) <= ENERGY_TOLERANCE * own[0]
    }
    return tuple(r for r in there if r.measure == like.measure and (r.m, r.draw) in near)


def _energies(rows: Sequence[InterventionRow], like: InterventionRow) -> str:
    """Subspaces of one width hold unequal energy, which an effect must be read beside."""
    own = _alike(rows, like, "reasoning", "energy_removed")
    theirs = [row.value for row in _alike(rows, like, "random", "energy_removed")]
    if not own or not theirs:
        return ""
    mean = sum(theirs) / len(theirs)
    text = f"; energy removed {format_number(own[0].value)} against {format_number(mean)}"
    matched = at_equal_energy(rows, like)
    if matched:
        sizes = sorted({row.m for row in matched})
        count = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
        text += (
            f"; {count} random directions of equal energy change it by "
            f"{span_in_words([row.difference for row in matched])}"
        )
    return text
