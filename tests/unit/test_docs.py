"""The documentation is true: its code runs, its links lead somewhere, its command lines exist."""

import doctest
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from doc_blocks import SKIP, blocks_of

import retrm
from retrm import errors
from retrm.cli.main import app
from retrm.data.detect import detect, parse
from retrm.data.formats import FORMATS
from retrm.data.parsed import Options
from retrm.data.rating_columns import WantedRatings
from retrm.data.read import Record
from retrm.finetuning.reward_options import RewardOptions
from retrm.heads.registry import HEADS
from retrm.losses import LOSSES
from retrm.methods import METHODS
from retrm.selection import RULES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [page for page in PAGES if page.is_file()]
# What may excuse a block from running: the real model, or a folder that was fitted on it.
REAL = ("smollm2", "RewardModel.load(", "from_pretrained(")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


def prose_of(text: str) -> str:
    """The text without fenced blocks and inline code."""
    kept, is_open = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            is_open = not is_open
        elif not is_open:
            kept.append(re.sub(r"`[^`]*`", "", line))
    return "\n".join(kept)


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower())
    return plain.replace(" ", "-")


def anchors_of(file: Path) -> set[str]:
    """The anchors that links to a page may name."""
    headings = re.findall(r"^#+ (.*)$", file.read_text("utf-8"), re.MULTILINE)
    return {slug(heading) for heading in headings}


# ------------------------------------------------------------------------------------ python


# Whose blocks want a server; tests/service/test_serve_page.py runs them.
SERVED = DOCS / "how-to" / "serve.md"
WITH_PYTHON = [p for p in PAGES if blocks_of(p.read_text("utf-8"), "python") and p != SERVED]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_run_one_after_the_other_in_an_empty_folder(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": f"docs_{page.stem}"}
    for block in blocks_of(page.read_text("utf-8"), "python"):
        # Empty lines before it, so that a traceback names the line of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if not block.is_skipped:
            exec(code, namespace)


@pages
def test_only_blocks_that_load_a_real_model_are_excused_from_running(page):
    text = page.read_text("utf-8")
    skipped = [block for block in blocks_of(text) if block.is_skipped]

    assert [line.strip() for line in text.splitlines()].count(SKIP) == len(skipped)
    for block in skipped:
        assert block.language == "python"
        assert any(word in block.text for word in REAL), f"{name_of(page)}:{block.line}"


PACKAGE = Path(retrm.__file__).parent
MODULES = [
    ".".join(("retrm", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for file in sorted(PACKAGE.rglob("*.py"))
    if re.search(r"^\s*>>> ", file.read_text("utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_show(name):
    found = doctest.testmod(importlib.import_module(name))

    assert found.failed == 0


def test_doctests_are_found_at_all():
    assert {"retrm.features.subspace", "retrm.metrics", "retrm.data.load"} <= set(MODULES)


# ------------------------------------------------------------------------------------- links


@pages
def test_relative_links_lead_to_files_and_headings_that_exist(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(target)

    assert not broken


def test_the_index_leads_to_every_page():
    listed = {
        (DOCS / target.partition("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)\s]+)\)", (DOCS / "README.md").read_text("utf-8"))
    }
    own = set(DOCS.rglob("*.md")) - {DOCS / "README.md"} - set((DOCS / "results").glob("**/*.md"))

    assert own <= listed


# ------------------------------------------------------------------------------ command lines


def commands_of(text: str) -> list[tuple[int, str]]:
    """(line, command) of every command in a shell block; continued lines are joined."""
    found = []
    for block in blocks_of(text, "sh"):
        joined, start = "", block.line
        for number, line in enumerate(block.text.splitlines(), start=block.line):
            start = start if joined else number
            joined += line.removesuffix("\\").strip() + " "
            if not line.endswith("\\"):
                found.append((start, joined.strip()))
                joined = ""
    return [(line, command) for line, command in found if command]


def words_of(command: str) -> list[str]:
    """Words up to the first pipe, redirection or `&&`; comments are left out."""
    words = shlex.split(command, comments=True)
    ends = [i for i, word in enumerate(words) if word in ("|", ">", "2>", "&&", ";")]
    return words[: ends[0]] if ends else words


@pages
def test_command_lines_name_verbs_and_options_that_exist(page):
    for line, command in commands_of(page.read_text("utf-8")):
        words = words_of(command)
        if not words or words[0] != "retrm":
            continue
        try:
            app.parse_args(words[1:], print_error=False, exit_on_error=False)
        except Exception as error:  # cyclopts raises many kinds; all mean that the page is wrong
            pytest.fail(f"{name_of(page)}:{line}: {command}: {error}")


def test_the_check_of_command_lines_sees_a_wrong_option():
    with pytest.raises(Exception, match="modle"):
        app.parse_args(
            words_of("retrm fit a.jsonl --modle fake -o out  # no such option")[1:],
            print_error=False,
            exit_on_error=False,
        )


@pages
def test_make_targets_that_are_shown_exist(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    shown = [
        word
        for _, command in commands_of(page.read_text("utf-8"))
        if (words := words_of(command)) and words[0] == "make"
        for word in words[1:]
        if "=" not in word
    ]

    assert set(shown) <= set(targets)


def test_the_page_of_the_command_line_is_what_the_program_says_now():
    command = [sys.executable, str(DOCS / "make_cli_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- completeness of pages


def examples_of_formats() -> list[tuple[str, str]]:
    """(format named in the heading above, JSON text) of docs/how-to/data-formats.md."""
    text = (DOCS / "how-to" / "data-formats.md").read_text("utf-8")
    found = []
    for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        named = re.match(r"`(\w+)`", part)
        if named and named[1] in FORMATS:
            found += [(named[1], block.text) for block in blocks_of(part, "json")]
    return found


@pytest.mark.parametrize(("name", "text"), examples_of_formats())
def test_json_examples_are_read_as_the_format_they_stand_under(name, text):
    record = Record(json.loads(text), "example")
    attribute = "helpfulness" if "helpfulness" in text else None
    known = WantedRatings.of("known")
    options = Options(attribute=attribute, strength_sign="negative_first", ratings=known)

    assert detect(record, options) == name
    assert parse(record, name, options).answers


def test_every_readable_format_has_an_example_and_the_others_are_named():
    text = (DOCS / "how-to" / "data-formats.md").read_text("utf-8")
    shown = {name for name, _ in examples_of_formats()}

    assert shown == {name for name, format in FORMATS.items() if format.is_readable}
    assert all(f"`{name}`" in text for name in FORMATS)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("explanation/methods.md", [*METHODS, *HEADS, *LOSSES]),
        ("how-to/fit-your-own.md", [*RULES]),
        (
            "how-to/troubleshoot.md",
            [
                name
                for name, value in vars(errors).items()
                if isinstance(value, type) and issubclass(value, errors.RetrmError)
            ],
        ),
    ],
)
def test_pages_that_promise_to_name_everything_do(page, names):
    text = (DOCS / page).read_text("utf-8")

    assert [name for name in names if f"`{name}`" not in text] == []


@pages
def test_toml_blocks_are_settings_that_fit_takes(page):
    for block in blocks_of(page.read_text("utf-8"), "toml"):
        values = tomllib.loads(block.text)
        if "training" in values:
            RewardOptions.from_dict(values.pop("training"), values.get("loss_options"))
        tables = {"recipe", "gradient", "loss_options", "mixture"}
        if not tables & values.keys():
            continue
        assert values.keys() <= tables
        # Options of pairs belong to a loss that a preset may not have.
        loss = "bradley_terry" if "loss_options" in values else None
        METHODS["elhsr"].with_changes(**values, loss=loss)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.parent.name in ("explanation", "how-to")], ids=name_of
)
def test_pages_that_name_the_reasoning_subspace_say_that_the_name_asserts_nothing(page):
    text = " ".join(page.read_text("utf-8").split())
    if "reasoning subspace" in text.lower():
        assert "unproven" in text or "not a proven" in text, name_of(page)
