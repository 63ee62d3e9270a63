"""What can be added to the Bradley-Terry loss: numbers by hand, convexity, refusals.

The common batch: r_c = (1.5, 0.2, -0.3, 0.1), r_r = (-0.5, -0.3, -0.3, 1.1), so d = (2, 0.5, 0, -1).
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.errors import LabelError, RecipeError
from retrm.features.reduce import Features
from retrm.fitting.convex import PairTargets, RowTargets, choose_lambda, fit_linear
from retrm.fitting.fit import fit_head
from retrm.fitting.objectives import PairObjective, PairPenalty, ScorePenalties
from retrm.fitting.targets import Targets, check_targets, loss_value
from retrm.losses import bradley_terry, pair_terms
from retrm.methods import method
from retrm.pair_options import PLAIN, PairOptions

CHOSEN = torch.tensor([1.5, 0.2, -0.3, 0.1], dtype=torch.float64)
REJECTED = torch.tensor([-0.5, -0.3, -0.3, 1.1], dtype=torch.float64)
LEADS = torch.tensor([1.0, 2 / 3, 1 / 3, 0.0], dtype=torch.float64)
PENALISED = [
    PairOptions(centring=0.3),
    PairOptions(batch_sum=0.7),
    PairOptions(score_l2=0.2),
    PairOptions(smoothing=0.15, centring=0.1, batch_sum=0.2, score_l2=0.05),
]
EVERY = [
    PLAIN,
    PairOptions(smoothing=0.2),
    PairOptions(margin=0.5),
    PairOptions(form="focal"),
    PairOptions(form="hinge"),
    PairOptions(form="normalised"),
    PairOptions(form="absolute"),
    PairOptions(log_barrier=0.01),
    *PENALISED,
]


@pytest.mark.parametrize(
    ("options", "expected", "mean"),
    [
        (PLAIN, (0.126928, 0.474077, 0.693147, 1.313262), 0.651853),
        # (1-e) L(d) + e L(-d), and L(-d) = L(d) + d: 0.126928 + 0.1 x 2 = 0.326928
        (PairOptions(smoothing=0.1), (0.326928, 0.524077, 0.693147, 1.213262), 0.689353),
        (PairOptions(smoothing=0.2), (0.526928, 0.574077, 0.693147, 1.113262), 0.726853),
        # d = 2: (1 - 2 (0.880797 - 0.5))^2 x 0.126928 = 0.056837 x 0.126928
        (PairOptions(form="focal"), (0.007214, 0.270294, 0.693147, 1.313262), 0.570979),
        (PairOptions(form="hinge"), (0.0, 0.5, 1.0, 2.0), 0.875),
        # d = 2: 2 / sqrt(1.5^2 + 0.5^2) = 1.264911
        (PairOptions(form="normalised"), (0.248628, 0.223052, 0.693147, 1.244966), 0.602448),
        (PairOptions(form="absolute"), (0.802418, 1.626571, 2.101858, 3.344994), 1.968960),
    ],
)
def test_every_form_gives_the_numbers_worked_out_by_hand(options, expected, mean):
    assert pair_terms(CHOSEN, REJECTED, options=options).tolist() == pytest.approx(
        expected, abs=1e-6
    )
    assert float(bradley_terry(CHOSEN, REJECTED, options=options)) == pytest.approx(mean, abs=1e-6)


def test_margins_of_the_data_are_leads_in_the_unit_of_margin_scale():
    terms = pair_terms(CHOSEN, REJECTED, LEADS)
    assert terms.tolist() == pytest.approx((0.313262, 0.779949, 0.873639, 1.313262), abs=1e-6)
    assert float(terms.mean()) == pytest.approx(0.820028, abs=1e-6)

    thirds = pair_terms(CHOSEN, REJECTED, 3 * LEADS, options=PairOptions(margin_scale=1 / 3))
    torch.testing.assert_close(thirds, terms)
    ignored = pair_terms(CHOSEN, REJECTED, LEADS, options=PairOptions(margins="ignore"))
    torch.testing.assert_close(ignored, pair_terms(CHOSEN, REJECTED))


def test_strengths_weigh_the_loss_and_their_unit_is_no_learning_rate():
    strengths = torch.tensor([3.0, 2, 1, 1], dtype=torch.float64)
    weight = PairOptions(margins="weight")

    # (0.380784 + 0.948154 + 0.693147 + 1.313262) / 4 = 0.833837, and divided by the mean strength 7/4.
    value = bradley_terry(CHOSEN, REJECTED, strengths, options=weight)
    assert float(value) == pytest.approx(0.833837 / 1.75, abs=1e-6)
    threes = torch.full_like(strengths, 3.0)
    assert float(bradley_terry(CHOSEN, REJECTED, threes, options=weight)) == pytest.approx(
        0.651853, abs=1e-6
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (PairOptions(centring=0.01), 0.007025),  # 0.01 (1 + 0.01 + 0.36 + 1.44) / 4
        (PairOptions(batch_sum=4e-3), 0.000140625),  # 0.004 x 0.1875^2
        (PairOptions(score_l2=0.01), 0.010075),  # 0.01 x 4.03 / 4
        (PairOptions(log_barrier=0.01), -0.063961),  # 0.01 x -6.396054
    ],
)
def test_every_penalty_adds_the_number_worked_out_by_hand(options, expected):
    added = bradley_terry(CHOSEN, REJECTED, options=options) - bradley_terry(CHOSEN, REJECTED)
    assert float(added) == pytest.approx(expected, abs=1e-6)


def test_the_barrier_is_what_it_says_at_four_scores_and_lets_go_outside():
    # Of one score: at 0, 1.5, 4.9 and 6 it is -3.218876, -3.124565, 0.010050 and 4.605270.
    scores = torch.tensor([0.0, 1.5, 4.9, 6.0], dtype=torch.float64, requires_grad=True)
    one = PairOptions(log_barrier=1.0, margins="ignore")
    for score, expected in zip(scores, (-3.218876, -3.124565, 0.010050, 4.605270), strict=True):
        pair = score[None], torch.zeros(1, dtype=torch.float64)
        added = bradley_terry(*pair, options=one) - bradley_terry(*pair)
        assert float(added) == pytest.approx(expected - 3.218876, abs=1e-5)
    added = bradley_terry(scores, torch.zeros_like(scores), options=one)
    (added - bradley_terry(scores, torch.zeros_like(scores))).backward()
    assert scores.grad[3] == 0
    assert scores.grad[2] > 0


def test_smoothing_has_its_least_loss_at_the_log_odds_of_a_wrong_pair():
    # e = 0.1: log(9) = 2.197225 with loss 0.325083; e = 0.2: log(4) = 1.386294 with 0.500402.
    for share, best, least in ((0.1, 2.197225, 0.325083), (0.2, 1.386294, 0.500402)):
        gap = torch.tensor([best], dtype=torch.float64, requires_grad=True)
        loss = bradley_terry(gap, torch.zeros_like(gap), options=PairOptions(smoothing=share))
        loss.backward()
        assert float(loss) == pytest.approx(least, abs=1e-6)
        assert float(gap.grad) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("options", EVERY, ids=lambda o: str(o.changes()))
def test_gradients_agree_with_finite_differences(options):
    # Off the kinks: pair 3 of the batch has d = 0.
    rejected = REJECTED + 0.05
    assert torch.autograd.gradcheck(
        lambda c, r: bradley_terry(c, r, options=options),
        (CHOSEN.clone().requires_grad_(), rejected.clone().requires_grad_()),
    )


@pytest.mark.parametrize("options", EVERY, ids=lambda o: str(o.changes()))
def test_scores_far_away_give_finite_losses_and_gradients_in_float32(options):
    for sign in (1.0, -1.0):
        chosen = torch.full((3,), sign * 1e4, requires_grad=True)
        loss = bradley_terry(chosen, -chosen.detach(), options=options)
        loss.backward()
        assert math.isfinite(float(loss))
        assert torch.isfinite(chosen.grad).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(EVERY), st.floats(-3, 3))
def test_a_constant_on_both_scores_matters_exactly_where_the_options_say_so(options, shift):
    before = bradley_terry(CHOSEN, REJECTED, options=options)
    after = bradley_terry(CHOSEN + shift, REJECTED + shift, options=options)

    if not options.fixes_zero:
        assert float(after) == pytest.approx(float(before), abs=1e-9)
    elif abs(shift) > 0.5 and shift != pytest.approx(-0.375, abs=0.2):
        assert float(after) != pytest.approx(float(before), abs=1e-9)


def test_options_at_their_least_are_plain_bradley_terry():
    for options in (
        PairOptions(margin=0.0),
        PairOptions(form="focal", gamma=0.0),
        PairOptions(smoothing=0.0, batch_sum=0.0),
    ):
        torch.testing.assert_close(
            bradley_terry(CHOSEN, REJECTED, options=options), bradley_terry(CHOSEN, REJECTED)
        )


# ------------------------------------------------------------------ convex fits


def some_pairs(n_prompts=40, width=5, seed=0):
    """Two answers a prompt, better by a planted direction; a quarter of the pairs are wrong."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2 * n_prompts, width)) + 1.5
    better = x[::2] @ np.arange(1, width + 1) > x[1::2] @ np.arange(1, width + 1)
    better ^= rng.random(n_prompts) < 0.25
    first = np.arange(0, 2 * n_prompts, 2)
    chosen = np.where(better, first, first + 1)
    rejected = np.where(better, first + 1, first)
    return torch.tensor(x, dtype=torch.float32), chosen, rejected


@pytest.mark.parametrize("solver", ["newton", "lbfgs"])
@pytest.mark.parametrize("options", PENALISED, ids=lambda o: str(o.changes()))
def test_a_penalised_fit_is_the_optimum_that_plain_gradient_descent_finds(options, solver):
    x, chosen, rejected = some_pairs()
    weights = np.linspace(0.5, 1.5, len(chosen))
    targets = PairTargets(
        *(chosen, rejected, None, weights),
        smoothing=options.smoothing,
        penalties=ScorePenalties.of(options, weights),
    )
    done = fit_linear(x, targets, lam=0.05, standardise=False, solver=solver)

    # The plain version: autograd on the shared loss, features centred, whole batch.
    z = x.double() - x.double().mean(0)
    w = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-10, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        f = z @ w
        loss = bradley_terry(f[chosen], f[rejected], None, torch.tensor(weights), options=options)
        loss = loss + 0.05 / 2 * w.square().sum()
        loss.backward()
        return loss

    value = float(optimizer.step(closure))
    del value
    assert done.objective == pytest.approx(float(closure()), abs=1e-9)
    torch.testing.assert_close(done.weight.double(), w.detach(), atol=1e-5, rtol=1e-4)
    # Scores of raw features are those that were penalised.
    assert float((x @ done.weight + done.bias).mean()) == pytest.approx(0, abs=1e-5)


def test_a_convex_fit_without_penalties_on_scores_keeps_its_bias_of_zero():
    x, chosen, rejected = some_pairs()
    assert fit_linear(x, PairTargets(chosen, rejected, smoothing=0.2), lam=0.1).bias == 0


def test_smoothing_keeps_the_weights_of_separable_pairs_finite_with_hardly_a_penalty():
    # One feature, delta = 1 for all pairs: the best gap is log(9) = 2.197225.
    x = torch.tensor([[1.0], [0.0], [3.0], [2.0]])
    targets = PairTargets([0, 2], [1, 3], smoothing=0.1)
    done = fit_linear(x, targets, lam=1e-7, standardise=False)
    assert float(done.weight[0]) == pytest.approx(2.197225, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(PENALISED))
def test_slope_and_curvature_of_a_penalised_objective_are_those_of_autograd(seed, options):
    rng = np.random.default_rng(seed)
    chosen, rejected = torch.tensor([0, 3, 4]), torch.tensor([1, 2, 5])
    weights = torch.tensor(rng.uniform(0.2, 2, 3))
    penalty = PairPenalty(options.centring, options.batch_sum, options.score_l2, weights)
    objective = PairObjective(
        chosen, rejected, torch.zeros(3, dtype=torch.float64), weights, options.smoothing, penalty
    )
    f = torch.tensor(rng.normal(size=6), requires_grad=True)

    expected = bradley_terry(f[chosen], f[rejected], None, weights, options=options)
    (slope,) = torch.autograd.grad(expected, f)
    hessian = torch.autograd.functional.hessian(objective.value, f.detach())

    f = f.detach()
    torch.testing.assert_close(objective.value(f), expected.detach())
    torch.testing.assert_close(objective.slope(f), slope)
    torch.testing.assert_close(objective.curved(f, torch.eye(6, dtype=torch.float64)), hessian)
    # What a preconditioner is made of is at least as steep, and its own eigenvalues are not negative.
    root = torch.cat([rows_of(*part) for part in objective.factors(f, 100, 100)])
    assert torch.linalg.eigvalsh(root.T @ root - hessian).min() > -1e-9


def rows_of(root, plus, minus):
    out = torch.zeros(len(root), 6, dtype=torch.float64)
    out[torch.arange(len(root)), plus] = root
    if minus is not None:
        out[torch.arange(len(root)), minus] -= root
    return out


def test_folds_of_a_penalised_fit_hold_their_own_pairs():
    x, chosen, rejected = some_pairs()
    penalties = ScorePenalties(0.1, 0.1, 0.0, np.ones(len(chosen)))
    targets = PairTargets(chosen, rejected, penalties=penalties)
    found = choose_lambda(x, targets, np.repeat(np.arange(40), 2), grid=(0.01, 1.0))
    assert 0.5 < max(found.values) <= 1


# ------------------------------------------------------------ whole fits, spelling


def pair_targets(chosen, rejected, margins=None):
    n = 2 * len(chosen)
    return Targets(
        labels=torch.full((n,), torch.nan),
        groups=torch.arange(n) // 2,
        pairs=torch.tensor(np.stack([chosen, rejected], axis=1)),
        margins=torch.zeros(len(chosen)) if margins is None else margins,
        weights=torch.ones(len(chosen)),
    )


@pytest.mark.parametrize(
    ("options", "solver"),
    [
        ({"smoothing": 0.1}, "convex"),
        ({"centring": 0.01, "batch_sum": 0.01, "score_l2": 0.01}, "convex"),
        ({"margin": 0.5, "margins": "ignore"}, "convex"),
        ({"form": "hinge"}, "gradient"),
        ({"form": "focal"}, "gradient"),
        ({"form": "absolute"}, "gradient"),
        ({"log_barrier": 0.01}, "gradient"),
    ],
)
def test_what_stays_convex_is_solved_and_the_rest_is_trained(options, solver):
    x, chosen, rejected = some_pairs()
    made = method("last_token").with_changes(
        loss_options=options, gradient={"epochs": 30, "lr": 0.02, "standardise": True}
    )
    features = Features(x, torch.arange(len(x) + 1), True)

    fitted = fit_head(made, features, pair_targets(chosen, rejected))

    assert made.solver == solver
    stored = fitted.report["loss_options"]
    assert {name: stored[name] for name in options} == options
    scores = fitted.head.score(features)
    assert float((scores[chosen] > scores[rejected]).double().mean()) > 0.6


def test_the_loop_adds_the_options_to_the_loss_that_it_lowers():
    x, chosen, rejected = some_pairs()
    targets = pair_targets(chosen, rejected)
    scores = x[:, 0]
    plain = loss_value("bradley_terry", scores, targets)
    centred = loss_value("bradley_terry", scores, targets, PairOptions(centring=2.0))
    sums = (scores[chosen] + scores[rejected]).square().mean()
    assert float(centred - plain) == pytest.approx(2 * float(sums), rel=1e-5)


def test_strengths_reach_a_convex_fit_and_a_pair_without_one_is_refused():
    x, chosen, rejected = some_pairs()
    strengths = torch.ones(len(chosen))
    strengths[:5] = 50.0  # these pairs decide
    made = method("last_token").with_changes(loss_options={"margins": "weight"})
    features = Features(x, torch.arange(len(x) + 1), True)
    heavy = fit_head(made, features, pair_targets(chosen, rejected, strengths)).head
    plain = fit_head(made, features, pair_targets(chosen, rejected, strengths * 0 + 1)).head

    def loss(head):
        scores = head.score(features)
        return float(pair_terms(scores[chosen[:5]], scores[rejected[:5]]).mean())

    assert loss(heavy) < loss(plain)
    with pytest.raises(LabelError, match=r"got strength 0\.0 at position 0 with margins=weight"):
        check_targets(pair_targets(chosen, rejected), "bradley_terry", made.loss_options)


@pytest.mark.parametrize("name", ["grm_text_weight", "sft_weight", "contrastive", "simcse_alpha"])
def test_terms_that_act_on_the_backbone_are_refused_with_the_reason(name):
    with pytest.raises(
        RecipeError, match=r"acts on the weights of the\s+backbone, which are frozen"
    ):
        method("last_token").with_changes(loss_options={name: 0.1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smothing": 0.1}, "unknown loss option 'smothing'. Did you mean 'smoothing'"),
        ({"smoothing": 0.5}, "smoothing is 0.5; expected a number from 0 to below 0.5"),
        ({"centring": -1}, "centring is -1; expected a number that is finite, 0 or more"),
        ({"centring": float("nan")}, "centring is nan"),
        ({"margin": True}, "margin is True"),
        ({"form": "hinges"}, "form is 'hinges'; expected one of logistic, focal, hinge"),
        ({"margins": "strength"}, "margins is 'strength'; expected one of lead, weight, ignore"),
        ({"form": "hinge", "smoothing": 0.1}, "smoothing is of the logistic form"),
        ({"form": "normalised"}, "form=normalised with the linear head"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        method("last_token").with_changes(loss_options=options)


def test_options_of_pairs_are_refused_for_another_loss():
    with pytest.raises(RecipeError, match="got loss options smoothing for the loss hinge"):
        method("last_token").with_changes(loss="hinge", loss_options={"smoothing": 0.1})
    labelled = Targets(
        torch.tensor([1.0, 0.0]), torch.arange(2), torch.zeros(0, 2, dtype=torch.int64),
        torch.zeros(0), torch.zeros(0),
    )  # fmt: skip
    with pytest.raises(RecipeError, match="for the loss bce; they belong to bradley_terry"):
        check_targets(labelled, "bce", PairOptions(smoothing=0.1))


def test_a_smoothing_beyond_one_half_never_reaches_the_solver():
    with pytest.raises(LabelError, match="smoothing"):
        fit_linear(torch.eye(2), PairTargets([0], [1], smoothing=0.7), lam=0.1)
    assert RowTargets([0, 1]).weights is None
