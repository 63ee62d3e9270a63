"""`retrm calibrate`: a scorer less what the length of an answer says of its score, as a file."""

from pathlib import Path
from typing import Any

from retrm.cli.console import err, out, print_json, table
from retrm.cli.options import Output


def calibrate(
    scorer: str,
    data: str,
    /,
    *,
    output: Output,
    shape: str = "smooth",
    model: str | None = None,
    format: str = "auto",
    empty: str = "error",
    overlong: str = "error",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Learn what the length of an answer says of a scorer's scores, to take it off.

    The file opens as a scorer wherever one is named, calibrated:FILE, and finds the scorer as it was
    typed here, from the same folder. It belongs to these very weights: fitted again, the scorer is
    refused. The curve knows scores and lengths only: where longer answers are better, that is lost, too.

        retrm calibrate runs/elhsr answers.jsonl -o runs/elhsr-length.json
        retrm select calibrated:runs/elhsr-length.json rollouts.jsonl

    Parameters
    ----------
    scorer
        As for retrm score.
    data
        The reference set: JSONL, JSON, Parquet or hub:owner/name. Answers like those that will be
        scored; no labels are needed. Beyond its lengths the curve stays as it ended.
    output
        JSON file to write.
    shape
        smooth (at least 30 answers) or linear.
    model
        Backbone of log_probability, or where the backbone of the folder lies now.
    format
        Record format, if the columns fit several.
    empty
        Records with an empty answer: error, or drop (counted).
    overlong
        Answers beyond the context: error, truncate_left or skip; the last two are counted.
    device
        cpu, cuda, cuda:1, ...
    json
        Print one JSON object on stdout.
    """
    from retrm.data.load import load_table
    from retrm.files import check_new_file
    from retrm.records import check_overlong
    from retrm.scorers.length_calibrated import (
        LengthCalibratedScorer,
        LengthCurve,
        check_reference,
        lengths_of,
    )

    check_overlong(overlong)
    _check_storable(scorer)
    check_new_file(output)
    whole = load_table(data, format=format, ratings="unread", empty=empty)  # type: ignore[arg-type]
    answers = [answer for answer in whole.answers if not answer.pruned]
    lengths = lengths_of(answers)
    check_reference(lengths, shape)  # before a model is loaded
    from retrm.scorers.open import open_scorer
    from retrm.scorers.together import judge_all

    made = open_scorer(scorer, model=model, device=device)
    found = judge_all({"scorer": made}, answers, overlong=overlong)["scorer"]  # type: ignore[arg-type]
    kept = [i for i, score in enumerate(found.scores) if score == score]
    scores, lengths = found.scores[kept], lengths[kept]
    curve = LengthCurve.fit(lengths, scores, shape=shape)  # type: ignore[arg-type]
    calibrated = LengthCalibratedScorer(made, curve)
    calibrated.save(output, scorer, source=Path(data).name)
    summary = {
        "output": str(output),
        "scorer": scorer,
        "shape": shape,
        "n_answers": len(kept),
        "n_pruned": len(whole) - len(answers),
        "n_skipped": len(answers) - len(kept),
        "n_truncated": int(found.is_cut.sum()),
        "n_empty": whole.counts.get("dropped_empty", 0),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        **_correlations(scores, scores - curve.at(lengths), lengths),
    }
    _print(summary, json)


def _check_storable(scorer: str) -> None:
    """Refuse an address with a password, which would stand in the file.

    Raises:
        RecipeError: it has one.
    """
    from retrm.errors import RecipeError
    from retrm.scorers.open import shown_spec

    if shown_spec(scorer) != scorer:
        raise RecipeError(
            f"the address {shown_spec(scorer)} was given with a user and password, which the file would "
            "hold; expected an address without them. Put the key into the environment variable of the server"
        )


def _correlations(scores: Any, calibrated: Any, lengths: Any) -> dict[str, float | None]:
    """Rank correlation with the length on the reference set, before and after; None = undefined."""
    import numpy as np

    from retrm.metrics.ranks import spearman_statistic

    def rho(values: Any) -> float | None:
        # A curve that explains everything leaves rounding, whose ranks mean nothing.
        if np.ptp(values) <= 1e-9 * max(float(np.ptp(scores)), 1e-300):
            return None
        statistic = spearman_statistic(values, lengths, range(len(values)))
        return float(statistic([[1] * len(values)])[0])

    return {"length_correlation": rho(scores), "length_correlation_after": rho(calibrated)}


def _print(summary: dict[str, Any], json: bool) -> None:
    if json:
        print_json(summary)
        return
    for name, words in (
        ("n_truncated", "answers read with a prompt that was cut to fit the context"),
        ("n_skipped", "answers left out: beyond the context"),
        ("n_empty", "records left out: an empty answer"),
        ("n_pruned", "pruned candidates left out: parts of answers"),
    ):
        if summary[name]:
            err.print(f"[yellow]{summary[name]:,} {words}[/]")
    before, after = summary["length_correlation"], summary["length_correlation_after"]
    rows = [
        ["answers", f"{summary['n_answers']:,}"],
        ["lengths", f"{summary['shortest']:,} to {summary['longest']:,} characters"],
        ["rank correlation of score and length", _number(before)],
        ["the same, calibrated", _number(after)],
    ]
    out.print(table("length calibration, on the reference set itself", ["", ""], rows))
    out.print(f"calibrated:{summary['output']}", markup=False)


def _number(value: float | None) -> str:
    from retrm.reports.words import number

    return number(value)
