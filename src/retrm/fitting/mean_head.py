"""Where a gated head can start: at the best head without a gate, which is found by convex fitting.

With equal gates the score of ELHSR is a linear head on the mean state of the answer:

    Σ_t (w · h_t + b) / T  =  w · m + b,    m = Σ_t h_t / T

so the reward weights of a gate-free head need one pass over the tokens, which leaves one row an
answer, and a convex fit. Answers are far fewer than features (all layers side by side), and a penalty
keeps w in the span of the rows; the fit and the choice of its penalty happen in the n coordinates that
the eigenvectors of the n x n Gram matrix give, which is decomposed once for all folds.

Sources: gate and mean, arXiv 2505.12225, section 3; representer theorem, Kimeldorf & Wahba 1971.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrm.errors import FitError
from retrm.features.reduce import Features
from retrm.fitting.checks import checked_features
from retrm.fitting.convex import (
    PairTargets,
    RowTargets,
    choose_lambda,
    fit_linear,
    pairs_within_prompts,
)
from retrm.fitting.objectives import ScorePenalties
from retrm.fitting.targets import Targets
from retrm.losses import LOSSES, lead_and_weights
from retrm.pair_options import PLAIN, PairOptions

# Penalties to choose from, in shares of the variance of all features together. Weaker ones only cost:
# with fewer answers than features they separate right from wrong, and held-out loss grows without end
# while the solver works longest.
PENALTY_SHARES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
N_FOLDS = 3  # of prompts, by which the penalty is chosen
# Of the largest eigenvalue of the Gram matrix: below this a direction is rounding.
_SMALLEST_EIGENVALUE = 1e-12
# Of the largest deviation: below this a feature is constant.
_SMALLEST_DEVIATION = 1e-8


@dataclass(frozen=True)
class AnswerMoments:
    """What one pass over the tokens of some answers leaves.

    Attributes:
        means: mean of the features of each answer, float32.
        lengths: tokens of each answer.
        scatter: sum over all tokens of the squared distance to the mean of their own answer, float64;
            None where it was not asked for.
    """

    means: Float[Tensor, "answers features"]
    lengths: Int[Tensor, " answers"]
    scatter: Float[Tensor, " features"] | None

    @classmethod
    def of(cls, features: Features, rows: Tensor, *, scatter: bool = True) -> "AnswerMoments":
        """One pass over the answers `rows`, one answer in memory at a time.

        Raises:
            FitError: a feature is NaN or infinite; names the answer by its number in `features`.
        """
        means = torch.empty(len(rows), features.n_features)
        total = torch.zeros(features.n_features, dtype=torch.float64)
        starts, stops = features.offsets[rows].tolist(), features.offsets[rows + 1].tolist()
        for at, (first, last) in enumerate(zip(starts, stops, strict=True)):
            tokens = features.values[first:last].to(torch.float32, copy=True)
            torch.mean(tokens, dim=0, out=means[at])
            if scatter:
                total += tokens.sub_(means[at]).square_().sum(0)
        checked_features(means, numbers=rows)
        lengths = features.offsets[rows + 1] - features.offsets[rows]
        return cls(means, lengths, total if scatter else None)

    def token_statistics(self) -> tuple[Float[Tensor, " features"], Float[Tensor, " features"]]:
        """(mean, standard deviation) over tokens; 1 stands for the deviation of a constant feature.

        Squares are of distances and not of values: massive activations would leave nothing of a small
        variance.
        """
        assert self.scatter is not None, "of(..., scatter=True) comes first"
        weights = self.lengths.double() / self.lengths.sum()
        mean = (weights @ self.means.double()).float()
        between = weights @ (self.means - mean).square().double()
        return mean, _scale((self.scatter / self.lengths.sum() + between).sqrt()).float()


@dataclass(frozen=True)
class MeanFit:
    """A linear head on mean features, in raw coordinates: score = mean @ weight + bias.

    Attributes:
        weight: of each feature.
        bias: intercept; 0 where only answers are compared.
        penalty: the strength that was chosen inside the answers that were given, as a share of the
            variance of all features together.
    """

    weight: Float[Tensor, " features"]
    bias: float
    penalty: float


def supervision_of(
    targets: Targets, loss: str, options: PairOptions = PLAIN
) -> tuple[Tensor, RowTargets | PairTargets]:
    """The rows that take part in a convex fit, and what is known of them.

    Losses on one answer are fitted by cross-entropy, those that compare answers to one prompt by the
    pairwise logistic loss, preferences by Bradley-Terry. Answers that stand in no pair, such as those that
    are rated only, take no part in the latter: neither in the loss nor in means and deviations.

    Raises:
        LabelError: no prompt has both right and wrong answers, where answers are compared.
    """
    needs = LOSSES[loss].needs
    if needs == "pairs":
        lead, weights = lead_and_weights(targets.margins, targets.weights, options)
        rows, places = torch.unique(targets.pairs, return_inverse=True)
        pairs = PairTargets(
            chosen=places[:, 0].numpy(),
            rejected=places[:, 1].numpy(),
            margins=lead.numpy(),
            weights=weights.numpy(),
            smoothing=options.smoothing,
            penalties=ScorePenalties.of(options, targets.weights.numpy()),
        )
        return rows, pairs
    rows = targets.is_labelled.nonzero()[:, 0]
    labels = targets.labels[rows].numpy()
    if needs == "labels":
        return rows, RowTargets(labels)
    return rows, pairs_within_prompts(labels, targets.groups[rows].numpy())


def check_mean(targets: Targets, loss: str) -> None:
    """Refuse answers to which no mean head can be fitted; needs no features.

    Args:
        targets: of the answers that a head is fitted to: without those held out, for testing or for
            validation.
        loss: a name of `LOSSES`.

    Raises:
        FitError: fewer than three prompts with anything to learn from, or one class is missing.
    """
    needs = LOSSES[loss].needs
    n_prompts = len(_prompts_with_targets(targets, needs))
    if n_prompts < N_FOLDS:
        kind = {"labels": "labels", "groups": "right and wrong answers", "pairs": "pairs"}[needs]
        raise FitError(
            f"got {n_prompts} training prompt(s) with {kind}; start=mean_head expected at least {N_FOLDS}, "
            "since its penalty is chosen by cross-validation over prompts, and prompts held out for "
            "testing or validation do not count. Bring more prompts, or use start=random"
        )
    labels = targets.labels[targets.is_labelled]
    if needs == "labels" and labels.min() == labels.max():
        raise FitError(
            f"got {len(labels)} labelled answers in the training prompts, all {labels[0]:g}; "
            "start=mean_head expected right and wrong ones there. Bring more prompts, or use "
            "start=random"
        )


def _prompts_with_targets(targets: Targets, needs: str) -> Tensor:
    """Prompts that say anything to a loss that needs labels, groups or pairs."""
    if needs == "pairs":
        return torch.unique(targets.groups[targets.pairs[:, 0]])
    right, wrong = (torch.unique(targets.groups[targets.labels == label]) for label in (1, 0))
    if needs == "labels":
        return torch.unique(torch.cat([right, wrong]))
    return right[torch.isin(right, wrong)]


def fit_mean(
    means: Float[Tensor, "answers features"],
    targets: Targets,
    loss: str,
    *,
    standardise: bool = False,
    seed: int = 0,
) -> MeanFit:
    """The convex head on mean features, its penalty chosen by cross-validation over prompts.

    Unlike `choose_lambda` on the features themselves, means and deviations are those of all answers
    given here: the rotation that makes this cheap must be the same in every fold. Labels have no part
    in them.

    Args:
        means: of the answers in `targets`.
        targets: of the training answers.
        loss: a name of `LOSSES`; only what it needs counts here.
        standardise: whether each feature is scaled to unit variance before the penalty weighs them.
        seed: of the folds.

    Raises:
        FitError: as `check_mean`; a mean is NaN or infinite (names the row); a fold that cannot be
            fitted, or as `fit_linear`.
    """
    check_mean(targets, loss)
    # Before they are centred, which would spread one NaN over all rows.
    checked_features(means)
    rows, supervision = supervision_of(targets, loss)
    design = means[rows].double()
    shift = design.mean(0)
    design -= shift
    scale = _scale(design.square().mean(0).sqrt()) if standardise else torch.tensor(1.0)
    design /= scale
    variance = float(design.square().mean(0).sum()) or 1.0
    coordinates, basis = _rotated(design)
    chosen = choose_lambda(
        coordinates,
        supervision,
        targets.groups[rows].numpy(),
        grid=[share * variance for share in PENALTY_SHARES],
        n_folds=N_FOLDS,
        standardise=False,
        seed=seed,
    )
    done = fit_linear(coordinates, supervision, lam=chosen.lam, standardise=False)
    weight = done.weight.double()
    weight = (weight if basis is None else design.T @ (basis @ weight)) / scale
    bias = done.bias - float(weight @ shift) if isinstance(supervision, RowTargets) else 0.0
    return MeanFit(weight.float(), bias, chosen.lam / variance)


def _rotated(design: Tensor) -> tuple[Tensor, Tensor | None]:
    """(coordinates, B) with coordinates @ a = design @ (design.T @ B @ a); B is None for "as it is"."""
    n, width = design.shape
    if width <= n:
        return design, None
    values, vectors = torch.linalg.eigh(design @ design.T)
    kept = values > _SMALLEST_EIGENVALUE * values[-1].clamp(min=1e-300)
    roots = values[kept].sqrt()
    return vectors[:, kept] * roots, vectors[:, kept] / roots


def _scale(deviation: Tensor) -> Tensor:
    is_constant = deviation <= _SMALLEST_DEVIATION * deviation.max()
    return torch.where(is_constant, 1.0, deviation)
