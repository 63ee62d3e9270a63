"""Dry runs: counts are those of the run, mistakes show as in it, and nothing is written."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_line import run

from retrm.backbone.fake import FakeBackbone
from retrm.errors import FitError, LabelError, OverlongError, StoreError
from retrm.features import estimate as reading_estimate
from retrm.fitting import estimate
from retrm.fitting.estimate import convex_bytes, estimate_fit, is_streamed
from retrm.fitting.fit import fit, recipes_of
from retrm.fitting.trials import WIDEST_TRIAL, grown
from retrm.methods import method
from retrm.records import Answer, AnswerTable
from retrm.scorers.baseline import LengthScorer
from retrm.scorers.estimate import estimate_scoring
from retrm.store.shards import ShardSink

METHODS = [method("last_token"), method("retrm").with_changes(recipe={"subspace": "reasoning:4"})]


def table(n_prompts=12, n=3):
    answers = tuple(
        Answer.of(f"question {p}", "it is " + "so " * k) for p in range(n_prompts) for k in range(n)
    )
    return AnswerTable(answers, np.arange(len(answers)) % 2.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Trial fits take a second each."""
    monkeypatch.setattr(estimate, "logistic_s", lambda m: 1.0)
    monkeypatch.setattr(estimate, "gradient_s", lambda *args: 1.0)


def sink_of(folder, backbone, rows):
    return ShardSink.of(folder, recipes_of(backbone, rows, METHODS), backbone)


def test_tokens_and_bytes_are_those_of_the_fit_and_nothing_is_written(tmp_path):
    backbone, rows = FakeBackbone(), table()
    said = estimate_fit(rows, backbone, METHODS, sink=sink_of(tmp_path / "s", backbone, rows))
    assert not (tmp_path / "s").exists()
    made = fit(rows, backbone, METHODS, sink=sink_of(tmp_path / "s", backbone, rows))
    stored = sum(path.stat().st_size for path in (tmp_path / "s").glob("shard-*"))

    assert said.n_tokens == made.reading.n_tokens
    assert (said.n_answers, said.n_heads, said.n_stored) == (36, 2, 0)
    assert said.disk_bytes <= stored <= said.disk_bytes + 1000  # and the header
    assert said.reading_s == pytest.approx(said.n_tokens / said.tokens_per_s)
    # 2 heads x 1 s x 1.3: the penalty, and the fit itself; no more rows than those of the trial
    assert said.fitting_s == pytest.approx(2.6)
    assert said.streams == ()


def test_what_is_stored_already_is_taken_off(tmp_path):
    backbone, rows = FakeBackbone(), table()
    half = rows.take(range(18))
    fit(half, backbone, METHODS, sink=sink_of(tmp_path / "s", backbone, half))
    sink = sink_of(tmp_path / "s", backbone, rows)
    said = estimate_fit(rows, backbone, METHODS, sink=sink)
    made = fit(rows, backbone, METHODS, sink=sink)
    again = estimate_fit(rows, backbone, METHODS, sink=sink)

    assert (said.n_stored, said.n_answers) == (18, 36)
    assert said.n_tokens == made.reading.n_tokens
    assert (again.n_stored, again.n_tokens, again.reading_s, again.tokens_per_s) == (36, 0, 0, None)
    with pytest.raises(StoreError, match="another fingerprint"):
        estimate_fit(rows, FakeBackbone(seed=1), METHODS, sink=sink_of(
            tmp_path / "s", FakeBackbone(seed=1), rows
        ))  # fmt: skip


def test_what_a_fit_refuses_its_dry_run_refuses_in_the_same_words():
    backbone, rows = FakeBackbone(context_length=60), table()
    wrong = (
        (replace(rows, labels=np.ones(36)), {}, LabelError),
        (rows.take(range(3)), {}, FitError),
        (rows, {"test_fraction": 1.0}, FitError),
        (replace(rows, answers=(Answer.of("q", "x" * 99), *rows.answers[1:])), {}, OverlongError),
    )
    for data, options, error in wrong:
        with pytest.raises(error) as real:
            fit(data, backbone, METHODS, **options)
        with pytest.raises(error) as dry:
            estimate_fit(data, backbone, METHODS, **options)
        assert str(dry.value) == str(real.value)


def test_over_long_and_pruned_answers_are_counted():
    rows = table()
    answers = [replace(a, pruned=i < 2) for i, a in enumerate(rows.answers)]
    answers[5] = Answer.of("question 1", "x" * 99)
    rows = replace(rows, answers=tuple(answers))
    said = estimate_fit(rows, FakeBackbone(context_length=60), METHODS, overlong="skip")
    assert (said.n_answers, said.n_skipped, said.n_pruned) == (33, 1, 2)


def test_the_memory_of_a_convex_fit_by_hand(monkeypatch):
    monkeypatch.setattr(estimate, "SHARD_BYTES", 10**6)
    monkeypatch.setattr(estimate, "ESTIMATE_BYTES", 10**4)
    monkeypatch.setattr(estimate, "sample_size", lambda width: 50)
    monkeypatch.setattr(estimate, "RESIDENT_BYTES", 8 * 1000 * 100)
    # 50 drawn rows twice and 10 kB more, six 50 x 50 matrices, three Hessians of 100 x 100
    work = 2 * 8 * 50 * 100 + 10**4 + 6 * 8 * 50**2 + 3 * 8 * 100**2
    small = convex_bytes(1000, 100, torch.float32, held_bytes=10**6)
    large = convex_bytes(5000, 100, torch.float32, held_bytes=10**6)
    wide = convex_bytes(50, 100, torch.float32, held_bytes=10)

    # 400 kB twice, work, 200 bytes a row, and 800 kB in float64
    assert small == 2 * 400_000 + work + 200 * 1000 + 800_000
    assert large == 10**6 + work + 200 * 5000  # one shard, whatever the size of the features
    assert wide == 50 * 100 * 4 + 3 * 8 * 50 * 100
    assert is_streamed(5000, 100, torch.float32, held_bytes=10**6)
    assert not is_streamed(50, 100, torch.float32, held_bytes=10)
    assert not is_streamed(1000, 100, torch.float32, held_bytes=10**6)


def test_a_method_whose_features_exceed_what_is_held_is_named():
    said = estimate_fit(table(), FakeBackbone(), METHODS, held_bytes=1000)
    # 29 training answers or so: 16 float32 features each exceed 1000 bytes, 4 do not
    assert said.streams == ("last_token",)


def test_wide_fits_are_tried_narrower_and_grown():
    tried = []

    def trial(width):
        tried.append(width)
        return width**3 * 1e-9

    assert grown(trial, 4096) == pytest.approx(4096**3 * 1e-9)
    assert grown(trial, 64) == 64**3 * 1e-9
    assert grown(trial, 1024, power=1) == pytest.approx(2 * 512**3 * 1e-9)
    assert tried == [WIDEST_TRIAL, 64, WIDEST_TRIAL]


# ------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "r.jsonl"
    with path.open("w") as file:
        for p in range(12):
            row = {
                "prompt": f"question {p}",
                "responses": ["it is so!", "it is.", "it", "per"],
                "correct": [True, False, p % 2 == 0, True],
                "pruned": [False, False, False, True],
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def model(rollouts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rm") / "rm"
    assert run("fit", rollouts, "--model", "fake", "-o", folder) == 0
    return folder


def test_a_dry_run_of_fit_prints_an_aligned_table_and_makes_no_folder(rollouts, tmp_path, capsys):
    verb = ("fit", rollouts, "--model", "fake", "-o", tmp_path / "m", "--dry-run")
    assert run(*verb) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed[1:] if line.strip() and "─" not in line]

    assert printed[0] == "dry run: nothing was written"
    assert len({len(line.rstrip()) for line in rows}) == 1  # numbers end in one column
    for words in ("answers", "tokens to read", "pruned candidates, left out", "memory at most"):
        assert any(line.startswith(words) for line in rows), words
    assert not (tmp_path / "m").exists()
    assert run(*verb, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_answers"], found["n_pruned"]) == (36, 12)


def test_a_dry_run_of_score_counts_the_tokens_that_scoring_reads(model, rollouts, tmp_path, capsys):
    assert run("score", model, rollouts, "--dry-run", "--json", "-o", tmp_path / "o.jsonl") == 0
    found = json.loads(capsys.readouterr().out)
    # 12 prompts x (BOS, turn, "user\n", "question N" 10 or 11, end, turn, "assistant\n")
    # = 12 x 20 + 10 x 10 + 2 x 11 ... with answers of 9, 6, 2 and 3 bytes and their ends
    prompts = 12 * (1 + 1 + 5 + 1 + 1 + 10) + 10 * 10 + 2 * 11
    assert found["n_tokens"] == prompts + 12 * (9 + 6 + 2 + 3 + 4)
    assert found["n_answers"] == 48
    assert found["memory_bytes"] >= 2 * 48 * 16 * 4
    assert not (tmp_path / "o.jsonl").exists()
    assert run("score", model, rollouts, "--dry-run") == 0
    assert "tokens to read" in capsys.readouterr().out


def test_a_dry_run_of_score_meets_mistakes_at_the_end_of_the_file(
    model, rollouts, tmp_path, capsys
):
    broken = tmp_path / "b.jsonl"
    broken.write_text(rollouts.read_text() + '{"prompt": "q", "responses": 3}\n')
    assert run("score", model, broken, "--dry-run") == 2
    assert "b.jsonl:13" in capsys.readouterr().err


def test_a_scorer_without_a_model_is_timed_on_the_first_chunk():
    chunks = [[Answer.of("q", "a" * 50)] * 4] * 3
    found = estimate_scoring(LengthScorer(prefers="longest"), chunks)
    assert (found.n_answers, found.n_tokens) == (12, None)
    assert found.seconds > 0


def test_workers_are_not_tried(monkeypatch):
    class Remote(FakeBackbone):
        pass

    monkeypatch.setattr(reading_estimate, "RemoteBackbone", Remote)
    said = estimate_fit(table(), Remote(), METHODS)
    assert (said.tokens_per_s, said.reading_s) == (None, None)
    assert said.n_tokens > 0
