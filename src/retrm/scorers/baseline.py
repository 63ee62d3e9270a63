"""Scorers that nobody should lose to: length, chance, and the backbone's own log-probability.

And the scores that a file states already, so that answers scored while they were sampled, or by
`retrm score`, need no second reading.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np

from retrm.backbone.base import Backbone
from retrm.backbone.reference import template_of
from retrm.errors import DataError
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features, Reducer
from retrm.records import Answer
from retrm.scorers.together import judge_chunks


class LengthScorer:
    """Longest or shortest answer first, in characters: the one length that every row has."""

    def __init__(self, *, prefers: str) -> None:
        self.name = self.identity = prefers
        self._sign = {"longest": 1.0, "shortest": -1.0}[prefers]

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """Plus or minus the length."""
        return self._sign * np.array([len(a.response) for a in answers], dtype=np.float64)


class RandomScorer:
    """A number that depends on the answer and the seed only; equal answers tie."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.identity = f"random {seed}"

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """Uniform in 0..1."""
        out = []
        for a in answers:
            text = f"{self.seed}\x00{a.prompt_id}\x00{a.response}"
            digest = hashlib.sha256(text.encode()).digest()
            out.append(int.from_bytes(digest[:8], "big") / 2**64)
        return np.array(out)


class StoredScorer:
    """The scores in the file: column `score` beside `responses`.

    It has no identity: the file may state others tomorrow, and taking them costs nothing.
    """

    name = "stored"

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """As they stand.

        Raises:
            DataError: an answer without a score; pruned candidates have none and must be left out.
        """
        missing = next((a for a in answers if a.score is None), None)
        if missing is not None:
            raise DataError(
                f"{missing.where or 'an answer'} has no score in the file; expected a list `score` "
                "with a number for every answer. Run retrm score on the file, or sample with --score"
            )
        return np.array([a.score for a in answers], dtype=np.float64)


class LogProbabilityScorer:
    """Mean log-probability of the answer's tokens under the backbone, nats a token."""

    name = "log_probability"

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        recipe = Recipe(
            source="log_probability",
            counts_end=backbone.renderer.counts_end,
            template=template_of(backbone.renderer),
        )
        self.reducer = Reducer(recipe, backbone)

    @property
    def identity(self) -> str:
        """Of the backbone and of what is averaged: the same give the same log-probabilities."""
        mark, end = self.backbone.fingerprint, self.reducer.recipe.counts_end
        marks = " ".join(astuple(mark))
        return (
            f"log_probability of {marks} {self.backbone.dtype} {'with' if end else 'without'} end"
        )

    def of_features(self, features: Features) -> np.ndarray:
        """(n,) float64 scores of features that `reducer` made."""
        return features.values[:, 0].double().numpy()

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """One forward pass over the answers.

        Raises:
            OverlongError, RenderError, ScoreError: naming the record.
        """
        if not answers:
            return np.zeros(0)
        (found,) = judge_chunks({self.name: self}, [answers])
        return found[self.name].scores
