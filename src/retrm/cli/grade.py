"""`retrm grade`: labels from reference answers, or from the tests of programs."""

import json as json_module
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from retrm.cli.console import err, print_json, progress, table
from retrm.cli.options import OptionalOutput

if TYPE_CHECKING:
    from retrm.data.grade import Graded

# Seconds on the processor for a program; the clock gives it four times as long.
_TIMEOUT_S = 5


def grade(
    rollouts: Path,
    /,
    *,
    output: OptionalOutput = None,
    grader: str | None = None,
    tests: Path | None = None,
    timeout: int | None = None,
    workers: int | None = None,
    json: bool = False,
) -> None:
    """Label every sampled answer right or wrong, and find its answer key for votes.

    Graders: numeric (last number), choice (last named option), exact (normalised text, after the
    last "Answer:"), math (symbolic equivalence by math-verify). The record's own `grader` is used
    unless one is given. Candidates marked as pruned are parts of answers: they get no label and are
    counted. The table has a row for each `kind` that the records name, else one for all; mixed prompts
    have right and wrong answers.

    Programs are graded by --tests, which RUNS the code of the answers on this machine, each in a
    process with limits, without network and with read-only files where the kernel allows it. That is
    containment against accidents, not against an attacker.

    Parameters
    ----------
    rollouts
        JSONL with `responses` and the reference `answer`, as retrm sample writes it.
    output
        Where to write; the input file is replaced if absent.
    grader
        The rule for all records: numeric, choice, exact or math.
    tests
        Problems with tests, in the layout of HumanEval or MBPP: the answers are programs and are run.
    timeout
        With --tests: whole seconds on the processor for each program; 5 if absent.
    workers
        With --tests: programs at a time; by default one a processor.
    json
        Print the counts as one JSON object on stdout.
    """
    from retrm.data.grade import grade_record
    from retrm.data.read import read_records
    from retrm.errors import RecipeError

    if tests is None and (timeout is not None or workers is not None):
        raise RecipeError("--timeout and --workers are for programs; add --tests FILE to run them")
    if tests is not None and grader is not None:
        raise RecipeError(f"got --tests and --grader {grader}; expected one of the two")
    if tests is not None:
        graded = _run(rollouts, tests, _TIMEOUT_S if timeout is None else timeout, workers)
    else:
        graded = (grade_record(record, grader=grader) for record in read_records(rollouts))
    counts, by_kind = _write(graded, rollouts, output or rollouts)
    if json:
        print_json(dict(counts))
        return
    rows = [
        [kind, p, f"{mixed:,}", f"{a:,}", f"{right / a:.3f}" if a else "–"]
        for kind, (p, a, right, mixed) in sorted(by_kind.items())
    ]
    columns = [
        "kind of question",
        "prompts",
        "mixed prompts",
        "answers with a label",
        "share right",
    ]
    err.print(table("graded", columns, rows))
    err.print(", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in counts.items()))


def _write(
    graded: Iterable["Graded"], source: Path, output: Path
) -> tuple[Counter[str], dict[str, list[int]]]:
    """Every row, and what was counted: in all, and of each kind of question."""
    from retrm.errors import DataError
    from retrm.files import atomic_write

    counts: Counter[str] = Counter()
    by_kind: dict[str, list[int]] = {}
    with atomic_write(output, "w") as file:
        for found in graded:
            counts.update(found.counts)
            for row in found.rows:
                file.write(json_module.dumps(row, ensure_ascii=False) + "\n")
                correct = [label for label in row["correct"] if label is not None]
                seen = by_kind.setdefault(str(row.get("kind", "all")), [0, 0, 0, 0])
                for i, value in enumerate(
                    (1, len(correct), sum(correct), 0 < sum(correct) < len(correct))
                ):
                    seen[i] += int(value)
        if not counts:
            raise DataError(f"{source} holds no records; expected the output of retrm sample")
    return counts, by_kind


def _run(rollouts: Path, tests: Path, timeout: int, workers: int | None) -> Iterator["Graded"]:
    """Answers that are run, with a word on what holds them and the progress."""
    from retrm.data.programs import TestFile, grade_programs
    from retrm.data.read import read_records
    from retrm.data.sandbox import Limits, isolation

    limits = Limits(cpu_s=timeout)
    problems = TestFile.read(tests)
    err.print(
        f"running the code of the answers on this machine, under limits; {isolation().in_words}. "
        "This contains accidents, not an attacker",
        markup=False,
    )
    total = sum(1 for _ in read_records(rollouts))
    n_run = 0
    with progress("running") as report:
        results = grade_programs(read_records(rollouts), problems, limits=limits, workers=workers)
        for done, graded in enumerate(results, start=1):
            n_run += graded.counts["programs_run"]
            report(done, total, f"{n_run:,} programs")
            yield graded
