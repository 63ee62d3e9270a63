"""`retrm inspect` of a feature store: how much is kept and the bytes of each token."""

import json

import pytest
import torch
from command_line import run
from safetensors.torch import load_file

from retrm.backbone.fake import FakeBackbone
from retrm.errors import StoreError
from retrm.features.read import read
from retrm.features.recipe import Recipe
from retrm.records import Answer
from retrm.store.shards import ShardSink
from retrm.store.summary import summary_of

# The toy has width 16 and layers 0..3. Answers "ab!" and "c!" have 4 and 3 tokens with their ends.
RECIPES = {
    "last_token": Recipe(),
    "elhsr": Recipe(layers="all", point="hidden_states", pooling="tokens", dtype="bfloat16"),
}
ANSWERS = [Answer.of("q", "ab!"), Answer.of("q", "c!")]
N_TOKENS = 4 + 3


@pytest.fixture
def store(tmp_path):
    backbone = FakeBackbone()
    sink = ShardSink(tmp_path / "features", RECIPES, backbone.fingerprint)
    read(backbone, ANSWERS, RECIPES, sink=sink)
    return tmp_path / "features"


def test_json_states_the_bytes_of_each_token_and_answer(store, capsys):
    assert run("inspect", str(store), "--json") == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["n_answers"], found["n_tokens"], found["n_shards"]) == (2, N_TOKENS, 1)
    assert found["is_finished"] is True
    assert found["precision"] == "float32"
    elhsr, last = found["features"]["elhsr"], found["features"]["last_token"]
    assert (elhsr["kept_per"], elhsr["bytes_per_row"]) == ("token", 4 * 16 * 2)
    assert elhsr["bytes_per_token"] == 4 * 16 * 2
    assert elhsr["n_bytes"] == 4 * 16 * 2 * N_TOKENS
    assert (last["kept_per"], last["bytes_per_row"]) == ("answer", 16 * 4)
    assert last["bytes_per_token"] == pytest.approx(2 * 16 * 4 / N_TOKENS)
    files = [store / "index.parquet", *store.glob("shard-*")]
    assert found["n_bytes"] == sum(path.stat().st_size for path in files)


def test_what_a_store_costs_is_told_in_words(store, capsys):
    assert run("inspect", str(store)) == 0

    said = " ".join(capsys.readouterr().out.split())
    for words in ("finished", "7 of the answers", "1 shards", "128 B a token", "64 B an answer"):
        assert words in said


def test_a_store_of_pooled_features_does_not_guess_tokens(tmp_path, capsys):
    backbone, recipes = FakeBackbone(), {"last_token": Recipe()}
    read(backbone, ANSWERS, recipes, sink=ShardSink(tmp_path / "f", recipes, backbone.fingerprint))

    found = summary_of(tmp_path / "f")
    assert found.n_tokens is None
    assert found.recipes[0].bytes_per_token is None
    assert run("inspect", str(tmp_path / "f")) == 0
    assert "not known: no recipe keeps tokens" in " ".join(capsys.readouterr().out.split())


def test_an_unfinished_store_is_told_as_such(tmp_path, capsys):
    backbone = FakeBackbone()
    sink = ShardSink(tmp_path / "f", RECIPES, backbone.fingerprint)
    sink.open(["k"])

    assert run("inspect", str(tmp_path / "f")) == 0
    assert "not finished: the same command goes on" in " ".join(capsys.readouterr().out.split())


def test_a_damaged_store_is_refused_and_a_plot_of_one_too(store, capsys):
    assert run("inspect", str(store), "--plot", "x.png") == 2
    assert "this is a feature store" in " ".join(capsys.readouterr().err.split())
    (store / "manifest.json").unlink()
    assert run("inspect", str(store)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds shards but no manifest.json" in said
    assert "restore it" in said


def flipped(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x80
    path.write_bytes(raw)


def test_a_byte_of_the_keys_that_is_no_text_is_an_error_and_no_traceback(store, capsys):
    shard = store / "shard-00000.safetensors"
    keys = load_file(shard)["keys"].numpy().tobytes()
    flipped(shard, shard.read_bytes().index(keys))

    assert run("inspect", str(store)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "shard-00000.safetensors is damaged: byte 0 of its keys" in said


@pytest.mark.parametrize("file", ["shard-00000.safetensors", "index.parquet"])
def test_verify_finds_a_flipped_byte_that_sizes_and_headers_do_not_show(file, store, capsys):
    assert run("inspect", str(store), "--verify") == 0
    assert "every byte agrees" in " ".join(capsys.readouterr().out.split())
    # Behind the header the widest numbers come first: the last features, or the index's own bytes.
    path = store / file
    flipped(path, path.stat().st_size // 2)

    assert run("inspect", str(store)) == 0
    assert "checksums are compared with --verify" in " ".join(capsys.readouterr().out.split())
    assert run("inspect", str(store), "--verify") == 2
    assert f"{file} is damaged" in " ".join(capsys.readouterr().err.split())


def test_a_folder_with_a_manifest_of_something_else_is_no_store_and_is_not_to_be_deleted(
    tmp_path, capsys
):
    (tmp_path / "manifest.json").write_text('{"name": "my web app"}')

    assert run("inspect", str(tmp_path)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "is no feature store: its manifest.json is of something else" in said
    assert "delete" not in said
    with pytest.raises(StoreError, match=r"is no feature store: it holds no manifest\.json"):
        summary_of(tmp_path / "nothing")


def test_sizes_fit_what_torch_says(store):
    found = {recipe.name: recipe for recipe in summary_of(store).recipes}

    for name, recipe in found.items():
        assert recipe.dtype == RECIPES[name].dtype
        assert (
            recipe.bytes_per_row
            == torch.empty(recipe.n_features, dtype=getattr(torch, recipe.dtype)).nbytes
        )
