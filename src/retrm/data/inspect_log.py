"""A sample of an Inspect log as one candidate: prompt, last assistant turn, score as label.

The epochs of a sample are candidates of one prompt, which is what stood before the first turn that the
model itself made: later turns (tool calls, second tries) differ from epoch to epoch and are left out,
counted. Reasoning parts are no text of an answer and are left out, counted. Values of Inspect's scorers:
"C" 1, "I" and "N" (no answer) 0, numbers as they are; "P" (partial) is refused.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retrm.data.messages import kind_of, prompt_of, read_messages, split_answer
from retrm.data.parsed import Options, Parsed
from retrm.data.read import Record
from retrm.data.values import read_answer, read_outcome
from retrm.errors import DataError, FormatError, LabelError, did_you_mean
from retrm.records import Answer


def parse_inspect(record: Record, options: Options) -> Parsed:
    """One sample of one epoch.

    Raises:
        FormatError: it is not told whose score is meant, or the one named has none.
        DataError, LabelError: the sample ended in an error, or a value is of another kind.
    """
    fields, where = record.fields, record.where
    if fields.get("error"):
        raise DataError(
            f"{where}: the sample ended in an error; expected an answer. Run inspect eval-retry, or "
            "leave the sample out"
        )
    turns, n_reasoning = _without_reasoning(fields["messages"])
    messages = read_messages(turns, where, "messages")
    _, text = split_answer(messages, where, "messages")
    first = _first_generated(turns)
    prompt = prompt_of(messages[:first], {}, where, "messages")
    score = _score_of(fields["scores"], options.attribute, where)
    answer = Answer(
        prompt,
        read_answer(text, where, "messages[-1]"),
        _sample_id(fields.get("id"), where),
        key=_key(score.get("answer"), text),
        where=where,
    )
    target = fields.get("target")
    return Parsed(
        "inspect",
        (answer,),
        (_label(score, where),),
        is_labelled=True,
        gold=target if isinstance(target, str) and target else None,
        are_samples=True,
        counts={
            name: n
            for name, n in {
                "reasoning_left_out": n_reasoning,
                "turns_left_out": len(messages) - 1 - first,
            }.items()
            if n
        },
    )


def _without_reasoning(turns: Any) -> tuple[Any, int]:
    """Turns without the parts that a model thought, and their number."""
    if not isinstance(turns, list):
        return turns, 0
    n, kept = 0, []
    for turn in turns:
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if isinstance(content, list):
            texts = [p for p in content if not _is_reasoning(p)]
            n += len(content) - len(texts)
            turn = {**turn, "content": texts}
        kept.append(turn)
    return kept, n


def _is_reasoning(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "reasoning"


def _first_generated(turns: Sequence[Mapping[str, Any]]) -> int:
    """Where the model's own turns begin; without a word on it, at the last turn."""
    for i, turn in enumerate(turns):
        if turn.get("role") == "assistant" and turn.get("source") == "generate":
            return i
    return len(turns) - 1


def _sample_id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{where}: `id` is {kind_of(value)}; expected the name of the sample")
    return str(value)


def _score_of(scores: Any, scorer: str | None, where: str) -> Mapping[str, Any]:
    """The score of the named scorer, or of the only one; empty where there is none."""
    if not scores:
        return {}
    if not isinstance(scores, Mapping):
        raise DataError(f"{where}: `scores` is {kind_of(scores)}; expected one score a scorer")
    if scorer is None and len(scores) > 1:
        raise FormatError(
            f"{where}: got scores of {', '.join(scores)}; expected one. Say which is the label: "
            f"--attribute {next(iter(scores))}"
        )
    name = next(iter(scores)) if scorer is None else scorer
    if name not in scores:
        raise FormatError(f"{where}: there is no scorer {name!r}. {did_you_mean(name, scores)}")
    if not isinstance(scores[name], Mapping):
        raise DataError(f"{where}: the score of {name!r} is no object; expected one with `value`")
    return {**scores[name], "scorer": name}


def _label(score: Mapping[str, Any], where: str) -> float:
    value = score.get("value")
    if value is None:
        return math.nan
    column = f"scores.{score['scorer']}.value"
    if value == "N":
        return 0.0
    if isinstance(value, Mapping | list) or value == "P":
        got = "'P', partly right" if value == "P" else "several values"
        raise LabelError(
            f"{where}: `{column}` is {got}; expected one of right, wrong or a number. Use another "
            "scorer: --attribute NAME"
        )
    return read_outcome(value, where, column)


def _key(answer: Any, text: str) -> str | None:
    """What the scorer took for the final answer, for votes; the whole text is none."""
    if not isinstance(answer, str) or not answer.strip():
        return None
    return None if answer.strip().casefold() == text.strip().casefold() else answer
