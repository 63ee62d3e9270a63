"""Three low-rank adapters of a language model that write in different styles.

    python recipes/polar/styles.py CORPUS --model smollm2-135m -o runs/polar/styles

Each is trained on the corpus rewritten by a rule: all lower case, sentences cut to six words, sentences as a list.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from retrm.finetuning.corpus import read_prefixes
from retrm.finetuning.language_model import LoraOptions, load_trainable, lora_config


def sentences(text: str) -> list[str]:
    """Split behind full stops and at line ends."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n", text) if part.strip()]


STYLES: dict[str, Callable[[str], str]] = {
    "lower": lambda text: re.sub(r"[^\w\s]", "", text.lower()),
    "short": lambda text: " ".join(
        " ".join(s.split()[:6]).rstrip(".,") + "." for s in sentences(text)
    ),
    "lists": lambda text: "\n".join(f"{i}. {s}" for i, s in enumerate(sentences(text), 1)),
}


def batches(texts: list[str], tokenizer: object, size: int, length: int) -> Iterator[torch.Tensor]:
    """Rows of `length` ids out of all texts behind each other."""
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]  # type: ignore[operator, attr-defined]
    n = len(ids) // (size * length)
    yield from torch.tensor(ids[: n * size * length]).view(n, size, length)


def train(style: str, texts: list[str], args: argparse.Namespace) -> None:
    """One adapter, in the folder of its name."""
    from peft import get_peft_model

    folder = args.output / style
    if (folder / "adapter_config.json").is_file():
        print(f"{style}: there already")
        return
    torch.manual_seed(args.seed)
    model, tokenizer = load_trainable(args.model, device=args.device)
    model = get_peft_model(model, lora_config(LoraOptions(rank=8)))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.lr)
    rewritten = [STYLES[style](text) for text in texts]
    for step, ids in enumerate(batches(rewritten, tokenizer, args.batch, args.length), 1):
        ids = ids.to(args.device)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == args.steps:
            print(f"{style} {step}: {loss.item():.3f}", flush=True)
        if step == args.steps:
            break
    model.save_pretrained(folder)


def main() -> None:
    """Train those that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("corpus")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = list(read_prefixes(args.corpus, is_whole=True, seed=args.seed).texts)
    for style in STYLES:
        train(style, texts, args)


if __name__ == "__main__":
    main()
