"""A prompt, a reference and a candidate as one text and as token ids: POLAR's template.

    prompt NEWLINE reference SEPARATOR prompt NEWLINE candidate END

The prompt stands on both sides. Under the wrapper `pretrain` nothing stands between prompt and answer,
because the answer continues it; under `sft` an empty answer has no newline either. No chat template:
messages become their contents joined by newlines. The score is read at END, always the last id.

Lengths, with B = max_length - 4: reference and candidate keep their first `max_response` tokens, the prompt
its last floor((B - |reference| - |candidate|) / 2), the smaller of the two for a chosen and a rejected
candidate, which share one prompt. Each piece is counted as the tokenizer encodes it alone, BOS included.

Source: "Pre-Trained Policy Discriminators are General Reward Models" (arXiv 2507.05197) and its released
code. Where the two choices differ, training's is taken: heads of answers are kept, empty answers have no
newline. Pieces are cut in their text, at the borders of tokens, where the released code decodes the ids
that are left: for tokenizers that decode what they encoded this is the same, and the others lose no spaces.
Control strings inside a piece are left out, as decoding without special tokens does, so that no candidate
can write a separator of its own.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, Self, runtime_checkable

from transformers import PreTrainedTokenizerBase

from retrm.backbone.base import Rendered
from retrm.errors import BackboneError, DataError, OverlongError, RecipeError, RenderError
from retrm.records import Answer, Message, Prompt, Reference, check_overlong

SEPARATOR = "<|reward|>"
END = "[UNUSED_TOKEN_130]"
RESERVED = 4  # tokens of max_length that are left for BOS, separator and END
RULES = "reference-v1"


@dataclass(frozen=True)
class ReferenceLimits:
    """How long the parts may be, in tokens.

    Attributes:
        max_length: of the whole text.
        max_response: of the reference, and of the candidate.
    """

    max_length: int = 16384
    max_response: int = 4096

    def __post_init__(self) -> None:
        if self.max_response < 1 or self.max_length <= RESERVED:
            raise RecipeError(
                f"got max_length={self.max_length} and max_response={self.max_response}; expected more than "
                f"{RESERVED} and at least 1"
            )

    @classmethod
    def within(cls, max_length: int, max_response: int | None = None) -> Self:
        """Limits of a context; answers may take a quarter of it each unless something else is said."""
        return cls(max_length, max(1, max_length // 4) if max_response is None else max_response)

    def prompt_limit(self, n_reference: int, n_candidate: int) -> int:
        """Tokens that are left for the prompt on each side.

        >>> ReferenceLimits().prompt_limit(4096, 1000)
        5642

        Raises:
            OverlongError: none. A slice of the last 0 tokens would be the whole prompt.
        """
        left = (self.max_length - RESERVED - n_reference - n_candidate) // 2
        if left < 1:
            raise OverlongError(
                f"a reference of {n_reference} and a candidate of {n_candidate} tokens leave {left} of "
                f"max_length={self.max_length} for each copy of the prompt; expected 1 at least. Raise "
                "max_length, or lower max_response"
            )
        return left


@dataclass(frozen=True)
class Compared:
    """One text to be scored.

    Attributes:
        text: of the template, as POLAR's client sends it.
        ids: its tokens; the last one is END, the first one BOS where the tokenizer has one.
        start: position of the first token of the candidate.
        is_cut: whether a piece lost tokens.
    """

    text: str
    ids: tuple[int, ...]
    start: int
    is_cut: bool


@runtime_checkable
class FittingRenderer(Protocol):
    """A renderer with length rules of its own."""

    def render_within(
        self, answer: Answer, limit: int, overlong: str
    ) -> tuple[Rendered, bool] | None:
        """Token ids of at most `limit` tokens and whether they were cut; None = left out.

        Raises:
            OverlongError: it does not fit, and `overlong` is "error" or nothing can be cut.
        """
        ...


def template_of(renderer: object) -> Literal["chat", "reference"]:
    """Which template a renderer has, in the words of recipes."""
    return "reference" if isinstance(renderer, FittingRenderer) else "chat"


class ReferenceTemplate:
    """Renders references and candidates with one tokenizer.

    Args:
        tokenizer: a fast one; `separator` and `end` are single tokens of its.
        separator: between the halves.
        end: the token that is read.
        limits: on lengths.

    Raises:
        BackboneError: the tokenizer is slow, or splits one of the two.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        separator: str = SEPARATOR,
        end: str = END,
        limits: ReferenceLimits | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise BackboneError(
                f"got a {type(tokenizer).__name__}; expected a fast tokenizer (tokenizer.json), which says "
                "where in the text its tokens stand"
            )
        self.tokenizer = tokenizer
        self.separator = separator
        self.end = end
        self.limits = limits or ReferenceLimits()
        self.separator_id = self._single(separator)
        self.end_id = self._single(end)

    def _single(self, token: str) -> int:
        ids = self.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise BackboneError(
                f"the tokenizer splits {token!r} into {len(ids)} tokens; expected one of its own. It is added "
                "when training begins (retrm polar train); a published model brings it along"
            )
        return int(ids[0])

    def with_limits(self, limits: ReferenceLimits) -> "ReferenceTemplate":
        """The same template with other lengths."""
        return ReferenceTemplate(
            self.tokenizer, separator=self.separator, end=self.end, limits=limits
        )

    @property
    def rules_text(self) -> str:
        """All that decides about ids, for fingerprints."""
        limits = [self.limits.max_length, self.limits.max_response]
        return json.dumps([RULES, self.separator, self.end, limits])

    @cached_property
    def _bos(self) -> tuple[int, ...]:
        """What the tokenizer itself puts in front of a text."""
        bare = self.tokenizer("x", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("x", add_special_tokens=True)["input_ids"]
        n_before = next(
            (k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), len(whole)
        )
        return tuple(whole[:n_before])

    @cached_property
    def _controls(self) -> re.Pattern[str]:
        names = {self.separator, self.end, *self.tokenizer.all_special_tokens}
        names |= {t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special}
        known = sorted((name for name in names if name), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, known)))

    def plain(self, text: str) -> str:
        """`text` without control strings, those included that appear when others are taken out."""
        while (left := self._controls.sub("", text)) != text:
            text = left
        return text

    def _places(self, text: str) -> list[tuple[int, int]]:
        """Where in `text` each token of it stands, special ones that are put around it included."""
        found = self.tokenizer(
            text, add_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return [tuple(place) for place in found["offset_mapping"]]

    def _head(self, text: str) -> tuple[str, int, bool]:
        """An answer cut to its first tokens, how many these are, and whether any were lost."""
        places, most = self._places(text), self.limits.max_response
        if len(places) <= most:
            return text, len(places), False
        return text[: max(stop for _, stop in places[:most])], most, True

    def _tail(self, text: str, most: int) -> tuple[str, bool]:
        """A prompt cut to its last tokens, and whether any were lost."""
        places = self._places(text)
        if len(places) <= most:
            return text, False
        starts = [start for start, stop in places[-most:] if stop > start]
        return (text[min(starts) :] if starts else ""), True

    def compare(self, prompt: str, reference: Reference, candidate: str) -> Compared:
        """A candidate beside a reference.

        Raises:
            OverlongError: no room is left for the prompt.
        """
        (made,) = self._compare(prompt, reference, (candidate,))
        return made

    def compare_pair(
        self, prompt: str, reference: Reference, chosen: str, rejected: str
    ) -> tuple[Compared, Compared]:
        """Two candidates beside a reference, behind one and the same prompt: for training.

        Raises:
            OverlongError: no room is left for the prompt.
        """
        first, second = self._compare(prompt, reference, (chosen, rejected))
        return first, second

    def _compare(
        self, prompt: str, reference: Reference, candidates: Sequence[str]
    ) -> list[Compared]:
        good, n_good, is_good_cut = self._head(self.plain(reference.text))
        heads = [self._head(self.plain(text)) for text in candidates]
        limit = min(self.limits.prompt_limit(n_good, n) for _, n, _ in heads)
        asked, is_asked_cut = self._tail(self.plain(prompt), limit)
        first = _half(asked, good, reference.wrapper) + self.separator
        made = []
        for text, _, is_text_cut in heads:
            half = _half(asked, text, reference.wrapper)
            is_cut = is_good_cut or is_asked_cut or is_text_cut
            made.append(self._compared(first, half, len(half) - len(text), is_cut=is_cut))
        return made

    def _compared(self, first: str, half: str, place: int, *, is_cut: bool) -> Compared:
        whole = first + half
        found = self.tokenizer(
            whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        begins = len(first) + place
        body = found["input_ids"]
        ids = (*self._bos, *body, self.end_id)
        places = found["offset_mapping"]
        start = next((k for k, (_, stop) in enumerate(places) if stop > begins), len(body))
        if len(ids) > self.limits.max_length:
            raise OverlongError(
                f"the joined text has {len(ids)} tokens, its parts fewer than max_length="
                f"{self.limits.max_length} together: the tokenizer splits them otherwise alone. Lower "
                "max_response by a few tokens"
            )
        return Compared(whole + self.end, ids, len(self._bos) + start, is_cut)

    def ids_of_text(self, text: str) -> tuple[int, ...]:
        """Ids of a text that a client rendered, with one BOS and with END last.

        Raises:
            RenderError: it is not of this template.
        """
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return self.checked_ids(ids)

    def checked_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Ids that a client made, with one BOS; refused where END is not last or the halves are not two.

        Raises:
            RenderError: they are not of this template.
        """
        n_bos = len(self._bos)
        while n_bos and tuple(ids[:n_bos]) == self._bos:
            ids = ids[n_bos:]
        n_halves = 1 + list(ids).count(self.separator_id)
        if not ids or ids[-1] != self.end_id or n_halves != 2:
            ends = "ends otherwise" if not ids or ids[-1] != self.end_id else "ends rightly"
            raise RenderError(
                f"got a text of {n_halves} halves that {ends}; expected prompt, reference, "
                f"{self.separator}, prompt, candidate, {self.end} and nothing behind it. Take the text from "
                "POLAR's client, or send messages with a reference"
            )
        return (*self._bos, *ids)


def _half(prompt: str, answer: str, wrapper: str) -> str:
    return prompt + ("\n" if wrapper == "sft" and answer else "") + answer


def joined(messages: Sequence[Message]) -> str:
    r"""Contents of messages, joined by newlines; roles are dropped.

    >>> joined((Message("system", "Be brief."), Message("user", "Hi")))
    'Be brief.\nHi'
    """
    return "\n".join(message.content for message in messages)


def reference_of(answer: Answer, who: str) -> Reference:
    """What an answer is compared with.

    Raises:
        DataError: it has none.
    """
    if answer.reference is None:
        raise DataError(
            f"{answer.where or 'an answer'}: {who} compares candidates with a reference, and the record has "
            "none; expected a column `reference` (or `gold`) with a good answer to the same prompt. Add it, "
            "or use a scorer that reads answers alone"
        )
    return answer.reference


class ReferenceRenderer:
    """The template as a `Renderer`, so that a frozen backbone reads it as it reads chats.

    A frozen backbone knows no token of ours: its own end-of-text token separates the halves and ends them.

    Args:
        inner: the renderer of chats; decoding is its work.
        template: made of its tokenizer.
    """

    counts_end = True

    def __init__(self, inner: Any, template: ReferenceTemplate) -> None:
        self.inner = inner
        self.template = template
        self.tokenizer = inner.tokenizer
        self.end_ids = frozenset({template.end_id})

    @classmethod
    def of(cls, inner: Any, context_length: int) -> Self:
        """For a model with this context.

        Raises:
            BackboneError: the tokenizer has no end-of-text token.
        """
        end = inner.tokenizer.eos_token
        if not end:
            raise BackboneError(
                "the tokenizer has no end-of-text token, which ends both halves of the reference template; "
                "set eos_token in its tokenizer_config.json"
            )
        limits = ReferenceLimits.within(min(context_length, ReferenceLimits().max_length))
        return cls(inner, ReferenceTemplate(inner.tokenizer, separator=end, end=end, limits=limits))

    @property
    def template_text(self) -> str:
        """For the fingerprint."""
        return self.template.rules_text

    def _compare(self, answer: Answer, limits: ReferenceLimits) -> Compared:
        template = (
            self.template if limits == self.template.limits else self.template.with_limits(limits)
        )
        reference = reference_of(answer, "the reference template")
        return template.compare(joined(answer.prompt.messages), reference, answer.response)

    def render(self, answer: Answer) -> Rendered:
        """Token ids, cut by the rules of the template; the span is that of the candidate and END.

        Raises:
            DataError: the answer has no reference.
            OverlongError: no room is left for the prompt.
        """
        made = self._compare(answer, self.template.limits)
        return Rendered(made.ids, made.start, len(made.ids))

    def render_within(
        self, answer: Answer, limit: int, overlong: str
    ) -> tuple[Rendered, bool] | None:
        """See `FittingRenderer`."""
        limits = self.template.limits
        if limit < limits.max_length:
            limits = replace(limits, max_length=limit)
        found = fitted(lambda: self._compare(answer, limits), overlong, answer.where)
        if found is None:
            return None
        return Rendered(found.ids, found.start, len(found.ids)), found.is_cut

    def render_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Not offered.

        Raises:
            RenderError: always; comparing is no beginning of an answer.
        """
        del prompt
        raise RenderError(
            "the reference template compares finished answers and begins none; sample with the model itself"
        )

    def decode(self, ids: Sequence[int]) -> str:
        """See `Renderer`."""
        return self.inner.decode(ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """See `Renderer`."""
        return self.inner.pieces(ids)


def fitted(compare: Callable[[], Compared], overlong: str, where: str) -> Compared | None:
    """What `compare` makes, under a policy for what is beyond the limits; None = left out.

    Args:
        compare: a function without arguments that gives a `Compared`.
        overlong: `truncate_left` = cut by the rules of the template; `error` and `skip` = do not cut.
        where: of the answer, for the message.

    Raises:
        OverlongError: a piece is too long under `error`, or nothing is left for the prompt.
    """
    check_overlong(overlong)
    try:
        made = compare()
    except OverlongError as error:
        if overlong == "skip":
            return None
        raise OverlongError(f"{where + ': ' if where else ''}{error}") from error
    if not made.is_cut or overlong == "truncate_left":
        return made
    if overlong == "skip":
        return None
    raise OverlongError(
        f"{where + ': ' if where else ''}prompt, reference or candidate is longer than the template holds "
        f"({len(made.ids)} tokens are left of it). Use --overlong truncate_left, which cuts answers at their "
        "ends and prompts at their beginnings as POLAR does, or skip; or raise the limits"
    )
