"""What a mixture is measured against, each fitted on the same training answers.

    uniform gate        all objectives alike, adjusted for verbosity
    best objective      the one that orders most training pairs, as it is
    constant gate       one weight an objective for all prompts: Bradley-Terry on adjusted scores
    linear head         Bradley-Terry on the features of the answer, penalty by cross-validation
    without debiasing   the same mixture, its gate fitted on raw objective scores

A gate that does not beat the first three does not use the prompt.

Source: the controls of ArmoRM, arXiv 2406.12845, and those that a gate of many weights needs beside them.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.fitting.convex import choose_lambda, fit_linear
from retrm.fitting.mean_head import supervision_of
from retrm.fitting.mixture import GatePairs, fit_gate, training_parts
from retrm.fitting.targets import Targets
from retrm.heads.mixture import MixtureHead
from retrm.mixture_options import MixtureOptions
from retrm.pair_options import PLAIN, PairOptions


@dataclass(frozen=True)
class MixtureScores:
    """Scores of held-out answers, beside those of a mixture itself.

    Attributes:
        controls: (n,) by the name of the control.
        objectives: (n,) raw objective scores by name.
        adjusted: (n,) the same without what verbosity explains of them.
        verbosity: name of the objective that is taken out of the others; None = none.
    """

    controls: dict[str, np.ndarray]
    objectives: dict[str, np.ndarray]
    adjusted: dict[str, np.ndarray]
    verbosity: str | None


def held_out_scores(
    head: MixtureHead,
    features: Float[Tensor, "rows features"],
    targets: Targets,
    held_out: Float[Tensor, "held_out features"],
    options: MixtureOptions,
    *,
    loss_options: PairOptions = PLAIN,
    seed: int = 0,
) -> MixtureScores:
    """Fit the controls of `head` and score answers to prompts that none of them has seen.

    Args:
        head: a mixture that was fitted with the same arguments.
        features: of the training answers.
        targets: of the same.
        held_out: features of other answers.
        options: of the mixture's fit.
        loss_options: of its loss.
        seed: of its fit.

    Raises:
        FitError: the pairs lie in too few prompts to choose a penalty by.
    """
    features, held_out = features.float(), held_out.float()
    (own, _), (judged, _) = head.split(features), head.split(held_out)
    raw, test = head.objective_scores(own), head.objective_scores(judged)
    adjusted, test_adjusted = head.adjusted(raw), head.adjusted(test)
    best = _best_objective(raw, targets)
    controls = {
        "uniform gate": test_adjusted.mean(dim=1),
        f"best objective: {head.objectives[best]}": test[:, best],
        "constant gate": test_adjusted @ _linear(adjusted, targets, loss_options, seed),
        "linear head": judged @ _linear(own, targets, loss_options, seed),
    }
    if head.verbosity is not None:
        controls["without debiasing"] = _without_debiasing(
            *(head, features, targets, options), loss_options=loss_options, seed=seed
        )(held_out, torch.arange(len(held_out) + 1))
    return MixtureScores(
        controls={name: _plain(values) for name, values in controls.items()},
        objectives=_by_name(head, test),
        adjusted=_by_name(head, test_adjusted),
        verbosity=None if head.verbosity is None else head.objectives[head.verbosity],
    )


def _best_objective(raw: Float[Tensor, "rows objectives"], targets: Targets) -> int:
    gaps = raw[targets.pairs[:, 0]] - raw[targets.pairs[:, 1]]
    return int((targets.weights @ (gaps.sign() + 1)).argmax())


def _linear(
    values: Float[Tensor, "rows features"], targets: Targets, options: PairOptions, seed: int
) -> Float[Tensor, " features"]:
    rows, supervision = supervision_of(targets, "bradley_terry", options)
    groups = targets.groups[rows].numpy()
    chosen = choose_lambda(values[rows], supervision, groups, seed=seed)
    return fit_linear(values[rows], supervision, lam=chosen.lam).weight


def _without_debiasing(
    head: MixtureHead,
    features: Float[Tensor, "rows features"],
    targets: Targets,
    options: MixtureOptions,
    *,
    loss_options: PairOptions,
    seed: int,
) -> MixtureHead:
    """The same objectives and another gate, which sees them as they are."""
    shape = {**head.options, "verbosity": None}
    other = MixtureHead(head.n_features, **shape)
    other.set_objectives(head.weight)
    pairs = GatePairs.of(other, features, targets)
    training, validation = training_parts(pairs, targets, options, seed)
    plain = replace(options, verbosity="none")
    fit_gate(other, training, validation, plain, loss_options=loss_options, seed=seed)
    return other


def _by_name(head: MixtureHead, columns: Tensor) -> dict[str, np.ndarray]:
    return {name: _plain(columns[:, k]) for k, name in enumerate(head.objectives)}


def _plain(values: Tensor) -> np.ndarray:
    return values.detach().double().numpy()
