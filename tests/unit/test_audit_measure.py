"""From scores to rows: every figure of a cell and of a contrast against its plain definition."""

import math
from dataclasses import replace

import numpy as np
import pytest
from audit_planted import N_ANSWERS, WIDTH, M, planted, tiny_plan
from scipy import stats

from retrm.audit.directions import Directions, FeatureSet
from retrm.audit.measure import Measure, Measured, Setting, corrected
from retrm.audit.probes import Probe, ridge_probes
from retrm.audit.supervision import Supervision
from retrm.audit.tables import AuditTables, ContrastRow
from retrm.errors import RecipeError
from retrm.metrics import (
    AverageStatistic,
    DifferenceStatistic,
    auroc,
    best_of_n,
    brier,
    expected_calibration_error,
    log_loss,
    pair_accuracy,
    within_prompt_auroc,
)
from retrm.records import Answer, AnswerTable, Pair, Prompt

SETTING = Setting("primary", 2, "last")
PLAN = tiny_plan()


@pytest.fixture(scope="module")
def made():
    return planted("spread", n_prompts=40)


@pytest.fixture(scope="module")
def folds(made):
    return made.supervision.folds(PLAN)


def measure_of(supervision, *, lengths=None, finished=None, log_probability=None):
    n = supervision.n
    return Measure(
        supervision,
        lengths=np.arange(10.0, 10 + n) if lengths is None else lengths,
        log_probability=np.linspace(-2, -1, n) if log_probability is None else log_probability,
        finished=np.full(n, math.nan) if finished is None else finished,
    )


def probe(scores, kind="reasoning", *, draw=0, head="ridge", at_end=0.0):
    return Probe(FeatureSet(kind, M, "raw", draw), head, np.asarray(scores, float), at_end, 30)


def noise(n, seed):
    return np.random.default_rng(seed).normal(size=n)


def by_metric(cells):
    return {cell.metric: cell for cell in cells}


# -------------------------------------------------------------------------------------- cells


def test_a_cell_of_every_metric_is_the_metric_of_the_scores(made, folds):
    s = made.supervision
    scores = noise(s.n, 0) + s.labels
    measure = measure_of(s)
    cells = by_metric(measure.cells(measure.take([probe(scores)], SETTING, [folds])))

    within = within_prompt_auroc(scores, s.labels, s.prompt_ids)
    assert cells["within_auroc"].value == pytest.approx(within.mean)
    assert cells["within_auroc_pairs"].value == pytest.approx(within.pair_weighted)
    assert cells["best_of_n"].value == pytest.approx(
        best_of_n(scores, s.labels, s.prompt_ids).value
    )
    per_fold = [auroc(scores[folds == k], s.labels[folds == k]) for k in range(PLAN.n_folds)]
    assert cells["pooled_auroc"].value == pytest.approx(np.mean(per_fold))
    assert {cell.n_prompts for cell in cells.values()} == {40}


def test_scores_of_folds_on_other_scales_change_only_what_is_compared_across_folds(made, folds):
    # Heads of different folds have different scales: no metric of an audit may notice.
    s = made.supervision
    scores = noise(s.n, 0) + s.labels
    moved = scores * (1 + 10 * folds) - 100 * folds
    measure = measure_of(s)

    first, second = (
        by_metric(measure.cells(measure.take([probe(x)], SETTING, [folds])))
        for x in (scores, moved)
    )
    for metric in first:
        assert first[metric].value == pytest.approx(second[metric].value), metric


def test_intervals_are_made_for_the_metrics_that_decide_and_for_all_when_asked(made, folds):
    measure = measure_of(made.supervision)
    found = measure.take([probe(noise(made.supervision.n, 0))], SETTING, [folds])

    has = {c.metric for c in measure.cells(found) if not math.isnan(c.low)}
    assert has == {"within_auroc", "best_of_n"}
    assert not any(math.isnan(c.low) for c in measure.cells(found, every_interval=True))


def test_a_cell_says_where_it_stands(made, folds):
    measure = measure_of(made.supervision)
    features = FeatureSet("band", M, "raw", 3, 7, "raw")
    one = replace(probe(noise(made.supervision.n, 0), at_end=0.25), features=features)
    cell = measure.cells(measure.take([one], Setting("band", 1, "mean"), [folds]))[0]

    assert (cell.sweep, cell.layer, cell.pooling, cell.head) == ("band", 1, "mean", "ridge")
    assert (cell.features, cell.matrix, cell.m) == ("band", "raw", M)
    assert (cell.draw, cell.offset, cell.scaling) == (3, 7, "raw")
    assert (cell.n_train_prompts, cell.at_end) == (30, 0.25)


def test_repetitions_are_averaged_statistic_by_statistic_not_score_by_score(made):
    s = made.supervision
    folds = [s.folds(PLAN, seed) for seed in (0, 1, 2)]
    scores = [noise(s.n, seed) + s.labels for seed in (0, 1, 2)]
    measure = measure_of(s)
    together = measure.take(
        [probe(x, at_end=end) for x, end in zip(scores, (0, 0.3, 0.9), strict=True)],
        SETTING,
        folds,
    )

    cells = by_metric(measure.cells(together))
    single = [
        by_metric(measure.cells(measure.take([probe(x)], SETTING, [fold])))
        for x, fold in zip(scores, folds, strict=True)
    ]
    for metric, cell in cells.items():
        expected = np.mean([one[metric].value for one in single])
        assert cell.value == pytest.approx(expected), metric
    assert cells["within_auroc"].at_end == pytest.approx(0.4)
    of_mean = within_prompt_auroc(sum(scores), s.labels, s.prompt_ids).mean
    assert abs(cells["within_auroc"].value - of_mean) > 0.01


# ---------------------------------------------------------------------------------- more cells


def test_labels_made_from_length_alone_are_unmasked_by_pairs_of_like_length():
    made = planted("length", n_prompts=700)
    s = made.supervision
    (fitted,) = ridge_probes(
        made.reading.last,
        [FeatureSet("full", WIDTH)],
        s,
        s.folds(PLAN),
        PLAN,
        Directions(made.head).of,
    )
    measure = measure_of(s, lengths=made.reading.lengths.double().numpy())
    found = measure.take([fitted], SETTING, [s.folds(PLAN)])
    cells = by_metric([*measure.cells(found), *measure.more_cells(found)])

    assert cells["within_auroc"].low > 0.75
    assert cells["length_matched_auroc"].n > 80
    assert cells["length_matched_auroc"].low < 0.5 < cells["length_matched_auroc"].high
    assert cells["residual_auroc"].low < 0.5 < cells["residual_auroc"].high


def test_a_signal_beside_length_survives_pairs_of_like_length(made, folds):
    s = made.supervision
    (fitted,) = ridge_probes(
        made.reading.last, [FeatureSet("full", WIDTH)], s, folds, PLAN, Directions(made.head).of
    )
    measure = measure_of(s, lengths=np.full(s.n, 30.0))  # all alike: nothing is left out
    cells = by_metric(measure.more_cells(measure.take([fitted], SETTING, [folds])))
    within = within_prompt_auroc(fitted.scores, s.labels, s.prompt_ids)

    assert cells["length_matched_auroc"].value == pytest.approx(within.mean)
    assert cells["length_matched_auroc"].n == within.n_pairs
    assert cells["length_matched_auroc"].low > 0.7


def test_cut_answers_are_left_out_of_the_figure_on_finished_ones(made, folds):
    s = made.supervision
    # Cut answers get scores that order them perfectly; finished ones get noise.
    finished = np.ones(s.n)
    finished[::2] = 0
    scores = np.where(finished == 1, noise(s.n, 1), 100 * s.labels)
    measure = measure_of(s, finished=finished)
    found = measure.take([probe(scores)], SETTING, [folds])
    cells = by_metric([*measure.cells(found), *measure.more_cells(found)])

    kept = finished == 1
    expected = within_prompt_auroc(scores[kept], s.labels[kept], s.prompt_ids[kept]).mean
    assert cells["finished_within_auroc"].value == pytest.approx(expected)
    assert cells["finished_within_auroc"].n_prompts == 40  # some answer to each was finished
    assert cells["within_auroc"].value > expected + 0.1


def test_prompts_of_which_every_answer_was_cut_are_not_counted_as_resampled(made, folds):
    s = made.supervision
    finished = np.ones(s.n)
    finished[: 10 * N_ANSWERS] = 0  # ten of forty prompts
    measure = measure_of(s, finished=finished)
    cells = by_metric(measure.more_cells(measure.take([probe(noise(s.n, 1))], SETTING, [folds])))

    assert cells["finished_within_auroc"].n_prompts == 30
    assert cells["residual_auroc"].n_prompts == 40


def test_what_is_left_beyond_length_and_log_probability_is_nothing_where_the_score_is_one_of_them(
    made, folds
):
    s = made.supervision
    lengths, confidence = np.exp(3 + noise(s.n, 3)), -np.exp(noise(s.n, 4))
    measure = measure_of(s, lengths=lengths, log_probability=confidence)
    for scores in (np.log(lengths), confidence, np.log(lengths) - 2 * confidence):
        found = measure.more_cells(measure.take([probe(scores)], SETTING, [folds]))
        assert by_metric(found)["residual_auroc"].value == 0.5  # all residuals are 0: ties
    other = measure.more_cells(measure.take([probe(noise(s.n, 5))], SETTING, [folds]))
    assert by_metric(other)["residual_auroc"].value != 0.5


@pytest.mark.parametrize("flag", [1.0, 0.0, math.nan])
def test_where_no_answer_or_every_answer_finished_there_is_no_such_figure(made, folds, flag):
    s = made.supervision
    measure = measure_of(s, finished=np.full(s.n, flag))
    cells = measure.more_cells(measure.take([probe(noise(s.n, 0))], SETTING, [folds]))

    assert "finished_within_auroc" not in by_metric(cells)


def test_calibration_is_for_heads_that_give_log_odds_only(made, folds):
    s = made.supervision
    scores = noise(s.n, 0) + s.labels
    measure = measure_of(s)
    ridge, logistic = (
        by_metric(measure.more_cells(measure.take([probe(scores, head=h)], SETTING, [folds])))
        for h in ("ridge", "logistic")
    )

    assert not {"log_loss", "brier", "ece"} & set(ridge)
    assert logistic["log_loss"].value == pytest.approx(log_loss(scores, s.labels))
    assert logistic["brier"].value == pytest.approx(brier(scores, s.labels))
    assert logistic["ece"].value == pytest.approx(expected_calibration_error(scores, s.labels))


def test_pairs_have_no_figures_that_need_labels():
    made = planted("spread", n_prompts=20, preferences=True)
    measure = measure_of(made.supervision)
    found = measure.take([probe(noise(made.supervision.n, 0))], SETTING, [None])

    assert {c.metric for c in measure.more_cells(found)} == {"length_matched_pair_accuracy"}
    (cell,) = measure.cells(found)
    assert cell.metric == "pair_accuracy"
    assert not math.isnan(cell.low)
    assert cell.n == 40  # pairs


# ----------------------------------------------------------------------------------- contrasts


def test_a_probe_minus_itself_is_exactly_0_with_zero_width(made, folds):
    measure = measure_of(made.supervision)
    one = measure.take([probe(noise(made.supervision.n, 0))], SETTING, [folds])

    for row in measure.contrasts("exploratory", one, [one], is_random=False):
        assert (row.value, row.low, row.high) == (0, 0, 0)
        assert row.p == 1
        assert math.isnan(row.holm_p)  # not corrected yet


def test_a_contrast_is_first_minus_the_mean_of_the_draws(made, folds):
    s = made.supervision
    measure = measure_of(s)
    first = measure.take([probe(noise(s.n, 0) + s.labels)], SETTING, [folds])
    draws = [
        measure.take(
            [probe(noise(s.n, 1 + k) + k / 3 * s.labels, "random", draw=k)], SETTING, [folds]
        )
        for k in range(4)
    ]
    rows = measure.contrasts("exploratory", first, draws, is_random=True)

    def value(found, metric):
        return by_metric(measure.cells(found))[metric].value

    assert [row.metric for row in rows] == ["within_auroc", "best_of_n"]
    for row in rows:
        ours, theirs = value(first, row.metric), [value(d, row.metric) for d in draws]
        assert row.value == pytest.approx(ours - np.mean(theirs))
        assert row.low < row.value < row.high
        # rank by hand: (1 + number of draws at least as good) / (1 + 4)
        assert row.rank_p == pytest.approx((1 + sum(x >= ours for x in theirs)) / 5)
        assert (row.first, row.second, row.n_draws, row.m) == ("reasoning", "random", 4, M)


def test_the_rank_by_hand():
    # Two prompts of one right and one wrong answer: AUROCs 1, 1/2, 0 are easily made.
    answers = tuple(Answer(Prompt.of(p), f"r{i}", p) for i, p in enumerate("aabb"))
    s = Supervision.of(AnswerTable(answers, np.array([1.0, 0, 1, 0])), range(4))
    measure = measure_of(s)

    def measured(scores, kind, draw=0):
        return measure.take([probe(scores, kind, draw=draw)], SETTING, [None])

    ours = measured([2, 1, 1, 2], "reasoning")  # .5
    draws = [
        *(measured([2, 1, 2, 1], "random", 0), measured([1, 2, 1, 2], "random", 1)),  # 1 and 0
        measured([1, 2, 2, 1], "random", 2),  # .5: at least as good
    ]
    row = measure.contrasts("primary", ours, draws, is_random=True)[0]
    # 2 of 3 draws are at least as good: (1 + 2) / (1 + 3)
    assert (row.value, row.rank_p) == (0, 0.75)


def test_intervals_of_differences_are_paired(made, folds):
    # Two nearly equal probes differ by far less than either is uncertain.
    s = made.supervision
    scores = noise(s.n, 0) + s.labels
    measure = measure_of(s)
    first, second = (
        measure.take([probe(x)], SETTING, [folds]) for x in (scores, scores + 0.01 * noise(s.n, 5))
    )
    row = measure.contrasts("exploratory", first, [second], is_random=False)[0]
    cell = by_metric(measure.cells(first))["within_auroc"]

    assert row.high - row.low < 0.3 * (cell.high - cell.low)


def test_only_the_metric_of_record_is_primary_and_economy_is_asked_of_both(made, folds):
    s = made.supervision
    measure = measure_of(s)
    first, second = (measure.take([probe(noise(s.n, k))], SETTING, [folds]) for k in (0, 1))

    def roles(asked):
        rows = measure.contrasts(asked, first, [second], is_random=False)
        return {row.metric: row.role for row in rows}

    assert roles("primary") == {
        "within_auroc": "primary",
        "best_of_n": "exploratory",
    }
    assert set(roles("economy").values()) == {"economy"}
    assert set(roles("exploratory").values()) == {"exploratory"}


def test_p_of_a_contrast_knows_prompts_and_draws_by_welch(made, folds):
    s = made.supervision
    measure = measure_of(s)
    first = measure.take([probe(noise(s.n, 0) + s.labels)], SETTING, [folds])
    draws = [
        measure.take([probe(noise(s.n, 1 + k), "random", draw=k)], SETTING, [folds])
        for k in range(4)
    ]
    row = measure.contrasts("exploratory", first, draws, is_random=True)[0]
    points = [within_prompt_auroc(d.probe.scores, s.labels, s.prompt_ids).mean for d in draws]
    ours = within_prompt_auroc(first.probe.scores, s.labels, s.prompt_ids).mean
    mean = AverageStatistic(tuple(d.statistics["within_auroc"] for d in draws))
    resampled = measure.resamples.values(
        DifferenceStatistic(first.statistics["within_auroc"], mean)
    )
    # one more draw minus the mean of four: sd x sqrt(1 + 1/4), known with 3 degrees of freedom
    spread = np.std(points, ddof=1) * math.sqrt(1.25)
    boot = resampled.std(ddof=1)
    df = (boot**2 + spread**2) ** 2 / (spread**4 / 3)
    t = (ours - np.mean(points)) / math.hypot(boot, spread)

    assert row.df == pytest.approx(df)
    assert row.p == pytest.approx(2 * stats.t.sf(abs(t), df))
    assert measure.contrasts("exploratory", first, draws, is_random=False)[0].df == math.inf


def test_p_of_a_contrast_knows_the_mean_of_repetitions(made):
    # Errors add up in squares: prompts (known), and sd / sqrt(3) of three gaps, with 2 degrees.
    s = made.supervision
    folds = [s.folds(PLAN, seed) for seed in range(3)]
    measure = measure_of(s)
    first, second = (
        measure.take(
            [probe(noise(s.n, 10 * k + i) + k * s.labels) for i in range(3)], SETTING, folds
        )
        for k in (1, 0)
    )
    row = measure.contrasts("exploratory", first, [second], is_random=False)[0]
    within = [
        [within_prompt_auroc(noise(s.n, 10 * k + i) + k * s.labels, s.labels, s.prompt_ids).mean]
        for i in range(3)
        for k in (1, 0)
    ]
    gaps = np.array(within).reshape(3, 2) @ [1, -1]
    boot = measure.resamples.standard_error(
        first.statistics["within_auroc"], second.statistics["within_auroc"]
    )
    repetition = gaps.std(ddof=1) / math.sqrt(3)
    df = (boot**2 + repetition**2) ** 2 / (repetition**4 / 2)

    assert row.value == pytest.approx(gaps.mean())
    assert row.df == pytest.approx(df)
    assert row.p == pytest.approx(
        2 * stats.t.sf(abs(gaps.mean()) / math.hypot(boot, repetition), df)
    )


def test_intervals_over_repetitions_are_students_t_of_their_values(made, folds):
    s = made.supervision
    measure = measure_of(s)
    each = tuple(s.statistics(noise(s.n, i), folds) for i in range(4))
    found = by_metric(
        measure.cells_over_repeats(Measured(probe(noise(s.n, 0)), SETTING, each[0], each))
    )["within_auroc"]
    values = [within_prompt_auroc(noise(s.n, i), s.labels, s.prompt_ids).mean for i in range(4)]

    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert found.n_prompts == 40


def test_random_subspaces_of_another_width_are_refused_as_opponents(made, folds):
    measure = measure_of(made.supervision)
    wide = replace(probe(noise(made.supervision.n, 1)), features=FeatureSet("random", 2 * M, "raw"))
    first, second = (
        measure.take([one], SETTING, [folds]) for one in (probe(noise(made.supervision.n, 0)), wide)
    )

    with pytest.raises(RecipeError, match="reasoning of m = 4 against random subspaces of m = 8"):
        measure.contrasts("primary", first, [second], is_random=True)
    assert measure.contrasts("economy", first, [second], is_random=False)  # no such promise


def test_a_contrast_without_draws_has_no_rank(made, folds):
    measure = measure_of(made.supervision)
    first, second = (
        measure.take([probe(noise(made.supervision.n, k))], SETTING, [folds]) for k in (0, 1)
    )
    row = measure.contrasts("economy", first, [second], is_random=False)[0]

    assert row.n_draws == 0
    assert math.isnan(row.rank_p)


def a_contrast(metric, p, role="exploratory"):
    blank = dict.fromkeys(AuditTables.columns("contrasts"), 0)
    return ContrastRow(**{**blank, "role": role, "metric": metric, "p": p, "holm_p": math.nan})


def test_holms_family_is_the_exploratory_contrasts_of_one_metric():
    rows = [
        a_contrast("within_auroc", 0.01),
        a_contrast("within_auroc", 0.04),
        a_contrast("within_auroc", 0.03),
        a_contrast("best_of_n", 0.04),
        a_contrast("within_auroc", 0.001, "primary"),
        a_contrast("best_of_n", 0.001, "economy"),
    ]
    found = [row.holm_p for row in corrected(rows)]

    # .01 x 3, then .03 x 2, then max(.06, .04 x 1); best_of_n has a family of one.
    assert found[:4] == pytest.approx([0.03, 0.06, 0.06, 0.04])
    assert math.isnan(found[4])  # fixed before looking: not corrected, whatever its p
    assert math.isnan(found[5])
    assert [row.metric for row in corrected(rows)] == [row.metric for row in rows]


def test_scores_are_set_against_shortest_and_longest_on_the_same_pairs_of_like_length():
    # Right answers are one token of fifty shorter, in both prompts; the score is right in one of two.
    answers = tuple(Answer(Prompt.of(p), f"r{i}", p) for i, p in enumerate("aabb"))
    s = Supervision.of(AnswerTable(answers, np.array([1.0, 0, 1, 0])), range(4))
    measure = measure_of(s, lengths=np.array([49.0, 50, 49, 50]))
    rows = measure.length_contrasts(measure.take([probe([2, 1, 1, 2])], SETTING, [None]))

    # score .5; shortest 1; longest 0
    assert {(r.metric, r.second): r.value for r in rows} == {
        ("length_matched_auroc", "shortest"): -0.5,
        ("length_matched_auroc", "longest"): 0.5,
    }


# --------------------------------------------------------------------------------- preferences


def test_pair_accuracy_is_the_record_of_preferences():
    made = planted("reasoning", n_prompts=40, preferences=True)
    s = made.supervision
    folds = s.folds(PLAN)
    states = made.reading.last[s.rows]
    sets = [FeatureSet("reasoning", M, "raw"), FeatureSet("semantic", M, "raw")]
    found = ridge_probes(states, sets, s, folds, PLAN, Directions(made.head).of)
    measure = measure_of(s)
    first, second = (measure.take([one], SETTING, [folds]) for one in found)
    (row,) = measure.contrasts("primary", first, [second], is_random=True)

    gaps = found[0].scores[s.pairs[:, 0]] > found[0].scores[s.pairs[:, 1]]
    (cell,) = measure.cells(first)
    assert cell.value == pytest.approx(gaps.mean())
    assert cell.value == pytest.approx(
        pair_accuracy(found[0].scores[s.pairs[:, 0]], found[0].scores[s.pairs[:, 1]]).half
    )
    assert (row.role, row.metric) == ("primary", "pair_accuracy")
    assert row.low > 0


def test_several_pairs_of_a_prompt_are_resampled_together():
    # 6 answers a prompt, the best before all others: 5 pairs each that are all right or all wrong.
    n_prompts = 30
    answers = tuple(
        Answer(Prompt.of(f"q{i // N_ANSWERS}"), f"r{i}", f"p{i // N_ANSWERS}")
        for i in range(n_prompts * N_ANSWERS)
    )
    pairs = tuple(
        Pair(p * N_ANSWERS, p * N_ANSWERS + k) for p in range(n_prompts) for k in range(1, 6)
    )
    table = AnswerTable(answers, np.full(len(answers), math.nan), pairs=pairs)
    s = Supervision.of(table, range(len(table)))
    scores = np.zeros(s.n)
    scores[:: 2 * N_ANSWERS] = 1  # right in every other prompt ...
    scores[N_ANSWERS :: 2 * N_ANSWERS] = -1  # ... wrong in the rest
    measure = measure_of(s)
    (cell,) = measure.cells(measure.take([probe(scores)], SETTING, [None]))

    # 30 independent coins, not 150: half-width 1.96 * .5 / sqrt(30) = .18 (150: .08).
    assert cell.value == 0.5
    assert 0.14 < (cell.high - cell.low) / 2 < 0.21


def pairs_of(*prompts):
    """One pair a prompt, the first answer before the second."""
    answers = tuple(Answer(Prompt.of(p), f"{p}{k}", p) for p in prompts for k in "ab")
    pairs = tuple(Pair(2 * i, 2 * i + 1) for i in range(len(prompts)))
    return Supervision.of(
        AnswerTable(answers, np.full(len(answers), math.nan), pairs=pairs), range(8)
    )


LENGTHS = np.array([100.0, 95, 100, 50, 10, 10, 40, 44])  # alike but for the second pair
SCORES = np.array([1.0, 2, 5, 1, 3, 1, 2, 2])  # wrong, right, right, level


def test_pairs_of_like_length_by_hand():
    measure = measure_of(pairs_of(*"pqrs"), lengths=LENGTHS)
    found = measure.take([probe(SCORES)], SETTING, [None])
    (cell,) = measure.more_cells(found)

    # the three pairs within a tenth: (0 + 1 + .5) / 3
    assert (cell.metric, cell.n, cell.n_prompts) == ("length_matched_pair_accuracy", 3, 4)
    assert cell.value == pytest.approx(0.5)
    assert cell.low <= cell.value <= cell.high


def test_preferences_are_set_against_length_on_all_pairs_and_on_those_of_like_length():
    measure = measure_of(pairs_of(*"pqrs"), lengths=LENGTHS)
    found = measure.take([probe(SCORES)], SETTING, [None])
    rows = {(r.metric, r.second): r for r in measure.length_contrasts(found)}

    # all: score (0 + 1 + 1 + .5) / 4 = .625; longest right, right, level, wrong: 2.5 / 4; shortest 1.5 / 4
    # alike: score .5; longest (1 + .5 + 0) / 3 = .5; shortest the same
    assert {key: row.value for key, row in rows.items()} == pytest.approx(
        {
            ("pair_accuracy", "shortest"): 0.25,
            ("pair_accuracy", "longest"): 0.0,
            ("length_matched_pair_accuracy", "shortest"): 0.0,
            ("length_matched_pair_accuracy", "longest"): 0.0,
        }
    )
    assert {row.role for row in rows.values()} == {"exploratory"}
    assert all(row.low <= row.value <= row.high for row in rows.values())


def test_repeated_splits_are_set_against_the_same_rule_by_length():
    s = pairs_of(*"pqrs")
    measure = measure_of(s, lengths=LENGTHS)
    found = measure.take([probe(SCORES), probe(-SCORES)], SETTING, [None, None])
    row = next(r for r in measure.length_contrasts(found) if r.second == "shortest")

    # accuracies .625 and .375, mean .5; shortest .375. Gaps .25 and 0: one degree of freedom.
    assert row.value == pytest.approx(0.125)
    assert row.df < math.inf


def test_without_pairs_of_like_length_there_is_no_such_figure():
    s = pairs_of(*"pqrs")
    measure = measure_of(s, lengths=np.array([1.0, 2] * 4))
    found = measure.take([probe(SCORES)], SETTING, [None])

    assert measure.more_cells(found) == []
    assert {row.metric for row in measure.length_contrasts(found)} == {"pair_accuracy"}
