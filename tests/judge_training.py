"""Small things that tests of judge training share: a tiny model on disk, pairs, a template with few words."""

from pathlib import Path

from tiny import tiny_model, tiny_tokenizer

from retrm.finetuning.labelled import LabelledPair, Trace, balanced
from retrm.judges.r1_reward import R1Reward
from retrm.records import Message, Prompt

TEMPLATE = R1Reward(wording="{question}|{first}|{second}")
RIGHT = {
    "first": "<think>a</think><answer>1</answer>",
    "second": "<think>b</think><answer>2</answer>",
}


def policy_folder(folder: Path) -> Path:
    """A model as a user has it; every id that it can sample is one of its tokenizer's."""
    tokenizer = tiny_tokenizer(folder)
    tiny_model(vocab_size=len(tokenizer), tie_word_embeddings=True).save_pretrained(folder)
    return folder


def pairs(n: int) -> list[LabelledPair]:
    """Sums with the right one of two results, positions balanced."""
    made = []
    for i in range(n):
        prompt = Prompt((Message("user", f"{i}+1?"),))
        made.append(
            LabelledPair(
                prompt.messages, str(i + 1), str(i + 2), "first", prompt.key, f"pairs:{i + 1}"
            )
        )
    return balanced(made)


def traces(n: int) -> list[Trace]:
    """A right judgement of each pair."""
    return [Trace(pair, RIGHT[pair.label], source="test") for pair in pairs(n)]
