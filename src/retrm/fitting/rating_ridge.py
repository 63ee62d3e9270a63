r"""Ridge regression on ratings that are partly missing: one regressor an objective, closed form.

    w_k = argmin  sum over rows i that are rated on k of (w · h_i - y_ik)^2  +  alpha_k |w|^2

No intercept, the sum and not the mean, unscaled features: (X'X + alpha I) w = X'y over the rated rows.
A mean-loss ridge with the same solution has alpha / n_k. A missing rating is no zero: it takes no part.

Objectives that are rated on the same rows share X'X and its factor. Which ratings are missing follows
the source of a row, so there are few patterns: X'X is made once a pattern, and those that carry k are
added up; where patterns are many it is made once an objective instead. Every alpha costs one Cholesky
factor for all objectives that share it.

An objective with fewer rated rows than features is solved among its rows, w = X'(XX' + alpha I)^-1 y:
the same w, in fewer operations. X'X would be singular there, and its rounding, divided by a small
alpha, would become weights that no rated row asked for.

Source: ArmoRM, arXiv 2406.12845, section 3.1; alphas and convention as in its released code. Expects
features in memory; costs n F^2 + 3 F^3 operations a pattern, in float64, with F and n the other way
round where n < F.

    >>> import torch
    >>> h = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> y = torch.tensor([[1.0], [2.0], [3.0]])
    >>> [round(w, 6) for w in sparse_ridge(h, y, [1.0])[0, 0].tolist()]
    [0.875, 1.375]
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retrm.errors import ShapeError
from retrm.fitting.checks import checked_features, checked_penalties
from retrm.fitting.ridge import CHUNK_ROWS
from retrm.metrics.ranks import spearman

# Validation errors that differ by less than this share are equal; the stronger penalty is taken.
_TIE = 1e-12


@dataclass(frozen=True)
class RatingFit:
    """The regressor of one objective.

    Attributes:
        weight: of each feature, float32.
        alpha: penalty, in the sum convention.
        is_last: whether it is the largest that was tried: a wider grid may do better.
        n_fit: rated rows it was fitted on.
        n_validation: rated rows that chose alpha.
        mse: on those rows.
        mean_mse: on the same rows, of the mean rating of the rows it was fitted on.
        spearman: rank correlation with the ratings of those rows; None where it is undefined.
    """

    weight: Float[Tensor, " features"]
    alpha: float
    is_last: bool
    n_fit: int
    n_validation: int
    mse: float
    mean_mse: float
    spearman: float | None


def fit_ratings(
    features: Float[Tensor, "rows features"],
    ratings: Float[Tensor, "rows objectives"],
    fit: Int[Tensor, " fit"],
    validation: Int[Tensor, " validation"],
    alphas: Sequence[float],
) -> tuple[RatingFit, ...]:
    """One regressor an objective, with the alpha of the lowest validation error; no refit.

    Args:
        features: of all rows.
        ratings: of all rows, NaN = missing; every objective is rated in both parts.
        fit: rows to fit on.
        validation: rows of other prompts, which choose alpha.
        alphas: to try, each above 0.

    Raises:
        FitError: a feature is NaN or infinite, or an alpha is impossible.
        ShapeError: not one rating row a feature row.
    """
    grid = sorted(checked_penalties(alphas))
    weights = sparse_ridge(features[fit], ratings[fit], grid)
    judged = features[validation].double()
    predicted = torch.einsum("nf,akf->akn", judged, weights)
    return tuple(
        _best(weights[:, k], predicted[:, k], ratings[fit, k], ratings[validation, k], grid)
        for k in range(ratings.shape[1])
    )


def sparse_ridge(
    features: Float[Tensor, "rows features"],
    ratings: Float[Tensor, "rows objectives"],
    alphas: Sequence[float],
) -> Float[Tensor, "alphas objectives features"]:
    """Weights of every objective at every alpha, float64; an objective without a rating gets 0.

    Args:
        features: of all rows.
        ratings: NaN = missing.
        alphas: each above 0.

    Raises:
        FitError, ShapeError: as `fit_ratings`.
    """
    x = checked_features(features)
    if ratings.dim() != 2 or len(ratings) != len(x):
        raise ShapeError(
            f"got ratings of shape {tuple(ratings.shape)} for {len(x)} rows of features; expected "
            "(rows, objectives), NaN where a rating is missing"
        )
    grid = checked_penalties(alphas)
    is_known = ~torch.isnan(ratings)
    labels = torch.nan_to_num(ratings.double())
    out = torch.zeros(len(grid), ratings.shape[1], x.shape[1], dtype=torch.float64)
    is_short = is_known.sum(dim=0) < x.shape[1]
    short, long = is_short.nonzero()[:, 0], (~is_short).nonzero()[:, 0]
    for members, rows in _masks(is_known[:, short]):
        at, own = short[members], x[rows].double()
        kernel = own @ own.T
        for number, alpha in enumerate(grid):
            out[number, at] = (own.T @ _solved(kernel, labels[rows][:, at], alpha)).T
    xy = _products(x, labels[:, long])
    for members, gram in _grams(x, is_known[:, long]):
        for number, alpha in enumerate(grid):
            out[number, long[members]] = _solved(gram, xy[:, members], alpha).T
    return out


def ridge_operations(n_rows: int, n_features: int) -> float:
    """About how many operations one pattern costs, up to a factor."""
    few, many = sorted((n_rows, n_features))
    return float(many * few**2 + 3 * few**3)


def _masks(is_known: Bool[Tensor, "rows objectives"]) -> Iterator[tuple[Tensor, Tensor]]:
    """(objectives that are rated on the same rows, which rows)."""
    if not is_known.shape[1]:
        return
    masks, of_objective = torch.unique(is_known, dim=1, return_inverse=True)
    for number in range(masks.shape[1]):
        yield (of_objective == number).nonzero()[:, 0], masks[:, number]


def _best(
    weights: Tensor, predicted: Tensor, fitted: Tensor, judged: Tensor, grid: Sequence[float]
) -> RatingFit:
    """`weights` (alphas, F) and `predicted` (alphas, n) of one objective."""
    is_known = ~torch.isnan(judged)
    labels, own = judged[is_known].double(), fitted[~torch.isnan(fitted)].double()
    errors = (predicted[:, is_known] - labels).square().mean(dim=1)
    best = int((errors <= errors.min() * (1 + _TIE)).nonzero()[-1])
    rho = spearman(predicted[best, is_known].numpy(), labels.numpy())
    return RatingFit(
        weight=weights[best].float(),
        alpha=grid[best],
        is_last=best == len(grid) - 1,
        n_fit=len(own),
        n_validation=len(labels),
        mse=float(errors[best]),
        mean_mse=float((labels - own.mean()).square().mean()),
        spearman=None if rho != rho else rho,
    )


def _grams(
    features: Tensor, is_known: Bool[Tensor, "rows objectives"]
) -> Iterator[tuple[Tensor, Tensor]]:
    """(objectives that are rated on the same rows, X'X over those rows)."""
    masks = list(_masks(is_known))
    if not masks:
        return
    patterns, of_row = torch.unique(is_known, dim=0, return_inverse=True)
    if len(patterns) > len(masks) + 1:
        for members, rows in masks:
            yield members, _gram(features[rows])
        return
    parts = [_gram(features[of_row == number]) for number in range(len(patterns))]
    for members, _ in masks:
        gram = torch.zeros_like(parts[0])
        for pattern, part in zip(patterns, parts, strict=True):
            if pattern[members[0]]:
                gram += part
        yield members, gram


def _gram(rows: Tensor) -> Float[Tensor, "features features"]:
    gram = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for part in rows.split(CHUNK_ROWS):
        chunk = part.double()
        gram.addmm_(chunk.T, chunk)
    return gram


def _products(features: Tensor, labels: Tensor) -> Float[Tensor, "features objectives"]:
    """X'y with 0 for what is missing, which adds nothing."""
    total = torch.zeros(features.shape[1], labels.shape[1], dtype=torch.float64)
    for rows, y in zip(features.split(CHUNK_ROWS), labels.split(CHUNK_ROWS), strict=True):
        total.addmm_(rows.double().T, y)
    return total


def _solved(gram: Tensor, products: Tensor, alpha: float) -> Tensor:
    """(gram + alpha I)^-1 products."""
    shifted = gram.clone()
    shifted.diagonal().add_(alpha)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if int(failed) == 0:
        return torch.cholesky_solve(products, factor)
    # Dependent rows or features, and an alpha that is rounding beside their squares: what cannot be
    # told from 0 is left out, or rounding divided by alpha would be the whole solution.
    values, vectors = torch.linalg.eigh(gram)
    is_real = values > len(values) * torch.finfo(gram.dtype).eps * values[-1]
    inverse = torch.where(is_real, 1 / (values + alpha), 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ products))
