"""What a loss learns from: labels, prompts and pairs as tensors over the rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrm.errors import FitError, LabelError, RecipeError
from retrm.losses import LOSSES, lead_and_weights
from retrm.pair_options import PLAIN, PairOptions
from retrm.records import AnswerTable, RatingScale


@dataclass(frozen=True)
class Targets:
    """The supervision of some rows.

    Attributes:
        labels: 1 right, 0 wrong, NaN not labelled.
        groups: the prompt of each row, numbered 0..P-1 in order of first appearance.
        pairs: (chosen row, rejected row).
        margins: of each pair.
        weights: of each pair; every prompt has total weight 1, so that a prompt with many pairs
            does not drown the others.
        objectives: names of what rows are rated on; none = they are not.
        ratings: of each row on each objective, 0 to 1, NaN = not rated, float64.
        scales: of each objective, the raters' own numbers.
    """

    labels: Float[Tensor, " rows"]
    groups: Int[Tensor, " rows"]
    pairs: Int[Tensor, "pairs 2"]
    margins: Float[Tensor, " pairs"]
    weights: Float[Tensor, " pairs"]
    objectives: tuple[str, ...] = ()
    ratings: Float[Tensor, "rows objectives"] = field(
        default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64)
    )
    scales: tuple[RatingScale, ...] = ()

    @classmethod
    def of(cls, table: AnswerTable, *, label_threshold: float | None = None) -> Self:
        """The targets a table carries.

        Graded labels (anything but 0 and 1) become pairs within their prompt: the higher grade is
        chosen. With `label_threshold`, a grade at or above it becomes 1 and any other 0.

        Raises:
            LabelError: no labels and no pairs.
        """
        judged = table.judged(label_threshold=label_threshold)
        labels, pairs = judged.labels, judged.preferences()
        if np.isnan(labels).all() and not pairs:
            raise without_targets(len(table), tuple(table.ratings))
        groups = _group_numbers(table)
        index = torch.tensor([[p.chosen, p.rejected] for p in pairs], dtype=torch.int64)
        index = index.reshape(-1, 2)
        return cls(
            labels=torch.from_numpy(labels).float(),
            groups=groups,
            pairs=index,
            margins=torch.tensor([p.margin for p in pairs], dtype=torch.float32),
            weights=_equal_prompt_weights(groups[index[:, 0]]),
            objectives=tuple(table.ratings),
            ratings=_rating_matrix(table),
            scales=tuple(table.scales[name] for name in table.ratings),
        )

    def take(self, rows: Sequence[int] | Tensor) -> Self:
        """The targets of `rows`; pairs that lose a member are left out."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        place = torch.full((len(self.labels),), -1, dtype=torch.int64)
        place[index] = torch.arange(len(index))
        moved = place[self.pairs]
        kept = (moved >= 0).all(dim=1)
        _, groups = torch.unique(self.groups[index], return_inverse=True)
        return replace(
            self,
            labels=self.labels[index],
            groups=groups,
            pairs=moved[kept],
            margins=self.margins[kept],
            weights=self.weights[kept],
            ratings=self.ratings[index] if self.objectives else self.ratings,
        )

    @property
    def is_labelled(self) -> Tensor:
        """Rows that carry a label."""
        return ~torch.isnan(self.labels)

    @property
    def n_prompts(self) -> int:
        """Number of different prompts."""
        return int(torch.unique(self.groups).numel())


def without_targets(n: int, objectives: Sequence[str] = ()) -> LabelError:
    """What is raised for answers that carry nothing to learn from but, maybe, ratings."""
    if objectives:
        return LabelError(
            f"{n} answers are rated on {', '.join(objectives)} and carry no labels, pairs or ranks; "
            "expected chosen/rejected pairs beside the ratings, in the same file or in one of their own "
            "(--pairs), for a mixture of objectives; or name the one to learn: attribute"
        )
    return LabelError(
        f"{n} answers carry no labels, pairs or ranks; expected a label per answer, chosen/rejected "
        "pairs, or ranks. Grade rollouts first: retrm grade ROLLOUTS"
    )


def default_loss(targets: Targets, wanted: str) -> str:
    """The loss `auto` stands for: BCE where rows are labelled, Bradley-Terry where only pairs are."""
    if wanted != "auto":
        return wanted
    return "bce" if targets.is_labelled.any() else "bradley_terry"


def check_targets(targets: Targets, loss: str, options: PairOptions = PLAIN) -> None:
    """Refuse targets that cannot determine a head, before any time is spent.

    Raises:
        LabelError: the loss needs labels, pairs or strengths that are not there, or one class is
            missing.
        FitError: all rows belong to one prompt, or no prompt has right and wrong answers.
        RecipeError: options of the loss of pairs for another loss.
    """
    needs = LOSSES[loss].needs
    if options != PLAIN and needs != "pairs":
        raise RecipeError(
            f"got loss options {', '.join(options.changes())} for the loss {loss}; they belong to "
            "bradley_terry, the loss of preference pairs. Leave them out, or use loss=bradley_terry on "
            "data with pairs"
        )
    if needs == "pairs":
        if not len(targets.pairs):
            raise LabelError(
                f"the loss {loss} needs preference pairs and the data have none; use loss=bce or "
                "loss=pairwise_logistic with right/wrong labels"
            )
        lead_and_weights(targets.margins.clamp_min(0), targets.weights, options)
        if (targets.margins < 0).any():
            raise LabelError(
                f"got {int((targets.margins < 0).sum())} negative margins; expected 0 or more, since a "
                "margin says by how much chosen should lead. Swap those pairs, or leave `margin` out"
            )
    else:
        _check_labels(targets, loss, needs_mixed=needs == "groups")
    if loss == "nca" and (torch.bincount(targets.groups[targets.is_labelled]) == 1).any():
        raise FitError(
            "the loss nca needs at least two labelled answers to every prompt; leave prompts with one "
            "out, or use loss=bce"
        )
    if targets.n_prompts < 2:
        raise FitError(
            "all answers belong to one prompt; expected at least two, since prompts are what is "
            "split into training and held-out parts. Check the prompt_id column"
        )


def _check_labels(targets: Targets, loss: str, *, needs_mixed: bool) -> None:
    labels = targets.labels[targets.is_labelled]
    if not len(labels):
        raise LabelError(
            f"the loss {loss} needs a right/wrong label per answer and the data have none; use "
            "loss=bradley_terry for preference pairs"
        )
    if labels.min() == labels.max():
        kind = "right" if labels.max() == 1 else "wrong"
        raise LabelError(
            f"all {len(labels)} labelled answers are {kind}; expected both kinds. Add prompts of "
            "another difficulty, or check the grader"
        )
    if needs_mixed:
        right = torch.zeros(int(targets.groups.max()) + 1).index_add_(
            0, targets.groups[targets.is_labelled], labels
        )
        counts = torch.zeros_like(right).index_add_(
            0, targets.groups[targets.is_labelled], torch.ones_like(labels)
        )
        if not ((right > 0) & (right < counts)).any():
            raise FitError(
                f"no prompt has both a right and a wrong answer, and the loss {loss} compares answers "
                "to one prompt; use loss=bce, or sample more answers a prompt"
            )


def loss_value(
    loss: str, scores: Tensor, targets: Targets, options: PairOptions = PLAIN
) -> Tensor | None:
    """The loss of `scores` under `targets`; None if nothing here can be compared.

    Args:
        loss: a name of `LOSSES`.
        scores: (n,) of the rows of `targets`.
        targets: of these rows.
        options: of the loss of pairs; other losses have none.
    """
    spec = LOSSES[loss]
    if spec.needs == "pairs":
        if not len(targets.pairs):
            return None
        chosen, rejected = scores[targets.pairs[:, 0]], scores[targets.pairs[:, 1]]
        return spec.function(chosen, rejected, targets.margins, targets.weights, options=options)
    kept = targets.is_labelled
    if not kept.any():
        return None
    if spec.needs == "labels":
        return spec.function(scores[kept], targets.labels[kept])
    groups = torch.unique(targets.groups[kept], return_inverse=True)[1]
    if loss == "pairwise_logistic" and not _has_mixed(targets.labels[kept], groups):
        return None
    return spec.function(scores[kept], targets.labels[kept], groups)


def _has_mixed(labels: Tensor, groups: Tensor) -> bool:
    right = torch.zeros(int(groups.max()) + 1).index_add_(0, groups, labels)
    counts = torch.bincount(groups)
    return bool(((right > 0) & (right < counts)).any())


def _equal_prompt_weights(groups_of_pairs: Tensor) -> Tensor:
    if not len(groups_of_pairs):
        return torch.zeros(0)
    counts = torch.bincount(groups_of_pairs)
    return 1.0 / counts[groups_of_pairs].float()


def _rating_matrix(table: AnswerTable) -> Tensor:
    columns = [torch.from_numpy(values.astype(np.float64)) for values in table.ratings.values()]
    if not columns:
        return torch.zeros(0, 0, dtype=torch.float64)
    return torch.stack(columns, dim=1)


def _group_numbers(table: AnswerTable) -> Tensor:
    seen: dict[str, int] = {}
    return torch.tensor(
        [seen.setdefault(a.prompt_id, len(seen)) for a in table.answers], dtype=torch.int64
    )
