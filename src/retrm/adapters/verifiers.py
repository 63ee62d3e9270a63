"""verifiers and prime-rl: a reward for a task's traces, and the comparison of several of them.

    rewards: {retrm: {fn: "retrm.adapters.verifiers:retrm_reward", weight: 1.0}}

`retrm_reward` judges the last reply of a trace's final branch, behind all that was said before it. In the
`finalize` of an environment that makes several attempts, `score_group` scores all of them in one go:

    async def finalize(self, task, episode):
        await score_group(episode.traces)

RETRM_URL (a server) or RETRM_SCORER (a scorer in this process) says what judges.

Made for verifiers 0.4.0 (v1). Nothing of it is imported: arguments are chosen by their names.
"""

from collections.abc import Sequence
from typing import Any

from retrm.adapters.judge import answer_of, conversation_of, score_of, shared_judge
from retrm.errors import DataError
from retrm.records import Answer


async def retrm_reward(task: Any, trace: Any) -> float:
    """The raw score of a trace's last reply.

    Args:
        task: verifiers' TaskData.
        trace: verifiers' Trace.

    Raises:
        DataError: the trace has no reply in text.
        EndpointError, RenderError, ScoreError: it could not be judged.
    """
    (found,) = await shared_judge().arewards([_answer(task, trace)])
    return score_of(found)


async def score_group(traces: Sequence[Any], *, name: str = "retrm") -> list[float]:
    """Score the attempts of one episode together and record what is found on each.

    Args:
        traces: of one task.
        name: of the metrics: `NAME_score` is the raw score, `NAME_best` 1 on the first best one, else 0.

    Returns:
        The raw scores, in order.

    Raises:
        DataError: no traces, or one without a reply in text.
        EndpointError, RenderError, ScoreError: one could not be judged.
    """
    if not traces:
        raise DataError("got no traces to compare; expected the attempts of an episode")
    found = await shared_judge().arewards([_answer(t.task.data, t) for t in traces])
    scores = [score_of(reward) for reward in found]
    best = scores.index(max(scores))
    for place, (trace, score) in enumerate(zip(traces, scores, strict=True)):
        trace.record_metric(f"{name}_score", score)
        trace.record_metric(f"{name}_best", float(place == best))
    return scores


def _answer(task: Any, trace: Any) -> Answer:
    where = f"trace {trace.id}"
    turns = [_turn(message) for message in trace.messages]
    while turns and (turns[-1]["role"] != "assistant" or turns[-1].get("tool_calls")):
        turns.pop()  # results of tools that nobody answered any more
    if not turns:
        raise DataError(f"{where}: no assistant turn in text; expected a reply to judge")
    if len(turns) > 1:
        return conversation_of(turns, where)
    if task.prompt is None:
        raise DataError(
            f"{where}: there is a reply only; expected a prompt in the trace or its task"
        )
    prompt = task.prompt if isinstance(task.prompt, str) else [_turn(m) for m in task.prompt]
    return answer_of(prompt, turns[0]["content"], where)


def _turn(message: Any) -> dict[str, Any]:
    """A message of verifiers as chat APIs write it."""
    content = message.content
    if isinstance(content, list):
        content = [part.model_dump() for part in content]
    turn: dict[str, Any] = {"role": message.role, "content": content}
    calls = getattr(message, "tool_calls", None)
    if calls:
        turn["tool_calls"] = [_call(call) for call in calls]
    if getattr(message, "tool_call_id", None):
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _call(call: Any) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
