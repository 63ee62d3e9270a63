"""What a judgement earns, by the rules of the three papers. No torch.

    rm_r1                 +1 if the last 80 characters hold the exact tag of the right side and not the other's,
                          else -1; no reward for the form            (arXiv 2505.02387, released code)
    unified_reward_think  format f + accuracy a, each 0 or 1         (arXiv 2505.03318, released code)
                          f: from its start the output is a think block, white space, an answer block
                          a: the text of the first answer block is the right sentence, letter by letter; without a
                          block the whole output is
    r1_reward             Result (1 + w Consistency) + w Format, w = 0.5        (arXiv 2505.02835)
                          Format: the whole output is one think block directly followed by one answer block
                          Consistency: -1, 0 or +1 (released code), or 0 and 1 (paper: "01")

Where the released matcher of R1-Reward raises an error the sample earns 1.0 there; here nothing that
cannot be read earns a result. UnifiedReward-Think does not reward totals: `totals_weight` adds a reward for
totals that agree with the verdict, 0 unless asked for.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from retrm.errors import RecipeError, did_you_mean
from retrm.finetuning.consistency import ConsistencyCheck, RuleConsistency
from retrm.finetuning.labelled import Label
from retrm.judges.registry import get_template
from retrm.judges.rm_r1 import LAST, TAGS
from retrm.judges.template import JudgeTemplate
from retrm.judges.thoughts import answer_blocks
from retrm.judges.unified_reward_think import SENTENCES

_FROM_START = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_WHOLE = re.compile(r"<think>.*</think><answer>.*</answer>", re.DOTALL)


@dataclass(frozen=True)
class Earned:
    """What one judgement earned, and why.

    Attributes:
        reward: the sum.
        parts: its terms by name, before their weights.
    """

    reward: float
    parts: Mapping[str, float]


class RewardRule(Protocol):
    """A rule of a paper.

    Attributes:
        name: of the rule.
        template: whose outputs it reads.
        settings: all that rewards hang on, as plain JSON.
    """

    name: str
    template: str

    @property
    def settings(self) -> Mapping[str, float | str | None]:
        """See the class."""
        ...

    def __call__(self, outputs: Sequence[str], labels: Sequence[Label]) -> list[Earned]:
        """What each output earns, given which candidate it was shown is better."""
        ...


@dataclass(frozen=True)
class RmR1Reward:
    """+1 or -1 for the verdict tag at the end."""

    name: str = field(default="rm_r1", init=False)
    template: str = field(default="rm_r1_instruct", init=False)

    @property
    def settings(self) -> Mapping[str, float | str | None]:
        """See `RewardRule`."""
        return {"rule": self.name}

    def __call__(self, outputs: Sequence[str], labels: Sequence[Label]) -> list[Earned]:
        """See the module."""
        return [
            self._one(output[-LAST:], label) for output, label in zip(outputs, labels, strict=True)
        ]

    def _one(self, end: str, label: Label) -> Earned:
        other: Label = "second" if label == "first" else "first"
        is_right = TAGS[label] in end and TAGS[other] not in end
        return Earned(1.0 if is_right else -1.0, {"result": float(is_right)})


@dataclass(frozen=True)
class UnifiedRewardThinkReward:
    """Format plus accuracy.

    Attributes:
        totals_weight: of a term that is 1 where the dimension scores add up to the verdict; 0 = as
            published.
    """

    totals_weight: float = 0.0
    name: str = field(default="unified_reward_think", init=False)
    template: str = field(default="unified_reward_think", init=False)

    @property
    def settings(self) -> Mapping[str, float | str | None]:
        """See `RewardRule`."""
        return {"rule": self.name, "totals_weight": self.totals_weight}

    def __call__(self, outputs: Sequence[str], labels: Sequence[Label]) -> list[Earned]:
        """See the module."""
        return [self._one(output, label) for output, label in zip(outputs, labels, strict=True)]

    def _one(self, output: str, label: Label) -> Earned:
        blocks = answer_blocks(output)
        said = blocks[0] if blocks else output.strip()
        form = float(_FROM_START.match(output) is not None)
        right = float(said == SENTENCES[label])
        verdict = get_template(self.template).parse(output)
        agrees = float(verdict.winner is not None and verdict.score_winner == verdict.winner)
        parts = {"format": form, "result": right, "totals": agrees}
        return Earned(form + right + self.totals_weight * agrees, parts)


@dataclass(frozen=True)
class R1RewardReward:
    """Result (1 + w Consistency) + w Format.

    Attributes:
        consistency: how last words are compared with the verdict; None = the term is left out.
        consistency_scale: `signed` = -1, 0, +1 (released code); `01` = 0, 1 (paper).
        weight: w.
    """

    consistency: ConsistencyCheck | None = field(default_factory=RuleConsistency)
    consistency_scale: Literal["signed", "01"] = "signed"
    weight: float = 0.5
    name: str = field(default="r1_reward", init=False)
    template: str = field(default="r1_reward", init=False)

    def __post_init__(self) -> None:
        if self.consistency_scale not in ("signed", "01"):
            raise RecipeError(
                f"got consistency_scale={self.consistency_scale!r}; expected 'signed' or '01'"
            )

    @property
    def settings(self) -> Mapping[str, float | str | None]:
        """See `RewardRule`."""
        return {
            "rule": self.name,
            "consistency": None if self.consistency is None else self.consistency.name,
            "consistency_scale": self.consistency_scale,
            "weight": self.weight,
        }

    def __call__(self, outputs: Sequence[str], labels: Sequence[Label]) -> list[Earned]:
        """See the module.

        Raises:
            EndpointError: the consistency judge cannot be reached.
        """
        reader = get_template(self.template)
        winners = [reader.parse(output).winner for output in outputs]
        verdicts: list[Label | None] = [w if w in ("first", "second") else None for w in winners]  # type: ignore[misc]
        # Only right verdicts are multiplied by it, so no other is asked about.
        right = [v if v == label else None for v, label in zip(verdicts, labels, strict=True)]
        checked: Sequence[bool | None] = [None] * len(outputs)
        if self.consistency is not None:
            checked = self.consistency(outputs, right)
        return [
            self._one(output, verdict == label, same)
            for output, verdict, label, same in zip(outputs, verdicts, labels, checked, strict=True)
        ]

    def _one(self, output: str, is_right: bool, same: bool | None) -> Earned:
        scale = {True: 1.0, False: -1.0, None: 0.0}
        consistent = max(0.0, scale[same]) if self.consistency_scale == "01" else scale[same]
        form = float(is_r1_format(output))
        reward = float(is_right) * (1 + self.weight * consistent) + self.weight * form
        parts = {"result": float(is_right), "format": form}
        if is_right and same is not None:
            parts["consistency"] = float(same)
        return Earned(reward, parts)


def is_r1_format(output: str) -> bool:
    """Whether the output is one think block directly followed by one answer block, and nothing else.

    >>> is_r1_format("<think>a</think><answer>1</answer>")
    True
    >>> is_r1_format("<think>a</think> <answer>1</answer>")
    False
    """
    return (
        output.count("<think>") == 1
        and output.count("<answer>") == 1
        and _WHOLE.fullmatch(output) is not None
    )


REWARDS: Mapping[str, type[RmR1Reward] | type[UnifiedRewardThinkReward] | type[R1RewardReward]] = {
    "rm_r1": RmR1Reward,
    "unified_reward_think": UnifiedRewardThinkReward,
    "r1_reward": R1RewardReward,
}


def reward_rule(
    template: JudgeTemplate, *, consistency: ConsistencyCheck | None = None
) -> RewardRule:
    """The rule of the paper that a template belongs to.

    Args:
        template: that the judge is trained with.
        consistency: for R1-Reward; None = the rule.

    Raises:
        RecipeError: a template of one's own, for which no rule is known.
    """
    name = "rm_r1" if template.name.startswith("rm_r1") else template.name
    if name not in REWARDS:
        raise RecipeError(
            f"no reward is known for the template {name!r}. {did_you_mean(name, REWARDS)}"
        )
    if name == "r1_reward" and consistency is not None:
        return R1RewardReward(consistency=consistency)
    return REWARDS[name]()
