"""`retrm export`: an ordinary transformers checkpoint, where that is exact."""

from typing import Literal

from retrm.cli.console import err, out, print_json
from retrm.cli.options import Output


def export(
    folder: str,
    /,
    *,
    output: Output,
    to: Literal["hf"] = "hf",
    bias: Literal["exact", "drop"] = "exact",
    model: str | None = None,
    json: bool = False,
) -> None:
    """Write a reward model as a Hugging Face sequence classifier that needs no retrm.

    Exact for linear heads on the last token of the last layer, on the full state or a subspace; all
    others are refused. The folder holds the whole backbone, its tokenizer and a chat template that
    ends where the head reads. Its scores are compared with the reward model's before it is kept.

    Parameters
    ----------
    folder
        Reward model made by retrm fit.
    output
        New folder for the checkpoint.
    to
        hf = AutoModelForSequenceClassification.
    bias
        exact refuses a bias that the architecture cannot hold; drop leaves it out, which moves all
        scores by one number and changes no ranking.
    model
        Where the backbone lies now, if its stored name no longer finds it.
    json
        Print what was done as one JSON object on stdout.
    """
    from dataclasses import asdict

    from retrm.scorers.export import check_exportable, export_sequence_classifier
    from retrm.scorers.reward_model import RewardModel

    del to  # one target so far; the option says so
    check_exportable(folder, output)
    err.print(f"loading {folder} with its backbone", markup=False)
    made = RewardModel.load(folder, model=model)
    result = export_sequence_classifier(made, output, bias=bias)
    if json:
        print_json({**asdict(result), "folder": str(result.folder)})
        return
    out.print(f"wrote {result.folder}", markup=False)
    out.print(
        f"{result.n_checked} scores agree to {result.max_error:.1e} (relative to 1 + |score|)",
        markup=False,
    )
    if result.bias == "dropped":
        out.print(
            f"the bias was dropped: reward model's score = logit {result.offset:+.6g}",
            markup=False,
        )
    if result.has_new_pad:
        out.print(f"added the pad token {result.pad_token}: the old one ended turns", markup=False)
    out.print(
        "load it with AutoModelForSequenceClassification.from_pretrained(...), score "
        "tokenizer.apply_chat_template(messages), messages ending with the answer",
        markup=False,
    )
