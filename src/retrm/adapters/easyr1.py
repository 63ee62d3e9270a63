"""EasyR1: a batch reward function; `worker.reward.reward_function=PATH_OF_THIS_FILE:main`.

EasyR1 hands over no prompt, so the data set has to carry it: its `ground_truth` (`data.answer_key`) must be a
JSON object with `prompt`, a text or messages, and may hold the true `answer` for other functions:

    {"prompt": "What is 3 + 4?", "answer": "7"}

The function is sync and gets the whole batch: it goes to the server in a few requests at a time. What cannot
be judged is an exception, which ends the run.

Made for EasyR1 of 30 July 2026 (`verl/workers/reward/function.py`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from retrm.adapters.judge import answer_of, score_of, shared_judge
from retrm.errors import DataError
from retrm.records import Answer

REWARD_NAME = "retrm"
REWARD_TYPE = "batch"


def main(
    reward_inputs: Sequence[Mapping[str, Any]],
    *,
    url: str | None = None,
    scorer: str | None = None,
    model: str | None = None,
    length_policy: str = "error",
) -> list[dict[str, float]]:
    """Raw scores of a batch, in order.

    Args:
        reward_inputs: each with `response` and `ground_truth`.
        url: of a server; else RETRM_URL or RETRM_SCORER says what judges.
        scorer: what judges in this process, by any name that `retrm score` takes.
        model: name of the served model.
        length_policy: `error`, `truncate_prompt`, or, by a server only, `truncate_response`.

    Returns:
        Dicts with `overall` and `retrm_score` (the same), `retrm_tokens`, `retrm_truncated`.

    Raises:
        DataError: a ground truth without a prompt.
        EndpointError, RenderError, ScoreError: an answer could not be judged.
    """
    answers = [_answer(one, f"sample {i}") for i, one in enumerate(reward_inputs)]
    found = shared_judge(scorer, url, model, None, length_policy).rewards(answers)
    return [
        {
            "overall": score_of(reward),
            "retrm_score": score_of(reward),
            "retrm_tokens": float(reward.num_tokens),
            "retrm_truncated": float(reward.truncated),
        }
        for reward in found
    ]


def _answer(one: Mapping[str, Any], where: str) -> Answer:
    truth = one["ground_truth"]
    try:
        carried = json.loads(truth) if isinstance(truth, str) else truth
    except ValueError:
        carried = None
    if not isinstance(carried, Mapping) or carried.get("prompt") is None:
        raise DataError(
            f"{where}: its ground_truth is {str(truth)[:60]!r}, and EasyR1 passes no prompt otherwise; "
            'expected a JSON object such as {"prompt": "...", "answer": "..."}. Write it in the data '
            "set's preprocessing"
        )
    return answer_of(carried["prompt"], one["response"], where)
