"""A toy backbone: a random transformer over bytes that is read exactly as a real one is.

Vocabulary: the 256 bytes, then the beginning of the text, start of a turn, end of a turn, padding.
Three pre-norm blocks of one causal attention head and a small MLP, width 16, seeded weights; final
RMSNorm and an untied LM head. It knows nothing, costs nothing and needs no transformers, so it
carries the tests and the first example of the README.

Arithmetic runs in float64 and is handed over as float32: batching and padding, which only change
the order of a sum, then leave no trace in a state.

    >>> from retrm.backbone.fake import FakeBackbone
    >>> from retrm.records import Answer
    >>> backbone = FakeBackbone()
    >>> rendered = backbone.renderer.render(Answer.of("2 + 2?", "4"))
    >>> backbone.renderer.decode(rendered.ids[rendered.start : rendered.stop])
    '4'
"""

import math
import re
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from retrm.backbone.base import (
    OWN_STATES,
    Fingerprint,
    Rendered,
    StatePoint,
    TokenBatch,
    Unembedding,
    Visit,
    check_batch,
)
from retrm.backbone.fingerprint import hash_text, hash_unembedding, hash_weights
from retrm.backbone.text_frame import TextFrame
from retrm.errors import RenderError
from retrm.records import Answer, Message, Prompt

BOS, TURN, END, PAD = 256, 257, 258, 259
"""Ids of the beginning of the text, start of a turn, end of a turn, and padding."""

VOCAB_SIZE = 260
_EPS = 1e-6
_CONTROLS = {"<bos>": BOS, "<turn>": TURN, "<end>": END, "<pad>": PAD}
_TEMPLATE = "<bos>{<turn>role\\ncontent<end>}<turn>assistant\\n"


class FakeRenderer:
    """Byte-level rendering: `<bos>`, then `<turn>role newline content <end>` for each message.

    Args:
        counts_end: whether the end-of-turn token belongs to the judged tokens.
    """

    end_ids = frozenset({END})

    def __init__(self, *, counts_end: bool = True) -> None:
        self.counts_end = counts_end

    @property
    def template(self) -> str:
        """Template and span rule in one text, for the fingerprint."""
        return f"{_TEMPLATE} counts_end={self.counts_end}"

    def render(self, answer: Answer) -> Rendered:
        """Token ids of prompt and answer with the answer's span.

        Raises:
            RenderError: no token would be judged, or `response_ids` are not of this vocabulary.
        """
        prompt = self.render_prompt(answer.prompt)
        if answer.response_ids is None:
            end = () if answer.finished is False else (END,)
            said = (*answer.response.encode(), *end)
        else:
            said = tuple(answer.response_ids)
            if any(not 0 <= token < VOCAB_SIZE for token in said):
                raise RenderError(
                    f"{answer.where or 'answer'}: response_ids reach {max(said)}; expected ids "
                    f"0..{VOCAB_SIZE - 1} of the toy backbone. They were sampled from another model"
                )
        has_end = bool(said) and said[-1] == END
        stop = len(prompt) + len(said) - (has_end and not self.counts_end)
        if stop == len(prompt):
            raise RenderError(
                f"{answer.where or 'answer'}: the answer is empty, expected at least one token "
                "to judge. Remove the row or use counts_end=True"
            )
        return Rendered((*prompt, *said), len(prompt), stop)

    def render_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids up to where the model would begin to answer."""
        turns = [token for message in prompt.messages for token in self._turn(message)]
        return (BOS, *turns, TURN, *b"assistant\n")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out, bytes that are no UTF-8 become U+FFFD."""
        return bytes(token for token in ids if token < BOS).decode(errors="replace")

    def text(self, ids: Sequence[int]) -> str:
        """Text of `ids` with special tokens."""
        parts = re.split(f"([{''.join(map(chr, _CONTROLS.values()))}])", "".join(map(chr, ids)))
        names = {chr(token): name for name, token in _CONTROLS.items()}
        return "".join(
            names.get(part, "") or part.encode("latin-1").decode(errors="replace") for part in parts
        )

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text that is rendered already: special tokens count, nothing is added."""
        parts = re.split(f"({'|'.join(map(re.escape, _CONTROLS))})", text)
        return tuple(
            token
            for part in parts
            for token in ((_CONTROLS[part],) if part in _CONTROLS else part.encode())
        )

    def encode_alone(self, text: str) -> tuple[int, ...]:
        """`encode`: no byte reaches across a border."""
        return self.encode(text)

    def encode_behind(
        self, prompt: str, prompt_ids: tuple[int, ...], answer: str
    ) -> tuple[int, ...]:
        """`encode` of `answer`, whatever stands before it."""
        del prompt, prompt_ids
        return self.encode(answer)

    @property
    def frame(self) -> TextFrame:
        """What the template writes around an answer."""
        return TextFrame(
            prefix=(BOS,),
            bos="<bos>",
            writes_bos=True,
            openings=("<turn>assistant\n",),
            finished_opening="",
            written_glue="",
            ends={"<end>": END},
            end_id=END,
            writes_end=True,
            tail="<end>",
            pads={"<pad>": PAD},
            controls=frozenset(_CONTROLS),
            vocabulary_size=VOCAB_SIZE,
            restores_text=True,
        )

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; a character of several bytes stands at its last byte."""
        pieces, start = [], 0
        for stop in range(1, len(ids) + 1):
            held = bytes(token for token in ids[start:stop] if token < BOS)
            try:
                pieces.append(held.decode())
                start = stop
            except UnicodeDecodeError:
                # Four bytes that are no character will not become one.
                broken = len(held) >= 4 or stop == len(ids)
                pieces.append(held.decode(errors="replace") if broken else "")
                start = stop if broken else start
        return pieces

    def _turn(self, message: Message) -> tuple[int, ...]:
        return (TURN, *f"{message.role}\n{message.content}".encode(), END)


class FakeBackbone:
    """A tiny random transformer that implements `retrm.backbone.base.Backbone`.

    Args:
        seed: of the weights; another seed is another model with another fingerprint.
        width: of the residual stream.
        n_layers: blocks.
        context_length: most tokens in a row.
        counts_end: whether the end-of-turn token is judged.
    """

    name = "fake"
    vocab_size = VOCAB_SIZE
    shares_prompts = True
    caches_prompts = False
    states_from = OWN_STATES

    def __init__(
        self,
        *,
        seed: int = 0,
        width: int = 16,
        n_layers: int = 3,
        context_length: int = 1024,
        counts_end: bool = True,
    ) -> None:
        self.width = width
        self.n_layers = n_layers
        self.context_length = context_length
        self.renderer = FakeRenderer(counts_end=counts_end)
        self._weights = _draw_weights(seed, width, n_layers)
        self.fingerprint = Fingerprint(
            weights=hash_weights({"model_type": "fake", "eps": _EPS}, self._weights.items()),
            unembedding=hash_unembedding(self.unembedding),
            tokenizer=hash_text("bytes and 4 special tokens"),
            template=hash_text(self.renderer.template),
        )

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the states that are handed over; the arithmetic inside is float64."""
        return torch.float32

    @property
    def unembedding(self) -> Unembedding:
        """RMSNorm with a gain and an untied LM head without bias, both float32."""
        return Unembedding(
            weight=self._weights["lm_head"].float(),
            bias=None,
            gain=self._weights["norm"].float(),
            norm_bias=None,
            norm_kind="rms",
            eps=_EPS,
        )

    def forward(
        self, batch: TokenBatch, wanted: Collection[tuple[int, StatePoint]], visit: Visit
    ) -> None:
        """One pass over `batch` that calls `visit` for each wanted state in ascending order.

        Raises:
            RecipeError: a layer outside 0..L or an unknown state point.
            OverlongError: a position beyond the context.
        """
        check_batch(self, batch, wanted)
        if not wanted:
            return
        may_look = _may_look(batch.attention)
        state = self._weights["embedding"][batch.ids] + _waves(batch.positions, self.width)
        for layer in range(max(layer for layer, _ in wanted) + 1):
            if layer > 0:
                state = self._block(layer, state, may_look)
            if (layer, "residual") in wanted:
                visit(layer, "residual", state.float())
            if (layer, "post_norm") in wanted:
                visit(layer, "post_norm", (_rms(state) * self._weights["norm"]).float())

    def _block(self, layer: int, state: Tensor, may_look: Tensor) -> Tensor:
        """Pre-norm attention and MLP: (rows, tokens, width) to the same."""
        w = self._weights
        query, key, value = (_rms(state) @ w[f"{layer}.qkv"]).chunk(3, dim=-1)
        logits = query @ key.transpose(-1, -2) / math.sqrt(self.width)  # (rows, tokens, tokens)
        # The lowest finite number: padding that may look at nothing must not become NaN.
        logits = logits.masked_fill(~may_look, torch.finfo(logits.dtype).min)
        state = state + torch.softmax(logits, dim=-1) @ value @ w[f"{layer}.out"]
        return state + torch.tanh(_rms(state) @ w[f"{layer}.up"]) @ w[f"{layer}.down"]


def _draw_weights(seed: int, width: int, n_layers: int) -> dict[str, Tensor]:
    """Float32 numbers stored as float64, so that handing the LM head over rounds nothing."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).double()

    scale = width**-0.5
    weights = {"embedding": draw(VOCAB_SIZE, width, scale=1.0)}
    for layer in range(1, n_layers + 1):
        weights[f"{layer}.qkv"] = draw(width, 3 * width, scale=scale)
        weights[f"{layer}.out"] = draw(width, width, scale=scale)
        weights[f"{layer}.up"] = draw(width, 2 * width, scale=scale)
        weights[f"{layer}.down"] = draw(2 * width, width, scale=scale)
    weights["norm"] = 1.0 + draw(width, scale=0.2)
    weights["lm_head"] = draw(VOCAB_SIZE, width, scale=scale)
    return weights


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS)


def _waves(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of the positions: (rows, tokens) to (rows, tokens, width)."""
    rates = 100.0 ** -(torch.arange(width, dtype=torch.float64) // 2 * 2 / width)
    angles = positions.double()[..., None] * rates
    even = torch.arange(width) % 2 == 0
    return 0.5 * torch.where(even, angles.sin(), angles.cos())


def _may_look(attention: Tensor) -> Tensor:
    """(rows, tokens, tokens), True = the first token may look at the second."""
    if attention.ndim == 4:
        return attention[:, 0].bool()
    n_tokens = attention.shape[1]
    causal = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    return causal & attention[:, None, :].bool()
