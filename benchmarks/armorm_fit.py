"""Fitting ArmoRM after the reading: both stages on random states of a small model's width.

1. Stage 1 (ridge on ratings of which a part is missing, by source), the search for lambda and stage 2
   (the gate), as the preset does them, to the end and with all steps: without early stopping, so that
   the time is the longest that the options allow.
2. Stage 1 beside scikit-learn's Ridge in a loop over objectives and penalties.

Ratings come from four sources that each rate a quarter of the objectives and verbosity; a fifth of the
answers are rated by none and stand in pairs only.

    python benchmarks/armorm_fit.py [--rows N] [--objectives K] [--features F] [--pairs N] [--repeats N]
"""

import argparse
from dataclasses import replace

import torch
from harness import N_REPEATS, Ratio, Report, interleave, parser
from sklearn.linear_model import Ridge
from torch import Tensor

from retrm.features.reduce import Features
from retrm.fitting.mixture import fit_mixture
from retrm.fitting.rating_ridge import sparse_ridge
from retrm.fitting.targets import Targets
from retrm.mixture_options import MixtureOptions
from retrm.records import UNIT_SCALE

N_SOURCES = 4
PUBLISHED = (5000, 20, 576, MixtureOptions.steps)


def main() -> None:
    args = arguments()
    features, targets = problem(args.rows, args.objectives, args.features, args.pairs)
    options = replace(MixtureOptions(), patience=None, steps=args.steps)
    own = features.values[:, : args.features]
    wide = replace(options, gate_width=1024)
    rivals = {
        "both stages": lambda: fit_mixture(features, targets, options, n_context=args.features),
        "stage 1": lambda: sparse_ridge(own, targets.ratings, options.alphas),
        "stage 1, scikit-learn": lambda: plain_ridge(own, targets.ratings, options),
    }
    if args.wide:
        rivals["both stages, gate of 1,024"] = lambda: fit_mixture(
            features, targets, wide, n_context=args.features
        )
    timings = interleave(rivals, repeats=args.repeats)
    report = Report(
        "armorm_fit",
        {
            "rows": args.rows,
            "objectives": args.objectives,
            "features": args.features,
            "pairs": args.pairs,
            "steps": args.steps,
            "gate_width": options.width_of_gate(args.pairs),
            "share_rated": float((~torch.isnan(targets.ratings)).float().mean()),
        },
    )
    for name, timing in timings.items():
        times = Ratio.of(timing, timings["stage 1"]) if name.startswith("stage 1") else None
        report.add(name, timing, times_ours=times)
    if (args.rows, args.objectives, args.features, args.steps) == PUBLISHED:
        seconds = timings["both stages"].median
        report.target("seconds for both stages, 5,000 rows", 60.0, seconds, at_least=False)
    report.finish()


def problem(n: int, n_objectives: int, width: int, n_pairs: int) -> tuple[Features, Targets]:
    """Answers in prompts of two, rated by source, preferred at random in a fifth of the noise."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, width, generator=generator)
    planted = torch.randn(width, n_objectives, generator=generator) / width**0.5
    ratings = torch.sigmoid(h @ planted + torch.randn(n, n_objectives, generator=generator))
    prompts = torch.arange(n) // 2
    source = prompts % (N_SOURCES + 1)  # the last one rates nothing
    for k in range(n_objectives - 1):
        ratings[source != k % N_SOURCES, k] = torch.nan
    ratings[source == N_SOURCES, -1] = torch.nan
    first = 2 * torch.randint(n // 2, (n_pairs,), generator=generator)
    is_first = h[first, 0] > h[first + 1, 0]
    pairs = torch.stack(
        [torch.where(is_first, first, first + 1), torch.where(is_first, first + 1, first)], dim=1
    )
    context = torch.randn(n // 2 + 1, width, generator=generator)[prompts]
    names = (*(f"objective {k}" for k in range(n_objectives - 1)), "verbosity")
    targets = Targets(
        labels=torch.full((n,), torch.nan),
        groups=prompts,
        pairs=pairs,
        margins=torch.zeros(n_pairs),
        weights=torch.ones(n_pairs),
        objectives=names,
        ratings=ratings.double(),
        scales=(UNIT_SCALE,) * n_objectives,
    )
    return Features(torch.cat([h, context], dim=1), torch.arange(n + 1), True), targets


def plain_ridge(features: Tensor, ratings: Tensor, options: MixtureOptions) -> None:
    """Every objective at every penalty on its own, in float64 as ours."""
    x = features.double().numpy()
    for k in range(ratings.shape[1]):
        known = ~torch.isnan(ratings[:, k]).numpy()
        for alpha in options.alphas:
            Ridge(alpha=alpha, fit_intercept=False).fit(x[known], ratings[known, k].numpy())


def arguments() -> argparse.Namespace:
    """Of the command line; the defaults are the size that is published."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=PUBLISHED[0])
    made.add_argument("--objectives", type=int, default=PUBLISHED[1])
    made.add_argument("--features", type=int, default=PUBLISHED[2])
    made.add_argument("--pairs", type=int, default=2500)
    made.add_argument("--steps", type=int, default=MixtureOptions.steps)
    made.add_argument("--wide", action="store_true", help="a gate of 1,024, too: minutes")
    made.add_argument("--repeats", type=int, default=N_REPEATS)
    return made.parse_args()


if __name__ == "__main__":
    main()
