"""Why an answer has its score: parts that add up, in Python, in files of `retrm score`, and in reports."""

import json
import math

import numpy as np
import pytest
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed import OBJECTIVES, mixed_model
from pages import Reader

from retrm.errors import RecipeError
from retrm.heads.explanation import Explanation
from retrm.records import Answer
from retrm.reports.objective_bars import decided_html
from retrm.scorers.reward_model import RewardModel

NUMBERS = st.floats(-1e6, 1e6, width=32)


def explanation(*contributions: float, names: tuple[str, ...] | None = None) -> Explanation:
    """One whose gates are all 1."""
    names = names or tuple(f"o{k}" for k in range(len(contributions)))
    ones = [1.0] * len(contributions)
    return Explanation.of(names, contributions, contributions, ones, contributions, ones)


@pytest.fixture(scope="module")
def model() -> RewardModel:
    return mixed_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("rm") / "mixed"
    model.save(path)
    return path


# ---------------------------------------------------------------------------- in Python


@given(st.lists(NUMBERS, min_size=1, max_size=20))
@settings(max_examples=40)
def test_contributions_add_up_to_the_score_in_any_order(values) -> None:
    assert explanation(*values).score == math.fsum(reversed(values))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20))
@settings(max_examples=40)
def test_differences_are_sorted_and_add_up_to_the_difference_of_the_scores(pairs) -> None:
    one, two = (explanation(*column) for column in zip(*pairs, strict=True))
    found = [row.difference for row in one.minus(two)]

    assert [abs(value) for value in found] == sorted(map(abs, found), reverse=True)
    assert math.fsum(found) == pytest.approx(one.score - two.score, rel=1e-12, abs=1e-6)
    assert [row.difference for row in two.minus(one)] == [-value for value in found]


def test_objectives_that_decided_stand_first_and_ties_keep_their_order() -> None:
    # 3 - 1 = 2, 1 - 2 = -1, 0.5 - (-0.5) = 1; scores 4.5 and 2.5, 2 - 1 + 1 = 2.
    one, two = explanation(3.0, 1.0, 0.5), explanation(1.0, 2.0, -0.5)

    assert [(row.objective, row.difference) for row in one.minus(two)] == [
        ("o0", 2.0),
        ("o1", -1.0),
        ("o2", 1.0),
    ]


def test_answers_of_two_models_are_not_compared() -> None:
    with pytest.raises(RecipeError, match="judged by a, b and one judged by a, c"):
        explanation(1.0, 2.0, names=("a", "b")).minus(explanation(1.0, 2.0, names=("a", "c")))


def test_rows_say_all_of_each_objective() -> None:
    made = Explanation.of(("a",), (2.0,), (1.5,), (0.5,), (0.75,), (0.4,), as_rated=(3.0,))

    assert made.rows() == [
        {
            "name": "a",
            "score": 2.0,
            "adjusted": 1.5,
            "gate": 0.5,
            "contribution": 0.75,
            "coefficient": 0.4,
            "as_rated": 3.0,
        }
    ]
    assert explanation(1.0).rows()[0]["as_rated"] is None


def test_a_stream_is_explained_as_each_answer_alone(model) -> None:
    answers = [Answer.of("q", text) for text in ("a", "bb", "x" * 2000, "ccc")]
    (first, second) = model.explain_chunks([answers[:3], answers[3:]], overlong="skip")

    assert first[2] is None
    for found, answer in zip((*first[:2], *second), (*answers[:2], answers[3]), strict=True):
        alone = model.explain_of(answer)
        assert found.contributions == pytest.approx(alone.contributions, abs=1e-5)
        assert found.score == math.fsum(found.contributions)


# ---------------------------------------------------------------------- retrm score --explain


def written(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_score_writes_objectives_in_the_shape_of_the_scores(folder, tmp_path) -> None:
    data = written(
        tmp_path / "d.jsonl",
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
    )
    several = written(tmp_path / "s.jsonl", {"prompt": "q", "responses": ["a", "bb"]})
    assert run("score", folder, data, "--explain", "-o", tmp_path / "o.jsonl") == 0
    assert run("score", folder, several, "--explain", "-o", tmp_path / "p.jsonl") == 0
    (pair,), (row,) = read(tmp_path / "o.jsonl"), read(tmp_path / "p.jsonl")

    for side in ("chosen", "rejected"):
        parts = pair["objectives"][side]
        assert [part["name"] for part in parts] == list(OBJECTIVES)
        assert math.fsum(part["contribution"] for part in parts) == pair["score"][side]
    assert len(row["objectives"]) == 2
    for parts, score in zip(row["objectives"], row["score"], strict=True):
        assert math.fsum(part["contribution"] for part in parts) == score


def test_what_was_left_out_has_no_objectives(folder, tmp_path) -> None:
    data = written(
        tmp_path / "d.jsonl",
        {"prompt": "q", "response": ""},
        {"prompt": "q", "response": "x" * 2000},
        {"prompt": "q", "response": "yes"},
    )
    options = ("--empty", "drop", "--overlong", "skip", "--explain", "-o", tmp_path / "o.jsonl")
    assert run("score", folder, data, *options) == 0
    first, second, third = read(tmp_path / "o.jsonl")

    assert first["objectives"] is None
    assert second["objectives"] is None
    assert second["score"] is None
    assert third["score"] == math.fsum(part["contribution"] for part in third["objectives"])


def test_a_scorer_without_objectives_cannot_explain(tmp_path, capsys) -> None:
    data = written(tmp_path / "d.jsonl", {"prompt": "q", "response": "yes"})
    assert run("score", "longest", data, "--explain", "-o", tmp_path / "o.jsonl") == 2

    said = capsys.readouterr().err
    assert "the score of longest is no sum over objectives" in said
    assert not (tmp_path / "o.jsonl").exists()


# ----------------------------------------------------------------------------- in reports


def test_a_report_shows_differences_as_bars_that_add_up() -> None:
    # Differences 2, -1, 0.5 of 1.5 in all; the largest fills its half.
    one, two = explanation(3.0, 1.0, 0.5), explanation(1.0, 2.0, 0.0)
    html = decided_html(one, two, names=("should win", "scores higher"))
    text = Reader(html).text

    assert "o0 +2 3 − 1 o1 −1 1 − 2 o2 +0.5 0.5 − 0 together +1.5 4.5 − 3" in text
    assert html.index("width:50.0%") < html.index("width:25.0%") < html.index("width:12.5%")
    assert html.count("class=plus") == 2
    assert html.count("class=minus") == 1


def test_many_objectives_keep_the_small_ones_behind_a_line_and_names_stay_text() -> None:
    names = ("<script>", *(f"n{k}" for k in range(10)))
    one = explanation(*np.linspace(11, 1, 11), names=names)
    html = decided_html(one, explanation(*[0.0] * 11, names=names), names=("a", "b"))

    # The three smallest of 11 to 1: 3 + 2 + 1 = 6.
    assert "3 more of these, smaller; together +6" in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_equal_answers_have_no_bars() -> None:
    html = decided_html(explanation(1.0, 2.0), explanation(1.0, 2.0), names=("a", "b"))
    assert "class=plus" not in html
    assert "class=minus" not in html


def test_an_evaluation_shows_which_objectives_decided_the_mistakes(folder, tmp_path) -> None:
    rows = (
        {"prompt": f"q{k}", "responses": ["yes" * k, "no, never"], "correct": [True, False]}
        for k in range(1, 7)
    )
    data = written(tmp_path / "rollouts.jsonl", *rows)
    code = run(
        *("eval", folder, "--benchmark", "best_of_n", "--data", data, "-o", tmp_path / "run"),
        *("--mistakes", 2),
    )
    page = (tmp_path / "run" / "report.html").read_text()
    mistakes = json.loads((tmp_path / "run" / "evaluation.json").read_text())["findings"][0]

    assert code == 0
    n_shown = len(mistakes["mistakes"]["shown"])
    assert n_shown
    assert page.count("<div class=decided>") == n_shown
    for name in OBJECTIVES:
        assert page.count(f"<th scope=row class=name>{name}</th>") == n_shown
