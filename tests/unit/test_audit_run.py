"""An audit from start to finish: it finds what was planted, resumes, repeats, and refuses."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from audit_answers import PLAN, Stop, graded
from audit_planted import answers_to, contrast, plain_rows, planted, tiny_plan
from removals import talking

import retrm
from retrm.audit.directions import FeatureSet
from retrm.audit.folder import check_folder
from retrm.audit.grid import Grid
from retrm.audit.intervention_plan import InterventionPlan
from retrm.audit.measure import Setting
from retrm.audit.reading import read_answers
from retrm.audit.run import StageProgress, audit, intervene_on, intervention_stage
from retrm.audit.supervision import Supervision
from retrm.audit.tables import ROW_TYPES, AuditTables
from retrm.backbone.fake import FakeBackbone
from retrm.errors import (
    BackboneError,
    DataError,
    LabelError,
    OutputError,
    OverlongError,
    RecipeError,
    StoreError,
)
from retrm.files import check_writable
from retrm.fitting.convex import choose_lambda
from retrm.records import Answer, Pair


@pytest.fixture(scope="module", autouse=True)
def few_strengths():
    """Three penalties of nine to choose from: what is chosen is no matter here, and a third of the time."""
    few = partial(choose_lambda, grid=(1e-1, 1e1, 1e3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrm.fitting.fit.choose_lambda", few)
        yield


# ---------------------------------------------------------------- the audit itself, checked


# Of narrow random subspaces one in twenty misses a planted direction; of 10 of 24 none does, so that all
# of them can do better than a subspace that holds nothing.
WIDE = {"size": "10", "widths": ("10",)}


def primary_of(where, seed=0, *, changes=None, **options):
    made = planted(where, seed=seed, **options)
    # Fewer than 39 draws cannot be beaten at 2.5 % a side.
    return made.audit(tiny_plan(n_primary_draws=39, **(changes or {})))


def test_a_signal_in_the_last_singular_directions_helps():
    tables = primary_of("reasoning")
    row = contrast(tables, "primary")

    assert answers_to(tables, "specificity") == {"helps"}
    assert "worse than full" not in answers_to(tables, "economy")
    assert row.low > 0.15
    assert row.rank_p == 1 / 40  # before all of 39 draws


def test_a_signal_in_the_first_singular_directions_hurts():
    tables = primary_of("semantic", changes=WIDE)
    row = contrast(tables, "primary")

    assert answers_to(tables, "specificity") == {"hurts"}
    assert answers_to(tables, "economy") == {"worse than full"}
    assert row.rank_p == 1  # behind all of 39 draws


@pytest.mark.parametrize(("where", "seed"), [("random", 0), ("spread", 2)])
def test_a_signal_in_a_random_subspace_is_no_claim_for_the_tail(where, seed):
    tables = primary_of(where, seed)

    assert answers_to(tables, "specificity") <= {"undecided", "no better than random"}
    assert answers_to(tables, "economy") == {"worse than full"}
    assert 0.025 < contrast(tables, "primary").rank_p < 1 - 0.025


def test_labels_that_the_states_know_nothing_of_are_no_claim(monkeypatch):
    monkeypatch.setattr("retrm.fitting.fit.choose_lambda", choose_lambda)  # of all nine penalties
    tables = planted("nowhere", n_prompts=80).audit(tiny_plan(n_primary_draws=19))

    assert answers_to(tables, "specificity") <= {"undecided", "no better than random"}
    assert answers_to(tables, "economy") <= {"undecided", "within margin"}
    # se of a within-prompt AUROC over 80 prompts of 3 right x 3 wrong: .255 / sqrt(80) = .028
    for cell in tables.cells:
        if cell.metric == "within_auroc" and cell.head == "logistic":
            assert abs(cell.value - 0.5) < 2.6 * 0.028 + 0.02, cell.features


def test_over_many_random_subspaces_the_rank_of_the_tail_is_that_of_any_other_draw():
    # The interval over prompts knows nothing of chance in the draws: the rank does.
    plan, ranks = tiny_plan(), []
    for seed in range(24):
        made = planted("random", n_prompts=40, seed=seed)
        grid = made.grid(plan)
        sets = [FeatureSet("reasoning", grid.m, "raw")]
        sets += [FeatureSet("random", grid.m, "raw", draw) for draw in range(9)]
        found = grid.ridge(grid.states(2, "last"), sets, Setting("width", 2, "last"))
        row = grid.measure.contrasts("exploratory", found[0], found[1:], is_random=True)[0]
        ranks.append(row.rank_p)

    # uniform on .1, .2, ..., 1: mean .55, deviation .287, so the mean of 24 is good to .059
    assert abs(np.mean(ranks) - 0.55) < 2.6 * 0.059
    assert 0.15 < np.std(ranks) < 0.4


@pytest.mark.parametrize(("where", "answer"), [("reasoning", "helps"), ("semantic", "hurts")])
def test_preferences_give_the_same_verdicts(where, answer):
    made = planted(where, n_prompts=400, preferences=True, strength=4.0)
    changes = WIDE if where == "semantic" else {}
    tables = made.audit(tiny_plan(n_primary_draws=39, **changes))

    assert tables.facts["task"] == "preferences"
    assert tables.facts["metric"] == contrast(tables, "primary").metric == "pair_accuracy"
    assert answers_to(tables, "specificity") == {answer}


def test_all_stages_together_keep_their_rows_and_correct_over_all_of_them():
    made, plan = planted("reasoning", n_prompts=40), tiny_plan(n_primary_draws=2, n_draws=2)
    grid = made.grid(plan)
    names = ("width-last", "matrix", "layers-last")
    together = made.audit(plan, only=names)
    alone = [grid.stages()[name]() for name in names]

    assert len(together.cells) == sum(len(tables.cells) for tables in alone)
    # Holm's smallest p-value is the smallest of all x the number of claims in that metric.
    raw = [row.p for tables in alone for row in tables.contrasts if row.metric == "within_auroc"]
    corrected = [row.holm_p for row in together.contrasts if row.metric == "within_auroc"]
    assert len(corrected) == len(raw)
    assert min(corrected) == pytest.approx(min(1, min(raw) * len(raw)))


# -------------------------------------------------------------------- from answers to files


def preferred():
    table = graded()
    pairs = tuple(Pair(i, i + 1) for i in range(0, len(table), 2))
    return replace(table, labels=np.full(len(table), math.nan), pairs=pairs)


@pytest.fixture(scope="module")
def backbone():
    return FakeBackbone()


@pytest.fixture(scope="module")
def done(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    return audit(graded(), backbone, PLAN, folder, data="toy"), folder


def test_an_audit_leaves_every_table_and_its_summary_in_the_folder(done):
    tables, folder = done

    for name in set(ROW_TYPES) - {"interventions"}:
        assert getattr(tables, name), name
        assert (folder / f"{name}.parquet").is_file(), name
        assert (folder / f"{name}.csv").is_file(), name
    newest = max(folder.glob("*.*"), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "audit.json"
    assert plain_rows(AuditTables.load(folder)) == plain_rows(tables)


def test_facts_say_what_was_audited(done, backbone):
    facts = done[0].facts
    table = graded()

    assert (facts["model"], facts["data"], facts["task"]) == ("fake", "toy", "graded")
    assert (facts["n_answers"], facts["n_prompts"], facts["n_pairs"]) == (72, 18, 0)
    assert facts["n_mixed"] == 18
    assert facts["n_cut"] == sum(answer.finished is False for answer in table.answers) > 0
    assert (facts["width"], facts["m"], facts["n_layers"]) == (16, 4, 3)
    assert facts["pass_at_1"] == pytest.approx(table.labels.mean())
    assert facts["oracle"] == 1
    assert facts["data_counts"] == {"read": 72}
    assert facts["settings"] == PLAN.as_dict()
    assert json.loads(json.dumps(dict(facts))) == facts
    assert facts["n_tokens"] > 0
    assert facts["reading_s"] > 0


def test_sweeps_layers_poolings_and_energies_are_all_there(done):
    tables, _ = done

    assert {cell.sweep for cell in tables.cells} == {
        *("primary", "controls", "width", "pooling", "learning", "matrix", "band", "layer"),
    }
    assert {cell.layer for cell in tables.cells if cell.sweep == "layer"} == {0, 1, 2, 3}
    assert {cell.pooling for cell in tables.cells} == {"-", "last", "mean", "max", "prompt_end"}
    assert {row.token_kind for row in tables.energy} == {
        *("first", "early", "prompt", "content", "punctuation", "end"),
    }
    firsts = {row.n_tokens for row in tables.energy if row.token_kind == "first"}
    assert firsts == {18}  # one a prompt, however many answers it has
    assert any(cell.metric == "finished_within_auroc" for cell in tables.cells)
    assert any(cell.features == "majority" for cell in tables.cells)
    assert all(math.isfinite(cell.value) for cell in tables.cells)


class Halved(FakeBackbone):
    """The same model in another precision."""

    dtype = torch.bfloat16


def never(progress):
    raise AssertionError("the model ran")


def test_a_second_call_reads_nothing_and_gives_the_same_tables(done, backbone):
    (tables, folder), seen = done, []
    again = audit(
        *(graded(), backbone, PLAN, folder), data="toy", on_reading=never, on_stage=seen.append
    )

    assert plain_rows(again) == plain_rows(tables)
    n_stages = len(list(folder.glob("stages/*/audit.json")))
    assert [(state.number, state.n_stages) for state in seen] == [
        (number, n_stages) for number in range(1, n_stages + 1)
    ]
    assert seen[0] == StageProgress("primary", 1, n_stages, 0, 1)
    assert again.facts == tables.facts  # seconds too: they are those of the work, whenever it was


def test_a_fresh_audit_with_the_same_seed_is_the_same_to_the_last_bit(done, backbone, tmp_path):
    again = audit(graded(), FakeBackbone(), PLAN, tmp_path / "b", data="toy")

    assert plain_rows(again) == plain_rows(done[0])


def test_an_audit_killed_in_the_reading_and_between_stages_goes_on_to_the_same_tables(
    done, backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr("retrm.store.shards.SHARD_BYTES", 1)

    def kill_reading(progress):
        if progress.answers_done > 30:
            raise Stop

    def kill_stages(state):
        if state.name == "learning":
            raise Stop

    folder = tmp_path / "a"
    with pytest.raises(Stop):
        audit(graded(), backbone, PLAN, folder, data="toy", on_reading=kill_reading)
    with pytest.raises(Stop):
        audit(graded(), backbone, PLAN, folder, data="toy", on_stage=kill_stages)
    assert not (folder / "audit.json").exists()
    finished = {path.parent.name for path in folder.glob("stages/*/audit.json")}
    assert finished == {"primary", "spectrum", "controls", "width-last", "width-mean"}

    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/audit.json")}
    tables = audit(graded(), backbone, PLAN, folder, data="toy", on_reading=never)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert plain_rows(tables) == plain_rows(done[0])
    assert tables.facts["n_tokens"] == done[0].facts["n_tokens"]
    assert tables.facts["reading_s"] > 0


def test_tokens_are_those_of_the_answers_and_of_each_prompt_once(done, backbone):
    answers = graded().answers
    rendered = [backbone.renderer.render(answer) for answer in answers]
    prompts = {a.prompt_id: item.start for a, item in zip(answers, rendered, strict=True)}
    responses = sum(item.stop - item.start for item in rendered)

    assert done[0].facts["n_tokens"] == sum(prompts.values()) + responses


def test_seconds_of_a_reading_that_was_made_elsewhere_are_not_known(
    backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(Grid, "stages", lambda self: {})
    plan = replace(PLAN, poolings=("last",))
    read_answers(backbone, graded(), plan, tmp_path / "a" / "reading")
    facts = audit(graded(), backbone, plan, tmp_path / "a", on_reading=never).facts

    assert facts["reading_s"] is None
    assert facts["n_tokens"] > 0


def test_seconds_of_a_killed_reading_are_kept_until_the_reading_is_deleted(
    backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr("retrm.store.shards.SHARD_BYTES", 1)
    folder, plan = tmp_path / "a", replace(PLAN, poolings=("last",))

    def kill(*_):
        raise Stop

    def kill_later(progress):
        if progress.answers_done > 30:
            raise Stop

    with pytest.raises(Stop):
        audit(graded(), backbone, plan, folder, on_reading=kill_later)
    account = json.loads((folder / "reading.json").read_text())
    assert account["n_shards"] == len(list(folder.glob("reading/shard-*")))
    (folder / "reading.json").write_text(json.dumps({**account, "reading_s": 1000.0}))
    with pytest.raises(Stop):
        audit(graded(), backbone, plan, folder, on_stage=kill)
    assert 1000 < json.loads((folder / "reading.json").read_text())["reading_s"] < 1100

    shutil.rmtree(folder / "reading")
    with pytest.raises(Stop):
        audit(graded(), backbone, plan, folder, on_stage=kill)
    assert json.loads((folder / "reading.json").read_text())["reading_s"] < 100


def test_fitting_seconds_are_those_of_the_stages(done):
    tables, folder = done
    stages = [json.loads(path.read_text()) for path in folder.glob("stages/*/audit.json")]
    seconds = [stage["facts"]["stage_s"] for stage in stages]

    assert tables.facts["fitting_s"] == pytest.approx(sum(seconds))
    assert min(seconds) > 0
    assert "stage_s" not in tables.facts
    assert "interventions_s" not in tables.facts


def test_a_stage_that_was_killed_in_the_middle_is_made_again(done, backbone, tmp_path, monkeypatch):
    # Its tables lie there, its summary does not.
    plan = replace(PLAN, poolings=("last",))
    folder = tmp_path / "a"
    first = audit(graded(), backbone, plan, folder)
    (folder / "stages" / "matrix" / "audit.json").unlink()
    (folder / "stages" / "matrix" / "cells.parquet").write_bytes(b"half")

    assert plain_rows(audit(graded(), backbone, plan, folder)) == plain_rows(first)


def test_preferences_from_answers_to_files(backbone, tmp_path):
    tables = audit(preferred(), backbone, PLAN, tmp_path / "p")

    assert (tables.facts["task"], tables.facts["n_pairs"]) == ("preferences", 36)
    assert (tables.facts["pass_at_1"], tables.facts["oracle"]) == (None, None)
    metrics = {"pair_accuracy", "length_matched_pair_accuracy"}
    assert {cell.metric for cell in tables.cells} == metrics
    assert tables.energy
    assert tables.directions
    assert not tables.curves
    assert plain_rows(AuditTables.load(tmp_path / "p")) == plain_rows(tables)


def test_unjudged_answers_are_read_counted_and_left_out(backbone, tmp_path):
    table = graded()
    labels = table.labels.copy()
    labels[:4] = math.nan  # the first prompt
    plan = replace(PLAN, poolings=("last",))
    tables = audit(replace(table, labels=labels), backbone, plan, tmp_path / "u")

    assert (tables.facts["n_unjudged"], tables.facts["n_answers"]) == (4, 68)
    assert [row.row for row in tables.answers] == list(range(4, 72))
    firsts = {row.n_tokens for row in tables.energy if row.token_kind == "first"}
    assert firsts == {17}


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("labels", "other answers or labels"),
        ("prompt", "other answers or labels"),
        ("finished", "other answers or labels"),
        ("model", "another model"),
        ("plan", "another plan"),
        ("overlong", "another policy for over-long answers"),
        ("precision", "another precision of the model"),
    ],
)
def test_the_folder_of_another_audit_is_refused_before_the_model_works(done, change, words):
    _, folder = done
    table, backbone, plan, options = graded(), FakeBackbone(), PLAN, {}
    if change == "labels":
        table = replace(table, labels=1 - table.labels)
    elif change == "prompt":  # the same ids and answers behind another question
        answers = tuple(
            replace(a, prompt=Answer.of("another question", "").prompt) for a in table.answers
        )
        table = replace(table, answers=answers)
    elif change == "finished":
        table = replace(table, answers=tuple(replace(a, finished=None) for a in table.answers))
    elif change == "model":
        backbone = FakeBackbone(seed=1)
    elif change == "plan":
        plan = replace(plan, seed=1)
    elif change == "precision":
        backbone = Halved()
    else:
        options = {"overlong": "skip"}

    with pytest.raises(StoreError, match=f"holds an audit of {words}; choose another folder"):
        audit(table, backbone, plan, folder, on_reading=never, **options)


def test_a_folder_without_a_precision_was_read_in_float32(done, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(done[1], folder)
    shutil.rmtree(folder / "reading")  # as the store of the states advises
    header = json.loads((folder / "plan.json").read_text())
    assert header.pop("precision") == "float32"
    (folder / "plan.json").write_text(json.dumps(header))

    assert check_folder(folder, graded(), FakeBackbone(), PLAN)["plan"] == PLAN.as_dict()
    with pytest.raises(StoreError, match="another precision of the model"):
        audit(graded(), Halved(), PLAN, folder, on_reading=never)


HOLD = """
import sys
from pathlib import Path
from retrm.store.lock import WriterLock
folder = Path(sys.argv[1])
folder.mkdir()
lock = WriterLock.take(folder)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_which_another_process_works_is_refused_until_that_is_killed(
    backbone, tmp_path
):
    folder, plan = tmp_path / "a", replace(PLAN, poolings=("last",))

    def kill(state):
        raise Stop

    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=-1, stdout=-1, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"being written by process {other.pid} .*another fol"):
            audit(graded(), backbone, plan, folder, on_reading=never)
        assert [path.name for path in folder.iterdir()] == ["writer.lock"]
        other.kill()
    with pytest.raises(Stop):
        audit(graded(), backbone, plan, folder, on_stage=kill)
    assert not (folder / "writer.lock").exists()  # nor after a run that was stopped


def test_a_plan_whose_reading_took_time_is_not_replaced(backbone, tmp_path, monkeypatch):
    # Nothing is stored yet, but the seconds are on account.
    monkeypatch.setattr("retrm.audit.folder.ACCOUNT_INTERVAL_S", 0.0)
    plan, folder = replace(PLAN, poolings=("last",)), tmp_path / "a"

    def kill(progress):
        raise Stop

    with pytest.raises(Stop):
        audit(graded(), backbone, plan, folder, on_reading=kill)
    before = (folder / "plan.json").read_text()
    with pytest.raises(StoreError, match="another plan"):
        audit(graded(), backbone, replace(plan, seed=1), folder, on_reading=never)
    assert (folder / "plan.json").read_text() == before


def test_a_small_reading_that_is_killed_goes_on_where_it_was(backbone, tmp_path, monkeypatch):
    # Far less than one shard: the states are written because time has passed.
    monkeypatch.setattr("retrm.store.shards.FLUSH_SECONDS", 0.0)
    plan, folder, seen = replace(PLAN, poolings=("last",)), tmp_path / "a", []

    def kill_later(progress):
        if progress.answers_done > 30:
            raise Stop

    def kill(progress):
        seen.append(progress.answers_done)
        raise Stop

    with pytest.raises(Stop):
        audit(graded(), backbone, plan, folder, on_reading=kill_later, tokens_per_batch=200)
    with pytest.raises(Stop):
        audit(graded(), backbone, plan, folder, on_reading=kill, tokens_per_batch=200)
    assert seen[0] > 30


def test_figures_of_another_version_are_refused_and_what_to_delete_is_said(
    backbone, tmp_path, monkeypatch
):
    folder, plan = tmp_path / "a", replace(PLAN, poolings=("last",))

    def run(**options):
        def kill(state):
            if state.name == "controls":
                raise Stop

        with pytest.raises(Stop):
            audit(graded(), backbone, plan, folder, on_stage=kill, **options)
        return plain_rows(AuditTables.load(folder / "stages" / "primary"))

    first = run()
    monkeypatch.setattr("retrm.audit.folder.STAGE_VERSION", 99)
    kept = sorted(folder.rglob("*"))
    with pytest.raises(StoreError, match=r"stages 99\), would make otherwise. Nothing was deleted"):
        audit(graded(), backbone, plan, folder, on_reading=never)
    assert sorted(folder.rglob("*")) == kept

    shutil.rmtree(folder / "stages")
    (folder / "plan.json").unlink()
    assert run(on_reading=never) == first
    stored = json.loads((folder / "plan.json").read_text())
    assert (stored["stage_version"], stored["retrm"]) == (99, retrm.__version__)


def test_stages_of_nobody_knows_which_audit_are_refused(done, backbone, tmp_path):
    shutil.copytree(done[1], tmp_path / "a")
    (tmp_path / "a" / "plan.json").unlink()
    with pytest.raises(StoreError, match=r"finished stages, but no plan\.json"):
        audit(graded(), backbone, PLAN, tmp_path / "a", on_reading=never)


def test_a_refused_run_leaves_the_folder_to_the_next(backbone, tmp_path, monkeypatch):
    table = graded()
    long = replace(table.answers[0], response="x" * 5000)
    table = replace(table, answers=(long, *table.answers[1:]))
    plan, folder = replace(PLAN, poolings=("last",)), tmp_path / "a"

    def kill(*_):
        raise Stop

    with pytest.raises(OverlongError):
        audit(table, backbone, plan, folder)
    with pytest.raises(RecipeError, match="layer 99"):
        audit(table, backbone, replace(plan, layers="99"), folder, overlong="skip")
    assert not folder.exists()
    with monkeypatch.context() as patch, pytest.raises(Stop):  # before anything was made
        patch.setattr(FakeBackbone, "forward", kill)
        audit(graded(), backbone, plan, folder)
    with pytest.raises(Stop):
        audit(table, backbone, plan, folder, overlong="skip", on_stage=kill)
    with pytest.raises(StoreError, match="another plan"):
        audit(table, backbone, replace(plan, seed=1), folder, overlong="skip", on_reading=never)


def test_answers_that_fit_decide_whether_the_data_can_be_audited(backbone, tmp_path):
    table = graded()
    # Of 18 prompts 15 have over-long answers only: three are too few for 2 folds of 2 inner ones.
    answers = [
        replace(a, response="x" * 5000) if i < 15 * 4 else a for i, a in enumerate(table.answers)
    ]
    short = replace(table, answers=tuple(answers))
    with pytest.raises(DataError, match=r"1 prompt\(s\) for 2 folds"):
        audit(short, backbone, PLAN, tmp_path / "a", overlong="skip", on_reading=never)
    every = replace(table, answers=tuple(replace(a, response="x" * 5000) for a in table.answers))
    with pytest.raises(DataError, match="none of which fits the context of fake"):
        audit(every, backbone, PLAN, tmp_path / "a", overlong="skip", on_reading=never)
    assert not (tmp_path / "a").exists()


def test_another_threshold_is_another_audit(backbone, tmp_path):
    grades = np.random.default_rng(1).random(72)
    table, plan = replace(graded(), labels=grades), replace(PLAN, poolings=("last",))

    def kill(state):
        raise Stop

    with pytest.raises(Stop):
        audit(table, backbone, plan, tmp_path / "t", label_threshold=0.5, on_stage=kill)
    with pytest.raises(StoreError, match="other answers or labels"):
        audit(table, backbone, plan, tmp_path / "t", label_threshold=0.4, on_reading=never)


def test_data_that_cannot_be_audited_are_refused_before_the_model_works(backbone, tmp_path):
    def run(table, **options):
        audit(table, backbone, PLAN, tmp_path / "x", on_reading=never, **options)

    table = graded()
    with pytest.raises(LabelError, match="72 answers carry no labels, pairs or ranks"):
        run(replace(table, labels=np.full(72, math.nan)))
    with pytest.raises(LabelError, match="none with both right and wrong answers"):
        run(replace(table, labels=np.ones(72)))
    with pytest.raises(DataError, match=r"1 prompt\(s\) for 2 folds"):
        run(table.take(range(3 * 4)))  # three prompts in two folds: one has a single prompt
    with pytest.raises(OverlongError):
        long = replace(table.answers[0], response="x" * 5000)
        run(replace(table, answers=(long, *table.answers[1:])))


# ------------------------------------------------------------------------------- interventions

REMOVAL = InterventionPlan(
    layers=("1", "post_norm"), sizes=("4",), n_draws=2, n_energy_draws=1, max_prompts=3
)
LAST = replace(PLAN, poolings=("last",))


def with_gold(table=None):
    table = table if table is not None else graded()
    return replace(table, gold=dict.fromkeys(table.prompt_ids.tolist(), "1"))


@pytest.fixture(scope="module")
def intervened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intervened")
    return audit(graded(), talking(), LAST, folder, interventions=REMOVAL), folder


def test_interventions_stand_beside_the_figures_of_the_audit(intervened):
    tables, folder = intervened
    rows = tables.interventions
    kinds = {"none", "reasoning", "semantic", "random", "random_energy"}

    assert {(r.layers, r.fill, r.removed) for r in rows} == {
        (layers, fill, kind)
        for layers in ("1", "post_norm")
        for fill in ("zero", "mean")
        for kind in kinds
    }
    assert {r.measure for r in rows} >= {"within_auroc", "score_shift", "log_probability"}
    assert tables.facts["interventions"]["fills"] == ["zero", "mean"]
    assert tables.facts["interventions_s"] > 0
    assert plain_rows(AuditTables.load(folder)) == plain_rows(tables)


def test_interventions_are_measured_on_prompts_that_the_head_was_not_fitted_on(
    intervened, monkeypatch
):
    seen = {}

    def look(backbone, table, *, score, **options):
        seen.update(table=table, score=score)
        return ()

    monkeypatch.setattr("retrm.audit.run.measure_interventions", look)
    reading = read_answers(talking(), graded(), LAST, intervened[1] / "reading", on_progress=never)
    supervision = Supervision.of(graded(), range(72))
    grid = Grid(reading, supervision, talking().unembedding, LAST)
    intervene_on(grid, talking(), REMOVAL)

    tested = set(seen["table"].prompt_ids.tolist())
    assert tested == set(supervision.prompt_ids[grid.folds[0] == 0].tolist())
    assert seen["score"].train_prompts == set(supervision.prompt_ids.tolist()) - tested
    assert tested


def test_finished_interventions_are_taken_up_and_others_are_made(intervened, tmp_path):
    tables, folder = intervened
    shutil.copytree(folder, tmp_path / "a")
    backbone = talking()
    backbone.forward = None  # would fail if it were called
    again = audit(graded(), backbone, LAST, tmp_path / "a", interventions=REMOVAL)
    without = audit(graded(), backbone, LAST, tmp_path / "a")

    assert plain_rows(again) == plain_rows(tables)
    assert again.facts == json.loads(json.dumps(dict(tables.facts)))
    assert not without.interventions
    assert without.facts["fitting_s"] == tables.facts["fitting_s"]
    with pytest.raises(TypeError):  # another plan: the model works
        audit(
            *(graded(), backbone, LAST, tmp_path / "a"),
            interventions=replace(REMOVAL, spare_first=True),
        )


def test_interventions_are_named_by_all_that_their_figures_depend_on():
    table, sampled = with_gold(), replace(REMOVAL, n_samples=1)
    other = replace(table, gold={**table.gold, table.answers[0].prompt_id: "2"})

    def name(plan, grader="numeric", of=table):
        return intervention_stage(plan, grader, of)

    assert name(REMOVAL) == name(REMOVAL, "exact") == name(REMOVAL, of=other)
    assert len({name(REMOVAL), name(sampled), name(sampled, "exact"), name(sampled, of=other)}) == 4


@pytest.mark.parametrize("overlong", ["truncate_left", "skip"])
def test_over_long_answers_are_treated_alike_under_removals(overlong, tmp_path, monkeypatch):
    monkeypatch.setattr(Grid, "stages", lambda self: {})
    table = graded()
    long = [  # one of every prompt: some are among those that are held out
        replace(a, prompt=Answer.of("question " + "x" * 300, "").prompt) if i % 4 == 0 else a
        for i, a in enumerate(table.answers)
    ]
    few = replace(REMOVAL, layers=("1",), fills=("zero",), max_prompts=99, max_answers=99)
    tables = audit(
        *(replace(table, answers=tuple(long)), talking(), LAST, tmp_path),
        overlong=overlong,
        interventions=few,
    )
    read = [r.n for r in tables.interventions if r.measure == "log_probability"]

    # Nine of 18 prompts are held out, with four answers each, of which one is over-long.
    assert set(read) == {9 * 4 if overlong == "truncate_left" else 9 * 3}


@pytest.mark.parametrize(
    ("changes", "options", "error", "telling"),
    [
        ({"n_samples": 1}, {}, DataError, "got grader None"),
        ({"n_samples": 1}, {"grader": "choice"}, DataError, "an audit does not keep them"),
        ({"n_samples": 1}, {"grader": "exat"}, DataError, "Did you mean 'exact'?"),
        ({"n_samples": 1}, {"grader": "exact"}, DataError, "no reference answer for 3 of 3"),
        ({"layers": ("7",)}, {}, RecipeError, "layer 7 does not exist"),
        ({"sizes": ("99",)}, {}, RecipeError, "99 directions of a state of width 16"),
    ],
)
def test_interventions_that_cannot_be_made_are_refused_before_the_model_reads(
    changes, options, error, telling, tmp_path
):
    backbone = talking()
    backbone.forward = None
    plan = replace(REMOVAL, **changes)
    with pytest.raises(error) as caught:
        audit(graded(), backbone, LAST, tmp_path / "a", interventions=plan, **options)
    assert telling in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_a_backbone_on_which_nothing_can_be_removed_is_refused_before_it_reads(backbone, tmp_path):
    with pytest.raises(BackboneError, match="expected a transformers model"):
        audit(*(graded(), backbone, LAST, tmp_path), interventions=REMOVAL, on_reading=never)


def test_a_file_in_place_of_the_folder_is_refused(backbone, tmp_path):
    (tmp_path / "a").write_text("")
    for folder in (tmp_path / "a", tmp_path / "a" / "deeper" / "b"):
        with pytest.raises(OutputError, match="a is a file; expected a folder"):
            audit(graded(), backbone, LAST, folder, on_reading=never)


def test_a_folder_that_cannot_be_written_is_refused_and_one_that_can_is_left_alone(
    tmp_path, monkeypatch
):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []

    def refused(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("retrm.files.tempfile.TemporaryFile", refused)
    with pytest.raises(OutputError, match=f"cannot write into {tmp_path}: Permission denied"):
        check_writable(tmp_path / "a" / "b")
