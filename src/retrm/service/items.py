"""What a request asks to be judged, and what is known of it afterwards; plain data, no torch, no web.

A dialect makes `Item`s of a request and a reply of `Judged`s; it never sees a score before. The core
makes `Judged`s of `Item`s and never sees a request.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from retrm.heads.explanation import Explanation
from retrm.records import Answer
from retrm.service.rewards import LENGTH_POLICIES, Activation, LengthPolicy

__all__ = [
    "LENGTH_POLICIES",
    "Activation",
    "Answered",
    "Call",
    "Item",
    "Judged",
    "JudgedTokens",
    "LengthPolicy",
    "Options",
    "ServedModel",
    "Truncation",
]


@dataclass(frozen=True)
class Item:
    """One answer in one of the three forms in which clients send it; exactly one is set.

    Attributes:
        answer: messages with an answer; our template renders it.
        text: prompt and answer as the client rendered them, special tokens kept.
        token_ids: the same as ids of the backbone's tokenizer.
        prompt_text: with `text`: its beginning that is the prompt, where the client says so.
        n_prompt_tokens: with `token_ids`: how many of them are the prompt, where the client says so.
    """

    answer: Answer | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_text: str | None = None
    n_prompt_tokens: int | None = None


@dataclass(frozen=True)
class Options:
    """How items are judged.

    Attributes:
        length_policy: what is done with items beyond the context: refuse, drop the oldest tokens of the
            prompt, drop the last tokens of the answer, or leave out.
        per_token: whether the tokens of each answer are wanted, too.
        per_layer: whether what each layer adds at each token is wanted, too.
        per_objective: whether what each objective adds is wanted, too.
        is_strict: whether doubtful input (two BOS tokens) is refused and not mended with a warning.
    """

    length_policy: LengthPolicy = "error"
    per_token: bool = False
    per_layer: bool = False
    per_objective: bool = False
    is_strict: bool = False


@dataclass(frozen=True)
class Truncation:
    """What an item lost to fit: `dropped` tokens at `side`."""

    side: Literal["prompt", "response"]
    dropped: int


@dataclass(frozen=True)
class JudgedTokens:
    """The tokens of an answer; arrays have one entry a judged token.

    Attributes:
        token_index: position in prompt and answer.
        texts: of each token.
        rewards: the head's value there.
        gates: weight of the token, 0..1.
        contributions: what it adds to the score.
        running: the score if the answer ended there.
        layers: the layers of `by_layer`, ascending; empty where it was not asked for.
        by_layer: (tokens, layers) what each layer adds at each token; None where not asked for, or where
            the head does not add layers up.
    """

    token_index: np.ndarray
    texts: tuple[str, ...]
    rewards: np.ndarray
    gates: np.ndarray
    contributions: np.ndarray
    running: np.ndarray
    layers: tuple[int, ...] = ()
    by_layer: np.ndarray | None = None


@dataclass(frozen=True)
class Judged:
    """What one model says of one item.

    Attributes:
        score: raw; None = left out as over-long under policy `skip`.
        n_tokens: prompt and answer as they were read; 0 where the scorer does not say.
        truncation: what was dropped to fit.
        is_unfinished: whether the answer ends without its end-of-turn token; None = not known.
        warnings: what was done to the item on the way, a sentence each.
        tokens: where they were asked for and the scorer has them.
        explanation: what each objective adds, where it was asked for; its sum is `score`.
    """

    score: float | None
    n_tokens: int = 0
    truncation: Truncation | None = None
    is_unfinished: bool | None = None
    warnings: tuple[str, ...] = ()
    tokens: JudgedTokens | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True)
class ServedModel:
    """What clients may know of a model; it is what a dialect's reply may quote.

    Attributes:
        name: by which requests name it.
        head_id: two models with the same one give the same scores.
        method: preset of the head, or the kind of scorer.
        backbone: its name; "" for a scorer without one.
        template_fingerprint: hash of the chat template and span rules; "" where there is none.
        context_length: most tokens of prompt and answer; 0 = no limit is known.
        dtype: of the backbone.
        calibration: id of what makes `calibrated` of a score.
        can_show_tokens: whether `per_token` is possible.
        can_show_layers: whether `per_layer` is possible.
        objectives: whose contributions `per_objective` shows; () = it is not possible.
        created: when the head was written, seconds since 1970.
        aliases: further names by which requests may name it.
    """

    name: str
    head_id: str
    method: str
    backbone: str = ""
    template_fingerprint: str = ""
    context_length: int = 0
    dtype: str = ""
    calibration: str = "sigmoid"
    can_show_tokens: bool = False
    can_show_layers: bool = False
    objectives: tuple[str, ...] = ()
    created: int = 0
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """What a dialect makes of a request.

    Attributes:
        model: name of one of the served models; None = the first.
        items: what is to be judged, in order; may be empty.
        options: how.
        warnings: what the dialect has to say of the request: fields nobody knows, switches that mean
            something else here.
    """

    model: str | None
    items: tuple[Item, ...]
    options: Options = Options()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    """What a dialect makes its reply of.

    Attributes:
        model: that judged.
        judged: one per item of the call, in order.
        warnings: of the call; those of the items stand in `judged`.
        request_id: unique; the client's own where it sent one.
        created: seconds since 1970.
    """

    model: ServedModel
    judged: tuple[Judged, ...]
    warnings: tuple[str, ...] = field(default=())
    request_id: str = ""
    created: int = 0
