"""Stored features: loaded by name and by column, in row order, whatever order they arrived in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.backbone.base import Fingerprint
from retrm.errors import StoreError
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features, Layout
from retrm.store.shards import ShardSink

PRINT = Fingerprint("w", "u", "t", "c")
RECIPES = {"pooled": Recipe(), "tokens": Recipe(pooling="tokens")}
LAYOUTS = {"pooled": Layout(6, True, torch.float32), "tokens": Layout(4, False, torch.float16)}


def features_of(row):
    """Row `row` of the imagined reading: row + 1 tokens."""
    pooled = torch.arange(6.0)[None] + 10 * row
    tokens = torch.arange(4.0)[None].half() + torch.arange(row + 1.0)[:, None] + 100 * row
    return {
        "pooled": Features(pooled, torch.arange(2), True),
        "tokens": Features(tokens.half(), torch.tensor([0, row + 1]), False),
    }


def stored(folder, order, keys=None, layouts=LAYOUTS):
    """Rows put into a store one by one, in that order."""
    keys = [f"k{row}" for row in range(len(order))] if keys is None else keys
    sink = ShardSink(folder, RECIPES, PRINT)
    sink.open(keys)
    for row in order:
        sink.add([row], features_of(row))
    return sink.close(len(keys), layouts)


@pytest.fixture(params=[1, 64 << 20], ids=["a shard a row", "one shard"])
def shard_bytes(request, monkeypatch):
    monkeypatch.setattr("retrm.store.shards.SHARD_BYTES", request.param)


@pytest.mark.usefixtures("shard_bytes")
def test_rows_come_back_in_row_order(tmp_path):
    found = stored(tmp_path / "s", [3, 0, 2, 1])

    for row in range(4):
        for name in RECIPES:
            expected = features_of(row)[name].values
            assert torch.equal(found[name].take([row]).values, expected), (name, row)
    assert found["tokens"].offsets.tolist() == [0, 1, 3, 6, 10]
    assert found["tokens"].values.dtype == torch.float16


@pytest.mark.usefixtures("shard_bytes")
@pytest.mark.parametrize(("start", "stop"), [(0, 6), (0, 2), (2, 4), (5, 6)])
def test_columns_are_the_slice_of_the_whole(tmp_path, start, stop):
    found = stored(tmp_path / "s", [1, 2, 0])
    part = found.columns("pooled", start, stop)

    assert torch.equal(part.values, found["pooled"].values[:, start:stop])
    assert part.is_pooled
    assert torch.equal(part.offsets, found["pooled"].offsets)
    tokens = found.columns("tokens", min(start, 3), 4)
    assert torch.equal(tokens.values, found["tokens"].values[:, min(start, 3) : 4])


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(5)), st.integers(1, 400))
def test_any_order_and_any_cut_into_shards_gives_the_same(tmp_path_factory, order, shard_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrm.store.shards.SHARD_BYTES", shard_bytes)
        found = stored(tmp_path_factory.mktemp("s"), order)

    for name in RECIPES:
        whole = torch.cat([features_of(row)[name].values for row in range(5)])
        assert torch.equal(found[name].values, whole)


def test_a_repeated_answer_is_served_to_every_row_that_asks(tmp_path):
    # Stored as keys a, b, c; asked for as c, a, a, b.
    stored(tmp_path / "s", [0, 1, 2], keys=["a", "b", "c"])
    sink = ShardSink(tmp_path / "s", RECIPES, PRINT)

    assert sink.open(["c", "a", "a", "b"]) == {0, 1, 2, 3}
    found = sink.close(4, LAYOUTS)
    for row, source in enumerate([2, 0, 0, 1]):
        for name in RECIPES:
            expected = features_of(source)[name].values
            assert torch.equal(found[name].take([row]).values, expected), (name, row)
    assert found.columns("pooled", 1, 2).values.flatten().tolist() == [21, 1, 1, 11]


def test_answers_that_are_not_asked_for_are_left_on_disk(tmp_path):
    stored(tmp_path / "s", [0, 1, 2, 3])
    sink = ShardSink(tmp_path / "s", RECIPES, PRINT)
    sink.open(["k2"])

    assert sink.close(1, LAYOUTS)["pooled"].values.tolist() == [[20, 21, 22, 23, 24, 25]]


def test_features_are_a_mapping_by_name(tmp_path):
    found = stored(tmp_path / "s", [0])

    assert list(found) == ["pooled", "tokens"]
    assert len(found) == 2
    with pytest.raises(KeyError):
        found["other"]


def test_nothing_read_gives_empty_features(tmp_path):
    found = stored(tmp_path / "s", [])

    assert found["pooled"].values.shape == (0, 6)
    assert found.columns("tokens", 0, 2).values.shape == (0, 2)


def test_a_shard_that_goes_missing_after_reading_is_an_error_by_name(tmp_path):
    found = stored(tmp_path / "s", [0, 1])
    (tmp_path / "s" / "shard-00000.safetensors").unlink()

    with pytest.raises(StoreError, match=r"shard-00000\.safetensors.*read again"):
        found["pooled"]


def test_states_that_have_waited_long_are_written_though_they_fill_no_shard(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("retrm.store.shards.time.monotonic", lambda: now)
    sink = ShardSink(tmp_path / "s", RECIPES, PRINT)
    now = 2000.0
    sink.open(["k0", "k1", "k2"])  # only then it begins
    counts = []
    for row, seconds in enumerate((59.0, 60.0, 119.0)):  # the second shard would be due at 120
        now = 2000.0 + seconds
        sink.add([row], features_of(row))
        counts.append(len(list((tmp_path / "s").glob("shard-*"))))

    assert counts == [0, 1, 1]
    # A kill here has lost the last row only.
    assert ShardSink(tmp_path / "s", RECIPES, PRINT).open(["k0", "k1", "k2"]) == {0, 1}
