"""Best-of-N: keep the candidate with the highest score.

    chosen = argmax_i s_i          ties: the first seen, and counted

Source: common practice; the evaluation of ELHSR/SWIFT (arXiv 2505.12225). It does not change under
increasing maps of the scores. More candidates can hurt when the scorer is imperfect: look at the
curve of `retrm.metrics.expected_best_of_k`, not at its end.

    >>> from retrm.selection import best_of_n
    >>> best_of_n([0.1, 2.0, -1.0]).chosen
    1
"""

from collections.abc import Sequence

from retrm.selection.candidates import Selection, checked


def best_of_n(
    scores: Sequence[float] | None = None,
    keys: Sequence[str | None] | None = None,
    lengths: Sequence[float] | None = None,
    other: Sequence[float] | None = None,
) -> Selection:
    """The top-scored candidate; needs scores.

    Args:
        scores: (N,) finite scores, higher is better.
        keys: (N,) answers, only reported.
        lengths: not used.
        other: not used.

    Raises:
        ScoreError: a score is NaN or infinite.
        RecipeError, DataError: as `retrm.selection.candidates.checked`.
    """
    given = checked(scores, keys, lengths, other, needs=("scores",))
    best = int(given.scores.argmax())
    return given.selection(best, (given.scores == given.scores[best]).sum() > 1)
