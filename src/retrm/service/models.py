"""The served models: opened and tested once, found by name.

A folder is served under its own name; `NAME=DIR` gives it another, and aliases are further names for clients
that send one of their own, as verl does with the path of its reward model. Any other name is refused: to
answer for a model that was not asked would give wrong scores without a word. A head whose stored scores are not
reproduced is refused by loading (`SelfTestError`), so that what is served gave the right scores a moment
ago.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from retrm.backbone.base import Backbone
from retrm.engines.base import Engine
from retrm.errors import RecipeError, UnknownModelError, did_you_mean
from retrm.heads.artifact import MANIFEST
from retrm.scorers.base import Scorer
from retrm.scorers.open import open_scorers, shown_spec
from retrm.scorers.reward_model import RewardModel
from retrm.scorers.together import StateScorer
from retrm.service.items import ServedModel
from retrm.service.lanes import Lane, lane_of

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class Served:
    """A model that can be asked.

    Attributes:
        info: what clients may know of it.
        scorer: the model.
        lane: with whom it shares its passes.
    """

    info: ServedModel
    scorer: Scorer
    lane: Lane


class Registry:
    """The served models by name; the first is asked where a request names none.

    Args:
        served: the models.
        aliases: further names, each with the name of its model; see `read_alias`.

    Raises:
        RecipeError: none, two of one name, or an alias that is taken or of no model.
    """

    def __init__(
        self, served: Sequence[Served], *, aliases: Mapping[str, str] | None = None
    ) -> None:
        if not served:
            raise RecipeError(
                "got no model to serve; expected at least one folder made by retrm fit"
            )
        self._served = {one.info.name: one for one in served}
        names = [one.info.name for one in served]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RecipeError(
                f"two models are called {twice!r}; expected names of their own. Write OTHER={twice}"
            )
        self._aliases = dict(aliases or {})
        for alias, name in self._aliases.items():
            if alias in self._served or name not in self._served:
                raise RecipeError(
                    f"got the alias {alias!r} of {name!r}; expected a new name, of one of {', '.join(names)}"
                )
            one = self._served[name]
            info = replace(one.info, aliases=(*one.info.aliases, alias))
            self._served[name] = replace(one, info=info)

    @classmethod
    def of(
        cls,
        scorers: Mapping[str, Scorer],
        *,
        created: Mapping[str, int] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> "Registry":
        """Of scorers that are open, by name; those on one backbone share its passes.

        Args:
            scorers: by name.
            created: when each was made, seconds since 1970, where it is known.
            aliases: further names, each with the name of its model.
        """
        lanes: dict[int, Lane] = {}
        served = []
        for name, scorer in scorers.items():
            key = id(scorer.backbone) if isinstance(scorer, StateScorer) else id(scorer)
            lane = lanes.get(key) or lanes.setdefault(key, lane_of(scorer))
            info = _info(name, scorer, lane, created=(created or {}).get(name, 0))
            served.append(Served(info, scorer, lane))
        return cls(served, aliases=aliases)

    def get(self, name: str | None) -> Served:
        """The model of that name or alias; None = the first.

        Raises:
            UnknownModelError: there is none; the message offers the nearest.
        """
        if name is None:
            return next(iter(self._served.values()))
        known = self._aliases.get(name, name)
        if known not in self._served:
            hint = did_you_mean(name[:200], (*self._served, *self._aliases))
            raise UnknownModelError(
                f"no model {name[:200]!r} is served. {hint} A client that cannot send another name needs an "
                "alias: retrm serve --alias NAME"
            )
        return self._served[known]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all models, in the order in which they were given."""
        return tuple(self._served)

    def __iter__(self) -> Iterator[Served]:
        return iter(self._served.values())

    def __len__(self) -> int:
        return len(self._served)


def open_registry(
    specs: Sequence[str],
    *,
    names: Sequence[str] = (),
    aliases: Sequence[str] = (),
    model: str | None = None,
    device: str = "cpu",
    engine: Engine | None = None,
) -> Registry:
    """Open all models and replay their self-tests; nothing is served if one of them fails.

    Args:
        specs: as for `open_scorer`, each perhaps with NAME= in front.
        names: for the specs in their order, instead of NAME=; may be fewer.
        aliases: as for `read_alias`.
        model: where the backbone of the folders lies now.
        device: for backbones.
        engine: whose workers load the backbones.

    Raises:
        SelfTestError: a model does not give its stored scores.
        RecipeError, ArtifactError, BackboneError, FingerprintError: one cannot be opened.
    """
    asked = [named(spec) for spec in specs]
    if len(names) > len(asked):
        raise RecipeError(
            f"got {len(names)} names for {len(asked)} models; expected at most one each"
        )
    for number, name in enumerate(names):
        asked[number] = (name, asked[number][1])
    # Names are checked before the first model is loaded.
    found = [name for name, _ in asked]
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(
            f"two models are called {twice!r}; expected names of their own. Write NAME=DIR for one of them"
        )
    also = dict(read_alias(alias, found) for alias in aliases)
    specs = [spec for _, spec in asked]
    with ThreadPoolExecutor(1, thread_name_prefix="retrm-open") as briefly:
        # OpenMP keeps a team for every thread that has computed. With two of them it takes the cores for
        # scarce and puts threads to sleep at each barrier: passes took a quarter longer on two cores. The
        # team of a thread that has ended is gone, so the device's thread will have the only one.
        opened = briefly.submit(
            lambda: open_scorers(specs, model=model, device=device, engine=engine)
        ).result()
    return Registry.of(
        {name: opened[shown_spec(spec)] for name, spec in asked},
        created={name: _created(spec) for name, spec in asked},
        aliases=also,
    )


def read_alias(text: str, names: Sequence[str]) -> tuple[str, str]:
    """(alias, name) of ALIAS=NAME, or of ALIAS alone where one model is served; an alias may hold `=` and `/`.

    Raises:
        RecipeError: it is of no model, of several, or taken.

    >>> read_alias("/data/rm=math", ["math", "code"])
    ('/data/rm', 'math')
    >>> read_alias("/data/rm", ["math"])
    ('/data/rm', 'math')
    """
    alias, _, name = text.rpartition("=")
    if name not in names or not alias:
        if len(names) > 1:
            raise RecipeError(
                f"got the alias {text!r}; expected ALIAS=NAME with one of the names {', '.join(names)}"
            )
        alias, name = text, names[0]
    if alias in names or not alias:
        raise RecipeError(f"got the alias {text!r}; expected a name that no model has yet")
    return alias, name


def named(spec: str) -> tuple[str, str]:
    """(name, what is opened) of what was typed.

    >>> named("math=runs/elhsr")
    ('math', 'runs/elhsr')
    >>> named("runs/elhsr/")
    ('elhsr', 'runs/elhsr/')
    """
    found = _NAMED.fullmatch(spec)
    if found is not None and not Path(spec).exists():
        return found[1], found[2]
    if spec.startswith(("hf:", "polar:")):
        return Path(spec.partition(":")[2]).name or spec, spec
    if (Path(spec) / MANIFEST).is_file():
        return Path(spec).resolve().name, spec
    is_path = ":" not in spec and ("/" in spec or spec.startswith("."))
    return (Path(spec).name or spec) if is_path else shown_spec(spec), spec


def _created(spec: str) -> int:
    manifest = Path(spec) / MANIFEST
    return int(manifest.stat().st_mtime) if manifest.is_file() else 0


def _info(name: str, scorer: Scorer, lane: Lane, *, created: int) -> ServedModel:
    backbone: Backbone | None = scorer.backbone if isinstance(scorer, StateScorer) else None
    is_ours = isinstance(scorer, RewardModel)
    return ServedModel(
        name=name,
        head_id=str(getattr(scorer, "identity", scorer.name)),
        method=scorer.artifact.method if is_ours else type(scorer).__name__,
        backbone=backbone.name if backbone is not None else "",
        template_fingerprint=backbone.fingerprint.template if backbone is not None else "",
        context_length=lane.context_length,
        dtype=str(backbone.dtype).removeprefix("torch.") if backbone is not None else "",
        can_show_tokens=is_ours and scorer.shows_tokens,
        can_show_layers=is_ours and bool(scorer.added_layers),
        objectives=scorer.objectives if is_ours else (),
        created=created,
    )
