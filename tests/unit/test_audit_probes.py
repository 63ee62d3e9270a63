"""Probes of an audit: against plain scikit-learn, without leaks, and blind to what they must be."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from audit_planted import LAYERS, WIDTH, M, planted, tiny_plan
from sklearn.linear_model import Ridge

from retrm.audit.directions import Directions, FeatureSet
from retrm.audit.probes import (
    first_prompts,
    gated_probe,
    inner_moments,
    logistic_probes,
    ridge_probes,
)
from retrm.audit.supervision import Supervision
from retrm.errors import LabelError
from retrm.fitting.convex import LAMBDA_GRID
from retrm.fitting.ridge import Moments
from retrm.metrics import within_prompt_auroc
from retrm.records import Answer, AnswerTable, Pair, Prompt, RankedList

PLAN = tiny_plan()
LAST = LAYERS[-1]


@pytest.fixture(scope="module")
def made():
    return planted("spread", n_prompts=40, strength=1.0)


@pytest.fixture(scope="module")
def preferred():
    return planted("spread", n_prompts=40, preferences=True)


def ridge(made, sets, *, supervision=None, folds=None, states=None, **options):
    """Probes on the last states with the folds of the plan."""
    supervision = supervision or made.supervision
    folds = supervision.folds(PLAN) if folds is None else folds
    states = made.reading.last if states is None else states
    directions = Directions(made.head).of
    states = states[supervision.rows]
    return ridge_probes(states, sets, supervision, folds, PLAN, directions, **options)


def scores_of(probes):
    return np.stack([probe.scores for probe in probes])


# ------------------------------------------------------------------------- against an oracle


def plain_ridge(x, y, ids, folds, plan, *, standardise, inner_of):
    """Out-of-fold scores by scikit-learn: the penalty with the least held-out squared error."""
    scores = np.full(len(y), np.nan)
    for fold in range(plan.n_folds):
        train = folds != fold
        errors = {}
        for lam in LAMBDA_GRID:
            errors[lam] = sum(
                ((y[held] - fit_predict(x, y, train & ~held, held, lam, standardise)) ** 2).sum()
                for held in inner_of(train)
            )
        lam = max(lam for lam in errors if errors[lam] <= min(errors.values()) * (1 + 1e-12))
        scores[~train] = fit_predict(x, y, train, ~train, lam, standardise)
    return scores


def fit_predict(x, y, train, test, lam, standardise):
    # scikit-learn sums squares where we take their mean: alpha = n lam.
    mean = x[train].mean(0)
    scale = x[train].std(0) if standardise else 1.0
    model = Ridge(alpha=lam * train.sum()).fit((x[train] - mean) / scale, y[train])
    return model.predict((x[test] - mean) / scale)


@pytest.mark.parametrize("scaling", ["standardised", "raw"])
def test_ridge_from_blocks_equals_scikit_learn_with_the_same_folds_and_rule(made, scaling):
    s, plan = made.supervision, PLAN
    folds = s.folds(plan)
    sets = [
        FeatureSet("full", WIDTH, scaling=scaling),
        FeatureSet("reasoning", M, "raw", scaling=scaling),
    ]
    # Inner folds are dealt within each outer fold, so that blocks add up to any training part.
    inner = np.full(s.n, -1)
    for fold in range(plan.n_folds):
        rows = np.flatnonzero(folds == fold)
        inner[rows] = s.inner_folds(rows, plan)

    found = ridge(made, sets)
    x = made.reading.last.double().numpy()
    tail = Directions(made.head).of(sets[1]).numpy()
    for probe, design in zip(found, (x, x @ tail), strict=True):
        expected = plain_ridge(
            design,
            s.labels,
            s.prompt_ids,
            folds,
            plan,
            standardise=scaling == "standardised",
            inner_of=lambda train: [train & (inner == k) for k in range(plan.n_inner_folds)],
        )
        assert np.abs(probe.scores - expected).max() < 1e-5, probe.features.kind


def test_ridge_of_a_training_subset_equals_scikit_learn_on_those_prompts(made):
    s = made.supervision
    folds = s.folds(PLAN)
    (probe,) = ridge(made, [FeatureSet("full", WIDTH)], n_prompts=12, subset_seed=3)

    x = made.reading.last.double().numpy()
    expected = np.full(s.n, np.nan)
    for fold in range(PLAN.n_folds):
        rows = first_prompts(s.prompt_ids, np.flatnonzero(folds != fold), 12, 3)
        inner = s.inner_folds(rows, PLAN)
        masks = []
        for k in range(PLAN.n_inner_folds):
            mask = np.zeros(s.n, dtype=bool)
            mask[rows[inner == k]] = True
            masks.append(mask)
        train = np.any(masks, axis=0)
        errors = [
            sum(
                ((s.labels[m] - fit_predict(x, s.labels, train & ~m, m, lam, True)) ** 2).sum()
                for m in masks
            )
            for lam in LAMBDA_GRID
        ]
        lam = LAMBDA_GRID[int(np.argmin(errors))]
        test = folds == fold
        expected[test] = fit_predict(x, s.labels, train, test, lam, True)
    assert np.abs(probe.scores - expected).max() < 1e-5
    assert probe.n_train_prompts == 12


def test_ridge_of_pairs_is_ridge_on_differences_without_intercept(preferred):
    s = preferred.supervision
    folds = s.folds(PLAN)
    (probe,) = ridge(preferred, [FeatureSet("full", WIDTH, scaling="raw")])

    x = preferred.reading.last.double().numpy()[s.rows]
    d, pair_fold = x[s.pairs[:, 0]] - x[s.pairs[:, 1]], folds[s.pairs[:, 0]]
    for fold in range(PLAN.n_folds):
        # The penalty is not known from outside: one of the grid must give the scores exactly.
        kept, test = d[pair_fold != fold], folds == fold
        gaps = []
        for lam in LAMBDA_GRID:
            model = Ridge(alpha=lam * len(kept), fit_intercept=False).fit(kept, np.ones(len(kept)))
            gaps.append(np.abs(x[test] @ model.coef_ - probe.scores[test]).max())
        assert min(gaps) < 1e-5 < max(gaps)


# -------------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("where", ["spread", "nowhere"])
def test_with_as_many_directions_as_the_width_every_subspace_gives_the_scores_of_the_full_state(
    where,
):
    made = planted(where, n_prompts=40)
    kinds = [("reasoning", "raw"), ("semantic", "raw"), ("random", "raw"), ("reasoning", "centred")]
    kinds += [("random_singular", "raw"), ("coordinates", "-"), ("middle", "raw")]
    sets = [FeatureSet("full", WIDTH, scaling="raw")]
    sets += [FeatureSet(kind, WIDTH, matrix, scaling="raw") for kind, matrix in kinds]

    scores = scores_of(ridge(made, sets))
    assert np.abs(scores - scores[0]).max() < 1e-6


def test_the_same_holds_for_logistic_heads_without_standardising(made):
    sets = [FeatureSet("full", WIDTH, scaling="raw")]
    sets += [
        FeatureSet(kind, WIDTH, "raw", scaling="raw")
        for kind in ("reasoning", "semantic", "random")
    ]
    s = made.supervision
    found = logistic_probes(made.reading.last, sets, s, s.folds(PLAN), Directions(made.head))

    scores = scores_of(found)
    assert np.abs(scores - scores[0]).max() < 2e-6 * np.abs(scores).max()


def test_standardising_does_depend_on_the_basis(made):
    # Otherwise the two tests above would prove nothing about the projection.
    states = made.reading.last * torch.linspace(5, 0.2, WIDTH)
    sets = [FeatureSet("full", WIDTH), FeatureSet("reasoning", WIDTH, "raw")]

    scores = scores_of(ridge(made, sets, states=states))
    assert np.abs(scores[1] - scores[0]).max() > 1e-3


def test_everything_but_the_tail_beside_the_tail_is_the_full_state(made):
    directions = Directions(made.head)
    head, tail = (
        directions.of(FeatureSet(kind, m, "raw"))
        for kind, m in (("semantic_all", WIDTH - M), ("reasoning", M))
    )
    both, full = FeatureSet("both", WIDTH, scaling="raw"), FeatureSet("full", WIDTH, scaling="raw")

    def columns(features, train):
        return torch.cat([head, tail], dim=1) if features.kind == "both" else None

    s = made.supervision
    scores = scores_of(
        ridge_probes(made.reading.last, [both, full], s, s.folds(PLAN), PLAN, columns)
    )
    assert np.abs(scores[0] - scores[1]).max() < 1e-6


def test_the_projection_of_a_mean_is_the_mean_of_projections(made):
    tokens = torch.randn(40, 9, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    for kind in ("reasoning", "semantic", "random", "random_singular"):
        basis = Directions(made.head).of(FeatureSet(kind, M, "raw"))
        gap = tokens.mean(1) @ basis - (tokens @ basis).mean(1)
        assert gap.abs().max() < 1e-12, kind


def test_fitting_sets_together_or_alone_gives_the_same_scores(made, monkeypatch):
    sets = [FeatureSet("full", WIDTH), FeatureSet("pca_top", M)]
    sets += [FeatureSet("random", M, "raw", draw) for draw in range(3)]
    together = scores_of(ridge(made, sets))

    alone = scores_of([ridge(made, [one])[0] for one in sets])
    assert np.abs(together - alone).max() < 1e-9
    monkeypatch.setattr("retrm.audit.probes._COLUMNS_AT_ONCE", 5)  # one or two sets at a time
    assert np.abs(together - scores_of(ridge(made, sets))).max() < 1e-9


# --------------------------------------------------------------------------------- no leaks


def changed(supervision, rows, seed=0):
    """The same with other labels, or pairs turned round, on `rows`."""
    if supervision.task == "preferences":
        turned = tuple(
            Pair(p.rejected, p.chosen) if p.chosen in set(rows.tolist()) else p
            for p in supervision.table.pairs
        )
        return replace(supervision, table=replace(supervision.table, pairs=turned))
    labels = supervision.labels.copy()
    labels[rows] = 1 - labels[rows]
    return replace(supervision, table=replace(supervision.table, labels=labels))


LEAK_SETS = [
    *(FeatureSet("full", WIDTH), FeatureSet("reasoning", M, "raw"), FeatureSet("pca_top", M)),
    *(FeatureSet("pca_bottom", M), FeatureSet("white_random", M)),
]


@pytest.mark.parametrize("name", ["made", "preferred"])
def test_labels_of_the_held_out_fold_do_not_change_its_scores(name, request):
    made = request.getfixturevalue(name)
    s = made.supervision
    held_out = np.flatnonzero(s.folds(PLAN) == 1)
    other = changed(s, held_out)

    for n_prompts in (None, 10):
        before = scores_of(ridge(made, LEAK_SETS, n_prompts=n_prompts))
        after = scores_of(ridge(made, LEAK_SETS, supervision=other, n_prompts=n_prompts))
        assert np.array_equal(before[:, held_out], after[:, held_out])
        assert not np.array_equal(before, after)


def test_labels_of_the_held_out_fold_do_not_change_logistic_or_gated_scores(made):
    s = made.supervision
    folds = s.folds(PLAN)
    held_out = np.flatnonzero(folds == 1)
    other, directions = changed(s, held_out), Directions(made.head)
    tail = FeatureSet("reasoning", M, "raw")
    tokens = made.reading.tokens()

    for supervision in (s, other):
        logistic = logistic_probes(made.reading.last, [tail], supervision, folds, directions)[0]
        gated = gated_probe(tokens, tail, directions.of(tail), supervision, folds)
        if supervision is s:
            before = logistic.scores, gated.scores
    for old, new in zip(before, (logistic.scores, gated.scores), strict=True):
        assert np.array_equal(old[held_out], new[held_out])
        assert not np.array_equal(old, new)


@pytest.mark.parametrize("kind", ["pca_top", "pca_bottom", "white_random"])
def test_directions_of_the_states_come_from_training_rows_only(made, kind):
    s = made.supervision
    folds, seen = s.folds(PLAN), []

    def watch(features, train):
        seen.append(train)
        return Directions(made.head).of(features, train)

    ridge_probes(made.reading.last, [FeatureSet(kind, M)], s, folds, PLAN, watch)
    x = made.reading.last.double()
    assert len(seen) == PLAN.n_folds
    for fold, train in enumerate(seen):
        rows = folds != fold
        assert train.weight == rows.sum()
        assert torch.allclose(train.xx, x[rows].T @ x[rows], atol=1e-9)


def test_held_out_states_change_nothing_but_their_own_scores(made):
    s = made.supervision
    folds = s.folds(PLAN)
    states = made.reading.last.clone()
    row = int(np.flatnonzero(folds == 0)[0])
    states[row] *= 50

    before, after = (
        scores_of(ridge(made, LEAK_SETS)),
        scores_of(ridge(made, LEAK_SETS, states=states)),
    )
    others = np.flatnonzero((folds == 0) & (np.arange(s.n) != row))
    assert np.array_equal(before[:, others], after[:, others])


@pytest.mark.parametrize("name", ["made", "preferred"])
def test_no_fold_splits_a_prompt_outer_or_inner(name, request):
    s = request.getfixturevalue(name).supervision
    for seed in range(3):
        folds = s.folds(PLAN, seed)
        assert set(folds.tolist()) == set(range(PLAN.n_folds))
        rows = np.flatnonzero(folds != 0)
        for parts, ids in ((folds, s.prompt_ids), (s.inner_folds(rows, PLAN), s.prompt_ids[rows])):
            for prompt in set(ids.tolist()):
                assert len(set(parts[ids == prompt].tolist())) == 1
    assert not np.array_equal(s.folds(PLAN, 0), s.folds(PLAN, 1))


def test_heads_fitted_on_shuffled_labels_are_at_chance():
    made = planted("spread", n_prompts=200, strength=2.0)
    s = made.supervision
    shuffled = s.shuffled(0)
    sets = [FeatureSet("full", WIDTH), FeatureSet("reasoning", M, "raw")]

    real = ridge(made, sets)
    fake = ridge(made, sets, supervision=shuffled)
    assert within_prompt_auroc(real[0].scores, s.labels, s.prompt_ids).mean > 0.9
    for probe in fake:
        found = within_prompt_auroc(probe.scores, shuffled.labels, s.prompt_ids)
        # With 3 right x 3 wrong answers an AUROC has variance 7/108: .25 / sqrt(200) = .018.
        assert abs(found.mean - 0.5) < 2.6 * 0.018 + 0.005


# ----------------------------------------------------------------------------- learning parts


def test_learning_parts_are_whole_prompts_and_smaller_ones_lie_in_larger_ones(made):
    s = made.supervision
    rows = np.flatnonzero(s.folds(PLAN) != 0)
    parts = [set(first_prompts(s.prompt_ids, rows, n, 5).tolist()) for n in (4, 8, 16)]

    assert parts[0] < parts[1] < parts[2] <= set(rows.tolist())
    for part, n in zip(parts, (4, 8, 16), strict=True):
        prompts = {s.prompt_ids[row] for row in part}
        assert len(prompts) == n
        whole = {row for row in rows.tolist() if s.prompt_ids[row] in prompts}
        assert part == whole
    assert parts[1] != set(first_prompts(s.prompt_ids, rows, 8, 6).tolist())


def test_a_learning_part_as_large_as_the_training_part_takes_every_row(made):
    s = made.supervision
    rows = np.flatnonzero(s.folds(PLAN) != 0)

    assert np.array_equal(first_prompts(s.prompt_ids, rows, 10_000, 0), rows)


def test_a_training_part_with_one_class_is_refused_by_the_fit(made):
    s = made.supervision
    labels = np.zeros(s.n)
    labels[:3] = 1  # one prompt only
    supervision = replace(s, table=replace(s.table, labels=labels))

    with pytest.raises(LabelError, match="targets that are all 0"):
        ridge(made, [FeatureSet("full", WIDTH)], supervision=supervision)


# -------------------------------------------------------------------------------- supervision


def answers(*prompts):
    return tuple(Answer(Prompt.of(p), f"r{i}", p) for i, p in enumerate(prompts))


def test_unjudged_answers_are_left_out_and_counted():
    table = AnswerTable(answers(*"aabb"), np.array([1, np.nan, 0, 1]))
    found = Supervision.of(table, [0, 1, 3, 2])

    # read rows 0, 1, 3, 2; the second carries no label
    assert (found.n, found.n_unjudged, found.rows.tolist()) == (3, 1, [0, 2, 3])
    assert found.prompt_ids.tolist() == ["a", "b", "b"]
    assert found.labels.tolist() == [1, 1, 0]
    assert (found.task, found.record, found.n_prompts, found.n_mixed) == (
        *("graded", "within_auroc"),
        *(2, 1),
    )


def test_preferences_keep_the_answers_of_pairs_and_ranks():
    table = AnswerTable(
        answers(*"aaabb"),
        np.full(5, np.nan),
        pairs=(Pair(1, 0),),
        ranked=(RankedList((3, 4), (2, 1)),),
    )
    found = Supervision.of(table, range(5))

    assert (found.task, found.record) == ("preferences", "pair_accuracy")
    assert (found.rows.tolist(), found.n_unjudged) == ([0, 1, 3, 4], 1)
    assert found.pairs.tolist() == [[1, 0], [3, 2]]  # rank 1 is better: row 4 before row 3
    assert (found.n_prompts, found.n_mixed) == (2, 2)


def test_pairs_decide_where_answers_also_carry_labels():
    # Every head must learn from what it is judged by: pairs here, although labels are known.
    table = AnswerTable(answers(*"aabb"), np.array([1.0, 0, 0, 0]), pairs=(Pair(0, 1), Pair(2, 3)))
    found = Supervision.of(table, range(4))

    assert found.task == "preferences"
    assert np.isnan(found.labels).all()
    assert not found.targets.is_labelled.any()


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_a_threshold_that_is_no_number_is_refused_by_name(threshold):
    table = AnswerTable(tuple(Answer.of("p", f"{i}") for i in range(4)), np.arange(4.0))
    with pytest.raises(LabelError, match=f"got label_threshold={threshold}; expected a number"):
        Supervision.of(table, range(4), label_threshold=threshold)


def test_grades_become_pairs_or_labels_at_a_threshold():
    table = AnswerTable(answers(*"aabb"), np.array([0.9, 0.2, 0.5, 0.5]))

    assert Supervision.of(table, range(4)).pairs.tolist() == [[0, 1]]
    graded = Supervision.of(table, range(4), label_threshold=0.5)
    assert (graded.task, graded.labels.tolist()) == ("graded", [1, 0, 1, 1])


def test_data_with_nothing_to_compare_are_refused():
    with pytest.raises(LabelError, match="4 answers carry no labels, pairs or ranks"):
        Supervision.of(AnswerTable(answers(*"aabb"), np.full(4, np.nan)), range(4))
    with pytest.raises(LabelError, match="got 2 prompts, none with both right and wrong"):
        Supervision.of(AnswerTable(answers(*"aabb"), np.array([1.0, 1, 0, 0])), range(4))


def test_shuffling_keeps_every_prompts_labels_and_moves_them(made):
    s = made.supervision
    shuffled = s.shuffled(3)

    assert np.array_equal(s.shuffled(3).labels, shuffled.labels)
    assert not np.array_equal(s.labels, shuffled.labels)
    for group in s.table.candidate_sets():
        rows = list(group.rows)
        assert sorted(s.labels[rows]) == sorted(shuffled.labels[rows])


def test_shuffles_differ_by_number_by_seed_and_by_prompts(made, preferred):
    for s in (made.supervision, preferred.supervision):
        ids = np.array([f"other-{i}" for i in s.prompt_ids], dtype=object)
        answers = tuple(
            replace(answer, prompt_id=str(i))
            for answer, i in zip(s.table.answers, ids, strict=True)
        )
        other = replace(s, table=replace(s.table, answers=answers))
        found = [s.shuffled(3), s.shuffled(3, 1), s.shuffled(4), other.shuffled(3)]
        kinds = {(one.labels.tobytes(), one.pairs.tobytes()) for one in found}
        assert len(kinds) == 4


def test_shuffling_preferences_turns_about_half_of_the_pairs_round(preferred):
    s = preferred.supervision
    shuffled = s.shuffled(3)

    turned = (s.pairs != shuffled.pairs).any(1)
    assert np.array_equal(np.sort(s.pairs, 1), np.sort(shuffled.pairs, 1))
    # 80 pairs: 40 expected, standard error sqrt(80 / 4) = 4.5
    assert 25 < turned.sum() < 55
    assert np.array_equal(shuffled.targets.pairs.numpy(), shuffled.pairs)


def test_statistics_of_preferences_are_the_share_of_pairs_in_the_right_order_ties_half():
    table = AnswerTable(
        answers(*"aabb"), np.full(4, np.nan), pairs=(Pair(0, 1), Pair(2, 3), Pair(3, 2))
    )
    s = Supervision.of(table, range(4))
    (statistic,) = s.statistics(np.array([2.0, 1.0, 3.0, 3.0]), None).values()

    # right, tie, tie: (1 + .5 + .5) / 3
    assert float(statistic(np.ones((1, 2)))[0]) == pytest.approx(2 / 3)


def test_inner_moments_add_up_to_the_rows(made):
    s, rows = made.supervision, np.arange(60)
    x = made.reading.last.double()
    whole = Moments.total(inner_moments(x, s, rows, PLAN))

    assert torch.allclose(whole.xx, x[rows].T @ x[rows])
    assert whole.weight == 60
