"""The real embedded model, loaded once for all tests that only read with it."""

import pytest


@pytest.fixture(scope="session")
def smollm2():
    from retrm.backbone.load import load_backbone

    return load_backbone("smollm2-135m")
