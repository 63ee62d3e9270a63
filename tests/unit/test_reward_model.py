"""Reward models: fit, save, load, refuse, explain."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retrm.backbone.fake import FakeBackbone
from retrm.errors import (
    ArtifactError,
    DataError,
    FingerprintError,
    LabelError,
    OutputError,
    SelfTestError,
)
from retrm.fitting.fit import cross_fit, fit, read_for
from retrm.fitting.targets import Targets
from retrm.heads.artifact import load_artifact
from retrm.methods import METHODS, method
from retrm.records import Answer, AnswerTable, Pair
from retrm.scorers.open import open_scorers
from retrm.scorers.reward_model import RewardModel


@pytest.fixture(scope="module")
def backbone():
    return FakeBackbone()


def planted_table(n_prompts=16, n=4, seed=0):
    """Right answers end in an exclamation mark: the toy backbone's states can tell.

    They are rated, too, and right ones preferred to wrong ones.
    """
    generator = np.random.default_rng(seed)
    answers, labels = [], []
    for p in range(n_prompts):
        for k in range(n):
            right = generator.random() < 0.5
            answers.append(Answer.of(f"question {p}", f"it is {k}" + ("!" if right else ".")))
            labels.append(float(right))
    noise = np.random.default_rng(seed + 1)
    ratings = {name: noise.random(len(labels)) for name in ("helpfulness", "clarity", "verbosity")}
    ratings["helpfulness"] = 0.5 * ratings["helpfulness"] + 0.5 * np.array(labels)
    pairs = tuple(
        Pair(i, j)
        for p in range(n_prompts)
        for i in range(p * n, p * n + n)
        for j in range(p * n, p * n + n)
        if labels[i] > labels[j]
    )
    return AnswerTable(tuple(answers), np.array(labels), pairs, ratings=ratings)


# The toy backbone knows chats only; `reference_conditioned` is tested on a tiny transformer.
CHATS = [name for name, made in METHODS.items() if made.recipe.template == "chat"]


@pytest.fixture(scope="module")
def fits(backbone):
    methods = [method(name).with_changes(mixture={"steps": 40}) for name in CHATS]
    return fit(planted_table(), backbone, methods)


@pytest.mark.parametrize("name", CHATS)
def test_save_then_load_is_the_identity(name, fits, backbone, tmp_path):
    model = next(m for m in fits.models if m.name == name)
    model.save(tmp_path / "rm")
    loaded = RewardModel.load(tmp_path / "rm", backbone=backbone)
    rows = planted_table(seed=5).answers

    assert np.array_equal(loaded.score(rows), model.score(rows))
    for key, value in model.artifact.head.state_dict().items():
        assert torch.equal(loaded.artifact.head.state_dict()[key], value), key
    assert len(loaded.artifact.selftest) == 3


@pytest.mark.parametrize("name", CHATS)
def test_online_scores_equal_those_of_the_reading_it_was_fitted_from(name, fits, backbone):
    table = planted_table()
    model = next(m for m in fits.models if m.name == name)
    held_out = [table.answers[i] for i in fits.test_rows]

    # elhsr keeps bfloat16 features: a last-bit difference of a state can flip a rounding.
    limit = 1e-2 if model.artifact.recipe.dtype == "bfloat16" else 1e-5
    assert np.allclose(model.score(held_out), fits.test_scores[name], atol=limit)


def test_no_prompt_stands_on_both_sides_of_the_split(fits):
    ids = planted_table().prompt_ids

    assert not set(ids[fits.train_rows]) & set(ids[fits.test_rows])
    assert len(fits.train_rows) + len(fits.test_rows) == len(ids)


def test_a_planted_reward_is_found_by_last_token(fits):
    table = planted_table()
    labels = table.labels[fits.test_rows]
    scores = fits.test_scores["last_token"]
    assert (scores[labels == 1][:, None] > scores[labels == 0][None, :]).mean() > 0.9


def test_rank_puts_the_best_first_and_says_where_each_stood(fits):
    model = fits.models[0]
    ranked = model.rank("question 99", ["it is 1.", "it is 2!", "it is 3."])

    assert (ranked[0].text, ranked[0].index) == ("it is 2!", 1)
    assert [r.score for r in ranked] == sorted((r.score for r in ranked), reverse=True)
    with pytest.raises(DataError, match="no candidates"):
        model.rank("question", [])


@pytest.mark.parametrize("name", CHATS)
def test_token_scores_name_every_token_and_end_at_the_score(name, fits):
    model = next(m for m in fits.models if m.name == name)
    view = model.token_scores("question 1", "it is so!")
    score = model.score([("question 1", "it is so!")])[0]

    assert "".join(view.tokens) == "it is so!"
    assert view.score == pytest.approx(score, abs=1e-2)
    assert view.contributions.sum() == pytest.approx(view.score, abs=1e-4)
    assert len(view.tokens) == len(view.rewards) == len(view.running)


def test_no_answers_give_no_scores(fits):
    assert fits.models[0].score([]).shape == (0,)


def test_the_same_fit_twice_writes_the_same_bytes(backbone, tmp_path):
    for name in ("a", "b"):
        (model,) = fit(planted_table(), backbone, [method("elhsr")], seed=3).models
        model.save(tmp_path / name)

    for file in ("head.safetensors", "selftest.json", "reward_model.json", "README.md"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_cross_fitting_never_scores_an_answer_with_a_head_that_saw_its_prompt(
    backbone, monkeypatch
):
    table = planted_table()
    ids = table.prompt_ids.tolist()
    reading = read_for(backbone, table, [method("last_token")])
    seen = []
    from retrm.fitting import fit as module

    real = module.fit_head

    def spy(chosen, features, targets, **options):
        fitted = real(chosen, features, targets, **options)
        seen.append((features.values.clone(), fitted))
        return fitted

    monkeypatch.setattr(module, "fit_head", spy)
    features = reading.features["last_token"]
    scores, folds = cross_fit(method("last_token"), features, Targets.of(table), ids, n_folds=4)

    assert len(seen) == 4
    for fold, (values, fitted) in enumerate(seen):
        inside = np.flatnonzero(folds != fold)
        assert torch.equal(values, features.take(inside).values)
        outside = np.flatnonzero(folds == fold)
        expected = fitted.head.score(features.take(outside)).double().numpy()
        assert np.array_equal(scores[outside], expected)
        assert not {ids[i] for i in inside} & {ids[i] for i in outside}


# ---------------------------------------------------------------- refusals


@pytest.fixture
def folder(fits, tmp_path):
    fits.models[1].save(tmp_path / "rm")  # retrm: it has a subspace
    return tmp_path / "rm"


def change(folder, **values):
    path = folder / "reward_model.json"
    manifest = json.loads(path.read_text())
    for key, value in values.items():
        manifest[key] = value
    path.write_text(json.dumps(manifest))


def test_a_head_for_another_backbone_is_refused_with_the_difference(folder):
    with pytest.raises(
        FingerprintError, match=r"other weights.*Load the backbone it was fitted on"
    ):
        RewardModel.load(folder, backbone=FakeBackbone(seed=7))


def test_a_head_for_another_end_rule_is_refused(folder):
    with pytest.raises(FingerprintError, match="another chat template or end-of-turn rule"):
        RewardModel.load(folder, backbone=FakeBackbone(counts_end=False))


def test_a_flipped_byte_in_the_weights_is_refused(folder, backbone):
    path = folder / "head.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))

    with pytest.raises(ArtifactError, match=r"head\.safetensors is damaged"):
        RewardModel.load(folder, backbone=backbone)


@pytest.mark.parametrize("name", ["head.safetensors", "selftest.json", "reward_model.json"])
def test_a_missing_file_is_refused_by_name(name, folder, backbone):
    (folder / name).unlink()

    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        RewardModel.load(folder, backbone=backbone)


@pytest.mark.parametrize("weight", ["head.weight", "head.bias", "subspace.post_norm.basis"])
def test_a_missing_weight_is_refused_by_name(weight, folder, backbone):
    import hashlib

    from safetensors.torch import load, save

    path = folder / "head.safetensors"
    tensors = load(path.read_bytes())
    del tensors[weight]
    content = save(tensors)
    path.write_bytes(content)
    files = json.loads((folder / "reward_model.json").read_text())["files"]
    change(folder, files={**files, "head.safetensors": hashlib.sha256(content).hexdigest()})

    with pytest.raises(ArtifactError, match="lacks the"):
        RewardModel.load(folder, backbone=backbone)


def test_an_unknown_format_version_is_refused_with_both_versions(folder, backbone):
    change(folder, format_version=9)

    with pytest.raises(ArtifactError, match="format version 9; this retrm reads version 1"):
        RewardModel.load(folder, backbone=backbone)


def test_a_manifest_that_lacks_a_part_is_refused(folder, backbone):
    path = folder / "reward_model.json"
    manifest = json.loads(path.read_text())
    del manifest["recipe"]
    path.write_text(json.dumps(manifest))

    with pytest.raises(ArtifactError, match=r"not complete.*recipe"):
        RewardModel.load(folder, backbone=backbone)


def test_a_truncated_manifest_is_refused(folder, backbone):
    path = folder / "reward_model.json"
    path.write_text(path.read_text()[:100])

    with pytest.raises(ArtifactError, match="is damaged"):
        RewardModel.load(folder, backbone=backbone)


def test_a_folder_that_is_not_there_offers_the_nearest(folder, backbone):
    with pytest.raises(ArtifactError, match="Did you mean 'rm'"):
        RewardModel.load(folder.parent / "rmm", backbone=backbone)


def test_a_self_test_that_is_not_reproduced_is_refused_with_both_scores(folder, backbone):
    import hashlib

    path = folder / "selftest.json"
    items = json.loads(path.read_text())
    items[0]["score"] += 1.0
    content = json.dumps(items).encode()
    path.write_bytes(content)
    files = json.loads((folder / "reward_model.json").read_text())["files"]
    change(folder, files={**files, "selftest.json": hashlib.sha256(content).hexdigest()})

    with pytest.raises(SelfTestError, match=r"self-test 0.*stored.*retrm doctor"):
        RewardModel.load(folder, backbone=backbone)


def test_an_interrupted_save_leaves_the_old_model_intact(fits, folder, backbone, monkeypatch):
    before = RewardModel.load(folder, backbone=backbone).score([("q", "a!")])

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OutputError, match=r"No space left.*intact"):
        fits.models[0].save(folder)
    monkeypatch.undo()
    loaded = RewardModel.load(folder, backbone=backbone)

    assert loaded.artifact.method == "retrm"
    assert np.array_equal(loaded.score([("q", "a!")]), before)
    assert not list(folder.glob(".*part"))


def test_saving_where_a_file_stands_is_refused(fits, tmp_path):
    (tmp_path / "rm").write_text("mine")

    with pytest.raises(OutputError, match="is a file"):
        fits.models[0].save(tmp_path / "rm")
    assert (tmp_path / "rm").read_text() == "mine"


def test_nothing_is_pickled(folder, monkeypatch, backbone):
    import pickle

    def refuse(*_args, **_kwargs):
        raise AssertionError("pickle was used")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    RewardModel.load(folder, backbone=backbone)


def test_unlabelled_answers_are_refused_before_anything_is_read(backbone):
    table = planted_table()
    blank = AnswerTable(table.answers, np.full(len(table), np.nan))

    def never(_progress):
        raise AssertionError("the model was read")

    with pytest.raises(LabelError, match=r"carry no labels.*retrm grade"):
        fit(blank, backbone, [method("last_token")], on_progress=never)


def test_the_card_carries_the_doubt_about_the_reasoning_subspace(folder):
    card = (folder / "README.md").read_text()

    assert "unproven idea" in card
    assert load_artifact(folder).recipe.subspace == "reasoning:5%"


def test_folders_share_a_backbone_unless_they_count_the_end_differently(tmp_path, monkeypatch):
    backbones = {ends: FakeBackbone(counts_end=ends) for ends in (True, False)}
    folders = {}
    for name, ends in (("a", True), ("b", True), ("c", False)):
        wanted = method("elhsr").with_changes(recipe={"counts_end": ends})
        (model,) = fit(planted_table(), backbones[ends], [wanted]).models
        model.save(tmp_path / name)
        folders[name] = str(tmp_path / name)
    given = {}

    def load(folder, *, backbone=None, **_):
        ends = load_artifact(Path(folder)).recipe.counts_end
        given[folder] = backbone
        return SimpleNamespace(backbone=backbone or backbones[ends])

    monkeypatch.setattr(RewardModel, "load", load)
    open_scorers(list(folders.values()))
    # The first of each kind loads its own; only "b" reads as "a" does.
    assert given[folders["a"]] is None
    assert given[folders["b"]] is backbones[True]
    assert given[folders["c"]] is None
