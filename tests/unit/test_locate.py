import families
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM
from transformers.models.gemma3 import Gemma3ForConditionalGeneration

from retrm.backbone.base import Unembedding
from retrm.backbone.locate import NO_LIMIT, apply_norm, locate, logits_of
from retrm.errors import BackboneError


def test_gemma_gain_is_one_plus_the_stored_weight() -> None:
    model = families.FAMILIES["gemma2"]()
    stored = model.model.norm.weight

    torch.testing.assert_close(locate(model).unembedding.gain, 1 + stored)


def test_llama_gain_is_the_stored_weight() -> None:
    model = families.FAMILIES["llama"]()

    assert locate(model).unembedding.gain.data_ptr() == model.model.norm.weight.data_ptr()


def test_norm_without_affine_parameters_has_no_gain() -> None:
    unembedding = locate(families.FAMILIES["olmo"]()).unembedding

    assert (unembedding.norm_kind, unembedding.gain, unembedding.norm_bias) == ("layer", None, None)


def test_eps_that_the_norm_states_but_does_not_use_is_noticed() -> None:
    model = families.FAMILIES["llama"]()
    norm = model.model.norm
    norm.forward = lambda x: apply_norm(x, norm.weight, None, "rms", 1e-2)

    with pytest.raises(BackboneError, match="neither RMSNorm nor LayerNorm"):
        locate(model)


def test_norm_of_another_kind_is_refused() -> None:
    model = families.FAMILIES["llama"]()
    model.model.norm.forward = lambda x: torch.tanh(x)

    with pytest.raises(BackboneError, match="a LlamaRMSNorm, is neither RMSNorm nor LayerNorm"):
        locate(model)


def test_eps_that_differs_from_the_default_is_read() -> None:
    model = families.FAMILIES["llama"](rms_norm_eps=1e-3)

    assert locate(model).unembedding.eps == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("family", "scale", "softcap"),
    [
        ("granite", 0.25, None),  # logits_scaling 4 divides: 1/4
        ("cohere", 0.25, None),  # logit_scale multiplies
        ("gemma2", 1.0, 3.0),
        ("llama", 1.0, None),
    ],
)
def test_logit_scale_and_softcap(family: str, scale: float, softcap: float | None) -> None:
    unembedding = locate(families.FAMILIES[family]()).unembedding

    assert (unembedding.logit_scale, unembedding.softcap) == (scale, softcap)


@pytest.mark.parametrize("is_tied", [True, False])
def test_weight_is_that_of_the_lm_head_whether_tied_or_not(is_tied: bool) -> None:
    model = families.FAMILIES["llama"](tie_word_embeddings=is_tied)
    unembedding = locate(model).unembedding

    assert unembedding.is_tied is is_tied
    assert unembedding.weight.data_ptr() == model.lm_head.weight.data_ptr()
    assert torch.equal(unembedding.weight, model.model.embed_tokens.weight) is is_tied


def test_bias_of_the_lm_head_is_kept() -> None:
    model = families.FAMILIES["phi"]()

    assert torch.equal(locate(model).unembedding.bias, model.lm_head.bias)


def test_context_length_of_attention_and_state_space_models() -> None:
    for family, expected in [("gpt2", families.CONTEXT), ("llama", families.CONTEXT)]:
        assert locate(families.FAMILIES[family]()).context_length == expected
    for family in ("mamba", "rwkv"):
        assert locate(families.FAMILIES[family]()).context_length == NO_LIMIT


def test_unused_extra_blocks_are_left_out() -> None:
    model = families.FAMILIES["llama"]()
    model.config.num_hidden_layers = 2

    assert len(locate(model).blocks) == 2


def test_missing_blocks_are_refused() -> None:
    model = families.FAMILIES["llama"]()
    model.config.num_hidden_layers = 5

    with pytest.raises(BackboneError, match="holds 3 different blocks where its config says 5"):
        locate(model)


def test_text_decoder_of_a_vision_language_model_is_found() -> None:
    text = {**families.FAMILIES["gemma3"].keywords, "use_bidirectional_attention": False}
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision)
    model = Gemma3ForConditionalGeneration(config).eval()
    located = locate(model)

    assert located.decoder is model.model.language_model
    assert (located.width, len(located.blocks)) == (families.WIDTH, families.N_LAYERS)


def test_flash_attention_cannot_share_rows() -> None:
    model = families.FAMILIES["llama"]()
    assert locate(model).shares_prompts
    model.config._attn_implementation_internal = "flash_attention_2"

    assert not locate(model).shares_prompts


def test_frequencies_that_follow_the_batch_forbid_shared_rows() -> None:
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    long = {"rope_type": "longrope", "rope_theta": 1e4}
    long |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    llama = locate(families.FAMILIES["llama"](rope_parameters=dynamic))
    phi = locate(
        families.FAMILIES["phi3"](rope_parameters=long, original_max_position_embeddings=16)
    )

    assert (llama.shares_prompts, llama.switch_at) == (False, None)
    assert (phi.shares_prompts, phi.switch_at) == (False, 16)


def test_encoder_decoder_is_refused() -> None:
    config = AutoConfig.for_model(
        "t5", vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )

    with pytest.raises(BackboneError, match="encoder-decoder"):
        locate(AutoModelForSeq2SeqLM.from_config(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_layer_norm_before": False}, "post-LN"),
        ({"word_embed_proj_dim": 16}, "projection of width 16, not the states of width 32"),
    ],
)
def test_members_of_opt_that_are_built_otherwise_are_refused(change: dict, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        locate(families.FAMILIES["opt"](**change))


def test_attention_that_looks_forward_is_refused() -> None:
    with pytest.raises(BackboneError, match="looks forward"):
        locate(families.FAMILIES["gemma3"](use_bidirectional_attention=True))


def test_model_without_lm_head_is_refused() -> None:
    causal = families.FAMILIES["llama"]()
    headless = AutoModel.from_config(causal.config)

    with pytest.raises(BackboneError, match=r"cannot find the parts|has no LM head"):
        locate(headless)


def test_module_that_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(BackboneError, match="got a Linear without a transformers config"):
        locate(nn.Linear(2, 2))


def test_unknown_family_without_the_usual_names_lists_what_was_looked_for() -> None:
    model = families.UNLISTED["stablelm"]()
    model.model.strata = model.model.layers
    del model.model.layers

    with pytest.raises(BackboneError, match=r"looked for a decoder at .*blocks at layers, h,"):
        locate(model)


def test_unknown_family_whose_logits_are_not_reproduced_is_refused() -> None:
    model = families.UNLISTED["stablelm"]()
    plain = model.lm_head.forward
    assert locate(model).model_type == "stablelm"
    model.lm_head.forward = lambda x: plain(x) * 3

    with pytest.raises(BackboneError, match="does not reproduce its logits"):
        locate(model)


def test_post_ln_model_of_an_unknown_family_is_refused() -> None:
    config = AutoConfig.for_model("openai-gpt", vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    model = families.AutoModelForCausalLM.from_config(config)

    with pytest.raises(BackboneError, match="final norm at"):
        locate(model)


def test_locating_leaves_model_mode_and_hooks_as_they_were() -> None:
    model = families.UNLISTED["stablelm"]().train()
    locate(model)

    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_apply_norm_on_the_worked_example() -> None:
    # x = (1, 2, 6): mean 3, centred (-2, -1, 3), var 14/3; times g = (1, 2, .5), plus b.
    x = torch.tensor([1.0, 2.0, 6.0])
    gain, bias = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.1, 0.0, -0.2])

    layer = apply_norm(x, gain, bias, "layer", 0.0)
    # rms: mean of squares 41/3, its root 3.696846.
    rms = apply_norm(x, None, None, "rms", 0.0)

    torch.testing.assert_close(layer, torch.tensor([-0.825820, -0.925820, 0.494365]))
    torch.testing.assert_close(rms, torch.tensor([1.0, 2.0, 6.0]) / 3.696846)


def test_logits_of_applies_bias_then_scale_then_cap() -> None:
    # w . x = 2*3 + 1*(-1) = 5; + bias 1 = 6; * scale .5 = 3; cap 2: 2 tanh(1.5) = 1.810297
    u = Unembedding(
        weight=torch.tensor([[2.0, 1.0]]),
        bias=torch.tensor([1.0]),
        gain=None,
        norm_bias=None,
        norm_kind="rms",
        eps=0.0,
        logit_scale=0.5,
        softcap=2.0,
    )

    assert float(logits_of(torch.tensor([3.0, -1.0]), u)) == pytest.approx(1.810297, abs=1e-6)
