"""Fit mixtures and what they are measured against, out of fold, on states that states.py read.

    python recipes/armorm/fits.py runs/data/armorm --model smollm2-135m -o runs/armorm/smollm2-135m

Prompts are dealt into five folds; every answer is scored by heads that never saw its prompt. On the
training prompts of each fold are fitted

    armorm             the preset `armorm` with all objectives, length being the verbosity; its gate on
                       the pairs of all sets
    its controls       `retrm.fitting.mixture_controls`: uniform and constant gate, best objective,
                       Bradley-Terry linear head (the preset last_token), no debiasing
    wide               the same with shares of verbosity up to 5 (the preset's grid ends at .95)
    on one set         the mixture, its gate fitted on the pairs of one set alone, and the linear head of
                       those pairs
    other features     the same mixture on 5 % of the directions: reasoning subspace (`armorm_retrm`),
                       random ones, largest singular directions, principal components of the training
                       states; and on the mean over tokens of the last four layers (`pooled`)
    ridge              one objective at a time on the full state: with intercept, features standardised,
                       penalty by cross-validation, fitted on all training rows (`retrm.fitting.ridge`)
    constant           the mean rating of the training rows

Written are scores.npz (every score of every answer) and fits.json (what the fits report).
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from states import LAST, LOG_PROBABILITY, POOLED, joined, read_all, tables
from torch import Tensor

from retrm.audit.directions import Directions, FeatureSet, drawn
from retrm.backbone.load import load_backbone
from retrm.data.split import prompt_folds
from retrm.errors import RetrmError
from retrm.features.reduce import Features
from retrm.files import write_json
from retrm.fitting.mixture import MixtureFit, fit_mixture
from retrm.fitting.mixture_controls import held_out_scores
from retrm.fitting.ridge import Moments, choose_ridge
from retrm.fitting.targets import Targets
from retrm.heads.mixture import MixtureHead
from retrm.mixture_options import MixtureOptions
from retrm.records import AnswerTable

# Some hundred pairs: fewer and smaller steps than the preset's, and an earlier end.
OPTIONS = MixtureOptions(
    verbosity="length", steps=500, batch_pairs=256, evaluate_every=10, patience=10
)
# `length` spreads less than people's ratings do: up to a whole of it is too little to take out of some.
WIDE = replace(OPTIONS, lambdas=(*OPTIONS.lambdas, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0))
N_FOLDS, SEED, N_RANDOM, SHARE = 5, 0, 3, 0.05


@dataclass
class Found:
    """Scores out of fold as they are made.

    Attributes:
        n: answers.
        scores: by "kind/features/name".
        reports: of each fit, plain JSON.
    """

    n: int
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)

    def put(self, key: str, rows: np.ndarray, values: Tensor | np.ndarray | float) -> None:
        """Scores of the answers `rows`."""
        whole = self.scores.setdefault(key, np.full(self.n, np.nan))
        whole[rows] = values.detach().numpy() if isinstance(values, Tensor) else values


@dataclass(frozen=True)
class Fold:
    """One split by prompt.

    Attributes:
        number: of the fold.
        train: rows to fit on.
        test: rows that are scored.
        targets: of the training rows.
    """

    number: int
    train: np.ndarray
    test: np.ndarray
    targets: Targets


def folds_of(table: AnswerTable, targets: Targets) -> Iterator[Fold]:
    """All folds."""
    numbers = prompt_folds(table.prompt_ids.tolist(), N_FOLDS, seed=SEED)
    for number in range(N_FOLDS):
        train, test = np.flatnonzero(numbers != number), np.flatnonzero(numbers == number)
        yield Fold(number, train, test, targets.take(train))


def fit_fold(
    fold: Fold,
    values: Tensor,
    width: int,
    name: str,
    found: Found,
    *,
    has_controls: bool,
    options: MixtureOptions | None = None,
) -> MixtureFit:
    """A mixture on features `values` (context included), and its controls if asked for."""
    options = options or OPTIONS
    own = values[fold.train]
    features = Features(own, torch.arange(len(own) + 1), True)
    made = fit_mixture(features, fold.targets, options, n_context=width, seed=SEED)
    head, judged = made.head, values[fold.test]
    _put_mixture(found, head, fold, judged, name)
    if has_controls:
        beside = held_out_scores(head, own, fold.targets, judged, options, seed=SEED)
        for control, scores in beside.controls.items():
            found.put(f"{control.partition(':')[0]}/{name}", fold.test, scores)
    found.reports.append({"fold": fold.number, "features": name, **made.report})
    return made


@torch.no_grad()
def _put_mixture(found: Found, head: MixtureHead, fold: Fold, judged: Tensor, name: str) -> None:
    own, context = head.split(judged)
    raw, gates = head.objective_scores(own), head.gates(context)
    adjusted = head.adjusted(raw)
    found.put(f"mixture/{name}", fold.test, (gates * adjusted).sum(dim=1))
    for k, objective in enumerate(head.objectives):
        found.put(f"objective/{name}/{objective}", fold.test, raw[:, k])
        found.put(f"adjusted/{name}/{objective}", fold.test, adjusted[:, k])
        found.put(f"gate/{name}/{objective}", fold.test, gates[:, k])


def only_pairs_of(targets: Targets, rows: np.ndarray, members: np.ndarray) -> Targets:
    """The same answers and ratings, with the pairs of one set alone.

    Args:
        targets: of the answers `rows`.
        rows: of the whole table.
        members: of the whole table, those of the set.
    """
    is_member = torch.from_numpy(np.isin(rows, members))
    kept = is_member[targets.pairs].all(dim=1)
    return replace(
        targets,
        pairs=targets.pairs[kept],
        margins=targets.margins[kept],
        weights=targets.weights[kept],
    )


def fit_ridge(fold: Fold, values: Tensor, objectives: Sequence[str], found: Found) -> None:
    """The single-objective reference, and the constant."""
    parts = prompt_folds(fold.targets.groups.tolist(), N_FOLDS, seed=SEED)
    own = values[fold.train]
    for k, objective in enumerate(objectives):
        labels = fold.targets.ratings[:, k]
        known = ~torch.isnan(labels)
        blocks = [
            Moments.of(own[rows], labels[rows].tolist())
            for part in range(N_FOLDS)
            if len(rows := (known & torch.from_numpy(parts == part)).nonzero()[:, 0])
        ]
        fit = choose_ridge(blocks)
        scores = values[fold.test].double() @ fit.weight.double() + fit.bias
        found.put(f"ridge/{objective}", fold.test, scores)
        found.put(f"constant/{objective}", fold.test, float(labels[known].mean()))


def directions_of(directions: Directions, width: int) -> dict[str, FeatureSet]:
    """What `armorm_retrm` is compared with, by the name of the features."""
    m = max(1, round(SHARE * width))
    random = {f"random {s.draw}": s for s in drawn("random", m, "raw", N_RANDOM)}
    return {
        "reasoning": FeatureSet("reasoning", m, "raw"),
        **random,
        "semantic": FeatureSet("semantic", m, "raw"),
        "pca": FeatureSet("pca_top", m),
    }


def fit_all(
    table: AnswerTable,
    sets: Mapping[str, np.ndarray],
    states: Mapping[str, Features],
    directions: Directions,
) -> Found:
    """Every fit on every fold."""
    found, targets = Found(len(table)), Targets.of(table)
    last, pooled = states[LAST].values, states[POOLED].values
    width = directions.width
    own, context = last[:, :width], last[:, width:]
    for fold in folds_of(table, targets):
        started = time.process_time()
        fit_fold(fold, last, width, "full", found, has_controls=True)
        fit_fold(fold, last, width, "full, wide", found, has_controls=False, options=WIDE)
        for name, members in sets.items():
            alone = only_pairs_of(fold.targets, fold.train, members)
            if len(alone.pairs):
                only = replace(fold, targets=alone)
                fit_fold(only, last, width, f"full, {name} alone", found, has_controls=True)
        train = Moments.of(own[fold.train], [0.0] * len(fold.train))
        for name, features in directions_of(directions, width).items():
            basis = directions.of(features, train)
            assert basis is not None
            reduced = torch.cat([own @ basis.float(), context], dim=1)
            is_method = name == "reasoning"
            fit_fold(fold, reduced, width, name, found, has_controls=is_method)
        fit_fold(fold, pooled, width, "pooled", found, has_controls=True)
        fit_ridge(fold, own, targets.objectives, found)
        print(f"fold {fold.number}: {time.process_time() - started:.0f} s", flush=True)
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="what prepare.py made")
    parser.add_argument("--model", required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--no-log-probability", action="store_true")
    args = parser.parse_args()
    try:
        sets = tables(args.data)
        table = joined(sets)
        backbone = load_backbone(args.model)
        has_log_probability = not args.no_log_probability
        store = args.output / "states"
        reading = read_all(table, backbone, store, log_probability=has_log_probability)
        started = time.process_time()
        found = fit_all(
            table,
            members_of(table, sets),
            reading.features,
            Directions(backbone.unembedding, ("raw",)),
        )
    except RetrmError as error:
        sys.exit(f"error: {error}")
    if has_log_probability:
        scalars = reading.features[LOG_PROBABILITY].values[:, 0].double().numpy()
        found.put("log-probability", np.arange(len(table)), scalars)
    np.savez_compressed(args.output / "scores.npz", **found.scores)
    seconds = round(time.process_time() - started, 1)
    write_json(
        args.output / "fits.json",
        {
            "options": OPTIONS.as_dict(),
            "n_folds": N_FOLDS,
            "seed": SEED,
            "width": backbone.width,
            "processor_seconds": seconds,
            "fits": found.reports,
        },
    )
    print(f"{len(found.reports)} mixtures, {seconds:.0f} s")


def members_of(table: AnswerTable, sets: Mapping[str, AnswerTable]) -> dict[str, np.ndarray]:
    """Rows of the joined table that stand in each set.

    By prompt: a prompt of two sets would be in both, and its answers are judged in both.
    """
    ids = table.prompt_ids
    return {name: np.flatnonzero(np.isin(ids, one.prompt_ids)) for name, one in sets.items()}


if __name__ == "__main__":
    main()
