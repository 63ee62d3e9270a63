"""The OpenAPI description: for each path, the requests of all its dialects."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from retrm import __version__
from retrm.service.dialects.base import Json, Route

_REF = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request is not as it should be; the message says what was expected.",
    401: "The key is missing or wrong.",
    403: "A web page of another origin sent the request.",
    404: "No model of that name is served.",
    413: "More bytes, items or tokens than are taken.",
    415: "Not JSON.",
    429: "The queue is full; see Retry-After.",
    500: "The model failed on an item.",
    502: "A server that judges for this one failed.",
    503: "The queue is full, or the server is starting or ending; see Retry-After.",
    504: "There was no time left.",
}


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorReply(BaseModel):
    """The one shape of errors."""

    error: ErrorBody


class Health(BaseModel):
    """Whether requests are taken."""

    status: str


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int | None
    context_length: int
    head_id: str
    method: str
    backbone: str
    template_fingerprint: str
    dtype: str
    calibration: str
    can_show_tokens: bool
    can_show_layers: bool
    objectives: list[str]


class ModelList(BaseModel):
    """The served models; the first one judges where none is named."""

    object: str
    data: list[ModelCard]


class Posted(Protocol):
    """What is said of a path that takes requests; a `Route` is one."""

    @property
    def dialect(self) -> str:
        """Whose protocol it is."""
        ...

    @property
    def path(self) -> str:
        """Of the address."""
        ...

    @property
    def methods(self) -> tuple[str, ...]:
        """Of HTTP."""
        ...

    @property
    def request(self) -> type[BaseModel]:
        """Shape of the body."""
        ...

    @property
    def reply(self) -> type[BaseModel]:
        """Shape of the answer."""
        ...

    @property
    def summary(self) -> str:
        """In one line."""
        ...


def describe(
    routes: Sequence[Route], *, has_token: bool, more: Sequence[Posted] = ()
) -> Mapping[str, Json]:
    """OpenAPI 3.1 of everything that is answered.

    Args:
        routes: of the dialects.
        has_token: whether a key is asked for.
        more: paths that are no dialect's.
    """
    posted: list[Posted] = [*routes, *more]
    asked = list(dict.fromkeys(one.request for one in posted))
    replies = list(dict.fromkeys([*(one.reply for one in posted), ErrorReply, Health, ModelList]))
    refs, definitions = models_json_schema(
        [(model, "validation") for model in asked]
        + [(model, "serialization") for model in replies],
        ref_template=_REF,
    )
    requests = {model: refs[model, "validation"] for model in asked}
    answers = {model: refs[model, "serialization"] for model in replies}
    paths: dict[str, dict[str, Json]] = {}
    for route in posted:
        for method in route.methods:
            group = [one for one in posted if one.path == route.path and method in one.methods]
            paths.setdefault(route.path, {})[method.lower()] = _operation(group, requests, answers)
    paths |= {
        "/health": {"get": _get("Whether requests are taken.", answers[Health], extra=(503,))},
        "/v1/models": {"get": _get("The served models.", answers[ModelList])},
    }
    components: dict[str, Json] = {"schemas": definitions.get("$defs", {})}
    made: dict[str, Json] = {
        "openapi": "3.1.0",
        "info": {
            "title": "retrm",
            "version": __version__,
            "description": "Scores of answers by reward models that read a frozen LLM's hidden states.",
        },
        "paths": paths,
        "components": components,
    }
    if has_token:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"key": []}]
        paths["/health"]["get"]["security"] = []
    return made


def _operation(
    group: Sequence[Posted],
    requests: Mapping[type[BaseModel], Json],
    answers: Mapping[type[BaseModel], Json],
) -> dict[str, Json]:
    bodies = list(dict.fromkeys(route.request for route in group))
    replies = list(dict.fromkeys(route.reply for route in group))
    ok = {
        "description": "Results, in order.",
        "content": _content([answers[one] for one in replies]),
    }
    return {
        "summary": " | ".join(f"{route.dialect}: {route.summary}" for route in group),
        "requestBody": {"required": True, "content": _content([requests[one] for one in bodies])},
        "responses": {"200": ok, **_failures(answers[ErrorReply], _ERRORS)},
    }


def _get(summary: str, schema: Json, *, extra: Sequence[int] = ()) -> dict[str, Json]:
    found = {"description": summary, "content": _content([schema])}
    also = {str(code): found for code in extra}
    return {"summary": summary, "responses": {"200": found, **also}}


def _content(schemas: Sequence[Json]) -> dict[str, Json]:
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {"application/json": {"schema": schema}}


def _failures(schema: Json, errors: Mapping[int, str]) -> dict[str, Json]:
    return {
        str(code): {"description": text, "content": _content([schema])}
        for code, text in errors.items()
    }
