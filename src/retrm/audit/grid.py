"""The stages of an audit: which feature sets are fitted on which states, and what is subtracted.

Each stage is a question and gives rows of tables. Stages are independent and are kept on disk as they
finish, so a killed audit goes on at the stage it was in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retrm.audit.directions import Directions, FeatureSet
from retrm.audit.energy import AnswerEnergy
from retrm.audit.measure import NAN, Measure, Measured, Setting
from retrm.audit.plan import MATRICES, AuditPlan
from retrm.audit.probes import (
    ROWS_AT_ONCE,
    Probe,
    gated_probe,
    inner_moments,
    logistic_probes,
    ridge_probes,
)
from retrm.audit.supervision import Supervision
from retrm.audit.tables import (
    AnswerRow,
    AuditTables,
    CellRow,
    ContrastRow,
    CurveRow,
    DirectionRow,
    OverlapRow,
    SpectrumRow,
)
from retrm.backbone.base import Unembedding
from retrm.errors import FitError, LabelError
from retrm.evaluation.best_of_n import majority_curve
from retrm.evaluation.held_out import baseline_scores
from retrm.features.reduce import Features
from retrm.fitting.ridge import Moments, choose_ridge, project_all
from retrm.metrics import AverageStatistic, best_of_k_statistic, mean_statistic
from retrm.selection import apply

FEW_DRAWS = 5  # of kinds that are controls of a control, or dear to fit
N_SHUFFLES = 20  # of one alone, every twentieth looks like a leak
N_LOGISTIC_SHUFFLES = 3


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
    def matrices(self) -> tuple[str, ...]:
        """All four, or the unfolded ones where the norm's gain has a zero."""
        gain = self.head.gain
        if gain is not None and bool((gain == 0).any()):
            return tuple(name for name in MATRICES if "folded" not in name)
        return MATRICES

    @cached_property
    def directions(self) -> Directions:
        """Singular directions of every matrix."""
        return Directions(self.head, self.matrices, seed_of=self.plan.draw_seed)  # type: ignore[arg-type]

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
    def _energy(self) -> AnswerEnergy:
        return self.reading.energy()

    @cached_property
    def _scalars(self) -> dict[str, Tensor]:
        return self.reading.scalars()

    @cached_property
    def measure(self) -> Measure:
        """Metrics with the resamples of this audit."""
        rows = self.supervision.rows
        finished = [answer.finished for answer in self.supervision.table.answers]
        return Measure(
            self.supervision,
            lengths=self._energy.n_tokens[rows].double().numpy(),
            log_probability=self._log_probability,
            finished=np.array([NAN if f is None else float(f) for f in finished]),
            seed=self.plan.seed,
        )

    @property
    def _log_probability(self) -> np.ndarray:
        return self._scalars["mean_log_probability"][self.supervision.rows].double().numpy()

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
            "controls": self.controls,
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
        sets = [
            FeatureSet("full", self.reading.width),
            FeatureSet("reasoning", self.m, "raw"),
            FeatureSet("semantic", self.m, "raw"),
            *_drawn("random", self.m, "raw", self.plan.n_primary_draws),
        ]
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
            answers=self._answer_rows(first),
            curves=self._curves(first),
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
            facts={}, spectrum=rows, overlap=overlaps, directions=self._direction_rows()
        )

    def controls(self) -> AuditTables:
        """Scalars alone and added, labels permuted, unscaled and whitened features, the prompt."""
        states = self.states(self.last, "last")
        scalars, names = self._scalar_columns(states)
        both = torch.cat([states, scalars.float()], dim=1)
        width, extra = self.reading.width, scalars.shape[1]
        random = _drawn("random", self.m, "raw", self.plan.n_draws)
        combined = [
            FeatureSet("scalars", extra),
            FeatureSet("scalars+full", width + extra),
            FeatureSet("scalars+reasoning", self.m + extra, "raw"),
            *(FeatureSet("scalars+random", self.m + extra, "raw", f.draw) for f in random),
            *(FeatureSet(f"scalar:{name}", 1) for name in names),
        ]

        def columns(features: FeatureSet, train: Moments) -> Tensor | None:
            return self._with_scalars(features, names)

        setting = Setting("controls", self.last, "last")
        found = self._ridge(both, combined, setting, columns)
        added = found[3 : 3 + len(random)]
        contrasts = [
            *self.measure.contrasts("exploratory", found[2], added, is_random=True),
            *self.measure.contrasts("exploratory", found[2], [found[0]], is_random=False),
        ]
        alone = [
            FeatureSet("full", width, scaling="raw"),
            FeatureSet("reasoning", self.m, "raw", scaling="raw"),
            FeatureSet("coordinates", self.m, scaling="raw"),
            FeatureSet("semantic_all", width - self.m, "raw"),
            *_drawn("white_random", self.m, "-", FEW_DRAWS),
        ]
        found += self._ridge(states, alone, setting)
        if self.supervision.task == "graded":
            prompt = self.states(self.last, "prompt_end")
            where = Setting("controls", self.last, "prompt_end")
            found += self._ridge(prompt, [FeatureSet("prompt", width)], where)
        cells = [row for one in found for row in self.measure.cells(one)]
        return AuditTables(facts={}, cells=cells + self._shuffled(states), contrasts=contrasts)

    def width(self, pooling: str) -> AuditTables:
        """Every kind of subspace at every width."""
        states = self.states(self.last, pooling)
        setting = Setting("width", self.last, pooling)
        (full,) = self._ridge(states, [FeatureSet("full", self.reading.width)], setting)
        cells, contrasts = self.measure.cells(full), []
        widths = self.plan.all_widths(self.reading.width)
        for step, m in enumerate(widths):
            found = self._ridge(states, self._kinds(m), setting)
            cells += [row for one in found for row in self.measure.cells(one)]
            contrasts += self._three_contrasts(found, full)
            self._step(step + 1, len(widths))
        if pooling != "last":  # the same head as the primary contrast, for another pooling
            more = self._logistic_check(states, pooling)
            cells, contrasts = cells + more.cells, contrasts + more.contrasts
        return AuditTables(facts={}, cells=cells, contrasts=contrasts)

    def learning(self) -> AuditTables:
        """The same subspaces with few training prompts: nested parts, several orders."""
        states = self.states(self.last, "last")
        sets = [
            FeatureSet("full", self.reading.width),
            FeatureSet("reasoning", self.m, "raw"),
            FeatureSet("semantic", self.m, "raw"),
            *_drawn("random", self.m, "raw", self.plan.n_draws),
        ]
        setting = Setting("learning", self.last, "last")
        sizes = self.plan.learning_sizes(self.supervision.n_prompts)
        cells, contrasts, left_out = [], [], []
        for step, size in enumerate(sizes):
            found = self._repeated(states, sets, setting, size)
            if found is None:
                left_out.append(size)
                continue
            cells += [row for one in found for row in self.measure.cells(one)]
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
                    *_drawn("random", m, name, self.plan.n_draws),
                ]
                found = self._ridge(states, sets, setting)
                cells += [row for one in found for row in self.measure.cells(one)]
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
            *_drawn("random", self.m, "raw", self.plan.n_draws),
            *(FeatureSet("band", self.m, "raw", offset=offset) for offset in offsets),
        ]
        cells = []
        for pooling in self._pooled:
            setting = Setting("band", self.last, pooling)
            found = self._ridge(self.states(self.last, pooling), sets, setting)
            cells += [row for one in found for row in self.measure.cells(one)]
        return AuditTables(facts={}, cells=cells)

    def maximum(self) -> AuditTables:
        """Maximum over tokens, taken per subspace while reading."""
        setting = Setting("pooling", self.last, "max")
        random = _drawn("random", self.m, "raw", self.plan.n_draws)
        wanted = [
            (FeatureSet("full", self.reading.width), "full"),
            (FeatureSet("reasoning", self.m, "raw"), "reasoning"),
            (FeatureSet("semantic", self.m, "raw"), "semantic"),
            (FeatureSet("middle", self.m, "raw"), "middle"),
            *((f, f"random.{f.draw}") for f in random),
        ]
        found = []
        for step, (features, name) in enumerate(wanted):
            states = self.reading.maximum(name)[self.supervision.rows]
            found += self._ridge(states, [features], setting, _whole)
            self._step(step + 1, len(wanted))
        cells = [row for one in found for row in self.measure.cells(one)]
        contrasts = self._three_contrasts([*found[1:3], *found[4:]], found[0])
        return AuditTables(facts={}, cells=cells, contrasts=contrasts)

    def gate(self) -> AuditTables:
        """ELHSR's gate over the tokens of the last layer."""
        tokens = self.reading.tokens().take(self.supervision.rows)
        sets = [
            FeatureSet("full", self.reading.width),
            FeatureSet("reasoning", self.m, "raw"),
            FeatureSet("semantic", self.m, "raw"),
            *_drawn("random", self.m, "raw", FEW_DRAWS),
        ]
        setting, found = Setting("pooling", self.last, "gate"), []
        for step, features in enumerate(sets):
            basis = self.directions.of(features)
            probe = gated_probe(
                tokens, features, basis, self.supervision, self.folds[0], seed=self.plan.seed
            )
            found.append(self.measure.take([probe], setting, self.folds[:1]))
            self._step(step + 1, len(sets))
        cells = [row for one in found for row in self.measure.cells(one)]
        contrasts = self._three_contrasts(found[1:], found[0])
        return AuditTables(facts={}, cells=cells, contrasts=contrasts)

    def layers(self, pooling: str) -> AuditTables:
        """Full state and subspaces at every layer, each as the final norm sees it."""
        sets = [
            FeatureSet("full", self.reading.width),
            FeatureSet("reasoning", self.m, "raw"),
            FeatureSet("semantic", self.m, "raw"),
            *_drawn("random", self.m, "raw", self.plan.n_layer_draws),
            FeatureSet("middle", self.m, "raw"),
            FeatureSet("pca_top", self.m),
        ]
        cells, contrasts = [], []
        for step, layer in enumerate(reversed(self.reading.layers)):
            setting = Setting("layer", layer, pooling)
            found = self._ridge(self.states(layer, pooling), sets, setting)
            cells += [row for one in found for row in self.measure.cells(one)]
            contrasts += self._three_contrasts(found[1:-2], found[0])
            self._step(step + 1, len(self.reading.layers))
        return AuditTables(facts={}, cells=cells, contrasts=contrasts)

    # ------------------------------------------------------------------- parts

    def _step(self, done: int, total: int) -> None:
        if self.on_step is not None:
            self.on_step(done, total)

    def _kinds(self, m: int) -> list[FeatureSet]:
        few = min(FEW_DRAWS, self.plan.n_draws)
        return [
            FeatureSet("reasoning", m, "raw"),
            FeatureSet("semantic", m, "raw"),
            *_drawn("random", m, "raw", self.plan.n_draws),
            FeatureSet("middle", m, "raw"),
            *_drawn("random_singular", m, "raw", few),
            *_drawn("coordinates", m, "-", few),
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

    def _ridge(
        self,
        states: Tensor,
        sets: Sequence[FeatureSet],
        setting: Setting,
        columns: Callable[[FeatureSet, Moments], Tensor | None] | None = None,
    ) -> list[Measured]:
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
        self, states: Tensor, sets: Sequence[FeatureSet], setting: Setting
    ) -> tuple[list[Measured], tuple[Probe, ...]]:
        """Measured over all split seeds, and the probes of the first one."""
        total, by_seed = len(sets) * len(self.folds), []
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
                        number * len(sets) + done, total
                    ),
                )
            )
        measured = [
            self.measure.take(each, setting, self.folds) for each in zip(*by_seed, strict=True)
        ]
        return measured, by_seed[0]

    def _logistic_check(self, states: Tensor, pooling: str) -> AuditTables:
        sets = [
            FeatureSet("full", self.reading.width),
            FeatureSet("reasoning", self.m, "raw"),
            FeatureSet("semantic", self.m, "raw"),
            *_drawn("random", self.m, "raw", self.plan.n_draws),
        ]
        found, _ = self._logistic(states, sets, Setting("pooling", self.last, pooling))
        cells = [row for one in found for row in self.measure.cells(one)]
        return AuditTables(
            facts={}, cells=cells, contrasts=self._three_contrasts(found[1:], found[0])
        )

    def _shuffled(self, states: Tensor) -> list[CellRow]:
        """Reasoning features with labels permuted within prompts: must come out at chance.

        The mean of many permutations is judged, once with each kind of head.
        """
        setting = Setting("controls", self.last, "last")
        features = FeatureSet("reasoning", self.m, "raw")
        found = {"ridge": [], "logistic": []}
        for number in range(N_SHUFFLES):
            shuffled = self.supervision.shuffled(self.plan.seed + number)
            made = ridge_probes(
                *(states, [features], shuffled, self.folds[0], self.plan, self.directions.of)
            )
            found["ridge"].append((shuffled, made[0]))
            if number < N_LOGISTIC_SHUFFLES:
                made = logistic_probes(
                    *(states, [features], shuffled, self.folds[0], self.directions)
                )
                found["logistic"].append((shuffled, made[0]))
        cells = []
        for each in found.values():
            shown = replace(each[0][1], features=FeatureSet("shuffled", self.m, "raw"))
            statistics = [s.statistics(probe.scores, self.folds[0]) for s, probe in each]
            averaged = {
                name: AverageStatistic(tuple(one[name] for one in statistics))
                for name in statistics[0]
            }
            cells += self.measure.cells(Measured(shown, setting, averaged))
        return cells

    def _scalar_columns(self, states: Tensor) -> tuple[Float[Tensor, "answers k"], list[str]]:
        rows = self.supervision.rows
        basis = self._primary_basis()
        inside = torch.cat([(x.double() @ basis).norm(dim=1) for x in states.split(ROWS_AT_ONCE)])
        norm = states.norm(dim=1).double()
        columns = {name: values[rows].double() for name, values in self._scalars.items()}
        columns |= {
            "log_length": torch.from_numpy(np.log(self.measure.lengths)),
            "norm": norm,
            "reasoning_norm": inside,
            "reasoning_share": inside / norm,
            "residual_rms": self._energy.rms[rows, -1].double(),
            "cut": torch.from_numpy((self.measure.finished == 0).astype(np.float64)),
        }
        return torch.stack(list(columns.values()), dim=1), list(columns)

    def _primary_basis(self) -> Float[Tensor, "width m"]:
        basis = self.directions.of(FeatureSet("reasoning", self.m, "raw"))
        assert basis is not None
        return basis

    def _with_scalars(self, features: FeatureSet, names: Sequence[str]) -> Tensor | None:
        """Columns over (state, scalars) side by side."""
        width, extra = self.reading.width, len(names)
        if features.kind == "scalars+full":
            return None
        if features.kind.startswith("scalar:"):
            out = torch.zeros(width + extra, 1, dtype=torch.float64)
            out[width + names.index(features.kind.removeprefix("scalar:"))] = 1
            return out
        part = features.kind.partition("+")[2]
        inner = torch.zeros(width, 0, dtype=torch.float64)
        if part:
            found = self.directions.of(FeatureSet(part, self.m, "raw", features.draw))
            assert found is not None
            inner = found
        return torch.block_diag(inner, torch.eye(extra, dtype=torch.float64))

    def _baseline_cells(self) -> list[CellRow]:
        scores = baseline_scores(self.supervision.table, self._log_probability)
        cells = []
        for name, values in scores.items():
            probe = Probe(FeatureSet(name, 0, scaling="-"), "-", np.asarray(values), NAN, 0)
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
            Probe(FeatureSet("majority", 0, scaling="-"), "-", np.zeros(s.n), NAN, 0),
            Setting("primary", -1, "-"),
            {"best_of_n": statistic},
        )
        return self.measure.cells(found, every_interval=True)

    def _answer_rows(self, probes: Sequence[Probe]) -> list[AnswerRow]:
        folds = self.folds[0]
        first = {p.features.kind: p for p in probes if p.features.draw == 0}
        scores = [
            _standardised(first[kind].scores, folds) for kind in ("full", "reasoning", "random")
        ]
        measure = self.measure
        return [
            AnswerRow(
                row=int(self.reading.rows[self.supervision.rows[i]]),
                prompt_id=str(self.supervision.prompt_ids[i]),
                label=float(self.supervision.labels[i]),
                n_tokens=int(measure.lengths[i]),
                finished=float(measure.finished[i]),
                full=float(scores[0][i]),
                reasoning=float(scores[1][i]),
                random=float(scores[2][i]),
                log_probability=float(measure.log_probability[i]),
            )
            for i in range(self.supervision.n)
        ]

    def _curves(self, probes: Sequence[Probe]) -> list[CurveRow]:
        """Best of k for every k, by the exact expectation; random subspaces as the mean of draws."""
        s = self.supervision
        if s.task == "preferences":
            return []
        scores: dict[str, list[np.ndarray]] = {}
        for probe in probes:
            scores.setdefault(probe.features.kind, []).append(probe.scores)
        scores["random"] = scores["random"][: self.plan.n_draws]
        scores |= {"log-probability": [self._log_probability], "oracle": [s.labels]}
        smallest = int(np.unique(s.prompt_ids.astype(str), return_counts=True)[1].min())
        rows = []
        for name, draws in scores.items():
            for k in range(1, smallest + 1):
                each = [best_of_k_statistic(x, s.labels, s.prompt_ids, k=k) for x in draws]
                found = self.measure.resamples.interval(AverageStatistic(tuple(each)))
                rows.append(CurveRow(name, k, found.value, found.low, found.high))
        keys = [answer.key for answer in s.table.answers]
        if any(keys):
            curve = majority_curve(keys, s.labels, s.prompt_ids.tolist(), seed=self.plan.seed)
            rows += [CurveRow("majority", k + 1, v, NAN, NAN) for k, v in enumerate(curve)]
        return rows

    def _direction_rows(self) -> list[DirectionRow]:
        states = self.states(self.last, "last")
        rows = self.directions.all_directions("raw")  # (live, D)
        whole = Moments.of(states, [0.0] * len(states))
        along = ((rows @ whole.xx) * rows).sum(1)  # sum over answers of (v . h)^2
        columns = (
            self.directions.singular_values("raw"),
            _separation(states, rows, self.supervision.labels),
            along / whole.xx.trace(),
            self._whitened_weight(states, rows, whole),
        )
        return [
            DirectionRow(i, *numbers)
            for i, numbers in enumerate(zip(*(c.tolist() for c in columns), strict=True))
        ]

    def _whitened_weight(
        self, states: Tensor, rows: Tensor, whole: Moments
    ) -> Float[Tensor, " live"]:
        """Share of |u|^2 of the head on ZCA-whitened states in each direction; chance is 1 / D."""
        mean = whole.x / whole.weight
        covariance = whole.xx / whole.weight - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        scale = values.clamp_min(1e-9 * values[-1]).rsqrt()
        whitening = (vectors * scale) @ vectors.T
        blocks = inner_moments(states, self.supervision, np.arange(len(states)), self.plan)
        fit = choose_ridge(
            project_all(blocks, whitening),
            standardise=False,
            has_intercept=self.supervision.task == "graded",
        )
        share = (rows @ fit.weight.double()).square()
        return share / share.sum()

    def summary_figures(self) -> dict[str, float | None]:
        """pass@1 and oracle of graded answers; None where they do not apply."""
        s = self.supervision
        if s.task == "preferences":
            return {"pass_at_1": None, "oracle": None}
        ones = np.ones((1, s.n_prompts))
        pass_at_1 = mean_statistic(s.labels, s.prompt_ids, weighting="prompt")
        oracle = best_of_k_statistic(s.labels, s.labels, s.prompt_ids)
        return {"pass_at_1": float(pass_at_1(ones)[0]), "oracle": float(oracle(ones)[0])}


def _drawn(kind: str, m: int, matrix: str, n: int) -> list[FeatureSet]:
    return [FeatureSet(kind, m, matrix, draw) for draw in range(n)]


def _whole(_features: FeatureSet, _train: Moments) -> None:
    return None


def _standardised(scores: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Scores of different folds come from different heads: each fold to mean 0, deviation 1."""
    out = np.empty_like(scores)
    for fold in np.unique(folds):
        part = scores[folds == fold]
        out[folds == fold] = (part - part.mean()) / (part.std() or 1.0)
    return out


def _separation(
    states: Float[Tensor, "answers width"], rows: Float[Tensor, "live width"], labels: np.ndarray
) -> Float[Tensor, " live"]:
    """(mean of right - mean of wrong) / pooled deviation, along each direction."""
    right, wrong = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    if len(right) < 2 or len(wrong) < 2:
        return torch.full((len(rows),), NAN, dtype=torch.float64)
    means, squares = [], []
    for part in (right, wrong):
        found = Moments.of(states[part], [0.0] * len(part))
        mean = rows @ (found.x / found.weight)
        means.append(mean)
        squares.append(((rows @ found.xx) * rows).sum(1) - len(part) * mean.square())
    pooled = (squares[0] + squares[1]) / (len(right) + len(wrong) - 2)
    return (means[0] - means[1]) / pooled.sqrt()
