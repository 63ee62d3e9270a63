"""Settings of the whole suite."""

import os

from hypothesis import settings

# CI draws the same cases every time: a green commit stays green. At a desk every run draws new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
