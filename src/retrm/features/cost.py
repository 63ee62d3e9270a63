"""What reading costs, by arithmetic: operations, tokens, bytes.

    operations of a token    2 x parameters + 4 x layers x width x tokens it looks at
    tokens of an answer      response + prompt / answers that share the prompt
    bytes of a row           features x bytes of the recipe's dtype; a row is an answer, or a token

One multiplication and one addition are two operations; the second term is attention (scores and
weighted sum), which a token pays for every token before it: half a row on average.

    >>> forward_flops(8e9, n_layers=32, width=4096) / 1e9
    16.0
    >>> row_bytes(Recipe(layers="all", point="hidden_states", dtype="bfloat16"), 32, 4096)
    270336
"""

from retrm.features.recipe import Recipe
from retrm.features.reduce import SCALARS, TORCH_DTYPES
from retrm.features.subspace import SubspaceSpec


def forward_flops(
    n_parameters: float, *, n_layers: int = 0, width: int = 0, looks_at: float = 0.0
) -> float:
    """Floating-point operations of one token in one forward pass.

    Args:
        n_parameters: that a token is multiplied with: all of a dense model without its embedding,
            and without the LM head, which a reading does not run.
        n_layers: blocks.
        width: of the residual stream, or heads x head size where attention is wider or narrower.
        looks_at: tokens it attends to, itself included; 0 leaves attention out.
    """
    return 2.0 * n_parameters + 4.0 * n_layers * width * looks_at


def tokens_read(n_answers: float, n_prompt: float, n_response: float, n_shared: int = 1) -> float:
    """Tokens that pass through the model.

    Args:
        n_answers: in all.
        n_prompt: tokens of a prompt.
        n_response: tokens of an answer.
        n_shared: answers that share the reading of their prompt; 1 = none do.
    """
    return n_answers * (n_response + n_prompt / n_shared)


def row_bytes(recipe: Recipe, n_layers: int, width: int, vocab_size: int = 0) -> int:
    """Bytes that a recipe keeps of an answer (pooled) or of a response token (`tokens`).

    Raises:
        RecipeError: the model has no such layers or not so many dimensions.
    """
    if recipe.source == "log_probability":
        n_features = len(SCALARS)
    elif recipe.source == "logits":
        n_features = vocab_size
    else:
        n_dims = SubspaceSpec.parse(recipe.subspace).n_dims(width)
        n_features = n_dims * len(recipe.wanted(n_layers))
    return n_features * TORCH_DTYPES[recipe.dtype].itemsize
