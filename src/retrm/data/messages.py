r"""Messages as files hold them: role lists, ShareGPT turns, content parts, transcripts, tools.

Nothing is rendered here. A file's conversation becomes `Message` tuples; the backbone's renderer
alone turns those into token ids. Unknown roles and content parts that are no text are refused by
name, never guessed. Keys of a message that no template reads (a language tag, say) are left out.

    >>> [m.role for m in split_transcript("\n\nHuman: Hi\n\nAssistant: Hello", "row 1", "chosen")]
    ['user', 'assistant']
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from retrm.errors import DataError, did_you_mean
from retrm.records import ROLES, Message, Prompt

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Who speaks in the form ``{"from": ..., "value": ...}``, and our role for it."""

_TURN = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}


def kind_of(value: Any) -> str:
    """What a value is, in the words of a data file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the truth value {value!r}"
    if isinstance(value, int | float):
        return f"the number {value!r}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def read_text(value: Any, where: str, column: str) -> str:
    """A text that can be encoded.

    Raises:
        DataError: no text, or half of a surrogate pair, which no tokenizer reads.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: `{column}` is {kind_of(value)}; expected text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: `{column}` holds half of a surrogate pair at character {error.start + 1}; "
                "expected Unicode text. Replace the broken escape (\\ud...) in the file"
            ) from None
    return value


def read_content(value: Any, where: str, column: str) -> str:
    """The text of a message: a string, or text parts joined; null (a bare tool call) is "".

    Raises:
        DataError: a part that is no text, with its type.
    """
    if value is None:
        return ""
    if not isinstance(value, list | tuple):
        return read_text(value, where, column)
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            named = f"of type {kind!r}" if kind else f"that is {kind_of(part)}"
            raise DataError(
                f"{where}: `{column}` has a content part {named}; expected only parts of type 'text'. "
                "Text backbones cannot read it: leave such records out"
            )
        texts.append(read_text(part.get("text"), where, f"{column}.text"))
    return "".join(texts)


def read_messages(value: Any, where: str, column: str) -> tuple[Message, ...]:
    """A list of ``{role, content}`` or ``{from, value}`` objects.

    Raises:
        DataError: no list, an empty list, or an unknown role.
    """
    if not isinstance(value, list | tuple) or not value:
        got = "an empty list" if isinstance(value, list | tuple) else kind_of(value)
        raise DataError(
            f"{where}: `{column}` is {got}; expected a list of messages such as "
            '[{"role": "user", "content": "..."}]'
        )
    return tuple(_read_message(turn, where, f"{column}[{i}]") for i, turn in enumerate(value))


def _read_message(turn: Any, where: str, column: str) -> Message:
    if not isinstance(turn, Mapping) or not ({"role", "from"} & turn.keys()):
        got = f"keys {', '.join(map(str, turn))}" if isinstance(turn, Mapping) else kind_of(turn)
        raise DataError(
            f"{where}: `{column}` has {got}; expected a message with `role` and `content` "
            "(or `from` and `value`)"
        )
    is_sharegpt = turn.get("role") is None
    role, content = (turn.get("from"), "value") if is_sharegpt else (turn["role"], "content")
    known: Mapping[str, str] = SHAREGPT_ROLES if is_sharegpt else {name: name for name in ROLES}
    if role not in known:
        raise DataError(
            f"{where}: `{column}` has the unknown role {role!r}; expected a known one. "
            f"{did_you_mean(str(role), known)}"
        )
    if content not in turn and not turn.get("tool_calls"):
        raise DataError(f"{where}: `{column}` has no `{content}`; expected the text of the message")
    return Message(
        role=known[role],
        content=read_content(turn.get(content), where, f"{column}.{content}"),
        tool_calls=_read_objects(turn.get("tool_calls"), where, f"{column}.tool_calls"),
        tool_call_id=_read_name(turn.get("tool_call_id"), where, f"{column}.tool_call_id"),
        name=_read_name(turn.get("name"), where, f"{column}.name"),
    )


def _read_name(value: Any, where: str, column: str) -> str | None:
    return None if value is None else read_text(value, where, column)


def _read_objects(value: Any, where: str, column: str) -> tuple[Mapping[str, Any], ...]:
    """A list of JSON objects; null is none."""
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(v, Mapping) for v in value):
        raise DataError(f"{where}: `{column}` is {kind_of(value)}; expected a list of objects")
    return tuple(value)


def read_tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """The `tools` column: a list of tool descriptions, or that list as a JSON string."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise DataError(
                f"{where}: `tools` is a text that is no JSON ({error}); expected a JSON list of "
                "tool descriptions"
            ) from error
    return _read_objects(value, where, "tools")


def read_prompt(fields: Mapping[str, Any], columns: Sequence[str], where: str) -> Prompt:
    """The prompt of a record: the first of `columns` that it has, with its tools.

    A text becomes one user turn; a list is read as messages.
    """
    column = next((name for name in columns if name in fields), columns[0])
    value = fields.get(column)
    if isinstance(value, str):
        return prompt_of((Message("user", read_text(value, where, column)),), fields, where, column)
    return prompt_of(read_messages(value, where, column), fields, where, column)


def prompt_of(
    messages: tuple[Message, ...], fields: Mapping[str, Any], where: str, column: str
) -> Prompt:
    """`messages` with the record's tools.

    Raises:
        DataError: an empty prompt, or options of a chat template, which are not carried.
    """
    if fields.get("chat_template_kwargs"):
        raise DataError(
            f"{where}: got `chat_template_kwargs`, which records do not carry; expected none. "
            "Set the options of the template when the backbone is loaded, and leave the column out"
        )
    if not any(m.content.strip() or m.tool_calls for m in messages):
        raise DataError(f"{where}: `{column}` is empty; expected what the answer replies to")
    return Prompt(messages, read_tools(fields.get("tools"), where))


def split_transcript(text: str, where: str, column: str) -> tuple[Message, ...]:
    r"""A transcript with "\\n\\nHuman:" and "\\n\\nAssistant:" before each turn, as in hh-rlhf.

    Raises:
        DataError: the text does not begin with such a marker.
    """
    pieces = _TURN.split(text)
    if len(pieces) == 1 or pieces[0].strip():
        raise DataError(
            f"{where}: `{column}` is a plain text without a prompt of its own, so where the answer "
            'begins is unknown; expected a `prompt` column, message lists, or "\\n\\nHuman:" and '
            '"\\n\\nAssistant:" before every turn. Characters that both sides share may belong to '
            "the answers, so they are not taken as the prompt"
        )
    return tuple(
        Message(_TRANSCRIPT_ROLES[who], said.strip())
        for who, said in zip(pieces[1::2], pieces[2::2], strict=True)
    )


def split_answer(
    messages: Sequence[Message], where: str, column: str
) -> tuple[tuple[Message, ...], str]:
    """What was said before, and the text of the last assistant turn: the one that is judged.

    Raises:
        DataError: the last turn is not the assistant's, or it calls a tool.
    """
    last = messages[-1]
    if last.role != "assistant":
        raise DataError(
            f"{where}: the last message of `{column}` is from {last.role!r}; expected the assistant, "
            "whose last turn is judged. Cut the conversation behind an assistant turn"
        )
    if last.tool_calls:
        raise DataError(
            f"{where}: the last message of `{column}` calls a tool; expected an answer in text"
        )
    return tuple(messages[:-1]), last.content
