"""Reading answers: one pass of the frozen backbone that serves any number of recipes.

Answers are rendered first (mistakes surface before the model works), then read in batches sorted by
length under a token budget; answers that share a prompt share its reading where the model family
allows. Features go to memory, or to a store on disk from which a killed run goes on. A backbone that
lies on the workers of an engine reads there what is planned here.
"""

import hashlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch

from retrm.backbone.base import Backbone, Rendered, Renderer
from retrm.backbone.batching import TOKENS_PER_BATCH, BatchPlan, plan_batches, plan_first
from retrm.backbone.reference import FittingRenderer, template_of
from retrm.backbone.render import fit_to_context
from retrm.errors import RecipeError
from retrm.features.batch_pass import BatchFeatures, PlannedBatch, batch_passes, few_passes
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features, Layout, Reducer, StateReducer
from retrm.features.sink import FeatureSink, MemorySink
from retrm.records import Answer, check_overlong

Overlong = Literal["error", "truncate_left", "skip"]
KEY_CHARACTERS = 24  # of the hash by which an answer is known in a store


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
        lengths: (len(rows),) tokens of each answer with its prompt, as they were read.
        is_cut: (len(rows),) whether its prompt was cut.
        n_tokens: real tokens that passed through the model in this run (resumed ones not counted).
        n_skipped: answers left out as over-long.
        elapsed_s: seconds of this run.
    """

    features: Mapping[str, Features]
    rows: np.ndarray
    lengths: np.ndarray
    is_cut: np.ndarray
    n_tokens: int
    n_skipped: int
    elapsed_s: float

    @property
    def n_truncated(self) -> int:
        """Answers whose prompt was cut on the left to fit."""
        return int(self.is_cut.sum())


@dataclass(frozen=True)
class RenderedAnswers:
    """Rendered answers that fit the context, which of them were cut, and how many left out."""

    rendered: tuple[Rendered, ...]
    rows: tuple[int, ...]
    is_cut: tuple[bool, ...]
    n_skipped: int

    @property
    def n_truncated(self) -> int:
        """Answers whose prompt was cut."""
        return sum(self.is_cut)


class Rendering(Protocol):
    """What rendering needs of a model: messages to ids, and how many it takes."""

    @property
    def renderer(self) -> Renderer:
        """Messages to token ids."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens of an answer with its prompt."""
        ...


def render_all(
    backbone: Rendering, answers: Sequence[Answer], *, overlong: Overlong = "error"
) -> RenderedAnswers:
    """Render every answer before anything is read.

    Raises:
        OverlongError: an answer with its prompt exceeds the context and `overlong` is "error".
        RenderError: messages the template cannot express; the message names the record.
    """
    check_overlong(overlong)
    kept: list[Rendered] = []
    rows: list[int] = []
    is_cut: list[bool] = []
    for row, answer in enumerate(answers):
        found = _within(backbone, answer, overlong)
        if found is None:
            continue
        is_cut.append(found[1])
        kept.append(found[0])
        rows.append(row)
    return RenderedAnswers(tuple(kept), tuple(rows), tuple(is_cut), len(answers) - len(kept))


def _within(
    backbone: Rendering, answer: Answer, overlong: Overlong
) -> tuple[Rendered, bool] | None:
    """An answer that fits the context and whether it was cut for that; None = left out."""
    renderer, limit = backbone.renderer, backbone.context_length
    if isinstance(renderer, FittingRenderer):
        return renderer.render_within(answer, limit, overlong)
    whole = renderer.render(answer)
    fitted = fit_to_context(whole, limit, overlong, where=answer.where)
    return None if fitted is None else (fitted, len(fitted.ids) < len(whole.ids))


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
    made = _reducers(backbone, recipes, reducers or {})
    todo = render_all(backbone, answers, overlong=overlong)
    into = sink if sink is not None else MemorySink()
    part = _Pass.open(
        *(backbone, todo.rendered, into, made),
        tokens_per_batch=tokens_per_batch,
        share_prompts=share_prompts,
    )
    try:
        for number, features in batch_passes(backbone, made, part.batches()):
            part.add(number, features)
            if on_progress is not None:
                on_progress(part.progress())
    except BaseException:
        into.flush()
        raise
    return _reading(todo, part, into.close(len(part.keys), _layouts(made)))


def read_chunks(
    backbone: Backbone,
    chunks: Iterable[Sequence[Answer]],
    recipes: Mapping[str, Recipe],
    *,
    reducers: Mapping[str, StateReducer] | None = None,
    overlong: Overlong = "error",
) -> Iterator[tuple[Sequence[Answer], Reading]]:
    """Each chunk of a stream with its reading, in order and in memory; each as `read` gives it.

    Batches never mix chunks, so a score does not depend on how many chunks there are. Here a chunk is
    read before the next one is asked for; on workers many are under way together.

    Args:
        backbone: the frozen model.
        chunks: answers, some hundred at a time.
        recipes: by name.
        reducers: ready-made ones by name, as for `read`.
        overlong: as for `read`.

    Raises:
        OverlongError, RenderError, RecipeError: when the chunk at fault is asked for.
    """
    made = _reducers(backbone, recipes, reducers or {})
    layouts = _layouts(made)
    begun: deque[tuple[Sequence[Answer], RenderedAnswers, _Pass]] = deque()
    owner: dict[int, tuple[_Pass, int]] = {}
    numbers = itertools.count()

    def batches() -> Iterator[PlannedBatch]:
        for answers in chunks:
            todo = render_all(backbone, answers, overlong=overlong)
            part = _Pass.open(backbone, todo.rendered, MemorySink(), made)
            begun.append((answers, todo, part))
            for number, batch in enumerate(part.batches()):
                owner[next(numbers)] = part, number
                yield batch

    def finished(*, at_end: bool) -> Iterator[tuple[Sequence[Answer], Reading]]:
        while begun and (at_end or begun[0][2].is_done):
            answers, todo, part = begun.popleft()
            yield answers, _reading(todo, part, part.sink.close(len(part.keys), layouts))

    for number, features in batch_passes(backbone, made, batches()):
        part, at = owner.pop(number)
        part.add(at, features)
        yield from finished(at_end=False)
    yield from finished(at_end=True)


def count_tokens(
    backbone: Backbone,
    rendered: Sequence[Rendered],
    *,
    reads_prompts: bool = False,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> int:
    """Real tokens that pass through the model when `read` reads these answers.

    Args:
        backbone: that will read.
        rendered: the answers.
        reads_prompts: whether a reducer needs the states of all prompt tokens.
        tokens_per_batch: budget of a forward pass.
    """
    plans = _plans(backbone, rendered, reads_prompts, tokens_per_batch, share_prompts=True)
    return sum(plan.n_tokens for plan in plans)


def choose_first(
    backbone: Backbone,
    rendered: Sequence[Rendered],
    reducers: Iterable[StateReducer],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> list[int]:
    """The answers to read with the first one in a pass, as `read_rendered_together` would lay them out.

    Args:
        backbone: that will read.
        rendered: the answers, all different.
        reducers: all that may be asked for.
        tokens_per_batch: budget of a forward pass, padding included.

    Returns:
        Indices, the first answer's among them.
    """
    reads_prompts = any(reducer.reads_prompts for reducer in reducers)
    return plan_first(
        rendered,
        tokens_per_batch=tokens_per_batch,
        share_prompts=backbone.shares_prompts,
        cache_prompts=backbone.caches_prompts and not reads_prompts,
    )


def read_rendered(
    backbone: Backbone, rendered: Sequence[Rendered], reducer: StateReducer
) -> Features:
    """Features of answers that are already token ids; for self-tests, heat maps and the service."""
    return read_rendered_together(backbone, rendered, {"only": reducer})["only"]


def read_rendered_together(
    backbone: Backbone,
    rendered: Sequence[Rendered],
    reducers: Mapping[str, StateReducer],
    *,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Mapping[str, Features]:
    """The same for several reducers at one reading; their features by name, rows in order."""
    part = _Pass.open(backbone, rendered, MemorySink(), reducers, tokens_per_batch=tokens_per_batch)
    for number, features in few_passes(backbone, reducers, part.batches()):
        part.add(number, features)
    return part.sink.close(len(rendered), _layouts(reducers))


@dataclass
class _Pass:
    """A reading under way: what is planned, and what came back."""

    sink: FeatureSink
    keys: list[str]
    missing: list[int]
    pending: list[Rendered]
    plans: list[BatchPlan]
    tokens_total: int
    n_done: int
    n_tokens: int = 0
    n_batches: int = 0
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def open(
        cls,
        backbone: Backbone,
        rendered: Sequence[Rendered],
        sink: FeatureSink,
        reducers: Mapping[str, StateReducer],
        *,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        share_prompts: bool = True,
    ) -> "_Pass":
        """Ask the sink what is missing and plan its batches."""
        keys = [row_key(item) for item in rendered]
        done = sink.open(keys)
        missing = [i for i in range(len(keys)) if i not in done]
        pending = [rendered[i] for i in missing]
        reads_prompts = any(reducer.reads_prompts for reducer in reducers.values())
        try:
            plans = _plans(
                backbone, pending, reads_prompts, tokens_per_batch, share_prompts=share_prompts
            )
        except BaseException:
            sink.flush()  # a store would stay locked else
            raise
        tokens_total = sum(plan.n_tokens for plan in plans)
        return cls(sink, keys, missing, pending, plans, tokens_total, len(done))

    def batches(self) -> Iterator[PlannedBatch]:
        """What is to be read, in the order of the plan."""
        return (PlannedBatch.of(plan, self.pending) for plan in self.plans)

    def add(self, number: int, features: BatchFeatures) -> None:
        """Hand over what batch `number` gave."""
        plan = self.plans[number]
        answers = [self.missing[i] for row in plan.rows for i in row.answers]
        self.sink.add(answers, features)
        self.n_done += len(answers)
        self.n_tokens += plan.n_tokens
        self.n_batches += 1

    @property
    def is_done(self) -> bool:
        """Whether every batch came back."""
        return self.n_batches == len(self.plans)

    def progress(self) -> Progress:
        """How far it is."""
        elapsed = time.monotonic() - self.started
        return Progress(self.n_done, len(self.keys), self.n_tokens, self.tokens_total, elapsed)


def _plans(
    backbone: Backbone,
    rendered: Sequence[Rendered],
    reads_prompts: bool,
    tokens_per_batch: int,
    *,
    share_prompts: bool,
) -> list[BatchPlan]:
    return plan_batches(
        rendered,
        tokens_per_batch=tokens_per_batch,
        share_prompts=share_prompts and backbone.shares_prompts,
        cache_prompts=share_prompts and backbone.caches_prompts and not reads_prompts,
    )


def _reducers(
    backbone: Backbone, recipes: Mapping[str, Recipe], given: Mapping[str, StateReducer]
) -> dict[str, StateReducer]:
    _check_counts_end(backbone, recipes)
    made: dict[str, StateReducer] = {
        name: Reducer(recipe, backbone) for name, recipe in recipes.items() if name not in given
    }
    return {**made, **given}


def _layouts(reducers: Mapping[str, StateReducer]) -> dict[str, Layout]:
    return {name: reducer.layout for name, reducer in reducers.items()}


def _reading(todo: RenderedAnswers, part: _Pass, features: Mapping[str, Features]) -> Reading:
    return Reading(
        features=features,
        rows=np.array(todo.rows, dtype=np.int64),
        lengths=np.array([len(item.ids) for item in todo.rendered], dtype=np.int64),
        is_cut=np.array(todo.is_cut, dtype=bool),
        n_tokens=part.n_tokens,
        n_skipped=todo.n_skipped,
        elapsed_s=time.monotonic() - part.started,
    )


def _check_counts_end(backbone: Backbone, recipes: Mapping[str, Recipe]) -> None:
    for name, recipe in recipes.items():
        if recipe.counts_end != backbone.renderer.counts_end:
            raise RecipeError(
                f"recipe {name!r} has counts_end={recipe.counts_end} but the backbone's renderer "
                f"counts_end={backbone.renderer.counts_end}; load the backbone with the same value"
            )
        if recipe.template != (template := template_of(backbone.renderer)):
            raise RecipeError(
                f"recipe {name!r} has template={recipe.template!r} and the backbone was loaded with "
                f"template={template!r}; load it with template={recipe.template!r}. "
                "Methods of both templates are fitted one by one"
            )


def row_key(rendered: Rendered) -> str:
    """By which an answer is known in a store: a hash of its token ids and span."""
    body = torch.tensor([*rendered.ids, rendered.start, rendered.stop], dtype=torch.int64)
    return hashlib.sha256(body.numpy().tobytes()).hexdigest()[:KEY_CHARACTERS]
