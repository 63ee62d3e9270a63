"""What goes into a selection rule and what comes out, for one prompt.

Every rule has one signature, `rule(scores, keys, lengths, other, *, its own options) -> Selection`,
on plain arrays in candidate order; a rule says which of the four columns it needs and ignores the
rest (votes use scores, where given, only to pick the representative). Rules on several objectives take
them as a fifth column, `objectives`. The checks live here, once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retrm.errors import DataError, RecipeError, ScoreError


@dataclass(frozen=True)
class Selection:
    """What a rule keeps for one prompt.

    Attributes:
        chosen: position of the kept candidate, 0..N-1; None = the vote abstained, because no
            candidate has an answer key.
        key: answer key of the kept candidate; None = it has none, or keys were not given.
        is_tie: several candidates (or answers) were equally good and their order decided.
        n_candidates: N.
        n_without_key: candidates whose key is None; 0 where keys were not given.
        is_fallback: the vote abstained and best_of_n, asked for as fallback, decided.
    """

    chosen: int | None
    key: str | None
    is_tie: bool
    n_candidates: int
    n_without_key: int
    is_fallback: bool = False


@dataclass(frozen=True)
class RuleSpec:
    """What a caller must know to use a rule.

    Attributes:
        function: the rule.
        needs: which of "scores", "keys", "lengths", "other" it cannot do without; or "objectives", a
            column of its own rules, (n, K).
        options: names of its own options, all keyword-only with defaults.
        is_vote: whether it can abstain.
        doc: one line for people.
    """

    function: Callable[..., Selection]
    needs: tuple[str, ...]
    options: tuple[str, ...]
    is_vote: bool
    doc: str


@dataclass(frozen=True)
class Candidates:
    """Checked columns of one prompt; a column that was not given is None."""

    n: int
    scores: np.ndarray | None
    keys: tuple[str | None, ...] | None
    lengths: np.ndarray | None
    other: np.ndarray | None

    @property
    def n_without_key(self) -> int:
        """Candidates that cannot vote."""
        return 0 if self.keys is None else sum(key is None for key in self.keys)

    def selection(self, chosen: int | None, is_tie: bool) -> Selection:
        """The result for candidate `chosen`."""
        key = None if chosen is None or self.keys is None else self.keys[chosen]
        return Selection(chosen, key, bool(is_tie), self.n, self.n_without_key)


def checked(
    scores: Sequence[float] | None,
    keys: Sequence[str | None] | None,
    lengths: Sequence[float] | None,
    other: Sequence[float] | None,
    *,
    needs: tuple[str, ...],
    n: int | None = None,
) -> Candidates:
    """The columns as arrays, after refusing what a rule cannot use.

    Args:
        scores: (N,) finite scores, or None.
        keys: (N,) canonical answers, None = no answer; or None.
        lengths: (N,) tokens of each response, 0 or more; or None.
        other: (N,) finite scores of a second scorer; or None.
        needs: the columns that must be there.
        n: candidates, where a column beside these four says it.

    Raises:
        RecipeError: a needed column is not given.
        ScoreError: a score is NaN or infinite; names its position.
        DataError: no candidates, columns of different length, a key that is not text, or a length
            that is negative or not finite.
    """
    given = {"scores": scores, "keys": keys, "lengths": lengths, "other": other}
    missing = [name for name in needs if given[name] is None]
    if missing:
        raise RecipeError(
            f"got no {' and no '.join(missing)}; this rule expected {', '.join(needs)}. Pass them, "
            "or choose a rule that does without."
        )
    sizes = {name: len(column) for name, column in given.items() if column is not None}
    sizes |= {} if n is None else {"objectives": n}
    if len(set(sizes.values())) > 1:
        raise DataError(
            f"got columns of different length, {sizes}; expected one entry a candidate."
        )
    n = next(iter(sizes.values()), 0)
    if n == 0:
        raise DataError("got no candidates; expected at least one for every prompt.")
    return Candidates(
        n, _scores(scores, "scores"), _keys(keys), _lengths(lengths), _scores(other, "other")
    )


def _scores(values: Sequence[float] | None, name: str) -> np.ndarray | None:
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        # argmax of NaN would choose the NaN silently.
        raise ScoreError(
            f"got {array[bad[0]]} at position {bad[0]} of {name}; expected finite scores. Find out "
            "why the scorer failed on that candidate, or leave the candidate out yourself."
        )
    return array


def _keys(values: Sequence[str | None] | None) -> tuple[str | None, ...] | None:
    if values is None:
        return None
    for position, key in enumerate(values):
        if key is not None and not isinstance(key, str):
            raise DataError(
                f"got key {key!r} at position {position}; expected text, or None where no answer "
                "was found. Bring answers to a canonical text first."
            )
    return tuple(values)


def _lengths(values: Sequence[float] | None) -> np.ndarray | None:
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(array) | (array < 0))
    if bad.size:
        raise DataError(
            f"got length {array[bad[0]]} at position {bad[0]}; expected the number of response "
            "tokens, 0 or more."
        )
    return array
