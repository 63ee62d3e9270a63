"""Sampling answers from a backbone, many at a time.

At temperature T a token is drawn from softmax(logits / T), restricted to the `top_k` likeliest and
then to the smallest set of likeliest tokens that holds the share `top_p` of what is left (nucleus
sampling, arXiv 1904.09751, section 3.1). One uniform number per token, from a stream that belongs to
(seed, prompt, answer), is turned into a token by the inverse of the distribution function. So an
answer does not depend on what else is in the batch, up to rounding of the logits.

Ids that the tokenizer does not know (padding rows of the LM head) are never drawn. The mean
log-probability is that of the model itself, temperature 1 and no restriction.

    >>> from retrm.backbone.fake import FakeBackbone
    >>> from retrm.records import Prompt
    >>> drawn = list(sample(FakeBackbone(), [Prompt.of("Hi")], n=2, max_new_tokens=3))
    >>> [(s.prompt, s.number) for s in drawn]
    [(0, 0), (0, 1)]
"""

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from retrm.backbone.base import Backbone
from retrm.backbone.decode import Decoder, decoder_for
from retrm.backbone.sampled import Sampled
from retrm.errors import OverlongError, RecipeError
from retrm.records import Prompt

_PREFILL_TOKENS = 8192  # read at once, so that prompts never need more memory than this many
_NUCLEUS_GUESS = 128


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
        on_progress: told how many answers of how many are ready.

    Raises:
        RecipeError: an option is out of range.
        OverlongError: a prompt with `max_new_tokens` is longer than the context.
        RenderError: a prompt cannot be rendered.
    """
    _check_options(n, temperature, top_p, top_k, max_new_tokens, seed, batch_size)
    rendered = [backbone.renderer.render_prompt(prompt) for prompt in prompts]
    for index, ids in enumerate(rendered):
        if len(ids) + max_new_tokens > backbone.context_length:
            raise OverlongError(
                f"prompt {index} has {len(ids)} tokens; with max_new_tokens={max_new_tokens} it "
                f"exceeds the context of {backbone.context_length} tokens of {backbone.name}. "
                "Shorten the prompt or lower max_new_tokens"
            )
    choose = functools.partial(_choose, temperature=temperature, top_p=top_p, top_k=top_k)
    run = _Run(backbone, rendered, choose, n, max_new_tokens, seed, batch_size)
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


@dataclass
class _Row:
    """An answer in the making; `uniforms` has one number in [0, 1) for each token."""

    prompt: int
    number: int
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    is_done: bool = False
    n_idle: int = 0  # tokens it was dragged along after it was done


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
    ) -> None:
        self.decoder: Decoder = decoder_for(backbone)
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
        # A group is (prompt, first answer, answers): its prompt is read once. A quarter of a batch
        # at most, or the last long answer of a prompt would keep all others from joining.
        self.quarter = max(1, batch_size // 4)
        self.waiting = deque(
            (prompt, first, min(self.quarter, n - first))
            for prompt in range(len(prompts))
            for first in range(0, n, self.quarter)
        )

    def advance(self) -> list[Sampled]:
        """Let rows join, continue all rows by one token, and return those that became ready."""
        done = self._admit()
        if any(not row.is_done for row in self.rows):
            last = [row.tokens[-1] for row in self.rows]
            done += self._draw(self.decoder.step(last), self.rows)
        self._compact()
        return done

    def _admit(self) -> list[Sampled]:
        """Fill free places, a quarter of the batch at least, since joining copies the cache."""
        done: list[Sampled] = []
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
    def _draw(self, logits: Tensor, rows: Sequence[_Row]) -> list[Sampled]:
        """Give each row that is not done its next token; the rows that are done by it."""
        logits = logits.float()
        if self.n_tokens < logits.shape[1]:
            logits = logits[:, : self.n_tokens]
        at = [min(len(row.tokens), self.max_new_tokens - 1) for row in rows]
        uniforms = np.array([row.uniforms[i] for row, i in zip(rows, at, strict=True)], np.float32)
        tokens = self.choose(logits, torch.from_numpy(uniforms).to(logits.device))
        gains = logits.gather(1, tokens[:, None])[:, 0] - torch.logsumexp(logits, dim=1)
        done: list[Sampled] = []
        for row, token, gain in zip(rows, tokens.tolist(), gains.tolist(), strict=True):
            if row.is_done:
                row.n_idle += 1
                continue
            row.tokens.append(token)
            row.logprob += gain
            row.is_done = token in self.ends or len(row.tokens) == self.max_new_tokens
            if row.is_done:
                done.append(self._sampled(row))
        return done

    def _sampled(self, row: _Row) -> Sampled:
        finished = row.tokens[-1] in self.ends
        return Sampled(
            response=self.renderer.decode(row.tokens[:-1] if finished else row.tokens),
            token_ids=tuple(row.tokens),
            finished=finished,
            logprob=row.logprob / len(row.tokens),
            prompt=row.prompt,
            number=row.number,
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
