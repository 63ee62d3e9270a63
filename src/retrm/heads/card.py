"""The model card: what a reward model is, what it was measured at, and how far to trust it."""

from collections.abc import Mapping
from typing import Any

from retrm.features.caveat import CAVEAT
from retrm.features.subspace import SubspaceSpec
from retrm.heads.artifact import Artifact


def model_card(artifact: Artifact) -> str:
    """Markdown for the folder's README.md."""
    recipe, backbone, fitted = artifact.recipe, artifact.backbone, artifact.fitted
    lines = [
        "---",
        "library_name: retrm",
        "tags: [reward-model, hidden-states]",
        "---",
        "",
        f"# Reward model `{artifact.method}` on `{backbone.name}`",
        "",
        "A small head on the hidden states of a frozen language model. It scores one answer to one "
        "prompt; scores are raw, unbounded, higher is better. Only the last assistant turn is scored.",
        "",
        "```python",
        "from retrm import RewardModel",
        "",
        'rm = RewardModel.load("THIS FOLDER")',
        'rm.rank("What is 3 + 4?", ["The answer is 7.", "It is 8."])',
        "```",
        "",
        "| part | value |",
        "|---|---|",
        f"| backbone | `{backbone.name}`, {backbone.n_layers} blocks, width {backbone.width}, "
        f"{backbone.dtype} |",
        f"| layers, state point | {recipe.layers}, {recipe.point} |",
        f"| subspace | {recipe.subspace} |",
        f"| pooling | {recipe.pooling} over response tokens, end-of-turn token "
        f"{'counted' if recipe.counts_end else 'not counted'} |",
        *_context_row(recipe.context),
        f"| head | {artifact.head.name}, {artifact.head.n_params:,} parameters |",
        f"| loss | {artifact.loss} |",
        f"| fitted on | {fitted.get('n_train_answers', '?')} answers of "
        f"{fitted.get('source') or 'unnamed data'}, seed {fitted.get('seed', '?')} |",
        "",
        *metric_lines(artifact.metrics),
    ]
    if SubspaceSpec.parse(recipe.subspace).part == "reasoning":
        lines += [f"{CAVEAT} Draw no other conclusion from this model.", ""]
    lines += [
        "The head belongs to exactly this backbone, tokenizer and template; retrm checks their "
        "fingerprints and replays a self-test when it loads.",
        "",
    ]
    return "\n".join(lines)


def _context_row(context: str) -> list[str]:
    if context == "none":
        return []
    return ["| context | post_norm state of the last layer at the end of the prompt, full width |"]


def metric_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The held-out figures as lines of Markdown."""
    rows = metrics.get("rows")
    if not rows:
        return ["No held-out figures were measured (fitted without a test part).", ""]
    if "n_pairs" in metrics:
        return _pair_metrics(metrics)
    lines = [
        f"Held-out prompts: {metrics['n_prompts']} ({metrics['n_mixed']} with right and wrong "
        "answers). 95 % intervals resample prompts.",
        "",
        "| | within-prompt AUROC | best-of-N |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {_cell(row.get('within_auroc'))} | {_cell(row['best_of_n'])} |"
        for row in rows
    ]
    return [*lines, ""]


def _pair_metrics(metrics: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Held-out pairs: {metrics['n_pairs']} of {metrics['n_prompts']} prompts; a tie counts one "
        "half. 95 % intervals resample prompts.",
        "",
        "| | pair accuracy | ties |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {_cell(row['accuracy'])} | {row['n_ties']} |" for row in metrics["rows"]
    ]
    return [*lines, ""]


def _cell(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return ""
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
