"""What holds for every benchmark of the registry, on a few hand-made records in its layout."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from benchmark_rows import ROWS, drawn, headline, read, scored, values
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import DataError, RecipeError
from retrm.evaluation.benchmarks import BENCHMARKS, benchmark
from retrm.evaluation.benchmarks.source import Source
from retrm.metrics import point_estimate
from retrm.metrics.statistics import check_same_prompts

each = pytest.mark.parametrize("name", list(BENCHMARKS))
# These judge steps one by one: nothing is preferred, and guessing has no known share.
JUDGE_STEPS = ("process_bench", "prm_bench")
each_of_pairs = pytest.mark.parametrize("name", [n for n in BENCHMARKS if n not in JUDGE_STEPS])


def test_every_benchmark_has_hand_made_records():
    assert set(ROWS) == set(BENCHMARKS)


@each
def test_a_benchmark_says_what_it_is(name):
    found = benchmark(name)

    assert found.name == name
    assert found.title
    assert found.paper
    assert found.pattern
    assert all(source.startswith("hub:") for source in found.hub)


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(
        RecipeError, match=r"unknown benchmark 'rmbench'. Did you mean 'rm_bench'\?"
    ):
        benchmark("rmbench")


@each
def test_items_are_whole_and_their_facts_survive_a_file(name):
    data = read(name)

    assert data.name == name
    assert len({item.id for item in data.items}) == len(data.items)
    for item in data.items:
        assert item.subset
        assert item.cluster
        assert item.where
        assert item.answers
        assert all(answer.where for answer in item.answers)
        assert json.loads(json.dumps(dict(item.facts))) == dict(item.facts)
        if item.are_prefixes:
            texts = [answer.response for answer in item.answers]
            assert all(b.startswith(a) for a, b in pairwise(texts))


@each
def test_exactly_one_figure_is_the_headline_and_names_are_unique(name):
    figures = benchmark(name).figures(drawn(read(name).items, 0))

    assert headline(figures).metric
    assert len(values(figures)) == len(figures)
    assert any(figure.is_official for figure in figures)


@each
def test_all_figures_are_over_the_clusters_of_the_whole_benchmark(name):
    items = drawn(read(name).items, 1)
    figures = benchmark(name).figures(items)

    clusters = sorted({item.cluster for item in items})
    assert list(figures[0].statistic.prompts) == clusters
    for figure in figures:
        check_same_prompts(figures[0].statistic, figure.statistic)


@each
def test_a_resample_is_the_same_figure_on_the_items_that_were_drawn(name):
    """Each cluster left out once: by a count of 0, and by computing without its items."""
    items = drawn(read(name).items, 5)
    figures = benchmark(name).figures(items)
    clusters = figures[0].statistic.prompts
    counts = 1 - np.eye(len(clusters))
    by_counts = {(figure.metric, figure.subset): figure.statistic(counts) for figure in figures}
    n_compared = 0
    for c, cluster in enumerate(clusters):
        rest = [item for item in items if item.cluster != cluster]
        try:
            expected = values(benchmark(name).figures(rest))
        except DataError:
            continue
        for key, value in expected.items():
            # A threshold is chosen once and kept in the resamples; the figure says so.
            if "threshold chosen on" not in key[0] and np.isfinite(by_counts[key][c]):
                assert by_counts[key][c] == pytest.approx(value, abs=1e-12), key
                n_compared += 1

    assert n_compared >= len(clusters)


@each
def test_numbers_of_items_ties_and_chance_are_sane(name):
    items = read(name).items
    for figure in benchmark(name).figures(drawn(items, 2)):
        assert figure.n > 0
        assert 0 <= figure.n_ties <= figure.n
        assert figure.chance is None or 0 <= figure.chance <= 1
        # Best-of-N counts prompts here and candidates there; everything else counts items twice.
        assert figure.statistic.n >= figure.n


@each
@settings(max_examples=10, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_the_order_of_items_changes_no_figure(name, order):
    items = drawn(read(name).items, 3)
    # Some equal scores, so that ties are in play.
    for item in items:
        np.round(item.scores, 0, out=item.scores)
    shuffled = list(items)
    order.shuffle(shuffled)

    before, after = (values(benchmark(name).figures(some)) for some in (items, shuffled))
    assert after == pytest.approx(before, abs=1e-12, nan_ok=True)


@each
def test_a_scorer_without_opinion_ties_everywhere_and_wins_nothing_by_it(name):
    items = read(name).items
    figures = benchmark(name).figures(scored(items, 0.25))

    found = headline(figures)
    value = point_estimate(found.statistic)
    assert math.isfinite(value)
    if found.chance is not None:
        assert value <= found.chance + 1e-12
    if name not in JUDGE_STEPS:
        assert found.n_ties > 0
        assert benchmark(name).figures(drawn(items, 4))[0].n_ties == 0


@each_of_pairs
def test_guessing_reaches_chance(name):
    """Mean over 60 draws of normal scores, within five standard errors."""
    items = read(name).items
    draws = [benchmark(name).figures(drawn(items, seed)) for seed in range(60)]
    columns = [column for column in zip(*draws, strict=True) if column[0].chance is not None]
    assert columns
    for column in columns:
        reached = np.array([point_estimate(figure.statistic) for figure in column])
        error = reached.std(ddof=1) / math.sqrt(len(reached))
        assert abs(reached.mean() - column[0].chance) <= 5 * error + 1e-9, column[0].metric


# Candidates of one prompt may stand in several records of rollouts.
@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "best_of_n"])
def test_a_record_that_comes_twice_is_refused(name):
    rows = ROWS[name]
    twice = {**rows, **{f"copy/{part}": some for part, some in rows.items()}}
    said = "has 20 solutions" if name == "reward_math" else r"copy/.* stands at .* already"
    with pytest.raises(DataError, match=said):
        benchmark(name).read(Source.of(twice))


@each
def test_no_records_are_refused(name):
    part = next(iter(ROWS[name]))
    with pytest.raises(DataError, match=r"no (items|records)"):
        benchmark(name).read(Source.of({part: []}))


@each
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_pairs_name_two_candidates_and_never_look_at_scores(name, seed):
    rule, items = benchmark(name), read(name).items
    found = [rule.pairs(item) for item in drawn(items, seed)]

    for item, pairs in zip(items, found, strict=True):
        n = len(item.answers)
        assert all(i != j and 0 <= i < n and 0 <= j < n for i, j in pairs)
        # Nobody is preferred to somebody who is preferred to them.
        assert not set(pairs) & {(j, i) for i, j in pairs}
    assert found == [rule.pairs(item) for item in scored(items, 0.0)]
    assert any(found) == (name not in JUDGE_STEPS)


@each_of_pairs
def test_a_scorer_that_wins_every_pair_is_right_wherever_there_is_anything_to_get_right(name):
    """Scores by the number of pairs won less those lost: only possible where pairs have no cycle."""
    rule, items = benchmark(name), drawn(read(name).items, 0)
    for item in items:
        pairs = rule.pairs(item)
        for way in (1, -1):
            item.scores[:] = 0
            for i, j in pairs:
                item.scores[i] += way
                item.scores[j] -= way
            expected = way > 0 if pairs else None
            if name == "best_of_n":  # all right or all wrong: what is kept is so, too
                expected = way > 0 if pairs else bool(item.facts["labels"][0])
            assert rule.is_right(item) is expected


@each_of_pairs
def test_equal_scores_are_never_right_where_there_are_pairs(name):
    rule = benchmark(name)
    paired = [item for item in scored(read(name).items, 0.5) if rule.pairs(item)]
    assert paired
    assert not any(rule.is_right(item) is not False for item in paired)


# Their headline gives an item 0 or 1; RM-Bench, PRMBench and PPE correctness give shares.
ALL_OR_NOTHING = [
    name for name in BENCHMARKS if name not in ("rm_bench", "prm_bench", "ppe_correctness")
]


@pytest.mark.parametrize("name", ALL_OR_NOTHING)
def test_is_right_is_the_official_verdict_where_scores_differ(name):
    """Each item alone in the official table: its figure is 1 if right and 0 if not."""
    rule, seen = benchmark(name), set()
    for seed in range(4):
        for item in drawn(read(name).items, seed):
            right = rule.is_right(item)
            try:
                figures = rule.figures([item])
            except DataError:  # a vote of tie, a prompt whose candidates are all right
                continue
            if item.subset == "Ties":
                continue
            if name == "process_bench":
                figures = [f for f in figures if f.metric.startswith("acc")]
                value = point_estimate(figures[0].statistic)
            else:
                value = point_estimate(headline(figures).statistic)
            assert value == float(right), item.id
            seen.add(right)
    assert seen == {True, False}
