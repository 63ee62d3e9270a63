"""Both clients: the same rewards, patience where it helps, loud failures where it does not."""

import asyncio
import inspect
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest
from fake_engine import Reply
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_server import best, honest, ok, pages, refusal, result, reward_server, rewards

from retrm.errors import DataError, EndpointError, RecipeError, RefusedError
from retrm.service.client import AsyncRewardClient, BestOfN, Ranked, Reward, RewardClient
from retrm.service.rewards import rewards_of

QUICK = {"pause_s": 0.01, "retries": 2}
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "abc"}]


class Twin:
    """The async client behind the sync one's face."""

    def __init__(self, *args, **options):
        self.client = AsyncRewardClient(*args, **options)

    def __getattr__(self, name):
        method = getattr(self.client, name)
        return lambda *args, **options: asyncio.run(self._finished(method, args, options))

    async def _finished(self, method, args, options):
        try:
            return await method(*args, **options)
        finally:
            await self.client.aclose()


@pytest.fixture(params=[RewardClient, Twin], ids=["sync", "async"])
def make(request, monkeypatch):
    for name in ("RETRM_URL", "RETRM_MODEL", "RETRM_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return request.param


def scores(found: list[Reward]) -> list[float | None]:
    return [one.score for one in found]


def said_by(call) -> str:
    with pytest.raises(EndpointError) as caught:
        call()
    return str(caught.value)


def test_rewards_of_candidates_come_in_order_with_all_that_is_known(make):
    with reward_server() as server:
        found = make(server.url, **QUICK).score("q", ["abc", "a"])

    # The stand-in's score is minus the length, its tokens the length and 3.
    assert scores(found) == [-3.0, -1.0]
    assert found[0] == Reward(
        score=-3.0,
        value=-3.0,
        calibrated=pytest.approx(0.0474258731),  # 1 / (1 + e^3)
        num_tokens=6,
        model="m",
        head_id="abc",
        backbone="toy",
    )
    assert server.requests[0]["activation"] == "none"
    assert server.requests[0]["length_policy"] == "error"


def test_one_conversation_or_several_are_taken(make):
    with reward_server() as server:
        client = make(server.url, **QUICK)

        assert scores(client.reward(TALK)) == [-3.0]
        assert scores(client.reward([TALK, TALK])) == [-3.0, -3.0]
        assert client.reward([]) == []
    assert server.requests[0]["messages"] == [TALK]
    assert len(server.requests) == 2


def test_many_answers_travel_in_parts_a_bounded_number_at_a_time_and_keep_their_order(make):
    lock, busy, most = threading.Lock(), [0], [0]

    def slow_first(number: int, body: dict) -> Reply:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        time.sleep(0.1 if "x" in body["candidates"] else 0.02)
        with lock:
            busy[0] -= 1
        return honest(number, body)

    texts = ["x" * (i + 1) for i in range(23)]
    with reward_server(slow_first) as server:
        found = make(server.url, chunk_size=2, concurrency=3, **QUICK).score("q", texts)

    assert scores(found) == [-float(i + 1) for i in range(23)]
    assert len(server.requests) == 12  # 11 of two and one of one
    assert 2 <= most[0] <= 3


def test_results_that_come_in_another_order_are_put_into_that_of_the_answers(make):
    def shuffled(_: int, body: dict) -> Reply:
        reply = rewards(body)
        reply["results"].reverse()
        return ok(reply)

    with reward_server(shuffled) as server:
        assert scores(make(server.url, **QUICK).score("q", ["a", "bb"])) == [-1.0, -2.0]


def test_the_best_of_n_is_chosen_by_the_server(make):
    with reward_server() as server:
        found = make(server.url, **QUICK).best_of_n("q", ["abc", "a", "ab"])

    ranking = (Ranked(1, -1.0), Ranked(2, -2.0), Ranked(0, -3.0))
    assert found == BestOfN(1, "a", -1.0, ranking, "m", ())


def test_rendered_texts_go_with_their_prompts(make):
    with reward_server() as server:
        client = make(server.url, chunk_size=1, **QUICK)
        found = client.rendered(["ab", "xyz"], prompt_texts=["a", "x"])

        assert scores(found) == [-1.0, -2.0]
        assert sorted(r["prompt_texts"][0] for r in server.requests) == ["a", "x"]
        with pytest.raises(DataError, match="got 1 prompt_texts for 2 texts"):
            client.rendered(["a", "b"], prompt_texts=["a"])


def test_models_and_health_are_told(make):
    with reward_server() as server:
        client = make(server.url, **QUICK)
        assert [one.name for one in client.models()] == ["m", "n"]
        assert client.models()[0].facts["method"] == "elhsr"
        assert client.health().is_ready
    with reward_server(models=lambda _: refusal(503, "self-test running")) as server:
        health = make(server.url, **QUICK).health()
        assert not health.is_ready
        assert health.said == "status 503: self-test running"
    assert not make("http://127.0.0.1:9", **QUICK).health().is_ready


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_asked_again(make, status):
    def busy_once(number: int, body: dict) -> Reply:
        return refusal(status, "later") if number == 0 else honest(number, body)

    with reward_server(busy_once) as server:
        assert scores(make(server.url, **QUICK).score("q", ["a"])) == [-1.0]
    assert len(server.requests) == 2
    assert server.requests[0] == server.requests[1]


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 301])
def test_a_refusal_is_an_error_at_once_with_the_servers_words(make, status):
    long = refusal(status, "item 3 has 9,000 tokens")
    with (
        reward_server(lambda *_: long) as server,
        pytest.raises(RefusedError, match="item 3 has 9,000 tokens") as caught,
    ):
        make(server.url, **QUICK).score("q", ["a"])
    assert caught.value.status == status
    assert len(server.requests) == 1
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.status) == (str(caught.value), status)


def test_retry_after_is_waited_for(make):
    times: list[float] = []

    def busy_once(number: int, body: dict) -> Reply:
        times.append(time.monotonic())
        head = {"Retry-After": "0.4"}
        return refusal(503, "full", **head) if number == 0 else honest(number, body)

    with reward_server(busy_once) as server:
        make(server.url, **QUICK).score("q", ["a"])
    assert times[1] - times[0] >= 0.4


def test_a_fault_that_stays_is_told_after_the_attempts_and_is_no_score(make):
    with reward_server(lambda *_: refusal(503, "queue is full")) as server:
        said = said_by(lambda: make(server.url, **QUICK).score("q", ["a"]))
    assert "did not answer answer 0 in 3 attempts" in said
    assert "status 503: queue is full" in said
    assert len(server.requests) == 3


def test_nobody_at_the_address_is_told_with_the_address(make):
    said = said_by(lambda: make("http://127.0.0.1:9", **QUICK).score("q", ["a"]))
    assert "http://127.0.0.1:9 did not answer" in said
    assert "ConnectError" in said


def test_silence_counts_as_a_fault(make):
    def silent(number: int, body: dict) -> Reply:
        time.sleep(0.5)
        return honest(number, body)

    with reward_server(silent) as server:
        client = make(server.url, timeout_s=0.05, retries=1, pause_s=0.01)
        assert "no answer in time" in said_by(lambda: client.score("q", ["a"]))


def test_the_whole_time_of_a_request_is_bounded(make):
    with reward_server(lambda *_: refusal(503, "full")) as server:
        client = make(server.url, total_s=0.5, retries=1000, pause_s=0.1)
        began = time.monotonic()
        said = said_by(lambda: client.score("q", ["a"]))
    assert time.monotonic() - began < 3.0
    assert "within 0.5 s" in said


def test_a_server_that_trickles_does_not_get_more_time(make):
    import socket

    listening = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def trickle() -> None:
        link, _ = listening.accept()
        link.recv(65536)
        link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            while not stop.wait(0.05):
                link.sendall(b" ")
        except OSError:
            pass
        link.close()

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    began = time.monotonic()
    port = listening.getsockname()[1]
    client = make(f"http://127.0.0.1:{port}", timeout_s=5.0, total_s=0.6, retries=0)
    said = said_by(lambda: client.score("q", ["a"]))
    stop.set()
    thread.join(2)
    listening.close()

    assert time.monotonic() - began < 4.0
    assert "no answer in time" in said


def changed(**fields) -> dict:
    return {**result(0, "a"), **fields}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({}, "no `results`"),
        ([], "no `results`"),
        ({"results": []}, "0 results for 1 answers"),
        ({"results": [result(0, "a"), result(1, "b")]}, "2 results for 1 answers"),
        ({"results": [result(1, "a")]}, r"results numbered [1]"),
        ({"results": [changed(score=None, value=None)]}, "no score for answer 0"),
        ({"results": [changed(score="7")]}, "which is no finite number"),
        ({"results": [changed(score=True)]}, "which is no finite number"),
        ({"results": [{"index": 0}]}, "no `score`"),
        (
            {"results": [changed(activation="sigmoid", value=0.5)]},
            "activation 'sigmoid' where 'none'",
        ),
        ({"results": [changed(value=0.5)]}, "value 0.5 beside score -1.0"),
        ({"results": [changed(num_tokens="many")]}, "invalid literal"),
        ({"results": [7]}, "no `index`"),
    ],
)
def test_a_reply_without_a_sound_score_is_an_error(make, reply, reason):
    with reward_server(lambda *_: ok(reply)) as server:
        said = said_by(lambda: make(server.url, **QUICK).score("q", ["a"]))
    assert reason in said
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "text", [b"<html>", b"NaN-ish", b'{"results": [{"index": 0, "score": NaN}]}']
)
def test_a_page_or_nan_is_no_reward(make, text):
    with reward_server(lambda *_: (200, {}, text)) as server:
        said = said_by(lambda: make(server.url, **QUICK).score("q", ["a"]))
    assert "no JSON" in said or "no finite number" in said


def test_a_missing_score_is_taken_where_over_long_answers_may_be_left_out():
    reply = {"results": [changed(score=None, value=None, calibrated=None)]}
    (found,) = rewards_of(reply, 1, "none", "w", may_skip=True)
    assert found.score is None


def test_a_choice_that_contradicts_itself_is_an_error(make):
    def confused(_: int, body: dict) -> Reply:
        return ok({**best(body), "best": {"index": 0, "text": "abc", "score": -3.0}})

    with reward_server(confused) as server:
        said = said_by(lambda: make(server.url, **QUICK).best_of_n("q", ["abc", "a"]))
    assert "candidate 0 as the best and another at the head" in said


def test_one_part_that_fails_ends_the_call_with_its_own_reason(make):
    def fails_on_x(number: int, body: dict) -> Reply:
        if "x" in body["candidates"]:
            return refusal(400, "x is too long")
        # The others are told to come again: nobody may wait for that once the call is lost.
        return refusal(503, "full", **{"Retry-After": "20"})

    with reward_server(fails_on_x) as server:
        client = make(server.url, chunk_size=1, concurrency=4)
        began = time.monotonic()
        said = said_by(lambda: client.score("q", ["a", "b", "x", "c"]))
    assert "x is too long" in said
    assert time.monotonic() - began < 10


def test_a_server_that_is_gone_is_not_asked_again_and_again(make):
    with reward_server(lambda *_: refusal(503, "down")) as server:
        client = make(server.url, retries=0, breaker_after=2, breaker_s=60.0)
        for _ in range(2):
            assert "did not answer" in said_by(lambda: client.score("q", ["a"]))
        said = said_by(lambda: client.score("q", ["a"]))

    assert "2 requests in a row failed, so none is sent" in said
    assert "status 503: down" in said
    assert len(server.requests) == 2


def test_after_a_while_one_request_is_let_through_and_its_success_closes_the_breaker(make):
    state = {"up": False}

    def script(number: int, body: dict) -> Reply:
        return honest(number, body) if state["up"] else refusal(503, "down")

    with reward_server(script) as server:
        client = make(server.url, retries=0, breaker_after=1, breaker_s=0.2)
        said_by(lambda: client.score("q", ["a"]))
        assert "none is sent" in said_by(lambda: client.score("q", ["a"]))
        state["up"] = True
        time.sleep(0.25)

        assert scores(client.score("q", ["a"])) == [-1.0]
        assert scores(client.score("q", ["a"])) == [-1.0]


def test_refused_requests_do_not_open_the_breaker(make):
    with reward_server(lambda *_: refusal(400, "bad")) as server:
        client = make(server.url, breaker_after=1, **QUICK)
        for _ in range(3):
            assert "status 400" in said_by(lambda: client.score("q", ["a"]))
    assert len(server.requests) == 3


def test_url_model_and_token_come_from_the_environment(make, monkeypatch):
    with reward_server() as server:
        monkeypatch.setenv("RETRM_URL", server.url)
        monkeypatch.setenv("RETRM_MODEL", "elhsr")
        monkeypatch.setenv("RETRM_TOKEN", "secret-token")
        make(**QUICK).score("q", ["a"])

    assert server.requests[0]["model"] == "elhsr"
    assert server.headers[0]["Authorization"] == "Bearer secret-token"


def test_without_a_token_none_is_sent_and_a_wrong_one_is_never_shown(make, monkeypatch):
    with reward_server() as server:
        make(server.url, **QUICK).score("q", ["a"])
    assert "Authorization" not in server.headers[0]

    monkeypatch.setenv("RETRM_TOKEN", "secret-token")
    with reward_server(lambda *_: refusal(401, "the key is wrong")) as server:
        said = said_by(lambda: make(server.url, **QUICK).score("q", ["a"]))
    assert "RETRM_TOKEN" in said
    assert "secret" not in said


def test_a_missing_or_impossible_url_is_refused_before_anything_is_sent(make):
    with pytest.raises(EndpointError, match=r"no server is named.*RETRM_URL"):
        make()
    with pytest.raises(EndpointError, match="expected one like http://HOST:PORT"):
        make("localhost:8000")
    with pytest.raises(EndpointError) as caught:
        make("ftp://me:secret@host")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/v1/reward", "/v1/best_of_n"])
def test_the_url_may_be_given_short_or_long(make, tail):
    with reward_server() as server:
        make(server.url + tail, **QUICK).score("q", ["a"])
    assert server.paths == ["/v1/reward"]


@pytest.mark.parametrize(
    ("call", "error", "reason"),
    [
        (lambda c: c.score("q", "one text"), DataError, "expected a list of texts"),
        (lambda c: c.score("q", [None]), DataError, "expected a list of texts"),
        (lambda c: c.score("q", ["a"], activation="sigmod"), RecipeError, "mean 'sigmoid'"),
        (lambda c: c.score("q", ["a"], length_policy="cut"), RecipeError, "unknown length_policy"),
        (lambda c: c.reward(["text"]), DataError, "as a conversation"),
        (lambda c: c.reward([[]]), DataError, "as a conversation"),
        (lambda c: c.reward("text"), DataError, "as a conversation"),
        (lambda c: c.best_of_n("q", []), DataError, "no candidates"),
        (lambda c: c.score("q", ["\ud83d"]), DataError, "cannot be sent as JSON"),
        (
            lambda c: c.reward([[{"role": "user", "content": {1}}]]),
            DataError,
            "cannot be sent as JSON",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_here(make, call, error, reason):
    with reward_server() as server, pytest.raises(error, match=reason):
        call(make(server.url, **QUICK))
    assert server.requests == []


def test_numbers_out_of_range_are_refused(make):
    for name in ("timeout_s", "total_s", "chunk_size", "concurrency", "breaker_after"):
        with pytest.raises(RecipeError, match=f"got {name}=0"):
            make("http://h:1", **{name: 0})


@pytest.mark.parametrize("kind", [RewardClient, AsyncRewardClient])
def test_a_client_travels_in_a_pickle_without_connections_or_token(kind, monkeypatch):
    monkeypatch.setenv("RETRM_TOKEN", "secret-token")
    with reward_server() as server:
        client = kind(server.url, **QUICK)
        call = lambda c: c.score("q", ["a"])  # noqa: E731
        run = asyncio.run if kind is AsyncRewardClient else (lambda found: found)
        assert scores(run(call(client))) == [-1.0]
        bytes_ = pickle.dumps(client)
        assert scores(run(call(pickle.loads(bytes_)))) == [-1.0]

    assert b"secret-token" not in bytes_


def test_an_async_client_serves_one_loop_after_another():
    with reward_server() as server:
        client = AsyncRewardClient(server.url, **QUICK)
        for _ in range(3):
            assert scores(asyncio.run(client.score("q", ["a"]))) == [-1.0]
    assert len(client._https) == 1  # those of ended loops were let go


def _score_in_child(client: RewardClient, out) -> None:
    out.put((os.getpid(), client.score("q", ["ab"])[0].score))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_makes_connections_of_its_own():
    with reward_server() as server:
        client = RewardClient(server.url, **QUICK)
        client.score("q", ["a"])  # a connection is open now
        fork = multiprocessing.get_context("fork")
        out = fork.Queue()
        child = fork.Process(target=_score_in_child, args=(client, out))
        child.start()
        pid, score = out.get(timeout=20)
        child.join(20)
        assert scores(client.score("q", ["abc"])) == [-3.0]
    assert (pid != os.getpid(), score) == (True, -2.0)


def test_connections_are_used_again():
    with reward_server() as server, RewardClient(server.url, **QUICK) as client:
        first = client._http_client()
        client.score("q", ["a"])
        assert client._http_client() is first
        client.close()
        assert scores(client.score("q", ["a"])) == [-1.0]


def test_the_twins_have_the_same_methods_and_options():
    def public(kind):
        found = dict(inspect.getmembers(kind, callable))
        return {name: found[name] for name in found if not name.startswith("_")}

    sync, async_ = public(RewardClient), public(AsyncRewardClient)
    assert set(sync) - {"close"} == set(async_) - {"aclose"}
    for name in set(sync) & set(async_):
        assert inspect.signature(sync[name]) == inspect.signature(async_[name]), name
        assert inspect.iscoroutinefunction(async_[name]), name


def test_the_client_needs_httpx_only():
    blocked = ("torch", "transformers", "numpy", "pydantic", "fastapi", "starlette")
    code = (
        f"import sys; sys.modules.update({dict.fromkeys(blocked)!r}); import retrm.service.client"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20),
    st.randoms(use_true_random=False),
)
def test_scores_arrive_bit_for_bit_at_their_answer_in_whatever_order_they_are_sent(values, random):
    results = [{"index": i, "score": v, "value": v} for i, v in enumerate(values)]
    random.shuffle(results)
    reply = json.loads(json.dumps({"results": results}))

    assert [r.score for r in rewards_of(reply, len(values), "none", "w")] == values


def test_the_stand_in_is_one(make):
    # Guards the tests themselves: a stand-in that answers anything would let them pass.
    assert pages("/other")[0] == 404
