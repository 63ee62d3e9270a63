"""Scorers that nobody should lose to: length, chance, and the backbone's own log-probability."""

import hashlib
from collections.abc import Sequence

import numpy as np

from retrm.backbone.base import Backbone
from retrm.errors import DataError
from retrm.features.read import Overlong, read
from retrm.features.recipe import Recipe
from retrm.records import Answer


class LengthScorer:
    """Longest or shortest answer first, in characters: the one length that every row has."""

    def __init__(self, *, prefers: str) -> None:
        self.name = prefers
        self._sign = {"longest": 1.0, "shortest": -1.0}[prefers]

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """Plus or minus the length."""
        return self._sign * np.array([len(a.response) for a in answers], dtype=np.float64)


class RandomScorer:
    """A number that depends on the answer and the seed only; equal answers tie."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """Uniform in 0..1."""
        out = []
        for a in answers:
            text = f"{self.seed}\x00{a.prompt_id}\x00{a.response}"
            digest = hashlib.sha256(text.encode()).digest()
            out.append(int.from_bytes(digest[:8], "big") / 2**64)
        return np.array(out)


class LogProbabilityScorer:
    """Mean log-probability of the answer's tokens under the backbone, nats a token."""

    name = "log_probability"

    def __init__(self, backbone: Backbone, *, overlong: Overlong = "error") -> None:
        self.backbone = backbone
        self.overlong: Overlong = overlong

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """One forward pass over the answers."""
        if not answers:
            return np.zeros(0)
        recipe = Recipe(source="log_probability", counts_end=self.backbone.renderer.counts_end)
        reading = read(self.backbone, answers, {"log": recipe}, overlong=self.overlong)
        if reading.n_skipped:
            raise DataError("a log-probability scorer cannot skip answers; use overlong=error")
        return reading.features["log"].values[:, 0].double().numpy()
