"""Items under several scorers: which are right for bad scorers and wrong for good ones, and how hard.

    X_ij = scorer i got item j right (`Benchmark.is_right`: equal scores are wrong)
    rest_ij = sum over k != j of X_ik,   d_j = Pearson correlation over scorers of X_ij and rest_ij

An item that all or none got right has no d. The lowest twentieth of d below 0 is flagged: "look at the
label". It may as well be a trick item that good scorers fail for one reason, so nothing is dropped: the
share right stands with and without the flagged items. With 20 scorers or more, Rasch difficulties and
abilities with standard errors (`metrics.rasch`); below that a refusal. Source: classical test theory
(item-rest correlation, Lord & Novick 1968, ch. 15) and the sources of `metrics.rasch`.

Traps. Abilities are a rising function of the share right: they never rank scorers anew. Scorers of one
family (layers, seeds) err together: standard errors are then too small, and d says what that family
finds hard. Leaving flagged items out and measuring the same scorers on the rest is circular.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from retrm.errors import DataError
from retrm.evaluation.benchmarks import benchmark
from retrm.evaluation.benchmarks.base import Benchmark, ScoredItem
from retrm.evaluation.score_file import ScoreFile, common_items
from retrm.evaluation.tables import resamples_of
from retrm.metrics import N_RESAMPLES, Interval, mean_statistic
from retrm.metrics.rasch import ability, fit_rasch, informative, is_connected

FEWEST_FOR_RASCH = 20
MOST_FOR_RASCH = 1_000
FLAGGED_SHARE = 0.05
FEW = 10


@dataclass(frozen=True)
class ItemRow:
    """One item.

    Attributes:
        item: its id.
        subset: of it.
        cluster: its prompt.
        share_right: of the scorers.
        discrimination: d; None where all or none are right, or nothing else tells scorers apart.
        difficulty: b, where the Rasch model was fitted and the item tells something.
        is_flagged: among the lowest d below 0.
        preferred: candidate of its first pair that should win, to be looked at; None without pairs.
        other: candidate of the same pair that should lose.
    """

    item: str
    subset: str
    cluster: str
    share_right: float
    discrimination: float | None
    difficulty: float | None
    is_flagged: bool
    preferred: int | None = None
    other: int | None = None


@dataclass(frozen=True)
class Examinee:
    """One scorer.

    Attributes:
        scorer: its name.
        share_right: over all items, with interval by prompt.
        share_right_unflagged: without the flagged items; None where none is flagged.
        ability: theta over the items that have a difficulty; None without a Rasch fit.
        ability_error: its standard error.
    """

    scorer: str
    share_right: Interval
    share_right_unflagged: Interval | None
    ability: float | None = None
    ability_error: float | None = None


@dataclass(frozen=True)
class ItemAnalysis:
    """Items and scorers of one benchmark.

    Attributes:
        benchmark: its name.
        title: for people.
        examinees: scorers that took part.
        left_out: scorers without an opinion on any item, by reason.
        items: in the benchmark's order.
        all_right: items that every scorer got right: they tell nothing.
        all_wrong: items that none got right.
        flagged: items to look at, lowest d first.
        no_rasch: why there are no difficulties; "" where there are.
        n_prompts: clusters.
        n_without_verdict: items whose labels leave nothing to get right.
        n_ties: verdicts of all scorers in which equal scores were decided as wrong.
        length_only: share right of the longest and of the shortest answer.
        flagged_by_share: how many of the flagged are as well among as many items with the lowest
            share right; a flagger that needs no correlation.
        notes: sentences a reader must see.
    """

    benchmark: str
    title: str
    examinees: tuple[Examinee, ...]
    left_out: tuple[str, ...]
    items: tuple[ItemRow, ...]
    all_right: tuple[str, ...]
    all_wrong: tuple[str, ...]
    flagged: tuple[str, ...]
    no_rasch: str
    n_prompts: int
    n_without_verdict: int
    n_ties: int
    length_only: tuple[float, float]
    flagged_by_share: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def item_rest_correlations(right: np.ndarray) -> np.ndarray:
    """(J,) d of every item; NaN where the item or the rest is the same for all examinees.

    Args:
        right: (n, J) 0 or 1.
    """
    x = np.asarray(right, dtype=np.float64)
    rest = x.sum(axis=1, keepdims=True) - x
    x, rest = (values - values.mean(axis=0) for values in (x, rest))
    spread = (x**2).sum(axis=0) * (rest**2).sum(axis=0)
    is_known = spread > 1e-9
    found = np.full(x.shape[1], np.nan)
    return np.divide((x * rest).sum(axis=0), np.sqrt(spread), out=found, where=is_known)


def flagged_items(discrimination: np.ndarray, share: float = FLAGGED_SHARE) -> np.ndarray:
    """Columns of the lowest d: at most `share` of those that have one, and below 0; lowest first."""
    known = np.flatnonzero(np.isfinite(discrimination))
    most = math.ceil(share * len(known))
    lowest = known[np.argsort(discrimination[known], kind="stable")][:most]
    return lowest[discrimination[lowest] < 0]


def why_no_rasch(right: np.ndarray) -> str:
    """The reason why a matrix allows no Rasch fit; "" where it does.

    Args:
        right: (n, J) bool.
    """
    rows, columns = informative(right)
    if len(rows) < FEWEST_FOR_RASCH:
        return (
            f"{len(rows)} scorers got some items right and some wrong; difficulties and abilities need "
            f"{FEWEST_FOR_RASCH}. Item-rest correlations stand alone"
        )
    if not 2 <= len(columns) <= MOST_FOR_RASCH:
        return (
            f"{len(columns)} items tell scorers apart; difficulties are fitted for 2 to "
            f"{MOST_FOR_RASCH:,}. Item-rest correlations stand alone"
        )
    if not is_connected(right[np.ix_(rows, columns)]):
        return (
            "the items fall apart: whoever gets one of a group right gets all of the other right as "
            "well, so difficulties have no finite estimate"
        )
    return ""


def analyse_items(
    files: Sequence[ScoreFile],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    threshold: float | None = None,
) -> ItemAnalysis:
    """The items of one benchmark under several scorers.

    Args:
        files: scores of at least three scorers on the same items.
        n_resamples: of the intervals.
        seed: of the intervals.
        threshold: of benchmarks that judge steps; None = their own, 0 for raw scores.

    Raises:
        DataError: fewer than three scorers with an opinion, other benchmarks or items, or no item
            with a verdict.
    """
    if not files:
        raise DataError("got no scores; expected those of at least three scorers")
    rule = benchmark(files[0].benchmark, threshold=threshold)
    kept, n_overlong = common_items(files)
    with_opinion, left_out = _with_opinion(files)
    sides = [file.take(kept) for file in with_opinion]
    verdicts = [[rule.is_right(item) for item in items] for items in sides]
    judged = [j for j in range(len(kept)) if verdicts[0][j] is not None]
    if not judged:
        raise DataError(
            f"{files[0].benchmark}: none of {len(kept)} items has anything to get right"
        )
    right = np.array(verdicts)[:, judged].astype(bool)
    items = [sides[0][j] for j in judged]
    d = item_rest_correlations(right)
    flagged = flagged_items(d)
    is_flagged = set(flagged.tolist())
    reason = why_no_rasch(right)
    difficulty, abilities = _rasch(right) if not reason else ({}, [])
    examinees = _examinees(with_opinion, right, items, flagged, n_resamples, seed)
    share = right.mean(axis=0)
    lowest = set(np.argsort(share, kind="stable")[: len(flagged)].tolist())
    notes = [f"{n:,} items too long for {name}" for name, n in n_overlong.items()]
    if abilities:
        notes.append("abilities follow the share right and rank nobody anew")
    if len(with_opinion) < FEW:
        notes.append(f"{len(with_opinion)} scorers: item-rest correlations take few values")
    return ItemAnalysis(
        benchmark=rule.name,
        title=rule.title,
        examinees=tuple(
            replace(one, ability=theta, ability_error=error)
            for one, (theta, error) in zip(examinees, abilities, strict=True)
        )
        if abilities
        else examinees,
        left_out=left_out,
        items=tuple(
            _item_row(rule, item, share[j], d[j], difficulty.get(j), is_flagged=j in is_flagged)
            for j, item in enumerate(items)
        ),
        all_right=tuple(items[j].id for j in np.flatnonzero(share == 1)),
        all_wrong=tuple(items[j].id for j in np.flatnonzero(share == 0)),
        flagged=tuple(items[j].id for j in flagged),
        no_rasch=reason,
        n_prompts=len({item.cluster for item in items}),
        n_without_verdict=len(kept) - len(judged),
        n_ties=sum(_is_tied(rule, side[j]) for side in sides for j in judged),
        length_only=(_length_only(rule, items, 1), _length_only(rule, items, -1)),
        flagged_by_share=len(lowest & is_flagged),
        notes=(*notes, "scorers of one family err together: errors are then too small"),
    )


def _item_row(
    rule: Benchmark,
    item: ScoredItem,
    share: float,
    d: float,
    difficulty: float | None,
    *,
    is_flagged: bool,
) -> ItemRow:
    preferred, other = next(iter(rule.pairs(item)), (None, None))
    return ItemRow(
        item=item.id,
        subset=item.subset,
        cluster=item.cluster,
        share_right=float(share),
        discrimination=float(d) if math.isfinite(d) else None,
        difficulty=difficulty,
        is_flagged=is_flagged,
        preferred=preferred,
        other=other,
    )


def _with_opinion(files: Sequence[ScoreFile]) -> tuple[list[ScoreFile], tuple[str, ...]]:
    """Scorers that tell at least one candidate from another, and sentences on the others."""
    kept = [f for f in files if any(np.ptp(i.scores) > 0 for i in f.items().values())]
    names = {file.scorer for file in kept}
    if len(names) < len(kept):
        raise DataError("got a scorer twice; expected each once, or copies agree with themselves")
    left = tuple(
        f"{file.scorer} gives equal scores everywhere" for file in files if file not in kept
    )
    if len(kept) < 3:
        raise DataError(
            f"got {len(kept)} scorer(s) with an opinion on {files[0].benchmark}; expected at least 3 to "
            f"tell items apart{'. ' + '; '.join(left) if left else ''}"
        )
    return kept, left


def _examinees(
    files: Sequence[ScoreFile],
    right: np.ndarray,
    items: Sequence[ScoredItem],
    flagged: np.ndarray,
    n_resamples: int,
    seed: int,
) -> tuple[Examinee, ...]:
    rest = np.setdiff1d(np.arange(len(items)), flagged)
    parts = [np.arange(len(items))] + ([rest] if len(flagged) and len(rest) else [])
    found = []
    for rows in parts:
        some = [items[j] for j in rows]
        resamples = resamples_of(some, n_resamples=n_resamples, seed=seed)
        clusters = [item.cluster for item in some]
        found.append([resamples.interval(mean_statistic(x[rows], clusters)) for x in right])
    without = found[1] if len(found) > 1 else [None] * len(files)
    return tuple(
        Examinee(file.scorer, whole, some)
        for file, whole, some in zip(files, found[0], without, strict=True)
    )


def _rasch(right: np.ndarray) -> tuple[dict[int, float], list[tuple[float, float]]]:
    """Difficulty by column, and ability with error of every row on the columns that have one."""
    fit = fit_rasch(right)
    difficulty = dict(zip(fit.items.tolist(), fit.difficulties.tolist(), strict=True))
    scores = right[:, fit.items].sum(axis=1)
    return difficulty, [ability(fit.difficulties, int(score)) for score in scores]


def _is_tied(rule: Benchmark, item: ScoredItem) -> bool:
    """Whether a verdict is "wrong" and would not be if equal scores were a win."""
    pairs = rule.pairs(item)
    if not pairs or rule.is_right(item):
        return False
    _, nudged = np.unique(item.scores, return_inverse=True)
    side = np.zeros(len(nudged))
    for winner, loser in pairs:
        side[winner] += 1
        side[loser] -= 1
    return bool(rule.is_right(replace(item, scores=nudged + np.sign(side) / 4)))


def _length_only(rule: Benchmark, items: Sequence[ScoredItem], way: int) -> float:
    lengths = (
        replace(item, scores=way * np.array(item.n_characters, dtype=np.float64)) for item in items
    )
    return float(np.mean([bool(rule.is_right(item)) for item in lengths]))
