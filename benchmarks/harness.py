"""What every benchmark here shares: interleaved repeats, medians with their spread, one JSON object.

Rivals are timed in turn (a, b, c, a, b, c, ...) in one process, so that a machine that slows down
slows all of them; what is published is the ratio within a turn, never two absolute times from
different minutes. One turn ahead is not counted (caches, lazy imports, page faults).
"""

import argparse
import gc
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
N_REPEATS = 5
LIBRARIES = ("torch", "transformers", "scikit-learn", "numpy", "safetensors")


@dataclass(frozen=True)
class Timing:
    """Seconds of one rival over the turns."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third."""
        low, high = np.percentile(self.seconds, (25, 75))
        return float(low), float(high)


@dataclass(frozen=True)
class Ratio:
    """How a rival stands to another, turn by turn: median and extremes over the turns."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, above: Timing, below: Timing) -> "Ratio":
        """above / below within each turn."""
        each = np.divide(above.seconds, below.seconds)
        return cls(float(np.median(each)), float(each.min()), float(each.max()))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def interleave(
    rivals: Mapping[str, Callable[[], object]], *, repeats: int = N_REPEATS, warm_up: int = 1
) -> dict[str, Timing]:
    """Wall seconds of every rival, in turn; the order is reversed in every second turn."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    names = list(rivals)
    for turn in range(-warm_up, repeats):
        for name in names if turn % 2 else reversed(names):
            gc.collect()
            started = time.perf_counter()
            rivals[name]()
            elapsed = time.perf_counter() - started
            if turn >= 0:
                seconds[name].append(elapsed)
        say(f"turn {turn + 1} of {repeats}" if turn >= 0 else "warm-up done")
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def say(text: str) -> None:
    """Progress, on stderr: stdout carries the JSON object."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What ran this: processor, threads, versions, commit."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "commit": _commit(),
    }


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


@dataclass
class Report:
    """One benchmark's outcome.

    Attributes:
        name: of the benchmark and of its file.
        setting: what was measured on: model, tokens, sizes.
        rows: one line of the table each; the first key names the line.
        targets: claims with what was found, `{"claim", "target", "found", "met"}`.
        notes: what was not compared, and why.
    """

    name: str
    setting: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, timing: Timing, **more: Any) -> None:
        """A line with a timing; further columns by name."""
        low, high = timing.quartiles
        self.rows.append({"what": what, "seconds": timing.median, "quartiles": [low, high], **more})

    def target(self, claim: str, target: float, found: float, *, at_least: bool = True) -> None:
        """A claim of the plan beside what was found."""
        met = found >= target if at_least else found <= target
        self.targets.append({"claim": claim, "target": target, "found": found, "met": bool(met)})

    def finish(self, argv: Sequence[str] | None = None) -> None:
        """Print table and JSON; write `results/NAME.json` (or `-o FILE`)."""
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("-o", "--out", type=Path, default=RESULTS / f"{self.name}.json")
        args, _ = parser.parse_known_args(argv)
        found = {**asdict(self), "machine": machine(), "peak_memory_mb": round(peak_memory_mb())}
        text = json.dumps(found, indent=1, default=_plain)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")
        say(table(self.rows))
        for claim in self.targets:
            verdict = "met" if claim["met"] else "NOT met"
            say(f"{claim['claim']}: {claim['found']:.3f}, target {claim['target']:g}: {verdict}")
        print(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Ratio):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot write {type(value).__name__} to JSON")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Aligned columns, numbers to the right."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "quartiles"))
    cells = [[_cell(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(c[i]) for c in [columns, *cells]) for i in range(len(columns))]
    lines = []
    for line in [columns, *cells]:
        first, *rest = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join([first, *rest]))
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def one_thread_note() -> str:
    """Threads are half the story of a processor's figures."""
    return f"{torch.get_num_threads()} threads for every rival; no other work on the machine meant."
