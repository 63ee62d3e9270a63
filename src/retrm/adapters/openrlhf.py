"""OpenRLHF: `reward_func` for `--reward.remote_url PATH_OF_THIS_FILE`, without a server beside it.

    export RETRM_SCORER=runs/elhsr          a folder made by retrm fit, read in OpenRLHF's process
    export RETRM_URL=http://HOST:8000       or a server

With a server nothing of this is needed: `--reward.remote_url http://HOST:8000/get_reward` does it.

    rewards   raw scores
    scores    0..1, for dynamic filtering; with RETRM_BINARY_ABOVE=x: 1 above a raw score of x, else 0. A
              calibrated score never reaches 0 or 1, so the filter's default range drops nothing without it

OpenRLHF logs exceptions of this function at level info and trains with a reward of None: they are logged here as
errors first.

Made for openrlhf 0.11.2 (`utils/agent.py`).
"""

import logging
import math
import os
from collections.abc import Sequence

from retrm.adapters.judge import score_of, shared_judge
from retrm.errors import RecipeError, RetrmError
from retrm.service.client import Reward

BINARY_VARIABLE = "RETRM_BINARY_ABOVE"
_LOG = logging.getLogger(__name__)

Reply = dict[str, list[float] | dict[str, list[float]]]


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[object]) -> Reply:
    """Rewards of rendered texts; OpenRLHF sends one at a time.

    Args:
        queries: prompt and answer with all special tokens; the prompt may have lost its beginning.
        prompts: the prompts as texts.
        labels: not looked at.

    Returns:
        `rewards`, `scores` and `extra_logs`, with lists as long as `queries`.

    Raises:
        RetrmError: an answer could not be judged.
    """
    del labels
    try:
        found = shared_judge().rendered(queries, prompts)
        scores = [_score(reward) for reward in found]
    except RetrmError as error:
        _LOG.error("no reward: %s", error)
        raise
    return {
        "rewards": [score_of(reward) for reward in found],
        "scores": scores,
        "extra_logs": {
            "retrm_score": [score_of(reward) for reward in found],
            "retrm_tokens": [float(reward.num_tokens) for reward in found],
            "retrm_truncated": [float(reward.truncated) for reward in found],
            "retrm_unfinished": [float(bool(reward.unfinished)) for reward in found],
        },
    }


def _score(reward: Reward) -> float:
    """What dynamic filtering sees."""
    above = os.environ.get(BINARY_VARIABLE)
    if above is not None:
        return float(score_of(reward) > _threshold(above))
    if reward.calibrated is None:
        raise RecipeError(
            f"the model gives no calibrated score for dynamic filtering; expected {BINARY_VARIABLE}=x"
        )
    return reward.calibrated


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RecipeError(f"got {BINARY_VARIABLE}={text!r}; expected a raw score, such as 0.5")
    return value
