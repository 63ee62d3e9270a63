"""verl: reward.custom_reward_function.path=pkg://retrm.adapters.verl calls this once a sample."""

import asyncio

from retrm.adapters.verl import compute_score

sample = {"data_source": "gsm8k", "solution_str": "The answer is 7.", "ground_truth": "7"}
print(asyncio.run(compute_score(**sample, extra_info={"prompt": "What is 3 + 4?"})))
