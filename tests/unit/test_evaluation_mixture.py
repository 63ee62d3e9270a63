"""The held-out figures of a mixture."""

from dataclasses import replace

import numpy as np
import pytest

from retrm.evaluation.mixture import measure_mixture, objective_rows
from retrm.records import Answer, AnswerTable, Pair

IDS = ["a", "a", "b", "b", "c", "c"]
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
LENGTHS = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])


def _rows(ratings, adjusted=SCORES):
    return objective_rows({"good": SCORES}, {"good": adjusted}, {"good": ratings}, IDS, LENGTHS)[0]


def test_only_rated_answers_take_part_in_the_correlation_with_raters():
    row = _rows(np.array([0.2, 0.1, 0.3, np.nan, np.nan, np.nan]))

    # Ranks 1, 2, 3 against 2, 1, 3: 1 - 6 * 2 / (3 * 8) = 0.5. Errors 0.1, 0.1 and 0.
    assert row.n_rated == 3
    assert row.correlation.value == pytest.approx(0.5)
    assert row.squared_error.value == pytest.approx(0.02 / 3)


def test_correlation_with_length_is_of_all_answers_before_and_after():
    row = _rows(np.full(6, np.nan), adjusted=-SCORES)

    assert row.length_correlation.value == pytest.approx(-1.0)
    assert row.adjusted_length_correlation.value == pytest.approx(1.0)
    assert row.correlation is None
    assert row.squared_error is None


def test_equal_ratings_and_objectives_of_which_nothing_is_left_have_no_correlation():
    row = _rows(np.full(6, 0.5), adjusted=np.zeros(6))

    assert row.correlation is None
    assert row.squared_error is not None
    assert row.adjusted_length_correlation is None


def _table(pairs):
    answers = tuple(
        replace(Answer.of(f"prompt {one}", "word " * int(n)), prompt_id=one)
        for one, n in zip(IDS, LENGTHS, strict=True)
    )
    return AnswerTable(answers, np.full(6, np.nan), pairs, ratings={"good": SCORES.copy()})


def _measured(table):
    return measure_mixture(
        *("armorm", SCORES, {"uniform gate": -SCORES}, {"good": SCORES}, {"good": SCORES}, table),
        verbosity=None,
    )


def test_pairs_stand_beside_controls_lengths_and_chance():
    figures = _measured(_table((Pair(1, 0), Pair(3, 2), Pair(4, 5))))
    accuracy = {row.name: row.accuracy.value for row in figures.pairs.rows}

    # Scores rise with the row: two of three pairs; lengths fall with it.
    assert accuracy["armorm"] == pytest.approx(2 / 3)
    assert accuracy["uniform gate"] == pytest.approx(1 / 3)
    assert accuracy["longest"] == pytest.approx(1 / 3)
    assert accuracy["shortest"] == pytest.approx(2 / 3)
    assert "random" in accuracy
    assert set(figures.pairs.rows[0].minus) == set(accuracy) - {"armorm"}


def test_without_held_out_pairs_the_objectives_are_measured_all_the_same():
    figures = _measured(_table(()))

    assert figures.pairs is None
    assert figures.objectives[0].correlation.value == pytest.approx(1.0)
