"""What the page of audit results says of every audit, from the tables that `retrm audit` writes.

Each function is a block of docs/results/subspace_audit.md: Markdown from the measurements that are
there, and how to make those that are not.
"""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from measurements import (
    RANDOM,
    Measurement,
    gap_note,
    joined,
    listed,
    missing_commands,
    parts_of,
    pictures,
    table_of,
)
from summary_block import model_of
from tables_in_pages import difference, table

from retrm.audit.plan import AuditPlan
from retrm.audit.rules import claim_of, rank_on_its_side
from retrm.audit.tables import ContrastRow
from retrm.reports.words import (
    NONE,
    POOLINGS,
    duration,
    figure,
    metric_name,
    number,
    p_value,
)

BEST = "best_of_n"


# ----------------------------------------------------------------------------------- primary


def primary(measurements: Sequence[Measurement]) -> str:
    """The figures of the primary setting, and the contrasts fixed before looking."""
    figures = table_of(
        measurements,
        [
            *("", "model", "judged", "prompts (mixed)", "metric", "features", "full state"),
            *("reasoning", "random: mean (5 to 95 % of draws)", "semantic"),
        ],
        lambda m: [_primary_row(m)],
    )
    contrasts = table_of(
        measurements,
        [
            *("", "reasoning − random", "rank p, its side", "p, all chance", "verdict"),
            *("reasoning − full", "p, all chance", "verdict"),
            *("best of N: reasoning − full", "verdict"),
        ],
        lambda m: [_contrast_row(m)],
    )
    ends = table_of(measurements, ["", *_ENDS.values()], _ends_row)
    if ends:
        title = (
            "Share of folds in which the chosen penalty was an end of the grid, so that a wider one "
            "might have done better. All heads have the same grid; how far it holds each of them back "
            "is not measured:"
        )
        ends = joined(title, ends)
    note = gap_note(measurements)
    return joined(figures, contrasts, ends, pictures(measurements, "contrasts"), note)


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


_ENDS = {"full": "full state", "reasoning": "reasoning", "random": "random, mean"}


def _ends_row(m: Measurement) -> list[list[str]]:
    cells = [[row.at_end for row in m.cells("primary", kind)] for kind in _ENDS]
    return [[m.label, *(f"{np.mean(ends):.0%}" if ends else NONE for ends in cells)]]


def _contrast_row(m: Measurement) -> list[str]:
    row, word = m.role("primary", m.record)
    full, economy = m.role("economy", m.record)
    best, best_word = m.role("economy", BEST)
    rank = NONE if row is None else p_value(rank_on_its_side(row))
    ps = [NONE if found is None else p_value(found.p) for found in (row, full)]
    return [
        *(m.label, difference(row), rank, ps[0], word),
        *(difference(full), ps[1], economy, difference(best), best_word),
    ]


# --------------------------------------------------------------------------------- baselines


def baselines(measurements: Sequence[Measurement]) -> str:
    """Rules without a head, scalars alone, and the best layer, beside the heads of record."""
    record = table_of(
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
    kept = table_of(
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
    return joined(*tables, gap_note(measurements))


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
    parts, note = parts_of(measurements, _labels_of)
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
    note = f" Too few to hold right and wrong answers: {listed(left_out)}." if left_out else ""
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


# ------------------------------------------------------------------------------------- width


def widths(measurements: Sequence[Measurement]) -> str:
    """Reasoning minus random at every width, for each pooling."""
    parts, note = parts_of(measurements, _widths_of)
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
    poolings = table_of(
        measurements,
        ["", *(f"{POOLINGS[p]}" for p in ("last", "mean", "max", "gate"))],
        _pooling_row,
    )
    matrices = table_of(
        measurements,
        ["", "raw", "folded", "centred", "centred and folded"],
        _matrix_row,
    )
    titles = (
        "Reasoning − random by pooling (`last` is the primary contrast):",
        "Reasoning − random by matrix (last token, ridge head):",
    )
    both = [joined(t, made) for t, made in zip(titles, (poolings, matrices), strict=True) if made]
    return joined(
        *both,
        pictures(measurements, "overlap"),
        gap_note(measurements),
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
    scalars = table_of(
        measurements,
        [
            *("", "scalars alone", "scalars + reasoning", "scalars + random, mean"),
            *("reasoning adds more than random by", "Holm p", "reasoning adds to scalars"),
            "Holm p",
        ],
        _scalars_row,
    )
    length = table_of(
        measurements,
        [
            *("", "equal length: reasoning", "full state", "pairs left"),
            *("beyond length and log-probability: reasoning", "full state"),
            *("cut answers", "finished answers only: reasoning", "full state", "random (draws)"),
        ],
        _length_row,
    )
    note = gap_note(measurements)
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
    of_pairs = m.record == "pair_accuracy"
    matched_metric = "length_matched_pair_accuracy" if of_pairs else "length_matched_auroc"
    names = (matched_metric, "residual_auroc", "finished_within_auroc")
    cells = {(k, n): m.cell("primary", k, n) for k in ("reasoning", "full") for n in names}
    matched = cells["reasoning", names[0]]
    random = m.cells("primary", "random", names[2])
    if not any(cells.values()):
        return []
    return [
        [
            *(m.label, figure(matched), figure(cells["full", names[0]])),
            NONE if matched is None else f"{matched.n:,}",
            *(figure(cells[kind, names[1]]) for kind in ("reasoning", "full")),
            f"{m.found.facts['n_cut'] / m.found.facts['n_answers']:.0%}",
            *(figure(cells[kind, names[2]]) for kind in ("reasoning", "full")),
            f"{number(m.mean('primary', 'random', names[2]))} ({len(random)})" if random else NONE,
        ]
    ]


# ------------------------------------------------------------------------------------ layers


def layers(measurements: Sequence[Measurement]) -> str:
    """At how many layers a difference stands, in which direction, and the largest one."""
    head = [
        *("", "pooling", "layers", "reasoning above random", "below", "largest difference"),
        *("Holm p", "full state: best layer", "last layer"),
    ]
    made = table_of(measurements, head, _layer_rows)
    return joined(made, pictures(measurements, "layers"), gap_note(measurements, _layer_rows))


def _layer_rows(m: Measurement) -> list[list[str]]:
    rows = []
    found = m.contrasts("layer")
    for pooling in [p for p in POOLINGS if any(row.pooling == p for row in found)]:
        here = [row for row in found if row.pooling == pooling]
        claims = [claim_of(row) for row in here]
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


# ------------------------------------------------------------------------------------- files

_TABLES = ("cells", "contrasts", "interventions", "curves", "spectrum", "energy", "answers")


def files(measurements: Sequence[Measurement]) -> str:
    """The files of every audit, what it was made with, and how its check came out."""
    head = [
        *("", "answers (cut, left out)", "tokens", "reading", "fitting"),
        *("settings other than the default", "shuffled labels", "files", "pictures"),
    ]
    rows = [_files_row(m) for m in measurements if m.tables is not None]
    # No time where another run read the states than the one that fitted the heads.
    times = any(
        m.found.facts["reading_s"] is not None for m in measurements if m.tables is not None
    )
    shown = [i for i, name in enumerate(head) if times or name != "reading"]
    made = table([head[i] for i in shown], [[row[i] for i in shown] for row in rows])
    return joined(made if rows else "", missing_commands(measurements))


def _files_row(m: Measurement) -> list[str]:
    facts = m.found.facts
    check = [v.answer for v in m.found.verdicts if v.question == "sanity"]
    names = ["audit.json", *(f"{name}.parquet" for name in _TABLES)]
    return [
        m.label,
        f"{facts['n_answers']:,} ({facts['n_cut']:,}, {facts['n_skipped']:,})",
        f"{facts['n_tokens']:,}",
        NONE if facts["reading_s"] is None else duration(facts["reading_s"]),
        duration(facts["fitting_s"]),
        _settings(facts["settings"]),
        listed(check) or NONE,
        _links(m, names),
        _links(m, sorted(f"figures/{path.name}" for path in m.folder.glob("figures/*.png"))),
    ]


def _links(m: Measurement, names: Sequence[str]) -> str:
    found = [name for name in names if (m.folder / name).is_file()]
    return ", ".join(f"[{PurePath(name).stem}](audit/{m.name}/{name})" for name in found) or NONE


def _settings(stored: dict[str, object]) -> str:
    """What a command or its settings file has to say to get the same plan."""
    usual = AuditPlan().as_dict()
    other = {k: v for k, v in stored.items() if usual.get(k) != v}
    return "; ".join(f"{k} = {_value(v)}" for k, v in other.items()) or "none"


def _value(value: object) -> str:
    return listed(value) if isinstance(value, list | tuple) else str(value)
