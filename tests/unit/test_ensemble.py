"""Ensembles: hand numbers, one reading for all members, one scale, saved and opened again."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import reward_model
from served import client, run, service

from retrm.backbone.fake import FakeBackbone
from retrm.cli.main import main
from retrm.errors import ArtifactError, FitError, RecipeError
from retrm.features.recipe import Recipe
from retrm.fitting.ensemble import member_rows
from retrm.fitting.fit import fit
from retrm.heads.artifact import MANIFEST
from retrm.methods import method
from retrm.records import Answer, AnswerTable
from retrm.scorers.base import LimitedScorer
from retrm.scorers.baseline import LengthScorer, RandomScorer
from retrm.scorers.ensemble import (
    EnsembleRule,
    EnsembleScorer,
    EnsembleSpec,
    Scale,
    combined,
    delete_ensemble,
)
from retrm.scorers.open import open_scorer
from retrm.scorers.reward_model import RewardModel
from retrm.scorers.together import StateScorer, judge_all

# Five members on candidates A and B.
FIVE = np.array([[1.2, 0.4], [0.8, 0.9], [1.0, -0.6], [1.4, 0.7], [0.6, 0.1]])
RAW = EnsembleRule(standardise=False)


def test_mean_worst_case_and_uncertainty_weighted_scores_worked_out_by_hand():
    # Population variances: A 0.08, B 0.276.
    assert combined(FIVE).tolist() == pytest.approx([1.0, 0.3])
    assert combined(FIVE, "min").tolist() == pytest.approx([0.6, -0.6])
    assert combined(FIVE, "uwo", lam=0.5).tolist() == pytest.approx([0.96, 0.162])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 5).flatmap(
        lambda m: st.lists(
            st.lists(st.floats(-9, 9), min_size=m, max_size=m), min_size=1, max_size=4
        )
    ),
    st.floats(0, 5),
    st.floats(-4, 4),
)
def test_no_rule_trusts_an_answer_more_than_the_mean_does(rows, lam, shift):
    scores = np.array(rows).T
    mean = combined(scores)
    for rule in ("min", "uwo"):
        found = combined(scores, rule, lam=lam)
        assert (found <= mean + 1e-12).all()
        # A constant of all members moves the ensemble by as much.
        assert combined(scores + shift, rule, lam=lam) == pytest.approx(found + shift, abs=1e-9)
        twice = combined(np.stack([scores[0]] * 3), rule, lam=lam)
        assert twice == pytest.approx(scores[0])


def test_an_answer_that_a_member_left_out_is_left_out():
    scores = [[1.0, np.nan], [2.0, 3.0]]
    for rule in ("mean", "min", "uwo"):
        assert np.isnan(combined(scores, rule)).tolist() == [False, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: combined([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: combined(FIVE, "minn"), "rule 'minn'.*Did you mean 'min'"),
        (lambda: combined(FIVE, "uwo", lam=-1), "lam = -1"),
        (lambda: EnsembleScorer({"a": RandomScorer()}, rule=RAW), "got 1 member"),
        (
            lambda: EnsembleScorer({"a": RandomScorer(), "b": LengthScorer(prefers="longest")}),
            "no scale for the members a, b",
        ),
        (lambda: EnsembleSpec.parse("runs/a"), "two different folders"),
        (lambda: EnsembleSpec.parse("runs/a,runs/a"), "two different folders"),
        (lambda: EnsembleSpec.parse("runs/a,./runs/a/"), "two different folders"),
        (lambda: EnsembleSpec.parse("min=3:a,b"), "a number behind uwo alone"),
        (lambda: EnsembleSpec.parse("uwo=x:a,b"), "a number behind uwo alone"),
    ],
)
def test_impossible_ensembles_are_refused(call, message):
    with pytest.raises(RecipeError, match=message):
        call()


@pytest.mark.parametrize(
    ("text", "rule", "lam", "standardise"),
    [
        ("a,b", "mean", 0.5, True),
        ("min:a, b", "min", 0.5, True),
        ("uwo=0.25:a,b", "uwo", 0.25, True),
        ("raw-uwo:a,b", "uwo", 0.5, False),
        ("raw-mean:a,b", "mean", 0.5, False),
    ],
)
def test_what_is_typed_names_folders_and_rule(text, rule, lam, standardise):
    assert EnsembleSpec.parse(text) == EnsembleSpec(
        ("a", "b"), EnsembleRule(rule, lam, standardise)
    )


ANSWERS = [Answer.of(f"q{i // 2}", "ab" * (i + 1)) for i in range(6)]


def test_members_on_one_backbone_are_read_once_and_equal_recipes_reduced_once(monkeypatch):
    backbone = FakeBackbone()
    recipes = (Recipe(), Recipe(), Recipe(pooling="mean"))
    members = {f"m{i}": reward_model(backbone, one, seed=i) for i, one in enumerate(recipes)}
    alone = {name: member.score(ANSWERS) for name, member in members.items()}
    n_passes, wanted = [], []
    forward = backbone.forward

    def counted(*args, **kwargs):
        n_passes.append(1)
        return forward(*args, **kwargs)

    from retrm.scorers import together

    read_chunks = together.read_chunks

    def watched(backbone, chunks, recipes, **kwargs):
        wanted.append(sorted(recipes))
        return read_chunks(backbone, chunks, recipes, **kwargs)

    monkeypatch.setattr(backbone, "forward", counted)
    monkeypatch.setattr(together, "read_chunks", watched)
    members["m0"].score(ANSWERS)
    one_reading = len(n_passes)
    n_passes.clear()

    ensemble = EnsembleScorer({**members, "long": LengthScorer(prefers="longest")}, rule=RAW)
    found = ensemble.score(ANSWERS)

    assert len(n_passes) == one_reading
    assert wanted == [["m0", "m2"]]
    own = [*alone.values(), [len(a.response) for a in ANSWERS]]
    assert found == pytest.approx(np.mean(own, axis=0), abs=1e-5)


def test_members_are_put_on_one_scale_or_the_widest_would_decide():
    class Says:
        def __init__(self, name, scores):
            self.name, self._scores = name, np.array(scores)

        def score(self, answers):
            return self._scores[: len(answers)]

    # Narrow prefers the second by two of its deviations, wide the first by one of its own.
    members = {"narrow": Says("narrow", [0.0, 0.2]), "wide": Says("wide", [100.0, 0.0])}
    scales = {"narrow": Scale(0.0, 0.1), "wide": Scale(0.0, 100.0)}
    pair = ANSWERS[:2]

    assert EnsembleScorer(members, scales=scales).score(pair).tolist() == [0.5, 1.0]
    assert EnsembleScorer(members, rule=RAW).score(pair).tolist() == pytest.approx([50.0, 0.1])
    worst = EnsembleScorer(members, rule=EnsembleRule("min"), scales=scales)
    assert worst.score(pair).tolist() == [0.0, 0.0]
    assert isinstance(worst, LimitedScorer)
    with pytest.raises(RecipeError, match="--overlong skip is for scorers with a backbone"):
        worst.judge(pair, overlong="skip")


def test_a_scale_without_spread_divides_by_one():
    assert Scale.of(np.array([2.0, 2.0])) == Scale(2.0, 1.0)
    assert Scale.of(np.array([1.0, 3.0])) == Scale(2.0, 1.0)
    # The mean of seven times 0.1 is not 0.1 to the last bit: their deviation is 1.4e-17, not 0.
    assert Scale.of(np.full(7, 0.1)).std == 1.0
    assert Scale.of(np.array([1e-9, 3e-9])).std == pytest.approx(1e-9)


def test_judging_together_keeps_the_order_of_the_names():
    found = judge_all({"b": RandomScorer(), "a": LengthScorer(prefers="longest")}, ANSWERS)
    assert list(found) == ["b", "a"]


# ---------------------------------------------------------------- from one reading


def judged_table(n_prompts=30):
    rng = np.random.default_rng(0)
    answers, labels = [], []
    for prompt in range(n_prompts):
        for k in range(4):
            right = k % 2
            text = ("yes " if right else "no ") * int(rng.integers(1, 4)) + str(k)
            answers.append(Answer.of(f"question {prompt}", text))
            labels.append(float(right))
    return AnswerTable(tuple(answers), np.array(labels))


@pytest.fixture(scope="module")
def fits():
    return fit(judged_table(), FakeBackbone(), [method("last_token")], n_members=3)


def test_each_member_has_whole_prompts_and_the_same_ones_whatever_the_order():
    ids = [f"p{i // 3}" for i in range(30)]
    drawn = member_rows(ids, 4, seed=7)
    for rows in drawn:
        prompts = [ids[row] for row in rows]
        # 63 % of 10 prompts = 6 with 3 answers each.
        assert len(set(prompts)) == 6
        assert len(prompts) == 18
    assert len({tuple(rows) for rows in drawn}) == 4
    order = np.random.default_rng(0).permutation(30)
    turned = member_rows([ids[i] for i in order], 4, seed=7)
    assert [sorted(order[rows]) for rows in turned] == [list(rows) for rows in drawn]


def test_an_ensemble_is_fitted_beside_the_model_and_measured_on_the_same_prompts(fits):
    ensemble = fits.ensembles["last_token"]
    weights = [m.artifact.head.weight for m in ensemble.members.values()]

    assert len(weights) == 3
    assert not any(weights[0].equal(other) for other in weights[1:])
    table = judged_table()
    held_out = [table.answers[row] for row in fits.test_rows]
    assert fits.test_scores["last_token ensemble"] == pytest.approx(
        ensemble.score(held_out), abs=1e-4
    )
    trained = {table.answers[row].prompt_id for row in fits.train_rows}
    assert not trained & {a.prompt_id for a in held_out}
    for member in ensemble.members.values():
        stored = member.artifact.fitted
        assert stored["n_train_answers"] < len(fits.train_rows)
        assert set(stored["training_scores"]) == {"mean", "std"}


def test_the_model_of_a_fit_with_an_ensemble_is_that_of_a_fit_without(fits):
    plain = fit(judged_table(), FakeBackbone(), [method("last_token")])
    assert plain.ensembles == {}
    assert plain.models[0].artifact.head.weight.equal(fits.models[0].artifact.head.weight)


def test_a_saved_ensemble_opens_as_itself_and_by_its_folders(fits, tmp_path, monkeypatch):
    ensemble = fits.ensembles["last_token"]
    ensemble.save(tmp_path / "e")
    backbone = FakeBackbone()
    monkeypatch.setattr("retrm.scorers.reward_model.open_backbone", lambda *a, **k: backbone)

    again = open_scorer(str(tmp_path / "e"))
    folders = ",".join(str(tmp_path / "e" / f"member-{k}") for k in (1, 2, 3))
    worst = open_scorer(f"ensemble:min:{folders}")

    assert again.score(ANSWERS) == pytest.approx(ensemble.score(ANSWERS))
    assert again.identity == ensemble.identity
    assert worst.identity != ensemble.identity
    assert worst.score(ANSWERS) == pytest.approx(ensemble.member_scores(ANSWERS).min(axis=0))
    assert len({id(m.backbone) for m in again.members.values()}) == 1


def test_damaged_folders_and_members_without_a_scale_are_refused(fits, tmp_path, monkeypatch):
    fits.ensembles["last_token"].save(tmp_path / "e")
    backbone = FakeBackbone()
    monkeypatch.setattr("retrm.scorers.reward_model.open_backbone", lambda *a, **k: backbone)
    path = tmp_path / "e" / "member-1" / MANIFEST
    stored = json.loads(path.read_text())
    del stored["fitted"]["training_scores"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ArtifactError, match="does not say how its scores were spread"):
        open_scorer(str(tmp_path / "e"))
    folders = ",".join(str(tmp_path / "e" / f"member-{k}") for k in (1, 2))
    assert len(open_scorer(f"ensemble:raw-mean:{folders}").score(ANSWERS)) == 6

    manifest = tmp_path / "e" / "ensemble.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(ArtifactError, match="format version 9"):
        open_scorer(str(tmp_path / "e"))
    manifest.write_text("{")
    with pytest.raises(ArtifactError, match="is damaged"):
        open_scorer(str(tmp_path / "e"))
    with pytest.raises(RecipeError, match=r"longest in ensemble:.* is no folder of a reward model"):
        open_scorer(f"ensemble:longest,{tmp_path / 'e' / 'member-2'}")


def test_too_few_prompts_or_members_are_refused_before_anything_is_read():
    class Unread(FakeBackbone):
        def forward(self, *args, **kwargs):
            raise AssertionError("read")

    with pytest.raises(FitError, match="got 1 ensemble member"):
        fit(judged_table(), Unread(), [method("last_token")], n_members=1)
    with pytest.raises(FitError, match="fewer than 3 training prompts"):
        member_rows(["p", "q"], 2)
    # Right answers to one prompt only: most members would have wrong ones alone.
    table = judged_table(12)
    labels = np.zeros(len(table.labels))
    labels[[1, 2, 9, 13]] = 1
    lone = AnswerTable(table.answers, labels)
    with pytest.raises(FitError, match=r"member \d+ of 40 of the ensemble has"):
        fit(lone, Unread(), [method("last_token")], n_members=40, test_fraction=0)


def test_the_command_writes_the_ensemble_beside_the_model_and_it_scores(tmp_path, capsys):
    table = judged_table(24)
    rows = {}
    for answer, label in zip(table.answers, table.labels, strict=True):
        row = rows.setdefault(answer.prompt_id, {"responses": [], "correct": []})
        row["prompt"] = answer.prompt.messages[0].content
        row["responses"].append(answer.response)
        row["correct"].append(bool(label))
    data = tmp_path / "r.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    settings_file = tmp_path / "s.toml"
    settings_file.write_text("[gradient]\nepochs = 2\n")

    fit_it = ["fit", str(data), "--model", "fake", "-o", str(tmp_path / "m"), "--ensemble", "2"]
    assert ended(*fit_it, "--config", str(settings_file)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "last_token ensemble" in said
    assert "ensemble: 2 members" in said
    assert ended("score", str(tmp_path / "m" / "ensemble"), str(data)) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 24
    assert all(np.isfinite(line["score"]).all() for line in lines)

    settings_file.write_text("[loss_options]\nsmoothing = 0.1\n")
    assert ended(*fit_it, "--config", str(settings_file)) != 0
    assert "got loss options smoothing for the loss bce" in " ".join(
        capsys.readouterr().err.split()
    )


def test_members_of_one_fit_judge_the_features_of_one_reading(fits, tmp_path, monkeypatch):
    fits.ensembles["last_token"].save(tmp_path / "e")
    backbone = FakeBackbone()
    monkeypatch.setattr("retrm.scorers.reward_model.open_backbone", lambda *a, **k: backbone)
    ensemble = open_scorer(str(tmp_path / "e"))
    plain = EnsembleScorer(ensemble.members, rule=ensemble.rule, scales=ensemble.scales)

    assert isinstance(ensemble, StateScorer)
    assert ensemble.score(ANSWERS) == pytest.approx(plain.score(ANSWERS), abs=1e-6)
    together = judge_all({"ensemble": ensemble, "member": ensemble.members["member-1"]}, ANSWERS)
    assert together["ensemble"].scores == pytest.approx(plain.score(ANSWERS), abs=1e-6)
    # Members that read other features are still members, one after the other.
    mixed = [reward_model(backbone, Recipe(pooling=p)) for p in ("last", "mean")]
    assert not isinstance(EnsembleScorer.of_models(mixed, rule=RAW), StateScorer)


def test_an_ensemble_is_served_to_whoever_sends_text_or_token_ids(fits):
    ensemble = fits.ensembles["last_token"]
    answers = [Answer.of("question", "yes 1"), Answer.of("question", "no")]
    ids = [list(ensemble.backbone.renderer.render(answer).ids) for answer in answers]

    async def ask():
        async with client(service({"all": ensemble})) as http:
            given = {"prompt": "question", "candidates": ["yes 1", "no"]}
            told = await http.post("/v1/reward", json=given)
            raw = await http.post("/v1/reward", json={"token_ids": ids})
            return told.json()["results"], raw.json()["results"]

    for results in run(ask):
        found = [result["score"] for result in results]
        assert found == pytest.approx(ensemble.score(answers), abs=1e-5)


def test_a_smaller_ensemble_leaves_nothing_of_a_larger_one_and_deleting_keeps_other_files(
    fits, tmp_path
):
    ensemble = fits.ensembles["last_token"]
    ensemble.save(tmp_path / "e")
    (tmp_path / "e" / "notes.txt").write_text("mine")
    (tmp_path / "e" / "member-3" / "mine.txt").write_text("mine")
    members = [one for one in ensemble.members.values() if isinstance(one, RewardModel)]
    EnsembleScorer.of_models(members[:2]).save(tmp_path / "e")
    names = {path.relative_to(tmp_path / "e").as_posix() for path in tmp_path.rglob("*.*")}

    assert "member-3/reward_model.json" not in names
    assert {"member-2/reward_model.json", "member-3/mine.txt", "notes.txt"} <= names
    delete_ensemble(tmp_path / "e")
    assert {path.name for path in tmp_path.rglob("*.*")} == {"mine.txt", "notes.txt"}
    delete_ensemble(tmp_path / "nowhere")


def ended(*arguments):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code
