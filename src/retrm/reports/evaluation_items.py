"""The items worth reading: both answers side by side, token by token where the scorer can say.

Texts are those of strangers: everything is escaped, nothing of it can become a tag, and long ones are
shown by their beginning with the rest behind a line that opens without a script.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Protocol

import numpy as np

from retrm.evaluation.benchmarks.base import BenchmarkData, Item
from retrm.evaluation.mistakes import Mistake, Mistakes
from retrm.heads.explanation import Explanation
from retrm.page_style import BAR_STYLE, HEAT_LEVELS, HEAT_REACH_QUANTILE, HEAT_WORDS, heat_style
from retrm.records import Prompt
from retrm.reports.objective_bars import decided_html

SHOWN_PROMPT = 400
SHOWN_ANSWER = 700
SHOWN_TOKENS = 160
MOST_CHARACTERS = 20_000

SIDES = ("should win", "scores higher")

HeatKey = tuple[str, str, str, int]
"""(benchmark, scorer, item, candidate)."""


class TokenHeat(Protocol):
    """An answer token by token, as `RewardModel.token_scores_of` gives it."""

    @property
    def tokens(self) -> Sequence[str]:
        """Their text."""

    @property
    def contributions(self) -> np.ndarray:
        """(n,) what each token adds to the score."""

    @property
    def running(self) -> np.ndarray:
        """(n,) the score if the answer ended there."""


def mistakes_html(
    name: str,
    scorer: str,
    found: Mistakes,
    texts: BenchmarkData | None,
    heat: Mapping[HeatKey, TokenHeat],
    reasons: Mapping[HeatKey, Explanation] | None = None,
) -> str:
    """The largest wrong margins of one scorer.

    Args:
        name: of the benchmark.
        scorer: its name.
        found: its mistakes.
        texts: items with their texts; None = only ids and scores are shown.
        heat: of the answers for which it is known.
        reasons: by objective, of the answers for which they are known.
    """
    if not found.shown:
        return f"<p>{escape(scorer)} orders no pair wrongly.</p>"
    items = {item.id: item for item in texts.items} if texts is not None else {}
    parts = [
        _mistake(name, scorer, number, one, items.get(one.item), heat, reasons or {})
        for number, one in enumerate(found.shown, 1)
    ]
    missing = "" if items else "<p class=muted>The texts of the items were not at hand.</p>"
    return f"{missing}<ol class=items>{''.join(parts)}</ol>"


def mistakes_words(scorer: str, found: Mistakes) -> str:
    """How many there are, in a sentence."""
    ties = f"; pairs with equal scores: {found.n_ties:,}" if found.n_ties else ""
    return (
        f"{scorer} orders {found.n_pairs:,} of {found.n_all_pairs:,} pairs wrongly, in "
        f"{found.n_items:,} of {found.n_all_items:,} items{ties}."
    )


def _mistake(
    name: str,
    scorer: str,
    number: int,
    one: Mistake,
    item: Item | None,
    heat: Mapping[HeatKey, TokenHeat],
    reasons: Mapping[HeatKey, Explanation],
) -> str:
    head = (
        f"<p class=itemhead><b>{number}. {escape(one.item)}</b> <span class=chip>"
        f"{escape(one.subset)}</span> <span class=muted>wrong by {-one.margin:.3g}, "
        f"{-one.scaled_margin:.1f} standard deviations of all margins</span></p>"
    )
    sides = (
        (SIDES[0], "win", one.preferred, one.preferred_score),
        (SIDES[1], "lose", one.other, one.other_score),
    )
    if item is None:
        scores = "".join(f"<li>{words}: {score:.4g}</li>" for words, _, _, score in sides)
        return f"<li>{head}<ul>{scores}</ul></li>"
    views = [heat.get((name, scorer, item.id, candidate)) for _, _, candidate, _ in sides]
    scale = HeatScale.of([view for view in views if view is not None])
    cells = "".join(
        f"<div class={tone}><p class=side>{words} <b>{score:.4g}</b></p>"
        f"{_answer(item, candidate, view, scale)}</div>"
        for (words, tone, candidate, score), view in zip(sides, views, strict=True)
    )
    legend = f"<p class=muted>{escape(scale.words)}</p>" if scale is not None else ""
    prompts = _prompts(item, one)
    why = [reasons.get((name, scorer, item.id, candidate)) for _, _, candidate, _ in sides]
    decided = "" if None in why else decided_html(*why, names=SIDES)  # type: ignore[arg-type]
    return f"<li>{head}{prompts}<div class=sides>{cells}</div>{legend}{decided}</li>"


def _prompts(item: Item, one: Mistake) -> str:
    """One, or one above each answer where a pair answers different prompts."""
    first, second = (item.answers[i].prompt for i in (one.preferred, one.other))
    shown = [prompt_text(first)]
    if second.key != first.key:
        shown.append(prompt_text(second))
    names = ["prompt"] if len(shown) == 1 else ["prompt of the first", "prompt of the second"]
    return "".join(
        f"<div class=prompt><p class=side>{label}</p>{shortened(text, SHOWN_PROMPT)}</div>"
        for label, text in zip(names, shown, strict=True)
    )


def prompt_text(prompt: Prompt) -> str:
    """A single user turn as it stands; several turns with who said them."""
    turns = prompt.messages
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def _answer(item: Item, candidate: int, view: TokenHeat | None, scale: "HeatScale | None") -> str:
    if view is not None and scale is not None and len(view.tokens):
        return _heat_map(view, scale)
    return shortened(item.answers[candidate].response, SHOWN_ANSWER)


def shortened(text: str, limit: int) -> str:
    """The text, or its beginning with the rest behind a line that opens."""
    text = text.strip("\n")
    if len(text) <= limit * 1.2:
        return f"<div class=text>{escape(text)}</div>"
    kept = text[:MOST_CHARACTERS]
    cut = f" (the first {MOST_CHARACTERS:,})" if len(kept) < len(text) else ""
    return (
        f"<details class=long><summary><span class=text>{escape(text[:limit].rstrip())} …</span>"
        f"<span class=more>all {len(text):,} characters{cut}</span></summary>"
        f"<div class=text>{escape(kept)}</div></details>"
    )


# ---------------------------------------------------------------------------------- heat maps


class HeatScale:
    """From values of tokens to a colour level, the same for both answers of a pair.

    Contributions are coloured where several tokens have one. A head that reads the last token only
    gives all to that one; then the score if the answer ended there is coloured, from the middle of
    both answers.
    """

    def __init__(self, views: Sequence[TokenHeat]) -> None:
        spread = [int(np.count_nonzero(np.asarray(view.contributions))) for view in views]
        self.is_running = max(spread, default=0) <= 1
        values = np.concatenate([self._raw(view) for view in views])
        self.middle = float(np.median(values)) if self.is_running else 0.0
        distances = np.abs(values - self.middle)
        self.reach = float(np.quantile(distances, HEAT_REACH_QUANTILE)) or float(distances.max())

    @classmethod
    def of(cls, views: Sequence[TokenHeat]) -> "HeatScale | None":
        """None without a token."""
        views = [view for view in views if len(view.tokens)]
        return cls(views) if views else None

    def _raw(self, view: TokenHeat) -> np.ndarray:
        shown = view.running if self.is_running else view.contributions
        return np.asarray(shown, dtype=np.float64)

    def levels(self, view: TokenHeat) -> list[int]:
        """One a token, -HEAT_LEVELS (lowers the score) to HEAT_LEVELS (raises it)."""
        if self.reach == 0:
            return [0] * len(view.tokens)
        scaled = np.clip((self._raw(view) - self.middle) / self.reach, -1, 1) * HEAT_LEVELS
        return np.round(scaled).astype(int).tolist()

    @property
    def words(self) -> str:
        """What the colours say."""
        if self.is_running:
            return (
                "Colour: the score if the answer ended at this token, blue above and orange below "
                f"{self.middle:.3g}, the median of both answers. The head reads the last token only."
            )
        return f"Colour: {HEAT_WORDS}; the same scale for both answers."


def _heat_map(view: TokenHeat, scale: HeatScale) -> str:
    marked = list(zip(view.tokens, scale.levels(view), strict=True))
    if len(marked) <= SHOWN_TOKENS * 1.2:
        return f"<div class=text>{_tokens(marked)}</div>"
    first, rest = marked[:SHOWN_TOKENS], marked[SHOWN_TOKENS:]
    return (
        f"<details class=long><summary><span class=text>{_tokens(first)} …</span>"
        f"<span class=more>all {len(marked):,} tokens</span></summary>"
        f"<div class=text>{_tokens([*first, *rest])}</div></details>"
    )


def _tokens(marked: Sequence[tuple[str, int]]) -> str:
    """Neighbours of one level share a tag."""
    parts, held, level = [], "", 0
    for token, now in [*marked, ("", HEAT_LEVELS + 1)]:
        if now != level:
            parts.append(_coloured(held, level))
            held, level = "", now
        held += token
    return "".join(parts)


def _coloured(text: str, level: int) -> str:
    if not text or not level:
        return escape(text)
    return f"<i class={'up' if level > 0 else 'down'}{abs(level)}>{escape(text)}</i>"


STYLE = (
    """
ol.items{list-style:none;padding:0;margin:1rem 0}
ol.items>li{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:.6rem 1.1rem .9rem;margin:.9rem 0}
.itemhead{overflow-wrap:anywhere}
.side{color:var(--muted);font-size:.85rem;margin:.5rem 0 .2rem}
.side b{color:var(--ink);font-variant-numeric:tabular-nums}
.sides{margin-top:.7rem;display:grid;grid-template-columns:1fr 1fr;gap:1rem}
.sides>div{border-top:3px solid var(--tone);min-width:0}
.win{--tone:var(--good)}.lose{--tone:var(--bad)}
.text{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.88rem;line-height:1.5;display:block}
.text i{font-style:normal;border-radius:2px;print-color-adjust:exact;
-webkit-print-color-adjust:exact}
details.long>summary{list-style:none;color:inherit;margin:0}
details.long>summary::-webkit-details-marker{display:none}
details.long[open]>summary .text{display:none}
.more{color:var(--accent);font-size:.85rem}
details.long[open] .more{display:block;margin-bottom:.3rem}
.decided{margin-top:.8rem}
@media (max-width:44rem){.sides{grid-template-columns:1fr}}
@media print{ol.items>li{break-inside:auto}.itemhead,.side{break-after:avoid}}
""".strip()
    + heat_style()
    + BAR_STYLE
)
"""Style sheet of these items."""
