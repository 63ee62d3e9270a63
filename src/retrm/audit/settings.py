"""What the plans of an audit have in common: checked counts, plain JSON, seeds of random subspaces."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from retrm.errors import RecipeError, did_you_mean

DRAWS_PER_SEED = 10_000  # plans refuse more draws, so that the seeds of two plans never meet


def draw_seed(seed: int, draw: int) -> int:
    """Seed of a random subspace: another seed of a plan gives other subspaces."""
    return seed * DRAWS_PER_SEED + draw


@dataclass(frozen=True)
class Settings:
    """Base of a frozen dataclass that is read from JSON or TOML."""

    called: ClassVar[str] = "plan"  # in messages

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From JSON or TOML; lists become tuples, unknown keys are errors.

        Raises:
            RecipeError: an unknown key, or a value that is impossible.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise RecipeError(f"unknown {cls.called} key {key!r}. {did_you_mean(key, known)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, as it is read again from a file."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def check_counts(
        self, least: Mapping[str, int], *, most: Mapping[str, int] | None = None
    ) -> None:
        """Refuse what is no whole number, below `least` or above `most`, by name.

        Raises:
            RecipeError: such a value.
        """
        for name, lowest in least.items():
            got = getattr(self, name)
            if type(got) is not int:
                raise RecipeError(f"got {name}={got!r}; expected a whole number")
            if got < lowest:
                raise RecipeError(f"got {name}={got}; expected {lowest} or more")
            if most is not None and got > most.get(name, got):
                raise RecipeError(f"got {name}={got}; expected {lowest} to {most[name]}")
