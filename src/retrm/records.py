"""Plain data: messages, answers, and the relations over them. No torch.

Answers are ONE flat table: a row is one answer to one prompt, with its `prompt_id`. Labels, pairs
and ranked lists are relations that name rows of that table, so the backbone reads each answer once
whatever a loss does with it afterwards.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from retrm.errors import DataError, LabelError, RecipeError, did_you_mean

OVERLONG = ("error", "truncate_left", "skip")
"""What may be done with an answer beyond the context: refuse, cut its prompt, or leave it out."""

ROLES = ("system", "developer", "user", "assistant", "tool")


def check_overlong(overlong: str) -> None:
    """Refuse a policy for answers beyond the context that is none of `OVERLONG`.

    Raises:
        RecipeError: the message offers the nearest one.
    """
    if overlong not in OVERLONG:
        raise RecipeError(
            f"unknown policy overlong={overlong!r}. {did_you_mean(overlong, OVERLONG)}"
        )


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: one of `ROLES`.
        content: the text; parts of type text are joined, other parts are refused at the border.
        images: paths, addresses or `data:` URIs of pictures that stand before the text. Only judges with
            a processor read them; text backbones refuse such messages.
        tool_calls: calls made by an assistant turn, as plain JSON objects.
        tool_call_id: which call a tool turn answers.
        name: speaker or tool name, where a template uses it.
    """

    role: str
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    images: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The shape that chat templates expect; absent fields are left out.

        With images the content is a list of parts, as templates of multimodal models read it.
        """
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.images:
            parts: list[dict[str, Any]] = [{"type": "image", "image": i} for i in self.images]
            out["content"] = [*parts, {"type": "text", "text": self.content}]
        if self.tool_calls:
            out["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.tool_call_id is not None:
            out["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            out["name"] = self.name
        return out


@dataclass(frozen=True)
class Prompt:
    """What was said before the answer: messages, and the tools offered to the model."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, text: str) -> "Prompt":
        """A single user turn."""
        return cls((Message("user", text),))

    @property
    def key(self) -> str:
        """Sixteen hex digits that depend on messages and tools only: the default `prompt_id`."""
        body = {"messages": [m.as_dict() for m in self.messages], "tools": list(self.tools)}
        text = json.dumps(body, sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


WRAPPERS = ("sft", "pretrain")
"""How an answer stands behind its prompt: as a reply on a line of its own, or as its continuation."""


@dataclass(frozen=True)
class Reference:
    """A good answer with which candidates are compared by scorers that need one (POLAR).

    Attributes:
        text: of the answer.
        wrapper: one of `WRAPPERS`; it holds for the candidate as well.
    """

    text: str
    wrapper: str = "sft"

    def __post_init__(self) -> None:
        if self.wrapper not in WRAPPERS:
            raise DataError(
                f"got the wrapper {self.wrapper!r}; expected sft (the answer is a reply) or pretrain (it "
                f"continues the prompt). {did_you_mean(str(self.wrapper), WRAPPERS)}"
            )


@dataclass(frozen=True)
class Answer:
    """One answer to one prompt.

    Attributes:
        prompt: what was said before.
        response: the text to be judged.
        prompt_id: the grouping key of splits, intervals and best-of-N.
        response_ids: the token ids that were sampled, where they are known; they are then scored
            instead of a re-tokenised text. They include the end-of-turn token if it was sampled.
        finished: whether the model ended the answer itself; None = not recorded.
        key: canonical form of the final answer ("42", "b"), for votes; None = none found.
        logprob: mean log-probability of the sampled tokens under the sampler, nats; None = unknown.
        where: source for error messages, "rollouts.jsonl:12".
        score: that the file states for it, raw; None = none is stated.
        pruned: whether sampling stopped it because other candidates scored better; it is part of an
            answer then: nothing to be chosen, to be labelled or to fit a head on.
        reference: a good answer to the same prompt, where the record has one; read by scorers that
            compare, and by no other.
    """

    prompt: Prompt
    response: str
    prompt_id: str
    response_ids: tuple[int, ...] | None = None
    finished: bool | None = None
    key: str | None = None
    logprob: float | None = None
    where: str = ""
    score: float | None = None
    pruned: bool = False
    reference: Reference | None = None

    def as_messages(self) -> list[dict[str, Any]]:
        """Prompt and answer as one conversation in the shape of chat APIs; tools stand beside it."""
        turns = [message.as_dict() for message in self.prompt.messages]
        return [*turns, {"role": "assistant", "content": self.response}]

    @classmethod
    def of(cls, prompt: "str | Prompt | Sequence[Mapping[str, Any]]", response: str) -> "Answer":
        """An answer from plain Python values, as a person types them."""
        if isinstance(prompt, str):
            made = Prompt.of(prompt)
        elif isinstance(prompt, Prompt):
            made = prompt
        else:
            made = Prompt(tuple(Message(m["role"], m["content"]) for m in prompt))
        return cls(made, response, made.key)


@dataclass(frozen=True)
class Pair:
    """Row `chosen` is preferred to row `rejected` by `margin` (0 = no margin given)."""

    chosen: int
    rejected: int
    margin: float = 0.0


@dataclass(frozen=True)
class RankedList:
    """Rows of one prompt with their ranks: 1 = best, equal ranks are ties."""

    rows: tuple[int, ...]
    ranks: tuple[float, ...]

    def pairs(self) -> Iterator[Pair]:
        """All strict pairs; ties give none."""
        for i, rank_i in zip(self.rows, self.ranks, strict=True):
            for j, rank_j in zip(self.rows, self.ranks, strict=True):
                if rank_i < rank_j:
                    yield Pair(i, j)


@dataclass(frozen=True)
class CandidateSet:
    """The candidates of one prompt: rows of the table, in file order."""

    prompt_id: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class RatingScale:
    """The numbers that raters gave, and how they become numbers from 0 to 1.

    rating in [0, 1] = (given - low + pad) / (high - low + 2 pad). HelpSteer's 0 to 4 with pad
    0.5 is (given + 0.5) / 5 (ArmoRM, arXiv 2406.12845, released code).

    Attributes:
        low: the worst number that may be given.
        high: the best.
        pad: how far 0 and 1 lie outside of both; 0 = they are `low` and `high` themselves.
    """

    low: float
    high: float
    pad: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.low, self.high, self.pad)
        if not all(map(math.isfinite, numbers)) or self.low >= self.high or self.pad < 0:
            raise DataError(
                f"got the range {self.low:g}..{self.high:g} with pad {self.pad:g}; expected two "
                "finite numbers, the lower first, and a pad from 0 up. Write it as LOW..HIGH"
            )

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"

    def holds(self, given: float) -> bool:
        """Whether a rater may give this number."""
        return self.low <= given <= self.high

    def scaled(self, given: float) -> float:
        """From the raters' numbers to 0..1; NaN stays NaN."""
        return (given - self.low + self.pad) / (self.high - self.low + 2 * self.pad)

    def given(self, scaled: float) -> float:
        """The way back: what raters would have given."""
        return scaled * (self.high - self.low + 2 * self.pad) + self.low - self.pad


UNIT_SCALE = RatingScale(0.0, 1.0)
"""Of what is a number from 0 to 1 already."""


@dataclass(frozen=True)
class AnswerTable:
    """Answers with the relations over their rows.

    Attributes:
        answers: the rows.
        labels: one number a row, NaN = not labelled. 1/0 for correctness; other numbers for grades.
        pairs: preferences between rows.
        ranked: ranked lists of rows.
        gold: reference answer per prompt_id, where the data carry one.
        counts: what was read, kept and set aside, by reason; nothing disappears uncounted.
        ratings: by objective, in a stable order: (n,) float64 in [0, 1], NaN = not rated.
        scales: by objective, what the raters' own numbers were; all of `ratings` and no other.
    """

    answers: tuple[Answer, ...]
    labels: np.ndarray
    pairs: tuple[Pair, ...] = ()
    ranked: tuple[RankedList, ...] = ()
    gold: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    ratings: Mapping[str, np.ndarray] = field(default_factory=dict)
    scales: Mapping[str, RatingScale] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.answers)
        if self.labels.shape != (n,):
            raise DataError(f"got {self.labels.shape[0]} labels for {n} answers; expected one each")
        for objective, values in self.ratings.items():
            _check_ratings(objective, values, self.answers)
        unrated = [objective for objective in self.scales if objective not in self.ratings]
        if unrated:
            raise DataError(
                f"got a scale of {unrated[0]!r}, which is no objective of the ratings. "
                f"{did_you_mean(unrated[0], list(self.ratings))}".rstrip()
            )
        # Ratings that come without a scale are in the units that they are kept in.
        scales = {name: self.scales.get(name, UNIT_SCALE) for name in self.ratings}
        object.__setattr__(self, "scales", scales)

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def prompt_ids(self) -> np.ndarray:
        """(n,) array of strings."""
        return np.array([answer.prompt_id for answer in self.answers], dtype=object)

    def candidate_sets(self) -> tuple[CandidateSet, ...]:
        """Rows grouped by prompt, prompts in order of first appearance."""
        groups: dict[str, list[int]] = {}
        for row, answer in enumerate(self.answers):
            groups.setdefault(answer.prompt_id, []).append(row)
        return tuple(CandidateSet(pid, tuple(rows)) for pid, rows in groups.items())

    def judged(self, *, label_threshold: float | None = None) -> "AnswerTable":
        """The same answers with labels that are 1, 0 or missing, and pairs.

        Labels that are grades (anything but 0 and 1) become pairs within their prompt: the higher
        grade is chosen. With `label_threshold`, a grade at or above it becomes 1 and any other 0.

        Raises:
            LabelError: `label_threshold` is no finite number.
        """
        if label_threshold is not None and not math.isfinite(label_threshold):
            raise LabelError(
                f"got label_threshold={label_threshold}; expected a number with which grades compare"
            )
        labels = self.labels.astype(np.float64)
        known = ~np.isnan(labels)
        if label_threshold is not None:
            labels = np.where(known, (labels >= label_threshold).astype(np.float64), np.nan)
        if np.isin(labels[known], (0.0, 1.0)).all():
            return replace(self, labels=labels)
        graded = [
            Pair(i, j)
            for group in self.candidate_sets()
            for i in group.rows
            for j in group.rows
            if labels[i] > labels[j]
        ]
        return replace(self, labels=np.full_like(labels, np.nan), pairs=(*self.pairs, *graded))

    def preferences(self) -> list[Pair]:
        """All strict preferences: the pairs, and those of ranked lists."""
        return [*self.pairs, *(pair for ranked in self.ranked for pair in ranked.pairs())]

    def take(self, rows: Sequence[int]) -> "AnswerTable":
        """The sub-table of `rows` in that order; relations that lose a member are left out."""
        new = {int(old): i for i, old in enumerate(rows)}
        answers = tuple(self.answers[int(row)] for row in rows)
        kept = {answer.prompt_id for answer in answers}
        return AnswerTable(
            answers=answers,
            labels=self.labels[np.asarray(rows, dtype=int)],
            pairs=tuple(
                Pair(new[p.chosen], new[p.rejected], p.margin)
                for p in self.pairs
                if p.chosen in new and p.rejected in new
            ),
            ranked=tuple(
                RankedList(tuple(new[r] for r in lst.rows), lst.ranks)
                for lst in self.ranked
                if all(r in new for r in lst.rows)
            ),
            gold={pid: text for pid, text in self.gold.items() if pid in kept},
            counts=self.counts,
            ratings={
                objective: values[np.asarray(rows, dtype=int)]
                for objective, values in self.ratings.items()
            },
            scales=self.scales,
        )


def _check_ratings(objective: str, values: np.ndarray, answers: Sequence[Answer]) -> None:
    """Refuse ratings that are no number from 0 to 1 an answer."""
    if values.shape != (len(answers),):
        raise DataError(
            f"got ratings of {objective!r} in the shape {values.shape} for {len(answers)} answers; "
            "expected one each, NaN where there is none"
        )
    wrong = np.flatnonzero((values < 0) | (values > 1))
    if len(wrong):
        row = int(wrong[0])
        raise LabelError(
            f"{answers[row].where or f'row {row}'}: the rating of {objective!r} is "
            f"{values[row]:g}; expected a number from 0 to 1, or NaN where there is none. Scale it by "
            "the range that raters could give: RatingScale(low, high).scaled(...)"
        )
