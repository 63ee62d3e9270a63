"""GGUF files are checked before the slow load and converted once, bit for bit."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny import CHATML, tiny_tokenizer

from retrm.backbone import gguf as ours
from retrm.backbone.embedded import file_sha256
from retrm.backbone.gguf import check_gguf, copy_of, plain_copy, read_gguf_header
from retrm.errors import BackboneError

WIDTH, INNER, N_LAYERS, N_HEADS = 16, 32, 2, 4


def write_gguf(
    path: Path, *, seed: int = 0, arch: str = "llama", parts: int = 0, merge: str = "h e"
) -> Path:
    """A random llama of two blocks with the byte-level tokenizer of the tests."""
    tokens = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    tokens.append(("he", len(tokens)))
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([3 if 255 < index < 261 else 1 for _, index in tokens])
    writer.add_token_merges([merge])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(260)
    writer.add_chat_template(CHATML)
    if parts:
        writer.add_uint16("split.count", parts)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    shapes["output"] = (len(tokens), WIDTH)
    for i in range(N_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{i}.{name}"] = (WIDTH, WIDTH)
        shapes[f"blk.{i}.ffn_gate"] = shapes[f"blk.{i}.ffn_up"] = (INNER, WIDTH)
        shapes[f"blk.{i}.ffn_down"] = (WIDTH, INNER)
        shapes[f"blk.{i}.attn_norm"] = shapes[f"blk.{i}.ffn_norm"] = (WIDTH,)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def converted(tiny_gguf, tmp_path_factory) -> tuple[Path, Path]:
    """Cache and folder of the plain copy."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, plain_copy(tiny_gguf, cache=cache)


def test_the_header_says_how_long_the_file_must_be(tiny_gguf):
    header = read_gguf_header(tiny_gguf)

    # Two matrices of 262 x 16, 2 blocks of 4 * 16^2 + 3 * 16 * 32 + 2 * 16, and one norm of 16.
    assert header.n_parameters == 2 * 262 * 16 + 2 * (1024 + 1536 + 32) + 16
    assert header.architecture == "llama"
    assert header.n_bytes <= tiny_gguf.stat().st_size < header.n_bytes + 32


def test_our_header_agrees_with_the_reader_of_the_gguf_package(tiny_gguf):
    reader = gguf.GGUFReader(tiny_gguf)

    expected = max(t.data_offset + t.n_bytes for t in reader.tensors)
    assert read_gguf_header(tiny_gguf).n_bytes == expected


@pytest.mark.parametrize("share", [0.999, 0.7, 0.4, 0.1, 0.01, 0.0005])
def test_a_file_that_breaks_off_is_said_to_be_cut_short(tiny_gguf, tmp_path, share):
    cut = tmp_path / "cut.gguf"
    whole = tiny_gguf.read_bytes()
    cut.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(BackboneError, match=r"cut\.gguf is cut short.*Download it again"):
        check_gguf(cut)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is cut short"),
        (b"<!DOCTYPE html><html>", "does not begin with the letters GGUF"),
        (b"GGUF" + (9).to_bytes(4, "little") + bytes(16), "its version is 9"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "is cut short"),
    ],
)
def test_what_is_no_gguf_is_told_apart(tmp_path, content, reason):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)

    with pytest.raises(BackboneError, match=reason):
        check_gguf(path)


def test_one_part_of_several_is_refused_with_the_command_that_joins_them(tmp_path):
    with pytest.raises(BackboneError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        check_gguf(write_gguf(tmp_path / "part.gguf", parts=3))


def test_the_image_part_of_a_vision_model_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="image part of a vision model"):
        check_gguf(write_gguf(tmp_path / "mmproj.gguf", arch="clip"))


def test_the_plain_copy_holds_the_weights_bit_for_bit_and_no_mark_of_gguf(tiny_gguf, converted):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, folder = converted
    model = AutoModelForCausalLM.from_pretrained(folder)
    tensors = {t.name: t for t in gguf.GGUFReader(tiny_gguf).tensors}

    embedding = torch.from_numpy(np.array(tensors["token_embd.weight"].data))
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    head = torch.from_numpy(np.array(tensors["output.weight"].data))
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert AutoTokenizer.from_pretrained(folder).chat_template == CHATML


def test_a_copy_is_keyed_by_the_hash_and_says_where_it_came_from(tiny_gguf, converted):
    cache, folder = converted
    source = json.loads((folder / "source.json").read_text())

    assert folder == cache / "plain" / file_sha256(tiny_gguf)
    assert (source["sha256"], source["file"]) == (file_sha256(tiny_gguf), "tiny.gguf")
    assert copy_of(file_sha256(tiny_gguf), cache=cache) == folder
    assert copy_of("0" * 64, cache=cache) is None
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_second_call_converts_nothing(tiny_gguf, converted, monkeypatch):
    cache, folder = converted
    monkeypatch.setattr(ours, "_convert", lambda *a: pytest.fail("converted again"))

    assert plain_copy(tiny_gguf, cache=cache) == folder


def test_a_damaged_copy_is_made_again(tiny_gguf, converted, tmp_path):
    cache, folder = converted
    shutil.copytree(cache, tmp_path / "cache")
    weights = tmp_path / "cache" / "plain" / folder.name / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])

    plain_copy(tiny_gguf, cache=tmp_path / "cache")

    assert weights.read_bytes() == whole
    assert [p.name for p in weights.parent.parent.iterdir()] == [folder.name]


def test_a_conversion_that_fails_leaves_nothing_behind(tiny_gguf, tmp_path, monkeypatch):
    def fail(path: Path, fresh: Path) -> None:
        fresh.mkdir()
        (fresh / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ours, "_convert", fail)

    with pytest.raises(BackboneError, match=r"No space left on device.*RETRM_CACHE"):
        plain_copy(tiny_gguf, cache=tmp_path)
    assert list((tmp_path / "plain").iterdir()) == []


def test_an_architecture_that_transformers_cannot_read_is_named(tmp_path):
    path = write_gguf(tmp_path / "odd.gguf", arch="no-such-family")

    with pytest.raises(BackboneError, match=r"transformers cannot read .*odd\.gguf"):
        plain_copy(path, cache=tmp_path)


def test_a_tokenizer_that_contradicts_itself_is_told_with_the_file(tmp_path):
    path = write_gguf(tmp_path / "odd.gguf", merge="q q")

    with pytest.raises(BackboneError, match=r"cannot read .*odd\.gguf: .*out of vocabulary"):
        plain_copy(path, cache=tmp_path)
