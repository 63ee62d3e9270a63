"""Splits and folds by prompt."""

import numpy as np
import pytest

from retrm.data.split import prompt_codes, prompt_folds, split_by_prompt
from retrm.errors import DataError

IDS = [f"p{i % 10}" for i in range(40)]  # ten prompts, four rows each


def test_parts_have_the_asked_share_of_prompts():
    train, test = split_by_prompt(IDS, (0.8, 0.2), seed=0)
    assert (len(train), len(test)) == (32, 8)


def test_remainders_go_to_the_largest():
    # 10 prompts x (.55, .25, .2) = 5.5, 2.5, 2.0: floors 5, 2, 2, and the first half gets the tenth
    parts = split_by_prompt(IDS, (0.55, 0.25, 0.2), seed=0)
    assert [len(part) // 4 for part in parts] == [6, 2, 2]


def test_rows_of_a_part_keep_file_order():
    train, _ = split_by_prompt(IDS, (0.5, 0.5), seed=3)
    assert (np.diff(train) > 0).all()


def test_another_seed_gives_another_split():
    splits = {tuple(split_by_prompt(IDS, (0.5, 0.5), seed=s)[0]) for s in range(5)}
    assert len(splits) > 1


def test_the_split_does_not_change_from_release_to_release():
    # Frozen: a prompt that changes sides makes every published held-out number a leak.
    _, test = split_by_prompt([f"p{i}" for i in range(10)], (0.8, 0.2), seed=42)
    assert test.tolist() == [1, 7]


def test_numbers_and_their_text_are_the_same_prompt():
    codes, prompts = prompt_codes([1, "1", 2])
    assert codes.tolist() == [0, 0, 1]
    assert prompts.tolist() == ["1", "2"]


@pytest.mark.parametrize("fractions", [(1.0,), (0.5, 0.4), (1.2, -0.2), (0.0, 1.0)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(DataError, match="add up to 1"):
        split_by_prompt(IDS, fractions)


def test_a_part_without_prompts_is_refused():
    with pytest.raises(DataError, match=r"got 1 prompt\(s\), which leaves part 1"):
        split_by_prompt(["a", "a", "a"], (0.8, 0.2))


def test_fewer_prompts_than_folds_are_refused():
    with pytest.raises(DataError, match=r"got 2 prompt\(s\) for 3 folds"):
        prompt_folds(["a", "b", "b"], 3)


def test_one_fold_is_refused():
    with pytest.raises(DataError, match="k = 1"):
        prompt_folds(IDS, 1)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_prompt_id_is_refused_with_its_row(missing):
    with pytest.raises(DataError, match="no prompt_id in row 1"):
        prompt_folds(["a", missing, "b"], 2)


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="got no rows"):
        split_by_prompt([], (0.5, 0.5))
