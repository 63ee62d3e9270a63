"""Many replicas of the server behind one address, on a Ray cluster: Ray Serve as the engine.

    serve run retrm.service.ray_serve:app models=runs/elhsr replicas=4 device=cuda

Each replica is the whole application of `create_app` with models of its own; it keeps no state, so Ray may
send any request to any of them. Ray starts a replica anew when its device thread is gone (`check_health`),
takes no requests from one that ends, and gives it `drain_s` for what it has taken. Ray's proxy listens on
127.0.0.1 port 8000 unless its own configuration says otherwise.

`max_ongoing_requests` is as large as our own queue: Ray's default of 5 would leave passes almost empty, and a
queue of its own would hide from `Retry-After` how long the wait is.

Source: `ray.serve.ingress` with a builder function and application builders
(https://docs.ray.io/en/latest/serve/http-guide.html), ray 2.60.
"""

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from retrm.errors import MissingExtraError, RecipeError
from retrm.service.access import TOKEN_VARIABLE, read_token
from retrm.service.models import named, open_registry
from retrm.service.settings import settings_of

try:
    from ray import serve
    from ray.serve import Application
except ImportError as error:
    raise MissingExtraError(
        f"serving on a Ray cluster needs Ray Serve, which is not installed ({error}). "
        "Run: pip install 'retrm[local,serve,ray]', on every machine of the cluster"
    ) from error

_SPARE_S = 5.0


class ReplicaArguments(BaseModel):
    """What `serve run ... key=value` and the `args` of a Serve configuration may say.

    Attributes:
        models: as for `retrm serve`; on the command line separated by commas.
        aliases: further names, as for `retrm serve --alias`.
        model: where the backbone of the folders lies now.
        replicas: how many servers, each with models of its own.
        device: `cpu`, or `cuda`: Ray gives each replica a card.
        cpus: cores a replica; its arithmetic uses as many threads.
        token_file: file with the key, on every machine; without it RETRM_TOKEN of the environment in
            which Ray was started.
        no_token: let everybody ask who can reach Ray's proxy.
        sampling: let the page at / draw answers.
        settings: limits of `ServiceSettings`, of each replica.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    models: list[str] = Field(min_length=1)
    aliases: list[str] = []
    model: str | None = None
    replicas: int = Field(default=1, ge=1)
    device: str = Field(default="cpu", pattern="^(cpu|cuda)$")
    cpus: float = Field(default=1, gt=0)
    token_file: Path | None = None
    no_token: bool = False
    sampling: bool = False
    settings: dict[str, int | float] = {}

    @field_validator("models", "aliases", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [one for one in value.split(",") if one] if isinstance(value, str) else value


def app(arguments: ReplicaArguments) -> Application:
    """The application that `serve run` and `serve deploy` start.

    Args:
        arguments: paths may be relative to the folder of whoever starts it.

    Raises:
        RecipeError: an unknown or impossible setting. What a replica finds (no key, no such model, a failed
            self-test) is told by Ray as the reason why the deployment failed.
    """
    settings = settings_of(arguments.settings, "settings.")
    told = _with_whole_paths(arguments)

    def build() -> Any:
        return _application(told)

    @serve.ingress(build)
    class RewardServer:
        """A replica."""

        def check_health(self) -> None:
            """Asked by Ray: raise where only a new replica helps."""
            self.app.state.service.check_open()  # type: ignore[attr-defined]

    deployment = serve.deployment(
        name="retrm",
        num_replicas=told.replicas,
        ray_actor_options={
            "num_cpus": told.cpus,
            "num_gpus": 1 if told.device == "cuda" else 0,
        },
        max_ongoing_requests=settings.max_waiting_items,
        graceful_shutdown_timeout_s=settings.drain_s + _SPARE_S,
    )
    return deployment(RewardServer).bind()


def _application(arguments: ReplicaArguments) -> Any:
    """The web application of one replica; called there."""
    from retrm.service.app import create_app
    from retrm.service.core import Service

    token = None if arguments.no_token else read_token(arguments.token_file, os.environ)
    if token is None and not arguments.no_token:
        raise RecipeError(
            f"there is no key; put it into a file that every machine has (token_file=PATH), or into "
            f"{TOKEN_VARIABLE} before Ray is started, or say no_token=true if everybody may ask who can "
            "reach Ray's proxy"
        )
    registry = open_registry(
        arguments.models,
        aliases=arguments.aliases,
        model=arguments.model,
        device=arguments.device,
    )
    service = Service(registry, settings_of(arguments.settings, "settings."))
    return create_app(service, token=token, has_sampling=arguments.sampling)


def _with_whole_paths(arguments: ReplicaArguments) -> ReplicaArguments:
    """Replicas work in folders of their own: what is found here is named from the root."""
    return arguments.model_copy(
        update={
            "models": [_whole_spec(spec) for spec in arguments.models],
            "model": _whole(arguments.model) if arguments.model else None,
            "token_file": arguments.token_file and arguments.token_file.absolute(),
        }
    )


def _whole_spec(spec: str) -> str:
    _, opened = named(spec)
    path = opened.removeprefix("hf:")
    return f"{spec.removesuffix(path)}{_whole(path)}"


def _whole(path: str) -> str:
    return str(Path(path).absolute()) if Path(path).exists() else path
