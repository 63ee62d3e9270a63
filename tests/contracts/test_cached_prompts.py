"""Prompts whose keys and values are kept: every family against answers that are read alone."""

import families
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.backbone import batching, states
from retrm.backbone.base import Rendered
from retrm.backbone.batching import build, plan_batches
from retrm.features.read import read_rendered
from retrm.features.recipe import Recipe
from retrm.features.reduce import Reducer

CACHING = [
    name
    for name in families.FAMILIES
    if families.backbone_of(families.FAMILIES[name](), name).caches_prompts
]


def answers(n_prompt: int, lengths: list[int], seed: int = 1) -> list[Rendered]:
    draw = torch.Generator().manual_seed(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, families.VOCAB_SIZE, (n,), generator=draw).tolist())

    prompt = ids(n_prompt)
    return [Rendered(prompt + ids(n), n_prompt, n_prompt + n) for n in lengths]


@pytest.fixture
def eager_caching(monkeypatch):
    """Tiny prompts are cached too, and pass in pieces of 7 tokens."""
    monkeypatch.setattr(batching, "_SHORTEST_CACHED", 2)
    monkeypatch.setattr(batching, "_SHARED_ROW", 1)
    monkeypatch.setattr(states, "_PREFIX_TOKENS", 7)


def plans_of(rendered, budget):
    return plan_batches(rendered, tokens_per_batch=budget, share_prompts=True, cache_prompts=True)


@pytest.mark.parametrize("family", CACHING)
def test_states_behind_a_cached_prompt_are_those_of_an_answer_alone(family, eager_caching):
    made = families.backbone_of(families.FAMILIES[family](), family)
    # Longer than the window of 6 of the families that have one; two prompts, interleaved.
    first, second = answers(16, [5, 9, 1, 7]), answers(11, [4, 12, 3], seed=2)
    rendered = [first[0], second[0], first[1], second[1], first[2], second[2], first[3]]
    assert any(plan.rows[0].n_cached for plan in plans_of(rendered, 14))
    wanted = [(i, p) for i in range(made.n_layers + 1) for p in ("residual", "post_norm")]
    for plan in plans_of(rendered, 14):
        batch = build(plan, rendered, 0)
        seen = {}
        made.forward(batch, wanted, lambda i, p, x, seen=seen: seen.update({(i, p): x.clone()}))
        for i, row, span, before in zip(
            batch.answers, batch.rows, batch.spans, batch.previous, strict=True
        ):
            alone = {}
            own = build(
                plan_batches([rendered[i]], tokens_per_batch=999)[0], rendered[i : i + 1], 0
            )
            made.forward(own, wanted, lambda i, p, x, a=alone: a.update({(i, p): x.clone()}))
            for key in wanted:
                for here, there in ((span, own.spans[0]), (before, own.previous[0])):
                    expected = alone[key][0, there]
                    error = (seen[key][row, here] - expected).abs().max() / expected.abs().max()
                    assert error < 1e-5, key
    assert made._prefix is None  # nothing is held once the last batch is done


def test_a_lower_reading_before_a_higher_one_does_not_leave_half_a_cache(eager_caching):
    made = families.backbone_of(families.FAMILIES["llama"](), "llama")
    rendered = answers(12, [6, 6, 6])
    first, second = (build(plan, rendered, 0) for plan in plans_of(rendered, 14)[:2])
    got = {}
    made.forward(first, [(1, "residual")], lambda *_: None)  # reads the prompt up to layer 1 only
    top = (made.n_layers, "post_norm")
    made.forward(second, [top], lambda i, p, x: got.update({(i, p): x.clone()}))
    alone = {}
    item = [rendered[second.answers[0]]]
    own = build(plan_batches(item, tokens_per_batch=999)[0], item, 0)
    made.forward(own, [top], lambda i, p, x: alone.update({(i, p): x.clone()}))
    assert torch.allclose(
        got[top][0, second.spans[0]], alone[top][0, own.spans[0]], rtol=1e-4, atol=1e-5
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 40), st.integers(0, 3)), max_size=14),
    st.integers(1, 300),
)
def test_every_answer_is_planned_once_and_every_prefix_is_begun_and_ended(items, budget):
    # (tokens of the prompt, of the answer, which prompt of that length)
    rendered = [Rendered((which,) * p + (9,) * r, p, p + r) for p, r, which in items]
    plans = plans_of(rendered, budget)
    found = sorted(i for plan in plans for row in plan.rows for i in row.answers)
    assert found == list(range(len(items)))
    held = None
    for plan in plans:
        row = plan.rows[0]
        if not row.n_cached:
            assert held is None
            continue
        prompt = rendered[row.answers[0]].ids[: row.n_cached]
        assert len(plan.rows) == 1
        assert row.n_cached == row.n_prompt - 1
        assert plan.begins_prefix == (held is None)
        assert held in (None, prompt)
        held = None if plan.ends_prefix else prompt
        own = 1 + sum(rendered[i].n_response for i in row.answers)
        assert row.n_tokens == own
        assert plan.n_tokens == own + (row.n_cached if plan.begins_prefix else 0)
    assert held is None


def test_a_long_prompt_is_read_once_for_all_its_answers():
    # 8 answers x 40 tokens behind 1,500: 1 + 320 tokens of rows, and 1,499 of the prompt.
    rendered = answers(1500, [40] * 8)
    plans = plans_of(rendered, 1024)
    assert sum(plan.n_tokens for plan in plans) == 1 + 320 + 1499
    alone = plan_batches(rendered, tokens_per_batch=1024, share_prompts=True)
    assert sum(plan.n_tokens for plan in alone) == 8 * 1540


def test_features_are_the_same_whether_prompts_are_cached_or_not(eager_caching, monkeypatch):
    made = families.backbone_of(families.FAMILIES["llama"](), "llama")
    rendered = answers(16, [5, 9, 1, 7, 8])
    for recipe in (Recipe(layers="all", pooling="mean"), Recipe(source="log_probability")):
        monkeypatch.setattr(made, "caches_prompts", True)
        cached = read_rendered(made, rendered, Reducer(recipe, made)).values
        monkeypatch.setattr(made, "caches_prompts", False)
        plain = read_rendered(made, rendered, Reducer(recipe, made)).values
        assert torch.allclose(cached, plain, rtol=1e-4, atol=1e-5)


def test_a_reducer_that_needs_the_prompt_gets_all_of_it(eager_caching):
    made = families.backbone_of(families.FAMILIES["llama"](), "llama")
    reducer = Reducer(Recipe(), made)
    reducer.reads_prompts = True
    widths = []
    whole = reducer.visit

    def visit(layer, point, seen, index, batch):
        widths.append((seen.shape[1], batch.prefix))
        whole(layer, point, seen, index, batch)

    reducer.visit = visit
    read_rendered(made, answers(16, [5, 9]), reducer)
    assert all(width >= 16 + 5 and not prefix for width, prefix in widths)
