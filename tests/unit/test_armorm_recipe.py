"""The recipe of ArmoRM's page: what is drawn of public files, and that figures are out of fold."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_rows import rmb_pair

from retrm.audit.directions import Directions
from retrm.backbone.base import Unembedding
from retrm.features.reduce import Features
from retrm.fitting.mixture_controls import MixtureScores

RECIPE = Path(__file__).parents[2] / "recipes" / "armorm"
N, WIDTH, N_FOLDS = 24, 8, 3


@pytest.fixture(scope="module")
def recipe():
    """Its modules by name; they are no part of the package and import each other."""
    names = ("prepare", "states", "fits", "figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RECIPE))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            sys.modules.pop(name, None)


def _drawn(seed: list[int], most: int) -> int:
    """0..most, as good as at random."""
    return int(np.random.default_rng(seed).integers(0, most + 1))


def _talk(i: int, system: int) -> dict:
    axes = {name: _drawn([i, system, 0], 1) for name in ("understandability", "groundedness")}
    for k, name in enumerate(("naturalness", "coherence", "engagingness")):
        axes[name] = 1 + _drawn([i, system, k], 2)
    return {
        **{"source": f"hello {i} .", "context": f"a fact {i} .", "system_id": str(system)},
        **{
            "system_output": f"reply {system} to {i} .",
            "scores": {**axes, "overall": 1 + _drawn([i, system], 4)},
        },
    }


def _sentence(i: int) -> dict:
    axes = ("informativeness", "naturalness", "overall")
    return {
        **{"doc_id": i, "source": f"inform(n={i // 2})", "reference": "-"},
        **{"system_output": f"It is {i}."},
        "scores": {name: 1 + _drawn([i, k], 5) for k, name in enumerate(axes)},
    }


def _question(i: int) -> dict:
    texts = {f"prediction {j}": f"Answer {j}" + " indeed" * (j * i % 4) for j in range(1, 5)}
    kind = ("Irrelevant", "Unverifiable")[_drawn([i], 1)]
    errors = [{"error type": kind, "start": 0, "end": 1 + i % 5}]
    grades = ("Missing-Answer", "Missing-Major-Auxiliary", "Missing-Minor-Auxiliary")
    missing = [{"error type": grade} for grade in grades[_drawn([i, 1], 3) :]]
    return {
        **{"question": f"What is {i}?", "passages": [["Title", "Title\n\nLong text."]]},
        **{"gold": "it", **texts},
        "feedback": {"errors": errors, "missing-info": missing, "corrected-prediction": ""},
        "preference": [1, 2, 0, 1, 1, 2],
    }


def _write(path: Path, rows: list, *, lines: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(r) + "\n" for r in rows) if lines else json.dumps(rows)
    path.write_text(text)


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> Path:
    """Sets in the layouts of their authors."""
    root = tmp_path_factory.mktemp("public")
    _write(
        root / "unieval/dialogue/topical_chat.json",
        [_talk(i, s) for i in range(N) for s in range(3)],
    )
    _write(root / "unieval/data2text/sfres.json", [_sentence(i) for i in range(N)])
    _write(root / "unieval/data2text/sfhot.json", [_sentence(i) for i in range(N, 2 * N)])
    _write(root / "finegrained_rlhf_qa/dev_feedback.json", [_question(i) for i in range(N)])
    pairs = [
        rmb_pair(f"{i}-{j}", "Helpfulness", f"Name tree {i}.") for i in range(N) for j in range(3)
    ]
    _write(root / "rmb/Pairwise_set/Helpfulness/Chat/Talk.json", pairs)
    turns = [f"\n\nHuman: Is {i} safe?\n\nAssistant:" for i in range(N)]
    hh = [{"chosen": f"{t} No, not {i}.", "rejected": f"{t} Yes."} for i, t in enumerate(turns)]
    _write(root / "hh/test.jsonl", hh, lines=True)
    return root


def _controls(head, features, targets, held_out, options, *, seed):
    """Stands in for controls that are fitted, which have tests of their own."""
    adjusted = head.adjusted(head.objective_scores(head.split(held_out)[0])).detach().numpy()
    names = (
        "uniform gate",
        "best objective: x",
        "constant gate",
        "linear head",
        "without debiasing",
    )
    return MixtureScores({name: adjusted.mean(axis=1) for name in names}, {}, {}, None)


def _prepare(recipe, monkeypatch, public, out, n):
    words = ["--dialogues", n, "--meanings", n, "--questions", n, "--pairs", n]
    line = ["prepare.py", "--public", public, "-o", out, *words]
    monkeypatch.setattr(sys, "argv", list(map(str, line)))
    recipe["prepare"].main()


def test_a_larger_draw_holds_the_smaller_one_and_draws_whole_prompts(
    recipe, public, tmp_path, monkeypatch
):
    _prepare(recipe, monkeypatch, public, tmp_path / "small", 6)
    _prepare(recipe, monkeypatch, public, tmp_path / "large", 15)
    small = recipe["states"].tables(tmp_path / "small")
    large = recipe["states"].tables(tmp_path / "large")

    # 6 dialogues x 3 systems, 6 meanings x 2 sentences, 6 questions x 4, 6 pairs x 2
    assert {name: len(t) for name, t in small.items()} == {
        **{"talk": 18, "data2text": 12, "finegrained": 24},
        **{"rmb": 12, "hh": 12},
    }
    for name in small:
        kept, more = ({(a.prompt_id, a.response) for a in t[name].answers} for t in (small, large))
        assert kept < more
    assert "Long text" not in (tmp_path / "small" / "finegrained.json").read_text()


@pytest.fixture(scope="module")
def measured(recipe, public, tmp_path_factory):
    """Fits on states in which one objective is planted and all else is noise."""
    out = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        _prepare(recipe, patch, public, out, N)
        options = replace(
            recipe["fits"].OPTIONS, steps=4, gate_width=4, gate_layers=1, evaluate_every=2
        )
        patch.setattr(recipe["fits"], "OPTIONS", options)
        patch.setattr(recipe["fits"], "held_out_scores", _controls)
        for name in ("fits", "figures"):
            patch.setattr(recipe[name], "N_FOLDS", N_FOLDS)
        sets = recipe["states"].tables(out)
        table = recipe["states"].joined(sets)
        generator = torch.Generator().manual_seed(0)
        last = torch.randn(len(table), 2 * WIDTH, generator=generator)
        planted = torch.from_numpy(np.nan_to_num(table.ratings["engagingness"])).float()
        last[:, 0] = planted
        ids = table.prompt_ids.tolist()
        last[:, WIDTH:] = last[[ids.index(one) for one in ids], WIDTH:]  # prompts have one state
        states = {
            name: Features(values, torch.arange(len(table) + 1), True)
            for name, values in (("last", last), ("pooled", last))
        }
        weight = torch.randn(40, WIDTH, generator=generator)
        head = Unembedding(weight, None, torch.ones(WIDTH), None, "rms", 1e-5)
        members = recipe["fits"].members_of(table, sets)
        found = recipe["fits"].fit_all(table, members, states, Directions(head, ("raw",)))
        folder = tmp_path_factory.mktemp("runs")
        np.savez_compressed(folder / "scores.npz", **found.scores)
        (folder / "fits.json").write_text(json.dumps({"fits": found.reports}))
        yield out, folder


def test_every_answer_is_scored_out_of_fold_by_every_fit(measured):
    _, folder = measured
    with np.load(folder / "scores.npz") as stored:
        holes = [name for name in stored.files if np.isnan(stored[name]).any()]
        names = set(stored.files)
    assert not holes
    assert {
        "mixture/full",
        "mixture/reasoning",
        "mixture/full, rmb alone",
        "ridge/factuality",
    } <= names
    assert {"linear head/full", "linear head/full, hh alone", "constant/relevance"} <= names


def test_a_planted_objective_is_found_and_noise_is_not(recipe, measured):
    found, facts = recipe["figures"].load(*measured)
    figures = {row["objective"]: row for row in recipe["figures"].rating_figures(found)}

    assert facts["sets"]["finegrained"]["n_pairs"] == 5 * N  # one preference of the six is a tie
    planted = figures["engagingness"]
    assert planted["correlation"]["ridge"]["low"] > 0.8
    assert planted["correlation"]["full"]["low"] > 0.8
    assert planted["explained"]["ridge"]["low"] > 0.5
    # ratings that nothing in the states follows: a head is no better than the mean, within rounding
    assert figures["relevance"]["explained"]["ridge"]["high"] < 0.5
    assert figures["relevance"]["correlation"]["length"]["n"] == N


def test_pairs_lengths_and_gates_are_told_by_set(recipe, measured):
    found, _ = recipe["figures"].load(*measured)
    pairs = recipe["figures"].pair_figures(found)
    rows = {row["name"]: row for row in pairs["hh"]["rows"]}

    assert {name: (one["n_pairs"], one["n_prompts"]) for name, one in pairs.items()} == {
        **{"finegrained": (5 * N, N), "rmb": (N, N), "hh": (N, N)},
    }
    assert rows["longest"]["accuracy"]["value"] == 1.0  # "No, not 7." against "Yes."
    assert "mixture/full, hh alone" in rows
    assert "mixture/full, rmb alone" not in rows
    assert set(recipe["figures"].length_figures(found)) == {"finegrained", "rmb", "hh"}
    gates = recipe["figures"].gate_figures(found)["rmb"]
    scales = [fit["logit_scale"] for fit in recipe["figures"].fit_figures(found)]
    # gates of a prompt sum to the scale of its fold, so their mean lies between the scales
    total = sum(one["value"] for one in gates.values())
    assert min(scales) - 0.01 <= total <= max(scales) + 0.01
