"""An audit from start to finish: read once, run the stages, say what the intervals allow.

A folder holds everything: `reading/` (the stored states, which a killed reading goes on from),
`stages/` (one finished stage each), and, written last, the tables with `audit.json`. A second run with
the same data, model and plan takes up what is there; another plan needs another folder. Whatever can
be refused is refused before the model reads, and a refused run leaves nothing behind.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrm import __version__
from retrm.audit.energy import energy_rows
from retrm.audit.grid import Grid
from retrm.audit.intervene import (
    InterventionEstimate,
    InterventionPlan,
    TrainedScore,
    estimate_interventions,
    measure_interventions,
)
from retrm.audit.measure import corrected
from retrm.audit.plan import AuditPlan
from retrm.audit.reading import AuditReading, checked_layers, read_answers
from retrm.audit.supervision import Supervision
from retrm.audit.tables import AuditTables
from retrm.audit.verdict import verdicts
from retrm.backbone.base import Backbone
from retrm.backbone.batching import TOKENS_PER_BATCH
from retrm.data.grade import GRADERS
from retrm.errors import DataError, OutputError, StoreError, did_you_mean
from retrm.features.read import Overlong, Progress, render_all
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features
from retrm.files import write_json
from retrm.fitting.fit import fit_head
from retrm.methods import method
from retrm.records import AnswerTable

OnStage = Callable[[str, int, int], None]
ACCOUNT_INTERVAL_S = 30.0
STAGE_VERSION = 2
"""Raised by hand whenever a stage of the same plan would give other figures than before."""
_SECONDS = "stage_s"
UNFIT_GRADERS = ("choice",)  # a table of answers does not keep the options that it needs
AUDIT_GRADERS = tuple(name for name in GRADERS if name not in UNFIT_GRADERS)


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
        LabelError, DataError: the data cannot be audited, or an intervention not made on them.
        BackboneError: an intervention on what is no transformers model.
        StoreError: the folder holds another audit, or figures of another version.
        OutputError: the folder cannot be written.
        RecipeError, RenderError, OverlongError: as they say. All of these before the model works.
    """
    ready = check_audit(
        *(table, backbone, plan),
        overlong=overlong,
        label_threshold=label_threshold,
        interventions=interventions,
        grader=grader,
        tokens_per_batch=tokens_per_batch,
    )
    judged = table.judged(label_threshold=label_threshold)
    header = check_folder(folder, judged, backbone, plan, overlong=overlong)
    if not _is_begun(folder) or not (folder / "plan.json").is_file():
        write_json(folder / "plan.json", header)
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
    grid = Grid(reading, ready.supervision, backbone.unembedding, plan)
    facts = {
        "n_tokens": _tokens_read(reading, table, grid.m),
        "reading_s": account.close(reading),
        "n_truncated": reading.n_truncated,
        "n_skipped": reading.n_skipped,
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
        name = intervention_stage(interventions, grader, table)
        is_graded = interventions.n_samples > 0
        facts["interventions"] = {
            **interventions.as_dict(),
            "grader": grader if is_graded else None,
        }
        extra[name] = lambda: intervene_on(
            *(grid, backbone, interventions),
            grader=grader,
            overlong=overlong,
            tokens_per_batch=tokens_per_batch,
            on_progress=on_stage and (lambda done, total: on_stage(name, done, total)),
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


@dataclass(frozen=True)
class ReadyAudit:
    """What is known of an audit before the model works.

    Attributes:
        supervision: of the answers that fit the context.
        interventions: their work; None = none are asked for.
    """

    supervision: Supervision
    interventions: InterventionEstimate | None


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
    check_supervision(table, plan, label_threshold=label_threshold)
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
        return ReadyAudit(supervision, None)
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
    return ReadyAudit(supervision, estimate)


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
    on_progress: Callable[[int, int], None] | None = None,
) -> AuditTables:
    """Remove components while the model works, and watch the head on the full state.

    The head is the one of `retrm fit` on the last token's full state, fitted on all outer folds but
    the first; everything is measured on prompts of the first one only.

    Args:
        grid: reading, supervision and plan.
        backbone: that was read.
        plan: what is removed.
        grader: rule for new answers.
        overlong: as the answers were read.
        tokens_per_batch: budget of a forward pass.
        on_progress: told tokens done and tokens in all.

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
        on_progress=on_progress,
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
    for name, make in {**grid.stages(), **(more_stages or {})}.items():
        if only and name not in only:
            continue
        if on_stage is not None:
            on_stage(name, 0, 1)
            grid.on_step = lambda done, total, name=name: on_stage(name, done, total)
        parts[name] = _stage(folder, name, make)
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


def check_folder(
    folder: Path,
    table: AnswerTable,
    backbone: Backbone,
    plan: AuditPlan,
    *,
    overlong: Overlong = "error",
) -> dict[str, Any]:
    """Find that `folder` is free for this audit, or holds this one; nothing is written.

    Args:
        folder: of the audit.
        table: judged answers, as the labels are used.
        backbone: the frozen model.
        plan: what is compared.
        overlong: policy for answers beyond the context; it decides which are read.

    Returns:
        What marks the folder as this audit's.

    Raises:
        StoreError: it holds another audit, or figures of another version.
        OutputError: it is no folder.
    """
    check_output(folder)
    header = {
        "retrm": __version__,
        "stage_version": STAGE_VERSION,
        "plan": json.loads(json.dumps(plan.as_dict())),
        "fingerprint": asdict(backbone.fingerprint),
        "answers": _digest(table),
        "overlong": overlong,
    }
    stored = _json(folder / "plan.json")
    if stored is None:
        if finished_stages(folder):
            raise StoreError(
                f"{folder} holds finished stages, but no plan.json that says of which audit; delete "
                f"{folder / 'stages'} to make them again, or choose another folder"
            )
        return header
    if not _is_begun(folder):  # a run that was stopped before anything was made
        return header
    if stored.get("stage_version") != STAGE_VERSION:
        raise StoreError(
            f"{folder} holds figures of retrm {stored.get('retrm', 'of an older version')} (stages "
            f"{stored.get('stage_version', 1)}), which this one, {__version__} (stages "
            f"{STAGE_VERSION}), would make otherwise. Nothing was deleted. Delete "
            f"{folder / 'stages'} and {folder / 'plan.json'} to make them again, the reading is kept; "
            "or choose another folder"
        )
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
    return header


def check_output(folder: Path) -> None:
    """Refuse a path that cannot become the folder of an audit.

    Raises:
        OutputError: a file lies there.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; expected a folder, or a name that is free")


def finished_stages(folder: Path) -> frozenset[str]:
    """Names of the stages that lie in `folder`."""
    return frozenset(path.parent.name for path in folder.glob("stages/*/audit.json"))


def _is_begun(folder: Path) -> bool:
    """Whether anything was made there."""
    has_reading = any((folder / "reading").glob("*"))
    return has_reading or (folder / "audit.json").is_file() or bool(finished_stages(folder))


def _json(path: Path) -> dict[str, Any] | None:
    """None without the file; {} where it is unreadable."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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
        return _timed(make)
    place = folder / "stages" / name
    if (place / "audit.json").is_file():
        return AuditTables.load(place)
    place.mkdir(parents=True, exist_ok=True)
    made = _timed(make)
    made.save(place)
    return made


def _timed(make: Callable[[], AuditTables]) -> AuditTables:
    """With the seconds that it took among its facts."""
    started = time.monotonic()
    made = make()
    return replace(made, facts={**made.facts, _SECONDS: time.monotonic() - started})


def _seconds(
    parts: Mapping[str, AuditTables], interventions: Mapping[str, object]
) -> dict[str, float]:
    """Seconds in which the finished stages were made, whenever that was."""
    took = {name: part.facts[_SECONDS] for name, part in parts.items()}
    facts = {"fitting_s": sum((s for name, s in took.items() if name not in interventions), 0.0)}
    if interventions:
        facts["interventions_s"] = sum(s for name, s in took.items() if name in interventions)
    return facts


def _joined(parts: Sequence[AuditTables]) -> AuditTables:
    """All rows of all parts, and their facts."""
    names = [f.name for f in fields(AuditTables) if f.name not in ("facts", "extra")]
    rows = {name: tuple(row for part in parts for row in getattr(part, name)) for name in names}
    facts = {k: value for part in parts for k, value in part.facts.items() if k != _SECONDS}
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
        "n_split_seeds": plan.n_split_seeds,
        "matrices": list(grid.matrices),
        "settings": plan.as_dict(),
    }


def _tokens_read(reading: AuditReading, table: AnswerTable, m: int) -> int:
    """Of all answers that were read, those of a prompt once, whichever runs read them."""
    ids = table.prompt_ids[reading.rows].tolist()
    rows = energy_rows(reading.features["energy"], m=m, prompt_ids=ids)
    return sum(row.n_tokens for row in rows if row.layer == 0)


class _Account:
    """Seconds of a reading, those of runs that were killed included (to half a minute).

    A store that holds more shards than were accounted for was filled by something else as well: then
    nobody knows the seconds.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._store = folder / "reading.json", folder / "reading"
        stored = _json(self._path) or {}
        self._n_shards = self._count()
        n_known = stored.get("n_shards", 0)
        self._before: float | None = stored.get("reading_s", 0.0)
        if self._n_shards != n_known:  # more than we made, or a reading that was deleted
            self._before = None if self._n_shards > n_known else 0.0
        self._last = time.monotonic()

    def note(self, progress: Progress) -> None:
        """Keep the account of a running reading, at the latest when the store has grown."""
        n_shards = self._count()
        if n_shards > self._n_shards or time.monotonic() - self._last > ACCOUNT_INTERVAL_S:
            self._n_shards, self._last = n_shards, time.monotonic()
            self._write(progress.elapsed_s)

    def close(self, reading: AuditReading) -> float | None:
        """Seconds of the finished reading; None = not known."""
        self._n_shards = self._count()
        return self._write(reading.elapsed_s if reading.n_tokens else 0.0)

    def _count(self) -> int:
        return sum(1 for _ in self._store.glob("shard-*"))

    def _write(self, seconds: float) -> float | None:
        total = None if self._before is None else self._before + seconds
        write_json(self._path, {"reading_s": total, "n_shards": self._n_shards})
        return total
