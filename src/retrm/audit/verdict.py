"""What the intervals of an audit allow one to say, in words, and nothing beyond.

A verdict is a rule on figures of the tables; it never sees a score, and it never picks the best cell.

    specificity   reasoning minus the mean of random subspaces of the same width (role `primary`)
                  `helps`                  low > 0, and rank p <= .05
                  `hurts`                  high < 0, and rank p from below <= .05
                  `within the spread of random`  the interval excludes 0, but that many of the random
                                           subspaces do as well (or as badly)
                  `no better than random`  -0.01 <= low and high <= 0.01, and none of the above
                  `undecided`              anything else, or no interval
    economy       reasoning minus the full state (role `economy`)
                  `worse than full`        high < 0
                  `within margin`          low >= -0.01
                  `worse than full, within margin`  both hold
                  `undecided`              neither, or no interval
    sanity        features with labels shuffled inside prompts, against chance
                  `within chance`, `leaks` (an interval excludes 0.5), `not checked`
    labels        reasoning against random, and against the full state, by training prompts
    layers        reasoning against random at each layer
    confidence    scalars with reasoning against scalars with random
                  for these three: `helps`, `hurts`, `helps with few labels` (at the smallest numbers
                  of training prompts only), `helps at some`, `hurts at some`, `mixed`, `no evidence`
    length        pairs of like length: `may read length only` (the interval includes 0.5),
                  `not length alone` (above), `reverses at equal length` (below), `undecided`
    use           removing the component against removing random ones of the same number:
                  `costs more than random`, `costs less than random`, `mixed`, `no evidence`

The rank is asked for since the interval resamples prompts only: a random subspace is better or worse
than the mean of its kind too. With a signal planted in a random subspace the interval alone claimed a
difference in 15 of 40 runs. Fewer than 19 draws can never make a claim.

Specificity and economy are fixed before looking and are the only primary ones. A claim under labels,
layers, confidence or use needs an interval that excludes 0 AND a p-value below .05 after Holm's correction
over all exploratory contrasts, or all interventions, of the audit; under use it must also lie beyond
every single random draw, since that interval knows nothing of chance in the draws. Anything less is
worded as no evidence, which is not evidence of no effect. "Reasoning subspace" is the field's name for the smallest right singular
directions of the LM head; no verdict says what they hold.

Source: a design of this project; the margin of 0.01 is one point of AUROC, accuracy or best-of-N.

>>> from retrm.audit.tables import AuditTables
>>> [v.answer for v in verdicts(AuditTables(facts={})) if v.is_primary]
['undecided', 'undecided']
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from retrm.audit.tables import AuditTables, CellRow, ContrastRow, InterventionRow, Verdict
from retrm.audit.words import MEASURES, METRICS, kind_in_words
from retrm.errors import DataError, did_you_mean
from retrm.metrics import format_interval, format_number

_Row = TypeVar("_Row", ContrastRow, CellRow)

MARGIN = 0.01
ALPHA = 0.05
CHANCE = 0.5

_CHANCE_IS_HALF = ("within_auroc", "pair_accuracy")
# A removal may take out this much more or less and still count as one of equal energy.
ENERGY_TOLERANCE = 0.2
_FILLS = {"zero": "set to zero", "mean": "its mean put back"}
# More figures than this make a sentence that nobody reads; then the extremes stand for all.
_MOST_LISTED = 8


def verdicts(tables: AuditTables) -> tuple[Verdict, ...]:
    """All verdicts, the primary ones first; what was not measured makes no exploratory verdict.

    Args:
        tables: of an audit; `verdicts` in it is not read.

    Raises:
        DataError: a contrast that decides is in a metric of which less is better, or an unknown one.
    """
    primary = _primary(tables)
    checked = _sanity(tables)
    record = _known_metric(str(tables.facts.get("metric", primary.metric if primary else "")))
    fixed = [
        *_fixed(tables, "specificity", "primary", "random ones of the same width", _specificity),
        *_fixed(tables, "economy", "economy", "the full state", _economy),
    ]
    if checked.answer == "leaks":
        warning = " The check with shuffled labels failed, so this cannot be trusted yet."
        fixed = [replace(verdict, sentence=verdict.sentence + warning) for verdict in fixed]
    looked = [
        *_labels(tables, record, primary),
        *_layers(tables, record, primary),
        *_confidence(tables, record, primary),
        *_length(tables, primary),
        *_use(tables.interventions),
    ]
    return (*fixed, checked, *looked)


# ------------------------------------------------------------------------ fixed before looking


def _primary(tables: AuditTables) -> ContrastRow | None:
    return next((row for row in tables.contrasts if row.role == "primary"), None)


def _fixed(
    tables: AuditTables,
    question: str,
    role: str,
    opponent: str,
    judge: Callable[[ContrastRow, AuditTables], Verdict],
) -> list[Verdict]:
    rows = [row for row in tables.contrasts if row.role == role]
    if not rows:
        sentence = f"The reasoning subspace was not compared with {opponent}."
        return [Verdict(question, "undecided", sentence, is_primary=True)]
    return [judge(row, tables) for row in rows]


def _specificity(row: ContrastRow, tables: AuditTables) -> Verdict:
    answer = _specificity_answer(row) if _has_interval(row) else "undecided"
    reason = {
        "helps": "The whole interval lies above 0, and hardly any random subspace does as well: it "
        "helps",
        "hurts": "The whole interval lies below 0, and hardly any random subspace does as badly: it "
        "hurts",
        "within the spread of random": "The interval excludes 0, but single random subspaces lie as "
        "far from their mean: within the spread of random",
        "no better than random": f"The interval lies within ±{format_number(MARGIN)} and does not "
        "exclude 0: no better than random",
        "undecided": f"The interval neither excludes 0 nor lies within ±{format_number(MARGIN)}: "
        "undecided",
    }[answer]
    if answer in ("helps", "hurts") and _is_within(row.low, row.high):
        reason += f", by less than {format_number(MARGIN)}"
    sentence = f"{_difference(row, tables)}{_rank(row)}. {_reason(row, reason)}."
    return Verdict("specificity", answer, sentence, is_primary=True)


def _specificity_answer(row: ContrastRow) -> str:
    if row.low > 0:
        return "helps" if row.rank_p <= ALPHA else "within the spread of random"
    if row.high < 0:
        return "hurts" if _rank_from_below(row) <= ALPHA else "within the spread of random"
    return "no better than random" if _is_within(row.low, row.high) else "undecided"


def _rank_from_below(row: ContrastRow) -> float:
    """(1 + draws at most as good) / (1 + draws), from the rank p from above; ties count as better."""
    n_at_least = round(row.rank_p * (1 + row.n_draws)) - 1
    return (1 + row.n_draws - n_at_least) / (1 + row.n_draws)


def _is_within(low: float, high: float) -> bool:
    return low >= -MARGIN and high <= MARGIN


def _economy(row: ContrastRow, tables: AuditTables) -> Verdict:
    margin = format_number(MARGIN)
    answer = _economy_answer(row.low, row.high) if _has_interval(row) else "undecided"
    reason = {
        "within margin": f"At the low end it loses no more than the margin of {margin}: within margin"
        + (", and the whole interval lies above 0" if row.low > 0 else ""),
        "worse than full": "The whole interval lies below 0 and reaches beyond the margin of "
        f"{margin}: worse than full",
        "worse than full, within margin": "The whole interval lies below 0, so it is worse than "
        f"full, but by no more than the margin of {margin} at the low end",
        "undecided": f"The interval includes 0 and reaches beyond the margin of {margin}: undecided",
    }[answer]
    sentence = f"{_difference(row, tables)}. {_reason(row, reason)}."
    return Verdict("economy", answer, sentence, is_primary=True)


def _economy_answer(low: float, high: float) -> str:
    found = [*(["worse than full"] * (high < 0)), *(["within margin"] * (low >= -MARGIN))]
    return ", ".join(found) or "undecided"


def _difference(row: ContrastRow, tables: AuditTables) -> str:
    """`METRIC: A (m = 29) minus the mean of 99 B is -.021 [-.055, .012] over 400 prompts`."""
    second = kind_in_words(row.second)
    if row.n_draws:
        second = f"the mean of {row.n_draws} {second}"
    name = METRICS[_known_metric(row.metric)].long
    return (
        f"{name[0].upper()}{name[1:]}: {kind_in_words(row.first)} (m = {row.m}) minus "
        f"{second} is {_figure(row)}{_over(row, tables)}"
    )


def _over(row: ContrastRow, tables: AuditTables) -> str:
    n_prompts, n_mixed = tables.facts.get("n_prompts"), tables.facts.get("n_mixed")
    if n_prompts is None:
        cells = (c for c in tables.cells if c.metric == row.metric and c.features == row.first)
        n_prompts = next((cell.n_prompts for cell in cells), None)
    if n_prompts is None:
        return ""
    is_mixed = isinstance(n_mixed, int) and row.metric == "within_auroc"
    mixed = f", {n_mixed:,} of them with right and wrong answers" if is_mixed else ""
    return f" over {n_prompts:,} prompts{mixed}"


def _rank(row: ContrastRow) -> str:
    if not row.n_draws or math.isnan(row.rank_p):
        return ""
    n_better = round(row.rank_p * (1 + row.n_draws)) - 1
    return (
        f"; {n_better} of {row.n_draws} random subspaces {_are(n_better)} at least as good "
        f"(rank p = {_p(row.rank_p)})"
    )


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _reason(row: ContrastRow, reason: str) -> str:
    return reason if _has_interval(row) else "No interval was made: undecided"


def _known_metric(metric: str) -> str:
    """The metric of record, `within_auroc` where the tables name none."""
    known = [name for name, words in METRICS.items() if words.is_better_high]
    if metric and metric not in known:
        raise DataError(
            f"got a verdict asked for in {metric!r}; expected a metric of which more is better. "
            + did_you_mean(metric, known)
        )
    return metric or "within_auroc"


# ---------------------------------------------------------------------------------- exploratory


@dataclass(frozen=True)
class _Place:
    """One exploratory contrast and what tells it from the others of its question."""

    name: str
    row: ContrastRow

    @property
    def claim(self) -> int:
        """1 = better, -1 = worse, 0 = no claim after Holm's correction."""
        if not (self.row.holm_p < ALPHA and _has_interval(self.row)):  # NaN is no claim
            return 0
        return int(self.row.low > 0) - int(self.row.high < 0)

    @property
    def text(self) -> str:
        """`NAME: difference [low, high]`."""
        return f"{self.name}: {_figure(self.row)}"


def _family_answer(places: Sequence[_Place], *, is_ordered: bool = False) -> str:
    claims = [place.claim for place in places]
    n_up, n_down = claims.count(1), claims.count(-1)
    if not n_up and not n_down:
        return "no evidence"
    if n_up == len(claims):
        return "helps"
    if n_down == len(claims):
        return "hurts"
    if is_ordered and n_up and claims[:n_up] == [1] * n_up:
        return "helps with few labels"
    if n_up and n_down:
        return "mixed"
    return "helps at some" if n_up else "hurts at some"


def _family_sentence(places: Sequence[_Place], first: str, second: str, what: str) -> str:
    """What was found at which places (`what` they are); never more than the claims."""
    found = {sign: [place for place in places if place.claim == sign] for sign in (1, -1, 0)}
    if not found[1] and not found[-1]:
        return (
            f"No evidence that {first} does better or worse than {second} at any of the {what} "
            f"looked at ({_figures(places)}); no difference stands after Holm's correction."
        )
    words = {1: "better at", -1: "worse at", 0: "no evidence either way at"}
    parts = [f"{words[sign]} {_figures(found[sign])}" for sign in words if found[sign]]
    return (
        f"{first[0].upper()}{first[1:]} against {second}, over the {what} looked at: "
        f"{'; '.join(parts)} (after Holm's correction)."
    )


def _figures(places: Sequence[_Place]) -> str:
    if len(places) <= _MOST_LISTED:
        return ", ".join(place.text for place in places)
    values = [place.row.value for place in places]
    return (
        f"{'; '.join(place.name for place in places)}: differences from "
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
    """Those at the setting of the primary contrast; all where there is none."""
    same = [
        row
        for row in rows
        if primary and all(getattr(row, key) == getattr(primary, key) for key in keys)
    ]
    return same or list(rows)


def _labels(tables: AuditTables, metric: str, primary: ContrastRow | None) -> list[Verdict]:
    found = []
    for opponent in ("random", "full"):
        rows = _contrasts(tables, "learning", ("reasoning", opponent), metric)
        rows = _at_setting(rows, primary, "matrix", "m", "layer", "pooling", "head")
        if not rows:
            continue
        rows = sorted(rows, key=lambda row: row.n_train_prompts)
        places = [_Place(f"{row.n_train_prompts:,}", row) for row in rows]
        sentence = _family_sentence(
            places,
            kind_in_words("reasoning"),
            kind_in_words(opponent),
            "numbers of training prompts",
        )
        answer = _family_answer(places, is_ordered=True)
        found.append(Verdict("labels", answer, sentence, is_primary=False))
    return found


def _layers(tables: AuditTables, metric: str, primary: ContrastRow | None) -> list[Verdict]:
    rows = _contrasts(tables, "layer", ("reasoning", "random"), metric)
    rows = _at_setting(rows, primary, "m", "pooling", "head")
    best = _best_layer(tables, metric, primary)
    if not rows and not best:
        return []
    rows = sorted(rows, key=lambda row: (row.pooling, row.layer))
    places = [_Place(_layer(row), row) for row in rows]
    names = (kind_in_words("reasoning"), kind_in_words("random"))
    sentence = (
        _family_sentence(places, *names, "layers")
        if places
        else "The reasoning subspace was not compared with random ones layer by layer."
    )
    return [Verdict("layers", _family_answer(places), f"{sentence}{best}", is_primary=False)]


def _best_layer(tables: AuditTables, metric: str, primary: ContrastRow | None) -> str:
    """The best layer of the full state beside the last: a description, never a claim."""
    cells = [
        cell
        for cell in tables.cells
        if (cell.sweep, cell.features, cell.metric) == ("layer", "full", metric)
        and not math.isnan(cell.value)
    ]
    cells = _at_setting(cells, primary, "pooling", "head")
    if len({cell.layer for cell in cells}) < 2:
        return ""
    last = max(cells, key=lambda cell: cell.layer)
    best = max(cells, key=lambda cell: cell.value)
    if best == last:
        return f" The full state reads best at the last one, {_layer(last)} ({_figure(last)})."
    return (
        f" The full state reads best at {_layer(best)} ({_figure(best)}), against {_figure(last)} at "
        f"the last one, {_layer(last)}; the best of {len(cells)} was picked after looking, so this "
        "is no claim."
    )


def _layer(row: ContrastRow | CellRow) -> str:
    """Layers of two poolings are two places: `layer 12, mean`."""
    return f"layer {row.layer}, {row.pooling}"


def _confidence(tables: AuditTables, metric: str, primary: ContrastRow | None) -> list[Verdict]:
    names = ("scalars+reasoning", "scalars+random")
    rows = [
        row
        for row in tables.contrasts
        if (row.first, row.second, row.metric, row.role) == (*names, metric, "exploratory")
    ]
    rows = _at_setting(rows, primary, "matrix", "m", "layer", "pooling", "head")
    if not rows:
        return []
    places = [_Place(f"m = {row.m}, {row.pooling}", row) for row in rows]
    words = map(kind_in_words, names)
    sentence = _family_sentence(places, *words, "settings")
    return [Verdict("confidence", _family_answer(places), sentence, is_primary=False)]


def _length(tables: AuditTables, primary: ContrastRow | None) -> list[Verdict]:
    cells = [
        cell
        for cell in tables.cells
        if (cell.sweep, cell.features, cell.metric)
        == ("primary", "reasoning", "length_matched_auroc")
    ]
    cells = _at_setting(cells, primary, "matrix", "m", "layer", "pooling", "head")
    return [_length_of(cell) for cell in cells]


def _length_of(cell: CellRow) -> Verdict:
    if not _has_interval(cell):
        answer, reason = "undecided", "no interval was made"
    elif cell.low > CHANCE:
        answer = "not length alone"
        reason = "the interval lies above chance, so length alone does not explain the score"
    elif cell.high < CHANCE:
        answer = "reverses at equal length"
        reason = "the interval lies below chance: at equal length, wrong answers score higher"
    else:
        answer = "may read length only"
        reason = "chance lies inside the interval, so the score may read length only"
    sentence = (
        f"Among right x wrong pairs of like length ({cell.n:,} left) the score of the reasoning "
        f"subspace (m = {cell.m}) reaches {_figure(cell)}; {reason}. One interval, not corrected "
        "for the others that were looked at."
    )
    return Verdict("length", answer, sentence, is_primary=False)


def _sanity(tables: AuditTables) -> Verdict:
    cells = [
        cell
        for cell in tables.cells
        if cell.features == "shuffled" and cell.metric in _CHANCE_IS_HALF and _has_interval(cell)
    ]
    if not cells:
        sentence = "No head was fitted on shuffled labels, so a leak would not have been seen."
        return Verdict("sanity", "not checked", sentence, is_primary=False)
    outside = [cell for cell in cells if cell.low > CHANCE or cell.high < CHANCE]
    figures = ", ".join(f"{METRICS[cell.metric].long} {_figure(cell)}" for cell in outside or cells)
    if not outside:
        sentence = f"With labels shuffled inside prompts chance lies inside, as it must: {figures}."
        return Verdict("sanity", "within chance", sentence, is_primary=False)
    sentence = (
        f"THE SET-UP LEAKS: with labels shuffled inside prompts the interval excludes chance "
        f"({figures}). Believe no other figure of this audit before the reason is found; chance "
        "alone does this to about one such interval in twenty."
    )
    return Verdict("sanity", "leaks", sentence, is_primary=False)


# -------------------------------------------------------------------------------- interventions


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
    def claim(self) -> int:
        """-1 = hurts more than random ones, 1 = less, 0 = no claim after Holm's correction."""
        row = self.row
        if not row.random_holm_p < ALPHA:  # NaN is no claim
            return 0
        is_below = row.minus_random_high < 0 and row.difference < min(self.draws)
        is_above = row.minus_random_low > 0 and row.difference > max(self.draws)
        return int(is_above) - int(is_below)

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
            f"{_span(found)}; Holm p = {_p(row.random_holm_p)}{self.beside})"
        )


def _use(rows: Sequence[InterventionRow]) -> list[Verdict]:
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
    return [_use_of(removals, f"the reasoning component{fill}")]


def _has_mean_fill(rows: Sequence[InterventionRow], row: InterventionRow) -> bool:
    """With the mean put back an effect is loss of information, not a state as never before."""
    key = (row.layers, row.point, row.spare_first, row.m, row.measure)
    return row.fill == "zero" and any(
        key == (r.layers, r.point, r.spare_first, r.m, r.measure) for r in rows if r.fill == "mean"
    )


def _use_of(removals: Sequence[_Removal], what: str) -> Verdict:
    claims = {removal.claim for removal in removals}
    answers: Mapping[frozenset[int], str] = {
        frozenset(): "no evidence",
        frozenset({-1}): "costs more than random",
        frozenset({1}): "costs less than random",
        frozenset({-1, 1}): "mixed",
    }
    answer = answers[frozenset(claims - {0})]
    others = "removing random directions of the same number"
    if answer == "no evidence":
        sentence = (
            f"No evidence that removing {what} hurts more or less than {others}: the two differ in "
            f"{_removals(removals)}."
        )
        return Verdict("use", answer, sentence, is_primary=False)
    parts = [
        f"{words} {_removals(found)}"
        for words, sign in (
            (f"hurts more than {others}, in", -1),
            (f"hurts less than {others}, in", 1),
            ("no evidence of a difference in", 0),
        )
        if (found := [removal for removal in removals if removal.claim == sign])
    ]
    sentence = f"Removing {what} {'; '.join(parts)}."
    return Verdict("use", answer, sentence, is_primary=False)


def _removals(removals: Sequence[_Removal]) -> str:
    listed = "; ".join(removal.text for removal in removals[:_MOST_LISTED])
    n_more = len(removals) - _MOST_LISTED
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
            f"{_span([row.difference for row in matched])}"
        )
    return text


# ------------------------------------------------------------------------------------- figures


def _has_interval(row: ContrastRow | CellRow) -> bool:
    return not (math.isnan(row.low) or math.isnan(row.high))


def _figure(row: ContrastRow | CellRow) -> str:
    if _has_interval(row):
        return format_interval(row.value, row.low, row.high)
    return f"{format_number(row.value)} (no interval)"


def _span(values: Sequence[float]) -> str:
    """`-.012 to -.008`, or the one value there is."""
    low, high = format_number(min(values)), format_number(max(values))
    return low if low == high else f"{low} to {high}"


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else format_number(value)
