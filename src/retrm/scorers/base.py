"""The protocol that selection, evaluation and the service know."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from retrm.errors import ScoreError
from retrm.records import Answer


class Scorer(Protocol):
    """Judges answers: raw scores, unbounded, higher is better, one an answer in their order."""

    name: str

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n,) float64 scores."""
        ...


def check_scores(scores: np.ndarray, answers: Sequence[Answer], name: str) -> np.ndarray:
    """`scores` as float64, refused if one is missing, NaN or infinite.

    Raises:
        ScoreError: naming the record.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape != (len(answers),):
        raise ScoreError(f"{name} gave {scores.shape} scores for {len(answers)} answers")
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        answer = answers[int(wrong[0])]
        raise ScoreError(
            f"{name} scored {answer.where or f'answer {wrong[0]}'} as {scores[wrong[0]]}; expected a "
            "finite number. Run retrm doctor on its model"
        )
    return scores
