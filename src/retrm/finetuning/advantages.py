"""Rewards to advantages: returns, normalisation over the batch or a group, the three-sigma filter.

    r_t = 1[t is the last token] R - beta (log pi_t - log ref_t)          token rewards, k1
    G_t = sum_{u >= t} r_u                                                returns (gamma 1)
    z_t = (G_t - mu) / (sigma + offset)                                   over the batch, or a group
    A_t = z_t if |z_t| <= 3, else 0                                       the filter

Zhang et al., arXiv 2505.02835, section on StableReinforce; Reinforce++ without the filter; GRPO with mu and
sigma of the group of a prompt and no KL in the reward. Where the released code differs see
`PolicyOptions.filter_window`: its window lies around the raw mean mu, so that with rewards of 0.5 and 2 every
wrong sample is dropped once about 0.685 of the samples are right.

What the filter cannot do: a lone failure among n has |z| = sqrt(n - 1), so it is never filtered for n <= 10;
and of two-valued rewards the whole minority goes as soon as its share is below 10 %.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrm.errors import ShapeError
from retrm.finetuning.policy import PolicyOptions

RELEASED_LIMIT = 10.0
_EDGE = 1e-6  # z of exactly 3 is kept, whatever the rounding


@dataclass(frozen=True)
class Advantages:
    """Of one batch of rollouts.

    Attributes:
        values: A, zero on padding; (batch, tokens).
        filtered_share: tokens whose advantage the filter zeroed, of all tokens.
        flat_share: sequences whose group (or batch) has no spread: they teach nothing.
    """

    values: Float[Tensor, "batch tokens"]
    filtered_share: float
    flat_share: float


def token_returns(
    rewards: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch tokens"],
    *,
    kl: Float[Tensor, "batch tokens"] | None = None,
    beta: float = 0.0,
) -> Float[Tensor, "batch tokens"]:
    """G of every token; 0 on padding.

    Args:
        rewards: of the sequences; they are earned at the last token, cut or not.
        mask: true where a token was written.
        kl: log pi - log ref of every token (k1); None = there is none.
        beta: its coefficient.

    Raises:
        ShapeError: shapes differ.
    """
    if rewards.shape[0] != mask.shape[0] or (kl is not None and kl.shape != mask.shape):
        raise ShapeError(
            f"got {tuple(rewards.shape)} rewards and a mask {tuple(mask.shape)}; expected one reward a row"
        )
    total = rewards.double().unsqueeze(1).expand(mask.shape)
    if kl is not None and beta != 0.0:
        paid = torch.where(mask, kl.double(), 0.0)
        total = total - beta * paid.flip(1).cumsum(1).flip(1)
    return torch.where(mask, total, 0.0)


def advantages(
    rewards: Float[Tensor, " batch"],
    mask: Bool[Tensor, "batch tokens"],
    options: PolicyOptions,
    *,
    group_size: int = 1,
    kl: Float[Tensor, "batch tokens"] | None = None,
) -> Advantages:
    """Advantages of a batch of rollouts, those of one prompt side by side.

    Args:
        rewards: of the sequences; NaN = no rule could score it, which gets 0 and counts in no mean.
        mask: true where a token was written.
        options: what is done.
        group_size: rollouts of each prompt.
        kl: log pi - log ref of every token, for KL in the reward.

    Raises:
        ShapeError: shapes differ, or the batch is no whole number of groups.
    """
    n = rewards.shape[0]
    size = n if options.scope == "batch" else group_size
    if n == 0 or size == 0 or n % size:
        raise ShapeError(
            f"got {n} rollouts in groups of {group_size}; expected a multiple, above 0"
        )
    known = ~rewards.isnan()
    rewards = rewards.double().nan_to_num(0.0)
    if options.reward_clip is not None:
        rewards = rewards.clamp(-options.reward_clip, options.reward_clip)
    beta = options.kl if options.kl_place == "reward" else 0.0
    returns = token_returns(rewards, mask, kl=kl, beta=beta)
    counted = mask & known.unsqueeze(1)
    mean, std = _moments(returns, counted, size, options)
    z = torch.where(counted, (returns - mean) / (std + options.std_offset), 0.0)
    kept = z if options.filter_sigma is None else _filtered(z, mean, options)
    n_tokens = int(mask.sum())
    dropped = int(((kept == 0) & (z != 0)).sum())
    return Advantages(
        values=torch.where(counted, kept, 0.0).float(),
        filtered_share=dropped / n_tokens if n_tokens else 0.0,
        flat_share=float((std.squeeze(1) < _EDGE).double().mean()),
    )


def _moments(
    returns: Tensor, counted: Tensor, size: int, options: PolicyOptions
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each row's batch or group; (batch, 1) each."""
    if options.statistics == "sequence":
        # The return of the first token is the whole of a sequence: its reward less all of its KL.
        returns, counted = returns[:, :1], counted[:, :1]
    values = returns.reshape(-1, size * returns.shape[1])  # (sets, values of a set)
    weights = counted.reshape(values.shape).double()
    n = weights.sum(1, keepdim=True)
    mean = (values * weights).sum(1, keepdim=True) / n.clamp(min=1)
    squares = ((values - mean) ** 2 * weights).sum(1, keepdim=True)
    below = n if options.scope == "batch" else n - 1
    std = (squares / below.clamp(min=1)).sqrt()
    return mean.repeat_interleave(size, 0), std.repeat_interleave(size, 0)


def _filtered(z: Tensor, mean: Tensor, options: PolicyOptions) -> Tensor:
    assert options.filter_sigma is not None
    edge = options.filter_sigma + _EDGE
    if options.filter_window == "symmetric":
        return torch.where(z.abs() <= edge, z, 0.0)
    inside = (z - mean).abs() <= edge
    return torch.where(inside & (z.abs() <= RELEASED_LIMIT) & z.isfinite(), z, 0.0)
