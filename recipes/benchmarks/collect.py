"""Take the raw scores of evaluations into docs/results/benchmarks; the page is computed from them.

    python recipes/benchmarks/collect.py runs/benchmarks/*/

One folder a backbone, with the folders of `retrm eval` on it, of `retrm fit` and of the fine-tuned peer.
Scores (no texts) are packed as BACKBONE/RUN.BENCHMARK.SCORER.jsonl.gz. What was trained, on what, and at
what cost stands in BACKBONE/trained.json: of heads it is read from their folders and the fit.json of
timed.py beside them, of the peer from its training.json. BACKBONE/overlap.json says which items stand in
the training data. Same runs give the same bytes; a backbone that is not named stays as it is.
"""

import argparse
import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from retrm.errors import DataError, RetrmError
from retrm.evaluation.run import slug
from retrm.evaluation.score_file import read_scores
from retrm.files import atomic_write, write_json

OUTPUT = Path(__file__).resolve().parents[2] / "docs" / "results" / "benchmarks"


def pack(run: Path, output: Path) -> list[str]:
    """Scores of a run, packed; names of its scorers that are no baselines."""
    scorers = []
    for file in sorted((run / "scores").glob("*.jsonl")):
        scores = read_scores(file)
        target = output / f"{run.name}.{scores.benchmark}.{slug(scores.scorer)}.jsonl.gz"
        with atomic_write(target) as out, gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed:
            packed.write(file.read_bytes())
        scorers += [scores.scorer] if scores.kind == "scorer" else []
    return sorted(set(scorers))


def overlap(run: Path) -> dict[str, Any]:
    """By benchmark what `retrm eval --training-data` found; empty where it was not asked."""
    found = json.loads((run / "evaluation.json").read_text("utf-8"))
    return dict(found.get("contamination") or {})


def trained(scorer: str) -> dict[str, Any] | None:
    """Parameters, data and cost of what was trained; None for what was not."""
    folder = Path(scorer.removeprefix("hf:"))
    if (folder / "training.json").is_file():
        return _peer(json.loads((folder / "training.json").read_text("utf-8")))
    if not (folder / "reward_model.json").is_file():
        return None
    found = json.loads((folder / "reward_model.json").read_text("utf-8"))
    fitted = found["fitted"]
    return {
        "what": "head",
        "name": found["method"],
        "n_trained": found["head"]["n_params"],
        "data": fitted.get("source"),
        "n_pairs": fitted.get("counts", {}).get("pairs"),
        "n_answers": fitted.get("n_train_answers"),
        **_cost(folder.parent / "fit.json"),
    }


def _peer(found: dict[str, Any]) -> dict[str, Any]:
    """Of a fine-tuned model."""
    return {
        "what": "peer",
        "name": found["kind"],
        "by": f"TRL {found['versions']['trl']}",
        "n_trained": found["n_trained"],
        "n_parameters": found["n_parameters"],
        "data": found["pairs"],
        "n_pairs": found["n_pairs_read"],
        "epochs": found["epochs"],
        "seconds": found["seconds"],
        "processor_seconds": found["processor_seconds"],
        "loss": found["loss"],
    }


def _cost(fit: Path) -> dict[str, Any]:
    """Of the fit that a head came from, which all heads of that fit share."""
    if not fit.is_file():
        return {}
    took = json.loads(fit.read_text("utf-8"))
    return {
        "n_heads_of_the_fit": len(took["printed"]["models"]),
        "n_tokens": took["printed"]["n_tokens"],
        "reading_seconds": round(took["printed"]["reading_s"], 1),
        "seconds": took["seconds"],
        "processor_seconds": took["processor_seconds"],
    }


def collect(folder: Path, output: Path) -> int:
    """Everything of one backbone; how many files of scores.

    Raises:
        DataError: the folder holds no run of `retrm eval` that ended.
    """
    runs = sorted(path.parent for path in folder.glob("*/evaluation.json"))
    if not runs:
        raise DataError(f"{folder} holds no folder that retrm eval wrote; expected at least one")
    if output.exists():
        shutil.rmtree(output)
    scorers = sorted({name for run in runs for name in pack(run, output)})
    found = {name: facts for name in scorers if (facts := trained(name)) is not None}
    write_json(output / "trained.json", found)
    write_json(output / "overlap.json", {run.name: overlap(run) for run in runs})
    print(f"{output}: {len(list(output.glob('*.gz')))} files of scores, {len(found)} trained")
    return len(runs)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="one a backbone")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    try:
        for folder in args.folders:
            collect(folder, args.output / folder.resolve().name)
    except RetrmError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
