"""Fields that several protocols share: texts, ids, messages, switches and lengths, with their refusals.

Everything that changes scores is honoured or refused by name; nothing is half understood. Texts become
items as they stand: the core, which knows the tokenizer, finds BOS and answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from retrm.data.messages import kind_of, read_messages, read_text, split_answer
from retrm.errors import DataError
from retrm.records import Answer, Prompt
from retrm.service.dialects.base import Json
from retrm.service.items import Activation, Item, Judged, LengthPolicy

WHERE = "request"

Switch = bool | None
"""True, false, or null; null and a missing field mean raw scores."""


def _check_input(value: Any) -> Any:
    """A text, a list of texts, a list of ids, or a list of lists of ids.

    Raises:
        DataError: anything else, lists of mixed types with the first entry that does not fit.
    """
    forms = "a text, a list of texts, a list of token ids, or a list of such lists"
    if isinstance(value, str):
        return read_text(value, WHERE, "it")
    if not isinstance(value, list):
        raise DataError(f"got {kind_of(value)}; expected {forms}")
    if not value:
        return value
    first = value[0]
    if isinstance(first, str):
        return [_one_text(v, i) for i, v in enumerate(value)]
    if _is_id(first):
        return _ids(value, "")
    if isinstance(first, list):
        return [_ids(v, f" {i}") for i, v in enumerate(value)]
    raise DataError(f"entry 0 is {kind_of(first)}; expected {forms}")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_text(value: Any, at: int) -> str:
    if not isinstance(value, str):
        raise DataError(f"entry {at} is {kind_of(value)}, entry 0 a text; expected texts only")
    return read_text(value, WHERE, f"entry {at}")


def _ids(value: Any, at: str) -> list[int]:
    if not isinstance(value, list):
        raise DataError(f"entry{at} is {kind_of(value)}; expected a list of token ids")
    wrong = next(((k, v) for k, v in enumerate(value) if not _is_id(v)), None)
    if wrong is not None:
        raise DataError(f"entry{at} has {kind_of(wrong[1])} at {wrong[0]}; expected token ids only")
    if not value:
        raise DataError(f"entry{at} is an empty list; expected token ids")
    return value


def _check_text_or_texts(value: Any) -> Any:
    if isinstance(value, str):
        return read_text(value, WHERE, "it")
    if not isinstance(value, list):
        raise DataError(f"got {kind_of(value)}; expected a text or a list of texts")
    wrong = next(((i, v) for i, v in enumerate(value) if not isinstance(v, str)), None)
    if wrong is not None:
        raise DataError(f"entry {wrong[0]} is {kind_of(wrong[1])}; expected texts only")
    return [read_text(text, WHERE, f"entry {i}") for i, text in enumerate(value)]


_TEXTS = {"type": "array", "items": {"type": "string"}}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_INPUT_SCHEMA = {"anyOf": [{"type": "string"}, _TEXTS, _IDS, {"type": "array", "items": _IDS}]}

Input = Annotated[Any, BeforeValidator(_check_input), WithJsonSchema(_INPUT_SCHEMA)]
"""str | [str] | [int] | [[int]]: rendered prompt and answer, one or several."""

Texts = Annotated[
    Any,
    BeforeValidator(_check_text_or_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS]}),
]
"""str | [str]."""


def has_several(value: Any) -> bool:
    """Whether an `Input` is a list of items rather than one."""
    return isinstance(value, list) and not (value and _is_id(value[0]))


def input_items(value: Any) -> tuple[Item, ...]:
    """Items of a checked `Input`."""
    return tuple(
        Item(text=one) if isinstance(one, str) else Item(token_ids=tuple(one))
        for one in (value if has_several(value) else [value])
    )


def answer_of(messages: Any, field: str, *, finished: bool | None = None) -> Answer:
    """A conversation whose last turn is the assistant's, as an answer.

    Raises:
        DataError: no conversation, or one that ends otherwise.
    """
    turns = read_messages(messages, WHERE, field)
    before, response = split_answer(turns, WHERE, field)
    if not before:
        raise DataError(f"{WHERE}: `{field}` holds an answer only; expected what it replies to")
    prompt = Prompt(before)
    return Answer(prompt, response, prompt.key, finished=finished, where=field)


def pair_items(queries: Sequence[str], answers: Sequence[str]) -> tuple[Item, ...]:
    """Prompt and answer as our template renders them; one prompt object for each prompt."""
    prompts: dict[str, Prompt] = {text: Prompt.of(text) for text in queries}
    return tuple(
        Item(answer=Answer(prompts[q], a, prompts[q].key))
        for q, a in zip(queries, answers, strict=True)
    )


def broadcast(
    queries: str | list[str], answers: str | list[str], names: tuple[str, str]
) -> tuple[list[str], list[str]]:
    """One query for all answers, or one for each.

    Raises:
        DataError: lists of different lengths.
    """
    left = [queries] if isinstance(queries, str) else queries
    right = [answers] if isinstance(answers, str) else answers
    if len(left) == 1:
        left = left * len(right)
    if len(left) != len(right):
        raise DataError(
            f"{WHERE}: `{names[0]}` has {len(left)} entries, `{names[1]}` {len(right)}; expected one "
            f"of `{names[0]}` for all, or as many of both"
        )
    return left, right


def activation_of(switches: Mapping[str, Switch]) -> Activation:
    """One switch by several names: true is the sigmoid; null, false and nothing are raw.

    Raises:
        DataError: two of them say different things.
    """
    said = {name: value for name, value in switches.items() if value is not None}
    if len(set(said.values())) > 1:
        texts = ", ".join(f"`{name}` {str(value).lower()}" for name, value in said.items())
        raise DataError(f"{WHERE}: got {texts}; these are one switch here. Expected one of them")
    return "sigmoid" if any(said.values()) else "none"


@dataclass(frozen=True)
class Refused:
    """A field that would change scores in a way that is not possible here.

    Attributes:
        field: its name.
        value: as it came; null, "", 0, false and {} are no request.
        why: what to do instead.
    """

    field: str
    value: Any
    why: str


def refuse(*fields: Refused) -> None:
    """Refuse the first field that asks for something.

    Raises:
        DataError: naming it.
    """
    for one in fields:
        if one.value:
            raise DataError(f"{WHERE}: got `{one.field}`; {one.why}")


def refuse_normalize(extra: Mapping[str, Any] | None) -> None:
    """The removed switch of vLLM is an error there and here.

    Raises:
        DataError: it was sent, whatever its value.
    """
    if "normalize" in (extra or {}):
        raise DataError(
            f"{WHERE}: got `normalize`, which vLLM has removed; expected `use_activation` true or false"
        )


def length_policy_of(
    truncate_prompt_tokens: int | None, truncation_side: str | None
) -> tuple[LengthPolicy, tuple[str, ...]]:
    """vLLM's truncation as a length policy, and warnings.

    Raises:
        DataError: a number of tokens, which would cut answers that fit; or an unknown side.
    """
    if truncation_side not in (None, "left", "right"):
        raise DataError(
            f"{WHERE}: `truncation_side` is {truncation_side!r}; expected left or right"
        )
    if truncate_prompt_tokens is None:
        return "error", ()
    if truncate_prompt_tokens != -1:
        raise DataError(
            f"{WHERE}: `truncate_prompt_tokens` is {truncate_prompt_tokens}; expected -1 (cut what is "
            "beyond the model's context) or null (such answers are an error). Cutting answers that fit "
            "would change their scores"
        )
    if truncation_side is None:
        noted = "`truncation_side` was not sent: the oldest tokens of the prompt are dropped (left)"
        return "truncate_prompt", (noted,)
    return ("truncate_prompt" if truncation_side == "left" else "truncate_response"), ()


def score_of(judged: Judged) -> float:
    """The score of an item that no policy leaves out."""
    assert judged.score is not None, "only the native protocol lets items be left out"
    return judged.score


def usage_of(judged: Sequence[Judged]) -> dict[str, Json]:
    """Token counts in the shape of OpenAI's."""
    n = sum(one.n_tokens for one in judged)
    return {
        "prompt_tokens": n,
        "total_tokens": n,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


def warnings_of(warnings: Sequence[str], judged: Sequence[Judged]) -> list[str]:
    """Warnings of a call and of its items, which are named by their place."""
    return [
        *warnings,
        *(f"item {i}: {text}" for i, one in enumerate(judged) for text in one.warnings),
        *(
            f"item {i}: truncated: {one.truncation.dropped} tokens of the {one.truncation.side} were "
            "dropped to fit the context"
            for i, one in enumerate(judged)
            if one.truncation is not None
        ),
    ]
