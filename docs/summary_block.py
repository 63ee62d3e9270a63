"""What the page of audit results says first: what is solid over all audits, what is not, and each set.

Every name, count and figure follows from the tables, so that a further audit changes the text.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import PurePath
from statistics import median

from measurements import Measurement, joined, listed, missing_note

from retrm.audit.rules import (
    ALPHA,
    claim_of,
    has_interval,
    is_below,
    n_as_far_out,
    rank_on_its_side,
)
from retrm.audit.tables import AuditTables, ContrastRow
from retrm.audit.words import named_p
from retrm.metrics import format_interval, format_number, student_quantile
from retrm.reports.words import NONE, POOLINGS, is_number, metric_name

_RULES = ("shortest", "longest", "log-probability")
_SWEEPS = {
    "learning": "numbers of training prompts",
    "width": "widths and poolings",
    "layer": "layers and poolings",
}


def summary(measurements: Sequence[Measurement]) -> str:
    """What holds over all audits, then a sentence on each."""
    done = [m for m in measurements if m.tables is not None]
    left = missing_note([m for m in measurements if m.tables is None])
    if not done:
        return joined("No audit is measured yet.", left)
    first = (_against_full(done), _against_random(done), _against_rules(done))
    beside = (_ridge(done), _poolings(done), _when(done), _needed(done), _how_sure(done))
    return joined(
        "\n".join(f"- {text}" for text in first if text),
        "Beside these:",
        "\n".join(f"- {text}" for text in beside if text),
        "Each set by itself:",
        "\n".join(f"- {_sentence(m)}" for m in done),
        left,
    )


def model_of(tables: AuditTables) -> str:
    """Its name without a folder."""
    return PurePath(str(tables.facts.get("model", NONE))).name


def _plain(row: ContrastRow) -> str:
    return format_interval(row.value, row.low, row.high)


# ------------------------------------------------------------------- the contrasts that were fixed


def _against_full(done: Sequence[Measurement]) -> str:
    words = [m.role("economy", m.record)[1] for m in done]
    worse = sum(word.startswith("worse") for word in words)
    head = f"worse than the full state on {worse} of {len(done)} sets"
    return f"**{'Solid' if worse else 'Not solid'}: {head}.** {_by_word(done, 'economy', _plain)}."


def _against_random(done: Sequence[Measurement]) -> str:
    """A claim is by the rule; solid, where the p of all sources of chance agrees."""
    roles = [m.role("primary", m.record) for m in done]
    claims = [row for row, word in roles if row is not None and word in ("helps", "hurts")]
    n_sure = sum(row.p <= ALPHA for row in claims)
    head = f"told apart by the rule on {len(claims)} of {len(done)} sets" + (
        f", with p of {format_number(ALPHA)} or less for all sources of chance together on {n_sure}"
        if claims
        else ""
    )
    name = "better or worse than random directions"
    solid = "Solid on some" if n_sure else "Not solid"
    each = _by_word(done, "primary", lambda row: f"{_plain(row)}, {_p(row)}")
    return f"**{solid}: {name}** ({head}). {each}."


def _p(row: ContrastRow) -> str:
    return named_p(row.p) if is_number(row.p) else "no p"


def _by_word(done: Sequence[Measurement], role: str, show: Callable[[ContrastRow], str]) -> str:
    """`*hurts*: DEMO -.031 [...]; *undecided*: ...`."""
    groups: dict[str, list[str]] = {}
    for m in done:
        row, word = m.role(role, m.record)
        shown = f"{m.label} ({show(row)})" if row is not None else m.label
        groups.setdefault("not measured" if row is None else word, []).append(shown)
    return "; ".join(f"*{word}*: {listed(sets)}" for word, sets in groups.items())


def _against_rules(done: Sequence[Measurement]) -> str:
    """Where ordering by a rule does as well as a head, by the figures alone."""
    found: dict[str, list[str]] = {"reasoning": [], "full": []}
    for m in done:
        rules = {name: m.cell("primary", name) for name in _RULES}
        values = {name: cell.value for name, cell in rules.items() if cell is not None}
        for kind, sets in found.items():
            head = m.cell("primary", kind)
            best = max(values, key=lambda name: values[name], default="")
            if head is not None and best and values[best] >= head.value:
                gap = f"{best} {format_number(values[best])}, head {format_number(head.value)}"
                sets.append(f"{m.label} ({gap})")
    names = {"reasoning": "reasoning", "full": "the full state"}
    parts = [
        f"the head on {names[kind]} for {listed(sets)}" for kind, sets in found.items() if sets
    ]
    if not parts:
        return "No rule without a head orders answers as well as these heads on any set."
    return (
        "**Where a rule that needs no head does as well, do not use the head at all.** Log-probability, "
        f"or the shorter or longer answer, orders at least as well as {'; as '.join(parts)} "
        "(last layer and token; figures side by side, without an interval of the difference)."
    )


# ------------------------------------------------------------------------------ beside the contrasts


def _ridge(done: Sequence[Measurement]) -> str:
    rows = {m.label: m.contrast("matrix", matrix="raw", m=m.found.facts["m"]) for m in done}
    found = {label: row for label, row in rows.items() if row is not None and has_interval(row)}
    if not found:
        return ""
    n_open = sum(row.low <= 0 <= row.high for row in found.values())
    each = listed([f"{label} {_plain(row)}" for label, row in found.items()])
    return (
        "Another solver: with ridge heads instead of logistic ones, all else as fixed, the interval of "
        f"reasoning − random holds 0 on {n_open} of {len(found)} sets: {each}."
    )


def _poolings(done: Sequence[Measurement]) -> str:
    """Differences whose interval leaves 0 out under another pooling; mostly none of them a claim."""
    every, parts = [], []
    for m in done:
        rows = [row for row in m.contrasts("pooling") if has_interval(row)]
        every += rows
        sure = [row for row in rows if not row.low <= 0 <= row.high]
        parts += [f"{m.label} {POOLINGS[row.pooling]} {_plain(row)}" for row in sure]
    if not every:
        return ""
    fixed = {m.label: m.role("primary", m.record)[0] for m in done}
    turned = sum(
        is_below(row) != is_below(first)
        for m in done
        if (first := fixed[m.label]) is not None
        for row in m.contrasts("pooling")
    )
    n_claims = sum(claim_of(row) != 0 for row in every)
    each = f"; their interval leaves 0 out for {listed(parts)}" if parts else ""
    return (
        f"Other poolings turn the sign of reasoning − random in {turned} of {len(every)} cases{each}. "
        f"After Holm's correction {n_claims} of them stand."
    )


def _when(done: Sequence[Measurement]) -> str:
    parts = []
    for sweep, what in _SWEEPS.items():
        claims = [claim_of(row) for m in done for row in m.contrasts(sweep)]
        if claims:
            parts.append(
                f"at {claims.count(1)} of {len(claims)} {what} above random, at "
                f"{claims.count(-1)} below"
            )
    return f"After Holm's correction within each audit: {'; '.join(parts)}." if parts else ""


def _needed(done: Sequence[Measurement]) -> str:
    """That nothing stands is not that nothing is there: how large a difference would have had to be."""
    sizes = {m.label: needed_difference(m) for m in done}
    shown = [f"{label} {format_number(size)}" for label, size in sizes.items() if is_number(size)]
    if not shown:
        return ""
    return (
        "Holm's correction over so many differences sees only large ones. To stand beside those that "
        "do, a typical (median) reasoning − random at another width or number of training prompts would "
        f"have had to reach ±: {listed(shown)}. "
        "Smaller ones are not established, and not excluded."
    )


def needed_difference(m: Measurement) -> float:
    """The median over widths and training prompts of the size at which Holm's next step claims it.

    The standard error of a row follows from its p and degrees of freedom; the next step divides the
    level by the number of differences that do not stand. NaN without such rows.
    """
    family = [
        row
        for row in m.found.contrasts
        if row.role == "exploratory" and row.metric == m.record and is_number(row.holm_p)
    ]
    level = ALPHA / max(1, sum(row.holm_p >= ALPHA for row in family))
    ours = [*m.contrasts("learning"), *m.contrasts("width")]
    sizes = [size_at(row, level) for row in ours if 0 < row.p < 1 and row.value != 0]
    return median(sizes) if sizes else math.nan


def size_at(row: ContrastRow, level: float) -> float:
    """The difference that would have this two-sided p, its errors as they are."""
    error = abs(row.value) / student_quantile(row.p, row.df)
    return error * student_quantile(level, row.df)


def _how_sure(done: Sequence[Measurement]) -> str:
    rows = [row for m in done if (row := m.role("primary", m.record)[0]) is not None]
    if not rows:
        return ""
    widths = [(row.high - row.low) / 2 for row in rows]
    mixed = [m.found.facts["n_mixed"] for m in done]
    span = " to ".join(dict.fromkeys(f"±{format_number(f(widths))}" for f in (min, max)))
    prompts = " to ".join(dict.fromkeys(f"{f(mixed):,}" for f in (min, max)))
    return (
        f"The intervals of the primary contrast are {span} wide, over {prompts} prompts with better "
        "and worse answers: a smaller difference may be there unseen."
    )


# ------------------------------------------------------------------------------------ one audit


def _sentence(m: Measurement) -> str:
    row, word = m.role("primary", m.record)
    full, economy = m.role("economy", m.record)
    text = f"{m.label} ({m.data}, {model_of(m.found)}): **{word}**."
    if row is not None:
        text += f" Reasoning minus random {_plain(row)} {metric_name(m.record)}"
        if row.n_draws and is_number(row.rank_p):
            side = "badly or worse" if is_below(row) else "well or better"
            rank = named_p(rank_on_its_side(row), "rank p")
            text += f"; {n_as_far_out(row)} of {row.n_draws} random subspaces do as {side} ({rank})"
        text += f"; all sources of chance together: {_p(row)}."
    if full is not None:
        text += f" Minus the full state {_plain(full)}: *{economy}*."
    n_cut, n_answers = m.found.facts["n_cut"], m.found.facts["n_answers"]
    if n_cut:
        text += f" {n_cut / n_answers:.0%} of the answers are cut."
    checks = [v.answer for v in m.found.verdicts if v.question == "sanity"]
    doubts = [answer for answer in checks if answer != "within chance"]
    return text + (f" Check with shuffled labels: **{listed(doubts)}**." if doubts else "")
