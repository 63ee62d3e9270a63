"""`retrm eval`, in process: what a person types, what lies in the folder, what is refused."""

import json
from pathlib import Path

import pytest
from command_line import run
from pages import Reader

N = 12
BASELINES = ("longest", "random", "shortest")
WHOLE = ("longest", "--benchmark", "best_of_n", "--data", "DATA", "-o", "OUT")


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory) -> Path:
    """Twelve questions x 4 answers, the first right; it is the longest in eight of them."""
    path = tmp_path_factory.mktemp("data") / "rollouts.jsonl"
    with path.open("w") as file:
        for p in range(N):
            right = "yes" * (3 if p < 8 else 1)
            row = {
                "prompt_id": f"q{p}",
                "prompt": f"question {p} </script><img src=x onerror=alert(1)>",
                "responses": [right, "no 1.", "no 22", "no 33"],
                "correct": [True, False, False, False],
            }
            file.write(json.dumps(row) + "\n")
    return path


def typed(rollouts: Path, *scorers: object) -> tuple[object, ...]:
    return (*("eval", *scorers), "--benchmark", "best_of_n", "--data", rollouts)


@pytest.fixture(scope="module")
def model(rollouts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rm")
    assert run("fit", rollouts, "--model", "fake", "-o", folder / "rm") == 0
    return folder / "rm"


@pytest.fixture(scope="module")
def done(rollouts, tmp_path_factory) -> Path:
    """A run of one baseline as the scorer."""
    output = tmp_path_factory.mktemp("done") / "run"
    assert run(*typed(rollouts, "longest"), "-o", output) == 0
    return output


def result(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text("utf-8"))


def headlines(found: dict) -> dict[str, dict]:
    (table,) = found["benchmarks"]
    return {row["scorer"]: row for row in table["rows"] if row["is_headline"]}


def test_a_run_leaves_scores_items_figures_and_both_reports(done) -> None:
    names = {path.relative_to(done).as_posix() for path in done.rglob("*") if path.is_file()}
    assert names == {
        "evaluation.json",
        "report.html",
        "report.md",
        "items/best_of_n.jsonl",
        "scores/run.json",
        *(
            f"{kind}"
            for s in BASELINES
            for kind in (f"answers/{s}.jsonl", f"scores/best_of_n.{s}.jsonl")
        ),
    }
    rows = headlines(result(done))
    # The right answer has 9 characters in 8 of 12 questions, else 3; the others have 5.
    assert rows["longest"]["value"]["value"] == pytest.approx(8 / 12)
    assert rows["shortest"]["value"]["value"] == pytest.approx(4 / 12)
    assert (rows["longest"]["kind"], rows["shortest"]["kind"]) == ("scorer", "baseline")


def test_scores_alone_give_the_same_figures_byte_for_byte(done, tmp_path) -> None:
    assert run("eval", "--scores", done, "-o", tmp_path / "again") == 0
    again = (tmp_path / "again" / "evaluation.json").read_bytes()
    assert again == (done / "evaluation.json").read_bytes()
    card = [(folder / "report.md").read_text("utf-8") for folder in (done, tmp_path / "again")]
    assert card[0] == card[1]


def test_the_order_of_the_files_does_not_matter(done, tmp_path) -> None:
    files = sorted((done / "scores").glob("*.jsonl"), reverse=True)
    assert run("eval", "--scores", *files, "-o", tmp_path / "again") == 0
    again = result(tmp_path / "again")
    assert again["benchmarks"] == result(done)["benchmarks"]


def test_the_same_command_again_scores_nothing_and_gives_the_same(done, rollouts, capsys) -> None:
    before = (done / "evaluation.json").read_bytes()
    assert run(*typed(rollouts, "longest"), "-o", done) == 0
    assert "scoring" not in capsys.readouterr().err
    assert (done / "evaluation.json").read_bytes() == before


def test_runs_that_share_baselines_are_measured_together(
    done, rollouts, tmp_path, monkeypatch
) -> None:
    (tmp_path / "vowels.py").write_text(
        "def count(prompts, responses):\n    return [sum(c in 'aeiou' for c in r) for r in responses]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    other = tmp_path / "other"
    assert run(*typed(rollouts, "call:vowels:count"), "-o", other) == 0
    assert run("eval", "--scores", done, other, "-o", tmp_path / "both") == 0
    rows = headlines(result(tmp_path / "both"))
    assert sorted(rows) == ["call:vowels:count", "longest", "random", "shortest"]


def test_a_head_is_put_beside_its_log_probability_and_shown_token_by_token(
    model, rollouts, tmp_path, capsys
) -> None:
    output = tmp_path / "run"
    code = run(*typed(rollouts, model), "-o", output, "--mistakes", 2, "--training-data", rollouts)
    printed = capsys.readouterr()
    assert code == 0
    assert " rm  " in printed.out  # the end of its path
    assert "…" not in printed.out
    assert "minus log-probability" in printed.out
    assert "12 of 12 items stand in rollouts.jsonl" in " ".join(printed.err.split())
    found = result(output)
    assert list(headlines(found)) == [str(model), "log_probability", *BASELINES]
    assert found["contamination"]["best_of_n"]["n_equal_prompts"] == 12
    page = (output / "report.html").read_text("utf-8")
    shown = found["findings"][0]["mistakes"]["shown"]
    text = Reader(page).text
    assert "<img src=x" not in page
    assert "12 of 12 items stand in rollouts.jsonl" in text
    assert page.count("Colour:") == len(shown) <= 2
    assert "options.training_data" in text


def test_a_limit_is_said_wherever_figures_are_read(rollouts, tmp_path, capsys) -> None:
    output = tmp_path / "run"
    assert run(*typed(rollouts, "longest"), "-o", output, "--limit", 5) == 0
    note = "Only 5 of 12 items, at most 5 of a subset."
    assert note in capsys.readouterr().out
    assert note in Reader((output / "report.html").read_text("utf-8")).text
    assert note in (output / "report.md").read_text("utf-8")
    assert result(output)["benchmarks"][0]["n_items"] == 5


def test_the_password_of_a_server_stands_in_no_file(rollouts, tmp_path) -> None:
    from fake_engine import engine

    def script(_: int, body: dict) -> tuple[int, dict[str, str], bytes]:
        said = {"data": [{"probs": [float(len(body["messages"][-1]["content"]))]}]}
        return 200, {}, json.dumps(said).encode()

    with engine(script) as server:
        spec = "vllm:" + server.url.replace("://", "://user:hunter2@")
        assert run(*typed(rollouts, spec), "-o", tmp_path / "run") == 0
    assert (tmp_path / "run" / "evaluation.json").is_file()
    for path in tmp_path.rglob("*"):
        assert "hunter2" not in str(path)
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


def test_items_of_the_training_data_are_left_out_of_a_figure_in_a_note(
    done, rollouts, tmp_path
) -> None:
    training = tmp_path / "train.jsonl"
    lines = rollouts.read_text().splitlines()
    training.write_text("\n".join(lines[:3]) + "\n")
    output = tmp_path / "run"
    assert run("eval", "--scores", done, "--training-data", training, "-o", output) == 0
    (table,) = result(output)["benchmarks"]
    assert any("on the 9 items that do not stand in the training" in n for n in table["notes"])


def test_json_is_one_object_with_what_the_file_holds(done, rollouts, capsys) -> None:
    assert run(*typed(rollouts, "longest"), "-o", done, "--json") == 0
    assert json.loads(capsys.readouterr().out) == result(done)


def test_figures_without_a_folder_are_printed(done, capsys) -> None:
    assert run("eval", "--scores", done) == 0
    printed = capsys.readouterr()
    assert "accuracy@all 4 ◀" in printed.out
    assert ".667 [" in printed.out
    assert "report.html" not in printed.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["longest"], "got no --benchmark NAME"),
        (["--benchmark", "best_of_n"], "got no scorer"),
        (["longest", "--benchmark", "best_of"], "Did you mean 'best_of_n'?"),
        (["longest", "--benchmark", "best_of_n", "--data", "DATA"], "add -o DIR"),
        (["longest", "--benchmark", "best_of_n", "-o", "OUT"], "has no home on the hub"),
        (["longest", "--benchmark", "best_of_n", "--data", "DATA", "-o", "DATA"], "is a file"),
        (
            [*WHOLE, "--limit", "0"],
            "got a limit of 0 items",
        ),
        (
            [*WHOLE, "--mistakes", "-1"],
            "got --mistakes -1",
        ),
        (
            [*WHOLE, "--overlong", "skp"],
            "Did you mean 'skip'?",
        ),
        (
            [*WHOLE, "--baselines", "longst"],
            "Did you mean 'longest'?",
        ),
        (
            ["nobody", "--benchmark", "best_of_n", "--data", "DATA", "-o", "OUT"],
            "no scorer 'nobody'",
        ),
        (["longest", "--scores", "DATA"], "leave scorers and --benchmark out"),
        (["--scores", "DATA"], "no file of scores of version 1"),
        (["--scores", "EMPTY"], "holds no files of scores"),
        (
            ["--scores", "MISSPELT"],
            "one of its files of scores, scores/BENCHMARK.SCORER.jsonl. Did",
        ),
        ([*WHOLE, "--threshold", "0.5"], "but Best of N holds scores against no number"),
        (["--scores", "SCORES", "--threshold", "0.5"], "holds scores against no number"),
        (["--benchmark", "best_of_n", "--baselines", "longest", "x"], "so name the scorers first"),
        (["--scores", "SCORES", "--training-data", "DATA"], "needs the texts of the benchmark"),
    ],
)
def test_a_mistake_says_what_to_do_and_exits_with_2(
    arguments, words, done, rollouts, tmp_path, capsys
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "DATA": rollouts,
        "OUT": tmp_path / "out",
        "EMPTY": tmp_path / "empty",
        "SCORES": done / "scores",
        "MISSPELT": done / "scores" / "best_of_n.longst.jsonl",
    }
    assert run("eval", *(places.get(text, text) for text in arguments)) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "report.html").exists()


def test_no_figure_of_many_scorers_is_cut_short_on_a_terminal(
    done, rollouts, tmp_path, capsys
) -> None:
    files = []
    for number in range(4):
        path = tmp_path / f"{number}.jsonl"
        head, *rows = (done / "scores" / "best_of_n.longest.jsonl").read_text("utf-8").splitlines()
        named = {**json.loads(head), "scorer": f"runs/a reward model with a long name {number}"}
        path.write_text("\n".join([json.dumps(named), *rows]) + "\n")
        files.append(path)
    assert run("eval", "--scores", *files) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert printed.count(".667") >= 4


def test_what_is_read_is_said_with_its_place_and_equal_answers(tmp_path, capsys) -> None:
    """Three answers, two of them equal: two are scored."""
    path = tmp_path / "[red]x.jsonl"
    rows = [
        {"prompt": "1 + 1?", "responses": ["2", "2", "3"], "correct": [True, True, False]},
        {"prompt": "1 + 2?", "responses": ["2", "3", ""], "correct": [False, True, False]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert run(*typed(path, "longest"), "-o", tmp_path / "run", "--mistakes", 0) == 0
    printed = capsys.readouterr().err
    said = " ".join(printed.split())
    assert "Best of N: 2 items, 5 answers, 4 of them different: equal ones are scored once" in said
    assert f"from{path}" in "".join(printed.split())  # a long path is broken over lines
    assert "Best of N: 1 left out: candidates without a text" in said


def test_a_threshold_reaches_the_figures_also_from_files(tmp_path, capsys) -> None:
    from dataclasses import replace as with_

    from score_files import file, row

    from retrm.evaluation.score_file import write_scores

    rows = [
        row(
            f"gsm8k-{i}",
            [0.9, 0.1 if i % 2 else 0.8],
            subset="gsm8k",
            facts={"label": 1 if i % 2 else -1, "final_answer_correct": not i % 2},
        )
        for i in range(4)
    ]
    path = tmp_path / "a.jsonl"
    write_scores(path, with_(file("a", rows, "process_bench")))
    found = []
    for more in ((), ("--threshold", "0.5")):
        assert run("eval", "--scores", path, "--json", *more) == 0
        found.append(headlines(json.loads(capsys.readouterr().out))["a"]["value"]["value"])
    assert found == [0, 1]
