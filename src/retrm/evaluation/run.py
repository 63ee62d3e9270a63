"""Scores of any scorers on any benchmarks, each answer read once a backbone, and resumable.

    items of all benchmarks -> distinct answers -> scores, one line each as they come -> score files

The same answer often stands in several items and benchmarks: it is scored once. What was scored is
appended to `answers/SCORER.jsonl` chunk by chunk, so a killed run goes on where it was. A scorer that
cannot say which one it is (`Identified`) is never gone on with: its answers are scored anew each time.

A score of a whole answer holds under any policy for over-long ones; one that was skipped or cut holds
only under the policy that did so, and is made again under another.

A scorer that compares candidates (`SetScorer`) is given item by item: its scores hold inside an item, and
stand in its ledger under the item's candidates.
"""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np

from retrm.backbone.base import Backbone
from retrm.errors import OutputError, RecipeError, StoreError, did_you_mean
from retrm.evaluation.benchmarks.base import BenchmarkData, Item, ScoredItem
from retrm.evaluation.item_file import write_items
from retrm.evaluation.last_run import write_run
from retrm.evaluation.score_file import Kind, ScoredRow, ScoreFile, write_scores
from retrm.features.read import Overlong
from retrm.files import check_writable
from retrm.records import Answer
from retrm.scorers.base import Judgement, Scorer, SetScorer, check_scores
from retrm.scorers.baseline import LengthScorer, LogProbabilityScorer, RandomScorer
from retrm.scorers.together import StateScorer, groups_of, judge_chunks

BASELINES = ("longest", "shortest", "random", "log_probability")
ANSWERS_PER_CHUNK = 64
SETS_PER_CHUNK = 32
KEY_CHARACTERS = 24


@runtime_checkable
class Identified(Protocol):
    """A scorer that can say which one it is: two with the same identity give the same scores."""

    identity: str


@runtime_checkable
class Described(Protocol):
    """A scorer that says what its scores hang on: tokenizer, template, dtype."""

    @property
    def provenance(self) -> dict[str, str]:
        """By the names under which a report shows it."""
        ...


@dataclass(frozen=True)
class Entrant:
    """A scorer that takes part.

    Attributes:
        scorer: whoever it is.
        kind: "baseline" = put beside the others.
    """

    scorer: Scorer
    kind: Kind = "scorer"

    @property
    def identity(self) -> str:
        """By which a resumed run knows that it goes on with the same scorer; its name without one."""
        return self.scorer.identity if self.is_resumable else self.scorer.name

    @property
    def is_resumable(self) -> bool:
        """Whether scores on disk can be known to be of this very scorer."""
        return isinstance(self.scorer, Identified)


@dataclass(frozen=True)
class EvalProgress:
    """How far a run is: answers of one group of scorers done and in all, seconds in this run."""

    scorers: tuple[str, ...]
    done: int
    total: int
    elapsed_s: float


@dataclass(frozen=True)
class _Known:
    """What is known of an answer."""

    score: float
    n_tokens: int | None
    is_cut: bool

    def holds_under(self, overlong: Overlong) -> bool:
        """Whether the policy would give the same again."""
        if self.is_cut:
            return overlong == "truncate_left"
        return overlong == "skip" or not np.isnan(self.score)


@dataclass
class _Ledger:
    """The answers that a scorer has scored, on disk and in memory.

    `n_scored` and `n_tokens` (None where the scorer does not say) are of those that this run added.
    """

    path: Path
    known: dict[str, _Known] = field(default_factory=dict)
    n_scored: int = 0
    n_tokens: int | None = 0

    @classmethod
    def open(
        cls, path: Path, name: str, identity: str, *, is_resumable: bool, overlong: Overlong
    ) -> "_Ledger":
        """Take up what is there and holds under the policy `overlong`.

        Raises:
            StoreError: it belongs to another scorer, or a line of it is damaged.
        """
        ledger = cls(path)
        header = {"scorer": name, "identity": identity}
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        whole, rest = lines[:-1], lines[-1]
        found = _parsed(path, 1, whole[0]) if whole else header  # a kill may leave less than a line
        is_same = found == header if is_resumable else _named(found) == name
        if not is_same:
            raise StoreError(
                f"{path} was written for {found}, now it is {header}; expected the same scorer. "
                "Choose another output folder, or delete this one"
            )
        if not whole or not is_resumable:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(header) + "\n", encoding="utf-8")
            return ledger
        if rest:  # a line that a kill cut short
            path.write_bytes(b"\n".join(whole) + b"\n")
        for number, line in enumerate(whole[1:], 2):
            key, known = _known_of(path, number, line)
            if known.holds_under(overlong):
                ledger.known[key] = known
        return ledger

    def add(self, file: IO[str], keys: Sequence[str], found: Judgement) -> None:
        """Append the scores of a chunk."""
        for i, key in enumerate(keys):
            if key in self.known:
                continue
            score = float(found.scores[i])
            tokens = None if found.n_tokens is None else int(found.n_tokens[i])
            one = _Known(score, tokens, bool(found.is_cut[i]))
            self.known[key] = one
            self.n_scored += 1
            self.n_tokens = None if None in (tokens, self.n_tokens) else self.n_tokens + tokens
            shown = None if np.isnan(score) else score
            with _writing():
                file.write(json.dumps([key, shown, one.n_tokens, one.is_cut]) + "\n")
        with _writing():
            file.flush()


def _parsed(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise _damaged(path, number, line) from error


def _named(header: Any) -> Any:
    return header.get("scorer") if isinstance(header, dict) else None


def _known_of(path: Path, number: int, line: bytes) -> tuple[str, _Known]:
    match _parsed(path, number, line):
        case [
            str(key),
            float() | int() | None as score,
            int() | None as n_tokens,
            bool(is_cut),
        ] if score is None or np.isfinite(score):
            return key, _Known(np.nan if score is None else float(score), n_tokens, is_cut)
    raise _damaged(path, number, line)


def _damaged(path: Path, number: int, line: bytes) -> StoreError:
    return StoreError(
        f"{path}:{number} is damaged: {line[:60]!r}; expected a line of JSON that retrm eval wrote. "
        "Delete the line, whose answer is then scored again, or the whole file"
    )


def evaluate(
    entrants: Mapping[str, Entrant],
    benchmarks: Sequence[BenchmarkData],
    folder: Path,
    *,
    overlong: Overlong = "error",
    on_progress: Callable[[EvalProgress], None] | None = None,
) -> list[ScoreFile]:
    """Score all items of all benchmarks with every scorer.

    Args:
        entrants: scorers by the name that tables show.
        benchmarks: items as read.
        folder: for `items/` (texts), `answers/` (progress) and `scores/BENCHMARK.SCORER.jsonl`, of
            which `scores/run.json` names those of this run.
        overlong: what to do with answers beyond a backbone's context.
        on_progress: told after each chunk.

    Returns:
        A file of each benchmark and scorer, benchmarks outermost; also written.

    Raises:
        OutputError: the folder cannot be written; before anything is read.
        StoreError: it holds the progress of another scorer, or damaged progress.
        OverlongError, RenderError, ScoreError: naming the record.
    """
    check_writable(folder)
    answers = distinct_answers(benchmarks)
    ledgers = {}
    for name, entrant in entrants.items():
        ledgers[name] = _Ledger.open(
            folder / "answers" / f"{slug(name)}.jsonl",
            name,
            entrant.identity,
            is_resumable=entrant.is_resumable,
            overlong=overlong,
        )
    seconds = dict.fromkeys(entrants, 0.0)
    for name, entrant in entrants.items():
        if isinstance(entrant.scorer, SetScorer):
            _check_sets(name, benchmarks)
    for group in groups_of({name: entrant.scorer for name, entrant in entrants.items()}):
        if len(group) == 1 and isinstance(comparing := next(iter(group.values())), SetScorer):
            (name,) = group
            seconds[name] = _score_sets(name, comparing, ledgers[name], benchmarks, on_progress)
            continue
        mine = {name: ledgers[name] for name in group}
        spent = _score_missing(group, mine, answers, overlong, on_progress)
        seconds |= dict.fromkeys(group, spent)
    files = [
        _score_file(name, entrant, data, ledgers[name], seconds[name])
        for data in benchmarks
        for name, entrant in entrants.items()
    ]
    _write(folder, benchmarks, files)
    return files


def _write(folder: Path, benchmarks: Sequence[BenchmarkData], files: Sequence[ScoreFile]) -> None:
    """Texts and scores, and which files they are: a folder keeps those of runs before."""
    scores = folder / "scores"
    names = [f"{file.benchmark}.{slug(file.scorer)}.jsonl" for file in files]
    write_run(scores, [])
    for data in benchmarks:
        write_items(folder / "items" / f"{data.name}.jsonl", data)
    for name, file in zip(names, files, strict=True):
        write_scores(scores / name, file)
    write_run(scores, names)


def entrants_of(
    scorers: Mapping[str, Scorer], baselines: Sequence[str] = BASELINES
) -> dict[str, Entrant]:
    """Scorers with the baselines to stand beside them.

    `log_probability` becomes one baseline for each distinct backbone of the scorers, read in the same
    pass; without any backbone it is left out. Several are told apart by model, by whether the end token
    counts, and by dtype.

    Raises:
        RecipeError: an unknown baseline.
    """
    found = {name: Entrant(scorer) for name, scorer in scorers.items()}
    for name in baselines:
        if name not in BASELINES:
            raise RecipeError(f"unknown baseline {name!r}. {did_you_mean(name, BASELINES)}")
        if name == "log_probability":
            found |= _log_probabilities(scorers)
        elif name not in found:
            scorer = RandomScorer() if name == "random" else LengthScorer(prefers=name)
            found[name] = Entrant(scorer, "baseline")
    return found


def _log_probabilities(scorers: Mapping[str, Scorer]) -> dict[str, Entrant]:
    backbones = {id(s.backbone): s.backbone for s in scorers.values() if isinstance(s, StateScorer)}
    found = {}
    for name, backbone in zip(_apart(list(backbones.values())), backbones.values(), strict=True):
        if name not in scorers:
            found[name] = Entrant(LogProbabilityScorer(backbone), "baseline")
    return found


def _apart(backbones: Sequence[Backbone]) -> list[str]:
    """A name for the log-probability of each: the shortest that tells them apart."""
    if len(backbones) == 1:
        return ["log_probability"]
    ends = ["with end" if b.renderer.counts_end else "without end" for b in backbones]
    models = [f"log_probability of {Path(b.name).name}" for b in backbones]
    paths = [f"log_probability of {b.name}" for b in backbones]
    marked = [f"{name}, {end}" for name, end in zip(models, ends, strict=True)]
    whole = [f"{p}, {e}, {b.dtype}" for p, e, b in zip(paths, ends, backbones, strict=True)]
    for names in (models, marked, paths, whole):
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(whole, 1)]


def distinct_answers(benchmarks: Sequence[BenchmarkData]) -> dict[str, Answer]:
    """Every answer of the benchmarks once, by key; those of a prompt stand together."""
    found: dict[str, dict[str, Answer]] = {}
    for data in benchmarks:
        for item in data.items:
            for answer in item.answers:
                found.setdefault(answer.prompt.key, {}).setdefault(key_of(answer), answer)
    return {key: answer for group in found.values() for key, answer in group.items()}


def key_of(answer: Answer) -> str:
    """By which equal answers to equal prompts are known."""
    known: list[object] = [answer.prompt.key, answer.response, answer.response_ids]
    if answer.reference is not None:
        known += [answer.reference.text, answer.reference.wrapper]
    body = json.dumps(known)
    return hashlib.sha256(body.encode()).hexdigest()[:KEY_CHARACTERS]


def slug(name: str) -> str:
    """A file name for a scorer: `runs/elhsr` -> `runs-elhsr`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "scorer"


def _score_missing(
    group: Mapping[str, Scorer],
    ledgers: Mapping[str, _Ledger],
    answers: Mapping[str, Answer],
    overlong: Overlong,
    on_progress: Callable[[EvalProgress], None] | None,
) -> float:
    """Score what a ledger of the group lacks; seconds that it took."""
    missing = [key for key in answers if any(key not in led.known for led in ledgers.values())]
    chunks = [missing[i : i + ANSWERS_PER_CHUNK] for i in range(0, len(missing), ANSWERS_PER_CHUNK)]
    started = time.monotonic()
    done = 0
    with _appending(ledgers) as files:
        found = judge_chunks(group, ([answers[k] for k in c] for c in chunks), overlong=overlong)
        for keys, judged in zip(chunks, found, strict=True):
            for name, ledger in ledgers.items():
                ledger.add(files[name], keys, judged[name])
            done += len(keys)
            if on_progress is not None:
                elapsed = time.monotonic() - started
                on_progress(EvalProgress(tuple(group), done, len(missing), elapsed))
    return time.monotonic() - started


def _check_sets(name: str, benchmarks: Sequence[BenchmarkData]) -> None:
    """Refuse items that are no candidates, before anything is paid for.

    Raises:
        RecipeError: items that are beginnings of one solution.
    """
    for data in benchmarks:
        if any(item.are_prefixes for item in data.items):
            raise RecipeError(
                f"{name} compares whole answers, and the items of {data.name} are beginnings of one "
                "solution, step by step; leave the benchmark or the judge out"
            )


def _score_sets(
    name: str,
    scorer: SetScorer,
    ledger: _Ledger,
    benchmarks: Sequence[BenchmarkData],
    on_progress: Callable[[EvalProgress], None] | None,
) -> float:
    """Score the items that the ledger lacks; seconds that it took."""
    items = {set_key(item): item for data in benchmarks for item in data.items}
    missing = [
        (key, item)
        for key, item in items.items()
        if any(k not in ledger.known for k in _keys_of(item, key))
    ]
    started = time.monotonic()
    n_answers = sum(len(item.answers) for _, item in missing)
    done = 0
    with _appending({name: ledger}) as files:
        for start in range(0, len(missing), SETS_PER_CHUNK):
            chunk = missing[start : start + SETS_PER_CHUNK]
            found = scorer.score_sets([item.answers for _, item in chunk])
            for (key, item), scores in zip(chunk, found, strict=True):
                check_scores(scores, item.answers, name)
                ledger.add(files[name], _keys_of(item, key), Judgement.plain(scores))
                done += len(item.answers)
            if on_progress is not None:
                elapsed = time.monotonic() - started
                on_progress(EvalProgress((name,), done, n_answers, elapsed))
    return time.monotonic() - started


def set_key(item: Item) -> str:
    """By which the candidates of an item are known, in their order."""
    body = json.dumps([key_of(answer) for answer in item.answers])
    return hashlib.sha256(body.encode()).hexdigest()[:KEY_CHARACTERS]


def _keys_of(item: Item, key: str) -> list[str]:
    return [f"{key}.{place}" for place in range(len(item.answers))]


@contextlib.contextmanager
def _appending(ledgers: Mapping[str, _Ledger]) -> Iterator[dict[str, IO[str]]]:
    with contextlib.ExitStack() as stack:
        with _writing():
            files = {
                name: stack.enter_context(ledger.path.open("a", encoding="utf-8"))
                for name, ledger in ledgers.items()
            }
        yield files


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """Around the writing alone: a scorer's own OSError, such as a server that is gone, is no full disk."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"could not write the scores: {error.strerror or error}. What was scored is kept; "
            "free space and run the same command again"
        ) from error


def _score_file(
    name: str, entrant: Entrant, data: BenchmarkData, ledger: _Ledger, seconds: float
) -> ScoreFile:
    return ScoreFile(
        benchmark=data.name,
        scorer=name,
        rows=tuple(
            _scored_row(item, ledger, compares=isinstance(entrant.scorer, SetScorer))
            for item in data.items
        ),
        kind=entrant.kind,
        excluded=data.excluded,
        notes=data.notes,
        about={**_about(entrant), **_clocked(ledger, seconds)},
    )


def _about(entrant: Entrant) -> dict[str, Any]:
    """Which scorer it is, and what its scores hang on besides: model, tokens, template, arithmetic."""
    made: dict[str, Any] = {"identity": entrant.identity}
    scorer = entrant.scorer
    if isinstance(scorer, StateScorer):
        backbone = scorer.backbone
        print_of = backbone.fingerprint
        made |= {
            "backbone": backbone.name,
            "weights": print_of.weights,
            "tokenizer": print_of.tokenizer,
            "template": print_of.template,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "device": str(backbone.device),
            "states_from": backbone.states_from,
        }
    elif isinstance(scorer, Described):
        made |= scorer.provenance
    return made


def _clocked(ledger: _Ledger, seconds: float) -> dict[str, Any]:
    """Time of this run, of all scorers that read together; none for what was scored before it."""
    made: dict[str, Any] = {
        "answers_of_this_run": ledger.n_scored,
        "seconds_of_this_run": round(seconds, 3),
    }
    if ledger.n_tokens and seconds > 0:
        made["tokens_per_s"] = round(ledger.n_tokens / seconds, 1)
    return made


def _scored_row(item: Item, ledger: _Ledger, *, compares: bool) -> ScoredRow:
    keys = _keys_of(item, set_key(item)) if compares else [key_of(a) for a in item.answers]
    known = [ledger.known[key] for key in keys]
    tokens = [one.n_tokens for one in known]
    scored = ScoredItem(
        id=item.id,
        subset=item.subset,
        cluster=item.cluster,
        facts=item.facts,
        n_characters=tuple(len(answer.response) for answer in item.answers),
        scores=np.array([one.score for one in known]),
    )
    counts = None if None in tokens else tuple(int(t) for t in tokens if t is not None)
    return ScoredRow(scored, counts, tuple(one.is_cut for one in known))
