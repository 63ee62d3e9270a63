"""A whole training of a reward model: checks, rows, the trainer, and what is left behind.

    config.json     what the run hangs on; a folder of another run is refused
    metrics.jsonl   a line a logged step, and a line a look at the held-out part
    start/          the checkpoint that a fitted head was written into, where the run starts from one
    model/          the reward model: an ordinary sequence classifier (low-rank updates are merged)
    adapter/        the low-rank updates with the head, where there are any
    length_head.safetensors   ODIN's second head, which no score needs
    done.json       written last

Mistakes in labels, templates and lengths surface before weights are loaded. What was saved is loaded again
by the ordinary scorer, and must give the scores of the model that was trained. A killed run goes on from its
newest checkpoint.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from retrm.backbone.base import Rendered, Unembedding
from retrm.backbone.fingerprint import hash_text, hash_tokenizer
from retrm.backbone.load import model_folder
from retrm.backbone.quiet import quiet_transformers
from retrm.backbone.readout import load_readout
from retrm.backbone.render import ChatRenderer
from retrm.backbone.resolve import resolve_model
from retrm.errors import ArtifactError, BackboneError, RecipeError, did_you_mean
from retrm.finetuning.classifier import (
    Classifier,
    describe,
    load_classifier,
    load_tokenizer,
    reward_heads,
    save_classifier,
    save_updates,
    take_length_weight,
)
from retrm.finetuning.language_model import LoraOptions, check_trainers, versions
from retrm.finetuning.reward_card import reward_card
from retrm.finetuning.reward_options import RewardOptions
from retrm.finetuning.reward_rows import RenderedText, Rows, rows_of, supervision_of
from retrm.finetuning.reward_tasks import task_of
from retrm.finetuning.run_folder import RunFolder
from retrm.records import AnswerTable
from retrm.scorers.export import check_exportable, export_sequence_classifier
from retrm.scorers.sequence_classifier import TRAINING_SCORES, SequenceClassifier, context_of

TOLERANCE = 1e-4
"""Largest difference of a saved score, relative to 1 + its size; merging updates rounds."""

N_PROBES = 4
DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True)
class Finetuned:
    """A reward model on disk.

    Attributes:
        model: folder of the classifier.
        adapter: folder of the low-rank updates; None = all weights were trained.
        facts: of the run: steps, seconds, rows, losses, versions; plain JSON.
    """

    model: Path
    adapter: Path | None
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """One run, checked.

    Attributes:
        model: as it was typed.
        base: folder that weights are loaded from.
        rows: that are trained on.
        held_out: that are looked at; None = none.
        options: of the training.
        lora: low-rank updates.
        dtype: of the arithmetic.
        device: cpu or an accelerator.
        member: of an ensemble, from 0.
        n_scale: training answers whose scores' spread is stored, for ensembles; 0 = none.
    """

    model: str
    base: Path
    rows: Rows
    held_out: Rows | None
    options: RewardOptions
    lora: LoraOptions
    dtype: str
    device: str
    member: int
    n_scale: int


def finetune(
    train: AnswerTable,
    model: str,
    folder: RunFolder,
    *,
    options: RewardOptions | None = None,
    lora: LoraOptions | None = None,
    held_out: AnswerTable | None = None,
    start_head: Path | None = None,
    label_threshold: float | None = None,
    levels: Sequence[float] | None = None,
    rendered: RenderedText = "error",
    dtype: str = "float32",
    device: str = "cpu",
    member: int = 0,
    n_scale: int = 0,
) -> Finetuned:
    """Train a reward model, or go on with a training that was killed.

    Args:
        train: what is learnt from.
        model: the language model by any name that retrm knows, or a reward model to go on with.
        folder: of the run.
        options: of the training.
        lora: low-rank updates; None = all weights.
        held_out: prompts that are looked at every `options.evaluate_steps`.
        start_head: a reward model of `retrm fit` on the same model, whose head the training starts from.
        label_threshold: grades at or above it are right.
        levels: that grades may have.
        rendered: what to do with text that a chat template has written.
        dtype: of the arithmetic: float32 or bfloat16; weights are float32 in any case.
        device: cpu, cuda, ...
        member: of an ensemble, from 0; it changes the order of the rows.
        n_scale: training answers whose spread of scores is stored in the model, for ensembles.

    Raises:
        LabelError, DataError, OverlongError, RenderError: the data.
        BackboneError: the model, its checkpoint or its tokenizer.
        ExportError: the head to start from is no linear map of the last token's last state.
        ArtifactError: the folder holds another run, or what was saved gives other scores.
        MissingExtraError: trl, accelerate or peft is not installed.
    """
    options, lora = options or RewardOptions(), lora or LoraOptions()
    check_trainers()
    if dtype not in ("float32", "bfloat16"):
        raise BackboneError(f"got dtype={dtype!r}. {did_you_mean(dtype, ('float32', 'bfloat16'))}")
    if device not in DEVICES:
        raise BackboneError(
            f"got device={device!r}; a training runs on all accelerators that it sees. "
            + did_you_mean(device, DEVICES)
        )
    supervision = supervision_of(train, options, label_threshold=label_threshold, levels=levels)
    looked = None
    if held_out is not None and options.evaluate_steps:
        known = supervision.levels or None
        looked = supervision_of(held_out, options, label_threshold=label_threshold, levels=known)
    base, source = _base(model, folder, start_head, options, device)
    renderer, limit = _renderer(base)
    rows = rows_of(train, supervision, renderer, options, limit, rendered=rendered)
    others = None
    if held_out is not None and looked is not None:
        others = rows_of(held_out, looked, renderer, options, limit, rendered=rendered)
    plan = Plan(model, base, rows, others, options, lora, dtype, device, member, n_scale)
    folder.begin(_config(plan, source, renderer, start_head))
    if not folder.is_done:
        _train(plan, renderer, folder)
    adapter = folder.path / "adapter" if lora.rank else None
    return Finetuned(folder.model, adapter, folder.facts())


# ------------------------------------------------------------------------------------- before work


def _base(
    model: str,
    folder: RunFolder,
    start_head: Path | None,
    options: RewardOptions,
    device: str,
) -> tuple[Path, Path]:
    """Folder that the training starts from, and that of the language model."""
    resolved = resolve_model(model)
    if resolved.kind == "fake":
        raise BackboneError("got the toy backbone, which cannot be trained; name a real model")
    source = model_folder(resolved, lambda _: None)
    if start_head is None:
        return source, source
    if options.kind in ("ordinal", "ratings"):
        raise RecipeError(
            f"got a head to start from with kind={options.kind!r}, whose model has several outputs; expected "
            "kind=pairs, correctness or steps"
        )
    if folder.is_done:
        return folder.model, source  # its tokenizer is that of the start
    start = folder.path / "start"
    with _one_after_the_other(device):
        if not (start / "config.json").is_file():
            check_exportable(start_head, start)
            _write_start(start_head, start, str(source))
    return start, source


def _one_after_the_other(device: str) -> contextlib.AbstractContextManager[object]:
    """Of several processes the first goes first; alone there is nothing to wait for."""
    if _n_processes() == 1:
        return contextlib.nullcontext()
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu").main_process_first()


def _write_start(start_head: Path, start: Path, model: str) -> None:
    """The head as a classifier of its backbone; its exactness is checked by the export.

    An RMSNorm leaves no place for a bias: it is dropped, all scores move by the same number, and the config
    says by which.
    """
    from retrm.scorers.reward_model import RewardModel

    export_sequence_classifier(RewardModel.load(start_head, model=model), start, bias="drop")


def _renderer(base: Path) -> tuple[ChatRenderer, int]:
    from transformers import AutoConfig

    tokenizer, _ = load_tokenizer(base)
    with quiet_transformers():
        config = AutoConfig.from_pretrained(base, local_files_only=True)
    return ChatRenderer(tokenizer), context_of(config)


def _config(
    plan: Plan, source: Path, renderer: ChatRenderer, start_head: Path | None
) -> dict[str, Any]:
    return {
        "kind": "reward",
        "model": plan.model,
        "checkpoint": checkpoint_mark(source),
        "start_head": None if start_head is None else checkpoint_mark(start_head),
        "tokenizer": hash_tokenizer(renderer.tokenizer),
        "template": hash_text(renderer.template_text),
        "n_rows": len(plan.rows.rows),
        "rows": _rows_mark(plan.rows),
        "options": plan.options.as_dict(),
        "lora": asdict(plan.lora),
        "dtype": plan.dtype,
        "member": plan.member,
        "n_processes": _n_processes(),
    }


def checkpoint_mark(folder: Path) -> str:
    """Sixteen digits of config, names and sizes of weights, and the end of each: another checkpoint has others."""
    total = hashlib.sha256()
    for name in ("config.json", "reward_model.json"):
        if (folder / name).is_file():
            total.update((folder / name).read_bytes())
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        size = path.stat().st_size
        with path.open("rb") as held:
            held.seek(max(0, size - (1 << 16)))
            total.update(f"{path.name} {size}".encode() + held.read())
    return total.hexdigest()[:16]


def _rows_mark(rows: Rows) -> str:
    body = [[list(one.ids), one.start] for one in rows.rendered]
    learnt = [getattr(row, "targets", None) or _margins(row) for row in rows.rows]
    return hashlib.sha256(json.dumps([body, learnt]).encode()).hexdigest()[:16]


def _margins(row: Any) -> tuple[float, float]:
    return row.margin, row.weight


def _n_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


# ---------------------------------------------------------------------------------------- the work


def _train(plan: Plan, renderer: ChatRenderer, folder: RunFolder) -> None:
    from retrm.finetuning.reward_trainer import RewardModelTrainer, trainer_config

    made = _classifier(plan)
    task = task_of(plan.options, plan.rows, renderer.tokenizer.pad_token_id, _unembedding(plan))
    trainer = RewardModelTrainer(
        made,
        task,
        trainer_config(
            plan.options,
            folder.checkpoints,
            n_rows=len(plan.rows.rows),
            is_low_rank=plan.lora.rank > 0,
            dtype=plan.dtype,
            device=plan.device,
            member=plan.member,
        ),
        plan.rows,
        held_out=plan.held_out,
        lora=plan.lora,
        folder=folder,
    )
    n_trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    n_parameters = sum(p.numel() for p in trainer.model.parameters())
    checkpoint = folder.newest_checkpoint()
    resumed_at = 0 if checkpoint is None else int(checkpoint.name.split("-")[-1])
    if trainer.is_world_process_zero():
        folder.forget_after(resumed_at if checkpoint else -1)
    started, on_processor = time.monotonic(), time.process_time()
    _run(trainer, checkpoint)
    facts = {
        "steps": trainer.state.global_step,
        "resumed_at": resumed_at,
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(time.process_time() - on_processor, 1),
        "threads": torch.get_num_threads(),
        "n_processes": _n_processes(),
        "is_sharded": bool(trainer.is_fsdp_enabled),
        "n_trained": n_trained,
        "n_parameters": n_parameters,
        "has_new_head": made.has_new_head,
        "has_new_pad": made.has_new_pad,
        "data": _counts(plan.rows),
        "versions": versions(),
    }
    whole = _whole(trainer, plan)
    if trainer.is_world_process_zero():
        _keep(whole, renderer, folder, plan, facts)
    trainer.accelerator.wait_for_everyone()


def _classifier(plan: Plan) -> Classifier:
    return load_classifier(
        plan.base,
        n_outputs=plan.rows.n_outputs,
        std=plan.options.starting_std,
        has_length=plan.options.length_heads,
        seed=plan.options.seed,
    )


def _unembedding(plan: Plan) -> Unembedding | None:
    """The LM head as the language model had it; None where no text is regularised."""
    return load_readout(plan.model).unembedding if plan.options.text_share > 0 else None


def _run(trainer: Any, checkpoint: Path | None) -> None:
    try:
        with quiet_transformers():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        if checkpoint is None or "size mismatch" not in str(error):
            raise
        raise ArtifactError(
            f"{checkpoint} is of a model of another size ({str(error).splitlines()[-1].strip()[:200]}); "
            "expected a checkpoint of this run. Remove the folder `checkpoints` to begin again"
        ) from error


def _whole(trainer: Any, plan: Plan) -> Any:
    """The trained model on this process, unwrapped; sharded weights are gathered into a fresh one."""
    if not trainer.is_fsdp_enabled:
        return trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return None
    fresh = _classifier(plan).model
    if plan.lora.rank:
        from peft import get_peft_model

        from retrm.finetuning.classifier import HEAD
        from retrm.finetuning.language_model import lora_config

        fresh = get_peft_model(fresh, lora_config(plan.lora, head=HEAD))
    fresh.load_state_dict(state)
    return fresh


def _counts(rows: Rows) -> dict[str, int]:
    return {
        "n_rows": len(rows.rows),
        "n_read": rows.n_read,
        "n_truncated": rows.n_truncated,
        "n_skipped": rows.n_skipped,
        "n_rendered": rows.n_rendered,
        "n_tokens": rows.n_tokens,
    }


# --------------------------------------------------------------------------------------- afterwards


def _keep(
    whole: Any, renderer: ChatRenderer, folder: RunFolder, plan: Plan, facts: dict[str, Any]
) -> None:
    """Save, load again, compare, and say that the run is over."""
    whole = whole.to("cpu").float().eval()
    for head in reward_heads(whole):
        head.keeps_states = False
    length = take_length_weight(whole)
    describe(whole.config, n_outputs=plan.rows.n_outputs, readout=_readout(plan.rows))
    whole.config.use_cache = True
    whole.config.retrm_kind = plan.options.kind
    probes = plan.rows.rendered[:N_PROBES]
    expected = _outputs(whole, probes)
    if plan.n_scale:
        spread = _outputs(whole, plan.rows.rendered[: plan.n_scale])[:, 0]
        scale = {"mean": float(spread.mean()), "std": float(spread.std()) or 1.0}
        setattr(whole.config, TRAINING_SCORES, scale)
    kept = [folder.model]
    if plan.lora.rank:
        adapter = folder.path / "adapter"
        save_updates(whole, renderer.tokenizer, adapter, base=_base_name(plan))
        kept.append(adapter)
        whole = whole.merge_and_unload()
    save_classifier(whole, renderer.tokenizer, folder.model)
    if length is not None:
        save_file({"length_head.weight": length}, folder.path / "length_head.safetensors")
    del whole
    facts["max_error"] = max(check_saved(path, probes, expected) for path in kept)
    facts["loss"] = [row["loss"] for row in folder.metrics() if "loss" in row]
    card = reward_card(plan.model, plan.options, plan.lora, facts)
    (folder.model / "README.md").write_text(card, "utf-8")
    shutil.rmtree(folder.path / "start", ignore_errors=True)
    folder.finish(facts)


def _base_name(plan: Plan) -> str:
    """The name by which the language model is found again: a path that does not hang on where one stands."""
    path = Path(plan.model).expanduser()
    return str(path.resolve()) if path.exists() else plan.model


def _readout(rows: Rows) -> dict[str, Any] | None:
    if rows.levels:
        return {"kind": "expected_level", "levels": list(rows.levels)}
    if rows.objectives:
        return {"kind": "objectives", "names": list(rows.objectives)}
    return None


@torch.inference_mode()
def _outputs(model: Any, rendered: Sequence[Rendered]) -> np.ndarray:
    """(n, K) raw outputs, texts read one by one."""
    found = []
    for one in rendered:
        ids = torch.tensor([one.ids])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        found.append(logits[0].double().numpy())
    return np.stack(found)


def check_saved(folder: Path, probes: Sequence[Rendered], expected: np.ndarray) -> float:
    """Load a folder by the ordinary scorer and compare; the largest difference, relative to 1 + its size.

    Raises:
        ArtifactError: it gives other outputs.
    """
    scorer = SequenceClassifier.load(str(folder))
    got = np.stack([scorer.outputs(one) for one in probes])
    worst = float((np.abs(got - expected) / (1 + np.abs(expected))).max())
    if not worst <= TOLERANCE:
        raise ArtifactError(
            f"the reward model in {folder} gives other scores than the one that was trained: they differ by "
            f"{worst:.2e} relative to 1 + |score|, expected at most {TOLERANCE:g}. The checkpoints are kept; "
            "please report this with the versions of transformers and peft"
        )
    return worst
