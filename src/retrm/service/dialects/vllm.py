"""vLLM's pooling endpoints (0.33): /classify, /score, /rerank, /pooling, and /v1/classify and /v1/embeddings.

Scores are raw unless `use_activation` (or `activation`, `softmax`: names that vLLM had for it) is true; null
and missing mean raw, where vLLM's default squashes them. Replies say which it was, in a field that vLLM's
have not.

Three places where vLLM has no answer for a head that reads a whole answer:

- `/pooling` without a task: one row that holds the score, `[[s]]`. vLLM gives a row for each token there, and
  clients read the last.
- `/pooling` with the task `token_classify`: a row for each judged token with the score that the answer would
  have if it ended there; the last is the answer's score.
- `/v1/classify` is SGLang's, which puts its scores through a softmax, 1.0 for a single one. Here the raw score
  stands there, with a warning.

Source: the endpoints of vLLM 0.33.0 and SGLang 0.5.23.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from retrm.errors import DataError
from retrm.service.dialects.base import Body, Json, Route, activated, unknown_fields
from retrm.service.dialects.fields import (
    WHERE,
    Input,
    Refused,
    Switch,
    Texts,
    activation_of,
    answer_of,
    broadcast,
    input_items,
    length_policy_of,
    pair_items,
    refuse,
    refuse_normalize,
    score_of,
    usage_of,
    warnings_of,
)
from retrm.service.items import Answered, Call, Item, Judged, Options

LABEL = "reward"
Query = Mapping[str, str]


class VllmBody(Body):
    """What all of vLLM's pooling requests have."""

    model: str | None = None
    use_activation: Switch = None
    activation: Switch = None
    softmax: Switch = None
    truncate_prompt_tokens: int | None = None
    truncation_side: str | None = None
    # Known, without a bearing on scores.
    user: str | None = None
    request_id: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    padding: bool | None = None


class InputBody(VllmBody):
    """Rendered texts or ids, or one conversation."""

    input: Input = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ClassifyBody(InputBody):
    """POST /classify, /v1/classify."""

    rid: str | list[str] | None = None


class PoolingBody(InputBody):
    """POST /pooling."""

    task: str | None = None
    dimensions: int | None = None
    encoding_format: Literal["float", "base64", "bytes"] | None = None
    embed_dtype: str | None = None
    endianness: Literal["native", "big", "little"] | None = None


class EmbeddingsBody(InputBody):
    """POST /v1/embeddings."""

    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None


class PairBody(VllmBody):
    """What /score and /rerank share."""

    instruction: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None


class ScoreBody(PairBody):
    """POST /score, /v1/score: prompts and answers by one of four pairs of names."""

    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None


class RerankBody(PairBody):
    """POST /rerank, /v1/rerank, /v2/rerank."""

    query: str
    documents: list[str]
    top_n: int | None = None


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class Noted(BaseModel):
    """What our replies say beside the original's fields."""

    activation: Literal["none", "sigmoid"]
    warnings: list[str]


class ClassifyDatum(BaseModel):
    """One item of a reply."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifyReply(Noted):
    """Reply of /classify."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ClassifyDatum]
    usage: Usage


class ScoreDatum(BaseModel):
    """One pair of a reply."""

    index: int
    object: Literal["score"]
    score: float


class ScoreReply(Noted):
    """Reply of /score."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreDatum]
    usage: Usage


class Document(BaseModel):
    """A ranked answer."""

    text: str
    multi_modal: None = None


class RerankResult(BaseModel):
    """One answer of a reply, best first."""

    index: int
    document: Document
    relevance_score: float


class RerankReply(Noted):
    """Reply of /rerank."""

    id: str
    model: str
    usage: Usage
    results: list[RerankResult]


class PoolingDatum(BaseModel):
    """One item of a reply."""

    index: int
    object: Literal["pooling"]
    data: list[float] | list[list[float]] | str


class PoolingReply(Noted):
    """Reply of /pooling."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[PoolingDatum]
    usage: Usage


class EmbeddingDatum(BaseModel):
    """One item of a reply."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingsReply(Noted):
    """Reply of /v1/embeddings."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[EmbeddingDatum]
    usage: Usage


# Requests


def _activation(body: VllmBody) -> Literal["none", "sigmoid"]:
    switches = {
        "use_activation": body.use_activation,
        "activation": body.activation,
        "softmax": body.softmax,
    }
    return "sigmoid" if activation_of(switches) == "sigmoid" else "none"


_OWN_TEMPLATE = (
    "the head was fitted with the chat template of its backbone. Leave the field out, or send rendered "
    "text as `input`"
)


def _check_common(body: VllmBody) -> None:
    refuse_normalize(body.model_extra)
    _activation(body)


def _call(body: VllmBody, items: Sequence[Item], warnings: Sequence[str] = ()) -> Call:
    policy, noted = length_policy_of(body.truncate_prompt_tokens, body.truncation_side)
    return Call(
        model=body.model,
        items=tuple(items),
        options=Options(length_policy=policy),
        warnings=(*unknown_fields(body), *noted, *warnings),
    )


def _read_input(body: InputBody, warnings: Sequence[str] = ()) -> Call:
    _check_common(body)
    if body.input is not None and body.messages is not None:
        raise DataError(f"{WHERE}: got `input` and `messages`; expected one of them")
    if body.input is None and body.messages is None:
        raise DataError(f"{WHERE}: got neither `input` nor `messages`; expected one of them")
    refuse(
        Refused("chat_template", body.chat_template, _OWN_TEMPLATE),
        Refused("chat_template_kwargs", body.chat_template_kwargs, _OWN_TEMPLATE),
    )
    if body.messages is None:
        return _call(body, input_items(body.input), (*warnings, *_special_tokens(body, True)))
    refuse(
        Refused(
            "add_generation_prompt",
            body.add_generation_prompt,
            "the last turn is the answer that is judged, so that no other is opened",
        )
    )
    finished = False if body.continue_final_message else None
    answer = answer_of(body.messages, "messages", finished=finished)
    return _call(body, [Item(answer=answer)], (*warnings, *_special_tokens(body, False)))


def _special_tokens(body: InputBody, default: bool) -> tuple[str, ...]:
    if body.add_special_tokens in (None, default):
        return ()
    return (
        f"`add_special_tokens` {str(body.add_special_tokens).lower()} changes nothing: there is exactly "
        "one BOS always",
    )


def _read_classify(body: ClassifyBody, _: Query) -> Call:
    return _read_input(body)


NOT_A_SOFTMAX = "SGLang applies a softmax on this path, which is 1.0 for a single score; `probs` holds the {what}"


def _read_v1_classify(body: ClassifyBody, _: Query) -> Call:
    _check_common(body)
    what = "raw score" if _activation(body) == "none" else "sigmoid of the score"
    return _read_input(body, (NOT_A_SOFTMAX.format(what=what),))


_POOLING_TASKS = ("classify", "token_classify")


def _read_pooling(body: PoolingBody, _: Query) -> Call:
    if body.task not in (None, *_POOLING_TASKS):
        raise DataError(
            f"{WHERE}: `task` is {body.task!r}; expected classify (the score), token_classify (the running "
            "score at each token) or null. There are no embeddings here"
        )
    if body.encoding_format == "bytes":
        raise DataError(f"{WHERE}: `encoding_format` is bytes; expected float or base64")
    if body.embed_dtype not in (None, "float32"):
        raise DataError(
            f"{WHERE}: `embed_dtype` is {body.embed_dtype!r}; expected float32, since fewer digits would "
            "change scores"
        )
    refuse(Refused("dimensions", body.dimensions, "a score has no dimensions to choose from"))
    call = _read_input(body)
    if body.task != "token_classify":
        return call
    options = Options(length_policy=call.options.length_policy, per_token=True)
    return Call(call.model, call.items, options, call.warnings)


def _read_embeddings(body: EmbeddingsBody, _: Query) -> Call:
    if body.dimensions not in (None, 1):
        raise DataError(
            f"{WHERE}: `dimensions` is {body.dimensions}; expected 1 or null: the vector is the score"
        )
    return _read_input(body)


_PAIRS = (
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
    ("text_1", "text_2"),
)


def _check_pairs(body: PairBody) -> None:
    _check_common(body)
    refuse(
        Refused("instruction", body.instruction, "put it into the query, which is the prompt here"),
        Refused("chat_template", body.chat_template, _OWN_TEMPLATE),
        Refused("chat_template_kwargs", body.chat_template_kwargs, _OWN_TEMPLATE),
        Refused("max_tokens_per_query", body.max_tokens_per_query, _NO_CUT),
        Refused("max_tokens_per_doc", body.max_tokens_per_doc, _NO_CUT),
    )


_NO_CUT = (
    "cutting texts that fit would change their scores. Send truncate_prompt_tokens -1 to cut what is "
    "beyond the model's context"
)


def _read_score(body: ScoreBody, _: Query) -> Call:
    _check_pairs(body)
    names = ("queries", "documents", "items", "data_1", "data_2", "text_1", "text_2")
    sent = tuple(name for name in names if getattr(body, name) is not None)
    pair = next((pair for pair in _PAIRS if set(pair) == set(sent)), None)
    if pair is None:
        raise DataError(
            f"{WHERE}: got {', '.join(f'`{name}`' for name in sent) or 'no texts'}; expected `queries` and "
            "`documents` (prompts and answers), or `queries` and `items`, `data_1` and `data_2`, `text_1` "
            "and `text_2`"
        )
    queries, answers = broadcast(getattr(body, pair[0]), getattr(body, pair[1]), pair)
    return _call(body, pair_items(queries, answers))


def _read_rerank(body: RerankBody, _: Query) -> Call:
    _check_pairs(body)
    if body.top_n is not None and body.top_n < 0:
        raise DataError(f"{WHERE}: `top_n` is {body.top_n}; expected 0 (all) or more")
    queries, answers = broadcast(body.query, body.documents, ("query", "documents"))
    return _call(body, pair_items(queries, answers))


# Replies


def _value(body: VllmBody, score: float, answered: Answered) -> float:
    return activated(score, _activation(body), answered.model)


def _frame(body: VllmBody, answered: Answered, kind: str, data: Json) -> dict[str, Json]:
    return {
        "id": f"{kind}-{answered.request_id}",
        "object": "list",
        "created": answered.created,
        "model": answered.model.name,
        "data": data,
        "usage": usage_of(answered.judged),
        **_noted(body, answered),
    }


def _noted(body: VllmBody, answered: Answered) -> dict[str, Json]:
    return {
        "activation": _activation(body),
        "warnings": warnings_of(answered.warnings, answered.judged),
    }


def _write_classify(body: ClassifyBody, answered: Answered, _: Query) -> Json:
    data = [
        {
            "index": i,
            "label": LABEL,
            "probs": [_value(body, score_of(one), answered)],
            "num_classes": 1,
        }
        for i, one in enumerate(answered.judged)
    ]
    return _frame(body, answered, "classify", data)


def _write_score(body: ScoreBody, answered: Answered, _: Query) -> Json:
    data = [
        {"index": i, "object": "score", "score": _value(body, score_of(one), answered)}
        for i, one in enumerate(answered.judged)
    ]
    return _frame(body, answered, "embd", data)


def order_of(judged: Sequence[Judged], top_n: int | None) -> list[int]:
    """Places of the items, best first; ties keep their order."""
    order = sorted(range(len(judged)), key=lambda i: -score_of(judged[i]))
    return order[:top_n] if top_n else order


def _write_rerank(body: RerankBody, answered: Answered, _: Query) -> Json:
    results = [
        {
            "index": i,
            "document": {"text": body.documents[i], "multi_modal": None},
            "relevance_score": _value(body, score_of(answered.judged[i]), answered),
        }
        for i in order_of(answered.judged, body.top_n)
    ]
    return {
        "id": f"rerank-{answered.request_id}",
        "model": answered.model.name,
        "usage": usage_of(answered.judged),
        "results": results,
        **_noted(body, answered),
    }


def _pooled(body: PoolingBody, one: Judged, answered: Answered) -> list[float] | list[list[float]]:
    if body.task == "classify":
        return [_value(body, score_of(one), answered)]
    if body.task is None:
        return [[_value(body, score_of(one), answered)]]
    assert one.tokens is not None, "the core gives tokens where they are asked for"
    return [[_value(body, float(score), answered)] for score in one.tokens.running]


def encoded(values: Any, endianness: str | None) -> str:
    """Numbers as base64 of float32, row after row."""
    order = {"big": ">f4", "little": "<f4"}.get(endianness or "native", "=f4")
    return base64.b64encode(np.asarray(values, dtype=order).tobytes()).decode("ascii")


def _write_pooling(body: PoolingBody, answered: Answered, _: Query) -> Json:
    data = []
    for i, one in enumerate(answered.judged):
        values = _pooled(body, one, answered)
        is_text = body.encoding_format == "base64"
        shown = encoded(values, body.endianness) if is_text else values
        data.append({"index": i, "object": "pooling", "data": shown})
    return _frame(body, answered, "pool", data)


def _write_embeddings(body: EmbeddingsBody, answered: Answered, _: Query) -> Json:
    data = []
    for i, one in enumerate(answered.judged):
        values = [_value(body, score_of(one), answered)]
        # OpenAI's client asks for base64 unless told otherwise, and reads it as little-endian.
        shown = encoded(values, "little") if body.encoding_format == "base64" else values
        data.append({"index": i, "object": "embedding", "embedding": shown})
    return _frame(body, answered, "embd", data)


def _any(_: Mapping[str, Json]) -> bool:
    return True


def _route(
    path: str,
    request: type[Body],
    reply: type[BaseModel],
    read: Callable[[Any, Query], Call],
    write: Callable[[Any, Answered, Query], Json],
    summary: str,
) -> Route:
    return Route("vllm", path, request, reply, _any, read, write, summary=summary)


ROUTES: tuple[Route, ...] = (
    _route(
        "/classify",
        ClassifyBody,
        ClassifyReply,
        _read_classify,
        _write_classify,
        "vLLM: the score of rendered texts, ids or messages in `probs`",
    ),
    _route(
        "/v1/classify",
        ClassifyBody,
        ClassifyReply,
        _read_v1_classify,
        _write_classify,
        "vLLM and SGLang: as /classify, never put through a softmax",
    ),
    *(
        _route(
            path,
            ScoreBody,
            ScoreReply,
            _read_score,
            _write_score,
            "vLLM: scores of prompts (queries) and answers (documents)",
        )
        for path in ("/score", "/v1/score")
    ),
    *(
        _route(
            path,
            RerankBody,
            RerankReply,
            _read_rerank,
            _write_rerank,
            "vLLM: answers to one prompt, best first",
        )
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
    _route(
        "/pooling",
        PoolingBody,
        PoolingReply,
        _read_pooling,
        _write_pooling,
        "vLLM: the score, or the running score at each token (token_classify)",
    ),
    _route(
        "/v1/embeddings",
        EmbeddingsBody,
        EmbeddingsReply,
        _read_embeddings,
        _write_embeddings,
        "OpenAI, vLLM and SGLang: a vector of one number, the score",
    ),
)
