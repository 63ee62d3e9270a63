"""No prompt on two sides, whatever the table."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.data.split import prompt_folds, split_by_prompt

tables = st.lists(st.text(max_size=3), min_size=4, max_size=60).filter(lambda t: len(set(t)) >= 4)
seeds = st.integers(0, 10)


@settings(max_examples=50, deadline=None)
@given(tables, seeds)
def test_no_prompt_stands_on_two_sides_and_no_row_is_lost(ids, seed):
    parts = split_by_prompt(ids, (0.5, 0.25, 0.25), seed)
    prompts = [{ids[row] for row in part} for part in parts]
    assert sum(len(part) for part in prompts) == len(set(ids))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(ids)))
    assert all(prompts)


@settings(max_examples=50, deadline=None)
@given(tables, seeds)
def test_folds_keep_prompts_whole_and_differ_by_one_prompt_at_most(ids, seed):
    folds = prompt_folds(ids, 3, seed)
    fold_of = {
        prompt: {int(f) for i, f in zip(ids, folds, strict=True) if i == prompt} for prompt in ids
    }
    assert all(len(found) == 1 for found in fold_of.values())
    sizes = np.bincount([found.pop() for found in fold_of.values()], minlength=3)
    assert sizes.max() - sizes.min() <= 1


@settings(max_examples=50, deadline=None)
@given(tables, seeds, st.randoms(use_true_random=False))
def test_the_side_of_a_prompt_does_not_depend_on_row_order(ids, seed, random):
    shuffled = ids.copy()
    random.shuffle(shuffled)
    before = dict(zip(ids, prompt_folds(ids, 3, seed).tolist(), strict=True))
    after = dict(zip(shuffled, prompt_folds(shuffled, 3, seed).tolist(), strict=True))
    assert before == after
