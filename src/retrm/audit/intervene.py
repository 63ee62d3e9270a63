r"""Interventions: what changes in a model when a component of its states is removed.

A probe that reads something from a subspace is no proof that the model uses it. Here the component
is removed during scoring and sampling (`retrm.audit.removal`), and what changes is measured against
the unchanged model on the same prompts: the reasoning directions of the LM head, the semantic ones,
random ones, equally many, and random ones, as many as take out the same energy. "Reasoning subspace"
is the field's name for the smallest right singular directions; the name asserts nothing.

How the figures are to be read:

* Subspaces of equal width hold unequal energy, so `energy_removed` stands beside every effect, and
  `random_energy` is the control at equal energy: see `retrm.audit.removed_energy`.
* `minus_random` compares with random subspaces of the same width: see `retrm.audit.effects`.
* What zero fill, the first token and the final norm do to an effect: see `retrm.audit.removal`.

HARP, arXiv 2509.11536, removes tail directions in single worked examples, without these controls.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.audit.effects import Effects, Measured, corrected_interventions, within_auroc
from retrm.audit.plan import DRAWS_PER_SEED
from retrm.audit.removal import (
    Change,
    Fill,
    Intervention,
    MeanReducer,
    State,
    check_positions,
    expect_transformers,
    removed,
)
from retrm.audit.removed_energy import EnergyProfile, RemovedEnergy
from retrm.audit.tables import InterventionRow
from retrm.backbone.base import Backbone, Fingerprint, StatePoint, TokenBatch
from retrm.backbone.batching import TOKENS_PER_BATCH, plan_batches
from retrm.backbone.generate import sample
from retrm.backbone.locate import logits_of
from retrm.backbone.sampled import Sampled
from retrm.data.grade import GRADERS, is_correct
from retrm.data.split import split_by_prompt
from retrm.errors import DataError, RecipeError, did_you_mean
from retrm.features.read import Overlong, read, render_all
from retrm.features.recipe import Recipe
from retrm.features.reduce import (
    LOGIT_ROWS,
    BatchIndex,
    Features,
    Layout,
    Reducer,
    StateReducer,
)
from retrm.features.subspace import Subspace, SubspaceFitter, SubspaceSpec, fit_spectrum
from retrm.metrics import N_RESAMPLES
from retrm.records import AnswerTable, Prompt
from retrm.scorers.base import check_scores
from retrm.scorers.reward_model import RewardModel, check_fingerprint

POST_NORM = "post_norm"
"""Typed in place of layers: what the LM head multiplies, with the basis of W itself."""

MIN_DRAWS = 2  # one draw has no spread; a claim takes 19


# ------------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class InterventionPlan:
    """Where to intervene, with what, and on how much.

    Attributes:
        layers: settings, each `last`, `all`, `last4`, numbers `8,16`, a range `10-20` (residual
            states of these layers, all changed together), or `post_norm` (what the LM head reads).
        sizes: of the removed subspaces, a count or a percentage of the width; all components are
            compared at equal size.
        n_draws: random subspaces of each size. A claim needs a rank p of .05 and so 19 of them; with
            fewer the verdict is `too few draws`.
        n_energy_draws: random subspaces for the control at equal energy, which makes no claim.
        fills: what takes the place of a component, `zero` and `mean`, see `removed`. All of them are
            measured, and Holm's correction is over all.
        spare_first: leave the attention sink at position 0 alone.
        max_prompts: prompts used, drawn at random.
        max_answers: given answers used of each prompt, drawn at random, right and wrong ones in turn.
            Everything is read once for every removal, so these two bound the work.
        n_samples: new answers to each prompt under each setting; 0 = accuracy is not measured.
        max_new_tokens, temperature, top_p: of the new answers.
    """

    layers: tuple[str, ...] = (POST_NORM, "last", "all")
    sizes: tuple[str, ...] = ("5%",)
    n_draws: int = 19
    n_energy_draws: int = 3
    fills: tuple[Fill, ...] = ("zero", "mean")
    spare_first: bool = False
    max_prompts: int = 24
    max_answers: int = 2
    n_samples: int = 0
    max_new_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 1.0

    def __post_init__(self) -> None:
        self._check_numbers()
        for name in ("layers", "sizes", "fills"):
            given = getattr(self, name)
            is_texts = isinstance(given, tuple) and all(isinstance(text, str) for text in given)
            if not is_texts or not given or len(set(given)) < len(given):
                raise RecipeError(
                    f"got {name}={given!r}; expected a list (tuple) of different texts, at least one"
                )
        for fill in self.fills:
            if fill not in get_args(Fill):
                raise RecipeError(
                    f"got fill {fill!r} in fills. {did_you_mean(fill, get_args(Fill))}"
                )
        for text in self.layers:
            _layer_recipe(text)
        for size in self.sizes:
            SubspaceSpec.parse(f"reasoning:{size}")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, as it is read again from a file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def _check_numbers(self) -> None:
        least = {
            **{"n_draws": MIN_DRAWS, "n_energy_draws": 1, "max_prompts": 1, "max_answers": 1},
            **{"n_samples": 0, "max_new_tokens": 1},
        }
        for name, lowest in least.items():
            got = getattr(self, name)
            if type(got) is not int:
                raise RecipeError(f"got {name}={got!r}; expected a whole number")
            if got < lowest:
                raise RecipeError(f"got {name}={got}; expected {lowest} or more")
        if type(self.spare_first) is not bool:
            raise RecipeError(f"got spare_first={self.spare_first!r}; expected true or false")
        for name, (low, high) in {"temperature": (0, math.inf), "top_p": (0, 1)}.items():
            got = getattr(self, name)
            if type(got) not in (int, float) or not low <= got <= high:
                raise RecipeError(f"got {name}={got!r}; expected a number from {low} to {high}")


def _layer_recipe(text: str) -> Recipe:
    """A recipe that knows the layers `text` names; `10-12` is written out."""
    if text == POST_NORM:
        return Recipe()

    def written_out(found: re.Match[str]) -> str:
        return ",".join(map(str, range(int(found[1]), int(found[2]) + 1)))

    try:
        return Recipe(layers=re.sub(r"(\d+)\s*-\s*(\d+)", written_out, text), point="residual")
    except RecipeError as error:
        raise RecipeError(
            f"cannot read layers {text!r} of an intervention; expected last, all, last4, numbers "
            f"such as 8,16, a range such as 10-20, or {POST_NORM}"
        ) from error


@dataclass(frozen=True)
class TrainedScore:
    """A head that was fitted on unchanged states, to be shown changed ones.

    Attributes:
        recipe: which states it reads.
        score: features -> (n,) raw scores, such as `head.score`.
        bases: stored with the head; None = computed from the recipe.
        train_prompts: ids of the prompts it was fitted on; answers to them are refused.
        name: for messages.
        fingerprint: of the backbone it was fitted on; another one is refused. None = not known.
    """

    recipe: Recipe
    score: Callable[[Features], Tensor | np.ndarray]
    bases: Mapping[StatePoint, Subspace] | None = None
    train_prompts: Collection[str] = ()
    name: str = "head"
    fingerprint: Fingerprint | None = None

    @classmethod
    def of(cls, model: RewardModel, *, train_prompts: Collection[str] = ()) -> Self:
        """The head of a reward model."""
        artifact = model.artifact
        return cls(
            artifact.recipe,
            artifact.head.score,
            artifact.bases,
            train_prompts,
            name=model.name,
            fingerprint=artifact.backbone.fingerprint,
        )


# ------------------------------------------------------------------------------- what it is done to


@dataclass(frozen=True)
class _Subject:
    """The answers and questions that everything is measured on.

    Attributes:
        table: the chosen rows that fit the context.
        questions: prompt by prompt_id.
        read_tokens: of one reading.
        n_skipped: chosen answers that were left out as over-long.
    """

    table: AnswerTable
    questions: Mapping[str, Prompt]
    read_tokens: int
    n_skipped: int

    @property
    def has_labels(self) -> bool:
        return not np.isnan(self.table.labels).all()


def _subject(
    backbone: Backbone,
    table: AnswerTable,
    plan: InterventionPlan,
    seed: int,
    overlong: Overlong,
    tokens_per_batch: int,
) -> _Subject:
    rows = _chosen_rows(table, plan, seed)
    fitting = render_all(backbone, [table.answers[row] for row in rows], overlong=overlong)
    if not fitting.rows:
        raise DataError(
            f"got {len(rows)} answers, none of which fits the context of {backbone.name}; shorten "
            "them, or choose another backbone"
        )
    batches = plan_batches(
        fitting.rendered,
        tokens_per_batch=tokens_per_batch,
        share_prompts=backbone.shares_prompts,
    )
    kept = table.take([rows[i] for i in fitting.rows])
    questions = {answer.prompt_id: answer.prompt for answer in reversed(kept.answers)}
    return _Subject(
        table=kept,
        questions=dict(sorted(questions.items())),
        read_tokens=sum(row.n_tokens for batch in batches for row in batch.rows),
        n_skipped=fitting.n_skipped,
    )


def _chosen_rows(table: AnswerTable, plan: InterventionPlan, seed: int) -> list[int]:
    """Rows of at most `max_prompts` prompts, at most `max_answers` of each, in file order."""
    if not len(table):
        raise DataError("got an empty table; expected answers to intervene on")
    n_prompts = len(set(table.prompt_ids.tolist()))
    chosen = np.arange(len(table))
    if n_prompts > plan.max_prompts:
        share = plan.max_prompts / n_prompts
        chosen, _ = split_by_prompt(table.prompt_ids.tolist(), (share, 1 - share), seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(chosen)
    ids = table.prompt_ids
    taken: dict[str, list[int]] = {}
    for row in order.tolist():
        taken.setdefault(ids[row], []).append(row)
    return sorted(
        row for rows in taken.values() for row in _in_turn(rows, table.labels)[: plan.max_answers]
    )


def _in_turn(rows: Sequence[int], labels: np.ndarray) -> list[int]:
    """Right, wrong and unlabelled ones in turn, so that few answers can still be compared."""
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        kind = str(labels[row])
        turns.append(seen[kind])
        seen[kind] += 1
    return [rows[i] for i in np.argsort(turns, kind="stable").tolist()]


@dataclass(frozen=True)
class InterventionEstimate:
    """The work of `measure_interventions`.

    Attributes:
        n_prompts, n_answers: that are used.
        n_skipped: chosen answers that are left out as over-long.
        n_settings: interventions, the unchanged model not counted.
        n_readings: passes over the answers.
        read_tokens: of all readings; a prompt that is shared counts once.
        sampled_tokens: at most, of all new answers.
    """

    n_prompts: int
    n_answers: int
    n_skipped: int
    n_settings: int
    n_readings: int
    read_tokens: int
    sampled_tokens: int

    @property
    def n_tokens(self) -> int:
        """Read and sampled."""
        return self.read_tokens + self.sampled_tokens


def estimate_interventions(
    backbone: Backbone,
    table: AnswerTable,
    *,
    plan: InterventionPlan,
    grader: str | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
    is_scored: bool = False,
    seed: int = 0,
    overlong: Overlong = "error",
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> InterventionEstimate:
    """How many tokens `measure_interventions` with the same arguments would process.

    What that refuses before the model works is refused here too, without a score at hand.

    Args:
        backbone: a transformers model.
        table: answers, with reference answers in `gold` where new ones are asked for.
        plan: where, what and how much.
        grader: rule for new answers.
        choices: options by prompt_id, for the grader `choice`.
        is_scored: whether a score will be measured.
        seed: of the chosen rows.
        overlong: as in `read`.
        tokens_per_batch: as in `read`.

    Raises:
        BackboneError, DataError, LabelError, OverlongError, RenderError, RecipeError: as
            `measure_interventions`.
    """
    subject = _checked_subject(
        *(backbone, table, plan, seed, overlong, tokens_per_batch), is_scored=is_scored
    )
    _check_questions(backbone, subject, plan, grader, choices or {}, seed)
    return _estimate(subject, plan, len(_sizes(plan, backbone.width)))


def _checked_subject(
    backbone: Backbone,
    table: AnswerTable,
    plan: InterventionPlan,
    seed: int,
    overlong: Overlong,
    tokens_per_batch: int,
    *,
    is_scored: bool,
) -> _Subject:
    """The answers, where something can be removed and what is measured of them is defined."""
    model = expect_transformers(backbone)
    if plan.spare_first:
        check_positions(model)
    for text in plan.layers:
        _layer_recipe(text).layer_numbers(backbone.n_layers)
    _sizes(plan, backbone.width)  # refuses more directions than there are
    subject = _subject(backbone, table, plan, seed, overlong, tokens_per_batch)
    if is_scored and subject.has_labels:  # whether a prompt is mixed does not depend on the scores
        within_auroc(subject.table, np.zeros(len(subject.table)))
    return subject


def _check_questions(
    backbone: Backbone,
    subject: _Subject,
    plan: InterventionPlan,
    grader: str | None,
    choices: Mapping[str, Sequence[str]],
    seed: int,
) -> None:
    """Refuse new answers that could not be sampled or graded."""
    if plan.n_samples == 0:
        return
    gold, asked = subject.table.gold, subject.questions
    if grader is None:
        raise DataError(
            f"got n_samples={plan.n_samples} without a grader; name one of "
            f"{', '.join(GRADERS)}, or use n_samples=0"
        )
    missing = [prompt_id for prompt_id in asked if prompt_id not in gold]
    if missing:
        raise DataError(
            f"got no reference answer for {len(missing)} of {len(asked)} prompts, such as "
            f"{missing[0]!r}; expected one for each, to grade new answers. Use n_samples=0, or "
            "leave these prompts out"
        )
    for prompt_id in asked:
        is_correct(grader, None, gold[prompt_id], choices.get(prompt_id))
    _new_answers(backbone, subject, plan, seed)  # checks when it is called, works when drawn from


def _new_answers(
    backbone: Backbone,
    subject: _Subject,
    plan: InterventionPlan,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Sampled]:
    return sample(
        backbone,
        list(subject.questions.values()),
        n=plan.n_samples,
        temperature=plan.temperature,
        top_p=plan.top_p,
        max_new_tokens=plan.max_new_tokens,
        seed=seed,
        on_progress=on_progress,
    )


def _estimate(subject: _Subject, plan: InterventionPlan, n_sizes: int) -> InterventionEstimate:
    n_kinds = 2 + plan.n_draws + plan.n_energy_draws
    n_settings = len(plan.fills) * len(plan.layers) * n_sizes * n_kinds
    n_readings = 2 + n_settings  # energies and means; the unchanged model
    n_sampled = (1 + n_settings) * len(subject.questions) * plan.n_samples
    return InterventionEstimate(
        n_prompts=len(subject.questions),
        n_answers=len(subject.table),
        n_skipped=subject.n_skipped,
        n_settings=n_settings,
        n_readings=n_readings,
        read_tokens=n_readings * subject.read_tokens,
        sampled_tokens=n_sampled * plan.max_new_tokens,
    )


# -------------------------------------------------------------------------------- what is removed


@dataclass(frozen=True)
class _Subspaces:
    """The subspaces of one model that a plan asks for.

    Attributes:
        layers: numbers of the layers of each text of the plan.
        sizes: of the subspaces, each once.
        spectra: of the LM head, by state point.
    """

    backbone: Backbone
    plan: InterventionPlan
    seed: int
    layers: Mapping[str, tuple[int, ...]]
    sizes: tuple[int, ...]
    spectra: Mapping[StatePoint, SubspaceFitter]

    @classmethod
    def of(cls, backbone: Backbone, plan: InterventionPlan, seed: int) -> Self:
        """Decompose the LM head at the points that the plan asks for."""
        points: set[StatePoint] = {_layer_recipe(text).point for text in plan.layers}
        return cls(
            backbone,
            plan,
            seed,
            {t: _layer_recipe(t).layer_numbers(backbone.n_layers) for t in plan.layers},
            _sizes(plan, backbone.width),
            {point: fit_spectrum(backbone.unembedding, point) for point in sorted(points)},
        )

    @property
    def states(self) -> set[State]:
        """That are changed."""
        return {(i, _layer_recipe(text).point) for text, own in self.layers.items() for i in own}

    def profile(self) -> EnergyProfile:
        """To be shown the unchanged states: all singular directions, and nested random ones."""
        bases: dict[Hashable, Subspace] = {}
        for point, spectrum in self.spectra.items():
            live = len(spectrum.directions())
            bases[point] = spectrum.subspace("reasoning", live)
            for draw in range(len(self.sizes) * self.plan.n_energy_draws):
                # Other seeds than those of the random subspaces of equal size.
                seed = self._draw_seed(self.plan.n_draws + draw)
                bases[point, draw] = spectrum.subspace("random", live, seed=seed)
        return EnergyProfile(self.backbone.unembedding, self.states, bases)

    def _draw_seed(self, draw: int) -> int:
        return self.seed * DRAWS_PER_SEED + draw

    def settings(
        self, profile: EnergyProfile, means: Mapping[State, Float[Tensor, " width"]] | None
    ) -> tuple[Intervention, ...]:
        """Everything that is removed, grouped by layers and size; `means` are put back."""
        made = []
        for text, layers in self.layers.items():
            point = _layer_recipe(text).point
            for number, m in enumerate(self.sizes):
                cut = self.spectra[point].subspace
                found = [("reasoning", 0, cut("reasoning", m)), ("semantic", 0, cut("semantic", m))]
                draws = range(self.plan.n_draws)
                found += [("random", i, cut("random", m, seed=self._draw_seed(i))) for i in draws]
                energy = profile.shares(point, layers, means)[-m:].sum().item()
                n_energy = self.plan.n_energy_draws
                for i in range(number * n_energy, (number + 1) * n_energy):
                    # Draws of their own for each size, so that no row stands for two.
                    found.append(
                        ("random_energy", i, profile.first((point, i), layers, energy, means))
                    )
                made += [
                    Intervention(text, layers, kind, draw, _change(basis, layers, means))
                    for kind, draw, basis in found
                ]
        return tuple(made)


def _sizes(plan: InterventionPlan, width: int) -> tuple[int, ...]:
    counts = (SubspaceSpec.parse(f"reasoning:{size}").n_dims(width) for size in plan.sizes)
    return tuple(dict.fromkeys(counts))


def _change(
    basis: Subspace,
    layers: Sequence[int],
    means: Mapping[State, Float[Tensor, " width"]] | None,
) -> Change:
    put_back = {} if means is None else {i: basis.project(means[i, basis.point]) for i in layers}
    return Change(basis, put_back)


# ----------------------------------------------------------------------- what one pass measures


class _Predictions:
    """For each judged token its log-probability (nats) and the id that was likeliest there."""

    layout = Layout(2, False, torch.float32)  # float32 holds ids up to 2^24 exactly

    def __init__(self, backbone: Backbone) -> None:
        self.wanted: tuple[State, ...] = ((backbone.n_layers, "post_norm"),)
        self._unembedding = backbone.unembedding
        self._parts: list[Tensor] = []

    def visit(
        self, layer: int, point: StatePoint, states: Tensor, index: BatchIndex, batch: TokenBatch
    ) -> None:
        if (layer, point) not in self.wanted:
            return
        targets = batch.ids[index.rows, index.columns]
        before = states[index.rows, index.previous]
        for part, target in zip(before.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
            logits = logits_of(part, self._unembedding)
            log_p = logits.gather(1, target[:, None])[:, 0] - logits.logsumexp(1)
            self._parts.append(torch.stack([log_p, logits.argmax(1).float()], dim=1).cpu())

    def finish(self, index: BatchIndex) -> Features:
        values, self._parts = torch.cat(self._parts), []
        return Features(values, index.offsets, False)


# ------------------------------------------------------------------------------------- measuring


def measure_interventions(
    backbone: Backbone,
    table: AnswerTable,
    *,
    plan: InterventionPlan,
    score: TrainedScore | None = None,
    grader: str | None = None,
    choices: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    overlong: Overlong = "error",
    tokens_per_batch: int = TOKENS_PER_BATCH,
    n_resamples: int = N_RESAMPLES,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[InterventionRow, ...]:
    """What changes when components of the states are removed.

    For each setting of layers the unchanged model (`none`) comes first, then the reasoning, the
    semantic and the random subspaces of each size, and the random ones of equal energy. Measures:

        log_probability   of the given answers, nats a token, mean over answers
        greedy_agreement  share of judged tokens at which the likeliest token is that of `none`
        energy_removed    share of the squared norm of the unchanged states that is taken out, mean
                          over judged tokens and the layers of the setting
        within_auroc      of the trained score; not where no answer has a label
        score_shift       mean |score - score of `none`| / standard deviation of the latter
        accuracy          of new answers, sampled with the same random numbers; with `n_samples` > 0

    All differences are paired over the same prompts with the same resamples; Holm's correction is
    over all comparisons with random subspaces that are made here.

    Args:
        backbone: a transformers model.
        table: answers to prompts that the score was not fitted on; labels 1, 0 or NaN.
        plan: where, what and how much.
        score: head whose scores on the changed states are measured.
        grader: rule for new answers, as in `retrm.data.grade`; the reference answers are
            `table.gold`.
        choices: options by prompt_id, for the grader `choice`.
        seed: of the chosen rows, random subspaces, sampling and intervals.
        overlong: as in `read`; skipped answers are counted by `estimate_interventions`.
        tokens_per_batch: as in `read`.
        n_resamples: of the intervals.
        on_progress: told tokens done and tokens in all, as estimated.

    Raises:
        BackboneError: no transformers model.
        RecipeError, OverlongError, RenderError: before the model works.
        DataError: an empty table, prompts that the score was fitted on, or new answers asked for
            without grader or reference answers.
        LabelError: labels are given, and no prompt has both right and wrong answers.
        FingerprintError: the score was fitted on another backbone.
        ScoreError: a score is not finite, or all scores are the same.
    """
    subject = _checked_subject(
        *(backbone, table, plan, seed, overlong, tokens_per_batch), is_scored=score is not None
    )
    _check_score(backbone, subject, score)
    _check_questions(backbone, subject, plan, grader, choices or {}, seed)
    subspaces = _Subspaces.of(backbone, plan, seed)
    work = _Work(
        backbone=backbone,
        subject=subject,
        plan=plan,
        score=score,
        grader=grader,
        choices=choices or {},
        seed=seed,
        overlong=overlong,
        tokens_per_batch=tokens_per_batch,
        meter=_Meter(_estimate(subject, plan, len(subspaces.sizes)).n_tokens, on_progress),
    )
    settings = work.settings(subspaces)
    reference, energies = work.reference(settings)
    found = [
        (setting, work.measure(setting, energies[:, number]))
        for number, setting in enumerate(settings)
    ]
    rows: list[InterventionRow] = []
    for fill in plan.fills:  # each against the random subspaces that are filled alike
        effects = Effects(
            table=subject.table,
            asked=list(subject.questions),
            reference=reference,
            fill=fill,
            spare_first=plan.spare_first,
            seed=seed,
            n_resamples=n_resamples,
        )
        rows += effects.rows([each for each in found if each[0].change.fill == fill])
    return corrected_interventions(rows)


def _check_score(backbone: Backbone, subject: _Subject, score: TrainedScore | None) -> None:
    if score is None:
        return
    if score.fingerprint is not None:
        check_fingerprint(score.fingerprint, backbone)
    shared = sorted(set(subject.questions) & set(score.train_prompts))
    if shared:
        raise DataError(
            f"{score.name} was fitted on {len(shared)} of the {len(subject.questions)} prompts, such "
            f"as {shared[0]!r}; expected held-out prompts only. Take them out of the table"
        )


class _Meter:
    """Tokens done of tokens in all."""

    def __init__(self, total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self._total, self._done, self._tell = total, 0, on_progress

    def within(self, tokens: int) -> None:
        if self._tell is not None:
            self._tell(self._done + tokens, self._total)

    def complete(self, tokens: int) -> None:
        self._done += tokens
        self.within(0)


@dataclass(frozen=True)
class _Work:
    """Everything that is the same under each setting."""

    backbone: Backbone
    subject: _Subject
    plan: InterventionPlan
    score: TrainedScore | None
    grader: str | None
    choices: Mapping[str, Sequence[str]]
    seed: int
    overlong: Overlong
    tokens_per_batch: int
    meter: _Meter

    def settings(self, subspaces: _Subspaces) -> tuple[Intervention, ...]:
        """One reading of the unchanged states: how much energy to match, and means to put back."""
        profile, totals = subspaces.profile(), MeanReducer(subspaces.states)
        has_means = "mean" in self.plan.fills
        self._pass({}, {"profile": profile, **({"totals": totals} if has_means else {})})
        made: list[Intervention] = []
        for fill in self.plan.fills:
            made += subspaces.settings(profile, totals.means() if fill == "mean" else None)
        return tuple(made)

    def reference(self, settings: Sequence[Intervention]) -> tuple[Measured, np.ndarray]:
        """The unchanged model, and the energies (answers, settings) that will be taken out."""
        energies = RemovedEnergy(self.backbone.unembedding, settings)
        features = self._read({"energies": energies})
        none = self._measured(features, np.zeros(len(self.subject.table)))
        return none, features["energies"].values.double().numpy()

    def measure(self, setting: Intervention, energy: np.ndarray) -> Measured:
        with removed(
            self.backbone,
            setting.layers,
            setting.change.basis,
            fill=setting.change.fill,
            means=setting.change.means or None,
            spare_first=self.plan.spare_first,
        ):
            return self._measured(self._read({}), energy)

    def _read(self, more: Mapping[str, StateReducer]) -> Mapping[str, Features]:
        recipes = {} if self.score is None else {"score": self.score.recipe}
        reducers: dict[str, StateReducer] = {"predictions": _Predictions(self.backbone), **more}
        if self.score is not None:
            reducers["score"] = Reducer(self.score.recipe, self.backbone, bases=self.score.bases)
        return self._pass(recipes, reducers)

    def _pass(
        self, recipes: Mapping[str, Recipe], reducers: Mapping[str, StateReducer]
    ) -> Mapping[str, Features]:
        reading = read(
            self.backbone,
            self.subject.table.answers,
            recipes,
            reducers=reducers,
            overlong=self.overlong,
            tokens_per_batch=self.tokens_per_batch,
            on_progress=lambda progress: self.meter.within(progress.tokens_done),
        )
        self.meter.complete(self.subject.read_tokens)
        return reading.features

    def _measured(self, features: Mapping[str, Features], energy: np.ndarray) -> Measured:
        predictions = features["predictions"]
        log_p, likeliest = predictions.values.double().numpy().T
        lengths = predictions.offsets.diff().numpy()
        answer = np.repeat(np.arange(len(lengths)), lengths)
        scores = None
        if self.score is not None:
            found = torch.as_tensor(self.score.score(features["score"])).detach()
            scores = check_scores(
                found.double().cpu().numpy(), self.subject.table.answers, self.score.name
            )
        return Measured(
            log_probability=np.bincount(answer, log_p) / lengths,
            likeliest=likeliest,
            lengths=lengths,
            energy=energy,
            scores=scores,
            correct=self._correct(),
        )

    def _correct(self) -> np.ndarray | None:
        """1 or 0 for each new answer, in the order of the questions."""
        if self.plan.n_samples == 0:
            return None
        ids, gold = list(self.subject.questions), self.subject.table.gold
        correct = []
        for drawn in _new_answers(
            *(self.backbone, self.subject, self.plan, self.seed),
            lambda done, _: self.meter.within(done * self.plan.max_new_tokens),
        ):
            asked = ids[drawn.prompt]
            options = self.choices.get(asked)
            correct.append(is_correct(str(self.grader), drawn.response, gold[asked], options))
        self.meter.complete(len(correct) * self.plan.max_new_tokens)
        return np.array(correct, dtype=np.float64)
