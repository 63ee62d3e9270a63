"""The table of heads beside baselines, on the audit spec's worked example."""

import numpy as np
import pytest

from retrm.errors import LabelError, ScoreError
from retrm.evaluation.best_of_n import compare, majority_curve
from retrm.evaluation.held_out import measure
from retrm.evaluation.preferences import compare_pairs
from retrm.records import Answer, AnswerTable, Pair

# P1 scores (2, 1, .5, .2) labels (1,1,0,0); P2 (-1,-2,-3), (0,1,0); P3 (5,4,3), (0,0,0).
SCORES = np.array([2, 1, 0.5, 0.2, -1, -2, -3, 5, 4, 3])
LABELS = np.array([1, 1, 0, 0, 0, 1, 0, 0, 0, 0.0])
IDS = ["p1"] * 4 + ["p2"] * 3 + ["p3"] * 3
KEYS = ["7", "7", "8", None, "1", "2", "1", "5", "6", "6"]


def test_worked_example_of_the_audit_spec():
    table = compare({"head": SCORES}, LABELS, IDS, keys=KEYS)
    head = table.row("head")

    # Pooled 9/21; within: P1 1.0, P2 .5, P3 excluded, mean .75; best-of-all right on P1 only.
    assert head.pooled_auroc.value == pytest.approx(9 / 21)
    assert head.within_auroc.value == pytest.approx(0.75)
    assert head.best_of_n.value == pytest.approx(1 / 3)
    # pass@1 = mean(.5, .3333, 0), oracle 2/3, so recovered (.3333 - .2778) / (.6667 - .2778).
    assert table.row("pass@1").best_of_n.value == pytest.approx((0.5 + 1 / 3) / 3)
    assert table.row("oracle").best_of_n.value == pytest.approx(2 / 3)
    assert head.recovered == pytest.approx((1 / 3 - 5 / 18) / (2 / 3 - 5 / 18))
    assert (table.n_prompts, table.n_mixed, table.n_answers, table.n_candidates) == (3, 2, 10, 3)


def test_majority_counts_first_seen_ties_and_answers_without_key():
    table = compare({"head": SCORES}, LABELS, IDS, keys=KEYS)

    # P1: 7 wins, right. P2: 1 wins, wrong. P3: 6 wins, wrong.
    assert table.row("majority").best_of_n.value == pytest.approx(1 / 3)
    assert table.row("majority").pooled_auroc is None


def test_the_curve_starts_at_pass_at_1_and_ends_at_best_of_all():
    head = compare({"head": SCORES[4:]}, LABELS[4:], IDS[4:]).row("head")
    values = [point.value for point in head.curve]

    # P2 (labels 0,1,0 by falling score): 1/3, 1/3, 0; P3: 0. Means of the two prompts.
    assert values == pytest.approx([1 / 6, 1 / 6, 0.0])


def test_paired_differences_are_to_the_named_rows_and_zero_against_itself():
    table = compare(
        {"head": SCORES}, LABELS, IDS, baselines={"same": SCORES}, keys=KEYS, against=("same",)
    )
    gap = table.row("head").minus["same"]

    assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)


def test_out_of_fold_scores_are_pooled_inside_folds_only():
    # Fold 0 scores right above wrong by 1, fold 1 the same but shifted by -100: pooling across
    # folds would give .75, inside folds it is 1.
    scores = np.array([1, 0, 1, 0, -99, -100, -99, -100.0])
    labels = np.array([1.0, 0.0] * 4)
    ids = ["a", "a", "b", "b", "c", "c", "d", "d"]
    folds = np.array([0] * 4 + [1] * 4)

    inside = compare({"h": scores}, labels, ids, folds=folds).row("h")
    across = compare({"h": scores}, labels, ids).row("h")
    assert inside.pooled_auroc.value == pytest.approx(1.0)
    assert across.pooled_auroc.value == pytest.approx(0.75)


def test_majority_curve_is_pass_at_1_at_one_and_the_vote_at_all():
    labels = np.array([1, 1, 0, 0.0])
    curve = majority_curve(["7", "7", "8", "9"], labels, ["p"] * 4, n_draws=4000)

    assert curve[0] == pytest.approx(0.5, abs=0.03)
    # Two of four: both 7 in 1/6; one 7 in 4/6, then first seen wins and 7 stands first.
    assert curve[1] == pytest.approx(5 / 6, abs=0.03)
    assert curve[3] == 1.0


def test_missing_labels_and_scores_are_refused():
    with pytest.raises(LabelError, match="retrm grade"):
        compare({"h": SCORES}, np.where(LABELS == 1, np.nan, LABELS), IDS)
    with pytest.raises(ScoreError, match="answer 3"):
        compare({"h": np.where(np.arange(10) == 3, np.nan, SCORES)}, LABELS, IDS)


def test_preferences_give_pair_accuracy_beside_the_length_baselines():
    scores = {"head": np.array([1.0, 0.0, 0.0, 2.0, 1.0, 1.0])}
    pairs = [Pair(0, 1), Pair(2, 3), Pair(4, 5)]
    table = compare_pairs(scores, {"longest": np.zeros(6)}, pairs, list("aabbcc"))

    # Right, wrong, tie: (1 + 0 + .5) / 3. The constant baseline ties everywhere: .5.
    assert table.rows[0].accuracy.value == pytest.approx(0.5)
    assert table.rows[0].n_ties == 1
    assert table.rows[1].accuracy.value == 0.5
    assert table.rows[0].minus["longest"].value == pytest.approx(0.0)


def test_measure_chooses_the_table_by_the_labels():
    answers = tuple(Answer.of(p, r) for p in ("x", "y") for r in ("a", "bb"))
    graded = AnswerTable(answers, np.array([1.0, 0.0, 0.0, 1.0]))
    preferred = AnswerTable(answers, np.full(4, np.nan), pairs=(Pair(0, 1), Pair(3, 2)))
    single = AnswerTable(answers, np.array([1.0, 1.0, 0.0, 0.0]))
    scores, log_p = {"h": np.arange(4.0)}, np.zeros(4)

    assert measure(scores, graded, log_p).row("shortest").best_of_n.value == 0.5
    assert measure(scores, preferred, log_p).n_pairs == 2
    assert measure(scores, single, log_p) is None
