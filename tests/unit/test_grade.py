"""Keys and labels from reference answers."""

import builtins
import threading

import pytest

from retrm.data import grade
from retrm.data.grade import GRADERS, extract_key, grade_record, grade_records, is_correct
from retrm.data.load import build_table
from retrm.data.read import Record, records_of
from retrm.errors import MissingExtraError

LETTERS = ["A", "B", "C"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("The answer is 18.", "18"),
        ("First 3, then 4", "4"),
        ("It costs $1,234.50!", "1234.5"),
        ("about 50%", "50"),
        ("03", "3"),
        ("3.0", "3"),
        ("3.140", "3.14"),
        (".5", "0.5"),
        ("1/2", "0.5"),
        ("1/3 of it", "1/3"),
        ("2 / 6", "1/3"),
        ("3 1/2 cups", "3.5"),
        ("of 10 3/2", "1.5"),
        ("\\frac{1}{2}", "0.5"),
        ("-\\dfrac{3}{4}", "-0.75"),
        ("1\\frac12", "1.5"),
        ("\\boxed{1{,}000}", "1000"),
        ("2e-3", "0.002"),
        ("x=-5", "-5"),
        ("\u22125", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("-0", "0"),
        ("10-4", "4"),
        ("10 - 4 apples", "4"),
        ("f(2)-3", "3"),
        ("1,2,3", "3"),
        ("100,2000", "2000"),
        ("1/2/3", "3"),
        ("#### 72", "72"),
        ("no number", None),
        ("", None),
        ("1/0", None),
        ("7" * 401, None),
        ("1e999", None),
    ],
)
def test_numeric_takes_the_last_number_in_one_canonical_form(text, key):
    assert extract_key("numeric", text) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("I think (b).", "B"),
        ("[c]", "C"),
        ("B.", "B"),
        ("Answer: B", "B"),
        ("So \\boxed{A}", "A"),
        ("The answer is **C**", "C"),
        ("A, no, B", "B"),
        ("(A) is wrong, so it must be C because of x", "C"),
        ("Answer: A\nBecause of that", "A"),
        ("A is correct", "A"),
        ("Answer: A robe", "A"),
        # an article, a function, a part of a word and a small letter name nothing
        ("A robe takes two", None),
        ("f(a) holds", None),
        ("a B-tree and CB", None),
        ("answer: b", None),
        ("", None),
    ],
)
def test_choice_takes_the_last_letter_that_stands_alone(text, key):
    assert extract_key("choice", text, LETTERS) == key


@pytest.mark.parametrize(
    ("text", "options", "key"),
    [
        ("First yes. Then NO.", ["yes", "no"], "no"),
        ("I know nothing", ["yes", "no"], None),
        ("That is not true", ["true", "not true"], "not true"),
        ("In new  york", ["York", "New York"], "New York"),
        ("It is 150 m", ["A) 100 m", "B) 150 m"], "B"),
        ("It is (A)", ["A) 100 m", "B) 150 m"], "A"),
        ("c++ (fast)", ["c++ (fast)", "c"], "c++ (fast)"),
        ("I am sure", ["H", "I"], None),
    ],
)
def test_choice_takes_the_last_option_that_is_named_as_a_whole_word(text, options, key):
    assert extract_key("choice", text, options) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Well. Answer: wrong. ANSWER : The  Eiffel-Tower!", "eiffeltower"),
        ("A dog, and the cat", "dog and cat"),
        ("3.5", "3.5"),
        ("Answer: -5.", "-5"),
        ("the", "the"),
        # without its point the minus joins two words and goes as well
        ("x.-5", "x5"),
        ("Answer:  ?!", None),
    ],
)
def test_exact_compares_plain_words_behind_the_last_answer_mark(text, key):
    assert extract_key("exact", text) == key


@pytest.mark.parametrize(
    ("grader", "text", "gold", "choices", "right"),
    [
        ("numeric", "so $18.00", "5 + 13 = 18\n#### 18", None, True),
        ("numeric", "18.5", "18", None, False),
        ("numeric", "0.5", "1/2", None, True),
        ("choice", "(b)", "b", LETTERS, True),
        ("choice", "B", "(B)", LETTERS, True),
        ("choice", "A", "B", LETTERS, False),
        ("exact", "Answer: the Moon.", "Moon", None, True),
        ("exact", "Sun", "Moon", None, False),
    ],
)
def test_correct_means_the_same_key_as_the_reference(grader, text, gold, choices, right):
    assert is_correct(grader, text, gold, choices) is right
    # A key stands for its answer.
    assert is_correct(grader, extract_key(grader, text, choices), gold, choices) is right
    assert is_correct(grader, None, gold, choices) is False


# ------------------------------------------------------------------------------------------ math


@pytest.fixture
def math():
    return pytest.importorskip("math_verify")


@pytest.mark.parametrize(
    ("text", "key"),
    [("so $\\frac{1}{2}$", "0.5"), ("0.5", "0.5"), ("\\boxed{x^2+1}", "x**2 + 1"), ("none", None)],
)
def test_math_keys_are_the_parsed_expression(math, text, key):
    assert extract_key("math", text) == key


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("\\boxed{1+x^2}", "x^2+1", True),
        ("$0.5$", "\\frac{1}{2}", True),
        ("$2\\sqrt{2}$", "\\sqrt{8}", True),
        ("sqrt(2)", "$\\sqrt{2}$", True),
        ("\\boxed{3}", "4", False),
    ],
)
def test_math_finds_equal_forms(math, text, gold, right):
    assert is_correct("math", text, gold) is right


def in_thread(work):
    found = []
    worker = threading.Thread(target=lambda: found.append(work()))
    worker.start()
    worker.join(30)
    return found[0]


def test_math_works_outside_the_main_thread_where_no_alarm_can_be_set(math):
    assert in_thread(lambda: extract_key("math", "$\\frac12$")) == "0.5"
    assert in_thread(lambda: is_correct("math", "\\boxed{x+1}", "1+x")) is True


def test_math_gives_up_outside_the_main_thread_when_the_time_is_over(math, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(grade, "_TIME_S", 0.05)
    monkeypatch.setattr(grade, "_parse_math", lambda text, limit: release.wait(30) and [])
    assert in_thread(lambda: extract_key("math", "1")) is None
    release.set()


def test_math_without_the_extra_says_the_pip_line(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "math_verify":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'retrm\[math\]'"):
        extract_key("math", "1")
    # The other graders need no extra.
    assert extract_key("numeric", "1") == "1"


# --------------------------------------------------------------------------------- sampled records


ROW = {
    "prompt": "2+2?",
    "responses": ["4", "four", "5", "so 4.0"],
    "finished": [True, False, False, None],
    "answer": "4",
    "grader": "numeric",
    "note": "kept",
}


def test_grading_sets_labels_keys_and_counts_and_keeps_the_rest():
    graded = grade_record(Record(ROW, "row"))
    assert graded.rows[0] == {
        **ROW,
        "correct": [True, False, False, True],
        "keys": ["4", None, "5", "4"],
    }
    assert graded.counts == {
        "records": 1,
        "answers": 4,
        "correct": 2,
        "no_key": 1,
        "cut": 2,
        "cut_no_key": 1,
        "relabelled": 0,
    }


def test_graded_records_load_as_a_table():
    graded = grade_records(records_of([ROW, {**ROW, "prompt": "1+3?"}]))
    table = build_table(records_of(graded.rows))
    assert table.labels.tolist() == [1, 0, 0, 1] * 2
    assert [answer.key for answer in table.answers[:3]] == ["4", None, "5"]
    assert graded.counts["records"] == 2


def test_a_given_grader_goes_before_that_of_the_record_and_changed_labels_are_counted():
    row = {**ROW, "correct": [False, None, False, True]}
    graded = grade_records(records_of([row]), grader="exact")
    assert graded.rows[0]["grader"] == "exact"
    assert graded.rows[0]["correct"] == [True, False, False, False]
    # the first and the last changed; the second had no label before
    assert graded.counts["relabelled"] == 2


def test_no_records_give_zero_counts():
    assert grade_records([]).counts["answers"] == 0


def test_the_four_graders_are_known():
    assert list(GRADERS) == ["numeric", "choice", "exact", "math"]
