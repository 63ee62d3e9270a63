"""Generative judges as scorers: candidates of a prompt are compared, and verdicts become scores.

    judge:MODEL?template=rm_r1&ranking=knockout&samples=5

MODEL is a name as `retrm sample` takes it, or, with `endpoint=URL`, the name by which an engine knows the
judge. A score is worth something among the candidates of its prompt only: candidates come together, and one
that stands alone has nothing to be compared with.

Two candidates are compared directly (2 calls with both orders). More are ranked (`retrm.judges.ranking`), or,
with a template of dimension scores, `ranking=pointwise` takes the mean of the scores themselves, each
candidate compared with the next one around a ring. Calls of n candidates: pairs x orders x samples.

Whatever is paid for lies in a cache on disk before it is read, so a run that is killed goes on where it was.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import parse_qsl

import numpy as np

from retrm.engines.base import Engine
from retrm.errors import RecipeError, ScoreError, did_you_mean
from retrm.judges.asking import EndpointJudgeModel, JudgeModel, LocalJudgeModel
from retrm.judges.cache import ReplyCache, Sampling
from retrm.judges.comparing import ORDERS, Comparer, JudgeCounts, Orders, Pair, PairOutcome
from retrm.judges.ranking import RANKINGS, Pairs, Ranking, check_ranking, n_pairs
from retrm.judges.registry import get_template
from retrm.judges.template import JudgeTemplate
from retrm.patience import without_password
from retrm.records import Answer, Message
from retrm.scorers.base import sets_of

POINTWISE = "pointwise"
PREFIX = "judge:"
NO_CACHE = "none"
MIDDLE = 5.5
"""Of a scale from 1 to 10: the score of candidates in a set of which nothing could be read."""


@dataclass(frozen=True)
class DimensionScores:
    """What a judge gave one candidate.

    Attributes:
        means: by dimension, over all outputs that name it; dimensions of the judge's own are among them.
        n_readings: outputs whose scores could be read.
    """

    means: Mapping[str, float]
    n_readings: int


class JudgeScorer:
    """Compares the candidates of each prompt; implements `Scorer` and `SetScorer`."""

    def __init__(
        self,
        comparer: Comparer,
        *,
        name: str = "judge",
        ranking: str = "round_robin",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Nothing is asked yet.

        Args:
            comparer: the judge with its template.
            name: that tables show.
            ranking: a name of `RANKINGS`, or `pointwise` for templates with dimension scores.
            on_progress: told how many replies of how many of a round are there.

        Raises:
            RecipeError: an unknown ranking, or pointwise with a template without scores.
        """
        check_ranking_of(comparer.template, ranking)
        self.comparer = comparer
        self.name = name
        self.ranking = ranking
        self.on_progress = on_progress

    @property
    def identity(self) -> str:
        """Of judge, template, sampling and ranking."""
        return f"judge {self.comparer.identity} {self.ranking}"

    @property
    def counts(self) -> JudgeCounts:
        """What happened so far."""
        return self.comparer.counts

    def summary(self) -> str:
        """The same in one line."""
        return f"{self.name}: {self.counts.in_words()}"

    @property
    def provenance(self) -> dict[str, str]:
        """What a report shows beside the scores."""
        comparer, counts = self.comparer, self.counts.as_dict()
        said = {name: _shown(counts[name]) for name in ("pairs", "parse_rate", "first_rate")}
        return {
            "judge": comparer.model.identity,
            "template": comparer.template.name,
            "ranking": self.ranking,
            "orders": comparer.orders,
            "samples": str(comparer.samples),
            "positional_agreement": _shown(counts["positional_agreement"]),
            "unread": json.dumps(counts["unread"]),
            **said,
        }

    def n_calls(self, n_candidates: int) -> int:
        """Most outputs that a prompt with so many candidates takes."""
        comparer = self.comparer
        n_orders = 2 if comparer.orders == "both" else 1
        pairs = (
            len(_ring(n_candidates))
            if self.ranking == POINTWISE
            else n_pairs(self.ranking, n_candidates)
        )
        return pairs * n_orders * comparer.samples

    def compare(self, pairs: Sequence[Pair]) -> list[PairOutcome]:
        """Outcomes of pairs, with every output that was read; raises as `Comparer.compare`."""
        return self.comparer.compare(pairs, on_progress=self.on_progress)

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n,) scores among the candidates of each prompt.

        Raises:
            ScoreError: no prompt has two candidates.
            EndpointError, OutputError, RenderError: as `Comparer.compare`.
        """
        rows = sets_of(answers)
        scores = np.zeros(len(answers))
        for some, found in zip(
            rows, self.score_sets([[answers[i] for i in some] for some in rows]), strict=True
        ):
            scores[some] = found
        return scores

    def score_sets(self, sets: Sequence[Sequence[Answer]]) -> list[np.ndarray]:
        """Scores of each set of candidates, in its order; raises as `score`."""
        if sets and all(len(some) < 2 for some in sets):
            where = sets[0][0].where or "the first answer"
            raise ScoreError(
                f"{self.name} got {len(sets)} prompt(s) with one candidate each, from {where}; expected "
                "at least two candidates of a prompt, since a judge compares. Send the candidates of a "
                "prompt together, in one record or one request"
            )
        self.counts.lone += sum(len(some) < 2 for some in sets)
        if self.ranking == POINTWISE:
            return [values.mean(axis=1) for values in self._dimension_values(sets)]
        return self._ranked(sets)

    def _ranked(self, sets: Sequence[Sequence[Answer]]) -> list[np.ndarray]:
        """Rounds of all sets side by side."""
        rankings = [
            RANKINGS[self.ranking](len(some), seed=_seed(some, self.comparer.sampling.seed))
            for some in sets
        ]
        done: dict[int, np.ndarray] = {}
        rounds: dict[int, Pairs] = {}
        for place, ranking in enumerate(rankings):
            _advance(place, ranking, None, rounds, done)
        while rounds:
            asked = [(place, pair) for place, pairs in rounds.items() for pair in pairs]
            outcomes = self.compare([pair_of(sets[place], *pair) for place, pair in asked])
            points: dict[int, list[float]] = {place: [] for place in rounds}
            for (place, _), outcome in zip(asked, outcomes, strict=True):
                points[place].append(outcome.points)
            rounds = {}
            for place, some in points.items():
                _advance(place, rankings[place], some, rounds, done)
        return [done[place] for place in range(len(sets))]

    def dimension_scores(self, answers: Sequence[Answer]) -> list[DimensionScores]:
        """What the judge gave every answer, by dimension; raises as `score`."""
        rows = sets_of(answers)
        found: list[DimensionScores] = [DimensionScores({}, 0)] * len(answers)
        for some, scores in zip(
            rows, self._dimensions([[answers[i] for i in some] for some in rows]), strict=True
        ):
            for row, one in zip(some, scores, strict=True):
                found[row] = one
        return found

    def _dimensions(self, sets: Sequence[Sequence[Answer]]) -> list[list[DimensionScores]]:
        asked = [(place, pair) for place, some in enumerate(sets) for pair in _ring(len(some))]
        outcomes = self.compare([pair_of(sets[place], *pair) for place, pair in asked])
        given: list[list[list[Mapping[str, float]]]] = [[[] for _ in some] for some in sets]
        for (place, pair), outcome in zip(asked, outcomes, strict=True):
            for reading in outcome.readings:
                if reading.scores is not None:
                    for candidate, scores in zip(pair, reading.scores, strict=True):
                        given[place][candidate].append(scores)
        return [[_mean_scores(one) for one in some] for some in given]

    def _dimension_values(self, sets: Sequence[Sequence[Answer]]) -> list[np.ndarray]:
        """(n, K) of each set; a candidate without a score takes the mean of the others, counted."""
        names = dimensions_of(self.comparer.template)
        tables = []
        for some in self._dimensions(sets):
            values = np.array([[one.means.get(name, np.nan) for name in names] for one in some])
            unread = np.isnan(values)
            self.counts.unscored += int(unread.any(axis=1).sum())
            n_read = (~unread).sum(axis=0)
            sums = np.where(unread, 0.0, values).sum(axis=0)
            means = np.where(n_read > 0, sums / np.maximum(n_read, 1), MIDDLE)
            tables.append(np.where(unread, means, values))
        return tables


class DimensionJudgeScorer(JudgeScorer):
    """A judge whose template scores by dimension; implements `ObjectiveScorer`, too."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """The template's own dimensions; those that a judge adds are in `dimension_scores`."""
        return dimensions_of(self.comparer.template)

    def objective_scores(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n, K) float64 mean scores, 1 to 10; raises as `score`."""
        rows = sets_of(answers)
        values = np.zeros((len(answers), len(self.objectives)))
        tables = self._dimension_values([[answers[i] for i in some] for some in rows])
        for some, table in zip(rows, tables, strict=True):
            values[some] = table
        return values


def judge_scorer(
    comparer: Comparer, *, name: str = "judge", ranking: str = "round_robin"
) -> JudgeScorer:
    """The scorer of a comparer: with objectives where its template scores by dimension.

    Raises:
        RecipeError: as `JudgeScorer`.
    """
    made = DimensionJudgeScorer if dimensions_of(comparer.template) else JudgeScorer
    return made(comparer, name=name, ranking=ranking)


def dimensions_of(template: JudgeTemplate) -> tuple[str, ...]:
    """The dimensions that a template always asks for; () = none."""
    found: tuple[str, ...] = getattr(template, "dimensions", ())
    return found


def check_ranking_of(template: JudgeTemplate, ranking: str) -> None:
    """Refuse a ranking that is unknown or needs scores that the template does not ask for.

    Raises:
        RecipeError: naming it.
    """
    if ranking != POINTWISE:
        check_ranking(ranking)
    elif not dimensions_of(template):
        raise RecipeError(
            f"the template {template.name} gives no dimension scores, which ranking=pointwise adds up; "
            "use template=unified_reward_think, or another ranking"
        )


@dataclass(frozen=True)
class JudgeSpec:
    """What a person types behind `judge:`, as MODEL?NAME=VALUE&NAME=VALUE.

    Attributes:
        model: of a local judge, or the name by which the endpoint knows it.
        template: a name of `retrm.judges.registry.TEMPLATES`.
        rule: how verdicts are read; "" = the template's own.
        wording: file with instructions instead of ours; "" = ours.
        endpoint: URL of an OpenAI-compatible engine; "" = the model runs here.
        ranking: how verdicts become scores.
        orders: `both`, `first` or `drawn`.
        samples: outputs an order; 1 is drawn at temperature 0, more at 1, unless it is given.
        temperature: of the outputs; negative = by `samples`.
        top_p: share of probability to draw from.
        max_new_tokens: outputs are cut there.
        seed: of draws and of the order in knockout and swiss.
        concurrency: requests at a time.
        timeout_s: seconds of silence after which a request counts as failed.
        retries: further attempts for what may pass.
        batch_size: outputs of a local judge that grow together.
        dtype: of a local judge.
        reads: `text`, or `pictures` for a multimodal model with its processor.
        cache: folder of the replies; `none` = kept in memory only.
    """

    model: str
    template: str = "rm_r1_instruct"
    rule: str = ""
    wording: str = ""
    endpoint: str = ""
    ranking: str = "round_robin"
    orders: str = "both"
    samples: int = 1
    temperature: float = -1.0
    top_p: float = 1.0
    max_new_tokens: int = 2048
    seed: int = 0
    concurrency: int = 8
    timeout_s: float = 600.0
    retries: int = 5
    batch_size: int = 16
    dtype: str = "float32"
    reads: str = "text"
    cache: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what stands behind `judge:`.

        Raises:
            RecipeError: no model, an unknown name, or a value of another kind.
        """
        model, _, query = text.partition("?")
        if not model:
            raise RecipeError(
                "got judge: without a model; expected judge:MODEL?template=NAME, for example "
                "judge:smollm2-135m?template=rm_r1"
            )
        kinds = {field.name: field.type for field in fields(cls) if field.name != "model"}
        options: dict[str, Any] = {}
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name not in kinds:
                raise RecipeError(f"judge: has no option {name!r}. {did_you_mean(name, kinds)}")
            try:
                options[name] = kinds[name](value)  # type: ignore[operator]
            except ValueError:
                raise RecipeError(
                    f"got {name}={value!r} for judge:{model}; expected a number"
                ) from None
        return cls(model, **options)

    @property
    def sampling(self) -> Sampling:
        """How outputs are drawn."""
        by_samples = 1.0 if self.samples > 1 else 0.0
        temperature = by_samples if self.temperature < 0 else self.temperature
        return Sampling(temperature, self.top_p, self.max_new_tokens, self.seed)

    def check(self) -> None:
        """Refuse what can be refused before a model is loaded.

        Raises:
            RecipeError: a template, rule, wording, ranking, order or number that cannot be.
        """
        template = get_template(
            self.template,
            rule=self.rule or None,
            wording=Path(self.wording) if self.wording else None,
        )
        check_ranking_of(template, self.ranking)
        if self.orders not in ORDERS:
            raise RecipeError(
                f"unknown orders={self.orders!r}. {did_you_mean(self.orders, ORDERS)}"
            )
        if self.reads not in ("text", "pictures"):
            raise RecipeError(f"got reads={self.reads!r}; expected text or pictures")
        for name in ("samples", "max_new_tokens", "concurrency", "batch_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"got {name}={getattr(self, name)}; expected 1 or more")
        for name, is_right, expected in (
            ("temperature", math.isfinite(self.temperature), "a finite number"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("timeout_s", 0 < self.timeout_s < math.inf, "seconds above 0"),
            ("retries", self.retries >= 0, "0 or more"),
        ):
            if not is_right:
                raise RecipeError(f"got {name}={getattr(self, name)}; expected {expected}")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise RecipeError(
                f"got samples={self.samples} with temperature=0: all would be the same. Leave "
                "temperature out, or use samples=1"
            )


def open_judge(text: str, *, device: str = "cpu", engine: Engine | None = None) -> JudgeScorer:
    """The scorer of `judge:...`.

    Args:
        text: what a person types, `judge:` in front.
        device: for a local judge.
        engine: whose workers run a local judge.

    Raises:
        RecipeError: an option that cannot be.
        BackboneError: the model cannot be loaded.
        EndpointError: the URL is none.
        OutputError: the cache cannot be used.
    """
    spec = JudgeSpec.parse(text.removeprefix(PREFIX))
    spec.check()
    if engine is not None and (spec.endpoint or spec.reads == "pictures"):
        raise RecipeError(
            "a judge behind an endpoint, or one that reads pictures, takes no workers; use engine local"
        )
    model = _endpoint(spec) if spec.endpoint else _local(spec, device, engine)
    comparer = Comparer(
        model,
        get_template(
            spec.template,
            rule=spec.rule or None,
            wording=Path(spec.wording) if spec.wording else None,
        ),
        sampling=spec.sampling,
        samples=spec.samples,
        orders=cast(Orders, spec.orders),
        cache=ReplyCache(_cache_file(spec.cache, model)),
    )
    return judge_scorer(comparer, name=without_password(text), ranking=spec.ranking)


def _endpoint(spec: JudgeSpec) -> JudgeModel:
    return EndpointJudgeModel(
        spec.endpoint,
        spec.model,
        concurrency=spec.concurrency,
        timeout_s=spec.timeout_s,
        retries=spec.retries,
    )


def _local(spec: JudgeSpec, device: str, engine: Engine | None) -> JudgeModel:
    if spec.reads == "pictures":
        from retrm.judges.pictures import PictureJudgeModel

        return PictureJudgeModel.load(spec.model, device=device, dtype=spec.dtype)
    from retrm.backbone.remote import open_backbone

    backbone = open_backbone(spec.model, engine=engine, device=device, dtype=spec.dtype)
    return LocalJudgeModel(backbone, batch_size=spec.batch_size)


def _cache_file(folder: str, model: JudgeModel) -> Path | None:
    if folder == NO_CACHE:
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retrm" / "judges"
    mark = hashlib.sha256(model.identity.encode()).hexdigest()[:16]
    return (Path(folder) if folder else home) / f"{mark}.jsonl"


def pair_of(candidates: Sequence[Answer], first: int, second: int) -> Pair:
    """Two candidates by their places; tools that the prompt offers are told in a system turn."""
    prompt = candidates[first].prompt
    messages = prompt.messages
    if prompt.tools:
        tools = json.dumps([dict(tool) for tool in prompt.tools], ensure_ascii=False, default=str)
        messages = (Message("system", f"Tools that may be called: {tools}"), *messages)
    return Pair(messages, candidates[first].response, candidates[second].response)


def _ring(n: int) -> Pairs:
    """Each with the next: everybody twice, and two candidates once."""
    if n < 2:
        return []
    return [(0, 1)] if n == 2 else [(i, (i + 1) % n) for i in range(n)]


def _seed(candidates: Sequence[Answer], seed: int) -> int:
    """The draw belongs to the prompt and not to its place in a file."""
    digest = hashlib.sha256(f"{seed} {candidates[0].prompt.key}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _advance(
    place: int,
    ranking: Ranking,
    points: Sequence[float] | None,
    rounds: dict[int, Pairs],
    done: dict[int, np.ndarray],
) -> None:
    """One round on: its pairs, or the scores at the end."""
    try:
        pairs = next(ranking) if points is None else ranking.send(points)
    except StopIteration as ended:
        done[place] = np.asarray(ended.value, dtype=np.float64)
        return
    rounds[place] = pairs


def _mean_scores(given: Sequence[Mapping[str, float]]) -> DimensionScores:
    names = dict.fromkeys(name for scores in given for name in scores)
    means = {name: [s[name] for s in given if name in s] for name in names}
    return DimensionScores({name: sum(v) / len(v) for name, v in means.items()}, len(given))


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
