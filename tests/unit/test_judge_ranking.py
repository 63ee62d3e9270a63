"""Rankings from points of pairs: worked by hand, and what must hold for any points."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import RecipeError
from retrm.judges.ranking import RANKINGS, finished, n_pairs, round_robin

ALL = tuple(RANKINGS)


def played(
    name: str, n: int, points: Callable[[int, int], float], *, seed: int = 0
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The scores, and the pairs that were asked for."""
    ranking = RANKINGS[name](n, seed=seed)
    asked: list[tuple[int, int]] = []
    try:
        pairs = next(ranking)
        while True:
            asked += pairs
            pairs = ranking.send([points(a, b) for a, b in pairs])
    except StopIteration as done:
        return done.value, asked


def by_number(a: int, b: int) -> float:
    """The lower number is better."""
    return float(a < b)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_the_best_of_a_clear_order_comes_first_within_the_stated_pairs(name: str, n: int):
    scores, asked = played(name, n, by_number)

    assert scores.shape == (n,)
    assert np.isfinite(scores).all()
    assert int(np.argmax(scores)) == 0
    assert (scores[0] > scores[1:]).all()
    assert len(asked) <= n_pairs(name, n)
    if name != "swiss":
        assert len(asked) == n_pairs(name, n)


@pytest.mark.parametrize("name", ["round_robin", "bradley_terry"])
def test_everybody_meets_everybody_once(name: str):
    _, asked = played(name, 5, by_number)

    assert sorted(asked) == [(a, b) for a in range(5) for b in range(a + 1, 5)]


def test_points_of_a_round_robin_are_means():
    # 0 beats 1, ties 2; 1 beats 2: (1 + .5) / 2, (0 + 1) / 2, (.5 + 0) / 2.
    table = {(0, 1): 1.0, (0, 2): 0.5, (1, 2): 1.0}
    scores, _ = played("round_robin", 3, lambda a, b: table[a, b])

    assert scores.tolist() == [0.75, 0.5, 0.25]


def test_bradley_terry_of_one_pair_is_closed():
    # Points 1 with a quarter win added to either side: log(1.25 / 0.25) = log 5.
    scores, _ = played("bradley_terry", 2, lambda a, b: 1.0)

    assert scores[0] - scores[1] == pytest.approx(math.log(5), abs=1e-9)
    assert scores.sum() == pytest.approx(0, abs=1e-12)


def test_bradley_terry_of_three_in_a_clear_order_solves_its_equation():
    # By symmetry x, 0, -x. Wins of the first: 1.25 + 1.25 of 1.5 + 1.5 games:
    # 1.5 sigma(x) + 1.5 sigma(2x) = 2.5.
    scores, _ = played("bradley_terry", 3, by_number)
    x = float(scores[0])

    assert scores == pytest.approx([x, 0, -x], abs=1e-9)
    assert 1.5 / (1 + math.exp(-x)) + 1.5 / (1 + math.exp(-2 * x)) == pytest.approx(2.5, abs=1e-9)


@pytest.mark.parametrize("name", ["round_robin", "bradley_terry"])
def test_a_circle_ties_all(name: str):
    circle = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 0.0}
    scores, _ = played(name, 3, lambda a, b: circle[a, b])

    assert scores == pytest.approx([scores[0]] * 3, abs=1e-9)


def test_a_knockout_of_eight_scores_rounds():
    scores, _ = played("knockout", 8, by_number)

    # One survives three rounds, one two, two one, four none.
    assert sorted(scores.tolist()) == [0, 0, 0, 0, 1, 1, 2, 3]
    assert scores[0] == 3


def test_a_knockout_of_three_lets_one_through_without_a_pair():
    scores, asked = played("knockout", 3, by_number)

    assert len(asked) == 2
    assert sorted(scores.tolist())[-1] == 2


def test_swiss_pairs_nobody_twice_and_stands_apart_by_opponents():
    scores, asked = played("swiss", 8, by_number)

    assert len({frozenset(pair) for pair in asked}) == len(asked) == 12
    # Three rounds: 0 wins all three; the opponents' points never add up to a step of points.
    assert np.floor(scores * 4) == pytest.approx(np.floor(scores * 8) // 2)
    assert math.floor(scores[0]) == 3


def test_swiss_with_an_odd_one_out_gives_it_half_a_point():
    scores, asked = played("swiss", 3, lambda a, b: 0.5)

    assert len(asked) == 2
    # Two rounds of halves for all: 1 point each, opponents aside.
    assert np.floor(scores).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["swiss", "knockout"])
def test_the_draw_belongs_to_the_seed(name: str):
    draws = {tuple(played(name, 8, lambda a, b: 0.5, seed=seed)[1]) for seed in range(5)}

    assert len(draws) > 1
    assert played(name, 8, by_number, seed=3)[1] == played(name, 8, by_number, seed=3)[1]


@given(st.integers(1, 7), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_swapping_who_wins_turns_the_order_of_full_rankings_around(n: int, random):
    table = {
        (a, b): random.choice([0.0, 0.25, 0.5, 0.75, 1.0])
        for a in range(n)
        for b in range(a + 1, n)
    }
    for name in ("round_robin", "bradley_terry"):
        scores, _ = played(name, n, lambda a, b: table[a, b])
        turned, _ = played(name, n, lambda a, b: 1 - table[a, b])
        middle = 0.0 if name == "bradley_terry" else 1.0 if n > 1 else 0.0
        assert scores + turned == pytest.approx(np.full(n, middle), abs=1e-8)


def test_the_numbers_of_pairs_are_those_of_the_module():
    # n = 8: 28, 28, 3 rounds of 4, 7; n = 5: 10, 10, 3 rounds of 2, 4.
    assert [n_pairs(name, 8) for name in ALL] == [28, 28, 12, 7]
    assert [n_pairs(name, 5) for name in ALL] == [10, 10, 6, 4]
    assert [n_pairs(name, 1) for name in ALL] == [0, 0, 0, 0]


def test_what_is_no_ranking_is_refused():
    with pytest.raises(RecipeError, match="Did you mean 'knockout'"):
        n_pairs("knock_out", 3)
    with pytest.raises(RecipeError, match="expected at least 1"):
        n_pairs("swiss", 0)
    ranking = RANKINGS["swiss"](4)
    next(ranking)
    with pytest.raises(RuntimeError, match="further round"):
        finished(ranking, [1.0, 1.0])
    assert next(round_robin(2)) == [(0, 1)]
