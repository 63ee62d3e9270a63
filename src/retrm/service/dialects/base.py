"""What a dialect is: request -> items, results -> reply; no scoring, no web framework, no torch.

Several dialects share a path: `/classify` is vLLM's and SGLang's. Each says by `claims` which bodies it
takes for its own, and is asked in the order of `DIALECTS`; the first that claims a body reads it, and
the last on a path claims all that is left, so that mistakes are told in its words.

Requests are pydantic models that keep what they do not know (`extra="allow"`): `unknown_fields` names it
in a warning. Errors have one shape on all paths, that of vLLM, SGLang and OpenAI:

    {"error": {"message": ..., "type": ..., "param": ..., "code": 400}}
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from retrm.service.items import Activation, Answered, Call, ServedModel

Json = Any  # what json.dumps takes


class Body(BaseModel):
    """Base of all requests: unknown fields are kept, to be named in a warning."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), allow_inf_nan=False)


@dataclass(frozen=True)
class Route:
    """One protocol on one path.

    Attributes:
        dialect: name for metrics and logs, "vllm" for example.
        path: "/classify" for example.
        request: shape of the body.
        reply: shape of the answer, for the description and the contract tests.
        claims: whether a JSON object is meant for this dialect.
        read: items of a request, given the query of its URL, too. Raises `DataError` naming the field for
            what the model cannot check.
        write: the reply to a request, given the same query.
        methods: of HTTP.
        busy_status: with which a full queue is answered: what this protocol's clients try again.
        summary: one line for the description.
    """

    dialect: str
    path: str
    request: type[Body]
    reply: type[BaseModel]
    claims: Callable[[Mapping[str, Json]], bool]
    read: Callable[[Any, Mapping[str, str]], Call]
    write: Callable[[Any, Answered, Mapping[str, str]], Json]
    methods: tuple[str, ...] = ("POST",)
    busy_status: int = 503
    summary: str = ""


def unknown_fields(body: BaseModel, where: str = "") -> tuple[str, ...]:
    """A warning for each field that the request's shape does not have."""
    return tuple(
        f"unknown field {where}{name!r} was ignored" for name in sorted(body.model_extra or {})
    )


def activated(score: float, activation: Activation, model: ServedModel) -> float:
    """The score as the caller asked for it: raw, or squashed to 0..1.

    `calibrated` is the sigmoid, too, while a head stores no calibration of its own (`model.calibration`
    says which it is): for a head fitted to right and wrong answers that is its own probability.
    """
    del model
    if activation == "none":
        return score
    # Both branches stay below overflow.
    if score >= 0:
        return 1.0 / (1.0 + math.exp(-score))
    return math.exp(score) / (1.0 + math.exp(score))
