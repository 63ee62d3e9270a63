"""Rows of comparisons: from files, triples, and what is refused or counted; splits; accuracies."""

import json
import math

import numpy as np
import pytest

from retrm.data.detect import parse
from retrm.data.read import Record
from retrm.errors import DataError, FormatError, LabelError, RecipeError, ScoreError
from retrm.finetuning.comparisons import Comparison, load_comparisons, split
from retrm.finetuning.discrimination import discrimination
from retrm.records import Reference

PAIR = {"prompt": "p", "reference": "good", "chosen": "fine", "rejected": "bad"}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_pair_with_a_reference_is_a_row(tmp_path):
    row = {**PAIR, "wrapper": "pretrain", "policies": ["a", "b"], "prompt_id": "7"}
    found = load_comparisons(written(tmp_path / "rows.jsonl", row))

    (one,) = found.rows
    assert (one.prompt, one.reference) == ("p", Reference("good", "pretrain"))
    assert (one.chosen, one.rejected, one.policies) == ("fine", "bad", ("a", "b"))
    assert one.as_dict() == row
    assert found.counts == {"records": 1, "rows": 1}


def test_messages_are_joined_and_roles_dropped(tmp_path):
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    reference = [{"role": "assistant", "content": "Hello"}]
    path = written(tmp_path / "rows.jsonl", {**PAIR, "prompt": prompt, "reference": reference})

    (row,) = load_comparisons(path).rows
    assert (row.prompt, row.reference.text) == ("Be brief.\nHi", "Hello")


def test_the_best_of_three_is_the_reference_and_no_candidate(tmp_path):
    record = {"prompt": "p", "responses": ["B", "A", "C"], "ranks": [2, 1, 3]}
    (row,) = load_comparisons(written(tmp_path / "rows.jsonl", record)).rows

    assert (row.reference.text, row.chosen, row.rejected) == ("A", "B", "C")


def test_longer_lists_give_every_strict_preference_below_the_best(tmp_path):
    record = {"prompt": "p", "responses": ["A", "B", "C", "D"], "scores": [9, 5, 5, 1]}
    found = load_comparisons(written(tmp_path / "rows.jsonl", record)).rows

    # B and C tie; each beats D.
    assert [(r.reference.text, r.chosen, r.rejected) for r in found] == [
        ("A", "B", "D"),
        ("A", "C", "D"),
    ]


def test_lists_that_give_nothing_are_counted(tmp_path):
    path = written(
        tmp_path / "rows.jsonl",
        {"prompt": "1", "responses": ["A", "B", "C"], "ranks": [1, 2, 3]},
        {"prompt": "2", "responses": ["A", "B", "C"], "ranks": [1, 1, 2]},
        {"prompt": "3", "responses": ["A", "B"], "ranks": [1, 2]},
        {"prompt": "4", "responses": ["A", "B", "C"], "ranks": [1, None, None]},
    )
    counts = load_comparisons(path).counts

    assert counts["rows"] == 1
    assert counts["lists_without_a_best"] == 1
    assert counts["lists_too_short_or_tied"] == 1
    assert counts["lists_without_ranks"] == 1
    assert counts["ranks_missing"] == 2


@pytest.mark.parametrize(
    ("row", "error", "said"),
    [
        ({"prompt": "p", "responses": ["A", "B", "C"]}, LabelError, "3 answers without ranks"),
        (
            {"prompt": "p", "responses": ["A", "B", "C"], "ranks": [None, None, 1]},
            LabelError,
            "lists_without_ranks 1",
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, DataError, "without `reference`"),
        ({"prompt": "p", "reference": "r", "output": "a"}, FormatError, "a single answer"),
        ({**PAIR, "reference": " "}, DataError, "`reference` is empty"),
        ({**PAIR, "wrapper": "chat"}, DataError, "expected sft or pretrain"),
        ({**PAIR, "policies": "a"}, DataError, "expected two names"),
        ({"prompt": "p", "reference": "r", "chosen": "a"}, FormatError, "without `rejected`"),
    ],
)
def test_records_that_compare_nothing_are_refused(tmp_path, row, error, said):
    with pytest.raises(error, match=said):
        load_comparisons(written(tmp_path / "rows.jsonl", row))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": "good "}, "reference and chosen"),
        ({"rejected": "good"}, "reference and rejected"),
    ],
)
def test_a_reference_that_is_also_a_candidate_is_refused_or_dropped_and_counted(
    tmp_path, change, said
):
    path = written(tmp_path / "rows.jsonl", PAIR, {**PAIR, **change})

    with pytest.raises(DataError, match=rf"rows\.jsonl:2: {said} are the same text"):
        load_comparisons(path)
    assert load_comparisons(path, equal="drop").counts == {
        "records": 2,
        "dropped_equal": 1,
        "rows": 1,
    }


def test_mixed_templates_are_refused_unless_they_are_meant(tmp_path):
    path = written(tmp_path / "rows.jsonl", PAIR, {**PAIR, "wrapper": "pretrain"})

    with pytest.raises(FormatError, match=r"mixes templates: sft .*:1\) and pretrain .*:2\)"):
        load_comparisons(path)
    with pytest.raises(FormatError, match="'pretrain', and 'sft' was asked for"):
        load_comparisons(path, wrapper="sft")
    assert len(load_comparisons(path, wrapper="mixed")) == 2
    with pytest.raises(RecipeError, match="Did you mean 'pretrain'"):
        load_comparisons(path, wrapper="pretraining")


# ----------------------------------------------------------------------------------- references of answers


def test_gold_is_the_reference_where_there_is_no_column_for_it():
    record = Record({"prompt": "p", "responses": ["a", "b"], "answer": "42"}, "row")
    assert {a.reference for a in parse(record, "rollouts").answers} == {Reference("42")}

    both = Record({**record.fields, "reference": "It is 42."}, "row")
    assert {a.reference for a in parse(both, "rollouts").answers} == {Reference("It is 42.")}
    strange = Record({**record.fields, "reference": [1, 2]}, "row")
    assert {a.reference for a in parse(strange, "rollouts").answers} == {Reference("42")}


def test_an_answer_beside_a_reference_is_read_for_scoring():
    parsed = parse(
        Record({"prompt": "p", "reference": "r", "output": "o", "label": 1}, "row"), "reference"
    )

    assert [(a.response, a.reference) for a in parsed.answers] == [("o", Reference("r"))]
    assert parsed.labels == (1.0,)


# ---------------------------------------------------------------------------------------------- splitting


def rows_of(*pairs):
    return [
        Comparison(f"p{i}", Reference("r"), "c", "d", pair, prompt_id=f"p{i}")
        for i, pair in enumerate(pairs)
    ]


def test_no_prompt_and_no_held_out_policy_is_trained_on():
    rows = rows_of(*[("a", "b"), ("b", "a"), ("a", "z"), ("z", "b")] * 5)
    parts = split(rows, test_fraction=0.3, hold_out=["z"], seed=1)

    assert len(parts.held_out) == 10
    assert {name for row in parts.train for name in row.policies} == {"a", "b"}
    assert len(parts.test) == 3
    assert len(parts.train) == 7
    ids = [{row.prompt_id for row in part} for part in (parts.train, parts.test, parts.held_out)]
    assert not (ids[0] & ids[1])
    assert not (ids[0] & ids[2])
    assert not (ids[1] & ids[2])


def test_impossible_splits_are_refused():
    rows = rows_of(("small", "large"))
    with pytest.raises(RecipeError, match="Did you mean 'small'"):
        split(rows, hold_out=["smal"])
    with pytest.raises(RecipeError, match="none is left to train on"):
        split(rows, hold_out=["small"])
    with pytest.raises(RecipeError, match="test_fraction=1"):
        split(rows, test_fraction=1)


# --------------------------------------------------------------------------------------------- accuracies


def test_accuracies_are_those_counted_by_hand():
    rows = rows_of(("a", "b"), ("a", "b"), ("a", "b"), ("b", "a"))
    found = discrimination(rows, np.array([1.0, 0, 2, 0]), np.array([0.0, 0, 3, 5]))

    # Won, tied, lost; lost: 1.5 of 4, and 1.5 of 3 for the first pair.
    assert found.overall.value == pytest.approx(1.5 / 4)
    assert found.by_pair["a | b"].value == pytest.approx(0.5)
    assert found.by_pair["b | a"].value == 0
    assert found.overall.n_ties == 1
    # Gaps 1, 0, -1, -5: log(1 + e^-1), log 2, log(1 + e), log(1 + e^5).
    wanted = (
        math.log1p(math.exp(-1)) + math.log(2) + math.log1p(math.e) + math.log1p(math.exp(5))
    ) / 4
    assert found.loss == pytest.approx(wanted)
    # All candidates are as long as the reference: every row ties.
    assert found.length.value == 0.5


def test_missing_scores_are_refused():
    with pytest.raises(ScoreError, match="for 1 rows"):
        discrimination(rows_of(("a", "b")), np.array([np.nan]), np.array([0.0]))
    with pytest.raises(ScoreError, match="a row at least"):
        discrimination([], np.array([]), np.array([]))
