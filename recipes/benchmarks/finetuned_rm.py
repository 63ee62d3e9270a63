"""The peer: a reward model of the same backbone, fine-tuned with TRL on the same pairs.

    pip install 'retrm[finetune]'
    python recipes/benchmarks/finetuned_rm.py PAIRS.jsonl --model FOLDER -o runs/benchmarks/lora

A Bradley-Terry reward model (loss -log sigmoid(r_chosen - r_rejected)) by TRL's RewardTrainer: low-rank
updates of all linear layers and a new score head, or all weights with --full. What is saved is an ordinary
sequence classifier with the updates merged in, so `retrm eval hf:FOLDER` measures it like every other
scorer; `training.json` beside it says how many parameters were trained, on how many pairs, in how many
seconds, on the clock and on the processor (the same on a machine that does nothing else with one thread).

One epoch, as reward models are usually trained; nothing is chosen on the benchmarks.
"""

import argparse
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from retrm.backbone.load import model_folder
from retrm.backbone.resolve import resolve_model
from retrm.data.load import load_table
from retrm.errors import DataError, MissingExtraError, RetrmError
from retrm.files import check_writable, write_json
from retrm.records import Answer, AnswerTable

SEED = 0


def conversations(table: AnswerTable) -> list[dict[str, Any]]:
    """Pairs as TRL reads them: prompt, chosen and rejected as message lists."""
    return [
        {
            "prompt": [m.as_dict() for m in table.answers[pair.chosen].prompt.messages],
            "chosen": _turn(table.answers[pair.chosen]),
            "rejected": _turn(table.answers[pair.rejected]),
        }
        for pair in table.preferences()
    ]


def _turn(answer: Answer) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer.response}]


def load_classifier(folder: Path) -> tuple[Any, Any]:
    """Model with one output and tokenizer; padding differs from the end of a turn.

    A classifier reads the last token that is no padding: padding that is also the end of a turn
    would hide that token from it.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32
    )
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        tokenizer.add_special_tokens({"pad_token": "<|retrm_pad|>"})
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.problem_type = "regression"  # engines squash one label by a sigmoid otherwise
    return model, tokenizer


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train, save, and say what it took."""
    try:
        from datasets import Dataset
        from peft import LoraConfig
        from trl import RewardConfig, RewardTrainer
    except ImportError as error:
        raise MissingExtraError(f"{error}. Run: pip install 'retrm[finetune]'") from error
    rows = conversations(load_table(args.pairs))
    if not rows:
        raise DataError(f"{args.pairs} has no pairs; expected chosen and rejected answers")
    rows = rows[: args.limit]
    source = resolve_model(args.model)
    model, tokenizer = load_classifier(model_folder(source, print))
    config = RewardConfig(
        output_dir=str(args.output / "trainer"),
        num_train_epochs=args.epochs,
        learning_rate=args.lr or (1e-5 if args.full else 1e-4),
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=max(1, 16 // args.batch),
        max_length=args.max_length,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        seed=SEED,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
    )
    adapter = LoraConfig(
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules="all-linear",
        modules_to_save=["score"],
        task_type="SEQ_CLS",
    )
    trainer = RewardTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=None if args.full else adapter,
    )
    n_trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    started, on_processor = time.monotonic(), time.process_time()
    trainer.train()
    seconds, on_processor = time.monotonic() - started, time.process_time() - on_processor
    made = trainer.model if args.full else trainer.model.merge_and_unload()
    made.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    return {
        "model": args.model,
        "pairs": args.pairs.name,
        "n_pairs": len(rows),
        "n_pairs_read": len(trainer.train_dataset),
        "epochs": args.epochs,
        "kind": "full" if args.full else f"LoRA, rank {args.rank}",
        "n_trained": n_trained,
        "n_parameters": sum(p.numel() for p in made.parameters()),
        "seconds": round(seconds, 1),
        "processor_seconds": round(on_processor, 1),
        "threads": torch.get_num_threads(),
        "loss": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--full", action="store_true", help="train all weights")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--lr", type=float, help="default 1e-4 for LoRA, 1e-5 for all weights")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=1024, help="longer pairs are dropped")
    parser.add_argument("--limit", type=int, help="only the first pairs, for a trial")
    args = parser.parse_args()
    try:
        check_writable(args.output)
        found = train(args)
    except RetrmError as error:
        sys.exit(f"error: {error}")
    write_json(args.output / "training.json", found)
    print(found)


if __name__ == "__main__":
    main()
