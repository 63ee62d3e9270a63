"""Texts with places for the question and the candidates."""

import re
from collections.abc import Mapping


def fill(wording: str, parts: Mapping[str, str]) -> str:
    """`wording` with each {name} of `parts` replaced, in one pass: braces inside the parts stay.

    >>> fill("{a} or {b}", {"a": "{b}", "b": "x"})
    '{b} or x'
    """
    names = "|".join(map(re.escape, parts))
    return re.sub(rf"\{{({names})\}}", lambda match: parts[match[1]], wording)
