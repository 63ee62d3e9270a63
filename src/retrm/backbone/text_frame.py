"""What a chat template and its tokenizer write around an answer, and who can say so.

    text = [BOS ...] prompt | opening [glue] answer [end of turn] [tail, padding]

`retrm.backbone.foreign_text` reads by it what others rendered.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol


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
