"""The application: limits, key, errors in one shape, and what it says of itself."""

import asyncio
import json
import logging
import re

import httpx
import numpy as np
import pytest
from served import BROKEN, Held, PlainScorer, SpyBackbone, client, model, run, service

from retrm.backbone.fake import FakeBackbone
from retrm.errors import DataError
from retrm.records import Answer
from retrm.service.app import create_app, parse
from retrm.service.dialects import ROUTES

BACKBONE = FakeBackbone()
RM = model(BACKBONE)
ONE = {"prompt": "q", "candidates": ["a"]}


def post(made, body=None, *, path="/v1/reward", token=None, **options):
    """The reply to one request."""

    async def work():
        async with client(made, token=token) as http:
            sent = options if body is None else {"json": body, **options}
            return await http.post(path, **sent)

    return run(work)


def error_of(reply):
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == reply.status_code
    return error


def test_scores_come_back_raw_in_order_with_timing_and_id():
    texts = ["one", "another", "a third"]

    reply = post(service(RM), {"prompt": "q", "candidates": texts, "request_id": "mine"})

    expected = RM.score([("q", text) for text in texts])
    assert reply.status_code == 200
    got = [one["score"] for one in reply.json()["results"]]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert reply.headers["x-request-id"] == "mine"
    assert reply.json()["id"] == "mine"
    assert re.fullmatch(
        r"wait;dur=[\d.]+, forward;dur=[\d.]+, total;dur=[\d.]+", reply.headers["server-timing"]
    )


def test_the_id_of_the_header_is_echoed_where_it_can_stand_in_a_header():
    good = post(service(RM), ONE, headers={"x-request-id": "abc-1"})
    bad = post(service(RM), ONE, headers={"x-request-id": "has spaces"})
    refused = post(service(RM), {"a": 1}, headers={"x-request-id": "abc-2"})

    assert good.headers["x-request-id"] == "abc-1"
    assert re.fullmatch("[0-9a-f]{32}", bad.headers["x-request-id"])
    assert refused.headers["x-request-id"] == "abc-2"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b'{"prompt": "q", "candidates": ["a"], "x": NaN}', "no JSON"),
        (b'{"prompt": "q", "candidates": ["a"], "x": Infinity}', "no JSON"),
        (b'{"prompt": "\\ud800", "candidates": ["a"]}', "no JSON"),
        (b'{"prompt": "\xff", "candidates": ["a"]}', "no JSON"),
        (b'{"x": ' + b"[" * 5000 + b"]" * 5000 + b"}", "no JSON"),
        (b'["a"]', "expected an object"),
        (b"null", "expected an object"),
    ],
)
def test_what_is_no_json_object_is_refused(content, said):
    headers = {"content-type": "application/json"}

    reply = post(service(RM), content=content, headers=headers)

    assert reply.status_code == 400
    assert said in error_of(reply)["message"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b'{"prompt": "q", "candidates": ["a"], "prompt": "other"}', "'prompt'"),
        (b'{"prompt": "q", "candidates": ["a"], "\\u0070rompt": "q"}', "'prompt'"),
        (
            b'{"messages": [{"role": "user", "content": "q"}, '
            b'{"role": "assistant", "content": "a", "content": "b"}]}',
            "'content'",
        ),
        (b'{"prompt": "q", "candidates": ["a"], "x": {"y": 1, "y": 1}}', "'y'"),
    ],
)
def test_a_name_that_stands_twice_is_refused_since_readers_differ_on_which_counts(content, name):
    reply = post(service(RM), content=content, headers={"content-type": "application/json"})

    assert reply.status_code == 400
    assert f"an object of the body has {name} twice" in error_of(reply)["message"]


def test_one_name_in_several_objects_and_in_texts_is_no_name_twice():
    body = {"prompt": '{"a": 1, "a": 2}', "candidates": ["x"]}

    assert post(service(RM), body).status_code == 200


def test_a_wrong_field_is_named_without_its_value():
    reply = post(service(RM), {"prompt": "q", "candidates": [{"secret": "text"}], "per_token": "?"})

    error = error_of(reply)
    assert reply.status_code == 400
    assert "candidates.0" in error["message"]
    assert "per_token" in error["message"]
    assert "secret" not in reply.text
    assert error["param"].startswith("candidates")


def test_other_types_than_json_are_refused():
    form = post(service(RM), data={"a": "b"})
    packed = post(service(RM), ONE, headers={"content-encoding": "gzip"})

    assert (form.status_code, packed.status_code) == (415, 415)
    assert "application/json" in error_of(form)["message"]
    assert "Content-Encoding" in error_of(packed)["message"]


def test_an_unknown_path_and_a_wrong_method_have_the_same_shape_of_error():
    async def work():
        async with client(service(RM)) as http:
            return await http.get("/nothing"), await http.get("/v1/reward")

    nothing, wrong = run(work)
    assert (nothing.status_code, wrong.status_code) == (404, 405)
    assert error_of(nothing)["type"] == "NotFoundError"
    assert error_of(wrong)["type"] == "MethodNotAllowedError"
    assert "POST" in wrong.headers["allow"]


def test_best_of_n_takes_a_length_policy():
    small = model(FakeBackbone(context_length=60))
    body = {"prompt": "q", "candidates": ["x" * 100, "a"], "length_policy": "skip"}

    reply = post(service(small), body, path="/v1/best_of_n").json()

    assert (reply["best"]["index"], len(reply["ranking"])) == (1, 1)
    assert reply["usage"]["skipped"] == 1


def test_an_unknown_model_is_404_with_the_nearest():
    reply = post(service({"math": RM}), {**ONE, "model": "maths"})

    assert reply.status_code == 404
    assert "Did you mean 'math'?" in error_of(reply)["message"]


# Limits


def test_a_body_beyond_the_limit_is_refused_by_its_header_or_as_it_comes():
    async def chunks():
        for _ in range(20):
            yield b" " * 100

    told = post(service(RM, max_body_bytes=1000), {"prompt": "q" * 1000, "candidates": ["a"]})
    headers = {"content-type": "application/json"}
    chunked = post(service(RM, max_body_bytes=1000), content=chunks(), headers=headers)

    for reply in (told, chunked):
        assert reply.status_code == 413
        assert "larger than 1000 bytes" in error_of(reply)["message"]


def test_more_items_than_are_taken_are_413():
    reply = post(service(RM, max_items=2), {"prompt": "q", "candidates": ["a", "b", "c"]})

    assert reply.status_code == 413
    assert "got 3 items" in error_of(reply)["message"]


def test_a_full_queue_answers_what_the_clients_of_each_protocol_try_again():
    async def work():
        made = service(RM, max_items=1, max_waiting_items=1)
        async with client(made) as http:
            async with Held(made) as held:
                taken = asyncio.ensure_future(http.post("/v1/reward", json=ONE))
                await held.until_waiting(1)
                ours = await http.post("/v1/reward", json=ONE)
                theirs = await http.post("/get_reward", json={"query": ["a"], "prompts": ["a"]})
                count = (await http.get("/metrics")).text
            return ours, theirs, count, (await taken).status_code

    ours, theirs, count, taken = run(work)
    assert (ours.status_code, theirs.status_code, taken) == (429, 503, 200)
    assert 1 <= int(ours.headers["retry-after"]) <= 60
    assert 1 <= int(theirs.headers["retry-after"]) <= 60
    assert error_of(theirs)["type"] == "OverloadedError"
    assert 'retrm:refused_requests_total{reason="busy"} 2.0' in count
    assert "retrm:num_requests_waiting 1.0" in count


def test_a_full_queue_says_how_long_its_work_will_take(monkeypatch):
    made = service(RM, max_items=1, max_waiting_items=1)
    monkeypatch.setattr(type(made.worker), "seconds_of_work", 7.4)

    async def work():
        async with client(made) as http, Held(made) as held:
            taken = asyncio.ensure_future(http.post("/v1/reward", json=ONE))
            await held.until_waiting(1)
            refused = await http.post("/v1/reward", json=ONE)
            held.go()
            await taken
            return refused

    assert run(work).headers["retry-after"] == "7"


def test_bytes_in_memory_are_bounded_across_requests():
    async def work():
        made = service(RM, max_body_bytes=200, max_waiting_bytes=200)
        async with client(made) as http:
            async with Held(made) as held:
                body = {"prompt": "q" * 100, "candidates": ["a"]}
                taken = asyncio.ensure_future(http.post("/v1/reward", json=body))
                await held.until_waiting(1)
                refused = await http.post("/v1/reward", json=body)
            return refused, await taken, await http.post("/v1/reward", json=body)

    refused, taken, later = run(work)
    assert [one.status_code for one in (refused, taken, later)] == [503, 200, 200]


def test_a_deadline_from_the_header_is_504():
    async def work():
        made = service(RM)
        async with client(made) as http, Held(made):
            return await http.post("/v1/reward", json=ONE, headers={"x-deadline-seconds": "0.05"})

    reply = run(work)
    assert reply.status_code == 504
    assert error_of(reply)["type"] == "DeadlineExceededError"


def test_the_time_in_which_the_body_came_is_part_of_the_deadline(monkeypatch):
    made, given = service(RM), []
    plain = made.judge_timed

    def spied(call, *, deadline_s, request_id):
        given.append(deadline_s)
        return plain(call, deadline_s=deadline_s, request_id=request_id)

    async def slowly():
        await asyncio.sleep(0.1)
        yield json.dumps(ONE).encode()

    monkeypatch.setattr(made, "judge_timed", spied)
    headers = {"content-type": "application/json", "x-deadline-seconds": "60"}
    assert post(made, content=slowly(), headers=headers).status_code == 200
    assert given[0] <= 59.9


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "soon"])
def test_a_deadline_that_is_no_time_is_refused(value):
    reply = post(service(RM), ONE, headers={"x-deadline-seconds": value})

    assert reply.status_code == 400
    assert "number above 0" in error_of(reply)["message"]


def test_a_client_that_goes_away_takes_its_items_with_it():
    spy = SpyBackbone()

    async def work():
        made = service(model(spy))
        async with made:
            app = create_app(made)
            body = json.dumps(ONE).encode()
            gone = asyncio.Event()
            messages = iter([{"type": "http.request", "body": body, "more_body": False}])
            sent = []

            async def receive():
                for message in messages:
                    return message
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message)

            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "POST",
                "scheme": "http",
                "path": "/v1/reward",
                "raw_path": b"/v1/reward",
                "query_string": b"",
                "headers": [(b"content-type", b"application/json")],
                "client": ("127.0.0.1", 1),
                "server": ("127.0.0.1", 2),
            }
            async with Held(made) as held:
                asked = asyncio.ensure_future(app(scope, receive, send))
                await held.until_waiting(1)
                gone.set()
                await held.until_waiting(0)
                await asked
            return sent[0]["status"], made.metrics.text().decode()

    status, counts = run(work)
    assert status == 499
    assert spy.passes == []
    assert 'retrm:refused_requests_total{reason="gone"} 1.0' in counts


# Faults


def test_a_failure_inside_is_500_with_the_item_and_without_what_was_inside(caplog):
    reply = post(service(model(SpyBackbone())), {"prompt": "q", "candidates": ["a", chr(BROKEN)]})

    assert reply.status_code == 500
    message = error_of(reply)["message"]
    assert message.startswith("item 1: ")
    assert "RuntimeError" in message
    assert "broken kernel" not in message  # the log has it
    assert "a broken kernel" in caplog.text


def test_a_score_that_is_no_number_is_500_and_never_json():
    reply = post(service(PlainScorer()), {"prompt": "q", "candidates": ["abc", "nan"]})

    assert reply.status_code == 500
    assert "item 1: the model scored this item as nan" in error_of(reply)["message"]


def test_an_unforeseen_error_is_a_500_in_the_one_shape(monkeypatch, caplog):
    made = service(RM)

    def broken(*_, **__):
        raise KeyError("secret text")

    monkeypatch.setattr(made, "judge_timed", broken)
    reply = post(made, ONE)

    assert reply.status_code == 500
    assert "secret" not in error_of(reply)["message"]
    assert "KeyError" in caplog.text


# Key


def test_without_the_key_nothing_but_page_and_health_is_answered():
    async def work():
        async with client(service(RM), token="right-key") as http:
            open_ = [await http.get("/health"), await http.get("/")]
            shut = [
                await http.get("/v1/models"),
                await http.get("/metrics"),
                await http.get("/openapi.json"),
                await http.post("/v1/reward", json=ONE),
                await http.get("/nothing"),
            ]
            for wrong in ("right-ke", "right-keyy", "", "Right-key"):
                headers = {"authorization": f"Bearer {wrong}"}
                shut.append(await http.post("/v1/reward", json=ONE, headers=headers))
            shut.append(await http.get("/v1/models", headers={"authorization": "Basic right-key"}))
            return open_, shut

    open_, shut = run(work)
    assert [one.status_code for one in open_] == [200, 200]
    assert {one.status_code for one in shut} == {401}
    assert all(one.headers["www-authenticate"] == "Bearer" for one in shut)
    assert error_of(shut[0])["type"] == "AuthenticationError"


def test_metrics_may_be_opened_and_nothing_else_with_them():
    async def work():
        made = service(RM)
        transport = httpx.ASGITransport(create_app(made, token="right-key", has_open_metrics=True))
        async with made, httpx.AsyncClient(transport=transport, base_url="http://s") as http:
            return [await http.get(path) for path in ("/metrics", "/health", "/v1/models")]

    assert [one.status_code for one in run(work)] == [200, 200, 401]


def test_behind_the_prefix_of_a_mount_page_and_health_are_as_open_as_without():
    app = create_app(service(RM), token="key")
    transport = httpx.ASGITransport(app, root_path="/rewards")

    async def work():
        async with (
            app.state.service,
            httpx.AsyncClient(transport=transport, base_url="http://server") as http,
        ):
            paths = ("/rewards/health", "/rewards/", "/rewards/v1/models", "/health/rewards/health")
            return [(await http.get(path)).status_code for path in paths]

    assert run(work) == [200, 200, 401, 401]


@pytest.mark.parametrize(
    "path",
    ["//health", "/health/", "/HEALTH", "/%2fhealth", "/health;a", "/./v1/models", "//v1/models"],
)
def test_no_spelling_of_a_path_passes_without_the_key(path):
    async def work():
        async with client(service(RM), token="right-key") as http:
            return await http.get(f"http://server{path}")

    assert run(work).status_code == 401


def test_a_key_beyond_ascii_is_wrong_and_no_fault():
    reply = post(service(RM), ONE, token="right-key", headers={"authorization": b"Bearer r\xffght"})

    assert reply.status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_the_key_all_is_answered(scheme):
    headers = {"authorization": f"{scheme} right-key"}

    reply = post(service(RM), ONE, token="right-key", headers=headers)

    assert reply.status_code == 200


# What it says of itself


def test_health_is_503_before_the_start_and_while_it_ends():
    async def work():
        made = service(RM)
        async with client(made) as http:
            ready = await http.get("/health")
            made.refuse_new()
            ending = await http.get("/health")
            refused = await http.post("/v1/reward", json=ONE)
        return ready, ending, refused, await http_after(made)

    async def http_after(made):
        transport = httpx.ASGITransport(create_app(made))
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as http:
            return await http.get("/health")

    ready, ending, refused, ended = run(work)
    before = run(lambda: http_after(service(RM)))
    codes = [one.status_code for one in (before, ready, ending, refused, ended)]
    assert codes == [503, 200, 503, 503, 503]
    assert before.json() == {"status": "starting"}
    assert ready.json() == {"status": "ready"}
    assert ending.json() == {"status": "draining"}
    assert "retry-after" in refused.headers


def test_models_are_listed_as_openai_does_with_our_facts():
    async def work():
        async with client(service({"b": RM, "a": PlainScorer()})) as http:
            return (await http.get("/v1/models")).json()

    got = run(work)
    assert got["object"] == "list"
    first, second = got["data"]
    assert (first["id"], first["object"], first["owned_by"]) == ("b", "model", "retrm")
    assert first["head_id"] == RM.identity
    assert first["backbone"] == "fake"
    assert first["max_model_len"] == first["context_length"] == 1024
    assert first["can_show_tokens"] is True
    assert (second["id"], second["max_model_len"], second["backbone"]) == ("a", None, "")


def test_metrics_count_requests_items_and_what_was_cut():
    small = model(FakeBackbone(context_length=60))

    async def work():
        async with client(service({"rm": small})) as http:
            long = "x" * 100
            bodies = [
                ONE,
                {"prompt": "q", "candidates": [long, "a"], "length_policy": "truncate_response"},
                {"prompt": "q", "candidates": [long, "a"], "length_policy": "skip"},
                {"prompt": "q", "candidates": [long]},
            ]
            for body in bodies:
                await http.post("/v1/reward", json=body)
            return (await http.get("/metrics")).text

    text = run(work)
    n_prompt = len(BACKBONE.renderer.render_prompt(Answer.of("q", "").prompt))
    for line in (
        'retrm:requests_total{dialect="retrm",status="200"} 3.0',
        'retrm:requests_total{dialect="retrm",status="400"} 1.0',
        'retrm:items_total{model="rm"} 4.0',
        # Three answers `a` with their end, and one that was cut to the context of 60.
        f'retrm:prompt_tokens_total{{model="rm"}} {3 * (n_prompt + 2) + 60}.0',
        'retrm:truncated_items_total{side="response"} 1.0',
        "retrm:skipped_items_total 1.0",
        "retrm:e2e_request_latency_seconds_count 3.0",
        "retrm:request_queue_time_seconds_count 4.0",
    ):
        assert line in text.splitlines()


def test_the_log_has_sizes_and_times_but_no_texts_and_no_scores(caplog):
    caplog.set_level(logging.INFO, logger="retrm.service")

    reply = post(service(RM), {"prompt": "confidential", "candidates": ["private answer"]})

    lines = [one.getMessage() for one in caplog.records if one.name == "retrm.service"]
    assert len(lines) == 1
    assert re.fullmatch(
        r"retrm /v1/reward 200 id=[0-9a-f]{32} items=1 tokens=\d+ wait_ms=[\d.]+ "
        r"forward_ms=[\d.]+ total_ms=[\d.]+",
        lines[0],
    )
    assert "confidential" not in caplog.text
    assert str(reply.json()["results"][0]["score"])[:6] not in caplog.text


def test_the_page_may_load_nothing_from_elsewhere():
    async def work():
        async with client(service(RM)) as http:
            return await http.get("/")

    reply = run(work)
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]


# Dispatch


def test_the_first_dialect_that_claims_a_body_reads_it():
    classify = [route for route in ROUTES if route.path == "/classify"]

    sglang, _ = parse(classify, b'{"text": "a"}')
    vllm, _ = parse(classify, b'{"input": "a"}')
    neither, _ = parse(classify, b'{"input": "a", "text": "b"}')

    assert (sglang.dialect, vllm.dialect) == ("sglang", "vllm")
    assert neither.dialect == "vllm"


def test_mistakes_are_told_by_the_last_dialect_of_a_path():
    classify = [route for route in ROUTES if route.path == "/classify"]

    with pytest.raises(DataError):
        route, body = parse(classify, b'{"wrong": 1}')
        route.read(body, {})


def test_large_bodies_are_read_beside_the_event_loop_with_equal_scores():
    texts = ["one", "another"]

    reply = post(service(RM), {"prompt": "q", "candidates": texts, "padding": "x" * (40 << 10)})

    got = [one["score"] for one in reply.json()["results"]]
    np.testing.assert_allclose(got, RM.score([("q", one) for one in texts]), atol=1e-5)
    assert "'padding'" in reply.json()["warnings"][0]
