"""Fitting a mixture head: ridge, debiasing, gate."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from retrm.errors import FitError, LabelError, RecipeError, ShapeError
from retrm.features.reduce import Features
from retrm.fitting import mixture
from retrm.fitting.debias import find_lambdas
from retrm.fitting.gradient import split_rows
from retrm.fitting.mixture import (
    GatePairs,
    check_mixture,
    check_mixture_recipe,
    fit_gate,
    fit_mixture,
    training_parts,
)
from retrm.fitting.targets import Targets
from retrm.heads.mixture import MixtureHead
from retrm.mixture_options import MixtureOptions
from retrm.records import Answer, AnswerTable, Pair, RatingScale

NAN = float("nan")
N_CONTEXT = 3
FAST = MixtureOptions(steps=60, batch_pairs=64, gate_width=16, gate_layers=1, lr=0.02, dropout=0.0)


def _toy(n_prompts=60, seed=0, noise=0.02):
    """Prompts of two kinds; kind 0 prefers helpful answers and kind 1 safe ones. Both are wordy."""
    generator = torch.Generator().manual_seed(seed)
    n = 2 * n_prompts
    h = torch.randn(n, 6, generator=generator)
    kind = torch.arange(n_prompts) % 2
    context = torch.zeros(n_prompts, N_CONTEXT)
    context[:, 0] = 2.0 * kind - 1.0
    context[:, 2] = torch.randn(n_prompts, generator=generator)
    prompts = torch.arange(n) // 2
    helpful, safe, wordy = 0.5 + 0.1 * h[:, 0], 0.5 + 0.1 * h[:, 1], 0.5 + 0.1 * h[:, 2]
    h = torch.cat([h, torch.ones(n, 1)], dim=1)
    ratings = torch.stack([helpful + 0.5 * (wordy - 0.5), safe, wordy], dim=1).double()
    ratings += noise * torch.randn(n, 3, generator=generator)
    wanted = torch.where(kind[prompts] == 0, helpful, safe)
    pairs = []
    for prompt in range(n_prompts):
        first, second = 2 * prompt, 2 * prompt + 1
        pairs.append((first, second) if wanted[first] > wanted[second] else (second, first))
    targets = Targets(
        labels=torch.full((n,), NAN),
        groups=prompts,
        pairs=torch.tensor(pairs),
        margins=torch.zeros(len(pairs)),
        weights=torch.ones(len(pairs)),
        objectives=("helpful", "safe", "verbosity"),
        ratings=ratings.clamp(0, 1),
        scales=(RatingScale(0, 1),) * 3,
    )
    values = torch.cat([h, context[prompts]], dim=1)
    return Features(values, torch.arange(n + 1), True), targets


def _fit(features, targets, options=FAST, **changes):
    return fit_mixture(features, targets, options, n_context=N_CONTEXT, **changes)


# ------------------------------------------------------------ the formulas by hand


def _pairs_of_the_worked_example():
    return GatePairs(
        context=torch.tensor([[10.0, 0.0, -10.0], [0.0, 0.0, 0.0]], dtype=torch.float64),
        chosen=torch.tensor([[0.68, 0.40, 0.0], [0.2, 0.5, 0.0]], dtype=torch.float64),
        rejected=torch.tensor([[0.43, 0.05, 0.0], [0.3, 0.1, 0.0]], dtype=torch.float64),
        margins=torch.zeros(2, dtype=torch.float64),
        weights=torch.ones(2, dtype=torch.float64),
    )


def _gate_of_logits(temperature=10.0):
    """A gate whose logits are its context: no hidden layer, the identity, no bias."""
    head = MixtureHead(
        4, objectives=("a", "b", "c"), n_context=3, gate_layers=0, temperature=temperature
    ).double()
    with torch.no_grad():
        head.gate_weights[0].copy_(torch.eye(3))
    return head.eval()


def test_the_worked_loss_of_the_gate_is_reproduced():
    # Pair 1: g = (0.665241, 0.244728, 0.090031), gap .25 g_0 + .35 g_1 = 0.251965, loss 0.575079.
    # Pair 2: g = 1/3 each, gap (-0.1 + 0.4) / 3 = 0.1, loss 0.644397. Mean 0.609738.
    pairs, head = _pairs_of_the_worked_example(), _gate_of_logits()
    one, two = (pairs.take(torch.tensor([i])) for i in (0, 1))

    assert head.gates(one.context)[0].tolist() == pytest.approx(
        [0.665241, 0.244728, 0.090031], abs=1e-6
    )
    assert one.loss(head).item() == pytest.approx(0.575079, abs=1e-6)
    assert two.loss(head).item() == pytest.approx(0.644397, abs=1e-6)
    assert pairs.loss(head).item() == pytest.approx(0.609738, abs=1e-6)
    # At temperature 1 the gate of pair 1 is nearly one objective: (0.999955, 0.000045, 2e-9).
    assert _gate_of_logits(1.0).gates(one.context)[0].tolist() == pytest.approx(
        [0.999955, 0.000045, 2e-9], abs=1e-6
    )


def test_a_pair_counts_by_its_weight_and_has_to_lead_by_its_margin():
    # Gaps 0.251965 and 0.1, weights 3 and 1, margins 0 and 0.5:
    # log(1 + exp(-0.251965)) = 0.575079, log(1 + exp(0.5 - 0.1)) = 0.913015,
    # (3 * 0.575079 + 0.913015) / 4 = 0.659563.
    pairs = replace(
        _pairs_of_the_worked_example(),
        margins=torch.tensor([0.0, 0.5], dtype=torch.float64),
        weights=torch.tensor([3.0, 1.0], dtype=torch.float64),
    )

    assert pairs.loss(_gate_of_logits()).item() == pytest.approx(0.659563, abs=1e-6)


def test_a_tie_is_half_right_and_pairs_count_by_their_weight():
    # Gaps under g = (1, 0, 0): 0.25, -0.1 and 0; weights 3, 1, 2: (3 + 0 + 1) / 6.
    worked = _pairs_of_the_worked_example()
    pairs = worked.take(torch.tensor([0, 1, 1]))
    pairs.rejected[2] = pairs.chosen[2]
    pairs = replace(pairs, weights=torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    gates = torch.tensor([[1.0, 0.0, 0.0]] * 3, dtype=torch.float64)

    assert pairs.accuracy(gates) == pytest.approx(4 / 6)


def test_the_worked_gradient_of_the_gate_is_reproduced():
    # d loss / d z_k = -sigmoid(-gap) / 2 * g_k (gap_k - gap) / tau, for two pairs and tau 10.
    pairs = _pairs_of_the_worked_example()
    context = pairs.context.clone().requires_grad_()
    replace(pairs, context=context).loss(_gate_of_logits()).backward()

    assert context.grad[0].tolist() == pytest.approx([2.8587e-5, -5.24631e-4, 4.96043e-4], abs=1e-9)
    assert context.grad[1].tolist() == pytest.approx(
        [1.583403e-3, -2.375104e-3, 7.91701e-4], abs=1e-9
    )


def test_the_worked_example_without_debiasing_lets_the_wordy_answer_win():
    # g = (.5, .3, .2): adjusted gap 0.23, loss 0.584745; raw gap -0.02, loss 0.703197.
    head = _gate_of_logits()
    context = (10.0 * torch.log(torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64))).clone()
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

    def loss(chosen, rejected):
        sides = (torch.tensor([side], dtype=torch.float64) for side in (chosen, rejected))
        return GatePairs(context, *sides, zero, one).loss(head).item()

    assert loss([0.68, 0.40, 0.0], [0.43, 0.05, 0.0]) == pytest.approx(0.584745, abs=1e-6)
    assert loss([0.8, 0.6, 0.4], [0.7, 0.5, 0.9]) == pytest.approx(0.703197, abs=1e-6)


# ----------------------------------------------------------------------- the fit


def test_the_gate_learns_which_prompts_want_which_objective():
    features, targets = _toy(200)
    fit = _fit(features, targets)
    gate = fit.report["gate"]
    contexts = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    of_helpful, of_safe = fit.head.gates(contexts)

    assert of_helpful[0] > of_safe[0]
    assert of_helpful[1] < of_safe[1]
    assert gate["validation_accuracy"] > gate["uniform_accuracy"] + 0.05


def test_only_the_gate_is_trained_in_stage_two():
    features, targets = _toy()
    head = _fit(features, targets).head
    pairs = GatePairs.of(head, features.values, targets)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    fit_gate(head, pairs, pairs, FAST, seed=5)

    for name, value in head.state_dict().items():
        is_gate = name.startswith("gate_") or name == "logit_scale"
        assert torch.equal(value, before[name]) != is_gate, name


def test_the_gate_is_trained_on_scores_without_verbosity():
    features, targets = _toy()
    head = _fit(features, targets).head
    pairs = GatePairs.of(head, features.values, targets)
    raw = head.objective_scores(features.values[:, :-N_CONTEXT])
    r = raw[targets.pairs[:, 0]]

    assert not pairs.chosen[:, 2].any()
    assert head.lambdas[0] > 0
    expected = r[:, 0] - head.lambdas[0] * r[:, 2]
    np.testing.assert_allclose(pairs.chosen[:, 0], expected, atol=1e-6)


def test_the_gate_is_computed_once_a_prompt_and_step(monkeypatch):
    # 8 prompts with 5 pairs each; 30 pairs are drawn a step, of at most 8 prompts.
    context = torch.randn(8, N_CONTEXT, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(2, 40, 2, generator=torch.Generator().manual_seed(2))
    pairs = GatePairs(context.repeat_interleave(5, dim=0), *noise, torch.zeros(40), torch.ones(40))
    head = MixtureHead(5, objectives=("a", "b"), n_context=N_CONTEXT, gate_width=4, gate_layers=1)
    computed, plain = [], head._gates
    monkeypatch.setattr(head, "_gates", lambda rows: computed.append(len(rows)) or plain(rows))
    fit_gate(head, pairs, pairs, replace(FAST, steps=6, batch_pairs=30))

    assert max(computed) <= 8


def test_a_pair_of_no_weight_changes_nothing():
    features, targets = _toy(40)
    pairs = GatePairs.of(_fit(features, targets).head, features.values, targets)
    weights = pairs.weights.clone()
    weights[5] = 0.0
    changed = pairs.chosen.clone()
    changed[5] += 1.0
    gates = []
    for chosen in (pairs.chosen, changed):
        head = _fit(features, targets).head
        light = replace(pairs, chosen=chosen, weights=weights)
        fit_gate(head, light, light, FAST)
        gates.append(head.gates(pairs.context))

    assert torch.equal(*gates)


def test_weights_decide_who_is_drawn_and_not_again_what_a_drawn_pair_counts(monkeypatch):
    features, targets = _toy(40)
    pairs = GatePairs.of(_fit(features, targets).head, features.values, targets)
    heavy = replace(pairs, weights=torch.arange(1.0, 41.0))
    plain, seen = mixture.bradley_terry, []

    def watched(chosen, rejected, margins, weights, *, options):
        seen.append(weights)
        return plain(chosen, rejected, margins, weights, options=options)

    monkeypatch.setattr(mixture, "bradley_terry", watched)
    fit_gate(_fit(features, targets).head, heavy, pairs, replace(FAST, steps=2, evaluate_every=2))

    # A look, two steps and a look.
    assert all(torch.equal(weights, torch.ones(40)) for weights in seen[-3:-1])


def test_both_answers_of_every_pair_are_the_reference_of_the_debiasing():
    features, targets = _toy()
    fit = _fit(features, targets)
    h = features.values[:, :-N_CONTEXT]
    raw = fit.head.objective_scores(h[targets.pairs.reshape(-1)]).double().numpy()
    found = find_lambdas(raw, 2)

    for k, line in enumerate(fit.report["objectives"]):
        assert line["lambda"] == found.lambdas[k]
        assert line["verbosity_correlation"] == pytest.approx(found.before[k], abs=1e-12)
    assert fit.report["n_reference_pairs"] == len(targets.pairs)


def test_scores_are_those_of_the_formula_written_out_plainly():
    features, targets = _toy()
    fit = _fit(features, targets)
    head, h, p = fit.head, features.values[:, :-N_CONTEXT].numpy(), features.values[:, -N_CONTEXT:]
    r = h @ head.weight.numpy().T
    lambdas = [line["lambda"] for line in fit.report["objectives"]]
    adjusted = np.stack([r[:, k] - lambdas[k] * r[:, 2] for k in range(3)], axis=1)
    hidden = torch.relu(p @ head.gate_weights[0].T + head.gate_biases[0])
    z = (hidden @ head.gate_weights[1].T + head.gate_biases[1]).detach().numpy() / 10.0
    soft = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    expected = head.logit_scale.item() * (soft * adjusted).sum(axis=1)

    np.testing.assert_allclose(head.score(features), expected, atol=1e-5)


def test_stage_one_has_the_ridge_solution_on_the_fitting_prompts():
    features, targets = _toy()
    targets.ratings[::3, 1] = NAN
    fit = _fit(features, targets, seed=4)
    rows, _ = split_rows(targets, 0.2, 4)
    h = features.values[:, :-N_CONTEXT]
    for k, line in enumerate(fit.report["objectives"]):
        known = rows[~torch.isnan(targets.ratings[rows, k])]
        plain = Ridge(alpha=line["alpha"], fit_intercept=False)
        plain.fit(h[known].double(), targets.ratings[known, k])
        np.testing.assert_allclose(fit.head.weight[k], plain.coef_, atol=1e-5)
        assert line["n_fit"] == len(known)
        assert line["n_labelled"] == int((~torch.isnan(targets.ratings[:, k])).sum())


def test_debiasing_brings_the_wordy_objective_under_the_threshold():
    features, targets = _toy(150)
    wordy = {line["name"]: line for line in _fit(features, targets).report["objectives"]}

    assert wordy["helpful"]["verbosity_correlation"] > 0.2
    assert wordy["helpful"]["lambda"] > 0.2
    assert wordy["helpful"]["verbosity_correlation_after"] <= 0.03
    assert wordy["verbosity"]["lambda"] == 1.0
    assert not any(line["is_unresolved"] for line in wordy.values())


def test_an_objective_that_is_verbosity_itself_is_reported_as_unresolved():
    features, targets = _toy()
    targets.ratings[:, 0] = targets.ratings[:, 2]
    report = _fit(features, targets).report["objectives"]

    assert report[0]["is_unresolved"]
    assert report[0]["lambda"] == 1.0


def test_without_debiasing_the_transform_is_the_identity():
    features, targets = _toy()
    fit = _fit(features, targets, replace(FAST, verbosity="none"))

    assert torch.equal(fit.head.transform, torch.eye(3))
    assert fit.report["verbosity"] is None
    assert "lambda" not in fit.report["objectives"][0]


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_global_generator_alone():
    features, targets = _toy()
    options = replace(FAST, dropout=0.3, steps=10)
    torch.manual_seed(1)
    first = _fit(features, targets, options).head.state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    again = torch.rand(3)
    second = _fit(features, targets, options).head.state_dict()

    assert torch.equal(drawn, again)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_best_gate_is_kept_and_patience_ends_the_fit():
    features, targets = _toy(30)
    # Preferences that follow nothing: what is learnt of them is wrong elsewhere.
    coin = torch.rand(30, generator=torch.Generator().manual_seed(0)) < 0.5
    targets.pairs[coin] = targets.pairs[coin].flip(1)
    options = replace(FAST, steps=400, evaluate_every=5, patience=2, lr=0.5)
    seen = []
    fit = _fit(features, targets, options, on_look=seen.append)
    gate = fit.report["gate"]
    losses = {look.step: look.validation_loss for look in seen}

    assert losses[gate["kept_step"]] == min(losses.values()) == gate["validation_loss"]
    assert max(losses) == gate["kept_step"] + 2 * 5 < 400
    pairs = GatePairs.of(fit.head, features.values, targets)
    _, held_out = training_parts(pairs, targets, options, 0)
    assert held_out.loss(fit.head).item() == pytest.approx(gate["validation_loss"], abs=1e-7)
    # The last gate was worse, so it is not the one that was kept.
    assert losses[max(losses)] > gate["validation_loss"] + 1e-3


def test_the_report_is_plain_json():
    features, targets = _toy()
    report = _fit(features, targets).report

    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_wide_gate_is_for_many_pairs():
    assert MixtureOptions().width_of_gate(4999) == 128
    assert MixtureOptions().width_of_gate(5000) == 1024
    assert MixtureOptions(gate_width=7).width_of_gate(5000) == 7


def test_objectives_can_be_chosen_by_name():
    features, targets = _toy()
    fit = _fit(features, targets, replace(FAST, objectives=("safe", "helpful"), verbosity="none"))

    assert fit.head.objectives == ("safe", "helpful")


# --------------------------------------------------------------------- bad input


def _refused(error, match, options=FAST, **changes):
    _, targets = _toy()
    with pytest.raises(error, match=match):
        check_mixture(replace(targets, **changes), options)


def test_an_objective_without_labels_is_refused_by_name():
    _, targets = _toy()
    targets.ratings[:, 1] = NAN
    _refused(LabelError, "'safe' has no rating", ratings=targets.ratings)


def test_an_objective_with_equal_labels_is_refused_by_name():
    _, targets = _toy()
    targets.ratings[:, 1] = 0.5
    _refused(LabelError, "'safe' has 120 ratings .* all 0.5", ratings=targets.ratings)


def test_an_objective_that_is_rated_on_one_side_of_the_split_only_is_refused():
    _, targets = _toy()
    targets.ratings[4:, 1] = NAN
    _refused(LabelError, "'safe' has no rating in the prompts that", ratings=targets.ratings)


def test_one_objective_only_is_refused():
    options = replace(FAST, objectives=("safe",), verbosity="none")
    _refused(LabelError, "got 1 objective .*expected at least two", options)


def test_one_objective_beside_verbosity_is_refused():
    options = replace(FAST, objectives=("safe", "verbosity"))
    _refused(LabelError, "got 1 objective beside verbosity", options)


def test_answers_without_ratings_are_refused():
    _refused(LabelError, "without ratings", objectives=(), ratings=torch.zeros(0, 0), scales=())


def test_a_verbosity_objective_that_is_missing_is_refused():
    _refused(RecipeError, "no answer is rated on 'length'", replace(FAST, verbosity="length"))


def test_a_verbosity_objective_that_is_not_among_those_named_is_refused():
    options = replace(FAST, objectives=("safe", "helpful"))
    _refused(RecipeError, "name it there, too", options)


def test_an_unknown_objective_is_refused_and_the_nearest_offered():
    options = replace(FAST, objectives=("safe", "helpfull", "verbosity"))
    _refused(RecipeError, "helpfull.*[Dd]id you mean.*helpful", options)


def test_ratings_without_pairs_are_refused():
    none = torch.zeros(0)
    pairs = torch.zeros(0, 2, dtype=torch.int64)
    _refused(LabelError, "no preference pairs", pairs=pairs, margins=none, weights=none)


def test_a_recipe_that_does_not_read_the_prompts_is_refused():
    with pytest.raises(RecipeError, match="never be embedded"):
        check_mixture_recipe("none", "bradley_terry")


def test_a_loss_that_is_not_of_pairs_is_refused():
    with pytest.raises(RecipeError, match="loss bce"):
        check_mixture_recipe("prompt_end", "bce")


def test_pairs_of_answers_to_different_prompts_are_refused():
    features, targets = _toy()
    targets.pairs[3, 1] = 50
    with pytest.raises(FitError, match="pair 3"):
        _fit(features, targets)


def test_a_feature_that_is_not_finite_is_refused_with_its_row():
    features, targets = _toy()
    features.values[7, 0] = float("nan")
    with pytest.raises(FitError, match="row 7"):
        _fit(features, targets)


def test_features_of_another_number_of_answers_are_refused():
    features, targets = _toy()
    with pytest.raises(ShapeError, match="the same answers"):
        _fit(features.take(range(20)), targets)


def test_features_that_are_all_context_are_refused():
    features, targets = _toy()
    with pytest.raises(ShapeError, match="behind the answer"):
        fit_mixture(features, targets, FAST, n_context=features.n_features)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"step": 3}, "unknown mixture option 'step'.*steps"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"alphas": []}, "alphas is"),
        ({"alphas": [0.0, 1.0]}, "above 0"),
        ({"objectives": "safe"}, "list of names"),
        ({"objectives": ["a", "a"]}, "twice"),
        ({"verbosity": ""}, "name of an objective"),
        ({"temperature": 0}, "temperature is 0"),
        ({"validation_fraction": 0.0}, "validation_fraction"),
        ({"threshold": float("nan")}, "threshold"),
    ],
)
def test_impossible_options_are_refused(options, match):
    with pytest.raises(RecipeError, match=match):
        MixtureOptions.from_dict(options)


# -------------------------------------------------------------------- from tables


def test_targets_carry_the_ratings_of_their_rows():
    answers = tuple(
        replace(Answer.of(f"q{i // 2}", f"r{i}"), prompt_id=str(i // 2)) for i in range(4)
    )
    table = AnswerTable(
        answers,
        np.full(4, np.nan),
        (Pair(0, 1),),
        ratings={"a": np.array([0.0, 0.5, np.nan, 1.0]), "b": np.array([1.0, 1.0, 0.0, np.nan])},
        scales={"a": RatingScale(1, 5)},
    )
    targets = Targets.of(table).take([3, 1])

    assert targets.objectives == ("a", "b")
    assert targets.ratings[:, 0].tolist() == [1.0, 0.5]
    assert targets.ratings[1, 1] == 1.0
    assert torch.isnan(targets.ratings[0, 1])
    assert targets.scales[0] == RatingScale(1, 5)
