"""The rows of a sampling that are under way, and the prompts that wait for a place.

Each turn lets rows join, continues every row by one token, and lets those leave that are ready. A row
is `drawn` when it has all its tokens, `done` when its score is known as well; a row that is done may
be dragged along for a while, since dropping rows copies the cache.
"""

import functools
import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from retrm.backbone.base import Backbone
from retrm.backbone.choose import choose
from retrm.backbone.decode import Decoder, decoder_for
from retrm.backbone.follow import Following, Running
from retrm.backbone.sample_options import SampleOptions
from retrm.backbone.sampled import Sampled
from retrm.errors import RecipeError

_PREFILL_TOKENS = 8192  # read at once, so that prompts never need more memory than this many


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


def end_ids(backbone: Backbone) -> frozenset[int]:
    """The tokens that end an answer: of the template, the tokenizer and the generation config."""
    renderer, model = backbone.renderer, getattr(backbone, "model", None)
    found = set(getattr(renderer, "end_ids", ()))
    found.add(getattr(renderer, "end_id", None))
    found.add(getattr(getattr(renderer, "tokenizer", None), "eos_token_id", None))
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found.update(stated if isinstance(stated, list | tuple) else (stated,))
    return frozenset(token for token in found if token is not None)


class Run:
    """The rows under way and the prompts that wait."""

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[tuple[int, ...]],
        options: SampleOptions,
        following: Following,
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
        self.choose = functools.partial(
            choose, temperature=options.temperature, top_p=options.top_p, top_k=options.top_k
        )
        self.max_new_tokens = options.max_new_tokens
        self.seed = options.seed
        self.batch_size = options.batch_size
        self.ends = end_ids(backbone)
        tokenizer = getattr(backbone.renderer, "tokenizer", None)
        known = backbone.vocab_size if tokenizer is None else len(tokenizer)
        self.n_tokens = min(known, backbone.vocab_size)
        self.rows: list[_Row] = []
        self.ended: dict[int, list[float]] = {}  # scores of the candidates at their end, by prompt
        # A group is (prompt, first answer, answers): its prompt is read once. A quarter of a batch
        # at most, or the last long answer of a prompt would keep all others from joining.
        self.quarter = max(1, options.batch_size // 4)
        n, together = options.n, self.quarter if following.prune is None else options.n
        self.waiting = deque(
            (prompt, first, min(together, n - first))
            for prompt in range(len(prompts))
            for first in range(0, n, together)
        )

    def advance(self) -> list[Sampled]:
        """Let rows join, continue all rows by one token, and return those that became ready."""
        done = self._admit()
        if any(not row.is_done for row in self.rows):
            done += self._step()
        self._compact()
        return [self._sampled(row) for row in done]

    def _step(self) -> list[_Row]:
        """Continue all rows by one token; those that are done by it."""
        for row in self.rows:
            row.n_idle += row.is_done
        tokens = [row.tokens[-1] for row in self.rows]
        growing = [i for i, row in enumerate(self.rows) if not row.is_drawn]
        if self.follower is not None and self.follower.reads_logits:
            logits = self.decoder.step(tokens)
            done = self._follow(tokens, logits)
            logits = logits[growing]
        else:
            logits = self.decoder.step(tokens, asked=growing)
            done = self._follow(tokens, None)
        return done + self._draw(logits, [self.rows[i] for i in growing]) if growing else done

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
    def _follow(self, tokens: Sequence[int], logits: Tensor | None) -> list[_Row]:
        """Let the follower see what the step computed; the rows that are done by it."""
        if self.follower is None:
            return []
        # Rows that are dragged along must not change.
        judged = [not row.is_done for row in self.rows]
        is_judged = None if all(judged) else torch.tensor(judged)
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
        rule = self.following.prune
        named = list(rule.stop([row.score for row in rows], ended))
        if len(set(named)) < len(named) or not set(named) <= set(range(len(rows))):
            raise RecipeError(
                f"the rule {rule} stopped {named} of the {len(rows)} candidates of prompt {prompt}; "
                f"expected positions from 0 to {len(rows) - 1}, each once. Mend the rule"
            )
        stopped = [rows[i] for i in named]
        if len(stopped) >= len(rows) + len(ended):
            raise RecipeError(
                f"the rule {rule} stopped every candidate of prompt {prompt}; "
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
            if row.is_drawn:  # pruned in this very step
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
