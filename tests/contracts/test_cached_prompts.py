"""Prompts whose keys and values are kept: every family against answers that are read alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import families
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.backbone import batching, states
from retrm.backbone.base import Rendered
from retrm.backbone.batching import build, plan_batches
from retrm.features import read as read_module
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


@pytest.fixture
def serves(monkeypatch):
    """Whether a kept prompt was taken, for each batch that came behind one."""
    answered = []
    whole = states._Prefix.serves

    def spy(self, ids, wanted):
        answered.append(whole(self, ids, wanted))
        return answered[-1]

    monkeypatch.setattr(states._Prefix, "serves", spy)
    return answered


def shown_by(made, batch, wanted):
    """(layer, point) -> states of all rows of `batch`."""
    seen = {}
    made.forward(batch, wanted, lambda i, p, x: seen.update({(i, p): x.clone()}))
    return seen


@pytest.mark.parametrize("family", CACHING)
def test_states_behind_a_cached_prompt_are_those_of_an_answer_alone(family, eager_caching, serves):
    made = families.backbone_of(families.FAMILIES[family](), family)
    # Longer than the window of 6 of the families that have one; two prompts, interleaved.
    first, second = answers(16, [5, 9, 1, 7, 8, 3]), answers(11, [4, 12, 3], seed=2)
    rendered = [first[0], second[0], first[1], second[1], first[2], second[2], *first[3:]]
    plans = plans_of(rendered, 14)
    wanted = [(i, p) for i in range(made.n_layers + 1) for p in ("residual", "post_norm")]
    found = {}
    # All of them before any answer is read alone: such a pass throws the kept prompt away.
    for plan in plans:
        batch = build(plan, rendered, 0)
        seen = shown_by(made, batch, wanted)
        for i, *where in zip(batch.answers, batch.rows, batch.spans, batch.previous, strict=True):
            row, *places = where
            found[i] = {key: [seen[key][row, at] for at in places] for key in wanted}
    # With a last prompt token no more than 14 a row: [9], [8], [7 5], [3 1] and [12], [4 3].
    # Each batch but the first of a prompt finds it kept.
    assert [len(plan.rows[0].answers) for plan in plans] == [1, 1, 2, 2, 1, 2]
    assert serves == [True] * 4
    assert made._held.prefix is None  # nothing is held once the last batch is done
    for i, own_item in enumerate(rendered):
        own = build(plan_batches([own_item], tokens_per_batch=999)[0], [own_item], 0)
        alone = shown_by(made, own, wanted)
        for key in wanted:
            for got, at in zip(found[i][key], (own.spans[0], own.previous[0]), strict=True):
                expected = alone[key][0, at]
                assert (got - expected).abs().max() < 1e-5 * expected.abs().max(), key


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


def own_states(made, batch, key, visited=None):
    """Judged states of the answers of `batch`, by what `forward` shows."""
    shown = {}

    def visit(layer, point, states):
        if visited is not None:
            visited(layer)
        shown[layer, point] = states.clone()

    made.forward(batch, [(0, "residual"), key], visit)
    return [shown[key][row, span] for row, span in zip(batch.rows, batch.spans, strict=True)]


def all_states(made, rendered, key):
    """(tokens, width) of every answer, in order, each behind the cached prompt."""
    found = {}
    for plan in plans_of(rendered, 14):
        batch = build(plan, rendered, 0)
        found |= zip(batch.answers, own_states(made, batch, key), strict=True)
    return torch.cat([found[i] for i in range(len(rendered))])


def alone_states(made, rendered, key):
    """The same, each answer in a pass of its own."""
    plans = [plan_batches([one], tokens_per_batch=999)[0] for one in rendered]
    batches = (build(plan, [one], 0) for plan, one in zip(plans, rendered, strict=True))
    return torch.cat([own_states(made, batch, key)[0] for batch in batches])


def test_a_reading_that_was_given_up_leaves_nothing_for_a_changed_model(eager_caching):
    made = families.backbone_of(families.FAMILIES["llama"](), "llama")
    rendered, key = answers(12, [6, 6, 6]), (made.n_layers, "post_norm")
    first = build(plans_of(rendered, 14)[0], rendered, 0)
    before = alone_states(made, rendered, key)
    own_states(made, first, key)  # and nobody comes for the others
    with torch.no_grad():
        made.model.get_input_embeddings().weight.mul_(2.0)

    behind = all_states(made, rendered, key)
    now = alone_states(made, rendered, key)
    assert (now - before).abs().max() > 0.01
    assert torch.allclose(behind, now, rtol=1e-4, atol=1e-5)


def test_a_pass_that_fails_leaves_nothing_held(eager_caching):
    made = families.backbone_of(families.FAMILIES["llama"](), "llama")
    rendered = answers(12, [6, 6, 6])
    first = build(plans_of(rendered, 14)[0], rendered, 0)

    def fail(_layer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own_states(made, first, (made.n_layers, "post_norm"), fail)
    assert made._held.prefix is None


def test_two_threads_behind_the_same_prompt_do_not_share_its_cache(eager_caching):
    made = families.backbone_of(families.FAMILIES["llama"](), "llama")
    rendered, key = answers(12, [6] * 6), (made.n_layers, "post_norm")
    first, second, third = (build(plan, rendered, 0) for plan in plans_of(rendered, 14)[:3])
    assert not third.begins_prefix
    own_states(made, first, key)
    expected = own_states(made, second, key), own_states(made, third, key)
    is_inside, may_go_on = threading.Event(), threading.Event()

    def pause(layer):
        if layer == 0:
            is_inside.set()
            assert may_go_on.wait(10)

    own_states(made, first, key)
    with ThreadPoolExecutor(1) as pool:
        # The other thread has the prompt's keys and its own in a cache when this one comes.
        other = pool.submit(own_states, made, second, key, pause)
        assert is_inside.wait(10)
        here = own_states(made, third, key)
        may_go_on.set()
        there = other.result(10)
    for found, wanted in ((there, expected[0]), (here, expected[1])):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    # Two prompts, one of them long enough to be kept, and answers to either.
    st.tuples(st.integers(64, 90), st.integers(1, 90)),
    st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=14),
    st.integers(1, 300),
)
def test_every_answer_is_planned_once_and_every_prefix_is_begun_and_ended(lengths, items, budget):
    prompts = [(which,) * n for which, n in enumerate(lengths)]
    rendered = [
        Rendered(prompts[which] + (9,) * n, lengths[which], lengths[which] + n)
        for which, n in items
    ]
    plans = plans_of(rendered, budget)
    check_each_answer_once(plans, len(items))
    check_prefixes(plans, rendered)


def check_each_answer_once(plans, n_answers):
    found = sorted(i for plan in plans for row in plan.rows for i in row.answers)
    assert found == list(range(n_answers))


def check_prefixes(plans, rendered):
    """Begun by its first batch, ended by its last, and counted as read once."""
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


def test_two_long_prompts_in_turn_are_each_begun_once_and_ended_once():
    # A row holds at most 120 tokens: 1 of the prompt and two answers of 40, so 5 answers make 3 rows.
    first, second = answers(80, [40] * 5), answers(70, [40] * 5, seed=2)
    rendered = [item for pair in zip(first, second, strict=True) for item in pair]
    plans = plans_of(rendered, 120)
    check_each_answer_once(plans, 10)
    check_prefixes(plans, rendered)
    assert [plan.begins_prefix for plan in plans] == [True, False, False] * 2
    assert [plan.ends_prefix for plan in plans] == [False, False, True] * 2
    # 79 + 69 of the prompts once, 10 answers of 40, and the last prompt token of 6 rows.
    assert sum(plan.n_tokens for plan in plans) == 79 + 69 + 400 + 6


def test_rows_behind_a_cached_prompt_are_no_longer_than_others_however_large_the_budget():
    # 64 answers of 100 tokens behind 3,000: a row of all of them would have a mask of 6,401 x 9,400.
    rendered = answers(3000, [100] * 64)
    plans = plans_of(rendered, 16_384)
    assert any(row.n_cached for plan in plans for row in plan.rows)
    # The longest answer alone is 3,100 tokens, and a row may hold two such.
    assert max(row.n_tokens for plan in plans for row in plan.rows) <= 6200
    long = answers(700, [40] * 64)
    assert max(row.n_tokens for plan in plans_of(long, 16_384) for row in plan.rows) <= 2 * 740


def test_a_long_prompt_is_read_once_for_all_its_answers():
    # 8 answers x 40 tokens behind 1,500: 1 + 320 tokens of rows, and 1,499 of the prompt.
    rendered = answers(1500, [40] * 8)
    plans = plans_of(rendered, 1024)
    assert sum(plan.n_tokens for plan in plans) == 1 + 320 + 1499
    alone = plan_batches(rendered, tokens_per_batch=1024, share_prompts=True)
    assert sum(plan.n_tokens for plan in alone) == 8 * 1540


def test_features_are_the_same_whether_prompts_are_cached_or_not(
    eager_caching, serves, monkeypatch
):
    made = families.backbone_of(families.FAMILIES["llama"](), "llama")
    rendered = answers(16, [5, 9, 1, 7, 8])
    # A budget of 14 makes several batches behind the prompt; a reading's own would make one.
    monkeypatch.setattr(
        read_module,
        "plan_batches",
        lambda *a, **kw: plan_batches(*a, **kw | {"tokens_per_batch": 14}),
    )
    for recipe in (Recipe(layers="all", pooling="mean"), Recipe(source="log_probability")):
        monkeypatch.setattr(made, "caches_prompts", True)
        cached = read_rendered(made, rendered, Reducer(recipe, made)).values
        monkeypatch.setattr(made, "caches_prompts", False)
        plain = read_rendered(made, rendered, Reducer(recipe, made)).values
        assert torch.allclose(cached, plain, rtol=1e-4, atol=1e-5)
    assert serves == [True] * 4  # [9], [8], [7 5 1] behind 16: two batches a recipe find it kept


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
    assert widths
    assert all(width >= 16 + 5 and not prefix for width, prefix in widths)
