"""An audit from start to finish: read once, run the stages, say what the intervals allow.

A folder holds everything: `reading/` (the stored states, which a killed reading goes on from),
`stages/` (one finished stage each), and, written last, the tables with `audit.json`. A second run with
the same data, model and plan takes up what is there; another plan needs another folder.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrm.audit.energy import energy_rows
from retrm.audit.grid import Grid
from retrm.audit.intervene import InterventionPlan, TrainedScore, measure_interventions
from retrm.audit.measure import corrected
from retrm.audit.plan import AuditPlan
from retrm.audit.reading import AuditReading, read_answers
from retrm.audit.supervision import Supervision
from retrm.audit.tables import AuditTables
from retrm.audit.verdict import verdicts
from retrm.backbone.base import Backbone
from retrm.backbone.batching import TOKENS_PER_BATCH
from retrm.errors import StoreError
from retrm.features.read import Overlong, Progress
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features
from retrm.files import write_json
from retrm.fitting.fit import fit_head
from retrm.methods import method
from retrm.records import AnswerTable

OnStage = Callable[[str, int, int], None]
ACCOUNT_INTERVAL_S = 30.0


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
        on_stage: called with (name of the stage, steps done, steps in all).

    Raises:
        LabelError, DataError: the data cannot be audited; found before the model works.
        StoreError: the folder holds another audit.
        RecipeError, RenderError, OverlongError: before the model works.
    """
    check_supervision(table, plan, label_threshold=label_threshold)
    judged = table.judged(label_threshold=label_threshold)
    check_folder(folder, judged, backbone, plan, overlong=overlong)
    account = _Account(folder)

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
    supervision = Supervision.of(table, reading.rows.tolist(), label_threshold=label_threshold)
    grid = Grid(reading, supervision, backbone.unembedding, plan)
    facts = {
        **account.close(reading),
        "model": Path(backbone.name).name,  # a file's folder is nobody's business
        "data": data,
        "fingerprint": asdict(backbone.fingerprint),
        "precision": str(backbone.dtype).removeprefix("torch."),
        "counts_end": backbone.renderer.counts_end,
        "n_layers": backbone.n_layers,
        "data_counts": dict(table.counts),
    }
    extra = {}
    if interventions is not None:
        name = _intervention_stage(interventions)
        facts["interventions"] = asdict(interventions)
        extra[name] = lambda: intervene_on(
            grid, backbone, interventions, grader=grader, on_stage=on_stage
        )
    tables = audit_states(
        grid,
        folder,
        facts=facts,
        energy=reading.features["energy"],
        more_stages=extra,
        on_stage=on_stage,
    )
    tables.save(folder)
    return tables


def check_supervision(
    table: AnswerTable, plan: AuditPlan, *, label_threshold: float | None = None
) -> None:
    """Refuse data that cannot be audited, before a model is loaded.

    Raises:
        LabelError: no labels or pairs, or nothing to compare within a prompt.
        DataError: too few prompts for the folds.
    """
    supervision = Supervision.of(table, range(len(table)), label_threshold=label_threshold)
    folds = supervision.folds(plan)
    for fold in range(plan.n_folds):  # the inner folds need prompts as well
        supervision.inner_folds(np.flatnonzero(folds == fold), plan)


def _intervention_stage(plan: InterventionPlan) -> str:
    """A name of its own for every plan, so that a finished one is not taken for another."""
    digest = hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()
    return f"interventions-{digest[:8]}"


def intervene_on(
    grid: Grid,
    backbone: Backbone,
    plan: InterventionPlan,
    *,
    grader: str | None = None,
    on_stage: OnStage | None = None,
) -> AuditTables:
    """Remove components while the model works, and watch the head on the full state.

    The head is the one of `retrm fit` on the last token's full state, fitted on four of the outer
    folds; everything is measured on prompts of the first fold only.
    """
    supervision, folds = grid.supervision, grid.folds[0]
    train, test = np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)
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
        supervision.table.take(test.tolist()),
        plan=plan,
        score=score,
        grader=grader if plan.n_samples else None,
        seed=grid.plan.seed,
        on_progress=None
        if on_stage is None
        else lambda done, total: on_stage("interventions", done, total),
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
    started = time.monotonic()
    parts = []
    for name, make in {**grid.stages(), **(more_stages or {})}.items():
        if only and name not in only:
            continue
        if on_stage is not None:
            on_stage(name, 0, 1)
            grid.on_step = lambda done, total, name=name: on_stage(name, done, total)
        parts.append(_stage(folder, name, make))
    tables = _joined(parts)
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
            "fitting_s": time.monotonic() - started,
        },
    )
    return replace(tables, verdicts=verdicts(tables))


def check_folder(
    folder: Path,
    table: AnswerTable,
    backbone: Backbone,
    plan: AuditPlan,
    *,
    overlong: Overlong = "error",
) -> None:
    """Take `folder` for this audit, or find that it is this one's.

    Args:
        folder: of the audit.
        table: judged answers, as the labels are used.
        backbone: the frozen model.
        plan: what is compared.
        overlong: policy for answers beyond the context; it decides which are read.

    Raises:
        StoreError: it holds another audit.
        OutputError: it cannot be written.
    """
    header = {
        "plan": json.loads(json.dumps(plan.as_dict())),
        "fingerprint": asdict(backbone.fingerprint),
        "answers": _digest(table),
        "overlong": overlong,
    }
    path = folder / "plan.json"
    if path.is_file():
        try:
            stored = json.loads(path.read_text("utf-8"))
        except ValueError:
            stored = {}
        for key, words in (
            ("answers", "other answers or labels"),
            ("fingerprint", "another model"),
            ("plan", "another plan"),
            ("overlong", "another policy for over-long answers"),
        ):
            if stored.get(key) != header[key]:
                raise StoreError(
                    f"{folder} holds an audit of {words}; choose another folder, or delete this one "
                    "to start again"
                )
        return
    write_json(path, header)


def _digest(table: AnswerTable) -> str:
    """Of everything that the stages depend on and the reading does not check."""
    found = hashlib.sha256()
    for answer, label in zip(table.answers, table.labels.tolist(), strict=True):
        parts = (answer.prompt_id, answer.prompt.key, answer.response, label, answer.key)
        found.update("\0".join(map(str, (*parts, answer.finished, answer.response_ids))).encode())
    for pair in table.preferences():
        found.update(f"{pair.chosen} {pair.rejected} {pair.margin}\n".encode())
    return found.hexdigest()


def _stage(folder: Path | None, name: str, make: Callable[[], AuditTables]) -> AuditTables:
    if folder is None:
        return make()
    place = folder / "stages" / name
    if (place / "audit.json").is_file():
        return AuditTables.load(place)
    place.mkdir(parents=True, exist_ok=True)
    made = make()
    made.save(place)
    return made


def _joined(parts: Sequence[AuditTables]) -> AuditTables:
    """All rows of all parts, and their facts."""
    names = [f.name for f in fields(AuditTables) if f.name not in ("facts", "extra")]
    rows = {name: tuple(row for part in parts for row in getattr(part, name)) for name in names}
    facts = {key: value for part in parts for key, value in part.facts.items()}
    return AuditTables(facts=facts, **rows)


def _grid_facts(grid: Grid) -> dict[str, Any]:
    s, plan = grid.supervision, grid.plan
    cut = np.asarray(grid.measure.finished) == 0
    return {
        **grid.summary_figures(),
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
        "n_draws": plan.n_primary_draws,
        "n_folds": plan.n_folds,
        "split_seeds": plan.n_split_seeds,
        "matrices": list(grid.matrices),
        "settings": plan.as_dict(),
    }


class _Account:
    """Tokens and seconds of a reading, those of runs that were killed included (to half a minute)."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "reading.json"
        stored = json.loads(self._path.read_text("utf-8")) if self._path.is_file() else {}
        self._before = stored.get("n_tokens", 0), stored.get("reading_s", 0.0)
        self._last = time.monotonic()

    def note(self, progress: Progress) -> None:
        """Keep the account of a running reading."""
        if time.monotonic() - self._last > ACCOUNT_INTERVAL_S:
            self._last = time.monotonic()
            self._write(progress.tokens_done, progress.elapsed_s)

    def close(self, reading: AuditReading) -> dict[str, Any]:
        """The facts of the finished reading."""
        facts = self._write(reading.n_tokens, reading.elapsed_s if reading.n_tokens else 0.0)
        return {**facts, "n_truncated": reading.n_truncated, "n_skipped": reading.n_skipped}

    def _write(self, n_tokens: int, seconds: float) -> dict[str, Any]:
        facts = {"n_tokens": self._before[0] + n_tokens, "reading_s": self._before[1] + seconds}
        write_json(self._path, facts)
        return facts
