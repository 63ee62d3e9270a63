"""The options of a sampling, and what can be told from them alone, before a model is loaded.

>>> from retrm.backbone.sample_options import SampleOptions
>>> SampleOptions(n=8, temperature=0.8).batch_size
64
"""

import math
from dataclasses import dataclass

from retrm.errors import RecipeError


@dataclass(frozen=True)
class SampleOptions:
    """Of `retrm.backbone.generate.sample`, which says what they mean.

    Raises:
        RecipeError: one is out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("n", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"got {name}={getattr(self, name)}; expected 1 or more")
        for name, is_right, wanted in (
            ("temperature", 0 <= self.temperature < math.inf, "a number of 0 or more"),
            ("top_p", 0 < self.top_p <= 1, "a share in (0, 1], 1 = no restriction"),
            ("top_k", self.top_k >= 0, "0 (no restriction) or more"),
            ("seed", 0 <= self.seed < 2**64, "an integer from 0 to 2**64 - 1"),
        ):
            if not is_right:
                raise RecipeError(f"got {name}={getattr(self, name)}; expected {wanted}")
        if self.temperature == 0 and self.n > 1:
            raise RecipeError(
                f"got temperature=0 with n={self.n}: all {self.n} answers would be the same. Use "
                "n=1, or a temperature above 0"
            )

    def check_prune(self) -> None:
        """Refuse to prune where the candidates of a prompt do not grow side by side.

        Raises:
            RecipeError: fewer places than candidates.
        """
        if self.batch_size < self.n:
            raise RecipeError(
                f"got batch_size={self.batch_size} with n={self.n}: pruning compares the candidates of "
                f"a prompt side by side. Use batch_size={self.n} or more, or leave pruning out"
            )
