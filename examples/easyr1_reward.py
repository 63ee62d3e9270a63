"""EasyR1: worker.reward.reward_function=PATH:main gets a batch; the ground truth carries the prompt."""

import json

from retrm.adapters.easyr1 import main

truth = json.dumps({"prompt": "What is 3 + 4?", "answer": "7"})
print(main([{"response": "7", "response_length": 1, "ground_truth": truth}]))
