"""What every entry of RULES must do."""

import inspect
import math

import pytest

from retrm.errors import DataError, RecipeError, ScoreError
from retrm.selection import RULES, Selection, apply

COLUMNS = {
    "scores": [0.3, -1.0, 2.5, 0.1],
    "keys": ["a", None, "b", "a"],
    "lengths": [40, 10, 300, 55],
    "other": [0.2, 0.1, 0.4, 0.9],
}
names = pytest.mark.parametrize("name", list(RULES))


# Of rules that judge by several objectives.
OBJECTIVES = [[0.3, 1.0], [-1.0, 0.0], [2.5, 2.0], [0.1, 3.0]]


def columns_of(name):
    has_objectives = "objectives" in RULES[name].needs
    return {**COLUMNS, **({"objectives": OBJECTIVES} if has_objectives else {})}


def needed(name):
    return {column: columns_of(name)[column] for column in RULES[name].needs}


@names
def test_one_signature_with_own_options_keyword_only(name):
    parameters = inspect.signature(RULES[name].function).parameters
    assert list(parameters)[:4] == ["scores", "keys", "lengths", "other"]
    own = {n: p for n, p in parameters.items() if n not in columns_of(name)}
    assert tuple(own) == RULES[name].options
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in own.values())


@names
def test_it_is_registered_under_its_own_name_and_documented(name):
    assert RULES[name].function.__name__ == name
    assert RULES[name].doc
    assert "needs" in RULES[name].function.__doc__


@names
def test_it_runs_on_what_it_says_it_needs_and_on_everything(name):
    for columns in (needed(name), columns_of(name)):
        kept = RULES[name].function(**columns)
        assert isinstance(kept, Selection)
        assert 0 <= kept.chosen < 4
        assert kept.n_candidates == 4


@names
def test_it_reports_the_key_of_what_it_keeps(name):
    kept = RULES[name].function(**columns_of(name))
    assert kept.key == COLUMNS["keys"][kept.chosen]
    assert kept.n_without_key == 1


@names
def test_a_single_candidate_is_kept(name):
    kept = RULES[name].function(
        **{column: values[:1] for column, values in columns_of(name).items()}
    )
    assert (kept.chosen, kept.is_tie) == (0, False)


@names
def test_equally_good_candidates_are_a_tie_that_the_first_wins(name):
    twins = {"scores": [1.0] * 2, "keys": ["a", "b"], "lengths": [9] * 2, "other": [1.0] * 2}
    if "objectives" in RULES[name].needs:
        twins["objectives"] = [[1.0, 2.0]] * 2
    kept = RULES[name].function(**twins)
    assert (kept.chosen, kept.is_tie) == (0, True)


@names
def test_votes_abstain_without_answers_and_the_others_decide(name):
    kept = RULES[name].function(**{**columns_of(name), "keys": [None] * 4})
    assert (kept.chosen is None) == RULES[name].is_vote


@names
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_with_their_position(name, bad):
    scores = [0.3, bad, 2.5, 0.1]
    with pytest.raises(ScoreError, match="at position 1 of scores"):
        RULES[name].function(**{**columns_of(name), "scores": scores})


@names
def test_each_needed_column_is_asked_for_by_name(name):
    for missing in RULES[name].needs:
        with pytest.raises(RecipeError, match=f"got no {missing}"):
            RULES[name].function(**{**columns_of(name), missing: None})


@names
def test_columns_of_different_length_are_refused(name):
    first = RULES[name].needs[0]
    with pytest.raises(DataError, match="columns of different length"):
        RULES[name].function(**{**columns_of(name), first: columns_of(name)[first][:3]})


@names
def test_no_candidates_are_refused(name):
    with pytest.raises(DataError, match="got no candidates"):
        RULES[name].function(**{column: [] for column in columns_of(name)})


@names
def test_inputs_are_left_as_they_were(name):
    columns = {column: list(values) for column, values in columns_of(name).items()}
    RULES[name].function(**columns)
    assert columns == columns_of(name)


@names
def test_apply_on_one_prompt_is_the_rule(name):
    kept = apply(name, ["p"] * 4, **columns_of(name))
    assert kept.selections == (RULES[name].function(**columns_of(name)),)
