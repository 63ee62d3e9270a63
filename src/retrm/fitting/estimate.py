"""What `retrm fit` will take, before it starts: tokens, seconds, bytes.

Tokens and bytes are counted, by rendering; seconds come from short trials on this machine (the first
answers are read once, a head of each kind is fitted once to random numbers). Nothing is written, and
what would be refused is refused here with the same words.

Memory, beside the model and the activations of one batch:

    answers        their token ids, `ID_BYTES` a token, and `ANSWER_BYTES` an answer
    reading        two shards on their way to the disk, and the features of a batch
    convex fit     pooled features up to `HELD_BYTES` and the part of a fold; beyond that one open shard,
                   and `ROW_BYTES` an answer, whatever their size. And what the solver draws and
                   decomposes, which depends on the width only
    gradient fit   all features of a recipe, and the training part of them; that of a mixture likewise
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from retrm.backbone.base import Backbone
from retrm.backbone.batching import TOKENS_PER_BATCH
from retrm.features.cost import bytes_per_row, stored_bytes
from retrm.features.estimate import estimate_reading, reading_rate, trial_answers
from retrm.features.read import Overlong, RenderedAnswers, render_all, row_key
from retrm.features.reduce import Layout, Reducer
from retrm.fitting.design import ESTIMATE_BYTES, RESIDENT_BYTES, sample_size
from retrm.fitting.fit import HELD_BYTES, check_fit, recipes_of, whole_rows
from retrm.fitting.solvers import NEWTON_WIDTH
from retrm.fitting.targets import default_loss
from retrm.fitting.trials import (
    TRIAL_ANSWERS,
    TRIAL_ROWS,
    gradient_s,
    grown,
    logistic_s,
    mixture_s,
)
from retrm.methods import Method
from retrm.records import AnswerTable
from retrm.store.shards import SHARD_BYTES, ShardSink

# Measured: Python's own numbers, several copies of which are alive while batches are planned.
ID_BYTES = 64
ANSWER_BYTES = 3000
ROW_BYTES = 200  # of a row of a convex fit: scores, slopes, where it lies
TRIAL_EPOCHS = 2


@dataclass(frozen=True)
class FitEstimate:
    """The cost of a fit.

    Attributes:
        n_answers: that fit the context, stored ones included.
        n_skipped: over-long ones that are left out.
        n_truncated: whose prompt is cut on the left.
        n_pruned: candidates that sampling stopped, which are left out.
        n_stored: answers that the store holds already.
        n_tokens: that are left to pass through the model, shared prompts counted once.
        tokens_per_s: of the trial; None where the model lies on workers, or nothing is left to read.
        reading_s: of what is left to read; None where there was no trial.
        n_heads: to fit, members of ensembles among them.
        fitting_s: of all heads, by trial fits: rough. Gradient heads are counted with all their
            epochs, though most stop early.
        disk_bytes: of the finished store.
        streams: names of the methods whose features stay on the disk during their fit.
        memory_bytes: at the peak, beside the model.
    """

    n_answers: int
    n_skipped: int
    n_truncated: int
    n_pruned: int
    n_stored: int
    n_tokens: int
    tokens_per_s: float | None
    reading_s: float | None
    n_heads: int
    fitting_s: float
    disk_bytes: int
    streams: tuple[str, ...]
    memory_bytes: int


def estimate_fit(
    table: AnswerTable,
    backbone: Backbone,
    methods: Sequence[Method],
    *,
    sink: ShardSink | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    label_threshold: float | None = None,
    overlong: Overlong = "error",
    held_bytes: int = HELD_BYTES,
    n_members: int = 0,
) -> FitEstimate:
    """Estimate `retrm.fitting.fit.fit` with the same arguments, into a store; nothing is written.

    Args:
        table: answers with labels, pairs or ranks.
        backbone: the frozen model.
        methods: presets or their variations.
        sink: the store where the reading may be begun.
        test_fraction: of the prompts, held out.
        seed: of the split.
        label_threshold: grades at or above it are right.
        overlong: policy for answers beyond the context.
        held_bytes: pooled features up to this size are held in memory.
        n_members: of the ensemble beside each head; each is counted as long as the head, which is too
            long for those whose time grows with the answers.

    Raises:
        RetrmError: whatever the fit would refuse before the model works.
    """
    ready = check_fit(
        *(table, backbone, methods),
        test_fraction=test_fraction,
        seed=seed,
        label_threshold=label_threshold,
        n_members=n_members,
    )
    rows = whole_rows(table)
    answers = [table.answers[row] for row in rows]
    recipes = recipes_of(backbone, table, methods)
    reducers = {name: Reducer(recipe, backbone) for name, recipe in recipes.items()}
    fitting = render_all(backbone, answers, overlong=overlong)
    stored = sink.stored([row_key(item) for item in fitting.rendered]) if sink else set()
    left = _without(fitting, stored)
    size, rest = (estimate_reading(backbone, part, reducers) for part in (fitting, left))
    rate = None
    if left.rendered:
        rate = reading_rate(backbone, trial_answers(answers, left), reducers, overlong=overlong)
    n_train = int(np.isin(ready.train, rows[list(fitting.rows)]).sum())
    shapes = [
        _Shape.of(
            *(method, reducers[method.name].layout, size.n_response_tokens, n_train, fitting),
            n_context=method.recipe.n_context(backbone.width),
            n_pairs=len(ready.targets.pairs),
        )
        for method in methods
    ]
    losses = [default_loss(ready.targets, method.loss) for method in methods]
    return FitEstimate(
        n_answers=size.n_answers,
        n_skipped=size.n_skipped,
        n_truncated=fitting.n_truncated,
        n_pruned=len(table) - len(rows),
        n_stored=len(stored),
        n_tokens=rest.n_tokens,
        tokens_per_s=rate,
        reading_s=0.0 if not left.rendered else None if rate is None else rest.n_tokens / rate,
        n_heads=len(methods) * (1 + n_members),
        fitting_s=(1 + n_members)
        * sum(shape.seconds(loss) for shape, loss in zip(shapes, losses, strict=True)),
        disk_bytes=size.disk_bytes,
        streams=tuple(s.method.name for s in shapes if s.is_streamed(held_bytes)),
        memory_bytes=reading_bytes(fitting, [r.layout for r in reducers.values()])
        + max(shape.memory_bytes(held_bytes) for shape in shapes),
    )


def reading_bytes(fitting: RenderedAnswers, layouts: Sequence[Layout]) -> int:
    """The peak of a reading into a store, beside the model and the activations of a batch.

    Args:
        fitting: the answers.
        layouts: of the features.
    """
    n_tokens = sum(len(item.ids) for item in fitting.rendered)
    n_batch = min(TOKENS_PER_BATCH, n_tokens)
    batch = stored_bytes(layouts, n_batch, n_batch)
    n_answers = len(fitting.rendered)
    features = stored_bytes(layouts, n_answers, sum(r.n_response for r in fitting.rendered))
    shards = min(features, 2 * SHARD_BYTES)
    return shards + 2 * batch + ID_BYTES * n_tokens + ANSWER_BYTES * n_answers


def is_streamed(n: int, width: int, dtype: torch.dtype, *, held_bytes: int = HELD_BYTES) -> bool:
    """Whether a convex fit on n stored rows leaves them on the disk.

    With more features than rows it takes them into memory: it is then solved in n unknowns.
    """
    return n * width * dtype.itemsize > held_bytes and width <= n


def convex_bytes(n: int, width: int, dtype: torch.dtype, *, held_bytes: int = HELD_BYTES) -> int:
    """The peak of a convex fit from a store, its penalty chosen by cross-validation.

    Args:
        n: training answers.
        width: features of each.
        dtype: in which they are stored.
        held_bytes: features up to this size are held in memory.
    """
    stored = n * width * dtype.itemsize
    if width > n:  # float64: standardised, transposed for the factorisation, and its factor
        return stored + 3 * 8 * n * width
    work = _solver_bytes(width) + ROW_BYTES * n
    if is_streamed(n, width, dtype, held_bytes=held_bytes):
        return SHARD_BYTES + work
    dense = 8 * n * width
    return 2 * stored + work + (dense if dense <= RESIDENT_BYTES else 0)


def _solver_bytes(width: int) -> int:
    """The drawn rows twice, their decomposition, and Hessians where Newton may finish; float64."""
    m = sample_size(width)
    drawn = 8 * m * width
    newton = 3 * 8 * width**2 if width <= NEWTON_WIDTH else 0
    return 2 * drawn + min(ESTIMATE_BYTES, drawn) + 6 * 8 * min(m, width) ** 2 + newton


def _without(fitting: RenderedAnswers, stored: set[int]) -> RenderedAnswers:
    """What is left to read; counts are those of all."""
    left = [i for i in range(len(fitting.rendered)) if i not in stored]
    return replace(
        fitting,
        rendered=tuple(fitting.rendered[i] for i in left),
        rows=tuple(fitting.rows[i] for i in left),
    )


@dataclass(frozen=True)
class _Shape:
    """The features of one head.

    Attributes:
        method: whose head is fitted.
        layout: of a row.
        n_rows: answers, or their tokens.
        n_train: answers in the training part.
        tokens_each: of an answer.
        n_context: features of the prompt behind those of the answer.
        n_pairs: of the data.
    """

    method: Method
    layout: Layout
    n_rows: int
    n_train: int
    tokens_each: float
    n_context: int
    n_pairs: int

    @classmethod
    def of(
        cls,
        method: Method,
        layout: Layout,
        n_response: int,
        n_train: int,
        fitting: RenderedAnswers,
        *,
        n_context: int,
        n_pairs: int,
    ) -> "_Shape":
        n_answers = len(fitting.rendered)
        n_rows = n_answers if layout.is_pooled else n_response
        tokens_each = n_response / max(n_answers, 1)
        return cls(method, layout, n_rows, n_train, tokens_each, n_context, n_pairs)

    @property
    def width(self) -> int:
        return self.layout.n_features

    def is_streamed(self, held_bytes: int) -> bool:
        """Whether the convex fit leaves them on the disk."""
        return self.method.solver == "convex" and is_streamed(
            *(self.n_train, self.width, self.layout.dtype), held_bytes=held_bytes
        )

    def memory_bytes(self, held_bytes: int) -> int:
        """At the peak of the fit."""
        if self.method.solver == "convex":
            return convex_bytes(
                *(self.n_train, self.width, self.layout.dtype), held_bytes=held_bytes
            )
        return 2 * self.n_rows * bytes_per_row(self.layout)

    def seconds(self, loss: str) -> float:
        """By a trial."""
        method, width = self.method, self.width
        if method.solver == "convex":
            # Passes over the rows cost in proportion; the factorisations grow faster, but rows are as
            # many as features only in small problems.
            trial = grown(logistic_s, width, power=2)
            return 1.3 * trial * max(1.0, self.n_train / TRIAL_ROWS)
        if method.solver == "mixture":
            n_own = width - self.n_context
            return grown(
                lambda m: mixture_s(
                    *(method.mixture, m, self.n_context), n_pairs=self.n_pairs, n_rows=self.n_train
                ),
                n_own,
            )
        options = replace(method.gradient, epochs=TRIAL_EPOCHS, patience=None, start="random")
        tried = replace(method, loss=loss, gradient=options)
        trial = grown(lambda m: gradient_s(tried, m, self.tokens_each), width, power=1)
        return trial * method.gradient.epochs / TRIAL_EPOCHS * self.n_train / TRIAL_ANSWERS
