"""Names become backbones, and every mistake is told before weights are read."""

import json
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import torch
from tiny import FAMILIES, save_tiny, tiny_model, tiny_tokenizer

from retrm.backbone import load
from retrm.backbone.embedded import SMOLLM2
from retrm.backbone.fake import FakeBackbone
from retrm.backbone.load import load_backbone, resolve_model
from retrm.errors import BackboneError
from retrm.records import Answer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache in a folder of its own, and a hub at which nobody answers."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    return cache


def put_into_cache(cache: Path, repo: str, *, without: str = "") -> Path:
    """What a finished download of `repo` leaves behind: refs and a snapshot."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = cache / f"models--{repo.replace('/', '--')}"
    save_tiny(root / "snapshots" / commit)
    if without:
        (root / "snapshots" / commit / without).unlink()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_every_family_loads_with_the_logits_of_the_model_that_was_saved(
    family, tmp_path
):
    model, _ = save_tiny(tmp_path, family)
    backbone = load_backbone(str(tmp_path))
    ids = torch.tensor([[1, 2, 3]])

    assert torch.equal(backbone.model(ids).logits, model(ids).logits)
    assert (backbone.name, backbone.n_layers, backbone.width) == (str(tmp_path), 3, 16)
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not backbone.model.training
    rendered = backbone.renderer.render(Answer.of("hi", "yo"))
    # The end-of-turn token is counted and has no text.
    assert backbone.renderer.decode(rendered.ids[rendered.start : rendered.stop]) == "yo"


def test_fake_is_the_toy_backbone_and_runs_on_the_cpu_only():
    assert load_backbone("fake").fingerprint == FakeBackbone().fingerprint
    assert load_backbone("fake", counts_end=False).renderer.counts_end is False
    with pytest.raises(BackboneError, match="toy backbone; it runs in float32"):
        load_backbone("fake", dtype="bfloat16")


def test_the_embedded_name_resolves_without_a_download():
    assert resolve_model("smollm2-135m").kind == "embedded"


def test_the_converted_default_is_loaded_without_its_gguf(folder, monkeypatch):
    monkeypatch.setattr(load, "copy_of", lambda sha: folder if sha == SMOLLM2.sha256 else None)
    monkeypatch.setattr(load, "fetch_embedded", lambda **k: pytest.fail("downloaded"))

    assert load_backbone("smollm2-135m").n_layers == 3


def test_dtypes_are_those_asked_for(folder):
    assert load_backbone(str(folder), dtype="bfloat16").dtype == torch.bfloat16
    assert load_backbone(str(folder), dtype="auto").dtype == torch.float32
    change_config(folder, dtype="bfloat16")
    assert load_backbone(str(folder), dtype="auto").dtype == torch.bfloat16
    change_config(folder, dtype="float16")
    assert load_backbone(str(folder), dtype="auto").dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "bflaot16"}, "got dtype='bflaot16'. Did you mean 'bfloat16'"),
        ({"dtype": "float16"}, "overflows in it. Use bfloat16"),
        ({"device": "cuda:99"}, "device='cuda:99', which this machine does not have; it has cpu"),
        ({"device": "gpu"}, "got device='gpu'; expected auto, cpu, cuda"),
    ],
)
def test_a_wrong_option_is_told_before_the_model_is_looked_for(options, reason):
    with pytest.raises(BackboneError, match=reason):
        load_backbone("there/is-no-such-model", **options)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("{}"), "states no model_type"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights: expected model.safetens"),
        (
            lambda f: [p.unlink() for p in f.glob("*token*")],
            "has no tokenizer: expected tokenizer.json",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-1]
            ),
            "model.safetensors is cut short",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"\1\0"), "is cut short at 2 bytes"),
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs"),
            "pointer of git-lfs",
        ),
    ],
)
def test_a_folder_that_lacks_something_is_refused_before_weights_are_read(folder, spoil, reason):
    resolve_model(str(folder))
    spoil(folder)

    with pytest.raises(BackboneError, match=reason):
        resolve_model(str(folder))


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(BackboneError, match=r"lacks 2 of 2 weight files, model-00001-of-00002"):
        resolve_model(str(folder))


def test_shards_load_like_one_file(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    tiny_tokenizer(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1

    backbone = load_backbone(str(tmp_path))
    assert torch.equal(backbone.unembedding.weight, model.get_output_embeddings().weight)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "bert"}, r"an encoder-only model, which cannot generate .*'bert'"),
        ({"model_type": "modernbert"}, "encoder-only"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder-decoder"),
        ({"vision_config": {"hidden_size": 8}}, "a model of images or sound"),
        ({"model_type": "vit"}, "not a causal language model"),
        ({"model_type": "llama9"}, r"'llama9', which transformers .* does not know. Upgrade"),
        ({"model_type": "odd", "auto_map": {"AutoConfig": "x.Y"}}, "trust_remote_code=True"),
    ],
)
def test_models_of_another_kind_are_refused_by_name(folder, changes, reason):
    change_config(folder, **changes)

    with pytest.raises(BackboneError, match=reason):
        resolve_model(str(folder))


def test_a_checkpoint_without_its_lm_head_is_refused_rather_than_filled_with_noise(tmp_path):
    model = tiny_model()
    state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    tiny_tokenizer(tmp_path)

    with pytest.raises(BackboneError, match=r"lacks 1 weights .* lm_head\.weight among them"):
        load_backbone(str(tmp_path))


def test_tensors_of_another_shape_than_the_config_says_are_refused(folder):
    change_config(folder, intermediate_size=64)

    with pytest.raises(BackboneError, match=r"cannot load|lacks"):
        load_backbone(str(folder))


def test_a_damaged_tokenizer_is_told_with_its_folder(folder):
    (folder / "tokenizer.json").write_text("{}")

    with pytest.raises(BackboneError, match=r"transformers cannot load .* from .*model"):
        load_backbone(str(folder))


def test_folders_that_are_something_else_say_what_to_do(tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    (tmp_path / "gg").mkdir()
    (tmp_path / "gg" / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "final" / "config.json").write_text("{}")

    with pytest.raises(BackboneError, match="LoRA adapter: merge it"):
        resolve_model(str(tmp_path / "lora"))
    with pytest.raises(BackboneError, match=r"name the file itself, .*m\.gguf"):
        resolve_model(str(tmp_path / "gg"))
    with pytest.raises(BackboneError, match=r"Did you mean .*final"):
        resolve_model(str(tmp_path / "run"))


def test_paths_that_do_not_exist_offer_their_nearest_neighbour(folder):
    with pytest.raises(BackboneError, match=r"no file or folder .* Did you mean 'model'"):
        resolve_model(str(folder.parent / "modell"))
    with pytest.raises(BackboneError, match=r"no file or folder 'nothing\.gguf'"):
        resolve_model("nothing.gguf")
    with pytest.raises(BackboneError, match="empty model name"):
        resolve_model(" ")
    with pytest.raises(BackboneError, match=r"is a file but no GGUF file"):
        resolve_model(str(folder / "config.json"))


@pytest.mark.parametrize("name", ["smollm2-135", "SmolLM2-135M", "smolm2-135m-instruct"])
def test_a_mistyped_known_name_is_corrected_without_the_network(hub_cache, name):
    with pytest.raises(BackboneError, match=r"unknown model .* Did you mean 'smollm2-135m'"):
        resolve_model(name)


def test_a_hub_id_that_is_nowhere_says_what_was_tried(hub_cache):
    with pytest.raises(BackboneError, match=r"no file or folder .* nothing in the hub's cache"):
        resolve_model("nobody/nothing")


@pytest.mark.parametrize("is_offline", [True, False])
def test_a_cached_hub_model_loads_when_the_hub_is_out_of_reach(hub_cache, monkeypatch, is_offline):
    put_into_cache(hub_cache, "someone/tiny")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", is_offline)

    source = resolve_model("someone/tiny")
    backbone = load_backbone("someone/tiny")

    assert (source.kind, source.family) == ("hub", "llama")
    assert (backbone.name, backbone.n_layers) == ("someone/tiny", 3)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [("model.safetensors", "has no weights"), ("config.json", "has no config.json")],
)
def test_a_cached_hub_model_that_is_incomplete_says_what_is_missing(hub_cache, missing, reason):
    put_into_cache(hub_cache, "someone/tiny", without=missing)

    with pytest.raises(BackboneError, match=reason):
        load_backbone("someone/tiny")


def test_loading_is_silent_and_leaves_the_settings_of_transformers_alone(folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_backbone(str(folder))

    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_the_fingerprint_is_the_same_at_every_load(folder):
    one, other = load_backbone(str(folder)), load_backbone(str(folder), counts_end=False)

    assert one.fingerprint == load_backbone(str(folder)).fingerprint
    assert one.fingerprint.weights == other.fingerprint.weights
    assert one.fingerprint.template != other.fingerprint.template
