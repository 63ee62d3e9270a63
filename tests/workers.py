"""Engines and work for tests: in this process as if it were a cluster, and workers that die."""

import os
import pickle
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class ShuffledEngine:
    """Does everything here, but sends work, items and results by pickle and returns in any order."""

    seed: int = 0
    sent: list[Any] = field(default_factory=list)
    n_calls: int = 0

    def run(
        self, work: Any, items: Iterable[Any], *, per_task: int = 1
    ) -> Iterator[tuple[int, Any]]:
        do = _sent(work).start()
        results = []
        for number, item in enumerate(items):
            self.sent.append(item)
            results.append((number, _sent(do(_sent(item)))))
        random.Random(self.seed).shuffle(results)
        return iter(results)

    def call(self, work: Any, item: Any) -> Any:
        self.n_calls += 1
        return _sent(_sent(work).start()(_sent(item)))

    def close(self) -> None:
        pass


def _sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@dataclass(frozen=True)
class Square:
    """Work: the square of a number, and the process that found it."""

    def start(self) -> Callable[[int], tuple[int, int]]:
        return lambda number: (number * number, os.getpid())


@dataclass(frozen=True)
class Deadly:
    """Work that kills its process with SIGKILL when `victim` says so of an item.

    Attributes:
        inner: what it does otherwise.
        victim: of an item, whether it kills.
        scar: a file that says that it killed; None = it kills again and again.
    """

    inner: Any
    victim: Callable[[Any], bool]
    scar: Path | None = None

    def start(self) -> Callable[[Any], Any]:
        do = self.inner.start()

        def maybe_die(item: Any) -> Any:
            if self.victim(item) and (self.scar is None or not self.scar.exists()):
                if self.scar is not None:
                    self.scar.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return do(item)

        return maybe_die


@dataclass(frozen=True)
class DeadlyEngine:
    """Another engine, all of whose work is deadly to some items."""

    engine: Any
    victim: Callable[[Any], bool]
    scar: Path | None = None

    def run(
        self, work: Any, items: Iterable[Any], *, per_task: int = 1
    ) -> Iterator[tuple[int, Any]]:
        deadly = Deadly(work, self.victim, self.scar)
        return self.engine.run(deadly, items, per_task=per_task)

    def call(self, work: Any, item: Any) -> Any:
        return self.engine.call(work, item)

    def close(self) -> None:
        pass
