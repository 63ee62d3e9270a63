"""Records joined into one table, with everything counted, and the statistics of a table."""

import json
import math

import pytest

from retrm.data.load import build_table, describe, iter_parsed, load_table
from retrm.data.read import records_of
from retrm.errors import DataError
from retrm.records import Pair, RankedList


def table_of(*rows, **options):
    return build_table(records_of(rows), **options)


def test_equal_answers_of_preferences_share_a_row_and_keep_their_relations():
    table = table_of(
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "c"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "b", "rejected": "a"},
    )
    assert [(a.prompt.messages[0].content, a.response) for a in table.answers] == [
        ("p", "a"),
        ("p", "b"),
        ("p", "c"),
        ("q", "a"),
        ("q", "b"),
    ]
    assert table.pairs == (Pair(0, 1), Pair(0, 2), Pair(3, 4), Pair(1, 0))
    # 8 answers were read and 5 kept; a > b and b > a are one contradiction, seen from both sides.
    assert table.counts == {
        "records": 4,
        "answers": 5,
        "prompts": 2,
        "answers_shared": 3,
        "pairs": 4,
        "pairs_contradictory": 2,
    }


def test_equal_samples_keep_a_row_each():
    rows = [
        {"prompt": "p", "responses": ["a", "a"], "correct": [1, 0]},
        {"prompt": "p", "responses": ["a"], "correct": [1]},
    ]
    table = table_of(*rows)
    assert table.labels.tolist() == [1, 0, 1]
    assert table.counts["answers_repeated"] == 2
    assert describe(table).n_repeated == 2


def test_equal_answers_with_labels_of_their_own_keep_a_row_each():
    done = [{"response": "a", "annotations": {"honesty": rating}} for rating in (4, 2)]
    table = table_of({"prompt": "p", "completions": done}, attribute="honesty")
    assert table.labels.tolist() == [4, 2]
    assert table.counts["answers_repeated"] == 1


def test_rows_of_one_prompt_on_many_lines_meet_again_and_share_the_prompt():
    rows = [
        {"prompt": p, "response": r, "label": True} for p, r in (("p", "a"), ("q", "b"), ("p", "c"))
    ]
    table = table_of(*rows)
    assert [group.rows for group in table.candidate_sets()] == [(0, 2), (1,)]
    assert table.answers[0].prompt is table.answers[2].prompt


def test_what_is_set_aside_is_counted():
    table = table_of(
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"prompt": "p", "chosen": "a", "rejected": ""},
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": None},
        {"prompt": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "So"}],
         "chosen": "a", "rejected": "b", "margin": -1},
        empty="drop",
    )  # fmt: skip
    assert table.counts == {
        "records": 4,
        "answers": 4,
        "prompts": 2,
        "dropped_identical": 1,
        "dropped_empty": 1,
        "margins_missing": 1,
        "margins_negative": 1,
        "prompts_prefilled": 1,
        "pairs": 2,
    }


def test_preferences_over_different_prompts_are_set_aside_and_counted():
    def side(prompt, answer):
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    table = table_of(
        {"chosen": side("p", "a"), "rejected": side("q", "b")},
        {"chosen": side("p", "a"), "rejected": side("p", "b")},
    )
    assert table.pairs == (Pair(0, 1),)
    assert (table.counts["dropped_different_prompts"], table.counts["answers"]) == (1, 2)


def test_missing_labels_and_cut_answers_are_counted():
    table = table_of(
        {"prompt": "p", "responses": ["a", "b", "c"], "correct": [None, True, False],
         "finished": [False, None, True]},
    )  # fmt: skip
    assert (table.counts["labels_missing"], table.counts["answers_cut"]) == (1, 1)
    assert math.isnan(table.labels[0])
    # Records of a format without labels miss nothing.
    assert "labels_missing" not in table_of({"prompt": "p", "response": "r"}).counts


@pytest.mark.parametrize(
    ("texts", "ranks", "lists", "count"),
    [
        # the second "a" is the first again, of the same rank
        ("aab", [1, 1, 2], (RankedList((0, 1), (1.0, 2.0)),), ("answers_shared", 1)),
        # "a" is both best and worst, so it says nothing; b > c remains
        ("abca", [1, 2, 3, 4], (RankedList((1, 2), (2.0, 3.0)),), ("ranks_contradictory", 2)),
        ("aba", [1, 2, 3], (), ("lists_too_short", 1)),
        ("ab", [1, 1], (RankedList((0, 1), (1.0, 1.0)),), ("ties", 1)),
    ],
)
def test_repeated_members_of_a_ranked_list(texts, ranks, lists, count):
    table = table_of({"prompt": "p", "responses": list(texts), "ranks": ranks})
    assert table.ranked == lists
    assert table.counts[count[0]] == count[1]
    assert len(table) == len(set(texts))


def test_reference_answers_are_kept_per_prompt():
    table = table_of({"prompt": "p", "responses": ["a"], "answer": 4, "prompt_id": "q"})
    assert table.gold == {"q": "4"}


def test_null_in_the_first_record_does_not_hide_a_column():
    table = table_of(
        {"prompt": "p", "response": "r", "label": None},
        {"prompt": "p", "response": "s", "label": 1},
    )
    assert table.labels[1] == 1


def test_limit_reads_only_the_first_records(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"prompt": "p", "response": str(i)}) for i in range(3)]
    path.write_text("\n".join([*lines, "broken"]))
    assert len(load_table(path, limit=3)) == 3


def test_scoring_streams_every_record_also_those_without_a_relation(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "a", "note": 1},
        {"prompt": "p", "chosen": "a", "rejected": "b", "note": 2},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(iter_parsed(path))
    assert [record.fields["note"] for record, _ in found] == [1, 2]
    assert [parsed.score_value([2, 1]) for _, parsed in found] == [
        {"chosen": 2.0, "rejected": 1.0}
    ] * 2


def test_a_prompt_id_for_two_prompts_is_refused_while_streaming(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"prompt_id": "1", "prompt": p, "response": "r"} for p in "pq"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = iter_parsed(path)
    next(stream)
    with pytest.raises(DataError, match=r"a\.jsonl:2: prompt_id '1' .* than at a\.jsonl:1"):
        next(stream)


# ------------------------------------------------------------------------------------ statistics


def test_rollouts_of_eight_with_two_right_give_twelve_comparisons():
    """2 right x 6 wrong. Right lengths 5 and 1; wrong 1, 2, 3, 4, 5, 6.

    5 beats 1, 2, 3, 4 and ties 5: 4.5 wins; 1 ties 1: 0.5 wins. 5 / 12.
    """
    correct = [1, 0, 0, 1, 0, 0, 0, 0]
    lengths = [5, 1, 2, 1, 3, 4, 5, 6]
    rows = [
        {"prompt": "p", "responses": ["x" * n for n in lengths], "correct": correct},
        {"prompt": "all right", "responses": ["a", "bb"], "correct": [1, 1]},
    ]
    summary = describe(table_of(*rows))
    assert summary.n_comparisons == 12
    assert summary.longer_wins == pytest.approx(5 / 12)
    assert (summary.n_prompts, summary.n_answers, summary.n_mixed_prompts) == (2, 10, 1)
    assert summary.labels == {"1": 4, "0": 6}


def test_grades_compare_every_better_with_every_worse_answer():
    """Grades 4, 2, 2 with lengths 1, 3, 2: two comparisons, both won by the shorter; 2 = 2 is none."""
    rows = [
        {"prompt": "p", "response": t, "helpfulness": g}
        for t, g in (("x", 4), ("xxx", 2), ("xx", 2))
    ]
    summary = describe(table_of(*rows, attribute="helpfulness"))
    assert (summary.n_comparisons, summary.longer_wins) == (2, 0.0)


def test_pairs_and_lists_are_compared_too_and_ties_are_not():
    pairs = describe(table_of({"prompt": "p", "chosen": "aaa", "rejected": "b"}))
    assert (pairs.n_pairs, pairs.n_comparisons, pairs.longer_wins) == (1, 1, 1.0)
    lists = table_of(
        {"prompt": "p", "responses": ["a", "bb", "ccc"], "ranks": [1, 2, 2]},
        {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 1]},
    )
    summary = describe(lists)
    # a > bb and a > ccc, both lost by the longer; the tie of bb and ccc and that of q are none
    assert (summary.n_ranked, summary.n_ties, summary.n_comparisons) == (2, 1, 2)
    assert summary.longer_wins == 0.0
    assert summary.labels == {"missing": 5}


def test_without_comparisons_the_length_baseline_is_nan():
    assert math.isnan(describe(table_of({"prompt": "p", "response": "r"})).longer_wins)


def test_many_different_labels_are_counted_together():
    rows = [{"prompt": "p", "response": f"r{i}", "style": i} for i in range(30)]
    assert describe(table_of(*rows, attribute="style")).labels == {"numbers": 30}


def test_a_table_without_answers_has_no_statistics():
    table = table_of({"prompt": "p", "chosen": "a", "rejected": "a"})
    assert len(table) == 0
    with pytest.raises(DataError, match="without answers; expected at least one"):
        describe(table)
