"""POST /v1/sample: bounded, in slices between which others are served, and it can be switched off."""

import asyncio

import httpx
import pytest
from served_page import registry

from retrm.backbone.generate import sample
from retrm.errors import BusyError
from retrm.records import Answer, Prompt
from retrm.service import sampling
from retrm.service.app import create_app
from retrm.service.core import Service
from retrm.service.items import Call, Item

ASKED = {"model": "gated", "prompt": "What is 2 + 2?", "n": 3, "max_new_tokens": 6, "seed": 7}


def posted(body, *, has_sampling=True):
    """Reply of one request to a service that begins and ends with it."""

    async def run():
        service = Service(registry())
        app = create_app(service, has_sampling=has_sampling)
        transport = httpx.ASGITransport(app=app)
        async with service, httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/v1/sample", json=body)

    return asyncio.run(run())


def test_answers_are_those_of_the_models_own_backbone_and_seed():
    reply = posted(ASKED)
    backbone = registry().get("gated").scorer.backbone
    expected = sample(
        backbone, [Prompt.of(ASKED["prompt"])], n=3, temperature=0.8, max_new_tokens=6, seed=7
    )

    assert reply.status_code == 200
    found = reply.json()
    assert [one["text"] for one in found["answers"]] == [one.response for one in expected]
    assert [one["index"] for one in found["answers"]] == [0, 1, 2]
    assert (found["model"], found["warnings"]) == ("gated", [])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"n": 17}, "n: Input should be less than or equal to 16"),
        ({"max_new_tokens": 257}, "max_new_tokens: Input should be less than or equal to 256"),
        ({"prompt": ""}, "prompt: String should have at least 1 character"),
        ({"temperature": 0}, "temperature=0 with n=3"),
        ({"prompt": "x" * 2000}, "exceeds the context of 1024 tokens"),
    ],
)
def test_what_is_out_of_bounds_is_refused_in_words(changed, words):
    reply = posted({**ASKED, **changed})

    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


def test_an_unknown_model_is_not_found():
    assert posted({**ASKED, "model": "gate"}).status_code == 404


def test_unknown_fields_are_named():
    assert posted({**ASKED, "top_p": 1}).json()["warnings"] == ["unknown field 'top_p' was ignored"]


def test_a_server_without_sampling_has_no_such_path():
    assert posted(ASKED, has_sampling=False).status_code == 404


def test_scores_are_given_while_answers_are_being_drawn(monkeypatch):
    monkeypatch.setattr(sampling, "SLICE_S", 0.0)  # one token a slice
    finished = []

    async def drawn(service):
        body = sampling.SampleBody(**{**ASKED, "max_new_tokens": 60, "seed": 1})
        await sampling.Sampling(service).draw(body)
        finished.append("drawing")

    async def scored(service):
        item = Item(answer=Answer.of("Hi", "there"))
        found = await service.judge(Call("gated", (item,)))
        finished.append("score")
        return found.judged[0].score

    async def run():
        async with Service(registry()) as service:
            alone = await scored(service)
            finished.clear()
            drawing = asyncio.create_task(drawn(service))
            await asyncio.sleep(0)
            during = await scored(service)
            await drawing
            return alone, during

    alone, during = asyncio.run(run())

    assert during == alone
    assert finished == ["score", "drawing"]


def test_a_drawing_that_nobody_waits_for_ends_with_its_slice(monkeypatch):
    monkeypatch.setattr(sampling, "SLICE_S", 0.0)
    steps = []
    whole = sampling._slice
    monkeypatch.setattr(sampling, "_slice", lambda drawing: (steps.append(1), whole(drawing)))

    async def run():
        async with Service(registry()) as service:
            body = sampling.SampleBody(**{**ASKED, "max_new_tokens": 250})
            task = asyncio.create_task(sampling.Sampling(service).draw(body))
            while len(steps) < 3:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            seen = len(steps)
            await asyncio.sleep(0.05)
            return seen

    seen = asyncio.run(run())

    assert len(steps) <= seen + 1 < 250


def test_a_third_drawing_at_a_time_is_told_to_come_again(monkeypatch):
    monkeypatch.setattr(sampling, "SLICE_S", 0.0)
    body = sampling.SampleBody(**{**ASKED, "max_new_tokens": 30})

    async def run():
        async with Service(registry()) as service:
            drawer = sampling.Sampling(service)
            tasks = [asyncio.create_task(drawer.draw(body)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="answers to 2 questions are being drawn"):
                await drawer.draw(body)
            both = await asyncio.gather(*tasks)
            later = await drawer.draw(body)
            return [*both, later]

    one, two, later = asyncio.run(run())

    assert one["answers"] == two["answers"] == later["answers"]
