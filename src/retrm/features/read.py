"""Reading answers: one pass of the frozen backbone that serves any number of recipes.

Answers are rendered first (mistakes surface before the model works), then read in batches sorted by
length under a token budget; answers that share a prompt share its reading where the model family
allows. Features go to memory, or to a store on disk from which a killed run goes on.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from retrm.backbone.base import Backbone, Rendered, StatePoint, TokenBatch
from retrm.backbone.batching import TOKENS_PER_BATCH, BatchPlan, build, plan_batches
from retrm.backbone.render import fit_to_context
from retrm.errors import RecipeError
from retrm.features.recipe import Recipe
from retrm.features.reduce import BatchIndex, Features, Reducer, StateReducer
from retrm.features.sink import FeatureSink, MemorySink
from retrm.records import Answer, check_overlong

Overlong = Literal["error", "truncate_left", "skip"]
PAD_ID = 0  # any valid id: padding stands behind every token that is read and is masked


@dataclass(frozen=True)
class Progress:
    """How far a reading is: answers and real tokens done and in all, and seconds so far."""

    answers_done: int
    answers_total: int
    tokens_done: int
    tokens_total: int
    elapsed_s: float


@dataclass(frozen=True)
class Reading:
    """What one reading gave.

    Attributes:
        features: per recipe name; row i belongs to answer `rows[i]`.
        rows: indices of the answers that were read, ascending; all of them unless some were skipped.
        n_tokens: real tokens that passed through the model in this run (resumed ones not counted).
        n_truncated: answers whose prompt was cut on the left to fit.
        n_skipped: answers left out as over-long.
        elapsed_s: seconds of this run.
    """

    features: Mapping[str, Features]
    rows: np.ndarray
    n_tokens: int
    n_truncated: int
    n_skipped: int
    elapsed_s: float


@dataclass(frozen=True)
class RenderedAnswers:
    """Rendered answers that fit the context, with the count of those cut and left out."""

    rendered: tuple[Rendered, ...]
    rows: tuple[int, ...]
    n_truncated: int
    n_skipped: int


def render_all(
    backbone: Backbone, answers: Sequence[Answer], *, overlong: Overlong = "error"
) -> RenderedAnswers:
    """Render every answer before anything is read.

    Raises:
        OverlongError: an answer with its prompt exceeds the context and `overlong` is "error".
        RenderError: messages the template cannot express; the message names the record.
    """
    check_overlong(overlong)
    kept: list[Rendered] = []
    rows: list[int] = []
    n_truncated = 0
    for row, answer in enumerate(answers):
        whole = backbone.renderer.render(answer)
        fitted = fit_to_context(whole, backbone.context_length, overlong, where=answer.where)
        if fitted is None:
            continue
        n_truncated += fitted is not whole and len(fitted.ids) < len(whole.ids)
        kept.append(fitted)
        rows.append(row)
    return RenderedAnswers(tuple(kept), tuple(rows), n_truncated, len(answers) - len(kept))


def read(
    backbone: Backbone,
    answers: Sequence[Answer],
    recipes: Mapping[str, Recipe],
    *,
    reducers: Mapping[str, StateReducer] | None = None,
    sink: FeatureSink | None = None,
    overlong: Overlong = "error",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    share_prompts: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> Reading:
    """Read `answers` once and return the features of every recipe.

    Args:
        backbone: the frozen model.
        answers: rows of a table.
        recipes: by name; each becomes one `Features`.
        reducers: ready-made ones by name: of a recipe (a loaded head brings its own basis), or of
            anything else that is kept from the same pass. Those of other recipes are made here.
        sink: where features go; memory if absent. A disk sink lets a killed run go on.
        overlong: `error`, `truncate_left` (drop prompt tokens after BOS) or `skip`; both counted.
        tokens_per_batch: budget of a forward pass, padding included.
        share_prompts: read a prompt once for all its answers where the family allows it.
        on_progress: called after each batch.

    Raises:
        OverlongError, RenderError, RecipeError: before the model works.
    """
    _check_counts_end(backbone, recipes)
    given = reducers or {}
    made: dict[str, StateReducer] = {
        name: Reducer(recipe, backbone) for name, recipe in recipes.items() if name not in given
    }
    made.update(given)
    todo = render_all(backbone, answers, overlong=overlong)
    started = time.monotonic()
    features, n_tokens = _read_into(
        backbone,
        todo.rendered,
        made,
        sink if sink is not None else MemorySink(),
        tokens_per_batch,
        share_prompts,
        on_progress,
    )
    return Reading(
        features=features,
        rows=np.array(todo.rows, dtype=np.int64),
        n_tokens=n_tokens,
        n_truncated=todo.n_truncated,
        n_skipped=todo.n_skipped,
        elapsed_s=time.monotonic() - started,
    )


def count_tokens(
    backbone: Backbone, rendered: Sequence[Rendered], *, tokens_per_batch: int = TOKENS_PER_BATCH
) -> int:
    """Real tokens that pass through the model when `read` reads these answers."""
    return sum(plan.n_tokens for plan in _batches(backbone, rendered, tokens_per_batch, True))


def read_rendered(
    backbone: Backbone, rendered: Sequence[Rendered], reducer: StateReducer
) -> Features:
    """Features of answers that are already token ids; for self-tests, heat maps and the service."""
    made = {"only": reducer}
    features, _ = _read_into(backbone, rendered, made, MemorySink(), TOKENS_PER_BATCH, True, None)
    return features["only"]


def _read_into(
    backbone: Backbone,
    rendered: Sequence[Rendered],
    reducers: Mapping[str, StateReducer],
    sink: FeatureSink,
    tokens_per_batch: int,
    share_prompts: bool,
    on_progress: Callable[[Progress], None] | None,
) -> tuple[Mapping[str, Features], int]:
    keys = [_row_key(item) for item in rendered]
    done = sink.open(keys)
    missing = [i for i in range(len(keys)) if i not in done]
    pending = [rendered[i] for i in missing]
    plans = _batches(backbone, pending, tokens_per_batch, share_prompts)
    tokens_total = sum(plan.n_tokens for plan in plans)
    started, n_tokens, n_done = time.monotonic(), 0, len(done)
    for plan in plans:
        batch = build(plan, pending, PAD_ID, device=backbone.device)
        sink.add([missing[i] for i in batch.answers], _reduce_batch(backbone, batch, reducers))
        n_tokens += batch.n_tokens
        n_done += len(batch.answers)
        if on_progress is not None:
            elapsed = time.monotonic() - started
            on_progress(Progress(n_done, len(keys), n_tokens, tokens_total, elapsed))
    layouts = {name: reducer.layout for name, reducer in reducers.items()}
    return sink.close(len(keys), layouts), n_tokens


def _batches(
    backbone: Backbone, rendered: Sequence[Rendered], tokens_per_batch: int, share_prompts: bool
) -> list[BatchPlan]:
    return plan_batches(
        rendered,
        tokens_per_batch=tokens_per_batch,
        share_prompts=share_prompts and backbone.shares_prompts,
    )


def _reduce_batch(
    backbone: Backbone, batch: TokenBatch, reducers: Mapping[str, StateReducer]
) -> dict[str, Features]:
    index = BatchIndex.of(batch)
    shown = [(reducer, set(reducer.wanted)) for reducer in reducers.values()]
    wanted = {state for _, pairs in shown for state in pairs}

    def visit(layer: int, point: StatePoint, states: Tensor) -> None:
        for reducer, pairs in shown:
            if (layer, point) in pairs:
                reducer.visit(layer, point, states, index, batch)

    backbone.forward(batch, wanted, visit)
    return {name: reducer.finish(index) for name, reducer in reducers.items()}


def _check_counts_end(backbone: Backbone, recipes: Mapping[str, Recipe]) -> None:
    for name, recipe in recipes.items():
        if recipe.counts_end != backbone.renderer.counts_end:
            raise RecipeError(
                f"recipe {name!r} has counts_end={recipe.counts_end} but the backbone's renderer "
                f"counts_end={backbone.renderer.counts_end}; load the backbone with the same value"
            )


def _row_key(rendered: Rendered) -> str:
    body = torch.tensor([*rendered.ids, rendered.start, rendered.stop], dtype=torch.int64)
    return hashlib.sha256(body.numpy().tobytes()).hexdigest()[:24]
