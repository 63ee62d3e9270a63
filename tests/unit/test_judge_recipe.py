"""The small proof: its pairs and traces, its figures, and the page that is made of its results."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from retrm.judges.registry import get_template

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "judges" / "results.json"


def loaded(name):
    spec = importlib.util.spec_from_file_location(
        f"judge_recipe_{name}", ROOT / "recipes" / "judges" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made():
    return loaded("pairs")


def test_no_question_stands_in_two_files_and_no_held_out_topic_is_trained_on(made):
    parts = made.all_pairs()
    asked = {name: {row["prompt"] for row in rows} for name, rows in parts.items()}

    assert {row["kind"] for row in parts["held_out"]} == {"sum", "topic", "refusal"}
    for a, b in (("cold", "train"), ("cold", "held_out"), ("train", "held_out")):
        assert not asked[a] & asked[b]
    told = {
        row["rejected"]
        for name in ("cold", "train")
        for row in parts[name]
        if row["kind"] == "topic"
    }
    assert not told & {row["chosen"] for row in parts["held_out"]}


def test_sums_are_right_and_wrong(made):
    for row in made.all_pairs()["train"]:
        if row["kind"] == "sum":
            a, b = (int(word) for word in row["prompt"].strip("?").split() if word.isdigit())
            assert int(row["chosen"]) == a + b != int(row["rejected"])


def test_every_rule_made_trace_says_its_label_in_its_last_sentence_too(made):
    from retrm.finetuning.rewards import R1RewardReward

    template = get_template("r1_reward", wording=made.WORDING)
    for row in made.all_pairs()["cold"]:
        for first in (True, False):
            trace = made.trace_of(row, first)
            assert template.parse(trace["trace"]).winner == trace["label"]
            (earned,) = R1RewardReward()([trace["trace"]], [trace["label"]])
            assert earned.reward == 2.0


def row(pair, swapped, winner, label="first", kind="sum"):
    return {
        "pair": pair,
        "prompt_id": f"q{pair}",
        "kind": kind,
        "swapped": swapped,
        "label": label,
        "winner": winner,
        "tokens": 10,
    }


def test_figures_count_both_orders_and_unread_outputs_as_wrong():
    pytest.importorskip("trl", reason="trl is not installed")
    figures = loaded("run").figures(
        [
            *(row(0, False, "first"), row(0, True, "first")),  # right twice
            *(row(1, False, "first"), row(1, True, "second")),  # says the first shown both times
            *(row(2, False, None), row(2, True, "first")),  # one cannot be read
        ]
    )

    assert figures["accuracy"]["value"] == pytest.approx(4 / 6, abs=1e-4)
    assert figures["parse_rate"]["value"] == pytest.approx(5 / 6, abs=1e-4)
    assert figures["both_orders_right"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["agreement"] == 0.5  # pairs 0 and 1 are readable in both
    # Shown first: 0 not swapped, 1 both times; second: 0 swapped, 2 swapped.
    assert figures["first_rate"] == pytest.approx(3 / 5)


def results_with(runs):
    interval = {
        "value": 0.52,
        "low": 0.44,
        "high": 0.6,
        "n": 65,
        "n_clusters": 36,
        "n_undefined": 0,
    }
    judge = {
        "parse_rate": interval,
        "accuracy": interval,
        "both_orders_right": interval,
        "agreement": 0.4,
        "first_rate": 0.3,
        "mean_tokens": 30.0,
        "by_kind": {"sum": 0.5},
    }
    return {
        "judges": {"before": judge, "cold": judge, **dict.fromkeys(runs, judge)},
        "runs": runs,
        "cold": {"n_traces": 10, "processor_seconds": 5.0},
        "head": {"accuracy": interval, "processor_seconds": 3.0},
        "options": {
            "sft": {"epochs": 2},
            "lora": {"rank": 8},
            "reinforce": {"steps": 8, "batch_size": 14, "updates": 2, "learning_rate": 1e-4},
            "seeds": [0, 1, 2],
            "max_new_tokens": 56,
            "stale_set": 2,
            "group_sizes": {"grpo": 7},
        },
    }


def test_the_page_says_chance_where_intervals_hold_it_and_names_broken_runs():
    metrics = [
        {
            "step": step,
            "reward": 1.0,
            "largest_ratio": 10.0 ** (step == 5),
            "policy_loss": -3.0,
            "grad_norm": 2.0,
        }
        for step in range(1, 9)
    ]
    done = {"processor_seconds": 9.0, "metrics": metrics}
    text = loaded("page").page(
        results_with(
            {"grpo-0": done, "reinforce_pp-1": {**done, "broken": "the loss is inf at step 5; x"}}
        )
    )

    assert "`cold`: .520 [.440, .600] is **not told apart from chance**" in text.replace("0.", ".")
    assert "1 of 2 runs ended in a loss that is no finite number: reinforce_pp-1." in text
    assert "| broke: the loss is inf at step 5 |" in text


def test_the_committed_page_is_made_of_the_committed_results():
    if not RESULTS.is_file():
        pytest.skip("the proof has not been run to its end here")
    page = loaded("page")
    assert page.PAGE.read_text("utf-8") == page.page(json.loads(RESULTS.read_text("utf-8")))
