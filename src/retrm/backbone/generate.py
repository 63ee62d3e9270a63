"""Sampling answers from a backbone, many at a time.

At temperature T a token is drawn from softmax(logits / T), restricted to the `top_k` likeliest and
then to the smallest set of likeliest tokens that holds the share `top_p` of what is left (nucleus
sampling, arXiv 1904.09751, section 3.1). One uniform number per token, from a stream that belongs to
(seed, prompt, answer), is turned into a token by the inverse of the distribution function. So an
answer does not depend on what else is in the batch, up to rounding of the logits.

Ids that the tokenizer does not know (padding rows of the LM head) are never drawn. The mean
log-probability is that of the model itself, temperature 1 and no restriction.

A `Follower` is shown the states that are computed anyway and scores the rows as they grow. Drawing a
token does not compute its state, so a row whose last token is judged stays for one step more. What is
judged is what was SAMPLED: the tokens drawn, with the end token where the follower counts it.

    >>> from retrm.backbone.fake import FakeBackbone
    >>> from retrm.records import Prompt
    >>> drawn = list(sample(FakeBackbone(), [Prompt.of("Hi")], n=2, max_new_tokens=3))
    >>> [(s.prompt, s.number) for s in drawn]
    [(0, 0), (0, 1)]
"""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retrm.backbone.base import Backbone, StatePoint
from retrm.backbone.decode import Decoder, decoder_for
from retrm.backbone.remote import BackboneHandle, RemoteBackbone
from retrm.backbone.sampled import Sampled
from retrm.engines.base import in_order
from retrm.errors import OverlongError, RecipeError
from retrm.records import Prompt

_PREFILL_TOKENS = 8192  # read at once, so that prompts never need more memory than this many
_NUCLEUS_GUESS = 128
_GROUP_BATCHES = 2  # of answers in one piece of work: a worker that dies loses so many


class Follower(Protocol):
    """What runs along with a sampling and scores its rows; `rows` are always all rows under way."""

    @property
    def wanted(self) -> Collection[tuple[int, StatePoint]]:
        """The states it must be shown."""
        ...

    @property
    def counts_end(self) -> bool:
        """Whether an end token that was drawn is judged."""
        ...

    def visit(self, layer: int, point: StatePoint, states: Float[Tensor, "rows width"]) -> None:
        """Take the newest states of one pass, which `begin` or `feed` then ends."""
        ...

    def begin(self, logits: Float[Tensor, "rows vocab"]) -> None:
        """New rows stand below the others; `logits` are those behind their prompts."""
        ...

    def feed(
        self,
        tokens: Sequence[int],
        is_judged: Bool[Tensor, " rows"] | None,
        logits: Float[Tensor, "rows vocab"],
    ) -> None:
        """`tokens` were appended, one a row; only rows that are judged may change (None = all)."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all other rows."""
        ...

    def scores(self) -> Float[Tensor, " rows"]:
        """The score of each row if its answer ended here; NaN for a row without a judged token."""
        ...


class PruneRule(Protocol):
    """Which candidates of a prompt to stop; asked whenever they have grown by `every` tokens."""

    @property
    def every(self) -> int:
        """Tokens between two questions, 1 or more."""
        ...

    def stop(self, running: Sequence[float], ended: Sequence[float]) -> Sequence[int]:
        """Positions in `running` to stop.

        Args:
            running: running scores of the candidates under way, all of the same number of tokens.
            ended: scores of the candidates that have come to their end.
        """
        ...


@dataclass(frozen=True)
class Running:
    """Running scores after one step; entry i of each belongs to one answer in the making.

    Attributes:
        prompts: index of the prompt.
        numbers: index of the answer among those of its prompt.
        n_tokens: judged tokens so far.
        scores: raw scores, if the answers ended here.
    """

    prompts: tuple[int, ...]
    numbers: tuple[int, ...]
    n_tokens: tuple[int, ...]
    scores: tuple[float, ...]


def sample(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    follower: Follower | None = None,
    prune: PruneRule | None = None,
    on_running: Callable[[Running], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Sampled]:
    """Draw `n` answers to each prompt; they come in the order of the prompts, as they are ready.

    Args:
        backbone: what to sample from.
        prompts: what to answer.
        n: answers to each prompt.
        temperature: 0 = always the likeliest token (then n must be 1).
        top_p: share of probability to draw from, in (0, 1]; 1 = all.
        top_k: how many of the likeliest tokens to draw from; 0 = all.
        max_new_tokens: after so many tokens an answer is broken off, `finished` is then False.
        seed: same seed, same answers.
        batch_size: rows that are continued together; more is faster and takes more memory.
        follower: scores the answers as they grow; use it for one sampling.
        prune: stops candidates by their running scores; the candidates of a prompt then grow side
            by side, so that what is stopped does not depend on the batch.
        on_running: told the running scores after every token.
        on_progress: told how many answers of how many are ready.

    Raises:
        RecipeError: an option is out of range, `prune` or `on_running` without a follower, or
            `prune` with fewer places than candidates.
        OverlongError: a prompt with `max_new_tokens` is longer than the context.
        RenderError: a prompt cannot be rendered.
    """
    _check_options(n, temperature, top_p, top_k, max_new_tokens, seed, batch_size)
    _check_follower(n, batch_size, follower, prune, on_running)
    rendered = [backbone.renderer.render_prompt(prompt) for prompt in prompts]
    for index, ids in enumerate(rendered):
        if len(ids) + max_new_tokens > backbone.context_length:
            raise OverlongError(
                f"prompt {index} has {len(ids)} tokens; with max_new_tokens={max_new_tokens} it "
                f"exceeds the context of {backbone.context_length} tokens of {backbone.name}. "
                "Shorten the prompt or lower max_new_tokens"
            )
    if isinstance(backbone, RemoteBackbone):
        if follower is not None:
            raise RecipeError(
                f"{backbone.name!r} lies on the workers of an engine, and scoring while sampling runs "
                "in this process only; use engine local, or score what was sampled"
            )
        options = _Options(n, temperature, top_p, top_k, max_new_tokens, seed, batch_size)
        return _sample_remote(backbone, prompts, options, on_progress)
    choose = functools.partial(_choose, temperature=temperature, top_p=top_p, top_k=top_k)
    following = _Following(follower, prune, on_running)
    run = _Run(backbone, rendered, choose, n, max_new_tokens, seed, batch_size, following)
    return _in_order(run, len(prompts), n, on_progress)


def end_ids(backbone: Backbone) -> frozenset[int]:
    """The tokens that end an answer: of the template, the tokenizer and the generation config."""
    renderer, model = backbone.renderer, getattr(backbone, "model", None)
    found = set(getattr(renderer, "end_ids", ()))
    found.add(getattr(renderer, "end_id", None))
    found.add(getattr(getattr(renderer, "tokenizer", None), "eos_token_id", None))
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found.update(stated if isinstance(stated, list | tuple) else (stated,))
    return frozenset(token for token in found if token is not None)


def _check_options(
    n: int,
    temperature: float,
    top_p: float,
    top_k: int,
    max_new_tokens: int,
    seed: int,
    batch_size: int,
) -> None:
    counts = {"n": n, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    for name, value in counts.items():
        if value < 1:
            raise RecipeError(f"got {name}={value}; expected 1 or more")
    if not 0 <= temperature < float("inf"):
        raise RecipeError(f"got temperature={temperature}; expected a number of 0 or more")
    if not 0 < top_p <= 1:
        raise RecipeError(f"got top_p={top_p}; expected a share in (0, 1], 1 = no restriction")
    if top_k < 0:
        raise RecipeError(f"got top_k={top_k}; expected 0 (no restriction) or more")
    if not 0 <= seed < 2**64:
        raise RecipeError(f"got seed={seed}; expected an integer from 0 to 2**64 - 1")
    if temperature == 0 and n > 1:
        raise RecipeError(
            f"got temperature=0 with n={n}: all {n} answers would be the same. Use n=1, or a "
            "temperature above 0"
        )


def _check_follower(
    n: int,
    batch_size: int,
    follower: Follower | None,
    prune: PruneRule | None,
    on_running: Callable[[Running], None] | None,
) -> None:
    for name, value in {"prune": prune, "on_running": on_running}.items():
        if value is not None and follower is None:
            raise RecipeError(f"{name} needs running scores; pass a follower, such as a head")
    if prune is not None and prune.every < 1:
        raise RecipeError(f"got a rule that prunes every {prune.every} tokens; expected 1 or more")
    if prune is not None and batch_size < n:
        raise RecipeError(
            f"got batch_size={batch_size} with n={n}: pruning compares the candidates of a prompt "
            f"side by side. Use batch_size={n} or more, or leave pruning out"
        )


@dataclass(frozen=True)
class _Options:
    """Of `sample`, which says what they mean."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    seed: int
    batch_size: int


@dataclass(frozen=True)
class SamplePrompts:
    """Work: load the backbone and answer groups of prompts."""

    handle: BackboneHandle
    options: _Options

    def start(self) -> Callable[[Sequence[Prompt]], list[Sampled]]:
        """Load the backbone."""
        backbone = self.handle.load()
        return lambda prompts: list(sample(backbone, prompts, **vars(self.options)))


def _sample_remote(
    backbone: RemoteBackbone,
    prompts: Sequence[Prompt],
    options: _Options,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[Sampled]:
    """Groups of prompts on the workers.

    A group depends on the options alone, never on the number of workers, so neither do its batches.
    """
    size = max(1, _GROUP_BATCHES * options.batch_size // options.n)
    groups = [prompts[first : first + size] for first in range(0, len(prompts), size)]
    results = backbone.engine.run(SamplePrompts(backbone.handle, options), groups)
    for number, answers in enumerate(in_order(results)):
        first = number * size
        yield from (replace(one, prompt=first + one.prompt) for one in answers)
        if on_progress is not None:
            n_ready = min(first + size, len(prompts)) * options.n
            on_progress(n_ready, len(prompts) * options.n)


def _in_order(
    run: "_Run", n_prompts: int, n: int, on_progress: Callable[[int, int], None] | None
) -> Iterator[Sampled]:
    """Hold answers back until all before them are ready."""
    ready: dict[tuple[int, int], Sampled] = {}
    order = deque((prompt, number) for prompt in range(n_prompts) for number in range(n))
    n_ready = 0
    while order:
        for drawn in run.advance():
            ready[drawn.prompt, drawn.number] = drawn
            n_ready += 1
            if on_progress is not None:
                on_progress(n_ready, n_prompts * n)
        while order and order[0] in ready:
            yield ready.pop(order.popleft())


@dataclass(eq=False)
class _Row:
    """An answer in the making; `uniforms` has one number in [0, 1) for each token."""

    prompt: int
    number: int
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    score: float | None = None
    n_judged: int = 0  # tokens whose states a follower has seen
    is_pruned: bool = False
    is_drawn: bool = False  # has all its tokens; the state of the last may be missing
    is_done: bool = False
    n_idle: int = 0  # tokens it was dragged along after it was done


@dataclass(frozen=True)
class _Following:
    """What looks on; everything None = nobody."""

    follower: Follower | None
    prune: PruneRule | None
    on_running: Callable[[Running], None] | None


class _Run:
    """The rows under way and the prompts that wait."""

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[tuple[int, ...]],
        choose: Callable[[Tensor, Tensor], Tensor],
        n: int,
        max_new_tokens: int,
        seed: int,
        batch_size: int,
        following: _Following,
    ) -> None:
        self.following = following
        self.follower = following.follower
        if self.follower is None:
            self.decoder: Decoder = decoder_for(backbone)
        else:
            follower = self.follower
            self.decoder = decoder_for(backbone, wanted=follower.wanted, show=follower.visit)
        self.renderer = backbone.renderer
        self.prompts = prompts
        self.choose = choose
        self.max_new_tokens = max_new_tokens
        self.seed = seed
        self.batch_size = batch_size
        self.ends = end_ids(backbone)
        tokenizer = getattr(backbone.renderer, "tokenizer", None)
        known = backbone.vocab_size if tokenizer is None else len(tokenizer)
        self.n_tokens = min(known, backbone.vocab_size)
        self.rows: list[_Row] = []
        self.ended: dict[int, list[float]] = {}  # scores of the candidates at their end, by prompt
        # A group is (prompt, first answer, answers): its prompt is read once. A quarter of a batch
        # at most, or the last long answer of a prompt would keep all others from joining.
        self.quarter = max(1, batch_size // 4)
        together = self.quarter if following.prune is None else n
        self.waiting = deque(
            (prompt, first, min(together, n - first))
            for prompt in range(len(prompts))
            for first in range(0, n, together)
        )

    def advance(self) -> list[Sampled]:
        """Let rows join, continue all rows by one token, and return those that became ready."""
        done = self._admit()
        if any(not row.is_done for row in self.rows):
            tokens = [row.tokens[-1] for row in self.rows]
            logits = self.decoder.step(tokens)
            done += self._follow(tokens, logits)
            if any(not row.is_drawn for row in self.rows):
                done += self._draw(logits, self.rows)
        self._compact()
        return [self._sampled(row) for row in done]

    def _admit(self) -> list[_Row]:
        """Fill free places, a quarter of the batch at least, since joining copies the cache."""
        done: list[_Row] = []
        if self.batch_size - len(self.rows) < self.quarter:
            return done
        while self.waiting:
            groups = self._next_groups()
            if not groups:
                break
            fresh = [
                _Row(prompt, number, self._uniforms(prompt, number))
                for prompt, first, count in groups
                for number in range(first, first + count)
            ]
            read = [self.prompts[prompt] for prompt, _, _ in groups]
            logits = self.decoder.add(read, [count for _, _, count in groups])
            self.rows += fresh
            if self.follower is not None:
                self.follower.begin(logits)
            done += self._draw(logits, fresh)
        return done

    def _next_groups(self) -> list[tuple[int, int, int]]:
        """Waiting groups that fit into the free places and into one reading."""
        groups: list[tuple[int, int, int]] = []
        free, longest = self.batch_size - len(self.rows), 0
        while self.waiting and self.waiting[0][2] <= free:
            longest = max(longest, len(self.prompts[self.waiting[0][0]]))
            if groups and longest * (len(groups) + 1) > _PREFILL_TOKENS:
                break
            groups.append(self.waiting.popleft())
            free -= groups[-1][2]
        return groups

    def _uniforms(self, prompt: int, number: int) -> np.ndarray:
        # Keyed by what is asked, not by its place: a run that goes on after a kill, or asks for a
        # part of the questions, draws the same answers.
        asked = np.array(self.prompts[prompt], dtype=np.int64).tobytes()
        stream = int.from_bytes(hashlib.sha256(asked).digest()[:8], "big")
        sequence = np.random.SeedSequence([self.seed, stream, number])
        return np.random.Generator(np.random.PCG64(sequence)).random(
            self.max_new_tokens, dtype=np.float32
        )

    @torch.inference_mode()
    def _follow(self, tokens: Sequence[int], logits: Tensor) -> list[_Row]:
        """Let the follower see what the step computed; the rows that are done by it."""
        if self.follower is None:
            return []
        # Rows that are dragged along must not change.
        judged = [not row.is_done for row in self.rows]
        is_judged = None if all(judged) else torch.tensor(judged).to(logits.device)
        self.follower.feed(tokens, is_judged, logits)
        for row, counts in zip(self.rows, judged, strict=True):
            row.n_judged += counts
        done = [row for row in self.rows if row.is_drawn and not row.is_done]
        asked = self._asked()
        if not (done or asked or self.following.on_running):
            return []
        # One transfer for all rows, and only in steps in which somebody looks.
        scores = self.follower.scores().tolist()
        for row, score, counts in zip(self.rows, scores, judged, strict=True):
            row.score = score if counts else row.score
        self._tell([row for row, counts in zip(self.rows, judged, strict=True) if counts])
        for row in done:
            self._end(row)
        return done + [row for prompt, rows in asked.items() for row in self._prune(prompt, rows)]

    def _asked(self) -> dict[int, list[_Row]]:
        """Candidates under way, by prompt, where the rule is to be asked in this step."""
        rule, found = self.following.prune, {}
        if rule is None:
            return found
        for row in self.rows:
            if not row.is_drawn and row.n_judged % rule.every == 0:
                found.setdefault(row.prompt, []).append(row)
        return found

    def _prune(self, prompt: int, rows: Sequence[_Row]) -> list[_Row]:
        """Stop what the rule names; all of `rows` have the same number of tokens."""
        ended = self.ended.get(prompt, [])
        stopped = [rows[i] for i in self.following.prune.stop([row.score for row in rows], ended)]
        if len(stopped) >= len(rows) + len(ended):
            raise RecipeError(
                f"the rule {self.following.prune} stopped every candidate of prompt {prompt}; "
                "expected one at least to go on or to have ended. Mend the rule"
            )
        for row in stopped:
            row.is_drawn = row.is_done = row.is_pruned = True
        return stopped

    def _tell(self, rows: Sequence[_Row]) -> None:
        if self.following.on_running is not None:
            self.following.on_running(
                Running(
                    prompts=tuple(row.prompt for row in rows),
                    numbers=tuple(row.number for row in rows),
                    n_tokens=tuple(row.n_judged for row in rows),
                    scores=tuple(row.score for row in rows),
                )
            )

    def _end(self, row: _Row) -> None:
        """The row has come to its end, with its score where a follower judged any token of it."""
        row.is_done = True
        if row.score is not None and self.following.prune is not None:
            self.ended.setdefault(row.prompt, []).append(row.score)

    @torch.inference_mode()
    def _draw(self, logits: Tensor, rows: Sequence[_Row]) -> list[_Row]:
        """Give each row that is not drawn its next token; the rows that are done by it."""
        logits = logits.float()
        if self.n_tokens < logits.shape[1]:
            logits = logits[:, : self.n_tokens]
        at = [min(len(row.tokens), self.max_new_tokens - 1) for row in rows]
        uniforms = np.array([row.uniforms[i] for row, i in zip(rows, at, strict=True)], np.float32)
        tokens = self.choose(logits, torch.from_numpy(uniforms).to(logits.device))
        gains = logits.gather(1, tokens[:, None])[:, 0] - torch.logsumexp(logits, dim=1)
        done: list[_Row] = []
        for row, token, gain in zip(rows, tokens.tolist(), gains.tolist(), strict=True):
            if row.is_drawn:
                row.n_idle += row.is_done
                continue
            row.tokens.append(token)
            row.logprob += gain
            row.is_drawn = token in self.ends or len(row.tokens) == self.max_new_tokens
            if row.is_drawn and not self._misses_state(row):
                done.append(row)
        self._score(done)
        for row in done:
            self._end(row)
        return done

    def _misses_state(self, row: _Row) -> bool:
        """Whether the last token drawn is judged, so that its state must still be computed."""
        if self.follower is None:
            return False
        return self.follower.counts_end or row.tokens[-1] not in self.ends

    def _score(self, rows: Sequence[_Row]) -> None:
        """Give rows that ended in a token that is not judged the score of those before."""
        if self.follower is None or not any(row.n_judged for row in rows):
            return
        scores = self.follower.scores().tolist()
        for row in rows:
            row.score = scores[self.rows.index(row)] if row.n_judged else None

    def _sampled(self, row: _Row) -> Sampled:
        finished = row.tokens[-1] in self.ends
        return Sampled(
            response=self.renderer.decode(row.tokens[:-1] if finished else row.tokens),
            token_ids=tuple(row.tokens),
            finished=finished,
            logprob=row.logprob / len(row.tokens),
            prompt=row.prompt,
            number=row.number,
            score=row.score,
            is_pruned=row.is_pruned,
        )

    def _compact(self) -> None:
        """Drop ready rows once they are an eighth of all, since dropping copies the cache.

        A row that was dragged along for `max_new_tokens` would leave the context: it goes at once.
        """
        alive = [i for i, row in enumerate(self.rows) if not row.is_done]
        done = [row for row in self.rows if row.is_done]
        is_full = any(len(row.tokens) + row.n_idle >= self.max_new_tokens for row in done)
        if is_full or (done and 8 * len(done) >= len(self.rows)):
            self.decoder.keep(alive)
            if self.follower is not None:
                self.follower.keep(alive)
            self.rows = [self.rows[i] for i in alive]


def _choose(
    logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float, top_k: int
) -> Tensor:
    """One token a row: logits (rows, vocab) float32, uniforms (rows,) in [0, 1) -> ids (rows,)."""
    if temperature == 0:
        return logits.argmax(dim=1)
    # Shifted first: a tiny temperature would otherwise overflow.
    scaled = (logits - logits.amax(dim=1, keepdim=True)) / temperature
    n_vocab = logits.shape[1]
    if 0 < top_k < n_vocab:
        values, ids = scaled.topk(top_k, dim=1)
        weights = _nucleus(values.exp(), values.exp().sum(1, keepdim=True), top_p)
        return ids.gather(1, _invert(weights, uniforms)[:, None])[:, 0]
    if top_p == 1:
        return _invert(scaled.exp(), uniforms)
    return _choose_nucleus(scaled, uniforms, top_p)


def _choose_nucleus(scaled: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Nucleus sampling that sorts the whole vocabulary only for rows that need it."""
    totals = scaled.exp().sum(1, keepdim=True)
    chosen = torch.full_like(uniforms, -1, dtype=torch.long)
    open_rows = torch.arange(len(scaled), device=scaled.device)
    n_kept = _NUCLEUS_GUESS
    while len(open_rows):
        n_kept = min(n_kept, scaled.shape[1])
        values, ids = scaled[open_rows].topk(n_kept, dim=1)
        weights, total = values.exp(), totals[open_rows]
        is_held = (weights.sum(1) >= top_p * total[:, 0]) | (n_kept == scaled.shape[1])
        drawn = _invert(_nucleus(weights, total, top_p)[is_held], uniforms[open_rows][is_held])
        chosen[open_rows[is_held]] = ids[is_held].gather(1, drawn[:, None])[:, 0]
        open_rows = open_rows[~is_held]
        n_kept *= 8
    return chosen


def _nucleus(weights: Tensor, total: Tensor, top_p: float) -> Tensor:
    """Descending weights (rows, kept), zeroed behind the share `top_p` of `total` (rows, 1)."""
    before = weights.cumsum(1) - weights
    return weights * (before < top_p * total) if top_p < 1 else weights


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Index at which the running sum of `weights` (rows, n) first exceeds u times the whole sum.

    An index of weight 0 is never returned: the running sum does not grow there.
    """
    sums = weights.cumsum(1)
    whole = sums[:, -1:]
    # Rounding u * whole up to whole would step behind the last weight.
    below = torch.nextafter(whole, torch.zeros_like(whole))
    target = torch.minimum(uniforms[:, None] * whole, below)
    return torch.searchsorted(sums, target, right=True)[:, 0]
