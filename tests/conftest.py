"""Settings of the whole suite."""

import os

from hypothesis import HealthCheck, settings

# How fast cases are drawn says something of the machine, not of the code: a busy one would fail tests.
settings.register_profile("desk", suppress_health_check=[HealthCheck.too_slow])
# CI draws the same cases every time: a green commit stays green. At a desk every run draws new ones.
settings.register_profile("ci", settings.get_profile("desk"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

# Two processes on two cores: more threads would wait for each other. Read when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Read when ray is imported, on every system: a cluster of this machine then listens on 127.0.0.1 only.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
