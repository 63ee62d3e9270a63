"""What scoring a file will take, before it starts: tokens, seconds, bytes.

Where a language model is read, tokens are counted by rendering and seconds follow from a trial; other
scorers judge the first chunk, and seconds grow with the characters.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from retrm.features.estimate import estimate_chunks
from retrm.features.read import Overlong
from retrm.records import Answer
from retrm.scorers.base import Scorer, SetScorer
from retrm.scorers.together import StateScorer, check_cuts


@dataclass(frozen=True)
class ScoreEstimate:
    """The cost of scoring.

    Attributes:
        n_answers: that are scored.
        n_skipped: over-long ones that are left out.
        n_truncated: whose prompt is cut on the left.
        n_tokens: that pass through the model, shared prompts counted once in a chunk; None where the
            scorer does not read states.
        tokens_per_s: of the trial; None where there was none.
        seconds: of all; None where the model lies on workers, or where a trial would ask a judge.
        memory_bytes: of features, at the peak, beside the model: one chunk, whatever the file's size.
    """

    n_answers: int
    n_skipped: int = 0
    n_truncated: int = 0
    n_tokens: int | None = None
    tokens_per_s: float | None = None
    seconds: float | None = 0.0
    memory_bytes: int = 0


def estimate_scoring(
    scorer: Scorer, chunks: Iterable[Sequence[Answer]], *, overlong: Overlong = "error"
) -> ScoreEstimate:
    """Estimate the scoring of a stream, which is read to its end; nothing is written.

    Args:
        scorer: that will judge.
        chunks: answers, some hundred at a time.
        overlong: policy for answers beyond the context.

    Raises:
        RetrmError: whatever the scoring would refuse.
    """
    check_cuts(scorer, overlong)
    if isinstance(scorer, StateScorer):
        reducers = {scorer.name: scorer.reducer}
        found = estimate_chunks(scorer.backbone, chunks, reducers, overlong=overlong)
        return ScoreEstimate(**asdict(found))
    if isinstance(scorer, SetScorer):  # a trial would cost calls
        return ScoreEstimate(sum(map(len, chunks)), seconds=None)
    n_answers = n_characters = 0
    rate = 0.0  # seconds a character
    for answers in chunks:
        own = sum(len(a.response) + sum(len(m.content) for m in a.prompt.messages) for a in answers)
        if not n_answers:
            started = time.perf_counter()
            scorer.score(answers)
            rate = (time.perf_counter() - started) / max(own, 1)
        n_answers += len(answers)
        n_characters += own
    return ScoreEstimate(n_answers, seconds=rate * n_characters)
