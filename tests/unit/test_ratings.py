"""Ratings of answers: from columns and nested records to one scale, by stated ranges only."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.data.load import build_table, describe, iter_parsed, load_table
from retrm.data.rating_columns import RatingColumn, WantedRatings
from retrm.data.read import records_of
from retrm.data.rollouts import rollouts_of, with_text
from retrm.data.split import split_by_prompt
from retrm.errors import DataError, FormatError, LabelError
from retrm.records import Answer, AnswerTable, RatingScale

NAN = math.nan
PUBLIC = os.environ.get("RETRM_PUBLIC_DATA", "")


def table_of(*rows, ratings="known", **options):
    return build_table(records_of(rows), ratings=ratings, **options)


def ratings_of(table):
    return {name: values.tolist() for name, values in table.ratings.items()}


def near(values):
    if isinstance(values, dict):
        return {name: near(column) for name, column in values.items()}
    return pytest.approx(values, nan_ok=True, abs=1e-12)


def helpsteer(response, *ratings, prompt="p"):
    """A record of HelpSteer: five attributes from 0 to 4."""
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {"prompt": prompt, "response": response, **dict(zip(names, ratings, strict=True))}


# ------------------------------------------------------------------------------------------ scales


def test_helpsteer_numbers_become_tenths():
    # (rating + 0.5) / 5, the worked line of the method: 0,1,2,3,4 -> 0.1,0.3,0.5,0.7,0.9.
    table = table_of(helpsteer("a", 0, 1, 2, 3, 4))
    assert {name: values[0] for name, values in ratings_of(table).items()} == near(
        {
            "coherence": 0.5,
            "complexity": 0.7,
            "correctness": 0.3,
            "helpfulness": 0.1,
            "verbosity": 0.9,
        }
    )
    scale = table.scales["verbosity"]
    assert scale == RatingScale(0, 4, pad=0.5)
    # And back: rating = 5 y - 0.5.
    assert scale.given(0.9) == near(4.0)


def test_objectives_come_in_alphabetical_order_whatever_the_records_say_first():
    row = helpsteer("a", 0, 1, 2, 3, 4)
    turned = dict(reversed(row.items()))
    assert list(table_of(turned).ratings) == list(table_of(row).ratings)
    assert list(table_of(row).ratings) == sorted(row.keys() - {"prompt", "response"})


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-100, 100),
    st.floats(0.1, 100),
    st.floats(0, 10),
    st.floats(0, 1),
)
def test_a_scale_maps_its_range_into_zero_to_one_and_back(low, width, pad, share):
    scale = RatingScale(low, low + width, pad)
    number = min(low + share * width, low + width)
    assert scale.holds(number)
    assert -1e-9 <= scale.scaled(number) <= 1 + 1e-9
    assert scale.given(scale.scaled(number)) == pytest.approx(number, abs=1e-6)


def test_an_impossible_scale_is_refused():
    with pytest.raises(DataError, match=r"got the range 5\.\.1 with pad 0; expected two finite"):
        RatingScale(5, 1)
    with pytest.raises(DataError, match="expected two finite numbers"):
        RatingScale(0, math.inf)


# ---------------------------------------------------------------------------- the layouts by hand


def test_missing_ratings_stay_missing_and_the_answer_stays():
    table = table_of(helpsteer("a", 4, None, 2, "N/A", 1), helpsteer("b", NAN, 0, 2, 2, 1))
    found = ratings_of(table)
    assert found["helpfulness"] == near([0.9, NAN])
    assert found["correctness"] == near([NAN, 0.1])
    assert found["complexity"] == near([NAN, 0.5])
    assert np.isnan(table.labels).all()


def test_a_number_outside_of_the_range_is_refused_with_record_and_column():
    with pytest.raises(LabelError) as caught:
        table_of(helpsteer("a", 0, 1, 2, 3, 4), helpsteer("b", 0, 1, 5, 3, 4))
    assert str(caught.value) == (
        "rows[1]: `coherence` is the number 5; expected 0 to 4, the range of the rating 'coherence'. "
        "Mend the record, or state the range: --rating coherence:LOW..HIGH"
    )


def test_flat_ultrafeedback_columns_have_its_range_and_a_mixture_of_both_has_none():
    row = {"prompt": "p", "response": "a", "honesty": 5, "helpfulness": 1}
    assert ratings_of(table_of(row)) == near({"helpfulness": [0.0], "honesty": [1.0]})
    with pytest.raises(FormatError, match="the range of the rating 'helpfulness' is not known"):
        table_of({**row, "verbosity": 3})


def ultrafeedback(*completions):
    return {
        "instruction": "p",
        "completions": [
            {
                "response": text,
                "overall_score": overall,
                "annotations": {
                    name: {"Rating": rating, "Rationale": "..."}
                    for name, rating in annotations.items()
                },
            }
            for text, overall, annotations in completions
        ],
    }


def test_nested_ultrafeedback_ratings_are_read_beside_the_ranks():
    table = table_of(
        ultrafeedback(
            ("a", 10, {"honesty": "5", "truthfulness": "N/A"}), ("b", 1, {"honesty": "2"})
        )
    )
    # (5 - 1) / 4, (2 - 1) / 4 and (10 - 1) / 9, (1 - 1) / 9.
    assert ratings_of(table) == near({"honesty": [1.0, 0.25], "overall_score": [1.0, 0.0]})
    assert [(p.chosen, p.rejected) for p in table.preferences()] == [(0, 1)]
    # instruction_following, truthfulness (N/A) and helpfulness are rated nowhere.
    assert table.counts["objectives_without_ratings"] == 3


def test_a_nested_rating_outside_of_its_range_is_named_with_its_path():
    with pytest.raises(LabelError, match=r"`completions\[1\].annotations.honesty` is the text '6'"):
        table_of(ultrafeedback(("a", 1, {"honesty": "5"}), ("b", 1, {"honesty": "6"})))


def topical(text, **axes):
    known = {"understandability": 1, "engagingness": 3, "groundedness": 0}
    return {
        "source": "hi\nho\n",
        "context": "A fact.",
        "system_output": text,
        "scores": {**known, **axes},
    }


def test_unieval_axes_have_the_range_of_their_set():
    dialogue = table_of(topical("a", naturalness=2, overall=2))
    # 1..3: (2 - 1) / 2; 1..5: (2 - 1) / 4.
    assert ratings_of(dialogue) == near(
        {
            "engagingness": [1.0],
            "groundedness": [0.0],
            "naturalness": [0.5],
            "overall": [0.25],
            "understandability": [1.0],
        }
    )
    assert dialogue.answers[0].prompt.messages[0].content == "A fact.\n\nhi\nho"
    data = {"source": "f()", "reference": "r", "system_output": "a"}
    # 1..6: (2 - 1) / 5.
    spoken = table_of({**data, "scores": {"informativeness": 6, "naturalness": 2, "overall": 1}})
    assert ratings_of(spoken) == near(
        {"informativeness": [1.0], "naturalness": [0.2], "overall": [0.0]}
    )
    summary = {"coherence": 1, "consistency": 5, "fluency": 3, "relevance": 2}
    assert ratings_of(table_of({**data, "scores": summary})) == near(
        {"coherence": [0.0], "consistency": [1.0], "fluency": [0.5], "relevance": [0.25]}
    )


def test_an_axis_with_two_ranges_in_one_file_is_refused():
    other = {"informativeness": 6, "naturalness": 2, "overall": 1}
    with pytest.raises(
        DataError, match=r"'naturalness' is rated from 1 to 6, but at rows\[0\] from 1 to 3"
    ):
        table_of(
            topical("a", naturalness=2), {"source": "f()", "system_output": "a", "scores": other}
        )


def test_an_axis_that_unieval_does_not_have_needs_its_range():
    row = {"source": "f()", "system_output": "a", "scores": {"wit": 7}}
    with pytest.raises(FormatError) as caught:
        table_of(row)
    assert str(caught.value) == (
        "rows[0]: the range of the rating 'wit' is not known; expected it stated: --rating "
        "wit=scores.wit:LOW..HIGH."
    )
    assert ratings_of(table_of(row, ratings=["wit=scores.wit:0..10"])) == near({"wit": [0.7]})


def test_one_axis_can_be_the_label_while_the_others_are_ratings():
    table = table_of(topical("a", overall=4), topical("b", overall=2), attribute="overall")
    assert table.labels.tolist() == [4, 2]
    assert [(p.chosen, p.rejected) for p in table.judged().pairs] == [(0, 1)]
    assert ratings_of(table.judged())["overall"] == near([0.75, 0.25])


def finegrained(errors=(), missing=(), preference=(1, 0, 0, 0, 0, 2)):
    return {
        "question": "Q?",
        "passages": [["Title", "Title\n\nFirst.", "Second."]],
        "prediction 1": "0123456789",
        **{f"prediction {i}": f"text {i}" for i in (2, 3, 4)},
        "feedback": {
            "errors": [{"error type": k, "start": a, "end": b} for k, a, b in errors],
            "missing-info": [{"error type": kind} for kind in missing],
        },
        "preference": list(preference),
    }


def test_marked_errors_become_three_objectives_of_the_first_prediction():
    errors = [("Irrelevant", 0, 4), ("Redundant", 2, 5), ("Unverifiable", 9, 10)]
    table = table_of(finegrained(errors, ["Missing-Minor-Auxiliary", "Missing-Major-Auxiliary"]))
    # Characters 0-4 are irrelevant or redundant: 5 of 10, the overlap once. One is unverifiable. The
    # graver of the two that are missing is the major auxiliary.
    assert ratings_of(table) == near(
        {
            "completeness": [1 / 3, NAN, NAN, NAN],
            "factuality": [0.9, NAN, NAN, NAN],
            "relevance": [0.5, NAN, NAN, NAN],
        }
    )
    assert [(p.chosen, p.rejected) for p in table.pairs] == [(0, 1), (3, 2)]
    # (1,3) (1,4) (2,3) (2,4) are ties.
    assert [lst.rows for lst in table.ranked] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert table.answers[0].prompt.messages[0].content == "Title\n\nFirst. Second.\n\nQ?"


def test_a_prediction_without_marks_is_perfect_and_one_without_its_answer_incomplete():
    table = table_of(finegrained(missing=["Missing-Answer"]))
    first = {name: values[0] for name, values in ratings_of(table).items()}
    assert first == {"completeness": 0.0, "factuality": 1.0, "relevance": 1.0}
    assert table_of(finegrained()).ratings["completeness"][0] == 1.0


def test_unknown_marks_and_spans_outside_of_the_text_are_refused():
    with pytest.raises(
        FormatError, match=r"'Irelevant'; expected a known one\. Did you mean 'Irrel"
    ):
        table_of(finegrained([("Irelevant", 0, 1)]))
    with pytest.raises(DataError, match=r"rows\[0\]: got the span 5\.\.11 .* from 0 to 10"):
        table_of(finegrained([("Irrelevant", 5, 11)]))


def test_truthful_qa_judgements_are_two_objectives():
    row = {"question": "Q?", "answer": "a", "true": "0.25", "info": "1.0", "": "7"}
    assert ratings_of(table_of(row)) == {"informative": [1.0], "truthful": [0.25]}


# ----------------------------------------------------------------------------------- own columns


def test_own_columns_of_single_answers():
    row = {"prompt": "p", "response": "a", "stars": 4, "is_safe": True, "label": 1}
    table = table_of(row, ratings=["stars:1..5", "safe=is_safe:0..1"])
    assert ratings_of(table) == near({"safe": [1.0], "stars": [0.75]})
    assert table.labels.tolist() == [1.0]
    assert table.scales["stars"] == RatingScale(1, 5)


def test_own_columns_of_rollouts_are_lists():
    row = {"prompt": "p", "responses": ["a", "b"], "correct": [1, 0], "stars": [5, None]}
    assert ratings_of(table_of(row, ratings=["stars:1..5"])) == near({"stars": [1.0, NAN]})
    with pytest.raises(DataError, match="`stars` has 1 values for 2 answers; expected one each"):
        table_of({**row, "stars": [5]}, ratings=["stars:1..5"])
    with pytest.raises(LabelError, match=r"`stars\[1\]` is the number 9; expected 1 to 5"):
        table_of({**row, "stars": [5, 9]}, ratings=["stars:1..5"])


def test_own_columns_of_preferences_end_in_the_side():
    # As in ultrafeedback_binarized.
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 8.5, "score_rejected": 4}
    table = table_of(row, ratings=["score:1..10"])
    # 7.5 / 9 and 3 / 9.
    assert ratings_of(table) == near({"score": [7.5 / 9, 1 / 3]})


def test_equal_answers_of_preferences_share_a_row_only_where_their_ratings_agree():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "s_chosen": 1, "s_rejected": 0}
    again = {**row, "rejected": "c"}
    other = {**again, "s_chosen": 0}
    table = table_of(row, again, other, ratings=["s:0..1"])
    assert [a.response for a in table.answers] == ["a", "b", "c", "a"]
    assert ratings_of(table) == {"s": [1.0, 0.0, 0.0, 0.0]}
    assert [(p.chosen, p.rejected) for p in table.pairs] == [(0, 1), (0, 2), (3, 2)]
    assert (table.counts["answers_shared"], table.counts["answers_repeated"]) == (2, 1)


def test_equal_answers_that_are_rated_twice_keep_both_ratings():
    table = table_of(helpsteer("a", 4, 4, 4, 4, 4), helpsteer("a", 0, 4, 4, 4, 4))
    assert ratings_of(table)["helpfulness"] == near([0.9, 0.1])
    assert table.counts["answers_repeated"] == 1


def test_pruned_candidates_have_no_ratings():
    row = {"prompt": "p", "responses": ["a", "b"], "pruned": [True, False], "stars": [5, 5]}
    assert ratings_of(table_of(row, ratings=["stars:1..5"])) == near({"stars": [NAN, 1.0]})


def test_numbers_from_zero_to_one_are_read_from_the_column_ratings():
    messages = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"messages": messages, "ratings": {"tone": 0.5}},
        {"messages": messages, "ratings": {"wit": 1, "tone": None}},
    ]
    assert ratings_of(table_of(*rows)) == near({"tone": [0.5, NAN], "wit": [NAN, 1.0]})
    with pytest.raises(
        LabelError, match=r"rows\[0\]: `ratings.tone` is the number 3; expected 0 to 1"
    ):
        table_of({"messages": messages, "ratings": {"tone": 3}})
    with pytest.raises(FormatError, match="`ratings` is the number 3; expected an object"):
        table_of({"messages": messages, "ratings": 3})


def test_a_range_of_ones_own_goes_before_the_known_one():
    table = table_of(helpsteer("a", 5, 1, 2, 3, 4), ratings=["known", "helpfulness:0..5"])
    assert table.ratings["helpfulness"].tolist() == [1.0]
    assert table.ratings["correctness"].tolist() == near([0.3])


def test_only_the_objectives_that_were_named_are_read_and_known_ones_need_no_range():
    table = table_of(helpsteer("a", 9, 1, 2, 3, 4), ratings=["verbosity", "deep=complexity:0..4"])
    assert ratings_of(table) == near({"deep": [0.75], "verbosity": [0.9]})


def test_another_column_for_a_known_objective_is_not_the_known_column():
    # `mine` says 0 where HelpSteer's own column says 4; only its own range is known.
    row = {**helpsteer("a", 4, 1, 2, 3, 4), "mine": 0}
    with pytest.raises(FormatError, match=r"--rating helpfulness=mine:LOW\.\.HIGH"):
        table_of(row, ratings=["helpfulness=mine"])
    assert ratings_of(table_of(row, ratings=["helpfulness=mine:0..4"])) == {"helpfulness": [0.0]}
    # The known column by its own name is the known one.
    named = table_of(row, ratings=["helpfulness=helpfulness"])
    assert ratings_of(named) == near({"helpfulness": [0.9]})


def test_the_advice_of_a_refused_rating_names_the_column_it_stands_in():
    row = {"prompt": "p", "response": "a", "ratings": {"tone": 3}}
    with pytest.raises(LabelError, match=r"--rating tone=ratings\.tone:LOW\.\.HIGH"):
        table_of(row)
    assert ratings_of(table_of(row, ratings=["tone=ratings.tone:1..5"])) == {"tone": [0.5]}


def test_no_ratings_are_read_unless_asked_for():
    row = {**helpsteer("a", 9, 9, 9, 9, 9)}
    table = table_of(row, ratings=None, attribute="helpfulness")
    assert (table.labels.tolist(), table.ratings) == ([9.0], {})
    with pytest.raises(FormatError, match="--attribute NAME, or learn several with --rating known"):
        table_of(row, ratings=None)


def test_a_label_beside_known_ratings_is_kept():
    row = {"prompt": "p", "response": "a", "label": True, "helpfulness": 3}
    table = table_of(row)
    assert (table.labels.tolist(), ratings_of(table)) == ([1.0], near({"helpfulness": [0.7]}))


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stars:1-5", "got the range '1-5' in 'stars:1-5'; expected OBJECTIVE"),
        ("stars:1..", r"got the range '1..'"),
        ("stars:5..1", "got the range 5..1"),
        ("=x:1..5", "got the rating '=x:1..5'"),
        ("a b:1..5", "got the objective 'a b'"),
        ("a=:1..5", "got the rating 'a=:1..5'"),
    ],
)
def test_misspelt_ratings_are_refused(text, said):
    with pytest.raises(FormatError) as caught:
        RatingColumn.of(text)
    assert said in str(caught.value)


def test_ratings_as_they_may_be_written():
    assert RatingColumn.of("a:0..4") == RatingColumn("a", "a", RatingScale(0, 4))
    assert RatingColumn.of("a=b.c:-1..1.5") == RatingColumn("a", "b.c", RatingScale(-1, 1.5))
    assert RatingColumn.of("a") == RatingColumn("a", "a", None)
    assert WantedRatings.of(None) is None
    assert WantedRatings.of("known") == WantedRatings(True)


def test_an_objective_that_is_named_twice_or_not_at_all_is_refused():
    with pytest.raises(FormatError, match="got the objective 'a' twice"):
        WantedRatings.of(["a:0..1", "a=b:0..1"])
    with pytest.raises(FormatError, match="got no ratings"):
        WantedRatings.of([])


def test_a_misspelt_column_is_found_out_at_the_end():
    with pytest.raises(LabelError) as caught:
        table_of(
            {"prompt": "p", "response": "a", "stars": 4}, ratings=["star:1..5"], name="f.jsonl"
        )
    assert str(caught.value) == (
        "f.jsonl: no answer has a rating of 'star' in the column 'star'; expected one at least. The "
        "columns are prompt, response, stars. Did you mean 'stars'?"
    )


def test_a_truth_value_is_no_number_of_stars():
    with pytest.raises(
        LabelError, match="`stars` is the truth value True; expected a number from 1"
    ):
        table_of({"prompt": "p", "response": "a", "stars": True}, ratings=["stars:1..5"])


def test_tables_refuse_ratings_that_are_no_shares():
    answers = (Answer.of("p", "a"), Answer.of("p", "b"))
    labels = np.full(2, NAN)
    with pytest.raises(
        LabelError, match="row 1: the rating of 'x' is 3; expected a number from 0 to 1"
    ):
        AnswerTable(answers, labels, ratings={"x": np.array([NAN, 3.0])})
    with pytest.raises(DataError, match=r"ratings of 'x' in the shape \(1,\) for 2 answers"):
        AnswerTable(answers, labels, ratings={"x": np.array([0.5])})
    with pytest.raises(DataError, match="got a scale of 'y'"):
        AnswerTable(
            answers, labels, ratings={"x": np.array([0, 1.0])}, scales={"y": RatingScale(0, 1)}
        )


# ------------------------------------------------------------------------ what tables do with them


def test_ratings_follow_their_rows():
    table = table_of(*(helpsteer(f"{i}", i, 0, 0, 0, 0) for i in range(5)))
    part = table.take([3, 1])
    assert ratings_of(part)["helpfulness"] == near([0.7, 0.3])
    assert part.scales == table.scales


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=12, max_size=30), st.data()
)
def test_order_of_records_changes_nothing_but_the_order_of_rows(drawn, data):
    rows = [
        helpsteer(f"answer {i}", score, 4 - score, None, 0, 2, prompt=f"prompt {p}")
        for i, (p, score) in enumerate(drawn)
    ]
    order = data.draw(st.permutations(range(len(rows))))
    table, turned = table_of(*rows), table_of(*(rows[i] for i in order))
    assert list(turned.ratings) == list(table.ratings)
    for name, values in table.ratings.items():
        assert turned.ratings[name].tolist() == near(values[list(order)].tolist())
    if len({p for p, _ in drawn}) < 2:
        return
    parts = split_by_prompt(table.prompt_ids, (0.5, 0.5), seed=1)
    ids = [{table.answers[row].prompt_id for row in part} for part in parts]
    assert not ids[0] & ids[1]
    for part in parts:
        expected = [0.1 + 0.2 * drawn[row][1] for row in part]
        assert table.take(part).ratings["helpfulness"].tolist() == near(expected)


def test_ratings_survive_the_way_through_rollouts():
    rows = [helpsteer("a", 4, 3, 2, 1, None), helpsteer("b", None, 3, 2, 1, 0)]
    table = table_of(*rows)
    again = table_of(*rollouts_of(table))
    assert list(again.ratings) == list(table.ratings)
    for name, values in table.ratings.items():
        assert again.ratings[name].tolist() == near(values.tolist())


def test_candidates_without_text_take_their_ratings_with_them():
    row = {"prompt": "p", "responses": ["a", "", "c"], "ratings": {"x": [0.1, 0.2, 0.3]}}
    records, n_blank = with_text(records_of([row]))
    assert (n_blank, records[0].fields["ratings"]) == (1, {"x": [0.1, 0.3]})


def test_statistics_count_what_is_rated_and_what_is_missing():
    table = table_of(helpsteer("a", 4, None, 2, 1, 0), helpsteer("b", 2, None, 2, 1, 0))
    found = describe(table).objectives
    assert list(found) == ["coherence", "complexity", "helpfulness", "verbosity"]
    one = found["helpfulness"]
    assert (one.n_rated, one.n_missing, one.scale) == (2, 0, "0..4")
    # 0.9 and 0.5.
    assert (one.mean, one.low, one.high) == near((0.7, 0.5, 0.9))
    assert table.counts["objectives_without_ratings"] == 1


def test_records_can_be_read_one_by_one_with_their_ratings(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt": "p", "response": "a", "stars": 3}\n')
    _, parsed = next(iter_parsed(path, ratings=["stars:1..5"]))
    assert parsed.ratings == {"stars": (0.5,)}


# ------------------------------------------------------------------------------------ public data


def public(file):
    if not PUBLIC:
        pytest.skip("RETRM_PUBLIC_DATA does not say where public data lies")
    path = Path(PUBLIC) / file
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.parametrize(
    ("file", "n", "n_prompts", "objectives"),
    [
        (
            "unieval/dialogue/topical_chat.json.gz",
            360,
            60,
            "coherence engagingness groundedness naturalness overall understandability",
        ),
        ("unieval/data2text/sfres.json.gz", 1181, 580, "informativeness naturalness overall"),
        ("unieval/data2text/sfhot.json.gz", 875, 398, "informativeness naturalness overall"),
        ("unieval/fact/qags_cnndm.json.gz", 235, 235, "consistency"),
        ("unieval/fact/qags_xsum.json.gz", 239, 239, "consistency"),
    ],
)
def test_the_published_unieval_files_fill_their_ranges(file, n, n_prompts, objectives):
    found = describe(load_table(public(file), ratings="known"))
    assert (found.n_answers, found.n_prompts) == (n, n_prompts)
    assert list(found.objectives) == objectives.split()
    # Both ends of every range occur, so no stated range is too wide; none is too narrow, or the file
    # would have been refused.
    for one in found.objectives.values():
        assert (one.n_missing, one.low, one.high) == (0, near(0), near(1))


def test_the_published_truthful_qa_samples_are_two_objectives():
    table = load_table(public("instructgpt_samples/truthful_qa_samples.csv.gz"), ratings="known")
    found = describe(table)
    assert (found.n_answers, found.n_prompts) == (3600, 100)
    assert found.objectives["truthful"].mean == pytest.approx(0.51, abs=0.005)
    assert found.objectives["informative"].mean == pytest.approx(0.80, abs=0.005)


def test_the_published_finegrained_feedback_is_read_whole():
    table = load_table(public("finegrained_rlhf_qa/dev_feedback.json.gz"), ratings="known")
    found = describe(table)
    assert (found.n_answers, found.n_prompts, found.n_ties) == (2000, 500, 384)
    # 1,577 times the first is better, 1,039 times the second.
    assert found.n_pairs == 1577 + 1039
    assert {name: one.n_rated for name, one in found.objectives.items()} == dict.fromkeys(
        ("completeness", "factuality", "relevance"), 500
    )
