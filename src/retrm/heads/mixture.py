"""The mixture head of ArmoRM: one linear score an objective, mixed by a gate that sees the prompt only.

    features   [h | p]            of an answer, and of the end of its prompt (`Recipe.context`)
    r  = W h                      (K,) objective scores, without intercept
    r' = r T                      T = identity but for row v: r'_k = r_k - lambda_k r_v, r'_v = 0
    g  = scale * softmax(z / tau)     z = MLP(p), softmax over the K objectives
    score = g · r' = r · (T g)

v is the verbosity objective and lambda_k how much of it is taken out of objective k; without v T is the
identity. The scale is learned and multiplies behind the softmax, so the gates of a prompt sum to it.
W and T are frozen: a gradient reaches the gate and the scale only. Gates belong to prompts: rows that
follow each other with the same p share one evaluation, in dropout, too.

Given a prompt the head is linear in h, with the weights Wᵀ (T g) and no bias; what the tokens of an
answer add is what they add there.

Source: ArmoRM, arXiv 2406.12845, sections 3.1 to 3.3. Its released stage-2 script takes the softmax
over the two candidates of a pair and leaves T out; neither is done here. There p is the state of the
token that closes the user's turn, here of the last token before the answer.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrm.errors import DataError, RecipeError, ShapeError
from retrm.heads.base import Head, TokenView
from retrm.heads.explanation import Explanation
from retrm.heads.linear import LinearHead
from retrm.records import RatingScale


def transform_of(
    lambdas: Float[Tensor, " objectives"], verbosity: int | None
) -> Float[Tensor, "objectives objectives"]:
    """T of the formula: r T = r - lambda r_v.

    Args:
        lambdas: share of the verbosity score that each objective loses; that of verbosity itself is
            taken for 1 whatever it is.
        verbosity: its index v; None gives the identity.

    Raises:
        ShapeError: an index that is none of the objectives.
    """
    transform = torch.eye(len(lambdas), dtype=lambdas.dtype)
    if verbosity is None:
        return transform
    if not 0 <= verbosity < len(lambdas):
        raise ShapeError(
            f"got verbosity={verbosity} of {len(lambdas)} objectives; expected an index from 0 to "
            f"{len(lambdas) - 1}, or None"
        )
    transform[verbosity] -= lambdas
    transform[verbosity, verbosity] = 0.0
    return transform


class MixtureHead(Head):
    """K linear objectives on the features of an answer, and a gate on the context behind them.

    Args:
        n_features: of a row, context included.
        objectives: their names, in the order of the rows of `weight`.
        n_context: columns at the end of a row that the gate reads; 0 = a gate without input, the same
            for every prompt.
        gate_width: of each hidden layer of the gate.
        gate_layers: hidden layers of it; 0 = a linear gate.
        dropout: behind each of them while fitting.
        temperature: tau; higher makes gates more alike.
        verbosity: index of the objective that is taken out of the others; None = none.
        scales: (low, high, pad) of the raters' own numbers, one `RatingScale` an objective, for
            whoever shows objective scores in them; the score does not depend on it.

    Raises:
        RecipeError: options that make no head.
    """

    name: ClassVar[str] = "mixture"
    reads_tokens: ClassVar[bool] = False
    adds_layers: ClassVar[bool] = True
    reads_context: ClassVar[bool] = True

    def __init__(
        self,
        n_features: int,
        *,
        objectives: Sequence[str] = ("quality",),
        n_context: int = 0,
        gate_width: int = 1024,
        gate_layers: int = 3,
        dropout: float = 0.2,
        temperature: float = 10.0,
        verbosity: int | None = None,
        scales: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__(n_features)
        _check_objectives(objectives, verbosity)
        _check_gate(n_features, n_context, gate_width, gate_layers, dropout, temperature)
        self.objectives = tuple(objectives)
        self.n_context = n_context
        self.gate_width = gate_width
        self.gate_layers = gate_layers
        self.dropout = dropout
        self.temperature = temperature
        self.verbosity = verbosity
        self.scales = None if scales is None else _rating_scales(scales, len(objectives))
        n = len(self.objectives)
        self.weight = nn.Parameter(torch.zeros(n, n_features - n_context), requires_grad=False)
        self.register_buffer("transform", transform_of(torch.zeros(n), verbosity))
        widths = [n_context, *[gate_width] * gate_layers, n]
        pairs = list(itertools.pairwise(widths))
        self.gate_weights = nn.ParameterList([torch.zeros(b, a) for a, b in pairs])
        self.gate_biases = nn.ParameterList([torch.zeros(b) for _, b in pairs])
        self.logit_scale = nn.Parameter(torch.ones(()))

    @property
    def options(self) -> dict[str, Any]:
        """Names, shapes and numbers that the weights do not say; plain JSON."""
        return {
            "objectives": list(self.objectives),
            "n_context": self.n_context,
            "gate_width": self.gate_width,
            "gate_layers": self.gate_layers,
            "dropout": self.dropout,
            "temperature": self.temperature,
            "verbosity": self.verbosity,
            "scales": self.scales and [list(astuple(s)) for s in self.scales],
        }

    @property
    def lambdas(self) -> Float[Tensor, " objectives"]:
        """What each objective loses of the verbosity score; 1 for verbosity itself, 0 without one."""
        if self.verbosity is None:
            return torch.zeros(len(self.objectives))
        lambdas = -self.transform[self.verbosity]
        lambdas[self.verbosity] = 1.0
        return lambdas

    def reset(self, generator: torch.Generator) -> None:
        """Draw the gate, uniform in ±1/sqrt(fan-in); scale 1. Objectives and transform stay."""
        with torch.no_grad():
            for weight, bias in zip(self.gate_weights, self.gate_biases, strict=True):
                bound = 1 / math.sqrt(max(weight.shape[1], 1))
                weight.uniform_(-bound, bound, generator=generator)
                bias.uniform_(-bound, bound, generator=generator)
            self.logit_scale.fill_(1.0)

    @torch.no_grad()
    def set_objectives(self, weight: Float[Tensor, "objectives features"]) -> None:
        """Take W from stage 1.

        Raises:
            ShapeError: another shape than objectives x features of an answer.
        """
        if weight.shape != self.weight.shape:
            raise ShapeError(
                f"got objective weights of shape {tuple(weight.shape)}; expected "
                f"{tuple(self.weight.shape)}: {len(self.objectives)} objectives, features of an answer"
            )
        self.weight.copy_(weight)

    @torch.no_grad()
    def set_lambdas(self, lambdas: Float[Tensor, " objectives"]) -> None:
        """Take T from the search for lambda.

        Raises:
            ShapeError: not one number an objective.
            RecipeError: there is no verbosity objective.
        """
        if lambdas.shape != (len(self.objectives),):
            raise ShapeError(
                f"got lambdas of shape {tuple(lambdas.shape)}; expected ({len(self.objectives)},), one "
                "an objective"
            )
        if self.verbosity is None:
            raise RecipeError(
                f"got lambdas, and none of {', '.join(self.objectives)} is the verbosity objective; "
                "name its index as verbosity"
            )
        self.transform.copy_(transform_of(lambdas, self.verbosity))

    @property
    def gate_parameters(self) -> list[nn.Parameter]:
        """What stage 2 learns: the gate and the scale."""
        return [*self.gate_weights, *self.gate_biases, self.logit_scale]

    @torch.no_grad()
    def fold_input(self, shift: Tensor, scale: Tensor) -> None:
        """Into W and the first layer of the gate.

        Raises:
            RecipeError: a shift of an answer's features, which W has no intercept for.
        """
        n = self.weight.shape[1]
        if shift[:n].any():
            raise RecipeError(
                "got features of answers to centre; expected them as they are, since the objectives of "
                "a mixture head have no intercept. Scale them only; the context may be centred"
            )
        self.weight /= scale[:n]
        self.gate_weights[0] /= scale[n:]
        self.gate_biases[0] -= self.gate_weights[0] @ shift[n:]

    def split(
        self, values: Float[Tensor, "rows features"]
    ) -> tuple[Float[Tensor, "rows own"], Float[Tensor, "rows context"]]:
        """Features of the answers, and of their prompts."""
        return values.split([self.weight.shape[1], self.n_context], dim=1)

    def objective_scores(self, own: Float[Tensor, "rows own"]) -> Float[Tensor, "rows objectives"]:
        """r = W h of features without the context."""
        return own @ self.weight.T

    def adjusted(
        self, objective_scores: Float[Tensor, "rows objectives"]
    ) -> Float[Tensor, "rows objectives"]:
        """r' = r T."""
        return objective_scores @ self.transform

    def gates(self, context: Float[Tensor, "rows context"]) -> Float[Tensor, "rows objectives"]:
        """g of each row; rows that follow each other with the same context have the very same gates."""
        if not len(context):
            return context.new_zeros(0, len(self.objectives))
        is_new = torch.ones(len(context), dtype=torch.bool, device=context.device)
        is_new[1:] = (context[1:] != context[:-1]).any(dim=1)
        return self._gates(context[is_new])[is_new.cumsum(0) - 1]

    def _gates(self, context: Tensor) -> Tensor:
        z = context
        for layer, (weight, bias) in enumerate(
            zip(self.gate_weights, self.gate_biases, strict=True)
        ):
            z = z @ weight.T + bias
            if layer < self.gate_layers:
                z = nn.functional.dropout(torch.relu(z), self.dropout, self.training)
        return self.logit_scale * torch.softmax(z / self.temperature, dim=1)

    def forward(
        self, values: Float[Tensor, "rows features"], offsets: Tensor
    ) -> Float[Tensor, " answers"]:
        """g · r' of each row."""
        del offsets
        own, context = self.split(values)
        return _sum(self.gates(context) * self.adjusted(self.objective_scores(own))).to(values)

    @torch.no_grad()
    def explain(self, values: Float[Tensor, "rows features"]) -> tuple[Explanation, ...]:
        """How the score of each row comes about; `values` as `forward` takes them.

        The sum of the contributions, in float64, is `score`; rounded to float32 it is that of `forward`.
        """
        own, context = self.split(values)
        scores, gates = self.objective_scores(own), self.gates(context)
        adjusted = self.adjusted(scores)
        products = gates * adjusted
        columns = (scores, adjusted, gates, products, gates @ self.transform.T)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return tuple(
            Explanation.of(self.objectives, *row, as_rated=self._as_rated(row[0])) for row in rows
        )

    def _as_rated(self, objective_scores: Sequence[float]) -> tuple[float, ...] | None:
        if self.scales is None:
            return None
        return tuple(s.given(r) for s, r in zip(self.scales, objective_scores, strict=True))

    @torch.no_grad()
    def given(self, context: Float[Tensor, " context"]) -> LinearHead:
        """The linear head that this one is for answers to one prompt."""
        head = LinearHead(self.weight.shape[1])
        gates = self.gates(context[None])[0]
        head.weight.copy_(self.weight.T @ (self.transform @ gates))
        return head.eval()

    def token_view(self, values: Float[Tensor, "tokens features"], pooling: str) -> TokenView:
        """That of the linear head given the prompt; the context stands behind each token alike."""
        own, context = self.split(values)
        return self.given(context[0]).token_view(own, pooling)

    def layer_rewards(
        self, values: Float[Tensor, "tokens features"], n_layers: int
    ) -> Float[Tensor, "tokens layers"]:
        """By layer, of the same linear head."""
        own, context = self.split(values)
        return self.given(context[0]).layer_rewards(own, n_layers)


def _sum(products: Float[Tensor, "rows objectives"]) -> Float[Tensor, " rows"]:
    # In float64 the order of the summands does not show: what is shown adds up to what is scored.
    return products.double().sum(dim=1)


def _check_objectives(objectives: Sequence[str], verbosity: int | None) -> None:
    if isinstance(objectives, str) or not objectives or not all(map(_is_name, objectives)):
        raise RecipeError(
            f"got objectives={objectives!r}; expected a list of at least one name, such as "
            "['helpfulness', 'verbosity']"
        )
    twice = [name for name in objectives if list(objectives).count(name) > 1]
    if twice:
        raise RecipeError(f"objective {twice[0]!r} is named twice; give each a name of its own")
    n = len(objectives)
    if verbosity is not None and not (_is_whole(verbosity) and 0 <= verbosity < n):
        raise RecipeError(
            f"got verbosity={verbosity!r} of {n} objectives; expected an index from 0 to {n - 1}, or None"
        )


def _rating_scales(scales: Sequence[Sequence[float]], n: int) -> tuple[RatingScale, ...]:
    if len(scales) != n or any(len(one) != 3 or not all(map(_is_number, one)) for one in scales):
        raise RecipeError(
            f"got scales={scales!r}; expected the lowest and the highest number that raters give, and the "
            f"pad, for each of {n} objectives, such as [[0, 4, 0.5], [1, 5, 0]]"
        )
    try:
        return tuple(RatingScale(*map(float, one)) for one in scales)
    except DataError as error:
        raise RecipeError(f"scales of the mixture head: {error}") from error


def _check_gate(
    n_features: int,
    n_context: int,
    gate_width: int,
    gate_layers: int,
    dropout: float,
    temperature: float,
) -> None:
    if not (_is_whole(n_context) and 0 <= n_context < n_features):
        raise RecipeError(
            f"got n_context={n_context!r} of {n_features} features; expected 0 to {n_features - 1}: some "
            "are left for the answer"
        )
    checks: Mapping[str, tuple[object, bool, str]] = {
        "gate_width": (gate_width, _is_whole(gate_width) and gate_width >= 1, "1, 2, 3, ..."),
        "gate_layers": (gate_layers, _is_whole(gate_layers) and gate_layers >= 0, "0, 1, 2, ..."),
        "dropout": (dropout, _is_number(dropout) and 0 <= dropout < 1, "0 to below 1"),
        "temperature": (temperature, _is_number(temperature) and temperature > 0, "above 0"),
    }
    for name, (got, is_right, expected) in checks.items():
        if not is_right:
            raise RecipeError(f"mixture option {name} is {got!r}; expected {expected}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
