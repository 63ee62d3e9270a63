"""An audit from start to finish: read once, run the stages, say what the intervals allow.

A folder holds everything: `reading/` (the stored states, which a killed reading goes on from),
`stages/` (one finished stage each), and, written last, the tables with `audit.json`. A second run with
the same data, model and plan takes up what is there; another plan needs another folder. Whatever can
be refused is refused before the model reads, and a refused run leaves nothing behind.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrm.audit.descriptions import summary_figures
from retrm.audit.energy import energy_rows, n_tokens
from retrm.audit.folder import SECONDS, Account, alone_in, begin, check_folder, kept_stage
from retrm.audit.grid import Grid
from retrm.audit.intervene import TrainedScore, measure_interventions
from retrm.audit.intervention_plan import InterventionPlan
from retrm.audit.intervention_work import InterventionEstimate, estimate_interventions
from retrm.audit.measure import corrected
from retrm.audit.plan import AuditPlan
from retrm.audit.reading import AuditReading, checked_layers, read_answers
from retrm.audit.supervision import Supervision
from retrm.audit.tables import AuditTables
from retrm.audit.verdict import verdicts
from retrm.backbone.base import Backbone
from retrm.backbone.batching import TOKENS_PER_BATCH
from retrm.data.grade import GRADERS
from retrm.errors import DataError, did_you_mean
from retrm.features.read import Overlong, Progress, RenderedAnswers, render_all
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features
from retrm.fitting.fit import fit_head
from retrm.methods import method
from retrm.records import AnswerTable

UNFIT_GRADERS = ("choice",)  # a table of answers does not keep the options that it needs
AUDIT_GRADERS = tuple(name for name in GRADERS if name not in UNFIT_GRADERS)


@dataclass(frozen=True)
class StageProgress:
    """How far the stages are.

    Attributes:
        name: of the stage under way.
        number: its place among them, from 1.
        n_stages: all that are run.
        done, total: steps inside it.
    """

    name: str
    number: int
    n_stages: int
    done: int
    total: int


OnStage = Callable[[StageProgress], None]


def audit(
    table: AnswerTable,
    backbone: Backbone,
    plan: AuditPlan,
    folder: Path,
    *,
    data: str = "",
    overlong: Overlong = "error",
    label_threshold: float | None = None,
    interventions: InterventionPlan | None = None,
    grader: str | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
    on_reading: Callable[[Progress], None] | None = None,
    on_stage: OnStage | None = None,
) -> AuditTables:
    """Run an audit in `folder` and write its tables there.

    Args:
        table: judged answers: right or wrong with several a prompt, or preferences.
        backbone: the frozen model.
        plan: what is compared.
        folder: of the audit; a killed one goes on there.
        data: name of the data, for the report.
        overlong: answers beyond the context: `error`, `truncate_left` or `skip`; counted.
        label_threshold: grades at or above it are right.
        interventions: what to remove while the model works; None = no interventions.
        grader: rule for new answers, where `interventions` asks for some.
        tokens_per_batch: budget of a forward pass.
        on_reading: called after each batch of the reading.
        on_stage: called at the start of each stage and after each of its steps.

    Raises:
        LabelError, DataError: the data cannot be audited, or an intervention not made on them.
        BackboneError: an intervention on what is no transformers model.
        StoreError: the folder holds another audit, or figures of another version, or another process
            works there.
        OutputError: the folder cannot be written.
        RecipeError, RenderError, OverlongError: as they say. All of these before the model works.
    """
    supervision = check_audit(
        *(table, backbone, plan),
        overlong=overlong,
        label_threshold=label_threshold,
        interventions=interventions,
        grader=grader,
        tokens_per_batch=tokens_per_batch,
    ).supervision
    judged = table.judged(label_threshold=label_threshold)
    with alone_in(folder):
        begin(folder, check_folder(folder, judged, backbone, plan, overlong=overlong))
        reading, reading_s = _read_on_account(
            *(table, backbone, plan, folder), overlong, tokens_per_batch, on_reading
        )
        grid = Grid(reading, supervision, backbone.unembedding, plan)
        facts = _facts(reading, backbone, table) | {"data": data, "reading_s": reading_s}
        more: dict[str, Callable[[], AuditTables]] = {}
        if interventions is not None:
            name = intervention_stage(interventions, grader, table)
            used = grader if interventions.n_samples else None
            facts["interventions"] = {**interventions.as_dict(), "grader": used}
            more[name] = partial(
                *(intervene_on, grid, backbone, interventions),
                grader=grader,
                overlong=overlong,
                tokens_per_batch=tokens_per_batch,
            )
        tables = audit_states(
            grid,
            folder,
            facts=facts,
            energy=reading.features["energy"],
            more_stages=more,
            on_stage=on_stage,
        )
        tables.save(folder)
    return tables


def _read_on_account(
    table: AnswerTable,
    backbone: Backbone,
    plan: AuditPlan,
    folder: Path,
    overlong: Overlong,
    tokens_per_batch: int,
    on_reading: Callable[[Progress], None] | None,
) -> tuple[AuditReading, float | None]:
    """The reading, and the seconds that it took over all runs; None = not known."""
    account = Account(folder)

    def on_progress(progress: Progress) -> None:
        account.note(progress)
        if on_reading is not None:
            on_reading(progress)

    reading = read_answers(
        backbone,
        table,
        plan,
        folder / "reading",
        overlong=overlong,
        tokens_per_batch=tokens_per_batch,
        on_progress=on_progress,
    )
    return reading, account.close(reading)


@dataclass(frozen=True)
class ReadyAudit:
    """What is known of an audit before the model works.

    Attributes:
        supervision: of the answers that fit the context.
        interventions: their work; None = none are asked for.
        fitting: the rendered answers that fit.
    """

    supervision: Supervision
    interventions: InterventionEstimate | None
    fitting: RenderedAnswers


def check_audit(
    table: AnswerTable,
    backbone: Backbone,
    plan: AuditPlan,
    *,
    overlong: Overlong = "error",
    label_threshold: float | None = None,
    interventions: InterventionPlan | None = None,
    grader: str | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> ReadyAudit:
    """Refuse whatever an audit could not end with; the model does not run.

    Args:
        table: judged answers.
        backbone: the frozen model.
        plan: what is compared.
        overlong: answers beyond the context.
        label_threshold: grades at or above it are right.
        interventions: what to remove; None = nothing.
        grader: rule for new answers.
        tokens_per_batch: budget of a forward pass.

    Raises:
        RetrmError: as `audit`, but for those of the folder.
    """
    checked_layers(plan, backbone)
    fitting = render_all(backbone, table.answers, overlong=overlong)
    if not fitting.rows:
        raise DataError(
            f"got {len(table)} answers, none of which fits the context of {backbone.name}, "
            f"{backbone.context_length} tokens; shorten them, or choose another model"
        )
    supervision = Supervision.of(table, fitting.rows, label_threshold=label_threshold)
    supervision.check_folds(plan)
    if interventions is None:
        return ReadyAudit(supervision, None, fitting)
    if interventions.n_samples:
        check_grader(grader)
    estimate = estimate_interventions(
        backbone,
        supervision.table.take(_held_out(supervision.folds(plan))),
        plan=interventions,
        grader=grader,
        is_scored=True,
        seed=plan.seed,
        overlong=overlong,
        tokens_per_batch=tokens_per_batch,
    )
    return ReadyAudit(supervision, estimate, fitting)


def check_supervision(
    table: AnswerTable, plan: AuditPlan, *, label_threshold: float | None = None
) -> None:
    """Refuse data that cannot be audited, before a model is loaded.

    Raises:
        LabelError: no labels or pairs, or nothing to compare within a prompt.
        DataError: too few prompts for the folds.
    """
    supervision = Supervision.of(table, range(len(table)), label_threshold=label_threshold)
    supervision.check_folds(plan)


def check_grader(grader: str | None) -> None:
    """Refuse a rule by which an audit cannot judge new answers.

    Raises:
        DataError: an unknown one, or one that needs options.
    """
    if grader in UNFIT_GRADERS:
        raise DataError(
            f"got grader {grader!r}, which needs the options of every question; an audit does not "
            f"keep them. Use one of {', '.join(AUDIT_GRADERS)}"
        )
    if grader not in AUDIT_GRADERS:
        raise DataError(
            f"got grader {grader!r}; expected a known one. {did_you_mean(str(grader), AUDIT_GRADERS)}"
        )


def intervention_stage(plan: InterventionPlan, grader: str | None, table: AnswerTable) -> str:
    """A name for everything that the figures depend on, so that none is taken for another's."""
    parts: list[object] = [plan.as_dict()]
    if plan.n_samples:
        parts += [grader, sorted(table.gold.items())]
    return f"interventions-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]}"


def _held_out(folds: np.ndarray) -> list[int]:
    """Rows of the fold on which interventions are measured."""
    return np.flatnonzero(folds == 0).tolist()


def intervene_on(
    grid: Grid,
    backbone: Backbone,
    plan: InterventionPlan,
    *,
    grader: str | None = None,
    overlong: Overlong = "error",
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> AuditTables:
    """Remove components while the model works, and watch the head on the full state.

    The head is the one of `retrm fit` on the last token's full state, fitted on all outer folds but
    the first; everything is measured on prompts of the first one only.

    Args:
        grid: reading, supervision and plan; its `on_step` is told tokens done and tokens in all.
        backbone: that was read.
        plan: what is removed.
        grader: rule for new answers.
        overlong: as the answers were read.
        tokens_per_batch: budget of a forward pass.

    Raises:
        RetrmError: as `measure_interventions`.
    """
    supervision, folds = grid.supervision, grid.folds[0]
    train, test = np.flatnonzero(folds != 0), _held_out(folds)
    states = grid.states(grid.last, "last")[train]
    features = Features(states, torch.arange(len(train) + 1), True)
    head = fit_head(
        method("last_token"), features, supervision.targets.take(train), seed=grid.plan.seed
    ).head
    recipe = Recipe(counts_end=backbone.renderer.counts_end, layers=str(grid.last))
    score = TrainedScore(
        recipe=recipe,
        score=head.score,
        train_prompts=frozenset(supervision.prompt_ids[train].tolist()),
        fingerprint=backbone.fingerprint,
    )
    rows = measure_interventions(
        backbone,
        supervision.table.take(test),
        plan=plan,
        score=score,
        grader=grader if plan.n_samples else None,
        seed=grid.plan.seed,
        overlong=overlong,
        tokens_per_batch=tokens_per_batch,
        on_progress=grid.on_step,
    )
    return AuditTables(facts={}, interventions=rows)


def audit_states(
    grid: Grid,
    folder: Path | None,
    *,
    facts: Mapping[str, Any] | None = None,
    energy: Features | None = None,
    only: Sequence[str] = (),
    more_stages: Mapping[str, Callable[[], AuditTables]] | None = None,
    on_stage: OnStage | None = None,
) -> AuditTables:
    """The stages over states that were read already, with their verdicts; nothing is written but them.

    Args:
        grid: reading, supervision and plan.
        folder: keeps finished stages below it; None keeps nothing.
        facts: to be stored beside the figures.
        energy: sums of an `EnergyReducer`, of the rows of the reading.
        only: names of stages; all of the plan if empty.
        more_stages: run after those of the grid.
        on_stage: progress.
    """
    parts: dict[str, AuditTables] = {}
    stages = {**grid.stages(), **(more_stages or {})}
    chosen = [name for name in stages if not only or name in only]
    for number, name in enumerate(chosen, start=1):
        if on_stage is not None:
            grid.on_step = partial(_report, on_stage, name, number, len(chosen))
            grid.on_step(0, 1)
        parts[name] = kept_stage(folder, name, stages[name])
    tables = _joined(tuple(parts.values()))
    if energy is not None:
        judged = grid.supervision
        rows = energy_rows(energy.take(judged.rows), m=grid.m, prompt_ids=judged.prompt_ids)
        tables = replace(tables, energy=rows)
    tables = replace(
        tables,
        contrasts=corrected(tables.contrasts),
        facts={
            **_grid_facts(grid),
            **tables.facts,
            **(facts or {}),
            **_seconds(parts, more_stages or {}),
        },
    )
    return replace(tables, verdicts=verdicts(tables))


def _report(
    on_stage: OnStage, name: str, number: int, n_stages: int, done: int, total: int
) -> None:
    on_stage(StageProgress(name, number, n_stages, done, total))


def _seconds(
    parts: Mapping[str, AuditTables], interventions: Mapping[str, object]
) -> dict[str, float]:
    """Seconds in which the finished stages were made, whenever that was."""
    took = {name: part.facts[SECONDS] for name, part in parts.items()}
    facts = {"fitting_s": sum((s for name, s in took.items() if name not in interventions), 0.0)}
    if interventions:
        facts["interventions_s"] = sum(s for name, s in took.items() if name in interventions)
    return facts


def _joined(parts: Sequence[AuditTables]) -> AuditTables:
    """All rows of all parts, and their facts."""
    names = [f.name for f in fields(AuditTables) if f.name != "facts"]
    rows = {name: tuple(row for part in parts for row in getattr(part, name)) for name in names}
    facts = {k: value for part in parts for k, value in part.facts.items() if k != SECONDS}
    return AuditTables(facts=facts, **rows)


def _facts(reading: AuditReading, backbone: Backbone, table: AnswerTable) -> dict[str, Any]:
    """Of the reading and of what was read."""
    ids = table.prompt_ids[reading.rows].tolist()
    return {
        "n_tokens": n_tokens(reading.features["energy"], ids),
        "n_truncated": reading.n_truncated,
        "n_skipped": reading.n_skipped,
        "model": Path(backbone.name).name,  # a file's folder is nobody's business
        "fingerprint": asdict(backbone.fingerprint),
        "precision": str(backbone.dtype).removeprefix("torch."),
        "counts_end": backbone.renderer.counts_end,
        "n_layers": backbone.n_layers,
        "data_counts": dict(table.counts),
    }


def _grid_facts(grid: Grid) -> dict[str, Any]:
    s, plan = grid.supervision, grid.plan
    cut = np.asarray(grid.measure.finished) == 0
    return {
        **summary_figures(grid.supervision),
        "task": s.task,
        "metric": s.record,
        "n_answers": s.n,
        "n_prompts": s.n_prompts,
        "n_mixed": s.n_mixed,
        "n_pairs": len(s.pairs),
        "n_unjudged": s.n_unjudged,
        "n_cut": int(cut.sum()),
        "width": grid.reading.width,
        "m": grid.m,
        "n_primary_draws": plan.n_primary_draws,
        "n_folds": plan.n_folds,
        "n_split_seeds": plan.n_split_seeds,
        "matrices": list(grid.matrices),
        "settings": plan.as_dict(),
    }
