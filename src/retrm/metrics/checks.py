"""What every metric asks of its rows before it computes: finite scores, true labels, one id a row."""

from collections.abc import Sequence

import numpy as np

from retrm.data.split import prompt_codes
from retrm.errors import DataError, LabelError, RecipeError, ScoreError, did_you_mean


def finite_scores(values: Sequence[float], name: str) -> np.ndarray:
    """(n,) float64 of finite numbers, at least one; `name` is what messages call them."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ScoreError(
            f"got {name} of shape {array.shape}; expected one number a row, at least one row."
        )
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ScoreError(
            f"got {array[bad[0]]} at position {bad[0]} of {name} ({bad.size} in all); expected "
            "finite numbers. Find out why the scorer failed there; rows are never left out silently."
        )
    return array


def check_length(values: np.ndarray, reference: np.ndarray, name: str) -> None:
    """Refuse another number of values than of rows."""
    if values.shape != reference.shape:
        raise ScoreError(f"got {values.size} {name} for {reference.size} rows; expected one each.")


def checked_scores_and_labels(
    scores: Sequence[float], labels: Sequence[float], *, binary: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) finite scores and (n,) labels: 0 or 1 where `binary`, else finite numbers."""
    numbers = finite_scores(scores, "scores")
    truth = np.asarray(labels, dtype=np.float64)
    check_length(truth, numbers, "labels")
    bad = np.flatnonzero(~np.isfinite(truth) | (binary & (truth != 0) & (truth != 1)))
    if bad.size:
        wanted = "0 or 1" if binary else "a finite number"
        raise LabelError(
            f"got label {truth[bad[0]]} at position {bad[0]} ({bad.size} in all); expected "
            f"{wanted} for every row. Leave unlabelled rows out yourself and count them."
        )
    return numbers, truth


def check_both_classes(labels: np.ndarray) -> None:
    """Refuse labels that are all the same."""
    if labels.min() == labels.max():
        raise LabelError(
            f"got {labels.size} label(s), all {labels[0]:g}; AUROC expected both right and wrong "
            "candidates. Bring data with both."
        )


def checked_codes(prompt_ids: Sequence[object], n: int) -> tuple[np.ndarray, np.ndarray]:
    """`prompt_codes` of as many ids as there are rows."""
    if len(prompt_ids) != n:
        raise DataError(f"got {len(prompt_ids)} prompt_ids for {n} rows; expected one each.")
    return prompt_codes(prompt_ids)


def checked_weighting(got: str, choices: tuple[str, ...]) -> str:
    """`got` where it is one of `choices`."""
    if got not in choices:
        raise RecipeError(
            f"got weighting {got!r}; expected one of {choices}. {did_you_mean(str(got), choices)}"
        )
    return got
