"""What interventions report: paired with the unchanged model and with random subspaces."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from removals import (
    NO_FINGERPRINT,
    L,
    basis_of,
    n_hooks,
    states,
    talking,
)

from retrm.audit.intervene import TrainedScore, measure_interventions
from retrm.audit.intervention_plan import InterventionPlan, layer_recipe
from retrm.audit.intervention_work import _chosen_rows, estimate_interventions
from retrm.audit.removal import Change, removed
from retrm.backbone.batching import build, plan_batches
from retrm.backbone.fake import FakeBackbone
from retrm.backbone.locate import logits_of
from retrm.errors import (
    BackboneError,
    DataError,
    FingerprintError,
    LabelError,
    RecipeError,
    ScoreError,
)
from retrm.features.read import render_all
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features
from retrm.records import Answer, AnswerTable


def table_of(n_prompts: int = 6, n_answers: int = 4) -> AnswerTable:
    answers = [
        Answer.of(f"What is {p} + {p}?", f"{'It is ' * (a + 1)}{2 * p + a % 2}.")
        for p, a in itertools.product(range(n_prompts), range(n_answers))
    ]
    labels = np.array([float(a % 2 == 0) for _ in range(n_prompts) for a in range(n_answers)])
    gold = {answer.prompt_id: str(2 * (row // n_answers)) for row, answer in enumerate(answers)}
    return AnswerTable(tuple(answers), labels, gold=gold)


def linear_score(**options: object) -> TrainedScore:
    weights = torch.randn(16, generator=torch.Generator().manual_seed(1))
    recipe = Recipe(layers="2", point="residual", pooling="mean")
    return TrainedScore(recipe, lambda features: features.values.float() @ weights, **options)


def measured(backbone, table=None, *, score=None, n_resamples: int = 50, **plan: object) -> list:
    # Three draws and one fill, where neither is what a test is about.
    given = {"layers": ("1", "post_norm"), "sizes": ("4",), "n_draws": 3, "fills": ("zero",)}
    made = InterventionPlan(**{**given, "max_answers": 8, **plan})
    return list(
        measure_interventions(
            backbone,
            table if table is not None else table_of(),
            plan=made,
            score=score,
            grader="numeric",
            n_resamples=n_resamples,
        )
    )


def only(rows, **wanted):
    (row,) = [r for r in rows if all(getattr(r, name) == v for name, v in wanted.items())]
    return row


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def rows(request):
    return measured(talking(request.param), score=linear_score(), n_samples=2, max_new_tokens=4)


def test_each_setting_has_every_measure_for_none_reasoning_semantic_and_three_draws(rows):
    own = [r for r in rows if r.removed != "random_energy"]
    found = {(r.layers, r.removed, r.m, r.draw, r.measure) for r in own}
    parts = [("none", 0, 0), ("reasoning", 4, 0), ("semantic", 4, 0)]
    parts += [("random", 4, draw) for draw in range(3)]
    measures = "log_probability", "greedy_agreement", "energy_removed"
    measures += "score_shift", "within_auroc", "accuracy"

    assert found == {
        (layers, *part, measure)
        for layers in ("1", "post_norm")
        for part in parts
        for measure in measures
    }
    assert len(own) == len(found)
    # Three more draws at each of the layers, of sizes of their own.
    of_energy = {(r.layers, r.draw, r.measure) for r in rows if r.removed == "random_energy"}
    assert of_energy == set(itertools.product(("1", "post_norm"), range(3), measures))
    assert len(rows) - len(own) == len(of_energy)


def test_the_unchanged_model_agrees_with_itself_and_has_no_difference(rows):
    none = {r.measure: r for r in rows if r.removed == "none" and r.layers == "1"}

    assert all(
        np.isnan([r.difference, r.difference_low, r.difference_high]).all() for r in none.values()
    )
    assert (none["greedy_agreement"].value, none["greedy_agreement"].low) == (1.0, 1.0)
    assert (none["score_shift"].value, none["energy_removed"].value) == (0.0, 0.0)


def test_differences_are_those_of_the_values(rows):
    for row in rows:
        if row.removed != "none":
            none = only(rows, layers=row.layers, removed="none", measure=row.measure)
            assert row.difference == pytest.approx(row.value - none.value, abs=1e-12)
            assert row.difference_low <= row.difference <= row.difference_high
            assert (row.n, row.low <= row.value <= row.high) == (none.n, True)


def test_a_score_read_below_the_change_does_not_move_while_the_predictions_do(rows):
    # The score reads the residual of layer 2: below post_norm, above layer 1.
    for part in ("reasoning", "semantic"):
        shift = only(rows, layers="post_norm", removed=part, measure="score_shift")
        assert (shift.value, shift.difference_low, shift.difference_high) == (0.0, 0.0, 0.0)
        changed = only(rows, layers="post_norm", removed=part, measure="log_probability")
        assert abs(changed.difference) > 1e-4
        assert only(rows, layers="1", removed=part, measure="score_shift").value > 1e-3


def test_rows_say_how_and_where_the_component_was_removed():
    found = measured(talking(), table_of(2), fills=("mean",), spare_first=True, sizes=("3", "6"))

    assert {(r.fill, r.spare_first) for r in found} == {("mean", True)}
    assert {(r.layers, r.point) for r in found} == {("1", "residual"), ("post_norm", "post_norm")}


def test_effects_are_compared_with_the_mean_effect_of_random_subspaces_of_their_size():
    found = measured(talking(), score=linear_score(), layers=("1",), sizes=("3", "6"))
    effects = [r for r in found if r.removed in ("reasoning", "semantic")]

    for row in effects:
        randoms = [
            r.difference
            for r in found
            if (r.removed, r.m, r.measure) == ("random", row.m, row.measure)
        ]
        assert row.minus_random == pytest.approx(row.difference - np.mean(randoms), abs=1e-9)
        assert row.minus_random_low <= row.minus_random <= row.minus_random_high
        assert np.isnan(row.random_p) == (row.measure == "energy_removed")
    for row in found:
        if row.removed in ("none", "random", "random_energy"):
            assert np.isnan([row.minus_random, row.random_p, row.random_holm_p]).all()
    # Holm: the smallest of k p-values is multiplied by k. Two sizes x two parts x four measures.
    p_values = [r.random_p for r in effects if r.measure != "energy_removed"]
    adjusted = [r.random_holm_p for r in effects if r.measure != "energy_removed"]
    assert len(p_values) == 16
    assert min(adjusted) == pytest.approx(min(1.0, 16 * min(p_values)))


@pytest.mark.parametrize("fill", ["zero", "mean"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_control_of_equal_energy_removes_about_the_energy_of_the_reasoning_subspace(
    family, fill
):
    layers = ("1", "all", "post_norm")
    found = measured(talking(family), table_of(3), layers=layers, sizes=("8",), fills=(fill,))

    for place in layers:
        own = only(found, layers=place, removed="reasoning", measure="energy_removed").value
        for draw in range(3):
            row = only(
                found, layers=place, removed="random_energy", draw=draw, measure="energy_removed"
            )
            assert row.value == pytest.approx(own, rel=0.2)


def test_sizes_that_come_to_the_same_count_are_measured_once():
    # 25 % of 16 directions are 16 - 12 = 4.
    found = measured(talking(), table_of(2), layers=("1",), sizes=("4", "25%"))

    assert only(found, removed="reasoning", measure="log_probability").m == 4


@pytest.mark.parametrize("layers", ["1", "all"])
def test_the_energies_of_all_singular_directions_add_up_to_one(layers):
    # Width 16: 8 reasoning and 8 semantic directions are all. A LayerNorm has 15 live directions and
    # does not see the mean, so 15 reasoning directions hold all that is seen.
    both = measured(talking("llama"), table_of(2), layers=(layers,), sizes=("8",))
    live = measured(talking("gpt2"), table_of(2), layers=(layers,), sizes=("15",))

    tail, top, whole = (
        only(found, removed=part, measure="energy_removed").value
        for found, part in ((both, "reasoning"), (both, "semantic"), (live, "reasoning"))
    )
    assert tail + top == pytest.approx(1.0, abs=1e-5)
    assert min(tail, top) > 0.01
    assert whole == pytest.approx(1.0, abs=1e-5)


def test_figures_are_those_of_a_plain_reading_under_removal():
    backbone, table = talking(), table_of(3)
    found = measured(backbone, table, layers=("1-2",), score=linear_score())
    basis = basis_of(backbone, "semantic", 4)
    log_p, agree = {}, {}
    for name in ("none", "semantic"):
        for row, item in enumerate(render_all(backbone, table.answers).rendered):
            (plan,) = plan_batches([item], tokens_per_batch=4096)
            laid = build(plan, [item], pad_id=0)
            if name == "none":
                top = states(backbone, laid)[L, "post_norm"][0]
            else:
                with removed(backbone, [1, 2], Change(basis)):
                    top = states(backbone, laid)[L, "post_norm"][0]
            before = logits_of(top[item.start - 1 : item.stop - 1], backbone.unembedding)
            own = before.log_softmax(1).gather(
                1, torch.tensor(item.ids[item.start : item.stop])[:, None]
            )
            log_p[name, row], agree[name, row] = own.mean().item(), before.argmax(1)
    n = len(table)

    for name in ("none", "semantic"):
        row = only(found, removed=name, measure="log_probability")
        assert row.value == pytest.approx(np.mean([log_p[name, i] for i in range(n)]), abs=1e-5)
        assert row.n == n
    same = torch.cat([agree["none", i] == agree["semantic", i] for i in range(n)])
    row = only(found, removed="semantic", measure="greedy_agreement")
    assert row.value == pytest.approx(same.float().mean().item(), abs=1e-6)
    assert (row.n, same.all().item()) == (len(same), False)


def test_a_range_means_its_layers_and_text_is_kept_as_typed():
    assert layer_recipe("1-3").layer_numbers(5) == (1, 2, 3)
    assert layer_recipe("0, 2-3").layer_numbers(5) == (0, 2, 3)
    assert layer_recipe("post_norm").point == "post_norm"
    assert layer_recipe("last").wanted(5) == ((5, "residual"),)
    assert {r.layers for r in measured(talking(), table_of(2), layers=("0-1",))} == {"0-1"}


def test_removing_what_the_mean_fill_puts_back_leaves_less_change_than_zero():
    backbone = talking()
    zero = measured(backbone, layers=("1",), score=linear_score())
    mean = measured(backbone, layers=("1",), fills=("mean",), score=linear_score())

    for part in ("reasoning", "semantic"):
        less, more = (only(r, removed=part, measure="energy_removed") for r in (mean, zero))
        assert less.value < more.value
    none = [only(r, removed="none", measure="log_probability").value for r in (mean, zero)]
    assert none[0] == none[1]


def test_sparing_the_first_token_changes_the_figures():
    plain, spared = (
        measured(talking(), table_of(2), layers=("1",), spare_first=spare)
        for spare in (False, True)
    )
    first, second = (
        only(r, removed="semantic", measure="log_probability").value for r in (plain, spared)
    )
    assert first != second


def test_the_same_seed_gives_the_same_rows_and_the_model_is_left_as_it_was():
    backbone = talking()
    at_first = n_hooks(backbone)
    options = {"layers": ("last",), "n_samples": 1, "max_new_tokens": 3}
    first, second = (measured(backbone, table_of(3), **options) for _ in range(2))

    assert list(map(repr, first)) == list(map(repr, second))  # NaN is not itself
    assert n_hooks(backbone) == at_first


def test_an_arm_that_changes_nothing_has_a_difference_of_exactly_zero(monkeypatch):
    # With the change switched off every setting is `none`, and `none` minus `none` must vanish.
    monkeypatch.setattr(Change, "apply", lambda self, layer, states: states)
    found = measured(talking(), table_of(3), score=linear_score(), n_samples=1, max_new_tokens=3)

    for row in found:
        if row.removed != "none" and row.measure != "energy_removed":
            gap = row.difference, row.difference_low, row.difference_high
            assert gap == (0.0, 0.0, 0.0)


def test_accuracy_is_that_of_the_new_answers(monkeypatch):
    answers = iter([True, False, True, True] * 100)
    for name in ("intervene", "intervention_work"):
        monkeypatch.setattr(f"retrm.audit.{name}.is_correct", lambda *_: next(answers))
    # Two prompts are checked before (True, False), then 2 prompts x 2 samples cycle through
    # (True, True, True, False): 3 of 4 are right.
    found = measured(talking(), table_of(2), layers=("1",), n_samples=2, max_new_tokens=2)
    row = only(found, removed="none", measure="accuracy")

    assert (row.value, row.n) == (0.75, 4)


def test_preferences_without_labels_have_no_auroc():
    table = replace(table_of(2), labels=np.full(8, np.nan))
    found = measured(talking(), table, score=linear_score(), layers=("1",))

    assert {r.measure for r in found} == {
        "log_probability", "greedy_agreement", "energy_removed", "score_shift"
    }  # fmt: skip


def test_unlabelled_answers_take_no_part_in_the_auroc_and_the_count_says_so():
    table = table_of(2)
    table.labels[:2] = np.nan
    found = measured(talking(), table, score=linear_score(), layers=("1",))

    # Prompt 1 keeps one right and one wrong answer: 1 pair; prompt 2 has 2 x 2.
    assert only(found, removed="none", measure="within_auroc").n == 5
    assert only(found, removed="none", measure="log_probability").n == 8


def test_the_estimate_is_what_the_progress_ends_at():
    backbone, table, told = talking(), table_of(5), []
    plan = InterventionPlan(
        layers=("1", "post_norm"), sizes=("4",), max_prompts=3, max_answers=2, n_draws=5,
        n_energy_draws=1, n_samples=2, max_new_tokens=4,
    )  # fmt: skip
    measure_interventions(
        backbone,
        table,
        plan=plan,
        grader="numeric",
        n_resamples=20,
        on_progress=lambda done, total: told.append((done, total)),
    )
    estimate = estimate_interventions(backbone, table, plan=plan, grader="numeric")

    # 2 fills x 2 layers x (reasoning, semantic, 5 random, 1 of equal energy) = 32; with `none` 33;
    # and one reading for energies and means.
    assert (estimate.n_settings, estimate.n_readings) == (32, 34)
    assert (estimate.n_prompts, estimate.n_answers, estimate.n_skipped) == (3, 6, 0)
    assert estimate.sampled_tokens == 33 * 3 * 2 * 4
    assert told[-1] == (estimate.n_tokens, estimate.n_tokens)
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(told))


def test_over_long_answers_are_skipped_and_counted():
    table = table_of(2)
    long = Answer(table.answers[0].prompt, "very " * 100, table.answers[0].prompt_id)
    table = AnswerTable((*table.answers, long), np.append(table.labels, 0.0))
    plan = InterventionPlan(layers=("1",), sizes=("4",), n_draws=2, max_answers=8)
    estimate = estimate_interventions(talking(), table, plan=plan, overlong="skip")
    found = measure_interventions(
        talking(), table, plan=plan, overlong="skip", n_resamples=20, score=linear_score()
    )
    none = [row for row in found if (row.removed, row.measure) == ("none", "log_probability")]

    assert (estimate.n_answers, estimate.n_skipped) == (8, 1)
    assert [row.n for row in none] == [8, 8]  # the same row beside either fill


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 99))
def test_the_bounded_subset_keeps_its_bounds_and_file_order(max_prompts, max_answers, seed):
    table = table_of(6, 4)
    plan = InterventionPlan(max_prompts=max_prompts, max_answers=max_answers)
    chosen = _chosen_rows(table, plan, seed)
    sizes = [len(group.rows) for group in table.take(chosen).candidate_sets()]

    assert chosen == sorted(set(chosen))
    assert len(sizes) == min(max_prompts, 6)
    assert set(sizes) == {min(max_answers, 4)}


def test_a_plan_survives_json_and_refuses_unknown_keys():
    plan = InterventionPlan(layers=("0-2", "post_norm"), fills=("zero",), temperature=1)

    assert InterventionPlan.from_dict(json.loads(json.dumps(plan.as_dict()))) == plan
    with pytest.raises(RecipeError, match=r"unknown \[interventions\] key 'fill'.*'fills'"):
        InterventionPlan.from_dict({"fill": "zero"})


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        ({"n_draws": 1}, "got n_draws=1; expected 2 or more"),
        ({"n_draws": 5001}, "got n_draws=5001; expected 2 to 5000"),
        ({"n_energy_draws": 5001}, "got n_energy_draws=5001; expected 1 to 5000"),
        ({"n_draws": 19.0}, "got n_draws=19.0; expected a whole number"),
        ({"n_energy_draws": 0}, "got n_energy_draws=0; expected 1 or more"),
        ({"n_samples": 2.5}, "got n_samples=2.5; expected a whole number"),
        ({"max_answers": True}, "got max_answers=True; expected a whole number"),
        ({"max_prompts": 0}, "got max_prompts=0"),
        ({"temperature": "hot"}, "got temperature='hot'; expected a number from 0"),
        ({"temperature": math.nan}, "got temperature=nan"),
        ({"top_p": 1.5}, "got top_p=1.5; expected a number from 0 to 1"),
        ({"spare_first": "no"}, "got spare_first='no'; expected true or false"),
        ({"fills": ("zero", "men")}, "Did you mean 'mean'?"),
        ({"fills": "zero"}, "got fills='zero'; expected a list"),
        ({"layers": (8, 16)}, "got layers=(8, 16); expected a list"),
        ({"layers": ()}, "got layers=()"),
        ({"layers": "last"}, "expected a list"),
        ({"layers": ("last", "last")}, "different texts"),
        ({"layers": ("lst",)}, "cannot read layers 'lst'"),
        ({"layers": ("3-1",)}, "cannot read layers '3-1'"),
        ({"sizes": ("5 percent",)}, "5 percent"),
    ],
)
def test_impossible_plans_are_refused(options, telling):
    with pytest.raises(RecipeError) as caught:
        InterventionPlan(**options)
    assert telling in str(caught.value)


def test_both_fills_stand_side_by_side_and_are_corrected_together():
    options = {"layers": ("1",), "score": linear_score()}
    both = measured(talking(), fills=("zero", "mean"), **options)
    alone = [measured(talking(), fills=(fill,), **options) for fill in ("zero", "mean")]

    def plain(rows):  # all but the correction, in which NaN is itself
        return [repr(replace(row, random_holm_p=0.0)) for row in rows]

    assert plain(both) == plain([*alone[0], *alone[1]])
    # Holm: the smallest p-value is multiplied by how many there are. 2 fills x 2 parts x 4 measures
    # (energy_removed has none).
    judged = [row for row in both if not np.isnan(row.random_p)]
    least = min(judged, key=lambda row: row.random_p)
    assert len(judged) == 16
    assert least.random_holm_p == pytest.approx(min(1.0, 16 * least.random_p))


def test_answers_of_a_prompt_are_taken_right_and_wrong_in_turn():
    table = table_of(6, 6)
    table.labels[:] = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0] * 6  # at random: both kinds in 1 of 3 prompts
    chosen = table.take(_chosen_rows(table, InterventionPlan(max_answers=2), seed=0))

    assert [sorted(chosen.labels[list(g.rows)]) for g in chosen.candidate_sets()] == [
        [0.0, 1.0]
    ] * 6


def test_more_directions_than_there_are_are_refused_by_the_estimate():
    plan = InterventionPlan(sizes=("16",))
    with pytest.raises(RecipeError, match="expected between 1 and 15"):
        estimate_interventions(talking(), table_of(2), plan=plan)


def test_first_tokens_that_cannot_be_told_are_found_before_the_model_works():
    backbone = talking()
    backbone.located = replace(backbone.located, takes_positions=False)
    plan = InterventionPlan(layers=("1",), sizes=("4",), spare_first=True)
    with pytest.raises(RecipeError, match="spare_first=True, but llama"):
        estimate_interventions(backbone, table_of(2), plan=plan)


def test_a_backbone_that_is_no_transformers_model_is_refused_by_the_estimate():
    with pytest.raises(BackboneError, match="got a FakeBackbone"):
        estimate_interventions(FakeBackbone(), table_of(2), plan=InterventionPlan())


def test_layers_the_model_does_not_have_are_refused_by_measuring_and_estimating_alike():
    plan = InterventionPlan(layers=("2-9",), sizes=("4",))
    for work in (measure_interventions, estimate_interventions):
        with pytest.raises(RecipeError, match="layer 4 does not exist"):
            work(talking(), table_of(2), plan=plan)


def test_prompts_the_score_was_fitted_on_are_refused():
    table = table_of(2)
    score = linear_score(train_prompts={table.answers[0].prompt_id}, name="probe")
    with pytest.raises(DataError, match="probe was fitted on 1 of the 2 prompts"):
        measured(talking(), table, score=score)


def test_a_score_that_was_fitted_on_another_backbone_is_refused():
    backbone, other = talking(), replace(NO_FINGERPRINT, unembedding="other")
    with pytest.raises(FingerprintError, match="another LM head or final norm"):
        measured(backbone, table_of(2), score=linear_score(fingerprint=other))
    known = linear_score(fingerprint=backbone.fingerprint)
    assert measured(backbone, table_of(2), layers=("1",), score=known)


def test_labels_without_a_mixed_prompt_are_refused_before_the_model_works():
    table = replace(table_of(2), labels=np.ones(8))
    backbone = talking()
    backbone.forward = None  # would fail if it were called
    with pytest.raises(LabelError, match="none with both a right and a wrong"):
        measured(backbone, table, score=linear_score())
    with pytest.raises(LabelError, match="none with both a right and a wrong"):
        estimate_interventions(backbone, table, plan=InterventionPlan(), is_scored=True)


@pytest.mark.parametrize(
    ("changes", "options", "error", "telling"),
    [
        ({"gold": {}}, {}, DataError, "no reference answer for 2 of 2 prompts"),
        ({}, {"grader": None}, DataError, "without a grader"),
        ({}, {"grader": "nmeric"}, DataError, "Did you mean 'numeric'?"),
        ({}, {"temperature": 0.0}, RecipeError, "temperature=0 with n=2"),
    ],
)
def test_new_answers_that_cannot_be_drawn_or_graded_are_refused_before_the_model_works(
    changes, options, error, telling
):
    backbone = talking()
    backbone.forward = None
    grader = options.get("grader", "numeric")
    options = {name: value for name, value in options.items() if name != "grader"}
    plan = InterventionPlan(layers=("1",), sizes=("4",), n_samples=2, max_new_tokens=4, **options)
    with pytest.raises(error) as caught:
        measure_interventions(backbone, replace(table_of(2), **changes), plan=plan, grader=grader)
    assert telling in str(caught.value)
    with pytest.raises(error) as caught:
        estimate_interventions(backbone, replace(table_of(2), **changes), plan=plan, grader=grader)
    assert telling in str(caught.value)


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="empty table"):
        measured(talking(), AnswerTable((), np.zeros(0)))


def test_a_score_that_never_differs_is_refused():
    score = TrainedScore(Recipe(), lambda features: np.ones(features.n_answers), name="flat")
    with pytest.raises(ScoreError, match="got the same score 1 for all"):
        measured(talking(), table_of(2), score=score)


def test_a_score_that_is_not_finite_is_refused_by_name():
    def broken(features: Features) -> np.ndarray:
        return np.full(features.n_answers, np.nan)

    with pytest.raises(ScoreError, match="broken scored"):
        measured(talking(), table_of(2), score=TrainedScore(Recipe(), broken, name="broken"))
