r"""Objectives that are computed from the answers themselves, by rules: no rater and no model.

    correctness  the label: 1 right, 0 wrong, missing where it is missing
    length       log2(1 + words) / 14, at most 1: each doubling adds 1/14, and 16,383 words reach 1.
                 A word is what stands between white space
    format       1 if the answer states its final result in a form that a program finds, else 0:
                 \boxed{...} anywhere, or a last line with "#### ...", "Answer: ..." or
                 "answer is ..."; `format=REGEX` takes your own form, searched for in the whole answer
    refusal      1 if the answer begins as a refusal (`retrm.data.refusals`), else 0; English only

All are numbers from 0 to 1 that stand beside ratings. More is not better: `refusal` and `length` say
how much of it there is, and what it is worth is up to the gate or to the weights. Answers that sampling
stopped have none.

    >>> computed("length", "a b c"), computed("format", "So 42.\n#### 42"), computed("refusal", "Yes.")
    (0.14285714285714285, 1.0, 0.0)
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrm.data.refusals import refuses
from retrm.errors import DataError, LabelError, did_you_mean
from retrm.records import UNIT_SCALE, AnswerTable

DOUBLINGS = 14
"""Of the number of words, from none to a `length` of 1."""

_BOXED = re.compile(r"\\boxed\s*\{\s*[^\s{}]")
_STATED = re.compile(r"^\s*####\s*\S|\banswer(?:\s+is\b|\W{0,3}:)[\s*_:]*[^\s*_:.]", re.IGNORECASE)


def length(text: str) -> float:
    """log2(1 + words) / 14, at most 1."""
    return min(1.0, math.log2(1 + len(text.split())) / DOUBLINGS)


def states_result(text: str) -> float:
    """1 if the answer states its final result in a form that a program finds, else 0."""
    if _BOXED.search(text):
        return 1.0
    lines = [line for line in text.splitlines() if line.strip()]
    return float(bool(lines) and _STATED.search(lines[-1]) is not None)


@dataclass(frozen=True)
class ComputedObjective:
    """A rule.

    Attributes:
        about: the rule in one line, for people.
        of: text of an answer to a number from 0 to 1; None = it is the label.
    """

    about: str
    of: Callable[[str], float] | None


OBJECTIVES: Mapping[str, ComputedObjective] = {
    "correctness": ComputedObjective("the label: 1 right, 0 wrong", None),
    "length": ComputedObjective(f"log2(1 + words) / {DOUBLINGS}, at most 1", length),
    "format": ComputedObjective(
        r'1 if a final result is stated: \boxed{...}, "#### ...", "Answer: ..."; format=REGEX for yours',
        states_result,
    ),
    "refusal": ComputedObjective("1 if the answer begins as a refusal (English)", refuses),
}
"""Every objective that can be computed."""


def computed(name: str, text: str) -> float:
    """One computed objective of one text.

    Raises:
        DataError: an unknown name, or one that no text alone can give.
    """
    rule = _rule(name)
    if rule is None:
        raise DataError(f"got {name!r}, which is the label; expected an objective of a text alone")
    return rule(text)


def check_objectives(names: Sequence[str]) -> None:
    """Refuse names of computed objectives that are unknown or given twice.

    Raises:
        DataError: with the nearest name.
    """
    if isinstance(names, str):
        raise DataError(f"got the text {names!r}; expected a list of names: [{names!r}]")
    plain = [name.partition("=")[0] for name in names]
    for name in names:
        _rule(name)
    twice = next((name for name in plain if plain.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"got the computed objective {twice!r} twice; expected each once")


def _rule(name: str) -> Callable[[str], float] | None:
    """The function of a name, or None for the label."""
    plain, has_pattern, pattern = name.partition("=")
    if plain not in OBJECTIVES or (has_pattern and plain != "format"):
        raise DataError(
            f"got the computed objective {name!r}; expected a known one. "
            f"{did_you_mean(plain, list(OBJECTIVES))}"
        )
    if not has_pattern:
        return OBJECTIVES[plain].of
    try:
        form = re.compile(pattern)
    except re.error as error:
        raise DataError(
            f"got the form {pattern!r}, which is no regular expression ({error}); expected one that "
            r"finds the form in an answer, such as format=\\boxed"
        ) from None
    return lambda text: float(form.search(text) is not None)


def add_objectives(table: AnswerTable, names: Sequence[str]) -> AnswerTable:
    """The same answers with computed objectives behind those that they are rated on.

    Args:
        table: answers, with labels where `correctness` is asked for.
        names: of `OBJECTIVES`, or ``format=REGEX``.

    Raises:
        DataError: an unknown name, or one that the answers are rated on already.
        LabelError: `correctness` without labels, or with grades.
    """
    check_objectives(names)
    ratings, scales = dict(table.ratings), dict(table.scales)
    for name in names:
        plain = name.partition("=")[0]
        if plain in ratings:
            raise DataError(
                f"got the computed objective {plain!r}, but the answers are rated on {plain!r} already; "
                "expected one of the two. Give the ratings another name: "
                f"--rating rated_{plain}={plain}:LOW..HIGH"
            )
        ratings[plain] = _column(table, name)
        scales[plain] = UNIT_SCALE
    return replace(table, ratings=ratings, scales=scales)


def _column(table: AnswerTable, name: str) -> np.ndarray:
    """(n,) float64; NaN for what has no label, and for answers that sampling stopped."""
    rule = _rule(name)
    if rule is None:
        values = table.labels.astype(np.float64)
        known = values[~np.isnan(values)]
        if not len(known) or not np.isin(known, (0, 1)).all():
            got = (
                "no labels"
                if not len(known)
                else f"the label {known[~np.isin(known, (0, 1))][0]:g}"
            )
            raise LabelError(
                f"got {got} and the computed objective 'correctness'; expected answers with labels 1 "
                "and 0. Grade them first (retrm grade), or read grades as ratings: "
                "--rating NAME:LOW..HIGH"
            )
    else:
        values = np.array([rule(answer.response) for answer in table.answers], dtype=np.float64)
    pruned = np.array([answer.pruned for answer in table.answers], dtype=bool)
    return np.where(pruned, math.nan, values)
