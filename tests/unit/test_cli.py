"""The command line, in process, on the toy backbone: what a person types and what comes out."""

import json
import os
import re
import runpy
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_line import run

from retrm.cli import sample as sampling
from retrm.cli.main import main
from retrm.errors import DataError, FitError, OutputError

DEMO = Path(__file__).parents[2] / "recipes" / "demo" / "run.py"


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    """Twelve questions x 4 answers; right ones end in an exclamation mark."""
    path = tmp_path_factory.mktemp("data") / "rollouts.jsonl"
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for p in range(12):
            right = generator.random(4) < 0.5
            right[:2] = [True, False]
            row = {
                "prompt_id": f"q{p}",
                "prompt": f"question {p}",
                "responses": [f"it is {k}{'!' if r else '.'}" for k, r in enumerate(right)],
                "correct": [bool(r) for r in right],
                "keys": [str(k) for k in range(4)],
                "note": "kept",
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def model(rollouts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm")
    assert run("fit", rollouts, "--model", "fake", "-o", folder / "rm") == 0
    return folder / "rm"


def test_fit_prints_the_table_with_baselines_and_a_three_line_example(rollouts, tmp_path, capsys):
    code = run(
        *("fit", rollouts, "--model", "fake", "-o", tmp_path / "m"),
        *("--method", "last_token", "--method", "retrm", "--subspace", "reasoning:4"),
    )
    printed = capsys.readouterr().out

    assert code == 0
    for name in ("last_token", "retrm", "log-probability", "shortest", "majority", "oracle"):
        assert name in printed
    assert 'rm = RewardModel.load("' in printed
    assert (tmp_path / "m" / "retrm" / "reward_model.json").exists()
    assert not (tmp_path / "m" / "features").exists()


def test_a_foreign_file_among_the_features_costs_no_figures_and_is_named(
    rollouts, tmp_path, monkeypatch, capsys
):
    from retrm.evaluation import held_out

    measure, notes = held_out.measure, tmp_path / "m" / "features" / "notes.txt"

    def measured(*arguments, **options):
        notes.write_text("mine")  # as a file manager does, while the answers are read
        return measure(*arguments, **options)

    monkeypatch.setattr(held_out, "measure", measured)
    code = run("fit", rollouts, "--model", "fake", "-o", tmp_path / "m")
    printed = capsys.readouterr()

    assert code == 0
    assert "last_token" in printed.out
    assert 'rm = RewardModel.load("' in printed.out
    assert "the features could not be deleted" in printed.err
    assert notes.read_text() == "mine"


def test_fit_as_json_is_one_object(rollouts, tmp_path, capsys):
    run("fit", rollouts, "--model", "fake", "-o", tmp_path / "m", "--json")
    value = json.loads(capsys.readouterr().out)

    rows = {row["name"]: row for row in value["metrics"]["rows"]}
    assert rows["last_token"]["kind"] == "head"
    assert set(rows["pass@1"]["best_of_n"]) >= {"value", "low", "high", "n"}


def test_a_killed_fit_goes_on_from_its_features(rollouts, tmp_path, monkeypatch, capsys):
    from retrm.store import shards

    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.setattr(
        "retrm.fitting.fit.fit_head", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert run("fit", rollouts, "--model", "fake", "-o", tmp_path / "m") == 130
    assert "what was finished is kept, run the same command to go on" in capsys.readouterr().err
    assert (tmp_path / "m" / "features" / "manifest.json").exists()
    monkeypatch.undo()

    read = []
    from retrm.backbone.fake import FakeBackbone

    monkeypatch.setattr(FakeBackbone, "forward", lambda *a, **k: read.append(1) or 1 / 0)
    # Only the self-test needs the model again: everything else comes from the store.
    with pytest.raises(ZeroDivisionError):
        main(["fit", str(rollouts), "--model", "fake", "-o", str(tmp_path / "m")])
    assert len(read) == 1


def test_score_keeps_every_row_in_order_with_a_score_added(model, rollouts, tmp_path):
    assert run("score", model, rollouts, "-o", tmp_path / "s.jsonl", "--model", "fake") == 0
    before = [json.loads(line) for line in rollouts.read_text().splitlines()]
    after = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]

    assert [{k: v for k, v in row.items() if k != "score"} for row in after] == before
    assert all(len(row["score"]) == 4 for row in after)


def test_score_of_no_rows_and_of_one_row(model, tmp_path, capsys):
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "q", "response": "a!"}) + "\n")

    assert run("score", model, tmp_path / "none.jsonl", "-o", tmp_path / "n.jsonl") == 0
    assert (tmp_path / "n.jsonl").read_text() == ""
    capsys.readouterr()
    assert run("score", model, tmp_path / "one.jsonl") == 0
    assert isinstance(json.loads(capsys.readouterr().out)["score"], float)


def test_score_gives_pairs_named_scores(model, tmp_path, capsys):
    row = {"prompt": "q", "chosen": "a!", "rejected": "a."}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    run("score", model, tmp_path / "p.jsonl")

    assert set(json.loads(capsys.readouterr().out)["score"]) == {"chosen", "rejected"}


@pytest.mark.parametrize("label", [{}, {"label": True}])
def test_what_ratings_a_file_holds_is_no_matter_where_nothing_is_learned(label, tmp_path, capsys):
    # A number out of any known range: ratings are not even read.
    rated = {"helpfulness": 99, "verbosity": 0, "ratings": "many", **label}
    rows = [{"prompt": f"q{k}", "response": "x" * (k + 1), **rated} for k in range(30)]
    data, scored = tmp_path / "rated.jsonl", tmp_path / "s.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert run("score", "longest", data, "-o", scored) == 0
    after = [json.loads(line) for line in scored.read_text().splitlines()]
    assert after == [row | {"score": k + 1} for k, row in enumerate(rows)]
    assert run("score", "longest", data, "--empty", "drop", "-o", tmp_path / "d.jsonl") == 0
    assert run("calibrate", "longest", data, "-o", tmp_path / "c.json") == 0
    assert run("select", f"scores:{scored}", data, "-o", tmp_path / "k.jsonl") == 0
    kept = [json.loads(line) for line in (tmp_path / "k.jsonl").read_text().splitlines()]
    assert [row["response"] for row in kept] == [row["response"] for row in rows]


def test_score_streams_a_hundred_thousand_rows_in_bounded_memory(tmp_path):
    # A scorer without a model, so that only our own streaming is measured: in a process of its own,
    # the peak may grow by far less than the 30 MB file.
    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for i in range(100_000):
            file.write(json.dumps({"prompt": f"q{i}", "response": "x" * 200}) + "\n")
    script = (
        "import resource, sys\n"
        "from retrm.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )

    def peak_kb(rows):
        small = tmp_path / f"{rows}.jsonl"
        small.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))
        done = subprocess.run(
            [sys.executable, "-c", script, "score", "shortest", small, "-o", f"{small}.out"],
            capture_output=True,
            text=True,
            check=True,
        )
        with open(f"{small}.out") as written:
            assert sum(1 for _ in written) == rows
        return int(done.stdout.split()[-1])

    assert peak_kb(100_000) - peak_kb(1_000) < 40_000


@pytest.mark.parametrize(
    "rule", ["best_of_n", "majority", "weighted_vote", "shortest_majority", "top_m_majority"]
)
def test_select_keeps_one_answer_a_prompt_by_every_rule(rule, model, rollouts, tmp_path, capsys):
    code = run("select", model, rollouts, "--rule", rule, "-o", tmp_path / "o.jsonl", "--json")
    summary = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]

    assert code == 0
    assert [row["prompt_id"] for row in rows] == [f"q{p}" for p in range(12)]
    assert summary["pass_at_1"] <= summary["oracle"] == 1.0


def test_select_writes_one_tab_separated_line_a_prompt_to_a_pipe(rollouts, capsys):
    run("select", "shortest", rollouts)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [f"q{p}" for p in range(12)]


def test_a_folder_of_several_reward_models_is_refused_with_their_names(rollouts, tmp_path, capsys):
    run(
        "fit",
        rollouts,
        "--model",
        "fake",
        "-o",
        tmp_path / "m",
        "--method",
        "last_token",
        "--method",
        "elhsr",
    )
    capsys.readouterr()

    assert run("score", tmp_path / "m", rollouts) == 2
    printed = "".join(capsys.readouterr().err.split())
    assert "m/elhsr" in printed
    assert "m/last_token" in printed


def test_a_reward_model_is_not_replaced_by_one_of_another_method(
    rollouts, model, monkeypatch, capsys
):
    before = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    monkeypatch.setattr("retrm.backbone.remote.load_backbone", None)  # told before it is loaded

    given = ["fit", str(rollouts), "--model", "fake", "-o", str(model), "--method", "elhsr"]
    assert run(*given) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "OutputError" in said
    assert "holds a reward model made by last_token, and elhsr was asked for" in said
    assert "Choose another --output" in said
    assert {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()} == before


def test_a_reward_model_is_replaced_by_one_of_the_same_method_and_a_damaged_one_by_any(
    rollouts, tmp_path
):
    given = ["fit", rollouts, "--model", "fake", "-o", tmp_path / "m"]
    assert run(*given) == 0
    assert run(*given, "--seed", "1") == 0
    manifest = tmp_path / "m" / "reward_model.json"
    assert json.loads(manifest.read_text())["fitted"]["seed"] == 1

    (tmp_path / "m" / "head.safetensors").write_bytes(b"x")
    assert run(*given, "--method", "retrm") == 0
    assert json.loads(manifest.read_text())["method"] == "retrm"


def test_help_names_the_method_that_is_taken_without_one(rollouts, model, capsys):
    assert run("fit", "--help") == 0

    assert "last_token (taken if none is given)" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )
    assert json.loads((model / "reward_model.json").read_text())["method"] == "last_token"


def test_a_fit_that_is_refused_after_the_reading_says_what_it_leaves(
    rollouts, tmp_path, monkeypatch, capsys
):
    def refused(*_args, **_options):
        raise FitError("the score became NaN")

    monkeypatch.setattr("retrm.fitting.fit.fit_head", refused)
    assert run("fit", rollouts, "--model", "fake", "-o", tmp_path / "m") == 2

    said = " ".join(capsys.readouterr().err.split())
    assert "FitError: the score became NaN" in said
    assert f"what was read is kept in {tmp_path / 'm' / 'features'}" in said
    assert "Delete that folder" in said
    assert (tmp_path / "m" / "features" / "manifest.json").exists()


def test_a_row_with_an_empty_answer_keeps_its_place_where_that_is_asked_for(tmp_path, capsys):
    # Shortest: minus the number of characters, 1 and 3; in between, nothing to score.
    rows = [
        {"prompt": "p", "response": "a"},
        {"prompt": "q", "response": " "},
        {"prompt": "r", "response": "abc"},
    ]
    path, out = tmp_path / "r.jsonl", tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert run("score", "shortest", path, "-o", out) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "EmptyAnswerError: r.jsonl:2: `response` is an empty answer" in said
    assert "retrm fit, score and audit: --empty drop" in said
    assert not out.exists()

    assert run("score", "shortest", path, "-o", out, "--empty", "drop", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert {name: counts[name] for name in ("rows", "answers", "skipped", "empty")} == {
        **{"rows": 3, "answers": 2},
        **{"skipped": 0, "empty": 1},
    }
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found == [
        {**row, "score": score} for row, score in zip(rows, [-1.0, None, -3.0], strict=True)
    ]


def test_rows_with_nothing_but_empty_answers_are_counted_by_a_model_too(model, tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    # More than a chunk without a single answer, then one.
    path.write_text(
        (json.dumps({"prompt": "p", "response": ""}) + "\n") * 300
        + json.dumps({"prompt": "p", "response": "a"})
        + "\n"
    )

    assert run("score", model, path, "--empty", "drop") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["score"] for row in lines[:300]] == [None] * 300
    assert isinstance(lines[300]["score"], float)
    assert run("score", model, path, "--empty", "drop", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["n_answers"] == 1


def test_select_works_with_a_baseline_scorer(rollouts, capsys):
    run("select", "shortest", rollouts, "--json")

    assert len(json.loads(capsys.readouterr().out)["selected"]) == 12


def test_sample_writes_what_grade_reads_and_goes_on_after_a_kill(tmp_path, capsys):
    problems = tmp_path / "problems.jsonl"
    problems.write_text(
        "".join(
            json.dumps({"prompt": f"{i} + 1?", "answer": str(i + 1), "grader": "numeric"}) + "\n"
            for i in range(4)
        )
    )
    options = ["-n", "2", "--max-new-tokens", "4", "--batch-size", "2"]
    assert run("sample", "fake", problems, *options, "-o", tmp_path / "whole.jsonl") == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()

    # A kill after two questions, in the middle of the third line.
    head = json.dumps(
        {
            "settings": {
                "model": "fake",
                "n": 2,
                "temperature": 0.8,
                "top_p": 1.0,
                "top_k": 0,
                "max_new_tokens": 4,
                "seed": 0,
                "endpoint": None,
                "dtype": "float32",
            }
        }
    )
    lines = whole.splitlines(keepends=True)
    part = tmp_path / "again.jsonl.part"
    part.write_bytes(head.encode() + b"\n" + b"".join(lines[:2]) + lines[2][:20])
    assert run("sample", "fake", problems, *options, "-o", tmp_path / "again.jsonl") == 0
    again = (tmp_path / "again.jsonl").read_bytes().splitlines(keepends=True)

    # Draws depend on what is asked, so the rest is what an unbroken run would have drawn.
    assert again == lines
    assert [json.loads(a)["prompt_id"] for a in again] == [
        json.loads(a)["prompt_id"] for a in lines
    ]
    assert not part.exists()
    assert run("grade", tmp_path / "again.jsonl") == 0
    graded = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert all(len(row["correct"]) == 2 for row in graded)


SETTINGS = {"model": "fake", "n": 2}


def part_of(path, *lines):
    """A part file of a run with `SETTINGS`; a line is a row or text."""
    rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join([json.dumps({"settings": SETTINGS}), *rows]) + "\n")
    return path


def row_of(prompt_id):
    return {"prompt_id": prompt_id, "responses": ["a", "b"], "finished": [True, False]}


def resumed(part, ids):
    """(complete questions, counts) that the next process finds in `part`."""
    counts = sampling._Counts(len(ids), 8, is_scored=False)
    return sampling._resume(part, SETTINGS, ids, counts), counts.found


def test_a_run_that_goes_on_writes_nothing_where_no_line_is_torn(tmp_path, monkeypatch):
    part = part_of(tmp_path / "o.part", row_of("a"), row_of("b"))
    before = part.read_bytes()
    part.chmod(0o400)
    os.utime(part, ns=(1, 1))

    def refused(*_):
        raise AssertionError("written")

    monkeypatch.setattr(Path, "write_bytes", refused)
    monkeypatch.setattr(os, "truncate", refused)
    assert resumed(part, ["a", "b", "c"]) == (2, {"questions": 3, "answers": 4, "cut": 2})
    assert part.read_bytes() == before
    assert part.stat().st_mtime_ns == 1


def test_a_torn_line_is_cut_off_in_place(tmp_path, monkeypatch):
    part = part_of(tmp_path / "o.part", row_of("a"), row_of("b"))
    whole = part.read_bytes()
    part.write_bytes(whole + b'{"prompt_id": "c", "resp')
    monkeypatch.setattr(Path, "write_bytes", None)  # it would lose every answer if it were killed

    assert resumed(part, ["a", "b", "c"])[0] == 2
    assert part.read_bytes() == whole


def test_going_on_holds_one_line_of_the_file_at_a_time(tmp_path):
    # 200 lines of 20 kB. Whoever joins them holds 4 MB, and copies 400 MB if line by line.
    line = json.dumps({**row_of("a"), "more": "x" * 20_000})
    part = part_of(tmp_path / "o.part", *[line] * 200)
    tracemalloc.start()
    try:
        assert resumed(part, ["a"] * 200)[0] == 200
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 500_000


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", "line 3, is not what retrm sample wrote there (Expecting"),
        ("[1]", "line 3, is not what retrm sample wrote there (a list, expected an object)"),
        ('{"responses": []}', "line 3, is not what retrm sample wrote there (KeyError"),
        ('{"prompt_id": "b", "responses": 3}', "line 3, is not what retrm sample wrote there (Ty"),
        (
            '{"prompt_id": "b", "responses": ["a"], "finished": [true]}',
            "line 3, is not what retrm sample wrote there (ValueError: 1 answers, expected 2)",
        ),
    ],
)
def test_a_damaged_line_is_named_and_the_file_is_left_alone(line, said, tmp_path):
    part = part_of(tmp_path / "o.part", row_of("a"), line, row_of("c"))
    before = part.read_bytes()

    with pytest.raises(DataError, match=re.escape(said)) as caught:
        resumed(part, ["a", "b", "c"])
    assert "Delete the file to begin again" in str(caught.value)
    assert part.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"settings\n", b"my own half-downloaded file", b'{"name": 1}\n', b"[1]\n", b"\xff\n"],
)
def test_a_file_that_sampling_did_not_begin_is_named_and_left_alone(content, tmp_path):
    part = tmp_path / "o.part"
    part.write_bytes(content)

    with pytest.raises(DataError, match=r"o\.part, line 1, is not what retrm sample wrote"):
        resumed(part, ["a"])
    assert part.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b'{"set', b'{"settings": {"model": "fa'])
def test_a_torn_head_of_our_own_is_begun_again(content, tmp_path):
    part = tmp_path / "o.part"
    part.write_bytes(content)

    assert resumed(part, ["a"])[0] == 0
    assert not part.exists()


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "o.part").mkdir()

    with pytest.raises(OutputError, match="is no file; move it away"):
        resumed(tmp_path / "o.part", ["a"])


def test_a_full_disk_is_an_error_that_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    problems = tmp_path / "p.jsonl"
    problems.write_text(json.dumps({"prompt": "1 + 1?"}) + "\n")
    full = partial(Path("/dev/full").open, "wb", buffering=0)
    monkeypatch.setattr(sampling, "_append", lambda _: full())

    assert run("sample", "fake", problems, "-n", "1", "-o", tmp_path / "o.jsonl") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "o.jsonl.part: No space left on device. What is in it is kept" in said


def test_a_sampling_that_failed_before_the_first_answer_leaves_nothing_behind(tmp_path):
    problems = tmp_path / "p.jsonl"
    problems.write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n")
    options = ["-n", "1", "--max-new-tokens", "2", "-o", tmp_path / "o.jsonl"]

    assert run("sample", "fakee", problems, *options) == 2
    assert not (tmp_path / "o.jsonl.part").exists()
    assert run("sample", "fake", problems, *options) == 0
    assert json.loads((tmp_path / "o.jsonl").read_text())["prompt"] == "1 + 1?"


def test_a_finished_file_is_replaced_only_where_that_is_asked_for(tmp_path, monkeypatch, capsys):
    problems, out = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    problems.write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n")
    out.write_text("")  # an empty file, such as mktemp makes, is nothing to lose
    given = ["sample", "fake", problems, "-n", "1", "--max-new-tokens", "2", "-o", out]
    assert run(*given) == 0
    assert run("grade", out, "--grader", "numeric") == 0
    graded = out.read_bytes()
    capsys.readouterr()

    with monkeypatch.context() as patched:
        patched.setattr("retrm.backbone.remote.load_backbone", None)  # told before it is loaded
        assert run(*given) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "OutputError" in said
    assert "o.jsonl is there already" in said
    assert "Choose another --output, or add --overwrite" in said
    assert out.read_bytes() == graded

    assert run(*given, "--overwrite") == 0
    assert "correct" not in json.loads(out.read_text())


def test_a_run_that_replaces_a_file_leaves_it_until_the_new_one_is_whole(tmp_path, monkeypatch):
    problems, out = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    problems.write_text("".join(json.dumps({"prompt": f"{i}?"}) + "\n" for i in range(2)))
    out.write_text("what was there\n")
    given = ["sample", "fake", problems, "-n", "1", "--max-new-tokens", "2", "-o", out]
    write, written = sampling._write, []

    def killed(file, part, row):
        if len(written) == 2:  # the settings and one question
            raise KeyboardInterrupt
        written.append(row)
        write(file, part, row)

    with monkeypatch.context() as patched:
        patched.setattr(sampling, "_write", killed)
        assert run(*given, "--overwrite") == 130
    assert out.read_text() == "what was there\n"
    assert run(*given, "--overwrite") == 0
    assert [json.loads(line)["prompt"] for line in out.read_text().splitlines()] == ["0?", "1?"]


PREFERENCES = [
    {"prompt": f"p{i}", "chosen": f"{i} yes!", "rejected": f"{i} no."} for i in range(15)
]
RANKED = [
    {"prompt": f"p{i}", "responses": [f"{i} best!", f"{i} ok", f"{i} bad."], "ranks": [1, 2, 3]}
    for i in range(15)
]
GRADED = [
    {"prompt": f"p{i}", "response": f"{i} {word}", "helpfulness": grade}
    for i in range(15)
    for word, grade in (("best!", 4), ("ok", 2), ("bad.", 0))
]


@pytest.mark.parametrize(
    ("records", "options"),
    [
        (PREFERENCES, []),
        (PREFERENCES, ["--method", "elhsr"]),
        (RANKED, []),
        (GRADED, ["--attribute", "helpfulness"]),
        (GRADED, ["--attribute", "helpfulness", "--label-threshold", "3"]),
    ],
    ids=["pairs", "pairs-gradient", "ranks", "grades", "grades-threshold"],
)
def test_every_kind_of_judgement_is_fitted_measured_and_saved(records, options, tmp_path, capsys):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    code = run("fit", path, "--model", "fake", "-o", tmp_path / "m", "--json", *options)
    value = json.loads(capsys.readouterr().out)
    card = (tmp_path / "m" / "README.md").read_text()

    assert code == 0
    rows = {row["name"]: row for row in value["metrics"]["rows"]}
    assert "shortest" in rows
    assert "95 % intervals" in card
    assert run("inspect", tmp_path / "m") == 0


def test_a_fit_that_cuts_long_prompts_is_saved(tmp_path, rollouts):
    rows = [json.loads(line) for line in rollouts.read_text().splitlines()]
    for row in rows:
        row["prompt"] = row["prompt"] * 200
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert (
        run("fit", path, "--model", "fake", "-o", tmp_path / "m", "--overlong", "truncate_left")
        == 0
    )
    assert (tmp_path / "m" / "reward_model.json").exists()


def test_statistics_are_a_row_each_and_leave_out_other_formats(rollouts, capsys):
    assert run("data", "stats", rollouts) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    assert any(line.startswith("label 1 ") for line in lines)
    assert not any(line.startswith(("pairs", "ranked", "n ")) for line in lines)
    assert not any(line.endswith(".000") for line in lines)


def test_statistics_of_data_without_comparisons_are_json(tmp_path, capsys):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"prompt": "p", "response": "a"}) + "\n")

    assert run("data", "stats", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["longer_wins"] is None


@pytest.fixture
def rated(tmp_path):
    """Two rated answers, one of them without a rating of verbosity."""
    path = tmp_path / "rated.jsonl"
    rows = [
        {"prompt": "p", "response": "a b c", "helpfulness": 4, "verbosity": 1},
        {"prompt": "p", "response": "a", "helpfulness": 0, "verbosity": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_statistics_show_objectives_with_their_counts(rated, capsys):
    assert run("data", "stats", rated, "--objective", "length") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    # 4 and 0 of HelpSteer's range are 0.9 and 0.1; 1 is 0.3. Words: log2(4) / 14 and log2(2) / 14.
    assert "helpfulness 0..4 2 0 0.5 0.1 0.9" in lines
    assert "verbosity 0..4 1 1 0.3 0.3 0.3" in lines
    assert "length 0..1 2 0 0.107 0.071 0.143" in lines

    assert run("data", "stats", rated, "--json") == 0
    found = json.loads(capsys.readouterr().out)["objectives"]
    assert found["verbosity"]["n_missing"] == 1
    assert run("data", "stats", rated, "--json", "--rating", "helpfulness:0..8") == 0
    assert json.loads(capsys.readouterr().out)["objectives"]["helpfulness"]["mean"] == 0.25
    assert run("data", "stats", rated, "--json", "--attribute", "helpfulness") == 0
    assert json.loads(capsys.readouterr().out)["objectives"] == {}


def test_validation_shows_ratings_and_refuses_those_outside_of_their_range(rated, capsys):
    assert run("data", "validate", rated) == 0
    printed = capsys.readouterr().out
    assert "helpfulness (0..4)  0.9" in printed
    assert "objective verbosity: 1 rated from 0..4, 1 missing" in printed
    assert run("data", "validate", rated, "--rating", "helpfulness:1..3") == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "rated.jsonl:1: `helpfulness` is the number 4; expected 1 to 3" in printed


def test_ratings_are_left_unread_on_request(rated, capsys):
    assert run("data", "stats", rated, "--rating", "none") == 2
    assert "--attribute NAME" in " ".join(capsys.readouterr().err.split())


def test_formats_are_listed_with_what_they_need_and_rate(capsys):
    assert run("data", "formats") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "pointwise one answer rated on several attributes" in printed
    assert "complexity, verbosity 0..4 (HelpSteer)" in printed
    assert "refusal 1 if the answer begins as a refusal" in printed
    assert run("data", "formats", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stepwise"]["is_readable"] is False


def test_conversion_keeps_ratings_as_numbers_from_zero_to_one(rated, tmp_path):
    target = tmp_path / "r.jsonl"
    assert run("data", "convert", rated, "-o", target, "--rating", "known") == 0
    (row,) = [json.loads(line) for line in target.read_text().splitlines()]
    assert row["ratings"] == {"helpfulness": [0.9, 0.1], "verbosity": [0.3, None]}


def test_the_table_of_grades_counts_mixed_prompts_by_the_kind_of_the_records(tmp_path, capsys):
    # sum: one prompt of two with right and wrong, 2 of 3 labelled answers right; 1 pruned.
    rows = [
        {"prompt": "a", "answer": "1", "kind": "sum", "responses": ["1", "2"]},
        {
            "prompt": "b",
            "answer": "1",
            "kind": "sum",
            "responses": ["1", "x"],
            "pruned": [False, True],
        },
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert run("grade", path, "--grader", "numeric") == 0
    lines = capsys.readouterr().err.splitlines()
    (head,) = (line for line in lines if "kind of question" in line)
    (cells,) = (line for line in lines if line.startswith("sum"))
    columns = ["prompts", "mixed prompts", "answers with a label", "share right"]
    assert [head.index(name) for name in columns] == sorted(head.index(name) for name in columns)
    assert cells.split() == ["sum", "2", "1", "3", "0.667"]


def test_an_answer_without_a_label_is_shown_as_such(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"prompt": "a", "responses": ["x", "y"], "correct": [1, None]}))

    assert run("data", "validate", path) == 0
    printed = capsys.readouterr().out
    assert "x  [1]" in printed
    assert "y  [no label]" in printed
    assert "nan" not in printed


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (("answers.jsonl",), "Choose from: validate, stats, convert, formats, benchmarks."),
        (("stat", "answers.jsonl"), "'stats'?"),
    ],
)
def test_a_file_without_a_verb_is_told_the_command_that_was_meant(words, near, capsys):
    assert run("data", *words) == 2
    printed = " ".join(capsys.readouterr().err.split())

    assert "such as `retrm data stats answers.jsonl`" in printed
    assert near in printed


def test_data_alone_shows_its_verbs(capsys):
    assert run("data") == 0
    printed = capsys.readouterr().out

    assert "Usage: retrm data COMMAND" in printed
    assert "validate" in printed
    assert "stats" in printed


def test_a_stopped_demo_says_so_without_a_traceback(monkeypatch, tmp_path, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("retrm.data.load.load_table", stop)
    monkeypatch.setattr("sys.argv", ["run.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(DEMO), run_name="__main__")

    assert caught.value.code == 130
    assert "stopped; " in capsys.readouterr().err


def test_grade_keeps_the_old_file_when_a_record_is_bad(tmp_path, capsys):
    path = tmp_path / "r.jsonl"
    content = (
        json.dumps({"prompt": "q", "responses": ["4"], "answer": "4", "grader": "numeric"})
        + "\n"
        + json.dumps({"prompt": "q2", "responses": ["4"], "grader": "numeric"})
        + "\n"
    )
    path.write_text(content)

    assert run("grade", path) == 2
    assert path.read_text() == content
    assert "r.jsonl:2" in capsys.readouterr().err


def test_a_mistake_exits_with_2_without_a_traceback_and_writes_nothing(
    rollouts, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    code = run("fit", rollouts, "--model", "fake", "--method", "elsr", "-o", "out")
    printed = " ".join(capsys.readouterr().err.split())

    assert code == 2
    assert "RecipeError: unknown method 'elsr'" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_help_of_every_verb_teaches_every_option(capsys):
    for verb in ("sample", "grade", "fit", "score", "select", "inspect", "doctor", "export"):
        assert run(verb, "--help") == 0
        printed = capsys.readouterr().out
        options = [line for line in printed.splitlines() if line.lstrip("│ *").startswith("--")]
        assert options, verb


def test_importing_retrm_and_its_command_line_brings_no_torch():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, retrm, retrm.cli.main, retrm.metrics, retrm.selection, retrm.data.load\n"
            "print([m for m in ('torch', 'transformers', 'datasets', 'sklearn') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == "[]"
