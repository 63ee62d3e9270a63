"""Training of discriminators: the loss against plain torch, what is saved, kills, bad input."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from polar_models import polar_network, polar_template, save_polar, save_published
from tiny import save_tiny

from retrm.backbone.reference import END, SEPARATOR
from retrm.errors import (
    ArtifactError,
    BackboneError,
    DataError,
    FitError,
    OverlongError,
    RecipeError,
)
from retrm.finetuning.comparisons import Comparison, Split
from retrm.finetuning.language_model import LoraOptions
from retrm.finetuning.polar import (
    PolarOptions,
    batch_loss,
    collate,
    encode_rows,
    open_for_training,
    paper_schedule,
    train_polar,
)
from retrm.finetuning.polar_trainer import PolarTrainer
from retrm.finetuning.run_folder import RunFolder
from retrm.losses import bradley_terry
from retrm.records import Answer, Reference
from retrm.scorers.polar import PolarScorer

pytest.importorskip("peft")
pytest.importorskip("trl")

SHORT = PolarOptions(
    epochs=2,
    batch_size=4,
    device_batch=2,
    learning_rate=3e-3,
    max_length=120,
    max_response=20,
    save_steps=2,
)


def rows_of(n: int, *, seed: int = 0) -> tuple[Comparison, ...]:
    """Two policies: one writes vowels, the other consonants, both a third of noise."""
    rng = random.Random(seed)

    def text(policy: str) -> str:
        letters = {"vowels": "aeiou", "rest": "bcdfg"}[policy]
        return "".join(rng.choice(letters if rng.random() < 0.7 else "xyz") for _ in range(10))

    made = []
    for i in range(n):
        first, second = ("vowels", "rest") if i % 2 else ("rest", "vowels")
        prompt = f"{seed}-{i}"
        made.append(
            Comparison(
                *(prompt, Reference(text(first), "pretrain"), text(first), text(second)),
                policies=(first, second),
                prompt_id=prompt,
                where=f"row {i}",
            )
        )
    return tuple(made)


ROWS = Split(rows_of(12), rows_of(6, seed=1), ())


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm")
    save_tiny(path, "llama")
    return str(path)


# ------------------------------------------------------------------------------------------------ the loss


def test_the_loss_of_a_gap_is_that_of_the_worked_table():
    for gap, wanted in (
        (0, 0.693147),
        (0.5, 0.474077),
        (1, 0.313262),
        (2, 0.126928),
        (10.46, 2.866e-5),
    ):
        found = float(bradley_terry(torch.tensor([gap - 3.0]), torch.tensor([-3.0])))
        assert found == pytest.approx(wanted, rel=2e-3 if gap > 10 else 1e-5)


def test_swapping_the_candidates_adds_the_gap_to_the_loss():
    chosen, rejected = torch.tensor([0.7]), torch.tensor([-0.6])
    gap = bradley_terry(rejected, chosen) - bradley_terry(chosen, rejected)
    assert float(gap) == pytest.approx(1.3, abs=1e-6)


def plain_loss(model, template, rows) -> torch.Tensor:
    """Text by text, unpadded, with the definition of the sigmoid."""
    total = 0.0
    for row in rows:
        scores = []
        for candidate in (row.chosen, row.rejected):
            text = f"{row.prompt}{row.reference.text}{SEPARATOR}{row.prompt}{candidate}{END}"
            ids = torch.tensor([template.tokenizer(text)["input_ids"]])
            states = model.model(input_ids=ids).last_hidden_state
            scores.append((states[0, -1] * model.score.weight[0]).sum())
        total = total - torch.log(1 / (1 + torch.exp(scores[1] - scores[0])))
    return total / len(rows)


def test_the_loss_of_a_padded_batch_and_its_gradients_are_those_of_plain_torch():
    model, template = polar_network().double(), polar_template()
    rows = [replace(row, chosen=row.chosen[: 3 + i]) for i, row in enumerate(rows_of(3))]
    encoded, _ = encode_rows(rows, template, "error")
    names = ["score.weight", "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"]
    weights = [dict(model.named_parameters())[name] for name in names]

    # Float32 in the loss itself bounds the agreement.
    found = batch_loss(model, collate(encoded, template.end_id, 0))
    wanted = plain_loss(model, template, rows)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), abs=1e-6)
    for a, b in zip(
        torch.autograd.grad(found, weights), torch.autograd.grad(wanted, weights), strict=True
    ):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    chosen = torch.randn(5, dtype=torch.float64, requires_grad=True)
    rejected = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bradley_terry, (chosen, rejected))


# --------------------------------------------------------------------------------------------- what is new


def test_a_language_model_gets_a_head_of_zeros_and_two_tokens_with_the_mean_embedding(
    language_model,
):
    model, template, was_discriminator = open_for_training(language_model, limits=None)
    n_known = len(template.tokenizer) - 2
    weights = model.get_input_embeddings().weight.detach()

    assert not was_discriminator
    assert not model.score.weight.any()
    for token in (template.separator_id, template.end_id):
        torch.testing.assert_close(weights[token], weights[:n_known].mean(0))
    assert model.config.pad_token_id not in (None, template.end_id)
    # The context of the tiny model, and a quarter of it.
    assert (template.limits.max_length, template.limits.max_response) == (256, 64)


def test_training_begins_at_ln_2_and_the_loss_falls(language_model, tmp_path):
    many = Split(rows_of(64), rows_of(16, seed=1), ())
    options = replace(SHORT, epochs=3, batch_size=8, device_batch=8, learning_rate=1e-2)
    facts = train_polar(many, language_model, RunFolder(tmp_path / "run"), options=options)

    assert facts["loss"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert facts["test_loss"] < 0.5
    assert facts["test_accuracy"] > 0.8
    found = json.loads((tmp_path / "run" / "discrimination.json").read_text())
    assert set(found["test"]["by_pair"]) == {"vowels | rest", "rest | vowels"}


@pytest.mark.parametrize("rank", [0, 4])
def test_what_is_saved_scores_as_what_was_trained(language_model, tmp_path, rank, monkeypatch):
    seen = {}
    import retrm.finetuning.polar as module

    def measured(rows, scorer, folder):
        seen["scorer"] = scorer
        return {}

    monkeypatch.setattr(module, "_measured", measured)
    folder = RunFolder(tmp_path / "run")
    facts = train_polar(ROWS, language_model, folder, options=SHORT, lora=LoraOptions(rank=rank))

    row = ROWS.test[0]
    prompt = Answer.of(row.prompt, "x").prompt
    answers = [
        Answer(prompt, text, "p", reference=row.reference) for text in (row.chosen, row.rejected)
    ]
    trained, loaded = seen["scorer"].score(answers), PolarScorer.load(folder.path).score(answers)
    np.testing.assert_allclose(loaded, trained, atol=1e-6)
    assert np.abs(trained).max() > 1e-4
    assert facts["n_trained"] <= facts["n_parameters"]
    config = json.loads((folder.model / "config.json").read_text())
    assert config["problem_type"] == "regression"
    assert (folder.path / "adapter").is_dir() == (rank > 0)


def test_low_rank_training_moves_head_and_new_tokens_and_no_other_embedding(
    language_model, tmp_path
):
    before, template, _ = open_for_training(language_model, limits=None)
    folder = RunFolder(tmp_path / "run")
    train_polar(ROWS, language_model, folder, options=SHORT, lora=LoraOptions(rank=2))
    after = PolarScorer.load(folder.path).model

    assert after.score.weight.any()
    old, new = (m.get_input_embeddings().weight.detach() for m in (before, after))
    moved = (old != new).any(dim=1).nonzero().flatten().tolist()
    assert moved == sorted((template.separator_id, template.end_id))


def test_a_discriminator_is_gone_on_with(language_model, tmp_path):
    first = RunFolder(tmp_path / "first")
    train_polar(ROWS, language_model, first, options=SHORT)
    second = RunFolder(tmp_path / "second")
    options = replace(SHORT, max_length=None, max_response=None)
    facts = train_polar(ROWS, str(first.path), second, options=options)

    assert facts["was_discriminator"]
    # Limits are those of before.
    assert (facts["max_length"], facts["max_response"]) == (120, 20)


def test_a_published_model_can_be_fine_tuned(tmp_path):
    save_published(tmp_path / "published", polar_network())
    options = replace(SHORT, epochs=1, batch_size=12, device_batch=12)
    facts = train_polar(
        ROWS, str(tmp_path / "published"), RunFolder(tmp_path / "run"), options=options
    )

    assert facts["was_discriminator"]
    assert facts["steps"] == 1
    assert PolarScorer.load(tmp_path / "run").template.limits.max_length == 120


# --------------------------------------------------------------------------------------------------- kills


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    language_model, tmp_path, monkeypatch, rank
):
    lora = LoraOptions(rank=rank)
    whole = RunFolder(tmp_path / "whole")
    train_polar(ROWS, language_model, whole, options=SHORT, lora=lora)

    killed = RunFolder(tmp_path / "killed")
    plain = PolarTrainer.compute_loss

    def dies(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PolarTrainer, "compute_loss", dies)
        with pytest.raises(KeyboardInterrupt):
            train_polar(ROWS, language_model, killed, options=SHORT, lora=lora)
    assert not killed.is_done
    facts = train_polar(ROWS, language_model, killed, options=SHORT, lora=lora)

    assert facts["resumed_at"] == 2
    assert [row["step"] for row in killed.metrics()] == [row["step"] for row in whole.metrics()]
    for one, other in zip(weights_of(whole), weights_of(killed), strict=True):
        torch.testing.assert_close(one, other)
    assert not killed.checkpoints.exists()


def weights_of(folder: RunFolder):
    return list(PolarScorer.load(folder.path).model.state_dict().values())


def test_another_run_in_the_folder_is_refused_and_a_finished_one_is_read(language_model, tmp_path):
    folder = RunFolder(tmp_path / "run")
    facts = train_polar(ROWS, language_model, folder, options=SHORT)

    assert train_polar(ROWS, language_model, folder, options=SHORT) == facts
    with pytest.raises(ArtifactError, match="holds a run with options"):
        train_polar(ROWS, language_model, folder, options=replace(SHORT, epochs=1))
    other = Split(ROWS.train[:-1], ROWS.test, ())
    with pytest.raises(ArtifactError, match="train_sha"):
        train_polar(other, language_model, folder, options=SHORT)


# ------------------------------------------------------------------------------------------------ bad input


def test_long_rows_under_every_policy():
    template = polar_template(100, 12)
    rows = (*rows_of(2), replace(rows_of(1)[0], chosen="a" * 30, where="row 9"))

    with pytest.raises(OverlongError, match=r"row 9: .*truncate_left"):
        encode_rows(rows, template, "error")
    cut, counts = encode_rows(rows, template, "truncate_left")
    assert len(cut) == 3
    assert counts == {"cut": 1, "skipped": 0}
    left, counts = encode_rows(rows, template, "skip")
    assert [row.place for row in left] == [0, 1]
    assert counts == {"cut": 0, "skipped": 1}


def test_no_room_for_a_prompt_is_an_error_unless_such_rows_are_skipped():
    template = polar_template(24, 12)  # (24 - 4 - 10 - 10) / 2 = 0 a side
    for policy in ("error", "truncate_left"):
        with pytest.raises(OverlongError, match=r"row 0: .*of max_length=24"):
            encode_rows(rows_of(1), template, policy)
    assert encode_rows(rows_of(1), template, "skip")[1]["skipped"] == 1


def test_a_run_without_a_row_is_refused(language_model, tmp_path):
    options = replace(SHORT, max_length=24, max_response=10, overlong="skip")
    with pytest.raises(DataError, match="none of 12 rows is left"):
        train_polar(ROWS, language_model, RunFolder(tmp_path / "run"), options=options)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 5, "device_batch": 2}, "multiple"),
        ({"overlong": "cut"}, "overlong"),
        ({"save_steps": 0}, "save_steps=0"),
    ],
)
def test_impossible_options_are_refused(change, said):
    with pytest.raises(RecipeError, match=said):
        PolarOptions(**change)


def test_limits_beyond_the_context_are_refused(language_model, tmp_path):
    with pytest.raises(RecipeError, match="max_length=1000; the model takes 256"):
        train_polar(
            ROWS, language_model, RunFolder(tmp_path / "r"), options=replace(SHORT, max_length=1000)
        )


def test_a_model_that_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="toy backbone"):
        open_for_training("fake", limits=None)
    save_tiny(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(BackboneError, match=r"(?i)size|mismatch"):
        open_for_training(str(tmp_path), limits=None)


def test_a_tokenizer_without_pad_token_can_be_trained_with(tmp_path):
    save_tiny(tmp_path / "lm", "llama")
    path = tmp_path / "lm" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("pad_token", None)
    path.write_text(json.dumps(config))
    facts = train_polar(ROWS, str(tmp_path / "lm"), RunFolder(tmp_path / "run"), options=SHORT)

    assert facts["steps"] == 6
    scorer = PolarScorer.load(tmp_path / "run")
    row = ROWS.test[0]
    rows = [
        Answer(Answer.of("p", "x").prompt, text, "p", reference=row.reference)
        for text in ("ab", "abcdefgh")
    ]
    together, alone = scorer.score(rows), [scorer.score([r])[0] for r in rows]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    save_polar(tmp_path / "old")
    model = PolarScorer.load(tmp_path / "old").model
    model.score.weight.data.fill_(float("inf"))
    model.save_pretrained(tmp_path / "old")

    with pytest.raises((FitError, ValueError), match=r"(?i)nan|finite|infinite"):
        train_polar(ROWS, str(tmp_path / "old"), RunFolder(tmp_path / "run"), options=SHORT)


def test_the_papers_schedule_gives_the_papers_settings():
    # N 1,800 M, D_p 2,500 G, D_rm 940 G -> 1.397e-5 and 2,021; N 7,000, 4,000, 3,600 -> 1.636e-5 and 4,525.
    lr, batch = paper_schedule(1800, 2500, 940)
    assert (lr, batch) == (pytest.approx(1.397e-5, rel=1e-3), pytest.approx(2021, rel=1e-3))
    lr, batch = paper_schedule(7000, 4000, 3600)
    assert (lr, batch) == (pytest.approx(1.636e-5, rel=1e-3), pytest.approx(4525, rel=1e-3))
    with pytest.raises(RecipeError, match="above 0"):
        paper_schedule(0, 1, 1)


def test_the_path_of_a_run_is_what_scorers_open(language_model, tmp_path):
    folder = RunFolder(tmp_path / "run")
    train_polar(ROWS, language_model, folder, options=replace(SHORT, epochs=1))
    from retrm.scorers.open import open_scorer

    assert Path(open_scorer(f"polar:{folder.path}").name).name == "run"


# ---------------------------------------------------------------------------------------- the command line


def test_the_command_line_trains_and_prints_facts(language_model, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row.as_dict()) + "\n" for row in ROWS.train))
    (tmp_path / "polar.toml").write_text(
        "[training]\nbatch_size = 4\ndevice_batch = 4\nmax_length = 120\n"
    )
    words = ["polar", "train", rows, "--model", language_model, "--config", tmp_path / "polar.toml"]

    assert run(*words, "--test-fraction", "0.25", "-o", tmp_path / "run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"] == {"train": 9, "test": 3, "held_out": 0}
    assert run("score", f"hf:{tmp_path / 'run' / 'model'}", rows, "-o", tmp_path / "s.jsonl") == 2
    assert "use polar:" in capsys.readouterr().err
    assert run(*words, "--test", rows, "-o", tmp_path / "other") == 2
    assert "is trained on as well" in capsys.readouterr().err
    (tmp_path / "polar.toml").write_text("[training]\nlearning_rat = 1\n")
    assert run(*words, "-o", tmp_path / "other") == 2
    assert "Did you mean 'learning_rate'" in capsys.readouterr().err
    assert run("polar", "trian") == 2
    assert "Did you mean 'train'" in capsys.readouterr().err
