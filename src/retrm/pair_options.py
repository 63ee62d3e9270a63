"""What may be added to the Bradley-Terry loss of pairs, and what of it keeps a linear head convex.

With scores r_c, r_r of a pair, gap g = r_c - r_r - lead, and means over pairs by their weight:

    form         logistic     -(1-e) log sigmoid(g) - e log sigmoid(-g)         e = smoothing
                 focal        (1 - 2 max(0, sigmoid(g) - 1/2))^gamma * -log sigmoid(g)
                 hinge        max(0, -g)
                 normalised   -log sigmoid(g / sqrt(r_c^2 + r_r^2))
                 absolute     -log sigmoid(g) - log sigmoid(r_c) - log sigmoid(-r_r)
    margins      lead         lead = margin + margin_scale * (margin of the pair)
                 weight       the margin of the pair is its strength, and weighs its loss
                 ignore       margins of the data are left alone
    centring     + centring     * mean (r_c + r_r)^2
    batch_sum    + batch_sum    * (mean of all r_c and r_r)^2
    score_l2     + score_l2     * mean (r_c^2 + r_r^2)
    log_barrier  + log_barrier  * mean of -log(5 - r) - log(5 + r), both scores of a pair added up,
                                  r cut to +-4.999

Sources: margin, Llama 2 (arXiv 2307.09288); strength as weight, HelpSteer2-Preference (2410.01257);
focal and barrier, InternLM2 (2403.17297); centring, 2312.09244, eq. 2; batch sum, BSR (2505.07271);
absolute terms, Eurus (2404.02078).

The logistic form with any smoothing, margins, strengths and the first three penalties is convex in the
scores, and so in a linear head: its one optimum is solved for. The others go to the gradient loop: the
hinge has a kink, focal and normalised losses and the cut barrier are not convex, and the absolute terms
ask for an intercept that pairs do not have.

    >>> from retrm.pair_options import PairOptions
    >>> PairOptions(smoothing=0.1, centring=0.01).is_convex, PairOptions(form="focal").is_convex
    (True, False)
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from retrm.errors import RecipeError, did_you_mean

Form = Literal["logistic", "focal", "hinge", "normalised", "absolute"]
Margins = Literal["lead", "weight", "ignore"]
PENALTIES = ("centring", "batch_sum", "score_l2", "log_barrier")
# Terms that people know from trainers of whole models. A frozen backbone gives them nothing to act on.
_ON_THE_BACKBONE = {
    "text": "the text-generation regulariser (GRM)",
    "grm": "the text-generation regulariser (GRM)",
    "sft": "the text-generation regulariser (GRM)",
    "contrastive": "a contrastive loss on hidden states",
    "simcse": "a contrastive loss on hidden states",
}


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Changes of the Bradley-Terry loss; the defaults change nothing.

    Attributes:
        form: of the loss of one pair, as in the module's table.
        margins: what the margins of the data mean: `lead`, `weight` or `ignore`.
        margin: lead that every pair should have; None = 1 for the hinge and 0 for the others.
        margin_scale: lead per unit of the data's margins. Gaps of scores have no unit of their own, so
            compare a few values on held-out prompts.
        smoothing: share of wrong preferences to expect, 0 to below 1/2; of the logistic form. The
            best gap is then log((1-e)/e) + lead instead of infinite.
        gamma: exponent of the focal form; 0 = logistic.
        centring: pulls the two scores of a pair to opposite values; 0.01 is usual.
        batch_sum: pulls the mean of all scores of a batch to 0; 0.001 x pairs in a batch is usual. In a
            convex fit the batch is all training pairs.
        score_l2: pulls every score to 0; 0.01 is usual.
        log_barrier: keeps scores within +-5; 0.01 is usual. A score outside is not pulled back.
    """

    form: Form = "logistic"
    margins: Margins = "lead"
    margin: float | None = None
    margin_scale: float = 1.0
    smoothing: float = 0.0
    gamma: float = 2.0
    centring: float = 0.0
    batch_sum: float = 0.0
    score_l2: float = 0.0
    log_barrier: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("form", get_args(Form)), ("margins", get_args(Margins))):
            got = getattr(self, name)
            if got not in allowed:
                raise RecipeError(
                    f"loss option {name} is {got!r}; expected one of {', '.join(allowed)}. "
                    + did_you_mean(str(got), allowed)
                )
        for name in ("margin", "margin_scale", "smoothing", "gamma", *PENALTIES):
            self._check_number(name)
        if self.smoothing and self.form != "logistic":
            raise RecipeError(
                f"got smoothing = {self.smoothing:g} with form={self.form!r}; smoothing is of the "
                "logistic form. Leave one of the two out"
            )

    def _check_number(self, name: str) -> None:
        got, most = getattr(self, name), 0.5 if name == "smoothing" else float("inf")
        if name == "margin" and got is None:
            return
        is_number = isinstance(got, int | float) and not isinstance(got, bool)
        if not is_number or not 0 <= got < most:
            wanted = "from 0 to below 0.5" if name == "smoothing" else "that is finite, 0 or more"
            raise RecipeError(f"loss option {name} is {got!r}; expected a number {wanted}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From JSON or TOML.

        Raises:
            RecipeError: an unknown option (the nearest is offered), one without effect on a frozen
                backbone, or an impossible value.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key in known:
                continue
            word = next((word for word in _ON_THE_BACKBONE if word in str(key).lower()), None)
            if word is not None:
                raise RecipeError(
                    f"got the loss option {key!r}: {_ON_THE_BACKBONE[word]} acts on the weights of the "
                    "backbone, which are frozen, so it would leave the head as it is. Leave it out; "
                    f"what acts on scores: {', '.join(PENALTIES)} and smoothing"
                )
            raise RecipeError(f"unknown loss option {key!r}. {did_you_mean(str(key), known)}")
        return cls(**values)

    @property
    def lead(self) -> float:
        """By how much every chosen answer should lead."""
        if self.margin is not None:
            return float(self.margin)
        return 1.0 if self.form == "hinge" else 0.0

    @property
    def is_convex(self) -> bool:
        """Whether the loss is convex and smooth in the scores, so that a linear head is solved for."""
        return self.form == "logistic" and self.log_barrier == 0

    @property
    def fixes_zero(self) -> bool:
        """Whether a constant added to all scores changes the loss."""
        return self.form in ("normalised", "absolute") or any(
            getattr(self, name) > 0 for name in PENALTIES
        )

    def changes(self) -> dict[str, Any]:
        """Options that differ from the defaults, as plain JSON."""
        plain = asdict(PLAIN)
        return {name: value for name, value in asdict(self).items() if value != plain[name]}


PLAIN = PairOptions()
"""Bradley-Terry with the margins of the data and nothing else."""
