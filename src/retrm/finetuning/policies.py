r"""Who writes: policies to be told apart, from a TOML file.

    [policies.small]
    model = "smollm2-135m"

    [policies.small-cold]
    model = "smollm2-135m"
    temperature = 0.7

    [policies.pirate]
    model = "smollm2-135m"
    adapter = "runs/pirate/adapter"      # of peft
    before = "From a pirate's diary:\\n"  # stands before the prefix for this policy only

    [policies.served]
    model = "name-of-the-engine"
    endpoint = "http://127.0.0.1:8000"

Defaults are the paper's (arXiv 2507.05197): temperature 1, top-p 0.9, top-k 50. A lower temperature gives too
little contrast, a higher one hides a policy's character.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from retrm.backbone.sample_options import SampleOptions
from retrm.errors import RecipeError, did_you_mean

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A way of writing.

    Attributes:
        name: by which rows and manifest know it.
        model: any name that retrm knows; with `endpoint`, the engine's name of it.
        adapter: folder of a low-rank adapter (peft) on the model.
        endpoint: URL of an engine that speaks OpenAI's protocol; the key comes from the environment.
        temperature: above 0, since the first of two policies writes twice.
        top_p: share of probability to draw from.
        top_k: how many of the likeliest tokens to draw from; 0 = all.
        before: text in front of every prefix, or a system turn where prompts are chats.
    """

    name: str
    model: str
    adapter: str | None = None
    endpoint: str | None = None
    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 50
    before: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise RecipeError(
                f"got a policy called {self.name!r}; expected letters, digits, dots, dashes: it names a file"
            )
        for field in fields(self):
            value, wants = getattr(self, field.name), _KINDS[field.name]
            if not isinstance(value, wants) or isinstance(value, bool):
                raise RecipeError(
                    f"policy {self.name}: {field.name} is {value!r}; expected another kind"
                )
        if not self.model.strip():
            raise RecipeError(f"policy {self.name} has no model; expected a name")
        if self.temperature == 0:
            raise RecipeError(
                f"policy {self.name} has temperature 0, at which its two texts of a prefix are the same; use "
                "a temperature above 0"
            )
        SampleOptions(2, float(self.temperature), float(self.top_p), self.top_k)
        if self.adapter is not None and self.endpoint is not None:
            raise RecipeError(
                f"policy {self.name} has an adapter and an endpoint; let the engine load the adapter and name "
                "it as the model"
            )

    def as_dict(self) -> dict[str, Any]:
        """All but the name, as in the file."""
        made = asdict(self)
        del made["name"]
        return {name: value for name, value in made.items() if value not in (None, "")}


_KINDS: Mapping[str, Any] = {
    "name": str,
    "model": str,
    "adapter": str | None,
    "endpoint": str | None,
    "temperature": int | float,
    "top_p": int | float,
    "top_k": int,
    "before": str,
}


def read_policies(path: Path) -> tuple[Policy, ...]:
    """All policies of a TOML file, in its order.

    Raises:
        RecipeError: unreadable, an unknown key, fewer than two policies, or two that are the same.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} is no valid TOML: {error}") from error
    tables = values.get("policies")
    if set(values) != {"policies"} or not isinstance(tables, dict):
        raise RecipeError(
            f"{path} holds {', '.join(values) or 'nothing'}; expected tables [policies.NAME] and nothing else"
        )
    made = tuple(_policy(name, table, path) for name, table in tables.items())
    check_policies(made)
    return made


def _policy(name: str, table: Any, path: Path) -> Policy:
    if not isinstance(table, dict):
        raise RecipeError(
            f"{path}: policies.{name} is {table!r}; expected a table [policies.{name}]"
        )
    known = [field.name for field in fields(Policy) if field.name != "name"]
    for key in table:
        if key not in known:
            raise RecipeError(f"{path}: unknown key {key!r} of {name}. {did_you_mean(key, known)}")
    if "model" not in table:
        raise RecipeError(f'{path}: policy {name} has no model; expected model = "..."')
    return Policy(name=name, **table)


def check_policies(policies: tuple[Policy, ...]) -> None:
    """Refuse what cannot be told apart.

    Raises:
        RecipeError: fewer than two, or two that write alike.
    """
    if len(policies) < 2:
        raise RecipeError(f"got {len(policies)} policies; expected two at least, to be told apart")
    seen: dict[str, str] = {}
    for policy in policies:
        body = str(policy.as_dict())
        if body in seen:
            raise RecipeError(
                f"the policies {seen[body]} and {policy.name} are the same; expected each to write otherwise"
            )
        seen[body] = policy.name
