"""Our own protocol: POST /v1/reward and /v1/best_of_n, with everything that is known of a score.

A request holds exactly one of `messages` (one conversation or a list), `prompt` with `candidates`, `rendered`
texts, or `token_ids`. `prompt_texts` and `n_prompt_tokens` say where the answers begin in rendered texts and ids
whose template is not ours. `reference` goes to scorers that compare (POLAR); others do not look at it. Doubtful input (two BOS tokens) is refused here and not mended.

    value = score                  activation none
          = sigmoid(score)         activation sigmoid
          = calibrated(score)      activation calibrated; `calibration` says by what

A full queue is answered with 429 here, which our client tries again; the other protocols' clients end a
training run on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field, StrictInt

from retrm.data.messages import read_messages, read_text, read_tools
from retrm.errors import DataError
from retrm.records import Answer, Message, Prompt, Reference
from retrm.service.dialects.base import Body, Json, Route, activated, unknown_fields
from retrm.service.dialects.fields import WHERE, answer_of, refuse_normalize
from retrm.service.items import (
    Activation,
    Answered,
    Call,
    Item,
    Judged,
    JudgedTokens,
    LengthPolicy,
    Options,
)

Turn = dict[str, Any]
Query = Mapping[str, str]
_T = TypeVar("_T", str, int)


class Asked(Body):
    """What both requests have."""

    model: str | None = None
    prompt: str | list[Turn] | None = None
    candidates: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    reference: str | list[str] | None = Field(
        default=None, description="a good answer to compare with: one for all items, or one each"
    )
    wrapper: Literal["sft", "pretrain"] = "sft"
    request_id: str | None = Field(default=None, max_length=200)


class RewardBody(Asked):
    """POST /v1/reward."""

    messages: list[Turn] | list[list[Turn]] | None = None
    rendered: list[str] | None = None
    prompt_texts: list[str | None] | None = None
    token_ids: list[list[StrictInt]] | None = None
    n_prompt_tokens: list[StrictInt | None] | None = None
    activation: Activation = "none"
    per_token: bool = False
    per_layer: bool = False
    per_objective: bool = False
    length_policy: LengthPolicy = "error"


class BestBody(Asked):
    """POST /v1/best_of_n."""

    prompt: str | list[Turn]
    candidates: list[str]
    n: StrictInt | None = Field(default=None, description="judge the first n only")
    rule: Literal["best_of_n"] = "best_of_n"
    length_policy: LengthPolicy = "error"


class TokenScore(BaseModel):
    """One judged token."""

    token_index: int
    text: str
    reward: float
    gate: float
    contribution: float
    running: float


class ObjectivePart(BaseModel):
    """What one objective adds to a score; the contributions of all sum to it."""

    name: str
    score: float
    adjusted: float
    gate: float
    contribution: float
    coefficient: float
    as_rated: float | None


class Cut(BaseModel):
    """What an item lost."""

    side: Literal["prompt", "response"]
    dropped: int


class Result(BaseModel):
    """One item."""

    index: int
    score: float | None
    calibrated: float | None
    calibration: str
    activation: Activation
    value: float | None
    num_tokens: int
    truncated: bool
    truncation: Cut | None
    unfinished: bool | None
    token_scores: list[TokenScore] | None
    layers: list[int] | None
    layer_scores: list[list[float]] | None
    objectives: list[ObjectivePart] | None
    head_id: str
    backbone: str
    template_fingerprint: str
    warnings: list[str]


class RewardUsage(BaseModel):
    """Counts of a request."""

    prompt_tokens: int
    total_tokens: int
    truncated: int
    skipped: int


class RewardReply(BaseModel):
    """Reply of /v1/reward."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    results: list[Result]
    usage: RewardUsage
    warnings: list[str]


class Best(BaseModel):
    """The chosen candidate."""

    index: int
    text: str
    score: float


class Place(BaseModel):
    """A candidate's place and score."""

    index: int
    score: float


class BestReply(BaseModel):
    """Reply of /v1/best_of_n."""

    id: str
    object: Literal["best_of_n"]
    created: int
    model: str
    best: Best
    ranking: list[Place]
    usage: RewardUsage
    warnings: list[str]


# Requests

_FORMS = ("messages", "prompt", "rendered", "token_ids")
_EXPECTED = (
    "expected exactly one of `messages`, `prompt` with `candidates`, `rendered` and `token_ids`"
)


def _read_reward(body: RewardBody, _: Query) -> Call:
    refuse_normalize(body.model_extra)
    options = Options(
        length_policy=body.length_policy,
        per_token=body.per_token or body.per_layer,
        per_layer=body.per_layer,
        per_objective=body.per_objective,
        is_strict=True,
    )
    return Call(
        model=body.model,
        items=_referenced(_items(body), body),
        options=options,
        warnings=unknown_fields(body),
    )


def _items(body: RewardBody) -> tuple[Item, ...]:
    sent = [name for name in _FORMS if getattr(body, name) is not None]
    if len(sent) != 1:
        names = ", ".join(f"`{name}`" for name in sent) or "none of them"
        raise DataError(f"{WHERE}: got {names}; {_EXPECTED}")
    _check_companions(body, sent[0])
    if body.messages is not None:
        return _conversations(body.messages, body.tools)
    if body.prompt is not None:
        if body.candidates is None:
            raise DataError(f"{WHERE}: got `prompt` without `candidates`; {_EXPECTED}")
        return _candidates(body.prompt, body.candidates, body.tools)
    if body.rendered is not None:
        prompts = _beside(body.prompt_texts, "prompt_texts", body.rendered, "rendered")
        return tuple(
            Item(text=read_text(text, WHERE, f"rendered[{i}]"), prompt_text=prompt)
            for i, (text, prompt) in enumerate(zip(body.rendered, prompts, strict=True))
        )
    assert body.token_ids is not None, "one of the four"
    counts = _beside(body.n_prompt_tokens, "n_prompt_tokens", body.token_ids, "token_ids")
    return tuple(
        Item(token_ids=tuple(ids), n_prompt_tokens=n)
        for ids, n in zip(body.token_ids, counts, strict=True)
    )


def _check_companions(body: RewardBody, form: str) -> None:
    """Refuse what would be passed over in silence."""
    owners = {
        "candidates": ("prompt",),
        "prompt_texts": ("rendered",),
        "n_prompt_tokens": ("token_ids",),
        "tools": ("messages", "prompt"),
        "reference": ("messages", "prompt"),
    }
    for name, forms in owners.items():
        if getattr(body, name) is not None and form not in forms:
            expected = " or ".join(f"`{one}`" for one in forms)
            raise DataError(f"{WHERE}: got `{name}` with `{form}`; it goes with {expected}")


def _beside(
    given: Sequence[_T | None] | None, name: str, items: Sequence[Any], of: str
) -> Sequence[_T | None]:
    if given is None:
        return [None] * len(items)
    if len(given) != len(items):
        raise DataError(
            f"{WHERE}: `{name}` has {len(given)} entries, `{of}` {len(items)}; expected as many"
        )
    return given


def _conversations(messages: list[Any], tools: Any) -> tuple[Item, ...]:
    if not messages:
        return ()
    offered = read_tools(tools, WHERE)
    many = messages if isinstance(messages[0], list) else [messages]
    name = "messages[{}]" if isinstance(messages[0], list) else "messages"
    answers = [answer_of(one, name.format(i)) for i, one in enumerate(many)]
    return tuple(Item(answer=_with_tools(answer, offered)) for answer in answers)


def _with_tools(answer: Answer, tools: tuple[Mapping[str, Any], ...]) -> Answer:
    if not tools:
        return answer
    prompt = Prompt(answer.prompt.messages, tools)
    return Answer(prompt, answer.response, prompt.key, where=answer.where)


def _candidates(
    prompt: str | list[Turn], candidates: Sequence[str], tools: Any
) -> tuple[Item, ...]:
    """Answers that share one prompt object, so that its reading is shared."""
    if isinstance(prompt, str):
        turns: tuple[Message, ...] = (Message("user", read_text(prompt, WHERE, "prompt")),)
    else:
        turns = read_messages(prompt, WHERE, "prompt")
    asked = Prompt(turns, read_tools(tools, WHERE))
    key = asked.key
    texts = (read_text(text, WHERE, f"candidates[{i}]") for i, text in enumerate(candidates))
    return tuple(
        Item(answer=Answer(asked, text, key, where=f"candidates[{i}]"))
        for i, text in enumerate(texts)
    )


def _referenced(items: tuple[Item, ...], body: Asked) -> tuple[Item, ...]:
    """The items with what their answers are compared with, where the request says it."""
    if body.reference is None:
        return items
    if isinstance(body.reference, list):
        texts = _beside(body.reference, "reference", items, "items")
    else:
        texts = [body.reference] * len(items)
    made = []
    for i, (item, text) in enumerate(zip(items, texts, strict=True)):
        if not text or not text.strip():
            raise DataError(f"{WHERE}: `reference` {i} is empty; expected a good answer")
        assert item.answer is not None, "checked with the companions"
        reference = Reference(read_text(text, WHERE, "reference"), body.wrapper)
        made.append(replace(item, answer=replace(item.answer, reference=reference)))
    return tuple(made)


def _read_best(body: BestBody, _: Query) -> Call:
    refuse_normalize(body.model_extra)
    if not body.candidates:
        raise DataError(f"{WHERE}: `candidates` is empty; expected at least one answer")
    if body.n is not None and not 1 <= body.n <= len(body.candidates):
        raise DataError(
            f"{WHERE}: `n` is {body.n}, of {len(body.candidates)} candidates; expected 1 to "
            f"{len(body.candidates)}, or null for all"
        )
    candidates = body.candidates[: body.n]
    return Call(
        model=body.model,
        items=_referenced(_candidates(body.prompt, candidates, body.tools), body),
        options=Options(length_policy=body.length_policy, is_strict=True),
        warnings=unknown_fields(body),
    )


# Replies


def _usage(judged: Sequence[Judged]) -> dict[str, int]:
    n = sum(one.n_tokens for one in judged)
    return {
        "prompt_tokens": n,
        "total_tokens": n,
        "truncated": sum(one.truncation is not None for one in judged),
        "skipped": sum(one.score is None for one in judged),
    }


def _frame(answered: Answered, kind: str) -> dict[str, Json]:
    return {
        "id": answered.request_id,
        "object": kind,
        "created": answered.created,
        "model": answered.model.name,
    }


def _write_reward(body: RewardBody, answered: Answered, _: Query) -> Json:
    return {
        **_frame(answered, "list"),
        "results": [_result(i, one, body, answered) for i, one in enumerate(answered.judged)],
        "usage": _usage(answered.judged),
        "warnings": list(answered.warnings),
    }


def _result(index: int, one: Judged, body: RewardBody, answered: Answered) -> dict[str, Json]:
    model, score, cut = answered.model, one.score, one.truncation
    squashed = score is not None
    tokens = one.tokens if body.per_token or body.per_layer else None
    has_layers = tokens is not None and tokens.by_layer is not None
    return {
        "index": index,
        "score": score,
        "calibrated": activated(score, "calibrated", model) if squashed else None,
        "calibration": model.calibration,
        "activation": body.activation,
        "value": activated(score, body.activation, model) if squashed else None,
        "num_tokens": one.n_tokens,
        "truncated": cut is not None,
        "truncation": None if cut is None else {"side": cut.side, "dropped": cut.dropped},
        "unfinished": one.is_unfinished,
        "token_scores": _tokens(tokens) if tokens is not None and body.per_token else None,
        "layers": list(tokens.layers) if has_layers else None,
        "layer_scores": np.asarray(tokens.by_layer).tolist() if has_layers else None,
        "objectives": None if one.explanation is None else one.explanation.rows(),
        "head_id": model.head_id,
        "backbone": model.backbone,
        "template_fingerprint": model.template_fingerprint,
        "warnings": list(one.warnings),
    }


def _tokens(tokens: JudgedTokens) -> list[dict[str, Json]]:
    columns = (
        tokens.token_index,
        tokens.texts,
        tokens.rewards,
        tokens.gates,
        tokens.contributions,
        tokens.running,
    )
    return [
        {
            "token_index": int(index),
            "text": text,
            "reward": float(reward),
            "gate": float(gate),
            "contribution": float(contribution),
            "running": float(running),
        }
        for index, text, reward, gate, contribution, running in zip(*columns, strict=True)
    ]


def _write_best(body: BestBody, answered: Answered, _: Query) -> Json:
    scores = [one.score for one in answered.judged]
    kept = [i for i, score in enumerate(scores) if score is not None]
    if not kept:
        raise DataError(
            f"{WHERE}: all {len(scores)} candidates are longer than the context; expected one that fits. "
            "Use a model with a longer context, or the length policy truncate_prompt"
        )
    # Ties go to the candidate that came first.
    order = sorted(kept, key=lambda i: -float(scores[i]))  # type: ignore[arg-type]
    warnings = [*answered.warnings]
    warnings += [f"item {i}: {w}" for i, one in enumerate(answered.judged) for w in one.warnings]
    return {
        **_frame(answered, "best_of_n"),
        "best": {
            "index": order[0],
            "text": body.candidates[order[0]],
            "score": scores[order[0]],
        },
        "ranking": [{"index": i, "score": scores[i]} for i in order],
        "usage": _usage(answered.judged),
        "warnings": warnings,
    }


ROUTES: tuple[Route, ...] = (
    Route(
        "retrm",
        "/v1/reward",
        RewardBody,
        RewardReply,
        lambda _: True,
        _read_reward,
        _write_reward,
        busy_status=429,
        summary="Scores with all that is known of them",
    ),
    Route(
        "retrm",
        "/v1/best_of_n",
        BestBody,
        BestReply,
        lambda _: True,
        _read_best,
        _write_best,
        busy_status=429,
        summary="The best of several answers to one prompt",
    ),
)
