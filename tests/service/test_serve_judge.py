"""A served judge: the candidates of a request are compared with one another, and with no others."""

import asyncio

import pytest
from judging import ScriptedJudge, longer_wins
from served import Held, asked, call, run, service

from retrm.errors import DataError, EndpointError, JudgingError
from retrm.judges.comparing import Comparer
from retrm.judges.rm_r1 import RmR1Instruct
from retrm.scorers.judge import JudgeScorer
from retrm.service.items import Answered


def judge_of(script) -> tuple[ScriptedJudge, JudgeScorer]:
    judge = ScriptedJudge(script)
    return judge, JudgeScorer(Comparer(judge, RmR1Instruct()), name="judge")


def scores(answered: Answered) -> list[float | None]:
    return [one.score for one in answered.judged]


def test_two_requests_about_one_prompt_are_not_mixed():
    judge, scorer = judge_of(longer_wins)

    async def both():
        made = service(scorer)
        async with made:
            async with Held(made) as held:
                sent = [
                    asyncio.ensure_future(made.judge(call(*asked("q", *texts))))
                    for texts in (("a", "bb"), ("ccc", "dddd"))
                ]
                await held.until_waiting(4)
                held.go()
            return await asyncio.gather(*sent)

    first, second = run(both)

    assert scores(first) == [0.0, 1.0]
    assert scores(second) == [0.0, 1.0]  # with the others of the prompt "ccc" would have had 2/3
    assert ("bb", "ccc", 0) not in judge.asked
    assert len(judge.asked) == 4


def test_a_request_without_two_candidates_of_a_prompt_is_refused():
    judge, scorer = judge_of(longer_wins)

    async def alone():
        async with service(scorer) as made:
            await made.judge(call(*asked("q", "a"), *asked("p", "b")))

    with pytest.raises(DataError, match="Send the candidates of a prompt in one request"):
        run(alone)
    assert judge.asked == []


def test_a_judge_that_fails_fails_the_request_and_never_judges_candidates_alone():
    calls = []

    class Broken(ScriptedJudge):
        def ask(self, requests, sampling, on_reply):
            calls.append(len(requests))
            raise EndpointError("the judge is gone")

    scorer = JudgeScorer(Comparer(Broken(longer_wins), RmR1Instruct()), name="judge")

    async def ask():
        async with service(scorer) as made:
            await made.judge(call(*asked("q", "a", "bb")))

    with pytest.raises((EndpointError, JudgingError)):
        run(ask)
    assert calls == [2]
