"""Who writes the judgements: a model in this process, or an endpoint; both give `Reply`s as they come.

    LocalJudgeModel      any backbone of `retrm.backbone`, many outputs at a time
    EndpointJudgeModel   POST /v1/chat/completions (`retrm.backbone.endpoint`): bounded concurrency, retries

A request is some messages and the numbers of the samples that are wanted of them. Which reply came out is
told at once (`on_reply`), in any order, so that whoever is killed keeps what it paid for.

A local model draws each token from a stream that belongs to (seed, messages, number), so a sample does not
depend on the batch up to rounding; which of an endpoint's samples repeat is up to the engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Protocol

from retrm.backbone.base import Backbone
from retrm.backbone.endpoint import sample_endpoint
from retrm.backbone.generate import sample
from retrm.backbone.patient import KEY_VARIABLE, api_url
from retrm.backbone.sampled import Sampled
from retrm.judges.cache import Reply, Sampling
from retrm.patience import without_password
from retrm.records import Message, Prompt

TOO_LONG = "longer than the judge's context"


@dataclass(frozen=True)
class Request:
    """Messages and the samples that are wanted of them."""

    messages: tuple[Message, ...]
    numbers: tuple[int, ...] = (0,)


OnReply = Callable[[int, int, Reply], None]
"""Told (index of the request, number of the sample, reply), perhaps from another thread."""


class JudgeModel(Protocol):
    """A language model that writes judgements.

    Attributes:
        identity: two with the same identity give the same replies to the same request, draws aside.
    """

    identity: str

    def ask(self, requests: Sequence[Request], sampling: Sampling, on_reply: OnReply) -> None:
        """Every reply that is wanted, told one by one.

        Raises:
            EndpointError: the engine failed for good; what came before was told.
            RenderError: messages that the model's template refuses.
        """
        ...


class LocalJudgeModel:
    """A backbone that writes."""

    def __init__(self, backbone: Backbone, *, batch_size: int = 16) -> None:
        """Nothing is read yet.

        Args:
            backbone: that writes.
            batch_size: outputs that grow together; more is faster and takes more memory.
        """
        self.backbone = backbone
        self.batch_size = batch_size
        marks = " ".join(astuple(backbone.fingerprint))
        self.identity = f"local {marks} {backbone.dtype}"

    def ask(self, requests: Sequence[Request], sampling: Sampling, on_reply: OnReply) -> None:
        """See `JudgeModel`; requests beyond the context are told with a problem.

        Raises:
            RenderError: messages that the chat template refuses.
        """
        lengths = [len(self.backbone.renderer.render_prompt(_prompt(r))) for r in requests]
        room = self.backbone.context_length - sampling.max_new_tokens
        fitting = []
        for i, (request, length) in enumerate(zip(requests, lengths, strict=True)):
            if length <= room:
                fitting.append(i)
                continue
            for number in request.numbers:
                on_reply(i, number, Reply("", False, length, 0, problem=TOO_LONG))
        self._draw([requests[i] for i in fitting], fitting, lengths, sampling, on_reply)

    def _draw(
        self,
        requests: Sequence[Request],
        places: Sequence[int],
        lengths: Sequence[int],
        sampling: Sampling,
        on_reply: OnReply,
    ) -> None:
        # Samples of a prompt are numbered from 0, so those below the last that is wanted are drawn, too.
        by_n: dict[int, list[int]] = {}
        for k, request in enumerate(requests):
            by_n.setdefault(max(request.numbers) + 1, []).append(k)
        for n, some in by_n.items():
            drawn = sample(
                self.backbone,
                [_prompt(requests[k]) for k in some],
                n=n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_new_tokens=sampling.max_new_tokens,
                seed=sampling.seed,
                batch_size=self.batch_size,
            )
            for one in drawn:
                k = some[one.prompt]
                if one.number in requests[k].numbers:
                    on_reply(places[k], one.number, _reply(one, lengths[places[k]]))


class EndpointJudgeModel:
    """An engine that speaks the chat-completions protocol."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        concurrency: int = 8,
        timeout_s: float = 600.0,
        retries: int = 5,
        pause_s: float = 0.5,
        key_variable: str = KEY_VARIABLE,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: of the engine, with or without `/v1`.
            model: the name by which the engine knows it.
            concurrency: requests at a time.
            timeout_s: seconds of silence after which a request counts as failed.
            retries: further attempts for what may pass.
            pause_s: seconds before the second attempt; doubled for each further one.
            key_variable: environment variable with the bearer key.

        Raises:
            EndpointError: the URL is none.
        """
        target = api_url(url, "chat/completions")
        self.url = url
        self.model = model
        self.identity = f"endpoint {without_password(str(target))} {model}"
        self._options = {
            "concurrency": concurrency,
            "timeout_s": timeout_s,
            "retries": retries,
            "pause_s": pause_s,
            "key_variable": key_variable,
        }

    def ask(self, requests: Sequence[Request], sampling: Sampling, on_reply: OnReply) -> None:
        """See `JudgeModel`.

        Raises:
            EndpointError: it failed for good.
        """
        if not requests:
            return
        wanted = {(i, number) for i, request in enumerate(requests) for number in request.numbers}
        drawn = sample_endpoint(
            self.url,
            self.model,
            [_prompt(request) for request in requests],
            n=max(max(request.numbers) for request in requests) + 1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            seed=sampling.seed,
            wanted=wanted,
            takes_parts=True,
            on_answer=lambda one: on_reply(one.prompt, one.number, _reply(one, None)),
            **self._options,  # type: ignore[arg-type]
        )
        for _ in drawn:
            pass


def _prompt(request: Request) -> Prompt:
    return Prompt(request.messages)


def _reply(one: Sampled, n_prompt_tokens: int | None) -> Reply:
    n_new = len(one.token_ids) if one.token_ids is not None else one.n_new_tokens
    return Reply(
        text=one.response,
        finished=one.finished,
        n_prompt_tokens=n_prompt_tokens if n_prompt_tokens is not None else one.n_prompt_tokens,
        n_new_tokens=n_new,
        served_by=one.served_by,
        problem=one.problem,
    )
