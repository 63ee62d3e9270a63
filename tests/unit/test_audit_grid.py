"""The stages of an audit on states with a planted signal: every question finds what was planted."""

import itertools
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from audit_planted import LAYERS, WIDTH, M, planted, tiny_plan

from retrm.audit import controls
from retrm.audit.directions import FeatureSet
from retrm.audit.measure import Setting
from retrm.audit.plan import MATRICES
from retrm.audit.probes import logistic_probes, ridge_probes
from retrm.audit.tables import AuditTables
from retrm.audit.verdict import verdicts
from retrm.fitting.ridge import Moments
from retrm.methods import method
from retrm.metrics import best_of_n, point_estimate, within_prompt_auroc

PLAN = tiny_plan(poolings=("last", "mean", "max", "gate"))
LAST = LAYERS[-1]


@cache
def stage(name, where="reasoning", preferences=False):
    """One stage over the planted answers, once for all tests."""
    made = planted(where, n_prompts=60, preferences=preferences)
    return made.grid(PLAN).stages()[name]()


def values(tables, metric="within_auroc", **wanted):
    """{kind: values} of the cells at a setting."""
    found: dict[str, list[float]] = {}
    for cell in tables.cells:
        if cell.metric == metric and all(getattr(cell, k) == v for k, v in wanted.items()):
            found.setdefault(cell.features, []).append(cell.value)
    return found


def test_every_stage_of_the_plan_is_there_and_no_other():
    made = planted("nowhere", n_prompts=20)

    assert list(made.grid(tiny_plan()).stages()) == [
        *("primary", "spectrum", "controls", "width-last", "learning", "matrix", "band"),
        "layers-last",
    ]
    assert {"width-mean", "layers-mean", "max", "gate"} < set(made.grid(PLAN).stages())


# ------------------------------------------------------------------------------- planted signal


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *(("width-last", {"m": M}), ("layers-last", {"layer": LAST}), ("max", {})),
        *(("matrix", {"matrix": "raw", "m": M}), ("primary", {})),
        ("learning", {"n_train_prompts": 40}),
    ],
)
def test_a_signal_in_the_tail_is_found_there_and_not_at_the_top(name, setting):
    found = values(stage(name), **setting)

    assert found["reasoning"][0] > 0.8, found
    assert found["reasoning"][0] > max(found["random"]) > found["semantic"][0] - 0.1
    assert abs(found["semantic"][0] - 0.5) < 0.1


@pytest.mark.parametrize("preferences", [False, True])
def test_the_gate_finds_a_signal_in_the_tail_too(monkeypatch, preferences):
    # A few loud steps stand for the forty epochs of the paper, two draws for five.
    quick = method("elhsr").with_changes(gradient={"lr": 0.03, "epochs": 6})
    monkeypatch.setattr("retrm.audit.probes.method", lambda name: quick)
    monkeypatch.setattr("retrm.audit.grid.FEW_DRAWS", 2)
    made = planted("reasoning", n_prompts=60, strength=2.0, preferences=preferences)
    tables = made.grid(PLAN).gate()
    found = values(tables, "pair_accuracy" if preferences else "within_auroc", head="gated")

    assert found["reasoning"][0] > 0.8, found
    assert found["reasoning"][0] > max(found["random"])
    assert abs(found["semantic"][0] - 0.5) < 0.15
    assert {(row.pooling, row.head) for row in tables.contrasts} == {("gate", "gated")}


@pytest.mark.parametrize("name", ["width-last", "layers-last", "max"])
def test_a_signal_at_the_top_is_found_there_and_not_in_the_tail(name):
    setting = {"width-last": {"m": M}, "layers-last": {"layer": LAST}, "max": {}}[name]
    found = values(stage(name, "semantic"), **setting)

    assert found["semantic"][0] > 0.8
    assert abs(found["reasoning"][0] - 0.5) < 0.1


def test_a_signal_in_the_folded_tail_is_found_there_and_not_in_the_raw_one():
    found = {
        cell.matrix: cell.value
        for cell in stage("matrix", "folded").cells
        if (cell.features, cell.m, cell.metric) == ("reasoning", M, "within_auroc")
    }

    assert found["folded"] > 0.8 > 0.65 > found["raw"], found


def test_the_sliding_band_peaks_where_the_signal_is():
    bands = {
        cell.offset: cell.value
        for cell in stage("band").cells
        if cell.features == "band" and (cell.metric, cell.pooling) == ("within_auroc", "last")
    }

    # offsets 0, 10, 20 of 24 directions, 4 wide: only the last one holds the signal
    assert list(bands) == [0, 10, 20]
    assert bands[20] > 0.8 > 0.6 > max(bands[0], bands[10])


def test_layers_with_less_of_the_signal_score_lower():
    found = {layer: values(stage("layers-last"), layer=layer)["full"][0] for layer in LAYERS}

    assert found[0] < found[1] < found[2]


def test_more_labels_help_and_all_training_prompts_are_the_last_part():
    tables = stage("learning")
    curve = {
        cell.n_train_prompts: cell.value
        for cell in tables.cells
        if cell.features == "full" and cell.metric == "within_auroc"
    }

    assert list(curve) == [4, 8, 16, 32, 40]  # 60 prompts in 3 folds: 40 to train on
    assert curve[40] > curve[8] + 0.05
    assert tables.facts["learning_sizes_left_out"] == []


def test_a_learning_part_with_one_class_is_left_out_and_said_so():
    made = planted("reasoning", n_prompts=60)
    labels = made.table.labels.copy()
    labels[60:] = 0  # right answers to the first ten prompts only
    made = replace(made, table=replace(made.table, labels=labels))
    tables = made.grid(tiny_plan()).learning()

    left_out = tables.facts["learning_sizes_left_out"]
    kept = {cell.n_train_prompts for cell in tables.cells}
    assert left_out
    assert left_out[0] == 4
    assert kept
    assert not kept & set(left_out)
    assert kept | set(left_out) == {4, 8, 16, 32, 40}


@pytest.mark.parametrize("name", ["width-last", "matrix", "layers-last", "controls", "max"])
def test_labels_that_the_states_know_nothing_of_leave_every_feature_set_at_chance(name):
    made = planted("nowhere", n_prompts=200)
    tables = made.grid(PLAN).stages()[name]()

    # 3 right x 3 wrong answers: variance of an AUROC 7/108 = .065, so .255 / sqrt(200) = .018; a set
    # is one of up to 60 looked at, hence the room of 4 instead of 2.6 for the worst of them.
    gaps = {}
    for cell in tables.cells:
        if cell.metric == "within_auroc":
            gaps.setdefault(cell.features, []).append(abs(cell.value - 0.5) / 0.018)
    assert max(map(max, gaps.values())) < 4, gaps
    assert np.mean([gap > 2.6 for found in gaps.values() for gap in found]) < 0.1


# -------------------------------------------------------------------------------------- primary


def test_the_primary_contrast_is_reasoning_against_the_mean_of_the_draws_by_the_head_of_fit():
    rows = [row for row in stage("primary").contrasts if row.role == "primary"]

    (row,) = rows
    assert (row.first, row.second, row.n_draws) == ("reasoning", "random", 9)
    assert (row.matrix, row.m, row.layer, row.pooling, row.head) == (
        *("raw", M, LAST, "last", "logistic"),
    )
    assert row.low > 0.1
    assert row.rank_p == pytest.approx(0.1)  # before all of 9 draws: 1 / 10
    economy = [row for row in stage("primary").contrasts if row.role == "economy"]
    assert {(row.first, row.second, row.metric) for row in economy} == {
        ("reasoning", "full", "within_auroc"),
        ("reasoning", "full", "best_of_n"),
    }


@pytest.mark.parametrize("name", ["primary", "width-last", "learning", "matrix", "band", "max"])
def test_every_random_subspace_is_as_wide_as_the_subspace_it_stands_against(name):
    cells = stage(name).cells
    widths = {c.m for c in cells if c.features in ("reasoning", "band")}

    random = [c for c in cells if c.features in ("random", "random_singular", "coordinates")]
    assert random
    assert {c.m for c in random} == widths
    assert widths == ({M, 8} if name in ("width-last", "matrix") else {M})


def test_answers_are_written_with_the_scores_behind_the_primary_figures():
    made = planted("reasoning", n_prompts=60)
    tables, s = stage("primary"), made.supervision
    rows = tables.answers

    assert [row.row for row in rows] == list(range(s.n))
    assert [row.n_tokens for row in rows] == made.reading.lengths.tolist()
    assert [row.label for row in rows] == s.labels.tolist()
    for kind in ("full", "reasoning", "random"):
        scores = np.array([getattr(row, kind) for row in rows])
        found = within_prompt_auroc(scores, s.labels, s.prompt_ids).mean
        # one split only, so the scores of the file give the figure of the table
        assert found == pytest.approx(values(tables, head="logistic")[kind][0])


def test_baselines_stand_beside_the_heads():
    made = planted("length", n_prompts=60)
    tables = made.grid(tiny_plan(n_primary_draws=2)).primary()
    names = {cell.features for cell in tables.cells if cell.head == "-"}

    assert names == {"log-probability", "shortest", "longest"}
    short, long = (values(tables)[name][0] for name in ("shortest", "longest"))
    assert short + long == pytest.approx(1)


def test_scores_of_answers_have_mean_0_and_deviation_1_in_each_fold():
    made = planted("reasoning", n_prompts=60)
    folds = made.supervision.folds(PLAN)
    for kind in ("full", "reasoning", "random"):
        scores = np.array([getattr(row, kind) for row in stage("primary").answers])
        for fold in range(PLAN.n_folds):
            assert scores[folds == fold].mean() == pytest.approx(0, abs=1e-9)
            assert scores[folds == fold].std() == pytest.approx(1)


def test_rules_by_length_count_the_judged_tokens_and_not_the_letters():
    made = planted("length", n_prompts=60)
    # The longer a text, the fewer tokens it has here.
    answers = tuple(
        replace(a, response="x" * int(500 - n))
        for a, n in zip(made.table.answers, made.reading.lengths, strict=True)
    )
    made = replace(made, table=replace(made.table, answers=answers))
    found = values(made.grid(tiny_plan(n_primary_draws=2)).primary())
    s = made.supervision
    expected = within_prompt_auroc(-made.reading.lengths.numpy(), s.labels, s.prompt_ids).mean

    assert found["shortest"][0] == pytest.approx(expected)
    assert found["shortest"][0] > 0.7 > 0.3 > found["longest"][0]


def test_best_of_n_of_the_table_is_the_accuracy_of_the_top_scored_answers():
    made = planted("reasoning", n_prompts=60)
    tables, s = stage("primary"), made.supervision
    scores = np.array([row.full for row in tables.answers])
    expected = best_of_n(scores, s.labels, s.prompt_ids)

    assert values(tables, "best_of_n", head="logistic")["full"][0] == pytest.approx(expected.value)
    curve = {row.name: row.value for row in tables.curves if row.k == 6}
    assert curve["full"] == pytest.approx(expected.value)
    assert curve["oracle"] == pytest.approx(expected.oracle)
    single = [row.value for row in tables.curves if row.k == 1]
    assert single == pytest.approx([expected.pass_at_1] * len(single))


def test_split_seeds_repeat_the_primary_contrast_and_are_averaged():
    made = planted("spread", n_prompts=30)
    grid, s = made.grid(tiny_plan(n_split_seeds=2)), made.supervision
    states, tail = grid.states(LAST, "last"), [FeatureSet("reasoning", M, "raw")]
    (measured,), first = grid._logistic(states, tail, Setting("primary", LAST, "last"))
    cell = grid.measure.cells(measured)[0]

    each = [
        logistic_probes(states, tail, s, folds, grid.directions)[0].scores for folds in grid.folds
    ]
    assert not np.array_equal(grid.folds[0], grid.folds[1])
    expected = [within_prompt_auroc(scores, s.labels, s.prompt_ids).mean for scores in each]
    assert cell.value == pytest.approx(np.mean(expected))
    assert expected[0] != expected[1]
    assert np.array_equal(first[0].scores, each[0])


# ------------------------------------------------------------------------------------- controls


def test_controls_hold_scalars_alone_and_added_raw_and_whitened_features_and_the_prompt():
    tables = stage("controls")
    kinds = values(tables)

    names = {kind for kind in kinds if kind.startswith("scalar:")}
    assert len(names) == 5 + 6
    assert {"scalars", "scalars+full", "scalars+reasoning", "scalars+random"} < set(kinds)
    assert {"full", "reasoning", "coordinates", "semantic_all", "white_random"} < set(kinds)
    assert {"prompt", "shuffled"} < set(kinds)
    assert len(kinds["scalars+random"]) == PLAN.n_draws


def test_scalars_that_tell_nothing_add_nothing_and_the_tail_still_shows_beside_them():
    # "semantic": the norm of the tail holds nothing either
    kinds = values(stage("controls", "semantic"))
    assert abs(kinds["scalars"][0] - 0.5) < 0.1
    assert abs(kinds["scalars+reasoning"][0] - 0.5) < 0.12

    kinds = values(stage("controls"))
    assert kinds["scalars+reasoning"][0] > max(kinds["scalars+random"]) > 0.5


def test_the_confidence_contrast_is_scalars_with_reasoning_against_scalars_with_random():
    rows = {
        (row.first, row.second): row
        for row in stage("controls").contrasts
        if row.metric == "within_auroc"
    }

    assert rows["scalars+reasoning", "scalars+random"].low > 0
    assert rows["scalars+reasoning", "scalars+random"].n_draws == PLAN.n_draws
    assert rows["scalars+reasoning", "scalars"].low > 0


def shuffled_cells(made, plan):
    """The check for leaks alone, without the rest of its stage."""
    grid = made.grid(plan)
    return controls._shuffled(grid, grid.states(LAST, "last"))


def test_shuffled_labels_and_the_prompt_are_at_chance_within_prompts():
    shuffled = {
        cell.head: cell
        for cell in shuffled_cells(planted("reasoning", n_prompts=60), replace(PLAN, seed=1))
        if (cell.features, cell.metric) == ("shuffled", "within_auroc")
    }

    assert set(shuffled) == {"ridge", "logistic"}
    for cell in shuffled.values():
        assert cell.low < 0.5 < cell.high
    # The mean of many permutations is known better than one of them, and than that of eight.
    spans = {head: cell.high - cell.low for head, cell in shuffled.items()}
    assert spans["ridge"] < spans["logistic"] < 0.2
    assert stage("controls").facts["n_shuffles"] == {"ridge": 20, "logistic": 8}
    assert values(stage("controls"))["reasoning"][0] > 0.8  # the same features with true labels


def test_the_check_for_leaks_fits_on_labels_that_are_shuffled_and_each_time_otherwise(monkeypatch):
    made = planted("reasoning", n_prompts=20)
    true, groups = made.supervision.labels, made.supervision.table.candidate_sets()
    seen = {"ridge": [], "logistic": []}
    for head in seen:
        real = getattr(controls, f"{head}_probes")

        def watch(states, sets, supervision, *rest, head=head, real=real):
            seen[head].append(supervision.labels)
            return real(states, sets, supervision, *rest)

        monkeypatch.setattr(controls, f"{head}_probes", watch)
    shuffled_cells(made, PLAN)

    assert {head: len(found) for head, found in seen.items()} == {"ridge": 20, "logistic": 8}
    for found in seen.values():
        assert len({labels.tobytes() for labels in found}) == len(found)
        for labels in found:
            assert not np.array_equal(labels, true)
            for rows in (list(group.rows) for group in groups):
                assert sorted(labels[rows]) == sorted(true[rows])


@pytest.mark.slow
def test_shuffles_lie_as_far_apart_as_their_interval_says_and_farther_than_prompts_do():
    # Labels of a prompt train the heads of the other folds: of 60 shuffles the deviation is known to
    # a tenth, and an interval over prompts alone would be a fifth too narrow.
    made = planted("nowhere", n_prompts=60)
    grid, s, values, errors = made.grid(PLAN), made.supervision, [], []
    states, tail = grid.states(LAST, "last"), [FeatureSet("reasoning", M, "raw")]
    for number in range(60):
        labels = s.shuffled(0, number)
        (probe,) = ridge_probes(states, tail, labels, grid.folds[0], PLAN, grid.directions.of)
        statistic = labels.statistics(probe.scores, grid.folds[0])["within_auroc"]
        values.append(point_estimate(statistic))
        errors.append(grid.measure.resamples.values(statistic).std())

    assert abs(np.mean(values) - 0.5) < 3 * np.std(values) / 60**0.5
    assert np.std(values) > 1.08 * np.mean(errors)


@pytest.mark.parametrize("preferences", [False, True])
def test_a_head_that_sees_the_labels_it_is_judged_by_is_called_a_leak(monkeypatch, preferences):
    made = planted("nowhere", n_prompts=20, preferences=preferences)

    def everything(blocks, fold):
        return [Moments.total(part) for part in zip(*blocks, strict=True)]

    def sanity():
        facts = {"n_shuffles": {"ridge": 20, "logistic": 8}}
        tables = AuditTables(facts=facts, cells=shuffled_cells(made, PLAN))
        return next(v.answer for v in verdicts(tables) if v.question == "sanity")

    assert sanity() == "within chance"
    monkeypatch.setattr("retrm.audit.probes._training_blocks", everything)
    assert sanity() == "leaks"


def test_every_draw_beside_the_scalars_is_another_subspace():
    found = values(stage("controls"))["scalars+random"]

    assert len(set(found)) == PLAN.n_draws


def test_a_scalar_alone_is_that_column_and_its_sign_is_learned():
    made = planted("length", n_prompts=60)
    kinds = values(made.grid(PLAN).stages()["controls"]())

    # Shorter is right here: the head turns log length round.
    assert kinds["scalar:log_length"][0] > 0.7
    assert kinds["scalars"][0] > 0.7
    assert abs(kinds["scalar:mean_entropy"][0] - 0.5) < 0.1
    assert kinds["scalar:cut"] == [0.5]  # no answer was cut: constant, all tied


def test_everything_but_the_tail_finds_nothing_where_only_the_tail_holds_it():
    kinds = values(stage("controls"))

    assert abs(kinds["semantic_all"][0] - 0.5) < 0.1
    # All of another subspace of the same width would hold a part of it.
    assert min(kinds["scalars+random"]) > 0.5


# ------------------------------------------------------------------------------------- spectrum


def test_directions_show_separation_energy_and_weight_where_they_were_planted():
    made = planted("reasoning", n_prompts=200)
    tables = made.grid(PLAN).spectrum()
    rows = tables.directions

    assert [row.index for row in rows] == list(range(WIDTH))
    assert all(a.singular_value >= b.singular_value for a, b in itertools.pairwise(rows))
    assert min(row.separation for row in rows[-M:]) > 0.3
    assert max(abs(row.separation) for row in rows[:-M]) < 0.3
    # independent entries: every direction holds 1/24 of the energy
    assert sum(row.energy for row in rows) == pytest.approx(1)
    assert [row.energy for row in rows] == pytest.approx([1 / WIDTH] * WIDTH, rel=0.2)
    assert sum(row.weight for row in rows) == pytest.approx(1)
    assert sum(row.weight for row in rows[-M:]) > 0.85


def test_every_matrix_has_its_spectrum_and_every_pair_its_overlap():
    tables = stage("spectrum")

    assert {row.matrix for row in tables.spectrum} == set(MATRICES)
    assert len(tables.spectrum) == 4 * WIDTH
    own = [row.mean_cos2 for row in tables.overlap if row.first == row.second]
    assert own == pytest.approx([1] * 4)
    assert all(0 <= row.mean_cos2 <= 1 + 1e-6 for row in tables.overlap)


def test_a_gain_with_a_zero_leaves_the_folded_matrices_out_and_the_rest_runs():
    made = planted("reasoning", n_prompts=30)
    gain = made.head.gain.clone()
    gain[5] = 0
    grid = replace(made, head=replace(made.head, gain=gain)).grid(tiny_plan())

    assert grid.matrices == ("raw", "centred")
    assert {cell.matrix for cell in grid.matrix().cells} == {"raw", "centred"}


# ---------------------------------------------------------------------------------- preferences


@pytest.mark.parametrize("name", ["primary", "width-last", "controls", "learning", "max"])
def test_preferences_run_every_stage_with_pair_accuracy(name):
    tables = stage(name, preferences=True)

    metrics = {cell.metric for cell in tables.cells}
    by_length = {"length_matched_pair_accuracy"} if name == "primary" else set()
    assert metrics == {"pair_accuracy", *by_length}
    assert {row.metric for row in tables.contrasts} == {"pair_accuracy", *by_length}
    if name == "controls":
        found = values(tables, "pair_accuracy")
        assert "prompt" not in found  # answers to one prompt share it: nothing to compare
        assert found["scalars+reasoning"][0] > max(found["scalars+random"])
    else:
        found = values(tables, "pair_accuracy")
        assert max(found["reasoning"]) > 0.8


def test_preferences_have_directions_without_separation_and_no_curves():
    tables = stage("spectrum", preferences=True)

    assert all(math.isnan(row.separation) for row in tables.directions)
    assert sum(row.weight for row in tables.directions[-M:]) > 0.8
    assert not stage("primary", preferences=True).curves


# --------------------------------------------------------------------------------------- steps


def test_every_stage_reports_its_steps_up_to_the_last():
    made = planted("nowhere", n_prompts=20)
    few = {"n_primary_draws": 2, "n_draws": 2, "n_split_seeds": 1}
    grid = made.grid(tiny_plan(**few, poolings=("last", "mean")))
    for name in ("width-last", "width-mean", "learning", "matrix", "band", "layers-last"):
        seen = []
        grid.on_step = lambda done, total, seen=seen: seen.append((done, total))
        grid.stages()[name]()
        assert seen, name
        assert seen[-1][0] == seen[-1][1], name
        assert len({total for _, total in seen}) == 1, name  # one count, whatever a step is
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_rows_of_the_reading_that_are_not_judged_take_no_part():
    # Unjudged answers with wild states stand between the judged ones.
    made = planted("reasoning", n_prompts=30)
    labels = np.repeat(made.table.labels, 2)
    labels[1::2] = np.nan
    answers = tuple(a for answer in made.table.answers for a in (answer, answer))
    wild = torch.stack([made.reading.last, 100 * torch.ones_like(made.reading.last)], 1)
    reading = replace(
        made.reading,
        last=wild.reshape(-1, WIDTH),
        lengths=made.reading.lengths.repeat_interleave(2),
        rows=np.arange(len(answers)),
    )
    table = replace(made.table, answers=answers, labels=labels)
    other = replace(made, reading=reading, table=table)
    plan = tiny_plan()

    sets = [FeatureSet("full", WIDTH), FeatureSet("reasoning", M, "raw")]
    grids = [one.grid(plan) for one in (made, other)]
    scores = [grid.ridge(grid.states(LAST, "last"), sets, None) for grid in grids]
    for first, second in zip(*scores, strict=True):
        assert np.array_equal(first.probe.scores, second.probe.scores)
    assert other.supervision.n_unjudged == other.supervision.n
