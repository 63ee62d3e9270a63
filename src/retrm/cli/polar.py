"""`retrm polar`: policy discriminators: texts of policies, training, how the loss scales."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from retrm.cli.console import err, out, print_json, progress, table
from retrm.cli.options import OptionalOutput, Output
from retrm.cli.settings import read_settings
from retrm.errors import RecipeError, did_you_mean

app = App(
    name="polar",
    usage="Usage: retrm polar COMMAND",
    help="Policy discriminators (POLAR): scorers that compare an answer with a reference.",
)
VERBS = ("synthesise", "train", "scaling")


@app.default
def no_verb(*words: Annotated[str, Parameter(show=False)]) -> None:
    """Say which verb is missing."""
    if not words:
        app.help_print([])
        return
    raise RecipeError(
        f"got `retrm polar {' '.join(words)}`; expected one of {', '.join(VERBS)}. "
        f"{did_you_mean(words[0], VERBS)}"
    )


@app.command
def synthesise(
    corpus: str,
    /,
    *,
    policies: Path,
    output: Output,
    pairs: int = 2000,
    test_pairs: int = 200,
    hold_out: list[str] | None = None,
    wrapper: str = "pretrain",
    prefix_words: tuple[int, int] = (16, 64),
    column: str | None = None,
    max_new_tokens: int = 96,
    seed: int = 0,
    batch_size: int = 64,
    concurrency: int = 8,
    limit: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Let policies continue the same beginnings: rows to pre-train a discriminator on.

    What is drawn is written as it comes; the same command goes on there after a kill. The manifest
    says who wrote what.

    Parameters
    ----------
    corpus
        Texts: .txt or .md (split at blank lines), JSONL, CSV, Parquet or hub:owner/name.
    policies
        TOML file with a table [policies.NAME] for each: model, and perhaps adapter, endpoint,
        temperature (1), top_p (0.9), top_k (50), before.
    output
        Folder: train.jsonl, test.jsonl, held_out.jsonl, manifest.json, and what was drawn.
    pairs
        Rows to train on; each takes a prefix of its own and three texts.
    test_pairs
        Rows of each of the two test files.
    hold_out
        Policies that stand in held_out.jsonl only; may be given several times.
    wrapper
        pretrain = policies continue a prefix; sft = they answer it as a chat.
    prefix_words
        Fewest and most words of a prefix.
    column
        Where a record's text stands, if not in text, content, document, prompt, problem or question.
    max_new_tokens
        Of a continuation.
    seed
        Of prefixes, pairs and draws.
    batch_size
        Continuations that a local model draws together.
    concurrency
        Requests to an endpoint at a time.
    limit
        Only the first so many texts.
    dtype
        Of local models: float32 or bfloat16.
    device
        cpu, cuda, cuda:1, ...
    json
        Print the manifest as one JSON object on stdout.
    """
    from retrm.finetuning.corpus import read_prefixes
    from retrm.finetuning.policies import read_policies
    from retrm.finetuning.run_folder import RunFolder
    from retrm.finetuning.synthesis import SynthesisOptions
    from retrm.finetuning.synthesis import synthesise as run

    options = SynthesisOptions(
        n_pairs=pairs,
        n_test=test_pairs,
        hold_out=tuple(hold_out or ()),
        wrapper=wrapper,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        concurrency=concurrency,
        dtype=dtype,
        device=device,
    )
    known = read_policies(policies)
    prefixes = read_prefixes(
        corpus,
        words=prefix_words,
        column=column,
        is_whole=wrapper == "sft",
        seed=seed,
        limit=limit,
    )
    with progress("drawing") as report:
        manifest = run(
            prefixes, known, RunFolder(output), options=options, source=corpus, on_progress=report
        )
    if json:
        print_json(manifest)
        return
    rows = [
        [name, f"{one['n_texts']:,}", one["mean_characters"], one["share_finished"]]
        for name, one in manifest["policies"].items()
    ]
    out.print(table("Who wrote what", ["policy", "texts", "characters", "ended"], rows))
    left = ", ".join(f"{name} {n:,}" for name, n in manifest["counts"].items() if n)
    err.print(f"rows {manifest['rows']} -> {output}; {left}", markup=False)


@app.command
def train(
    data: str,
    /,
    *,
    model: str,
    output: Output,
    test: str | None = None,
    held_out: str | None = None,
    test_fraction: float = 0.0,
    hold_out: list[str] | None = None,
    rank: int = 0,
    config: Path | None = None,
    wrapper: str | None = None,
    equal: str = "error",
    format: str = "auto",
    limit: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Train a discriminator: pre-train on policies, or fine-tune on answers in ranks.

    A killed run goes on from its last checkpoint with the same command. `retrm score polar:OUTPUT` then
    scores answers that have a reference.

    Parameters
    ----------
    data
        Rows of retrm polar synthesise, records with reference, chosen and rejected, or answers with
        ranks, three to a prompt at least: the best is the reference.
    model
        A language model (a head of zeros is added), or a discriminator: a folder of this verb, or a
        published one.
    output
        Folder of the run; the model is in OUTPUT/model.
    test
        Rows to measure on, of known policies.
    held_out
        Rows with policies that are not trained on.
    test_fraction
        Share of the prompts to measure on, where there is no file for that.
    hold_out
        Policies to be left out of training and measured; may be given several times.
    rank
        Of low-rank updates; 0 = all weights are trained.
    config
        TOML with [training] (epochs, learning_rate, batch_size, device_batch, max_length, ...), [lora]
        (alpha, dropout) and [loss] (smoothing, centring, form, ...).
    wrapper
        sft, pretrain, or mixed = rows of both are meant to be trained on together.
    equal
        Rows in which two texts are equal: error, or drop (counted).
    format
        Record format, if the columns fit several.
    limit
        Only the first so many records.
    dtype
        Of the weights: float32 or bfloat16.
    device
        cpu, cuda, cuda:1, ...
    json
        Print the facts of the run as one JSON object on stdout.
    """
    from retrm.finetuning.comparisons import Split, load_comparisons, split
    from retrm.finetuning.language_model import LoraOptions
    from retrm.finetuning.polar import PolarOptions, train_polar
    from retrm.finetuning.run_folder import RunFolder
    from retrm.pair_options import PairOptions

    settings = read_settings(config, ("training", "lora", "loss"))
    options = _made(PolarOptions, settings.get("training", {}), "training")
    lora = _made(LoraOptions, {"rank": rank, **settings.get("lora", {})}, "lora")
    rows = load_comparisons(
        data,
        wrapper=wrapper,
        equal=equal,  # type: ignore[arg-type]
        format=format,
        limit=limit,
    )
    parts = split(
        rows.rows, test_fraction=test_fraction, hold_out=hold_out or (), seed=options.seed
    )
    extra = [
        load_comparisons(name, wrapper=wrapper, equal=equal).rows if name else ()  # type: ignore[arg-type]
        for name in (test, held_out)
    ]
    parts = Split(parts.train, (*parts.test, *extra[0]), (*parts.held_out, *extra[1]))
    _check_apart(parts)
    said = ", ".join(f"{name} {n:,}" for name, n in rows.counts.items())
    err.print(
        f"{said}; {len(parts.train):,} rows to train on, {len(parts.test):,} and {len(parts.held_out):,} to "
        "measure on",
        markup=False,
    )
    facts = train_polar(
        parts,
        model,
        RunFolder(output),
        options=options,
        lora=lora,
        loss_options=PairOptions.from_dict(settings.get("loss", {})),
        dtype=dtype,
        device=device,
    )
    if json:
        print_json(facts)
        return
    names = (
        "steps",
        "seconds",
        "n_parameters",
        "n_trained",
        "n_tokens",
        "test_loss",
        "test_accuracy",
    )
    names = (*names, "held_out_loss", "held_out_accuracy")
    shown = [[name, _shown(facts[name])] for name in names if name in facts]
    out.print(table("Run", ["", ""], shown))
    err.print(f"-> {output}; score with polar:{output}", markup=False)


@app.command
def scaling(
    *runs: Path,
    output: OptionalOutput = None,
    json: bool = False,
) -> None:
    """Fit power laws of the loss over parameters and over arithmetic, and draw them.

    Parameters
    ----------
    runs
        Finished runs of retrm polar train, of three sizes at least, measured on the same rows.
    output
        PNG file for the picture; needs the extra plot.
    json
        Print laws and points as one JSON object on stdout.
    """
    from retrm.finetuning.power_law import scaling as fit

    found = fit(list(runs))
    if output is not None:
        from retrm.reports.scaling_figure import draw_scaling

        draw_scaling(found, output)
    if json:
        print_json(found.as_dict())
        return
    laws = {"parameters": found.by_parameters, "arithmetic": found.by_compute}
    rows = [
        [name, f"{law.coefficient:.4g}", f"{law.exponent:.4f}", f"{law.correlation:.4f}", law.n]
        for name, law in laws.items()
        if law is not None
    ]
    out.print(table("loss = a x^b", ["over", "a", "b", "correlation", "points"], rows))
    if found.by_compute is None:
        err.print(
            "the frontier over arithmetic has fewer than three points, so no law is fitted to it"
        )


def _made(kind: Any, values: dict[str, Any], name: str) -> Any:
    """Options from a table of the settings; unknown keys are errors."""
    from dataclasses import fields

    known = [field.name for field in fields(kind)]
    for key in values:
        if key not in known:
            raise RecipeError(f"unknown key {key!r} in [{name}]. {did_you_mean(key, known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"[{name}] holds a value of another kind: {error}") from error


def _check_apart(parts: Any) -> None:
    """Refuse to measure on prompts that are trained on."""
    trained = {row.prompt_id for row in parts.train}
    shared = next((r for r in (*parts.test, *parts.held_out) if r.prompt_id in trained), None)
    if shared is not None:
        raise RecipeError(
            f"{shared.where or shared.prompt_id}: a prompt to measure on is trained on as well; expected "
            "prompts of their own. Leave it out of one of the two"
        )


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
