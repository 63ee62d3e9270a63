"""What the intervals of an audit allow one to say, in words, and nothing beyond.

A verdict is a rule on figures of the tables; it never sees a score, and it never picks the best cell.

    specificity   reasoning minus the mean of random subspaces of the same width (role `primary`)
                  `helps`                  low > 0, and rank p <= .025
                  `hurts`                  high < 0, and rank p from below <= .025
                  `within the spread of random`  the interval excludes 0, but that many of the random
                                           subspaces do as well (or as badly)
                  `too few draws`          the interval excludes 0, but fewer than 39 random subspaces
                                           were drawn, with which no rank p can be .025
                  `no better than random`  -0.01 <= low and high <= 0.01, and none of the above
                  `undecided`              anything else, or no interval
    economy       reasoning minus the full state (role `economy`)
                  `worse than full`        high < 0
                  `within margin`          low >= -0.01
                  `worse than full, within margin`  both hold
                  `undecided`              neither, or no interval
    sanity        features with labels shuffled inside prompts, against chance
                  `within chance`, `leaks` (p < .01 after Holm's correction over the heads that were
                  checked), `not checked`
    labels        reasoning against random, by training prompts
    layers        reasoning against random at each layer, a verdict a pooling
    confidence_random  scalars with reasoning against scalars with random
                  for these three: `helps`, `hurts`, `helps with few labels` (at the smallest numbers
                  of training prompts only), `helps at some`, `hurts at some`, `mixed`, `no evidence`
    labels_full   reasoning against the full state, by training prompts
    confidence    scalars with reasoning against scalars alone
                  for these two the answer names the opponent, for any few directions may beat it:
                  `better than full with few labels`, `better than scalars alone`, `worse than ...`
    length        pairs of like length: `not length alone` (above .5, and above `shortest` and `longest`
                  on the same pairs), `may read length only` (not so), `reverses at equal length`
                  (below .5 and both), `undecided`
    use           removing the component against removing random ones of the same number:
                  `costs more than random`, `costs less than random`, `mixed`, `no evidence`,
                  `too few draws`

The rank is asked for since the interval resamples prompts only: a random subspace is better or worse
than the mean of its kind too. With a signal planted in a random subspace the interval alone claimed a
difference in 15 of 40 runs. Half of .05 belongs to each side, for both are claimed. The p of all sources
of chance together (see `retrm.audit.tables.ContrastRow.p`) stands beside, and decides nothing. All
intervals hold the heads fixed; nothing is fitted again in a resample.

Specificity and economy are fixed before looking and are the only primary ones. For what the others need
to claim anything see `retrm.audit.explored` and `retrm.audit.use`; anything less is worded as no
evidence, which is not evidence of no effect. "Reasoning subspace" is the field's name for the smallest
right singular directions of the LM head; no verdict says what they hold.

>>> from retrm.audit.tables import AuditTables
>>> [v.answer for v in verdicts(AuditTables(facts={})) if v.is_primary]
['undecided', 'undecided']
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from retrm.audit.explored import explored_verdicts
from retrm.audit.rules import (
    ALPHA_A_SIDE,
    CHANCE,
    DRAWS_FOR_A_CLAIM,
    MARGIN,
    has_interval,
    is_below,
    is_within_margin,
    n_as_far_out,
    rank_on_its_side,
)
from retrm.audit.tables import AuditTables, CellRow, ContrastRow, Verdict
from retrm.audit.use import use_verdicts
from retrm.audit.words import METRICS, figure_in_words, kind_in_words, named_p
from retrm.errors import DataError, did_you_mean
from retrm.metrics import format_number, holm, student_quantile, welch_p_value

LEAK_ALPHA = 0.01  # one audit in a hundred is called leaky by chance

_CHANCE_IS_HALF = ("within_auroc", "pair_accuracy")


def verdicts(tables: AuditTables) -> tuple[Verdict, ...]:
    """All verdicts, the primary ones first; what was not measured makes no exploratory verdict.

    Args:
        tables: of an audit; `verdicts` in it is not read.

    Raises:
        DataError: a contrast that decides is in a metric of which less is better, or an unknown one.
    """
    primary = next((row for row in tables.contrasts if row.role == "primary"), None)
    checked = _sanity(tables)
    record = _known_metric(str(tables.facts.get("metric", primary.metric if primary else "")))
    fixed = [
        *_fixed(tables, "specificity", "primary", "random ones of the same width", _specificity),
        *_fixed(tables, "economy", "economy", "the full state", _economy),
    ]
    if checked.answer == "leaks":
        warning = " The check with shuffled labels failed, so this cannot be trusted yet."
        fixed = [replace(verdict, sentence=verdict.sentence + warning) for verdict in fixed]
    looked = (*explored_verdicts(tables, record), *use_verdicts(tables.interventions))
    return (*fixed, checked, *looked)


# ------------------------------------------------------------------------ fixed before looking


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
    answer = _specificity_answer(row) if has_interval(row) else "undecided"
    reason = {
        "helps": "The whole interval lies above 0, and hardly any random subspace does as well: it "
        "helps",
        "hurts": "The whole interval lies below 0, and hardly any random subspace does as badly: it "
        "hurts",
        "within the spread of random": "The interval excludes 0, but single random subspaces lie as "
        "far from their mean: within the spread of random",
        "too few draws": "The interval excludes 0, but a claim needs the rank among "
        f"{DRAWS_FOR_A_CLAIM} random subspaces or more: too few draws",
        "no better than random": f"The interval lies within ±{format_number(MARGIN)} and does not "
        "exclude 0: no better than random",
        "undecided": f"The interval neither excludes 0 nor lies within ±{format_number(MARGIN)}: "
        "undecided",
    }[answer]
    if answer in ("helps", "hurts") and is_within_margin(row.low, row.high):
        reason += f", by less than {format_number(MARGIN)}"
    sentence = f"{_difference(row, tables)}{_rank(row)}{_all_chance(row)}. {_reason(row, reason)}."
    return Verdict("specificity", answer, sentence, is_primary=True, subject=row.metric)


def _specificity_answer(row: ContrastRow) -> str:
    if row.low <= 0 <= row.high:
        return "no better than random" if is_within_margin(row.low, row.high) else "undecided"
    if row.n_draws < DRAWS_FOR_A_CLAIM:
        return "too few draws"
    if rank_on_its_side(row) <= ALPHA_A_SIDE:  # NaN is no claim
        return "helps" if row.low > 0 else "hurts"
    return "within the spread of random"


def _economy(row: ContrastRow, tables: AuditTables) -> Verdict:
    margin = format_number(MARGIN)
    answer = _economy_answer(row.low, row.high) if has_interval(row) else "undecided"
    reason = {
        "within margin": f"At the low end it loses no more than the margin of {margin}: within margin"
        + (", and the whole interval lies above 0" if row.low > 0 else ""),
        "worse than full": "The whole interval lies below 0 and reaches beyond the margin of "
        f"{margin}: worse than full",
        "worse than full, within margin": "The whole interval lies below 0, so it is worse than "
        f"full, but by no more than the margin of {margin} at the low end",
        "undecided": f"The interval includes 0 and reaches beyond the margin of {margin}: undecided",
    }[answer]
    sentence = f"{_difference(row, tables)}{_all_chance(row)}. {_reason(row, reason)}."
    return Verdict("economy", answer, sentence, is_primary=True, subject=row.metric)


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
        f"{second} is {figure_in_words(row)}{_over(row, tables)}"
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
    n_beyond, side = n_as_far_out(row), "bad" if is_below(row) else "good"
    return (
        f"; {n_beyond} of {row.n_draws} random subspaces {_are(n_beyond)} at least as {side} "
        f"({named_p(rank_on_its_side(row), 'rank p')} on that side)"
    )


def _all_chance(row: ContrastRow) -> str:
    """The p that knows prompts, draws and repetitions; the interval knows prompts alone."""
    if math.isnan(row.p):
        return ""
    return f"; all sources of chance together: {named_p(row.p)}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _reason(row: ContrastRow, reason: str) -> str:
    return reason if has_interval(row) else "No interval was made: undecided"


def _known_metric(metric: str) -> str:
    """The metric of record, `within_auroc` where the tables name none."""
    known = [name for name, words in METRICS.items() if words.is_better_high]
    if metric and metric not in known:
        raise DataError(
            f"got a verdict asked for in {metric!r}; expected a metric of which more is better. "
            + did_you_mean(metric, known)
        )
    return metric or "within_auroc"


# ----------------------------------------------------------------------------------- sanity


def _sanity(tables: AuditTables) -> Verdict:
    """The mean over many shufflings must lie at chance, for each kind of head."""
    cells = [
        cell
        for cell in tables.cells
        if cell.features == "shuffled" and cell.metric in _CHANCE_IS_HALF and has_interval(cell)
    ]
    if not cells:
        sentence = "No head was fitted on shuffled labels, so a leak would not have been seen."
        return Verdict("sanity", "not checked", sentence, is_primary=False)
    adjusted = holm([_chance_p(cell, tables) for cell in cells])
    outside = [cell for cell, p in zip(cells, adjusted, strict=True) if p < LEAK_ALPHA]
    figures = ", ".join(
        f"{METRICS[cell.metric].long} {figure_in_words(cell)} ({cell.head} head)"
        for cell in outside or cells
    )
    if not outside:
        sentence = (
            f"With labels shuffled inside prompts no head is told apart from chance: {figures}."
        )
        sentence += _excluding_chance(cells, adjusted)
        return Verdict("sanity", "within chance", sentence, is_primary=False)
    sentence = (
        f"THE SET-UP LEAKS: with labels shuffled inside prompts a head is not at chance ({figures}). "
        "Believe no other figure of this audit before the reason is found; chance alone does this in "
        "one audit of a hundred."
    )
    return Verdict("sanity", "leaks", sentence, is_primary=False)


def _excluding_chance(cells: Sequence[CellRow], adjusted: Sequence[float]) -> str:
    """Intervals that leave chance out although no head is called leaky: said, with the figure."""
    found = [
        f"of the {cell.head} head, {figure_in_words(cell)}, excludes {format_number(CHANCE)} "
        f"({named_p(p)} after Holm's correction)"
        for cell, p in zip(cells, adjusted, strict=True)
        if not cell.low <= CHANCE <= cell.high
    ]
    if not found:
        return ""
    return f" Yet the interval {' and that '.join(found)}: by chance, one head in twenty."


def _chance_p(cell: CellRow, tables: AuditTables) -> float:
    """Two-sided p of being at chance, from the width of the interval.

    It is one of Student's t over the shuffles where the facts say how many there were.
    """
    shuffles = tables.facts.get("n_shuffles", {}).get(cell.head)
    df = shuffles - 1 if shuffles else math.inf
    error = (cell.high - cell.low) / 2 / student_quantile(0.05, df)
    return welch_p_value(cell.value - CHANCE, [(error, df)])[0]
