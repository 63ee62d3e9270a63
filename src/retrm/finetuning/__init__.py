"""Training of whole models, on TRL.

Generative judges: cold start, rejection sampling, reinforcement learning.

    labelled     pairs with a label and traces, from files, checked before any work
    collect      traces from a teacher: filtered by verdict, repaired with the known label, positions balanced
    sft          supervised training on traces
    rewards      what a judgement earns: RM-R1, UnifiedReward-Think, R1-Reward
    consistency  whether a judgement's last words say what its verdict says
    advantages   returns, normalisation over batch or group, the three-sigma filter
    policy_loss  the clipped objective with the log-ratio clamped before it is exponentiated
    policy       their options, and presets named after the papers
    trainer      TRL's GRPO trainer with these options
    reinforce    a whole run of it
    run_folder   what a run leaves behind: config, metrics, samples

Reward models:

    reward_options   what is learnt from, and what is added to the loss
    reward_rows      from a table to token ids; policies for over-long answers, counted
    reward_losses    losses that act on a backbone, or on several outputs
    reward_tasks     what a batch is, and what its loss is
    reward_trainer   TRL's trainer with them
    classifier       what is trained: loaded, with a head of its own, and saved
    finetune         a whole run of it
    members          several runs as an ensemble, or as the mean of their weights (averaging)
    held_out         figures on prompts that were held out; reward_card the model card

`policy`, `labelled`, `reward_options` and `rewards` need no torch; `trainer` and `sft` need the extra `train`.
"""
