"""Accuracy on preference pairs, beside the length baselines and log-probability."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from retrm.errors import LabelError
from retrm.metrics import Interval, clustered_bootstrap, mean_statistic, paired_difference
from retrm.records import Pair


@dataclass(frozen=True)
class PairRow:
    """One line: share of pairs in the right order, a tie counting one half.

    Attributes:
        name: of the scorer.
        kind: `head` or `baseline`.
        accuracy: with its interval over prompts.
        n_ties: pairs with equal scores.
        minus: paired difference to each baseline.
    """

    name: str
    kind: str
    accuracy: Interval
    n_ties: int
    minus: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class PairComparison:
    """The table, with the number of pairs and prompts."""

    rows: tuple[PairRow, ...]
    n_pairs: int
    n_prompts: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def compare_pairs(
    scores: Mapping[str, np.ndarray],
    baselines: Mapping[str, np.ndarray],
    pairs: Sequence[Pair],
    prompt_ids: Sequence[str],
    *,
    seed: int = 0,
) -> PairComparison:
    """Put scorers beside baselines on the same pairs; rows of `pairs` index the score arrays.

    Raises:
        LabelError: no pairs.
    """
    if not pairs:
        raise LabelError("no preference pairs to evaluate on; the held-out part has none")
    chosen = np.array([pair.chosen for pair in pairs])
    rejected = np.array([pair.rejected for pair in pairs])
    ids = [prompt_ids[i] for i in chosen]
    statistics, ties = {}, {}
    for name, values in {**scores, **baselines}.items():
        gap = np.asarray(values)[chosen] - np.asarray(values)[rejected]
        statistics[name] = mean_statistic((np.sign(gap) + 1) / 2, ids)
        ties[name] = int((gap == 0).sum())
    rows = tuple(
        PairRow(
            name=name,
            kind="head" if name in scores else "baseline",
            accuracy=clustered_bootstrap(statistic, seed=seed),
            n_ties=ties[name],
            minus={
                other: paired_difference(statistic, statistics[other], seed=seed)
                for other in baselines
                if name in scores
            },
        )
        for name, statistic in statistics.items()
    )
    return PairComparison(rows, len(pairs), len(set(ids)))
