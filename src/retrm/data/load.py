"""A source of records becomes one table of answers.

Rows of one prompt that stand on many lines meet again through `prompt_id`. In preference and ranked
data equal answers to one prompt share a row, so the backbone reads each once; sampled and singly
written answers keep a row each, for they are draws. Records that can give no relation are set aside
and counted:

    records                        read from the source
    answers, prompts               rows of the table, and distinct prompt_ids
    labels_missing                 rows of a labelled format whose label is null or NaN
    pairs, ranked_lists, ties      relations kept; a tie is a list with equal ranks only
    answers_shared                 answers that took the row of an equal one (preferences, lists)
    answers_repeated               rows that are equal to an earlier row (samples)
    answers_cut                    rows whose `finished` is false, pruned ones not counted
    answers_pruned                 rows that sampling stopped for their running scores; they have no
                                   label, whatever the file says
    prompts_prefilled              records whose prompt ends with words of the assistant
    dropped_identical              records whose two answers are equal
    dropped_different_prompts      preferences between answers to different prompts
    dropped_other_filter           lines of lm-evaluation-harness of another filter than the one named
    dropped_empty                  records with an empty answer, under ``empty="drop"``
    lists_too_short                lists with fewer than two ranked answers; answers stay
    ranks_missing                  list members without a rank; answers stay
    ranks_contradictory            list members that equal another one of another rank
    preferences_missing            pairs whose strength is null; answers stay
    margins_missing                null margins, taken as 0
    margins_negative               margins below 0, which flip small differences
    pairs_contradictory            pairs that also stand the other way round
    objectives_without_ratings     objectives that the format knows and no record of the file rates

Keys whose number is 0 are left out, except the first line's and `answers`, `prompts`.

    >>> from retrm.data.read import records_of
    >>> rows = [{"prompt": "2+2?", "chosen": "4", "rejected": "5"}]
    >>> len(build_table(records_of(rows)).pairs)
    1
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np

from retrm.data.detect import detect, parse
from retrm.data.formats import FORMATS
from retrm.data.objectives import add_objectives, check_objectives
from retrm.data.parsed import Options, Parsed, Sign
from retrm.data.rating_columns import RatingColumn, WantedRatings
from retrm.data.read import Record, read_records
from retrm.data.values import EmptyAnswerError
from retrm.errors import DataError, FormatError, LabelError, did_you_mean
from retrm.records import (
    Answer,
    AnswerTable,
    Pair,
    Prompt,
    RankedList,
    RatingScale,
    Reference,
)

Empty = Literal["error", "drop"]
Ratings = Literal["known", "unread"] | Sequence[str | RatingColumn]


def iter_parsed(
    source: str | Path,
    *,
    format: str = "auto",
    attribute: str | None = None,
    strength_sign: Sign | None = None,
    ratings: Ratings | None = None,
    limit: int | None = None,
) -> Iterator[tuple[Record, Parsed]]:
    """Every record with what it says, one at a time: for scoring in the order of the file.

    Args:
        source: a file or ``hub:owner/name[:split][:config]``.
        format: a name of `FORMATS`, or ``auto``: found by the columns of each record.
        attribute: the objective, for records rated on several.
        strength_sign: which side a negative strength prefers.
        ratings: as of `load_table`.
        limit: stop after so many records.

    Raises:
        DataError: a record or value is not what it should be, or one prompt_id stands for two prompts.
        FormatError: no format fits, several do, or a record is in another format than the first.
    """
    options = _options(format, attribute, strength_sign, ratings)
    # None stands for dropped records, and none is dropped here.
    return cast(
        Iterator[tuple[Record, Parsed]],
        _parse_all(read_records(source, limit=limit), format, options),
    )


def iter_with_empty(
    source: str | Path, *, format: str = "auto", ratings: Ratings | None = None
) -> Iterator[tuple[Record, Parsed | None]]:
    """As `iter_parsed`, but a record that holds an empty answer comes with None, for its place to be kept.

    Args:
        source: a file or ``hub:owner/name[:split][:config]``.
        format: a name of `FORMATS`, or ``auto``.
        ratings: as of `load_table`.

    Raises:
        DataError, FormatError: as `iter_parsed`.
    """
    options = _options(format, None, None, ratings)
    return _parse_all(read_records(source), format, options, empty="drop")


def check_empty(empty: str) -> None:
    """Refuse an unknown policy for empty answers.

    Raises:
        DataError: neither error nor drop.
    """
    if empty not in ("error", "drop"):
        raise DataError(f"got empty={empty!r}; expected 'error' or 'drop'")


def load_table(
    source: str | Path,
    *,
    format: str = "auto",
    attribute: str | None = None,
    strength_sign: Sign | None = None,
    ratings: Ratings | None = None,
    objectives: Sequence[str] = (),
    empty: Empty = "error",
    limit: int | None = None,
) -> AnswerTable:
    """All records of a source as one table.

    Args:
        source: a file or ``hub:owner/name[:split][:config]``.
        format: a name of `FORMATS`, or ``auto``: found by the columns of each record.
        attribute: the objective, for records rated on several.
        strength_sign: which side a negative strength prefers.
        ratings: objectives whose ratings are read: ``"known"`` = all that the format knows, or a list
            of these and of own columns with their ranges (``"quality:1..5"``, see
            `retrm.data.rating_columns`); None = none. ``"unread"`` = none, and rated records without an
            `attribute` are taken for what they answer: nothing is to be learned from them.
        objectives: objectives that are computed from every answer (`retrm.data.objectives`).
        empty: what to do with a record that holds an empty answer: stop, or set it aside and count.
        limit: stop after so many records.

    Raises:
        DataError: as `iter_parsed`, or the source has no record at all.
        LabelError: a rating outside of its range, or an objective that was named and is nowhere rated.
    """
    return build_table(
        read_records(source, limit=limit),
        format=format,
        attribute=attribute,
        strength_sign=strength_sign,
        ratings=ratings,
        objectives=objectives,
        empty=empty,
        name=str(source),
    )


def build_table(
    records: Iterable[Record],
    *,
    format: str = "auto",
    attribute: str | None = None,
    strength_sign: Sign | None = None,
    ratings: Ratings | None = None,
    objectives: Sequence[str] = (),
    empty: Empty = "error",
    name: str = "records",
) -> AnswerTable:
    """`load_table` for records that are already at hand; `name` stands in messages."""
    check_empty(empty)
    check_objectives(objectives)
    counts: Counter[str] = Counter(records=0)
    options = _options(format, attribute, strength_sign, ratings)
    builder = _Builder(counts)
    columns: dict[str, None] = {}
    for record, parsed in _parse_all(records, format, options, empty=empty):
        counts["records"] += 1
        columns.update(dict.fromkeys(record.fields))
        if parsed is None:
            counts["dropped_empty"] += 1
        else:
            builder.add(parsed)
    if counts["records"] == 0:
        raise DataError(f"{name} has no records; expected at least one. Check how it was written")
    if options.ratings is not None:
        _check_rated(builder.ratings, options.ratings, list(columns), name)
    return add_objectives(builder.table(), objectives)


def _check_rated(
    ratings: Mapping[str, Mapping[int, float]],
    wanted: WantedRatings,
    columns: Sequence[str],
    name: str,
) -> None:
    """Refuse an objective that was named and that no record rates: a misspelt column, as a rule."""
    for column in wanted.columns:
        if not ratings.get(column.objective):
            remedy = (
                "The column is there and holds none: bring rated answers, or leave the objective out"
                if column.column in columns
                else f"The columns are {', '.join(columns)}. {did_you_mean(column.column, columns)}"
            )
            raise LabelError(
                f"{name}: no answer has a rating of {column.objective!r} in the column "
                f"{column.column!r}; expected one at least. {remedy}".rstrip()
            )


def _options(
    format: str,
    attribute: str | None,
    strength_sign: Sign | None,
    ratings: Ratings | None = None,
) -> Options:
    """Refuse what is misspelt before anything is read."""
    if format != "auto" and format not in FORMATS:
        raise FormatError(
            f"got format {format!r}; expected 'auto' or a known one. {did_you_mean(format, FORMATS)}"
        )
    if strength_sign not in (None, "negative_first", "positive_first"):
        raise FormatError(
            f"got strength_sign={strength_sign!r}; expected 'negative_first' or 'positive_first'"
        )
    return Options(attribute, strength_sign, WantedRatings.of(ratings))


def _parse_all(
    records: Iterable[Record],
    format: str,
    options: Options,
    *,
    empty: Empty = "error",
) -> Iterator[tuple[Record, Parsed | None]]:
    """Records with what they say, None = dropped for an empty answer. All must be in one format."""
    detector = _Detector(format, options)
    prompts = _PromptIds()
    for record in records:
        name = detector.name_of(record)
        try:
            parsed = parse(record, name, options)
        except EmptyAnswerError:
            if empty == "error":
                raise
            yield record, None
            continue
        yield record, prompts.check(parsed)


class _Detector:
    """The format of each record; one file, one format."""

    def __init__(self, format: str, options: Options) -> None:
        self.format, self.options = format, options
        self.first: tuple[str, str] | None = None
        self.known: dict[tuple[str, ...], str] = {}

    def name_of(self, record: Record) -> str:
        if self.format != "auto":
            return self.format
        columns = tuple(record.fields)
        if columns not in self.known:
            self.known[columns] = detect(record, self.options)
        name = self.known[columns]
        if self.first is None:
            self.first = (name, record.where)
        if name != self.first[0]:
            raise FormatError(
                f"{record.where}: the columns are those of {name!r}, but {self.first[1]} is "
                f"{self.first[0]!r}; expected one format in a file. Split the file, or read every "
                f"record alike with --format {self.first[0]}"
            )
        return name


class _PromptIds:
    """Which prompt every prompt_id stands for; equal prompts become one object."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Prompt, str]] = {}

    def check(self, parsed: Parsed) -> Parsed:
        """`parsed` with shared prompts.

        Raises:
            DataError: a prompt_id that stood for another prompt before.
        """
        known = [self._first(answer) for answer in parsed.answers]
        shared = tuple(
            answer if answer.prompt is prompt else replace(answer, prompt=prompt)
            for answer, prompt in zip(parsed.answers, known, strict=True)
        )
        return replace(parsed, answers=shared)

    def _first(self, answer: Answer) -> Prompt:
        """The prompt that has this id, as first seen."""
        prompt, where = self.seen.setdefault(answer.prompt_id, (answer.prompt, answer.where))
        if answer.prompt is not prompt and answer.prompt != prompt:
            raise DataError(
                f"{answer.where}: prompt_id {answer.prompt_id!r} stands for another prompt than at "
                f"{where}; expected one prompt for each prompt_id. Give the prompts ids of their "
                "own, or leave `prompt_id` out to have them derived from the prompts"
            )
        return prompt


_Text = tuple[str, str, tuple[int, ...] | None, Reference | None]
_Rated = tuple[tuple[str, float], ...]


class _Builder:
    """Rows and relations as they grow."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.answers: list[Answer] = []
        self.labels: list[float] = []
        self.pairs: list[Pair] = []
        self.ranked: list[RankedList] = []
        self.gold: dict[str, str] = {}
        self.gold_where: dict[str, str] = {}
        self.ratings: dict[str, dict[int, float]] = {}
        self.scales: dict[str, tuple[RatingScale, str]] = {}
        self.rows: dict[tuple[_Text, _Rated], int] = {}
        self.texts: set[_Text] = set()
        self.known: set[str] = set()

    def add(self, parsed: Parsed) -> None:
        """Take in one record."""
        self.counts.update(parsed.counts)
        last = parsed.answers[0].prompt.messages[-1]
        self.counts["prompts_prefilled"] += last.role == "assistant"
        if parsed.drop is not None:
            self.counts[f"dropped_{parsed.drop}"] += 1
            return
        self.known.update(parsed.ratings)
        for objective, scale in parsed.scales.items():
            self._check_scale(objective, scale, parsed.answers[0].where)
        rows = [self._row(parsed, i) for i in range(len(parsed.answers))]
        self.pairs += [Pair(rows[p.chosen], rows[p.rejected], p.margin) for p in parsed.pairs]
        for ranked in parsed.ranked:
            self._add_list(tuple(rows[r] for r in ranked.rows), ranked.ranks)
        if parsed.gold is not None:
            self._add_gold(parsed.answers[0], parsed.gold)

    def _row(self, parsed: Parsed, i: int) -> int:
        """The row of answer `i`: that of an equal one, unless both are samples."""
        answer = parsed.answers[i]
        # Labels are no part of the identity: a preference's answers have none, and rated or sampled
        # answers keep their own rows, so no label is lost. Ratings are: a row holds one of an objective.
        text = (answer.prompt_id, answer.response, answer.response_ids, answer.reference)
        rated = _ratings_of(parsed, i)
        if text in self.texts:
            if not parsed.are_samples and not parsed.is_labelled and (text, rated) in self.rows:
                self.counts["answers_shared"] += 1
                return self.rows[text, rated]
            self.counts["answers_repeated"] += 1
        row = len(self.answers)
        self.texts.add(text)
        self.rows.setdefault((text, rated), row)
        for objective, rating in rated:
            self.ratings.setdefault(objective, {})[row] = rating
        self._add_answer(parsed, i)
        return row

    def _add_answer(self, parsed: Parsed, i: int) -> None:
        """One more row."""
        answer, label = parsed.answers[i], parsed.labels[i]
        if answer.pruned:  # part of an answer is neither right nor wrong
            label = math.nan
        self.answers.append(answer)
        self.labels.append(label)
        is_missing = math.isnan(label) and not answer.pruned
        self.counts["labels_missing"] += parsed.is_labelled and is_missing
        self.counts["answers_cut"] += answer.finished is False and not answer.pruned
        self.counts["answers_pruned"] += answer.pruned

    def _check_scale(self, objective: str, scale: RatingScale, where: str) -> None:
        """Refuse a second range of an objective: its numbers would not mean the same."""
        known, first = self.scales.setdefault(objective, (scale, where))
        if known != scale:
            raise DataError(
                f"{where}: {objective!r} is rated from {scale.low:g} to {scale.high:g}, but at {first} "
                f"from {known.low:g} to {known.high:g}; expected one range an objective. Split the file"
            )

    def _add_list(self, rows: tuple[int, ...], ranks: tuple[float, ...]) -> None:
        """One ranked list; members that share a row are one member."""
        of_row: dict[int, set[float]] = {}
        for row, rank in zip(rows, ranks, strict=True):
            of_row.setdefault(row, set()).add(rank)
        clear = {row: min(found) for row, found in of_row.items() if len(found) == 1}
        self.counts["ranks_contradictory"] += sum(1 for row in rows if row not in clear)
        if len(clear) < 2:
            self.counts["lists_too_short"] += 1
            return
        self.counts["ties"] += len(set(clear.values())) == 1
        self.ranked.append(RankedList(tuple(clear), tuple(clear.values())))

    def _add_gold(self, answer: Answer, gold: str) -> None:
        known = self.gold.setdefault(answer.prompt_id, gold)
        first = self.gold_where.setdefault(answer.prompt_id, answer.where)
        if known != gold:
            raise DataError(
                f"{answer.where}: the reference answer {gold!r} of prompt_id {answer.prompt_id!r} is "
                f"{known!r} at {first}; expected one for each prompt. Mend one of the two"
            )

    def table(self) -> AnswerTable:
        """Everything so far."""
        directed = {(pair.chosen, pair.rejected) for pair in self.pairs}
        counts = self.counts
        counts["objectives_without_ratings"] = len(self.known - self.ratings.keys())
        counts["pairs"] = len(self.pairs)
        counts["ranked_lists"] = len(self.ranked)
        counts["pairs_contradictory"] = sum((b, a) in directed for a, b in directed)
        kept = {key: int(number) for key, number in counts.items() if number}
        always = {
            "records": counts["records"],
            "answers": len(self.answers),
            "prompts": len({answer.prompt_id for answer in self.answers}),
        }
        rated = sorted(self.ratings)
        return AnswerTable(
            answers=tuple(self.answers),
            labels=np.array(self.labels, dtype=np.float64),
            pairs=tuple(self.pairs),
            ranked=tuple(self.ranked),
            gold=self.gold,
            counts={**always, **{k: n for k, n in kept.items() if k not in always}},
            ratings={objective: self._column(objective) for objective in rated},
            scales={objective: self.scales[objective][0] for objective in rated},
        )

    def _column(self, objective: str) -> np.ndarray:
        """(n,) float64, NaN where a row has no rating."""
        column = np.full(len(self.answers), math.nan)
        given = self.ratings[objective]
        column[list(given)] = list(given.values())
        return column


def _ratings_of(parsed: Parsed, i: int) -> _Rated:
    """What answer `i` was rated on; part of an answer is rated on nothing."""
    if parsed.answers[i].pruned:
        return ()
    return tuple(
        (objective, values[i])
        for objective, values in sorted(parsed.ratings.items())
        if not math.isnan(values[i])
    )


# ------------------------------------------------------------------------------------ statistics


@dataclass(frozen=True)
class ObjectiveSummary:
    """What is rated on an objective.

    Attributes:
        n_rated: answers with a rating.
        n_missing: the others.
        mean: of the ratings, from 0 to 1.
        low: the lowest rating, from 0 to 1.
        high: the highest; the same as `low` where there is nothing to learn.
        scale: what raters could give, as LOW..HIGH.
    """

    n_rated: int
    n_missing: int
    mean: float
    low: float
    high: float
    scale: str


@dataclass(frozen=True)
class TableSummary:
    """What a table holds, for ``retrm data stats``.

    Attributes:
        n_prompts: distinct prompt_ids.
        n_answers: rows.
        n_pairs: explicit preferences.
        n_ranked: ranked lists.
        n_ties: ranked lists with equal ranks only.
        labels: rows by label ("1", "0", ...), and "missing"; more than twenty different labels are
            counted together as "numbers".
        n_mixed_prompts: prompts whose answers have different labels: those that can give pairs.
        n_repeated: rows equal to an earlier one.
        n_comparisons: preferences of any kind: pairs, strict pairs of lists, and pairs of answers to
            one prompt with different labels.
        longer_wins: share of these in which the better answer has more characters, equal lengths
            counting half: what a reward that only measures length reaches. NaN without comparisons.
        median_characters: of the answers.
        p99_characters: 99th percentile of the answers.
        counts: as read.
        objectives: what is rated, in the order of the table.
    """

    n_prompts: int
    n_answers: int
    n_pairs: int
    n_ranked: int
    n_ties: int
    labels: Mapping[str, int]
    n_mixed_prompts: int
    n_repeated: int
    n_comparisons: int
    longer_wins: float
    median_characters: float
    p99_characters: float
    counts: Mapping[str, int]
    objectives: Mapping[str, ObjectiveSummary]


def describe(table: AnswerTable) -> TableSummary:
    """The statistics of a table.

    Raises:
        DataError: the table has no rows.
    """
    if not len(table):
        raise DataError("got a table without answers; expected at least one. Nothing was kept")
    lengths = np.array([len(answer.response) for answer in table.answers], dtype=np.int64)
    sets = table.candidate_sets()
    wins, total = _length_wins(table, lengths)
    texts = {(a.prompt_id, a.response, a.response_ids) for a in table.answers}
    return TableSummary(
        n_prompts=len(sets),
        n_answers=len(table),
        n_pairs=len(table.pairs),
        n_ranked=len(table.ranked),
        n_ties=sum(len(set(ranked.ranks)) == 1 for ranked in table.ranked),
        labels=_labels_by_class(table.labels),
        n_mixed_prompts=sum(_is_mixed(table.labels[list(group.rows)]) for group in sets),
        n_repeated=len(table) - len(texts),
        n_comparisons=total,
        longer_wins=wins / total if total else math.nan,
        median_characters=float(np.median(lengths)),
        p99_characters=float(np.percentile(lengths, 99)),
        counts=table.counts,
        objectives=_objectives(table),
    )


def _objectives(table: AnswerTable) -> dict[str, ObjectiveSummary]:
    found = {}
    for objective, ratings in table.ratings.items():
        known = ratings[~np.isnan(ratings)]
        # An objective may have lost its ratings where rows were taken from a table.
        mean, low, high = (
            (float(known.mean()), float(known.min()), float(known.max()))
            if len(known)
            else (math.nan, math.nan, math.nan)
        )
        found[objective] = ObjectiveSummary(
            *(len(known), len(ratings) - len(known), mean, low, high),
            scale=str(table.scales[objective]),
        )
    return found


def _labels_by_class(labels: np.ndarray) -> dict[str, int]:
    known = labels[~np.isnan(labels)]
    values, numbers = np.unique(known, return_counts=True)
    missing = {"missing": int(len(labels) - len(known))} if len(known) < len(labels) else {}
    if len(values) > 20:
        return {"numbers": len(known), **missing}
    classes = zip(values[::-1], numbers[::-1], strict=True)
    return {**{f"{value:g}": int(n) for value, n in classes}, **missing}


def _is_mixed(labels: np.ndarray) -> bool:
    return len(np.unique(labels[~np.isnan(labels)])) > 1


def _length_wins(table: AnswerTable, lengths: np.ndarray) -> tuple[float, int]:
    """Comparisons won by the longer answer (equal lengths half), and all comparisons."""
    listed = [pair for ranked in table.ranked for pair in ranked.pairs()]
    wins, total = 0.0, 0
    for pair in (*table.pairs, *listed):
        gap = lengths[pair.chosen] - lengths[pair.rejected]
        wins += 0.5 * (np.sign(gap) + 1)
        total += 1
    for group in table.candidate_sets():
        rows = np.array(group.rows)
        won, n = _label_wins(table.labels[rows], lengths[rows])
        wins, total = wins + won, total + n
    return float(wins), total


def _label_wins(labels: np.ndarray, lengths: np.ndarray) -> tuple[float, int]:
    """The same over answers to one prompt, each better label against all that are worse.

    Ranks in the sorted lengths of the worse, so that a prompt with thousands of answers is cheap.
    """
    wins, total = 0.0, 0
    for value in np.unique(labels[~np.isnan(labels)])[1:]:
        better, worse = lengths[labels == value], np.sort(lengths[labels < value])
        below = np.searchsorted(worse, better, side="left")
        up_to = np.searchsorted(worse, better, side="right")
        wins += float(np.sum(below + up_to)) / 2
        total += len(better) * len(worse)
    return wins, total
