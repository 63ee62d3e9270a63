"""Rankings of language models from votes between two of them, and how far two rankings agree.

    Bradley-Terry: P(i beats j) = 1 / (1 + exp(r_j - r_i));  ratings r by maximum likelihood, sum 0,
    with a faint normal prior (precision 1e-4) so that a model that wins or loses everything has one

A tie is half a win to each side. Everything is written for (R, M, M) matrices, one a resample, so that
intervals cost a few solves of M x M systems each. Covariances are inverse Fisher information.
Sources: Bradley & Terry 1952; agreement by confidence and the Brier score of the order after Li et al.
2024, arXiv 2406.11939, section 3.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retrm.data.split import prompt_codes
from retrm.metrics.bradley_terry import ratings

_CLOSE = 1e-12
_CELLS = 2_000_000
# Half-width of a 95 % normal interval in standard errors.
_WIDTH = 1.959963984540054


@dataclass(frozen=True, eq=False)
class ModelVotes:
    """A comparison of two rankings, as a function of how often each prompt was drawn.

    Attributes:
        prompts: (P,) ids, sorted.
        codes: (n,) prompt of each vote, votes sorted by their pair of models.
        starts: (Q,) where a new pair of models begins.
        first: (Q,) one model of the pair; its wins are counted.
        second: (Q,) the other.
        human: (n,) 1 = people prefer `first`, 0 = `second`, 0.5 = a tie.
        judged: (n,) the same by the scorer.
        function: (R, M, M) wins by people and (R, M, M) wins by the scorer -> (R,).
        n_models: M.
        n: votes.
    """

    prompts: np.ndarray
    codes: np.ndarray
    starts: np.ndarray
    first: np.ndarray
    second: np.ndarray
    human: np.ndarray
    judged: np.ndarray
    function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    n_models: int
    n: int

    @classmethod
    def of(
        cls,
        pairs: Sequence[Sequence[str]],
        human: np.ndarray,
        judged: np.ndarray,
        prompt_ids: Sequence[str],
        function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> "ModelVotes":
        """From votes.

        Args:
            pairs: (n,) the two models of each, which differ.
            human: (n,) 1 = people prefer the first of the pair, 0 = the second, 0.5 = a tie.
            judged: (n,) the same by the scorer.
            prompt_ids: (n,) what intervals resample.
            function: as the attribute.
        """
        names, numbers = np.unique(np.array(pairs, dtype=str), return_inverse=True)
        sides = numbers.reshape(-1, 2)
        is_turned = sides[:, 0] > sides[:, 1]
        sides = np.sort(sides, axis=1)
        codes, prompts = prompt_codes(prompt_ids)
        # A complete order: sums of halves are exact, so rows of a pair may come in any.
        order = np.lexsort((codes, sides[:, 1], sides[:, 0]))
        sides = sides[order]
        is_new = np.append(True, (sides[1:] != sides[:-1]).any(axis=1))
        starts = np.flatnonzero(is_new)
        votes = [np.where(is_turned, 1 - v, v)[order] for v in (human, judged)]
        first, second = sides[starts].T
        return cls(
            prompts, codes[order], starts, first, second, *votes, function, len(names), len(human)
        )

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """(R, P) counts -> (R,) values; NaN where a ranking has no order, or a model no vote."""
        step = max(1, _CELLS // max(self.n, self.n_models**2))
        parts = [self._some(counts[i : i + step]) for i in range(0, len(counts), step)]
        return np.concatenate(parts)

    def _some(self, counts: np.ndarray) -> np.ndarray:
        weights = np.asarray(counts, dtype=np.float64)[:, self.codes]
        total = np.add.reduceat(weights, self.starts, axis=1)
        human, judged = (
            self._matrix(np.add.reduceat(weights * votes, self.starts, axis=1), total)
            for votes in (self.human, self.judged)
        )
        values = self.function(human, judged)
        # A model that met nobody has no place in a ranking.
        is_whole = ((human + human.transpose(0, 2, 1)).sum(axis=2) > 0).all(axis=1)
        return np.where(is_whole, values, np.nan)

    def _matrix(self, won: np.ndarray, total: np.ndarray) -> np.ndarray:
        wins = np.zeros((len(won), self.n_models, self.n_models))
        wins[:, self.first, self.second] = won
        wins[:, self.second, self.first] = total - won
        return wins


def spearman(human: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """(R,) rank correlation of the ratings; NaN where all models are level."""
    return _pearson(_ranks(ratings(human)[0]), _ranks(ratings(judged)[0]))


def kendall(human: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """(R,) tau-b of the ratings; NaN where all models are level."""
    first, second = (_signs(ratings(wins)[0]) for wins in (human, judged))
    untied = np.sqrt((first**2).sum(axis=(1, 2)) * (second**2).sum(axis=(1, 2)))
    return _quotient((first * second).sum(axis=(1, 2)), untied)


def row_wise_pearson(human: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """(R,) mean over models of the correlation of their win rates against the other models.

    A model takes part if it met at least two others and neither of its two rows is constant.
    """
    met = (human + human.transpose(0, 2, 1)) > 0
    rates = [w / np.where(met, w + w.transpose(0, 2, 1), 1.0) for w in (human, judged)]
    rows = _pearson(*rates, met.astype(np.float64))
    taking_part = np.isfinite(rows)
    return _quotient(np.where(taking_part, rows, 0.0).sum(axis=1), taking_part.sum(axis=1))


def separability(human: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """(R,) share of pairs of models whose 95 % intervals by the scorer do not overlap."""
    return _mean_of_pairs(np.abs(_separated(judged)))


def confidence_agreement(human: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """(R,) mean over pairs of models: 1 = both separate them alike, -1 = oppositely, 0 = one does not."""
    return _mean_of_pairs(_separated(human) * _separated(judged))


def brier_score(human: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """(R,) mean over pairs of (P by the scorer that i is above j - whether people put it above)^2."""
    values, covariance = ratings(judged)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    spread = variance[:, :, None] + variance[:, None, :] - 2 * covariance
    gaps = values[:, :, None] - values[:, None, :]
    forecast = _normal(gaps / np.sqrt(np.maximum(spread, _CLOSE)))
    order = (_signs(ratings(human)[0]) + 1) / 2
    return _mean_of_pairs((forecast - order) ** 2)


def _separated(wins: np.ndarray) -> np.ndarray:
    """(R, M, M) 1 = i surely above j, -1 = surely below, 0 = their intervals overlap."""
    values, covariance = ratings(wins)
    width = _WIDTH * np.sqrt(np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0.0))
    is_above = (values - width)[:, :, None] > (values + width)[:, None, :]
    return is_above.astype(np.float64) - is_above.transpose(0, 2, 1)


def _mean_of_pairs(values: np.ndarray) -> np.ndarray:
    above = np.triu_indices(values.shape[1], 1)
    return values[:, above[0], above[1]].mean(axis=1)


def _signs(values: np.ndarray) -> np.ndarray:
    gaps = values[:, :, None] - values[:, None, :]
    # Models with equal records differ by rounding of the solver alone.
    return np.where(np.abs(gaps) < 1e-9, 0.0, np.sign(gaps))


def _ranks(values: np.ndarray) -> np.ndarray:
    """(R, M) ranks, equal ones at their mean, up to a constant."""
    return _signs(values).sum(axis=2) / 2


def _pearson(first: np.ndarray, second: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Correlation along the last axis; NaN where one side is constant."""
    weight = np.ones_like(first) if weight is None else weight
    n = np.maximum(weight.sum(axis=-1, keepdims=True), 1.0)
    first, second = (
        (x - (x * weight).sum(axis=-1, keepdims=True) / n) * weight for x in (first, second)
    )
    variances = [(x**2).sum(axis=-1) for x in (first, second)]
    is_constant = (variances[0] < _CLOSE) | (variances[1] < _CLOSE)
    bottom = np.where(is_constant, 0.0, np.sqrt(variances[0] * variances[1]))
    return _quotient((first * second).sum(axis=-1), bottom)


def _quotient(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    undefined = np.full(np.shape(top), np.nan)
    return np.divide(top, bottom, out=undefined, where=bottom > 0)


def _normal(values: np.ndarray) -> np.ndarray:
    """Normal distribution function."""
    return np.vectorize(lambda x: math.erfc(-x / math.sqrt(2)) / 2, otypes=[np.float64])(values)
