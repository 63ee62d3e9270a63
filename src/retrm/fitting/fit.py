"""From a table of judged answers to reward models: one reading, any number of heads.

Answers are split by prompt; heads are fitted on the training part and measured on the held-out part,
and the figures stored in the folder belong to exactly that head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from retrm.backbone.base import Backbone
from retrm.backbone.reference import template_of
from retrm.data.split import prompt_folds, split_by_prompt
from retrm.errors import FitError, OverlongError, RecipeError, RetrmError, did_you_mean
from retrm.features.read import Overlong, Progress, Reading, read
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features, Reducer
from retrm.features.sink import FeatureSink
from retrm.features.subspace import SubspaceSpec
from retrm.fitting.convex import check_folds, choose_lambda, fit_linear
from retrm.fitting.ensemble import check_members, check_n_members, fit_members
from retrm.fitting.gradient import Epoch, check_start, check_start_targets, fit_gradient
from retrm.fitting.mean_head import supervision_of
from retrm.fitting.mixture import (
    check_mixture,
    check_mixture_recipe,
    check_rated,
    fit_mixture,
)
from retrm.fitting.mixture_controls import MixtureScores, held_out_scores
from retrm.fitting.parts import PartedRows
from retrm.fitting.targets import Targets, check_targets, default_loss
from retrm.fitting.threads import one_thread_if_small
from retrm.heads.artifact import Artifact, BackboneIdentity
from retrm.heads.base import Head
from retrm.heads.linear import LinearHead
from retrm.heads.mixture import MixtureHead
from retrm.heads.registry import make_head
from retrm.losses import LOSSES
from retrm.methods import Method
from retrm.records import Answer, AnswerTable
from retrm.scorers.ensemble import EnsembleScorer, Scale
from retrm.scorers.reward_model import RewardModel
from retrm.store.shards import StoredFeatures

N_SELFTEST = 3
ENSEMBLE_SUFFIX = " ensemble"
# Pooled features of a store up to this size are taken into memory for a convex fit; larger ones stay
# on the disk, and every pass of the solver reads them there.
HELD_BYTES = 1 << 30


@dataclass(frozen=True)
class FittedHead:
    """A head with the account of its fit (plain JSON)."""

    head: Head
    loss: str
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Fits:
    """Reward models fitted from one reading, and their scores on prompts they have not seen.

    Attributes:
        models: one a method, ready to score, rank and save.
        train_rows: rows of the table they were fitted on.
        test_rows: rows of the table held out, by prompt.
        test_scores: (len(test_rows),) per method name.
        log_probability: (len(test_rows),) mean log-probability of the answers, the baseline: as the
            sampler recorded it, else under the backbone.
        reading: tokens, seconds and counts of the reading.
        n_pruned: candidates that sampling stopped, which were left out.
        mixtures: per name of a method with a mixture head, its objectives and controls on the answers
            held out.
        ensembles: per name of a method, where they were asked for; their scores stand in `test_scores`
            under their own names.
    """

    models: tuple[RewardModel, ...]
    train_rows: np.ndarray
    test_rows: np.ndarray
    test_scores: Mapping[str, np.ndarray]
    log_probability: np.ndarray
    reading: Reading
    n_pruned: int = 0
    mixtures: Mapping[str, MixtureScores] = field(default_factory=dict)
    ensembles: Mapping[str, EnsembleScorer] = field(default_factory=dict)


def check_methods(
    methods: Sequence[Method], n_layers: int | None = None, width: int | None = None
) -> None:
    """Refuse impossible combinations before any model is read.

    Raises:
        RecipeError: a head that cannot read the recipe's features, an unknown loss, a layer or
            subspace the backbone does not have.
    """
    for method in methods:
        head = make_head(method.head, 1, dict(method.head_options))
        if head.reads_tokens == method.recipe.is_pooled:
            need = "tokens" if head.reads_tokens else "last, mean or max"
            raise RecipeError(
                f"method {method.name}: the {method.head} head needs pooling={need}, got "
                f"{method.recipe.pooling!r}"
            )
        if method.recipe.context != "none" and not head.reads_context:
            raise RecipeError(
                f"method {method.name}: the {method.head} head does not read the prompt, got context="
                f"{method.recipe.context!r}; use context=none, or the mixture head"
            )
        if method.solver == "gradient":
            check_start(head, method.gradient)
        if method.solver == "mixture":
            check_mixture_recipe(method.recipe.context, method.loss)
        if method.loss != "auto" and method.loss not in LOSSES:
            raise RecipeError(f"unknown loss {method.loss!r}. {did_you_mean(method.loss, LOSSES)}")
        if n_layers is not None:
            method.recipe.layer_numbers(n_layers)
        if width is not None:
            SubspaceSpec.parse(method.recipe.subspace).n_dims(width)


def check_test_fraction(test_fraction: float) -> None:
    """Refuse an impossible held-out share.

    Raises:
        FitError: not in 0..1, 1 excluded.
    """
    if not 0 <= test_fraction < 1:
        raise FitError(f"test_fraction is {test_fraction}; expected 0 (none) up to below 1")


def check_table(
    methods: Sequence[Method], table: AnswerTable, *, label_threshold: float | None = None
) -> Targets:
    """The targets of a table that every method can be fitted to.

    Raises:
        LabelError, FitError: they cannot determine a head.
    """
    targets = Targets.of(table, label_threshold=label_threshold)
    for method in methods:
        if method.solver == "mixture":
            check_rated(targets, method.mixture)
        check_targets(targets, _loss_of(method, targets), method.loss_options)
    return targets


@dataclass(frozen=True)
class CheckedFit:
    """A fit that nothing speaks against, before anything is read.

    Attributes:
        targets: of all rows of the table.
        train: rows to fit on.
        test: rows that are held out, by prompt.
    """

    targets: Targets
    train: np.ndarray
    test: np.ndarray


def check_fit(
    table: AnswerTable,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    label_threshold: float | None = None,
    n_members: int = 0,
) -> CheckedFit:
    """Everything that `fit` with these arguments would refuse before it reads.

    Pruned candidates are in neither part.

    Raises:
        LabelError, FitError, RecipeError: says what is impossible.
    """
    if not methods:
        raise RecipeError("no method to fit; expected at least one, such as last_token or elhsr")
    check_methods(methods, backbone.n_layers, backbone.width)
    return check_rows(
        *(table, methods),
        test_fraction=test_fraction,
        seed=seed,
        label_threshold=label_threshold,
        n_members=n_members,
    )


def check_rows(
    table: AnswerTable,
    methods: Sequence[Method],
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    label_threshold: float | None = None,
    n_members: int = 0,
) -> CheckedFit:
    """What of `check_fit` needs no backbone, so that it can come before one is loaded.

    Raises:
        LabelError, FitError: the answers that are not held out cannot determine a head, or those of
            a member of the ensemble cannot.
    """
    check_n_members(n_members)
    targets = check_table(methods, table, label_threshold=label_threshold)
    parts = _train_and_test(table, test_fraction, seed)
    whole = whole_rows(table)
    train, test = (part[np.isin(part, whole)] for part in parts)
    _check_all_left(methods, targets.take(train), targets, seed, n_members)
    return CheckedFit(targets, train, test)


def _check_all_left(
    methods: Sequence[Method], left: Targets, targets: Targets, seed: int, n_members: int
) -> None:
    """Refuse answers `left` to fit on that a method, or a member of its ensemble, cannot do with."""
    for method in methods:
        _check_left(method, left, targets, seed)
        if n_members:
            check_members(
                left.groups.tolist(),
                lambda rows, own, method=method: _check_left(method, left.take(rows), targets, own),
                n_members=n_members,
                seed=seed,
            )


def _check_left(method: Method, left: Targets, targets: Targets, seed: int) -> None:
    """Refuse answers that `method` cannot be fitted to; the loss is that of all `targets`."""
    loss = _loss_of(method, targets)
    if method.solver == "mixture":
        check_mixture(left, method.mixture, seed=seed)
    check_targets(left, loss, method.loss_options)
    if method.solver == "gradient":
        check_start_targets(left, loss, method.gradient, seed=seed)
    else:
        rows, supervision = supervision_of(left, loss, method.loss_options)
        check_folds(supervision, left.groups.numpy()[rows.numpy()], seed=seed)


def read_for(
    backbone: Backbone,
    table: AnswerTable,
    methods: Sequence[Method],
    *,
    sink: FeatureSink | None = None,
    overlong: Overlong = "error",
    on_progress: Callable[[Progress], None] | None = None,
) -> Reading:
    """One reading that serves every method and, where needed, the log-probability baseline.

    Pruned candidates are not read: they are parts of answers, which carry no label.
    """
    recipes = recipes_of(backbone, table, methods)
    rows = whole_rows(table)
    answers = [table.answers[row] for row in rows]
    reading = read(
        backbone, answers, recipes, sink=sink, overlong=overlong, on_progress=on_progress
    )
    return replace(reading, rows=rows[reading.rows])


def whole_rows(table: AnswerTable) -> Int64[np.ndarray, " rows"]:
    """Rows that are whole answers, not candidates that sampling stopped."""
    return np.array([i for i, a in enumerate(table.answers) if not a.pruned], dtype=np.int64)


def recipes_of(
    backbone: Backbone, table: AnswerTable, methods: Sequence[Method]
) -> dict[str, Recipe]:
    """Name -> recipe of a reading for `methods`.

    The log-probability baseline costs a product with the whole LM head at every response token (a
    quarter of the reading on SmolLM2), so it is read only where the sampler has not recorded it.
    """
    recipes = {m.name: m.recipe for m in methods}
    if any(answer.logprob is None for answer in table.answers if not answer.pruned):
        counts_end = backbone.renderer.counts_end
        template = template_of(backbone.renderer)
        recipes["log_probability"] = Recipe(
            source="log_probability", counts_end=counts_end, template=template
        )
    return recipes


def log_probability_of(table: AnswerTable, reading: Reading) -> np.ndarray:
    """(n_read,) mean log-probability of each answer that was read, recorded or read, nats a token."""
    if "log_probability" in reading.features:
        return reading.features["log_probability"].values[:, 0].double().numpy()
    return np.array([table.answers[row].logprob for row in reading.rows], dtype=np.float64)


def fit_head(
    method: Method,
    features: Features | PartedRows,
    targets: Targets,
    *,
    n_context: int = 0,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> FittedHead:
    """Fit one head on features of training answers.

    Args:
        method: what to fit.
        features: of the answers; in parts only for convex heads.
        targets: of the answers.
        n_context: columns of the prompt behind those of an answer: `Recipe.n_context`; for mixtures.
        seed: of the fit.
        on_epoch: of gradient heads.

    Raises:
        FitError, LabelError: the data cannot determine it.
    """
    loss = _loss_of(method, targets)
    if method.solver == "mixture":
        check_mixture(targets, method.mixture, seed=seed)
    check_targets(targets, loss, method.loss_options)
    if method.solver == "convex":
        return _fit_convex(method, features, targets, loss, seed)
    assert isinstance(features, Features), f"{method.solver} heads read features in memory"
    if method.solver == "mixture":
        mixture = fit_mixture(
            *(features, targets, method.mixture),
            n_context=n_context,
            loss_options=method.loss_options,
            seed=seed,
        )
        return FittedHead(mixture.head, loss, mixture.report)
    head = make_head(method.head, features.n_features, dict(method.head_options))
    done = fit_gradient(
        *(head, features, targets, loss, method.gradient),
        loss_options=method.loss_options,
        seed=seed,
        on_epoch=on_epoch,
    )
    report = {
        "solver": "gradient",
        "options": asdict(method.gradient),
        "loss_options": method.loss_options.changes(),
        "epochs": [asdict(epoch) for epoch in done.epochs],
        "kept_epoch": done.kept_epoch,
        "n_validation_prompts": done.n_validation_prompts,
        "start_penalty": done.start_penalty,
    }
    return FittedHead(head, loss, report)


def cross_fit(
    method: Method,
    features: Features,
    targets: Targets,
    prompt_ids: Sequence[object],
    *,
    n_folds: int = 5,
    n_context: int = 0,
    seed: int = 0,
    on_fold: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold scores: every answer scored by a head that never saw its prompt.

    Returns:
        (n,) scores and (n,) fold numbers. Scores of different folds come from different heads and
        have different scales: compare within prompts, or per fold.
    """
    folds = prompt_folds(prompt_ids, n_folds, seed=seed)
    done = 0

    def count(_: FittedHead) -> None:
        nonlocal done
        done += 1
        if on_fold is not None:
            on_fold(done, n_folds)

    scores = out_of_fold(
        method, features, targets, folds, n_context=n_context, seed=seed, on_fit=count
    )
    return scores, folds


def out_of_fold(
    method: Method,
    features: Features,
    targets: Targets,
    folds: np.ndarray,
    *,
    n_context: int = 0,
    seed: int = 0,
    on_fit: Callable[[FittedHead], None] | None = None,
) -> np.ndarray:
    """Scores by heads fitted on all folds but the answer's own.

    Args:
        method: what to fit.
        features: of all answers.
        targets: of all answers.
        folds: (n,) fold of each answer; answers to one prompt must share theirs.
        n_context: as for `fit_head`.
        seed: of the fits.
        on_fit: called with the head of each fold, in ascending order of the folds.

    Returns:
        (n,) scores.
    """
    scores = np.full(len(folds), np.nan)
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        with one_thread_if_small(features.values.numel()):
            fitted = fit_head(
                *(method, features.take(train), targets.take(train)), n_context=n_context, seed=seed
            )
        with torch.no_grad():
            scores[test] = fitted.head.score(features.take(test)).double().numpy()
        if on_fit is not None:
            on_fit(fitted)
    return scores


def fit(
    table: AnswerTable,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    test_fraction: float = 0.2,
    seed: int = 0,
    label_threshold: float | None = None,
    sink: FeatureSink | None = None,
    overlong: Overlong = "error",
    source: str = "",
    held_bytes: int = HELD_BYTES,
    n_members: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Fits:
    """Read the answers once and fit every method on the same training prompts.

    Args:
        table: answers with labels, pairs or ranks. Pruned candidates are left out; their number stands
            in what is stored as `n_pruned`.
        backbone: the frozen model.
        methods: presets or their variations.
        test_fraction: of the PROMPTS, held out for the stored metrics; 0 = fit on everything and
            store none.
        seed: of the split and of gradient heads.
        label_threshold: grades at or above it are right.
        sink: a disk sink lets a killed reading go on.
        overlong: policy for answers beyond the context.
        source: name of the data, stored as provenance.
        held_bytes: pooled features in a store are taken into memory up to this size; a convex fit on
            larger ones reads them from the disk in every pass. Lower it where memory is short.
        n_members: also fit an ensemble of so many members a method, each on other training prompts
            (`retrm.fitting.ensemble`), from the same reading; 0 = none.
        on_progress: of the reading.
        on_epoch: of gradient heads.

    Raises:
        LabelError, FitError, RecipeError: before anything is read.
    """
    ready = check_fit(
        *(table, backbone, methods),
        test_fraction=test_fraction,
        seed=seed,
        label_threshold=label_threshold,
        n_members=n_members,
    )
    targets, train, test = ready.targets, ready.train, ready.test
    reading = read_for(
        backbone, table, methods, sink=sink, overlong=overlong, on_progress=on_progress
    )
    kept = {int(row): i for i, row in enumerate(reading.rows)}
    train = np.array([row for row in train if row in kept], dtype=int)
    test = np.array([row for row in test if row in kept], dtype=int)
    if reading.n_skipped:
        try:
            _check_all_left(methods, targets.take(train), targets, seed, n_members)
        except RetrmError as error:
            raise OverlongError(
                f"{reading.n_skipped:,} of {len(table):,} answers were skipped as over-long and the rest "
                f"is too little to fit on: {error}. Use overlong=truncate_left, or a model with a longer "
                "context"
            ) from error
    n_pruned = len(table) - len(whole_rows(table))
    provenance = {
        "source": source,
        "seed": seed,
        "test_fraction": test_fraction,
        "n_answers": len(table),
        "n_pruned": n_pruned,
        "n_prompts": targets.n_prompts,
        "n_train_answers": len(train),
        "n_test_answers": len(test),
        "n_truncated": reading.n_truncated,
        "n_skipped": reading.n_skipped,
        "counts": dict(table.counts),
    }
    models, scores, mixtures, ensembles = [], {}, {}, {}
    train_at, test_at = [kept[row] for row in train], [kept[row] for row in test]
    for method in methods:
        features = training_features(method, reading.features, train_at, held_bytes=held_bytes)
        fitted = fit_head(
            *(method, features, targets.take(train)),
            n_context=method.recipe.n_context(backbone.width),
            seed=seed,
            on_epoch=on_epoch,
        )
        if isinstance(fitted.head, MixtureHead) and len(test):
            assert isinstance(features, Features), "a mixture is fitted in memory"
            held_out = reading.features[method.name].take(test_at)
            mixtures[method.name] = held_out_scores(
                *(fitted.head, features.values, targets.take(train)),
                *(held_out.values, method.mixture),
                loss_options=method.loss_options,
                seed=seed,
            )
        del features  # before the next method's, or they would be held together
        facts = {**provenance, **_spread(fitted.head, method, reading, train_at)}
        models.append(_reward_model(method, fitted, backbone, table, train, facts))
        scores[method.name] = _scores_of(fitted.head, method.name, reading.features, test_at)
        if n_members:
            ensemble = ensembles[method.name] = fit_members(
                *(train, table.prompt_ids[train].tolist()),
                _member_fit(
                    method, reading, kept, targets, backbone, table, provenance, held_bytes
                ),
                n_members=n_members,
                seed=seed,
                name=f"{method.name}{ENSEMBLE_SUFFIX}",
            )
            scores[ensemble.name] = _ensemble_scores(ensemble, method, reading, test_at)
    log_probability = log_probability_of(table, reading)[test_at]
    return Fits(
        tuple(models), train, test, scores, log_probability, reading, n_pruned, mixtures, ensembles
    )


def _spread(head: Head, method: Method, reading: Reading, at: Sequence[int]) -> dict[str, Any]:
    """How the head's scores are spread over what it was fitted on, by which ensembles align members."""
    scores = _scores_of(head, method.name, reading.features, at)
    return {"training_scores": asdict(Scale.of(scores))}


def _member_fit(
    method: Method,
    reading: Reading,
    kept: Mapping[int, int],
    targets: Targets,
    backbone: Backbone,
    table: AnswerTable,
    provenance: Mapping[str, Any],
    held_bytes: int,
) -> Callable[[np.ndarray, int], RewardModel]:
    """What fits one member of an ensemble to some rows."""

    def fit_one(rows: np.ndarray, seed: int) -> RewardModel:
        at = [kept[int(row)] for row in rows]
        features = training_features(method, reading.features, at, held_bytes=held_bytes)
        fitted = fit_head(
            *(method, features, targets.take(rows)),
            n_context=method.recipe.n_context(backbone.width),
            seed=seed,
        )
        facts = {**provenance, "seed": seed, "n_train_answers": len(rows)}
        facts |= _spread(fitted.head, method, reading, at)
        return _reward_model(method, fitted, backbone, table, rows, facts)

    return fit_one


def _ensemble_scores(
    ensemble: EnsembleScorer, method: Method, reading: Reading, at: Sequence[int]
) -> np.ndarray:
    """(len(at),) scores of read answers: no second reading."""
    members = (one for one in ensemble.members.values() if isinstance(one, RewardModel))
    raw = [_scores_of(m.artifact.head, method.name, reading.features, at) for m in members]
    return ensemble.combine(raw)


def fit_on_reading(
    method: Method,
    reading: Reading,
    table: AnswerTable,
    backbone: Backbone,
    *,
    seed: int = 0,
    label_threshold: float | None = None,
    source: str = "",
) -> RewardModel:
    """A reward model from everything that was read, without a held-out part."""
    rows = reading.rows
    targets = Targets.of(table, label_threshold=label_threshold).take(rows)
    n_context = method.recipe.n_context(backbone.width)
    features = reading.features[method.name]
    fitted = fit_head(method, features, targets, n_context=n_context, seed=seed)
    provenance = {
        "source": source,
        "seed": seed,
        "test_fraction": 0.0,
        "n_answers": len(table),
        "n_train_answers": len(rows),
        "counts": dict(table.counts),
    }
    return _reward_model(method, fitted, backbone, table, rows, provenance)


def _loss_of(method: Method, targets: Targets) -> str:
    """A mixture is fitted to pairs, whatever labels stand beside them."""
    return "bradley_terry" if method.solver == "mixture" else default_loss(targets, method.loss)


def _train_and_test(
    table: AnswerTable, test_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    check_test_fraction(test_fraction)
    if test_fraction == 0:
        return np.arange(len(table)), np.arange(0)
    parts = split_by_prompt(
        table.prompt_ids.tolist(), (1 - test_fraction, test_fraction), seed=seed
    )
    return np.asarray(parts[0]), np.asarray(parts[1])


def _reward_model(
    method: Method,
    fitted: FittedHead,
    backbone: Backbone,
    table: AnswerTable,
    train: np.ndarray,
    provenance: Mapping[str, Any],
) -> RewardModel:
    artifact = Artifact(
        method=method.name,
        recipe=method.recipe,
        head=fitted.head,
        loss=fitted.loss,
        bases=Reducer(method.recipe, backbone).bases,
        backbone=BackboneIdentity(
            name=backbone.name,
            fingerprint=backbone.fingerprint,
            dtype=str(backbone.dtype).removeprefix("torch."),
            n_layers=backbone.n_layers,
            width=backbone.width,
        ),
        selftest=(),
        fitted={**provenance, **fitted.report},
        metrics={},
    )
    model = RewardModel(artifact, backbone)
    # Short answers keep the self-test, and so every load, quick.
    shortest = sorted(train, key=lambda row: _text_length(table.answers[row]))[: 20 * N_SELFTEST]
    chosen = [table.answers[row] for row in shortest[:: max(1, len(shortest) // N_SELFTEST)]]
    return model.with_selftest(chosen[:N_SELFTEST])


def _text_length(answer: Answer) -> int:
    return len(answer.response) + sum(len(m.content) for m in answer.prompt.messages)


def _fit_convex(
    method: Method, features: Features | PartedRows, targets: Targets, loss: str, seed: int
) -> FittedHead:
    rows, supervision = supervision_of(targets, loss, method.loss_options)
    values = features if isinstance(features, PartedRows) else features.values.float()
    groups = targets.groups.numpy()
    if len(rows) < len(values):
        values = values.subset(rows) if isinstance(values, PartedRows) else values[rows]
        groups = groups[rows.numpy()]
    standardise = method.standardise
    chosen = choose_lambda(values, supervision, groups, standardise=standardise, seed=seed)
    done = fit_linear(values, supervision, lam=chosen.lam, standardise=standardise)
    head = LinearHead(features.n_features)
    with torch.no_grad():
        head.weight.copy_(done.weight)
        head.bias.fill_(done.bias)
    report = {
        "solver": done.solver,
        "lam": done.lam,
        "lam_grid": list(chosen.grid),
        "lam_criterion": chosen.criterion,
        "lam_values": list(chosen.values),
        "lam_is_at_end": chosen.is_at_end,
        "objective": done.objective,
        "gradient_norm": done.gradient_norm,
        "n_iterations": done.n_iterations,
        "n_constant_features": done.n_constant,
        "standardise": standardise,
        "loss_options": method.loss_options.changes(),
        "streamed": isinstance(features, PartedRows),
    }
    return FittedHead(head.eval(), loss, report)


def training_features(
    method: Method,
    stored: Mapping[str, Features],
    rows: Sequence[int],
    *,
    held_bytes: int = HELD_BYTES,
) -> Features | PartedRows:
    """Of the read answers `rows`, in memory unless a convex fit can do without.

    Args:
        method: what is fitted.
        stored: of a reading, in memory or in a store.
        rows: in the order of the targets.
        held_bytes: of a store, features up to this size are taken into memory.
    """
    if not isinstance(stored, StoredFeatures) or method.solver != "convex":
        return stored[method.name].take(rows)
    parted = PartedRows.of(
        lambda: ((own, part.values) for own, part in stored.parts(method.name)), rows
    )
    if parted.n_bytes > held_bytes:
        return parted
    return Features(parted.whole(), torch.arange(len(rows) + 1), True)


def _scores_of(
    head: Head, name: str, features: Mapping[str, Features], rows: Sequence[int]
) -> np.ndarray:
    """(len(rows),) scores of the read answers `rows`; of a store, shard by shard."""
    if not isinstance(features, StoredFeatures):
        return head.score(features[name].take(rows)).double().numpy()
    place = {row: i for i, row in enumerate(rows)}
    scores = np.full(len(rows), np.nan)
    for own, part in features.parts(name):
        found = [(at, place[row]) for at, row in enumerate(own) if row in place]
        if found:
            at, to = zip(*found, strict=True)
            scores[list(to)] = head.score(part.take(at)).double().numpy()
    return scores
