"""The core: scores that do not depend on company, and requests that never harm each other."""

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import ending_backbone, reward_model
from served import Held, PlainScorer, SpyBackbone, asked, call, model, run, service

from retrm.backbone.base import Rendered
from retrm.backbone.fake import FakeBackbone
from retrm.errors import (
    BusyError,
    DataError,
    DeadlineError,
    JudgingError,
    NotReadyError,
    OverlongError,
    RecipeError,
    RefusedError,
    TooLargeError,
    UnknownModelError,
)
from retrm.features.recipe import Recipe
from retrm.records import Answer
from retrm.service.items import Call, Item, Truncation
from retrm.service.lanes import fitted

BACKBONE = FakeBackbone()
HEADS = {"mean": model(BACKBONE), "last": model(BACKBONE, seed=1, pooling="last")}
TOLERANCE = 1e-5


def alone(name, answer):
    """The plain way: one answer, one reading."""
    return float(HEADS[name].score([answer])[0])


# Scores


def test_sixty_four_clients_with_an_item_each_get_the_scores_of_a_reading_alone():
    answers = [Answer.of(f"question {i % 5}", "word " * (i % 13) + str(i)) for i in range(64)]

    async def work():
        async with service(HEADS) as made:
            asked_for = [made.judge(call(a, name="mean")) for a in answers]
            return await asyncio.gather(*asked_for)

    got = [one.judged[0].score for one in run(work)]

    assert got == pytest.approx([alone("mean", a) for a in answers], abs=TOLERANCE)


def test_a_request_gets_its_scores_in_the_order_of_its_items():
    answers = [Answer.of("q", "x" * (1 + 37 * i % 50)) for i in range(50)]

    async def work():
        async with service(HEADS) as made:
            return await made.judge(call(*answers, name="last"))

    got = [one.score for one in run(work).judged]

    assert got == pytest.approx([alone("last", a) for a in answers], abs=TOLERANCE)
    assert len(set(got)) > 40  # equal scores could not show an order


def test_a_real_transformer_gives_the_scores_of_a_reading_alone_behind_shared_prompts():
    backbone = ending_backbone()
    heads = {
        "mean": reward_model(backbone, Recipe(pooling="mean")),
        "gated": reward_model(backbone, Recipe(pooling="tokens"), "gated", seed=1),
    }
    # The last two prompts do not fit into a row with their answers: they are cached, or read again.
    prompts = ["short", "a longer prompt " * 4, "very long " * 15, "other long " * 14]
    answers = [Answer.of(prompt, f"{'word ' * k}{k}") for prompt in prompts for k in range(4)]

    async def work():
        async with service(heads, tokens_per_batch=150) as made:
            async with Held(made) as held:
                each = [made.judge(call(a, name=n)) for a in answers for n in heads]
                asked_for = [asyncio.ensure_future(one) for one in each]
                await held.until_waiting(len(asked_for))
            return await asyncio.gather(*asked_for)

    got = [one.judged[0].score for one in run(work)]
    expected = [float(heads[n].score([a])[0]) for a in answers for n in heads]
    assert got == pytest.approx(expected, abs=TOLERANCE)


def test_items_that_wait_together_are_read_by_their_own_backbones():
    heads = {str(seed): model(FakeBackbone(seed=seed)) for seed in range(3)}
    answers = asked("q", "some words", "others", "x")

    async def work():
        async with service(heads) as made:
            async with Held(made) as held:
                each = [made.judge(call(a, name=n)) for a in answers for n in heads]
                asked_for = [asyncio.ensure_future(one) for one in each]
                await held.until_waiting(len(asked_for))
            return await asyncio.gather(*asked_for)

    got = [one.judged[0].score for one in run(work)]
    expected = [float(heads[n].score([a])[0]) for a in answers for n in heads]
    assert got == pytest.approx(expected, abs=TOLERANCE)
    assert len({round(score, 3) for score in got}) == len(got)


TEXTS = st.text("ab \n", min_size=0, max_size=40)
ITEMS = st.tuples(st.sampled_from(["p", "a longer prompt " * 3]), TEXTS)
REQUESTS = st.lists(
    st.tuples(st.sampled_from(list(HEADS)), st.lists(ITEMS, max_size=6)), min_size=1, max_size=8
)


@settings(max_examples=25, deadline=None)
@given(requests=REQUESTS, budget=st.sampled_from([1, 40, 150, 1024]))
def test_any_mix_of_requests_gets_the_scores_of_the_plain_way(requests, budget):
    calls = [
        (name, [Answer.of(prompt, text) for prompt, text in items]) for name, items in requests
    ]

    async def work():
        async with service(HEADS, tokens_per_batch=budget, window_ms=0) as made:
            return await asyncio.gather(*(made.judge(call(*a, name=n)) for n, a in calls))

    for (name, answers), answered in zip(calls, run(work), strict=True):
        got = [one.score for one in answered.judged]
        assert got == pytest.approx([alone(name, a) for a in answers], abs=TOLERANCE)


def test_tokens_are_those_of_the_model_and_the_score_is_that_of_a_plain_request():
    (answer,) = asked("q", "some words")

    async def work():
        async with service(HEADS) as made:
            return await made.judge(call(answer, name="mean", per_token=True, per_layer=True))

    (got,) = run(work).judged
    expected = HEADS["mean"].token_scores_of(answer, by_layer=True)
    assert got.score == pytest.approx(alone("mean", answer), abs=TOLERANCE)
    assert got.tokens.texts == expected.tokens
    np.testing.assert_allclose(got.tokens.running, expected.running, atol=TOLERANCE)
    np.testing.assert_allclose(got.tokens.by_layer.sum(1), got.tokens.rewards, atol=1e-4)
    assert list(got.tokens.token_index) == list(range(got.n_tokens - 11, got.n_tokens))


# Sharing


def test_a_text_that_two_heads_judge_is_read_once():
    spy = SpyBackbone()
    heads = {"mean": model(spy), "last": model(spy, seed=1, pooling="last")}
    answers = asked("q", "one", "another")

    async def work():
        async with service(heads) as made:
            async with Held(made) as held:
                both = [asyncio.ensure_future(made.judge(call(*answers, name=n))) for n in heads]
                await held.until_waiting(4)
            return await asyncio.gather(*both)

    got = {name: [j.score for j in one.judged] for name, one in zip(heads, run(work), strict=True)}
    prompt = len(spy.renderer.render_prompt(answers[0].prompt))
    assert len(spy.passes) == 1
    assert spy.n_tokens == prompt + len("one.") + len("another.")  # the point is the end of turn
    assert got["mean"] == pytest.approx([alone("mean", a) for a in answers], abs=TOLERANCE)
    assert got["last"] == pytest.approx([alone("last", a) for a in answers], abs=TOLERANCE)


def test_requests_with_one_prompt_share_its_reading():
    spy = SpyBackbone()
    answers = asked("a prompt of some length", *(f"answer {i}" for i in range(6)))

    async def work():
        async with service(model(spy)) as made:
            async with Held(made) as held:
                each = [asyncio.ensure_future(made.judge(call(a))) for a in answers]
                await held.until_waiting(6)
            await asyncio.gather(*each)

    run(work)
    prompt = len(spy.renderer.render_prompt(answers[0].prompt))
    assert spy.n_tokens == prompt + 6 * len("answer 0.")


def test_a_pass_takes_the_oldest_and_stays_within_the_budget():
    spy = SpyBackbone()
    texts = ["x" * 150, *("y" * 20 for _ in range(12))]

    async def work():
        async with service(model(spy), tokens_per_batch=200) as made:
            async with Held(made) as held:
                each = []
                for number, text in enumerate(texts):
                    one = made.judge(call(Answer.of(f"q{number % 3}{number}", text)))
                    each.append(asyncio.ensure_future(one))
                    await held.until_waiting(number + 1)
            await asyncio.gather(*each)

    run(work)
    widths = [batch.ids.shape for batch in spy.passes]
    assert widths[0][0] == 1  # nobody suits the long one, and it waits for nobody
    assert widths[0][1] > 150
    assert all(rows * width <= 200 for rows, width in widths)
    assert len(widths) < 6  # the short ones met


def test_an_idle_worker_waits_for_nobody_when_one_request_is_under_way():
    async def work():
        # With company to wait for it would be late by far.
        async with service(HEADS, window_ms=3_600_000, deadline_s=20) as made:
            return await made.judge(call(Answer.of("q", "alone"), name="mean"))

    assert run(work).judged[0].score == pytest.approx(alone("mean", Answer.of("q", "alone")))


def test_an_idle_worker_waits_for_what_is_being_rendered():
    spy = SpyBackbone()
    answers = asked("a prompt", "one", "two", "six")

    async def work():
        async with service(model(spy), window_ms=3_600_000, deadline_s=20) as made:
            # All three are taken before the first is rendered, so one pass serves them.
            await asyncio.gather(*(made.judge(call(a)) for a in answers))

    run(work)
    assert len(spy.passes) == 1


def test_a_stream_of_newcomers_never_overtakes_a_waiting_item_for_long():
    # Every pass holds the oldest item, so one that n items were before waits at most n passes.
    spy = SpyBackbone()
    order = []

    async def work():
        async with service(model(spy), tokens_per_batch=120, window_ms=0) as made:

            async def one(text):
                await made.judge(call(Answer.of(text[:3], text)))
                order.append(text)

            async with Held(made) as held:
                first = [asyncio.ensure_future(one("s" * 20)) for _ in range(3)]
                await held.until_waiting(3)
                odd = asyncio.ensure_future(one("l" * 90))
                await held.until_waiting(4)
                late = [asyncio.ensure_future(one(f"{i:02}" + "s" * 18)) for i in range(40)]
                await held.until_waiting(44)
            await asyncio.gather(odd, *first, *late)

    run(work)
    assert order.index("l" * 90) < 20


# Limits of the queue


def test_a_full_queue_refuses_and_says_when_to_come_again():
    async def work():
        async with service(HEADS, max_items=2, max_waiting_items=2) as made:
            async with Held(made) as held:
                taken = asyncio.ensure_future(made.judge(call(*asked("q", "a", "b"))))
                await held.until_waiting(2)
                with pytest.raises(BusyError, match=r"2 items are waiting.*again") as caught:
                    await made.judge(call(*asked("q", "c")))
            return caught.value.retry_after_s, await taken, await made.judge(call(*asked("q", "c")))

    after_s, taken, later = run(work)
    assert 1 <= after_s <= 60
    assert len(taken.judged) == 2
    assert later.judged[0].score is not None


def test_the_queue_is_bounded_by_tokens_too():
    async def work():
        async with service(HEADS, max_tokens=100, max_waiting_tokens=100) as made:
            async with Held(made) as held:
                taken = asyncio.ensure_future(made.judge(call(*asked("q", "a" * 50))))
                await held.until_waiting(1)
                with pytest.raises(BusyError, match="tokens are waiting"):
                    await made.judge(call(*asked("q", "b" * 50)))
            await taken
            with pytest.raises(TooLargeError, match="expected at most 100"):
                await made.judge(call(*asked("q", "a" * 50, "b" * 50)))

    run(work)


def test_too_many_items_in_a_request_are_refused_with_the_limit():
    async def work():
        async with service(HEADS, max_items=3) as made:
            with pytest.raises(TooLargeError, match=r"got 4 items.*at most 3"):
                await made.judge(call(*asked("q", *"abcd")))

    run(work)


def test_a_request_that_is_too_late_is_given_up_and_leaves_the_queue():
    spy = SpyBackbone()

    async def work():
        async with service(model(spy)) as made, Held(made):
            with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
                await made.judge(call(*asked("q", "a")), deadline_s=0.05)
            return made.worker.facts.waiting_items, made.n_requests

    assert run(work) == (0, 1)  # the one that is left is the test's own job
    assert spy.passes == []


@pytest.mark.parametrize("asked_s", [None, 60.0])
def test_nobody_gets_more_time_than_the_settings_give(asked_s):
    let_go = threading.Event()

    class Slow(PlainScorer):
        def score(self, answers):
            assert let_go.wait(60)
            return super().score(answers)

    async def work():
        async with service(Slow(), deadline_s=0.05) as made:
            try:
                with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
                    await made.judge(call(*asked("q", "a")), deadline_s=asked_s)
            finally:
                let_go.set()

    run(work)


def test_a_cancelled_request_is_never_read():
    spy = SpyBackbone()

    async def work():
        async with service(model(spy)) as made:
            async with Held(made) as held:
                doomed = asyncio.ensure_future(made.judge(call(*asked("q", "gone"))))
                kept = asyncio.ensure_future(made.judge(call(*asked("q", "kept"))))
                await held.until_waiting(2)
                doomed.cancel()
                await held.until_waiting(1)
            await kept

    run(work)
    prompt = len(spy.renderer.render_prompt(asked("q", "kept")[0].prompt))
    assert spy.n_tokens == prompt + len("kept.")


# Faults


def test_a_broken_pass_fails_the_item_that_broke_it_and_no_other():
    spy = SpyBackbone()

    async def work():
        async with service(model(spy)) as made:
            async with Held(made) as held:
                good = asyncio.ensure_future(made.judge(call(*asked("q", "fine", "good"))))
                bad = asyncio.ensure_future(made.judge(call(*asked("q", "fine", "b#d"))))
                await held.until_waiting(4)
            with pytest.raises(JudgingError, match=r"item 1: .*RuntimeError"):
                await bad
            return await good, await made.judge(call(*asked("q", "later")))

    good, later = run(work)
    expected = [alone("mean", a) for a in asked("q", "fine", "good", "later")]
    got = [one.score for one in (*good.judged, *later.judged)]
    assert got == pytest.approx(expected, abs=TOLERANCE)


def test_a_score_that_is_no_number_fails_its_request_alone():
    scorer = PlainScorer()

    async def work():
        async with service(scorer) as made:
            async with Held(made) as held:
                good = asyncio.ensure_future(made.judge(call(*asked("q", "four"))))
                bad = asyncio.ensure_future(made.judge(call(*asked("q", "a", "nan"))))
                await held.until_waiting(3)
            with pytest.raises(JudgingError, match=r"item 1: .*scored this item as nan"):
                await bad
            return (await good).judged[0].score

    assert run(work) == 4.0
    assert scorer.calls == [3]  # they were judged together


def test_a_scorer_that_wants_to_end_the_process_does_not_end_the_worker():
    async def work():
        async with service(PlainScorer()) as made:
            with pytest.raises(JudgingError, match="SystemExit"):
                await made.judge(call(*asked("q", "exit")))
            return (await made.judge(call(*asked("q", "abc")))).judged[0].score

    assert run(work) == 3.0


@pytest.mark.parametrize("broken", ["choice", "count"])
def test_a_fault_around_a_pass_costs_nobody_a_score(broken, monkeypatch):
    def fail(*_):
        raise RuntimeError("not a fault of any request")

    async def work():
        async with service(PlainScorer()) as made:
            if broken == "choice":
                monkeypatch.setattr(made.registry.get(None).lane, "choose", fail)
            else:
                monkeypatch.setattr(made.worker, "_on_pass", fail)
            first = await made.judge(call(*asked("q", "abc", "a")))
            again = await made.judge(call(*asked("q", "ab")))
            return [one.score for one in (*first.judged, *again.judged)], made.is_ready

    # The plain scorer counts characters: 3, 1 and 2.
    assert run(work) == ([3.0, 1.0, 2.0], True)


def test_a_scorer_with_too_few_scores_gives_nobody_the_score_of_another():
    class Short(PlainScorer):
        def score(self, answers):
            return super().score(answers)[1:]

    async def work():
        async with service(Short()) as made:
            with pytest.raises(Exception, match=r"item 0: .*\(0,\) scores for 1 answers"):
                await made.judge(call(*asked("q", "a", "b")))

    run(work)


def test_the_refusal_of_another_server_names_the_item_and_keeps_its_status():
    class Remote(PlainScorer):
        def score(self, answers):
            raise RefusedError("it will not", 403)

    async def work():
        async with service(Remote()) as made:
            with pytest.raises(RefusedError, match=r"^item 0: it will not$") as caught:
                await made.judge(call(*asked("q", "a")))
            return caught.value.status

    assert run(work) == 403


def test_an_item_that_cannot_be_rendered_is_named():
    backbone = FakeBackbone(counts_end=False)

    async def work():
        async with service(model(backbone)) as made:
            with pytest.raises(Exception, match=r"item 1: .*the answer is empty"):
                await made.judge(call(*asked("q", "fine", "")))

    run(work)


def test_an_unknown_model_is_refused_with_the_nearest_name():
    async def work():
        async with service(HEADS) as made:
            with pytest.raises(UnknownModelError, match=r"no model 'meen'.*Did you mean 'mean'"):
                await made.judge(call(*asked("q", "a"), name="meen"))

    run(work)


def test_tokens_of_a_scorer_that_has_none_are_refused_before_anything_is_queued():
    async def work():
        async with service(PlainScorer()) as made:
            with pytest.raises(DataError, match="cannot show tokens"):
                await made.judge(call(*asked("q", "a"), per_token=True))

    run(work)


def test_text_for_a_scorer_without_a_tokenizer_is_refused():
    async def work():
        async with service(PlainScorer()) as made:
            with pytest.raises(DataError, match=r"item 0: .*no tokenizer of its own"):
                await made.judge(Call(None, (Item(text="<s>a"),)))

    run(work)


# Length


@pytest.fixture(scope="module")
def small():
    """A head on a context of 60 tokens; prompts of `q` take 19, so answers 41 with their end."""
    return model(FakeBackbone(context_length=60))


def judged(scorer, answer, policy):
    async def work():
        async with service(scorer) as made:
            return (await made.judge(call(answer, length_policy=policy))).judged[0]

    return run(work)


N_PROMPT = len(BACKBONE.renderer.render_prompt(Answer.of("q", "").prompt))


def test_what_is_too_long_is_refused_with_sizes_and_remedies(small):
    answer = Answer.of("q", "x" * 50)  # and an end

    with pytest.raises(
        OverlongError,
        match=rf"item 0: got {N_PROMPT + 51} tokens \({N_PROMPT} of the prompt, 51 of the answer\); "
        r"the context holds 60.*truncate_prompt.*truncate_response.*skip",
    ):
        judged(small, answer, "error")


def test_a_cut_prompt_scores_as_it_does_offline(small):
    answer = Answer.of("q" * 30, "x" * 30)

    got = judged(small, answer, "truncate_prompt")

    n_over = len(BACKBONE.renderer.render(answer).ids) - 60
    assert n_over > 0
    assert got.truncation == Truncation("prompt", n_over)
    assert got.n_tokens == 60
    expected = float(small.score([answer], overlong="truncate_left")[0])
    assert got.score == pytest.approx(expected, abs=TOLERANCE)


def test_a_cut_answer_scores_as_the_shorter_unfinished_answer(small):
    answer = Answer.of("q", "x" * 50)

    got = judged(small, answer, "truncate_response")

    kept = 60 - N_PROMPT
    shorter = Answer(answer.prompt, "x" * kept, "", finished=False)
    assert got.truncation == Truncation("response", 51 - kept)
    assert got.is_unfinished is True
    assert got.score == pytest.approx(float(small.score([shorter])[0]), abs=TOLERANCE)


def test_an_item_left_out_has_no_score_and_the_others_have_theirs(small):
    async def work():
        async with service(small) as made:
            answers = asked("q", "x" * 50, "short")
            return await made.judge(call(*answers, length_policy="skip"))

    left_out, kept = run(work).judged
    assert left_out.score is None
    assert kept.score == pytest.approx(float(small.score(asked("q", "short"))[0]), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("policy", "prompt", "text"),
    [("truncate_prompt", "q", "x" * 70), ("truncate_response", "q" * 80, "x")],
)
def test_a_cut_that_cannot_help_is_refused(small, policy, prompt, text):
    with pytest.raises(OverlongError, match="length_policy"):
        judged(small, Answer.of(prompt, text), policy)


def test_a_cut_prompt_keeps_one_token_or_is_refused_with_other_remedies():
    rendered = Rendered(tuple(range(10)), 4, 10)  # four tokens of the prompt, six of the answer

    cut, lost = fitted(rendered, "truncate_prompt", 7)

    assert cut == Rendered((0, *range(4, 10)), 1, 7)
    assert lost == Truncation("prompt", 3)
    with pytest.raises(OverlongError, match="does not fit even without its prompt"):
        fitted(rendered, "truncate_prompt", 6)


def test_an_unknown_length_policy_is_refused_with_the_nearest(small):
    with pytest.raises(RecipeError, match="Did you mean 'truncate_prompt'"):
        judged(small, Answer.of("q", "x"), "truncate_promt")


# Beginning and end


def test_nothing_is_taken_before_the_start_and_after_the_end():
    made = service(HEADS)

    async def work():
        with pytest.raises(NotReadyError, match="starting"):
            await made.judge(call(*asked("q", "a")))
        async with made:
            assert made.is_ready
        assert made.state == "ended"
        with pytest.raises(NotReadyError, match="ended"):
            await made.judge(call(*asked("q", "a")))

    run(work)


def test_draining_finishes_what_was_taken_and_refuses_what_is_new():
    async def work():
        made = service(HEADS)
        await made.start()
        async with Held(made) as held:
            taken = asyncio.ensure_future(made.judge(call(*asked("q", "a"))))
            await held.until_waiting(1)
            ending = asyncio.ensure_future(made.drain())
            await asyncio.sleep(0.01)
            with pytest.raises(NotReadyError, match="draining"):
                await made.judge(call(*asked("q", "b")))
        answered = await taken
        await ending
        return answered.judged[0].score, made.state, made.worker.is_alive

    score, state, is_alive = run(work)
    assert score == pytest.approx(alone("mean", asked("q", "a")[0]), abs=TOLERANCE)
    assert (state, is_alive) == ("ended", False)


def test_a_drain_that_takes_too_long_tells_those_who_wait():
    async def work():
        made = service(HEADS, drain_s=0.05)
        await made.start()
        async with Held(made) as held:
            waiting = asyncio.ensure_future(made.judge(call(*asked("q", "a"))))
            await held.until_waiting(1)
            await made.drain()
            with pytest.raises(NotReadyError, match="ended before its turn"):
                await waiting

    run(work)


# Other work of the device


def test_jobs_run_on_the_thread_that_reads():
    names = set()

    class Named(PlainScorer):
        def score(self, answers):
            names.add(threading.current_thread().name)
            return super().score(answers)

    async def work():
        async with service(Named()) as made:
            await made.judge(call(*asked("q", "a")))
            names.add(await made.on_worker(lambda _: threading.current_thread().name))
            return await made.on_worker(lambda registry: registry.names)

    assert run(work) == ("rm",)
    assert len(names) == 1


def test_the_error_of_a_job_reaches_its_caller_and_the_worker_goes_on():
    def broken(_):
        raise ValueError("no such thing")

    async def work():
        async with service(HEADS) as made:
            with pytest.raises(ValueError, match="no such thing"):
                await made.on_worker(broken)
            return await made.on_worker(lambda _: 7)

    assert run(work) == 7


def test_jobs_are_bounded_like_all_else():
    async def work():
        async with service(HEADS, max_jobs=1) as made, Held(made):
            waiting = asyncio.ensure_future(made.on_worker(lambda _: 1))
            await asyncio.sleep(0.01)
            with pytest.raises(BusyError, match="jobs are waiting"):
                await made.on_worker(lambda _: 2)
            waiting.cancel()

    run(work)
