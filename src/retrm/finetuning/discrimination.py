"""How well a discriminator tells policies apart: accuracy by pair of policies, intervals by prompt.

A row is right where the candidate of the reference's own policy scores higher; a tie counts half.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrm.errors import ScoreError
from retrm.finetuning.comparisons import Comparison
from retrm.metrics import clustered_bootstrap, mean_statistic


@dataclass(frozen=True)
class Accuracy:
    """A share of rows with its interval.

    Attributes:
        value: 0 to 1.
        low: lower end, 95 %.
        high: upper end.
        n: rows.
        n_ties: rows with equal scores, each counted as half.
    """

    value: float
    low: float
    high: float
    n: int
    n_ties: int


@dataclass(frozen=True)
class Discrimination:
    """Accuracies of a set of rows.

    Attributes:
        overall: of all rows.
        loss: mean of -log sigmoid(chosen - rejected), nats.
        by_pair: by "A | B": A wrote reference and chosen, B rejected.
        length: of the rule "the candidate whose length is nearer to the reference's", in characters.
    """

    overall: Accuracy
    loss: float
    by_pair: dict[str, Accuracy]
    length: Accuracy

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def discrimination(
    rows: Sequence[Comparison], chosen: np.ndarray, rejected: np.ndarray, *, seed: int = 0
) -> Discrimination:
    """Figures of scored rows.

    Args:
        rows: what was scored.
        chosen: (n,) scores of the chosen candidates.
        rejected: (n,) of the others.
        seed: of the intervals.

    Raises:
        ScoreError: scores are missing or not finite, or there are no rows.
    """
    gap = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    if gap.shape != (len(rows),) or not len(rows) or not np.isfinite(gap).all():
        raise ScoreError(
            f"got {gap.shape} gaps of scores for {len(rows)} rows; expected a finite one for each, and a row "
            "at least"
        )
    nearer = np.array(
        [
            _apart(row.reference.text, row.rejected) - _apart(row.reference.text, row.chosen)
            for row in rows
        ],
        dtype=np.float64,
    )
    names = [" | ".join(row.policies) if row.policies else "" for row in rows]
    by_pair = {
        name: _accuracy(*_taken(rows, gap, [i for i, n in enumerate(names) if n == name]), seed)
        for name in sorted(set(names) - {""})
    }
    return Discrimination(
        _accuracy(rows, gap, seed),
        float(np.logaddexp(0.0, -gap).mean()),
        by_pair,
        _accuracy(rows, nearer, seed),
    )


def _apart(one: str, other: str) -> int:
    return abs(len(one) - len(other))


def _taken(
    rows: Sequence[Comparison], gap: np.ndarray, places: Sequence[int]
) -> tuple[Sequence[Comparison], np.ndarray]:
    return [rows[i] for i in places], gap[list(places)]


def _accuracy(rows: Sequence[Comparison], gap: np.ndarray, seed: int) -> Accuracy:
    credit = 0.5 * (np.sign(gap) + 1)
    found = clustered_bootstrap(mean_statistic(credit, [r.prompt_id for r in rows]), seed=seed)
    return Accuracy(found.value, found.low, found.high, len(rows), int(np.count_nonzero(gap == 0)))
