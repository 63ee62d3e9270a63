"""Each adapter by its host's own rules: how it is found, called and read; order, keys and loud failures."""

import asyncio
import importlib
import importlib.util
import inspect
import json
import logging
import pickle
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import Reply
from peers import peer_file, run_file
from reward_server import honest, ok, refusal, reward_server, rewards

from retrm.adapters import easyr1, lm_eval, openrlhf, verifiers, verl
from retrm.adapters.judge import Judge, answer_of, conversation_of, shared_judge
from retrm.adapters.trl import PolicyStatesReward, RetrmReward, retrm_reward
from retrm.errors import (
    DataError,
    EndpointError,
    MissingExtraError,
    RecipeError,
    RefusedError,
)
from retrm.records import Answer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PLAIN = {"prompts": ["p", "p"], "completions": ["abc", "a"]}
CHAT = {
    "prompts": [[{"role": "user", "content": "p"}]] * 2,
    "completions": [[{"role": "assistant", "content": t}] for t in ("abc", "a")],
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    for name in ("RETRM_URL", "RETRM_MODEL", "RETRM_TOKEN", "RETRM_SCORER", "RETRM_BINARY_ABOVE"):
        monkeypatch.delenv(name, raising=False)
    shared_judge.cache_clear()
    yield
    shared_judge.cache_clear()


@pytest.fixture
def server(monkeypatch):
    """The stand-in (score = minus the length), named by the environment."""
    with reward_server() as running:
        monkeypatch.setenv("RETRM_URL", running.url)
        yield running


@pytest.fixture
def refusing(monkeypatch):
    with reward_server(lambda *_: refusal(400, "item 0 is too long")) as running:
        monkeypatch.setenv("RETRM_URL", running.url)
        yield running


# What all share


def test_a_scorer_in_this_process_and_a_server_judge_alike(server):
    # `shortest` is minus the number of characters, as the stand-in.
    answers = [answer_of("p", text, "w") for text in ("abc", "a", "abcdef")]
    here, there = Judge("shortest").rewards(answers), Judge(url=server.url).rewards(answers)
    assert [r.score for r in here] == [r.score for r in there] == [-3.0, -1.0, -6.0]
    assert [r.calibrated for r in here] == pytest.approx([r.calibrated for r in there])
    assert asyncio.run(Judge("shortest").arewards(answers)) == here
    assert asyncio.run(Judge(f"retrm:{server.url}").arewards(answers)) == there


def test_either_a_scorer_or_a_server_must_be_named(monkeypatch):
    judge, answers = Judge(), [answer_of("p", "a", "w")]
    with pytest.raises(RecipeError, match=r"neither of .*RETRM_URL.*RETRM_SCORER"):
        judge.rewards(answers)
    monkeypatch.setenv("RETRM_SCORER", "shortest")
    assert judge.rewards(answers)[0].score == -1.0  # what was made before is configured now
    monkeypatch.setenv("RETRM_URL", "http://127.0.0.1:9")
    with pytest.raises(RecipeError, match="both of"):
        Judge().rewards(answers)
    assert Judge("longest").rewards(answers)[0].score == 1.0
    with pytest.raises(RecipeError, match="expected one of them"):
        Judge("shortest", url="http://127.0.0.1:9")


def test_a_scorer_here_without_torch_says_what_to_install_or_to_name_a_server(monkeypatch):
    # What `import torch` of a module that is not loaded yet does where torch is missing.
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("retrm.scorers.together", "retrm.backbone.base"):
        importlib.import_module(name)
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(
        MissingExtraError, match=r"in this process needs torch.*retrm\[local\].*retrm:http"
    ):
        Judge("shortest").rewards([answer_of("p", "a", "w")])


def test_a_policy_that_leaves_answers_out_is_refused_since_every_answer_needs_a_reward():
    with pytest.raises(RecipeError, match="every answer needs a reward"):
        Judge("shortest", length_policy="skip")
    with pytest.raises(RecipeError, match="is for servers"):
        Judge("shortest", length_policy="truncate_response").rewards([answer_of("p", "a", "w")])


def test_answers_whose_prompts_offer_other_tools_go_in_requests_of_their_own(server):
    from dataclasses import replace

    plain = answer_of("p", "abc", "w")
    tools = ({"type": "function", "function": {"name": "f"}},)
    with_tools = replace(plain, response="a", prompt=replace(plain.prompt, tools=tools))
    found = Judge().rewards([plain, with_tools, plain])

    assert [r.score for r in found] == [-3.0, -1.0, -3.0]
    assert sorted(len(r.get("tools", ())) for r in server.requests) == [0, 1]


def test_prompts_of_parquet_files_are_read_though_their_lists_are_arrays():
    prompt = np.array([{"role": "user", "content": "p", "tool_calls": None}], dtype=object)
    assert answer_of(prompt, "a", "w") == answer_of([{"role": "user", "content": "p"}], "a", "w")


@pytest.mark.parametrize(
    ("prompt", "response", "reason"),
    [
        (None, "a", "expected a list of messages"),
        ([], "a", "an empty list"),
        ("p", None, "expected a list of messages"),
        ("p", [{"role": "tool", "content": "4"}], "from 'tool'; expected the assistant"),
        (
            "p",
            [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
            "calls a tool",
        ),
        ([{"role": "wizard", "content": "p"}], "a", "unknown role 'wizard'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a", "of type 'image_url'"),
    ],
)
def test_what_is_no_answer_is_refused_by_name(prompt, response, reason):
    with pytest.raises(DataError, match=reason) as caught:
        answer_of(prompt, response, "sample 7")
    assert "sample 7" in str(caught.value)


def test_a_judge_travels_without_what_it_has_opened(server):
    judge = Judge(url=server.url, model="m")
    judge.rewards([answer_of("p", "a", "w")])
    again = pickle.loads(pickle.dumps(judge))
    assert (again.url, again.model, again._client) == (server.url, "m", None)
    assert again.rewards([answer_of("p", "ab", "w")])[0].score == -2.0


# TRL


def rewarded(function, **data) -> list[float]:
    return asyncio.run(function(**data))


@pytest.mark.parametrize("data", [PLAIN, CHAT], ids=["plain", "conversational"])
def test_trl_rewards_come_in_the_order_of_the_completions(server, data):
    assert rewarded(RetrmReward(), **data, answer=["7", "8"], trainer_state=None) == [-3.0, -1.0]
    assert server.requests[0]["messages"][1] == [
        {"role": "user", "content": "p"},
        {"role": "assistant", "content": "a"},
    ]


def test_trl_what_was_said_between_prompt_and_answer_is_judged_with_them(server):
    turns = [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
        {"role": "assistant", "content": "It is 4"},
    ]
    rewarded(RetrmReward(), prompts=["p"], completions=[turns])
    assert [t["role"] for t in server.requests[0]["messages"][0]] == [
        *("user", "assistant", "tool", "assistant")
    ]


def test_trl_finds_the_callable_async_and_by_its_name():
    utils = pytest.importorskip("trl.trainer.utils", reason="trl is not installed")
    assert utils.is_async_callable(RetrmReward("shortest"))
    assert utils.get_callable_name(RetrmReward("shortest")) == "retrm"
    assert utils.get_callable_name(RetrmReward("shortest", name="elhsr")) == "elhsr"
    assert not utils.is_async_callable(PolicyStatesReward("folder"))
    assert utils.get_callable_name(PolicyStatesReward("folder")) == "retrm_policy_states"


def test_trl_callables_are_no_modules_since_modules_would_lose_the_messages():
    torch = pytest.importorskip("torch")
    assert not isinstance(RetrmReward("shortest"), torch.nn.Module)
    assert not isinstance(PolicyStatesReward("folder"), torch.nn.Module)


@pytest.mark.parametrize("one", [retrm_reward, RetrmReward("shortest", name="x")])
def test_trl_callables_travel_to_the_workers_of_the_asynchronous_trainer(one, server):
    again = pickle.loads(pickle.dumps(one))
    assert again.__name__ == one.__name__
    assert rewarded(again, **PLAIN) == [-3.0, -1.0]


def test_trl_the_policys_own_states_do_not_travel():
    with pytest.raises(
        RecipeError, match="expected RetrmReward where rewards are computed elsewhere"
    ):
        pickle.dumps(PolicyStatesReward("folder"))
    with pytest.raises(RecipeError, match="has no policy to read"):
        PolicyStatesReward("folder")(**PLAIN)


def test_trl_is_told_tokens_and_what_was_cut(monkeypatch):
    def cut_first(_: int, body: dict) -> Reply:
        reply = rewards(body)
        lost = {"side": "prompt", "dropped": 5}
        reply["results"][0] |= {"truncated": True, "truncation": lost}
        return ok(reply)

    metrics, extras = {}, {}
    with reward_server(cut_first) as running:
        one = RetrmReward(url=running.url, length_policy="truncate_prompt")
        rewarded(one, **PLAIN, log_metric=metrics.__setitem__, log_extra=extras.__setitem__)

    # Tokens of the stand-in: the length and 3, so 6 and 4.
    assert metrics == {"retrm/truncated": 0.5, "retrm/tokens": 5.0}
    assert extras == {"retrm_tokens": [6, 4]}
    assert running.requests[0]["length_policy"] == "truncate_prompt"


def test_trl_a_failure_is_an_error_and_neither_none_nor_zero(refusing):
    with pytest.raises(RefusedError, match="item 0 is too long"):
        rewarded(RetrmReward(), **PLAIN)


def test_trl_a_completion_without_an_answer_is_an_error(server):
    with pytest.raises(DataError, match=r"completion 1.*from 'tool'"):
        rewarded(
            RetrmReward(), prompts=["p"] * 2, completions=["a", [{"role": "tool", "content": "4"}]]
        )
    with pytest.raises(DataError, match="1 prompts and 2 completions"):
        rewarded(RetrmReward(), prompts=["p"], completions=["a", "b"])
    assert server.requests == []


def test_trl_command_line_finds_a_callable_by_its_dotted_name(server):
    pytest.importorskip("trl", reason="trl is not installed")
    # As trl.scripts.grpo does it for a dotted name: the module, then the attribute, used as it is.
    found = importlib.import_module("retrm.adapters.trl").retrm_reward
    assert rewarded(found, **PLAIN) == [-3.0, -1.0]


# verl

SAMPLE = {"data_source": "gsm8k", "solution_str": "abc", "ground_truth": "7"}
KEYS = {"score", "retrm_score", "retrm_tokens", "retrm_truncated"}


def test_verl_gets_the_same_keys_for_every_sample_and_numbers_only(server):
    info = {"prompt": "p", "num_turns": None}
    found = [
        asyncio.run(verl.compute_score(**{**SAMPLE, "solution_str": text}, extra_info=info))
        for text in ("abc", "a")
    ]
    assert [one["score"] for one in found] == [-3.0, -1.0]
    assert all(set(one) == KEYS for one in found)
    assert all(type(value) is float for one in found for value in one.values())


def test_verl_detects_it_as_async():
    assert inspect.iscoroutinefunction(verl.compute_score)


def test_verl_is_told_which_key_of_extra_info_is_missing(server):
    with pytest.raises(DataError, match=r"'gsm8k' has no 'prompt'.*mean 'prompts'.*prompt_key"):
        asyncio.run(verl.compute_score(**SAMPLE, extra_info={"prompts": "p"}))
    with pytest.raises(DataError, match="It is empty"):
        asyncio.run(verl.compute_score(**SAMPLE, extra_info=None))
    found = asyncio.run(verl.compute_score(**SAMPLE, extra_info={"q": "p"}, prompt_key="q"))
    assert found["score"] == -3.0


def test_verl_a_failure_is_an_error_and_no_zero(refusing):
    with pytest.raises(EndpointError, match="item 0 is too long"):
        asyncio.run(verl.compute_score(**SAMPLE, extra_info={"prompt": "p"}))


class Row:
    """What verl's managers read of a DataProto of one sample."""

    def __init__(self, extra_info: dict, response: list[int]) -> None:
        import torch

        ids = torch.tensor(response)
        mask = torch.ones(len(response) + 2, dtype=torch.int64)
        self.batch = {"responses": ids, "attention_mask": mask}
        truth = {"reward_model": {"ground_truth": "7"}, "data_source": "gsm8k"}
        self.non_tensor_batch = {**truth, "extra_info": extra_info}

    def __getitem__(self, key):
        return self


@pytest.fixture
def verl_code(monkeypatch):
    """verl's own loading of reward functions, and its naive manager, from their files."""

    class Loop:
        async def run_in_executor(self, _, call):
            return call()

    stubs = {
        "omegaconf": {"DictConfig": dict},
        "verl": {"DataProto": object},
        "verl.utils": {},
        "verl.utils.reward_score": {
            "get_default_compute_score": None,
            "default_compute_score": None,
        },
        "verl.utils.ray_utils": {"get_event_loop": Loop},
    }
    loop = "verl.experimental.reward_loop.reward_manager"
    imports = peer_file("verl", "verl/utils/import_utils.py")
    for name, members in stubs.items():
        run_stub = {name: members}
        run_file(monkeypatch, imports, "verl.utils.import_utils", run_stub)
    reward = run_file(
        monkeypatch, peer_file("verl", "verl/trainer/ppo/reward.py"), "verl.trainer.ppo.reward", {}
    )
    base = run_file(monkeypatch, peer_file("verl", "reward_manager/base.py"), f"{loop}.base", {})
    monkeypatch.setattr(sys.modules[loop], "register", lambda _: lambda made: made, raising=False)
    assert base.RewardManagerBase
    naive = run_file(
        monkeypatch,
        peer_file("verl", "verl/experimental/reward_loop/reward_manager/naive.py"),
        f"{loop}.naive",
        {},
    )
    return reward, naive


@pytest.mark.parametrize("by", ["pkg", "file"])
def test_verl_its_own_loader_and_manager_get_the_score(verl_code, server, by):
    reward, naive = verl_code
    path = "pkg://retrm.adapters.verl" if by == "pkg" else verl.__file__
    config = SimpleNamespace(
        reward={
            "custom_reward_function": {
                "path": path,
                "name": "compute_score",
                "reward_kwargs": {"prompt_key": "question"},
            }
        }
    )
    function = reward.get_custom_reward_fn(config)
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "x" * len(ids))
    manager = naive.NaiveRewardManager(config, tokenizer, function)
    assert manager.is_async_reward_score

    found = asyncio.run(manager.run_single(Row({"question": "p"}, [1, 2, 3, 4])))

    assert found["reward_score"] == -4.0
    assert set(found["reward_extra_info"]) == KEYS
    with pytest.raises(Exception, match="has no 'question'"):
        asyncio.run(manager.run_single(Row({}, [1])))


# OpenRLHF


def test_openrlhf_gets_lists_of_the_length_of_the_queries_and_numbers(server):
    found = openrlhf.reward_func(["pabc"], ["p"], [None])
    assert found["rewards"] == [-3.0]
    assert found["scores"] == pytest.approx([0.0474258731])  # 1 / (1 + e^3)
    assert all(len(values) == 1 for values in found["extra_logs"].values())
    assert all(type(values[0]) is float for values in found["extra_logs"].values())
    assert server.requests[0]["rendered"] == ["pabc"]
    assert server.requests[0]["prompt_texts"] == ["p"]


def test_openrlhf_binary_scores_let_its_filter_drop_prompts(server, monkeypatch):
    monkeypatch.setenv("RETRM_BINARY_ABOVE", "-2")
    found = openrlhf.reward_func(["pabc", "pa"], ["p", "p"], [None, None])
    assert found["scores"] == [0.0, 1.0]
    assert found["rewards"] == [-3.0, -1.0]
    monkeypatch.setenv("RETRM_BINARY_ABOVE", "high")
    with pytest.raises(RecipeError, match="RETRM_BINARY_ABOVE='high'"):
        openrlhf.reward_func(["pa"], ["p"], [None])


def test_openrlhf_a_failure_is_logged_as_an_error_since_the_host_hides_exceptions(refusing, caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(RefusedError):
        openrlhf.reward_func(["pa"], ["p"], [None])
    assert "item 0 is too long" in caplog.text


def test_openrlhf_a_scorer_that_needs_messages_is_refused(monkeypatch):
    monkeypatch.setenv("RETRM_SCORER", "shortest")
    with pytest.raises(RecipeError, match="takes messages, and this trainer gives rendered text"):
        openrlhf.reward_func(["pa"], ["p"], [None])


def test_openrlhf_its_own_executor_loads_the_file_and_calls_it(monkeypatch, server):
    stubs = {
        "aiohttp": {"ClientTimeout": object},
        "openrlhf.utils.logging_utils": {"init_logger": logging.getLogger},
    }
    agent = run_file(
        monkeypatch, peer_file("openrlhf", "openrlhf/utils/agent.py"), "openrlhf.utils.agent", stubs
    )
    executor = agent.SingleTurnAgentExecutor(openrlhf.__file__)
    found = asyncio.run(executor._fetch_rewards_via_func(["pab", "pa"], ["p", "p"], [None, "7"]))
    assert [one["rewards"] for one in found] == [[-2.0], [-1.0]]


# EasyR1


def test_easyr1_gets_a_dict_with_overall_for_every_sample_in_order(server):
    truth = json.dumps({"prompt": "p", "answer": "7"})
    inputs = [{"response": t, "response_length": 1, "ground_truth": truth} for t in ("abc", "a")]
    found = easyr1.main(inputs)
    assert [one["overall"] for one in found] == [-3.0, -1.0]
    assert {frozenset(one) for one in found} == {
        frozenset({"overall", "retrm_score", "retrm_tokens", "retrm_truncated"})
    }
    assert easyr1.REWARD_TYPE == "batch"
    assert not inspect.iscoroutinefunction(easyr1.main)
    assert len(server.requests) == 1


@pytest.mark.parametrize("truth", ["7", "{", '{"answer": "7"}', '["p"]', 7])
def test_easyr1_a_ground_truth_without_a_prompt_is_refused(server, truth):
    with pytest.raises(DataError, match=r"sample 0.*EasyR1 passes no prompt"):
        easyr1.main([{"response": "a", "ground_truth": truth}])


# verifiers


class Trace:
    """What is read and written of a verifiers Trace."""

    def __init__(self, turns: list[dict], prompt: object = "p") -> None:
        defaults = {"tool_calls": None, "tool_call_id": None}
        self.id = "t"
        self.messages = [SimpleNamespace(**{**defaults, **turn}) for turn in turns]
        self.task = SimpleNamespace(data=SimpleNamespace(prompt=prompt))
        self.metrics: dict[str, float] = {}

    def record_metric(self, name: str, value: float) -> None:
        self.metrics[name] = float(value)


def trace_of(text: str) -> Trace:
    return Trace([{"role": "user", "content": "p"}, {"role": "assistant", "content": text}])


def test_verifiers_the_last_reply_is_judged_behind_all_that_was_said(server):
    call = SimpleNamespace(id="1", name="f", arguments="{}")
    trace = Trace(
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "p"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "4", "tool_call_id": "1"},
            {"role": "assistant", "content": "It is 4"},
            {"role": "tool", "content": "late", "tool_call_id": "1"},
        ]
    )
    assert asyncio.run(verifiers.retrm_reward(trace.task.data, trace)) == -7.0
    sent = server.requests[0]["messages"][0]
    assert [turn["role"] for turn in sent] == ["system", "user", "assistant", "tool", "assistant"]
    assert sent[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_verifiers_a_reply_alone_is_put_behind_the_tasks_prompt(server):
    trace = Trace([{"role": "assistant", "content": "ab"}])
    assert asyncio.run(verifiers.retrm_reward(trace.task.data, trace)) == -2.0
    trace.task.data.prompt = None
    with pytest.raises(DataError, match="expected a prompt in the trace or its task"):
        asyncio.run(verifiers.retrm_reward(trace.task.data, trace))


def test_verifiers_a_trace_without_a_reply_is_an_error_and_no_zero(server):
    with pytest.raises(DataError, match="no assistant turn in text"):
        asyncio.run(verifiers.retrm_reward(None, Trace([{"role": "user", "content": "p"}])))


def test_verifiers_attempts_are_scored_in_one_request_and_the_first_best_is_marked(server):
    traces = [trace_of(t) for t in ("abc", "a", "b")]
    assert asyncio.run(verifiers.score_group(traces)) == [-3.0, -1.0, -1.0]
    assert [t.metrics["retrm_best"] for t in traces] == [0.0, 1.0, 0.0]
    assert [t.metrics["retrm_score"] for t in traces] == [-3.0, -1.0, -1.0]
    assert len(server.requests) == 1
    with pytest.raises(DataError, match="no traces"):
        asyncio.run(verifiers.score_group([]))


def test_verifiers_its_own_caller_chooses_the_arguments_by_name(monkeypatch, server):
    decorators = run_file(
        monkeypatch, peer_file("verifiers", "v1/utils/decorators.py"), "vf_decorators", {}
    )
    trace = trace_of("abc")
    available = {"task": trace.task.data, "trace": trace, "runtime": object()}
    found = asyncio.run(decorators.invoke_all([verifiers.retrm_reward] * 2, available))
    assert found == [-3.0, -3.0]


def test_verifiers_real_messages_are_read(monkeypatch, server):
    types = run_file(monkeypatch, peer_file("verifiers", "verifiers/v1/types.py"), "vf_types", {})
    call = types.ToolCall(id="1", name="f", arguments="{}")
    trace = trace_of("x")
    trace.messages = [
        types.SystemMessage(content="s"),
        types.UserMessage(content=[types.TextContentPart(text="p")]),
        types.AssistantMessage(tool_calls=[call]),
        types.ToolMessage(tool_call_id="1", content="4"),
        types.AssistantMessage(content="It is 4"),
    ]
    assert asyncio.run(verifiers.retrm_reward(None, trace)) == -7.0
    image = types.ImageUrlContentPart(image_url=types.ImageUrlSource(url="u"))
    trace.messages[1] = types.UserMessage(content=[image])
    with pytest.raises(DataError, match="of type 'image_url'"):
        asyncio.run(verifiers.retrm_reward(None, trace))


# its_hub


@pytest.fixture
def its_hub():
    pytest.importorskip("its_hub", reason="its_hub is not installed")
    return importlib.import_module("retrm.adapters.its_hub")


def chat(text: str) -> list:
    from its_hub.api import ChatMessage

    return [ChatMessage("user", "p"), ChatMessage("assistant", text)]


def test_its_hub_one_conversation_gives_a_number_and_several_a_list(its_hub, server):
    from its_hub.api import ChatMessages

    orm = its_hub.RetrmOutcome()
    assert orm.score(chat("abc")) == -3.0
    assert orm.score(ChatMessages(chat("abc"))) == -3.0
    assert orm.score([chat("abc"), chat("a")]) == [-3.0, -1.0]
    assert asyncio.run(orm.ascore([chat("abc"), chat("a")], orchestrator=object())) == [-3.0, -1.0]
    assert asyncio.run(orm.ascore(chat("abc"))) == -3.0
    assert orm.score([]) == []


def test_its_hub_parts_of_text_are_joined_and_images_are_refused(its_hub, server):
    from its_hub.api import ChatMessage

    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    orm = its_hub.RetrmOutcome()
    assert orm.score([ChatMessage("user", "p"), ChatMessage("assistant", parts)]) == -2.0
    picture = [{"type": "image_url", "image_url": {"url": "u"}}]
    with pytest.raises(DataError, match="of type 'image_url'"):
        orm.score([ChatMessage("user", picture), ChatMessage("assistant", "a")])


class Language:
    """A language model and orchestrator that give set answers."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    async def agenerate(self, lm, batch, **options):
        return [{"role": "assistant", "content": text} for text in self.texts]


def test_its_hub_best_of_n_itself_chooses_by_the_scores(its_hub, server):
    from its_hub.core.algorithms.bon import BestOfN

    lm = Language(["abc", "a", "ab", "a"])
    found = asyncio.run(
        BestOfN(its_hub.RetrmOutcome(), orchestrator=lm).ainfer(
            lm, "p", 4, return_response_only=False
        )
    )
    assert found.scores == [-3.0, -1.0, -2.0, -1.0]
    assert found.the_one["content"] == "a"


class Steps:
    """A generator of steps for its_hub's searches: each path grows by one letter, then stops."""

    max_steps = 3

    async def aforward(self, lm, prompts, steps_so_far, **options):
        n = len(steps_so_far[0])
        return [("x" * (i + 1), n == 1) for i in range(len(prompts))]

    def _post_process(self, steps, stopped):
        return "".join(steps)


@pytest.mark.parametrize("name", ["beam", "particles"])
def test_its_hub_searches_take_the_process_scores(its_hub, server, name):
    if name == "beam":
        from its_hub.core.algorithms.beam_search import BeamSearch

        search = BeamSearch(Steps(), its_hub.RetrmProcess(), beam_width=2)
    else:
        from its_hub.core.algorithms.particle_gibbs import ParticleFiltering

        search = ParticleFiltering(Steps(), its_hub.RetrmProcess())
    found = asyncio.run(search.ainfer(None, "p", 4, return_response_only=False))
    assert set(found.the_one["content"]) == {"x"}
    assert server.requests[0]["messages"][0][0] == {"role": "user", "content": "p"}


def test_its_hub_process_scores_are_probabilities_of_each_answer_so_far(its_hub, server):
    prm = its_hub.RetrmProcess()
    # 1 / (1 + e^3) and 1 / (1 + e)
    assert prm.score("p", ["abc", "a"]) == pytest.approx([0.0474258731, 0.2689414214])
    assert asyncio.run(prm.ascore(chat("x")[:1], ["abc"])) == pytest.approx([0.0474258731])
    assert prm.score("p", "a") == pytest.approx(0.2689414214)


def test_its_hub_that_is_missing_is_named_with_the_pip_line(monkeypatch):

    monkeypatch.setitem(sys.modules, "its_hub.api", None)
    monkeypatch.delitem(sys.modules, "retrm.adapters.its_hub", raising=False)
    with pytest.raises(MissingExtraError, match="pip install its_hub"):
        importlib.import_module("retrm.adapters.its_hub")


# lm-eval


def test_lm_eval_keeps_the_best_answer_of_each_row_in_order(server):
    docs = [{"question": "p"}, {"question": "q"}]
    resps = [["abc", "a", "b"], ["abcd", "abcde"]]
    assert lm_eval.retrm_best_of_n(resps, docs) == [["a"], ["abcd"]]
    assert {m[0]["content"] for r in server.requests for m in r["messages"]} == {"p", "q"}


def test_lm_eval_prompts_are_made_as_the_task_says(server):
    keep = lm_eval.best_of_n_by(lambda doc: [{"role": "user", "content": doc["text"]}])
    assert keep([["ab", "a"]], [{"text": "p"}]) == [["a"]]
    with pytest.raises(DataError, match="row 0 has no answers"):
        keep([[]], [{"text": "p"}])
    with pytest.raises(DataError, match="2 rows and 1 rows"):
        keep([["a"], ["b"]], [{"text": "p"}])


# Examples


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_the_examples_run(file, server, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = {"its_hub_best_of_n": "its_hub", "inspect_log": "inspect_ai"}
    pytest.importorskip(needed.get(file.stem, "json"))
    runpy.run_path(str(file), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_every_adapter_has_an_example_of_about_ten_lines():
    files = {file.stem: file.read_text() for file in EXAMPLES.glob("*.py")}
    hosts = ("trl", "verl", "openrlhf", "easyr1", "verifiers", "its_hub", "lm_eval", "inspect")
    for host in hosts:
        own = [text for text in files.values() if f"retrm.adapters.{host} " in text]
        assert own, host
        assert all(len([x for x in t.splitlines() if x.strip()]) <= 16 for t in own), host


def test_a_whole_conversation_is_an_answer_to_all_before_it():
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]
    assert conversation_of(turns, "w") == answer_of("p", "a", "w")
    assert isinstance(conversation_of(turns, "w"), Answer)
    with pytest.raises(DataError, match="there is an answer only"):
        conversation_of(turns[1:], "w")


def test_the_stand_in_scores_by_length():
    assert (
        json.loads(honest(0, {"activation": "none", "candidates": ["abc"]})[2])["results"][0][
            "score"
        ]
        == -3.0
    )
