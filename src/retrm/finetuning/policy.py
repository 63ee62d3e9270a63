"""Options of the policy objective, and presets named after the papers. No torch.

    preset                      ratio guard   filter      normalised over        KL            from
    stable_reinforce            clamp 1,000   3 sigma     batch, tokens          0             paper
    stable_reinforce_released   clamp 1,000   released    batch, tokens          1e-3, reward  code
    reinforce_pp                -             -           batch, tokens          0
    grpo                        -             -           group, sequences       1e-3, loss    RM-R1
    unified_reward_think        -             -           group, sequences       0.04, loss    code

`reinforce_pp` is `stable_reinforce` with `log_ratio_clamp` and `filter_sigma` switched off; with scope
`group` it is GRPO. Sources: Zhang et al., arXiv 2505.02835 (StableReinforce); Chen et al., arXiv 2505.02387
(RM-R1); Wang et al., arXiv 2505.03318 (UnifiedReward-Think).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from retrm.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class PolicyOptions:
    """How rollouts become a loss.

    Attributes:
        log_ratio_clamp: R; log(pi/pi_old) is clamped to +-log R before it is exponentiated (paper,
            pre-clip); None = off.
        filter_sigma: advantages beyond so many standard deviations become 0; None = off.
        filter_window: `symmetric` = around 0 (paper); `released` = around the raw batch mean, then
            whatever is beyond 10 (code).
        scope: mean and deviation of the `batch`, or of the `group` of one prompt.
        statistics: over `token`s, so that long outputs weigh more (Reinforce++), or over `sequence`s.
        std_offset: added to the deviation. Deviations are of the population in a batch, and divide
            by n - 1 in a group, as the authors' code has it.
        kl: coefficient beta of KL(pi, reference).
        kl_place: `reward` = k1, taken from every token's reward; `loss` = k3, added to the loss.
        kl_log_clamp: q = log(reference/pi) is clamped to +- this in k3; None = off.
        clip: epsilon of the clipped ratio.
        aggregation: `sequence` = mean over the tokens of a sequence, then over sequences; `token` = over
            all tokens.
        reward_clip: rewards are clamped to +- this; None = off.
    """

    log_ratio_clamp: float | None = 1000.0
    filter_sigma: float | None = 3.0
    filter_window: Literal["symmetric", "released"] = "symmetric"
    scope: Literal["batch", "group"] = "batch"
    statistics: Literal["token", "sequence"] = "token"
    std_offset: float = 1e-8
    kl: float = 0.0
    kl_place: Literal["reward", "loss"] = "reward"
    kl_log_clamp: float | None = None
    clip: float = 0.2
    aggregation: Literal["sequence", "token"] = "sequence"
    reward_clip: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            got = getattr(self, name)
            if got not in allowed:
                raise RecipeError(f"got {name}={got!r}. {did_you_mean(str(got), allowed)}")
        if self.log_ratio_clamp is not None and not 1 < self.log_ratio_clamp < math.inf:
            raise RecipeError(
                f"got log_ratio_clamp={self.log_ratio_clamp}; expected a ratio above 1, such as 1000 "
                "(the logarithm is taken here), or none"
            )
        for name in ("filter_sigma", "kl_log_clamp", "reward_clip"):
            got = getattr(self, name)
            if got is not None and not got > 0:
                raise RecipeError(f"got {name}={got}; expected a number above 0, or none")
        if self.kl < 0 or self.std_offset <= 0 or not 0 < self.clip < 1:
            raise RecipeError(
                f"got kl={self.kl}, std_offset={self.std_offset}, clip={self.clip}; expected kl from 0 "
                "up, std_offset above 0 and clip between 0 and 1"
            )

    @property
    def log_bound(self) -> float | None:
        """log R: 6.907755 for 1,000."""
        return None if self.log_ratio_clamp is None else math.log(self.log_ratio_clamp)


_CHOICES = {
    "filter_window": ("symmetric", "released"),
    "scope": ("batch", "group"),
    "statistics": ("token", "sequence"),
    "kl_place": ("reward", "loss"),
    "aggregation": ("sequence", "token"),
}

_STABLE = PolicyOptions()
_PLUS = replace(_STABLE, log_ratio_clamp=None, filter_sigma=None)
_GRPO = replace(
    _PLUS, scope="group", statistics="sequence", std_offset=1e-6, kl=1e-3, kl_place="loss"
)

PRESETS: Mapping[str, PolicyOptions] = {
    "stable_reinforce": _STABLE,
    "stable_reinforce_released": replace(
        _STABLE, filter_window="released", kl=1e-3, reward_clip=10.0
    ),
    "reinforce_pp": _PLUS,
    "grpo": _GRPO,
    "unified_reward_think": replace(_GRPO, std_offset=1e-4, kl=0.04, kl_log_clamp=11.0),
}


def policy_options(preset: str, changes: Mapping[str, Any] | None = None) -> PolicyOptions:
    """A preset with changes.

    Args:
        preset: one of `PRESETS`.
        changes: by name of the option; the text "none" switches one off.

    Raises:
        RecipeError: an unknown preset or option, or a value that is impossible.
    """
    if preset not in PRESETS:
        raise RecipeError(f"unknown policy {preset!r}. {did_you_mean(preset, PRESETS)}")
    known = [one.name for one in fields(PolicyOptions)]
    given = {key: None if value == "none" else value for key, value in (changes or {}).items()}
    for name in given:
        if name not in known:
            raise RecipeError(f"unknown option {name!r} of a policy. {did_you_mean(name, known)}")
    return replace(PRESETS[preset], **given)
