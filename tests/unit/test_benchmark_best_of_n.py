"""Best-of-N on graded rollouts."""

import math

import numpy as np
import pytest

from retrm.errors import DataError, LabelError
from retrm.evaluation.benchmarks.base import BenchmarkData, Figure, ScoredItem
from retrm.evaluation.benchmarks.best_of_n import BestOfNBenchmark, steps
from retrm.evaluation.benchmarks.source import Source
from retrm.metrics import point_estimate

RULE = BestOfNBenchmark()


def rollouts(*rows: dict) -> Source:
    return Source.of({"rollouts": rows}, name="rollouts.jsonl")


def row(prompt: str, responses: list[str], correct: list, **more: object) -> dict:
    return {"prompt": prompt, "responses": responses, "correct": correct, **more}


def scored(data: BenchmarkData, scores: dict[str, list[float]]) -> list[ScoredItem]:
    return [
        ScoredItem(i.id, i.subset, i.cluster, i.facts, tuple(len(a.response) for a in i.answers), s)
        for i, s in (
            (item, np.array(scores[item.answers[0].prompt.messages[0].content]))
            for item in data.items
        )
    ]


def values(figures: list[Figure]) -> dict[str, float]:
    return {figure.metric: point_estimate(figure.statistic) for figure in figures}


def test_accuracy_at_k_is_the_exact_expectation_over_subsets() -> None:
    data = RULE.read(
        rollouts(
            row("p", ["a", "b", "c", "d"], [0, 1, 0, 0], keys=["1", "2", "1", "1"]),
            row("q", ["a", "b", "c", "d"], [1, 1, 0, 1], keys=["1", "1", "2", "1"]),
        )
    )
    figures = RULE.figures(scored(data, {"p": [4, 3, 2, 1], "q": [4, 3, 2, 1]}))
    found = values(list(figures))
    # p: right is second of four. k=1: 1/4. k=2: chosen if the first is absent: of 6 pairs {2,3}, {2,4}
    # = 2/6. all: 0. q: k=1: 3/4; k=2: by score the best of each pair: 12, 13, 14 -> 1; 23, 24 -> 2;
    # 34 -> 3 (wrong): 5/6. all: 1.
    assert found["accuracy@1"] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert found["accuracy@2"] == pytest.approx((2 / 6 + 5 / 6) / 2)
    assert found["accuracy@all 4"] == pytest.approx(0.5)
    assert found["pass@1"] == pytest.approx(0.5)
    assert found["oracle"] == 1
    assert found["majority vote"] == pytest.approx(0.5)  # p: "1" is wrong; q: "1" is right
    # p: the right one beats 2 of 3; q: three right ones against one wrong: 2 of 3
    assert found["within-prompt AUROC"] == pytest.approx(2 / 3)
    assert [f.metric for f in figures if f.is_headline] == ["accuracy@all 4"]


def test_tied_candidates_share_the_credit_and_are_counted() -> None:
    data = RULE.read(rollouts(row("p", ["a", "b"], [0, 1]), row("q", ["a", "b"], [1, 0])))
    figures = RULE.figures(scored(data, {"p": [1, 1], "q": [2, 1]}))
    headline = next(f for f in figures if f.is_headline)
    assert point_estimate(headline.statistic) == pytest.approx(0.75)
    assert headline.n_ties == 1
    assert headline.chance == pytest.approx(0.5)


def test_candidates_without_a_label_are_counted_and_left_out() -> None:
    data = RULE.read(
        rollouts(row("p", ["a", "b", "c"], [0, 1, None]), row("q", ["a", "b"], [None, 1]))
    )
    assert [len(item.answers) for item in data.items] == [2]
    assert data.excluded == {
        "candidates without a label": 2,
        "prompts with fewer than two candidates": 1,
    }


def test_rollouts_without_labels_are_refused() -> None:
    with pytest.raises(LabelError, match=r"rollouts.jsonl has no labels.*retrm grade"):
        RULE.read(rollouts({"prompt": "p", "responses": ["a", "b"]}))


def test_prompts_that_are_all_right_or_all_wrong_decide_nothing() -> None:
    data = RULE.read(rollouts(row("p", ["a", "b"], [1, 1]), row("q", ["a", "b"], [0, 0])))
    with pytest.raises(LabelError, match="no prompt has right and wrong candidates"):
        RULE.figures(scored(data, {"p": [1, 2], "q": [1, 2]}))


def test_scores_of_another_benchmark_are_refused() -> None:
    with pytest.raises(DataError, match="'x' of best_of_n has 0 labels for 2 candidates"):
        RULE.figures([ScoredItem("x", "all", "x", {}, (1, 1), np.array([1.0, 2.0]))])


@pytest.mark.parametrize(("n", "expected"), [(2, [1]), (4, [1, 2]), (5, [1, 2, 4]), (8, [1, 2, 4])])
def test_curve_doubles_below_all_candidates(n: int, expected: list[int]) -> None:
    assert steps(n) == expected


def test_a_perfect_scorer_reaches_the_oracle_and_its_negative_the_floor() -> None:
    data = RULE.read(rollouts(row("p", ["a", "b", "c"], [0, 1, 0]), row("q", ["a", "b"], [1, 1])))
    perfect = values(list(RULE.figures(scored(data, {"p": [0, 1, 0.5], "q": [1, 1]}))))
    worst = values(list(RULE.figures(scored(data, {"p": [0, -1, -0.5], "q": [1, 1]}))))
    assert perfect["accuracy@all 2 to 3"] == perfect["oracle"] == 1
    assert worst["accuracy@all 2 to 3"] == 0.5
    assert math.isclose(perfect["within-prompt AUROC"], 1)
