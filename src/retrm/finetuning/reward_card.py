"""The model card of a trained reward model."""

from collections.abc import Mapping
from typing import Any

from retrm.finetuning.language_model import LoraOptions
from retrm.finetuning.reward_options import RewardOptions
from retrm.heads.card import metric_lines

_LEARNT = {
    "pairs": "chosen and rejected answers (Bradley-Terry); only differences within a prompt mean something",
    "correctness": "right and wrong answers; sigmoid(score) estimates the probability of being right",
    "steps": "right and wrong steps: the score of a text judges the step that ends it",
    "ordinal": "grades on a few levels; the score is the expected level",
    "ratings": "ratings from 0 to 1 on several objectives; the score is their mean",
}


def reward_card(
    model: str,
    options: RewardOptions,
    lora: LoraOptions,
    facts: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """Markdown for the README.md beside the weights.

    Args:
        model: the language model, as it was named.
        options: of the training.
        lora: low-rank updates.
        facts: of the run.
        metrics: held-out figures, as the evaluation gives them.
    """
    data = facts["data"]
    trained = (
        "all weights" if not lora.rank else f"low-rank updates of rank {lora.rank}, and the head"
    )
    changes = {
        name: value
        for name, value in options.as_dict().items()
        if value != getattr(RewardOptions(), name) and name not in ("kind", "pairs")
    }
    said = {**changes, **options.pairs.changes()}
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-classification",
            "tags: [reward-model, retrm]",
            "---",
            "",
            f"# Reward model, trained from `{model}`",
            "",
            f"Learnt from {_LEARNT[options.kind]}. Scores are raw, higher is better; `problem_type` is "
            "regression, so that engines leave them so. Only the last assistant turn is scored.",
            "",
            "```python",
            "from retrm.scorers.open import open_scorer",
            "from retrm.records import Answer",
            "",
            'rm = open_scorer("hf:THIS FOLDER")',
            'rm.score([Answer.of("What is 3 + 4?", "The answer is 7.")])',
            "```",
            "",
            "| part | value |",
            "|---|---|",
            f"| trained | {trained}: {facts['n_trained']:,} of {facts['n_parameters']:,} parameters |",
            f"| rows | {data['n_rows']:,} of {data['n_read']:,}; {data['n_truncated']:,} cut, "
            f"{data['n_skipped']:,} left out as over-long |",
            f"| steps | {facts['steps']:,} of {options.batch_size} rows, highest rate "
            f"{options.rate(is_low_rank=lora.rank > 0):g} |",
            f"| other options | {', '.join(f'{k}={v}' for k, v in said.items()) or 'none'} |",
            f"| seconds | {facts['seconds']:,} |",
            "",
            *(metric_lines(metrics) if metrics is not None else []),
        ]
    )
