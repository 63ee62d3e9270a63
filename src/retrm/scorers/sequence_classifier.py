"""A plain Hugging Face sequence-classification checkpoint with one output, as a scorer.

Raw logits, no sigmoid. A classifier reads the last token of the whole conversation as its own chat
template writes it, which is mostly a newline behind the end of the turn: the recipe of nearly every
model card (`apply_chat_template`, then the model), and what transformers' heads pool.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from retrm.backbone.base import Rendered
from retrm.backbone.fingerprint import hash_text, hash_tokenizer
from retrm.backbone.render import ChatRenderer
from retrm.errors import BackboneError
from retrm.features.read import render_all
from retrm.records import Answer
from retrm.scorers.base import Judgement, check_scores


@dataclass(frozen=True)
class _Finished:
    """A renderer of whole conversations."""

    renderer: ChatRenderer

    def render(self, answer: Answer) -> Rendered:
        return self.renderer.render_finished(answer)


@dataclass(frozen=True)
class _Reading:
    """What `render_all` asks of a backbone."""

    renderer: _Finished
    context_length: int


class SequenceClassifier:
    """Scores answers with `AutoModelForSequenceClassification`."""

    def __init__(self, model: torch.nn.Module, renderer: ChatRenderer, *, name: str) -> None:
        self.model = model
        self.renderer = renderer
        self.name = name

    @classmethod
    def load(cls, path: str, *, device: str = "cpu") -> "SequenceClassifier":
        """Load a local folder or hub id.

        Raises:
            BackboneError: not found, or not a classifier with exactly one output.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForSequenceClassification.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise BackboneError(
                f"cannot load {path!r} as a sequence classifier: {error}. Expected a local folder or "
                "hub id with a score head"
            ) from error
        if model.config.num_labels != 1:
            raise BackboneError(
                f"{path!r} has {model.config.num_labels} outputs; expected 1 for a reward model"
            )
        return cls(model.to(device).eval(), ChatRenderer(tokenizer), name=Path(path).name)

    @property
    def identity(self) -> str:
        """Of weights and template, so that another checkpoint in the same folder is another scorer."""
        total = hashlib.sha256(self.renderer.template_text.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            sample = tensor.flatten()[:: max(1, tensor.numel() // 4096)].float().cpu()
            total.update(name.encode() + sample.numpy().tobytes())
        return total.hexdigest()[:16]

    @property
    def provenance(self) -> dict[str, str]:
        """What its logits hang on: hashes of vocabulary and template, arithmetic, place."""
        weight = next(self.model.parameters())
        return {
            "tokenizer": hash_tokenizer(self.renderer.tokenizer),
            "template": hash_text(self.renderer.template_text),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": str(weight.device),
        }

    @property
    def context_length(self) -> int:
        """Most tokens it takes; a million where its config does not say."""
        return getattr(self.model.config, "max_position_embeddings", None) or 1 << 20

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """One raw logit an answer.

        Raises:
            OverlongError: an answer with its prompt is beyond the context.
        """
        return self.judge(answers).scores

    def judge(self, answers: Sequence[Answer], *, overlong: str = "error") -> Judgement:
        """Scores with token counts; answers are read one by one, so padding moves nothing.

        Raises:
            OverlongError: an answer is beyond the context and `overlong` is "error".
        """
        reading = _Reading(_Finished(self.renderer), self.context_length)
        read = render_all(reading, answers, overlong=overlong)  # type: ignore[arg-type]
        scores = np.full(len(answers), np.nan)
        n_tokens = np.zeros(len(answers), dtype=np.int64)
        is_cut = np.zeros(len(answers), dtype=bool)
        for row, rendered, cut in zip(read.rows, read.rendered, read.is_cut, strict=True):
            scores[row] = self._logit(rendered)
            n_tokens[row], is_cut[row] = len(rendered.ids), cut
        check_scores(scores[list(read.rows)], [answers[i] for i in read.rows], self.name)
        return Judgement(scores, n_tokens, is_cut)

    def score_rendered(self, rendered: Sequence[Rendered]) -> np.ndarray:
        """(n,) raw logits of conversations that are already token ids, read one by one."""
        return np.array([self._logit(one) for one in rendered], dtype=np.float64)

    @torch.inference_mode()
    def _logit(self, rendered: Rendered) -> float:
        ids = torch.tensor([rendered.ids], device=self.model.device)
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return float(logits[0, 0])
