"""A tiny random model of every family: `FAMILIES[name]()` gives a float32 causal LM in eval mode.

Gains, biases and weights are drawn anew with noise, since fresh models have unit gains and zero
biases and a reader that forgets them would pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from retrm.backbone.base import Fingerprint
from retrm.backbone.states import TransformersBackbone

VOCAB_SIZE = 101
CONTEXT = 64
WIDTH = 32
N_LAYERS = 3

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}
_HEADS: dict[str, Any] = {**_GROUPED, "head_dim": 8}
_EXPERTS: dict[str, Any] = {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_EXPERTS: dict[str, Any] = {
    **_GROUPED,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
# Shorter than the rows of the tests, so that a forgotten window shows.
_WINDOW: dict[str, Any] = {"sliding_window": 6}


def build(
    model_type: str, *, seed: int = 0, attention: str = "", **options: Any
) -> PreTrainedModel:
    """A model of `model_type` with seeded noise on every weight, gain and bias."""
    config = AutoConfig.for_model(model_type, **options)
    extra = {"attn_implementation": attention} if attention else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **extra)
        for name, value in model.named_parameters():
            # State-space time constants are far from zero; their scale has to stay.
            size = 0.02 if "A_log" in name or "time_" in name else 0.15
            value.data.add_(torch.randn(value.shape) * (0.4 if value.ndim == 1 else 1) * size * 2)
    return model.eval().requires_grad_(False)


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": partial(build, "llama", **_GROUPED),
    "llama-tied": partial(build, "llama", **_GROUPED, tie_word_embeddings=True),
    "qwen2": partial(build, "qwen2", **_GROUPED),
    "qwen2-window": partial(
        build, "qwen2", **_GROUPED, **_WINDOW, **_MIXED, use_sliding_window=True
    ),
    "qwen3": partial(build, "qwen3", **_HEADS),
    "gemma": partial(build, "gemma", **_HEADS),
    "gemma2": partial(build, "gemma2", **_HEADS, **_WINDOW, final_logit_softcapping=3.0),
    "gemma3": partial(build, "gemma3_text", **_HEADS, **_WINDOW, **_MIXED),
    "mistral": partial(build, "mistral", **_GROUPED, **_WINDOW),
    "mistral-eager": partial(build, "mistral", **_GROUPED, **_WINDOW, attention="eager"),
    "ministral": partial(build, "ministral", **_HEADS, **_WINDOW, **_MIXED),
    "phi3": partial(build, "phi3", **_GROUPED, sliding_window=None),
    "phi3-window": partial(build, "phi3", **_GROUPED, **_WINDOW),
    "phi": partial(build, "phi", **_GROUPED),
    "olmo": partial(build, "olmo", **_GROUPED),
    "olmo2": partial(build, "olmo2", **_GROUPED),
    "olmo3": partial(build, "olmo3", **_GROUPED, **_WINDOW, **_MIXED),
    "smollm3": partial(build, "smollm3", **_GROUPED),
    "starcoder2": partial(build, "starcoder2", **_GROUPED, **_WINDOW),
    "gpt2": partial(
        build,
        "gpt2",
        vocab_size=VOCAB_SIZE,
        n_embd=WIDTH,
        n_layer=N_LAYERS,
        n_head=4,
        n_positions=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "gpt_neox": partial(build, "gpt_neox", **_SIZES),
    "opt": partial(
        build,
        "opt",
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        pad_token_id=0,
    ),
    "falcon": partial(build, "falcon", **_SIZES, alibi=False, parallel_attn=True),
    "falcon-new": partial(
        build, "falcon", **_SIZES, alibi=False, new_decoder_architecture=True, num_kv_heads=2
    ),
    "falcon-alibi": partial(build, "falcon", **_SIZES, alibi=True, parallel_attn=False),
    "mixtral": partial(build, "mixtral", **_EXPERTS, **_WINDOW),
    "qwen2_moe": partial(build, "qwen2_moe", **_QWEN_EXPERTS),
    "qwen3_moe": partial(build, "qwen3_moe", **_QWEN_EXPERTS, head_dim=8),
    "granite": partial(build, "granite", **_GROUPED, logits_scaling=4.0, embedding_multiplier=3.0),
    "cohere": partial(build, "cohere", **_GROUPED, logit_scale=0.25),
    "cohere2": partial(build, "cohere2", **_HEADS, **_WINDOW, **_MIXED, logit_scale=0.25),
    "mamba": partial(
        build,
        "mamba",
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        num_hidden_layers=N_LAYERS,
        state_size=4,
        pad_token_id=0,
    ),
    "rwkv": partial(
        build,
        "rwkv",
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        attention_hidden_size=WIDTH,
        num_hidden_layers=N_LAYERS,
        intermediate_size=48,
        context_length=CONTEXT,
        rescale_every=2,
    ),
}

UNLISTED: dict[str, Callable[..., PreTrainedModel]] = {
    "stablelm": partial(build, "stablelm", **_GROUPED),
    "glm": partial(build, "glm", **_HEADS),
    "bloom": partial(
        build, "bloom", vocab_size=VOCAB_SIZE, hidden_size=WIDTH, n_layer=N_LAYERS, n_head=4
    ),
    "gptj": partial(
        build,
        "gptj",
        vocab_size=VOCAB_SIZE,
        n_embd=WIDTH,
        n_layer=N_LAYERS,
        n_head=4,
        rotary_dim=4,
        n_positions=CONTEXT,
    ),
}
"""Families that `locate` has to find by the usual attribute names."""


class NoRenderer:
    """Stands where a renderer is required and never used: these tests bring their own ids."""

    counts_end = False

    def render(self, answer):
        raise NotImplementedError

    def render_prompt(self, prompt):
        raise NotImplementedError

    def decode(self, ids):
        raise NotImplementedError

    def pieces(self, ids):
        raise NotImplementedError


def backbone_of(model: PreTrainedModel, name: str) -> TransformersBackbone:
    """A readable backbone around `model`, without tokenizer or fingerprint."""
    return TransformersBackbone(model, NoRenderer(), Fingerprint("", "", "", ""), name)
