"""Folding a whole model: every identity in float64, on models whose gains and biases are random."""

import math

import families
import pytest
import torch
from folding import (
    ALL,
    EXACT,
    IDS,
    LAYER,
    RMS,
    ROW,
    B,
    G,
    TrueFloat64,
    X,
    case,
    centred,
    every,
    known,
    layer_norm,
    look,
    relative,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retrm.backbone.base import Unembedding
from retrm.backbone.locate import apply_norm, read_norm
from retrm.errors import BackboneError, RecipeError
from retrm.features import folded_model
from retrm.features.folded_model import (
    CompressedRMS,
    GainFreeRMS,
    compress,
    fold_norm,
    rotate,
)
from retrm.features.norm_folding import effective_head
from retrm.features.subspace import fit_spectrum


def is_of_a_norm(parameter: str) -> bool:
    return "norm" in parameter or ".ln_" in parameter


# ------------------------------------------------------------------- the function is unchanged


@every
def test_gains_and_biases_of_the_test_models_are_not_the_trivial_ones(name):
    if name in ("opt-no-gains", "olmo"):
        assert case(name).head.gain is None
        return
    model = case(name).model
    norms = [p for n, p in model.named_parameters() if is_of_a_norm(n)]

    assert len(norms) > families.N_LAYERS  # one a block where attention and MLP stand side by side
    # Fresh ones are all 1 or all 0 and have no spread.
    assert min(p.std().item() for p in norms if p.ndim == 1) > 0.05


@every
def test_folded_model_has_the_logits_of_the_original(name):
    made = case(name)

    assert made.folded.norm_kind == ("layer" if name in LAYER else "rms")
    assert relative(made.seen_folded.logits, made.seen.logits) < EXACT
    assert made.folded.deviation < 1e-5  # with transformers' own float32 steps


@every
def test_rotated_model_has_the_logits_of_the_original(name):
    made = case(name)

    assert relative(made.seen_rotated.logits, made.seen.logits) < EXACT


@layer_norm
def test_compressed_model_has_the_logits_of_the_original_with_one_coordinate_less(name):
    made = case(name)
    compressed = compress(made.folded)
    seen = look(made.model, compressed.model)

    assert relative(seen.logits, made.seen.logits) < EXACT
    for z, x in zip(seen.residual, made.seen_folded.residual, strict=True):
        assert z.shape[-1] == families.WIDTH - 1
        assert relative(z, x[..., :-1]) < EXACT


@every
def test_no_norm_with_a_gain_or_a_mean_is_read_in_the_folded_model(name):
    folded = case(name).folded

    for path in folded.stream.norms:
        assert type(folded.model.get_submodule(path)) is GainFreeRMS
    # Norms with parameters are left only where something is written, and inside the heads.
    left = {n.rpartition(".")[0] for n, _ in folded.model.named_parameters() if is_of_a_norm(n)}
    heads = {path for path in left if "attn." in path}
    assert {path.removesuffix(".inner") for path in left - heads} == set(folded.stream.kept)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "bloom", "llama-tied", "gemma2"])
def test_float32_copy_agrees_to_float32_rounding(name):
    model = ALL[name]()
    folded = fold_norm(model, dtype=torch.float32)
    with torch.no_grad():
        got, expected = (m(input_ids=IDS).logits for m in (folded.model, model))

    assert got.dtype == torch.float32
    assert relative(got, expected) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma", "bloom"])
def test_folding_leaves_the_original_as_it_was_and_unties_only_the_copy(name):
    model = ALL[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made = fold_norm(model).model

    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.tie_word_embeddings
    assert not made.config.tie_word_embeddings
    assert not torch.equal(made.get_input_embeddings().weight, made.get_output_embeddings().weight)


def test_bfloat16_model_is_folded_as_its_own_numbers_in_float64():
    model = known["gpt2"]().bfloat16()
    folded = fold_norm(model)
    seen = look(model, model.double())

    assert relative(look(model, folded.model).logits, seen.logits) < EXACT


def test_readers_without_a_bias_get_one_exactly_where_the_norm_has_one():
    falcon, llama = case("falcon-one-norm"), case("llama")

    for made, gets_one in [(falcon, True), (llama, False)]:
        for path in made.folded.stream.readers:
            assert made.model.get_submodule(path).bias is None
            assert (made.folded.model.get_submodule(path).bias is not None) is gets_one


def test_bias_of_the_lm_head_is_kept_beside_the_folded_one():
    made = case("phi")
    expected = made.head.bias + made.head.weight @ made.head.norm_bias

    torch.testing.assert_close(made.folded.model.lm_head.bias.data, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(made.folded.head.bias, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("gpt2", ["attn.c_attn"]),
        ("gpt_neox", ["attention.query_key_value"]),
        ("falcon-one-norm", ["self_attention.query_key_value", "mlp.dense_h_to_4h"]),
        ("falcon-two-norms", ["self_attention.query_key_value"]),
        ("falcon-alibi-sequential", ["self_attention.query_key_value"]),
        ("phi", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"]),
    ],
)
def test_first_norm_of_a_block_is_followed_to_all_who_read_it(name, readers):
    stream = case(name).folded.stream
    found = next(iter(stream.norms.values()))

    assert len(found) == len(readers)
    assert all(path.endswith(f".0.{end}") for path, end in zip(found, readers, strict=True))


def test_norm_behind_a_branch_keeps_its_gain_and_only_the_norms_before_a_branch_fold():
    made = case("gemma2")
    block = made.folded.model.model.layers[0]
    original = made.model.model.layers[0]

    assert len(made.folded.stream.kept) == 2 * families.N_LAYERS
    for end in ("post_attention_layernorm", "post_feedforward_layernorm"):
        assert torch.equal(getattr(block, end).weight, getattr(original, end).weight)
    # Gemma stores the gain minus one.
    gain = 1 + original.input_layernorm.weight
    expected = original.self_attn.q_proj.weight * gain
    torch.testing.assert_close(block.self_attn.q_proj.weight.data, expected, rtol=1e-14, atol=0)


def test_embedding_norm_keeps_its_gain_and_the_mean_is_removed_behind_it():
    made = case("bloom")
    norm = made.folded.model.transformer.word_embeddings_layernorm
    original = made.model.transformer.word_embeddings_layernorm

    assert made.folded.stream.kept == ("transformer.word_embeddings_layernorm",)
    assert made.folded.stream.tables == ()
    assert torch.equal(norm.inner.weight, original.weight)
    # The first residual of the original has a mean that changes from token to token.
    means = made.seen.residual[0].mean(-1)
    assert means.std() > 1e-3
    assert made.seen_folded.residual[0].mean(-1).abs().max() < EXACT


# ------------------------------------------------------------------------- the dead direction


@layer_norm
def test_folded_residual_is_the_original_without_its_mean_at_every_layer(name):
    made = case(name)

    for folded, original in zip(made.seen_folded.residual, made.seen.residual, strict=True):
        assert original.mean(-1).abs().max() > 1e-2  # otherwise nothing was removed
        assert folded.mean(-1).abs().max() < EXACT * original.abs().max()
        assert relative(folded, centred(original)) < EXACT


@pytest.mark.parametrize("name", RMS)
def test_folding_an_rms_model_leaves_every_residual_as_it_was(name):
    made = case(name)

    for folded, original in zip(made.seen_folded.residual, made.seen.residual, strict=True):
        assert relative(folded, original) < EXACT


@every
def test_gradient_at_the_input_embeddings_agrees_after_projection(name):
    made = case(name)
    rows = made.model.get_input_embeddings()(IDS)
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(made.seen.logits.shape, generator=generator, dtype=torch.float64)
    # Where nothing but a LayerNorm stream takes the embedding, its mean is dead.
    project = centred if made.folded.stream.tables and name in LAYER else lambda x: x

    def gradient(model, start):
        start = start.detach().requires_grad_()
        with TrueFloat64():
            loss = (model(inputs_embeds=start, use_cache=False).logits * target).sum()
        return torch.autograd.grad(loss, start)[0]

    original = gradient(made.model, rows)
    folded = gradient(made.folded.model, project(rows))

    # f(e) = f_folded(P e), so grad f = P grad f_folded.
    assert relative(project(folded), original) < EXACT
    assert relative(project(original), original) < EXACT


# ---------------------------------------------------------------------------- the rotated basis


@every
def test_after_rotation_the_last_coordinates_are_the_reasoning_subspace(name):
    made, k = case(name), 6
    tail = made.rotation[:, -k:]

    seen = (made.seen_rotated.residual, made.seen_folded.residual, made.seen.residual)
    for rotated, folded, original in zip(*seen, strict=True):
        assert relative(rotated, folded @ made.rotation) < EXACT
        assert relative(rotated[..., -k:], folded @ tail) < EXACT
        # States of the untouched model have the same ones: the tail is orthogonal to the mean.
        assert relative(rotated[..., -k:], original @ tail) < EXACT


@every
def test_the_fitters_reasoning_subspace_is_the_last_coordinates_of_the_rotated_stream(name):
    made, k = case(name), 6
    basis = fit_spectrum(made.head, "residual").subspace("reasoning", k).basis.double()

    # Both span the same space: all principal cosines are 1 (the basis is stored in float32).
    cosines = torch.linalg.svdvals(basis @ made.rotation[:, -k:])
    assert cosines.tolist() == pytest.approx([1] * k, abs=1e-5)


@layer_norm
def test_in_the_rotated_stream_of_a_layer_norm_model_the_dead_coordinate_is_zero(name):
    made = case(name)

    for x in made.seen_rotated.residual:
        assert x[..., 0].abs().max() < EXACT * x.abs().max()


@every
def test_head_of_the_rotated_model_has_orthogonal_columns_of_falling_length(name):
    made = case(name)
    weight = made.rotated.head.weight
    gram, lengths = weight.T @ weight, weight.norm(dim=0)
    first = 1 if name in LAYER else 0  # the dead column, all zero

    off = gram - torch.diag(torch.diagonal(gram))
    assert off.abs().max() < 1e-10 * gram.abs().max()
    assert (lengths[first:].diff() < 0).all()
    got = made.seen_rotated.post_norm @ weight.T
    folded = made.seen_folded.post_norm @ made.folded.head.weight.T
    assert relative(got, folded) < EXACT


# ----------------------------------------------------------------------------- worked examples


def test_worked_row_gives_the_same_logit_on_five_ways():
    # mean 3; centred (-2, -1, 3); var 14/3, its root 2.160247.
    # xhat = (-0.925820, -0.462910, 1.388730); times g plus b: (-0.825820, -0.925820, 0.494365).
    # 2 * -0.825820 + 0.925820 + 5 * 0.494365 = 1.746005.
    post = apply_norm(X, G, B, "layer", 0.0)
    assert post.tolist() == pytest.approx([-0.825820, -0.925820, 0.494365], abs=1e-6)
    assert (ROW @ post).item() == pytest.approx(1.746005, abs=1e-6)

    # Folded: w g = (2, -2, 2.5); . xhat = -1.851640 + 0.925820 + 3.471825 = 2.546005;
    # w . b = 0.2 - 1 = -0.8; sum 1.746005.
    xhat = apply_norm(X, None, None, "layer", 0.0)
    assert (ROW * G @ xhat).item() == pytest.approx(2.546005, abs=1e-6)
    assert torch.allclose(GainFreeRMS(0.0)(centred(X)), xhat, atol=1e-15)

    # Compressed: z = (-2, -1): (5 + 9)/3 = 14/3, the same root.
    # Reader (2 - 2.5, -2 - 2.5) = (-0.5, -4.5): 0.462910 + 2.083095 = 2.546005.
    z = CompressedRMS(0.0, 3)(centred(X)[:-1])
    assert z.tolist() == pytest.approx([-0.925820, -0.462910], abs=1e-6)
    reader = folded_model._compensated((ROW * G)[None])[0]
    assert reader.tolist() == [-0.5, -4.5]
    assert (reader @ z).item() == pytest.approx(2.546005, abs=1e-6)

    # Effective row: (2, -2, 2.5) minus its mean 2.5/3 = 0.833333. Times the UNCENTRED x:
    # (1.166667 - 5.666667 + 10) / 2.160247 = 5.5 / 2.160247 = 2.546005; - 0.8 = 1.746005.
    head = effective_head(Unembedding(ROW[None], None, G, B, "layer", 0.0))
    assert head.weight[0].tolist() == pytest.approx([1.166667, -2.833333, 1.666667], abs=1e-6)
    assert head.bias.item() == pytest.approx(-0.8, abs=1e-12)
    assert (head.weight[0] @ X / math.sqrt(14 / 3)).item() == pytest.approx(2.546005, abs=1e-6)

    # RMS of the uncentred x is something else: sqrt(41/3) = 3.696846.
    wrong = GainFreeRMS(0.0)(X)
    assert wrong.tolist() == pytest.approx([0.270501, 0.541002, 1.623005], abs=1e-6)


def test_worked_writer_loses_the_mean_over_its_outputs_in_both_layouts():
    # Rows (1,2), (3,4), (8,0): column means 4 and 2, leaving (-3,0), (-1,2), (4,-2).
    # Bias (1,2,6): mean 3, leaving (-2,-1,3).
    conv = families.FAMILIES["gpt2"]().transformer.h[0].attn.c_proj
    linear = nn.Linear(2, 3).double()
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]], dtype=torch.float64)
    root = nn.ModuleDict({"linear": linear, "conv": conv.double()})
    stream = folded_model.Stream({}, (), ("linear", "conv"), (), ())
    for path in ("linear", "conv"):
        folded_model._put(root, path, weight, X)
    folded_model._change_basis(root, stream, write=centred, read=None)

    expected = [[-3.0, 0.0], [-1.0, 2.0], [4.0, -2.0]]
    assert linear.weight.tolist() == expected
    assert conv.weight.T.tolist() == expected  # stored as inputs x outputs
    assert linear.bias.tolist() == conv.bias.tolist() == [-2.0, -1.0, 3.0]
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)  # rows sum to -3, 1, 2; plus the bias
    assert linear(x).tolist() == conv(x).tolist() == [[-5.0, 0.0, 5.0]]


vectors = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9)


@settings(max_examples=40, deadline=None)
@given(vectors, st.sampled_from([1e-5, 1e-6, 1.0]))
def test_on_a_zero_mean_vector_layer_norm_rms_and_compressed_rms_are_one(values, eps):
    x = centred(torch.tensor(values, dtype=torch.float64))
    rms = GainFreeRMS(eps)(x)

    layer = nn.functional.layer_norm(x, x.shape, eps=eps)  # torch's own as the oracle
    assert torch.allclose(rms, layer, atol=1e-9)
    assert torch.allclose(CompressedRMS(eps, len(x))(x[:-1]), rms[:-1], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(vectors, st.integers(0, 2**31))
def test_rms_without_gain_commutes_with_a_rotation(values, seed):
    x = torch.tensor(values, dtype=torch.float64)
    noise = torch.randn(len(x), len(x), generator=torch.Generator().manual_seed(seed)).double()
    turn = torch.linalg.qr(noise)[0]
    norm = GainFreeRMS(1e-5)

    assert torch.allclose(norm(x @ turn), norm(x) @ turn, atol=1e-9)


# -------------------------------------------------------------------------------------- refusals


def refused(model: nn.Module) -> str:
    with pytest.raises(BackboneError) as caught:
        fold_norm(model)
    return str(caught.value)


def test_post_layer_norm_config_is_refused():
    assert "post-LN" in refused(known["opt"](do_layer_norm_before=False))


def test_a_projection_out_of_the_stream_is_refused():
    assert "projection of width 16" in refused(known["opt"](word_embed_proj_dim=16))


def test_a_stream_that_is_itself_a_norms_output_is_refused_by_its_config_key():
    model = families.UNLISTED["bloom"](apply_residual_connection_post_layernorm=True)

    message = refused(model)
    assert "apply_residual_connection_post_layernorm" in message
    assert "effective_head" in message


@pytest.mark.parametrize(
    ("name", "part"),
    [("mixtral", "MixtralTopKRouter"), ("mamba", "MambaMixer"), ("rwkv", "RwkvSelfAttention")],
)
def test_blocks_with_parts_of_unknown_role_are_refused_by_name(name, part):
    message = refused(known[name]())

    assert f"a {part}, is unknown" in message
    assert "no experts" in message


def test_an_adapter_that_is_not_merged_is_refused():
    class Adapter(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

        def forward(self, x):
            return self.base_layer(x)

    model = known["llama"]()
    attention = model.model.layers[1].self_attn
    attention.q_proj = Adapter(attention.q_proj)

    message = refused(model)
    assert "model.layers.1.self_attn.q_proj.base_layer" in message
    assert "adapters merged" in message


def test_cross_attention_is_refused():
    model = known["gpt2"](add_cross_attention=True)

    assert "crossattention" in refused(model)


def test_a_norm_of_an_unknown_kind_inside_a_block_is_refused_by_its_path():
    model = known["llama"]()
    norm = model.model.layers[1].input_layernorm
    norm.forward = lambda x: torch.tanh(x) * norm.weight

    message = refused(model)
    assert message.startswith("model.layers.1.input_layernorm, a LlamaRMSNorm, is neither")


def test_norms_of_two_kinds_in_one_model_are_refused():
    model = known["gpt2"]()
    model.transformer.h[1].ln_2 = nn.RMSNorm(families.WIDTH, eps=1e-5)

    message = refused(model)
    assert "transformer.h.1.ln_2 is of kind 'rms' and the final norm of kind 'layer'" in message


def test_a_layer_norm_model_that_reads_its_stream_without_a_norm_is_refused():
    model = known["gpt2"]()
    model.transformer.h[1].ln_1 = nn.Identity()

    assert "reads the stream without a LayerNorm" in refused(model)


def test_quantised_weights_are_refused_by_name_and_dtype():
    model = known["llama"]()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)

    message = refused(model)
    assert "model.layers.0.mlp.up_proj.weight is torch.int8" in message
    assert "de-quantised" in message


def test_float8_weights_count_as_quantised():
    model = known["llama"]()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)

    assert "float8_e4m3fn" in refused(model)


def test_weights_in_a_tensor_class_of_a_quantiser_are_refused_whatever_dtype_they_name():
    class Packed(torch.Tensor):
        pass

    model = known["llama"]()
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Packed), requires_grad=False)

    assert layer.weight.dtype == torch.float32
    assert "model.layers.0.mlp.up_proj.weight is Packed" in refused(model)


def test_a_model_whose_quantised_file_was_read_into_plain_numbers_is_folded():
    model = known["llama"]()
    model.is_quantized = True  # as transformers leaves it after reading a GGUF file

    assert fold_norm(model).deviation < 1e-5


@pytest.mark.parametrize("step", ["_centred", "_fold_gain"])
def test_a_fold_that_forgets_a_step_is_caught_by_its_own_proof(step, monkeypatch):
    forgetful = {
        "_centred": lambda x: x,
        # Gain and bias are dropped on the floor.
        "_fold_gain": lambda model, norm, readers, located: model.set_submodule(
            norm, GainFreeRMS(located.unembedding.eps)
        ),
    }
    monkeypatch.setattr(folded_model, step, forgetful[step])

    message = refused(known["gpt2"]())
    assert "logits differ by" in message
    assert "expected 1e-04" in message


def test_folding_in_bfloat16_is_refused():
    with pytest.raises(RecipeError, match="bfloat16 would not be exact; expected float64"):
        fold_norm(known["gpt2"](), dtype=torch.bfloat16)


def test_an_rms_model_cannot_be_compressed():
    with pytest.raises(RecipeError, match="its norm keeps the mean"):
        compress(case("llama").folded)


def test_rotating_and_compressing_exclude_each_other():
    made = case("gpt2")
    turn = torch.eye(families.WIDTH).double()

    for change in (compress, lambda folded: rotate(folded, turn)):
        with pytest.raises(RecipeError, match=r"rotated already.*fold_norm\(model\)"):
            change(made.rotated)
        with pytest.raises(RecipeError, match="compressed already"):
            change(compress(made.folded))


def test_a_rotation_must_be_square_and_orthogonal_to_float64():
    folded = case("llama").folded
    turn = case("llama").rotation

    with pytest.raises(RecipeError, match=r"\(32, 32\), not \(32, 6\)"):
        rotate(folded, turn[:, -6:])
    with pytest.raises(RecipeError, match="computed in float32"):
        rotate(folded, turn.float())
    with pytest.raises(RecipeError, match="not orthogonal"):
        rotate(folded, 2 * turn)


def test_a_gain_of_a_float64_model_is_read_in_float64():
    norm = case("gemma").model.model.norm
    _, gain, _, _ = read_norm(norm, "the norm", norm.weight)

    assert torch.equal(gain, 1 + norm.weight)
