"""The plan of an audit: what is fixed before looking, and what it refuses."""

import json
from dataclasses import replace

import pytest

from retrm.audit.plan import AuditPlan
from retrm.audit.reading import MAX_KINDS, recipes_of
from retrm.errors import RecipeError


def test_the_primary_contrast_reads_five_per_cent_by_at_least_99_draws_unless_told_otherwise():
    plan = AuditPlan()

    # HARP's count: 576 - floor(0.95 * 576) = 576 - 547 = 29.
    assert (plan.m(576), plan.m(3584)) == (29, 180)
    assert plan.n_primary_draws >= 99  # a rank p of .01 needs 99
    assert plan.n_draws >= 20  # fewer make no band


def test_widths_ascend_without_repeats_and_hold_the_primary_one():
    plan = AuditPlan(size="6", widths=("25%", "4", "8"))

    # 25 % of 32 = 8 = the count 8, and the primary width 6 is added.
    assert plan.all_widths(32) == (4, 6, 8)


def test_counts_that_the_model_is_too_narrow_for_are_left_out_and_shares_always_fit():
    assert AuditPlan().all_widths(40) == (2, 10, 16, 20)  # 5 %, 25 %, 16, 50 %; not 64 and 128
    assert AuditPlan(widths=("40",)).all_widths(40) == (2,)  # 40 of 40 is no subspace


def test_a_primary_width_that_the_model_is_too_narrow_for_is_refused():
    with pytest.raises(RecipeError, match="between 1 and 31"):
        AuditPlan(size="64").m(32)


def test_the_quick_plan_is_smaller_and_still_has_a_band():
    quick, whole = AuditPlan.quick(), AuditPlan()

    assert len(quick.widths) < len(whole.widths)
    assert quick.n_primary_draws < whole.n_primary_draws
    assert quick.n_draws >= 20
    assert "last" in quick.poolings


def test_a_plan_survives_json():
    plan = AuditPlan(size="7", poolings=("last", "gate"), seed=3)
    stored = json.loads(json.dumps(plan.as_dict()))

    again = AuditPlan(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
    assert again == plan


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"n_draws": 1}, "n_draws=1; expected 2 or more"),
        ({"n_draws": 10_001}, "n_draws=10001; expected 2 to 10000"),
        ({"n_primary_draws": 10_001}, "n_primary_draws=10001; expected 2 to 10000"),
        ({"n_layer_draws": 10_001}, "n_layer_draws=10001; expected 1 to 10000"),
        ({"n_primary_draws": 0}, "n_primary_draws=0; expected 2"),
        ({"n_layer_draws": 0}, "n_layer_draws=0; expected 1"),
        ({"n_folds": 1}, "n_folds=1; expected 2"),
        ({"n_inner_folds": 1}, "n_inner_folds=1; expected 2"),
        ({"n_split_seeds": 0}, "n_split_seeds=0; expected 1"),
        ({"n_learning_repeats": 0}, "n_learning_repeats=0; expected 1"),
        ({"n_band_steps": 1}, "n_band_steps=1; expected 2"),
        ({"seed": -1}, "seed=-1; expected 0 or more"),
        ({"seed": 2**31}, "expected an integer from 0 to"),
        ({"n_folds": 5.0}, "n_folds=5.0; expected a whole number"),
        ({"n_draws": True}, "n_draws=True; expected a whole number"),
        ({"size": 5}, "size=5; expected text"),
        ({"widths": "16"}, "widths='16'; expected a list of texts"),
        ({"widths": (16,)}, "expected a list of texts"),
        ({"poolings": ("last", "men")}, "Did you mean 'mean'"),
        ({"poolings": ("last", "mean", "last")}, "a pooling is named twice: last, mean, last"),
        ({"poolings": ("mean",)}, "got poolings mean; expected `last` among them"),
        ({"poolings": ()}, "got poolings none; expected `last`"),
        ({"size": "0"}, "above 0"),
        ({"widths": ("5%", "half")}, "reasoning:half"),
        ({"layers": "first"}, "cannot read layers 'first'"),
    ],
)
def test_impossible_plans_are_refused_with_what_was_expected(changes, fragment):
    with pytest.raises(RecipeError) as caught:
        AuditPlan(**changes)

    assert fragment in str(caught.value)


def test_one_reading_keeps_what_the_poolings_of_the_plan_need_and_no_more():
    plan = AuditPlan(size="3", poolings=("last",), n_draws=2)
    assert set(recipes_of(plan, 16)) == {"prompt_end", "scalars", "last"}

    more = recipes_of(replace(plan, poolings=("last", "mean", "max", "gate")), 16)
    kinds = {f"max.{kind}" for kind in MAX_KINDS} | {"max.random.0", "max.random.1"}
    assert set(more) == {"prompt_end", "scalars", "last", "mean", "tokens"} | kinds
    assert more["max.reasoning"].subspace == "reasoning:3"
    assert more["max.random.1"].subspace == "random:3@1"
    assert {recipe.point for recipe in more.values()} == {"post_norm"}


def test_every_recipe_counts_the_end_token_as_the_backbone_does():
    plan = AuditPlan(poolings=("last", "mean", "max", "gate"))

    assert not any(recipe.counts_end for recipe in recipes_of(plan, 64, counts_end=False).values())


def test_a_plan_survives_json_and_refuses_unknown_keys():
    plan = AuditPlan(widths=("8", "5%"), seed=3)

    assert AuditPlan.from_dict(plan.as_dict()) == plan
    with pytest.raises(RecipeError, match=r"unknown plan key 'n_drawz'.*n_draws"):
        AuditPlan.from_dict({"n_drawz": 3})


def test_another_seed_draws_other_subspaces_and_none_twice():
    seeds = {AuditPlan(seed=s).draw_seed(draw) for s in (0, 1, 2) for draw in range(99)}
    most = AuditPlan(n_draws=10_000)  # the last subspace is none of the next plan's
    assert most.draw_seed(most.n_draws - 1) < AuditPlan(seed=1).draw_seed(0)

    assert len(seeds) == 3 * 99
    assert AuditPlan(seed=0).draw_seed(7) == 7
