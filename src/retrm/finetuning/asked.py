"""Replies of a judge model, each paid for once: what is in the cache is not asked again."""

from collections.abc import Callable, Sequence

from retrm.judges.asking import JudgeModel, Request
from retrm.judges.cache import Reply, ReplyCache, Sampling, reply_key
from retrm.records import Message


def asked(
    model: JudgeModel,
    messages: Sequence[tuple[Message, ...]],
    sampling: Sampling,
    cache: ReplyCache,
    *,
    number: int = 0,
    purpose: str,
    mark: str,
    on_reply: Callable[[], None] | None = None,
) -> list[Reply]:
    """One reply to each of `messages`, in order.

    Args:
        model: that writes.
        messages: to be answered; equal ones are asked once.
        sampling: how replies are drawn.
        cache: of replies; what comes is there before this returns.
        number: of the sample among those of the same messages.
        purpose: the template, or what else the reply is for; stands in the cache for people.
        mark: of the template, part of the key.
        on_reply: told after each new reply, perhaps from another thread.

    Raises:
        EndpointError: the engine failed for good; replies that came before are kept.
    """
    keys = [reply_key(model.identity, mark, sampling, number, one) for one in messages]
    new = {key: one for key, one in zip(keys, messages, strict=True) if cache.get(key) is None}
    names = list(new)

    def take(place: int, drawn: int, reply: Reply) -> None:
        # A local model that is asked for the third sample draws the first two on the way.
        if drawn == number:
            cache.put(names[place], reply, model=model.identity, template=purpose)
            if on_reply is not None:
                on_reply()

    if new:
        model.ask([Request(one, (number,)) for one in new.values()], sampling, take)
    replies = [cache.get(key) for key in keys]
    assert None not in replies, "a model tells every reply or raises"
    return [reply for reply in replies if reply is not None]
