"""Splits and folds by prompt: all answers to one prompt stand on the same side.

A split by answer puts the same prompt on both sides, lifts the score of every head and hides the
differences between them. Here the unit is the `prompt_id`.
Prompts are ordered by a hash of seed and id, then dealt out: the side of a prompt depends on the
SET of prompts and the seed, never on the order of rows or the version of a random generator.

    >>> from retrm.data.split import prompt_folds
    >>> prompt_folds(["a", "a", "b"], 2, seed=0).shape
    (3,)
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from retrm.errors import DataError


def prompt_codes(prompt_ids: Sequence[object]) -> tuple[np.ndarray, np.ndarray]:
    """Number the prompts of a table.

    Args:
        prompt_ids: one id a row; compared as strings.

    Returns:
        codes: (n,) int64, the prompt of every row, 0..P-1.
        prompts: (P,) array of str, sorted; so the codes do not depend on the order of rows.

    Raises:
        DataError: no rows, or a missing id.
    """
    ids = list(prompt_ids)
    if not ids:
        raise DataError(
            "got no rows; expected at least one prompt_id. Check that the data were read."
        )
    for row, prompt_id in enumerate(ids):
        if prompt_id is None or prompt_id != prompt_id:  # NaN is the missing value of data frames
            raise DataError(
                f"got no prompt_id in row {row}; expected one for every row. Fill the column "
                "prompt_id, or leave it out so that it is made from the prompt."
            )
    prompts, codes = np.unique(np.array([str(i) for i in ids]), return_inverse=True)
    return codes.astype(np.int64).reshape(-1), prompts


def dealing_order(prompts: np.ndarray, seed: int) -> np.ndarray:
    """Positions of `prompts` in the order of a hash of seed and id."""
    digests = [hashlib.sha256(f"{int(seed)}\x00{prompt}".encode()).digest() for prompt in prompts]
    return np.array(sorted(range(len(digests)), key=lambda i: digests[i]), dtype=np.int64)


def _part_sizes(n_prompts: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers of prompts by largest remainder; they add up to `n_prompts`."""
    exact = [n_prompts * fraction for fraction in fractions]
    sizes = [math.floor(x + 1e-9) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: sizes[i] - exact[i])
    for i in by_remainder[: n_prompts - sum(sizes)]:
        sizes[i] += 1
    return sizes


def split_by_prompt(
    prompt_ids: Sequence[object], fractions: Sequence[float], seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Rows of every part, no prompt in two parts.

    Args:
        prompt_ids: one id a row.
        fractions: share of PROMPTS of each part, each above 0, sum 1; (0.8, 0.2) is train, test.
        seed: another seed gives another split.

    Returns:
        One int64 array of row numbers a part, in file order; together they hold every row once.

    Raises:
        DataError: impossible fractions, or too few prompts to give every part one.
    """
    if (
        len(fractions) < 2
        or not all(0 < f < 1 for f in fractions)
        or abs(sum(fractions) - 1) > 1e-9
    ):
        raise DataError(
            f"got fractions {tuple(fractions)}; expected at least two numbers between 0 and 1 that "
            "add up to 1, for example (0.8, 0.2)."
        )
    codes, prompts = prompt_codes(prompt_ids)
    sizes = _part_sizes(len(prompts), fractions)
    if min(sizes) == 0:
        raise DataError(
            f"got {len(prompts)} prompt(s), which leaves part {sizes.index(0)} of {tuple(fractions)} "
            "empty; expected at least one prompt a part. Bring more prompts or fewer parts."
        )
    part_of_prompt = np.empty(len(prompts), dtype=np.int64)
    part_of_prompt[dealing_order(prompts, seed)] = np.repeat(np.arange(len(sizes)), sizes)
    part_of_row = part_of_prompt[codes]
    return tuple(np.flatnonzero(part_of_row == part) for part in range(len(sizes)))


def prompt_folds(prompt_ids: Sequence[object], k: int, seed: int = 0) -> np.ndarray:
    """Fold of every row for k-fold cross-validation by prompt.

    Args:
        prompt_ids: one id a row.
        k: number of folds, at least 2.
        seed: another seed gives other folds.

    Returns:
        (n,) int64 in 0..k-1; the folds differ by at most one PROMPT in size.

    Raises:
        DataError: k below 2, or fewer prompts than folds.
    """
    codes, prompts = prompt_codes(prompt_ids)
    if k < 2:
        raise DataError(f"got k = {k} folds; expected at least 2.")
    if len(prompts) < k:
        raise DataError(
            f"got {len(prompts)} prompt(s) for {k} folds; expected at least one prompt a fold. "
            "Bring more prompts or ask for fewer folds."
        )
    fold_of_prompt = np.empty(len(prompts), dtype=np.int64)
    fold_of_prompt[dealing_order(prompts, seed)] = np.arange(len(prompts)) % k
    return fold_of_prompt[codes]
