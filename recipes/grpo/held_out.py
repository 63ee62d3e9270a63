"""What a policy answers to questions that its training did not see: scores, right answers, tokens.

The same questions are answered before and after a training, with the same seed, and judged by the same frozen
scorer. Intervals resample questions, and the difference is paired by question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from retrm.backbone.fingerprint import fingerprint_model
from retrm.backbone.generate import sample
from retrm.backbone.render import ChatRenderer
from retrm.backbone.states import TransformersBackbone
from retrm.data.grade import extract_key, is_correct
from retrm.data.problems import Problem
from retrm.metrics import clustered_bootstrap, mean_statistic, paired_difference
from retrm.records import Answer
from retrm.scorers.base import Scorer
from retrm.scorers.policy_states import same_order

DIGITS = 5


@dataclass(frozen=True)
class HeldOut:
    """Answers of a policy at one moment, a row each, question by question.

    Attributes:
        answers: what it drew.
        correct: whether the last number or option is the right one.
        scores: by the frozen scorer.
    """

    answers: list[Answer]
    correct: np.ndarray
    scores: np.ndarray

    @property
    def prompt_ids(self) -> list[str]:
        """Of the rows."""
        return [answer.prompt_id for answer in self.answers]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What is compared, (n,) each."""
        return {
            "score": self.scores,
            "correct": self.correct,
            "tokens": np.array([len(answer.response_ids or ()) for answer in self.answers], float),
            "finished": np.array([bool(answer.finished) for answer in self.answers], float),
        }


def readable(policy: nn.Module, tokenizer: Any) -> TransformersBackbone:
    """What can be sampled from, also when the training has changed the weights or put LoRA into the policy."""
    renderer = ChatRenderer(tokenizer)
    fingerprint = fingerprint_model(policy, tokenizer, renderer.template_text)
    return TransformersBackbone(policy, renderer, fingerprint, "the policy")


def drawn(
    policy: TransformersBackbone,
    problems: Sequence[Problem],
    scorer: Scorer,
    *,
    n: int,
    max_new_tokens: int,
    seed: int,
) -> HeldOut:
    """`n` answers of the policy to each question at temperature 1, graded and scored.

    Args:
        policy: from `readable`; it is left in the mode that it was in.
        problems: with `answer` and `grader` among their fields.
        scorer: the frozen one.
        n: answers to each question.
        max_new_tokens: most of an answer.
        seed: of the drawing.
    """
    was_training = policy.model.training
    policy.model.eval()
    prompts = [problem.prompt for problem in problems]
    found = list(sample(policy, prompts, n=n, max_new_tokens=max_new_tokens, seed=seed))
    policy.model.train(was_training)
    answers = [
        Answer(
            *(problems[one.prompt].prompt, one.response, problems[one.prompt].prompt_id),
            response_ids=one.token_ids,
            finished=one.finished,
        )
        for one in found
    ]
    right = [is_right(problems[one.prompt], one.response) for one in found]
    return HeldOut(answers, np.array(right, float), np.asarray(scorer.score(answers)))


def is_right(problem: Problem, response: str) -> bool:
    """By the rule that the question names."""
    grader, choices = str(problem.fields["grader"]), problem.fields.get("choices")
    key = extract_key(grader, response, choices)
    return is_correct(grader, key, str(problem.fields["answer"]), choices)


def compared(before: HeldOut, after: HeldOut, own_scores: np.ndarray) -> dict[str, Any]:
    """Means before and after and their difference, with 95 % intervals over questions.

    Args:
        before: of the policy as it was.
        after: of the trained one, to the same questions.
        own_scores: (n,) of the answers after, by the head on the trained policy's own states.
    """
    measures = {}
    for name, values in after.columns.items():
        last = mean_statistic(values, after.prompt_ids)
        first = mean_statistic(before.columns[name], before.prompt_ids)
        measures[name] = {
            "before": clustered_bootstrap(first).as_dict(DIGITS),
            "after": clustered_bootstrap(last).as_dict(DIGITS),
            "difference": paired_difference(last, first).as_dict(DIGITS),
        }
    shift = own_scores - after.scores
    return {
        "n_prompts": len(set(after.prompt_ids)),
        "n_answers": len(after.answers),
        "measures": measures,
        "own_minus_frozen": clustered_bootstrap(mean_statistic(shift, after.prompt_ids)).as_dict(
            DIGITS
        ),
        "own_minus_frozen_size": float(np.abs(shift).mean()),
        "frozen_spread": float(after.scores.std()),
        "own_same_order": same_order(after.scores, own_scores),
        "examples": examples(before, after),
    }


def examples(before: HeldOut, after: HeldOut, n: int = 6) -> list[dict[str, Any]]:
    """The first answer to each of the first `n` questions, before and after."""
    rows = [before.prompt_ids.index(i) for i in list(dict.fromkeys(before.prompt_ids))[:n]]
    return [
        {
            "question": before.answers[row].prompt.messages[-1].content,
            **{
                name: {
                    "response": one.answers[row].response,
                    "score": round(float(one.scores[row]), DIGITS),
                    "correct": bool(one.correct[row]),
                }
                for name, one in (("before", before), ("after", after))
            },
        }
        for row in rows
    ]
