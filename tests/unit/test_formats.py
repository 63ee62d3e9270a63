"""What one record says: prompts, labels, orders and detection."""

import json
import math

import pytest

from retrm.data.detect import detect, parse
from retrm.data.formats import FORMATS
from retrm.data.messages import read_messages, split_transcript
from retrm.data.parsed import Options
from retrm.data.read import Record
from retrm.data.values import read_label, read_rating
from retrm.errors import LabelError
from retrm.records import Message, Pair, Prompt, RankedList

HI = {"role": "user", "content": "hi"}


def say(text):
    return {"role": "assistant", "content": text}


def read(fields, format=None, **options):
    record, options = Record(fields, "row"), Options(**options)
    return parse(record, format or detect(record, options), options)


# ------------------------------------------------------------------------------------- detection


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        # ultrafeedback_binarized holds the conversation once more, and its scores.
        ("prompt prompt_id chosen rejected messages score_chosen score_rejected", "preference"),
        ("chosen rejected source", "preference_implicit"),
        ("prompt response helpfulness correctness coherence complexity verbosity", "pointwise"),
        ("prompt_id prompt response label generator answer", "unpaired"),
        ("prompt responses reference correct", "rollouts"),
        ("prompt responses", "rollouts"),
        ("prompt responses ranks", "ranked"),
        ("prompt completions labels", "stepwise"),
        ("source instruction models completions", "ultrafeedback"),
        ("prompt reference output", "reference"),
        ("domain language context response1 response2 overall_preference", "strength"),
        ("prompt answers turns", "nectar"),
        ("messages", "messages"),
    ],
)
def test_the_most_specific_format_of_the_columns_is_found(columns, name):
    assert detect(Record(dict.fromkeys(columns.split()), "row")) == name


def test_naming_an_attribute_decides_for_ratings():
    fields = {"prompt": "p", "response": "r", "label": 1, "style": 3}
    assert detect(Record(fields, "row")) == "unpaired"
    parsed = read(fields, attribute="style")
    assert (parsed.format, parsed.labels) == ("pointwise", (3.0,))


def test_a_named_format_leaves_other_columns_unread():
    fields = {"prompt": "p", "reference": "x", "chosen": "a", "rejected": "b"}
    assert read(fields, "preference").pairs == (Pair(0, 1),)


def test_beaten_formats_exist_and_never_beat_back():
    for name, known in FORMATS.items():
        assert all(name not in FORMATS[loser].beats for loser in known.beats)


# ------------------------------------------------------------------------------ prompts, messages


def test_tools_as_list_and_as_text_are_one_prompt():
    tools = [{"type": "function", "function": {"name": "add"}}]
    base = {"prompt": "p", "chosen": "a", "rejected": "b"}
    as_list, as_text = read({**base, "tools": tools}), read({**base, "tools": json.dumps(tools)})
    assert as_list.answers == as_text.answers
    assert as_list.answers[0].prompt.tools == tuple(tools)
    assert as_list.answers[0].prompt_id != read(base).answers[0].prompt_id
    assert read({**base, "tools": None}).answers == read(base).answers


def test_prompt_as_text_is_one_user_turn_and_its_id_is_the_hash_unless_given():
    answer = read({"problem": "p", "response": "r"}).answers[0]
    assert answer.prompt == Prompt.of("p")
    assert answer.prompt_id == Prompt.of("p").key
    assert read({"prompt": "p", "response": "r", "prompt_id": 7}).answers[0].prompt_id == "7"


def test_the_first_prompt_column_counts():
    fields = {"question": "q", "prompt": "p", "response": "r"}
    assert read(fields).answers[0].prompt == Prompt.of("p")


def test_sharegpt_turns_are_mapped_to_roles():
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": "f"},
        {"from": "observation", "value": "o"},
        {"from": "gpt", "value": "a"},
    ]
    messages = read_messages(turns, "row", "conversations")
    assert [m.role for m in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert [m.content for m in messages] == list("sqfoa")


def test_text_parts_are_joined_and_keys_that_no_template_reads_are_left_out():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    turn = {"role": "user", "content": parts, "language": "English", "tool_calls": None}
    assert read_messages([turn], "row", "m") == (Message("user", "a b"),)


def test_tool_turns_before_the_answer_are_kept():
    call = {"id": "1", "function": {"name": "add"}}
    turns = [
        HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1", "name": "add"},
        say("It is 4"),
    ]
    prompt = read({"messages": turns}).answers[0].prompt
    assert prompt.messages[1] == Message("assistant", "", tool_calls=(call,))
    assert prompt.messages[2] == Message("tool", "4", tool_call_id="1", name="add")


def test_only_the_last_assistant_turn_is_judged():
    answer = read({"messages": [HI, say("a"), HI, say("b")]}).answers[0]
    assert answer.response == "b"
    assert [m.content for m in answer.prompt.messages] == ["hi", "a", "hi"]


def test_transcripts_are_split_at_their_markers_only():
    text = "\n\nHuman: a\n\nHumans: b\n\nAssistant: c\nAssistant: d\n\nHuman: e\n\nAssistant: f"
    turns = [(m.role, m.content) for m in split_transcript(text, "row", "chosen")]
    assert turns == [
        ("user", "a\n\nHumans: b"),
        ("assistant", "c\nAssistant: d"),
        ("user", "e"),
        ("assistant", "f"),
    ]


def test_shared_first_words_of_two_answers_stay_in_both():
    """The shared characters "It is " would be a prompt under a character prefix."""
    sides = {
        side: f"\n\nHuman: 2+2?\n\nAssistant: It is {n}"
        for side, n in (("chosen", 4), ("rejected", 5))
    }
    assert [a.response for a in read(sides).answers] == ["It is 4", "It is 5"]
    as_lists = {
        side: [{"role": "user", "content": "2+2?"}, say(f"It is {n}")]
        for side, n in (("chosen", 4), ("rejected", 5))
    }
    assert read(as_lists).answers == read(sides).answers


# ---------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (True, 1),
        (False, 0),
        (1, 1),
        (0, 0),
        (1.0, 1),
        ("true", 1),
        ("false", 0),
        ("C", 1),
        ("I", 0),
    ],
)
def test_labels_go_through_an_explicit_map(value, label):
    assert read_label(value, "row") == label


@pytest.mark.parametrize("value", [None, math.nan])
def test_missing_labels_are_nan_and_never_zero(value):
    assert math.isnan(read_label(value, "row"))
    assert math.isnan(read_rating(value, "row", "c"))


@pytest.mark.parametrize("value", ["", "N/A", " NA "])
def test_ratings_as_texts_may_be_missing(value):
    assert math.isnan(read_rating(value, "row", "c"))
    with pytest.raises(LabelError, match="expected true or false"):
        read_label(value, "row")


# ------------------------------------------------------------------------------------- relations


@pytest.mark.parametrize(
    ("strength", "sign", "pairs"),
    [
        (-2, "negative_first", (Pair(0, 1, 2.0),)),
        (-2, "positive_first", (Pair(1, 0, 2.0),)),
        (3, "negative_first", (Pair(1, 0, 3.0),)),
        (3, "positive_first", (Pair(0, 1, 3.0),)),
    ],
)
def test_signed_strength_becomes_an_ordered_pair_with_margin(strength, sign, pairs):
    fields = {"prompt": "p", "response1": "a", "response2": "b", "overall_preference": strength}
    assert read(fields, strength_sign=sign).pairs == pairs


def test_strength_zero_is_a_tie_and_null_is_counted():
    fields = {"prompt": "p", "response1": "a", "response2": "b", "overall_preference": 0}
    tie = read(fields, strength_sign="negative_first")
    assert (tie.pairs, tie.ranked) == ((), (RankedList((0, 1), (1.0, 1.0)),))
    none = read({**fields, "overall_preference": None}, strength_sign="negative_first")
    assert (none.pairs, none.ranked, none.counts) == ((), (), {"preferences_missing": 1})


def test_ranks_of_four_answers_give_five_strict_pairs():
    """Classes {0} > {2} > {1, 3}: 6 pairs of 4 answers, one of them a tie."""
    parsed = read({"prompt": "p", "responses": list("abcd"), "ranks": [1, 3, 2, 3]})
    pairs = {(p.chosen, p.rejected) for p in parsed.ranked[0].pairs()}
    assert pairs == {(0, 1), (0, 2), (0, 3), (2, 1), (2, 3)}


def test_higher_scores_become_lower_ranks_and_null_leaves_the_list():
    parsed = read({"prompt": "p", "responses": list("abcd"), "scores": [0.1, None, 0.9, 0.1]})
    assert parsed.ranked == (RankedList((0, 2, 3), (2.0, 1.0, 2.0)),)
    assert parsed.counts == {"ranks_missing": 1}
    assert len(parsed.answers) == 4


def test_a_list_with_one_rank_is_counted_and_its_answers_can_be_scored():
    parsed = read({"prompt": "p", "responses": ["a", "b"], "ranks": [1, None]})
    assert parsed.ranked == ()
    assert parsed.counts == {"ranks_missing": 1, "lists_too_short": 1}


@pytest.mark.parametrize(
    ("margin", "expected", "counts"),
    [(0.5, 0.5, {}), (-1, -1.0, {"margins_negative": 1}), (None, 0.0, {"margins_missing": 1})],
)
def test_margins_are_kept_and_odd_ones_counted(margin, expected, counts):
    parsed = read({"prompt": "p", "chosen": "a", "rejected": "b", "margin": margin})
    assert parsed.pairs == (Pair(0, 1, expected),)
    assert parsed.counts == counts


def test_identical_sides_and_different_prompts_give_no_pair_but_two_answers():
    same = read({"prompt": "p", "chosen": "a", "rejected": "a"})
    assert (same.drop, same.pairs, len(same.answers)) == ("identical", (), 2)
    other = {"role": "user", "content": "ho"}
    apart = read({"chosen": [HI, say("a")], "rejected": [other, say("b")], "prompt_id": "x"})
    assert (apart.drop, apart.pairs) == ("different_prompts", ())
    assert apart.answers[0].prompt_id != apart.answers[1].prompt_id


def test_ultrafeedback_ratings_of_one_attribute_are_labels_with_gaps():
    def done(text, rating):
        return {"response": text, "annotations": {"honesty": {"Rating": rating}}}

    fields = {"instruction": "p", "completions": [done("a", "4"), done("b", "N/A")]}
    parsed = read(fields, attribute="honesty")
    assert parsed.labels == pytest.approx((4.0, math.nan), nan_ok=True)
    assert parsed.ranked == ()


# ------------------------------------------------------------------------------------- rollouts


def test_sample_output_is_read_column_by_column():
    fields = {
        "prompt_id": "q1",
        "prompt": [HI],
        "responses": ["4.", "", "5"],
        "token_ids": [[4, 2], [2], None],
        "finished": [True, True, False],
        "logprobs": [-0.5, None, math.nan],
        "keys": ["4", None, "5"],
        "correct": [True, False, None],
        "answer": 4,
        "kind": "numeric",
        "grader": "numeric",
        "choices": None,
    }
    parsed = read(fields)
    first, second, third = parsed.answers
    assert (first.response_ids, first.finished, first.key, first.logprob) == (
        (4, 2),
        True,
        "4",
        -0.5,
    )
    # An end token alone is a sample like any other.
    assert (second.response, second.response_ids) == ("", (2,))
    assert (third.response_ids, third.finished, third.logprob) == (None, False, None)
    assert parsed.labels == pytest.approx((1.0, 0.0, math.nan), nan_ok=True)
    assert (parsed.gold, parsed.are_samples, parsed.format) == ("4", True, "rollouts")


def test_answer_beside_a_single_response_is_no_reference():
    fields = {"prompt": "p", "response": "so 5", "label": False, "answer": "5"}
    assert read(fields).gold is None
    assert read({**fields, "gold": "4"}).gold == "4"
