"""A rule over a whole table, and the length signal."""

import math

import numpy as np
import pytest

from retrm.errors import DataError, LabelError, RecipeError, ScoreError
from retrm.selection import apply, length_signal

# Rows of p and q are interleaved; r has no answer at all.
IDS = ["p", "q", "p", "q", "p", "r"]
KEYS = ["1", "7", "2", "8", "2", None]
SCORES = [3.0, 0.0, 1.0, 1.0, 2.0, 5.0]


def test_rows_are_those_of_the_table_and_prompts_keep_their_order():
    kept = apply("best_of_n", IDS, scores=SCORES, keys=KEYS)
    assert kept.prompt_ids == ("p", "q", "r")
    assert kept.rows == (0, 3, 5)
    assert [s.chosen for s in kept.selections] == [0, 1, 0]


def test_ties_abstentions_and_missing_keys_are_counted():
    # p: "2" wins; q: 7 and 8 tie; r abstains
    kept = apply("majority", IDS, keys=KEYS)
    assert kept.rows == (2, 1, None)
    assert (kept.n_tied, kept.n_abstained, kept.n_without_key, kept.n_fallbacks) == (1, 1, 1, 0)


def test_an_abstention_counts_as_wrong():
    kept = apply("majority", IDS, keys=KEYS)
    assert kept.chosen_labels([0, 1, 1, 0, 1, 1]).tolist() == [1.0, 1.0, 0.0]


def test_a_fallback_decides_only_where_the_vote_abstains_and_is_counted():
    kept = apply("majority", IDS, keys=KEYS, scores=SCORES, fallback_to_best_of_n=True)
    # p: "2" wins, row 4 is its best-scored; q: the tie of 7 and 8 is no abstention
    assert kept.rows == (4, 1, 5)
    assert (kept.n_abstained, kept.n_fallbacks) == (0, 1)
    assert [s.is_fallback for s in kept.selections] == [False, False, True]


def test_options_reach_the_rule_and_are_reported():
    ids = ["p"] * 5
    keys, scores = ["a", "b", "b", "c", "c"], [2.0, -1.0, 0.0, 0.5, 0.5]
    kept = apply("weighted_vote", ids, scores=scores, keys=keys, options={"weights": "softmax"})
    assert kept.selections[0].key == "a"
    assert kept.options == {"weights": "softmax"}


def test_unknown_rules_offer_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'best_of_n'"):
        apply("best_of_m", IDS, scores=SCORES)


def test_unknown_options_are_refused():
    with pytest.raises(RecipeError, match=r"option 'taus' for rule 'weighted_vote'.*'tau'"):
        apply("weighted_vote", IDS, scores=SCORES, keys=KEYS, options={"taus": 2.0})


def test_missing_columns_are_refused():
    with pytest.raises(RecipeError, match="got no keys; rule 'weighted_vote'"):
        apply("weighted_vote", IDS, scores=SCORES)


def test_columns_of_another_length_are_refused():
    with pytest.raises(DataError, match="got 2 scores for 6 prompt_ids"):
        apply("best_of_n", IDS, scores=[1.0, 2.0])


def test_a_nan_names_prompt_and_position():
    scores = [*SCORES[:3], math.nan, *SCORES[4:]]
    with pytest.raises(ScoreError, match=r"prompt 'q'.*nan at position 1 of scores"):
        apply("best_of_n", IDS, scores=scores)


def test_a_fallback_without_scores_is_refused():
    with pytest.raises(RecipeError, match="expected a vote and scores to fall back on"):
        apply("majority", IDS, keys=KEYS, fallback_to_best_of_n=True)


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="got no rows"):
        apply("best_of_n", [], scores=[])


def test_a_missing_label_of_a_kept_row_is_refused():
    kept = apply("best_of_n", IDS, scores=SCORES)
    with pytest.raises(DataError, match="every row that was kept"):
        kept.chosen_labels([math.nan] * 6)


def test_length_signal_of_a_worked_table():
    # p: right 100, wrong 200 and 400: ln 100 - (ln 200 + ln 400)/2 = -1.5 ln 2; AUROC 1
    # q: right 80 and 20, wrong 40: (ln 80 + ln 20)/2 - ln 40 = 0; AUROC 1/2.  r is not mixed
    signal = length_signal(
        [100, 200, 400, 80, 20, 40, 7], [1, 0, 0, 1, 1, 0, 1], ["p"] * 3 + ["q"] * 3 + ["r"]
    )
    assert signal.log_length_gap.value == pytest.approx(-0.75 * math.log(2), abs=1e-12)
    assert signal.auroc.value == pytest.approx(0.75, abs=1e-12)
    assert (signal.n_prompts, signal.n_mixed) == (3, 2)


@pytest.mark.parametrize(("factor", "sign"), [(0.6, -1), (1.0, 0), (1.7, 1)])
def test_length_signal_sees_a_planted_difference_and_no_other(factor, sign):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 800)
    lengths = np.exp(rng.normal(6, 0.35, 800)) * np.where(labels == 1, factor, 1.0)
    signal = length_signal(lengths, labels, np.repeat(np.arange(100), 8), n_resamples=400)
    gap = signal.log_length_gap
    assert (np.sign(gap.low) + np.sign(gap.high)) / 2 == sign
    assert np.sign(signal.auroc.value - 0.5) == -sign or sign == 0


def test_length_signal_refuses_empty_answers_and_unmixed_tables():
    with pytest.raises(DataError, match=r"got length 0\.0 at position 1"):
        length_signal([1, 0], [1, 0], ["p", "p"])
    with pytest.raises(LabelError, match="none with both"):
        length_signal([1, 2], [1, 0], ["p", "q"])
