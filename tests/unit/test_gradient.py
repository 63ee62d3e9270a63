"""The one gradient loop."""

import pytest
import torch

from retrm.errors import FitError, LabelError
from retrm.features.reduce import Features
from retrm.fitting.gradient import fit_gradient
from retrm.fitting.targets import Targets, check_targets, default_loss, loss_value
from retrm.heads.registry import make_head
from retrm.losses import LOSSES
from retrm.methods import GradientOptions

N_PROMPTS, N, WIDTH = 24, 4, 6


def planted(seed=0, noise=0.3):
    """Tokens whose mean along one direction decides the label; four answers to each prompt."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(WIDTH, generator=generator)
    direction /= direction.norm()
    values, lengths, labels = [], [], []
    for _ in range(N_PROMPTS * N):
        label = float(torch.rand((), generator=generator) < 0.5)
        length = int(torch.randint(1, 5, (), generator=generator))
        tokens = noise * torch.randn(length, WIDTH, generator=generator)
        values.append(tokens + (2 * label - 1) * direction)
        lengths.append(length)
        labels.append(label)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    return Features(torch.cat(values), offsets, False), targets_of(torch.tensor(labels))


def targets_of(labels, pairs=()):
    groups = torch.arange(len(labels)) // N
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return Targets(labels, groups, index, torch.zeros(len(index)), torch.ones(len(index)))


OPTIONS = GradientOptions(lr=0.05, epochs=30, patience=None)


@pytest.mark.parametrize("loss", [n for n in LOSSES if LOSSES[n].needs != "pairs"])
@pytest.mark.parametrize("head_name", ["gated", "worst_token"])
def test_every_loss_learns_a_planted_reward(head_name, loss):
    features, targets = planted()
    head = make_head(head_name, WIDTH)
    fit_gradient(head, features, targets, loss, OPTIONS, seed=1)
    scores = head.score(features)

    right, wrong = scores[targets.labels == 1], scores[targets.labels == 0]
    auroc = (right[:, None] > wrong[None, :]).float().mean().item()
    # infonca and the pairwise loss only order answers inside a prompt.
    floor = 0.85 if LOSSES[loss].needs == "groups" else 0.95
    assert auroc > floor


def test_preference_pairs_teach_a_gated_head():
    features, targets = planted()
    rights = (targets.labels == 1).nonzero()[:, 0].tolist()
    wrongs = (targets.labels == 0).nonzero()[:, 0].tolist()
    pairs = [(r, w) for r in rights for w in wrongs if r // N == w // N]
    no_labels = targets_of(torch.full((N_PROMPTS * N,), float("nan")), pairs)
    head = make_head("gated", WIDTH)
    fit_gradient(head, features, no_labels, "bradley_terry", OPTIONS)
    scores = head.score(features)

    assert sum(scores[r] > scores[w] for r, w in pairs) / len(pairs) > 0.95


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    features, targets = planted()
    heads = []
    for seed in (3, 3, 4):
        head = make_head("gated", WIDTH)
        fit_gradient(head, features, targets, "bce", OPTIONS, seed=seed)
        heads.append(head.weight.detach().clone())

    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_weights_of_the_best_validation_epoch_are_kept_not_the_last():
    # A step size that overshoots: validation gets worse again after its best epoch.
    features, targets = planted(noise=8.0)
    options = GradientOptions(lr=1.0, epochs=12, patience=None, keep="best")
    head = make_head("gated", WIDTH)
    fit = fit_gradient(head, features, targets, "bce", options, seed=0)
    losses = [epoch.validation_loss for epoch in fit.epochs]
    last = make_head("gated", WIDTH)
    fit_gradient(
        last,
        features,
        targets,
        "bce",
        GradientOptions(lr=1.0, epochs=12, patience=None, keep="last"),
    )

    assert fit.kept_epoch == losses.index(min(losses)) + 1
    assert fit.kept_epoch < len(losses), "the case must overshoot, or it tests nothing"
    assert not torch.equal(head.weight, last.weight)
    # The kept weights really give the kept loss.
    shorter = GradientOptions(lr=1.0, epochs=fit.kept_epoch, patience=None, keep="last")
    again = make_head("gated", WIDTH)
    fit_gradient(again, features, targets, "bce", shorter, seed=0)
    assert torch.equal(head.weight, again.weight)


def test_patience_stops_that_many_epochs_after_the_best():
    features, targets = planted(noise=3.0)
    options = GradientOptions(lr=1.0, epochs=200, patience=3)
    fit = fit_gradient(make_head("gated", WIDTH), features, targets, "bce", options)

    assert len(fit.epochs) == fit.kept_epoch + 3


def test_standardising_is_folded_away():
    features, targets = planted()
    scaled = Features(features.values * 100 + 7, features.offsets, False)
    head = make_head("gated", WIDTH)
    options = GradientOptions(lr=0.05, epochs=30, patience=None, standardise=True)
    fit_gradient(head, scaled, targets, "bce", options)
    scores = head.score(scaled)
    # An unfolded head would read values a hundred times too large and saturate: BCE must be small.
    loss = loss_value("bce", scores, targets)
    assert loss.item() < 0.3

    right, wrong = scores[targets.labels == 1], scores[targets.labels == 0]
    assert (right[:, None] > wrong[None, :]).float().mean() > 0.95


def test_validation_prompts_are_whole_prompts():
    features, targets = planted()
    fit = fit_gradient(make_head("gated", WIDTH), features, targets, "bce", OPTIONS)

    # 20 % of 24 prompts is 4.8.
    assert fit.n_validation_prompts == 5


def test_a_diverging_fit_is_an_error_with_the_remedy():
    features, targets = planted()
    huge = Features(features.values * torch.inf, features.offsets, False)

    with pytest.raises(FitError, match=r"score became nan.*Lower lr"):
        fit_gradient(make_head("gated", WIDTH), huge, targets, "bce", OPTIONS)


def test_labels_of_one_kind_are_refused_with_what_they_are():
    targets = targets_of(torch.ones(8))

    with pytest.raises(LabelError, match=r"all 8 labelled answers are right"):
        check_targets(targets, "bce")


def test_one_prompt_only_is_refused():
    targets = targets_of(torch.tensor([1.0, 0.0, 1.0, 0.0]))

    with pytest.raises(FitError, match="one prompt"):
        check_targets(targets, "bce")


def test_a_comparing_loss_without_mixed_prompts_is_refused():
    targets = targets_of(torch.tensor([1.0] * 4 + [0.0] * 4))

    with pytest.raises(FitError, match="no prompt has both"):
        check_targets(targets, "pairwise_logistic")


def test_pairs_loss_on_labelled_data_names_the_loss_to_use():
    targets = targets_of(torch.tensor([1.0, 0.0] * 4))

    with pytest.raises(LabelError, match="loss=bce or loss=pairwise_logistic"):
        check_targets(targets, "bradley_terry")


def test_auto_is_bce_on_labels_and_bradley_terry_on_pairs():
    labelled = targets_of(torch.tensor([1.0, 0.0]))
    paired = targets_of(torch.tensor([float("nan")] * 2), [(0, 1)])

    assert default_loss(labelled, "auto") == "bce"
    assert default_loss(paired, "auto") == "bradley_terry"
    assert default_loss(paired, "hinge") == "hinge"


def test_missing_labels_are_masked_not_counted_as_wrong():
    targets = targets_of(torch.tensor([1.0, float("nan"), 0.0, float("nan")]))
    scores = torch.tensor([0.4, 99.0, 0.4, -99.0])

    # BCE at .4: .513015 (y = 1) and .913015 (y = 0); mean .713015.
    assert loss_value("bce", scores, targets).item() == pytest.approx(0.713015, abs=1e-6)
