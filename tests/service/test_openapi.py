"""The description is true: what it allows never breaks the server, and replies are as it says."""

import httpx
import pytest
from hypothesis import HealthCheck, settings
from served import model, run, service

from retrm.backbone.fake import FakeBackbone
from retrm.service.app import create_app
from retrm.service.description import describe
from retrm.service.dialects import ROUTES
from retrm.service.sampling import POSTED

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

DESCRIPTION = describe(ROUTES, has_token=False, more=(POSTED,))
# A short context, so that over-long items occur.
SERVICE = service(model(FakeBackbone(context_length=120)))
APP = create_app(SERVICE)


async def app(scope, receive, send):
    """The application without its end, which comes with the last test and not with each."""
    if scope["type"] != "lifespan":
        await SERVICE.start()
        await APP(scope, receive, send)
        return
    for word in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{word}.complete"})


SCHEMA = schemathesis.openapi.from_dict(dict(DESCRIPTION))
SCHEMA.app = app


@pytest.fixture(scope="module", autouse=True)
def _ended():
    yield
    SERVICE.worker.end(timeout_s=10.0)


@SCHEMA.parametrize()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_is_answered_as_described(case):
    case.call_and_validate(
        checks=[
            schemathesis.checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ]
    )


def test_every_path_has_the_requests_of_all_its_dialects():
    for path in {route.path for route in ROUTES}:
        group = [route for route in ROUTES if route.path == path]
        operation = DESCRIPTION["paths"][path]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        refs = {one["$ref"] for one in schema.get("anyOf", [schema])}
        assert len(refs) == len({route.request for route in group})
        for ref in refs:
            name = ref.removeprefix("#/components/schemas/")
            assert name in DESCRIPTION["components"]["schemas"]


def test_drawing_is_described_where_it_is_offered():
    with_, without = (create_app(SERVICE, has_sampling=offered) for offered in (True, False))

    async def described(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as http:
            return (await http.get("/openapi.json")).json()

    found = run(lambda: described(with_))
    body = found["paths"]["/v1/sample"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/SampleBody"}
    assert found["components"]["schemas"]["SampleBody"]["properties"]["n"]["maximum"] == 16
    assert "/v1/sample" not in run(lambda: described(without))["paths"]


def test_a_key_is_described_where_one_is_needed():
    described = describe(ROUTES, has_token=True)

    assert described["security"] == [{"key": []}]
    assert described["paths"]["/health"]["get"]["security"] == []
    assert "security" not in DESCRIPTION
