"""One planned batch through the backbone and its reducers: in this process, or on a worker.

Batches are planned where the answers are. A worker gets the plan with its token ids and does the same
arithmetic on the same rows, so its features are those of one process.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from retrm.backbone.base import Backbone, Rendered, StatePoint
from retrm.backbone.batching import BatchPlan, build
from retrm.backbone.remote import BackboneHandle, RemoteBackbone
from retrm.errors import RecipeError
from retrm.features.reduce import BatchIndex, Features, Reducer, ReducerRecipe, StateReducer

PAD_ID = 0  # any valid id: padding stands behind every token that is read and is masked
_PER_TASK = 16  # groups that travel together: a batch takes a card some ten milliseconds

BatchFeatures = dict[str, Features]


@dataclass(frozen=True)
class PlannedBatch:
    """A batch with its answers, apart from all others.

    Attributes:
        plan: its rows; answers count from 0 in the order of the rows.
        rendered: the answers, in that order.
    """

    plan: BatchPlan
    rendered: tuple[Rendered, ...]

    @classmethod
    def of(cls, plan: BatchPlan, rendered: Sequence[Rendered]) -> "PlannedBatch":
        """The batch `plan` of all `rendered`."""
        rows, first = [], 0
        for row in plan.rows:
            rows.append(replace(row, answers=tuple(range(first, first + len(row.answers)))))
            first += len(row.answers)
        own = tuple(rendered[i] for row in plan.rows for i in row.answers)
        return cls(replace(plan, rows=tuple(rows)), own)


BatchGroup = tuple[PlannedBatch, ...]


def batch_passes(
    backbone: Backbone, reducers: Mapping[str, StateReducer], batches: Iterable[PlannedBatch]
) -> Iterator[tuple[int, BatchFeatures]]:
    """(number of the batch, its features per reducer), each batch once; in any order on workers.

    Raises:
        RecipeError: a reducer that cannot be sent to workers.
    """
    if isinstance(backbone, RemoteBackbone):
        return _remote_passes(backbone, reducers, batches)
    return enumerate(_pass(backbone, reducers, batch) for batch in batches)


def few_passes(
    backbone: Backbone, reducers: Mapping[str, StateReducer], batches: Iterable[PlannedBatch]
) -> Iterator[tuple[int, BatchFeatures]]:
    """The same for a handful of batches: one worker that stays ready, instead of all of them."""
    if isinstance(backbone, RemoteBackbone):
        work = _work(backbone, reducers)
        return enumerate(backbone.engine.call(work, (batch,))[0] for batch in batches)
    return batch_passes(backbone, reducers, batches)


def _remote_passes(
    backbone: RemoteBackbone,
    reducers: Mapping[str, StateReducer],
    batches: Iterable[PlannedBatch],
) -> Iterator[tuple[int, BatchFeatures]]:
    """Batches behind one cached prompt go to one worker, which then reads the prompt once."""
    first: dict[int, int] = {}

    def groups() -> Iterator[BatchGroup]:
        held: list[PlannedBatch] = []
        for number, batch in enumerate(batches):
            held.append(batch)
            if batch.plan.ends_prefix:
                first[len(first)] = number + 1 - len(held)
                yield tuple(held)
                held = []
        assert not held, "the last batch behind a prompt ends it"

    work = _work(backbone, reducers)
    for number, results in backbone.engine.run(work, groups(), per_task=_PER_TASK):
        yield from enumerate(results, first[number])


@dataclass(frozen=True)
class ReadBatches:
    """Work: load the backbone, bind the recipes to it, and read groups of batches in their order."""

    handle: BackboneHandle
    recipes: Mapping[str, ReducerRecipe]

    def start(self) -> Callable[[BatchGroup], list[BatchFeatures]]:
        """Load the backbone."""
        backbone = self.handle.load()
        reducers = {name: recipe.bind(backbone) for name, recipe in self.recipes.items()}
        return lambda group: [_pass(backbone, reducers, batch) for batch in group]


def _work(backbone: RemoteBackbone, reducers: Mapping[str, StateReducer]) -> ReadBatches:
    recipes = {}
    for name, reducer in reducers.items():
        if not isinstance(reducer, Reducer):
            raise RecipeError(
                f"{name!r} is kept by a {type(reducer).__name__}, which cannot be sent to workers; "
                "expected the features of recipes. Use engine local"
            )
        recipes[name] = reducer.unbound
    return ReadBatches(backbone.handle, recipes)


def _pass(
    backbone: Backbone, reducers: Mapping[str, StateReducer], planned: PlannedBatch
) -> BatchFeatures:
    batch = build(planned.plan, planned.rendered, PAD_ID, device=backbone.device)
    index = BatchIndex.of(batch)
    shown = [(reducer, set(reducer.wanted)) for reducer in reducers.values()]
    wanted = {state for _, pairs in shown for state in pairs}

    def visit(layer: int, point: StatePoint, states: Tensor) -> None:
        for reducer, pairs in shown:
            if (layer, point) in pairs:
                reducer.visit(layer, point, states, index, batch)

    backbone.forward(batch, wanted, visit)
    return {name: reducer.finish(index) for name, reducer in reducers.items()}
