"""`retrm calibrate`: a length curve from the command line, and what it refuses before a model is loaded."""

import json

import pytest
from command_line import run
from mixed import mixed_model

from retrm.scorers.open import open_scorer


def written(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def reference(tmp_path):
    """Forty answers of 1 to 40 characters."""
    rows = ({"prompt": f"q{k}", "response": "x" * k} for k in range(1, 41))
    return written(tmp_path / "ref.jsonl", *rows)


def test_a_scorer_that_is_the_length_itself_keeps_nothing(reference, tmp_path, capsys) -> None:
    output = tmp_path / "c.json"
    assert run("calibrate", "longest", reference, "-o", output, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert run("score", f"calibrated:{output}", reference, "-o", tmp_path / "s.jsonl") == 0
    scores = [json.loads(line)["score"] for line in (tmp_path / "s.jsonl").read_text().splitlines()]

    assert scores == pytest.approx([0.0] * 40, abs=1e-6)
    assert said["n_answers"] == 40
    assert (said["shortest"], said["longest"]) == (1, 40)
    assert said["length_correlation"] == pytest.approx(1.0)
    assert said["length_correlation_after"] is None  # nothing but rounding is left


def test_a_reward_model_is_calibrated_counted_and_known_again(reference, tmp_path, capsys) -> None:
    mixed_model().save(tmp_path / "rm")
    rows = [json.loads(line) for line in reference.read_text().splitlines()]
    extra = [{"prompt": "q", "response": ""}, {"prompt": "q", "response": "y" * 3000}]
    data = written(tmp_path / "more.jsonl", *rows, *extra)
    options = ("--shape", "linear", "--empty", "drop", "--overlong", "skip", "--json")
    output = tmp_path / "c.json"
    assert run("calibrate", tmp_path / "rm", data, "-o", output, *options) == 0
    said = json.loads(capsys.readouterr().out)
    stored = json.loads(output.read_text())

    assert (said["n_answers"], said["n_empty"], said["n_skipped"]) == (40, 1, 1)
    assert (stored["n_answers"], stored["source"], stored["shape"]) == (40, "more.jsonl", "linear")
    assert stored["scorer"] == str(tmp_path / "rm")
    assert said["length_correlation_after"] != said["length_correlation"]
    # Other weights in the same folder are another scorer.
    mixed_model(seed=1).save(tmp_path / "rm")
    with pytest.raises(Exception, match="holds the length curve of another"):
        open_scorer(f"calibrated:{output}")


@pytest.mark.parametrize(
    ("scorer", "options", "words"),
    [
        ("nowhere", ("--shape", "smoth"), "got shape 'smoth'; expected one of smooth, linear"),
        ("retrm:http://me:secret@host:1", (), "was given with a user and password"),
        ("nowhere", ("--overlong", "cut"), "overlong"),
        ("nowhere", (), "there is no scorer 'nowhere'"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    reference, tmp_path, capsys, scorer, options, words
) -> None:
    output = tmp_path / "c.json"
    assert run("calibrate", scorer, reference, "-o", output, *options) == 2
    said = capsys.readouterr().err

    assert words in " ".join(said.split())
    assert "secret" not in said
    assert not output.exists()


def test_too_few_answers_are_told_before_a_scorer_is_opened(tmp_path, capsys) -> None:
    few = written(
        tmp_path / "few.jsonl", *({"prompt": "q", "response": "x" * k} for k in (1, 2, 3))
    )
    assert run("calibrate", "nowhere", few, "-o", tmp_path / "c.json") == 2

    said = " ".join(capsys.readouterr().err.split())
    assert (
        "got 3 answers of 3 different lengths; a smooth length curve expected at least 30" in said
    )
    assert "or use --shape linear" in said


def test_answers_of_one_length_have_no_curve(tmp_path, capsys) -> None:
    same = written(
        tmp_path / "s.jsonl", *({"prompt": f"q{k}", "response": "ab"} for k in range(40))
    )
    assert run("calibrate", "longest", same, "-o", tmp_path / "c.json") == 2

    said = " ".join(capsys.readouterr().err.split())
    assert "got 40 answers of 1 different lengths" in said
    assert "--shape linear" not in said
