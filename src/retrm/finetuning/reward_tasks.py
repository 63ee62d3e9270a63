"""What a batch is under each kind of supervision, and what its loss is.

A task knows nothing of trainers: rows become tensors padded on the right, and outputs with these tensors
become a loss and figures for the log. Formulas stand in `retrm.losses` and `reward_losses`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retrm.backbone.base import Rendered, Unembedding
from retrm.errors import ScoreError
from retrm.finetuning.reward_losses import (
    answer_log_probabilities,
    expected_level,
    length_correlations,
    level_loss,
    mixed,
    rating_loss,
    text_term,
)
from retrm.finetuning.reward_options import RewardOptions
from retrm.finetuning.reward_rows import AnswerRow, PairRow, Rows
from retrm.losses import bce, bradley_terry

Batch = Mapping[str, Tensor]
Parts = tuple[Tensor, dict[str, Tensor]]
MODEL_INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Outputs:
    """What the model said of a batch.

    Attributes:
        logits: (rows, K) raw outputs.
        states: (rows, tokens, D) that the head read, where the task asks for them.
        lengths: (rows,) scores of the length head, where there is one.
        overlap: |cos| of both heads, where there are two.
    """

    logits: Float[Tensor, "rows outputs"]
    states: Float[Tensor, "rows tokens width"] | None = None
    lengths: Float[Tensor, " rows"] | None = None
    overlap: Float[Tensor, ""] | None = None


class Task(Protocol):
    """Rows to a batch, and outputs to a loss."""

    needs_states: bool
    everywhere: Callable[[Tensor], Tensor]

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Tensors of rows that `as_records` made."""
        ...

    def loss(self, outputs: Outputs, batch: Batch) -> Parts:
        """The loss, and detached figures for the log."""
        ...


def as_records(rows: Rows) -> list[dict[str, Any]]:
    """Rows as plain columns, which data sets hold."""
    return [
        _pair_record(row) if isinstance(row, PairRow) else _answer_record(row) for row in rows.rows
    ]


def _pair_record(row: PairRow) -> dict[str, Any]:
    return {
        "texts": [_text(row.chosen), _text(row.rejected)],
        "margin": row.margin,
        "weight": row.weight,
    }


def _answer_record(row: AnswerRow) -> dict[str, Any]:
    return {"texts": [_text(row.rendered)], "targets": list(row.targets)}


def _text(rendered: Rendered) -> dict[str, Any]:
    return {"ids": list(rendered.ids), "start": rendered.start}


def padded(texts: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Texts of a batch, padded on the right.

    Returns:
        input_ids and attention_mask, (rows, tokens); starts of the answers and stops, (rows,).
    """
    stops = [len(text["ids"]) for text in texts]
    n = max(stops)
    ids = [[*text["ids"], *[pad_id] * (n - len(text["ids"]))] for text in texts]
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor([[1] * stop + [0] * (n - stop) for stop in stops]),
        "starts": torch.tensor([text["start"] for text in texts]),
        "stops": torch.tensor(stops),
    }


def _alone(values: Tensor) -> Tensor:
    """Of a single process: its own values are all there are."""
    return values


class PairTask:
    """Bradley-Terry with its options, and what acts on the backbone beside it.

    Args:
        options: of the training.
        pad_id: of the tokenizer.
        unembedding: the kept LM head, for the text regulariser.
    """

    def __init__(
        self, options: RewardOptions, pad_id: int, unembedding: Unembedding | None = None
    ) -> None:
        self.options, self.pad_id, self.unembedding = options, pad_id, unembedding
        self.needs_states = options.text_share > 0
        self.everywhere: Callable[[Tensor], Tensor] = _alone

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """All chosen answers, then all rejected ones."""
        texts = [row["texts"][side] for side in (0, 1) for row in rows]
        return {
            **padded(texts, self.pad_id),
            "margins": torch.tensor([row["margin"] for row in rows], dtype=torch.float32),
            "weights": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
        }

    def loss(self, outputs: Outputs, batch: Batch) -> Parts:
        """-log sigmoid of the gaps, with everything that the options add."""
        scores = outputs.logits[:, 0]
        summed = scores if outputs.lengths is None else scores + outputs.lengths
        chosen, rejected = summed.chunk(2)
        total = bradley_terry(
            *(chosen, rejected, batch["margins"], batch["weights"]), options=self.options.pairs
        )
        figures = {"pair_loss": total.detach()}
        if outputs.lengths is not None:
            added, figures["length_loss"] = self._lengths(outputs, batch, scores)
            total = total + added
        if self.options.text_share > 0:
            text = self._text(outputs, batch)
            figures["text_loss"] = text.detach()
            total = mixed(total, text, self.options.text_share)
        kept, other = scores.detach().chunk(2)
        figures["accuracy"] = ((kept > other) + 0.5 * (kept == other)).float().mean()
        figures["margin"] = (kept - other).mean()
        return total, figures

    def _lengths(self, outputs: Outputs, batch: Batch, scores: Tensor) -> tuple[Tensor, Tensor]:
        assert outputs.lengths is not None
        assert outputs.overlap is not None
        counted = (batch["stops"] - batch["starts"]).float()
        correlated = length_correlations(
            *(self.everywhere(values) for values in (scores, outputs.lengths, counted))
        )
        options = self.options
        return (
            options.length_weight * correlated + options.orthogonality * outputs.overlap,
            correlated.detach(),
        )

    def _text(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert outputs.states is not None
        assert self.unembedding is not None
        half = len(batch["margins"])
        found = answer_log_probabilities(
            *(outputs.states[:half], batch["input_ids"][:half]),
            *(batch["starts"][:half], batch["stops"][:half]),
            self.unembedding,
        )
        return text_term(found, beta=self.options.text_beta, form=self.options.text_form)


class AnswerTask:
    """One answer a row: right or wrong, a level, or ratings.

    Args:
        kind: `correctness` or `steps`, `ordinal`, `ratings`.
        pad_id: of the tokenizer.
        levels: of grades.
    """

    needs_states = False

    def __init__(self, kind: str, pad_id: int, levels: Sequence[float] = ()) -> None:
        self.kind, self.pad_id = kind, pad_id
        self.levels = torch.tensor(list(levels), dtype=torch.float32)
        self.everywhere: Callable[[Tensor], Tensor] = _alone

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A row an answer."""
        # Data sets keep what is not rated as null.
        targets = [[float("nan") if t is None else t for t in row["targets"]] for row in rows]
        return {
            **padded([row["texts"][0] for row in rows], self.pad_id),
            "targets": torch.tensor(targets, dtype=torch.float32),
        }

    def loss(self, outputs: Outputs, batch: Batch) -> Parts:
        """Of the kind, with what people understand of it."""
        logits, targets = outputs.logits, batch["targets"]
        if not bool(torch.isfinite(logits).all()):
            raise ScoreError("an output is NaN or infinite; lower the learning rate")
        if self.kind == "ordinal":
            labels = targets[:, 0].long()
            levels = self.levels.to(logits.device)
            off = expected_level(logits.detach(), levels) - levels[labels]
            return level_loss(logits, labels), {"mean_error": off.abs().mean()}
        if self.kind == "ratings":
            return rating_loss(logits, targets), {}
        scores, labels = logits[:, 0], targets[:, 0]
        right = ((scores.detach() > 0) == (labels > 0.5)).float().mean()
        return bce(scores, labels), {"accuracy": right}


def task_of(
    options: RewardOptions, rows: Rows, pad_id: int, unembedding: Unembedding | None = None
) -> Task:
    """The task of a kind."""
    if options.kind == "pairs":
        return PairTask(options, pad_id, unembedding)
    return AnswerTask(options.kind, pad_id, rows.levels)


def last_token(values: Float[Tensor, "rows tokens"], stops: Int[Tensor, " rows"]) -> Tensor:
    """(rows,) the value at the last token of each row."""
    return values.gather(1, (stops - 1)[:, None]).squeeze(1)
