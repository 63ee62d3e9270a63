"""What sampling gives, from a local backbone or from a remote engine alike. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampled:
    """One answer that was drawn.

    Attributes:
        response: the text, special tokens left out.
        token_ids: what was drawn, with the end token if it was; None = the engine does not tell.
        finished: whether the model ended the answer itself; None = the engine does not tell.
        logprob: mean log-probability of `token_ids` under the model at temperature 1, nats; None =
            the engine does not tell.
        prompt: index of the prompt.
        number: index of the answer among those of its prompt.
        score: raw score of `token_ids` by the head that ran along; None = none did, or no token is
            judged (an answer that is an end token alone, where ends do not count).
        is_pruned: whether it was stopped because others were better; it is then no answer, and
            `score` is that of the tokens so far.
        is_text_exact: whether rendering `response` gives `token_ids` again, so that a later reading
            of the text scores the same tokens; None = not looked at.
        n_prompt_tokens: of the prompt as the engine counts them; None = it does not tell.
        n_new_tokens: drawn, as the engine counts them; None = it does not tell.
        served_by: the model that an engine says it used; None = it does not tell.
        problem: what else the engine did ("content_filter"); only where the caller takes such answers.
    """

    response: str
    token_ids: tuple[int, ...] | None
    finished: bool | None
    logprob: float | None
    prompt: int
    number: int
    score: float | None = None
    is_pruned: bool = False
    is_text_exact: bool | None = None
    n_prompt_tokens: int | None = None
    n_new_tokens: int | None = None
    served_by: str | None = None
    problem: str | None = None
