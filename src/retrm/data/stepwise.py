r"""Solutions with a label a step, as answers that end behind each step.

    answer i = steps 0..i joined by a blank line;   label i = whether step i is right

Whoever scores answers can then score steps, and what is trained on is what is scored. Records hold
`steps` (or `completions`) beside one of

    labels   right or wrong, one a step; null = not labelled
    label    index from 0 of the first wrong step, -1 = none: the layout of ProcessBench. What stands behind
             the first wrong step has no label there, and is left out.

    >>> beginnings(["Add.", "2."])
    ['Add.', 'Add.\n\n2.']
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrm.data.messages import kind_of, read_prompt, read_text
from retrm.data.read import Record, read_records
from retrm.data.values import read_label, read_list, read_prompt_id
from retrm.errors import DataError, FormatError, LabelError
from retrm.records import Answer, AnswerTable

SEPARATOR = "\n\n"
_PROMPT = ("prompt", "problem", "question")
_STEPS = ("steps", "completions")


def beginnings(steps: Sequence[str], separator: str = SEPARATOR) -> list[str]:
    """The texts that end behind each step, the last being the whole."""
    return [separator.join(steps[: i + 1]) for i in range(len(steps))]


def load_steps(source: str | Path, *, limit: int | None = None) -> AnswerTable:
    """Every labelled step of a file as an answer with its label, 1 right and 0 wrong.

    Counts: `records`, `answers`, `prompts`, `steps_unlabelled`, `steps_behind_the_first_wrong`,
    `steps_blank`.

    Args:
        source: a file or ``hub:owner/name``.
        limit: only the first so many records.

    Raises:
        FormatError: no column of steps, or no labels of them.
        LabelError: labels of another number or kind, or none at all.
        DataError: a step that is no text, or no record.
    """
    answers: list[Answer] = []
    labels: list[float] = []
    counts: Counter[str] = Counter()
    for record in read_records(source, limit=limit):
        counts["records"] += 1
        for answer, label in _answers(record, counts):
            answers.append(answer)
            labels.append(label)
    if not counts["records"]:
        raise DataError(f"{source} holds no record; expected solutions with a label a step")
    if not answers:
        raise LabelError(f"{source}: no step is labelled; expected right or wrong for every step")
    prompts = len({answer.prompt_id for answer in answers})
    found = {"records": counts.pop("records"), "answers": len(answers), "prompts": prompts}
    return AnswerTable(tuple(answers), np.array(labels), counts={**found, **+counts})


def _answers(record: Record, counts: Counter[str]) -> list[tuple[Answer, float]]:
    fields, where = record.fields, record.where
    column = next((name for name in _STEPS if name in fields), None)
    if column is None or not any(name in fields for name in _PROMPT):
        raise FormatError(
            f"{where}: got the columns {', '.join(map(repr, fields)) or 'none'}; expected a prompt, `steps` "
            "(or `completions`), and `labels` or `label`"
        )
    prompt = read_prompt(fields, _PROMPT, where)
    prompt_id = read_prompt_id(fields, prompt, where)
    steps = [
        read_text(_text(step), where, f"{column}[{i}]")
        for i, step in enumerate(read_list(fields[column], where, column))
    ]
    labels = _labels(fields, len(steps), where, counts)
    made = []
    for i, text in enumerate(beginnings(steps)):
        if i == len(labels):
            break
        if not steps[i].strip():
            counts["steps_blank"] += 1
        elif math.isnan(labels[i]):
            counts["steps_unlabelled"] += 1
        else:
            made.append((Answer(prompt, text, prompt_id, where=f"{where} step {i}"), labels[i]))
    return made


def _text(step: Any) -> Any:
    """A step as published: a text, or one message of an assistant."""
    return step.get("content") if isinstance(step, Mapping) else step


def _labels(
    fields: Mapping[str, Any], n_steps: int, where: str, counts: Counter[str]
) -> list[float]:
    """One a step; fewer where a first wrong step ends what is known."""
    if "labels" in fields:
        given = read_list(fields["labels"], where, "labels")
        if len(given) != n_steps:
            raise LabelError(
                f"{where}: got {len(given)} `labels` for {n_steps} steps; expected one each"
            )
        return [read_label(label, where, f"labels[{i}]") for i, label in enumerate(given)]
    if "label" not in fields:
        raise FormatError(f"{where}: got steps without `labels` or `label`; expected one of both")
    first = fields["label"]
    if isinstance(first, bool) or not isinstance(first, int) or not -1 <= first < n_steps:
        raise LabelError(
            f"{where}: `label` is {kind_of(first)} for {n_steps} steps; expected -1 (no wrong step) or the "
            f"index of the first wrong one, from 0 to {n_steps - 1}. One label for the whole solution is "
            "learnt with kind=correctness"
        )
    if first < 0:
        return [1.0] * n_steps
    counts["steps_behind_the_first_wrong"] += n_steps - first - 1
    return [1.0] * first + [0.0]
