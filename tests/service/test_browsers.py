"""Web pages of strangers have no access to a server that no key protects."""

import pytest
from served import client, model, run, service

from retrm.backbone.fake import FakeBackbone
from retrm.errors import PageError
from retrm.service.browsers import check_page

OWN = {"host": "127.0.0.1:8000"}


@pytest.mark.parametrize(
    "headers",
    [
        {},  # a program
        {"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:8000"},
        {"sec-fetch-site": "none"},  # typed by the user
        {"origin": "http://127.0.0.1:8000"},  # a browser that says no more
        # A proxy has changed the host; the browser says that page and server are one.
        {"sec-fetch-site": "same-origin", "origin": "https://scores.example"},
    ],
)
def test_programs_and_the_own_page_may_post(headers):
    check_page("POST", OWN | headers, ())


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},  # another port of this machine
        {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:8000"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "null"},
        {"origin": ""},
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_pages_of_other_origins_may_not(method, headers):
    with pytest.raises(PageError, match="a page of another origin"):
        check_page(method, OWN | headers, ())


def test_reading_is_left_to_the_rules_of_browsers():
    check_page("GET", OWN | {"sec-fetch-site": "cross-site"}, ())


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000",
        "127.0.0.1",
        "[::1]:8000",
        "localhost:8000",
        "LOCALHOST",
        "a.localhost",
        "box:1",
    ],
)
def test_addresses_localhost_and_the_given_names_are_own(host):
    check_page("GET", {"host": host}, ("box",))


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "", "127.0.0.1.evil.example", "notlocalhost"]
)
def test_other_names_are_refused_where_names_are_checked(host):
    with pytest.raises(PageError, match="--known-as"):
        check_page("GET", {"host": host}, ("box",))
    check_page("GET", {"host": host}, None)


@pytest.mark.parametrize("path", ["/v1/reward", "/v1/sample"])
def test_a_page_without_a_content_type_neither_scores_nor_samples(path):
    """A blob without a type is sent without asking the server first, as JSON would not be."""
    made = service(model(FakeBackbone()))

    async def work():
        async with client(made) as http:
            body = b'{"prompt": "q", "candidates": ["a"]}'
            return await http.post(path, content=body, headers={"origin": "http://evil.example"})

    reply = run(work)
    assert reply.status_code == 403
    assert reply.json()["error"]["type"] == "PermissionDeniedError"
    assert 'retrm:refused_requests_total{reason="page"} 1.0' in made.metrics.text().decode()


def test_with_a_key_a_page_of_another_origin_that_has_it_may_post():
    async def work():
        async with client(service(model(FakeBackbone())), token="right-key") as http:
            headers = {"origin": "http://other.example", "authorization": "Bearer right-key"}
            body = {"prompt": "q", "candidates": ["a"]}
            return await http.post("/v1/reward", json=body, headers=headers)

    assert run(work).status_code == 200
