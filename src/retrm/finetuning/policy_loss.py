"""The clipped objective, with the log-ratio clamped before it is exponentiated.

    d_t   = log pi_t - log pi_old_t,  clamped to +-log R          (pre-clip, StableReinforce)
    rho_t = exp(d_t)
    l_t   = -min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t)  [+ beta k3_t,  KL in the loss]
    k3_t  = exp(q) - q - 1,  q = log ref_t - log pi_t
    L     = mean over the tokens of a sequence, then over sequences; or over all tokens

With a negative advantage min() does not clip a large ratio, so one stale token can carry a loss of 1e4 and
more; clamped, it carries R at most and no gradient. Zhang et al., arXiv 2505.02835; k3: Schulman 2020, as in
RM-R1 (arXiv 2505.02387) and UnifiedReward-Think (arXiv 2505.03318, which clamps q to +-11).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrm.finetuning.policy import PolicyOptions


@dataclass(frozen=True)
class PolicyLoss:
    """Of one batch.

    Attributes:
        loss: with gradient.
        clip_share: tokens in which the clipped ratio was taken.
        clamp_share: tokens whose log-ratio was clamped.
        largest_ratio: of pi to pi_old, before any clamp; infinite where it overflows.
    """

    loss: Float[Tensor, ""]
    clip_share: float
    clamp_share: float
    largest_ratio: float


def k3(
    logps: Float[Tensor, "batch tokens"],
    ref_logps: Float[Tensor, "batch tokens"],
    *,
    log_clamp: float | None = None,
) -> Float[Tensor, "batch tokens"]:
    """KL(pi, reference) of every token as k3; never below 0.

    Args:
        logps: under the policy.
        ref_logps: under the reference.
        log_clamp: bound of |q|; None = none.
    """
    q = ref_logps - logps
    if log_clamp is not None:
        q = q.clamp(-log_clamp, log_clamp)
    return q.exp() - q - 1


def policy_loss(
    logps: Float[Tensor, "batch tokens"],
    old_logps: Float[Tensor, "batch tokens"],
    advantages: Float[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    options: PolicyOptions,
    *,
    ref_logps: Float[Tensor, "batch tokens"] | None = None,
) -> PolicyLoss:
    """The loss that is minimised.

    Args:
        logps: of the written tokens under the policy, with gradient.
        old_logps: under the policy that wrote them.
        advantages: of the tokens.
        mask: true where a token was written.
        options: what is done.
        ref_logps: under the reference; needed for KL in the loss.
    """
    raw = logps - old_logps
    bound = options.log_bound
    log_ratio = raw if bound is None else raw.clamp(-bound, bound)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - options.clip, 1 + options.clip)
    per_token = -torch.minimum(ratio * advantages, clipped * advantages)
    if options.kl > 0 and options.kl_place == "loss":
        assert ref_logps is not None, "KL in the loss needs the reference"
        per_token = per_token + options.kl * k3(logps, ref_logps, log_clamp=options.kl_log_clamp)
    # Padding may hold anything, and infinity times 0 is no number.
    per_token = torch.where(mask, per_token, 0.0)
    with torch.no_grad():
        taken = (clipped * advantages < ratio * advantages) & mask
        clamped = torch.zeros_like(mask) if bound is None else (raw.abs() > bound) & mask
        n = max(1, int(mask.sum()))
        largest = float(raw[mask].max().double().exp()) if bool(mask.any()) else 1.0
    return PolicyLoss(
        loss=aggregate(per_token, mask, options.aggregation),
        clip_share=int(taken.sum()) / n,
        clamp_share=int(clamped.sum()) / n,
        largest_ratio=largest,
    )


def aggregate(
    per_token: Float[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"], how: str
) -> Float[Tensor, ""]:
    """One number: `sequence` = mean over tokens, then over sequences; `token` = over all tokens."""
    weights = mask.to(per_token.dtype)
    if how == "token":
        return (per_token * weights).sum() / weights.sum().clamp(min=1)
    return ((per_token * weights).sum(1) / weights.sum(1).clamp(min=1)).mean()
