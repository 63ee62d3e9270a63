"""Gates over every layer: the reasoning coordinates against all of them, and against random ones.

`elhsr` reads every token of every layer. `retrm_elhsr` does the same with 5 % of the coordinates, those
that the LM head hardly sees. Whether that is an economy, and whether the choice of the 5 % matters, is
asked here on SmolLM2's own answers, with the other preset heads beside it. `random_elhsr` stands for the
mean over its draws; how many of them do as well is counted, for the interval knows prompts only. A
claim would take 19 draws, each as dear as `retrm_elhsr`.

    python recipes/audit/gates.py [--rollouts FILE] [--folds 3] [--draws 3] -o docs/results/gates.json

One reading; every head is fitted out of fold by question. About half an hour on two cores, most of it
reading and the fit of `elhsr` itself; about 4 GB of memory for its features.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from retrm.backbone.load import load_backbone
from retrm.cli.console import err, out, progress, reading_progress
from retrm.cli.tables import comparison_tables
from retrm.data.load import load_table
from retrm.data.split import prompt_folds
from retrm.errors import DataError, RetrmError
from retrm.evaluation.best_of_n import Comparison
from retrm.evaluation.held_out import measure
from retrm.features.reduce import TORCH_DTYPES
from retrm.files import check_new_file, write_json
from retrm.fitting.fit import check_table, cross_fit, log_probability_of, read_for
from retrm.fitting.targets import Targets
from retrm.methods import METHODS, Method
from retrm.metrics import (
    AverageStatistic,
    PromptStatistic,
    best_of_k_statistic,
    n_at_least_as_good,
    n_mixed,
    paired_difference,
    point_estimate,
    within_prompt_auroc_statistic,
)
from retrm.records import AnswerTable

ROOT = Path(__file__).resolve().parents[2]
MODEL = "smollm2-135m"
RANDOM = "random_elhsr"
METRICS = {"within_auroc": within_prompt_auroc_statistic, "best_of_n": best_of_k_statistic}
PAIRS = (
    ("retrm_elhsr", "elhsr"),
    ("retrm_elhsr", RANDOM),
    ("retrm_elhsr", "retrm"),
    ("elhsr", "last_token"),
)


def methods(n_draws: int) -> list[Method]:
    """The presets, and ELHSR on random subspaces of the width of `retrm_elhsr`."""
    random = [
        replace(
            METHODS["retrm_elhsr"].with_changes(recipe={"subspace": f"random:5%@{draw}"}),
            name=f"{RANDOM}@{draw}",
        )
        for draw in range(n_draws)
    ]
    return [METHODS[n] for n in ("last_token", "retrm", "harp", "elhsr", "retrm_elhsr")] + random


def bytes_per_token(method: Method, n_features: int) -> int:
    """Of stored features; pooled ones cost this once an answer."""
    return n_features * TORCH_DTYPES[method.recipe.dtype].itemsize


def differences(scores: dict[str, np.ndarray], labels: np.ndarray, ids: np.ndarray) -> list[dict]:
    """Paired, with intervals over prompts; against the mean of random draws with their rank.

    `n_draws` is 0 where the second head is not random; `n_at_least_as_good` counts random draws.
    """
    rows = []
    for first, second in PAIRS:
        names = [name for name in scores if name.partition("@")[0] == second]
        for metric, made in METRICS.items():
            ours = made(scores[first], labels, ids)
            theirs = [made(scores[name], labels, ids) for name in names]
            gap = paired_difference(ours, AverageStatistic(tuple(theirs)))
            rows.append(
                {
                    **{"first": first, "second": second, "metric": metric},
                    **gap.as_dict(),
                    **draw_counts(ours, theirs if second == RANDOM else []),
                }
            )
    return rows


def draw_counts(ours: PromptStatistic, draws: Sequence[PromptStatistic]) -> dict[str, int]:
    """How many random draws do at least as well, of how many."""
    values = [point_estimate(draw) for draw in draws]
    n_better = n_at_least_as_good(point_estimate(ours), values) if values else 0
    return {"n_draws": len(values), "n_at_least_as_good": n_better}


def checked_table(
    rollouts: Path, chosen: Sequence[Method], *, n_folds: int, limit: int | None
) -> AnswerTable:
    """The answers, if all of the study can be made on them; no model is needed.

    Raises:
        DataError: a missing file, fewer answers than `limit` or fewer prompts than folds, preferences,
            ungraded answers, or no prompt with right and wrong ones.
    """
    table = load_table(rollouts)
    if limit is not None and limit > len(table):
        raise DataError(
            f"got --limit {limit}; {rollouts} holds {len(table)} answers. Ask for fewer"
        )
    if limit is not None:
        table = table.take(range(limit))
    if not np.isin(table.labels, (0.0, 1.0)).all() or table.preferences():
        raise DataError(f"{rollouts} holds more than right and wrong answers; expected them alone")
    prompt_folds(table.prompt_ids.tolist(), n_folds)
    if n_mixed(table.labels, table.prompt_ids) == 0:
        raise DataError(f"{rollouts}: no prompt with right and wrong answers; expected some")
    check_table(chosen, table)
    return table


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rollouts", type=Path, default=ROOT / "recipes" / "demo" / "rollouts.jsonl"
    )
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--limit", type=int, help="only the first so many answers (a trial)")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    for name, least in {"folds": 2, "draws": 1, "limit": 1}.items():
        got = getattr(args, name)
        if got is not None and got < least:
            parser.error(f"got --{name} {got}; expected {least} or more")
    return args


def run(args: argparse.Namespace) -> None:
    """Read, fit, compare, write."""
    chosen = methods(args.draws)
    check_new_file(args.output)
    table = checked_table(args.rollouts, chosen, n_folds=args.folds, limit=args.limit)
    backbone = load_backbone(MODEL)
    with reading_progress("reading") as on_progress:
        reading = read_for(backbone, table, chosen, on_progress=on_progress)
    targets, ids = Targets.of(table), table.prompt_ids
    scores, account, folds = {}, {}, None
    for method in chosen:
        features = reading.features[method.name]
        began = time.monotonic()
        with progress(f"fitting {method.name}") as report:
            scores[method.name], folds = cross_fit(
                method,
                features,
                targets,
                ids.tolist(),
                n_folds=args.folds,
                on_fold=lambda done, total: report(done, total, "folds"),
            )
        account[method.name] = {
            "n_features": features.n_features,
            "bytes_per_token": bytes_per_token(method, features.n_features),
            "is_pooled": features.is_pooled,
            "fit_s_per_fold": (time.monotonic() - began) / args.folds,
        }
        err.print(f"{method.name}: {account[method.name]}")
    comparison = measure(scores, table, log_probability_of(table, reading), folds=folds)
    assert isinstance(comparison, Comparison)
    out.print(*comparison_tables(comparison), sep="\n")
    gaps = differences(scores, table.labels, ids)
    for gap in gaps:
        if gap["n_draws"]:
            out.print(
                f"{gap['first']} − {gap['second']}, {gap['metric']}: {gap['n_at_least_as_good']} of "
                f"{gap['n_draws']} random draws do as well or better"
            )
    write_json(
        args.output,
        {
            "what": "gates over all layers: reasoning coordinates, random ones, all of them",
            "command": "python recipes/audit/gates.py -o docs/results/gates.json",
            "folds": args.folds,
            "model": MODEL,
            "n_answers": len(table),
            "n_tokens": reading.n_tokens,
            "reading_s": reading.elapsed_s,
            "heads": account,
            "differences": gaps,
            **json.loads(json.dumps(comparison.as_dict(), default=float)),
        },
    )


def main() -> int:
    """One study."""
    args = parse()
    try:
        run(args)
    except RetrmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
