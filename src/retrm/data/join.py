"""Several tables as one: ratings of one file, preferences of another, and each answer read once.

An objective that more than one table rates is renamed to ``TABLE/OBJECTIVE`` in each, since two sets seldom
mean the same by one word (Wang et al., arXiv 2406.12845, keep them apart for that reason). Computed
objectives mean the same everywhere: add them to the table that comes out.

Equal answers to one prompt in two tables share a row, unless their labels differ. Rows of one table are
never joined with each other.
"""

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from retrm.errors import DataError
from retrm.records import Answer, AnswerTable, Pair, Prompt, RankedList, RatingScale


def join_tables(tables: Mapping[str, AnswerTable]) -> AnswerTable:
    """All rows and relations of `tables`, in their order.

    Args:
        tables: by name; the names go before objectives that several of them rate.

    Returns:
        A table whose counts are the sums, with `answers_shared` for the rows that were saved.

    Raises:
        DataError: no tables, a prompt_id that stands for two prompts, or two reference answers.
    """
    if not tables:
        raise DataError("got no tables; expected at least one")
    joined = _Joined(_shared_objectives(tables))
    for name, table in tables.items():
        joined.add(name, table)
    return joined.table()


def _shared_objectives(tables: Mapping[str, AnswerTable]) -> frozenset[str]:
    rated = Counter(objective for table in tables.values() for objective in table.ratings)
    return frozenset(objective for objective, n in rated.items() if n > 1)


_Identity = tuple[object, ...]


def _identity(answer: Answer) -> _Identity:
    """All that an answer is; where it was read is no part of it, and the prompt_id stands for the prompt."""
    return (
        *(answer.prompt_id, answer.response, answer.response_ids, answer.finished),
        *(answer.key, answer.logprob, answer.score, answer.pruned, answer.reference),
    )


def _agree(label: float, other: float) -> bool:
    return math.isnan(label) or math.isnan(other) or label == other


class _Joined:
    """Rows and relations as they grow."""

    def __init__(self, shared: frozenset[str]) -> None:
        self.shared = shared
        self.answers: list[Answer] = []
        self.labels: list[float] = []
        self.ratings: dict[str, dict[int, float]] = {}
        self.scales: dict[str, RatingScale] = {}
        self.pairs: list[Pair] = []
        self.ranked: list[RankedList] = []
        self.gold: dict[str, str] = {}
        self.prompts: dict[str, Prompt] = {}
        self.rows: dict[_Identity, list[int]] = {}
        self.counts: Counter[str] = Counter()

    def add(self, name: str, table: AnswerTable) -> None:
        """Take in one table."""
        names = {o: f"{name}/{o}" if o in self.shared else o for o in table.ratings}
        for objective, renamed in names.items():
            self.ratings[renamed] = {}
            self.scales[renamed] = table.scales[objective]
        free = {identity: list(rows) for identity, rows in self.rows.items()}
        rows = [self._row(table, i, names, free) for i in range(len(table))]
        self.pairs += [Pair(rows[p.chosen], rows[p.rejected], p.margin) for p in table.pairs]
        self.ranked += [RankedList(tuple(rows[r] for r in x.rows), x.ranks) for x in table.ranked]
        for prompt_id, gold in table.gold.items():
            known = self.gold.setdefault(prompt_id, gold)
            if known != gold:
                raise DataError(
                    f"{name}: the reference answer of prompt_id {prompt_id!r} is {gold!r}, but {known!r} "
                    "in a table before it; expected one for each prompt. Mend one of the two"
                )
        self.counts.update(table.counts)

    def _row(
        self,
        table: AnswerTable,
        i: int,
        names: Mapping[str, str],
        free: Mapping[_Identity, list[int]],
    ) -> int:
        answer, label = table.answers[i], float(table.labels[i])
        self._check_prompt(answer)
        identity = _identity(answer)
        open_rows = free.get(identity, [])
        row = next((r for r in open_rows if _agree(label, self.labels[r])), None)
        if row is None:
            row = len(self.answers)
            self.answers.append(answer)
            self.labels.append(label)
            self.rows.setdefault(identity, []).append(row)
        else:
            # Two rows of this table are two answers, so none of them takes a row twice.
            open_rows.remove(row)
            self.counts["answers_shared"] += 1
            self.labels[row] = self.labels[row] if math.isnan(label) else label
        for objective, renamed in names.items():
            rating = float(table.ratings[objective][i])
            if not math.isnan(rating):
                self.ratings[renamed][row] = rating
        return row

    def _check_prompt(self, answer: Answer) -> None:
        known = self.prompts.setdefault(answer.prompt_id, answer.prompt)
        if known is not answer.prompt and known != answer.prompt:
            raise DataError(
                f"{answer.where}: prompt_id {answer.prompt_id!r} stands for another prompt than in a "
                "table before it; expected one prompt for each prompt_id. Leave `prompt_id` out of the "
                "files to have them derived from the prompts"
            )

    def table(self) -> AnswerTable:
        """Everything so far."""
        n = len(self.answers)
        ratings = {}
        for objective, given in self.ratings.items():
            ratings[objective] = np.full(n, np.nan)
            ratings[objective][list(given)] = list(given.values())
        self.counts["answers"] = n
        self.counts["prompts"] = len(self.prompts)
        return AnswerTable(
            answers=tuple(self.answers),
            labels=np.array(self.labels, dtype=np.float64),
            pairs=tuple(self.pairs),
            ranked=tuple(self.ranked),
            gold=self.gold,
            counts=dict(self.counts),
            ratings=ratings,
            scales=self.scales,
        )
