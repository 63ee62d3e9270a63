"""RewardBench 2: shares of the highest score, and the score of Ties."""

import math

import numpy as np
import pytest
from benchmark_rows import drawn, headline, read, rows_of, scored, values, without
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import DataError
from retrm.evaluation.benchmarks.base import ScoredItem
from retrm.evaluation.benchmarks.reward_bench_2 import TIES_WEIGHTS, RewardBench2


def best_of_4(subset, *rows):
    return [
        ScoredItem(
            f"{subset}/{i}",
            subset,
            f"{subset} {i}",
            {"n_correct": 1},
            (1,) * len(row),
            np.array(row, float),
        )
        for i, row in enumerate(rows)
    ]


def ties(**rows):
    """tied_0=([right], [wrong]) -> items."""
    items = []
    for name, (right, wrong) in rows.items():
        kind, k = name.split("_")
        facts = {"n_correct": len(right), "kind": kind, "k": int(k)}
        scores = np.array([*right, *wrong], dtype=float)
        items.append(
            ScoredItem(f"Ties/{kind}:{k}", "Ties", f"ties:{k}", facts, (1,) * len(scores), scores)
        )
    return items


def ties_score(items):
    return values(RewardBench2().figures(items))["Ties score", "Ties"]


EXAMPLE = {
    "ref_0": ([2.0], [0.5, -1.0]),
    "ref_1": ([1.0], [1.5, 0.0]),
    "tied_0": ([3.0, 2.0, 2.5], [0.0, -1.0]),
    "tied_1": ([2.0, 1.0], [0.8, 0.2]),
}


def test_the_worked_example_of_ties():
    # margins: ref 2 - 0.5 = 1.5, 1 - 1.5 = -0.5; tied 2 - 0 = 2, 1 - 0.8 = 0.2; spreads 1, 1.
    # tied accuracy 1, ref accuracy 1/2; m_t > s: yes, no; min(m_r, m_t) = 1.5, -0.5 > s: yes, no.
    # tanh(1.5 - 1) = 0.46211716, tanh(-0.5 - 1) = -0.90514825, mean -0.22151555.
    # 0.30 + 0.15 + 0.10 + 0.10 - 0.0022151555 = 0.6477848445
    found = values(RewardBench2().figures(ties(**EXAMPLE)))

    assert found["tied accuracy", "Ties"] == 1.0
    assert found["ref accuracy", "Ties"] == 0.5
    assert found["tied margin above spread", "Ties"] == 0.5
    assert found["both margins above spread", "Ties"] == 0.5
    assert found["margin term", "Ties"] == pytest.approx((0.46211716 - 0.90514825) / 2, abs=1e-8)
    assert found["Ties score", "Ties"] == pytest.approx(0.6477848445, abs=1e-10)


def test_the_weights_of_ties_add_up_to_more_than_one():
    # Everything won and margins far above spreads: tanh -> 1.
    perfect = ties(ref_0=([1e6], [0.0]), tied_0=([1e6, 1e6 - 1], [0.0]))

    assert sum(TIES_WEIGHTS) == pytest.approx(1.01, abs=1e-12)
    assert ties_score(perfect) == pytest.approx(1.01, abs=1e-12)


@pytest.mark.parametrize(
    ("wrong", "margin_term", "score"),
    [
        # s = 0, m = 1: accurate, above spread, tanh(inf) = 1.
        (0.0, 1.0, 1.01),
        # s = 0, m = -1: all wrong, tanh(-inf) = -1.
        (2.0, -1.0, -0.01),
        # s = 0, m = 0: nothing is strictly above; 0 / 0 counts as 0.
        (1.0, 0.0, 0.0),
    ],
)
def test_right_answers_with_equal_scores_divide_by_zero_as_the_code_does(wrong, margin_term, score):
    items = ties(ref_0=([1.0], [wrong]), tied_0=([1.0, 1.0], [wrong]))

    assert values(RewardBench2().figures(items))["margin term", "Ties"] == margin_term
    assert ties_score(items) == pytest.approx(score, abs=1e-12)


def test_accuracies_of_ties_are_over_all_rows_and_margins_over_pairs():
    # ref:7 and tied:8 stand alone: ref accuracy 1 of 2, tied accuracy 1 of 2, margins over k = 0 only.
    items = ties(
        ref_0=([2.0], [0.0]),
        ref_7=([0.0], [1.0]),
        tied_0=([2.0, 1.0], [-9.0]),
        tied_8=([0.0, 0.0], [1.0]),
    )
    found = values(RewardBench2().figures(items))

    assert found["tied accuracy", "Ties"] == found["ref accuracy", "Ties"] == 0.5
    assert found["tied margin above spread", "Ties"] == 1.0
    assert found["both margins above spread", "Ties"] == 1.0


def plain_ties_score(items):
    """The rule row by row."""
    rows = {"ref": {}, "tied": {}}
    for item in items:
        n = item.facts["n_correct"]
        right, wrong = [float(s) for s in item.scores[:n]], [float(s) for s in item.scores[n:]]
        margin, spread = min(right) - max(wrong), max(right) - min(right)
        rows[item.facts["kind"]][item.facts["k"]] = margin, spread
    both = sorted(rows["ref"].keys() & rows["tied"].keys())
    accuracy = {kind: np.mean([m > 0 for m, _ in some.values()]) for kind, some in rows.items()}
    above, both_above, terms = [], [], []
    for k in both:
        m_t, spread = rows["tied"][k]
        least = min(m_t, rows["ref"][k][0])
        above.append(m_t > spread)
        both_above.append(least > spread)
        if spread:
            terms.append(math.tanh(least / spread - 1))
        else:
            terms.append(0.0 if least == 0 else math.copysign(1.0, least))
    return (
        0.3 * accuracy["tied"]
        + 0.3 * accuracy["ref"]
        + 0.2 * np.mean(above)
        + 0.2 * np.mean(both_above)
        + 0.01 * np.mean(terms)
    )


small = st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            small, small, st.lists(st.integers(-2, 2).map(float), min_size=2, max_size=4), small
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_score_of_ties_is_that_of_the_plain_rule(rows):
    named = {}
    for k, (ref, ref_wrong, tied, tied_wrong) in enumerate(rows):
        named |= {f"ref_{k}": (ref[:1], ref_wrong), f"tied_{k}": (tied, tied_wrong)}
    items = ties(**named)

    assert ties_score(items) == pytest.approx(plain_ties_score(items), abs=1e-12)


def test_the_score_of_ties_depends_on_distances_and_no_other_subset_does():
    items = [*ties(**EXAMPLE), *drawn(read("reward_bench_2").items[:6], 0)]
    squashed = [
        ScoredItem(i.id, i.subset, i.cluster, i.facts, i.n_characters, 1 / (1 + np.exp(-i.scores)))
        for i in items
    ]
    before, after = (values(RewardBench2().figures(some)) for some in (items, squashed))

    # tied:0 right 3, 2, 2.5 -> .9526, .8808, .9241: spread .0718; m_t = .8808 - .5 = .3808 > s still;
    # tied:1 right 2, 1 -> .8808, .7311: spread .1497; m_t = .7311 - .6900 = .0411 < s still.
    # ref:0 margin .8808 - .6225 = .2583, so tanh(.2583 / .0718 - 1) = .9892 instead of .4621.
    assert after["margin term", "Ties"] > before["margin term", "Ties"] + 0.1
    assert before["Ties score", "Ties"] != pytest.approx(after["Ties score", "Ties"], abs=1e-4)
    for subset in ("Factuality", "Focus", "Math", "Precise IF", "Safety"):
        assert before["accuracy", subset] == after["accuracy", subset]


def test_a_shared_highest_score_is_shared_credit():
    # alone at the top 1; with one other 1/2; all four 1/4; below the top 0, also where others tie there
    items = best_of_4("Math", (3, 0, 1, 2), (2, 2, 1, 0), (1, 1, 1, 1), (0, 5, 5, 1), (4, 5, 1, 1))
    figures = RewardBench2().figures(items)
    (maths,) = [figure for figure in figures if figure.subset == "Math"]

    assert values(figures)["accuracy", "Math"] == pytest.approx((1 + 0.5 + 0.25) / 5, abs=1e-12)
    assert (maths.n, maths.n_ties, maths.chance) == (5, 2, 0.25)


def test_a_constant_scorer_gets_exactly_a_quarter_outside_of_ties():
    figures = RewardBench2().figures(scored(read("reward_bench_2").items, -7.0))
    found = values(figures)

    for subset in ("Factuality", "Focus", "Math", "Precise IF", "Safety"):
        assert found["accuracy", subset] == 0.25
    # Ties: no margin above 0, no spread, 0 / 0 -> 0.
    assert found["Ties score", "Ties"] == 0.0
    assert headline(figures).n_ties == headline(figures).n == 10


def test_the_headline_is_the_plain_mean_of_six_subsets():
    items = [
        *best_of_4("Factuality", (1, 0, 0, 0)),
        *best_of_4("Focus", (1, 0, 0, 0), (0, 1, 0, 0)),
        *best_of_4("Math", (0, 1, 0, 0)),
        *best_of_4("Precise IF", (1, 1, 0, 0)),
        *best_of_4("Safety", (1, 1, 1, 1)),
        *ties(**EXAMPLE),
    ]
    figures = RewardBench2().figures(items)
    found = headline(figures)

    expected = (1 + 0.5 + 0 + 0.5 + 0.25 + 0.6477848445) / 6
    assert values(figures)["mean of subsets", ""] == pytest.approx(expected, abs=1e-10)
    assert found.is_official
    assert found.chance is None
    assert (found.n, found.statistic.n) == (10, 10)


def test_the_mean_stands_on_all_rows_and_weighs_subsets_not_rows():
    """Math: 1 of 1; Focus: 1 of 3. Mean of subsets 2/3, where rows alone would give 2/4."""
    items = [
        *best_of_4("Math", (1, 0, 0, 0)),
        *best_of_4("Focus", (1, 0, 0, 0), (0, 1, 0, 0), (0, 1, 0, 0)),
    ]
    found = headline(RewardBench2().figures(items))
    assert found.statistic(np.ones((1, 4)))[0] == pytest.approx(2 / 3)
    assert (found.n, found.statistic.n) == (4, 4)


def test_a_missing_subset_is_said_beside_the_mean():
    found = headline(RewardBench2().figures(best_of_4("Math", (1, 0, 0, 0))))

    assert found.note == "RewardBench 2 without Factuality, Focus, Precise IF, Safety, Ties"
    assert not found.is_official
    assert found.chance == 0.25


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(-4, 4), min_size=4, max_size=4), min_size=1, max_size=9))
def test_an_increasing_map_changes_nothing_outside_of_ties(rows):
    before = RewardBench2().figures(best_of_4("Focus", *rows))
    after = RewardBench2().figures(best_of_4("Focus", *(np.exp(row) for row in rows)))

    assert values(before) == values(after)


def test_records_become_items_with_right_answers_first():
    items = {item.id: item for item in read("reward_bench_2").items}
    tied = items["Ties/tied:0"]

    assert [a.response for a in tied.answers] == [
        "right 0",
        "right 1",
        "right 2",
        "wrong 0",
        "wrong 1",
    ]
    assert tied.facts == {"n_correct": 3, "kind": "tied", "k": 0}
    assert tied.cluster == items["Ties/ref:0"].cluster == "ties:0"
    assert len(items["Math/2"].answers) == 4


def test_rows_of_ties_without_their_partner_are_noted():
    rows = rows_of("reward_bench_2")
    rows["test"] = [row for row in rows["test"] if row["id"] != "tied:1"]

    assert any(
        "1 numbers have a ref or a tied row only" in note
        for note in read("reward_bench_2", rows).notes
    )


def test_ties_without_any_pair_is_refused():
    rows = rows_of("reward_bench_2")
    rows["test"] = [row for row in rows["test"] if not row["id"].startswith("tied")]
    with pytest.raises(
        DataError, match="Ties has 2 ref and 0 tied rows, and no number of both kinds"
    ):
        read("reward_bench_2", rows)
    with pytest.raises(DataError, match="no number of both kinds"):
        RewardBench2().figures(ties(ref_0=([1.0], [0.0]), tied_1=([1.0, 1.0], [0.0])))


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, {"chosen": "right"}, r"test\[0\]: `chosen` is the text 'right'; expected a list"),
        (0, {"chosen": []}, r"test\[0\]: `chosen` is an empty list"),
        (0, {"rejected": ["a", "", "c"]}, r"test\[0\]: `rejected\[1\]` is empty"),
        (
            0,
            {"rejected": ["a", "b"]},
            r"test\[0\]: `num_incorrect` is 3.*hold 1 and 2 texts; expected 2",
        ),
        (0, {"num_correct": "1"}, r"test\[0\]: `num_correct` is the text '1'"),
        (0, {"total_completions": 5}, r"test\[0\]: `total_completions` is 5"),
        (
            0,
            {"chosen": ["a", "b"], "num_correct": 2, "total_completions": 5},
            r"test\[0\]: `chosen` has 2 texts; expected 1 in the subset 'Factuality'",
        ),
        (
            0,
            {"subset": "factuality"},
            r"test\[0\]: `subset` is 'factuality'.*Did you mean 'Factuality'",
        ),
        (3, {"id": "2"}, r"test\[3\]: the id 'Math/2' stands at test\[2\] already"),
        (6, {"id": "6"}, r"test\[6\]: `id` is '6'; expected 'ref:NUMBER' or 'tied:NUMBER'"),
        (7, {"id": "ref:00"}, r"test\[7\]: the id 'Ties/ref:0' stands at test\[6\] already"),
        (
            8,
            {"chosen": ["a"], "num_correct": 1, "total_completions": 3},
            r"test\[8\]: `chosen` of the tied row 'tied:0' has 1 text",
        ),
    ],
)
def test_a_bad_record_is_refused_by_its_place_and_field(index, change, message):
    rows = rows_of("reward_bench_2")
    rows["test"][index] |= change
    with pytest.raises(DataError, match=message):
        read("reward_bench_2", rows)


@pytest.mark.parametrize("name", ["id", "prompt", "chosen", "rejected", "subset"])
def test_a_missing_field_is_named(name):
    rows = {"test": [without(rows_of("reward_bench_2")["test"][0], name)]}
    with pytest.raises(DataError, match=rf"test\[0\]: there is no field '{name}'"):
        read("reward_bench_2", rows)


def test_items_of_ties_without_their_facts_are_refused():
    (item, other) = ties(ref_0=([1.0], [0.0]), tied_0=([1.0, 1.0], [0.0]))
    bare = ScoredItem(item.id, "Ties", item.cluster, {}, (1, 1), item.scores)
    with pytest.raises(DataError, match="'Ties/ref:0' of Ties lacks the fact 'kind'"):
        RewardBench2().figures([bare, other])
    full = ScoredItem(
        item.id, "Ties", item.cluster, {**item.facts, "n_correct": 2}, (1, 1), item.scores
    )
    with pytest.raises(DataError, match="n_correct 2 of 2 scores"):
        RewardBench2().figures([full, other])
    with pytest.raises(DataError, match="several rows of one id"):
        RewardBench2().figures([item, item, other])
