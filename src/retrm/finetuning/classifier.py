"""The classifier that is trained: loaded from any language model, with a head of its own, and saved whole.

The head is one linear layer on the last token's last state, in float32 whatever the rest computes in. It
keeps the states that it read, which other terms of a loss need, and holds ODIN's second weight vector, so
that checkpoints, low-rank updates (`modules_to_save`) and sharding take both along without being told.

What is saved is an ordinary sequence classifier: `problem_type` is regression, by which engines leave raw
outputs alone, the pad token ends nothing, and the head of lengths is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from retrm import __version__
from retrm.backbone.quiet import quiet_transformers
from retrm.backbone.render import ChatRenderer
from retrm.errors import BackboneError, OutputError, RecipeError
from retrm.finetuning.reward_losses import overlap
from retrm.scorers.export import set_pad_apart
from retrm.scorers.sequence_classifier import READOUT

HEAD = "score"


class RewardHead(nn.Linear):
    """A score layer in float32 that keeps what it read; with a second weight vector for lengths.

    Attributes:
        length_weight: (1, D) of ODIN's length head, or None.
        states: (rows, tokens, D) of the last forward pass, while training needs them.
        length_scores: (rows, tokens) of the length head in that pass.
        overlap: |cos| of both heads in that pass.
    """

    def __init__(self, width: int, n_outputs: int, *, has_bias: bool, has_length: bool) -> None:
        super().__init__(width, n_outputs, bias=has_bias)
        self.length_weight = nn.Parameter(torch.zeros(1, width)) if has_length else None
        self.keeps_states = False
        self.states: Tensor | None = None
        self.length_scores: Tensor | None = None
        self.overlap: Tensor | None = None

    def forward(self, input: Float[Tensor, "... width"]) -> Float[Tensor, "... outputs"]:
        """Raw outputs at every token."""
        with torch.autocast(input.device.type, enabled=False):
            states = input.float()
            bias = None if self.bias is None else self.bias.float()
            if self.keeps_states:
                self.states = states
            if self.length_weight is not None:
                self.length_scores = functional.linear(states, self.length_weight).squeeze(-1)
                self.overlap = overlap(self.length_weight, self.weight[0])
            return functional.linear(states, self.weight.float(), bias)


@dataclass(frozen=True)
class Classifier:
    """A model that is ready to be trained.

    Attributes:
        model: of transformers, with a `RewardHead`.
        tokenizer: with a pad token of its own.
        has_new_head: whether the head starts from new weights.
        has_new_pad: whether the pad token was added.
    """

    model: Any
    tokenizer: Any
    has_new_head: bool
    has_new_pad: bool


def load_tokenizer(folder: Path) -> tuple[Any, bool]:
    """The tokenizer with a pad token that ends nothing, and whether that was added.

    Raises:
        BackboneError: it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # All of them: tokenizers, written in Rust, raise no errors of a common kind.
        raise BackboneError(f"{folder} has no tokenizer that can be read: {error}") from error
    has_new_pad = set_pad_apart(tokenizer, ChatRenderer(tokenizer).end_ids)
    tokenizer.padding_side = "right"
    return tokenizer, has_new_pad


def load_classifier(
    folder: Path, *, n_outputs: int = 1, std: float = 0.0, has_length: bool = False, seed: int = 0
) -> Classifier:
    """A language model, or a reward model to go on with, as a classifier that can be trained.

    Args:
        folder: as save_pretrained writes it.
        n_outputs: numbers for an answer.
        std: of the weights of a new head; 0 = all scores are equal at first.
        has_length: whether a second head learns lengths.
        seed: of new weights.

    Raises:
        BackboneError: it cannot be loaded, lacks weights, or its head has another number of outputs.
        RecipeError: the family has no sequence classifier with one linear layer.
    """
    tokenizer, has_new_pad = load_tokenizer(folder)
    model, missing = _load(folder, n_outputs)
    old = getattr(model, HEAD, None)
    if not isinstance(old, nn.Linear):
        raise RecipeError(
            f"{type(model).__name__} has no linear layer {HEAD!r}, so it is no reward model; take a decoder "
            "such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2"
        )
    is_new = f"{HEAD}.weight" in missing
    lacking = sorted(key for key in missing if not key.startswith(f"{HEAD}."))
    if lacking:
        raise BackboneError(
            f"the checkpoint in {folder} lacks {len(lacking)} weights that the model needs, "
            f"{', '.join(lacking[:3])} among them; they would be random. Restore it, or take another one"
        )
    head = RewardHead(
        old.in_features, n_outputs, has_bias=old.bias is not None, has_length=has_length
    )
    _start(head, old, is_new=is_new, std=std, seed=seed)
    setattr(model, HEAD, head)
    _make_room(model, tokenizer.pad_token_id)
    return Classifier(model, tokenizer, is_new, has_new_pad)


def _load(folder: Path, n_outputs: int) -> tuple[Any, set[str]]:
    from transformers import AutoModelForSequenceClassification

    try:
        with quiet_transformers():
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=n_outputs,
                dtype=torch.float32,
                output_loading_info=True,
                local_files_only=True,
            )
    except Exception as error:
        # All of them: safetensors, written in Rust, raises no errors of a common kind.
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise BackboneError(
            f"transformers cannot load {folder} as a classifier with {n_outputs} output(s): "
            f"{said[0][:300]}. Expected a language model, or a reward model with as many outputs"
        ) from error
    wrong = sorted(str(key) for key in info["mismatched_keys"])
    if wrong:
        raise BackboneError(
            f"the checkpoint in {folder} is of another size than its config says: {', '.join(wrong[:3])}. "
            "Restore it, or take another one"
        )
    return model, {str(key) for key in info["missing_keys"]}


@torch.no_grad()
def _start(head: RewardHead, old: nn.Linear, *, is_new: bool, std: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    if is_new:
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * std)
        if head.bias is not None:
            head.bias.zero_()
    else:
        head.weight.copy_(old.weight)
        if head.bias is not None:
            head.bias.copy_(old.bias)
    if head.length_weight is not None:
        # Weights as large as those of the other head, so that neither starts with all of the score.
        size = std or float(head.weight.std())
        head.length_weight.copy_(torch.randn(head.length_weight.shape, generator=generator) * size)


@torch.no_grad()
def _make_room(model: Any, pad_id: int) -> None:
    """A row of the embedding for the pad token, and the pad token in the config."""
    table = model.get_input_embeddings().weight
    n_rows = table.shape[0]
    if pad_id >= n_rows:
        mean = table.double().mean(0).to(table.dtype)
        with quiet_transformers():
            model.resize_token_embeddings(pad_id + 1, mean_resizing=False)
        # Any finite row would do: padding is masked and never read.
        model.get_input_embeddings().weight[n_rows:] = mean
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = pad_id


def reward_heads(model: nn.Module) -> list[RewardHead]:
    """The score layers of a model; with low-rank updates, the one that is trained comes last."""
    return [module for module in model.modules() if isinstance(module, RewardHead)]


def take_length_weight(model: nn.Module) -> Float[Tensor, "1 width"] | None:
    """The weights of the length head, which is then gone: what is saved scores without it."""
    found = None
    for head in reward_heads(model):
        if head.length_weight is not None:
            found = head.length_weight.detach().cpu().clone()
            head.length_weight = None
    return found


def describe(config: Any, *, n_outputs: int, readout: Mapping[str, Any] | None) -> None:
    """Say in a config what its outputs are, so that engines and our scorer read them right."""
    config.num_labels = n_outputs
    config.id2label = {i: HEAD if n_outputs == 1 else f"{HEAD}_{i}" for i in range(n_outputs)}
    config.label2id = {name: i for i, name in config.id2label.items()}
    config.problem_type = "regression"  # engines squash a single label by a sigmoid otherwise
    config.retrm_version = __version__
    if readout is not None:
        setattr(config, READOUT, dict(readout))


def save_classifier(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write an ordinary sequence classifier with its tokenizer.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with quiet_transformers():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except OSError as error:
        raise OutputError(
            f"could not write the reward model to {folder}: {error}. Free space and run again: the "
            "training goes on from its last checkpoint"
        ) from error


def save_updates(model: Any, tokenizer: Any, folder: Path, *, base: str) -> None:
    """Write low-rank updates and the head, with the name of the model that they belong to.

    Raises:
        OutputError: they cannot be written.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
        config.inference_mode = True
    try:
        with quiet_transformers():
            model.save_pretrained(folder, save_embedding_layers=False)
            model.config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except OSError as error:
        raise OutputError(
            f"could not write the low-rank updates to {folder}: {error}. Free space and run again"
        ) from error
