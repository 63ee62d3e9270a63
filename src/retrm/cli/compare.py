"""`retrm compare`: two scorers on the same items, or the items under several scorers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from retrm.cli.console import err, out, print_json
from retrm.cli.options import OptionalOutput

Names = Annotated[list[str], Parameter(consume_multiple=True)]


def compare(
    *sources: Path,
    benchmark: Names = [],  # noqa: B006  (cyclopts copies it)
    baselines: bool = False,
    shown: int = 5,
    threshold: float | None = None,
    output: OptionalOutput = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Whether two reward models really differ, from the scores that retrm eval wrote.

    Two scorers: every official figure of both with the paired difference, what difference so many
    items could show, McNemar for each subset, how often they agree, and the items on which they differ
    most. Three or more: the differences of all pairs, and the items themselves: which ones good
    scorers get wrong and bad ones right. Only benchmarks that all of them have are compared.

        retrm compare runs/eval-a runs/eval-b
        retrm compare runs/eval/scores/rmb.runs-elhsr.jsonl runs/eval/scores/rmb.longest.jsonl

    Parameters
    ----------
    sources
        Folders of retrm eval, of which every scorer of the last run takes part, or single files of
        scores, scores/BENCHMARK.SCORER.jsonl.
    benchmark
        Only these of the benchmarks that all have; several may follow.
    baselines
        Let the baselines of folders take part as well.
    shown
        Number of items to print with their texts; 0 = none.
    threshold
        That scores of steps are held against (process_bench, prm_bench), as for retrm eval.
    output
        Folder for comparison.json, which holds everything.
    seed
        Of the intervals.
    json
        Print one JSON object on stdout.
    """
    from retrm.cli.comparison_tables import headline_tables, item_tables, scorer_tables
    from retrm.cli.evaluate import check_threshold
    from retrm.evaluation.comparison import compare_headlines, compare_scorers
    from retrm.evaluation.item_analysis import analyse_items
    from retrm.files import check_writable, write_json

    if output is not None:
        check_writable(output)
    groups = common_benchmarks(read_sources(sources, baselines=baselines), benchmark)
    check_threshold(threshold, groups)
    asked: Any = {"seed": seed, "threshold": threshold}
    compared, headlines, items = [], [], []
    for name, files in groups.items():
        texts = texts_of(sources, name)
        if len(files) == 2:
            compared.append(compare_scorers(*files, **asked))
            made = scorer_tables(compared[-1], texts, shown)
        else:
            headlines.append(compare_headlines(files, **asked))
            items.append(analyse_items(files, **asked))
            made = [*headline_tables(headlines[-1]), *item_tables(items[-1], texts, shown)]
        if not json:
            out.print(*made, sep="\n")
    result = {
        "comparisons": [one.as_dict() for one in compared],
        "headlines": [one.as_dict() for one in headlines],
        "items": [one.as_dict() for one in items],
    }
    if output is not None:
        write_json(output / "comparison.json", result)
        err.print(f"everything in figures: {output / 'comparison.json'}", markup=False)
    if json:
        print_json(result)


def read_sources(sources: Sequence[Path], *, baselines: bool) -> list[Any]:
    """Scores of everybody who takes part, under names that are unique inside a benchmark."""
    from dataclasses import replace

    from retrm.cli.evaluate import read_files

    found = []
    for source in sources:
        files = read_files([source])
        if source.is_dir() and not baselines:
            scorers = [file for file in files if file.kind == "scorer"]
            files = scorers or files  # a folder of nothing but baselines was meant
        found += [(file, source) for file in files]
    keys = [(file.benchmark, file.scorer) for file, _ in found]
    return [
        replace(file, scorer=f"{file.scorer} ({source})") if keys.count(key) > 1 else file
        for (file, source), key in zip(found, keys, strict=True)
    ]


def common_benchmarks(files: Sequence[Any], wanted: Sequence[str]) -> Mapping[str, list[Any]]:
    """Files by benchmark, of those that every scorer has; told what is left out."""
    from retrm.cli.evaluate import by_benchmark
    from retrm.errors import DataError, did_you_mean

    groups = by_benchmark(files)
    for name in wanted:
        if name not in groups:
            raise DataError(f"nobody has scores of {name!r}. {did_you_mean(name, groups)}")
    taken = {name: some for name, some in groups.items() if not wanted or name in wanted}
    n_scorers = max(map(len, taken.values()), default=0)
    if n_scorers < 2:
        names = ", ".join(f"{file.scorer} on {file.benchmark}" for file in files) or "none"
        raise DataError(
            f"got scores of {names}; expected at least two scorers on the same benchmark, for "
            "example: retrm compare runs/eval-a runs/eval-b"
        )
    for name, some in taken.items():
        if len(some) < n_scorers:
            err.print(
                f"{name}: only {', '.join(file.scorer for file in some)} of {n_scorers} "
                "scorers; left out",
                style="yellow",
                markup=False,
            )
    return {name: some for name, some in taken.items() if len(some) == n_scorers}


def texts_of(sources: Sequence[Path], benchmark: str) -> Mapping[str, Any]:
    """Items with texts by id, from the first place that has them; none without."""
    from retrm.evaluation.item_file import read_items

    for source in sources:
        folder = source if source.is_dir() else source.absolute().parent.parent
        path = folder / "items" / f"{benchmark}.jsonl"
        if path.exists():
            return {item.id: item for item in read_items(path).items}
    return {}
