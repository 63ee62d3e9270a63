"""A judge behind a cheap scorer: asked where the margin is small, and what that saves."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from fake_engine import engine
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import ScriptedJudge, candidates, longer_wins, replies, verdict

from retrm.errors import LabelError, RecipeError, ScoreError
from retrm.evaluation.cascade import cascade_curve
from retrm.judges.comparing import Comparer
from retrm.judges.rm_r1 import RmR1Instruct
from retrm.reports.cascade import cascade_png
from retrm.scorers.cascade import CascadeScorer, shared_out
from retrm.scorers.judge import JudgeScorer
from retrm.scorers.open import open_scorer


class Digits:
    """The number that a candidate begins with."""

    name = identity = "digits"

    def score(self, answers):
        return np.array([float(a.response.split()[0]) for a in answers])


def cascade(judge: ScriptedJudge, margin: float) -> CascadeScorer:
    return CascadeScorer(Digits(), JudgeScorer(Comparer(judge, RmR1Instruct())), margin=margin)


def test_the_judge_is_asked_only_of_candidates_near_the_best():
    judge = ScriptedJudge(longer_wins)
    made = cascade(judge, 1.0)
    scores = made.score(candidates("9", "8.5 long", "3 the longest of all"))

    # 9 and 8.5 are within 1: the judge prefers the longer, which takes the higher score.
    assert scores.tolist() == [8.5, 9.0, 3.0]
    assert {text for a, b, _ in judge.asked for text in (a, b)} == {"9", "8.5 long"}
    assert (made.n_sets, made.n_asked) == (1, 1)


def test_a_clear_winner_costs_nothing():
    judge = ScriptedJudge(longer_wins)
    made = cascade(judge, 0.4)

    assert made.score(candidates("9", "8.5 long")).tolist() == [9.0, 8.5]
    assert judge.asked == []
    assert (made.n_sets, made.n_asked) == (1, 0)


def test_without_a_margin_the_judge_breaks_ties_and_with_an_endless_one_it_decides_all():
    assert cascade(ScriptedJudge(longer_wins), 0.0).score(candidates("5", "5 long")).argmax() == 1
    every = cascade(ScriptedJudge(longer_wins), np.inf)
    assert every.score(candidates("9", "1 long", "5 longer")).tolist() == [1.0, 5.0, 9.0]


def test_what_the_judge_ties_stays_in_the_order_of_the_cheap_scorer():
    made = cascade(ScriptedJudge(lambda a, b, k: verdict(True)), 9.0)

    assert made.score(candidates("5", "6", "7")).tolist() == [5.0, 6.0, 7.0]


def test_sets_and_answers_give_the_same():
    sets = [candidates("9", "8.5 long", question="a"), candidates("2", "2 b", question="b")]
    made = cascade(ScriptedJudge(longer_wins), 1.0)
    apart = made.score_sets(sets)

    assert np.concatenate(apart).tolist() == made.score([*sets[0], *sets[1]]).tolist()
    assert "was asked of 4 of 4 prompts" in made.summary()


def test_shared_out_scores_are_worked_by_hand():
    # The judge ties 0 and 1, whose cheap scores are equal, above 2: they share places 2 and 3.
    assert shared_out(np.array([1.0, 1, 3]), np.array([1.0, 1, 0])).tolist() == [2.0, 2.0, 1.0]
    level = shared_out(np.array([1.0, 1.0]), np.array([0.0, 1.0]))
    assert level[1] > level[0] == 1.0


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=7))
@settings(max_examples=40, deadline=None)
def test_shared_out_scores_keep_the_judges_order_and_their_range(rows: list[tuple[int, int]]):
    cheap, judged = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    out = shared_out(cheap, judged)

    for i in range(len(rows)):
        for j in range(len(rows)):
            if (judged[i], cheap[i]) < (judged[j], cheap[j]):
                assert out[i] < out[j]
            if rows[i] == rows[j]:
                assert out[i] == out[j]
    assert out.min() >= cheap.min()
    assert out.max() <= cheap.max() + 1e-9


@pytest.mark.parametrize(
    "text",
    [
        "cascade:longest,judge:m",
        "cascade:0.5,judge:m",
        "cascade:0.5,longest",
        "cascade:x,longest,judge:m",
    ],
)
def test_a_cascade_that_cannot_be_read_is_refused(text: str):
    with pytest.raises(RecipeError, match="expected cascade:MARGIN,SCORER,judge:MODEL"):
        open_scorer(text)


def test_a_negative_margin_is_refused():
    with pytest.raises(RecipeError, match="expected 0 or more"):
        cascade(ScriptedJudge(longer_wins), -1.0)


def test_a_cascade_is_opened_by_name(tmp_path: Path):
    made = open_scorer(f"cascade:2,longest,judge:m?endpoint=http://127.0.0.1:9&cache={tmp_path}")
    assert isinstance(made, CascadeScorer)
    assert (made.margin, made.cheap.name) == (2.0, "longest")


# The curve.


def test_the_curve_is_worked_by_hand():
    # Cheap: right, wrong, tie, right. Judge: wrong, right, right, tie. Gaps in size: .1, .2, 0, 3.
    curve = cascade_curve(
        [0.1, -0.2, 0.0, 3.0],
        [0.0, 1.0, 0.75, 0.5],
        list("abcd"),
        calls_per_pair=2,
        shares=(0, 0.25, 0.5, 0.75),
    )
    found = [(p.margin, p.share, p.n_calls, p.accuracy.value) for p in curve.points]

    assert found == [
        (-1.0, 0.0, 0, 0.625),  # 1 + 0 + .5 + 1
        (0.0, 0.25, 2, 0.75),  # 1 + 0 + 1 + 1
        (0.1, 0.5, 4, 0.5),  # 0 + 0 + 1 + 1
        (0.2, 0.75, 6, 0.75),  # 0 + 1 + 1 + 1
        (3.0, 1.0, 8, 0.625),  # 0 + 1 + 1 + .5
    ]
    # Both alone have .625, so asking at random gives that everywhere.
    assert [p.at_random for p in curve.points] == [0.625] * 5
    assert [p.over_random.value for p in curve.points] == [0, 0.125, -0.125, 0.125, 0]
    assert (curve.n_judge_ties, curve.n_cheap_ties, curve.n_unread) == (1, 1, 0)


def test_equal_gaps_are_asked_together():
    curve = cascade_curve([1, 1, 1, -1], [1, 1, 1, 1], list("abcd"), calls_per_pair=1)

    assert [p.share for p in curve.points] == [0.0, 1.0]


def test_a_judge_that_knows_where_the_cheap_scorer_fails_is_above_the_line_at_random():
    rng = np.random.default_rng(0)
    gaps = rng.normal(0.7, 1.0, 400)
    curve = cascade_curve(gaps, np.ones(400), [str(i) for i in range(400)], calls_per_pair=2)
    halves = [p for p in curve.points if 0.3 < p.share < 0.7]

    assert halves
    assert all(p.over_random.low > 0 for p in halves)


def test_a_curve_without_pairs_or_with_gaps_in_it_is_refused():
    with pytest.raises(LabelError, match="no pairs"):
        cascade_curve([], [], [], calls_per_pair=2)
    with pytest.raises(ScoreError, match="expected one each"):
        cascade_curve([1.0], [1.0, 0.5], ["a"], calls_per_pair=2)
    with pytest.raises(ScoreError):
        cascade_curve([np.nan], [1.0], ["a"], calls_per_pair=2)


def test_the_picture_is_a_png(tmp_path: Path):
    curve = cascade_curve([0.1, -0.2, 1.0], [1.0, 1.0, 0.0], list("abc"), calls_per_pair=2)
    cascade_png(tmp_path / "c.png", curve)

    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_curve_picture_and_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [
        {"prompt": f"q{i}", "chosen": "x" * (i + 2), "rejected": "y" * (5 - i)} for i in range(4)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with engine(replies) as running:
        judge = f"judge:m?endpoint={running.url}&cache={tmp_path / 'cache'}"
        options = ("-o", tmp_path / "out", "--json")
        assert run("cascade", "shortest", judge, data, *options) == 0
        told = json.loads(capsys.readouterr().out)
        assert run("cascade", "shortest", judge, data, *options, "--limit", 2) == 0
        assert len(running.requests) == 8

    # Lengths right-wrong: 2-5, 3-4, 4-3, 5-2: shortest has .5, and so has the judge, who is its opposite.
    assert [p["accuracy"]["value"] for p in told["points"]] == [0.5, 0.5, 0.5]
    assert [p["share"] for p in told["points"]] == [0, 0.5, 1]
    written = [
        json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()
    ]
    assert len(written) == 2
    assert len(written[0]["outputs"]) == 2
    assert (tmp_path / "out" / "curve.png").exists()
    stored = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert stored["counts"]["positional_agreement"] == 1.0
