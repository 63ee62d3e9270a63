"""Where the answer begins in text and ids that others rendered.

The border is where the prompt that came along ends, or else behind the last opening of an assistant turn
that the template writes (`retrm.backbone.foreign_text`).

Source of `overlap`: Knuth, Morris and Pratt 1977.
"""

import bisect
from dataclasses import dataclass

from retrm.backbone.text_frame import TextRenderer
from retrm.backbone.text_head import as_encoded, encode_prompt, ids_of_head, one_bos
from retrm.errors import RenderError

MIN_OVERLAP = 32
"""Characters by which a text must begin with the end of its prompt, where no turn opens inside of them."""

UNKNOWN = (
    "span_unknown: the answer's beginning was not found; only the last token is judged, which is the "
    "score of heads that read no other"
)


@dataclass(frozen=True)
class Border:
    """Where the answer begins; `is_written`: the template's own text told, not the client's prompt."""

    at: int | None
    is_written: bool = False
    warnings: tuple[str, ...] = ()


def border(renderer: TextRenderer, body: str, prompt_text: str | None, is_strict: bool) -> Border:
    """Where the answer begins in a text, by its prompt or by the opening of its turn."""
    warnings: tuple[str, ...] = ()
    if prompt_text is not None and prompt_text.strip():
        at = _behind_prompt(renderer, body, prompt_text)
        if at is not None:
            return _several_turns(renderer, body, at)
        if is_strict:
            raise RenderError(
                "the text does not begin with its prompt, nor with the end of it; expected the text of "
                "prompt and answer. Were two requests mixed up?"
            )
        warnings = ("prompt_not_found: the text does not begin with the prompt that came along",)
    at, noted = behind_opening(renderer, body, is_strict)
    if at is None:
        return Border(None, warnings=(*warnings, UNKNOWN))
    return Border(at, is_written=True, warnings=warnings + noted)


def _behind_prompt(renderer: TextRenderer, body: str, prompt_text: str) -> int | None:
    """Where the prompt ends in `body`, which may begin in the prompt's middle."""
    frame = renderer.frame
    head, plain, _ = one_bos(frame, prompt_text, is_strict=False)
    head_ids = ids_of_head(renderer, head)
    spellings = (plain,)
    if not frame.restores_text:
        shown = renderer.text(head_ids) if head_ids else ""
        decoded = renderer.text(encode_prompt(renderer, head, plain)).removeprefix(shown)
        encoded = as_encoded(renderer, head, head_ids, plain)
        spellings = tuple(dict.fromkeys((plain, encoded, decoded)))
    for spelling in spellings:
        if spelling and body.startswith(spelling):
            return len(spelling)
    # The first token that was kept may have been the rest of a character.
    broken = len(body) - len(body.lstrip("\ufffd"))
    cuts = [overlap(body[broken:], spelling) for spelling in spellings]
    best = max(cuts)
    opens = any(opening in body[broken : broken + best] for opening in renderer.frame.openings)
    return broken + best if best >= MIN_OVERLAP or opens else None


def overlap(text: str, prompt: str) -> int:
    """Length of the longest beginning of `text` with which `prompt` ends (Knuth, Morris and Pratt)."""
    n = min(len(text), len(prompt))
    pattern, stream = text[:n], prompt[len(prompt) - n :]
    fails = [0] * n
    k = 0
    for i in range(1, n):
        while k and pattern[i] != pattern[k]:
            k = fails[k - 1]
        k += pattern[i] == pattern[k]
        fails[i] = k
    k = 0
    for letter in stream:
        while k and (k == n or letter != pattern[k]):
            k = fails[k - 1]
        k += letter == pattern[k]
    return k


def behind_opening(
    renderer: TextRenderer, body: str, is_strict: bool
) -> tuple[int | None, tuple[str, ...]]:
    """Where the last assistant turn of `body` opens."""
    frame = renderer.frame
    places = [(body.rfind(o) + len(o), len(o), o) for o in renderer.frame.openings if o in body]
    if not places:
        return None, ()
    at, _, opening = max(places)
    warnings: tuple[str, ...] = ()
    if opening == frame.finished_opening:
        warnings = (
            "prompt_differs: the template renders a prompt differently once an answer follows; the "
            "text is read as it stands, which messages would not be",
        )
    if not any(control in opening for control in frame.controls) and body.count(opening) > 1:
        if is_strict:
            raise RenderError(
                f"the text opens an assistant turn ({opening!r}) {body.count(opening)} times in words "
                "that an answer may hold, too; expected messages or the prompt's text beside it"
            )
        warnings += (
            f"span_doubtful: {opening!r} stands {body.count(opening)} times in the text; the answer "
            "is taken to begin behind the last",
        )
    return at, warnings


def _several_turns(renderer: TextRenderer, body: str, at: int) -> Border:
    """Behind the prompt, or behind the last assistant turn that opens later (a rollout with tools)."""
    controls = renderer.frame.controls
    firm = [o for o in renderer.frame.openings if any(control in o for control in controls)]
    later = max((body.rfind(o) + len(o) for o in firm if body.rfind(o) >= at), default=None)
    if later is None:
        return Border(at)
    noted = (
        "several_turns: the text goes on with further turns behind the prompt; the last is judged"
    )
    return Border(later, warnings=(noted,))


def start_in(renderer: TextRenderer, ids: tuple[int, ...]) -> tuple[int | None, tuple[str, ...]]:
    """Where the last assistant turn opens; None where it is not found."""
    best = 0
    for opening in renderer.frame.openings:
        mark = renderer.encode(opening)
        n = len(mark)
        at = next((k for k in range(len(ids) - n, 0, -1) if ids[k : k + n] == mark), None)
        best = max(best, 0 if at is None else at + n)
    if 0 < best < len(ids):
        return best, ()
    return _start_by_text(renderer, ids)


def _start_by_text(
    renderer: TextRenderer, ids: tuple[int, ...]
) -> tuple[int | None, tuple[str, ...]]:
    """The same where the opening's tokens are others behind other text."""
    text = renderer.text(ids)
    at = max((text.rfind(o) + len(o) for o in renderer.frame.openings if o in text), default=0)
    if not 0 < at < len(text):
        return None, ()
    start = bisect.bisect_left(range(len(ids)), at, key=lambda k: len(renderer.text(ids[:k])))
    if not 0 < start < len(ids):
        return None, ()
    if renderer.text(ids[:start]) == text[:at]:
        return start, ()
    noted = "span_crossed: a token belongs to the turn's opening and to the answer; it is judged"
    return max(start - 1, 1), (noted,)
