"""The protocol that selection, evaluation and the service know."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from retrm.errors import ScoreError
from retrm.records import Answer


class Scorer(Protocol):
    """Judges answers: raw scores, unbounded, higher is better, one an answer in their order."""

    name: str

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n,) float64 scores."""
        ...


@runtime_checkable
class ObjectiveScorer(Protocol):
    """Judges answers by several named objectives, each higher for better in its own unit."""

    name: str
    objectives: tuple[str, ...]

    def objective_scores(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n, K) float64, columns in the order of `objectives`."""
        ...


@runtime_checkable
class SetScorer(Protocol):
    """Compares the candidates of a prompt: its scores hold among those that it was shown together."""

    name: str

    def score_sets(self, sets: Sequence[Sequence[Answer]]) -> list[np.ndarray]:
        """(n,) float64 scores of the candidates of each set, in order."""
        ...


@runtime_checkable
class Summarised(Protocol):
    """A scorer that has to say more than its scores: what could not be read, what it cost."""

    def summary(self) -> str:
        """One line for people, of everything that was scored so far."""
        ...


def sets_of(answers: Sequence[Answer]) -> list[list[int]]:
    """Rows of the answers that are candidates of one prompt, in order of first appearance."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, answer in enumerate(answers):
        groups.setdefault((answer.prompt_id, answer.prompt.key), []).append(row)
    return list(groups.values())


@dataclass(frozen=True)
class Judgement:
    """Scores with what happened to the answers on the way.

    Attributes:
        scores: (n,) float64; NaN = left out as over-long.
        n_tokens: (n,) of prompt and answer as they were read; None where the scorer does not say.
        is_cut: (n,) whether the prompt lost tokens to fit.
    """

    scores: np.ndarray
    n_tokens: np.ndarray | None
    is_cut: np.ndarray

    @classmethod
    def plain(cls, scores: np.ndarray) -> "Judgement":
        """Of a scorer that reads answers of any length."""
        return cls(scores, None, np.zeros(len(scores), dtype=bool))


@runtime_checkable
class LimitedScorer(Protocol):
    """A scorer with a longest answer, which says what it did about those beyond."""

    name: str

    def judge(self, answers: Sequence[Answer], *, overlong: str = "error") -> Judgement:
        """Scores and flags; `overlong` is one of `records.OVERLONG`.

        Raises:
            OverlongError: an answer is too long and `overlong` is "error".
        """
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
