r"""ArmoRM in two stages, from one reading: regressors of objectives, then a gate that mixes them by prompt.

    stage 1   W by ridge on ratings                             (`rating_ridge`)
    between   T from the smallest shares of verbosity           (`debias`)
    stage 2   minimise  -log sigmoid(g · r'_chosen - g · r'_rejected)  over the gate alone,  r' = W h T

Stage 2 sees adjusted scores in training, validation and scoring alike, and its softmax runs over the
objectives; the released script does neither. W and T stay as they are. A fifth of the training prompts,
the same for both stages, chooses the penalties and says when the gate is best; the reference answers of
T are both sides of all training pairs.

Every prompt weighs the same: pairs are drawn in proportion to their weight, with replacement. The gate
is computed once a prompt and step: both answers of a pair share it, and so do pairs that follow each other
in the data.

What it takes is measured by `benchmarks/armorm_fit.py`.

Source: Wang et al., "Interpretable Preferences via Multi-Objective Reward Modeling and
Mixture-of-Experts", arXiv 2406.12845, section 3. The features there come from a reward model; those of
a chat model make a weaker variant.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from retrm.errors import FitError, LabelError, RecipeError, ShapeError, did_you_mean
from retrm.features.reduce import Features
from retrm.fitting.checks import checked_features
from retrm.fitting.debias import Debiasing, find_lambdas
from retrm.fitting.gradient import split_rows
from retrm.fitting.rating_ridge import RatingFit, fit_ratings
from retrm.fitting.targets import Targets
from retrm.fitting.threads import one_thread_if_small
from retrm.heads.mixture import MixtureHead
from retrm.losses import bradley_terry
from retrm.mixture_options import NO_VERBOSITY, MixtureOptions
from retrm.pair_options import PLAIN, PairOptions
from retrm.records import RatingScale

# Of the largest number in the two: prompts that were read in other batches differ by rounding.
_SAME_CONTEXT = 1e-2


@dataclass(frozen=True)
class MixtureFit:
    """A mixture head with the account of its fit.

    Attributes:
        head: ready to score.
        report: plain JSON: by objective, of the gate, and the options.
    """

    head: MixtureHead
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Look:
    """The gate after some steps; number 0 is the gate as it was drawn."""

    step: int
    validation_loss: float


@dataclass(frozen=True)
class Rated:
    """The ratings that a mixture is fitted to.

    Attributes:
        objectives: names, in the order of the columns.
        ratings: of each row, NaN = not rated.
        scales: the raters' own numbers.
        verbosity: column that is taken out of the others; None = none is.
    """

    objectives: tuple[str, ...]
    ratings: Float[Tensor, "rows objectives"]
    scales: tuple[RatingScale, ...]
    verbosity: int | None

    @classmethod
    def of(cls, targets: Targets, options: MixtureOptions) -> Self:
        """The objectives that `options` name.

        Raises:
            LabelError: there are no ratings, or of fewer than two objectives beside verbosity.
            RecipeError: an objective that is not there, verbosity among them.
        """
        there = targets.objectives
        if not there:
            raise LabelError(
                "got answers without ratings by objective; a mixture head expected at least two rated "
                "objectives beside verbosity. Bring records with ratings, or use method last_token for "
                "pairs alone"
            )
        names = tuple(options.objectives) or there
        for name in names:
            if name not in there:
                raise RecipeError(
                    f"no answer is rated on the objective {name!r}; expected some of "
                    f"{', '.join(there)}. {did_you_mean(name, there)}"
                )
        verbosity = _verbosity(names, there, options)
        n_mixed = len(names) - (verbosity is not None)
        if n_mixed < 2:
            beside = "" if verbosity is None else f" beside {options.verbosity}"
            raise LabelError(
                f"got {n_mixed} objective{beside} ({', '.join(names)}); expected at least two{beside}, "
                "since a gate mixes them. Bring another rating, or learn the one with method "
                "last_token and attribute"
            )
        columns = [there.index(name) for name in names]
        scales = tuple(targets.scales[i] for i in columns)
        return cls(names, targets.ratings[:, columns], scales, verbosity)


def _verbosity(
    names: tuple[str, ...], there: tuple[str, ...], options: MixtureOptions
) -> int | None:
    wanted = options.verbosity
    if not options.debiases:
        return None
    if wanted in names:
        return names.index(wanted)
    if wanted in there:
        raise RecipeError(
            f"the objective {wanted!r} is to be taken out of the others and is not among the objectives "
            f"{', '.join(names)}; name it there, too, or use verbosity={NO_VERBOSITY}"
        )
    raise RecipeError(
        f"no answer is rated on {wanted!r}, the objective that is to be taken out of the others; they are "
        f"rated on {', '.join(there)}. Say which of them is the verbosity, have one computed from the "
        f"length, or use verbosity={NO_VERBOSITY} for a mixture that keeps its length bias. "
        f"{did_you_mean(wanted, there)}".rstrip()
    )


def check_mixture_recipe(context: str, loss: str) -> None:
    """Refuse a recipe without the prompt, or a loss that is not of pairs; needs no data.

    Raises:
        RecipeError: the message says what to change.
    """
    if context == "none":
        raise RecipeError(
            "the mixture head reads the end of the prompt, and the recipe has context='none': the prompts "
            "of the pairs would never be embedded. Use the method armorm, or context=prompt_end"
        )
    if loss not in ("auto", "bradley_terry"):
        raise RecipeError(
            f"got the loss {loss} for the mixture head, whose gate is fitted by bradley_terry on pairs; "
            "leave loss out"
        )


def check_rated(targets: Targets, options: MixtureOptions) -> Rated:
    """The ratings that a mixture of `targets` is fitted to, where there are enough.

    Raises:
        LabelError: no ratings, one objective, no pairs, or an objective without different ratings.
        RecipeError: an objective that is not there.
    """
    rated = Rated.of(targets, options)
    if not len(targets.pairs):
        raise LabelError(
            "got ratings and no preference pairs, by which the gate is fitted; expected records with "
            "chosen and rejected answers beside the rated ones, or in a file of their own (--pairs)"
        )
    _check_labels(rated, torch.arange(len(rated.ratings)), "the answers to fit on")
    return rated


def check_mixture(targets: Targets, options: MixtureOptions, *, seed: int = 0) -> None:
    """Refuse what no mixture can be fitted to; needs no features.

    Args:
        targets: of the training answers.
        options: of the fit.
        seed: of the fit; another one splits off other validation prompts.

    Raises:
        LabelError: as `check_rated`, or ratings or pairs lie in one of the two parts only.
        RecipeError: an objective that is not there.
    """
    rated = check_rated(targets, options)
    parts = split_rows(targets, options.validation_fraction, seed)
    for rows, where in zip(parts, ("fit", "validate"), strict=True):
        _check_labels(rated, rows, f"the prompts that {where}", is_constant_refused=where == "fit")
        if not len(_pairs_in(targets, rows)):
            raise LabelError(
                f"got {len(targets.pairs)} pairs and none in the prompts that {where}; expected some in "
                "both parts. Bring more prompts with pairs, or change validation_fraction or seed"
            )


def _check_labels(
    rated: Rated, rows: Tensor, where: str, *, is_constant_refused: bool = True
) -> None:
    for k, name in enumerate(rated.objectives):
        column = rated.ratings[rows, k]
        known = column[~torch.isnan(column)]
        if not len(known):
            raise LabelError(
                f"the objective {name!r} has no rating in {where}; expected some. Leave it out by naming "
                "the others as objectives, or bring more rated answers"
            )
        if is_constant_refused and known.min() == known.max():
            raise LabelError(
                f"the objective {name!r} has {len(known)} ratings in {where}, all {float(known[0]):g}; "
                "expected different ones. Leave it out by naming the others as objectives"
            )


def fit_mixture(
    features: Features,
    targets: Targets,
    options: MixtureOptions,
    *,
    n_context: int,
    loss_options: PairOptions = PLAIN,
    seed: int = 0,
    on_look: Callable[[Look], None] | None = None,
) -> MixtureFit:
    """Both stages on training answers.

    Args:
        features: one row an answer; the last `n_context` columns are the state of its prompt.
        targets: of the same rows: ratings and pairs.
        options: of the fit.
        n_context: width of the prompt's state.
        loss_options: of the Bradley-Terry loss of stage 2.
        seed: of the split, the gate's start, the draws and dropout.
        on_look: called whenever the gate has been judged by the validation pairs.

    Raises:
        LabelError, RecipeError: as `check_mixture`.
        FitError: a feature is NaN or infinite, or the two answers of a pair stand behind different
            prompts.
        ScoreError: the loss became infinite.
        ShapeError: features and targets differ in rows, or no column is left for the answer.
    """
    check_mixture(targets, options, seed=seed)
    _check_shapes(features, targets, n_context)
    values = checked_features(features.values).float()
    rated = Rated.of(targets, options)
    fit, validation = split_rows(targets, options.validation_fraction, seed)
    own = values[:, : values.shape[1] - n_context]
    fits = fit_ratings(own, rated.ratings, fit, validation, options.alphas)
    head = _head(rated, fits, options, n_context, len(_pairs_in(targets, fit)))
    debiasing = _debias(head, own, targets, options)
    pairs = GatePairs.of(head, values, targets)
    training, held_out = training_parts(pairs, targets, options, seed)
    with one_thread_if_small(options.batch_pairs * head.gate_width):
        looks, kept = fit_gate(
            *(head, training, held_out, options),
            loss_options=loss_options,
            seed=seed,
            on_look=on_look,
        )
    report = {
        "solver": "mixture",
        "options": options.as_dict(),
        "loss_options": loss_options.changes(),
        "verbosity": None if rated.verbosity is None else options.verbosity,
        "n_reference_pairs": len(targets.pairs),
        "objectives": _objective_report(rated, fits, debiasing),
        "gate": _gate_report(head, training, held_out, looks, kept),
    }
    return MixtureFit(head, report)


def _check_shapes(features: Features, targets: Targets, n_context: int) -> None:
    if features.n_answers != len(targets.labels):
        raise ShapeError(
            f"got features of {features.n_answers} answers and targets of {len(targets.labels)}; expected "
            "the same answers"
        )
    if not features.is_pooled or not 0 < n_context < features.n_features:
        raise ShapeError(
            f"got {features.n_features} features with {n_context} of the prompt; expected one row an "
            "answer, with the prompt's state behind the answer's own features"
        )


def _head(
    rated: Rated,
    fits: tuple[RatingFit, ...],
    options: MixtureOptions,
    n_context: int,
    n_pairs: int,
) -> MixtureHead:
    weight = torch.stack([one.weight for one in fits])
    head = MixtureHead(
        weight.shape[1] + n_context,
        objectives=rated.objectives,
        n_context=n_context,
        gate_width=options.width_of_gate(n_pairs),
        gate_layers=options.gate_layers,
        dropout=options.dropout,
        temperature=options.temperature,
        verbosity=rated.verbosity,
        scales=[astuple(scale) for scale in rated.scales],
    )
    head.set_objectives(weight)
    return head


def _debias(
    head: MixtureHead, own: Tensor, targets: Targets, options: MixtureOptions
) -> Debiasing | None:
    if head.verbosity is None:
        return None
    scores = head.objective_scores(own[targets.pairs.reshape(-1)]).double().numpy()
    found = find_lambdas(
        *(scores, head.verbosity), candidates=options.lambdas, threshold=options.threshold
    )
    head.set_lambdas(torch.from_numpy(found.lambdas).float())
    return found


# ------------------------------------------------------------------------ stage 2


@dataclass(frozen=True)
class GatePairs:
    """Pairs as the gate sees them.

    Attributes:
        context: state of the prompt that both answers have.
        chosen: adjusted objective scores r' of the preferred answer.
        rejected: the same of the other.
        margins: of the data.
        weights: of each pair.
    """

    context: Float[Tensor, "pairs context"]
    chosen: Float[Tensor, "pairs objectives"]
    rejected: Float[Tensor, "pairs objectives"]
    margins: Float[Tensor, " pairs"]
    weights: Float[Tensor, " pairs"]

    @classmethod
    def of(
        cls, head: MixtureHead, values: Float[Tensor, "rows features"], targets: Targets
    ) -> Self:
        """All pairs of `targets`, whose rows are those of `values`.

        Raises:
            FitError: a pair whose answers have different prompts.
        """
        own, context = head.split(values)
        adjusted = head.adjusted(head.objective_scores(own))
        first, second = targets.pairs.T
        gap = (context[first] - context[second]).abs().amax(dim=1)
        wrong = (gap > _SAME_CONTEXT * context[first].abs().amax(dim=1)).nonzero()[:, 0]
        if len(wrong):
            pair = int(wrong[0])
            raise FitError(
                f"the two answers of pair {pair} (rows {int(first[pair])} and {int(second[pair])}) stand "
                f"behind different prompt states ({len(wrong)} pairs in all); expected answers to one "
                "prompt, since the gate belongs to it"
            )
        return cls(
            context[first], adjusted[first], adjusted[second], targets.margins, targets.weights
        )

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, index: Tensor) -> Self:
        """The pairs `index`."""
        return type(self)(
            *(self.context[index], self.chosen[index], self.rejected[index]),
            *(self.margins[index], self.weights[index]),
        )

    def loss(self, head: MixtureHead, options: PairOptions = PLAIN) -> Float[Tensor, ""]:
        """Bradley-Terry of g · r', weighted by the pairs' weights."""
        gates = head.gates(self.context)
        chosen, rejected = ((gates * side).sum(dim=1) for side in (self.chosen, self.rejected))
        return bradley_terry(chosen, rejected, self.margins, self.weights, options=options)

    def accuracy(self, gates: Float[Tensor, "pairs objectives"]) -> float:
        """Share of pairs in the right order under `gates`, ties one half, by weight."""
        gap = (gates * (self.chosen - self.rejected)).sum(dim=1)
        return float((self.weights * (gap.sign() + 1) / 2).sum() / self.weights.sum())


def fit_gate(
    head: MixtureHead,
    training: GatePairs,
    validation: GatePairs,
    options: MixtureOptions,
    *,
    loss_options: PairOptions = PLAIN,
    seed: int = 0,
    on_look: Callable[[Look], None] | None = None,
) -> tuple[tuple[Look, ...], int]:
    """Fit the gate of `head` in place; objectives and transform stay.

    Args:
        head: with its objectives; the gate is drawn here.
        training: pairs to learn from.
        validation: pairs of other prompts, which say when the gate is best.
        options: of the fit.
        loss_options: of the loss.
        seed: of the draws.
        on_look: called after each look.

    Returns:
        The looks, and the step whose gate the head now has; 0 = as it was drawn.

    Raises:
        ScoreError: a score became infinite.
    """
    generator = torch.Generator().manual_seed(seed)
    head.reset(generator)
    optimizer = torch.optim.AdamW(
        head.gate_parameters, lr=options.lr, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    looks = _Looks(head, validation, loss_options, on_look)
    looks.add(0)
    # Dropout knows the global generator only.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(1, options.steps + 1):
            head.train()
            optimizer.zero_grad()
            _drawn(training, options, generator).loss(head, loss_options).backward()
            optimizer.step()
            schedule.step()
            if step % options.evaluate_every == 0 or step == options.steps:
                looks.add(step)
                if looks.is_out_of(options.patience):
                    break
    return tuple(looks.made), looks.restore()


class _Looks:
    """What the validation pairs said so far, and a copy of the best gate."""

    def __init__(
        self,
        head: MixtureHead,
        pairs: GatePairs,
        options: PairOptions,
        on_look: Callable[[Look], None] | None,
    ) -> None:
        self.made: list[Look] = []
        self._head, self._pairs, self._options, self._on_look = head, pairs, options, on_look
        self._best, self._weights = 0, copy.deepcopy(head.state_dict())

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Judge the gate as it is."""
        self._head.eval()
        self.made.append(Look(step, float(self._pairs.loss(self._head, self._options))))
        if self._on_look is not None:
            self._on_look(self.made[-1])
        if self.made[-1].validation_loss < self.made[self._best].validation_loss:
            self._best = len(self.made) - 1
            self._weights = copy.deepcopy(self._head.state_dict())

    def is_out_of(self, patience: int | None) -> bool:
        """Whether the best look is too long ago."""
        return patience is not None and len(self.made) - 1 - self._best >= patience

    def restore(self) -> int:
        """Give the head the best gate; returns its step."""
        self._head.load_state_dict(self._weights)
        self._head.eval()
        return self.made[self._best].step


def training_parts(
    pairs: GatePairs, targets: Targets, options: MixtureOptions, seed: int
) -> tuple[GatePairs, GatePairs]:
    """The pairs of `targets` to fit the gate on, and those of other prompts that judge it."""
    fit, validation = split_rows(targets, options.validation_fraction, seed)
    return pairs.take(_pairs_in(targets, fit)), pairs.take(_pairs_in(targets, validation))


def _drawn(pairs: GatePairs, options: MixtureOptions, generator: torch.Generator) -> GatePairs:
    n = min(options.batch_pairs, len(pairs))
    index = torch.multinomial(pairs.weights, n, replacement=True, generator=generator)
    # In order, so that pairs of one prompt follow each other and share one evaluation of the gate.
    drawn = pairs.take(index.sort().values)
    return replace(drawn, weights=torch.ones(n))  # they were drawn by weight


def _pairs_in(targets: Targets, rows: Tensor) -> Tensor:
    """Numbers of the pairs whose answers are both among `rows`."""
    inside = torch.zeros(len(targets.labels), dtype=torch.bool)
    inside[rows] = True
    return inside[targets.pairs].all(dim=1).nonzero()[:, 0]


# ------------------------------------------------------------------------- report


def _objective_report(
    rated: Rated, fits: tuple[RatingFit, ...], debiasing: Debiasing | None
) -> list[dict[str, Any]]:
    lines = []
    for k, (name, one) in enumerate(zip(rated.objectives, fits, strict=True)):
        line = {
            "name": name,
            "n_labelled": one.n_fit + one.n_validation,
            "n_fit": one.n_fit,
            "n_validation": one.n_validation,
            "alpha": one.alpha,
            "alpha_is_last": one.is_last,
            "validation_mse": one.mse,
            "mean_mse": one.mean_mse,
            "validation_spearman": one.spearman,
        }
        if debiasing is not None:
            line |= {
                "lambda": float(debiasing.lambdas[k]),
                "verbosity_correlation": float(debiasing.before[k]),
                "verbosity_correlation_after": float(debiasing.after[k]),
                "is_unresolved": k in debiasing.unresolved,
            }
        lines.append(line)
    return lines


@torch.no_grad()
def _gate_report(
    head: MixtureHead,
    training: GatePairs,
    validation: GatePairs,
    looks: tuple[Look, ...],
    kept: int,
) -> dict[str, Any]:
    return {
        "width": head.gate_width,
        "n_pairs": len(training),
        "n_validation_pairs": len(validation),
        "kept_step": kept,
        "validation_loss": min(look.validation_loss for look in looks),
        "validation_accuracy": validation.accuracy(head.gates(validation.context)),
        "uniform_accuracy": validation.accuracy(torch.ones_like(validation.chosen)),
        "logit_scale": head.logit_scale.item(),
        "looks": [[look.step, look.validation_loss] for look in looks],
    }
