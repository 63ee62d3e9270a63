"""Several objectives: weights, constraints, the Pareto set and the choice from it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import DataError, RecipeError, ScoreError
from retrm.selection import (
    Constraint,
    apply,
    pareto,
    pareto_front,
    parse_constraint,
    parse_weights,
    weighted_scores,
)

NAMES = ("helpfulness", "verbosity")
# Candidate 3 is worse than candidate 1 in both; the other three are a front.
TABLE = [[3.0, 0.0], [2.0, 2.0], [0.0, 3.0], [1.0, 1.0]]
matrices = st.integers(1, 7).flatmap(
    lambda n: st.integers(1, 3).flatmap(
        lambda k: st.lists(
            st.lists(st.integers(-3, 3), min_size=k, max_size=k), min_size=n, max_size=n
        )
    )
)


def test_weights_add_objectives_up_and_one_without_a_weight_counts_nothing():
    # 1 x 3 - 0.3 x 0, 2 - 0.6, 0 - 0.9, 1 - 0.3
    scores = weighted_scores(TABLE, NAMES, parse_weights("helpfulness=1,verbosity=-0.3"))
    assert scores.tolist() == pytest.approx([3.0, 1.4, -0.9, 0.7])
    assert weighted_scores(TABLE, NAMES, {"verbosity": 2}).tolist() == [0, 4, 6, 2]


@pytest.mark.parametrize(
    "text", ["helpfulness", "helpfulness=x", "=1", "", "a=1,,b=2", "a=nan", "a=inf"]
)
def test_weights_that_cannot_be_read_are_refused(text):
    with pytest.raises(RecipeError, match="expected NAME=NUMBER"):
        parse_weights(text)


def test_weights_of_what_is_not_there_or_there_twice_are_refused():
    with pytest.raises(RecipeError, match="name 'a' twice"):
        parse_weights("a=1,a=2")
    with pytest.raises(RecipeError, match=r"no objective 'helpfulnes'.*Did you mean 'helpfulness'"):
        weighted_scores(TABLE, NAMES, {"helpfulnes": 1})
    with pytest.raises(RecipeError, match="no weights"):
        weighted_scores(TABLE, NAMES, {})


@pytest.mark.parametrize(
    ("text", "coefficients", "relation", "bound"),
    [
        ("verbosity<=0.5", {"verbosity": 1.0}, "<=", 0.5),
        ("helpfulness - 2*verbosity >= -1", {"helpfulness": 1.0, "verbosity": -2.0}, ">=", -1.0),
        ("-0.5 * code-style + is_safe>=1e-3", {"code-style": -0.5, "is_safe": 1.0}, ">=", 1e-3),
        ("a + a <= 1", {"a": 2.0}, "<=", 1.0),
        # Names as joined tables and objectives have them.
        ("pairs/help - 2*ratings/help<=0", {"pairs/help": 1.0, "ratings/help": -2.0}, "<=", 0.0),
        ("2*3h + clarté.b_1 >= .5", {"3h": 2.0, "clarté.b_1": 1.0}, ">=", 0.5),
    ],
)
def test_constraints_are_linear_sums_against_a_number(text, coefficients, relation, bound):
    assert parse_constraint(text) == Constraint(coefficients, relation, bound)


@pytest.mark.parametrize(
    "text",
    [
        *("verbosity", "verbosity<0.5", "<=1", "a<=b", "a b<=1", "2<=3", "a<=nan", "a**b<=1", ""),
        *("a/ b<=1", "2 - a<=1", "a - <=1", "a*2<=1", "0<=a<=1"),
    ],
)
def test_constraints_that_cannot_be_read_are_refused(text):
    with pytest.raises(RecipeError, match="expected objectives on the left"):
        parse_constraint(text)


def test_a_constraint_holds_at_its_bound():
    # helpfulness - verbosity: 3, 0, -3, 0
    at_least = parse_constraint("helpfulness - verbosity >= 0")
    assert at_least.holds(np.array(TABLE), NAMES).tolist() == [True, True, False, True]
    with pytest.raises(RecipeError, match="no objective 'length'"):
        parse_constraint("length<=1").holds(np.array(TABLE), NAMES)


def test_the_front_is_what_nobody_dominates_and_twins_stay_together():
    assert pareto_front(TABLE).tolist() == [True, True, True, False]
    assert pareto_front([[1, 1], [1, 1], [1, 0]]).tolist() == [True, True, False]
    assert pareto_front([[1, 2, 3]]).tolist() == [True]


def test_of_the_front_the_best_worst_rank_is_kept():
    # Ranks (how many are ahead): (0, 3), (1, 1), (3, 0), (2, 2): worst 3, 1, 3, 2.
    kept = pareto(objectives=TABLE, keys=["a", "b", "c", "d"])
    assert (kept.chosen, kept.key, kept.is_tie, kept.n_candidates) == (1, "b", False, 4)
    # Ranks (0, 1), (1, 0): the first of two that are equally good, and it is said.
    both = pareto(objectives=[[2, 1], [1, 2]])
    assert (both.chosen, both.is_tie) == (0, True)


@settings(max_examples=40, deadline=None)
@given(matrices)
def test_no_member_of_the_front_is_dominated_and_everybody_else_is_by_a_member(rows):
    matrix = np.array(rows, dtype=float)
    front = pareto_front(matrix)

    assert front.any()
    for i, own in enumerate(matrix):
        ahead = [j for j, one in enumerate(matrix) if (one >= own).all() and (one > own).any()]
        assert front[i] == (not ahead)
        assert front[i] or any(front[j] for j in ahead)


@settings(max_examples=40, deadline=None)
@given(matrices, st.integers(0, 10_000))
def test_increasing_maps_of_single_objectives_change_neither_front_nor_choice(rows, seed):
    matrix = np.array(rows, dtype=float)
    rng = np.random.default_rng(seed)
    mapped = np.stack(
        [rng.uniform(0.1, 9) * np.exp(column / 2) + rng.normal() for column in matrix.T], axis=1
    )

    assert (pareto_front(mapped) == pareto_front(matrix)).all()
    assert pareto(objectives=mapped) == pareto(objectives=matrix)


@settings(max_examples=40, deadline=None)
@given(matrices, st.integers(0, 10_000))
def test_the_choice_is_on_the_front_and_without_a_tie_does_not_depend_on_order(rows, seed):
    matrix = np.array(rows, dtype=float)
    order = np.random.default_rng(seed).permutation(len(matrix))
    kept, turned = pareto(objectives=matrix), pareto(objectives=matrix[order])

    assert pareto_front(matrix)[kept.chosen]
    assert kept.is_tie == turned.is_tie
    if not kept.is_tie:
        assert order[turned.chosen] == kept.chosen


@settings(max_examples=40, deadline=None)
@given(matrices, st.integers(0, 10_000))
def test_the_best_by_weights_above_zero_is_on_the_front(rows, seed):
    matrix = np.array(rows, dtype=float)
    names = [f"o{k}" for k in range(matrix.shape[1])]
    weights = dict(zip(names, np.random.default_rng(seed).uniform(0.1, 2, len(names)), strict=True))
    scores = weighted_scores(matrix, names, weights)
    # Sums of floats that should be equal may differ by rounding.
    best = scores >= scores.max() - 1e-9
    assert (pareto_front(matrix) & best).any()


def test_one_objective_is_best_of_n():
    assert pareto(objectives=[[1.0], [4.0], [2.0]]).chosen == 1


def test_rows_that_are_not_allowed_take_no_part_and_positions_stay_those_of_the_file():
    scores = [5.0, 1.0, 2.0, 9.0, 8.0]
    kept = apply(
        "best_of_n",
        ["p", "p", "p", "q", "q"],
        scores=scores,
        allowed=[False, True, True, False, False],
    )
    assert kept.rows == (2, None)
    assert [s.chosen for s in kept.selections] == [2, None]
    assert [s.n_candidates for s in kept.selections] == [3, 2]
    assert (kept.n_forbidden, kept.n_without_allowed, kept.n_abstained) == (3, 1, 1)
    assert kept.chosen_labels([1, 0, 1, 1, 1]).tolist() == [1.0, 0.0]


def test_allowing_everything_is_not_asking():
    columns = {"scores": [1.0, 2.0, 0.5], "keys": ["a", "a", "b"]}
    for rule in ("best_of_n", "majority", "weighted_vote"):
        assert apply(rule, ["p", "p", "q"], **columns, allowed=[True] * 3) == apply(
            rule, ["p", "p", "q"], **columns
        )
    with pytest.raises(DataError, match="expected True or False"):
        apply("best_of_n", ["p"], scores=[1.0], allowed=[1])
    with pytest.raises(DataError, match="got 2 allowed for 1 prompt_ids"):
        apply("best_of_n", ["p"], scores=[1.0], allowed=[True, True])


def test_the_rule_on_a_table_judges_every_prompt_by_its_own_candidates():
    kept = apply("pareto", ["p", "q", "p", "q"], objectives=[[1, 1], [0, 5], [2, 2], [5, 0]])
    assert kept.rows == (2, 1)
    assert kept.n_tied == 1
    with pytest.raises(RecipeError, match="got no objectives; rule 'pareto'"):
        apply("pareto", ["p"], scores=[1.0])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([[1.0, np.nan]], ScoreError, "got nan at position 0 of objective verbosity"),
        ([1.0, 2.0], DataError, r"shape \(2,\) for 2 objectives"),
        ([[1.0]], DataError, r"shape \(1, 1\) for 2 objectives"),
    ],
)
def test_objective_scores_that_are_no_table_of_numbers_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        weighted_scores(values, NAMES, {"helpfulness": 1})
