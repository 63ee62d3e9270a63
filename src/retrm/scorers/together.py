"""Several scorers on the same answers: each backbone reads an answer once, whoever asks.

Heads on one backbone, and the log-probability of that backbone, are recipes of the same pass. Other
scorers are asked one after the other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import numpy as np

from retrm.backbone.base import Backbone
from retrm.errors import DataError, RecipeError
from retrm.features.read import Overlong, Reading, read_chunks
from retrm.features.reduce import Features, Reducer
from retrm.records import Answer, check_overlong
from retrm.scorers.base import Judgement, LimitedScorer, Scorer, SetScorer, check_scores


@runtime_checkable
class StateScorer(Protocol):
    """A scorer of what a backbone computes while it reads."""

    name: str
    backbone: Backbone
    reducer: Reducer

    def of_features(self, features: Features) -> np.ndarray:
        """(n,) scores of features that `reducer` made."""
        ...


def groups_of(scorers: Mapping[str, Scorer]) -> list[dict[str, Scorer]]:
    """Scorers that share a reading, by name; each other scorer is alone."""
    groups: dict[int, dict[str, Scorer]] = {}
    for name, scorer in scorers.items():
        key = id(scorer.backbone) if isinstance(scorer, StateScorer) else id(scorer)
        groups.setdefault(key, {})[name] = scorer
    return list(groups.values())


def judge_chunks(
    group: Mapping[str, Scorer],
    chunks: Iterable[Sequence[Answer]],
    *,
    overlong: Overlong = "error",
) -> Iterator[dict[str, Judgement]]:
    """What a group of `groups_of` says of each chunk of a stream, in order.

    Args:
        group: by name.
        chunks: answers, some hundred at a time.
        overlong: what to do with answers beyond the context of a backbone.

    Raises:
        OverlongError, RenderError, ScoreError: naming the record, when its chunk is asked for.
        RecipeError: `overlong` is not "error" and a scorer knows no longest answer.
    """
    check_overlong(overlong)
    first = next(iter(group.values()))
    if isinstance(first, StateScorer):
        yield from _read_together(cast(Mapping[str, StateScorer], group), chunks, overlong)
        return
    ((name, scorer),) = group.items()
    for chunk in _whole_sets(chunks, name) if isinstance(scorer, SetScorer) else chunks:
        if isinstance(scorer, LimitedScorer):
            found = scorer.judge(chunk, overlong=overlong)
        else:
            found = Judgement.plain(check_scores(scorer.score(chunk), chunk, name))
        yield {name: found}


def _whole_sets(chunks: Iterable[Sequence[Answer]], name: str) -> Iterator[Sequence[Answer]]:
    """The chunks, each with all candidates of its prompts.

    Raises:
        DataError: candidates of a prompt stand in two chunks.
    """
    seen: set[str] = set()
    for chunk in chunks:
        own = {answer.prompt.key for answer in chunk}
        if again := seen & own:
            where = next(a.where for a in chunk if a.prompt.key in again)
            raise DataError(
                f"{where or 'an answer'}: other candidates of its prompt came long before, and {name} "
                "compares candidates with one another; expected them together. Put the answers to a "
                "prompt into one record"
            )
        seen |= own
        yield chunk


def judge_all(
    scorers: Mapping[str, Scorer], answers: Sequence[Answer], *, overlong: Overlong = "error"
) -> dict[str, Judgement]:
    """What several scorers say of the same answers, each backbone reading them once.

    Args:
        scorers: by name.
        answers: to judge, all in memory.
        overlong: what to do with answers beyond the context.

    Raises:
        OverlongError, RenderError, ScoreError: naming the record.
        RecipeError: `overlong` is not "error" and a scorer knows no longest answer.
    """
    for scorer in scorers.values():
        check_cuts(scorer, overlong)
    found: dict[str, Judgement] = {}
    for group in groups_of(scorers):
        (judgements,) = judge_chunks(group, [answers], overlong=overlong)
        found |= judgements
    return {name: found[name] for name in scorers}


def _read_together(
    group: Mapping[str, StateScorer], chunks: Iterable[Sequence[Answer]], overlong: Overlong
) -> Iterator[dict[str, Judgement]]:
    owners = _feature_owners(group)
    reducers = {name: group[name].reducer for name in owners.values()}
    readings = read_chunks(
        next(iter(group.values())).backbone,
        chunks,
        {name: reducer.recipe for name, reducer in reducers.items()},
        reducers=reducers,
        overlong=overlong,
    )
    for rows, reading in readings:
        yield {
            name: judged(name, scorer, rows, reading, features=owners[name])
            for name, scorer in group.items()
        }


def _feature_owners(group: Mapping[str, StateScorer]) -> dict[str, str]:
    """Whose features serve each scorer: members of an ensemble mostly read the very same."""
    owners: dict[str, str] = {}
    for name, scorer in group.items():
        same = (k for k in owners.values() if reads_alike(group[k].reducer, scorer.reducer))
        owners[name] = next(same, name)
    return owners


def reads_alike(one: Reducer, other: Reducer) -> bool:
    """Whether two reducers of one backbone make the same features."""
    return one.recipe == other.recipe and (
        one.bases.keys() == other.bases.keys()
        and all(one.bases[p].basis.equal(other.bases[p].basis) for p in one.bases)
    )


def judged(
    name: str,
    scorer: StateScorer,
    rows: Sequence[Answer],
    reading: Reading,
    *,
    features: str | None = None,
) -> Judgement:
    """What a scorer says of answers that were read.

    Args:
        name: of the scorer.
        scorer: that judges.
        rows: all answers, those left out among them.
        reading: of these answers.
        features: name of its features in the reading; None = its own.

    Raises:
        ScoreError: a score is not finite; the record is named.
    """
    found = scorer.of_features(reading.features[features or name])
    check_scores(found, [rows[i] for i in reading.rows], name)
    return Judgement(
        scores=_spread(found, reading.rows, len(rows), np.nan),
        n_tokens=_spread(reading.lengths, reading.rows, len(rows), 0),
        is_cut=_spread(reading.is_cut, reading.rows, len(rows), False),
    )


def _spread(values: np.ndarray, rows: np.ndarray, n: int, missing: float) -> np.ndarray:
    whole = np.full(n, missing, dtype=values.dtype)
    whole[rows] = values
    return whole


def check_cuts(scorer: Scorer, overlong: Overlong) -> None:
    """Refuse a policy that the scorer does not have.

    Raises:
        RecipeError: anything but `error` for a scorer that knows no longest answer.
    """
    if overlong != "error" and not isinstance(scorer, StateScorer | LimitedScorer):
        raise RecipeError(
            f"--overlong {overlong} is for scorers with a backbone; {scorer.name} does not cut or "
            "skip answers"
        )
