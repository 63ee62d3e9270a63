"""PPE: human votes between two models' answers, and best-of-32 with answers known right or wrong.

Preference
    accuracy = share of votes for one side where that side scores higher; votes of "tie" stand apart
    model ranking = Bradley-Terry ratings of the models from the scorer's votes against those from people's:
    Spearman, Kendall, mean over models of the Pearson correlation of win rates against each other model

Correctness
    pair accuracy = share of (sampled) conflict pairs, one right and one wrong, where the right one scores
    higher;   best-of-k = how often the top of a random k of the candidates is right, k = 1..32, with its
    maximum, its end and the loss from maximum to end;   AUROC of score against correctness
    headline = plain mean of the pair accuracies of the five sets

Source: Frick et al. 2024, arXiv 2410.14872 (sections 4, 5). The authors' script could not be read, so
these are our readings, and each figure's note says so where it matters:

* equal scores are never right in an accuracy, and are half a win to each side in a ranking;
* a person's tie is half a win to each side in a ranking;
* best-of-k is the exact expectation over subsets, equal scores sharing the credit, where the authors
  are said to average over random orders;
* separability, confidence agreement and Brier score read confidence off the normal approximation of
  the ratings (inverse Fisher information), where the authors bootstrap. They are marked as ours.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from retrm.data.messages import kind_of
from retrm.data.read import Record
from retrm.errors import DataError, did_you_mean
from retrm.evaluation.benchmarks.base import (
    BenchmarkData,
    Figure,
    Item,
    ScoredItem,
    answers_of,
    by_subset,
    check_n_scores,
    clusters_of,
    count_notes,
    pair_verdicts,
)
from retrm.evaluation.benchmarks.composed import MeanOfParts, OnSomePrompts
from retrm.evaluation.benchmarks.model_ranking import (
    ModelVotes,
    brier_score,
    confidence_agreement,
    kendall,
    row_wise_pearson,
    separability,
    spearman,
)
from retrm.evaluation.benchmarks.pairs import DecidedByPairs, Pairs
from retrm.evaluation.benchmarks.source import (
    Part,
    Source,
    as_text,
    choice_field,
    field,
    id_field,
    list_field,
    text_field,
)
from retrm.evaluation.benchmarks.steps import fact
from retrm.metrics import (
    PromptStatistic,
    SumsStatistic,
    auroc_statistic,
    expected_best_of_k,
    sums_statistic,
    within_prompt_auroc_statistic,
)

WINNERS = {"model_a": "a", "model_b": "b", "tie": "tie", "tie (bothbad)": "tie"}
FLAGS = {
    "hard_prompt": "hard",
    "easy_prompt": "easy",
    "if_prompt": "instruction following",
    "math_prompt": "math",
    "is_code": "code",
}
N_VOTES = 16_038
BLANK = "an answer is blank"
TIED_VOTE = "tie"

SETS = {
    "mmlu-pro": "MMLU-Pro",
    "math": "MATH",
    "gpqa": "GPQA",
    "ifeval": "IFEval",
    "mbpp": "MBPP-plus",
}
N_CORRECTNESS = 2_555
PAPER = "Frick et al. 2024, arXiv 2410.14872"
_BRIER = "Brier score of model order, lower is better"
_LOSS = "best-of-k, loss from maximum to end"


class PPEPreference(DecidedByPairs):
    """PPE human preference."""

    name = "ppe_preference"
    title = "PPE preference"
    hub: tuple[str, ...] = ("hub:lmarena-ai/PPE-Human-Preference-V1:test",)
    pattern = ("*.jsonl*", "*.json", "*.json.gz", "*.parquet", "data/*.parquet")
    paper = PAPER

    def read(self, source: Source) -> BenchmarkData:
        """One item a vote, `response_1` (of `model_a`) first.

        Raises:
            DataError: a field is missing or wrong, or a question repeats.
        """
        items: list[Item] = []
        excluded: Counter[str] = Counter()
        for record in source.records():
            item = _vote(record)
            if item is None:
                excluded[BLANK] += 1
            else:
                items.append(item)
        n = len(items) + excluded[BLANK]
        notes = (f"{n} votes instead of {N_VOTES}",) if n != N_VOTES else ()
        return BenchmarkData(self.name, tuple(items), excluded, notes)

    def figures(self, items: Sequence[ScoredItem]) -> Sequence[Figure]:
        """Accuracy without tied votes, of all and by kind of prompt, then the ranking of models.

        Raises:
            DataError: items of another benchmark, or tied votes alone.
        """
        check_n_scores(items, 2, self.title)
        winner = [fact(item, "winner", self.title) for item in items]
        rows = [row for row, side in enumerate(winner) if side != TIED_VOTE]
        if not rows:
            raise DataError(
                f"all {len(items)} votes are ties; expected votes for one of two models"
            )
        scores = np.array([item.scores for item in items])
        first = np.array([side != "b" for side in winner])
        better, worse = np.where(first, scores.T, scores.T[::-1])
        verdicts = pair_verdicts(items, better, worse)
        note = f"without {len(items) - len(rows)} votes of tie"
        made = [verdicts.share("", rows, is_headline=True, note=note)]
        for subset, is_in in _kinds(items).items():
            taken = [row for row in rows if is_in[row]]
            if taken:
                made.append(verdicts.share(subset, taken))
        return [*made, *_rankings(items, winner, scores)]

    def pairs(self, item: ScoredItem) -> Pairs:
        """The side that people prefer over the other; none where they voted "tie".

        Raises:
            DataError: the item has no vote.
        """
        side = fact(item, "winner", self.title)
        if side == TIED_VOTE:
            return ()
        return ((0, 1),) if side == "a" else ((1, 0),)


class PPECorrectness(DecidedByPairs):
    """PPE correctness: five sets of 32 answers to each prompt."""

    name = "ppe_correctness"
    title = "PPE correctness"
    # Without a split, which is "train" for all: the repository's name alone says which set it is.
    hub: tuple[str, ...] = tuple(
        f"hub:lmarena-ai/PPE-{name}-Best-of-K"
        for name in ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus")
    )
    pattern = ("*.jsonl*", "*.json", "*.json.gz", "*.parquet")
    paper = PAPER

    def read(self, source: Source) -> BenchmarkData:
        """One item a prompt, its answers in order; the set is told by the part's name or folder.

        Raises:
            DataError: a field is missing or wrong, or a pair is no conflict.
        """
        items: list[Item] = []
        excluded: Counter[str] = Counter()
        for part in source.parts:
            for record in part.records:
                item = _candidates(record, _set_of(part))
                if item is None:
                    excluded[BLANK] += 1
                else:
                    items.append(item)
        found = [item.subset for item in items]
        notes = count_notes(self.title, found, {name: found.count(name) for name in SETS.values()})
        n = len(items) + excluded[BLANK]
        if n != N_CORRECTNESS:
            notes = (*notes, f"{n} prompts instead of {N_CORRECTNESS}")
        return BenchmarkData(self.name, tuple(items), excluded, notes)

    def figures(self, items: Sequence[ScoredItem]) -> Sequence[Figure]:
        """Pair accuracies, best-of-k with maximum, end and loss, and AUROC; means first, then sets.

        Raises:
            DataError: items of another benchmark.
        """
        for item in items:
            _check_candidates(item)
        rows = by_subset(items)
        sets = [name for name in SETS.values() if name in rows]
        lacking = [name for name in SETS.values() if name not in rows]
        note = f"without {', '.join(lacking)}: not the published mean" if lacking else ""
        return [
            *_pair_figures(items, rows, sets, "sampled_pairs", note),
            *_pair_figures(items, rows, sets, "pairs", note),
            *_best_of_k_figures(items, rows, sets, note),
            *_auroc_figures(items, rows, sets, note),
        ]

    def pairs(self, item: ScoredItem) -> Pairs:
        """The sampled conflict pairs, which the headline counts.

        Raises:
            DataError: the item has none in its facts.
        """
        return tuple((right, wrong) for right, wrong in fact(item, "sampled_pairs", self.title))


# -------------------------------------------------------------------------------- human preference


def _vote(record: Record) -> Item | None:
    """An item; None where an answer is blank."""
    where = record.where
    texts = [text_field(record, name, may_be_empty=True) for name in ("response_1", "response_2")]
    winner = choice_field(record, "winner", tuple(WINNERS))
    models = [text_field(record, name) for name in ("model_a", "model_b")]
    if models[0] == models[1]:
        raise DataError(
            f"{where}: `model_a` and `model_b` are both {models[0]!r}; expected two models, of which "
            "one can be better"
        )
    flags = {}
    for name, kind in FLAGS.items():
        if record.fields.get(name) is not None:
            flags[kind] = choice_field(record, name, (True, False))
    if not all(text.strip() for text in texts):
        return None
    answers = answers_of(text_field(record, "prompt"), texts, where)
    return Item(
        id=id_field(record, "question_id"),
        subset="votes",
        cluster=answers[0].prompt_id,
        answers=answers,
        facts={
            "winner": WINNERS[winner],
            "generators": models,
            "language": text_field(record, "language"),
            "flags": flags,
        },
        where=where,
    )


def _kinds(items: Sequence[ScoredItem]) -> dict[str, np.ndarray]:
    """(n,) bool masks by kind of prompt; kinds overlap."""
    title = PPEPreference.title
    flags: list[Mapping[str, bool]] = [fact(item, "flags", title) for item in items]
    kinds = {
        kind: np.array([bool(of_item.get(kind)) for of_item in flags]) for kind in FLAGS.values()
    }
    language = np.array([fact(item, "language", title) for item in items])
    return {**kinds, "English": language == "English", "not English": language != "English"}


def _rankings(
    items: Sequence[ScoredItem], winner: Sequence[str], scores: np.ndarray
) -> list[Figure]:
    """How the scorer ranks the models, against how people do."""
    pairs = [fact(item, "generators", PPEPreference.title) for item in items]
    human = np.array([{"a": 1.0, "b": 0.0, TIED_VOTE: 0.5}[side] for side in winner])
    judged = (np.sign(scores[:, 0] - scores[:, 1]) + 1) / 2
    n_ties = int((judged == 0.5).sum())
    ours = "our reading: confidence by the normal approximation of ratings, not by a bootstrap"
    known = (
        "ties, of people and of scores, are half a win to each model; resamples add noise to both "
        "rankings, so the interval lies low"
    )
    table: list[tuple[str, Callable[..., np.ndarray], bool, str]] = [
        ("Spearman of model ratings", spearman, True, known),
        ("Kendall of model ratings", kendall, True, known),
        ("row-wise Pearson of win rates", row_wise_pearson, True, known),
        ("separability of models", separability, False, ours),
        ("confidence agreement", confidence_agreement, False, ours),
        (_BRIER, brier_score, False, ours),
    ]
    return [
        Figure(
            metric=metric,
            subset="",
            statistic=ModelVotes.of(pairs, human, judged, clusters_of(items), function),
            n=len(items),
            n_ties=n_ties,
            is_official=is_official,
            note=note,
            better="lower" if metric == _BRIER else "higher",
        )
        for metric, function, is_official, note in table
    ]


# ------------------------------------------------------------------------------------- correctness


def _set_of(part: Part) -> str:
    """The set by the name of file, split, repository or folder."""
    for name in (part.name, part.folder):
        plain = name.lower().replace("_", "-")
        for key, known in SETS.items():
            if key in plain:
                return known
    raise DataError(
        f"{part.folder or '.'}/{part.name}: the name holds none of the five sets; expected one of "
        f"{', '.join(SETS)} in it. {did_you_mean(part.name.lower(), SETS)} Rename the file after its set"
    )


def _candidates(record: Record, subset: str) -> Item | None:
    """An item; None where an answer is blank."""
    where = record.where
    labels = list_field(record, "scores")
    wrong = next((v for v in labels if v not in (0, 1)), None)
    if wrong is not None or any(v is None for v in labels):
        raise DataError(
            f"{where}: `scores` holds {kind_of(wrong)}; expected true or false, whether each response "
            "is right"
        )
    names = [f"response_{i + 1}" for i in range(len(labels))]
    texts = [as_text(field(record, n), where, n, may_be_empty=True) for n in names]
    if f"response_{len(labels) + 1}" in record.fields:
        raise DataError(
            f"{where}: `scores` has {len(labels)} values, but there is response_{len(labels) + 1}; "
            "expected one value a response"
        )
    facts = {"labels": [int(v) for v in labels]}
    for key, column in (("sampled_pairs", "sampled_conflict_pairs"), ("pairs", "conflict_pairs")):
        facts[key] = _conflicts(record, column, facts["labels"])
    if not all(text.strip() for text in texts):
        return None
    answers = answers_of(text_field(record, "prompt"), texts, where)
    model = record.fields.get("model_name")
    name = id_field(record, "question_id")
    return Item(
        # A question is answered by one model or by several.
        id=f"{subset}:{name}" + (f":{model}" if model else ""),
        subset=subset,
        cluster=answers[0].prompt_id,
        answers=answers,
        facts=facts,
        where=where,
    )


def _conflicts(record: Record, column: str, labels: Sequence[int]) -> list[list[int]]:
    """Pairs (right, wrong) of a column of index pairs."""
    value = field(record, column)
    if not isinstance(value, list | tuple):
        raise DataError(f"{record.where}: `{column}` is {kind_of(value)}; expected a list of pairs")
    made = []
    for number, pair in enumerate(value):
        place = f"{record.where}: `{column}[{number}]`"
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2
        if not is_pair or any(type(i) is not int or not 0 <= i < len(labels) for i in pair):
            raise DataError(
                f"{place} is {pair!r}; expected two indices from 0 to {len(labels) - 1}"
            )
        if labels[pair[0]] == labels[pair[1]]:
            kind = "right" if labels[pair[0]] else "wrong"
            raise DataError(
                f"{place} names two responses that are {kind} both; expected a right and a wrong one. "
                "Perhaps the indices count from 1"
            )
        made.append(list(pair) if labels[pair[0]] else [pair[1], pair[0]])
    return made


def _check_candidates(item: ScoredItem) -> None:
    labels = fact(item, "labels", PPECorrectness.title)
    if len(labels) != len(item.scores) or item.subset not in SETS.values():
        raise DataError(
            f"the item {item.id!r} is of {item.subset!r}, with {len(item.scores)} scores for "
            f"{len(labels)} responses; expected one each, of one of {', '.join(SETS.values())}"
        )


def _pair_figures(
    items: Sequence[ScoredItem],
    rows: Mapping[str, list[int]],
    sets: Sequence[str],
    key: str,
    note: str,
) -> list[Figure]:
    """Strict accuracy over conflict pairs, pooled in each set; the mean of the sets."""
    of_items = [
        np.array(fact(item, key, PPECorrectness.title), int).reshape(-1, 2) for item in items
    ]
    gaps = [
        item.scores[pairs[:, 0]] - item.scores[pairs[:, 1]]
        for item, pairs in zip(items, of_items, strict=True)
    ]
    won = np.array([(gap > 0).sum() for gap in gaps], dtype=np.float64)
    size = np.array([len(gap) for gap in gaps], dtype=np.float64)
    is_tied = np.array([(gap == 0).sum() for gap in gaps])
    present = [name for name in sets if size[rows[name]].any()]
    is_sampled = key == "sampled_pairs"
    metric = "pair accuracy" if is_sampled else "pair accuracy, all conflict pairs"

    def figure(subset: str, names: Sequence[str], *, is_headline: bool = False) -> Figure:
        statistic = _mean_ratio(items, won, size, [rows[name] for name in names])
        taken = [row for name in names for row in rows[name]]
        return Figure(
            metric if subset else f"mean {metric}",
            subset,
            statistic,
            int(size[taken].sum()),
            int(is_tied[taken].sum()),
            is_headline,
            chance=0.5,
            note="" if subset else note,
        )

    if not present and not is_sampled:
        return []
    whole = figure("", present or sets, is_headline=is_sampled)
    return [whole, *(figure(name, [name]) for name in present)]


def _mean_ratio(
    items: Sequence[ScoredItem],
    top: np.ndarray,
    bottom: np.ndarray,
    groups: Sequence[Sequence[int]],
) -> SumsStatistic:
    """Mean over groups of sum(top) / sum(bottom); its n is the sum of `bottom`."""
    columns = np.zeros((len(items), len(groups), 2))
    for g, rows in enumerate(groups):
        columns[rows, g] = np.stack([top, bottom], axis=1)[rows]

    def function(sums: np.ndarray) -> np.ndarray:
        parts = sums.reshape(len(sums), -1, 2)
        return (parts[..., 0] / parts[..., 1]).mean(axis=1)

    n = int(sum(bottom[list(rows)].sum() for rows in groups))
    return sums_statistic(columns.reshape(len(items), -1), clusters_of(items), function, n=n)


def _best_of_k_figures(
    items: Sequence[ScoredItem], rows: Mapping[str, list[int]], sets: Sequence[str], note: str
) -> list[Figure]:
    """Maximum, end and loss of each set and of their mean; the mean curve for every k."""
    largest = min(len(item.scores) for item in items)
    curves = np.zeros((len(items), largest))
    is_tied = np.zeros(len(items), dtype=bool)
    for row, item in enumerate(items):
        labels = fact(item, "labels", PPECorrectness.title)
        curves[row] = expected_best_of_k(item.scores, labels)[:largest]
        is_tied[row] = (item.scores == item.scores.max()).sum() > 1
    reduced: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "best-of-k, maximum over k": lambda curve: curve.max(axis=1),
        f"best-of-k, end (k = {largest})": lambda curve: curve[:, -1],
        _LOSS: lambda curve: curve.max(axis=1) - curve[:, -1],
    }

    def figure(
        metric: str, names: Sequence[str], subset: str, function: Callable[[np.ndarray], np.ndarray]
    ) -> Figure:
        parts = tuple(_curve(items, curves, rows[name], function) for name in names)
        taken = [row for name in names for row in rows[name]]
        statistic = parts[0] if len(parts) == 1 else MeanOfParts(parts)
        return Figure(
            metric,
            subset,
            statistic,
            len(taken),
            int(is_tied[taken].sum()),
            note="" if subset else note,
            better="lower" if metric.endswith(_LOSS) else "higher",
        )

    made = []
    for metric, function in reduced.items():
        made.append(figure(f"mean {metric}", sets, "", function))
        made += [figure(metric, [name], name, function) for name in sets]
    for k in range(1, largest + 1):
        made.append(figure(f"mean best-of-{k}", sets, "", lambda curve, k=k: curve[:, k - 1]))
    return made


def _curve(
    items: Sequence[ScoredItem],
    curves: np.ndarray,
    rows: Sequence[int],
    function: Callable[[np.ndarray], np.ndarray],
) -> SumsStatistic:
    """A function of the mean curve of some items."""
    columns = np.zeros((len(items), curves.shape[1] + 1))
    columns[rows, :-1] = curves[rows]
    columns[rows, -1] = 1

    def of_sums(sums: np.ndarray) -> np.ndarray:
        return function(sums[:, :-1] / sums[:, -1:])

    return sums_statistic(columns, clusters_of(items), of_sums, n=len(rows))


def _auroc_figures(
    items: Sequence[ScoredItem], rows: Mapping[str, list[int]], sets: Sequence[str], note: str
) -> list[Figure]:
    """Pooled AUROC of each set and their mean; within prompts, which is ours."""
    made = []
    prompts = np.unique(np.array(clusters_of(items), dtype=str)).astype(object)
    kinds: list[tuple[str, Callable[..., PromptStatistic], bool]] = [
        ("AUROC", auroc_statistic, True),
        ("AUROC within prompts", within_prompt_auroc_statistic, False),
    ]
    for metric, make, is_official in kinds:
        parts: dict[str, OnSomePrompts] = {}
        for name in sets:
            taken = [items[row] for row in rows[name]]
            labels = [fact(item, "labels", PPECorrectness.title) for item in taken]
            is_usable = any(0 < sum(of_item) < len(of_item) for of_item in labels)
            if is_usable:
                scores = np.concatenate([item.scores for item in taken])
                ids = [item.cluster for item in taken for _ in item.scores]
                parts[name] = OnSomePrompts.of(make(scores, np.concatenate(labels), ids), prompts)
        if not parts:
            continue
        whole = MeanOfParts(tuple(parts.values()))
        n = sum(part.n for part in parts.values())
        made.append(
            Figure(f"mean {metric}", "", whole, n, chance=0.5, is_official=is_official, note=note)
        )
        made += [
            Figure(metric, name, part, part.n, chance=0.5, is_official=is_official)
            for name, part in parts.items()
        ]
    return made
