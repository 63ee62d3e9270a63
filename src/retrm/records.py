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
        tool_calls: calls made by an assistant turn, as plain JSON objects.
        tool_call_id: which call a tool turn answers.
        name: speaker or tool name, where a template uses it.
    """

    role: str
    content: str
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The shape that chat templates expect; absent fields are left out."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
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
class AnswerTable:
    """Answers with the relations over their rows.

    Attributes:
        answers: the rows.
        labels: one number a row, NaN = not labelled. 1/0 for correctness; other numbers for grades.
        pairs: preferences between rows.
        ranked: ranked lists of rows.
        gold: reference answer per prompt_id, where the data carry one.
        counts: what was read, kept and set aside, by reason; nothing disappears uncounted.
    """

    answers: tuple[Answer, ...]
    labels: np.ndarray
    pairs: tuple[Pair, ...] = ()
    ranked: tuple[RankedList, ...] = ()
    gold: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.answers)
        if self.labels.shape != (n,):
            raise DataError(f"got {self.labels.shape[0]} labels for {n} answers; expected one each")

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
        )
