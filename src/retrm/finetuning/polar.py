"""Training of policy discriminators: pre-training on policies, fine-tuning on ranked answers.

    loss = -log sigmoid( r(prompt, reference, chosen) - r(prompt, reference, rejected) ), mean over rows

Both stages have this loss; what differs is who wrote the texts (`retrm.finetuning.comparisons`). The head is a
linear map without bias, zero where the model brings none, so that every score is 0 and the loss ln 2 before the
first step. A model that does not know the two tokens of the template gets them, with the mean embedding.

Source: arXiv 2507.05197 and the published training configs: AdamW with betas 0.9 and 0.95, no weight decay,
gradients clipped at 1, warm-up over 3 % of the steps, cosine to a tenth of the rate.

Costs 6 x parameters x tokens of arithmetic, and for all weights in float32 16 bytes a parameter.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrm.backbone.load import DTYPES, model_folder
from retrm.backbone.quiet import quiet_transformers
from retrm.backbone.reference import END, SEPARATOR, Compared, ReferenceLimits, ReferenceTemplate
from retrm.backbone.resolve import resolve_model
from retrm.errors import ArtifactError, BackboneError, DataError, OverlongError, RecipeError
from retrm.files import write_json
from retrm.finetuning.classifier import load_classifier
from retrm.finetuning.comparisons import Comparison, Split
from retrm.finetuning.discrimination import Discrimination, discrimination
from retrm.finetuning.language_model import LoraOptions, check_trainers, versions
from retrm.finetuning.run_folder import RunFolder
from retrm.finetuning.sft import check_batches
from retrm.losses import bradley_terry
from retrm.pair_options import PLAIN, PairOptions
from retrm.records import check_overlong
from retrm.scorers.polar import (
    PolarScorer,
    last_scores,
    load_discriminator,
    pad_id_of,
    padded,
    polar_folder,
    write_mark,
)

FLOPS_A_TOKEN = 6  # forward and backward, for each parameter (Kaplan et al., arXiv 2001.08361)


@dataclass(frozen=True, kw_only=True)
class PolarOptions:
    """How rows are trained on.

    Attributes:
        epochs: times that every row is seen; the paper takes 1 in both stages, more over-fits.
        learning_rate: highest. Published: 1.4e-5 (1.8B, pre-training), 1e-5 (1.8B, fine-tuning); models of
            0.1B take five times that, low-rank updates ten times.
        batch_size: rows an update.
        device_batch: of them, how many go through the model at once; each is two texts.
        max_length: tokens of a whole text; None = 1,024, or less where the context is shorter.
        max_response: tokens of the reference and of a candidate; None = a quarter of `max_length`.
        overlong: rows beyond the limits: `truncate_left` = cut by the rules of the template (counted),
            `skip` = left out (counted), `error`.
        warmup: share of the steps in which the rate rises.
        save_steps: updates between two checkpoints.
        eval_steps: updates between two measurements on the test rows; 0 = only at the end.
        seed: of the order, and of low-rank updates.
    """

    epochs: float = 1.0
    learning_rate: float = 1e-5
    batch_size: int = 32
    device_batch: int = 4
    max_length: int | None = None
    max_response: int | None = None
    overlong: str = "truncate_left"
    warmup: float = 0.03
    save_steps: int = 50
    eval_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs <= 0 or self.learning_rate <= 0 or not 0 <= self.warmup < 1:
            raise RecipeError(
                f"got epochs={self.epochs}, learning_rate={self.learning_rate} and warmup={self.warmup}; "
                "expected the first two above 0 and warmup from 0 to below 1"
            )
        if self.save_steps < 1 or self.eval_steps < 0:
            raise RecipeError(
                f"got save_steps={self.save_steps} and eval_steps={self.eval_steps}; expected 1 and 0 at least"
            )
        check_batches(self.batch_size, self.device_batch)
        check_overlong(self.overlong)


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of both texts of a row.

    Attributes:
        chosen: of the text with the chosen candidate.
        rejected: of the other one.
        place: of the row in what was given.
    """

    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    place: int

    @property
    def n_tokens(self) -> int:
        """Of both."""
        return len(self.chosen) + len(self.rejected)


def encode_rows(
    rows: Sequence[Comparison], template: ReferenceTemplate, overlong: str
) -> tuple[list[EncodedRow], dict[str, int]]:
    """Rows as token ids, and how many were cut or left out.

    Raises:
        OverlongError: a row is too long and `overlong` is "error", or no room is left for its prompt.
    """
    made: list[EncodedRow] = []
    counts = {"cut": 0, "skipped": 0}
    for place, row in enumerate(rows):
        pair = _pair(row, template, overlong)
        if pair is None:
            counts["skipped"] += 1
            continue
        counts["cut"] += pair[0].is_cut or pair[1].is_cut
        made.append(EncodedRow(pair[0].ids, pair[1].ids, place))
    return made, counts


def _pair(
    row: Comparison, template: ReferenceTemplate, overlong: str
) -> tuple[Compared, Compared] | None:
    try:
        pair = template.compare_pair(row.prompt, row.reference, row.chosen, row.rejected)
    except OverlongError as error:
        if overlong == "skip":
            return None
        raise OverlongError(f"{row.where}: {error}") from error
    is_cut = pair[0].is_cut or pair[1].is_cut
    if not is_cut or overlong == "truncate_left":
        return pair
    if overlong == "skip":
        return None
    limits = template.limits
    raise OverlongError(
        f"{row.where}: prompt, reference or a candidate is longer than max_length={limits.max_length} and "
        f"max_response={limits.max_response} allow. Use overlong truncate_left (POLAR's rule) or skip, or "
        "raise them"
    )


def open_for_training(
    name: str, *, limits: ReferenceLimits | None, dtype: str = "float32"
) -> tuple[Any, ReferenceTemplate, bool]:
    """A model with a head, its template, and whether it was a discriminator before.

    Args:
        name: a discriminator (folder of a run, or published), or any language model that retrm knows.
        limits: on lengths; None = those of the discriminator, or 1,024 tokens.
        dtype: float32 or bfloat16.

    Raises:
        BackboneError: the model will not do.
    """
    try:
        folder = polar_folder(name) if Path(name).exists() else None
    except ArtifactError:
        folder = None
    if folder is not None:
        model, tokenizer, mark = load_discriminator(folder, dtype=dtype)
        limits = limits or ReferenceLimits(mark["max_length"], mark["max_response"])
        template = ReferenceTemplate(
            tokenizer, separator=mark["separator"], end=mark["end"], limits=limits
        )
        return _ready(model, template), template, True
    model, tokenizer = _fresh(name, dtype)
    longest = getattr(model.config, "max_position_embeddings", None) or 1024
    template = ReferenceTemplate(
        tokenizer, limits=limits or ReferenceLimits.within(min(1024, longest))
    )
    return _ready(model, template), template, False


def _ready(model: Any, template: ReferenceTemplate) -> Any:
    """The model with an id for padding that pooling does not take for END."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and template.limits.max_length > longest:
        raise RecipeError(
            f"got max_length={template.limits.max_length}; the model takes {longest} tokens. Lower max_length"
        )
    model.config.pad_token_id = pad_id_of(template.tokenizer, template.end_id)
    model.config.problem_type = "regression"  # engines then leave scores raw
    return model


def _fresh(name: str, dtype: str) -> tuple[Any, Any]:
    """A language model with a head of zeros, and the tokens of the template."""
    if dtype not in DTYPES:
        raise BackboneError(f"got dtype={dtype!r}; expected one of {', '.join(DTYPES)}")
    source = resolve_model(name)
    if source.kind == "fake":
        raise BackboneError("got the toy backbone, which cannot be trained; name a real model")
    made = load_classifier(model_folder(source, lambda _: None))
    _add_tokens(made.model, made.tokenizer)
    return made.model.to(DTYPES[dtype]), made.tokenizer


def _add_tokens(model: Any, tokenizer: Any) -> None:
    """The two tokens of the template, with the mean of all embeddings."""
    new = [
        token
        for token in (SEPARATOR, END)
        if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1
    ]
    if not new:
        return
    n_known = len(tokenizer)
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                *(getattr(tokenizer, "additional_special_tokens", None) or ()),
                *new,
            ]
        }
    )
    embedding = model.get_input_embeddings()
    mean = embedding.weight.detach()[:n_known].float().mean(dim=0)
    if len(tokenizer) > embedding.num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        embedding = model.get_input_embeddings()
    with torch.no_grad():
        for token in new:
            embedding.weight[tokenizer.convert_tokens_to_ids(token)] = mean.to(
                embedding.weight.dtype
            )


def collate(rows: Sequence[EncodedRow], end_id: int, pad_id: int) -> dict[str, Tensor]:
    """A batch: first all chosen texts, then all rejected ones, padded on the left.

    Returns:
        `input_ids` and `attention_mask`, (2 B, T).
    """
    texts = [*(row.chosen for row in rows), *(row.rejected for row in rows)]
    ids, mask = padded(texts, end_id, pad_id)
    return {"input_ids": ids, "attention_mask": mask}


def batch_loss(
    model: torch.nn.Module, batch: Mapping[str, Tensor], options: PairOptions = PLAIN
) -> Tensor:
    """The loss of a batch of `collate`."""
    scores = last_scores(model, batch["input_ids"], batch["attention_mask"]).float()
    chosen, rejected = scores.chunk(2)
    return bradley_terry(chosen, rejected, options=options)


def train_polar(
    rows: Split,
    model: str,
    folder: RunFolder,
    *,
    options: PolarOptions | None = None,
    lora: LoraOptions | None = None,
    loss_options: PairOptions = PLAIN,
    dtype: str = "float32",
    device: str = "cpu",
) -> dict[str, Any]:
    """Train, measure and write a discriminator; a killed run goes on from its last checkpoint.

    Args:
        rows: to train on, and to measure with.
        model: a language model (pre-training begins), or a discriminator (it goes on, or is fine-tuned).
        folder: of the run.
        options: of the training.
        lora: low-rank updates; None = all weights. The head and the two tokens are trained in any case.
        loss_options: additions to the loss; POLAR uses none.
        dtype: float32 or bfloat16.
        device: cpu, cuda, ...

    Returns:
        Facts of the run: rows, tokens, parameters, arithmetic, seconds, losses, accuracies.

    Raises:
        ArtifactError: the folder holds another run.
        BackboneError: the model will not do.
        DataError: no row is left to train on.
        MissingExtraError: trl, accelerate or peft is missing.
        OverlongError: a row is too long under `overlong` = error.
    """
    options, lora = options or PolarOptions(), lora or LoraOptions()
    check_trainers()
    limits = None
    if options.max_length is not None:
        limits = ReferenceLimits.within(options.max_length, options.max_response)
    elif options.max_response is not None:
        raise RecipeError("got max_response without max_length; expected both, or max_length alone")
    folder.begin(_config(rows, model, options, lora, loss_options, dtype))
    if folder.is_done:
        return folder.facts()
    network, template, was_discriminator = open_for_training(model, limits=limits, dtype=dtype)
    encoded, counts = encode_rows(rows.train, template, options.overlong)
    if not encoded:
        raise DataError(
            f"none of {len(rows.train)} rows is left to train on (overlong {options.overlong}); raise "
            "max_length or use truncate_left"
        )
    n_parameters = sum(p.numel() for p in network.parameters())
    torch.manual_seed(options.seed)
    network = _with_updates(network.to(torch.device(device)), template, lora)
    from retrm.finetuning.polar_trainer import run_trainer

    started, on_processor = time.monotonic(), time.process_time()
    state = run_trainer(
        network,
        encoded,
        encode_rows(rows.test, template, "truncate_left")[0],
        template,
        folder,
        options=options,
        loss_options=loss_options,
        dtype=dtype,
        device=device,
    )
    seconds = time.monotonic() - started
    n_tokens = round(sum(row.n_tokens for row in encoded) * state.epochs)
    facts = {
        "steps": state.steps,
        "resumed_at": state.resumed_at,
        "seconds": round(seconds, 1),
        "processor_seconds": round(time.process_time() - on_processor, 1),
        "rows": {"train": len(encoded), "test": len(rows.test), "held_out": len(rows.held_out)},
        "overlong": counts,
        "n_parameters": n_parameters,
        "n_trained": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "was_discriminator": was_discriminator,
        "n_tokens": n_tokens,
        "flops": float(FLOPS_A_TOKEN * n_parameters * n_tokens),
        "max_length": template.limits.max_length,
        "max_response": template.limits.max_response,
        "loss": [row["loss"] for row in folder.metrics() if "loss" in row],
        "versions": versions(),
    }
    scorer = PolarScorer(_saved(network, template, folder), template, name=folder.path.name)
    facts |= _measured(rows, scorer, folder)
    folder.finish(facts)
    return facts


def _config(
    rows: Split,
    model: str,
    options: PolarOptions,
    lora: LoraOptions,
    loss_options: PairOptions,
    dtype: str,
) -> dict[str, Any]:
    from retrm.finetuning.comparisons import Comparisons

    return {
        "kind": "polar",
        "model": model,
        "train_sha": Comparisons(rows.train, {}).sha,
        "test_sha": Comparisons(rows.test, {}).sha,
        "held_out_sha": Comparisons(rows.held_out, {}).sha,
        "options": asdict(options),
        "lora": asdict(lora),
        "loss_options": loss_options.changes(),
        "dtype": dtype,
    }


def _with_updates(model: Any, template: ReferenceTemplate, lora: LoraOptions) -> Any:
    """All weights to be trained, or low-rank updates with the head and the two tokens."""
    if lora.rank == 0:
        return model.requires_grad_(True)
    from peft import LoraConfig, TaskType, get_peft_model

    name = next(
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if module is model.get_input_embeddings()
    )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha if lora.alpha is not None else 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules="all-linear",
        exclude_modules=["score"],
        modules_to_save=["score"],
        trainable_token_indices={name: [template.separator_id, template.end_id]},
        task_type=TaskType.SEQ_CLS,
    )
    return get_peft_model(model, config)


def _saved(model: Any, template: ReferenceTemplate, folder: RunFolder) -> Any:
    """Write model, tokenizer and template; the model as it was written, for scoring."""
    if hasattr(model, "merge_and_unload"):
        model.save_pretrained(folder.path / "adapter")
        model = model.merge_and_unload()
    model.eval()
    with quiet_transformers():
        model.save_pretrained(folder.model)
    template.tokenizer.save_pretrained(folder.model)
    write_mark(folder.model, template)
    return model


def _measured(rows: Split, scorer: PolarScorer, folder: RunFolder) -> dict[str, Any]:
    """Accuracies on what was not trained on; also written beside the run."""
    found: dict[str, Discrimination] = {}
    for name, part in (("test", rows.test), ("held_out", rows.held_out)):
        if part:
            found[name] = measure(part, scorer)
    if found:
        plain = {name: one.as_dict() for name, one in found.items()}
        write_json(folder.path / "discrimination.json", plain)
    return {f"{name}_loss": one.loss for name, one in found.items()} | {
        f"{name}_accuracy": one.overall.value for name, one in found.items()
    }


def measure(rows: Sequence[Comparison], scorer: PolarScorer) -> Discrimination:
    """Figures of a discriminator on rows, which are cut by the rules of its template.

    Raises:
        OverlongError: no room is left for a prompt.
        ScoreError: a score is not finite.
    """
    encoded, _ = encode_rows(rows, scorer.template, "truncate_left")
    n = len(encoded)
    scores = scorer.score_ids([*(r.chosen for r in encoded), *(r.rejected for r in encoded)])
    return discrimination(rows, scores[:n], scores[n:])


def paper_schedule(
    n_millions: float, backbone_billions: float, tokens_billions: float
) -> tuple[float, float]:
    """Learning rate and batch (rows) by the paper's scaling rule.

    lr = 0.0002306 N^0.01125 D_p^-0.66587 D_rm^0.33916, batch = 31.9032 N^0.06944 D_rm^0.52997. Fitted on
    models of 116M to 924M; meaningless for millions of tokens.

    Args:
        n_millions: N, parameters in millions.
        backbone_billions: D_p, tokens that the language model was trained on, in billions.
        tokens_billions: D_rm, tokens of the pre-training of the discriminator, in billions.

    >>> lr, batch = paper_schedule(1800, 2500, 940)
    >>> round(lr * 1e5, 3), round(batch)
    (1.397, 2021)
    """
    n, d_p, d_rm = (float(v) for v in (n_millions, backbone_billions, tokens_billions))
    if not all(math.isfinite(v) and v > 0 for v in (n, d_p, d_rm)):
        raise RecipeError(f"got {n}, {d_p} and {d_rm}; expected three numbers above 0")
    rate = 0.0002306 * n**0.01125 * d_p**-0.66587 * d_rm**0.33916
    return rate, 31.9032 * n**0.06944 * d_rm**0.52997


__all__ = [
    "EncodedRow",
    "PolarOptions",
    "batch_loss",
    "collate",
    "encode_rows",
    "measure",
    "open_for_training",
    "paper_schedule",
    "train_polar",
]
