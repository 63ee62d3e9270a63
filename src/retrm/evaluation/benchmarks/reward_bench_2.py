"""RewardBench 2: 1,865 prompts, best-of-4 in five subsets, and Ties.

Five subsets have one right and mostly three wrong answers. The right one, which stands first, earns

    1 / (number of answers that share the highest score)   if it has the highest score, else 0,

and a subset is the mean. Ties asks questions with many right answers (rows `tied:k`) beside ones with a
single right answer (`ref:k`). For each row

    margin m = lowest right - highest wrong,  spread s = highest right - lowest right,

and over the k that are present in both kinds, with margins m_t, m_r and the spread s of the tied row,

    score = 0.30 mean[m > 0 on tied rows] + 0.30 mean[m > 0 on ref rows] + 0.20 mean[m_t > s]
          + 0.20 mean[min(m_r, m_t) > s] + 0.01 mean[tanh(min(m_r, m_t) / s - 1)],

0 / 0 counting as 0 in the last term. The weights add up to 1.01, as in the released code. The two
accuracies are over all rows of their kind. Ties is the one rule here that depends on distances between
scores: a sigmoid before it changes the figure. The headline is the plain mean of the six subsets.

Source: Malik et al. 2025, arXiv 2506.01937; rules of the released code.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from retrm.data.read import Record
from retrm.errors import DataError
from retrm.evaluation.benchmarks.base import (
    BenchmarkData,
    Figure,
    Item,
    ScoredItem,
    Verdicts,
    answers_of,
    by_subset,
    check_subsets,
    clusters_of,
    count_notes,
)
from retrm.evaluation.benchmarks.composed import MeanOfParts
from retrm.evaluation.benchmarks.pairs import DecidedByPairs, Pairs, first_beat_rest
from retrm.evaluation.benchmarks.source import (
    Source,
    choice_field,
    id_field,
    integer_field,
    text_field,
    texts_field,
)
from retrm.evaluation.benchmarks.steps import fact
from retrm.metrics import sums_statistic

TIES = "Ties"
COUNTS: Mapping[str, int] = {
    "Factuality": 475,
    "Focus": 495,
    "Math": 183,
    "Precise IF": 160,
    "Safety": 450,
    TIES: 102,
}
"""Rows of each subset in the published data."""

TIES_WEIGHTS = (0.30, 0.30, 0.20, 0.20, 0.01)
"""Of tied accuracy, ref accuracy, m_t > s, min(m_r, m_t) > s, and the tanh term."""

_TERMS = (
    "tied accuracy",
    "ref accuracy",
    "tied margin above spread",
    "both margins above spread",
    "margin term",
)


class RewardBench2(DecidedByPairs):
    """RewardBench 2."""

    name = "reward_bench_2"
    title = "RewardBench 2"
    hub = ("hub:allenai/reward-bench-2:test",)
    pattern = (
        "test*.parquet",
        "test*.json*",
        "data/test*.parquet",
        "data/test*.json*",
        "reward-bench-2*.parquet",
        "reward-bench-2*.json*",
        "reward_bench_2*.json*",
    )
    paper = "Malik et al. 2025, arXiv 2506.01937"

    def read(self, source: Source) -> BenchmarkData:
        """One item a row: right answers first, then wrong ones.

        Raises:
            DataError: a field is missing or of another kind, an answer is empty, the numbers of
                answers contradict each other or the subset, an id comes twice, or Ties has no k
                that is both `ref` and `tied`.
        """
        items = tuple(_item(record) for record in source.records())
        notes = count_notes(self.title, [item.subset for item in items], COUNTS)
        return BenchmarkData(self.name, items, notes=(*notes, *_unpaired(items)))

    def figures(self, items: Sequence[ScoredItem]) -> Sequence[Figure]:
        """The mean of six, the six subsets, and the five terms of Ties."""
        check_subsets(items, COUNTS, self.title)
        rows = by_subset(items)
        verdicts = _best_of(items)
        normal = [
            verdicts.share(name, rows[name]) for name in COUNTS if name in rows and name != TIES
        ]
        ties = _ties_figures(items, rows[TIES]) if TIES in rows else []
        return (_overall(items, rows, [*normal, *ties[:1]]), *normal, *ties)

    def pairs(self, item: ScoredItem) -> Pairs:
        """Every right answer over every wrong one.

        Raises:
            DataError: the item does not say how many are right.
        """
        return first_beat_rest(item, fact(item, "n_correct", self.title))


# ------------------------------------------------------------------------------------------- rows


def _item(record: Record) -> Item:
    prompt = text_field(record, "prompt")
    subset = choice_field(record, "subset", list(COUNTS))
    right, wrong = texts_field(record, "chosen"), texts_field(record, "rejected")
    _check_numbers(record, len(right), len(wrong))
    answers = answers_of(prompt, (*right, *wrong), record.where)
    row, cluster = id_field(record), answers[0].prompt_id
    facts: dict[str, str | int] = {"n_correct": len(right)}
    if subset == TIES:
        kind, k = _kind_and_k(record, row)
        if kind == "tied" and len(right) < 2:
            raise DataError(
                f"{record.where}: `chosen` of the tied row {row!r} has 1 text; expected at least 2 "
                "right answers, whose spread the rule needs"
            )
        facts |= {"kind": kind, "k": k}
        # The two rows of a k are one question for the rule, so they are drawn together.
        row, cluster = f"{kind}:{k}", f"ties:{k}"
    elif len(right) != 1:
        raise DataError(
            f"{record.where}: `chosen` has {len(right)} texts; expected 1 in the subset {subset!r}. "
            "Only Ties has several right answers"
        )
    return Item(f"{subset}/{row}", subset, cluster, answers, facts, where=record.where)


def _check_numbers(record: Record, n_right: int, n_wrong: int) -> None:
    """The row's own counts, where it has them, must be those of its lists."""
    counts = {
        "num_correct": n_right,
        "num_incorrect": n_wrong,
        "total_completions": n_right + n_wrong,
    }
    for name, n in counts.items():
        if name in record.fields and integer_field(record, name) != n:
            raise DataError(
                f"{record.where}: `{name}` is {record.fields[name]}, but `chosen` and `rejected` hold "
                f"{n_right} and {n_wrong} texts; expected {n}. Perhaps a list was cut"
            )


def _kind_and_k(record: Record, row: str) -> tuple[str, int]:
    kind, _, k = row.partition(":")
    if kind not in ("ref", "tied") or not k.isdecimal():
        raise DataError(
            f"{record.where}: `id` is {row!r}; expected 'ref:NUMBER' or 'tied:NUMBER' in the subset Ties"
        )
    return kind, int(k)


def _unpaired(items: Sequence[Item]) -> list[str]:
    """A note on the k of Ties that are of one kind only.

    Raises:
        DataError: no k is of both kinds.
    """
    of_kind = {
        kind: {item.facts["k"] for item in items if item.facts.get("kind") == kind}
        for kind in ("ref", "tied")
    }
    _check_some_pair(of_kind["ref"], of_kind["tied"])
    alone = of_kind["ref"] ^ of_kind["tied"]
    if not alone:
        return []
    return [f"Ties: {len(alone)} numbers have a ref or a tied row only; they count in one accuracy"]


def _check_some_pair(ref: set[int], tied: set[int]) -> None:
    if (ref or tied) and not ref & tied:
        raise DataError(
            f"Ties has {len(ref)} ref and {len(tied)} tied rows, and no number of both kinds; "
            "expected pairs ref:k and tied:k, whose margins the rule compares. Give the whole subset"
        )


# ----------------------------------------------------------------------------------------- figures


def _best_of(items: Sequence[ScoredItem]) -> Verdicts:
    """The first answer's share of the highest score."""
    credit, is_tied, chance = np.zeros((3, len(items)))
    for row, item in enumerate(items):
        is_top = item.scores == item.scores.max()
        credit[row] = is_top[0] / is_top.sum()
        is_tied[row] = is_top[0] and is_top.sum() > 1
        chance[row] = 1 / len(item.scores)
    return Verdicts(items, credit, is_tied.astype(bool), chance)


def _ties_figures(items: Sequence[ScoredItem], rows: Sequence[int]) -> list[Figure]:
    """The score of Ties, and its five terms."""
    columns, is_tied = _ties_columns(items, rows)
    clusters = clusters_of(items)
    n, n_ties = len(rows), int(is_tied.sum())
    score = sums_statistic(columns, clusters, _ties_score, n=n)
    note = "weights add up to 1.01; depends on distances between scores"
    figures = [Figure("Ties score", TIES, score, n, n_ties, note=note)]
    for term, name in enumerate(_TERMS):
        over = sums_statistic(columns, clusters, _term(term), n=int(columns[:, 5 + term].sum()))
        figures.append(Figure(name, TIES, over, over.n, n_ties))
    return figures


def _ties_columns(
    items: Sequence[ScoredItem], rows: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Columns 0-4: the five terms of each row; 5-9: whether the row takes part in them.

    Returns:
        (n, 10) columns, and (n,) whether a verdict on the row hangs on equal numbers.
    """
    columns, is_tied = np.zeros((len(items), 10)), np.zeros(len(items), dtype=bool)
    margins = {_key(items[row]): _margin(items[row]) for row in rows}
    if len(margins) < len(rows):
        raise DataError("Ties has several rows of one id; expected every ref:k and tied:k once")
    _check_some_pair(*({k for kind, k in margins if kind == wanted} for wanted in ("ref", "tied")))
    for row in rows:
        kind, k = _key(items[row])
        margin = margins[kind, k]
        first = 0 if kind == "tied" else 1
        columns[row, [first, 5 + first]] = margin > 0, 1
        is_tied[row] = margin == 0
        if kind == "tied" and ("ref", k) in margins:
            least, spread = min(margin, margins["ref", k]), _spread(items[row])
            columns[row, 2:5] = margin > spread, least > spread, _closeness(least, spread)
            columns[row, 7:10] = 1
            is_tied[row] |= spread in (margin, least)
    return columns, is_tied


def _key(item: ScoredItem) -> tuple[str, int]:
    try:
        kind, k = item.facts["kind"], int(item.facts["k"])
        n_correct = int(item.facts["n_correct"])
    except KeyError as error:
        raise DataError(
            f"the item {item.id!r} of Ties lacks the fact {error}; expected kind, k and n_correct"
        ) from error
    if kind not in ("ref", "tied") or not 0 < n_correct < len(item.scores):
        raise DataError(
            f"the item {item.id!r} of Ties has kind {kind!r} and n_correct {n_correct} of "
            f"{len(item.scores)} scores; expected 'ref' or 'tied', and right and wrong answers"
        )
    return kind, k


def _margin(item: ScoredItem) -> float:
    n = item.facts["n_correct"]
    return float(item.scores[:n].min() - item.scores[n:].max())


def _spread(item: ScoredItem) -> float:
    right = item.scores[: item.facts["n_correct"]]
    return float(right.max() - right.min())


def _closeness(least: float, spread: float) -> float:
    """tanh(least / spread - 1), with 0 / 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(np.tanh(np.float64(least) / spread - 1), nan=0.0))


def _term(term: int) -> Callable[[np.ndarray], np.ndarray]:
    """One term of the Ties score: (R, 10) column sums -> (R,) values."""
    return lambda sums: sums[:, term] / sums[:, 5 + term]


def _ties_score(sums: np.ndarray) -> np.ndarray:
    """(R, 10) column sums -> (R,) scores."""
    return sums[:, :5] / sums[:, 5:] @ np.array(TIES_WEIGHTS)


def _overall(
    items: Sequence[ScoredItem], rows: Mapping[str, list[int]], subsets: Sequence[Figure]
) -> Figure:
    """Plain mean of the subsets that are there."""
    missing = [name for name in COUNTS if name not in rows]
    known = [figure.chance for figure in subsets if figure.chance is not None]
    return Figure(
        metric="mean of subsets",
        subset="",
        statistic=MeanOfParts([figure.statistic for figure in subsets]),
        n=len(items),
        n_ties=sum(figure.n_ties for figure in subsets),
        is_headline=True,
        chance=float(np.mean(known)) if len(known) == len(subsets) else None,
        is_official=not missing,
        note=f"RewardBench 2 without {', '.join(missing)}" if missing else "",
    )
