"""TRL: a reward function; give it to GRPOTrainer(reward_funcs=...). RETRM_URL names the server."""

import asyncio

from retrm.adapters.trl import RetrmReward

reward = RetrmReward()  # or RetrmReward("runs/elhsr"): read in this process
prompts = [[{"role": "user", "content": "What is 3 + 4?"}]] * 2
completions = [[{"role": "assistant", "content": text}] for text in ("7", "It is 8, I think.")]
print(asyncio.run(reward(prompts=prompts, completions=completions)))
