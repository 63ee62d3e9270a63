r"""A reward model as an ordinary Hugging Face sequence classifier, where that is exact.

A classifier of transformers reads `w · h` at the last token that is not padding, h = post_norm of the
last layer. A linear head on a subspace with orthonormal rows B is exactly that:

    score = u · (B h) + b = (Bᵀ u) · h + b

Everything else is refused: another pooling, layer, state point, source, head, or rounded features.

The bias b. Nearly all score layers of transformers have none. After a LayerNorm with gain g and bias c
the states obey sum_j (h_j - c_j) / g_j = 0, so that C = sum_j c_j / g_j is a constant of every state
and b folds into the weights exactly: w + (b / C) / g. An RMSNorm has no such direction; there b can
only be dropped, which moves all scores by the same number and changes no ranking, and only when asked.
Heads fitted on pairs have b = 0.

The text. A classifier reads the last token of whatever it is given, so the folder brings a chat
template that writes prompt and answer exactly as the head was fitted on them: `apply_chat_template`
on a conversation that ends with an answer ends with the last judged token (many templates write a
newline behind the end token, which would be read instead). A pad token that is also the end token
would be skipped over; a new one is added then.

Before the folder takes its name it is loaded by AutoModelForSequenceClassification, and its scores
are compared with the reward model's, alone and in padded batches.

Source: identity of ReTRM, section "Inference and export"; the constant of a LayerNorm is our own.
"""

import copy
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from retrm import __version__
from retrm.backbone.base import Rendered, Unembedding
from retrm.backbone.quiet import quiet_transformers
from retrm.backbone.render import PLAIN_TEMPLATE, ChatRenderer
from retrm.errors import ExportError, OutputError, RenderError
from retrm.heads.artifact import Artifact, load_artifact
from retrm.heads.linear import LinearHead
from retrm.records import Answer, Message, Prompt
from retrm.scorers.reward_model import RewardModel

BiasPolicy = Literal["exact", "drop"]

TOLERANCE = 1e-5
"""Largest difference of a score, relative to 1 + its size, that counts as equal."""

PAD_TOKEN = "<|retrm_pad|>"
_MAX_CONSTANT_GROWTH = 1e3  # of the weights, by a bias folded along the constant direction
_INSTEAD = "Use it with retrm score or RewardModel.load instead"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: that `from_pretrained` takes.
        bias: `none` (it was 0), `folded` (into the weights, exact), `layer` (the architecture has
            one) or `dropped`.
        offset: what the folder's scores lack: score = logit + offset; 0 unless the bias was dropped.
        max_error: largest difference that was found, relative to 1 + score, the offset taken out.
        n_checked: answers whose scores were compared.
        pad_token: of the tokenizer in the folder.
        has_new_pad: whether it was added, with a row in the embedding.
    """

    folder: Path
    bias: Literal["none", "folded", "layer", "dropped"]
    offset: float
    max_error: float
    n_checked: int
    pad_token: str
    has_new_pad: bool


@dataclass(frozen=True)
class _Score:
    """The score layer: weight, bias of the layer (None = it has none), and what became of b."""

    weight: Float[Tensor, " width"]
    layer_bias: float | None
    kind: Literal["none", "folded", "layer", "dropped"]
    offset: float


def export_sequence_classifier(
    model: RewardModel, folder: str | Path, *, bias: BiasPolicy = "exact"
) -> Exported:
    """Write `model` as a checkpoint for `AutoModelForSequenceClassification`.

    Args:
        model: with its backbone loaded.
        folder: to be made; it must not exist or be empty.
        bias: `exact` refuses a bias that cannot be folded; `drop` leaves it out (same ranking, all
            scores moved by `offset`, which is stored in config.json as `retrm_bias`).

    Raises:
        ExportError: the scores would not be the same; the message says why and what to use instead.
        OutputError: the folder is not empty or cannot be written.
    """
    if bias not in ("exact", "drop"):
        raise ExportError(f"got bias={bias!r}; expected exact or drop")
    folder = Path(folder)
    _check_target(folder)
    _check_recipe(model.artifact)
    base, classifier_class = _check_architecture(model)
    score = _score_layer(model, classifier_class, bias)
    tokenizer, pad_id, has_new_pad = _tokenizer(model)
    classifier = _classifier(classifier_class, base, score, pad_id, model)
    rendered = _probes(model, tokenizer)
    expected = np.array([float(model.score_rendered([item])[0]) for item in rendered])
    scratch = _scratch(folder)
    try:
        _write(scratch, classifier, tokenizer, pad_id)
        error = _verify(scratch, rendered, expected - score.offset, pad_id)
        _move_into_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Exported(
        folder, score.kind, score.offset, error, len(rendered), tokenizer.pad_token, has_new_pad
    )


# --------------------------------------------------------------------- checks


def check_exportable(folder: str | Path, target: str | Path) -> None:
    """Refuse what cannot be exported before a language model is loaded.

    Raises:
        ArtifactError: `folder` holds no reward model.
        ExportError: it is no linear map of the last token's last state.
        OutputError: `target` is not empty.
    """
    _check_target(Path(target))
    _check_recipe(load_artifact(Path(folder)))


def _check_recipe(artifact: Artifact) -> None:
    """Refuse whatever is no linear map of the last token's post_norm state in float32."""
    recipe, n_layers = artifact.recipe, artifact.backbone.n_layers
    refusals = (
        (
            not isinstance(artifact.head, LinearHead),
            f"its head is {artifact.head.name!r}",
            "linear",
        ),
        (recipe.source != "states", f"it reads {recipe.source}", "source=states"),
        (recipe.pooling != "last", f"it pools by {recipe.pooling!r}", "pooling=last"),
        (recipe.dtype != "float32", f"it rounds features to {recipe.dtype}", "dtype=float32"),
    )
    for is_wrong, what, needed in refusals:
        if is_wrong:
            raise ExportError(_cannot(what, needed))
    if recipe.wanted(n_layers) != ((n_layers, "post_norm"),):
        raise ExportError(
            _cannot(
                f"it reads layers {recipe.layers} at {recipe.point}", "layers=last, point=post_norm"
            )
        )
    if artifact.backbone.dtype != "float32":
        raise ExportError(
            _cannot(
                f"its backbone runs in {artifact.backbone.dtype}, in which a score layer would round",
                "a backbone in float32",
            )
        )


def _cannot(what: str, needed: str) -> str:
    return (
        f"this reward model is no sequence classifier: {what}, while a classifier of transformers "
        f"is a linear map of the last token's last state (needs {needed}). {_INSTEAD}"
    )


def _check_architecture(model: RewardModel) -> tuple[nn.Module, type]:
    """The decoder of the backbone, and the classifier class that is built around such a one."""
    from transformers import PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    causal = getattr(model.backbone, "model", None)
    if not isinstance(causal, PreTrainedModel):
        raise ExportError(
            f"the backbone {model.backbone.name!r} is no transformers model. {_INSTEAD}"
        )
    if not isinstance(model.backbone.renderer, ChatRenderer):
        raise ExportError(f"the backbone {model.backbone.name!r} has no tokenizer. {_INSTEAD}")
    config = causal.config
    try:
        found = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    except KeyError:
        raise ExportError(
            f"transformers has no sequence classifier for the family {config.model_type!r}. "
            f"{_INSTEAD}"
        ) from None
    empty = _empty(found, config)
    inner = getattr(empty, empty.base_model_prefix, None)
    outside = [n for n, _ in empty.named_parameters() if not n.startswith(empty.base_model_prefix)]
    is_plain = set(outside) <= {"score.weight", "score.bias"} and "score.weight" in outside
    if type(inner) is not type(causal.base_model) or not is_plain:
        raise ExportError(
            f"{found.__name__} is not the decoder of {type(causal).__name__} with one linear score "
            f"layer (it has {', '.join(outside) or 'no score layer'}). {_INSTEAD}"
        )
    return causal.base_model, found


def _empty(classifier_class: type, config: Any) -> Any:
    """A classifier with one output and no memory: its weights lie nowhere."""
    made = copy.deepcopy(config)
    made.num_labels = 1
    with torch.device("meta"):
        return classifier_class(made)


# ---------------------------------------------------------------- score layer


def _score_layer(model: RewardModel, classifier_class: type, policy: BiasPolicy) -> _Score:
    """The head as one weight a hidden unit; all folding in float64."""
    head = model.artifact.head
    weight = head.weight.detach().double()
    subspace = model.artifact.bases.get("post_norm")
    if subspace is not None:
        weight = subspace.basis.double().T @ weight
    b = head.bias.detach().item()
    has_bias = _empty(classifier_class, model.backbone.model.config).score.bias is not None
    if has_bias:
        return _Score(weight.float(), b, "layer", 0.0)
    if b == 0:
        return _Score(weight.float(), None, "none", 0.0)
    constant = _constant_direction(model.backbone.unembedding)
    if constant is not None and _is_mild(weight, b * constant):
        return _Score((weight + b * constant).float(), None, "folded", 0.0)
    if policy == "drop":
        return _Score(weight.float(), None, "dropped", b)
    raise ExportError(
        f"the head has the bias {b:.6g}, and {classifier_class.__name__} has no bias to hold it. "
        "Export with bias='drop' (--bias drop): every score then lacks that number, and no "
        "ranking changes. Or fit on pairs, where the bias is 0"
    )


def _constant_direction(head: Unembedding) -> Float[Tensor, " width"] | None:
    """A vector k with k · h = 1 for every post_norm state h, or None (see the module's docstring)."""
    if head.norm_kind != "layer" or head.norm_bias is None:
        return None
    gain = torch.ones_like(head.norm_bias) if head.gain is None else head.gain
    inverse = 1 / gain.double().cpu()
    constant = inverse @ head.norm_bias.double().cpu()
    if not torch.isfinite(inverse).all() or constant == 0:
        return None
    return inverse / constant


def _is_mild(weight: Tensor, added: Tensor) -> bool:
    # Weights a thousand times larger would cost the three digits that the check has to spare.
    return bool(added.norm() <= _MAX_CONSTANT_GROWTH * (1 + weight.norm()))


# ------------------------------------------------------------------ tokenizer


def _tokenizer(model: RewardModel) -> tuple[Any, int, bool]:
    """A copy of the tokenizer with a template that ends at the judged token, and its pad id."""
    renderer = model.backbone.renderer
    tokenizer = copy.deepcopy(renderer.tokenizer)
    has_new_pad = set_pad_apart(tokenizer, renderer.end_ids)
    tokenizer.padding_side = "right"
    tokenizer.chat_template = classifier_template(renderer)
    return tokenizer, tokenizer.pad_token_id, has_new_pad


def set_pad_apart(tokenizer: Any, end_ids: frozenset[int]) -> bool:
    """Give the tokenizer a pad token that ends and begins nothing; whether one was added.

    A classifier reads the last token that is no padding: padding that is also the end of a turn would hide
    that token from it.

    Args:
        tokenizer: changed in place.
        end_ids: that end a turn.

    Raises:
        ExportError: our own pad token is there with another use.
    """
    taken = {*end_ids, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken:
        return False
    if PAD_TOKEN in tokenizer.get_vocab():
        raise ExportError(f"the tokenizer already has {PAD_TOKEN} with another use. {_INSTEAD}")
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    return True


def classifier_template(renderer: ChatRenderer) -> str:
    """A chat template that renders a finished conversation as `renderer` does.

    Conversations that do not end with an answer are rendered by the original template. Otherwise the
    prompt is what the original writes WITH its generation prompt, and the raw answer follows, with
    the end token exactly where it is judged; nothing stands behind it.
    """
    tokenizer = renderer.tokenizer
    original = tokenizer.get_chat_template() if tokenizer.chat_template else PLAIN_TEMPLATE
    end = ""
    if renderer.counts_end and renderer.end_id is not None:
        end = tokenizer.convert_ids_to_tokens(renderer.end_id)
    glue = json.dumps(renderer.glue)
    head = _clock(original) + "".join(
        f"{{%- set {name} = {_literal(value)} %}}"
        for name, value in sorted(renderer.template_options.items())
    )
    # The newline behind a block's first tag is dropped, so the original still begins its own line.
    return (
        f"{head}{{%- macro retrm_prompt(messages, add_generation_prompt) %}}\n"
        f"{original.removesuffix(chr(10))}{{% endmacro %}}\n"
        "{%- if add_generation_prompt or not messages or messages[-1].role != 'assistant' %}"
        f"{{{{- {json.dumps(_prefix(renderer))} }}}}"
        "{{- retrm_prompt(messages, add_generation_prompt | default(false)) }}"
        "{%- else %}"
        "{%- set retrm_answer = messages[-1].content %}"
        f"{{{{- {json.dumps(_prefix(renderer))} }}}}"
        "{{- retrm_prompt(messages[:-1], true) }}"
        f"{{{{- {glue} if retrm_answer and retrm_answer[0] not in ' \\n\\t\\r' else '' }}}}"
        "{{- retrm_answer }}"
        f"{{{{- {json.dumps(end)} }}}}"
        "{%- endif %}"
    )


def _clock(template: str) -> str:
    """The renderer's fixed date, in a template that asks for one."""
    if "strftime_now" not in template:
        return ""
    from retrm.backbone.render import FIXED_CLOCK

    return FIXED_CLOCK.removesuffix("\n")


def _literal(value: Any) -> str:
    names = {True: "true", False: "false", None: "none"}
    return names[value] if value is None or isinstance(value, bool) else json.dumps(value)


def _prefix(renderer: ChatRenderer) -> str:
    """Special tokens that the renderer puts before the template's text."""
    tokenizer = renderer.tokenizer
    first = renderer.render_prompt(Prompt.of("a"))
    template = tokenizer.get_chat_template() if tokenizer.chat_template else PLAIN_TEMPLATE
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}],
        chat_template=_clock(template) + template,
        add_generation_prompt=True,
        tokenize=False,
        **renderer.template_options,
    )
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    return "".join(tokenizer.convert_ids_to_tokens(list(first[: len(first) - len(bare)])))


# -------------------------------------------------------------------- writing


def _classifier(
    classifier_class: type, base: nn.Module, score: _Score, pad_id: int, model: RewardModel
) -> Any:
    """The classifier around the backbone's own decoder: no weight is copied."""
    config = copy.deepcopy(model.backbone.model.config)
    config.num_labels = 1
    config.id2label, config.label2id = {0: "score"}, {"score": 0}
    config.problem_type = "regression"
    text = config.get_text_config()
    text.pad_token_id = config.pad_token_id = pad_id
    text.vocab_size = max(base.get_input_embeddings().weight.shape[0], pad_id + 1)
    config.retrm_version = __version__
    config.retrm_method = model.artifact.method
    config.retrm_bias = score.offset
    classifier = _empty(classifier_class, config)
    classifier.config = config
    setattr(classifier, classifier.base_model_prefix, base)
    layer = nn.Linear(len(score.weight), 1, bias=score.layer_bias is not None)
    layer.weight.data = score.weight[None].clone()
    if score.layer_bias is not None:
        layer.bias.data = torch.tensor([score.layer_bias])
    classifier.score = layer
    return classifier.eval()


def _write(scratch: Path, classifier: Any, tokenizer: Any, pad_id: int) -> None:
    """Weights, config, tokenizer; the embedding gets a row for a pad token that it lacks."""
    weights = {name: value.detach().cpu() for name, value in classifier.state_dict().items()}
    table = classifier.get_input_embeddings().weight
    n_lacking = pad_id + 1 - table.shape[0]
    if n_lacking > 0:
        name = next(n for n, p in classifier.named_parameters() if p is table)
        # The mean row: any finite one would do, since padding is masked and never read.
        row = table.detach().cpu().double().mean(0, keepdim=True).to(table.dtype)
        weights[name] = torch.cat([weights[name], row.expand(n_lacking, -1)])
    try:
        with quiet_transformers():
            classifier.save_pretrained(scratch, state_dict=weights)
            tokenizer.save_pretrained(scratch)
    except OSError as error:
        raise OutputError(
            f"could not write the export: {error}. Free space and try again"
        ) from error


def _check_target(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder} exists and is not an empty folder; expected a new one for the export. "
            "Choose another name or remove it"
        )


def _scratch(folder: Path) -> Path:
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent)
    except OSError as error:
        raise OutputError(f"cannot write beside {folder}: {error.strerror or error}") from error
    return Path(made)


def _move_into_place(scratch: Path, folder: Path) -> None:
    try:
        scratch.chmod(0o755)
        for file in scratch.iterdir():  # safetensors writes its files for the owner only
            file.chmod(0o644)
        if folder.exists():
            folder.rmdir()
        scratch.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot move the export to {folder}: {error.strerror}") from error


# ------------------------------------------------------------------ verifying


def _conversations() -> tuple[Answer, ...]:
    """Texts of several lengths; what a classifier is asked to score."""
    sums = Prompt.of("What is 3 + 4?")
    turns = Prompt(
        (
            Message("user", "Pick a number."),
            Message("assistant", "I pick 12."),
            Message("user", "Double it."),
        )
    )
    pairs = (
        (sums, "7"),
        (sums, "3 + 4 = 7, so the answer is 7."),
        (sums, "I would say eight.\nOr nine?"),
        (turns, "2 × 12 = 24"),
    )
    return tuple(Answer(prompt, text, prompt.key) for prompt, text in pairs)


def _probes(model: RewardModel, tokenizer: Any) -> list[Rendered]:
    """Token ids to compare scores on: the self-test, and texts rendered as a user would.

    Raises:
        ExportError: `apply_chat_template` gives other ids than the head was fitted on.
    """
    rendered = [item.rendered for item in model.artifact.selftest]
    for answer in _conversations():
        try:
            made = model.backbone.renderer.render(answer)
        except RenderError:
            continue  # a template without earlier assistant turns
        messages = [message.as_dict() for message in answer.prompt.messages]
        messages.append({"role": "assistant", "content": answer.response})
        got = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        if tuple(got) != made.ids[: made.stop]:
            raise ExportError(
                f"the chat template cannot be written so that apply_chat_template ends where the "
                f"head reads: {answer.response!r} became {list(got)[-6:]}, expected "
                f"{list(made.ids[: made.stop])[-6:]} at its end. {_INSTEAD}"
            )
        rendered.append(made)
    return rendered


def _verify(folder: Path, rendered: Sequence[Rendered], expected: np.ndarray, pad_id: int) -> float:
    """Largest relative difference of the written checkpoint's scores, alone and in padded batches.

    Raises:
        ExportError: above the tolerance.
    """
    from transformers import AutoModelForSequenceClassification

    with quiet_transformers():
        loaded = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        ).eval()
    got = [_logits(loaded, [item.ids[: item.stop] for item in rendered], pad_id)]
    got.append(np.concatenate([_logits(loaded, [r.ids[: r.stop]], pad_id) for r in rendered[:2]]))
    worst = max(
        float((np.abs(g - e) / (1 + np.abs(e))).max())
        for g, e in ((got[0], expected), (got[1], expected[:2]))
    )
    if not worst <= TOLERANCE:
        raise ExportError(
            f"the exported checkpoint gives other scores: they differ by {worst:.2e} relative to "
            f"1 + |score|, expected at most {TOLERANCE:g}. Nothing was written. {_INSTEAD}"
        )
    return worst


@torch.inference_mode()
def _logits(loaded: Any, rows: Sequence[Sequence[int]], pad_id: int) -> np.ndarray:
    """Scores of token ids, padded on the right to one batch."""
    n = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_id] * (n - len(row))] for row in rows])
    keep = torch.tensor([[1] * len(row) + [0] * (n - len(row)) for row in rows])
    return loaded(input_ids=ids, attention_mask=keep).logits[:, 0].double().numpy()
