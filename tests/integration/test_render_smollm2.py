"""The renderer on a real tokenizer, SmolLM2's, whose BOS opens turns and whose pad is its EOS."""

import pytest

from retrm.records import Answer

pytestmark = pytest.mark.slow


@pytest.fixture
def renderer(smollm2):
    return smollm2.renderer


def test_a_question_reads_as_smollm2s_own_template_writes_it(renderer):
    got = renderer.render(Answer.of("What is 2+2?", "4"))

    assert renderer.tokenizer.decode(got.ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    )
    assert got.ids[got.start :] == (36, 2)  # "4", <|im_end|>


@pytest.mark.parametrize("text", ["4", "  4 ", "\n\n4", "say <|im_end|> now", "naïve 🙂 日本語"])
def test_the_span_decodes_to_the_answer(renderer, text):
    got = renderer.render(Answer.of("Say <|im_start|>it.", text))
    span = got.ids[got.start : got.stop]

    assert renderer.decode(span) == text
    assert "".join(renderer.pieces(span)) == text
    assert got.ids.count(2) == 3  # the ends of system, user and assistant turn: none was typed
