"""`retrm finetune` as a person types it."""

import json

import pytest
from command_line import run
from trained import pair_table, tiny

from retrm.scorers.open import open_scorer


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune_cli")
    tiny(folder / "lm")
    pair_table(folder, n=16)
    return folder


def test_a_run_prints_figures_draws_curves_and_writes_a_card(room, capsys):
    config = room / "training.toml"
    config.write_text("[training]\nlength_heads = true\n[loss_options]\nsmoothing = 0.1\n")
    command = [
        *("finetune", room / "pairs.jsonl", "--model", room / "lm", "-o", room / "run"),
        *("--rank", 2, "--batch-size", 4, "--device-batch", 4, "--learning-rate", 3e-3),
        *("--config", config, "--test-fraction", 0.25, "--evaluate-steps", 2),
    ]
    assert run(*command) == 0
    said = capsys.readouterr()
    assert "kind pairs" in said.err
    assert "finetuned" in said.out
    assert "shortest" in said.out
    assert f"retrm serve hf:{room / 'run' / 'model'}" in said.out.replace("\n", "")
    assert (room / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((room / "run" / "held_out.json").read_text())
    assert (figures["n_pairs"], figures["n_answers"]) == (4, 8)
    card = (room / "run" / "model" / "README.md").read_text()
    assert "length_heads=True" in card
    assert "smoothing=0.1" in card
    assert "| finetuned |" in card

    # The same command again finds the run done; another one is refused.
    assert run(*command, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["scorer"] == f"hf:{room / 'run' / 'model'}"
    assert again["runs"][0]["steps"] == 3
    assert run(*command, "--epochs", 2) == 2
    assert "holds a run with options=" in capsys.readouterr().err


def test_members_become_one_model(room, capsys):
    assert (
        run(
            *("finetune", room / "pairs.jsonl", "--model", room / "lm", "-o", room / "warm"),
            *("--rank", 0, "--batch-size", 8, "--device-batch", 8, "--members", 2),
            *("--test-fraction", 0, "--json"),
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert len(found["runs"]) == 2
    assert found["held_out"] is None
    assert open_scorer(found["scorer"]).name == "model"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kind", "pear"], "Did you mean 'pairs'"),
        (["--overlong", "cut"], "unknown policy"),
        (["--kind", "ratings"], "needs ratings"),
        (["--kind", "steps"], "expected a prompt, `steps`"),
        (["--members", "1"], "two or more"),
        (["--members", "2", "--combine", "warn"], "Did you mean 'warm'"),
        (["--rank", "-1"], "rank of -1"),
        (["--levels", "a,b", "--kind", "ordinal"], "with commas between"),
        (["--test-fraction", "1"], "below 1"),
        (["--max-length", "30"], "the context holds 30"),
        (["--start-head", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_mistakes_end_with_2_and_say_what_to_do(room, tmp_path, capsys, words, said):
    command = ["finetune", room / "pairs.jsonl", "--model", room / "lm", "-o", tmp_path / "run"]
    assert run(*command, *words) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run" / "model").exists()
