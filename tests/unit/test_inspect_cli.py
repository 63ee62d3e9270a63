"""`retrm inspect`, `retrm doctor` and `retrm export` as a person calls them."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from command_line import run

from retrm.backbone.fake import FakeBackbone
from retrm.backbone.load import load_backbone
from retrm.features.recipe import Recipe
from retrm.features.subspace import SubspaceSpec, fit_subspace
from retrm.heads.artifact import Artifact, BackboneIdentity
from retrm.heads.linear import LinearHead
from retrm.records import Answer
from retrm.scorers.reward_model import RewardModel

METRICS = {
    "n_prompts": 12,
    "n_mixed": 9,
    "rows": [
        {
            "name": "retrm",
            "kind": "head",
            "pooled_auroc": {"value": 0.71, "low": 0.6, "high": 0.8},
            "within_auroc": {"value": 0.655, "low": 0.61, "high": 0.7},
            "best_of_n": {"value": 0.5, "low": 0.4, "high": 0.6},
        },
        {"name": "pass@1", "kind": "bound", "best_of_n": {"value": 0.3, "low": 0.2, "high": 0.4}},
    ],
}


def saved(folder, backbone=None, *, metrics=None, **recipe):
    """A reward model in `folder` with a random linear head without bias."""
    backbone, recipe = backbone or FakeBackbone(), Recipe(**recipe)
    spec = SubspaceSpec.parse(recipe.subspace)
    basis = fit_subspace(backbone.unembedding, spec, "post_norm")
    head = LinearHead(spec.n_dims(backbone.width))
    head.weight.data = torch.randn(head.n_features, generator=torch.Generator().manual_seed(0))
    identity = BackboneIdentity(
        backbone.name, backbone.fingerprint, "float32", backbone.n_layers, backbone.width
    )
    artifact = Artifact(
        method="retrm",
        recipe=recipe,
        head=head,
        loss="bradley_terry",
        bases={} if basis is None else {"post_norm": basis},
        backbone=identity,
        selftest=[],
        fitted={"source": "rollouts.jsonl", "n_train_answers": 1234, "seed": 0},
        metrics=metrics or {},
    )
    model = RewardModel(artifact, backbone).with_selftest([Answer.of("2 + 2?", "4")])
    model.save(folder)
    return model


@pytest.fixture
def llama(tmp_path) -> str:
    tiny.save_tiny(tmp_path / "llama", "llama", has_bos=True)
    return str(tmp_path / "llama")


def test_a_model_is_told_in_words_with_its_spectrum_and_the_caveat(llama, capsys) -> None:
    assert run("inspect", llama) == 0

    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "3 blocks: layer 0 = embedding output",
        "family llama",
        "RMSNorm",
        "272 rows of the LM head",
        "reasoning:5% = last 1 of 16",
        "is an unproven idea",
    ):
        assert words in said


def test_a_layer_norm_model_with_one_folded_direction_less_is_inspected(tmp_path, capsys) -> None:
    tiny.save_tiny(tmp_path / "gpt2", "gpt2")

    assert run("inspect", str(tmp_path / "gpt2"), "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert found["norm_kind"] == "layer"
    assert len(found["spectrum"]["raw"]["singular_values"]) == 16
    assert len(found["spectrum"]["folded"]["singular_values"]) == 15


def test_json_of_a_model_is_one_object_with_true_figures(llama, capsys) -> None:
    assert run("inspect", llama, "--json") == 0

    found = json.loads(capsys.readouterr().out)
    backbone = load_backbone(llama)
    values = torch.linalg.svdvals(backbone.unembedding.weight.double())
    assert found["n_layers"] == 3
    assert found["is_tied"] is False
    assert found["n_params"] == sum(p.numel() for p in backbone.model.parameters())
    assert found["spectrum"]["raw"]["singular_values"] == pytest.approx(values.tolist(), rel=1e-6)
    assert found["spectrum"]["raw"]["below_cut"] == pytest.approx(float(values[-1]), rel=1e-6)


def test_a_picture_is_written_only_when_asked_for(tmp_path, capsys) -> None:
    assert run("inspect", "fake") == 0
    assert list(tmp_path.glob("*.png")) == []

    assert run("inspect", "fake", "--plot", str(tmp_path / "s.png")) == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert f"wrote {tmp_path / 's.png'}" in capsys.readouterr().out.replace("\n", "")


def test_a_picture_that_cannot_be_written_is_told_before_a_model_is_loaded(
    tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("retrm.backbone.load.load_backbone", None)

    assert run("inspect", "fake", "--plot", str(tmp_path)) == 2
    assert "is a folder" in " ".join(capsys.readouterr().err.split())


def test_a_reward_model_is_told_without_loading_its_backbone(tmp_path, capsys, monkeypatch) -> None:
    saved(tmp_path / "rm", metrics=METRICS, subspace="reasoning:2")
    monkeypatch.setattr("retrm.backbone.load.load_backbone", None)

    assert run("inspect", str(tmp_path / "rm")) == 0

    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "method retrm",
        "fake: 3 blocks, width 16, float32",
        "reasoning:2; 2 directions at post_norm from 260 rows",
        "linear on 2 features, 3 parameters",
        "loss bradley_terry",
        "1,234",
        "1 answers, replayed on load",
        ".655 [.610, .700]",
        "12 prompts, 9 with right and wrong",
        "is an unproven idea",
    ):
        assert words in said


def test_a_folder_of_several_is_refused_with_their_names(tmp_path, capsys, monkeypatch) -> None:
    for name in ("first/elhsr", "first/retrm", "second"):
        saved(tmp_path / "runs" / name)
    (tmp_path / "runs" / "first" / "features").mkdir()
    (tmp_path / "runs" / "first" / "features" / "manifest.json").write_text("{}")
    monkeypatch.setattr("retrm.backbone.load.load_backbone", None)

    for folder, names in (
        ("runs", ("runs/first/elhsr", "runs/first/retrm", "runs/second")),
        ("runs/first", ("runs/first/elhsr", "runs/first/features", "runs/first/retrm")),
    ):
        assert run("inspect", str(tmp_path / folder)) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "ArtifactError" in said
        assert "is none itself, 3 lie below it" in said
        listed = said.split("Name one of them: ")[1]
        assert listed == ", ".join(str(tmp_path / name) for name in names)


@pytest.mark.parametrize(("verb", "page"), [("eval", "report.html"), ("audit", "audit.html")])
def test_a_folder_of_results_is_refused_with_its_page(verb, page, tmp_path, capsys) -> None:
    (tmp_path / page).write_text("<html>")

    assert run("inspect", str(tmp_path)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"ArtifactError: {tmp_path} holds what retrm {verb} found" in said
    assert said.endswith(f"See {tmp_path / page}")


def test_epochs_are_told_as_their_number_and_the_one_that_was_kept(tmp_path, capsys) -> None:
    model = saved(tmp_path / "rm", metrics=METRICS)
    epochs = [
        {"number": i, "training_loss": 2.522099733352661 - i, "validation_loss": None}
        for i in range(1, 11)
    ]
    fitted = {"epochs": epochs, "kept_epoch": 2, "start_penalty": None, "streamed": False}
    RewardModel(replace(model.artifact, fitted=fitted), model.backbone).save(tmp_path / "rm")

    assert run("inspect", str(tmp_path / "rm")) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "fitted: epochs 10" in lines
    # 2.522099733352661 - 2 = 0.522099733352661
    assert "fitted: kept epoch number 2, training loss 0.5221, validation loss none" in lines
    assert "fitted: start penalty none" in lines
    assert "fitted: streamed no" in lines
    (bound,) = (line for line in lines if line.startswith("pass@1"))
    assert bound == "pass@1 – – .300 [.200, .400]"


def test_the_caveat_is_left_out_where_no_reasoning_subspace_is_read(tmp_path, capsys) -> None:
    saved(tmp_path / "rm")

    assert run("inspect", str(tmp_path / "rm")) == 0

    said = capsys.readouterr().out
    assert "proven" not in said
    assert "No held-out figures" in said


def test_json_of_a_reward_model_is_its_manifest(tmp_path, capsys) -> None:
    saved(tmp_path / "rm", metrics=METRICS)

    assert run("inspect", str(tmp_path / "rm"), "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert found["recipe"]["point"] == "post_norm"
    assert found["metrics"] == METRICS
    assert found["n_selftest"] == 1


def test_a_damaged_reward_model_is_refused(tmp_path, capsys) -> None:
    saved(tmp_path / "rm")
    (tmp_path / "rm" / "head.safetensors").write_bytes(b"x")

    assert run("inspect", str(tmp_path / "rm")) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_plot_of_a_reward_model_is_refused(tmp_path, capsys) -> None:
    saved(tmp_path / "rm")

    assert run("inspect", str(tmp_path / "rm"), "--plot", str(tmp_path / "s.png")) == 2
    assert "Inspect its backbone instead" in " ".join(capsys.readouterr().err.split())


def test_doctor_exits_with_0_and_a_table_when_all_is_well(llama, capsys) -> None:
    assert run("doctor", llama) == 0

    said = capsys.readouterr().out
    assert "layer numbers" in said
    assert "16 of 16 checks passed" in said


def test_doctor_exits_with_1_and_names_what_failed(capsys, monkeypatch) -> None:
    class Zeros(FakeBackbone):
        def forward(self, batch, wanted, visit):
            super().forward(batch, wanted, lambda i, p, x: visit(i, p, torch.zeros_like(x)))

    monkeypatch.setattr("retrm.backbone.load.load_backbone", lambda *_, **__: Zeros())

    assert run("doctor", "fake") == 1
    said = capsys.readouterr().out
    assert "FAILED" in said
    assert "finite" in said.splitlines()[-1] + said.splitlines()[-2]


def test_doctor_json_is_one_object_with_every_check(capsys) -> None:
    assert run("doctor", "fake", "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert {check["name"] for check in found["checks"]} >= {"spans", "resume", "shared prompts"}


def test_export_writes_a_checkpoint_and_says_how_to_load_it(tmp_path, llama, capsys) -> None:
    saved(tmp_path / "rm", load_backbone(llama))

    assert run("export", str(tmp_path / "rm"), "--to", "hf", "-o", str(tmp_path / "out")) == 0

    assert (tmp_path / "out" / "model.safetensors").is_file()
    said = " ".join(capsys.readouterr().out.split())
    assert "5 scores agree" in said  # 1 of the self-test, 4 conversations
    assert "AutoModelForSequenceClassification" in said


def test_export_refuses_before_a_model_is_loaded(tmp_path, capsys, monkeypatch) -> None:
    saved(tmp_path / "rm", pooling="mean")
    monkeypatch.setattr("retrm.scorers.reward_model.open_backbone", None)

    assert run("export", str(tmp_path / "rm"), "-o", str(tmp_path / "out")) == 2
    assert "pools by 'mean'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("verb", ["inspect", "doctor", "export"])
def test_help_explains_every_option(verb, capsys) -> None:
    assert run(verb, "--help") == 0

    said = capsys.readouterr().out
    assert "--json" in said
    assert "one JSON object on stdout" in " ".join(said.replace("│", " ").split())
