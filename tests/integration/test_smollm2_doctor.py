"""The embedded default, read and exported end to end."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from retrm.doctor import check_backbone, texts
from retrm.features.recipe import Recipe
from retrm.features.subspace import SubspaceSpec, fit_subspace
from retrm.heads.artifact import Artifact, BackboneIdentity
from retrm.heads.linear import LinearHead
from retrm.scorers.export import export_sequence_classifier
from retrm.scorers.reward_model import RewardModel

pytestmark = pytest.mark.slow


def test_smollm2_passes_every_check(smollm2, monkeypatch) -> None:
    # Every kind of text, the long one a third as long: all eight are padded to it, twice.
    monkeypatch.setattr(texts, "_PASSAGE", texts._PASSAGE[:300])
    report = check_backbone(smollm2)

    assert [check for check in report.checks if not check.passed] == []
    # One dimension reaches tens of thousands: float16 features would be close to overflow.
    assert report.check("magnitude").figure > 6550
    assert "keep features in float32 or bfloat16" in report.check("magnitude").detail


def test_a_reasoning_subspace_head_on_smollm2_exports_exactly(smollm2, tmp_path) -> None:
    recipe = Recipe(subspace="reasoning:5%")
    basis = fit_subspace(smollm2.unembedding, SubspaceSpec.parse(recipe.subspace), "post_norm")
    head = LinearHead(29)
    head.weight.data = torch.randn(29, generator=torch.Generator().manual_seed(0))
    identity = BackboneIdentity(smollm2.name, smollm2.fingerprint, "float32", 30, 576)
    bases = {"post_norm": basis}
    artifact = Artifact("retrm", recipe, head, "bce", bases, identity, [], {}, {})
    model = RewardModel(artifact, smollm2)
    answers = ("7", "The answer is 7.", "I would say eight.")

    result = export_sequence_classifier(model, tmp_path / "out")

    # Its pad token is its end token, which a classifier would skip.
    assert result.has_new_pad
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    chats = [
        [{"role": "user", "content": "What is 3 + 4?"}, {"role": "assistant", "content": text}]
        for text in answers
    ]
    batch = tokenizer.apply_chat_template(
        chats, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        got = loaded(**batch).logits[:, 0].double().numpy()
    expected = model.score([("What is 3 + 4?", text) for text in answers])
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-5)
