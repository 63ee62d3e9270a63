"""Which models are served, under which names, and what is refused before anything is."""

import asyncio
import json
import threading

import pytest
import torch
from classifiers import save_classifier
from scored import reward_model
from served import PlainScorer, SpyBackbone, asked, call, model, run, service
from tiny import BOS

from retrm.backbone.fake import FakeBackbone
from retrm.errors import (
    ArtifactError,
    RecipeError,
    RenderError,
    SelfTestError,
    UnknownModelError,
)
from retrm.features.recipe import Recipe
from retrm.heads.artifact import MANIFEST, SELFTEST
from retrm.scorers.baseline import LogProbabilityScorer
from retrm.scorers.sequence_classifier import SequenceClassifier
from retrm.service.core import Service
from retrm.service.items import Call, Item, Options
from retrm.service.lanes import AnswerLane, ClassifierLane, StateLane
from retrm.service.models import Registry, named, open_registry

BACKBONE = FakeBackbone()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two heads on the toy backbone with self-tests."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("math", "code")):
        made = model(BACKBONE, seed=seed).with_selftest(asked("q", "a", "bb"))
        made.save(root / name)
    return root


def test_folders_are_served_under_their_names_and_share_a_backbone(folders):
    registry = open_registry([str(folders / "math"), str(folders / "code") + "/"])

    first, second = registry
    assert registry.names == ("math", "code")
    assert registry.get(None) is registry.get("math")
    assert first.scorer.backbone is second.scorer.backbone
    assert first.lane is second.lane
    assert isinstance(first.lane, StateLane)
    assert first.info.head_id != second.info.head_id
    assert first.info.created == int((folders / "math" / MANIFEST).stat().st_mtime)


def test_models_are_opened_on_a_thread_that_ends_so_that_its_openmp_team_goes(folders, monkeypatch):
    from retrm.service import models

    threads = []
    opens = models.open_scorers

    def spy(*given, **options):
        threads.append(threading.current_thread())
        return opens(*given, **options)

    monkeypatch.setattr(models, "open_scorers", spy)
    open_registry([str(folders / "math")])
    (thread,) = threads
    assert thread is not threading.main_thread()
    assert not thread.is_alive()


def test_a_model_answers_to_its_alias_under_its_own_name():
    registry = open_registry(["longest"], aliases=["/data/models/rm", "a=b=longest"])

    async def work():
        async with Service(registry) as made:
            return await made.judge(call(*asked("q", "x", "yyy"), name="/data/models/rm"))

    answered = run(work)

    assert [one.score for one in answered.judged] == [1, 3]
    assert answered.model.name == "longest"  # the reply says who judged
    assert answered.model.aliases == ("/data/models/rm", "a=b")
    assert registry.get("a=b") is registry.get(None)
    assert registry.names == ("longest",)
    with pytest.raises(UnknownModelError, match=r"no model 'rm' is served.*--alias NAME"):
        registry.get("rm")


@pytest.mark.parametrize(
    ("alias", "said"),
    [
        ("rm", "expected ALIAS=NAME with one of the names longest, shortest"),
        ("rm=other", "expected ALIAS=NAME with one of the names longest, shortest"),
        ("=longest", "expected ALIAS=NAME"),
        ("shortest=longest", "expected a name that no model has yet"),
    ],
)
def test_an_alias_of_no_model_or_of_a_name_that_is_taken_is_refused(alias, said):
    with pytest.raises(RecipeError, match=said):
        open_registry(["longest", "shortest"], aliases=[alias])


@pytest.mark.parametrize("is_first", [True, False])
def test_log_probability_shares_the_backbone_of_a_folder(folders, is_first):
    specs = ["log_probability", str(folders / "math")]

    one, other = open_registry(specs if is_first else specs[::-1], model="fake")

    assert one.scorer.backbone is other.scorer.backbone
    assert one.lane is other.lane


def test_heads_that_count_the_end_and_heads_that_do_not_are_served_at_once(tmp_path):
    answers = asked("q", "a", "bb", "a")
    scorers = {}
    for counts_end in (True, False):
        backbone = FakeBackbone(counts_end=counts_end)
        made = reward_model(backbone, Recipe(pooling="last", counts_end=counts_end), seed=1)
        made.with_selftest(answers[:2]).save(tmp_path / str(counts_end))
        scorers[str(counts_end)] = made
    registry = open_registry([str(tmp_path / name) for name in scorers])

    async def work():
        async with Service(registry) as open_:
            judged = [open_.judge(call(*answers, name=name)) for name in (*scorers, *scorers)]
            return await asyncio.gather(*judged)

    got = [[one.score for one in answered.judged] for answered in run(work)]
    expected = [made.score(answers).tolist() for made in scorers.values()]
    assert got[0] == got[2] == pytest.approx(expected[0], abs=1e-5)
    assert got[1] == got[3] == pytest.approx(expected[1], abs=1e-5)
    assert abs(expected[0][0] - expected[1][0]) > 1e-3


def test_names_may_be_given_in_two_ways(folders):
    written = open_registry([f"a={folders / 'math'}", "longest"])
    listed = open_registry([str(folders / "math"), "longest"], names=["b", "len"])

    assert written.names == ("a", "longest")
    assert listed.names == ("b", "len")


@pytest.mark.parametrize(
    ("typed", "name", "spec"),
    [
        ("longest", "longest", "longest"),
        ("short=shortest", "short", "shortest"),
        ("hf:org/some-rm", "some-rm", "hf:org/some-rm"),
        ("rm=hf:org/some-rm", "rm", "hf:org/some-rm"),
        ("vllm:http://me:secret@host/v1?a=b", "vllm:http://host/v1?a=b", None),
        ("call:pkg.mod:fn", "call:pkg.mod:fn", "call:pkg.mod:fn"),
    ],
)
def test_what_is_typed_gives_a_name(typed, name, spec):
    assert named(typed) == (name, spec or typed)


def test_a_folder_whose_name_has_an_equals_sign_is_a_folder(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model(BACKBONE).save(tmp_path / "lr=0.1")

    assert named("lr=0.1") == ("lr=0.1", "lr=0.1")


def test_two_models_of_one_name_are_refused_before_any_is_loaded(folders, tmp_path):
    with pytest.raises(RecipeError, match=r"two models are called 'math'.*NAME=DIR"):
        open_registry([str(folders / "math"), str(tmp_path / "missing" / "math")])


def test_more_names_than_models_are_refused(folders):
    with pytest.raises(RecipeError, match="2 names for 1 models"):
        open_registry([str(folders / "math")], names=["a", "b"])


def test_no_model_is_refused():
    with pytest.raises(RecipeError, match="no model to serve"):
        Registry([])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="no scorer"):
        open_registry([str(tmp_path / "none")])


def test_a_model_that_does_not_give_its_stored_scores_is_not_served(folders, tmp_path):
    made = model(BACKBONE).with_selftest(asked("q", "a"))
    with torch.no_grad():
        made.artifact.head.weight.add_(0.5)  # as if another version computed other states
    made.save(tmp_path / "moved")
    assert json.loads((tmp_path / "moved" / SELFTEST).read_text())

    with pytest.raises(SelfTestError, match="self-test 0 of moved: got score"):
        open_registry([str(tmp_path / "moved")])


def test_an_unknown_name_is_refused_with_the_nearest_or_all():
    registry = Registry.of({"math": PlainScorer(), "code": PlainScorer()})

    with pytest.raises(UnknownModelError, match=r"no model 'mth'.*Did you mean 'math'"):
        registry.get("mth")
    with pytest.raises(UnknownModelError, match="Choose from: math, code"):
        registry.get("zzz")


def test_what_a_model_can_show_is_known():
    heads = {
        "tokens": model(SpyBackbone()),
        "prompt": model(SpyBackbone(), pooling="prompt_end"),
        "plain": PlainScorer(),
    }
    found = {one.info.name: one.info for one in service(heads).registry}

    assert found["tokens"].can_show_tokens
    assert found["tokens"].can_show_layers
    assert not found["prompt"].can_show_tokens
    assert not found["plain"].can_show_tokens
    assert found["tokens"].dtype == "float32"
    assert found["plain"].context_length == 0


def test_scorers_without_a_backbone_are_served_with_their_own_scores():
    texts = ["a", "long answer", "mid one"]

    async def work():
        async with service(open_registry_of("longest", "shortest")) as made:
            answers = asked("q", *texts)
            return [await made.judge(call(*answers, name=n)) for n in ("longest", "shortest")]

    longest, shortest = run(work)
    assert [one.score for one in longest.judged] == [1.0, 11.0, 7.0]
    assert [one.score for one in shortest.judged] == [-1.0, -11.0, -7.0]


def open_registry_of(*specs):
    registry = open_registry(specs)
    assert all(isinstance(one.lane, AnswerLane) for one in registry)
    return {one.info.name: one.scorer for one in registry}


def test_a_classifier_is_served_with_its_offline_scores_for_messages_texts_and_ids(tmp_path):
    save_classifier(tmp_path / "rm", has_bos=True)
    scorer = SequenceClassifier.load(str(tmp_path / "rm"))
    answers = asked("2 + 2?", "4", "It is 5.")
    whole = [scorer.renderer.render_finished(answer).ids for answer in answers]
    text = scorer.renderer.text(whole[0]).removeprefix(BOS)  # as verl sends it
    items = [
        *(Item(answer=answer) for answer in answers),
        Item(text=text),
        Item(token_ids=whole[1]),
    ]

    async def work():
        async with service(scorer) as made:
            assert isinstance(made.registry.get(None).lane, ClassifierLane)
            return await made.judge(Call(None, tuple(items)))

    first, second = scorer.score(answers)
    got = [one.score for one in run(work).judged]
    assert got == pytest.approx([first, second, first, second], abs=1e-6)


def test_ids_beyond_the_vocabulary_of_a_classifier_are_refused(tmp_path):
    save_classifier(tmp_path / "rm")
    scorer = SequenceClassifier.load(str(tmp_path / "rm"))

    async def work():
        async with service(scorer) as made:
            with pytest.raises(RenderError, match=r"item 0: got the token id 1000000; .*0 to 26"):
                await made.judge(Call(None, (Item(token_ids=(5, 10**6)),)))

    run(work)


def test_a_text_whose_answer_cannot_be_found_is_scored_by_heads_of_the_last_token_only():
    heads = {
        "last": model(BACKBONE, pooling="last"),
        "mean": model(BACKBONE),
        "log_probability": LogProbabilityScorer(BACKBONE),
    }
    text = "no turn opens in here"

    async def work():
        async with service(heads) as made:
            found = await made.judge(Call("last", (Item(text=text),)))
            for name in ("mean", "log_probability"):
                with pytest.raises(RenderError, match=r"item 0: .*beginning was not found"):
                    await made.judge(Call(name, (Item(text=text),)))
            with pytest.raises(RenderError, match="beginning was not found"):
                await made.judge(Call("last", (Item(text=text),), Options(per_token=True)))
            return found.judged[0]

    got = run(work)
    assert got.score is not None
    assert any("span_unknown" in warning for warning in got.warnings)
