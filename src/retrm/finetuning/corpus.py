"""Beginnings of texts for policies to continue, from any file.

Text files are split at blank lines; records give the first of the columns `text`, `content`, `document`,
`prompt`, `problem`, `question`, or one that is named. Lengths are counted in words, because policies have
different tokenizers. Equal prefixes are taken once, texts that are too short left out; both are counted.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retrm.backbone.reference import joined
from retrm.data.messages import read_messages
from retrm.data.read import read_records
from retrm.errors import DataError, FormatError, RecipeError

COLUMNS = ("text", "content", "document", "prompt", "problem", "question")
_PLAIN = (".txt", ".md")


@dataclass(frozen=True)
class Prefixes:
    """What policies continue.

    Attributes:
        texts: distinct, in a shuffled order.
        counts: texts read, too short, repeated.
        sha: sixteen hex digits of all texts that were read.
    """

    texts: tuple[str, ...]
    counts: dict[str, int]
    sha: str


def read_prefixes(
    source: str | Path,
    *,
    words: tuple[int, int] = (16, 64),
    column: str | None = None,
    is_whole: bool = False,
    seed: int = 0,
    limit: int | None = None,
) -> Prefixes:
    """Prefixes of random length.

    Args:
        source: a text file, or records as `retrm` reads them.
        words: fewest and most words of a prefix; its length is drawn evenly, and leaves a word at least.
        column: where the text stands; None = the first of `COLUMNS` that is there.
        is_whole: take texts as they are, as prompts of chats.
        seed: of lengths and order.
        limit: only the first so many texts.

    Raises:
        DataError: no text is long enough.
        FormatError: no such column.
    """
    low, high = words
    if not 1 <= low <= high:
        raise RecipeError(f"got prefixes of {low} to {high} words; expected 1 <= fewest <= most")
    rng = random.Random(seed)
    counts = {"texts": 0, "too_short": 0, "repeated": 0}
    kept: dict[str, None] = {}
    digest = hashlib.sha256()
    for text in _texts(source, column, limit):
        counts["texts"] += 1
        digest.update(text.encode("utf-8", "replace") + b"\0")
        found = text.strip() if is_whole else _prefix(text, low, high, rng)
        if not found:
            counts["too_short"] += 1
        elif found in kept:
            counts["repeated"] += 1
        else:
            kept[found] = None
    if not kept:
        raise DataError(
            f"{source}: none of {counts['texts']} texts is longer than {low} words; expected longer ones, or "
            "ask for shorter prefixes"
        )
    texts = list(kept)
    rng.shuffle(texts)
    return Prefixes(tuple(texts), counts, digest.hexdigest()[:16])


def _prefix(text: str, low: int, high: int, rng: random.Random) -> str:
    ends = [found.end() for found in re.finditer(r"\S+", text.strip())]
    most = min(high, len(ends) - 1)
    return "" if most < low else text.strip()[: ends[rng.randint(low, most) - 1]]


def _texts(source: str | Path, column: str | None, limit: int | None) -> Iterator[str]:
    path = Path(source)
    if path.suffix in _PLAIN:
        if column is not None:
            raise FormatError(f"{source} is a text file and has no column {column!r}; leave it out")
        try:
            whole = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot read {source} ({error}); expected a text file in UTF-8"
            ) from error
        yield from (part for part in re.split(r"\n\s*\n", whole)[:limit] if part.strip())
        return
    for record in read_records(source, limit=limit):
        name = column or next((c for c in COLUMNS if c in record.fields), None)
        if name is None or name not in record.fields:
            raise FormatError(
                f"{record.where}: no column {column or ' or '.join(COLUMNS)}; the columns are "
                f"{', '.join(record.fields) or 'none'}. Name the one with the text by --column"
            )
        value = record.fields[name]
        if isinstance(value, list):
            yield joined(read_messages(value, record.where, name))
        elif isinstance(value, str):
            yield value
        else:
            raise FormatError(f"{record.where}: `{name}` is no text; expected text or messages")
