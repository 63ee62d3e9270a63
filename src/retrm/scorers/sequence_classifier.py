"""A plain Hugging Face sequence-classification checkpoint with one output, as a scorer.

Raw logits, no sigmoid; the text is rendered with the checkpoint's own chat template by the same
renderer as everything else, and the classifier reads the last token before padding.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from retrm.backbone.render import ChatRenderer, fit_to_context
from retrm.errors import BackboneError, DataError
from retrm.records import Answer
from retrm.scorers.base import check_scores


class SequenceClassifier:
    """Scores answers with `AutoModelForSequenceClassification`."""

    def __init__(self, model: torch.nn.Module, renderer: ChatRenderer, *, name: str) -> None:
        self.model = model
        self.renderer = renderer
        self.name = name

    @classmethod
    def load(
        cls, path: str, *, device: str = "cpu", counts_end: bool = True
    ) -> "SequenceClassifier":
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
        renderer = ChatRenderer(tokenizer, counts_end=counts_end)
        return cls(model.to(device).eval(), renderer, name=Path(path).name)

    @torch.inference_mode()
    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """One raw logit an answer."""
        config = self.model.config
        context = getattr(config, "max_position_embeddings", None) or 1 << 20
        scores = []
        for answer in answers:
            rendered = fit_to_context(
                self.renderer.render(answer), context, "error", where=answer.where
            )
            if rendered is None:
                raise DataError(f"{answer.where}: over-long answer")
            ids = torch.tensor([rendered.ids[: rendered.stop]], device=self.model.device)
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            scores.append(float(logits[0, 0]))
        return check_scores(np.array(scores), answers, self.name)
