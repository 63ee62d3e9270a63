"""Which columns hold ratings, and in which range: what people write, and what the formats know.

    OBJECTIVE                      a rating that the format knows, with the range that it knows
    OBJECTIVE:LOW..HIGH            the column of that name
    OBJECTIVE=COLUMN:LOW..HIGH     another column; dots lead into nested objects ("scores.overall")

A range says what raters could give; it is stated, never taken from the numbers that happen to occur.

    >>> RatingColumn.of("quality=scores.overall:1..5")
    RatingColumn(objective='quality', column='scores.overall', scale=RatingScale(low=1.0, high=5.0, pad=0.0))
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from retrm.data.read import Record
from retrm.errors import DataError, FormatError
from retrm.records import RatingScale

KNOWN: Literal["known"] = "known"
"""All ratings that the format of the records knows."""

UNREAD: Literal["unread"] = "unread"
"""No ratings, of records that may be rated: nothing is learned from them, so none has to be named."""

_NUMBER = r"[+-]?(?:\d+\.\d+|\d+|\.\d+)"
_RANGE = re.compile(rf"(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})")
# Commas, colons and equal signs separate objectives where people write several in a line.
_OBJECTIVE = re.compile(r"\w[\w.\-/]*")
_WANTED = "expected OBJECTIVE, OBJECTIVE:LOW..HIGH or OBJECTIVE=COLUMN:LOW..HIGH, such as helpfulness:0..4"


@dataclass(frozen=True)
class RatingColumn:
    """Where the ratings of an objective stand.

    Attributes:
        objective: its name: letters, digits and ``_ . - /``.
        column: of the record, or of each member of a list of answers; dots lead into nested objects.
        scale: what raters could give; None = what the format knows.
        values: the raters' numbers of a record, one an answer, where they are in no column.
    """

    objective: str
    column: str
    scale: RatingScale | None = None
    values: Callable[[Record], Sequence[Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_objective(self.objective)

    @property
    def written(self) -> str:
        """Objective and column as people write them, without the range."""
        is_plain = self.column == self.objective
        return self.objective if is_plain else f"{self.objective}={self.column}"

    @classmethod
    def of(cls, text: str) -> Self:
        """A column as people write it.

        Raises:
            FormatError: another form, or no range.
        """
        named, colon, written = (
            text.rpartition(":") if ".." in text or ":" in text else (text, "", "")
        )
        scale = None
        if colon:
            found = _RANGE.fullmatch(written.strip())
            if found is None:
                raise FormatError(f"got the range {written!r} in {text!r}; {_WANTED}")
            scale = _scale_of(float(found["low"]), float(found["high"]), text)
        objective, equals, column = named.partition("=")
        if not objective.strip() or (equals and not column.strip()):
            raise FormatError(f"got the rating {text!r}; {_WANTED}")
        return cls(objective.strip(), (column or objective).strip(), scale)


def _scale_of(low: float, high: float, text: str) -> RatingScale:
    try:
        return RatingScale(low, high)
    except DataError as error:
        raise FormatError(f"{text!r}: {error}") from None


def check_objective(name: str) -> None:
    """Refuse a name that cannot be written in options.

    Raises:
        FormatError: it is empty or holds other characters.
    """
    if not _OBJECTIVE.fullmatch(name):
        raise FormatError(
            f"got the objective {name!r}; expected a name of letters, digits, '_', '.', '-' and '/'. "
            "Name it yourself: OBJECTIVE=COLUMN:LOW..HIGH"
        )


@dataclass(frozen=True)
class WantedRatings:
    """Which ratings are read.

    Attributes:
        takes_known: all that the format knows.
        columns: these, whatever the format knows.
    """

    takes_known: bool
    columns: tuple[RatingColumn, ...] = ()

    @classmethod
    def of(cls, ratings: str | Sequence[str | RatingColumn] | None) -> Self | None:
        """From the argument `ratings`; None = none are read, `UNREAD` = none, and none is missed as a label.

        Raises:
            FormatError: a text that is no rating, nothing at all, or an objective that is named twice.
        """
        if ratings is None:
            return None
        if ratings == UNREAD:
            return cls(False)
        given = [ratings] if isinstance(ratings, str) else list(ratings)
        columns = tuple(
            RatingColumn.of(one) if isinstance(one, str) else one for one in given if one != KNOWN
        )
        if not given:
            raise FormatError(f"got no ratings; {_WANTED}, or {KNOWN!r} for all that are known")
        names = [column.objective for column in columns]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise FormatError(
                f"got the objective {twice!r} twice; expected each once. Give one of them another "
                f"name: NAME={twice}:LOW..HIGH"
            )
        return cls(KNOWN in given, columns)


# ------------------------------------------------------------------------ what the formats know

_HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_ULTRAFEEDBACK = ("instruction_following", "truthfulness", "honesty", "helpfulness")
ATTRIBUTES = tuple(dict.fromkeys((*_HELPSTEER, *_ULTRAFEEDBACK)))
"""Columns by which a record is known to be rated."""

_ZERO_TO_FOUR = RatingScale(0, 4, pad=0.5)
_ONE_TO_FIVE = RatingScale(1, 5)

_UNIEVAL: Mapping[frozenset[str], Mapping[str, RatingScale]] = {
    # Topical-Chat, SFRES and SFHOT, QAGS, SummEval: one axis has other ranges in other sets.
    frozenset({"understandability", "engagingness", "groundedness"}): {
        "understandability": RatingScale(0, 1),
        "naturalness": RatingScale(1, 3),
        "coherence": RatingScale(1, 3),
        "engagingness": RatingScale(1, 3),
        "groundedness": RatingScale(0, 1),
        "overall": RatingScale(1, 5),
    },
    frozenset({"informativeness"}): {
        "informativeness": RatingScale(1, 6),
        "naturalness": RatingScale(1, 6),
        "overall": RatingScale(1, 6),
    },
    frozenset({"fluency", "relevance"}): dict.fromkeys(
        ("coherence", "consistency", "fluency", "relevance", "overall"), _ONE_TO_FIVE
    ),
    frozenset({"consistency"}): {"consistency": RatingScale(0, 1)},
}


def attribute_columns(fields: Mapping[str, Any]) -> tuple[RatingColumn, ...]:
    """HelpSteer's five (0 to 4) or UltraFeedback's four (1 to 5) as columns of a record.

    Where columns of both stand side by side, the range of none is known.
    """
    present = [name for name in ATTRIBUTES if name in fields]
    if set(present) <= set(_HELPSTEER):
        scale: RatingScale | None = _ZERO_TO_FOUR
    else:
        scale = _ONE_TO_FIVE if set(present) <= set(_ULTRAFEEDBACK) else None
    return tuple(RatingColumn(name, name, scale) for name in present)


def ultrafeedback_columns(fields: Mapping[str, Any]) -> tuple[RatingColumn, ...]:
    """`overall_score` from 1 to 10, and the annotations from 1 to 5, of every completion."""
    return (
        RatingColumn("overall_score", "overall_score", RatingScale(1, 10)),
        *(RatingColumn(name, f"annotations.{name}", _ONE_TO_FIVE) for name in _ULTRAFEEDBACK),
    )


def unieval_columns(fields: Mapping[str, Any]) -> tuple[RatingColumn, ...]:
    """The axes in `scores`; their ranges are those of the set that has such axes."""
    axes = fields.get("scores")
    if not isinstance(axes, Mapping):
        return ()
    known = next((scales for marks, scales in _UNIEVAL.items() if marks <= axes.keys()), {})
    return tuple(RatingColumn(axis, f"scores.{axis}", known.get(axis)) for axis in axes)


def truthful_qa_columns(fields: Mapping[str, Any]) -> tuple[RatingColumn, ...]:
    """What the two judge models said, both from 0 to 1."""
    return (
        RatingColumn("truthful", "true", RatingScale(0, 1)),
        RatingColumn("informative", "info", RatingScale(0, 1)),
    )
