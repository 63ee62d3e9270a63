"""Sampling answers from a backbone, many at a time.

Each token takes one uniform number, from a stream that belongs to (seed, prompt, answer), which
`choose` turns into a token. So an answer does not depend on what else is in the batch, up to rounding
of the logits.

Ids that the tokenizer does not know (padding rows of the LM head) are never drawn. The mean
log-probability is that of the model itself, temperature 1 and no restriction.

Work is sent to an engine from here; `sample_options` holds the options, `growing` the rows that are
under way, `follow` says who may look on and score them.

    >>> from retrm.backbone.fake import FakeBackbone
    >>> from retrm.records import Prompt
    >>> drawn = list(sample(FakeBackbone(), [Prompt.of("Hi")], n=2, max_new_tokens=3))
    >>> [(s.prompt, s.number) for s in drawn]
    [(0, 0), (0, 1)]
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from retrm.backbone.base import Backbone
from retrm.backbone.follow import Follower, Following, PruneRule, Running
from retrm.backbone.growing import Run
from retrm.backbone.remote import BackboneHandle, RemoteBackbone
from retrm.backbone.sample_options import SampleOptions
from retrm.backbone.sampled import Sampled
from retrm.engines.base import in_order
from retrm.errors import OverlongError, RecipeError
from retrm.records import Prompt

BATCH_SIZE = 64
"""Rows that are continued together, where nobody says otherwise."""

_GROUP_BATCHES = 2  # of answers in one piece of work: a worker that dies loses so many


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
    batch_size: int = BATCH_SIZE,
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
    options = SampleOptions(n, temperature, top_p, top_k, max_new_tokens, seed, batch_size)
    following = Following(follower, prune, on_running)
    _check_following(following, options)
    rendered = _rendered(backbone, prompts, max_new_tokens)
    if isinstance(backbone, RemoteBackbone):
        if follower is not None:
            raise RecipeError(
                f"{backbone.name!r} lies on the workers of an engine, and scoring while sampling runs "
                "in this process only; use engine local, or score what was sampled"
            )
        return _sample_remote(backbone, prompts, options, on_progress)
    run = Run(backbone, rendered, options, following)
    return _sample_here(run, len(prompts), n, on_progress)


def continue_ids(
    backbone: Backbone,
    prompts: Sequence[tuple[int, ...]],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 256,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Sampled]:
    """Continue token ids as they stand, without a chat template; otherwise as `sample`.

    Args:
        backbone: what to sample from; in this process.
        prompts: token ids, none empty.
        n: continuations of each.
        temperature: as for `sample`.
        top_p: as for `sample`.
        top_k: as for `sample`.
        max_new_tokens: as for `sample`.
        seed: as for `sample`.
        batch_size: as for `sample`.

    Raises:
        RecipeError: an option is out of range, or the backbone lies on the workers of an engine.
        OverlongError: a prompt with `max_new_tokens` is longer than the context.
    """
    options = SampleOptions(n, temperature, top_p, top_k, max_new_tokens, seed, batch_size)
    if isinstance(backbone, RemoteBackbone):
        raise RecipeError(
            f"{backbone.name!r} lies on the workers of an engine, and texts are continued in this process "
            "only; use engine local"
        )
    _check_room(backbone, prompts, max_new_tokens)
    return _sample_here(Run(backbone, prompts, options, Following()), len(prompts), n, None)


class Drawing:
    """Answers to one prompt, drawn a token at a time when the caller says so.

    For a device that has other work in between; the answers are those of `sample` with the same options.
    Nothing stays on the backbone between two steps.

    Attributes:
        options: as for `sample`.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompt: Prompt,
        *,
        n: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 256,
        seed: int = 0,
    ) -> None:
        """Read nothing yet; the first step reads the prompt.

        Raises:
            RecipeError: an option is out of range, or the backbone lies on the workers of an engine.
            OverlongError: the prompt with `max_new_tokens` is longer than the context.
            RenderError: the prompt cannot be rendered.
        """
        if isinstance(backbone, RemoteBackbone):
            raise RecipeError(
                f"{backbone.name!r} lies on the workers of an engine, which draw whole answers; expected "
                "a backbone in this process. Use retrm sample"
            )
        self.options = SampleOptions(n, temperature, 1.0, 0, max_new_tokens, seed, BATCH_SIZE)
        self._run = Run(
            backbone, _rendered(backbone, [prompt], max_new_tokens), self.options, Following()
        )
        self._ready: dict[int, Sampled] = {}

    @property
    def is_done(self) -> bool:
        """Whether all answers have come to their ends."""
        return len(self._ready) == self.options.n

    @property
    def answers(self) -> list[Sampled]:
        """Those that have come to their ends, in order."""
        return [self._ready[number] for number in sorted(self._ready)]

    def step(self) -> None:
        """One token more for every answer that goes on."""
        with self._run.decoder.watching():
            for one in self._run.advance():
                self._ready[one.number] = one


def _rendered(
    backbone: Backbone, prompts: Sequence[Prompt], max_new_tokens: int
) -> list[tuple[int, ...]]:
    """Token ids of the prompts, each with room for an answer."""
    rendered = [backbone.renderer.render_prompt(prompt) for prompt in prompts]
    _check_room(backbone, rendered, max_new_tokens)
    return rendered


def _check_room(
    backbone: Backbone, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
) -> None:
    for index, ids in enumerate(prompts):
        if len(ids) + max_new_tokens > backbone.context_length:
            raise OverlongError(
                f"prompt {index} has {len(ids)} tokens; with max_new_tokens={max_new_tokens} it "
                f"exceeds the context of {backbone.context_length} tokens of {backbone.name}. "
                "Shorten the prompt or lower max_new_tokens"
            )


def _check_following(following: Following, options: SampleOptions) -> None:
    prune = following.prune
    for name, value in {"prune": prune, "on_running": following.on_running}.items():
        if value is not None and following.follower is None:
            raise RecipeError(f"{name} needs running scores; pass a follower, such as a head")
    if prune is None:
        return
    if prune.every < 1 or prune.every % 1:
        raise RecipeError(
            f"got a rule that prunes every {prune.every} tokens; expected a whole number, 1 or more"
        )
    options.check_prune()


@dataclass(frozen=True)
class SamplePrompts:
    """Work: load the backbone and answer groups of prompts."""

    handle: BackboneHandle
    options: SampleOptions

    def start(self) -> Callable[[Sequence[Prompt]], list[Sampled]]:
        """Load the backbone."""
        backbone = self.handle.load()
        return lambda prompts: list(sample(backbone, prompts, **vars(self.options)))


def _sample_remote(
    backbone: RemoteBackbone,
    prompts: Sequence[Prompt],
    options: SampleOptions,
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


def _sample_here(
    run: Run, n_prompts: int, n: int, on_progress: Callable[[int, int], None] | None
) -> Iterator[Sampled]:
    """Hold answers back until all before them are ready."""
    ready: dict[tuple[int, int], Sampled] = {}
    order = deque((prompt, number) for prompt in range(n_prompts) for number in range(n))
    n_ready = 0
    with run.decoder.watching():
        while order:
            for drawn in run.advance():
                ready[drawn.prompt, drawn.number] = drawn
                n_ready += 1
                if on_progress is not None:
                    on_progress(n_ready, n_prompts * n)
            while order and order[0] in ready:
                yield ready.pop(order.popleft())
