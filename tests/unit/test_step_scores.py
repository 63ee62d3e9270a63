"""Scores of solutions from scores of their steps."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import RecipeError
from retrm.records import Answer
from retrm.scorers.base import Judgement
from retrm.scorers.open import open_scorer
from retrm.scorers.steps import StepScorer, aggregated, steps_of


class LastLetter:
    """Scores a text by its last letter: a = 0, b = 1, ..."""

    name = "letter"
    identity = "letter"

    def __init__(self):
        self.asked = []

    def score(self, answers):
        self.asked += [a.response for a in answers]
        return np.array([ord(a.response[-1]) - ord("a") for a in answers], dtype=float)


class Limited(LastLetter):
    """Leaves out texts of more than four characters; counts characters."""

    def judge(self, answers, *, overlong="error"):
        scores = self.score(answers)
        n = np.array([len(a.response) for a in answers])
        return Judgement(np.where(n > 4, np.nan, scores), n, n == 4)


def test_rules_by_hand():
    scores = np.array([2.0, -1.0, 0.0])
    p = [0.880797, 0.268941, 0.5]
    assert aggregated(scores, "min") == -1.0
    assert aggregated(scores, "last") == 0.0
    # log(0.880797 x 0.268941 x 0.5)
    assert aggregated(scores, "product") == pytest.approx(math.log(math.prod(p)), abs=1e-5)
    assert aggregated(scores, "mean") == pytest.approx(sum(p) / 3, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=6))
def test_a_product_is_never_above_the_weakest_step(scores):
    values = np.array(scores)
    weakest = -np.logaddexp(0, -aggregated(values, "min"))
    assert aggregated(values, "product") <= weakest + 1e-9
    assert math.exp(weakest) <= aggregated(values, "mean") + 1e-9


def test_every_beginning_is_asked_and_last_asks_for_the_whole_alone():
    answer = Answer.of("q", "c\n\na\n\n\n\nb")
    inner = LastLetter()
    assert StepScorer(inner, "min").score([answer]).tolist() == [0.0]
    assert inner.asked == ["c", "c\n\na", "c\n\na\n\nb"]
    inner = LastLetter()
    assert StepScorer(inner, "last").score([answer]).tolist() == [1.0]
    assert inner.asked == [answer.response]


def test_solutions_of_different_numbers_of_steps_keep_their_own():
    answers = [Answer.of("q", "b"), Answer.of("q", "c\n\na"), Answer.of("q", "d\n\nd\n\nc")]
    scorer = StepScorer(LastLetter(), "min")
    assert scorer.score(answers).tolist() == [1.0, 0.0, 2.0]
    assert [s.tolist() for s in scorer.step_scores(answers)] == [[1.0], [2.0, 0.0], [3.0, 3.0, 2.0]]


def test_a_solution_with_a_step_left_out_is_left_out():
    answers = [Answer.of("q", "b\n\nc"), Answer.of("q", "b\n\ncd"), Answer.of("q", "b")]
    found = StepScorer(Limited(), "mean").judge(answers, overlong="skip")
    assert np.isnan(found.scores).tolist() == [False, True, False]
    assert found.n_tokens.tolist() == [1 + 4, 1 + 5, 1]
    assert found.is_cut.tolist() == [True, False, False]


def test_text_without_a_blank_line_is_one_step():
    assert steps_of("one\ntwo") == ["one\ntwo"]
    assert steps_of(" \n\n ") == [" \n\n "]


def test_rules_have_names_of_their_own():
    assert StepScorer(LastLetter(), "min").identity != StepScorer(LastLetter(), "mean").identity
    assert open_scorer("steps:min:longest").score([Answer.of("q", "a\n\nb")]).tolist() == [1.0]
    with pytest.raises(RecipeError, match="Did you mean 'product'"):
        open_scorer("steps:produkt:longest")
    with pytest.raises(RecipeError, match="expected steps:RULE:SCORER"):
        open_scorer("steps:min")
    with pytest.raises(RecipeError, match="without steps"):
        aggregated(np.array([]), "min")
