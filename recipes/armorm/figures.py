"""From the scores that fits.py wrote to the figures of the page.

    python recipes/armorm/figures.py runs/data/armorm --runs runs/armorm/smollm2-135m

Scores of one fold come from other heads than those of the next: wherever scores are correlated they are
taken as ranks within their fold, and squared errors as they are. Intervals resample prompts; differences
are paired. Written is docs/results/armorm/NAME.json, NAME being that of the folder of the runs.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fits import N_FOLDS, N_RANDOM, SEED, members_of
from states import joined, tables

from retrm.data.split import prompt_folds
from retrm.errors import RetrmError
from retrm.evaluation.preferences import PairComparison, compare_pairs
from retrm.files import write_json
from retrm.metrics import Interval, Resamples
from retrm.metrics.ranks import centred_ranks, spearman_statistic
from retrm.metrics.statistics import (
    AverageStatistic,
    PromptStatistic,
    mean_statistic,
    sums_statistic,
)
from retrm.records import AnswerTable, Pair
from retrm.scorers.baseline import LengthScorer, RandomScorer

OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "results" / "armorm"
DIGITS = 4
# Of the fits whose objectives are compared; the rest differ in their pairs alone.
RANDOM = tuple(f"random {draw}" for draw in range(N_RANDOM))
FEATURES = ("full", "reasoning", *RANDOM, "semantic", "pca", "pooled")
# Scores whose correlation with length is told, by the name that they have in the file of scores.
LENGTH_OF = (
    "mixture/full",
    "mixture/full, wide",
    "without debiasing/full",
    "uniform gate/full",
    "linear head/full",
)


@dataclass(frozen=True)
class Scored:
    """Everything that figures are made of.

    Attributes:
        table: all answers.
        members: rows of each set.
        folds: (n,) fold of each answer.
        scores: (n,) by key, as fits.py wrote them.
        reports: of the fits.
        lengths: (n,) characters of the answers.
    """

    table: AnswerTable
    members: Mapping[str, np.ndarray]
    folds: np.ndarray
    scores: Mapping[str, np.ndarray]
    reports: Sequence[Mapping[str, Any]]
    lengths: np.ndarray

    def ranked(self, key: str) -> np.ndarray:
        """(n,) ranks of the scores `key` within each fold; baselines, of which there is one head, as are."""
        values = self.scores[key]
        if key == "log-probability":
            return values
        ranks = np.full(len(values), np.nan)
        for fold in range(N_FOLDS):
            rows = np.flatnonzero((self.folds == fold) & ~np.isnan(values))
            if len(rows):
                ranks[rows] = centred_ranks(values[rows])
        return ranks

    def prompts(self, rows: np.ndarray) -> list[str]:
        """Of some answers."""
        return self.table.prompt_ids[rows].tolist()

    @property
    def objectives(self) -> list[str]:
        """All of them, length last."""
        return list(self.table.ratings)


@cache
def _resamples(prompts: tuple[str, ...]) -> Resamples:
    return Resamples(np.array(prompts, dtype=object), seed=SEED)


def _interval(statistic: PromptStatistic) -> dict[str, float | int]:
    return _resamples(tuple(statistic.prompts)).interval(statistic).as_dict(DIGITS)


def _difference(first: PromptStatistic, second: PromptStatistic) -> dict[str, float | int]:
    return _resamples(tuple(first.prompts)).difference(first, second).as_dict(DIGITS)


def _reasoning_contrasts(statistics: Mapping[str, PromptStatistic]) -> dict[str, Any]:
    """The reasoning subspace minus what has as many directions; of random ones the mean over draws."""
    random = AverageStatistic(tuple(statistics[name] for name in RANDOM))
    others = {"random": random, "semantic": statistics["semantic"], "pca": statistics["pca"]}
    others["full"] = statistics["full"]
    return {name: _difference(statistics["reasoning"], one) for name, one in others.items()}


# --------------------------------------------------------------------------------------- ratings


def _explained(errors: np.ndarray, constant: np.ndarray, ids: Sequence[str]) -> PromptStatistic:
    """1 - squared error / squared error of the constant."""
    columns = np.column_stack([errors, constant])
    return sums_statistic(columns, ids, lambda sums: 1 - sums[:, 0] / sums[:, 1])


def rating_figures(found: Scored) -> list[dict[str, Any]]:
    """One entry an objective that people rated, with every regressor and baseline."""
    return [_objective(found, name) for name in found.objectives if name != "length"]


def _objective(found: Scored, name: str) -> dict[str, Any]:
    labels = found.table.ratings[name]
    rows = np.flatnonzero(~np.isnan(labels))
    labels, ids = labels[rows], found.prompts(rows)
    constant = (found.scores[f"constant/{name}"][rows] - labels) ** 2
    keys = {
        "ridge": f"ridge/{name}",
        **{features: f"objective/{features}/{name}" for features in FEATURES},
    }
    keys = {label: key for label, key in keys.items() if key in found.scores}
    ranks = {label: found.ranked(key)[rows] for label, key in keys.items()}
    ranks |= {"length": found.lengths[rows]}
    ranks |= {
        label: found.ranked(key)[rows]
        for label, key in (("mixture", "mixture/full"), ("log-probability", "log-probability"))
        if key in found.scores
    }
    correlations = {
        label: spearman_statistic(values, labels, ids) for label, values in ranks.items()
    }
    explained = {
        label: _explained((found.scores[keys[label]][rows] - labels) ** 2, constant, ids)
        for label in ("full", "ridge", "reasoning")
    }
    return {
        "objective": name,
        "n": len(rows),
        "n_prompts": len(set(ids)),
        "correlation": {
            label: _interval(one) for label, one in correlations.items() if label not in RANDOM
        },
        "explained": {label: _interval(one) for label, one in explained.items()},
        "correlation_minus_ridge": {
            label: _difference(correlations[label], correlations["ridge"])
            for label in ("full", "reasoning", "pooled")
        },
        "reasoning_minus": _reasoning_contrasts(correlations),
        "constant_mse": round(float(constant.mean()), DIGITS),
    }


# ----------------------------------------------------------------------------------------- pairs


def pair_figures(found: Scored) -> dict[str, Any]:
    """By set: the mixture beside everything else on its pairs."""
    out = {}
    for name, rows in found.members.items():
        inside = set(rows.tolist())
        pairs = [p for p in found.table.preferences() if {p.chosen, p.rejected} <= inside]
        if not pairs:
            continue
        heads = _pair_scores(found, name)
        lengths = found.lengths
        chance = RandomScorer(SEED).score(found.table.answers)
        baselines = {"longest": lengths, "shortest": -lengths, "random": chance}
        if "log-probability" in found.scores:
            baselines["log-probability"] = found.scores["log-probability"]
        mixture = heads.pop("mixture/full")
        ids = found.table.prompt_ids.tolist()
        beside = compare_pairs(
            {"mixture/full": mixture}, {**heads, **baselines}, pairs, ids, seed=SEED
        )
        orders = {
            features: _order(found.scores[f"mixture/{features}"], pairs, ids)
            for features in FEATURES
        }
        out[name] = _pair_rows(beside) | {"reasoning_minus": _reasoning_contrasts(orders)}
    return out


def _order(scores: np.ndarray, pairs: Sequence[Pair], ids: Sequence[str]) -> PromptStatistic:
    """Share of pairs in the right order, a tie counting one half."""
    gaps = np.array([scores[pair.chosen] - scores[pair.rejected] for pair in pairs])
    return mean_statistic((np.sign(gaps) + 1) / 2, [ids[pair.chosen] for pair in pairs])


def _pair_scores(found: Scored, name: str) -> dict[str, np.ndarray]:
    """Scores of everything that was fitted; of the fits on one set, those on this one."""
    kinds = ("mixture", "uniform gate", "constant gate", "best objective", "linear head")
    return {
        key: values
        for key, values in found.scores.items()
        if key.partition("/")[0] in (*kinds, "without debiasing")
        and (" alone" not in key or key.endswith(f"{name} alone"))
    }


def _pair_rows(beside: PairComparison) -> dict[str, Any]:
    minus = beside.rows[0].minus
    rows = [
        {
            "name": row.name,
            "accuracy": row.accuracy.as_dict(DIGITS),
            "n_ties": row.n_ties,
            "mixture_minus_it": _rounded(minus.get(row.name)),
        }
        for row in beside.rows
    ]
    return {"n_pairs": beside.n_pairs, "n_prompts": beside.n_prompts, "rows": rows}


def _rounded(value: Interval | None) -> dict[str, float | int] | None:
    return None if value is None else value.as_dict(DIGITS)


# ---------------------------------------------------------------------------------------- length


def length_figures(found: Scored) -> dict[str, Any]:
    """Rank correlation with length on the answers of the pairs, by set, before and after debiasing."""
    out = {}
    used = {row for pair in found.table.preferences() for row in (pair.chosen, pair.rejected)}
    for name, rows in found.members.items():
        own = np.array([row for row in rows if int(row) in used], dtype=int)
        if not len(own):
            continue
        ids, lengths = found.prompts(own), found.lengths[own]
        predicted = found.ranked("objective/full/length")[own]
        scores = {key: found.ranked(key)[own] for key in LENGTH_OF}
        out[name] = {
            "n": len(own),
            "predicted": _interval(spearman_statistic(predicted, lengths, ids)),
            "scores": {
                key: _interval(spearman_statistic(values, lengths, ids))
                for key, values in scores.items()
            },
            "before_minus_after": _difference(
                spearman_statistic(scores["without debiasing/full"], lengths, ids),
                spearman_statistic(scores["mixture/full"], lengths, ids),
            ),
        }
    return out


def debiasing_figures(found: Scored) -> list[dict[str, Any]]:
    """By objective, on all held-out answers of pairs: with predicted and true length, before and after."""
    used = sorted({r for pair in found.table.preferences() for r in (pair.chosen, pair.rejected)})
    rows = np.array(used)
    ids, lengths = found.prompts(rows), found.lengths[rows]
    predicted = found.ranked("objective/full/length")[rows]
    out = []
    for name in found.objectives:
        if name == "length":
            continue
        entry: dict[str, Any] = {"objective": name, **_account(found, name)}
        for when, kind, features in (
            ("before", "objective", "full"),
            ("after", "adjusted", "full"),
            ("after_wide", "adjusted", "full, wide"),
        ):
            values = found.ranked(f"{kind}/{features}/{name}")[rows]
            entry[when] = {
                "predicted": _interval(spearman_statistic(values, predicted, ids)),
                "length": _interval(spearman_statistic(values, lengths, ids)),
            }
        out.append(entry)
    return out


def _account(found: Scored, name: str) -> dict[str, Any]:
    """What the fits of the folds report of one objective."""
    lines = _lines(found, "full", name)
    return {
        "lambdas": [line["lambda"] for line in lines],
        "alphas": [line["alpha"] for line in lines],
        "n_unresolved": sum(line["is_unresolved"] for line in lines),
        "wide_lambdas": [line["lambda"] for line in _lines(found, "full, wide", name)],
        "n_unresolved_wide": sum(
            line["is_unresolved"] for line in _lines(found, "full, wide", name)
        ),
        "n_last_alpha": sum(line["alpha_is_last"] for line in lines),
    }


def _lines(found: Scored, features: str, name: str) -> list[Mapping[str, Any]]:
    """Of each fold's fit on these features, what it says of one objective."""
    return [
        line
        for report in found.reports
        if report["features"] == features
        for line in report["objectives"]
        if line["name"] == name
    ]


def gate_figures(found: Scored) -> dict[str, Any]:
    """Mean weight of each objective on the prompts of each set of pairs, each prompt once."""
    out: dict[str, Any] = {}
    for name, rows in found.members.items():
        _, first = np.unique(found.table.prompt_ids[rows], return_index=True)
        own = rows[first]
        ids = found.prompts(own)
        out[name] = {
            objective: _interval(mean_statistic(found.scores[f"gate/full/{objective}"][own], ids))
            for objective in found.objectives
        }
    return out


def fit_figures(found: Scored) -> list[dict[str, Any]]:
    """Of each gate: what the fit says of itself."""
    kept = ("width", "n_pairs", "n_validation_pairs", "kept_step", "validation_loss", "logit_scale")
    return [
        {"fold": report["fold"], "features": report["features"]}
        | {name: report["gate"][name] for name in kept}
        for report in found.reports
    ]


# ------------------------------------------------------------------------------------------ file


def load(data: Path, runs: Path) -> tuple[Scored, dict[str, Any]]:
    """What the runs left, and facts that are not computed from scores."""
    sets = tables(data)
    table = joined(sets)
    fits = json.loads((runs / "fits.json").read_text("utf-8"))
    with np.load(runs / "scores.npz") as stored:
        scores = {name: stored[name] for name in stored.files}
    members = members_of(table, sets)
    found = Scored(
        table=table,
        members=members,
        folds=prompt_folds(table.prompt_ids.tolist(), N_FOLDS, seed=SEED),
        scores=scores,
        reports=fits.pop("fits"),
        lengths=LengthScorer(prefers="longest").score(table.answers),
    )
    reading = runs / "reading.json"
    facts = {
        "n_answers": len(table),
        "n_prompts": len(set(table.prompt_ids.tolist())),
        "sets": {
            name: {
                "n_answers": len(rows),
                "n_prompts": len(set(found.prompts(rows))),
                "n_pairs": len(sets[name].preferences()),
                "mean_words": round(
                    float(np.mean([len(table.answers[r].response.split()) for r in rows])), 1
                ),
            }
            for name, rows in members.items()
        },
        "reading": json.loads(reading.read_text("utf-8")) if reading.is_file() else None,
        "fits": fits,
    }
    return found, facts


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="what prepare.py made")
    parser.add_argument("--runs", type=Path, required=True, help="where fits.py wrote")
    args = parser.parse_args()
    try:
        found, facts = load(args.data, args.runs)
        figures = {
            **facts,
            "ratings": rating_figures(found),
            "pairs": pair_figures(found),
            "length": length_figures(found),
            "debiasing": debiasing_figures(found),
            "gates": gate_figures(found),
            "gate_fits": fit_figures(found),
        }
    except RetrmError as error:
        sys.exit(f"error: {error}")
    target = OUTPUT / f"{args.runs.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, figures)
    print(target)


if __name__ == "__main__":
    main()
