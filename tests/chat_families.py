"""Tokenizers and templates of ten chat families, and conversations to render with them.

The templates in tests/golden/templates are our own writings of public formats.
"""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from retrm.records import Answer, Message, Prompt

TEMPLATES = Path(__file__).parent / "golden" / "templates"

# Tokenizers: 256 bytes or printable ASCII, a handful of merges, and the control tokens of a family.


def byte_level() -> Tokenizer:
    merges = [("h", "e"), ("i", "s"), ("Ġ", "t"), ("Ġt", "he"), ("Ċ", "Ċ"), ("Ġ", "4"), ("â", "Ĥ")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*letters, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def sentence_piece(prefix: str) -> Tokenizer:
    """Bytes as fallback; `prefix` is legacy (a space before every part), first or none."""
    merges = [("h", "e"), ("i", "s"), ("▁", "t"), ("▁t", "he"), ("▁", "4"), ("▁", "h")]
    letters = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *map(chr, range(33, 127))]
    vocab = {piece: i for i, piece in enumerate([*letters, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    if prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        space = normalizers.Replace(" ", "▁")
        first = [normalizers.Prepend("▁")] if prefix == "legacy" else []
        backend.normalizer = normalizers.Sequence([*first, space])
    strip = [] if prefix == "none" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def make_tokenizer(
    backend: Tokenizer,
    controls: list[str],
    *,
    bos: str | None,
    eos: str,
    pad: str | None = None,
    adds_bos: bool = False,
    plain: tuple[str, ...] = (),
    eats_space: bool = False,
    template: str | None = None,
) -> PreTrainedTokenizerFast:
    tokens = [AddedToken(c, special=True, normalized=False, rstrip=eats_space) for c in controls]
    backend.add_special_tokens(tokens)
    backend.add_tokens([AddedToken(p, special=False, normalized=False) for p in plain])
    if adds_bos:
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad or eos
    )
    tokenizer.chat_template = template
    return tokenizer


def family(name: str) -> PreTrainedTokenizerFast:
    template = None if name == "plain" else (TEMPLATES / f"{name}.jinja").read_text("utf-8")
    im = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if name == "llama3":
        heads = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        controls = ["<|begin_of_text|>", "<|end_of_text|>", *heads]
        return make_tokenizer(
            byte_level(),
            controls,
            bos=controls[0],
            eos="<|eot_id|>",
            adds_bos=True,
            template=template,
        )
    if name == "qwen2":
        plain = ("<tool_call>", "</tool_call>")
        return make_tokenizer(
            byte_level(), im, bos=None, eos=im[2], pad=im[0], plain=plain, template=template
        )
    if name == "smollm2":
        return make_tokenizer(byte_level(), im, bos=im[1], eos=im[2], template=template)
    if name == "gemma":
        controls = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
        return make_tokenizer(
            sentence_piece("none"),
            controls,
            bos="<bos>",
            eos="<eos>",
            pad="<pad>",
            adds_bos=True,
            template=template,
        )
    if name == "mistral":
        controls = ["<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
        return make_tokenizer(
            sentence_piece("first"),
            controls,
            bos="<s>",
            eos="</s>",
            adds_bos=True,
            template=template,
        )
    if name == "phi3":
        roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
        return make_tokenizer(
            sentence_piece("first"),
            ["<s>", "<|endoftext|>", *roles],
            bos="<s>",
            eos="<|endoftext|>",
            eats_space=True,
            template=template,
        )
    if name == "zephyr":
        return make_tokenizer(
            sentence_piece("legacy"),
            ["<s>", "</s>"],
            bos="<s>",
            eos="</s>",
            adds_bos=True,
            template=template,
        )
    if name == "deepseek":
        tags = ["User", "Assistant", "tool▁output▁begin", "tool▁output▁end"]
        controls = [
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            *(f"<｜{t}｜>" for t in tags),
        ]
        return make_tokenizer(
            byte_level(),
            controls,
            bos=controls[0],
            eos=controls[1],
            adds_bos=True,
            plain=("<think>", "</think>"),
            template=template,
        )
    # tulu, falcon and plain (no template) share the tokenizer of GPT-2's kind.
    end = "<|endoftext|>"
    return make_tokenizer(byte_level(), [end], bos=end, eos=end, template=template)


FAMILIES = (
    "llama3",
    "qwen2",
    "smollm2",
    "gemma",
    "mistral",
    "phi3",
    "zephyr",
    "tulu",
    "falcon",
    "deepseek",
    "plain",
)
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
ASK = Message("user", "2+2?")
TALK = (Message("user", "hi"), Message("assistant", "<think>so</think>the hi"), ASK)
SYSTEM = (Message("system", "Be brief."), ASK)
TYPED = "<|im_end|><|eot_id|></s><end_of_turn>[INST]<|end|><|endoftext|><｜User｜>"
CASES = {
    "single": Answer(Prompt((ASK,)), "the 4", "p"),
    "cut": Answer(Prompt((ASK,)), "the 4", "p", finished=False),
    "empty": Answer(Prompt((ASK,)), "", "p"),
    "system": Answer(Prompt(SYSTEM), "4", "p"),
    "multi_turn": Answer(Prompt(TALK), "4", "p"),
    "typed_controls": Answer(Prompt((ASK,)), f"a {TYPED} b", "p"),
    "typed_controls_in_prompt": Answer(Prompt((Message("user", TYPED),)), "4", "p"),
    "spaces_around": Answer(Prompt((ASK,)), "\n the 4  ", "p"),
    "unicode": Answer(Prompt((ASK,)), "€ 日本 🙂 é", "p"),
    "tools": Answer(Prompt((ASK,), (TOOL,)), "4", "p"),
    "tool_turn": Answer(
        Prompt((ASK, Message("assistant", "", ({"name": "add"},)), Message("tool", "four"))),
        "4",
        "p",
    ),
}
