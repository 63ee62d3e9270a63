"""Scores by objective, and `retrm select` steered by them."""

import json

import numpy as np
import pytest
import torch
from scored import reward_model

from retrm.backbone.fake import FakeBackbone
from retrm.cli.main import main
from retrm.errors import RecipeError
from retrm.features.recipe import Recipe
from retrm.heads.mixture import MixtureHead
from retrm.records import Answer
from retrm.scorers.base import ObjectiveScorer
from retrm.scorers.baseline import LengthScorer, RandomScorer
from retrm.scorers.objectives import (
    MixtureObjectives,
    ObjectivePanel,
    objectives_of,
    parse_panel,
)
from retrm.scorers.open import open_scorer

ANSWERS = [Answer.of(f"q{i // 2}", "ab" * (i + 1)) for i in range(6)]
NAMES = ("helpfulness", "verbosity")


@pytest.fixture(scope="module")
def mixture():
    model = reward_model(
        FakeBackbone(),
        Recipe(context="prompt_end"),
        "mixture",
        objectives=NAMES,
        verbosity=1,
        n_context=FakeBackbone().width,
    )
    head = model.artifact.head
    assert isinstance(head, MixtureHead)
    generator = torch.Generator().manual_seed(3)
    head.set_objectives(torch.randn(head.weight.shape, generator=generator))
    head.set_lambdas(torch.tensor([0.4, 1.0]))
    return model


def test_a_mixture_gives_its_objectives_and_its_score_from_one_reading(mixture, monkeypatch):
    n_passes = []
    forward = mixture.backbone.forward

    def counted(*args, **kwargs):
        n_passes.append(1)
        return forward(*args, **kwargs)

    alone = mixture.score(ANSWERS)
    monkeypatch.setattr(mixture.backbone, "forward", counted)
    mixture.score(ANSWERS)
    one_reading = len(n_passes)
    panel = objectives_of(mixture)
    n_passes.clear()
    values, scores = panel.with_scores(ANSWERS)

    assert len(n_passes) == one_reading
    assert isinstance(panel, MixtureObjectives)
    assert isinstance(panel, ObjectiveScorer)
    assert panel.objectives == NAMES
    assert scores == pytest.approx(alone, abs=1e-5)
    # Raw ratings: verbosity is itself, not the 0 that debiasing leaves.
    explained = [mixture.explain(a.prompt, a.response) for a in ANSWERS]
    assert values == pytest.approx(np.array([one.objective_scores for one in explained]), abs=1e-4)
    assert np.abs(values[:, 1]).min() > 0


def test_scorers_side_by_side_are_objectives_in_the_order_of_their_names():
    panel = open_scorer("objectives:brevity=shortest,luck=random")

    values = panel.objective_scores(ANSWERS)

    assert panel.objectives == ("brevity", "luck")
    assert values[:, 0].tolist() == [-2, -4, -6, -8, -10, -12]
    assert values[:, 1] == pytest.approx(RandomScorer().score(ANSWERS))
    assert objectives_of(panel) is panel
    with pytest.raises(RecipeError, match=r"gives 2 scores an answer.*--rule pareto"):
        panel.score(ANSWERS)


def test_what_has_no_objectives_is_refused():
    plain = reward_model(FakeBackbone(), Recipe())
    for scorer in (plain, LengthScorer(prefers="longest")):
        with pytest.raises(RecipeError, match="and no objectives; expected a model made by"):
            objectives_of(scorer)
    with pytest.raises(RecipeError, match="got no objectives"):
        ObjectivePanel({})
    for text in ("", "a", "a=", "=longest"):
        with pytest.raises(RecipeError, match="expected NAME=SCORER"):
            parse_panel(text)
    with pytest.raises(RecipeError, match="names 'a' twice"):
        parse_panel("a=longest,a=shortest")
    with pytest.raises(RecipeError, match="the scorer 'longest' is named twice"):
        open_scorer("objectives:a=longest,b=longest")


# ------------------------------------------------------------------------ retrm select

# Characters 2, 8, 5 and 3, 3: brevity is minus that, worth is what `table` says.
ROWS = [
    {"prompt": "p", "responses": ["aa", "bbbbbbbb", "ccccc"]},
    {"prompt": "q", "responses": ["ddd", "eee"]},
]
WORTH = {"aa": 1.0, "bbbbbbbb": 9.0, "ccccc": 6.0, "ddd": 2.0, "eee": 3.0}
PANEL = "objectives:brevity=shortest,worth=scores:{worth}"


@pytest.fixture
def files(tmp_path):
    rollouts, worth = tmp_path / "r.jsonl", tmp_path / "w.jsonl"
    rollouts.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    scored = [{**row, "score": [WORTH[text] for text in row["responses"]]} for row in ROWS]
    worth.write_text("".join(json.dumps(row) + "\n" for row in scored))
    return PANEL.format(worth=worth), str(rollouts)


def selected(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["select", *arguments, "--json"])
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    return found, [row["response"] for row in found["selected"]]


def test_weights_steer_best_of_n(files, capsys):
    # worth - 0: 9 and 3; worth + 2 x brevity: 1 - 4, 9 - 16, 6 - 10 and 2 - 6, 3 - 6.
    assert selected(capsys, *files, "--weights", "worth=1")[1] == ["bbbbbbbb", "eee"]
    found, kept = selected(capsys, *files, "--weights", "worth=1,brevity=2")
    assert kept == ["aa", "eee"]
    assert [row["score"] for row in found["selected"]] == [-3.0, -3.0]


def test_constraints_leave_prompts_without_an_answer_and_say_so(files, capsys):
    found, kept = selected(
        capsys, *files, "--weights", "worth=1", "--require", "brevity>=-6", "--require", "worth>=4"
    )
    assert kept == ["ccccc", None]
    assert (found["n_forbidden"], found["n_without_allowed"], found["n_abstained"]) == (4, 1, 1)
    assert found["selected"][0]["index"] == 2


def test_pareto_keeps_what_no_other_beats_in_everything(files, capsys):
    # p: brevity ranks 0, 2, 1 and worth ranks 2, 0, 1: worst 2, 2, 1. q: equal brevity, eee worth more.
    found, kept = selected(capsys, *files, "--rule", "pareto")
    assert kept == ["ccccc", "eee"]
    assert found["n_ties"] == 0
    assert found["selected"][0]["score"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "worth"], "expected NAME=NUMBER"),
        (["--weights", "price=1"], "no objective 'price'"),
        (["--require", "worth"], "expected objectives on the left"),
        (["--rule", "pareto", "--weights", "worth=1"], "this rule uses no score"),
        (["--vote-weights", "softmx"], "Did you mean 'softmax'"),
        ([], "gives 2 scores an answer"),
    ],
)
def test_steering_that_cannot_be_is_refused(files, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        main(["select", *files, *arguments])
    assert end.value.code not in (0, None)
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("arguments", [["--weights", "price=1"], ["--require", "price<=1"]])
def test_steering_by_what_is_not_there_is_refused_before_anything_is_scored(
    files, capsys, monkeypatch, arguments
):
    def scored(panel, answers):
        raise AssertionError("hours of reading came first")

    monkeypatch.setattr(ObjectivePanel, "objective_scores", scored)
    with pytest.raises(SystemExit) as end:
        main(["select", *files, *arguments])
    assert end.value.code not in (0, None)
    assert "no objective 'price'" in " ".join(capsys.readouterr().err.split())


def test_a_scorer_of_one_score_cannot_be_steered(files, capsys):
    with pytest.raises(SystemExit) as end:
        main(["select", "longest", files[1], "--rule", "pareto"])
    assert end.value.code not in (0, None)
    assert "longest gives one score and no objectives" in " ".join(capsys.readouterr().err.split())


def test_steering_from_the_command_line_is_that_of_a_hand_computation(mixture, tmp_path, capsys):
    mixture.save(tmp_path / "rm")
    rng = np.random.default_rng(5)
    texts = [["".join(rng.choice(list("abcdef !"), 12)) + "." for _ in range(5)] for _ in range(6)]
    data = tmp_path / "r.jsonl"
    rows = ({"prompt": f"q{k}", "responses": own} for k, own in enumerate(texts))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    r = np.array(
        [[mixture.explain(f"q{k}", t).objective_scores for t in own] for k, own in enumerate(texts)]
    )
    bound = float(np.median(r[:, :, 1]))
    steered = r[:, :, 0] - 0.3 * r[:, :, 1]
    kept = np.where(r[:, :, 1] <= bound, steered, -np.inf)
    # The rank of a candidate is how many are ahead: worst rank, then the sum, then the first.
    ranks = (r[:, None, :, :] > r[:, :, None, :]).sum(axis=2)
    front = [min(range(5), key=lambda i: (*(np.max(a[i]), np.sum(a[i])), i)) for a in ranks]

    def chosen(*options):
        with pytest.raises(SystemExit) as end:
            main(["select", str(tmp_path / "rm"), str(data), "--json", *options])
        assert not end.value.code
        said = json.loads(capsys.readouterr().out)["selected"]
        return [None if row["index"] is None else row["index"] % 5 for row in said]

    weights = ("--weights", "helpfulness=1,verbosity=-0.3")
    expected = [None if np.isinf(row).all() else int(row.argmax()) for row in kept]
    assert chosen(*weights) == steered.argmax(axis=1).tolist()
    assert chosen(*weights, "--require", f"verbosity<={bound!r}") == expected
    assert chosen("--rule", "pareto") == front
    assert len({tuple(expected), tuple(front), tuple(steered.argmax(axis=1))}) == 3
