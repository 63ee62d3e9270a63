"""What is shipped to run the server elsewhere: every command, option, path and file in it exists."""

import configparser
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from retrm.cli.main import app
from retrm.service.settings import ServiceSettings, settings_of

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "retrm.service"
INSTRUCTIONS = {
    *("ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL"),
    *("HEALTHCHECK", "ENTRYPOINT", "CMD"),
}
HARDENING = {
    "DynamicUser": "yes",
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "CapabilityBoundingSet": "",
    "IPAddressDeny": "any",
}


def steps() -> list[tuple[str, str]]:
    """(instruction, the rest) of the container file."""
    lines = (DEPLOY / "Containerfile").read_text("utf-8").splitlines()
    kept = [line for line in lines if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in kept)]


def last(word: str) -> str:
    return [rest for found, rest in steps() if found == word][-1]


def accepted(words: list[str]) -> None:
    """Fails where the program does not know a verb or an option."""
    app.parse_args(words, print_error=False, exit_on_error=False)


def settings_in(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


# The container


def test_the_container_file_has_known_instructions_and_copies_what_there_is():
    assert {word for word, _ in steps()} <= INSTRUCTIONS
    own = [rest.split() for word, rest in steps() if word == "COPY" and "--from" not in rest]
    for *sources, _ in own:
        assert all((ROOT / source).exists() for source in sources)


def test_the_container_starts_a_command_that_exists_and_wants_a_key():
    words = json.loads(last("ENTRYPOINT")) + json.loads(last("CMD"))

    assert words[:2] == ["retrm", "serve"]
    accepted(words[1:])
    assert settings_in(words, "--port") == last("EXPOSE")
    assert "--token-file" in words
    assert "--no-token" not in words


def test_the_container_runs_as_nobody_in_particular_with_pinned_packages():
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last("USER"))
    install = last("RUN")
    assert "-c constraints.txt" in install
    extras = re.search(r'"\.\[([\w,]+)\]"', install)[1].split(",")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(known["optional-dependencies"])
    text = (DEPLOY / "Containerfile").read_text()
    assert not re.search(r"^(ENV|ARG).*(TOKEN|KEY|SECRET)", text, re.MULTILINE)


def test_the_health_check_asks_what_is_answered_without_a_key():
    from retrm.service.app import OPEN_PATHS

    words = json.loads(last("HEALTHCHECK").partition(" CMD ")[2])
    compile(words[2], "healthcheck", "exec")
    port, path = re.search(r"http://127\.0\.0\.1:(\d+)(/\w*)", words[2]).groups()

    assert port == last("EXPOSE")
    assert path in OPEN_PATHS


# systemd


def unit() -> configparser.ConfigParser:
    made = configparser.ConfigParser(interpolation=None, strict=False)
    made.optionxform = str
    made.read_string(UNIT.read_text("utf-8"))
    return made


def test_the_unit_starts_a_command_that_exists_with_files_that_are_shipped():
    words = shlex.split(unit()["Service"]["ExecStart"])

    assert words[0].endswith("/retrm")
    accepted(words[1:])
    assert Path(settings_in(words, "--config")).name == "serve.toml"
    credential = unit()["Service"]["LoadCredential"].partition(":")[0]
    assert settings_in(words, "--token-file") == f"%d/{credential}"


def test_the_unit_waits_longer_for_the_end_than_the_server_takes():
    limits = settings_of(tomllib.loads((DEPLOY / "serve.toml").read_text())["serve"], "serve.")

    assert int(unit()["Service"]["TimeoutStopSec"]) > limits.drain_s
    assert limits == ServiceSettings()


def test_the_unit_is_hardened():
    service = unit()["Service"]

    assert {name: service[name] for name in HARDENING} == HARDENING


def test_systemd_understands_the_unit(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    # The program that is started must exist; here it is this Python.
    text = UNIT.read_text("utf-8").replace("/opt/retrm/bin/retrm", sys.executable)
    (tmp_path / UNIT.name).write_text(text)
    command = [
        "systemd-analyze",
        "verify",
        "--man=no",
        "--generators=no",
        str(tmp_path / UNIT.name),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    own = [line for line in done.stderr.splitlines() if UNIT.name in line]

    assert own == []
    (tmp_path / UNIT.name).write_text(text.replace("RestrictRealtime", "RestrictRealtimes"))
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "RestrictRealtimes" not in wrong.stderr:
        pytest.skip(f"systemd-analyze cannot judge here: {wrong.stderr[:200]}")


# Ray Serve


def test_the_ray_configuration_is_one_and_its_arguments_are_understood():
    schema = pytest.importorskip("ray.serve.schema", reason="Ray Serve is not installed")
    import yaml

    from retrm.service.ray_serve import ReplicaArguments

    read = schema.ServeDeploySchema.model_validate(
        yaml.safe_load((DEPLOY / "ray-serve.yaml").read_text())
    )
    (application,) = read.applications
    module, _, name = application.import_path.partition(":")
    told = ReplicaArguments.model_validate(application.args)

    assert callable(getattr(importlib.import_module(module), name))
    assert read.http_options.host == "127.0.0.1"
    assert told.token_file is not None
    settings_of(told.settings, "settings.")


def test_the_line_of_the_page_that_starts_replicas_is_understood():
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    from retrm.service import ray_serve

    page = (ROOT / "docs" / "how-to" / "serve.md").read_text("utf-8")
    (line,) = re.findall(r"^serve run (retrm\.\S+ .*)$", page, re.MULTILINE)
    path, *pairs = shlex.split(line)
    told = ray_serve.ReplicaArguments.model_validate(dict(pair.split("=", 1) for pair in pairs))

    assert path == f"{ray_serve.__name__}:{ray_serve.app.__name__}"
    assert (told.models, told.replicas, told.device) == (["runs/elhsr"], 4, "cuda")
