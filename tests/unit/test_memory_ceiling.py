"""Eight times the answers take no more memory than is said: reading into a store, and fitting from one.

Each figure is the peak of a process of its own; what must not happen (all features held) is measured by
the same means, so that the check is known to notice it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "memory_of.py"
NOISE = 40e6  # of the allocator, between two processes that do the same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc"),
]


# The shards of these processes are a 32nd of real ones. glibc serves blocks below a threshold, which grows
# up to 32 MB, from a heap whose holes it keeps: real shards lie above it, and these would lie below and
# leave holes of tens of MB, other ones in each run. So the threshold is held below these as well.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 18),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 18),
}


def run(*steps):
    """Peak and stated budget of each (mode, folder, number of answers)."""
    given = json.dumps([(mode, str(folder), n) for mode, folder, n in steps])
    done = subprocess.run(
        [sys.executable, SCRIPT, given],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **ALLOCATOR},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_reading_into_a_store_stays_within_the_stated_budget(tmp_path):
    few, many, held = run(
        ("read", tmp_path / "few", 150),
        ("read", tmp_path / "many", 1200),
        ("hold", tmp_path / "none", 1200),
    )
    # Answers x tokens (40 x, 3 digits or so, the end) x layers x width x bytes.
    n_bytes = 1050 * 44 * 2 * 256 * 4
    said = many["budget"] - few["budget"]

    assert said < n_bytes / 8
    assert many["peak"] - few["peak"] < said + NOISE
    assert held["peak"] - few["peak"] > said + NOISE


def test_a_convex_fit_from_a_store_stays_within_the_stated_budget(tmp_path):
    *_, few, many, held = run(
        ("fill", tmp_path / "few", 8_000),
        ("fill", tmp_path / "many", 64_000),
        ("fit", tmp_path / "few", 8_000),
        ("fit", tmp_path / "many", 64_000),
        ("fit-held", tmp_path / "many", 64_000),
    )
    said = many["budget"] - few["budget"]

    assert said < 56_000 * 512 * 4 / 8
    assert many["peak"] - few["peak"] < said + NOISE
    assert held["peak"] - few["peak"] > said + NOISE
