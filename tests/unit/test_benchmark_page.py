"""The page of benchmarks and its recipe: raw scores are packed, and the page says what they say."""

import importlib
import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrm.evaluation.benchmarks.base import ScoredItem
from retrm.evaluation.score_file import ScoredRow, ScoreFile, write_scores

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
HEAD, PEER = "runs/b/toy/rmb/last_token", "hf:runs/b/toy/lora"


def recipe(name: str):
    """A recipe as a module; it is no part of the package."""
    path = ROOT / "recipes" / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_recipe_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("make_benchmarks")


def scores(scorer: str, margin: float, kind: str = "scorer", n: int = 40) -> ScoreFile:
    """LLMBar items of which the first is right by `margin`, the next wrong by it, and so on."""
    rows = []
    for i in range(n):
        is_right = i % 4 < 3 if margin > 0 else i % 4 == 0
        item = ScoredItem(
            *(f"{'Natural' if i % 2 else 'Manual'}/{i}", "Natural" if i % 2 else "Manual", f"c{i}"),
            facts={"label": 1},
            n_characters=(9, 9),
            scores=np.array([1.0, 0.0] if is_right else [0.0, 1.0]),
        )
        rows.append(ScoredRow(item, None, (False, False)))
    return ScoreFile("llmbar", scorer, tuple(rows), kind)


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """The folders that the commands of the recipe leave, on one benchmark."""
    monkeypatch.chdir(tmp_path)
    toy = Path("runs/b/toy")
    for run, files in {
        "llmbar_heads": [scores(HEAD, 1), scores("random", -1, "baseline")],
        "llmbar_lora": [scores(PEER, -1), scores("random", -1, "baseline")],
    }.items():
        (toy / run / "scores").mkdir(parents=True)
        for number, file in enumerate(files):
            write_scores(toy / run / "scores" / f"{number}.jsonl", file)
        found = {"contamination": {"llmbar": {"n_items": 1, "n_total": 40, "ids": ["Manual/0"]}}}
        (toy / run / "evaluation.json").write_text(json.dumps(found if "heads" in run else {}))
    Path(HEAD).mkdir(parents=True)
    fitted = {"source": "pairs.jsonl", "counts": {"pairs": 300}, "n_train_answers": 500}
    made = {"method": "last_token", "head": {"n_params": 10}, "fitted": fitted}
    (Path(HEAD) / "reward_model.json").write_text(json.dumps(made))
    printed = {"models": {"last_token": HEAD}, "n_tokens": 1234, "reading_s": 40.0}
    took = {"seconds": 60.0, "processor_seconds": 50.0, "printed": printed}
    (Path(HEAD).parent / "fit.json").write_text(json.dumps(took))
    (toy / "lora").mkdir()
    training = {
        **{"kind": "LoRA, rank 8", "versions": {"trl": "1.16.0"}, "n_trained": 1000},
        **{"n_parameters": 100_000, "pairs": "pairs.jsonl", "n_pairs_read": 290, "epochs": 1},
        **{"seconds": 300.0, "processor_seconds": 200.0, "loss": [0.7]},
    }
    (toy / "lora" / "training.json").write_text(json.dumps(training))
    return toy


def test_scores_are_packed_with_what_was_trained_and_what_overlaps(runs, tmp_path):
    collect = recipe("collect")
    collect.collect(runs, tmp_path / "out" / "toy")
    found = sorted(p.name for p in (tmp_path / "out" / "toy").iterdir())

    assert found == [
        "llmbar_heads.llmbar.random.jsonl.gz",
        "llmbar_heads.llmbar.runs-b-toy-rmb-last_token.jsonl.gz",
        "llmbar_lora.llmbar.hf-runs-b-toy-lora.jsonl.gz",
        "llmbar_lora.llmbar.random.jsonl.gz",
        "overlap.json",
        "trained.json",
    ]
    trained = json.loads((tmp_path / "out" / "toy" / "trained.json").read_text())
    assert trained[HEAD]["n_trained"] == 10
    assert trained[HEAD]["reading_seconds"] == 40
    assert trained[PEER]["n_parameters"] == 100_000
    before = {p.name: p.read_bytes() for p in (tmp_path / "out" / "toy").iterdir()}
    collect.collect(runs, tmp_path / "out" / "toy")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out" / "toy").iterdir()} == before


def test_the_page_puts_heads_beside_the_fine_tuned_model_of_the_same_items(runs, tmp_path, page):
    recipe("collect").collect(runs, tmp_path / "out" / "toy")
    (run,) = page.stored(tmp_path / "out")

    assert run.heads == ["last_token"]
    assert run.peer == "fine-tuned (LoRA, rank 8)"
    claim = page.claim([run])
    assert "trains 1,000 of 100,000 parameters on 290 pairs in 200 s on the processor" in claim
    assert "Of 1 differences of a head to it 1 lie above zero by their interval, 0 below" in claim
    assert "Its training loss on the way: .700; log 2" in claim
    # 10 of 100,000 parameters, 10 of 1,000, 50 s of 200 s; 1 - .5 of the Manual items.
    assert "| `last_token` | 10 | 0.01000% | 1.000% | 50 (25%) | 20 (6.7%) | **.5" in claim
    table = page.one_table(run)
    assert "`toy`: 40 items, 40 prompts." in table
    assert "| `last_token` | 1.000 (no spread) | .500 " in table
    assert "(random) | **.500 [" in table  # to the baseline and to the peer
    assert "| chance | .500 | .500 | .500 | – | – |" in table
    assert "- 1 of 40 items stand in the data that heads were fitted on" in table
    assert "| 300 pairs | 10 | 1,234 | 50 | 60 | 40 |" in page.trained([run])
    assert "| 290 pairs | 1,000 | – | 200 | 300 | – |" in page.trained([run])
    assert "LLMBar: adversarial sets, mean (n 20)" in page.headlines([run])
    assert "LLMBar" not in page.missing([run])


def test_other_scores_for_the_same_items_are_refused(runs, tmp_path, page):
    write_scores(runs / "llmbar_lora" / "scores" / "1.jsonl", scores("random", 1, "baseline"))
    recipe("collect").collect(runs, tmp_path / "out" / "toy")

    with pytest.raises(ValueError, match="other scores of random for the same items"):
        page.stored(tmp_path / "out")


def test_a_folder_without_runs_is_refused(tmp_path):
    collect = recipe("collect")
    with pytest.raises(collect.DataError, match="holds no folder that retrm eval wrote"):
        collect.collect(tmp_path, tmp_path / "out")


@pytest.mark.usefixtures("page")
def test_the_committed_page_is_that_of_the_committed_scores(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_benchmarks.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(DOCS / "make_benchmarks.py"), run_name="__main__")

    assert ended.value.code == 0, capsys.readouterr().err


def test_a_command_is_timed_and_a_failed_one_leaves_nothing(tmp_path):
    script = ROOT / "recipes" / "benchmarks" / "timed.py"
    out = tmp_path / "deep" / "fit.json"
    code = "sum(range(10_000_000)); print('{\"n_tokens\": 3}')"
    words = [sys.executable, "-c", code]
    subprocess.run([sys.executable, script, "-o", out, "--", *words], check=True)
    took = json.loads(out.read_text())

    assert took["printed"] == {"n_tokens": 3}
    assert 0 < took["processor_seconds"] < 60
    out.unlink()
    fails = [sys.executable, "-c", "raise SystemExit(3)"]
    done = subprocess.run([sys.executable, script, "-o", out, "--", *fails], check=False)
    assert done.returncode == 3
    assert not out.exists()
