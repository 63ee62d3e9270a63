"""Scores less what the length of an answer predicts of them, learnt once on a reference set.

    s'(x, y) = s(x, y) - f(len y),    f = E[s | len] on the reference set

`smooth`: f is a local linear fit (tricube weights over the nearest half of the answers) at knots that
are quantiles of the lengths, with straight lines between them. `linear`: one straight line; length bias is
rather flatter for long answers, so take it to compare. Outside the lengths of the reference set f keeps
the value of the nearest end: it is never extrapolated, and how many answers lie there can be asked.

The curve is fitted on all prompts together, so it also takes out what length says about the prompt; within
a prompt only differences of f matter. It is learnt from scores alone: a scorer that rightly prefers longer
answers loses that, too. Lengths are characters, the one length that every answer has.

Sources: arXiv 2409.17407 (calibration after training); Cleveland 1979 (local regression).

    >>> from retrm.scorers.length_calibrated import LengthCurve
    >>> curve = LengthCurve.fit([100, 200, 300, 400], [0.1, 0.5, 0.4, 1.0], shape="linear")
    >>> [round(float(s - f), 2) for s, f in zip([0.1, 1.0], curve.at([100, 400]))]
    [-0.01, 0.11]
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np

from retrm.errors import ArtifactError, FitError, RecipeError, ScoreError, did_you_mean
from retrm.files import write_json
from retrm.records import Answer
from retrm.scorers.base import Judgement, Scorer
from retrm.scorers.together import judge_all

Shape = Literal["smooth", "linear"]
FORMAT_VERSION = 1
KIND = "length_calibration"
N_KNOTS = 33
SPAN = 0.5  # share of the answers that a local fit looks at
FEWEST = {"smooth": 30, "linear": 3}


@dataclass(frozen=True)
class LengthCurve:
    """What a length predicts of a score.

    Attributes:
        knots: lengths in characters, ascending; the first and the last are the range of the reference
            set.
        values: the curve at the knots.
        shape: how it was fitted.
        n_answers: of the reference set.
    """

    knots: tuple[float, ...]
    values: tuple[float, ...]
    shape: Shape
    n_answers: int

    def __post_init__(self) -> None:
        numbers = np.array([self.knots, self.values], dtype=np.float64)
        if (
            numbers.shape[1] < 2
            or not np.isfinite(numbers).all()
            or (np.diff(numbers[0]) <= 0).any()
        ):
            raise ArtifactError(
                f"got a length curve with knots {self.knots[:3]}...; expected two or more finite ones that "
                "ascend, with a value each. Fit it again"
            )

    @classmethod
    def fit(
        cls, lengths: Sequence[float], scores: Sequence[float], *, shape: Shape = "smooth"
    ) -> Self:
        """The curve of a reference set.

        Args:
            lengths: (n,) of the answers, characters.
            scores: (n,) raw scores of the same answers.
            shape: `smooth` or `linear`.

        Raises:
            RecipeError: unknown shape.
            FitError: too few answers, or all of one length.
            ScoreError: a score or length is not finite, or there is not one each.
        """
        x, y = (np.asarray(column, dtype=np.float64) for column in (lengths, scores))
        if x.shape != y.shape or x.ndim != 1 or not np.isfinite([x, y]).all():
            raise ScoreError(
                f"got {x.shape} lengths and {y.shape} scores; expected one finite number each for every "
                "answer"
            )
        check_reference(x, shape)
        if shape == "linear":
            knots = np.array([x.min(), x.max()])
            values = _line(x, y, np.ones_like(x), knots)
        else:
            knots = np.unique(np.quantile(x, np.linspace(0, 1, N_KNOTS)))
            values = np.array([_local(x, y, knot) for knot in knots])
        return cls(tuple(knots.tolist()), tuple(values.tolist()), shape, len(x))

    def at(self, lengths: Sequence[float]) -> np.ndarray:
        """(n,) the curve at these lengths; beyond an end, the value of that end."""
        return np.interp(np.asarray(lengths, dtype=np.float64), self.knots, self.values)

    def n_outside(self, lengths: Sequence[float]) -> int:
        """How many of these lengths the reference set did not reach."""
        x = np.asarray(lengths, dtype=np.float64)
        return int(((x < self.knots[0]) | (x > self.knots[-1])).sum())


def check_reference(lengths: Sequence[float] | np.ndarray, shape: str) -> None:
    """Refuse what no curve can be fitted to; needs no scores.

    Args:
        lengths: (n,) of the answers, characters.
        shape: `smooth` or `linear`.

    Raises:
        RecipeError: unknown shape.
        FitError: too few answers, or all of one length.
    """
    if shape not in get_args(Shape):
        raise RecipeError(
            f"got shape {shape!r}; expected one of {', '.join(get_args(Shape))}. "
            + did_you_mean(str(shape), get_args(Shape))
        )
    n_lengths = len(np.unique(np.asarray(lengths, dtype=np.float64)))
    if len(lengths) < FEWEST[shape] or n_lengths < 2:
        raise FitError(
            f"got {len(lengths)} answers of {n_lengths} different lengths; a {shape} length curve "
            f"expected at least {FEWEST[shape]} answers and two lengths. Bring a larger reference set"
            + (", or use --shape linear" if shape == "smooth" and n_lengths > 1 else "")
        )


def _local(x: np.ndarray, y: np.ndarray, knot: float) -> float:
    """Weighted line through the nearest answers, read at the knot."""
    distance = np.abs(x - knot)
    nearest = max(2, int(np.ceil(SPAN * len(x))))
    # Just beyond the last of them, or its own weight would be 0; never 0 where half are of one length.
    reach = max(np.partition(distance, nearest - 1)[nearest - 1] * (1 + 1e-9), 1e-9)
    weights = np.clip(1 - (distance / reach) ** 3, 0, None) ** 3
    return float(_line(x, y, weights, np.array([knot]))[0])


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Weighted least-squares line at some places; a level where the places do not differ."""
    shares = weights / weights.sum()
    mean_x, mean_y = shares @ x, shares @ y
    variance = shares @ (x - mean_x) ** 2
    if variance <= 1e-12 * max(mean_x**2, 1.0):
        return np.full(len(at), mean_y)
    slope = shares @ ((x - mean_x) * (y - mean_y)) / variance
    return mean_y + slope * (at - mean_x)


class LengthCalibratedScorer:
    """A scorer less its length curve; implements `Scorer` and `LimitedScorer`."""

    def __init__(self, scorer: Scorer, curve: LengthCurve, *, name: str | None = None) -> None:
        self.scorer = scorer
        self.curve = curve
        self.name = name or f"{scorer.name} less length"
        inner = identity_of_scorer(scorer)
        if inner:
            self.identity = f"length {_hash([inner, asdict(curve)])}"

    @classmethod
    def fit(cls, scorer: Scorer, answers: Sequence[Answer], *, shape: Shape = "smooth") -> Self:
        """Score a reference set and learn its curve.

        Raises:
            FitError, ScoreError, RecipeError: as `LengthCurve.fit`, or as the scorer does.
        """
        scores = judge_all({scorer.name: scorer}, answers)[scorer.name].scores
        return cls(scorer, LengthCurve.fit(lengths_of(answers), scores, shape=shape))

    def judge(self, answers: Sequence[Answer], *, overlong: str = "error") -> Judgement:
        """Scores and flags.

        Raises:
            OverlongError, RenderError, ScoreError: naming the record.
            RecipeError: a policy that the scorer does not have.
        """
        name = self.scorer.name
        found = judge_all({name: self.scorer}, answers, overlong=overlong)[name]  # type: ignore[arg-type]
        scores = found.scores - self.curve.at(lengths_of(answers))
        return Judgement(scores, found.n_tokens, found.is_cut)

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n,) float64; raises as `judge`."""
        return self.judge(answers).scores

    def save(self, path: str | Path, spec: str, *, source: str = "") -> None:
        """A JSON file that `calibrated:FILE` opens.

        Args:
            path: of the file.
            spec: what opens the scorer, for example its folder.
            source: name of the reference set, as provenance.

        Raises:
            OutputError: it cannot be written.
        """
        facts = {
            "format_version": FORMAT_VERSION,
            "kind": KIND,
            "scorer": spec,
            "scorer_identity": identity_of_scorer(self.scorer),
            "unit": "characters",
            "source": source,
            **asdict(self.curve),
        }
        write_json(Path(path), facts)


@dataclass(frozen=True)
class StoredCalibration:
    """What a file of `LengthCalibratedScorer.save` says.

    Attributes:
        scorer: what opens the scorer.
        scorer_identity: of the scorer whose curve it is; "" = it has none.
        curve: to take off.
    """

    scorer: str
    scorer_identity: str
    curve: LengthCurve

    @classmethod
    def load(cls, path: Path) -> Self:
        """From the file.

        Raises:
            ArtifactError: missing, damaged, of another kind or version.
        """
        if not path.is_file():
            raise ArtifactError(
                f"there is no file {path}; expected a length calibration, written by retrm calibrate"
            )
        try:
            stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
            kind, version = stored["kind"], stored["format_version"]
            if (kind, version) != (KIND, FORMAT_VERSION):
                raise ArtifactError(
                    f"{path} is {kind!r} of version {version!r}; this retrm reads {KIND!r} of version "
                    f"{FORMAT_VERSION}. Fit it again"
                )
            curve = LengthCurve(
                *(tuple(map(float, stored[key])) for key in ("knots", "values")),
                shape=stored["shape"],
                n_answers=int(stored["n_answers"]),
            )
            return cls(str(stored["scorer"]), str(stored["scorer_identity"]), curve)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{path} is damaged ({error}); fit it again") from error

    def attached(self, scorer: Scorer, *, name: str) -> LengthCalibratedScorer:
        """The calibrated scorer.

        Raises:
            ArtifactError: the scorer is not the one whose curve this is.
        """
        got = identity_of_scorer(scorer)
        if got != self.scorer_identity:
            raise ArtifactError(
                f"{name} holds the length curve of another {self.scorer}: identity {got or 'none'}, it was "
                f"fitted on {self.scorer_identity or 'none'}. Fit the curve again on this scorer"
            )
        return LengthCalibratedScorer(scorer, self.curve, name=name)


def identity_of_scorer(scorer: Scorer) -> str:
    """By which a scorer knows itself again; "" where it has none."""
    return str(getattr(scorer, "identity", ""))


def lengths_of(answers: Sequence[Answer]) -> np.ndarray:
    """(n,) characters of each response."""
    return np.array([len(answer.response) for answer in answers], dtype=np.float64)


def _hash(facts: Any) -> str:
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
