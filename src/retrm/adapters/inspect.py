"""Inspect: any of our scorers as an Inspect scorer, and the best of N epochs of any log.

    inspect score LOG --scorer retrm/reward -S model=runs/elhsr

Inspect finds `retrm/reward` by itself where both are installed. What is judged is the last assistant
turn, after the rules of `data.inspect_log`. A sample that has no answer to judge, or one that is too
long, is left unscored with the reason; it is never a 0.

Made for inspect_ai 0.3.285.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from anyio.to_thread import run_sync
    from inspect_ai.log import EvalLog, read_eval_log
    from inspect_ai.scorer import Score, Target, mean, scorer, stderr
    from inspect_ai.scorer import Scorer as InspectScorer
    from inspect_ai.solver import TaskState
except ImportError as error:
    from retrm.errors import MissingExtraError

    raise MissingExtraError(
        "retrm.adapters.inspect needs the package inspect-ai, which is not installed. "
        "Run: pip install 'retrm[inspect]'"
    ) from error

from retrm.adapters.judge import Judge, score_of
from retrm.data.inspect_log import parse_inspect
from retrm.data.inspect_samples import samples_of
from retrm.data.load import build_table
from retrm.data.parsed import Options
from retrm.data.read import Record
from retrm.errors import DataError, OverlongError, RefusedError
from retrm.patience import without_password
from retrm.records import Answer
from retrm.scorers.base import Scorer
from retrm.scorers.open import open_scorer
from retrm.selection import apply
from retrm.service.client import Reward

_BAD_INPUT = 400  # what a server answers to an answer that it cannot judge


@scorer(metrics=[mean(), stderr()])
def reward(model: str, backbone: str | None = None, device: str = "cpu") -> InspectScorer:
    """Our raw score of each sample's answer: unbounded, higher is better.

    Args:
        model: a folder made by retrm fit, retrm:URL for a server, or any other name of a scorer.
        backbone: where the backbone of a folder lies now.
        device: of the backbone.
    """
    judge = Judge(model, backbone=backbone, device=device)

    async def score(state: TaskState, target: Target) -> Score:
        try:
            answer = _answer_of(state)
            # In a thread, not awaited: Inspect may run on another event loop than asyncio's.
            (found,) = await run_sync(judge.rewards, [answer])
        except (DataError, OverlongError, RefusedError) as error:
            if isinstance(error, RefusedError) and error.status != _BAD_INPUT:
                raise
            return Score.unscored(reason="scoring_failed", explanation=str(error))
        return Score(
            value=score_of(found), answer=answer.response, metadata=_metadata(found, model)
        )

    return score


def _metadata(found: Reward, model: str) -> dict[str, Any]:
    told = {"tokens": found.num_tokens, "head_id": found.head_id, "warnings": list(found.warnings)}
    known = {name: value for name, value in told.items() if value}
    return {"model": without_password(model), "truncated": found.truncated, **known}


def _answer_of(state: TaskState) -> Answer:
    messages = [message.model_dump(mode="json") for message in state.messages]
    sample = {"id": state.sample_id, "epoch": state.epoch, "messages": messages, "scores": {}}
    where = f"sample {state.sample_id!r} epoch {state.epoch}"
    return parse_inspect(Record(sample, where), Options()).answers[0]


@dataclass(frozen=True)
class Kept:
    """The candidate that a scorer keeps of a sample's epochs.

    Attributes:
        sample_id: of the log, as text.
        response: the kept answer.
        position: of it among the sample's epochs, in the order of the log, from 0.
        score: its raw score.
        scores: of all epochs.
        label: 1 right, 0 wrong, by the log's own scorer; NaN = not known.
        labels: of all epochs.
    """

    sample_id: str
    response: str
    position: int
    score: float
    scores: tuple[float, ...]
    label: float
    labels: tuple[float, ...]


def best_of_n(
    log: EvalLog | str | Path, by: Scorer | str, *, labels_of: str | None = None
) -> tuple[Kept, ...]:
    """The best-scored epoch of every sample; equal scores keep the earlier.

    Args:
        log: with samples, or where it lies (.eval or .json).
        by: a scorer, or the name of one.
        labels_of: which of the log's scorers says what is right; None = its only one.

    Raises:
        DataError: the log has no samples, or one of them no answer.
        ScoreError: a score is no finite number.
    """
    made = log if isinstance(log, EvalLog) else read_eval_log(log, resolve_attachments="full")
    name = made.location or "log"
    samples = [_plain(sample) for sample in made.samples or ()]
    records = (Record(*s) for s in samples_of({"status": made.status, "samples": samples}, name))
    table = build_table(records, format="inspect", attribute=labels_of, name=name)
    scores = (open_scorer(by) if isinstance(by, str) else by).score(table.answers)
    chosen = apply("best_of_n", [a.prompt_id for a in table.answers], scores=list(scores))
    kept = dict(zip(chosen.prompt_ids, chosen.rows, strict=True))
    return tuple(
        _kept(table.answers, scores, table.labels, group.rows, kept[group.prompt_id])
        for group in table.candidate_sets()
    )


def _plain(sample: Any) -> dict[str, Any]:
    fields = {"id", "epoch", "input", "target", "messages", "output", "scores", "error"}
    return {**sample.model_dump(mode="json", include=fields), "attachments": sample.attachments}


def _kept(
    answers: Sequence[Answer], scores: Any, labels: Any, rows: Sequence[int], row: int | None
) -> Kept:
    assert row is not None  # best_of_n never abstains
    return Kept(
        sample_id=answers[row].prompt_id,
        response=answers[row].response,
        position=list(rows).index(row),
        score=float(scores[row]),
        scores=tuple(float(scores[r]) for r in rows),
        label=float(labels[row]),
        labels=tuple(float(labels[r]) for r in rows),
    )
