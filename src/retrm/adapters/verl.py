"""verl: `compute_score`, an async function that asks a retrm server (or a scorer in the reward worker).

    reward.custom_reward_function.path=pkg://retrm.adapters.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:8000

verl hands over no prompt: a step of the data set puts it into `extra_info["prompt"]`, as messages or as a text
(`prompt_key` names another key). Replies always have the same keys, since verl reads those of the first
sample from all. What cannot be judged is an exception, which ends the run; verl's `rate_limited` manager turns
exceptions into a reward of 0.0, so use `naive` or `dapo`.

Made for verl 0.9.1 (`experimental/reward_loop`).
"""

from collections.abc import Mapping
from typing import Any

from retrm.adapters.judge import answer_of, score_of, shared_judge
from retrm.errors import DataError, did_you_mean


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    *,
    prompt_key: str = "prompt",
    url: str | None = None,
    scorer: str | None = None,
    model: str | None = None,
    length_policy: str = "error",
) -> dict[str, float]:
    """The raw score of one answer, with what verl logs beside it.

    Args:
        data_source: for messages of errors.
        solution_str: the answer, special tokens left out.
        ground_truth: not looked at.
        extra_info: holds the prompt.
        reward_router_address: sent where verl serves a model of its own; not looked at.
        reward_model_tokenizer: the same.
        prompt_key: where in `extra_info` the prompt is.
        url: of a server; else RETRM_URL or RETRM_SCORER says what judges.
        scorer: what judges in this process, by any name that `retrm score` takes.
        model: name of the served model.
        length_policy: `error`, `truncate_prompt`, or, by a server only, `truncate_response`.

    Returns:
        `score` and `retrm_score` (the same), `retrm_tokens`, `retrm_truncated` (1 or 0).

    Raises:
        DataError: `extra_info` holds no prompt.
        EndpointError, RenderError, ScoreError: the answer could not be judged.
    """
    del ground_truth, reward_router_address, reward_model_tokenizer
    given = extra_info or {}
    if given.get(prompt_key) is None:
        near = did_you_mean(prompt_key, map(str, given)) if given else "It is empty."
        raise DataError(
            f"extra_info of a sample of {data_source!r} has no {prompt_key!r}, and verl passes no prompt "
            f"otherwise; expected the messages or the text there. {near} Add it in the data set's "
            "preprocessing, or name its key with reward_kwargs.prompt_key"
        )
    answer = answer_of(given[prompt_key], solution_str, f"sample of {data_source}")
    judge = shared_judge(scorer, url, model, None, length_policy)
    (found,) = await judge.arewards([answer])
    return {
        "score": score_of(found),
        "retrm_score": score_of(found),
        "retrm_tokens": float(found.num_tokens),
        "retrm_truncated": float(found.truncated),
    }
