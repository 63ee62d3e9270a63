"""Templates by name; a new template is a file of its own and a row here."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from retrm.errors import RecipeError, did_you_mean
from retrm.judges.r1_reward import R1Reward
from retrm.judges.rm_r1 import RmR1Instruct, RmR1Reasoning
from retrm.judges.template import JudgeTemplate
from retrm.judges.unified_reward_think import UnifiedRewardThink

TEMPLATES: Mapping[str, type] = {
    "rm_r1_instruct": RmR1Instruct,
    "rm_r1_reasoning": RmR1Reasoning,
    "unified_reward_think": UnifiedRewardThink,
    "r1_reward": R1Reward,
}

PLACES: Mapping[str, tuple[str, ...]] = {
    "rm_r1_instruct": (),
    "rm_r1_reasoning": ("{pair}",),
    "unified_reward_think": ("{question}", "{first}", "{second}"),
    "r1_reward": ("{question}", "{first}", "{second}"),
}
"""What a wording of one's own must hold."""


def get_template(
    name: str, *, rule: str | None = None, wording: str | Path | None = None
) -> JudgeTemplate:
    """A template by its name.

    Args:
        name: one of `TEMPLATES`; `rm_r1` is short for rm_r1_instruct.
        rule: how its verdicts are read; None = the rule of the paper.
        wording: instructions instead of ours: a text, or the path of a file that holds it.

    Raises:
        RecipeError: an unknown name or rule, a file that cannot be read, or a wording without the
            places for question and candidates.
    """
    known = "rm_r1_instruct" if name == "rm_r1" else name
    if known not in TEMPLATES:
        raise RecipeError(f"unknown judge template {name!r}. {did_you_mean(name, TEMPLATES)}")
    made = TEMPLATES[known]
    options: dict[str, Any] = {}
    if rule is not None:
        rules = get_args(get_type_hints(made)["rule"])
        if rule not in rules:
            raise RecipeError(
                f"got rule={rule!r} for the template {known}; expected {' or '.join(rules)}. "
                f"{did_you_mean(rule, rules)}"
            )
        options["rule"] = rule
    if wording is not None:
        options["wording"] = _checked(known, _text(wording))
    assert options.keys() <= inspect.signature(made).parameters.keys()
    return cast(JudgeTemplate, made(**options))


def _text(wording: str | Path) -> str:
    if isinstance(wording, str):
        return wording
    try:
        return wording.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"the wording {wording} cannot be read ({error}); expected a text file in UTF-8"
        ) from error


def _checked(name: str, text: str) -> str:
    missing = [place for place in PLACES[name] if place not in text]
    if missing or not text.strip():
        wanted = " and ".join(missing) or "any text"
        raise RecipeError(
            f"the wording for {name} lacks {wanted}; expected a text with "
            f"{', '.join(PLACES[name]) or 'instructions'}. They are replaced by what is judged"
        )
    return text
