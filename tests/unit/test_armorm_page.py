"""The page of ArmoRM says what its result files say."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def page():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("make_armorm")


def _span(value: float, half: float = 0.1) -> dict:
    return {"value": value, "low": value - half, "high": value + half, "n": 9, "n_clusters": 9}


def _objective(name: str, *, explained: float, above: float) -> dict:
    features = ("full", "ridge", "pooled", "reasoning", "semantic", "pca", "length", "mixture")
    return {
        **{"objective": name, "n": 90, "n_prompts": 45},
        "correlation": dict.fromkeys(features, _span(0.4)),
        "explained": {"full": _span(explained), "ridge": _span(0.05)},
        "correlation_minus_ridge": {"full": _span(above), "reasoning": _span(-0.3)},
        "reasoning_minus": dict.fromkeys(("random", "semantic", "pca", "full"), _span(0.0)),
    }


def test_the_page_is_what_its_files_say():
    command = [sys.executable, str(DOCS / "make_armorm.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_objectives_are_counted_by_their_intervals(page):
    # explained .2 [.1, .3] is sure, -.2 sure of the opposite, .05 [-.05, .15] neither
    ratings = [
        _objective("a", explained=0.2, above=0.2),
        _objective("b", explained=-0.2, above=-0.2),
        _objective("c", explained=0.05, above=0.0),
    ]
    made = page.objectives({"ratings": ratings})

    assert "explains more than the constant in 1 and less in 1" in made
    assert "lies above zero in 3" in made
    assert "above in 1 and below in 1" in made
    assert "| a | 90 (45) | .400 [.300, .500] |" in made
    assert "**.200 [.100, .300]**" in made
    assert "| – |" in made  # no log-probability was read


def test_a_scorer_without_figures_on_a_set_has_a_dash_and_the_mixture_has_no_difference_to_itself(
    page,
):
    row = {"accuracy": _span(0.6), "n_ties": 0}
    own = {"name": "mixture/full", "mixture_minus_it": None, **row}
    longest = {"name": "longest", "mixture_minus_it": _span(0.2), **row}
    alone = {"name": "mixture/full, hh alone", "mixture_minus_it": _span(0.0), **row}
    pairs = {"n_pairs": 50, "n_prompts": 50}
    made = page.pairs(
        {"pairs": {"rmb": {"rows": [own, longest], **pairs}, "hh": {"rows": [own, alone], **pairs}}}
    )

    accuracy, minus = made.split("\n\n")
    assert "| longest | .600 [.500, .700] | – |" in accuracy
    assert "| `armorm`, gate on this set's pairs alone | – | .600 [.500, .700] |" in accuracy
    assert "| `armorm` |" not in minus
    assert "| longest | **.200 [.100, .300]** | – |" in minus


def test_without_files_the_page_says_so(page, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "TIMED", tmp_path / "none.json")
    made = page.blocks()

    assert made["armorm-objectives"] == page.NOTHING
    assert "benchmarks/armorm_fit.py" in made["armorm-time"]
