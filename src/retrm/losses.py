"""Losses on scores: pure functions of tensors, no state, no reduction but the mean that is stated.

With scores R, labels y in {0, 1} and K candidates of one prompt:

    bce                -[ y log sigmoid(R) + (1-y) log sigmoid(-R) ]            mean over candidates
    hinge              max(0, 1 - (2y-1) R)                                     mean over candidates
    bradley_terry      -log sigmoid(R_chosen - R_rejected - margin)             mean over pairs
    pairwise_logistic  -log sigmoid(R_right - R_wrong), all right x wrong pairs mean in a prompt,
                       then over mixed prompts (or over all pairs)
    infonca            q = softmax(y/alpha); -sum_i q_i log softmax(R)_i        mean over prompts
    nca                -sum_i [ q_i log sigmoid(R_i) + (1/K) log sigmoid(-R_i) ] mean over prompts

Sources: bce, hinge, pairwise ("dpo"), infonca and nca as in the code of ELHSR/SWIFT (arXiv
2505.12225); Bradley-Terry with margin as in Llama 2 (arXiv 2307.09288). Only `bce` gives scores a
probability reading; the scores of the others have an arbitrary zero. Everything is computed through
log-sigmoid and log-sum-exp, so scores of +-1e4 give finite values and gradients in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from retrm.errors import LabelError, RecipeError, ScoreError, ShapeError, did_you_mean

Scores = Float[Tensor, " candidates"]
Labels = Float[Tensor, " candidates"]
Groups = Int[Tensor, " candidates"]


@dataclass(frozen=True)
class LossSpec:
    """What a caller must know to use a loss.

    Attributes:
        function: called as f(scores, labels), f(chosen, rejected, margin=...) or
            f(scores, labels, groups), as `needs` says.
        needs: "labels" = one label a candidate; "pairs" = chosen and rejected scores; "groups" =
            labels and the prompt of every candidate, whole prompts in a batch.
        has_probability: whether sigmoid(score) estimates the probability of being right.
        doc: one line for people.
    """

    function: Callable[..., Tensor]
    needs: Literal["labels", "pairs", "groups"]
    has_probability: bool
    doc: str


def bce(scores: Scores, labels: Labels) -> Float[Tensor, ""]:
    """Cross-entropy of sigmoid(score), mean over candidates.

    Args:
        scores: (N,) raw scores.
        labels: (N,) in [0, 1]; values between are soft labels.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a label is NaN or outside [0, 1].
        ShapeError: scores and labels differ in shape, or are empty.
    """
    labels = _checked_labels(scores, labels, "unit")
    terms = labels * functional.logsigmoid(scores) + (1 - labels) * functional.logsigmoid(-scores)
    return -terms.mean()


def hinge(scores: Scores, labels: Labels) -> Float[Tensor, ""]:
    """max(0, 1 - (2y-1) score), mean over candidates; labels 0 or 1. Raises as `bce`."""
    labels = _checked_labels(scores, labels, "binary")
    return functional.relu(1 - (2 * labels - 1) * scores).mean()


def bradley_terry(
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    margin: Float[Tensor, " pairs"] | None = None,
    weights: Float[Tensor, " pairs"] | None = None,
) -> Float[Tensor, ""]:
    """-log sigmoid(chosen - rejected - margin), weighted mean over pairs.

    Args:
        chosen: (P,) scores of the preferred candidates.
        rejected: (P,) scores of the others, in the same order.
        margin: (P,) by how much chosen should lead, at least 0; None = no margin.
        weights: (P,) of each pair, above 0; None = all equal.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a margin is NaN, infinite or negative.
        ShapeError: shapes differ, or no pairs.
    """
    _check_scores(chosen, "chosen")
    _check_scores(rejected, "rejected")
    _check_same_shape(chosen, rejected, "chosen", "rejected scores")
    gap = chosen - rejected
    if margin is not None:
        _check_same_shape(chosen, margin, "chosen", "margins")
        bad = ~torch.isfinite(margin) | (margin < 0)
        if bool(bad.any()):
            raise LabelError(
                f"got margin {_first(margin, bad)}; expected a finite number, 0 or more. If chosen "
                "is the worse one, swap the pair."
            )
        gap = gap - margin.to(gap.dtype)
    terms = -functional.logsigmoid(gap)
    if weights is None:
        return terms.mean()
    _check_same_shape(chosen, weights, "chosen", "weights")
    return (terms * weights).sum() / weights.sum()


def pairwise_logistic(
    scores: Scores,
    labels: Labels,
    groups: Groups,
    *,
    weighting: Literal["prompt", "pair"] = "prompt",
) -> Float[Tensor, ""]:
    """-log sigmoid(right - wrong) over all right x wrong pairs inside a prompt.

    Prompts without both a right and a wrong candidate have no pairs and take no part; with no
    mixed prompt at all the value is 0 and so is the gradient.

    Args:
        scores: (N,) raw scores.
        labels: (N,) 0 or 1.
        groups: (N,) integer, the prompt of every candidate; need not be sorted or dense.
        weighting: "prompt" gives every mixed prompt the same weight; "pair" is the mean over all
            pairs of ELHSR's code, where a prompt with 4 right of 8 counts 16 and 1 of 8 counts 7.

    Raises:
        ScoreError, LabelError, ShapeError: as `bce`.
        RecipeError: unknown weighting.
    """
    labels = _checked_labels(scores, labels, "binary")
    group, n_groups = _dense_groups(scores, groups)
    if weighting not in ("prompt", "pair"):
        raise RecipeError(
            f"got weighting {weighting!r}; expected 'prompt' or 'pair'. "
            + did_you_mean(str(weighting), ("prompt", "pair"))
        )
    right, wrong = _right_wrong_pairs(labels, group, n_groups)
    if len(right) == 0:
        return scores.sum() * 0.0
    terms = -functional.logsigmoid(scores[right] - scores[wrong])
    if weighting == "pair":
        return terms.mean()
    n_pairs = torch.bincount(group[right], minlength=n_groups)
    return (terms / n_pairs[group[right]]).sum() / (n_pairs > 0).sum()


def infonca(
    scores: Scores, labels: Labels, groups: Groups, *, alpha: float = 0.01
) -> Float[Tensor, ""]:
    """Cross-entropy from softmax(labels/alpha) to softmax(scores) in each prompt, mean over prompts.

    A prompt that is all right or all wrong pulls its scores together (minimum log K). A shift of
    all scores of a prompt changes nothing, so the scores have no absolute meaning.

    Args:
        scores: (N,) raw scores.
        labels: (N,) finite numbers, usually 0 or 1; grades are allowed.
        groups: (N,) integer, the prompt of every candidate.
        alpha: temperature of the labels; 0.01 makes q uniform over the best-labelled candidates.

    Raises:
        ScoreError, LabelError, ShapeError: as `bce`, but labels need only be finite.
        RecipeError: alpha is not above 0.
    """
    labels = _checked_labels(scores, labels, "finite")
    group, n_groups = _dense_groups(scores, groups)
    target = _target_distribution(labels, group, n_groups, alpha)
    return -(target * _log_softmax(scores, group, n_groups)).sum() / n_groups


def nca(
    scores: Scores, labels: Labels, groups: Groups, *, alpha: float = 0.01
) -> Float[Tensor, ""]:
    """Noise-contrastive alignment: each candidate against noise, mean over prompts.

    At its optimum a right candidate of c right among K has score log(K/c), and EVERY candidate of
    an all-right or all-wrong prompt has 0: absolute values are not comparable across prompts. Keep
    unmixed prompts out, or accept this and say so.

    Args:
        scores: (N,) raw scores.
        labels: (N,) finite numbers, usually 0 or 1.
        groups: (N,) integer, the prompt of every candidate; at least two candidates a prompt.
        alpha: temperature of the labels, as in `infonca`.

    Raises:
        ScoreError, LabelError, ShapeError: as `infonca`; LabelError also for a prompt with a
            single candidate.
        RecipeError: alpha is not above 0.
    """
    labels = _checked_labels(scores, labels, "finite")
    group, n_groups = _dense_groups(scores, groups)
    size = torch.bincount(group, minlength=n_groups)
    if bool((size < 2).any()):
        row = int((size[group] < 2).nonzero()[0])
        raise LabelError(
            f"got a prompt with one candidate (row {row}); nca expected at least two. Sample more "
            "answers for it, leave the prompt out, or use bce."
        )
    target = _target_distribution(labels, group, n_groups, alpha)
    terms = target * functional.logsigmoid(scores)
    return -(terms + functional.logsigmoid(-scores) / size[group]).sum() / n_groups


LOSSES: dict[str, LossSpec] = {
    "bce": LossSpec(
        bce, "labels", True, "cross-entropy on right/wrong; the score is a logit of being right"
    ),
    "hinge": LossSpec(hinge, "labels", False, "margin loss on right/wrong"),
    "bradley_terry": LossSpec(
        bradley_terry, "pairs", False, "log-sigmoid of the gap of a preference pair"
    ),
    "pairwise_logistic": LossSpec(
        pairwise_logistic, "groups", False, "Bradley-Terry over all right x wrong pairs of a prompt"
    ),
    "infonca": LossSpec(
        infonca, "groups", False, "softmax over the candidates of a prompt against their labels"
    ),
    "nca": LossSpec(nca, "groups", False, "noise-contrastive form of infonca; K >= 2 candidates"),
}


def _first(values: Tensor, bad: Tensor) -> str:
    """The first offending value with its position."""
    position = int(bad.nonzero()[0])
    return f"{float(values[position])} at position {position}"


def _check_scores(scores: Tensor, name: str = "scores") -> None:
    if scores.dim() != 1 or scores.numel() == 0:
        raise ShapeError(
            f"got {name} of shape {tuple(scores.shape)}; expected one number a candidate, shape "
            "(N,) with N >= 1."
        )
    bad = ~torch.isfinite(scores)
    if bool(bad.any()):
        raise ScoreError(
            f"got score {_first(scores, bad)} of {name}; expected finite numbers. Check the "
            "features for NaN, or lower the learning rate."
        )


def _check_same_shape(reference: Tensor, other: Tensor, name: str, other_name: str) -> None:
    if reference.shape != other.shape:
        raise ShapeError(
            f"got {tuple(other.shape)} {other_name} for {tuple(reference.shape)} {name}; expected "
            "one each."
        )


def _checked_labels(
    scores: Tensor, labels: Tensor, kind: Literal["binary", "unit", "finite"]
) -> Tensor:
    """Labels in the dtype of the scores, after refusing what the loss cannot mean."""
    _check_scores(scores)
    _check_same_shape(scores, labels, "scores", "labels")
    values = labels.to(scores.dtype)
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        raise LabelError(
            f"got label {_first(values, bad)}; expected a number for every candidate. Leave out "
            "unlabelled candidates before the loss."
        )
    if kind == "binary":
        bad = (values != 0) & (values != 1)
    elif kind == "unit":
        bad = (values < 0) | (values > 1)
    if bool(bad.any()):
        wanted = "0 or 1" if kind == "binary" else "a number from 0 to 1"
        raise LabelError(
            f"got label {_first(values, bad)}; expected {wanted}. Turn grades into right/wrong, or "
            "into preference pairs for bradley_terry."
        )
    return values


def _dense_groups(scores: Tensor, groups: Tensor) -> tuple[Tensor, int]:
    """Prompt numbers 0..G-1 and G."""
    _check_same_shape(scores, groups, "scores", "groups")
    if groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise ShapeError(
            f"got groups of dtype {groups.dtype}; expected whole numbers (int64), the prompt of "
            "every candidate."
        )
    distinct, dense = torch.unique(groups, return_inverse=True)
    return dense, len(distinct)


def _right_wrong_pairs(labels: Tensor, group: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """Row numbers of all right x wrong pairs inside a prompt; memory grows with the pairs only."""
    right = (labels == 1).nonzero().squeeze(1)
    wrong = (labels == 0).nonzero().squeeze(1)
    wrong = wrong[torch.argsort(group[wrong], stable=True)]
    n_wrong = torch.bincount(group[wrong], minlength=n_groups)
    first_wrong = torch.cumsum(n_wrong, 0) - n_wrong
    repeats = n_wrong[group[right]]
    left = torch.repeat_interleave(right, repeats)
    block_start = torch.repeat_interleave(torch.cumsum(repeats, 0) - repeats, repeats)
    within = torch.arange(len(left), device=labels.device) - block_start
    return left, wrong[first_wrong[group[left]] + within]


def _log_softmax(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Log softmax inside each prompt."""
    # The maximum only guards against overflow; its gradient would cancel, so it is left out.
    top = torch.full((n_groups,), -torch.inf, dtype=values.dtype, device=values.device)
    top = top.scatter_reduce(0, group, values.detach(), "amax")
    centred = values - top[group]
    total = torch.zeros_like(top).index_add(0, group, centred.exp())
    return centred - total.log()[group]


def _target_distribution(labels: Tensor, group: Tensor, n_groups: int, alpha: float) -> Tensor:
    """softmax(labels/alpha) inside each prompt."""
    if not alpha > 0:
        raise RecipeError(f"got alpha = {alpha}; expected a number above 0, usually 0.01.")
    return _log_softmax(labels / alpha, group, n_groups).exp()
