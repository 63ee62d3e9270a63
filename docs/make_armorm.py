"""Write the tables of docs/results/armorm.md from the result files; --check only says if they are old."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tables_in_pages import difference, stored, table, write_or_check

from retrm.metrics import format_number
from retrm.reports.words import NONE, figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "armorm"
PAGE = ROOT / "docs" / "results" / "armorm.md"
TIMED = ROOT / "benchmarks" / "results" / "armorm_fit.json"
NOTHING = "Nothing is measured yet."
SETS: Mapping[str, str] = {
    "talk": "UniEval, Topical-Chat",
    "data2text": "UniEval, SFRES and SFHOT",
    "finegrained": "FineGrainedRLHF, without passages",
    "rmb": "RMB, helpful",
    "hh": "HH-RLHF, harmless",
}
# Names of scores in the result files, in the order of the table.
SCORERS: Mapping[str, str] = {
    "mixture/full": "`armorm`",
    "uniform gate/full": "uniform gate",
    "constant gate/full": "constant gate",
    "best objective/full": "best single objective",
    "linear head/full": "Bradley-Terry linear head (`last_token`)",
    "without debiasing/full": "`armorm` without debiasing",
    "mixture/full, wide": "`armorm`, lambda up to 5",
    "mixture/full, {set} alone": "`armorm`, gate on this set's pairs alone",
    "linear head/full, {set} alone": "`last_token` on this set's pairs alone",
    "mixture/pooled": "`armorm` on pooled states",
    "linear head/pooled": "linear head on pooled states",
    "mixture/reasoning": "`armorm_retrm`",
    "linear head/reasoning": "linear head on the reasoning subspace (`retrm`)",
    "mixture/semantic": "`armorm` on largest singular directions",
    "mixture/pca": "`armorm` on principal components",
    "longest": "longest",
    "shortest": "shortest",
    "log-probability": "log-probability",
    "random": "random",
}
FEATURES: Mapping[str, str] = {
    "pooled": "pooled, last four layers",
    "reasoning": "reasoning subspace",
    "semantic": "largest singular directions",
    "pca": "principal components",
}
CONTRASTS = {
    **{"random": "random (mean of draws)", "semantic": "largest singular", "pca": "principal"},
    "full": "full state",
}
Found = Mapping[str, Mapping[str, Any]]


def blocks() -> dict[str, str]:
    """Every block of the page."""
    found = results(RESULTS)
    made: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
        "armorm-data": data,
        "armorm-objectives": objectives,
        "armorm-pairs": pairs,
        "armorm-features": features,
        "armorm-length": length,
        "armorm-debiasing": debiasing,
        "armorm-gates": gates,
    }
    return {name: _by_backbone(found, make) for name, make in made.items()} | {
        "armorm-time": time(json.loads(TIMED.read_text("utf-8")) if TIMED.is_file() else None)
    }


def results(folder: Path) -> Found:
    """By backbone."""
    return {
        path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))
    }


def _by_backbone(found: Found, make: Callable[[Mapping[str, Any]], str]) -> str:
    parts = [f"### `{name}`\n\n{make(one)}" for name, one in _smallest_first(found).items()]
    return "\n\n".join(parts) or NOTHING


def _smallest_first(found: Found) -> Found:
    """Backbones by width."""
    return dict(sorted(found.items(), key=lambda item: item[1]["fits"]["width"]))


def _cell(values: Mapping[str, Any] | None) -> str:
    return NONE if values is None else figure(stored(values))


# ------------------------------------------------------------------------------------ the tables


def data(found: Mapping[str, Any]) -> str:
    """What was read, and what it took."""
    rows = [
        [
            *(SETS[name], f"{one['n_answers']:,}", f"{one['n_prompts']:,}"),
            *(f"{one['n_pairs']:,}" if one["n_pairs"] else NONE, f"{one['mean_words']:.0f}"),
        ]
        for name, one in found["sets"].items()
    ]
    reading, fits = found["reading"], found["fits"]
    took = (
        f"{found['n_answers']:,} answers to {found['n_prompts']:,} prompts; states of width "
        f"{fits['width']}. "
    )
    if reading is not None:
        took += f"Read: {reading['n_tokens']:,} tokens in {reading['processor_seconds']:,.0f} s on the processor. "
    took += f"All fits: {fits['processor_seconds']:,.0f} s on the processor."
    return f"{table(['set', 'answers', 'prompts', 'pairs', 'words an answer'], rows)}\n\n{took}"


def objectives(found: Mapping[str, Any]) -> str:
    """Each objective beside the constant, the reference and what needs no head."""
    head = [
        "objective",
        "answers (prompts)",
        "`armorm`",
        "single ridge",
        "`armorm` minus single ridge",
    ]
    head += [
        "explained, `armorm`",
        "explained, single ridge",
        "length",
        "log-probability",
        "mixture's score",
    ]
    rows = []
    for one in found["ratings"]:
        rho, share = one["correlation"], one["explained"]
        rows.append(
            [one["objective"], f"{one['n']:,} ({one['n_prompts']:,})"]
            + [_cell(rho["full"]), _cell(rho["ridge"])]
            + [difference(stored(one["correlation_minus_ridge"]["full"]))]
            + [difference(stored(share["full"])), difference(stored(share["ridge"]))]
            + [_cell(rho[name]) for name in ("length",)]
            + [_cell(rho.get("log-probability")), _cell(rho["mixture"])]
        )
    return f"{table(head, rows)}\n\n{_count(found['ratings'])}"


def _count(ratings: Sequence[Mapping[str, Any]]) -> str:
    """How many objectives pass which test."""
    n = len(ratings)
    better = sum(one["explained"]["full"]["low"] > 0 for one in ratings)
    worse = sum(one["explained"]["full"]["high"] < 0 for one in ratings)
    follows = sum(one["correlation"]["full"]["low"] > 0 for one in ratings)
    above = sum(one["correlation_minus_ridge"]["full"]["low"] > 0 for one in ratings)
    below = sum(one["correlation_minus_ridge"]["full"]["high"] < 0 for one in ratings)
    return (
        f"Of {n} objectives, `armorm`'s regressor explains more than the constant in {better} and less in "
        f"{worse}, by their intervals; its rank correlation lies above zero in {follows}; against the single "
        f"ridge it lies above in {above} and below in {below}."
    )


def pairs(found: Mapping[str, Any]) -> str:
    """A column a set: accuracy, and in the second table what the mixture has more."""
    sets = list(found["pairs"])
    rows, minus = [], []
    for key, label in SCORERS.items():
        cells = [_row_of(found, name, key.format(set=name)) for name in sets]
        if not any(cells):
            continue
        rows.append([label, *(NONE if c is None else _cell(c["accuracy"]) for c in cells)])
        if key != "mixture/full":
            gaps = (None if c is None else stored(c["mixture_minus_it"]) for c in cells)
            minus.append([label, *map(difference, gaps)])
    head = [
        f"{SETS[name]}: {found['pairs'][name]['n_pairs']:,} pairs, {found['pairs'][name]['n_prompts']:,} prompts"
        for name in sets
    ]
    return (
        f"{table(['share of pairs in the right order', *head], rows)}\n\n"
        f"{table(['`armorm` minus', *head], minus)}"
    )


def _row_of(found: Mapping[str, Any], name: str, key: str) -> Mapping[str, Any] | None:
    return next((row for row in found["pairs"][name]["rows"] if row["name"] == key), None)


def features(found: Mapping[str, Any]) -> str:
    """Rank correlation with raters by what is read, and the reasoning subspace against its rivals."""
    head = ["objective", *FEATURES.values(), "reasoning minus single ridge on the full state"]
    head += [f"reasoning minus {label}" for label in CONTRASTS.values()]
    rows = [
        [one["objective"]]
        + [_cell(one["correlation"][name]) for name in FEATURES]
        + [difference(stored(one["correlation_minus_ridge"]["reasoning"]))]
        + [difference(stored(one["reasoning_minus"][name])) for name in CONTRASTS]
        for one in found["ratings"]
    ]
    of_pairs = [
        [f"pairs of {SETS[name]}"]
        + [difference(stored(one["reasoning_minus"][key])) for key in CONTRASTS]
        for name, one in found["pairs"].items()
    ]
    return f"{table(head, rows)}\n\n{table(['share of pairs', *head[-len(CONTRASTS) :]], of_pairs)}"


def length(found: Mapping[str, Any]) -> str:
    """Rank correlation of scores with the number of characters, by set of pairs."""
    names = {
        "mixture/full": "`armorm`",
        "mixture/full, wide": "`armorm`, lambda up to 5",
        "without debiasing/full": "`armorm` without debiasing",
        "uniform gate/full": "uniform gate",
        "linear head/full": "`last_token`",
    }
    head = ["set", "answers", "predicted length", *names.values(), "without minus with debiasing"]
    rows = [
        [SETS[name], f"{one['n']:,}", _cell(one["predicted"])]
        + [_cell(one["scores"][key]) for key in names]
        + [difference(stored(one["before_minus_after"]))]
        for name, one in found["length"].items()
    ]
    return table(head, rows)


def debiasing(found: Mapping[str, Any]) -> str:
    """Each objective before and after, with predicted and with true length."""
    head = ["objective", "lambda by fold", "folds unresolved", "lambda up to 5", "folds unresolved"]
    head += ["with predicted length", "after", "after, lambda up to 5"]
    head += ["with length", "after", "after, lambda up to 5", "folds with the last alpha"]
    whens = ("before", "after", "after_wide")
    rows = [
        [
            *(one["objective"], _numbers(one["lambdas"]), str(one["n_unresolved"])),
            *(_numbers(one["wide_lambdas"]), str(one["n_unresolved_wide"])),
            *(_cell(one[when]["predicted"]) for when in whens),
            *(_cell(one[when]["length"]) for when in whens),
            str(one["n_last_alpha"]),
        ]
        for one in found["debiasing"]
    ]
    unresolved, wide = (
        sum(one[key] for one in found["debiasing"]) for key in ("n_unresolved", "n_unresolved_wide")
    )
    n_fits = len(found["debiasing"]) * found["fits"]["n_folds"]
    return (
        f"{table(head, rows)}\n\nUnresolved: {unresolved} of {n_fits} fits of an objective with the preset's "
        f"grid, {wide} with lambda up to 5."
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(format_number(value) for value in values)


def gates(found: Mapping[str, Any]) -> str:
    """Mean weight of each objective on the prompts of each set."""
    sets = list(found["gates"])
    names = list(next(iter(found["gates"].values())))
    rows = [[name, *(_cell(found["gates"][one][name]) for one in sets)] for name in names]
    fits = [one for one in found["gate_fits"] if one["features"] == "full"]
    kept = ", ".join(str(one["kept_step"]) for one in fits)
    scales = ", ".join(format_number(one["logit_scale"]) for one in fits)
    return (
        f"{table(['objective', *(SETS[one] for one in sets)], rows)}\n\n"
        f"Steps whose gate was kept, by fold: {kept} of at most {found['fits']['options']['steps']}; scale of the "
        f"gates: {scales}."
    )


def time(found: Mapping[str, Any] | None) -> str:
    """Both stages on synthetic states of the size of the aim."""
    if found is None:
        return "Not measured yet: `python benchmarks/armorm_fit.py`."
    setting = found["setting"]
    rows = [[row["what"], f"{row['seconds']:.2f}"] for row in found["rows"]]
    size = (
        f"{setting['rows']:,} rows x {setting['objectives']} objectives, {setting['features']} features, "
        f"{setting['pairs']:,} pairs, {setting['steps']:,} steps, gate of {setting['gate_width']}"
    )
    machine = found["machine"]
    return (
        f"{table(['seconds', 'median'], rows)}\n\n{size}; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads."
    )


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, blocks, about=__doc__.splitlines()[0]))
