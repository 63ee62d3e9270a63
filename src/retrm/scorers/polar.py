"""A policy discriminator (POLAR): scores a candidate beside a reference, both behind the same prompt.

    score = w . h,   h = state of the last token (END) of the template, after the final norm

w has no bias. Scores are unbounded, mostly negative, and compare only candidates of one prompt and one
reference; they are not symmetric in reference and candidate.

What is loaded: a folder that `retrm polar train` wrote (a sequence classifier of transformers with one
output, which engines serve as it is, and `polar.json` beside it), or a published POLAR model
(`retrm.scorers.polar_published`).

Source: arXiv 2507.05197 and its released code.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrm.backbone.fingerprint import hash_text, hash_tokenizer
from retrm.backbone.quiet import quiet_transformers
from retrm.backbone.reference import (
    END,
    SEPARATOR,
    Compared,
    ReferenceLimits,
    ReferenceTemplate,
    fitted,
    joined,
    reference_of,
)
from retrm.backbone.resolve import check_weights, fetch_hub, read_config
from retrm.errors import ArtifactError, BackboneError, RecipeError
from retrm.files import write_json
from retrm.records import Answer
from retrm.scorers.base import Judgement, check_scores
from retrm.scorers.polar_published import is_published, load_published, published_tokenizer
from retrm.scorers.sequence_classifier import classifier_identity

MARK = "polar.json"
VERSION = 1
TOKENS_PER_BATCH = 8192


def last_scores(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Scores of rows that are padded on the left.

    Args:
        model: a sequence classifier with one output.
        ids: (B, T) token ids; the last column is END in every row.
        mask: (B, T) 1 for tokens, 0 for padding.

    Returns:
        (B,) raw scores in the dtype of the model.
    """
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, 0]


def padded(rows: Sequence[Sequence[int]], end_id: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows, filled up on the left.

    Args:
        rows: token ids, each ending in `end_id`.
        end_id: of END.
        pad_id: any other id.

    Returns:
        (B, T) ids and (B, T) mask, int64.
    """
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        assert row[-1] == end_id, "the head would read another state"
        ids[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return ids, mask


def pad_id_of(tokenizer: Any, end_id: int) -> int:
    """An id for padding; many tokenizers name none. Never END, which pooling looks for."""
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, 0, 1):
        if found is not None and found != end_id:
            return int(found)
    raise AssertionError("0 and 1 are not both END")


class PolarScorer:
    """Scores answers beside their references; implements `Scorer` and `LimitedScorer`.

    Args:
        model: a sequence classifier with one output, in eval mode.
        template: with the tokenizer of the model.
        name: for tables.
        tokens_per_batch: of a forward pass, padding included.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        template: ReferenceTemplate,
        *,
        name: str,
        tokens_per_batch: int = TOKENS_PER_BATCH,
    ) -> None:
        self.model = model
        self.template = template
        self.name = name
        self.tokens_per_batch = tokens_per_batch
        self._pad_id = pad_id_of(template.tokenizer, template.end_id)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        limits: ReferenceLimits | None = None,
    ) -> "PolarScorer":
        """From a folder of `retrm polar train`, a published model's folder, or a hub id.

        Args:
            path: the folder, or that of the run around it.
            device: cpu, cuda, ...
            dtype: float32 or bfloat16.
            limits: on lengths; None = those it was trained with.

        Raises:
            ArtifactError: no such model, or one that was not trained with this template.
            BackboneError: the weights or the tokenizer will not do.
        """
        folder = polar_folder(path)
        model, tokenizer, mark = load_discriminator(folder, dtype=dtype)
        template = ReferenceTemplate(
            tokenizer,
            separator=mark["separator"],
            end=mark["end"],
            limits=limits or ReferenceLimits(mark["max_length"], mark["max_response"]),
        )
        return cls(model.to(torch.device(device)).eval(), template, name=Path(path).name)

    @property
    def identity(self) -> str:
        """Of weights, template and limits."""
        return classifier_identity(self.model, self.template.rules_text)

    @property
    def provenance(self) -> dict[str, str]:
        """What its scores hang on: hashes of vocabulary and template, arithmetic, place."""
        weight = next(self.model.parameters())
        return {
            "tokenizer": hash_tokenizer(self.template.tokenizer),
            "template": hash_text(self.template.rules_text),
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": str(weight.device),
        }

    @property
    def context_length(self) -> int:
        """Most tokens of both halves together."""
        return self.template.limits.max_length

    def compare(self, answer: Answer, *, overlong: str = "error") -> Compared | None:
        """The text of an answer beside its reference; None = left out.

        Raises:
            DataError: it has no reference.
            OverlongError: it is too long and `overlong` is "error".
        """
        reference = reference_of(answer, self.name)
        prompt = joined(answer.prompt.messages)
        return fitted(
            lambda: self.template.compare(prompt, reference, answer.response),
            overlong,
            answer.where,
        )

    def score(self, answers: Sequence[Answer]) -> np.ndarray:
        """One raw score an answer.

        Raises:
            DataError: an answer without a reference.
            OverlongError: a piece is longer than the template holds.
        """
        return self.judge(answers).scores

    def judge(self, answers: Sequence[Answer], *, overlong: str = "error") -> Judgement:
        """Scores with token counts; `truncate_left` cuts by POLAR's own rules.

        Raises:
            DataError: an answer without a reference.
            OverlongError: a piece is too long and `overlong` is "error".
            ScoreError: a score is not finite; the record is named.
        """
        found = [self.compare(answer, overlong=overlong) for answer in answers]
        kept = [i for i, one in enumerate(found) if one is not None]
        scores = np.full(len(answers), np.nan)
        scores[kept] = self.score_ids([found[i].ids for i in kept])  # type: ignore[union-attr]
        check_scores(scores[kept], [answers[i] for i in kept], self.name)
        n_tokens = np.array([0 if one is None else len(one.ids) for one in found], dtype=np.int64)
        is_cut = np.array([one is not None and one.is_cut for one in found], dtype=bool)
        return Judgement(scores, n_tokens, is_cut)

    @torch.inference_mode()
    def score_ids(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """(n,) float64 scores of token ids that end in END, read in batches of like length."""
        out = np.zeros(len(rows))
        for batch in self._batches([len(row) for row in rows]):
            ids, mask = padded([rows[i] for i in batch], self.template.end_id, self._pad_id)
            device = next(self.model.parameters()).device
            found = last_scores(self.model, ids.to(device), mask.to(device))
            out[batch] = found.double().cpu().numpy()
        return out

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        batches: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            width = lengths[batches[-1][0]] if batches else 0
            if batches and (len(batches[-1]) + 1) * width <= self.tokens_per_batch:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches


class PolarText:
    """What POLAR's client sends: comparisons as text, cut here with the tokenizer of the served model.

    Args:
        template: with that tokenizer.
    """

    def __init__(self, template: ReferenceTemplate) -> None:
        self.template = template
        self.tokenizer = template.tokenizer
        self.template_text = template.rules_text

    @classmethod
    def load(cls, path: str) -> "PolarText":
        """From the folder of a discriminator, whose weights are not read.

        Raises:
            ArtifactError, BackboneError: it is no such folder, or its tokenizer will not do.
        """
        folder = polar_folder(path)
        tokenizer, mark = _tokenizer_and_mark(folder)
        limits = ReferenceLimits(mark["max_length"], mark["max_response"])
        return cls(
            ReferenceTemplate(
                tokenizer, separator=mark["separator"], end=mark["end"], limits=limits
            )
        )

    def text(self, answer: Answer) -> str:
        """A comparison, cut by the rules of the template.

        Raises:
            DataError: the answer has no reference.
            OverlongError: no room is left for the prompt.
        """
        reference = reference_of(answer, "POLAR")
        prompt = joined(answer.prompt.messages)
        return self.template.compare(prompt, reference, answer.response).text


def polar_folder(path: str | Path) -> Path:
    """The folder with the weights: `path` itself, `model` inside it, or that of a hub id.

    Raises:
        ArtifactError: there is none.
        BackboneError: the hub does not have it.
    """
    path = Path(path).expanduser()
    for folder in (path, path / "model"):
        if (folder / MARK).is_file() or _is_published_folder(folder):
            return folder
    if path.exists():
        raise ArtifactError(
            f"{path} holds no policy discriminator: neither {MARK} nor the config of a published POLAR "
            "model. Expected the folder of a run of retrm polar train; a sequence classifier of another "
            "kind is opened by hf:PATH"
        )
    if str(path).count("/") != 1 or str(path).startswith((".", "/")):
        raise ArtifactError(f"there is no folder {path}; expected one that retrm polar train wrote")
    files = ("*.json", "*.model", "*.txt", "model*.safetensors")
    return polar_folder(fetch_hub(str(path), files))


def _is_published_folder(folder: Path) -> bool:
    try:
        return is_published(read_config(folder))
    except BackboneError:  # no model's config: that of a run, or none
        return False


def load_discriminator(folder: Path, *, dtype: str = "float32") -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and what `polar.json` says, of either layout.

    Raises:
        ArtifactError: polar.json is damaged or of another version.
        BackboneError: weights are missing or of another size, or the tokenizer will not do.
    """
    tokenizer, mark = _tokenizer_and_mark(folder)
    if is_published(config := read_config(folder)):
        return load_published(folder, config, dtype=dtype), tokenizer, mark
    check_weights(folder)
    from transformers import AutoModelForSequenceClassification

    try:
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=_dtype(dtype), output_loading_info=True, local_files_only=True
            )
    except Exception as error:
        # Tokenizers and safetensors, written in Rust, raise no errors of a common kind.
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise BackboneError(
            f"the discriminator in {folder} cannot be loaded: {' '.join(said)[:300]}. Its config.json must be "
            "that of its weights; train again, or copy the folder whole"
        ) from error
    bad = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if bad or model.config.num_labels != 1:
        raise BackboneError(
            f"the discriminator in {folder} lacks {', '.join(bad[:3]) or 'a head with one output'}; expected "
            "all weights of a sequence classifier with one output. Copy the folder whole"
        )
    return model, tokenizer, mark


def _tokenizer_and_mark(folder: Path) -> tuple[Any, dict[str, Any]]:
    config = read_config(folder)
    if is_published(config):
        longest = ReferenceLimits().max_length
        limit = min(longest, config.get("max_position_embeddings", longest))
        mark = _mark(SEPARATOR, END, ReferenceLimits.within(limit))
        return published_tokenizer(folder, config), mark
    mark = _read_mark(folder)
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True), mark
    except Exception as error:
        # Tokenizers, written in Rust, raise no errors of a common kind.
        raise BackboneError(
            f"{folder} has no tokenizer that can be read: {str(error)[:200]}. Copy the folder whole"
        ) from error


def _dtype(dtype: str) -> torch.dtype:
    from retrm.backbone.load import DTYPES

    if dtype not in DTYPES:
        raise BackboneError(f"got dtype={dtype!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _mark(separator: str, end: str, limits: ReferenceLimits) -> dict[str, Any]:
    return {
        "version": VERSION,
        "separator": separator,
        "end": end,
        "max_length": limits.max_length,
        "max_response": limits.max_response,
    }


def write_mark(folder: Path, template: ReferenceTemplate) -> None:
    """Say in `folder` with which template its weights were trained."""
    write_json(folder / MARK, _mark(template.separator, template.end, template.limits))


def _read_mark(folder: Path) -> dict[str, Any]:
    path = folder / MARK
    try:
        mark = json.loads(path.read_text("utf-8"))
        if mark["version"] != VERSION:
            raise RecipeError(f"version {mark['version']}")
        ReferenceLimits(int(mark["max_length"]), int(mark["max_response"]))
        if not all(isinstance(mark[name], str) and mark[name] for name in ("separator", "end")):
            raise TypeError("separator and end are no texts")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error!r:.120}); expected version {VERSION}, as retrm polar train writes "
            "it. Train again, or take a version of retrm that knows it"
        ) from error
    return mark
