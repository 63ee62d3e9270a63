"""SGLang's own requests (0.5.23): native /classify, /v1/score with `query` and `items`, the rerank list.

They share paths with vLLM's and are told by their fields: `text` or `input_ids` without `input` or
`messages`; `query`; `instruct` or `return_documents`. Scores are raw; a `use_activation` that is true gives the
sigmoid, as on vLLM's paths.

Source: the endpoints of SGLang 0.5.23, and the client of POLAR (InternLM), which posts a list of texts to
/classify and reads `embedding[0]`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, RootModel

from retrm.errors import DataError
from retrm.service.dialects.base import Body, Json, Route, activated, unknown_fields
from retrm.service.dialects.fields import (
    WHERE,
    Input,
    Refused,
    Switch,
    Texts,
    activation_of,
    broadcast,
    has_several,
    input_items,
    pair_items,
    refuse,
    refuse_normalize,
    score_of,
    usage_of,
    warnings_of,
)
from retrm.service.dialects.vllm import Noted, Usage, order_of
from retrm.service.items import Activation, Answered, Call, Item, Judged

Query = Mapping[str, str]
ID = {"type": "integer", "minimum": 0}


class SglangBody(Body):
    """What these requests have in common."""

    model: str | None = None
    use_activation: Switch = None
    activation: Switch = None
    softmax: Switch = None
    # Known, without a bearing on scores.
    rid: str | list[str] | None = None
    priority: int | None = None
    user: str | None = None


class NativeBody(SglangBody):
    """POST or PUT /classify."""

    text: Texts | None = None
    input_ids: Input = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    sampling_params: Any = None
    lora_path: Any = None
    dimensions: int | None = None


class RerankBody(SglangBody):
    """POST or PUT /v1/rerank."""

    query: str
    documents: list[str]
    instruct: str | None = None
    top_n: int | None = None
    return_documents: bool = True


class ScoreBody(SglangBody):
    """POST /v1/score with `query` and `items`."""

    query: Input
    items: Input
    label_token_ids: list[int] | None = None
    apply_softmax: bool | None = None
    temperature: float | None = None
    item_first: bool | None = None
    score_extraction_token: Any = None
    return_pooled_hidden_states: bool | None = None
    return_token_logprobs: bool | None = None


class MetaInfo(BaseModel):
    """What SGLang says of an item, and our warnings."""

    model_config = ConfigDict(extra="allow")

    id: str
    prompt_tokens: int
    activation: Literal["none", "sigmoid"]
    warnings: list[str]


class Embedded(BaseModel):
    """The score of one item."""

    embedding: list[float]
    meta_info: MetaInfo


class NativeReply(RootModel[Embedded | list[Embedded]]):
    """One object for one item, a list for a list."""


class Ranked(BaseModel):
    """One answer, best first."""

    score: float
    document: str | None = None
    index: int
    meta_info: MetaInfo


class RerankReply(RootModel[list[Ranked]]):
    """The answers, best first."""


class ScoreReply(Noted):
    """Reply of /v1/score."""

    object: Literal["scoring"]
    scores: list[list[float]]
    pooled_hidden_states: None = None
    token_logprobs: None = None
    model: str
    usage: Usage


def _activation(body: SglangBody) -> Activation:
    return activation_of(
        {
            "use_activation": body.use_activation,
            "activation": body.activation,
            "softmax": body.softmax,
        }
    )


def _check_common(body: SglangBody) -> None:
    refuse_normalize(body.model_extra)
    _activation(body)


def _value(body: SglangBody, one: Judged, answered: Answered) -> float:
    return activated(score_of(one), _activation(body), answered.model)


def _meta(body: SglangBody, i: int, answered: Answered) -> dict[str, Json]:
    one = answered.judged[i]
    rid = body.rid[i] if isinstance(body.rid, list) and i < len(body.rid) else body.rid
    return {
        "id": rid if isinstance(rid, str) else f"{answered.request_id}-{i}",
        "prompt_tokens": one.n_tokens,
        "finish_reason": None,
        "activation": _activation(body),
        # Numbered by its place in the whole request, as in all replies.
        "warnings": [
            *answered.warnings,
            *(text.removeprefix("item 0: ") for text in warnings_of((), (one,))),
        ],
    }


def _is_native(body: Mapping[str, Json]) -> bool:
    ours = body.get("text") is not None or body.get("input_ids") is not None
    return ours and body.get("input") is None and body.get("messages") is None


def _read_native(body: NativeBody, _: Query) -> Call:
    _check_common(body)
    if body.text is not None and body.input_ids is not None:
        raise DataError(f"{WHERE}: got `text` and `input_ids`; expected one of them")
    if isinstance(body.input_ids, str) or _holds_texts(body.input_ids):
        raise DataError(f"{WHERE}: `input_ids` holds text; expected token ids, or `text`")
    only_text = "only text is read here"
    refuse(
        Refused("image_data", body.image_data, only_text),
        Refused("video_data", body.video_data, only_text),
        Refused("audio_data", body.audio_data, only_text),
        Refused("lora_path", body.lora_path, "the head belongs to its backbone as it is"),
        Refused("dimensions", body.dimensions, "a score has no dimensions to choose from"),
    )
    value = body.text if body.text is not None else body.input_ids
    if value is None:  # PUT /classify is ours alone, whatever it holds
        raise DataError(f"{WHERE}: got neither `text` nor `input_ids`; expected one of them")
    return Call(body.model, input_items(value), warnings=unknown_fields(body))


def _holds_texts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, str) for one in value)


def _write_native(body: NativeBody, answered: Answered, _: Query) -> Json:
    found = [
        {"embedding": [_value(body, one, answered)], "meta_info": _meta(body, i, answered)}
        for i, one in enumerate(answered.judged)
    ]
    value = body.text if body.text is not None else body.input_ids
    return found if has_several(value) else found[0]


def _is_rerank(body: Mapping[str, Json]) -> bool:
    return "instruct" in body or "return_documents" in body


def _read_rerank(body: RerankBody, _: Query) -> Call:
    _check_common(body)
    refuse(Refused("instruct", body.instruct, "put it into the query, which is the prompt here"))
    if body.top_n is not None and body.top_n < 1:
        raise DataError(f"{WHERE}: `top_n` is {body.top_n}; expected 1 or more, or null for all")
    queries, answers = broadcast(body.query, body.documents, ("query", "documents"))
    return Call(body.model, pair_items(queries, answers), warnings=unknown_fields(body))


def _write_rerank(body: RerankBody, answered: Answered, _: Query) -> Json:
    found = []
    for i in order_of(answered.judged, body.top_n):
        score = _value(body, answered.judged[i], answered)
        document = {"document": body.documents[i]} if body.return_documents else {}
        found.append(
            {"score": score, **document, "index": i, "meta_info": _meta(body, i, answered)}
        )
    return found


def _is_score(body: Mapping[str, Json]) -> bool:
    return "query" in body and "items" in body


_NO_TOKENS = "scores come from a head here, not from probabilities of tokens"


def _read_score(body: ScoreBody, _: Query) -> Call:
    _check_common(body)
    refuse(
        Refused("label_token_ids", body.label_token_ids, _NO_TOKENS),
        Refused("score_extraction_token", body.score_extraction_token, _NO_TOKENS),
        Refused("return_token_logprobs", body.return_token_logprobs, _NO_TOKENS),
        Refused("return_pooled_hidden_states", body.return_pooled_hidden_states, _NO_TOKENS),
        Refused("item_first", body.item_first, "the query is the prompt and stands first"),
        Refused(
            "apply_softmax",
            body.apply_softmax,
            "the softmax of a single score is 1.0 always. Send use_activation true for a sigmoid",
        ),
    )
    if body.temperature not in (None, 1.0):
        raise DataError(f"{WHERE}: `temperature` is {body.temperature}; expected 1 or null")
    return Call(body.model, _score_items(body), warnings=unknown_fields(body))


def _score_items(body: ScoreBody) -> tuple[Item, ...]:
    """Texts as prompt and answers by our template; ids one behind the other, as SGLang joins them."""
    query, items = body.query, body.items
    if isinstance(query, str) and (isinstance(items, str) or not items or _holds_texts(items)):
        return pair_items(*broadcast(query, items, ("query", "items")))
    if isinstance(query, list) and query and isinstance(query[0], int) and not _holds_texts(items):
        many = items if has_several(items) else [items]
        if not isinstance(items, str):
            return tuple(Item(token_ids=(*query, *one), n_prompt_tokens=len(query)) for one in many)
    raise DataError(
        f"{WHERE}: `query` and `items` are of different kinds; expected one text and texts, or one list "
        "of token ids and such lists"
    )


def _write_score(body: ScoreBody, answered: Answered, _: Query) -> Json:
    return {
        "object": "scoring",
        "scores": [[_value(body, one, answered)] for one in answered.judged],
        "pooled_hidden_states": None,
        "token_logprobs": None,
        "model": answered.model.name,
        "usage": usage_of(answered.judged),
        "activation": _activation(body),
        "warnings": warnings_of(answered.warnings, answered.judged),
    }


ROUTES: tuple[Route, ...] = (
    Route(
        "sglang",
        "/classify",
        NativeBody,
        NativeReply,
        _is_native,
        _read_native,
        _write_native,
        methods=("POST", "PUT"),
        summary="SGLang: the score of `text` or `input_ids` in `embedding`",
    ),
    Route(
        "sglang",
        "/v1/score",
        ScoreBody,
        ScoreReply,
        _is_score,
        _read_score,
        _write_score,
        summary="SGLang: scores of the answers `items` to the prompt `query`",
    ),
    Route(
        "sglang",
        "/score",
        ScoreBody,
        ScoreReply,
        _is_score,
        _read_score,
        _write_score,
        summary="SGLang: as /v1/score",
    ),
    *(
        Route(
            "sglang",
            path,
            RerankBody,
            RerankReply,
            _is_rerank,
            _read_rerank,
            _write_rerank,
            methods=("POST", "PUT"),
            summary="SGLang: answers to one prompt as a list, best first",
        )
        for path in ("/rerank", "/v1/rerank", "/v2/rerank")
    ),
)
