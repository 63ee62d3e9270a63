"""`retrm audit` as it is typed, on a tiny model in a folder: what comes out, and what is refused."""

import json

import command_line
import numpy as np
import pytest
from audit_toy import toy_audit
from rich.console import Console
from tiny import save_tiny

from retrm.audit.grid import Grid
from retrm.audit.tables import AuditTables
from retrm.backbone.states import TransformersBackbone
from retrm.cli.tables import primary_table
from retrm.metrics import format_number
from retrm.reports.audit_figures import FIGURES

SMALL = """\
[plan]
size = "4"
widths = ["4"]
poolings = ["last"]
n_primary_draws = 2
n_draws = 2
n_layer_draws = 1
n_folds = 2
n_inner_folds = 2
n_band_steps = 2

[interventions]
layers = ["1"]
sizes = ["4"]
n_draws = 2
n_energy_draws = 1
max_prompts = 3
max_new_tokens = 3
"""


def run(*arguments):
    """Exit code of `retrm audit ARGUMENTS`."""
    return command_line.run("audit", *arguments)


def refusal(capsys, *arguments):
    """The error that ends a run with 2, in one line."""
    assert run(*arguments) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in printed
    return printed


@pytest.fixture(scope="module", autouse=True)
def few_pictures():
    """Two are enough here, and all of them take seconds."""
    kept = tuple(kind for kind in FIGURES if kind.name in ("contrasts", "interventions"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrm.reports.audit_figures.FIGURES", kept)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Rollouts, a tiny model, and the settings with and without interventions."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model")
    generator = np.random.default_rng(0)
    with (folder / "rollouts.jsonl").open("w") as file:
        for p in range(16):
            right = [True, False, *(generator.random(2) < 0.5).tolist()]
            row = {
                "prompt_id": f"q{p}",
                "prompt": f"question {p}",
                "responses": [f"it is {k}{'!' if r else '.'}" for k, r in enumerate(right)],
                "correct": right,
                "answer": "7",
            }
            file.write(json.dumps(row) + "\n")
    (folder / "full.toml").write_text(SMALL)
    (folder / "plan.toml").write_text(SMALL.partition("\n\n")[0])
    return folder


def typed(place, output, *options, config="plan.toml"):
    files = (place / "rollouts.jsonl", "--model", place / "model", "--config", place / config)
    return (*files, "--quick", "-o", output, *options)


@pytest.fixture(scope="module")
def done(place, tmp_path_factory):
    """An audit with interventions, and how it was typed."""
    output = tmp_path_factory.mktemp("done") / "audit"
    options = typed(place, output, "--n-samples", 1, "--json", config="full.toml")
    assert run(*options) == 0
    return output, options


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_an_audit_leaves_a_report_figures_and_tables(done):
    output, _ = done
    tables = AuditTables.load(output)

    assert "<html" in (output / "audit.html").read_text("utf-8")
    assert (output / "figures" / "interventions.png").is_file()
    assert (output / "cells.csv").is_file()
    assert {row.measure for row in tables.interventions} >= {"accuracy", "within_auroc"}
    assert {row.fill for row in tables.interventions} == {"zero", "mean"}
    assert tables.facts["interventions"]["grader"] == "numeric"
    assert tables.facts["settings"]["n_primary_draws"] == 2  # the file counts more than --quick
    assert tables.facts["settings"]["n_split_seeds"] == 1  # of --quick


def test_the_same_command_again_takes_up_everything_and_prints_one_object(
    done, capsys, monkeypatch
):
    output, options = done
    before = stamps(output)
    monkeypatch.setattr(TransformersBackbone, "forward", None)  # would fail if it were called
    assert run(*options) == 0
    printed = capsys.readouterr()
    value = json.loads(printed.out)

    for words in (f"loading {options[2]}", "stage 4 of 9: widths, last token", "9: interventions"):
        assert words in printed.err.replace("\n", "")
    assert set(value) == {"folder", "facts", "verdicts"}
    assert value["facts"]["n_answers"] == 64
    assert value["verdicts"][0]["question"] == "specificity"
    worked = [path for path in before if path.relative_to(output).parts[0] in ("reading", "stages")]
    after = stamps(output)
    assert worked
    assert all(after[path] == before[path] for path in worked)


def test_without_interventions_neither_their_table_nor_their_picture_is_left(done, place, capsys):
    output, options = done
    assert run(*typed(place, output)) == 0
    printed = capsys.readouterr().out

    assert "audit.html: the report" in " ".join(printed.split())
    assert not (output / "interventions.csv").exists()
    assert not (output / "figures" / "interventions.png").exists()
    assert (output / "figures" / "contrasts.png").exists()
    assert len(list(output.glob("stages/interventions-*"))) == 1  # and are taken up again
    assert run(*options) == 0
    assert (output / "figures" / "interventions.png").exists()


def test_a_dry_run_prints_what_is_left_and_writes_nothing(done, place, tmp_path, capsys):
    output, _ = done
    new, before = tmp_path / "new", stamps(output)
    options = ("--n-samples", 1, "--dry-run", "--json")
    capsys.readouterr()
    assert run(*typed(place, new, *options, config="full.toml")) == 0
    whole = json.loads(capsys.readouterr().out)
    assert run(*typed(place, output, *options, config="full.toml")) == 0
    left = json.loads(capsys.readouterr().out)
    assert run(*typed(place, new, "--dry-run", config="full.toml")) == 0
    printed = capsys.readouterr().out

    assert not new.exists()
    assert stamps(output) == before
    # 2 fills x (reasoning, semantic, 2 random, 1 of equal energy)
    assert whole["interventions"]["n_settings"] == 10
    assert whole["interventions"]["sampled_tokens"] == 11 * 3 * 3
    assert whole["n_tokens"] == left["n_tokens"] > 0
    assert whole["n_fits"] > left["n_fits"] == 0
    assert whole["interventions_s"] > left["interventions_s"] == 0
    for words in ("dry run: nothing was written", "removals", "memory, beside the model"):
        assert words in printed
    # Both stay when everything is read, so neither is called what is to be read.
    assert left["n_answers"] == whole["n_answers"] > 0
    assert "to read" not in printed
    assert left["interventions"] is None  # nothing of them is left to do


def test_a_killed_audit_goes_on_when_it_is_typed_again(place, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    options = typed(place, tmp_path / "a", "--seed", 3)
    with monkeypatch.context() as patch:
        patch.setattr(Grid, "learning", stop)
        assert run(*options) == 130
    assert not (tmp_path / "a" / "audit.json").exists()

    monkeypatch.setattr(TransformersBackbone, "forward", None)
    assert run(*options) == 0
    assert AuditTables.load(tmp_path / "a").facts["settings"]["seed"] == 3


def test_the_printed_table_has_a_line_a_feature_set_and_the_mean_of_random_draws():
    with (console := Console(width=160)).capture() as got:
        console.print(primary_table(toy_audit()))
    lines = [line.split() for line in got.get().splitlines()]

    # .55 + .08 + .03 log2(4)/6 + .01 sin(4 + 6) + .04 sin(3) + .02 sin(-1/9) = .638, +- .03
    assert ["reasoning", ".638", "[.608,", ".668]", ".338", "[.308,", ".368]"] in lines
    (random,) = (line for line in lines if line[:1] == ["random,"])
    assert random[:8] == ["random,", "mean", "of", "20", "(5", "to", "95", "%)"]
    draws = [
        row.value
        for row in toy_audit().cells
        if (row.sweep, row.features, row.metric) == ("primary", "random", "within_auroc")
    ]
    low, high = (format_number(float(np.percentile(draws, q))) for q in (5, 95))
    assert random[8:12] == [format_number(float(np.mean(draws))), f"({low}", "to", f"{high})"]
    assert ["pass@1", "–", ".201"] in lines
    assert ["oracle", "–", ".633"] in lines


# ------------------------------------------------------------------------------------ refusals


def test_an_over_long_answer_does_not_spoil_the_folder_for_the_advised_rerun(
    place, tmp_path, capsys, monkeypatch
):
    lines = (place / "rollouts.jsonl").read_text().splitlines()
    long = json.loads(lines[0])
    long["responses"][0] = "x" * 400
    (tmp_path / "long.jsonl").write_text("\n".join([json.dumps(long), *lines[1:]]))
    options = [tmp_path / "long.jsonl", *typed(place, tmp_path / "a")[1:]]

    assert "length policy truncate_left" in refusal(capsys, *options)
    monkeypatch.setattr(Grid, "primary", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(*options, "--overlong", "skip") == 130  # it has begun to fit


@pytest.mark.parametrize(
    ("options", "telling"),
    [
        (("--overlong", "trucate_left"), "Did you mean 'truncate_left'?"),
        (("--interventions", "--n-samples", 1, "--grader", "nmeric"), "Did you mean 'numeric'?"),
        (
            ("--interventions", "--n-samples", 1, "--grader", "choice"),
            "needs the options of every question",
        ),
        (("--n-samples", 1), "Add --interventions"),
        (("--interventions", "--n-samples", -1), "got n_samples=-1; expected 0 or more"),
        (("--pooling", "mean"), "expected `last` among them"),
        (("--seed", -1), "got seed=-1"),
        (("--label-threshold", "nan"), "got label_threshold=nan; expected a number"),
    ],
)
def test_bad_options_are_found_before_the_model_is_looked_for(
    place, tmp_path, capsys, options, telling
):
    files = (place / "rollouts.jsonl", "--model", tmp_path / "no-model", "-o", tmp_path / "a")
    assert telling in refusal(capsys, *files, *options)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        (b"[plan]\nn_folds = 5.0", "got n_folds=5.0; expected a whole number"),
        (b"[plan]\nseed = 1.5", "got seed=1.5; expected a whole number"),
        (b"[plan]\nn_layer_draws = 1.5", "got n_layer_draws=1.5"),
        (b"[plan]\nn_fold = 5", "Did you mean 'n_folds'?"),
        (b'[interventions]\ntemperature = "hot"', "got temperature='hot'; expected a number"),
        (b"[interventions]\nn_samples = 2.5", "got n_samples=2.5; expected a whole number"),
        (b'[interventions]\nfill = "mean"', "Did you mean 'fills'?"),
        (b"[intervention]\nn_samples = 2", "unknown table [intervention]"),
        (b"n_folds = 3", "n_folds = 3 is in no table; put it under [plan] or [interventions]"),
        (b"[plan]\nn_draws = 20000", "got n_draws=20000; expected 2 to 10000"),
        (b"\xff\xfe\x00binary", "is no text in UTF-8; expected a TOML file"),
    ],
)
def test_bad_settings_are_found_before_the_model_is_looked_for(
    place, tmp_path, capsys, text, telling
):
    (tmp_path / "bad.toml").write_bytes(text)
    files = (place / "rollouts.jsonl", "--model", tmp_path / "no-model", "-o", tmp_path / "a")
    assert telling in refusal(capsys, *files, "--config", tmp_path / "bad.toml")


def test_a_file_in_place_of_the_output_folder_is_found_before_the_model(place, tmp_path, capsys):
    (tmp_path / "a").write_text("kept")
    files = (place / "rollouts.jsonl", "--model", tmp_path / "no-model", "-o", tmp_path / "a")

    assert "a is a file; expected a folder" in refusal(capsys, *files)
    assert (tmp_path / "a").read_text() == "kept"
    deeper = (*files[:-1], tmp_path / "a" / "sub", "--dry-run")
    assert "a is a file; expected a folder" in refusal(capsys, *deeper)
    assert "got an empty path; expected a name" in refusal(capsys, *files[:-1], "")


def test_too_few_prompts_for_the_folds_are_found_before_the_model(place, tmp_path, capsys):
    lines = (place / "rollouts.jsonl").read_text().splitlines()
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:3]))
    files = (tmp_path / "few.jsonl", "--model", tmp_path / "no-model", "-o", tmp_path / "a")

    assert "3 prompt(s) for 5 folds" in refusal(capsys, *files)


@pytest.mark.parametrize("flag", [(), ("--dry-run",)])
def test_interventions_that_cannot_be_made_are_found_before_the_reading(
    place, tmp_path, capsys, monkeypatch, flag
):
    lines = [json.loads(line) for line in (place / "rollouts.jsonl").read_text().splitlines()]
    bare = [{k: v for k, v in row.items() if k != "answer"} for row in lines]
    (tmp_path / "bare.jsonl").write_text("\n".join(map(json.dumps, bare)))
    monkeypatch.setattr(TransformersBackbone, "forward", None)
    options = typed(place, tmp_path / "a", "--n-samples", 1, *flag, config="full.toml")

    found = refusal(capsys, tmp_path / "bare.jsonl", *options[1:])
    assert "no reference answer for 3 of 3 prompts" in found
    assert not (tmp_path / "a").exists()


def test_the_seed_of_the_command_counts_more_than_that_of_the_file(place, tmp_path, capsys):
    (tmp_path / "s.toml").write_text("[plan]\nseed = 5\n")
    files = (place / "rollouts.jsonl", "--model", tmp_path / "no-model", "-o", tmp_path / "a")
    settings = ("--config", tmp_path / "s.toml")

    assert "got seed=-1" in refusal(capsys, *files, *settings, "--seed", -1)
    assert "no-model" in refusal(capsys, *files, *settings)
