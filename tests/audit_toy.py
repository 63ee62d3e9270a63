"""A made-up audit with every table filled, for tests of what is drawn and written from one."""

import math
from dataclasses import replace
from itertools import product

import numpy as np

from retrm.audit.tables import (
    AnswerRow,
    AuditTables,
    CellRow,
    ContrastRow,
    CurveRow,
    DirectionRow,
    EnergyRow,
    InterventionRow,
    OverlapRow,
    SpectrumRow,
    Verdict,
)

WIDTH, M, N_LAYERS, N_DRAWS, N_PROMPTS = 64, 4, 6, 20, 40
NAN = math.nan
_LIFT = {
    **{"full": 0.16, "semantic": 0.05, "middle": 0.07, "pca_top": 0.06, "pca_bottom": 0.02},
    **{"reasoning": 0.08, "random": 0.07, "coordinates": 0.04, "scalars": 0.1, "band": 0.06},
}


def cell(
    sweep: str,
    features: str,
    *,
    m: int = M,
    draw: int = 0,
    offset: int = -1,
    layer: int = N_LAYERS,
    pooling: str = "last",
    head: str = "logistic",
    n_train_prompts: int = 32,
    metric: str = "within_auroc",
    value: float | None = None,
) -> CellRow:
    """A cell whose value depends on its setting only."""
    if value is None:
        value = 0.55 + _LIFT.get(features, 0.05) + 0.03 * math.log2(m or 1) / 6
        value += 0.01 * math.sin(7 * draw + m + layer) + 0.02 * (pooling == "mean")
        value += 0.03 * math.log2(n_train_prompts / 32) + 0.04 * math.sin(layer / 2)
        value += 0.02 * math.sin(offset / 9)
        value = round(value, 4)
    has_interval = features != "random"
    return CellRow(
        sweep=sweep,
        features=features,
        matrix="-" if features in ("full", "random", "scalars") or head == "-" else "raw",
        m=m,
        draw=draw,
        offset=offset,
        layer=layer,
        pooling=pooling,
        head=head,
        scaling="standardised",
        n_train_prompts=n_train_prompts,
        metric=metric,
        value=value,
        low=value - 0.03 if has_interval else NAN,
        high=value + 0.03 if has_interval else NAN,
        n=320,
        n_prompts=N_PROMPTS,
        n_undefined=0,
        at_end=NAN if head == "-" else 0.05,
    )


def toy_cells(metric: str = "within_auroc") -> tuple[CellRow, ...]:
    """Cells of every sweep in one metric."""
    draws, rows = range(N_DRAWS), []
    for kind in ("reasoning", "semantic", "middle", "pca_top", "pca_bottom", "coordinates"):
        rows += [cell("primary", kind)]
        for m, pooling in product((8, 16, 32), ("last", "mean")):
            rows.append(cell("width", kind, m=m, pooling=pooling))
        rows += [cell("width", kind), cell("width", kind, pooling="mean")]
    for m, pooling, draw in product((M, 8, 16, 32), ("last", "mean"), draws):
        rows.append(cell("width", "random", m=m, draw=draw, pooling=pooling))
    rows += [cell("width", "full", m=WIDTH, pooling=p) for p in ("last", "mean")]
    rows += [cell("primary", "full", m=WIDTH)]
    rows += [cell("primary", "random", draw=draw) for draw in draws]
    rows += [cell("band", "band", offset=offset) for offset in range(0, WIDTH - M + 1, 5)]
    for layer, pooling in product(range(N_LAYERS + 1), ("last", "mean")):
        here = {"layer": layer, "pooling": pooling}
        rows += [cell("layer", kind, **here) for kind in ("reasoning", "semantic")]
        rows += [cell("layer", "full", m=WIDTH, **here)]
        rows += [cell("layer", "random", draw=draw, **here) for draw in range(5)]
    for n in (4, 8, 16, 32):
        rows += [cell("learning", "reasoning", n_train_prompts=n)]
        rows += [cell("learning", "full", m=WIDTH, n_train_prompts=n)]
        rows += [cell("learning", "random", draw=d, n_train_prompts=n) for d in range(10)]
        rows += [cell("learning", "scalars", m=10, layer=-1, pooling="-", n_train_prompts=n)]
    rows += [replace(cell("matrix", "reasoning"), matrix=name) for name in ("raw", "centred")]
    return tuple(replace(row, metric=metric) for row in [*rows, *_controls()])


def _controls() -> list[CellRow]:
    none = {"m": 0, "layer": -1, "pooling": "-"}
    baselines = {"log-probability": 0.66, "shortest": 0.61, "longest": 0.39}
    return [
        *(cell("primary", k, head="-", value=v, **none) for k, v in baselines.items()),
        cell("controls", "scalars", m=10, layer=-1, pooling="-"),
        cell("controls", "scalars+reasoning", m=10 + M),
        cell("controls", "shuffled", value=0.5021),
    ]


def contrast(role: str = "exploratory", **changes: object) -> ContrastRow:
    """A paired difference, of which anything can be changed."""
    row = ContrastRow(
        **{"role": role, "sweep": "primary", "matrix": "raw", "m": M, "layer": N_LAYERS},
        **{"pooling": "last", "head": "logistic", "n_train_prompts": 32},
        **{"metric": "within_auroc", "first": "reasoning", "second": "random"},
        **{"value": 0.004, "low": -0.013, "high": 0.021},
        **{"n_prompts": N_PROMPTS, "n_draws": N_DRAWS, "rank_p": 0.33},
        **{"p": 0.6, "df": 30.0, "holm_p": NAN},
    )
    return replace(row, **changes)


def toy_contrasts(metric: str = "within_auroc") -> tuple[ContrastRow, ...]:
    """Exploratory ones first, as a careless writer might leave them."""
    away = {"second": "full", "value": -0.081, "low": -0.102, "high": -0.06, "n_draws": 0}
    return tuple(
        replace(row, metric=metric)
        for row in (
            contrast(pooling="mean", value=0.012, low=-0.004, high=0.028, holm_p=0.71),
            contrast("economy", **away, rank_p=NAN),
            contrast("primary"),
            contrast(second="semantic", value=0.03, low=0.01, high=0.05, n_draws=0, holm_p=0.04),
        )
    )


def toy_spectrum() -> tuple[SpectrumRow, ...]:
    """Three matrices with falling singular values."""
    return tuple(
        SpectrumRow(matrix, i, scale * 100.0 * (i + 1) ** -0.7)
        for matrix, scale in (("raw", 1.0), ("folded", 1.6), ("centred", 0.8))
        for i in range(WIDTH)
    )


def toy_directions() -> tuple[DirectionRow, ...]:
    """Every direction of the raw head."""
    return tuple(
        DirectionRow(i, 100.0 * (i + 1) ** -0.7, 0.3 * math.sin(i), 1 / (i + 1) / 4.7, 1 / WIDTH)
        for i in range(WIDTH)
    )


def toy_energy() -> tuple[EnergyRow, ...]:
    """Every layer and kind of token; the first token lies in the reasoning subspace."""
    shares = {"first": 0.6, "early": 0.2, "prompt": 0.05, "content": 0.06, "punctuation": 0.07}
    return tuple(
        EnergyRow(layer, kind, 40, M, share * (1 + layer / 10), 0.2 - layer / 50, 3.0 + layer)
        for kind, share in {**shares, "end": 0.09}.items()
        for layer in range(N_LAYERS + 1)
    )


def toy_answers(task: str = "graded") -> tuple[AnswerRow, ...]:
    """Eight answers to each prompt; longer ones are wrong more often."""
    rng = np.random.default_rng(5)
    rows = []
    for i in range(N_PROMPTS * 8):
        n_tokens = int(rng.integers(10, 90))
        label = NAN if task == "preferences" else float(rng.random() > n_tokens / 100)
        score = 0.5 * (0 if math.isnan(label) else label) - n_tokens / 60 + rng.normal()
        other = float(score + rng.normal())
        rows.append(
            AnswerRow(i, f"p{i // 8}", label, n_tokens, 1.0, float(score), other, other, -0.4)
        )
    return tuple(rows)


def toy_curves() -> tuple[CurveRow, ...]:
    """Best of 1 to 8."""
    tops = {"reasoning": 0.4, "full": 0.5, "random": 0.39, "log-probability": 0.36, "oracle": 0.63}
    rows = [
        CurveRow(name, k, v, v - 0.03, v + 0.03)
        for name, top in tops.items()
        for k in range(1, 9)
        for v in [round(0.2 + (top - 0.2) * math.log2(k) / 3, 4)]
    ]
    return (*rows, *(CurveRow("majority", k, 0.2 + 0.007 * k, NAN, NAN) for k in range(1, 9)))


def toy_interventions() -> tuple[InterventionRow, ...]:
    """Two measures, two places, three random draws."""
    rows = []
    for measure, base, unit in (("accuracy", 0.3, 1.0), ("log_probability", -0.5, 2.0)):
        rows.append(removal("all", "none", 0, measure, base))
        for layers, scale in (("3-5", 0.5), ("last", 1.0)):
            rows.append(removal(layers, "reasoning", 0, measure, base - 0.02 * scale * unit))
            rows.append(removal(layers, "semantic", 0, measure, base - 0.2 * scale * unit))
            for d in range(3):
                lost = (0.01 + d / 100) * scale * unit
                rows.append(removal(layers, "random", d, measure, base - lost))
    return tuple(rows)


def removal(
    layers: str, removed: str, draw: int, measure: str, value: float, **changes: object
) -> InterventionRow:
    """A removal without any comparison, of which anything can be changed."""
    row = InterventionRow(
        **{"layers": layers, "removed": removed, "m": 0 if removed == "none" else M, "draw": draw},
        **{"fill": "zero", "spare_first": False, "point": "residual", "measure": measure},
        **{"value": value, "low": value - 0.04, "high": value + 0.04},
        **dict.fromkeys(("difference", "difference_low", "difference_high"), NAN),
        **dict.fromkeys(("minus_random", "minus_random_low", "minus_random_high"), NAN),
        **{"rank_p": NAN, "random_p": NAN, "random_holm_p": NAN, "n": 100},
    )
    return replace(row, **changes)


def toy_overlap() -> tuple[OverlapRow, ...]:
    """Three bases."""
    pairs = (("raw", "folded", 0.31), ("raw", "centred", 0.97), ("folded", "centred", 0.29))
    return tuple(OverlapRow(first, second, M, value) for first, second, value in pairs)


def toy_facts(task: str = "graded", metric: str = "within_auroc") -> dict[str, object]:
    """What an audit records about itself."""
    return {
        **{"model": "smollm2-135m", "data": "demo/rollouts.jsonl.gz", "task": task},
        **{"metric": metric, "n_answers": 320, "n_prompts": N_PROMPTS, "n_mixed": 31},
        **{"n_pairs": 0 if task == "graded" else 160, "n_cut": 12, "n_skipped": 3},
        **{"n_truncated": 0, "n_tokens": 15_872, "reading_s": 94.2, "fitting_s": 61.0},
        **{"width": WIDTH, "n_layers": N_LAYERS, "m": M, "n_primary_draws": N_DRAWS, "n_folds": 5},
        **{"n_split_seeds": 3, "n_unjudged": 0, "pass_at_1": 0.201, "oracle": 0.633},
        **{"fingerprint": {"config": "ab12", "tokenizer": "cd34"}},
        "settings": {"size": "5%", "widths": ["5%", "64"], "seed": 0},
    }


def toy_verdicts() -> tuple[Verdict, ...]:
    """A primary one and two others."""
    return (
        Verdict(
            "specificity",
            "undecided",
            "Undecided: reasoning minus random is +0.004 [-0.013, +0.021], too wide to tell.",
            True,
        ),
        Verdict(
            "economy", "worse than full", "Four directions are worse than the full state.", True
        ),
        Verdict("length", "undecided", "At equal length the picture stays the same.", False),
    )


def _shifted(row: CellRow, loss: float) -> dict[str, float]:
    return {name: round(getattr(row, name) - loss, 4) for name in ("value", "low", "high")}


def toy_audit(task: str = "graded") -> AuditTables:
    """A whole audit of answers with labels, or of preference pairs."""
    metric = {"graded": "within_auroc", "preferences": "pair_accuracy"}[task]
    cells = toy_cells(metric)
    if task == "graded":
        cells += tuple(
            replace(row, metric=name, **_shifted(row, loss))
            for row in cells
            if row.sweep in ("primary", "controls")
            for name, loss in (("pooled_auroc", 0.01), ("best_of_n", 0.3))
        )
    facts = toy_facts(task, metric)
    if task == "preferences":
        facts |= {"pass_at_1": None, "oracle": None}
    return AuditTables(
        facts=facts,
        verdicts=toy_verdicts(),
        cells=cells,
        contrasts=toy_contrasts(metric),
        spectrum=toy_spectrum(),
        energy=toy_energy(),
        directions=toy_directions(),
        overlap=toy_overlap(),
        answers=toy_answers(task),
        curves=toy_curves() if task == "graded" else (),
        interventions=toy_interventions(),
    )
