"""Pairs of candidates to outcomes: both orders, k samples each, a majority, and a count of all that happened.

    order (a, b)   k verdicts -> majority v1 in {a, b, tie, unread}
    order (b, a)   k verdicts -> majority v2
    margin = vote(v1) + vote(v2),  a = +1, b = -1, tie or unread = 0;   points of a = 1/2 + margin / 4

This is the rule of JudgeBench for judges: right and tie together are right, right and wrong cancel. With one
order the points are 1/2 + margin / 2.

A majority counts the readable verdicts of an order. Where two sides have as many, the first sample that was
read decides (R1-Reward's rule), and it is counted. Two candidates with the same text are a tie without a call.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from retrm.errors import RecipeError, did_you_mean
from retrm.judges.asking import JudgeModel, Request
from retrm.judges.cache import Reply, ReplyCache, Sampling, reply_key
from retrm.judges.quoting import is_quoted
from retrm.judges.template import JudgeTemplate, Verdict, Winner, mirrored, template_mark
from retrm.records import Message

Orders = Literal["both", "first", "drawn"]
ORDERS = ("both", "first", "drawn")
"""`both`; `first` = as the candidates stand; `drawn` = one order by a hash, as the authors evaluate."""


@dataclass(frozen=True)
class Pair:
    """Two candidates of one prompt."""

    prompt: tuple[Message, ...]
    first: str
    second: str


@dataclass(frozen=True)
class Reading:
    """One output and what it says, in terms of the pair, whichever order it was shown in.

    Attributes:
        is_swapped: whether the second candidate was shown first.
        number: of the sample.
        reply: what was written.
        verdict: as the template reads it, in the order that was shown.
    """

    is_swapped: bool
    number: int
    reply: Reply
    verdict: Verdict

    @property
    def winner(self) -> Winner | None:
        """Of the pair."""
        return mirrored(self.verdict.winner) if self.is_swapped else self.verdict.winner

    @property
    def scores(self) -> tuple[Mapping[str, float], Mapping[str, float]] | None:
        """By dimension, of the pair's first and second."""
        found = self.verdict.scores
        return found if found is None or not self.is_swapped else (found[1], found[0])


@dataclass(frozen=True)
class PairOutcome:
    """What a judge says of a pair.

    Attributes:
        by_order: majority of each order that was asked, in terms of the pair; None = none was readable.
        readings: all of them; empty for candidates with the same text.
        n_split: orders in which two sides had as many votes and the first sample decided.
    """

    by_order: tuple[Winner | None, ...]
    readings: tuple[Reading, ...]
    n_split: int = 0

    @property
    def margin(self) -> int:
        """Votes of the orders for the first less those for the second."""
        return sum({"first": 1, "second": -1}.get(winner or "", 0) for winner in self.by_order)

    @property
    def points(self) -> float:
        """Of the first, in 0..1; 1/2 is a tie."""
        return 0.5 + self.margin / (2 * max(1, len(self.by_order)))

    @property
    def winner(self) -> Winner | None:
        """Who has more votes; None where nothing could be read."""
        if self.by_order and all(one is None for one in self.by_order):
            return None
        return "tie" if self.margin == 0 else "first" if self.margin > 0 else "second"

    @property
    def agrees(self) -> bool | None:
        """Whether both orders say the same; None where one was not asked or not readable."""
        if len(self.by_order) < 2 or None in self.by_order:
            return None
        return self.by_order[0] == self.by_order[1]


@dataclass
class JudgeCounts:
    """What happened in all comparisons of a judge; nothing is left out uncounted.

    Attributes:
        pairs: compared.
        identical: of them, pairs of the same text, decided without a call.
        replies: outputs that were read.
        from_cache: of them, those that were paid for before.
        unread: outputs without a verdict, by reason.
        unread_pairs: pairs without any verdict; they count as ties.
        both_read: pairs whose two orders have a verdict.
        agreeing: of them, those in which both say the same.
        first_shown: verdicts for the candidate that was shown first.
        decided: verdicts for either candidate.
        split_votes: majorities that the first sample decided.
        quoted: pairs of which a candidate writes tags that judges act on.
        copied_examples: outputs with the scores of the prompt's example.
        contradictions: outputs whose scores add up to another winner than the verdict.
        without_scores: outputs whose dimension scores cannot be read, where they are asked for.
        unscored: candidates without readable dimension scores, which took the mean of the others.
        lone: prompts with one candidate, which there is nothing to compare with.
        prompt_tokens: of the outputs that were not in the cache, as far as they are told.
        new_tokens: the same of what was written.
        untold_tokens: outputs of which no counts are told.
    """

    pairs: int = 0
    identical: int = 0
    replies: int = 0
    from_cache: int = 0
    unread: Counter[str] = field(default_factory=Counter)
    unread_pairs: int = 0
    both_read: int = 0
    agreeing: int = 0
    first_shown: int = 0
    decided: int = 0
    split_votes: int = 0
    quoted: int = 0
    copied_examples: int = 0
    contradictions: int = 0
    without_scores: int = 0
    unscored: int = 0
    lone: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    untold_tokens: int = 0

    @property
    def asked(self) -> int:
        """Calls that were made."""
        return self.replies - self.from_cache

    @property
    def parse_rate(self) -> float | None:
        """Share of outputs with a verdict; None without any."""
        return 1 - self.unread.total() / self.replies if self.replies else None

    @property
    def positional_agreement(self) -> float | None:
        """Share of pairs with the same verdict in both orders; None where no pair has two."""
        return self.agreeing / self.both_read if self.both_read else None

    @property
    def first_rate(self) -> float | None:
        """Share of verdicts for whoever was shown first; a half where the order does not matter."""
        return self.first_shown / self.decided if self.decided else None

    def cost(self, *, per_million_prompt: float, per_million_new: float) -> float:
        """Of the calls that were made, in the currency of the prices."""
        return (self.prompt_tokens * per_million_prompt + self.new_tokens * per_million_new) / 1e6

    def as_dict(self) -> dict[str, object]:
        """Plain JSON, rates included."""
        rates = {
            "asked": self.asked,
            "parse_rate": self.parse_rate,
            "positional_agreement": self.positional_agreement,
            "first_rate": self.first_rate,
        }
        return {**vars(self), "unread": dict(sorted(self.unread.items())), **rates}

    def in_words(self) -> str:
        """One line for people."""
        shares = {
            "with a verdict": self.parse_rate,
            "orders agree": self.positional_agreement,
            "for the first shown": self.first_rate,
        }
        said = [f"{self.pairs:,} pairs, {self.asked:,} calls ({self.from_cache:,} from the cache)"]
        said += [f"{name} {share:.3f}" for name, share in shares.items() if share is not None]
        said += [f"{reason}: {n:,}" for reason, n in sorted(self.unread.items())]
        counted = {
            "identical pairs": self.identical,
            "pairs without a verdict": self.unread_pairs,
            "split votes": self.split_votes,
            "candidates with tags": self.quoted,
            "copied examples": self.copied_examples,
            "scores against the verdict": self.contradictions,
            "candidates without scores": self.unscored,
            "prompts with one candidate": self.lone,
        }
        said += [f"{name} {n:,}" for name, n in counted.items() if n]
        tokens = f"{self.prompt_tokens:,} + {self.new_tokens:,} tokens"
        return ", ".join([*said, tokens])


class Comparer:
    """Compares pairs with one judge; shared state is the cache and the counts.

    Args:
        model: that writes.
        template: that renders and parses.
        sampling: how outputs are drawn.
        samples: k, outputs an order.
        orders: one of `ORDERS`.
        cache: of replies; None = in memory only.

    Raises:
        RecipeError: several samples at temperature 0, or an unknown order.
    """

    def __init__(
        self,
        model: JudgeModel,
        template: JudgeTemplate,
        *,
        sampling: Sampling | None = None,
        samples: int = 1,
        orders: Orders = "both",
        cache: ReplyCache | None = None,
    ) -> None:
        self.sampling = sampling or Sampling(temperature=1.0 if samples > 1 else 0.0)
        if samples < 1:
            raise RecipeError(f"got samples={samples}; expected 1 or more")
        if samples > 1 and self.sampling.temperature == 0:
            raise RecipeError(
                f"got samples={samples} with temperature=0: all {samples} outputs would be the same. Use "
                "samples=1, or temperature=1"
            )
        if orders not in ORDERS:
            raise RecipeError(f"unknown orders={orders!r}. {did_you_mean(orders, ORDERS)}")
        self.model = model
        self.template = template
        self.samples = samples
        self.orders = orders
        self.cache = cache if cache is not None else ReplyCache()
        self.counts = JudgeCounts()
        self._mark = template_mark(template)

    @property
    def identity(self) -> str:
        """Of everything that outcomes hang on."""
        drawn = " ".join(f"{name}={value}" for name, value in vars(self.sampling).items())
        return (
            f"{self.model.identity} {self.template.name} {self._mark} {drawn} "
            f"samples={self.samples} orders={self.orders}"
        )

    def compare(
        self, pairs: Sequence[Pair], *, on_progress: Callable[[int, int], None] | None = None
    ) -> list[PairOutcome]:
        """An outcome of each pair; what is in the cache is not asked again.

        Args:
            pairs: to compare.
            on_progress: told how many replies of how many are there, perhaps from other threads.

        Raises:
            EndpointError: the engine failed for good, or serves another model now; replies that came
                before are kept.
            OutputError: the cache cannot be written.
            RenderError: a prompt without words, or messages that a chat template refuses.
        """
        plans = [self._plan(pair) for pair in pairs]
        known = self._replies([shown for plan in plans for _, shown in plan], on_progress)
        counted: set[str] = set()
        return [
            self._outcome(pair, plan, known, counted)
            for pair, plan in zip(pairs, plans, strict=True)
        ]

    def _plan(self, pair: Pair) -> list[tuple[bool, tuple[Message, ...]]]:
        """(swapped, messages) of every order that is asked."""
        if pair.first == pair.second:
            return []
        swaps = {"both": (False, True), "first": (False,)}.get(self.orders)
        if swaps is None:
            # By the texts alone, whichever of them the caller puts first.
            low, high = sorted((pair.first, pair.second))
            there = self.template.render(pair.prompt, low, high)
            shown_first = low if int(self._key(there, 0)[0], 16) % 2 else high
            swaps = (pair.first != shown_first,)
        sides = {False: (pair.first, pair.second), True: (pair.second, pair.first)}
        return [(swap, self.template.render(pair.prompt, *sides[swap])) for swap in swaps]

    def _key(self, messages: tuple[Message, ...], number: int) -> str:
        return reply_key(self.model.identity, self._mark, self.sampling, number, messages)

    def _replies(
        self,
        shown: Sequence[tuple[Message, ...]],
        on_progress: Callable[[int, int], None] | None,
    ) -> dict[str, Reply]:
        """All replies by key; the missing ones are asked for, each once."""
        keys: dict[str, tuple[tuple[Message, ...], int]] = {}
        for messages in dict.fromkeys(shown):
            for number in range(self.samples):
                keys[self._key(messages, number)] = (messages, number)
        known = {key: found for key in keys if (found := self.cache.get(key)) is not None}
        wanted: dict[tuple[Message, ...], dict[int, str]] = {}
        for key, (messages, number) in keys.items():
            if key not in known:
                wanted.setdefault(messages, {})[number] = key
        self.counts.from_cache += len(known)
        asked = list(wanted.items())

        def take(place: int, number: int, reply: Reply) -> None:
            key = asked[place][1][number]
            self.cache.put(key, reply, model=self.model.identity, template=self.template.name)
            known[key] = reply
            if on_progress is not None:
                on_progress(len(known), len(keys))

        if on_progress is not None:
            on_progress(len(known), len(keys))
        if asked:
            requests = [Request(messages, tuple(numbers)) for messages, numbers in asked]
            self.model.ask(requests, self.sampling, take)
            for key in {key for _, numbers in asked for key in numbers.values()}:
                self._count_tokens(known[key])
        self.counts.replies += len(keys)
        return known

    def _count_tokens(self, reply: Reply) -> None:
        counts = self.counts
        counts.prompt_tokens += reply.n_prompt_tokens or 0
        counts.new_tokens += reply.n_new_tokens or 0
        counts.untold_tokens += reply.n_prompt_tokens is None or reply.n_new_tokens is None

    def _outcome(
        self,
        pair: Pair,
        plan: Sequence[tuple[bool, tuple[Message, ...]]],
        known: Mapping[str, Reply],
        counted: set[str],
    ) -> PairOutcome:
        """`counted` are the replies that an equal pair before it has brought into the counts."""
        readings, by_order, n_split = [], [], 0
        for swap, messages in plan:
            keys = [self._key(messages, number) for number in range(self.samples)]
            some = [self._read(swap, number, known[key]) for number, key in enumerate(keys)]
            for key, reading in zip(keys, some, strict=True):
                if key not in counted:
                    counted.add(key)
                    self._count_reply(reading.verdict)
            winner, is_split = majority([one.winner for one in some])
            by_order.append(winner)
            n_split += is_split
            readings += some
        made = PairOutcome(tuple(by_order), tuple(readings), n_split)
        self._count(pair, made)
        return made

    def _read(self, swap: bool, number: int, reply: Reply) -> Reading:
        if reply.problem is not None:
            verdict = Verdict.unread(reply.problem)
        else:
            verdict = self.template.parse(reply.text, finished=reply.finished is not False)
        return Reading(swap, number, reply, verdict)

    def _count(self, pair: Pair, made: PairOutcome) -> None:
        counts = self.counts
        counts.pairs += 1
        counts.identical += not made.by_order
        counts.unread_pairs += made.winner is None
        counts.both_read += made.agrees is not None
        counts.agreeing += made.agrees is True
        counts.split_votes += made.n_split
        counts.quoted += is_quoted(pair.first) or is_quoted(pair.second)

    def _count_reply(self, verdict: Verdict) -> None:
        counts = self.counts
        if verdict.problem is not None:
            counts.unread[verdict.problem] += 1
        counts.decided += verdict.winner in ("first", "second")
        counts.first_shown += verdict.winner == "first"
        counts.copied_examples += verdict.copies_example
        counts.without_scores += verdict.score_problem is not None
        counts.contradictions += (
            verdict.winner is not None
            and verdict.score_winner is not None
            and verdict.score_winner != verdict.winner
        )


def majority(votes: Sequence[Winner | None]) -> tuple[Winner | None, bool]:
    """Who has most of the readable votes, and whether the first sample had to decide.

    >>> majority(["first", "second", "second", "first", "second"])
    ('second', False)
    >>> majority(["first", "second", None])
    ('first', True)
    """
    read = [vote for vote in votes if vote is not None]
    if not read:
        return None, False
    counted = Counter(read)
    most = max(counted.values())
    best = [vote for vote in read if counted[vote] == most]
    return best[0], len(set(best)) > 1
