"""Every record format: three rows of which the last is broken, and the exact words of the refusal."""

import json
import math
from dataclasses import dataclass, field

import pytest

from retrm.data.detect import detect
from retrm.data.formats import FORMATS
from retrm.data.load import iter_parsed, load_table
from retrm.data.parsed import Options
from retrm.data.read import Record
from retrm.errors import DataError, FormatError, LabelError

U, A = "user", "assistant"


def say(*texts):
    """A conversation whose turns alternate, the user first."""
    return [{"role": (U, A)[i % 2], "content": text} for i, text in enumerate(texts)]


def finegrained(question, preference):
    """Four predictions of which nothing is marked."""
    return {
        "question": question,
        **{f"prediction {i}": f"text {i}" for i in range(1, 5)},
        "feedback": {"errors": [], "missing-info": []},
        "preference": preference,
    }


@dataclass(frozen=True)
class Case:
    """Two good rows, what the table of them holds, and one broken row with its refusal."""

    good: tuple
    broken: dict
    error: type
    text: str
    n_answers: int
    n_pairs: int = 0
    n_lists: int = 0
    labels: tuple = ()
    options: dict = field(default_factory=dict)
    scores: object = None


CASES = {
    "rollouts": Case(
        good=(
            {"prompt": "2+2?", "responses": ["4", "5"], "correct": [True, False], "answer": "4"},
            {"problem": "3+3?", "responses": ["6"], "correct": [1], "finished": [False]},
        ),
        broken={"prompt": "1+1?", "responses": ["2", "3"], "correct": [True]},
        error=DataError,
        text="f.jsonl:3: `correct` has 1 values for 2 answers; expected one each",
        n_answers=3,
        labels=(1.0, 0.0, 1.0),
        scores=[1.0, 2.0],
    ),
    "ranked": Case(
        good=(
            {"prompt": "hi", "responses": ["a", "b", "c"], "ranks": [1, 3, 2]},
            {"prompt": "ho", "responses": ["a", "b"], "scores": [0.5, 0.5]},
        ),
        broken={"prompt": "he", "responses": ["a", "b"], "ranks": [-1, 2]},
        error=DataError,
        text="f.jsonl:3: got rank -1; expected ranks that count from 1 = best. Write numbers of "
        "which higher is better as `scores`",
        n_answers=5,
        n_lists=2,
        scores=[1.0, 2.0, 3.0],
    ),
    "nectar": Case(
        good=(
            {"prompt": "hi", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
            {"prompt": "ho", "answers": [{"answer": "a", "rank": 2.0}, {"answer": "b", "rank": 1}]},
        ),
        broken={"prompt": "he", "answers": [{"answer": "a"}]},
        error=FormatError,
        text="f.jsonl:3: `answers[0]` has keys answer; expected an object with `answer` and `rank`",
        n_answers=4,
        n_lists=2,
        scores=[1.0, 2.0],
    ),
    "ultrafeedback": Case(
        good=(
            {
                "instruction": "hi",
                "completions": [
                    {"response": "a", "overall_score": 7.5},
                    {"response": "b", "overall_score": 8},
                ],
            },
            {
                "instruction": "ho",
                "completions": [
                    {"response": "a", "overall_score": None},
                    {"response": "b", "overall_score": 1},
                ],
            },
        ),
        broken={"instruction": "he", "completions": [{"response": "a", "overall_score": "good"}]},
        error=LabelError,
        text="f.jsonl:3: `completions[0].overall_score` is the text 'good'; expected a finite number, "
        "or null where it is missing",
        n_answers=4,
        n_lists=1,
        scores=[1.0, 2.0],
    ),
    "pointwise": Case(
        good=(
            {"prompt": "hi", "response": "a", "helpfulness": 4, "verbosity": 1},
            {"prompt": "hi", "response": "b", "helpfulness": None, "verbosity": 2},
        ),
        broken={"prompt": "hi", "response": "c", "helpfulness": "high", "verbosity": 2},
        error=LabelError,
        text="f.jsonl:3: `helpfulness` is the text 'high'; expected a finite number, or null where it "
        "is missing",
        n_answers=2,
        labels=(4.0, math.nan),
        options={"attribute": "helpfulness"},
        scores=1.0,
    ),
    "unieval": Case(
        good=(
            {"source": "hi", "system_output": "a", "scores": {"consistency": 1.0}},
            {"source": "hi", "system_output": "b", "scores": {"consistency": None}},
        ),
        broken={"source": "hi", "system_output": "c", "scores": 0.5},
        error=FormatError,
        text="f.jsonl:3: `scores` is the number 0.5; expected one number an axis",
        n_answers=2,
        labels=(1.0, math.nan),
        options={"attribute": "consistency"},
        scores=1.0,
    ),
    "truthful_qa": Case(
        good=(
            {"question": "hi", "answer": "a", "true": "0.25", "info": "1.0"},
            {"question": "hi", "answer": "b", "true": "", "info": "1.0"},
        ),
        broken={"question": "hi", "answer": "c", "true": "yes", "info": "1.0"},
        error=LabelError,
        text="f.jsonl:3: `true` is the text 'yes'; expected a finite number, or null where it is missing",
        n_answers=2,
        labels=(0.25, math.nan),
        options={"attribute": "true"},
        scores=1.0,
    ),
    "finegrained_qa": Case(
        good=(finegrained("hi", [1, 2, 0, 1, 1, 1]), finegrained("ho", [0, 0, 0, 0, 0, 2])),
        broken=finegrained("he", [1, 2]),
        error=DataError,
        text="f.jsonl:3: `preference` is [1, 2]; expected 6 numbers: 1 = the first is better, 2 = the "
        "second, 0 = neither",
        n_answers=8,
        n_pairs=6,
        n_lists=6,
        scores=[1.0, 2.0, 3.0, 4.0],
    ),
    "strength": Case(
        good=(
            {"context": say("hi"), "response1": "a", "response2": "b", "overall_preference": -2},
            {"context": say("ho"), "response1": "a", "response2": "b", "overall_preference": 0},
        ),
        broken={"context": say("h"), "response1": "a", "response2": "b", "overall_preference": "b"},
        error=LabelError,
        text="f.jsonl:3: `overall_preference` is the text 'b'; expected a finite number, or null where "
        "it is missing",
        n_answers=4,
        n_pairs=1,
        n_lists=1,
        options={"strength_sign": "negative_first"},
        scores={"response1": 1.0, "response2": 2.0},
    ),
    "preference": Case(
        good=(
            {"prompt": "hi", "chosen": "a", "rejected": "b", "margin": 0.5},
            {"prompt": "ho", "chosen": say("ho", "a"), "rejected": [say("", "b")[1]]},
        ),
        broken={"prompt": "he", "chosen": say("ha", "a"), "rejected": "b"},
        error=DataError,
        text="f.jsonl:3: `chosen` has 1 messages before its answer that are not those of `prompt`; "
        "expected the same messages, or the answer alone. Leave out one of the two",
        n_answers=4,
        n_pairs=2,
        scores={"chosen": 1.0, "rejected": 2.0},
    ),
    "reference": Case(
        good=(
            {"prompt": "hi", "reference": "r", "chosen": "a", "rejected": "b"},
            {"prompt": "ho", "reference": "s", "chosen": "a", "rejected": "b"},
        ),
        broken={"prompt": "he", "reference": "", "chosen": "a", "rejected": "b"},
        error=DataError,
        text="f.jsonl:3: `reference` is empty; expected a good answer to compare with. Leave the column "
        "out where there is none",
        n_answers=4,
        n_pairs=2,
        scores={"chosen": 1.0, "rejected": 2.0},
    ),
    "preference_implicit": Case(
        good=(
            {"chosen": say("hi", "a"), "rejected": say("hi", "b")},
            {
                "chosen": "\n\nHuman: ho\n\nAssistant: a",
                "rejected": "\n\nHuman: ho\n\nAssistant: b",
            },
        ),
        broken={"chosen": say("hi", "a", "more"), "rejected": say("hi", "b")},
        error=DataError,
        text="f.jsonl:3: the last message of `chosen` is from 'user'; expected the assistant, whose "
        "last turn is judged. Cut the conversation behind an assistant turn",
        n_answers=4,
        n_pairs=2,
        scores={"chosen": 1.0, "rejected": 2.0},
    ),
    "unpaired": Case(
        good=(
            {"prompt": "hi", "completion": "a", "label": "C"},
            {"question": "hi", "response": [say("", "b")[1]], "label": None},
        ),
        broken={"prompt": "hi", "response": "c", "label": 0.5},
        error=LabelError,
        text="f.jsonl:3: `label` is the number 0.5; expected true or false, 1 or 0, 'true', 'True', "
        "'false', 'False', 'C', 'I', or null where it is missing. Grades on a longer scale are read "
        "with --format pointwise --attribute NAME",
        n_answers=2,
        labels=(1.0, math.nan),
        scores=1.0,
    ),
    "unlabelled": Case(
        good=({"prompt": "hi", "response": "a"}, {"prompt": say("hi"), "completion": "b"}),
        broken={"prompt": "hi", "response": 7},
        error=DataError,
        text="f.jsonl:3: `response` is the number 7; expected text",
        n_answers=2,
        labels=(math.nan, math.nan),
        scores=1.0,
    ),
    "samples": Case(
        good=(
            {"prompt": "def f():\n", "samples": ["    return 1", "    pass"]},
            {"prompt": "def g():\n", "samples": ["    return 2"], "correct": [True]},
        ),
        broken={"prompt": "def h():\n", "samples": "    return 3"},
        error=DataError,
        text="f.jsonl:3: `samples` is the text '    return 3'; expected a list with at least one "
        "answer",
        n_answers=3,
        labels=(math.nan, math.nan, 1.0),
        scores=[1.0, 2.0],
    ),
    "inspect": Case(
        good=(
            {
                "id": 1,
                "epoch": 1,
                "target": "4",
                "messages": say("2+2?", "4"),
                "output": {},
                "scores": {"match": {"value": "C", "answer": "4"}},
            },
            {"id": 1, "epoch": 2, "messages": say("2+2?", "5"), "output": {}, "scores": {}},
        ),
        broken={
            "id": 1,
            "epoch": 3,
            "messages": say("2+2?", "6"),
            "output": {},
            "scores": {"match": {"value": "P"}},
        },
        error=LabelError,
        text="f.jsonl:3: `scores.match.value` is 'P', partly right; expected one of right, wrong or a "
        "number. Use another scorer: --attribute NAME",
        n_answers=2,
        labels=(1.0, math.nan),
        scores=1.0,
    ),
    "lm_eval": Case(
        good=(
            {
                "doc_id": 0,
                "doc": {"question": "2+2?"},
                "target": "4",
                "arguments": {"gen_args_0": {"arg_0": "Q: 2+2?\nA:", "arg_1": {"until": ["Q:"]}}},
                "resps": [[" 4"]],
                "filtered_resps": ["4"],
                "filter": "none",
                "metrics": ["exact_match"],
                "exact_match": 1.0,
            },
            {"doc": {}, "arguments": [["Q: 3+3?", {}]], "resps": [["6", "7"]]},
        ),
        broken={"doc": {}, "arguments": [["Q: 3+3?", {}]], "resps": [[["-1.5", "False"]], [[]]]},
        error=DataError,
        text="f.jsonl:3: `resps` holds 2 requests; expected one that generates text. Multiple choice "
        "by log-likelihood has no answers to judge: use a generative variant of the task",
        n_answers=3,
        labels=(1.0, math.nan, math.nan),
        scores=[1.0],
    ),
    "messages": Case(
        good=(
            {"messages": say("hi", "a"), "label": True},
            {"conversations": [{"from": "human", "value": "ho"}, {"from": "gpt", "value": "b"}]},
        ),
        broken={"messages": [{"role": "human", "content": "hi"}, say("", "b")[1]]},
        error=DataError,
        text="f.jsonl:3: `messages[0]` has the unknown role 'human'; expected a known one. "
        "Choose from: system, developer, user, assistant, tool.",
        n_answers=2,
        labels=(1.0, math.nan),
        scores=1.0,
    ),
}
REFUSED = {
    "stepwise": (
        {"prompt": "p", "completions": ["x", "y"], "labels": [True, False]},
        "f.jsonl:1: got step labels (`completions` with `labels`), which are not read; expected one "
        "label an answer. Train on steps with retrm finetune --kind steps; or join them into "
        "`response` and write one `label`: whether all steps are right",
    ),
}


def write(folder, *rows):
    path = folder / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_format_has_a_case():
    assert CASES.keys() | REFUSED.keys() == FORMATS.keys()
    assert {name for name, known in FORMATS.items() if not known.is_readable} == REFUSED.keys()


@pytest.mark.parametrize("name", CASES)
def test_good_rows_are_detected_and_give_the_table(tmp_path, name):
    case = CASES[name]
    for row in case.good:
        assert detect(Record(row, "row"), Options(**case.options)) == name
    table = load_table(write(tmp_path, *case.good), **case.options)
    assert (len(table), len(table.pairs), len(table.ranked)) == (
        case.n_answers,
        case.n_pairs,
        case.n_lists,
    )
    labels = case.labels or (math.nan,) * case.n_answers
    assert table.labels.tolist() == pytest.approx(labels, nan_ok=True)
    assert table.counts["records"] == 2


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("format", ["auto", "named"])
def test_the_broken_row_is_refused_in_these_words(tmp_path, name, format):
    case = CASES[name]
    path = write(tmp_path, *case.good, case.broken)
    with pytest.raises(case.error) as caught:
        load_table(path, format="auto" if format == "auto" else name, **case.options)
    assert str(caught.value) == case.text
    assert type(caught.value) is case.error


@pytest.mark.parametrize("name", CASES)
def test_scores_go_back_in_the_shape_of_the_record(tmp_path, name):
    case = CASES[name]
    _, parsed = next(iter_parsed(write(tmp_path, *case.good), **case.options))
    scores = [float(i) for i in range(1, len(parsed.answers) + 1)]
    assert parsed.score_value(scores) == case.scores
    assert parsed.format == name
    with pytest.raises(DataError, match=rf"got {len(scores) + 1} scores; expected {len(scores)}"):
        parsed.score_value([*scores, 0.0])


@pytest.mark.parametrize("name", CASES)
def test_a_missing_column_is_named_and_the_nearest_one_offered(tmp_path, name):
    case = CASES[name]
    needed = next(c for c in case.good[0] if c in FORMATS[name].needs[-1])
    misspelt = needed[:-1] + "x"
    row = {misspelt if c == needed else c: value for c, value in case.good[0].items()}
    options = {k: v for k, v in case.options.items() if k != "attribute"}
    with pytest.raises(FormatError) as caught:
        load_table(write(tmp_path, row), format=name, **options)
    if name == "pointwise":
        # Another attribute is still there, so what is missing is the choice of an objective.
        assert "no objective" in str(caught.value)
        return
    assert f"f.jsonl:1: format {name!r} needs" in str(caught.value)
    assert f"Did you mean {needed!r} where the file says {misspelt!r}?" in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_known_formats_that_are_not_read_say_so(tmp_path, name):
    row, text = REFUSED[name]
    with pytest.raises(FormatError) as caught:
        load_table(write(tmp_path, row))
    assert str(caught.value) == text
