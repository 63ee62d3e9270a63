"""A fingerprint tells models, tokenizers and templates apart, and nothing else."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHATML, save_tiny, tiny_model, tiny_tokenizer

from retrm.backbone.fingerprint import (
    MAX_SAMPLES,
    essential_config,
    fingerprint_model,
    hash_tokenizer,
    hash_unembedding,
    hash_weights,
    sample_positions,
)
from retrm.backbone.locate import locate


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_the_same_model_has_the_same_fingerprint_after_saving_and_loading(tmp_path, tokenizer):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, _ = save_tiny(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    its_tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    one = fingerprint_model(model, its_tokenizer, CHATML)
    assert fingerprint_model(again, its_tokenizer, CHATML) == one
    assert all(len(part) == 32 for part in (one.weights, one.unembedding, one.tokenizer))


def test_another_seed_template_or_tokenizer_changes_its_part_only(tokenizer):
    one = fingerprint_model(tiny_model(), tokenizer, "a")
    seed = fingerprint_model(tiny_model(seed=1), tokenizer, "a")
    template = fingerprint_model(tiny_model(), tokenizer, "b")
    with_bos = fingerprint_model(tiny_model(), tiny_tokenizer(has_bos=True), "a")

    assert seed.weights != one.weights
    assert seed.unembedding != one.unembedding
    assert seed.tokenizer == one.tokenizer
    assert (template.weights, template.tokenizer) == (one.weights, one.tokenizer)
    assert template.template != one.template
    assert (with_bos.weights, with_bos.template) == (one.weights, one.template)
    assert with_bos.tokenizer != one.tokenizer


@settings(max_examples=20, deadline=None)
@given(st.integers(5_000, 60_000), st.data())
def test_a_change_at_any_sampled_position_is_seen(n_elements, data):
    at = data.draw(st.sampled_from(sample_positions(n_elements)))
    values = torch.zeros(n_elements)
    before = hash_weights({}, [("w", values)])
    values[at] = 1e-6

    assert hash_weights({}, [("w", values)]) != before


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**10))
def test_sampled_positions_lie_inside_and_reach_both_ends(n_elements):
    positions = sample_positions(n_elements)

    assert positions[0] == 0
    assert positions[-1] == n_elements - 1
    assert len(set(positions)) == len(positions) <= MAX_SAMPLES
    assert len(positions) == n_elements or len(positions) > 0.6 * min(n_elements, MAX_SAMPLES)


def test_samples_of_a_square_matrix_reach_every_column_block():
    # An even stride of 4096 would see one column of a 4096 x 4096 matrix only.
    columns = {position % 4096 // 64 for position in sample_positions(4096 * 4096)}

    assert columns == set(range(64))


def test_requantising_changes_weights_and_unembedding(tokenizer):
    model = tiny_model()
    before = fingerprint_model(model, tokenizer, "")
    for value in model.parameters():
        step = value.abs().max() / 127
        value.copy_((value / step).round() * step)
    after = fingerprint_model(model, tokenizer, "")

    assert before.weights != after.weights
    assert before.unembedding != after.unembedding


def test_a_cast_that_rounds_changes_the_hash_and_one_that_does_not_keeps_it(tokenizer):
    exact = fingerprint_model(tiny_model(), tokenizer, "")
    rounded = fingerprint_model(tiny_model().bfloat16(), tokenizer, "")
    widened = fingerprint_model(tiny_model().bfloat16().float(), tokenizer, "")

    assert rounded.weights != exact.weights
    # The same bfloat16 values held as bfloat16 and as float32 are one model.
    assert widened.weights == rounded.weights


def test_the_order_of_the_tensors_does_not_matter_and_their_names_and_shapes_do():
    a, b = torch.arange(6.0), torch.ones(3)
    one = hash_weights({"x": 1}, [("a", a), ("b", b)])

    assert hash_weights({"x": 1}, [("b", b), ("a", a)]) == one
    assert hash_weights({"x": 1}, [("a", a), ("c", b)]) != one
    assert hash_weights({"x": 1}, [("a", a.view(2, 3)), ("b", b)]) != one
    assert hash_weights({"x": 2}, [("a", a), ("b", b)]) != one


def test_what_changes_states_is_in_the_config_part_and_names_are_not():
    model = tiny_model()
    config = model.config
    before = essential_config(config)
    config._name_or_path, config.use_cache, config.transformers_version = "elsewhere", False, "9"
    assert essential_config(config) == before

    config.rms_norm_eps = 1e-3
    assert essential_config(config) != before


def test_two_thetas_of_the_rotary_positions_are_two_models(tokenizer):
    one = tiny_model(rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    other = tiny_model(rope_parameters={"rope_type": "default", "rope_theta": 20_000.0})

    first, second = (fingerprint_model(m, tokenizer, "") for m in (one, other))
    assert first.weights != second.weights
    assert first.unembedding == second.unembedding


def test_padding_and_truncation_of_a_tokenizer_leave_its_hash_alone():
    tokenizer = tiny_tokenizer()
    before = hash_tokenizer(tokenizer)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert hash_tokenizer(tokenizer) == before

    tokenizer.add_tokens(["<think>"])
    assert hash_tokenizer(tokenizer) != before


def test_another_end_token_is_another_tokenizer():
    one, other = tiny_tokenizer(), tiny_tokenizer()
    other.eos_token = "</s>"

    assert hash_tokenizer(one) != hash_tokenizer(other)


def test_the_gain_of_the_final_norm_belongs_to_the_unembedding():
    model = tiny_model()
    before = hash_unembedding(locate(model).unembedding)
    model.model.norm.weight[3] += 0.5

    assert hash_unembedding(locate(model).unembedding) != before


def test_ten_million_values_take_less_than_a_second():
    big = [(str(i), torch.zeros(1000, 1000)) for i in range(10)]
    start = time.perf_counter()
    hash_weights({}, big)

    assert time.perf_counter() - start < 1.0
