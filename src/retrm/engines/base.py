"""What every engine offers: the same work on many items, in other processes.

An engine knows nothing of language models. It is given `Work`, small and picklable, which says what
a worker makes ready once (it loads a backbone, say) and then does to every item. Results come with
the number of their item, as they become ready; `in_order` puts them back into a row. Each item has
exactly one result, or the run ends with an error: nothing is lost and nothing is doubled.

    >>> list(in_order([(1, "b"), (0, "a"), (2, "c")]))
    ['a', 'b', 'c']
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol, TypeVar, runtime_checkable

from retrm.errors import EngineError, RecipeError, did_you_mean

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)

EngineName = Literal["local", "ray"]
ENGINES: tuple[EngineName, ...] = ("local", "ray")


class Work(Protocol[Item_contra, Result_co]):
    """What a worker does; it is sent to every worker, so it holds names and numbers, no weights."""

    def start(self) -> Callable[[Item_contra], Result_co]:
        """Make ready, once a worker, and return what is done to each item."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Workers in other processes, on this machine or on many."""

    def run(
        self, work: Work[Item, Result], items: Iterable[Item], *, per_task: int = 1
    ) -> Iterator[tuple[int, Result]]:
        """(number of the item, its result), as they become ready, each item once.

        Args:
            work: what is done to each item.
            items: numbered in their order.
            per_task: how many are sent together at most. More is faster where an item takes less
                than a second, and more is done again when a worker dies.

        Raises:
            RetrmError: as `work` raised it, with the name of the machine.
            EngineError: workers died again and again, or the cluster is gone.
        """
        ...

    def call(self, work: Work[Item, Result], item: Item) -> Result:
        """One result from one worker, which stays ready for the next call until `run`.

        Raises:
            RetrmError, EngineError: as `run`.
        """
        ...

    def close(self) -> None:
        """Let all workers go."""
        ...


@contextlib.contextmanager
def open_engine(
    name: str, *, workers: int | None = None, address: str | None = None, device: str = "cpu"
) -> Iterator[Engine | None]:
    """An engine by name, closed at the end of the block; None = in this process.

    Args:
        name: `local` or `ray`.
        workers: how many backbones; by default one a GPU, or without GPUs one a machine.
        address: of a running Ray cluster, `auto` = the one on this machine; by default what
            RAY_ADDRESS says, else a cluster of this machine alone, for as long as this process lives.
        device: of the backbones; `cpu` or `cuda`.

    Raises:
        RecipeError: an unknown name, or options that do not fit it.
        MissingExtraError: Ray is not installed.
        EngineError: the cluster cannot be reached or has too little to offer.
    """
    if name not in ENGINES:
        raise RecipeError(f"unknown engine {name!r}. {did_you_mean(name, ENGINES)}")
    if name == "local":
        given = {"workers": workers, "ray_address": address}
        stray = [option for option, value in given.items() if value is not None]
        if stray:
            raise RecipeError(
                f"got {' and '.join(stray)} with engine local, which works in this process; use "
                "engine ray, or leave them out"
            )
        yield None
        return
    from retrm.engines.ray_data import RayEngine

    with RayEngine.connect(workers=workers, address=address, device=device) as engine:
        yield engine


def in_order(results: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Results in the order of their items; those that come early wait in memory.

    Raises:
        EngineError: a result is missing or comes twice.
    """
    early: dict[int, Result] = {}
    following = 0
    for number, result in results:
        if number < following or number in early:
            raise EngineError(f"the result of item {number} came twice; expected each once")
        early[number] = result
        while following in early:
            yield early.pop(following)
            following += 1
    if early:
        raise EngineError(f"the result of item {following} never came; run again")
