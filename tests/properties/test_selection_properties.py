"""Invariants of selection rules over random prompts."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retrm.selection import (
    RULES,
    best_of_n,
    majority,
    minmax_combination,
    rank_combination,
    shortest_majority,
    weighted_vote,
)

quick = settings(max_examples=50, deadline=None)
# Whole numbers, so that shifts and sums are exact and ties are real ties.
prompts = st.lists(
    st.tuples(
        st.integers(-8, 8),
        st.sampled_from(["a", "b", "c", None]),
        st.integers(1, 500),
        st.integers(-8, 8),
    ),
    min_size=1,
    max_size=12,
)


def columns(prompt, name="best_of_n"):
    scores, keys, lengths, other = (list(column) for column in zip(*prompt, strict=True))
    given = {"scores": scores, "keys": keys, "lengths": lengths, "other": other}
    if "objectives" in RULES[name].needs:
        given["objectives"] = list(zip(scores, other, strict=True))
    return given


@pytest.mark.parametrize("name", [n for n in RULES if n != "rank_combination"])
@quick
@given(prompts, st.randoms(use_true_random=False))
def test_permuting_candidates_permutes_the_choice_up_to_ties(name, prompt, random):
    order = list(range(len(prompt)))
    random.shuffle(order)
    before = RULES[name].function(**columns(prompt, name))
    after = RULES[name].function(**columns([prompt[i] for i in order], name))
    assert after.is_tie == before.is_tie
    assert after.n_without_key == before.n_without_key
    assume(not before.is_tie and before.chosen is not None)
    # Inside the winning answer the best score may be shared; the answer is what must not move.
    if RULES[name].is_vote:
        assert after.key == before.key
        assert prompt[order[after.chosen]][0] == prompt[before.chosen][0]
    else:
        assert order[after.chosen] == before.chosen


@quick
@given(prompts, st.randoms(use_true_random=False))
def test_permuting_candidates_permutes_ranks_where_no_scorer_ties(prompt, random):
    table = columns(prompt)
    assume(all(len(set(table[c])) == len(prompt) for c in ("scores", "other")))
    order = list(range(len(prompt)))
    random.shuffle(order)
    shuffled = columns([prompt[i] for i in order])
    # the default mode breaks every tie by own rank, so the choice is unique
    before, after = rank_combination(**table), rank_combination(**shuffled)
    assert order[after.chosen] == before.chosen


@pytest.mark.parametrize("rule", [best_of_n, rank_combination])
@quick
@given(prompts)
def test_increasing_maps_change_neither_best_of_n_nor_ranks(rule, prompt):
    table = columns(prompt)
    mapped = {**table, "scores": np.exp(np.array(table["scores"]) / 3.0).tolist()}
    assert rule(**mapped) == rule(**table)


@pytest.mark.parametrize("rule", [best_of_n, rank_combination, minmax_combination])
@quick
@given(prompts, st.integers(-100, 100))
def test_a_shift_of_all_scores_changes_no_offset_free_rule(rule, prompt, shift):
    table = columns(prompt)
    shifted = {**table, "scores": [score + shift for score in table["scores"]]}
    assert rule(**shifted) == rule(**table)


@quick
@given(prompts, st.integers(-100, 100))
def test_a_shift_of_all_scores_does_not_change_softmax_votes(prompt, shift):
    table = columns(prompt)
    shifted = {**table, "scores": [score + shift for score in table["scores"]]}
    before = weighted_vote(**table, weights="softmax")
    assert weighted_vote(**shifted, weights="softmax") == before


@pytest.mark.parametrize("weights", ["sigmoid", "softmax"])
@quick
@given(prompts, st.integers(-8, 8))
def test_equal_weights_make_a_weighted_vote_a_majority(weights, prompt, score):
    table = {**columns(prompt), "scores": [score] * len(prompt)}
    assert weighted_vote(**table, weights=weights) == majority(**table)


@quick
@given(prompts, st.integers(1, 1000))
def test_equal_lengths_make_shortest_majority_a_majority(prompt, length):
    table = {**columns(prompt), "lengths": [length] * len(prompt)}
    assert shortest_majority(**table) == majority(**table)


@pytest.mark.parametrize("rule", [rank_combination, minmax_combination])
@quick
@given(prompts)
def test_a_scorer_combined_with_itself_is_best_of_n(rule, prompt):
    table = columns(prompt)
    assert rule(table["scores"], table["keys"], other=table["scores"]) == best_of_n(
        table["scores"], table["keys"]
    )


@pytest.mark.parametrize("name", list(RULES))
@quick
@given(prompts.map(lambda prompt: prompt[:1]))
def test_one_candidate_is_kept_or_abstains_without_an_answer(name, prompt):
    kept = RULES[name].function(**columns(prompt, name))
    abstains = RULES[name].is_vote and prompt[0][1] is None
    assert kept.chosen == (None if abstains else 0)
    assert not kept.is_tie
