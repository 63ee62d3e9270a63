"""Loading and grading: shuffling, round trips, canonical keys."""

import json
import math
import tempfile
from fractions import Fraction
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.data.grade import extract_key
from retrm.data.load import build_table
from retrm.data.read import read_records, records_of

few = settings(max_examples=40, deadline=None)
texts = st.text(min_size=1, max_size=6).filter(lambda text: text.strip())
words = st.sampled_from(["a", "b", "c"])
prompts = st.sampled_from(["p", "q", "r"])
preferences = st.lists(
    st.fixed_dictionaries(
        {"prompt": prompts, "chosen": words, "rejected": words, "margin": st.sampled_from([0.5, 1])}
    ),
    min_size=1,
    max_size=8,
)
labelled = st.lists(
    st.fixed_dictionaries(
        {"prompt": texts, "response": texts, "label": st.sampled_from([True, False, None])}
    ),
    min_size=1,
    max_size=6,
)


def name(answer):
    return answer.prompt_id, answer.response


def relations(table):
    return sorted(
        (name(table.answers[p.chosen]), name(table.answers[p.rejected]), p.margin)
        for p in table.pairs
    )


@few
@given(preferences, st.randoms(use_true_random=False))
def test_shuffling_preferences_changes_only_the_order_of_rows(rows, random):
    before = build_table(records_of(rows))
    random.shuffle(rows)
    after = build_table(records_of(rows))
    assert sorted(map(name, before.answers)) == sorted(map(name, after.answers))
    assert relations(before) == relations(after)
    assert before.counts == after.counts


@few
@given(labelled, st.randoms(use_true_random=False))
def test_shuffling_labelled_answers_changes_only_the_order_of_rows(rows, random):
    def content(table):
        return sorted(
            (*name(a), str(label)) for a, label in zip(table.answers, table.labels, strict=True)
        )

    before = build_table(records_of(rows))
    random.shuffle(rows)
    after = build_table(records_of(rows))
    assert content(before) == content(after)
    assert before.counts == after.counts


@few
@given(labelled)
def test_record_to_table_to_json_lines_to_table_is_the_identity(rows):
    table = build_table(records_of(rows))
    lines = [
        json.dumps(
            {
                "prompt_id": answer.prompt_id,
                "prompt": [message.as_dict() for message in answer.prompt.messages],
                "response": answer.response,
                "label": None if math.isnan(label) else label,
            },
            ensure_ascii=False,
        )
        for answer, label in zip(table.answers, table.labels, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8", newline="")
        again = build_table(read_records(path))
    assert [(name(a), a.prompt) for a in again.answers] == [
        (name(a), a.prompt) for a in table.answers
    ]
    assert str(again.labels) == str(table.labels)
    assert again.counts == table.counts


@few
@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5)), max_size=5), st.booleans()
)
def test_lines_and_array_hold_the_same_records(rows, is_indented):
    with tempfile.TemporaryDirectory() as folder:
        lines, array = Path(folder) / "l.jsonl", Path(folder) / "a.json"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        lines.write_text(text, encoding="utf-8", newline="")
        array.write_text(json.dumps(rows, indent=2 if is_indented else None), encoding="utf-8")
        assert [r.fields for r in read_records(lines)] == rows
        assert [r.fields for r in read_records(array)] == rows


@few
@given(st.fractions(max_denominator=999).filter(lambda value: abs(value) < 10**9))
def test_every_fraction_has_one_key_that_is_read_back_as_the_same_number(value):
    key = extract_key("numeric", f"It is {value.numerator}/{value.denominator}.")
    assert Fraction(key) == value
    assert extract_key("numeric", key) == key


@few
@given(st.integers(-(10**12), 10**12), st.integers(0, 3))
def test_ways_to_write_a_whole_number_have_one_key(number, zeros):
    point = "." + "0" * zeros if zeros else ""
    assert extract_key("numeric", f"= {number:,}{point}") == str(number)


@few
@given(
    st.sampled_from(["numeric", "choice", "exact"]),
    st.text(max_size=30) | st.from_regex(r"[ab ()/.,:$0-9-]{0,12}"),
)
def test_the_key_of_a_key_is_the_key(grader, text):
    choices = ["A", "B", "b 1", "yes"]
    key = extract_key(grader, text, choices)
    assert key is None or extract_key(grader, key, choices) == key
