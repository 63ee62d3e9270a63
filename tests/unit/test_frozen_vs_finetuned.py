"""The recipe that compares frozen heads with fine-tuning, on a tiny model."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from trained import pair_table, tiny

from retrm.data.load import load_table
from retrm.errors import DataError, RecipeError

FOLDER = Path(__file__).parents[2] / "recipes" / "frozen_vs_finetuned"


def script(name: str):
    """A recipe as a module; it is no part of the package."""
    spec = importlib.util.spec_from_file_location(f"frozen_recipe_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run, page, rmb_pairs = (script(name) for name in ("run", "page", "rmb_pairs"))


def pair_file(folder: Path, name: str, prompts: range) -> Path:
    path = folder / name
    rows = [{"prompt": f"q{i}?", "chosen": "yes", "rejected": "no"} for i in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(folder: Path, *more: str) -> list[str]:
    tiny(folder / "lm")
    fit = pair_file(folder, "fit.jsonl", range(12))
    near, far = (
        pair_file(folder, f"{name}.jsonl", prompts)
        for name, prompts in (("near", range(20, 26)), ("far", range(40, 44)))
    )
    plain = {
        "--near": near,
        "--far": f"other={far}",
        "--model": folder / "lm",
        "-o": folder / "out",
        "--result": folder / "result.json",
        "--sizes": "4",
        "--arms": "last_token,head_lora",
        "--against": "last_token",
        "--batch-size": 4,
        "--rank": 2,
    }
    return [str(fit), *(str(word) for pair in plain.items() for word in pair), *more]


def test_arms_are_learnt_measured_and_kept(tmp_path, monkeypatch):
    args = run.parse(words(tmp_path, "--evaluate-steps", "1"))
    result = run.run(args)

    assert [(row["arm"], row["n_prompts"], row["n_pairs"]) for row in result["rows"]] == [
        ("last_token", 4, 4),
        ("head_lora", 4, 4),
    ]
    head, tuned = result["rows"]
    assert head["n_trained"] == 17  # 16 weights and a bias
    assert set(tuned["figures"]) == {"near", "other"}
    assert tuned["figures"]["near"]["pair accuracy"]["n"] == 6
    assert tuned["minus last_token"]["near"]["pair accuracy"]["n"] == 6
    assert head["minus last_token"] == {}
    assert sorted(map(int, tuned["looks"])) == [0, 1]
    assert 0 < head["bytes"] < tuned["bytes"]

    monkeypatch.setattr(run, "run_cell", None)  # what is done is not done again
    assert run.run(args)["rows"] == result["rows"]

    for path in (tmp_path / "result.json", tmp_path / "page.md"):
        monkeypatch.setattr(
            sys, "argv", ["page.py", str(tmp_path / "result.json"), "-o", str(tmp_path / "page.md")]
        )
        page.main()
        assert path.is_file()
    text = (tmp_path / "page.md").read_text()
    assert text.count("| `head_lora` |") == 1
    assert (tmp_path / "page" / "result.png").read_bytes().startswith(b"\x89PNG")


def test_smaller_sets_of_prompts_lie_in_larger_ones(tmp_path):
    table = pair_table(tmp_path, n=10)
    sets = [set(run.subset(table, n, 3).prompt_ids) for n in (2, 5, 10)]
    assert sets[0] < sets[1] < sets[2]
    assert sets[0] != set(run.subset(table, 2, 4).prompt_ids)
    with pytest.raises(DataError, match="at least 11"):
        run.subset(table, 11, 0)


def test_sets_that_share_prompts_and_unknown_arms_are_refused(tmp_path):
    shared = pair_file(tmp_path, "shared.jsonl", range(5, 8))
    with pytest.raises(DataError, match="'again' shares 3 prompts"):
        run.study_of(run.parse(words(tmp_path, "--far", f"again={shared}")))
    with pytest.raises(RecipeError, match="Did you mean 'lora'"):
        run.study_of(run.parse(words(tmp_path, "--arms", "lor")))
    with pytest.raises(RecipeError, match="name both"):
        run.study_of(run.parse(words(tmp_path, "--arms", "head_lora")))


def test_an_answer_that_was_left_out_is_worth_less_than_any_other(tmp_path):
    table = pair_table(tmp_path, n=2)
    # chosen and rejected of both prompts; the second chosen answer was left out
    found = run.statistics_of([1.0, 0.0, None, -5.0], table)["pair accuracy"]
    assert run.clustered_bootstrap(found).value == 0.5


def test_rmb_pairs_are_preferences(tmp_path):
    from benchmark_rows import ROWS

    folder = tmp_path / "rmb"
    for name, rows in ROWS["rmb"].items():
        path = folder / (name if name.endswith(".json") else f"{name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(list(rows)))
    made = rmb_pairs.rows_of(folder)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    assert len(load_table(path).pairs) == len(made) > 0


def test_a_block_of_a_page_is_made_again_and_other_words_stay():
    first = page.with_block("# Title\n\nWords.\n", "hh", "one")
    again = page.with_block(first, "hh", "two")
    assert "Words." in again
    assert "one" not in again
    assert again.count("<!-- hh:") == 1
