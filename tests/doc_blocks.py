"""Fenced blocks of the documentation, for the tests that run them."""

import re
from dataclasses import dataclass

SKIP = "<!-- skip: needs the real model -->"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it begins on, and whether it is skipped."""

    language: str
    text: str
    line: int
    is_skipped: bool


def blocks_of(text: str, language: str = "") -> list[Block]:
    """The blocks of a page, or those in one language."""
    found, lines, i = [], text.splitlines(), 0
    while i < len(lines):
        fence = re.fullmatch(r"( *)(```+)(\w*)\s*", lines[i])
        if fence is None:
            i += 1
            continue
        stop = i + 1
        while lines[stop].strip() != fence[2]:  # an open fence fails with an IndexError
            stop += 1
        before = next((line.strip() for line in reversed(lines[:i]) if line.strip()), "")
        body = [line.removeprefix(fence[1]) for line in lines[i + 1 : stop]]
        found.append(Block(fence[3], "\n".join(body) + "\n", i + 2, before == SKIP))
        i = stop + 1
    return [block for block in found if not language or block.language == language]
