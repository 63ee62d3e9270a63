"""OpenRLHF: --reward.remote_url PATH calls reward_func of this very file; RETRM_URL or RETRM_SCORER judges."""

from retrm.adapters.openrlhf import __file__ as path
from retrm.adapters.openrlhf import reward_func

prompt = "<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n"
print(path)
print(reward_func([f"{prompt}7<|im_end|>"], [prompt], [None]))
