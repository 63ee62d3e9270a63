"""The convex start of a gated head."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from retrm.backbone.fake import FakeBackbone
from retrm.errors import FitError, LabelError, RecipeError
from retrm.features.reduce import Features
from retrm.fitting import mean_head
from retrm.fitting.convex import PairTargets, RowTargets, fit_linear
from retrm.fitting.fit import check_fit, check_methods, fit_head
from retrm.fitting.gradient import check_start_targets, fit_gradient, split_rows
from retrm.fitting.mean_head import AnswerMoments, check_mean, fit_mean, supervision_of
from retrm.fitting.targets import Targets, loss_value
from retrm.heads.gated import GatedHead
from retrm.heads.registry import make_head
from retrm.methods import METHODS, GradientOptions
from retrm.records import Answer, AnswerTable

N_PROMPTS, N = 15, 4


def tokens_of(n_answers, width, seed=0, dtype=torch.float32):
    """Answers of 1 to 6 tokens around means of their own."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (n_answers,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    means = torch.randn(n_answers, width, generator=generator)
    values = means.repeat_interleave(lengths, 0)
    values = values + torch.randn(values.shape, generator=generator)
    return Features(values.to(dtype), offsets, False)


def targets_of(labels, pairs=()):
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    groups = torch.arange(len(labels)) // N
    return Targets(labels, groups, index, torch.zeros(len(index)), torch.ones(len(index)))


def judged(width=40, seed=0):
    """Right where the mean of an answer points along the first feature."""
    features = tokens_of(N_PROMPTS * N, width, seed)
    means = AnswerMoments.of(features, torch.arange(features.n_answers)).means
    return features, targets_of((means[:, 0] > 0).float())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.sampled_from([0.0, 3.0, 1000.0]))
def test_statistics_from_one_pass_are_those_of_all_tokens(seed, shift):
    features = tokens_of(7, 5, seed)
    features = Features(features.values + shift, features.offsets, False)
    rows = torch.tensor([5, 0, 3])
    mean, deviation = AnswerMoments.of(features, rows).token_statistics()

    every = features.take(rows).values.double()
    assert torch.allclose(mean.double(), every.mean(0), rtol=1e-6, atol=1e-6)
    # 1e-3: at a shift of 1000 float32 itself knows the values to 6e-5.
    assert torch.allclose(deviation.double(), every.std(0, correction=0), rtol=1e-3)


def test_a_constant_feature_has_deviation_one():
    features = tokens_of(6, 3)
    features.values[:, 1] = 7.0
    mean, deviation = AnswerMoments.of(features, torch.arange(6)).token_statistics()

    assert mean[1] == 7.0
    assert deviation[1] == 1.0


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("width", [5, 90])  # fewer and more features than the 60 answers
def test_it_is_the_convex_head_on_means(width, standardise):
    features, targets = judged(width)
    scales = torch.logspace(-1, 1, width)
    means = AnswerMoments.of(features, torch.arange(features.n_answers), scatter=False).means
    means = means * scales
    fit = fit_mean(means, targets, "bce", standardise=standardise)
    # Variances are 1 each once standardised.
    lam = fit.penalty * (width if standardise else means.var(0, correction=0).sum().item())
    oracle = fit_linear(means, RowTargets(targets.labels.numpy()), lam=lam, standardise=standardise)

    assert torch.allclose(fit.weight, oracle.weight, atol=1e-4 * oracle.weight.abs().max().item())
    assert fit.bias == pytest.approx(oracle.bias, abs=1e-3)


def test_preferences_give_a_head_without_intercept():
    features, targets = judged()
    pairs = [
        (i, j)
        for i in range(60)
        for j in range(60)
        if i // N == j // N and targets.labels[i] > targets.labels[j]
    ]
    means = AnswerMoments.of(features, torch.arange(60)).means
    fit = fit_mean(means, targets_of(torch.full((60,), float("nan")), pairs), "bradley_terry")
    scores = means @ fit.weight

    assert fit.bias == 0.0
    assert all(scores[i] > scores[j] for i, j in pairs)


def test_each_loss_gets_the_supervision_it_compares():
    _, targets = judged()
    nan = targets_of(torch.tensor([1.0, float("nan"), 0.0, 1.0]))

    assert isinstance(supervision_of(targets, "hinge")[1], RowTargets)
    assert isinstance(supervision_of(targets, "infonca")[1], PairTargets)
    rows, rights = supervision_of(nan, "bce")
    assert rows.tolist() == [0, 2, 3]
    assert list(rights.labels) == [1.0, 0.0, 1.0]
    with pytest.raises(LabelError, match="none with both a right and a wrong"):
        supervision_of(targets_of(torch.tensor([1.0] * 4 + [0.0] * 4)), "pairwise_logistic")


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("gate", [True, False])
def test_epoch_zero_is_the_mean_head_of_the_training_prompts(standardise, gate):
    features, targets = judged()
    # A step of 1e-30 cannot better the start: what is kept is the start itself.
    options = GradientOptions(start="mean_head", lr=1e-30, epochs=1, standardise=standardise)
    head = GatedHead(40, gate=gate)
    fit = fit_gradient(head, features, targets, "bce", options, seed=3)

    train, held_out = split_rows(targets, 0.2, 3)
    means = AnswerMoments.of(features, torch.arange(60)).means
    start = fit_mean(means[train], targets.take(train), "bce", standardise=standardise, seed=3)
    expected = means @ start.weight + start.bias
    assert torch.allclose(head.score(features), expected, atol=1e-4)
    assert fit.start_penalty == start.penalty
    first = fit.epochs[0]
    assert first.number == 0
    assert first.validation_loss == pytest.approx(
        cross_entropy(expected[held_out], targets.labels[held_out]).item(), abs=1e-4
    )
    assert first.training_loss == pytest.approx(
        cross_entropy(expected[train], targets.labels[train]).item(), abs=1e-4
    )


def test_a_start_that_no_epoch_betters_is_kept():
    features, targets = judged()
    options = GradientOptions(start="mean_head", lr=50.0, epochs=20, patience=3)
    head = GatedHead(40)
    fit = fit_gradient(head, features, targets, "bce", options)
    losses = [epoch.validation_loss for epoch in fit.epochs]

    assert min(losses) == losses[0], "the step must overshoot, or this tests nothing"
    assert fit.kept_epoch == 0
    assert [epoch.number for epoch in fit.epochs] == [0, 1, 2, 3]  # 3 epochs of patience
    _, held_out = split_rows(targets, 0.2, 0)
    kept = loss_value("bce", head.score(features)[held_out], targets.take(held_out))
    assert kept.item() == pytest.approx(losses[0], abs=1e-5)


def test_epochs_after_the_start_find_a_gate_that_the_mean_cannot():
    # The first token of six is the answer's, marked by feature 1; the rest is loud noise in feature 0.
    generator = torch.Generator().manual_seed(0)
    n = 40 * N
    labels = (torch.rand(n, generator=generator) < 0.5).float()
    values = torch.zeros(n, 6, 2)
    values[:, :, 0] = 6 * torch.randn(n, 6, generator=generator)
    values[:, 0, 0] = 2 * labels - 1
    values[:, 0, 1] = 1.0
    features = Features(values.reshape(-1, 2), torch.arange(0, 6 * n + 1, 6), False)
    options = GradientOptions(start="mean_head", lr=0.1, epochs=60, patience=None, standardise=True)
    fit = fit_gradient(GatedHead(2), features, targets_of(labels), "bce", options)

    assert fit.epochs[0].validation_loss > 0.6  # near ln 2: the mean drowns in the noise
    assert min(epoch.validation_loss for epoch in fit.epochs) < 0.3


def test_only_the_gated_head_has_that_start():
    features, targets = judged()
    options = GradientOptions(start="mean_head")

    with pytest.raises(RecipeError, match="'worst_token'; expected the gated head"):
        fit_gradient(make_head("worst_token", 40), features, targets, "bce", options)
    harp = METHODS["harp"].with_changes(gradient={"start": "mean_head"})
    with pytest.raises(RecipeError, match="start=random"):
        check_methods([harp])


@pytest.mark.parametrize(
    ("loss", "kind"), [("bce", "labels"), ("pairwise_logistic", "right and wrong answers")]
)
def test_too_few_prompts_for_the_penalty_are_refused_with_advice_to_follow(loss, kind):
    features, targets = judged()
    rows = torch.arange(2 * N)
    with pytest.raises(FitError, match=rf"2 training prompt\(s\) with {kind}") as refusal:
        fit_mean(AnswerMoments.of(features, rows).means, targets.take(rows), loss)
    assert "use start=random" in str(refusal.value)
    assert "lam" not in str(refusal.value)


def test_preferences_without_pairs_are_refused_by_their_number():
    features = tokens_of(8, 3)
    targets = targets_of(torch.full((8,), float("nan")))
    with pytest.raises(FitError, match=r"0 training prompt\(s\) with pairs"):
        fit_gradient(
            GatedHead(3), features, targets, "bradley_terry", GradientOptions(start="mean_head")
        )


def test_labels_that_all_fall_into_validation_are_refused_before_any_feature_is_touched():
    # One labelled prompt of ten: whichever seed puts it into validation leaves none to train on.
    labels = torch.full((10 * N,), float("nan"))
    labels[:N] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    targets, options = targets_of(labels), GradientOptions(start="mean_head")
    in_validation = {
        seed
        for seed in range(20)
        if not targets.is_labelled[split_rows(targets, options.validation_fraction, seed)[0]].any()
    }
    assert in_validation
    for seed in range(20):
        n = int(seed not in in_validation)
        with pytest.raises(FitError, match=rf"got {n} training prompt\(s\) with labels"):
            check_start_targets(targets, "bce", options, seed=seed)


def test_one_class_among_the_training_prompts_is_refused():
    labels = torch.zeros(5 * N)
    with pytest.raises(FitError, match="20 labelled answers in the training prompts, all 0"):
        check_mean(targets_of(labels), "bce")


def test_a_nan_is_found_in_the_answer_that_has_it():
    features, targets = judged()
    _, held_out = split_rows(targets, 0.2, 0)
    train = [row for row in range(60) if row not in held_out.tolist()]
    bad = train[-1]
    assert bad != len(train) - 1, "another number among the training answers, or this tests nothing"
    features.values[features.offsets[bad]] = float("nan")
    with pytest.raises(FitError, match=rf"in row {bad} \(1 rows in all\)"):
        fit_gradient(GatedHead(40), features, targets, "bce", GradientOptions(start="mean_head"))

    means = torch.randn(60, 40)
    means[7, 3] = float("inf")
    with pytest.raises(FitError, match=r"in row 7 \(1 rows in all\)"):
        fit_mean(means, targets, "bce")


def test_the_seed_deals_the_folds_of_the_penalty(monkeypatch):
    features, targets = judged()
    means = AnswerMoments.of(features, torch.arange(60)).means
    whole, values = mean_head.choose_lambda, []

    def spy(*args, **kwargs):
        values.append(whole(*args, **kwargs).values)
        return whole(*args, **kwargs)

    monkeypatch.setattr(mean_head, "choose_lambda", spy)
    for seed in (0, 1, 0):
        fit_mean(means, targets, "bce", seed=seed)
    assert values[0] == values[2] != values[1]


def test_too_few_prompts_are_told_before_a_model_reads():
    answers = tuple(Answer.of(f"question {i // 2}", f"answer {i}") for i in range(6))
    table = AnswerTable(answers, np.tile([1.0, 0.0], 3))
    elhsr = METHODS["elhsr"].with_changes(gradient={"start": "mean_head"})
    # 3 prompts, 1 held out for testing: 2 are left (and split_rows keeps them together).
    with pytest.raises(FitError, match=r"got 2 training prompt\(s\) with labels"):
        check_fit(table, FakeBackbone(), [elhsr], test_fraction=0.34)
    assert check_fit(table, FakeBackbone(), [METHODS["elhsr"]], test_fraction=0.34).train.size == 4


def test_an_unknown_start_names_the_known_ones():
    with pytest.raises(RecipeError, match="start is 'zero'; expected one of random, mean_head"):
        GradientOptions(start="zero")


def test_the_presets_start_as_published():
    assert {m.gradient.start for m in METHODS.values()} == {"random"}


def test_answers_that_stand_in_no_pair_take_no_part_in_a_fit_of_pairs():
    # Rows 1 and 4 stand in no pair, as answers that are rated only.
    targets = targets_of(torch.full((6,), torch.nan), pairs=[(5, 0), (2, 3)])
    rows, pairs = supervision_of(targets, "bradley_terry")

    assert rows.tolist() == [0, 2, 3, 5]
    assert rows[torch.from_numpy(pairs.chosen)].tolist() == [5, 2]
    assert rows[torch.from_numpy(pairs.rejected)].tolist() == [0, 3]


def test_a_linear_head_of_pairs_is_the_same_beside_answers_that_stand_in_none():
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    pairs = [(2 * i, 2 * i + 1) if values[2 * i, 0] > 0 else (2 * i + 1, 2 * i) for i in range(15)]
    heads = []
    for n in (30, 40):  # the last ten are far away, and in no pair
        far = values[:n] + 1000.0 * (torch.arange(n) >= 30).float()[:, None]
        features = Features(far, torch.arange(n + 1), True)
        targets = targets_of(torch.full((n,), torch.nan), pairs)
        heads.append(fit_head(METHODS["last_token"], features, targets).head)

    assert torch.equal(heads[0].weight, heads[1].weight)
