"""A cheap scorer for all candidates, and a judge where that one is not sure.

    contenders of a prompt = candidates whose cheap score is within MARGIN of the best
    one contender:   nothing is asked
    more:            the judge ranks them; they share their cheap scores out anew, in the judge's order

All other scores stay. So the judge's choice wins among the contenders, nobody overtakes who was not among
them, and scores keep the unit of the cheap scorer. Candidates that the judge does not tell apart stay in the
order of the cheap scorer. Two candidates are a preference pair: the judge is asked if their scores differ by
MARGIN or less.

    cascade:0.5,runs/elhsr,judge:MODEL?template=rm_r1
"""

import math
from collections.abc import Sequence

import numpy as np

from retrm.engines.base import Engine
from retrm.errors import RecipeError
from retrm.metrics.kernels import block_starts
from retrm.patience import without_password
from retrm.records import Answer
from retrm.scorers.base import Scorer, SetScorer, Summarised, check_scores, sets_of
from retrm.scorers.judge import PREFIX, open_judge
from retrm.scorers.open import open_scorer

CASCADE = "cascade:"


class CascadeScorer:
    """Implements `Scorer` and `SetScorer`.

    Attributes:
        n_sets: prompts with at least two candidates so far.
        n_asked: of them, those of which the judge was asked.
    """

    def __init__(
        self, cheap: Scorer, judge: SetScorer, *, margin: float, name: str = "cascade"
    ) -> None:
        """Put a judge behind a scorer.

        Args:
            cheap: scores all candidates.
            judge: compares the contenders.
            margin: in the unit of the cheap scores; 0 = only equal scores are judged, infinity = all.
            name: that tables show.

        Raises:
            RecipeError: a negative margin or none.
        """
        if math.isnan(margin) or margin < 0:
            raise RecipeError(
                f"got margin={margin}; expected 0 or more, in the unit of {cheap.name}'s scores"
            )
        self.cheap = cheap
        self.judge = judge
        self.margin = margin
        self.name = name
        self.n_sets = self.n_asked = 0

    @property
    def identity(self) -> str:
        """Of both scorers and the margin."""
        marks = [str(getattr(one, "identity", one.name)) for one in (self.cheap, self.judge)]
        return f"cascade {self.margin!r} {marks[0]} | {marks[1]}"

    def summary(self) -> str:
        """How often the judge was asked, and what it says of itself."""
        own = f"{self.name}: the judge was asked of {self.n_asked:,} of {self.n_sets:,} prompts"
        return f"{own}; {self.judge.summary()}" if isinstance(self.judge, Summarised) else own

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n,) scores; raises as both scorers do."""
        cheap = check_scores(self.cheap.score(answers), answers, self.cheap.name)
        return self._rescored(answers, cheap, sets_of(answers))

    def score_sets(self, sets: Sequence[Sequence[Answer]]) -> list[np.ndarray]:
        """Scores of each set; raises as both scorers do."""
        answers = [answer for some in sets for answer in some]
        if not answers:
            return [np.zeros(0) for _ in sets]
        cheap = check_scores(self.cheap.score(answers), answers, self.cheap.name)
        ends = np.cumsum([len(some) for some in sets])
        rows = [
            list(range(end - len(some), end)) for some, end in zip(sets, ends.tolist(), strict=True)
        ]
        scores = self._rescored(answers, cheap, rows)
        return [scores[some] for some in rows]

    def _rescored(
        self, answers: Sequence[Answer], cheap: np.ndarray, sets: Sequence[Sequence[int]]
    ) -> np.ndarray:
        scores = cheap.copy()
        asked = []
        for rows in sets:
            near = [row for row in rows if cheap[row] >= cheap[rows].max() - self.margin]
            self.n_sets += len(rows) > 1
            if len(near) > 1:
                asked.append(near)
        self.n_asked += len(asked)
        if asked:
            found = self.judge.score_sets([[answers[row] for row in near] for near in asked])
            for near, judged in zip(asked, found, strict=True):
                scores[near] = shared_out(cheap[near], judged)
        return scores


def shared_out(cheap: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """The cheap scores of candidates in the order of the judge's; what it ties stays in its own order.

    Candidates that neither tells apart share the mean of their places. Where equal cheap scores could not
    show what the judge says, the better one is moved up by the smallest step of floating point.

    >>> shared_out(np.array([3.0, 2.0, 1.0]), np.array([0.0, 1.0, 1.0]))
    array([1., 3., 2.])
    """
    order = np.lexsort((cheap, judged))
    starts = block_starts(judged[order], cheap[order])
    means = np.add.reduceat(np.sort(cheap), starts) / np.diff(np.append(starts, len(cheap)))
    for place in range(1, len(means)):
        means[place] = max(means[place], np.nextafter(means[place - 1], np.inf))
    out = np.empty_like(cheap)
    out[order] = np.repeat(means, np.diff(np.append(starts, len(cheap))))
    return out


def open_cascade(
    spec: str, *, model: str | None = None, device: str = "cpu", engine: Engine | None = None
) -> CascadeScorer:
    """The scorer of ``cascade:MARGIN,SCORER,judge:...``.

    Args:
        spec: what a person types.
        model: as for `open_scorer`, of the cheap scorer.
        device: for models here.
        engine: whose workers load backbones.

    Raises:
        RecipeError: unreadable.
        RetrmError: as `open_scorer` and `open_judge`.
    """
    head, comma, judge = spec.removeprefix(CASCADE).partition(f",{PREFIX}")
    margin, second, cheap = head.partition(",")
    try:
        width = float(margin)
    except ValueError:
        width = math.nan
    if not comma or not second or not cheap or math.isnan(width):
        raise RecipeError(
            f"got {without_password(spec)}; expected cascade:MARGIN,SCORER,judge:MODEL?..., for example "
            "cascade:0.5,runs/elhsr,judge:smollm2-135m?template=rm_r1"
        )
    return CascadeScorer(
        open_scorer(cheap, model=model, device=device, engine=engine),
        open_judge(PREFIX + judge, device=device, engine=engine),
        margin=width,
        name=without_password(spec),
    )
