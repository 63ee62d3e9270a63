"""How a whole model becomes a reward model: what it learns from, and what is added to its loss.

    kind          learns from                          loss                                    outputs
    pairs         chosen and rejected answers          Bradley-Terry, `retrm.pair_options`      1
    correctness   right and wrong answers              cross-entropy of sigmoid(score)         1
    steps         right and wrong steps                the same, on every beginning            1
    ordinal       grades on a few levels               cross-entropy over the levels           1 a level
    ratings       ratings on several objectives        mean squared error                      1 an objective

Beside these, for pairs, what acts on the weights of the backbone and so means nothing for a head alone
(`retrm.finetuning.reward_losses` holds the formulas):

    text_share    GRM: (1-a) L_pairs + a L_text through the kept LM head          arXiv 2406.10216
    length_heads  ODIN: a second head takes the length, the score is what is left  arXiv 2402.07319
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from retrm.errors import RecipeError, did_you_mean
from retrm.pair_options import PairOptions
from retrm.records import check_overlong

Kind = Literal["pairs", "correctness", "steps", "ordinal", "ratings"]
TextForm = Literal["sft", "nll"]
LORA_RATE, FULL_RATE = 1e-4, 1e-5


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """One training of a reward model.

    Attributes:
        kind: what it learns from, as in the module's table.
        pairs: changes of the Bradley-Terry loss.
        text_share: GRM's a, from 0 to below 1; 0.01 is usual, 0 = none.
        text_beta: GRM's beta, of the form `sft`.
        text_form: `sft` = -log sigmoid(beta sum_t log p); `nll` = - sum_t log p; means over pairs.
        length_heads: whether ODIN's two heads are trained.
        length_weight: of ODIN's correlations with length.
        orthogonality: of ODIN's |cos| between the two heads.
        epochs: times that every row is seen.
        learning_rate: highest; None = 1e-4 for low-rank updates, 1e-5 for all weights.
        batch_size: pairs or answers an update, all processes together.
        device_batch: of them, how many go through the model of one process at once.
        max_length: most tokens of an answer with its prompt; None = the model's context.
        overlong: what to do with longer ones: `error`, `truncate_left` or `skip`; both counted. A pair is
            cut on both sides alike, or left out whole.
        warmup: share of the steps in which the rate rises; it then falls as a cosine.
        weight_decay: of AdamW.
        max_gradient: norm that gradients are cut to.
        save_steps: updates between two checkpoints.
        evaluate_steps: updates between two looks at the held-out part, the first before any; 0 = none.
        init_std: standard deviation of a new head's weights. 0 lets training start at equal scores, with a
            loss of ln 2. None = 0, but 0.02 where 0 has no slope (ODIN, form=normalised).
        gradient_checkpointing: less memory for a third more time.
        seed: of new weights, and of the order of the rows.
    """

    kind: Kind = "pairs"
    pairs: PairOptions = field(default_factory=PairOptions)
    text_share: float = 0.0
    text_beta: float = 0.1
    text_form: TextForm = "sft"
    length_heads: bool = False
    length_weight: float = 1.0
    orthogonality: float = 1.0
    epochs: float = 1.0
    learning_rate: float | None = None
    batch_size: int = 16
    device_batch: int = 4
    max_length: int | None = None
    overlong: str = "error"
    warmup: float = 0.03
    weight_decay: float = 0.0
    max_gradient: float = 1.0
    save_steps: int = 50
    evaluate_steps: int = 0
    init_std: float | None = None
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("kind", get_args(Kind)), ("text_form", get_args(TextForm))):
            got = getattr(self, name)
            if got not in allowed:
                raise RecipeError(
                    f"got {name}={got!r}; expected one of {', '.join(allowed)}. "
                    + did_you_mean(str(got), allowed)
                )
        check_overlong(self.overlong)
        self._check_numbers()
        self._check_for_pairs()
        if self.length_heads and self.device_batch < 2:
            raise RecipeError(
                f"got device_batch={self.device_batch} with length heads, whose correlations are over a "
                "batch; expected 2 pairs or more, better 8"
            )
        if self.starting_std == 0 and self._needs_slope:
            raise RecipeError(
                "got init_std=0 with ODIN or form=normalised, which have no slope at equal scores; expected "
                "a number above 0, or leave it out"
            )

    def _check_numbers(self) -> None:
        least = {"epochs": 0.0, "learning_rate": 0.0, "text_beta": 0.0, "max_gradient": 0.0}
        for name in (*least, *_FROM_ZERO):
            got = getattr(self, name)
            if got is None:
                continue
            is_number = isinstance(got, int | float) and not isinstance(got, bool)
            most = 1.0 if name in ("text_share", "warmup") else float("inf")
            if not is_number or not 0 <= got < most or (name in least and got == 0):
                wanted = "above 0" if name in least else f"from 0 to below {most:g}"
                raise RecipeError(f"got {name}={got!r}; expected a number {wanted}")
        for name in ("batch_size", "device_batch", "save_steps", "max_length"):
            got = getattr(self, name)
            if got is not None and (not isinstance(got, int) or got < 1):
                raise RecipeError(f"got {name}={got!r}; expected a whole number, 1 or more")
        if self.batch_size % self.device_batch:
            raise RecipeError(
                f"got batch_size={self.batch_size} and device_batch={self.device_batch}; expected the first "
                "to be a multiple of the second"
            )

    def _check_for_pairs(self) -> None:
        if self.kind == "pairs":
            return
        wrong = [
            name
            for name, is_set in (
                ("text_share", self.text_share > 0),
                ("length_heads", self.length_heads),
                *((f"loss option {name}", True) for name in self.pairs.changes()),
            )
            if is_set
        ]
        if wrong:
            raise RecipeError(
                f"got {', '.join(wrong)} with kind={self.kind!r}; these belong to the loss of pairs. Leave "
                "them out, or use kind=pairs on data with chosen and rejected answers"
            )

    @property
    def _needs_slope(self) -> bool:
        return self.length_heads or self.pairs.form == "normalised"

    @property
    def starting_std(self) -> float:
        """Standard deviation of a new head's weights."""
        if self.init_std is not None:
            return self.init_std
        return 0.02 if self._needs_slope else 0.0

    def rate(self, *, is_low_rank: bool) -> float:
        """The highest learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LORA_RATE if is_low_rank else FULL_RATE

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], pairs: Mapping[str, Any] | None = None) -> Self:
        """From JSON or TOML; `pairs` are the loss options.

        Raises:
            RecipeError: an unknown name (the nearest is offered) or an impossible value.
        """
        known = [f.name for f in fields(cls) if f.name != "pairs"]
        for key in values:
            if key not in known:
                raise RecipeError(
                    f"unknown training option {key!r}. {did_you_mean(str(key), known)}"
                )
        return cls(**values, pairs=PairOptions.from_dict(pairs or {}))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


_FROM_ZERO = (
    *("text_share", "length_weight", "orthogonality", "warmup", "weight_decay"),
    *("evaluate_steps", "init_std"),
)
