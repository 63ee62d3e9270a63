"""A real GRPOTrainer of trl with our rewards, on a tiny random model; and the drift of its own states."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scored import reward_model
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from retrm.adapters.trl import PolicyStatesReward, RetrmReward
from retrm.backbone.load import load_backbone
from retrm.errors import BackboneError, DataError, FingerprintError, LabelError, RecipeError
from retrm.features.recipe import Recipe
from retrm.records import Answer
from retrm.scorers.policy_states import PolicyStates, same_order
from retrm.scorers.reward_model import RewardModel

ROWS = [{"prompt": [{"role": "user", "content": text}], "gold": text} for text in ("2+2?", "Hi")]
PROBES = [("2+2?", "four"), ("2+2?", "five"), ("Hi", "Hello"), ("Hi", "no")]
LABELS = [1, 0, 1, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model as a user has it; every id that it can sample is one of its tokenizer's."""
    path = tmp_path_factory.mktemp("policy")
    tokenizer = tiny_tokenizer(path)
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def head(folder, tmp_path_factory) -> Path:
    """A reward model on it, with a random head."""
    path = tmp_path_factory.mktemp("head")
    made = reward_model(load_backbone(str(folder)), Recipe(pooling="mean"))
    made.with_selftest([Answer.of("2+2?", "4")]).save(path)
    return path


def policy_of(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def moved(model: torch.nn.Module, by: float = 0.3) -> None:
    """What training does to weights, only faster."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(by * torch.randn(value.shape, generator=generator))


def trained(folder: Path, rewards: list, out: Path, *, steps: int = 2, policy: Any = None) -> Any:
    """A trainer that has made some steps, with what it logged."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    model, tokenizer = policy or policy_of(folder)
    options = trl.GRPOConfig(
        output_dir=str(out),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        max_steps=steps,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        seed=3,
        disable_tqdm=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=rewards,
            args=options,
            train_dataset=datasets.Dataset.from_list(ROWS),
            processing_class=tokenizer,
        )
        trainer.train()
    return trainer


def logged(trainer: Any, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.slow
def test_grpo_trains_with_a_scorer_in_process_and_logs_it_by_name(folder, tmp_path):
    seen: list[float] = []

    class Watched(RetrmReward):
        async def __call__(self, prompts, completions, **columns):
            assert set(columns) >= {"completion_ids", "gold", "trainer_state", "log_metric"}
            found = await super().__call__(prompts, completions, **columns)
            seen.extend(zip(completions, found, strict=True))
            return found

    trainer = trained(folder, [Watched("shortest")], tmp_path)

    assert len(seen) == 8  # two steps of four completions
    assert all(score == -len(turns[-1]["content"]) for turns, score in seen)
    expected = [np.mean([score for _, score in seen[i : i + 4]]) for i in (0, 4)]
    assert logged(trainer, "rewards/retrm/mean") == pytest.approx(expected)
    assert logged(trainer, "retrm/truncated") == [0.0, 0.0]


@pytest.mark.slow
def test_grpo_trains_against_the_live_server_with_the_scores_of_the_model(folder, head, tmp_path):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from listening import listening
    from served import service

    from retrm.service.app import create_app

    model = RewardModel.load(head, model=str(folder))
    seen: list[tuple[Any, Any, float]] = []

    class Watched(RetrmReward):
        async def __call__(self, prompts, completions, **columns):
            found = await super().__call__(prompts, completions, **columns)
            seen.extend(zip(prompts, completions, found, strict=True))
            return found

    with listening(create_app(service(model))) as url:
        trained(folder, [Watched(url=url)], tmp_path)

    assert len(seen) == 8
    rows = [Answer.of(prompt, turns[-1]["content"]) for prompt, turns, _ in seen]
    np.testing.assert_allclose([score for *_, score in seen], model.score(rows), atol=1e-4)


@pytest.mark.slow
def test_grpo_trains_on_the_policys_own_states_and_shows_their_drift(folder, head, tmp_path):
    model, tokenizer = policy_of(folder)
    reward = PolicyStatesReward(head, model, tokenizer, probes=PROBES, labels=LABELS, every=1)

    trainer = trained(folder, [reward], tmp_path, steps=3, policy=(model, tokenizer))

    reward.measure(3)

    points = reward.drift.points
    assert [p.step for p in points] == [0, 1, 2, 3]
    assert points[0].mean_abs_shift == 0.0
    assert points[-1].mean_abs_shift > 0.0  # the policy moved, and so did its states
    assert logged(trainer, "retrm_policy_states/drift_mean_abs")[-1] == pytest.approx(
        points[2].mean_abs_shift
    )
    assert model.training  # the trainer's mode is untouched


def test_the_policys_own_states_give_the_scores_of_the_reward_model_before_training(folder, head):
    model, tokenizer = policy_of(folder)
    model.train()
    states = PolicyStates(head, model, tokenizer)
    rows = [Answer.of(*pair) for pair in PROBES]

    got = states.score(rows)

    np.testing.assert_allclose(
        got, RewardModel.load(head, model=str(folder)).score(rows), atol=1e-5
    )
    assert all(part.training for part in model.modules())


def test_scores_follow_the_policy_and_the_drift_says_how_far(folder, head):
    model, tokenizer = policy_of(folder)
    rows = [Answer.of(*pair) for pair in PROBES]
    states = PolicyStates(head, model, tokenizer, probes=rows, labels=LABELS)
    first = states.score(rows)
    moved(model)

    assert not states.is_due(9, 10)
    assert states.is_due(10, 10)
    point = states.measure(10)

    now = states.score(rows)
    assert point.mean_abs_shift == pytest.approx(np.mean(np.abs(now - first)), rel=1e-5)
    assert point.mean_shift == pytest.approx(np.mean(now - first), rel=1e-5)
    assert point.mean_abs_shift > 0.01
    # Two prompts with one right and one wrong probe each: the share of them in the right order.
    assert point.auroc == np.mean([now[0] > now[1], now[2] > now[3]])
    assert "after 10 steps 4 fixed answers are scored" in states.report().in_words


def test_the_tokens_that_were_sampled_are_scored_cut_ones_without_an_end(folder, head):
    model, tokenizer = policy_of(folder)
    states = PolicyStates(head, model, tokenizer)
    answer, end = Answer.of("Hi", "abc"), tokenizer.eos_token_id
    ids = tokenizer("abc", add_special_tokens=False)["input_ids"]
    whole, cut = states.sampled(answer, [*ids, end]), states.sampled(answer, ids)

    assert (whole.finished, cut.finished) == (True, False)
    scores = states.score([answer, whole, cut])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert abs(scores[0] - scores[2]) > 1e-4


def test_parts_that_were_frozen_in_evaluation_stay_so(folder, head):
    model, tokenizer = policy_of(folder)
    model.train()
    model.lm_head.eval()
    PolicyStates(head, model, tokenizer).score([Answer.of("Hi", "x")])
    assert model.training
    assert not model.lm_head.training


def test_training_goes_on_after_scoring(folder, head):
    # Scoring runs in inference mode: nothing of it may be left in the graph of the training.
    model, tokenizer = policy_of(folder)
    model.train()
    states = PolicyStates(head, model, tokenizer)
    states.score([Answer.of("Hi", "x")])
    ids = torch.tensor([[1, 2, 3]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_lora_adds_to_the_policy_is_read_too(folder, head):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, tokenizer = policy_of(folder)
    states = PolicyStates(head, model, tokenizer)
    rows = [Answer.of(*pair) for pair in PROBES]
    first = states.score(rows)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    np.testing.assert_allclose(states.score(rows), first, atol=1e-6)  # it begins as nothing
    moved(torch.nn.ParameterList(p for n, p in adapted.named_parameters() if "lora_" in n))
    assert np.abs(states.score(rows) - first).max() > 1e-3


def test_a_policy_that_the_head_was_not_fitted_on_is_refused(folder, head):
    model, tokenizer = policy_of(folder)
    moved(model)
    with pytest.raises(FingerprintError, match="other weights"):
        PolicyStates(head, model, tokenizer)
    model, tokenizer = policy_of(folder)
    with pytest.raises(BackboneError, match=r"computes in bfloat16.*dtype=float32"):
        PolicyStates(head, model.bfloat16(), tokenizer)


def test_probes_and_labels_must_fit(folder, head):
    model, tokenizer = policy_of(folder)
    rows = [Answer.of(*pair) for pair in PROBES]
    with pytest.raises(RecipeError, match="got one probe"):
        PolicyStates(head, model, tokenizer, probes=rows[:1])
    with pytest.raises(DataError, match="got 1 labels for 4 probes"):
        PolicyStates(head, model, tokenizer, probes=rows, labels=[1])
    with pytest.raises(LabelError):
        PolicyStates(head, model, tokenizer, probes=rows, labels=[1, 1, 1, 1])
    with pytest.raises(RecipeError, match="the drift is not known"):
        PolicyStates(head, model, tokenizer).report()


@pytest.mark.parametrize(
    ("first", "now", "share"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [3, 2, 1], 0.0),
        ([1, 2, 3], [1, 3, 2], 2 / 3),  # of the pairs 12, 13, 23 the last one turns
        ([1, 1, 2], [5, 0, 9], 1.0),  # the tie is no pair
        ([1, 2], [1, 1], 0.0),  # a tie now tells nothing apart
        ([1, 1], [1, 2], 1.0),
    ],
)
def test_the_share_of_pairs_in_the_same_order(first, now, share):
    assert same_order(np.array(first, float), np.array(now, float)) == pytest.approx(share)
