"""Other people's frameworks, one file each: their types in, their types out, nothing of our own.

    trl, verl, openrlhf, easyr1, verifiers    rewards for training
    its_hub, inspect, lm_eval                 scores for search and evaluation

All of them ask `judge`: a server, or a scorer in this process. An adapter imports its framework at most, never
torch; whoever uses no adapter imports none of them.
"""
