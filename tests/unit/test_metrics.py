"""Metrics and intervals against worked examples and plain oracles."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from retrm.errors import DataError, LabelError, RecipeError, ScoreError
from retrm.metrics import (
    AverageStatistic,
    auroc,
    auroc_statistic,
    best_of_k_statistic,
    best_of_n,
    brier,
    clustered_bootstrap,
    expected_best_of_k,
    expected_calibration_error,
    log_loss,
    mean_statistic,
    n_mixed,
    pair_accuracy,
    paired_difference,
    point_estimate,
    subset_weights,
    within_prompt_auroc,
    within_prompt_auroc_statistic,
)

# The worked example of the audit: P1 and P2 are mixed, P3 is all wrong.
SCORES = [2, 1, 0.5, 0.2, -1, -2, -3, 5, 4, 3]
LABELS = [1, 1, 0, 0, 0, 1, 0, 0, 0, 0]
PROMPTS = ["P1"] * 4 + ["P2"] * 3 + ["P3"] * 3
ALL = np.ones((1, 3))


def table(n_prompts=30, n=6, seed=0):
    """Scores with ties, labels and prompt_ids of unequal difficulty."""
    rng = np.random.default_rng(seed)
    ids = np.repeat([f"p{i:03d}" for i in range(n_prompts)], n)
    labels = (rng.random(n_prompts * n) < np.repeat(rng.random(n_prompts), n)).astype(float)
    return np.round(rng.normal(size=len(labels)) + labels, 1), labels, ids


def test_pooled_auroc_of_the_worked_example():
    # 3 right x 7 wrong: 2 beats .5, .2, -1, -3 (4); 1 the same (4); -2 beats -3 (1): 9/21
    assert auroc(SCORES, LABELS) == pytest.approx(9 / 21, abs=1e-12)


def test_within_prompt_auroc_of_the_worked_example():
    # P1 wins 4 of 4, P2 1 of 2, P3 has no pairs: mean .75, pair-weighted 5/6
    result = within_prompt_auroc(SCORES, LABELS, PROMPTS)
    assert result.mean == pytest.approx(0.75, abs=1e-12)
    assert result.pair_weighted == pytest.approx(5 / 6, abs=1e-12)
    assert (result.n_prompts, result.n_mixed, result.n_pairs) == (3, 2, 6)


def test_best_of_n_of_the_worked_example():
    # P1 right, P2 wrong, P3 wrong; pass@1 = mean(.5, .3333, 0); oracle 2/3
    result = best_of_n(SCORES, LABELS, PROMPTS)
    assert result.value == pytest.approx(1 / 3, abs=1e-12)
    assert result.pass_at_1 == pytest.approx(0.277778, abs=1e-6)
    assert result.oracle == pytest.approx(2 / 3, abs=1e-12)
    assert result.recovered_share == pytest.approx((1 / 3 - 5 / 18) / (2 / 3 - 5 / 18), abs=1e-12)
    assert (result.n_prompts, result.n_tied) == (3, 0)


def test_tied_top_candidates_share_credit():
    # top score 2 twice, one of them right: credit 1/2
    result = best_of_n([2, 2, 1], [1, 0, 0], ["a", "a", "a"])
    assert (result.value, result.n_tied) == (0.5, 1)


def test_recovered_share_is_none_where_nothing_can_be_recovered():
    assert best_of_n([2, 1], [1, 1], ["a", "a"]).recovered_share is None


@pytest.mark.parametrize(
    ("labels", "curve"),
    [
        # scores .1, .4, .2, .9; ascending labels (0,0,1,1): k=2 is 1*2/6 + 1*3/6 = .8333
        ([0, 1, 0, 1], [0.5, 5 / 6, 1.0, 1.0]),
        ([1, 0, 1, 0], [0.5, 1 / 6, 0.0, 0.0]),
    ],
)
def test_expected_best_of_k_of_the_worked_example(labels, curve):
    assert expected_best_of_k([0.1, 0.4, 0.2, 0.9], labels) == pytest.approx(curve, abs=1e-12)


def test_expected_best_of_k_of_the_audit_example():
    # P1 with N = 4, n = 2: weights 3/6, 2/6, 1/6, 0 from the top: 3/6 + 2/6
    assert expected_best_of_k(SCORES[:4], LABELS[:4])[1] == pytest.approx(0.833333, abs=1e-6)


def test_subset_weights_of_the_audit_examples():
    assert subset_weights(4)[1][::-1] == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0])
    expected = [0.5, 0.2857, 0.1429, 0.0571, 0.0143, 0, 0, 0]
    assert subset_weights(8)[3][::-1] == pytest.approx(expected, abs=5e-5)


def test_subset_weights_for_64_candidates_match_exact_binomials():
    exact = [
        [math.comb(i - 1, k - 1) / math.comb(64, k) for i in range(1, 65)] for k in range(1, 65)
    ]
    assert np.abs(subset_weights(64) - np.array(exact)).max() < 1e-14


def test_expected_best_of_k_matches_all_subsets_with_ties():
    scores, labels = [1, 3, 3, 2, 1], [1, 0, 1, 1, 0]
    for k in range(1, 6):
        credits = []
        for subset in itertools.combinations(range(5), k):
            top = max(scores[i] for i in subset)
            tied = [labels[i] for i in subset if scores[i] == top]
            credits.append(sum(tied) / len(tied))
        assert expected_best_of_k(scores, labels)[k - 1] == pytest.approx(np.mean(credits))


def test_pair_accuracy_counts_ties_as_wrong_or_half():
    # 2 > -.5, .2 > -.3, -.3 = -.3, .1 < 1.1
    result = pair_accuracy([1.5, 0.2, -0.3, 0.1], [-0.5, -0.3, -0.3, 1.1])
    assert (result.strict, result.half, result.n_pairs, result.n_ties) == (0.5, 0.625, 4, 1)


def test_calibration_of_the_worked_pairs():
    # confidence sigmoid(|d|), correct = [d > 0]; 10 bins on [0, 1] are 5 on [.5, 1]
    gaps = np.array([3, 2, 1, -1.5, 4, 0.5])
    scores, correct = np.abs(gaps), (gaps > 0).astype(float)
    assert brier(scores, correct) == pytest.approx(0.150013, abs=1e-6)
    assert expected_calibration_error(scores, correct) == pytest.approx(0.235044, abs=1e-6)
    # mean of -log sigmoid(d): the held-out NLL at T = 1
    assert log_loss(scores, correct) == pytest.approx(0.447070, abs=1e-6)


def test_extreme_scores_keep_calibration_metrics_finite():
    scores, labels = [1e4, -1e4], [0, 1]
    assert log_loss(scores, labels) == pytest.approx(1e4)
    assert brier(scores, labels) == pytest.approx(1.0)
    assert expected_calibration_error(scores, labels) == pytest.approx(1.0)


def test_scikit_learn_agrees_on_pooled_metrics():
    scores, labels, _ = table(seed=3)
    probability = 1 / (1 + np.exp(-scores))
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert brier(scores, labels) == pytest.approx(brier_score_loss(labels, probability), abs=1e-12)
    assert log_loss(scores, labels) == pytest.approx(sklearn_log_loss(labels, probability))


def test_scikit_learn_agrees_within_prompts():
    scores, labels, ids = table(seed=4)
    values, pairs = [], []
    for prompt in np.unique(ids):
        y = labels[ids == prompt]
        if 0 < y.sum() < len(y):
            values.append(roc_auc_score(y, scores[ids == prompt]))
            pairs.append(y.sum() * (len(y) - y.sum()))
    result = within_prompt_auroc(scores, labels, ids)
    assert result.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert result.pair_weighted == pytest.approx(np.average(values, weights=pairs), abs=1e-12)


def test_every_statistic_on_all_prompts_is_its_point_value():
    scores, labels, ids = table(seed=5)
    once = np.ones((1, 30))
    within = within_prompt_auroc(scores, labels, ids)
    expected = [
        (auroc_statistic(scores, labels, ids), auroc(scores, labels)),
        (within_prompt_auroc_statistic(scores, labels, ids), within.mean),
        (
            within_prompt_auroc_statistic(scores, labels, ids, weighting="pair"),
            within.pair_weighted,
        ),
        (best_of_k_statistic(scores, labels, ids), best_of_n(scores, labels, ids).value),
        (best_of_k_statistic(scores, labels, ids, k=1), labels.mean()),
        (mean_statistic(labels, ids), labels.mean()),
    ]
    for statistic, value in expected:
        assert statistic(once)[0] == pytest.approx(value, abs=1e-12)


def test_mixed_prompts_hold_a_right_and_a_wrong_answer_and_nothing_else_counts():
    # a: both; b: right only; c: a grade between; d: wrong and unlabelled
    labels = [1, 0, 1, 1, 0.7, 0, math.nan]
    assert n_mixed(labels, list("aabbcdd")) == 1
    assert n_mixed([], []) == 0


def test_a_point_estimate_counts_every_prompt_once():
    assert point_estimate(mean_statistic([1, 0, 1, 1], ["a", "a", "b", "c"])) == 0.75


def test_a_prompt_drawn_twice_counts_as_two_prompts():
    # The weights must do what copying the rows would.
    scores, labels, ids = table(n_prompts=8, seed=6)
    rng = np.random.default_rng(0)
    prompts = np.unique(ids)
    for _ in range(5):
        drawn = rng.integers(0, 8, 8)
        rows = [np.flatnonzero(ids == prompts[d]) for d in drawn]
        copies = np.repeat([f"c{i}" for i in range(8)], [len(r) for r in rows])
        s, y = scores[np.concatenate(rows)], labels[np.concatenate(rows)]
        counts = np.bincount(drawn, minlength=8)[None].astype(float)
        for make in (auroc_statistic, within_prompt_auroc_statistic, best_of_k_statistic):
            copied = make(s, y, copies)
            direct = copied(np.ones((1, 8)))[0]
            assert make(scores, labels, ids)(counts)[0] == pytest.approx(direct, abs=1e-12)


def test_one_row_per_prompt_gives_the_plain_bootstrap():
    values = np.random.default_rng(1).normal(size=40)
    ids = [f"p{i:02d}" for i in range(40)]
    interval = clustered_bootstrap(mean_statistic(values, ids), n_resamples=500, seed=7)
    drawn = np.random.default_rng(7).integers(0, 40, size=(500, 40))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-12)
    assert interval.value == pytest.approx(values.mean(), abs=1e-12)
    assert (interval.n, interval.n_clusters) == (40, 40)


def test_copies_of_a_row_do_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(size=40)
    ids = np.array([f"p{i:02d}" for i in range(40)])
    one = clustered_bootstrap(mean_statistic(values, ids))
    nine = clustered_bootstrap(mean_statistic(np.repeat(values, 9), np.repeat(ids, 9)))
    assert (nine.low, nine.high) == pytest.approx((one.low, one.high), abs=1e-12)


def test_memory_chunks_do_not_change_the_resamples(monkeypatch):
    scores, labels, ids = table(seed=8)
    whole = clustered_bootstrap(auroc_statistic(scores, labels, ids), n_resamples=100)
    monkeypatch.setattr("retrm.metrics.intervals.CHUNK_CELLS", 77)
    assert clustered_bootstrap(auroc_statistic(scores, labels, ids), n_resamples=100) == whole


def test_a_constant_difference_has_no_width():
    _, labels, ids = table()
    interval = paired_difference(mean_statistic(labels + 0.25, ids), mean_statistic(labels, ids))
    assert interval.value == pytest.approx(0.25)
    assert interval.high - interval.low < 1e-12


def test_pairing_removes_what_both_arms_share():
    scores, labels, ids = table(n_prompts=100)
    better = scores + 0.3 * labels
    first, second = (within_prompt_auroc_statistic(s, labels, ids) for s in (better, scores))
    paired = paired_difference(first, second)
    alone = clustered_bootstrap(first)
    assert paired.low > 0
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_coverage_is_about_nominal():
    # 200 tables of 60 prompts x 4 correlated rows; the true mean is 0. Binomial sd .015 about .95,
    # and the percentile interval runs a little short: .89 is 4 sd below.
    rng = np.random.default_rng(2)
    ids = np.repeat([f"p{i:02d}" for i in range(60)], 4)
    hits = 0
    for _ in range(200):
        values = np.repeat(rng.normal(size=60), 4) + 0.3 * rng.normal(size=240)
        interval = clustered_bootstrap(mean_statistic(values, ids), n_resamples=300)
        hits += interval.low <= 0 <= interval.high
    assert 0.89 <= hits / 200 <= 0.995


def test_the_average_of_statistics_is_taken_inside_each_resample():
    scores, labels, ids = table()
    members = [within_prompt_auroc_statistic(s, labels, ids) for s in (scores, -scores)]
    # AUROC of scores and of minus scores add to 1 in every resample
    interval = clustered_bootstrap(AverageStatistic(tuple(members)))
    assert (interval.low, interval.value, interval.high) == pytest.approx((0.5, 0.5, 0.5))


def test_same_seed_same_interval_other_seed_other_interval():
    scores, labels, ids = table()
    statistic = auroc_statistic(scores, labels, ids)
    assert clustered_bootstrap(statistic, seed=1) == clustered_bootstrap(statistic, seed=1)
    assert clustered_bootstrap(statistic, seed=1) != clustered_bootstrap(statistic, seed=2)


def test_undefined_resamples_are_counted():
    # two prompts, one all right, one all wrong: half of the resamples see one class only
    statistic = auroc_statistic([1.0, 0.0], [1, 0], ["a", "b"])
    interval = clustered_bootstrap(statistic, n_resamples=1000)
    assert 400 < interval.n_undefined < 600
    assert (interval.low, interval.high) == (1.0, 1.0)


def test_row_and_prompt_weighting_differ_for_unequal_prompts():
    values, ids = [1, 1, 1, 0], ["a", "a", "a", "b"]
    assert mean_statistic(values, ids)(np.ones((1, 2)))[0] == 0.75
    assert mean_statistic(values, ids, weighting="prompt")(np.ones((1, 2)))[0] == 0.5


def test_differences_over_other_prompts_are_refused():
    first, second = mean_statistic([1.0], ["a"]), mean_statistic([1.0], ["b"])
    with pytest.raises(DataError, match="different prompts"):
        paired_difference(first, second)


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_smallest_prompt_is_refused_by_name(k):
    with pytest.raises(DataError, match=rf"k = {k}, but prompt 'P2' has 3"):
        best_of_k_statistic(SCORES, LABELS, PROMPTS, k=k)


def test_one_class_is_refused():
    with pytest.raises(LabelError, match="all 1"):
        auroc([1.0, 2.0], [1, 1])


def test_no_mixed_prompt_is_refused():
    with pytest.raises(LabelError, match=r"2 prompt\(s\), none with both"):
        within_prompt_auroc([1.0, 2.0], [1, 0], ["a", "b"])


@pytest.mark.parametrize("metric", [auroc, brier, log_loss, expected_best_of_k])
def test_nan_scores_and_labels_are_refused_with_their_position(metric):
    with pytest.raises(ScoreError, match="nan at position 1"):
        metric([1.0, math.nan], [1, 0])
    with pytest.raises(LabelError, match="nan at position 1"):
        metric([1.0, 2.0], [1, math.nan])


@pytest.mark.parametrize("metric", [auroc, brier, log_loss])
def test_grades_are_refused_where_right_or_wrong_is_meant(metric):
    with pytest.raises(LabelError, match=r"label 0\.5 at position 0"):
        metric([1.0, 2.0], [0.5, 0])


def test_labels_of_another_number_are_refused():
    with pytest.raises(ScoreError, match="got 3 labels for 2 rows"):
        auroc([1.0, 2.0], [1, 0, 1])


def test_unknown_weighting_offers_the_nearest():
    with pytest.raises(RecipeError, match="Did you mean 'pair'"):
        within_prompt_auroc_statistic(SCORES, LABELS, PROMPTS, weighting="pairs")


def test_metrics_do_not_load_torch():
    import subprocess
    import sys

    code = "import sys, retrm.metrics, retrm.selection, retrm.data.split; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
