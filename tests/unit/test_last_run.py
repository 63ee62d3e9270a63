"""A folder of `retrm eval` that is used again stands for its last run, and for nothing else."""

import json
from pathlib import Path

import pytest
from command_line import run

from retrm.errors import DataError
from retrm.evaluation import run as run_module
from retrm.evaluation.benchmarks import benchmark
from retrm.evaluation.benchmarks.source import open_source
from retrm.evaluation.last_run import files_of_run, write_run
from retrm.evaluation.run import entrants_of, evaluate
from retrm.scorers.base import Scorer
from retrm.scorers.baseline import LengthScorer

N = 6


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory) -> Path:
    """Six questions with two answers each; the right one is longer in the first four."""
    path = tmp_path_factory.mktemp("data") / "rollouts.jsonl"
    with path.open("w") as file:
        for p in range(N):
            row = {
                "prompt_id": f"q{p}",
                "prompt": f"question {p}",
                "responses": ["yes yes" if p < 4 else "y", "no."],
                "correct": [True, False],
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def twice(rollouts, tmp_path_factory) -> Path:
    """Two scorers on all six questions, then one of them on three of the questions."""
    folder = tmp_path_factory.mktemp("run") / "run"
    items = benchmark("best_of_n").read(open_source(rollouts, name="best_of_n"))
    evaluate(entrants_of(scorers(), ("random",)), [items], folder)
    typed = ("--benchmark", "best_of_n", "--data", rollouts, "--baselines", "random", "-o", folder)
    assert run("eval", "longest", *typed, "--limit", 3) == 0
    return folder


def scorers() -> dict[str, Scorer]:
    return {name: LengthScorer(prefers=name) for name in ("longest", "shortest")}


def test_scores_of_a_folder_are_exactly_those_of_its_last_run(twice, tmp_path, capsys) -> None:
    assert run("eval", "--scores", twice, "-o", tmp_path / "again") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "left out, since they are not of the last run: best_of_n.shortest.jsonl" in said
    again = (tmp_path / "again" / "evaluation.json").read_bytes()
    assert again == (twice / "evaluation.json").read_bytes()
    (table,) = json.loads(again)["benchmarks"]
    assert table["n_items"] == 3
    assert {row["scorer"] for row in table["rows"]} == {"longest", "random"}


def test_compare_takes_the_last_run_of_a_folder(twice, capsys) -> None:
    assert run("compare", twice, "--baselines", "--json") == 0
    printed = capsys.readouterr()
    (found,) = json.loads(printed.out)["comparisons"]
    assert (found["first"], found["second"], found["n_items"]) == ("longest", "random", 3)
    assert "best_of_n.shortest.jsonl" in " ".join(printed.err.split())


def test_an_earlier_file_is_still_there_for_who_names_it(twice) -> None:
    assert run("eval", "--scores", twice / "scores" / "best_of_n.shortest.jsonl") == 0


def folder_of(path: Path, *names: str) -> Path:
    (path / "scores").mkdir(parents=True)
    for name in names:
        (path / "scores" / name).write_text("{}\n")
    return path


def test_a_folder_without_a_list_stands_for_all_its_files(tmp_path) -> None:
    folder = folder_of(tmp_path / "run", "b.x.jsonl", "a.x.jsonl")
    taken, left = files_of_run(folder)
    assert [path.name for path in taken] == ["a.x.jsonl", "b.x.jsonl"]
    assert left == []
    assert files_of_run(folder / "scores")[0] == taken


def test_the_list_decides_also_where_its_folder_itself_is_named(tmp_path) -> None:
    folder = folder_of(tmp_path / "run", "b.x.jsonl", "a.x.jsonl")
    write_run(folder / "scores", ["b.x.jsonl"])
    for place in (folder, folder / "scores"):
        taken, left = files_of_run(place)
        assert [path.name for path in taken] == ["b.x.jsonl"]
        assert [path.name for path in left] == ["a.x.jsonl"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"retrm_run": 1, "files": []}', "was stopped while it wrote its scores"),
        ('{"retrm_run": 1, "files": ["gone.jsonl"]}', "gone.jsonl is gone; expected it"),
        ('{"retrm_run": 2, "files": ["a.x.jsonl"]}', "no list of files of version 1"),
        ('{"retrm_run": 1, "files": [3]}', "no list of files of version 1"),
        ('{"retrm_run": 1, ', "no list of files of version 1"),
    ],
)
def test_a_list_that_cannot_be_followed_is_refused(text, words, tmp_path) -> None:
    folder = folder_of(tmp_path / "run", "a.x.jsonl")
    (folder / "scores" / "run.json").write_text(text)
    with pytest.raises(DataError, match=words):
        files_of_run(folder)


def test_a_run_that_dies_while_writing_leaves_no_mixture(rollouts, tmp_path, monkeypatch) -> None:
    """The second file of two cannot be written: the first is of the new run already."""
    items = benchmark("best_of_n").read(open_source(rollouts, name="best_of_n"))
    evaluate(entrants_of(scorers(), ()), [items], tmp_path)
    write = run_module.write_scores

    def dies(path, file):
        if file.scorer == "shortest":
            raise KeyboardInterrupt
        write(path, file)

    monkeypatch.setattr(run_module, "write_scores", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(entrants_of(scorers(), ()), [items.some(2)], tmp_path)
    with pytest.raises(DataError, match="was stopped while it wrote"):
        files_of_run(tmp_path)
    monkeypatch.undo()
    evaluate(entrants_of(scorers(), ()), [items.some(2)], tmp_path)
    assert len(files_of_run(tmp_path)[0]) == 2


def test_a_run_that_dies_while_scoring_leaves_the_one_before_whole(rollouts, tmp_path) -> None:
    class Dies:
        name = identity = "dies"

        def score(self, answers):
            raise KeyboardInterrupt

    items = benchmark("best_of_n").read(open_source(rollouts, name="best_of_n"))
    evaluate(entrants_of(scorers(), ()), [items], tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json*") if path.is_file()}
    with pytest.raises(KeyboardInterrupt):
        evaluate(entrants_of({"dies": Dies()}, ()), [items.some(2)], tmp_path)
    assert before == {path: path.read_bytes() for path in before}
    assert len(files_of_run(tmp_path)[0]) == 2
