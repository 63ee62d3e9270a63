"""Our objective on TRL's trainer, with a tiny random model: parity with TRL's own loss, runs, going on."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from judge_training import TEMPLATE, pairs, policy_folder

pytest.importorskip("trl", reason="trl is not installed")
from datasets import Dataset
from trl import GRPOTrainer

from retrm.backbone.load import load_backbone
from retrm.errors import ArtifactError, DataError, FitError, RecipeError
from retrm.finetuning.language_model import LoraOptions, load_trainable
from retrm.finetuning.policy import PRESETS, policy_options
from retrm.finetuning.reinforce import JudgeReward, ReinforceOptions, reinforce
from retrm.finetuning.rewards import Earned, R1RewardReward
from retrm.finetuning.run_folder import RunFolder
from retrm.finetuning.trainer import PolicyConfig, PolicyTrainer

SMALL = ReinforceOptions(
    steps=3,
    batch_size=4,
    device_batch=4,
    updates=1,
    learning_rate=1e-2,
    max_new_tokens=5,
    sample_steps=1,
    save_steps=1,
)


class Even:
    """Pays for an even number of characters: random text earns both."""

    name = "r1_reward"
    template = "r1_reward"
    settings = {"rule": "even"}

    def __call__(self, outputs, labels):
        return [Earned(float(len(text) % 2), {"result": float(len(text) % 2)}) for text in outputs]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    return str(policy_folder(tmp_path_factory.mktemp("policy")))


def ran(start: str, folder: Path, preset: str = "stable_reinforce", **more):
    options = more.pop("options", SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reinforce(
            more.pop("some", pairs(12)),
            start,
            TEMPLATE,
            more.pop("rule", Even()),
            RunFolder(folder),
            policy=policy_options(preset),
            options=options,
            **more,
        )


def trainer_of(start: str, out: Path, policy, **changes):
    model, tokenizer = load_trainable(start)
    config = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 5,
        "report_to": [],
        "seed": 3,
        "remove_unused_columns": False,
        **changes,
    }
    rows = [{"prompt": [{"role": "user", "content": "Hi"}], "label": "first"}] * 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PolicyTrainer(
            model,
            JudgeReward(Even(), TEMPLATE),
            policy=policy,
            args=PolicyConfig(**config),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )


@pytest.mark.parametrize(("aggregation", "loss_type"), [("sequence", "grpo"), ("token", "bnpo")])
def test_with_the_preset_grpo_the_loss_and_gradient_are_those_of_trl(
    start, tmp_path, aggregation, loss_type
):
    policy = policy_options("grpo", {"aggregation": aggregation})
    # TRL weighs KL by the ratio unless told otherwise; none of the papers does.
    trainer = trainer_of(
        *(start, tmp_path, policy), loss_type=loss_type, use_bias_correction_kl=False
    )
    trainer.current_gradient_accumulation_steps = 1
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 200, (4, 9), generator=generator)
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] * 4 + [0], [1] * 5])
    batch = {
        "prompt_ids": ids[:, :4],
        "prompt_mask": torch.ones(4, 4, dtype=torch.long),
        "completion_ids": ids[:, 4:],
        "completion_mask": mask,
        "advantages": torch.tensor([1.0, -1.0, 0.3, -2.0]),
        "old_per_token_logps": torch.randn(4, 5, generator=generator) - 5,
        "ref_per_token_logps": torch.randn(4, 5, generator=generator) - 5,
        "num_items_in_batch": mask.sum(),
    }

    def of(compute, advantages):
        trainer.model.zero_grad()
        loss = compute(trainer.model, {**batch, "advantages": advantages})
        loss.backward()
        grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        return loss.item(), torch.cat(grads)

    theirs = of(lambda m, b: GRPOTrainer._compute_loss(trainer, m, b), batch["advantages"])
    ours = of(trainer._compute_loss, batch["advantages"].unsqueeze(1).expand(4, 5))

    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert abs(theirs[0]) > 0.01
    assert torch.allclose(ours[1], theirs[1], rtol=1e-4, atol=1e-6)


def test_a_run_leaves_config_metrics_samples_and_a_model_that_loads(start, tmp_path):
    facts = ran(start, tmp_path)
    metrics = RunFolder(tmp_path).metrics()
    sample = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])

    assert facts["steps"] == 3
    assert [row["step"] for row in metrics] == [1, 2, 3]
    for name in ("reward", "parse_rate", "clip_share", "clamp_share", "filtered_share", "entropy"):
        assert all(name in row for row in metrics), name
    assert {"step", "prompt", "label", "output", "reward"} <= sample.keys()
    assert load_backbone(str(tmp_path / "model")).name
    assert not (tmp_path / "checkpoints").exists()


def test_training_changes_weights_only_where_rewards_differ(start, tmp_path):
    class Flat(Even):
        def __call__(self, outputs, labels):
            return [Earned(1.0, {}) for _ in outputs]

    before, _ = load_trainable(start)
    for name, rule in (("flat", Flat()), ("even", Even())):
        ran(start, tmp_path / name, rule=rule)
        after, _ = load_trainable(str(tmp_path / name / "model"))
        moved = max(
            float((a - b).detach().abs().max())
            for a, b in zip(after.parameters(), before.parameters(), strict=True)
        )
        assert (moved > 1e-4) == (name == "even"), (name, moved)


def test_kl_is_logged_where_it_is_paid(start, tmp_path):
    changed = replace(PRESETS["stable_reinforce_released"], kl=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reinforce(
            *(pairs(12), start, TEMPLATE, Even(), RunFolder(tmp_path)),
            policy=changed,
            options=SMALL,
        )
    kl = [row["kl"] for row in RunFolder(tmp_path).metrics()]

    assert kl[0] == pytest.approx(0.0, abs=1e-6)  # the reference is the start
    assert kl[-1] > 1e-6


def test_a_killed_run_goes_on_and_ends_where_an_unbroken_one_ends(start, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    ran(start, whole)
    first = ran(start, halves, stop_at=2)
    # A kill behind the checkpoint leaves lines of steps that are made again.
    RunFolder(halves).append("metrics.jsonl", {"step": 3, "reward": 99.0})
    second = ran(start, halves)

    assert "finished" not in first
    assert second["resumed_at"] == 2
    a, b = (RunFolder(folder).metrics() for folder in (whole, halves))
    assert [row["step"] for row in b] == [1, 2, 3]
    assert [row["reward"] for row in b] == pytest.approx([row["reward"] for row in a])
    one, two = (load_trainable(str(folder / "model"))[0] for folder in (whole, halves))
    for x, y in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(x, y, atol=1e-6)


def test_a_finished_run_is_not_made_again(start, tmp_path):
    ran(start, tmp_path)
    before = (tmp_path / "metrics.jsonl").stat().st_mtime_ns

    assert ran(start, tmp_path)["finished"] is True
    assert (tmp_path / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_folder_of_another_run_is_refused_and_says_what_differs(start, tmp_path):
    ran(start, tmp_path)
    with pytest.raises(ArtifactError, match="policy"):
        ran(start, tmp_path, preset="reinforce_pp")


def test_low_rank_updates_are_merged_into_the_model_and_kept_apart(start, tmp_path):
    ran(start, tmp_path, lora=LoraOptions(rank=2))
    after, _ = load_trainable(str(tmp_path / "model"))
    before, _ = load_trainable(start)

    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert after.num_parameters() == before.num_parameters()
    changed = [
        name
        for (name, a), b in zip(after.named_parameters(), before.parameters(), strict=True)
        if not torch.allclose(a, b, atol=1e-7)
    ]
    assert changed
    assert not [name for name in changed if "embed" in name or "norm" in name]


def test_groups_of_one_are_refused_for_grpo_and_taken_for_the_batch(start, tmp_path):
    with pytest.raises(RecipeError, match="group_size=1"):
        ran(start, tmp_path, preset="grpo")
    with pytest.raises(RecipeError, match="groups"):
        trainer_of(start, tmp_path, PRESETS["grpo"], num_generations=1)
    assert (
        ran(start, tmp_path / "four", preset="grpo", options=replace(SMALL, group_size=4))["steps"]
        == 3
    )


def test_two_updates_share_a_set_of_rollouts_and_the_second_is_off_policy(start, tmp_path):
    ran(start, tmp_path, options=replace(SMALL, updates=2, steps=2, learning_rate=5e-2))
    first, second = RunFolder(tmp_path).metrics()

    assert first["largest_ratio"] == pytest.approx(1.0, abs=1e-3)
    assert abs(second["largest_ratio"] - 1) > 1e-2


def test_an_infinite_loss_stops_the_run_and_names_the_clamp(start, tmp_path):
    class Stale(PolicyTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            batch["old_per_token_logps"] = torch.full(batch["completion_ids"].shape, -200.0)
            return batch

    with pytest.raises(FitError, match=r"step 1; .*log_ratio_clamp=1000"):
        ran(start, tmp_path / "plus", preset="reinforce_pp", trainer_class=Stale)

    ran(start, tmp_path / "stable", trainer_class=Stale)
    assert all(row["clamp_share"] > 0.5 for row in RunFolder(tmp_path / "stable").metrics())


def test_bad_input_is_refused_before_a_model_is_loaded(tmp_path):
    nowhere = "no/such/model"
    one_sided = [pair if pair.label == "first" else pair.swapped() for pair in pairs(12)]

    with pytest.raises(DataError, match="got 3 pairs; one set of rollouts takes 4"):
        ran(nowhere, tmp_path, some=pairs(3))
    with pytest.raises(DataError, match="same place"):
        ran(nowhere, tmp_path, some=one_sided)
    with pytest.raises(RecipeError, match="batch_size=5"):
        replace(SMALL, batch_size=5, device_batch=2)


def test_prompts_without_room_for_an_answer_are_refused(start, tmp_path):
    with pytest.raises(DataError, match="no room for 250 new tokens"):
        ran(start, tmp_path, options=replace(SMALL, max_new_tokens=250))


def test_the_reward_of_another_template_is_refused(start, tmp_path):
    class Other(Even):
        name = template = "rm_r1_instruct"

    with pytest.raises(RecipeError, match="reads other tags"):
        ran(start, tmp_path, rule=Other())


def test_rewards_as_trl_calls_them_log_what_could_be_read():
    logged = {}
    reward = JudgeReward(R1RewardReward(), TEMPLATE)
    outputs = ["<think>Response 1 is better.</think><answer>1</answer>", "no verdict"]
    got = reward(
        prompts=[[{"role": "user", "content": "x"}]] * 2,
        completions=[[{"role": "assistant", "content": text}] for text in outputs],
        label=["first", "first"],
        log_metric=logged.__setitem__,
        completion_ids=[[1], [2]],
    )

    assert got == [2.0, 0.0]
    assert logged["parse_rate"] == 0.5
    assert logged["reward_result"] == 0.5
