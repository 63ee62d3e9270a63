"""The label of what is kept, and its score, against the number of candidates."""

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_files import file, pairs, row

from retrm.errors import DataError
from retrm.evaluation.over_optimisation import has_labels, over_optimisation


def rollouts(*items, clusters=None):
    """Items of (scores, labels)."""
    rows = [
        row(
            f"p{i}",
            scores,
            subset="all",
            cluster=clusters[i] if clusters else None,
            facts={"labels": list(labels)},
        )
        for i, (scores, labels) in enumerate(items)
    ]
    return file("a", rows, "best_of_n")


def test_both_curves_of_a_worked_example():
    # Scores 3 > 2 > 1 with labels 0, 1, 0.
    # N = 1: gold 1/3, proxy 2. N = 2: subsets {3,2}, {3,1}, {2,1} keep 3, 3, 2: gold 1/3, proxy 8/3.
    # N = 3: keeps 3: gold 0, proxy 3. Highest at N = 1, loss 1/3.
    found = over_optimisation(rollouts(([3, 2, 1], [0, 1, 0])))

    assert [p.n for p in found.points] == [1, 2, 3]
    assert [p.gold.value for p in found.points] == pytest.approx([1 / 3, 1 / 3, 0])
    assert [p.proxy.value for p in found.points] == pytest.approx([2, 8 / 3, 3])
    assert found.best_n == 1
    assert found.loss.value == pytest.approx(1 / 3)
    json.dumps(found.as_dict(), allow_nan=False)


item = st.integers(2, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
        st.lists(st.integers(0, 1), min_size=n, max_size=n),
    )
)


@settings(max_examples=40, deadline=None)
@given(st.lists(item, min_size=1, max_size=3))
def test_curves_are_means_over_all_subsets(items):
    """Every subset is looked at; candidates that share the top share its label."""
    found = over_optimisation(rollouts(*items), n_resamples=2)
    smallest = min(len(scores) for scores, _ in items)
    assert len(found.points) == smallest
    for n in range(1, smallest + 1):
        gold, proxy = [], []
        for scores, labels in items:
            kept = []
            for some in combinations(range(len(scores)), n):
                top = [i for i in some if scores[i] == max(scores[j] for j in some)]
                kept.append((np.mean([labels[i] for i in top]), scores[top[0]]))
            gold.append(np.mean([k[0] for k in kept]))
            proxy.append(np.mean([k[1] for k in kept]))
        assert found.points[n - 1].proxy.value == pytest.approx(np.mean(proxy), abs=1e-12)
        assert found.points[n - 1].gold.value == pytest.approx(np.mean(gold), abs=1e-12)


def test_candidates_that_tie_share_their_labels_at_every_n():
    # All three tie: whatever is kept is right with 2/3.
    found = over_optimisation(rollouts(([1, 1, 1], [1, 0, 1])))
    assert [p.gold.value for p in found.points] == pytest.approx([2 / 3] * 3)
    assert found.n_tied == 1
    assert found.best_n == 1


def test_the_proxy_never_falls():
    rng = np.random.default_rng(0)
    found = over_optimisation(
        rollouts(*((rng.normal(size=8), rng.integers(0, 2, 8)) for _ in range(10)))
    )
    assert (np.diff([p.proxy.value for p in found.points]) >= -1e-12).all()


def test_an_over_optimised_scorer_shows_its_loss_and_a_good_one_none():
    """Right answers score above wrong ones, except for one wrong answer in each that tops them all."""
    rng = np.random.default_rng(1)
    bad, good = [], []
    for _ in range(40):
        labels = np.array([0, *rng.integers(0, 2, 15)])
        scores = labels + rng.normal(0, 0.1, 16)
        good.append((scores.copy(), labels))
        scores[0] = 5
        bad.append((scores, labels))
    spoilt, sound = (over_optimisation(rollouts(*items)) for items in (bad, good))

    assert 1 < spoilt.best_n < 16
    assert spoilt.loss.low > 0.3
    assert spoilt.points[-1].gold.value == 0
    assert sound.points[-1].gold.value == 1
    assert sound.loss.value == pytest.approx(0, abs=1e-12)


def test_items_of_one_prompt_are_resampled_together_and_counted_apart():
    items = [([2, 1], [1, 0]), ([2, 1], [0, 1])]
    found = over_optimisation(rollouts(*items, clusters=["p", "p"]))
    assert found.n_items == 2
    assert found.points[1].gold.value == 0.5
    assert found.points[1].gold.n_clusters == 1


def test_curves_end_at_the_smallest_number_of_candidates_and_say_so():
    found = over_optimisation(rollouts(([2, 1], [1, 0]), ([3, 2, 1], [1, 0, 0])))
    assert len(found.points) == 2
    assert found.notes == ("items have 2 to 3 candidates",)


def test_items_without_labels_are_refused():
    scores = pairs("a", [1.0])
    assert not has_labels(scores)
    assert has_labels(rollouts(([1, 2], [0, 1])))
    with pytest.raises(DataError, match="'0' of hh_rlhf has 0 labels for 2 candidates"):
        over_optimisation(scores)
