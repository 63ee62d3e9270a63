"""`plan_first`: the pass that is made around an answer that must not wait."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.backbone.base import Rendered
from retrm.backbone.batching import LEAST_FILL, plan_batches, plan_first
from retrm.errors import RecipeError, RenderError


def answer(n_prompt: int, n_response: int, *, prompt: int = 0) -> Rendered:
    """Prompts of one number and length are equal."""
    ids = (*(1000 + prompt for _ in range(n_prompt)), *range(n_response))
    return Rendered(ids, n_prompt, n_prompt + n_response)


def test_rows_like_the_first_in_length_fill_the_pass():
    # Rows of 10, 50, 12, 11 and 90 tokens, 40 in a pass. With the first (10): 12 + 11 + 10 make
    # 3 x 12 = 36 padded, 33 of them real (.92); 50 and 90 are beyond the budget.
    rendered = [answer(4, n - 4, prompt=i) for i, n in enumerate((10, 50, 12, 11, 90))]
    assert sorted(plan_first(rendered, tokens_per_batch=40)) == [0, 2, 3]


def test_a_pass_is_not_padded_below_the_least_fill():
    # 20 and 11: 31 real of 40 padded is .775 < .8, so the first goes alone; 20 and 12: .8 is enough.
    alone = [answer(4, 16), answer(4, 7, prompt=1)]
    assert LEAST_FILL == 0.8
    assert plan_first(alone, tokens_per_batch=100) == [0]
    assert sorted(plan_first([alone[0], answer(4, 8, prompt=1)], tokens_per_batch=100)) == [0, 1]


def test_families_of_different_prompts_share_a_pass():
    # Three prompts of 20 tokens with four answers of 5 each: rows of 40, so two of them in 100 and
    # three in 120. Answer by answer they would be twelve rows of 25.
    rendered = [answer(20, 5, prompt=p) for p in range(3) for _ in range(4)]
    two = plan_first(rendered, tokens_per_batch=100, share_prompts=True)
    assert sorted(two) == list(range(8))
    three = plan_first(rendered, tokens_per_batch=120, share_prompts=True)
    assert sorted(three) == list(range(12))


def test_behind_a_cached_prompt_as_much_is_read_as_the_prompt_is_long():
    # A prompt of 300 tokens and 40 answers of 20, 100 tokens in a pass: a row holds the last prompt
    # token and (at a bound of 100 tokens) four answers, 81 tokens. Passes go on while they fit into
    # 300: 81 + 81 + 81 = 243, a fourth would make 324. So twelve answers.
    rendered = [answer(300, 20) for _ in range(40)]
    found = plan_first(rendered, tokens_per_batch=100, share_prompts=True, cache_prompts=True)
    assert 0 in found
    assert len(found) == 12


def test_an_answer_beyond_the_budget_goes_alone():
    rendered = [answer(50, 60), answer(50, 60, prompt=1)]
    assert plan_first(rendered, tokens_per_batch=64) == [0]


def test_what_cannot_be_planned_is_refused_as_in_a_plan_of_all():
    with pytest.raises(RecipeError, match="tokens_per_batch = 0; expected at least 1"):
        plan_first([answer(3, 3)], tokens_per_batch=0)
    with pytest.raises(RenderError, match="answer 0 spans tokens 0 to 3"):
        plan_first([Rendered((1, 2, 3), 0, 3)])


@settings(max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=24),
    budget=st.integers(1, 300),
    share=st.booleans(),
    cache=st.booleans(),
)
def test_the_first_is_always_in_a_pass_that_fits_and_is_well_filled(sizes, budget, share, cache):
    rendered = [answer(10 + 70 * p, n, prompt=p) for p, n in sizes]
    options = {"tokens_per_batch": budget, "share_prompts": share, "cache_prompts": cache}
    found = plan_first(rendered, **options)
    assert found.count(0) == 1
    assert len(set(found)) == len(found)
    plans = plan_batches([rendered[i] for i in found], **options)
    if any(row.n_cached for plan in plans for row in plan.rows):
        return  # several passes behind one prompt, by intent
    (plan,) = plans
    if len(plan.rows) > 1:
        assert plan.n_padded <= budget
        assert sum(row.n_tokens for row in plan.rows) >= LEAST_FILL * plan.n_padded
