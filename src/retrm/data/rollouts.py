"""Graded answers of any format as rollouts, one record a prompt: for best-of-N, votes, `retrm grade`.

>>> from retrm.data.load import build_table
>>> from retrm.data.read import records_of
>>> rows = [{"prompt": "2+2?", "response": r, "label": r == "4"} for r in ("4", "5")]
>>> next(rollouts_of(build_table(records_of(rows))))["correct"]
[True, False]
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from retrm.data.formats import ROLLOUT_COLUMNS
from retrm.data.ratings import OWN
from retrm.data.read import Record
from retrm.errors import DataError, LabelError
from retrm.records import AnswerTable, Prompt

LISTS = ("responses", "samples")


def with_text(records: Iterable[Record]) -> tuple[list[Record], int]:
    """Records of rollouts without the candidates that have no text, and the number of those.

    Nothing can judge an answer without a token. A record of nothing else is left out; records of other
    formats stay as they are.
    """
    found = [_with_text(record) for record in records]
    return [record for record, _ in found if record is not None], sum(n for _, n in found)


def _with_text(record: Record) -> tuple[Record | None, int]:
    column = next((name for name in LISTS if isinstance(record.fields.get(name), list)), None)
    if column is None:
        return record, 0
    texts = record.fields[column]
    ids = record.fields.get("token_ids")
    has_ids = [bool(i) for i in ids] if _is_parallel(ids, texts) else [False] * len(texts)
    kept = [
        i for i, text in enumerate(texts) if has_ids[i] or not isinstance(text, str) or text.strip()
    ]
    if len(kept) == len(texts):
        return record, 0
    if not kept:
        return None, len(texts)
    parallel = {column, "score", "outcomes", *ROLLOUT_COLUMNS}
    fields = {
        name: [value[i] for i in kept] if name in parallel and _is_parallel(value, texts) else value
        for name, value in record.fields.items()
    }
    if isinstance(fields.get(OWN), dict):
        fields[OWN] = {
            objective: [value[i] for i in kept] if _is_parallel(value, texts) else value
            for objective, value in fields[OWN].items()
        }
    return Record(fields, record.where), len(texts) - len(kept)


def _is_parallel(value: Any, texts: Sequence[Any]) -> bool:
    return isinstance(value, list) and len(value) == len(texts)


def rollouts_of(table: AnswerTable) -> Iterator[dict[str, Any]]:
    """One record a prompt, its candidates in the order of the table.

    Raises:
        DataError: the table holds preferences or ranked lists, which are no candidates.
        LabelError: labels other than right and wrong.
    """
    if table.pairs or table.ranked:
        raise DataError(
            "got preferences or ranked lists; expected answers with labels of their own. They are "
            "read as they stand: no conversion is needed"
        )
    known = table.labels[~np.isnan(table.labels)]
    if not np.isin(known, (0, 1)).all():
        raise LabelError(
            f"got the label {known[~np.isin(known, (0, 1))][0]:g}; expected 1 (right) and 0 (wrong) "
            "only. Say which metric or scorer is the label: --attribute NAME"
        )
    for group in table.candidate_sets():
        yield _rollout(table, group.prompt_id, list(group.rows))


def _rollout(table: AnswerTable, prompt_id: str, rows: list[int]) -> dict[str, Any]:
    answers = [table.answers[row] for row in rows]
    labels = [float(table.labels[row]) for row in rows]
    row: dict[str, Any] = {"prompt_id": prompt_id, **_prompt_fields(answers[0].prompt)}
    row["responses"] = [answer.response for answer in answers]
    if any(not math.isnan(label) for label in labels):
        row["correct"] = [None if math.isnan(label) else bool(label) for label in labels]
    if prompt_id in table.gold:
        row["answer"] = table.gold[prompt_id]
    rated = {objective: _or_null(values[rows]) for objective, values in table.ratings.items()}
    if any(value is not None for values in rated.values() for value in values):
        row[OWN] = rated
    columns: Mapping[str, list[Any]] = {
        "token_ids": [a.response_ids and list(a.response_ids) for a in answers],
        "finished": [a.finished for a in answers],
        "logprobs": [a.logprob for a in answers],
        "keys": [a.key for a in answers],
        "score": [a.score for a in answers],
        "pruned": [a.pruned or None for a in answers],
    }
    return {**row, **{k: v for k, v in columns.items() if any(x is not None for x in v)}}


def _or_null(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]


def _prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """`prompt` as a text where it is one turn of a user, else as messages; `tools` where it has any."""
    first = prompt.messages[0]
    is_text = (
        len(prompt.messages) == 1
        and first.role == "user"
        and first.as_dict().keys()
        == {
            "role",
            "content",
        }
    )
    fields: dict[str, Any] = {
        "prompt": first.content if is_text else [m.as_dict() for m in prompt.messages]
    }
    if prompt.tools:
        fields["tools"] = list(prompt.tools)
    return fields
