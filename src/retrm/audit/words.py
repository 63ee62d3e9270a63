"""What figures of an audit are called: short in tables and pictures, at length in sentences.

>>> from retrm.audit.words import METRICS
>>> METRICS["within_auroc"].short
'within-prompt AUROC'
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrm.audit.rules import has_interval
from retrm.audit.tables import CellRow, ContrastRow
from retrm.metrics import format_interval, format_number


@dataclass(frozen=True)
class Figure:
    """A metric or a measure.

    Attributes:
        short: for the head of a column.
        long: for a sentence.
        is_better_high: whether more is better; a verdict on any other would have the wrong sign.
    """

    short: str
    long: str
    is_better_high: bool = True


@dataclass(frozen=True)
class Kind:
    """A kind of features, `short` for the head of a line and `long` for a sentence."""

    short: str
    long: str


METRICS: Mapping[str, Figure] = {
    "within_auroc": Figure("within-prompt AUROC", "within-prompt AUROC"),
    "within_auroc_pairs": Figure(
        "within-prompt AUROC, by pairs", "within-prompt AUROC, every pair counting the same"
    ),
    "pooled_auroc": Figure("pooled AUROC", "pooled AUROC, mean over folds"),
    "best_of_n": Figure("best of N", "accuracy of the best-scored answer of each prompt"),
    "pair_accuracy": Figure("pair accuracy", "share of preference pairs in the right order"),
    "length_matched_auroc": Figure(
        "AUROC at equal length", "within-prompt AUROC among answers of like length"
    ),
    "length_matched_pair_accuracy": Figure(
        "pair accuracy at equal length",
        "share of preference pairs of like length in the right order",
    ),
    "residual_auroc": Figure(
        "AUROC beyond length and log-probability",
        "within-prompt AUROC beyond length and log-probability",
    ),
    "finished_within_auroc": Figure(
        "within-prompt AUROC, finished answers", "within-prompt AUROC of finished answers"
    ),
    "log_loss": Figure("log-loss", "log-loss of the probabilities", is_better_high=False),
    "brier": Figure("Brier score", "Brier score of the probabilities", is_better_high=False),
    "ece": Figure("calibration error", "expected calibration error", is_better_high=False),
}
"""Of heads and baselines: the metrics of `cells` and `contrasts`."""

MEASURES: Mapping[str, Figure] = {
    "accuracy": Figure("accuracy of new answers", "accuracy of new answers"),
    "log_probability": Figure("log-probability (nats a token)", "log-probability (nats a token)"),
    "within_auroc": Figure("within-prompt AUROC", "within-prompt AUROC of the trained score"),
    "greedy_agreement": Figure(
        "same greedy token", "share of tokens at which the likeliest token stays the same"
    ),
    "score_shift": Figure("shift of the score", "shift of the trained score", is_better_high=False),
    "energy_removed": Figure("energy removed", "energy removed", is_better_high=False),
}
"""Of interventions."""

KINDS: Mapping[str, Kind] = {
    "full": Kind("full state", "the full state"),
    "reasoning": Kind("reasoning", "the reasoning subspace"),
    "semantic": Kind("semantic", "the semantic subspace"),
    "semantic_all": Kind("all but reasoning", "all directions but the reasoning subspace"),
    "random": Kind("random", "random subspaces of the same width"),
    "random_energy": Kind("random of equal energy", "random subspaces of equal energy"),
    "random_singular": Kind("random singular directions", "random singular directions"),
    "coordinates": Kind("raw coordinates", "raw coordinates"),
    "pca_top": Kind("PCA, largest", "the largest principal directions"),
    "pca_bottom": Kind("PCA, smallest", "the smallest principal directions"),
    "white_random": Kind("random, whitened", "random subspaces of whitened states"),
    "scalars": Kind("scalars (length, confidence)", "scalars of length and confidence"),
    "scalars+full": Kind("scalars + full state", "scalars with the full state"),
    "scalars+random": Kind("scalars + random", "scalars with random subspaces of the same width"),
    "scalars+reasoning": Kind("scalars + reasoning", "scalars with the reasoning subspace"),
    "prompt": Kind("end of the prompt", "the end of the prompt"),
    "shuffled": Kind("reasoning, shuffled labels", "the reasoning subspace, labels shuffled"),
}
"""Of features, and of what is removed; a baseline goes by its own name."""


def kind_in_words(kind: str) -> str:
    """At length, for a sentence; a name without an entry stays as it is."""
    return KINDS[kind].long if kind in KINDS else kind


def figure_in_words(row: ContrastRow | CellRow) -> str:
    """`.812 [.790, .833]`, or the number and that it has no interval."""
    if has_interval(row):
        return format_interval(row.value, row.low, row.high)
    return f"{format_number(row.value)} (no interval)"


def span_in_words(values: Sequence[float]) -> str:
    """`-.012 to -.008`, or the one value there is."""
    low, high = format_number(min(values)), format_number(max(values))
    return low if low == high else f"{low} to {high}"


def named_p(value: float, name: str = "p") -> str:
    """`p = .042` or `p < .001`."""
    shown = p_in_words(value)
    return f"{name} {shown}" if shown.startswith("<") else f"{name} = {shown}"


def p_in_words(value: float) -> str:
    """`.042`, or that it is smaller than is worth telling."""
    return "< .001" if value < 0.001 else format_number(value)
