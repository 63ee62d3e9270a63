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

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.audit.effects import Effects, Outcome, corrected_interventions
from retrm.audit.intervention_plan import InterventionPlan, layer_recipe
from retrm.audit.intervention_work import (
    Subject,
    check_questions,
    checked_subject,
    new_answers,
    work_of,
)
from retrm.audit.removal import Change, Intervention, MeanReducer, State, removed
from retrm.audit.removed_energy import EnergyProfile, RemovedEnergy
from retrm.audit.settings import draw_seed
from retrm.audit.tables import InterventionRow
from retrm.backbone.base import Backbone, Fingerprint, StatePoint, TokenBatch
from retrm.backbone.batching import TOKENS_PER_BATCH
from retrm.backbone.locate import logits_of
from retrm.data.grade import is_correct
from retrm.errors import DataError
from retrm.features.read import Overlong, read
from retrm.features.recipe import Recipe
from retrm.features.reduce import LOGIT_ROWS, BatchIndex, Features, Layout, StateReducer
from retrm.features.subspace import Subspace, SubspaceFitter, fit_spectrum
from retrm.metrics import N_RESAMPLES
from retrm.records import AnswerTable
from retrm.scorers.base import check_scores
from retrm.scorers.reward_model import check_fingerprint


@dataclass(frozen=True)
class TrainedScore:
    """A head that was fitted on unchanged states, to be shown changed ones.

    Attributes:
        recipe: which states it reads.
        score: features -> (n,) raw scores, such as `head.score`.
        train_prompts: ids of the prompts it was fitted on; answers to them are refused.
        name: for messages.
        fingerprint: of the backbone it was fitted on; another one is refused. None = not known.
    """

    recipe: Recipe
    score: Callable[[Features], Tensor | np.ndarray]
    train_prompts: Collection[str] = ()
    name: str = "head"
    fingerprint: Fingerprint | None = None


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
        points: set[StatePoint] = {layer_recipe(text).point for text in plan.layers}
        return cls(
            backbone,
            plan,
            seed,
            {t: layer_recipe(t).layer_numbers(backbone.n_layers) for t in plan.layers},
            plan.n_dims(backbone.width),
            {point: fit_spectrum(backbone.unembedding, point) for point in sorted(points)},
        )

    @property
    def states(self) -> set[State]:
        """That are changed."""
        return {(i, layer_recipe(text).point) for text, own in self.layers.items() for i in own}

    def profile(self) -> EnergyProfile:
        """To be shown the unchanged states: all singular directions, and nested random ones."""
        bases: dict[Hashable, Subspace] = {}
        for point, spectrum in self.spectra.items():
            live = len(spectrum.directions())
            bases[point] = spectrum.subspace("reasoning", live)
            for draw in range(len(self.sizes) * self.plan.n_energy_draws):
                # Other seeds than those of the random subspaces of equal size.
                seed = draw_seed(self.seed, self.plan.n_draws + draw)
                bases[point, draw] = spectrum.subspace("random", live, seed=seed)
        return EnergyProfile(self.backbone.unembedding, self.states, bases)

    def settings(
        self, profile: EnergyProfile, means: Mapping[State, Float[Tensor, " width"]] | None
    ) -> tuple[Intervention, ...]:
        """Everything that is removed, grouped by layers and size; `means` are put back."""
        made = []
        for text, layers in self.layers.items():
            point = layer_recipe(text).point
            for number, m in enumerate(self.sizes):
                cut = self.spectra[point].subspace
                found = [("reasoning", 0, cut("reasoning", m)), ("semantic", 0, cut("semantic", m))]
                draws = range(self.plan.n_draws)
                found += [
                    ("random", i, cut("random", m, seed=draw_seed(self.seed, i))) for i in draws
                ]
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

    reads_prompts = True

    def visit(
        self, layer: int, point: StatePoint, states: Tensor, index: BatchIndex, batch: TokenBatch
    ) -> None:
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
    subject = checked_subject(
        *(backbone, table, plan, seed, overlong, tokens_per_batch), is_scored=score is not None
    )
    _check_score(backbone, subject, score)
    check_questions(backbone, subject, plan, grader, seed)
    subspaces = _Subspaces.of(backbone, plan, seed)
    work = _Work(
        backbone=backbone,
        subject=subject,
        plan=plan,
        score=score,
        grader=grader,
        seed=seed,
        overlong=overlong,
        tokens_per_batch=tokens_per_batch,
        meter=_Meter(work_of(subject, plan, backbone.width).n_tokens, on_progress),
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


def _check_score(backbone: Backbone, subject: Subject, score: TrainedScore | None) -> None:
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
    subject: Subject
    plan: InterventionPlan
    score: TrainedScore | None
    grader: str | None
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

    def reference(self, settings: Sequence[Intervention]) -> tuple[Outcome, np.ndarray]:
        """The unchanged model, and the energies (answers, settings) that will be taken out."""
        energies = RemovedEnergy(self.backbone.unembedding, settings)
        features = self._read({"energies": energies})
        none = self._measured(features, np.zeros(len(self.subject.table)))
        return none, features["energies"].values.double().numpy()

    def measure(self, setting: Intervention, energy: np.ndarray) -> Outcome:
        with removed(
            self.backbone, setting.layers, setting.change, spare_first=self.plan.spare_first
        ):
            return self._measured(self._read({}), energy)

    def _read(self, more: Mapping[str, StateReducer]) -> Mapping[str, Features]:
        recipes = {} if self.score is None else {"score": self.score.recipe}
        return self._pass(recipes, {"predictions": _Predictions(self.backbone), **more})

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

    def _measured(self, features: Mapping[str, Features], energy: np.ndarray) -> Outcome:
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
        return Outcome(
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
        drawn = new_answers(
            *(self.backbone, self.subject, self.plan, self.seed),
            lambda done, _: self.meter.within(done * self.plan.max_new_tokens),
        )
        correct = [
            is_correct(str(self.grader), new.response, gold[ids[new.prompt]]) for new in drawn
        ]
        self.meter.complete(len(correct) * self.plan.max_new_tokens)
        return np.array(correct, dtype=np.float64)
