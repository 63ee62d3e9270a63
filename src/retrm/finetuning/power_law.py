"""How the loss of a discriminator falls with parameters and with arithmetic: power laws over runs.

    L = a N^b    least squares of log L on log N:  b = S_xy / S_xx,  log a = mean(log L) - b mean(log N)
    r            correlation of log N and log L;  R2 = r^2

The paper finds L = 0.9 N^-0.0425 (N parameters) and L = 2.4 C^-0.0342 (C arithmetic, over the runs that are best
for theirs), with R2 0.9886 and 0.9912 (arXiv 2507.05197).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrm.errors import ArtifactError, DataError, FitError
from retrm.finetuning.run_folder import RunFolder


@dataclass(frozen=True)
class PowerLaw:
    """L = coefficient * x ** exponent.

    Attributes:
        coefficient: a.
        exponent: b; below 0 where the loss falls.
        correlation: of the logarithms, -1 to 1.
        n: points.
    """

    coefficient: float
    exponent: float
    correlation: float
    n: int

    @property
    def r2(self) -> float:
        """Share of the variance of log L that the line explains."""
        return self.correlation**2

    def at(self, x: float) -> float:
        """The loss that the law says at `x`."""
        return self.coefficient * x**self.exponent


@dataclass(frozen=True)
class RunPoint:
    """What a run tells.

    Attributes:
        name: of its folder.
        n_parameters: N.
        flops: C, of the whole run.
        loss: on the test rows at its end, nats.
        curve: (flops, loss) of the measurements on the way, the end included.
        test_rows: by which equal test rows are known.
    """

    name: str
    n_parameters: int
    flops: float
    loss: float
    curve: tuple[tuple[float, float], ...]
    test_rows: str = ""


@dataclass(frozen=True)
class Scaling:
    """Both laws over a set of runs.

    Attributes:
        runs: by parameters.
        by_parameters: over the loss at the end of each run.
        by_compute: over the frontier; None where it has fewer than three points.
        frontier: (flops, loss) that no cheaper measurement reaches, by flops.
    """

    runs: tuple[RunPoint, ...]
    by_parameters: PowerLaw
    by_compute: PowerLaw | None
    frontier: tuple[tuple[float, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        made = asdict(self)
        made["by_parameters"]["r2"] = self.by_parameters.r2
        if self.by_compute is not None:
            made["by_compute"]["r2"] = self.by_compute.r2
        return made


def fit_power_law(x: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The law through points.

    Raises:
        FitError: fewer than three different x, or a number that is not above 0.
    """
    if len(x) != len(losses) or not all(math.isfinite(v) and v > 0 for v in (*x, *losses)):
        raise FitError(
            f"got {len(x)} sizes and {len(losses)} losses; expected as many of both, all finite and above 0"
        )
    if len(set(x)) < 3:
        raise FitError(
            f"got {len(set(x))} different sizes; expected three at least: any two points lie on a power law"
        )
    logs, values = [math.log(v) for v in x], [math.log(v) for v in losses]
    mean_x, mean_y = sum(logs) / len(logs), sum(values) / len(values)
    s_xx = sum((v - mean_x) ** 2 for v in logs)
    s_yy = sum((v - mean_y) ** 2 for v in values)
    s_xy = sum((a - mean_x) * (b - mean_y) for a, b in zip(logs, values, strict=True))
    slope = s_xy / s_xx
    r = 0.0 if s_yy == 0 else s_xy / math.sqrt(s_xx * s_yy)
    return PowerLaw(math.exp(mean_y - slope * mean_x), slope, r, len(x))


def frontier(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Points that are better than all cheaper ones, by x.

    >>> frontier([(1.0, 0.6), (2.0, 0.65), (3.0, 0.5)])
    ((1.0, 0.6), (3.0, 0.5))
    """
    kept: list[tuple[float, float]] = []
    for x, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((x, loss))
    return tuple(kept)


def read_run(path: str | Path) -> RunPoint:
    """A finished run of `retrm polar train`.

    Raises:
        ArtifactError: not finished, or of another kind.
        DataError: it measured no loss on test rows.
    """
    folder = RunFolder(Path(path))
    facts = folder.facts()
    missing = [name for name in ("n_parameters", "flops", "steps") if name not in facts]
    if missing:
        raise ArtifactError(
            f"{path} is no run of retrm polar train: its done.json lacks {', '.join(missing)}"
        )
    if "test_loss" not in facts:
        raise DataError(
            f"{path} measured no loss on rows that it was not trained on; train with --test-fraction or --test"
        )
    flops, steps = float(facts["flops"]), int(facts["steps"])
    curve = [
        (flops * row["step"] / steps, float(row["eval_loss"]))
        for row in folder.metrics()
        if "eval_loss" in row and 0 < row["step"] < steps
    ]
    curve.append((flops, float(facts["test_loss"])))
    return RunPoint(
        Path(path).name,
        int(facts["n_parameters"]),
        flops,
        float(facts["test_loss"]),
        tuple(curve),
        str(folder.config().get("test_sha", "")),
    )


def scaling(paths: Sequence[str | Path]) -> Scaling:
    """Both laws over finished runs.

    Raises:
        ArtifactError, DataError: a run will not do, or they measured on different rows.
        FitError: fewer than three sizes.
    """
    runs = sorted((read_run(path) for path in paths), key=lambda run: run.n_parameters)
    other = next((run for run in runs if run.test_rows != runs[0].test_rows), None)
    if other is not None:
        raise DataError(
            f"{runs[0].name} and {other.name} measured on other rows, so their losses cannot be compared; "
            "expected the same --test file for all runs"
        )
    by_size = fit_power_law([run.n_parameters for run in runs], [run.loss for run in runs])
    edge = frontier([point for run in runs for point in run.curve])
    by_compute = None
    if len(edge) >= 3:
        by_compute = fit_power_law([c for c, _ in edge], [loss for _, loss in edge])
    return Scaling(tuple(runs), by_size, by_compute, edge)
