"""Every selection rule against its worked example."""

import math

import pytest

from retrm.errors import DataError, RecipeError, ScoreError
from retrm.selection import (
    best_of_n,
    majority,
    minmax_combination,
    rank_combination,
    shortest_majority,
    shortest_majority_reward,
    top_m_majority,
    weighted_vote,
)

KEYS = ["a", "b", "b", "c", "c"]
SCORES = [2.0, -1.0, 0.0, 0.5, 0.5]


def test_best_of_n_keeps_the_top_score():
    kept = best_of_n(SCORES, KEYS)
    assert (kept.chosen, kept.key, kept.is_tie, kept.n_candidates) == (0, "a", False, 5)


def test_best_of_n_gives_ties_to_the_first_seen_and_says_so():
    kept = best_of_n([1.0, 3.0, 3.0])
    assert (kept.chosen, kept.key, kept.is_tie) == (1, None, True)


def test_majority_gives_ties_to_the_answer_seen_first():
    # b and c have two votes each; b comes first
    kept = majority(None, KEYS)
    assert (kept.key, kept.chosen, kept.is_tie) == ("b", 1, True)


def test_the_representative_is_the_best_scored_of_the_winning_answer():
    # b wins with rows 1 (score -1) and 2 (score 0)
    assert majority(SCORES, KEYS).chosen == 2


def test_sigmoid_vote_of_the_worked_example():
    # a .880797, b .268941 + .5 = .768941, c 2 x .622459 = 1.244919
    kept = weighted_vote(SCORES, KEYS)
    assert (kept.key, kept.chosen, kept.is_tie) == ("c", 3, False)


def test_softmax_vote_of_the_worked_example():
    # a .612977, b .113476, c .273547
    assert weighted_vote(SCORES, KEYS, weights="softmax").key == "a"


def test_a_high_temperature_turns_the_softmax_vote_into_majority():
    # at tau = 1e6 all weights are .2 to 6 digits: b .399999..., c .400000...: c has the larger sum
    kept = weighted_vote(SCORES, KEYS, weights="softmax", tau=1e6)
    assert kept.key == "c"


def test_a_low_temperature_turns_the_softmax_vote_into_best_of_n():
    assert weighted_vote([0.0, 0.1, 0.1, 0.3, 0.0], KEYS, weights="softmax", tau=1e-3).key == "c"


def test_extreme_scores_do_not_overflow_votes():
    for weights in ("sigmoid", "softmax"):
        assert weighted_vote([1e4, -1e4, -1e4], ["a", "b", "b"], weights=weights).key == "a"


def test_top_m_majority_lets_only_the_best_vote():
    # best two are rows 0 (a) and 3 (c): a tie of one vote each, a seen first
    assert top_m_majority(SCORES, KEYS, m=2).key == "a"
    # best four are rows 0, 3, 4, 2: a 1, c 2, b 1
    kept = top_m_majority(SCORES, KEYS, m=4)
    assert (kept.key, kept.chosen, kept.is_tie) == ("c", 3, False)


def test_top_m_majority_reports_a_tie_at_the_cut():
    # scores 3, 1, 1: the second place is shared by x and y, so their order decides x against y
    kept = top_m_majority([3.0, 1.0, 1.0], ["x", "x", "y"], m=2)
    assert (kept.key, kept.is_tie) == ("x", True)


def test_top_m_of_all_candidates_is_majority():
    assert top_m_majority(SCORES, KEYS, m=16) == majority(SCORES, KEYS)


def five_against_four(long, short):
    return ["L"] * 5 + ["S"] * 4, [long] * 5 + [short] * 4


def test_shortest_majority_lets_four_short_answers_beat_five_ten_times_longer():
    # 5/ln 10000 = .542868 < 4/ln 1000 = .579059
    keys, lengths = five_against_four(10_000, 1000)
    assert shortest_majority(None, keys, lengths).key == "S"


def test_shortest_majority_keeps_five_answers_twice_as_long():
    # 5/ln 2000 = .657816 > .579059
    keys, lengths = five_against_four(2000, 1000)
    assert shortest_majority(None, keys, lengths).key == "L"


def test_shortest_majority_turns_at_the_published_ratio():
    # 5/ln L = 4/ln 1000 at L = 1000^(5/4) = 5623.4
    assert shortest_majority(None, *five_against_four(5623, 1000)).key == "L"
    assert shortest_majority(None, *five_against_four(5624, 1000)).key == "S"


def test_shortest_majority_uses_the_mean_length_of_a_group():
    # L: (9000 + 4 x 250)/5 = 2000, which wins as above
    keys = ["L"] * 5 + ["S"] * 4
    assert shortest_majority(None, keys, [9000, 250, 250, 250, 250, *[1000] * 4]).key == "L"


@pytest.mark.parametrize("length", [0, 1, 2])
def test_shortest_majority_never_divides_by_the_log_of_one(length):
    # all of these count as 2 tokens: 1/ln 2 = 1.4427 against 2/ln 10 = .8686
    kept = shortest_majority(None, ["a", "b", "b"], [length, 10, 10])
    assert kept.key == "a"


def test_shortest_majority_with_rewards_weighs_votes_by_sigmoid():
    # lengths equal: a .880797 against b .768941 against c 1.244919, as the sigmoid vote
    assert shortest_majority_reward(SCORES, KEYS, [50] * 5).key == "c"
    # c at 400 tokens: 1.244919/ln 400 = .207786; a at 20: .880797/ln 20 = .294019
    assert shortest_majority_reward(SCORES, KEYS, [20, 50, 50, 400, 400]).key == "a"


OWN, OTHER = [2.0, 1.5, 1.0, -3.0], [0.1, 0.8, 0.9, 0.2]


def test_rank_combination_of_the_worked_example():
    # ranks own (0,1,2,3), other (3,1,0,2), worse (3,1,2,3)
    assert rank_combination(OWN, other=OTHER).chosen == 1
    assert not rank_combination(OWN, other=OTHER).is_tie


def test_minmax_combination_of_the_worked_example():
    # own (1, .9, .8, 0), other (0, .875, 1, .125), mean (.5, .8875, .9, .0625)
    assert minmax_combination(OWN, other=OTHER).chosen == 2


def test_both_combinations_of_the_gated_example():
    own, other = [2, 1, 0.5, -1], [0.1, 0.9, 0.5, 0.3]
    # worse ranks (3,1,2,3); scaled means (.5, .8333, .5, .125)
    assert rank_combination(own, other=other).chosen == 1
    assert minmax_combination(own, other=other).chosen == 1


def test_rank_ties_fall_to_file_order_in_the_faithful_mode():
    # ranks own (1,0), other (0,1), worse (1,1)
    kept = rank_combination([1.0, 2.0], other=[2.0, 1.0], ties="first")
    assert (kept.chosen, kept.is_tie) == (0, True)


def test_rank_ties_are_broken_by_the_own_scorer_by_default():
    kept = rank_combination([1.0, 2.0], other=[2.0, 1.0])
    assert (kept.chosen, kept.is_tie) == (1, True)


def test_rank_ties_are_broken_by_the_sum_of_ranks_before_the_own_rank():
    # own ranks (2,1,0,3), other (0,2,3,1): worse (2,2,3,3), sums (2,3,...)
    own, other = [2.0, 3.0, 4.0, 1.0], [4.0, 2.0, 1.0, 3.0]
    kept = rank_combination(own, other=other)
    assert (kept.chosen, kept.is_tie) == (0, True)


def test_identical_candidates_are_a_tie_for_ranks():
    kept = rank_combination([5.0, 5.0, 1.0], other=[5.0, 5.0, 1.0])
    assert (kept.chosen, kept.is_tie) == (0, True)


def test_a_constant_scorer_is_neutral_for_minmax_but_not_for_ranks():
    scores, constant = [0.0, 1.0, 2.0], [7.0, 7.0, 7.0]
    assert minmax_combination(scores, other=constant).chosen == 2
    # ranks (2,1,0) and, by file order, (0,1,2): worse (2,1,2)
    assert rank_combination(scores, other=constant).chosen == 1


def test_minmax_refuses_a_range_that_overflows():
    with pytest.raises(ScoreError, match="range that a float can hold"):
        minmax_combination([-1.7e308, 1.7e308], other=[0.0, 1.0])


def test_candidates_without_a_key_are_counted_and_do_not_vote():
    kept = majority([9.0, 9.0, 0.0], [None, None, "a"])
    assert (kept.chosen, kept.key, kept.n_without_key, kept.n_candidates) == (2, "a", 2, 3)


def test_an_empty_text_is_a_key():
    assert majority(None, ["", "", None]).key == ""


@pytest.mark.parametrize("vote", [majority, weighted_vote, top_m_majority])
def test_votes_abstain_where_nobody_has_an_answer(vote):
    kept = vote([1.0, 2.0], [None, None])
    assert (kept.chosen, kept.key, kept.n_without_key) == (None, None, 2)


def test_unknown_weights_offer_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'softmax'"):
        weighted_vote(SCORES, KEYS, weights="soft_max")


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, math.inf])
def test_impossible_temperatures_are_refused(tau):
    with pytest.raises(RecipeError, match="expected a finite number above 0"):
        weighted_vote(SCORES, KEYS, weights="softmax", tau=tau)


def test_a_temperature_that_would_be_ignored_is_refused():
    with pytest.raises(RecipeError, match="only with weights='softmax'"):
        weighted_vote(SCORES, KEYS, tau=0.5)


def test_unknown_ties_offer_the_choices():
    with pytest.raises(RecipeError, match="Did you mean 'first'"):
        rank_combination(OWN, other=OTHER, ties="frist")


def test_m_below_one_is_refused():
    with pytest.raises(RecipeError, match="m = 0"):
        top_m_majority(SCORES, KEYS, m=0)


def test_keys_that_are_not_text_are_refused_with_their_position():
    with pytest.raises(DataError, match="got key 42 at position 1"):
        majority(None, ["a", 42])


@pytest.mark.parametrize("length", [-1, math.nan, math.inf])
def test_impossible_lengths_are_refused_with_their_position(length):
    with pytest.raises(DataError, match="at position 1; expected the number of response tokens"):
        shortest_majority(None, ["a", "a"], [5, length])


def test_a_missing_second_scorer_is_refused():
    with pytest.raises(RecipeError, match="got no other; this rule expected scores, other"):
        rank_combination(OWN)
