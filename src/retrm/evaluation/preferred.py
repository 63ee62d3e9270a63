"""The preference pairs that stand in a benchmark's items, whatever its official figures are.

Biases, calibration, agreement and the items worth reading are all about pairs: a candidate that should
score higher than another one of the same item. Every pair counts the same; where an item has very many
(best-of-N), `most` draws some of them, so that a few items do not decide and nothing grows with the
square of the candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrm.errors import DataError
from retrm.evaluation.benchmarks import benchmark
from retrm.evaluation.benchmarks.base import Benchmark, ScoredItem, drawn_by
from retrm.evaluation.benchmarks.pairs import check_pairs
from retrm.evaluation.score_file import ScoreFile

MOST_PAIRS = 16


@dataclass(frozen=True, eq=False)
class Preferences:
    """Pairs of all items; all arrays have one entry a pair.

    Attributes:
        item_rows: which item.
        preferred: index of the candidate that should win.
        others: index of the candidate that should lose.
        margins: score of the first - score of the second; > 0 is right.
        characters: the same difference of lengths.
        clusters: what intervals resample.
        n_found: pairs in the items, of which these may be some.
    """

    item_rows: np.ndarray
    preferred: np.ndarray
    others: np.ndarray
    margins: np.ndarray
    characters: np.ndarray
    clusters: list[str]
    n_found: int

    @property
    def won(self) -> np.ndarray:
        """(n,) 1 = the preferred scores higher, 0 = lower, 0.5 = the same."""
        return (np.sign(self.margins) + 1) / 2

    def difference(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) value of the preferred - value of the other; `values` has (k,) of each item."""
        starts = np.cumsum([0, *(len(of_item) for of_item in values)])[self.item_rows]
        flat = np.concatenate([np.asarray(v, dtype=np.float64) for v in values])
        return flat[starts + self.preferred] - flat[starts + self.others]


def preferences_of(
    rule: Benchmark, items: Sequence[ScoredItem], *, most: int | None = None, seed: int = 0
) -> Preferences:
    """The pairs of the items, in their order; none for benchmarks of steps.

    Args:
        rule: of the benchmark.
        items: with scores.
        most: at most so many pairs of an item, drawn by its id; None = all.
        seed: of the draw.

    Raises:
        DataError: an item that cannot be of the benchmark.
    """
    tables, n_found = [], 0
    for row, item in enumerate(items):
        pairs = rule.pairs(item)
        check_pairs(item, pairs)
        n_found += len(pairs)
        table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        if most is not None and len(table) > most:
            table = table[_drawn(item.id, len(table), most, seed)]
        tables.append(np.column_stack([np.full(len(table), row), table]))
    rows, preferred, others = np.concatenate([np.zeros((0, 3), dtype=np.int64), *tables]).T
    clusters = [items[row].cluster for row in rows]
    found = Preferences(
        rows, preferred, others, np.zeros(len(rows)), np.zeros(len(rows)), clusters, n_found
    )
    if not len(rows):
        return found
    return Preferences(
        rows,
        preferred,
        others,
        found.difference([item.scores for item in items]),
        found.difference([np.asarray(item.n_characters) for item in items]),
        clusters,
        n_found,
    )


def pairs_of_file(
    scores: ScoreFile, *, most: int | None = MOST_PAIRS, seed: int = 0
) -> tuple[list[ScoredItem], Preferences]:
    """Complete items of a file and their pairs.

    Raises:
        DataError: the benchmark has no pairs (it judges steps), or no item is complete.
    """
    items = list(scores.items().values())
    found = preferences_of(benchmark(scores.benchmark), items, most=most, seed=seed)
    if not len(found.margins):
        raise DataError(
            f"{scores.benchmark} with scores of {scores.scorer}: none of {len(items)} items has a "
            "preference pair; expected a benchmark of answers. Steps and votes of tie have none"
        )
    return items, found


def _drawn(id_: str, n: int, most: int, seed: int) -> np.ndarray:
    """Some of n places, the same for every scorer and whatever stands around the item."""
    rng = np.random.default_rng(int.from_bytes(drawn_by(seed, id_)[:8]))
    return np.sort(rng.choice(n, size=most, replace=False))
