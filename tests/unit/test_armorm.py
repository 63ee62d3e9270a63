"""ArmoRM end to end on the toy backbone: ratings and pairs in, a folder and its figures out."""

import json

import numpy as np
import pytest

from retrm.backbone.fake import FakeBackbone
from retrm.cli.main import main
from retrm.errors import FitError, LabelError, RecipeError
from retrm.fitting.estimate import estimate_fit
from retrm.fitting.fit import check_fit, fit
from retrm.methods import METHODS, method
from retrm.records import Answer, AnswerTable, Pair
from retrm.scorers.reward_model import RewardModel

QUICK = {"steps": 30, "gate_width": 8, "gate_layers": 1}
N_PROMPTS = 40


def _texts(prompt):
    return f"it is {prompt}!", f"it is, as far as one can tell, {prompt}."


def _rated(prompt):
    """HelpSteer's columns: good answers end in an exclamation mark, the others are wordy."""
    generator = np.random.default_rng(prompt)
    for text, good in zip(_texts(prompt), (4, 1), strict=True):
        noise = int(generator.integers(0, 2))
        yield {
            "prompt": f"question {prompt}",
            "response": text,
            "helpfulness": max(good - noise, 0),
            "correctness": good,
            "coherence": int(generator.integers(0, 5)),
            "complexity": int(generator.integers(0, 5)),
            "verbosity": 4 - good + noise,
        }


def _preferred(prompt):
    chosen, rejected = _texts(prompt)
    return {"prompt": f"question {prompt}", "chosen": chosen, "rejected": rejected}


def _table(n_prompts=N_PROMPTS, **changes):
    answers, columns, pairs = [], {"helpfulness": [], "correctness": [], "verbosity": []}, []
    for prompt in range(n_prompts):
        for record in _rated(prompt):
            answers.append(Answer.of(record["prompt"], record["response"]))
            for name, values in columns.items():
                values.append(record[name] / 8)
        pairs.append(Pair(2 * prompt, 2 * prompt + 1))
    ratings = {name: np.array(values) for name, values in columns.items()}
    changes = {"ratings": ratings, "pairs": tuple(pairs), **changes}
    return AnswerTable(tuple(answers), np.full(len(answers), np.nan), **changes)


def _written(folder, name, records):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _files(folder):
    rated = (record for prompt in range(N_PROMPTS) for record in _rated(prompt))
    return (
        _written(folder, "rated.jsonl", rated),
        _written(folder, "pairs.jsonl", map(_preferred, range(N_PROMPTS))),
    )


def _run(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    return caught.value.code or 0


@pytest.fixture(scope="module")
def fitted():
    methods = [method(name).with_changes(mixture=QUICK) for name in ("armorm", "armorm_retrm")]
    methods[1] = methods[1].with_changes(recipe={"subspace": "reasoning:4"})
    return fit(_table(), FakeBackbone(), methods)


def test_both_presets_are_fitted_from_one_reading(fitted):
    full, subspace = (model.artifact.head for model in fitted.models)

    assert full.n_context == subspace.n_context == FakeBackbone().width
    assert full.weight.shape == (3, FakeBackbone().width)
    assert subspace.weight.shape == (3, 4)
    assert full.objectives == ("helpfulness", "correctness", "verbosity")


def test_the_planted_objective_orders_the_held_out_pairs(fitted):
    scores = fitted.test_scores["armorm"].reshape(-1, 2)

    assert (scores[:, 0] > scores[:, 1]).mean() > 0.8


def test_the_controls_stand_beside_it(fitted):
    found = fitted.mixtures["armorm"]

    assert list(found.controls) == [
        "uniform gate",
        *(name for name in found.controls if name.startswith("best objective: ")),
        "constant gate",
        "linear head",
        "without debiasing",
    ]
    assert all(len(values) == len(fitted.test_rows) for values in found.controls.values())
    # Of the adjusted scores, that of verbosity is nothing; the uniform gate is their mean.
    assert not found.adjusted["verbosity"].any()
    mean = np.mean(list(found.adjusted.values()), axis=0)
    np.testing.assert_allclose(found.controls["uniform gate"], mean, atol=1e-5)


def test_any_pooling_and_layers_can_be_read():
    changes = {"pooling": "mean", "layers": "last2"}
    chosen = method("armorm").with_changes(recipe=changes, mixture=QUICK)
    backbone = FakeBackbone()
    (model,) = fit(_table(12), backbone, [chosen], test_fraction=0.0).models

    assert model.artifact.head.weight.shape == (3, 2 * backbone.width)
    assert model.artifact.fitted["solver"] == "mixture"


def test_a_saved_mixture_scores_as_before(fitted, tmp_path):
    model = fitted.models[0]
    model.save(tmp_path / "rm")
    loaded = RewardModel.load(tmp_path / "rm", backbone=FakeBackbone())
    rows = _table(3).answers

    np.testing.assert_array_equal(loaded.score(rows), model.score(rows))


def test_the_command_line_joins_ratings_and_pairs_of_two_files(tmp_path, capsys):
    rated, pairs = _files(tmp_path)
    config = tmp_path / "c.toml"
    config.write_text("[mixture]\nsteps = 30\ngate_width = 8\ngate_layers = 1\n")
    code = _run(
        *("fit", rated, "--pairs", pairs, "--model", "fake", "--method", "armorm"),
        *("--config", config, "-o", tmp_path / "rm", "--json"),
    )
    said = json.loads(capsys.readouterr().out)
    manifest = json.loads((tmp_path / "rm" / "reward_model.json").read_text())
    figures = said["mixtures"]["armorm"]

    assert code == 0
    # Both answers of every pair are rated ones: nothing is read twice.
    assert manifest["fitted"]["counts"]["answers"] == 2 * N_PROMPTS
    assert manifest["fitted"]["counts"]["answers_shared"] == 2 * N_PROMPTS
    assert manifest["metrics"]["mixture"] == figures
    names = [row["name"] for row in figures["pairs"]["rows"]]
    assert names[:2] == ["armorm", "uniform gate"]
    assert {"longest", "shortest", "random", "linear head", "constant gate"} <= set(names)
    by_name = {row["name"]: row for row in figures["objectives"]}
    assert by_name["correctness"]["correlation"]["value"] > 0.5
    assert by_name["correctness"]["length_correlation"]["value"] < 0
    assert by_name["verbosity"]["adjusted_length_correlation"] is None


def test_the_tables_of_a_mixture_are_printed(tmp_path, capsys):
    rated, pairs = _files(tmp_path)
    config = tmp_path / "c.toml"
    config.write_text("[mixture]\nsteps = 10\ngate_width = 8\ngate_layers = 1\n")
    _run(
        *("fit", rated, "--pairs", pairs, "--model", "fake", "--method", "armorm"),
        *("--config", config, "-o", tmp_path / "rm"),
    )
    printed = capsys.readouterr().out

    assert "rank correlation of each objective with its raters" in printed
    assert "uniform gate" in printed


def test_verbosity_can_be_a_computed_length(tmp_path, capsys):
    rated, pairs = _files(tmp_path)
    config = tmp_path / "c.toml"
    config.write_text("[mixture]\nsteps = 10\ngate_width = 8\ngate_layers = 1\n")
    code = _run(
        *("fit", rated, "--pairs", pairs, "--model", "fake", "--method", "armorm"),
        *("--objective", "length", "--verbosity", "length"),
        *("--config", config, "-o", tmp_path / "rm", "--json"),
    )

    assert code == 0
    assert json.loads(capsys.readouterr().out)["mixtures"]["armorm"]["verbosity"] == "length"


def _must_not_be_opened(*_arguments, **_options):
    raise AssertionError("a backbone was opened")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--verbosity", "length"), "no answer is rated on 'length'"),
        (("--verbosity", "verbosty"), "Did you mean"),
        (("--loss", "bce"), "the loss bce for the mixture head"),
        (("--method", "last_token", "--head", "mixture"), "never be embedded"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_a_model_is_opened(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("retrm.backbone.remote.open_backbone", _must_not_be_opened)
    rated, pairs = _files(tmp_path)
    chosen = () if "--method" in arguments else ("--method", "armorm")
    code = _run(
        *("fit", rated, "--pairs", pairs, "--model", "fake", *chosen, *arguments),
        *("-o", tmp_path / "rm"),
    )

    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "rm").exists()


def test_ratings_without_any_pairs_are_refused_with_a_remedy(tmp_path, capsys):
    rated, _ = _files(tmp_path)
    code = _run("fit", rated, "--model", "fake", "--method", "armorm", "-o", tmp_path / "rm")

    assert code == 2
    assert "--pairs" in capsys.readouterr().err
    assert not (tmp_path / "rm").exists()


def _check(table, **mixture):
    chosen = method("armorm").with_changes(mixture={**QUICK, **mixture})
    check_fit(table, FakeBackbone(), [chosen])


def test_an_objective_that_the_training_prompts_do_not_rate_is_refused_before_reading():
    ratings = dict(_table().ratings)
    ratings["rare"] = np.full(2 * N_PROMPTS, np.nan)
    ratings["rare"][:2] = [0.2, 0.8]
    with pytest.raises(LabelError, match="'rare' has no rating"):
        _check(_table(ratings=ratings))


def test_one_objective_only_is_refused_before_reading():
    ratings = {"helpfulness": _table().ratings["helpfulness"]}
    with pytest.raises(LabelError, match="got 1 objective"):
        _check(_table(ratings=ratings), verbosity="none")


def test_an_unknown_option_of_a_mixture_is_refused():
    with pytest.raises(RecipeError, match="unknown mixture option 'stepps'"):
        METHODS["armorm"].with_changes(mixture={"stepps": 3})


def test_a_dry_run_says_seconds_of_a_mixture():
    chosen = method("armorm").with_changes(mixture=QUICK)
    said = estimate_fit(_table(12), FakeBackbone(), [chosen])

    assert said.fitting_s > 0
    assert said.n_heads == 1


# ------------------------------------------------------------------------ ensembles


def _fit_it(folder, *more):
    rated, pairs = _files(folder)
    config = folder / "c.toml"
    config.write_text("[mixture]\nsteps = 10\ngate_width = 8\ngate_layers = 1\n")
    return _run(
        *("fit", rated, "--pairs", pairs, "--model", "fake", "--method", "armorm"),
        *("--config", config, "-o", folder / "rm", "--json", *more),
    )


def test_an_ensemble_of_mixtures_is_fitted_scored_and_gone_after_a_fit_without(tmp_path, capsys):
    dry = _fit_it(tmp_path, "--ensemble", 3, "--dry-run")
    n_heads = json.loads(capsys.readouterr().out)["n_heads"]
    fitted = _fit_it(tmp_path, "--ensemble", 3)
    said = json.loads(capsys.readouterr().out)
    folder = tmp_path / "rm" / "ensemble"
    members = sorted(path.name for path in folder.glob("member-*"))
    scored = _run("score", folder, tmp_path / "pairs.jsonl", "-o", tmp_path / "s.jsonl")
    again = _fit_it(tmp_path)

    assert (dry, fitted, scored, again) == (0, 0, 0, 0)
    assert n_heads == 4
    assert said["ensembles"] == {"armorm": str(folder)}
    assert members == ["member-1", "member-2", "member-3"]
    assert "armorm ensemble" in {row["name"] for row in said["metrics"]["rows"]}
    assert not folder.exists()
    assert (tmp_path / "rm" / "reward_model.json").exists()


def test_a_member_without_ratings_of_an_objective_is_refused_before_reading():
    # Rated for 12 of 40 prompts: some of 40 draws have none where the penalty is chosen.
    ratings = dict(_table().ratings)
    ratings["rare"] = np.full(2 * N_PROMPTS, np.nan)
    ratings["rare"][:24] = np.linspace(0, 1, 24)
    chosen = method("armorm").with_changes(mixture=QUICK)
    table = _table(ratings=ratings)
    check_fit(table, FakeBackbone(), [chosen])
    with pytest.raises(FitError, match=r"member \d+ of 40 of the ensemble has .* 'rare' has no"):
        check_fit(table, FakeBackbone(), [chosen], n_members=40)


def test_an_estimate_counts_the_members():
    chosen = method("armorm").with_changes(mixture=QUICK)
    said = estimate_fit(_table(), FakeBackbone(), [chosen], n_members=2)

    assert said.n_heads == 3


# ------------------------------------------------------------------------ bad input


def _with(folder, name, **changes):
    """The rated file, some columns of every record replaced."""
    rows = (record | changes for prompt in range(N_PROMPTS) for record in _rated(prompt))
    return _written(folder, name, rows)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {"coherence": 3},
            (),
            "the objective 'coherence' has 80 ratings in the answers to fit on, all 0.",
        ),
        ({"coherence": 9}, (), "`coherence` is the number 9; expected 0 to 4"),
        ({"coherence": "good"}, (), "`coherence` is the text 'good'; expected a finite number"),
        (
            {"coherence": None},
            ("--rating", "coherence:0..4", "--rating", "helpfulness", "--rating", "verbosity"),
            "The column is there and holds none: bring rated answers",
        ),
        ({}, ("--rating", "helpfulness", "--verbosity", "none"), "got 1 objective (helpfulness)"),
        (
            {},
            ("--rating", "helpfulness", "--rating", "verbosity"),
            "got 1 objective beside verbosity (helpfulness, verbosity)",
        ),
        (
            {},
            ("--rating", "helpfulness", "--rating", "coherence"),
            "no answer is rated on 'verbosity', the objective that is to be taken out of the others",
        ),
        ({}, ("--ensemble", 1), "got 1 ensemble member(s)"),
    ],
)
def test_bad_ratings_are_refused_in_words_and_nothing_is_written(
    changes, arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("retrm.backbone.remote.open_backbone", _must_not_be_opened)
    _, pairs = _files(tmp_path)
    rated = _with(tmp_path, "bad.jsonl", **changes)
    code = _run(
        *("fit", rated, "--pairs", pairs, "--model", "fake", "--method", "armorm"),
        *("-o", tmp_path / "rm", *arguments),
    )

    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "rm").exists()


def test_an_objective_of_the_format_that_nobody_rated_is_left_out_and_said(tmp_path, capsys):
    _, pairs = _files(tmp_path)
    rated = _with(tmp_path, "few.jsonl", coherence=None)
    code = _run(
        *("fit", rated, "--pairs", pairs, "--model", "fake", "--method", "armorm"),
        *("-o", tmp_path / "rm", "--dry-run"),
    )

    assert code == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "objectives of this format that no record of" in said
    assert "left out: 1" in said


def test_pairs_that_were_all_skipped_as_over_long_are_named_as_the_cause(tmp_path, capsys):
    rated, _ = _files(tmp_path)
    long = ({**_preferred(k), "prompt": f"question {k} " + "x" * 3000} for k in range(N_PROMPTS))
    pairs = _written(tmp_path, "long.jsonl", long)
    code = _run(
        *("fit", rated, "--pairs", pairs, "--model", "fake", "--method", "armorm"),
        *("-o", tmp_path / "rm", "--overlong", "skip"),
    )
    said = " ".join(capsys.readouterr().err.split())

    assert code == 2
    assert (
        "80 of 160 answers were skipped as over-long and the rest is too little to fit on" in said
    )
    assert "what was read is kept in" in said
    assert not (tmp_path / "rm" / "reward_model.json").exists()
