"""Whole trainings of tiny models: what is saved scores as what was trained, by every path.

A run takes about half a second of one processor, so tests share runs where they can.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmark_rows import process_bench_row, read, scored
from scored import reward_model
from served import client, service
from served import run as serve
from tiny import save_tiny
from trained import LORA, answers, options, pair_table, tiny, train, weights
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from retrm.backbone.load import load_backbone
from retrm.data.stepwise import load_steps
from retrm.errors import ArtifactError, BackboneError, ExportError, LabelError, RecipeError
from retrm.evaluation.benchmarks import benchmark
from retrm.features.recipe import Recipe
from retrm.finetuning.averaging import average_weights
from retrm.finetuning.classifier import HEAD, load_classifier, reward_heads
from retrm.finetuning.finetune import check_saved, finetune
from retrm.finetuning.language_model import lora_config
from retrm.finetuning.logged import FolderLog
from retrm.finetuning.members import train_members
from retrm.finetuning.reward_trainer import RewardModelTrainer, trained_head, trainer_config
from retrm.finetuning.run_folder import RunFolder
from retrm.pair_options import PairOptions
from retrm.records import Answer, AnswerTable
from retrm.scorers.open import open_scorer
from retrm.scorers.sequence_classifier import READOUT, SequenceClassifier

TEXTS = answers("yes", "no", "It is 4.", "yesyesyes")


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """A folder with a language model and two trainings on it: all weights, and low-rank updates."""
    folder = tmp_path_factory.mktemp("finetune")
    tiny(folder / "lm")
    table = pair_table(folder)
    train(folder, folder / "lm", table, "full")
    train(folder, folder / "lm", table, "lora", lora=LORA)
    return folder


def scores(folder: Path) -> np.ndarray:
    return SequenceClassifier.load(str(folder)).score(TEXTS)


# --------------------------------------------------------------------------------- saved = loaded = scored


def test_training_moves_the_scores_in_the_right_direction(room):
    for name in ("full", "lora"):
        found = scores(room / name / "model")
        assert found[0] > found[1]


def test_low_rank_updates_alone_score_as_the_merged_model(room):
    merged, alone = (scores(room / "lora" / part) for part in ("model", "adapter"))
    assert alone == pytest.approx(merged, rel=1e-5, abs=1e-6)
    # and plain transformers reads the merged folder as our scorer does
    tokenizer = AutoTokenizer.from_pretrained(room / "lora" / "model")
    model = AutoModelForSequenceClassification.from_pretrained(room / "lora" / "model").eval()
    ids = tokenizer.apply_chat_template(TEXTS[0].as_messages(), return_dict=True)["input_ids"]
    with torch.no_grad():
        assert model(torch.tensor([ids])).logits.item() == pytest.approx(merged[0], rel=1e-5)


@pytest.mark.parametrize("part", ["full/model", "lora/model", "lora/adapter"])
def test_what_was_saved_is_compared_with_what_was_trained(room, part):
    run = RunFolder(room / part.partition("/")[0])
    assert run.facts()["max_error"] < 1e-6
    scorer = SequenceClassifier.load(str(room / part))
    probes = [scorer.renderer.render_finished(answer) for answer in TEXTS]
    expected = np.stack([scorer.outputs(one) for one in probes])
    assert check_saved(room / part, probes, expected) == 0.0
    with pytest.raises(ArtifactError, match="gives other scores than the one that was trained"):
        check_saved(room / part, probes, expected + 0.01)


def test_a_served_model_gives_the_scores_that_were_saved(room):
    scorer = SequenceClassifier.load(str(room / "lora" / "model"))

    async def work():
        async with client(service(scorer)) as http:
            body = {"prompt": "q1?", "candidates": [answer.response for answer in TEXTS]}
            return await http.post("/v1/reward", json=body)

    reply = serve(work)
    got = [one["score"] for one in reply.json()["results"]]
    assert got == pytest.approx(scores(room / "lora" / "model"), rel=1e-6)


def test_engines_are_told_to_leave_scores_raw(room):
    for part in ("full/model", "lora/model", "lora/adapter"):
        config = json.loads((room / part / "config.json").read_text())
        assert config["problem_type"] == "regression"
        assert config["id2label"] == {"0": "score"}
        assert config["pad_token_id"] == 256


def test_a_head_that_was_lost_is_refused_and_not_drawn_at_random(room, tmp_path):
    from safetensors.torch import load_file, save_file

    for part, file in (("full/model", "model"), ("lora/adapter", "adapter_model")):
        copy = shutil.copytree(room / part, tmp_path / file)
        held = load_file(copy / f"{file}.safetensors")
        without = {name: value for name, value in held.items() if "score" not in name}
        assert len(without) == len(held) - 1
        save_file(without, copy / f"{file}.safetensors", {"format": "pt"})
        with pytest.raises(BackboneError, match="would be random"):
            SequenceClassifier.load(str(copy))


def test_a_language_model_is_no_reward_model(room):
    with pytest.raises(BackboneError, match=r"score\.weight.*trained by retrm finetune"):
        SequenceClassifier.load(str(room / "lm"))


def test_updates_on_another_model_are_refused(room, tmp_path):
    from transformers import AutoModelForCausalLM

    copy = shutil.copytree(room / "lora" / "adapter", tmp_path / "adapter")
    small = AutoModelForCausalLM.from_pretrained(room / "lm").config
    small.hidden_size, small.head_dim = 8, 2
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "small")
    shutil.copy(room / "lm" / "tokenizer.json", tmp_path / "small")
    shutil.copy(room / "lm" / "tokenizer_config.json", tmp_path / "small")
    config = json.loads((copy / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "small")
    (copy / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        BackboneError, match="Expected the language model that they were trained on"
    ):
        SequenceClassifier.load(str(copy))


def test_the_run_says_what_it_was(room):
    facts = RunFolder(room / "lora").facts()
    # 5 projections a block of width 16... what counts: a small part, and the head of 16 among it
    assert 16 < facts["n_trained"] < facts["n_parameters"]
    assert facts["data"] == {
        "n_rows": 8,
        "n_read": 8,
        "n_truncated": 0,
        "n_skipped": 0,
        "n_rendered": 0,
        "n_tokens": facts["data"]["n_tokens"],
    }
    assert facts["loss"][0] == pytest.approx(np.log(2), abs=1e-6)  # equal scores at first
    card = (room / "lora" / "model" / "README.md").read_text()
    assert "low-rank updates of rank 2, and the head" in card
    assert "8 of 8" in card


# ------------------------------------------------------------------------------------- killed, and gone on


class KilledError(Exception):
    """What a kill looks like from inside."""


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_killed_run_goes_on_to_the_same_weights(room, tmp_path, monkeypatch, lora):
    table, log = pair_table(tmp_path), FolderLog.on_log

    def killed(self, args, state, control, logs=None, **_):
        log(self, args, state, control, logs)
        if state.global_step == 3:
            raise KilledError

    monkeypatch.setattr(FolderLog, "on_log", killed)
    with pytest.raises(KilledError):
        train(tmp_path, room / "lm", table, lora=lora)
    monkeypatch.undo()
    folder = RunFolder(tmp_path / "run")
    assert [row["step"] for row in folder.metrics()] == [1, 2, 3]
    assert not folder.is_done

    made = train(tmp_path, room / "lm", table, lora=lora)

    assert (made.facts["resumed_at"], made.facts["steps"]) == (2, 4)
    assert [row["step"] for row in folder.metrics()] == [1, 2, 3, 4]
    whole = weights(room / ("lora" if lora else "full") / "model")
    for name, value in weights(made.model).items():
        assert value.numpy() == pytest.approx(whole[name].numpy(), abs=1e-6), name


def test_a_run_that_is_over_is_not_done_again(room):
    before = (room / "full" / "done.json").read_bytes()
    found = train(room, room / "lm", pair_table(room), "full")
    assert found.facts == json.loads(before)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"options": options(pairs=PairOptions(smoothing=0.1))}, "options"),
        ({"lora": LORA}, "lora"),
        ({"member": 1}, "member"),
    ],
)
def test_a_folder_of_another_run_is_refused(room, changes, name):
    with pytest.raises(ArtifactError, match=f"holds a run with {name}="):
        train(room, room / "lm", pair_table(room), "full", **changes)


def test_other_rows_another_template_or_another_checkpoint_are_another_run(room, tmp_path):
    with pytest.raises(ArtifactError, match="rows"):
        train(room, room / "lm", pair_table(tmp_path, n=6), "full")
    other = shutil.copytree(room / "lm", tmp_path / "lm")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.chat_template = tokenizer.chat_template.replace("user", "person") + " "
    tokenizer.save_pretrained(other)
    with pytest.raises(ArtifactError, match="template"):
        train(room, other, pair_table(room), "full")
    save_tiny(tmp_path / "larger", "qwen2")
    with pytest.raises(ArtifactError, match="checkpoint"):
        train(room, tmp_path / "larger", pair_table(room), "full")


def test_a_checkpoint_of_another_size_is_named(room, tmp_path):
    table = pair_table(tmp_path)
    made = train(tmp_path, room / "lm", table)
    (tmp_path / "run" / "done.json").unlink()
    kept = tmp_path / "run" / "checkpoints" / "checkpoint-2"
    kept.mkdir(parents=True)
    other = weights(made.model)
    other["score.weight"] = torch.zeros(1, 8)
    from safetensors.torch import save_file

    save_file(other, kept / "model.safetensors", {"format": "pt"})
    (kept / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    with pytest.raises(ArtifactError, match=r"of a model of another size.*Remove the folder"):
        train(tmp_path, room / "lm", table)


def test_a_damaged_language_model_is_named(room, tmp_path):
    from safetensors.torch import save_file

    copy = shutil.copytree(room / "lm", tmp_path / "lm")
    held = weights(copy)
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match=r"lacks 1 weights.*up_proj"):
        load_classifier(copy)
    held["model.norm.weight"] = torch.zeros(4)
    save_file(held, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(BackboneError, match=r"another size|cannot load"):
        load_classifier(copy)


# -------------------------------------------------------------------------------------------------- heads


def test_a_tokenizer_without_a_pad_token_of_its_own_gets_one(tmp_path):
    model = tiny(tmp_path / "lm")
    tokenizer = AutoTokenizer.from_pretrained(model)
    for pad in (None, tokenizer.eos_token):
        tokenizer.pad_token = pad
        tokenizer.save_pretrained(model)
        made = load_classifier(model)
        assert made.has_new_pad
        assert made.tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
        assert made.model.config.pad_token_id == made.tokenizer.pad_token_id
    run = train(tmp_path, model, pair_table(tmp_path), lora=LORA)
    assert scores(run.adapter) == pytest.approx(scores(run.model), rel=1e-5, abs=1e-6)
    assert run.facts["has_new_pad"]


def test_a_pad_token_beyond_the_embedding_gets_a_row(room):
    from retrm.finetuning.classifier import _make_room

    made = load_classifier(room / "lm")
    rows = made.model.get_input_embeddings().weight
    n, mean = rows.shape[0], rows.mean(0)
    _make_room(made.model, n + 2)
    grown = made.model.get_input_embeddings().weight
    assert grown.shape[0] == n + 3
    assert torch.allclose(grown[-1], mean, atol=1e-6)
    assert made.model.config.pad_token_id == n + 2


def test_training_goes_on_from_a_reward_model_with_its_head(room):
    kept = weights(room / "full" / "model")["score.weight"]
    made = load_classifier(room / "full" / "model")
    assert not made.has_new_head
    assert torch.equal(made.model.score.weight.detach(), kept)
    with pytest.raises(BackboneError, match="3 output"):
        load_classifier(room / "full" / "model", n_outputs=3)


def test_the_head_computes_in_float32_whatever_the_rest_does(room):
    head = load_classifier(room / "lm", std=1.0).model.score
    x = torch.randn(2, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(x.bfloat16())
    assert found.dtype == torch.float32
    exact = x.bfloat16().double() @ head.weight.detach().double().T
    assert found.detach().double() == pytest.approx(exact, abs=1e-5)


@pytest.fixture(scope="module")
def fitted(room) -> Path:
    """A linear head on the last token's last state, with weights that tell texts apart."""
    reward_model(load_backbone(str(room / "lm")), Recipe()).save(room / "fitted")
    return room / "fitted"


def test_a_training_from_a_fitted_head_starts_at_its_scores(room, fitted, tmp_path):
    head = open_scorer(str(fitted), model=str(room / "lm")).score(TEXTS)
    # A rate that moves nothing: what is saved is where it started.
    still = options(learning_rate=1e-12, epochs=0.25)
    for lora in (None, LORA):
        made = train(
            *(tmp_path, room / "lm", pair_table(tmp_path)),
            "lora" if lora else "full",
            options=still,
            lora=lora,
            start_head=fitted,
        )
        assert not made.facts["has_new_head"]
        assert scores(made.model) == pytest.approx(head, rel=1e-5, abs=1e-5)
        assert not (tmp_path / "full" / "start").exists()
    assert scores(tmp_path / "lora" / "adapter") == pytest.approx(head, rel=1e-5, abs=1e-5)
    assert np.ptp(head) > 0.1  # else the comparison would say nothing
    again = train(
        *(tmp_path, room / "lm", pair_table(tmp_path), "full"), options=still, start_head=fitted
    )
    assert again.facts["steps"] == 1


def test_a_head_that_is_no_last_layer_is_refused_before_any_work(room, tmp_path):
    backbone = load_backbone(str(room / "lm"))
    reward_model(backbone, Recipe(pooling="mean")).save(tmp_path / "mean")
    with pytest.raises(ExportError, match="pools by 'mean'"):
        train(tmp_path, room / "lm", pair_table(tmp_path), start_head=tmp_path / "mean")
    with pytest.raises(RecipeError, match="several outputs"):
        train(
            *(tmp_path, room / "lm", _graded()),
            options=options(kind="ordinal"),
            start_head=tmp_path / "mean",
        )


# ---------------------------------------------------------------------------------------- terms of the loss


def test_a_length_head_is_trained_beside_the_score_and_left_out_of_what_scores(room, tmp_path):
    from safetensors.torch import load_file

    made = train(
        tmp_path, room / "lm", pair_table(tmp_path), lora=LORA, options=options(length_heads=True)
    )
    aside = load_file(tmp_path / "run" / "length_head.safetensors")["length_head.weight"]
    assert aside.shape == (1, 16)
    kept = weights(made.model)
    assert [name for name in kept if "score" in name] == ["score.weight"]
    assert scores(made.adapter) == pytest.approx(scores(made.model), rel=1e-5, abs=1e-6)
    assert {"length_loss", "pair_loss"} <= RunFolder(tmp_path / "run").metrics()[0].keys()


def test_the_text_regulariser_moves_the_backbone_and_not_the_head_alone(room, tmp_path):
    # With a of nearly 1 and a head that starts at 0 the backbone gets its slope from the text.
    made = train(
        tmp_path, room / "lm", pair_table(tmp_path), options=options(text_share=0.99, epochs=0.5)
    )
    rows = RunFolder(tmp_path / "run").metrics()
    assert rows[0]["loss"] == pytest.approx(
        0.01 * rows[0]["pair_loss"] + 0.99 * rows[0]["text_loss"], rel=1e-5
    )
    before, after = weights(room / "lm"), weights(made.model)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[name], after[name])


def test_held_out_rows_are_looked_at_before_the_first_update(room, tmp_path):
    table = pair_table(tmp_path)
    train(
        *(tmp_path, room / "lm", table.take(range(8))),
        options=options(evaluate_steps=1),
        held_out=table.take(range(8, 16)),
    )
    looks = [r for r in RunFolder(tmp_path / "run").metrics() if "eval_loss" in r]
    assert [row["step"] for row in looks] == [0, 1, 2]
    assert looks[0]["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert looks[0]["eval_accuracy"] == 0.5  # equal scores are half right


def test_correlations_see_the_answers_of_all_processes_with_the_slope_of_one():
    # Two processes hold (1, 2) and (5, 7); f = sum of squares of all four, whose slope at x is 2x. Each
    # process has its own part of it, and the mean over processes halves what is not doubled first.
    mine, theirs = torch.tensor([5.0, 7.0], requires_grad=True), torch.tensor([1.0, 2.0])

    class Accelerator:
        num_processes, process_index = 2, 1

        def gather(self, values):
            return torch.cat([theirs, values])

    trainer = SimpleNamespace(accelerator=Accelerator())
    found = RewardModelTrainer._everywhere(trainer, mine)
    assert found.tolist() == [1.0, 2.0, 5.0, 7.0]
    found.square().sum().backward()
    assert (mine.grad / 2).tolist() == [10.0, 14.0]
    Accelerator.num_processes = 1
    assert RewardModelTrainer._everywhere(trainer, mine) is mine


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RecipeError, match=r"4 processes .* a multiple of 8"):
        trainer_config(
            *(options(batch_size=4), tmp_path),
            **{"n_rows": 8, "is_low_rank": True, "dtype": "float32", "device": "cpu"},
        )


# --------------------------------------------------------------------------------------------- other labels


def _graded() -> AnswerTable:
    texts = ("no", "no yes", "yes")
    made = [Answer.of(f"q{i}", text) for i in range(4) for text in texts]
    return AnswerTable(tuple(made), np.array([0.0, 2.0, 5.0] * 4))


def test_grades_are_scored_by_their_expected_level_and_never_without_it(room, tmp_path):
    made = train(tmp_path, room / "lm", _graded(), options=options(kind="ordinal"))
    scorer = SequenceClassifier.load(str(made.model))
    one = scorer.renderer.render_finished(TEXTS[0])
    p = np.exp(scorer.outputs(one))
    p /= p.sum()
    assert len(p) == 3
    assert scorer.score(TEXTS[:1])[0] == pytest.approx(p @ [0.0, 2.0, 5.0], abs=1e-9)
    assert made.facts["loss"][0] == pytest.approx(np.log(3), abs=1e-6)

    path = made.model / "config.json"
    config = json.loads(path.read_text())
    for readout in (None, {"kind": "expected_level", "levels": [0, 1]}, {"kind": "votes"}):
        config[READOUT] = readout
        path.write_text(json.dumps(config))
        with pytest.raises(BackboneError, match="3 outputs"):
            SequenceClassifier.load(str(made.model))


def test_ratings_have_an_output_each_and_the_score_is_their_mean(room, tmp_path):
    plain = _graded()
    ratings = {"kind": plain.labels / 5, "long": np.full(12, 0.5)}
    table = AnswerTable(plain.answers, np.full(12, np.nan), ratings=ratings)
    made = train(
        tmp_path, room / "lm", table, lora=LORA, options=options(kind="ratings", init_std=0.1)
    )
    scorer = open_scorer(f"hf:{made.model}")
    assert scorer.objectives == ("kind", "long")
    found = scorer.objective_scores(TEXTS)
    assert found.shape == (4, 2)
    assert scorer.score(TEXTS) == pytest.approx(found.mean(axis=1))
    assert scores(made.adapter) == pytest.approx(scorer.score(TEXTS), rel=1e-5, abs=1e-6)


def test_step_labels_are_trained_on_and_scored_by_process_bench(room, tmp_path):
    steps = [
        {"problem": f"q{i}", "steps": ["Right.", "Wrong!", "So."], "label": 1} for i in range(6)
    ]
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in steps))
    table = load_steps(path)
    assert len(table) == 12
    made = train(
        *(tmp_path, room / "lm", table),
        options=options(kind="steps", epochs=4, learning_rate=1e-2, batch_size=4),
    )
    assert made.facts["loss"][-1] < made.facts["loss"][0]
    rows = [process_bench_row("gsm8k", i, 3, 1 if i else -1, is_right=not i) for i in range(2)]
    loaded = read("process_bench", {"gsm8k": rows})
    scorer = open_scorer(f"hf:{made.model}")
    items = scored(loaded.items, lambda item: scorer.score(item.answers))
    figures = benchmark("process_bench").figures(items)
    assert figures[0].metric == "mean F1"
    # The whole is judged by the score of its beginnings, one rule or another.
    whole = loaded.items[1].answers[-1]
    own = scorer.score(loaded.items[1].answers)
    assert open_scorer(f"steps:min:hf:{made.model}").score([whole])[0] == pytest.approx(own.min())


# ------------------------------------------------------------------------------------------------- members


def test_members_start_alike_and_their_mean_is_the_mean_of_their_weights(room, tmp_path):
    table = pair_table(tmp_path)

    def one(folder, member, n_scale):
        return finetune(
            *(table, str(room / "lm"), folder), options=options(), member=member, n_scale=n_scale
        )

    made = train_members(tmp_path / "warm", 2, "warm", one)

    first, other = (weights(run.model) for run in made.runs)
    assert not torch.equal(first["score.weight"], other["score.weight"])
    for name, value in weights(tmp_path / "warm" / "model").items():
        assert torch.allclose(value, (first[name] + other[name]) / 2, atol=1e-7), name
    assert np.isfinite(open_scorer(made.scorer).score(TEXTS)).all()

    # The same members as an ensemble: each on its own scale, then the mean.
    shutil.copytree(tmp_path / "warm", tmp_path / "both")
    for number in (1, 2):
        config = tmp_path / "both" / f"member-{number}" / "model" / "config.json"
        stored = json.loads(config.read_text())
        stored["retrm_training_scores"] = {"mean": 0.25 * number, "std": 0.5}
        config.write_text(json.dumps(stored))
    both = train_members(tmp_path / "both", 2, "mean", one)
    own = [scores(run.model) for run in both.runs]
    expected = sum((s - 0.25 * k) / 0.5 for k, s in enumerate(own, 1)) / 2
    assert open_scorer(both.scorer).score(TEXTS) == pytest.approx(expected, abs=1e-6)

    with pytest.raises(RecipeError, match=r"differs .* in lora"):
        average_weights([tmp_path / "warm" / "member-1", room / "lora"], tmp_path / "no")
    with pytest.raises(RecipeError, match="two different ones"):
        average_weights([room / "lora", room / "lora"], tmp_path / "no")
    with pytest.raises(ArtifactError, match="is not over"):
        average_weights([room / "lora", tmp_path], tmp_path / "no")
    with pytest.raises(RecipeError, match="expected two or more"):
        train_members(tmp_path, 1, "warm", one)
    with pytest.raises(RecipeError, match="Did you mean 'warm'"):
        train_members(tmp_path, 2, "warn", one)


def test_the_spread_of_training_scores_is_stored_for_ensembles(room, tmp_path):
    table = pair_table(tmp_path)
    made = finetune(
        table, str(room / "lm"), RunFolder(tmp_path / "run"), options=options(), n_scale=6
    )
    scorer = SequenceClassifier.load(str(made.model))
    first = [table.answers[row] for pair in table.pairs[:3] for row in (pair.chosen, pair.rejected)]
    found = scorer.score(first)
    assert scorer.training_scores["mean"] == pytest.approx(found.mean(), abs=1e-6)
    assert scorer.training_scores["std"] == pytest.approx(found.std(), rel=1e-4)


# ------------------------------------------------------------------------------------------ before any work


def test_mistakes_surface_before_weights_are_loaded(room, tmp_path, monkeypatch):
    monkeypatch.setattr("retrm.finetuning.finetune.load_classifier", None)
    with pytest.raises(LabelError, match="needs a grade"):
        train(tmp_path, room / "lm", pair_table(tmp_path), options=options(kind="ordinal"))
    with pytest.raises(BackboneError, match="Did you mean 'bfloat16'"):
        train(tmp_path, room / "lm", pair_table(tmp_path), dtype="bfloat1")
    with pytest.raises(BackboneError, match="accelerators that it sees"):
        train(tmp_path, room / "lm", pair_table(tmp_path), device="cuda:1")
    with pytest.raises(BackboneError, match="toy backbone"):
        train(tmp_path, "fake", pair_table(tmp_path))
    assert not (tmp_path / "run").exists()


def test_the_head_that_is_trained_is_found_beside_the_one_before(room):
    from peft import get_peft_model

    model = get_peft_model(load_classifier(room / "lm").model, lora_config(LORA, head=HEAD))
    assert len(reward_heads(model)) == 2
    assert "modules_to_save" in next(
        n for n, m in model.named_modules() if m is trained_head(model)
    )
