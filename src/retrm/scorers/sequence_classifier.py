"""A plain Hugging Face sequence-classification checkpoint, as a scorer.

Raw logits, no sigmoid. A checkpoint with several outputs says in its config how they become a score
(`retrm_readout`, written by `retrm finetune`):

    {"kind": "expected_level", "levels": [...]}   sum_k level_k softmax(logits)_k
    {"kind": "objectives", "names": [...]}        the mean of the outputs; each is a score of its own

A folder of low-rank updates (`adapter_config.json`) is put on its language model and merged. A head that a
checkpoint lacks would be random, and is refused.

A classifier reads the last token of the whole conversation as its own chat
template writes it, which is mostly a newline behind the end of the turn: the recipe of nearly every
model card (`apply_chat_template`, then the model), and what transformers' heads pool.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrm.backbone.base import Rendered
from retrm.backbone.fingerprint import hash_text, hash_tokenizer
from retrm.backbone.load import model_folder
from retrm.backbone.quiet import quiet_transformers
from retrm.backbone.render import ChatRenderer
from retrm.backbone.resolve import resolve_model
from retrm.errors import BackboneError, MissingExtraError
from retrm.features.read import render_all
from retrm.records import Answer
from retrm.scorers.base import Judgement, check_scores

READOUT = "retrm_readout"
TRAINING_SCORES = "retrm_training_scores"
_ADAPTER = "adapter_config.json"


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
        """Load a local folder or hub id; one with several objectives is an `ObjectiveClassifier`.

        Raises:
            BackboneError: not found, no head, or several outputs without a readout.
            MissingExtraError: low-rank updates, and peft is not installed.
        """
        tokenizer, model = _load_adapter(path) if _is_adapter(path) else _load_whole(path)
        readout = _readout(model.config, path)
        kind = (
            ObjectiveClassifier
            if readout and readout["kind"] == "objectives"
            else SequenceClassifier
        )
        return kind(model.to(device).eval(), ChatRenderer(tokenizer), name=Path(path).name)

    @property
    def training_scores(self) -> Mapping[str, float] | None:
        """Mean and deviation on what it was trained on, where its config says so."""
        return getattr(self.model.config, TRAINING_SCORES, None)

    @property
    def identity(self) -> str:
        """Of weights and template, so that another checkpoint in the same folder is another scorer."""
        return classifier_identity(self.model, self.renderer.template_text)

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
        return context_of(self.model.config)

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
            scores[row] = self._score(rendered)
            n_tokens[row], is_cut[row] = len(rendered.ids), cut
        check_scores(scores[list(read.rows)], [answers[i] for i in read.rows], self.name)
        return Judgement(scores, n_tokens, is_cut)

    def score_rendered(self, rendered: Sequence[Rendered]) -> np.ndarray:
        """(n,) raw scores of conversations that are already token ids, read one by one."""
        return np.array([self._score(one) for one in rendered], dtype=np.float64)

    def _score(self, rendered: Rendered) -> float:
        outputs = self.outputs(rendered)
        readout = getattr(self.model.config, READOUT, None)
        if readout is None:
            return float(outputs[0])
        if readout["kind"] == "objectives":
            return float(outputs.mean())
        weights = np.exp(outputs - outputs.max())
        return float(weights @ np.asarray(readout["levels"]) / weights.sum())

    @torch.inference_mode()
    def outputs(self, rendered: Rendered) -> np.ndarray:
        """(K,) raw outputs, float64."""
        ids = torch.tensor([rendered.ids], device=self.model.device)
        logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return logits[0].double().cpu().numpy()


class ObjectiveClassifier(SequenceClassifier):
    """A classifier with an output an objective; its score is their mean. Implements `ObjectiveScorer`."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(getattr(self.model.config, READOUT)["names"])

    def objective_scores(self, answers: Sequence[Answer]) -> np.ndarray:
        """(n, K) raw outputs.

        Raises:
            OverlongError: an answer with its prompt is beyond the context.
        """
        reading = _Reading(_Finished(self.renderer), self.context_length)
        return np.stack([self.outputs(one) for one in render_all(reading, answers).rendered])


def context_of(config: Any) -> int:
    """Most tokens that a model takes; a million where its config does not say."""
    return getattr(config, "max_position_embeddings", None) or 1 << 20


def _is_adapter(path: str) -> bool:
    return (Path(path) / _ADAPTER).is_file()


def _readout(config: Any, path: str) -> Mapping[str, Any] | None:
    """How several outputs become a score, checked; None = there is one."""
    readout = getattr(config, READOUT, None)
    if readout is None:
        if config.num_labels != 1:
            raise BackboneError(
                f"{path!r} has {config.num_labels} outputs and does not say how they become a score "
                f"({READOUT} in its config); expected 1 for a reward model"
            )
        return None
    parts = {"expected_level": "levels", "objectives": "names"}.get(readout.get("kind"))
    if parts is None or len(readout.get(parts, ())) != config.num_labels:
        raise BackboneError(
            f"{path!r} has {config.num_labels} outputs and the readout {readout!r}; expected kind "
            "expected_level with a level for each, or objectives with a name for each"
        )
    return readout


def _load_whole(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path, output_loading_info=True
            )
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"cannot load {path!r} as a sequence classifier: {error}. Expected a local folder or "
            "hub id with a score head"
        ) from error
    _check_whole(info["missing_keys"], path)
    return tokenizer, model


def _check_whole(missing: Any, path: str) -> None:
    lacking = sorted(map(str, missing))
    if lacking:
        raise BackboneError(
            f"the checkpoint {path!r} lacks {len(lacking)} weight(s), {', '.join(lacking[:3])} among them; "
            "they would be random, and so would all scores. Expected a reward model with its head: a "
            "language model is read by retrm fit, or trained by retrm finetune"
        )


def _load_adapter(path: str) -> tuple[Any, Any]:
    """Low-rank updates and the head that was saved with them, on the model that they belong to."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise MissingExtraError(
            f"{path!r} holds low-rank updates, which need peft ({error}). Run: pip install "
            "'retrm[train]'"
        ) from error
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    updates = PeftConfig.from_pretrained(path)
    _check_head(Path(path))
    base = model_folder(resolve_model(str(updates.base_model_name_or_path)), lambda _: None)
    try:
        config = AutoConfig.from_pretrained(path)
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=config.num_labels, dtype=torch.float32
            )
            rows = config.get_text_config().vocab_size
            if rows > model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(rows, mean_resizing=False)
            merged = PeftModel.from_pretrained(model, path).merge_and_unload()
    except (OSError, ValueError, RuntimeError) as error:
        raise BackboneError(
            f"cannot put the updates of {path!r} on {updates.base_model_name_or_path!r}: {error}. Expected "
            "the language model that they were trained on"
        ) from error
    merged.config = config
    return tokenizer, merged


def _check_head(folder: Path) -> None:
    """Refuse updates that were saved without the head that was trained with them."""
    from safetensors import safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise BackboneError(f"{folder} has no adapter_model.safetensors; restore it or train again")
    with safe_open(file, framework="pt") as held:
        if not any(".score." in name for name in held.keys()):  # noqa: SIM118
            raise BackboneError(
                f"the updates in {folder} hold no score layer, so their head would be random; expected "
                "modules_to_save=['score'] when they were trained"
            )


def classifier_identity(model: torch.nn.Module, template_text: str) -> str:
    """Sixteen hex digits of a template and of samples of all weights."""
    total = hashlib.sha256(template_text.encode())
    for name, tensor in sorted(model.state_dict().items()):
        sample = tensor.flatten()[:: max(1, tensor.numel() // 4096)].float().cpu()
        total.update(name.encode() + sample.numpy().tobytes())
    return total.hexdigest()[:16]
