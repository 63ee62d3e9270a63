"""`retrm serve`: what is refused before anything is loaded, and what its help teaches."""

import asyncio

import httpx
import pytest
from command_line import run

from retrm.cli.serve import check_exposed
from retrm.errors import RecipeError
from retrm.service.access import read_token
from retrm.service.settings import ServiceSettings


def test_the_help_teaches(capsys):
    assert run("serve", "--help") == 0

    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "retrm serve runs/elhsr",
        "RETRM_TOKEN",
        "--token-file",
        "--config",
        "NAME=FOLDER",
    ):
        assert part in said


def test_no_model_is_refused(capsys):
    assert run("serve") == 2
    assert "got no model" in capsys.readouterr().err


def test_a_missing_folder_is_refused(capsys, tmp_path):
    assert run("serve", tmp_path / "none", "--port", "0") == 2
    assert "there is no scorer" in capsys.readouterr().err


def test_a_host_for_others_needs_a_key(capsys, monkeypatch):
    monkeypatch.delenv("RETRM_TOKEN", raising=False)

    assert run("serve", "longest", "--host", "0.0.0.0", "--port", "0") == 2

    said = " ".join(capsys.readouterr().err.split())
    assert "can be reached from other machines" in said
    assert "--no-token" in said


@pytest.mark.parametrize(
    ("token", "no_token", "is_local"),
    [("key", False, False), (None, True, False), (None, False, True)],
)
def test_a_key_a_word_or_a_local_host_opens_it(token, no_token, is_local):
    check_exposed("host", token, no_token=no_token, is_local=is_local)


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ([], {"evil.example": 403, "scores.example": 403, "127.0.0.1": 200}),
        (["--known-as", "scores.example"], {"evil.example": 403, "scores.example": 200}),
        (["--host", "0.0.0.0", "--no-token"], {"evil.example": 200}),
    ],
)
def test_a_local_server_without_a_key_answers_to_its_own_names(monkeypatch, options, codes):
    monkeypatch.delenv("RETRM_TOKEN", raising=False)
    apps = []
    monkeypatch.setattr("retrm.service.server.run", lambda app, *_: apps.append(app))

    assert run("serve", "longest", "--port", "0", *options) == 0

    async def asked(host):
        transport = httpx.ASGITransport(apps[0])
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http:
            return (await http.get("/v1/models")).status_code

    assert {host: asyncio.run(asked(host)) for host in codes} == codes


def test_metrics_are_open_where_it_is_said(monkeypatch):
    monkeypatch.setenv("RETRM_TOKEN", "right-key")
    given = []
    monkeypatch.setattr("retrm.service.app.create_app", lambda *_, **options: given.append(options))
    monkeypatch.setattr("retrm.service.server.run", lambda *_: None)

    assert run("serve", "longest", "--port", "0") == 0
    assert run("serve", "longest", "--port", "0", "--open-metrics") == 0
    assert [options["has_open_metrics"] for options in given] == [False, True]


def test_the_key_comes_from_the_file_before_the_environment(tmp_path):
    file = tmp_path / "key"
    file.write_text("from-file\n")

    assert read_token(file, {"RETRM_TOKEN": "from-env"}) == "from-file"
    assert read_token(None, {"RETRM_TOKEN": "from-env"}) == "from-env"
    assert read_token(None, {}) is None


@pytest.mark.parametrize("text", ["", " \n", "two words", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused(tmp_path, text):
    file = tmp_path / "key"
    file.write_text(text)

    with pytest.raises(RecipeError, match="a header cannot carry"):
        read_token(file, {})


def test_a_key_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the key"):
        read_token(tmp_path / "none", {})


def test_an_unknown_limit_is_refused_with_the_nearest(capsys, tmp_path):
    config = tmp_path / "serve.toml"
    config.write_text("[serve]\nmax_item = 3\n")

    assert run("serve", "longest", "--config", config) == 2
    assert "Did you mean 'max_items'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens_per_batch", 0),
        ("max_items", 1.5),
        ("max_items", True),
        ("window_ms", -1.0),
        ("deadline_s", 0.0),
        ("deadline_s", float("nan")),
        ("drain_s", float("inf")),
        ("max_items", 10**6),  # more than the queue takes: it would be told to come again for ever
        ("max_tokens", 10**8),
        ("max_body_bytes", 10**10),
    ],
)
def test_a_limit_that_cannot_be_is_refused(name, value):
    with pytest.raises(RecipeError, match=name):
        ServiceSettings(**{name: value})
