"""The dry run of an audit: exact tokens and bytes, the fits that are really made, nothing written."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from audit_answers import PLAN, Stop, graded
from audit_planted import LAYERS, WIDTH, planted, tiny_plan
from removals import talking

from retrm.audit.estimate import estimate_audit, stage_fits
from retrm.audit.grid import Grid
from retrm.audit.intervention_plan import InterventionPlan
from retrm.audit.measure import Measure
from retrm.audit.run import audit
from retrm.backbone.fake import FakeBackbone
from retrm.errors import BackboneError, DataError, StoreError
from retrm.features.estimate import TRIAL_TOKENS
from retrm.fitting.fit import FittedHead
from retrm.fitting.ridge import choose_ridge

LAST = replace(PLAN, poolings=("last", "mean"))


class Flat:
    def score(self, features):
        return torch.zeros(features.n_answers)


@pytest.fixture
def made(monkeypatch):
    """Calls of each kind of fit, by the number of features."""
    counts = {"logistic": Counter(), "ridge": Counter(), "gated": Counter()}

    def ridge(blocks, *args, **options):
        counts["ridge"][blocks[0].width] += 1
        return choose_ridge(blocks, *args, **options)

    def head(method, features, *args, **options):
        kind = "gated" if method.name == "elhsr" else "logistic"
        counts[kind][features.values.shape[1]] += 1
        # What is found takes long and changes nothing of the count.
        return FittedHead(Flat(), "", {"lam_is_at_end": False})

    monkeypatch.setattr("retrm.audit.probes.choose_ridge", ridge)
    monkeypatch.setattr("retrm.audit.descriptions.choose_ridge", ridge)
    monkeypatch.setattr("retrm.fitting.fit.fit_head", head)
    for name in ("cells", "more_cells", "contrasts"):  # nothing is fitted there
        monkeypatch.setattr(Measure, name, lambda *args, **options: [])
    return counts


@pytest.mark.parametrize("preferences", [False, True])
def test_every_stage_makes_the_fits_that_are_counted(made, preferences):
    source = planted("spread", n_prompts=36, preferences=preferences)
    plan = tiny_plan(
        poolings=("last", "mean", "max", "gate"), n_primary_draws=4, n_split_seeds=2, n_draws=6
    )
    grid = source.grid(plan)
    backbone = SimpleNamespace(width=WIDTH, n_layers=LAYERS[-1], unembedding=source.head)
    counted = stage_fits(plan, source.supervision, backbone)
    stages = grid.stages()

    assert list(counted) == list(stages)
    for name, make in stages.items():
        before = {kind: count.copy() for kind, count in made.items()}
        tables = make()
        own = {kind: made[kind] - before[kind] for kind in made}
        assert not tables.facts.get("learning_sizes_left_out"), name
        assert own == {
            kind: getattr(counted[name], kind) for kind in ("logistic", "ridge", "gated")
        }, name
        assert counted[name].n == sum(count.total() for count in own.values())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    return audit(graded(), FakeBackbone(), LAST, folder), folder


def test_tokens_and_bytes_are_those_of_the_audit(done):
    tables, folder = done
    estimate = estimate_audit(FakeBackbone(), graded(), LAST)
    stored = sum(path.stat().st_size for path in (folder / "reading").glob("shard-*"))

    assert estimate.n_tokens == tables.facts["n_tokens"]
    assert estimate.disk_bytes <= stored <= 1.02 * estimate.disk_bytes  # and headers of shards
    assert (estimate.n_answers, estimate.n_skipped) == (72, 0)
    assert min(estimate.reading_s, estimate.fitting_s, estimate.tokens_per_s) > 0
    assert (estimate.interventions, estimate.interventions_s) == (None, 0)


def test_a_finished_audit_has_nothing_left_but_its_memory(done):
    whole = estimate_audit(FakeBackbone(), graded(), LAST)
    left = estimate_audit(FakeBackbone(), graded(), LAST, folder=done[1])

    assert (left.n_fits, left.fitting_s) == (0, 0)
    assert (left.disk_bytes, left.reading_s) == (0, 0)
    assert (left.n_tokens, left.memory_bytes) == (whole.n_tokens, whole.memory_bytes)


def test_finished_interventions_are_no_work_and_others_are(tmp_path, monkeypatch):
    monkeypatch.setattr(Grid, "stages", lambda self: {})
    plan = InterventionPlan(layers=("1",), sizes=("4",), n_draws=2, max_prompts=3)
    table, backbone = graded(), talking()
    audit(table, backbone, LAST, tmp_path, interventions=plan)
    finished = estimate_audit(backbone, table, LAST, folder=tmp_path, interventions=plan)
    other = estimate_audit(
        *(backbone, table, LAST), folder=tmp_path, interventions=replace(plan, spare_first=True)
    )

    assert (finished.interventions, finished.interventions_s) == (None, 0)
    # 2 fills x (reasoning, semantic, 2 random, 3 of equal energy)
    assert other.interventions.n_settings == 14
    assert other.interventions_s > 0


def test_finished_stages_are_taken_off(tmp_path):
    def kill(state):
        if state.name == "spectrum":
            raise Stop

    backbone, table = FakeBackbone(), graded()
    with pytest.raises(Stop):
        audit(table, backbone, LAST, tmp_path, on_stage=kill)
    whole = estimate_audit(backbone, table, LAST)
    left = estimate_audit(backbone, table, LAST, folder=tmp_path)

    # primary: full, reasoning, semantic and 2 draws, in 2 folds of each of 3 splits
    assert whole.n_fits - left.n_fits == 5 * 2 * LAST.n_split_seeds


def test_a_dry_run_writes_nothing_and_refuses_the_folder_of_another_audit(done, tmp_path):
    estimate_audit(FakeBackbone(), graded(), LAST, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(StoreError, match="an audit of another plan"):
        estimate_audit(FakeBackbone(), graded(), replace(LAST, seed=1), folder=done[1])


def test_memory_is_that_of_the_states_of_one_layer_or_of_the_sums():
    backbone, table = FakeBackbone(), graded()
    # 72 x 16 states: twice in float32 and twice in float64 = 24 bytes each.
    assert estimate_audit(backbone, table, LAST).memory_bytes == 72 * 16 * 24
    # Sums: 5 folds x 3 inner folds of 16 x 16 float64, twice, beside the states in float32, twice.
    many = replace(LAST, n_folds=5, n_inner_folds=3)
    assert estimate_audit(backbone, table, many).memory_bytes == 72 * 16 * 8 + 2 * 15 * 256 * 8


def test_the_trial_reads_answers_that_fit():
    table = graded()
    long = [replace(answer, response="x" * 5000) for answer in table.answers[:8]]
    table = replace(table, answers=(*long, *table.answers[8:]))
    estimate = estimate_audit(FakeBackbone(), table, LAST, overlong="skip")

    assert (estimate.n_answers, estimate.n_skipped) == (64, 8)
    assert 0 < estimate.tokens_per_s < 1e7
    assert estimate.n_tokens > TRIAL_TOKENS
    every = replace(table, answers=tuple(replace(a, response="x" * 5000) for a in table.answers))
    with pytest.raises(DataError, match="none of which fits the context of fake"):
        estimate_audit(FakeBackbone(), every, LAST, overlong="skip")


def test_interventions_are_counted_and_refused_like_those_of_the_audit():
    table = graded()
    plan = InterventionPlan(layers=("1",), sizes=("4",), n_draws=4, max_prompts=5)
    estimate = estimate_audit(talking(), table, LAST, interventions=plan)
    sampled = estimate_audit(
        *(talking(), replace(table, gold=dict.fromkeys(table.prompt_ids.tolist(), "1")), LAST),
        interventions=replace(plan, n_samples=1, max_new_tokens=4),
        grader="numeric",
    )

    # 2 fills x (reasoning, semantic, 4 random, 3 of equal energy) on 5 of the 9 prompts held out
    assert estimate.interventions.n_settings == 18
    assert (estimate.interventions.n_prompts, estimate.interventions.n_answers) == (5, 10)
    assert estimate.interventions_s > 0
    assert sampled.interventions.sampled_tokens == 19 * 5 * 4
    assert sampled.interventions_s > 0
    with pytest.raises(BackboneError, match="got a FakeBackbone"):
        estimate_audit(FakeBackbone(), table, LAST, interventions=plan)
    with pytest.raises(DataError, match="no reference answer for 5 of 5"):
        estimate_audit(
            *(talking(), table, LAST), interventions=replace(plan, n_samples=1), grader="exact"
        )
