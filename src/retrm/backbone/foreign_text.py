r"""Text and token ids that somebody else rendered, as ids with one BOS and the answer's span.

Trainers send what their own code made of a conversation: a chat template's text with the BOS string
taken off (verl), decoded tokens whose prompt was cut on the left (OpenRLHF), a whole conversation with the
line break that a template writes behind the end of a turn. All of them must be scored as the same
messages are, or be refused.

    text = [BOS ...] prompt | answer [end of turn, white space, padding]
                            ^ border

The border is where the prompt that came along ends, or else behind the last opening of an assistant turn
that the template writes. Prompt and answer are then tokenised by the rules of `backbone.render`, so that a
text which the template wrote gives exactly the ids of `ChatRenderer.render`.

1. BOS. None: it is added where the tokenizer adds one by itself, or where the template begins with one
   (with a warning, for engines would not). One: it stays. Several: one stays, with a warning; refused when
   strict. No other special token is ever added to a text but the end of a turn (3). To ids nothing is
   added; a missing BOS is a warning.
2. Control strings count: a trainer's text holds control tokens as text.
3. End. What stands behind the end-of-turn token is dropped if it is white space, another end or padding.
   A text that ends without one is scored as it stands where the template writes ends (it was cut:
   unfinished, "eos_missing"); where the template writes none it gets the one of `render` ("eos_added").
4. Several spellings. A decoder may put a space behind control tokens, or lose the white space that a control
   token swallowed. If a text is no fixed point of encoding and decoding, but one without those spaces
   decodes to it, that one was encoded by the sender.

Source of the cases: the clients of verl 0.9.1, OpenRLHF 0.11.2 and TRL 1.16.
"""

import bisect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from retrm.backbone.base import Rendered
from retrm.errors import RenderError

MIN_OVERLAP = 32
"""Characters by which a text must begin with the end of its prompt, where no turn opens inside of them."""


@dataclass(frozen=True)
class TextFrame:
    """What a template and its tokenizer write around an answer.

    Attributes:
        prefix: ids that the tokenizer puts before any text by itself.
        bos: text of the beginning-of-sequence mark; "" where there is none.
        writes_bos: whether the template's text begins with it.
        openings: what stands right before an answer, in every spelling: the generation prompt, how a
            finished turn begins, and both as a decoder writes them; none is only white space.
        finished_opening: how a finished turn begins, where the prompt of an answer ends otherwise.
        written_glue: what the template puts between opening and answer in a finished turn.
        ends: tokens that end a turn, by their text.
        end_id: the one that the template writes.
        writes_end: whether it does, rather than leaving it to the tokenizer's EOS.
        tail: what it writes behind a finished answer.
        pads: padding token by its text.
        controls: texts of all control tokens.
        vocabulary_size: number of token ids.
        restores_text: whether decoding gives every text back as it was encoded.
    """

    prefix: tuple[int, ...]
    bos: str
    writes_bos: bool
    openings: tuple[str, ...]
    finished_opening: str
    written_glue: str
    ends: Mapping[str, int]
    end_id: int | None
    writes_end: bool
    tail: str
    pads: Mapping[str, int] = field(default_factory=dict)
    controls: frozenset[str] = frozenset()
    vocabulary_size: int = 0
    restores_text: bool = False

    @cached_property
    def control_and_space(self) -> re.Pattern[str]:
        """A control token's text with the space that a decoder puts behind it."""
        return re.compile(f"({_either(self.controls)}) ")

    @cached_property
    def end(self) -> re.Pattern[str]:
        """The text of a token that ends a turn."""
        return re.compile(f"({_either(self.ends)})")

    @cached_property
    def junk(self) -> re.Pattern[str]:
        """What may stand behind an answer's end without being part of it; nothing else does."""
        return re.compile(rf"(?:\s|{_either({*self.ends, *self.pads})})*\Z")

    @cached_property
    def beginnings(self) -> re.Pattern[str]:
        """All BOS in front of a text; a decoder may have put a space between two of them."""
        bos = re.escape(self.bos)
        return re.compile(f"{bos}(?: ?{bos})*" if bos else "(?!)")

    def last_end(self, text: str) -> re.Match[str] | None:
        """The first of the ends with only junk behind them; every character is looked at once."""
        names = [name for name in {*self.ends, *self.pads} if name]
        stop = len(text)
        while stop:
            junk = next((name for name in names if text.endswith(name, 0, stop)), "")
            if not junk and not text[stop - 1].isspace():
                break
            stop -= len(junk) or 1
        return self.end.search(text, stop)


def _either(texts: Collection[str]) -> str:
    """A pattern for any of `texts`, the longest first; for nothing where there are none."""
    names = sorted(texts, key=len, reverse=True)
    return "|".join(map(re.escape, names)) or r"(?!)"


class TextRenderer(Protocol):
    """A renderer that also takes text; `ChatRenderer` and the toy's are."""

    counts_end: bool

    @property
    def frame(self) -> TextFrame:
        """What stands around an answer."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of text in which control strings count; nothing is added."""
        ...

    def encode_alone(self, text: str) -> tuple[int, ...]:
        """The same for text that follows other text."""
        ...

    def encode_behind(
        self, prompt: str, prompt_ids: tuple[int, ...], answer: str
    ) -> tuple[int, ...]:
        """Ids of an answer behind a prompt and its ids, as `render` makes them."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids with special tokens."""
        ...


@dataclass(frozen=True)
class ReadText:
    """Ids and span of what a client rendered.

    Attributes:
        rendered: of any length. Where the span is not known, only the last token is in it.
        warnings: what was done, or is doubtful: "code: sentence".
        is_unfinished: whether the answer ends without an end of turn; None = the template writes none, so
            that nothing is known.
        span_is_known: whether the answer's beginning was found. If not, the score of a head that reads
            more than the last token would be wrong.
    """

    rendered: Rendered
    warnings: tuple[str, ...] = ()
    is_unfinished: bool | None = False
    span_is_known: bool = True


def read_text(
    renderer: TextRenderer,
    text: str,
    *,
    prompt_text: str | None = None,
    is_strict: bool = False,
    needs_span: bool = True,
) -> ReadText:
    """Ids and span of a conversation that a client rendered; any length.

    Args:
        renderer: of the backbone that will read it.
        text: prompt and answer, special tokens kept or the BOS taken off.
        prompt_text: the part that is the prompt, whole, even where `text` begins in its middle.
        is_strict: refuse what is doubtful (several BOS, text behind the end of the answer, a prompt that
            is not in the text, several places where the answer may begin).
        needs_span: refuse a text whose answer's beginning is not found. False is for heads that read the
            last token alone.

    Raises:
        RenderError: no text, no token to judge, a code point that is no character, a beginning that is
            not found, or doubtful under `is_strict`.
    """
    if not text.strip():
        raise RenderError(_EMPTY)
    frame = renderer.frame
    head, body, warnings = _one_bos(frame, text, is_strict)
    head_ids = _head_ids(renderer, head)
    body = _as_encoded(renderer, head, head_ids, body)
    found = _border(renderer, body, prompt_text, is_strict)
    warnings += found.warnings
    if found.at is None:
        if needs_span:
            raise RenderError(_NO_SPAN)
        return _last_token(renderer, head, body, warnings)
    prompt, said = body[: found.at], body[found.at :]
    cut = _cut_end(frame, said, found.is_written, is_strict)
    bare = renderer.encode(head.text + prompt) if head.text + prompt else ()
    prompt_ids = head.ids + bare
    if not prompt_ids:
        raise RenderError(
            "got a text without a token before the answer; expected the prompt in front"
        )
    said_ids, noted = _answer_ids(renderer, head.text + prompt, bare, cut.said, found.is_written)
    rendered = _rendered(renderer, prompt_ids, said_ids, cut.end)
    return ReadText(rendered, (*warnings, *cut.warnings, *noted), cut.is_unfinished)


def read_ids(
    renderer: TextRenderer,
    ids: Sequence[int],
    *,
    n_prompt_tokens: int | None = None,
    is_strict: bool = False,
    needs_span: bool = True,
) -> ReadText:
    """Ids and span of token ids that a client made; they are never tokenised again.

    Args:
        renderer: of the backbone that will read them.
        ids: prompt and answer.
        n_prompt_tokens: how many of them are the prompt; None = looked for as in `read_text`.
        is_strict: as in `read_text`.
        needs_span: as in `read_text`.

    Raises:
        RenderError: ids outside the vocabulary, padding on the left, a prompt of all or no tokens, a
            beginning that is not found, or doubtful under `is_strict`.
    """
    frame = renderer.frame
    _check_ids(frame, ids, n_prompt_tokens)
    kept, n_dropped, warnings = _one_bos_ids(renderer, tuple(ids), is_strict)
    start, looked = (
        _start_in(renderer, kept) if n_prompt_tokens is None else (n_prompt_tokens - n_dropped, ())
    )
    warnings += looked
    if start is not None and not 0 < start < len(kept):
        raise RenderError(
            f"got {n_prompt_tokens} prompt tokens of {len(ids)} ids ({n_dropped} of them BOS too "
            "many); expected at least one of the prompt and one of the answer"
        )
    if start is None and needs_span:
        raise RenderError(_NO_SPAN)
    stop, end, noted, is_unfinished = _cut_end_ids(renderer, kept, start or 0, is_strict)
    warnings += noted
    said, ends = kept[start or 0 : stop], () if end is None else (end,)
    if start is not None:
        rendered = _rendered(renderer, kept[:start], said, ends)
        return ReadText(rendered, warnings, is_unfinished)
    warnings += (_UNKNOWN,)
    return ReadText(_last_of(renderer, said, ends), warnings, is_unfinished, span_is_known=False)


def read_whole(
    renderer: TextRenderer, given: str | Sequence[int], *, is_strict: bool = False
) -> ReadText:
    """A whole conversation with one BOS, nothing dropped behind its end; any length.

    For classifiers, whose last token is that of `ChatRenderer.render_finished`: what a template writes
    behind the end of a turn included.

    Args:
        renderer: of the classifier.
        given: rendered text, or ids.
        is_strict: as in `read_text`.

    Returns:
        The span begins where the answer does if that is found, else at the last token.

    Raises:
        RenderError: as `read_text` and `read_ids`.
    """
    if not isinstance(given, str):
        _check_ids(renderer.frame, given, None)
        ids, _, warnings = _one_bos_ids(renderer, tuple(given), is_strict)
        start, _ = _start_in(renderer, ids)
        return _whole(renderer, ids, start, warnings)
    if not given.strip():
        raise RenderError(_EMPTY)
    head, body, warnings = _one_bos(renderer.frame, given, is_strict)
    body = _as_encoded(renderer, head, _head_ids(renderer, head), body)
    at, _ = _behind_opening(renderer, body, is_strict=False)
    start = None if at is None else len(_encode_prompt(renderer, head, body[:at]))
    return _whole(renderer, _encode_prompt(renderer, head, body), start, warnings)


def _whole(
    renderer: TextRenderer, ids: tuple[int, ...], start: int | None, warnings: tuple[str, ...]
) -> ReadText:
    if len(ids) < 2:
        raise RenderError("got a text of one token; expected a prompt and an answer")
    frame = renderer.frame
    at = min(start or len(ids) - 1, len(ids) - 1)
    has_end = any(i in frame.ends.values() for i in ids[at:])
    is_unfinished = not has_end if frame.writes_end and start is not None else None
    rendered = Rendered(ids, at, len(ids))
    return ReadText(rendered, warnings, is_unfinished, span_is_known=start is not None)


# Beginning

_EMPTY = "got an empty text; expected prompt and answer as the model reads them"
_TWO_BOS = "two_bos: got {n} BOS tokens at the front, expected one; the others were dropped"
_STRICT_BOS = (
    "got {n} BOS tokens ({bos!r}) at the front; expected one. The text was rendered with one and "
    "tokenised with another: send it without, or with add_special_tokens=False"
)
_UNKNOWN = (
    "span_unknown: the answer's beginning was not found; only the last token is judged, which is the "
    "score of heads that read no other"
)
_NO_SPAN = (
    "the answer's beginning was not found: no assistant turn of this model's chat template opens in what "
    "was sent. Expected messages, or the prompt's text (for ids the number of its tokens) beside it"
)


@dataclass(frozen=True)
class _Head:
    """What stands before the text: as text where the template writes it, else as ids."""

    text: str = ""
    ids: tuple[int, ...] = ()


def _one_bos(frame: TextFrame, text: str, is_strict: bool) -> tuple[_Head, str, tuple[str, ...]]:
    """Head, body without any BOS in front, warnings (rule 1)."""
    found = frame.beginnings.match(text)
    body, n = (text[found.end() :], found[0].count(frame.bos)) if found else (text, 0)
    if n > 1 and is_strict:
        raise RenderError(_STRICT_BOS.format(n=n, bos=frame.bos))
    warnings = (_TWO_BOS.format(n=n),) if n > 1 else ()
    if n and not (frame.prefix or frame.writes_bos):
        warnings += (f"bos_unusual: the text begins with {frame.bos!r}, as messages here do not",)
    if frame.prefix and not frame.writes_bos:
        return _Head(ids=frame.prefix), body, warnings
    if n == 0 and frame.writes_bos and not frame.prefix:
        warnings = (f"bos_added: the template begins with {frame.bos!r}, the text did not",)
    return _Head(text=frame.bos if n or frame.writes_bos else ""), body, warnings


def _head_ids(renderer: TextRenderer, head: _Head) -> tuple[int, ...]:
    return head.ids or (renderer.encode(head.text) if head.text else ())


def _encode_prompt(renderer: TextRenderer, head: _Head, text: str) -> tuple[int, ...]:
    return head.ids + (renderer.encode(head.text + text) if head.text + text else ())


def _as_encoded(renderer: TextRenderer, head: _Head, head_ids: tuple[int, ...], body: str) -> str:
    """The text that the sender encoded, where `body` is its decoding (rule 4)."""
    if renderer.frame.restores_text:
        return body
    shown = renderer.text(head_ids) if head_ids else ""
    if renderer.text(_encode_prompt(renderer, head, body)) == shown + body:
        return body
    closer = renderer.frame.control_and_space.sub(r"\1", body)
    for text in dict.fromkeys((closer, closer.removeprefix(" "))):
        if text and renderer.text(_encode_prompt(renderer, head, text)) == shown + body:
            return text
    return body


def _one_bos_ids(
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


# Border


@dataclass(frozen=True)
class _Border:
    """Where the answer begins; `is_written`: the template's own text told, not the client's prompt."""

    at: int | None
    is_written: bool = False
    warnings: tuple[str, ...] = ()


def _border(renderer: TextRenderer, body: str, prompt_text: str | None, is_strict: bool) -> _Border:
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
    at, noted = _behind_opening(renderer, body, is_strict)
    if at is None:
        return _Border(None, warnings=(*warnings, _UNKNOWN))
    return _Border(at, is_written=True, warnings=warnings + noted)


def _behind_prompt(renderer: TextRenderer, body: str, prompt_text: str) -> int | None:
    """Where the prompt ends in `body`, which may begin in the prompt's middle."""
    frame = renderer.frame
    head, plain, _ = _one_bos(frame, prompt_text, is_strict=False)
    head_ids = _head_ids(renderer, head)
    spellings = (plain,)
    if not frame.restores_text:
        shown = renderer.text(head_ids) if head_ids else ""
        decoded = renderer.text(_encode_prompt(renderer, head, plain)).removeprefix(shown)
        as_encoded = _as_encoded(renderer, head, head_ids, plain)
        spellings = tuple(dict.fromkeys((plain, as_encoded, decoded)))
    for spelling in spellings:
        if spelling and body.startswith(spelling):
            return len(spelling)
    # The first token that was kept may have been the rest of a character.
    broken = len(body) - len(body.lstrip("\ufffd"))
    cuts = [_overlap(body[broken:], spelling) for spelling in spellings]
    best = max(cuts)
    opens = any(opening in body[broken : broken + best] for opening in renderer.frame.openings)
    return broken + best if best >= MIN_OVERLAP or opens else None


def _overlap(text: str, prompt: str) -> int:
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


def _behind_opening(
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


def _several_turns(renderer: TextRenderer, body: str, at: int) -> _Border:
    """Behind the prompt, or behind the last assistant turn that opens later (a rollout with tools)."""
    controls = renderer.frame.controls
    firm = [o for o in renderer.frame.openings if any(control in o for control in controls)]
    later = max((body.rfind(o) + len(o) for o in firm if body.rfind(o) >= at), default=None)
    if later is None:
        return _Border(at)
    noted = (
        "several_turns: the text goes on with further turns behind the prompt; the last is judged"
    )
    return _Border(later, warnings=(noted,))


# Answer and end


@dataclass(frozen=True)
class _Cut:
    """An answer without its end and what stands behind it."""

    said: str
    end: tuple[int, ...]
    is_unfinished: bool | None
    warnings: tuple[str, ...] = ()


_MISSING = "eos_missing: the answer ends without its end-of-turn token and is scored as it stands"
_ADDED = "eos_added: the template writes no end-of-turn token; one was added, as for messages"
_BEHIND = "text_behind_end: the answer goes on behind an end-of-turn token; all of it is judged"
_STRICT_BEHIND = (
    "the answer goes on behind its end-of-turn token; expected one answer. Cut it behind the end, or "
    "send messages, where such strings are plain text"
)


def _cut_end(frame: TextFrame, said: str, is_written: bool, is_strict: bool) -> _Cut:
    """The answer without what the template writes behind it (rule 3)."""
    if not frame.ends:
        return _Cut(said.removesuffix(frame.tail) if is_written else said, (), None)
    first = frame.end.search(said)
    if first is None:
        if frame.writes_end:
            return _Cut(said, (), True, (_MISSING,))
        kept = said.removesuffix(frame.tail) if is_written and frame.tail else said
        end = () if frame.end_id is None else (frame.end_id,)
        return _Cut(kept, end, None, (_ADDED,) if end else ())
    if frame.junk.match(said, first.end()):
        return _Cut(said[: first.start()], (frame.ends[first[0]],), False)
    if is_strict:
        raise RenderError(_STRICT_BEHIND)
    last = frame.last_end(said)
    if last is None:
        return _Cut(said, (), True, (_BEHIND, _MISSING))
    return _Cut(said[: last.start()], (frame.ends[last[1]],), False, (_BEHIND,))


def _answer_ids(
    renderer: TextRenderer, prompt: str, prompt_ids: tuple[int, ...], said: str, is_written: bool
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids of the answer behind its prompt: those of `render` where a template wrote it."""
    if not said:
        return (), ()
    glue = renderer.frame.written_glue
    if is_written and said.startswith(glue):
        noted = ()
        if glue.strip():
            noted = (
                f"glue_dropped: {glue!r}, which the template puts before answers, is no answer",
            )
        return renderer.encode_behind(prompt, prompt_ids, said[len(glue) :]), noted
    together, n = renderer.encode(prompt + said), len(prompt_ids)
    if together[:n] == prompt_ids and _is_text_of(renderer, together, prompt_ids, said):
        return together[n:], ()
    return renderer.encode_alone(said), ()


def _is_text_of(
    renderer: TextRenderer, together: tuple[int, ...], prompt_ids: tuple[int, ...], said: str
) -> bool:
    if renderer.frame.restores_text:
        return True
    return renderer.text(together) == renderer.text(prompt_ids) + said


def _rendered(
    renderer: TextRenderer, prompt: tuple[int, ...], said: tuple[int, ...], end: tuple[int, ...]
) -> Rendered:
    start, n = len(prompt), len(prompt) + len(said)
    stop = n + len(end) if renderer.counts_end else n
    if start == stop:
        raise RenderError(
            "got an answer without a token to judge: it is empty and its end-of-turn token is missing "
            "or not counted. Leave out empty answers or count the end."
        )
    return Rendered(prompt + said + end, start, stop)


def _last_token(
    renderer: TextRenderer, head: _Head, body: str, warnings: tuple[str, ...]
) -> ReadText:
    """All of the text, of which the last token is judged."""
    frame = renderer.frame
    said, end, is_unfinished = body, (), True
    if frame.ends:
        tail = frame.last_end(body)
        if tail:
            said, end, is_unfinished = body[: tail.start()], (frame.ends[tail[1]],), False
    noted = (_MISSING,) if is_unfinished else ()
    rendered = _last_of(renderer, _encode_prompt(renderer, head, said), end)
    return ReadText(rendered, warnings + noted, is_unfinished, span_is_known=False)


def _last_of(renderer: TextRenderer, said: tuple[int, ...], end: tuple[int, ...]) -> Rendered:
    ids = said + end
    stop = len(ids) if renderer.counts_end else len(said)
    if stop < 2:
        raise RenderError("got a text of one token; expected a prompt and an answer")
    return Rendered(ids, stop - 1, stop)


# Ids


def _check_ids(frame: TextFrame, ids: Sequence[int], n_prompt_tokens: int | None) -> None:
    if len(ids) < 2:
        raise RenderError(f"got {len(ids)} token ids; expected those of a prompt and an answer")
    wrong = next((i for i in ids if not 0 <= i < frame.vocabulary_size), None)
    if wrong is not None:
        raise RenderError(
            f"got the token id {wrong}; the vocabulary has ids 0 to {frame.vocabulary_size - 1}. Were "
            "they made by another tokenizer? Send text or messages"
        )
    if n_prompt_tokens is not None and not 0 < n_prompt_tokens < len(ids):
        raise RenderError(
            f"got {n_prompt_tokens} prompt tokens of {len(ids)} ids; expected at least one of the "
            "prompt and one of the answer"
        )
    padding = {i for text, i in frame.pads.items() if text != frame.bos}
    if ids[0] in padding:
        raise RenderError(
            "got ids that begin with padding; expected one answer a list, without padding on the left"
        )


def _start_in(renderer: TextRenderer, ids: tuple[int, ...]) -> tuple[int | None, tuple[str, ...]]:
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


def _cut_end_ids(
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
    return len(ids), None, (*noted, _MISSING), True
