"""`retrm audit`: does the reasoning subspace carry the reward, for this model and these answers."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.text import Text

from retrm.cli.console import err, out, print_json, progress, reading_progress
from retrm.cli.console import table as text_table
from retrm.cli.options import Output
from retrm.cli.settings import read_settings
from retrm.errors import RecipeError
from retrm.files import check_writable
from retrm.records import check_overlong

if TYPE_CHECKING:
    from retrm.audit.estimate import AuditEstimate
    from retrm.audit.intervention_plan import InterventionPlan
    from retrm.audit.plan import AuditPlan
    from retrm.audit.run import StageProgress
    from retrm.audit.tables import AuditTables

STAGES = {
    "primary": "primary contrast",
    "width": "widths",
    "learning": "learning curve",
    "matrix": "variants of the LM head",
    "band": "sliding band",
    "max": "maximum over tokens",
    "gate": "gate over tokens",
}


def audit(
    data: str,
    /,
    *,
    model: str,
    output: Output,
    quick: bool = False,
    pooling: list[str] | None = None,
    interventions: bool = False,
    n_samples: int | None = None,
    grader: str = "numeric",
    dry_run: bool = False,
    config: Path | None = None,
    format: str = "auto",
    attribute: str | None = None,
    empty: str = "error",
    label_threshold: float | None = None,
    overlong: str = "error",
    seed: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Settle whether the reasoning subspace of a model's LM head helps a reward head on your answers.

    The answers are read once. Heads are then fitted, by the same rules, on the full state, on the
    reasoning subspace (the smallest singular directions of the LM head), and on every control of the
    same width: random, semantic, middle, principal components, raw coordinates. The verdict compares
    the reasoning subspace with random ones and with the full state, by intervals over prompts; it
    can come out either way, or undecided.

    How long it takes depends on the answers: run it with --dry-run first. A killed audit goes on when
    the same command is given again.

    Parameters
    ----------
    data
        Judged answers: rollouts with right/wrong labels, several to a prompt, or preferences
        (chosen, rejected). JSONL, JSON, Parquet or hub:owner/name.
    model
        The frozen language model: smollm2-135m, a hub id, a local folder or a GGUF file.
    output
        Folder of the audit: audit.html, figures/, every table as Parquet and CSV.
    quick
        A smaller grid for a first look: two widths, two poolings, 20 random draws.
    pooling
        Over response tokens: last (always needed), mean, max, gate; may be given several times.
        Default last, mean and max; with --quick last and mean.
    interventions
        Also remove components of the state while the model works and measure what changes.
    n_samples
        With --interventions: new answers to each question under each removal, for accuracy; needs
        reference answers in the data. Default 0. It takes far longer than all else: see --dry-run.
    grader
        Rule that judges the new answers: numeric, exact or math.
    dry_run
        Print tokens, seconds and bytes, and stop; short trials are made for the speed. What the
        output folder holds already is taken off.
    config
        TOML file for everything else, in the tables [plan] (layers, widths, size, n_draws,
        n_folds, ...) and [interventions] (layers, sizes, n_draws, ...); options that are given
        here count more.
    format
        Record format, if the columns fit several.
    attribute
        Which rating to learn, for records rated on several.
    empty
        Records with an empty answer: error, or drop (counted).
    label_threshold
        Grades at or above it are right.
    overlong
        Answers beyond the context: error, truncate_left or skip; the last two are counted.
    seed
        Of folds, random subspaces and resamples; default 0.
    dtype
        Of the backbone: float32, bfloat16, float64 or auto.
    device
        cpu, cuda, cuda:1, ...
    json
        Print one JSON object on stdout.
    """
    from retrm.audit.estimate import estimate_audit
    from retrm.audit.run import audit as run_audit
    from retrm.audit.run import check_grader, check_supervision
    from retrm.backbone.load import load_backbone
    from retrm.data.load import load_table
    from retrm.reports.audit_page import write_report
    from retrm.reports.canvas import check_plotting

    settings = read_settings(config, ("plan", "interventions"))
    plan = _plan(settings.get("plan", {}), quick=quick, pooling=pooling, seed=seed)
    removal = _removal(settings.get("interventions"), interventions, n_samples)
    check_plotting()
    check_writable(output)
    check_overlong(overlong)
    if removal is not None and removal.n_samples:
        check_grader(grader)
    answers = load_table(data, format=format, attribute=attribute, empty=empty)  # type: ignore[arg-type]
    check_supervision(answers, plan, label_threshold=label_threshold)
    err.print(f"loading {model}")
    backbone = load_backbone(model, dtype=dtype, device=device)
    err.print(f"{len(answers):,} answers to {len(answers.candidate_sets()):,} prompts from {data}")
    if dry_run:
        estimate = estimate_audit(
            *(backbone, answers, plan),
            folder=output,
            overlong=overlong,  # type: ignore[arg-type]
            label_threshold=label_threshold,
            interventions=removal,
            grader=grader,
        )
        _print_estimate(estimate, json)
        return
    with reading_progress("reading") as on_reading, _stages() as on_stage:
        tables = run_audit(
            answers,
            backbone,
            plan,
            output,
            data=Path(data).name,
            overlong=overlong,  # type: ignore[arg-type]
            label_threshold=label_threshold,
            interventions=removal,
            grader=grader,
            on_reading=on_reading,
            on_stage=on_stage,
        )
    write_report(output, tables)
    _print_result(output, tables, json)


def _plan(
    values: Mapping[str, Any], *, quick: bool, pooling: list[str] | None, seed: int | None
) -> "AuditPlan":
    from retrm.audit.plan import QUICK, AuditPlan

    merged = {**(QUICK if quick else {}), **values}
    if pooling:
        merged["poolings"] = tuple(pooling)
    if seed is not None:
        merged["seed"] = seed
    return AuditPlan.from_dict(merged)


def _removal(
    values: Mapping[str, Any] | None, wanted: bool, n_samples: int | None
) -> "InterventionPlan | None":
    from retrm.audit.intervention_plan import InterventionPlan

    if values is None and not wanted:
        if n_samples:
            raise RecipeError(
                f"got --n-samples {n_samples} without --interventions; new answers are drawn only "
                "where something is removed. Add --interventions"
            )
        return None
    given = dict(values or {})
    if n_samples is not None:
        given["n_samples"] = n_samples
    return InterventionPlan.from_dict(given)


@contextlib.contextmanager
def _stages() -> Iterator[Callable[["StageProgress"], None]]:
    """One progress bar a stage; where there are no bars, a line at its start as well."""
    with contextlib.ExitStack() as bars:
        shown, report = 0, None

        def on_stage(state: "StageProgress") -> None:
            nonlocal shown, report
            if state.number != shown or report is None:
                label = f"stage {state.number} of {state.n_stages}: {_stage_in_words(state.name)}"
                bars.close()
                if not err.is_terminal:
                    err.print(label)
                shown, report = state.number, bars.enter_context(progress(label))
            report(state.done, max(state.total, 1), "")

        yield on_stage


def _stage_in_words(name: str) -> str:
    from retrm.reports.words import POOLINGS

    kind, _, pooling = name.partition("-")
    if kind == "interventions":  # what follows tells plans apart
        return kind
    return ", ".join([STAGES.get(kind, kind), *([POOLINGS[pooling]] if pooling else [])])


def _print_estimate(estimate: "AuditEstimate", json: bool) -> None:
    from retrm.reports.words import duration

    if json:
        print_json(asdict(estimate))
        return
    rows = [
        ["answers", f"{estimate.n_answers:,}"],
        ["over-long, left out", f"{estimate.n_skipped:,}"],
        ["tokens", f"{estimate.n_tokens:,}"],
        ["tokens a second (trial)", f"{estimate.tokens_per_s:,.0f}"],
        ["reading what is left", duration(estimate.reading_s)],
        ["heads left to fit", f"{estimate.n_fits:,}"],
        ["fitting (within a factor of two)", duration(estimate.fitting_s)],
    ]
    if (work := estimate.interventions) is not None:
        rows += [
            ["removals", f"{work.n_settings:,}"],
            ["given answers read under each", f"{work.n_answers:,}"],
            ["tokens read under removals", f"{work.read_tokens:,}"],
            ["tokens of new answers, at most", f"{work.sampled_tokens:,}"],
            ["interventions, at most", duration(estimate.interventions_s)],
        ]
    rows += [
        ["disk still to be written", f"{estimate.disk_bytes / 1e6:,.0f} MB"],
        ["memory, beside the model", f"{estimate.memory_bytes / 1e6:,.0f} MB"],
    ]
    out.print(text_table("dry run: nothing was written", ["", ""], rows))


def _print_result(folder: Path, tables: "AuditTables", json: bool) -> None:
    from retrm.cli.tables import primary_table
    from retrm.reports.words import question_of

    if json:
        verdicts = [vars(verdict) for verdict in tables.verdicts]
        print_json({"folder": str(folder), "facts": dict(tables.facts), "verdicts": verdicts})
        return
    out.print(primary_table(tables))
    for verdict in tables.verdicts:
        mark = "primary" if verdict.is_primary else "exploratory"
        out.print(f"{question_of(verdict)} ({mark}): [bold]{verdict.answer}[/]")
        out.print(Padding(Text(verdict.sentence), (0, 0, 1, 2)))
    out.print(f"{folder / 'audit.html'}: the report; tables as Parquet and CSV beside it")
