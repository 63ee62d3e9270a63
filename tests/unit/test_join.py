"""Several tables as one: every answer once, every relation kept, objectives apart."""

import math

import pytest

from retrm.data.join import join_tables
from retrm.data.load import build_table
from retrm.data.read import records_of
from retrm.errors import DataError
from retrm.records import RatingScale

RATED = (
    {"prompt": "p", "response": "a", "helpfulness": 4},
    {"prompt": "p", "response": "a", "helpfulness": 2},
    {"prompt": "p", "response": "b", "helpfulness": 0},
)
PAIRS = (
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
)


def table_of(*rows, ratings=None):
    return build_table(records_of(rows), ratings=ratings)


def test_ratings_of_one_table_and_preferences_of_another_meet_on_the_same_rows():
    table = join_tables({"rated": table_of(*RATED, ratings="known"), "pairs": table_of(*PAIRS)})
    # p: a, a (rated twice), b; then q: a, b. The pair of p stands on the first a and on b.
    assert [a.response for a in table.answers] == ["a", "a", "b", "a", "b"]
    assert [(p.chosen, p.rejected) for p in table.pairs] == [(0, 2), (3, 4)]
    assert table.ratings["helpfulness"].tolist() == pytest.approx(
        [0.9, 0.5, 0.1, math.nan, math.nan], nan_ok=True
    )
    assert (table.counts["answers_shared"], table.counts["answers"]) == (2, 5)
    assert (table.counts["records"], table.counts["prompts"]) == (5, 2)


def test_objectives_of_one_name_stay_apart_with_the_scale_of_each():
    stars = table_of(
        {"prompt": "p", "response": "a", "helpfulness": 5}, ratings=["helpfulness:1..5"]
    )
    table = join_tables({"steer": table_of(*RATED, ratings="known"), "stars": stars})
    assert list(table.ratings) == ["steer/helpfulness", "stars/helpfulness"]
    assert table.scales["stars/helpfulness"] == RatingScale(1, 5)
    assert table.ratings["stars/helpfulness"].tolist() == pytest.approx(
        [1, math.nan, math.nan], nan_ok=True
    )


def test_answers_whose_labels_differ_keep_a_row_each_and_a_missing_one_is_filled():
    def labelled(label):
        return table_of({"prompt": "p", "response": "a", "label": label})

    assert join_tables({"x": labelled(1), "y": labelled(0)}).labels.tolist() == [1, 0]
    assert join_tables({"x": labelled(None), "y": labelled(0)}).labels.tolist() == [0]
    assert join_tables({"x": labelled(1), "y": labelled(None)}).labels.tolist() == [1]


def test_repeated_samples_of_one_table_stay_two():
    twice = table_of({"prompt": "p", "responses": ["a", "a"], "correct": [1, 1]})
    assert len(join_tables({"x": twice, "y": twice})) == 2
    assert len(join_tables({"x": table_of(PAIRS[0]), "y": twice})) == 3


def test_one_table_comes_out_as_it_went_in():
    table = table_of(*RATED, ratings="known")
    again = join_tables({"only": table})
    assert again.answers == table.answers
    assert list(again.ratings) == ["helpfulness"]
    assert dict(again.counts) == dict(table.counts)


def test_contradictions_between_tables_are_refused():
    one = table_of({"prompt": "p", "response": "a", "prompt_id": "1", "gold": "7"})
    other = table_of({"prompt": "q", "response": "a", "prompt_id": "1"})
    with pytest.raises(DataError, match="prompt_id '1' stands for another prompt"):
        join_tables({"x": one, "y": other})
    gold = table_of({"prompt": "p", "response": "b", "prompt_id": "1", "gold": "8"})
    with pytest.raises(DataError, match="y: the reference answer of prompt_id '1' is '8', but '7'"):
        join_tables({"x": one, "y": gold})
    with pytest.raises(DataError, match="got no tables"):
        join_tables({})
