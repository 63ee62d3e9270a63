r"""Proof that the right states are read: what `retrm doctor MODEL` measures on a backbone.

A wrong layer index or a norm applied twice does not crash; it gives a head that works a little worse.
So every convention is checked against something that does not share our code, on eight short texts:

    final norm       FinalNorm(residual L) = post_norm          by the formula of `locate.apply_norm`
    logits           softcap(scale * (W post_norm + bias)) = the model's own logits
    layer numbers    layer i = entry i of transformers' `hidden_states`, and no other entry
    spans, BOS, end  the judged ids decode to the answer; one BOS; the end token as `counts_end` says
    padding, batch   states alone = states in a padded, a left-padded and a shared row
    resume           a reading that was killed and went on = one that was not

Differences of states are relative, |a - b| / |a| of each token: the worst token in float32 and
float64, the mean of all tokens in lower precision, where single tokens differ by rounding alone.

Cost: some 10,000 tokens, padding included; about a minute for a 135M model on one core.

`check_parity` compares a second source of states, such as an inference engine, with the model itself:

    tokens           it gives states for exactly the token ids that were asked for
    layer numbers    its layer i is nearest to our layer i, and to no other layer or state point
    final norm       its post_norm is ours: the norm is applied once
    cosine           1 - mean cosine of each layer, at most 0.001
    states           relative difference, as above, by the coarser of the two dtypes
    scores           1 - Pearson correlation of a random linear head's scores, at most 0.001
    repetition       asking again gives the same states
"""

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrm.backbone.base import Backbone, Rendered, StatePoint, TokenBatch
from retrm.backbone.batching import build, plan_batches
from retrm.backbone.locate import apply_norm, logits_of
from retrm.errors import DataError, OverlongError, RenderError, RetrmError
from retrm.features.read import Progress, read
from retrm.features.recipe import Recipe
from retrm.features.reduce import Features
from retrm.records import Answer, Message, Prompt
from retrm.store.shards import ShardSink

State = tuple[int, StatePoint]
States = Mapping[State, Float[Tensor, "tokens width"]]

MAX_PROMPTS = 8
FLOAT16_MAX = 65504.0
_FEW = 4  # the first texts, short and long, where all would be a waste of time
PARITY = 1e-3  # 1 - cosine, 1 - correlation of two engines that compute the same model
MARGIN = 10.0  # of the largest number a dtype holds over the largest state

# A broken model fails in these ways; each becomes a failed check that names the error.
_FAILURES = (
    *(RetrmError, RuntimeError, ValueError, TypeError),
    *(IndexError, KeyError, AttributeError, NotImplementedError),
)
# Their `hidden_states` begin with the output of block 1 instead of the embedding.
_NO_EMBEDDING_ENTRY = ("mamba", "rwkv")


@dataclass(frozen=True)
class Check:
    """One thing that was measured.

    Attributes:
        name: of the check, two words at most.
        passed: True or False; None = it does not apply to this backbone.
        figure: what was measured, smaller is better; None where there is no number.
        limit: the largest figure that passes; None where there is no number.
        detail: in words; begins with "not applicable: " where `passed` is None.
    """

    name: str
    passed: bool | None
    figure: float | None
    limit: float | None
    detail: str


@dataclass(frozen=True)
class Report:
    """All checks of one backbone.

    Attributes:
        backbone: its name.
        dtype: in which it ran.
        device: on which it ran.
        n_prompts: texts read.
        n_tokens: tokens of these texts, prompts and answers.
        checks: in the order in which they were made.
    """

    backbone: str
    dtype: str
    device: str
    n_prompts: int
    n_tokens: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; those that do not apply are not counted as failures."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    def check(self, name: str) -> Check:
        """The check called `name`."""
        return next(check for check in self.checks if check.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON; a figure that is not finite becomes text."""
        checks = [{**asdict(c), "figure": _plain(c.figure)} for c in self.checks]
        return {**asdict(self), "checks": checks, "passed": self.passed}


@dataclass(frozen=True)
class _Limits:
    """Largest relative differences that are rounding: of the norm, the logits, states and scores.

    In lower precision a single score, a sum over one token, moves far more than the mean state.
    """

    norm: float
    logits: float
    states: float
    scores: float
    by_worst_token: bool


_EXACT = _Limits(1e-5, 1e-4, 1e-4, 1e-4, True)
_LIMITS = {
    torch.float32: _EXACT,
    torch.float64: _EXACT,
    torch.float16: _Limits(2e-3, 1e-2, 1e-2, 5e-2, False),
    torch.bfloat16: _Limits(1e-2, 5e-2, 5e-2, 0.25, False),
}


class _DoesNotApplyError(Exception):
    """A check has nothing to measure on this backbone."""


class _KilledError(Exception):
    """Stands for the end of a process in the middle of a reading."""


# ---------------------------------------------------------------------- texts

_PASSAGE = """\
First I write down what is given. A train leaves at 9:40 and drives 210 kilometres at 84 kilometres an \
hour; a second one leaves the same station half an hour later and drives at 105 kilometres an hour. We \
ask which of them arrives first, and by how many minutes.

The first train needs 210 / 84 = 2.5 hours, so it arrives at 12:10. The second needs 210 / 105 = 2 \
hours. It leaves at 10:10, so it arrives at 12:10 as well.

Let me check this by another way. In the half hour before the second train starts, the first one has \
driven 42 kilometres. The second gains 105 - 84 = 21 kilometres every hour, so it needs 42 / 21 = 2 \
hours to make up for them, and two hours after 10:10 it is 12:10. Both ways agree: at that time both \
trains have driven 210 kilometres, which is the whole way.

So neither of them is first. They arrive at the same minute, 12:10, and the difference is 0 minutes."""


def _texts() -> tuple[Answer, ...]:
    """Short and long answers, a shared prompt, a system turn, several turns, an unfinished answer."""
    sum_of_two = Prompt.of("What is 3 + 4?")
    system = Prompt(
        (Message("system", "You answer in one word."), Message("user", "Name a prime below 10."))
    )
    turns = Prompt(
        (
            Message("user", "Pick a number."),
            Message("assistant", "I pick 12."),
            Message("user", "Double it, then add one.\nShow your work."),
        )
    )
    train = Prompt.of("Two trains drive 210 km. Which arrives first, and by how many minutes?")
    code = Prompt.of(
        "Écris une fonction qui compte les voyelles d'une phrase — en Python, s'il te plaît."
    )
    made = (
        (sum_of_two, "7", None),
        (sum_of_two, "3 + 4 = 7, so the answer is 7.", None),
        (train, _PASSAGE, None),
        (turns, "2 × 12 = 24\n24 + 1 = 25\n\nThe answer is 25.", None),
        (system, "Seven", None),
        (code, "def compte(s):\n    return sum(c in 'aeiouyéè' for c in s.lower())", None),
        (Prompt.of("Why is the sky blue?"), _PASSAGE[:360], False),
        (Prompt.of("?"), "I am not sure what you are asking; could you say more?", None),
    )
    return tuple(Answer(p, text, p.key, finished=done) for p, text, done in made)


@dataclass(frozen=True)
class _Fitted:
    """The texts as this backbone can take them, with what had to be changed."""

    answers: tuple[Answer, ...]
    rendered: tuple[Rendered, ...]
    notes: tuple[str, ...]


def _fit_texts(backbone: Backbone, n_prompts: int) -> _Fitted:
    answers, rendered, notes = [], [], []
    for answer in _texts()[:n_prompts]:
        answer, made, changed = _fit_text(backbone, answer)
        answers.append(answer)
        rendered.append(made)
        notes += changed
    return _Fitted(tuple(answers), tuple(rendered), tuple(dict.fromkeys(notes)))


def _fit_text(backbone: Backbone, answer: Answer) -> tuple[Answer, Rendered, list[str]]:
    """Shorten an answer until it fits; leave out a system turn that the template refuses."""
    notes: list[str] = []
    while True:
        try:
            made = backbone.renderer.render(answer)
            if len(made.ids) > backbone.context_length:
                raise OverlongError(f"{len(made.ids)} tokens in {backbone.context_length}")
            return answer, made, notes
        except OverlongError:
            if len(answer.response) < 2:
                raise
            answer = replace(answer, response=answer.response[: len(answer.response) // 2])
            notes.append("long answers were shortened to the context")
        except RenderError:
            messages = answer.prompt.messages
            if messages[0].role != "system":
                raise
            prompt = Prompt(messages[1:])
            answer = replace(answer, prompt=prompt, prompt_id=prompt.key)
            notes.append("the template refuses system turns; it was left out")


# -------------------------------------------------------------------- reading


def _laid_out(
    backbone: Backbone, rendered: Sequence[Rendered], *, left: bool = False
) -> TokenBatch:
    """One answer a row with every token of it in its span, padded on either side by any tokens."""
    lengths = [item.stop for item in rendered]
    shape = (len(rendered), max(lengths))
    ids = torch.arange(shape[0] * shape[1]).reshape(shape) % backbone.vocab_size
    positions = torch.zeros(shape, dtype=torch.long)
    keep = torch.zeros(shape, dtype=torch.bool)
    spans = []
    for row, (item, n) in enumerate(zip(rendered, lengths, strict=True)):
        start = shape[1] - n if left else 0
        ids[row, start : start + n] = torch.tensor(item.ids[:n])
        positions[row, start : start + n] = torch.arange(n)
        keep[row, start : start + n] = True
        spans.append(torch.arange(start, start + n, device=backbone.device))
    return TokenBatch(
        ids=ids.to(backbone.device),
        positions=positions.to(backbone.device),
        attention=keep.to(backbone.device),
        answers=tuple(range(len(rendered))),
        rows=tuple(range(len(rendered))),
        spans=tuple(spans),
        previous=tuple((span - 1).clamp(min=int(span[0])) for span in spans),
        n_tokens=sum(lengths),
    )


def _read_states(backbone: Backbone, batch: TokenBatch, wanted: Sequence[State]) -> list[States]:
    """Per answer of `batch` the states of its span, float32 on the CPU."""
    found: list[dict[State, Tensor]] = [{} for _ in batch.answers]

    def keep(layer: int, point: StatePoint, states: Tensor) -> None:
        if states.ndim != 3 or tuple(states.shape[:2]) != tuple(batch.ids.shape):
            raise ValueError(
                f"states of layer {layer} have shape {tuple(states.shape)} for {tuple(batch.ids.shape)} "
                "tokens"
            )
        for at, (row, span) in enumerate(zip(batch.rows, batch.spans, strict=True)):
            found[at][layer, point] = states[row, span.to(states.device)].float().cpu()

    backbone.forward(batch, list(wanted), keep)
    return found


def _difference(a: Sequence[States], b: Sequence[States], limits: _Limits) -> float:
    """How far the states `b` are from `a`, relative to `a` (see the module's docstring)."""
    per_token = [
        (x[key] - y[key]).norm(dim=-1) / x[key].norm(dim=-1).clamp(min=1e-30)
        for x, y in zip(a, b, strict=True)
        for key in x
    ]
    every = torch.cat(per_token)
    # `max` of a tensor keeps NaN, Python's does not.
    return float(every.max() if limits.by_worst_token else every.mean())


@dataclass(frozen=True)
class _Own:
    """What transformers itself gives for the texts, against what we read.

    Attributes:
        logits_error: worst relative difference of the logits of a text.
        n_other_choice: positions at which the most likely token differs.
        n_positions: positions compared.
        entries: (L + 1, n) mean relative difference of our layer i and entry k of `hidden_states`.
    """

    logits_error: float
    n_other_choice: int
    n_positions: int
    entries: Float[Tensor, "layers entries"]


# --------------------------------------------------------------------- checks


@dataclass(frozen=True)
class _Examination:
    """One backbone with the texts it reads; each method makes one check."""

    backbone: Backbone
    fitted: _Fitted
    limits: _Limits

    @property
    def rendered(self) -> tuple[Rendered, ...]:
        return self.fitted.rendered

    @property
    def last(self) -> int:
        return self.backbone.n_layers

    @cached_property
    def wanted(self) -> list[State]:
        layers: list[State] = [(i, "residual") for i in range(self.last + 1)]
        return [*layers, (self.last, "post_norm")]

    @cached_property
    def alone(self) -> list[States]:
        """Every text in a pass of its own: what all other readings are compared with."""
        return [
            _read_states(self.backbone, _laid_out(self.backbone, [item]), self.wanted)[0]
            for item in self.rendered
        ]

    @cached_property
    def batched(self) -> list[States]:
        """All texts in one pass, padded on the right."""
        batch = _laid_out(self.backbone, self.rendered)
        return _read_states(self.backbone, batch, self.wanted)

    @cached_property
    def model(self) -> nn.Module:
        """The transformers model behind the backbone."""
        model = getattr(self.backbone, "model", None)
        if not isinstance(model, nn.Module) or not hasattr(model, "get_input_embeddings"):
            raise _DoesNotApplyError("there is no transformers model to compare with")
        return model

    @cached_property
    def own(self) -> _Own:
        """One plain forward of transformers for each text, compared and thrown away."""
        worst, other, total = [], 0, 0
        entries: list[Tensor] = []
        for item, states in zip(self.rendered, self.alone, strict=True):
            ids = torch.tensor([item.ids[: item.stop]], device=self.backbone.device)
            with torch.inference_mode():
                out = self.model(input_ids=ids, use_cache=False, output_hidden_states=True)
            logits = out.logits[0].float().cpu()
            error, n_other = self._against_logits(states[self.last, "post_norm"], logits)
            worst.append(error)
            other += n_other
            total += len(logits)
            entries.append(self._against_entries(states, out.hidden_states))
        return _Own(float(torch.tensor(worst).max()), other, total, torch.stack(entries).mean(0))

    def _against_logits(self, post_norm: Tensor, logits: Tensor) -> tuple[float, int]:
        head = self.backbone.unembedding
        ours = logits_of(post_norm.to(head.weight.device), head).cpu()
        error = float((ours - logits).norm() / logits.norm())
        # Two tokens whose logits are equal within rounding may swap.
        tie = self.limits.logits * logits.abs().amax(-1)
        chosen = logits.gather(1, ours.argmax(-1, keepdim=True))[:, 0]
        return error, int((logits.amax(-1) - chosen > tie).sum())

    def _against_entries(self, states: States, entries: Sequence[Tensor]) -> Tensor:
        theirs = [entry[0].float().cpu() for entry in entries]
        return torch.stack(
            [
                torch.stack([_mean_difference(states[key], one) for one in theirs])
                for key in self._named_by_entry()
            ]
        )

    def _named_by_entry(self) -> list[State]:
        """Our states in the order in which transformers' tuple should hold them."""
        config = self.model.config.get_text_config()
        is_normed = getattr(config, "tie_last_hidden_states", True) is not False
        top: State = (self.last, "post_norm" if is_normed else "residual")
        if config.model_type in _NO_EMBEDDING_ENTRY:
            return [*((i, "residual") for i in range(1, self.last + 1)), top]
        return [*((i, "residual") for i in range(self.last)), top]

    # What is read

    def layers(self) -> Check:
        """Every layer is there once, in ascending order, with one row a token."""
        seen: list[State] = []
        batch = _laid_out(self.backbone, self.rendered[:1])
        self.backbone.forward(batch, self.wanted, lambda i, point, _: seen.append((i, point)))
        shapes = {
            tuple(x.shape) == (item.stop, self.backbone.width)
            for item, states in zip(self.rendered, self.alone, strict=True)
            for x in states.values()
        }
        said = f"layers 0..{self.last} and post_norm, {self.backbone.width} numbers a token"
        if seen != self.wanted:
            said = f"visited {seen[:4]}..., expected {self.wanted[:4]}..."
        elif shapes != {True}:
            said = f"a state has another shape than (tokens, {self.backbone.width})"
        wrong = len(set(self.wanted) ^ set(seen)) + (seen != self.wanted) + (shapes != {True})
        return _within("layers", float(wrong), 0.0, said)

    def embedding(self) -> Check:
        """Layer 0 is the embedding lookup, times the model's scale, plus a vector per position."""
        table = self.model.get_input_embeddings().weight.detach()
        config = self.model.config.get_text_config()
        scales = {1.0, self.backbone.width**0.5, getattr(config, "embedding_multiplier", 1.0)}
        looked_up = [
            table[torch.tensor(item.ids[: item.stop], device=table.device)].float().cpu()
            for item in self.rendered
        ]
        layer0 = [states[0, "residual"] for states in self.alone]
        best = min(
            (self._embedding_error(layer0, looked_up, scale) for scale in sorted(scales)),
            key=lambda found: found[0] if found[0] == found[0] else float("inf"),
        )
        error, said = best
        limit = self.limits.norm
        if not error <= limit and self._is_first_entry(layer0):
            raise _DoesNotApplyError(
                "the embedding output is no scaled lookup (it is normed or mixed); it equals "
                "transformers' first entry"
            )
        return _within("embedding", error, limit, said)

    def _embedding_error(
        self, layer0: Sequence[Tensor], looked_up: Sequence[Tensor], scale: float
    ) -> tuple[float, str]:
        rest = [x - scale * e for x, e in zip(layer0, looked_up, strict=True)]
        size = torch.cat(list(layer0)).norm()
        plain = float(torch.cat(rest).norm() / size)
        # What is added must be the same at one position whatever the token there.
        n = max(len(r) for r in rest)
        by_position = next(r for r in rest if len(r) == n)
        apart = torch.cat([r - by_position[: len(r)] for r in rest])
        positional = float(apart.norm() / size)
        if plain <= positional or plain <= self.limits.norm:
            return plain, f"layer 0 = {scale:g} × embedding lookup"
        return positional, f"layer 0 = {scale:g} × embedding lookup + a vector for each position"

    def _is_first_entry(self, layer0: Sequence[Tensor]) -> bool:
        named = self._named_by_entry()
        if named[0] != (0, "residual") or self.own.entries.shape[1] != len(named):
            return False
        return bool(layer0) and float(self.own.entries[0, 0]) <= self.limits.states

    def final_norm(self) -> Check:
        """The norm's kind, gain and eps turn the residual of the last layer into post_norm."""
        head = self.backbone.unembedding
        parts = [None if p is None else p.cpu() for p in (head.gain, head.norm_bias)]
        errors = []
        for states in self.alone:
            made = apply_norm(states[self.last, "residual"], *parts, head.norm_kind, head.eps)
            given = states[self.last, "post_norm"]
            errors.append(((made - given).norm() / given.norm()).reshape(1))
        figure = float(torch.cat(errors).max())
        said = f"{head.norm_kind} norm, eps {head.eps:.3g}: residual {self.last} → post_norm"
        return _within("final norm", figure, self.limits.norm, said)

    def logits(self) -> Check:
        """The LM head on post_norm gives the model's own logits and the same next token."""
        own = self.own
        said = f"the most likely token agrees at {own.n_positions - own.n_other_choice} of "
        made = _within(
            "logits", own.logits_error, self.limits.logits, f"{said}{own.n_positions} positions"
        )
        return replace(made, passed=bool(made.passed) and own.n_other_choice == 0)

    def layer_numbers(self) -> Check:
        """Layer i is nearest to entry i of transformers' tuple, and equal to it."""
        named, entries = self._named_by_entry(), self.own.entries
        if entries.shape[1] != len(named):
            raise _DoesNotApplyError(
                f"transformers gives {entries.shape[1]} entries for {self.last} blocks, so their "
                "numbers mean something else"
            )
        nearest = entries.argmin(1).tolist()
        moved = [(named[k], at) for k, at in enumerate(nearest) if at != k]
        said = f"each of {len(named)} layers is nearest to its own entry of transformers' tuple"
        if moved:
            (layer, point), at = moved[0]
            said = (
                f"{len(moved)} of {len(named)} layers are nearest to another entry: layer {layer} "
                f"({point}) to entry {at}"
            )
        made = _within("layer numbers", float(entries.diagonal().max()), self.limits.states, said)
        return replace(made, passed=bool(made.passed) and not moved)

    def finite(self) -> Check:
        """No state is all zeros, NaN or infinite."""
        bad = [
            (i, point)
            for states in self.alone
            for (i, point), x in states.items()
            for row in x
            if not torch.isfinite(row).all() or not row.any()
        ]
        n = sum(len(x) for states in self.alone for x in states.values())
        said = f"of {n:,} states, zero, NaN or infinite"
        if bad:
            said += f"; first at layer {bad[0][0]} ({bad[0][1]})"
        return _within("finite", float(len(bad)), 0.0, said)

    def magnitude(self) -> Check:
        """The largest number is far from overflow in the backbone's dtype."""
        largest = torch.stack([x.abs().max() for s in self.alone for x in s.values()]).max()
        would = float(largest) * MARGIN >= FLOAT16_MAX
        said = "largest number in any state; float16 " + (
            "would come within a factor of 10 of overflow: keep features in float32 or bfloat16"
            if would
            else "would hold it ten times over"
        )
        limit = torch.finfo(self.backbone.dtype).max / MARGIN
        return _within("magnitude", float(largest), limit, said)

    # How texts become tokens

    def spans(self) -> Check:
        """The judged ids decode to the answer, and the ids before them hold the question."""
        renderer, wrong = self.backbone.renderer, []
        for answer, item in zip(self.fitted.answers, self.rendered, strict=True):
            judged = item.ids[item.start : item.stop]
            text = renderer.decode(judged)
            asked = answer.prompt.messages[-1].content.strip()
            # Tokenizers in the style of SentencePiece drop the space of the first word.
            if text.removeprefix(" ") != answer.response.removeprefix(" "):
                wrong.append(f"{answer.response[:30]!r} became {text[:30]!r}")
            elif asked not in renderer.decode(item.ids[: item.start]):
                wrong.append(f"the question {asked[:30]!r} is not in the prompt")
            elif "".join(renderer.pieces(judged)) != text:
                wrong.append(f"the pieces of {text[:30]!r} do not join to it")
            elif not 0 <= min(item.ids) <= max(item.ids) < self.backbone.vocab_size:
                wrong.append(f"token id {max(item.ids)} of {self.backbone.vocab_size}")
        said = "; ".join(
            [wrong[0] if wrong else "answers decode to themselves", *self.fitted.notes]
        )
        return _within("spans", float(len(wrong)), 0.0, said)

    def beginning(self) -> Check:
        """A beginning-of-sequence token stands in front once, if the tokenizer has one."""
        tokenizer = getattr(self.backbone.renderer, "tokenizer", None)
        doubled = sum(item.ids[0] == item.ids[1] for item in self.rendered)
        if tokenizer is None:
            return _within("BOS", float(doubled), 0.0, "texts that begin with a token twice")
        bos = tokenizer.bos_token_id
        if bos is None:
            raise _DoesNotApplyError("the tokenizer has no BOS token")
        wrong = sum(item.ids[:2] == (bos, bos) for item in self.rendered)
        needs = bos in tokenizer("a")["input_ids"][:1]
        lacking = sum(item.ids[0] != bos for item in self.rendered)
        if not needs and lacking == len(self.rendered):
            raise _DoesNotApplyError("neither the tokenizer nor the template writes a BOS token")
        said = f"texts that begin with two {tokenizer.bos_token} or none"
        return _within("BOS", float(wrong + lacking), 0.0, said)

    def end_token(self) -> Check:
        """The end-of-turn token is judged exactly when `counts_end` says so."""
        renderer = self.backbone.renderer
        ends = getattr(renderer, "end_ids", None)
        if not ends:
            raise _DoesNotApplyError("the renderer knows no end-of-turn token")
        wrong = 0
        for answer, item in zip(self.fitted.answers, self.rendered, strict=True):
            judged, behind = item.ids[item.start : item.stop], item.ids[item.stop :]
            is_ended = answer.finished is not False
            wrong += (judged[-1] in ends) != (is_ended and renderer.counts_end)
            wrong += bool(behind) != (is_ended and not renderer.counts_end)
            wrong += any(token in ends for token in judged[:-1])
        said = "judged" if renderer.counts_end else "not judged"
        return _within("end token", float(wrong), 0.0, f"answers where it is not as told: {said}")

    # Batching

    def padding_mask(self) -> Check:
        """Texts behind padding have the states they have alone.

        Behind a text padding could not show, since a causal model does not look ahead.
        """
        located = getattr(self.backbone, "located", None)
        if located is not None and not (located.takes_mask and located.takes_positions):
            raise _DoesNotApplyError(
                f"{located.model_type} has no mask or positions; padding only ever stands behind a text"
            )
        batch = _laid_out(self.backbone, self.rendered[:_FEW], left=True)
        found = _read_states(self.backbone, batch, self.wanted)
        figure = _difference(self.alone[:_FEW], found, self.limits)
        return self._states_check("padding mask", figure, "padded on the left against alone")

    def batching(self) -> Check:
        """All texts in one batch have the states they have alone."""
        figure = _difference(self.alone, self.batched, self.limits)
        return self._states_check(
            "batching", figure, f"{len(self.rendered)} texts in one padded batch against alone"
        )

    def scores(self) -> Check:
        """A random linear head scores the texts alike alone and in a batch."""
        one, other = self._scores(self.alone), self._scores(self.batched)
        figure = float(((one - other).abs() / (1 + one.abs())).max())
        flips = int((one[:, None] > one).ne(other[:, None] > other).triu().sum())
        said = f"scores of a random linear head, alone against batched; {flips} pairs change order"
        return _within("scores", figure, self.limits.scores, said)

    def _scores(self, states: Sequence[States]) -> Float[Tensor, " answers"]:
        draw = torch.randn(self.backbone.width, generator=torch.Generator().manual_seed(0))
        last = torch.stack([s[self.last, "post_norm"][-1] for s in states])
        return last @ draw / self.backbone.width**0.5

    def shared_prompts(self) -> Check:
        """Answers that share the row of their prompt have the states they have alone."""
        if not self.backbone.shares_prompts:
            raise _DoesNotApplyError("this backbone reads every answer in a row of its own")
        rendered = self.rendered
        expected = [
            {key: x[item.start : item.stop] for key, x in states.items()}
            for item, states in zip(rendered, self.alone, strict=True)
        ]
        got: list[States] = [{} for _ in rendered]
        plans = plan_batches(rendered, tokens_per_batch=4096, share_prompts=True)
        for plan in plans:
            batch = build(plan, rendered, pad_id=0, device=self.backbone.device)
            for at, states in zip(
                batch.answers, _read_states(self.backbone, batch, self.wanted), strict=True
            ):
                got[at] = states
        if not any(plan.shares for plan in plans):
            raise _DoesNotApplyError("no two of the texts read share a prompt; raise n_prompts")
        figure = _difference(expected, got, self.limits)
        return self._states_check("shared prompts", figure, "answers in one row against alone")

    def repetition(self) -> Check:
        """A second reading gives the same states."""
        again = [
            _read_states(self.backbone, _laid_out(self.backbone, [item]), self.wanted)[0]
            for item in self.rendered[:_FEW]
        ]
        figure = _difference(self.alone[:_FEW], again, self.limits)
        return self._states_check("repetition", figure, "the same texts read twice")

    def resume(self) -> Check:
        """A reading that is killed and goes on gives the features of one that was not."""
        answers = self.fitted.answers
        half = answers[: len(answers) // 2]
        recipes = _recipes(self.backbone)
        longest = max(item.stop for item in self.rendered)

        def run(rows: Sequence[Answer], folder: Path | None, on_progress: Any = None) -> Any:
            sink = None
            if folder is not None:
                sink = ShardSink(folder, recipes, self.backbone.fingerprint)
            return read(
                self.backbone,
                rows,
                recipes,
                sink=sink,
                tokens_per_batch=longest,
                share_prompts=False,
                on_progress=on_progress,
            )

        whole = run(answers, None)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "store"
            run(half, folder)
            killed: list[int] = []
            with contextlib.suppress(_KilledError):
                run(answers, folder, lambda progress: _kill(progress, killed))
            resumed = run(answers, folder)
            figure = max(  # before the folder goes: stored features are loaded when asked for
                _feature_difference(whole.features[name], resumed.features[name])
                for name in recipes
            )
        n_left = sum(item.stop for item in self.rendered[len(half) :])
        # What was read before the kill may have reached the disk.
        fits = resumed.n_tokens in (n_left, n_left - sum(killed))
        said = f"{len(half)} of {len(answers)} answers were stored; {resumed.n_tokens} tokens read"
        if not fits:
            said += f", expected {n_left}: something was read twice or left out"
        made = self._states_check("resume", figure, said)
        return replace(made, passed=bool(made.passed) and fits)

    def _states_check(self, name: str, figure: float, said: str) -> Check:
        which = "worst" if self.limits.by_worst_token else "mean"
        return _within(name, figure, self.limits.states, f"{said}, {which} token")


def check_backbone(backbone: Backbone, *, n_prompts: int = MAX_PROMPTS) -> Report:
    """Measure everything that can be measured about how `backbone` is read.

    Args:
        backbone: loaded; nothing of it is changed.
        n_prompts: how many of the built-in texts to read, 2 to 8. Fewer are faster and prove less.

    Raises:
        DataError: `n_prompts` is out of range.
        RenderError: not even a plain question can be rendered.
    """
    if not 2 <= n_prompts <= MAX_PROMPTS:
        raise DataError(f"got n_prompts = {n_prompts}; expected 2 to {MAX_PROMPTS}")
    fitted = _fit_texts(backbone, n_prompts)
    at = _Examination(backbone, fitted, _LIMITS.get(backbone.dtype, _EXACT))
    checks = [_run(name, method) for name, method in _methods(at)]
    return Report(
        backbone=backbone.name,
        dtype=str(backbone.dtype).removeprefix("torch."),
        device=str(backbone.device),
        n_prompts=n_prompts,
        n_tokens=sum(item.stop for item in fitted.rendered),
        checks=tuple(checks),
    )


def check_parity(
    reference: Backbone,
    other: Backbone,
    *,
    layers: Sequence[int] | None = None,
    texts: Sequence[tuple[int, ...]] | None = None,
    n_prompts: int = MAX_PROMPTS,
) -> Report:
    """Compare the states that `other` gives with those of the model itself.

    Args:
        reference: the model, read by us; check it by itself first.
        other: the same model by another engine.
        layers: that `other` gives; None = all.
        texts: token ids to compare on; None = the built-in texts. Those of fewer than two tokens or
            beyond the context are left out, and the first `n_prompts` others are read.
        n_prompts: how many texts to read, 2 to 8.

    Raises:
        DataError: `n_prompts` is out of range, or a text holds ids that the model does not have.
        RenderError: not even a plain question can be rendered.
    """
    if not 2 <= n_prompts <= MAX_PROMPTS:
        raise DataError(f"got n_prompts = {n_prompts}; expected 2 to {MAX_PROMPTS}")
    rendered = _parity_texts(reference, texts, n_prompts)
    coarse = min((reference.dtype, other.dtype), key=lambda dtype: -torch.finfo(dtype).eps)
    at = _Parity(
        reference,
        other,
        rendered,
        tuple(sorted(set(range(reference.n_layers + 1) if layers is None else layers))),
        _LIMITS.get(coarse, _EXACT),
    )
    checks = [_run("tokens", at.tokens)]
    if checks[0].passed:  # without states there is nothing to compare
        checks += [_run(name, method) for name, method in at.methods()]
    return Report(
        backbone=other.name,
        dtype=str(other.dtype).removeprefix("torch."),
        device=str(other.device),
        n_prompts=len(rendered),
        n_tokens=sum(item.stop for item in rendered),
        checks=tuple(checks),
    )


def _parity_texts(
    reference: Backbone, texts: Sequence[tuple[int, ...]] | None, n_prompts: int
) -> tuple[Rendered, ...]:
    if texts is None:
        return _fit_texts(reference, n_prompts).rendered
    fitting = [ids for ids in texts if 2 <= len(ids) <= reference.context_length][:n_prompts]
    wrong = [token for ids in fitting for token in ids if not 0 <= token < reference.vocab_size]
    if wrong or not fitting:
        raise DataError(
            f"got token id {wrong[0]}; {reference.name} has 0 to {reference.vocab_size - 1}. The "
            "recording belongs to another model"
            if wrong
            else f"got {len(texts)} texts, none of 2 to {reference.context_length} tokens; expected "
            "some that fit the context"
        )
    return tuple(Rendered(ids, 1, len(ids)) for ids in fitting)


@dataclass(frozen=True)
class _Parity:
    """Two readings of the same texts; each method makes one check."""

    reference: Backbone
    other: Backbone
    rendered: tuple[Rendered, ...]
    layers: tuple[int, ...]
    limits: _Limits

    def methods(self) -> list[tuple[str, Callable[[], Check]]]:
        """The checks behind `tokens`."""
        return [
            ("layer numbers", self.layer_numbers),
            ("final norm", self.final_norm),
            ("cosine", self.cosine),
            ("states", self.states),
            ("scores", self.scores),
            ("repetition", self.repetition),
        ]

    @property
    def last(self) -> int:
        return self.reference.n_layers

    @cached_property
    def wanted(self) -> list[State]:
        own: list[State] = [(layer, "residual") for layer in self.layers]
        return [*own, (self.last, "post_norm")] if self.last in self.layers else own

    @cached_property
    def ours(self) -> list[States]:
        """All layers of the model itself, every text alone."""
        every: list[State] = [(i, "residual") for i in range(self.last + 1)]
        every.append((self.last, "post_norm"))
        return [
            _read_states(self.reference, _laid_out(self.reference, [item]), every)[0]
            for item in self.rendered
        ]

    @cached_property
    def theirs(self) -> list[States]:
        return self._read(self.rendered)

    def _read(self, rendered: Sequence[Rendered]) -> list[States]:
        return _read_states(self.other, _laid_out(self.other, rendered), self.wanted)

    def tokens(self) -> Check:
        """Every text got one state a token, of the tokens that were asked for."""
        wrong = sum(
            tuple(x.shape) != (item.stop, self.reference.width)
            for item, states in zip(self.rendered, self.theirs, strict=True)
            for x in states.values()
        )
        n = sum(item.stop for item in self.rendered)
        return _within(
            "tokens",
            float(wrong),
            0.0,
            f"{n:,} tokens, layers {_ranges(self.layers)}, as asked for",
        )

    @cached_property
    def entries(self) -> Float[Tensor, "theirs ours"]:
        """Mean relative difference of each of their states and each of ours."""
        names = list(self.ours[0])
        return torch.stack(
            [
                torch.stack(
                    [
                        torch.stack(
                            [
                                _mean_difference(x[key], y[name])
                                for x, y in zip(self.theirs, self.ours, strict=True)
                            ]
                        ).mean()
                        for name in names
                    ]
                )
                for key in self.wanted
            ]
        )

    def layer_numbers(self) -> Check:
        """Each of their layers is nearest to ours of that number."""
        names = list(self.ours[0])
        nearest = [names[k] for k in self.entries.argmin(1).tolist()]
        pairs = zip(self.wanted, nearest, strict=True)
        moved = [(key, at) for key, at in pairs if key != at and not self._is_same(key, at)]
        said = f"each of {len(self.wanted)} states is nearest to ours of its number"
        if moved:
            (layer, point), (near, there) = moved[0]
            said = (
                f"{len(moved)} of {len(self.wanted)} are nearest to another: their layer {layer} "
                f"({point}) to our layer {near} ({there})"
            )
        return _within("layer numbers", float(len(moved)), 0.0, said)

    def _is_same(self, key: State, at: State) -> bool:
        """Whether two of our own states cannot be told apart, so that either may be nearest."""
        apart = [_mean_difference(states[key], states[at]) for states in self.ours]
        return float(torch.stack(apart).mean()) == 0.0

    def final_norm(self) -> Check:
        """Their post_norm of the last layer is ours."""
        if self.last not in self.layers:
            raise _DoesNotApplyError(f"layer {self.last}, the last one, is not among theirs")
        key: State = (self.last, "post_norm")
        figure = self._difference(key)
        return _within("final norm", figure, self.limits.states, f"post_norm of layer {self.last}")

    def _difference(self, key: State) -> float:
        ours = [{key: states[key]} for states in self.ours]
        return _difference(ours, [{key: states[key]} for states in self.theirs], self.limits)

    def cosine(self) -> Check:
        """The mean cosine of each layer is near 1."""
        cosines = {
            key: torch.cat(
                [
                    torch.cosine_similarity(x[key].double(), y[key].double(), dim=-1)
                    for x, y in zip(self.theirs, self.ours, strict=True)
                ]
            ).mean()
            for key in self.wanted
        }
        worst = min(cosines, key=lambda key: float(cosines[key].nan_to_num(-1)))
        said = f"1 - mean cosine, worst at layer {worst[0]} ({worst[1]})"
        return _within("cosine", float(1 - cosines[worst]), PARITY, said)

    def states(self) -> Check:
        """States differ by rounding only, size included."""
        figures = {key: self._difference(key) for key in self.wanted}
        worst = max(figures, key=lambda key: (figures[key] != figures[key], figures[key]))
        which = "worst" if self.limits.by_worst_token else "mean"
        said = f"relative difference, {which} token, worst at layer {worst[0]} ({worst[1]})"
        return _within("states", figures[worst], self.limits.states, said)

    def scores(self) -> Check:
        """A random linear head orders the texts alike."""
        key = self.wanted[-1]
        if len(self.rendered) < 3:
            raise _DoesNotApplyError(f"{len(self.rendered)} texts have no correlation to speak of")
        draw = torch.randn(self.reference.width, generator=torch.Generator().manual_seed(0))
        one, other = (
            torch.stack([states[key].mean(0) for states in found]) @ draw
            for found in (self.ours, self.theirs)
        )
        pearson = float(torch.corrcoef(torch.stack([one, other]).double())[0, 1])
        flips = int((one[:, None] > one).ne(other[:, None] > other).triu().sum())
        said = (
            f"1 - correlation of scores of a random linear head at layer {key[0]} ({key[1]}); {flips} "
            "pairs change order"
        )
        return _within("scores", 1 - pearson, PARITY, said)

    def repetition(self) -> Check:
        """Asking again, for some of the texts and in another order, gives the same states."""
        few = self.rendered[:_FEW][::-1]
        again = self._read(few)[::-1]
        figure = _difference(self.theirs[:_FEW], again, self.limits)
        return _within("repetition", figure, self.limits.states, "the same texts asked for again")


def _ranges(layers: Sequence[int]) -> str:
    """`0..30`, or the numbers where some are left out."""
    if len(layers) > 2 and layers[-1] - layers[0] == len(layers) - 1:
        return f"{layers[0]}..{layers[-1]}"
    return ", ".join(map(str, layers))


def _methods(at: _Examination) -> list[tuple[str, Callable[[], Check]]]:
    return [
        ("layers", at.layers),
        ("embedding", at.embedding),
        ("final norm", at.final_norm),
        ("logits", at.logits),
        ("layer numbers", at.layer_numbers),
        ("finite", at.finite),
        ("magnitude", at.magnitude),
        ("spans", at.spans),
        ("BOS", at.beginning),
        ("end token", at.end_token),
        ("padding mask", at.padding_mask),
        ("batching", at.batching),
        ("scores", at.scores),
        ("shared prompts", at.shared_prompts),
        ("repetition", at.repetition),
        ("resume", at.resume),
    ]


def _run(name: str, method: Callable[[], Check]) -> Check:
    try:
        return method()
    except _DoesNotApplyError as reason:
        return Check(name, None, None, None, f"not applicable: {reason}")
    except _FAILURES as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return Check(name, False, None, None, f"{type(error).__name__}: {first[:200]}")


def _within(name: str, figure: float, limit: float, detail: str) -> Check:
    # NaN is within no limit.
    return Check(name, figure <= limit, figure, limit, detail)


def _mean_difference(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        return torch.tensor(float("inf"))
    return ((a - b).norm(dim=-1) / b.norm(dim=-1).clamp(min=1e-30)).mean()


def _recipes(backbone: Backbone) -> dict[str, Recipe]:
    counts_end = backbone.renderer.counts_end
    return {
        "last": Recipe(counts_end=counts_end),
        "tokens": Recipe(layers="last", point="residual", pooling="tokens", counts_end=counts_end),
    }


def _feature_difference(a: Features, b: Features) -> float:
    if a.values.shape != b.values.shape or not torch.equal(a.offsets, b.offsets):
        return float("inf")
    difference = (a.values - b.values).float().norm(dim=-1)
    return float((difference / a.values.float().norm(dim=-1).clamp(min=1e-30)).max())


def _kill(progress: Progress, killed: list[int]) -> None:
    killed.append(progress.tokens_done)
    raise _KilledError


def _plain(figure: float | None) -> float | str | None:
    if figure is None or abs(figure) < float("inf"):
        return figure
    return str(figure)
