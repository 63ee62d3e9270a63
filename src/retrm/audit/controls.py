"""What else may explain a score, and whether the set-up leaks: the stage `controls` of an audit.

Scalars of length and confidence alone and beside each subspace; other scalings; the end of the prompt;
and heads on labels that are permuted within prompts, which must come out at chance.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.audit.directions import FEW_DRAWS, FeatureSet, drawn
from retrm.audit.measure import Measured, Setting
from retrm.audit.probes import ROWS_AT_ONCE, Probe, logistic_probes, ridge_probes
from retrm.audit.supervision import Supervision
from retrm.audit.tables import AuditTables, CellRow
from retrm.fitting.ridge import Moments

if TYPE_CHECKING:
    from retrm.audit.grid import Grid

N_SHUFFLES = 20  # of one alone, every twentieth looks like a leak
N_LOGISTIC_SHUFFLES = 8


def controls(grid: "Grid") -> AuditTables:
    """Scalars alone and added, labels permuted, unscaled and whitened features, the prompt."""
    states = grid.states(grid.last, "last")
    scalars, names = _scalar_columns(grid, states)
    both = torch.cat([states, scalars.float()], dim=1)
    width, extra = grid.reading.width, scalars.shape[1]
    random = drawn("random", grid.m, "raw", grid.plan.n_draws)
    combined = [
        FeatureSet("scalars", extra),
        FeatureSet("scalars+full", width + extra),
        FeatureSet("scalars+reasoning", grid.m + extra, "raw"),
        *(FeatureSet("scalars+random", grid.m + extra, "raw", f.draw) for f in random),
        *(FeatureSet(f"scalar:{name}", 1) for name in names),
    ]

    def columns(features: FeatureSet, train: Moments) -> Tensor | None:
        return _with_scalars(grid, features, names)

    setting = Setting("controls", grid.last, "last")
    found = grid.ridge(both, combined, setting, columns)
    added = found[3 : 3 + len(random)]
    contrasts = [
        *grid.measure.contrasts("exploratory", found[2], added, is_random=True),
        *grid.measure.contrasts("exploratory", found[2], [found[0]], is_random=False),
    ]
    alone = [
        FeatureSet("full", width, scaling="raw"),
        FeatureSet("reasoning", grid.m, "raw", scaling="raw"),
        FeatureSet("coordinates", grid.m, scaling="raw"),
        FeatureSet("semantic_all", width - grid.m, "raw"),
        *drawn("white_random", grid.m, "-", FEW_DRAWS),
    ]
    found += grid.ridge(states, alone, setting)
    if grid.supervision.task == "graded":
        prompt = grid.states(grid.last, "prompt_end")
        where = Setting("controls", grid.last, "prompt_end")
        found += grid.ridge(prompt, [FeatureSet("prompt", width)], where)
    cells = grid.measure.cells_of(found)
    n_shuffles = {"ridge": N_SHUFFLES, "logistic": N_LOGISTIC_SHUFFLES}
    return AuditTables(
        facts={"n_shuffles": n_shuffles},
        cells=cells + _shuffled(grid, states),
        contrasts=contrasts,
    )


def _shuffled(grid: "Grid", states: Tensor) -> list[CellRow]:
    """Reasoning features with labels permuted within prompts: must come out at chance.

    The mean of many permutations is judged, once with each kind of head.
    """
    setting = Setting("controls", grid.last, "last")
    features = FeatureSet("reasoning", grid.m, "raw")
    found: dict[str, list[tuple[Supervision, Probe]]] = {"ridge": [], "logistic": []}
    for number in range(N_SHUFFLES):
        shuffled = grid.supervision.shuffled(grid.plan.seed, number)
        made = ridge_probes(
            *(states, [features], shuffled, grid.folds[0], grid.plan, grid.directions.of)
        )
        found["ridge"].append((shuffled, made[0]))
        if number < N_LOGISTIC_SHUFFLES:
            made = logistic_probes(*(states, [features], shuffled, grid.folds[0], grid.directions))
            found["logistic"].append((shuffled, made[0]))
    cells = []
    for each in found.values():
        shown = replace(each[0][1], features=FeatureSet("shuffled", grid.m, "raw"))
        figures = tuple(s.statistics(probe.scores, grid.folds[0]) for s, probe in each)
        measured = Measured(shown, setting, figures[0], figures)
        cells += grid.measure.cells_over_repeats(measured)
    return cells


def _scalar_columns(grid: "Grid", states: Tensor) -> tuple[Float[Tensor, "answers k"], list[str]]:
    rows = grid.supervision.rows
    basis = grid.directions.of(FeatureSet("reasoning", grid.m, "raw"))
    assert basis is not None
    inside = torch.cat([(x.double() @ basis).norm(dim=1) for x in states.split(ROWS_AT_ONCE)])
    norm = states.norm(dim=1).double()
    columns = {name: values[rows].double() for name, values in grid.scalars.items()}
    columns |= {
        "log_length": torch.from_numpy(np.log(grid.measure.lengths)),
        "norm": norm,
        "reasoning_norm": inside,
        "reasoning_share": inside / norm,
        "residual_rms": grid.energy.rms[rows, -1].double(),
        "cut": torch.from_numpy((grid.measure.finished == 0).astype(np.float64)),
    }
    return torch.stack(list(columns.values()), dim=1), list(columns)


def _with_scalars(grid: "Grid", features: FeatureSet, names: Sequence[str]) -> Tensor | None:
    """Columns over (state, scalars) side by side."""
    width, extra = grid.reading.width, len(names)
    if features.kind == "scalars+full":
        return None
    if features.kind.startswith("scalar:"):
        out = torch.zeros(width + extra, 1, dtype=torch.float64)
        out[width + names.index(features.kind.removeprefix("scalar:"))] = 1
        return out
    part = features.kind.partition("+")[2]
    inner = torch.zeros(width, 0, dtype=torch.float64)
    if part:
        found = grid.directions.of(FeatureSet(part, grid.m, "raw", features.draw))
        assert found is not None
        inner = found
    return torch.block_diag(inner, torch.eye(extra, dtype=torch.float64))
