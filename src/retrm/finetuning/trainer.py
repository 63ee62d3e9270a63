# Talks to private methods of TRL's trainer, which is written to be subclassed that way; checked below.
"""TRL's GRPO trainer with the objective of `policy`: what TRL does otherwise is left to it.

    TRL      rollouts, rewards, log-probabilities (reference included), batches, checkpoints
    here     returns and advantages (`advantages`), the loss (`policy_loss`), one rollout a prompt

Three methods are replaced. `_calculate_rewards` is listened to; `_generate_and_score_completions` keeps TRL's
batch and puts our advantages of shape (batch, tokens) into it; `_compute_loss` is ours. With the preset `grpo`
the loss is TRL's own, which a test holds against it.

TRL refuses one rollout a prompt, since a group of one has no spread. Objectives over the batch need no group, so
`PolicyConfig` takes it.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from retrm.errors import BackboneError, RecipeError
from retrm.finetuning.advantages import Advantages, advantages
from retrm.finetuning.policy import PolicyOptions
from retrm.finetuning.policy_loss import k3, policy_loss
from retrm.finetuning.sft import check_finite

_REPLACED = ("_calculate_rewards", "_generate_and_score_completions", "_compute_loss")
_USED = (*_REPLACED, "_get_per_token_logps_and_entropies")
_PICTURES = (
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "spatial_shapes",
    "num_tiles",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
    "image_position_ids",
)
_HINT = "a stale ratio may have overflowed: set log_ratio_clamp=1000, or lower the learning rate"


class PolicyConfig(GRPOConfig):
    """TRL's settings, with one rollout a prompt allowed."""

    def __post_init__(self) -> None:
        """As TRL's, which is told of a group that it accepts."""
        asked = self.num_generations
        if asked == 1:
            self.num_generations = max(2, self.per_device_train_batch_size)
        super().__post_init__()
        self.num_generations = asked


class PolicyTrainer(GRPOTrainer):
    """See the module.

    Args:
        model: that is trained, or a path.
        rewards: functions as TRL calls them; their sum is the reward.
        policy: the objective.
        args: TRL's settings; `beta` is set from the policy, so that a reference is at hand where it is needed.
        train_dataset: rows with `prompt` and whatever the rewards take.
        processing_class: tokenizer or processor.
        callbacks: told by the trainer.
        peft_config: of low-rank updates.

    Raises:
        BackboneError: a TRL whose trainer has other methods.
        RecipeError: groups of one for an objective over groups.
    """

    def __init__(
        self,
        model: Any,
        rewards: Callable[..., list[float | None]] | list[Callable[..., list[float | None]]],
        *,
        policy: PolicyOptions,
        args: PolicyConfig,
        train_dataset: Any,
        processing_class: Any,
        callbacks: list[Any] | None = None,
        peft_config: Any | None = None,
    ) -> None:
        check_trl()
        if policy.scope == "group" and (args.num_generations or 0) < 2:
            raise RecipeError(
                f"got {args.num_generations} rollout(s) a prompt for an objective over groups; expected "
                "2 or more (RM-R1: 7, UnifiedReward-Think: 8), or scope='batch'"
            )
        args.beta = policy.kl
        self.policy = policy
        self._sums: Tensor | None = None
        super().__init__(
            model=model,
            reward_funcs=rewards,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            peft_config=peft_config,
        )

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        by_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        weighted = by_function * self.reward_weights.to(by_function.device)
        self._sums = weighted.nansum(1)
        self._sums[by_function.isnan().all(1)] = torch.nan
        return by_function

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        made = self._advantages(batch)
        batch["advantages"] = made.values
        mode = "train" if self.model.training else "eval"
        self._metrics[mode]["filtered_share"].append(made.filtered_share)
        self._metrics[mode]["flat_share"].append(made.flat_share)
        return batch

    def _advantages(self, batch: dict[str, Any]) -> Advantages:
        """Of this process's rollouts, by the statistics of all processes."""
        mask = _mask(batch)
        kl = None
        if self.policy.kl > 0 and self.policy.kl_place == "reward":
            if "old_per_token_logps" not in batch:
                with torch.no_grad():
                    batch["old_per_token_logps"] = self._logps(self.model, batch)[0]
            kl = batch["old_per_token_logps"] - batch["ref_per_token_logps"]
        gather = self.accelerator.gather
        pad = self.accelerator.pad_across_processes
        everyone = gather(pad(mask.int(), dim=1)).bool()
        all_kl = None if kl is None else gather(pad(kl, dim=1))
        mode = "train" if self.model.training else "eval"
        group = self.num_generations if mode == "train" else self.num_generations_eval
        assert self._sums is not None, "TRL scores before it returns a batch"
        made = advantages(self._sums, everyone, self.policy, group_size=group, kl=all_kl)
        first = self.accelerator.process_index * mask.shape[0]
        own = made.values[first : first + mask.shape[0], : mask.shape[1]]
        return Advantages(own, made.filtered_share, made.flat_share)

    def _logps(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        pictures = {name: batch[name] for name in _PICTURES if name in batch}
        logps, entropies, _ = self._get_per_token_logps_and_entropies(
            model,
            ids,
            seen,
            batch["completion_ids"].shape[1],
            compute_entropy=True,
            batch_size=self.args.per_device_train_batch_size,
            **pictures,
        )
        assert entropies is not None
        return logps, entropies

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        logps, entropies = self._logps(model, inputs)
        mask = _mask(inputs)
        old = inputs.get("old_per_token_logps")
        made = policy_loss(
            logps,
            logps.detach() if old is None else old,
            inputs["advantages"].to(logps.dtype),
            mask,
            self.policy,
            ref_logps=inputs.get("ref_per_token_logps"),
        )
        check_finite(float(made.loss.detach()), self.state.global_step + 1, _HINT)
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        metrics["policy_loss"].append(float(made.loss.detach()))
        metrics["clip_share"].append(made.clip_share)
        metrics["clamp_share"].append(made.clamp_share)
        metrics["largest_ratio"].append(made.largest_ratio)
        metrics["entropy"].append(float(entropies.detach()[mask].mean()))
        if "ref_per_token_logps" in inputs:
            distance = k3(logps.detach(), inputs["ref_per_token_logps"])
            metrics["kl"].append(float(distance[mask].mean()))
        return made.loss / (self.current_gradient_accumulation_steps if mode == "train" else 1)


def _mask(batch: dict[str, Any]) -> Tensor:
    return batch["completion_mask"].bool()


def check_trl() -> None:
    """Refuse a TRL whose trainer was rebuilt.

    Raises:
        BackboneError: names the method that is gone or takes something else.
    """
    for name in _USED:
        found = getattr(GRPOTrainer, name, None)
        if found is None:
            raise BackboneError(
                f"this TRL has no GRPOTrainer.{name}; expected one like 1.16. Run: pip install 'trl>=1.16,<2'"
            )
    takes = list(inspect.signature(GRPOTrainer._compute_loss).parameters)
    if takes != ["self", "model", "inputs"]:
        raise BackboneError(
            f"this TRL's GRPOTrainer._compute_loss takes {takes}; expected model and inputs, as in 1.16"
        )
