"""The stages of an audit: which feature sets are fitted on which states, and what is subtracted.

Each stage is a question and gives rows of tables. Stages are independent and are kept on disk as they
finish, so a killed audit goes on at the stage it was in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

from retrm.audit.controls import controls
from retrm.audit.descriptions import answer_rows, curves, direction_rows
from retrm.audit.directions import FEW_DRAWS, Directions, FeatureSet, drawn, usable_matrices
from retrm.audit.energy import AnswerEnergy
from retrm.audit.measure import Measure, Measured, Setting
from retrm.audit.plan import AuditPlan, Matrix
from retrm.audit.probes import (
    Probe,
    gated_probe,
    logistic_probes,
    ridge_probes,
)
from retrm.audit.supervision import Supervision
from retrm.audit.tables import (
    AuditTables,
    CellRow,
    ContrastRow,
    OverlapRow,
    SpectrumRow,
)
from retrm.backbone.base import Unembedding
from retrm.errors import FitError, LabelError
from retrm.features.reduce import Features
from retrm.fitting.ridge import Moments
from retrm.metrics import mean_statistic
from retrm.selection import apply


class StateSource(Protocol):
    """What the stages need of a reading; `retrm.audit.reading.AuditReading` is one."""

    rows: np.ndarray
    layers: tuple[int, ...]
    width: int

    def states(self, layer: int, pooling: str) -> Float[Tensor, "answers width"]:
        """Pooled post_norm states."""
        ...

    def maximum(self, name: str) -> Float[Tensor, "answers features"]:
        """Maximum over tokens."""
        ...

    def tokens(self) -> Features:
        """Response tokens of the last layer."""
        ...

    def energy(self) -> AnswerEnergy:
        """Energy of each answer's last token."""
        ...

    def scalars(self) -> dict[str, Float[Tensor, " answers"]]:
        """Log-probabilities and entropies."""
        ...


@dataclass
class Grid:
    """The stages over one reading.

    Attributes:
        reading: the stored states.
        supervision: its judged rows.
        head: final norm and LM head of the backbone.
        plan: the grid.
        matrices: those whose directions can be had.
        on_step: called with (done, in all) inside a stage.
    """

    reading: StateSource
    supervision: Supervision
    head: Unembedding
    plan: AuditPlan
    on_step: Callable[[int, int], None] | None = None

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """All four, or the unfolded ones where the norm's gain has a zero."""
        return usable_matrices(self.head)

    @cached_property
    def directions(self) -> Directions:
        """Singular directions of every matrix."""
        return Directions(self.head, self.matrices, seed_of=self.plan.draw_seed)

    @cached_property
    def m(self) -> int:
        """Width of the primary contrast."""
        return self.plan.m(self.reading.width)

    @cached_property
    def last(self) -> int:
        """The last layer that was read."""
        return self.reading.layers[-1]

    @cached_property
    def folds(self) -> list[np.ndarray]:
        """Outer folds of every split seed; exploratory stages use the first."""
        return [self.supervision.folds(self.plan, seed) for seed in range(self.plan.n_split_seeds)]

    @cached_property
    def energy(self) -> AnswerEnergy:
        """Of every answer that was read."""
        return self.reading.energy()

    @cached_property
    def scalars(self) -> dict[str, Tensor]:
        """Log-probabilities and entropies of every answer that was read."""
        return self.reading.scalars()

    @cached_property
    def measure(self) -> Measure:
        """Metrics with the resamples of this audit."""
        rows = self.supervision.rows
        finished = [answer.finished for answer in self.supervision.table.answers]
        return Measure(
            self.supervision,
            lengths=self.energy.n_tokens[rows].double().numpy(),
            log_probability=self.log_probability,
            finished=np.array([math.nan if f is None else float(f) for f in finished]),
            seed=self.plan.seed,
        )

    @property
    def log_probability(self) -> np.ndarray:
        """(n,) mean of each judged answer, nats a token."""
        return self.scalars["mean_log_probability"][self.supervision.rows].double().numpy()

    def states(self, layer: int, pooling: str) -> Float[Tensor, "answers width"]:
        """Pooled post_norm states of the judged answers."""
        return self.reading.states(layer, pooling)[self.supervision.rows]

    @property
    def _pooled(self) -> tuple[str, ...]:
        return tuple(p for p in ("last", "mean") if p in self.plan.poolings)

    def stages(self) -> Mapping[str, Callable[[], AuditTables]]:
        """All stages of the plan by name, in the order in which they are run."""
        out: dict[str, Callable[[], AuditTables]] = {
            "primary": self.primary,
            "spectrum": self.spectrum,
            "controls": lambda: controls(self),
        }
        for pooling in self._pooled:
            out[f"width-{pooling}"] = lambda pooling=pooling: self.width(pooling)
        out["learning"] = self.learning
        out["matrix"] = self.matrix
        out["band"] = self.band
        if "max" in self.plan.poolings:
            out["max"] = self.maximum
        for pooling in self._pooled:
            out[f"layers-{pooling}"] = lambda pooling=pooling: self.layers(pooling)
        if "gate" in self.plan.poolings:
            out["gate"] = self.gate
        return out

    # ------------------------------------------------------------------ stages

    def primary(self) -> AuditTables:
        """The contrasts of record, with the head of `retrm fit`, and the baselines beside them."""
        sets = self._four(self.plan.n_primary_draws)
        setting = Setting("primary", self.last, "last")
        measured, first = self._logistic(self.states(self.last, "last"), sets, setting)
        full, reasoning, semantic, *random = measured
        cells = self._baseline_cells()
        for found in (full, reasoning, semantic, random[0]):
            cells += self.measure.cells(found, every_interval=True) + self.measure.more_cells(found)
        for found in random[1:]:
            cells += self.measure.cells(found)
        contrasts = [
            *self.measure.contrasts("primary", reasoning, random, is_random=True),
            *self.measure.contrasts("economy", reasoning, [full], is_random=False),
            *self.measure.contrasts("exploratory", semantic, random, is_random=True),
            *self.measure.length_contrasts(reasoning),
        ]
        return AuditTables(
            facts={},
            cells=cells,
            contrasts=contrasts,
            answers=answer_rows(self, first),
            curves=curves(self, first),
        )

    def spectrum(self) -> AuditTables:
        """The singular values, what the answers' states hold in each direction, and overlaps."""
        rows = [
            SpectrumRow(name, i, value)
            for name in self.matrices
            for i, value in enumerate(self.directions.singular_values(name).tolist())
        ]
        overlaps = [
            OverlapRow(a, b, self.m, value)
            for (a, b), value in self.directions.overlaps(self.m).items()
        ]
        return AuditTables(
            facts={}, spectrum=rows, overlap=overlaps, directions=direction_rows(self)
        )

    def width(self, pooling: str) -> AuditTables:
        """Every kind of subspace at every width."""
        states = self.states(self.last, pooling)
        setting = Setting("width", self.last, pooling)
        (full,) = self.ridge(states, [FeatureSet("full", self.reading.width)], setting)
        cells, contrasts = self.measure.cells(full), []
        widths = self.plan.all_widths(self.reading.width)
        checked = [] if pooling == "last" else self._four(self.plan.n_draws)
        n_steps = len(widths) + len(checked) * len(self.folds)
        for step, m in enumerate(widths):
            found = self.ridge(states, self._kinds(m), setting)
            cells += self.measure.cells_of(found)
            contrasts += self._three_contrasts(found, full)
            self._step(step + 1, n_steps)
        if checked:  # the same head as the primary contrast, for another pooling
            more = self._logistic_check(states, checked, pooling, n_before=len(widths))
            cells, contrasts = cells + more.cells, contrasts + more.contrasts
        return AuditTables(facts={}, cells=cells, contrasts=contrasts)

    def learning(self) -> AuditTables:
        """The same subspaces with few training prompts: nested parts, several orders."""
        states = self.states(self.last, "last")
        sets = self._four(self.plan.n_draws)
        setting = Setting("learning", self.last, "last")
        sizes = self.plan.learning_sizes(self.supervision.n_prompts)
        cells, contrasts, left_out = [], [], []
        for step, size in enumerate(sizes):
            found = self._repeated(states, sets, setting, size)
            if found is None:
                left_out.append(size)
                continue
            cells += self.measure.cells_of(found)
            contrasts += self._three_contrasts(found[1:], found[0])
            self._step(step + 1, len(sizes))
        return AuditTables(
            facts={"learning_sizes_left_out": left_out}, cells=cells, contrasts=contrasts
        )

    def matrix(self) -> AuditTables:
        """Raw, folded and centred LM heads: does the choice of matrix matter."""
        states = self.states(self.last, "last")
        setting = Setting("matrix", self.last, "last")
        cells, contrasts = [], []
        for step, name in enumerate(self.matrices):
            for m in self.plan.all_widths(self.reading.width):
                sets = [
                    FeatureSet("reasoning", m, name),
                    FeatureSet("semantic", m, name),
                    *drawn("random", m, name, self.plan.n_draws),
                ]
                found = self.ridge(states, sets, setting)
                cells += self.measure.cells_of(found)
                contrasts += self.measure.contrasts(
                    "exploratory", found[0], found[2:], is_random=True
                )
            self._step(step + 1, len(self.matrices))
        return AuditTables(facts={}, cells=cells, contrasts=contrasts)

    def band(self) -> AuditTables:
        """A window of singular directions that slides over the spectrum."""
        live = len(self.directions.all_directions("raw"))
        steps = min(self.plan.n_band_steps, live - self.m + 1)
        offsets = sorted({round(x) for x in np.linspace(0, live - self.m, steps).tolist()})
        sets = [
            FeatureSet("full", self.reading.width),
            *drawn("random", self.m, "raw", self.plan.n_draws),
            *(FeatureSet("band", self.m, "raw", offset=offset) for offset in offsets),
        ]
        cells = []
        for step, pooling in enumerate(self._pooled):
            setting = Setting("band", self.last, pooling)
            found = self.ridge(self.states(self.last, pooling), sets, setting)
            cells += self.measure.cells_of(found)
            self._step(step + 1, len(self._pooled))
        return AuditTables(facts={}, cells=cells)

    def maximum(self) -> AuditTables:
        """Maximum over tokens, taken per subspace while reading."""
        setting = Setting("pooling", self.last, "max")
        full, reasoning, semantic, *random = self._four(self.plan.n_draws)
        sets = [full, reasoning, semantic, FeatureSet("middle", self.m, "raw"), *random]
        found = []
        for step, features in enumerate(sets):
            name = f"random.{features.draw}" if features.kind == "random" else features.kind
            states = self.reading.maximum(name)[self.supervision.rows]
            found += self.ridge(states, [features], setting, _whole)
            self._step(step + 1, len(sets))
        cells = self.measure.cells_of(found)
        contrasts = self._three_contrasts([*found[1:3], *found[4:]], found[0])
        return AuditTables(facts={}, cells=cells, contrasts=contrasts)

    def gate(self) -> AuditTables:
        """ELHSR's gate over the tokens of the last layer."""
        tokens = self.reading.tokens().take(self.supervision.rows)
        sets = self._four(FEW_DRAWS)
        setting, found = Setting("pooling", self.last, "gate"), []
        for step, features in enumerate(sets):
            basis = self.directions.of(features)
            probe = gated_probe(
                tokens, features, basis, self.supervision, self.folds[0], seed=self.plan.seed
            )
            found.append(self.measure.take([probe], setting, self.folds[:1]))
            self._step(step + 1, len(sets))
        cells = self.measure.cells_of(found)
        contrasts = self._three_contrasts(found[1:], found[0])
        return AuditTables(facts={}, cells=cells, contrasts=contrasts)

    def layers(self, pooling: str) -> AuditTables:
        """Full state and subspaces at every layer, each as the final norm sees it."""
        sets = [
            *self._four(self.plan.n_layer_draws),
            FeatureSet("middle", self.m, "raw"),
            FeatureSet("pca_top", self.m),
        ]
        cells, contrasts = [], []
        for step, layer in enumerate(reversed(self.reading.layers)):
            setting = Setting("layer", layer, pooling)
            found = self.ridge(self.states(layer, pooling), sets, setting)
            cells += self.measure.cells_of(found)
            contrasts += self._three_contrasts(found[1:-2], found[0])
            self._step(step + 1, len(self.reading.layers))
        return AuditTables(facts={}, cells=cells, contrasts=contrasts)

    # ------------------------------------------------------------------- parts

    def _step(self, done: int, total: int) -> None:
        if self.on_step is not None:
            self.on_step(done, total)

    def _four(self, n_draws: int) -> list[FeatureSet]:
        """Full, reasoning, semantic and random ones, at the width of the primary contrast."""
        return [
            FeatureSet("full", self.reading.width),
            FeatureSet("reasoning", self.m, "raw"),
            FeatureSet("semantic", self.m, "raw"),
            *drawn("random", self.m, "raw", n_draws),
        ]

    def _kinds(self, m: int) -> list[FeatureSet]:
        few = min(FEW_DRAWS, self.plan.n_draws)
        return [
            FeatureSet("reasoning", m, "raw"),
            FeatureSet("semantic", m, "raw"),
            *drawn("random", m, "raw", self.plan.n_draws),
            FeatureSet("middle", m, "raw"),
            *drawn("random_singular", m, "raw", few),
            *drawn("coordinates", m, "-", few),
            FeatureSet("pca_top", m),
            FeatureSet("pca_bottom", m),
        ]

    def _three_contrasts(self, found: Sequence[Measured], full: Measured) -> list[ContrastRow]:
        """Reasoning - random, semantic - random, reasoning - full; `found` begins with the two."""
        reasoning, semantic = found[0], found[1]
        random = [one for one in found if one.probe.features.kind == "random"]
        return [
            *self.measure.contrasts("exploratory", reasoning, random, is_random=True),
            *self.measure.contrasts("exploratory", semantic, random, is_random=True),
            *self.measure.contrasts("exploratory", reasoning, [full], is_random=False),
        ]

    def ridge(
        self,
        states: Tensor,
        sets: Sequence[FeatureSet],
        setting: Setting,
        columns: Callable[[FeatureSet, Moments], Tensor | None] | None = None,
    ) -> list[Measured]:
        """Least-squares heads on every feature set, over the first split.

        Args:
            states: of the judged answers.
            sets: what to fit on.
            setting: where they stand in the grid.
            columns: directions of a set on `states`; those of `directions` by default.
        """
        probes = ridge_probes(
            states, sets, self.supervision, self.folds[0], self.plan, columns or self.directions.of
        )
        return [self.measure.take([probe], setting, self.folds[:1]) for probe in probes]

    def _repeated(
        self, states: Tensor, sets: Sequence[FeatureSet], setting: Setting, size: int
    ) -> list[Measured] | None:
        """None where a training part is too small to hold both classes."""
        repeats = []
        for repeat in range(self.plan.n_learning_repeats):
            try:
                repeats.append(
                    ridge_probes(
                        states,
                        sets,
                        self.supervision,
                        self.folds[0],
                        self.plan,
                        self.directions.of,
                        n_prompts=size,
                        subset_seed=self.plan.seed + repeat,
                    )
                )
            except (LabelError, FitError):
                return None
        folds = [self.folds[0]] * len(repeats)
        return [self.measure.take(each, setting, folds) for each in zip(*repeats, strict=True)]

    def _logistic(
        self,
        states: Tensor,
        sets: Sequence[FeatureSet],
        setting: Setting,
        *,
        n_before: int = 0,
    ) -> tuple[list[Measured], tuple[Probe, ...]]:
        """Measured over all split seeds, and the probes of the first one.

        Its steps follow on `n_before` of the same stage.
        """
        total, by_seed = n_before + len(sets) * len(self.folds), []
        for number, folds in enumerate(self.folds):
            by_seed.append(
                logistic_probes(
                    states,
                    sets,
                    self.supervision,
                    folds,
                    self.directions,
                    seed=self.plan.seed,
                    on_probe=lambda done, _, number=number: self._step(
                        n_before + number * len(sets) + done, total
                    ),
                )
            )
        measured = [
            self.measure.take(each, setting, self.folds) for each in zip(*by_seed, strict=True)
        ]
        return measured, by_seed[0]

    def _logistic_check(
        self, states: Tensor, sets: Sequence[FeatureSet], pooling: str, *, n_before: int
    ) -> AuditTables:
        setting = Setting("pooling", self.last, pooling)
        found, _ = self._logistic(states, sets, setting, n_before=n_before)
        cells = self.measure.cells_of(found)
        return AuditTables(
            facts={}, cells=cells, contrasts=self._three_contrasts(found[1:], found[0])
        )

    def _baseline_cells(self) -> list[CellRow]:
        scores = {"log-probability": self.log_probability, **self.measure.rules_by_length()}
        cells = []
        for name, values in scores.items():
            probe = Probe.rule(name, values)
            found = self.measure.take([probe], Setting("primary", -1, "-"), self.folds[:1])
            cells += self.measure.cells(found, every_interval=True)
        return cells + self._majority_cells()

    def _majority_cells(self) -> list[CellRow]:
        """Accuracy of the majority vote, where answers carry keys to vote with."""
        s = self.supervision
        keys = [answer.key for answer in s.table.answers]
        if s.task == "preferences" or not any(keys):
            return []
        votes = apply("majority", [str(i) for i in s.prompt_ids], keys=keys)
        statistic = mean_statistic(votes.chosen_labels(s.labels), votes.prompt_ids)
        found = Measured(
            Probe.rule("majority", np.zeros(s.n)),
            Setting("primary", -1, "-"),
            {"best_of_n": statistic},
        )
        return self.measure.cells(found, every_interval=True)


def _whole(_features: FeatureSet, _train: Moments) -> None:
    return None
