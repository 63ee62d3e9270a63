"""Tiny policy discriminators on disk: in our layout and in that of the published models."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import FAMILIES, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from retrm.backbone.reference import END, SEPARATOR, ReferenceLimits, ReferenceTemplate
from retrm.records import Answer, Reference
from retrm.scorers.polar import write_mark

QUESTION = "What is the capital of China?"


def polar_tokenizer(*, has_bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, and the two of the template."""
    tokenizer = tiny_tokenizer(has_bos=has_bos)
    tokenizer.add_special_tokens({"additional_special_tokens": [SEPARATOR, END]})
    return tokenizer


def polar_template(
    max_length: int = 240, max_response: int = 60, *, has_bos: bool = False
) -> ReferenceTemplate:
    """With limits that are counted in bytes."""
    limits = ReferenceLimits(max_length, max_response)
    return ReferenceTemplate(polar_tokenizer(has_bos=has_bos), limits=limits)


def polar_network(*, seed: int = 0, n_blocks: int = 2) -> LlamaForSequenceClassification:
    """A random Llama of width 16 with four heads, two of them of keys."""
    options = {**FAMILIES["llama"], "num_hidden_layers": n_blocks, "vocab_size": 272}
    del options["model_type"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(**options, num_labels=1, pad_token_id=256, problem_type="regression")
        model = LlamaForSequenceClassification(config)
        for value in model.parameters():
            value.data.add_(torch.randn_like(value) * 0.2)
    return model.eval()


def save_polar(folder: Path, *, seed: int = 0, has_bos: bool = False) -> None:
    """As `retrm polar train` leaves a model."""
    template = polar_template(has_bos=has_bos)
    polar_network(seed=seed).save_pretrained(folder)
    template.tokenizer.save_pretrained(folder)
    write_mark(folder, template)


def save_published(folder: Path, model: LlamaForSequenceClassification) -> None:
    """The same weights under InternLM2's names, `wqkv` put together row by row."""
    config = model.config
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    width, group = config.hidden_size // heads, heads // keys
    weights = {
        "model.tok_embeddings.weight": model.model.embed_tokens.weight,
        "model.norm.weight": model.model.norm.weight,
        "v_head.weight": model.score.weight,
    }
    for i, block in enumerate(model.model.layers):
        name, att, mlp = f"model.layers.{i}.", block.self_attn, block.mlp
        rows = []
        for key in range(keys):
            for query in range(key * group, (key + 1) * group):
                rows += list(att.q_proj.weight[query * width : (query + 1) * width])
            rows += list(att.k_proj.weight[key * width : (key + 1) * width])
            rows += list(att.v_proj.weight[key * width : (key + 1) * width])
        weights |= {
            f"{name}attention.wqkv.weight": torch.stack(rows),
            f"{name}attention.wo.weight": att.o_proj.weight,
            f"{name}feed_forward.w1.weight": mlp.gate_proj.weight,
            f"{name}feed_forward.w3.weight": mlp.up_proj.weight,
            f"{name}feed_forward.w2.weight": mlp.down_proj.weight,
            f"{name}attention_norm.weight": block.input_layernorm.weight,
            f"{name}ffn_norm.weight": block.post_attention_layernorm.weight,
        }
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = polar_tokenizer()
    tokenizer.save_pretrained(folder)
    said = {
        "architectures": ["InternLM2ForRewardModel"],
        "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForRewardModel"},
        "model_type": "internlm2",
        "bias": False,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "pad_token_id": 2,
        "reward_token_id": tokenizer.convert_tokens_to_ids(END),
    }
    (folder / "config.json").write_text(json.dumps(said))


def compared(
    response: str, *, reference: str | None = "Beijing.", prompt: str = QUESTION
) -> Answer:
    """An answer with a reference."""
    answer = Answer.of(prompt, response)
    made = None if reference is None else Reference(reference)
    return Answer(answer.prompt, response, answer.prompt_id, where="row 1", reference=made)
