"""What one record says: answers, and labels, pairs and ranked lists over them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from retrm.data.rating_columns import WantedRatings
from retrm.errors import DataError
from retrm.records import Answer, Pair, RankedList, RatingScale

Sign = Literal["negative_first", "positive_first"]
Shape = Literal["one", "list", "named"]
T = TypeVar("T")
Drop = Literal["identical", "different_prompts", "other_filter"]


@dataclass(frozen=True)
class Options:
    """What a record cannot say about itself.

    Attributes:
        attribute: the objective to take from records that are rated on several.
        strength_sign: which side a negative strength prefers; sets differ.
        ratings: the objectives whose ratings are read, beside labels and preferences; None = none.
    """

    attribute: str | None = None
    strength_sign: Sign | None = None
    ratings: WantedRatings | None = None


NO_OPTIONS = Options()


@dataclass(frozen=True)
class Parsed:
    """What one record says. Relations name its own answers, counted from 0.

    Attributes:
        format: name of the format it was read as.
        answers: its answers, in the order of the record.
        labels: one an answer; NaN = not labelled.
        is_labelled: whether the format has labels at all, so that NaN means a missing one.
        pairs: preferences.
        ranked: ranked lists; a tie of two answers is a list of equal ranks.
        gold: the reference answer of the prompt.
        are_samples: whether equal answers are draws of a sampler, each a row of its own.
        score_shape: how scores go back into the record: `one` number, a `list`, or `named` numbers.
        score_fields: the names, for `named`.
        drop: why the record can give no relation, if so; its answers can still be scored.
        counts: what was set aside in it, by reason.
        ratings: by objective, one an answer, from 0 to 1; NaN = not rated.
        scales: by objective, what the raters' own numbers were, where the record has them.
    """

    format: str
    answers: tuple[Answer, ...]
    labels: tuple[float, ...]
    is_labelled: bool = False
    pairs: tuple[Pair, ...] = ()
    ranked: tuple[RankedList, ...] = ()
    gold: str | None = None
    are_samples: bool = False
    score_shape: Shape = "one"
    score_fields: tuple[str, ...] = ()
    drop: Drop | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    ratings: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    scales: Mapping[str, RatingScale] = field(default_factory=dict)

    def score_value(self, scores: Sequence[float]) -> float | list[float] | dict[str, float]:
        """`scores` of the answers in the shape that belongs under the record's `score` column.

        Raises:
            DataError: another number of scores than answers.
        """
        return self.placed([float(score) for score in scores])

    def placed(self, values: Sequence[T]) -> T | list[T] | dict[str, T]:
        """One value an answer in the shape of the record's scores.

        Raises:
            DataError: another number of values than answers.
        """
        if len(values) != len(self.answers):
            raise DataError(
                f"{self.answers[0].where}: got {len(values)} scores; expected {len(self.answers)}, "
                "one for each answer of the record"
            )
        if self.score_shape == "named":
            return dict(zip(self.score_fields, values, strict=True))
        return list(values) if self.score_shape == "list" else values[0]
