"""Every family against a plain reading of transformers: one sequence, no padding, no hooks of ours."""

import dataclasses
from collections.abc import Sequence
from functools import cache

import families
import pytest
import torch
from torch import Tensor

from retrm.backbone.base import Rendered
from retrm.backbone.batching import build, plan_batches
from retrm.backbone.locate import FAMILIES as KNOWN
from retrm.backbone.locate import apply_norm, logits_of
from retrm.backbone.states import TransformersBackbone

BUILDERS = {**families.FAMILIES, **families.UNLISTED}
ALL = pytest.mark.parametrize("family", BUILDERS)
# transformers leaves the embedding out of `hidden_states` of these: entry i is layer i + 1.
WITHOUT_EMBEDDING = ("mamba", "rwkv")
TOLERANCE = 1e-5


@cache
def backbone(family: str) -> TransformersBackbone:
    return families.backbone_of(BUILDERS[family](), family)


SHARING = [name for name in families.FAMILIES if backbone(name).shares_prompts]


def answers() -> list[Rendered]:
    """Seven answers to three prompts, rows longer than the window of 6; token ids above 2."""
    draw = torch.Generator().manual_seed(1)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, families.VOCAB_SIZE, (n,), generator=draw).tolist())

    first, second, third = ids(9), ids(4), ids(17)
    return [
        Rendered(prompt + ids(n), len(prompt), len(prompt) + n)
        for prompt, n in [
            (first, 5),
            (second, 12),
            (first, 1),
            (third, 8),
            (first, 11),
            (second, 3),
        ]
    ] + [Rendered(first + ids(6) + ids(2), len(first), len(first) + 6)]


def all_states(made: TransformersBackbone) -> list[tuple[int, str]]:
    return [(i, p) for i in range(made.n_layers + 1) for p in ("residual", "post_norm")]


def read(
    made: TransformersBackbone, rendered: Sequence[Rendered], *, share: bool, budget: int = 4096
) -> list[dict[tuple[int, str], Tensor]]:
    """States of the judged tokens of every answer, (n_response, width) each."""
    out: list[dict] = [{} for _ in rendered]
    for plan in plan_batches(rendered, tokens_per_batch=budget, share_prompts=share):
        batch = build(plan, rendered, pad_id=0)

        def visit(layer, point, state, batch=batch):
            for i, row, span in zip(batch.answers, batch.rows, batch.spans, strict=True):
                out[i][layer, point] = state[row, span].clone()

        made.forward(batch, all_states(made), visit)
    return out


@cache
def plain(family: str) -> list[dict[tuple[int, str], Tensor]]:
    """The same by `output_hidden_states`, one answer at a time; residual L is not in there."""
    made, out = backbone(family), []
    for item in answers():
        with torch.no_grad():
            ids = torch.tensor([item.ids[: item.stop]])
            result = made.model(ids, output_hidden_states=True, use_cache=False)
        entries = result.hidden_states
        shift = int(family in WITHOUT_EMBEDDING)
        n_layers, states = made.n_layers, {}
        # L+1 entries either way: the last is post_norm, and Mamba's L-th is the residual at L.
        assert len(entries) == n_layers + 1
        for entry, state in enumerate(entries[:-1]):
            states[entry + shift, "residual"] = state[0, item.start :]
        states[n_layers, "post_norm"] = entries[-1][0, item.start :]
        out.append({**states, "logits": result.logits[0, item.start :]})
    return out


def error(got: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest number expected."""
    return float((got - expected).abs().max() / expected.abs().max())


@ALL
def test_every_layer_equals_the_plain_reading(family: str) -> None:
    made = backbone(family)
    got = read(made, answers(), share=False, budget=1)  # one answer a batch: no padding

    for mine, theirs in zip(got, plain(family), strict=True):
        layers = [key for key in theirs if key != "logits"]
        assert len(layers) == made.n_layers + 1
        for key in layers:
            assert error(mine[key], theirs[key]) < TOLERANCE, key


@ALL
def test_final_norm_of_the_last_residual_is_post_norm(family: str) -> None:
    made = backbone(family)
    for mine in read(made, answers(), share=False):
        with torch.no_grad():
            for layer in range(made.n_layers + 1):
                normed = made.located.final_norm(mine[layer, "residual"])
                assert error(mine[layer, "post_norm"], normed) < TOLERANCE

    # Both directions: the two state points are not the same tensor by accident.
    assert error(mine[made.n_layers, "residual"], mine[made.n_layers, "post_norm"]) > 0.01


@ALL
def test_unembedding_describes_norm_and_logits(family: str) -> None:
    made = backbone(family)
    u = made.unembedding
    for mine, theirs in zip(read(made, answers(), share=False), plain(family), strict=True):
        residual, post_norm = (mine[made.n_layers, p] for p in ("residual", "post_norm"))
        by_hand = apply_norm(residual, u.gain, u.norm_bias, u.norm_kind, u.eps)
        other = apply_norm(
            residual, u.gain, u.norm_bias, "layer" if u.norm_kind == "rms" else "rms", u.eps
        )

        assert error(by_hand, post_norm) < TOLERANCE
        assert error(other, post_norm) > 1e-3
        assert error(logits_of(post_norm, u), theirs["logits"]) < TOLERANCE


@ALL
def test_tied_weights_are_recognised(family: str) -> None:
    made = backbone(family)
    tied = made.model.config.get_text_config().tie_word_embeddings

    assert made.unembedding.is_tied is bool(tied)
    assert made.unembedding.weight.shape == (families.VOCAB_SIZE, families.WIDTH)


@ALL
def test_padding_on_the_right_changes_no_state(family: str) -> None:
    for mine, theirs in zip(
        read(backbone(family), answers(), share=False), plain(family), strict=True
    ):
        for key in theirs:
            assert key == "logits" or error(mine[key], theirs[key]) < TOLERANCE, key


def shared_error(made: TransformersBackbone, family: str) -> float:
    """Largest error of a row that holds a prompt and several answers."""
    rendered = answers()
    assert any(plan.shares for plan in plan_batches(rendered, share_prompts=True))
    got = read(made, rendered, share=True)
    return max(
        error(mine[key], theirs[key])
        for mine, theirs in zip(got, plain(family), strict=True)
        for key in theirs
        if key != "logits"
    )


@pytest.mark.parametrize("family", SHARING)
def test_a_row_shared_by_several_answers_changes_no_state(family: str) -> None:
    assert shared_error(backbone(family), family) < TOLERANCE


def test_every_family_that_claims_to_share_has_a_model_here() -> None:
    claimed = {kind for kind, family in KNOWN.items() if family.masks is not None}

    assert claimed == {backbone(name).located.model_type for name in SHARING}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"masks": "plain"}),  # forgets the window of the local layers
        ("mistral", {"masks": "plain"}),
        ("qwen2-window", {"masks": "window"}),  # puts the window on the full layers as well
        ("llama", {"takes_positions": False}),  # lets positions run on behind another answer
        ("gpt2", {"takes_positions": False}),
    ],
)
def test_a_false_claim_to_share_rows_is_caught(family: str, changes: dict) -> None:
    assert shared_error(liar(family, changes), family) > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["bloom", "falcon-alibi", "mamba"])
def test_a_family_without_dense_masks_fails_loudly_on_one(family: str) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        shared_error(liar(family, {"masks": "plain"}), family)


def liar(family: str, changes: dict) -> TransformersBackbone:
    made = families.backbone_of(BUILDERS[family](), family)
    made.located = dataclasses.replace(made.located, **changes)
    made.shares_prompts = True
    return made


@pytest.mark.parametrize("family", ["falcon-alibi", "bloom", "mamba", "rwkv", "stablelm"])
def test_families_without_dense_masks_or_unlisted_do_not_claim_to_share(family: str) -> None:
    assert not backbone(family).shares_prompts
