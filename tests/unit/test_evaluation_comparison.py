"""Two scorers on the same items: differences, McNemar, agreement and what they differ on."""

import json
from dataclasses import replace

import numpy as np
import pytest
from score_files import file, pairs, row

from retrm.errors import DataError
from retrm.evaluation.benchmarks import benchmark
from retrm.evaluation.comparison import compare_headlines, compare_scorers
from retrm.evaluation.preferred import pairs_of_file, preferences_of

# 400 pairs: 12 that only the first wins, 4 that only the second does, 316 that both win, 68 neither.
FIRST = np.repeat([1.0, -1.0, 1.0, -1.0], [12, 4, 316, 68])
SECOND = np.repeat([-1.0, 1.0, 1.0, -1.0], [12, 4, 316, 68])


@pytest.fixture(scope="module")
def worked():
    return compare_scorers(pairs("a", FIRST), pairs("b", SECOND))


def test_mcnemar_counts_items_that_only_one_gets_right(worked):
    (found,) = worked.mcnemar

    # 2 P(Binomial(16, 1/2) <= 4) = 2 (1 + 16 + 120 + 560 + 1820) / 65536 = 5034 / 65536
    assert (found.subset, found.n, found.only_first, found.only_second) == ("", 400, 12, 4)
    assert found.p_value == pytest.approx(0.076813, abs=5e-7)


def test_the_difference_is_paired(worked):
    figure = worked.figures[0]

    assert figure.is_headline
    assert figure.first.value == pytest.approx(0.82)  # (12 + 316) / 400
    assert figure.second.value == pytest.approx(0.80)
    assert figure.difference.value == pytest.approx(0.02)
    # sqrt(12 + 4 - (12 - 4)^2 / 400) / 400 = 0.009950; unpaired it would be 0.0277.
    error = figure.smallest_visible / (1.959964 + 0.841621)
    assert error == pytest.approx(0.009950, rel=0.05)
    half = (figure.difference.high - figure.difference.low) / 2
    assert half == pytest.approx(1.96 * 0.009950, rel=0.15)
    assert 0.02 < figure.p_value < 0.15


def test_agreement_stands_beside_that_of_independent_scorers(worked):
    found = worked.agreement

    assert found.share.value == pytest.approx(384 / 400)
    assert found.expected == pytest.approx(0.82 * 0.80 + 0.18 * 0.20)
    assert found.n_pairs == 400
    assert found.share.low < 0.96 < found.share.high


def test_equal_scores_agree_with_equal_scores_only():
    # Same on the second and third pair. a wins 2/4, ties 1/4, loses 1/4; b the other way round:
    # 1/4 x 2/4 (lost) + 1/4 x 1/4 (tied) + 2/4 x 1/4 (won) = 5/16.
    found = compare_scorers(pairs("a", [0, 1, 1, -1]), pairs("b", [1, 1, 0, -1])).agreement
    assert found.share.value == pytest.approx(2 / 4)
    found = compare_scorers(pairs("a", [0, 1, 1, -1]), pairs("b", [-1, 1, 0, -1])).agreement
    assert found.expected == pytest.approx(1 / 4 * 2 / 4 + 1 / 4 * 1 / 4 + 2 / 4 * 1 / 4)


def test_identical_scores_differ_by_nothing():
    found = compare_scorers(pairs("a", FIRST), pairs("b", FIRST))

    for figure in found.figures:
        assert (figure.difference.value, figure.difference.low, figure.difference.high) == (0, 0, 0)
        assert figure.p_value == 1
        # No resample differs, so the error is unknown: nothing is known to be visible.
        assert figure.smallest_visible is None
    assert all(m.p_value == 1 and m.only_first == m.only_second == 0 for m in found.mcnemar)
    assert found.agreement.share.value == 1
    assert found.agreement.correlation.value == pytest.approx(1)
    assert found.disagreements == ()


def test_swapping_the_two_turns_every_sign(worked):
    back = compare_scorers(pairs("b", SECOND), pairs("a", FIRST))

    for one, other in zip(worked.figures, back.figures, strict=True):
        assert one.difference.value == -other.difference.value
        assert one.difference.low == pytest.approx(-other.difference.high)
        assert one.p_value == pytest.approx(other.p_value)
    assert back.mcnemar[0].p_value == worked.mcnemar[0].p_value
    assert back.mcnemar[0].only_first == 4


def doubled(name, margins, *, is_clustered):
    n = len(margins)
    clusters = [f"q{i}" for i in range(n)] * 2 if is_clustered else [f"q{i}" for i in range(2 * n)]
    return pairs(name, [*margins, *margins], clusters=clusters)


def test_every_item_twice_gives_the_same_interval_where_copies_share_a_cluster():
    some = slice(0, 400, 4)
    once = compare_scorers(pairs("a", FIRST[some]), pairs("b", SECOND[some]))
    a, b = (doubled(n, m[some], is_clustered=True) for n, m in (("a", FIRST), ("b", SECOND)))
    twice = compare_scorers(a, b)

    assert twice.n_items == 2 * once.n_items
    assert twice.n_clusters == once.n_clusters
    one, two = once.figures[0].difference, twice.figures[0].difference
    assert (one.low, one.high) == pytest.approx((two.low, two.high), abs=1e-12)


def test_every_item_twice_as_if_new_shrinks_the_error_by_the_root_of_two():
    some = slice(0, 400, 2)
    once = compare_scorers(pairs("a", FIRST[some]), pairs("b", SECOND[some]))
    a, b = (doubled(n, m[some], is_clustered=False) for n, m in (("a", FIRST), ("b", SECOND)))
    twice = compare_scorers(a, b)
    shrunk = once.figures[0].smallest_visible / twice.figures[0].smallest_visible
    assert shrunk == pytest.approx(np.sqrt(2), rel=0.08)


def llmbar(name, scores, labels, subsets):
    rows = zip(scores, labels, subsets, strict=True)
    return file(
        name,
        [row(f"{s}/{i}", x, subset=s, facts={"label": y}) for i, (x, y, s) in enumerate(rows)],
        "llmbar",
    )


def test_mcnemar_of_each_subset_stands_behind_that_of_all():
    subsets = ["Natural", "Natural", "Manual"]
    a = llmbar("a", [(1, 0), (1, 0), (0, 1)], [1, 2, 2], subsets)
    b = llmbar("b", [(0, 1), (0, 1), (0, 0)], [1, 2, 2], subsets)
    found = {m.subset: (m.n, m.only_first, m.only_second) for m in compare_scorers(a, b).mcnemar}
    assert found == {"": (3, 2, 1), "Natural": (2, 1, 1), "Manual": (1, 1, 0)}


def test_votes_of_tie_take_no_part_in_mcnemar():
    facts = [
        {"winner": w, "generators": ["x", "y"], "language": "English", "flags": {}}
        for w in ("a", "tie", "b")
    ]
    a, b = (
        file(
            name,
            [
                row(str(i), x, subset="votes", facts=f)
                for i, (x, f) in enumerate(zip(scores, facts, strict=True))
            ],
            "ppe_preference",
        )
        for name, scores in (("a", [(1, 0)] * 3), ("b", [(0, 1)] * 3))
    )
    (found,) = compare_scorers(a, b).mcnemar
    assert (found.n, found.only_first, found.only_second) == (2, 1, 1)


def test_a_figure_that_is_undefined_for_both_stays_in_the_table_without_a_difference():
    rows = [
        row("gsm8k-0", [1, -1], subset="gsm8k", facts={"label": 1, "final_answer_correct": False})
    ]
    a, b = (file(name, rows, "process_bench") for name in "ab")
    found = compare_scorers(a, b)
    f1 = found.figures[0]
    assert (f1.metric, f1.first, f1.difference, f1.p_value) == ("mean F1", None, None, None)
    assert found.agreement is None
    json.dumps(found.as_dict(), allow_nan=False)


def test_what_the_two_differ_on_comes_by_the_size_of_the_gap():
    a, b = pairs("a", [5, -1, 2, 1, -3]), pairs("b", [-1, 3, 1, -9, -1])
    found = compare_scorers(a, b).disagreements

    # Margins over their spread: a (4, sd 2.786) and b (sd 4.079): gaps 2.04, 1.09, -, 2.57, -
    assert [d.item for d in found] == ["3", "0", "1"]
    assert (found[0].preferred, found[0].other) == (0, 1)
    assert found[0].first_margin == pytest.approx(1 / np.std([5, -1, 2, 1, -3]))
    assert [d.item for d in compare_scorers(a, b, n_shown=1).disagreements] == ["3"]


def test_a_single_prompt_has_a_difference_but_no_smallest_one():
    found = compare_scorers(pairs("a", [1.0]), pairs("b", [-1.0]))
    assert found.figures[0].difference.value == 1
    assert found.figures[0].smallest_visible is None
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": {"label": 2}}, r"the item '0' of hh_rlhf has facts \{\} with the scores of a"),
        (
            {"n_characters": (10, 11)},
            r"has n_characters \(10, 10\).*and \(10, 11\) with those of b",
        ),
        ({"subset": "other"}, "has subset 'test'"),
        ({"cluster": "z"}, "has cluster 'q0'"),
    ],
)
def test_items_of_one_id_with_other_answers_or_labels_are_refused(change, message):
    a, b = pairs("a", [1.0, 2.0]), pairs("b", [1.0, 2.0])
    first = replace(b.rows[0], item=replace(b.rows[0].item, **change))
    with pytest.raises(DataError, match=message):
        compare_scorers(a, replace(b, rows=(first, b.rows[1])))


def test_a_file_beside_itself_is_refused():
    with pytest.raises(DataError, match="got a twice on hh_rlhf; expected two scorers"):
        compare_scorers(pairs("a", [1.0]), pairs("a", [1.0]))


def test_files_of_two_benchmarks_are_refused():
    with pytest.raises(DataError, match="got scores of hh_rlhf and rmb"):
        compare_scorers(pairs("a", [1.0]), replace(pairs("b", [1.0]), benchmark="rmb"))


# ---------------------------------------------------------------------------------- preference pairs


def many(labels, scores, lengths=None):
    return row("p", scores, subset="all", facts={"labels": labels}, lengths=lengths)


def test_margins_and_lengths_are_of_the_preferred_less_the_other():
    scores = file("a", [many([0, 1, 1], [3, 1, 4], [7, 20, 5])], "best_of_n")
    _, found = pairs_of_file(scores)

    assert list(zip(found.preferred, found.others, strict=True)) == [(1, 0), (2, 0)]
    assert found.margins.tolist() == [-2, 1]
    assert found.characters.tolist() == [13, -2]
    assert found.won.tolist() == [0, 1]
    assert found.clusters == ["p", "p"]


def test_of_items_with_very_many_pairs_the_same_few_are_drawn_for_every_scorer():
    rng = np.random.default_rng(0)
    labels = [1] * 6 + [0] * 6
    items = [many(labels, rng.normal(size=12)).item for _ in range(2)]
    drawn = [preferences_of(benchmark("best_of_n"), [item], most=16) for item in items]

    assert [len(d.margins) for d in drawn] == [16, 16]
    assert [d.n_found for d in drawn] == [36, 36]
    assert (drawn[0].preferred == drawn[1].preferred).all()
    assert len(set(zip(drawn[0].preferred, drawn[0].others, strict=True))) == 16
    assert (np.array(labels)[drawn[0].preferred] == 1).all()


def test_steps_have_no_pairs():
    facts = {"label": -1, "final_answer_correct": True}
    scores = file("a", [row("gsm8k-0", [1, 2], subset="gsm8k", facts=facts)], "process_bench")
    with pytest.raises(DataError, match="none of 1 items has a preference pair"):
        pairs_of_file(scores)


def test_labels_that_name_candidates_without_scores_are_refused():
    facts = {"labels": [1, 0, 0], "sampled_pairs": [[0, 5]], "pairs": []}
    scores = file("a", [row("x", [1, 2, 3], facts=facts)], "ppe_correctness")
    with pytest.raises(DataError, match=r"'x' has 3 score\(s\), but its labels name candidate 5"):
        pairs_of_file(scores)


@pytest.mark.parametrize(("n", "is_open"), [(9, True), (10, False)])
def test_fewer_than_ten_prompts_give_no_p_and_no_visible_difference(n, is_open):
    """Three wins to none of nine would be p < .001 by resamples that hardly differ."""
    first, second = np.ones(n), np.where(np.arange(n) < 3, -1.0, 1.0)
    found = compare_scorers(pairs("a", first), pairs("b", second))
    figure = found.figures[0]
    assert figure.difference.value == pytest.approx(3 / n)
    assert (figure.p_value is None) == (figure.smallest_visible is None) == is_open
    # 2 P(Binomial(3, 1/2) <= 0) = 2 / 8: exact for any number of items.
    assert found.mcnemar[0].p_value == pytest.approx(0.25)


def test_a_subset_of_few_prompts_is_open_in_a_benchmark_of_many():
    """Ten items of two prompts are few; the twelve prompts of the other subset are not."""
    rng = np.random.default_rng(0)
    files = []
    for name in ("a", "b"):
        rows = [
            row(
                f"{subset}/{i}",
                [rng.normal(), 0.0],
                subset=subset,
                cluster=f"{subset} {i % n_prompts}",
                facts={"label": 1},
            )
            for subset, n_prompts, n in (("Natural", 2, 10), ("Manual", 12, 12))
            for i in range(n)
        ]
        files.append(file(name, rows, "llmbar"))
    found = {f.subset: f for f in compare_scorers(*files).figures if f.is_official}
    assert found["Natural"].n == 10
    assert found["Natural"].p_value is None
    assert found["Natural"].difference is not None
    assert found["Manual"].p_value is not None


@pytest.mark.parametrize(("n", "is_open"), [(9, True), (10, False)])
def test_headlines_of_few_prompts_have_no_p(n, is_open):
    rng = np.random.default_rng(1)
    found = compare_headlines([pairs(name, rng.normal(size=n)) for name in "abc"])
    assert len(found.differences) == 3
    for one in found.differences:
        assert (one.p_value is None) == (one.adjusted_p_value is None) == is_open


def steps_file(name, scores):
    rows = [
        row(
            f"gsm8k-{i}",
            some,
            subset="gsm8k",
            facts={"label": 1 if i % 2 else -1, "final_answer_correct": not i % 2},
        )
        for i, some in enumerate(scores)
    ]
    return file(name, rows, "process_bench")


def test_a_threshold_holds_for_scorers_and_items_that_are_compared():
    """Probabilities: at 0 no step is wrong, so of each pair of solutions one is judged right."""
    sure = steps_file("sure", [(0.9, 0.8), (0.9, 0.1)] * 6)
    vague = steps_file("vague", [(0.9, 0.8), (0.9, 0.6)] * 6)
    (at_zero,) = compare_scorers(sure, vague).mcnemar
    (at_half,) = compare_scorers(sure, vague, threshold=0.5).mcnemar
    assert (at_zero.only_first, at_half.only_first) == (0, 6)
