"""What the page of audit results says of every audit, from the tables that `retrm audit` writes.

Each function is a block of docs/results/subspace_audit.md: Markdown from the measurements that are
there, and how to make those that are not.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np
from tables_in_pages import difference, figure, p_value, table

from retrm.audit.plan import AuditPlan
from retrm.audit.tables import AuditTables, CellRow, ContrastRow, InterventionRow
from retrm.audit.verdict import ALPHA
from retrm.cli.audit import duration
from retrm.metrics import format_interval, format_number
from retrm.reports.words import (
    NONE,
    POOLINGS,
    is_number,
    metric_name,
    metric_of_record,
    number,
)

_Row = TypeVar("_Row", CellRow, ContrastRow)

BEST = "best_of_n"
RANDOM = ("reasoning", "random")


@dataclass(frozen=True)
class Measurement:
    """One audit of the page.

    Attributes:
        name: of its folder below docs/results/audit.
        data: what was judged, in words.
        command: makes it.
        tables: what it found; None = not measured yet.
        folder: of the audit.
    """

    name: str
    data: str
    command: str
    tables: AuditTables | None
    folder: Path

    @property
    def label(self) -> str:
        """In a table."""
        return f"`{self.name}`"

    @property
    def found(self) -> AuditTables:
        """The tables of one that was measured."""
        assert self.tables is not None, self.name
        return self.tables

    @property
    def record(self) -> str:
        """Metric of record."""
        return metric_of_record(self.found)

    def cells(self, sweep: str, features: str, metric: str = "", **where: object) -> list[CellRow]:
        """Cells at the metric of record, or another one."""
        return _chosen(
            self.found.cells,
            {"sweep": sweep, "features": features, "metric": metric or self.record, **where},
        )

    def cell(self, sweep: str, features: str, metric: str = "", **where: object) -> CellRow | None:
        """The only such cell, or None."""
        return _only(self.cells(sweep, features, metric, **where))

    def mean(self, sweep: str, features: str, metric: str = "", **where: object) -> float:
        """Over draws; NaN without any."""
        values = [row.value for row in self.cells(sweep, features, metric, **where)]
        return float(np.mean(values)) if values else math.nan

    def contrasts(
        self, sweep: str, pair: tuple[str, str] = RANDOM, metric: str = "", **where: object
    ) -> list[ContrastRow]:
        """Contrasts at the metric of record, or another one."""
        wanted = {"sweep": sweep, "metric": metric or self.record, **where}
        return _chosen(self.found.contrasts, {**wanted, "first": pair[0], "second": pair[1]})

    def contrast(
        self, sweep: str, pair: tuple[str, str] = RANDOM, metric: str = "", **where: object
    ) -> ContrastRow | None:
        """The only such contrast, or None."""
        return _only(self.contrasts(sweep, pair, metric, **where))

    def role(self, role: str, metric: str) -> tuple[ContrastRow | None, str]:
        """A contrast that was fixed before looking, and the word of its verdict."""
        question = {"primary": "specificity", "economy": "economy"}[role]
        rows = [row for row in self.found.contrasts if row.role == role]
        answers = [v.answer for v in self.found.verdicts if v.question == question]
        # A verdict a row, in their order: see retrm.audit.verdict.
        found = [pair for pair in zip(rows, answers, strict=False) if pair[0].metric == metric]
        return found[0] if found else (None, NONE)


def _chosen(rows: Iterable[_Row], wanted: dict[str, object]) -> list[_Row]:
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]


def _only(rows: Sequence[_Row]) -> _Row | None:
    if len(rows) > 1:
        raise ValueError(f"got {len(rows)} rows such as {rows[0]}; expected one at most")
    return rows[0] if rows else None


def claim(row: ContrastRow) -> int:
    """1 = better, -1 = worse, 0 = nothing that stands after Holm's correction."""
    if not row.holm_p < ALPHA:  # NaN is no claim
        return 0
    return int(row.low > 0) - int(row.high < 0)


def _parts(
    measurements: Sequence[Measurement], make: Callable[[Measurement], str]
) -> tuple[list[str], str]:
    """What `make` says of each that was measured (nothing where it says ""), and of the others."""
    made = {m.name: make(m) for m in measurements if m.tables is not None}
    missing = [m for m in measurements if not made.get(m.name)]
    return [text for text in made.values() if text], missing_note(missing)


def missing_note(missing: Sequence[Measurement]) -> str:
    """Which measurements a block does not hold."""
    if not missing:
        return ""
    names = _listed([m.label for m in missing])
    return f"Not measured yet: {names}; the commands stand under [Make it again](#make-it-again)."


def missing_commands(measurements: Sequence[Measurement]) -> str:
    """What makes those that are missing, a line each."""
    lines = [f"- {m.label}: `{m.command}`" for m in measurements if m.tables is None]
    return "\n".join(["Not measured yet, and what makes it:", "", *lines]) if lines else ""


def joined(*parts: str) -> str:
    """Paragraphs; empty ones are left out."""
    return "\n\n".join(part for part in parts if part)


def _table_of(
    measurements: Sequence[Measurement],
    head: Sequence[str],
    make: Callable[[Measurement], list[list[str]]],
) -> str:
    """One table over all measurements."""
    rows = [row for m in measurements if m.tables is not None for row in make(m)]
    return table(head, rows) if rows else ""


def _absent(
    measurements: Sequence[Measurement], make: Callable[[Measurement], list[list[str]]]
) -> str:
    return missing_note([m for m in measurements if m.tables is None or not make(m)])


def pictures(measurements: Sequence[Measurement], name: str) -> str:
    """Links to one picture of every audit that has it."""
    links = [
        f"[{m.label}](audit/{m.name}/figures/{name}.png)"
        for m in measurements
        if (m.folder / "figures" / f"{name}.png").is_file()
    ]
    return f"Pictures: {', '.join(links)}." if links else ""


def _half_width(row: ContrastRow) -> float:
    return (row.high - row.low) / 2


# ----------------------------------------------------------------------------------- summary


def summary(measurements: Sequence[Measurement]) -> str:
    """Counts over all audits, then a sentence on each; every word follows from the tables."""
    done = [m for m in measurements if m.tables is not None]
    if not done:
        return joined("No audit is measured yet.", missing_note(measurements))
    lines = [f"- {text}" for text in (_use(done), _when(done), _how_sure(done)) if text]
    left = missing_note([m for m in measurements if m.tables is None])
    return joined("\n".join(lines), "\n".join(f"- {_sentence(m)}" for m in done), left)


def _use(done: Sequence[Measurement]) -> str:
    words = [m.role("primary", m.record)[1] for m in done]
    economy = [m.role("economy", m.record)[1] for m in done]
    return (
        f"Of {len(done)} measured: reasoning minus random subspaces of the same width "
        f"{_counted(words)}; reasoning minus the full state {_counted(economy)}."
    )


def _counted(words: Sequence[str]) -> str:
    return ", ".join(f"*{word}* {words.count(word)}" for word in dict.fromkeys(words))


def _when(done: Sequence[Measurement]) -> str:
    parts = []
    for sweep, what in (
        ("learning", "numbers of training prompts"),
        ("width", "widths and poolings"),
        ("layer", "layers and poolings"),
    ):
        claims = [claim(row) for m in done for row in m.contrasts(sweep)]
        if claims:
            parts.append(
                f"at {claims.count(1)} of {len(claims)} {what} above random, at "
                f"{claims.count(-1)} below"
            )
    return f"After Holm's correction within each audit: {'; '.join(parts)}." if parts else ""


def _how_sure(done: Sequence[Measurement]) -> str:
    rows = [row for m in done if (row := m.role("primary", m.record)[0]) is not None]
    if not rows:
        return ""
    widths = [_half_width(row) for row in rows]
    mixed = [m.found.facts["n_mixed"] for m in done]
    span = " to ".join(dict.fromkeys(f"±{format_number(f(widths))}" for f in (min, max)))
    prompts = " to ".join(dict.fromkeys(f"{f(mixed):,}" for f in (min, max)))
    return (
        f"The intervals of the primary contrast are {span} wide, over {prompts} prompts with better "
        "and worse answers: a smaller difference may be there unseen."
    )


def _sentence(m: Measurement) -> str:
    row, word = m.role("primary", m.record)
    full, economy = m.role("economy", m.record)
    text = f"{m.label} ({m.data}, {model_of(m.found)}): **{word}**."
    if row is not None:
        text += f" Reasoning minus random {_plain(row)} {metric_name(m.record)}"
        if is_number(row.rank_p):
            n_better = round(row.rank_p * (1 + row.n_draws)) - 1
            text += f"; {n_better} of {row.n_draws} random subspaces do as well or better"
        text += "."
    if full is not None:
        text += f" Minus the full state {_plain(full)}: *{economy}*."
    checks = [v.answer for v in m.found.verdicts if v.question == "sanity"]
    doubts = [answer for answer in checks if answer != "within chance"]
    return text + (f" Check with shuffled labels: **{_listed(doubts)}**." if doubts else "")


def _plain(row: ContrastRow) -> str:
    return format_interval(row.value, row.low, row.high)


def model_of(tables: AuditTables) -> str:
    """Its name without a folder."""
    return PurePath(str(tables.facts.get("model", NONE))).name


# ----------------------------------------------------------------------------------- primary


def primary(measurements: Sequence[Measurement]) -> str:
    """The figures of the primary setting, and the contrasts fixed before looking."""
    figures = _table_of(
        measurements,
        [
            *("", "model", "judged", "prompts (mixed)", "metric", "features", "full state"),
            *("reasoning", "random: mean (5 to 95 % of draws)", "semantic"),
        ],
        lambda m: [_primary_row(m)],
    )
    contrasts = _table_of(
        measurements,
        [
            *("", "reasoning − random", "rank p", "verdict", "reasoning − full", "verdict"),
            *("best of N: reasoning − full", "verdict"),
        ],
        lambda m: [_contrast_row(m)],
    )
    note = missing_note([m for m in measurements if m.tables is None])
    return joined(figures, contrasts, pictures(measurements, "contrasts"), note)


def _primary_row(m: Measurement) -> list[str]:
    facts = m.found.facts
    draws = [row.value for row in m.cells("primary", "random")]
    random = NONE
    if draws:
        low, high = np.percentile(draws, (5, 95)).tolist()
        random = f"{number(m.mean('primary', 'random'))} ({number(low)} to {number(high)})"
    return [
        *(m.label, model_of(m.found), m.data),
        f"{facts['n_prompts']:,} ({facts['n_mixed']:,})",
        *(metric_name(m.record), f"{facts['m']} of {facts['width']:,}"),
        figure(m.cell("primary", "full")),
        figure(m.cell("primary", "reasoning")),
        random,
        figure(m.cell("primary", "semantic")),
    ]


def _contrast_row(m: Measurement) -> list[str]:
    row, word = m.role("primary", m.record)
    full, economy = m.role("economy", m.record)
    best, best_word = m.role("economy", BEST)
    rank = NONE if row is None else p_value(row.rank_p)
    return [
        *(m.label, difference(row), rank, word),
        *(difference(full), economy, difference(best), best_word),
    ]


# --------------------------------------------------------------------------------- baselines


def baselines(measurements: Sequence[Measurement]) -> str:
    """Rules without a head, scalars alone, and the best layer, beside the heads of record."""
    record = _table_of(
        measurements,
        [
            *("", "coin", "shortest", "longest", "log-probability", "scalars alone"),
            *("reasoning", "full state", "full state, best layer (picked after looking)"),
        ],
        lambda m: [
            [
                *(m.label, number(0.5), *_rules(m, m.record, ("shortest", "longest"))),
                *_rules(m, m.record, ("log-probability",)),
                figure(m.cell("controls", "scalars")),
                *(figure(m.cell("primary", kind)) for kind in ("reasoning", "full")),
                _best_layer(m, m.record),
            ]
        ],
    )
    kept = _table_of(
        measurements,
        [
            *("", "pass@1", "shortest", "longest", "log-probability", "majority"),
            *("scalars alone", "reasoning", "full state", "full state, same layer as above"),
            "oracle",
        ],
        _best_of_n_row,
    )
    parts = (
        ("Metric of record (out of fold; see the first table for which):", record),
        ("Best of N (share of prompts for which the kept answer is right):", kept),
    )
    tables = [joined(title, made) for title, made in parts if made]
    return joined(*tables, missing_note([m for m in measurements if m.tables is None]))


def _rules(m: Measurement, metric: str, names: Sequence[str]) -> list[str]:
    return [figure(m.cell("primary", name, metric)) for name in names]


def _best_of_n_row(m: Measurement) -> list[list[str]]:
    facts = m.found.facts
    if facts["task"] != "graded":
        return []
    return [
        [
            *(m.label, number(facts["pass_at_1"])),
            *_rules(m, BEST, ("shortest", "longest", "log-probability", "majority")),
            figure(m.cell("controls", "scalars", BEST)),
            *(figure(m.cell("primary", kind, BEST)) for kind in ("reasoning", "full")),
            *(_best_layer(m, BEST), number(facts["oracle"])),
        ]
    ]


def _best_layer(m: Measurement, metric: str) -> str:
    """The full state where it is best in the metric of record, shown in `metric`."""
    rows = m.cells("layer", "full")
    if not rows:
        return NONE
    best = max(rows, key=lambda row: row.value)
    shown = m.cell("layer", "full", metric, layer=best.layer, pooling=best.pooling)
    return f"{figure(shown)} (layer {best.layer}, {POOLINGS[best.pooling]})"


# ------------------------------------------------------------------------------------ labels


def labels(measurements: Sequence[Measurement]) -> str:
    """The learning curve: a row a number of training prompts."""
    parts, note = _parts(measurements, _labels_of)
    return joined(*parts, pictures(measurements, "learning"), note)


def _labels_of(m: Measurement) -> str:
    sizes = sorted({row.n_train_prompts for row in m.contrasts("learning")})
    if not sizes:
        return ""
    graded = m.found.facts["task"] == "graded"
    head = [
        *("training prompts", "labels, about" if graded else "pairs, about", "full state"),
        *("reasoning", "random, mean", "reasoning − random", "Holm p"),
        *("reasoning − full", "Holm p"),
    ]
    left_out = m.found.facts.get("learning_sizes_left_out") or []
    note = f" Too few to hold right and wrong answers: {_listed(left_out)}." if left_out else ""
    rows = [_labels_row(m, size) for size in sizes]
    return joined(f"{m.label} ({metric_name(m.record)}).{note}", table(head, rows))


def _labels_row(m: Measurement, size: int) -> list[str]:
    facts = m.found.facts
    per_prompt = facts["n_answers" if facts["task"] == "graded" else "n_pairs"] / facts["n_prompts"]
    where = {"n_train_prompts": size}
    random = m.contrast("learning", RANDOM, **where)
    full = m.contrast("learning", ("reasoning", "full"), **where)
    return [
        *(f"{size:,}", f"{size * per_prompt:,.0f}"),
        figure(m.cell("learning", "full", **where)),
        figure(m.cell("learning", "reasoning", **where)),
        number(m.mean("learning", "random", **where)),
        *_with_p(random),
        *_with_p(full),
    ]


def _with_p(row: ContrastRow | None) -> tuple[str, str]:
    return difference(row), NONE if row is None else p_value(row.holm_p)


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)


# ------------------------------------------------------------------------------------- width


def widths(measurements: Sequence[Measurement]) -> str:
    """Reasoning minus random at every width, for each pooling."""
    parts, note = _parts(measurements, _widths_of)
    return joined(*parts, pictures(measurements, "width"), note)


def _widths_of(m: Measurement) -> str:
    found = m.contrasts("width")
    poolings = [p for p in POOLINGS if any(row.pooling == p for row in found)]
    if not poolings:
        return ""
    head = ["directions", "share of the width"]
    for pooling in poolings:
        name = POOLINGS[pooling]
        head += [f"{name}: reasoning", "random, mean", "reasoning − random", "Holm p"]
    rows = []
    for size in sorted({row.m for row in found}):
        row = [f"{size:,}", f"{size / m.found.facts['width']:.0%}"]
        for pooling in poolings:
            where = {"m": size, "pooling": pooling}
            row += [
                figure(m.cell("width", "reasoning", **where)),
                number(m.mean("width", "random", **where)),
                *_with_p(m.contrast("width", **where)),
            ]
        rows.append(row)
    return joined(f"{m.label} ({metric_name(m.record)}):", table(head, rows))


# ----------------------------------------------------------------------------------- choices


def choices(measurements: Sequence[Measurement]) -> str:
    """Pooling and matrix: reasoning minus random, a row a measurement."""
    poolings = _table_of(
        measurements,
        ["", *(f"{POOLINGS[p]}" for p in ("last", "mean", "max", "gate"))],
        _pooling_row,
    )
    matrices = _table_of(
        measurements,
        ["", "raw", "folded", "centred", "centred and folded"],
        _matrix_row,
    )
    titles = (
        "Reasoning − random by pooling (`last` is the primary contrast):",
        "Reasoning − random by matrix (last token, ridge head, five random subspaces each):",
    )
    both = [joined(t, made) for t, made in zip(titles, (poolings, matrices), strict=True) if made]
    return joined(
        *both,
        pictures(measurements, "overlap"),
        missing_note([m for m in measurements if m.tables is None]),
    )


def _pooling_row(m: Measurement) -> list[list[str]]:
    rows = [m.role("primary", m.record)[0]]
    rows += [m.contrast("pooling", pooling=pooling) for pooling in ("mean", "max", "gate")]
    return [[m.label, *(_cell_with_p(row) for row in rows)]]


def _matrix_row(m: Measurement) -> list[list[str]]:
    names = ("raw", "folded", "centred", "centred_folded")
    rows = [m.contrast("matrix", matrix=name, m=m.found.facts["m"]) for name in names]
    return [[m.label, *(_cell_with_p(row) for row in rows)]] if any(rows) else []


def _cell_with_p(row: ContrastRow | None) -> str:
    shown, p = _with_p(row)
    return shown if p == NONE else f"{shown} (p {p})"


# -------------------------------------------------------------------------- confidence, length


def confidence(measurements: Sequence[Measurement]) -> str:
    """Scalars with and without the subspace, and what is left at equal length."""
    scalars = _table_of(
        measurements,
        [
            *("", "scalars alone", "scalars + reasoning", "scalars + random, mean"),
            *("reasoning adds more than random by", "Holm p", "reasoning adds to scalars"),
            "Holm p",
        ],
        _scalars_row,
    )
    length = _table_of(
        measurements,
        [
            *("", "equal length: reasoning", "full state", "pairs left"),
            *("beyond length and log-probability: reasoning", "full state"),
            "finished answers only: reasoning",
        ],
        _length_row,
    )
    note = missing_note([m for m in measurements if m.tables is None])
    return joined(scalars, length, pictures(measurements, "length"), note)


def _scalars_row(m: Measurement) -> list[list[str]]:
    more = m.contrast("controls", ("scalars+reasoning", "scalars+random"))
    added = m.contrast("controls", ("scalars+reasoning", "scalars"))
    if more is None:
        return []
    return [
        [
            *(m.label, figure(m.cell("controls", "scalars"))),
            figure(m.cell("controls", "scalars+reasoning")),
            number(m.mean("controls", "scalars+random")),
            *_with_p(more),
            *_with_p(added),
        ]
    ]


def _length_row(m: Measurement) -> list[list[str]]:
    names = ("length_matched_auroc", "residual_auroc", "finished_within_auroc")
    cells = {(k, n): m.cell("primary", k, n) for k in ("reasoning", "full") for n in names}
    matched = cells["reasoning", names[0]]
    if not any(cells.values()):
        return []
    return [
        [
            *(m.label, figure(matched), figure(cells["full", names[0]])),
            NONE if matched is None else f"{matched.n:,}",
            *(figure(cells[kind, names[1]]) for kind in ("reasoning", "full")),
            figure(cells["reasoning", names[2]]),
        ]
    ]


# ------------------------------------------------------------------------------------ layers


def layers(measurements: Sequence[Measurement]) -> str:
    """At how many layers a difference stands, in which direction, and the largest one."""
    head = [
        *("", "pooling", "layers", "reasoning above random", "below", "largest difference"),
        *("Holm p", "full state: best layer", "last layer"),
    ]
    made = _table_of(measurements, head, _layer_rows)
    return joined(made, pictures(measurements, "layers"), _absent(measurements, _layer_rows))


def _layer_rows(m: Measurement) -> list[list[str]]:
    rows = []
    found = m.contrasts("layer")
    for pooling in [p for p in POOLINGS if any(row.pooling == p for row in found)]:
        here = [row for row in found if row.pooling == pooling]
        claims = [claim(row) for row in here]
        largest = max(here, key=lambda row: abs(row.value))
        full = m.cells("layer", "full", pooling=pooling)
        best = max(full, key=lambda row: row.value)
        last = max(full, key=lambda row: row.layer)
        rows.append(
            [
                *(m.label, POOLINGS[pooling], str(len(here))),
                *(str(claims.count(sign)) for sign in (1, -1)),
                *(f"{difference(largest)} (layer {largest.layer})", p_value(largest.holm_p)),
                *(f"{figure(best)} (layer {best.layer})", figure(last)),
            ]
        )
    return rows


# ----------------------------------------------------------------------------- interventions

_MEASURES = (
    *("energy_removed", "log_probability", "greedy_agreement", "within_auroc"),
    *("score_shift", "accuracy"),
)
_REMOVED = {
    "reasoning": "reasoning",
    "semantic": "semantic",
    "random": "random, mean (draws)",
    "random_energy": "random of equal energy, mean (draws)",
}


def interventions(measurements: Sequence[Measurement], command: str) -> str:
    """What removing a component changes, a table an audit and setting."""
    parts = [
        _interventions_of(m)
        for m in measurements
        if m.tables is not None and m.tables.interventions
    ]
    if not parts:
        return f"Not measured yet. It is made by `{command}`."
    return joined(*parts, pictures(measurements, "interventions"))


def _interventions_of(m: Measurement) -> str:
    rows = m.found.interventions
    measures = [name for name in _MEASURES if any(row.measure == name for row in rows)]
    settings = dict.fromkeys((row.layers, row.fill, row.spare_first) for row in rows)
    head = ["removed at", "what", "directions", *(_measure_name(name) for name in measures)]
    made = []
    for layers, fill, spare_first in settings:
        here = [row for row in rows if (row.layers, row.fill) == (layers, fill)]
        here = [row for row in here if row.spare_first == spare_first]
        spared = ", first token spared" if spare_first else ""
        made += _removal_rows(here, f"{layers} ({fill} fill{spared})", measures)
    n_rows = next((row.n for row in rows if row.measure == "log_probability"), rows[0].n)
    return joined(f"{m.label}, {n_rows:,} answers:", table(head, made))


def _measure_name(measure: str) -> str:
    # Of a trained head: other than the out-of-fold figure of the same name.
    return f"{metric_name(measure)}{' of a fitted head' if measure == 'within_auroc' else ''}"


def _removal_rows(
    rows: Sequence[InterventionRow], place: str, measures: Sequence[str]
) -> list[list[str]]:
    """The unchanged model, then what each removal changes, then reasoning minus random."""
    none = [row for row in rows if row.removed == "none"]
    cells = [figure(next((r for r in none if r.measure == name), None)) for name in measures]
    made = [[place, "nothing: the figure itself", NONE, *cells]]
    for number_, m in enumerate(dict.fromkeys(r.m for r in rows if r.removed == "reasoning")):
        n_draws = len({row.draw for row in rows if (row.removed, row.m) == ("random", m)})
        for kind, name in _REMOVED.items():
            found = [
                row for row in rows if row.removed == kind and _belongs(row, m, number_, n_draws)
            ]
            if found:
                sizes = " to ".join(dict.fromkeys(str(f(r.m for r in found)) for f in (min, max)))
                cells = [_effect([r for r in found if r.measure == each]) for each in measures]
                made.append([place, name, sizes, *cells])
        ours = [row for row in rows if (row.removed, row.m) == ("reasoning", m)]
        cells = [_against_random([r for r in ours if r.measure == each]) for each in measures]
        made.append([place, "reasoning − random", str(m), *cells])
    return made


def _belongs(row: InterventionRow, m: int, number_: int, n_draws: int) -> bool:
    """Whether a removal is one of width m, or the control of equal energy that goes with it."""
    if row.removed == "random_energy":  # has a width of its own; draws are numbered over all sizes
        return n_draws > 0 and row.draw // n_draws == number_
    return row.m == m


def _effect(rows: Sequence[InterventionRow]) -> str:
    """The change, or for removed energy the share; over several draws their mean and range."""
    if not rows:
        return NONE
    is_energy = rows[0].measure == "energy_removed"
    values = [row.value if is_energy else row.difference for row in rows]
    if len(rows) > 1:
        spread = f"{number(min(values))} to {number(max(values))}"
        return f"{number(float(np.mean(values)))} ({spread})"
    if is_energy:
        return figure(rows[0])
    return _bold_interval(rows[0].difference, rows[0].difference_low, rows[0].difference_high)


def _against_random(rows: Sequence[InterventionRow]) -> str:
    if not rows or rows[0].measure == "energy_removed":
        return NONE
    row = rows[0]
    shown = _bold_interval(row.minus_random, row.minus_random_low, row.minus_random_high)
    return shown if shown == NONE else f"{shown} (Holm p {p_value(row.random_holm_p)})"


@dataclass(frozen=True)
class _Span:
    value: float
    low: float
    high: float


def _bold_interval(value: float, low: float, high: float) -> str:
    return difference(_Span(value, low, high))


# ------------------------------------------------------------------------------------- files

_TABLES = ("cells", "contrasts", "interventions", "curves", "spectrum", "energy", "answers")


def files(measurements: Sequence[Measurement]) -> str:
    """The files of every audit, what it was made with, and how its check came out."""
    head = [
        *("", "answers (cut, left out)", "tokens", "reading", "fitting"),
        *("settings other than the default", "shuffled labels", "files", "pictures"),
    ]
    rows = [_files_row(m) for m in measurements if m.tables is not None]
    made = table(head, rows) if rows else ""
    return joined(made, missing_commands(measurements))


def _files_row(m: Measurement) -> list[str]:
    facts = m.found.facts
    check = [v.answer for v in m.found.verdicts if v.question == "sanity"]
    names = ["audit.html", "audit.json", *(f"{name}.parquet" for name in _TABLES)]
    return [
        m.label,
        f"{facts['n_answers']:,} ({facts['n_cut']:,}, {facts['n_skipped']:,})",
        f"{facts['n_tokens']:,}",
        duration(facts["reading_s"]),
        duration(facts["fitting_s"]),
        _settings(facts["settings"]),
        _listed(check) or NONE,
        _links(m, names),
        _links(m, sorted(f"figures/{path.name}" for path in m.folder.glob("figures/*.png"))),
    ]


def _links(m: Measurement, names: Sequence[str]) -> str:
    found = [name for name in names if (m.folder / name).is_file()]
    return ", ".join(f"[{PurePath(name).stem}](audit/{m.name}/{name})" for name in found) or NONE


def _settings(stored: dict[str, object]) -> str:
    """What a command or its settings file has to say to get the same plan."""
    usual = {k: list(v) if isinstance(v, tuple) else v for k, v in AuditPlan().as_dict().items()}
    other = {k: v for k, v in stored.items() if usual.get(k) != v}
    return "; ".join(f"{k} = {_value(v)}" for k, v in other.items()) or "none"


def _value(value: object) -> str:
    return _listed(value) if isinstance(value, list | tuple) else str(value)
