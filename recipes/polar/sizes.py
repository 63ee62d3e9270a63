"""Language models of several sizes from configs, with random weights and one tokenizer made of a corpus.

    python recipes/polar/sizes.py CORPUS -o runs/polar/sizes

Their vocabulary is small, so that most parameters are not in the embedding.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retrm.finetuning.corpus import read_prefixes

SIZES = {64: 2, 128: 4, 256: 6, 384: 8}
"""Width and blocks."""


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level pairs learnt on the texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


def main() -> None:
    """A folder a size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("corpus")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--widths", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = list(read_prefixes(args.corpus, is_whole=True, seed=args.seed).texts)
    tokenizer = make_tokenizer(texts, args.vocabulary)
    for width in args.widths:
        torch.manual_seed(args.seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=SIZES[width],
            num_attention_heads=max(2, width // 64),
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
        model = LlamaForCausalLM(config)
        folder = args.output / f"w{width}"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()
