"""PPE: human preference with rankings of models, and correctness with conflict pairs and best-of-k."""

import itertools

import numpy as np
import pytest
from benchmark_rows import (
    drawn,
    headline,
    ppe_candidates,
    ppe_vote,
    read,
    rows_of,
    scored,
    values,
    without,
)
from scipy.stats import kendalltau, norm, spearmanr
from sklearn.linear_model import LogisticRegression

from retrm.errors import DataError
from retrm.evaluation.benchmarks import benchmark
from retrm.evaluation.benchmarks.model_ranking import (
    ModelVotes,
    brier_score,
    confidence_agreement,
    kendall,
    ratings,
    row_wise_pearson,
    separability,
    spearman,
)
from retrm.metrics import auroc, clustered_bootstrap

PREFERENCE = benchmark("ppe_preference")
CORRECTNESS = benchmark("ppe_correctness")
VOTE = ppe_vote(0, ("x", "y"), "model_a")
SET = ppe_candidates(0, [True, False, True])


def random_wins(seed, n_models=5, n_votes=60):
    """(1, M, M) wins with ties, every pair met."""
    rng = np.random.default_rng(seed)
    wins = np.zeros((n_models, n_models))
    for i, j in itertools.combinations(range(n_models), 2):
        n = rng.integers(5, n_votes)
        won = rng.binomial(n, 1 / (1 + np.exp((i - j) * 0.4)))
        wins[i, j], wins[j, i] = won + 0.5, n - won + 0.5
    return wins[None]


# -------------------------------------------------------------------------------- human preference


def test_accuracy_leaves_out_tied_votes_and_gives_nothing_for_equal_scores():
    votes = ["model_a", "model_b", "model_a", "model_b", "tie", "tie (bothbad)"]
    rows = [ppe_vote(i, ("x", "y"), winner) for i, winner in enumerate(votes)]
    data = read("ppe_preference", {"test": rows})
    # right, right, tied, wrong; two votes of tie
    scores = [[1, 0], [0, 1], [2, 2], [1, 0], [5, 0], [0, 0]]
    figures = PREFERENCE.figures(scored(data.items, lambda i: scores[int(i.id[1:])]))
    found = headline(figures)
    assert values([found]) == {("accuracy", ""): 0.5}
    assert (found.n, found.n_ties) == (4, 1)
    assert found.note == "without 2 votes of tie"


def test_kinds_of_prompts_overlap_and_languages_split():
    figures = PREFERENCE.figures(drawn(read("ppe_preference").items, 0))
    n = {f.subset: f.n for f in figures if f.metric == "accuracy"}
    # Of the 6 votes that are no tie, 0 and 3 are hard, 0 alone is code; 3 is in Chinese.
    assert n == {
        "": 6,
        "hard": 2,
        "easy": 6,
        "instruction following": 1,
        "math": 1,
        "code": 1,
        "English": 5,
        "not English": 1,
    }


def test_a_scorer_that_votes_as_people_do_ranks_the_models_alike():
    data = read("ppe_preference")
    sides = {"a": [1.0, 0.0], "b": [0.0, 1.0], "tie": [0.0, 0.0]}
    found = values(PREFERENCE.figures(scored(data.items, lambda item: sides[item.facts["winner"]])))
    for metric in ("Spearman of model ratings", "Kendall of model ratings"):
        assert found[metric, ""] == pytest.approx(1.0, abs=1e-12)
    # Both matrices are equal, so every row that varies correlates with itself.
    assert found["row-wise Pearson of win rates", ""] == pytest.approx(1.0, abs=1e-12)


def test_rankings_that_no_official_script_settles_are_marked_as_ours():
    figures = PREFERENCE.figures(drawn(read("ppe_preference").items, 0))
    ours = {f.metric for f in figures if not f.is_official}
    assert ours == {
        "separability of models",
        "confidence agreement",
        "Brier score of model order, lower is better",
    }
    assert all("our reading" in f.note for f in figures if not f.is_official)


@pytest.mark.parametrize("seed", [0, 1])
def test_ratings_are_those_of_a_plain_logistic_regression(seed):
    wins = random_wins(seed)
    n_models = wins.shape[1]
    rows, sides, weights = [], [], []
    for i, j in itertools.permutations(range(n_models), 2):
        row = np.zeros(n_models)
        row[i], row[j] = 1, -1
        rows += [row, -row]
        sides += [1, 0]
        weights += [wins[0, i, j] / 2] * 2
    # the same faint prior: penalty |w|^2 / (2 C)
    fit = LogisticRegression(C=1e4, fit_intercept=False, tol=1e-12, max_iter=10_000)
    fit.fit(rows, sides, sample_weight=weights)
    expected = fit.coef_[0] - fit.coef_[0].mean()
    assert ratings(wins)[0][0] == pytest.approx(expected, abs=1e-4)


def test_two_models_have_the_logit_of_the_win_rate_and_its_variance():
    # 30 of 40: log 3 between them; information n p (1 - p) = 7.5, so variance 1 / 7.5
    values_found, covariance = ratings(np.array([[[0.0, 30.0], [10.0, 0.0]]]))
    assert values_found[0, 0] - values_found[0, 1] == pytest.approx(np.log(3), abs=1e-4)
    spread = covariance[0, 0, 0] + covariance[0, 1, 1] - 2 * covariance[0, 0, 1]
    assert spread == pytest.approx(1 / 7.5, abs=1e-4)


def test_a_model_that_wins_everything_is_first_and_has_a_rating():
    wins = np.array([[[0, 9, 9], [0, 0, 6], [0, 3, 0]]], dtype=float)
    found = ratings(wins)[0][0]
    assert np.isfinite(found).all()
    assert np.argsort(-found).tolist() == [0, 1, 2]


@pytest.mark.parametrize("seed", range(4))
def test_rank_correlations_are_those_of_scipy(seed):
    human, judged = random_wins(seed), random_wins(seed + 100)
    first, second = ratings(human)[0][0], ratings(judged)[0][0]
    assert spearman(human, judged)[0] == pytest.approx(spearmanr(first, second).statistic, abs=1e-9)
    assert kendall(human, judged)[0] == pytest.approx(kendalltau(first, second).statistic, abs=1e-9)


def test_row_wise_pearson_is_the_mean_over_rows_of_plain_correlations():
    human, judged = random_wins(3), random_wins(9)
    rates = [w[0] / np.where(w[0] + w[0].T > 0, w[0] + w[0].T, 1) for w in (human, judged)]
    rows = []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        rows.append(np.corrcoef(rates[0][i, others], rates[1][i, others])[0, 1])
    assert row_wise_pearson(human, judged)[0] == pytest.approx(np.mean(rows), abs=1e-9)


def test_confidence_of_three_models_by_hand():
    # x far above y and z by both; y and z level by both: pairs xy, xz separated, yz not
    wins = np.array([[[0, 90, 90], [10, 0, 50], [10, 50, 0]]], dtype=float)
    turned = wins.transpose(0, 2, 1)
    assert separability(wins, wins)[0] == pytest.approx(2 / 3)
    assert confidence_agreement(wins, wins)[0] == pytest.approx(2 / 3)
    assert confidence_agreement(wins, turned)[0] == pytest.approx(-2 / 3)
    # The order of y and z is open for people (1/2) and for the scorer (1/2); the others are sure.
    assert brier_score(wins, wins)[0] == pytest.approx(0, abs=1e-6)
    assert brier_score(wins, turned)[0] == pytest.approx(2 / 3, abs=1e-6)


def test_brier_score_of_two_models_by_hand():
    wins = np.array([[[0.0, 12.0], [8.0, 0.0]]])
    # gap log(12/8), variance 1 / (20 * .6 * .4): forecast normal(gap / sd), people put x above
    forecast = norm.cdf(np.log(1.5) * np.sqrt(20 * 0.6 * 0.4))
    assert brier_score(wins, wins)[0] == pytest.approx((forecast - 1) ** 2, abs=1e-4)


def test_a_scorer_without_opinion_has_no_ranking():
    found = values(PREFERENCE.figures(scored(read("ppe_preference").items, 1.0)))
    assert np.isnan(found["Spearman of model ratings", ""])
    assert np.isnan(found["row-wise Pearson of win rates", ""])
    assert found["accuracy", ""] == 0.0


def test_counts_of_prompts_are_rows_repeated():
    pairs = [("x", "y"), ("y", "x"), ("x", "z"), ("z", "y"), ("y", "z"), ("z", "x")] * 3
    rng = np.random.default_rng(0)
    human, judged = rng.choice([0, 0.5, 1], (2, 18))
    ids = [f"p{i % 9}" for i in range(18)]
    counts = rng.integers(1, 3, 9)
    whole = ModelVotes.of(pairs, human, judged, ids, row_wise_pearson)
    rows = [i for i in range(18) for _ in range(counts[i % 9])]
    repeated = ModelVotes.of(
        [pairs[i] for i in rows],
        human[rows],
        judged[rows],
        [ids[i] for i in rows],
        row_wise_pearson,
    )
    assert whole(counts[None])[0] == pytest.approx(repeated(np.ones((1, 9)))[0], abs=1e-12)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(VOTE, "winner"), r"test\[0\]: there is no field 'winner'"),
        ({**VOTE, "winner": "model_c"}, "`winner` is 'model_c'; .* Did you mean 'model_b'"),
        ({**VOTE, "model_b": "x"}, "`model_a` and `model_b` are both 'x'"),
        ({**VOTE, "response_1": None}, "`response_1` is null"),
        ({**VOTE, "prompt": ""}, "`prompt` is empty"),
        ({**VOTE, "is_code": "yes"}, "`is_code` is 'yes'; expected one of True, False"),
        (without(VOTE, "language"), "no field 'language'"),
        ({**VOTE, "question_id": None}, "`question_id` is null"),
    ],
)
def test_a_vote_of_another_kind_is_refused(row, message):
    with pytest.raises(DataError, match=message):
        read("ppe_preference", {"test": [row]})


def test_a_blank_answer_leaves_its_vote_out_and_is_counted():
    rows = [VOTE, ppe_vote(1, ("x", "y"), "tie", response_2=" ")]
    data = read("ppe_preference", {"test": rows})
    assert dict(data.excluded) == {"an answer is blank": 1}
    assert data.notes == ("2 votes instead of 16038",)


def test_tied_votes_alone_and_a_question_twice_are_refused():
    ties = read("ppe_preference", {"test": [ppe_vote(1, ("x", "y"), "tie")]})
    with pytest.raises(DataError, match="all 1 votes are ties"):
        PREFERENCE.figures(drawn(ties.items, 0))
    with pytest.raises(DataError, match="the id 'q0' stands at"):
        read("ppe_preference", {"test": [VOTE, dict(VOTE)]})


# ------------------------------------------------------------------------------------- correctness


def test_pairs_are_right_only_if_the_right_answer_scores_higher():
    labels = [False, True, True, False]
    row = ppe_candidates(0, labels)
    # As published, either side may be the right one: (0, 1) and (2, 3).
    row |= {"sampled_conflict_pairs": [[0, 1], [2, 3]]}
    data = read("ppe_correctness", {"gpqa": [row]})
    assert data.items[0].facts["sampled_pairs"] == [[1, 0], [2, 3]]
    # sampled: 1 < 2 is lost, 3 = 3 a tie; all: (1,0) lost, (2,0) won, (1,3) lost, (2,3) tied
    figures = CORRECTNESS.figures(scored(data.items, lambda _: [2, 1, 3, 3]))
    found = values(figures)
    assert found["pair accuracy", "GPQA"] == 0.0
    assert found["pair accuracy, all conflict pairs", "GPQA"] == 0.25
    by_name = {(f.metric, f.subset): f for f in figures}
    assert by_name["pair accuracy", "GPQA"].n_ties == 1
    assert by_name["pair accuracy", "GPQA"].n == 2
    assert by_name["pair accuracy, all conflict pairs", "GPQA"].n == 4


def test_the_headline_is_the_mean_of_sets_and_says_which_are_missing():
    sets = {"math": [ppe_candidates(0, [True, False])], "PPE-IFEval-Best-of-K": []}
    sets["PPE-IFEval-Best-of-K"] = [ppe_candidates(i, [True, False]) for i in (1, 2, 3)]
    data = read("ppe_correctness", sets)
    assert [item.subset for item in data.items] == ["MATH", "IFEval", "IFEval", "IFEval"]
    # MATH 1 of 1, IFEval 1 of 3: mean 2/3, pooled 1/2
    won = {"MATH:0:m", "IFEval:1:m"}
    figures = CORRECTNESS.figures(
        scored(data.items, lambda item: [1, 0] if item.id in won else [0, 1])
    )
    found = headline(figures)
    assert values([found]) == {("mean pair accuracy", ""): pytest.approx(2 / 3)}
    assert found.note == "without MMLU-Pro, GPQA, MBPP-plus: not the published mean"


def test_best_of_k_is_the_plain_mean_over_all_subsets():
    data = read("ppe_correctness")
    items = drawn(data.items, 4)
    found = values(CORRECTNESS.figures(items))
    for k in (1, 2, 3):
        of_sets = {}
        for item in items:
            labels = item.facts["labels"][:]
            subsets = itertools.combinations(range(len(labels)), k)
            tops = [labels[max(some, key=lambda i: item.scores[i])] for some in subsets]
            of_sets.setdefault(item.subset, []).append(np.mean(tops))
        expected = np.mean([np.mean(values_of_set) for values_of_set in of_sets.values()])
        assert found[f"mean best-of-{k}", ""] == pytest.approx(expected, abs=1e-12)


def test_maximum_end_and_loss_of_a_curve_by_hand():
    # Right, wrong, wrong with scores 1, 2, 0: k = 1: 1/3; k = 2: (w, r, w) = 1/3; k = 3: 0
    data = read("ppe_correctness", {"math": [ppe_candidates(0, [True, False, False])]})
    found = values(CORRECTNESS.figures(scored(data.items, lambda _: [1, 2, 0])))
    assert found["best-of-k, maximum over k", "MATH"] == pytest.approx(1 / 3, abs=1e-12)
    assert found["best-of-k, end (k = 3)", "MATH"] == 0.0
    assert found["best-of-k, loss from maximum to end", "MATH"] == pytest.approx(1 / 3, abs=1e-12)
    assert found["mean best-of-2", ""] == pytest.approx(1 / 3, abs=1e-12)


def test_equal_scores_at_the_top_share_the_credit_and_are_counted():
    data = read("ppe_correctness", {"math": [ppe_candidates(0, [True, False])]})
    figures = CORRECTNESS.figures(scored(data.items, 1.0))
    (end,) = [f for f in figures if f.metric == "best-of-k, end (k = 2)"]
    assert values([end]) == {("best-of-k, end (k = 2)", "MATH"): 0.5}
    assert end.n_ties == 1


def test_auroc_is_pooled_in_each_set_and_then_averaged():
    items = drawn(read("ppe_correctness").items, 2)
    found = values(CORRECTNESS.figures(items))
    of_sets = []
    for name in ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-plus"):
        taken = [item for item in items if item.subset == name]
        scores = np.concatenate([item.scores for item in taken])
        of_sets.append(auroc(scores, np.concatenate([i.facts["labels"] for i in taken])))
        assert found["AUROC", name] == pytest.approx(of_sets[-1], abs=1e-12)
    assert found["mean AUROC", ""] == pytest.approx(np.mean(of_sets), abs=1e-12)


def test_intervals_resample_prompts_of_all_sets():
    figures = CORRECTNESS.figures(drawn(read("ppe_correctness").items, 0))
    interval = clustered_bootstrap(headline(figures).statistic, n_resamples=100)
    assert interval.n_clusters == 15
    assert interval.low <= interval.value <= interval.high


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(SET, "sampled_conflict_pairs"), "no field 'sampled_conflict_pairs'"),
        (without(SET, "response_3"), "no field 'response_3'"),
        ({**SET, "response_4": "more"}, "`scores` has 3 values, but there is response_4"),
        ({**SET, "scores": [True, None, False]}, "`scores` holds null"),
        ({**SET, "scores": [True, 0.5, False]}, "`scores` holds the number 0.5"),
        ({**SET, "scores": [True, 2, False]}, "`scores` holds the number 2"),
        ({**SET, "conflict_pairs": None}, "`conflict_pairs` is null"),
        ({**SET, "conflict_pairs": [[0, 3]]}, r"is \[0, 3\]; expected two indices from 0 to 2"),
        ({**SET, "conflict_pairs": [[0, 2]]}, "two responses that are right both"),
        ({**SET, "conflict_pairs": [[0, 1, 2]]}, "expected two indices"),
        ({**SET, "response_1": 3}, "`response_1` is the number 3"),
    ],
)
def test_a_prompt_of_another_kind_is_refused(row, message):
    with pytest.raises(DataError, match=message):
        read("ppe_correctness", {"math": [row]})


def test_a_file_of_no_known_set_is_refused():
    with pytest.raises(DataError, match="the name holds none of the five sets"):
        read("ppe_correctness", {"train": [SET]})


def test_a_blank_response_leaves_its_prompt_out_and_is_counted():
    rows = rows_of("ppe_correctness")
    rows["math"][0]["response_2"] = ""
    data = read("ppe_correctness", rows)
    assert dict(data.excluded) == {"an answer is blank": 1}
    assert len(data.items) == 14


def test_scores_of_another_number_are_refused():
    items = scored(read("ppe_correctness").items, lambda _: [1.0, 2.0])
    with pytest.raises(DataError, match="2 scores for 4 responses"):
        CORRECTNESS.figures(items)
