"""Convex heads: our solver against scikit-learn at the same optimum, one penalty and nine.

Features look like pooled hidden states: a power-law spectrum, rotated, a few columns of large mean.
A rival counts only once its objective is within 1e-6 of the best one found: scikit-learn is given the
loosest tolerance (of powers of ten) that gets there, found before the clock runs.

    python benchmarks/fitting.py [--rows N] [--features D] [--lam L] [--repeats N]
"""

import argparse
import warnings
from collections.abc import Callable

import numpy as np
import torch
from harness import N_REPEATS, Ratio, Report, interleave, one_thread_note, say
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from retrm.fitting.convex import LAMBDA_GRID, RowTargets, fit_linear, fit_path

GAP = 1e-6
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def main() -> None:
    args = arguments()
    features, labels = problem(args.rows, args.features)
    targets = RowTargets(labels)
    mean, scale = features.double().mean(0), features.double().std(0, correction=0)
    best = fit_linear(features, targets, lam=args.lam)
    say(f"ours: objective {best.objective:.10f} after {best.n_iterations} steps")

    def objective(weight: np.ndarray, bias: float, design: np.ndarray) -> float:
        f = design.astype(np.float64) @ weight + bias
        loss = np.logaddexp(0, np.where(np.asarray(labels) == 1, -f, f)).mean()
        return float(loss + args.lam / 2 * (weight**2).sum())

    def standardised() -> np.ndarray:
        return ((features - mean.float()) / scale.float()).numpy()

    def rival(solver: str, tolerance: float, dtype: type) -> Callable[[], LogisticRegression]:
        def run() -> LogisticRegression:
            model = LogisticRegression(
                C=1 / (args.rows * args.lam), solver=solver, tol=tolerance, max_iter=10_000
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                return model.fit(standardised().astype(dtype, copy=False), labels)

        return run

    design = standardised()
    report = Report(
        "fitting",
        {"rows": args.rows, "features": args.features, "lam": args.lam, "gap": GAP},
    )
    rivals: dict[str, Callable[[], object]] = {
        "ours, one penalty": lambda: fit_linear(features, targets, lam=args.lam),
        "ours, nine penalties": lambda: fit_path(features, targets, LAMBDA_GRID),
    }
    gaps = {"ours, one penalty": 0.0}
    for solver, dtype in (("lbfgs", np.float32), ("lbfgs", np.float64)):
        name = f"scikit-learn {solver} {np.dtype(dtype).name}"
        for tolerance in TOLERANCES:
            found = rival(solver, tolerance, dtype)()
            gap = objective(found.coef_[0].astype(np.float64), found.intercept_[0], design)
            gap = (gap - best.objective) / best.objective
            say(f"{name}, tol {tolerance:g}: gap {gap:.2e} after {found.n_iter_[0]} steps")
            if gap <= GAP:
                rivals[name] = rival(solver, tolerance, dtype)
                gaps[name] = gap
                break
        else:
            report.notes.append(f"{name} never came within {GAP:g}; not timed.")
    timings = interleave(rivals, repeats=args.repeats, warm_up=0)
    for name, timing in timings.items():
        report.add(
            name,
            timing,
            gap=gaps.get(name),
            times_ours=Ratio.of(timing, timings["ours, one penalty"]),
        )
    theirs = [name for name in timings if name.startswith("scikit-learn")]
    if theirs:
        fastest = min(theirs, key=lambda name: timings[name].median)
        ratio = Ratio.of(timings["ours, one penalty"], timings[fastest])
        report.target(f"share of the time of {fastest}", 0.2, ratio.median, at_least=False)
    path = Ratio.of(timings["ours, nine penalties"], timings["ours, one penalty"])
    report.target("nine penalties, in times of one", 3.0, path.median, at_least=False)
    report.notes.append("Standardising is inside every timer; scikit-learn gets it in float32.")
    report.notes.append(one_thread_note())
    report.finish()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--lam", type=float, default=1e-3)
    parser.add_argument("--repeats", type=int, default=N_REPEATS)
    return parser.parse_known_args()[0]


def problem(n: int, width: int) -> tuple[torch.Tensor, list[float]]:
    """Correlated features with a power-law spectrum, and labels from a noisy direction of them."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, width + 1).float().pow(-0.5)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    features = (torch.randn(n, width, generator=generator) * scale) @ turn
    direction = turn.T @ (torch.randn(width, generator=generator) * scale.sqrt())
    signal = features @ direction
    chance = torch.sigmoid(signal / signal.std())
    labels = (torch.rand(n, generator=generator) < chance).float()
    features[:, :4] += 20.0  # massive activations
    return features, labels.tolist()


if __name__ == "__main__":
    main()
