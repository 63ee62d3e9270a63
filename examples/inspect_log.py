"""Inspect: a reward model of a server as the scorer of a task, or of a finished log; needs inspect-ai."""

import os

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from retrm.adapters.inspect import reward

said = ModelOutput.from_content("mockllm/model", "7")  # stands for your model and its answer
said.usage = ModelUsage()  # else Inspect fetches a tokenizer from the network to count the tokens
model = get_model("mockllm/model", custom_outputs=[said])
task = Task(
    [Sample("What is 3 + 4?", target="7")], scorer=reward(f"retrm:{os.environ['RETRM_URL']}")
)
(log,) = eval(task, model=model, display="none", log_dir="runs/inspect")
print([score.value for score in log.samples[0].scores.values()])
