import threading
from dataclasses import replace

import families
import pytest
import torch

from retrm.backbone.base import Rendered
from retrm.backbone.batching import build, plan_batches
from retrm.backbone.states import TransformersBackbone
from retrm.errors import BackboneError, OverlongError, RecipeError

L = families.N_LAYERS


def backbone(family: str = "llama", **options: object) -> TransformersBackbone:
    return families.backbone_of(families.FAMILIES[family](**options), f"tiny {family}")


def batch(*lengths: int, share: bool = False):
    """One batch of answers of `lengths` tokens behind the prompt 5 6 7."""
    rendered = [
        Rendered((5, 6, 7, *((11 * n + i) % 90 + 8 for i in range(n))), 3, 3 + n) for n in lengths
    ]
    (plan,) = plan_batches(rendered, tokens_per_batch=4096, share_prompts=share)
    return build(plan, rendered, pad_id=0)


def visited(made: TransformersBackbone, wanted, laid=None) -> list[tuple[int, str]]:
    order = []
    made.forward(laid or batch(4), wanted, lambda layer, point, _: order.append((layer, point)))
    return order


def calls(made: TransformersBackbone) -> list[int]:
    """A list that grows by the block index whenever a block runs, and by -1 for the final norm."""
    seen: list[int] = []
    for i, module in enumerate([*made.located.blocks, made.located.final_norm]):
        name = i if i < L else -1
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    return seen


def n_hooks(made: TransformersBackbone) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in made.model.modules())


def test_visits_come_in_ascending_layers_and_residual_first() -> None:
    wanted = [(L, "post_norm"), (1, "post_norm"), (L, "residual"), (0, "residual"), (1, "residual")]

    assert visited(backbone(), wanted) == [
        (0, "residual"),
        (1, "residual"),
        (1, "post_norm"),
        (L, "residual"),
        (L, "post_norm"),
    ]


def test_repeated_wishes_are_visited_once() -> None:
    assert visited(backbone(), [(1, "residual"), (1, "residual")]) == [(1, "residual")]


def test_nothing_wanted_runs_nothing() -> None:
    made = backbone()
    seen = calls(made)

    assert visited(made, []) == []
    assert seen == []


@pytest.mark.parametrize(
    ("wanted", "runs"),
    [
        ([(0, "residual")], []),
        ([(0, "post_norm")], []),  # the norm's `forward` is no call of the module
        ([(1, "residual"), (0, "residual")], [0]),
        ([(2, "post_norm")], [0, 1]),
        ([(L, "residual")], [0, 1, 2]),
        ([(L, "post_norm")], [0, 1, 2, -1]),
    ],
)
def test_blocks_above_the_highest_wanted_layer_do_not_run(wanted: list, runs: list[int]) -> None:
    made = backbone()
    seen = calls(made)
    visited(made, wanted)

    # A module whose hook raises does not reach the hook that counts: -1 is the one exception.
    assert [i for i in seen if i >= 0] == [i for i in runs if i >= 0]


def test_the_lm_head_never_runs() -> None:
    made = backbone()
    made.model.lm_head.register_forward_hook(lambda *_: pytest.fail("the LM head ran"))

    assert visited(made, [(L, "post_norm")]) == [(L, "post_norm")]


@pytest.mark.parametrize("layer", [-1, L + 1])
def test_layer_out_of_range_is_refused_before_anything_runs(layer: int) -> None:
    made = backbone()
    seen = calls(made)

    with pytest.raises(RecipeError, match=rf"got layer {layer}; tiny llama has layers 0 .* to 3"):
        visited(made, [(0, "residual"), (layer, "residual")])
    assert seen == []


def test_unknown_state_point_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'post_norm'"):
        visited(backbone(), [(1, "postnorm")])


def test_several_answers_in_a_row_are_refused_where_they_cannot_be_kept_apart() -> None:
    with pytest.raises(BackboneError, match="share_prompts=False"):
        visited(backbone("mamba"), [(1, "residual")], batch(4, 5, share=True))


def test_a_row_beyond_the_context_is_refused() -> None:
    # 3 + 62 = 65 tokens: the last stands at position 64 of a context of 64.
    with pytest.raises(OverlongError, match=r"reaches position 64; .* context of 64 tokens"):
        visited(backbone(), [(1, "residual")], batch(62))
    assert visited(backbone(), [(1, "residual")], batch(61)) == [(1, "residual")]


def test_a_model_put_back_into_training_mode_is_refused() -> None:
    made = backbone()
    made.model.train()

    with pytest.raises(BackboneError, match="training mode"):
        visited(made, [(1, "residual")])


@pytest.mark.parametrize("wanted", [[(0, "residual")], [(L, "post_norm")]])
def test_hooks_are_gone_after_a_pass(wanted: list) -> None:
    made = backbone()
    visited(made, wanted)

    assert n_hooks(made) == 0


@pytest.mark.parametrize("layer", [0, 2, L])
def test_an_error_of_the_visitor_comes_through_and_leaves_no_hook(layer: int) -> None:
    made = backbone()

    def visit(layer, point, state):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        made.forward(batch(4), [(layer, "residual"), (L, "post_norm")], visit)
    assert n_hooks(made) == 0
    assert visited(made, [(1, "residual")]) == [(1, "residual")]


def test_blocks_that_are_not_called_are_noticed() -> None:
    made = backbone()
    made.located.decoder.layers = torch.nn.ModuleList(list(made.located.blocks)[:2])

    with pytest.raises(BackboneError, match=r"without passing layers \[\(2, 'residual'\)\]"):
        visited(made, [(1, "residual"), (2, "residual")])


def test_a_block_that_runs_twice_is_noticed() -> None:
    made = backbone()
    first, second, _ = made.located.blocks
    made.located.decoder.layers = torch.nn.ModuleList([first, second, second])

    with pytest.raises(BackboneError, match="layer 1 of tiny llama ran twice"):
        visited(made, [(1, "residual"), (L, "residual")])


def test_a_pass_of_another_thread_over_the_same_model_is_not_read() -> None:
    made, order = backbone(), []

    def visit(layer, point, state):
        order.append((layer, tuple(state.shape[:2])))
        other = threading.Thread(target=lambda: made.model(torch.full((2, 9), 3), use_cache=False))
        other.start()
        other.join()

    made.forward(batch(4), [(1, "residual"), (L, "post_norm")], visit)

    assert order == [(1, (1, 7)), (L, (1, 7))]


def test_states_need_no_gradient() -> None:
    made = backbone()
    made.model.requires_grad_(True)
    order: list[bool] = []
    made.forward(batch(4), [(1, "residual")], lambda _l, _p, x: order.append(x.requires_grad))

    assert order == [False]


@pytest.mark.parametrize("family", ["llama", "mistral-eager", "gemma2", "gpt2"])
@pytest.mark.parametrize("share", [True, False])
def test_padding_holds_finite_numbers(family: str, share: bool) -> None:
    made = backbone(family)
    laid = batch(20, 3, 2, share=share)
    found: list[bool] = []
    made.forward(
        laid,
        [(i, "residual") for i in range(L + 1)],
        lambda _l, _p, x: found.append(bool(x.isfinite().all())),
    )

    assert found == [True] * (L + 1)


def test_long_and_short_rows_meet_in_a_batch_without_changing_each_other() -> None:
    # LongRoPE takes the frequencies of the batch's longest row: beyond 16 tokens the long ones.
    rope = {"rope_type": "longrope", "rope_theta": 1e4}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [5.0] * 4}
    made = backbone("phi3", rope_parameters=rope, original_max_position_embeddings=16)
    wanted = [(2, "residual"), (L, "post_norm")]

    def read(laid) -> dict:
        out = {}
        made.forward(laid, wanted, lambda layer, point, x: out.update({(layer, point): x.clone()}))
        return out

    together, long, short = read(batch(30, 5)), read(batch(30)), read(batch(5))
    made.located = replace(made.located, switch_at=None)
    naive = read(batch(30, 5))

    assert list(together) == wanted
    for key in wanted:
        torch.testing.assert_close(together[key][:1], long[key], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together[key][1:, :8], short[key], rtol=1e-5, atol=1e-5)
        assert (naive[key][1:, :8] - short[key]).abs().max() > 1e-3


def test_sizes_are_those_of_the_model() -> None:
    made = backbone("gpt2")

    assert (made.n_layers, made.width, made.vocab_size) == (L, families.WIDTH, families.VOCAB_SIZE)
    assert (made.context_length, made.dtype) == (families.CONTEXT, torch.float32)
    assert made.device == torch.device("cpu")
