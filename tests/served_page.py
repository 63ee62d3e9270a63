"""What the browser tests share: the real application on a port of the loopback, and a headless browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from listening import listening
from scored import reward_model

from retrm.backbone.fake import FakeBackbone
from retrm.features.recipe import Recipe
from retrm.service.models import Registry
from retrm.service.settings import ServiceSettings

ELHSR = Recipe(layers="all", point="hidden_states", pooling="tokens", dtype="bfloat16")
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def registry() -> Registry:
    """Heads of each kind on one toy backbone: all layers, the last token, and one without tokens."""
    backbone = FakeBackbone()
    return Registry.of(
        {
            "gated": reward_model(backbone, ELHSR, "gated"),
            "last": reward_model(backbone, Recipe(), seed=1),
            "prompt": reward_model(backbone, Recipe(pooling="prompt_end"), seed=2),
        }
    )


@contextmanager
def served(
    *,
    token: str | None = None,
    settings: ServiceSettings | None = None,
    has_sampling: bool = True,
    models: Registry | None = None,
) -> Iterator[str]:
    """The address of a running server, which ends with the block."""
    from retrm.service.app import create_app
    from retrm.service.core import Service

    app = create_app(
        Service(models or registry(), settings), token=token, has_sampling=has_sampling
    )
    with listening(app) as url:
        yield url


@contextmanager
def browser():
    """A headless Chromium; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: expected one of {', '.join(BROWSERS)} on the PATH")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path)
        yield opened
        opened.close()
