"""A removal changes exactly the named component, for everything that runs, and nothing after."""

import threading

import families
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from removals import (
    EVERY,
    RESIDUALS,
    L,
    bare,
    basis_of,
    batch,
    n_hooks,
    states,
    talking,
)

from retrm.audit.removal import Change, MeanReducer, removed
from retrm.backbone.batching import build, plan_batches
from retrm.backbone.decode import CachedDecoder, RereadDecoder
from retrm.backbone.fake import FakeBackbone
from retrm.backbone.generate import sample
from retrm.errors import BackboneError, RecipeError, ShapeError
from retrm.features.read import read, render_all
from retrm.features.recipe import Recipe
from retrm.features.subspace import Subspace, fit_spectrum
from retrm.records import Answer, Prompt

READ = "llama", "gpt2", "gpt_neox", "gemma2", "falcon", "mamba", "rwkv"
CACHED = "llama", "gpt2", "gpt_neox", "opt", "gemma2", "qwen2-window", "phi"


def rest_of(basis: Subspace) -> Subspace:
    """All directions that are orthogonal to `basis`."""
    full = torch.linalg.qr(
        torch.cat([basis.basis.T.double(), torch.eye(basis.width, dtype=torch.float64)], dim=1)
    )[0]
    rows = full[:, basis.n_dims : basis.width].T.float().contiguous()
    return Subspace(rows, basis.singular_values, basis.point, "rest", 0)


SPECTRUM = fit_spectrum(bare().unembedding, "residual")


@pytest.mark.parametrize("family", READ)
@pytest.mark.parametrize("part", ["reasoning", "semantic", "random"])
def test_the_component_is_gone_at_the_layer_and_nothing_changes_below_it(family, part):
    made, layer = bare(family), 2
    basis = basis_of(made, part)
    before = states(made)
    with removed(made, [layer], Change(basis)):
        after = states(made)

    size = before[layer, "residual"].norm(dim=-1).max()
    assert basis.project(before[layer, "residual"]).abs().max() > 1e-3 * size
    assert basis.project(after[layer, "residual"]).abs().max() < 1e-6 * size
    expected = basis.remove(before[layer, "residual"])
    torch.testing.assert_close(after[layer, "residual"], expected)
    for below in range(layer):
        assert torch.equal(after[below, "residual"], before[below, "residual"])
    assert (after[L, "post_norm"] - before[L, "post_norm"]).abs().max() > 1e-3


def test_read_sees_coefficients_of_zero_at_every_changed_layer_and_others_elsewhere():
    made = talking()
    basis = basis_of(made, m=4)
    answers = [Answer.of("What is 2 + 2?", "4"), Answer.of("Why?", "Because it is so.")]
    recipe = Recipe(layers="all", point="residual", subspace="reasoning:4", pooling="tokens")
    with removed(made, [1, 3], Change(basis)):
        values = read(made, answers, {"r": recipe}).features["r"].values.reshape(-1, L + 1, 4)

    assert values[:, [1, 3]].abs().max() < 1e-6
    assert values[:, [0, 2]].abs().amax(dim=(0, 2)).min() > 1e-2


@pytest.mark.parametrize("layer", range(L + 1))
def test_every_layer_from_the_embedding_to_the_last_can_be_changed(layer):
    made = bare()
    basis = basis_of(made)
    with removed(made, [layer], Change(basis)):
        after = states(made)

    size = after[layer, "residual"].norm(dim=-1).max()
    assert basis.project(after[layer, "residual"]).abs().max() < 1e-6 * size
    others = [basis.project(after[i, "residual"]).abs().max() for i in range(L + 1) if i != layer]
    assert min(others) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_post_norm_basis_changes_only_what_the_lm_head_multiplies(family):
    made = bare(family)
    basis = basis_of(made, "semantic", point="post_norm")
    before = states(made)
    with removed(made, [L], Change(basis)):
        after = states(made)

    torch.testing.assert_close(after[L, "post_norm"], basis.remove(before[L, "post_norm"]))
    for state in RESIDUALS:
        assert torch.equal(after[state], before[state])


def test_removing_everything_but_a_subspace_twice_is_removing_it_once():
    made = bare()
    rest = rest_of(basis_of(made))
    before = states(made)
    with removed(made, [1, 2], Change(rest)):
        once = states(made)
        with removed(made, [1, 2], Change(rest)):
            twice = states(made)

    for state in EVERY:
        torch.testing.assert_close(twice[state], once[state], atol=1e-5, rtol=1e-5)
    assert (once[L, "post_norm"] - before[L, "post_norm"]).abs().max() > 1e-2


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 31), st.integers(0, 99), st.sampled_from(["reasoning", "semantic", "random"]))
def test_what_is_removed_and_what_is_left_share_the_energy(m, seed, part):
    basis = SPECTRUM.subspace(part, m, seed=seed)
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(seed)) * 10
    left = Change(basis).apply(1, x)

    # Pythagoras: |x|^2 = |x'|^2 + |B x|^2
    total = left.square().sum(1) + basis.project(x).square().sum(1)
    torch.testing.assert_close(total, x.square().sum(1), rtol=1e-4, atol=1e-4)


def test_a_direction_the_lm_head_does_not_see_is_removed_at_post_norm_without_effect():
    model = families.FAMILIES["llama"]()
    weight = model.get_output_embeddings().weight
    null = torch.nn.functional.normalize(torch.randn(families.WIDTH), dim=0)
    weight.data -= (weight @ null)[:, None] * null
    made = families.backbone_of(model, "null")
    ids = torch.tensor([[5, 9, 23, 40]])

    def logits() -> torch.Tensor:
        with torch.inference_mode():
            return made.model(input_ids=ids).logits

    before = logits()
    tail, top = (basis_of(made, part, 1, "post_norm") for part in ("reasoning", "semantic"))
    assert (tail.basis[0] @ null).abs() > 1 - 1e-5
    with removed(made, [L], Change(tail)):
        assert (
            basis_of(made, "reasoning", 1, "post_norm")
            .project(states(made)[L, "post_norm"])
            .abs()
            .max()
            < 1e-6
        )
        assert (logits() - before).abs().max() < 1e-5
    with removed(made, [L], Change(top)):
        assert (logits() - before).abs().max() > 1e-2


def test_the_mean_that_is_put_back_is_what_a_reading_finds():
    made = bare("gpt2")
    basis, means = basis_of(made), {1: torch.arange(5.0), 3: torch.ones(5)}
    with removed(made, [1, 3], Change(basis, means)):
        after = states(made)

    for layer, mean in means.items():
        found = basis.project(after[layer, "residual"])
        torch.testing.assert_close(found, mean.expand_as(found), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [False, True])
def test_the_first_token_is_spared_and_no_other(share):
    made, laid = bare(), batch(7, 4, share=share)
    basis = basis_of(made)
    with removed(made, [1], Change(basis), spare_first=True):
        after = basis.project(states(made, laid)[1, "residual"])
    before = basis.project(states(made, laid)[1, "residual"])

    assert torch.equal(after[:, 0], before[:, 0])
    is_later = laid.positions > 0
    assert after[is_later].abs().max() < 1e-5
    assert before[is_later].abs().max() > 1e-2


def test_answers_that_share_a_prompt_are_changed_as_answers_apart():
    made = bare()
    with removed(made, [0, 2], Change(basis_of(made))):
        together = states(made, batch(7, 4, share=True))[L, "post_norm"][0]
        apart = states(made, batch(7, 4))[L, "post_norm"]

    # One row: 3 tokens of the prompt, 7 of the longer answer, 4 of the other.
    torch.testing.assert_close(together[3:10], apart[0, 3:10], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[10:14], apart[1, 3:7], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", CACHED)
@pytest.mark.parametrize(
    ("layers", "point", "spare_first"),
    [([0, 2, L], "residual", False), ([1, 2], "residual", True), ([L], "post_norm", False)],
)
def test_cached_decoding_under_removal_equals_reading_again(family, layers, point, spare_first):
    made = bare(family)
    basis = basis_of(made, "semantic", point=point)
    prompts, tokens = [(5, 6, 7, 8, 9), (11, 12)], [[20, 30], [21, 31], [22, 32]]

    def run(decoder) -> list[torch.Tensor]:
        return [decoder.add(prompts, [1, 1]), *(decoder.step(step) for step in tokens)]

    plain = run(RereadDecoder(made))
    with removed(made, layers, Change(basis), spare_first=spare_first):
        cached, again = run(CachedDecoder(made.model)), run(RereadDecoder(made))

    for fast, slow, unchanged in zip(cached, again, plain, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)
        assert (slow - unchanged).abs().max() > 1e-2


def test_sampling_inside_the_context_differs_and_afterwards_is_as_before():
    made = talking()
    prompts, options = [Prompt.of("Hi"), Prompt.of("What is 2 + 2?")], {"max_new_tokens": 12}

    def drawn() -> list[tuple[int, ...] | None]:
        return [s.token_ids for s in sample(made, prompts, temperature=0, **options)]

    before = drawn()
    with removed(made, range(L + 1), Change(basis_of(made, "semantic", 8))):
        assert drawn() != before
    assert drawn() == before


def test_hooks_are_gone_after_an_error_inside_and_after_one_at_the_door():
    made = bare()
    basis, at_first = basis_of(made), n_hooks(made)
    with (
        pytest.raises(ZeroDivisionError),
        removed(made, [0, 1, L], Change(basis), spare_first=True),
    ):
        assert n_hooks(made) == at_first + 4  # three layers and the position ids
        raise ZeroDivisionError
    assert n_hooks(made) == at_first
    with pytest.raises(RecipeError), removed(made, [0, 9], Change(basis)):
        pass
    assert n_hooks(made) == at_first


def test_another_thread_sees_the_model_as_it_is():
    made, found = bare(), {}
    before = states(made)
    with removed(made, [1], Change(basis_of(made))):
        worker = threading.Thread(target=lambda: found.update(states(made)))
        worker.start()
        worker.join()

    assert all(torch.equal(found[state], before[state]) for state in EVERY)


def test_low_precision_states_keep_their_dtype():
    made = bare()
    made.model.to(torch.bfloat16)
    basis = basis_of(made)
    with removed(made, [1], Change(basis)):
        after = states(made, wanted=[(1, "residual")])[1, "residual"]

    assert after.dtype == torch.bfloat16
    # Cast back, each entry is off by at most 2^-9 of itself.
    assert basis.project(after).norm(dim=-1).max() < 2**-8 * after.float().norm(dim=-1).max()


@pytest.mark.parametrize(
    ("layers", "point", "means", "error", "telling"),
    [
        ([], "residual", {}, RecipeError, "no layers"),
        ([L + 1], "residual", {}, RecipeError, f"got layer {L + 1}"),
        ([-1], "residual", {}, RecipeError, "got layer -1"),
        ([1], "post_norm", {}, RecipeError, "Use a residual basis"),
        ([1, L], "post_norm", {}, RecipeError, "post_norm basis (raw W) for layer 1"),
        ([1, 2], "residual", {1: torch.zeros(5)}, RecipeError, "without those of layers [2]"),
        ([1], "residual", {1: torch.zeros(4)}, ShapeError, "expected (5,)"),
    ],
)
def test_impossible_removals_are_refused(layers, point, means, error, telling):
    made = bare()
    change = Change(basis_of(made, point=point), means)
    with pytest.raises(error) as caught, removed(made, layers, change):
        pass
    assert telling in str(caught.value)


def test_a_basis_of_another_width_is_refused():
    with (
        pytest.raises(ShapeError, match=r"got a basis of width 16; the states .* have width 32"),
        removed(bare(), [1], Change(basis_of(talking()))),
    ):
        pass


def test_a_backbone_without_modules_is_refused():
    fake = FakeBackbone()
    with (
        pytest.raises(BackboneError, match="got a FakeBackbone; expected a transformers model"),
        removed(fake, [1], Change(basis_of(fake))),
    ):
        pass


def test_sparing_the_first_token_needs_position_ids():
    made = bare("mamba")
    with (
        pytest.raises(RecipeError, match="takes no position ids"),
        removed(made, [1], Change(basis_of(made)), spare_first=True),
    ):
        pass


def test_means_count_each_token_of_a_shared_prompt_once_and_no_first_token():
    made = talking("gpt2")
    question = Prompt.of("What is 2 + 2?")
    answers = [Answer.of(question, text) for text in ("4", "It is 5, I think.", "")]
    answers.append(Answer.of("Why?", "So."))
    wanted = [(1, "residual"), (L, "post_norm")]
    totals = MeanReducer(wanted)
    read(made, answers, {}, reducers={"totals": totals}, tokens_per_batch=4096)
    found = totals.means()

    rendered = render_all(made, answers).rendered
    rows = {state: [] for state in wanted}
    seen = set()
    for item in rendered:
        (plan,) = plan_batches([item], tokens_per_batch=4096)
        alone = states(made, build(plan, [item], pad_id=0), wanted)
        prompt = item.ids[: item.start]
        start = item.start if prompt in seen else 1
        seen.add(prompt)
        for state in wanted:
            rows[state].append(alone[state][0, start : item.stop])
    for state in wanted:
        expected = torch.cat(rows[state]).mean(0)
        torch.testing.assert_close(found[state], expected, atol=1e-5, rtol=1e-4)
