"""`retrm inspect` of a feature store: how much is kept and the bytes of each token."""

import json

import pytest
import torch

from retrm.backbone.fake import FakeBackbone
from retrm.cli.main import main
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


def run(*arguments: str) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return left.value.code or 0


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
    assert "manifest.json" in capsys.readouterr().err


def test_sizes_fit_what_torch_says(store):
    found = {recipe.name: recipe for recipe in summary_of(store).recipes}

    for name, recipe in found.items():
        assert recipe.dtype == RECIPES[name].dtype
        assert (
            recipe.bytes_per_row
            == torch.empty(recipe.n_features, dtype=getattr(torch, recipe.dtype)).nbytes
        )
