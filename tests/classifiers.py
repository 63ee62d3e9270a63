"""A tiny sequence classifier on disk, as somebody else trained it."""

from pathlib import Path

import torch
from tiny import CHATML, tiny_tokenizer
from transformers import AutoConfig, AutoModelForSequenceClassification


def save_classifier(folder: Path, *, template: str = CHATML, has_bos: bool = False) -> None:
    """Weights large enough that every token moves the score."""
    tokenizer = tiny_tokenizer(has_bos=has_bos)
    tokenizer.chat_template = template
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=len(tokenizer) + 8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=96,
    )
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
