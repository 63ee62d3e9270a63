"""How much of a benchmark stands in what a scorer was trained on.

Texts are compared without case, punctuation and spacing. An item is met if

    its prompt is a training prompt               (equal)
    13 words of its prompt stand in one           (n-gram; Brown et al. 2020, appendix C)
    one of its answers is a training answer       (equal, of at least 13 words)

Shorter prompts have no 13-gram and can only be equal. A run of words that stands in 5 or more distinct
prompts of the training data, or in 5 or more of the benchmark, is boilerplate ("think step by step and put
the answer in a box"): it meets nothing by itself, and the items that share nothing else are counted apart.
So a problem that the training data hold in 5 or more wordings is met by an equal prompt or answer only.
Nothing is dropped from a figure: the overlap is reported beside it, with the headline on the rest
(`tables.measure`).

>>> normalised("What's  2+2?")
('what', 's', '2', '2')
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrm.data.load import load_table
from retrm.evaluation.benchmarks.base import BenchmarkData, Item
from retrm.records import Answer, Prompt

WORDS = 13
BOILERPLATE = 5
"""Distinct prompts with the same run of words from which on it is no sign of the same problem."""

# Scripts that put no space between words give one word a character.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")


@dataclass(frozen=True)
class KnownTexts:
    """Hashes of the training data.

    Attributes:
        name: of the files.
        prompts: normalised prompts.
        answers: normalised answers of at least `WORDS` words.
        grams: runs of `WORDS` words of prompts, without boilerplate.
        boilerplate: runs of `WORDS` words that stand in `BOILERPLATE` or more distinct prompts.
        n_prompts: distinct prompts read.
        n_answers: answers read.
    """

    name: str
    prompts: frozenset[int]
    answers: frozenset[int]
    grams: frozenset[int]
    boilerplate: frozenset[int]
    n_prompts: int
    n_answers: int


@dataclass(frozen=True)
class Overlap:
    """What of a benchmark stands in the training data.

    Attributes:
        training: name of the training files.
        n_items: items met in any way.
        n_total: items of the benchmark.
        n_equal_prompts: items whose prompt is a training prompt.
        n_gram_prompts: items of which `WORDS` words in a row stand in a training prompt.
        n_equal_answers: items with an answer that is a training answer.
        n_boilerplate: items not met that share boilerplate with a training prompt.
        ids: of the items met.
    """

    training: str
    n_items: int
    n_total: int
    n_equal_prompts: int
    n_gram_prompts: int
    n_equal_answers: int
    n_boilerplate: int
    ids: tuple[str, ...]

    @property
    def in_words(self) -> str:
        """One sentence."""
        shared = ""
        if self.n_boilerplate:
            shared = f"; {self.n_boilerplate:,} share only wording of {BOILERPLATE} or more prompts"
        if not self.n_items:
            return f"none of {self.n_total:,} items stands in {self.training}{shared}"
        return (
            f"{self.n_items:,} of {self.n_total:,} items stand in {self.training} "
            f"({self.n_equal_prompts:,} by an equal prompt, {self.n_gram_prompts:,} by {WORDS} words "
            f"of the prompt in a row, {self.n_equal_answers:,} by an equal answer{shared})"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def normalised(text: str) -> tuple[str, ...]:
    """Its words without case, punctuation and spacing; the text itself where it has no words."""
    words = tuple(_WORD.findall(text.casefold()))
    return words or (text.strip(),)  # two texts of signs only are not equal for lack of words


def training_texts(sources: Sequence[str | Path]) -> KnownTexts:
    """What stands in training files of any record format.

    Raises:
        DataError, FormatError: a file cannot be read.
    """
    tables = [load_table(source, ratings="unread", empty="drop") for source in sources]
    answers = [answer for table in tables for answer in table.answers]
    return known_texts(answers, name=", ".join(Path(source).name for source in sources))


def known_texts(answers: Iterable[Answer], *, name: str = "the training data") -> KnownTexts:
    """The same of answers at hand."""
    prompts: dict[str, tuple[str, ...]] = {}
    seen: set[int] = set()
    n_answers = 0
    for answer in answers:
        n_answers += 1
        if answer.prompt.key not in prompts:  # ids are of one file; two files may use the same
            prompts[answer.prompt.key] = _asked(answer.prompt)
        words = normalised(answer.response)
        if len(words) >= WORDS:
            seen.add(hash(words))
    grams = _n_prompts_of(prompts.values())
    shared = frozenset(gram for gram, n in grams.items() if n >= BOILERPLATE)
    return KnownTexts(
        name=name,
        prompts=frozenset(hash(words) for words in prompts.values()),
        answers=frozenset(seen),
        grams=frozenset(grams) - shared,
        boilerplate=shared,
        n_prompts=len(prompts),
        n_answers=n_answers,
    )


def overlap(known: KnownTexts, data: BenchmarkData) -> Overlap:
    """The items of a benchmark that stand in training data."""
    equal, by_gram, by_answer, by_shared, met = [], [], [], [], []
    asked = [_asked(item.answers[0].prompt) for item in data.items]
    common = {gram for gram, n in _n_prompts_of(asked).items() if n >= BOILERPLATE}
    for item, words in zip(data.items, asked, strict=True):
        grams = _grams(words)
        is_equal = hash(words) in known.prompts
        is_gram = not known.grams.isdisjoint(grams - common)
        is_answer = _has_known_answer(known, item)
        equal.append(is_equal)
        by_gram.append(is_gram)
        by_answer.append(is_answer)
        is_met = is_equal or is_gram or is_answer
        is_shared = not (known.grams.isdisjoint(grams) and known.boilerplate.isdisjoint(grams))
        by_shared.append(is_shared and not is_met)
        met += [item.id] if is_met else []
    return Overlap(
        training=known.name,
        n_items=len(met),
        n_total=len(data.items),
        n_equal_prompts=sum(equal),
        n_gram_prompts=sum(by_gram),
        n_equal_answers=sum(by_answer),
        n_boilerplate=sum(by_shared),
        ids=tuple(met),
    )


def _has_known_answer(known: KnownTexts, item: Item) -> bool:
    words = (normalised(answer.response) for answer in item.answers)
    return any(len(some) >= WORDS and hash(some) in known.answers for some in words)


def _asked(prompt: Prompt) -> tuple[str, ...]:
    """The words of the turns of users: a system prompt is shared by everything."""
    asked = [m.content for m in prompt.messages if m.role == "user"]
    return normalised("\n".join(asked or [m.content for m in prompt.messages]))


def _n_prompts_of(prompts: Iterable[tuple[str, ...]]) -> Counter[int]:
    """In how many distinct prompts each run of `WORDS` words stands."""
    return Counter(gram for words in set(prompts) for gram in _grams(words))


def _grams(words: tuple[str, ...]) -> set[int]:
    return {hash(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}
