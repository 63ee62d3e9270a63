"""What stands before a text that others rendered: one BOS; and the text that its sender encoded.

Rules 1 and 4 of `retrm.backbone.foreign_text`, for text and for ids.
"""

from dataclasses import dataclass

from retrm.backbone.text_frame import TextFrame, TextRenderer
from retrm.errors import RenderError

_TWO_BOS = "two_bos: got {n} BOS tokens at the front, expected one; the others were dropped"
_STRICT_BOS = (
    "got {n} BOS tokens ({bos!r}) at the front; expected one. The text was rendered with one and "
    "tokenised with another: send it without, or with add_special_tokens=False"
)


@dataclass(frozen=True)
class Head:
    """What stands before the text: as text where the template writes it, else as ids."""

    text: str = ""
    ids: tuple[int, ...] = ()


def one_bos(frame: TextFrame, text: str, is_strict: bool) -> tuple[Head, str, tuple[str, ...]]:
    """Head, body without any BOS in front, warnings (rule 1)."""
    found = frame.beginnings.match(text)
    body, n = (text[found.end() :], found[0].count(frame.bos)) if found else (text, 0)
    if n > 1 and is_strict:
        raise RenderError(_STRICT_BOS.format(n=n, bos=frame.bos))
    warnings = (_TWO_BOS.format(n=n),) if n > 1 else ()
    if n and not (frame.prefix or frame.writes_bos):
        warnings += (f"bos_unusual: the text begins with {frame.bos!r}, as messages here do not",)
    if frame.prefix and not frame.writes_bos:
        return Head(ids=frame.prefix), body, warnings
    if n == 0 and frame.writes_bos and not frame.prefix:
        warnings = (f"bos_added: the template begins with {frame.bos!r}, the text did not",)
    return Head(text=frame.bos if n or frame.writes_bos else ""), body, warnings


def ids_of_head(renderer: TextRenderer, head: Head) -> tuple[int, ...]:
    """Ids of the head alone."""
    return head.ids or (renderer.encode(head.text) if head.text else ())


def encode_prompt(renderer: TextRenderer, head: Head, text: str) -> tuple[int, ...]:
    """Ids of the head with the text behind it."""
    return head.ids + (renderer.encode(head.text + text) if head.text + text else ())


def as_encoded(renderer: TextRenderer, head: Head, head_ids: tuple[int, ...], body: str) -> str:
    """The text that the sender encoded, where `body` is its decoding (rule 4)."""
    if renderer.frame.restores_text:
        return body
    shown = renderer.text(head_ids) if head_ids else ""
    if renderer.text(encode_prompt(renderer, head, body)) == shown + body:
        return body
    closer = renderer.frame.control_and_space.sub(r"\1", body)
    for text in dict.fromkeys((closer, closer.removeprefix(" "))):
        if text and renderer.text(encode_prompt(renderer, head, text)) == shown + body:
            return text
    return body


def one_bos_ids(
    renderer: TextRenderer, ids: tuple[int, ...], is_strict: bool
) -> tuple[tuple[int, ...], int, tuple[str, ...]]:
    """The ids with at most one BOS, how many were dropped, warnings."""
    frame = renderer.frame
    mark = frame.prefix or (renderer.encode(frame.bos) if frame.bos else ())
    if not mark:
        return ids, 0, ()
    n, size = 0, len(mark)
    while ids[n * size : (n + 1) * size] == mark:
        n += 1
    if n > 1 and is_strict:
        raise RenderError(_STRICT_BOS.format(n=n, bos=frame.bos))
    if n > 1:
        return ids[(n - 1) * size :], (n - 1) * size, (_TWO_BOS.format(n=n),)
    if n == 0 and (frame.prefix or frame.writes_bos):
        return ids, 0, (f"bos_missing: the ids do not begin with {frame.bos!r}; nothing was added",)
    return ids, 0, ()
