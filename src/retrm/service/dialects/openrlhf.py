"""OpenRLHF's remote reward model (0.11.2): POST {query, prompts, labels}, usually to /get_reward.

    rewards      raw scores: what the trainer optimises
    scores       0 to 1: what dynamic filtering compares with its range
    extra_logs   lists of numbers: tokens read, whether the answer was cut, whether it has no end

`scores` are the sigmoid of the scores, which never reaches 0 or 1, so that the filter's default range (0, 1)
drops no prompt; `?scores=binary&threshold=T` makes them 1.0 above T (0 where it is not given) and 0.0 else.
`query` is the text of prompt and answer with special tokens; `prompts` tells where the answer begins, even
where the trainer cut the prompt on its left. Labels are not read.

Source: `SingleTurnAgentExecutor` of OpenRLHF 0.11.2; its reward server, whose scores are the rewards.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

from retrm.errors import DataError, did_you_mean
from retrm.service.dialects.base import Body, Json, Route, activated, unknown_fields
from retrm.service.dialects.fields import WHERE, Texts, refuse_normalize, score_of, warnings_of
from retrm.service.items import LENGTH_POLICIES, Answered, Call, Item, LengthPolicy, Options

SCORES = ("calibrated", "binary")
Query = Mapping[str, str]


class RewardBody(Body):
    """POST /get_reward."""

    query: Texts
    prompts: list[str | None] | None = None
    labels: Any = None
    model: str | None = None


class RewardReply(BaseModel):
    """One number an answer in every list."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]
    warnings: list[str]


def _scores_of(query: Query) -> tuple[str, float]:
    """Which scores the address asks for, and the threshold.

    Raises:
        DataError: an unknown kind, or a threshold that is no number or has no use.
    """
    kind = query.get("scores", "calibrated")
    if kind not in SCORES:
        raise DataError(f"{WHERE}: got scores={kind!r}. {did_you_mean(kind, SCORES)}")
    if "threshold" not in query:
        return kind, 0.0
    if kind != "binary":
        raise DataError(f"{WHERE}: got a threshold without scores=binary; expected both or none")
    try:
        threshold = float(query["threshold"])
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise DataError(f"{WHERE}: got threshold={query['threshold']!r}; expected a number")
    return kind, threshold


def _policy_of(query: Query) -> LengthPolicy:
    # Every answer needs a number here, so that none can be left out.
    policies = tuple(policy for policy in LENGTH_POLICIES if policy != "skip")
    policy = query.get("length_policy", "error")
    if policy not in policies:
        raise DataError(f"{WHERE}: got length_policy={policy!r}. {did_you_mean(policy, policies)}")
    return cast(LengthPolicy, policy)


def _read(body: RewardBody, query: Query) -> Call:
    refuse_normalize(body.model_extra)
    _scores_of(query)
    texts = [body.query] if isinstance(body.query, str) else body.query
    prompts = body.prompts or [None] * len(texts)
    if len(prompts) != len(texts):
        raise DataError(
            f"{WHERE}: `query` has {len(texts)} entries, `prompts` {len(prompts)}; expected as many"
        )
    known = {"scores", "threshold", "length_policy", "model"}
    unknown = (
        f"unknown parameter {name!r} of the address was ignored"
        for name in sorted(set(query) - known)
    )
    return Call(
        model=body.model or query.get("model"),
        items=tuple(Item(text=t, prompt_text=p) for t, p in zip(texts, prompts, strict=True)),
        options=Options(length_policy=_policy_of(query)),
        warnings=(*unknown_fields(body), *unknown),
    )


def _write(body: RewardBody, answered: Answered, query: Query) -> Json:
    del body
    kind, threshold = _scores_of(query)
    rewards = [score_of(one) for one in answered.judged]
    if kind == "binary":
        scores = [float(score > threshold) for score in rewards]
    else:
        scores = [activated(score, "calibrated", answered.model) for score in rewards]
    return {
        "rewards": rewards,
        "scores": scores,
        "extra_logs": {
            "tokens": [float(one.n_tokens) for one in answered.judged],
            "truncated": [float(one.truncation is not None) for one in answered.judged],
            "unfinished": [float(bool(one.is_unfinished)) for one in answered.judged],
        },
        "warnings": warnings_of(answered.warnings, answered.judged),
    }


ROUTES: tuple[Route, ...] = (
    Route(
        "openrlhf",
        "/get_reward",
        RewardBody,
        RewardReply,
        lambda _: True,
        _read,
        _write,
        summary="OpenRLHF: raw rewards, scores between 0 and 1",
    ),
)
