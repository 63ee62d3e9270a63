"""Logs of other harnesses, and graded answers of any format, as rollouts for best-of-N."""

import json

import numpy as np
import pytest
from command_line import run

from retrm.data.load import build_table, load_table
from retrm.data.read import Record, read_records, records_of
from retrm.data.rollouts import rollouts_of, with_text
from retrm.errors import DataError, FormatError, LabelError
from retrm.evaluation.benchmarks import benchmark, names
from retrm.evaluation.benchmarks.source import Source


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def sample(id=1, epoch=1, text="4", value="C", **fields):
    """One sample of one epoch, as Inspect 0.3 writes it."""
    return {
        "id": id,
        "epoch": epoch,
        "input": "2+2?",
        "target": "4",
        "messages": [
            turn("system", "Be brief."),
            turn("user", "2+2?", source="input"),
            turn("assistant", text, source="generate"),
        ],
        "output": {"completion": text},
        "scores": {"match": {"value": value, "answer": text[-1]}},
        "events": [{"large": True}],
        **fields,
    }


def log(path, *samples, status="success"):
    whole = {"version": 2, "status": status, "eval": {}, "samples": list(samples)}
    path.write_text(json.dumps(whole, indent=2))
    return path


def table(*samples, **options):
    return build_table([Record(row, f"s{i}") for i, row in enumerate(samples)], **options)


# ---------------------------------------------------------------------------------------- Inspect


def test_epochs_of_a_sample_are_candidates_of_one_prompt(tmp_path):
    made = load_table(
        log(
            tmp_path / "log.json",
            sample(1, 1, "It is 4"),
            sample("b", 1, "It is 5", "I"),
            sample(1, 2, "It is 5", "I"),
        )
    )
    assert [answer.prompt_id for answer in made.answers] == ["1", "b", "1"]
    assert made.labels.tolist() == [1, 0, 0]
    assert [answer.key for answer in made.answers] == ["4", "5", "5"]
    assert made.gold == {"1": "4", "b": "4"}
    assert [m.role for m in made.answers[0].prompt.messages] == ["system", "user"]
    assert made.answers[2].where == "log.json, sample 1 epoch 2"


def test_texts_that_a_log_stores_once_are_put_back(tmp_path):
    kept = sample(text="attachment://ab12", attachments={"ab12": "a long answer 4"})
    (record,) = read_records(log(tmp_path / "log.json", kept))
    assert record.fields["messages"][-1]["content"] == "a long answer 4"
    assert "events" not in record.fields


@pytest.mark.parametrize(
    ("value", "label"), [("C", 1), ("I", 0), ("N", 0), (True, 1), (0.25, 0.25), (None, np.nan)]
)
def test_values_of_inspect_s_scorers(value, label):
    assert table(sample(value=value)).labels.tolist() == pytest.approx([label], nan_ok=True)


@pytest.mark.parametrize("value", ["P", {"a": 1}, [1, 0]])
def test_a_value_that_is_no_single_outcome_is_refused(value):
    with pytest.raises(LabelError, match=r"s0: `scores.match.value` is .*; expected one of right"):
        table(sample(value=value))


def test_of_several_scorers_one_must_be_named():
    row = sample(scores={"match": {"value": "C"}, "model": {"value": "I"}})
    with pytest.raises(FormatError, match=r"got scores of match, model; .* --attribute match"):
        table(row)
    assert table(row, attribute="model").labels.tolist() == [0]
    with pytest.raises(FormatError, match=r"no scorer 'modl'. Did you mean 'model'"):
        table(row, attribute="modl")


def test_an_agent_s_own_turns_are_no_part_of_the_prompt():
    def tried(epoch, n):
        turns = sample(epoch=epoch)["messages"][:2]
        for i in range(n):
            turns.append(turn("assistant", f"try {i}", source="generate"))
            turns.append(turn("user", "go on"))
        return sample(epoch=epoch, messages=[*turns, turn("assistant", "4", source="generate")])

    made = table(tried(1, 0), tried(2, 3))
    assert len(made.candidate_sets()) == 1
    assert made.counts["turns_left_out"] == 6


def test_reasoning_is_no_text_of_an_answer():
    parts = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "4"}]
    made = table(sample(messages=[turn("user", "2+2?"), turn("assistant", parts)]))
    assert made.answers[0].response == "4"
    assert made.counts["reasoning_left_out"] == 1


def test_samples_and_logs_without_an_answer_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"s0: the sample ended in an error; .* inspect eval-retry"):
        table(sample(error={"message": "no network"}))
    with pytest.raises(DataError, match=r"has no samples \(its status is 'cancelled'\)"):
        load_table(log(tmp_path / "log.json", status="cancelled"))
    (tmp_path / "half.json").write_text('{\n  "version": 2,\n  "status": "started", "sam')
    with pytest.raises(DataError, match=r"half.json: not a whole Inspect log"):
        load_table(tmp_path / "half.json")
    (tmp_path / "log.eval").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"inspect log convert log.eval --to json"):
        load_table(tmp_path / "log.eval")


# ----------------------------------------------------------------------------------------- lm-eval


def line(text="4", value=1.0, *, filter="none", **fields):
    """One line of a sample file of lm-evaluation-harness 0.4.13."""
    return {
        "doc_id": 0,
        "doc": {"question": "2+2?"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": "Q: 2+2?\nA:", "arg_1": {"until": ["Q:"]}}},
        "resps": [[text]],
        "filtered_resps": [text.strip()],
        "filter": filter,
        "metrics": ["exact_match"],
        "exact_match": value,
        **fields,
    }


def test_a_line_of_lm_eval_is_an_answer_with_its_metric():
    made = table(line(" 4"))
    assert made.answers[0].prompt.messages[0].content == "Q: 2+2?\nA:"
    assert (made.answers[0].response, made.answers[0].key) == (" 4", "4")
    assert made.labels.tolist() == [1]
    assert list(made.gold.values()) == ["4"]


def test_which_filter_is_meant_must_be_said_since_each_repeats_the_answers():
    rows = [line(filter="strict-match", value=0.0), line(filter="flexible-extract", value=1.0)]
    with pytest.raises(FormatError, match="--attribute exact_match,strict-match"):
        table(*rows)
    made = table(*rows, attribute="exact_match,flexible-extract")
    assert made.labels.tolist() == [1]
    assert made.counts["dropped_other_filter"] == 1


def test_repeats_are_candidates_without_labels_since_the_metric_is_of_the_document():
    made = table(line(resps=[["4", "5", "4"]], filtered_resps=[["4", "5", "4"]]))
    assert len(made) == 3
    assert np.isnan(made.labels).all()
    assert [answer.key for answer in made.answers] == ["4", "5", "4"]
    cut = table(line(resps=[["4", "5"]], filtered_resps=["4"]))
    assert [answer.key for answer in cut.answers] == [None, None]


def test_messages_of_a_chat_endpoint_are_read_as_messages():
    chat = json.dumps([turn("system", "s"), turn("user", "2+2?")])
    made = table(line(arguments={"gen_args_0": {"arg_0": chat, "arg_1": {}}}))
    assert [m.role for m in made.answers[0].prompt.messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"resps": [[["-1.5", "False"]]]}, DataError, "`resps[0]` holds log-likelihoods"),
        ({"arguments": [["<|im_start|>user\nQ", {}]]}, DataError, "rendered already"),
        ({"metrics": ["a", "b"], "a": 1, "b": 0}, FormatError, "got the metrics a, b"),
        ({"metrics": ["acc"]}, FormatError, "there is no metric 'acc'"),
    ],
)
def test_lines_that_cannot_be_judged_are_refused(fields, error, text):
    with pytest.raises(error) as caught:
        table(line(**fields))
    assert text in str(caught.value)


# ---------------------------------------------------------------------------------------- rollouts


def test_rollouts_of_single_answers_meet_by_prompt_and_read_back_the_same():
    rows = [
        {"prompt": "2+2?", "response": "4", "label": 1},
        {"prompt": [turn("system", "s"), turn("user", "3?")], "response": "3", "label": None},
        {"prompt": "2+2?", "response": "5", "label": 0},
    ]
    made = build_table(records_of(rows))
    found = list(rollouts_of(made))
    assert [row["responses"] for row in found] == [["4", "5"], ["3"]]
    assert found[0]["prompt"] == "2+2?"
    assert found[0]["correct"] == [True, False]
    assert "correct" not in found[1]
    again = build_table(records_of(found))
    assert [a.prompt_id for a in again.answers] == [made.answers[i].prompt_id for i in (0, 2, 1)]
    assert again.labels.tolist() == pytest.approx([1, 0, np.nan], nan_ok=True)


def test_preferences_and_grades_are_no_rollouts():
    pair = build_table(records_of([{"prompt": "p", "chosen": "a", "rejected": "b"}]))
    with pytest.raises(DataError, match="got preferences or ranked lists"):
        list(rollouts_of(pair))
    rated = table(sample(value=0.25))
    with pytest.raises(LabelError, match=r"got the label 0.25; expected 1 \(right\) and 0"):
        list(rollouts_of(rated))


def test_candidates_without_a_text_are_set_aside_with_all_that_belongs_to_them():
    rows = [
        {"prompt": "p", "samples": ["a", " ", "b"], "correct": [1, 0, 0], "keys": ["a", None, "b"]},
        {"prompt": "q", "responses": ["", "\n"]},
        {"prompt": "r", "responses": ["", "c"], "token_ids": [[2], [5, 2]]},
        {"prompt": "s", "response": ""},
    ]
    kept, n = with_text(records_of(rows))
    assert n == 3
    assert kept[0].fields == {
        "prompt": "p",
        "samples": ["a", "b"],
        "correct": [1, 0],
        "keys": ["a", "b"],
    }
    # An end token alone can be judged, and other formats have their own rule.
    assert [record.fields for record in kept[1:]] == rows[2:]


def test_best_of_n_reads_samples_and_counts_empty_candidates():
    rows = [
        {"prompt": "p", "samples": ["a", "", "b"], "correct": [1, 0, 0]},
        {"prompt": "q", "samples": ["a", "b"], "correct": [0, 1]},
    ]
    read = benchmark("best_of_n").read(Source.of({"f": rows}))
    assert [item.facts["labels"] for item in read.items] == [[1, 0], [0, 1]]
    assert read.excluded == {"candidates without a text": 1}


def test_convert_writes_what_best_of_n_reads(tmp_path, capsys):
    file = log(tmp_path / "log.json", *(sample(1, e, f"so {e}", "CI"[e - 1]) for e in (1, 2)))
    assert not run("data", "convert", file, "-o", tmp_path / "r.jsonl")
    assert "answers 2" in capsys.readouterr().err
    read = benchmark("best_of_n").read(
        Source.of({"r": [r.fields for r in read_records(tmp_path / "r.jsonl")]})
    )
    assert read.items[0].facts == {"labels": [1, 0], "keys": ["1", "2"]}


def test_benchmarks_are_listed_with_their_homes_and_papers(capsys):
    assert not run("data", "benchmarks", "--json")
    found = json.loads(capsys.readouterr().out)
    assert list(found) == names()
    for name, about in found.items():
        assert all(about[key] for key in ("title", "files", "paper"))
        assert about["hub"] == list(benchmark(name).hub)
    assert not run("data", "benchmarks")
    shown = capsys.readouterr().out
    assert all(about["title"] in shown and about["paper"] in shown for about in found.values())
