"""Statistics of right x wrong pairs against worked examples and plain loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import DataError, LabelError, RecipeError, ScoreError
from retrm.metrics import (
    auroc,
    auroc_statistic,
    clustered_bootstrap,
    fold_auroc_statistic,
    length_matched_auroc_statistic,
    length_matched_pair_statistic,
    point_estimate,
    within_prompt_auroc_statistic,
)

# The worked example of the audit: P1 and P2 are mixed, P3 is all wrong.
SCORES = [2, 1, 0.5, 0.2, -1, -2, -3, 5, 4, 3]
LABELS = [1, 1, 0, 0, 0, 1, 0, 0, 0, 0]
PROMPTS = ["P1"] * 4 + ["P2"] * 3 + ["P3"] * 3
ALL = np.ones((1, 3))

rows = st.lists(
    st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, 3), st.integers(0, 30)),
    min_size=2,
    max_size=40,
)
quick = settings(max_examples=40, deadline=None)


def columns(table):
    scores, labels, prompts, lengths = (np.array(c, dtype=float) for c in zip(*table, strict=True))
    return scores, labels, [f"p{int(p)}" for p in prompts], lengths


def has_mixed_prompt(table):
    return any(a[2] == b[2] and a[1] != b[1] for a in table for b in table)


def plain_length_matched(scores, labels, ids, lengths, tolerance):
    """Credits of the pairs that are left, by prompt, by a double loop."""
    credits: dict[str, list[float]] = {}
    for i, j in itertools.product(range(len(scores)), repeat=2):
        if ids[i] != ids[j] or not labels[i] > labels[j]:
            continue
        if abs(lengths[i] - lengths[j]) <= tolerance * max(lengths[i], lengths[j]) + 1e-9:
            credit = 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
            credits.setdefault(ids[i], []).append(credit)
    return list(credits.values())


# -------------------------------------------------------------------------------- length-matched


def test_length_matched_auroc_of_the_worked_example():
    # P1 right 100, 60 / wrong 90, 50: only 100-90 are within a tenth of the longer (10 <= 10), and
    # 60-50 are not (10 > 6); won by 2 > .5: 1. P2 right 20 / wrong 22, 40: 20-22 (2 <= 2.2), -2 < -1
    # is lost: 0. P3 has no right answer. Mean over prompts (1 + 0)/2, and 1 of 2 pairs.
    lengths = [100, 60, 90, 50, 22, 20, 40, 10, 10, 10]
    by_prompt = length_matched_auroc_statistic(SCORES, LABELS, PROMPTS, lengths)

    assert by_prompt.n == 2
    assert by_prompt(ALL)[0] == pytest.approx(0.5, abs=1e-12)


def test_length_matched_prompts_and_pairs_are_weighted_as_named():
    # Equal lengths: P1 wins 4 of 4, P2 1 of 2: mean .75, by pairs 5/6
    by_prompt, by_pair = (
        length_matched_auroc_statistic(SCORES, LABELS, PROMPTS, [7] * 10, weighting=w)
        for w in ("prompt", "pair")
    )

    assert by_prompt(ALL)[0] == pytest.approx(0.75, abs=1e-12)
    assert by_pair(ALL)[0] == pytest.approx(5 / 6, abs=1e-12)


def test_a_tolerance_of_one_is_the_within_prompt_auroc():
    lengths = np.arange(10)
    matched = length_matched_auroc_statistic(SCORES, LABELS, PROMPTS, lengths, tolerance=1.0)
    plain = within_prompt_auroc_statistic(SCORES, LABELS, PROMPTS)

    assert clustered_bootstrap(matched) == clustered_bootstrap(plain)


@pytest.mark.parametrize(("longer", "n_pairs"), [(10, 1), (11, 0)])
def test_a_pair_exactly_at_the_tolerance_takes_part(longer, n_pairs):
    # .3 x 10 = 3 = the difference to 7, though .3 is no binary fraction; .3 x 11 = 3.3 < 4
    scores, labels, ids, lengths = (
        [1, 0, 1, 0],
        [1, 0, 1, 0],
        ["a", "a", "b", "b"],
        [7, longer, 5, 5],
    )
    matched = length_matched_auroc_statistic(scores, labels, ids, lengths, tolerance=0.3)

    assert matched.n == 1 + n_pairs


@quick
@given(rows.filter(has_mixed_prompt), st.sampled_from([0.0, 0.1, 0.3, 1.0]))
def test_length_matched_auroc_is_what_a_double_loop_gives(table, tolerance):
    scores, labels, ids, lengths = columns(table)
    plain = plain_length_matched(scores, labels, ids, lengths, tolerance)
    if not plain:
        with pytest.raises(LabelError, match="none with token counts within"):
            length_matched_auroc_statistic(scores, labels, ids, lengths, tolerance=tolerance)
        return
    found = length_matched_auroc_statistic(scores, labels, ids, lengths, tolerance=tolerance)
    once = np.ones((1, len(found.prompts)))

    assert found.n == sum(len(credits) for credits in plain)
    assert found(once)[0] == pytest.approx(np.mean([np.mean(c) for c in plain]), abs=1e-12)


def test_a_score_that_is_length_falls_to_chance_at_equal_lengths():
    # Right answers are shorter, and the score is minus length: perfect, and nothing at equal length.
    lengths = np.tile([10, 20, 10, 20, 20, 10], 20)
    labels = np.tile([1, 0, 1, 0, 1, 0], 20)
    ids = np.repeat(np.arange(20), 6)
    seen = within_prompt_auroc_statistic(-lengths, labels, ids)
    left = length_matched_auroc_statistic(-lengths, labels, ids, lengths)

    # 9 pairs a prompt: right 10, 10, 20 against wrong 20, 20, 10: 4 won, 4 level, 1 lost = 6/9
    assert clustered_bootstrap(seen).value == pytest.approx(2 / 3)
    assert clustered_bootstrap(left).value == pytest.approx(0.5)


def test_no_pair_of_like_length_is_refused_with_the_number_of_pairs():
    with pytest.raises(
        LabelError, match="got 1 right x wrong pairs, none with token counts within 10%"
    ):
        length_matched_auroc_statistic([1, 0], [1, 0], ["a", "a"], [10, 20])


def test_lengths_that_are_none_are_refused():
    with pytest.raises(DataError, match="length -1 at position 1"):
        length_matched_auroc_statistic([1, 0], [1, 0], ["a", "a"], [1, -1])
    with pytest.raises(ScoreError, match="nan at position 0 of lengths"):
        length_matched_auroc_statistic([1, 0], [1, 0], ["a", "a"], [np.nan, 1])
    with pytest.raises(ScoreError, match="got 3 lengths for 2 rows"):
        length_matched_auroc_statistic([1, 0], [1, 0], ["a", "a"], [1, 1, 1])


def test_an_impossible_tolerance_is_refused():
    with pytest.raises(RecipeError, match=r"tolerance = 10; expected 0 to 1"):
        length_matched_auroc_statistic([1, 0], [1, 0], ["a", "a"], [1, 1], tolerance=10)


# ------------------------------------------------------------------------------ pooled, per fold


@quick
@given(rows.filter(lambda t: {row[1] for row in t} == {0, 1}), st.integers(0, 9))
def test_prompts_by_prompts_and_rows_give_the_same_pooled_auroc_to_the_bit(table, seed):
    scores, labels, ids, _ = columns(table)
    statistic = auroc_statistic(scores, labels, ids)
    counts = np.random.default_rng(seed).poisson(1.0, (20, len(statistic.prompts))).astype(float)

    by_prompts, by_rows = statistic._by_prompts(counts), statistic._by_rows(counts)
    assert np.array_equal(by_prompts, by_rows, equal_nan=True)


def test_large_tables_take_the_way_by_rows_and_give_the_same(monkeypatch):
    statistic = auroc_statistic(SCORES, LABELS, PROMPTS)
    small = clustered_bootstrap(statistic, n_resamples=200)
    monkeypatch.setattr("retrm.metrics.pairs._CELLS", 29)  # 10 rows x 3 prompts are more
    monkeypatch.setattr(type(statistic), "_by_prompts", None)

    assert clustered_bootstrap(statistic, n_resamples=200) == small


def test_the_fold_average_is_the_mean_of_the_folds_own_aurocs():
    # Fold 0 = P1: 4 of 4 pairs. Fold 1 = P2 and P3: right -2 beats -3 of the five wrong: 1/5.
    folds = [0] * 4 + [1] * 6
    statistic = fold_auroc_statistic(SCORES, LABELS, PROMPTS, folds)

    assert statistic(ALL)[0] == pytest.approx((1 + 1 / 5) / 2, abs=1e-12)
    assert (statistic.n, statistic.n_skipped_folds) == (10, 0)


def test_a_fold_drawn_by_resampling_is_the_auroc_of_its_copied_rows():
    folds = [0] * 4 + [1] * 6
    statistic = fold_auroc_statistic(SCORES, LABELS, PROMPTS, folds)
    # P1 once, P2 twice, P3 none: fold 1 is P2 copied
    copies = auroc(SCORES[4:7] * 2, LABELS[4:7] * 2)

    assert statistic(np.array([[1.0, 2, 0]]))[0] == pytest.approx((1 + copies) / 2, abs=1e-12)


def test_a_constant_added_to_one_fold_changes_nothing_per_fold_but_the_pooled_value():
    folds, shifted = np.array([0] * 4 + [1] * 6), np.array(SCORES) + np.array([100.0] * 4 + [0] * 6)
    before, after = (fold_auroc_statistic(s, LABELS, PROMPTS, folds) for s in (SCORES, shifted))

    assert clustered_bootstrap(before) == clustered_bootstrap(after)
    assert auroc(shifted, LABELS) != auroc(SCORES, LABELS)


def test_a_fold_of_one_class_is_left_out_and_counted():
    statistic = fold_auroc_statistic(SCORES, LABELS, PROMPTS, [0] * 4 + [1] * 3 + [2] * 3)

    # P1 1, P2 1/2; P3 is all wrong
    assert statistic(ALL)[0] == pytest.approx(0.75, abs=1e-12)
    assert (statistic.n, statistic.n_skipped_folds) == (7, 1)


def test_folds_that_compare_nothing_are_refused():
    with pytest.raises(LabelError, match=r"got 2 fold\(s\), none with both right and wrong"):
        fold_auroc_statistic([1, 0], [1, 0], ["a", "b"], [0, 1])
    with pytest.raises(DataError, match="got 1 folds for 2 rows"):
        fold_auroc_statistic([1, 0], [1, 0], ["a", "b"], [0])


# ---------------------------------------------------------------------------- preference pairs


def test_pairs_of_like_length_by_hand_over_every_prompt():
    # lengths 100 and 90 are within a tenth, 100 and 89 are not; 0 and 0 are equal; a tie is one half
    found = length_matched_pair_statistic(
        [1.0, 1, 1, 2], [0.0, 0, 2, 2], list("abcc"), [100, 100, 50, 0], [90, 89, 50, 0]
    )
    assert (found.n, found.prompts.tolist()) == (3, ["a", "b", "c"])
    # right; left out; wrong and level: (1 + 0 + .5) / 3
    assert point_estimate(found) == pytest.approx(0.5)
    assert found(np.array([[0.0, 3, 0], [0, 1, 2]])) == pytest.approx([math.nan, 0.25], nan_ok=True)


def test_no_preference_pair_of_like_length_is_refused():
    with pytest.raises(
        LabelError, match="got 1 preference pairs, none with token counts within 10%"
    ):
        length_matched_pair_statistic([1.0], [0.0], ["a"], [10], [20])


def test_impossible_lengths_scores_and_tolerances_of_pairs_are_refused():
    with pytest.raises(DataError, match="got length -1 at position 0"):
        length_matched_pair_statistic([1.0], [0.0], ["a"], [10], [-1])
    with pytest.raises(ScoreError, match="got 2 rejected scores for 1 rows"):
        length_matched_pair_statistic([1.0], [0.0, 1], ["a"], [10], [10])
    with pytest.raises(RecipeError, match=r"got tolerance = 2"):
        length_matched_pair_statistic([1.0], [0.0], ["a"], [10], [10], tolerance=2)
