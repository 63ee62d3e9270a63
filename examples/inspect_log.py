"""Inspect: a reward model of a server as the scorer of a task, or of a finished log; needs inspect-ai."""

import os

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample

from retrm.adapters.inspect import reward

task = Task(
    [Sample("What is 3 + 4?", target="7")], scorer=reward(f"retrm:{os.environ['RETRM_URL']}")
)
(log,) = eval(task, model="mockllm/model", display="none", log_dir="runs/inspect")
print([score.value for score in log.samples[0].scores.values()])
