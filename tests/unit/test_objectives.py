"""Objectives that are computed from answers by rules."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.data.load import build_table
from retrm.data.objectives import OBJECTIVES, add_objectives, computed
from retrm.data.read import records_of
from retrm.errors import DataError, LabelError

ROWS = (
    {"prompt": "p", "response": r"So \boxed{7}.", "label": True},
    {"prompt": "p", "response": "I'm sorry, but I can't help with that.", "label": False},
    {"prompt": "q", "response": "one two three", "label": None},
)


def table_of(*names, rows=ROWS):
    return build_table(records_of(rows), objectives=names)


def test_all_of_them_on_three_answers():
    table = table_of("correctness", "length", "format", "refusal")
    assert list(table.ratings) == ["correctness", "length", "format", "refusal"]
    found = {name: values.tolist() for name, values in table.ratings.items()}
    assert found["correctness"] == pytest.approx([1, 0, math.nan], nan_ok=True)
    # 2, 8 and 3 words: log2 of 3, 9 and 4, over 14.
    assert found["length"] == pytest.approx([math.log2(3) / 14, math.log2(9) / 14, 2 / 14])
    assert found["format"] == [1, 0, 0]
    assert found["refusal"] == [0, 1, 0]


@settings(max_examples=40, deadline=None)
@given(st.text("ab \n.#", max_size=80), st.text("ab \n.#", max_size=80))
def test_more_words_never_make_an_answer_shorter_and_all_stay_between_zero_and_one(a, b):
    assert computed("length", a) <= computed("length", f"{a} {b}")
    for name in ("length", "format", "refusal"):
        assert 0 <= computed(name, a) <= 1


def test_length_reaches_one_at_16383_words_and_goes_no_further():
    # 2^14 - 1 words.
    assert computed("length", "w " * 16_383) == 1.0
    assert computed("length", "w " * 16_382) < 1.0
    assert computed("length", "w " * 40_000) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "Steps.\n#### 42",
        "Steps.\nAnswer: 42\n\n",
        "Steps.\n**Answer:** 42",
        "Therefore the answer is 42.",
        "The final answer is: B",
        r"\boxed{x} and some words behind it",
    ],
)
def test_a_stated_result_is_found(text):
    assert computed("format", text) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "Answer: 42\nBut who knows.",
        "I have no answer.",
        "Answer:",
        r"\boxed{ }",
        "The answer is...",
    ],
)
def test_what_states_no_result_is_not_found(text):
    assert computed("format", text) == 0


def test_a_form_of_ones_own_is_searched_for_everywhere():
    rows = [{"prompt": "p", "response": text} for text in ("<a>1</a> end", "1")]
    table = table_of(r"format=<a>\d+</a>", rows=rows)
    assert table.ratings["format"].tolist() == [1, 0]


def test_answers_that_sampling_stopped_have_no_objectives():
    row = {"prompt": "p", "responses": ["a b c", "a"], "pruned": [True, False]}
    assert np.isnan(table_of("length", rows=[row]).ratings["length"]).tolist() == [True, False]


def test_unknown_repeated_and_broken_objectives_are_refused():
    with pytest.raises(DataError, match=r"computed objective 'lenght'; .* Did you mean 'length'"):
        table_of("lenght")
    with pytest.raises(DataError, match="'length' twice"):
        table_of("length", "length")
    with pytest.raises(DataError, match="no regular expression"):
        table_of("format=(")
    with pytest.raises(DataError, match="computed objective 'length=5'"):
        table_of("length=5")
    with pytest.raises(DataError, match="got the text 'length'; expected a list of names"):
        build_table(records_of(ROWS), objectives="length")


def test_correctness_needs_right_and_wrong_and_no_grades():
    bare = [{"prompt": "p", "response": "a"}]
    with pytest.raises(LabelError, match="got no labels and the computed objective 'correctness'"):
        table_of("correctness", rows=bare)
    graded = [{"prompt": "p", "response": "a", "helpfulness": 3}]
    with pytest.raises(LabelError, match="got the label 3 and the computed objective"):
        build_table(records_of(graded), attribute="helpfulness", objectives=["correctness"])
    with pytest.raises(DataError, match="got 'correctness', which is the label"):
        computed("correctness", "a")


def test_a_rated_objective_is_not_computed_over():
    row = {"prompt": "p", "response": "a", "correctness": 3, "label": 1}
    table = build_table(records_of([row]), ratings="known")
    with pytest.raises(
        DataError, match=r"rated on 'correctness' already; .*--rating rated_correctness"
    ):
        add_objectives(table, ["correctness"])


def test_every_objective_says_its_rule():
    assert all(rule.about for rule in OBJECTIVES.values())
