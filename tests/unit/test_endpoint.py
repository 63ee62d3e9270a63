"""Answers from a remote engine arrive in order, and faults are told or survived."""

import threading
import time
from email.utils import formatdate

import pytest
from fake_engine import Engine, Reply, answered, engine

from retrm.backbone.endpoint import KEY_VARIABLE, sample_endpoint
from retrm.backbone.patient import api_url
from retrm.errors import EndpointError
from retrm.patience import retry_after_s
from retrm.records import Message, Prompt


def echo(_number: int, body: dict) -> Reply:
    return answered(f"{body['messages'][-1]['content']}!")


def prompts(n: int) -> list[Prompt]:
    return [Prompt.of(f"q{i}") for i in range(n)]


def ask(running: Engine, asked: list[Prompt], **options: object) -> list:
    return list(sample_endpoint(running.url, "m", asked, **{"pause_s": 0.01, **options}))


def ask_until_error(running: Engine, asked: list[Prompt], **options: object) -> tuple[list, str]:
    """What came before the error, and its words."""
    received = []
    stream = sample_endpoint(running.url, "m", asked, **{"pause_s": 0.01, **options})
    with pytest.raises(EndpointError) as caught:
        received.extend(stream)  # keeps what came before the error
    return received, str(caught.value)


def test_answers_come_in_order_though_the_engine_finishes_them_in_another():
    def slow_first(number: int, body: dict) -> Reply:
        time.sleep(0.05 if body["messages"][0]["content"] == "q0" else 0.0)
        return echo(number, body)

    told: list[tuple[int, int]] = []
    with engine(slow_first) as running:
        got = ask(running, prompts(6), n=2, on_progress=lambda *x: told.append(x))

    assert [(s.prompt, s.number) for s in got] == [(p, k) for p in range(6) for k in range(2)]
    assert [s.response for s in got] == [f"q{p}!" for p in range(6) for _ in range(2)]
    assert all(s.finished is True and s.token_ids is None and s.logprob is None for s in got)
    assert told == [(i, 12) for i in range(1, 13)]


def test_the_request_says_what_was_asked():
    asked = Prompt(
        (Message("system", "s"), Message("user", "u")), tools=({"type": "function", "name": "f"},)
    )
    options = {"temperature": 0.3, "top_p": 0.9, "max_new_tokens": 17, "seed": 4, "n": 3}
    with engine(lambda *_: answered("x")) as running:
        ask(running, [asked], **options)

    first = running.requests[0]
    assert running.paths == ["/v1/chat/completions"] * 3
    assert first["messages"] == [m.as_dict() for m in asked.messages]
    assert (first["model"], first["temperature"], first["top_p"]) == ("m", 0.3, 0.9)
    assert (first["max_tokens"], first["tools"]) == (17, [{"type": "function", "name": "f"}])
    seeds = {body["seed"] for body in running.requests}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_same_seed_sends_the_same_seeds_and_another_sends_others():
    def seeds(seed: int) -> set[int]:
        with engine(echo) as running:
            ask(running, prompts(2), n=2, seed=seed)
        return {body["seed"] for body in running.requests}

    assert seeds(1) == seeds(1)
    assert not seeds(1) & seeds(2)


def test_no_more_requests_are_under_way_than_allowed():
    def slow(number: int, body: dict) -> Reply:
        time.sleep(0.01)
        return echo(number, body)

    with engine(slow) as running:
        ask(running, prompts(20), concurrency=3)

    assert 2 <= running.most_busy <= 3


def test_a_caller_who_stops_early_leaves_most_requests_unsent():
    with engine(echo) as running:
        stream = sample_endpoint(running.url, "m", prompts(200), concurrency=2)
        next(stream)
        stream.close()
        time.sleep(0.05)
        # One batch ahead of 4 x concurrency and what was just under way.
        assert len(running.requests) <= 12


def test_a_caller_who_stops_early_waits_for_no_thread_whose_request_is_not_answered():
    answering = threading.Event()

    def first_only(number: int, body: dict) -> Reply:
        if number:
            answering.wait(60)
        return echo(number, body)

    with engine(first_only) as running:
        stream = sample_endpoint(running.url, "m", prompts(8), concurrency=3, timeout_s=60)
        next(stream)
        asking = [t for t in threading.enumerate() if t.name.startswith("retrm-endpoint")]
        stream.close()
        for thread in asking:
            thread.join(20)
        left = [thread.name for thread in asking if thread.is_alive()]
        answering.set()

    # The engine was silent all the time, and the time-out is far away: Python's end would wait for these.
    assert len(asking) == 3
    assert left == []


def test_requests_are_made_as_they_are_sent():
    class Asked(list):
        furthest = 0

        def __iter__(self):
            for place, prompt in enumerate(super().__iter__()):
                self.furthest = place
                yield prompt

    asked = Asked(prompts(500))
    with engine(echo) as running:
        stream = sample_endpoint(running.url, "m", asked, n=2, concurrency=2)
        next(stream)
        stream.close()

    # A window of 4 x 2 answers is 4 prompts of 2; bodies of all 1,000 would be made before the first.
    assert asked.furthest <= 4


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_fault_that_passes_is_survived(status):
    def faulty(number: int, body: dict) -> Reply:
        return (status, {}, b"later") if number == 0 else echo(number, body)

    with engine(faulty) as running:
        got = ask(running, prompts(3))

    assert [s.response for s in got] == ["q0!", "q1!", "q2!"]
    assert len(running.requests) == 4


def test_retry_after_is_respected():
    times: list[float] = []

    def busy(number: int, body: dict) -> Reply:
        times.append(time.monotonic())
        return (429, {"Retry-After": "0.3"}, b"{}") if number == 0 else echo(number, body)

    with engine(busy) as running:
        ask(running, prompts(1), pause_s=0.0)

    assert times[1] - times[0] >= 0.3


def test_a_retry_after_beyond_the_limit_is_an_error_rather_than_a_wait():
    busy = (429, {"Retry-After": "3600"}, b'{"error": {"message": "quota"}}')
    with engine(lambda *_: busy) as running:
        _, said = ask_until_error(running, prompts(1))

    assert "asks to wait 3600 s (status 429: quota); at most 300 s" in said


def test_retry_after_may_be_a_date():
    class Response:
        headers = {"retry-after": formatdate(time.time() + 60, usegmt=True)}

    assert 55 < retry_after_s(Response()) <= 60
    Response.headers = {"retry-after": "soon"}
    assert retry_after_s(Response()) is None
    Response.headers = {"retry-after": formatdate(0, usegmt=True)}
    assert retry_after_s(Response()) == 0.0


def test_a_fault_that_stays_is_told_with_its_reason_after_the_attempts():
    fault = (500, {}, b'{"error": {"message": "out of memory"}}')
    with engine(lambda *_: fault) as running:
        _, said = ask_until_error(running, prompts(1), retries=2)

    assert len(running.requests) == 3
    assert "did not answer prompt 0 in 3 attempts" in said
    assert "status 500: out of memory" in said


def test_what_was_received_is_given_out_before_the_error():
    def refuse_q3(number: int, body: dict) -> Reply:
        if body["messages"][0]["content"] == "q3":
            return 400, {}, b'{"error": {"message": "too long"}}'
        time.sleep(0.02)
        return echo(number, body)

    with engine(refuse_q3) as running:
        received, said = ask_until_error(running, prompts(50), concurrency=4)

    # The others of the first four were under way when q3 was refused.
    assert {s.prompt for s in received} >= {0, 1, 2}
    assert all(s.prompt != 3 for s in received)
    assert [s.prompt for s in received] == sorted(s.prompt for s in received)
    assert len(running.requests) == len(received) + 1
    assert "refused prompt 3 with status 400: too long" in said
    assert f"({len(received)} of 50 answers were received)" in said


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((200, {}, b"<html>hello"), "something that is no JSON: '<html>hello'"),
        ((200, {}, b"{}"), r"without choices[0].message.content"),
        ((200, {}, b"[]"), r"without choices[0].message.content"),
        ((200, {}, b'{"choices": []}'), r"without choices[0].message.content"),
        ((200, {}, b'{"choices": [{"message": null}]}'), r"without choices[0].message.content"),
        (answered(None, "tool_calls"), "without text (finish_reason 'tool_calls')"),
        ((401, {}, b"who are you"), "the environment variable RETRM_API_KEY"),
        ((404, {}, b"{}"), "does the engine serve a model 'm'"),
        ((301, {"Location": "/"}, b""), "status 301"),
    ],
)
def test_nonsense_and_refusals_are_errors_at_once(reply, reason):
    with engine(lambda *_: reply) as running:
        received, said = ask_until_error(running, prompts(1))

    assert reason in said
    assert received == []
    assert len(running.requests) == 1


def test_an_engine_that_is_silent_for_too_long_is_asked_again_and_then_given_up():
    def silent(number: int, body: dict) -> Reply:
        time.sleep(0.3)
        return echo(number, body)

    with engine(silent) as running:
        _, said = ask_until_error(running, prompts(1), timeout_s=0.05, retries=1)

    assert len(running.requests) == 2
    assert "no answer in time (ReadTimeout)" in said


def test_nobody_at_the_address_is_told_with_the_address():
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:9/v1/.*Is the engine running"):
        list(sample_endpoint("http://127.0.0.1:9", "m", prompts(1), retries=1, pause_s=0.01))


@pytest.mark.parametrize(("reason", "finished"), [("stop", True), ("length", False), (None, None)])
def test_finished_is_what_the_engine_says(reason, finished):
    with engine(lambda *_: answered("x", reason)) as running:
        (got,) = ask(running, prompts(1))

    assert got.finished is finished


def test_the_key_comes_from_the_environment_and_never_shows(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret-key")
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    with engine(lambda *_: (400, {}, b"no")) as running:
        _, said = ask_until_error(running, prompts(1))

    assert running.headers[0]["Authorization"] == "Bearer secret-key"
    assert "secret" not in said


def test_without_a_key_no_authorization_is_sent(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with engine(echo) as running:
        ask(running, prompts(1))

    assert "Authorization" not in running.headers[0]


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("http://h:1", "http://h:1/v1/chat/completions"),
        ("http://h:1/", "http://h:1/v1/chat/completions"),
        ("http://h:1/v1", "http://h:1/v1/chat/completions"),
        ("https://h/api/v1/", "https://h/api/v1/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
    ],
)
def test_the_url_may_be_given_short_or_long(given, target):
    assert str(api_url(given, "chat/completions")) == target


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://h", "http://"])
def test_what_is_no_url_is_refused_at_once(url):
    with pytest.raises(EndpointError, match="got the url"):
        sample_endpoint(url, "m", prompts(1))


def test_the_endpoint_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; sys.modules['torch'] = None; import retrm.backbone.endpoint"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
