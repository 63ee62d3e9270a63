"""`retrm fit`: a reward model in a folder."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from retrm.cli.console import err, out, print_json, reading_progress
from retrm.cli.estimates import print_fit_estimate
from retrm.cli.options import Objectives, Output, Ratings
from retrm.cli.settings import read_settings
from retrm.errors import (
    ArtifactError,
    FitError,
    LabelError,
    OutputError,
    OverlongError,
    RecipeError,
    StoreError,
)
from retrm.records import check_overlong

ENSEMBLE_FOLDER = "ensemble"  # in that of the model


def fit(
    data: str,
    /,
    *,
    model: str,
    output: Output,
    method: list[str] | None = None,
    layers: str | None = None,
    point: str | None = None,
    subspace: str | None = None,
    source: str | None = None,
    pooling: str | None = None,
    head: str | None = None,
    loss: str | None = None,
    config: Path | None = None,
    format: str = "auto",
    attribute: str | None = None,
    rating: Ratings = None,
    objective: Objectives = None,
    verbosity: str | None = None,
    pairs: str | None = None,
    strength_sign: str | None = None,
    empty: str = "error",
    label_threshold: float | None = None,
    overlong: str = "error",
    test_fraction: float = 0.2,
    ensemble: int = 0,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    engine: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    keep_features: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Fit reward heads on a frozen model's hidden states, from judged answers.

    The answers are read once, whatever the number of methods; a killed run goes on where it was.
    Prompts are split into a training and a held-out part, and the held-out figures are printed and
    stored beside simple baselines. Candidates that retrm sample --prune stopped are left out and
    counted.

    How long it takes, and how much memory and disk, depends on the answers: --dry-run says it first.

    Parameters
    ----------
    data
        File of judged answers: JSONL, JSON, Parquet, or hub:owner/name. Rollouts with `correct`,
        preferences (chosen, rejected), ranked lists, or prompt/completion/label.
    model
        The frozen language model: smollm2-135m, a hub id, a local folder or a GGUF file.
    output
        Folder for the reward model; with several methods, one folder below it for each. A reward
        model that is there is replaced by one of the same method only.
    method
        last_token (taken if none is given), retrm, harp, elhsr, retrm_elhsr, armorm or armorm_retrm;
        may be given several times.
    layers
        Override: last, all, last4, or numbers such as 8,16,24 (0 = embedding output).
    point
        Override: post_norm, residual or hidden_states.
    subspace
        Override: full, reasoning:5%, semantic:256 or random:256@SEED.
    source
        Override: states, or logits (reads the full logits of each token instead).
    pooling
        Override: last, mean, max or tokens.
    head
        Override: linear, gated, mlp, worst_token or mixture (for methods that read the prompt, too).
    loss
        Override: bce, bradley_terry, hinge, pairwise_logistic, infonca or nca.
    config
        TOML file with the tables [recipe], [gradient], [loss_options] and [mixture] for everything else.
    format
        Record format, if the columns fit several.
    attribute
        Which rating to learn, for records rated on several.
    rating
        Ratings for methods of several objectives (armorm): known (taken if none is given),
        OBJECTIVE:LOW..HIGH or OBJECTIVE=COLUMN:LOW..HIGH; may be given several times.
    objective
        Computed objectives beside them: correctness, length, format, format=REGEX, refusal; may be
        given several times.
    verbosity
        Which objective a mixture takes out of the others, or none.
    pairs
        A second file, of preferences, for ratings and pairs that do not stand together. Prompts that
        both files have are one prompt.
    strength_sign
        For pairwise strengths: negative_first or positive_first = which side a negative number
        prefers.
    empty
        Records with an empty answer: error, or drop (counted).
    label_threshold
        Grades at or above it are right.
    overlong
        Answers beyond the context: error, truncate_left or skip; the last two are counted.
    test_fraction
        Share of the prompts held out for the figures.
    ensemble
        Members of an ensemble that is fitted beside each model, from the same reading, each on another
        63 % of the training prompts; it is written to the folder ensemble in that of the model. 0 =
        none. Each member takes about as long to fit as the model. An ensemble that an earlier fit left
        there is replaced or, without members, deleted.
    seed
        Of the split and of gradient heads.
    dtype
        Of the backbone: float32, bfloat16, float64 or auto.
    device
        cpu, cuda, cuda:1, ...
    engine
        local = in this process; ray = on the workers of a Ray cluster (the reading).
    workers
        Backbones of engine ray; by default one a GPU, or without GPUs one a machine.
    ray_address
        Of a running cluster, or auto; by default RAY_ADDRESS, else this machine alone.
    keep_features
        Keep the features that were read, to fit again without reading (same recipes).
    dry_run
        Print tokens, seconds and bytes, and stop; mistakes in the data show as in a real run. Short
        trials are made for the seconds. What a killed run has read already is taken off.
    json
        Print one JSON object on stdout.
    """
    from retrm.methods import method as preset

    check_overlong(overlong)
    settings = read_settings(config, ("recipe", "gradient", "loss_options", "mixture"))
    overrides = {
        key: value
        for key, value in {
            "layers": layers,
            "point": point,
            "subspace": subspace,
            "source": source,
            "pooling": pooling,
        }.items()
        if value is not None
    }
    mixture = dict(settings.get("mixture", {}))
    if verbosity is not None:
        mixture["verbosity"] = verbosity
    names = method or ["last_token"]
    if len(set(names)) < len(names):
        raise RecipeError(f"a method is named twice: {', '.join(names)}")
    methods = [
        preset(name).with_changes(
            recipe={**settings.get("recipe", {}), **overrides},
            head=head,
            loss=loss,
            gradient=settings.get("gradient"),
            loss_options=settings.get("loss_options"),
            mixture=mixture,
        )
        for name in names
    ]
    # What it takes to fit is loaded in twice the time that a misspelt method is found in.
    from retrm.backbone.remote import open_backbone
    from retrm.data.join import join_tables
    from retrm.data.load import load_table
    from retrm.data.objectives import add_objectives
    from retrm.data.rating_columns import KNOWN
    from retrm.engines.base import open_engine
    from retrm.evaluation.held_out import measure
    from retrm.evaluation.mixture import measure_mixture
    from retrm.fitting.ensemble import check_n_members
    from retrm.fitting.estimate import estimate_fit
    from retrm.fitting.fit import check_methods, check_rows, check_test_fraction, recipes_of
    from retrm.fitting.fit import fit as fit_methods
    from retrm.heads.artifact import check_target
    from retrm.scorers.ensemble import delete_ensemble
    from retrm.store.shards import ShardSink, delete_store

    check_methods(methods)
    check_test_fraction(test_fraction)
    folders = [output] if len(names) == 1 else [output / name for name in names]
    check_n_members(ensemble)
    for folder, name in zip(folders, names, strict=True):
        check_target(folder)
        if ensemble:
            check_target(folder / ENSEMBLE_FOLDER)
        _check_method(folder, name)
    table = load_table(
        data,
        format=format,
        attribute=attribute,
        ratings=rating or (KNOWN if any(m.solver == "mixture" for m in methods) else None),
        objectives=() if pairs else objective or (),
        strength_sign=strength_sign,  # type: ignore[arg-type]
        empty=empty,  # type: ignore[arg-type]
    )
    if n_unrated := table.counts.get("objectives_without_ratings"):
        err.print(
            f"objectives of this format that no record of {data} rates, left out: {n_unrated:,}",
            style="yellow",
            markup=False,
        )
    if pairs is not None:
        preferences = load_table(
            pairs,
            strength_sign=strength_sign,  # type: ignore[arg-type]
            empty=empty,  # type: ignore[arg-type]
        )
        joined = join_tables({"ratings": table, "pairs": preferences})
        table = add_objectives(joined, objective or ())
    check_rows(
        *(table, methods),
        test_fraction=test_fraction,
        seed=seed,
        label_threshold=label_threshold,
        n_members=ensemble,
    )
    with open_engine(engine, workers=workers, address=ray_address, device=device) as where:
        backbone = open_backbone(
            model,
            engine=where,
            dtype=dtype,
            device=device,
            counts_end=methods[0].recipe.counts_end,
            template=methods[0].recipe.template,
        )
        err.print(f"{len(table):,} answers to {len(table.candidate_sets()):,} prompts from {data}")
        store = output / "features"
        recipes = recipes_of(backbone, table, methods)
        sink = ShardSink.of(store, recipes, backbone)
        if dry_run:
            estimate = estimate_fit(
                *(table, backbone, methods),
                sink=sink,
                test_fraction=test_fraction,
                seed=seed,
                label_threshold=label_threshold,
                overlong=overlong,  # type: ignore[arg-type]
                n_members=ensemble,
            )
            print_fit_estimate(estimate, json=json)
            return
        with reading_progress("reading") as on_progress, _kept_features(store):
            fits = fit_methods(
                table,
                backbone,
                methods,
                test_fraction=test_fraction,
                seed=seed,
                label_threshold=label_threshold,
                sink=sink,
                overlong=overlong,  # type: ignore[arg-type]
                source=Path(data).name,
                n_members=ensemble,
                on_progress=on_progress,
            )
    held_out = table.take(fits.test_rows.tolist())
    figures = measure(
        fits.test_scores,
        held_out,
        fits.log_probability,
        label_threshold=label_threshold,
        seed=seed,
    )
    metrics = figures.as_dict() if figures is not None else {}
    mixtures = {
        name: measure_mixture(
            *(
                name,
                fits.test_scores[name],
                found.controls,
                found.objectives,
                found.adjusted,
                held_out,
            ),
            verbosity=found.verbosity,
            label_threshold=label_threshold,
            seed=seed,
        )
        for name, found in fits.mixtures.items()
    }
    own = {name: {"mixture": found.as_dict()} for name, found in mixtures.items()}
    for made, folder in zip(fits.models, folders, strict=True):
        # First: a kill in between must not leave the members of another fit beside the new model.
        delete_ensemble(folder / ENSEMBLE_FOLDER)
        made.with_metrics({**metrics, **own.get(made.artifact.method, {})}).save(folder)
        if made.artifact.method in fits.ensembles:
            fits.ensembles[made.artifact.method].save(folder / ENSEMBLE_FOLDER)
    _report(fits, folders, figures, metrics, mixtures, json)
    if not keep_features:
        try:
            delete_store(store)
        except (OSError, StoreError) as error:  # the reward models are whole
            err.print(f"the features could not be deleted: {error}", style="yellow", markup=False)


def _check_method(folder: Path, name: str) -> None:
    """Refuse to replace a reward model by one of another method; a damaged one may be replaced."""
    from retrm.heads.artifact import load_artifact

    try:
        there = load_artifact(folder).method
    except ArtifactError:
        return
    if there != name:
        raise OutputError(
            f"{folder} holds a reward model made by {there}, and {name} was asked for; expected a "
            f"folder without one, or --method {there}, which replaces it. Choose another --output"
        )


@contextlib.contextmanager
def _kept_features(store: Path) -> Iterator[None]:
    """After a refusal, say what the reading leaves behind; the message itself follows."""
    try:
        yield
    except (FitError, LabelError, OverlongError):
        if store.is_dir():
            err.print(
                f"what was read is kept in {store}: a fit with the same recipes goes on from there. "
                "Delete that folder if you do not want it",
                markup=False,
            )
        raise


def _report(
    fits: Any,
    folders: list[Path],
    figures: Any,
    metrics: dict[str, Any],
    mixtures: Mapping[str, Any],
    json: bool,
) -> None:
    from retrm.cli.mixture_tables import mixture_tables
    from retrm.cli.tables import comparison_tables

    reading, n_pruned = fits.reading, fits.n_pruned
    if json:
        print_json(
            {
                "models": {m.name: str(f) for m, f in zip(fits.models, folders, strict=True)},
                "ensembles": {
                    m.name: str(f / ENSEMBLE_FOLDER)
                    for m, f in zip(fits.models, folders, strict=True)
                    if m.artifact.method in fits.ensembles
                },
                "n_tokens": reading.n_tokens,
                "reading_s": reading.elapsed_s,
                "n_truncated": reading.n_truncated,
                "n_skipped": reading.n_skipped,
                "n_pruned": n_pruned,
                "metrics": metrics,
                "mixtures": {name: found.as_dict() for name, found in mixtures.items()},
            }
        )
        return
    err.print(f"read {reading.n_tokens:,} tokens in {reading.elapsed_s:.0f} s")
    for count, words in (
        (reading.n_truncated, "over-long answers truncated"),
        (reading.n_skipped, "over-long answers skipped"),
        (n_pruned, "pruned candidates left out: parts of answers, which have no label"),
    ):
        if count:
            err.print(f"[yellow]{count:,} {words}[/]")
    if figures is None:
        err.print(
            "no held-out prompts with something to compare: nothing was measured. More prompts help, or a "
            "larger --test-fraction"
        )
    else:
        out.print(*comparison_tables(figures), sep="\n")
    for name, found in mixtures.items():
        out.print(*mixture_tables(name, found), sep="\n")
    for model, folder in zip(fits.models, folders, strict=True):
        head = model.artifact.head
        out.print(f"{folder}: {model.artifact.method}, {head.n_params:,} parameters")
        if model.artifact.method in fits.ensembles:
            members = fits.ensembles[model.artifact.method].members
            out.print(f"{folder / ENSEMBLE_FOLDER}: {len(members)} members")
    out.print(
        f'\nfrom retrm import RewardModel\nrm = RewardModel.load("{folders[0]}")\n'
        'rm.rank("What is 3 + 4?", ["The answer is 7.", "It is 8."])',
        markup=False,
    )
