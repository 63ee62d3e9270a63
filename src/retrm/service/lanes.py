"""How a scorer takes items: rendered and in passes of a shared backbone, or as plain answers.

A lane is what may share a forward pass. All heads on one backbone, and its log-probability, are one lane: a
text that several of them judge is read once. A sequence classifier is a lane of its own and reads one text
at a time, as it does offline. Everything else (servers, functions, files, baselines) is called with lists of
answers.

`prepare` renders and cuts, and never touches the device; `choose` says which waiting items make up the
next pass; `judge` runs it, on the one thread that owns the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from retrm.backbone.base import Backbone, Rendered, Renderer
from retrm.backbone.reference import FittingRenderer
from retrm.backbone.render import fit_to_context
from retrm.errors import DataError, OverlongError, ScoreError
from retrm.features.read import choose_first, read_rendered_together
from retrm.records import Answer
from retrm.scorers.base import Scorer, SetScorer, sets_of
from retrm.scorers.polar import PolarScorer
from retrm.scorers.sequence_classifier import SequenceClassifier
from retrm.scorers.together import StateScorer
from retrm.service.items import Item, LengthPolicy, Options, Truncation

ANSWERS_PER_CALL = 64
"""Answers that a scorer without a model of ours gets at a time."""

_PASSES_IN_VIEW = 16
"""So many passes of waiting text are looked at to fill the next one."""


@dataclass(frozen=True)
class Prepared:
    """An item ready to be judged.

    Attributes:
        answer: for scorers that take answers.
        rendered: for those that take token ids; it fits the context.
        n_tokens: of `rendered`; 0 without it.
        mark: equal for equal `rendered`, mostly different for others.
        prompt_mark: the same of its prompt.
        truncation: what it lost to fit.
        is_unfinished: whether it ends without an end-of-turn token; None = not known.
        warnings: what was done to it.
        is_skipped: whether it is over-long and left out.
        together: which items it has to be judged with, equal for all of them and for no others; None =
            it may be judged alone.
    """

    answer: Answer | None = None
    rendered: Rendered | None = None
    n_tokens: int = 0
    mark: int = 0
    prompt_mark: int = 0
    truncation: Truncation | None = None
    is_unfinished: bool | None = None
    warnings: tuple[str, ...] = ()
    is_skipped: bool = False
    together: "Together | None" = None


@dataclass(frozen=True, eq=False)
class Together:
    """Items of a request that are compared with one another: as many as `n_items`."""

    n_items: int


class Waiting(Protocol):
    """What a lane is shown of an item in the queue."""

    @property
    def scorer(self) -> Scorer:
        """That is to judge it."""
        ...

    @property
    def prepared(self) -> Prepared:
        """The item."""
        ...


W = TypeVar("W", bound=Waiting)


class Lane(Protocol):
    """Scorers that may share a pass."""

    context_length: int

    def prepare(self, item: Item, options: Options, scorer: Scorer) -> Prepared:
        """Render and cut; called outside of the device's thread.

        Raises:
            DataError, RenderError, OverlongError: the item cannot be judged.
        """
        ...

    def choose(self, waiting: Sequence[W], tokens_per_batch: int) -> list[W]:
        """Who shares the next pass with the first of `waiting` (all of this lane, oldest first)."""
        ...

    def judge(self, chosen: Sequence[Waiting], tokens_per_batch: int) -> list[float]:
        """Raw scores, one each; not checked for being finite."""
        ...


def lane_of(scorer: Scorer) -> Lane:
    """A new lane for `scorer`; scorers on one backbone must be given one lane by the caller."""
    if isinstance(scorer, StateScorer):
        return StateLane(scorer.backbone)
    if isinstance(scorer, SequenceClassifier):
        return ClassifierLane(scorer)
    if isinstance(scorer, SetScorer):
        return SetLane(scorer.name)
    if isinstance(scorer, PolarScorer):
        return ReferenceLane(scorer)
    return AnswerLane(scorer.name)


class StateLane:
    """Heads on one backbone."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.context_length = backbone.context_length

    def prepare(self, item: Item, options: Options, scorer: Scorer) -> Prepared:
        """See `Lane`."""
        if item.answer is None:
            return self._foreign(item, options, scorer)
        renderer = self.backbone.renderer
        if isinstance(renderer, FittingRenderer):
            policy = _compared_policy(options.length_policy)
            found = renderer.render_within(item.answer, self.context_length, policy)
            return _prepared_whole(found)
        return _fitted(
            renderer.render(item.answer),
            options,
            self.context_length,
            ends=_ends_of(self.backbone.renderer),
        )

    def _foreign(self, item: Item, options: Options, scorer: Scorer) -> Prepared:
        """An item that the client rendered."""
        from retrm.backbone.foreign_text import read_ids, read_text

        assert isinstance(scorer, StateScorer), "of this lane"
        if isinstance(self.backbone.renderer, FittingRenderer):
            raise DataError(
                f"{scorer.name} compares answers with references in a template of its own; expected messages "
                "with a reference, or prompt, candidates and reference. Send them to /v1/reward"
            )
        renderer, strict = self.backbone.renderer, options.is_strict
        recipe = scorer.reducer.recipe
        # The last token is known without the beginning of the answer, and so is a score that reads no other.
        is_last = recipe.pooling == "last" and recipe.context == "none"
        reads_last = is_last and recipe.source != "log_probability"
        needs_span = not reads_last or options.per_token or options.per_layer
        if item.text is not None:
            read = read_text(
                renderer,  # type: ignore[arg-type]
                item.text,
                prompt_text=item.prompt_text,
                is_strict=strict,
                needs_span=needs_span,
            )
        else:
            read = read_ids(
                renderer,  # type: ignore[arg-type]
                _ids_of(item),
                n_prompt_tokens=item.n_prompt_tokens,
                is_strict=strict,
                needs_span=needs_span,
            )
        return _fitted(
            read.rendered,
            options,
            self.context_length,
            ends=None,
            warnings=read.warnings,
            is_unfinished=read.is_unfinished,
        )

    def choose(self, waiting: Sequence[W], tokens_per_batch: int) -> list[W]:
        """The pass that an offline reading would make around the oldest; equal texts cost nothing."""
        texts: dict[Rendered, list[W]] = {}
        n_tokens, prompts = 0, set()
        for one in waiting:
            if n_tokens > _PASSES_IN_VIEW * tokens_per_batch:
                break
            texts.setdefault(_rendered(one), []).append(one)
            n_tokens += _rendered(one).n_response
            if one.prepared.prompt_mark not in prompts:
                prompts.add(one.prepared.prompt_mark)
                n_tokens += _rendered(one).start
        reducers = {id(one.scorer): one.scorer.reducer for found in texts.values() for one in found}  # type: ignore[attr-defined]
        order = list(texts)
        near = choose_first(
            self.backbone, order, reducers.values(), tokens_per_batch=tokens_per_batch
        )
        return [one for i in sorted(near) for one in texts[order[i]]]

    def judge(self, chosen: Sequence[Waiting], tokens_per_batch: int) -> list[float]:
        """One reading of the different texts; each head scores those that it was asked about."""
        texts = list(dict.fromkeys(_rendered(one) for one in chosen))
        place = {text: i for i, text in enumerate(texts)}
        scorers = {id(one.scorer): one.scorer for one in chosen}
        names = {key: str(number) for number, key in enumerate(scorers)}
        features = read_rendered_together(
            self.backbone,
            texts,
            {names[key]: scorer.reducer for key, scorer in scorers.items()},  # type: ignore[attr-defined]
            tokens_per_batch=tokens_per_batch,
        )
        found: dict[tuple[int, int], float] = {}
        for key, scorer in scorers.items():
            asked = sorted({place[_rendered(one)] for one in chosen if id(one.scorer) == key})
            own = features[names[key]]
            part = own if len(asked) == len(texts) else own.take(asked)
            scores = scorer.of_features(part)  # type: ignore[attr-defined]
            found |= {(key, at): float(s) for at, s in zip(asked, scores, strict=True)}
        return [found[id(one.scorer), place[_rendered(one)]] for one in chosen]


class ClassifierLane:
    """One sequence classifier, which reads whole conversations one by one."""

    def __init__(self, scorer: SequenceClassifier) -> None:
        self.scorer = scorer
        self.context_length = scorer.context_length

    def prepare(self, item: Item, options: Options, scorer: Scorer) -> Prepared:
        """See `Lane`."""
        del scorer
        if item.answer is not None:
            whole = self.scorer.renderer.render_finished(item.answer)
            return _fitted(whole, options, self.context_length, ends=None)
        return self._foreign(item, options)

    def _foreign(self, item: Item, options: Options) -> Prepared:
        """All that the client rendered, what stands behind the end of the answer included."""
        from retrm.backbone.foreign_text import read_whole

        given = item.text if item.text is not None else _ids_of(item)
        read = read_whole(self.scorer.renderer, given, is_strict=options.is_strict)
        return _fitted(
            read.rendered,
            options,
            self.context_length,
            ends=None,
            warnings=read.warnings,
            is_unfinished=read.is_unfinished,
        )

    def choose(self, waiting: Sequence[W], tokens_per_batch: int) -> list[W]:
        """The oldest, and whoever asks about the same text."""
        del tokens_per_batch
        text = waiting[0].prepared
        # The mark first: comparing long texts that are alike at the beginning takes a while.
        return [
            one
            for one in waiting
            if one.prepared.mark == text.mark and _rendered(one) == text.rendered
        ]

    def judge(self, chosen: Sequence[Waiting], tokens_per_batch: int) -> list[float]:
        """See `Lane`."""
        del tokens_per_batch
        (score,) = self.scorer.score_rendered([_rendered(chosen[0])])
        return [float(score)] * len(chosen)


class ReferenceLane:
    """One policy discriminator: comparisons, its own or those that POLAR's client rendered."""

    def __init__(self, scorer: PolarScorer) -> None:
        self.scorer = scorer
        self.context_length = scorer.context_length

    def prepare(self, item: Item, options: Options, scorer: Scorer) -> Prepared:
        """See `Lane`."""
        del scorer
        if item.answer is not None:
            policy = _compared_policy(options.length_policy)
            found = self.scorer.compare(item.answer, overlong=policy)
            if found is None:
                return _prepared_whole(None)
            return _prepared_whole((Rendered(found.ids, found.start, len(found.ids)), found.is_cut))
        template = self.scorer.template
        if item.text is not None:
            ids = template.ids_of_text(item.text)
        else:
            ids = template.checked_ids(_ids_of(item))
        # What a client joined has no pieces any more that could be cut by the rules.
        if options.length_policy == "skip" and len(ids) > self.context_length:
            return _prepared_whole(None)
        if len(ids) > self.context_length:
            raise OverlongError(
                f"got {len(ids)} tokens; the template holds {self.context_length}. Cut the pieces before "
                "they are joined, as POLAR's client does, or send messages with a reference"
            )
        return _prepared_whole((Rendered(ids, len(ids) - 1, len(ids)), False))

    def choose(self, waiting: Sequence[W], tokens_per_batch: int) -> list[W]:
        """The oldest, and those of like length beside it."""
        width = waiting[0].prepared.n_tokens
        near = sorted(waiting[1:], key=lambda one: abs(one.prepared.n_tokens - width))
        chosen = [waiting[0]]
        for one in near:
            wide = max(width, one.prepared.n_tokens)
            if (len(chosen) + 1) * wide <= tokens_per_batch:
                chosen.append(one)
                width = wide
        return chosen

    def judge(self, chosen: Sequence[Waiting], tokens_per_batch: int) -> list[float]:
        """See `Lane`."""
        del tokens_per_batch
        return [float(s) for s in self.scorer.score_ids([_rendered(one).ids for one in chosen])]


def _compared_policy(policy: LengthPolicy) -> str:
    """The policy of offline scoring with the same effect."""
    if policy == "truncate_response":
        raise DataError(
            "got length_policy truncate_response; a comparison cuts answers and prompts by the rules of its "
            "template. Use truncate_prompt for these rules, or skip, or error"
        )
    return {"truncate_prompt": "truncate_left"}.get(policy, policy)


def _prepared_whole(found: tuple[Rendered, bool] | None) -> Prepared:
    """A comparison that fits; None = left out."""
    if found is None:
        return Prepared(is_skipped=True)
    rendered, is_cut = found
    cut = ("cut by the length rules of the template",) if is_cut else ()
    return Prepared(
        rendered=rendered,
        n_tokens=len(rendered.ids),
        mark=hash(rendered),
        prompt_mark=hash(rendered.ids[: rendered.start]),
        warnings=cut,
    )


class AnswerLane:
    """A scorer that takes answers as they are: a server, a function, a file, a baseline."""

    context_length = 0

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, item: Item, options: Options, scorer: Scorer) -> Prepared:
        """See `Lane`."""
        del options, scorer
        if item.answer is None:
            raise DataError(
                f"{self.name} judges messages and has no tokenizer of its own, so it cannot take text that "
                "is rendered already, or token ids. Send messages, or prompt and candidates, to /v1/reward"
            )
        return Prepared(answer=item.answer)

    def choose(self, waiting: Sequence[W], tokens_per_batch: int) -> list[W]:
        """The oldest ones."""
        del tokens_per_batch
        return list(waiting[:ANSWERS_PER_CALL])

    def judge(self, chosen: Sequence[Waiting], tokens_per_batch: int) -> list[float]:
        """One call of the scorer."""
        del tokens_per_batch
        answers = [one.prepared.answer for one in chosen]
        scores = np.asarray(chosen[0].scorer.score(answers), dtype=np.float64)  # type: ignore[arg-type]
        if scores.shape != (len(answers),):
            # An assignment by position would give answers the scores of others.
            raise ScoreError(f"{self.name} gave {scores.shape} scores for {len(answers)} answers")
        return [float(score) for score in scores]


class SetLane(AnswerLane):
    """A scorer that compares candidates: the items of a request are judged together, and with no others."""

    def together(self, prepared: Sequence[Prepared]) -> list[Prepared]:
        """The items of one request, marked as such.

        Raises:
            DataError: no prompt has two candidates.
        """
        answers = [one.answer for one in prepared if one.answer is not None]
        if all(len(rows) < 2 for rows in sets_of(answers)):
            raise DataError(
                f"{self.name} compares the candidates of a prompt, and the request has one of each; "
                "expected two or more. Send the candidates of a prompt in one request"
            )
        mark = Together(len(prepared))
        return [replace(one, together=mark) for one in prepared]

    def choose(self, waiting: Sequence[W], tokens_per_batch: int) -> list[W]:
        """All items of the oldest request."""
        del tokens_per_batch
        mark = waiting[0].prepared.together
        return [one for one in waiting if one.prepared.together is mark]

    def judge(self, chosen: Sequence[Waiting], tokens_per_batch: int) -> list[float]:
        """One call of the scorer.

        Raises:
            ScoreError: not all items of the request are there, so that scores would mean something else.
        """
        mark = chosen[0].prepared.together
        if mark is None or mark.n_items != len(chosen):
            raise ScoreError(
                f"{self.name} could not compare the candidates of this request with one another; the "
                "log of the server says why"
            )
        return super().judge(chosen, tokens_per_batch)


def fitted(
    rendered: Rendered, policy: LengthPolicy, limit: int
) -> tuple[Rendered, Truncation | None] | None:
    """`rendered` with at most `limit` tokens and what it lost; None = left out.

    Raises:
        OverlongError: it does not fit, and the policy does not allow what would make it fit.
    """
    n_over = len(rendered.ids) - limit
    if n_over <= 0:
        return rendered, None
    sizes = (
        f"got {len(rendered.ids)} tokens ({rendered.start} of the prompt, "
        f"{len(rendered.ids) - rendered.start} of the answer); the context holds {limit}"
    )
    if policy == "skip":
        return None
    if policy == "truncate_prompt":
        if n_over > rendered.start - 1:
            raise OverlongError(
                f"{sizes}, so the answer does not fit even without its prompt. Use length_policy "
                "truncate_response or skip, or a model with a longer context"
            )
        cut = fit_to_context(rendered, limit, "truncate_left")
        assert cut is not None
        return cut, Truncation("prompt", n_over)
    if policy == "truncate_response":
        if rendered.start >= limit:
            raise OverlongError(
                f"{sizes}, so no token of the answer is left behind its prompt. Use length_policy "
                "truncate_prompt or skip, or a model with a longer context"
            )
        cut = Rendered(rendered.ids[:limit], rendered.start, min(rendered.stop, limit))
        return cut, Truncation("response", n_over)
    raise OverlongError(
        f"{sizes}. Send less, or say with length_policy what is to be done: truncate_prompt drops the "
        "oldest tokens of the prompt, truncate_response the last of the answer, skip leaves the item out"
    )


def _fitted(
    whole: Rendered,
    options: Options,
    limit: int,
    *,
    ends: frozenset[int] | None,
    warnings: tuple[str, ...] = (),
    is_unfinished: bool | None = None,
) -> Prepared:
    found = fitted(whole, options.length_policy, limit)
    if found is None:
        return Prepared(is_skipped=True, warnings=warnings, is_unfinished=is_unfinished)
    rendered, truncation = found
    if ends is not None:
        is_unfinished = rendered.ids[-1] not in ends
    elif truncation is not None and truncation.side == "response":
        is_unfinished = True
    return Prepared(
        rendered=rendered,
        n_tokens=len(rendered.ids),
        mark=hash(rendered),
        prompt_mark=hash(rendered.ids[: rendered.start]),
        truncation=truncation,
        is_unfinished=is_unfinished,
        warnings=warnings,
    )


def _ids_of(item: Item) -> tuple[int, ...]:
    if item.token_ids is None:
        raise DataError("got an item without answer, text or token ids; expected one of them")
    return item.token_ids


def _ends_of(renderer: Renderer) -> frozenset[int] | None:
    found = getattr(renderer, "end_ids", None)
    return None if found is None else frozenset(found)


def _rendered(one: Waiting) -> Rendered:
    rendered = one.prepared.rendered
    assert rendered is not None, "prepared by this lane"
    return rendered
