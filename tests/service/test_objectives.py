"""Objectives over HTTP: asked for, they add up to the score that stands beside them."""

import asyncio
import math

import pytest
from listening import listening
from mixed import OBJECTIVES, mixed_model
from served import Held, asked, call, client, model, run, service

from retrm.errors import EndpointError, RefusedError
from retrm.service.app import create_app
from retrm.service.client import AsyncRewardClient, RewardClient
from retrm.service.core import Service
from retrm.service.models import Registry
from retrm.service.rewards import rewards_of

PROMPT = "What is 2 + 2?"
ANSWERS = ["It is 4.", "It is 5, I think.", "No."]
MIXED = mixed_model()
PLAIN = model(MIXED.backbone)


@pytest.fixture(scope="module")
def address():
    served = Registry.of({"mixed": MIXED, "plain": PLAIN})
    with listening(create_app(Service(served))) as url:
        yield url


def posted(body, *, settings=None):
    async def ask():
        made = service({"mixed": MIXED, "plain": PLAIN}, **(settings or {}))
        async with client(made) as http:
            return await http.post("/v1/reward", json=body)

    return run(ask)


def test_the_client_gets_objectives_that_add_up_to_the_score(address) -> None:
    with RewardClient(address) as asking:
        rewards = asking.score(PROMPT, ANSWERS, per_objective=True)
        plain = asking.score(PROMPT, ANSWERS)
    for reward, text, alone in zip(rewards, ANSWERS, plain, strict=True):
        why = MIXED.explain(PROMPT, text)
        assert [part.name for part in reward.objectives] == list(OBJECTIVES)
        assert math.fsum(part.contribution for part in reward.objectives) == reward.score
        assert [part.contribution for part in reward.objectives] == pytest.approx(
            why.contributions, abs=1e-5
        )
        assert [part.as_rated for part in reward.objectives] == pytest.approx(
            why.as_rated, abs=1e-4
        )
        for part in reward.objectives:
            assert part.contribution == pytest.approx(part.gate * part.adjusted, rel=1e-6, abs=1e-9)
        # Asking why does not change what is said, but for the last digits of another reading.
        assert alone.objectives is None
        assert reward.score == pytest.approx(alone.score, abs=1e-5)


def test_its_twin_for_event_loops_gets_them_too(address) -> None:
    async def ask():
        async with AsyncRewardClient(address) as asking:
            turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "4"}]
            return await asking.reward(turns, per_objective=True, activation="sigmoid")

    (reward,) = run(ask)
    assert math.fsum(part.contribution for part in reward.objectives) == reward.score
    assert reward.value == pytest.approx(1 / (1 + math.exp(-reward.score)))


def test_objectives_and_tokens_can_be_asked_together() -> None:
    reply = posted(
        {"prompt": PROMPT, "candidates": ANSWERS, "per_objective": True, "per_token": True}
    )
    for result in reply.json()["results"]:
        total = math.fsum(part["contribution"] for part in result["objectives"])
        assert total == result["score"]
        assert result["token_scores"][-1]["running"] == pytest.approx(total, abs=1e-4)


def test_what_is_skipped_has_no_objectives_and_the_others_keep_theirs() -> None:
    body = {
        "prompt": PROMPT,
        "candidates": ["x" * 2000, "It is 4."],
        "per_objective": True,
        "length_policy": "skip",
    }
    left_out, kept = posted(body).json()["results"]

    assert left_out["objectives"] is None
    assert left_out["score"] is None
    assert kept["score"] == math.fsum(part["contribution"] for part in kept["objectives"])


def test_more_answers_than_one_part_of_a_request_stay_in_order() -> None:
    texts = [f"It is {k}." for k in range(40)]
    results = posted({"prompt": PROMPT, "candidates": texts, "per_objective": True}).json()[
        "results"
    ]

    assert [result["score"] for result in results] == pytest.approx(
        MIXED.score([(PROMPT, text) for text in texts]), abs=1e-5
    )


def test_a_model_without_objectives_refuses_in_words(address) -> None:
    with RewardClient(address, model="plain") as asking, pytest.raises(RefusedError) as refused:
        asking.score(PROMPT, ANSWERS, per_objective=True)

    assert refused.value.status == 400
    assert "plain cannot show objectives" in str(refused.value)


def test_the_list_of_models_says_which_have_objectives(address) -> None:
    with RewardClient(address) as asking:
        found = {one.name: one.facts["objectives"] for one in asking.models()}

    assert found == {"mixed": list(OBJECTIVES), "plain": []}


def test_a_request_that_was_taken_is_explained_while_the_server_ends() -> None:
    async def ask():
        made = service(MIXED)
        await made.start()
        async with Held(made) as held:
            judging = asyncio.ensure_future(
                made.judge(call(*asked(PROMPT, *ANSWERS), per_objective=True))
            )
            await held.until_waiting(len(ANSWERS))
            made.refuse_new()
        answered = await judging
        await made.drain()
        return answered

    for one in run(ask).judged:
        assert one.score == math.fsum(one.explanation.contributions)


def test_a_reply_whose_objectives_do_not_add_up_is_refused() -> None:
    part = dict.fromkeys(("score", "adjusted", "gate", "contribution", "coefficient"), 1.0)
    result = {"index": 0, "score": 1.5, "objectives": [{"name": "help", **part, "as_rated": None}]}
    with pytest.raises(EndpointError, match=r"objectives that add up to 1\.0 beside score 1.5"):
        rewards_of({"results": [result]}, 1, "none", "http://server")
