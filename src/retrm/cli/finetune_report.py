"""What `retrm finetune` says at its end: figures, pictures, where everything is."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrm.cli.console import err, out, print_json, table
from retrm.cli.tables import comparison_tables
from retrm.errors import MissingExtraError
from retrm.files import atomic_write, write_json
from retrm.finetuning.finetune import Finetuned
from retrm.finetuning.held_out import HeldOut, measure_held_out
from retrm.finetuning.language_model import LoraOptions
from retrm.finetuning.reward_card import reward_card
from retrm.finetuning.reward_options import RewardOptions
from retrm.finetuning.run_folder import RunFolder
from retrm.records import AnswerTable
from retrm.reports.evaluation_words import figure_words
from retrm.reports.training_curves import training_png
from retrm.scorers.open import open_scorer


def report(
    output: Path,
    runs: Sequence[Finetuned],
    spec: str,
    train: AnswerTable,
    held_out: AnswerTable | None,
    options: RewardOptions,
    lora: LoraOptions,
    *,
    model: str,
    label_threshold: float | None,
    device: str,
    json: bool,
) -> None:
    """Measure, draw, write the card, print."""
    figures = None
    if held_out is not None:
        figures = measure_held_out(
            open_scorer(spec, device=device),
            held_out,
            options.kind,
            label_threshold=label_threshold,
            training_means={n: float(np.nanmean(v)) for n, v in train.ratings.items()},
            overlong=options.overlong,
            seed=options.seed,
        )
        write_json(output / "held_out.json", figures.as_dict())
    for run in runs:
        _draw(run, model)
    if spec.startswith("hf:"):
        card = reward_card(
            model, options, lora, runs[0].facts, None if figures is None else figures.as_dict()
        )
        with atomic_write(Path(spec.removeprefix("hf:")) / "README.md", "w") as written:
            written.write(card)
    _print(runs, spec, figures, json=json)


def _draw(run: Finetuned, model: str) -> None:
    folder = RunFolder(run.model.parent)
    try:
        training_png(folder.path / "curves.png", folder.metrics(), title=f"Training of {model}")
    except MissingExtraError as error:
        err.print(f"no picture of the training: {error}", markup=False)


def _print(runs: Sequence[Finetuned], spec: str, figures: HeldOut | None, *, json: bool) -> None:
    if json:
        print_json(
            {
                "scorer": spec,
                "runs": [dict(run.facts) for run in runs],
                "held_out": None if figures is None else figures.as_dict(),
            }
        )
        return
    data = runs[0].facts["data"]
    for name, words in (
        ("n_truncated", "rows with an over-long answer were cut"),
        ("n_skipped", "rows with an over-long answer were left out"),
        ("n_rendered", "answers or prompts hold text that a chat template has written"),
    ):
        if data[name]:
            err.print(f"[yellow]{data[name]:,} {words}[/]")
    if figures is None:
        err.print("nothing was held out, so nothing was measured")
    else:
        if figures.n_skipped:
            err.print(f"[yellow]{figures.n_skipped:,} held-out answers left out as over-long[/]")
        if figures.comparison is not None:
            out.print(*comparison_tables(figures.comparison), sep="\n")
        elif figures.figures:
            rows = [[name, figure_words(found)] for name, found in figures.figures.items()]
            out.print(table("held-out prompts", ["", "value"], rows))
        else:
            err.print("no held-out prompts with something to compare: nothing was measured")
    for run in runs:
        facts = run.facts
        out.print(
            f"{run.model}: {facts['n_trained']:,} of {facts['n_parameters']:,} parameters, "
            f"{facts['steps']:,} steps, {facts['seconds']:,} s",
            markup=False,
        )
    out.print(
        f"\nretrm score {spec} ANSWERS.jsonl\nretrm serve {spec}",
        markup=False,
    )
