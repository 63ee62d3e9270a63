"""A random tiny Qwen2.5-VL with the real processor of pictures, built in memory; nothing downloads.

The processor's videos need torchvision, which is not among our packages: `PicturesOnly` leaves the video
processor out, and all else is transformers' own code.
"""

from pathlib import Path
from typing import Any

import torch
from tiny import tiny_tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class PicturesOnly(Qwen2_5_VLProcessor):
    """The processor without videos."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **options: Any) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, **options)

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def tiny_vision_judge() -> tuple[Qwen2_5_VLForConditionalGeneration, PicturesOnly]:
    """Model and processor; pictures become at most 16 patches of 4 x 4."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": VISION_TOKENS})
    ids = dict(zip(VISION_TOKENS, tokenizer.convert_tokens_to_ids(VISION_TOKENS), strict=True))
    pictures = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 256}
    )
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 272,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]},
            "bos_token_id": 257,
            "eos_token_id": 260,
            "pad_token_id": 256,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 16,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config).float().eval()
        for value in model.parameters():
            value.data.add_(torch.randn_like(value) * 0.1)
    processor = PicturesOnly(pictures, tokenizer, chat_template=TEMPLATE)
    return model.requires_grad_(False), processor


def picture(path: Path, colour: tuple[int, int, int]) -> str:
    """A real PNG of one colour with a diagonal, 40 x 24 pixels."""
    from PIL import Image

    image = Image.new("RGB", (40, 24), colour)
    for i in range(24):
        image.putpixel((i, i), (255, 255, 255))
    image.save(path)
    return str(path)
