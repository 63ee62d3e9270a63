"""Losses that act on the weights of a backbone, or on more than one output of it.

With scores d = r_chosen - r_rejected, log-probabilities log p of the chosen answer's tokens under the kept
LM head, lengths len, heads w_Q (quality) and w_L (length):

    text_term      sft   -log sigmoid(beta sum_t log p_t)            mean over pairs
                   nll   - sum_t log p_t                             mean over pairs
    mixed          (1 - a) L_pairs + a L_text
    length_terms   lam_L [ (1 - corr(r_L, len)) + |corr(r_Q, len)| ] + lam_O |cos(w_L, w_Q)|
                   corr = Pearson over all answers of a batch
    level_loss     -log softmax(z)_label                             mean over answers
    expected_level sum_k level_k softmax(z)_k
    rating_loss    (z - rating)^2                                    mean over what is rated

The ranking loss beside the length terms is that of single pairs, -log sigmoid((r_Q + r_L)_c - (r_Q + r_L)_r);
a public implementation adds the gaps of a batch up before the sigmoid, which is another loss.

Sources: GRM (arXiv 2406.10216, released code: beta 0.1, a 0.01, the sft form is its best); ODIN (arXiv
2402.07319), the cosine of the weights as they are, not of centred ones. Bins with the expected rating as the
score are common in the HelpSteer line.

    >>> import torch
    >>> round(float(expected_level(torch.tensor([[0.0, 0.5, 1.0, 2.0, 1.0]]), torch.arange(5.0))), 6)
    2.59304
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from retrm.backbone.base import Unembedding
from retrm.errors import LabelError, ShapeError
from retrm.finetuning.reward_options import TextForm

_SMALLEST = 1e-12


def text_term(
    log_probability: Float[Tensor, " pairs"], *, beta: float = 0.1, form: TextForm = "sft"
) -> Float[Tensor, ""]:
    """What the text regulariser adds, before its share.

    Args:
        log_probability: (P,) sum over the tokens of each chosen answer, nats.
        beta: of the form `sft`.
        form: `sft` or `nll`.
    """
    if form == "nll":
        return -log_probability.mean()
    return -functional.logsigmoid(beta * log_probability).mean()


def mixed(pair_loss: Tensor, text_loss: Tensor, share: float) -> Float[Tensor, ""]:
    """(1 - a) of the loss of pairs and a of the text's."""
    return (1 - share) * pair_loss + share * text_loss


def answer_log_probabilities(
    states: Float[Tensor, "rows tokens width"],
    ids: Int[Tensor, "rows tokens"],
    starts: Int[Tensor, " rows"],
    stops: Int[Tensor, " rows"],
    unembedding: Unembedding,
) -> Float[Tensor, " rows"]:
    """Sum of log p over the tokens `starts..stops` of each row, each read from the state before it.

    Args:
        states: post_norm states of the last layer.
        ids: padded on the right.
        starts: first token of each answer, 1 or more.
        stops: behind the last one.
        unembedding: the kept LM head.

    One row at a time: the logits of a batch would be the largest tensor of the training.
    """
    total = []
    for row, text, start, stop in zip(states, ids, starts.tolist(), stops.tolist(), strict=True):
        found = torch.log_softmax(_logits(row[start - 1 : stop - 1], unembedding), dim=-1)
        total.append(found.gather(1, text[start:stop, None]).sum())
    return torch.stack(total)


def _logits(states: Tensor, head: Unembedding) -> Float[Tensor, "tokens vocabulary"]:
    weight = head.weight.to(states.device, torch.float32)
    bias = None if head.bias is None else head.bias.to(states.device, torch.float32)
    logits = head.logit_scale * functional.linear(states.float(), weight, bias)
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def pearson(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Correlation; 0 where one of both has no spread.

    Raises:
        ShapeError: shapes differ.
    """
    if x.shape != y.shape or x.dim() != 1:
        raise ShapeError(f"got {tuple(x.shape)} and {tuple(y.shape)} numbers; expected one each")
    a, b = x - x.mean(), y - y.mean()
    scale = a.square().sum() * b.square().sum()
    # A root of 0 has no gradient; where nothing varies there is nothing to correlate either.
    if float(scale.detach()) < _SMALLEST:
        return (a * b).sum() * 0.0
    return (a * b).sum() / scale.sqrt()


def length_correlations(
    quality: Float[Tensor, " answers"],
    length: Float[Tensor, " answers"],
    lengths: Float[Tensor, " answers"],
) -> Float[Tensor, ""]:
    """(1 - corr(r_L, len)) + |corr(r_Q, len)| over the answers of a batch.

    Args:
        quality: (N,) of the head that is kept.
        length: (N,) of the head that is thrown away.
        lengths: (N,) tokens of the answers.
    """
    counted = lengths.to(quality.dtype)
    return (1 - pearson(length, counted)) + pearson(quality, counted).abs()


def overlap(first: Float[Tensor, "..."], other: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """|cos| of two weight vectors."""
    return functional.cosine_similarity(first.flatten(), other.flatten(), dim=0).abs()


def level_loss(
    logits: Float[Tensor, "answers levels"], labels: Int[Tensor, " answers"]
) -> Float[Tensor, ""]:
    """Cross-entropy over levels; labels are positions of levels."""
    return functional.cross_entropy(logits, labels)


def expected_level(
    logits: Float[Tensor, "answers levels"], levels: Float[Tensor, " levels"]
) -> Float[Tensor, " answers"]:
    """The mean level under softmax(logits), in the unit of the levels."""
    return torch.softmax(logits, dim=-1) @ levels.to(logits.dtype)


def rating_loss(
    outputs: Float[Tensor, "answers objectives"], ratings: Float[Tensor, "answers objectives"]
) -> Float[Tensor, ""]:
    """Mean squared error over what is rated; NaN = not rated.

    Raises:
        LabelError: nothing in the batch is rated.
    """
    is_rated = ~torch.isnan(ratings)
    if not bool(is_rated.any()):
        raise LabelError("got a batch without a rating; leave answers without ratings out")
    gap = torch.where(is_rated, outputs - ratings.nan_to_num(), torch.zeros_like(outputs))
    return gap.square().sum() / is_rated.sum()
