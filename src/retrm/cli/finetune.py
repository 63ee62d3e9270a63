"""`retrm finetune`: a reward model whose backbone is trained too."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrm.cli.console import err
from retrm.cli.options import Output, Ratings
from retrm.cli.settings import read_settings
from retrm.errors import RecipeError


def finetune(
    data: str,
    /,
    *,
    model: str,
    output: Output,
    kind: str = "auto",
    rank: int = 16,
    alpha: float | None = None,
    epochs: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    device_batch: int | None = None,
    max_length: int | None = None,
    overlong: str | None = None,
    start_head: Path | None = None,
    members: int = 0,
    combine: str = "warm",
    config: Path | None = None,
    format: str = "auto",
    attribute: str | None = None,
    rating: Ratings = None,
    strength_sign: str | None = None,
    empty: str = "error",
    rendered: str = "error",
    label_threshold: float | None = None,
    levels: str | None = None,
    test_fraction: float = 0.2,
    evaluate_steps: int | None = None,
    save_steps: int | None = None,
    limit: int | None = None,
    seed: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Train a reward model: low-rank updates or all weights of a language model, and a head.

    What is written is an ordinary sequence classifier, OUTPUT/model: score it as hf:OUTPUT/model, serve it
    by retrm serve or any engine. Prompts are split into a training and a held-out part, and the held-out
    figures are printed. A killed training goes on when the same command is run again. Several processes:
    accelerate launch -m retrm.cli.main finetune ... (--use_fsdp --fsdp_version 2 shards the weights).

    Parameters
    ----------
    data
        File of judged answers: JSONL, JSON, Parquet, or hub:owner/name.
    model
        The language model: smollm2-135m, a hub id, a local folder or a GGUF file; or the folder of a reward
        model to go on with.
    output
        Folder of the run.
    kind
        pairs, correctness, steps, ordinal or ratings; auto = pairs where the data have preferences, else
        correctness.
    rank
        Of the low-rank updates; 0 = train all weights.
    alpha
        Updates are scaled by alpha / rank; twice the rank if not given.
    epochs
        Times that every row is seen; 1 if not given.
    learning_rate
        Highest; 1e-4 for low-rank updates and 1e-5 for all weights if not given.
    batch_size
        Pairs or answers an update; 16 if not given.
    device_batch
        Of them, how many go through the model at once; 4 if not given.
    max_length
        Most tokens of an answer with its prompt; the model's context if not given.
    overlong
        Longer ones: error, truncate_left or skip; the last two are counted. Both answers of a pair are cut
        alike, or left out together.
    start_head
        Reward model of retrm fit on the same model (linear, last token): training starts from its head.
    members
        Train so many models from one initialisation and combine them; 0 = one model.
    combine
        warm = the mean of their weights, one model; mean, min or uwo = an ensemble of their scores.
    config
        TOML file with the tables [training] (text_share, length_heads, init_std, ...) and [loss_options]
        (form, smoothing, margin, centring, ...).
    format
        Record format, if the columns fit several.
    attribute
        Which rating to learn, for kind ordinal and for pairs made of grades.
    rating
        Ratings for kind ratings: known, OBJECTIVE:LOW..HIGH or OBJECTIVE=COLUMN:LOW..HIGH.
    strength_sign
        For pairwise strengths: negative_first or positive_first = which side a negative number prefers.
    empty
        Records with an empty answer: error, or drop (counted).
    rendered
        Records whose text a chat template has written already: error, or keep (as plain text, counted).
    label_threshold
        Grades at or above it are right.
    levels
        All grades that raters could give, such as 0,1,2,3,4, for kind ordinal.
    test_fraction
        Share of the prompts held out for the figures; 0 = none.
    evaluate_steps
        Updates between two looks at the held-out part, the first before any; none if not given.
    save_steps
        Updates between two checkpoints; 50 if not given.
    limit
        Only the first so many records.
    seed
        Of the split, of new weights and of the order of the rows.
    dtype
        Of the arithmetic: float32 or bfloat16; weights are float32 in any case.
    device
        cpu, cuda or mps.
    json
        Print one JSON object on stdout.
    """
    from retrm.finetuning.reward_options import RewardOptions

    settings = read_settings(config, ("training", "loss_options"))
    given = {
        name: value
        for name, value in {
            "epochs": epochs,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "device_batch": device_batch,
            "max_length": max_length,
            "overlong": overlong,
            "evaluate_steps": evaluate_steps,
            "save_steps": save_steps,
            "seed": seed,
        }.items()
        if value is not None
    }
    training = {**settings.get("training", {}), **given}
    if kind != "auto":
        training["kind"] = kind
    options = RewardOptions.from_dict(training, settings.get("loss_options"))

    # What it takes to train is loaded in many times the time that a misspelt option is found in.
    from retrm.cli.finetune_report import report
    from retrm.data.load import load_table
    from retrm.data.rating_columns import KNOWN
    from retrm.data.stepwise import load_steps
    from retrm.files import check_writable
    from retrm.finetuning.finetune import Finetuned
    from retrm.finetuning.finetune import finetune as train_one
    from retrm.finetuning.language_model import LoraOptions
    from retrm.finetuning.members import check_members, train_members
    from retrm.finetuning.run_folder import RunFolder
    from retrm.fitting.fit import check_test_fraction

    check_test_fraction(test_fraction)
    if members:
        check_members(members, combine)
    check_writable(output)
    wanted_ratings = rating or (KNOWN if options.kind == "ratings" else None)
    if options.kind == "steps":
        found = load_steps(data, limit=limit)
    else:
        found = load_table(
            data,
            format=format,
            attribute=attribute,
            ratings=wanted_ratings,
            strength_sign=strength_sign,  # type: ignore[arg-type]
            empty=empty,  # type: ignore[arg-type]
            limit=limit,
        )
    if kind == "auto" and "kind" not in training:
        options = _of_data(found, training, settings.get("loss_options"), label_threshold)
    train, held_out = _split(found, test_fraction, options.seed)
    err.print(
        f"{len(found):,} answers to {len(found.candidate_sets()):,} prompts from {data}; "
        f"kind {options.kind}",
        markup=False,
    )

    def one(folder: RunFolder, member: int, n_scale: int) -> Finetuned:
        return train_one(
            train,
            model,
            folder,
            options=options,
            lora=LoraOptions(rank, alpha),
            held_out=held_out,
            start_head=start_head,
            label_threshold=label_threshold,
            levels=_levels(levels),
            rendered=rendered,  # type: ignore[arg-type]
            dtype=dtype,
            device=device,
            member=member,
            n_scale=n_scale,
        )

    if members:
        together = train_members(output, members, combine, one)  # type: ignore[arg-type]
        runs, spec = together.runs, together.scorer
    else:
        runs, spec = (one(RunFolder(output), 0, 0),), f"hf:{output / 'model'}"
    if int(os.environ.get("RANK", "0")) == 0:
        report(
            output,
            runs,
            spec,
            train,
            held_out,
            options,
            LoraOptions(rank, alpha),
            model=model,
            label_threshold=label_threshold,
            device=device,
            json=json,
        )


def _of_data(
    found: Any,
    training: Mapping[str, Any],
    loss_options: Mapping[str, Any] | None,
    label_threshold: float | None,
) -> Any:
    """The options with the kind that the data are of."""
    from retrm.finetuning.reward_options import RewardOptions

    has_pairs = bool(found.judged(label_threshold=label_threshold).preferences())
    kind = "pairs" if has_pairs else "correctness"
    return RewardOptions.from_dict({**training, "kind": kind}, loss_options)


def _split(found: Any, test_fraction: float, seed: int) -> tuple[Any, Any]:
    """Training and held-out part; the latter None where nothing is held out."""
    from retrm.data.split import split_by_prompt

    if test_fraction == 0:
        return found, None
    train, test = split_by_prompt(found.prompt_ids, (1 - test_fraction, test_fraction), seed)
    return found.take(train.tolist()), found.take(test.tolist())


def _levels(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise RecipeError(
            f"got levels {text!r}; expected numbers with commas between, such as 0,1,2,3,4"
        ) from None
