"""Judges that see: a multimodal model of transformers with its processor writes the judgements.

Messages with `images` become the processor's own input (its chat template, its picture code); what is written
is cut behind the prompt. One output at a time, so this is slow; for much, serve the model with an engine and
use an endpoint, which takes the same messages.

No released vision model was run with this: it is tested on tiny random models, with the real processor code.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from retrm.backbone.fingerprint import essential_config, hash_tokenizer, hash_weights
from retrm.errors import BackboneError, MissingExtraError, RenderError
from retrm.judges.asking import TOO_LONG, OnReply, Request
from retrm.judges.cache import Reply, Sampling


class PictureJudgeModel:
    """Implements `retrm.judges.asking.JudgeModel`."""

    def __init__(self, model: Any, processor: Any) -> None:
        """Take a model and its processor.

        Args:
            model: for image and text to text (transformers), on its device.
            processor: of the model, with a chat template, a tokenizer and an image processor.

        Raises:
            BackboneError: the processor has no chat template, or reads no pictures.
        """
        self.model = model.eval()
        self.processor = processor
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None or getattr(processor, "image_processor", None) is None:
            raise BackboneError(
                f"got a {type(processor).__name__} without an image processor and a tokenizer; expected the "
                "processor of a multimodal model. For text alone leave reads=pictures out"
            )
        if not getattr(processor, "chat_template", None):
            raise BackboneError(
                f"the {type(processor).__name__} has no chat template; expected one that writes messages "
                "with pictures. Set processor.chat_template"
            )
        self._tokenizer = tokenizer
        config = model.config
        text = getattr(config, "text_config", config)
        self._context = int(getattr(text, "max_position_embeddings", 0)) or None
        marks = [
            hash_weights(essential_config(config), model.state_dict().items()),
            hash_tokenizer(tokenizer),
            json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str),
            str(processor.chat_template),
        ]
        digest = hashlib.sha256("\n".join(marks).encode()).hexdigest()[:32]
        self.identity = f"pictures {digest} {model.dtype}"

    @classmethod
    def load(cls, name: str, *, device: str = "cpu", dtype: str = "float32") -> "PictureJudgeModel":
        """From a folder or a hub id.

        Raises:
            BackboneError: it cannot be loaded, or is no multimodal model.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(name)
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=getattr(torch, dtype))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise BackboneError(
                f"{name} cannot be loaded as a model that reads pictures ({error}); expected a model for "
                "image and text to text with a processor. For text alone leave reads=pictures out"
            ) from error
        return cls(model.to(device), processor)

    def ask(self, requests: Sequence[Request], sampling: Sampling, on_reply: OnReply) -> None:
        """See `JudgeModel`.

        Raises:
            RenderError: a picture cannot be opened, or the template refuses the messages.
        """
        for place, request in enumerate(requests):
            inputs = self._inputs(request)
            n_prompt = int(inputs["input_ids"].shape[1])
            for number in request.numbers:
                if self._context and n_prompt + sampling.max_new_tokens > self._context:
                    on_reply(place, number, Reply("", False, n_prompt, 0, problem=TOO_LONG))
                    continue
                on_reply(place, number, self._write(request, inputs, n_prompt, number, sampling))

    def _inputs(self, request: Request) -> dict[str, Any]:
        messages = [_with_parts(message.as_dict()) for message in request.messages]
        pictures = [opened(image) for message in request.messages for image in message.images]
        try:
            text = self.processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            made = self.processor(text=[text], images=pictures or None, return_tensors="pt")
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise RenderError(
                f"the processor refuses the judge's messages ({type(error).__name__}: {error})"
            ) from error
        return {name: value.to(self.model.device) for name, value in made.items()}

    def _write(
        self,
        request: Request,
        inputs: dict[str, Any],
        n_prompt: int,
        number: int,
        sampling: Sampling,
    ) -> Reply:
        drawn = sampling.temperature > 0
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        said = [message.as_dict() for message in request.messages]
        key = json.dumps([sampling.seed, number, said], default=str)
        digest = hashlib.sha256(key.encode()).digest()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
            ids = self.model.generate(
                **inputs,
                max_new_tokens=sampling.max_new_tokens,
                do_sample=drawn,
                **(options if drawn else {}),
            )[0, n_prompt:]
        end = self.model.generation_config.eos_token_id
        ends = set(end if isinstance(end, list) else [end]) - {None}
        finished = len(ids) < sampling.max_new_tokens or bool(ends & set(ids[-1:].tolist()))
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Reply(text, finished, n_prompt, len(ids))


def opened(image: str) -> Any:
    """A picture of a file or a `data:` URI, in RGB.

    Raises:
        MissingExtraError: Pillow is not installed.
        RenderError: an address, which is not fetched here, or what is no picture.
    """
    import base64
    import io

    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError(
            "judges that read pictures need Pillow, which is not installed. Run: pip install pillow"
        ) from error

    if image.startswith(("http://", "https://")):
        raise RenderError(
            f"got the picture {image!r}; a judge in this process opens files and data: URIs only. "
            "Download it, or use an endpoint"
        )
    try:
        source: Any = Path(image)
        if image.startswith("data:"):
            source = io.BytesIO(base64.b64decode(image.partition(",")[2], validate=True))
        return Image.open(source).convert("RGB")
    except (OSError, ValueError, UnidentifiedImageError) as error:
        raise RenderError(
            f"the picture {image[:80]!r} cannot be opened ({error}); expected a file or data: URI of a "
            "picture"
        ) from error


def _with_parts(message: dict[str, Any]) -> dict[str, Any]:
    """Content as parts, the one form that every multimodal template reads."""
    if isinstance(message["content"], str):
        return {**message, "content": [{"type": "text", "text": message["content"]}]}
    return message
