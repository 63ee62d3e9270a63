"""What the page of audit results says of the three studies beside the audits.

Each function turns one file that a script of recipes/audit wrote into Markdown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from measurements import joined
from tables_in_pages import difference, stored, table

from retrm.audit.rules import ALPHA_A_SIDE, DRAWS_FOR_A_CLAIM
from retrm.reports.words import NONE, Figure, figure, metric_name, number

Results = Mapping[str, Any]

_METRICS = ("within_auroc", "best_of_n")
_GENERATOR_METRICS = {
    "within_prompt": "within prompts",
    "within_generator": "within one author",
    "matched_authors": "equally good authors",
    "unseen_authors": "unseen authors",
    "seen_authors": "seen authors",
}
_REGIMES = {"solved": "frozen, solved", "frozen": "frozen, same steps", "tuned": "LoRA"}


def gates(results: Results) -> str:
    """Every head with its cost, then the paired differences."""
    head = [
        *("head", "within-prompt AUROC", f"best of {results['n_candidates']}"),
        *("features", "bytes", "seconds to fit a fold"),
    ]
    rows = [_gates_row(row, results["heads"].get(row["name"])) for row in results["rows"]]
    gaps = [
        [
            f"`{gap['first']}` − `{gap['second']}`",
            metric_name(gap["metric"]),
            _against(stored(gap), gap["n_at_least_as_good"], gap["n_draws"]),
        ]
        for gap in results["differences"]
    ]
    note = (
        f"{results['n_prompts']:,} questions ({results['n_mixed']:,} mixed), "
        f"{results['n_answers']:,} answers, `{results['model']}`, {results['folds']} folds by question; "
        f"one reading of {results['reading_s']:.0f} s for all heads."
    )
    return joined(table(head, rows), table(["difference", "metric", ""], gaps), note)


def _gates_row(row: Results, cost: Results | None) -> list[str]:
    shown = [figure(stored(row["within_auroc"])), figure(stored(row["best_of_n"]))]
    if cost is None:
        return [row["name"], *shown, NONE, NONE, NONE]
    per = "an answer" if cost["is_pooled"] else "a token"
    return [
        *(f"`{row['name']}`", *shown, f"{cost['n_features']:,}"),
        *(f"{cost['bytes_per_token']:,} {per}", f"{cost['fit_s_per_fold']:.1f}"),
    ]


def _against(found: Figure | None, n_better: int, n_draws: int) -> str:
    """A difference; from the mean of random draws, bold only where their rank allows a claim."""
    if n_draws == 0 or found is None:
        return difference(found)
    n_further = n_better if found.value > 0 else n_draws - n_better
    is_claim = n_draws >= DRAWS_FOR_A_CLAIM and (1 + n_further) / (1 + n_draws) <= ALPHA_A_SIDE
    shown = difference(found) if is_claim else figure(found)
    return f"{shown}, {n_better} of {n_draws} draws as good or better"


def generators(results: Results) -> str:
    """The answer or its author: five figures for each set of features."""
    names = list(_GENERATOR_METRICS)
    head = ["", *_GENERATOR_METRICS.values(), "author named"]
    named = results["author_accuracy"]
    rows = [
        [
            kind,
            *(figure(stored(found.get(name))) for name in names),
            number(named.get(kind)),
        ]
        for kind, found in results["figures"].items()
    ]
    gaps = {k: v for k, v in results["differences"].items() if "seen" not in k}
    seen = {k: v for k, v in results["differences"].items() if "seen" in k}
    counts, n_draws = results["draws"]["at_least_as_good"], results["draws"]["n"]
    differences = table(
        ["difference", *_GENERATOR_METRICS.values()],
        [
            [
                k,
                *(
                    _against(
                        *(stored(v.get(name)), counts.get(name, 0)),
                        n_draws if k == "reasoning - random" else 0,
                    )
                    for name in names
                ),
            ]
            for k, v in gaps.items()
        ],
    )
    strangers = table(
        ["seen − unseen authors", ""],
        [[k.partition(":")[0], difference(stored(v))] for k, v in seen.items()],
    )
    note = (
        "`author` never reads the answer: its score is the share of right answers of the author on "
        f"other questions. The most frequent author has {number(named['most_frequent'])} of the "
        "answers."
    )
    return joined(table(head, rows), differences, strangers, note)


def finetuned(results: Results) -> str:
    """Three regimes on the same prompts, and where training put the reward."""
    found, settings = results["figures"], results["settings"]
    rows = [
        [*_split(name), *(figure(stored(metrics[m])) for m in _METRICS)]
        for name, metrics in found.items()
    ]
    head = ["regime", "read from", *(metric_name(m) for m in _METRICS)]
    gaps = [
        [name, *(_gap_of_arms(results, name, metrics, m) for m in _METRICS)]
        for name, metrics in results["differences"].items()
    ]
    note = (
        f"`{settings['model']}`, {settings['train_prompts']} prompts to learn on and "
        f"{settings['test_prompts']} others to measure on; {settings['n_draws']} random subspaces, "
        f"mean. pass@1 {number(results['pass_at_1'])}, oracle {number(results['oracle'])}."
    )
    return joined(
        table(head, rows),
        table(["difference", *(metric_name(m) for m in _METRICS)], gaps) if gaps else "",
        _moved(results["arms"]),
        note,
    )


def _gap_of_arms(results: Results, name: str, metrics: Results, metric: str) -> str:
    regime, _, pair = name.partition(": ")
    draws = results["draws"].get(regime) if pair == "reasoning - random" else None
    if draws is None:
        return difference(stored(metrics[metric]))
    return _against(stored(metrics[metric]), draws["at_least_as_good"][metric], draws["n"])


def _split(name: str) -> list[str]:
    regime, _, kind = name.partition(" ")
    return [_REGIMES[regime], kind]


def _moved(arms: Mapping[str, Results]) -> str:
    """Where the change of the states lies; chance is the share that any subspace of the size holds."""
    rows: list[Sequence[str]] = []
    for name, arm in arms.items():
        regime, kind, draw = name.split(".")
        if regime != "tuned":
            continue
        shares = arm["shares"]
        rows.append(
            [
                kind if kind != "random" else f"random, draw {draw}",
                *(number(shares[k]["before"]) for k in ("reasoning", "semantic")),
                *(number(shares[k]["after"]) for k in ("reasoning", "semantic")),
                *(number(shares[k]["of_the_change"]) for k in ("reasoning", "semantic", "random")),
                number(shares["reasoning"]["chance"]),
            ]
        )
    head = [
        *("reward read from", "energy in reasoning: before", "in semantic", "after: in reasoning"),
        *("in semantic", "of what training added: in reasoning", "in semantic"),
        *("in random draw 0", "chance"),
    ]
    return table(head, rows) if rows else ""
