"""Limits and times of the server; every one of them has a value that works."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from retrm.backbone.batching import TOKENS_PER_BATCH
from retrm.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class ServiceSettings:
    """How much is taken, how long is waited.

    Attributes:
        tokens_per_batch: budget of a forward pass, padding included. Larger on a GPU.
        window_ms: how long an idle worker waits for company for the first item; 0 = not at all.
        max_items: of one request.
        max_tokens: of one request, after the length policy.
        max_body_bytes: of one request.
        max_waiting_items: of all requests that were taken and are not answered yet; beyond it they are
            told to come again.
        max_waiting_tokens: the same in tokens.
        max_waiting_bytes: the same in bytes of the bodies.
        max_jobs: other work of the device thread (sampling of the playground) that may wait.
        deadline_s: after so long a request is given up; requests may ask for less.
        drain_s: how long a server that ends works on what it has taken.
    """

    tokens_per_batch: int = TOKENS_PER_BATCH
    window_ms: float = 5.0
    max_items: int = 1024
    max_tokens: int = 1 << 20
    max_body_bytes: int = 16 << 20
    max_waiting_items: int = 4096
    max_waiting_tokens: int = 4 << 20
    max_waiting_bytes: int = 256 << 20
    max_jobs: int = 8
    deadline_s: float = 300.0
    drain_s: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if field.type is int and not (isinstance(value, int) and is_number and value >= 1):
                raise RecipeError(
                    f"got {field.name} = {value!r}; expected a whole number from 1 up"
                )
            least = 0.0 if field.name in ("window_ms", "drain_s") else 1e-3
            if not is_number or not math.isfinite(value) or value < least:
                raise RecipeError(
                    f"got {field.name} = {value!r}; expected a number from {least:g} up"
                )
        self._check_pair("max_items", "max_waiting_items")
        self._check_pair("max_tokens", "max_waiting_tokens")
        self._check_pair("max_body_bytes", "max_waiting_bytes")

    def _check_pair(self, one: str, all_: str) -> None:
        """A request that is allowed must fit into an empty queue, or it would come again for ever."""
        if getattr(self, one) > getattr(self, all_):
            raise RecipeError(
                f"got {one} = {getattr(self, one)} and {all_} = {getattr(self, all_)}; expected a request "
                f"to fit into the queue. Lower {one} or raise {all_}"
            )


def settings_of(given: Mapping[str, Any], where: str) -> ServiceSettings:
    """Settings of a table in a file.

    Args:
        given: some of them by name.
        where: what stands before a name in messages.

    Raises:
        RecipeError: an unknown name, or a value that cannot be.
    """
    known = [field.name for field in fields(ServiceSettings)]
    wrong = next((name for name in given if name not in known), None)
    if wrong is not None:
        raise RecipeError(f"unknown key {where}{wrong}. {did_you_mean(wrong, known)}")
    return ServiceSettings(**given)
