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
What can be added to the loss of pairs stands in `pair_options.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from retrm.errors import LabelError, RecipeError, ScoreError, ShapeError, did_you_mean
from retrm.pair_options import PLAIN, PairOptions

Scores = Float[Tensor, " candidates"]
Labels = Float[Tensor, " candidates"]
Groups = Int[Tensor, " candidates"]
Pairs = Float[Tensor, " pairs"]

BARRIER = 5.0  # scores that the log barrier keeps apart from
_SMALLEST_SQUARE = 1e-12


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
    chosen: Pairs,
    rejected: Pairs,
    margin: Pairs | None = None,
    weights: Pairs | None = None,
    *,
    options: PairOptions = PLAIN,
) -> Float[Tensor, ""]:
    """-log sigmoid(chosen - rejected - margin), weighted mean over pairs, and what `options` add.

    Args:
        chosen: (P,) scores of the preferred candidates.
        rejected: (P,) scores of the others, in the same order.
        margin: (P,) by how much chosen should lead, or how strong the preference is, as
            `options.margins` says; at least 0; None = no margin.
        weights: (P,) of each pair, above 0; None = all equal.
        options: other forms of the loss of a pair, and penalties on scores. A mean over pairs is
            divided by the sum of the weights, strengths among them: their unit is no learning rate.

    Raises:
        ScoreError: a score is NaN or infinite.
        LabelError: a margin is NaN, infinite or negative; or a strength is 0.
        ShapeError: shapes differ, or no pairs.
    """
    terms = pair_terms(chosen, rejected, margin, options=options)
    base = torch.ones_like(chosen) if weights is None else weights.to(chosen.dtype)
    _check_same_shape(chosen, base, "chosen", "weights")
    _, weighed = lead_and_weights(margin, base, options)
    loss = (terms * weighed).sum() / weighed.sum()
    return loss + _score_penalty(chosen, rejected, base / base.sum(), options)


def pair_terms(
    chosen: Pairs,
    rejected: Pairs,
    margin: Pairs | None = None,
    *,
    options: PairOptions = PLAIN,
) -> Pairs:
    """(P,) loss of each pair, before strengths weigh it and without penalties; raises as `bradley_terry`."""
    _check_scores(chosen, "chosen")
    _check_scores(rejected, "rejected")
    _check_same_shape(chosen, rejected, "chosen", "rejected scores")
    if margin is not None:
        _check_same_shape(chosen, margin, "chosen", "margins")
    lead, _ = lead_and_weights(margin, torch.ones_like(chosen), options)
    gap = chosen - rejected - lead
    if options.form == "hinge":
        return functional.relu(-gap)
    if options.form == "normalised":
        # Two scores of exactly 0 have no direction; their gap stays 0.
        size = (chosen.square() + rejected.square()).clamp_min(_SMALLEST_SQUARE)
        return -functional.logsigmoid(gap / size.sqrt())
    wrong = -functional.logsigmoid(gap)
    if options.form == "focal":
        return (1 - 2 * functional.relu(torch.sigmoid(gap) - 0.5)) ** options.gamma * wrong
    if options.form == "absolute":
        return wrong - functional.logsigmoid(chosen) - functional.logsigmoid(-rejected)
    share = options.smoothing
    return wrong if share == 0 else (1 - share) * wrong - share * functional.logsigmoid(-gap)


def lead_and_weights(
    margin: Pairs | None, weights: Pairs, options: PairOptions
) -> tuple[Pairs, Pairs]:
    """By how much each chosen answer should lead, and what the loss of its pair weighs.

    Args:
        margin: (P,) of the data; None = none.
        weights: (P,) of the pairs, before strengths.
        options: what margins mean.

    Raises:
        LabelError: a margin is NaN, infinite or negative, or 0 where it is a strength.
    """
    lead = torch.full_like(weights, options.lead)
    if options.margins == "weight" and margin is None:
        margin = torch.zeros_like(weights)
    if margin is None or options.margins == "ignore":
        return lead, weights
    bad = ~torch.isfinite(margin) | (margin < 0)
    if bool(bad.any()):
        raise LabelError(
            f"got margin {_first(margin, bad)}; expected a finite number, 0 or more. If chosen "
            "is the worse one, swap the pair."
        )
    margin = margin.to(weights.dtype)
    if options.margins == "lead":
        return lead + options.margin_scale * margin, weights
    bad = margin == 0
    if bool(bad.any()):
        raise LabelError(
            f"got strength {_first(margin, bad)} with margins=weight; expected a number above 0 for every "
            "pair, such as 1, 2 or 3. Add a margin column, or use margins=lead"
        )
    return lead, weights * margin


def _score_penalty(chosen: Pairs, rejected: Pairs, shares: Pairs, options: PairOptions) -> Tensor:
    """What `options` add to the loss beside the pairs; `shares` add up to 1."""
    total = chosen.new_zeros(())
    if options.centring:
        total = total + options.centring * (shares * (chosen + rejected).square()).sum()
    if options.batch_sum:
        mean = (shares * (chosen + rejected)).sum() / 2
        total = total + options.batch_sum * mean.square()
    if options.score_l2:
        squares = chosen.square() + rejected.square()
        total = total + options.score_l2 * (shares * squares).sum()
    if options.log_barrier:
        barrier = _log_barrier(chosen) + _log_barrier(rejected)
        total = total + options.log_barrier * (shares * barrier).sum()
    return total


def _log_barrier(scores: Tensor) -> Tensor:
    """-log(5 - r) - log(5 + r); the cut keeps it finite and takes the gradient away outside."""
    cut = scores.clamp(-BARRIER + 1e-3, BARRIER - 1e-3)
    return -torch.log(BARRIER - cut) - torch.log(BARRIER + cut)


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
