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

from collections.abc import Sequence
from dataclasses import dataclass

from retrm.backbone.answer_border import UNKNOWN, behind_opening, border, start_in
from retrm.backbone.answer_end import MISSING, cut_end, cut_end_ids
from retrm.backbone.base import Rendered
from retrm.backbone.text_frame import TextFrame, TextRenderer
from retrm.backbone.text_head import (
    Head,
    as_encoded,
    encode_prompt,
    ids_of_head,
    one_bos,
    one_bos_ids,
)
from retrm.errors import RenderError

_EMPTY = "got an empty text; expected prompt and answer as the model reads them"
_NO_SPAN = (
    "the answer's beginning was not found: no assistant turn of this model's chat template opens in what "
    "was sent. Expected messages, or the prompt's text (for ids the number of its tokens) beside it"
)


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
    head, body, warnings = one_bos(frame, text, is_strict)
    head_ids = ids_of_head(renderer, head)
    body = as_encoded(renderer, head, head_ids, body)
    found = border(renderer, body, prompt_text, is_strict)
    warnings += found.warnings
    if found.at is None:
        if needs_span:
            raise RenderError(_NO_SPAN)
        return _last_token(renderer, head, body, warnings)
    prompt, said = body[: found.at], body[found.at :]
    cut = cut_end(frame, said, found.is_written, is_strict)
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
    kept, n_dropped, warnings = one_bos_ids(renderer, tuple(ids), is_strict)
    start, looked = (
        start_in(renderer, kept) if n_prompt_tokens is None else (n_prompt_tokens - n_dropped, ())
    )
    warnings += looked
    if start is not None and not 0 < start < len(kept):
        raise RenderError(
            f"got {n_prompt_tokens} prompt tokens of {len(ids)} ids ({n_dropped} of them BOS too "
            "many); expected at least one of the prompt and one of the answer"
        )
    if start is None and needs_span:
        raise RenderError(_NO_SPAN)
    stop, end, noted, is_unfinished = cut_end_ids(renderer, kept, start or 0, is_strict)
    warnings += noted
    said, ends = kept[start or 0 : stop], () if end is None else (end,)
    if start is not None:
        rendered = _rendered(renderer, kept[:start], said, ends)
        return ReadText(rendered, warnings, is_unfinished)
    warnings += (UNKNOWN,)
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
        ids, _, warnings = one_bos_ids(renderer, tuple(given), is_strict)
        start, _ = start_in(renderer, ids)
        return _whole(renderer, ids, start, warnings)
    if not given.strip():
        raise RenderError(_EMPTY)
    head, body, warnings = one_bos(renderer.frame, given, is_strict)
    body = as_encoded(renderer, head, ids_of_head(renderer, head), body)
    at, _ = behind_opening(renderer, body, is_strict=False)
    start = None if at is None else len(encode_prompt(renderer, head, body[:at]))
    return _whole(renderer, encode_prompt(renderer, head, body), start, warnings)


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
    renderer: TextRenderer, head: Head, body: str, warnings: tuple[str, ...]
) -> ReadText:
    """All of the text, of which the last token is judged."""
    frame = renderer.frame
    said, end, is_unfinished = body, (), True
    if frame.ends:
        tail = frame.last_end(body)
        if tail:
            said, end, is_unfinished = body[: tail.start()], (frame.ends[tail[1]],), False
    noted = (MISSING,) if is_unfinished else ()
    rendered = _last_of(renderer, encode_prompt(renderer, head, said), end)
    return ReadText(rendered, warnings + noted, is_unfinished, span_is_known=False)


def _last_of(renderer: TextRenderer, said: tuple[int, ...], end: tuple[int, ...]) -> Rendered:
    ids = said + end
    stop = len(ids) if renderer.counts_end else len(said)
    if stop < 2:
        raise RenderError("got a text of one token; expected a prompt and an answer")
    return Rendered(ids, stop - 1, stop)


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
