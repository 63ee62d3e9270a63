"""The web application: paths to dialects, limits, the key, and what is said about the server.

    POST  every path of `dialects.ROUTES`; the first dialect that claims the body reads it
    GET   /              the playground
          /health        200 when requests are taken, 503 before and after; open
          /v1/models     OpenAI's list, with what is known of each head
          /metrics       Prometheus
          /openapi.json  the description

A request is read as JSON only (no NaN, no lone surrogates, no nesting without end, no name twice), never
as a path. Its body, items and tokens are bounded; one that is dropped by its client leaves the queue.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from fastapi import FastAPI
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from retrm.errors import (
    AccessError,
    BackboneError,
    BusyError,
    DataError,
    DeadlineError,
    EndpointError,
    JudgingError,
    NotReadyError,
    PageError,
    RecipeError,
    RenderError,
    RetrmError,
    ScoreError,
    TooLargeError,
    UnknownModelError,
)
from retrm.service.browsers import PageGuard, Refuse
from retrm.service.core import Service, Timing
from retrm.service.description import Posted, describe
from retrm.service.dialects import ROUTES
from retrm.service.dialects.base import Json, Route
from retrm.service.items import Call

DEADLINE_HEADER = "x-deadline-seconds"
REQUEST_ID_HEADER = "x-request-id"
OPEN_PATHS = frozenset({"/", "/health"})
"""What is answered without the key: a page without data, and whether the server is there."""

GONE = 499  # what nginx writes for a client that did not wait
_BIG_BODY = 32 << 10  # read and written on another thread from here up
_MANY_ITEMS = 64
_SAFE_ID = re.compile(r"[\x21-\x7e]{1,200}")
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LOG = logging.getLogger("retrm.service")

T = TypeVar("T")
Shape = TypeVar("Shape", bound=BaseModel)

# The first class that fits says how an error is answered: status, type, reason for the metrics.
_ANSWERS: tuple[tuple[type[RetrmError], int, str, str], ...] = (
    (UnknownModelError, 404, "NotFoundError", ""),
    (AccessError, 401, "AuthenticationError", "access"),
    (PageError, 403, "PermissionDeniedError", "page"),
    (TooLargeError, 413, "RequestTooLargeError", "too_large"),
    (BusyError, 503, "OverloadedError", "busy"),
    (NotReadyError, 503, "ServiceUnavailableError", "not_ready"),
    (DeadlineError, 504, "DeadlineExceededError", "deadline"),
    (JudgingError, 500, "InternalServerError", ""),
    (ScoreError, 500, "InternalServerError", ""),
    (BackboneError, 500, "InternalServerError", ""),
    (EndpointError, 502, "BadGatewayError", ""),
    (DataError, 400, "BadRequestError", ""),
    (RenderError, 400, "BadRequestError", ""),
    (RecipeError, 400, "BadRequestError", ""),
)


@dataclass
class _Exchange:
    """What is known of a request, for its log line."""

    path: str
    request_id: str
    began: float
    dialect: str = "none"
    busy_status: int = 503
    n_items: int = 0
    n_tokens: int = 0
    timing: Timing = field(default_factory=Timing)


def create_app(
    service: Service,
    *,
    token: str | None = None,
    routes: Sequence[Route] = ROUTES,
    has_sampling: bool = True,
    has_open_metrics: bool = False,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The application of a service, which it starts and drains.

    Args:
        service: what judges.
        token: without it in `Authorization: Bearer ...` nothing but `OPEN_PATHS` is answered.
        routes: protocols, in the order in which they are offered a body.
        has_sampling: whether the playground may have answers drawn, at /v1/sample.
        has_open_metrics: whether /metrics is answered without the key.
        hosts: without a key: names that it answers to beside addresses and `localhost`; None = all. A
            server on the loopback should not answer to any: see `browsers`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.drain()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.service = service
    for path, group in by_path(routes).items():
        methods = sorted({method for route in group for method in route.methods})
        app.add_route(path, _judging(service, group), methods=methods, include_in_schema=False)
    if has_sampling:
        app.add_route("/v1/sample", _sampling(service), methods=["POST"], include_in_schema=False)
    _add_reading(app, service, has_sampling, _described(routes, token, has_sampling))
    app.add_exception_handler(HTTPException, lambda _, error: _http_error(error))  # type: ignore[arg-type]
    if token is not None:
        open_paths = OPEN_PATHS | {"/metrics"} if has_open_metrics else OPEN_PATHS
        app.add_middleware(Guard, token=token, service=service, open_paths=open_paths)
    else:
        app.add_middleware(PageGuard, hosts=hosts, refuse=_refusing(service))
    return app


def _described(
    routes: Sequence[Route], token: str | None, has_sampling: bool
) -> Mapping[str, Json]:
    more: tuple[Posted, ...] = ()
    if has_sampling:
        from retrm.service.sampling import POSTED  # torch, which a description needs not

        more = (POSTED,)
    return describe(routes, has_token=token is not None, more=more)


def by_path(routes: Sequence[Route]) -> dict[str, tuple[Route, ...]]:
    """Routes that share a path, in their order."""
    groups: dict[str, tuple[Route, ...]] = {}
    for route in routes:
        groups[route.path] = (*groups.get(route.path, ()), route)
    return groups


def _add_reading(
    app: FastAPI, service: Service, has_sampling: bool, description: Mapping[str, Json]
) -> None:
    """The paths that only say something."""

    async def page(_: Request) -> Response:
        from retrm.service.playground import page as playground  # not needed by any client

        headers = {"content-security-policy": _PAGE_POLICY, "referrer-policy": "no-referrer"}
        return HTMLResponse(playground(has_sampling=has_sampling), headers=headers)

    async def health(_: Request) -> Response:
        return _json({"status": service.state}, 200 if service.is_ready else 503)

    async def models(_: Request) -> Response:
        return _json(
            {"object": "list", "data": [_model(asdict(one.info)) for one in service.registry]}
        )

    async def metrics(_: Request) -> Response:
        return Response(
            service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def openapi(_: Request) -> Response:
        return _json(description)

    app.add_route("/", page, include_in_schema=False)
    app.add_route("/health", health, include_in_schema=False)
    app.add_route("/v1/models", models, include_in_schema=False)
    app.add_route("/metrics", metrics, include_in_schema=False)
    app.add_route("/openapi.json", openapi, include_in_schema=False)


def _model(info: dict[str, Json]) -> dict[str, Json]:
    """OpenAI's shape, vLLM's `max_model_len`, and our facts."""
    return {
        "id": info["name"],
        "object": "model",
        "owned_by": "retrm",
        "max_model_len": info["context_length"] or None,
        **{key: value for key, value in info.items() if key != "name"},
    }


# A request


def _judging(service: Service, routes: tuple[Route, ...]) -> Any:
    async def judge(request: Request) -> Response:
        exchange = _Exchange(request.url.path, _header_id(request), time.monotonic())
        exchange.dialect = routes[-1].dialect if len(routes) == 1 else "none"
        return await _bounded(service, exchange, _answered(service, routes, request, exchange))

    return judge


def _sampling(service: Service) -> Any:
    from retrm.service.sampling import SampleBody, Sampling  # torch, which a description needs not

    sampling = Sampling(service)

    async def drawn(request: Request) -> Response:
        with service.holding() as hold:
            body, deadline_s = await _received(service, request, hold)
            asked = validated(SampleBody, json_object(body))
            return _json(await _unless_gone(request, sampling.draw(asked, deadline_s=deadline_s)))

    async def sample(request: Request) -> Response:
        exchange = _Exchange(request.url.path, _header_id(request), time.monotonic(), "playground")
        return await _bounded(service, exchange, drawn(request))

    return sample


async def _bounded(
    service: Service, exchange: _Exchange, work: Coroutine[Any, Any, Response]
) -> Response:
    """What `work` answers, or why it does not; one request must not take others with it."""
    try:
        response = await work
    except RetrmError as error:
        response = _refusal(service, error, exchange.busy_status)
    except HTTPException as error:
        response = _http_error(error)
    except ClientDisconnect:
        service.metrics.refused("gone")
        response = Response(status_code=GONE)
    except Exception:
        # The service boundary.
        _LOG.exception("request %s failed", exchange.request_id)
        response = error_reply("the server failed; see its log", 500, "InternalServerError")
    response.headers[REQUEST_ID_HEADER] = exchange.request_id
    _log(service, exchange, response.status_code)
    return response


async def _answered(
    service: Service, routes: tuple[Route, ...], request: Request, exchange: _Exchange
) -> Response:
    with service.holding() as hold:
        body, deadline_s = await _received(service, request, hold)
        work = _replied(service, routes, request, body, exchange, deadline_s)
        return await _unless_gone(request, work)


async def _received(
    service: Service, request: Request, hold: Callable[[int], None]
) -> tuple[bytes, float]:
    """The body, of which `hold` is told as it comes, and the seconds that its request has."""
    service.check_open()
    deadline_s = _deadline_s(request.headers.get(DEADLINE_HEADER), service.settings.deadline_s)
    _check_type(request)
    try:
        async with asyncio.timeout(deadline_s) as scope:
            return await _body(request, service.settings.max_body_bytes, hold), deadline_s
    except TimeoutError:
        assert scope.expired(), "nothing else times out"
        raise DeadlineError(f"the body did not arrive within {deadline_s:g} s") from None


async def _replied(
    service: Service,
    routes: tuple[Route, ...],
    request: Request,
    body: bytes,
    exchange: _Exchange,
    deadline_s: float,
) -> Response:
    query = dict(request.query_params)

    def read() -> tuple[Route, BaseModel, Call]:
        route, parsed = parse(routes, body, request.method)
        exchange.dialect, exchange.busy_status = route.dialect, route.busy_status
        return route, parsed, route.read(parsed, query)

    left_s = deadline_s - (time.monotonic() - exchange.began)
    route, parsed, call = await service.on_renderer(read) if len(body) > _BIG_BODY else read()
    exchange.n_items = len(call.items)
    exchange.request_id = _own_id(request, parsed) or exchange.request_id
    answered, exchange.timing = await service.judge_timed(
        call, deadline_s=max(left_s, 1e-3), request_id=exchange.request_id
    )
    exchange.n_tokens = sum(one.n_tokens for one in answered.judged)

    def write() -> Response:
        return _json(route.write(parsed, answered, query))

    is_big = len(answered.judged) > _MANY_ITEMS or any(one.tokens for one in answered.judged)
    response = await service.on_renderer(write) if is_big else write()
    response.headers["server-timing"] = _server_timing(exchange)
    return response


def parse(routes: Sequence[Route], body: bytes, method: str = "POST") -> tuple[Route, BaseModel]:
    """The dialect that takes a body, and the body as its request.

    Raises:
        DataError: no JSON object, or not as the dialect expects it.
    """
    value = json_object(body)
    offered = [route for route in routes if method in route.methods]
    route = next((route for route in offered if route.claims(value)), offered[-1])
    return route, validated(route.request, value)


def json_object(body: bytes) -> dict[str, Json]:
    """The JSON object that a body is.

    Raises:
        DataError: it is none, or an object in it has a name twice.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise DataError(f"the body is no JSON: {error}. Send one JSON object in UTF-8") from error
    if not isinstance(value, dict):
        raise DataError(f"got a JSON {type(value).__name__}; expected an object, {{...}}")
    _check_names(body)
    return value


def _check_names(body: bytes) -> None:
    """Refuse a name that stands twice in one object: `from_json` takes the last, others the first."""
    try:
        json.loads(body, object_pairs_hook=_unique)
    except DataError:
        raise
    except (
        ValueError,
        RecursionError,
    ) as error:  # what the strict reader took and this one does not
        raise DataError(f"the body is no plain JSON: {error}") from error


def _unique(pairs: list[tuple[str, Json]]) -> None:
    if len(dict(pairs)) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise DataError(
            f"an object of the body has {twice[:80]!r} twice, so that readers differ on what was asked; "
            "expected every name once"
        )


def validated(shape: type[Shape], value: Mapping[str, Json]) -> Shape:
    """A JSON object as a request.

    Raises:
        InvalidBodyError: naming the fields that are not as they should be.
    """
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise InvalidBodyError.of(error) from error


class InvalidBodyError(DataError):
    """A field of the request is not what it should be.

    Attributes:
        param: the field.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    @classmethod
    def of(cls, error: ValidationError) -> "InvalidBodyError":
        """The first mistakes, without the values: they may be long, and somebody's text."""
        found = error.errors(include_url=False, include_context=False, include_input=False)
        params = [".".join(map(str, one["loc"])) or None for one in found]
        told = [
            f"{param or 'body'}: {one['msg']}" for param, one in zip(params, found, strict=True)
        ]
        more = f" (and {len(told) - 4} more)" if len(told) > 4 else ""
        return cls("; ".join(told[:4]) + more, param=params[0])


async def _body(request: Request, limit: int, hold: Callable[[int], None]) -> bytes:
    """The whole body, given up as soon as it is beyond the limit, whatever its headers say."""
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise TooLargeError(_too_large(limit))
    parts, n_bytes = [], 0
    async for part in request.stream():
        n_bytes += len(part)
        if n_bytes > limit:
            raise TooLargeError(_too_large(limit))
        hold(len(part))
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit} bytes, the most that this server takes; send several requests"


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if not (kind == "application/json" or kind.endswith("+json")):
        raise HTTPException(415, f"got Content-Type {kind[:80]!r}; expected application/json")
    if coding not in ("identity", ""):
        raise HTTPException(415, f"got Content-Encoding {coding[:80]!r}; expected none")


def _deadline_s(asked: str | None, most_s: float) -> float:
    if asked is None:
        return most_s
    try:
        value = float(asked)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise DataError(
            f"got {DEADLINE_HEADER}: {asked[:80]!r}; expected seconds, a number above 0"
        )
    return min(value, most_s)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for one in (task, watch):
            one.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# Replies


def _json(value: Json, status: int = 200) -> Response:
    # ValueError for NaN: the caller answers 500 rather than what is no JSON.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, status_code=status, media_type="application/json")


def error_reply(
    message: str,
    status: int,
    kind: str,
    *,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error in the one shape of all paths."""
    told = {"message": message, "type": kind, "param": param, "code": status}
    response = _json({"error": told}, status)
    response.headers.update(headers or {})
    return response


def _refusal(service: Service, error: RetrmError, busy_status: int) -> Response:
    found = next((row for row in _ANSWERS if isinstance(error, row[0])), None)
    _, status, kind, reason = found or (RetrmError, 500, "InternalServerError", "")
    if reason:
        service.metrics.refused(reason)
    headers = {}
    if isinstance(error, BusyError):
        status = busy_status
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    elif isinstance(error, NotReadyError):
        headers["retry-after"] = "5"
    elif isinstance(error, AccessError):
        headers["www-authenticate"] = "Bearer"
    elif isinstance(error, TooLargeError):
        headers["connection"] = "close"  # the rest of the body is not read
    return error_reply(
        str(error), status, kind, param=getattr(error, "param", None), headers=headers
    )


def _http_error(error: HTTPException) -> Response:
    kinds = {404: "NotFoundError", 405: "MethodNotAllowedError", 415: "UnsupportedMediaTypeError"}
    kind = kinds.get(error.status_code, "BadRequestError")
    return error_reply(str(error.detail), error.status_code, kind, headers=error.headers)


def _header_id(request: Request) -> str:
    asked = request.headers.get(REQUEST_ID_HEADER, "")
    return asked if _SAFE_ID.fullmatch(asked) else uuid.uuid4().hex


def _own_id(request: Request, parsed: BaseModel) -> str | None:
    """The id that the client gave in the body, unless a header has one that can be echoed."""
    if _SAFE_ID.fullmatch(request.headers.get(REQUEST_ID_HEADER, "")):
        return None
    for name in ("request_id", "rid"):
        asked = getattr(parsed, name, None)
        if isinstance(asked, str) and _SAFE_ID.fullmatch(asked):
            return asked
    return None


def _server_timing(exchange: _Exchange) -> str:
    total_s = time.monotonic() - exchange.began
    parts = {"wait": exchange.timing.wait_s, "forward": exchange.timing.forward_s, "total": total_s}
    return ", ".join(f"{name};dur={1e3 * seconds:.3f}" for name, seconds in parts.items())


def _log(service: Service, exchange: _Exchange, status: int) -> None:
    """A line per request: sizes and times, never texts or scores."""
    service.metrics.replied(exchange.dialect, status)
    _LOG.info(
        "%s %s %d id=%s items=%d tokens=%d wait_ms=%.1f forward_ms=%.1f total_ms=%.1f",
        exchange.dialect,
        exchange.path,
        status,
        exchange.request_id,
        exchange.n_items,
        exchange.n_tokens,
        1e3 * exchange.timing.wait_s,
        1e3 * exchange.timing.forward_s,
        1e3 * (time.monotonic() - exchange.began),
    )


class Guard:
    """Lets through what carries the key; compares in constant time."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        service: Service,
        open_paths: Collection[str] = OPEN_PATHS,
    ) -> None:
        self.app = app
        self._token = token.encode()
        self._open_paths = open_paths
        self._refuse = _refusing(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before its body is read."""
        if scope["type"] != "http" or self._is_open(scope) or self._has_key(scope):
            await self.app(scope, receive, send)
            return
        error = AccessError(
            "the key is missing or wrong; send it in the header Authorization: Bearer KEY"
        )
        await self._refuse(error, scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        """Behind the prefix of a mount (Ray Serve's, for example) the path begins with it."""
        return scope["path"].removeprefix(scope.get("root_path", "")) in self._open_paths

    def _has_key(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.partition(b" ")
        is_right = hmac.compare_digest(key.strip(), self._token)
        return is_right and kind.lower() == b"bearer"


def _refusing(service: Service) -> Refuse:
    """Answers a request that no dialect sees."""

    async def refuse(error: RetrmError, scope: Scope, receive: Receive, send: Send) -> None:
        response = _refusal(service, error, 503)
        service.metrics.replied("none", response.status_code)
        await response(scope, receive, send)

    return refuse
