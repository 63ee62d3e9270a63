"""Tiny models, one batch of tokens, the states of a pass: what tests of removals start from."""

import families
from tiny import tiny_model, tiny_tokenizer

from retrm.backbone.base import Fingerprint, Rendered
from retrm.backbone.batching import build, plan_batches
from retrm.backbone.render import ChatRenderer
from retrm.backbone.states import TransformersBackbone
from retrm.features.subspace import fit_spectrum

L = families.N_LAYERS
RESIDUALS = [(i, "residual") for i in range(L + 1)]
EVERY = [*RESIDUALS, (L, "post_norm")]
NO_FINGERPRINT = Fingerprint("", "", "", "")


def bare(family: str = "llama", **options: object) -> TransformersBackbone:
    return families.backbone_of(families.FAMILIES[family](**options), f"tiny {family}")


def talking(family: str = "llama") -> TransformersBackbone:
    renderer = ChatRenderer(tiny_tokenizer())
    return TransformersBackbone(tiny_model(family), renderer, NO_FINGERPRINT, family)


def batch(*lengths: int, share: bool = False):
    """One batch of answers of `lengths` tokens behind the prompt 5 6 7."""
    rendered = [
        Rendered((5, 6, 7, *((11 * n + i) % 90 + 8 for i in range(n))), 3, 3 + n) for n in lengths
    ]
    (plan,) = plan_batches(rendered, tokens_per_batch=4096, share_prompts=share)
    return build(plan, rendered, pad_id=0)


def states(made: TransformersBackbone, laid=None, wanted=EVERY) -> dict:
    out = {}
    laid = laid if laid is not None else batch(7, 4)
    made.forward(laid, wanted, lambda layer, point, x: out.update({(layer, point): x.clone()}))
    return out


def basis_of(made, part: str = "reasoning", m: int = 5, point: str = "residual", seed: int = 0):
    return fit_spectrum(made.unembedding, point).subspace(part, m, seed=seed)


def n_hooks(made: TransformersBackbone) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in made.model.modules())
