"""Questions to sample answers for: a prompt each, with whatever else the record carries."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrm.data.messages import read_prompt
from retrm.data.read import read_records
from retrm.data.values import read_prompt_id
from retrm.errors import DataError, FormatError, did_you_mean
from retrm.records import Prompt

COLUMNS = ("prompt", "problem", "question")


@dataclass(frozen=True)
class Problem:
    """One question.

    Attributes:
        prompt: what is asked.
        prompt_id: from the record, else the prompt's key.
        fields: the whole record; reference answer, grader and choices travel with it.
        where: for error messages.
    """

    prompt: Prompt
    prompt_id: str
    fields: Mapping[str, Any]
    where: str


def read_problems(source: str | Path, *, limit: int | None = None) -> list[Problem]:
    """All questions of a file or hub data set.

    Raises:
        FormatError: a record without a prompt column.
        DataError: malformed records, no record at all, or one prompt_id twice.
    """
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for record in read_records(source, limit=limit):
        if not any(name in record.fields for name in COLUMNS):
            names = ", ".join(map(repr, record.fields)) or "none"
            near = [did_you_mean(name, COLUMNS) for name in record.fields]
            hint = next((text for text in near if text.startswith("Did")), "")
            raise FormatError(
                f"{record.where}: got the columns {names}; expected one of {', '.join(COLUMNS)}. "
                f"{hint}".rstrip()
            )
        prompt = read_prompt(record.fields, COLUMNS, record.where)
        prompt_id = read_prompt_id(record.fields, prompt, record.where)
        if prompt_id in seen:
            raise DataError(
                f"{record.where}: the prompt_id {prompt_id!r} stands at {seen[prompt_id]} already; "
                "expected one record a question. Ask for more answers with -n instead"
            )
        seen[prompt_id] = record.where
        problems.append(Problem(prompt, prompt_id, record.fields, record.where))
    if not problems:
        raise DataError(f"{source} holds no records; expected one question a line")
    return problems
