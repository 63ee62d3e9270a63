"""The toy backbone keeps every promise of a real one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrm.backbone.base import TokenBatch
from retrm.backbone.fake import BOS, END, PAD, TURN, FakeBackbone
from retrm.backbone.locate import apply_norm, logits_of
from retrm.errors import OverlongError, RecipeError, RenderError
from retrm.records import Answer, Message, Prompt

EVERYTHING = [(layer, point) for layer in range(4) for point in ("residual", "post_norm")]
BACKBONE = FakeBackbone(context_length=64)
token_rows = st.lists(
    st.lists(st.integers(0, 259), min_size=1, max_size=20), min_size=1, max_size=4
)


def batch_of(rows: list[list[int]], pad: int = PAD, extra: int = 0) -> TokenBatch:
    width = max(map(len, rows)) + extra
    ids = torch.full((len(rows), width), pad)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        attention[i, : len(row)] = True
    positions = torch.arange(width).expand(len(rows), -1) * attention
    return TokenBatch(ids, positions, attention, (), (), (), (), int(attention.sum()))


def states(batch: TokenBatch, wanted=EVERYTHING, backbone=BACKBONE) -> dict:
    found = {}
    backbone.forward(batch, wanted, lambda layer, point, x: found.update({(layer, point): x}))
    return found


@settings(max_examples=30, deadline=None)
@given(token_rows, st.integers(0, 259), st.integers(0, 5))
def test_a_state_is_the_same_alone_and_in_any_padded_batch(rows, pad, extra):
    together = states(batch_of(rows, pad, extra))

    for i, row in enumerate(rows):
        alone = states(batch_of([row]))
        for key, value in alone.items():
            assert torch.equal(together[key][i, : len(row)], value[0]), key


@settings(max_examples=20, deadline=None)
@given(token_rows)
def test_no_state_is_nan_or_infinite_even_on_padding(rows):
    assert all(x.isfinite().all() for x in states(batch_of(rows, extra=3)).values())


def test_later_tokens_do_not_change_earlier_states():
    short, long = states(batch_of([[1, 2, 3]])), states(batch_of([[1, 2, 3, 4, 5]]))

    for key in EVERYTHING:
        assert torch.equal(short[key], long[key][:, :3])
    assert not torch.equal(short[3, "residual"][0, 2], long[3, "residual"][0, 4])


def test_earlier_tokens_do_change_later_states():
    one, other = states(batch_of([[1, 2, 3]])), states(batch_of([[9, 2, 3]]))

    assert torch.equal(one[0, "residual"][0, 2], other[0, "residual"][0, 2])
    assert not torch.equal(one[1, "residual"][0, 2], other[1, "residual"][0, 2])


def test_two_answers_behind_one_prompt_read_as_if_each_stood_alone():
    prompt, first, second = [1, 2, 3], [4, 5], [6, 7, 8]
    ids = torch.tensor([prompt + first + second])
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 4, 5]])
    owner = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    may = (owner[None, :] == 0) | (owner[None, :] == owner[:, None])
    may = may & torch.ones(8, 8, dtype=torch.bool).tril()
    shared = TokenBatch(ids, positions, may[None, None], (), (), (), (), 8)

    got = states(shared)
    one, two = states(batch_of([prompt + first])), states(batch_of([prompt + second]))

    for key in EVERYTHING:
        assert torch.equal(got[key][0, 3:5], one[key][0, 3:])
        assert torch.equal(got[key][0, 5:], two[key][0, 3:])


def test_states_come_in_ascending_order_and_only_those_wanted():
    calls = []
    wanted = {(3, "post_norm"), (0, "residual"), (3, "residual"), (2, "post_norm")}

    BACKBONE.forward(batch_of([[1, 2]]), wanted, lambda i, p, x: calls.append((i, p, x.shape)))

    shape = torch.Size([1, 2, 16])
    assert calls == [
        (0, "residual", shape),
        (2, "post_norm", shape),
        (3, "residual", shape),
        (3, "post_norm", shape),
    ]


def test_post_norm_is_the_final_norm_of_the_residual_and_gives_the_logits():
    got, u = states(batch_of([[1, 2, 3]])), BACKBONE.unembedding

    for layer in range(4):
        normed = apply_norm(got[layer, "residual"], u.gain, u.norm_bias, u.norm_kind, u.eps)
        torch.testing.assert_close(got[layer, "post_norm"], normed, atol=1e-6, rtol=1e-5)
    assert logits_of(got[3, "post_norm"], u).shape == (1, 3, 260)


def test_a_layer_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(RecipeError, match=r"got layer 4; fake has layers 0 \(embedding\) to 3"):
        states(batch_of([[1]]), [(4, "residual")])
    with pytest.raises(RecipeError, match="Did you mean 'residual'"):
        states(batch_of([[1]]), [(1, "residuals")])


def test_a_row_beyond_the_context_is_refused():
    with pytest.raises(OverlongError, match="position 64; fake has a context of 64"):
        states(batch_of([[1] * 65]))
    states(batch_of([[1] * 64]))


def test_another_seed_is_another_model_and_the_same_seed_is_the_same():
    assert FakeBackbone().fingerprint == FakeBackbone().fingerprint
    other = FakeBackbone(seed=1).fingerprint
    assert other.weights != FakeBackbone().fingerprint.weights
    assert other.unembedding != FakeBackbone().fingerprint.unembedding
    assert other.tokenizer == FakeBackbone().fingerprint.tokenizer


def test_counting_the_end_changes_the_template_fingerprint_only():
    one, other = FakeBackbone().fingerprint, FakeBackbone(counts_end=False).fingerprint

    assert one.template != other.template
    assert (one.weights, one.unembedding) == (other.weights, other.unembedding)


def test_rendering_writes_turns_and_spans_the_answer_with_its_end():
    rendered = FakeBackbone().renderer.render(Answer.of("ab", "c"))

    # <bos> <turn> user\n ab <end> <turn> assistant\n = 1+1+5+2+1+1+10 = 21 tokens, then c <end>.
    expected = (BOS, TURN, *b"user\nab", END, TURN, *b"assistant\n", *b"c", END)
    assert rendered.ids == expected
    assert (rendered.start, rendered.stop) == (21, 23)


def test_without_counting_the_end_the_span_stops_before_it():
    rendered = FakeBackbone(counts_end=False).renderer.render(Answer.of("ab", "c"))

    assert (rendered.start, rendered.stop, rendered.ids[22]) == (21, 22, END)


def test_sampled_ids_are_used_as_they_are():
    prompt = Prompt((Message("system", "s"), Message("user", "u")))
    answer = Answer(prompt, "ignored", "p", response_ids=(65, 66))

    rendered = FakeBackbone().renderer.render(answer)

    assert rendered.ids[rendered.start : rendered.stop] == (65, 66)
    assert rendered.ids[: rendered.start] == FakeBackbone().renderer.render_prompt(prompt)


def test_answers_that_cannot_be_judged_are_refused():
    with pytest.raises(RenderError, match="the answer is empty"):
        FakeBackbone(counts_end=False).renderer.render(Answer.of("q", ""))
    with pytest.raises(RenderError, match="response_ids reach 300"):
        FakeBackbone().renderer.render(Answer(Prompt.of("q"), "", "p", response_ids=(300,)))


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=12))
def test_pieces_join_to_the_text_and_decode_gives_it_back(text):
    renderer, ids = FakeBackbone().renderer, tuple(text.encode())

    assert renderer.decode((TURN, *ids, END)) == text
    assert "".join(renderer.pieces((*ids, END))) == text
    assert len(renderer.pieces((*ids, END))) == len(ids) + 1


def test_pieces_of_broken_bytes_are_as_many_as_the_tokens():
    assert FakeBackbone().renderer.pieces((0xE2, 0x82)) == ["", "\ufffd"]
