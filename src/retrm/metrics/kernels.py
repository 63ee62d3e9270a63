"""The arithmetic that point values and statistics of prompts share.

    pairs won   by one sort: a right candidate beats the wrong ones below it, half of those level
    top credit  mean label of the candidates that share the top score

Arrays come in checked (`retrm.metrics.checks`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrm.errors import LabelError
from retrm.metrics.checks import checked_codes, checked_scores_and_labels


@dataclass(frozen=True)
class PairCredit:
    """Right x wrong pairs of each prompt: won (ties 1/2) and all."""

    won: np.ndarray
    n_pairs: np.ndarray


def pair_credit(
    scores: np.ndarray, labels: np.ndarray, codes: np.ndarray, n_prompts: int
) -> PairCredit:
    """Pairs won in each prompt by one sort: a right candidate beats the wrong ones below it."""
    order = np.lexsort((scores, codes))
    scores, labels, codes = scores[order], labels[order], codes[order]
    starts = block_starts(scores, codes)
    right = np.add.reduceat(labels, starts)
    wrong = np.add.reduceat(1 - labels, starts)
    block_codes = codes[starts]
    n_wrong = np.bincount(block_codes, wrong, minlength=n_prompts)
    wrong_of_earlier_prompts = np.cumsum(n_wrong) - n_wrong
    below = np.cumsum(wrong) - wrong - wrong_of_earlier_prompts[block_codes]
    won = np.bincount(block_codes, right * (below + wrong / 2), minlength=n_prompts)
    return PairCredit(won, np.bincount(block_codes, right, minlength=n_prompts) * n_wrong)


def mixed_credit(
    scores: Sequence[float], labels: Sequence[float], prompt_ids: Sequence[object]
) -> tuple[PairCredit, np.ndarray]:
    """Checked rows -> pairs of each prompt and the prompts; refused where no prompt is mixed."""
    scores, labels = checked_scores_and_labels(scores, labels, binary=True)
    codes, prompts = checked_codes(prompt_ids, len(scores))
    credit = pair_credit(scores, labels, codes, len(prompts))
    if not credit.n_pairs.any():
        raise LabelError(
            f"got {len(prompts)} prompt(s), none with both a right and a wrong candidate; expected "
            "at least one. Sample more answers a prompt, or prompts of middling difficulty."
        )
    return credit, prompts


def block_starts(*sorted_keys: np.ndarray) -> np.ndarray:
    """Positions at which any of the keys changes."""
    changes = np.zeros(len(sorted_keys[0]), dtype=bool)
    changes[0] = True
    for key in sorted_keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(changes)


def sorted_block_means(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels by ascending score, tied ones replaced by their mean."""
    order = np.argsort(scores, kind="stable")
    starts = block_starts(scores[order])
    sizes = np.diff(np.append(starts, len(scores)))
    return np.repeat(np.add.reduceat(labels[order], starts) / sizes, sizes)


def top_credit(
    scores: np.ndarray, labels: np.ndarray, codes: np.ndarray, n_prompts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean label of the top-scored candidates of each prompt, and how many share the top."""
    top = np.full(n_prompts, -np.inf)
    np.maximum.at(top, codes, scores)
    is_top = scores == top[codes]
    n_top = np.bincount(codes[is_top], minlength=n_prompts)
    return np.bincount(codes[is_top], labels[is_top], minlength=n_prompts) / n_top, n_top


def sigmoid(scores: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-score)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -scores))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Numerator / denominator, NaN where the denominator is 0."""
    undefined = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)
