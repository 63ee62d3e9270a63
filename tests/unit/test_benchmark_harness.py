"""What the benchmarks publish: targets, commits, what a failed one leaves, and their arithmetic."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrm.backbone.fake import FakeBackbone

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """A module of benchmarks/ by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize(
    ("low", "high", "at_least", "met"),
    [
        (0.9, 1.1, True, True),
        (0.5, 0.7, True, False),
        (0.7, 0.9, True, None),  # half of the turns would say yes and half no
        (0.8, 0.9, True, True),
        (0.7, 0.8, False, True),
        (0.9, 1.1, False, False),
        (0.7, 0.9, False, None),
    ],
)
def test_a_ratio_whose_turns_stand_on_both_sides_of_the_target_decides_nothing(
    low, high, at_least, met, module
):
    harness = module("harness")
    report = harness.Report("x", {})
    report.target("claim", 0.8, harness.Ratio(0.85, low, high), at_least=at_least)

    assert report.targets[0]["met"] is met


def test_the_extremes_of_a_target_are_published(module, tmp_path, capsys):
    harness = module("harness")
    report = harness.Report("x", {})
    report.target("claim", 0.8, harness.Ratio(0.85, 0.7, 0.9))
    report.target("number", 1.0, 0.94989, at_least=False)
    report.rows.append({"what": "a line"})
    report.finish(["-o", str(tmp_path / "x.json")])

    stored = json.loads((tmp_path / "x.json").read_text())["targets"]
    assert stored[0]["found"] == {"median": 0.85, "low": 0.7, "high": 0.9}
    assert (stored[0]["met"], stored[1]["met"]) == (None, True)
    said = capsys.readouterr().err
    assert "claim: 0.850 (0.700 to 0.900), target 0.8: within the noise" in said
    assert "number: 0.9499, target 1: met" in said


def test_a_result_says_how_it_was_made(module, tmp_path, monkeypatch):
    harness = module("harness")
    began = time.monotonic() - 12
    monkeypatch.setattr(harness, "BEGAN", began)
    report = harness.Report("x", {})
    report.add("a line", harness.Timing((1.0, 3.0, 2.0)))
    report.finish(["--rows", "5", "-o", str(tmp_path / "x.json")])

    stored = json.loads((tmp_path / "x.json").read_text())
    assert (stored["rows"][0]["seconds"], stored["rows"][0]["turns"]) == (2.0, 3)
    assert stored["arguments"] == ["--rows", "5", "-o", str(tmp_path / "x.json")]
    assert 12 <= stored["seconds_in_all"] <= time.monotonic() - began + 0.05  # rounded to 0.1
    assert stored["machine"]["load_before"] == harness.LOAD_BEFORE


def test_no_turn_at_all_is_refused(module):
    with pytest.raises(SystemExit, match="got 0 repeats"):
        module("harness").interleave({}, repeats=0)


SCRIPTS = sorted(
    path.stem for path in BENCHMARKS.glob("*.py") if "def arguments()" in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_misspelt_option_is_an_error_and_no_measurement_with_defaults(
    name, module, monkeypatch, capsys
):
    script = module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--repeatz", "5", "-o", "x.json"])
    with pytest.raises(SystemExit) as left:
        script.arguments()
    assert left.value.code == 2
    assert "--repeatz" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- the page


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS.parent / "docs")
    return importlib.import_module("make_speed")


def test_the_page_of_speed_is_what_the_files_say(speed, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_speed.py", "--check"])
    code = speed.write_or_check(speed.PAGE, speed.blocks, about="")
    assert code == 0, capsys.readouterr().err


def test_each_verdict_has_its_word_and_what_is_not_measured_is_listed(speed):
    ratio = {"median": 0.85, "low": 0.7, "high": 0.9}
    claims = [
        {"claim": "a", "target": 0.8, "found": ratio, "met": None},
        {"claim": "b", "target": 0.95, "found": 0.94989, "met": False},
        {"claim": "c", "target": 0.95, "found": 0.95, "met": True},
    ]
    found = {"one_two": {"targets": claims, "seconds_in_all": 61.0}, "three": None}
    shown = speed.targets(found)

    assert "| one two | a | 0.8 | 0.85 (0.7 to 0.9) | within the noise |" in shown
    # Three digits would show 0.95 beside a target of 0.95 that is not met.
    assert "| one two | b | 0.95 | 0.9499 | **not met** |" in shown
    assert "| one two | c | 0.95 | 0.95 | met |" in shown
    assert "| three | – | – | – | not measured |" in shown
    assert "Seconds they took: one two 61; 61 in all." in shown


def test_other_work_on_the_machine_is_told_or_said_to_be_unknown(speed):
    told = speed.load({"load_before": 0.04, "load_after": 1.96})
    assert told == "load average 0.0 before, 2.0 after"
    assert speed.load({}) == "other work on the machine unknown"


def test_figures_of_a_changed_tree_are_labelled(module, tmp_path):
    commit = module("harness").commit
    assert commit(tmp_path) is None  # no repository

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "x")
    clean = commit(tmp_path)
    # What this run itself wrote is no change of the code.
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "reading.json").write_text("{}\n")
    assert commit(tmp_path) == clean
    assert "-dirty" not in clean
    (tmp_path / "code.py").write_text("2\n")
    assert commit(tmp_path) == f"{clean}-dirty"


@pytest.mark.parametrize("works", [True, False])
def test_a_benchmark_that_fails_leaves_no_older_result(works, module, tmp_path, monkeypatch):
    every = module("all")
    results = tmp_path / "results"
    results.mkdir()
    (results / "reading.json").write_text("old")
    write = f"import pathlib; pathlib.Path({str(results / 'reading.json')!r}).write_text('new')"
    (tmp_path / "reading.py").write_text(write if works else "raise SystemExit(3)")
    monkeypatch.setattr(every, "RESULTS", results)
    monkeypatch.setattr(every, "HERE", tmp_path)

    assert every.run("reading") is works
    assert [file.read_text() for file in results.iterdir()] == (["new"] if works else [])


def test_an_epoch_that_did_not_run_is_counted_as_long_as_the_last_and_the_setup_once(module):
    fit = module("elhsr_fit")
    moments = [fit.Moment(loss, cpu, wall) for loss, cpu, wall in ((9, 13, 23), (8, 15, 26))]
    run = fit.Run(fit.Moment(float("inf"), 10.0, 20.0), tuple(moments))

    # 1 s of setup and 2 s of processor an epoch; 3 s + 3 s on the wall.
    assert (run.to_epoch(4).cpu, run.to_epoch(4).wall) == (5 + 2 * 2, 6 + 2 * 3)
    assert fit._times([run], 4, 7.0, "cpu").seconds == (9.0,)
    assert fit._times([run], 2, 8.0, "cpu").seconds == (5.0,)
    assert fit._times([run], None, 7.0, "cpu") is None


def test_shared_and_alone_are_compared_at_every_judged_token(module, monkeypatch):
    sharing = module("prefix_sharing")
    backbone = FakeBackbone()
    draw = sharing.torch.Generator().manual_seed(0)
    made = [
        sharing.torch.randint(10, 200, (30 + sharing.RESPONSE,), generator=draw).tolist()
        for _ in range(3)
    ]
    items = tuple(sharing.Rendered((*made[0][:30], *ids[30:]), 30, len(ids)) for ids in made)

    assert sharing.compared(items) == (0, 1, 2)  # 3 x 94 tokens: all of them
    monkeypatch.setattr(sharing, "COMPARED", 281)
    assert sharing.compared(items) == (0, 2)
    monkeypatch.setattr(sharing, "COMPARED", 282)
    assert sharing.difference(backbone, items) < 1e-6
    whole = sharing.read_rendered

    def wrong_in_the_middle(backbone, given, reducer):
        found = whole(backbone, given, reducer)
        if len(given) > 1:
            found.values[sharing.RESPONSE + 5] += 1
        return found

    monkeypatch.setattr(sharing, "read_rendered", wrong_in_the_middle)
    assert sharing.difference(backbone, items) > 0.1
