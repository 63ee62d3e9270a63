"""A judge is a scorer: of sets of candidates, in every place where scorers go."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from fake_engine import engine
from judging import ScriptedJudge, candidates, first_wins, longer_wins, replies, verdict

from retrm.errors import DataError, EndpointError, RecipeError, ScoreError
from retrm.evaluation.benchmarks.base import BenchmarkData, Item
from retrm.evaluation.run import Entrant, evaluate
from retrm.judges.cache import ReplyCache
from retrm.judges.comparing import Comparer
from retrm.judges.ranking import RANKINGS
from retrm.judges.registry import get_template
from retrm.records import Answer, Message, Prompt
from retrm.scorers.base import LimitedScorer, ObjectiveScorer, SetScorer, Summarised
from retrm.scorers.estimate import estimate_scoring
from retrm.scorers.judge import JudgeScorer, JudgeSpec, judge_scorer, open_judge
from retrm.scorers.objectives import objectives_of
from retrm.scorers.open import open_scorer, open_scorers, shown_spec
from retrm.scorers.together import judge_all, judge_chunks


def scorer(judge: ScriptedJudge, *, ranking: str = "round_robin", **options: object) -> JudgeScorer:
    template = get_template(str(options.pop("template", "rm_r1")))
    return judge_scorer(Comparer(judge, template, **options), ranking=ranking)  # type: ignore[arg-type]


def by_digits(first: str, second: str, number: int) -> str:
    """UnifiedReward-Think's form; a candidate's digit is its correctness, its length its clarity."""
    del number
    lines = [
        f"{i}. {name}: Answer 1 ({a}/10) - x; Answer 2 ({b}/10) - y"
        for i, (name, a, b) in enumerate(
            [
                ("Semantic accuracy", 5, 5),
                ("Correctness", int(first[0]), int(second[0])),
                ("Clarity", len(first), len(second)),
                ("Wit", 3, 4),
            ],
            1,
        )
    ]
    better = 1 if int(first[0]) >= int(second[0]) else 2
    return "<think>\n" + "\n".join(lines) + f"\n</think><answer>Answer {better} is better</answer>"


@pytest.mark.parametrize("ranking", [*RANKINGS])
def test_the_best_candidate_of_each_prompt_scores_highest(ranking: str):
    answers = [
        *candidates("a", "aaaa", "aa", "aaa", question="one"),
        *candidates("bbb", "b", question="two"),
    ]
    judged = scorer(ScriptedJudge(longer_wins), ranking=ranking)
    scores = judged.score(answers)

    assert (int(np.argmax(scores[:4])), int(np.argmax(scores[4:]))) == (1, 0)
    assert judged.counts.replies <= judged.n_calls(4) + judged.n_calls(2)


def test_two_candidates_cost_two_calls_whatever_the_ranking():
    for ranking in RANKINGS:
        judge = ScriptedJudge(longer_wins)
        scorer(judge, ranking=ranking).score(candidates("a", "bb"))
        assert len(judge.asked) == 2 == scorer(judge, ranking=ranking).n_calls(2)


def test_rounds_of_many_prompts_are_asked_together():
    judge = ScriptedJudge(longer_wins)
    answers = [
        one
        for q in range(5)
        for one in candidates("a", "aa", "aaa", "aaaa", question=f"question {q}")
    ]
    scorer(judge, ranking="knockout").score(answers)

    assert judge.n_batches == 2  # rounds of four candidates
    assert len(judge.asked) == 5 * 3 * 2


def test_candidates_of_a_prompt_may_stand_apart_in_a_list():
    one, two = candidates("a", "aaa", question="one"), candidates("b", "bb", question="two")
    scores = scorer(ScriptedJudge(longer_wins)).score([one[0], two[0], one[1], two[1]])

    assert scores.tolist() == [0.0, 0.0, 1.0, 1.0]


def test_a_candidate_that_stands_alone_is_counted_and_nothing_but_lone_ones_is_refused():
    judged = scorer(ScriptedJudge(longer_wins))
    answers = [*candidates("a", "aa", question="one"), *candidates("b", question="two")]

    assert judged.score(answers).tolist() == [0.0, 1.0, 0.0]
    assert judged.counts.lone == 1
    with pytest.raises(ScoreError, match="at least two candidates of a prompt"):
        judged.score(candidates("b", question="two"))


def test_tools_of_a_prompt_are_shown_to_the_judge():
    seen: list[str] = []

    class Spy(ScriptedJudge):
        def ask(self, requests, sampling, on_reply):
            seen.extend(request.messages[-1].content for request in requests)
            for place, request in enumerate(requests):
                for number in request.numbers:
                    from retrm.judges.cache import Reply

                    on_reply(place, number, Reply(verdict(True)))

    prompt = Prompt((Message("user", "q"),), tools=({"name": "search"},))
    scorer(Spy(longer_wins)).score([Answer(prompt, text, "q") for text in ("a", "b")])

    assert 'Tools that may be called: [{"name": "search"}]' in seen[0]


def test_what_the_scores_hang_on_is_in_the_identity():
    made = [
        scorer(ScriptedJudge(longer_wins)),
        scorer(ScriptedJudge(longer_wins, identity="other")),
        scorer(ScriptedJudge(longer_wins), ranking="swiss"),
        scorer(ScriptedJudge(longer_wins), samples=3),
        scorer(ScriptedJudge(longer_wins), orders="first"),
        scorer(ScriptedJudge(longer_wins), template="r1_reward"),
    ]

    assert len({one.identity for one in made}) == len(made)


def test_positional_agreement_stands_in_what_a_report_shows():
    judged = scorer(ScriptedJudge(first_wins))
    judged.score(candidates("a", "b"))

    assert judged.provenance["positional_agreement"] == "0.0000"
    assert judged.provenance["first_rate"] == "1.0000"
    assert "orders agree 0.000" in judged.summary()


# Dimension scores.


def test_dimension_scores_are_kept_by_dimension_and_candidate():
    judged = scorer(ScriptedJudge(by_digits), template="unified_reward_think")
    assert isinstance(judged, ObjectiveScorer)
    answers = candidates("7a", "9aa", "8")
    table = judged.objective_scores(answers)
    details = judged.dimension_scores(answers)

    assert objectives_of(judged).objectives == ("Semantic accuracy", "Correctness", "Clarity")
    # Each stands in two pairs of the ring, both orders: the same digits and lengths every time.
    assert table.tolist() == [[5, 7, 2], [5, 9, 3], [5, 8, 1]]
    assert [one.n_readings for one in details] == [4, 4, 4]
    # "Wit" is 3 for whoever is shown first and 4 for the other: 3.5 on average.
    assert [one.means["Wit"] for one in details] == [3.5, 3.5, 3.5]


def test_pointwise_scores_are_means_of_the_dimensions_in_few_calls():
    judge = ScriptedJudge(by_digits)
    judged = scorer(judge, ranking="pointwise", template="unified_reward_think")
    scores = judged.score(candidates("7a", "9aa", "8", "2aaaaa"))

    # (5 + 7 + 2) / 3, (5 + 9 + 3) / 3, (5 + 8 + 1) / 3, (5 + 2 + 6) / 3
    assert scores == pytest.approx([14 / 3, 17 / 3, 14 / 3, 13 / 3])
    assert len(judge.asked) == judged.n_calls(4) == 8


def test_a_candidate_without_readable_scores_takes_the_mean_of_the_others_and_is_counted():
    def blind_to(first: str, second: str, number: int) -> str:
        return "?" if "9aa" in (first, second) else by_digits(first, second, number)

    judged = scorer(ScriptedJudge(blind_to), ranking="pointwise", template="unified_reward_think")
    scores = judged.score(candidates("7a", "9aa", "3a"))

    # 7a: 14/3, 3a: 10/3; the third takes 4.
    assert scores == pytest.approx([14 / 3, 4.0, 10 / 3])
    assert judged.counts.unscored == 1
    assert dict(judged.counts.unread) == {"no verdict tag": 4}


def test_copies_of_the_example_and_contradictions_are_counted():
    example = get_template("unified_reward_think").wording.partition("Example of the form:\n")[2]  # type: ignore[attr-defined]
    copy = example.partition("\nThe scores")[0]
    turned = copy.replace("<answer>Answer 1", "<answer>Answer 2")
    judged = scorer(
        ScriptedJudge(lambda a, b, k: copy if a == "x" else turned), template="unified_reward_think"
    )
    judged.score(candidates("x", "y"))

    assert (judged.counts.copied_examples, judged.counts.contradictions) == (2, 1)


def test_pointwise_needs_a_template_with_scores():
    with pytest.raises(RecipeError, match="gives no dimension scores"):
        scorer(ScriptedJudge(longer_wins), ranking="pointwise")
    assert not isinstance(scorer(ScriptedJudge(longer_wins)), ObjectiveScorer)


# Where scorers go.


def test_a_judge_is_a_scorer_of_sets():
    judged = scorer(ScriptedJudge(longer_wins))

    assert isinstance(judged, SetScorer)
    assert isinstance(judged, Summarised)
    assert not isinstance(judged, LimitedScorer)
    found = judge_all({"judge": judged}, candidates("a", "bb"))
    assert found["judge"].scores.tolist() == [0.0, 1.0]
    with pytest.raises(RecipeError, match="does not cut"):
        judge_all({"judge": judged}, candidates("a", "bb"), overlong="skip")


def test_candidates_that_come_in_two_chunks_of_a_stream_are_refused():
    judged = scorer(ScriptedJudge(longer_wins))
    chunks = [candidates("a", "bb"), candidates("ccc", "d")]
    stream = judge_chunks({"judge": judged}, chunks)
    next(stream)

    with pytest.raises(DataError, match="into one record"):
        next(stream)


def test_an_estimate_asks_the_judge_nothing():
    judge = ScriptedJudge(longer_wins)
    found = estimate_scoring(scorer(judge), [candidates("a", "bb")])

    assert (found.n_answers, found.seconds, judge.asked) == (2, None, [])


def item(id_: str, question: str, *texts: str) -> Item:
    answers = tuple(candidates(*texts, question=question))
    return Item(id_, "all", answers[0].prompt_id, answers, where=f"rows[{id_}]")


def test_a_benchmark_is_judged_item_by_item_and_goes_on_after_a_stop(tmp_path: Path):
    # The same answers in two items are two comparisons: a score holds inside its item.
    toy = BenchmarkData("toy", (item("1", "q", "a", "bb"), item("2", "q", "bb", "ccc")))
    judge = ScriptedJudge(longer_wins)
    (file,) = evaluate({"j": Entrant(scorer(judge))}, [toy], tmp_path)

    assert [row.item.scores.tolist() for row in file.rows] == [[0, 1], [0, 1]]
    assert len(judge.asked) == 4
    assert file.about["positional_agreement"] == "1.0000"
    again = ScriptedJudge(longer_wins)
    (same,) = evaluate({"j": Entrant(scorer(again))}, [toy], tmp_path)
    assert again.asked == []
    assert [row.item.scores.tolist() for row in same.rows] == [[0, 1], [0, 1]]


def test_a_killed_evaluation_asks_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("retrm.evaluation.run.SETS_PER_CHUNK", 2)
    toy = BenchmarkData("toy", tuple(item(str(i), f"q{i}", "a" * (i + 1), "b") for i in range(5)))
    cache = tmp_path / "cache.jsonl"
    broken = scorer(ScriptedJudge(longer_wins, fails_at=7), cache=ReplyCache(cache))
    with pytest.raises(KeyboardInterrupt):
        evaluate({"j": Entrant(broken)}, [toy], tmp_path / "run")
    rest = ScriptedJudge(longer_wins)
    (file,) = evaluate(
        {"j": Entrant(scorer(rest, cache=ReplyCache(cache)))}, [toy], tmp_path / "run"
    )

    assert len(rest.asked) == 5 * 2 - 7
    assert [row.item.scores.tolist() for row in file.rows] == [[0.5, 0.5]] * 1 + [[1, 0]] * 4


def test_steps_of_one_solution_are_refused_before_anything_is_asked(tmp_path: Path):
    steps = Item("1", "all", "c", tuple(candidates("a", "ab")), are_prefixes=True, where="rows[1]")
    judge = ScriptedJudge(longer_wins)
    with pytest.raises(RecipeError, match="beginnings of one solution"):
        evaluate({"j": Entrant(scorer(judge))}, [BenchmarkData("toy", (steps,))], tmp_path)
    assert judge.asked == []


# What a person types.


def test_a_spec_is_read_with_its_types():
    spec = JudgeSpec.parse(
        "some/model?template=r1_reward&samples=5&top_p=0.9&endpoint=http://h:8000/v1"
    )

    assert (spec.model, spec.template, spec.samples, spec.top_p) == (
        "some/model",
        "r1_reward",
        5,
        0.9,
    )
    assert spec.endpoint == "http://h:8000/v1"
    assert (spec.sampling.temperature, JudgeSpec.parse("m").sampling.temperature) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        ("judge:", "without a model"),
        ("judge:m?templat=rm_r1", "Did you mean 'template'"),
        ("judge:m?template=rm_r2", "unknown judge template"),
        ("judge:m?samples=many", "expected a number"),
        ("judge:m?samples=0", "expected 1 or more"),
        ("judge:m?temperature=nan", "temperature=nan; expected a finite number"),
        ("judge:m?top_p=0", "top_p=0.0; expected above 0 and at most 1"),
        ("judge:m?top_p=nan", "top_p=nan"),
        ("judge:m?timeout_s=-1", "timeout_s=-1.0; expected seconds above 0"),
        ("judge:m?retries=-1", "retries=-1; expected 0 or more"),
        ("judge:m?samples=3&temperature=0", "all would be the same"),
        ("judge:m?ranking=nockout", "Did you mean 'knockout'"),
        ("judge:m?ranking=pointwise", "gives no dimension scores"),
        ("judge:m?orders=one", "unknown orders"),
        ("judge:m?reads=videos", "expected text or pictures"),
        ("judge:m?wording=nowhere.txt", "cannot be read"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_before_a_model_is_loaded(text: str, telling: str):
    with pytest.raises(RecipeError, match=telling):
        open_scorer(text)


def test_the_password_of_an_endpoint_is_shown_nowhere(tmp_path: Path):
    text = f"judge:m?endpoint=http://me:secret@127.0.0.1:9&cache={tmp_path}"
    opened = open_scorers([text])
    (name,) = opened

    assert "secret" not in name + opened[name].name + opened[name].identity + shown_spec(text)  # type: ignore[attr-defined]
    with pytest.raises(EndpointError, match="expected one like"):
        open_judge("judge:m?endpoint=ftp://x")


def rollouts(path: Path) -> Path:
    rows = [
        {"prompt": f"q{i}", "responses": ["a", "a" * (i + 2), "aa"[: i + 1]], "correct": [0, 1, 0]}
        for i in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_select_and_score_take_a_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = rollouts(tmp_path / "r.jsonl")
    with engine(replies) as running:
        spec = f"judge:m?endpoint={running.url}&cache={tmp_path / 'cache'}"
        assert run("select", spec, data, "--json") == 0
        chosen = json.loads(capsys.readouterr().out)
        n_asked = len(running.requests)
        assert run("score", spec, data, "-o", tmp_path / "scored.jsonl") == 0
        told = capsys.readouterr().err

        assert len(running.requests) == n_asked  # all of it was in the cache

    assert chosen["accuracy"] == 1.0
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert all(np.argmax(row["score"]) == 1 for row in scored)
    assert "from the cache" in told


def test_a_local_toy_judge_is_opened_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from retrm.backbone.fake import FakeBackbone

    monkeypatch.setattr("retrm.backbone.remote.load_backbone", lambda name, **_: FakeBackbone())
    judged = open_judge(f"judge:toy?max_new_tokens=2&orders=drawn&cache={tmp_path}")
    scores = judged.score(candidates("a", "b"))

    assert scores.tolist() == [0.5, 0.5]
    assert judged.counts.unread.total() == 1
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
