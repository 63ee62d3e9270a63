"""Pooling token by token gives what pooling the whole answer gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.backbone.fake import FakeBackbone
from retrm.features.recipe import Recipe
from retrm.features.reduce import BatchIndex, Reducer, pool
from retrm.features.running import RunningPool

BACKBONE = FakeBackbone()
WIDTH = BACKBONE.width


def running(pooling: str, **options) -> RunningPool:
    return RunningPool(Reducer(Recipe(pooling=pooling, **options), BACKBONE))


def index_of(lengths: list[int]) -> BatchIndex:
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    return BatchIndex(owner, owner, owner, offsets, owner)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["last", "mean", "max"]),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
    st.integers(0, 1000),
)
def test_rows_that_stop_at_different_tokens_pool_as_whole_answers_do(pooling, lengths, seed):
    draw = torch.Generator().manual_seed(seed)
    answers = [torch.randn(n, WIDTH, generator=draw) for n in lengths]
    made = running(pooling)
    made.begin(torch.randn(len(lengths), WIDTH, generator=draw))  # the prompt's end is no token
    for t in range(max(lengths)):
        rows = [a[t] if t < len(a) else torch.full((WIDTH,), 1e9) for a in answers]
        made.feed(torch.stack(rows), torch.tensor([t < n for n in lengths]))

    expected = pool(torch.cat(answers), index_of(lengths), pooling)
    assert torch.allclose(made.values(), expected, atol=1e-5)


def test_the_end_of_the_prompt_stays_what_it_was():
    made, first = running("prompt_end"), torch.randn(2, WIDTH)
    made.begin(first)
    for _ in range(3):
        made.feed(torch.randn(2, WIDTH), None)

    assert torch.equal(made.values(), first)


def test_rows_join_below_and_leave_without_touching_the_others():
    made = running("mean")
    made.begin(torch.zeros(2, WIDTH))
    made.feed(torch.stack([torch.full((WIDTH,), 1.0), torch.full((WIDTH,), 5.0)]), None)
    made.begin(torch.zeros(1, WIDTH))
    made.feed(torch.full((3, WIDTH), 3.0), None)
    made.keep(torch.tensor([0, 2]))
    made.feed(torch.full((2, WIDTH), 8.0), None)

    # Row 0 saw 1, 3 and 8: 12 / 3 = 4. The one that joined saw 3 and 8: 11 / 2 = 5.5.
    assert made.values()[:, 0].tolist() == [4.0, 5.5]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_sum_is_kept_in_float32_and_rounded_at_the_end(dtype):
    made = running("mean", dtype=dtype)
    made.begin(torch.zeros(1, WIDTH))
    for _ in range(3000):
        made.feed(torch.full((1, WIDTH), 1.0), None)

    # A float16 sum of ones stops at 2048, a bfloat16 sum at 256.
    assert made.values().dtype == getattr(torch, dtype)
    assert made.values()[0, 0].item() == 1.0
