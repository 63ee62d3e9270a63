"""Solutions judged step by step, as one scorer: min:SCORER, product:SCORER, mean:SCORER, last:SCORER.

A solution is split at blank lines; step i is judged by the score s_i of the text that ends with it. With
p_i = sigmoid(s_i), which a scorer trained on right and wrong steps means as a probability:

    min       min_i s_i                          the weakest step; the same order as min_i p_i
    product   sum_i log p_i = log prod_i p_i     all steps right, if they were independent
    mean      1/k sum_i p_i
    last      s_k                                what the whole is worth; no step is asked alone

All but the mean are unbounded. Products fall with the number of steps: short solutions are favoured.
Sources: Lightman et al., arXiv 2305.20050 (product, min); Wang et al., arXiv 2312.08935 (min).

    >>> import numpy as np
    >>> float(np.round(aggregated(np.array([0.0, 2.0]), "product"), 6))
    -0.820075
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from retrm.data.stepwise import SEPARATOR, beginnings
from retrm.errors import RecipeError, did_you_mean
from retrm.records import Answer
from retrm.scorers.base import Judgement, Scorer
from retrm.scorers.together import judge_all

StepRule = Literal["min", "product", "mean", "last"]


def aggregated(scores: np.ndarray, rule: StepRule) -> float:
    """One score of a solution.

    Args:
        scores: (k,) of its steps in order; one NaN (left out) leaves the solution out.
        rule: `min`, `product`, `mean` or `last`.

    Raises:
        RecipeError: unknown rule, or no step.
    """
    check_rule(rule)
    if not len(scores):
        raise RecipeError("got a solution without steps; expected one or more")
    if np.isnan(scores).any():
        return float("nan")
    if rule == "last":
        return float(scores[-1])
    if rule == "min":
        return float(np.min(scores))
    logs = -np.logaddexp(0.0, -np.asarray(scores, dtype=np.float64))
    return float(logs.sum() if rule == "product" else np.exp(logs).mean())


def check_rule(rule: str) -> None:
    """Refuse a rule that is none.

    Raises:
        RecipeError: the message offers the nearest.
    """
    if rule not in get_args(StepRule):
        raise RecipeError(
            f"got the rule {rule!r} for steps; expected one of {', '.join(get_args(StepRule))}. "
            + did_you_mean(str(rule), get_args(StepRule))
        )


def steps_of(text: str, separator: str = SEPARATOR) -> list[str]:
    """The steps of a solution; blank ones belong to the step before."""
    parts = [part for part in text.split(separator) if part.strip()]
    return parts or [text]


class StepScorer:
    """Scores every step by `scorer`, and the solution by `rule`."""

    def __init__(self, scorer: Scorer, rule: StepRule, *, name: str = "steps") -> None:
        check_rule(rule)
        self.scorer = scorer
        self.rule: StepRule = rule
        self.name = name
        known = getattr(scorer, "identity", None)
        if isinstance(known, str):
            total = hashlib.sha256(f"{rule} {known}".encode()).hexdigest()
            self.identity = f"steps {total[:16]}"

    def step_scores(
        self, answers: Sequence[Answer], *, overlong: str = "error"
    ) -> list[np.ndarray]:
        """The (k,) raw scores of the steps of each answer; raises as `judge`."""
        return self._judged(answers, overlong)[0]

    def judge(self, answers: Sequence[Answer], *, overlong: str = "error") -> Judgement:
        """Scores of solutions; one with a step that is left out is left out.

        Raises:
            OverlongError, RenderError, ScoreError: naming the record.
        """
        steps, judged, owners = self._judged(answers, overlong)
        scores = np.array([aggregated(one, self.rule) for one in steps])
        is_cut = np.zeros(len(answers), dtype=bool)
        np.logical_or.at(is_cut, owners, judged.is_cut)
        n_tokens = None
        if judged.n_tokens is not None:
            n_tokens = np.zeros(len(answers), dtype=np.int64)
            np.add.at(n_tokens, owners, judged.n_tokens)
        return Judgement(scores, n_tokens, is_cut)

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n,) float64; raises as `judge`."""
        return self.judge(answers).scores

    def _judged(
        self, answers: Sequence[Answer], overlong: str
    ) -> tuple[list[np.ndarray], Judgement, np.ndarray]:
        texts = [
            [answer.response] if self.rule == "last" else beginnings(steps_of(answer.response))
            for answer in answers
        ]
        parts = [
            Answer(answer.prompt, text, answer.prompt_id, where=answer.where)
            for answer, own in zip(answers, texts, strict=True)
            for text in own
        ]
        owners = np.repeat(np.arange(len(answers)), [len(own) for own in texts])
        (judged,) = judge_all({"steps": self.scorer}, parts, overlong=overlong).values()  # type: ignore[arg-type]
        return [judged.scores[owners == i] for i in range(len(answers))], judged, owners
