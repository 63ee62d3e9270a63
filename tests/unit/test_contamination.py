"""Overlap of training data and benchmarks."""

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from score_files import pairs

from retrm.evaluation.benchmarks.base import BenchmarkData, Item
from retrm.evaluation.contamination import known_texts, normalised, overlap, training_texts
from retrm.evaluation.tables import measure
from retrm.records import Answer, Prompt

LONG = "Ann has three apples and buys four more, so how many apples has she now?"  # 15 words
ANSWER = "She starts with three apples, buys four more, and three plus four makes seven apples."


def benchmark(*pairs: tuple[str, str]) -> BenchmarkData:
    items = [
        Item(str(i), "all", str(i), (Answer.of(prompt, response),))
        for i, (prompt, response) in enumerate(pairs)
    ]
    return BenchmarkData("toy", tuple(items))


def test_a_prompt_is_met_whatever_its_case_punctuation_and_spacing() -> None:
    known = known_texts([Answer.of("What is 2+2?", "4")])
    found = overlap(known, benchmark(("what IS\n2 + 2", "5"), ("What is 2+3?", "5")))
    assert (found.ids, found.n_equal_prompts, found.n_gram_prompts) == (("0",), 1, 0)


def test_thirteen_words_in_a_row_are_met_and_twelve_are_not() -> None:
    known = known_texts([Answer.of("Read this. " + LONG, "7")])
    words = normalised(LONG)
    assert len(words) == 15
    cut = [" ".join(words[:n]) + " xyz" for n in (13, 12)]
    found = overlap(known, benchmark((cut[0], "a"), (cut[1], "a")))
    assert found.ids == ("0",)
    assert (found.n_equal_prompts, found.n_gram_prompts) == (0, 1)


def test_long_answers_are_met_and_short_ones_are_not() -> None:
    known = known_texts([Answer.of("q", ANSWER), Answer.of("q", "It is 7.")])
    found = overlap(known, benchmark(("p", ANSWER.upper()), ("r", "It is 7.")))
    assert (found.ids, found.n_equal_answers) == (("0",), 1)


def test_a_shared_system_prompt_meets_nothing() -> None:
    system = {"role": "system", "content": LONG}
    mine = Answer.of([system, {"role": "user", "content": "one"}], "a")
    theirs = Answer.of([system, {"role": "user", "content": "two"}], "a")
    data = BenchmarkData("toy", (Item("0", "all", "0", (theirs,)),))
    assert overlap(known_texts([mine]), data).n_items == 0


def test_training_files_of_any_format_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"prompt": LONG, "chosen": "7", "rejected": "8"}) + "\n")
    known = training_texts([path])
    assert (known.n_prompts, known.n_answers) == (1, 2)
    found = overlap(known, benchmark((LONG, "x")))
    assert found.in_words.startswith("1 of 1 items stand in train.jsonl (1 by an equal prompt")


def test_rated_training_files_need_no_objective(tmp_path: Path) -> None:
    path = tmp_path / "rated.jsonl"
    row = {"prompt": LONG, "response": "7", "helpfulness": 4, "verbosity": 1}
    path.write_text(json.dumps(row) + "\n")
    assert training_texts([path]).n_answers == 1


def test_texts_of_signs_only_are_not_equal_to_each_other() -> None:
    assert overlap(known_texts([Answer.of("???", "a")]), benchmark(("!!!", "b"))).n_items == 0


def test_a_script_without_spaces_has_a_word_a_character() -> None:
    known = known_texts([Answer.of("安有三个苹果又买了四个现在她有几个", "7")])
    found = overlap(
        known, benchmark(("题目：安有三个苹果又买了四个现在呢", "a"), ("安有三个梨", "a"))
    )
    assert (found.ids, found.n_gram_prompts) == (("0",), 1)


def test_two_files_may_number_their_prompts_alike(tmp_path: Path) -> None:
    paths = []
    for name, prompt in (("a", "What is 2+2?"), ("b", "What is 3+3?")):
        paths.append(tmp_path / f"{name}.jsonl")
        row = {"prompt_id": "1", "prompt": prompt, "response": "x", "label": True}
        paths[-1].write_text(json.dumps(row) + "\n")
    known = training_texts(paths)
    assert known.n_prompts == 2
    assert overlap(known, benchmark(("What is 2+2?", "y"), ("What is 3+3?", "y"))).n_items == 2


FORMAT = "Please reason step by step and put your final answer within a box at the very end."


def test_an_instruction_that_five_prompts_share_meets_nothing() -> None:
    of_training = [Answer.of(f"What is {i} plus 100? {FORMAT}", "x") for i in range(5)]
    data = benchmark((f"Who was king number 7? {FORMAT}", "y"), ("Something else?", "y"))
    four = overlap(known_texts(of_training[:4]), data)
    assert (four.ids, four.n_boilerplate) == (("0",), 0)
    five = overlap(known_texts(of_training), data)
    assert (five.ids, five.n_boilerplate) == ((), 1)
    assert "none of 2 items" in five.in_words
    assert "1 share only wording of 5 or more prompts" in five.in_words


def test_an_instruction_that_five_items_share_meets_nothing_but_their_problems_do() -> None:
    known = known_texts([Answer.of(f"{LONG} {FORMAT}", "x")])
    others = [(f"What is {i} plus 100? {FORMAT}", "y") for i in range(4)]
    data = benchmark(*others, (f"{LONG} Now, please! {FORMAT}", "y"))
    found = overlap(known, data)
    assert (found.ids, found.n_gram_prompts, found.n_boilerplate) == (("4",), 1, 4)


def test_items_of_one_prompt_are_no_boilerplate() -> None:
    known = known_texts([Answer.of("Read this. " + LONG, "x")])
    data = benchmark(*((LONG, f"step {i}") for i in range(6)))
    assert overlap(known, data).n_items == 6


def test_the_headline_on_the_items_not_met_stands_in_a_note() -> None:
    # Pairs 0, 1 are right and 2 is wrong: 2/3 in all, 1 of 2 without pair 0.
    files = [pairs("a", [1.0, 1.0, -1.0])]
    whole = measure(files, n_resamples=20)
    table = measure(files, n_resamples=20, met=["0"])
    assert table.rows == whole.rows
    assert whole.notes == ()
    (note,) = table.notes
    assert "on the 2 items that do not stand in the training data: a 0.500 [" in note
    (note,) = measure(files, n_resamples=20, met=["0", "1", "2"]).notes
    assert note.startswith("every item stands in the training data")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=6))
def test_every_item_of_the_training_data_itself_is_met(prompts: list[str]) -> None:
    known = known_texts([Answer(Prompt.of(p), "a", f"{i}") for i, p in enumerate(prompts)])
    found = overlap(known, benchmark(*((p, "b") for p in prompts)))
    assert found.n_items == len(prompts)


def test_the_last_thirteen_words_are_met_as_the_first_are() -> None:
    known = known_texts([Answer.of(LONG, "7")])
    words = normalised(LONG)
    # Thirteen words at the end of both, behind a word that only the item has: one 13-gram in common.
    last = "xyz " + " ".join(words[-13:])
    found = overlap(known, benchmark((last, "a"), ("xyz " + " ".join(words[-12:]), "a")))
    assert (found.ids, found.n_gram_prompts) == (("0",), 1)
    # A prompt of thirteen words has one 13-gram.
    whole = overlap(known_texts([Answer.of(" ".join(words[-13:]), "7")]), benchmark((last, "a")))
    assert whole.ids == ("0",)
