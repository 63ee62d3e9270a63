"""What the recipe of the benchmarks makes of public files: what eval reads, nothing on both sides."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from benchmark_rows import rmb_list, rmb_pair

from retrm.evaluation.benchmarks.rmb import RMB
from retrm.evaluation.benchmarks.source import open_source

PATH = Path(__file__).parents[2] / "recipes" / "benchmarks" / "prepare.py"


@pytest.fixture(scope="module")
def prepare():
    """The recipe as a module; it is no part of the package."""
    spec = importlib.util.spec_from_file_location("benchmark_recipe_prepare", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def public(tmp_path) -> Path:
    """Sets in the layouts of their authors."""
    asked = [f"Name a tree, {i}." for i in range(12)]
    pairs = [rmb_pair(f"{i}-{j}", "Helpfulness", q) for i, q in enumerate(asked) for j in range(3)]
    turns = [{"conversation_input": [{"role": "user", "content": q}]} for q in asked]
    lists = [rmb_list(f"{i}", "Helpfulness", "", 2) | turn for i, turn in enumerate(turns)]
    for folder, rows in (("Pairwise_set", pairs), ("BoN_set", lists)):
        path = tmp_path / "public" / "rmb" / folder / "Helpfulness" / "Chat" / "Talk.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(rows))
    return tmp_path / "public"


def run(prepare, monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, words)])
    prepare.main()


def test_the_halves_of_rmb_share_no_conversation_and_can_be_evaluated(
    prepare, public, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    run(prepare, monkeypatch, "--public", public, "-o", out, "--only", "rmb", "--pairs", 5)
    data = RMB().read(open_source(out / "rmb_test", pattern=RMB.pattern, name="rmb"))
    rows = [json.loads(line) for line in (out / "rmb_fit.jsonl").read_text().splitlines()]

    fitted = {row["prompt"][0]["content"] for row in rows}
    pairs = [item for item in data.items if item.subset == "helpful pairwise"]
    measured = {item.answers[0].prompt.messages[0].content for item in pairs}
    assert len(rows) == 5
    assert fitted
    assert measured
    assert not fitted & measured
    assert len(pairs) == 3 * len(measured)


def test_one_pair_of_each_conversation_is_drawn_whatever_the_files(
    prepare, public, tmp_path, monkeypatch
):
    words = ["--public", public, "--only", "rmb", "--one-each"]
    run(prepare, monkeypatch, *words, "-o", tmp_path / "a")
    source = open_source(tmp_path / "a" / "rmb_test", pattern=RMB.pattern, name="rmb")
    pairs = [item for item in RMB().read(source).items if item.subset == "helpful pairwise"]
    assert len(pairs) == len({item.cluster for item in pairs})

    # A second file with the same conversations adds none; the lists are drawn apart from the pairs.
    (public / "rmb/Pairwise_set/Helpfulness/Code").mkdir()
    again = [rmb_pair(f"more {i}", "Helpfulness", f"Name a tree, {i}.") for i in range(12)]
    (public / "rmb/Pairwise_set/Helpfulness/Code/More.json").write_text(json.dumps(again))
    run(prepare, monkeypatch, *words, "-o", tmp_path / "b")
    source = open_source(tmp_path / "b" / "rmb_test", pattern=RMB.pattern, name="rmb")
    items = RMB().read(source).items
    assert len([i for i in items if i.subset == "helpful pairwise"]) == len(pairs)
    assert any(i.subset == "helpful BoN" for i in items)


def codet(public: Path, prepare, prompts: list[str], sampled: list[str]) -> None:
    """Problems and samples as microsoft/CodeT publishes them."""
    for folder, name, rows in (
        (
            "dataset",
            prepare.HUMANEVAL_PROBLEMS,
            [{"task_id": f"HumanEval/{i}", "prompt": p} for i, p in enumerate(prompts)],
        ),
        (
            "generated_data",
            prepare.HUMANEVAL_SAMPLES,
            [{"prompt": p, "samples": ["    return 1\n", "    return 2\n"]} for p in sampled],
        ),
    ):
        path = public / "codet_humaneval" / folder / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_samples_of_humaneval_are_drawn_with_the_problem_that_they_answer(
    prepare, tmp_path, monkeypatch
):
    prompts = [f"def f{i}():\n" for i in range(9)]
    codet(tmp_path, prepare, prompts, prompts[::-1])
    words = ["--public", tmp_path, "--only", "humaneval", "--problems", 4]
    run(prepare, monkeypatch, *words, "-o", tmp_path / "out")
    text = (tmp_path / "out" / "humaneval_samples.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]

    assert len(rows) == 4
    assert all(row["prompt"] == prompts[int(row["task_id"][-1])] for row in rows)
    run(prepare, monkeypatch, *words, "-o", tmp_path / "again")
    assert (tmp_path / "again" / "humaneval_samples.jsonl").read_text() == text


def test_samples_of_no_known_problem_are_refused(prepare, tmp_path, monkeypatch):
    codet(tmp_path, prepare, ["def f():\n"], ["def g():\n"])
    words = ["--public", tmp_path, "--only", "humaneval", "-o", tmp_path / "out"]

    with pytest.raises(SystemExit, match="its prompt is of no problem"):
        run(prepare, monkeypatch, *words)
