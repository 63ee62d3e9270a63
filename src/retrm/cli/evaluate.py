"""`retrm eval`: any scorer on the field's benchmarks, beside trivial baselines, with intervals."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from retrm import __version__
from retrm.cli.console import err, out, print_json, print_summaries, progress
from retrm.cli.options import OptionalOutput

Names = Annotated[list[str], Parameter(consume_multiple=True)]
Paths = Annotated[list[Path], Parameter(consume_multiple=True)]


def evaluate(
    *scorers: str,
    benchmark: Names = [],  # noqa: B006  (cyclopts copies it)
    data: Names = [],  # noqa: B006
    output: OptionalOutput = None,
    scores: Paths = [],  # noqa: B006
    baselines: Names = ["longest", "shortest", "random", "log_probability"],  # noqa: B006
    training_data: Names = [],  # noqa: B006
    limit: int | None = None,
    threshold: float | None = None,
    mistakes: int = 10,
    own_family: Names = [],  # noqa: B006
    model: str | None = None,
    overlong: str = "error",
    device: str = "cpu",
    engine: str = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """How good a reward model is on the field's benchmarks, by their official rules.

    Every figure has a 95 % interval (prompts resampled) and stands beside baselines that read
    nothing; subsets on which length alone does as well are marked. All raw scores are written, so any
    figure can be computed again without the model: --scores FILE. A killed run goes on with the same
    command; each answer is read once a backbone, whatever the number of scorers and benchmarks.

        retrm eval runs/elhsr --benchmark llmbar rm_bench --data data -o runs/eval

    Parameters
    ----------
    scorers
        One or several: folder made by retrm fit; hf:PATH (sequence classifier with one output);
        vllm:URL, sglang:URL, openrlhf:URL; call:MODULE:NAME; scores:FILE; judge:MODEL?template=NAME;
        cascade:MARGIN,SCORER,judge:MODEL; or a baseline.
    benchmark
        Names, see retrm data benchmarks; several may follow.
    data
        Where the records are: a folder or file, NAME=PATH for one of several benchmarks, or hub (the
        default: each benchmark's own home). A folder that holds one folder a benchmark works for all.
    output
        Folder for scores, figures and the report.
    scores
        Files of scores that an earlier run wrote, or its folder for those of the last run in it:
        figures are computed from them, no model is read.
    baselines
        Put beside the scorers; log_probability is that of each backbone, from the same reading.
    training_data
        What the scorers were fitted on: its overlap with the benchmark is counted and reported.
    limit
        Only so many items of each subset, drawn with the seed: a first look, said in the report.
    threshold
        That scores of steps are held against (process_bench, prm_bench): by default 0, for raw scores;
        0.5 for probabilities. Give it again with --scores and to retrm compare.
    mistakes
        So many of the largest wrong margins of each scorer are shown in the report, token by token
        where the scorer can (two readings each).
    own_family
        Parts of the names of generators that are of the scorers' own family, such as qwen: whether
        their answers are preferred is then looked at, where a benchmark says who wrote what.
    model
        Where the backbone lies now, if its stored name no longer finds it.
    overlong
        Answers beyond the context: error, truncate_left or skip; the last two are counted.
    device
        cpu, cuda, cuda:1, ...
    engine
        local = in this process; ray = on the workers of a Ray cluster.
    workers
        Backbones of engine ray; by default one a GPU, or without GPUs one a machine.
    ray_address
        Of a running cluster, or auto; by default RAY_ADDRESS, else this machine alone.
    seed
        Of the intervals and of --limit.
    json
        Print one JSON object on stdout.
    """
    from retrm.scorers.open import shown_spec

    asked: Any = {
        "own_family": own_family,
        "mistakes": mistakes,
        "threshold": threshold,
        "seed": seed,
    }
    _check_request(scorers, benchmark, scores, output, overlong=overlong, mistakes=mistakes)
    if scores:
        texts, found = read_texts(scores), in_order(read_files(scores))
        known = {file.benchmark for file in found}
        texts = [data for data in texts if data.name in known]
        check_threshold(threshold, known)
        contamination = _overlaps(training_data, texts)
        run = _measured(found, texts, contamination, **asked)
        run.facts = {
            "versions": {"retrm": __version__},
            "options": {
                "scores": [str(path) for path in scores],
                "threshold": threshold,
                "seed": seed,
            },
        }
    else:
        check_threshold(threshold, benchmark)
        texts = read_benchmarks(benchmark, data, limit=limit, seed=seed)
        contamination = _overlaps(training_data, texts)
        with _opened(scorers, baselines, model, device, engine, workers, ray_address) as entrants:
            found = in_order(_score(entrants, texts, _folder(output), overlong))
            print_summaries(entrant.scorer for entrant in entrants.values())
            run = _measured(found, texts, contamination, **asked)
            run.heat = _told(entrants, run, "token_scores_of", "token by token")
            run.reasons = _told(entrants, run, "explain_of", "by objective")
        run.facts = _facts(
            {
                "scorers": [shown_spec(scorer) for scorer in scorers],
                "benchmarks": benchmark,
                "data": data or "hub",
                "baselines": baselines,
                "training_data": training_data,
                "limit": limit,
                "threshold": threshold,
                "own_family": own_family,
                "model": model,
                "overlong": overlong,
                "device": device,
                "engine": engine,
                "seed": seed,
            }
        )
    _finish(run, output, json=json)


@dataclass
class _Run:
    """Everything that a run found."""

    files: list[Any]
    tables: list[Any]
    texts: Sequence[Any]
    contamination: dict[str, Any]
    findings: list[Any]
    heat: dict[Any, Any] = field(default_factory=dict)
    reasons: dict[Any, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: what follows from scores and texts, so no time and no path."""
        return {
            "benchmarks": [table.as_dict() for table in self.tables],
            "findings": [one.as_dict() for one in self.findings],
            "contamination": {name: one.as_dict() for name, one in self.contamination.items()},
        }


def _measured(
    files: list[Any],
    texts: Sequence[Any],
    contamination: dict[str, Any],
    *,
    own_family: Sequence[str],
    mistakes: int,
    threshold: float | None,
    seed: int,
) -> _Run:
    """Tables of all benchmarks, and what else the scores tell."""
    from retrm.evaluation.findings import findings_of
    from retrm.evaluation.tables import measure

    groups = by_benchmark(files)
    tables = [
        measure(
            some,
            seed=seed,
            met=contamination[name].ids if name in contamination else (),
            threshold=threshold,
        )
        for name, some in groups.items()
    ]
    by_name = {data.name: data for data in texts}
    findings = [
        one
        for name, some in groups.items()
        for one in findings_of(
            some, by_name.get(name), own_family=own_family, n_shown=mistakes, seed=seed
        )
    ]
    return _Run(files, tables, texts, contamination, findings)


def _facts(options: Mapping[str, Any]) -> dict[str, Any]:
    """Versions and options of a run that scored."""
    from retrm.heads.artifact import library_versions

    return {"versions": library_versions(), "options": options}


def _check_request(
    scorers: Sequence[str],
    benchmarks: Sequence[str],
    scores: Sequence[Path],
    output: Path | None,
    *,
    overlong: str,
    mistakes: int,
) -> None:
    """Mistakes that need no data to be seen."""
    from retrm.errors import RecipeError
    from retrm.evaluation.benchmarks import benchmark
    from retrm.files import check_writable
    from retrm.records import check_overlong
    from retrm.reports.canvas import check_plotting

    check_overlong(overlong)
    if mistakes < 0:
        raise RecipeError(f"got --mistakes {mistakes}; expected 0 or more, for example 10")

    if scores and (scorers or benchmarks):
        raise RecipeError(
            "--scores computes figures from files alone; leave scorers and --benchmark out, or "
            "leave --scores out to score"
        )
    if not scores and not (scorers and benchmarks):
        missing = "a scorer" if not scorers else "--benchmark NAME"
        raise RecipeError(
            f"got no {missing.removeprefix('a ')}; expected {missing}, for example: retrm eval "
            "runs/elhsr --benchmark llmbar --data data -o runs/eval. An option that takes several "
            "names takes all that follow it, so name the scorers first"
        )
    for name in benchmarks:
        benchmark(name)
    if not scores and output is None:
        raise RecipeError("raw scores and the report need a folder; add -o DIR")
    if output is not None:
        check_writable(output)
        check_plotting()  # not after hours of scoring


def _folder(output: Path | None) -> Path:
    assert output is not None  # _check_request saw to it
    return output


def read_files(paths: Sequence[Path]) -> list[Any]:
    """Files of scores; a folder stands for those of its last run, and what is left out is said."""
    from retrm.evaluation.last_run import files_of_run
    from retrm.evaluation.score_file import read_scores

    files = []
    for path in paths:
        if not path.is_dir():
            _check_there(path)
            files.append(read_scores(path))
            continue
        found, earlier = files_of_run(path)
        if earlier:
            names = ", ".join(file.name for file in earlier)
            err.print(
                f"{path}: left out, since they are not of the last run: {names}",
                style="yellow",
                markup=False,
            )
        files += [read_scores(file) for file in found]
    return _without_copies(files)


def _check_there(path: Path) -> None:
    """Refuse a path without a file, and offer the nearest there is.

    Raises:
        DataError: there is none.
    """
    from retrm.errors import DataError, did_you_mean

    if path.is_file():
        return
    there = (
        sorted(file.name for file in path.parent.glob("*.jsonl")) if path.parent.is_dir() else []
    )
    raise DataError(
        f"{path} does not exist; expected a folder of retrm eval or one of its files of scores, "
        f"scores/BENCHMARK.SCORER.jsonl. {did_you_mean(path.name, there) if there else ''}".rstrip()
    )


def check_threshold(threshold: float | None, names: Iterable[str]) -> None:
    """Refuse a threshold that no benchmark would take.

    Raises:
        RecipeError: none of them holds scores against a number, or it is not finite.
    """
    from retrm.errors import RecipeError
    from retrm.evaluation.benchmarks import benchmark, has_threshold

    if threshold is None:
        return
    rules = [benchmark(name, threshold=threshold) for name in names]
    if not any(has_threshold(rule) for rule in rules):
        raise RecipeError(
            f"got --threshold {threshold:g}, but {', '.join(rule.title for rule in rules)} holds scores "
            "against no number; expected process_bench or prm_bench. Leave it out"
        )


def _without_copies(files: Sequence[Any]) -> list[Any]:
    """Each scorer once where runs share one, such as a baseline; other scores by its name are kept."""
    kept: dict[tuple[Any, ...], Any] = {}
    for file in files:
        scores = tuple((row.item.id, *row.item.scores.tolist()) for row in file.rows)
        # NaN, an over-long answer, is not equal to itself; its text is.
        kept.setdefault((file.benchmark, file.scorer, str(scores)), file)
    return list(kept.values())


def read_texts(paths: Sequence[Path]) -> list[Any]:
    """Items beside files of scores, of whole folders that retrm eval wrote; others have none."""
    from retrm.evaluation.item_file import read_items

    found: dict[str, Any] = {}
    for path in paths:
        for file in sorted((path / "items").glob("*.jsonl")):
            data = read_items(file)
            found.setdefault(data.name, data)
    return list(found.values())


def in_order(files: Sequence[Any]) -> list[Any]:
    """Benchmarks as the registry has them, scorers and then baselines by name.

    Whatever the order in which they were typed or found on disk, the same scores give the same result.
    """
    from retrm.evaluation.benchmarks import BENCHMARKS

    places = {name: place for place, name in enumerate(BENCHMARKS)}

    def key(file: Any) -> tuple[Any, ...]:
        place = places.get(file.benchmark, len(places))
        return place, file.benchmark, file.kind == "baseline", file.scorer

    return sorted(files, key=key)


def by_benchmark(files: Sequence[Any]) -> dict[str, list[Any]]:
    """Files of scores under the name of their benchmark."""
    groups: dict[str, list[Any]] = {}
    for file in files:
        groups.setdefault(file.benchmark, []).append(file)
    return groups


def read_benchmarks(
    names: Sequence[str], data: Sequence[str], *, limit: int | None = None, seed: int = 0
) -> list[Any]:
    """The items of each benchmark, told what was read."""
    from retrm.evaluation.benchmarks import benchmark
    from retrm.evaluation.benchmarks.source import open_source, places_of
    from retrm.evaluation.run import distinct_answers

    places = places_of(data, names)
    texts = []
    for name in names:
        rule = benchmark(name)
        source = open_source(places[name], hub=rule.hub, pattern=rule.pattern, name=name)
        read = rule.read(source)
        if limit is not None:
            read = read.some(limit, seed=seed)
        texts.append(read)
        answers = sum(len(item.answers) for item in read.items)
        different = len(distinct_answers([read]))
        equal = f", {different:,} of them different: equal ones are scored once"
        err.print(
            f"{rule.title}: {len(read.items):,} items, {answers:,} answers"
            f"{equal if different < answers else ''}; from {source.name}",
            markup=False,
        )
        for reason, number in read.excluded.items():
            said = f"{rule.title}: {number:,} left out: {reason}"
            err.print(said, style="yellow", markup=False)
    return texts


def _overlaps(training: Sequence[str], texts: Sequence[Any]) -> dict[str, Any]:
    """How much of each benchmark stands in the training data.

    Raises:
        RecipeError: there are no texts to compare.
    """
    if not training:
        return {}
    from retrm.errors import RecipeError
    from retrm.evaluation.contamination import overlap, training_texts

    if not texts:
        raise RecipeError(
            "--training-data needs the texts of the benchmark; give the whole folder of an earlier "
            "run to --scores, with its items"
        )

    known = training_texts(training)
    found = {data.name: overlap(known, data) for data in texts}
    for name, one in found.items():
        if one.n_items:
            err.print(f"{name}: {one.in_words}", style="yellow", markup=False)
    return found


@contextlib.contextmanager
def _opened(
    scorers: Sequence[str],
    baselines: Sequence[str],
    model: str | None,
    device: str,
    engine: str,
    workers: int | None,
    address: str | None,
) -> Iterator[dict[str, Any]]:
    """Everybody who takes part, by name."""
    from retrm.engines.base import open_engine
    from retrm.evaluation.run import entrants_of
    from retrm.scorers.open import open_scorers

    with open_engine(engine, workers=workers, address=address, device=device) as where:
        opened = open_scorers(scorers, model=model, device=device, engine=where)
        yield entrants_of(opened, baselines)


def _score(entrants: Any, texts: Sequence[Any], folder: Path, overlong: str) -> list[Any]:
    from retrm.evaluation.run import evaluate as run

    with progress("scoring") as report:

        def on_progress(state: Any) -> None:
            note = f"{', '.join(state.scorers)}, {state.done / max(state.elapsed_s, 1e-9):,.1f} answers/s"
            report(state.done, state.total, note, elapsed_s=state.elapsed_s)

        return run(
            entrants,
            texts,
            folder,
            overlong=overlong,
            on_progress=on_progress,  # type: ignore[arg-type]
        )


def _told(entrants: Mapping[str, Any], run: _Run, method: str, words: str) -> dict[Any, Any]:
    """What scorers that can say more say of the answers of the mistakes that are shown."""
    texts = {data.name: {item.id: item for item in data.items} for data in run.texts}
    cut = {(file.benchmark, file.scorer): _cut(file) for file in run.files}
    wanted = [
        (one.benchmark, one.scorer, shown.item, candidate)
        for one in run.findings
        if one.mistakes is not None and _can(entrants[one.scorer].scorer, method)
        for shown in one.mistakes.shown
        for candidate in (shown.preferred, shown.other)
        if (shown.item, candidate) not in cut[one.benchmark, one.scorer]
    ]
    found = {}
    with progress(f"reading mistakes {words}") as report:
        for done, key in enumerate(wanted, 1):
            benchmark, scorer, item, candidate = key
            answer = texts[benchmark][item].answers[candidate]
            found[key] = getattr(entrants[scorer].scorer, method)(answer)
            report(done, len(wanted), scorer)
    return found


def _can(scorer: Any, method: str) -> bool:
    able = {"token_scores_of": "shows_tokens", "explain_of": "explains"}[method]
    return hasattr(scorer, method) and getattr(scorer, able, True)


def _cut(file: Any) -> set[tuple[str, int]]:
    """Answers whose prompt was cut: they cannot be read as they stand."""
    return {
        (row.item.id, candidate)
        for row in file.rows
        for candidate, is_cut in enumerate(row.is_cut)
        if is_cut
    }


def _finish(run: _Run, output: Path | None, *, json: bool) -> None:
    from retrm.cli.tables import benchmark_tables
    from retrm.files import write_json
    from retrm.reports.evaluation_page import write_report

    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "evaluation.json", run.as_dict())
        write_report(
            output,
            run.tables,
            run.files,
            run.texts,
            run.contamination,
            findings=run.findings,
            heat=run.heat,
            reasons=run.reasons,
            facts=run.facts,
        )
    if json:
        print_json(run.as_dict())
        return
    for table in run.tables:
        out.print(*benchmark_tables(table, run.contamination.get(table.name)), sep="\n")
    if output is not None:
        err.print(f"scores, figures and report.html: {output}", markup=False)
