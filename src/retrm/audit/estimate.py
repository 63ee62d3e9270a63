"""What an audit will take, before it starts: tokens, seconds, bytes.

Tokens and bytes are counted exactly by rendering. Seconds come from a short trial on this machine: the
first answers are read once, and each kind of fit is made once on random numbers of the same shape.
"""

import time
from dataclasses import dataclass

import torch

from retrm.audit.plan import AuditPlan
from retrm.audit.reading import estimate_reading, recipes_of, reducers_of
from retrm.backbone.base import Backbone
from retrm.backbone.batching import TOKENS_PER_BATCH
from retrm.features.read import Overlong, read
from retrm.features.recipe import Recipe
from retrm.fitting.convex import RowTargets, choose_lambda
from retrm.fitting.ridge import Moments, choose_ridge
from retrm.records import AnswerTable

TRIAL_TOKENS = 1500
_FEW_DRAWS = 5


@dataclass(frozen=True)
class AuditEstimate:
    """The cost of an audit.

    Attributes:
        n_answers: that will be read.
        n_skipped: over-long ones that are left out.
        n_tokens: that pass through the model.
        tokens_per_s: of the trial.
        reading_s: of the whole reading.
        fitting_s: of all stages, by trial fits; good to a factor of two.
        disk_bytes: of the stored states.
    """

    n_answers: int
    n_skipped: int
    n_tokens: int
    tokens_per_s: float
    reading_s: float
    fitting_s: float
    disk_bytes: int


def estimate_audit(
    backbone: Backbone,
    table: AnswerTable,
    plan: AuditPlan,
    *,
    overlong: Overlong = "error",
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> AuditEstimate:
    """Estimate `retrm.audit.run.audit` with the same arguments; nothing is written.

    Raises:
        OverlongError, RenderError, RecipeError: as the audit would.
    """
    size = estimate_reading(
        backbone, table, plan, overlong=overlong, tokens_per_batch=tokens_per_batch
    )
    rate = _reading_rate(backbone, table, plan, overlong, tokens_per_batch)
    return AuditEstimate(
        n_answers=size.n_answers,
        n_skipped=size.n_skipped,
        n_tokens=size.n_tokens,
        tokens_per_s=rate,
        reading_s=size.n_tokens / rate,
        fitting_s=_fitting_seconds(backbone, size.n_answers, plan),
        disk_bytes=size.disk_bytes,
    )


def _reading_rate(
    backbone: Backbone,
    table: AnswerTable,
    plan: AuditPlan,
    overlong: Overlong,
    tokens_per_batch: int,
) -> float:
    answers, characters = [], 0
    for answer in table.answers:
        answers.append(answer)
        characters += len(answer.response)
        if characters > 4 * TRIAL_TOKENS:
            break
    recipes = recipes_of(plan, backbone.width, counts_end=backbone.renderer.counts_end)
    reducers = reducers_of(plan, backbone, recipes)
    trial = read(
        backbone,
        answers,
        recipes,
        reducers=reducers,
        overlong=overlong,
        tokens_per_batch=tokens_per_batch,
    )
    return max(trial.n_tokens, 1) / max(trial.elapsed_s, 1e-6)


def _fitting_seconds(backbone: Backbone, n_answers: int, plan: AuditPlan) -> float:
    width, m = backbone.width, plan.m(backbone.width)
    n_layers = len(Recipe(layers=plan.layers).layer_numbers(backbone.n_layers))
    n_pooled = len({"last", "mean"} & set(plan.poolings))
    logistic = (plan.n_primary_draws + 2) * plan.n_split_seeds
    logistic += (n_pooled - 1) * (plan.n_draws + 2) * plan.n_split_seeds
    seconds = plan.n_folds * logistic * _logistic_s(n_answers, m)
    seconds += plan.n_folds * n_pooled * plan.n_split_seeds * _logistic_s(n_answers, width)
    per_width = plan.n_draws + 2 * _FEW_DRAWS + 5
    small = sum(_ridge_s(k) * per_width for k in plan.all_widths(width)) * n_pooled
    sweep = n_layers * n_pooled * (plan.n_layer_draws + 4) * _ridge_s(m)
    full = (n_layers * n_pooled + 8) * (_ridge_s(width) + _moments_s(n_answers, width))
    return seconds + plan.n_folds * (small + sweep) + plan.n_folds * full / plan.n_inner_folds


def _logistic_s(n: int, m: int) -> float:
    x, ids = torch.randn(min(n, 1000), m), list(range(min(n, 1000)))
    labels = (x[:, 0] + torch.randn(len(x)) > 0).double().tolist()
    started = time.perf_counter()
    choose_lambda(x, RowTargets(labels), ids)
    return (time.perf_counter() - started) * max(1.0, n / 1000)


def _ridge_s(m: int) -> float:
    blocks = [_moments(m) for _ in range(3)]
    started = time.perf_counter()
    choose_ridge(blocks)
    return time.perf_counter() - started


def _moments_s(n: int, width: int) -> float:
    started = time.perf_counter()
    _moments(width)
    return (time.perf_counter() - started) * n / 500


def _moments(width: int) -> Moments:
    x = torch.randn(500, width)
    return Moments.of(x, (x[:, 0] > 0).double().tolist())
