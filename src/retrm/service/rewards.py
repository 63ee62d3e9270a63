"""What a client is told: the replies of `/v1/reward` and `/v1/best_of_n` as plain frozen data.

Only the standard library. A reply that lacks a score, holds one that is no finite number, counts other
answers than were sent, or was squashed when raw scores were asked for, is an `EndpointError`: a wrong
reward that looks like a right one is the worst that can happen to a training run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from retrm.errors import EndpointError

Json = Any  # what json.loads gives
LengthPolicy = Literal["error", "truncate_prompt", "truncate_response", "skip"]
LENGTH_POLICIES = ("error", "truncate_prompt", "truncate_response", "skip")
Activation = Literal["none", "sigmoid", "calibrated"]
ACTIVATIONS = ("none", "sigmoid", "calibrated")


@dataclass(frozen=True)
class RewardToken:
    """One judged token.

    Attributes:
        token_index: position in prompt and answer.
        text: of the token.
        reward: the head's value there.
        gate: its weight, 0..1.
        contribution: what it adds to the score.
        running: the score if the answer ended there.
    """

    token_index: int
    text: str
    reward: float
    gate: float
    contribution: float
    running: float


@dataclass(frozen=True)
class RewardObjective:
    """What one objective adds to the score of an answer.

    Attributes:
        name: of it.
        score: r, what it gives the answer.
        adjusted: r', the same without what verbosity explains of it.
        gate: the weight that the prompt gives it.
        contribution: gate times `adjusted`; all of an answer sum to its score (`math.fsum`).
        coefficient: the weight of `score` instead.
        as_rated: `score` in the numbers that raters give; None = not known.
    """

    name: str
    score: float
    adjusted: float
    gate: float
    contribution: float
    coefficient: float
    as_rated: float | None = None


@dataclass(frozen=True)
class Reward:
    """What a reward model says of one answer.

    Attributes:
        score: raw, unbounded, higher is better; None = left out as over-long, which happens under the
            length policy `skip` only.
        value: the score after `activation`: the score itself for "none".
        activation: that was applied to `value`.
        calibrated: the score on a scale of 0..1; None where there is none.
        num_tokens: prompt and answer as they were read; 0 = not known.
        truncated: whether the answer or its prompt lost tokens to fit.
        dropped: how many.
        unfinished: whether the answer ends without its end-of-turn token; None = not known.
        tokens: the judged tokens where they were asked for, else None.
        layers: the layers of `layer_scores`, ascending.
        layer_scores: what each layer adds at each judged token, where it was asked for, else None.
        objectives: what each objective adds, where it was asked for, else None.
        model: the served name of the model.
        head_id: two models with the same one give the same scores; "" = not told.
        backbone: the language model that was read; "" = not told, or none.
        warnings: what was done to the answer on the way, a sentence each.
    """

    score: float | None
    value: float | None
    activation: str = "none"
    calibrated: float | None = None
    num_tokens: int = 0
    truncated: bool = False
    dropped: int = 0
    unfinished: bool | None = None
    tokens: tuple[RewardToken, ...] | None = None
    layers: tuple[int, ...] = ()
    layer_scores: tuple[tuple[float, ...], ...] | None = None
    objectives: tuple[RewardObjective, ...] | None = None
    model: str = ""
    head_id: str = ""
    backbone: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranked:
    """A candidate's place in the list that was given, and its raw score."""

    index: int
    score: float


@dataclass(frozen=True)
class BestOfN:
    """The chosen one of some candidates.

    Attributes:
        index: of it in the list that was given.
        text: of it.
        score: of it, raw.
        ranking: all candidates, best first.
        model: the served name of the model.
        warnings: of the request.
    """

    index: int
    text: str
    score: float
    ranking: tuple[Ranked, ...]
    model: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelInfo:
    """A served model: its name, and all that the server says of it."""

    name: str
    facts: Mapping[str, Json]


@dataclass(frozen=True)
class Health:
    """Whether a server is ready to score, and what it said, or what kept it from answering."""

    is_ready: bool
    said: str


class _Nonsense(Exception):
    """A reply that is none; the message says what is wrong with it."""


def rewards_of(
    reply: Json, n: int, activation: str, where: str, *, may_skip: bool = False
) -> list[Reward]:
    """The `n` rewards of a reply of `/v1/reward`, in the order in which answers were sent.

    Args:
        reply: parsed JSON.
        n: answers that were sent.
        activation: that was asked for.
        where: the address, for messages.
        may_skip: whether a score may be missing, as the length policy `skip` leaves it.

    Raises:
        EndpointError: it is not such a reply; the message names what is wrong.
    """
    try:
        found = _list(reply, "results")
        if len(found) != n:
            raise _Nonsense(f"{len(found)} results for {n} answers")
        shared = _strings(reply, "warnings")
        placed = {_integer(one, "index"): one for one in found}
        if sorted(placed) != list(range(n)):
            raise _Nonsense(f"results numbered {sorted(placed)}")
        model = str(reply.get("model", ""))
        rewards = [_reward(placed[i], activation, model, shared) for i in range(n)]
        missing = [i for i, reward in enumerate(rewards) if reward.score is None]
        if missing and not may_skip:
            raise _Nonsense(f"no score for answer {missing[0]} of the request")
        return rewards
    except (_Nonsense, TypeError, ValueError, AttributeError) as error:
        raise _refusal(where, "/v1/reward", error) from error


def best_of(reply: Json, candidates: Sequence[str], where: str) -> BestOfN:
    """The choice in a reply of `/v1/best_of_n`.

    Raises:
        EndpointError: it is not such a reply; the message names what is wrong.
    """
    try:
        best = _field(reply, "best")
        ranking = tuple(
            Ranked(_integer(one, "index"), _number(one, "score")) for one in _list(reply, "ranking")
        )
        index = _integer(best, "index")
        if sorted(one.index for one in ranking) != list(range(len(candidates))):
            raise _Nonsense(
                f"{len(ranking)} ranked candidates for {len(candidates)} that were sent"
            )
        if not ranking or ranking[0].index != index:
            raise _Nonsense(f"candidate {index} as the best and another at the head of the ranking")
        return BestOfN(
            index=index,
            text=candidates[index],
            score=_number(best, "score"),
            ranking=ranking,
            model=str(reply.get("model", "")),
            warnings=_strings(reply, "warnings"),
        )
    except _Nonsense as error:
        raise _refusal(where, "/v1/best_of_n", error) from error


def models_of(reply: Json, where: str) -> tuple[ModelInfo, ...]:
    """The served models in a reply of `/v1/models`.

    Raises:
        EndpointError: it is not such a reply.
    """
    try:
        return tuple(ModelInfo(_text(one, "id"), one) for one in _list(reply, "data"))
    except _Nonsense as error:
        raise _refusal(where, "/v1/models", error) from error


def _reward(found: Json, activation: str, model: str, shared: tuple[str, ...]) -> Reward:
    score = _optional(found, "score")
    value = _optional(found, "value") if "value" in found else score
    applied = found.get("activation", "none")
    if applied != activation:
        raise _Nonsense(f"activation {applied!r} where {activation!r} was asked for")
    if (score is None) != (value is None) or (activation == "none" and value != score):
        raise _Nonsense(f"value {value} beside score {score} under activation {activation!r}")
    lost = found.get("truncation") or {}
    rows = found.get("layer_scores")
    return Reward(
        score=score,
        value=value,
        activation=activation,
        calibrated=_optional(found, "calibrated"),
        num_tokens=int(found.get("num_tokens") or 0),
        truncated=bool(found.get("truncated")),
        dropped=int(lost.get("dropped") or 0),
        unfinished=found.get("unfinished"),
        tokens=_tokens(found),
        layers=tuple(int(layer) for layer in found.get("layers") or ()),
        layer_scores=None if rows is None else tuple(tuple(map(float, row)) for row in rows),
        objectives=_objectives(found, score),
        model=model,
        head_id=str(found.get("head_id") or ""),
        backbone=str(found.get("backbone") or ""),
        warnings=(*shared, *_strings(found, "warnings")),
    )


def _tokens(found: Json) -> tuple[RewardToken, ...] | None:
    if found.get("token_scores") is None:
        return None
    return tuple(
        RewardToken(
            token_index=_integer(one, "token_index"),
            text=_text(one, "text"),
            reward=_number(one, "reward"),
            gate=_number(one, "gate"),
            contribution=_number(one, "contribution"),
            running=_number(one, "running"),
        )
        for one in _list(found, "token_scores")
    )


def _objectives(found: Json, score: float | None) -> tuple[RewardObjective, ...] | None:
    if found.get("objectives") is None:
        return None
    parts = tuple(
        RewardObjective(
            name=_text(one, "name"),
            score=_number(one, "score"),
            adjusted=_number(one, "adjusted"),
            gate=_number(one, "gate"),
            contribution=_number(one, "contribution"),
            coefficient=_number(one, "coefficient"),
            as_rated=_optional(one, "as_rated"),
        )
        for one in _list(found, "objectives")
    )
    total = math.fsum(one.contribution for one in parts)
    if total != score:
        raise _Nonsense(f"objectives that add up to {total} beside score {score}")
    return parts


def _field(found: Json, name: str) -> Json:
    if not isinstance(found, Mapping) or name not in found:
        raise _Nonsense(f"no `{name}` in {str(found)[:100]!r}")
    return found[name]


def _list(found: Json, name: str) -> list[Json]:
    value = _field(found, name)
    if not isinstance(value, list):
        raise _Nonsense(f"`{name}` {value!r}, which is no list")
    return value


def _text(found: Json, name: str) -> str:
    value = _field(found, name)
    if not isinstance(value, str):
        raise _Nonsense(f"`{name}` {value!r}, which is no text")
    return value


def _integer(found: Json, name: str) -> int:
    value = _field(found, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Nonsense(f"`{name}` {value!r}, which is no whole number")
    return value


def _number(found: Json, name: str) -> float:
    value = _field(found, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Nonsense(f"`{name}` {value!r}, which is no finite number")
    return float(value)


def _optional(found: Json, name: str) -> float | None:
    if isinstance(found, Mapping) and name in found and found[name] is None:
        return None
    if name == "calibrated" and isinstance(found, Mapping) and name not in found:
        return None
    return _number(found, name)


def _strings(found: Json, name: str) -> tuple[str, ...]:
    value = found.get(name) if isinstance(found, Mapping) else None
    return tuple(str(one) for one in value or ())


def _refusal(where: str, path: str, error: Exception) -> EndpointError:
    return EndpointError(
        f"{where} answered {path} with {error}. Is it a retrm server of this version, and does the url "
        "hold no path of another service?"
    )
