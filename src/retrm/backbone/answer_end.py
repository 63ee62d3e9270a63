"""Where the answer ends in text and ids that others rendered.

Rule 3 of `retrm.backbone.foreign_text`: what stands behind the token that ends a turn is dropped if it is
white space, another end or padding.
"""

from dataclasses import dataclass

from retrm.backbone.text_frame import TextFrame, TextRenderer
from retrm.errors import RenderError

MISSING = "eos_missing: the answer ends without its end-of-turn token and is scored as it stands"
_ADDED = "eos_added: the template writes no end-of-turn token; one was added, as for messages"
_BEHIND = "text_behind_end: the answer goes on behind an end-of-turn token; all of it is judged"
_STRICT_BEHIND = (
    "the answer goes on behind its end-of-turn token; expected one answer. Cut it behind the end, or "
    "send messages, where such strings are plain text"
)


@dataclass(frozen=True)
class Cut:
    """An answer without its end and what stands behind it."""

    said: str
    end: tuple[int, ...]
    is_unfinished: bool | None
    warnings: tuple[str, ...] = ()


def cut_end(frame: TextFrame, said: str, is_written: bool, is_strict: bool) -> Cut:
    """The answer without what the template writes behind it (rule 3)."""
    if not frame.ends:
        return Cut(said.removesuffix(frame.tail) if is_written else said, (), None)
    first = frame.end.search(said)
    if first is None:
        if frame.writes_end:
            return Cut(said, (), True, (MISSING,))
        kept = said.removesuffix(frame.tail) if is_written and frame.tail else said
        end = () if frame.end_id is None else (frame.end_id,)
        return Cut(kept, end, None, (_ADDED,) if end else ())
    if frame.junk.match(said, first.end()):
        return Cut(said[: first.start()], (frame.ends[first[0]],), False)
    if is_strict:
        raise RenderError(_STRICT_BEHIND)
    last = frame.last_end(said)
    if last is None:
        return Cut(said, (), True, (_BEHIND, MISSING))
    return Cut(said[: last.start()], (frame.ends[last[1]],), False, (_BEHIND,))


def cut_end_ids(
    renderer: TextRenderer, ids: tuple[int, ...], start: int, is_strict: bool
) -> tuple[int, int | None, tuple[str, ...], bool | None]:
    """Position of the end token and the token itself; the answer's length and None without one."""
    frame = renderer.frame
    ends, pads = set(frame.ends.values()), set(frame.pads.values())
    junk, last = ends | pads, len(ids)
    while last > start and (
        ids[last - 1] in junk or not renderer.text(ids[last - 1 : last]).strip()
    ):
        last -= 1
    at = next((k for k in range(last, len(ids)) if ids[k] in ends), None)
    has_inner = start > 0 and any(i in ends for i in ids[start:last])
    if has_inner and is_strict:
        raise RenderError(_STRICT_BEHIND)
    noted = (_BEHIND,) if has_inner else ()
    if at is not None:
        return at, ids[at], noted, False
    if not frame.writes_end:
        return len(ids), None, noted, None
    return len(ids), None, (*noted, MISSING), True
