"""Pairs with a label, and traces: what judges are trained on.

A pair comes from any file that `retrm` reads as preferences. A trace is one judgement of a pair in the order
that it was shown in, with the label of that order:

    {"prompt": "...", "first": "...", "second": "...", "label": "first", "trace": "<think>..."}

`prompt` is a text or a list of messages. Positions are balanced by one running counter over the build order,
even = the chosen candidate is shown first (released code of RM-R1), so |n_first - n_second| <= 1.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from retrm.data.load import load_table
from retrm.data.messages import read_messages
from retrm.errors import DataError, FormatError, LabelError
from retrm.files import write_json_lines
from retrm.judges.template import JudgeTemplate
from retrm.records import Message, Prompt

Label = Literal["first", "second"]


@dataclass(frozen=True)
class LabelledPair:
    """Two candidates in the order in which they are shown, and which one is better.

    Attributes:
        prompt: what was asked.
        first: the candidate shown first.
        second: the other one.
        label: the better one.
        prompt_id: the grouping key of intervals.
        where: source for error messages.
    """

    prompt: tuple[Message, ...]
    first: str
    second: str
    label: Label
    prompt_id: str = ""
    where: str = ""

    def swapped(self) -> "LabelledPair":
        """The same pair in the other order."""
        label: Label = "second" if self.label == "first" else "first"
        return replace(self, first=self.second, second=self.first, label=label)

    def as_dict(self) -> dict[str, Any]:
        """A line of a file of pairs in their order."""
        return {
            "prompt": [message.as_dict() for message in self.prompt],
            "first": self.first,
            "second": self.second,
            "label": self.label,
            "prompt_id": self.prompt_id,
        }


@dataclass(frozen=True)
class Trace:
    """A judgement that ends with the right verdict.

    Attributes:
        pair: that it judges.
        text: all of it, without special tokens.
        attempts: samples until the verdict was right; None = a teacher was told the label, or unknown.
        source: who wrote it.
    """

    pair: LabelledPair
    text: str
    attempts: int | None = None
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """A line of a file of traces."""
        return {
            **self.pair.as_dict(),
            "trace": self.text,
            "attempts": self.attempts,
            "source": self.source,
        }


def load_pairs(source: str | Path, *, limit: int | None = None) -> list[LabelledPair]:
    """Pairs of a file, positions balanced; a file of pairs that have an order keeps it.

    Args:
        source: preferences in any format that retrm reads, or lines with first, second and label.
        limit: only the first so many records.

    Raises:
        DataError: empty or identical candidates, or no pair at all.
        FormatError: columns of no known format.
    """
    if (rows := _ordered_rows(source)) is not None:
        pairs = [_pair(row, where) for row, where in rows[:limit]]
    else:
        pairs = balanced(_chosen_first(source, limit))
    if not pairs:
        raise DataError(f"{source} holds no pair; expected chosen and rejected answers to a prompt")
    for pair in pairs:
        check_pair(pair)
    return pairs


def _chosen_first(source: str | Path, limit: int | None) -> list[LabelledPair]:
    table = load_table(source, limit=limit)
    made = []
    for pair in table.preferences():
        chosen, rejected = table.answers[pair.chosen], table.answers[pair.rejected]
        if chosen.prompt.tools:
            raise DataError(
                f"{chosen.where}: the prompt offers tools, which no judge template shows; leave such "
                "pairs out"
            )
        made.append(
            LabelledPair(
                chosen.prompt.messages,
                chosen.response,
                rejected.response,
                "first",
                chosen.prompt_id,
                chosen.where,
            )
        )
    return made


def balanced(chosen_first: Iterable[LabelledPair]) -> list[LabelledPair]:
    """Every second pair in the other order: |n_first - n_second| <= 1 over all of them.

    Args:
        chosen_first: pairs whose label is first.
    """
    return [pair if i % 2 == 0 else pair.swapped() for i, pair in enumerate(chosen_first)]


def check_pair(pair: LabelledPair) -> None:
    """Refuse what has no label.

    Raises:
        DataError: an empty candidate, or twice the same.
    """
    if not pair.first.strip() or not pair.second.strip():
        raise DataError(
            f"{pair.where}: a candidate is empty; expected two answers. Leave the pair out"
        )
    if pair.first == pair.second:
        raise DataError(
            f"{pair.where}: both candidates are the same text, so neither can be better. Leave the pair out"
        )


def load_traces(source: str | Path, template: JudgeTemplate) -> list[Trace]:
    """Traces of a file, every one read by the template before it is believed.

    Raises:
        DataError: none, or one whose own verdict is missing or is not its label.
        FormatError: not lines with prompt, first, second, label and trace.
    """
    rows = _ordered_rows(source)
    if rows is None:
        raise FormatError(
            f"{source} holds no traces; expected lines of JSON with prompt, first, second, label and trace"
        )
    made = []
    for row, where in rows:
        if not isinstance(row.get("trace"), str):
            raise FormatError(f"{where}: no trace; expected the text of a judgement under `trace`")
        pair = _pair(row, where)
        check_pair(pair)
        verdict = template.parse(row["trace"])
        if verdict.winner != pair.label:
            raise DataError(
                f"{where}: the trace says {verdict.winner or verdict.problem!r} and its label is "
                f"{pair.label!r} (template {template.name}); leave it out, or name the template that it "
                "was written for"
            )
        made.append(Trace(pair, row["trace"], row.get("attempts"), str(row.get("source", ""))))
    if not made:
        raise DataError(f"{source} holds no trace; expected one a line")
    return made


def save_rows(path: Path, rows: Sequence[LabelledPair | Trace]) -> None:
    """Write pairs or traces as lines of JSON, atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    write_json_lines(path, (row.as_dict() for row in rows))


def _ordered_rows(source: str | Path) -> list[tuple[Mapping[str, Any], str]] | None:
    """Lines with a place, where the first holds first, second and label; None = another format."""
    path = Path(source)
    if path.suffix != ".jsonl" or not path.is_file():
        return None
    rows = []
    for i, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise FormatError(f"{path}:{i}: no JSON ({error})") from error
        if not rows and not (isinstance(row, dict) and {"first", "second", "label"} <= row.keys()):
            return None
        rows.append((row, f"{path.name}:{i}"))
    return rows


def _pair(row: Mapping[str, Any], where: str) -> LabelledPair:
    texts = [row.get(name) for name in ("first", "second")]
    if not all(isinstance(text, str) for text in texts):
        raise FormatError(f"{where}: expected the texts `first` and `second`")
    if row.get("label") not in ("first", "second"):
        raise LabelError(
            f"{where}: got label={row.get('label')!r}; expected 'first' or 'second'. A tie teaches no judge"
        )
    given = row.get("prompt")
    prompt = (
        Prompt.of(given)
        if isinstance(given, str)
        else Prompt(read_messages(given, where, "prompt"))
    )
    known = row.get("prompt_id") or prompt.key
    return LabelledPair(prompt.messages, texts[0], texts[1], row["label"], str(known), where)  # type: ignore[arg-type]
