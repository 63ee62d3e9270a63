"""What a convex head is fitted to: right or wrong rows, or preferences between rows.

    RowTargets    loss_i = -[ y log sigmoid(f_i) + (1-y) log sigmoid(-f_i) ]
    PairTargets   loss_i = -(1-e) log sigmoid(g_i) - e log sigmoid(-g_i),
                  g_i = f_chosen - f_rejected - margin,  e = smoothing

f are the scores of the rows; losses are averaged by weight. To pairs, squares of scores can be added
that keep the problem convex (`ScorePenalties`). Source: Bradley & Terry 1952.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from retrm.errors import LabelError
from retrm.fitting.checks import (
    PairWeighting,
    check_weighting,
    checked_codes,
    checked_numbers,
    checked_pairs,
    checked_weights,
    refuse_labels,
)
from retrm.pair_options import PairOptions


@dataclass(frozen=True)
class RowTargets:
    """Right or wrong for every row of the features.

    Attributes:
        labels: (n,) from 0 to 1, usually 0 or 1.
        weights: (n,) weight of every row, 0 or more; None = all equal.
    """

    labels: Sequence[float]
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class ScorePenalties:
    """Squares of the scores of pairs; see `retrm.pair_options`.

    Attributes:
        centring: times the weighted mean of (r_c + r_r)^2.
        batch_sum: times the square of the weighted mean of all scores of pairs.
        score_l2: times the weighted mean of r_c^2 + r_r^2.
        weights: (P,) of each pair in these means; the strength of a preference is no part of it.
    """

    centring: float
    batch_sum: float
    score_l2: float
    weights: Sequence[float]

    @classmethod
    def of(cls, options: PairOptions, weights: Sequence[float]) -> "ScorePenalties | None":
        """Of the options of a fit; None where they add nothing."""
        if not (options.centring or options.batch_sum or options.score_l2):
            return None
        return cls(options.centring, options.batch_sum, options.score_l2, weights)


@dataclass(frozen=True)
class PairTargets:
    """Preferences between rows of the features.

    Attributes:
        chosen: (P,) row numbers of the preferred answers.
        rejected: (P,) row numbers of the others.
        margins: (P,) by how much chosen should lead, 0 or more; None = no margins.
        weights: (P,) weight of every pair, 0 or more; None = all equal.
        smoothing: share of wrong preferences to expect, 0 to below 1/2.
        penalties: on the scores; None = none. They fix the zero of the scores, which is then the mean
            of the rows.
    """

    chosen: Sequence[int]
    rejected: Sequence[int]
    margins: Sequence[float] | None = None
    weights: Sequence[float] | None = None
    smoothing: float = 0.0
    penalties: ScorePenalties | None = None


Targets = RowTargets | PairTargets


def pairs_within_prompts(
    labels: Sequence[float],
    prompt_ids: Sequence[object],
    *,
    weighting: PairWeighting = "prompt",
) -> PairTargets:
    """All right x wrong pairs inside a prompt: the targets of the pairwise-logistic loss.

    Args:
        labels: (n,) 0 or 1.
        prompt_ids: (n,) the prompt of every row.
        weighting: "prompt" = every mixed prompt counts the same; "pair" = every pair does.

    Raises:
        LabelError: a label is not 0 or 1, or no prompt has both.
        RecipeError: unknown weighting.
    """
    check_weighting(weighting)
    truth = np.asarray(labels, dtype=np.float64)
    refuse_labels(~np.isin(truth, (0.0, 1.0)), truth, "label", "0 or 1")
    codes, prompts = checked_codes(prompt_ids, len(truth))
    chosen, rejected = [], []
    for rows in rows_by_code(codes, len(prompts)):
        right, wrong = rows[truth[rows] == 1], rows[truth[rows] == 0]
        chosen.append(np.repeat(right, len(wrong)))
        rejected.append(np.tile(wrong, len(right)))
    n_pairs = np.array([len(part) for part in chosen])
    if n_pairs.sum() == 0:
        raise LabelError(
            f"got {len(prompts)} prompt(s), none with both a right and a wrong answer; pairs "
            "expected at least one. Sample more answers a prompt, or fit with cross-entropy."
        )
    weights = np.repeat(1.0 / np.maximum(n_pairs, 1), n_pairs) if weighting == "prompt" else None
    return PairTargets(np.concatenate(chosen), np.concatenate(rejected), None, weights)


def rows_by_code(codes: np.ndarray, n_codes: int) -> list[np.ndarray]:
    """Row numbers of every code, in their order."""
    sizes = np.bincount(codes, minlength=n_codes)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])


EVERY = slice(None)
Factors = tuple[Tensor, Tensor, Tensor | None]


def _some(curvature: Tensor, most: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(numbers, square roots) of at most `most` of the curvatures, `size` at a time.

    Where some are left out the others stand for them, so that the sum is kept on average.
    """
    n = len(curvature)
    if n <= most:
        chosen = torch.arange(n)
    else:
        chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:most].sort().values
    chosen = chosen.to(curvature.device)
    for part in chosen.split(size):
        yield part, (curvature[part] * (n / len(chosen))).sqrt()


class Objective(Protocol):
    """A weighted mean loss of row scores f; the weights are stored as given and normalised here."""

    weights: Tensor
    has_intercept: bool
    criterion: Literal["log_loss", "pair_accuracy"]
    is_separable: bool
    is_centred: bool

    def value(self, f: Tensor) -> Tensor:
        """Weighted mean loss of the scores f, (n,)."""
        ...

    def slope(self, f: Tensor, rows: slice = EVERY) -> Tensor:
        """Derivative of the value in f, (n,); where separable, of `rows` alone from their f."""
        ...

    def factors(self, f: Tensor, most: int, size: int) -> Iterator[Factors]:
        """The Hessian in f as a sum over at most `most` rows or pairs, `size` at a time.

        Each part is (root, plus, minus): the Hessian is the sum of root^2 (e_plus - e_minus)(...)',
        an estimate from a random part, drawn with seed 0, where there are more than `most`.
        """
        ...

    def curved(self, f: Tensor, matrix: Tensor) -> Tensor:
        """(Hessian of value in f) @ matrix, (n, k)."""
        ...

    def subset(self, mask: Tensor) -> "Objective":
        """The part that lives on the rows of `mask`, renumbered."""
        ...

    def criterion_total(self, scores: Tensor) -> Tensor:
        """(lams, n) scores -> (lams,) weighted sum of the criterion."""
        ...


@dataclass(frozen=True)
class RowObjective:
    """Cross-entropy of every row by itself."""

    labels: Tensor
    weights: Tensor
    has_intercept: bool = field(default=True, init=False)
    criterion: Literal["log_loss"] = field(default="log_loss", init=False)
    is_separable: bool = field(default=True, init=False)
    is_centred: bool = field(default=False, init=False)

    @cached_property
    def _shares(self) -> Tensor:
        return self.weights / self.weights.sum()

    def _terms(self, f: Tensor) -> Tensor:
        log_sigmoid = torch.nn.functional.logsigmoid
        return -(self.labels * log_sigmoid(f) + (1 - self.labels) * log_sigmoid(-f))

    def value(self, f: Tensor) -> Tensor:
        """Weighted mean loss."""
        return self._shares @ self._terms(f)

    def slope(self, f: Tensor, rows: slice = EVERY) -> Tensor:
        """Derivative of the value in f."""
        return (torch.sigmoid(f) - self.labels[rows]) * self._shares[rows]

    def _curvature(self, f: Tensor) -> Tensor:
        return self._shares * torch.sigmoid(f) * torch.sigmoid(-f)

    def curved(self, f: Tensor, matrix: Tensor) -> Tensor:
        """(Hessian of value in f) @ matrix."""
        return self._curvature(f)[:, None] * matrix

    def factors(self, f: Tensor, most: int, size: int) -> Iterator[Factors]:
        """As in `Objective`."""
        for rows, root in _some(self._curvature(f), most, size):
            yield root, rows, None

    def subset(self, mask: Tensor) -> "RowObjective":
        """The part on the rows of `mask`, renumbered."""
        return RowObjective(self.labels[mask], self.weights[mask])

    def criterion_total(self, scores: Tensor) -> Tensor:
        """Weighted sum of the criterion, (lams,)."""
        return (self.weights * self._terms(scores)).sum(dim=1)


@dataclass(frozen=True)
class PairObjective:
    """Bradley-Terry loss of the differences between rows."""

    chosen: Tensor
    rejected: Tensor
    margins: Tensor
    weights: Tensor
    smoothing: float = 0.0
    penalty: "PairPenalty | None" = None
    has_intercept: bool = field(default=False, init=False)
    criterion: Literal["pair_accuracy"] = field(default="pair_accuracy", init=False)
    is_separable: bool = field(default=False, init=False)

    @property
    def is_centred(self) -> bool:
        """Whether a constant added to all scores changes the value."""
        return self.penalty is not None

    @cached_property
    def _shares(self) -> Tensor:
        return self.weights / self.weights.sum()

    def _gaps(self, f: Tensor) -> Tensor:
        return f[self.chosen] - f[self.rejected] - self.margins

    def _to_rows(self, pair_values: Tensor, n: int) -> Tensor:
        """Transpose of the difference map: + at chosen, - at rejected."""
        rows = pair_values.new_zeros((n, *pair_values.shape[1:]))
        rows.index_add_(0, self.chosen, pair_values)
        return rows.index_add_(0, self.rejected, -pair_values)

    def value(self, f: Tensor) -> Tensor:
        """Weighted mean loss."""
        gaps = self._gaps(f)
        # log sigmoid(g) - log sigmoid(-g) = g
        terms = self.smoothing * gaps - torch.nn.functional.logsigmoid(gaps)
        value = self._shares @ terms
        return value if self.penalty is None else value + self.penalty.value(*self._scores(f))

    def slope(self, f: Tensor, rows: slice = EVERY) -> Tensor:
        """Derivative of the value in f."""
        pull = self._shares * (self.smoothing - torch.sigmoid(-self._gaps(f)))
        slope = self._to_rows(pull, len(f))
        if self.penalty is not None:
            for index, part in zip(self._index, self.penalty.slope(*self._scores(f)), strict=True):
                slope.index_add_(0, index, part)
        return slope[rows]

    @property
    def _index(self) -> tuple[Tensor, Tensor]:
        return self.chosen, self.rejected

    def _scores(self, f: Tensor) -> tuple[Tensor, Tensor]:
        return f[self.chosen], f[self.rejected]

    def _curvature(self, f: Tensor) -> Tensor:
        gaps = self._gaps(f)
        return self._shares * torch.sigmoid(gaps) * torch.sigmoid(-gaps)

    def curved(self, f: Tensor, matrix: Tensor) -> Tensor:
        """(Hessian of value in f) @ matrix."""
        differences = matrix[self.chosen] - matrix[self.rejected]
        curved = self._to_rows(self._curvature(f)[:, None] * differences, len(f))
        if self.penalty is not None:
            # Of a square the slope is linear: at the columns it is what the Hessian makes of them.
            for index, part in zip(
                self._index, self.penalty.slope(*self._scores(matrix)), strict=True
            ):
                curved.index_add_(0, index, part)
        return curved

    def factors(self, f: Tensor, most: int, size: int) -> Iterator[Factors]:
        """As in `Objective`."""
        for pairs, root in _some(self._curvature(f), most, size):
            yield root, self.chosen[pairs], self.rejected[pairs]
        if self.penalty is not None:
            # For a preconditioner it is enough to bound the squares of sums by squares of scores.
            for pairs, root in _some(self.penalty.bound, max(1, most // 2), size):
                for index in self._index:
                    yield root, index[pairs], None

    def subset(self, mask: Tensor) -> "PairObjective":
        """The part on the rows of `mask`, renumbered."""
        number = torch.cumsum(mask, 0) - 1
        kept = mask[self.chosen]
        return PairObjective(
            number[self.chosen[kept]],
            number[self.rejected[kept]],
            self.margins[kept],
            self.weights[kept],
            self.smoothing,
            self.penalty and self.penalty.subset(kept),
        )

    def criterion_total(self, scores: Tensor) -> Tensor:
        """Weighted sum of the criterion, (lams,)."""
        gap = scores[:, self.chosen] - scores[:, self.rejected]
        return (self.weights * ((gap > 0).double() + 0.5 * (gap == 0).double())).sum(dim=1)


@dataclass(frozen=True)
class PairPenalty:
    """Squares of the scores of pairs, as `ScorePenalties` says; `weights` as they were given."""

    centring: float
    batch_sum: float
    score_l2: float
    weights: Tensor

    @cached_property
    def _shares(self) -> Tensor:
        return self.weights / self.weights.sum()

    @property
    def bound(self) -> Tensor:
        """(P,) second derivative in each score of a pair that is at least as steep."""
        return self._shares * (4 * self.centring + self.batch_sum + 2 * self.score_l2)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """Of the (P,) scores of all pairs."""
        sums = chosen + rejected
        squares = self._shares @ (chosen.square() + rejected.square())
        mean = self._shares @ sums / 2
        return (
            self.centring * (self._shares @ sums.square())
            + self.batch_sum * mean.square()
            + self.score_l2 * squares
        )

    def slope(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives in the scores, (P,) or (P, k) for k columns of scores."""
        shares = self._shares if chosen.dim() == 1 else self._shares[:, None]
        sums = chosen + rejected
        both = 2 * self.centring * sums + self.batch_sum * (shares * sums).sum(dim=0) / 2
        own = 2 * self.score_l2
        return shares * (both + own * chosen), shares * (both + own * rejected)

    def subset(self, kept: Tensor) -> "PairPenalty":
        """Of some pairs."""
        return PairPenalty(self.centring, self.batch_sum, self.score_l2, self.weights[kept])


def objective_of(targets: Targets, n: int, device: torch.device) -> Objective:
    """The loss of `targets` on the scores of `n` rows.

    Raises:
        LabelError, ShapeError: impossible labels, margins, weights or rows; or all labels the same.
    """
    if isinstance(targets, RowTargets):
        labels = checked_numbers(targets.labels, "label", n, device, high=1.0)
        weights = checked_weights(targets.weights, n, device)
        weighed = labels[weights > 0]
        if bool((weighed == weighed[0]).all()):
            raise LabelError(
                f"got {len(weighed)} label(s), all {float(weighed[0]):g}; a fit expected both right "
                "and wrong answers. Bring data with both, or prompts of middling difficulty."
            )
        return RowObjective(labels, weights)
    chosen, rejected = checked_pairs(targets.chosen, targets.rejected, n, device)
    margins = targets.margins if targets.margins is not None else np.zeros(len(chosen))
    return PairObjective(
        chosen,
        rejected,
        checked_numbers(margins, "margin", len(chosen), device),
        checked_weights(targets.weights, len(chosen), device),
        float(checked_numbers([targets.smoothing], "smoothing", 1, device, high=0.5)),
        _pair_penalty(targets.penalties, len(chosen), device),
    )


def _pair_penalty(
    penalties: ScorePenalties | None, n_pairs: int, device: torch.device
) -> PairPenalty | None:
    if penalties is None:
        return None
    strengths = [penalties.centring, penalties.batch_sum, penalties.score_l2]
    centring, batch_sum, score_l2 = checked_numbers(strengths, "penalty", 3, device).tolist()
    weights = checked_weights(penalties.weights, n_pairs, device)
    return PairPenalty(centring, batch_sum, score_l2, weights)
