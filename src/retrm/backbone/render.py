"""The one place where messages become token ids, with the exact span of the answer to be judged.

Fitting, scoring and serving all call `ChatRenderer.render`; nothing else writes a chat format.

    ids = BOS | template(messages, generation prompt) | answer | end-of-turn token
                                                       ^start    ^stop (behind the end if counts_end)

Rules, version `RULES`; every one of them is part of `ChatRenderer.template_text`:

1. The prompt is the template's text WITH its generation prompt, tokenised once; it never depends on
   the answer, even where the template would render it differently once an answer follows.
2. BOS: what the template writes stands; if it writes none, the tokenizer's own default is put in
   front. Two in a row are refused.
3. Sampled `response_ids` are used as they are. Everything from the first end-of-turn token on is
   taken off if it is end or padding, and refused otherwise.
4. An answer text is tokenised together with the prompt text. The ids behind the prompt count if the
   prompt's ids are a prefix and they decode to the answer; otherwise a token crosses the border, or a
   control token has swallowed white space, which cannot happen when a model samples, and the answer is
   tokenised by itself as text that follows other text. White space that the template writes between
   its generation prompt and an answer (Mistral's space) belongs to the answer, unless the answer
   begins with white space of its own or the tokenizer adds that space by itself.
5. The end-of-turn token is the first control token the template writes behind an assistant turn, else
   the tokenizer's EOS. It is appended unless the answer is known to be cut or already ends in it.
6. Control strings inside messages, tools or answers are text: typing `<|im_end|>` ends no turn. Two
   things are not guarded: a control string that the template itself acts on (it is left to the
   template), and added tokens that the tokenizer does not mark as special (models write those
   themselves, `<think>` for example).
7. The date a template asks for is always 26 July 2024 (Llama 3's default): the same messages give the
   same ids tomorrow.
8. Without a template: `plain-v1`. System text, blank line, question, newline, answer. Longer
   conversations carry a label line for each turn, "User:", "Assistant:", "Tool:".

Source of the pitfalls: SWIFT strips the strings of one model family only and finds the answer by
searching text, so an empty answer or another template moves its span.
"""

import copy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jinja2
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from retrm.backbone.base import Rendered
from retrm.backbone.text_frame import TextFrame
from retrm.errors import BackboneError, OverlongError, RenderError, did_you_mean
from retrm.records import ROLES, Answer, Prompt

RULES = "span-v1"
PLAIN_NAME = "plain-v1"
PLAIN_TEMPLATE = """\
{%- if tools %}{{ raise_exception('tools need a chat template') }}{% endif %}
{%- set turns = messages | rejectattr('role', 'in', ['system', 'developer']) | list %}
{%- set asked = turns if add_generation_prompt else turns[:-1] %}
{%- set short = asked | length == 1 and asked[0].role == 'user' %}
{%- for message in messages %}
{%- if message.tool_calls %}{{ raise_exception('tool calls need a chat template') }}{% endif %}
{%- if not short %}{{ message.role | capitalize + ':\n' }}{% endif %}
{{- message.content }}
{%- if short and message.role == 'user' %}{{ '\n' }}
{%- elif not loop.last or add_generation_prompt %}{{ '\n\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and not short %}{{ 'Assistant:\n' }}{% endif %}"""

# Callables cannot be handed to a template, so the fixed clock is written in the template's language.
FIXED_CLOCK = (
    "{% macro strftime_now(f) %}{{ f | replace('%Y-%m-%d', '2024-07-26') | replace('%d', '26')"
    " | replace('%e', '26') | replace('%b', 'Jul') | replace('%B', 'July') | replace('%m', '07')"
    " | replace('%Y', '2024') | replace('%y', '24') | replace('%A', 'Friday') | replace('%a', 'Fri')"
    " | replace('%H', '00') | replace('%M', '00') | replace('%S', '00') }}{% endmacro %}\n"
)

# Unicode noncharacters: no text may contain them, so they can mark places in a text.
_OPEN, _CLOSE, _ALIAS, _ALIAS_END = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}]")
_RESERVED = re.compile(f"[{_OPEN}-{_ALIAS_END}]")
_BORDER = f"{_ALIAS}border{_ALIAS_END}"

_QUESTION, _REPLY = "retrmquestion", "retrmreply"
_TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)

OverlongPolicy = Literal["error", "truncate_left", "skip"]


def fit_to_context(
    rendered: Rendered, limit: int, policy: OverlongPolicy, *, n_bos: int = 1, where: str = ""
) -> Rendered | None:
    """`rendered` with at most `limit` tokens; None says that policy `skip` leaves it out.

    The answer is never shortened. The caller counts: the result is `rendered` itself where nothing
    had to be done.

    Args:
        rendered: ids and span.
        limit: context length in tokens, positive.
        policy: `error` raises; `truncate_left` drops the oldest prompt tokens behind the BOS;
            `skip` returns None.
        n_bos: ids at the front that stay. One suits nearly every model, with a BOS (it is kept) and
            without (the control token that opens the conversation is kept); see `ChatRenderer.n_bos`.
        where: source of the answer for the message.

    Raises:
        OverlongError: under `error`, and under `truncate_left` when the answer does not fit behind
            the BOS (or one prompt token where there is no BOS).
        RenderError: for an unknown policy.
    """
    if policy not in ("error", "truncate_left", "skip"):
        known = ("error", "truncate_left", "skip")
        raise RenderError(f"got the length policy {policy!r}. {did_you_mean(str(policy), known)}")
    n_over = len(rendered.ids) - limit
    if n_over <= 0:
        return rendered
    if policy == "skip":
        return None
    sizes = (
        f"{_at(where)}got {len(rendered.ids)} tokens ({rendered.start} of the prompt, "
        f"{len(rendered.ids) - rendered.start} of the answer); the context holds {limit}"
    )
    if policy == "error":
        raise OverlongError(
            f"{sizes}. Shorten the record, take a backbone with a longer context, or choose the "
            "length policy truncate_left (drops the oldest prompt tokens) or skip."
        )
    # One token has to stand before the answer: its state predicts the first judged token.
    if n_over > rendered.start - max(n_bos, 1):
        raise OverlongError(
            f"{sizes}, so the answer does not fit even without its prompt. The answer is never cut: "
            "choose the length policy skip or a backbone with a longer context."
        )
    ids = rendered.ids[:n_bos] + rendered.ids[n_bos + n_over :]
    return Rendered(ids, rendered.start - n_over, rendered.stop - n_over)


class _Encoder:
    """Text to ids, where control strings that were quoted stay plain text.

    A quoted control string is wrapped in two noncharacters, so that a template can be run over it.
    Texts that hold any are encoded by a copy of the tokenizer that treats all its control strings as
    text and knows each control token by an alias: for a text without quotes both give the same ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.controls = {
            token.content: token
            for token in tokenizer.added_tokens_decoder.values()
            if token.special and token.content
        }
        for content in tokenizer.all_special_tokens:
            self.controls.setdefault(content, AddedToken(content, special=True, normalized=False))

    @cached_property
    def pattern(self) -> re.Pattern[str] | None:
        """Any control string, the longest first; None where there are none."""
        if not self.controls:
            return None
        names = sorted(self.controls, key=len, reverse=True)
        # The look-ahead keeps the search fast: vocabularies hold thousands of control strings.
        firsts = "".join(sorted({re.escape(name[0]) for name in names}))
        return re.compile(f"(?=[{firsts}])(?:{'|'.join(map(re.escape, names))})")

    def found(self, value: Any) -> set[str]:
        """Control strings that occur in any string inside `value`."""
        found: set[str] = set()

        def look(text: str) -> str:
            found.update(self.pattern.findall(text) if self.pattern else ())
            return text

        _map_strings(value, look)
        return found

    def quote(self, value: Any, which: set[str]) -> Any:
        """`value` with the control strings `which` quoted in every string inside."""

        def wrap(match: re.Match[str]) -> str:
            return f"{_OPEN}{match[0]}{_CLOSE}" if match[0] in which else match[0]

        if not which or self.pattern is None:
            return value
        pattern = self.pattern
        return _map_strings(value, lambda text: pattern.sub(wrap, text))

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of `text`; control strings count unless they are quoted. Nothing is added."""
        if not _MARKS.search(text):
            got = self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=False, verbose=False
            )
            return tuple(got["input_ids"])
        return self._encode_aliased(self._with_aliases(text))

    def encode_alone(self, text: str) -> tuple[int, ...]:
        """Ids of `text` as it would follow other text, no token reaching across the border."""
        return self._encode_aliased(_BORDER + self._with_aliases(text))[1:]

    def _with_aliases(self, text: str) -> str:
        pattern = self.pattern.pattern if self.pattern else r"(?!)"
        names = list(self.controls)

        def name(match: re.Match[str]) -> str:
            if match["quoted"] is not None:
                return match["quoted"]
            return f"{_ALIAS}{names.index(match[0])}{_ALIAS_END}"

        either = re.compile(f"{_OPEN}(?P<quoted>{pattern}){_CLOSE}|{pattern}")
        return _MARKS.sub("", either.sub(name, text))

    def _encode_aliased(self, text: str) -> tuple[int, ...]:
        backend, ids_of_aliases = self._quoting
        ids = backend.encode(text, add_special_tokens=False).ids
        return tuple(ids_of_aliases.get(i, i) for i in ids)

    @cached_property
    def _quoting(self) -> tuple[Tokenizer, dict[int, int]]:
        backend = copy.deepcopy(self.tokenizer.backend_tokenizer)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        aliases = [f"{_ALIAS}{i}{_ALIAS_END}" for i in range(len(self.controls))]
        tokens = [_alias_of(a, t) for a, t in zip(aliases, self.controls.values(), strict=True)]
        backend.add_tokens([*tokens, AddedToken(_BORDER, normalized=False, special=False)])
        originals = self.tokenizer.convert_tokens_to_ids(list(self.controls))
        alias_ids = [backend.token_to_id(alias) for alias in aliases]
        return backend, dict(zip(alias_ids, originals, strict=True))


@dataclass(frozen=True)
class _RenderedPrompt:
    """Template text (with quotes), its ids, and how many BOS ids stand before them."""

    text: str
    bare_ids: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Turn:
    """What a template writes around an assistant turn."""

    glue: str
    end: int | None
    notes: tuple[str, ...]


class ChatRenderer:
    """Messages to token ids and answer span; implements `retrm.backbone.base.Renderer`.

    Attributes:
        tokenizer: a fast tokenizer of transformers; never changed.
        counts_end: whether the end-of-turn token is judged. The ids hold it either way.
        context_length: tokens that the backbone takes; None = no check.
        overlong: what `render` does with more: `error`, or `truncate_left` (see `fit_to_context`).
        template_options: variables the template reads, `{"enable_thinking": False}` for example.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        counts_end: bool = True,
        context_length: int | None = None,
        overlong: Literal["error", "truncate_left"] = "error",
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise BackboneError(
                f"got a {type(tokenizer).__name__}; expected a fast tokenizer (tokenizer.json). "
                "Load it with AutoTokenizer and use_fast=True."
            )
        if overlong not in ("error", "truncate_left"):
            raise RenderError(
                f"got overlong={overlong!r}; a renderer must return ids, so expected error or "
                "truncate_left. To skip long answers use render_whole with fit_to_context."
            )
        self.tokenizer = tokenizer
        self.counts_end = counts_end
        self.context_length = context_length
        self.overlong = overlong
        self.template_options = dict(template_options or {})
        self._encoder = _Encoder(tokenizer)
        self._last: tuple[Prompt, _RenderedPrompt] | None = None

    def render(self, answer: Answer) -> Rendered:
        """Token ids of prompt and answer with the answer's span, within the context length.

        Raises:
            RenderError: the template refuses or loses something, or there is no judged token.
            OverlongError: more tokens than the context holds, see `overlong`.
        """
        whole = self.render_whole(answer)
        if self.context_length is None:
            return whole
        fitted = fit_to_context(
            whole, self.context_length, self.overlong, n_bos=self.n_bos, where=answer.where
        )
        assert fitted is not None
        return fitted

    def render_whole(self, answer: Answer) -> Rendered:
        """`render` without the check of the length; meant for `fit_to_context`.

        Raises:
            RenderError: as `render`.
        """
        prompt = self._prompt(answer.prompt, answer.where)
        if answer.response_ids is None:
            body, end = self._tokenised(prompt, answer.response, answer.where), ()
        else:
            body, end = self._sampled(answer.response_ids, answer.where)
        if not end and answer.finished is not False and self.end_id is not None:
            end = (self.end_id,)
        ids = prompt.ids + body + end
        start = len(prompt.ids)
        stop = len(ids) if self.counts_end else start + len(body)
        if start == stop:
            raise RenderError(
                f"{_at(answer.where)}got an answer without a token to judge: it is empty and its "
                "end-of-turn token is missing or not counted. Leave out empty answers or count the end."
            )
        return Rendered(ids, start, stop)

    def render_finished(self, answer: Answer) -> Rendered:
        """The whole conversation as the template writes it once the answer is given.

            ids = BOS | template(messages and answer, no generation prompt)

        This is what classifiers of others were trained to read (transformers'
        `apply_chat_template`, last token): with what stands behind the end of the turn, a newline
        mostly, and with what a template puts before a finished answer only. The answer's text is
        taken, never its sampled ids, which are of another tokenizer. Without a chat template it is
        `render_whole`. Any length.

        Returns:
            `start`: the first id that is not also the prompt's; `stop`: behind the last id.

        Raises:
            RenderError: the template refuses or loses something, the answer included.
        """
        if not self.tokenizer.chat_template:
            return self.render_whole(answer)
        prompt = self._prompt(answer.prompt, answer.where).ids
        turn = {"role": "assistant", "content": answer.response}
        messages = [*(message.as_dict() for message in answer.prompt.messages), turn]
        tools = [dict(tool) for tool in answer.prompt.tools]
        _check_reserved(answer.response, answer.where)
        try:
            text = self._apply(messages, tools, generation=False)
        except _TEMPLATE_ERRORS as error:
            raise self._refusal(messages, tools, error, answer.where) from error
        if answer.response.strip() and self._loses_answer:
            raise RenderError(
                f"{_at(answer.where)}the chat template leaves out the answer of a finished "
                "conversation. Set the chat_template of the model's tokenizer to one that writes it."
            )
        text = self._quoted(messages, tools, text, generation=False)
        ids = self._with_bos(self._encoder.encode(text), answer.where)
        # One token at least is the answer's, whatever the template writes.
        shared = zip(prompt, ids[:-1], strict=False)
        start = next(
            (k for k, (a, b) in enumerate(shared) if a != b), min(len(prompt), len(ids) - 1)
        )
        return Rendered(ids, start, len(ids))

    @cached_property
    def _loses_answer(self) -> bool:
        return _REPLY not in self._apply_probe(_QUESTION, _REPLY)

    def render_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids up to where the model would begin to answer; any length.

        Raises:
            RenderError: the template refuses or loses something.
        """
        return self._prompt(prompt, "").ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out.

        Tokenizers in the style of SentencePiece drop the space of the first word.
        """
        return self._text_of(ids, skip_special=True)

    def text(self, ids: Sequence[int]) -> str:
        """Text of `ids` with special tokens, as trainers send it; tokenised again it may be other ids."""
        return self._text_of(ids, skip_special=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; joined they give `decode(ids)`.

        A character that is spread over several tokens stands whole at the last of them; the others,
        and special tokens, have the empty string.
        """
        out: list[str] = []
        # Decoded are the last finished piece and what follows: some decoders look at neighbours.
        before, read, known = 0, 0, ""
        for i in range(len(ids)):
            now = self.decode(ids[before : i + 1])
            if len(now) > len(known) and not now.endswith("\ufffd"):
                out.append(now[len(known) :])
                before, read = read, i + 1
                known = self.decode(ids[before:read])
            else:
                out.append("")
        if out:
            # What is left is a character that was never completed.
            out[-1] += self.decode(ids[before:])[len(known) :]
        return out

    # Text that others rendered, see `retrm.backbone.foreign_text`

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text that is rendered already: control strings count, nothing is added.

        Raises:
            RenderError: a code point that is no character.
        """
        _check_reserved(text, "")
        return self._encoder.encode(text)

    def encode_alone(self, text: str) -> tuple[int, ...]:
        """`encode` for text that follows other text, no token reaching across the border."""
        _check_reserved(text, "")
        return self._encoder.encode_alone(text)

    def encode_behind(
        self, prompt: str, prompt_ids: tuple[int, ...], answer: str
    ) -> tuple[int, ...]:
        """Ids of an answer that a template wrote behind `prompt`: those of rule 4 of `render`.

        Control strings in `answer` count, the white space before it is that of `render`.

        Raises:
            RenderError: a code point that is no character.
        """
        if not answer:
            return ()
        _check_reserved(answer, "")
        return self._behind(prompt, prompt_ids, answer, answer)

    @cached_property
    def frame(self) -> TextFrame:
        """What the template writes around an answer; read off made-up conversations."""
        asked, full = self._apply_probe(_QUESTION), self._apply_probe(_QUESTION, _REPLY)
        at = full.rfind(_REPLY)
        before = full[full.rfind(_QUESTION) + len(_QUESTION) : at] if at >= 0 else ""
        is_same = at >= 0 and full.startswith(asked)
        decode, prefix = self._text_of, self._default_prefix
        written = [self._opening(asked), *([] if is_same else [before])]
        shown = [decode(self._encoder.encode(text)) for text in written if text]
        bos = decode(prefix) if prefix else (self.tokenizer.bos_token or "")
        tail = full[at + len(_REPLY) :] if at >= 0 else ""
        ends = {decode([i]): i for i in sorted(self.end_ids)}
        pad = self.tokenizer.pad_token_id
        # A space, a line break and a letter behind control tokens, and a control token behind each.
        probe = "".join(f"{end}{text}" for text in (full, " a", "\na", "a") for end in ("", *ends))
        return TextFrame(
            prefix=prefix,
            bos=bos,
            writes_bos=bool(bos) and asked.startswith(bos),
            openings=tuple(dict.fromkeys(text for text in (*written, *shown) if text.strip())),
            finished_opening="" if is_same else before,
            written_glue=full[len(asked) : at] if is_same else "",
            ends=ends,
            end_id=self.end_id,
            writes_end=any(end in tail for end in ends),
            tail=tail,
            pads={} if pad is None else {decode([pad]): pad},
            controls=frozenset(self._encoder.controls),
            vocabulary_size=len(self.tokenizer),
            restores_text=decode(self._encoder.encode(probe)) == probe,
        )

    def _opening(self, asked: str) -> str:
        """What stands right before an answer, whatever was said before: the generation prompt."""
        try:
            messages = [{"role": "user", "content": _QUESTION}]
            bare = self._apply(messages, [], generation=False)
        except _TEMPLATE_ERRORS:
            bare = ""
        alike = zip(asked, bare, strict=False)
        at = next((k for k, (a, b) in enumerate(alike) if a != b), min(len(asked), len(bare)))
        for match in self._encoder.pattern.finditer(asked) if self._encoder.pattern else ():
            if match.start() < at < match.end():
                at = match.start()
        asks = asked.rfind(_QUESTION) + len(_QUESTION)
        # A template without a generation prompt (Mistral's) closes the question with a token.
        return asked[at:] if at >= asks and asked[at:].strip() else asked[asks:]

    @property
    def end_id(self) -> int | None:
        """The end-of-turn token, or None where the model has none."""
        return self._turn.end

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Every token that ends sampled ids: `end_id` and the tokenizer's EOS."""
        return frozenset({self.end_id, self.tokenizer.eos_token_id} - {None})

    @property
    def glue(self) -> str:
        """White space that the template writes between its generation prompt and an answer."""
        return self._turn.glue

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the template's own rendering of a finished turn differs from the rules above."""
        return self._turn.notes

    @cached_property
    def n_bos(self) -> int:
        """How many ids at the front are the beginning-of-sequence mark: 0, or 1 for most models."""
        if self._default_prefix:
            return len(self._default_prefix)
        ids = self._with_bos(self._encoder.encode(self._apply_probe(_QUESTION)), "")
        return int(
            self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id
        )

    @cached_property
    def template_text(self) -> str:
        """Everything that decides the ids besides the vocabulary, as JSON; for the fingerprint."""
        template = self.tokenizer.chat_template
        body = {
            "template": template or {PLAIN_NAME: PLAIN_TEMPLATE},
            "rules": RULES,
            "counts_end": self.counts_end,
            "options": self.template_options,
            "bos": list(self._default_prefix),
            "end": self.end_id,
        }
        return json.dumps(body, sort_keys=True, ensure_ascii=False, default=str)

    # Prompt

    def _prompt(self, prompt: Prompt, where: str) -> _RenderedPrompt:
        # The candidates of one prompt mostly come one after the other.
        last = self._last  # looked at once: another thread may render meanwhile
        if last is not None and (last[0] is prompt or last[0] == prompt):
            return last[1]
        text = self._prompt_text(prompt, where)
        bare = self._encoder.encode(text)
        made = _RenderedPrompt(text, bare, self._with_bos(bare, where))
        if not made.ids:
            raise RenderError(
                f"{_at(where)}got a prompt without a single token; expected some text."
            )
        self._last = (prompt, made)
        return made

    def _prompt_text(self, prompt: Prompt, where: str) -> str:
        _check_turns(prompt, where)
        messages = [message.as_dict() for message in prompt.messages]
        tools = [dict(tool) for tool in prompt.tools]
        _check_reserved([messages, tools], where)
        try:
            text = self._apply(messages, tools)
        except _TEMPLATE_ERRORS as error:
            raise self._refusal(messages, tools, error, where) from error
        self._check_kept(messages, tools, text, where)
        return self._quoted(messages, tools, text)

    def _quoted(
        self, messages: list[dict], tools: list[dict], text: str, *, generation: bool = True
    ) -> str:
        """The template's text with control strings in the contents quoted, where it ignores them."""

        def rendered_with(which: set[str]) -> str:
            try:
                quote = self._encoder.quote
                quoted = _with_contents(messages, quote, which)
                made = self._apply(quoted, quote(tools, which), generation=generation)
            except _TEMPLATE_ERRORS:
                return ""
            return made if _MARKS.sub("", made) == text else ""

        found = self._encoder.found([[_contents(m) for m in messages], tools])
        harmless = found if rendered_with(found) else {one for one in found if rendered_with({one})}
        return rendered_with(harmless) or text

    def _check_kept(self, messages: list[dict], tools: list[dict], text: str, where: str) -> None:
        """Refuses a template that leaves out a turn, its tool calls or the tools without a word."""
        said: dict[int, dict] = {}
        for i, message in enumerate(messages):
            content = message["content"].strip()
            # An earlier assistant turn may be shortened on purpose (its reasoning is taken out).
            if message["role"] == "assistant" or not content:
                continue
            if message["role"] == "user" and content in text:
                continue
            said[i] = {"content": f"{content} {_mark(i)}"}
        for i in self._unseen(messages, tools, said):
            if self._is_lost(messages, tools, i, said[i], text):
                raise RenderError(
                    f"{_at(where)}the chat template leaves out turn {i + 1} (role "
                    f"{messages[i]['role']}). Use a role that it knows, or move the text into a user turn."
                )
        called = {
            i: {"tool_calls": _renamed(message["tool_calls"], _mark(i))}
            for i, message in enumerate(messages)
            if message.get("tool_calls")
        }
        for i in self._unseen(messages, tools, called):
            if self._is_lost(messages, tools, i, {"tool_calls": []}, text):
                raise RenderError(
                    f"{_at(where)}the chat template leaves out the tool calls of turn {i + 1}. Write "
                    "them into the turn's text, or use a backbone trained with tools."
                )
        if tools and self._applies(messages, []) == text:
            raise RenderError(
                f"{_at(where)}the chat template leaves out the {len(tools)} tools. Describe them in "
                "the system or first user turn, or use a backbone trained with tools."
            )

    def _unseen(
        self, messages: list[dict], tools: list[dict], changes: Mapping[int, dict]
    ) -> list[int]:
        """Turns whose mark does not show when all are marked at once: those that may be lost.

        One rendering instead of one for each turn, which would be the square of a long rollout's time.
        """
        if len(changes) < 2:
            return list(changes)
        marked = [{**message, **changes.get(i, {})} for i, message in enumerate(messages)]
        text = self._applies(marked, tools) or ""
        return [i for i in changes if _mark(i) not in text]

    def _is_lost(
        self, messages: list[dict], tools: list[dict], i: int, change: dict, text: str
    ) -> bool:
        changed = [*messages[:i], {**messages[i], **change}, *messages[i + 1 :]]
        return self._applies(changed, tools) == text

    def _refusal(
        self, messages: list[dict], tools: list[dict], error: Exception, where: str
    ) -> RenderError:
        start = f"{_at(where)}the chat template refuses "
        others = [m for m in messages if m["role"] not in ("system", "developer")]
        roles = ", ".join(message["role"] for message in messages)
        if len(others) < len(messages) and others and self._applies(others, tools) is not None:
            return RenderError(
                f"{start}a system turn: {error}. Put its text in front of the first user turn."
            )
        if tools and self._applies(messages, []) is not None:
            return RenderError(
                f"{start}tools: {error}. Describe them in the first turn, or use a backbone trained "
                "with tools."
            )
        return RenderError(
            f"{start}these turns ({roles}): {error}. Expected turns in an order that the model was "
            "trained on, mostly user and assistant in alternation."
        )

    def _applies(self, messages: list[dict], tools: list[dict]) -> str | None:
        """The template's text, or None where it refuses."""
        try:
            return self._apply(messages, tools)
        except _TEMPLATE_ERRORS:
            return None

    def _apply(self, messages: list[dict], tools: list[dict], *, generation: bool = True) -> str:
        template = PLAIN_TEMPLATE
        if self.tokenizer.chat_template:
            template = self.tokenizer.get_chat_template(None, tools or None)
        if "strftime_now" in template:
            template = FIXED_CLOCK + template
        return self.tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            chat_template=template,
            add_generation_prompt=generation,
            tokenize=False,
            **self.template_options,
        )

    # BOS and end of turn

    @cached_property
    def _default_prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts before any text by itself."""
        bare = self._encoder.encode("a")
        full = tuple(self.tokenizer("a", split_special_tokens=False)["input_ids"])
        for i in range(len(full) - len(bare) + 1):
            if full[i : i + len(bare)] == bare:
                return full[:i]
        return ()

    def _with_bos(self, ids: tuple[int, ...], where: str) -> tuple[int, ...]:
        prefix = self._default_prefix
        if ids[: len(prefix)] != prefix:
            ids = prefix + ids
        bos = prefix[-1] if prefix else self.tokenizer.bos_token_id
        at = len(prefix) if prefix else 1
        if bos is not None and ids[at - 1 : at + 1] == (bos, bos):
            raise RenderError(
                f"{_at(where)}got two BOS tokens ({self.tokenizer.decode([bos])!r}) in a row at the "
                "front; expected one. The chat template writes both: remove one from it."
            )
        return ids

    def _apply_probe(self, *turns: str) -> str:
        roles = ("user", "assistant")
        messages = [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
        try:
            return self._apply(messages, [], generation=len(turns) == 1)
        except _TEMPLATE_ERRORS as error:
            raise RenderError(
                f"the chat template refuses a {' and an '.join(roles[: len(turns)])} turn: {error}. "
                "Expected a template for conversations; set tokenizer.chat_template to the model's."
            ) from error

    @cached_property
    def _turn(self) -> _Turn:
        """Read off a made-up conversation, whose reply is a word that stands nowhere else."""
        asked, full = self._apply_probe(_QUESTION), self._apply_probe(_QUESTION, _REPLY)
        at = full.rfind(_REPLY)
        notes: list[str] = []
        glue = ""
        if at < 0:
            notes.append("the template leaves the assistant's text out of a finished turn")
        elif not full.startswith(asked):
            notes.append("the template renders the prompt differently once an answer follows")
        else:
            glue = full[len(asked) : at]
        if glue.strip():
            notes.append(f"the template writes {glue!r} between the prompt and an answer")
            glue = ""
        if glue == " " and self._adds_space(asked):
            glue = ""
        tail = full[at + len(_REPLY) :] if at >= 0 else ""
        found = self._encoder.pattern.search(tail) if self._encoder.pattern else None
        if found:
            return _Turn(glue, self.tokenizer.convert_tokens_to_ids(found[0]), tuple(notes))
        notes.append("the template writes no end-of-turn token; the tokenizer's EOS stands for it")
        return _Turn(glue, self.tokenizer.eos_token_id, tuple(notes))

    def _adds_space(self, asked: str) -> bool:
        """Whether the tokenizer itself puts a space before an answer (old SentencePiece rule)."""
        n = len(self._encoder.encode(asked))
        behind = self._encoder.encode(asked + _REPLY)[n:]
        return bool(behind) and self.tokenizer.convert_ids_to_tokens(behind[0]).startswith("▁")

    # Answer

    def _tokenised(self, prompt: _RenderedPrompt, response: str, where: str) -> tuple[int, ...]:
        """Ids of an answer text behind `prompt`, without an end token (rule 4)."""
        if not response:
            return ()
        _check_reserved(response, where)
        quoted = self._encoder.quote(response, self._encoder.found(response))
        return self._behind(prompt.text, prompt.bare_ids, quoted, response)

    def _behind(
        self, prompt: str, prompt_ids: tuple[int, ...], quoted: str, response: str
    ) -> tuple[int, ...]:
        """Ids of `response`, whose control strings may be quoted, behind a prompt."""
        lead = "" if response[0].isspace() else self.glue
        text = lead + quoted
        together = self._encoder.encode(prompt + text)
        n = len(prompt_ids)
        follows = together[:n] == prompt_ids
        if follows and self._text_of(together[n:]) in (lead + response, response):
            return together[n:]
        alone = self._encoder.encode_alone(text)
        if follows and self._text_of(alone) not in (lead + response, response):
            # Neither gives the text back (a tokenizer that normalises): context decides.
            return together[n:]
        return alone

    def _sampled(self, ids: Sequence[int], where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sampled ids as answer and end token; padding behind the end is taken off (rule 3)."""
        size = len(self.tokenizer)
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise RenderError(
                f"{_at(where)}got response_ids with {wrong}; the vocabulary has ids 0 to {size - 1}. "
                "Were they sampled with another model? Leave them out to tokenise the text."
            )
        ends = self.end_ids
        at = next((k for k, i in enumerate(ids) if i in ends), None)
        if at is None:
            return tuple(ids), ()
        behind = next((i for i in ids[at:] if i not in ends | {self.tokenizer.pad_token_id}), None)
        if behind is not None:
            raise RenderError(
                f"{_at(where)}got response_ids that go on with {behind} behind the end-of-turn token "
                f"at position {at}; expected one answer. Cut them behind the end token."
            )
        return tuple(ids[:at]), (ids[at],)

    def _text_of(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )


def _alias_of(alias: str, token: AddedToken) -> AddedToken:
    """A plain added token that matches `alias` the way `token` matches its own text."""
    return AddedToken(
        alias,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=False,
        special=False,
    )


def _mark(i: int) -> str:
    """A word that stands nowhere else, for turn `i`."""
    return f"{_QUESTION}{i}{_REPLY}"


def _renamed(calls: Any, mark: str) -> Any:
    """Tool calls (JSON-like) with `mark` behind every name."""
    if isinstance(calls, Mapping):
        return {
            key: value + mark if key == "name" and isinstance(value, str) else _renamed(value, mark)
            for key, value in calls.items()
        }
    return [_renamed(one, mark) for one in calls] if isinstance(calls, list | tuple) else calls


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """`value` (JSON-like) with `change` applied to every string that is not a key."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value


def _contents(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != "role"}


def _with_contents(
    messages: list[dict], quote: Callable[[Any, set[str]], Any], which: set[str]
) -> list[dict]:
    return [{"role": m["role"], **quote(_contents(m), which)} for m in messages]


def _check_turns(prompt: Prompt, where: str) -> None:
    if not prompt.messages:
        raise RenderError(f"{_at(where)}got a prompt without messages; expected at least one turn.")
    for message in prompt.messages:
        if message.role not in ROLES:
            raise RenderError(
                f"{_at(where)}got the role {message.role!r}. {did_you_mean(message.role, ROLES)}"
            )
        if message.images:
            raise RenderError(
                f"{_at(where)}got a message with {len(message.images)} image(s), which this backbone does "
                "not read; expected text. Leave such records out, or let a judge with a processor compare "
                "them"
            )
    if prompt.messages[-1].role == "assistant":
        raise RenderError(
            f"{_at(where)}the prompt ends with an assistant turn; expected the turn to be answered. "
            "Give the text to be judged as the response."
        )


def _check_reserved(value: Any, where: str) -> None:
    found: list[str] = []

    def look(text: str) -> str:
        found.extend(_RESERVED.findall(text))
        return text

    _map_strings(value, look)
    if found:
        raise RenderError(
            f"{_at(where)}got the code point U+{ord(found[0]):04X}, which Unicode reserves as no "
            "character; expected text. Remove it from the record."
        )


def _at(where: str) -> str:
    return f"{where}: " if where else ""
