"""What the tables of a benchmark say beside their figures."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console
from score_files import file, pairs, row

from retrm.cli.tables import benchmark_tables, difference
from retrm.errors import RecipeError
from retrm.evaluation.benchmarks import benchmark, has_threshold
from retrm.evaluation.score_file import ScoreFile
from retrm.evaluation.tables import NOT_COMPARED, measure
from retrm.metrics import Interval
from retrm.reports.evaluation_words import figure_notes, figure_words, notes, signed, standing


def steps(name: str, *scores: tuple[float, float], kind: str = "scorer") -> ScoreFile:
    """Solutions of two steps; of every other one the second step is wrong."""
    rows = [
        row(
            f"gsm8k-{i}",
            some,
            subset="gsm8k",
            facts={"label": 1 if i % 2 else -1, "final_answer_correct": not i % 2},
        )
        for i, some in enumerate(scores)
    ]
    return replace(file(name, rows, "process_bench"), kind=kind)


def test_baselines_are_not_held_against_figures_of_a_fixed_threshold() -> None:
    ours = steps("ours", (1, 1), (1, -1), (1, 1), (1, 1))
    longest = steps("longest", (1, 9), (1, 9), (1, 9), (1, 9), kind="baseline")
    found = measure([ours, longest], n_resamples=50)
    tuned = [row for row in found.of("ours") if "threshold chosen" in row.metric]
    fixed = [row for row in found.of("ours") if row not in tuned]
    assert fixed
    assert tuned
    assert all(not row.minus and not row.beaten_by for row in fixed)
    assert all("longest" in row.minus for row in tuned)
    assert NOT_COMPARED in found.notes
    assert NOT_COMPARED not in measure([ours], n_resamples=50).notes
    plain = measure([pairs("a", [1, -1]), replace(pairs("longest", [1, 1]), kind="baseline")])
    assert NOT_COMPARED not in plain.notes
    assert "longest" in plain.headline("a").minus


@pytest.mark.parametrize(
    ("name", "margins", "is_noted"),
    [
        ("vllm:http://h/classify", [0.2, 1.0, 0.0], True),
        ("vllm:http://h/classify", [0.2, 1.1, 0.0], False),
        ("vllm:http://h/classify", [0.2, -0.1, 0.0], False),
        ("runs/a", [0.2, 1.0, 0.0], False),
    ],
)
def test_a_server_whose_scores_all_look_like_probabilities_is_noted(
    name, margins, is_noted
) -> None:
    notes = measure([pairs(name, margins)], n_resamples=20).notes
    assert any("may apply a sigmoid" in note for note in notes) == is_noted


def test_where_every_item_is_right_no_interval_is_claimed() -> None:
    value = measure([pairs("a", [1.0] * 30)], n_resamples=50).headline("a").value
    assert (value.value, value.low, value.high, value.has_spread) == (1, 1, 1, False)
    assert figure_words(value) == "1.000 [no spread]"
    assert measure([pairs("a", [1.0] * 29 + [-1.0])]).headline("a").value.has_spread


def test_a_difference_without_spread_is_not_called_sure() -> None:
    sure, unknown = Interval(0.5, 0.2, 0.8, 30, 30), Interval(1.0, 1.0, 1.0, 30, 30)
    assert (difference(sure)[-1], difference(unknown)) == ("*", "1.000 [no spread]  ")
    assert signed(unknown) == "+1.000 [no spread]"
    files = [pairs("a", [1.0] * 30), replace(pairs("shortest", [-1.0] * 30), kind="baseline")]
    assert standing(measure(files, n_resamples=50).headline("a")).tone == "open"


@pytest.mark.parametrize("kind", ["vllm-pooling", "sglang", "openrlhf", "retrm"])
def test_every_kind_of_server_is_noted_whose_scores_look_like_probabilities(kind) -> None:
    notes = measure([pairs(f"{kind}:http://h", [0.2, 1.0, 0.0])], n_resamples=20).notes
    assert any("may apply a sigmoid" in note for note in notes)


def test_steps_are_held_against_the_threshold_that_was_asked_for() -> None:
    """Probabilities: at 0.5 the wrong second step is found in both, at 0 in neither."""
    probabilities = steps("p", (0.9, 0.8), (0.9, 0.1), (0.9, 0.8), (0.9, 0.1))
    headlines = [
        measure([probabilities], n_resamples=20, threshold=threshold).headline("p")
        for threshold in (None, 0.0, 0.5)
    ]
    assert [one.value.value for one in headlines] == [0, 0, 1]
    assert headlines[2].note.startswith("a step is wrong below 0.5")


def test_a_benchmark_that_holds_scores_against_nothing_has_no_threshold() -> None:
    assert not has_threshold(benchmark("llmbar", threshold=0.5))
    assert has_threshold(benchmark("prm_bench"))
    with pytest.raises(RecipeError, match="threshold=nan"):
        benchmark("prm_bench", threshold=float("nan"))


def test_a_threshold_that_scorers_do_not_share_is_said_to_be_whose() -> None:
    """Chosen on gsm8k: .3 = (-.4 + 1) / 2 for the one, 3 = (1 + 5) / 2 for the other."""
    files = [
        steps("one", (1, 1), (1, -0.4), (1, 1), (1, -0.4)),
        steps("two", (5, 5), (5, 1), (5, 5), (5, 1)),
    ]
    found = notes(measure(files, n_resamples=20))
    tuned = figure_notes(measure(files, n_resamples=20), is_official=False)
    for name, other, threshold in (("one", "two", "below 0.3,"), ("two", "one", "below 3,")):
        mine = [note for note in tuned if threshold in note]
        assert mine
        assert all(f" of {name}" in note and f" of {other}" not in note for note in mine)
    shared = [note for note in found if "below 0" in note and "chosen" not in note]
    assert shared
    assert not any(" of one" in note for note in shared)


def test_ties_of_scorers_that_differ_stand_from_to() -> None:
    files = [pairs("a", [0, 0, 0, 1]), pairs("b", [0, 1, 1, 1])]
    printed = shown(measure(files, n_resamples=20))
    assert "1 to 3" in printed
    assert " to " not in shown(measure(files[:1], n_resamples=20)).split("ties")[1].split("note")[0]


def shown(table) -> str:
    console = Console(width=200, file=StringIO())
    console.print(*benchmark_tables(table))
    return console.file.getvalue()
