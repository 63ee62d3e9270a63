"""The heads by name; third parties add theirs through the entry-point group `retrm.heads`."""

from importlib.metadata import entry_points
from typing import Any

from retrm.errors import RecipeError, did_you_mean
from retrm.heads.base import Head
from retrm.heads.gated import GatedHead
from retrm.heads.linear import LinearHead
from retrm.heads.mixture import MixtureHead
from retrm.heads.mlp import MLPHead, WorstTokenHead

HEADS: dict[str, type[Head]] = {
    "linear": LinearHead,
    "gated": GatedHead,
    "mlp": MLPHead,
    "worst_token": WorstTokenHead,
    "mixture": MixtureHead,
}


def head_class(name: str) -> type[Head]:
    """The class of head `name`.

    Raises:
        RecipeError: no such head, here or among installed plug-ins.
    """
    if name in HEADS:
        return HEADS[name]
    for point in entry_points(group="retrm.heads"):
        if point.name == name:
            return point.load()
    raise RecipeError(f"unknown head {name!r}. {did_you_mean(name, HEADS)}")


def make_head(name: str, n_features: int, options: dict[str, Any] | None = None) -> Head:
    """An empty head of the given width.

    Raises:
        RecipeError: unknown head, or an option it does not have.
    """
    cls = head_class(name)
    options = dict(options or {})
    known = cls(1).options
    for key in options:
        if key not in known:
            raise RecipeError(
                f"the {name} head has no option {key!r}. {did_you_mean(key, known) or 'It has none.'}"
            )
    return cls(n_features, **options)
