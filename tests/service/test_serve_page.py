"""docs/how-to/serve.md is true: its blocks run against a server, its tables name what there is."""

import json
import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from doc_blocks import blocks_of
from listening import listening
from scored import reward_model
from served import PATIENT_S
from tiny import save_tiny

from retrm.adapters.judge import shared_judge
from retrm.backbone.load import load_backbone
from retrm.features.recipe import Recipe
from retrm.records import Answer
from retrm.scorers.reward_model import RewardModel
from retrm.service.app import _ANSWERS, OPEN_PATHS, create_app
from retrm.service.core import Service
from retrm.service.description import describe
from retrm.service.dialects import ROUTES
from retrm.service.models import open_registry
from retrm.service.settings import ServiceSettings, settings_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "serve.md"
TEXT = PAGE.read_text("utf-8")
ADDRESS = "http://127.0.0.1:8000"
PYTHON = blocks_of(TEXT, "python")
CURL = [block for block in blocks_of(TEXT, "sh") if block.text.startswith("curl ")]
ANSWERS = ["7", "It is 8, I think."]
PACKAGES = ("trl", "its_hub", "inspect_ai", "lm_eval", "verifiers", "verl", "openrlhf")
# Blocks whose last word is another than `scores`, and why.
OTHERWISE = {"lm_eval": "a filter keeps answers"}


def heading_of(line: int) -> str:
    """The heading under which a line stands."""
    found = [x for x in TEXT.splitlines()[:line] if x.startswith("#")]
    return found[-1].lstrip("# ")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder as the page means it: runs/elhsr, on a tiny model."""
    folder = tmp_path_factory.mktemp("page")
    save_tiny(folder / "tiny")
    recipe = Recipe(layers="all", point="hidden_states", pooling="tokens", dtype="float32")
    made = reward_model(load_backbone(str(folder / "tiny")), recipe, "gated")
    made.with_selftest([Answer.of("2+2?", "4")]).save(folder / "runs" / "elhsr")
    return folder


@pytest.fixture(scope="module")
def offline(work):
    model = RewardModel.load(work / "runs" / "elhsr")
    return model.score([("What is 3 + 4?", text) for text in ANSWERS]).tolist()


@pytest.fixture(scope="module")
def url(work):
    registry = open_registry([str(work / "runs" / "elhsr")])
    with listening(create_app(Service(registry))) as address:
        yield address


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in ("RETRM_URL", "RETRM_MODEL", "RETRM_TOKEN", "RETRM_SCORER", "RETRM_BINARY_ABOVE"):
        monkeypatch.setenv(name, "x")  # so that what a block sets is undone
        monkeypatch.delenv(name)
    shared_judge.cache_clear()
    yield
    shared_judge.cache_clear()


# Blocks


@pytest.mark.parametrize(
    "block", PYTHON, ids=lambda b: f"{b.line}-{heading_of(b.line).replace(' ', '_')}"
)
def test_every_python_block_gets_the_offline_scores(
    block, work, offline, url, tmp_path, monkeypatch
):
    imported = set(re.findall(r"^(?:from|import) (\w+)", block.text, re.MULTILINE))
    for package in sorted(imported & set(PACKAGES)):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(work)
    file = tmp_path / "block.py"
    file.write_text(block.text.replace(ADDRESS, url))

    made = runpy.run_path(str(file))

    name = next((name for name in OTHERWISE if name in block.text), None)
    if name == "lm_eval":
        assert made["kept"] == [[ANSWERS[offline.index(max(offline))]]]
    else:
        expected = offline[: len(made["scores"])]
        assert made["scores"] == pytest.approx(expected, abs=1e-5)
        is_one = "messages" in made.get("body", ()) or "inspect_ai" in imported
        assert len(made["scores"]) == (1 if is_one else 2)
    if "best" in made:
        assert made["best"].text == ANSWERS[offline.index(max(offline))]
    if "steps" in made:
        assert 0 < made["steps"][0] < 1


def test_the_curl_line_gets_the_offline_scores(offline, url):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (block,) = CURL
    done = subprocess.run(
        ["bash", "-c", block.text.replace(ADDRESS, url)],
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
        check=True,
    )

    scores = [one["score"] for one in json.loads(done.stdout)["results"]]
    assert scores == pytest.approx(offline, abs=1e-5)


def test_every_trainer_of_the_adapters_has_a_block():
    adapters = PAGE.parents[2] / "src" / "retrm" / "adapters"
    hosts = {file.stem for file in adapters.glob("*.py")} - {"__init__", "judge"}
    code = "\n".join(block.text for block in PYTHON)

    assert {h for h in hosts if not re.search(rf"retrm\.adapters(\.| import ){h}\b", code)} == set()


def test_settings_of_trainers_name_what_can_be_imported():
    named = set(re.findall(r"(?:pkg://)?(retrm(?:\.\w+)+)(?::(\w+))?", TEXT))
    assert ("retrm.adapters.verl", "") in named
    for module, attribute in named:
        try:
            found = __import__(module, fromlist=["_"])
        except ModuleNotFoundError:
            parent, _, last = module.rpartition(".")
            found = getattr(__import__(parent, fromlist=["_"]), last)
        except Exception as error:
            if type(error).__name__ != "MissingExtraError":
                raise
            continue
        assert not attribute or hasattr(found, attribute)


# Tables


def rows_under(heading: str) -> list[list[str]]:
    """Cells of the table under a heading."""
    part = TEXT.split(f"\n{heading}\n")[1].split("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_every_metric_is_explained_and_every_explained_one_exists(work):
    service = Service(open_registry(["longest"]))
    said = service.metrics.text().decode()
    exposed = set(re.findall(r"^# TYPE (\S+) ", said, re.MULTILINE))
    exposed = {name for name in exposed if not name.endswith("_created")}

    explained = [row[0].strip("`") for row in rows_under("## Metrics")]

    assert sorted(explained) == sorted(exposed)
    assert all(len(row[1]) > 10 for row in rows_under("## Metrics"))


def test_every_path_of_a_protocol_is_in_the_table():
    told = {path for row in rows_under("## What each protocol returns") for path in paths(row[0])}

    assert told == {route.path for route in ROUTES}


def paths(cell: str) -> list[str]:
    return re.findall(r"`(/[^`]*)`", cell)


def test_every_status_of_the_description_is_in_the_table():
    told = {int(x) for row in rows_under("## When it says no") for x in row[0].split(",")}
    described = describe(ROUTES, has_token=True)["paths"]["/classify"]["post"]["responses"]

    given = {status for _, status, _, _ in _ANSWERS} | {int(status) for status in described}

    # 405 is the framework's own.
    assert told == given - {200} | {405}


def test_every_reason_of_a_refusal_is_explained():
    (row,) = [row for row in rows_under("## Metrics") if "refused" in row[0]]

    reasons = {reason for _, _, _, reason in _ANSWERS if reason} | {"gone"}
    assert set(re.findall(r"`(\w+)`", row[1])) == reasons


def test_the_limits_that_are_shown_are_the_defaults():
    (block,) = blocks_of(TEXT, "toml")
    shown = tomllib.loads(block.text)["serve"]

    assert settings_of(shown, "") == ServiceSettings()
    assert shown


def test_what_needs_no_key_is_said():
    assert frozenset({"/", "/health"}) == OPEN_PATHS
    assert "everything but `/` and `/health` needs it" in " ".join(TEXT.split())
