"""The items of a benchmark on disk beside their scores, so that texts can be shown later.

JSON Lines: one line an item with its messages and answers. Scores are joined by the item's id.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrm.data.read import Record, read_records
from retrm.errors import DataError
from retrm.evaluation.benchmarks.base import BenchmarkData, Item
from retrm.evaluation.benchmarks.source import field, list_field, text_field, texts_field
from retrm.files import write_json_lines
from retrm.records import Answer, Message, Prompt


def write_items(path: Path, data: BenchmarkData) -> None:
    """The file, as a whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    head = {
        "retrm_items": 1,
        "benchmark": data.name,
        "excluded": dict(data.excluded),
        "notes": list(data.notes),
    }
    write_json_lines(path, (head, *map(_line, data.items)))


def _line(item: Item) -> dict[str, Any]:
    prompts = {answer.prompt_id: answer.prompt for answer in item.answers}
    return {
        "item": item.id,
        "subset": item.subset,
        "cluster": item.cluster,
        "facts": dict(item.facts),
        "are_prefixes": item.are_prefixes,
        "prompts": {key: [m.as_dict() for m in p.messages] for key, p in prompts.items()},
        "prompt_ids": [answer.prompt_id for answer in item.answers],
        "responses": [answer.response for answer in item.answers],
    }


def read_items(path: Path) -> BenchmarkData:
    """A file that `write_items` wrote.

    Raises:
        DataError: it is no such file, or a line is not what it should be.
    """
    records = read_records(path)
    head = next(records, None)
    if head is None or head.fields.get("retrm_items") != 1:
        raise DataError(
            f"{path} is no file of items of version 1; expected items/*.jsonl that retrm eval wrote"
        )
    return BenchmarkData(
        name=text_field(head, "benchmark"),
        items=tuple(_item(record) for record in records),
        excluded=head.fields.get("excluded", {}),
        notes=tuple(head.fields.get("notes", ())),
    )


def _item(record: Record) -> Item:
    prompts = {key: _prompt(messages) for key, messages in field(record, "prompts").items()}
    ids = texts_field(record, "prompt_ids")
    responses = list_field(record, "responses")
    answers = tuple(
        Answer(prompts[key], response, key, where=record.where)
        for key, response in zip(ids, responses, strict=True)
    )
    return Item(
        id=text_field(record, "item"),
        subset=text_field(record, "subset"),
        cluster=text_field(record, "cluster"),
        answers=answers,
        facts=field(record, "facts"),
        are_prefixes=bool(record.fields.get("are_prefixes")),
        where=record.where,
    )


def _prompt(messages: list[Mapping[str, Any]]) -> Prompt:
    return Prompt(
        tuple(
            Message(
                m["role"],
                m["content"],
                tuple(m.get("tool_calls", ())),
                m.get("tool_call_id"),
                m.get("name"),
            )
            for m in messages
        )
    )
