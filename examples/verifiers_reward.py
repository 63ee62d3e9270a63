"""verifiers: config `rewards: {retrm: {fn: "retrm.adapters.verifiers:retrm_reward"}}`; here with stand-ins."""

import asyncio
from types import SimpleNamespace

from retrm.adapters.verifiers import retrm_reward

turns = [("user", "What is 3 + 4?"), ("assistant", "7")]
messages = [SimpleNamespace(role=role, content=content) for role, content in turns]
trace = SimpleNamespace(id="1", messages=messages)
print(asyncio.run(retrm_reward(task=SimpleNamespace(prompt=None), trace=trace)))
