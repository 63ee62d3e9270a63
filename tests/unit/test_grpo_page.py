"""The page of the GRPO run is what its result file says, and says no more than its intervals allow."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("make_grpo")


def test_the_page_is_what_the_file_says():
    command = [sys.executable, str(DOCS / "make_grpo.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.3, "rose"),
        (-0.3, -0.1, "fell"),
        (-0.1, 0.3, "is not told apart from what it was"),
        (0.0, 0.3, "is not told apart from what it was"),
    ],
)
def test_only_an_interval_without_zero_is_a_change(page, low, high, words):
    assert page.verdict({"low": low, "high": high}) == words


def test_every_step_and_both_ends_of_the_held_out_questions_are_in_the_file(page):
    found = json.loads((page.RESULTS / "grpo.json").read_text("utf-8"))

    assert [step["step"] for step in found["steps"]] == list(range(1, 81))
    assert all({"score_mean", "score_std", "own_mean"} <= step.keys() for step in found["steps"])
    assert found["held_out"]["measures"].keys() == page.MEASURES.keys() == page.SUBJECTS.keys()
    assert found["drift"][0]["mean_abs_shift"] == 0  # the policy before training


def test_texts_of_a_model_cannot_break_the_table(page):
    assert page.plain("a | `b`\n c") == "`a / 'b' c`"
    assert page.plain(" ") == "(empty)"
