"""`retrm score`: a score for every row of a file, in its order, in bounded memory."""

import contextlib
import json as json_module
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retrm.cli.console import err, print_json, print_summaries, progress
from retrm.cli.estimates import print_score_estimate
from retrm.cli.options import OptionalOutput

ROWS_PER_CHUNK = 256


def score(
    scorer: str,
    data: str,
    /,
    *,
    output: OptionalOutput = None,
    model: str | None = None,
    format: str = "auto",
    empty: str = "error",
    overlong: str = "error",
    device: str = "cpu",
    engine: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    explain: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Write every input row, in input order, with a `score` added.

    Rows with several answers get a list, pairs get {"chosen": ..., "rejected": ...}. Rows stream, so
    files of any length fit in memory. The output file appears when it is whole.

    Parameters
    ----------
    scorer
        Folder made by retrm fit; hf:PATH for a Hugging Face sequence classifier; judge:MODEL?... for a
        generative judge, whose scores compare the answers to one prompt; or shortest, longest, random,
        log_probability.
    data
        JSONL, JSON, Parquet or hub:owner/name.
    output
        JSONL file to write; stdout if absent.
    model
        Backbone of log_probability, or where the backbone of the folder lies now.
    format
        Record format, if the columns fit several.
    empty
        Records with an empty answer: error, or drop (not scored: the row keeps its place, with score
        null, and is counted).
    overlong
        Answers beyond the context: error, truncate_left or skip (score null, counted).
    device
        cpu, cuda, cuda:1, ...
    engine
        local = in this process; ray = on the workers of a Ray cluster, with the same scores.
    workers
        Backbones of engine ray; by default one a GPU, or without GPUs one a machine.
    ray_address
        Of a running cluster, or auto; by default RAY_ADDRESS, else this machine alone.
    explain
        Add `objectives` to each row: what each objective gives the answer, its weight by the prompt, and
        its contribution; the contributions sum to the score. For models of several objectives (armorm).
    dry_run
        Print tokens, seconds and memory, and stop; the whole file is read, so mistakes in it show as
        in a real run. A short trial is made for the seconds.
    json
        Print a summary as one JSON object on stdout; needs an output file, or --dry-run.
    """
    from retrm.data.load import check_empty, iter_parsed, iter_with_empty
    from retrm.engines.base import open_engine
    from retrm.errors import RecipeError
    from retrm.records import check_overlong

    check_overlong(overlong)
    check_empty(empty)
    if json and output is None and not dry_run:
        raise RecipeError(
            "--json prints a summary on stdout, where the rows would go; add --output"
        )
    rows = (
        iter_with_empty(data, format=format, ratings="unread")
        if empty == "drop"
        else iter_parsed(data, format=format, ratings="unread")
    )
    first = next(rows, None)  # mistakes in the file surface before a model is loaded
    from retrm.scorers.estimate import estimate_scoring
    from retrm.scorers.open import open_scorer

    counts = {"rows": 0, "answers": 0, "skipped": 0, **({"empty": 0} if empty == "drop" else {})}
    with open_engine(engine, workers=workers, address=ray_address, device=device) as where:
        made = open_scorer(scorer, model=model, device=device, engine=where)
        if explain:
            _check_explains(made)
        if dry_run:
            parts = _chunks(first, rows)
            answers = (_answers(part) for part in parts)
            print_score_estimate(estimate_scoring(made, answers, overlong=overlong), json=json)
            return
        with _target(output) as write, progress("scoring") as report:
            for chunk, scores, why in _scored(
                made, _chunks(first, rows), overlong, explain=explain
            ):
                counts["answers"] += len(scores)
                counts["skipped"] += int(np.isnan(scores).sum())
                counts["rows"] += len(chunk)
                if empty == "drop":
                    counts["empty"] += sum(parsed is None for _, parsed in chunk)
                for row in _rows(chunk, scores, why):
                    write(row)
                report(counts["rows"], counts["rows"], f"{counts['answers']:,} answers")
        print_summaries([made])
    if json:
        print_json({**counts, "output": str(output)})
    else:
        err.print(", ".join(f"{name} {n:,}" for name, n in counts.items()))


def _check_explains(scorer: Any) -> None:
    from retrm.errors import RecipeError
    from retrm.scorers.reward_model import RewardModel

    if not (isinstance(scorer, RewardModel) and scorer.explains):
        raise RecipeError(
            f"--explain shows what each objective adds, and the score of {scorer.name} is no sum over "
            "objectives; expected a model that retrm fit --method armorm made. Leave --explain out"
        )


def _scored(
    scorer: Any, chunks: Iterator[list[Any]], overlong: str, *, explain: bool = False
) -> Iterator[tuple[list[Any], np.ndarray, list[Any] | None]]:
    """Each chunk with its scores and perhaps its objectives, in order; workers have several at a time."""
    begun: deque[list[Any]] = deque()

    def answers() -> Iterator[list[Any]]:
        for chunk in chunks:
            begun.append(chunk)
            yield _answers(chunk)

    if not explain:
        for scores in _score_chunks(scorer, answers(), overlong):
            yield begun.popleft(), scores, None
        return
    for found in scorer.explain_chunks(answers(), overlong=overlong):
        scores = np.array([np.nan if one is None else one.score for one in found])
        yield begun.popleft(), scores, [one and one.rows() for one in found]


def _answers(chunk: list[Any]) -> list[Any]:
    """Of all records but those that were dropped for an empty answer."""
    return [answer for _, parsed in chunk if parsed is not None for answer in parsed.answers]


def _rows(chunk: list[Any], scores: np.ndarray, why: list[Any] | None) -> Iterator[dict[str, Any]]:
    start = 0
    for record, parsed in chunk:
        if parsed is None:
            added = {"score": None} | ({} if why is None else {"objectives": None})
            yield {**record.fields, **added}
            continue
        stop = start + len(parsed.answers)
        value = parsed.score_value(scores[start:stop].tolist())
        row = {**record.fields, "score": _null_for_nan(value)}
        yield row if why is None else row | {"objectives": parsed.placed(why[start:stop])}
        start = stop


def _score_chunks(scorer: Any, chunks: Iterator[list[Any]], overlong: str) -> Iterator[np.ndarray]:
    from retrm.scorers.together import check_cuts, judge_chunks

    check_cuts(scorer, overlong)  # type: ignore[arg-type]
    for found in judge_chunks({"scorer": scorer}, chunks, overlong=overlong):  # type: ignore[arg-type]
        yield found["scorer"].scores


def _chunks(first: Any, rest: Iterator[Any]) -> Iterator[list[Any]]:
    if first is None:
        return
    chunk = [first]
    n_answers = len(_answers(chunk))
    for item in rest:
        # Rows without answers count as well, or a chunk could grow without end.
        if max(n_answers, len(chunk)) >= ROWS_PER_CHUNK:
            yield chunk
            chunk, n_answers = [], 0
        chunk.append(item)
        n_answers += len(_answers([item]))
    yield chunk


@contextlib.contextmanager
def _target(output: Path | None) -> Iterator[Any]:
    from retrm.files import atomic_write

    if output is None:
        yield lambda row: sys.stdout.write(_line(row))
        return
    with atomic_write(output, "w") as file:
        yield lambda row: file.write(_line(row))


def _line(row: dict[str, Any]) -> str:
    return json_module.dumps(row, ensure_ascii=False, default=str) + "\n"


def _null_for_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_null_for_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: _null_for_nan(item) for key, item in value.items()}
    return None if value != value else value
