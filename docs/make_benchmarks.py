"""Write the tables of docs/results/benchmarks.md from the raw scores; --check only says if they are old."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tables_in_pages import difference, table, write_or_check

from retrm.evaluation.benchmarks import BENCHMARKS, benchmark
from retrm.evaluation.score_file import ScoreFile, read_scores
from retrm.evaluation.tables import FigureRow, measure
from retrm.metrics import Interval, format_number
from retrm.reports.words import NONE, figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "benchmarks"
PAGE = ROOT / "docs" / "results" / "benchmarks.md"
NOTHING = "Nothing is measured yet."
# What a table shows: metric and subset as the benchmark calls them, and the title of the column. Where
# a metric ends in *, the first one that begins so; {ending} is the rest of its name.
SHOWN: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "llmbar": (
        ("mean of sets", "Adversarial", "adversarial sets, mean"),
        *(
            ("accuracy", name, name)
            for name in ("Natural", "Neighbor", "GPTInst", "GPTOut", "Manual")
        ),
    ),
    "rm_bench": (
        ("average", "", "average without math"),
        *((name, "", name) for name in ("easy", "normal", "hard")),
        *(("average", name, name) for name in ("chat", "code", "safety")),
    ),
    "rmb": (
        ("mean accuracy", "", "mean"),
        ("accuracy", "helpful pairwise", "helpful, pairs"),
        ("accuracy", "helpful BoN", "helpful, lists"),
        ("accuracy", "harmless pairwise", "harmless, pairs"),
        ("accuracy", "harmless BoN", "harmless, lists"),
    ),
    "process_bench": (
        ("mean F1", "", "F1"),
        ("acc1*", "gsm8k", "first wrong step found"),
        ("acc2*", "gsm8k", "right solutions passed"),
        ("mean F1, threshold*", "", "F1, threshold chosen on these items"),
    ),
    "best_of_n": (
        ("accuracy@all*", "", "best of all{ending}"),
        ("accuracy@8", "", "best of 8"),
        ("within-prompt AUROC", "", "within-prompt AUROC"),
    ),
}
# Of a benchmark that is not there.
MOST_COLUMNS = 6
COSTS: Mapping[str, str] = {
    "n_tokens": "tokens read",
    "processor_seconds": "seconds on the processor",
    "seconds": "seconds on the clock",
    "reading_seconds": "of these reading",
}
# Figures that no scorer changes, told below the table.
BOUNDS = ("pass@1", "oracle", "majority vote")
RUNS: Mapping[str, str] = {
    "gsm8k": "GSM8K, answers of 44 models to a question",
    "humaneval": "HumanEval, 100 samples of CodeGen-16B for a problem",
}


@dataclass(frozen=True)
class Run:
    """Everybody's scores of one backbone on the same items.

    Attributes:
        backbone: its name.
        title: of what was measured.
        files: one a scorer, by their short names; heads first, then the peer, then baselines.
        peer: short name of the fine-tuned model; None where there is none.
        met: ids of items that stand in the training data; None where nobody looked.
        trained: what is known of everything trained, by short name.
    """

    backbone: str
    title: str
    files: tuple[ScoreFile, ...]
    peer: str | None
    met: tuple[str, ...] | None
    trained: Mapping[str, Mapping[str, Any]]

    @property
    def benchmark(self) -> str:
        """Its name."""
        return self.files[0].benchmark

    @property
    def heads(self) -> list[str]:
        """Short names of the scorers that are neither the peer nor baselines."""
        return [f.scorer for f in self.files if f.kind == "scorer" and f.scorer != self.peer]


def blocks() -> dict[str, str]:
    """Every block of the page."""
    runs = stored(RESULTS)
    return {
        "benchmarks-claim": claim(runs) or NOTHING,
        "benchmarks-headlines": headlines(runs) or NOTHING,
        "benchmarks-trained": trained(runs) or NOTHING,
        "benchmarks-details": details(runs) or NOTHING,
        "benchmarks-missing": missing(runs),
    }


# ------------------------------------------------------------------------------------- the files


def stored(results: Path) -> list[Run]:
    """Runs in the order of the backbones and benchmarks; scores of the same items meet in one.

    Raises:
        ValueError: a scorer of one backbone gave different scores to the same items.
    """
    found = []
    for folder in sorted(path.parent for path in results.glob("*/trained.json")):
        facts = json.loads((folder / "trained.json").read_text("utf-8"))
        overlap = json.loads((folder / "overlap.json").read_text("utf-8"))
        groups: dict[tuple[str, frozenset[str]], dict[str, tuple[str, ScoreFile]]] = {}
        for path in sorted(folder.glob("*.jsonl.gz")):
            scores = read_scores(path)
            name = path.name.split(f".{scores.benchmark}.")[0]
            group = groups.setdefault((scores.benchmark, _ids(scores)), {})
            known = group.setdefault(scores.scorer, (name, scores))[1]
            if [row.item.scores.tolist() for row in known.rows] != [
                row.item.scores.tolist() for row in scores.rows
            ]:
                raise ValueError(f"{path}: other scores of {scores.scorer} for the same items")
        found += [
            _run(folder.name, list(group.values()), facts, overlap) for group in groups.values()
        ]
    order = [*SHOWN, *(name for name in BENCHMARKS if name not in SHOWN)]
    with_peer = {run.backbone for run in found if run.peer is not None}
    return sorted(
        found,
        key=lambda run: (
            *(order.index(run.benchmark), run.title),
            *(run.backbone not in with_peer, run.backbone),
        ),
    )


def _ids(scores: ScoreFile) -> frozenset[str]:
    return frozenset(row.item.id for row in scores.rows)


def _run(
    backbone: str,
    members: Sequence[tuple[str, ScoreFile]],
    facts: Mapping[str, Mapping[str, Any]],
    overlap: Mapping[str, Mapping[str, Any]],
) -> Run:
    names = {f.scorer: _short(f.scorer, facts) for _, f in members}
    peer = next((names[s] for s in names if facts.get(s, {}).get("what") == "peer"), None)
    order = ["last_token", "retrm", "elhsr", peer]
    files = [replace(f, scorer=names[f.scorer]) for _, f in members]
    files.sort(key=lambda f: (f.kind == "baseline", _place(f.scorer, order), f.scorer))
    found = [overlap.get(run, {}).get(f.benchmark) for run, f in members]
    looked = [one for one in found if one is not None]
    title = next((RUNS[run] for run, _ in members if run in RUNS), None)
    return Run(
        backbone=backbone,
        title=title or benchmark(files[0].benchmark).title,
        files=tuple(files),
        peer=peer,
        met=tuple(sorted({i for one in looked for i in one["ids"]})) if looked else None,
        trained={names[s]: facts[s] for s in names if s in facts},
    )


def _short(scorer: str, facts: Mapping[str, Mapping[str, Any]]) -> str:
    """A method, or how the peer was trained; baselines keep their names."""
    known = facts.get(scorer)
    if known is None:
        return scorer
    return f"fine-tuned ({known['name']})" if known["what"] == "peer" else str(known["name"])


def _place(name: str, order: Sequence[str | None]) -> int:
    return order.index(name) if name in order else len(order)


# ------------------------------------------------------------------------------------ the tables


def rows_of(run: Run) -> dict[str, tuple[FigureRow, ...]]:
    """Figures by scorer; heads have their difference to the peer beside those to baselines."""
    found = measure(run.files)
    rows = {name: found.of(name) for name in found.scorers}
    if run.peer is not None and run.heads:
        beside = [replace(f, kind="baseline") if f.scorer == run.peer else f for f in run.files]
        table = measure(beside)
        rows |= {name: table.of(name) for name in run.heads}
    return rows


def pick(rows: Sequence[FigureRow], metric: str, subset: str) -> FigureRow | None:
    """The figure of a column."""
    for row in rows:
        is_it = row.metric.startswith(metric[:-1]) if metric.endswith("*") else row.metric == metric
        if is_it and row.subset == subset:
            return row
    return None


def columns(name: str, rows: Sequence[FigureRow]) -> list[tuple[str, str, str]]:
    """What is shown of a benchmark: the chosen columns, else the headline and some official ones."""
    if name in SHOWN:
        return [
            (metric, subset, title.format(ending=row.metric.removeprefix(metric.rstrip("*"))))
            for metric, subset, title in SHOWN[name]
            if (row := pick(rows, metric, subset)) is not None
        ]
    official = sorted((r for r in rows if r.is_official), key=lambda row: not row.is_headline)
    return [(r.metric, r.subset, f"{r.subset} {r.metric}".strip()) for r in official[:MOST_COLUMNS]]


def headlines(runs: Sequence[Run]) -> str:
    """One table a backbone and kind of training data: scorers down, benchmarks across."""
    made = []
    for backbone in dict.fromkeys(run.backbone for run in runs):
        of = [run for run in runs if run.backbone == backbone]
        for data in dict.fromkeys(_data(run) for run in of):
            same = [run for run in of if _data(run) == data]
            made.append(f"**`{backbone}`, heads fitted on `{data}`**\n\n{_across(same)}")
    return "\n\n".join(made)


def _data(run: Run) -> str:
    return str(next((one["data"] for one in run.trained.values()), NONE))


def _across(runs: Sequence[Run]) -> str:
    columns: list[tuple[str, Mapping[str, FigureRow | None]]] = []
    for run in runs:
        rows = rows_of(run)
        for metric, subset, title in _firsts(run.benchmark, rows):
            cells = {name: pick(of, metric, subset) for name, of in rows.items()}
            n = next(row.n for row in cells.values() if row is not None)
            columns.append((f"{run.title.partition(',')[0]}: {title} (n {n:,})", cells))
    names = list(dict.fromkeys(f.scorer for run in runs for f in run.files))
    baselines = {f.scorer for run in runs for f in run.files if f.kind == "baseline"}
    names.sort(key=lambda name: name in baselines)
    lines = [
        [_name(name, baselines), *(_cell(cells.get(name)) for _, cells in columns)]
        for name in names
    ]
    guess = ["chance", *(_chance(cells) for _, cells in columns)]
    return table(["", *(title for title, _ in columns)], [*lines, guess])


def _firsts(name: str, rows: Mapping[str, Sequence[FigureRow]]) -> Sequence[tuple[str, str, str]]:
    """What the table of headlines shows: by a chosen threshold where baselines know no other."""
    shown = columns(name, next(iter(rows.values())))
    if name == "best_of_n":
        return shown
    return shown[-1:] if name == "process_bench" else shown[:1]


def details(runs: Sequence[Run]) -> str:
    """A section a benchmark, in it a table a backbone."""
    made = []
    for title in dict.fromkeys(run.title for run in runs):
        made.append(f"### {title}")
        made += [one_table(run) for run in runs if run.title == title]
    return "\n\n".join(made)


def one_table(run: Run) -> str:
    """Scorers down, figures across, what must be known of the items below."""
    found = measure(run.files, met=run.met or ())
    rows = rows_of(run)
    first_of = rows[found.scorers[0]]
    shown = columns(run.benchmark, first_of)
    counts = [pick(first_of, *one[:2]) for one in shown]
    titles = [f"{t} (n {c.n:,})" for (_, _, t), c in zip(shown, counts, strict=True) if c]
    heads = ["minus the best baseline", *(["minus the fine-tuned"] if run.peer else [])]
    baselines = {f.scorer for f in run.files if f.kind == "baseline"}
    compared = _firsts(run.benchmark, rows)[0]
    lines = []
    for name, of in rows.items():
        first = pick(of, *compared[:2])
        margins = [_margin(first, run.peer), *([_to_peer(first, run.peer)] if run.peer else [])]
        cells = [_cell(pick(of, *one[:2])) for one in shown]
        lines.append([_name(name, baselines), *cells, *margins])
    guesses = [_chance({name: pick(of, *one[:2]) for name, of in rows.items()}) for one in shown]
    lines.append(["chance", *guesses, *([NONE] * len(heads))])
    notes = "".join(f"- {note}\n" for note in (*_bounds(rows), *_overlap(run), *found.notes))
    counted = f"{found.n_items:,} items, {found.n_clusters:,} prompts"
    left = {**found.excluded, **{f"too long for {k}": n for k, n in found.n_overlong.items()}}
    if left:
        counted += "; left out: " + ", ".join(f"{n:,} ({why})" for why, n in left.items())
    title = f"`{run.backbone}`: {counted}."
    return f"{title}\n\n{table(['', *titles, *heads], lines)}\n\n{notes}".rstrip()


def _name(name: str, baselines: Iterable[str]) -> str:
    return name.replace("_", "-") if name in baselines else f"`{name}`" if "(" not in name else name


def _cell(row: FigureRow | None) -> str:
    if row is None:
        return NONE
    return _words(row.value) + (" !" if row.beaten_by else "")


def _words(found: Interval | None) -> str:
    """A figure; that no resample moves it is no certainty, and is said instead of its ends."""
    if found is not None and found.low == found.high:
        return f"{format_number(found.value)} (no spread)"
    return figure(found)


def _chance(rows: Mapping[str, FigureRow | None]) -> str:
    """What guessing reaches at a figure."""
    chance = next((row.chance for row in rows.values() if row is not None), None)
    return NONE if chance is None else format_number(chance)


def _margin(row: FigureRow | None, peer: str | None) -> str:
    """To the baseline that is hardest to beat."""
    minus = {} if row is None else {k: v for k, v in row.minus.items() if k != peer}
    if not minus:
        return NONE
    name, least = min(minus.items(), key=lambda pair: pair[1].value)
    return f"{_difference(least)} ({name.replace('_', '-')})"


def _to_peer(row: FigureRow | None, peer: str | None) -> str:
    return NONE if row is None or peer not in row.minus else _difference(row.minus[peer])


def _difference(found: Interval) -> str:
    return difference(found) if found.low < found.high else _words(found)


def _bounds(rows: Mapping[str, Sequence[FigureRow]]) -> list[str]:
    first = next(iter(rows.values()))
    found = [(name, pick(first, name, "")) for name in BOUNDS]
    words = [f"{name} {_words(row.value)}" for name, row in found if row is not None]
    return [f"whatever the scores: {', '.join(words)}"] if words else []


def _overlap(run: Run) -> list[str]:
    if run.met is None:
        return []
    n = len(_ids(run.files[0]))
    return [f"{len(run.met):,} of {n:,} items stand in the data that heads were fitted on"]


# ------------------------------------------------------------------------------------- the claim


def claim(runs: Sequence[Run]) -> str:
    """Every head beside the fine-tuned model of its backbone, and what that says, counted."""
    made = []
    for backbone in dict.fromkeys(run.backbone for run in runs):
        with_peer = [r for r in runs if r.backbone == backbone and r.peer is not None and r.heads]
        if with_peer:
            made.append(_claim_of(backbone, with_peer))
    return "\n\n".join(made)


def _claim_of(backbone: str, runs: Sequence[Run]) -> str:
    peer = runs[0].peer
    assert peer is not None
    theirs = runs[0].trained[peer]
    measured = [(run, rows_of(run)) for run in runs]
    lines, all_differences = [], []
    for name in runs[0].heads:
        ours = runs[0].trained[name]
        firsts = [pick(rows[name], *_firsts(run.benchmark, rows)[0][:2]) for run, rows in measured]
        minus = [row.minus.get(peer) for row in firsts if row is not None]
        all_differences += [one for one in minus if one is not None]
        lines.append(
            [
                f"`{name}`",
                f"{ours['n_trained']:,}",
                f"{ours['n_trained'] / theirs['n_parameters']:.5%}",
                f"{ours['n_trained'] / theirs['n_trained']:.3%}",
                *_seconds(ours, theirs),
                *(NONE if one is None else _difference(one) for one in minus),
            ]
        )
    titles = [f"{run.title} minus {peer}" for run in runs]
    head = [
        *("head", "parameters", "of the model's", "of those fine-tuned"),
        "seconds on the processor, all heads and the reading (of the fine-tuning's)",
        "seconds on the clock without the reading (of the fine-tuning's)",
    ]
    counted = (
        f"`{backbone}`: {peer} trains {theirs['n_trained']:,} of {theirs['n_parameters']:,} "
        f"parameters on {theirs['n_pairs']:,} pairs in {theirs['processor_seconds']:,.0f} s on the "
        f"processor ({theirs['seconds']:,.0f} s on the clock). Its training loss on the way: "
        f"{', '.join(format_number(loss) for loss in theirs['loss'])}; log 2 = .693 is that of a "
        f"model that knows nothing. {_verdict(all_differences)}"
    )
    return f"{counted}\n\n{table([*head, *titles], lines)}"


def _seconds(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """On the processor with the reading; on the clock without it, where both are known."""
    if "processor_seconds" not in ours:
        return [NONE, NONE]
    with_it = ours["processor_seconds"]
    without = ours["seconds"] - ours["reading_seconds"]
    return [
        f"{with_it:,.0f} ({with_it / theirs['processor_seconds']:.0%})",
        f"{without:,.0f} ({without / theirs['seconds']:.1%})",
    ]


def _verdict(differences: Sequence[Interval]) -> str:
    above = sum(one.low > 0 for one in differences)
    below = sum(one.high < 0 for one in differences)
    return (
        f"Of {len(differences)} differences of a head to it {above} lie above zero by their interval, "
        f"{below} below, {len(differences) - above - below} are not told apart."
    )


def trained(runs: Sequence[Run]) -> str:
    """What was trained, on what, at what cost."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        names = [f.scorer for f in run.files if f.scorer in run.trained]
        for name, one in ((name, run.trained[name]) for name in names):
            lines[run.backbone, one["data"], name] = [
                f"`{run.backbone}`",
                _name(name, ()),
                f"`{one['data']}`",
                _amount(one),
                f"{one['n_trained']:,}",
                *(_count(one, key) for key in COSTS),
            ]
    head = ["backbone", "trained", "on", "of", "parameters", *COSTS.values()]
    backbones = list(dict.fromkeys(run.backbone for run in runs))
    order = sorted(lines, key=lambda key: (backbones.index(key[0]), key[1]))
    return table(head, [lines[key] for key in order]) if lines else ""


def _amount(one: Mapping[str, Any]) -> str:
    if one.get("n_pairs"):
        return f"{one['n_pairs']:,} pairs"
    return f"{one['n_answers']:,} answers" if one.get("n_answers") else NONE


def _count(one: Mapping[str, Any], key: str) -> str:
    return f"{one[key]:,.0f}" if one.get(key) is not None else NONE


def missing(runs: Sequence[Run]) -> str:
    """What `retrm eval` knows and nothing here was measured on."""
    done = {run.benchmark for run in runs}
    return ", ".join(benchmark(name).title for name in BENCHMARKS if name not in done) + "."


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, blocks, about=__doc__))
