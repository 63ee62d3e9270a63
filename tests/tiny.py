"""Random tiny models and a byte-level tokenizer, built in memory: nothing downloads.

`tiny_tokenizer` has 256 byte tokens and the special tokens below, so every text has a known id
sequence. `tiny_model` builds any family of `FAMILIES` from its config with seeded weights;
`save_tiny` writes both into a folder as a user would have it on disk.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB_SIZE = 272  # rows of the LM head: more than the tokenizer has, as in most real models
WIDTH = 16
N_LAYERS = 3
CONTEXT = 256
PAD, BOS, EOS, START, END = "<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_GATED = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
_PLAIN = {k: v for k, v in _GATED.items() if k != "num_key_value_heads"}
_WINDOW = {"sliding_window": 8, "head_dim": 8}

FAMILIES: dict[str, dict] = {
    "llama": {"model_type": "llama", **_GATED},
    "mistral": {"model_type": "mistral", **_GATED, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", **_GATED},
    "qwen3": {"model_type": "qwen3", **_GATED, "head_dim": 8},
    "gemma": {"model_type": "gemma", **_GATED, "head_dim": 8},
    "gemma2": {"model_type": "gemma2", **_GATED, **_WINDOW},
    "gemma3": {"model_type": "gemma3_text", **_GATED, **_WINDOW},
    "phi3": {"model_type": "phi3", **_GATED},
    "phi": {"model_type": "phi", **_PLAIN},
    "olmo2": {"model_type": "olmo2", **_GATED},
    "cohere": {"model_type": "cohere", **_GATED},
    "granite": {"model_type": "granite", **_GATED, "logits_scaling": 4.0},
    "stablelm": {"model_type": "stablelm", **_GATED},
    "gpt_neox": {"model_type": "gpt_neox", **_PLAIN},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": WIDTH,
        "n_layer": N_LAYERS,
        "n_head": 4,
        "n_positions": CONTEXT,
    },
    "opt": {
        "model_type": "opt",
        "hidden_size": WIDTH,
        "ffn_dim": 32,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "word_embed_proj_dim": WIDTH,
    },
}


def tiny_tokenizer(
    folder: Path | None = None, *, has_bos: bool = False, template: str | None = CHATML
) -> PreTrainedTokenizerFast:
    """Bytes 0..255 keep the ids of their byte-level alphabet, then the five special tokens.

    With `has_bos` the post-processor puts `<s>` before every text, as Llama's and Gemma's do.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, BOS, EOS, START, END])
    if has_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS if has_bos else None,
        eos_token=END if template == CHATML else EOS,
        additional_special_tokens=[START, END],
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = template
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def tiny_model(family: str = "llama", *, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A float32 model of `family` with seeded weights in eval mode; `changes` go to the config."""
    options = {"vocab_size": VOCAB_SIZE, "pad_token_id": 256, "bos_token_id": 257}
    options |= {"eos_token_id": 260, **FAMILIES[family], **changes}
    config = CONFIG_MAPPING[options.pop("model_type")](**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # Fresh models have unit gains and zero biases: a reader that forgets them would pass.
        for name, value in model.named_parameters():
            value.data.add_(torch.randn_like(value) * (0.3 if "norm" in name else 0.1))
    return model.eval().requires_grad_(False)


def save_tiny(
    folder: Path, family: str = "llama", *, seed: int = 0, has_bos: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer in `folder`, as a user would have them on disk."""
    model = tiny_model(family, seed=seed)
    model.save_pretrained(folder)
    return model, tiny_tokenizer(folder, has_bos=has_bos)
