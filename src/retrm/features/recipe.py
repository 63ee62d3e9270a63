"""A recipe says which states become features: layers, state point, subspace, pooling.

Recipes are plain data, typed by a person or read from a folder. Whatever can be checked without a
backbone is checked when a recipe is made, the rest when `Reducer` binds it to one.
"""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from retrm.backbone.base import StatePoint
from retrm.errors import RecipeError, did_you_mean
from retrm.features.subspace import SubspaceSpec

Pooling = Literal["last", "mean", "max", "tokens", "prompt_end"]
Point = Literal["residual", "post_norm", "hidden_states"]
Source = Literal["states", "logits", "log_probability"]
Context = Literal["none", "prompt_end"]
Template = Literal["chat", "reference"]
Dtype = Literal["float32", "float16", "bfloat16"]

_NUMBERS = r"(-?\d+)(?:\s*-\s*(\d+))?"  # 8, or the range 8-16
_LAYERS = rf"\s*(last|all|last\d+|{_NUMBERS}(\s*,\s*{_NUMBERS})*)\s*"
CHOICES = {
    "pooling": ("last", "mean", "max", "tokens", "prompt_end"),
    "point": ("residual", "post_norm", "hidden_states"),
    "source": ("states", "logits", "log_probability"),
    "dtype": ("float32", "float16", "bfloat16"),
    "matrix": ("auto", "raw", "folded", "centred", "centred_folded"),
    "context": ("none", "prompt_end"),
    "template": ("chat", "reference"),
}
# Of source log_probability, per answer, nats; entropies are of the distributions that its tokens were drawn from.
SCALARS = (
    *("mean_log_probability", "min_log_probability"),
    *("mean_entropy", "last_entropy", "max_entropy"),
)


@dataclass(frozen=True)
class Recipe:
    """Which states of an answer become features, and how.

    Attributes:
        layers: `last`, `all` (embedding output included), `last4` (the last four layers), or numbers
            and ranges such as `8,16-24` (0 = embedding output, i = output of block i).
        point: `post_norm` (what the LM head multiplies), `residual` (before the final norm), or
            `hidden_states`: residual below the last layer and post_norm at the last, the tuple that
            transformers returns and that ELHSR reads.
        subspace: `full`, `reasoning:5%`, `semantic:256`, `middle:64`, `random:256@SEED`,
            `random_singular:64@SEED`, `coordinates:64@SEED`.
        matrix: whose singular vectors: `raw` W (only for post_norm), `folded` W diag(gain) (only for
            residual), `auto` = the one that fits the point; `centred` and `centred_folded` are the
            same two without the mean row of the vocabulary, which softmax does not see.
        pooling: over response tokens: `last`, `mean`, `max`, or `tokens` = keep every token; or
            `prompt_end` = the last token of the prompt, which has not seen the answer.
        source: `states`; `logits` (the full logits at each response token: ELHSR's logits-only
            mode); or `log_probability` (mean, minimum and entropy of the answer's own tokens).
        dtype: in which features are kept. The same rounding is applied when scoring online.
        counts_end: whether the end-of-turn token belongs to the answer.
        context: what is kept of the prompt behind the pooled features of an answer: `none`, or
            `prompt_end` = the post_norm state of the last layer at the last token of the prompt, all of
            it (float32, no subspace), whatever layers the answer is read at.
        template: `chat` = the model's own; `reference` = POLAR's comparison of the answer with a
            reference that its record brings, ended by the model's end-of-text token.
    """

    layers: str = "last"
    point: Point = "post_norm"
    subspace: str = "full"
    matrix: str = "auto"
    pooling: Pooling = "last"
    source: Source = "states"
    dtype: Dtype = "float32"
    counts_end: bool = True
    context: Context = "none"
    template: Template = "chat"

    def __post_init__(self) -> None:
        for name in ("layers", "subspace"):
            if not isinstance(getattr(self, name), str):
                got = getattr(self, name)
                raise RecipeError(f'{name} is {got!r}; expected text, such as {name} = "{got}"')
        if not isinstance(self.counts_end, bool):
            raise RecipeError(f"counts_end is {self.counts_end!r}; expected true or false")
        for name, choices in CHOICES.items():
            got = getattr(self, name)
            if got not in choices:
                raise RecipeError(
                    f"unknown {name} {got!r}; expected one of {', '.join(choices)}. "
                    f"{did_you_mean(str(got), choices)}"
                )
        if not re.fullmatch(_LAYERS, self.layers) or any(a > b for a, b in self._ranges()):
            raise RecipeError(
                f"cannot read layers {self.layers!r}; expected last, all, last4, or numbers and "
                "ascending ranges such as 8,16-24"
            )
        spec = SubspaceSpec.parse(self.subspace)
        if self.source != "states" and spec.part != "full":
            raise RecipeError(
                f"source {self.source!r} has no subspace, got {self.subspace!r}; use subspace=full, "
                "or source=states"
            )
        if self.source != "states" and (self.layers, self.point) != ("last", "post_norm"):
            raise RecipeError(
                f"source {self.source!r} comes from the last layer after its norm, got layers="
                f"{self.layers!r} and point={self.point!r}; use layers=last and point=post_norm"
            )
        self._check_matrix(spec)
        self._check_context()

    def _check_matrix(self, spec: SubspaceSpec) -> None:
        if self.matrix == "auto" or spec.part == "full":
            return
        is_folded = self.matrix in ("folded", "centred_folded")
        fits = "residual" if is_folded else "post_norm"
        if self.point != fits:
            basis = "residual (W diag(gain))" if is_folded else "post_norm (raw W)"
            raise RecipeError(
                f"a {basis} basis cannot read {self.point} states: the directions that are invisible "
                f"to the LM head differ on the two sides of the final norm. Use matrix=auto, or "
                f"point={fits}"
            )

    def _check_context(self) -> None:
        if self.context == "none":
            return
        needs = {"source": "states", "dtype": "float32"}
        wrong = [name for name, value in needs.items() if getattr(self, name) != value]
        if not self.is_pooled:
            raise RecipeError(
                f"context {self.context!r} stands behind the one row of a pooled answer, got pooling="
                "'tokens'; use pooling=last, mean or max, or context=none"
            )
        if wrong:
            name = wrong[0]
            raise RecipeError(
                f"context {self.context!r} is a state in float32 behind states in float32, got {name}="
                f"{getattr(self, name)!r}; use {name}={needs[name]}, or context=none"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """A recipe from JSON or TOML; unknown keys are errors."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise RecipeError(f"unknown recipe key {key!r}. {did_you_mean(key, known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """As `from_dict` takes it; by this a recipe is stored, compared and hashed.

        A context that is not read and the template that nearly all have are left out: recipes have the
        identity they had before there was a choice.
        """
        values = asdict(self)
        if self.template == "chat":
            del values["template"]
        if self.context == "none":
            del values["context"]
        return values

    @property
    def is_centred(self) -> bool:
        """Whether the mean row of the vocabulary is subtracted before the decomposition."""
        return self.matrix in ("centred", "centred_folded")

    @property
    def is_pooled(self) -> bool:
        """Whether an answer becomes one row of features."""
        return self.pooling != "tokens" or self.source == "log_probability"

    def layer_numbers(self, n_layers: int) -> tuple[int, ...]:
        """The layers of a backbone with `n_layers` blocks, ascending.

        Raises:
            RecipeError: unreadable, out of 0..n_layers, or repeated.
        """
        text = self.layers.strip()
        if text == "last":
            return (n_layers,)
        if text == "all":
            return tuple(range(n_layers + 1))
        if found := re.fullmatch(r"last(\d+)", text):
            count = int(found[1])
            if not 1 <= count <= n_layers + 1:
                raise RecipeError(
                    f"layers {text!r} asks for {count} layers; the model has {n_layers + 1} "
                    f"(0 = embedding output, 1..{n_layers} = blocks)"
                )
            return tuple(range(n_layers + 1 - count, n_layers + 1))
        numbers = [  # of a range that leaves the model, one layer that does not exist is enough
            i
            for a, b in self._ranges()
            for i in range(max(a, min(b, -1)), min(b, max(a, n_layers + 1)) + 1)
        ]
        wrong = [i for i in numbers if not 0 <= i <= n_layers]
        if wrong:
            raise RecipeError(
                f"layer {wrong[0]} does not exist: this model has layers 0..{n_layers} "
                "(0 = embedding output, i = output of block i)"
            )
        if len(set(numbers)) < len(numbers):
            raise RecipeError(f"layers {text!r} name a layer twice")
        return tuple(sorted(numbers))

    def n_features(self, n_layers: int, width: int, vocab_size: int = 0) -> int:
        """Numbers that are kept of an answer (pooled) or of a response token (`tokens`).

        The last `n_context` of them are the context.

        Args:
            n_layers: blocks of the backbone.
            width: of its residual stream.
            vocab_size: rows of its LM head; needed for `logits` only.

        Raises:
            RecipeError: the model has no such layers or not so many dimensions.
        """
        if self.source == "log_probability":
            return len(SCALARS)
        if self.source == "logits":
            return vocab_size
        n_dims = SubspaceSpec.parse(self.subspace).n_dims(width)
        return n_dims * len(self.wanted(n_layers)) + self.n_context(width)

    def n_context(self, width: int) -> int:
        """Numbers that are kept of the prompt behind the features of an answer.

        Args:
            width: of the residual stream.
        """
        return width if self.context == "prompt_end" else 0

    def _ranges(self) -> list[tuple[int, int]]:
        """First and last layer of each part of `layers`; none where a word stands."""
        parts = (re.fullmatch(_NUMBERS, part.strip()) for part in self.layers.split(","))
        return [(int(part[1]), int(part[2] or part[1])) for part in parts if part]

    def wanted(self, n_layers: int) -> tuple[tuple[int, StatePoint], ...]:
        """The (layer, state point) pairs to read of an answer, in the order of their features."""
        if self.source != "states":
            return ((n_layers, "post_norm"),)
        if self.point == "hidden_states":
            return tuple(
                (i, "post_norm" if i == n_layers else "residual")
                for i in self.layer_numbers(n_layers)
            )
        return tuple((i, self.point) for i in self.layer_numbers(n_layers))
